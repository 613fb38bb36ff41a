//! ARPA text to the bytes of a KenLM binary file (layout `probing`), the same as `build_binary` writes with its defaults.

use std::io::BufRead;
use std::path::Path;

use super::arpa::{LoadOptions, Reader};
use super::binary::{Header, Kind, f32_at, u32_at};
use super::hash::{extend, murmur64a};
use super::probing::{Layout, SIGN, Table};
use crate::error::Result;

/// Slots per key, KenLM's default.
const MULTIPLIER: f32 = 1.5;

/// Reads an ARPA text of at most `size` bytes.
pub(super) fn image(reader: impl BufRead, size: u64, options: &LoadOptions, path: &Path) -> Result<Vec<u8>> {
    let mut reader = Reader::new(reader, options, path);
    let counts = reader.counts(size)?;
    let header = Header { multiplier: MULTIPLIER, kind: Kind::Probing, has_words: true, counts };
    let layout = Layout::new(&header).ok_or_else(|| reader.bad("more n-grams than the address space has room for"))?;
    let used = vec![0; header.counts.len() + 1];
    let mut build = Build { data: vec![0; layout.end], layout, used };
    build.data[..header.len()].copy_from_slice(&header.to_bytes());
    let words = build.unigrams(&mut reader, header.counts[0], options)?;
    for order in 2..=header.counts.len() {
        reader.heading(order)?;
        for _ in 0..header.counts[order - 1] {
            build.ngram(&mut reader, order, order == header.counts.len())?;
        }
    }
    reader.end()?;
    build.data.extend(words);
    Ok(build.data)
}

struct Build {
    data: Vec<u8>,
    layout: Layout,
    /// Keys in each table: words, then by order.
    used: Vec<u64>,
}

/// Inserts a key that may be there already (the first one wins then). `None` if the table is full.
fn insert<const E: usize>(data: &mut [u8], table: &Table<E>, used: &mut u64, key: u64) -> Option<usize> {
    *used += 1;
    if *used >= table.buckets {
        return None;
    }
    let at = match table.locate(data, key) {
        Ok(at) => {
            // As KenLM does it: a second copy goes to the next empty slot, where nothing finds it.
            let mut at = at;
            while data[at..at + 8] != [0; 8] {
                at += E;
                if at == table.offset + table.buckets as usize * E {
                    at = table.offset;
                }
            }
            at
        }
        Err(at) => at?,
    };
    data[at..at + 8].copy_from_slice(&key.to_le_bytes());
    Some(at)
}

impl Build {
    fn put(&mut self, at: usize, bits: u32) {
        self.data[at..at + 4].copy_from_slice(&bits.to_le_bytes());
    }

    fn bits(&self, at: usize) -> u32 {
        u32_at(&self.data, at).unwrap_or_default()
    }

    fn float(&self, at: usize) -> f32 {
        f32_at(&self.data, at).unwrap_or_default()
    }

    /// Where a word's probability is; its back-off follows.
    fn unigram(&self, word: u32) -> usize {
        self.layout.unigrams + 8 * word as usize
    }

    /// Marks an n-gram whose back-off is at `at` as the beginning of a longer one.
    fn is_context(&mut self, at: usize) {
        if self.float(at) == 0.0 {
            self.put(at, 0.0f32.to_bits());
        }
    }

    /// Reads the unigrams: the words, each ended by NUL, as the file ends with them.
    fn unigrams<R: BufRead>(&mut self, reader: &mut Reader<'_, R>, count: u64, options: &LoadOptions) -> Result<Vec<u8>> {
        let unknown = [murmur64a(b"<unk>"), murmur64a(b"<UNK>")];
        let mut words = b"<unk>\0".to_vec();
        let (mut bound, mut saw_unknown) = (1u32, false);
        for _ in 0..count {
            let entry = reader.entry(1, false)?;
            let (log10, backoff) = (entry.log10, negative_zero(entry.backoff));
            let word = &entry.line[entry.words[0].clone()];
            let hash = murmur64a(word);
            let mut id = 0;
            if unknown.contains(&hash) {
                saw_unknown = true;
            } else {
                words.extend(word);
                words.push(0);
                id = bound;
                bound = bound.checked_add(1).ok_or_else(|| reader.bad("more words than 32 bits number"))?;
                let at = insert(&mut self.data, &self.layout.vocabulary, &mut self.used[0], hash)
                    .ok_or_else(|| reader.bad("more words than the header counts"))?;
                self.put(at + 8, id);
            }
            let at = self.unigram(id);
            self.put(at, log10.to_bits());
            self.put(at + 4, backoff.to_bits());
        }
        if !saw_unknown {
            let at = self.unigram(0);
            self.put(at, options.unknown_log10.to_bits());
            self.put(at + 4, 0.0f32.to_bits());
        }
        self.put(self.layout.vocabulary.offset - 4, bound);
        for marker in ["<s>", "</s>"] {
            if self.word(marker.as_bytes()).is_none() && !options.without_markers {
                return Err(reader.bad(format!("no {marker} among the 1-grams (without_markers takes it as unknown)")));
            }
        }
        Ok(words)
    }

