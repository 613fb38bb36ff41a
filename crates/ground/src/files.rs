//! Files that appear whole or not at all, and that last.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use crate::error::{Error, Result};

/// Makes renames and new names in a folder last through a power cut. Elsewhere than on Unix a folder cannot be opened as a
/// file, and need not be.
pub fn sync_dir(dir: &Path) -> Result<()> {
    if cfg!(unix) {
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        File::open(dir).and_then(|d| d.sync_all()).map_err(Error::io("sync", dir))?;
    }
    Ok(())
}

/// Writes a small file: under a temporary name of this process, synced, renamed.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    let written = File::create(&temporary).map_err(Error::io("create", path)).and_then(|mut file| {
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(Error::io("write", path))?;
        fs::rename(&temporary, path).map_err(Error::io("rename", path))
    });
    if written.is_err() {
        // The first error is the one to tell; what may be left is a temporary file.
        let _ = fs::remove_file(&temporary);
    }
    written?;
    sync_dir(path.parent().unwrap_or(Path::new("")))
}
