//! Rows of activations rounded to whole numbers of 8 bits, and the forms in which products read them.

use std::sync::OnceLock;

use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use super::super::math::vectorized;
use super::{Dtype, Kind};

/// Elements with a factor of their own.
pub(super) const BLOCK: usize = 32;
/// Blocks that a product takes at once.
pub(super) const GROUP: usize = 4;

/// Rows of whole blocks of 32: an element is its code times its block's factor. As llama.cpp rounds on x86: the largest magnitude becomes
/// 127, ties go to even, the factor is a float16. The factor of a block that has a NaN or an infinity is NaN.
pub(super) struct Rounded {
    pub(super) rows: usize,
    /// Blocks of a row.
    pub(super) blocks: usize,
    /// `[rows][blocks][32]`.
    pub(super) codes: Vec<i8>,
    /// `[rows][blocks]`.
    pub(super) factors: Vec<f32>,
    /// `[rows][blocks]`: the sums of both halves of a block's codes.
    pub(super) sums: Vec<[i32; 2]>,
}

/// Blocks of a row.
fn blocks(x: &[f32], rows: usize) -> usize {
    let blocks = x.len() / rows.max(1) / BLOCK;
    assert_eq!(x.len(), rows * blocks * BLOCK, "rows that are not whole blocks");
    blocks
}

impl Rounded {
    pub(super) fn new(x: &[f32], rows: usize) -> Self {
        let blocks = blocks(x, rows);
        let mut codes = vec![0i8; x.len()];
        let mut factors = vec![0f32; rows * blocks];
        let mut sums = vec![[0i32; 2]; rows * blocks];
        codes
            .par_chunks_mut(TASK * BLOCK)
            .zip(x.par_chunks(TASK * BLOCK))
            .zip(factors.par_chunks_mut(TASK).zip(sums.par_chunks_mut(TASK)))
            // Less is done before another thread is awake.
            .with_min_len(4)
            .for_each(|((codes, x), (factors, sums))| round(x, codes, factors, sums));
        Self { rows, blocks, codes, factors, sums }
    }

    pub(super) fn codes(&self, row: usize, block: usize) -> &[i8; BLOCK] {
        let at = (row * self.blocks + block) * BLOCK;
        self.codes[at..].first_chunk().expect("a block of a row")
    }
}

/// Blocks that are rounded at once.
const TASK: usize = 256;

/// Rounds whole blocks.
fn round(x: &[f32], codes: &mut [i8], factors: &mut [f32], sums: &mut [[i32; 2]]) {
    let (x, codes) = (x.as_chunks::<BLOCK>().0.chunks(TASK), codes.as_chunks_mut::<BLOCK>().0.chunks_mut(TASK));
    for ((x, codes), (factors, sums)) in x.zip(codes).zip(factors.chunks_mut(TASK).zip(sums.chunks_mut(TASK))) {
        let mut inverses = [0f32; TASK];
        let mut halves = [f16::ZERO; TASK];
        let n = x.len();
        magnitudes(x, factors, &mut inverses[..n]);
        halves[..n].convert_from_f32_slice(factors);
        halves[..n].convert_to_f32_slice(factors);
        for (factor, inverse) in factors.iter_mut().zip(&mut inverses) {
            // Of numbers too small for a factor nothing is left.
            if *factor == 0.0 {
                *inverse = 0.0;
            }
            // So marked by `magnitudes`.
            if *inverse < 0.0 {
                (*factor, *inverse) = (f32::NAN, 0.0);
            }
        }
        round_by(x, &inverses[..n], codes, sums);
    }
}

vectorized! {
    /// Of each block the largest magnitude by 127, and 127 by it; -1 for that where not all are numbers.
    fn magnitudes(x: &[[f32; BLOCK]], factors: &mut [f32], inverses: &mut [f32]) {
        for ((x, factor), inverse) in x.iter().zip(&mut *factors).zip(&mut *inverses) {
            // Magnitudes order as their bits do, infinity and NaN above all numbers.
            let mut most = [0u32; 16];
            for (most, (a, b)) in most.iter_mut().zip(x[..16].iter().zip(&x[16..])) {
                *most = (a.to_bits() & 0x7fff_ffff).max(b.to_bits() & 0x7fff_ffff);
            }
            *factor = f32::from_bits(most.into_iter().fold(0, u32::max));
            *inverse = *factor;
        }
        for (factor, inverse) in factors.iter_mut().zip(inverses) {
            *factor /= 127.0;
            *inverse = if inverse.is_finite() { 127.0 / *inverse } else { -1.0 };
        }
    }
}

