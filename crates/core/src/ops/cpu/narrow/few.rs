//! Products of few rows with AVX-512: four rows of a weight at a time are read to their end, at the speed of the memory, and what is
//! unpacked of them is multiplied with up to eight rows.

use std::arch::x86_64::*;

use super::super::lanes::prefetch;
use super::rounded::{BLOCK, FEW, Few, GROUP, Group};
use super::wide::{Factors, Wide, with_wide};
use super::{Kind, Stripe};

/// Bytes between what is read of a weight's row and what is asked for.
const AHEAD: usize = 2048;
/// Most bytes of a unit that is not whole: four blocks of the largest type of small blocks.
const UNIT: usize = 136;

with_wide! {
    /// A stripe for all rows.
    fn stripe(x: &Few) = body
}

#[inline(always)]
unsafe fn body<T: Wide>(x: &Few, s: &Stripe<'_>) {
    let mut column = 0;
    while column < s.columns {
        // The last rows of a weight again where there are not four.
        let at = array!(4, s.w, i => s.row((column + i).min(s.columns - 1)));
        let mut row = 0;
        while row < x.rows {
            let (tile, rows) = x.tile(row);
            // SAFETY: the caller's promise.
            unsafe {
                match rows {
                    1 => four::<T, 1>(tile, at, s, row, column),
                    2 => four::<T, 2>(tile, at, s, row, column),
                    3 => four::<T, 3>(tile, at, s, row, column),
                    4 => four::<T, 4>(tile, at, s, row, column),
                    5 => four::<T, 5>(tile, at, s, row, column),
                    6 => four::<T, 6>(tile, at, s, row, column),
                    7 => four::<T, 7>(tile, at, s, row, column),
                    _ => four::<T, FEW>(tile, at, s, row, column),
                }
            }
            row += rows;
        }
        column += 4;
    }
}

/// Four rows of a weight with the rows of a tile.
#[inline(always)]
unsafe fn four<T: Wide, const R: usize>(x: &[Group], w: [&[u8]; 4], s: &Stripe<'_>, row: usize, column: usize) {
    let bytes = w[0].len();
    let units = bytes / T::BYTES;
    // SAFETY: the caller's promise; units are inside of the rows, and there are `GROUPS` groups of `R` rows for each.
    unsafe {
        let mut sums = [_mm512_setzero_ps(); R];
        let mut x = x.as_ptr();
        let mut at = array!(4, w[0].as_ptr(), i => w[i].as_ptr());
        for unit in 0..units {
            // The rows are read side by side: after their end come those four rows on.
            let ahead = unit * T::BYTES + AHEAD;
            let ahead = AHEAD + if ahead < bytes { 0 } else { 3 * bytes };
            for at in at {
                for line in 0..T::BYTES.div_ceil(64) {
                    prefetch(at.wrapping_add(ahead + 64 * line));
                }
            }
            x = one::<T, R>(at, x, T::GROUPS, &mut sums);
            at = array!(4, at[0], i => at[i].add(T::BYTES));
        }
        let left = bytes - units * T::BYTES;
        if left > 0 {
            // Some blocks of small ones: the others of the unit are zeros.
            let mut rest = [[0u8; UNIT]; 4];
            for (rest, at) in rest.iter_mut().zip(at) {
                std::ptr::copy_nonoverlapping(at, rest.as_mut_ptr(), left);
            }
            one::<T, R>(array!(4, at[0], i => rest[i].as_ptr()), x, 1, &mut sums);
        }
        for (r, sums) in sums.into_iter().enumerate() {
            let [a, b] = [_mm512_castps512_ps128(sums), _mm512_extractf32x4_ps::<1>(sums)];
            let [c, d] = [_mm512_extractf32x4_ps::<2>(sums), _mm512_extractf32x4_ps::<3>(sums)];
            let mut four = [0f32; 4];
            _mm_storeu_ps(four.as_mut_ptr(), _mm_add_ps(_mm_add_ps(_mm_add_ps(a, b), c), d));
            for (i, &sum) in four.iter().enumerate().take(s.columns - column) {
                s.put(row + r, column + i, sum);
            }
        }
    }
}

/// A unit of each of four rows of a weight.
#[inline(always)]
unsafe fn one<T: Wide, const R: usize>(
    at: [*const u8; 4],
    mut x: *const Group,
    groups: usize,
    sums: &mut [__m512; R],
) -> *const Group {
    const { assert!(BLOCK * GROUP == 128) };
    // SAFETY: the caller's promise.
    unsafe {
        let factors = T::factors(at);
        for (group, factors) in factors.iter().enumerate().take(groups) {
            let codes = array!(4, [_mm512_setzero_si512(); 2], i => T::codes(at[i], group));
            for sum in sums.iter_mut() {
                *sum = step::<T>(codes, factors, &*x, *sum);
                x = x.add(1);
            }
        }
        x
    }
}

/// Sums in fours of lanes of four vectors: `[block][vector]` of `[block][4]`.
#[inline(always)]
unsafe fn sums([a, b, c, d]: [__m512i; 4]) -> __m512i {
    // SAFETY: the caller has AVX-512.
    unsafe {
        let ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd))
    }
}

/// Four blocks of four rows of a weight with those of one row, added to its sums, `[block][row of the weight]`.
#[inline(always)]
unsafe fn step<T: Wide>(codes: [[__m512i; 2]; 4], w: &Factors, x: &Group, sum: __m512) -> __m512 {
    // SAFETY: the caller has AVX-512 with VNNI.
    unsafe {
        let first = _mm512_load_si512(x.first.as_ptr().cast());
        let second = _mm512_load_si512(x.second.as_ptr().cast());
        let extra = _mm512_load_si512(x.extra.as_ptr().cast());
        let factors = _mm512_load_ps(x.factors.as_ptr());
        let scale = _mm512_mul_ps(w.scale, factors);
        let whole = match T::KIND {
            Kind::Halves(_) => {
                let (a, b) = (_mm512_maskz_mov_epi32(0x1111, extra), _mm512_maskz_mov_epi32(0x2222, extra));
                let a = sums(array!(4, a, i => _mm512_dpbusd_epi32(a, codes[i][0], first)));
                let b = sums(array!(4, b, i => _mm512_dpbusd_epi32(b, codes[i][1], second)));
                _mm512_add_epi32(_mm512_mullo_epi32(a, w.extra[0]), _mm512_mullo_epi32(b, w.extra[1]))
            }
            kind => {
                let zero = if matches!(kind, Kind::Offset(_)) { extra } else { _mm512_setzero_si512() };
                let firsts = array!(4, zero, i => _mm512_dpbusd_epi32(zero, codes[i][0], first));
                sums(array!(4, zero, i => _mm512_dpbusd_epi32(firsts[i], codes[i][1], second)))
            }
        };
        let sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), scale, sum);
        if matches!(T::KIND, Kind::Mins) {
            return _mm512_fnmadd_ps(_mm512_castsi512_ps(w.extra[0]), _mm512_castsi512_ps(extra), sum);
        }
        sum
    }
}
