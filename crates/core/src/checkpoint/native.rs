//! The checkpoints of a training run: `checkpoints/step-N/` with `model.safetensors`, `optim.safetensors` and `state.json`.
//!
//! `state.json` lists every file with its size and checksum (so that a checkpoint of many shards is the same format), holds
//! the model's hyper-parameters and whatever the trainer wants to find again. Its first line is the checksum of the rest.
//! A checkpoint is written to a temporary folder, synced and renamed: whatever has the plain name is whole, unless the disk
//! lost it later, which the checksums tell.

use std::borrow::Cow;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64;

use super::disk;
use super::slices::{Piece, RankFiles, SlicedTensors};
use super::tensors::{FileSummary, SafetensorsFile, TensorInfo, TensorSource, write_safetensors};
use crate::error::{Error, Result};
use crate::files::{self, Aside, Folder};
use crate::model::ModelConfig;

/// The file that makes a folder a checkpoint.
pub(crate) const STATE: &str = "state.json";
/// The weights of the model, by Meta's names.
pub const MODEL: &str = "model.safetensors";
/// The optimizer's moments.
pub const OPTIM: &str = "optim.safetensors";

/// How the files of ranks begin.
pub(crate) const MODEL_SLICES: &str = "model-r";
/// Of their moments.
pub(crate) const OPTIM_SLICES: &str = "optim-r";

const WHAT: &str = "checkpoint";
const FORMAT: &str = "recua checkpoint";
const VERSION: u32 = 1;
/// Of checkpoints in slices, which earlier versions cannot read.
const SLICED: u32 = 2;
const HINT: &str = "remove it; --resume goes on from the newest whole checkpoint";

/// A file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Its name in the folder.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// XXH3 (64 bits) of its bytes, as 16 hexadecimal digits.
    pub xxh3: String,
}

impl FileEntry {
    pub(super) fn new(name: &str, summary: FileSummary) -> Self {
        Self { name: name.into(), bytes: summary.bytes, xxh3: format!("{:016x}", summary.xxh3) }
    }
}

#[derive(Serialize, Deserialize)]
struct StateFile {
    format: String,
    version: u32,
    step: u64,
    model: ModelConfig,
    files: Vec<FileEntry>,
    /// Of several ranks: which rectangle of which tensor lies in which file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    slices: Vec<Piece>,
    state: Value,
}

/// What [`save`]'s closure fills a new checkpoint with.
#[derive(Debug)]
pub struct CheckpointWriter {
    dir: PathBuf,
    files: Vec<FileEntry>,
    slices: Vec<Piece>,
    model: Option<ModelConfig>,
    state: Value,
}

impl CheckpointWriter {
    /// Writes a safetensors file, a tensor at a time: see [`write_safetensors`].
    ///
    /// # Errors
    /// Those of [`write_safetensors`]; [`Error::BadValue`] for a file name that is not plain or was used before.
    pub fn tensors<'a>(
        &mut self,
        file: &str,
        infos: &[TensorInfo],
        next: &mut dyn FnMut(usize) -> Result<Cow<'a, [u8]>>,
    ) -> Result<()> {
        let path = self.place(file)?;
        let summary = write_safetensors(&path, infos, &[], next)?;
        self.files.push(FileEntry::new(file, summary));
        Ok(())
    }

    /// Writes a small file.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::BadValue`] for a file name that is not plain or was used before.
    pub fn bytes(&mut self, file: &str, bytes: &[u8]) -> Result<()> {
        let summary = disk::write_file(&self.place(file)?, bytes)?;
        self.files.push(FileEntry::new(file, summary));
        Ok(())
    }

    /// Lists what a rank has written into the folder.
    pub fn add(&mut self, rank: RankFiles) {
        self.files.extend(rank.files);
        self.slices.extend(rank.pieces);
    }

    /// Sets the model's hyper-parameters, which every checkpoint has.
    pub fn model(&mut self, config: &ModelConfig) {
        self.model = Some(config.clone());
    }

    /// Sets what the trainer wants to find again. JSON has no infinite numbers and no NaN: those would come back as `null`.
    pub fn state(&mut self, state: Value) {
        self.state = state;
    }

    fn place(&self, file: &str) -> Result<PathBuf> {
        if !disk::is_plain_name(file) || file == STATE || self.files.iter().any(|f| f.name == file) {
            return Err(Error::bad_value("checkpoint file", format!("`{file}` cannot be used"), "give a new, plain name"));
        }
        Ok(self.dir.join(file))
    }

    fn finish(self, step: u64) -> Result<()> {
        let Some(model) = self.model.clone() else {
            return Err(Error::bad_value("checkpoint", "no model config was set", "call CheckpointWriter::model"));
        };
        model.validate()?;
        let (format, Self { dir, files, slices, state, .. }) = (FORMAT.to_string(), self);
        let version = if slices.is_empty() { VERSION } else { SLICED };
        let state = StateFile { format, version, step, model, files, slices, state };
        let path = dir.join(STATE);
        let json = serde_json::to_string_pretty(&state)
            .map_err(|e| Error::bad_value("checkpoint state", e.to_string(), "save plain JSON only"))?;
        // The checksum is the first key of the object, alone on a line; it covers everything after that line.
        let rest = json.trim_start_matches(['{', '\n']);
        disk::write_file(&path, format!("{}{rest}", checksum_line(rest)).as_bytes())?;
        Ok(())
    }
}

