//! Golden vectors of Hugging Face's LLaMA (`tests/golden/README.md`): block outputs, logits, loss, every gradient, and 20
//! training steps, on every backend compiled in.

use std::path::{Path, PathBuf};

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Int, Tensor, TensorData};
use recua::backend::{BackendName, Job};
use recua::checkpoint::{Checkpoint, TensorSource, hf};
use recua::model::backward::{self, ActivationCheckpointing, PassConfig};
use recua::model::{Llama, PerSlot, unfuse};
use recua::ops::LlamaOps;
use recua::optim::{AdamW, OptimConfig};
use recua::parallel::Ranks;
use recua::train::step::{MicroBatch, StepConfig, train_step};
use serde_json::Value;

/// Largest allowed differences. CPU, float32: ten times the noise floor between reference implementations
/// (`tests/golden/README.md`).
struct Tolerance {
    logits: f64,
    loss: f64,
    /// Of each tensor's largest magnitude.
    grads: f64,
    train_loss: f64,
    /// Relative.
    grad_norm: f64,
    /// At the 99.9th percentile, and at most (Adam turns a gradient that is pure noise into a full step).
    weights: [f64; 2],
}

const CPU: Tolerance =
    Tolerance { logits: 2e-5, loss: 3e-6, grads: 1.2e-5, train_loss: 2e-5, grad_norm: 6e-5, weights: [1e-5, 3e-3] };

/// wgpu: the shading language promises exp, log and the inverse root to a few units in the last place only, and sums are
/// taken in another order; five times the CPU's.
const WGPU: Tolerance =
    Tolerance { logits: 1e-4, loss: 1.5e-5, grads: 6e-5, train_loss: 1e-4, grad_norm: 3e-4, weights: [5e-5, 3e-3] };

struct Case {
    dir: PathBuf,
    tolerance: &'static Tolerance,
}

/// Integers of a tensor that the format's reader for weights does not know (int32).
fn ints(path: &Path, name: &str) -> (Vec<usize>, Vec<i32>) {
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let view = file.tensor(name).unwrap();
    assert_eq!(view.dtype(), safetensors::Dtype::I32, "{name}");
    let values = view.data().chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().unwrap())).collect();
    (view.shape().to_vec(), values)
}

fn floats(path: &Path, name: &str) -> (Vec<usize>, Vec<f32>) {
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let view = file.tensor(name).unwrap();
    assert_eq!(view.dtype(), safetensors::Dtype::F32, "{name}");
    let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    (view.shape().to_vec(), values)
}

fn matrix<B: LlamaOps>((shape, values): (Vec<usize>, Vec<i32>), device: &B::Device) -> Tensor<B, 2, Int> {
    Tensor::from_data(TensorData::new(values, [shape[0], shape[1]]), device)
}

fn values<B: LlamaOps, const D: usize>(x: Tensor<B, D>) -> Vec<f32> {
    x.into_data().convert::<f32>().to_vec().unwrap()
}

#[track_caller]
fn assert_close(what: &str, got: &[f32], expected: &[f32], tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "{what}: number of elements");
    let worst = got.iter().zip(expected).map(|(g, e)| f64::from(g - e).abs()).fold(0.0, f64::max);
    assert!(got.iter().all(|x| x.is_finite()), "{what}: not finite");
    assert!(worst <= tolerance, "{what}: off by {worst:e}, allowed {tolerance:e}");
}

impl Job for Case {
    type Output = ();

    fn run<B: LlamaOps>(self, device: B::Device) -> recua::Result<()> {
        let Self { dir, tolerance: t } = &self;
        let model = Checkpoint::open(dir)?.load::<B>(&device)?;
        forward_and_gradients(dir, &model, t);
        training(dir, model.clone(), t, StepConfig { autodiff: true, ..StepConfig::default() });
        for checkpointing in ActivationCheckpointing::ALL {
            training(dir, model.clone(), t, StepConfig { checkpointing, ..StepConfig::default() });
        }
        Ok(())
    }
}

