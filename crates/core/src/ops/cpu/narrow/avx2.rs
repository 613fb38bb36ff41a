//! Products of few rows with AVX2, and AVX-VNNI where there is: four rows of a weight, a block at a time, with up to four rows.

use std::arch::x86_64::*;

use super::super::super::blocks::scale_min;
use super::rounded::{BLOCK, GROUP, Rounded};
use super::{Dtype, Kind, Stripe};

/// Most rows that a block is multiplied with once it is unpacked.
const ROWS: usize = 4;

/// A type of blocks. All functions need AVX2, FMA and F16C, and the `b`-th block of 32 of rows at their pointers.
pub(super) trait Narrow {
    const DTYPE: Dtype;
    /// The block's codes, without sign.
    ///
    /// # Safety
    /// See [`Narrow`].
    unsafe fn codes(row: *const u8, b: usize) -> __m256i;
}

/// What belongs to a block of each of four rows.
pub(super) struct Factors {
    pub(super) scale: __m128,
    pub(super) min: __m128,
    /// Whole factors of the halves.
    pub(super) halves: [__m128i; 2],
}

/// The factors and offsets of `T`'s blocks.
#[inline(always)]
pub(super) unsafe fn factors<T: Narrow>(rows: [*const u8; 4], b: usize) -> Factors {
    // SAFETY: the caller's promise.
    unsafe {
        let (len, bytes) = const { T::DTYPE.block() };
        let (at, i) = (b * BLOCK / len * bytes, b % (len / BLOCK));
        let d_at = if matches!(T::DTYPE, Dtype::Q6_K) { at + 208 } else { at };
        let d = halfs(array!(4, 0, r => rows[r].add(d_at).cast::<u16>().read_unaligned()));
        let mut factors = Factors { scale: d, min: _mm_setzero_ps(), halves: [_mm_setzero_si128(); 2] };
        if matches!(T::DTYPE, Dtype::Q4_K | Dtype::Q5_K) {
            let both = array!(4, (0, 0), r => scale_min(std::slice::from_raw_parts(rows[r].add(at + 4), 12), i));
            let dmin = halfs(array!(4, 0, r => rows[r].add(at + 2).cast::<u16>().read_unaligned()));
            let scales = array!(4, 0f32, r => f32::from(both[r].0));
            let mins = array!(4, 0f32, r => f32::from(both[r].1));
            factors.scale = _mm_mul_ps(d, _mm_loadu_ps(scales.as_ptr()));
            factors.min = _mm_mul_ps(dmin, _mm_loadu_ps(mins.as_ptr()));
        }
        if matches!(T::DTYPE, Dtype::Q6_K) {
            let halves = array!(2, [0i32; 4], half => {
                array!(4, 0, r => i32::from(*rows[r].add(at + 192 + 2 * i + half) as i8))
            });
            factors.halves = array!(2, factors.halves[0], half => _mm_loadu_si128(halves[half].as_ptr().cast()));
        }
        factors
    }
}

/// Four float16.
#[inline(always)]
unsafe fn halfs(x: [u16; 4]) -> __m128 {
    // SAFETY: the caller has F16C.
    unsafe { _mm_cvtph_ps(_mm_loadl_epi64(x.as_ptr().cast())) }
}

/// The lower halves of 16 bytes, then the upper ones.
#[inline(always)]
unsafe fn nibbles(at: *const u8) -> __m256i {
    // SAFETY: the caller has AVX2 and 16 bytes.
    unsafe {
        let x = _mm_loadu_si128(at.cast());
        let both = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(x), _mm_srli_epi16::<4>(x));
        _mm256_and_si256(both, _mm256_set1_epi8(15))
    }
}

/// `mask` of each of 32 bytes, moved down by a number of bits.
#[inline(always)]
unsafe fn shifted(at: *const u8, bits: usize, mask: i8) -> __m256i {
    // SAFETY: the caller has AVX2 and 32 bytes.
    unsafe {
        let x = _mm256_srl_epi16(_mm256_loadu_si256(at.cast()), _mm_cvtsi32_si128(bits as i32));
        _mm256_and_si256(x, _mm256_set1_epi8(mask))
    }
}

pub(super) struct Q8_0;
impl Narrow for Q8_0 {
    const DTYPE: Dtype = Dtype::Q8_0;
    #[inline(always)]
    unsafe fn codes(row: *const u8, b: usize) -> __m256i {
        // SAFETY: the caller's promise, here and below.
        unsafe { _mm256_xor_si256(_mm256_loadu_si256(row.add(34 * b + 2).cast()), _mm256_set1_epi8(i8::MIN)) }
    }
}

