//! Files and folders that appear whole or not at all.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::{Component, Path};

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::tensors::FileSummary;
use crate::error::{Error, Result};
pub(crate) use crate::files::sync_dir;

/// Writes and syncs a small file.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<FileSummary> {
    let mut file = File::create(path).map_err(Error::io("create", path))?;
    file.write_all(bytes).map_err(Error::io("write", path))?;
    file.sync_all().map_err(Error::io("sync", path))?;
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

/// Removes a folder that may not be there.
pub(crate) fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io("remove", dir)(e)),
        _ => Ok(()),
    }
}

/// Whether a folder can be made as `dir`, which must not exist or be empty; its name.
pub(crate) fn check_new_folder(dir: &Path) -> Result<&std::ffi::OsStr> {
    let Some(name) = dir.file_name() else {
        return Err(Error::bad_value("output folder", format!("`{}` has no name", dir.display()), "name a new folder"));
    };
    match fs::read_dir(dir).map(|mut entries| entries.next().is_some()) {
        Ok(false) => Ok(name),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(name),
        Err(e) => Err(Error::io("write", dir)(e)),
        Ok(true) => {
            let problem = format!("`{}` exists and is not empty", dir.display());
            Err(Error::bad_value("output folder", problem, "name a new folder, or remove this one first"))
        }
    }
}

/// Fills a new folder under a temporary name, syncs it and renames it to `dir`, which must not exist or be empty.
pub(crate) fn write_folder(dir: &Path, fill: &mut dyn FnMut(&Path) -> Result<()>) -> Result<()> {
    let name = check_new_folder(dir)?;
    let parent = dir.parent().unwrap_or(Path::new(""));
    if !parent.as_os_str().is_empty() {
        fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
    }
    let prefix = format!(".{}.tmp-", name.to_string_lossy());
    remove_abandoned(parent, &prefix)?;
    let tmp = parent.join(format!("{prefix}{}", std::process::id()));
    remove_dir(&tmp)?;
    fs::create_dir(&tmp).map_err(Error::io("create", &tmp))?;
    let done = fill(&tmp).and_then(|()| sync_dir(&tmp)).and_then(|()| {
        if dir.exists() {
            fs::remove_dir(dir).map_err(Error::io("replace", dir))?;
        }
        fs::rename(&tmp, dir).map_err(Error::io("rename", dir))
    });
    if done.is_err() {
        // The first error is the one to tell; what is left is a hidden temporary folder at worst.
        let _ = remove_dir(&tmp);
    }
    done?;
    sync_dir(parent)
}

/// Removes what processes that are gone left half-written in `parent`. (Where the system does not say who lives, all are spared.)
fn remove_abandoned(parent: &Path, prefix: &str) -> Result<()> {
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let processes = Path::new("/proc");
    if !processes.join("self").exists() {
        return Ok(());
    }
    for entry in fs::read_dir(parent).map_err(Error::io("read", parent))? {
        let entry = entry.map_err(Error::io("read", parent))?;
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(prefix)?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !processes.join(pid.to_string()).exists()) {
            log::warn!("{}: removing what an interrupted conversion left", entry.path().display());
            remove_dir(&entry.path())?;
        }
    }
    Ok(())
}
