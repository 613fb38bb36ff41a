//! Will it fit? The memory of a training step, computed before anything runs: the life of every tensor of
//! [`forward_backward`](crate::model::backward::forward_backward) and of the update is followed, in the order in which they come and
//! go, and the peak is told by what it consists of.

use burn::tensor::DType;
use serde::Serialize;

use super::pool::Pool;
use super::step::{Precision, StepConfig};
use crate::model::backward::ActivationCheckpointing;
use crate::model::{LayerSlot, ModelConfig, PerSlot, Slot};
use crate::ops::loss;

/// What is planned.
#[derive(Clone, Debug)]
pub struct PlanConfig {
    /// The model.
    pub model: ModelConfig,
    /// Sequences of a micro-batch.
    pub batch: usize,
    /// Micro-batches of a step.
    pub micro_batches: usize,
    /// Tokens of a sequence.
    pub seq_len: usize,
    /// How a step computes (`autodiff` is not planned for).
    pub step: StepConfig,
    /// Rows whose logits the loss holds at once ([`crate::ops::LlamaOps::logit_rows`]).
    pub logit_rows: usize,
    /// What products need beside their operands ([`crate::backend::BackendName::product_bytes`]).
    pub product_bytes: u64,
    /// Bytes of the largest page of the device's memory pool; `None`: it has no pool.
    pub largest_page: Option<u64>,
}

/// Bytes at the moment of the peak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemoryPlan {
    /// Parameters, float32.
    pub weights: u64,
    /// Their copies in the compute type.
    pub copies: u64,
    /// AdamW's two moments, float32.
    pub moments: u64,
    /// Gradients, float32.
    pub gradients: u64,
    /// Activations kept from forward to backward.
    pub activations: u64,
    /// Everything that lives for one operation or one block.
    pub workspace: u64,
    /// What the device's memory pool comes to hold for all of the above, in whole pages; `None`: it has no pool.
    pub pool: Option<u64>,
}

impl MemoryPlan {
    /// All tensors.
    pub fn total(&self) -> u64 {
        self.weights + self.copies + self.moments + self.gradients + self.activations + self.workspace
    }

    /// What the device has to have.
    pub fn needed(&self) -> u64 {
        self.pool.map_or(self.total(), |pool| pool.max(self.total()))
    }
}

/// What a tensor is for.
#[derive(Clone, Copy)]
enum Use {
    Gradient,
    Activation,
    Workspace,
}

/// Live bytes, and those of the highest moment.
#[derive(Default)]
struct Ledger {
    now: MemoryPlan,
    peak: MemoryPlan,
    pool: Option<Pool>,
}

impl Ledger {
    fn of(&mut self, kind: Use) -> &mut u64 {
        match kind {
            Use::Gradient => &mut self.now.gradients,
            Use::Activation => &mut self.now.activations,
            Use::Workspace => &mut self.now.workspace,
        }
    }

    /// A new tensor.
    fn take(&mut self, kind: Use, bytes: u64) {
        if let Some(pool) = &mut self.pool {
            pool.take(bytes);
        }
        self.count(kind, bytes);
    }

    fn count(&mut self, kind: Use, bytes: u64) {
        *self.of(kind) += bytes;
        if self.now.total() > self.peak.total() {
            self.peak = self.now;
        }
    }

    /// A tensor of one operation becomes another kind's.
    fn keep(&mut self, kind: Use, bytes: u64) {
        self.uncount(Use::Workspace, bytes);
        self.count(kind, bytes);
    }

    fn free(&mut self, kind: Use, bytes: u64) {
        if let Some(pool) = &mut self.pool {
            pool.free(bytes);
        }
        self.uncount(kind, bytes);
    }

    fn uncount(&mut self, kind: Use, bytes: u64) {
        let left = self.of(kind).checked_sub(bytes);
        debug_assert!(left.is_some(), "more is freed than was taken");
        *self.of(kind) = left.unwrap_or(0);
    }

    /// A tensor of one operation.
    fn work(&mut self, bytes: u64) -> u64 {
        self.take(Use::Workspace, bytes);
        bytes
    }

    fn done(&mut self, bytes: u64) {
        self.free(Use::Workspace, bytes);
    }
}

