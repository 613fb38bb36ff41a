//! `y = x W^T` row by row: a row's result depends on the row and the weight alone, to the bit, however many rows there are (general
//! products choose their order of summation by their size). Both operands lie with `k` dense, so nothing is packed: a weight is
//! read once for a few rows, at the speed of the memory.

use std::borrow::Cow;
use std::mem::MaybeUninit;

use half::{bf16, f16};
use rayon::prelude::*;

use super::super::{Dtype, blocks};
use super::attention::Rows;
use super::lanes::{Element, Products, prefetch, with_lanes};
use super::slices::{CpuTensor, Values, unwritten};

/// Products of a row that are summed before they are added to the sums of earlier ones: as much of a tile's rows as the first
/// cache holds.
const DEPTH: usize = 1024;
/// Bytes of a weight that a thread takes in turn with all rows: they stay in the second cache.
const STRIPE: usize = 256 << 10;

/// `sums [rows][columns]` of `x [rows, depth]` and `w [columns, depth]`, both with rows `x_stride` and `w_stride` apart. The
/// columns are a multiple of no number; `rows * columns` accumulators are held in registers.
#[inline(always)]
pub(super) unsafe fn tile<L: Products<X, W>, X: Element, W: Element, const R: usize, const C: usize>(
    x: *const X,
    x_stride: usize,
    w: *const W,
    w_stride: usize,
    depth: usize,
) -> [[f32; C]; R] {
    // SAFETY: the caller has L's features and `depth` elements in each row.
    unsafe {
        let mut sums = [[L::zero(); C]; R];
        let whole = depth / L::WIDTH * L::WIDTH;
        let mut k = 0;
        while k < whole {
            let mut columns = [L::zero(); C];
            for (c, column) in columns.iter_mut().enumerate() {
                *column = L::column(w.add(c * w_stride + k));
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let row = L::row(x.add(r * x_stride + k));
                for (sum, column) in sums.iter_mut().zip(columns) {
                    *sum = sum.add(row, column);
                }
            }
            k += L::WIDTH;
        }
        if whole < depth {
            let mut columns = [L::zero(); C];
            for (c, column) in columns.iter_mut().enumerate() {
                *column = L::column(padded(w.add(c * w_stride + whole), depth - whole).as_ptr());
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let row = L::row(padded(x.add(r * x_stride + whole), depth - whole).as_ptr());
                for (sum, column) in sums.iter_mut().zip(columns) {
                    *sum = sum.add(row, column);
                }
            }
        }
        let mut out = [[0f32; C]; R];
        for (out, sums) in out.iter_mut().zip(sums) {
            for c in (0..C).step_by(4) {
                let four = std::array::from_fn(|i| if c + i < C { sums[c + i] } else { L::zero() });
                let four = L::totals(four);
                for i in 0..4 {
                    if c + i < C {
                        out[c + i] = four[i];
                    }
                }
            }
        }
        out
    }
}

/// Fewer elements than a vector has, then zeros.
#[inline(always)]
unsafe fn padded<E: Element>(at: *const E, n: usize) -> [E; 32] {
    let mut values = [E::narrow(0.0); 32];
    for (i, value) in values.iter_mut().enumerate().take(n) {
        // SAFETY: `n` elements are there.
        *value = unsafe { at.add(i).read_unaligned() };
    }
    values
}

/// Columns that a few rows are multiplied with at once: a multiple of every tile's.
const FEW: usize = 40;
/// Bytes ahead of which a weight is asked for, read by one row: the hardware stops at the end of a page.
const AHEAD: usize = 2048;
/// Chunks of [`DEPTH`] that one row is multiplied with before their sums are taken.
const CHUNKS: usize = 8;

/// What a stripe of a product is.
#[derive(Clone, Copy)]
pub(super) struct Stripe<X, W> {
    x: *const X,
    w: *const W,
    out: *mut f32,
    rows: usize,
    /// Columns of this stripe.
    columns: usize,
    /// Of the whole output: how far its rows lie apart.
    width: usize,
    k: usize,
    /// The product is added to what is there.
    add: bool,
}

#[inline(always)]
unsafe fn tiles<L: Products<X, W>, X: Element, W: Element, const R: usize, const C: usize>(
    s: &Stripe<X, W>,
    row: usize,
    from: usize,
    depth: usize,
) {
    let add = s.add || from > 0;
    // SAFETY: the caller's promise: all of the stripe's rows and columns are there, and nobody else writes them.
    unsafe {
        let x = s.x.add(row * s.k + from);
        let mut c = 0;
        while c + C <= s.columns {
            let sums = tile::<L, X, W, R, C>(x, s.k, s.w.add(c * s.k + from), s.k, depth);
            for (r, sums) in sums.iter().enumerate() {
                let out = s.out.add((row + r) * s.width + c);
                for (i, &sum) in sums.iter().enumerate() {
                    *out.add(i) = if add { *out.add(i) + sum } else { sum };
                }
            }
            c += C;
        }
        while c < s.columns {
            let sums = tile::<L, X, W, R, 1>(x, s.k, s.w.add(c * s.k + from), s.k, depth);
            for (r, sums) in sums.iter().enumerate() {
                let out = s.out.add((row + r) * s.width + c);
                *out = if add { *out + sums[0] } else { sums[0] };
            }
            c += 1;
        }
    }
}

