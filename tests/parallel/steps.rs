//! Steps on a mesh are steps on one device.

use std::sync::Arc;

use recua::data::BatchSplit;
use recua::model::{Llama, Slice};
use recua::optim::{AdamW, OptimConfig};
use recua::parallel::{Communicator, Link, LocalOptions, Mesh, ParallelConfig, Ranks, Watch, run_ranks};
use recua::train::step::{MicroBatch, Precision, StepConfig, StepOutput, train_step};

use super::common::{B, INIT, SEQ, config, merge, rows, values, with_slices};

/// A rank's slices of the weights, and its steps.
pub(crate) type OfRank = (Vec<(Slice, Vec<f32>)>, Vec<StepOutput>);

/// A training of `steps` steps of 12 samples on a mesh.
#[derive(Clone, Debug)]
pub(crate) struct Training {
    pub(crate) ranks: usize,
    parallel: ParallelConfig,
    /// Samples of a pass on one rank.
    micro: usize,
    steps: usize,
    precision: Precision,
    clip: f64,
    link: Option<Link>,
}

impl Training {
    pub(crate) fn on(dp: usize, tp: usize, sequence: bool, zero: u8, micro: usize) -> Self {
        // Several buckets in each layer.
        let parallel = ParallelConfig { dp: Some(dp), tp, sequence, zero, overlap: true, bucket: 10_000 };
        Self { ranks: dp * tp, parallel, micro, steps: 5, precision: Precision::F32, clip: 1.0, link: None }
    }

    fn batch(step: usize) -> Vec<i32> {
        rows(step, 12, None).tokens
    }

    fn optim(&self) -> OptimConfig {
        OptimConfig { lr: 1e-2, eps: 1e-5, clip: self.clip, ..Default::default() }
    }

    /// The steps on one rank, of a model and with an optimizer that are ready.
    fn steps(
        &self,
        mut model: Llama<B>,
        optim: &mut AdamW<B>,
        ranks: &mut Ranks<B>,
        split: BatchSplit,
    ) -> (Llama<B>, Vec<StepOutput>) {
        let how = StepConfig { precision: self.precision, ..StepConfig::default() };
        let mut outs = Vec::new();
        for step in 0..self.steps {
            let share = 12 / split.world_size * (SEQ + 1);
            let own = &Self::batch(step)[split.rank * share..(split.rank + 1) * share];
            let micro = own.chunks(split.micro_batch * (SEQ + 1));
            let micro = micro.map(|c| Ok(MicroBatch { tokens: c.to_vec(), batch: split.micro_batch, seq_len: SEQ, bos: None }));
            let (next, out) = train_step(model, optim, micro.collect(), 1e-2, how, &mut |_, _| false, ranks).unwrap();
            model = next;
            outs.push(out);
        }
        (ranks.settle(model).unwrap(), outs)
    }

    fn one_device(&self) -> (Vec<Vec<f32>>, Vec<StepOutput>) {
        let model = Llama::<B>::init(&config(), &INIT, &Default::default()).unwrap();
        let mut optim = AdamW::new(self.optim(), &model);
        let how = StepConfig { precision: self.precision, ..StepConfig::default() };
        let model = how.prepare(model, &mut optim);
        let (model, outs) = self.steps(model, &mut optim, &mut Ranks::single(), BatchSplit::single(12, 12));
        (model.parameters().into_iter().map(values).collect(), outs)
    }

    /// The part of a rank of a world.
    pub(crate) fn on_rank(&self, world: Arc<dyn Communicator>, watch: Watch) -> OfRank {
        let how = StepConfig { precision: self.precision, ..StepConfig::default() };
        let mesh = Mesh::new(world, &self.parallel, watch).unwrap();
        let model = Llama::<B>::init_part(&config(), &INIT, mesh.part(), &Default::default()).unwrap();
        let mut ranks = Ranks::of(&mesh, &model);
        let mut optim = ranks.fresh_moments(self.optim(), &model);
        let model = ranks.adopt(how.prepare(model, &mut optim));
        let replica = mesh.replica();
        let split = BatchSplit { batch: 12, micro_batch: self.micro, rank: replica.index, world_size: replica.of };
        let (model, outs) = self.steps(model, &mut optim, &mut ranks, split);
        (with_slices(&config(), &mesh, model.parameters()), outs)
    }

    pub(crate) fn run(&self) -> (Vec<Vec<f32>>, Vec<StepOutput>) {
        let options = LocalOptions { link: self.link, ..LocalOptions::default() };
        self.joined(run_ranks(self.ranks, options, |world| self.on_rank(world, Watch::default())))
    }

