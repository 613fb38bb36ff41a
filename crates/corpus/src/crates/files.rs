//! Folders and files: a fixed order, and pieces that end where a line does.

use std::fs::{self, File};
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

/// The most bytes of one document of a folder of the user's.
const PIECE: usize = 1 << 20;

/// The end of the last paragraph, line or (in one endless line) character at or before `at`.
pub(super) fn line_end(text: &[u8], at: usize) -> usize {
    let head = &text[..at.min(text.len())];
    let half = head.len() / 2;
    if let Some(index) = head[half..].windows(2).rposition(|pair| pair == b"\n\n") {
        return half + index + 2;
    }
    if let Some(index) = head[half..].iter().rposition(|&byte| byte == b'\n') {
        return half + index + 1;
    }
    // A character starts at a byte that is not 10xxxxxx.
    (0..=head.len()).rev().find(|&index| index == text.len() || text[index] & 0xC0 != 0x80).unwrap_or(0)
}

/// Reads a file in pieces of at most 1 MiB that end where a paragraph or line does: its hash and the spans of the pieces.
pub(super) fn cut(path: &Path) -> Result<(u128, Vec<Range<u64>>), &'static str> {
    let mut file = File::open(path).map_err(|_| "unreadable")?;
    let (mut hash, mut spans, mut start) = (Xxh3::new(), Vec::new(), 0u64);
    let mut buffer: Vec<u8> = Vec::new();
    loop {
        let wanted = (PIECE + 1 - buffer.len()) as u64;
        let got = io::copy(&mut (&mut file).take(wanted), &mut buffer).map_err(|_| "unreadable")?;
        let last = got < wanted;
        let end = if last { buffer.len() } else { line_end(&buffer, PIECE) };
        let piece = &buffer[..end];
        if piece.contains(&0) {
            return Err("binary");
        }
        // Zero only if nothing in a whole piece starts a character.
        if std::str::from_utf8(piece).is_err() || end == 0 && !last {
            return Err("not UTF-8");
        }
        hash.update(piece);
        if !piece.is_empty() {
            spans.push(start..start + end as u64);
            start += end as u64;
        }
        if last {
            return Ok((hash.digest128(), spans));
        }
        buffer.drain(..end);
    }
}

/// The entries of a folder, sorted.
///
/// # Errors
/// The folder cannot be read.
pub(super) fn entries(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

/// The files under a folder, and what is passed over there.
#[derive(Debug, Default)]
pub(super) struct Walked {
    /// Sorted by path.
    pub(super) files: Vec<PathBuf>,
    /// Names that begin with a dot, with all that is in them.
    pub(super) hidden: u64,
    /// Links (so there are no loops), pipes and devices.
    pub(super) special: u64,
    /// Folders that cannot be read.
    pub(super) unreadable: u64,
}

/// All files under a folder.
pub(super) fn walk(dir: &Path) -> Walked {
    let (mut walked, mut folders) = (Walked::default(), vec![dir.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        let Ok(paths) = entries(&folder) else {
            walked.unreadable += 1;
            continue;
        };
        for path in paths {
            let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
            match fs::symlink_metadata(&path) {
                _ if hidden => walked.hidden += 1,
                Ok(meta) if meta.is_dir() => folders.push(path),
                Ok(meta) if meta.is_file() => walked.files.push(path),
                Ok(_) => walked.special += 1,
                Err(_) => walked.unreadable += 1,
            }
        }
    }
    walked.files.sort();
    walked
}

/// The path below `base`, with `/` on every system; the file's name if that is `base` itself.
pub(super) fn relative(path: &Path, base: &Path) -> String {
    let below = path.strip_prefix(base).ok().filter(|below| !below.as_os_str().is_empty());
    let below = below.unwrap_or_else(|| Path::new(path.file_name().unwrap_or_default()));
    below.components().map(|part| part.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/")
}
