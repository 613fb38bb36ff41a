//! The quickstart's corpus: source code and prose that is already on the disk, with its licence.
//!
//! 1. [`cargo_home`], [`Corpus::from_registry`]: the sources of the crates that Cargo has downloaded, one version a crate.
//! 2. [`license_allowed`]: crates that may be used under MIT, Apache-2.0, BSD-2-Clause, BSD-3-Clause or ISC.
//! 3. [`reject`]: files that people wrote, rather than generators, minifiers or dumps of tables.
//! 4. Exact duplicates (white space aside) are kept once.
//! 5. Whole families of crates are held out for validation, so that no near-copy leaks.
//!
//! [`Corpus::from_dir`] does the same for any folder of text (steps 4 and 5). The result depends only on the names and
//! contents of the files, never on the order in which a disk lists them.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::Serialize;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::error::{Error, Result};

mod filter;

pub use filter::{license_allowed, reject};

/// How much to take and how much of it to hold out.
#[derive(Debug, Clone)]
pub struct CorpusOptions {
    /// At most about this many bytes in all; whole crates (or files) are left out beyond it, chosen by hash.
    pub max_bytes: u64,
    /// The share of the bytes that is held out for validation.
    pub valid_share: f64,
}

impl Default for CorpusOptions {
    fn default() -> Self {
        Self { max_bytes: u64::MAX, valid_share: 0.03 }
    }
}

/// One document: a file, or a span of a large one. The text stays on the disk until [`Doc::text`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doc {
    /// The file.
    pub path: PathBuf,
    /// The bytes of the file that are this document.
    pub span: Range<u64>,
    /// The crate with its version, or the file's name inside the folder.
    pub source: String,
    /// The crate's licence expression; empty for a folder of the user's.
    pub license: String,
}

impl Doc {
    /// Length in bytes.
    pub fn bytes(&self) -> u64 {
        self.span.end - self.span.start
    }

    /// Reads the text.
    ///
    /// # Errors
    /// The file is gone, is shorter, or is no longer UTF-8 since the corpus was collected.
    pub fn text(&self) -> Result<String> {
        let mut file = File::open(&self.path).map_err(Error::io("open", &self.path))?;
        file.seek(SeekFrom::Start(self.span.start)).map_err(Error::io("read", &self.path))?;
        let mut bytes = Vec::new();
        file.take(self.bytes()).read_to_end(&mut bytes).map_err(Error::io("read", &self.path))?;
        let changed = |problem: &str| Error::bad_file("text", &self.path, problem, "it changed while it was in use; start again");
        if bytes.len() as u64 != self.bytes() {
            return Err(changed(&format!(
                "expected bytes {} to {}, got {} of them",
                self.span.start,
                self.span.end,
                bytes.len()
            )));
        }
        String::from_utf8(bytes).map_err(|_| changed("expected UTF-8"))
    }
}

/// Files and bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// How many files (documents, for spans of large files).
    pub files: u64,
    /// How many bytes.
    pub bytes: u64,
}

impl Tally {
    fn add(&mut self, bytes: u64) {
        self.files += 1;
        self.bytes += bytes;
    }
}

/// What was found, kept and dropped, and why. Its `Display` is a short table.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Summary {
    /// The folders that were read.
    pub looked_in: Vec<PathBuf>,
    /// Crate versions on the disk; 0 for a folder of the user's.
    pub crates_seen: usize,
    /// Crates whose files were looked at.
    pub crates_kept: usize,
    /// Crate versions dropped because a newer one is there.
    pub older_versions: usize,
    /// Crates dropped by their licence expression (`none` where there is no expression).
    pub dropped_licenses: BTreeMap<String, usize>,
    /// Files dropped, by reason.
    pub dropped: BTreeMap<&'static str, Tally>,
    /// What is trained on.
    pub train: Tally,
    /// What is held out.
    pub valid: Tally,
    /// The crates (or files) that are held out.
    pub held_out: Vec<String>,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mb = |bytes: u64| bytes as f64 / 1e6;
        if self.crates_seen > 0 {
            let licenses: usize = self.dropped_licenses.values().sum();
            let (seen, kept, old) = (self.crates_seen, self.crates_kept, self.older_versions);
            writeln!(f, "crates    {seen} found, {kept} kept, {old} older versions, {licenses} under other licences")?;
        }
        writeln!(f, "train     {:6} files {:8.2} MB", self.train.files, mb(self.train.bytes))?;
        writeln!(f, "held out  {:6} files {:8.2} MB: {}", self.valid.files, mb(self.valid.bytes), abridged(&self.held_out))?;
        for (reason, tally) in &self.dropped {
            writeln!(f, "dropped   {:6} files {:8.2} MB: {reason}", tally.files, mb(tally.bytes))?;
        }
        Ok(())
    }
}