vectorized! {
    /// The codes of blocks by the inverses of their factors; all zeros where that is zero.
    fn round_by(x: &[[f32; BLOCK]], inverses: &[f32], codes: &mut [[i8; BLOCK]], sums: &mut [[i32; 2]]) {
        for (((x, &inverse), codes), sums) in x.iter().zip(inverses).zip(codes).zip(sums) {
            let mut rounded = [0i32; BLOCK];
            for (rounded, x) in rounded.iter_mut().zip(x) {
                // Not even a NaN goes through.
                let x = if inverse == 0.0 { 0.0 } else { *x };
                // SAFETY: at most 127 and a rounding error.
                *rounded = unsafe { (x * inverse).round_ties_even().to_int_unchecked() };
            }
            for (code, rounded) in codes.iter_mut().zip(rounded) {
                *code = rounded as i8;
            }
            *sums = [rounded[..16].iter().sum(), rounded[16..].iter().sum()];
        }
    }
}

/// Four blocks of a row as products of few rows read them: what is of block `b` lies in the `b`-th 16 bytes.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub(super) struct Group {
    /// The first halves of the blocks.
    pub(super) first: [i8; 64],
    /// The second halves.
    pub(super) second: [i8; 64],
    /// What the type of the weights adds for each block; see [`Kind`].
    pub(super) extra: [i32; 16],
    /// Each block's factor four times.
    pub(super) factors: [f32; 16],
}

/// Most rows of a tile of few.
pub(super) const FEW: usize = 8;

/// Tiles of at most [`FEW`] rows, `[tile][group][row of the tile]`, the last group filled up by zeros.
pub(super) struct Few {
    pub(super) rows: usize,
    /// Groups of a row.
    pub(super) groups: usize,
    at: Vec<Group>,
}

impl Few {
    pub(super) fn new(x: &Rounded, kind: Kind) -> Self {
        let groups = x.blocks.div_ceil(GROUP);
        let nothing = Group { first: [0; 64], second: [0; 64], extra: [0; 16], factors: [0.0; 16] };
        let mut at = vec![nothing; groups * x.rows];
        for (tile, at) in at.chunks_mut((groups * FEW).max(1)).enumerate() {
            let rows = at.len() / groups;
            for (i, out) in at.iter_mut().enumerate() {
                let (group, row) = (i / rows, tile * FEW + i % rows);
                for b in 0..GROUP.min(x.blocks - group * GROUP) {
                    let block = group * GROUP + b;
                    let codes = x.codes(row, block);
                    out.first[16 * b..][..16].copy_from_slice(&codes[..16]);
                    out.second[16 * b..][..16].copy_from_slice(&codes[16..]);
                    let (factor, [a, z]) = (x.factors[row * x.blocks + block], x.sums[row * x.blocks + block]);
                    let four = match kind {
                        Kind::Offset(offset) => [-offset * (a + z), 0, 0, 0],
                        Kind::Mins => [(factor * (a + z) as f32).to_bits() as i32; 4],
                        Kind::Halves(offset) => [-offset * a, -offset * z, 0, 0],
                    };
                    out.extra[4 * b..][..4].copy_from_slice(&four);
                    out.factors[4 * b..][..4].fill(factor);
                }
            }
        }
        Self { rows: x.rows, groups, at }
    }

    /// The tile that begins with `row`, and its rows.
    pub(super) fn tile(&self, row: usize) -> (&[Group], usize) {
        let rows = (self.rows - row).min(FEW);
        (&self.at[row * self.groups..][..rows * self.groups], rows)
    }
}

/// Blocks of a row that are multiplied before the next ones: with those of a stripe of a weight they stay in the first cache.
pub(super) const CHUNK: usize = 32;
/// Rows of a tile of many.
pub(super) const MANY: usize = 6;

