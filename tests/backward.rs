//! The backward written by hand: against autodiff, against itself with other activations kept, inside documents, with updates made
//! on the way, and in bfloat16 and float16.

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Tensor, TensorPrimitive};
use recua::Result;
use recua::backend::{BackendName, Job, Kind};
use recua::model::backward::{self, ActivationCheckpointing, PassConfig};
use recua::model::{InitConfig, LayerSlot, Llama, ModelConfig, Slot, unfuse};
use recua::ops::LlamaOps;
use recua::optim::{AdamW, LossScale, OptimConfig};
use recua::parallel::Ranks;
use recua::train::step::{MicroBatch, Precision, StepConfig, StepOutput, train_step};

const SEQ: usize = 33;
const VOCAB: usize = 61;

/// Grouped queries, a width of 24 a head, a feed-forward that is no multiple of anything.
fn config() -> ModelConfig {
    ModelConfig {
        dim: 96,
        n_layers: 3,
        n_heads: 4,
        n_kv_heads: Some(2),
        vocab_size: VOCAB,
        ffn_dim: Some(100),
        max_seq_len: SEQ,
        ..ModelConfig::default()
    }
}

fn model<B: LlamaOps>(device: &B::Device) -> Llama<B> {
    Llama::init(&config(), &InitConfig { seed: 3, std: 0.1 }, device).unwrap()
}

fn token(seed: usize, i: usize) -> i32 {
    ((seed * 7919 + i * i * 31 + i * 17) % (VOCAB - 1)) as i32 + 1
}

/// Rows of `SEQ + 1` tokens; token 0 begins a document.
fn rows(seed: usize, batch: usize, bos: Option<i32>) -> MicroBatch {
    let tokens = (0..batch * (SEQ + 1)).map(|i| if (i % (SEQ + 1)).is_multiple_of(13) { 0 } else { token(seed, i) }).collect();
    MicroBatch { tokens, batch, seq_len: SEQ, bos }
}

fn values<B: LlamaOps>(x: FloatTensor<B>) -> Vec<f32> {
    use burn::tensor::TensorMetadata;
    let n = x.shape().num_elements();
    let flat = Tensor::<B, 1>::from_primitive(TensorPrimitive::Float(B::float_reshape(x, [n].into())));
    flat.into_data().convert::<f32>().to_vec().unwrap()
}

fn all_values<B: LlamaOps>(grads: impl IntoIterator<Item = FloatTensor<B>>) -> Vec<Vec<f32>> {
    grads.into_iter().map(values::<B>).collect()
}

/// In parts of each tensor's largest magnitude: 1.2e-5 is the golden tolerance for gradients (tests/golden.rs).
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

