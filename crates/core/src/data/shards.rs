//! Token shards: one file of token ids and document offsets, checked when it is opened, then read through a memory map.
//!
//! Little-endian throughout:
//!
//! | bytes | content |
//! |---|---|
//! | 0..8 | `RECUATOK` |
//! | 8..12, 12..16 | version (1), bytes per token (2 up to a vocabulary of 65,536, else 4) |
//! | 16..24, 24..32 | vocabulary: size, hash |
//! | 32..40, 40..48, 48..56 | tokens, documents, bytes of the text that they came from |
//! | 56..64 | XXH3-64 of everything after the header |
//! | 64..72 | XXH3-64 of bytes 0..64 |
//! | 72.. | the tokens; zeros up to a multiple of 8; `documents + 1` offsets in tokens, u64, from 0 to `tokens` |

use std::{
    fs::{self, File},
    io::{Seek, SeekFrom, Write},
    ops::Range,
    path::{Path, PathBuf},
};

use memmap2::Mmap;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::hex64;
use crate::error::{Error, Result};
use crate::files::Atomic;

const MAGIC: [u8; 8] = *b"RECUATOK";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 72;
const WHAT: &str = "token shard";
const REMAKE: &str = "make the dataset again with `recua data tokenize`, or copy it again";

/// The vocabulary that token ids belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vocab {
    /// Number of tokens, 1 to 2^31 - 1 (batches are `i32`).
    pub size: u32,
    /// Hash of the tokenizer; shards of another tokenizer of the same size are told apart by it.
    #[serde(with = "hex64")]
    pub hash: u64,
}

impl Vocab {
    /// Bytes per token in a shard: 2 if every id fits.
    pub fn token_bytes(&self) -> usize {
        if self.size <= 1 << 16 { 2 } else { 4 }
    }

    /// # Errors
    /// [`Error::BadValue`] if there are no tokens or more than `i32` holds.
    pub(super) fn check(&self) -> Result<()> {
        if self.size == 0 || self.size > i32::MAX as u32 {
            let problem = format!("expected 1 to 2147483647 tokens, got {}", self.size);
            return Err(Error::bad_value("vocabulary", problem, "use another tokenizer"));
        }
        Ok(())
    }
}

/// How much of a shard is checked when it is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verify {
    /// Everything: length, header, checksum of the content, every id and offset. Reads the whole file.
    Full,
    /// Length and header only. Ids are still checked as they are read.
    Header,
}

/// What a shard's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardInfo {
    /// The vocabulary of the ids.
    pub vocab: Vocab,
    /// Number of tokens.
    pub tokens: u64,
    /// Number of documents.
    pub documents: u64,
    /// Bytes of the documents' text in UTF-8.
    pub text_bytes: u64,
    /// XXH3-64 of tokens and offsets.
    pub checksum: u64,
}

impl ShardInfo {
    fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        let width = self.vocab.token_bytes() as u32;
        out[..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&width.to_le_bytes());
        let words = [u64::from(self.vocab.size), self.vocab.hash, self.tokens, self.documents, self.text_bytes, self.checksum];
        for (slot, word) in out[16..64].as_chunks_mut::<8>().0.iter_mut().zip(words) {
            *slot = word.to_le_bytes();
        }
        let checksum = xxh3_64(&out[..64]);
        out[64..].copy_from_slice(&checksum.to_le_bytes());
        out
    }

    /// Reads and checks the header; says what is wrong with it.
    fn parse(bytes: &[u8]) -> Result<Self, String> {
        if bytes.get(..8) != Some(&MAGIC) {
            let got = bytes.get(..8).unwrap_or(bytes).escape_ascii();
            return Err(format!("expected it to start with `RECUATOK`, got `{got}`"));
        }
        let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Err(format!("truncated: expected a header of {HEADER_BYTES} bytes, got {}", bytes.len()));
        };
        let words = header.as_chunks::<8>().0;
        let word = |at: usize| u64::from_le_bytes(words[at]);
        let (version, width) = (word(1) as u32, (word(1) >> 32) as u32);
        if version != VERSION {
            return Err(format!("expected version {VERSION}, got {version}"));
        }
        let (expected, got) = (xxh3_64(&header[..64]), word(8));
        if expected != got {
            return Err(format!("damaged header: expected checksum {expected:016x}, got {got:016x}"));
        }
        let size = u32::try_from(word(2)).unwrap_or(u32::MAX);
        let vocab = Vocab { size, hash: word(3) };
        vocab.check().map_err(|e| e.to_string())?;
        if width as usize != vocab.token_bytes() {
            return Err(format!("expected {} bytes a token for a vocabulary of {size}, got {width}", vocab.token_bytes()));
        }
        Ok(Self { vocab, tokens: word(4), documents: word(5), text_bytes: word(6), checksum: word(7) })
    }

    /// Where the offsets start and the file ends, in bytes, or nothing if that passes 2^64.
    fn layout(&self) -> Option<(u64, u64)> {
        let tokens = self.tokens.checked_mul(self.vocab.token_bytes() as u64)?;
        let offsets = tokens.checked_next_multiple_of(8)?.checked_add(HEADER_BYTES as u64)?;
        let end = self.documents.checked_add(1)?.checked_mul(8)?.checked_add(offsets)?;
        Some((offsets, end))
    }
}