pub(super) struct Q4_0;
impl Narrow for Q4_0 {
    const DTYPE: Dtype = Dtype::Q4_0;
    #[inline(always)]
    unsafe fn codes(row: *const u8, b: usize) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe { nibbles(row.add(18 * b + 2)) }
    }
}

pub(super) struct Q5_0;
impl Narrow for Q5_0 {
    const DTYPE: Dtype = Dtype::Q5_0;
    #[inline(always)]
    unsafe fn codes(row: *const u8, b: usize) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe {
            let low = nibbles(row.add(22 * b + 6));
            let high = _mm256_set1_epi32(row.add(22 * b + 2).cast::<i32>().read_unaligned());
            // Each element's byte of bits, then its bit.
            const EIGHT: i64 = 0x0101_0101_0101_0101;
            let high = _mm256_shuffle_epi8(high, _mm256_setr_epi64x(0, EIGHT, 2 * EIGHT, 3 * EIGHT));
            let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
            let set = _mm256_cmpeq_epi8(_mm256_and_si256(high, bit), bit);
            _mm256_or_si256(low, _mm256_and_si256(set, _mm256_set1_epi8(16)))
        }
    }
}

pub(super) struct Q4K;
impl Narrow for Q4K {
    const DTYPE: Dtype = Dtype::Q4_K;
    #[inline(always)]
    unsafe fn codes(row: *const u8, b: usize) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe { shifted(row.add(b / 8 * 144 + 16 + b % 8 / 2 * 32), b % 2 * 4, 15) }
    }
}

pub(super) struct Q5K;
impl Narrow for Q5K {
    const DTYPE: Dtype = Dtype::Q5_K;
    #[inline(always)]
    unsafe fn codes(row: *const u8, b: usize) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe {
            let (at, i) = (row.add(b / 8 * 176), b % 8);
            let high = _mm256_slli_epi16::<4>(shifted(at.add(16), i, 1));
            _mm256_or_si256(shifted(at.add(48 + i / 2 * 32), i % 2 * 4, 15), high)
        }
    }
}

pub(super) struct Q6K;
impl Narrow for Q6K {
    const DTYPE: Dtype = Dtype::Q6_K;
    #[inline(always)]
    unsafe fn codes(row: *const u8, b: usize) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe {
            let (at, i) = (row.add(b / 8 * 210), b % 8);
            let high = _mm256_slli_epi16::<4>(shifted(at.add(128 + 32 * (i / 4)), 2 * (i % 4), 3));
            _mm256_or_si256(shifted(at.add(64 * (i / 4) + 32 * (i % 2)), i % 4 / 2 * 4, 15), high)
        }
    }
}

/// `codes` less what [`dots`] takes off itself: Q8_0's codes are multiplied with their signs where there is no product of all of a byte.
#[inline(always)]
fn offset<T: Narrow, const VNNI: bool>() -> i32 {
    match Kind::of(T::DTYPE) {
        Kind::Offset(128) if !VNNI => 0,
        Kind::Offset(offset) | Kind::Halves(offset) => offset,
        Kind::Mins => 0,
    }
}

/// Sums of four products each, exact.
#[inline(always)]
unsafe fn dots<T: Narrow, const VNNI: bool>(codes: __m256i, x: __m256i) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        if VNNI {
            return _mm256_dpbusd_avx_epi32(_mm256_setzero_si256(), codes, x);
        }
        // Two products in 16 bits: 2 * 63 * 127, or 2 * 128 * 127, fit.
        let pairs = if matches!(T::DTYPE, Dtype::Q8_0) {
            let signed = _mm256_xor_si256(codes, _mm256_set1_epi8(i8::MIN));
            _mm256_maddubs_epi16(_mm256_abs_epi8(signed), _mm256_sign_epi8(x, signed))
        } else {
            _mm256_maddubs_epi16(codes, x)
        };
        _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))
    }
}

#[inline(always)]
unsafe fn body<T: Narrow, const VNNI: bool>(x: &Rounded, s: &Stripe<'_>) {
    let mut column = 0;
    while column < s.columns {
        // The last rows of a weight again where there are not four.
        let w = array!(4, s.w.as_ptr(), i => s.row((column + i).min(s.columns - 1)).as_ptr());
        let mut row = 0;
        while row < x.rows {
            // SAFETY: the caller's promise.
            unsafe {
                row += match x.rows - row {
                    1 => four::<T, VNNI, 1>(x, w, s, row, column),
                    2 => four::<T, VNNI, 2>(x, w, s, row, column),
                    3 => four::<T, VNNI, 3>(x, w, s, row, column),
                    _ => four::<T, VNNI, ROWS>(x, w, s, row, column),
                };
            }
        }
        column += 4;
    }
}