fn run<J: Job<Output = ()>>(job: impl Fn() -> J) {
    for kind in Kind::ALL.into_iter().filter(|k| k.compiled() && *k != Kind::Cuda) {
        let name = if kind == Kind::Wgpu { "wgpu:cpu" } else { kind.name() };
        let backend: BackendName = name.parse().unwrap();
        backend.run(job()).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}

fn pass(checkpointing: ActivationCheckpointing, targets: usize) -> PassConfig {
    PassConfig { checkpointing, compute: DType::F32, scale: 1.0 / targets as f64 }
}

struct AgainstAutodiff;

impl Job for AgainstAutodiff {
    type Output = ();

    fn run<B: LlamaOps>(self, device: B::Device) -> Result<()> {
        let model = model::<B>(&device);
        for bos in [None, Some(0)] {
            let micro = rows(1, 3, bos);
            let input = micro.to_device::<B>(&device);
            let n = micro.valid() as f32;
            let ad = model.autodiff();
            let starts = input.doc_starts.clone().map(Tensor::from_inner);
            let loss =
                ad.loss_sum_in(Tensor::from_inner(input.tokens.clone()), Tensor::from_inner(input.targets.clone()), starts);
            let want_loss = values::<B>(loss.clone().inner().into_primitive().tensor())[0];
            let want = all_values::<B>(ad.take_gradients(&mut loss.div_scalar(n).backward()));
            let mut first: Option<Vec<Vec<f32>>> = None;
            for checkpointing in ActivationCheckpointing::ALL {
                let (loss, grads) = backward::gradients(&model, &input, pass(checkpointing, micro.valid() as usize));
                let loss = values::<B>(loss.into_primitive().tensor())[0];
                assert!((loss - want_loss).abs() <= 3e-6 * want_loss, "{checkpointing:?}: loss {loss}, autodiff {want_loss}");
                let grads = all_values::<B>(grads);
                assert_close(&format!("{checkpointing:?}, documents {bos:?}"), &grads, &want, 1.2e-5);
                // What is computed again comes out the same.
                let first = first.get_or_insert_with(|| grads.clone());
                assert!(*first == grads, "{checkpointing:?} gives other bits than {:?}", ActivationCheckpointing::None);
            }
        }
        Ok(())
    }
}

#[test]
fn by_hand_and_autodiff_agree() {
    run(|| AgainstAutodiff);
}

struct Documents;

impl Job for Documents {
    type Output = ();

    /// Two documents in one row, kept apart, are two rows: the same loss and the same gradients.
    fn run<B: LlamaOps>(self, device: B::Device) -> Result<()> {
        let model = model::<B>(&device);
        let documents: [Vec<i32>; 2] =
            [15, 18].map(|n| std::iter::once(0).chain((1..n).map(|i| token(n, i))).collect::<Vec<_>>());
        // The last token of a document predicts nothing.
        let packed_inputs = documents.concat();
        let mut packed: Vec<i32> = packed_inputs.clone();
        packed.push(-1);
        packed[15] = -1; // target after the first document; its input is put back below
        let with = |mask: bool| {
            let micro = MicroBatch { tokens: packed.clone(), batch: 1, seq_len: SEQ, bos: Some(0) };
            let mut input = micro.to_device::<B>(&device);
            // `to_device` reads inputs and targets from one row; the first token of the second document is both.
            assert_eq!(input.tokens.clone().into_data().convert::<i32>().to_vec::<i32>().unwrap()[15], 0);
            if mask {
                let starts: Vec<i32> = (0..SEQ as i32).map(|i| if i < 15 { 0 } else { 15 }).collect();
                input.doc_starts = Some(Tensor::from_data(burn::tensor::TensorData::new(starts, [1, SEQ]), &device));
            } else {
                input.doc_starts = None;
            }
            let (loss, grads) =
                backward::gradients(&model, &input, pass(ActivationCheckpointing::Selective, micro.valid() as usize));
            (values::<B>(loss.into_primitive().tensor())[0], all_values::<B>(grads))
        };
        let apart = {
            let mut tokens = Vec::new();
            for d in &documents {
                let mut row = d.clone();
                row.resize(SEQ + 1, -1);
                tokens.extend(row);
            }
            let micro = MicroBatch { tokens, batch: 2, seq_len: SEQ, bos: None };
            let (loss, grads) = backward::gradients(
                &model,
                &micro.to_device::<B>(&device),
                pass(ActivationCheckpointing::Selective, micro.valid() as usize),
            );
            (values::<B>(loss.into_primitive().tensor())[0], all_values::<B>(grads))
        };
        let (loss, grads) = with(true);
        assert!((loss - apart.0).abs() <= 3e-6 * loss, "packed {loss}, apart {}", apart.0);
        // Rotary angles of the second document are those of later positions: the same scores after one more rounding.
        assert_close("documents", &grads, &apart.1, 5e-5);
        let (loss, _) = with(false);
        assert!((loss - apart.0).abs() > 1e-3, "the mask makes no difference");
        Ok(())
    }
}

#[test]
fn documents_do_not_see_each_other() {
    run(|| Documents);
}

#[test]
fn starts_are_those_of_the_documents() {
    let micro = MicroBatch { tokens: vec![5, 6, 0, 7, 0, 0, 8, 9], batch: 2, seq_len: 3, bos: Some(0) };
    let input = micro.to_device::<recua::backend::Flex>(&Default::default());
    let starts = input.doc_starts.unwrap().into_data().convert::<i32>().to_vec::<i32>().unwrap();
    assert_eq!(starts, [0, 0, 2, 0, 1, 1]);
    let order = input.order.into_data().convert::<i32>().to_vec::<i32>().unwrap();
    assert_eq!(order, [2, 3, 4, 0, 1, 5], "inputs 5 6 0 | 0 0 8, sorted, equal ones in their order");
}

struct InBackward;

impl Job for InBackward {
    type Output = ();

    /// Updates made in backward are the same updates; only the clip comes a step late.
    fn run<B: LlamaOps>(self, device: B::Device) -> Result<()> {
        let train = |update_in_backward: bool, clip: f64| {
            let mut model = model::<B>(&device);
            let mut optim = AdamW::new(OptimConfig { lr: 1e-2, eps: 1e-6, clip, ..Default::default() }, &model);
            let how = StepConfig { update_in_backward, ..StepConfig::default() };
            let mut norms = Vec::new();
            for step in 0..4 {
                let (next, out) = train_step(
                    model,
                    &mut optim,
                    vec![Ok(rows(step, 2, None))],
                    1e-2,
                    how,
                    &mut |_, _| false,
                    &mut Ranks::single(),
                )?;
                assert!(!out.skipped);
                model = next;
                norms.push(out.grad_norm);
            }
            Ok::<_, recua::Error>((all_values::<B>(model.stored()), norms))
        };
        let (want, norms) = train(false, f64::INFINITY)?;
        let (got, late) = train(true, f64::INFINITY)?;
        assert!(want == got && norms == late, "updates in backward differ");
        // With a clip, from the second step on, by the norm of the step before.
        let clip = norms[0] / 2.0;
        assert!(train(true, clip)?.0 != train(false, clip)?.0);
        Ok(())
    }
}

#[test]
fn updates_in_backward_are_the_same_updates() {
    run(|| InBackward);
}

#[test]
fn updates_in_backward_need_one_micro_batch() {
    let device = Default::default();
    let model = model::<recua::backend::Flex>(&device);
    let mut optim = AdamW::new(OptimConfig::default(), &model);
    let how = StepConfig { update_in_backward: true, ..StepConfig::default() };
    let micro = vec![Ok(rows(0, 1, None)), Ok(rows(1, 1, None))];
    let error = train_step(model, &mut optim, micro, 1e-3, how, &mut |_, _| false, &mut Ranks::single()).unwrap_err().to_string();
    assert!(error.contains("train.update_in_backward") && error.contains("micro_batch"), "{error}");
}

/// A step on one batch that repeats.
fn step<B: LlamaOps>(model: Llama<B>, optim: &mut AdamW<B>, precision: Precision) -> (Llama<B>, StepOutput) {
    let how = StepConfig { precision, ..StepConfig::default() };
    train_step(model, optim, vec![Ok(rows(7, 4, None))], 3e-3, how, &mut |_, _| false, &mut Ranks::single()).unwrap()
}

/// With an optimizer, ready for steps in `precision`.
fn prepared<B: LlamaOps>(model: Llama<B>, precision: Precision) -> (Llama<B>, AdamW<B>) {
    let mut optim = AdamW::new(OptimConfig { lr: 3e-3, ..Default::default() }, &model);
    let model = StepConfig { precision, ..StepConfig::default() }.prepare(model, &mut optim);
    (model, optim)
}

/// Losses of so many steps, which fall far.
fn losses<B: LlamaOps>(precision: Precision, steps: usize, device: &B::Device) -> Vec<f64> {
    let (model, mut optim) = prepared(model::<B>(device), precision);
    let mut model = Some(model);
    let one = |_| {
        let (next, out) = step(model.take().unwrap(), &mut optim, precision);
        model = Some(next);
        assert!(!out.skipped);
        out.loss
    };
    (0..steps).map(one).collect()
}

/// Training in a narrow type follows float32 on the backends that have it.
struct NarrowTrains(Precision, f64);

impl Job for NarrowTrains {
    type Output = ();

    fn run<B: LlamaOps>(self, device: B::Device) -> Result<()> {
        let Self(precision, tolerance) = self;
        if precision.check::<B>(&device).is_err() {
            return Ok(());
        }
        let full = losses::<B>(Precision::F32, 40, &device);
        let half = losses::<B>(precision, 40, &device);
        assert!(full[39] < full[0] - 1.0, "float32 does not learn: {} to {}", full[0], full[39]);
        assert!(full != half, "{precision:?} was not used");
        let worst = full.iter().zip(&half).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        println!("{}: {precision:?} within {worst:.1e} of float32", B::name(&device));
        assert!(worst < tolerance, "{precision:?}: a loss is {worst} off float32's");
        Ok(())
    }
}

/// bfloat16 has 8 significant bits; with float32 master weights and sums the loss follows float32's. 0.02 is the bound that the
/// GPU's 300 steps are held to.
#[test]
fn bfloat16_trains_like_float32() {
    run(|| NarrowTrains(Precision::Bf16, 0.02));
}

/// float16 has 11, an eighth of the error of each operation; since two trainings drift apart by chance as well, a quarter of that
/// bound is asked for.
#[test]
fn float16_trains_like_float32() {
    run(|| NarrowTrains(Precision::F16, 0.005));
}

/// Of a step of ten million targets the gradients of single ones are below float16's smallest number, 6e-8.
#[test]
fn float16_needs_a_scaled_loss() {
    type B = recua::backend::Flex;
    let model = model::<B>(&Default::default());
    let input = rows(1, 3, None).to_device::<B>(&Default::default());
    // Error of all gradients together, in parts of their norm.
    let error = |factor: f64| {
        let with = |compute, scale| {
            all_values::<B>(
                backward::gradients(
                    &model,
                    &input,
                    PassConfig { checkpointing: ActivationCheckpointing::Selective, compute, scale },
                )
                .1,
            )
            .concat()
        };
        let (want, got) = (with(DType::F32, 1e-7 * factor), with(DType::F16, 1e-7 * factor));
        let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        norm(&mut want.iter().zip(&got).map(|(w, g)| w - g)) / norm(&mut want.iter().copied())
    };
    let (plain, scaled) = (error(1.0), error(LossScale::default().factor));
    println!("float16 gradients: off by {plain:.2e} of their norm, with a scaled loss {scaled:.2e}");
    assert!(plain > 0.1 && scaled < 5e-3, "without {plain}, with {scaled}");
}

#[test]
fn float16_finds_its_loss_scale() {
    type B = recua::backend::Flex;
    let (mut model, mut optim) = prepared(model::<B>(&Default::default()), Precision::F16);
    assert_eq!(optim.loss_scale, Some(LossScale::default()));
    let before = all_values::<B>(model.stored());
    optim.loss_scale = Some(LossScale { factor: 2f64.powi(40), steady: 7 });
    // Gradients that overflow are left out, and the scale halved, until they do not.
    let mut left_out = 0;
    let norm = loop {
        let (next, out) = step(model, &mut optim, Precision::F16);
        model = next;
        assert!(out.loss.is_finite());
        if !out.skipped {
            assert_eq!(out.loss_scale, Some(2f64.powi(40 - left_out)));
            break out.grad_norm;
        }
        assert!(!out.grad_norm.is_finite() && all_values::<B>(model.stored()) == before);
        left_out += 1;
        assert_eq!(optim.loss_scale, Some(LossScale { factor: 2f64.powi(40 - left_out), steady: 0 }));
        assert!(left_out < 40);
    };
    assert!(left_out > 10 && optim.steps == 1, "{left_out} steps left out, {} taken", optim.steps);
    // The norm and the update are those of the loss itself.
    let (fresh, mut full) = prepared(self::model::<B>(&Default::default()), Precision::F32);
    assert_eq!(full.loss_scale, None);
    let (fresh, out) = step(fresh, &mut full, Precision::F32);
    assert!((norm / out.grad_norm - 1.0).abs() < 5e-3, "{norm}, float32 {}", out.grad_norm);
    let moments = |optim: &AdamW<B>| all_values::<B>(optim.moments(0));
    assert_close("first moments", &moments(&optim), &moments(&full), 2e-2);
    drop(fresh);
    // It grows where nothing overflows.
    let mut scale = LossScale { factor: 1024.0, steady: LossScale::PATIENCE - 2 };
    scale.adapt(true);
    assert_eq!(scale.factor, 1024.0);
    scale.adapt(true);
    assert_eq!(scale, LossScale { factor: 2048.0, steady: 0 });
}

#[test]
fn float16_does_not_update_in_backward() {
    type B = recua::backend::Flex;
    let (model, mut optim) = prepared(model::<B>(&Default::default()), Precision::F16);
    let how = StepConfig { update_in_backward: true, precision: Precision::F16, ..StepConfig::default() };
    let error = train_step(model, &mut optim, vec![Ok(rows(0, 1, None))], 1e-3, how, &mut |_, _| false, &mut Ranks::single())
        .unwrap_err()
        .to_string();
    assert!(error.contains("train.update_in_backward") && error.contains("float16"), "{error}");
}

/// The model's own fused storage and the named parameters are two views of one thing.
#[test]
fn stored_and_named_parameters() {
    let device = Default::default();
    let model = model::<recua::backend::Flex>(&device);
    let (c, stored) = (config(), model.stored());
    let [wqkv, w13] = [Slot::Layer(0, LayerSlot::Wqkv), Slot::Layer(2, LayerSlot::W13)];
    assert_eq!(wqkv.name(), "layers.0.attention.wqkv.weight");
    assert_eq!(c.stored_shapes()[wqkv], [96 + 2 * 48, 96]);
    assert_eq!(c.stored_shapes()[w13], [200, 96]);
    let named = all_values::<recua::backend::Flex>(unfuse::<recua::backend::Flex>(&c, stored.clone()));
    let stored = stored.map(|_, x| values::<recua::backend::Flex>(x));
    let at = |name: &str| c.parameters().iter().position(|p| p.0 == name).unwrap();
    let [wq, wk, wv] = ["wq", "wk", "wv"].map(|n| &named[at(&format!("layers.0.attention.{n}.weight"))]);
    assert_eq!(stored[wqkv], [wq.clone(), wk.clone(), wv.clone()].concat());
    let [w1, w3] = ["w1", "w3"].map(|n| &named[at(&format!("layers.2.feed_forward.{n}.weight"))]);
    assert_eq!(stored[w13], [w1.clone(), w3.clone()].concat());
    // Each parameter lies in one slot; a slot of one part has its name, and only what products read has the compute type.
    let parts: Vec<usize> = stored.slots().flat_map(|slot| slot.parts(c.n_layers)).collect();
    assert_eq!(
        {
            let mut sorted = parts.clone();
            sorted.sort();
            sorted
        },
        (0..c.parameters().len()).collect::<Vec<_>>()
    );
    for slot in stored.slots() {
        if let [part] = slot.parts(c.n_layers)[..] {
            assert_eq!(slot.name(), c.parameters()[part].0);
        }
        let reads = slot.read_as(DType::BF16) == DType::BF16;
        assert_eq!(reads, c.stored_shapes()[slot].len() == 2 && slot != Slot::TokEmbeddings, "{}", slot.name());
    }
}
