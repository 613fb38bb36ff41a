//! Papers from arXiv's bulk tars, from single sources and from folders, in bounded memory.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

use encoding_rs::Encoding;
use serde_json::Map;

use super::{
    FILE_SEPARATOR, Options,
    include::{self, Document, TexFile},
    notes::{self, Notes},
};
use crate::{
    Record, Rejected, Sink, charset,
    error::{Error, Result},
    sources::Skipped,
    unpack,
};

/// Bytes of a tar header.
const BLOCK: usize = 512;
/// Folders inside each other, at most.
const MAX_DEPTH: usize = 16;
/// Endings of names that hold no LaTeX document, whatever is in them.
const OTHERS: [&str; 34] = [
    "eps", "ps", "pdf", "png", "jpg", "jpeg", "gif", "svg", "tif", "tiff", "bmp", "sty", "cls", "clo", "bst", "bib", "bbl",
    "bbx", "cbx", "aux", "log", "out", "toc", "lof", "lot", "fd", "tfm", "pfb", "ttf", "dat", "csv", "zip", "gz", "mp4",
];

/// Reads the papers of `path`, in their order there: a bulk tar (members `YYMM/ID.gz`, each a gzipped tar or one gzipped file), one
/// paper as a tar or a LaTeX file, packed or not, under whatever name, or a folder. A folder with LaTeX files in it and no archives is
/// one paper with all that is below; in any other, each archive and each folder below is read.
///
/// A record's id is the paper's arXiv id (`1202.3665`, `astro-ph/0001001`) where the name is one, else the name (of a folder in a folder,
/// its path). Its meta: `arxiv_id`, `yymm`, `files` (those in the text, the main one first), and where there is something to tell
/// `missing` (what `\input` names and is not there), `latin1` (files that are not UTF-8 and say no other character set) and `charset`
/// (the one that the paper says it is in).
///
/// # Errors
/// If `path` cannot be opened or listed. A paper that cannot be read goes to the sink as rejected; a damaged tar's readable
/// members are read.
pub fn read(path: &Path, options: &Options, sink: &mut Sink) -> Result<Skipped> {
    let mut skipped = Skipped::new();
    if path.is_dir() {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let found = tree(path, &name, 0, options, sink, &mut skipped)?;
        if !found {
            sink(Err(Rejected { place: name, reason: "no LaTeX source in the folder".into() }))?;
        }
    } else {
        read_file(path, options, sink)?;
    }
    Ok(skipped)
}

/// Reads a folder; whether there was a paper in it.
fn tree(path: &Path, name: &str, depth: usize, options: &Options, sink: &mut Sink, skipped: &mut Skipped) -> Result<bool> {
    let (mut folders, mut archives, mut texts, mut others) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for entry in list(path)? {
        let kind = fs::symlink_metadata(&entry).map_err(Error::io("read", &entry))?.file_type();
        let file = entry.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        if kind.is_dir() {
            folders.push(entry);
        } else if !entry.is_file() {
            others += 1;
        } else if is_archive(&file) {
            archives.push(entry);
        } else if include::is_tex(&file) {
            texts.push(entry);
        } else {
            others += 1;
        }
    }
    if archives.is_empty() && !texts.is_empty() {
        sink(record(name, folder(path, options)?.and_then(assemble)))?;
        return Ok(true);
    }
    let mut found = !archives.is_empty();
    archives.extend(texts);
    archives.sort();
    for archive in archives {
        read_file(&archive, options, sink)?;
    }
    if others > 0 {
        *skipped.entry("no_paper_by_name").or_default() += others;
    }
    for inner in folders {
        let below = inner.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // A paper's own folder has its id; another's name is its path.
        let inner_name = if depth == 0 || arxiv_id(stem_of(&below)).is_some() { below } else { format!("{name}/{below}") };
        if depth < MAX_DEPTH {
            found |= tree(&inner, &inner_name, depth + 1, options, sink, skipped)?;
        }
    }
    Ok(found)
}

