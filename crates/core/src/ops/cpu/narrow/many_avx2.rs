//! [`many`](super::many) with AVX2, and AVX-VNNI where there is: 3 rows and 16 columns at a time in registers.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::avx2::{Narrow, factors, with_avx2};
use super::many::{COLUMNS, Kernel, Packed, body};
use super::rounded::{GROUP, Many, Tile, place, starts};
use super::{Dtype, Kind, Stripe};

/// Rows of a tile that are in registers.
const ROWS: usize = 3;
/// Columns, in two vectors.
const HERE: usize = 16;

with_avx2!(stripe(x: &Many) = stripe_of, "avx2,fma,f16c", false);
with_avx2!(stripe_vnni(x: &Many) = stripe_of, "avx2,fma,f16c,avxvnni", true);

#[inline(always)]
unsafe fn stripe_of<T: Narrow, const VNNI: bool>(x: &Many, s: &Stripe<'_>) {
    // SAFETY: the caller's promise.
    unsafe { body::<Avx2<T, VNNI>>(x, s) }
}

struct Avx2<T, const VNNI: bool>(PhantomData<T>);

impl<T: Narrow, const VNNI: bool> Avx2<T, VNNI> {
    /// Q8_0's codes are multiplied with their signs where there is no product of all of a byte.
    const SIGNED: bool = !VNNI && matches!(T::DTYPE, Dtype::Q8_0);
    const KIND: Kind = Kind::of(T::DTYPE);
    /// Steps whose pairs of products are summed in 16 bits: each pair is at most 2 * 127 times the largest code, and 32767 the most.
    const STEPS: usize = match T::DTYPE {
        Dtype::Q4_0 | Dtype::Q4_K => 8,
        Dtype::Q5_0 | Dtype::Q5_K => 4,
        Dtype::Q6_K => 2,
        _ => 1,
    };
}

