//! Books from files, archives and folders.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek};
use std::path::Path;

use encoding_rs::Encoding;
use serde_json::Map;

use super::clean::header;
use super::{Options, unix};
use crate::error::{Error, Result};
use crate::sources::Skipped;
use crate::walk::walk;
use crate::{Record, Rejected, Sink, charset, unpack};

/// Bytes of a book in which its header may say in which character set it is.
const DECLARED_WITHIN: usize = 32 << 10;
const ZIP: &[u8] = b"PK\x03\x04";

/// Reads the books of `path`: a text, packed or not, a `.zip` of them as Gutenberg publishes it, or a folder of both, in the order of
/// their paths. Line ends become `\n`.
///
/// A record's id is its path in the folder without the extension (for several books in one `.zip`, with the name in it). Its meta,
/// as far as a Gutenberg header tells it: `title`, `author`, `language`, `ebook` (the number); `latin1` where the file is not UTF-8 and
/// says no other character set, and `charset` where it is in another. Files of a folder that are no books by their names are counted.
///
/// # Errors
/// If `path` cannot be opened or listed. A book that cannot be read goes to the sink as rejected.
pub fn read(path: &Path, options: &Options, sink: &mut Sink) -> Result<Skipped> {
    let mut skipped = Skipped::new();
    if !path.is_dir() {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        read_file(path, stem(&name), options, sink)?;
        return Ok(skipped);
    }
    let found = walk(path)?;
    let others = found.files.iter().filter(|file| !is_book(file)).count() + found.passed.len();
    if others > 0 {
        skipped.insert("no_book_by_name", others as u64);
    }
    for file in found.files.iter().filter(|file| is_book(file)) {
        let name = file.strip_prefix(path).unwrap_or(file).to_string_lossy().replace('\\', "/");
        read_file(file, stem(&name), options, sink)?;
    }
    Ok(skipped)
}

fn is_book(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    name.ends_with(".zip") || unpack::without_packing(&name).ends_with(".txt")
}

/// A path without the endings of a book.
fn stem(name: &str) -> &str {
    let lower = name.to_ascii_lowercase();
    // In ASCII lower and upper case have the same length.
    let plain = &name[..unpack::without_packing(&lower).len()];
    let file = plain.rfind('/').map_or(0, |slash| slash + 1);
    plain[file..].rfind('.').filter(|dot| *dot > 0).map_or(plain, |dot| &plain[..file + dot])
}

fn read_file(path: &Path, id: &str, options: &Options, sink: &mut Sink) -> Result<()> {
    let mut file = BufReader::new(File::open(path).map_err(Error::io("open", path))?);
    let start = file.fill_buf().map_err(Error::io("read", path))?;
    if !start.starts_with(ZIP) && !path.extension().is_some_and(|e| e.eq_ignore_ascii_case("zip")) {
        let text = unpack::unpack(file).map_err(Error::io("read", path))?;
        return sink(book(id, text, options));
    }
    file.rewind().map_err(Error::io("read", path))?;
    let damaged = |e: zip::result::ZipError| Rejected { place: id.to_owned(), reason: format!("damaged zip: {e}") };
    let mut archive = match zip::ZipArchive::new(file) {
        Ok(archive) => archive,
        Err(e) => return sink(Err(damaged(e))),
    };
    let is_book = |name: &str| name.to_ascii_lowercase().ends_with(".txt") && !name.starts_with("__MACOSX/");
    let names: Vec<String> = archive.file_names().filter(|n| is_book(n)).map(str::to_owned).collect();
    if names.is_empty() {
        return sink(Err(Rejected { place: id.to_owned(), reason: "no .txt in the zip".into() }));
    }
    for name in &names {
        let stem = &name[..name.len() - 4];
        let id = if names.len() == 1 { id.to_owned() } else { format!("{id}/{stem}") };
        match archive.by_name(name) {
            Ok(file) => sink(book(&id, file, options))?,
            Err(e) => sink(Err(damaged(e)))?,
        }
    }
    Ok(())
}

fn book(id: &str, file: impl Read, options: &Options) -> Result<Record, Rejected> {
    let rejected = |reason: String| Rejected { place: id.to_owned(), reason };
    let mut bytes = Vec::new();
    file.take(options.max_book.saturating_add(1)).read_to_end(&mut bytes).map_err(|e| rejected(format!("cannot read: {e}")))?;
    if bytes.len() as u64 > options.max_book {
        return Err(rejected(format!("more than {} bytes", options.max_book)));
    }
    let Some((text, charset)) = charset::decode(bytes, declared) else {
        return Err(rejected("not text: it has zero bytes".into()));
    };
    let text = unix(text);
    let mut meta = Map::new();
    for (key, value) in header(&text) {
        meta.insert(key.into(), value.into());
    }
    match charset {
        None => {}
        Some("windows-1252") => drop(meta.insert("latin1".into(), true.into())),
        Some(other) => drop(meta.insert("charset".into(), other.into())),
    }
    Ok(Record { id: id.to_owned(), text, meta })
}

/// The set that a header's line `Character set encoding: ISO-8859-2` names.
fn declared(bytes: &[u8]) -> Option<&'static Encoding> {
    const FIELD: &[u8] = b"character set encoding:";
    let start = bytes[..bytes.len().min(DECLARED_WITHIN)].to_ascii_lowercase();
    let at = memchr::memmem::find(&start, FIELD)? + FIELD.len();
    let line = start[at..].split(|b| matches!(b, b'\n' | b'\r')).next()?;
    let name: String = line.iter().map(|&b| char::from(b)).filter(|c| !c.is_whitespace()).collect();
    let name = name.replace("iso-latin-", "latin").replace("isolatin-", "latin").replace("isolatin", "latin");
    let label = |name: &str| Encoding::for_label(name.as_bytes());
    label(&name).or_else(|| label(&name.replace("codepage", "cp"))).or_else(|| label(name.split('(').next().unwrap_or_default()))
}