fn forward_and_gradients<B: LlamaOps>(dir: &Path, model: &Llama<B>, t: &Tolerance) {
    let path = dir.join("forward.safetensors");
    let device = model.device();
    let inputs = matrix::<B>(ints(&path, "input_ids"), &device);
    let targets = matrix::<B>(ints(&path, "targets"), &device);
    let [batch, seq] = inputs.dims();

    let mut outs = Vec::new();
    let hidden = model.hidden_with(inputs.clone(), &mut |_, x| outs.push(values(x.clone())));
    for (i, out) in outs.iter().enumerate() {
        assert_close(&format!("block {i}"), out, &floats(&path, &format!("block.{i}.out")).1, t.logits);
    }
    assert_eq!(outs.len(), model.config().n_layers);
    assert_close("logits", &values(model.output.forward(hidden)), &floats(&path, "logits").1, t.logits);
    assert_close("logits of forward", &values(model.forward(inputs.clone())), &floats(&path, "logits").1, t.logits);

    // Scores: the natural-log probability of each token after the first, by the reference's logits in float64.
    let (shape, logits) = floats(&path, "logits");
    let vocab = shape[2];
    let ids: Vec<u32> = ints(&path, "input_ids").1[..seq].iter().map(|&t| t as u32).collect();
    let scores = recua::eval::logprobs(model, &ids).unwrap();
    assert_eq!(scores.len(), seq - 1);
    for (i, score) in scores.iter().enumerate() {
        let row = &logits[i * vocab..][..vocab];
        let sum: f64 = row.iter().map(|&l| f64::from(l).exp()).sum();
        let want = f64::from(row[ids[i + 1] as usize]) - sum.ln();
        assert!((f64::from(*score) - want).abs() < 1e-4, "score {i}: {score}, expected {want}");
    }

    let expected_loss = floats(&path, "loss").1;
    let mean = |sum: Vec<f32>| vec![sum[0] / (batch * seq) as f32];
    assert_close("loss", &mean(values(model.loss_sum(inputs.clone(), targets.clone()))), &expected_loss, t.loss);

    let ad = model.autodiff();
    let loss = ad.loss_sum(Tensor::from_inner(inputs), Tensor::from_inner(targets)).div_scalar((batch * seq) as f32);
    assert_close("loss under autodiff", &values(loss.clone().inner()), &expected_loss, t.loss);
    let grads = ad.take_gradients(&mut loss.backward());
    gradients(dir, model, "autodiff", grads, t);

    let tokens = ints(&path, "input_ids").1;
    let targets = ints(&path, "targets").1;
    // A micro-batch holds inputs and targets as one row; the fixture's targets are the inputs one later.
    let rows = tokens.chunks_exact(seq).zip(targets.chunks_exact(seq));
    let tokens = rows.flat_map(|(x, y)| {
        assert_eq!(x[1..], y[..seq - 1]);
        [x, &y[seq - 1..]].concat()
    });
    let micro = MicroBatch { tokens: tokens.collect(), batch, seq_len: seq, bos: None };
    for checkpointing in ActivationCheckpointing::ALL {
        let pass = PassConfig { checkpointing, compute: DType::F32, scale: 1.0 / (batch * seq) as f64 };
        let (loss, grads) = backward::gradients(model, &micro.to_device::<B>(&device), pass);
        assert_close("loss of the backward by hand", &mean(values(loss)), &expected_loss, t.loss);
        gradients(dir, model, &format!("by hand, {checkpointing:?}"), grads, t);
    }
}

/// Gradients in the model's own order against the fixture's.
fn gradients<B: LlamaOps>(dir: &Path, model: &Llama<B>, how: &str, grads: PerSlot<FloatTensor<B>>, t: &Tolerance) {
    // The gradients have the checkpoint's names and layout: read them as one.
    let expected = gradients_in_meta_layout(dir, "grads.safetensors");
    let names = model.config().parameters();
    let grads = unfuse::<B>(model.config(), grads);
    assert_eq!(grads.len(), names.len());
    for (grad, (name, shape)) in grads.into_iter().zip(names) {
        let n: usize = shape.iter().product();
        let flat = Tensor::<B, 1>::from_primitive(burn::tensor::TensorPrimitive::Float(B::float_reshape(grad, [n].into())));
        let want = expected.read_f32(&name).unwrap().1;
        let scale = want.iter().fold(0f32, |m, x| m.max(x.abs()));
        assert!(scale > 0.0, "{name}: the reference gradient is zero");
        assert_close(&format!("gradient of {name}, {how}"), &values(flat), &want, t.grads * f64::from(scale));
    }
}

/// A file with Hugging Face's names and row order as Meta's, through a folder that pairs it with the case's config.
fn gradients_in_meta_layout(dir: &Path, file: &str) -> hf::HfFolder {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(dir.join("config.json"), folder.path().join("config.json")).unwrap();
    std::fs::copy(dir.join(file), folder.path().join("model.safetensors")).unwrap();
    // The files are mapped: they live on after the folder is gone.
    hf::HfFolder::open(folder.path()).unwrap_or_else(|e| panic!("{file}: {e}"))
}