/// The first few names of a list.
fn abridged(names: &[String]) -> String {
    let shown = names.iter().take(8).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > 8 { format!("{shown} and {} more", names.len() - 8) } else { shown }
}

/// Documents to train on, documents held out, and the account of both.
#[derive(Debug, Clone, Default)]
pub struct Corpus {
    /// Training documents, sorted by source and path.
    pub train: Vec<Doc>,
    /// Held-out documents, sorted by source and path.
    pub valid: Vec<Doc>,
    /// The account.
    pub summary: Summary,
}

/// Cargo's home: `CARGO_HOME`, or `.cargo` in the user's home folder. It need not exist.
///
/// # Errors
/// None of `CARGO_HOME`, `HOME` and `USERPROFILE` is set.
pub fn cargo_home() -> Result<PathBuf> {
    let var = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    var("CARGO_HOME").or_else(|| var("HOME").or_else(|| var("USERPROFILE")).map(|home| home.join(".cargo"))).ok_or_else(|| {
        Error::Nothing {
            what: "Cargo home (CARGO_HOME, HOME and USERPROFILE are not set)".into(),
            path: "~/.cargo".into(),
            hint: "pass --input DIR with any folder of text".into(),
        }
    })
}

impl Corpus {
    /// Collects the registry sources under `cargo_home` (`registry/src/*/crate-version/`).
    ///
    /// # Errors
    /// [`Error::Nothing`] if fewer than four crates with usable files are there.
    pub fn from_registry(cargo_home: &Path, options: &CorpusOptions) -> Result<Self> {
        let root = cargo_home.join("registry").join("src");
        let nothing = |what: &str| Error::Nothing {
            what: what.into(),
            path: root.join("*"),
            hint: "pass --input DIR with any folder of text (vendored or offline builds leave no registry sources)".into(),
        };
        let mut summary = Summary::default();
        let mut newest: BTreeMap<String, Crate> = BTreeMap::new();
        for index in entries(&root).into_iter().filter(|path| path.is_dir()) {
            let found: Vec<_> = entries(&index).par_iter().filter_map(|dir| Crate::read(dir)).collect();
            summary.looked_in.push(index);
            for krate in found {
                summary.crates_seen += 1;
                match newest.get(&krate.name) {
                    Some(other) if version_key(&other.version) >= version_key(&krate.version) => summary.older_versions += 1,
                    Some(_) => {
                        summary.older_versions += 1;
                        newest.insert(krate.name.clone(), krate);
                    }
                    None => drop(newest.insert(krate.name.clone(), krate)),
                }
            }
        }
        if newest.is_empty() {
            return Err(nothing("sources of crates"));
        }
        let (kept, dropped): (Vec<_>, Vec<_>) = newest.into_values().partition(|krate| license_allowed(&krate.license));
        for krate in dropped {
            let license = if krate.license.is_empty() { "none".into() } else { krate.license };
            *summary.dropped_licenses.entry(license).or_default() += 1;
        }
        summary.crates_kept = kept.len();

        let scanned: Vec<Vec<Scanned>> = kept.par_iter().map(Crate::scan).collect();
        let families = families(&kept);
        let mut seen = HashSet::new();
        let mut units: BTreeMap<&str, Unit> = BTreeMap::new();
        for ((krate, files), family) in kept.iter().zip(scanned).zip(&families) {
            let source = format!("{}-{}", krate.name, krate.version);
            let mut docs = Vec::new();
            for Scanned { path, bytes, verdict } in files {
                match verdict {
                    Ok(hash) if seen.insert(hash) => {
                        docs.push(Doc { path, span: 0..bytes, source: source.clone(), license: krate.license.clone() });
                    }
                    Ok(_) => summary.dropped.entry("duplicate").or_default().add(bytes),
                    Err(reason) => summary.dropped.entry(reason).or_default().add(bytes),
                }
            }
            if !docs.is_empty() {
                let unit = units.entry(family).or_default();
                unit.members += 1;
                unit.docs.extend(docs);
            }
        }
        let units = units.into_iter().map(|(name, unit)| (name.to_string(), unit)).collect();
        let (train, valid) = hold_out(units, options, 3, &mut summary).ok_or_else(|| nothing("four usable crates"))?;
        Ok(Self::finish(train, valid, summary))
    }

