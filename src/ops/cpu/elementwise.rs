//! RoPE, SwiGLU, AdamW and the sum of squares: one pass each.

use burn::tensor::TensorMetadata;
use rayon::prelude::*;

use super::math::{sigmoid, vectorized};
use super::slices::CpuTensor;
use crate::ops::AdamWScalars;

/// Elements a task.
const CHUNK: usize = 1 << 14;

pub(super) fn rope<T: CpuTensor + TensorMetadata>(x: &T, cos: &T, sin: &T) -> T {
    let [batch, seq, heads, head_dim] = x.shape().dims();
    let (xs, cos, sin) = (x.contiguous(), cos.contiguous(), sin.contiguous());
    assert!(head_dim.is_multiple_of(2), "rope: a head of {head_dim} has no pairs");
    let half = head_dim / 2;
    let mut out = vec![0f32; xs.len()];
    let row = heads * head_dim;
    debug_assert_eq!(xs.len(), batch * seq * row);
    out.par_chunks_mut(row).zip(xs.par_chunks(row)).enumerate().for_each(|(i, (out, x))| {
        let at = i % seq * half;
        let (cos, sin) = (&cos[at..at + half], &sin[at..at + half]);
        vectorized(|| {
            for (out, x) in out.chunks_exact_mut(head_dim).zip(x.chunks_exact(head_dim)) {
                for ((out, x), (&c, &s)) in out.chunks_exact_mut(2).zip(x.chunks_exact(2)).zip(cos.iter().zip(sin)) {
                    out[0] = x[0] * c - x[1] * s;
                    out[1] = x[0] * s + x[1] * c;
                }
            }
        });
    });
    T::from_vec(out, &[batch, seq, heads, head_dim])
}

pub(super) fn swiglu<T: CpuTensor + TensorMetadata>(gate: &T, up: &T) -> T {
    let (g, u) = (gate.contiguous(), up.contiguous());
    let mut out = vec![0f32; g.len()];
    out.par_chunks_mut(CHUNK).zip(g.par_chunks(CHUNK).zip(u.par_chunks(CHUNK))).for_each(|(out, (g, u))| {
        vectorized(|| {
            for ((out, &g), &u) in out.iter_mut().zip(g).zip(u) {
                *out = g * sigmoid(g) * u;
            }
        });
    });
    T::from_vec(out, &gate.shape())
}

pub(super) fn swiglu_backward<T: CpuTensor + TensorMetadata>(gate: &T, up: &T, dy: &T) -> (T, T) {
    let (g, u, dy) = (gate.contiguous(), up.contiguous(), dy.contiguous());
    let (mut dg, mut du) = (vec![0f32; g.len()], vec![0f32; g.len()]);
    let inputs = g.par_chunks(CHUNK).zip(u.par_chunks(CHUNK)).zip(dy.par_chunks(CHUNK));
    dg.par_chunks_mut(CHUNK).zip(du.par_chunks_mut(CHUNK)).zip(inputs).for_each(|((dg, du), ((g, u), dy))| {
        vectorized(|| {
            for (((dg, du), (&g, &u)), &dy) in dg.iter_mut().zip(du).zip(g.iter().zip(u)).zip(dy) {
                let s = sigmoid(g);
                *dg = dy * u * s * (1.0 + g * (1.0 - s));
                *du = dy * g * s;
            }
        });
    });
    (T::from_vec(dg, &gate.shape()), T::from_vec(du, &gate.shape()))
}

/// Partial sums in float64 over chunks of fixed size.
pub(super) fn square_sum<T: CpuTensor>(x: &T) -> T {
    let x = x.contiguous();
    let parts: Vec<f64> =
        x.par_chunks(CHUNK).map(|x| vectorized(|| x.iter().map(|&x| f64::from(x) * f64::from(x)).sum())).collect();
    T::from_vec(vec![parts.iter().sum::<f64>() as f32], &[1])
}

/// In place where nobody else holds the tensors.
pub(super) fn adamw<T: CpuTensor + TensorMetadata>(w: T, grad: &T, m: T, v: T, s: AdamWScalars) -> [T; 3] {
    let shape = w.shape();
    let own = |mut t: T| if t.slice_mut().is_some() { t } else { T::from_vec(t.copied(), &shape) };
    let [mut w, mut m, mut v] = [w, m, v].map(own);
    let g = grad.contiguous();
    let [b1, b2] = [s.beta1, s.beta2].map(|b| b as f32);
    let [a1, a2] = [s.beta1, s.beta2].map(|b| (1.0 - b) as f32);
    let scale = s.grad_scale as f32;
    let decay = (1.0 - s.lr * s.weight_decay) as f32;
    let rate = (s.lr / s.bias1) as f32;
    let (inverse_bias2, eps) = ((1.0 / s.bias2) as f32, s.eps as f32);
    if let (Some(w), Some(m), Some(v)) = (w.slice_mut(), m.slice_mut(), v.slice_mut()) {
        let state = w.par_chunks_mut(CHUNK).zip(m.par_chunks_mut(CHUNK)).zip(v.par_chunks_mut(CHUNK));
        state.zip(g.par_chunks(CHUNK)).for_each(|(((w, m), v), g)| {
            vectorized(|| {
                for (((w, m), v), &g) in w.iter_mut().zip(m).zip(v).zip(g) {
                    let g = g * scale;
                    *m = b1 * *m + a1 * g;
                    *v = b2 * *v + a2 * g * g;
                    *w = decay * *w - rate * *m / ((*v * inverse_bias2).sqrt() + eps);
                }
            });
        });
    }
    [w, m, v]
}
