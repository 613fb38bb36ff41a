//! Blocks of files as a device reads them, and back, to the bit: the same numbers in another order. Host code.
//!
//! A row is tiles of [`TILE`] elements, the last one filled up with zeros. Four units read a tile side by side: unit `u` has, of each 32
//! elements `j`, the four from `4 u` and the four from `16 + 4 u`. What they read lies in up to four tensors:
//!
//! - `low`: codes without a sign. Up to 6 bits: their low 4, a word for 8 of them, a vector of 4 words (one a `j`) a unit. 8 bits: a word
//!   for 4, two vectors a unit.
//! - `high`: a bit (of 5) or two (of 6) more of each of a unit's 32 codes, 1 or 2 words
//! - `scales`: two words a tile: of `Q4_K`, `Q5_K` the 6-bit factors of each 32 elements, a byte each, then their offsets; of `Q6_K` the
//!   factors of the first, then of the second 16 of each 32
//! - `factors`: float16 as in the file, or float32: one for each 32 elements, or the one or two of a block of 256

use rayon::prelude::*;

use crate::ops::Dtype;
use crate::ops::blocks::scale_min;

/// Elements of a tile: what four units read at once.
pub(super) const TILE: usize = 128;

/// How codes of a type lie on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Layout {
    /// Bits of a code: 4, 5, 6 or 8.
    pub(super) bits: usize,
    /// What is taken off a code.
    pub(super) offset: usize,
    /// Its factors.
    pub(super) scaled: Scaled,
}

/// What a code is multiplied with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Scaled {
    /// A factor for each 32 elements.
    Each,
    /// `d` times a whole number for each 32; `dmin` times another is taken off.
    Pairs,
    /// `d` times a whole number for each 16.
    Halves,
}

impl Layout {
    /// Of a type of blocks; `None`: a float type.
    pub(super) fn of(dtype: Dtype) -> Option<Self> {
        let of = |bits, offset, scaled| Some(Self { bits, offset, scaled });
        match dtype {
            Dtype::F32 | Dtype::F16 | Dtype::BF16 => None,
            Dtype::Q8_0 => of(8, 128, Scaled::Each),
            Dtype::Q4_0 => of(4, 8, Scaled::Each),
            Dtype::Q5_0 => of(5, 16, Scaled::Each),
            Dtype::Q4_K => of(4, 0, Scaled::Pairs),
            Dtype::Q5_K => of(5, 0, Scaled::Pairs),
            Dtype::Q6_K => of(6, 32, Scaled::Halves),
        }
    }

    /// Elements of a block.
    fn block(self) -> usize {
        if self.scaled == Scaled::Each { 32 } else { 256 }
    }

    /// Words of low bits, of high bits and of scales, and factors, of a row of so many elements.
    pub(super) fn sizes(self, width: usize) -> [usize; 4] {
        let tiles = width.div_ceil(TILE);
        [
            tiles * 4 * self.vectors() * 4,
            tiles * 4 * self.high(),
            tiles * self.scales(),
            tiles * TILE / self.block() * self.factors(),
        ]
    }

    /// Vectors of low bits that a unit reads of a tile.
    pub(super) fn vectors(self) -> usize {
        if self.bits == 8 { 2 } else { 1 }
    }

    /// Words of high bits likewise.
    pub(super) fn high(self) -> usize {
        match self.bits {
            5 => 1,
            6 => 2,
            _ => 0,
        }
    }

    /// Words of scales of a tile.
    pub(super) fn scales(self) -> usize {
        if self.scaled == Scaled::Each { 0 } else { 2 }
    }

    /// Factors of a block.
    fn factors(self) -> usize {
        if self.scaled == Scaled::Pairs { 2 } else { 1 }
    }

    /// Factors that a unit reads at once: those of a tile, or of a block that is more than a tile.
    pub(super) fn read_at_once(self) -> usize {
        if self.scaled == Scaled::Each { 4 } else { self.factors() }
    }

