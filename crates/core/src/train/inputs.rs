//! What a run reads before its first step: data, held-out text, tokenizer, and the checkpoint that it begins from. Everything that a
//! step will need is looked at here, and nothing is written, so that `--dry-run` is this and a run begins with it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::config::RunConfig;
use super::observe::Observer;
use super::shards::open_shards;
use super::state::RunState;
use super::valid::Valid;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::native::{self, NativeCheckpoint, Need};
use crate::data::{Loader, MixturePart, Shards};
use crate::error::{Error, Result};
use crate::generate::{Bos, encode_prompt};
use crate::model::ModelConfig;
use crate::tokenizer::{Tokenizer, TokenizerFiles, find_tokenizer};

/// Where a run starts.
#[derive(Clone, Debug)]
pub enum Start {
    /// Fresh weights.
    Fresh,
    /// The weights of a checkpoint of any format; moments and data from the beginning.
    Init(PathBuf),
    /// The run's newest whole checkpoint, bit for bit.
    Resume,
}

/// The opened inputs of a run.
pub(super) struct Inputs {
    pub(super) loader: Arc<Loader>,
    pub(super) valid: Option<Valid>,
    pub(super) tokenizer: Option<RunTokenizer>,
    /// The token that begins a document, where attention stays inside documents.
    pub(super) bos: Option<i32>,
    /// Whether samples begin with BOS: as the documents of the data do.
    pub(super) sample_bos: Bos,
    /// The checkpoint to go on from.
    pub(super) resumed: Option<NativeCheckpoint>,
    /// The checkpoint whose weights are taken.
    pub(super) init: Option<Checkpoint>,
    pub(super) state: RunState,
}

impl Inputs {
    /// Opens and checks everything that `start` needs.
    ///
    /// # Errors
    /// A setting that cannot be, data or tokenizer of another vocabulary, a model that computes something else than the checkpoint's,
    /// and those of the files.
    pub(super) fn open(config: &RunConfig, dir: &Path, start: &Start, observer: &mut dyn Observer) -> Result<Self> {
        config.validate()?;
        let (parts, loader) = open_data(config)?;
        let first = &parts[0].shards;
        let resumed = find_resumed(dir, start, observer)?;
        let tokenizer = RunTokenizer::open(config, dir, first, resumed.is_some())?;
        let opened = tokenizer.as_ref().map(|t| &t.tokenizer);
        let bos = match (config.train.document_mask, opened.and_then(Tokenizer::bos_id)) {
            (false, _) => None,
            (true, Some(bos)) => Some(bos as i32),
            (true, None) => {
                let problem = "documents are told apart by the tokenizer's BOS token, and there is none";
                return Err(Error::bad_value("train.document_mask", problem, "pass --tokenizer FILE, or set it to false"));
            }
        };
        let sample_bos = opened.map(|tokenizer| sample_bos(tokenizer, first, observer)).transpose()?.unwrap_or_default();
        if config.sample.every > 0 {
            check_prompt(config, opened, sample_bos, observer)?;
        }
        let valid = config.data.valid.as_ref();
        let valid = valid.map(|sets| {
            if opened.is_none() {
                observer.note("without a tokenizer, bits per byte are those of the held-out sets' mean token");
            }
            Valid::open(sets, config, first.vocab(), opened, observer)
        });
        let valid = valid.transpose()?;
        let init = match start {
            Start::Init(path) => Some(Checkpoint::open(path)?),
            _ => None,
        };
        let from = resumed.as_ref().map(|c| (c.model(), c.dir())).or(init.as_ref().map(|c| (c.config(), c.path())));
        if let Some((model, path)) = from {
            check_model(model, config, path, observer)?;
        }
        let mut state = match &resumed {
            Some(checkpoint) => RunState::resume(config, &loader, checkpoint)?,
            None => RunState::fresh(config, &loader),
        };
        state.set_text_ends(opened);
        Ok(Self { loader, valid, tokenizer, bos, sample_bos, resumed, init, state })
    }
}

/// The training data of a run.
fn open_data(config: &RunConfig) -> Result<(Vec<MixturePart>, Arc<Loader>)> {
    if config.data.train.is_empty() {
        return Err(Error::bad_value("data.train", "no dataset given", "pass --data DIR (made by `recua data tokenize`)"));
    }
    let mut parts = Vec::new();
    for (i, path) in config.data.train.iter().enumerate() {
        parts.push(MixturePart { shards: open_shards(path, config)?, weight: config.data.weights.get(i).copied() });
    }
    let loader = Arc::new(Loader::new(&parts, config.seq_len(), config.train.seed)?);
    Ok((parts, loader))
}

/// The checkpoint to go on from, if the run is to go on; a run that begins must not be there yet.
fn find_resumed(dir: &Path, start: &Start, observer: &mut dyn Observer) -> Result<Option<NativeCheckpoint>> {
    let root = dir.join("checkpoints");
    if !matches!(start, Start::Resume) {
        if native::list(&root)?.is_empty() {
            return Ok(None);
        }
        let problem = format!("{} already holds a run", dir.display());
        return Err(Error::bad_value("--run", problem, "pass --resume to go on, or another folder"));
    }
    let latest = native::latest_valid(&root, Need::All)?;
    let Some(checkpoint) = latest.checkpoint else {
        // Weights without moments are no run, but something to begin from.
        let weights = native::latest_valid(&root, Need::Weights)?.checkpoint;
        let hint = match weights {
            Some(c) => format!("begin another run from its weights: --init {}", c.dir().display()),
            None => "start the run without --resume".into(),
        };
        return Err(Error::Nothing { what: "checkpoint to resume from".into(), path: root, hint });
    };
    observer.say(&format!("going on from {}", checkpoint.dir().display()));
    Ok(Some(checkpoint))
}

