//! Arithmetic that the compiler turns into vector code: [`vectorized`] compiles a function for the CPU's widest vectors, and the
//! functions here are free of branches and calls, and always inlined into those.

/// A function compiled three times, for AVX-512, AVX2 and whatever the target has, and called as this CPU can. (A closure would
/// not do: where it is too long to be inlined, it is compiled for the target alone.)
macro_rules! vectorized {
    ($(#[$meta:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma")]
                fn avx512($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
                match $crate::ops::cpu::math::level() {
                    // SAFETY: `level` has asked the CPU for every feature of the function that is called.
                    2 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    1 => return unsafe { avx2($($arg),*) },
                    _ => {}
                }
            }
            body($($arg),*)
        }
    };
}
pub(super) use vectorized;

/// 2: AVX-512, 1: AVX2, 0: neither. The answers of the CPU are remembered by the standard library.
#[cfg(target_arch = "x86_64")]
pub(super) fn level() -> u8 {
    use std::arch::is_x86_feature_detected as has;
    if !(has!("avx2") && has!("fma")) {
        return 0;
    }
    let wide = has!("avx512f") && has!("avx512bw") && has!("avx512cd") && has!("avx512dq") && has!("avx512vl");
    if wide { 2 } else { 1 }
}

/// e^x with at most 1.5 units in the last place of error; 0 below -87.3, overflow to infinity above 88.7.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2, e^r by the polynomial of Cephes' expf (degree 7 in all), 2^n through the exponent
/// bits. The standard library's `exp` is a call per element.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let clamped = x.clamp(-87.3, 88.7);
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * 0.693_359_4 - n * -2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 5e-1;
    let e = p * (r * r) + r + 1.0;
    // 2^n in two factors: n may be 128.
    let i = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let half = i >> 1;
    let scale = |k: i32| f32::from_bits(((k + 127) << 23) as u32);
    let value = e * scale(half) * scale(i - half);
    if x < -87.3 {
        0.0
    } else if x > 88.7 {
        f32::INFINITY
    } else if x.is_nan() {
        x
    } else {
        value
    }
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Lanes of the running sums and maxima below: wide enough for two AVX-512 registers.
const LANES: usize = 32;

/// Folds a slice lane by lane, then the lanes in order: the order of operations is fixed, and vectors are used.
#[inline(always)]
pub(super) fn fold(x: &[f32], first: f32, f: impl Fn(f32, f32) -> f32 + Copy, join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [first; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane = f(*lane, v);
        }
    }
    for (lane, &v) in lanes.iter_mut().zip(rest) {
        *lane = f(*lane, v);
    }
    lanes.into_iter().fold(first, join)
}

/// Sum of f over pairs of two slices of equal length.
#[inline(always)]
pub(super) fn fold2(x: &[f32], y: &[f32], f: impl Fn(f32, f32, f32) -> f32 + Copy) -> f32 {
    let mut lanes = [0f32; LANES];
    let (xs, ys) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    let (x_rest, y_rest) = (xs.remainder(), ys.remainder());
    for (x, y) in xs.zip(ys) {
        for ((lane, &x), &y) in lanes.iter_mut().zip(x).zip(y) {
            *lane = f(*lane, x, y);
        }
    }
    for ((lane, &x), &y) in lanes.iter_mut().zip(x_rest).zip(y_rest) {
        *lane = f(*lane, x, y);
    }
    lanes.into_iter().sum()
}

/// Sum of f over a slice.
#[inline(always)]
pub(super) fn sum_of(x: &[f32], f: impl Fn(f32) -> f32 + Copy) -> f32 {
    fold(x, 0.0, |a, b| a + f(b), |a, b| a + b)
}

#[inline(always)]
pub(super) fn square_sum(x: &[f32]) -> f32 {
    fold(x, 0.0, |a, b| a + b * b, |a, b| a + b)
}

#[inline(always)]
pub(super) fn dot(x: &[f32], y: &[f32]) -> f32 {
    fold2(x, y, |a, x, y| a + x * y)
}

/// The largest element; NaN elements are passed over (they show in the sum of exponentials).
#[inline(always)]
pub(super) fn max(x: &[f32]) -> f32 {
    fold(x, f32::NEG_INFINITY, |a, b| if b > a { b } else { a }, f32::max)
}
