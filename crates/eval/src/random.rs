//! CPython's `random.Random`: the Mersenne Twister of Matsumoto and Nishimura (1998) as its `seed`, `getrandbits` and `sample` use it,
//! so that shots are those of the reference harness.

use std::collections::HashSet;

const N: usize = 624;
const M: usize = 397;

/// A generator that gives what `random.Random(seed)` gives.
pub struct PythonRandom {
    state: [u32; N],
    at: usize,
}

impl PythonRandom {
    /// Seeded with a number, as `init_by_array` does with its 32-bit digits.
    pub fn new(seed: u64) -> Self {
        let key: Vec<u32> = match (seed as u32, (seed >> 32) as u32) {
            (low, 0) => vec![low],
            (low, high) => vec![low, high],
        };
        let mut state = [0u32; N];
        state[0] = 19_650_218;
        for i in 1..N {
            state[i] = 1_812_433_253u32.wrapping_mul(state[i - 1] ^ (state[i - 1] >> 30)).wrapping_add(i as u32);
        }
        let (mut i, mut j) = (1, 0);
        let mixed = |state: &[u32; N], i: usize| state[i - 1] ^ (state[i - 1] >> 30);
        for _ in 0..N.max(key.len()) {
            state[i] = (state[i] ^ mixed(&state, i).wrapping_mul(1_664_525)).wrapping_add(key[j]).wrapping_add(j as u32);
            (i, j) = (i + 1, (j + 1) % key.len());
            if i == N {
                state[0] = state[N - 1];
                i = 1;
            }
        }
        for _ in 1..N {
            state[i] = (state[i] ^ mixed(&state, i).wrapping_mul(1_566_083_941)).wrapping_sub(i as u32);
            i += 1;
            if i == N {
                state[0] = state[N - 1];
                i = 1;
            }
        }
        state[0] = 0x8000_0000;
        Self { state, at: N }
    }

    fn next(&mut self) -> u32 {
        if self.at == N {
            for i in 0..N {
                let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
                let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[i] = self.state[(i + M) % N] ^ (y >> 1) ^ odd;
            }
            self.at = 0;
        }
        let mut y = self.state[self.at];
        self.at += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// A number below `n`, which is at least 1: numbers of as many bits as `n` has until one is below it.
    fn below(&mut self, n: usize) -> usize {
        let bits = usize::BITS - n.leading_zeros();
        loop {
            let drawn = if bits <= 32 {
                (self.next() >> (32 - bits)) as usize
            } else {
                let low = self.next() as usize;
                low | (((self.next() >> (64 - bits)) as usize) << 32)
            };
            if drawn < n {
                return drawn;
            }
        }
    }

    /// `sample(range(n), k)`: `k` different numbers below `n`, in the order in which they were drawn. `None` for more than there are.
    pub fn sample(&mut self, n: usize, k: usize) -> Option<Vec<usize>> {
        if k > n {
            return None;
        }
        // CPython compares the memory of a set with that of a list.
        let set_size = 21 + if k > 5 { 4usize.pow((((3 * k) as f64).ln() / 4f64.ln()).ceil() as u32) } else { 0 };
        if n <= set_size {
            let mut pool: Vec<usize> = (0..n).collect();
            let drawn = (0..k).map(|i| {
                let j = self.below(n - i);
                let taken = pool[j];
                pool[j] = pool[n - i - 1];
                taken
            });
            return Some(drawn.collect());
        }
        let mut seen = HashSet::new();
        let drawn = (0..k).map(|_| {
            loop {
                let j = self.below(n);
                if seen.insert(j) {
                    return j;
                }
            }
        });
        Some(drawn.collect())
    }
}
