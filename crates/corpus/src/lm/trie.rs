//! KenLM's `trie` layouts: n-grams read from the last word to the first, words of each order packed in as few bits as they need,
//! with the probabilities in full or quantised, and the pointers in full or with their high bits in a table (Raj and Whittaker
//! 2003).

use super::binary::{Header, Kind, f32_at, take, u64_at};
use super::hash::murmur64a;
use super::model::{Gram, Search};
use super::probing::SIGN;

/// Values of more bits than this do not fit into one read.
const MAX_BITS: u32 = 57;
/// Quantised values have at most this many bits.
const MAX_QUANT_BITS: u8 = 25;
/// Halvings that begin where the key would be if keys were spread evenly; after them, plain halving, which always ends soon.
const GUESSES: u32 = 48;

/// Where everything lies in a file.
#[derive(Clone, Debug)]
pub(super) struct TrieLayout {
    /// The sorted hashes of all words but `<unk>`: where they begin.
    vocabulary: usize,
    /// Words, `<unk>` included.
    pub(super) words: u64,
    unigrams: usize,
    middle: Vec<Middle>,
    longest: Packed,
    longest_values: Values,
    pub(super) end: usize,
}

/// An array of records in bits, each of which begins with a word.
#[derive(Clone, Copy, Debug)]
struct Packed {
    base: usize,
    word_bits: u32,
    total_bits: u64,
    entries: u64,
    max_word: u64,
}

#[derive(Clone, Debug)]
struct Middle {
    packed: Packed,
    values: Values,
    /// Bits of a pointer that lie in the record, after the values.
    next_bits: u32,
    values_bits: u32,
    /// The table of the high bits: where it begins, and its length.
    high: Option<(usize, u64)>,
}

/// How probability and back-off are stored.
#[derive(Clone, Copy, Debug)]
enum Values {
    /// 31 bits (no sign) and 32 bits.
    Plain,
    /// Numbers in two tables of floats: their bits and where the tables begin.
    Quantised { prob_bits: u32, backoff_bits: u32, probs: usize, backoffs: usize },
}

/// Bits that numbers up to `max` need.
fn bits_for(max: u64) -> u32 {
    64 - max.leading_zeros()
}

/// `bits` (57 at most) bits at a place counted in bits from `base`.
#[inline]
fn read_bits(data: &[u8], base: usize, bit: u64, bits: u32) -> Option<u64> {
    let word = u64_at(data, base.checked_add(usize::try_from(bit >> 3).ok()?)?)?;
    Some((word >> (bit & 7)) & ((1 << bits) - 1))
}

