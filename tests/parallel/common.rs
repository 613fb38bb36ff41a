//! A small model, its data and its runs, on any number of ranks.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorMetadata, TensorPrimitive};
use recua::backend::{BackendName, Flex};
use recua::data::{DatasetWriter, Vocab};
use recua::model::{InitConfig, ModelConfig, Slice};
use recua::optim::OptimConfig;
use recua::parallel::{Mesh, ParallelConfig};
use recua::train::config::{DataConfig, HeldOut, SampleTexts, TrainConfig};
use recua::train::metrics::{self, StepRecord};
use recua::train::step::MicroBatch;
use recua::train::{Observer, RunConfig, RunSummary, Start, train, train_threads};

pub(super) type B = Flex;

pub(super) const SEQ: usize = 32;
pub(super) const VOCAB: usize = 64;

/// Grouped queries; everything divides by 4.
pub(super) fn config() -> ModelConfig {
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

pub(super) const INIT: InitConfig = InitConfig { seed: 3, std: 0.1 };

/// Rows of `SEQ + 1` tokens; token 0 begins a document; some targets do not count.
pub(super) fn rows(seed: usize, batch: usize, bos: Option<i32>) -> MicroBatch {
    let token = |i: usize| match i % (SEQ + 1) {
        c if c.is_multiple_of(13) => 0,
        c if (i / (SEQ + 1) + seed) % 3 == 2 && c > 20 => -1,
        _ => ((seed * 7919 + i * i * 31 + i * 17) % (VOCAB - 1)) as i32 + 1,
    };
    MicroBatch { tokens: (0..batch * (SEQ + 1)).map(token).collect(), batch, seq_len: SEQ, bos }
}

pub(super) fn values(x: FloatTensor<B>) -> Vec<f32> {
    let n = x.shape().num_elements();
    let flat = Tensor::<B, 1>::from_primitive(TensorPrimitive::Float(
        <B as burn::tensor::ops::FloatTensorOps<B>>::float_reshape(x, [n].into()),
    ));
    flat.into_data().convert::<f32>().to_vec().unwrap()
}

/// In parts of each tensor's largest magnitude.
pub(super) fn assert_close(what: &str, got: &[Vec<f32>], want: &[Vec<f32>], tolerance: f32) {
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
pub(super) fn merge(parts: &[Vec<(Slice, Vec<f32>)>]) -> Vec<Vec<f32>> {
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

pub(super) fn with_slices(config: &ModelConfig, mesh: &Mesh, named: Vec<FloatTensor<B>>) -> Vec<(Slice, Vec<f32>)> {
    config.slices(mesh.part()).into_iter().zip(named.into_iter().map(values)).collect()
}

/// A dataset of two documents with a pattern in it.
pub(super) fn dataset(dir: &Path) -> PathBuf {
    let out = dir.join("tokens");
    let mut writer = DatasetWriter::create(&out, Vocab { size: VOCAB as u32, hash: 1 }, 1 << 20, false).unwrap();
    for seed in 0..2 {
        let tokens: Vec<u32> = (0..3000).map(|i| (seed + i * 7 + i * i % 5) % VOCAB as u32).collect();
        writer.push(&tokens, 9000).unwrap();
    }
    writer.finish(vec!["test".into()]).unwrap();
    out
}

pub(super) fn run_config(data: &Path, parallel: ParallelConfig, steps: u64) -> RunConfig {
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
pub(super) struct StopAt<'a>(pub(super) u64, &'a AtomicBool);

impl Observer for StopAt<'_> {
    fn step(&mut self, record: &StepRecord, _eta_s: f64) {
        self.1.store(record.step == self.0, Ordering::Relaxed);
    }
}

/// Trains on so many ranks until `stop_at`, or to the end.
pub(super) fn train_ranks(
    ranks: usize,
    config: &RunConfig,
    dir: &Path,
    start: &Start,
    stop_at: u64,
) -> recua::Result<RunSummary> {
    let stop = AtomicBool::new(false);
    let mut observer = StopAt(stop_at, &stop);
    let backend: BackendName = "flex".parse().unwrap();
    match ranks {
        1 => train(config.clone(), dir, start, &backend, &stop, &mut observer),
        _ => train_threads(ranks, config, dir, start, &backend, &stop, &mut observer),
    }
}

pub(super) fn losses(dir: &Path) -> Vec<f64> {
    metrics::read(&dir.join(metrics::METRICS_FILE)).unwrap().iter().map(|record| record.loss).collect()
}

pub(super) fn of(dp: usize, tp: usize, sequence: bool, zero: u8) -> (usize, ParallelConfig) {
    (dp * tp, ParallelConfig { tp, sequence, zero, bucket: 20_000, ..ParallelConfig::default() })
}
