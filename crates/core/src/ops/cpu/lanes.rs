//! Vectors of the CPU in hand-written loops: what the compiler does not find by itself. Products of rows and attention over a cache are
//! written once, over [`Lanes`], and compiled for AVX-512, AVX2 and plain Rust.
//!
//! A sum over `k` products is taken lane by lane and the lanes are then joined by one fixed tree: it depends on `k` alone, never on
//! how many rows are computed together.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use half::{bf16, f16};

/// An element that is widened to float32 when it is read.
pub(super) trait Element: Copy + Send + Sync + 'static {
    /// # Safety
    /// `L`'s features; `L::WIDTH` elements at `at`.
    unsafe fn load<L: Lanes>(at: *const Self) -> L;
    /// As float32.
    fn widen(self) -> f32;
    /// From float32, to nearest even.
    fn narrow(x: f32) -> Self;
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(at: *const Self) -> L {
        // SAFETY: the caller's promise.
        unsafe { L::load(at) }
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
    #[inline(always)]
    fn narrow(x: f32) -> Self {
        x
    }
}

impl Element for bf16 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(at: *const Self) -> L {
        // SAFETY: the caller's promise; a bf16 is 16 bits.
        unsafe { L::load_bf16(at.cast()) }
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    #[inline(always)]
    fn narrow(x: f32) -> Self {
        Self::from_f32(x)
    }
}

impl Element for f16 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(at: *const Self) -> L {
        // SAFETY: the caller's promise; an f16 is 16 bits.
        unsafe { L::load_f16(at.cast()) }
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }
    #[inline(always)]
    fn narrow(x: f32) -> Self {
        Self::from_f32(x)
    }
}

/// A vector of float32. Every function needs the CPU features of the type.
pub(super) trait Lanes: Copy {
    /// Elements.
    const WIDTH: usize;
    /// Most rows of a tile of a product; see [`tile_columns`](super::rows).
    const ROWS: usize;
    /// Accumulators that fit beside the operands of a tile.
    const SUMS: usize;

    /// # Safety
    /// The CPU features.
    unsafe fn splat(x: f32) -> Self;
    /// # Safety
    /// The CPU features, and `WIDTH` elements at `at`.
    unsafe fn load(at: *const f32) -> Self;
    /// # Safety
    /// As [`Lanes::load`].
    unsafe fn load_bf16(at: *const u16) -> Self;
    /// # Safety
    /// As [`Lanes::load`].
    unsafe fn load_f16(at: *const u16) -> Self;
    /// # Safety
    /// The CPU features, and room for `WIDTH` elements at `at`.
    unsafe fn store(self, at: *mut f32);
    /// `a * b + self`, rounded once.
    ///
    /// # Safety
    /// The CPU features.
    unsafe fn add_product(self, a: Self, b: Self) -> Self;
    /// # Safety
    /// The CPU features.
    unsafe fn scale(self, by: Self) -> Self;
    /// The sums of the lanes of four vectors, each by the same tree.
    ///
    /// # Safety
    /// The CPU features.
    unsafe fn sums(x: [Self; 4]) -> [f32; 4];
}

/// Sums of products of `X` and `W`, lane by lane: how a product of rows reads its operands and adds.
pub(super) trait Products<X, W>: Copy {
    /// Elements of an operand that are read at once, 32 at most.
    const WIDTH: usize;
    /// See [`Lanes::ROWS`].
    const ROWS: usize;
    /// See [`Lanes::SUMS`].
    const SUMS: usize;

    /// # Safety
    /// The CPU features.
    unsafe fn zero() -> Self;
    /// # Safety
    /// The CPU features, and `WIDTH` elements at `at`.
    unsafe fn row(at: *const X) -> Self;
    /// # Safety
    /// As [`Products::row`].
    unsafe fn column(at: *const W) -> Self;
    /// # Safety
    /// The CPU features.
    unsafe fn add(self, row: Self, column: Self) -> Self;
    /// The sums of the lanes of four vectors, each by the same tree.
    ///
    /// # Safety
    /// The CPU features.
    unsafe fn totals(x: [Self; 4]) -> [f32; 4];
}

