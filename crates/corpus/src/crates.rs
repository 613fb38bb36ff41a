//! The quickstart's corpus: source code and prose that is already on the disk, with its licence.
//!
//! 1. [`cargo_home`], [`Corpus::from_registry`]: the sources of the crates that Cargo has downloaded, one version a crate.
//! 2. [`license_allowed`]: crates that may be used under MIT, Apache-2.0, BSD-2-Clause, BSD-3-Clause or ISC.
//! 3. [`reject`]: files that people wrote, rather than generators, minifiers or dumps of tables.
//! 4. Exact duplicates (white space aside) are kept once.
//! 5. Whole families of crates are held out for validation, so that no near-copy leaks. Which ones, and which files of a large crate,
//!    hashes of names say: a crate is on the same side on every machine, whatever else is there.
//!
//! [`Corpus::from_dir`] does the same for any folder of text (steps 4 and 5). The result depends only on the names and
//! contents of the files, never on the order in which a disk lists them.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::Serialize;

use self::files::{Walked, cut, entries, relative, walk};
use self::registry::{Crate, families, version_key};
use self::split::{Member, Usable, split, split_tails};
use crate::error::{Error, Result};

mod files;
mod filter;
mod registry;
mod split;

pub use filter::{license_allowed, reject};
pub use registry::{Versions, locked};

/// How much to take and how much of it to hold out.
#[derive(Debug, Clone)]
pub struct CorpusOptions {
    /// At most this many bytes in all; files are left out beyond it, chosen by hash.
    pub max_bytes: u64,
    /// The share of the families of crates (or of the files of a folder) that is held out for validation, chosen by hash.
    pub valid_share: f64,
    /// At most this many bytes of one crate (or file) are held out, so that none dominates.
    pub valid_cap: u64,
    /// At most this many bytes of one crate (or file) are trained on.
    pub train_cap: u64,
    /// Only these crates of the registry.
    pub only: Option<Versions>,
}

