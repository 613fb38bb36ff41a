// Several ranks are one device: the same gradients, the same weights, the same data, the same checkpoints. Ranks are threads here.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Tensor, TensorMetadata, TensorPrimitive};
use recua::Error;
use recua::backend::{BackendName, Flex};
use recua::checkpoint::native::{self, NativeCheckpoint, Need};
use recua::checkpoint::{self, Format, RankFiles, SaveOptions, TensorSource};
use recua::data::{BatchSplit, DatasetWriter, Vocab};
use recua::generate::{Engine, EngineConfig, Request};
use recua::model::backward::{self, ActivationCheckpointing, PassConfig};
use recua::model::{InitConfig, Llama, ModelConfig, Slice, unfuse};
use recua::optim::{AdamW, OptimConfig};
use recua::parallel::ranks::agree;
use recua::parallel::{
    Buffer, Communicator, Failure, Link, LocalOptions, LocalWorld, Mesh, ParallelConfig, Ranks, Reduce, Trace, Watch, run_ranks,
    run_ranks_of, split_engine,
};
use recua::train::config::{DataConfig, HeldOut, SampleTexts, TrainConfig};
use recua::train::metrics::{self, StepRecord};
use recua::train::step::{MicroBatch, Precision, StepConfig, StepOutput, train_step};
use recua::train::{Observer, RunConfig, RunSummary, Start, train, train_on, train_threads};

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

/// A dataset of two documents with a pattern in it.
fn dataset(dir: &Path) -> PathBuf {
    let out = dir.join("tokens");
    let mut writer = DatasetWriter::create(&out, Vocab { size: VOCAB as u32, hash: 1 }, 1 << 20, false).unwrap();
    for seed in 0..2 {
        let tokens: Vec<u32> = (0..3000).map(|i| (seed + i * 7 + i * i % 5) % VOCAB as u32).collect();
        writer.push(&tokens, 9000).unwrap();
    }
    writer.finish(vec!["test".into()]).unwrap();
    out
}

fn run_config(data: &Path, parallel: ParallelConfig, steps: u64) -> RunConfig {
    RunConfig {
        model: config(),
        optim: OptimConfig { lr: 3e-3, warmup_steps: 5, eps: 1e-6, ..Default::default() },
        init: INIT,
        train: TrainConfig { steps, batch: 4, checkpoint_every: 10, val_every: 10, val_windows: Some(5), ..Default::default() },
        data: DataConfig { train: vec![data.into()], valid: Some(HeldOut::One(data.into())), ..Default::default() },
        sample: SampleTexts { every: 0, ..Default::default() },
        parallel,
        ..Default::default()
    }
}

/// Stops after a step.
struct StopAt<'a>(u64, &'a AtomicBool);

impl Observer for StopAt<'_> {
    fn step(&mut self, record: &StepRecord, _eta_s: f64) {
        self.1.store(record.step == self.0, Ordering::Relaxed);
    }
}

/// Trains on so many ranks until `stop_at`, or to the end.
fn train_ranks(ranks: usize, config: &RunConfig, dir: &Path, start: &Start, stop_at: u64) -> recua::Result<RunSummary> {
    let stop = AtomicBool::new(false);
    let mut observer = StopAt(stop_at, &stop);
    let backend: BackendName = "flex".parse().unwrap();
    match ranks {
        1 => train(config.clone(), dir, start, &backend, &stop, &mut observer),
        _ => train_threads(ranks, config, dir, start, &backend, &stop, &mut observer),
    }
}