    /// Where element `i` of a tile is among the low words, and its first bit there.
    fn low_at(self, i: usize) -> (usize, usize) {
        let (j, half, unit, byte) = (i / 32, i / 16 % 2, i / 4 % 4, i % 4);
        if self.bits == 8 {
            return (((j / 2) * 4 + unit) * 4 + j % 2 * 2 + half, 8 * byte);
        }
        (unit * 4 + j, 16 * half + 4 * byte)
    }

    /// Likewise among the high words.
    fn high_at(self, i: usize) -> (usize, usize) {
        let (j, half, unit, byte) = (i / 32, i / 16 % 2, i / 4 % 4, i % 4);
        if self.bits == 5 {
            let eighth = 2 * j + half;
            return (unit, 16 * (eighth / 4) + 4 * byte + eighth % 4);
        }
        (unit * 2 + j / 2, 16 * (j % 2) + 4 * byte + 2 * half)
    }
}

/// Rows as they lie on a device; factors as float16's bits.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Packed {
    pub(super) low: Vec<u32>,
    pub(super) high: Vec<u32>,
    pub(super) scales: Vec<u32>,
    pub(super) factors: Vec<u16>,
}

impl Packed {
    fn zeros([low, high, scales, factors]: [usize; 4], rows: usize) -> Self {
        Self {
            low: vec![0; rows * low],
            high: vec![0; rows * high],
            scales: vec![0; rows * scales],
            factors: vec![0; rows * factors],
        }
    }
}

/// A block taken apart.
#[derive(Clone, Copy)]
struct Block {
    codes: [u8; 256],
    factors: [u16; 2],
    /// Of each 32 elements, or 16, in order; offsets after them.
    scales: [u8; 16],
}

/// Rows of a type of blocks.
pub(super) fn pack(dtype: Dtype, bytes: &[u8], width: usize) -> Packed {
    let layout = Layout::of(dtype).expect("a type of blocks");
    let (len, size) = dtype.block();
    let row_bytes = width / len * size;
    let sizes = layout.sizes(width);
    let mut packed = Packed::zeros(sizes, bytes.len() / row_bytes);
    let [low, high, scales, factors] = sizes.map(|n| n.max(1));
    // What a type does not have is empty: chunks of that are lent as empty ones.
    let rows = bytes.par_chunks(row_bytes).zip(packed.low.par_chunks_mut(low)).zip(packed.factors.par_chunks_mut(factors));
    let row = |bytes: &[u8], low: &mut [u32], high: &mut [u32], scales: &mut [u32], factors: &mut [u16]| {
        let places: [_; TILE] = std::array::from_fn(|i| (layout.low_at(i), layout.high_at(i)));
        let (low_bits, tile_low) = (if layout.bits == 8 { 8 } else { 4 }, 16 * layout.vectors());
        for (b, bytes) in bytes.chunks_exact(size).enumerate() {
            let block = split(dtype, bytes);
            for (i, &code) in block.codes[..len].iter().enumerate() {
                let at = b * len + i;
                let (tile, ((word, shift), (high_word, high_shift))) = (at / TILE, places[at % TILE]);
                let code = u32::from(code);
                low[tile * tile_low + word] |= (code & ((1 << low_bits) - 1)) << shift;
                if layout.high() > 0 {
                    high[tile * 4 * layout.high() + high_word] |= (code >> 4) << high_shift;
                }
            }
            let n = layout.factors();
            factors[b * n..][..n].copy_from_slice(&block.factors[..n]);
            if layout.scales() > 0 {
                for (k, &scale) in block.scales.iter().enumerate() {
                    let (word, shift) = scale_at(layout, k);
                    scales[b * 4 + word] |= u32::from(scale) << shift;
                }
            }
        }
    };
    match (layout.high() > 0, layout.scales() > 0) {
        (false, false) => rows.for_each(|((b, l), f)| row(b, l, &mut [], &mut [], f)),
        (true, false) => rows.zip(packed.high.par_chunks_mut(high)).for_each(|(((b, l), f), h)| row(b, l, h, &mut [], f)),
        (false, true) => rows.zip(packed.scales.par_chunks_mut(scales)).for_each(|(((b, l), f), s)| row(b, l, &mut [], s, f)),
        (true, true) => rows
            .zip(packed.high.par_chunks_mut(high))
            .zip(packed.scales.par_chunks_mut(scales))
            .for_each(|((((b, l), f), h), s)| row(b, l, h, s, f)),
    }
    packed
}

