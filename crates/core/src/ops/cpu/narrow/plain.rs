//! Products of narrow weights in plain Rust.

use half::f16;

use super::super::super::blocks::scale_min;
use super::rounded::{BLOCK, GROUP, Rounded};
use super::{Dtype, Kind, Stripe};

/// 32 elements of a weight: `scale * halves[i / 16] * (codes[i] - offset) - min`.
pub(super) struct Block {
    pub(super) codes: [u8; BLOCK],
    pub(super) scale: f32,
    pub(super) min: f32,
    pub(super) halves: [i32; 2],
}

fn half(at: &[u8]) -> f32 {
    f16::from_le_bytes([at[0], at[1]]).to_f32()
}

impl Block {
    /// The `b`-th 32 elements of a row.
    pub(super) fn read(dtype: Dtype, row: &[u8], b: usize) -> Self {
        let (len, bytes) = dtype.block();
        let (at, i) = (&row[b * BLOCK / len * bytes..][..bytes], b % (len / BLOCK));
        let mut block = Self { codes: [0; BLOCK], scale: half(at), min: 0.0, halves: [1; 2] };
        let codes = &mut block.codes;
        match dtype {
            Dtype::Q8_0 => (0..32).for_each(|j| codes[j] = at[2 + j] ^ 0x80),
            Dtype::Q4_0 => (0..32).for_each(|j| codes[j] = at[2 + j % 16] >> (j / 16 * 4) & 15),
            Dtype::Q5_0 => {
                (0..32).for_each(|j| codes[j] = at[6 + j % 16] >> (j / 16 * 4) & 15 | (at[2 + j / 8] >> (j % 8) & 1) << 4);
            }
            Dtype::Q4_K | Dtype::Q5_K => {
                let (scale, min) = scale_min(&at[4..16], i);
                (block.scale, block.min) = (half(at) * f32::from(scale), half(&at[2..]) * f32::from(min));
                let low = i / 2 * 32 + if dtype == Dtype::Q4_K { 16 } else { 48 };
                for (j, code) in codes.iter_mut().enumerate() {
                    let high = if dtype == Dtype::Q4_K { 0 } else { (at[16 + j] >> i & 1) << 4 };
                    *code = at[low + j] >> (i % 2 * 4) & 15 | high;
                }
            }
            Dtype::Q6_K => {
                block.scale = half(&at[208..]);
                block.halves = [0, 1].map(|half| i32::from(at[192 + 2 * i + half] as i8));
                let (low, high) = (64 * (i / 4) + 32 * (i % 2), 128 + 32 * (i / 4));
                for (j, code) in codes.iter_mut().enumerate() {
                    *code = at[low + j] >> (i % 4 / 2 * 4) & 15 | (at[high + j] >> (2 * (i % 4)) & 3) << 4;
                }
            }
            Dtype::F32 | Dtype::F16 | Dtype::BF16 => unreachable!("a type without blocks"),
        }
        block
    }
}

/// One stripe of a product.
pub(super) fn stripe(x: &Rounded, s: &Stripe<'_>) {
    let kind = Kind::of(s.dtype);
    let mut sums = vec![[0f32; GROUP]; x.rows];
    for c in 0..s.columns {
        sums.fill([0.0; GROUP]);
        for b in 0..x.blocks {
            let w = Block::read(s.dtype, s.row(c), b);
            for (row, sums) in sums.iter_mut().enumerate() {
                let (codes, at) = (x.codes(row, b), row * x.blocks + b);
                let half = |i: usize| -> i32 {
                    let products = w.codes[i..i + 16].iter().zip(&codes[i..i + 16]).map(|(&w, &x)| i32::from(w) * i32::from(x));
                    products.sum()
                };
                let (first, second, [a, z], factor) = (half(0), half(16), x.sums[at], x.factors[at]);
                let whole = match kind {
                    Kind::Offset(offset) => first + second - offset * (a + z),
                    Kind::Mins => first + second,
                    Kind::Halves(offset) => w.halves[0] * (first - offset * a) + w.halves[1] * (second - offset * z),
                };
                let sum = &mut sums[b % GROUP];
                *sum = (whole as f32).mul_add(w.scale * factor, *sum);
                if matches!(kind, Kind::Mins) {
                    *sum = (-w.min).mul_add(factor * (a + z) as f32, *sum);
                }
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            // SAFETY: the stripe's own elements.
            unsafe { s.put(row, c, ((sums[0] + sums[1]) + sums[2]) + sums[3]) };
        }
    }
}
