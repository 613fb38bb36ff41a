//! Blocks of narrow weights in vectors of AVX-512. What is read of a unit lies inside of it.

use std::arch::x86_64::*;

use super::Kind;

/// A type of blocks, four blocks of 32 at a time. All functions need AVX-512 with VNNI and VBMI, and whole units at their pointers.
pub(super) trait Wide {
    /// Bytes of a unit of one or two times four blocks.
    const BYTES: usize;
    /// How many times four blocks.
    const GROUPS: usize;
    /// What the type has beside factors.
    const KIND: Kind;

    /// The codes of four blocks of a unit: the first and the second halves of each, 16 bytes a block.
    ///
    /// # Safety
    /// See [`Wide`].
    unsafe fn codes(at: *const u8, group: usize) -> [__m512i; 2];
    /// Of units of four rows what belongs to each block: `[block][row]`.
    ///
    /// # Safety
    /// See [`Wide`].
    unsafe fn factors(at: [*const u8; 4]) -> [Factors; 2];
}

/// Of four blocks of four rows, `[block][row]`.
#[derive(Clone, Copy)]
pub(super) struct Factors {
    /// Factors, float32.
    pub(super) scale: __m512,
    /// The minima, float32, or the whole factors of both halves.
    pub(super) extra: [__m512i; 2],
}

/// 64 numbers of bytes to pick.
const fn picked(of: fn_pick::Pick) -> [u8; 64] {
    let mut picks = [0; 64];
    let mut i = 0;
    while i < 64 {
        picks[i] = of.at(i) as u8;
        i += 1;
    }
    picks
}

mod fn_pick {
    /// A rule of picking for a byte `i`: of its block `i / 16`, or of `[block][row]`.
    #[derive(Clone, Copy)]
    pub(super) enum Pick {
        /// Bytes of a block one after the other, blocks `stride` apart, the first at `from`. Bytes beyond 63 are picked of a second
        /// vector that begins `second` bytes later than the first.
        Run { stride: usize, from: usize, second: usize },
        /// Each byte eight times: bits of a block's elements.
        Bits { stride: usize, from: usize, second: usize },
        /// Factors of two bytes, of each block for each of four rows.
        Factors { stride: usize, second: usize },
    }

    impl Pick {
        pub(super) const fn at(self, i: usize) -> usize {
            let (byte, second) = match self {
                Self::Run { stride, from, second } => (from + stride * (i / 16) + i % 16, second),
                Self::Bits { stride, from, second } => (from + stride * (i / 16) + i % 16 / 8, second),
                Self::Factors { stride, second } => (stride * (i % 32 / 8) + i % 2, second),
            };
            if byte < 64 { byte } else { byte - second + 64 }
        }
    }
}
use fn_pick::Pick;

#[inline(always)]
unsafe fn load(at: *const u8) -> __m512i {
    // SAFETY: the caller has AVX-512 and 64 bytes, as in all functions below.
    unsafe { _mm512_loadu_si512(at.cast()) }
}

/// Each code of 16 bytes alike.
#[inline(always)]
unsafe fn splat(x: u8) -> __m512i {
    // SAFETY: as in `load`.
    unsafe { _mm512_set1_epi8(x as i8) }
}

/// The lower and the upper halves of bytes.
#[inline(always)]
unsafe fn nibbles(x: __m512i) -> [__m512i; 2] {
    // SAFETY: as in `load`.
    unsafe { [_mm512_and_si512(x, splat(15)), _mm512_and_si512(_mm512_srli_epi16::<4>(x), splat(15))] }
}

/// Bits of elements, 64 of them, from bytes that hold each element's bit at the element's number.
#[inline(always)]
unsafe fn bits(bytes: __m512i) -> __mmask64 {
    // SAFETY: as in `load`.
    unsafe { _mm512_test_epi8_mask(bytes, _mm512_set1_epi64(0x8040_2010_0804_0201_u64 as i64)) }
}

/// Factors of two bytes of four blocks of four rows, `second` as in [`Pick`].
#[inline(always)]
unsafe fn halves(at: [*const u8; 4], picks: &[u8; 64], second: usize) -> Factors {
    // SAFETY: as in `load`.
    unsafe {
        let picks = load(picks.as_ptr());
        let of = array!(4, picks, i => {
            _mm512_maskz_permutex2var_epi8(0x0303_0303 << (2 * i), load(at[i]), picks, load(at[i].add(second)))
        });
        let all = _mm512_or_si512(_mm512_or_si512(of[0], of[1]), _mm512_or_si512(of[2], of[3]));
        Factors { scale: _mm512_cvtph_ps(_mm512_castsi512_si256(all)), extra: [_mm512_setzero_si512(); 2] }
    }
}

