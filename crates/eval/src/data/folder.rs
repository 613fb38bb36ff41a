//! The folder of a task: its files and their splits.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{FORMATS, Format, Options, Value, parse, text};
use crate::{Error, Result};

/// A part of a task's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// `train` in a name.
    Train,
    /// `validation`, `valid` or `val`.
    Validation,
    /// `dev`: MMLU's shots; elsewhere another word for validation.
    Dev,
    /// `test`.
    Test,
}

impl Split {
    fn of_word(word: &str) -> Option<Self> {
        Some(match word {
            "train" => Self::Train,
            "val" | "valid" | "validation" => Self::Validation,
            "dev" => Self::Dev,
            "test" => Self::Test,
            _ => return None,
        })
    }

    /// By the last such word of the file's name, else of the folders' names, the nearest first.
    fn of_path(path: &Path) -> Option<Self> {
        path.iter().rev().find_map(|part| words(&part.to_string_lossy()).rev().find_map(|word| Self::of_word(&word)))
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Train => "train",
            Self::Validation => "validation",
            Self::Dev => "dev",
            Self::Test => "test",
        })
    }
}

fn words(name: &str) -> impl DoubleEndedIterator<Item = String> {
    name.split(|c: char| !c.is_ascii_alphanumeric()).map(str::to_ascii_lowercase)
}

/// A file that rows came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// The file.
    pub path: PathBuf,
    /// SHA-256 of its bytes, as it lies there.
    pub sha256: String,
    /// Its rows, before [`Options::only`].
    pub rows: usize,
}

/// The rows of a split.
#[derive(Clone, Debug, PartialEq)]
pub struct Rows {
    /// In the order of the files' names, then of each file.
    pub rows: Vec<Value>,
    /// What the files' names say; `None` for a folder's only file.
    pub split: Option<Split>,
    /// The files.
    pub sources: Vec<Source>,
}

