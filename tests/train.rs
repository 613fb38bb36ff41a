//! The step, the schedule, and what the loop does when numbers go wrong.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use recua::backend::{BackendName, Job, Kind};
use recua::data::{DatasetWriter, Vocab};
use recua::model::{InitConfig, Llama, ModelConfig};
use recua::ops::LlamaOps;
use recua::optim::{AdamW, OptimConfig};
use recua::parallel::Ranks;
use recua::train::config::{DataConfig, TrainConfig};
use recua::train::metrics::{self, StepRecord};
use recua::train::step::{MicroBatch, StepConfig, StepOutput, train_step};
use recua::train::{Observer, RunConfig, Start, Trainer};
use recua::{Error, Result};

fn on_cpu_backends(run: impl Fn(BackendName)) {
    let names: Vec<&str> = Kind::ALL.into_iter().filter(|k| k.compiled() && k.is_cpu()).map(|k| k.name()).collect();
    assert!(!names.is_empty());
    names.into_iter().for_each(|name| run(name.parse().unwrap()));
}

fn small() -> ModelConfig {
    ModelConfig { dim: 32, n_layers: 2, n_heads: 4, vocab_size: 61, max_seq_len: 16, ..ModelConfig::default() }
}

fn values<B: LlamaOps>(model: &Llama<B>) -> Vec<Vec<f32>> {
    let parameters = model.parameters().into_iter().zip(model.config().parameters());
    parameters
        .map(|(p, (_, shape))| {
            let flat = B::float_reshape(p, [shape.iter().product::<usize>()].into());
            let flat = burn::tensor::Tensor::<B, 1>::from_primitive(burn::tensor::TensorPrimitive::Float(flat));
            flat.into_data().convert::<f32>().to_vec().unwrap()
        })
        .collect()
}

/// 12 samples of a step; some targets do not count, and not equally many in each.
fn samples(step: usize) -> Vec<i32> {
    let token = |row: usize, column: usize| ((step * 977 + row * 131 + column * column * 7 + 3) % 61) as i32;
    (0..12).flat_map(|row| (0..17).map(move |column| if row >= 9 && column > row { -1 } else { token(row, column) })).collect()
}

/// Weights, losses and norms after five steps of 12 samples in `micro` parts.
struct Steps {
    micro: usize,
}

impl Job for Steps {
    type Output = (Vec<Vec<f32>>, Vec<StepOutput>);

    fn run<B: LlamaOps>(self, device: B::Device) -> Result<Self::Output> {
        let mut model = Llama::<B>::init(&small(), &InitConfig { seed: 2, std: 0.1 }, &device)?;
        let mut optim = AdamW::new(OptimConfig { lr: 1e-2, eps: 1e-6, ..Default::default() }, &model);
        let mut outs = Vec::new();
        for step in 0..5 {
            let rows = 12 / self.micro;
            let micro = samples(step)
                .chunks(rows * 17)
                .map(|c| Ok(MicroBatch { tokens: c.to_vec(), batch: rows, seq_len: 16, bos: None }))
                .collect();
            let (next, out) =
                train_step(model, &mut optim, micro, 1e-2, StepConfig::default(), &mut |_, _| false, &mut Ranks::single())?;
            model = next;
            outs.push(out);
        }
        Ok((values(&model), outs))
    }
}

/// Averaged over all targets of the step, not over micro-batches: the same whatever the cut, up to float32 sums in another
/// order. Adam divides by the root of the second moment, so that noise in a gradient near eps moves a weight by up to lr a
/// step; eps is 1e-6 here, and the weights after five steps of 1e-2 agree to 2e-5.
#[test]
fn accumulation_of_micro_batches_equals_one_batch() {
    on_cpu_backends(|backend| {
        let (whole, outs) = backend.run(Steps { micro: 1 }).unwrap();
        assert!(outs.iter().all(|o| o.loss.is_finite() && !o.skipped));
        for micro in [2, 3, 12] {
            let (parts, part_outs) = backend.run(Steps { micro }).unwrap();
            for (a, b) in outs.iter().zip(&part_outs) {
                assert!((a.loss - b.loss).abs() < 2e-6 * a.loss.abs(), "{backend}, {micro}: loss {} and {}", a.loss, b.loss);
                assert!(
                    (a.grad_norm / b.grad_norm - 1.0).abs() < 2e-5,
                    "{backend}, {micro}: norm {} {}",
                    a.grad_norm,
                    b.grad_norm
                );
            }
            let pairs = whole.iter().flatten().zip(parts.iter().flatten());
            let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 2e-5, "{backend}: {micro} micro-batches differ by {worst:e} from one batch");
        }
    });
}

