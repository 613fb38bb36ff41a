//! One binary for all tests of the evaluation.

mod data;
mod items;
mod metrics;
mod report;
mod sandbox;
