//! Files of projects: from source trees, JSON lines and Parquet.

use std::{
    fs::{self, File},
    io::{BufRead, Read},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    super::Skipped,
    licence::{self, Detected},
};
use crate::{
    Record, Rejected, Sink, charset,
    error::{Error, Result},
    json, rows, unpack,
};

/// What of a dataset is read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReadOptions {
    /// Bytes. Larger files are left out: they are data more often than not.
    pub max_file: u64,
    /// Only projects under MIT, BSD and Apache licences. Without it, all are read, and `licence` in the metadata says
    /// `unknown` where none of these was found.
    pub check_licence: bool,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self { max_file: 1 << 20, check_licence: true }
    }
}

/// Bytes. A longer line is rejected.
const MAX_LINE: u64 = 64 << 20;
/// Bytes of a licence file or manifest that are looked at.
const MAX_LICENCE: u64 = 512 << 10;
/// Bytes in which a zero makes a file binary.
const PROBE: usize = 8 << 10;
/// Folders that nobody wrote for the project. Hidden ones are left out too.
const JUNK: [&str; 6] = ["node_modules", "bower_components", "__pycache__", "site-packages", "venv", "Pods"];
/// Files that make a folder a project.
const MANIFESTS: [&str; 11] = [
    "Cargo.toml",
    "package.json",
    "pyproject.toml",
    "setup.py",
    "composer.json",
    "go.mod",
    "pom.xml",
    "build.gradle",
    "CMakeLists.txt",
    "Gemfile",
    "Makefile",
];
/// The names that datasets have for one thing: BigQuery, its sample tables, RedPajama, The Stack, github-code.
const CONTENT: [&str; 3] = ["content", "text", "code"];
const PATH: [&str; 5] = ["path", "sample_path", "max_stars_repo_path", "file_path", "filepath"];
const REPO: [&str; 5] = ["repo_name", "sample_repo_name", "max_stars_repo_name", "repo", "repository_name"];
const LICENCE: [&str; 5] = ["license", "licenses", "max_stars_repo_licenses", "detected_licenses", "licence"];
const BINARY: [&str; 2] = ["binary", "is_binary"];

/// Reads a source tree (a folder), or a file: Parquet, else JSON lines, packed or not.
///
/// A record's id is `repository/path`, its text the raw file, its metadata `repo`, `path` and `licence`. Files of projects
/// whose licence does not let them in (`licence`), of others' folders (`junk_folder`), links (`link`), too big (`too_big`), and no text (`binary`,
/// `not_utf8`) are counted in what is returned. Memory: one
/// file or line (64 MiB) at a time; of Parquet, what its row groups need.
///
/// In a source tree, the topmost folder with a licence, a manifest or `.git` is a project (else, each of the folders in
/// `path`). The nearest folder at or above a file that says something of licences decides. Links are not followed.
///
/// # Errors
/// [`Error::Io`] if `path` cannot be read, [`Error::BadFile`] for a Parquet file that is damaged, and the sink's errors.
pub fn read(path: &Path, options: &ReadOptions, sink: &mut Sink<'_>) -> Result<Skipped> {
    let mut skipped = Skipped::new();
    if fs::metadata(path).map_err(Error::io("read", path))?.is_dir() {
        tree(path, options, sink, &mut skipped)?;
    } else if is_parquet(path)? {
        let columns = [&CONTENT[..], &PATH, &REPO, &LICENCE, &BINARY].concat();
        rows::rows(path, &columns, &mut |number, row| {
            let place = format!("{} row {number}", file_name(path));
            if let Some(result) = row_record(row, &place, options, &mut skipped) { sink(result) } else { Ok(()) }
        })?;
    } else {
        json_lines(path, options, sink, &mut skipped)?;
    }
    Ok(skipped)
}

