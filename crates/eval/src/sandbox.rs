//! Code of a model is run here, within walls.
