//! Loss to weights.

pub mod metrics;
pub mod report;
pub mod step;