fn is_parquet(path: &Path) -> Result<bool> {
    let mut start = [0; 4];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut start));
    match read {
        Err(e) if e.kind() != std::io::ErrorKind::UnexpectedEof => Err(Error::io("read", path)(e)),
        _ => Ok(start == *b"PAR1"),
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// What is known above a file.
#[derive(Clone, Default)]
struct Context {
    folder: PathBuf,
    /// The folder of the project and its name.
    project: Option<(PathBuf, String)>,
    /// What the nearest folder says; `None` if none has said anything yet.
    licence: Option<Option<String>>,
}

fn tree(base: &Path, options: &ReadOptions, sink: &mut Sink<'_>, skipped: &mut Skipped) -> Result<()> {
    let mut folders = vec![Context { folder: base.to_path_buf(), ..Context::default() }];
    while let Some(mut context) = folders.pop() {
        let entries = match entries(&context.folder) {
            Ok(entries) => entries,
            Err(problem) if context.folder == base => return Err(Error::io("read", base)(problem)),
            Err(problem) => {
                sink(Err(Rejected { place: relative(&context.folder, base), reason: format!("unreadable folder: {problem}") }))?;
                continue;
            }
        };
        if entries.iter().any(|(name, _)| name == crate::walk::BUILD) {
            *skipped.entry("build").or_default() += 1;
            continue;
        }
        let marks = |(name, _): &(String, PathBuf)| {
            name == ".git" || MANIFESTS.contains(&name.as_str()) || licence::is_licence_file(name)
        };
        let top = context.folder.parent() == Some(base);
        let at_base = context.folder == base;
        if context.project.is_none() && entries.iter().any(marks) {
            let name =
                if at_base { file_name(&std::path::absolute(base).unwrap_or_default()) } else { relative(&context.folder, base) };
            context.project = Some((context.folder.clone(), name));
        }
        if let Some(found) = folder_licence(&entries) {
            context.licence = Some(found);
        }
        let mut inner = Vec::new();
        for (name, path) in entries {
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            if meta.is_dir() {
                if name.starts_with('.') || JUNK.contains(&name.as_str()) || path.join("CACHEDIR.TAG").exists() {
                    *skipped.entry("junk_folder").or_default() += 1;
                } else {
                    inner.push(Context { folder: path, ..context.clone() });
                }
                continue;
            }
            if !meta.is_file() {
                *skipped.entry("link").or_default() += 1;
                continue;
            }
            let allowed = context.licence.clone().flatten();
            if options.check_licence && allowed.is_none() {
                *skipped.entry("licence").or_default() += 1;
                continue;
            }
            let (root, repo) = match &context.project {
                Some(project) => project.clone(),
                None if at_base || top => (context.folder.clone(), file_name(&context.folder)),
                None => (base.to_path_buf(), file_name(base)),
            };
            let place = relative(&path, &root);
            let text = match text_file(&path, meta.len(), options.max_file) {
                Ok(Ok(text)) => text,
                Ok(Err(reason)) => {
                    *skipped.entry(reason).or_default() += 1;
                    continue;
                }
                Err(problem) => {
                    sink(Err(Rejected { place: format!("{repo}/{place}"), reason: format!("unreadable: {problem}") }))?;
                    continue;
                }
            };
            sink(Ok(record(&repo, &place, text, allowed.as_deref())))?;
        }
        // The stack gives the last first.
        folders.extend(inner.into_iter().rev());
    }
    Ok(())
}

/// Sorted by name.
fn entries(folder: &Path) -> std::io::Result<Vec<(String, PathBuf)>> {
    let mut entries: Vec<(String, PathBuf)> = fs::read_dir(folder)?
        .map(|entry| entry.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path())))
        .collect::<std::io::Result<_>>()?;
    entries.sort();
    Ok(entries)
}

/// With `/` on every system.
fn relative(path: &Path, base: &Path) -> String {
    let below = path.strip_prefix(base).unwrap_or(path);
    below.components().map(|part| part.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/")
}

/// What a folder says: `None` nothing, `Some(None)` a licence that does not let in.
fn folder_licence(entries: &[(String, PathBuf)]) -> Option<Option<String>> {
    let head = |path: &Path| {
        let mut bytes = Vec::new();
        let read = File::open(path).and_then(|file| file.take(MAX_LICENCE).read_to_end(&mut bytes));
        read.ok().map(|_| String::from_utf8_lossy(&bytes).into_owned())
    };
    let (mut expression, mut files) = (None, Vec::new());
    for (name, path) in entries {
        let is_file = || fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file());
        // Of code that came from elsewhere: the manifest has it in its expression, or its folder has a file of its own.
        let others = name.to_ascii_lowercase().replace(['-', '_'], "").contains("thirdparty");
        if licence::is_licence_file(name) && !others && is_file() {
            files.extend(head(path).map(|text| licence::detect(&text)));
        } else if expression.is_none() && MANIFESTS.contains(&name.as_str()) && is_file() {
            expression = head(path).and_then(|text| licence::manifest_licence(name, &text));
        }
    }
    // A file with an unknown text, such as one that only points to others, says nothing by itself.
    let says = expression.is_some() || files.iter().any(|file| *file != Detected::Unknown);
    says.then(|| licence::judge(expression.as_deref(), &files))
}

