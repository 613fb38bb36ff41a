//! [`many`](super::many) with AVX-512: 6 rows and 32 columns at a time in registers.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::super::lanes::prefetch;
use super::many::{COLUMNS, Kernel, Packed, body};
use super::rounded::{CHUNK, GROUP, MANY, Many, Tile, place, starts};
use super::wide::{Factors, Wide, with_wide};
use super::{Kind, Stripe};

with_wide! {
    /// A stripe of at most [`COLUMNS`] for all rows.
    fn stripe(x: &Many) = stripe_of
}

#[inline(always)]
unsafe fn stripe_of<T: Wide>(x: &Many, s: &Stripe<'_>) {
    // SAFETY: the caller's promise.
    unsafe { body::<Avx512<T>>(x, s) }
}

struct Avx512<T>(PhantomData<T>);

impl<T: Wide> Kernel for Avx512<T> {
    #[inline(always)]
    unsafe fn pack(packed: &mut Packed, s: &Stripe<'_>, first: usize, n: usize) {
        // SAFETY: the caller's promise.
        unsafe { pack::<T>(packed, s, first, n) }
    }

    #[inline(always)]
    unsafe fn tile(x: Tile, rows: usize, w: &Packed, n: usize, first: bool, sums: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe {
            match rows {
                1 => tile::<T, 1>(x, w, n, first, sums),
                2 => tile::<T, 2>(x, w, n, first, sums),
                3 => tile::<T, 3>(x, w, n, first, sums),
                4 => tile::<T, 4>(x, w, n, first, sums),
                5 => tile::<T, 5>(x, w, n, first, sums),
                _ => tile::<T, MANY>(x, w, n, first, sums),
            }
        }
    }
}

/// Packs `n` blocks of a stripe from `first` on.
#[inline(always)]
unsafe fn pack<T: Wide>(packed: &mut Packed, s: &Stripe<'_>, first: usize, n: usize) {
    let bytes = s.row_bytes;
    for sixteen in 0..COLUMNS.min(s.columns.next_multiple_of(16)) / 16 {
        let mut from = 0;
        while from < n {
            let at = (first + from) / (GROUP * T::GROUPS) * T::BYTES;
            let mut rest = [[0u8; 136]; 16];
            // The last columns again where there are fewer.
            let mut units = array!(16, s.w.as_ptr(), c => s.row((16 * sixteen + c).min(s.columns - 1))[at..].as_ptr());
            let chunk = CHUNK / (GROUP * T::GROUPS) * T::BYTES;
            // What is packed after these blocks, in this row or, after its end, for the next stripe.
            for unit in units {
                let ahead = chunk + if at + chunk < bytes { 0 } else { (COLUMNS - 1) * bytes };
                for line in 0..T::BYTES.div_ceil(64) {
                    prefetch(unit.wrapping_add(ahead + 64 * line));
                }
            }
            if at + T::BYTES > bytes {
                // Some blocks of small ones: the others of the unit are zeros.
                for (rest, unit) in rest.iter_mut().zip(&mut units) {
                    // SAFETY: what is left of a row.
                    unsafe { std::ptr::copy_nonoverlapping(*unit, rest.as_mut_ptr(), bytes - at) };
                    *unit = rest.as_ptr();
                }
            }
            // SAFETY: the caller's promise; whole units.
            unsafe {
                let nothing = Factors { scale: _mm512_setzero_ps(), extra: [_mm512_setzero_si512(); 2] };
                let factors = array!(4, [nothing; 2], i => {
                    T::factors([units[4 * i], units[4 * i + 1], units[4 * i + 2], units[4 * i + 3]])
                });
                #[allow(clippy::needless_range_loop)] // constant, so that the loop is unrolled
                for group in 0..T::GROUPS {
                    let blocks = GROUP.min(n - from);
                    for half in 0..2 {
                        let turned = turn(array!(16, nothing.extra[0], c => T::codes(units[c], group)[half]));
                        for b in 0..blocks {
                            let to = packed.codes[place(from + b, n)].as_mut_ptr();
                            for step in 0..4 {
                                let to = to.add((4 * half + step) * 4 * COLUMNS + 64 * sixteen);
                                _mm512_store_si512(to.cast(), turned[4 * b + step]);
                            }
                        }
                    }
                    let zero = nothing.extra[0];
                    let scale = quarters(array!(4, zero, i => _mm512_castps_si512(factors[i][group].scale)));
                    let extra = array!(2, [zero; 4], j => quarters(array!(4, zero, i => factors[i][group].extra[j])));
                    for b in 0..blocks {
                        let to = place(from + b, n);
                        _mm512_store_si512(packed.scale[to][16 * sixteen..].as_mut_ptr().cast(), scale[b]);
                        if !matches!(T::KIND, Kind::Offset(_)) {
                            _mm512_store_si512(packed.extra[to][0][16 * sixteen..].as_mut_ptr().cast(), extra[0][b]);
                            _mm512_store_si512(packed.extra[to][1][16 * sixteen..].as_mut_ptr().cast(), extra[1][b]);
                        }
                    }
                    from += blocks;
                }
            }
        }
    }
}

