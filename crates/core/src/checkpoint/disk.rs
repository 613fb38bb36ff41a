//! The small files of checkpoints, and checksums.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Component, Path};

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::tensors::FileSummary;
use crate::error::{Error, Result};

/// Writes a small file into a folder that is not seen yet.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<FileSummary> {
    fs::write(path, bytes).map_err(Error::io("write", path))?;
    Ok(FileSummary { bytes: bytes.len() as u64, xxh3: xxh3_64(bytes) })
}

/// Size and checksum of a file, in bounded memory.
pub(crate) fn summarize(path: &Path) -> Result<FileSummary> {
    let mut file = File::open(path).map_err(Error::io("read", path))?;
    let (mut hash, mut bytes, mut buffer) = (Xxh3::new(), 0, vec![0; 1 << 18]);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(FileSummary { bytes, xxh3: hash.digest() }),
            Ok(n) => {
                hash.update(&buffer[..n]);
                bytes += n as u64;
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::io("read", path)(e)),
        }
    }
}

/// Reads a JSON file of at most 64 MiB.
pub(crate) fn read_json(what: &'static str, path: &Path) -> Result<serde_json::Value> {
    let bytes = read_small(what, path)?;
    let hint = "it is truncated or damaged: copy or download it again";
    serde_json::from_slice(&bytes).map_err(|e| Error::bad_file(what, path, format!("not JSON: {e}"), hint))
}

/// Reads a file of at most 64 MiB.
pub(crate) fn read_small(what: &'static str, path: &Path) -> Result<Vec<u8>> {
    const MAX: u64 = 64 << 20;
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(Error::io("read", path))?;
    file.take(MAX + 1).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
    if bytes.len() as u64 > MAX {
        return Err(Error::bad_file(what, path, "more than 64 MiB of text", "this is another kind of file"));
    }
    Ok(bytes)
}

/// Whether `name` is one plain file name: files that a checkpoint lists stay inside its folder.
pub(crate) fn is_plain_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(p)), None) if p.to_str() == Some(name))
}
