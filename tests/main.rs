//! One binary for all integration tests, so that dependencies are linked once.

mod golden;
