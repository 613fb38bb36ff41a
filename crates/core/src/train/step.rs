//! One optimizer step: forward and backward over the micro-batches, global norm, clip, AdamW.

use burn::tensor::backend::ExecutionError;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::backend::context;
use crate::error::{Error, Result};
use crate::model::backward::{ActivationCheckpointing, PassConfig, PassInput, PassParameters, Single, forward_backward};
use crate::model::{Llama, Parameter, PerSlot, Slot};
use crate::ops::{AdamWScalars, LlamaOps, tensor};
#[cfg(doc)]
use crate::optim::LossScale;
use crate::optim::{AdamW, norm_of};

/// Type of the products' operands; sums, norms, softmax, loss, the residual stream, gradients of weights and the optimizer's state
/// are float32 always.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// float32.
    #[default]
    F32,
    /// bfloat16, with float32 master weights.
    Bf16,
    /// float16, with float32 master weights and a scaled loss ([`LossScale`]): for devices without bfloat16.
    F16,
}

impl Precision {
    /// As Burn names it.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
        }
    }

    /// # Errors
    /// [`Error::Backend`] if the device does not compute in this type.
    pub fn check<B: LlamaOps>(self, device: &B::Device) -> Result<()> {
        if B::supports_dtype(device, self.dtype()) {
            return Ok(());
        }
        Err(Error::Backend {
            name: B::name(device),
            problem: format!("it does not compute in {self:?}"),
            hint: "set train.precision = \"f32\"; `recua info` lists the types of each backend".into(),
        })
    }
}

/// How a step computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepConfig {
    /// What is kept from forward to backward.
    pub checkpointing: ActivationCheckpointing,
    /// Type of the products' operands.
    pub precision: Precision,
    /// Burn's autodiff instead of the backward written by hand: somewhat larger, float32 only; the oracle.
    pub autodiff: bool,
    /// Each parameter is updated as soon as its gradient is there, which is then freed: no two gradients exist at once. The clip
    /// then uses the norm of the step before, and a step cannot be left out. One micro-batch a step; not in float16, whose loss
    /// scale is found by leaving steps out.
    pub update_in_backward: bool,
}

impl StepConfig {
    /// Makes model and optimizer ready for such steps: copies of the weights in the compute type, the factor on a float16 loss.
    pub fn prepare<B: LlamaOps>(self, model: Llama<B>, optim: &mut AdamW<B>) -> Llama<B> {
        let compute = self.precision.dtype();
        optim.scale_loss_for(compute);
        model.keep_copies(compute)
    }
}

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
    /// The token that begins a document: attention then stays inside documents. `None`: it sees the whole row.
    pub bos: Option<i32>,
}

impl MicroBatch {
    fn rows(&self) -> impl Iterator<Item = &[i32]> {
        self.tokens.chunks_exact(self.seq_len + 1)
    }

    /// What a pass reads, on a device. Where a target is not to be counted, the input after it is token 0.
    pub fn to_device<B: LlamaOps>(&self, device: &B::Device) -> PassInput<B> {
        let shape = [self.batch, self.seq_len];
        let inputs: Vec<i32> = self.rows().flat_map(|row| row[..self.seq_len].iter().map(|&t| t.max(0))).collect();
        let targets: Vec<i32> = self.rows().flat_map(|row| row[1..].iter().copied()).collect();
        let mut order: Vec<i32> = (0..inputs.len() as i32).collect();
        order.sort_by_key(|&i| inputs[i as usize]); // stable: equal tokens stay in their order
        let doc_starts = self.bos.map(|bos| {
            let of_row = |row: &[i32]| {
                let mut start = 0;
                let position = |(i, &token): (usize, &i32)| {
                    if token == bos {
                        start = i as i32;
                    }
                    start
                };
                row[..self.seq_len].iter().enumerate().map(position).collect::<Vec<_>>()
            };
            Tensor::from_data(TensorData::new(self.rows().flat_map(of_row).collect::<Vec<_>>(), shape), device)
        });
        PassInput {
            order: Tensor::from_data(TensorData::new(order, [inputs.len()]), device),
            tokens: Tensor::from_data(TensorData::new(inputs, shape), device),
            targets: Tensor::from_data(TensorData::new(targets, shape), device),
            doc_starts,
        }
    }

