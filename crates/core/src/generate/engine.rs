//! The engine: requests join and leave between steps.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Event, Request, RequestId};
use crate::backend::DeviceContext;
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::ops::KvDtype;

/// How an engine computes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EngineConfig {
    /// Type of the weights: `None`: float32.
    pub dtype: Option<String>,
    /// Longest sequence, prompt and text. `None`: the model's `max_seq_len`, as far as the cache reaches.
    pub max_len: Option<usize>,
    /// Bytes of keys and values, never exceeded. `None`: room for `max_batch` sequences of `max_len`, at most a quarter of the memory.
    pub kv_cache_bytes: Option<u64>,
    /// Type of keys and values.
    pub kv_cache_dtype: KvDtype,
    /// Most sequences that decode at once.
    pub max_batch: usize,
    /// Most rows (tokens) of a step: what decode leaves of them is for chunks of prompts.
    pub max_step_tokens: usize,
    /// Blocks are shared between requests that begin alike.
    pub prefix_cache: bool,
}
