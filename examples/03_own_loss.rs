//! A loss of one's own under `Autodiff<B>`: cross-entropy with PaLM's z-loss on the logits, a few steps of AdamW.
//!
//!     cargo run --release --example 03_own_loss
//!
//! Prints cross-entropy and z-loss at every fifth step, and fails unless both fall. A program of your own needs `burn` and `burn-autodiff`
//! beside recua, in the version that recua pins (0.21.0).

use burn::tensor::activation::log_softmax;
use burn::tensor::{Int, Tensor, TensorData};
use burn_autodiff::Autodiff;
use recua::backend::Flex;
use recua::model::{InitConfig, Llama, ModelConfig};
use recua::ops::LlamaOps;
use recua::optim::{AdamW, OptimConfig, global_norm};

const BATCH: usize = 4;
const SEQ: usize = 32;

/// Mean cross-entropy, and the mean square of the logarithm of the softmax's denominator (Chowdhery et al. 2022, section 5).
fn losses<B: LlamaOps>(logits: Tensor<B, 3>, targets: Tensor<B, 2, Int>) -> (Tensor<B, 1>, Tensor<B, 1>) {
    let [batch, seq, vocab] = logits.dims();
    let logits = logits.reshape([batch * seq, vocab]);
    let log_p = log_softmax(logits.clone(), 1);
    // log_softmax = logits - log_z, in every column.
    let log_z = (logits - log_p.clone()).slice([0..batch * seq, 0..1]);
    let picked = log_p.gather(1, targets.reshape([batch * seq, 1]));
    (picked.mean().neg(), log_z.powf_scalar(2.0).mean())
}

fn main() -> recua::Result<()> {
    let device = Default::default();
    let config = ModelConfig { vocab_size: 64, max_seq_len: SEQ, ..ModelConfig::preset("debug")? };
    let mut model = Llama::<Flex>::init(&config, &InitConfig::default(), &device)?;
    let mut optim = AdamW::new(OptimConfig { lr: 3e-3, warmup_steps: 5, ..Default::default() }, &model);

    // Something to learn: each token is three times the one before, plus one.
    let rows = (0..BATCH as i32)
        .flat_map(|row| std::iter::successors(Some(row + 1), |t| Some((3 * t + 1) % 64)).take(SEQ + 1).collect::<Vec<_>>());
    let tokens = Tensor::<Flex, 2, Int>::from_data(TensorData::new(rows.collect::<Vec<i32>>(), [BATCH, SEQ + 1]), &device);
    let inputs = tokens.clone().slice([0..BATCH, 0..SEQ]);
    let targets = tokens.slice([0..BATCH, 1..SEQ + 1]);

    let mut curve: Vec<[f32; 2]> = Vec::new();
    for step in 0..40 {
        // The same weights, differentiable.
        let ad: Llama<Autodiff<Flex>> = model.autodiff();
        let (ce, z) = losses(ad.forward(Tensor::from_inner(inputs.clone())), Tensor::from_inner(targets.clone()));
        curve.push([ce.clone().into_scalar(), z.clone().into_scalar()]);
        let loss = ce + z.mul_scalar(0.1);
        let grads = ad.take_gradients(&mut loss.backward());
        let norm = global_norm::<Flex>(&grads);
        let lr = optim.config.lr_at(step, 40);
        model = optim.step(model, grads, norm, lr);
        if step % 5 == 0 {
            let [ce, z] = curve[curve.len() - 1];
            println!("step {step:2}  cross-entropy {ce:.4}  z-loss {z:.4}  gradient norm {norm:.3}");
        }
    }
    let (first, last) = (curve[0], curve[curve.len() - 1]);
    println!("cross-entropy {:.4} -> {:.4}, z-loss {:.4} -> {:.4}", first[0], last[0], first[1], last[1]);
    assert!(last[0] < 0.5 * first[0] && last[1] < first[1], "the losses must fall");
    Ok(())
}
