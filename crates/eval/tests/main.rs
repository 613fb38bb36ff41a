//! One binary for all tests of the evaluation.

mod data;
mod items;
mod metrics;