/// A file's text, or why it is left out.
fn text_file(path: &Path, length: u64, max: u64) -> std::io::Result<std::result::Result<String, &'static str>> {
    if length > max {
        return Ok(Err("too_big"));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
    File::open(path)?.take(max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max {
        return Ok(Err("too_big"));
    }
    if memchr::memchr(0, &bytes[..bytes.len().min(PROBE)]).is_some() {
        return Ok(Err("binary"));
    }
    Ok(String::from_utf8(bytes).map_err(|_| "not_utf8"))
}

fn record(repo: &str, path: &str, text: String, licence: Option<&str>) -> Record {
    let meta = [("repo", repo), ("path", path), ("licence", licence.unwrap_or("unknown"))];
    let meta = meta.into_iter().map(|(key, value)| (key.to_owned(), value.into())).collect();
    Record { id: format!("{repo}/{path}"), text, meta }
}

fn json_lines(path: &Path, options: &ReadOptions, sink: &mut Sink<'_>, skipped: &mut Skipped) -> Result<()> {
    let mut reader = charset::utf8(unpack::open(path)?).map_err(Error::io("read", path))?;
    let (mut line, mut number) = (Vec::new(), 0u64);
    loop {
        line.clear();
        number += 1;
        let place = format!("{} line {number}", file_name(path));
        let read = reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line);
        let skip = |reason: String| Rejected { place: place.clone(), reason };
        match read {
            Ok(0) => return Ok(()),
            Ok(length) if length as u64 == MAX_LINE && line.last() != Some(&b'\n') => {
                sink(Err(skip(format!("longer than the limit of {} MiB", MAX_LINE >> 20))))?;
                if let Err(problem) = reader.skip_until(b'\n') {
                    return ended(problem, path, skip, sink);
                }
                continue;
            }
            Ok(_) => {}
            Err(problem) => return ended(problem, path, skip, sink),
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        match json::object(&line) {
            Ok(row) => {
                if let Some(result) = row_record(row, &place, options, skipped) {
                    sink(result)?;
                }
            }
            Err(problem) => sink(Err(skip(format!("not a JSON object: {problem}"))))?,
        }
    }
}

/// Decompressors make errors of their own, those of the system have a number: a damaged end is the last record.
fn ended(problem: std::io::Error, path: &Path, skip: impl Fn(String) -> Rejected, sink: &mut Sink<'_>) -> Result<()> {
    if problem.raw_os_error().is_some() {
        return Err(Error::io("read", path)(problem));
    }
    sink(Err(skip(format!("the file is damaged or truncated: {problem}"))))
}

/// The record of a dataset's row, `None` if it is left out and counted. Fields are at the top or in `meta`.
fn row_record(
    mut row: Map<String, Value>,
    place: &str,
    options: &ReadOptions,
    skipped: &mut Skipped,
) -> Option<std::result::Result<Record, Rejected>> {
    for inner in ["meta", "metadata"] {
        if let Some(Value::Object(fields)) = row.remove(inner) {
            for (key, value) in fields {
                row.entry(key).or_insert(value);
            }
        }
    }
    let mut skip = |reason| {
        *skipped.entry(reason).or_default() += 1;
        None
    };
    let mut take = |names: &[&str]| names.iter().find_map(|name| row.remove(*name).filter(|value| !value.is_null()));
    let is_true =
        |value: Value| value == Value::Bool(true) || value.as_str().is_some_and(|text| text.eq_ignore_ascii_case("true"));
    if take(&BINARY).is_some_and(is_true) {
        return skip("binary");
    }
    let Some(Value::String(text)) = take(&CONTENT) else {
        return Some(Err(Rejected { place: place.into(), reason: "no text in `content`, `text` or `code`".into() }));
    };
    let mut string = |names: &[&str]| match take(names) {
        Some(Value::String(text)) if !text.is_empty() => Some(text),
        _ => None,
    };
    let (path, repo) = (string(&PATH), string(&REPO));
    // All of a list must be allowed: it is not known to be a choice.
    let (allowed, licence) = match take(&LICENCE) {
        Some(Value::String(expression)) => (licence::is_allowed(&expression), Some(expression)),
        Some(Value::Array(list)) => {
            let names: Vec<&str> = list.iter().filter_map(Value::as_str).collect();
            let all = !names.is_empty() && names.len() == list.len() && names.iter().all(|name| licence::is_allowed(name));
            (all, Some(names.join(" AND ")))
        }
        _ => (false, None),
    };
    if options.check_licence && !allowed {
        return skip("licence");
    }
    if text.len() as u64 > options.max_file {
        return skip("too_big");
    }
    if memchr::memchr(0, &text.as_bytes()[..text.len().min(PROBE)]).is_some() {
        return skip("binary");
    }
    let licence = licence.filter(|_| allowed);
    let mut record = record(repo.as_deref().unwrap_or_default(), path.as_deref().unwrap_or_default(), text, licence.as_deref());
    if repo.is_none() && path.is_none() {
        record.id = place.into();
    }
    Some(Ok(record))
}