impl TrieLayout {
    /// From the header and the small headers in the file. The error says what is wrong.
    pub(super) fn new(header: &Header, data: &[u8]) -> Result<Self, String> {
        let Kind::Trie { quantised, array } = header.kind else { return Err("no trie".into()) };
        let counts = &header.counts;
        let order = counts.len();
        // No n-gram takes less than a bit, so that sums and products of these stay far from 64 bits.
        if let Some(count) = counts.iter().find(|count| **count / 8 > data.len() as u64) {
            return Err(format!("{count} n-grams in {} bytes", data.len()));
        }
        let short = || "the file ends in the headers of its parts".to_string();
        let vocabulary = header.len() + 8;
        let mut at = (vocabulary as u64) + 8 * counts[0];
        let words = u64_at(data, header.len()).ok_or_else(short)?.checked_add(1).ok_or_else(short)?;
        if words > counts[0] + 1 {
            return Err(format!("{words} words, where the header counts {}", counts[0]));
        }
        let (mut prob_bits, mut backoff_bits, mut tables) = (0u8, 0u8, 0);
        if quantised {
            let [version, prob, backoff] = take(data, at as usize).ok_or_else(short)?;
            if version != 2 || !(1..=MAX_QUANT_BITS).contains(&prob) || !(1..=MAX_QUANT_BITS).contains(&backoff) {
                return Err(format!("quantisation version {version} with {prob} and {backoff} bits"));
            }
            (prob_bits, backoff_bits) = (prob, backoff);
            tables = at + 8;
            at = tables + (order as u64 - 1) * (4 << prob) + (order as u64 - 2) * (4 << backoff);
        }
        let unigrams = at;
        at += 16 * (counts[0] + 2);
        let mut chop_limit = 0;
        if array && order > 2 {
            let [version, bits] = take(data, at as usize).ok_or_else(short)?;
            if version != 0 {
                return Err(format!("pointer compression version {version}; 0 is known"));
            }
            chop_limit = u32::from(bits);
        }
        let values = |i: usize| match quantised {
            false => Values::Plain,
            true => {
                let probs = tables + i as u64 * ((4 << prob_bits) + (4 << backoff_bits));
                let backoffs = (probs + (4 << prob_bits)) as usize;
                let (prob_bits, backoff_bits) = (u32::from(prob_bits), u32::from(backoff_bits));
                Values::Quantised { prob_bits, backoff_bits, probs: probs as usize, backoffs }
            }
        };
        let word_bits = bits_for(counts[0]);
        let packed = |at: &mut u64, entries: u64, rest: u32| {
            let total_bits = u64::from(word_bits + rest);
            let base = *at as usize;
            *at += ((1 + entries) * total_bits).div_ceil(8) + 8;
            Packed { base, word_bits, total_bits, entries, max_word: counts[0] }
        };
        let mut middle = Vec::new();
        for i in 0..order - 2 {
            let (entries, max_next) = (counts[i + 1], counts[i + 2]);
            let required = bits_for(max_next);
            let chop = if array { best_chop(entries + 1, max_next, chop_limit) } else { 0 };
            let mut high = None;
            if array {
                let len = (max_next >> (required - chop)) + 1;
                high = Some((at.next_multiple_of(8) as usize + 8, len));
                at += 8 * (1 + len) + 7;
            }
            let next_bits = required - chop;
            let values_bits = if quantised { u32::from(prob_bits) + u32::from(backoff_bits) } else { 63 };
            let packed = packed(&mut at, entries, values_bits + next_bits);
            middle.push(Middle { packed, values: values(i), next_bits, values_bits, high });
        }
        let longest = packed(&mut at, counts[order - 1], if quantised { u32::from(prob_bits) } else { 31 });
        let fits = word_bits <= MAX_BITS && middle.iter().all(|m| m.next_bits <= MAX_BITS);
        let end = usize::try_from(at).ok().filter(|_| fits).ok_or("sizes of more than the address space")?;
        Ok(Self { vocabulary, words, unigrams: unigrams as usize, middle, longest, longest_values: values(order - 2), end })
    }

    /// What is left to check once the file is known to be long enough: nothing; every read checks its bounds.
    pub(super) fn check(&self, data: &[u8]) -> Result<(), String> {
        let last = self.unigrams + 16 * self.words as usize;
        u64_at(data, last).map(|_| ()).ok_or_else(|| format!("no byte {last}"))
    }
}

/// How many high bits of the pointers go to a table: as many as make record bits and table together smallest.
fn best_chop(entries: u64, max_next: u64, limit: u32) -> u32 {
    let required = bits_for(max_next);
    let cost = |chop: u32| i128::from(max_next >> (required - chop).min(63)) * 64 - i128::from(entries) * i128::from(chop);
    (0..=required.min(limit)).min_by_key(|chop| cost(*chop)).unwrap_or(0)
}

/// Finds a key among the sorted values at `begin..end`, none of them above `max`: guesses first, as values are spread evenly.
#[inline]
fn find_sorted(begin: u64, end: u64, max: u64, key: u64, value: impl Fn(u64) -> Option<u64>) -> Option<u64> {
    let (mut begin, mut end, mut low, mut high) = (begin, end, 0, max);
    for round in 0u32.. {
        if begin >= end || key < low || key > high {
            return None;
        }
        let width = end - begin;
        let pivot = if round < GUESSES {
            let share = (u128::from(key - low) * u128::from(width)) / (u128::from(high - low) + 1);
            begin + (share as u64).min(width - 1)
        } else {
            begin + width / 2
        };
        let mid = value(pivot)?;
        match mid.cmp(&key) {
            std::cmp::Ordering::Less => (begin, low) = (pivot + 1, mid),
            std::cmp::Ordering::Greater => (end, high) = (pivot, mid),
            std::cmp::Ordering::Equal => return Some(pivot),
        }
    }
    None
}

