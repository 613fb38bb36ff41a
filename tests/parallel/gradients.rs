//! A split model has the gradients, and the first weights, of the whole.

use std::sync::Arc;

use burn::tensor::DType;
use burn::tensor::ops::FloatTensor;
use recua::model::backward::{self, ActivationCheckpointing, PassConfig};
use recua::model::{Llama, ModelConfig, unfuse};
use recua::parallel::{Communicator, LocalOptions, Mesh, ParallelConfig, Watch, run_ranks};

use super::common::{B, INIT, assert_close, config, merge, rows, values, with_slices};

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