    /// Collects a folder of text (or one file): every file that is UTF-8 without NUL bytes, but for hidden ones. A large
    /// file becomes several documents of at most 1 MiB, cut after blank lines or lines. Whole files are held out, chosen by
    /// hash; where that leaves out nothing or more than a tenth (few files, or one big one), the last 5 % of each file.
    ///
    /// # Errors
    /// `dir` cannot be read, or [`Error::Nothing`] if it holds less than 4 KiB of text.
    pub fn from_dir(dir: &Path, options: &CorpusOptions) -> Result<Self> {
        fs::metadata(dir).map_err(Error::io("read", dir))?;
        let mut summary = Summary { looked_in: vec![dir.into()], ..Summary::default() };
        let files = if dir.is_dir() { walk(dir, |name| name.starts_with('.')) } else { vec![dir.to_path_buf()] };
        let pieces: Vec<_> = files.par_iter().map(|path| (path, cut(path))).collect();
        let mut seen = HashSet::new();
        let mut units = BTreeMap::new();
        for (path, result) in pieces {
            let bytes = fs::metadata(path).map_or(0, |meta| meta.len());
            let reason = match result {
                Ok((_, spans)) if spans.is_empty() => "empty",
                Ok((hash, _)) if !seen.insert(hash) => "duplicate",
                Ok((_, spans)) => {
                    let source = relative(path, dir);
                    let doc = |span| Doc { path: path.clone(), span, source: source.clone(), license: String::new() };
                    units.insert(source.clone(), Unit { members: 1, docs: spans.into_iter().map(doc).collect() });
                    continue;
                }
                Err(reason) => reason,
            };
            summary.dropped.entry(reason).or_default().add(bytes);
        }
        let total: u64 = units.values().map(Unit::bytes).sum();
        if total < 4096 {
            let what = format!("text to train on (found {total} bytes in {} files, at least 4096 bytes wanted)", units.len());
            let hint = "pass --input DIR with a folder of UTF-8 text files".into();
            return Err(Error::Nothing { what, path: dir.into(), hint });
        }
        let whole_files = hold_out(units.clone(), options, 1, &mut summary).filter(|(train, valid)| {
            let [train, valid] = [train, valid].map(|docs| docs.iter().map(Doc::bytes).sum::<u64>());
            train > 0 && valid > 0 && valid <= (train + valid) / 10
        });
        let (train, valid) = match whole_files {
            Some(split) => split,
            None => {
                summary.held_out = vec!["the last 5 % of each file".into()];
                summary.dropped.remove(OVER_CAP);
                hold_out_tails(units, options, &mut summary)?
            }
        };
        if train.is_empty() || valid.is_empty() {
            let hint = "raise the limit of bytes or pass more text".into();
            return Err(Error::Nothing { what: "text for both training and validation".into(), path: dir.into(), hint });
        }
        Ok(Self::finish(train, valid, summary))
    }

    fn finish(mut train: Vec<Doc>, mut valid: Vec<Doc>, mut summary: Summary) -> Self {
        for (docs, tally) in [(&mut train, &mut summary.train), (&mut valid, &mut summary.valid)] {
            docs.sort_by(|a, b| (&a.source, &a.path, a.span.start).cmp(&(&b.source, &b.path, b.span.start)));
            docs.iter().for_each(|doc| tally.add(doc.bytes()));
        }
        Self { train, valid, summary }
    }
}

/// A crate's folder in the registry.
struct Crate {
    dir: PathBuf,
    name: String,
    version: String,
    license: String,
    repository: String,
    /// It carries a C library: `links` in its manifest, or a name that says so.
    native: bool,
}

impl Crate {
    /// `None` where there is no readable manifest with a name and a version.
    fn read(dir: &Path) -> Option<Self> {
        let manifest: toml::Table = fs::read_to_string(dir.join("Cargo.toml")).ok()?.parse().ok()?;
        let package = manifest.get("package")?.as_table()?;
        let text = |key: &str| package.get(key).and_then(toml::Value::as_str).unwrap_or_default().trim().to_string();
        let (name, version) = (text("name"), text("version"));
        let native = package.contains_key("links") || ["-sys", "_sys", "-src"].iter().any(|end| name.ends_with(end));
        let (license, repository) = (text("license"), text("repository"));
        (!name.is_empty() && !version.is_empty()).then(|| Self { dir: dir.into(), name, version, license, repository, native })
    }