/// Four rows of a weight with `R` rows.
#[inline(always)]
unsafe fn four<T: Narrow, const VNNI: bool, const R: usize>(
    x: &Rounded,
    w: [*const u8; 4],
    s: &Stripe<'_>,
    row: usize,
    column: usize,
) -> usize {
    // SAFETY: the caller's promise; `b` is a block of the rows.
    unsafe {
        let mut sums = [[_mm_setzero_ps(); R]; GROUP];
        for b in 0..x.blocks {
            let factors = factors::<T>(w, b);
            let codes = array!(4, _mm256_setzero_si256(), i => T::codes(w[i], b));
            for (r, sum) in sums[b % GROUP].iter_mut().enumerate() {
                let at = (row + r) * x.blocks + b;
                let row = _mm256_loadu_si256(x.codes.as_ptr().add(at * BLOCK).cast());
                let [c, d, e, f] = array!(4, row, i => dots::<T, VNNI>(codes[i], row));
                let both = _mm256_hadd_epi32(_mm256_hadd_epi32(c, d), _mm256_hadd_epi32(e, f));
                let (first, second) = (_mm256_castsi256_si128(both), _mm256_extracti128_si256::<1>(both));
                let (factor, [a, z]) = (*x.factors.get_unchecked(at), *x.sums.get_unchecked(at));
                let offset = offset::<T, VNNI>();
                let whole = if matches!(T::DTYPE, Dtype::Q6_K) {
                    let first = _mm_sub_epi32(first, _mm_set1_epi32(offset * a));
                    let second = _mm_sub_epi32(second, _mm_set1_epi32(offset * z));
                    let [by_first, by_second] = factors.halves;
                    _mm_add_epi32(_mm_mullo_epi32(first, by_first), _mm_mullo_epi32(second, by_second))
                } else {
                    _mm_sub_epi32(_mm_add_epi32(first, second), _mm_set1_epi32(offset * (a + z)))
                };
                *sum = _mm_fmadd_ps(_mm_cvtepi32_ps(whole), _mm_mul_ps(factors.scale, _mm_set1_ps(factor)), *sum);
                if matches!(T::DTYPE, Dtype::Q4_K | Dtype::Q5_K) {
                    *sum = _mm_fnmadd_ps(factors.min, _mm_set1_ps(factor * (a + z) as f32), *sum);
                }
            }
        }
        #[allow(clippy::needless_range_loop)] // an index of the inner arrays
        for r in 0..R {
            let sum = _mm_add_ps(_mm_add_ps(_mm_add_ps(sums[0][r], sums[1][r]), sums[2][r]), sums[3][r]);
            let mut four = [0f32; 4];
            _mm_storeu_ps(four.as_mut_ptr(), sum);
            for (i, &sum) in four.iter().enumerate().take(s.columns - column) {
                s.put(row + r, column + i, sum);
            }
        }
    }
    R
}

/// A function of a stripe for its type, with features of the CPU.
macro_rules! with_avx2 {
    ($name:ident($x:ident: $ty:ty) = $body:ident, $features:literal, $vnni:literal) => {
        /// A stripe for all rows.
        ///
        /// # Safety
        /// The CPU's features; the stripe's part of the output is nobody else's, and has been written if it is added to.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $name($x: $ty, s: &super::Stripe<'_>) {
            use super::{Dtype, avx2};
            // SAFETY: the caller's promise.
            unsafe {
                match s.dtype {
                    Dtype::Q8_0 => $body::<avx2::Q8_0, $vnni>($x, s),
                    Dtype::Q4_0 => $body::<avx2::Q4_0, $vnni>($x, s),
                    Dtype::Q5_0 => $body::<avx2::Q5_0, $vnni>($x, s),
                    Dtype::Q4_K => $body::<avx2::Q4K, $vnni>($x, s),
                    Dtype::Q5_K => $body::<avx2::Q5K, $vnni>($x, s),
                    Dtype::Q6_K => $body::<avx2::Q6K, $vnni>($x, s),
                    Dtype::F32 | Dtype::F16 | Dtype::BF16 => unreachable!("a type without blocks"),
                }
            }
        }
    };
}
pub(super) use with_avx2;

with_avx2!(stripe(x: &Rounded) = body, "avx2,fma,f16c", false);
with_avx2!(stripe_vnni(x: &Rounded) = body, "avx2,fma,f16c,avxvnni", true);
