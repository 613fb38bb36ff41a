//! GGUF files, mapped: one, or all parts of a model that is split.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use memmap2::Mmap;

use super::{Header, MAGIC, Metadata};
use crate::error::{Error, Result};

fn map(path: &Path) -> Result<Mmap> {
    let file = File::open(path).map_err(Error::io("read", path))?;
    // SAFETY: the mapping is only read. Our own files are never changed in place: they are written under another name and renamed.
    unsafe { Mmap::map(&file) }.map_err(Error::io("read", path))
}

/// Whether a path is to be read as GGUF: by its name, or by what the file begins with.
pub fn is_gguf(path: &Path) -> bool {
    let begins = || {
        let mut magic = [0; 4];
        File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == MAGIC
    };
    path.is_file() && (has_extension(path) || begins())
}

/// Whether a name ends in `.gguf`.
pub fn has_extension(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"))
}

/// One file, mapped.
#[derive(Debug)]
pub(crate) struct Shard {
    pub(crate) path: PathBuf,
    pub(crate) bytes: Bytes,
    pub(crate) header: Header,
}

impl Shard {
    fn open(path: &Path) -> Result<Self> {
        let bytes = Bytes::from_owner(map(path)?);
        let header = Header::parse(&bytes, path)?;
        Ok(Self { path: path.into(), bytes, header })
    }

    /// Its number among how many, from 0.
    fn split(&self) -> Result<(usize, usize)> {
        let size = |key: &str| self.header.metadata.size(key).map_err(|e| bad(&self.path, e));
        let (number, count) = (size("split.no")?.unwrap_or(0), size("split.count")?.unwrap_or(1));
        if count > 1 && number >= count {
            return Err(bad(&self.path, format!("split.no is {number} of {count}")));
        }
        Ok((number, count.max(1)))
    }
}

pub(crate) fn bad(path: &Path, problem: impl Into<String>) -> Error {
    Error::bad_file("GGUF file", path, problem, "it is damaged, or made for another program: get it again")
}

/// All files of the model that `path` is, or is a part of; the first has the metadata.
pub(crate) fn open_all(path: &Path) -> Result<Vec<Shard>> {
    let opened = Shard::open(path)?;
    let (number, count) = opened.split()?;
    if count == 1 {
        return Ok(vec![opened]);
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let ending = format!("-{:05}-of-{count:05}.gguf", number + 1);
    let Some(prefix) = name.strip_suffix(&ending) else {
        let problem = format!("it is part {} of {count}, but its name does not end in `{ending}`", number + 1);
        return Err(Error::bad_file("GGUF file", path, problem, "give the files their names back"));
    };
    let mut shards = Vec::new();
    let mut opened = Some(opened);
    for i in 0..count {
        let part = path.with_file_name(format!("{prefix}-{:05}-of-{count:05}.gguf", i + 1));
        let shard = if i == number { opened.take() } else { None };
        if shard.is_none() && !part.is_file() {
            let problem = format!("{} of its {count} parts is missing", part.display());
            return Err(Error::bad_file("GGUF file", path, problem, "put all parts into one folder"));
        }
        let shard = shard.map_or_else(|| Shard::open(&part), Ok)?;
        if shard.split()? != (i, count) {
            let (number, of) = shard.split()?;
            return Err(bad(&part, format!("it says that it is part {} of {of}, its name {} of {count}", number + 1, i + 1)));
        }
        shards.push(shard);
    }
    let tensors: usize = shards.iter().map(|shard| shard.header.tensors.len()).sum();
    let said = shards[0].header.metadata.size("split.tensors.count").map_err(|e| bad(path, e))?;
    match said.filter(|said| *said != tensors) {
        Some(said) => Err(bad(path, format!("its parts hold {tensors} tensors, expected {said}"))),
        None => Ok(shards),
    }
}

/// The metadata of the model that `path` is, or is a part of.
///
/// # Errors
/// As [`GgufModel::open`](crate::checkpoint::GgufModel::open).
pub fn read_metadata(path: &Path) -> Result<Metadata> {
    let opened = Shard::open(path)?;
    if opened.split()?.0 == 0 {
        return Ok(opened.header.metadata);
    }
    open_all(path)?.into_iter().next().map(|shard| shard.header.metadata).ok_or_else(|| bad(path, "no parts"))
}
