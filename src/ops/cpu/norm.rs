//! RMSNorm on rows.

use burn::tensor::TensorMetadata;
use rayon::prelude::*;

use super::math::{dot, square_sum, vectorized};
use super::slices::CpuTensor;

/// Rows a task; fixed, because the weight's gradient is summed task by task.
const ROWS: usize = 64;

fn width<T: TensorMetadata>(x: &T) -> usize {
    x.shape().last().copied().unwrap_or(1).max(1)
}

#[inline(always)]
fn inverse_rms(row: &[f32], eps: f64) -> f32 {
    let mean = f64::from(square_sum(row)) / row.len() as f64;
    (1.0 / (mean + eps).sqrt()) as f32
}

pub(super) fn forward<T: CpuTensor + TensorMetadata>(x: &T, w: &T, eps: f64) -> T {
    let d = width(x);
    let (xs, ws) = (x.contiguous(), w.contiguous());
    let mut out = vec![0f32; xs.len()];
    out.par_chunks_mut(ROWS * d).zip(xs.par_chunks(ROWS * d)).for_each(|(out, x)| {
        vectorized(|| {
            for (out, x) in out.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
                let r = inverse_rms(x, eps);
                for ((out, &x), &w) in out.iter_mut().zip(x).zip(ws.iter()) {
                    *out = x * r * w;
                }
            }
        });
    });
    T::from_vec(out, &x.shape())
}

/// With `y = x r` and `g = dy w`: `dx = r (g - y mean(g y))`, `dw = sum of dy y`.
pub(super) fn backward<T: CpuTensor + TensorMetadata>(x: &T, w: &T, dy: &T, eps: f64) -> (T, T) {
    let d = width(x);
    let (xs, ws, dys) = (x.contiguous(), w.contiguous(), dy.contiguous());
    let mut dx = vec![0f32; xs.len()];
    let parts: Vec<Vec<f32>> = dx
        .par_chunks_mut(ROWS * d)
        .zip(xs.par_chunks(ROWS * d).zip(dys.par_chunks(ROWS * d)))
        .map(|(dx, (x, dy))| {
            let mut dw = vec![0f32; d];
            let mut g = vec![0f32; d];
            vectorized(|| {
                for ((dx, x), dy) in dx.chunks_exact_mut(d).zip(x.chunks_exact(d)).zip(dy.chunks_exact(d)) {
                    let r = inverse_rms(x, eps);
                    for (((g, dw), (&x, &dy)), &w) in g.iter_mut().zip(dw.iter_mut()).zip(x.iter().zip(dy)).zip(ws.iter()) {
                        *g = dy * w;
                        *dw += dy * x * r;
                    }
                    let shared = dot(&g, x) * r * r / d as f32;
                    for ((dx, &x), &g) in dx.iter_mut().zip(x).zip(&g) {
                        *dx = r * (g - x * shared);
                    }
                }
            });
            dw
        })
        .collect();
    let mut dw = vec![0f32; d];
    for part in parts {
        dw.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
    }
    (T::from_vec(dx, &x.shape()), T::from_vec(dw, &[d]))
}