fn checksum_line(rest: &str) -> String {
    format!("{{ \"xxh3\": \"{:016x}\",\n", xxh3_64(rest.as_bytes()))
}

/// Fills the existing folder `dir` as a checkpoint.
pub(crate) fn write_into(dir: &Path, step: u64, fill: &mut dyn FnMut(&mut CheckpointWriter) -> Result<()>) -> Result<()> {
    let mut writer = CheckpointWriter { dir: dir.into(), files: Vec::new(), slices: Vec::new(), model: None, state: Value::Null };
    fill(&mut writer)?;
    writer.finish(step)
}

/// Saves a checkpoint as `root/step-N` and returns that path. It is there as a whole or not at all, even through a power
/// cut. What earlier crashes left behind is removed. An older checkpoint of the same step is replaced.
///
/// One process saves into a `root` at a time.
///
/// # Errors
/// [`Error::Io`] (disk full, no permission) and those of `fill`; the unfinished folder is then removed.
pub fn save(root: &Path, step: u64, fill: &mut dyn FnMut(&mut CheckpointWriter) -> Result<()>) -> Result<PathBuf> {
    let unfinished = Unfinished::begin(root, step)?;
    unfinished.finish(fill)
}

/// A checkpoint that is being written, by this process or by several. Dropped, it is removed.
#[derive(Debug)]
pub struct Unfinished {
    folder: Folder,
    dir: PathBuf,
    step: u64,
}

impl Unfinished {
    /// Begins `root/step-N`, under another name.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn begin(root: &Path, step: u64) -> Result<Self> {
        fs::create_dir_all(root).map_err(Error::io("create", root))?;
        clean(root)?;
        let dir = root.join(format!("step-{step}"));
        Ok(Self { folder: Folder::create(&dir)?, dir, step })
    }

    /// Where to write meanwhile.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Completes it and gives it its name; returns that.
    ///
    /// # Errors
    /// As [`save`].
    pub fn finish(self, fill: &mut dyn FnMut(&mut CheckpointWriter) -> Result<()>) -> Result<PathBuf> {
        write_into(self.path(), self.step, fill)?;
        self.folder.replace()?;
        Ok(self.dir)
    }
}

/// The step of a checkpoint's name. `step-007` or `step-+7` is not ours.
fn parse_step(name: &str) -> Option<u64> {
    let number = name.strip_prefix("step-")?;
    number.parse().ok().filter(|step: &u64| step.to_string() == number)
}

/// The step in a name in `checkpoints/`, and what it is if not a whole checkpoint.
fn parse_name(name: &str) -> Option<(u64, Option<Aside>)> {
    let (name, aside) = files::parse_aside(name).map_or((name, None), |(name, aside)| (name, Some(aside)));
    Some((parse_step(name)?, aside))
}

fn scan(root: &Path) -> Result<Vec<(u64, Option<Aside>, PathBuf)>> {
    let entries = match fs::read_dir(root) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(Error::io("read", root))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(Error::io("read", root))?;
        if let Some((step, aside)) = entry.file_name().to_str().and_then(parse_name) {
            found.push((step, aside, entry.path()));
        }
    }
    found.sort_by_key(|(step, aside, _)| (*step, aside.is_some()));
    Ok(found)
}