/// Where block `b` of a chunk of `n` blocks lies: blocks that are added to one sum lie together.
pub(super) fn place(b: usize, n: usize) -> usize {
    starts(n)[b % GROUP] + b / GROUP
}

/// Where in a chunk of `n` blocks those of each of the four sums begin, and the end.
pub(super) fn starts(n: usize) -> [usize; GROUP + 1] {
    let mut starts = [0; GROUP + 1];
    for p in 0..GROUP {
        starts[p + 1] = starts[p] + (n + GROUP - 1 - p) / GROUP;
    }
    starts
}

/// Rows rounded as [`Rounded`], in tiles of at most [`MANY`], blocks in the order of [`place`] in each chunk: `[tile][block][row of the tile]`.
pub(super) struct Many {
    pub(super) rows: usize,
    pub(super) blocks: usize,
    codes: Vec<[i8; BLOCK]>,
    factors: Vec<f32>,
    sums: Vec<[i32; 2]>,
    /// For the types by [`Dtype::ALL`]: as [`Group`]'s, for both halves; what is of the whole block is in the first.
    extra: [OnceLock<Vec<[i32; 2]>>; Dtype::ALL.len()],
}

/// A part of one tile of [`Many`].
#[derive(Clone, Copy)]
pub(super) struct Tile {
    pub(super) codes: *const [i8; BLOCK],
    pub(super) factors: *const f32,
    pub(super) extra: *const [i32; 2],
}

impl Many {
    pub(super) fn new(x: &[f32], rows: usize) -> Self {
        let blocks = blocks(x, rows);
        let mut codes = vec![[0; BLOCK]; rows * blocks];
        let mut factors = vec![0f32; rows * blocks];
        let mut sums = vec![[0; 2]; rows * blocks];
        let size = (blocks * MANY).max(1);
        let tiles = codes.par_chunks_mut(size).zip(factors.par_chunks_mut(size).zip(sums.par_chunks_mut(size)));
        tiles.zip(x.par_chunks(size * BLOCK)).for_each(|((codes, (factors, sums)), x)| {
            let rows = codes.len() / blocks;
            let mut row_codes = vec![0; blocks * BLOCK];
            let (mut row_factors, mut row_sums) = (vec![0f32; blocks], vec![[0; 2]; blocks]);
            for row in 0..rows {
                round(&x[row * blocks * BLOCK..][..blocks * BLOCK], &mut row_codes, &mut row_factors, &mut row_sums);
                let row_codes = row_codes.as_chunks::<BLOCK>().0;
                for first in (0..blocks).step_by(CHUNK) {
                    let n = CHUNK.min(blocks - first);
                    let starts = starts(n);
                    for p in 0..GROUP {
                        for (i, place) in (starts[p]..starts[p + 1]).enumerate() {
                            let (from, to) = (first + GROUP * i + p, (first + place) * rows + row);
                            codes[to] = row_codes[from];
                            factors[to] = row_factors[from];
                            sums[to] = row_sums[from];
                        }
                    }
                }
            }
        });
        Self { rows, blocks, codes, factors, sums, extra: Default::default() }
    }

    /// What a type adds; to be asked for before any tile.
    pub(super) fn extra(&self, dtype: Dtype) -> &[[i32; 2]] {
        self.extra[dtype as usize].get_or_init(|| {
            let kind = Kind::of(dtype);
            let of = |(factor, [a, z]): (&f32, &[i32; 2])| match kind {
                Kind::Offset(offset) => [-offset * (a + z), 0],
                Kind::Mins => [(factor * (a + z) as f32).to_bits() as i32, 0],
                Kind::Halves(offset) => [-offset * a, -offset * z],
            };
            self.factors.iter().zip(&self.sums).map(of).collect()
        })
    }

    /// The rows of the tile that begins with `row`.
    pub(super) fn tile_rows(&self, row: usize) -> usize {
        (self.rows - row).min(MANY)
    }

    /// The tile that begins with `row`, from the `place`-th of its blocks on.
    pub(super) fn tile(&self, extra: &[[i32; 2]], row: usize, place: usize) -> Tile {
        let at = row * self.blocks + place * self.tile_rows(row);
        Tile { codes: self.codes[at..].as_ptr(), factors: self.factors[at..].as_ptr(), extra: extra[at..].as_ptr() }
    }
}