    /// Its source code and prose, each file with the hash of its content or the reason why it is dropped.
    fn scan(&self) -> Vec<Scanned> {
        let files = walk(&self.dir, |name| name.starts_with('.'));
        files.into_iter().filter_map(|path| self.scan_file(path)).collect()
    }

    /// `None` for what is neither source code nor prose by its name.
    fn scan_file(&self, path: PathBuf) -> Option<Scanned> {
        let name = relative(&path, &self.dir);
        let extension = path.extension()?.to_str()?.to_ascii_lowercase();
        if !filter::EXTENSIONS.contains(&extension.as_str()) {
            return None;
        }
        let bytes = fs::metadata(&path).map_or(0, |meta| meta.len());
        // The crate's own code around a C library is Rust; the rest belongs to the library, under a licence of its own.
        let own = extension == "rs" || extension == "md" && !name.contains('/');
        let verdict = if self.native && !own {
            Err("vendored")
        } else if filter::BINDINGS.contains(&self.name.as_str()) {
            Err("declarations")
        } else if bytes > filter::MAX_FILE {
            Err("too big")
        } else {
            fs::read(&path).map_err(|_| "unreadable").and_then(|content| match reject(&name, &content) {
                Some(reason) => Err(reason),
                None => Ok(filter::content_hash(&content)),
            })
        };
        Some(Scanned { path, bytes, verdict })
    }
}

struct Scanned {
    path: PathBuf,
    bytes: u64,
    verdict: Result<u128, &'static str>,
}

/// Orders versions: numbers by value, a release after its pre-releases. Build metadata does not count.
fn version_key(version: &str) -> (Vec<u64>, bool, &str) {
    let version = version.split('+').next().unwrap_or_default();
    let (numbers, pre) = version.split_once('-').unwrap_or((version, ""));
    (numbers.split('.').map(|number| number.parse().unwrap_or(0)).collect(), pre.is_empty(), pre)
}

/// A name of the family of each crate: crates of one repository, or with the same name up to the first `-` or `_`, are of
/// one family, and so are two families that share a crate.
fn families(crates: &[Crate]) -> Vec<String> {
    let mut parent: Vec<usize> = (0..crates.len()).collect();
    fn root(parent: &mut [usize], mut node: usize) -> usize {
        while parent[node] != node {
            parent[node] = parent[parent[node]];
            node = parent[node];
        }
        node
    }
    let mut first: BTreeMap<String, usize> = BTreeMap::new();
    for (index, krate) in crates.iter().enumerate() {
        let prefix = krate.name.split(['-', '_']).next().unwrap_or_default().to_ascii_lowercase();
        let mut keys = vec![prefix];
        keys.extend(repository_key(&krate.repository));
        for key in keys {
            let other = *first.entry(key).or_insert(index);
            let (a, b) = (root(&mut parent, index), root(&mut parent, other));
            // The smaller index wins: a family is named after its first crate.
            parent[a.max(b)] = a.min(b);
        }
    }
    (0..crates.len()).map(|index| crates[root(&mut parent, index)].name.clone()).collect()
}

/// `https://github.com/Owner/repo.git/tree/main/sub` -> `github.com/owner/repo`.
fn repository_key(url: &str) -> Option<String> {
    let url = url.to_ascii_lowercase();
    let (_, path) = url.split_once("://")?;
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).take(3).collect();
    (parts.len() == 3).then(|| parts.join("/").trim_end_matches(".git").to_string())
}

/// What is held out or trained on as a whole: a family of crates, or a file.
#[derive(Debug, Clone, Default)]
struct Unit {
    members: usize,
    docs: Vec<Doc>,
}

impl Unit {
    fn bytes(&self) -> u64 {
        self.docs.iter().map(Doc::bytes).sum()
    }
}

const OVER_CAP: &str = "over the limit of bytes";