pub(super) struct Q8_0;
impl Wide for Q8_0 {
    const BYTES: usize = 136;
    const GROUPS: usize = 1;
    const KIND: Kind = Kind::Offset(128);

    #[inline(always)]
    unsafe fn codes(at: *const u8, _: usize) -> [__m512i; 2] {
        static FIRST: [u8; 64] = picked(Pick::Run { stride: 34, from: 2, second: 64 });
        static SECOND: [u8; 64] = picked(Pick::Run { stride: 34, from: 10, second: 64 });
        // SAFETY: the caller's promise.
        unsafe {
            let first = _mm512_permutex2var_epi8(load(at), load(FIRST.as_ptr()), load(at.add(64)));
            let second = _mm512_permutex2var_epi8(load(at.add(8)), load(SECOND.as_ptr()), load(at.add(72)));
            [_mm512_xor_si512(first, splat(0x80)), _mm512_xor_si512(second, splat(0x80))]
        }
    }

    #[inline(always)]
    unsafe fn factors(at: [*const u8; 4]) -> [Factors; 2] {
        static PICKS: [u8; 64] = picked(Pick::Factors { stride: 34, second: 64 });
        // SAFETY: the caller's promise.
        unsafe { [halves(at, &PICKS, 64); 2] }
    }
}

pub(super) struct Q4_0;
impl Wide for Q4_0 {
    const BYTES: usize = 72;
    const GROUPS: usize = 1;
    const KIND: Kind = Kind::Offset(8);

    #[inline(always)]
    unsafe fn codes(at: *const u8, _: usize) -> [__m512i; 2] {
        static PICKS: [u8; 64] = picked(Pick::Run { stride: 18, from: 2, second: 8 });
        // SAFETY: the caller's promise.
        unsafe { nibbles(_mm512_permutex2var_epi8(load(at), load(PICKS.as_ptr()), load(at.add(8)))) }
    }

    #[inline(always)]
    unsafe fn factors(at: [*const u8; 4]) -> [Factors; 2] {
        static PICKS: [u8; 64] = picked(Pick::Factors { stride: 18, second: 0 });
        // SAFETY: the caller's promise.
        unsafe {
            let picks = load(PICKS.as_ptr());
            let mut all = _mm512_permutexvar_epi8(picks, load(at[0]));
            all = _mm512_mask_permutexvar_epi8(all, 0x0c0c_0c0c, picks, load(at[1]));
            all = _mm512_mask_permutexvar_epi8(all, 0x3030_3030, picks, load(at[2]));
            all = _mm512_mask_permutexvar_epi8(all, 0xc0c0_c0c0, picks, load(at[3]));
            [Factors { scale: _mm512_cvtph_ps(_mm512_castsi512_si256(all)), extra: [_mm512_setzero_si512(); 2] }; 2]
        }
    }
}

pub(super) struct Q5_0;
impl Wide for Q5_0 {
    const BYTES: usize = 88;
    const GROUPS: usize = 1;
    const KIND: Kind = Kind::Offset(16);

    #[inline(always)]
    unsafe fn codes(at: *const u8, _: usize) -> [__m512i; 2] {
        static PICKS: [u8; 64] = picked(Pick::Run { stride: 22, from: 6, second: 24 });
        static FIRST: [u8; 64] = picked(Pick::Bits { stride: 22, from: 2, second: 24 });
        static SECOND: [u8; 64] = picked(Pick::Bits { stride: 22, from: 4, second: 24 });
        // SAFETY: the caller's promise.
        unsafe {
            let (a, b) = (load(at), load(at.add(24)));
            let [first, second] = nibbles(_mm512_permutex2var_epi8(a, load(PICKS.as_ptr()), b));
            let first_high = bits(_mm512_permutex2var_epi8(a, load(FIRST.as_ptr()), b));
            let second_high = bits(_mm512_permutex2var_epi8(a, load(SECOND.as_ptr()), b));
            [
                _mm512_mask_add_epi8(first, first_high, first, splat(16)),
                _mm512_mask_add_epi8(second, second_high, second, splat(16)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn factors(at: [*const u8; 4]) -> [Factors; 2] {
        static PICKS: [u8; 64] = picked(Pick::Factors { stride: 22, second: 24 });
        // SAFETY: the caller's promise.
        unsafe { [halves(at, &PICKS, 24); 2] }
    }
}

/// The nibbles of 64 bytes, of which blocks 0 and 1 share the first 32 and blocks 2 and 3 the others.
#[inline(always)]
unsafe fn paired(at: *const u8) -> [__m512i; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let [low, high] = nibbles(load(at));
        [
            _mm512_permutex2var_epi64(low, _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13), high),
            _mm512_permutex2var_epi64(low, _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15), high),
        ]
    }
}

#[inline(always)]
unsafe fn and(x: __m128i, mask: i32) -> __m128i {
    // SAFETY: as in `load`.
    unsafe { _mm_and_si128(x, _mm_set1_epi32(mask)) }
}

/// Four numbers of four rows, `[row][block]`, times the rows' factors: `[block][row]`.
#[inline(always)]
unsafe fn times(x: __m128i, factors: __m512) -> __m512 {
    // SAFETY: as in `load`.
    unsafe {
        let turned = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        _mm512_mul_ps(factors, _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_shuffle_epi8(x, turned))))
    }
}

