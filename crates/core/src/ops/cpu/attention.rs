//! Causal attention by blocks: scores of one block of queries and keys at a time, never of a block above the diagonal
//! (Dao et al. 2022, with the running maximum of Milakov and Gimelshein 2018). Inputs may be strided views, so that nothing is
//! transposed in memory: heads as they lie in a projection `[batch, seq, heads, head_dim]`, or a cache.

use std::borrow::Cow;
use std::mem::MaybeUninit;

use gemm::Parallelism;
use rayon::prelude::*;

use super::math::{dot, exp, fold, max, vectorized};
use super::slices::{CpuTensor, Mat, product, unwritten, write_all};

/// Queries and keys of a block.
const QUERIES: usize = 64;
const KEYS: usize = 256;

/// A `[batch, heads, seq, head_dim]` tensor with dense rows.
#[derive(Clone)]
struct Heads<'a> {
    data: Cow<'a, [f32]>,
    /// Of batch, head and position.
    strides: [usize; 3],
    /// Where head 0 begins.
    base: usize,
}

impl<'a> Heads<'a> {
    fn new<T: CpuTensor>(t: &'a T) -> Self {
        let (data, strides) = t.rows(&t.shape());
        Self { data, strides: [strides[0], strides[1], strides[2]], base: 0 }
    }

    /// Heads from `first` on of `[batch, seq, heads, head_dim]`.
    fn packed(data: &'a [f32], [seq, heads, dim]: [usize; 3], first: usize) -> Self {
        Self { data: Cow::Borrowed(data), strides: [seq * heads * dim, dim, heads * dim], base: first * dim }
    }

    /// Rows from `row` on of one head.
    fn at(&self, batch: usize, head: usize, row: usize) -> Mat<'_> {
        let [sb, sh, ss] = self.strides;
        Mat::rows(&self.data[self.base + batch * sb + head * sh + row * ss..], ss)
    }

    fn row(&self, batch: usize, head: usize, row: usize, width: usize) -> &[f32] {
        &self.at(batch, head, row).data[..width]
    }
}

/// Sizes: `group` query heads share a key/value head; query `i` sees the keys up to `first + i`, from its document's start on.
#[derive(Clone, Copy)]
struct Sizes<'a> {
    batch: usize,
    heads: usize,
    kv: usize,
    group: usize,
    seq_q: usize,
    seq_k: usize,
    dim: usize,
    first: usize,
    doc_starts: Option<&'a [i64]>,
}

impl<'a> Sizes<'a> {
    fn new<T: CpuTensor>(q: &T, k: &T, doc_starts: Option<&'a [i64]>) -> Self {
        let [batch, heads, seq_q, dim] = q.shape().dims();
        let [_, kv, seq_k, _] = k.shape().dims();
        assert!(heads.is_multiple_of(kv), "attention: {heads} heads cannot share {kv} key/value heads");
        Self { batch, heads, kv, group: heads / kv, seq_q, seq_k, dim, first: seq_k - seq_q, doc_starts }
    }

    fn packed([batch, seq, all, dim]: [usize; 4], kv: usize, doc_starts: Option<&'a [i64]>) -> Self {
        let heads = all - 2 * kv;
        assert!(heads.is_multiple_of(kv), "attention: {heads} heads cannot share {kv} key/value heads");
        Self { batch, heads, kv, group: heads / kv, seq_q: seq, seq_k: seq, dim, first: 0, doc_starts }
    }

    /// The first key that a query sees.
    fn start(&self, batch: usize, query: usize) -> usize {
        self.doc_starts.map_or(0, |doc_starts| doc_starts[batch * self.seq_q + query] as usize)
    }

    /// Keys of the block at `c` that the query sees: from, to.
    fn seen(&self, batch: usize, query: usize, c: usize, keys: usize) -> (usize, usize) {
        let to = (self.first + query + 1).saturating_sub(c).min(keys);
        (self.start(batch, query).saturating_sub(c).min(to), to)
    }

    /// Blocks of keys that the queries `from..to` see: start and length. The first of them sees furthest back.
    fn key_blocks(&self, batch: usize, from: usize, to: usize) -> impl Iterator<Item = (usize, usize)> {
        let keys = self.first + to;
        (self.start(batch, from)..keys).step_by(KEYS).map(move |c| (c, KEYS.min(keys - c)))
    }
}