    /// The whole weights, and what all ranks say of the steps.
    pub(crate) fn joined(&self, results: Vec<OfRank>) -> (Vec<Vec<f32>>, Vec<StepOutput>) {
        let (weights, outs): (Vec<_>, Vec<Vec<StepOutput>>) = results.into_iter().unzip();
        let tp = self.parallel.tp;
        for (rank, out) in outs.iter().enumerate() {
            assert!(*out == outs[0], "{self:?}: rank {rank} decides by other numbers than rank 0");
            assert!(weights[rank] == weights[rank % tp], "{self:?}: rank {rank} has other weights than its first replica");
        }
        (merge(&weights[..tp]), outs.into_iter().next().unwrap())
    }
}

#[test]
fn replicas_train_as_one_device() {
    let (want, want_outs) = Training::on(1, 1, false, 1, 12).one_device();
    assert!(want_outs.iter().any(|out| out.grad_norm > 1.0), "the clip is never used");
    // Three replicas: shares that are filled up. More than one micro-batch, and one.
    let table = [
        Training::on(2, 1, false, 0, 3),
        Training::on(2, 1, false, 1, 3),
        Training::on(2, 1, false, 2, 3),
        Training::on(3, 1, false, 1, 4),
        Training::on(4, 1, false, 1, 1),
        Training::on(2, 2, false, 1, 6),
        Training::on(2, 2, true, 2, 3),
        Training::on(1, 2, true, 1, 12),
        Training::on(1, 4, false, 1, 6),
    ];
    for training in table {
        let (weights, outs) = training.run();
        for (out, want) in outs.iter().zip(&want_outs) {
            // Sums of float32 in another order: a few ulp (6e-8) times the root of the terms.
            assert!((out.loss / want.loss - 1.0).abs() < 1e-5, "{training:?}: loss {} and {}", out.loss, want.loss);
            assert!((out.grad_norm / want.grad_norm - 1.0).abs() < 2e-5, "{training:?}: {} {}", out.grad_norm, want.grad_norm);
        }
        let worst = weights.iter().flatten().zip(want.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        // As of micro-batches (tests/train.rs): where a gradient is noise, below eps (1e-5), Adam moves a weight by lr / eps times it.
        assert!(worst < 2e-5, "{training:?}: weights differ by {worst:e}");
        let again =
            Training { parallel: ParallelConfig { overlap: false, ..training.parallel.clone() }, ..training.clone() }.run();
        assert!(again == (weights, outs), "{training:?}: overlap changes a bit");
    }
}

#[test]
fn shares_of_the_optimizer_change_no_bit() {
    // Without a clip nothing depends on the norm, whose squares are summed in another order.
    for precision in [Precision::F32, Precision::Bf16] {
        let of = |zero| {
            let clip = f64::INFINITY;
            Training { precision, clip, ..Training::on(2, 1, false, zero, 3) }.run()
        };
        let (weights, outs) = of(0);
        let (shared, shared_outs) = of(1);
        let losses = |outs: &[StepOutput]| outs.iter().map(|out| out.loss).collect::<Vec<_>>();
        assert_eq!(losses(&outs), losses(&shared_outs), "{precision:?}");
        // In bfloat16 a replica with shares keeps its weights as products read them.
        let read = |x: f32| if precision == Precision::Bf16 { half::bf16::from_f32(x).to_f32() } else { x };
        let same =
            weights.iter().zip(&shared).filter(|(a, b)| a == b || a.iter().map(|x| read(*x)).eq(b.iter().copied())).count();
        assert_eq!(same, weights.len(), "{precision:?}");
    }
}

/// What crosses has the type of products; the bounds are those of one device against float32 (tests/backward.rs).
#[test]
fn narrow_types_train_on_a_mesh_as_on_one_device() {
    for (precision, bound) in [(Precision::Bf16, 0.02), (Precision::F16, 0.005)] {
        for training in [Training::on(2, 2, true, 1, 3), Training::on(1, 2, false, 1, 12)] {
            let training = Training { precision, ..training };
            let (want, got) = (training.one_device().1, training.run().1);
            for (got, want) in got.iter().zip(&want) {
                assert!((got.loss - want.loss).abs() < bound, "{training:?}: loss {}, one device {}", got.loss, want.loss);
                assert_eq!((got.skipped, got.loss_scale), (want.skipped, want.loss_scale), "{training:?}");
            }
        }
    }
}
