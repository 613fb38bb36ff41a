//! RMSNorm on rows.

use std::mem::MaybeUninit;

use burn::tensor::DType;
use rayon::prelude::*;

use super::math::{dot, square_sum, vectorized};
use super::slices::{CpuTensor, unwritten};

/// Rows a task; fixed, because the weight's gradient is summed task by task.
const ROWS: usize = 64;

fn width<T: CpuTensor>(x: &T) -> usize {
    x.shape().last().copied().unwrap_or(1).max(1)
}

#[inline(always)]
fn inverse_rms(row: &[f32], eps: f64) -> f32 {
    let mean = f64::from(square_sum(row)) / row.len() as f64;
    (1.0 / (mean + eps).sqrt()) as f32
}

vectorized! {
    fn forward_rows(out: &mut [MaybeUninit<f32>], x: &[f32], w: &[f32], eps: f64) {
        let d = w.len();
        for (out, x) in out.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
            let r = inverse_rms(x, eps);
            for ((out, &x), &w) in out.iter_mut().zip(x).zip(w) {
                out.write(x * r * w);
            }
        }
    }
}

pub(super) fn forward<T: CpuTensor>(x: &T, w: &T, eps: f64, dtype: DType) -> T {
    let d = width(x);
    let (xs, ws) = (x.contiguous(), w.contiguous());
    assert!(ws.len() == d && xs.len().is_multiple_of(d), "rms_norm: the weight has another width than the input");
    let mut out = unwritten(xs.len());
    let rows = out.par_chunks_mut(ROWS * d).zip(xs.par_chunks(ROWS * d));
    rows.for_each(|(out, x)| forward_rows(out, x, &ws, eps));
    // SAFETY: every row wrote its row, and rows are whole: `d` is their width.
    T::make(unsafe { out.assume_init() }.into_vec(), &x.shape(), dtype)
}

vectorized! {
    /// Adds to `dw`, and to `dx` too if `adds`; `g` is room for a row.
    fn backward_rows(dx: &mut [f32], dw: &mut [f32], x: &[f32], dy: &[f32], w: &[f32], g: &mut [f32], eps: f64, adds: bool) {
        let d = w.len();
        for ((dx, x), dy) in dx.chunks_exact_mut(d).zip(x.chunks_exact(d)).zip(dy.chunks_exact(d)) {
            let r = inverse_rms(x, eps);
            for (((g, dw), (&x, &dy)), &w) in g.iter_mut().zip(dw.iter_mut()).zip(x.iter().zip(dy)).zip(w) {
                *g = dy * w;
                *dw += dy * x * r;
            }
            let shared = dot(g, x) * r * r / d as f32;
            if adds {
                for ((dx, &x), &g) in dx.iter_mut().zip(x).zip(g.iter()) {
                    *dx += r * (g - x * shared);
                }
            } else {
                for ((dx, &x), &g) in dx.iter_mut().zip(x).zip(g.iter()) {
                    *dx = r * (g - x * shared);
                }
            }
        }
    }
}

/// With `y = x r` and `g = dy w`: `dx = r (g - y mean(g y))`, `dw = sum of dy y`.
pub(super) fn backward<T: CpuTensor>(x: &T, w: &T, dy: &T, eps: f64, add: Option<T>) -> (T, T) {
    let d = width(x);
    let (xs, ws, dys) = (x.contiguous(), w.contiguous(), dy.contiguous());
    let adds = add.is_some();
    let mut dx = match add {
        Some(add) => add.owned(),
        None => T::from_vec(vec![0f32; xs.len()], &x.shape()).owned(),
    };
    let parts: Vec<Vec<f32>> = dx
        .values()
        .par_chunks_mut(ROWS * d)
        .zip(xs.par_chunks(ROWS * d).zip(dys.par_chunks(ROWS * d)))
        .map(|(dx, (x, dy))| {
            let (mut dw, mut g) = (vec![0f32; d], vec![0f32; d]);
            backward_rows(dx, &mut dw, x, dy, &ws, &mut g, eps, adds);
            dw
        })
        .collect();
    let mut dw = vec![0f32; d];
    for part in parts {
        dw.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
    }
    (super::slices::cast(dx.done(), x.dtype()), T::from_vec(dw, &[d]))
}
