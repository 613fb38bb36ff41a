//! Checkpoints on disk: our own ([`native`]), Hugging Face's ([`hf`]) and Meta's ([`meta`]).
//!
//! All are seen as a [`TensorSource`] with Meta's names and layout ([`ModelConfig::parameters`]), read one tensor at a time.
//! [`Checkpoint::open`] takes any of them; [`convert`] turns one into another, exactly. Nothing here knows a backend: bytes
//! only.

mod check;
mod disk;
pub mod hf;
pub mod meta;
mod meta_pickle;
pub mod native;
mod tensors;
pub mod weights;

use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use check::{check_layers, check_tensors};
pub use hf::{HfConfig, HfFolder};
pub use meta::MetaFolder;
pub use native::{CheckpointWriter, Latest, NativeCheckpoint, Skipped};
pub use tensors::{Dtype, FileSummary, SafetensorsFile, Tensor, TensorInfo, TensorSource, write_safetensors};

use crate::error::{Error, Result};
use crate::files::{Folder, check_free};
use crate::model::ModelConfig;

/// Whose files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `state.json`, `model.safetensors`: see [`native`].
    Native,
    /// `config.json`, `model*.safetensors`: see [`hf`].
    Hf,
    /// `params.json`, `consolidated.NN.pth`: see [`meta`].
    Meta,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Hf => "hf",
            Self::Meta => "meta",
        })
    }
}

impl std::str::FromStr for Format {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "native" => Ok(Self::Native),
            "hf" => Ok(Self::Hf),
            "meta" => Ok(Self::Meta),
            _ => Err(Error::bad_value("format", format!("`{s}` is unknown"), "choose hf, meta or native")),
        }
    }
}

/// A model on disk, in any [`Format`].
pub struct Checkpoint {
    path: PathBuf,
    format: Format,
    config: ModelConfig,
    source: Box<dyn TensorSource + Send + Sync>,
    tokenizer: Option<PathBuf>,
    skipped: Vec<Skipped>,
    ids: (Option<u32>, Vec<u32>),
}

impl Checkpoint {
    /// Opens a native checkpoint, a run (its newest whole checkpoint), a Hugging Face folder or a Meta folder.
    ///
    /// # Errors
    /// [`Error::Nothing`] if `path` is none of these; those of [`NativeCheckpoint::open`], [`HfFolder::open`] and
    /// [`MetaFolder::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let has = |name: &str| path.join(name).exists();
        if has(native::STATE) {
            Self::from_native(NativeCheckpoint::open(path)?, Vec::new())
        } else if has("config.json") {
            let folder = HfFolder::open(path)?;
            let HfConfig { model, bos_id, eos_ids, .. } = folder.config().clone();
            Ok(Self { ids: (bos_id, eos_ids), ..Self::new(path, Format::Hf, model, Box::new(folder), &[path]) })
        } else if has("params.json") {
            let folder = MetaFolder::open(path)?;
            let config = folder.config().clone();
            // Meta keeps the tokenizer beside the folders of LLaMA's sizes.
            let folders = [Some(path), path.parent()].into_iter().flatten().collect::<Vec<_>>();
            Ok(Self::new(path, Format::Meta, config, Box::new(folder), &folders))
        } else {
            let root = if has("checkpoints") { path.join("checkpoints") } else { path.to_path_buf() };
            let Latest { checkpoint, skipped } = native::latest_valid(&root)?;
            let Some(checkpoint) = checkpoint else {
                let what = match skipped.as_slice() {
                    [] => "checkpoint".to_string(),
                    list => {
                        format!("whole checkpoint ({})", list.iter().map(|s| s.reason.as_str()).collect::<Vec<_>>().join("; "))
                    }
                };
                let hint =
                    "give a run, a checkpoint (step-N), a Hugging Face folder (config.json) or a Meta folder (params.json)";
                return Err(Error::Nothing { what, path: path.into(), hint: hint.into() });
            };
            Self::from_native(checkpoint, skipped)
        }
    }

    fn from_native(checkpoint: NativeCheckpoint, skipped: Vec<Skipped>) -> Result<Self> {
        let (dir, config) = (checkpoint.dir(), checkpoint.model().clone());
        let file = checkpoint.tensors(native::MODEL)?;
        check_layers(dir, &config, file.list().len())?;
        check_tensors(&dir.join(native::MODEL), &config.parameters(), file.list())?;
        // RUN/checkpoints/step-N: the tokenizer is in RUN.
        let folders = dir.ancestors().take(3).collect::<Vec<_>>();
        let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        let eos_ids = checkpoint.state()["eos_ids"].as_array().map_or(Vec::new(), |ids| ids.iter().filter_map(id).collect());
        let ids = (id(&checkpoint.state()["bos_id"]), eos_ids);
        Ok(Self { skipped, ids, ..Self::new(dir, Format::Native, config, Box::new(file), &folders) })
    }

    fn new(
        path: &Path,
        format: Format,
        config: ModelConfig,
        source: Box<dyn TensorSource + Send + Sync>,
        tokenizers: &[&Path],
    ) -> Self {
        let tokenizer = disk::find_tokenizer(tokenizers.iter().copied());
        Self { path: path.into(), format, config, source, tokenizer, skipped: Vec::new(), ids: (None, Vec::new()) }
    }

    /// The folder with the files: of a run, the checkpoint that was chosen.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whose files they are.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The hyper-parameters.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Every parameter of [`ModelConfig::parameters`], by that name and in that shape.
    pub fn source(&self) -> &(dyn TensorSource + Send + Sync) {
        self.source.as_ref()
    }

    /// `tokenizer.json` or `tokenizer.model` beside it or in its run.
    pub fn tokenizer_path(&self) -> Option<&Path> {
        self.tokenizer.as_deref()
    }

    /// Newer checkpoints of the run that are not whole.
    pub fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }

    /// The tokens that begin and end a text, where the files say so: Hugging Face's config, and `bos_id` (a number) and
    /// `eos_ids` (a list) in the state of a native checkpoint.
    pub fn bos_eos(&self) -> (Option<u32>, &[u32]) {
        (self.ids.0, &self.ids.1)
    }
}