/// BlockBytes of a block's tensors in bytes.
struct BlockBytes {
    /// `[n, d]` in float32: the residual stream and its gradient.
    residual: u64,
    /// `[n, d]` in the compute type.
    narrow: u64,
    qkv: u64,
    out: u64,
    lse: u64,
    gate_up: u64,
    /// Whether the compute type is float32: a cast is then no copy.
    full: bool,
}

impl BlockBytes {
    fn new(c: &PlanConfig) -> Self {
        let (m, n) = (&c.model, (c.batch * c.seq_len) as u64);
        let compute = if c.step.precision == Precision::F32 { 4 } else { 2 };
        let (d, q) = (m.dim as u64, (m.n_heads * m.head_dim()) as u64);
        let kv = (m.kv_heads() * m.head_dim()) as u64;
        Self {
            residual: n * d * 4,
            narrow: n * d * compute,
            qkv: n * (q + 2 * kv) * compute,
            out: n * q * compute,
            lse: n * m.n_heads as u64 * 4,
            gate_up: n * 2 * m.hidden_dim() as u64 * compute,
            full: compute == 4,
        }
    }

    /// Everything of a block but its last product, kept as `kind`; the residual stream after attention and SwiGLU's output stay
    /// as workspace, and their bytes are returned.
    fn inner(&self, l: &mut Ledger, all: bool, kind: Use) -> [u64; 2] {
        let normed = |l: &mut Ledger, then: u64| {
            let a = l.work(self.narrow);
            l.take(kind, then);
            if all { l.keep(kind, a) } else { l.done(a) }
        };
        normed(l, self.qkv);
        l.take(kind, self.out);
        l.take(kind, self.lse);
        let h = l.work(self.residual);
        normed(l, self.gate_up);
        [h, l.work(self.gate_up / 2)]
    }

    fn backward(&self, l: &mut Ledger, kept: ActivationCheckpointing, layer: usize, stored: &PerSlot<u64>, grads: &Grads) {
        let swiglu = self.gate_up / 2;
        if kept == ActivationCheckpointing::Full {
            // Computed again, and kept whole until it is used.
            for again in self.inner(l, true, Use::Activation) {
                l.keep(Use::Activation, again);
            }
        }
        let all = kept != ActivationCheckpointing::Selective;
        use LayerSlot::{AttentionNorm, FfnNorm, W2, W13, Wo, Wqkv};
        let [norm, wqkv, wo, ffn_norm, w13, w2] =
            [AttentionNorm, Wqkv, Wo, FfnNorm, W13, W2].map(|slot| stored[Slot::Layer(layer, slot)]);
        // What is recomputed lives here; what was kept is freed where it is used up.
        let recompute = |l: &mut Ledger, bytes: u64| {
            if !all {
                l.work(bytes);
            }
        };
        let used = |l: &mut Ledger, bytes: u64| if all { l.free(Use::Activation, bytes) } else { l.done(bytes) };
        let cast = |l: &mut Ledger| if self.full { 0 } else { l.work(self.narrow) };

        let dp = cast(l);
        recompute(l, swiglu);
        grads.take(l, w2);
        used(l, swiglu);
        let dswiglu = l.work(swiglu);
        l.done(dp);
        grads.put(l, w2);
        l.done(dswiglu); // the gradient of gate and up takes the place of both
        recompute(l, self.residual);
        recompute(l, self.narrow);
        grads.take(l, w13);
        used(l, self.narrow);
        let db = l.work(self.narrow);
        l.free(Use::Activation, self.gate_up);
        grads.put(l, w13);
        grads.all(l, ffn_norm);
        l.done(db);
        used(l, self.residual); // h; its gradient takes the place of dy

        let dp = cast(l);
        grads.take(l, wo);
        let dout = l.work(self.out);
        l.done(dp);
        grads.put(l, wo);
        let dqkv = l.work(self.qkv);
        for used in [self.qkv, self.out, self.lse] {
            l.free(Use::Activation, used);
        }
        l.done(dout);
        recompute(l, self.narrow);
        grads.take(l, wqkv);
        used(l, self.narrow);
        let da = l.work(self.narrow);
        l.done(dqkv);
        grads.put(l, wqkv);
        grads.all(l, norm);
        l.done(da);
        l.free(Use::Activation, self.residual); // x
    }
}

/// The life of a gradient.
struct Grads {
    /// Of the first micro-batch it is new; later ones are added to it.
    new: bool,
    /// It is used up as soon as it is there.
    in_backward: bool,
}