/// Factors and minima of eight blocks of `Q4_K` or `Q5_K` for four rows.
#[inline(always)]
unsafe fn scales_mins(at: [*const u8; 4]) -> [Factors; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let [a, b, c, d] = array!(4, _mm_setzero_si128(), i => _mm_loadu_si128(at[i].cast()));
        let (ab, ab_high) = (_mm_unpacklo_epi32(a, b), _mm_unpackhi_epi32(a, b));
        let (cd, cd_high) = (_mm_unpacklo_epi32(c, d), _mm_unpackhi_epi32(c, d));
        // Of each row 4 bytes: both factors, the first 4 blocks' scales and mins, the lower bits of the others.
        let (factors, scales) = (_mm_unpacklo_epi64(ab, cd), _mm_unpackhi_epi64(ab, cd));
        let (mins, low) = (_mm_unpacklo_epi64(ab_high, cd_high), _mm_unpackhi_epi64(ab_high, cd_high));
        let other_scales = _mm_or_si128(and(low, 0x0f0f_0f0f), and(_mm_srli_epi32::<2>(scales), 0x3030_3030));
        let other_mins = _mm_or_si128(and(_mm_srli_epi32::<4>(low), 0x0f0f_0f0f), and(_mm_srli_epi32::<2>(mins), 0x3030_3030));
        let (scales, mins) = (and(scales, 0x3f3f_3f3f), and(mins, 0x3f3f_3f3f));
        let apart = _mm_shuffle_epi8(factors, _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15));
        let factors = _mm256_cvtph_ps(apart);
        let d = _mm512_broadcast_f32x4(_mm256_castps256_ps128(factors));
        let dmin = _mm512_broadcast_f32x4(_mm256_extractf128_ps::<1>(factors));
        let zero = _mm512_setzero_si512();
        [
            Factors { scale: times(scales, d), extra: [_mm512_castps_si512(times(mins, dmin)), zero] },
            Factors { scale: times(other_scales, d), extra: [_mm512_castps_si512(times(other_mins, dmin)), zero] },
        ]
    }
}

pub(super) struct Q4K;
impl Wide for Q4K {
    const BYTES: usize = 144;
    const GROUPS: usize = 2;
    const KIND: Kind = Kind::Mins;

    #[inline(always)]
    unsafe fn codes(at: *const u8, group: usize) -> [__m512i; 2] {
        // SAFETY: the caller's promise.
        unsafe { paired(at.add(16 + 64 * group)) }
    }

    #[inline(always)]
    unsafe fn factors(at: [*const u8; 4]) -> [Factors; 2] {
        // SAFETY: the caller's promise.
        unsafe { scales_mins(at) }
    }
}

pub(super) struct Q5K;
impl Wide for Q5K {
    const BYTES: usize = 176;
    const GROUPS: usize = 2;
    const KIND: Kind = Kind::Mins;

