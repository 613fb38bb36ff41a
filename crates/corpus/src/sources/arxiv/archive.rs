//! Papers from arXiv's bulk tars, from single sources and from folders, in bounded memory.

use std::{
    fs::{self, File},
    io::{self, BufReader, Read},
    path::Path,
};

use flate2::bufread::MultiGzDecoder;
use serde_json::Map;

use super::{
    FILE_SEPARATOR, Options,
    include::{self, Document, TexFile},
};
use crate::{
    Record, Rejected, Sink,
    error::{Error, Result},
    sources::books::decode,
};

/// Bytes of a tar header.
const BLOCK: usize = 512;
/// Folders inside each other, at most, in a paper that is a folder.
const MAX_DEPTH: usize = 16;
/// Text that an `\input` may name, beside LaTeX proper.
const TEXT: [&str; 7] = ["def", "inc", "txt", "tikz", "pgf", "pstex_t", "pdf_tex"];

/// Reads the papers of `path`, in their order there: a bulk tar (members `YYMM/ID.gz`, each a gzipped tar or one gzipped file), one
/// paper as `.gz`, `.tar.gz`, `.tgz` or `.tex`, a folder of such tars and sources, or a folder of `.tex` files as one paper.
///
/// A record's id is the paper's arXiv id (`1202.3665`, `astro-ph/0001001`) where the name is one, else the name. Its meta:
/// `arxiv_id`, `yymm`, `files` (those in the text, the main one first), and where there is something to tell `missing` (what
/// `\input` names and is not there) and `latin1` (files that are not UTF-8).
///
/// # Errors
/// If `path` cannot be opened or listed. A paper that cannot be read goes to the sink as rejected; a damaged tar's readable
/// members are read.
pub fn read(path: &Path, options: &Options, sink: &mut Sink) -> Result<()> {
    if !path.is_dir() {
        return read_file(path, options, sink);
    }
    let mut archives: Vec<_> = list(path)?.into_iter().filter(|p| p.is_file() && is_archive(p)).collect();
    if archives.is_empty() {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let paper = folder(path, options)?.and_then(|(files, latin1)| assemble(files, latin1, options));
        return sink(record(&name, paper));
    }
    archives.sort();
    archives.iter().try_for_each(|p| read_file(p, options, sink))
}

fn is_archive(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "tar" || e == "gz" || e == "tgz")
}