/// What [`convert`] and [`save`] may be told.
#[derive(Clone, Debug)]
pub struct SaveOptions {
    /// Element type to convert to (rounded to nearest even); `None` keeps each tensor's.
    pub dtype: Option<Dtype>,
    /// A tokenizer file to copy along under its own name.
    pub tokenizer: Option<PathBuf>,
    /// Token that begins a text, for Hugging Face's config and the native state.
    pub bos_id: Option<u32>,
    /// Tokens that end one, for Hugging Face's config and the native state.
    pub eos_ids: Vec<u32>,
    /// The largest safetensors file of a Hugging Face folder; a single tensor may be larger.
    pub hf_shard_bytes: u64,
}

impl Default for SaveOptions {
    fn default() -> Self {
        Self { dtype: None, tokenizer: None, bos_id: None, eos_ids: Vec::new(), hf_shard_bytes: hf::HF_SHARD_BYTES }
    }
}

/// Writes a model as a new folder `dir`, which appears whole or not at all. `source` has Meta's names and layout.
///
/// A native folder written so has step 0 and no optimizer. Fixed NTK scaling is written as the `rope_theta` that it amounts
/// to in the other formats; linear scaling cannot be said in Meta's.
///
/// # Errors
/// [`Error::BadValue`] if `dir` exists and is not empty; [`Error::BadTensor`] if `source` does not fit `config`;
/// [`Error::Io`].
pub fn save(
    dir: impl AsRef<Path>,
    format: Format,
    config: &ModelConfig,
    source: &dyn TensorSource,
    options: &SaveOptions,
) -> Result<()> {
    config.validate()?;
    let cast = options.dtype.map(|dtype| tensors::Cast::new(source, dtype));
    let source = cast.as_ref().map_or(source, |c| c as &dyn TensorSource);
    check_layers(dir.as_ref(), config, source.list().len())?;
    check_tensors(dir.as_ref(), &config.parameters(), source.list())?;
    let tokenizer = match &options.tokenizer {
        Some(path) => Some((path.file_name().unwrap_or_default().to_string_lossy(), disk::read_small("tokenizer", path)?)),
        None => None,
    };
    check_free(dir.as_ref())?;
    let folder = Folder::create(dir.as_ref())?;
    if let (Some((name, bytes)), true) = (&tokenizer, format != Format::Native) {
        disk::write_file(&folder.path().join(name.as_ref()), bytes)?;
    }
    match format {
        Format::Hf => {
            let (bos_id, eos_ids) = (options.bos_id, options.eos_ids.clone());
            let config = HfConfig { model: config.clone(), tie_word_embeddings: false, bos_id, eos_ids };
            hf::write_into(folder.path(), &config, source, options.hf_shard_bytes)?;
        }
        Format::Meta => meta::write_into(folder.path(), config, source)?,
        Format::Native => native::write_into(folder.path(), 0, &mut |writer| {
            writer.model(config);
            writer.state(json!({ "bos_id": options.bos_id, "eos_ids": options.eos_ids }));
            if let Some((name, bytes)) = &tokenizer {
                writer.bytes(name, bytes)?;
            }
            let read = &mut |i: usize| Ok(source.read(&source.list()[i].name)?.bytes);
            writer.tensors(native::MODEL, source.list(), read)
        })?,
    }
    folder.commit()
}

/// Writes the checkpoint at `input` as a new folder `output` in another format; see [`save`]. The tokenizer and the ids of
/// the first and last token come along unless `options` names others.
///
/// # Errors
/// Those of [`Checkpoint::open`] and [`save`].
pub fn convert(input: impl AsRef<Path>, output: impl AsRef<Path>, format: Format, options: &SaveOptions) -> Result<()> {
    let checkpoint = Checkpoint::open(input)?;
    let (bos_id, eos_ids) = checkpoint.bos_eos();
    let mut options = options.clone();
    options.tokenizer = options.tokenizer.or(checkpoint.tokenizer.clone());
    options.bos_id = options.bos_id.or(bos_id);
    if options.eos_ids.is_empty() {
        options.eos_ids = eos_ids.to_vec();
    }
    save(output, format, checkpoint.config(), checkpoint.source(), &options)
}
