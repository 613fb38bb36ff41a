//! Checkpoints on disk: our own ([`native`]), Hugging Face's ([`hf`]), Meta's ([`meta`]) and llama.cpp's ([`gguf`]).
//!
//! All are seen as a [`TensorSource`] with Meta's names and layout ([`ModelConfig::parameters`]), read one tensor at a time.
//! [`Checkpoint::open`] takes any of them; [`convert`] turns one into another, exactly. Nothing here knows a backend: bytes
//! only.

mod check;
mod disk;
mod ends;
pub mod gguf;
pub mod hf;
mod hf_config;
pub mod meta;
mod meta_pickle;
pub mod native;
mod slices;
mod tensors;
pub mod weights;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use serde_json::{Map, Value, json};

use check::{check_layers, check_tensors};
use ends::TextEnds;
pub use gguf::GgufModel;
pub use hf::{HfConfig, HfFolder};
pub use meta::MetaFolder;
pub use native::{CheckpointWriter, Latest, NativeCheckpoint, Need, Skipped};
pub use slices::{Piece, RankFiles, SlicedTensors};
pub use tensors::{FileSummary, SafetensorsFile, Tensor, TensorInfo, TensorSource, write_safetensors};

use crate::error::{Error, Result};
use crate::files::{Folder, check_free};
use crate::model::ModelConfig;
pub use crate::ops::Dtype;
use crate::tokenizer::{Tokenizer, TokenizerFiles, find_tokenizer, gguf_metadata};

/// Whose files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `state.json`, `model.safetensors`: see [`native`].
    Native,
    /// `config.json`, `model*.safetensors`: see [`hf`].
    Hf,
    /// `params.json`, `consolidated.NN.pth`: see [`meta`].
    Meta,
    /// One file, or several that are one: see [`gguf`].
    Gguf,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Hf => "hf",
            Self::Meta => "meta",
            Self::Gguf => "gguf",
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
            "gguf" => Ok(Self::Gguf),
            _ => Err(Error::bad_value("format", format!("`{s}` is unknown"), "choose hf, meta, gguf or native")),
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
    ids: TextEnds,
    generation: Map<String, Value>,
}