#[test]
fn schedule_at_its_edges() {
    let c = OptimConfig { lr: 1e-3, min_lr_ratio: 0.1, warmup_steps: 10, ..Default::default() };
    let close = |got: f64, expected: f64| assert!((got - expected).abs() < 1e-15, "{got}, expected {expected}");
    // Warmup: a tenth of the peak at once, the peak at its last step, and at the first of the cosine.
    close(c.lr_at(0, 110), 1e-4);
    close(c.lr_at(4, 110), 5e-4);
    close(c.lr_at(9, 110), 1e-3);
    close(c.lr_at(10, 110), 1e-3);
    // Half of the cosine is half way; its last step is still above the floor, which holds from the end on.
    close(c.lr_at(60, 110), 5.5e-4);
    assert!(c.lr_at(109, 110) > 1e-4 && c.lr_at(109, 110) < 1.01e-4);
    close(c.lr_at(110, 110), 1e-4);
    close(c.lr_at(10_000, 110), 1e-4);
    // Never up again after the peak, never below the floor.
    let all: Vec<f64> = (9..200).map(|s| c.lr_at(s, 110)).collect();
    assert!(all.is_sorted_by(|a, b| a >= b) && all.iter().all(|&lr| lr >= 1e-4 - 1e-15));
    // No warmup; a warmup that is longer than the run; a run of nothing but warmup.
    close(OptimConfig { warmup_steps: 0, ..c.clone() }.lr_at(0, 100), 1e-3);
    close(OptimConfig { warmup_steps: 200, ..c.clone() }.lr_at(99, 100), 5e-4);
    close(OptimConfig { warmup_steps: 100, ..c.clone() }.lr_at(99, 100), 1e-3);
    close(OptimConfig { warmup_steps: 100, ..c.clone() }.lr_at(100, 100), 1e-4);
    assert!(OptimConfig { warmup_steps: 0, ..c }.lr_at(0, 0).is_finite());
}

#[test]
fn clip_scales_down_only() {
    let c = OptimConfig { clip: 1.0, ..Default::default() };
    assert_eq!(c.clip_scale(0.5), 1.0);
    assert_eq!(c.clip_scale(0.0), 1.0);
    assert!((c.clip_scale(4.0) - 0.25).abs() < 1e-6);
    assert_eq!(OptimConfig { clip: f64::INFINITY, ..c }.clip_scale(1e30), 1.0);
}

struct Decay;

impl Job for Decay {
    type Output = ();

    /// A step with no gradient at all: matrices shrink by lr * weight_decay, gains of norms stay.
    fn run<B: LlamaOps>(self, device: B::Device) -> Result<()> {
        let model = Llama::<B>::init(&small(), &InitConfig::default(), &device)?;
        let before = values(&model);
        let zeros = model.stored().map(|_, p| B::float_mul_scalar(p, 0.0.into()));
        let mut optim = AdamW::new(OptimConfig { weight_decay: 0.1, ..Default::default() }, &model);
        let model = optim.step(model, zeros, 0.0, 0.5);
        for ((before, after), (name, shape)) in before.iter().zip(values(&model)).zip(small().parameters()) {
            let factor = if shape.len() == 2 { 1.0 - 0.5 * 0.1 } else { 1.0 };
            for (b, a) in before.iter().zip(after) {
                assert!((a - b * factor).abs() <= 1e-7, "{name}: {b} became {a}, expected times {factor}");
            }
        }
        Ok(())
    }
}

#[test]
fn weight_decay_is_on_matrices_only() {
    on_cpu_backends(|b| b.run(Decay).unwrap());
}

/// A dataset of two documents with a pattern in it.
fn dataset(dir: &Path) -> PathBuf {
    let out = dir.join("tokens");
    let mut writer = DatasetWriter::create(&out, Vocab { size: 61, hash: 1 }, 1 << 20, false).unwrap();
    for seed in 0..2 {
        let tokens: Vec<u32> = (0..2000).map(|i| (seed + i * 7 + i * i % 5) % 61).collect();
        writer.push(&tokens, 6000).unwrap();
    }
    writer.finish(vec!["test".into()]).unwrap();
    out
}

fn config(data: PathBuf) -> RunConfig {
    RunConfig {
        model: small(),
        optim: OptimConfig { lr: 3e-3, warmup_steps: 5, ..Default::default() },
        train: TrainConfig { steps: 40, batch: 4, checkpoint_every: 10, max_skipped: 3, val_every: 0, ..Default::default() },
        data: DataConfig { train: vec![data], ..Default::default() },
        ..Default::default()
    }
}

/// Sets `stop` after a step, and keeps what it is told.
struct StopAt<'a> {
    step: u64,
    stop: &'a AtomicBool,
    notes: Vec<String>,
}