    #[inline(always)]
    unsafe fn codes(at: *const u8, group: usize) -> [__m512i; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            let [first, second] = paired(at.add(48 + 64 * group));
            const ONES: i64 = 0x0101_0101_0101_0101;
            // A block's fifth bits are at its number in the block of 256.
            let bit = _mm512_setr_epi64(ONES, ONES, ONES << 1, ONES << 1, ONES << 2, ONES << 2, ONES << 3, ONES << 3);
            let bit = if group == 0 { bit } else { _mm512_slli_epi32::<4>(bit) };
            let first_high = _mm512_test_epi8_mask(_mm512_broadcast_i32x4(_mm_loadu_si128(at.add(16).cast())), bit);
            let second_high = _mm512_test_epi8_mask(_mm512_broadcast_i32x4(_mm_loadu_si128(at.add(32).cast())), bit);
            [
                _mm512_mask_add_epi8(first, first_high, first, splat(16)),
                _mm512_mask_add_epi8(second, second_high, second, splat(16)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn factors(at: [*const u8; 4]) -> [Factors; 2] {
        // SAFETY: the caller's promise.
        unsafe { scales_mins(at) }
    }
}

pub(super) struct Q6K;
impl Wide for Q6K {
    const BYTES: usize = 210;
    const GROUPS: usize = 2;
    const KIND: Kind = Kind::Halves(32);

    #[inline(always)]
    unsafe fn codes(at: *const u8, group: usize) -> [__m512i; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            // 64 bytes: the lower halves of blocks 0 and 2, then of 1 and 3.
            let [low, high] = nibbles(load(at.add(64 * group)));
            let picks = [_mm512_setr_epi64(0, 1, 4, 5, 8, 9, 12, 13), _mm512_setr_epi64(2, 3, 6, 7, 10, 11, 14, 15)];
            array!(2, low, half => {
                let low = _mm512_permutex2var_epi64(low, picks[half], high);
                let pairs = _mm512_broadcast_i32x4(_mm_loadu_si128(at.add(128 + 32 * group + 16 * half).cast()));
                // A block's pair of bits is at twice its number, and belongs at 4.
                let pairs = _mm512_rolv_epi64(pairs, _mm512_setr_epi64(4, 4, 2, 2, 0, 0, 62, 62));
                // low | pairs & 0x30
                _mm512_ternarylogic_epi64::<0xf8>(low, pairs, splat(0x30))
            })
        }
    }

    #[inline(always)]
    unsafe fn factors(at: [*const u8; 4]) -> [Factors; 2] {
        static PICKS: [u8; 64] = {
            // [four blocks of two][half][block][row] of [row][four blocks][block][half].
            let mut picks = [0; 64];
            let mut i = 0;
            while i < 64 {
                picks[i] = (16 * (i % 4) + 8 * (i / 32) + 2 * (i % 16 / 4) + i / 16 % 2) as u8;
                i += 1;
            }
            picks
        };
        // SAFETY: the caller's promise.
        unsafe {
            let d = array!(4, 0, i => i64::from(at[i].add(208).cast::<u16>().read_unaligned()));
            let d = _mm_cvtsi64_si128(d[0] | d[1] << 16 | d[2] << 32 | d[3] << 48);
            let scale = _mm512_broadcast_f32x4(_mm_cvtph_ps(d));
            let mut all = _mm512_castsi128_si512(_mm_loadu_si128(at[0].add(192).cast()));
            all = _mm512_inserti32x4::<1>(all, _mm_loadu_si128(at[1].add(192).cast()));
            all = _mm512_inserti32x4::<2>(all, _mm_loadu_si128(at[2].add(192).cast()));
            all = _mm512_inserti32x4::<3>(all, _mm_loadu_si128(at[3].add(192).cast()));
            let all = _mm512_permutexvar_epi8(load(PICKS.as_ptr()), all);
            let a = _mm512_cvtepi8_epi32(_mm512_castsi512_si128(all));
            let b = _mm512_cvtepi8_epi32(_mm512_extracti32x4_epi32::<1>(all));
            let c = _mm512_cvtepi8_epi32(_mm512_extracti32x4_epi32::<2>(all));
            let d = _mm512_cvtepi8_epi32(_mm512_extracti32x4_epi32::<3>(all));
            [Factors { scale, extra: [a, b] }, Factors { scale, extra: [c, d] }]
        }
    }
}

/// A function over [`Wide`] for the type of a stripe, compiled for AVX-512 with VNNI and VBMI.
macro_rules! with_wide {
    ($(#[$meta:meta])* fn $name:ident($x:ident: $ty:ty) = $body:ident) => {
        $(#[$meta])*
        ///
        /// # Safety
        /// The CPU's features; the stripe's part of the output is nobody else's, and has been written if it is added to.
        #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx2,fma,f16c")]
        pub(super) unsafe fn $name($x: $ty, s: &super::Stripe<'_>) {
            use super::{Dtype, wide};
            // SAFETY: the caller's promise.
            unsafe {
                match s.dtype {
                    Dtype::Q8_0 => $body::<wide::Q8_0>($x, s),
                    Dtype::Q4_0 => $body::<wide::Q4_0>($x, s),
                    Dtype::Q5_0 => $body::<wide::Q5_0>($x, s),
                    Dtype::Q4_K => $body::<wide::Q4K>($x, s),
                    Dtype::Q5_K => $body::<wide::Q5K>($x, s),
                    Dtype::Q6_K => $body::<wide::Q6K>($x, s),
                    Dtype::F32 | Dtype::F16 | Dtype::BF16 => unreachable!("a type without blocks"),
                }
            }
        }
    };
}
pub(super) use with_wide;
