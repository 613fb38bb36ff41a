//! A dataset: a folder of shards and a `dataset.json` that lists them, read as one stream of tokens.

use std::{
    fs,
    io::ErrorKind,
    ops::Range,
    path::{Path, PathBuf},
};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{
    hex64,
    permute::mix_key,
    shards::{Shard, ShardInfo, ShardWriter, Verify, Vocab},
};
use crate::error::{Error, Result};
use crate::files::Folder;
use crate::tokenizer::TokenizerFiles;

const INDEX: &str = "dataset.json";
const FORMAT: &str = "recua tokens";
const VERSION: u32 = 1;
const WHAT: &str = "token dataset";
const REMAKE: &str = "make the dataset again with `recua data tokenize`, or copy it again";
/// Bounds the memory of the offsets of the shard being written: 128 MiB.
const MAX_DOCUMENTS: u64 = 1 << 24;

/// `dataset.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatasetIndex {
    format: String,
    version: u32,
    /// The vocabulary of the ids.
    pub vocab: Vocab,
    /// Tokens in all shards.
    pub tokens: u64,
    /// Documents in all shards.
    pub documents: u64,
    /// Bytes of the documents' text.
    pub text_bytes: u64,
    /// Where the text came from, as the user wrote it.
    pub sources: Vec<String>,
    /// The files, in order.
    pub shards: Vec<ShardEntry>,
}

/// A shard in `dataset.json`; must agree with the shard's own header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardEntry {
    /// File name in the folder.
    pub file: String,
    /// Number of tokens.
    pub tokens: u64,
    /// Number of documents.
    pub documents: u64,
    /// Bytes of the documents' text.
    pub text_bytes: u64,
    /// XXH3-64 of the file after its header.
    #[serde(with = "hex64")]
    pub checksum: u64,
}

impl DatasetIndex {
    /// Reads the `dataset.json` of a dataset folder.
    ///
    /// # Errors
    /// [`Error::Nothing`] if there is none, [`Error::BadFile`] if it is damaged.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(INDEX);
        match fs::read(&path) {
            Ok(bytes) => Self::parse(&path, &bytes),
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Err(Error::Nothing {
                what: format!("{INDEX}, so no token dataset"),
                path: dir.into(),
                hint: "make one with `recua data tokenize --out DIR`".into(),
            }),
            Err(e) => Err(Error::io("read", &path)(e)),
        }
    }

    /// Reads `dataset.json` from bytes; `path` stands for the file in errors.
    ///
    /// # Errors
    /// [`Error::BadFile`] if it is damaged, of another version, or contradicts itself.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let bad = |problem: String| Error::bad_file(WHAT, path, problem, REMAKE);
        let index: Self = serde_json::from_slice(bytes).map_err(|e| bad(e.to_string()))?;
        if (index.format.as_str(), index.version) != (FORMAT, VERSION) {
            let got = format!("`{}` version {}", index.format, index.version);
            return Err(bad(format!("expected format `{FORMAT}` version {VERSION}, got {got}")));
        }
        index.vocab.check().map_err(|e| bad(e.to_string()))?;
        let sum = |of: fn(&ShardEntry) -> u64| index.shards.iter().try_fold(0_u64, |sum, s| sum.checked_add(of(s)));
        let sums = [sum(|s| s.tokens), sum(|s| s.documents), sum(|s| s.text_bytes)];
        if sums != [Some(index.tokens), Some(index.documents), Some(index.text_bytes)] {
            return Err(bad("the totals are not the sums over the shards".into()));
        }
        if let Some(shard) = index.shards.iter().find(|s| !is_shard_name(&s.file)) {
            return Err(bad(format!("expected shards called `shard-NNNNN.tok`, got `{}`", shard.file)));
        }
        Ok(index)
    }

    /// A number that differs for other tokens, another order, or another vocabulary.
    pub fn identity(&self) -> u64 {
        let start = mix_key(&[u64::from(self.vocab.size), self.vocab.hash]);
        self.shards.iter().fold(start, |id, s| mix_key(&[id, s.tokens, s.documents, s.checksum]))
    }
}

fn shard_name(number: usize) -> String {
    format!("shard-{number:05}.tok")
}

fn is_shard_name(name: &str) -> bool {
    let digits = name.strip_prefix("shard-").and_then(|name| name.strip_suffix(".tok"));
    digits.is_some_and(|d| d.len() >= 5 && d.bytes().all(|b| b.is_ascii_digit()))
}

/// An open dataset: its shards, one after the other, as a single stream of tokens.
#[derive(Debug)]
pub struct Shards {
    dir: PathBuf,
    index: DatasetIndex,
    shards: Vec<Shard>,
    /// Tokens and documents before each shard.
    starts: Vec<(u64, u64)>,
}