fn read_file(path: &Path, options: &Options, sink: &mut Sink) -> Result<()> {
    let file = BufReader::with_capacity(1 << 16, File::open(path).map_err(Error::io("open", path))?);
    if path.extension().is_some_and(|e| e == "tar") {
        return bulk(path, file, options, sink);
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    sink(record(&name, member(&name, file, options)))
}

/// The members of a bulk tar.
fn bulk(path: &Path, file: impl Read, options: &Options, sink: &mut Sink) -> Result<()> {
    let mut archive = tar::Archive::new(file);
    let damaged = |n: usize, e: io::Error| Rejected {
        place: format!("{}: member {n}", path.display()),
        reason: format!("damaged tar, nothing after this is read: {e}"),
    };
    let entries = match archive.entries() {
        Ok(entries) => entries,
        Err(e) => return sink(Err(damaged(0, e))),
    };
    for (n, entry) in entries.enumerate() {
        let entry = match entry {
            Ok(entry) => entry,
            Err(e) => return sink(Err(damaged(n, e))),
        };
        if entry.header().entry_type().is_file() {
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let paper = member(&name, BufReader::new(entry), options);
            sink(record(&name, paper))?;
        }
    }
    Ok(())
}

/// A paper of a bulk tar, or one that is a file of its own; or why not.
fn member(name: &str, file: impl io::BufRead, options: &Options) -> Result<Paper, String> {
    let lower = name.to_ascii_lowercase();
    let (files, latin1) = if lower.ends_with(".gz") || lower.ends_with(".tgz") {
        source(name, Bounded::new(MultiGzDecoder::new(file), options.max_inflated), options)?
    } else if lower.ends_with(".pdf") {
        return Err("only a PDF, no LaTeX source".into());
    } else if include::is_tex(&lower) {
        source(name, Bounded::new(file, options.max_inflated), options)?
    } else {
        return Err("neither a .gz nor a .tex file".into());
    };
    assemble(files, latin1, options)
}

/// A reader that fails where more than its bound comes out.
struct Bounded<R> {
    inner: R,
    bound: u64,
    left: u64,
}

impl<R> Bounded<R> {
    fn new(inner: R, bound: u64) -> Self {
        Self { inner, bound, left: bound }
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        let Some(left) = self.left.checked_sub(n as u64) else {
            return Err(io::Error::other(format!("the archive inflates to more than {} bytes", self.bound)));
        };
        self.left = left;
        Ok(n)
    }
}

/// The text files of a paper's source, a tar or one file, and the names of those that are Latin-1.
fn source(name: &str, mut file: impl Read, options: &Options) -> Result<(Vec<TexFile>, Vec<String>), String> {
    let mut head = Vec::with_capacity(BLOCK);
    (&mut file).take(BLOCK as u64).read_to_end(&mut head).map_err(|e| format!("damaged: {e}"))?;
    let is_tar = is_tar(&head);
    let whole = io::Cursor::new(head.clone()).chain(file);
    let mut files = Files::new(options);
    if !is_tar {
        for (magic, what) in
            [("%PDF", "only a PDF"), ("%!", "only PostScript"), ("<", "only HTML"), ("%auto-ignore", "withdrawn")]
        {
            if head.trim_ascii_start().starts_with(magic.as_bytes()) {
                return Err(format!("{what}, no LaTeX source"));
            }
        }
        let name = Path::new(name).file_name().unwrap_or_default().to_string_lossy();
        let stem = name.trim_end_matches(".gz");
        let name = if include::is_tex(stem) { stem.to_owned() } else { format!("{stem}.tex") };
        files.add(&name, whole)?;
        return Ok((files.files, files.latin1));
    }
    let mut archive = tar::Archive::new(whole);
    let damaged = |e: io::Error| format!("damaged tar: {e}");
    for entry in archive.entries().map_err(damaged)? {
        let entry = entry.map_err(damaged)?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches("./").to_owned();
        if entry.header().entry_type().is_file() && files.wants(&name) {
            files.add(&name, entry)?;
        }
    }
    Ok((files.files, files.latin1))
}

/// Whether a tar begins with this block: its checksum is right.
fn is_tar(block: &[u8]) -> bool {
    let Some(field) = block.get(148..156).filter(|_| block.len() == BLOCK) else { return false };
    let digits: String = field.iter().map(|&b| char::from(b)).filter(char::is_ascii_digit).collect();
    let sum = block.iter().map(|&b| u64::from(b)).sum::<u64>() - field.iter().map(|&b| u64::from(b)).sum::<u64>() + 8 * 32;
    u64::from_str_radix(&digits, 8).is_ok_and(|wanted| wanted == sum)
}

/// The text files of a paper, as they come.
struct Files<'o> {
    options: &'o Options,
    files: Vec<TexFile>,
    latin1: Vec<String>,
    left: u64,
}

impl<'o> Files<'o> {
    fn new(options: &'o Options) -> Self {
        Self { options, files: Vec::new(), latin1: Vec::new(), left: options.max_tex }
    }

    fn wants(&self, name: &str) -> bool {
        if self.options.rp_compat {
            return name.ends_with(".tex");
        }
        let extension = name.rsplit_once('.').map_or("", |(_, e)| e);
        include::is_tex(name) || TEXT.iter().any(|e| extension.eq_ignore_ascii_case(e))
    }

    fn add(&mut self, name: &str, file: impl Read) -> Result<(), String> {
        let mut bytes = Vec::new();
        file.take(self.left + 1).read_to_end(&mut bytes).map_err(|e| format!("damaged: {e}"))?;
        self.left = self
            .left
            .checked_sub(bytes.len() as u64)
            .ok_or_else(|| format!("more than {} bytes of LaTeX", self.options.max_tex))?;
        let text = match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(_) if self.options.strict_utf8 || self.options.rp_compat => return Err(format!("{name} is not UTF-8")),
            Err(bytes) => {
                self.latin1.push(name.to_owned());
                decode(bytes.into_bytes()).0
            }
        };
        // Something else under LaTeX's name.
        if self.options.rp_compat || !text.contains('\0') {
            self.files.push(TexFile { name: name.to_owned(), text });
        }
        Ok(())
    }
}

/// A paper that was read.
struct Paper {
    document: Document,
    latin1: Vec<String>,
}