    /// Number of targets that count.
    pub fn valid(&self) -> u64 {
        self.rows().flat_map(|row| &row[1..]).filter(|&&t| t >= 0).count() as u64
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
    /// The factor on this step's loss, where there is one; see [`LossScale`].
    pub loss_scale: Option<f64>,
}

/// Parameters and gradients during a step.
struct StepParameters<'a, B: LlamaOps> {
    stored: PerSlot<Option<Parameter<B>>>,
    grads: PerSlot<Option<FloatTensor<B>>>,
    optim: &'a mut AdamW<B>,
    compute: DType,
    /// The numbers of updates that are made in backward, and the squares of the gradients so far.
    now: Option<(AdamWScalars, Vec<Tensor<B, 1>>)>,
}

impl<B: LlamaOps> PassParameters<B> for StepParameters<'_, B> {
    fn weight(&self, slot: Slot) -> FloatTensor<B> {
        let parameter = self.stored[slot].as_ref().expect("a parameter is away only while it is updated");
        parameter.read(slot.read_as(self.compute))
    }

    fn take_grad(&mut self, slot: Slot) -> Option<FloatTensor<B>> {
        self.grads[slot].take()
    }

    fn put_grad(&mut self, slot: Slot, grad: FloatTensor<B>) {
        let Some((scalars, squares)) = &mut self.now else {
            self.grads[slot] = Some(grad);
            return;
        };
        squares.push(tensor(B::square_sum(grad.clone())));
        let parameter = self.stored[slot].take().expect("each gradient comes once");
        self.stored[slot] = Some(self.optim.update(slot, parameter, grad, *scalars));
    }
}

impl<B: LlamaOps> StepParameters<'_, B> {
    /// AdamW on every parameter whose gradient is still there; `factor` makes it that of the loss.
    fn update(&mut self, lr: f64, norm: f64, factor: f64) {
        if self.grads.iter().all(Option::is_none) {
            return;
        }
        let mut s = self.optim.begin_step(norm, lr);
        s.grad_scale *= factor;
        for slot in self.grads.slots() {
            if let (Some(grad), Some(parameter)) = (self.grads[slot].take(), self.stored[slot].take()) {
                self.stored[slot] = Some(self.optim.update(slot, parameter, grad, s));
            }
        }
    }
}

/// One step over micro-batches. Gradients are those of the mean over all targets of the step, however they are divided.
/// `skip(loss, grad_norm)` may refuse an update (not where updates are made in backward).
///
/// # Errors
/// Those of the micro-batches and of the device, also those that only its own thread saw (the model is then lost with the run).
pub fn train_step<B: LlamaOps>(
    model: Llama<B>,
    optim: &mut AdamW<B>,
    micro_batches: Vec<Result<MicroBatch>>,
    lr: f64,
    how: StepConfig,
    skip: &mut dyn FnMut(f64, f64) -> bool,
) -> Result<(Llama<B>, StepOutput)> {
    let micro_batches = micro_batches.into_iter().collect::<Result<Vec<_>>>()?;
    let valid = micro_batches.iter().map(MicroBatch::valid).sum::<u64>().max(1) as f64;
    if how.update_in_backward && micro_batches.len() > 1 {
        return Err(Error::bad_value(
            "train.update_in_backward",
            "gradients of several micro-batches cannot be added up without keeping them",
            "set train.micro_batch = train.batch",
        ));
    }
    if how.update_in_backward && how.precision == Precision::F16 {
        return Err(Error::bad_value(
            "train.update_in_backward",
            "in float16 a step whose gradients overflow is left out, which an update made on the way is not",
            "set train.precision = \"bf16\" or \"f32\"",
        ));
    }
    let device = model.device();
    let (config, rope) = (model.config().clone(), model.rope().clone());
    let loss_scale = optim.loss_scale.map(|s| s.factor);
    let unscaled = 1.0 / loss_scale.unwrap_or(1.0);
    let scale = 1.0 / (valid * unscaled);
    let mut losses = Vec::new();
    let last_norm = optim.last_norm;
    let compute = how.precision.dtype();
    let mut state = if how.autodiff {
        let grads = autodiff_gradients(&model, &micro_batches, scale, &mut losses);
        let grads = grads.map_or_else(|| PerSlot::from_fn(config.n_layers, |_| None), |grads| grads.map(|_, grad| Some(grad)));
        StepParameters { stored: model.into_stored().map(|_, p| Some(p)), grads, optim, compute, now: None }
    } else {
        let now = how.update_in_backward.then(|| (optim.begin_step(last_norm, lr), Vec::new()));
        let grads = PerSlot::from_fn(config.n_layers, |_| None);
        let mut state = StepParameters { stored: model.into_stored().map(|_, p| Some(p)), grads, optim, compute, now };
        let pass = PassConfig { checkpointing: how.checkpointing, compute, scale };
        for micro in &micro_batches {
            let input = micro.to_device::<B>(&device);
            losses.push(tensor::<B, 1>(forward_backward(&config, &rope, &mut state, &input, pass, &Single)?));
        }
        state
    };
    let squares = match state.now.take() {
        Some((_, squares)) => squares,
        None => state.grads.iter().flatten().map(|g| tensor(B::square_sum(g.clone()))).collect(),
    };
    // The one read of the step: losses and squares.
    let micros = losses.len();
    let failed = |e: ExecutionError| device_failed::<B>(&device, &format!("{e:?}"));
    let read = Tensor::cat(losses.into_iter().chain(squares).collect(), 0).try_into_data().map_err(failed)?.convert::<f32>();
    B::sync(&device).map_err(failed)?;
    check_device::<B>(&device)?;
    let read: Vec<f32> = read.iter::<f32>().collect();
    let loss = read[..micros].iter().map(|&x| f64::from(x)).sum::<f64>() / valid;
    let grad_norm = norm_of(&read[micros..]) * unscaled;
    let skipped = !how.update_in_backward && (!(loss.is_finite() && grad_norm.is_finite()) || skip(loss, grad_norm));
    if let Some(scale) = &mut state.optim.loss_scale {
        // A loss that is not finite is none of the scale's making.
        scale.adapt(grad_norm.is_finite() || !loss.is_finite());
    }
    if !skipped {
        state.optim.last_norm = grad_norm;
        state.update(lr, grad_norm, unscaled);
    }
    let stored = state.stored.map(|_, p| p.expect("an update puts the parameter back"));
    Ok((Llama::from_stored(&config, rope, stored), StepOutput { loss, grad_norm, skipped, loss_scale }))
}