/// Removes what crashes left in `root`: half-written, half-removed and replaced checkpoints.
fn clean(root: &Path) -> Result<()> {
    files::clean(root, &|name| parse_step(name).is_some())
}

/// The checkpoints in `root` by step, oldest first; none if `root` does not exist. They are not opened.
///
/// # Errors
/// [`Error::Io`].
pub fn list(root: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut found: Vec<(u64, PathBuf)> = scan(root)?
        .into_iter()
        .filter(|(_, aside, _)| *aside != Some(Aside::Temporary))
        .map(|(step, _, path)| (step, path))
        .collect();
    found.dedup_by_key(|(step, _)| *step);
    Ok(found)
}

/// A checkpoint that was passed over.
#[derive(Clone, Debug)]
pub struct Skipped {
    /// Its folder.
    pub path: PathBuf,
    /// Why; names the file.
    pub reason: String,
}

/// What [`latest_valid`] found.
#[derive(Debug, Default)]
pub struct Latest {
    /// The newest whole checkpoint.
    pub checkpoint: Option<NativeCheckpoint>,
    /// Newer ones that are half-written or corrupt, newest first; each was logged as a warning.
    pub skipped: Vec<Skipped>,
}

/// Finds the newest checkpoint in `root` whose files that are needed are whole: there with their size and checksum. Newer ones that
/// are not are skipped with a warning that names them.
///
/// # Errors
/// [`Error::Io`] where `root` cannot be listed.
pub fn latest_valid(root: &Path, need: Need) -> Result<Latest> {
    let mut latest = Latest::default();
    let skip = |path: PathBuf, reason: String, latest: &mut Latest| {
        log::warn!("skipping checkpoint {}: {reason}", path.display());
        latest.skipped.push(Skipped { path, reason });
    };
    let mut found = scan(root)?;
    // Newest first, and of one step the plain name first.
    found.sort_by_key(|(step, aside, _)| (std::cmp::Reverse(*step), aside.is_some()));
    for (_, aside, path) in found {
        if aside == Some(Aside::Temporary) {
            skip(path, "half-written: the save was interrupted".into(), &mut latest);
            continue;
        }
        match NativeCheckpoint::open(&path, need) {
            Ok(checkpoint) => {
                latest.checkpoint = Some(checkpoint);
                break;
            }
            Err(e) => skip(path, e.to_string(), &mut latest),
        }
    }
    Ok(latest)
}

/// Which files of a checkpoint are needed: those are read once to check them; the others are not touched and may be gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// None: what `state.json` says.
    State,
    /// The weights: to write, score, convert, or start another run. What was published without its moments is enough.
    Weights,
    /// Everything: to go on with the run.
    All,
}

impl Need {
    /// Moments and masters may be three quarters of a checkpoint; the rest of its files is small.
    fn wants(self, file: &str) -> bool {
        match self {
            Self::State => false,
            Self::Weights => !file.starts_with(OPTIM_SLICES) && file != OPTIM,
            Self::All => true,
        }
    }
}

/// A checkpoint whose files have the size and checksum that its `state.json` lists, as far as they were needed.
#[derive(Clone, Debug)]
pub struct NativeCheckpoint {
    dir: PathBuf,
    step: u64,
    model: ModelConfig,
    files: Vec<FileEntry>,
    slices: Vec<Piece>,
    state: Value,
}