    fn word(&self, word: &[u8]) -> Option<u32> {
        let at = self.layout.vocabulary.locate(&self.data, murmur64a(word)).ok()?;
        u32_at(&self.data, at + 8)
    }

    fn ngram<R: BufRead>(&mut self, reader: &mut Reader<'_, R>, order: usize, last: bool) -> Result<()> {
        let entry = reader.entry(order, last)?;
        // The last word first.
        let mut ids = [0u32; super::MAX_ORDER];
        for (id, word) in ids.iter_mut().zip(entry.words.iter().rev()) {
            let word = &entry.line[word.clone()];
            match self.word(word) {
                Some(found) => *id = found,
                None if word == b"<unk>" || word == b"<UNK>" => {}
                None => {
                    let word = String::from_utf8_lossy(word).into_owned();
                    return Err(reader.bad(format!("the word `{word}` is not among the 1-grams")));
                }
            }
        }
        let ids = &ids[..order];
        let (log10, backoff) = (entry.log10, negative_zero(entry.backoff));
        // keys[k]: the last k + 1 words.
        let mut keys = [u64::from(ids[0]); super::MAX_ORDER];
        for k in 1..order {
            keys[k] = extend(keys[k - 1], ids[k]);
        }
        let full = |reader: &Reader<'_, R>| {
            reader.bad("n-grams whose endings are not in the file, more than the hash table has room for")
        };
        let used = &mut self.used[order];
        if last {
            let at = insert(&mut self.data, &self.layout.longest, used, keys[order - 1]).ok_or_else(|| full(reader))?;
            self.put(at + 8, log10.to_bits() | SIGN);
        } else {
            let at = insert(&mut self.data, &self.layout.middle[order - 2], used, keys[order - 1]).ok_or_else(|| full(reader))?;
            self.put(at + 8, log10.to_bits() | SIGN);
            self.put(at + 12, backoff.to_bits());
        }
        self.mark_endings(ids, &keys[..order]).ok_or_else(|| full(reader))?;
        let at = match order {
            2 => self.unigram(ids[1]) + 4,
            _ => self.layout.middle[order - 3]
                .locate(&self.data, hash(&ids[1..]))
                .map(|at| at + 12)
                .map_err(|_| reader.bad(format!("the first {} words are not among the {}-grams", order - 1, order - 1)))?,
        };
        self.is_context(at);
        Ok(())
    }

    /// Tells the longest ending of an n-gram that the model has, that there is something longer. Where pruning took the endings in
    /// between, they are put back with the probability that backing off gives them, so that the walk to the left finds its way.
    fn mark_endings(&mut self, ids: &[u32], keys: &[u64]) -> Option<()> {
        let mut missing = Vec::new();
        let mut basis = ids.len() - 1;
        let found = loop {
            if basis == 1 {
                break self.unigram(ids[0]);
            }
            let table = &self.layout.middle[basis - 2];
            match table.locate(&self.data, keys[basis - 1]) {
                Ok(at) => break at + 8,
                Err(_) => {
                    let at = insert(&mut self.data, table, &mut self.used[basis], keys[basis - 1])?;
                    self.put(at + 12, (-0.0f32).to_bits());
                    missing.push(at + 8);
                    basis -= 1;
                }
            }
        };
        let mut log10 = f32::from_bits(self.bits(found) | SIGN);
        for at in missing.into_iter().rev() {
            let backoff = match basis {
                1 => Some(self.unigram(ids[1]) + 4),
                _ => self.layout.middle[basis - 2].locate(&self.data, hash(&ids[1..=basis])).ok().map(|at| at + 12),
            };
            if let Some(backoff) = backoff {
                self.is_context(backoff);
                log10 += self.float(backoff);
            }
            self.put(at, log10.to_bits() & !SIGN);
            basis += 1;
        }
        let bits = self.bits(found) & !SIGN;
        self.put(found, bits);
        Some(())
    }
}

/// The hash of an n-gram whose last word comes first.
fn hash(ids: &[u32]) -> u64 {
    ids.split_first().map_or(0, |(last, before)| before.iter().fold(u64::from(*last), |key, word| extend(key, *word)))
}

/// KenLM's mark of an n-gram that nothing begins with, until something does.
fn negative_zero(backoff: f32) -> f32 {
    if backoff == 0.0 { -0.0 } else { backoff }
}