fn assemble(mut files: Vec<TexFile>, latin1: Vec<String>, options: &Options) -> Result<Paper, String> {
    if options.rp_compat {
        let names = files.iter().map(|f| f.name.clone()).collect();
        let texts: Vec<_> = files.into_iter().map(|f| f.text.replace(FILE_SEPARATOR, "")).collect();
        let text = texts.join(&FILE_SEPARATOR.to_string());
        return Ok(Paper { document: Document { text, files: names, missing: Vec::new() }, latin1 });
    }
    for file in &mut files {
        let text = file.text.strip_prefix('\u{feff}').unwrap_or(&file.text);
        if text.contains('\r') {
            file.text = text.replace("\r\n", "\n").replace('\r', "\n");
        } else if text.len() < file.text.len() {
            file.text = text.to_owned();
        }
    }
    Ok(Paper { document: include::assemble(&files, options.max_tex)?, latin1 })
}

/// What the sink gets of the paper in the member or file `name`.
fn record(name: &str, paper: Result<Paper, String>) -> Result<Record, Rejected> {
    let stem = name.rsplit('/').next().unwrap_or(name);
    let extensions = [".tar.gz", ".tgz", ".gz", ".pdf", ".tex"];
    let stem = extensions.iter().find_map(|e| stem.strip_suffix(e)).unwrap_or(stem);
    let known = arxiv_id(stem);
    let id = known.as_ref().map_or_else(|| stem.to_owned(), |(id, _)| id.clone());
    let Paper { document, latin1 } = paper.map_err(|reason| Rejected { place: id.clone(), reason })?;
    let mut meta = Map::new();
    if let Some((id, yymm)) = known {
        meta.insert("arxiv_id".into(), id.into());
        meta.insert("yymm".into(), yymm.into());
    }
    meta.insert("files".into(), document.files.into());
    for (key, names) in [("missing", document.missing), ("latin1", latin1)] {
        if !names.is_empty() {
            meta.insert(key.into(), names.into());
        }
    }
    Ok(Record { id, text: document.text, meta })
}

/// The arXiv id that a file name stands for, and its year and month: `1202.3665`, `1202.3665v2` and `astro-ph0001001`
/// (`astro-ph/0001001`), as arXiv's identifier scheme has it (since April 2007 `YYMM.number`, before `archive/YYMMnumber`).
fn arxiv_id(stem: &str) -> Option<(String, String)> {
    let number = stem.trim_start_matches(|c: char| c.is_ascii_alphabetic() || c == '-' || c == '.');
    let archive = &stem[..stem.len() - number.len()];
    let number = number.split_once('v').map_or(number, |(n, _)| n);
    let digits = number.bytes().filter(u8::is_ascii_digit).count();
    let yymm = number.get(..4).filter(|y| y.bytes().all(|b| b.is_ascii_digit()))?;
    match (archive, number.get(4..5)) {
        ("", Some(".")) if matches!(digits, 8 | 9) && digits + 1 == number.len() => Some((number.into(), yymm.into())),
        (archive, Some(_)) if !archive.is_empty() && digits == 7 && number.len() == 7 => {
            Some((format!("{archive}/{number}"), yymm.into()))
        }
        _ => None,
    }
}

/// The entries of a folder, sorted, without hidden ones.
fn list(path: &Path) -> Result<Vec<std::path::PathBuf>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(Error::io("list", path))? {
        let entry = entry.map_err(Error::io("list", path))?;
        if !entry.file_name().to_string_lossy().starts_with('.') {
            names.push(entry.path());
        }
    }
    names.sort();
    Ok(names)
}

/// The text files of a folder; the inner error is a paper's.
#[allow(clippy::type_complexity)] // two results: of the disk and of the paper
fn folder(root: &Path, options: &Options) -> Result<Result<(Vec<TexFile>, Vec<String>), String>> {
    let mut files = Files::new(options);
    let mut folders = vec![(root.to_path_buf(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        let mut inner = Vec::new();
        for path in list(&folder)? {
            let kind = fs::symlink_metadata(&path).map_err(Error::io("read", &path))?.file_type();
            let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().replace('\\', "/");
            if kind.is_dir() && depth < MAX_DEPTH {
                inner.push((path, depth + 1));
            } else if kind.is_file() && files.wants(&name) {
                let file = File::open(&path).map_err(Error::io("open", &path))?;
                if let Err(reason) = files.add(&name, file) {
                    return Ok(Err(reason));
                }
            }
        }
        folders.extend(inner.into_iter().rev());
    }
    Ok(Ok((files.files, files.latin1)))
}