/// The bytes of rows as they were: the other way round.
pub(super) fn unpack(dtype: Dtype, packed: &Packed, width: usize) -> Vec<u8> {
    let layout = Layout::of(dtype).expect("a type of blocks");
    let (len, size) = dtype.block();
    let row_bytes = width / len * size;
    let [low, high, scales, factors] = layout.sizes(width);
    let mut bytes = vec![0; packed.low.len() / low * row_bytes];
    bytes.par_chunks_mut(row_bytes).enumerate().for_each(|(row, bytes)| {
        for (b, bytes) in bytes.chunks_exact_mut(size).enumerate() {
            let mut block = Block { codes: [0; 256], factors: [0; 2], scales: [0; 16] };
            for (i, code) in block.codes[..len].iter_mut().enumerate() {
                let (tile, at) = ((b * len + i) / TILE, (b * len + i) % TILE);
                let (word, shift) = layout.low_at(at);
                let found = packed.low[row * low + tile * 16 * layout.vectors() + word] >> shift;
                *code = found as u8 & if layout.bits == 8 { 255 } else { 15 };
                if layout.high() > 0 {
                    let (word, shift) = layout.high_at(at);
                    let found = packed.high[row * high + tile * 4 * layout.high() + word] >> shift;
                    *code |= (found as u8 & (layout.high() as u8 * 2 - 1)) << 4;
                }
            }
            let n = layout.factors();
            block.factors[..n].copy_from_slice(&packed.factors[row * factors + b * n..][..n]);
            if layout.scales() > 0 {
                for (k, scale) in block.scales.iter_mut().enumerate() {
                    let (word, shift) = scale_at(layout, k);
                    *scale = (packed.scales[row * scales + b * 4 + word] >> shift) as u8;
                }
            }
            join(dtype, &block, bytes);
        }
    });
    bytes
}

/// Where scale `k` of a block of 256 is among its four words.
fn scale_at(layout: Layout, k: usize) -> (usize, usize) {
    // Of pairs: 8 factors, then 8 offsets, 4 of each a tile. Else: 16 in order, 8 a tile, by halves of 32.
    let (tile, which, j) = if layout.scaled == Scaled::Pairs { (k / 4 % 2, k / 8, k % 4) } else { (k / 8, k % 2, k / 2 % 4) };
    (2 * tile + which, 8 * j)
}

/// The factors of a block's bytes; one twice.
pub(super) fn factors(dtype: Dtype, b: &[u8]) -> [u16; 2] {
    let half = |at: usize| u16::from_le_bytes([b[at], b[at + 1]]);
    match dtype {
        Dtype::Q6_K => [half(208); 2],
        Dtype::Q4_K | Dtype::Q5_K => [half(0), half(2)],
        _ => [half(0); 2],
    }
}

