//! LLaMA: its shape ([`config`]), one layer ([`block`]), the whole ([`llama`]) and its first weights ([`init`]).
//!
//! Dimensions: `batch`, `seq`, `dim`, `n_heads`, `n_kv_heads`, `head_dim = dim / n_heads`, `hidden_dim`, `vocab_size`.
//! Parameters have Meta's names; a parameter's path is its key in a checkpoint (`layers.0.attention.wq.weight`).

pub mod block;
pub mod config;
pub mod init;
pub mod llama;

pub use block::{Attention, Block, FeedForward, KvCache, Linear, RmsNorm, Rope};
pub use config::{ModelConfig, RopeScaling};
pub use init::{InitConfig, initial_weights};
pub use llama::{Llama, Weights};
