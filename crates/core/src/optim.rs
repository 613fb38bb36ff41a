//! AdamW with the paper's settings (section 2.3), the global-norm clip and the learning-rate schedule.

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, FloatDType, Tensor, TensorMetadata};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::model::{Llama, Parameter, PerSlot, Slot};
use crate::ops::{AdamWScalars, AdamWState, LlamaOps, tensor};

/// Settings of the optimizer; the defaults are the paper's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimConfig {
    /// Peak learning rate (7B and 13B: 3e-4; 33B and 65B: 1.5e-4).
    pub lr: f64,
    /// The cosine ends at this fraction of the peak.
    pub min_lr_ratio: f64,
    /// Steps of linear warmup.
    pub warmup_steps: u64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment; the paper does not state it.
    pub eps: f64,
    /// Decoupled weight decay, on matrices only.
    pub weight_decay: f64,
    /// Gradients are scaled down to this global norm.
    pub clip: f64,
}

impl Default for OptimConfig {
    fn default() -> Self {
        Self { lr: 3e-4, min_lr_ratio: 0.1, warmup_steps: 2000, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, clip: 1.0 }
    }
}

impl OptimConfig {
    /// # Errors
    /// [`Error::BadValue`] for a setting out of range.
    pub fn validate(&self) -> Result<()> {
        let check = |ok: bool, key: &str, value: f64, expected: &str| {
            if ok {
                return Ok(());
            }
            Err(Error::bad_value(format!("optim.{key}"), format!("expected {expected}, got {value}"), "see `recua train --help`"))
        };
        check(self.lr.is_finite() && self.lr >= 0.0, "lr", self.lr, "a number of at least 0")?;
        check((0.0..=1.0).contains(&self.min_lr_ratio), "min_lr_ratio", self.min_lr_ratio, "0 to 1")?;
        check((0.0..1.0).contains(&self.beta1), "beta1", self.beta1, "0 to below 1")?;
        check((0.0..1.0).contains(&self.beta2), "beta2", self.beta2, "0 to below 1")?;
        check(self.eps.is_finite() && self.eps > 0.0, "eps", self.eps, "a number above 0")?;
        check(
            self.weight_decay.is_finite() && self.weight_decay >= 0.0,
            "weight_decay",
            self.weight_decay,
            "a number of at least 0",
        )?;
        check(self.clip > 0.0, "clip", self.clip, "a number above 0 (inf: no clip)")
    }

    /// Learning rate of `step` (from 0) of `total_steps`: linear warmup, then cosine to `min_lr_ratio` of the peak, which
    /// holds beyond the end. Step 0 already moves: `lr / warmup_steps`.
    pub fn lr_at(&self, step: u64, total_steps: u64) -> f64 {
        if step < self.warmup_steps {
            return self.lr * (step + 1) as f64 / self.warmup_steps as f64;
        }
        let min = self.lr * self.min_lr_ratio;
        if step >= total_steps {
            return min;
        }
        let progress = (step - self.warmup_steps) as f64 / (total_steps - self.warmup_steps) as f64;
        min + (self.lr - min) / 2.0 * (1.0 + (std::f64::consts::PI * progress).cos())
    }

    /// Factor on all gradients that brings their global norm down to `clip`.
    pub fn clip_scale(&self, norm: f64) -> f64 {
        (self.clip / (norm + 1e-6)).min(1.0)
    }
}

/// The factor on a loss whose gradients are float16 on their way, small ones of which would be zero without it (Micikevicius et al.
/// 2018, section 3.2). It is found while training: halved where gradients overflow, and that step left out; doubled after 1000
/// steps without.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossScale {
    /// A power of two, so that nothing is rounded.
    pub factor: f64,
    /// Steps since it last changed.
    pub steady: u64,
}

impl Default for LossScale {
    fn default() -> Self {
        Self { factor: 65_536.0, steady: 0 }
    }
}

impl LossScale {
    /// Steps without overflow after which it grows.
    pub const PATIENCE: u64 = 1000;
    /// Above, float32 sums of squares would be the next to overflow.
    const LARGEST: f64 = 16_777_216.0;

    /// After a step with finite gradients, or with others.
    pub fn adapt(&mut self, finite: bool) {
        self.steady += 1;
        if !finite {
            *self = Self { factor: (self.factor / 2.0).max(1.0), steady: 0 };
        } else if self.steady >= Self::PATIENCE {
            *self = Self { factor: (self.factor * 2.0).min(Self::LARGEST), steady: 0 };
        }
    }
}