impl Grads {
    fn take(&self, l: &mut Ledger, bytes: u64) {
        if self.new {
            l.take(Use::Gradient, bytes);
        }
    }

    fn put(&self, l: &mut Ledger, bytes: u64) {
        if self.in_backward {
            l.free(Use::Gradient, bytes);
        }
    }

    fn all(&self, l: &mut Ledger, bytes: u64) {
        self.take(l, bytes);
        self.put(l, bytes);
    }
}

/// The peak of a training step.
pub fn plan(c: &PlanConfig) -> MemoryPlan {
    let m = &c.model;
    let bytes = |shape: &[usize]| 4 * shape.iter().product::<usize>() as u64;
    let stored = m.stored_shapes().map(|_, shape| bytes(&shape));
    // Of two bytes an element where the compute type is not float32.
    let compute = c.step.precision.dtype();
    let copy = |slot: Slot| if slot.read_as(compute) == DType::F32 { 0 } else { stored[slot] / 2 };
    let weights: u64 = stored.iter().sum();
    let copies = stored.slots().map(copy).sum();
    let start = MemoryPlan { weights, copies, moments: 2 * weights, workspace: c.product_bytes, ..MemoryPlan::default() };
    let pool = c.largest_page.map(|largest| {
        let mut pool = Pool::new(largest);
        for slot in stored.slots() {
            (0..3).for_each(|_| pool.reside(stored[slot]));
            if copy(slot) > 0 {
                pool.reside(copy(slot));
            }
        }
        pool
    });
    let mut l = Ledger { now: start, peak: start, pool };
    let s = BlockBytes::new(c);
    let kept = c.step.checkpointing;
    let vocab = m.vocab_size as u64;
    for micro in 0..c.micro_batches.max(1) {
        let grads = Grads { new: micro == 0, in_backward: c.step.update_in_backward };
        l.take(Use::Activation, s.residual);
        for _ in 0..m.n_layers {
            let kind = if kept == ActivationCheckpointing::Full { Use::Workspace } else { Use::Activation };
            let [h, swiglu] = s.inner(&mut l, kept == ActivationCheckpointing::None, kind);
            match kept {
                ActivationCheckpointing::Full => [s.qkv, s.out, s.lse, s.gate_up].into_iter().for_each(|used| l.done(used)),
                ActivationCheckpointing::Selective => {}
                // The product is written elsewhere than to h, which stays.
                ActivationCheckpointing::None => [h, swiglu].into_iter().for_each(|bytes| l.keep(Use::Activation, bytes)),
            }
            if kept != ActivationCheckpointing::None {
                [h, swiglu].into_iter().for_each(|used| l.done(used)); // the block's output takes the place of h
            }
            l.take(Use::Activation, s.residual);
        }
        // The loss: gradients of the hidden states by chunks, then as one.
        let normed = l.work(s.narrow);
        let rows = loss::rows_per_chunk(c.logit_rows, c.batch * c.seq_len) as u64;
        let logits = l.work(rows * vocab * 4);
        let narrow = if s.full { 0 } else { l.work(rows * vocab * 2) };
        l.done(if s.full { 0 } else { logits });
        // All chunks of equal size but perhaps the last.
        let n = (c.batch * c.seq_len) as u64;
        let chunks: Vec<u64> = (0..n).step_by(rows as usize).map(|at| s.narrow / n * rows.min(n - at)).collect();
        chunks.iter().for_each(|chunk| l.take(Use::Workspace, *chunk));
        grads.all(&mut l, stored[Slot::Output]);
        l.done(if s.full { logits } else { narrow });
        l.done(normed);
        if chunks.len() > 1 {
            l.work(s.narrow);
            chunks.iter().for_each(|chunk| l.done(*chunk));
        }
        let dx = s.narrow;
        l.take(Use::Workspace, s.residual);
        grads.all(&mut l, stored[Slot::Norm]);
        l.done(dx);
        l.free(Use::Activation, s.residual); // the last residual stream
        for layer in (0..m.n_layers).rev() {
            s.backward(&mut l, kept, layer, &stored, &grads);
        }
        grads.all(&mut l, stored[Slot::TokEmbeddings]);
        l.done(s.residual);
    }
    MemoryPlan { pool: l.pool.map(|pool| pool.held()), ..l.peak }
}