/// Weights and moments of a run's last checkpoint, by name.
fn last_checkpoint(dir: &Path) -> Vec<(String, Vec<f32>)> {
    let latest = native::latest_valid(&dir.join("checkpoints"), Need::All).unwrap().checkpoint.unwrap();
    let mut all = Vec::new();
    for file in [native::MODEL, native::OPTIM] {
        let source = latest.source(file).unwrap();
        all.extend(source.list().iter().map(|info| (info.name.clone(), source.read_f32(&info.name).unwrap().1)));
    }
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

fn losses(dir: &Path) -> Vec<f64> {
    metrics::read(&dir.join(metrics::METRICS_FILE)).unwrap().iter().map(|record| record.loss).collect()
}

fn of(dp: usize, tp: usize, sequence: bool, zero: u8) -> (usize, ParallelConfig) {
    (dp * tp, ParallelConfig { tp, sequence, zero, bucket: 20_000, ..ParallelConfig::default() })
}

#[test]
fn a_run_stops_and_goes_on_at_any_mesh() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path());
    let single = run_config(&data, ParallelConfig::default(), 50);
    let whole = dir.path().join("one");
    let summary = train_ranks(1, &single, &whole, &Start::Fresh, 0).unwrap();
    let want = losses(&whole);
    assert!(want[49] < want[0] - 0.5, "nothing is learned: {want:?}");
    let want_valid = summary.valid.unwrap();

    // Stopped at 20 and 30, each time another mesh.
    let path = [of(2, 2, true, 1), of(1, 1, false, 1), of(1, 4, true, 1), of(4, 1, false, 2)];
    for (a, b, c) in [(0, 1, 2), (2, 0, 3), (1, 3, 0)] {
        let run = dir.path().join(format!("{a}{b}{c}"));
        for (i, stop_at) in [(a, 20), (b, 30), (c, 0)] {
            let (ranks, parallel) = path[i].clone();
            let start = if stop_at == 20 { Start::Fresh } else { Start::Resume };
            match train_ranks(ranks, &run_config(&data, parallel, 50), &run, &start, stop_at) {
                Err(Error::Interrupted { step, .. }) => assert_eq!(step, stop_at),
                Ok(summary) => {
                    let valid = summary.valid.unwrap();
                    assert!((valid.loss / want_valid.loss - 1.0).abs() < 1e-5, "{} and {}", valid.loss, want_valid.loss);
                    assert!((valid.bpb / want_valid.bpb - 1.0).abs() < 1e-5);
                }
                Err(e) => panic!("{a}{b}{c}: {e}"),
            }
        }
        let got = losses(&run);
        assert_eq!(got.len(), 50);
        for (step, (got, want)) in got.iter().zip(&want).enumerate() {
            assert!((got / want - 1.0).abs() < 1e-5, "{a}{b}{c}: step {}: {got}, one device {want}", step + 1);
        }
        let last = last_checkpoint(&run);
        let names: Vec<_> = last.iter().map(|(name, _)| name.clone()).collect();
        assert_eq!(names.len(), 3 * config().parameters().len(), "{names:?}");
    }
}

#[test]
fn the_same_mesh_goes_on_to_the_bit() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path());
    let (ranks, parallel) = of(2, 2, true, 1);
    let config = run_config(&data, parallel, 20);
    let (whole, cut) = (dir.path().join("whole"), dir.path().join("cut"));
    train_ranks(ranks, &config, &whole, &Start::Fresh, 0).unwrap();
    let e = train_ranks(ranks, &config, &cut, &Start::Fresh, 7).unwrap_err();
    assert!(matches!(e, Error::Interrupted { step: 7, .. }), "{e}");
    train_ranks(ranks, &config, &cut, &Start::Resume, 0).unwrap();
    assert!(last_checkpoint(&whole) == last_checkpoint(&cut));
    assert_eq!(losses(&whole), losses(&cut));
    let records = metrics::read(&whole.join(metrics::METRICS_FILE)).unwrap();
    assert!(records.iter().all(|record| record.rank_tok_s.len() == 4 && record.rank_wait_s.len() == 4));

    // Four files of weights and four of moments; one device reads them, and they become one file.
    let step = cut.join("checkpoints/step-20");
    let files = std::fs::read_dir(&step).unwrap().count();
    assert_eq!(files, 9);
    let merged = dir.path().join("merged");
    checkpoint::convert(&cut, &merged, Format::Native, &SaveOptions::default()).unwrap();
    let one = NativeCheckpoint::open(&merged, Need::All).unwrap();
    let tensors = one.tensors(native::MODEL).unwrap();
    for (name, values) in last_checkpoint(&cut).iter().filter(|(name, _)| !name.starts_with("exp_avg")) {
        assert!(tensors.read_f32(name).unwrap().1 == *values, "{name}");
    }
    // The rectangles, as a reader of another number of ranks sees them.
    let sliced = NativeCheckpoint::open(&step, Need::All).unwrap().source(native::MODEL).unwrap();
    for index in 0..4 {
        for slice in config.model.slices(recua::model::Part { index, of: 4 }) {
            assert!(sliced.read_slice(&slice).unwrap() == tensors.read_slice(&slice).unwrap(), "{slice:?}");
        }
    }
}

