// Several ranks are one device: the same gradients, the same weights, the same data, the same checkpoints. Ranks are threads here.

mod common;
mod failures;
mod gradients;
mod inference;
mod measure;
mod runs;
mod slices;
pub(crate) mod steps;
