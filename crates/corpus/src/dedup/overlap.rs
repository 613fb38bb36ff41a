//! Books that are the same: their overlap measured, and RedPajama's SimHash as an option.
//!
//! LLaMA (section 2.1): "We perform deduplication at the book level, removing books with more than 90 % content overlap."
//!
//! The overlap of a book with an earlier one is the share of the book's distinct shingles ([`WORDS`] words in a row, in lower case,
//! without punctuation) that the earlier one has: |S(earlier) ∩ S(later)| / |S(later)|. The later book is the one that may go,
//! so its size is what counts: nothing is removed unless nine tenths of it are kept elsewhere. (Divided by the smaller
//! size, a collected works would go because one of its stories came before it; by the larger, a story that is in a collection
//! twice would stay.) Two editions that differ in one word of a hundred have an overlap of about 0.95.
//!
//! In three steps, the first two with 2 KiB and 4 KiB a book in memory: a [`sketch`] of each book; [`candidates`], the pairs whose
//! sketches say that they may overlap; and [`duplicates`], which asks for the exact [`overlap`] of those, in order. A book counts
//! against later ones only if it stays itself, so there are no chains: every removed book overlaps a book that is kept.

use std::{collections::HashMap, sync::LazyLock};

use md5::{Digest, Md5};
use regex::Regex;
use xxhash_rust::xxh3::xxh3_64;

use crate::error::Result;

/// Words of a shingle.
pub const WORDS: usize = 5;
/// Hashes of a sketch.
pub const SKETCH: usize = 256;
/// The overlap above which a book goes (LLaMA section 2.1).
pub const THRESHOLD: f64 = 0.9;
/// The estimated overlap from which on a pair is verified. It is far below the threshold so that also an estimate from [`FEW`] hashes
/// hardly misses a pair.
const CANDIDATE: f64 = 0.5;
/// Below this many comparable hashes (books of very unequal length), one in common makes a pair.
const FEW: usize = 16;
/// The most earlier books that are remembered for a hash, the first ones. What more books than that share is boilerplate, or the same
/// book so often that the first of them stand for all.
const SHARED: usize = 64;

/// A book's sample: the [`SKETCH`] smallest of its shingles' hashes, sorted (bottom-k MinHash, Broder 1997).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sketch(Vec<u64>);

impl Sketch {
    /// Its hashes, sorted. Fewer than [`SKETCH`] are all that the book has.
    pub fn hashes(&self) -> &[u64] {
        &self.0
    }
}

/// Calls `each` with the hash of every shingle of `text`, in order. A text of fewer words has one shingle, an empty one none.
///
/// A word is a run of letters and digits, in lower case; all else divides words.
pub fn shingles(text: &str, mut each: impl FnMut(u64)) {
    let mut last = [0_u64; WORDS];
    let mut words = 0;
    let mut lower = String::new();
    for word in text.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()) {
        lower.clear();
        if word.is_ascii() {
            lower.push_str(word);
            lower.make_ascii_lowercase();
        } else {
            lower.extend(word.chars().flat_map(char::to_lowercase));
        }
        last[words % WORDS] = xxh3_64(lower.as_bytes());
        words += 1;
        if words >= WORDS {
            each(combine((0..WORDS).map(|i| last[(words + i) % WORDS])));
        }
    }
    if (1..WORDS).contains(&words) {
        each(combine(last[..words].iter().copied()));
    }
}

/// A hash of words' hashes that depends on their order, with all bits mixed (the finaliser of MurmurHash3).
fn combine(words: impl Iterator<Item = u64>) -> u64 {
    words.fold(0x9e37_79b9_7f4a_7c15, |hash, word| {
        let mut h = (hash.rotate_left(23) ^ word).wrapping_mul(0xff51_afd7_ed55_8ccd);
        h ^= h >> 33;
        h = h.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        h ^ (h >> 33)
    })
}