impl Shards {
    /// Opens a dataset folder and checks each shard against `dataset.json` and itself.
    ///
    /// # Errors
    /// [`Error::Nothing`] for a folder without a dataset, [`Error::BadFile`] naming what is missing, truncated, damaged,
    /// or of another dataset.
    pub fn open(dir: &Path, verify: Verify) -> Result<Self> {
        let index = DatasetIndex::read(dir)?;
        let open = |entry: &ShardEntry| {
            let path = dir.join(&entry.file);
            let shard = Shard::open(&path, verify)?;
            let expected = ShardInfo {
                vocab: index.vocab,
                tokens: entry.tokens,
                documents: entry.documents,
                text_bytes: entry.text_bytes,
                checksum: entry.checksum,
            };
            if *shard.info() != expected {
                let problem = format!("it is not the one that {INDEX} lists: expected {expected:?}, got {:?}", shard.info());
                return Err(Error::bad_file("shard of this dataset", &path, problem, REMAKE));
            }
            Ok(shard)
        };
        // Collected in order before the first error is taken, so that the same one is reported every time.
        let shards: Vec<Result<Shard>> = index.shards.par_iter().map(open).collect();
        let shards = shards.into_iter().collect::<Result<Vec<_>>>()?;
        let mut starts = Vec::with_capacity(shards.len());
        let mut before = (0, 0);
        for entry in &index.shards {
            starts.push(before);
            before = (before.0 + entry.tokens, before.1 + entry.documents); // the sums were checked
        }
        Ok(Self { dir: dir.into(), index, shards, starts })
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// `dataset.json`: totals, vocabulary, sources.
    pub fn index(&self) -> &DatasetIndex {
        &self.index
    }

    /// Number of tokens.
    pub fn len_tokens(&self) -> u64 {
        self.index.tokens
    }

    /// The vocabulary of the ids.
    pub fn vocab(&self) -> Vocab {
        self.index.vocab
    }

    /// Checks that the ids are of `vocab`, which belongs to `whose` (`tokenizer runs/a/tokenizer.json`).
    ///
    /// # Errors
    /// [`Error::Vocabulary`] if the sizes differ, [`Error::BadFile`] if only the hashes do.
    pub fn check_vocab(&self, vocab: Vocab, whose: &str) -> Result<()> {
        let hint = "use the tokenizer that made the dataset, or make the dataset again";
        if self.index.vocab.size != vocab.size {
            return Err(Error::Vocabulary {
                left: format!("dataset {}", self.dir.display()),
                left_size: self.index.vocab.size as usize,
                right: whose.into(),
                right_size: vocab.size as usize,
                hint: hint.into(),
            });
        }
        if self.index.vocab.hash != vocab.hash {
            let (expected, got) = (vocab.hash, self.index.vocab.hash);
            let problem = format!("another vocabulary of the same size: expected hash {expected:016x} ({whose}), got {got:016x}");
            return Err(Error::bad_file(WHAT, self.dir.join(INDEX), problem, hint));
        }
        Ok(())
    }

    /// Appends a range of the stream to `out`.
    ///
    /// # Errors
    /// [`Error::BadValue`] for a range beyond the end, [`Error::BadFile`] for damaged tokens.
    pub fn read(&self, range: Range<u64>, out: &mut Vec<u32>) -> Result<()> {
        self.decode(range.start, range.end.saturating_sub(range.start), |id| out.push(id))
    }

    /// Fills `out` with the tokens from `start` on.
    ///
    /// # Errors
    /// As [`Shards::read`].
    pub fn copy_into(&self, start: u64, out: &mut [i32]) -> Result<()> {
        let count = out.len() as u64;
        let mut slots = out.iter_mut();
        self.decode(start, count, |id| {
            if let Some(slot) = slots.next() {
                *slot = id as i32; // ids are below 2^31
            }
        })
    }

    /// The tokens of document `index`, as a range of the stream.
    ///
    /// # Errors
    /// [`Error::BadValue`] if there is no such document, [`Error::BadFile`] for damaged offsets.
    pub fn document(&self, index: u64) -> Result<Range<u64>> {
        let shard = self.starts.partition_point(|(_, documents)| *documents <= index).saturating_sub(1);
        let (Some(shard), Some((tokens, documents))) = (self.shards.get(shard), self.starts.get(shard)) else {
            return Err(Error::bad_value(
                self.dir.display().to_string(),
                format!("document {index} of 0"),
                "name another dataset",
            ));
        };
        let range = shard.document(index - documents)?;
        Ok(range.start + tokens..range.end + tokens)
    }

    fn decode(&self, mut start: u64, mut count: u64, mut put: impl FnMut(u32)) -> Result<()> {
        if start.checked_add(count).is_none_or(|end| end > self.index.tokens) {
            let problem = format!("tokens {start} and {count} on, of {}", self.index.tokens);
            return Err(Error::bad_value(self.dir.display().to_string(), problem, "ask for less"));
        }
        let first = self.starts.partition_point(|(tokens, _)| *tokens <= start).saturating_sub(1);
        for (shard, (before, _)) in self.shards.iter().zip(&self.starts).skip(first) {
            if count == 0 {
                break;
            }
            let here = count.min(before + shard.info().tokens - start);
            shard.decode(start - before, here, &mut put)?;
            start += here;
            count -= here;
        }
        Ok(())
    }
}

/// Writes a dataset folder. It appears under its name, complete, in [`DatasetWriter::finish`]; dropped before that,
/// nothing is left.
pub struct DatasetWriter {
    out: PathBuf,
    vocab: Vocab,
    shard_tokens: u64,
    force: bool,
    shard: Option<ShardWriter>,
    done: Vec<ShardEntry>,
    folder: Folder,
}

impl DatasetWriter {
    /// Starts a dataset that will be the folder `out`, in shards of `shard_tokens` tokens and the rest of a document.
    ///
    /// # Errors
    /// [`Error::BadValue`] if `out` is in use: a folder that is not empty, unless it is a dataset and `force` is set.
    pub fn create(out: &Path, vocab: Vocab, shard_tokens: u64, force: bool) -> Result<Self> {
        vocab.check()?;
        if shard_tokens == 0 {
            return Err(Error::bad_value("shard_tokens", "expected at least 1, got 0", "leave it out for the default"));
        }
        check_free(out, force)?;
        let folder = Folder::create(out)?;
        Ok(Self { out: out.into(), vocab, shard_tokens, force, shard: None, done: vec![], folder })
    }