impl<T: Narrow, const VNNI: bool> Kernel for Avx2<T, VNNI> {
    #[inline(always)]
    unsafe fn pack(packed: &mut Packed, s: &Stripe<'_>, first: usize, n: usize) {
        for four in (0..COLUMNS.min(s.columns.next_multiple_of(HERE))).step_by(4) {
            // The last column again where there are fewer.
            let rows = array!(4, s.w.as_ptr(), i => s.row((four + i).min(s.columns - 1)).as_ptr());
            for b in 0..n {
                let to = place(b, n);
                // SAFETY: the caller's promise; a block of the rows.
                unsafe {
                    let factors = factors::<T>(rows, first + b);
                    _mm_storeu_ps(packed.scale[to][four..].as_mut_ptr(), factors.scale);
                    let [mut extra, second] = factors.halves;
                    if matches!(Self::KIND, Kind::Mins) {
                        extra = _mm_castps_si128(factors.min);
                    }
                    _mm_storeu_si128(packed.extra[to][0][four..].as_mut_ptr().cast(), extra);
                    _mm_storeu_si128(packed.extra[to][1][four..].as_mut_ptr().cast(), second);
                    for (i, &row) in rows.iter().enumerate() {
                        let mut codes = T::codes(row, first + b);
                        if Self::SIGNED {
                            codes = _mm256_xor_si256(codes, _mm256_set1_epi8(i8::MIN));
                        }
                        let mut steps = [0u32; 8];
                        _mm256_storeu_si256(steps.as_mut_ptr().cast(), codes);
                        let out = packed.codes[to].as_mut_ptr().cast::<u32>().add(four + i);
                        for (step, &codes) in steps.iter().enumerate() {
                            *out.add(step * COLUMNS) = codes;
                        }
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn tile(x: Tile, rows: usize, w: &Packed, n: usize, first: bool, sums: *mut f32) {
        let mut row = 0;
        while row < rows {
            let here = (rows - row).min(ROWS);
            for column in (0..COLUMNS).step_by(HERE) {
                // SAFETY: the caller's promise.
                unsafe {
                    match here {
                        1 => Self::some::<1>(x, [row, rows], w, column, n, first, sums),
                        2 => Self::some::<2>(x, [row, rows], w, column, n, first, sums),
                        _ => Self::some::<ROWS>(x, [row, rows], w, column, n, first, sums),
                    }
                }
            }
            row += here;
        }
    }
}

impl<T: Narrow, const VNNI: bool> Avx2<T, VNNI> {
    /// `R` rows of a tile of `rows` from `row` on, and [`HERE`] columns.
    #[inline(always)]
    unsafe fn some<const R: usize>(
        x: Tile,
        [row, rows]: [usize; 2],
        w: &Packed,
        column: usize,
        n: usize,
        first: bool,
        sums: *mut f32,
    ) {
        let starts = starts(n);
        for p in 0..GROUP {
            // SAFETY: the caller's promise: `rows` rows of `n` blocks, and so many sums.
            unsafe {
                let at = sums.add((p * rows + row) * COLUMNS + column);
                let mut sums = [[_mm256_setzero_ps(); 2]; R];
                if !first {
                    for (r, sums) in sums.iter_mut().enumerate() {
                        *sums = [_mm256_loadu_ps(at.add(r * COLUMNS)), _mm256_loadu_ps(at.add(r * COLUMNS + 8))];
                    }
                }
                for block in starts[p]..starts[p + 1] {
                    let from = block * rows + row;
                    let x = Tile { codes: x.codes.add(from), factors: x.factors.add(from), extra: x.extra.add(from) };
                    Self::step(&x, w, column, block, &mut sums);
                }
                for (r, sums) in sums.iter().enumerate() {
                    _mm256_storeu_ps(at.add(r * COLUMNS), sums[0]);
                    _mm256_storeu_ps(at.add(r * COLUMNS + 8), sums[1]);
                }
            }
        }
    }

    /// Half a block: four steps of 4 elements, added to `sums`.
    #[inline(always)]
    unsafe fn half<const R: usize>(
        x: &Tile,
        w: *const u8,
        half: usize,
        pairs: &mut [[__m256i; 2]; R],
        sums: &mut [[__m256i; 2]; R],
    ) {
        for step in 4 * half..4 * half + 4 {
            // SAFETY: the caller's promise.
            unsafe {
                let w = w.add(step * 4 * COLUMNS);
                let w = [_mm256_loadu_si256(w.cast()), _mm256_loadu_si256(w.add(32).cast())];
                for r in 0..R {
                    let x = _mm256_set1_epi32(x.codes.add(r).cast::<i32>().add(step).read_unaligned());
                    for j in 0..2 {
                        if VNNI {
                            sums[r][j] = _mm256_dpbusd_avx_epi32(sums[r][j], w[j], x);
                            continue;
                        }
                        let two = if Self::SIGNED {
                            _mm256_maddubs_epi16(_mm256_abs_epi8(w[j]), _mm256_sign_epi8(x, w[j]))
                        } else {
                            _mm256_maddubs_epi16(w[j], x)
                        };
                        pairs[r][j] = if step % Self::STEPS == 0 { two } else { _mm256_add_epi16(pairs[r][j], two) };
                        if step % Self::STEPS == Self::STEPS - 1 {
                            let four = _mm256_madd_epi16(pairs[r][j], _mm256_set1_epi16(1));
                            sums[r][j] = _mm256_add_epi32(sums[r][j], four);
                        }
                    }
                }
            }
        }
    }

    /// One block.
    #[inline(always)]
    unsafe fn step<const R: usize>(x: &Tile, w: &Packed, column: usize, block: usize, sums: &mut [[__m256; 2]; R]) {
        // SAFETY: the caller's promise.
        unsafe {
            let codes = w.codes[block].as_ptr().add(4 * column);
            let zero = _mm256_setzero_si256();
            let extra = w.extra[block].as_ptr().cast::<i32>().add(column);
            let extra = array!(2, [zero; 2], i => {
                array!(2, zero, j => _mm256_loadu_si256(extra.add(i * COLUMNS + 8 * j).cast()))
            });
            let mut pairs = [[zero; 2]; R];
            let mut whole = [[zero; 2]; R];
            if !Self::SIGNED && !matches!(Self::KIND, Kind::Mins) {
                whole = array!(R, [zero; 2], r => [_mm256_set1_epi32((*x.extra.add(r))[0]); 2]);
            }
            Self::half(x, codes, 0, &mut pairs, &mut whole);
            if matches!(Self::KIND, Kind::Halves(_)) {
                let mut second = array!(R, [zero; 2], r => [_mm256_set1_epi32((*x.extra.add(r))[1]); 2]);
                for whole in &mut whole {
                    *whole = array!(2, zero, j => _mm256_mullo_epi32(whole[j], extra[0][j]));
                }
                Self::half(x, codes, 1, &mut pairs, &mut second);
                for (whole, second) in whole.iter_mut().zip(second) {
                    *whole = array!(2, zero, j => _mm256_add_epi32(whole[j], _mm256_mullo_epi32(second[j], extra[1][j])));
                }
            } else {
                Self::half(x, codes, 1, &mut pairs, &mut whole);
            }
            let scale = w.scale[block].as_ptr().add(column);
            let scale = [_mm256_loadu_ps(scale), _mm256_loadu_ps(scale.add(8))];
            for (r, (sums, whole)) in sums.iter_mut().zip(whole).enumerate() {
                let factor = _mm256_set1_ps(*x.factors.add(r));
                for j in 0..2 {
                    sums[j] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole[j]), _mm256_mul_ps(scale[j], factor), sums[j]);
                }
                if matches!(Self::KIND, Kind::Mins) {
                    let sum = _mm256_set1_ps(f32::from_bits((*x.extra.add(r))[0] as u32));
                    for j in 0..2 {
                        sums[j] = _mm256_fnmadd_ps(_mm256_castsi256_ps(extra[0][j]), sum, sums[j]);
                    }
                }
            }
        }
    }
}