impl Default for CorpusOptions {
    fn default() -> Self {
        Self { max_bytes: u64::MAX, valid_share: 0.05, valid_cap: u64::MAX, train_cap: u64::MAX, only: None }
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
    /// Crate versions left out because a newer one is there.
    pub older_versions: usize,
    /// Crate versions left out because they are not among those asked for.
    pub others: usize,
    /// Folders of the registry without a manifest that can be read.
    pub no_manifest: usize,
    /// Crates dropped by their licence expression (`none` where there is no expression).
    pub dropped_licenses: BTreeMap<String, usize>,
    /// Files dropped, by reason.
    pub dropped: BTreeMap<&'static str, Tally>,
    /// Hidden files and folders, not looked at.
    pub hidden: u64,
    /// Links, pipes and devices, not followed or read.
    pub special: u64,
    /// Folders that cannot be read.
    pub unreadable: u64,
    /// What is trained on.
    pub train: Tally,
    /// What is held out.
    pub valid: Tally,
    /// The crates (or files) that are held out.
    pub held_out: Vec<String>,
}

impl Summary {
    fn passed_over(&mut self, walked: &Walked) {
        self.hidden += walked.hidden;
        self.special += walked.special;
        self.unreadable += walked.unreadable;
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mb = |bytes: u64| bytes as f64 / 1e6;
        if self.crates_seen > 0 {
            let licenses: usize = self.dropped_licenses.values().sum();
            write!(f, "crates    {} found, {} used", self.crates_seen, self.crates_kept)?;
            let left_out = [
                (self.others, "not of this build"),
                (self.older_versions, "older versions"),
                (licenses, "under other licences"),
                (self.no_manifest, "without a readable manifest"),
            ];
            for (count, why) in left_out.into_iter().filter(|(count, _)| *count > 0) {
                write!(f, ", {count} {why}")?;
            }
            writeln!(f)?;
        }
        writeln!(f, "train     {:6} files {:8.2} MB", self.train.files, mb(self.train.bytes))?;
        writeln!(f, "held out  {:6} files {:8.2} MB: {}", self.valid.files, mb(self.valid.bytes), abridged(&self.held_out))?;
        for (reason, tally) in &self.dropped {
            writeln!(f, "left out  {:6} files {:8.2} MB: {reason}", tally.files, mb(tally.bytes))?;
        }
        let passed = [
            (self.hidden, "hidden files and folders"),
            (self.special, "links, pipes and devices"),
            (self.unreadable, "folders that cannot be read"),
        ];
        for (count, what) in passed.into_iter().filter(|(count, _)| *count > 0) {
            writeln!(f, "left out  {count:6} {what}")?;
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
        let indices = entries(&root).map_err(|_| nothing("sources of crates"))?;
        for index in indices.into_iter().filter(|path| path.is_dir()) {
            let folders = entries(&index).map_err(Error::io("read", &index))?;
            let found: Vec<_> = folders.par_iter().filter(|path| path.is_dir()).map(|dir| Crate::read(dir)).collect();
            summary.looked_in.push(index);
            for krate in found {
                let Some(krate) = krate else {
                    summary.no_manifest += 1;
                    continue;
                };
                summary.crates_seen += 1;
                if let Some(only) = &options.only
                    && !only.get(&krate.name).is_some_and(|versions| versions.contains(&krate.version))
                {
                    summary.others += 1;
                    continue;
                }
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

        let scanned: Vec<_> = kept.par_iter().map(Crate::scan).collect();
        let mut members = Vec::new();
        for ((krate, (files, walked, other)), family) in kept.iter().zip(scanned).zip(families(&kept)) {
            summary.passed_over(&walked);
            if other.files > 0 {
                let tally = summary.dropped.entry("other kinds of files").or_default();
                (tally.files, tally.bytes) = (tally.files + other.files, tally.bytes + other.bytes);
            }
            let (source, license) = (format!("{}-{}", krate.name, krate.version), &krate.license);
            let mut usable = Vec::new();
            for file in files {
                match file.verdict {
                    Ok(hash) => {
                        let doc = Doc { path: file.path, span: 0..file.bytes, source: source.clone(), license: license.clone() };
                        usable.push(Usable { name: format!("{}/{}", krate.name, file.name), hash, docs: vec![doc] });
                    }
                    Err(reason) => summary.dropped.entry(reason).or_default().add(file.bytes),
                }
            }
            members.push(Member { family, files: usable });
        }
        let (train, valid) = split(members, options, 3, &mut summary)?.ok_or_else(|| nothing("four usable crates"))?;
        summary.held_out = valid.iter().map(|doc| doc.source.clone()).collect();
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
        let walked = match dir.is_dir() {
            true => walk(dir),
            false => Walked { files: vec![dir.to_path_buf()], ..Walked::default() },
        };
        summary.passed_over(&walked);
        let pieces: Vec<_> = walked.files.par_iter().map(|path| (path, cut(path))).collect();
        let (mut seen, mut members, mut total) = (HashSet::new(), Vec::new(), 0);
        for (path, result) in pieces {
            let bytes = fs::metadata(path).map_or(0, |meta| meta.len());
            let reason = match result {
                Ok((_, spans)) if spans.is_empty() => "empty",
                Ok((hash, _)) if !seen.insert(hash) => "duplicate",
                Ok((hash, spans)) => {
                    let name = relative(path, dir);
                    let doc = |span| Doc { path: path.clone(), span, source: name.clone(), license: String::new() };
                    let docs: Vec<Doc> = spans.into_iter().map(doc).collect();
                    total += docs.iter().map(Doc::bytes).sum::<u64>();
                    members.push(Member { family: name.clone(), files: vec![Usable { name, hash, docs }] });
                    continue;
                }
                Err(reason) => reason,
            };
            summary.dropped.entry(reason).or_default().add(bytes);
        }
        if total < 4096 {
            let what = format!("text to train on (found {total} bytes in {} files, at least 4096 bytes wanted)", members.len());
            let hint = "pass --input DIR with a folder of UTF-8 text files".into();
            return Err(Error::Nothing { what, path: dir.into(), hint });
        }
        let mut of_files = summary.clone();
        let whole_files = split(members.clone(), options, 1, &mut of_files)?.filter(|(train, valid)| {
            let [train, valid] = [train, valid].map(|docs| docs.iter().map(Doc::bytes).sum::<u64>());
            valid <= (train + valid) / 10
        });
        let (train, valid) = match whole_files {
            Some((train, valid)) => {
                of_files.held_out = valid.iter().map(|doc| doc.source.clone()).collect();
                summary = of_files;
                (train, valid)
            }
            None => {
                summary.held_out = vec!["the last 5 % of each file".into()];
                split_tails(members, options, &mut summary)?
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
        summary.held_out.sort();
        summary.held_out.dedup();
        Self { train, valid, summary }
    }
}