impl<L: Lanes, X: Element, W: Element> Products<X, W> for L {
    const WIDTH: usize = <L as Lanes>::WIDTH;
    const ROWS: usize = <L as Lanes>::ROWS;
    const SUMS: usize = <L as Lanes>::SUMS;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller's promise, as in all functions below.
        unsafe { L::splat(0.0) }
    }
    #[inline(always)]
    unsafe fn row(at: *const X) -> Self {
        // SAFETY: as above.
        unsafe { X::load(at) }
    }
    #[inline(always)]
    unsafe fn column(at: *const W) -> Self {
        // SAFETY: as above.
        unsafe { W::load(at) }
    }
    #[inline(always)]
    unsafe fn add(self, row: Self, column: Self) -> Self {
        // SAFETY: as above.
        unsafe { self.add_product(row, column) }
    }
    #[inline(always)]
    unsafe fn totals(x: [Self; 4]) -> [f32; 4] {
        // SAFETY: as above.
        unsafe { L::sums(x) }
    }
}

/// AVX-512 with BF16: 32 bfloat16 as an operand, 16 float32 as sums, each of which takes two products at once.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(super) struct Pairs(__m512);

#[cfg(target_arch = "x86_64")]
impl Products<bf16, bf16> for Pairs {
    const WIDTH: usize = 32;
    const ROWS: usize = <__m512 as Lanes>::ROWS;
    const SUMS: usize = <__m512 as Lanes>::SUMS;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller has AVX-512 with BF16, as in all functions below.
        unsafe { Self(_mm512_setzero_ps()) }
    }
    #[inline(always)]
    unsafe fn row(at: *const bf16) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self(_mm512_loadu_ps(at.cast())) }
    }
    #[inline(always)]
    unsafe fn column(at: *const bf16) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self(_mm512_loadu_ps(at.cast())) }
    }
    #[inline(always)]
    unsafe fn add(self, row: Self, column: Self) -> Self {
        // SAFETY: the caller's promise; both types are 512 bits, any of them a value.
        let [row, column] = unsafe { [row.0, column.0].map(|x| std::mem::transmute::<__m512, __m512bh>(x)) };
        // SAFETY: the caller's promise.
        unsafe { Self(_mm512_dpbf16_ps(self.0, row, column)) }
    }
    #[inline(always)]
    unsafe fn totals(x: [Self; 4]) -> [f32; 4] {
        // SAFETY: the caller's promise.
        unsafe { <__m512 as Lanes>::sums(x.map(|x| x.0)) }
    }
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn sums4(x: [__m128; 4]) -> [f32; 4] {
    // SAFETY: SSE2 is part of x86-64.
    unsafe {
        let ab = _mm_add_ps(_mm_unpacklo_ps(x[0], x[1]), _mm_unpackhi_ps(x[0], x[1]));
        let cd = _mm_add_ps(_mm_unpacklo_ps(x[2], x[3]), _mm_unpackhi_ps(x[2], x[3]));
        let all = _mm_add_ps(_mm_movelh_ps(ab, cd), _mm_movehl_ps(cd, ab));
        let mut out = [0f32; 4];
        _mm_storeu_ps(out.as_mut_ptr(), all);
        out
    }
}

#[cfg(target_arch = "x86_64")]
impl Lanes for __m512 {
    const WIDTH: usize = 16;
    const ROWS: usize = 5;
    const SUMS: usize = 25;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: the caller has AVX-512, as in all functions below.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm512_loadu_ps(at) }
    }
    #[inline(always)]
    unsafe fn load_bf16(at: *const u16) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(at.cast())))) }
    }
    #[inline(always)]
    unsafe fn load_f16(at: *const u16) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
    }
    #[inline(always)]
    unsafe fn store(self, at: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { _mm512_storeu_ps(at, self) }
    }
    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm512_fmadd_ps(a, b, self) }
    }
    #[inline(always)]
    unsafe fn scale(self, by: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm512_mul_ps(self, by) }
    }
    #[inline(always)]
    unsafe fn sums(x: [Self; 4]) -> [f32; 4] {
        // SAFETY: the caller's promise.
        unsafe {
            let ab = _mm512_add_ps(_mm512_unpacklo_ps(x[0], x[1]), _mm512_unpackhi_ps(x[0], x[1]));
            let cd = _mm512_add_ps(_mm512_unpacklo_ps(x[2], x[3]), _mm512_unpackhi_ps(x[2], x[3]));
            let lo = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd)));
            let hi = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd)));
            let all = _mm512_add_ps(lo, hi);
            let half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps::<1>(all));
            let all = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps::<1>(half));
            let mut out = [0f32; 4];
            _mm_storeu_ps(out.as_mut_ptr(), all);
            out
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl Lanes for __m256 {
    const WIDTH: usize = 8;
    const ROWS: usize = 3;
    const SUMS: usize = 12;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: the caller has AVX2, FMA and F16C, as in all functions below.
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm256_loadu_ps(at) }
    }
    #[inline(always)]
    unsafe fn load_bf16(at: *const u16) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast())))) }
    }
    #[inline(always)]
    unsafe fn load_f16(at: *const u16) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(at.cast())) }
    }
    #[inline(always)]
    unsafe fn store(self, at: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { _mm256_storeu_ps(at, self) }
    }
    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm256_fmadd_ps(a, b, self) }
    }
    #[inline(always)]
    unsafe fn scale(self, by: Self) -> Self {
        // SAFETY: the caller's promise.
        unsafe { _mm256_mul_ps(self, by) }
    }
    #[inline(always)]
    unsafe fn sums(x: [Self; 4]) -> [f32; 4] {
        // SAFETY: the caller's promise.
        unsafe { sums4(x.map(|x| _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x)))) }
    }
}