/// A shared output that tasks write disjoint rows of.
pub(super) struct Rows<'a, E>(*mut E, usize, std::marker::PhantomData<&'a mut [E]>);
// SAFETY: see `slice`: every task writes rows of its own.
unsafe impl<E: Send> Sync for Rows<'_, E> {}
impl<'a, E> Rows<'a, E> {
    pub(super) fn new(values: &'a mut [E]) -> Self {
        Self(values.as_mut_ptr(), values.len(), std::marker::PhantomData)
    }

    /// Where the first element is.
    pub(super) fn pointer(&self) -> *mut E {
        self.0
    }

    /// # Safety
    /// No two live slices may overlap.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn slice(&self, at: usize, len: usize) -> &mut [E] {
        assert!(at + len <= self.1, "row out of bounds");
        // SAFETY: inside the allocation, and disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(at), len) }
    }
}

/// Heads from `first` on of an output `[batch, seq, heads, head_dim]` that is not written yet.
struct HeadsOut<'a> {
    rows: &'a Rows<'a, MaybeUninit<f32>>,
    seq: usize,
    heads: usize,
    dim: usize,
    first: usize,
}

impl HeadsOut<'_> {
    /// # Safety
    /// A row of a head is one task's alone.
    #[allow(clippy::mut_from_ref)]
    unsafe fn row(&self, batch: usize, head: usize, row: usize) -> &mut [MaybeUninit<f32>] {
        let at = ((batch * self.seq + row) * self.heads + self.first + head) * self.dim;
        // SAFETY: by the caller's promise.
        unsafe { self.rows.slice(at, self.dim) }
    }
}

vectorized! {
    /// Scores to weights with the running maximum `top`, the running sum, and the running output, which is shrunk with them.
    fn online_softmax(row: &mut [f32], top: &mut f32, sum: &mut f32, acc: &mut [f32]) {
        let new = max(row).max(*top);
        let shrink = exp(*top - new);
        for x in row.iter_mut() {
            *x = exp(*x - new);
        }
        *sum = *sum * shrink + fold(row, 0.0, |a, b| a + b, |a, b| a + b);
        *top = new;
        acc.iter_mut().for_each(|x| *x *= shrink);
    }
}

vectorized! {
    /// Scores to weights, and the gradients of weights to those of scores.
    fn weights_and_gradients(p: &mut [f32], dp: &mut [f32], lse: f32, delta: f32, scale: f32) {
        for (p, dp) in p.iter_mut().zip(dp) {
            *p = exp(*p - lse);
            *dp = *p * (*dp - delta) * scale;
        }
    }
}

vectorized! {
    fn row_dot(x: &[f32], y: &[f32]) -> f32 {
        dot(x, y)
    }
}

/// Output `[batch, seq_q, heads, head_dim]` and log-sum-exp `[batch, heads, seq_q, 1]`.
pub(super) fn forward<T: CpuTensor>(q: &T, k: &T, v: &T, doc_starts: Option<&[i64]>, scale: f32) -> (T, T) {
    let s = Sizes::new(q, k, doc_starts);
    run_forward(s, [q, k, v].map(Heads::new), scale, q)
}

/// The same of a packed projection `[batch, seq, heads + 2 kv, head_dim]`.
pub(super) fn packed_forward<T: CpuTensor>(qkv: &T, kv: usize, doc_starts: Option<&[i64]>, scale: f32) -> (T, T) {
    let shape = qkv.shape().dims::<4>();
    let s = Sizes::packed(shape, kv, doc_starts);
    let data = qkv.contiguous();
    let [_, seq, all, dim] = shape;
    let part = |first| Heads::packed(&data, [seq, all, dim], first);
    run_forward(s, [part(0), part(s.heads), part(s.heads + kv)], scale, qkv)
}