fn split(dtype: Dtype, b: &[u8]) -> Block {
    let mut block = Block { codes: [0; 256], factors: factors(dtype, b), scales: [0; 16] };
    let codes = &mut block.codes;
    match dtype {
        Dtype::Q8_0 => codes.iter_mut().zip(&b[2..]).for_each(|(code, q)| *code = q ^ 128),
        Dtype::Q4_0 | Dtype::Q5_0 => {
            let low = if dtype == Dtype::Q4_0 { &b[2..] } else { &b[6..] };
            for (i, q) in low.iter().enumerate() {
                (codes[i], codes[i + 16]) = (q & 15, q >> 4);
            }
            if dtype == Dtype::Q5_0 {
                let high = u32::from_le_bytes([b[2], b[3], b[4], b[5]]);
                codes[..32].iter_mut().enumerate().for_each(|(i, code)| *code |= ((high >> i & 1) << 4) as u8);
            }
        }
        Dtype::Q4_K | Dtype::Q5_K => {
            for i in 0..8 {
                (block.scales[i], block.scales[i + 8]) = scale_min(&b[4..16], i);
            }
            let low = if dtype == Dtype::Q4_K { &b[16..] } else { &b[48..] };
            for (i, code) in codes.iter_mut().enumerate() {
                *code = low[i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15;
                if dtype == Dtype::Q5_K {
                    *code |= (b[16 + i % 32] >> (i / 32) & 1) << 4;
                }
            }
        }
        _ => {
            for (i, code) in codes.iter_mut().enumerate() {
                let (low, low_shift, high, high_shift) = six(i);
                *code = b[low] >> low_shift & 15 | (b[high] >> high_shift & 3) << 4;
            }
            block.scales.iter_mut().zip(&b[192..208]).for_each(|(scale, b)| *scale = b ^ 128);
        }
    }
    block
}

/// Where element `i` of a `Q6_K` block is: byte and first bit of the low four bits, of the high two.
fn six(i: usize) -> (usize, usize, usize, usize) {
    let (half, quarter, j) = (i / 128, i / 32 % 4, i % 32);
    (64 * half + 32 * (quarter % 2) + j, quarter / 2 * 4, 128 + 32 * half + j, 2 * quarter)
}

/// Into bytes that are zero.
fn join(dtype: Dtype, block: &Block, b: &mut [u8]) {
    let Block { codes, factors, scales } = block;
    let at = if dtype == Dtype::Q6_K { 208 } else { 0 };
    b[at..at + 2].copy_from_slice(&factors[0].to_le_bytes());
    match dtype {
        Dtype::Q8_0 => b[2..].iter_mut().zip(codes).for_each(|(b, code)| *b = code ^ 128),
        Dtype::Q4_0 | Dtype::Q5_0 => {
            let first = if dtype == Dtype::Q4_0 { 2 } else { 6 };
            for (i, b) in b[first..].iter_mut().enumerate() {
                *b = codes[i] & 15 | codes[i + 16] << 4;
            }
            if dtype == Dtype::Q5_0 {
                let high = codes[..32].iter().enumerate().fold(0, |high, (i, code)| high | u32::from(code >> 4 & 1) << i);
                b[2..6].copy_from_slice(&high.to_le_bytes());
            }
        }
        Dtype::Q4_K | Dtype::Q5_K => {
            b[2..4].copy_from_slice(&factors[1].to_le_bytes());
            let (scale, min) = scales.split_at(8);
            for i in 0..4 {
                b[4 + i] = scale[i] | scale[i + 4] >> 4 << 6;
                b[8 + i] = min[i] | min[i + 4] >> 4 << 6;
                b[12 + i] = scale[i + 4] & 15 | min[i + 4] << 4;
            }
            let first = if dtype == Dtype::Q4_K { 16 } else { 48 };
            for (i, code) in codes.iter().enumerate() {
                b[first + i / 64 * 32 + i % 32] |= (code & 15) << (i / 32 % 2 * 4);
                if dtype == Dtype::Q5_K {
                    b[16 + i % 32] |= (code >> 4) << (i / 32);
                }
            }
        }
        _ => {
            for (i, code) in codes.iter().enumerate() {
                let (low, low_shift, high, high_shift) = six(i);
                b[low] |= (code & 15) << low_shift;
                b[high] |= (code >> 4) << high_shift;
            }
            b[192..208].iter_mut().zip(scales).for_each(|(b, scale)| *b = scale ^ 128);
        }
    }
}

/// Float16's bits as float32's: exact, what is no number too.
pub(super) fn widened_bits(half: u16) -> u32 {
    let (sign, rest) = (u32::from(half & 0x8000) << 16, u32::from(half & 0x7fff));
    match rest {
        0x7c00.. => sign | 0x7f80_0000 | (rest & 0x3ff) << 13,
        _ => half::f16::from_bits(half).to_f32().to_bits(),
    }
}

/// The other way round.
pub(super) fn narrowed_bits(float: u32) -> u16 {
    match float & 0x7fff_ffff {
        rest @ 0x7f80_0000.. => (float >> 16 & 0x8000) as u16 | 0x7c00 | (rest >> 13 & 0x3ff) as u16,
        _ => half::f16::from_f32(f32::from_bits(float)).to_bits(),
    }
}