/// All columns of a stripe for all its rows, a depth after the other.
#[inline(always)]
unsafe fn depths<L: Products<X, W>, X: Element, W: Element>(s: &Stripe<X, W>) {
    let mut from = 0;
    while from < s.k {
        let depth = DEPTH.min(s.k - from);
        let mut row = 0;
        while row < s.rows {
            let left = (s.rows - row).min(L::ROWS);
            // SAFETY: the caller's promise.
            unsafe {
                match (left, L::SUMS) {
                    (1, ..8) => tiles::<L, X, W, 1, 4>(s, row, from, depth),
                    (1, _) => tiles::<L, X, W, 1, 8>(s, row, from, depth),
                    (2, ..8) => tiles::<L, X, W, 2, 2>(s, row, from, depth),
                    (2, ..16) => tiles::<L, X, W, 2, 5>(s, row, from, depth),
                    (2, _) => tiles::<L, X, W, 2, 8>(s, row, from, depth),
                    (3, ..8) => tiles::<L, X, W, 3, 1>(s, row, from, depth),
                    (3, ..16) => tiles::<L, X, W, 3, 4>(s, row, from, depth),
                    (3, _) => tiles::<L, X, W, 3, 6>(s, row, from, depth),
                    (4, _) => tiles::<L, X, W, 4, 5>(s, row, from, depth),
                    _ => tiles::<L, X, W, 5, 5>(s, row, from, depth),
                }
            }
            row += left;
        }
        from += depth;
    }
}

#[inline(always)]
unsafe fn stripe_body<L: Products<X, W>, X: Element, W: Element>(s: Stripe<X, W>) {
    if s.rows > L::ROWS {
        // SAFETY: the caller's promise.
        return unsafe { depths::<L, X, W>(&s) };
    }
    if s.rows == 1 {
        // SAFETY: the caller's promise.
        return unsafe { streamed::<L, X, W>(&s) };
    }
    // Few rows: some columns to their end before the next ones.
    let mut c = 0;
    while c < s.columns {
        let columns = if s.columns - c < 2 * FEW { s.columns - c } else { FEW };
        // SAFETY: the caller's promise.
        unsafe { depths::<L, X, W>(&Stripe { w: s.w.add(c * s.k), out: s.out.add(c), columns, ..s }) };
        c += columns;
    }
}

/// One row: time goes into reading the weight, which is read as memory likes it, each row to its end.
#[inline(always)]
unsafe fn streamed<L: Products<X, W>, X: Element, W: Element>(s: &Stripe<X, W>) {
    let mut c = 0;
    while c < s.columns {
        let columns = (s.columns - c).min(4);
        let mut from = 0;
        while from < s.k {
            let depth = (CHUNKS * DEPTH).min(s.k - from);
            let chunks = depth.div_ceil(DEPTH);
            // SAFETY: the caller's promise: all of the stripe's columns are there, and nobody else writes them.
            unsafe {
                // Of four columns the sums of each chunk of the depth.
                let mut sums = [[L::zero(); 4]; CHUNKS];
                for column in 0..columns {
                    let w = s.w.add((c + column) * s.k + from);
                    for (i, sums) in sums.iter_mut().enumerate().take(chunks) {
                        let at = i * DEPTH;
                        sums[column] = chunk::<L, X, W>(s.x.add(from + at), w.add(at), DEPTH.min(depth - at));
                    }
                }
                for (i, &four) in sums.iter().enumerate().take(chunks) {
                    let add = s.add || from + i > 0;
                    let out = s.out.add(c);
                    for (i, &sum) in L::totals(four).iter().enumerate().take(columns) {
                        *out.add(i) = if add { *out.add(i) + sum } else { sum };
                    }
                }
            }
            from += depth;
        }
        c += columns;
    }
}

