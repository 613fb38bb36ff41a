//! KenLM's default layout: a hash table of words, an array of unigrams, a hash table per higher order, all with linear probing.
//!
//! A probability's sign bit says that no longer n-gram ends in this one (probabilities are never positive, so that the bit is
//! free); a back-off of -0.0, rather than 0.0, that none begins with it, so that it need not be remembered as a context.

use super::binary::{Header, Kind, f32_at, take, u32_at, u64_at};
use super::hash::{extend, murmur64a};
use super::model::{Gram, Search};

/// Slots that a look-up passes at most: only a damaged file has longer runs.
const MAX_PROBES: u64 = 1 << 20;

/// The sign bit of a float.
pub(super) const SIGN: u32 = 1 << 31;

/// A hash table with entries of `E` bytes, a key of 64 bits first; key 0 is an empty slot.
#[derive(Clone, Debug)]
pub(super) struct Table<const E: usize> {
    pub(super) offset: usize,
    pub(super) buckets: u64,
    /// floor((2^64 - 1) / buckets), for a remainder without a division.
    reciprocal: u64,
}

impl<const E: usize> Table<E> {
    /// The table of `entries` keys that begins at `offset`, and where it ends.
    fn new(offset: u64, entries: u64, multiplier: f32) -> Option<(Self, u64)> {
        // As KenLM computes it, in single precision.
        let buckets = entries.checked_add(1)?.max((multiplier * entries as f32) as u64);
        let end = offset.checked_add(buckets.checked_mul(E as u64)?)?;
        usize::try_from(end).ok()?;
        Some((Self { offset: offset as usize, buckets, reciprocal: u64::MAX / buckets }, end))
    }

    /// `key % buckets`.
    #[inline]
    fn ideal(&self, key: u64) -> u64 {
        let quotient = ((u128::from(key) * u128::from(self.reciprocal)) >> 64) as u64; // one too small at most
        let rest = key.wrapping_sub(quotient.wrapping_mul(self.buckets));
        if rest >= self.buckets { rest - self.buckets } else { rest }
    }

    /// Where the key's entry is (`Ok`), or the empty slot that ended the search (`Err`).
    #[inline]
    pub(super) fn locate(&self, data: &[u8], key: u64) -> Result<usize, Option<usize>> {
        let mut slot = self.ideal(key);
        for _ in 0..self.buckets.min(MAX_PROBES) {
            let at = self.offset + slot as usize * E;
            let found = u64_at(data, at).ok_or(None)?;
            if found == key {
                return Ok(at);
            }
            if found == 0 {
                return Err(Some(at));
            }
            slot += 1;
            if slot == self.buckets {
                slot = 0;
            }
        }
        Err(None)
    }

    #[inline]
    fn find(&self, data: &[u8], key: u64) -> Option<[u8; E]> {
        take(data, self.locate(data, key).ok()?)
    }

    /// Where the search for a key will begin, fetched ahead of time.
    #[inline]
    fn prefetch(&self, data: &[u8], key: u64) {
        prefetch(data, self.offset + self.ideal(key) as usize * E);
    }
}

#[inline]
fn prefetch(data: &[u8], at: usize) {
    #[cfg(target_arch = "x86_64")]
    if let Some(byte) = data.get(at) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint, which reads nothing, on an address that is in the slice; SSE is part of x86_64.
        unsafe { _mm_prefetch(std::ptr::from_ref(byte).cast::<i8>(), _MM_HINT_T0) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (data, at);
}

/// Where everything lies in a file.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub(super) vocabulary: Table<12>,
    pub(super) unigrams: usize,
    /// Bytes of a unigram.
    unigram: usize,
    /// Words, `<unk>` included, have ids below this.
    pub(super) max_words: u64,
    pub(super) middle: Vec<Table<16>>,
    /// The same with rest costs; one of the two is empty.
    middle_rest: Vec<Table<20>>,
    pub(super) longest: Table<12>,
    /// Where the words begin.
    pub(super) end: usize,
}