/// The content of a shard: a file, or bytes in memory.
#[derive(Debug)]
enum Content {
    Mapped(Mmap),
    Owned(Vec<u8>),
}

/// One open shard.
#[derive(Debug)]
pub struct Shard {
    path: PathBuf,
    content: Content,
    info: ShardInfo,
    /// Where the offsets start, in bytes.
    offsets_at: usize,
}

impl Shard {
    /// Maps a shard into memory and checks it.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::BadFile`] if it is truncated, damaged or no shard.
    pub fn open(path: &Path, verify: Verify) -> Result<Self> {
        let file = File::open(path).map_err(Error::io("read", path))?;
        let metadata = file.metadata().map_err(Error::io("read", path))?;
        if !metadata.is_file() {
            return Err(Error::bad_file(WHAT, path, "expected a file, got something else", "name a shard"));
        }
        if metadata.len() < HEADER_BYTES as u64 {
            // Some systems cannot map an empty file.
            return Self::new(path, Content::Owned(fs::read(path).map_err(Error::io("read", path))?), verify);
        }
        // SAFETY: the map is only read. Shards are written under another name and renamed when complete, so that
        // nothing of ours changes a file that can be open; one that another program shortens while it is mapped
        // raises SIGBUS, as for every user of mmap, and does not pass as data.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io("map", path))?;
        Self::new(path, Content::Mapped(map), verify)
    }

    /// A shard from bytes in memory; `name` stands for the file in errors.
    ///
    /// # Errors
    /// As [`Shard::open`].
    pub fn from_bytes(name: &Path, bytes: Vec<u8>, verify: Verify) -> Result<Self> {
        Self::new(name, Content::Owned(bytes), verify)
    }

    fn new(path: &Path, content: Content, verify: Verify) -> Result<Self> {
        let bad = |problem: String| Error::bad_file(WHAT, path, problem, REMAKE);
        let bytes = content.bytes();
        let info = ShardInfo::parse(bytes).map_err(bad)?;
        let (offsets_at, end) = info.layout().ok_or_else(|| bad("impossible counts in the header".into()))?;
        if end != bytes.len() as u64 {
            let problem = if end > bytes.len() as u64 { "truncated" } else { "too long" };
            return Err(bad(format!("{problem}: expected {end} bytes, got {}", bytes.len())));
        }
        let shard = Self { path: path.into(), content, info, offsets_at: offsets_at as usize };
        if verify == Verify::Full {
            shard.verify()?;
        }
        Ok(shard)
    }

    /// Checks the content against the header's checksum, the ids against the vocabulary, and the offsets.
    fn verify(&self) -> Result<()> {
        let got = xxh3_64(self.content.bytes().get(HEADER_BYTES..).unwrap_or_default());
        if got != self.info.checksum {
            return Err(self.bad(format!("damaged: expected checksum {:016x}, got {got:016x}", self.info.checksum)));
        }
        self.decode(0, self.info.tokens, |_| ())?;
        let (mut last, mut ends) = (None, [0; 2]);
        for offset in self.offsets().iter().map(|o| u64::from_le_bytes(*o)) {
            match last {
                None => ends[0] = offset,
                Some(last) if offset < last => return Err(self.bad(format!("document offset {offset} after {last}"))),
                Some(_) => {}
            }
            last = Some(offset);
            ends[1] = offset;
        }
        if ends != [0, self.info.tokens] {
            return Err(self.bad(format!("expected document offsets from 0 to {}, got {ends:?}", self.info.tokens)));
        }
        Ok(())
    }