/// The distinct shingles of a text, as sorted hashes: 8 bytes for each, at most 8 MB for a million words.
pub fn shingle_set(text: &str) -> Vec<u64> {
    let mut set = Vec::new();
    shingles(text, |hash| set.push(hash));
    set.sort_unstable();
    set.dedup();
    set
}

/// The sketch of a text, in time linear in its length and memory for [`SKETCH`] hashes.
pub fn sketch(text: &str) -> Sketch {
    let mut kept: Vec<u64> = Vec::with_capacity(4 * SKETCH);
    let mut limit = u64::MAX;
    shingles(text, |hash| {
        if hash < limit {
            kept.push(hash);
            if kept.len() == 4 * SKETCH {
                kept.sort_unstable();
                kept.dedup();
                kept.truncate(SKETCH);
                if kept.len() == SKETCH {
                    limit = kept[SKETCH - 1];
                }
            }
        }
    });
    kept.sort_unstable();
    kept.dedup();
    kept.truncate(SKETCH);
    kept.shrink_to_fit();
    Sketch(kept)
}

/// The share of `later`'s distinct shingles that `earlier` has, exactly; 0 for a text without words.
pub fn overlap(earlier: &str, later: &str) -> f64 {
    overlap_of_sets(&shingle_set(earlier), &shingle_set(later))
}

/// [`overlap`] of two [`shingle_set`]s.
pub fn overlap_of_sets(earlier: &[u64], later: &[u64]) -> f64 {
    if later.is_empty() {
        return 0.0;
    }
    let mut rest = earlier.iter().peekable();
    let shared = later.iter().filter(|hash| {
        while rest.next_if(|e| e < hash).is_some() {}
        rest.peek() == Some(hash)
    });
    shared.count() as f64 / later.len() as f64
}

/// The overlap that two sketches tell: the share of `later`'s hashes, of those small enough that `earlier`'s sketch would have them,
/// that it has; and how many those are.
pub fn estimate(earlier: &Sketch, later: &Sketch) -> (f64, usize) {
    let reach = if earlier.0.len() < SKETCH { u64::MAX } else { earlier.0.last().copied().unwrap_or(u64::MAX) };
    let comparable = later.0.partition_point(|&h| h <= reach);
    let shared = later.0[..comparable].iter().filter(|h| earlier.0.binary_search(h).is_ok()).count();
    (if comparable == 0 { 0.0 } else { shared as f64 / comparable as f64 }, comparable)
}

/// The pairs of books (earlier, later), by their places in `sketches`, that may overlap by more than [`THRESHOLD`]: sorted by
/// the later one, then the earlier one. Memory: 4 KiB for each book, and 8 bytes for each pair with a hash in common.
///
/// A pair with an overlap of 0.9 is missed with a probability of 1e-6 if the earlier book is at most 16 times as long as the later
/// one. Of longer ones the sketch has few hashes for the later one's part: at 30 times 1 in 1,000 is missed, at 100 times 1 in 10.
pub fn candidates(sketches: &[Sketch]) -> Vec<(usize, usize)> {
    let numbered = (0_u32..).zip(sketches);
    let mut holders: Vec<(u64, u32)> = numbered.flat_map(|(book, s)| s.0.iter().map(move |&hash| (hash, book))).collect();
    holders.sort_unstable();
    let mut pairs: Vec<(u32, u32)> = Vec::new();
    for group in holders.chunk_by(|a, b| a.0 == b.0) {
        for (i, &(_, later)) in group.iter().enumerate() {
            pairs.extend(group[..i.min(SHARED)].iter().map(|&(_, earlier)| (later, earlier)));
        }
    }
    drop(holders);
    pairs.sort_unstable();
    pairs.dedup();
    let pairs = pairs.into_iter().map(|(later, earlier)| (earlier as usize, later as usize));
    pairs.filter(|&(earlier, later)| may_overlap(&sketches[earlier], &sketches[later])).collect()
}

