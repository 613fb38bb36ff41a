// Several ranks are one device: the same gradients, the same weights, the same data, the same checkpoints. Ranks are threads here.

use std::sync::Arc;

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Tensor, TensorMetadata, TensorPrimitive};
use recua::backend::Flex;
use recua::data::BatchSplit;
use recua::model::backward::{self, ActivationCheckpointing, PassConfig};
use recua::model::{InitConfig, Llama, ModelConfig, Slice, unfuse};
use recua::optim::{AdamW, OptimConfig};
use recua::parallel::{Communicator, Link, LocalOptions, Mesh, ParallelConfig, Ranks, Watch, run_ranks};
use recua::train::step::{MicroBatch, Precision, StepConfig, StepOutput, train_step};

type B = Flex;

const SEQ: usize = 32;
const VOCAB: usize = 64;

/// Grouped queries; everything divides by 4.
fn config() -> ModelConfig {
    ModelConfig {
        dim: 96,
        n_layers: 3,
        n_heads: 8,
        n_kv_heads: Some(4),
        vocab_size: VOCAB,
        ffn_dim: Some(100),
        max_seq_len: SEQ,
        ..ModelConfig::default()
    }
}

const INIT: InitConfig = InitConfig { seed: 3, std: 0.1 };

/// Rows of `SEQ + 1` tokens; token 0 begins a document; some targets do not count.
fn rows(seed: usize, batch: usize, bos: Option<i32>) -> MicroBatch {
    let token = |i: usize| match i % (SEQ + 1) {
        c if c.is_multiple_of(13) => 0,
        c if (i / (SEQ + 1) + seed) % 3 == 2 && c > 20 => -1,
        _ => ((seed * 7919 + i * i * 31 + i * 17) % (VOCAB - 1)) as i32 + 1,
    };
    MicroBatch { tokens: (0..batch * (SEQ + 1)).map(token).collect(), batch, seq_len: SEQ, bos }
}

fn values(x: FloatTensor<B>) -> Vec<f32> {
    let n = x.shape().num_elements();
    let flat = Tensor::<B, 1>::from_primitive(TensorPrimitive::Float(
        <B as burn::tensor::ops::FloatTensorOps<B>>::float_reshape(x, [n].into()),
    ));
    flat.into_data().convert::<f32>().to_vec().unwrap()
}

/// In parts of each tensor's largest magnitude.
fn assert_close(what: &str, got: &[Vec<f32>], want: &[Vec<f32>], tolerance: f32) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert_eq!(got.len(), want.len(), "{what}: tensor {i}");
        let scale = want.iter().fold(0f32, |m, x| m.max(x.abs()));
        assert!(scale > 0.0, "{what}: tensor {i} is zero");
        let worst = got.iter().zip(want).map(|(g, w)| (g - w).abs()).fold(0f32, f32::max);
        assert!(worst <= tolerance * scale, "{what}: tensor {i} off by {} of its largest", worst / scale);
    }
}

/// Whole tensors from the rectangles that the ranks have; every element comes once, or as often from each that has all.
fn merge(parts: &[Vec<(Slice, Vec<f32>)>]) -> Vec<Vec<f32>> {
    let mut whole: Vec<Vec<f32>> = parts[0].iter().map(|(slice, _)| vec![f32::NAN; slice.shape.iter().product()]).collect();
    for part in parts {
        for ((slice, values), whole) in part.iter().zip(&mut whole) {
            let width: usize = slice.shape[1..].iter().product();
            let (own, column) = (slice.sizes[1..].iter().product::<usize>(), slice.offsets.get(1).copied().unwrap_or(0));
            for (i, row) in values.chunks_exact(own).enumerate() {
                let at = (slice.offsets[0] + i) * width + column;
                whole[at..at + own].copy_from_slice(row);
            }
        }
    }
    assert!(whole.iter().flatten().all(|x| !x.is_nan()), "a hole");
    whole
}

fn with_slices(config: &ModelConfig, mesh: &Mesh, named: Vec<FloatTensor<B>>) -> Vec<(Slice, Vec<f32>)> {
    config.slices(mesh.part()).into_iter().zip(named.into_iter().map(values)).collect()
}

fn mesh(world: Arc<dyn Communicator>, tp: usize, sequence: bool) -> Mesh {
    let config = ParallelConfig { tp, sequence, ..ParallelConfig::default() };
    Mesh::new(world, &config, Watch::default()).unwrap()
}

/// The golden tolerance of gradients (tests/golden.rs), in parts of each tensor's largest: sums over widths and rows in another order.
const GRADIENTS: f32 = 1.2e-5;

