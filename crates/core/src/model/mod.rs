//! LLaMA: its shape ([`config`]), one layer ([`block`]), the whole ([`llama`]), its first weights ([`init`]) and
//! the training pass whose backward is written by hand ([`backward`]).
//!
//! Dimensions: `batch`, `seq`, `dim`, `n_heads`, `n_kv_heads`, `head_dim = dim / n_heads`, `hidden_dim`, `vocab_size`.
//! Parameters have Meta's names; a parameter's path is its key in a checkpoint (`layers.0.attention.wq.weight`).

pub mod backward;
pub mod block;
pub mod config;
pub mod init;
pub mod llama;

pub use block::{Attention, Block, FeedForward, KvCache, Linear, RmsNorm, Rope};
pub use config::{ModelConfig, RopeScaling, Stored};
pub use init::{InitConfig, initial_weights};
pub use llama::{Llama, Weights, unfuse};
