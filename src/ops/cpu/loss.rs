//! Output projection and cross-entropy: logits of a block of rows at a time, turned into their gradient in place.

use burn::tensor::TensorMetadata;
use rayon::prelude::*;

use super::math::{exp, max, sum, vectorized};
use super::slices::{CpuTensor, Mat, all_threads, product};

/// Logits held at once, in elements: 8 MiB.
const BLOCK_ELEMENTS: usize = 2 << 20;
/// At least this many rows: fewer would make thin products.
const MIN_ROWS: usize = 64;

/// Sum of the losses `[1]`; with `grads` also `dx [n, d]` and `dw [v, d]`.
pub(super) fn cross_entropy<T: CpuTensor + TensorMetadata>(x: &T, w: &T, targets: &[i64], grads: bool) -> (T, Option<[T; 2]>) {
    let [n, d] = x.shape().dims();
    let [vocab, _] = w.shape().dims();
    let (xs, ws) = (x.contiguous(), w.contiguous());
    let block = (BLOCK_ELEMENTS / vocab).max(MIN_ROWS).min(n.max(1));
    let mut logits = vec![0f32; block * vocab];
    let (mut dx, mut dw) = if grads { (vec![0f32; n * d], vec![0f32; vocab * d]) } else { (Vec::new(), Vec::new()) };
    let weights = Mat::rows(&ws, d);
    let mut loss = 0f64;
    for start in (0..n).step_by(block) {
        let rows = block.min(n - start);
        let xb = Mat::rows(&xs[start * d..], d);
        let logits = &mut logits[..rows * vocab];
        product([rows, vocab, d], logits, vocab, false, xb, weights.t(), 1.0, all_threads());
        let losses: Vec<f64> = logits
            .par_chunks_exact_mut(vocab)
            .zip(&targets[start..start + rows])
            .map(|(row, &target)| vectorized(|| row_loss(row, target, grads)))
            .collect();
        loss += losses.iter().sum::<f64>();
        if grads {
            let dlogits = Mat::rows(logits, vocab);
            product([rows, d, vocab], &mut dx[start * d..], d, false, dlogits, weights, 1.0, all_threads());
            product([vocab, d, rows], &mut dw, d, start > 0, dlogits.t(), xb, 1.0, all_threads());
        }
    }
    let grads = grads.then(|| [T::from_vec(dx, &[n, d]), T::from_vec(dw, &[vocab, d])]);
    (T::from_vec(vec![loss as f32], &[1]), grads)
}

/// The loss of one row; with `grad` the row becomes `softmax - onehot(target)`, zeros if the target does not count.
#[inline(always)]
fn row_loss(row: &mut [f32], target: i64, grad: bool) -> f64 {
    let Ok(target) = usize::try_from(target) else {
        row.fill(0.0);
        return 0.0;
    };
    let max = max(row);
    let picked = row[target];
    for l in row.iter_mut() {
        *l = exp(*l - max);
    }
    let total = sum(row);
    if grad {
        let inverse = 1.0 / total;
        for p in row.iter_mut() {
            *p *= inverse;
        }
        row[target] -= 1.0;
    }
    f64::from(total).ln() + f64::from(max) - f64::from(picked)
}
