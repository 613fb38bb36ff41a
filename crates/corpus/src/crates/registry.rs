//! The crates in Cargo's registry: one version each, their licence, their family, their files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::files::{Walked, relative, walk};
use super::filter::{self, content_hash, reject};
use crate::error::{Error, Result};

/// Versions of crates by name.
pub type Versions = BTreeMap<String, BTreeSet<String>>;

/// The crates of a registry that a `Cargo.lock` names.
///
/// # Errors
/// [`Error::BadValue`] if `lock` is not such a file.
pub fn locked(lock: &str) -> Result<Versions> {
    let bad = |problem: String| Error::bad_value("Cargo.lock", problem, "pass the text of a lock file that Cargo wrote");
    let table: toml::Table = lock.parse().map_err(|e: toml::de::Error| bad(e.to_string()))?;
    let packages =
        table.get("package").and_then(toml::Value::as_array).ok_or_else(|| bad("expected packages, got none".into()))?;
    let mut versions = Versions::new();
    for package in packages {
        let text = |key: &str| package.get(key).and_then(toml::Value::as_str).unwrap_or_default();
        if text("source").starts_with("registry+") {
            versions.entry(text("name").into()).or_default().insert(text("version").into());
        }
    }
    Ok(versions)
}

/// A crate's folder in the registry.
pub(super) struct Crate {
    dir: PathBuf,
    pub(super) name: String,
    pub(super) version: String,
    pub(super) license: String,
    repository: String,
    /// It carries a C library: `links` in its manifest, or a name that says so.
    native: bool,
}

impl Crate {
    /// `None` where there is no readable manifest with a name and a version.
    pub(super) fn read(dir: &Path) -> Option<Self> {
        let manifest: toml::Table = fs::read_to_string(dir.join("Cargo.toml")).ok()?.parse().ok()?;
        let package = manifest.get("package")?.as_table()?;
        let text = |key: &str| package.get(key).and_then(toml::Value::as_str).unwrap_or_default().trim().to_string();
        let (name, version) = (text("name"), text("version"));
        let native = package.contains_key("links") || ["-sys", "_sys", "-src"].iter().any(|end| name.ends_with(end));
        let (license, repository) = (text("license"), text("repository"));
        (!name.is_empty() && !version.is_empty()).then(|| Self { dir: dir.into(), name, version, license, repository, native })
    }

    /// Its files of source code and prose by their names, each with the hash of its content or the reason why it is dropped, and
    /// what is in its folder beside them.
    pub(super) fn scan(&self) -> (Vec<Scanned>, Walked, Other) {
        let mut walked = walk(&self.dir);
        let (mut scanned, mut other) = (Vec::new(), Other::default());
        for path in std::mem::take(&mut walked.files) {
            let bytes = fs::metadata(&path).map_or(0, |meta| meta.len());
            match self.scan_file(&path, bytes) {
                Some(verdict) => scanned.push(Scanned { name: relative(&path, &self.dir), path, bytes, verdict }),
                None => {
                    other.files += 1;
                    other.bytes += bytes;
                }
            }
        }
        (scanned, walked, other)
    }

    /// `None` for what is neither source code nor prose by its name.
    fn scan_file(&self, path: &Path, bytes: u64) -> Option<Result<u128, &'static str>> {
        let name = relative(path, &self.dir);
        let extension = path.extension()?.to_str()?.to_ascii_lowercase();
        if !filter::EXTENSIONS.contains(&extension.as_str()) {
            return None;
        }
        // The crate's own code around a C library is Rust; the rest belongs to the library, under a licence of its own.
        let own = extension == "rs" || extension == "md" && !name.contains('/');
        Some(if self.native && !own {
            Err("vendored")
        } else if filter::BINDINGS.contains(&self.name.as_str()) {
            Err("declarations")
        } else if bytes > filter::MAX_FILE {
            Err("too big")
        } else {
            fs::read(path).map_err(|_| "unreadable").and_then(|content| match reject(&name, &content) {
                Some(reason) => Err(reason),
                None => Ok(content_hash(&content)),
            })
        })
    }
}

/// A file that is source code or prose by its name.
pub(super) struct Scanned {
    pub(super) path: PathBuf,
    /// Below the crate's folder.
    pub(super) name: String,
    pub(super) bytes: u64,
    pub(super) verdict: Result<u128, &'static str>,
}

/// Files of other kinds.
#[derive(Default)]
pub(super) struct Other {
    pub(super) files: u64,
    pub(super) bytes: u64,
}

/// Orders versions: numbers by value, a release after its pre-releases. Build metadata does not count.
pub(super) fn version_key(version: &str) -> (Vec<u64>, bool, &str) {
    let version = version.split('+').next().unwrap_or_default();
    let (numbers, pre) = version.split_once('-').unwrap_or((version, ""));
    (numbers.split('.').map(|number| number.parse().unwrap_or(0)).collect(), pre.is_empty(), pre)
}

/// A name of the family of each crate (sorted by name): crates of one repository, or with the same name up to the first `-` or `_`,
/// are of one family, and so are two families that share a crate. Its name is that of its first crate, up to there.
pub(super) fn families(crates: &[Crate]) -> Vec<String> {
    let mut parent: Vec<usize> = (0..crates.len()).collect();
    fn root(parent: &mut [usize], mut node: usize) -> usize {
        while parent[node] != node {
            parent[node] = parent[parent[node]];
            node = parent[node];
        }
        node
    }
    let prefix = |krate: &Crate| krate.name.split(['-', '_']).next().unwrap_or_default().to_ascii_lowercase();
    let mut first: BTreeMap<String, usize> = BTreeMap::new();
    for (index, krate) in crates.iter().enumerate() {
        let mut keys = vec![prefix(krate)];
        keys.extend(repository_key(&krate.repository));
        for key in keys {
            let other = *first.entry(key).or_insert(index);
            let (a, b) = (root(&mut parent, index), root(&mut parent, other));
            // The smaller index wins: a family is named after its first crate.
            parent[a.max(b)] = a.min(b);
        }
    }
    (0..crates.len()).map(|index| prefix(&crates[root(&mut parent, index)])).collect()
}

/// `https://github.com/Owner/repo.git/tree/main/sub` -> `github.com/owner/repo`.
fn repository_key(url: &str) -> Option<String> {
    let url = url.to_ascii_lowercase();
    let (_, path) = url.split_once("://")?;
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).take(3).collect();
    (parts.len() == 3).then(|| parts.join("/").trim_end_matches(".git").to_string())
}
