//! One binary for all tests of the evaluation.
