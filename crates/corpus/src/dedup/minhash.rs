//! Near-duplicates: MinHash signatures cut into bands (Broder 1997; Leskovec, Rajaraman and Ullman, *Mining of Massive Datasets*,
//! chapter 3). Beyond the paper; an option of every source.
//!
//! Documents that agree in all rows of a band are candidates; [`crate::engine`] groups them, and [`duplicates`] keeps the
//! first of each group. Candidates are taken at their word, as in FineWeb: with the defaults two documents of Jaccard similarity
//! 0.6 meet with probability 0.21, of 0.7 with 0.56, of 0.8 with 0.92, of 0.9 with 0.9996.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::overlap;
use crate::error::Result;

/// Settings; the defaults are FineWeb's: shingles of five words, 14 bands of 8 rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Bands.
    pub bands: usize,
    /// Hashes of a band.
    pub rows: usize,
    /// Of the hash functions.
    pub seed: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { bands: 14, rows: 8, seed: 1 }
    }
}

/// Shingles that are hashed at a time: they stay in the first cache.
const BLOCK: usize = 256;

impl Config {
    /// The smallest hash of the text's shingles under each of `bands * rows` hash functions. Empty for a text without words.
    ///
    /// The functions are the finaliser of MurmurHash3 with another key each, over 32 bits of the shingle's hash: integer
    /// arithmetic that compilers turn into vectors.
    pub fn signature(&self, text: &str) -> Vec<u32> {
        let keys: Vec<u32> =
            (0..self.bands * self.rows).map(|i| xxh3_64_with_seed(&(i as u64).to_le_bytes(), self.seed) as u32).collect();
        let mut least = vec![u32::MAX; keys.len()];
        let mut block = [0_u32; BLOCK];
        let (mut n, mut any) = (0, false);
        overlap::shingles(text, |hash| {
            any = true;
            block[n] = hash as u32;
            n += 1;
            if n == BLOCK {
                smallest(&mut least, &keys, &block);
                n = 0;
            }
        });
        smallest(&mut least, &keys, &block[..n]);
        if any { least } else { Vec::new() }
    }

    /// A key for each band of the text's signature: documents that share one are candidates. None for a text without words.
    pub fn bands(&self, text: &str) -> Vec<u64> {
        let signature = self.signature(text);
        let key = |(band, rows): (usize, &[u32])| {
            let bytes: Vec<u8> = rows.iter().flat_map(|h| h.to_le_bytes()).collect();
            xxh3_64_with_seed(&bytes, band as u64)
        };
        signature.chunks_exact(self.rows.max(1)).enumerate().map(key).collect()
    }
}

fn smallest(least: &mut [u32], keys: &[u32], shingles: &[u32]) {
    for (least, &key) in least.iter_mut().zip(keys) {
        let mut min = *least;
        for &x in shingles {
            let mut h = x ^ key;
            h ^= h >> 16;
            h = h.wrapping_mul(0x85eb_ca6b);
            h ^= h >> 13;
            h = h.wrapping_mul(0xc2b2_ae35);
            h ^= h >> 16;
            min = min.min(h);
        }
        *least = min;
    }
}

/// The share of equal hashes: an estimate of the Jaccard similarity of the shingle sets.
pub fn similarity(a: &[u32], b: &[u32]) -> f64 {
    let same = a.iter().zip(b).filter(|(a, b)| a == b).count();
    same as f64 / a.len().max(b.len()).max(1) as f64
}

/// All but the first document of each group of candidates, ascending: pairs make groups, whoever brings them together. Memory: some
/// 40 bytes for each document that is in a pair.
///
/// # Errors
/// Those of `pairs`.
pub fn duplicates(pairs: impl IntoIterator<Item = Result<(u64, u64)>>) -> Result<Vec<u64>> {
    let mut parent: HashMap<u64, u64> = HashMap::new();
    fn root(parent: &mut HashMap<u64, u64>, mut doc: u64) -> u64 {
        while let Some(&up) = parent.get(&doc).filter(|up| **up != doc) {
            // Halves the way for the next one.
            let above = parent.get(&up).copied().unwrap_or(up);
            parent.insert(doc, above);
            doc = above;
        }
        doc
    }
    for pair in pairs {
        let (a, b) = pair?;
        let (a, b) = (root(&mut parent, a), root(&mut parent, b));
        // The first document stands for its group.
        parent.insert(a.max(b), a.min(b));
        parent.entry(a.min(b)).or_insert(a.min(b));
    }
    let mut gone: Vec<u64> = parent.iter().filter(|(doc, up)| doc != up).map(|(doc, _)| *doc).collect();
    gone.sort_unstable();
    Ok(gone)
}