#[test]
fn a_split_model_has_the_gradients_of_the_whole() {
    let device = Default::default();
    let model = Llama::<B>::init(&config(), &INIT, &device).unwrap();
    for bos in [None, Some(0)] {
        let micro = rows(1, 3, bos);
        let pass = |checkpointing| PassConfig { checkpointing, compute: DType::F32, scale: 1.0 / micro.valid() as f64 };
        let input = micro.to_device::<B>(&device);
        let (want_loss, want) = backward::gradients(&model, &input, pass(ActivationCheckpointing::Selective));
        let want_loss = values(want_loss.into_primitive().tensor())[0];
        let want: Vec<_> = unfuse::<B>(&config(), want).into_iter().map(values).collect();
        for (tp, sequence) in [(2, false), (2, true), (4, false), (4, true)] {
            for checkpointing in ActivationCheckpointing::ALL {
                let what = format!("tp {tp}, sequence {sequence}, {checkpointing:?}, documents {bos:?}");
                let ranks = run_ranks(tp, LocalOptions::default(), |world| {
                    let mesh = mesh(world, tp, sequence);
                    let model = Llama::<B>::init_part(&config(), &INIT, mesh.part(), &device).unwrap();
                    let input = micro.to_device::<B>(&device);
                    let regions = mesh.regions::<B>(&config());
                    let (loss, grads) = backward::gradients_in(&model, &input, pass(checkpointing), regions.as_ref()).unwrap();
                    let mut forward = Forward(model.clone());
                    let only =
                        backward::forward_loss(&config(), model.rope(), &mut forward, &input, DType::F32, regions.as_ref());
                    let loss = values(loss.into_primitive().tensor())[0];
                    assert_eq!(loss, values(only.unwrap())[0], "a validation's loss is a step's");
                    (loss, with_slices(&config(), &mesh, unfuse::<B>(&config(), grads)))
                });
                let (losses, grads): (Vec<f32>, Vec<_>) = ranks.into_iter().unzip();
                for loss in &losses {
                    assert!((loss - want_loss).abs() <= 3e-6 * want_loss, "{what}: loss {loss}, one device {want_loss}");
                    assert_eq!(loss, &losses[0], "{what}");
                }
                assert_close(&what, &merge(&grads), &want, GRADIENTS);
            }
        }
    }
}

/// Weights alone.
struct Forward(Llama<B>);

impl backward::PassParameters<B> for Forward {
    fn weight(&self, slot: recua::model::Slot) -> FloatTensor<B> {
        self.0.stored()[slot].clone()
    }
    fn take_grad(&mut self, _: recua::model::Slot) -> Option<FloatTensor<B>> {
        None
    }
    fn put_grad(&mut self, _: recua::model::Slot, _: FloatTensor<B>) {}
}

#[test]
fn each_rank_draws_the_initial_weights_of_its_part() {
    // A matrix of more than one chunk of the generator, cut inside of chunks.
    let config = ModelConfig { dim: 192, vocab_size: 1020, ..config() };
    let device = Default::default();
    let whole: Vec<_> = Llama::<B>::init(&config, &INIT, &device).unwrap().parameters().into_iter().map(values).collect();
    let parts: Vec<_> = (0..4)
        .map(|index| {
            let part = recua::model::Part { index, of: 4 };
            let model = Llama::<B>::init_part(&config, &INIT, part, &device).unwrap();
            config.slices(part).into_iter().zip(model.parameters().into_iter().map(values)).collect()
        })
        .collect();
    assert!(merge(&parts) == whole);
}

/// A training of `steps` steps of 12 samples on a mesh.
#[derive(Clone, Debug)]
struct Training {
    ranks: usize,
    parallel: ParallelConfig,
    /// Samples of a pass on one rank.
    micro: usize,
    steps: usize,
    precision: Precision,
    clip: f64,
    link: Option<Link>,
}

impl Training {
    fn on(dp: usize, tp: usize, sequence: bool, zero: u8, micro: usize) -> Self {
        // Several buckets in each layer.
        let parallel = ParallelConfig { dp: Some(dp), tp, sequence, zero, overlap: true, bucket: 10_000 };
        Self { ranks: dp * tp, parallel, micro, steps: 6, precision: Precision::F32, clip: 1.0, link: None }
    }

    fn batch(step: usize) -> Vec<i32> {
        rows(step, 12, None).tokens
    }

    fn optim(&self) -> OptimConfig {
        OptimConfig { lr: 1e-2, eps: 1e-6, clip: self.clip, ..Default::default() }
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

    fn run(&self) -> (Vec<Vec<f32>>, Vec<StepOutput>) {
        let how = StepConfig { precision: self.precision, ..StepConfig::default() };
        let options = LocalOptions { link: self.link, ..LocalOptions::default() };
        let results = run_ranks(self.ranks, options, |world| {
            let mesh = Mesh::new(world, &self.parallel, Watch::default()).unwrap();
            let model = Llama::<B>::init_part(&config(), &INIT, mesh.part(), &Default::default()).unwrap();
            let mut ranks = Ranks::of(&mesh, &model);
            let mut optim = ranks.fresh_moments(self.optim(), &model);
            let model = ranks.adopt(how.prepare(model, &mut optim));
            let replica = mesh.replica();
            let split = BatchSplit { batch: 12, micro_batch: self.micro, rank: replica.index, world_size: replica.of };
            let (model, outs) = self.steps(model, &mut optim, &mut ranks, split);
            (with_slices(&config(), &mesh, model.parameters()), outs)
        });
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
        // As of micro-batches (tests/train.rs): Adam moves a weight by up to lr where its gradient is noise.
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
