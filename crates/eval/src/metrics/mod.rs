//! Metrics by their definitions.