    /// What the header says.
    pub fn info(&self) -> &ShardInfo {
        &self.info
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tokens of document `index`, as a range of the shard's tokens.
    ///
    /// # Errors
    /// [`Error::BadValue`] if there is no such document, [`Error::BadFile`] if the offsets are damaged.
    pub fn document(&self, index: u64) -> Result<Range<u64>> {
        let offsets = self.offsets();
        let at = usize::try_from(index).ok().filter(|_| index < self.info.documents);
        let Some([start, end]) = at.and_then(|at| offsets.get(at..)?.first_chunk::<2>()) else {
            let problem = format!("document {index} of {}", self.info.documents);
            return Err(Error::bad_value(self.path.display().to_string(), problem, "count from 0"));
        };
        let (start, end) = (u64::from_le_bytes(*start), u64::from_le_bytes(*end));
        if start > end || end > self.info.tokens {
            return Err(self.bad(format!("damaged offsets of document {index}: {start}..{end}")));
        }
        Ok(start..end)
    }

    /// Calls `put` with each of `count` ids from token `start` on.
    ///
    /// # Errors
    /// [`Error::BadValue`] for a range beyond the shard, [`Error::BadFile`] for an id beyond the vocabulary.
    pub(super) fn decode(&self, start: u64, count: u64, mut put: impl FnMut(u32)) -> Result<()> {
        let width = self.info.vocab.token_bytes() as u64;
        let range = || {
            let end = start.checked_add(count).filter(|end| *end <= self.info.tokens)?;
            // In the file, whose length was checked, so none of this overflows.
            let (from, to) = (HEADER_BYTES as u64 + start * width, HEADER_BYTES as u64 + end * width);
            self.content.bytes().get(from as usize..to as usize)
        };
        let Some(bytes) = range() else {
            let problem = format!("tokens {start} and {count} on, of {}", self.info.tokens);
            return Err(Error::bad_value(self.path.display().to_string(), problem, "ask for less"));
        };
        let mut max = 0;
        let mut put = |id: u32| {
            max = max.max(id);
            put(id);
        };
        if width == 2 {
            bytes.as_chunks::<2>().0.iter().for_each(|b| put(u16::from_le_bytes(*b).into()));
        } else {
            bytes.as_chunks::<4>().0.iter().for_each(|b| put(u32::from_le_bytes(*b)));
        }
        if max >= self.info.vocab.size && count > 0 {
            return Err(self.bad(format!("expected token ids below {}, got {max}", self.info.vocab.size)));
        }
        Ok(())
    }

    fn offsets(&self) -> &[[u8; 8]] {
        self.content.bytes().get(self.offsets_at..).unwrap_or_default().as_chunks::<8>().0
    }

    fn bad(&self, problem: String) -> Error {
        Error::bad_file(WHAT, &self.path, problem, REMAKE)
    }
}

impl Content {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(bytes) => bytes,
        }
    }
}

/// Writes one shard, a document at a time. Memory: the offsets, 8 bytes a document.
///
/// The file has its name only after [`ShardWriter::finish`]; dropped before that, nothing is left.
pub struct ShardWriter {
    path: PathBuf,
    file: Atomic,
    vocab: Vocab,
    offsets: Vec<u64>,
    text_bytes: u64,
    hash: Xxh3,
    /// The document being written, as bytes.
    buffer: Vec<u8>,
}

impl ShardWriter {
    /// Starts a shard that will be `path`.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be made, [`Error::BadValue`] for an impossible vocabulary.
    pub fn create(path: &Path, vocab: Vocab) -> Result<Self> {
        vocab.check()?;
        let mut writer = Self {
            path: path.into(),
            file: Atomic::create(path)?,
            vocab,
            offsets: vec![0],
            text_bytes: 0,
            hash: Xxh3::new(),
            buffer: Vec::new(),
        };
        writer.write(&[0; HEADER_BYTES])?; // until it is complete, no header
        Ok(writer)
    }

    /// Number of tokens so far.
    pub fn tokens(&self) -> u64 {
        self.offsets.last().copied().unwrap_or(0)
    }

    /// Number of documents so far.
    pub fn documents(&self) -> u64 {
        self.offsets.len() as u64 - 1
    }

    /// Appends a document: its tokens and how many bytes its text had.
    ///
    /// # Errors
    /// [`Error::Vocabulary`] for an id beyond the vocabulary, [`Error::Io`] if writing fails (disk full).
    pub fn push(&mut self, tokens: &[u32], text_bytes: u64) -> Result<()> {
        if let Some(max) = tokens.iter().max().filter(|max| **max >= self.vocab.size) {
            return Err(Error::Vocabulary {
                left: "the tokenizer as stated".into(),
                left_size: self.vocab.size as usize,
                right: format!("a tokenizer that gives id {max}"),
                right_size: *max as usize + 1,
                hint: "count added tokens in the vocabulary's size".into(),
            });
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        if self.vocab.token_bytes() == 2 {
            buffer.extend(tokens.iter().flat_map(|id| (*id as u16).to_le_bytes()));
        } else {
            buffer.extend(tokens.iter().flat_map(|id| id.to_le_bytes()));
        }
        self.hash.update(&buffer);
        self.write(&buffer)?;
        self.buffer = buffer;
        self.offsets.push(self.tokens() + tokens.len() as u64);
        self.text_bytes += text_bytes;
        Ok(())
    }

    /// Writes offsets and header, syncs, and gives the file its name.
    ///
    /// # Errors
    /// [`Error::Io`] if any of that fails.
    pub fn finish(mut self) -> Result<ShardInfo> {
        let mut info = ShardInfo {
            vocab: self.vocab,
            tokens: self.tokens(),
            documents: self.documents(),
            text_bytes: self.text_bytes,
            checksum: 0,
        };
        let written = info.tokens * self.vocab.token_bytes() as u64;
        let padding = vec![0; (written.next_multiple_of(8) - written) as usize];
        self.hash.update(&padding);
        self.write(&padding)?;
        for offset in std::mem::take(&mut self.offsets) {
            self.hash.update(&offset.to_le_bytes());
            self.write(&offset.to_le_bytes())?;
        }
        info.checksum = self.hash.digest();
        self.file.seek(SeekFrom::Start(0)).map_err(Error::io("write", &self.path))?;
        self.write(&info.to_bytes())?;
        self.file.commit()?;
        Ok(info)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(Error::io("write", &self.path))
    }
}