impl Layout {
    /// From the header; `None` if the sizes do not fit into the address space.
    pub(super) fn new(header: &Header) -> Option<Self> {
        let rest = header.kind == Kind::RestProbing;
        let counts = &header.counts;
        let words = *counts.first()?;
        let (vocabulary, at) = Table::new(header.len() as u64 + 8, words, header.multiplier)?;
        let unigrams = usize::try_from(at).ok()?;
        let unigram = if rest { 12 } else { 8 };
        let mut at = at.checked_add(words.checked_add(1)?.checked_mul(unigram as u64)?)?;
        let (mut middle, mut middle_rest) = (Vec::new(), Vec::new());
        for count in counts.get(1..counts.len() - 1)? {
            if rest {
                let (table, end) = Table::new(at, *count, header.multiplier)?;
                middle_rest.push(table);
                at = end;
            } else {
                let (table, end) = Table::new(at, *count, header.multiplier)?;
                middle.push(table);
                at = end;
            }
        }
        let (longest, end) = Table::new(at, *counts.last()?, header.multiplier)?;
        let max_words = words + 1;
        Some(Self { vocabulary, unigrams, unigram, max_words, middle, middle_rest, longest, end: usize::try_from(end).ok()? })
    }

    /// Checks the vocabulary's small header.
    pub(super) fn check(&self, data: &[u8]) -> Result<(), String> {
        let at = self.vocabulary.offset - 8;
        match (u32_at(data, at), u32_at(data, at + 4)) {
            (Some(0), Some(bound)) if u64::from(bound) <= self.max_words && bound > 0 => Ok(()),
            (Some(0), Some(bound)) => Err(format!("{bound} words, where the header counts {}", self.max_words - 1)),
            (version, _) => Err(format!("vocabulary version {}; 0 is known", version.unwrap_or_default())),
        }
    }

    /// Words with an id, `<unk>` included.
    pub(super) fn words(&self, data: &[u8]) -> u32 {
        u32_at(data, self.vocabulary.offset - 4).unwrap_or_default()
    }
}

/// A layout over its bytes.
#[derive(Clone, Copy)]
pub(super) struct Probing<'a> {
    pub(super) data: &'a [u8],
    pub(super) layout: &'a Layout,
}

impl Search for Probing<'_> {
    /// The n-gram's hash.
    type Node = u64;

    #[inline]
    fn index(&self, word: &[u8]) -> u32 {
        let found = self.layout.vocabulary.find(self.data, murmur64a(word)).and_then(|entry| u32_at(&entry, 8));
        found.filter(|id| u64::from(*id) < self.layout.max_words).unwrap_or(0)
    }

    #[inline]
    fn unigram(&self, word: u32) -> Gram<u64> {
        let at = self.layout.unigrams + word as usize * self.layout.unigram;
        let entry = take::<8>(self.data, at).unwrap_or_default();
        gram(&entry, 0, u64::from(word))
    }

    #[inline]
    fn middle(&self, i: usize, word: u32, node: u64) -> Option<Gram<u64>> {
        let key = extend(node, word);
        match self.layout.middle.get(i) {
            Some(table) => Some(gram(&table.find(self.data, key)?, 8, key)),
            None => Some(gram(&self.layout.middle_rest.get(i)?.find(self.data, key)?, 8, key)),
        }
    }

    #[inline]
    fn longest(&self, word: u32, node: u64) -> Option<f32> {
        f32_at(&self.layout.longest.find(self.data, extend(node, word))?, 8)
    }

    #[inline]
    fn prefetch(&self, words: &[u32]) {
        let Some((last, before)) = words.split_last() else { return };
        prefetch(self.data, self.layout.unigrams + *last as usize * self.layout.unigram);
        let mut key = u64::from(*last);
        let tables = self.layout.middle.iter().map(Some).chain([None]);
        for (word, table) in before.iter().rev().zip(tables) {
            key = extend(key, *word);
            match table {
                Some(table) => table.prefetch(self.data, key),
                None => self.layout.longest.prefetch(self.data, key),
            }
        }
    }
}

/// Probability and back-off at an offset in an entry.
#[inline]
fn gram<const E: usize>(entry: &[u8; E], at: usize, node: u64) -> Gram<u64> {
    let bits = u32_at(entry, at).unwrap_or_default();
    let backoff = f32_at(entry, at + 4).unwrap_or_default();
    Gram { log10: f32::from_bits(bits | SIGN), backoff, node, extends_left: bits & SIGN == 0 }
}