fn training<B: LlamaOps>(dir: &Path, mut model: Llama<B>, t: &Tolerance, how: StepConfig) {
    let plan: Value = serde_json::from_str(&std::fs::read_to_string(dir.join("train.json")).unwrap()).unwrap();
    let number = |path: &str| plan.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("train.json lacks {path}"));
    let config = OptimConfig {
        lr: number("/schedule/max_lr"),
        min_lr_ratio: number("/schedule/min_lr") / number("/schedule/max_lr"),
        warmup_steps: number("/schedule/warmup_steps") as u64,
        beta1: number("/adamw/beta_1"),
        beta2: number("/adamw/beta_2"),
        eps: number("/adamw/eps"),
        weight_decay: number("/adamw/weight_decay"),
        clip: number("/clip_global_norm"),
    };
    let total = number("/schedule/total_steps") as u64;
    let (shape, tokens) = ints(&dir.join("train_batches.safetensors"), "batches");
    let [steps, batch, width] = shape[..] else { panic!("batches: {shape:?}") };
    let mut optim = AdamW::new(config, &model);
    for step in 0..steps {
        let tokens = tokens[step * batch * width..][..batch * width].to_vec();
        let micro = MicroBatch { tokens, batch, seq_len: width - 1, bos: None };
        let lr = optim.config.lr_at(step as u64, total);
        let (next, out) =
            train_step(model, &mut optim, vec![Ok(micro)], lr, how, &mut |_, _| false, &mut Ranks::single()).unwrap();
        model = next;
        let at = |key: &str| number(&format!("/steps/{step}/{key}"));
        let close = |what: &str, got: f64, expected: f64, tolerance: f64| {
            assert!((got - expected).abs() <= tolerance, "step {step}: {what} {got}, expected {expected}, allowed {tolerance:e}");
        };
        close("lr", lr, at("lr"), 1e-12);
        close("loss", out.loss, at("loss"), t.train_loss);
        close("gradient norm", out.grad_norm, at("grad_norm"), t.grad_norm * at("grad_norm"));
    }
    let expected = gradients_in_meta_layout(dir, "trained.safetensors");
    let mut differences = Vec::new();
    for (p, (name, shape)) in model.parameters().into_iter().zip(model.config().parameters()) {
        let n: usize = shape.iter().product();
        let flat = Tensor::<B, 1>::from_primitive(burn::tensor::TensorPrimitive::Float(B::float_reshape(p, [n].into())));
        let want = expected.read_f32(&name).unwrap().1;
        differences.extend(values(flat).iter().zip(want).map(|(g, e)| f64::from(g - e).abs()));
    }
    differences.sort_by(f64::total_cmp);
    let percentile = differences[(differences.len() as f64 * 0.999) as usize];
    let most = differences[differences.len() - 1];
    assert!(percentile <= t.weights[0], "trained weights: 99.9th percentile off by {percentile:e}");
    assert!(most <= t.weights[1], "trained weights: off by up to {most:e}");
}

/// Folders of `tests/golden` with a `forward.safetensors`, and those named in RECUA_GOLDEN (colon-separated).
fn cases() -> Vec<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut dirs: Vec<PathBuf> = std::fs::read_dir(own)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("forward.safetensors").exists())
        .collect();
    dirs.sort();
    assert!(!dirs.is_empty(), "tests/golden holds no case");
    for dir in std::env::var("RECUA_GOLDEN").unwrap_or_default().split(':').filter(|d| !d.is_empty()) {
        let dir = PathBuf::from(dir);
        assert!(dir.join("forward.safetensors").exists(), "RECUA_GOLDEN: no case in {}", dir.display());
        dirs.push(dir);
    }
    dirs
}

/// Burn's default features wrap its GPU backends in `Fusion`: the same model, the same tolerances.
#[cfg(all(feature = "fusion", feature = "wgpu"))]
#[test]
fn golden_under_fusion() {
    type Fused = burn_fusion::Fusion<recua::backend::Wgpu>;
    for dir in cases() {
        let model = Checkpoint::open(&dir).unwrap().load::<Fused>(&cubecl::wgpu::WgpuDevice::Cpu).unwrap();
        forward_and_gradients(&dir, &model, &WGPU);
        training(&dir, model, &WGPU, StepConfig { autodiff: true, ..StepConfig::default() });
    }
}

#[test]
fn golden() {
    let mut backends: Vec<(&str, &Tolerance)> = Vec::new();
    if cfg!(feature = "flex") {
        backends.push(("flex", &CPU));
    }
    if cfg!(feature = "ndarray") {
        backends.push(("ndarray", &CPU));
    }
    if cfg!(feature = "wgpu") {
        backends.push(("wgpu:cpu", &WGPU));
    }
    let cases = cases();
    for dir in &cases {
        for (name, tolerance) in &backends {
            let backend: BackendName = name.parse().unwrap();
            backend.run(Case { dir: dir.clone(), tolerance }).unwrap_or_else(|e| panic!("{}, {name}: {e}", dir.display()));
            println!("golden: {} on {name}: ok", dir.display());
        }
    }
    println!("golden: {} cases x {} backends = {} passed", cases.len(), backends.len(), cases.len() * backends.len());
}
