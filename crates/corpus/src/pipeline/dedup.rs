//! The third stage: what several documents have in common.
//!
//! Three steps, each resumable: numbers of each document (`OUT/hash`), one shuffle over all of them (`OUT/duplicates`), and a pass
//! that takes out what it found (`OUT/dedup`). Near-duplicates are looked for in the documents as they came, before lines go.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::Build;
use crate::Record;
use crate::dedup::{CONTENT_KEY, Rule, minhash, overlap};
use crate::engine::{
    Drops, Duplicates, HashWriter, Hashes, Manifest, Output, Shard, StageSpec, Table, doc_key, pairs_of, read_table, shard_of,
};
use crate::error::{Error, Result};
use crate::files::Folder;
use crate::filters::{c4, ccnet};
use crate::record::Removed;
use crate::sources::Source;

/// What the hash step writes beside its manifests.
const KEYS: &str = "keys.parquet";
const NEAR: &str = "near.parquet";
/// What the shuffle step writes.
const DROPS: &str = "drops.parquet";
const DOCUMENTS: &str = "documents.bin";

/// The steps of the stage.
pub(super) struct Dedup {
    rule: Rule,
    near: bool,
    /// Whether documents bear a [`CONTENT_KEY`], which goes here.
    keyed: bool,
    hash: StageSpec,
    found: StageSpec,
    /// The last step, whose tables the next stage reads.
    pub(super) spec: StageSpec,
}

impl Dedup {
    pub(super) fn plan(build: &Build<'_>, source: &dyn Source, clean: &StageSpec) -> Result<Self> {
        let rule = source.duplicates();
        let common = source.common();
        let near = common.near_duplicates;
        let config = minhash::Config::default();
        let settings = json!({
            "rule": format!("{rule:?}"),
            "near": near.then(|| json!(config)),
        });
        let mut hash = build.next("hash", source, clean, &settings)?;
        hash.documents = false;
        let mut files: Vec<PathBuf> = Vec::new();
        if matches!(rule, Rule::Overlap(_)) {
            files.extend(clean.tables().into_iter().flat_map(|s| s.files));
        }
        let hashed = |name| hash.outputs(name).into_iter().flat_map(|s| s.files);
        if rule.columns().is_some() {
            files.extend(hashed(KEYS));
        }
        if near {
            files.extend(hashed(NEAR));
        }
        let mut found = build.next("duplicates", source, clean, &settings)?;
        (found.documents, found.inputs) = (false, vec![Shard::new("all", files)]);
        let mut spec = build.next("dedup", source, clean, &settings)?;
        for shard in &mut spec.inputs {
            let found = |name: &str| found.out.join(format!("all.{name}"));
            if rule.columns().is_some() {
                shard.files.push(found(DROPS));
            }
            if near || matches!(rule, Rule::Overlap(_)) {
                shard.files.push(found(DOCUMENTS));
            }
        }
        Ok(Self { rule, near, keyed: source.keyed(), hash, found, spec })
    }

    pub(super) fn run(&self, build: &Build<'_>, clean: &StageSpec) -> Result<()> {
        let made = clean.complete(build.patience)?;
        if self.rule.columns().is_some() || self.near {
            build.stage(&self.hash, |shard, out| self.hash(shard, out))?;
        }
        if self.rule != Rule::Nothing || self.near {
            build.stage(&self.found, |_, out| self.find(build, clean, out))?;
        }
        build.stage(&self.spec, |shard, out| self.apply(shard, &made, out))?;
        Ok(())
    }

    /// The keys of a shard's documents.
    fn hash(&self, shard: &Shard, out: &mut Output<'_>) -> Result<()> {
        let columns = self.rule.columns();
        let mut keys = columns.map(|columns| HashWriter::create(out.path(KEYS), columns)).transpose()?;
        let config = minhash::Config::default();
        let mut near = self.near.then(|| HashWriter::create(out.path(NEAR), Hashes::default())).transpose()?;
        let index = out.index();
        let mut place = 0;
        let work = |record: Record| {
            let bands = if self.near { config.bands(&record.text) } else { Vec::new() };
            let (rank, keys) = self.rule.keys(&record);
            (record.text.len(), rank, keys, bands)
        };
        let tables = shard.files.clone();
        out.map(
            |sink| tables.iter().try_for_each(|path| read_table(path, sink)),
            work,
            |_, (_, rank, document, bands)| {
                let doc = doc_key(index, place)?;
                place += 1;
                if let Some(keys) = &mut keys {
                    keys.push(doc, rank, document)?;
                }
                match &mut near {
                    Some(near) => near.push(doc, 0, bands.into_iter().map(u128::from)),
                    None => Ok(()),
                }
            },
        )?;
        for (writer, _) in [(keys, KEYS), (near, NEAR)] {
            if let Some(writer) = writer {
                out.add(writer.finish()?)?;
            }
        }
        Ok(())
    }

