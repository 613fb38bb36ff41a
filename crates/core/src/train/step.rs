//! One optimizer step: forward and backward over the micro-batches, global norm, clip, AdamW.

use std::sync::Arc;

use burn::tensor::backend::ExecutionError;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::backend::context;
use crate::error::{Error, Result};
use crate::model::backward::{
    ActivationCheckpointing, PassConfig, PassInput, PassParameters, forward_backward, forward_loss, join_gains,
};
use crate::model::{Llama, Parameter, PerSlot, Slot};
use crate::ops::{AdamWScalars, LlamaOps, tensor};
use crate::optim::AdamW;
#[cfg(doc)]
use crate::optim::LossScale;
use crate::parallel::ranks::sum_of_step;
use crate::parallel::{DataParallel, Ranks, Trace};

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
    /// What a step of so many micro-batches cannot do.
    fn check(self, micro_batches: usize, mesh: bool) -> Result<()> {
        if self.update_in_backward && micro_batches > 1 {
            return Err(Error::bad_value(
                "train.update_in_backward",
                "gradients of several micro-batches cannot be added up without keeping them",
                "set train.micro_batch = train.batch",
            ));
        }
        if self.update_in_backward && self.precision == Precision::F16 {
            return Err(Error::bad_value(
                "train.update_in_backward",
                "in float16 a step whose gradients overflow is left out, which an update made on the way is not",
                "set train.precision = \"bf16\" or \"f32\"",
            ));
        }
        self.check_mesh(mesh)
    }

    /// What several ranks cannot do.
    ///
    /// # Errors
    /// [`Error::BadValue`] naming the setting.
    pub fn check_mesh(self, mesh: bool) -> Result<()> {
        let bad = |key: &str, problem: &str| {
            Err(Error::bad_value(format!("train.{key}"), problem, "leave it out, or train on one rank"))
        };
        if mesh && self.update_in_backward {
            return bad("update_in_backward", "gradients of several ranks are summed before any is used up");
        }
        if mesh && self.autodiff {
            return bad("autodiff", "the backward of several ranks is the one written by hand");
        }
        Ok(())
    }

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

/// The sum of squares of each gradient, `[1]`.
type Squares<B> = Vec<(Slot, Tensor<B, 1>)>;

/// Parameters and gradients during a step.
struct StepParameters<'a, B: LlamaOps> {
    stored: PerSlot<Option<Parameter<B>>>,
    grads: PerSlot<Option<FloatTensor<B>>>,
    optim: &'a mut AdamW<B>,
    compute: DType,
    /// The numbers of updates that are made in backward, and the squares of the gradients so far.
    now: Option<(AdamWScalars, Squares<B>)>,
    /// The other replicas, which gradients are summed over.
    data: Option<&'a mut DataParallel<B>>,
    /// Gradients of this pass are the step's last.
    last: bool,
    trace: Option<Arc<Trace>>,
}

impl<B: LlamaOps> PassParameters<B> for StepParameters<'_, B> {
    fn ready(&mut self, slots: &[Slot]) -> Result<()> {
        if let (Some(trace), Some(slot)) = (&self.trace, slots.first()) {
            trace.mark(&format!("forward, up to {}", slot.name()));
        }
        match &mut self.data {
            Some(data) => data.ready(slots, &mut self.stored),
            None => Ok(()),
        }
    }

    fn weight(&self, slot: Slot) -> FloatTensor<B> {
        let parameter = self.stored[slot].as_ref().expect("a parameter is away only while it is updated");
        parameter.read(slot.read_as(self.compute))
    }

    fn take_grad(&mut self, slot: Slot) -> Option<FloatTensor<B>> {
        self.grads[slot].take()
    }

    fn put_grad(&mut self, slot: Slot, grad: FloatTensor<B>) {
        if let Some(trace) = &self.trace {
            trace.mark(&format!("backward, {}", slot.name()));
        }
        let Some((scalars, squares)) = &mut self.now else {
            self.grads[slot] = Some(grad);
            if let Some(data) = &mut self.data {
                data.put(slot, &mut self.grads, self.last);
            }
            return;
        };
        squares.push((slot, tensor(B::square_sum(grad.clone()))));
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
        if let Some(data) = &mut self.data {
            return data.update(&mut self.stored, &mut self.grads, self.optim, s);
        }
        for slot in self.grads.slots() {
            if let (Some(grad), Some(parameter)) = (self.grads[slot].take(), self.stored[slot].take()) {
                self.stored[slot] = Some(self.optim.update(slot, parameter, grad, s));
            }
        }
    }
}

