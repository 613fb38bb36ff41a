//! What is known of a finished shard: from what it was made, what came out, and what happened to its documents.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{ErrorKind, Read, Write},
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use crate::error::{Error, Result};
use crate::files::Atomic;

const FORMAT: &str = "recua shard 1";

/// `NAME.manifest.json`: the last file of a shard to appear. It holds nothing that differs between two runs over the same
/// input, so it can be compared like any other output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    format: String,
    /// The version of recua that made it.
    pub version: String,
    /// The stage's name.
    pub stage: String,
    /// The shard's name.
    pub shard: String,
    /// Hash of the settings that the result depends on: see [`config_hash`].
    pub config_hash: String,
    /// The files read, in order.
    pub inputs: Vec<FileEntry>,
    /// The files written, by name.
    pub outputs: Vec<FileEntry>,
    /// What happened to the documents.
    pub counts: Counts,
}

/// A file of a shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// File name without its folder, so that a run can be moved.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// XXH3-128 of its contents, 32 hexadecimal digits.
    pub hash: String,
}

/// What happened to the documents of a shard, a stage or a source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    /// Documents read.
    pub docs_in: u64,
    /// Bytes of their text.
    pub bytes_in: u64,
    /// Documents written.
    pub docs_out: u64,
    /// Bytes of their text.
    pub bytes_out: u64,
    /// Records that could not be read.
    pub rejected: u64,
    /// Documents dropped, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// Pieces removed from documents that stay, by rule.
    pub removed: BTreeMap<String, u64>,
    /// What is in the input and is no document, by reason: pages of other namespaces, pictures, projects under other licences.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub skipped: BTreeMap<String, u64>,
}

impl Counts {
    /// Adds those of another shard.
    pub fn add(&mut self, other: &Self) {
        self.docs_in += other.docs_in;
        self.bytes_in += other.bytes_in;
        self.docs_out += other.docs_out;
        self.bytes_out += other.bytes_out;
        self.rejected += other.rejected;
        let all = [(&mut self.dropped, &other.dropped), (&mut self.removed, &other.removed), (&mut self.skipped, &other.skipped)];
        for (mine, theirs) in all {
            for (reason, n) in theirs {
                *mine.entry(reason.clone()).or_default() += n;
            }
        }
    }

    /// Adds one to the counter of `key`, which is there already in most calls.
    pub(super) fn count(map: &mut BTreeMap<String, u64>, key: &str) {
        match map.get_mut(key) {
            Some(n) => *n += 1,
            None => drop(map.insert(key.to_owned(), 1)),
        }
    }
}

/// `NAME.timing.json`: what differs between runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Timing {
    /// How long the shard took.
    pub(super) seconds: f64,
    /// When the inputs were last modified, in nanoseconds since 1970, as strings: they need more than 53 bits.
    pub(super) modified: Vec<String>,
}

impl Manifest {
    pub(super) fn new(stage: &str, shard: &str, config_hash: &str, inputs: Vec<FileEntry>) -> Self {
        Self {
            format: FORMAT.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            stage: stage.into(),
            shard: shard.into(),
            config_hash: config_hash.into(),
            inputs,
            outputs: Vec::new(),
            counts: Counts::default(),
        }
    }

    /// Where the manifest of a shard is.
    pub fn path(dir: &Path, shard: &str) -> PathBuf {
        dir.join(format!("{shard}.manifest.json"))
    }

    /// The manifest of a shard; `None` if there is none or it is damaged, since either way the shard is to be redone.
    ///
    /// # Errors
    /// [`Error::Io`] if it is there and cannot be read.
    pub fn read(dir: &Path, shard: &str) -> Result<Option<Self>> {
        Ok(read_json::<Self>(&Self::path(dir, shard))?.filter(|m| m.format == FORMAT && m.shard == shard))
    }

    pub(super) fn write(&self, dir: &Path) -> Result<()> {
        write_json(&Self::path(dir, &self.shard), self)
    }

    /// Whether the files it names are in `dir`: of the right size, and, with `verify`, of the right contents.
    pub(super) fn outputs_there(&self, dir: &Path, verify: bool) -> Result<bool> {
        for output in &self.outputs {
            let path = dir.join(&output.name);
            let there = fs::metadata(&path).is_ok_and(|m| m.is_file() && m.len() == output.bytes);
            if !there || (verify && input_hash(&path)? != output.hash) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Timing {
    fn path(dir: &Path, shard: &str) -> PathBuf {
        dir.join(format!("{shard}.timing.json"))
    }

    /// Without the file the inputs are hashed again; nothing worse.
    pub(super) fn read(dir: &Path, shard: &str) -> Result<Self> {
        Ok(read_json(&Self::path(dir, shard))?.unwrap_or_default())
    }

    pub(super) fn write(&self, dir: &Path, shard: &str) -> Result<()> {
        write_json(&Self::path(dir, shard), self)
    }
}

fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(Error::io("read", path)(e)),
    }
}

fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|e| Error::io("write", path)(e.into()))?;
    text.push(b'\n');
    let mut file = Atomic::create_unswept(path)?;
    file.write_all(&text).map_err(Error::io("write", path))?;
    file.commit()
}

/// Hash of the settings that a stage's result depends on: XXH3-128 of their JSON, 32 hexadecimal digits. Settings in a
/// `HashMap` have no fixed order: use a `BTreeMap`.
///
/// # Errors
/// [`Error::BadValue`] if JSON cannot express the settings (a map with keys that are not strings).
pub fn config_hash(settings: &impl Serialize) -> Result<String> {
    let json = serde_json::to_vec(settings).map_err(|e| Error::internal("settings", e.to_string()))?;
    Ok(hex(xxh3_128(&json)))
}

/// Hash of a file's contents: XXH3-128, 32 hexadecimal digits. Reads all of it, at the speed of the disk.
///
/// # Errors
/// [`Error::Io`] if it cannot be read.
pub fn input_hash(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(Error::io("read", path))?;
    let mut hash = Xxh3::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hex(hash.digest128())),
            Ok(n) => hash.update(&buffer[..n]),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::io("read", path)(e)),
        }
    }
}

/// Size and time of change of an input: while both are as recorded, its hash is taken as recorded too.
pub(super) fn stat(path: &Path) -> Result<(u64, String)> {
    let meta = fs::metadata(path).map_err(Error::io("read", path))?;
    let modified = meta.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
    // A system that knows no time gives an empty string, which agrees with nothing: `trusted` below.
    Ok((meta.len(), modified.map(|t| t.as_nanos().to_string()).unwrap_or_default()))
}

pub(super) fn hex(hash: u128) -> String {
    format!("{hash:032x}")
}