/// The sums of a row with one column, lane by lane: as in [`tile`].
#[inline(always)]
unsafe fn chunk<L: Products<X, W>, X: Element, W: Element>(x: *const X, w: *const W, depth: usize) -> L {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sum = L::zero();
        let whole = depth / L::WIDTH * L::WIDTH;
        let mut k = 0;
        while k < whole {
            prefetch(w.wrapping_byte_add(k * size_of::<W>() + AHEAD).cast());
            sum = sum.add(L::row(x.add(k)), L::column(w.add(k)));
            k += L::WIDTH;
        }
        if whole < depth {
            let (x, w) = (padded(x.add(whole), depth - whole), padded(w.add(whole), depth - whole));
            sum = sum.add(L::row(x.as_ptr()), L::column(w.as_ptr()));
        }
        sum
    }
}

with_lanes! {
    /// # Safety
    /// The operands of [`Stripe`] are there, and its part of the output is nobody else's.
    unsafe fn stripe<X: Element, W: Element>(s: Stripe<X, W>) = stripe_body
}

/// How a stripe is computed.
type Kernel<X, W> = unsafe fn(Stripe<X, W>);

/// Pairs of bfloat16 by the CPU's own instruction, where it has one.
fn bf16_kernel() -> Option<Kernel<bf16, bf16>> {
    #[cfg(target_arch = "x86_64")]
    if super::lanes::level() == 2 && std::arch::is_x86_feature_detected!("avx512bf16") {
        #[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma,f16c")]
        unsafe fn pairs(s: Stripe<bf16, bf16>) {
            // SAFETY: the caller's promise; the features are this function's.
            unsafe { stripe_body::<super::lanes::Pairs, bf16, bf16>(s) }
        }
        return Some(pairs);
    }
    None
}

/// [`product_at`] by a weight in bfloat16: the rows are rounded to bfloat16 too, on every CPU, as everywhere where models are of that type.
///
/// # Safety
/// `columns * k` elements at `w`, aligned or not.
unsafe fn bf16_product(x: &[f32], w: *const bf16, out: &mut [MaybeUninit<f32>], sizes: [usize; 3], place: [usize; 2], add: bool) {
    // SAFETY: the caller's promise; a kernel is one that this CPU has.
    unsafe {
        if let Some(kernel) = bf16_kernel() {
            let x: Vec<bf16> = rounded(x, to_bf16);
            return product_at(kernel, &x, w, out, sizes, place, add);
        }
        let x: Vec<f32> = rounded(x, |x| to_bf16(x).widen());
        product_at(stripe, &x, w, out, sizes, place, add);
    }
}

/// [`bf16::from_f32`] without a branch, so that the compiler makes vectors of it.
#[inline(always)]
fn to_bf16(x: f32) -> bf16 {
    let bits = x.to_bits();
    let even = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    let nan = bits | 0x40_0000;
    let kept = if bits & 0x7fff_ffff > 0x7f80_0000 { nan } else { even };
    bf16::from_bits((kept >> 16) as u16)
}

/// Each element by `f`; many of them by all threads.
fn rounded<T: Copy + Send + Sync>(x: &[f32], f: impl Fn(f32) -> T + Sync) -> Vec<T> {
    const CHUNK: usize = 1 << 14;
    let mut out = Vec::with_capacity(x.len());
    if x.len() <= CHUNK {
        out.extend(x.iter().map(|&x| f(x)));
        return out;
    }
    let each = |(out, x): (&mut [MaybeUninit<T>], &[f32])| {
        for (out, &x) in out.iter_mut().zip(x) {
            out.write(f(x));
        }
    };
    out.spare_capacity_mut()[..x.len()].par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(each);
    // SAFETY: the chunks are all elements, and each was written.
    unsafe { out.set_len(x.len()) };
    out
}

/// `out (+)= x [rows, k] w [columns, k]^T`, into the columns from `first` on of an output `[rows, width]`.
///
/// # Safety
/// `columns * k` elements at `w`, aligned or not; a kernel that this CPU has.
unsafe fn product_at<X: Element, W: Element>(
    kernel: Kernel<X, W>,
    x: &[X],
    w: *const W,
    out: &mut [MaybeUninit<f32>],
    [rows, columns, k]: [usize; 3],
    [first, width]: [usize; 2],
    add: bool,
) {
    assert!(
        x.len() == rows * k && out.len() == rows * width && first + columns <= width,
        "product of rows: operands of other sizes"
    );
    if rows == 0 || columns == 0 {
        return;
    }
    if k == 0 {
        if !add {
            out.chunks_exact_mut(width).for_each(|out| out[first..first + columns].fill(MaybeUninit::new(0.0)));
        }
        return;
    }
    // As many stripes as keep all threads busy to the end, none larger than the cache: of one row equal ones, of more whole tiles.
    let threads = rayon::current_num_threads();
    let fits = STRIPE / (DEPTH.min(k) * size_of::<W>()).max(1);
    let tile = if rows == 1 { 4 } else { FEW };
    let wide = columns.div_ceil(threads * 4).next_multiple_of(tile).min(fits.next_multiple_of(tile));
    let out = Rows::new(out);
    let w = Shared(w);
    (0..columns.div_ceil(wide)).into_par_iter().for_each(|i| {
        let from = i * wide;
        // SAFETY: the first element of the output is inside of it; a stripe writes its own columns only.
        let at = unsafe { out.pointer().add(first + from) };
        // SAFETY: inside of the weight.
        let w = unsafe { w.at(from * k) };
        let s = Stripe { x: x.as_ptr(), w, out: at.cast::<f32>(), rows, columns: wide.min(columns - from), width, k, add };
        // SAFETY: sizes were checked above; without `add` nothing is read before it is written.
        unsafe { kernel(s) };
    });
}