fn run_forward<T: CpuTensor>(s: Sizes<'_>, [q, k, v]: [Heads<'_>; 3], scale: f32, like: &T) -> (T, T) {
    let mut out = unwritten(s.batch * s.seq_q * s.heads * s.dim);
    let mut lse = vec![0f32; s.batch * s.heads * s.seq_q];
    let rows = Rows::new(&mut out);
    let out_heads = HeadsOut { rows: &rows, seq: s.seq_q, heads: s.heads, dim: s.dim, first: 0 };
    lse.par_chunks_mut(s.seq_q.max(1)).enumerate().for_each(|(unit, lse)| {
        let (b, h) = (unit / s.heads, unit % s.heads);
        let most = QUERIES.min(s.seq_q);
        let (mut scores, mut acc) = (vec![0f32; most * KEYS], vec![0f32; most * s.dim]);
        for r0 in (0..s.seq_q).step_by(QUERIES) {
            let n = QUERIES.min(s.seq_q - r0);
            let (mut top, mut sums) = ([f32::NEG_INFINITY; QUERIES], [0f32; QUERIES]);
            for (block, (c, keys)) in s.key_blocks(b, r0, r0 + n).enumerate() {
                let (qb, kb) = (q.at(b, h, r0), k.at(b, h / s.group, c));
                product([n, keys, s.dim], &mut scores, KEYS, false, qb, kb.t(), scale, Parallelism::None);
                for r in 0..n {
                    let (from, to) = s.seen(b, r0 + r, c, keys);
                    let row = &mut scores[r * KEYS..][..keys];
                    row[..from].fill(0.0);
                    row[to..].fill(0.0);
                    if from < to {
                        // Of the first block the sums so far are not there yet: nothing to shrink.
                        let acc = if block > 0 { &mut acc[r * s.dim..][..s.dim] } else { &mut [] };
                        online_softmax(&mut row[from..to], &mut top[r], &mut sums[r], acc);
                    }
                }
                let vb = v.at(b, h / s.group, c);
                product([n, s.dim, keys], &mut acc, s.dim, block > 0, Mat::rows(&scores, KEYS), vb, 1.0, Parallelism::None);
            }
            for r in 0..n {
                lse[r0 + r] = top[r] + sums[r].ln();
                // SAFETY: this row of this head belongs to this task alone.
                let out = unsafe { out_heads.row(b, h, r0 + r) };
                let inverse = 1.0 / sums[r];
                for (out, &a) in out.iter_mut().zip(&acc[r * s.dim..]) {
                    out.write(a * inverse);
                }
            }
        }
    });
    // SAFETY: every query of every head wrote its row.
    let out = unsafe { out.assume_init() }.into_vec();
    let out = T::make(out, &[s.batch, s.seq_q, s.heads, s.dim], like.dtype());
    (out, T::from_vec(lse, &[s.batch, s.heads, s.seq_q, 1]))
}

/// `[dq, dk, dv]`, each `[batch, seq, heads, head_dim]`.
pub(super) fn backward<T: CpuTensor>(
    [q, k, v]: [&T; 3],
    doc_starts: Option<&[i64]>,
    out: &T,
    lse: &T,
    dout: &T,
    scale: f32,
) -> [T; 3] {
    let s = Sizes::new(q, k, doc_starts);
    let (q_shape, k_shape) = ([s.batch, s.seq_q, s.heads, s.dim], [s.batch, s.seq_k, s.kv, s.dim]);
    let [mut dq, mut dk, mut dv] = [q_shape, k_shape, k_shape].map(|shape| unwritten(shape.iter().product()));
    {
        let [dq, dk, dv] = [&mut dq, &mut dk, &mut dv].map(|x| Rows::new(x));
        let to = |rows, seq, heads| HeadsOut { rows, seq, heads, dim: s.dim, first: 0 };
        let grads = [to(&dq, s.seq_q, s.heads), to(&dk, s.seq_k, s.kv), to(&dv, s.seq_k, s.kv)];
        run_backward(s, [q, k, v].map(Heads::new), [out, dout].map(Heads::new), &lse.contiguous(), scale, grads);
    }
    // SAFETY: every query of every head wrote its row, and so did every key of every key/value head.
    let [dq, dk, dv] = [dq, dk, dv].map(|x| unsafe { x.assume_init() }.into_vec());
    [T::make(dq, &q_shape, q.dtype()), T::make(dk, &k_shape, q.dtype()), T::make(dv, &k_shape, q.dtype())]
}