fn may_overlap(earlier: &Sketch, later: &Sketch) -> bool {
    let (share, of) = estimate(earlier, later);
    share >= CANDIDATE || (of < FEW && share > 0.0)
}

/// The books that go, with for each the earlier book that stays and contains it, and the overlap. `candidates` as that function
/// gives them; `overlap` is asked for their exact overlap, and only with earlier books that stay.
///
/// # Errors
/// Those of `overlap` (a book cannot be read again).
pub fn duplicates(
    candidates: &[(usize, usize)],
    threshold: f64,
    mut overlap: impl FnMut(usize, usize) -> Result<f64>,
) -> Result<Vec<(usize, usize, f64)>> {
    let mut gone: Vec<(usize, usize, f64)> = Vec::new();
    let mut last = None;
    for &(earlier, later) in candidates {
        let decided = last == Some(later);
        if decided || gone.binary_search_by_key(&earlier, |g| g.0).is_ok() {
            continue;
        }
        let share = overlap(earlier, later)?;
        if share > threshold {
            gone.push((later, earlier, share));
            last = Some(later);
        }
    }
    Ok(gone)
}

/// The 64-bit SimHash of `features`, as the Python package `simhash` computes it from a list: MD5's last 8 bytes, one vote a bit,
/// and 1 where more than half of the features have a 1.
pub fn simhash<T: AsRef<str>>(features: impl IntoIterator<Item = T>) -> u64 {
    let mut votes = [0_u32; 64];
    let mut count = 0_u64;
    for feature in features {
        let digest = Md5::digest(feature.as_ref().as_bytes());
        let hash = u64::from_be_bytes(std::array::from_fn(|i| digest[8 + i]));
        for (bit, vote) in votes.iter_mut().enumerate() {
            *vote += (hash >> bit & 1) as u32;
        }
        count += 1;
    }
    votes.iter().enumerate().fold(0, |value, (bit, &vote)| value | u64::from(2 * u64::from(vote) > count) << bit)
}

/// A book's SimHash as RedPajama's `book/dedup.py` takes it: of the 6-character windows of the text in lower case without anything
/// but letters, digits and `_` (Python's `\w`); of all that there is, where that is less.
pub fn redpajama_simhash(text: &str) -> u64 {
    const WIDTH: usize = 6;
    // `str.isalnum()` is the general categories L and N; Rust's own alphabetic characters are more.
    static OTHERS: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"[^\p{L}\p{N}_]+").expect("a constant that tests compile"));
    let lower = text.to_lowercase();
    let characters = OTHERS.replace_all(&lower, "");
    let mut places: Vec<usize> = characters.char_indices().map(|(i, _)| i).collect();
    places.push(characters.len());
    let windows = (places.len() - 1).saturating_sub(WIDTH - 1).max(1);
    simhash((0..windows).map(|i| &characters[places[i]..places[(i + WIDTH).min(places.len() - 1)]]))
}

/// The books that RedPajama removes: those with a SimHash at most `distance` bits (it takes 5) from that of any earlier one, be that
/// one removed or not. In their order.
pub fn simhash_duplicates(hashes: &[u64], distance: u32) -> Vec<usize> {
    // Two hashes that differ in at most `distance` bits agree in at least one of `distance + 1` blocks.
    let blocks = (distance + 1).min(64);
    let width = 64 / blocks;
    let mut index: HashMap<(u32, u64), Vec<u32>> = HashMap::new();
    let mut gone = Vec::new();
    for (book, &hash) in hashes.iter().enumerate() {
        let mut found = false;
        for block in 0..blocks {
            let rest = hash >> (block * width);
            let key = if block + 1 == blocks { rest } else { rest & ((1 << width) - 1) };
            let same = index.entry((block, key)).or_default();
            found |= same.iter().any(|&e| (hashes[e as usize] ^ hash).count_ones() <= distance);
            same.push(book as u32);
        }
        if found {
            gone.push(book);
        }
    }
    gone
}