impl NativeCheckpoint {
    /// Opens `dir` and reads every file that is needed once to check it.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::BadFile`] naming the file that is missing, truncated or changed.
    pub fn open(dir: impl AsRef<Path>, need: Need) -> Result<Self> {
        let dir = dir.as_ref();
        let path = dir.join(STATE);
        let bad = |problem: String| Error::bad_file(WHAT, &path, problem, HINT);
        let text = disk::read_small(WHAT, &path)?;
        let text = std::str::from_utf8(&text).map_err(|e| bad(format!("not text: {e}")))?;
        let rest = text.split_once('\n').map_or("", |(_, rest)| rest);
        if !text.starts_with(&checksum_line(rest)) {
            return Err(bad("its checksum is not that of its text: truncated, damaged or edited".into()));
        }
        let state: StateFile = serde_json::from_str(text).map_err(|e| bad(format!("cannot be understood: {e}")))?;
        if state.format != FORMAT || ![VERSION, SLICED].contains(&state.version) {
            let problem =
                format!("expected `{FORMAT}` version {VERSION} or {SLICED}, got `{}` version {}", state.format, state.version);
            return Err(Error::bad_file(WHAT, &path, problem, "read it with the version that wrote it"));
        }
        state.model.validate()?;
        for file in &state.files {
            if !disk::is_plain_name(&file.name) {
                return Err(bad(format!("lists `{}`, which is not a plain file name", file.name)));
            }
            if !need.wants(&file.name) {
                continue;
            }
            let path = dir.join(&file.name);
            let bad = |problem: String| Err(Error::bad_file(WHAT, &path, problem, HINT));
            let len = match fs::metadata(&path) {
                Err(e) if e.kind() == ErrorKind::NotFound => return bad("the file is missing".into()),
                found => found.map_err(Error::io("read", &path))?.len(),
            };
            if len != file.bytes {
                return bad(format!("expected {} bytes, got {len}", file.bytes));
            }
            let found = FileEntry::new(&file.name, disk::summarize(&path)?);
            if found != *file {
                return bad(format!("expected checksum {}, got {}", file.xxh3, found.xxh3));
            }
        }
        if let Some(piece) = state.slices.iter().find(|piece| !state.files.iter().any(|file| file.name == piece.file)) {
            return Err(bad(format!("a slice of `{}` is in `{}`, which is not among the files", piece.slice.name, piece.file)));
        }
        let StateFile { step, model, files, slices, state, .. } = state;
        Ok(Self { dir: dir.into(), step, model, files, slices, state })
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The optimizer steps made before it.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// The model's hyper-parameters.
    pub fn model(&self) -> &ModelConfig {
        &self.model
    }

    /// Every file but `state.json`.
    pub fn files(&self) -> &[FileEntry] {
        &self.files
    }

    /// What the trainer saved.
    pub fn state(&self) -> &Value {
        &self.state
    }

    /// Its weights ([`MODEL`]) or moments ([`OPTIM`]), in one file or in slices.
    ///
    /// # Errors
    /// As [`NativeCheckpoint::tensors`]; [`Error::BadTensor`] for slices with a hole or an overlap.
    pub fn source(&self, file: &str) -> Result<Box<dyn TensorSource + Send + Sync>> {
        if self.slices.is_empty() {
            return Ok(Box::new(self.tensors(file)?));
        }
        let prefix = if file == OPTIM { OPTIM_SLICES } else { MODEL_SLICES };
        Ok(Box::new(SlicedTensors::open(&self.dir, &self.slices, prefix)?))
    }

    /// Opens one of its safetensors files: [`MODEL`], [`OPTIM`].
    ///
    /// # Errors
    /// [`Error::Nothing`] if the checkpoint has no such file; those of [`SafetensorsFile::open`].
    pub fn tensors(&self, file: &str) -> Result<SafetensorsFile> {
        if !self.files.iter().any(|f| f.name == file) {
            let hint = "this checkpoint was saved without it".to_string();
            return Err(Error::Nothing { what: file.into(), path: self.dir.clone(), hint });
        }
        SafetensorsFile::open(self.dir.join(file))
    }
}

/// Removes old checkpoints: all but the newest `keep_last` (at least one), those whose step is a multiple of `keep_every`,
/// and the newest whole one, whatever its age. Returns what it removed.
///
/// To know which is whole it reads the newest checkpoint once, and older ones if that is not; nothing is read where there
/// is nothing to remove.
///
/// # Errors
/// [`Error::Io`].
pub fn prune(root: &Path, keep_last: usize, keep_every: Option<u64>) -> Result<Vec<PathBuf>> {
    clean(root)?;
    let all = list(root)?;
    let old = all.len().saturating_sub(keep_last.max(1));
    let every = |step: u64| keep_every.is_some_and(|n| n > 0 && step.is_multiple_of(n));
    let mut doomed: Vec<&(u64, PathBuf)> = all[..old].iter().filter(|(step, _)| !every(*step)).collect();
    if doomed.is_empty() {
        return Ok(Vec::new());
    }
    let newest = all.iter().rev().find(|(_, path)| match NativeCheckpoint::open(path, Need::All) {
        Ok(_) => true,
        Err(e) => {
            log::warn!("checkpoint {} is not whole: {e}", path.display());
            false
        }
    });
    doomed.retain(|c| Some(*c) != newest);
    let mut removed = Vec::new();
    for (_, path) in doomed {
        files::remove_folder(path)?;
        removed.push(path.clone());
    }
    Ok(removed)
}