/// The gradient of a packed projection, packed; `out` and `dout` are `[batch, seq, heads, head_dim]`.
pub(super) fn packed_backward<T: CpuTensor>(
    qkv: &T,
    kv: usize,
    doc_starts: Option<&[i64]>,
    out: &T,
    lse: &T,
    dout: &T,
    scale: f32,
) -> T {
    let shape = qkv.shape().dims::<4>();
    let [_, seq, all, dim] = shape;
    let s = Sizes::packed(shape, kv, doc_starts);
    let (data, out, dout) = (qkv.contiguous(), out.contiguous(), dout.contiguous());
    let part = |first| Heads::packed(&data, [seq, all, dim], first);
    let outs = [&out, &dout].map(|x| Heads::packed(x, [seq, s.heads, dim], 0));
    let mut grad = unwritten(shape.iter().product());
    {
        let rows = Rows::new(&mut grad);
        let to = |first| HeadsOut { rows: &rows, seq, heads: all, dim, first };
        let inputs = [part(0), part(s.heads), part(s.heads + kv)];
        run_backward(s, inputs, outs, &lse.contiguous(), scale, [to(0), to(s.heads), to(s.heads + kv)]);
    }
    // SAFETY: every position of every head wrote its row.
    T::make(unsafe { grad.assume_init() }.into_vec(), &shape, qkv.dtype())
}

fn run_backward(
    s: Sizes<'_>,
    [q, k, v]: [Heads<'_>; 3],
    [out, dout]: [Heads<'_>; 2],
    lse: &[f32],
    scale: f32,
    [dq_out, dk_out, dv_out]: [HeadsOut<'_>; 3],
) {
    (0..s.batch * s.kv).into_par_iter().for_each(|unit| {
        let (b, g) = (unit / s.kv, unit % s.kv);
        let most = QUERIES.min(s.seq_q);
        let (mut p, mut dp) = (vec![0f32; most * KEYS], vec![0f32; most * KEYS]);
        let mut dq = vec![0f32; most * s.dim];
        // Key and value gradients of this head, dense; written out at the end.
        let (mut dk, mut dv) = (vec![0f32; s.seq_k * s.dim], vec![0f32; s.seq_k * s.dim]);
        for h in g * s.group..(g + 1) * s.group {
            for r0 in (0..s.seq_q).step_by(QUERIES) {
                let n = QUERIES.min(s.seq_q - r0);
                let mut delta = [0f32; QUERIES];
                for (r, delta) in delta.iter_mut().enumerate().take(n) {
                    *delta = row_dot(dout.row(b, h, r0 + r, s.dim), out.row(b, h, r0 + r, s.dim));
                }
                let lse = &lse[(b * s.heads + h) * s.seq_q + r0..][..n];
                let (qb, gb) = (q.at(b, h, r0), dout.at(b, h, r0));
                for (block, (c, keys)) in s.key_blocks(b, r0, r0 + n).enumerate() {
                    let (kb, vb) = (k.at(b, g, c), v.at(b, g, c));
                    product([n, keys, s.dim], &mut p, KEYS, false, qb, kb.t(), scale, Parallelism::None);
                    product([n, keys, s.dim], &mut dp, KEYS, false, gb, vb.t(), 1.0, Parallelism::None);
                    for r in 0..n {
                        let (from, to) = s.seen(b, r0 + r, c, keys);
                        let row = &mut p[r * KEYS..][..keys];
                        let drow = &mut dp[r * KEYS..][..keys];
                        for x in [&mut *row, &mut *drow] {
                            x[..from].fill(0.0);
                            x[to..].fill(0.0);
                        }
                        weights_and_gradients(&mut row[from..to], &mut drow[from..to], lse[r], delta[r], scale);
                    }
                    let (pm, dm) = (Mat::rows(&p, KEYS), Mat::rows(&dp, KEYS));
                    product([keys, s.dim, n], &mut dv[c * s.dim..], s.dim, true, pm.t(), gb, 1.0, Parallelism::None);
                    product([keys, s.dim, n], &mut dk[c * s.dim..], s.dim, true, dm.t(), qb, 1.0, Parallelism::None);
                    product([n, s.dim, keys], &mut dq, s.dim, block > 0, dm, kb, 1.0, Parallelism::None);
                }
                for r in 0..n {
                    // SAFETY: this row of this head belongs to this task alone.
                    write_all(unsafe { dq_out.row(b, h, r0 + r) }, &dq[r * s.dim..][..s.dim]);
                }
            }
        }
        for (to, grad) in [(&dk_out, &dk), (&dv_out, &dv)] {
            for (c, grad) in grad.chunks_exact(s.dim).enumerate() {
                // SAFETY: this row of this key/value head belongs to this task alone.
                write_all(unsafe { to.row(b, g, c) }, grad);
            }
        }
    });
}