/// Plain Rust, for what has neither.
#[derive(Clone, Copy)]
pub(super) struct Plain([f32; 8]);

impl Lanes for Plain {
    const WIDTH: usize = 8;
    const ROWS: usize = 3;
    const SUMS: usize = 4;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self([x; 8])
    }
    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self {
        // SAFETY: the caller's promise.
        Self(std::array::from_fn(|i| unsafe { at.add(i).read_unaligned() }))
    }
    #[inline(always)]
    unsafe fn load_bf16(at: *const u16) -> Self {
        // SAFETY: the caller's promise.
        Self(std::array::from_fn(|i| bf16::from_bits(unsafe { at.add(i).read_unaligned() }).widen()))
    }
    #[inline(always)]
    unsafe fn load_f16(at: *const u16) -> Self {
        // SAFETY: the caller's promise.
        Self(std::array::from_fn(|i| f16::from_bits(unsafe { at.add(i).read_unaligned() }).widen()))
    }
    #[inline(always)]
    unsafe fn store(self, at: *mut f32) {
        for (i, x) in self.0.into_iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { at.add(i).write_unaligned(x) };
        }
    }
    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        // Rounded twice: a fused product is a call where the CPU has none.
        Self(std::array::from_fn(|i| self.0[i] + a.0[i] * b.0[i]))
    }
    #[inline(always)]
    unsafe fn scale(self, by: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] * by.0[i]))
    }
    #[inline(always)]
    unsafe fn sums(x: [Self; 4]) -> [f32; 4] {
        x.map(|Self(v)| ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7])))
    }
}

/// A function over [`Lanes`] compiled for AVX-512, AVX2 and plain Rust, and called as this CPU can.
macro_rules! with_lanes {
    ($(#[$meta:meta])* unsafe fn $name:ident <$($gen:ident: $bound:path),*> ($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:ident) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        unsafe fn $name<$($gen: $bound),*>($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma,f16c")]
                unsafe fn avx512<$($gen: $bound),*>($($arg: $ty),*) $(-> $ret)? {
                    // SAFETY: the caller's promise; the features are this function's.
                    unsafe { $body::<std::arch::x86_64::__m512, $($gen),*>($($arg),*) }
                }
                #[target_feature(enable = "avx2,fma,f16c")]
                unsafe fn avx2<$($gen: $bound),*>($($arg: $ty),*) $(-> $ret)? {
                    // SAFETY: the caller's promise; the features are this function's.
                    unsafe { $body::<std::arch::x86_64::__m256, $($gen),*>($($arg),*) }
                }
                match $crate::ops::cpu::lanes::level() {
                    // SAFETY: the caller's promise; `level` has asked the CPU.
                    2 => return unsafe { avx512::<$($gen),*>($($arg),*) },
                    // SAFETY: as above.
                    1 => return unsafe { avx2::<$($gen),*>($($arg),*) },
                    _ => {}
                }
            }
            // SAFETY: the caller's promise.
            unsafe { $body::<$crate::ops::cpu::lanes::Plain, $($gen),*>($($arg),*) }
        }
    };
}
pub(super) use with_lanes;

/// Asks for the line of memory at an address, which need not be anybody's.
#[inline(always)]
pub(super) fn prefetch(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing; SSE is part of x86-64.
    unsafe {
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// 2: AVX-512, 1: AVX2, 0: neither.
#[cfg(target_arch = "x86_64")]
pub(super) fn level() -> u8 {
    if std::arch::is_x86_feature_detected!("f16c") { super::math::level() } else { 0 }
}