/// Takes units in the order of the hash of their names: for validation until its share and `min_members` are there, then
/// for training until `max_bytes`. `None` if that leaves nothing to train on.
fn hold_out(
    units: BTreeMap<String, Unit>,
    options: &CorpusOptions,
    min_members: usize,
    summary: &mut Summary,
) -> Option<(Vec<Doc>, Vec<Doc>)> {
    let total: u64 = units.values().map(Unit::bytes).sum();
    let budget = total.min(options.max_bytes);
    let target = (budget as f64 * options.valid_share) as u64;
    let mut order: Vec<(u64, String, Unit)> =
        units.into_iter().map(|(name, unit)| (xxh3_64(name.as_bytes()), name, unit)).collect();
    order.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));

    let (mut held, mut bytes, mut members) = (Vec::new(), 0, 0);
    let mut hold = |unit: Unit, bytes: &mut u64, members: &mut usize| {
        *bytes += unit.bytes();
        *members += unit.members;
        held.extend(unit.docs);
    };
    // No single unit may be more than a third of the validation set: it should speak for many.
    let mut rest = Vec::new();
    for (_, name, unit) in order {
        let wanted = bytes < target && unit.bytes() <= (target / 3).max(1);
        if wanted { hold(unit, &mut bytes, &mut members) } else { rest.push((name, unit)) }
    }
    // A small corpus: the smallest units then, however large.
    while members < min_members && rest.len() > 1 {
        let (index, _) = rest.iter().enumerate().min_by_key(|(_, (_, unit))| unit.bytes())?;
        hold(rest.remove(index).1, &mut bytes, &mut members);
    }
    let mut train: Vec<Doc> = Vec::new();
    for (_, unit) in rest {
        // The first unit is taken even if it alone is over the limit, but no more of it than the limit allows.
        let fits = bytes + unit.bytes() <= budget;
        let partly = train.is_empty() && !fits;
        for doc in unit.docs {
            if fits || partly && bytes + doc.bytes() <= budget {
                bytes += doc.bytes();
                train.push(doc);
            } else {
                summary.dropped.entry(OVER_CAP).or_default().add(doc.bytes());
            }
        }
    }
    let mut sources: Vec<String> = held.iter().map(|doc| doc.source.clone()).collect();
    sources.sort();
    sources.dedup();
    summary.held_out = sources;
    (members >= min_members && !train.is_empty()).then_some((train, held))
}

/// Holds out the last 5 % of each file, cut after a line where there is one; files up to `max_bytes`, in order of name.
fn hold_out_tails(units: BTreeMap<String, Unit>, options: &CorpusOptions, summary: &mut Summary) -> Result<(Vec<Doc>, Vec<Doc>)> {
    let (mut train, mut valid, mut left) = (Vec::new(), Vec::new(), options.max_bytes);
    for unit in units.into_values() {
        let mut docs = Vec::new();
        for doc in unit.docs {
            if doc.bytes() <= left {
                left -= doc.bytes();
                docs.push(doc);
            } else {
                summary.dropped.entry(OVER_CAP).or_default().add(doc.bytes());
            }
        }
        let bytes: u64 = docs.iter().map(Doc::bytes).sum();
        let mut head = bytes - bytes / 20;
        for doc in docs {
            if doc.bytes() <= head {
                head -= doc.bytes();
                train.push(doc);
            } else if head == 0 {
                valid.push(doc);
            } else {
                let text = doc.text()?;
                let at = doc.span.start + line_end(text.as_bytes(), head as usize) as u64;
                train.push(Doc { span: doc.span.start..at, ..doc.clone() });
                valid.push(Doc { span: at..doc.span.end, ..doc });
                head = 0;
            }
        }
    }
    train.retain(|doc| doc.bytes() > 0);
    valid.retain(|doc| doc.bytes() > 0);
    Ok((train, valid))
}

/// The end of the last paragraph, line or (in one endless line) character at or before `at`.
fn line_end(text: &[u8], at: usize) -> usize {
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
fn cut(path: &Path) -> Result<(u128, Vec<Range<u64>>), &'static str> {
    const PIECE: usize = 1 << 20;
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

/// The entries of a folder, sorted; none where it cannot be read.
fn entries(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// All files under a folder, sorted by path; links are not followed, so there are no loops.
fn walk(dir: &Path, skip: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let (mut files, mut folders) = (Vec::new(), vec![dir.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for path in entries(&folder) {
            let skipped = path.file_name().and_then(|name| name.to_str()).is_none_or(&skip);
            match fs::symlink_metadata(&path) {
                Ok(meta) if !skipped && meta.is_dir() => folders.push(path),
                Ok(meta) if !skipped && meta.is_file() => files.push(path),
                _ => {}
            }
        }
    }
    files.sort();
    files
}

/// The path below `base`, with `/` on every system; the file's name if that is `base` itself.
fn relative(path: &Path, base: &Path) -> String {
    let below = path.strip_prefix(base).ok().filter(|below| !below.as_os_str().is_empty());
    let below = below.unwrap_or_else(|| Path::new(path.file_name().unwrap_or_default()));
    below.components().map(|part| part.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/")
}