/// Refuses weights of another shape, and settings that make them compute something else unless that is asked for.
fn check_model(found: &ModelConfig, config: &RunConfig, path: &Path, observer: &mut dyn Observer) -> Result<()> {
    let list = |changes: Vec<(&str, String, String)>| {
        let one = |(key, from, to)| format!("model.{key} {from} there, {to} here");
        changes.into_iter().map(one).collect::<Vec<_>>().join("; ")
    };
    if found.parameters() != config.model.parameters() || found.n_heads != config.model.n_heads {
        let problem = format!("{} holds a model of another shape: {}", path.display(), list(found.changes(&config.model)));
        return Err(Error::bad_value("model", problem, "use its config.toml, or leave the model's settings out"));
    }
    let changes = found.changes(&config.model);
    if changes.is_empty() {
        return Ok(());
    }
    let changes = list(changes);
    if config.train.allow_model_changes {
        observer.note(&format!("the weights of {} compute something else from now on: {changes}", path.display()));
        return Ok(());
    }
    let problem = format!("the weights of {} would compute something else: {changes}", path.display());
    Err(Error::bad_value("model", problem, "leave these settings out, or pass --allow-model-changes if that is meant"))
}

/// Samples begin as the documents of the data do.
fn sample_bos(tokenizer: &Tokenizer, data: &Shards, observer: &mut dyn Observer) -> Result<Bos> {
    let mut first = Vec::new();
    data.read(0..1, &mut first)?;
    let there = tokenizer.bos_id().is_some_and(|bos| first == [bos]);
    if there && tokenizer.prefix().is_empty() {
        observer
            .note("documents begin with BOS, which the tokenizer's file does not put before a text: generate with --bos always");
    }
    Ok(if there { Bos::Always } else { Bos::Never })
}

/// What a sample begins with; an empty prompt is what comes after the document before.
pub(super) fn sample_prompt(tokenizer: &Tokenizer, text: &str, bos: Bos) -> Result<Vec<u32>> {
    let mut prompt = encode_prompt(tokenizer, text, bos, false)?;
    if prompt.is_empty() {
        prompt.extend(tokenizer.eos_id().or(tokenizer.bos_id()));
    }
    Ok(prompt)
}

/// A prompt that no sample could begin with is told at once.
fn check_prompt(config: &RunConfig, tokenizer: Option<&Tokenizer>, bos: Bos, observer: &mut dyn Observer) -> Result<()> {
    let Some(tokenizer) = tokenizer else {
        observer.note("without a tokenizer, no samples are written");
        return Ok(());
    };
    let prompt = sample_prompt(tokenizer, &config.sample.prompt, bos)?;
    if prompt.is_empty() {
        observer.note("sample.prompt is empty and the tokenizer has neither BOS nor EOS: no samples are written");
    }
    if prompt.len() >= config.model.max_seq_len {
        let what = "sample.prompt".to_string();
        let hint = "shorten it, or set sample.every = 0".to_string();
        return Err(Error::TooLong { what, got: prompt.len(), max: config.model.max_seq_len - 1, hint });
    }
    Ok(())
}

/// A run's tokenizer, with the files that make it: they are copied into the run, so that it can be used alone and goes on as it began.
pub(super) struct RunTokenizer {
    pub(super) tokenizer: Tokenizer,
    pub(super) files: TokenizerFiles,
}

impl RunTokenizer {
    /// That of the setting, or of the run's folder, or of the data's; a run that goes on has its own.
    fn open(config: &RunConfig, dir: &Path, shards: &Shards, goes_on: bool) -> Result<Option<Self>> {
        let (own, given) = (find_tokenizer([dir]), config.data.tokenizer.clone());
        let beside = find_tokenizer([shards.dir()]);
        let order = if goes_on { [own.clone(), given, beside] } else { [given, own.clone(), beside] };
        let mut paths = order.into_iter().flatten();
        let Some(path) = paths.next() else { return Ok(None) };
        let mut this = Self::read(&path)?;
        if goes_on && !this.files.has_config() {
            // Runs of before their tokenizer's other files were copied: those that it began with are where it came from.
            let complete = paths.filter_map(|path| Self::read(&path).ok());
            let same = |other: &Self| other.files.has_config() && other.tokenizer.hash() == this.tokenizer.hash();
            if let Some(other) = complete.into_iter().find(same) {
                this = other;
            }
        }
        let (size, data) = (this.tokenizer.vocab_size(), shards.vocab());
        if size != data.size as usize || this.tokenizer.hash() != data.hash {
            return Err(Error::Vocabulary {
                left: format!("tokenizer {}", path.display()),
                left_size: size,
                right: format!("dataset {}", shards.dir().display()),
                right_size: data.size as usize,
                hint: "pass the tokenizer that the dataset was made with".into(),
            });
        }
        if !goes_on && let Some(other) = this.files.conflict(dir)? {
            let problem = format!("{} is of another tokenizer than {}", other.display(), path.display());
            return Err(Error::bad_value("--run", problem, "remove it, or give another folder"));
        }
        Ok(Some(this))
    }

    fn read(path: &Path) -> Result<Self> {
        Ok(Self { tokenizer: Tokenizer::open(path)?, files: TokenizerFiles::read(path)? })
    }
}
