//! Limits and manners of a server.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Where lines of the access log go.
pub type AccessLog = Arc<dyn Fn(&str) + Send + Sync>;

/// How a server treats its clients.
#[derive(Clone)]
pub struct ServeConfig {
    /// Most sequences of a model that are computed at once.
    pub max_seqs: usize,
    /// Most sequences of a model that wait beside those; more are refused with 429.
    pub max_queue: usize,
    /// Most connections; more wait until one ends.
    pub max_connections: usize,
    /// A request's head, and then its body, have to be there within this.
    pub read_time: Duration,
    /// Most bytes of a request's body.
    pub max_body_bytes: usize,
    /// Most texts of one request (prompts times `n`).
    pub max_choices: usize,
    /// Most tokens of a text, whatever is asked for. `None`: as many as the model has positions.
    pub max_output: Option<usize>,
    /// Most likeliest tokens that are told beside each token.
    pub max_logprobs: usize,
    /// How long a request may take; `None`: as long as it needs.
    pub request_time: Option<Duration>,
    /// Drafted tokens, see [`recua_core::generate::Request::speculate`].
    pub speculate: usize,
    /// Put BOS before prompts of token ids that have none. They are scored as without it: the first token then has a probability.
    pub score_bos: bool,
    /// Who may ask. Empty: everybody.
    pub api_keys: Vec<String>,
    /// Origins of pages that may ask from a browser; `*`: all.
    pub cors_origins: Vec<String>,
    /// Comments in a stream while nothing else comes.
    pub keep_alive: Duration,
    /// How often an engine is built again after its device has failed.
    pub max_restarts: usize,
    /// A line for each request.
    pub access_log: Option<AccessLog>,
}

impl Default for ServeConfig {
    fn default() -> Self {
        Self {
            max_seqs: 16,
            max_queue: 256,
            max_connections: 1000,
            read_time: Duration::from_secs(30),
            max_body_bytes: 8 << 20,
            max_choices: 256,
            max_output: None,
            max_logprobs: 100,
            request_time: Some(Duration::from_secs(600)),
            speculate: 0,
            score_bos: false,
            api_keys: Vec::new(),
            cors_origins: Vec::new(),
            keep_alive: Duration::from_secs(10),
            max_restarts: 3,
            access_log: None,
        }
    }
}

impl fmt::Debug for ServeConfig {
    /// Without the keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServeConfig")
            .field("max_seqs", &self.max_seqs)
            .field("max_queue", &self.max_queue)
            .field("api_keys", &self.api_keys.len())
            .finish_non_exhaustive()
    }
}