impl Packed {
    /// The record of a word in a range of records: its number and where what follows the word begins, in bits.
    #[inline]
    fn find(&self, data: &[u8], range: (u64, u64), word: u32) -> Option<(u64, u64)> {
        let value = |i: u64| read_bits(data, self.base, i * self.total_bits, self.word_bits);
        let at = find_sorted(range.0, range.1.min(self.entries), self.max_word, u64::from(word), value)?;
        Some((at, at * self.total_bits + u64::from(self.word_bits)))
    }
}

impl Values {
    #[inline]
    fn read(&self, data: &[u8], base: usize, bit: u64) -> Option<(f32, f32)> {
        match *self {
            Self::Plain => {
                let log10 = f32::from_bits(read_bits(data, base, bit, 31)? as u32 | SIGN);
                Some((log10, f32::from_bits(read_bits(data, base, bit + 31, 32)? as u32)))
            }
            Self::Quantised { prob_bits, backoff_bits, probs, backoffs } => {
                let backoff = read_bits(data, base, bit, backoff_bits)? as usize;
                let prob = read_bits(data, base, bit + u64::from(backoff_bits), prob_bits)? as usize;
                Some((f32_at(data, probs + 4 * prob)?, f32_at(data, backoffs + 4 * backoff)?))
            }
        }
    }

    #[inline]
    fn read_longest(&self, data: &[u8], base: usize, bit: u64) -> Option<f32> {
        match *self {
            Self::Plain => Some(f32::from_bits(read_bits(data, base, bit, 31)? as u32 | SIGN)),
            Self::Quantised { prob_bits, probs, .. } => f32_at(data, probs + 4 * read_bits(data, base, bit, prob_bits)? as usize),
        }
    }
}

impl Middle {
    /// The records of the next order that extend record `i`.
    #[inline]
    fn next(&self, data: &[u8], i: u64, bit: u64) -> Option<(u64, u64)> {
        let low = |bit| read_bits(data, self.packed.base, bit, self.next_bits);
        let bit = bit + u64::from(self.values_bits);
        let (begin, end) = (low(bit)?, low(bit + self.packed.total_bits)?);
        let Some((at, len)) = self.high else { return Some((begin, end)) };
        // The table's entry h is the first record whose pointer has the high bits h.
        let high = |record: u64| {
            let (mut low, mut high) = (0, len);
            while low < high {
                let mid = low + (high - low) / 2;
                if u64_at(data, at.checked_add(8 * mid as usize)?)? <= record {
                    low = mid + 1;
                } else {
                    high = mid;
                }
            }
            low.checked_sub(1)
        };
        Some((high(i)? << self.next_bits | begin, high(i + 1)? << self.next_bits | end))
    }
}

/// A layout over its bytes.
#[derive(Clone, Copy)]
pub(super) struct Trie<'a> {
    pub(super) data: &'a [u8],
    pub(super) layout: &'a TrieLayout,
}

impl Search for Trie<'_> {
    /// The range of records that are one word longer.
    type Node = (u64, u64);

    fn index(&self, word: &[u8]) -> u32 {
        let value = |i: u64| u64_at(self.data, self.layout.vocabulary + 8 * i as usize);
        let found = find_sorted(0, self.layout.words - 1, u64::MAX, murmur64a(word), value);
        found.map_or(0, |i| (i + 1) as u32)
    }

    #[inline]
    fn unigram(&self, word: u32) -> Gram<(u64, u64)> {
        let at = self.layout.unigrams + 16 * word as usize;
        let value = |offset| f32_at(self.data, at + offset).unwrap_or_default();
        let pointer = |offset| u64_at(self.data, at + offset).unwrap_or_default();
        let node = (pointer(8), pointer(24));
        Gram { log10: value(0), backoff: value(4), node, extends_left: node.0 < node.1 }
    }

    #[inline]
    fn middle(&self, i: usize, word: u32, node: (u64, u64)) -> Option<Gram<(u64, u64)>> {
        let middle = self.layout.middle.get(i)?;
        let (record, bit) = middle.packed.find(self.data, node, word)?;
        let (log10, backoff) = middle.values.read(self.data, middle.packed.base, bit)?;
        let node = middle.next(self.data, record, bit)?;
        Some(Gram { log10, backoff, node, extends_left: node.0 < node.1 })
    }

    #[inline]
    fn longest(&self, word: u32, node: (u64, u64)) -> Option<f32> {
        let longest = &self.layout.longest;
        let (_, bit) = longest.find(self.data, node, word)?;
        self.layout.longest_values.read_longest(self.data, longest.base, bit)
    }
}