impl Checkpoint {
    /// Opens a native checkpoint, a run (its newest whole checkpoint), a Hugging Face folder, a Meta folder or a GGUF file.
    ///
    /// # Errors
    /// [`Error::Nothing`] if `path` is none of these; those of [`NativeCheckpoint::open`], [`HfFolder::open`],
    /// [`MetaFolder::open`] and [`GgufModel::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let has = |name: &str| path.join(name).exists();
        if gguf::is_gguf(path) {
            let file = GgufModel::open(path)?;
            let (config, ids, first) = (file.config().clone(), file.text_ends()?, file.path().to_path_buf());
            let tokenizer = file.has_tokenizer().then(|| first.clone());
            Ok(Self { ids, tokenizer, ..Self::new(&first, Format::Gguf, config, Box::new(file), &[]) })
        } else if has(native::STATE) {
            Self::from_native(NativeCheckpoint::open(path, Need::Weights)?, Vec::new())
        } else if has("config.json") {
            let folder = HfFolder::open(path)?;
            let HfConfig { model, bos_id, eos_ids, .. } = folder.config().clone();
            let generation = hf::read_generation(path)?;
            // What ends a text is generation's to say, where it does; config.json has often one id only of several.
            let said = TextEnds::of(&Value::Object(generation.clone()), "bos_token_id", "eos_token_id");
            let eos_ids = if said.eos_ids.is_empty() { eos_ids } else { said.eos_ids };
            let ids = TextEnds { bos_id: bos_id.or(said.bos_id), eos_ids };
            Ok(Self { ids, generation, ..Self::new(path, Format::Hf, model, Box::new(folder), &[path]) })
        } else if has("params.json") {
            let folder = MetaFolder::open(path)?;
            let config = folder.config().clone();
            // Meta keeps the tokenizer beside the folders of LLaMA's sizes.
            let folders = [Some(path), path.parent()].into_iter().flatten().collect::<Vec<_>>();
            let ids = folder.text_ends();
            Ok(Self { ids, ..Self::new(path, Format::Meta, config, Box::new(folder), &folders) })
        } else {
            let root = if has("checkpoints") { path.join("checkpoints") } else { path.to_path_buf() };
            let Latest { checkpoint, skipped } = native::latest_valid(&root, Need::Weights)?;
            let Some(checkpoint) = checkpoint else {
                let what = match skipped.as_slice() {
                    [] => "checkpoint".to_string(),
                    list => {
                        format!("whole checkpoint ({})", list.iter().map(|s| s.reason.as_str()).collect::<Vec<_>>().join("; "))
                    }
                };
                let hint = "give a run, a checkpoint (step-N), a Hugging Face folder (config.json), a Meta folder (params.json) or a .gguf file";
                return Err(Error::Nothing { what, path: path.into(), hint: hint.into() });
            };
            Self::from_native(checkpoint, skipped)
        }
    }

    fn from_native(checkpoint: NativeCheckpoint, skipped: Vec<Skipped>) -> Result<Self> {
        let (dir, config) = (checkpoint.dir(), checkpoint.model().clone());
        let file = checkpoint.source(native::MODEL)?;
        check_layers(dir, &config, file.list().len())?;
        check_tensors(&dir.join(native::MODEL), &config.parameters(), file.list())?;
        // RUN/checkpoints/step-N: the tokenizer is in RUN.
        let folders = dir.ancestors().take(3).collect::<Vec<_>>();
        let ids = TextEnds::of(checkpoint.state(), "bos_id", "eos_ids");
        Ok(Self { skipped, ids, ..Self::new(dir, Format::Native, config, file, &folders) })
    }

    fn new(
        path: &Path,
        format: Format,
        config: ModelConfig,
        source: Box<dyn TensorSource + Send + Sync>,
        tokenizers: &[&Path],
    ) -> Self {
        let tokenizer = find_tokenizer(tokenizers.iter().copied());
        let (skipped, ids, generation) = (Vec::new(), TextEnds::default(), Map::new());
        Self { path: path.into(), format, config, source, tokenizer, skipped, ids, generation }
    }

    /// The folder with the files (of a run, the checkpoint that was chosen), or the GGUF file.
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

    /// `tokenizer.json` or `tokenizer.model` beside it or in its run; of a GGUF file that has a tokenizer, the file itself.
    pub fn tokenizer_path(&self) -> Option<&Path> {
        self.tokenizer.as_deref()
    }

    /// Newer checkpoints of the run that are not whole.
    pub fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }

    /// The tokens that begin and end a text, where the files say so: Hugging Face's `generation_config.json` and `config.json`, and
    /// `bos_id` (a number) and `eos_ids` (a list) in the state of a native checkpoint and in the `recua.json` of a Meta folder.
    pub fn bos_eos(&self) -> (Option<u32>, &[u32]) {
        (self.ids.bos_id, &self.ids.eos_ids)
    }
}

/// The hyper-parameters of a model on disk, in any [`Format`], without a look at its weights.
///
/// # Errors
/// As [`Checkpoint::open`].
pub fn read_config(path: impl AsRef<Path>) -> Result<ModelConfig> {
    let path = path.as_ref();
    let has = |name: &str| path.join(name).exists();
    if gguf::is_gguf(path) {
        return Ok(GgufModel::open(path)?.config().clone());
    }
    if has(native::STATE) {
        return Ok(NativeCheckpoint::open(path, Need::State)?.model().clone());
    }
    if has("config.json") {
        return Ok(HfConfig::read(&path.join("config.json"))?.model);
    }
    let run = path.join("checkpoints");
    match native::latest_valid(&run, Need::State)?.checkpoint {
        Some(checkpoint) if !has("params.json") => Ok(checkpoint.model().clone()),
        _ => Ok(Checkpoint::open(path)?.config().clone()),
    }
}

/// What [`convert`] and [`save`] may be told.
#[derive(Clone, Debug)]
pub struct SaveOptions {
    /// Element type to convert to (rounded to nearest); `None` keeps each tensor's. In GGUF, gains of norms are float32 in any case, and
    /// what cannot be blocks or should not be takes the type of [`weights::narrow_dtype`].
    pub dtype: Option<Dtype>,
    /// A tokenizer to copy along, with the files beside it that belong to it.
    pub tokenizer: Option<PathBuf>,
    /// Token that begins a text, for Hugging Face's config and the native state.
    pub bos_id: Option<u32>,
    /// Tokens that end one, for Hugging Face's config and the native state.
    pub eos_ids: Vec<u32>,
    /// What else a Hugging Face folder's `generation_config.json` says.
    pub generation: Map<String, Value>,
    /// The largest safetensors file of a Hugging Face folder; a single tensor may be larger.
    pub hf_shard_bytes: u64,
    /// Set by whoever wants it to stop: what was written is then removed, and [`Error::Io`] returned.
    pub stop: Option<&'static AtomicBool>,
}