    /// Appends a document: its tokens and how many bytes its text had.
    ///
    /// # Errors
    /// As [`ShardWriter::push`].
    pub fn push(&mut self, tokens: &[u32], text_bytes: u64) -> Result<()> {
        let shard = match &mut self.shard {
            Some(shard) => shard,
            None => {
                let path = self.folder.path().join(shard_name(self.done.len()));
                self.shard.insert(ShardWriter::create(&path, self.vocab)?)
            }
        };
        shard.push(tokens, text_bytes)?;
        if shard.tokens() >= self.shard_tokens || shard.documents() >= MAX_DOCUMENTS {
            self.seal()?;
        }
        Ok(())
    }

    fn seal(&mut self) -> Result<()> {
        if let Some(shard) = self.shard.take() {
            let file = shard_name(self.done.len());
            let ShardInfo { tokens, documents, text_bytes, checksum, .. } = shard.finish()?;
            self.done.push(ShardEntry { file, tokens, documents, text_bytes, checksum });
        }
        Ok(())
    }

    /// Seals the last shard, writes `dataset.json`, and gives the folder its name. `sources` are for the reader.
    ///
    /// # Errors
    /// [`Error::Nothing`] if there were no tokens, [`Error::Io`] if writing fails.
    pub fn finish(mut self, sources: Vec<String>) -> Result<DatasetIndex> {
        self.seal()?;
        let shards = std::mem::take(&mut self.done);
        let sum = |of: fn(&ShardEntry) -> u64| shards.iter().map(of).sum();
        let index = DatasetIndex {
            format: FORMAT.into(),
            version: VERSION,
            vocab: self.vocab,
            tokens: sum(|s| s.tokens),
            documents: sum(|s| s.documents),
            text_bytes: sum(|s| s.text_bytes),
            sources,
            shards,
        };
        if index.tokens == 0 {
            let hint = "pass text that is not empty".into();
            return Err(Error::Nothing { what: "tokens to write".into(), path: self.out.clone(), hint });
        }
        let mut json = serde_json::to_vec_pretty(&index).map_err(|e| Error::io("write", &self.out)(e.into()))?;
        json.push(b'\n');
        fs::write(self.folder.path().join(INDEX), json).map_err(Error::io("write", &self.out))?;
        check_free(&self.out, self.force)?; // it may have appeared meanwhile
        self.folder.replace()?;
        Ok(index)
    }
}

/// Whether the folder may be made, or replaced: it holds nothing, or (with `force`) a dataset and nothing else.
fn check_free(out: &Path, force: bool) -> Result<()> {
    let entries = match fs::read_dir(out) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries.and_then(|entries| entries.collect::<Result<Vec<_>, _>>()).map_err(Error::io("read", out))?,
    };
    let ours = |name: &str| name == INDEX || is_shard_name(name) || TokenizerFiles::has_name(name);
    if entries.is_empty() {
        return Ok(());
    }
    let refuse = |problem: &str, hint: &str| Err(Error::bad_value("--out", format!("{} {problem}", out.display()), hint));
    if !force {
        return refuse("is not empty", "name another folder, or replace a dataset with --force");
    }
    if DatasetIndex::read(out).is_err() || !entries.iter().all(|e| e.file_name().to_str().is_some_and(ours)) {
        return refuse("is not a token dataset, or holds other files too", "name another folder");
    }
    Ok(())
}