/// The transpose of a matrix of quarters of vectors.
#[inline(always)]
unsafe fn quarters([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    // SAFETY: the caller has AVX-512.
    unsafe {
        let (ab, ab_high) = (_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0xee>(a, b));
        let (cd, cd_high) = (_mm512_shuffle_i32x4::<0x44>(c, d), _mm512_shuffle_i32x4::<0xee>(c, d));
        [
            _mm512_shuffle_i32x4::<0x88>(ab, cd),
            _mm512_shuffle_i32x4::<0xdd>(ab, cd),
            _mm512_shuffle_i32x4::<0x88>(ab_high, cd_high),
            _mm512_shuffle_i32x4::<0xdd>(ab_high, cd_high),
        ]
    }
}

/// The transpose of a matrix of 16 x 16 numbers of 32 bits.
#[inline(always)]
unsafe fn turn(rows: [__m512i; 16]) -> [__m512i; 16] {
    // SAFETY: the caller has AVX-512.
    unsafe {
        // In each quarter of the vectors of four rows: the transpose of 4 x 4.
        let fours = array!(4, [rows[0]; 4], i => {
            let [a, b, c, d] = [rows[4 * i], rows[4 * i + 1], rows[4 * i + 2], rows[4 * i + 3]];
            let (ab, ab_high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
            let (cd, cd_high) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
            [
                _mm512_unpacklo_epi64(ab, cd),
                _mm512_unpackhi_epi64(ab, cd),
                _mm512_unpacklo_epi64(ab_high, cd_high),
                _mm512_unpackhi_epi64(ab_high, cd_high),
            ]
        });
        // The `j`-th of each four: quarters `q` hold column `4 q + j`.
        let columns = array!(4, fours[0], j => quarters([fours[0][j], fours[1][j], fours[2][j], fours[3][j]]));
        array!(16, rows[0], i => columns[i % 4][i / 4])
    }
}

/// `n` packed blocks with the rows of a tile, added to their sums.
#[inline(always)]
unsafe fn tile<T: Wide, const R: usize>(mut x: Tile, w: &Packed, n: usize, first: bool, sums: *mut f32) {
    let starts = starts(n);
    for p in 0..GROUP {
        // SAFETY: the caller's promise: `R` rows of `n` blocks, and so many sums.
        unsafe {
            let at = sums.add(p * R * COLUMNS);
            let mut sums = [[_mm512_setzero_ps(); 2]; R];
            if !first {
                for (r, sums) in sums.iter_mut().enumerate() {
                    *sums = [_mm512_loadu_ps(at.add(r * COLUMNS)), _mm512_loadu_ps(at.add(r * COLUMNS + 16))];
                }
            }
            for block in starts[p]..starts[p + 1] {
                step::<T, R>(&x, w, block, &mut sums);
                x = Tile { codes: x.codes.add(R), factors: x.factors.add(R), extra: x.extra.add(R) };
            }
            for (r, sums) in sums.iter().enumerate() {
                _mm512_storeu_ps(at.add(r * COLUMNS), sums[0]);
                _mm512_storeu_ps(at.add(r * COLUMNS + 16), sums[1]);
            }
        }
    }
}

/// Four steps of 4 elements of one block.
#[inline(always)]
unsafe fn half<const R: usize>(x: &Tile, w: *const u8, half: usize, sums: &mut [[__m512i; 2]; R]) {
    for step in 4 * half..4 * half + 4 {
        // SAFETY: the caller's promise.
        unsafe {
            let w = w.add(step * 4 * COLUMNS);
            let w = [_mm512_load_si512(w.cast()), _mm512_load_si512(w.add(64).cast())];
            for (r, sums) in sums.iter_mut().enumerate() {
                let x = _mm512_set1_epi32(x.codes.add(r).cast::<i32>().add(step).read_unaligned());
                *sums = [_mm512_dpbusd_epi32(sums[0], w[0], x), _mm512_dpbusd_epi32(sums[1], w[1], x)];
            }
        }
    }
}

/// One block of a tile.
#[inline(always)]
unsafe fn step<T: Wide, const R: usize>(x: &Tile, w: &Packed, block: usize, sums: &mut [[__m512; 2]; R]) {
    // SAFETY: the caller's promise.
    unsafe {
        let codes = w.codes[block].as_ptr();
        let zero = _mm512_setzero_si512();
        let extra = w.extra[block].as_ptr();
        let extra = array!(2, [zero; 2], i => {
            [_mm512_load_si512(extra.add(i).cast()), _mm512_load_si512(extra.add(i).cast::<i32>().add(16).cast())]
        });
        let mut whole = [[zero; 2]; R];
        if !matches!(T::KIND, Kind::Mins) {
            whole = array!(R, [zero; 2], r => [_mm512_set1_epi32((*x.extra.add(r))[0]); 2]);
        }
        half(x, codes, 0, &mut whole);
        if matches!(T::KIND, Kind::Halves(_)) {
            let mut second = array!(R, [zero; 2], r => [_mm512_set1_epi32((*x.extra.add(r))[1]); 2]);
            for whole in &mut whole {
                *whole = [_mm512_mullo_epi32(whole[0], extra[0][0]), _mm512_mullo_epi32(whole[1], extra[0][1])];
            }
            half(x, codes, 1, &mut second);
            for (whole, second) in whole.iter_mut().zip(second) {
                *whole = array!(2, zero, j => _mm512_add_epi32(whole[j], _mm512_mullo_epi32(second[j], extra[1][j])));
            }
        } else {
            half(x, codes, 1, &mut whole);
        }
        let scale = w.scale[block].as_ptr();
        let scale = [_mm512_load_ps(scale), _mm512_load_ps(scale.add(16))];
        for (r, (sums, whole)) in sums.iter_mut().zip(whole).enumerate() {
            let factor = _mm512_set1_ps(*x.factors.add(r));
            for j in 0..2 {
                sums[j] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole[j]), _mm512_mul_ps(scale[j], factor), sums[j]);
            }
            if matches!(T::KIND, Kind::Mins) {
                let sum = _mm512_set1_ps(f32::from_bits((*x.extra.add(r))[0] as u32));
                for j in 0..2 {
                    sums[j] = _mm512_fnmadd_ps(_mm512_castsi512_ps(extra[0][j]), sum, sums[j]);
                }
            }
        }
    }
}