/// What has gone wrong on the device since it was last asked.
pub(crate) fn check_device<B: LlamaOps>(device: &B::Device) -> Result<()> {
    context::faults().take().map_or(Ok(()), |problem| Err(device_failed::<B>(device, &problem)))
}

/// The device broke down: its results are worth nothing.
pub(crate) fn device_failed<B: LlamaOps>(device: &B::Device, problem: &str) -> Error {
    Error::Backend {
        name: B::name(device),
        problem: format!("the device failed: {problem}"),
        hint: "go on from the last checkpoint with --resume; `recua selftest` checks the device".into(),
    }
}

/// The same gradients from Burn's graph; `None` of no micro-batch.
fn autodiff_gradients<B: LlamaOps>(
    model: &Llama<B>,
    micro_batches: &[MicroBatch],
    scale: f64,
    losses: &mut Vec<Tensor<B, 1>>,
) -> Option<PerSlot<FloatTensor<B>>> {
    let mut total: Option<PerSlot<FloatTensor<B>>> = None;
    for micro in micro_batches {
        let input = micro.to_device::<B>(&model.device());
        let ad = model.autodiff();
        let doc_starts = input.doc_starts.map(Tensor::from_inner);
        let loss = ad.loss_sum_in(Tensor::from_inner(input.tokens), Tensor::from_inner(input.targets), doc_starts);
        losses.push(loss.clone().inner());
        let grads = ad.take_gradients(&mut loss.mul_scalar(scale).backward());
        total = Some(match total {
            None => grads,
            Some(sum) => {
                let mut grads = grads.into_iter();
                sum.map(|_, a| grads.next().map_or_else(|| a.clone(), |b| B::float_add(a.clone(), b)))
            }
        });
    }
    total
}

/// Mean cross-entropy of a batch, in nats, and the number of its targets.
pub fn batch_loss<B: LlamaOps>(model: &Llama<B>, micro: &MicroBatch) -> (f64, u64) {
    let input = micro.to_device::<B>(&model.device());
    let sum = model.loss_sum_in(input.tokens, input.targets, input.doc_starts).into_data().convert::<f32>();
    let valid = micro.valid();
    (sum.iter::<f32>().map(f64::from).sum::<f64>() / valid.max(1) as f64, valid)
}
