//! The files of a folder.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The file that marks the folder of a build. What is in such a folder was made and is no input.
pub(crate) const BUILD: &str = ".recua-build";
/// Folders inside each other, at most.
const MAX_DEPTH: usize = 64;

/// What is in a folder and in those in it.
#[derive(Debug, Default)]
pub(crate) struct Walk {
    /// Its files and links to files, by the bytes of their names.
    pub(crate) files: Vec<PathBuf>,
    /// What is neither a file nor a folder, and links to folders: they may lead back up.
    pub(crate) passed: Vec<PathBuf>,
    /// How many hidden files and folders were left out.
    pub(crate) hidden: u64,
}

/// Lists a folder. Hidden files and folders (`.name`), and the folders of builds, are left out.
///
/// # Errors
/// [`Error::Io`] if a folder cannot be read.
pub(crate) fn walk(folder: &Path) -> Result<Walk> {
    let mut found = Walk::default();
    list(folder, 0, &mut found)?;
    Ok(found)
}

fn list(folder: &Path, depth: usize, found: &mut Walk) -> Result<()> {
    let entries = fs::read_dir(folder).and_then(|entries| entries.collect::<Result<Vec<_>, _>>());
    let mut entries = entries.map_err(Error::io("read", folder))?;
    if entries.iter().any(|e| e.file_name() == BUILD) {
        return Ok(());
    }
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            found.hidden += 1;
            continue;
        }
        let path = entry.path();
        let kind = entry.file_type().map_err(Error::io("read", &path))?;
        if kind.is_dir() && depth < MAX_DEPTH {
            list(&path, depth + 1, found)?;
        } else if kind.is_file() || (kind.is_symlink() && path.is_file()) {
            found.files.push(path);
        } else {
            found.passed.push(path);
        }
    }
    Ok(())
}
