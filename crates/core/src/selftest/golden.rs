//! The golden case: a tiny LLaMA against Hugging Face's, see `assets/selftest/README.md`.

use burn::tensor::{Int, Tensor, TensorData};
use safetensors::SafeTensors;

use super::{Checks, Output, draw};
use crate::model::init::from_f32;
use crate::model::{Llama, ModelConfig, PerSlot, unfuse};
use crate::ops::{LlamaOps, primitive};
use crate::optim::{AdamW, OptimConfig, global_norm};

const FILE: &[u8] = include_bytes!("../../assets/selftest/golden.safetensors");
const SHAPE: &str = "dim 32, 2 layers, 4/2 heads";

fn floats(name: &str) -> Vec<f64> {
    words(name).map(|b| f64::from(f32::from_le_bytes(b))).collect()
}

/// The file is part of the program: that it holds these tensors is tested, not checked at run time.
fn words(name: &str) -> impl Iterator<Item = [u8; 4]> {
    let file = SafeTensors::deserialize(FILE).expect("the embedded file is whole");
    let data = file.tensor(name).expect("the embedded file has every tensor of the case").data();
    data.as_chunks::<4>().0.iter().copied()
}

fn config() -> ModelConfig {
    ModelConfig {
        dim: 32,
        n_layers: 2,
        n_heads: 4,
        n_kv_heads: Some(2),
        vocab_size: 80,
        ffn_dim: Some(88),
        max_seq_len: 24,
        ..ModelConfig::default()
    }
}

/// Weights by the formula in `generate.py`.
fn model<B: LlamaOps>(device: &B::Device) -> Llama<B> {
    let mut seed = 0;
    let model = Llama::build(&config(), device, &mut |_, shape| {
        seed += 1;
        let offset = if shape.len() == 1 { 1.0 } else { 0.0 };
        let values = draw(seed, shape.iter().product()).into_iter().map(|u| offset + u / 4.0).collect();
        Ok(from_f32::<B>(values, shape, device))
    });
    model.expect("a valid configuration")
}

/// Inputs and targets of a training step, `[2, 24]` each; every fifth target does not count.
fn batch<B: LlamaOps>(step: usize, device: &B::Device) -> [Tensor<B, 2, Int>; 2] {
    let tokens: Vec<i32> = words("tokens").map(i32::from_le_bytes).collect();
    let rows = || tokens[step * 50..][..50].chunks_exact(25);
    let inputs: Vec<i32> = rows().flat_map(|row| row[..24].iter().copied()).collect();
    let target = |(i, &t): (usize, &i32)| if i % 5 == 0 { -1 } else { t };
    let targets: Vec<i32> = rows().flat_map(|row| row[1..].iter().enumerate().map(target)).collect();
    [inputs, targets].map(|ids| Tensor::from_data(TensorData::new(ids, [2, 24]), device))
}

/// Targets that count: 24 less 5 in each of 2 rows.
const COUNTED: f64 = 38.0;

/// Mean loss and gradients.
fn gradients<B: LlamaOps>(
    model: &Llama<B>,
    step: usize,
    device: &B::Device,
) -> (Tensor<B, 1>, PerSlot<burn::tensor::ops::FloatTensor<B>>) {
    let [inputs, targets] = batch::<B>(step, device);
    let ad = model.autodiff();
    let loss = ad.loss_sum(Tensor::from_inner(inputs), Tensor::from_inner(targets)).div_scalar(COUNTED);
    let grads = ad.take_gradients(&mut loss.backward());
    (loss.inner(), grads)
}

pub(super) fn check<B: LlamaOps>(device: &B::Device, checks: &mut Checks<'_>) {
    let t = checks.tolerance;
    checks.row("golden logits", SHAPE, t.model(), || {
        let [inputs, _] = batch::<B>(0, device);
        vec![Output::new::<B>(primitive(model::<B>(device).forward(inputs)), &floats("logits"))]
    });
    checks.row("golden loss", SHAPE, t.model(), || {
        let [inputs, targets] = batch::<B>(0, device);
        let loss = model::<B>(device).loss_sum(inputs, targets).div_scalar(COUNTED);
        vec![Output::new::<B>(primitive(loss), &floats("losses")[..1])]
    });
    checks.row("golden gradients", SHAPE, t.model(), || {
        let (_, grads) = gradients(&model::<B>(device), 0, device);
        let names = config().parameters();
        unfuse::<B>(&config(), grads)
            .into_iter()
            .zip(names)
            .map(|(g, (name, _))| Output::new::<B>(g, &floats(&format!("grad.{name}"))))
            .collect()
    });
    checks.row("golden training, 3 steps", SHAPE, t.trained(), || {
        let settings = OptimConfig { lr: 1e-3, ..OptimConfig::default() };
        let (want_losses, want_norms) = (floats("losses"), floats("grad_norms"));
        let mut model = model::<B>(device);
        let mut optim = AdamW::new(settings, &model);
        let mut outputs = Vec::new();
        for step in 0..3 {
            let (loss, grads) = gradients(&model, step, device);
            outputs.push(Output::new::<B>(primitive(loss), &want_losses[step..=step]));
            let norm = global_norm::<B>(&grads);
            outputs.push(Output { got: vec![norm as f32], want: vec![want_norms[step]], scale: 0.0 });
            model = optim.step(model, grads, norm, 1e-3);
        }
        let [inputs, _] = batch::<B>(0, device);
        outputs.push(Output::new::<B>(primitive(model.forward(inputs)), &floats("trained_logits")));
        outputs
    });
}