/// AdamW over all parameters of a model.
#[derive(Clone, Debug)]
pub struct AdamW<B: LlamaOps> {
    /// Settings.
    pub config: OptimConfig,
    /// Steps taken (skipped ones do not count): the exponent of the bias correction is this plus one.
    pub steps: u64,
    /// Global norm of the last step's gradient: what clips an update that is made before the step's own norm is known. 0 before the
    /// first step, which is then not clipped.
    pub last_norm: f64,
    /// In float16: the factor on the loss.
    pub loss_scale: Option<LossScale>,
    /// First and second moment of each parameter, float32; away only while the parameter is updated.
    moments: PerSlot<Option<[FloatTensor<B>; 2]>>,
}

impl<B: LlamaOps> AdamW<B> {
    /// Zero moments for a model.
    pub fn new(config: OptimConfig, model: &Llama<B>) -> Self {
        let device = model.device();
        let zeros = |p: &FloatTensor<B>| B::float_zeros(p.shape(), &device, FloatDType::F32);
        let moments = B::resident(&device, || model.stored().map(|_, p| [zeros(&p), zeros(&p)]));
        Self::with_moments(config, 0, moments)
    }

    /// After `steps` steps, with the first and second moment of each parameter.
    pub fn with_moments(config: OptimConfig, steps: u64, moments: PerSlot<[FloatTensor<B>; 2]>) -> Self {
        Self { config, steps, moments: moments.map(|_, both| Some(both)), last_norm: 0.0, loss_scale: None }
    }

    /// The first (0) or the second (1) moments.
    pub fn moments(&self, which: usize) -> PerSlot<FloatTensor<B>> {
        self.moments.clone().map(|_, both| both.expect("moments are away only while a parameter is updated")[which].clone())
    }

    /// With float16 goes a [`LossScale`], with other types none.
    pub fn scale_loss_for(&mut self, compute: DType) {
        self.loss_scale = (compute == DType::F16).then(|| self.loss_scale.unwrap_or_default());
    }

    /// Counts a step and gives its numbers; `norm` is the gradient's global norm, by which it is clipped.
    pub fn begin_step(&mut self, norm: f64, lr: f64) -> AdamWScalars {
        self.steps += 1;
        let c = &self.config;
        let t = self.steps as f64;
        AdamWScalars {
            lr,
            beta1: c.beta1,
            beta2: c.beta2,
            eps: c.eps,
            weight_decay: c.weight_decay,
            grad_scale: c.clip_scale(norm),
            bias1: 1.0 - c.beta1.powf(t),
            bias2: 1.0 - c.beta2.powf(t),
        }
    }

    /// The parameter of `slot` after the step that [`AdamW::begin_step`] began.
    pub fn update(&mut self, slot: Slot, p: Parameter<B>, grad: FloatTensor<B>, mut s: AdamWScalars) -> Parameter<B> {
        if !slot.decays() {
            s.weight_decay = 0.0;
        }
        // The handles are given up, so that the step may work in place.
        let [m, v] = self.moments[slot].take().expect("moments are away only while a parameter is updated");
        let AdamWState { w, m, v, copy } = B::adamw_step(AdamWState { w: p.value, m, v, copy: p.copy }, grad, s);
        self.moments[slot] = Some([m, v]);
        Parameter { value: w, copy }
    }

    /// One step with gradients already averaged over the step's tokens; `norm` is their global norm.
    pub fn step(&mut self, model: Llama<B>, grads: PerSlot<FloatTensor<B>>, norm: f64, lr: f64) -> Llama<B> {
        let s = self.begin_step(norm, lr);
        let (config, rope) = (model.config().clone(), model.rope().clone());
        let mut grads = grads.into_iter();
        let updated = model.into_stored().map(|slot, p| match grads.next() {
            Some(grad) => self.update(slot, p, grad, s),
            None => p,
        });
        Llama::from_stored(&config, rope, updated)
    }
}

/// Global L2 norm over all gradients. One read from the device.
pub fn global_norm<B: LlamaOps>(grads: &PerSlot<FloatTensor<B>>) -> f64 {
    let squares = grads.iter().map(|g| tensor::<B, 1>(B::square_sum(g.clone()))).collect();
    norm_of(&Tensor::cat(squares, 0).into_data().convert::<f32>().iter::<f32>().collect::<Vec<_>>())
}

/// The norm of squares summed by parts. The parts are float32; their sum is taken in float64.
pub(crate) fn norm_of(squares: &[f32]) -> f64 {
    squares.iter().map(|&x| f64::from(x)).sum::<f64>().sqrt()
}
