//! RoPE, SwiGLU, embedding, AdamW and the sum of squares: one pass each.

use std::mem::MaybeUninit;

use burn::tensor::DType;
use rayon::prelude::*;

use super::math::{sigmoid, vectorized};
use super::slices::{CpuTensor, Values, unwritten, write_all};
use crate::ops::AdamWScalars;

/// Elements a task.
const CHUNK: usize = 1 << 14;

/// Rows of `width` that make a task.
fn rows(width: usize) -> usize {
    (CHUNK / width.max(1)).max(1)
}

vectorized! {
    /// Rotates the heads in `x` by one position's angles.
    fn rotate(x: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
        for x in x.chunks_exact_mut(2 * cos.len()) {
            for (x, (&c, &s)) in x.as_chunks_mut::<2>().0.iter_mut().zip(cos.iter().zip(sin)) {
                let s = s * sign;
                *x = [x[0] * c - x[1] * s, x[0] * s + x[1] * c];
            }
        }
    }
}

pub(super) fn rope<T: CpuTensor>(x: T, cos: &T, sin: &T, rotated: usize, inverse: bool) -> T {
    let [_, seq, heads, head_dim] = x.shape().dims();
    let (cos, sin) = (cos.contiguous(), sin.contiguous());
    assert!(head_dim.is_multiple_of(2), "rope: a head of {head_dim} has no pairs");
    let half = head_dim / 2;
    let row = heads * head_dim;
    let sign = if inverse { -1.0 } else { 1.0 };
    let mut x = x.owned();
    x.values().par_chunks_mut(row.max(1)).with_min_len(rows(row)).enumerate().for_each(|(i, x)| {
        let at = i % seq * half;
        rotate(&mut x[..rotated * head_dim], &cos[at..at + half], &sin[at..at + half], sign);
    });
    x.done()
}

/// [`rope`] of `x [n, heads, head_dim]`, each row by its own angles, `[n, head_dim / 2]`.
pub(super) fn rotate_rows<T: CpuTensor>(x: T, cos: &T, sin: &T, rotated: usize) -> T {
    let [n, heads, head_dim] = x.shape().dims();
    let (cos, sin) = (cos.contiguous(), sin.contiguous());
    let half = head_dim / 2;
    assert!(cos.len() == n * half && sin.len() == n * half, "rope: the tables do not fit the rows");
    let row = heads * head_dim;
    let mut x = x.owned();
    x.values().par_chunks_mut(row.max(1)).with_min_len(rows(row)).enumerate().for_each(|(i, x)| {
        rotate(&mut x[..rotated * head_dim], &cos[i * half..(i + 1) * half], &sin[i * half..(i + 1) * half], 1.0);
    });
    x.done()
}

vectorized! {
    fn swiglu_rows(out: &mut [MaybeUninit<f32>], gate_up: &[f32], f: usize) {
        for (out, gu) in out.chunks_exact_mut(f).zip(gate_up.chunks_exact(2 * f)) {
            let (g, u) = gu.split_at(f);
            for ((out, &g), &u) in out.iter_mut().zip(g).zip(u) {
                out.write(g * sigmoid(g) * u);
            }
        }
    }
}

pub(super) fn swiglu<T: CpuTensor>(gate_up: &T) -> T {
    let [n, width] = gate_up.shape().dims();
    let f = width / 2;
    let gu = gate_up.contiguous();
    assert!(width == 2 * f && gu.len() == n * width, "swiglu: a width of {width} is not a gate and an up");
    let mut out = unwritten(n * f);
    let task = rows(width);
    let tasks = out.par_chunks_mut((task * f).max(1)).zip(gu.par_chunks((task * width).max(1)));
    tasks.for_each(|(out, gu)| swiglu_rows(out, gu, f));
    // SAFETY: every row of gates and ups wrote its row.
    T::make(unsafe { out.assume_init() }.into_vec(), &[n, f], gate_up.dtype())
}

/// Gradients of gates and ups.
#[inline(always)]
fn swiglu_gradients<const N: usize>(g: [f32; N], u: [f32; N], dy: [f32; N]) -> ([f32; N], [f32; N]) {
    let (mut dg, mut du) = ([0.0; N], [0.0; N]);
    for i in 0..N {
        let s = sigmoid(g[i]);
        dg[i] = dy[i] * u[i] * s * (1.0 + g[i] * (1.0 - s));
        du[i] = dy[i] * g[i] * s;
    }
    (dg, du)
}

vectorized! {
    fn swiglu_backward_rows(gate_up: &mut [f32], dy: &[f32], f: usize) {
        for (gu, dy) in gate_up.chunks_exact_mut(2 * f).zip(dy.chunks_exact(f)) {
            let (g, u) = gu.split_at_mut(f);
            // Vector by vector through local arrays: the compiler does not see that the halves do not overlap.
            let ((g, g_rest), (u, u_rest), (dy, dy_rest)) = (g.as_chunks_mut(), u.as_chunks_mut(), dy.as_chunks());
            for ((g, u), dy) in g.iter_mut().zip(u).zip(dy) {
                (*g, *u) = swiglu_gradients::<16>(*g, *u, *dy);
            }
            for ((g, u), &dy) in g_rest.iter_mut().zip(u_rest).zip(dy_rest) {
                let ([dg], [du]) = swiglu_gradients([*g], [*u], [dy]);
                (*g, *u) = (dg, du);
            }
        }
    }
}

