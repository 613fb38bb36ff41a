//! Several ranks are one device: the same gradients, the same weights, the same data, the same checkpoints. Ranks are threads here.

use std::sync::Arc;

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Tensor, TensorMetadata, TensorPrimitive};
use recua::backend::Flex;
use recua::model::backward::{self, ActivationCheckpointing, PassConfig};
use recua::model::{InitConfig, Llama, ModelConfig, Slice, unfuse};
use recua::parallel::{Communicator, LocalOptions, Mesh, ParallelConfig, Watch, run_ranks};
use recua::train::step::MicroBatch;

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