impl Default for SaveOptions {
    fn default() -> Self {
        Self {
            dtype: None,
            tokenizer: None,
            bos_id: None,
            eos_ids: Vec::new(),
            generation: Map::new(),
            hf_shard_bytes: hf::HF_SHARD_BYTES,
            stop: None,
        }
    }
}

/// What there is to say of what was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    /// Finite values that the new element type cannot hold and that became infinite.
    pub overflowed: u64,
    /// Elements that were blocks and were widened to float32, which is what the format has.
    pub widened: u64,
}

/// Writes a model as a new folder `dir`, or for GGUF as a new file of that name, which appears whole or not at all. `source` has Meta's
/// names and layout.
///
/// A native folder written so has step 0 and no optimizer. Fixed NTK scaling is written as the `rope_theta` that it amounts
/// to in the other formats; linear scaling cannot be said in Meta's. A Hugging Face folder whose tokenizer has no
/// `tokenizer_config.json` gets one, which names the tokens that begin and end a text.
///
/// # Errors
/// [`Error::BadValue`] if `dir` exists and is not empty, or for a format that cannot say the model or has no such type; [`Error::BadTensor`] if `source`
/// does not fit `config`; [`Error::Io`].
pub fn save(
    dir: impl AsRef<Path>,
    format: Format,
    config: &ModelConfig,
    source: &dyn TensorSource,
    options: &SaveOptions,
) -> Result<Saved> {
    check_save(dir.as_ref(), format, config, source, options)?;
    let stoppable = tensors::Stoppable::new(source, options.stop);
    let tied = format == Format::Gguf && gguf::tie(source)?;
    let cast = tensors::Cast::new(&stoppable, |info| written_dtype(info, format, options.dtype, tied));
    let is_widened = |info: &&TensorInfo| options.dtype.is_none() && format != Format::Gguf && info.dtype.float().is_none();
    let widened = source.list().iter().filter(is_widened).map(|info| info.shape.iter().product::<usize>() as u64).sum();
    let source = &cast;
    let ids = TextEnds { bos_id: options.bos_id, eos_ids: options.eos_ids.clone() };
    if format == Format::Gguf {
        let tokenizer = options.tokenizer.as_ref().map(Tokenizer::open).transpose()?;
        gguf::write(dir.as_ref(), config, source, tied, tokenizer.as_ref(), &ids)?;
        return Ok(Saved { overflowed: cast.overflowed(), widened });
    }
    let mut tokenizer = options.tokenizer.as_deref().map(TokenizerFiles::read).transpose()?;
    if let (Format::Hf, Some(path), Some(files)) = (format, &options.tokenizer, &mut tokenizer)
        && !files.contains(hf::TOKENIZER_CONFIG)
        && let Ok(opened) = Tokenizer::open(path)
    {
        files.push(hf::TOKENIZER_CONFIG, hf::tokenizer_config(&opened, config, &ids));
    }
    let tokenizer = || tokenizer.iter().flat_map(TokenizerFiles::iter);
    let folder = Folder::create(dir.as_ref())?;
    if format != Format::Native {
        for (name, bytes) in tokenizer() {
            disk::write_file(&folder.path().join(name), bytes)?;
        }
    }
    match format {
        Format::Hf => {
            let TextEnds { bos_id, eos_ids } = ids.clone();
            let config = HfConfig { model: config.clone(), tie_word_embeddings: false, bos_id, eos_ids };
            hf::write_into(folder.path(), &config, &options.generation, source, options.hf_shard_bytes)?;
        }
        Format::Meta => meta::write_into(folder.path(), config, &ids, source)?,
        Format::Gguf => return Err(Error::internal("save", "a GGUF file is no folder")),
        Format::Native => native::write_into(folder.path(), 0, &mut |writer| {
            writer.model(config);
            writer.state(json!({ "bos_id": ids.bos_id, "eos_ids": ids.eos_ids }));
            for (name, bytes) in tokenizer() {
                writer.bytes(name, bytes)?;
            }
            let read = &mut |i: usize| Ok(source.read(&source.list()[i].name)?.bytes);
            writer.tensors(native::MODEL, source.list(), read)
        })?,
    }
    folder.commit()?;
    Ok(Saved { overflowed: cast.overflowed(), widened })
}