pub(super) fn swiglu_backward<T: CpuTensor>(gate_up: T, dy: &T) -> T {
    let [_, width] = gate_up.shape().dims();
    let f = width / 2;
    let dy = dy.contiguous();
    let mut gu = gate_up.owned();
    let task = rows(width);
    let tasks = gu.values().par_chunks_mut((task * width).max(1)).zip(dy.par_chunks((task * f).max(1)));
    tasks.for_each(|(gu, dy)| swiglu_backward_rows(gu, dy, f));
    gu.done()
}

pub(super) fn embedding<T: CpuTensor>(ids: &[i64], w: &T, dtype: DType) -> T {
    let [v, d] = w.shape().dims();
    let ws = w.values(); // narrow rows are widened as they are read
    let mut out = unwritten(ids.len() * d); // exactly a row an id
    out.par_chunks_mut(d.max(1)).zip(ids).with_min_len(rows(d)).for_each(|(out, &id)| {
        let row = usize::try_from(id).ok().filter(|&id| id < v);
        let row = row.unwrap_or_else(|| panic!("embedding: token {id} is outside the vocabulary of {v}"));
        match &ws {
            Values::F32(w) => write_all(out, &w[row * d..][..d]),
            Values::BF16(w) => out.iter_mut().zip(&w[row * d..]).for_each(|(out, x)| _ = out.write(x.to_f32())),
            Values::F16(w) => out.iter_mut().zip(&w[row * d..]).for_each(|(out, x)| _ = out.write(x.to_f32())),
        }
    });
    // SAFETY: every id wrote its row.
    T::make(unsafe { out.assume_init() }.into_vec(), &[ids.len(), d], dtype)
}

vectorized! {
    fn add(sum: &mut [f32], x: &[f32]) {
        sum.iter_mut().zip(x).for_each(|(sum, &x)| *sum += x);
    }
}

/// One task a run of equal ids; `order` puts them side by side.
pub(super) fn embedding_backward<T: CpuTensor>(ids: &[i64], order: &[i64], dx: &T, sum: T) -> T {
    let [v, d] = sum.shape().dims();
    let dx = dx.contiguous();
    let order: Vec<usize> = order.iter().map(|&i| i as usize).collect();
    let runs: Vec<&[usize]> = order.chunk_by(|&a, &b| ids[a] == ids[b]).collect();
    let mut sum = sum.owned();
    {
        let values = super::attention::Rows::new(sum.values());
        runs.into_par_iter().for_each(|run| {
            let id = ids[run[0]] as usize;
            assert!(id < v, "embedding: token {id} is outside the vocabulary of {v}");
            // SAFETY: one run an id, and a row an id: no two tasks write the same row.
            let row = unsafe { values.slice(id * d, d) };
            run.iter().for_each(|&i| add(row, &dx[i * d..][..d]));
        });
    }
    sum.done()
}

vectorized! {
    fn squares(x: &[f32]) -> f64 {
        // Eight sums, in an order that does not depend on the CPU.
        let mut sums = [0f64; 8];
        let (chunks, rest) = x.as_chunks::<8>();
        for chunk in chunks {
            sums.iter_mut().zip(chunk).for_each(|(sum, &x)| *sum += f64::from(x) * f64::from(x));
        }
        sums.iter().sum::<f64>() + rest.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>()
    }
}

/// Partial sums in float64 over chunks of fixed size.
pub(super) fn square_sum<T: CpuTensor>(x: &T) -> T {
    let x = x.contiguous();
    let parts: Vec<f64> = x.par_chunks(CHUNK).map(squares).collect();
    T::from_vec(vec![parts.iter().sum::<f64>() as f32], &[1])
}

vectorized! {
    fn adamw_chunk(w: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32], s: &AdamWScalars) {
        let [b1, b2] = [s.beta1 as f32, s.beta2 as f32];
        let [a1, a2] = [(1.0 - s.beta1) as f32, (1.0 - s.beta2) as f32];
        let scale = s.grad_scale as f32;
        let decay = (1.0 - s.lr * s.weight_decay) as f32;
        let rate = (s.lr / s.bias1) as f32;
        let (inverse_bias2, eps) = ((1.0 / s.bias2) as f32, s.eps as f32);
        for (((w, m), v), &g) in w.iter_mut().zip(m).zip(v).zip(g) {
            let g = g * scale;
            *m = b1 * *m + a1 * g;
            *v = b2 * *v + a2 * g * g;
            *w = decay * *w - rate * *m / ((*v * inverse_bias2).sqrt() + eps);
        }
    }
}

/// In place where nobody else holds the tensors.
pub(super) fn adamw<T: CpuTensor>(w: T, grad: &T, m: T, v: T, s: AdamWScalars) -> [T; 3] {
    let [mut w, mut m, mut v] = [w, m, v].map(T::owned);
    let g = grad.contiguous();
    let state = w.values().par_chunks_mut(CHUNK).zip(m.values().par_chunks_mut(CHUNK)).zip(v.values().par_chunks_mut(CHUNK));
    state.zip(g.par_chunks(CHUNK)).for_each(|(((w, m), v), g)| adamw_chunk(w, m, v, g, &s));
    [w, m, v].map(super::slices::Owned::done)
}