/// One step over micro-batches, this rank's share of them. Gradients are those of the mean over all targets of the step, however they
/// are divided. `skip(loss, grad_norm)` may refuse an update (not where updates are made in backward); it is asked on every rank, with
/// the same numbers.
///
/// # Errors
/// Those of the micro-batches and of the device, also those that only its own thread saw (the model is then lost with the run);
/// [`Error::Communication`].
pub fn train_step<B: LlamaOps>(
    model: Llama<B>,
    optim: &mut AdamW<B>,
    micro_batches: Vec<Result<MicroBatch>>,
    lr: f64,
    how: StepConfig,
    skip: &mut dyn FnMut(f64, f64) -> bool,
    ranks: &mut Ranks<B>,
) -> Result<(Llama<B>, StepOutput)> {
    let micro_batches = micro_batches.into_iter().collect::<Result<Vec<_>>>()?;
    how.check(micro_batches.len(), ranks.mesh().is_some())?;
    let valid = ranks.sum_over_replicas(micro_batches.iter().map(MicroBatch::valid).sum::<u64>() as f64)?.max(1.0);
    let device = model.device();
    let (config, rope) = (model.config().clone(), model.rope().clone());
    let loss_scale = optim.loss_scale.map(|s| s.factor);
    let unscaled = 1.0 / loss_scale.unwrap_or(1.0);
    let scale = 1.0 / (valid * unscaled);
    let mut losses = Vec::new();
    let last_norm = optim.last_norm;
    let compute = how.precision.dtype();
    let mut grads = PerSlot::from_fn(config.n_layers, |_| None);
    if how.autodiff
        && let Some(all) = autodiff_gradients(&model, &micro_batches, scale, &mut losses)
    {
        grads = all.map(|_, grad| Some(grad));
    }
    let now = (how.update_in_backward && !how.autodiff).then(|| (optim.begin_step(last_norm, lr), Vec::new()));
    let Ranks { regions, mesh, data } = ranks;
    let (stored, regions, data) = (model.into_stored().map(|_, p| Some(p)), regions.as_ref(), data.as_mut());
    let trace = mesh.as_ref().and_then(|mesh| mesh.watch().trace.clone());
    let mut state = StepParameters { stored, grads, optim, compute, now, data, last: false, trace };
    if !how.autodiff {
        let pass = PassConfig { checkpointing: how.checkpointing, compute, scale };
        let mut shares = PerSlot::from_fn(config.n_layers, |_| None);
        for (i, micro) in micro_batches.iter().enumerate() {
            let input = micro.to_device::<B>(&device);
            state.last = i + 1 == micro_batches.len();
            losses.push(tensor::<B, 1>(forward_backward(&config, &rope, &mut state, &input, pass, regions)?));
            if let Some(data) = &mut state.data {
                data.collect(&mut shares)?;
            }
        }
        join_gains(&mut state.grads, regions)?;
        if let Some(data) = &mut state.data {
            data.sum_gains(&mut state.grads)?;
            for slot in shares.slots().filter(|slot| slot.is_matrix()) {
                state.grads[slot] = shares[slot].take();
            }
        }
    }
    let squares = match state.now.take() {
        Some((_, squares)) => squares,
        None => {
            let of = |slot: Slot| Some((slot, tensor(B::square_sum(state.grads[slot].clone()?))));
            state.grads.slots().filter_map(of).collect()
        }
    };
    // The one read of the step: losses and squares.
    let micros = losses.len();
    let is_whole: Vec<bool> = squares.iter().map(|(slot, _)| !slot.is_matrix()).collect();
    let failed = |e: ExecutionError| device_failed::<B>(&device, &format!("{e:?}"));
    let all = losses.into_iter().chain(squares.into_iter().map(|(_, square)| square)).collect();
    let read = Tensor::cat(all, 0).try_into_data().map_err(failed)?.convert::<f32>();
    B::sync(&device).map_err(failed)?;
    check_device::<B>(&device)?;
    let read: Vec<f64> = read.iter::<f32>().map(f64::from).collect();
    let (losses, squares) = read.split_at(micros);
    let of = |whole: bool| squares.iter().zip(&is_whole).filter(move |(_, w)| **w == whole).map(|(x, _)| x).sum::<f64>();
    let [loss, squares] = match mesh {
        Some(mesh) => sum_of_step(mesh, losses.iter().sum(), of(true), of(false))?,
        None => [losses.iter().sum(), squares.iter().sum()],
    };
    let (loss, grad_norm) = (loss / valid, squares.sqrt() * unscaled);
    let skipped = !how.update_in_backward && (!(loss.is_finite() && grad_norm.is_finite()) || skip(loss, grad_norm));
    if let Some(scale) = &mut state.optim.loss_scale {
        // A loss that is not finite is none of the scale's making.
        scale.adapt(grad_norm.is_finite() || !loss.is_finite());
    }
    if !skipped {
        state.optim.last_norm = grad_norm;
        state.update(lr, grad_norm, unscaled);
    }
    if let Some(trace) = &state.trace {
        trace.mark("norm, update");
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

/// Sum of the losses of a batch, in nats, and the number of its targets, of a model whose parts are on several ranks.
///
/// # Errors
/// [`Error::Communication`]; a device that fails.
pub fn batch_loss_on<B: LlamaOps>(model: &Llama<B>, micro: &MicroBatch, compute: DType, ranks: &Ranks<B>) -> Result<(f64, u64)> {
    struct Weights<B: LlamaOps>(PerSlot<Parameter<B>>, DType);
    impl<B: LlamaOps> PassParameters<B> for Weights<B> {
        fn weight(&self, slot: Slot) -> FloatTensor<B> {
            self.0[slot].read(slot.read_as(self.1))
        }
        fn take_grad(&mut self, _: Slot) -> Option<FloatTensor<B>> {
            None
        }
        fn put_grad(&mut self, _: Slot, _: FloatTensor<B>) {}
    }
    let device = model.device();
    let mut weights = Weights(model.clone().into_stored(), compute);
    let input = micro.to_device::<B>(&device);
    let sum = forward_loss(model.config(), model.rope(), &mut weights, &input, compute, ranks.regions.as_ref())?;
    let sum = tensor::<B, 1>(sum).try_into_data().map_err(|e| device_failed::<B>(&device, &format!("{e:?}")))?.convert::<f32>();
    Ok((sum.iter::<f32>().map(f64::from).sum(), micro.valid()))
}

/// Mean cross-entropy of a batch, in nats, and the number of its targets.
pub fn batch_loss<B: LlamaOps>(model: &Llama<B>, micro: &MicroBatch) -> (f64, u64) {
    let input = micro.to_device::<B>(&model.device());
    let sum = model.loss_sum_in(input.tokens, input.targets, input.doc_starts).into_data().convert::<f32>();
    let valid = micro.valid();
    (sum.iter::<f32>().map(f64::from).sum::<f64>() / valid.max(1) as f64, valid)
}