impl Rows {
    /// The only file's SHA-256; of several files, that of the lines `sha256  name` that `sha256sum` would print of them.
    pub fn sha256(&self) -> String {
        match self.sources.as_slice() {
            [only] => only.sha256.clone(),
            sources => {
                let name = |source: &Source| source.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let lines: String = sources.iter().map(|source| format!("{}  {}\n", source.sha256, name(source))).collect();
                hex(&Sha256::digest(lines))
            }
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The folder of a task below `roots`: the first that has one of `names` (case, `-` and `_` make no difference), in the order of
/// `names`.
pub fn find(roots: &[PathBuf], names: &[&str]) -> Option<PathBuf> {
    let plain = |name: &str| name.to_ascii_lowercase().replace('-', "_");
    for name in names {
        for root in roots {
            if root.join(name).is_dir() {
                return Some(root.join(name));
            }
            let mut entries: Vec<_> = std::fs::read_dir(root).into_iter().flatten().flatten().collect();
            entries.sort_by_key(std::fs::DirEntry::file_name);
            let near =
                entries.iter().find(|entry| plain(&entry.file_name().to_string_lossy()) == plain(name) && entry.path().is_dir());
            if let Some(entry) = near {
                return Some(entry.path());
            }
        }
    }
    None
}

/// The data files of a task.
#[derive(Clone, Debug)]
pub struct Folder {
    dir: PathBuf,
    options: Options,
    files: BTreeMap<Option<Split>, Vec<PathBuf>>,
    /// Files that are not read, and why.
    pub left_out: Vec<(PathBuf, String)>,
}

/// How deep below a task's folder its files may lie.
const MAX_DEPTH: usize = 6;

impl Folder {
    /// Sorts the files of a folder, and of the folders in it, into splits.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Nothing`] where no file is one of data; [`Error::BadFile`] for a damaged file where there is a choice
    /// (see [`Options::need`]).
    pub fn open(dir: &Path, options: &Options) -> Result<Self> {
        let mut files = Vec::new();
        walk(dir, MAX_DEPTH, &mut files)?;
        files.sort();
        let mut folder = Self { dir: dir.into(), options: options.clone(), files: BTreeMap::new(), left_out: Vec::new() };
        let mut kept = Vec::new();
        for path in files {
            match folder.refusal(&path) {
                Some(reason) => folder.left_out.push((path, reason)),
                None => kept.push(path),
            }
        }
        folder.drop_other_formats(&mut kept)?;
        folder.drop_smaller_sizes(&mut kept);
        if kept.is_empty() {
            let seen: Vec<String> = folder.left_out.iter().map(|(path, why)| format!("{} ({why})", folder.below(path))).collect();
            let hint = if seen.is_empty() { FORMATS.to_owned() } else { format!("left out: {}; {FORMATS}", seen.join(", ")) };
            return Err(Error::Nothing { what: "files of data".into(), path: dir.into(), hint });
        }
        for path in kept {
            let split = Split::of_path(path.strip_prefix(dir).unwrap_or(&path));
            folder.files.entry(split).or_default().push(path);
        }
        Ok(folder)
    }

    /// The rows of the first of `splits` that the folder has. A folder without named splits gives its rows whatever is asked for;
    /// `dev` and `validation` stand for each other where only one is there.
    ///
    /// # Errors
    /// [`Error::Nothing`] where none is there; [`Error::Io`], [`Error::BadFile`] of its files.
    pub fn load(&self, splits: &[Split]) -> Result<Rows> {
        let Some(split) = self.choose(splits) else {
            let asked: Vec<String> = splits.iter().map(ToString::to_string).collect();
            let there: Vec<String> = self.files.keys().flatten().map(ToString::to_string).collect();
            let hint = format!("its files are of {}; a file's name or folder says its split", there.join(", "));
            return Err(Error::Nothing { what: format!("split {}", asked.join(" or ")), path: self.dir.clone(), hint });
        };
        let mut loaded = Rows { rows: Vec::new(), split, sources: Vec::new() };
        let mut columns: Option<(Vec<String>, PathBuf)> = None;
        for path in &self.files[&split] {
            let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
            let sha256 = hex(&Sha256::digest(&bytes));
            let mut rows = parse(path, bytes, &self.options)?;
            self.add_labels(path, &mut rows)?;
            loaded.sources.push(Source { path: path.clone(), sha256, rows: rows.len() });
            self.check(path, &rows, split, &mut columns)?;
            if let Some(key) = &self.options.stem_as {
                let stem = self.stem(path);
                for row in &mut rows {
                    if let Value::Object(row) = row {
                        row.entry(key.clone()).or_insert_with(|| stem.as_str().into());
                    }
                }
            }
            rows.retain(|row| self.options.only.iter().all(|(key, text)| row[key.as_str()].as_str() == Some(text)));
            loaded.rows.append(&mut rows);
        }
        if loaded.rows.is_empty() {
            let hint = "the file is empty, or no row is what the task asks for".into();
            return Err(Error::Nothing { what: "rows".into(), path: self.dir.clone(), hint });
        }
        Ok(loaded)
    }

    /// Whether one of `splits` is there under its own name.
    pub fn has(&self, splits: &[Split]) -> bool {
        splits.iter().any(|split| self.files.contains_key(&Some(*split)))
    }

    /// The split that [`Folder::load`] would read.
    fn choose(&self, splits: &[Split]) -> Option<Option<Split>> {
        let count: usize = self.files.values().map(Vec::len).sum();
        let only = self.files.keys().next().copied();
        if count == 1 || only.is_some_and(|split| self.files.len() == 1 && split.is_none()) {
            return only;
        }
        let there = |split: &Split| self.files.contains_key(&Some(*split)).then_some(Some(*split));
        let other = |split: &Split| match split {
            Split::Validation => there(&Split::Dev),
            Split::Dev => there(&Split::Validation),
            _ => None,
        };
        splits.iter().find_map(|split| there(split).or_else(|| other(split)))
    }

    fn below(&self, path: &Path) -> String {
        path.strip_prefix(&self.dir).unwrap_or(path).display().to_string()
    }

    /// Why a file is none of the task's data, by its name alone.
    fn refusal(&self, path: &Path) -> Option<String> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        if Format::of(&name).is_none() {
            let labels = name.ends_with("-labels.lst");
            return Some(if labels { "read with the rows beside it" } else { "no format of data" }.into());
        }
        // What `save_to_disk` and the Hub write beside the data, and papers that travel with it.
        if matches!(name.as_str(), "dataset_info.json" | "dataset_dict.json" | "dataset_infos.json" | "state.json")
            || name.starts_with("readme")
            || name.starts_with("license")
        {
            return Some("about the data".into());
        }
        if name.starts_with("cache-") {
            return Some("a cache of Hugging Face's datasets".into());
        }
        if path.with_file_name("state.json").is_file() && name.ends_with(".arrow") && !in_state(path) {
            return Some("not in state.json's list".into());
        }
        let below = self.below(path).to_lowercase();
        let wanted = |part: &String| below.contains(&part.to_lowercase());
        (!self.options.files.is_empty() && !self.options.files.iter().any(wanted))
            .then(|| format!("not one of {}", self.options.files.join(", ")))
    }

    /// Where there is a choice, files whose first row lacks what the task needs are of another format.
    fn drop_other_formats(&mut self, kept: &mut Vec<PathBuf>) -> Result<()> {
        if kept.len() < 2 || self.options.need.is_empty() {
            return Ok(());
        }
        // A folder of thousands of files has one format: the first of each folder speaks for it.
        let mut of_folder: BTreeMap<(PathBuf, String), Option<String>> = BTreeMap::new();
        let many = kept.len() > 500;
        let mut rest = Vec::new();
        for path in kept.drain(..) {
            let name = if many { String::new() } else { path.file_name().unwrap_or_default().to_string_lossy().into_owned() };
            let key = (path.parent().unwrap_or(&self.dir).to_path_buf(), name);
            let missing = match of_folder.get(&key) {
                Some(known) => known.clone(),
                None => {
                    let mut rows = super::read(&path, &self.options)?;
                    self.add_labels(&path, &mut rows)?;
                    let has = |need: &str| {
                        rows.first().is_some_and(|row| row.get(need).is_some()) || self.options.stem_as.as_deref() == Some(need)
                    };
                    let missing = self.options.need.iter().find(|need| !has(need)).cloned();
                    of_folder.insert(key, missing.clone());
                    missing
                }
            };
            match missing {
                Some(key) => self.left_out.push((path, format!("its rows have no `{key}`"))),
                None => rest.push(path),
            }
        }
        *kept = rest;
        Ok(())
    }

    /// WinoGrande is published in sizes, each a part of the next: the largest is meant.
    fn drop_smaller_sizes(&mut self, kept: &mut Vec<PathBuf>) {
        const SIZES: [&str; 5] = ["xs", "s", "m", "l", "xl"];
        let size = |path: &Path| -> Option<(PathBuf, Split, usize)> {
            let stem = path.file_name()?.to_string_lossy().split('.').next()?.to_owned();
            let (split, size) = stem.rsplit_once('_')?;
            Some((path.parent()?.to_path_buf(), Split::of_word(split)?, SIZES.iter().position(|known| *known == size)?))
        };
        let sizes: Vec<_> = kept.iter().filter_map(|path| size(path)).collect();
        kept.retain(|path| {
            let Some((dir, split, own)) = size(path) else { return true };
            let larger = sizes.iter().any(|other| other.0 == dir && other.1 == split && other.2 > own);
            if larger {
                self.left_out.push((path.clone(), "a part of a larger file beside it".into()));
            }
            !larger
        });
    }

    /// Rows must have what the task needs, and files of one split the same columns.
    fn check(
        &self,
        path: &Path,
        rows: &[Value],
        split: Option<Split>,
        columns: &mut Option<(Vec<String>, PathBuf)>,
    ) -> Result<()> {
        let needed = |key: &&String| self.options.stem_as.as_ref() != Some(*key);
        for (at, row) in rows.iter().enumerate() {
            if let Some(key) = self.options.need.iter().filter(needed).find(|key| row.get(key).is_none()) {
                let there: Vec<&str> = row.as_object().into_iter().flat_map(|row| row.keys()).map(String::as_str).collect();
                let problem = format!("row {}: expected the key `{key}`, got {}", at + 1, there.join(", "));
                return Err(Error::bad_file(
                    "file of the task",
                    path,
                    problem,
                    "take the file in the format that its authors published",
                ));
            }
        }
        let Some(first) = rows.first().and_then(Value::as_object) else { return Ok(()) };
        let mut keys: Vec<String> = first.keys().cloned().collect();
        keys.sort();
        match columns {
            None => *columns = Some((keys, path.into())),
            Some((known, other)) if split.is_none() && *known != keys => {
                let problem =
                    format!("its columns ({}) are not those of {} ({})", keys.join(", "), other.display(), known.join(", "));
                return Err(Error::bad_file(
                    "file of the task",
                    path,
                    problem,
                    "leave only the task's files in its folder, or name their splits",
                ));
            }
            Some(_) => {}
        }
        Ok(())
    }

    /// The file's name without ending and word of split: MMLU's subject.
    fn stem(&self, path: &Path) -> String {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let stem = name.split('.').next().unwrap_or_default();
        match stem.rsplit_once(['_', '-']) {
            Some((before, last)) if Split::of_word(last).is_some() => before.into(),
            _ => stem.into(),
        }
    }

    fn add_labels(&self, path: &Path, rows: &mut [Value]) -> Result<()> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let stem = name.split_once(".json").map_or(name.as_str(), |(stem, _)| stem);
        let labels = path.with_file_name(format!("{stem}-labels.lst"));
        if !labels.is_file() {
            return Ok(());
        }
        let bytes = std::fs::read(&labels).map_err(Error::io("read", &labels))?;
        text::labels(&labels, text::utf8(&labels, &bytes)?, rows)
    }
}

/// Whether the `state.json` beside an Arrow file lists it. `datasets` leaves files of earlier saves lying about.
fn in_state(path: &Path) -> bool {
    let state: Option<Value> =
        std::fs::read(path.with_file_name("state.json")).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    match state.as_ref().and_then(|state| state["_data_files"].as_array()) {
        Some(files) => files.iter().any(|file| file["filename"].as_str() == Some(&name)),
        None => true,
    }
}

fn walk(dir: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(dir).map_err(Error::io("read", dir))? {
        let path = entry.map_err(Error::io("read", dir))?.path();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if path.is_dir() && !hidden && depth > 0 {
            walk(&path, depth - 1, files)?;
        } else if path.is_file() && !hidden {
            files.push(path);
        }
    }
    Ok(())
}