    /// What goes, of all shards.
    fn find(&self, build: &Build<'_>, clean: &StageSpec, out: &mut Output<'_>) -> Result<()> {
        let files = |name: &str| self.hash.outputs(name).into_iter().flat_map(|s| s.files).collect::<Vec<_>>();
        if let Some(columns) = self.rule.columns() {
            let drops = build.shuffle()?.duplicates(&files(KEYS), columns, self.rule.duplicates(), &out.path(DROPS))?;
            out.add(drops)?;
        }
        let mut documents = Vec::new();
        if let Rule::Overlap(share) = self.rule {
            documents = overlapping(build, clean, share)?;
        }
        if self.near {
            let pairs = out.path("pairs.parquet");
            build.shuffle()?.pairs(&files(NEAR), Hashes::default(), &pairs)?.publish()?;
            documents.extend(minhash::duplicates(pairs_of(&pairs)?)?);
            fs::remove_file(&pairs).map_err(Error::io("remove", &pairs))?;
            documents.sort_unstable();
            documents.dedup();
        }
        if self.near || matches!(self.rule, Rule::Overlap(_)) {
            let bytes: Vec<u8> = documents.iter().flat_map(|d| d.to_le_bytes()).collect();
            out.blob(DOCUMENTS, &bytes)?;
        }
        Ok(())
    }

    /// Takes out of a shard what goes. A shard of which nothing goes is passed on as it is.
    fn apply(&self, shard: &Shard, made: &[Manifest], out: &mut Output<'_>) -> Result<()> {
        let [table, found @ ..] = shard.files.as_slice() else { return Ok(()) };
        let index = out.index();
        let mut drops = None;
        let mut documents = Vec::new();
        for path in found {
            if path.extension().is_some_and(|e| e == "parquet") {
                drops = Some(Drops::open(path, index)?);
            } else {
                documents = read_documents(path)?;
            }
        }
        let stays = drops.as_ref().is_none_or(Drops::is_empty) && !documents.iter().any(|doc| shard_of(*doc) == index);
        if let (true, false, Some(made)) = (stays, self.keyed, made.get(index as usize)) {
            return out.pass(table, made);
        }
        let reason = if matches!(self.rule, Rule::Overlap(_)) { "overlap" } else { "near_duplicate" };
        let mut place = 0;
        let rules = c4::C4Rules::default();
        out.map(
            |sink| read_table(table, sink),
            |record| record,
            |out, mut record| {
                let doc = doc_key(index, place)?;
                let lines = drops.as_mut().map_or(Ok(Vec::new()), |d| d.of(place))?;
                place += 1;
                if documents.binary_search(&doc).is_ok() {
                    return out.drop(&record.id, &record.text, reason);
                }
                match self.rule {
                    Rule::Exact if !lines.is_empty() => return out.drop(&record.id, &record.text, "exact_duplicate"),
                    Rule::Paragraphs(_) | Rule::C4Lines if !lines.is_empty() => {
                        let (text, removed) = without(&record.text, &lines);
                        let dropped = match () {
                            () if text.trim().is_empty() => Some("all_lines_duplicate"),
                            () if self.rule == Rule::C4Lines
                                && crate::filters::sentences::count_sentences(&text) < rules.min_sentences =>
                            {
                                Some("too_few_sentences")
                            }
                            () => None,
                        };
                        if let Some(reason) = dropped {
                            return out.drop(&record.id, &record.text, reason);
                        }
                        out.removed(&record.id, &removed)?;
                        record.text = text;
                    }
                    _ => {}
                }
                record.meta.remove(CONTENT_KEY);
                out.keep(&record)
            },
        )
    }
}

/// How a rule is worked out with the engine.
impl Rule {
    fn columns(self) -> Option<Hashes> {
        match self {
            Self::Nothing | Self::Overlap(_) => None,
            Self::Paragraphs(_) => Some(Hashes { wide: false, ranked: false }),
            Self::C4Lines => Some(Hashes { wide: true, ranked: true }),
            Self::Exact => Some(Hashes { wide: true, ranked: false }),
        }
    }

