//! The hashes that KenLM's binary files are built on: words by MurmurHash64A, n-grams by folding word ids from the right.

/// MurmurHash64A (Austin Appleby, public domain) with seed 0, which is how KenLM hashes words.
pub(super) fn murmur64a(bytes: &[u8]) -> u64 {
    const M: u64 = 0xc6a4_a793_5bd1_e995;
    let mut h = (bytes.len() as u64).wrapping_mul(M);
    let (chunks, tail) = bytes.as_chunks::<8>();
    for chunk in chunks {
        let mut k = u64::from_le_bytes(*chunk).wrapping_mul(M);
        k ^= k >> 47;
        h = (h ^ k.wrapping_mul(M)).wrapping_mul(M);
    }
    if !tail.is_empty() {
        let rest = tail.iter().rev().fold(0, |rest, b| rest << 8 | u64::from(*b));
        h = (h ^ rest).wrapping_mul(M);
    }
    h ^= h >> 47;
    h = h.wrapping_mul(M);
    h ^ h >> 47
}

/// The hash of an n-gram from that of its last n - 1 words and the word before them. The hash of one word is its id.
#[inline]
pub(super) fn extend(suffix: u64, word: u32) -> u64 {
    suffix.wrapping_mul(8_978_948_897_894_561_157) ^ (1 + u64::from(word)).wrapping_mul(17_894_857_484_156_487_943)
}