/// Whether a file is an archive of a paper, or of papers, by its name: packed figures are none.
fn is_archive(name: &str) -> bool {
    let plain = unpack::without_packing(name);
    let packed = plain.len() < name.len() || name.ends_with(".tgz");
    let picture = plain.rsplit_once('.').is_some_and(|(_, e)| OTHERS.contains(&e) && e != "gz");
    plain.ends_with(".tar") || (packed && !picture) || arxiv_id(name).is_some()
}

fn read_file(path: &Path, options: &Options, sink: &mut Sink) -> Result<()> {
    let open = || -> Result<_> {
        let file = File::open(path).map_err(Error::io("open", path))?;
        Ok(BufReader::with_capacity(1 << 16, file))
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if is_bulk(open()?, &name) {
        return match unpack::unpack(open()?) {
            Ok(tar) => bulk(path, tar, options, sink),
            Err(e) => sink(Err(Rejected { place: path.display().to_string(), reason: format!("damaged: {e}") })),
        };
    }
    sink(record(&name, member(&name, open()?, options)))
}

/// Whether a file is a tar of papers, and not of one paper's files: its first member is packed, or a PDF. Of a damaged one the name says it.
fn is_bulk(file: impl BufRead, name: &str) -> bool {
    let named = unpack::without_packing(&name.to_ascii_lowercase()).ends_with(".tar");
    let Ok(tar) = unpack::unpack(file) else { return named };
    let mut archive = tar::Archive::new(tar);
    let Ok(entries) = archive.entries() else { return named };
    // Beside papers a bulk tar may have lists and notes.
    for entry in entries.take(if named { 8 } else { 2 }) {
        let Ok(mut entry) = entry else { return named };
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let name = String::from_utf8_lossy(&entry.path_bytes()).to_ascii_lowercase();
        let stem = stem_of(name.rsplit('/').next().unwrap_or(&name)).to_owned();
        let mut start = [0; 5];
        let got = entry.read(&mut start).unwrap_or(0);
        let packed = unpack::is_packed(&start[..got]) || start.starts_with(b"%PDF");
        if packed && (is_archive(&name) || name.ends_with(".pdf")) && (named || arxiv_id(&stem).is_some()) {
            return true;
        }
    }
    false
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
fn member(name: &str, mut file: impl BufRead, options: &Options) -> Result<Paper, String> {
    let lower = name.to_ascii_lowercase();
    let last = lower.rsplit('/').next().unwrap_or(&lower);
    let start = file.fill_buf().map_err(|e| format!("damaged: {e}"))?;
    let packed = unpack::is_packed(start);
    if !(packed || is_archive(last) || last.ends_with(".pdf") || include::is_tex(last)) {
        return Err("neither an archive nor a .tex file".into());
    }
    if !packed && last.ends_with(".pdf") {
        return Err("only a PDF, no LaTeX source".into());
    }
    let plain = unpack::unpack(file).map_err(|e| format!("damaged: {e}"))?;
    assemble(source(name, Bounded::new(plain, options.max_inflated), options)?)
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

/// The text files of a paper's source, a tar or one file.
fn source<'o>(name: &str, mut file: impl Read, options: &'o Options) -> Result<Files<'o>, String> {
    let mut head = Vec::with_capacity(BLOCK);
    (&mut file).take(BLOCK as u64).read_to_end(&mut head).map_err(|e| format!("damaged: {e}"))?;
    let is_tar = is_tar(&head);
    let whole = io::Cursor::new(head).chain(file);
    let mut files = Files::new(options);
    if !is_tar {
        let name = stem_of(Path::new(name).file_name().and_then(|n| n.to_str()).unwrap_or(name));
        files.add(&format!("{name}.tex"), whole)?;
        if let Some(what) = files.files.first().and_then(|(_, bytes)| other_kind(bytes)) {
            return Err(format!("{what}, no LaTeX source"));
        }
        return Ok(files);
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
    Ok(files)
}

/// What a source of one file is, if it is not LaTeX.
fn other_kind(bytes: &[u8]) -> Option<&'static str> {
    let start = bytes.trim_ascii_start();
    let first = start.split(|b| matches!(b, b'\n' | b'\r')).next().unwrap_or_default();
    let has = |mark: &str| memchr::memmem::find(bytes, mark.as_bytes()).is_some();
    let latex = || ["\\document", "\\begin{", "\\section", "\\input", "\\bye", "\\magnification"].iter().any(|mark| has(mark));
    match start {
        _ if start.starts_with(b"%PDF") => Some("only a PDF"),
        // Other magic comments (`%!TEX root`, `%!BIB`) are LaTeX.
        _ if start.starts_with(b"%!PS") || (first.trim_ascii_end() == b"%!" && !latex()) => Some("only PostScript"),
        _ if start.starts_with(b"<") && !latex() => Some("only HTML"),
        _ if start.starts_with(b"%auto-ignore") => Some("withdrawn"),
        _ => None,
    }
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
    files: Vec<(String, Vec<u8>)>,
    notes: Notes,
    left: u64,
}

/// Decoded files, the names of those in Latin-1, the set of the others, and what arXiv was told of them.
type Decoded = (Vec<TexFile>, Vec<String>, Option<&'static str>, Notes);

impl<'o> Files<'o> {
    fn new(options: &'o Options) -> Self {
        Self { options, files: Vec::new(), notes: Notes::default(), left: options.max_tex }
    }

    fn wants(&mut self, name: &str) -> bool {
        if self.options.rp_compat {
            return name.ends_with(".tex");
        }
        let file = name.rsplit('/').next().unwrap_or(name).to_ascii_lowercase();
        if let Some(stem) = name.strip_suffix(".bbl") {
            self.notes.compiled.push(stem.to_owned());
        }
        let extension = file.rsplit_once('.').map_or("", |(_, e)| e);
        // LaTeX is told by content where the name says nothing.
        include::is_tex(&file) || include::TEXT.contains(&extension) || notes::is_readme(&file) || !OTHERS.contains(&extension)
    }

    fn add(&mut self, name: &str, file: impl Read) -> Result<(), String> {
        let file_name = name.rsplit('/').next().unwrap_or(name).to_ascii_lowercase();
        let extension = file_name.rsplit_once('.').map_or("", |(_, e)| e);
        let known = self.options.rp_compat || include::is_tex(&file_name) || include::TEXT.contains(&extension);
        let mut bytes = Vec::new();
        file.take(self.left + 1).read_to_end(&mut bytes).map_err(|e| format!("damaged: {e}"))?;
        if notes::is_readme(&file_name) {
            self.notes.read(&file_name, &String::from_utf8_lossy(&bytes));
            return Ok(());
        }
        // A large file that is not LaTeX by its name counts only if it is by its content.
        if !known && !is_document(&bytes) {
            return Ok(());
        }
        self.left = self
            .left
            .checked_sub(bytes.len() as u64)
            .ok_or_else(|| format!("more than {} bytes of LaTeX", self.options.max_tex))?;
        self.files.push((name.to_owned(), bytes));
        Ok(())
    }

    /// The files as text, all in the character set that one of them says.
    fn decode(self) -> Result<Decoded, String> {
        let Self { options, files, notes, .. } = self;
        let declared = files.iter().find_map(|(_, bytes)| notes::declared_charset(bytes));
        let (mut all, mut latin1, mut charset) = (Vec::with_capacity(files.len()), Vec::new(), None);
        for (name, bytes) in files {
            if options.rp_compat || options.strict_utf8 {
                match String::from_utf8(bytes) {
                    Ok(text) if options.rp_compat => all.push(TexFile { name, text }),
                    Ok(text) if !text.contains('\0') => {
                        let text = text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text);
                        all.push(TexFile { name, text });
                    }
                    Ok(_) => {}
                    Err(_) => return Err(format!("{name} is not UTF-8")),
                }
                continue;
            }
            // Something else under LaTeX's name is left out.
            let own = |bytes: &[u8]| -> Option<&'static Encoding> { notes::declared_charset(bytes).or(declared) };
            let Some((text, set)) = charset::decode(bytes, own) else { continue };
            match set {
                None => {}
                Some("windows-1252") if declared.is_none() => latin1.push(name.clone()),
                Some(set) => charset = Some(set),
            }
            all.push(TexFile { name, text });
        }
        Ok((all, latin1, charset, notes))
    }
}

/// Whether bytes are a LaTeX document, or a plain TeX one, whatever the file's name is.
fn is_document(bytes: &[u8]) -> bool {
    let has = |mark: &str| memchr::memmem::find(bytes, mark.as_bytes()).is_some();
    !bytes.contains(&0)
        && (has("\\documentclass")
            || has("\\documentstyle")
            || has("\\begin{document}")
            || (has("\\magnification") && has("\\bye")))
}

/// A paper that was read.
struct Paper {
    document: Document,
    latin1: Vec<String>,
    /// The set that the other files are in.
    charset: Option<&'static str>,
}

fn assemble(files: Files<'_>) -> Result<Paper, String> {
    let options = files.options;
    let (mut files, latin1, charset, notes) = files.decode()?;
    if options.rp_compat {
        let names = files.iter().map(|f| f.name.clone()).collect();
        let texts: Vec<_> = files.into_iter().map(|f| f.text.replace(FILE_SEPARATOR, "")).collect();
        let text = texts.join(&FILE_SEPARATOR.to_string());
        return Ok(Paper { document: Document { text, files: names, missing: Vec::new() }, latin1, charset });
    }
    for file in &mut files {
        if file.text.contains('\r') {
            file.text = file.text.replace("\r\n", "\n").replace('\r', "\n");
        }
    }
    Ok(Paper { document: include::assemble(&files, &notes, options.max_tex)?, latin1, charset })
}

/// What the sink gets of the paper in the member or file `name`.
fn record(name: &str, paper: Result<Paper, String>) -> Result<Record, Rejected> {
    let stem = name.rsplit('/').next().unwrap_or(name);
    let stem = stem_of(stem);
    let known = arxiv_id(stem);
    let id = known.as_ref().map_or_else(|| stem.to_owned(), |(id, _)| id.clone());
    let Paper { document, latin1, charset } = paper.map_err(|reason| Rejected { place: id.clone(), reason })?;
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
    if let Some(charset) = charset {
        meta.insert("charset".into(), charset.into());
    }
    Ok(Record { id, text: document.text, meta })
}

/// A file's name without the endings of sources and packings.
fn stem_of(name: &str) -> &str {
    let lower = name.to_ascii_lowercase();
    let mut length = lower.len();
    // In ASCII lower and upper case have the same length.
    while let Some(rest) =
        [".gz", ".bz2", ".xz", ".zst", ".tgz", ".tar", ".pdf", ".tex"].iter().find_map(|e| lower[..length].strip_suffix(e))
    {
        length = rest.len();
    }
    if length == 0 { name } else { &name[..length] }
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
fn list(path: &Path) -> Result<Vec<PathBuf>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(Error::io("list", path))? {
        let entry = entry.map_err(Error::io("list", path))?;
        if entry.file_name() == crate::walk::BUILD {
            return Ok(Vec::new());
        }
        if !entry.file_name().to_string_lossy().starts_with('.') {
            names.push(entry.path());
        }
    }
    names.sort();
    Ok(names)
}

/// The text files of a folder; the inner error is a paper's.
fn folder<'o>(root: &Path, options: &'o Options) -> Result<Result<Files<'o>, String>> {
    let mut files = Files::new(options);
    let mut folders = vec![(root.to_path_buf(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        let mut inner = Vec::new();
        for path in list(&folder)? {
            let kind = fs::symlink_metadata(&path).map_err(Error::io("read", &path))?.file_type();
            let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().replace('\\', "/");
            if kind.is_dir() && depth < MAX_DEPTH {
                inner.push((path, depth + 1));
            } else if path.is_file() && files.wants(&name) {
                let file = File::open(&path).map_err(Error::io("open", &path))?;
                if let Err(reason) = files.add(&name, file) {
                    return Ok(Err(reason));
                }
            }
        }
        folders.extend(inner.into_iter().rev());
    }
    Ok(Ok(files))
}