/// Elements that threads read.
struct Shared<W>(*const W);
// SAFETY: they are only read.
unsafe impl<W: Sync> Sync for Shared<W> {}

impl<W> Shared<W> {
    /// # Safety
    /// So many elements are there.
    unsafe fn at(&self, n: usize) -> *const W {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(n) }
    }
}

/// The product of tensors' values.
fn dispatch(x: &Values<'_>, w: &Values<'_>, out: &mut [MaybeUninit<f32>], sizes: [usize; 3], add: bool) {
    let x = float(x);
    let place = [0, sizes[1]];
    let enough = |len: usize| assert_eq!(len, sizes[1] * sizes[2], "product of rows: a weight of another size");
    // SAFETY: as many elements as were asked for.
    unsafe {
        match w {
            Values::F32(w) => {
                enough(w.len());
                product_at(stripe, &x, w.as_ptr(), out, sizes, place, add);
            }
            Values::BF16(w) => {
                enough(w.len());
                bf16_product(&x, w.as_ptr(), out, sizes, place, add);
            }
            Values::F16(w) => {
                enough(w.len());
                product_at(stripe, &x, w.as_ptr(), out, sizes, place, add);
            }
        }
    }
}

/// As float32, copied if need be.
pub(super) fn float<'a>(x: &'a Values<'_>) -> Cow<'a, [f32]> {
    match x {
        Values::F32(x) => Cow::Borrowed(x),
        other => Cow::Owned(other.widened()),
    }
}

/// `x [rows, k] w^T` by a weight of a float type as it is in a file, into the columns from `first` on of an output `[rows, width]`.
pub(super) fn product_of_bytes(
    x: &[f32],
    (dtype, w): (Dtype, &[u8]),
    out: &mut [MaybeUninit<f32>],
    sizes: [usize; 3],
    place: [usize; 2],
    add: bool,
) {
    assert_eq!(dtype.bytes(sizes[1] * sizes[2]), Some(w.len()), "product of rows: a weight of another size");
    if cfg!(target_endian = "big") {
        let w = blocks::widened(dtype, w);
        // SAFETY: as many elements as were asked for above.
        return unsafe { product_at(stripe, x, w.as_ptr(), out, sizes, place, add) };
    }
    // SAFETY: as above; every value of their bytes is one of theirs.
    unsafe {
        match dtype {
            Dtype::F32 => product_at(stripe, x, w.as_ptr().cast::<f32>(), out, sizes, place, add),
            Dtype::F16 => product_at(stripe, x, w.as_ptr().cast::<f16>(), out, sizes, place, add),
            Dtype::BF16 => bf16_product(x, w.as_ptr().cast(), out, sizes, place, add),
            _ => unreachable!("a type of blocks"),
        }
    }
}

/// `x [n, k] w [m, k]^T` as `dtype`.
pub(super) fn project<T: CpuTensor>(x: &T, w: &T, dtype: burn::tensor::DType) -> T {
    let ([n, k], [m, k_w]) = (x.shape().dims(), w.shape().dims());
    assert_eq!(k, k_w, "product of rows: inner dimensions differ");
    let mut out = unwritten(n * m);
    dispatch(&x.values(), &w.values(), &mut out, [n, m, k], false);
    // SAFETY: the product wrote every element.
    T::make(unsafe { out.assume_init() }.into_vec(), &[n, m], dtype)
}

/// `y + x w^T`, in place where nobody else holds `y [n, m]`.
pub(super) fn project_add<T: CpuTensor>(y: T, x: &T, w: &T) -> T {
    let ([n, k], [m, k_w]) = (x.shape().dims(), w.shape().dims());
    assert_eq!(k, k_w, "product of rows: inner dimensions differ");
    let mut y = y.owned();
    let out = y.values();
    // SAFETY: initialised floats are also maybe initialised ones; the product writes floats only.
    let room = unsafe { std::slice::from_raw_parts_mut(out.as_mut_ptr().cast::<MaybeUninit<f32>>(), out.len()) };
    dispatch(&x.values(), &w.values(), room, [n, m, k], true);
    y.done()
}
