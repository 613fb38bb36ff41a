//! A model that is served: its engine, and what makes text of its tokens.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::http::StatusCode;
use recua_core::backend::BackendName;
use recua_core::generate::{Bos, Engine, EngineConfig, TextModel, encode_prompt};
use recua_core::tokenizer::{ChatTemplate, Tokenizer};
use recua_core::{Error, Result};

use crate::config::ServeConfig;
use crate::error::ApiError;
use crate::worker::{Handle, Make, Status};

/// A model to serve, whose files are open and whose weights are not read yet.
pub struct ModelSource {
    name: String,
    path: String,
    text: Text,
    make: Make,
    kernels: bool,
}

/// What is known of a model's tokens.
struct Text {
    tokenizer: Option<Tokenizer>,
    ends: Vec<u32>,
    bos: Option<u32>,
    vocab_size: usize,
}

impl ModelSource {
    /// A model of any format; its engine is built on `backend` when the server starts. `tokenizer`: another than that beside it.
    ///
    /// # Errors
    /// Those of the files.
    pub fn open(
        name: impl Into<String>,
        path: &Path,
        tokenizer: Option<&Path>,
        backend: BackendName,
        config: EngineConfig,
    ) -> Result<Self> {
        let TextModel { checkpoint, tokenizer, ends, .. } = TextModel::open(path, tokenizer)?;
        config.validate()?;
        let bos = tokenizer.as_ref().and_then(Tokenizer::bos_id).or(checkpoint.bos_eos().0);
        let text = Text { tokenizer, ends, bos, vocab_size: checkpoint.config().vocab_size };
        let make: Make = Box::new(move || Engine::load(&checkpoint, &backend.open()?, config.clone()));
        let kernels = !backend.kind().is_cpu();
        Ok(Self { name: name.into(), path: path.display().to_string(), text, make, kernels })
    }

    /// An engine that a program builds itself, again where its device has failed. `ends`: tokens that end a text.
    pub fn build(
        name: impl Into<String>,
        vocab_size: usize,
        tokenizer: Option<Tokenizer>,
        ends: Vec<u32>,
        make: impl FnMut() -> Result<Engine> + Send + 'static,
    ) -> Self {
        let bos = tokenizer.as_ref().and_then(Tokenizer::bos_id);
        let name = name.into();
        let text = Text { tokenizer, ends, bos, vocab_size };
        Self { path: name.clone(), name, text, make: Box::new(make), kernels: false }
    }

    /// An engine that is there. It is not built again where its device fails.
    pub fn from_engine(name: impl Into<String>, engine: Engine, tokenizer: Option<Tokenizer>, ends: Vec<u32>) -> Self {
        let (vocab_size, mut engine) = (engine.model().vocab_size, Some(engine));
        let make = move || engine.take().ok_or_else(|| Error::internal("engine", "it was made only once"));
        Self::build(name, vocab_size, tokenizer, ends, make)
    }

    /// What requests call it.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// A model that is served.
pub(crate) struct Model {
    pub(crate) name: String,
    pub(crate) path: String,
    /// Seconds since 1970.
    pub(crate) created: u64,
    pub(crate) tokenizer: Option<Tokenizer>,
    pub(crate) template: Option<ChatTemplate>,
    /// Tokens that end a text.
    pub(crate) ends: Vec<u32>,
    pub(crate) bos: Option<u32>,
    pub(crate) vocab_size: usize,
    bytes: Vec<Option<Vec<u8>>>,
    /// Bytes of the longest token; 0: not known.
    longest: usize,
    pub(crate) handle: Handle,
    #[cfg(feature = "constrain")]
    constraints: std::sync::OnceLock<Result<recua_core::generate::ConstraintFactory, String>>,
}

impl Model {
    pub(crate) fn start(source: ModelSource, config: &ServeConfig) -> Result<Self> {
        let ModelSource { name, path, text, make, kernels } = source;
        let template = text.tokenizer.as_ref().map(ChatTemplate::of).transpose()?;
        let bytes = text.tokenizer.as_ref().and_then(|tokenizer| tokenizer.all_token_bytes().ok()).unwrap_or_default();
        let longest = bytes.iter().flatten().map(Vec::len).max().unwrap_or(0);
        let capacity = config.max_seqs.saturating_add(config.max_queue).max(1);
        let handle = Handle::start(&name, make, config.max_seqs, kernels, capacity, config.max_restarts);
        Ok(Self {
            name,
            path,
            created: now(),
            tokenizer: text.tokenizer,
            template,
            ends: text.ends,
            bos: text.bos,
            vocab_size: text.vocab_size,
            bytes,
            longest,
            handle,
            #[cfg(feature = "constrain")]
            constraints: std::sync::OnceLock::new(),
        })
    }