#[test]
fn slices_with_a_hole_or_an_overlap_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let config = ModelConfig { n_layers: 1, ..config() };
    let write = |name: &str, change: &dyn Fn(usize, &mut Vec<Slice>)| {
        native::save(&dir.path().join(name), 1, &mut |writer| {
            writer.model(&config);
            for index in 0..2 {
                let mut slices = config.slices(recua::model::Part { index, of: 2 });
                slices.retain(|slice| index == 0 || !slice.is_whole());
                change(index, &mut slices);
                let mut files = RankFiles::default();
                let data: Vec<Vec<u8>> = slices.iter().map(|slice| vec![0; 4 * slice.elements()]).collect();
                // The writer's folder is beside the name that it will have.
                let folder = std::fs::read_dir(dir.path().join(name)).unwrap().next().unwrap().unwrap().path();
                files.write(&folder, &format!("model-r{index:05}.safetensors"), &slices, &mut |i| Ok((&data[i]).into()))?;
                writer.add(files);
            }
            Ok(())
        })
        .unwrap();
        checkpoint::Checkpoint::open(dir.path().join(name).join("step-1")).map(drop)
    };
    write("good", &|_, _| {}).unwrap();
    let w2 = |slices: &mut Vec<Slice>| slices.iter().position(|slice| slice.name.ends_with("w2.weight")).unwrap();
    let hole = write("hole", &|index, slices| {
        if index == 1 {
            let at = w2(slices);
            slices.remove(at);
        }
    });
    let hole = hole.unwrap_err().to_string();
    assert!(hole.contains("layers.0.feed_forward.w2.weight") && hole.contains("a hole"), "{hole}");
    let overlap = write("overlap", &|index, slices| {
        if index == 1 {
            let at = w2(slices);
            slices[at].offsets[1] -= 1;
        }
    });
    let overlap = overlap.unwrap_err().to_string();
    assert!(overlap.contains("layers.0.feed_forward.w2.weight") && overlap.contains("overlap"), "{overlap}");
}

#[test]
fn what_cannot_be_split_is_told_before_anything_starts() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path());
    let refused = |ranks: usize, change: &dyn Fn(&mut RunConfig)| {
        let mut config = run_config(&data, ParallelConfig::default(), 10);
        change(&mut config);
        let run = dir.path().join("refused");
        let e = train_ranks(ranks, &config, &run, &Start::Fresh, 0).unwrap_err().to_string();
        assert!(!run.join("config.toml").exists(), "{e}");
        e
    };
    let says = |e: String, all: &[&str]| all.iter().for_each(|part| assert!(e.contains(part), "{e}: no `{part}`"));
    says(refused(3, &|c| c.parallel.tp = 3), &["parallel.tp", "n_heads = 8", "1, 2, 4"]);
    says(refused(8, &|c| c.parallel.tp = 8), &["parallel.tp", "n_kv_heads = 4", "1, 2, 4"]);
    says(
        refused(2, &|c| (c.parallel.tp, c.parallel.sequence, c.train.seq_len) = (2, true, Some(31))),
        &["parallel.sequence", "31"],
    );
    says(refused(2, &|c| c.parallel.tp = 4), &["parallel", "2 ranks"]);
    says(refused(1, &|c| c.parallel.tp = 2), &["parallel", "1 ranks"]);
    says(refused(3, &|_| {}), &["parallel.dp", "train.batch 4"]);
    says(refused(2, &|c| c.train.micro_batch = Some(4)), &["parallel.dp", "train.micro_batch to one of 1, 2"]);
    says(refused(2, &|c| c.train.autodiff = true), &["train.autodiff"]);
    says(refused(2, &|c| c.train.update_in_backward = true), &["train.update_in_backward"]);
    says(refused(2, &|c| c.parallel.zero = 3), &["parallel.zero", "0, 1 or 2"]);
}

#[test]
fn a_rank_that_dies_or_hangs_is_told_by_name_on_every_rank() {
    for (failure, says) in [(Failure::Dead, "rank 2 died"), (Failure::Hung, "missing: rank 2")] {
        let world = LocalWorld::new(4, LocalOptions { timeout: Duration::from_millis(500), link: None });
        let began = Instant::now();
        let results = run_ranks_of(&world, |comm| {
            for step in 0.. {
                if step == 3 && comm.rank() == 2 {
                    world.fail(2, failure);
                }
                comm.all_reduce(Buffer::F32(vec![1.0; 8]), Reduce::Sum).wait()?;
            }
            Ok::<(), Error>(())
        });
        assert!(began.elapsed() < Duration::from_secs(5));
        for (rank, result) in results.into_iter().enumerate() {
            let e = result.unwrap_err().to_string();
            assert!(
                rank == 2 || (e.contains(says) && e.contains("all_reduce number 3 of the group `world`")),
                "rank {rank}: {e}"
            );
        }
    }
    // Ranks that call different operations.
    let results = run_ranks(2, LocalOptions::default(), |comm| match comm.rank() {
        0 => comm.all_reduce(Buffer::F32(vec![1.0; 8]), Reduce::Sum).wait(),
        _ => comm.all_gather(Buffer::F32(vec![1.0; 8])).wait(),
    });
    let e = results[0].as_ref().unwrap_err().to_string();
    assert!(e.contains("rank 1 called all_gather of 8 f32, this rank all_reduce of 8 f32"), "{e}");
}