    fn duplicates(self) -> Duplicates {
        match self {
            Self::Paragraphs(duplicates) => duplicates,
            Self::C4Lines => Duplicates::KeepLowestRank,
            _ => Duplicates::KeepFirst,
        }
    }

    /// A document's rank and its keys, one a line.
    fn keys(self, record: &Record) -> (u64, Vec<u128>) {
        match self {
            Self::Nothing | Self::Overlap(_) => (0, Vec::new()),
            Self::Paragraphs(_) => (0, ccnet::hash_lines(&record.text).into_iter().map(u128::from).collect()),
            Self::C4Lines => {
                let url = record.meta.get("url").and_then(|u| u.as_str()).unwrap_or(&record.id);
                let [a, b, c, d, e, f, g, h, ..] = c4::page_rank(&c4::normalize_url(url));
                let keys = record.text.split('\n').map(|line| u128::from_be_bytes(c4::line_key(line))).collect();
                (u64::from_be_bytes([a, b, c, d, e, f, g, h]), keys)
            }
            Self::Exact => {
                let key = record.meta.get(CONTENT_KEY).and_then(|k| k.as_str()).and_then(|k| u128::from_str_radix(k, 16).ok());
                (0, vec![key.unwrap_or_else(|| xxhash_rust::xxh3::xxh3_128(record.text.as_bytes()))])
            }
        }
    }
}

/// A text without some of its lines, ascending.
fn without(text: &str, lines: &[u32]) -> (String, Vec<Removed>) {
    let (mut kept, mut removed) = (String::with_capacity(text.len()), Vec::new());
    let mut gone = lines.iter().peekable();
    let mut first = true;
    for (i, line) in text.split('\n').enumerate() {
        if gone.next_if(|&&n| n as usize == i).is_some() {
            // Blank lines are lines to CCNet; to show them tells nothing.
            if !line.trim().is_empty() {
                removed.push(Removed::new("duplicate_line", line));
            }
            continue;
        }
        if !first {
            kept.push('\n');
        }
        kept.push_str(line);
        first = false;
    }
    (kept, removed)
}

fn read_documents(path: &Path) -> Result<Vec<u64>> {
    let bytes = fs::read(path).map_err(Error::io("read", path))?;
    let (words, rest) = bytes.as_chunks::<8>();
    if !rest.is_empty() {
        return Err(Error::bad_file(
            "list of duplicates",
            path,
            format!("{} bytes are no multiple of 8", bytes.len()),
            "run the stage again",
        ));
    }
    Ok(words.iter().map(|w| u64::from_le_bytes(*w)).collect())
}

/// The documents of which more than `share` is in an earlier one that stays. Memory: 6 KiB a document, and two shingle sets.
fn overlapping(build: &Build<'_>, clean: &StageSpec, share: f64) -> Result<Vec<u64>> {
    let tables: Vec<PathBuf> = clean.tables().into_iter().flat_map(|s| s.files).collect();
    let mut sketches = Vec::new();
    let mut keys = Vec::new();
    for (shard, path) in (0..).zip(&tables) {
        for (place, record) in (0..).zip(Table::open(path)?) {
            sketches.push(overlap::sketch(&record?.text));
            keys.push(doc_key(shard, place)?);
        }
    }
    let candidates = overlap::candidates(&sketches);
    drop(sketches);
    if candidates.is_empty() {
        return Ok(Vec::new());
    }
    // The shingles of the candidates, in a file each: a book is compared with several.
    let folder = Folder::create(&build.config.out.join("spill").join(format!("shingles-{}", clean.source)))?;
    let file = |i: usize| folder.path().join(format!("{i}.bin"));
    let wanted: HashMap<u64, usize> = candidates.iter().flat_map(|&(a, b)| [a, b]).map(|i| (keys[i], i)).collect();
    for (shard, path) in (0..).zip(&tables) {
        for (place, record) in (0..).zip(Table::open(path)?) {
            if let Some(&i) = wanted.get(&doc_key(shard, place)?) {
                let bytes: Vec<u8> = overlap::shingle_set(&record?.text).iter().flat_map(|h| h.to_le_bytes()).collect();
                fs::write(file(i), bytes).map_err(Error::io("write", file(i)))?;
            }
        }
    }
    let gone = overlap::duplicates(&candidates, share, |earlier, later| {
        Ok(overlap::overlap_of_sets(&read_documents(&file(earlier))?, &read_documents(&file(later))?))
    })?;
    let mut documents: Vec<u64> = gone.into_iter().map(|(later, ..)| keys[later]).collect();
    documents.sort_unstable();
    Ok(documents)
}