    /// Longest sequence, once the engine is ready.
    pub(crate) fn max_len(&self) -> Result<usize, ApiError> {
        match &*self.handle.status.borrow() {
            Status::Ready { max_len, .. } => Ok(*max_len),
            Status::Starting => Err(ApiError::unavailable(format!("the model {} is being loaded; try again", self.name))),
            Status::Failed(problem) => Err(ApiError::unavailable(format!("the model {} has failed: {problem}", self.name))),
        }
    }

    /// The tokenizer, for what cannot be done without.
    pub(crate) fn tokenizer(&self, param: &str) -> Result<&Tokenizer, ApiError> {
        self.tokenizer.as_ref().ok_or_else(|| {
            let problem = format!("the model {} has no tokenizer: it takes token ids and gives token ids", self.name);
            ApiError { code: Some("no_tokenizer"), ..ApiError::bad(param, problem) }
        })
    }

    pub(crate) fn template(&self) -> Result<&ChatTemplate, ApiError> {
        self.tokenizer("messages")?;
        self.template.as_ref().ok_or_else(|| ApiError::internal("no template"))
    }

    /// A text as a prompt, with what the tokenizer's file puts before it; the text of special tokens is those tokens.
    pub(crate) fn encode(&self, text: &str, bos: Bos) -> Result<Vec<u32>, ApiError> {
        self.check_size(text)?;
        Ok(encode_prompt(self.tokenizer("prompt")?, text, bos, true)?)
    }

    /// Refuses a text that is far too long whatever its tokens are, before they are looked for.
    pub(crate) fn check_size(&self, text: &str) -> Result<(), ApiError> {
        let max_len = self.max_len()?;
        // Spaces may be left out; four times as many bytes are not.
        if self.longest > 0 && text.len() / 4 / self.longest > max_len {
            return Err(ApiError::too_long(text.len() / self.longest, max_len));
        }
        Ok(())
    }

    /// Fits into the model.
    pub(crate) fn check(&self, param: &str, ids: &[u32], max_len: usize) -> Result<(), ApiError> {
        if ids.is_empty() {
            return Err(ApiError::bad(param, "expected at least one token, got none"));
        }
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.vocab_size) {
            return Err(ApiError::bad(param, format!("token {id} is outside the model's vocabulary of {}", self.vocab_size)));
        }
        if ids.len() > max_len {
            return Err(ApiError { param: Some(param.into()), ..ApiError::too_long(ids.len(), max_len) });
        }
        Ok(())
    }

    /// A token as a text that no other token has: its characters; a token of bytes that are none as `bytes:\xNN`; a special token by
    /// its name; `<123>` without a tokenizer.
    pub(crate) fn piece(&self, id: u32) -> String {
        let spelled = self.tokenizer.as_ref().and_then(|tokenizer| tokenizer.token_of(id));
        match (self.bytes.get(id as usize).and_then(Option::as_ref), spelled) {
            (Some(bytes), Some(spelled)) => match std::str::from_utf8(bytes) {
                Ok(text) if !(bytes.len() == 1 && spelled == format!("<0x{:02X}>", bytes[0])) => text.into(),
                _ => bytes.iter().fold("bytes:".into(), |all, byte| format!("{all}\\x{byte:02x}")),
            },
            (None, Some(spelled)) => spelled,
            (_, None) => format!("<{id}>"),
        }
    }

    /// The bytes of a token; none of a special one.
    pub(crate) fn bytes(&self, id: u32) -> Vec<u8> {
        self.bytes.get(id as usize).and_then(Clone::clone).unwrap_or_default()
    }

    /// What makes masks for this tokenizer; built when it is first asked for.
    #[cfg(feature = "constrain")]
    pub(crate) fn constraints(&self, param: &str) -> Result<&recua_core::generate::ConstraintFactory, ApiError> {
        let tokenizer = self.tokenizer(param)?;
        let made =
            self.constraints.get_or_init(|| recua_core::generate::ConstraintFactory::new(tokenizer).map_err(|e| e.to_string()));
        made.as_ref().map_err(|problem| ApiError::bad(param, problem))
    }
}

pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// 404 with the names that there are.
pub(crate) fn unknown(name: &str, known: &[&str]) -> ApiError {
    let message = format!("the model `{name}` does not exist; there are {}", known.join(", "));
    ApiError { param: Some("model".into()), code: Some("model_not_found"), ..ApiError::new(StatusCode::NOT_FOUND, message) }
}
