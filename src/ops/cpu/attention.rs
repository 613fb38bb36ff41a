//! Causal attention by blocks: scores of one block of queries and keys at a time, never of a block above the diagonal
//! (Dao et al. 2022, with the running maximum of Milakov and Gimelshein 2018). One task a batch row and key/value head.
//! Inputs may be strided views (`[batch, heads, seq, head_dim]` over `[batch, seq, heads, head_dim]`), so that nothing is
//! transposed in memory; outputs are laid out `[batch, seq, heads, head_dim]`.

use std::borrow::Cow;

use burn::tensor::TensorMetadata;
use gemm::Parallelism;
use rayon::prelude::*;

use super::math::{dot, exp, fold, max, vectorized};
use super::slices::{CpuTensor, Mat, product};

/// Queries and keys of a block.
const QUERIES: usize = 64;
const KEYS: usize = 256;

/// A `[batch, heads, seq, head_dim]` tensor with dense rows.
struct Heads<'a> {
    data: Cow<'a, [f32]>,
    strides: [usize; 3],
}

impl<'a> Heads<'a> {
    fn new<T: CpuTensor + TensorMetadata>(t: &'a T) -> Self {
        let (data, strides) = t.rows(&t.shape());
        Self { data, strides: [strides[0], strides[1], strides[2]] }
    }

    /// Rows from `row` on of one head.
    fn at(&self, batch: usize, head: usize, row: usize) -> Mat<'_> {
        let [sb, sh, ss] = self.strides;
        Mat::rows(&self.data[batch * sb + head * sh + row * ss..], ss)
    }

    fn row(&self, batch: usize, head: usize, row: usize, width: usize) -> &[f32] {
        &self.at(batch, head, row).data[..width]
    }
}

/// Sizes: `group` query heads share a key/value head; query `i` sees the keys up to `first + i`.
#[derive(Clone, Copy)]
struct Sizes {
    batch: usize,
    heads: usize,
    kv: usize,
    group: usize,
    seq_q: usize,
    seq_k: usize,
    dim: usize,
    first: usize,
}

impl Sizes {
    fn new<T: TensorMetadata>(q: &T, k: &T) -> Self {
        let [batch, heads, seq_q, dim] = q.shape().dims();
        let [_, kv, seq_k, _] = k.shape().dims();
        Self { batch, heads, kv, group: heads / kv, seq_q, seq_k, dim, first: seq_k - seq_q }
    }

    /// Keys of the block at `c` that query `r` sees.
    fn seen(&self, r: usize, c: usize, keys: usize) -> usize {
        (self.first + r + 1).saturating_sub(c).min(keys)
    }

    /// Blocks of keys that the queries up to `end` see: start and length.
    fn key_blocks(&self, end: usize) -> impl Iterator<Item = (usize, usize)> {
        let keys = self.first + end;
        (0..keys).step_by(KEYS).map(move |c| (c, KEYS.min(keys - c)))
    }
}

/// A shared output that tasks write disjoint rows of.
struct Rows(*mut f32, usize);
// SAFETY: see `slice`: every task writes rows of its own.
unsafe impl Sync for Rows {}
impl Rows {
    /// # Safety
    /// No two live slices may overlap.
    #[allow(clippy::mut_from_ref)]
    unsafe fn slice(&self, at: usize, len: usize) -> &mut [f32] {
        assert!(at + len <= self.1, "row out of bounds");
        // SAFETY: inside the allocation, and disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(at), len) }
    }
}

/// Output `[batch, seq_q, heads, head_dim]` and log-sum-exp `[batch, heads, seq_q, 1]`.
pub(super) fn forward<T: CpuTensor + TensorMetadata>(q: &T, k: &T, v: &T, scale: f32) -> (T, T) {
    let s = Sizes::new(q, k);
    let (q, k, v) = (Heads::new(q), Heads::new(k), Heads::new(v));
    let mut out = vec![0f32; s.batch * s.seq_q * s.heads * s.dim];
    let mut lse = vec![0f32; s.batch * s.heads * s.seq_q];
    let rows = Rows(out.as_mut_ptr(), out.len());
    lse.par_chunks_mut(s.seq_q.max(1)).enumerate().for_each(|(unit, lse)| {
        let (b, h) = (unit / s.heads, unit % s.heads);
        let mut scores = vec![0f32; QUERIES * KEYS];
        let mut acc = vec![0f32; QUERIES * s.dim];
        for r0 in (0..s.seq_q).step_by(QUERIES) {
            let n = QUERIES.min(s.seq_q - r0);
            let (mut top, mut sums) = ([f32::NEG_INFINITY; QUERIES], [0f32; QUERIES]);
            for (c, keys) in s.key_blocks(r0 + n) {
                let (qb, kb) = (q.at(b, h, r0), k.at(b, h / s.group, c));
                product([n, keys, s.dim], &mut scores, KEYS, false, qb, kb.t(), scale, Parallelism::None);
                vectorized(|| {
                    for r in 0..n {
                        let (row, hidden) = scores[r * KEYS..][..keys].split_at_mut(s.seen(r0 + r, c, keys));
                        let new = max(row).max(top[r]);
                        let shrink = exp(top[r] - new);
                        for x in row.iter_mut() {
                            *x = exp(*x - new);
                        }
                        hidden.fill(0.0);
                        sums[r] = sums[r] * shrink + fold(row, 0.0, |a, b| a + b, |a, b| a + b);
                        top[r] = new;
                        if c > 0 {
                            acc[r * s.dim..][..s.dim].iter_mut().for_each(|x| *x *= shrink);
                        }
                    }
                });
                let vb = v.at(b, h / s.group, c);
                product([n, s.dim, keys], &mut acc, s.dim, c > 0, Mat::rows(&scores, KEYS), vb, 1.0, Parallelism::None);
            }
            for r in 0..n {
                lse[r0 + r] = top[r] + sums[r].ln();
                let at = ((b * s.seq_q + r0 + r) * s.heads + h) * s.dim;
                // SAFETY: this row of this head belongs to this task alone.
                let out = unsafe { rows.slice(at, s.dim) };
                let inverse = 1.0 / sums[r];
                out.iter_mut().zip(&acc[r * s.dim..]).for_each(|(o, &a)| *o = a * inverse);
            }
        }
    });
    (T::from_vec(out, &[s.batch, s.seq_q, s.heads, s.dim]), T::from_vec(lse, &[s.batch, s.heads, s.seq_q, 1]))
}

