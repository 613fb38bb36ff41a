//! A keyed bijection on `0..n` without a table: the order of an epoch in a few words of memory.

/// Alternating rounds. Each pair leaves two places together with a chance of one in a side's length; after four pairs
/// that is far below the chance that a random permutation does.
const ROUNDS: usize = 8;
/// The least length of a side. Smaller ones would mix badly.
const MIN_SIDE: u64 = 16;

/// A permutation of `0..n` chosen by a key, evaluated one place at a time in O(1) time and memory.
///
/// A Feistel network on pairs `(left, right)` with `left < a`, `right < b`: each round adds a keyed function of one half
/// to the other, modulo its range, which is a bijection whatever the function. `a` is the square root of `n` rounded up
/// and `b` the least for which `a * b >= n`, so that few places are left over; a place that lands on one of those is
/// sent through again until it lands inside `0..n`.
///
/// The order is part of the checkpoint format: the same key gives the same permutation in every version.
#[derive(Clone, Debug)]
pub struct Permutation {
    n: u64,
    a: u64,
    b: u64,
    keys: [u64; ROUNDS],
}

impl Permutation {
    /// The permutation of `0..n` for `key`.
    pub fn new(n: u64, key: u64) -> Self {
        let a = (n.saturating_sub(1).isqrt() + 1).max(MIN_SIDE);
        let b = n.div_ceil(a).max(MIN_SIDE);
        Self { n, a, b, keys: std::array::from_fn(|round| mix_key(&[key, round as u64])) }
    }

    /// The image of `i`, for `i < n`; another place of `0..n`. For `i >= n` (there is none) `i` itself.
    pub fn apply(&self, i: u64) -> u64 {
        if i >= self.n {
            return i;
        }
        let mut x = self.network(i);
        while x >= self.n {
            x = self.network(x);
        }
        x
    }

    /// One pass through the network: a bijection on `0..a * b`. Neither side is above 2^32.
    fn network(&self, x: u64) -> u64 {
        let (mut left, mut right) = (x % self.a, x / self.a);
        for keys in self.keys.as_chunks::<2>().0 {
            left = (left + below(mix(keys[0] ^ right), self.a)) % self.a;
            right = (right + below(mix(keys[1] ^ left), self.b)) % self.b;
        }
        left + right * self.a
    }
}

/// A number below `n` from 64 random bits.
fn below(bits: u64, n: u64) -> u64 {
    ((u128::from(bits) * u128::from(n)) >> 64) as u64
}

/// One 64-bit key from several numbers, in order: `[seed, source, epoch]`.
pub fn mix_key(parts: &[u64]) -> u64 {
    parts.iter().fold(0x243F_6A88_85A3_08D3, |key, part| mix(key.rotate_left(23) ^ mix(*part)))
}

/// SplitMix64's output function (Steele, Lea, Flood 2014): every bit of the input moves every bit of the output.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}