#[test]
fn ranks_that_hold_a_model_together_write_what_one_device_writes() {
    let dir = tempfile::tempdir().unwrap();
    // Sharp enough that float32 sums in another order choose no other token.
    let model = Llama::<B>::init(&config(), &InitConfig { seed: 5, std: 0.3 }, &Default::default()).unwrap();
    let source = checkpoint::weights::ModelTensors::new(&model);
    checkpoint::save(dir.path().join("model"), Format::Native, &config(), &source, &SaveOptions::default()).unwrap();
    let checkpoint = checkpoint::Checkpoint::open(dir.path().join("model")).unwrap();
    let backend: BackendName = "flex".parse().unwrap();
    let write = |engine: &mut Engine| {
        let prompts = [vec![1, 2, 3], vec![7; 9], vec![60]];
        prompts.map(|prompt| {
            engine.generate(Request { prompt, max_new: 12, ..Request::default() }, &mut |_| ControlFlow::Continue(())).unwrap().0
        })
    };
    let want = write(&mut Engine::load(&checkpoint, &backend.open().unwrap(), EngineConfig::default()).unwrap());
    assert!(want.iter().all(|tokens| tokens.len() == 12));
    for tp in [2, 4] {
        let parallel = ParallelConfig { tp, ..ParallelConfig::default() };
        let all = run_ranks(tp, LocalOptions::default(), |world| {
            let mesh = Mesh::new(world, &parallel, Watch::default()).unwrap();
            write(&mut split_engine(&checkpoint, &backend.open().unwrap(), EngineConfig::default(), &mesh).unwrap())
        });
        assert!(all.iter().all(|got| *got == want), "tp {tp}: {all:?}, one device {want:?}");
    }
}

#[test]
fn a_timeline_shows_what_every_rank_computes_and_exchanges() {
    let dir = tempfile::tempdir().unwrap();
    let (ranks, parallel) = of(2, 2, true, 1);
    let config = run_config(&dataset(dir.path()), parallel, 6);
    let (run, path) = (dir.path().join("run"), dir.path().join("trace.json"));
    let backend: BackendName = "flex".parse().unwrap();
    let results = run_ranks(ranks, LocalOptions::default(), |world| {
        let watch = Watch { trace: Some(Arc::new(Trace::new(&path))), ..Watch::default() };
        let stop = AtomicBool::new(false);
        train_on(config.clone(), &run, &Start::Fresh, &backend, world, watch, &stop, &mut (), &mut |_, _, _| Ok(())).map(drop)
    });
    results.into_iter().for_each(|result| result.unwrap());
    let trace: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    for rank in 0..ranks {
        let spans = |category: &str| -> Vec<&str> {
            let of = events.iter().filter(|e| e["pid"] == rank && e["cat"] == category);
            of.map(|e| {
                assert!(e["ph"] == "X" && e["ts"].as_f64().unwrap() >= 0.0 && e["dur"].as_f64().unwrap() >= 0.0, "{e}");
                e["name"].as_str().unwrap()
            })
            .collect()
        };
        let count = |all: &[&str], name: &str| all.iter().filter(|n| **n == name).count();
        let (computed, exchanged) = (spans("computation"), spans("communication"));
        // Three steps.
        assert_eq!(count(&computed, "backward, layers.2.feed_forward.w13.weight"), 3, "rank {rank}: {computed:?}");
        assert_eq!(count(&computed, "norm, update"), 3);
        // A layer gathers twice forward, four times backward; scatters twice forward, once more for what is computed again, twice backward.
        let layers = config.model.n_layers;
        assert_eq!(count(&exchanged, "tp reduce_scatter"), 3 * (5 * layers + 2), "rank {rank}: {exchanged:?}");
        assert!(count(&exchanged, "dp reduce_scatter") >= 9 && count(&exchanged, "dp all_gather") >= 6);
        assert_eq!(spans("waiting").len(), exchanged.len(), "rank {rank}");
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

#[test]
fn an_error_on_one_rank_is_an_error_on_all() {
    let results = run_ranks(3, LocalOptions::default(), |comm| {
        let own = match comm.rank() {
            1 => Err(Error::bad_value("train.steps", "no", "change it")),
            rank => Ok(rank),
        };
        let failed = agree(comm.as_ref(), own, None);
        (failed.map_err(|e| e.to_string()), agree(comm.as_ref(), Ok(comm.rank()), None).unwrap())
    });
    for (rank, (failed, all)) in results.into_iter().enumerate() {
        let e = failed.unwrap_err();
        assert_eq!(e, if rank == 1 { "train.steps: no; change it" } else { "rank 1 failed: train.steps: no; change it" });
        assert_eq!(all, [0, 1, 2]);
    }
}
