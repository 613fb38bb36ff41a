//! LLaMA: its shape ([`config`]), every parameter by name ([`slots`]), one layer ([`block`]), the whole ([`llama`]), its first weights ([`init`]) and
//! the training pass whose backward is written by hand ([`backward`]).
//!
//! Dimensions: `batch`, `seq`, `dim`, `n_heads`, `n_kv_heads`, `head_dim = dim / n_heads`, `hidden_dim`, `vocab_size`.
//! Parameters have Meta's names; a parameter's path is its key in a checkpoint (`layers.0.attention.wq.weight`).

pub mod backward;
pub mod block;
pub mod config;
mod infer;
pub mod init;
pub mod llama;
pub mod part;
pub mod regions;
pub mod slots;

pub use block::{Attention, Block, FeedForward, Linear, Parameter, RmsNorm, Rope, inverse_frequencies};
pub use config::{ModelConfig, RopeScaling};
pub use init::{InitConfig, initial_weights};
pub use llama::{Llama, ParameterFn, unfuse};
pub use part::{Part, Slice, Split};
pub use slots::{LayerSlot, PerSlot, Slot};
