//! A model in this process.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use recua_core::backend::DeviceContext;
use recua_core::checkpoint::Checkpoint;
use recua_core::generate::{Engine, EngineConfig, TextModel};
use recua_core::tokenizer::Tokenizer;

use crate::encode::{Encode, Local};
use crate::run::Model;
use crate::runner::{Runner, Work};
use crate::{Answer, Result};

/// A model whose engine answers.
pub struct LocalModel {
    engine: Engine,
    tokenizer: Tokenizer,
    encode: Local,
    ends: Vec<u32>,
    identity: String,
    in_flight: usize,
    /// Of sampled texts.
    pub seed: u64,
}

impl LocalModel {
    /// Loads a model onto a device.
    ///
    /// # Errors
    /// A model without a tokenizer; those of [`Engine::load`].
    pub fn load(model: TextModel, context: &DeviceContext, config: EngineConfig) -> Result<Self> {
        Self::load_by(model, config, |checkpoint, config| Engine::load(checkpoint, context, config))
    }

    /// [`LocalModel::load`] with an engine that `load` makes of the checkpoint: of one that several ranks hold together.
    ///
    /// # Errors
    /// A model without a tokenizer; those of `load`.
    pub fn load_by(
        model: TextModel,
        config: EngineConfig,
        load: impl FnOnce(&Checkpoint, EngineConfig) -> Result<Engine>,
    ) -> Result<Self> {
        let tokenizer = model.tokenizer_for("an evaluation")?.clone();
        let identity = format!("{} {:?} {:?}", weights(model.checkpoint.path()), config.dtype, config.kv_cache_dtype);
        let in_flight = 2 * config.max_batch;
        let longest = model.checkpoint.config().max_seq_len;
        let engine = load(&model.checkpoint, config)?;
        if engine.max_len() < longest {
            log::warn!(
                "the cache holds sequences of {} tokens: what is longer is cut, though the model reads {longest}",
                engine.max_len()
            );
        }
        Ok(Self { encode: Local::new(&tokenizer), tokenizer, ends: model.ends, engine, identity, in_flight, seed: 0 })
    }

    /// Around an engine that is there; `identity` names its weights.
    pub fn new(engine: Engine, tokenizer: &Tokenizer, ends: Vec<u32>, identity: String) -> Self {
        let in_flight = 32;
        Self { encode: Local::new(tokenizer), tokenizer: tokenizer.clone(), ends, engine, identity, in_flight, seed: 0 }
    }

    /// The engine.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }
}

impl Model for LocalModel {
    fn max_len(&self) -> usize {
        self.engine.max_len()
    }

    fn identity(&self) -> String {
        format!("{} {}", self.identity, self.seed)
    }

    fn encode(&self) -> &dyn Encode {
        &self.encode
    }

    fn answer(&mut self, works: Vec<Work>, done: &mut dyn FnMut(usize, usize, Answer) -> Result<ControlFlow<()>>) -> Result<()> {
        let Self { engine, tokenizer, ends, in_flight, seed, .. } = self;
        Runner { engine, tokenizer, ends, in_flight: *in_flight, seed: *seed }.run(works, done)
    }
}

/// The files of a model: where they are, how large, and how old.
fn weights(path: &Path) -> String {
    let mut files: Vec<_> = match fs::read_dir(path) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
        Err(_) => vec![path.to_path_buf()],
    };
    files.sort();
    let mut out = path.canonicalize().unwrap_or_else(|_| path.into()).display().to_string();
    for file in files {
        if let Ok(about) = fs::metadata(&file)
            && about.is_file()
        {
            let age = about.modified().ok().and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok()).unwrap_or_default();
            out += &format!(" {}:{}:{}", file.file_name().unwrap_or_default().to_string_lossy(), about.len(), age.as_nanos());
        }
    }
    out
}
