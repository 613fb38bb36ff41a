//! What documents have in common.

pub mod minhash;
pub mod overlap;
