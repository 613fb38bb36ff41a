//! Names and patterns to files.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::sources::{Inputs, Source};
use crate::unpack::without_packing;
use crate::walk::walk;

/// The dumps of a source, and what of its inputs is none.
pub(super) struct Found {
    pub(super) dumps: Vec<PathBuf>,
    pub(super) passed: Vec<PathBuf>,
}

/// The dumps of a source.
///
/// # Errors
/// [`Error::Nothing`] for an entry that names nothing, and for inputs without a dump.
pub(super) fn dumps(source: &dyn Source) -> Result<Found> {
    let common = source.common();
    let key = common.key("inputs");
    let paths = expand(&key, common.inputs)?;
    let mut found = Found { dumps: Vec::new(), passed: Vec::new() };
    match source.inputs() {
        Inputs::Whole => {
            // A folder has what is in it, whatever else names that.
            let real = paths.iter().map(|p| real(p)).collect::<Result<Vec<_>>>()?;
            let inside = |i: usize| (0..real.len()).any(|j| j != i && real[i] != real[j] && real[i].starts_with(&real[j]));
            found.dumps = paths.iter().enumerate().filter(|(i, _)| !inside(*i)).map(|(_, p)| p.clone()).collect();
        }
        Inputs::Files(fits) => {
            let mut known = HashSet::new();
            for path in paths {
                if !path.is_dir() {
                    if known.insert(real(&path)?) {
                        found.dumps.push(path);
                    }
                    continue;
                }
                let inside = walk(&path)?;
                found.passed.extend(inside.passed);
                for file in inside.files {
                    let name = file.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
                    match fits(&name) {
                        false if source.company().contains(&without_packing(&name)) => {}
                        false => found.passed.push(file),
                        true if known.insert(real(&file)?) => found.dumps.push(file),
                        true => {}
                    }
                }
            }
        }
    }
    if found.dumps.is_empty() {
        let passed = found.passed.first().map_or_else(String::new, |p| format!(", only e.g. {}", p.display()));
        let hint = format!("look at {key}: the folders have no file of this source's kinds{passed}");
        let path = common.inputs.first().map(PathBuf::from).unwrap_or_default();
        return Err(Error::Nothing { what: "dump".into(), path, hint });
    }
    Ok(found)
}

fn real(path: &Path) -> Result<PathBuf> {
    path.canonicalize().map_err(Error::io("find", path))
}

/// The paths that the entries name, in the order of the entries and of the names under a pattern, each once, however it is written.
///
/// # Errors
/// [`Error::Nothing`] for an entry that names nothing.
pub(super) fn expand(key: &str, entries: &[String]) -> Result<Vec<PathBuf>> {
    let mut all: Vec<PathBuf> = Vec::new();
    let mut known = HashSet::new();
    for entry in entries {
        let mut found = if entry.contains(['*', '?']) { matching(entry)? } else { vec![PathBuf::from(entry)] };
        found.retain(|p| p.exists());
        if found.is_empty() {
            let hint = format!("look at {key}; paths are relative to the folder that recua runs in");
            return Err(Error::Nothing { what: "file or folder".into(), path: entry.into(), hint });
        }
        found.sort();
        for path in found {
            if known.insert(real(&path)?) {
                all.push(path);
            }
        }
    }
    Ok(all)
}

/// All files of a setting that names files, folders and patterns.
///
/// # Errors
/// Those of [`expand`] and of reading folders.
pub(super) fn files(key: &str, entries: &[String]) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    let mut known = HashSet::new();
    for path in expand(key, entries)? {
        for file in files_in(&path)? {
            if known.insert(real(&file)?) {
                all.push(file);
            }
        }
    }
    Ok(all)
}

/// Paths that fit a pattern with `*` and `?` in its names; `**` as a name stands for any number of folders, none too.
fn matching(pattern: &str) -> Result<Vec<PathBuf>> {
    let mut bases = vec![PathBuf::new()];
    let mut parts = Path::new(pattern).components().peekable();
    while let Some(part) = parts.next() {
        let name = part.as_os_str().to_string_lossy();
        if !name.contains(['*', '?']) {
            bases.iter_mut().for_each(|base| base.push(part));
            continue;
        }
        let mut next = Vec::new();
        if name == "**" {
            // At the end it is all files, as in a shell.
            let last = parts.peek().is_none();
            let mut folders = bases;
            while let Some(folder) = folders.pop() {
                for (path, is_folder) in children(&folder)? {
                    if is_folder {
                        folders.push(path);
                    } else if last {
                        next.push(path);
                    }
                }
                if !last {
                    next.push(folder);
                }
            }
        } else {
            for base in &bases {
                let hidden = name.starts_with('.');
                next.extend(entries(base, hidden)?.into_iter().filter_map(|path| {
                    let entry = path.file_name()?.to_string_lossy().into_owned();
                    fits(name.as_bytes(), entry.as_bytes()).then_some(path)
                }));
            }
        }
        bases = next;
    }
    Ok(bases)
}

/// What is in a folder, if it is one; hidden entries only if asked for.
fn entries(folder: &Path, hidden: bool) -> Result<Vec<PathBuf>> {
    let here = folder.as_os_str().is_empty();
    let read = if here { Path::new(".") } else { folder };
    let mut all = Vec::new();
    if read.is_dir() {
        for entry in std::fs::read_dir(read).map_err(Error::io("read", read))? {
            let name = entry.map_err(Error::io("read", read))?.file_name();
            if hidden || !name.as_encoded_bytes().starts_with(b".") {
                all.push(if here { PathBuf::from(name) } else { folder.join(name) });
            }
        }
    }
    Ok(all)
}

/// [`entries`], and whether each is a folder and no link to one.
fn children(folder: &Path) -> Result<Vec<(PathBuf, bool)>> {
    let is_folder = |path: &Path| std::fs::symlink_metadata(path).is_ok_and(|m| m.is_dir());
    Ok(entries(folder, false)?.into_iter().map(|path| (is_folder(&path), path)).map(|(is, path)| (path, is)).collect())
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

/// A file, or all files in a folder.
///
/// # Errors
/// [`Error::Io`] if a folder cannot be read.
pub(super) fn files_in(path: &Path) -> Result<Vec<PathBuf>> {
    if path.is_dir() { Ok(walk(path)?.files) } else { Ok(vec![path.into()]) }
}