impl Observer for StopAt<'_> {
    fn step(&mut self, r: &StepRecord, _eta_s: f64) {
        self.stop.store(r.step == self.step, Ordering::Relaxed);
    }

    fn note(&mut self, text: &str) {
        self.notes.push(text.into());
    }
}

struct Run<'a> {
    config: RunConfig,
    dir: &'a Path,
    start: Start,
    stop_at: u64,
}

impl Job for Run<'_> {
    type Output = (Vec<Vec<f32>>, u64, Vec<String>);

    fn run<B: LlamaOps>(self, device: B::Device) -> Result<Self::Output> {
        let stop = AtomicBool::new(false);
        let mut observer = StopAt { step: self.stop_at, stop: &stop, notes: Vec::new() };
        let trainer = Trainer::<B>::open(self.config, self.dir, &self.start, &device, &mut observer)?;
        let (trainer, summary) = trainer.run(&stop, &mut observer)?;
        Ok((values(trainer.model()), summary.skipped, observer.notes))
    }
}

#[test]
fn steps_that_are_not_finite_are_skipped_and_end_the_run_with_its_checkpoint_intact() {
    on_cpu_backends(|backend| {
        let dir = tempfile::tempdir().unwrap();
        let (run, good) = (dir.path().join("run"), config(dir.path().join("tokens")));
        dataset(dir.path());
        let go = |config: &RunConfig, start: Start, stop_at: u64| {
            backend.run(Run { config: config.clone(), dir: &run, start, stop_at })
        };

        let e = go(&good, Start::Fresh, 10).unwrap_err();
        assert!(matches!(e, Error::Interrupted { step: 10, .. }), "{e}");
        // A learning rate beyond float32 makes step 11 write infinite weights; steps 12 to 14 are not finite.
        let mut bad = good.clone();
        bad.optim.lr = 1e40;
        match go(&bad, Start::Resume, 0).unwrap_err() {
            Error::Diverged { step, in_a_row, checkpoint, sample } => {
                assert_eq!((step, in_a_row, sample), (14, 3, 13 * 4));
                assert_eq!(Path::new(&checkpoint), run.join("checkpoints/step-10"));
            }
            e => panic!("{e}"),
        }
        let records = metrics::read(&run.join("metrics.jsonl")).unwrap();
        assert_eq!(records.iter().map(|r| r.step).collect::<Vec<_>>(), (1..=14).collect::<Vec<_>>());
        assert_eq!(records.iter().map(|r| r.skipped).collect::<Vec<_>>()[9..], [0, 0, 1, 2, 3]);
        assert!(records[13].loss.is_nan() && records[10].loss.is_finite());
        // With the rate set right it goes on and ends as a run that never went wrong.
        let (weights, skipped, _) = go(&good, Start::Resume, 0).unwrap();
        assert_eq!(skipped, 0);
        let fresh = dir.path().join("fresh");
        let (never_wrong, _, _) =
            backend.run(Run { config: good.clone(), dir: &fresh, start: Start::Fresh, stop_at: 0 }).unwrap();
        assert_eq!(weights, never_wrong);
        assert!(weights.iter().flatten().all(|x| x.is_finite()));
    });
}

#[test]
fn weights_that_are_infinite_from_the_start_end_the_run_without_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dataset(dir.path()));
    config.init.std = 1e40;
    let backend = BackendName::default();
    let run = dir.path().join("run");
    let e = backend.run(Run { config, dir: &run, start: Start::Fresh, stop_at: 0 }).unwrap_err().to_string();
    assert!(e.starts_with("step 3: loss or gradient not finite 3 steps in a row; the last good checkpoint is none"), "{e}");
    assert_eq!(std::fs::read_dir(run.join("checkpoints")).unwrap().count(), 0);
}

#[test]
fn spikes_are_left_out_when_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dataset(dir.path()));
    config.train.steps = 100;
    let backend = BackendName::default();
    let mut run = |name: &str, spike_z: Option<f64>| {
        config.train.spike_z = spike_z;
        backend.run(Run { config: config.clone(), dir: &dir.path().join(name), start: Start::Fresh, stop_at: 0 }).unwrap()
    };
    // No step is a hundred standard deviations off; many are a tenth.
    let (plain, none, _) = run("plain", None);
    let (tolerant, few, _) = run("tolerant", Some(100.0));
    assert_eq!((none, few), (0, 0));
    assert_eq!(plain, tolerant);
    let e = {
        config.train.spike_z = Some(1e-9);
        config.train.max_skipped = 1000;
        backend.run(Run { config: config.clone(), dir: &dir.path().join("strict"), start: Start::Fresh, stop_at: 0 })
    };
    let (strict, many, mut notes) = e.unwrap();
    notes.retain(|note| note.contains("update left out"));
    assert!(many > 0 && notes.len() as u64 == many, "{many} skipped, {} notes", notes.len());
    assert_ne!(strict, plain);
}
