//! The two halves of the softmax cross-entropy of a chunk of rows.

use burn::tensor::DType;
use rayon::prelude::*;

use super::math::{exp, max, sum_of, vectorized};
use super::slices::CpuTensor;

vectorized! {
    /// Largest logit and sum of exponentials.
    fn max_and_sum(row: &[f32]) -> [f32; 2] {
        let max = max(row);
        [max, sum_of(row, |l| exp(l - max))]
    }
}

vectorized! {
    fn softmax(row: &mut [f32], max: f32, factor: f32) {
        for l in row.iter_mut() {
            *l = exp(*l - max) * factor;
        }
    }
}

/// `[n, 3]`: largest logit, sum of exponentials, the target's logit.
pub(super) fn stats<T: CpuTensor>(logits: &T, targets: &[i64], first: usize) -> T {
    let [n, v] = logits.shape().dims();
    let logits = logits.contiguous();
    let mut stats = vec![0f32; 3 * n];
    stats.par_chunks_exact_mut(3).zip(logits.par_chunks_exact(v)).zip(targets).for_each(|((stats, row), &target)| {
        let [max, sum] = max_and_sum(row);
        let picked = usize::try_from(target - first as i64).ok().and_then(|t| row.get(t));
        stats.copy_from_slice(&[max, sum, picked.copied().unwrap_or(f32::NEG_INFINITY)]);
    });
    T::from_vec(stats, &[n, 3])
}

/// `scale * (softmax - onehot(target))`, in place; zeros where the target does not count.
pub(super) fn grad<T: CpuTensor>(logits: T, stats: &T, targets: &[i64], first: usize, scale: f64, dtype: DType) -> T {
    let [_, v] = logits.shape().dims();
    let stats = stats.contiguous();
    let mut logits = logits.owned();
    let rows = logits.values().par_chunks_exact_mut(v).zip(stats.par_chunks_exact(3)).zip(targets);
    rows.for_each(|((row, stats), &target)| {
        if target < 0 {
            row.fill(0.0);
            return;
        }
        softmax(row, stats[0], scale as f32 / stats[1]);
        if let Some(l) = usize::try_from(target - first as i64).ok().and_then(|t| row.get_mut(t)) {
            *l -= scale as f32;
        }
    });
    super::slices::cast(logits.done(), dtype)
}
