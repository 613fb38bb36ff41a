//! Names and patterns to files.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The paths that the entries name, in the order of the entries and of the names under a pattern, each once.
///
/// # Errors
/// [`Error::Nothing`] for an entry that names nothing.
pub(super) fn expand(key: &str, entries: &[String]) -> Result<Vec<PathBuf>> {
    let mut all: Vec<PathBuf> = Vec::new();
    for entry in entries {
        let mut found = if entry.contains(['*', '?']) { matching(entry)? } else { vec![PathBuf::from(entry)] };
        found.retain(|p| p.exists());
        if found.is_empty() {
            let hint = format!("look at {key}; paths are relative to the folder that recua runs in");
            return Err(Error::Nothing { what: "file or folder".into(), path: entry.into(), hint });
        }
        found.sort();
        for path in found {
            if !all.contains(&path) {
                all.push(path);
            }
        }
    }
    Ok(all)
}

/// Paths that fit a pattern with `*` and `?` in its names.
fn matching(pattern: &str) -> Result<Vec<PathBuf>> {
    let path = Path::new(pattern);
    let mut bases = vec![PathBuf::new()];
    for part in path.components() {
        let name = part.as_os_str().to_string_lossy();
        if !name.contains(['*', '?']) {
            bases.iter_mut().for_each(|base| base.push(part));
            continue;
        }
        let mut next = Vec::new();
        for base in bases.iter().map(|b| if b.as_os_str().is_empty() { Path::new(".") } else { b }) {
            if !base.is_dir() {
                continue;
            }
            for entry in std::fs::read_dir(base).map_err(Error::io("read", base))? {
                let entry = entry.map_err(Error::io("read", base))?.file_name();
                let entry_name = entry.to_string_lossy();
                let hidden = entry_name.starts_with('.') && !name.starts_with('.');
                if !hidden && fits(name.as_bytes(), entry_name.as_bytes()) {
                    next.push(if base == Path::new(".") { PathBuf::from(&entry) } else { base.join(&entry) });
                }
            }
        }
        bases = next;
    }
    Ok(bases)
}

/// Whether a name fits a pattern. Linear in practice: one place to go back to, the last star's.
fn fits(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(&c) if c == b'?' || c == name[n] => (p, n) = (p + 1, n + 1),
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    (p, n) = (at + 1, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&c| c == b'*')
}

/// All files in a folder, by the bytes of their paths; hidden ones left out.
///
/// # Errors
/// [`Error::Io`] if a folder cannot be read.
pub(super) fn files_in(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.into()]);
    }
    let (mut files, mut folders) = (Vec::new(), vec![path.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).map_err(Error::io("read", &folder))? {
            let entry = entry.map_err(Error::io("read", &folder))?;
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            // Links are not followed: they may lead around in a circle.
            let kind = entry.file_type().map_err(Error::io("read", &folder))?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    Ok(files)
}
