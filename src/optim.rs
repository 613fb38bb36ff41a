//! AdamW with the paper's settings (section 2.3), the global-norm clip and the learning-rate schedule.

use burn::tensor::TensorMetadata;
use burn::tensor::ops::FloatTensor;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::model::Llama;
use crate::ops::{AdamWScalars, LlamaOps, tensor};

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

/// The moments of every parameter, float32, in the order of [`crate::model::ModelConfig::parameters`].
#[derive(Clone, Debug)]
pub struct AdamW<B: LlamaOps> {
    /// Settings.
    pub config: OptimConfig,
    /// Steps taken (skipped ones do not count): the exponent of the bias correction is this plus one.
    pub steps: u64,
    /// First and second moment of each parameter.
    pub moments: Vec<[FloatTensor<B>; 2]>,
}

impl<B: LlamaOps> AdamW<B> {
    /// Zero moments for a model.
    pub fn new(config: OptimConfig, model: &Llama<B>) -> Self {
        let device = model.device();
        let zeros = |p: &FloatTensor<B>| B::float_zeros(p.shape(), &device, burn::tensor::FloatDType::F32);
        let moments = model.parameters().iter().map(|p| [zeros(p), zeros(p)]).collect();
        Self { config, steps: 0, moments }
    }

    /// One step with gradients already averaged over the step's tokens; `norm` is their global norm.
    pub fn step(&mut self, model: Llama<B>, grads: Vec<FloatTensor<B>>, norm: f64, lr: f64) -> Llama<B> {
        self.steps += 1;
        let c = &self.config;
        let t = self.steps as f64;
        let scalars = AdamWScalars {
            lr,
            beta1: c.beta1,
            beta2: c.beta2,
            eps: c.eps,
            weight_decay: 0.0,
            grad_scale: c.clip_scale(norm),
            bias1: 1.0 - c.beta1.powf(t),
            bias2: 1.0 - c.beta2.powf(t),
        };
        let weight_decay = c.weight_decay;
        let mut grads = grads.into_iter();
        let mut moments = std::mem::take(&mut self.moments).into_iter();
        let kept = &mut self.moments;
        model.map_parameters(|_, w| {
            let (Some(grad), Some([m, v])) = (grads.next(), moments.next()) else {
                unreachable!("one gradient and one pair of moments per parameter");
            };
            // Gains of norms are vectors and are not decayed.
            let weight_decay = if w.shape().num_dims() >= 2 { weight_decay } else { 0.0 };
            let [w, m, v] = B::adamw_step(w, grad, m, v, AdamWScalars { weight_decay, ..scalars });
            kept.push([m, v]);
            w
        })
    }
}

/// Global L2 norm over all gradients. One read from the device.
pub fn global_norm<B: LlamaOps>(grads: &[FloatTensor<B>]) -> f64 {
    let squares = grads.iter().map(|g| tensor::<B, 1>(B::square_sum(g.clone()))).collect();
    let squares = burn::tensor::Tensor::cat(squares, 0).into_data().convert::<f32>();
    // The partial sums are float32; their sum is taken in float64.
    squares.iter::<f32>().map(f64::from).sum::<f64>().sqrt()
}