/// `[dq, dk, dv]`, each `[batch, seq, heads, head_dim]`.
pub(super) fn backward<T: CpuTensor + TensorMetadata>([q, k, v]: [&T; 3], out: &T, lse: &T, dout: &T, scale: f32) -> [T; 3] {
    let s = Sizes::new(q, k);
    let (q, k, v, out, dout) = (Heads::new(q), Heads::new(k), Heads::new(v), Heads::new(out), Heads::new(dout));
    let lse = lse.contiguous();
    let mut dq = vec![0f32; s.batch * s.seq_q * s.heads * s.dim];
    let [mut dk, mut dv] = [(); 2].map(|()| vec![0f32; s.batch * s.seq_k * s.kv * s.dim]);
    let [dq_rows, dk_rows, dv_rows] = [&mut dq, &mut dk, &mut dv].map(|x| Rows(x.as_mut_ptr(), x.len()));
    (0..s.batch * s.kv).into_par_iter().for_each(|unit| {
        let (b, g) = (unit / s.kv, unit % s.kv);
        let (mut p, mut dp) = (vec![0f32; QUERIES * KEYS], vec![0f32; QUERIES * KEYS]);
        let mut dq = vec![0f32; QUERIES * s.dim];
        // Key and value gradients of this head, dense; written out at the end.
        let (mut dk, mut dv) = (vec![0f32; s.seq_k * s.dim], vec![0f32; s.seq_k * s.dim]);
        for h in g * s.group..(g + 1) * s.group {
            for r0 in (0..s.seq_q).step_by(QUERIES) {
                let n = QUERIES.min(s.seq_q - r0);
                let mut delta = [0f32; QUERIES];
                let mut rows_lse = [0f32; QUERIES];
                vectorized(|| {
                    for r in 0..n {
                        delta[r] = dot(dout.row(b, h, r0 + r, s.dim), out.row(b, h, r0 + r, s.dim));
                        rows_lse[r] = lse[(b * s.heads + h) * s.seq_q + r0 + r];
                    }
                });
                let (qb, gb) = (q.at(b, h, r0), dout.at(b, h, r0));
                for (c, keys) in s.key_blocks(r0 + n) {
                    let (kb, vb) = (k.at(b, g, c), v.at(b, g, c));
                    product([n, keys, s.dim], &mut p, KEYS, false, qb, kb.t(), scale, Parallelism::None);
                    product([n, keys, s.dim], &mut dp, KEYS, false, gb, vb.t(), 1.0, Parallelism::None);
                    vectorized(|| {
                        for r in 0..n {
                            let seen = s.seen(r0 + r, c, keys);
                            let (row, hidden) = p[r * KEYS..][..keys].split_at_mut(seen);
                            let (drow, dhidden) = dp[r * KEYS..][..keys].split_at_mut(seen);
                            hidden.fill(0.0);
                            dhidden.fill(0.0);
                            let (lse, delta) = (rows_lse[r], delta[r]);
                            for (p, dp) in row.iter_mut().zip(drow) {
                                *p = exp(*p - lse);
                                *dp = *p * (*dp - delta) * scale;
                            }
                        }
                    });
                    let (pm, dm) = (Mat::rows(&p, KEYS), Mat::rows(&dp, KEYS));
                    product([keys, s.dim, n], &mut dv[c * s.dim..], s.dim, true, pm.t(), gb, 1.0, Parallelism::None);
                    product([keys, s.dim, n], &mut dk[c * s.dim..], s.dim, true, dm.t(), qb, 1.0, Parallelism::None);
                    product([n, s.dim, keys], &mut dq, s.dim, c > 0, dm, kb, 1.0, Parallelism::None);
                }
                for r in 0..n {
                    let at = ((b * s.seq_q + r0 + r) * s.heads + h) * s.dim;
                    // SAFETY: this row of this head belongs to this task alone.
                    unsafe { dq_rows.slice(at, s.dim) }.copy_from_slice(&dq[r * s.dim..][..s.dim]);
                }
            }
        }
        for (rows, grad) in [(&dk_rows, &dk), (&dv_rows, &dv)] {
            for (c, grad) in grad.chunks_exact(s.dim).enumerate() {
                // SAFETY: this row of this key/value head belongs to this task alone.
                unsafe { rows.slice(((b * s.seq_k + c) * s.kv + g) * s.dim, s.dim) }.copy_from_slice(grad);
            }
        }
    });
    let q_shape = [s.batch, s.seq_q, s.heads, s.dim];
    let k_shape = [s.batch, s.seq_k, s.kv, s.dim];
    [T::from_vec(dq, &q_shape), T::from_vec(dk, &k_shape), T::from_vec(dv, &k_shape)]
}
