//! One optimizer step: forward and backward over the micro-batches, global norm, clip, AdamW.

use burn::tensor::{Int, Tensor, TensorData};

use crate::error::Result;
use crate::model::Llama;
use crate::ops::LlamaOps;
use crate::optim::{AdamW, global_norm};

/// Token windows for one forward and backward pass.
#[derive(Clone, Debug)]
pub struct MicroBatch {
    /// `[batch, seq_len + 1]`, row-major: inputs are columns `0..seq_len`, targets `1..=seq_len`. A negative target is not
    /// counted.
    pub tokens: Vec<i32>,
    /// Rows.
    pub batch: usize,
    /// Targets a row.
    pub seq_len: usize,
}

impl MicroBatch {
    /// Inputs and targets on a device, `[batch, seq_len]` each. Where a target is not to be counted, the input after it is
    /// token 0.
    pub fn to_device<B: LlamaOps>(&self, device: &B::Device) -> (Tensor<B, 2, Int>, Tensor<B, 2, Int>) {
        let rows = || self.tokens.chunks_exact(self.seq_len + 1);
        let shape = [self.batch, self.seq_len];
        let inputs: Vec<i32> = rows().flat_map(|row| row[..self.seq_len].iter().map(|&t| t.max(0))).collect();
        let targets: Vec<i32> = rows().flat_map(|row| row[1..].iter().copied()).collect();
        (Tensor::from_data(TensorData::new(inputs, shape), device), Tensor::from_data(TensorData::new(targets, shape), device))
    }

    /// Number of targets that count.
    pub fn valid(&self) -> u64 {
        self.tokens.chunks_exact(self.seq_len + 1).flat_map(|row| &row[1..]).filter(|&&t| t >= 0).count() as u64
    }
}

/// What a step says of itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepOutput {
    /// Mean cross-entropy over the step's targets, in nats.
    pub loss: f64,
    /// Global L2 norm of the gradient before clipping.
    pub grad_norm: f64,
    /// The update was left out: loss or gradient was not finite, or `skip` said so.
    pub skipped: bool,
}

/// One step over micro-batches. Gradients are those of the mean over all targets of the step, however they are divided.
/// `skip(loss, grad_norm)` may refuse an update.
///
/// # Errors
/// Those of the micro-batches (the model is then lost with the run).
pub fn train_step<B: LlamaOps>(
    model: Llama<B>,
    optim: &mut AdamW<B>,
    micro_batches: Vec<Result<MicroBatch>>,
    lr: f64,
    skip: &mut dyn FnMut(f64, f64) -> bool,
) -> Result<(Llama<B>, StepOutput)> {
    let micro_batches = micro_batches.into_iter().collect::<Result<Vec<_>>>()?;
    let valid = micro_batches.iter().map(MicroBatch::valid).sum::<u64>().max(1) as f64;
    let device = model.device();
    let mut total: Option<Vec<burn::tensor::ops::FloatTensor<B>>> = None;
    let mut losses = Vec::new();
    for micro in &micro_batches {
        let (inputs, targets) = micro.to_device::<B>(&device);
        let ad = model.autodiff();
        let loss = ad.loss_sum(Tensor::from_inner(inputs), Tensor::from_inner(targets));
        losses.push(loss.clone().inner());
        let grads = ad.take_gradients(&mut loss.mul_scalar(1.0 / valid).backward());
        total = Some(match total {
            None => grads,
            Some(sum) => sum.into_iter().zip(grads).map(|(a, b)| B::float_add(a, b)).collect(),
        });
    }
    let grads = total.unwrap_or_default();
    let loss: f64 = Tensor::cat(losses, 0).into_data().convert::<f32>().iter::<f32>().map(f64::from).sum::<f64>() / valid;
    let grad_norm = global_norm::<B>(&grads);
    let skipped = !(loss.is_finite() && grad_norm.is_finite()) || skip(loss, grad_norm);
    let model = if skipped { model } else { optim.step(model, grads, grad_norm, lr) };
    Ok((model, StepOutput { loss, grad_norm, skipped }))
}

/// Mean cross-entropy of a batch, in nats, and the number of its targets.
pub fn batch_loss<B: LlamaOps>(model: &Llama<B>, micro: &MicroBatch) -> (f64, u64) {
    let (inputs, targets) = micro.to_device::<B>(&model.device());
    let sum = model.loss_sum(inputs, targets).into_data().convert::<f32>();
    let valid = micro.valid();
    (sum.iter::<f32>().map(f64::from).sum::<f64>() / valid.max(1) as f64, valid)
}