/// The type that a tensor gets in a file.
fn written_dtype(info: &TensorInfo, format: Format, asked: Option<Dtype>, tied: bool) -> Dtype {
    let (is_gain, width) = (info.shape.len() < 2, info.shape.last().copied().unwrap_or(1));
    match asked {
        // llama.cpp adds and multiplies gains in float32.
        _ if format == Format::Gguf && is_gain => Dtype::F32,
        Some(dtype) if dtype.float().is_none() => {
            let is_output = tied && info.name == "tok_embeddings.weight";
            weights::narrow_dtype(if is_output { "output.weight" } else { &info.name }, width, dtype)
        }
        Some(dtype) => dtype,
        // Blocks are GGUF's; in other formats they are float32.
        None if format != Format::Gguf && info.dtype.float().is_none() => Dtype::F32,
        None => info.dtype,
    }
}

/// What can be known of a [`save`] before anything is written.
fn check_save(dir: &Path, format: Format, config: &ModelConfig, source: &dyn TensorSource, options: &SaveOptions) -> Result<()> {
    config.validate()?;
    if let Some(dtype) = options.dtype.filter(|dtype| dtype.float().is_none()) {
        if format != Format::Gguf {
            let problem = format!("{dtype} is a type of GGUF files, and the output is {format}");
            return Err(Error::bad_value("dtype", problem, "convert to gguf, or take one of f32, f16, bf16"));
        }
        if !matches!(dtype, Dtype::Q8_0 | Dtype::Q4_0) {
            return Err(Error::bad_value("dtype", format!("{dtype} is read only"), "take q8_0 or q4_0"));
        }
    }
    if format == Format::Gguf {
        gguf::check_free(dir)?
    } else {
        check_free(dir)?
    }
    check_layers(dir, config, source.list().len())?;
    check_tensors(dir, &config.parameters(), source.list())?;
    match format {
        Format::Meta => meta::check_config(config),
        Format::Hf => hf_config::check_config(config),
        Format::Gguf | Format::Native => Ok(()),
    }
}

/// Writes the checkpoint at `input` as `output` in another format; see [`save`]. The tokenizer and the ids of
/// the first and last token come along unless `options` names others; where a run's or a Meta folder's files do not say them, they
/// are those of its tokenizer.
///
/// # Errors
/// Those of [`Checkpoint::open`] and [`save`].
pub fn convert(input: impl AsRef<Path>, output: impl AsRef<Path>, format: Format, options: &SaveOptions) -> Result<Saved> {
    let (checkpoint, options) = plan_convert(input.as_ref(), options)?;
    save(output, format, checkpoint.config(), checkpoint.source(), &options)
}

/// Everything that [`convert`] checks before it writes, and nothing more.
///
/// # Errors
/// As [`convert`].
pub fn check_convert(input: impl AsRef<Path>, output: impl AsRef<Path>, format: Format, options: &SaveOptions) -> Result<()> {
    let (checkpoint, options) = plan_convert(input.as_ref(), options)?;
    options.tokenizer.as_deref().map(TokenizerFiles::read).transpose()?;
    check_save(output.as_ref(), format, checkpoint.config(), checkpoint.source(), &options)?;
    if format == Format::Gguf {
        let tokenizer = options.tokenizer.as_ref().map(Tokenizer::open).transpose()?;
        gguf_metadata(tokenizer.as_ref(), checkpoint.config().vocab_size, options.bos_id, &options.eos_ids)?;
    }
    Ok(())
}

fn plan_convert(input: &Path, options: &SaveOptions) -> Result<(Checkpoint, SaveOptions)> {
    let checkpoint = Checkpoint::open(input)?;
    let mut options = options.clone();
    options.tokenizer = options.tokenizer.or(checkpoint.tokenizer.clone());
    let TextEnds { mut bos_id, mut eos_ids } = checkpoint.ids.clone();
    if checkpoint.format != Format::Hf
        && (bos_id.is_none() || eos_ids.is_empty())
        && let Some(tokenizer) = options.tokenizer.as_ref().and_then(|path| Tokenizer::open(path).ok())
    {
        // Checkpoints of before the state had them: the data were made with the tokenizer's.
        bos_id = bos_id.or(tokenizer.bos_id());
        if eos_ids.is_empty() {
            eos_ids.extend(tokenizer.eos_id());
        }
    }
    options.bos_id = options.bos_id.or(bos_id);
    if options.eos_ids.is_empty() {
        options.eos_ids = eos_ids;
    }
    if options.generation.is_empty() {
        options.generation = checkpoint.generation.clone();
    }
    Ok((checkpoint, options))
}
