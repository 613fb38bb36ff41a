//! The model's shape and decoding.

use std::ops::ControlFlow;

use recua::backend::{BackendName, Job};
use recua::generate::{Engine, EngineConfig, Event, Request, SampleConfig, Stop, generate};
use recua::model::{InitConfig, Llama, ModelConfig, initial_weights};
use recua::ops::LlamaOps;

/// Name, dim, heads, layers: table 2 of the paper. Parameters: those of the released checkpoints.
const PAPER: [(&str, usize, usize, usize, u64); 4] = [
    ("7b", 4096, 32, 32, 6_738_415_616),
    ("13b", 5120, 40, 40, 13_015_864_320),
    ("33b", 6656, 52, 60, 32_528_943_616),
    ("65b", 8192, 64, 80, 65_285_660_672),
];

#[test]
fn presets_are_the_papers() {
    for (name, dim, n_heads, n_layers, params) in PAPER {
        let c = ModelConfig::preset(name).unwrap();
        assert_eq!((c.dim, c.n_heads, c.n_layers, c.vocab_size), (dim, n_heads, n_layers, 32_000), "{name}");
        assert_eq!((c.head_dim(), c.kv_heads(), c.max_seq_len, c.rope_theta), (128, n_heads, 2048, 10_000.0), "{name}");
        assert_eq!(c.num_params(), params, "{name}");
        // Once more from the architecture: embedding and output; per layer 4 d^2 + 3 d f + 2 d; the last norm.
        let (d, f, l) = (dim as u64, c.hidden_dim() as u64, n_layers as u64);
        assert_eq!(params, 2 * 32_000 * d + l * (4 * d * d + 3 * d * f + 2 * d) + d, "{name}");
    }
}

#[test]
fn every_preset_is_valid_and_found_in_any_case() {
    for name in ModelConfig::preset_names() {
        let config = ModelConfig::preset(name).unwrap();
        config.validate().unwrap();
        assert_eq!(ModelConfig::preset(&name.to_uppercase()).unwrap(), config);
    }
    // The sizes that their names say, within a fifth.
    for (name, size) in [("15m", 15e6), ("42m", 42e6), ("110m", 110e6), ("1b", 1.1e9)] {
        let params = ModelConfig::preset(name).unwrap().num_params() as f64;
        // TinyStories' sizes count tied embeddings once.
        let tied = ModelConfig::preset(name).unwrap();
        let tied = params - (tied.vocab_size * tied.dim) as f64;
        assert!((params / size - 1.0).abs() < 0.2 || (tied / size - 1.0).abs() < 0.2, "{name}: {params}, tied {tied}");
    }
}

#[test]
fn first_weights_have_the_documented_spread() {
    let config = ModelConfig { dim: 256, n_layers: 8, ..ModelConfig::default() };
    let init = InitConfig { seed: 3, std: 0.02 };
    // A normal cut at 3 sigma has 0.98658 of the spread.
    let cut = 0.986_58;
    for (name, std) in [
        ("tok_embeddings.weight", 0.02),
        ("layers.0.attention.wq.weight", 0.02),
        ("layers.7.feed_forward.w1.weight", 0.02),
        ("output.weight", 0.02),
        ("layers.3.attention.wo.weight", 0.02 / 4.0),
        ("layers.3.feed_forward.w2.weight", 0.02 / 4.0),
    ] {
        let n = 200_000;
        let values = initial_weights(&config, &init, name, n);
        let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / n as f64;
        let spread = (values.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n as f64).sqrt();
        let most = values.iter().fold(0f32, |m, x| m.max(x.abs()));
        // Five standard errors of the mean and of the spread.
        assert!(mean.abs() < 5.0 * std / (n as f64).sqrt(), "{name}: mean {mean}");
        assert!((spread / (std * cut) - 1.0).abs() < 5.0 / (2.0 * n as f64).sqrt(), "{name}: spread {spread}");
        assert!(f64::from(most) <= 3.0001 * std && f64::from(most) > 2.9 * std, "{name}: up to {most}");
    }
    assert!(initial_weights(&config, &init, "layers.0.ffn_norm.weight", 9).iter().all(|&x| x == 1.0));
    // A value depends on seed, name and position alone: not on the length, the depth or the other parameters.
    let wq =
        |config: &ModelConfig, seed: u64, n: usize| initial_weights(config, &InitConfig { seed, std: 0.02 }, "output.weight", n);
    let long = wq(&config, 3, 150_000);
    assert_eq!(wq(&ModelConfig::default(), 3, 70_000), long[..70_000]);
    assert_ne!(wq(&config, 4, 100), long[..100]);
    assert_ne!(initial_weights(&config, &init, "tok_embeddings.weight", 100), long[..100]);
}

/// Grouped queries, more than one layer, an odd sequence.
fn small() -> ModelConfig {
    ModelConfig {
        dim: 48,
        n_layers: 3,
        n_heads: 6,
        n_kv_heads: Some(2),
        vocab_size: 97,
        max_seq_len: 40,
        ..ModelConfig::default()
    }
}

/// A model whose logits differ well (the default spread gives nearly even ones).
fn model<B: LlamaOps>(device: &B::Device) -> Llama<B> {
    Llama::init(&small(), &InitConfig { seed: 5, std: 0.2 }, device).unwrap()
}

const TOKENS: [u32; 40] = {
    let mut tokens = [0; 40];
    let mut i = 0;
    while i < 40 {
        tokens[i] = (i as u32 * 31 + 7) % 97;
        i += 1;
    }
    tokens
};

struct CachedEqualsFull;

impl Job for CachedEqualsFull {
    type Output = ();

    fn run<B: LlamaOps>(self, device: B::Device) -> recua::Result<()> {
        let model = model::<B>(&device);
        let ids: Vec<i32> = TOKENS.iter().map(|&t| t as i32).collect();
        let data = burn::tensor::TensorData::new(ids, [1, TOKENS.len()]);
        let full = model.forward(burn::tensor::Tensor::from_data(data, &device)).into_data().convert::<f32>();
        let full: Vec<f32> = full.iter::<f32>().collect();
        let rows: Vec<&[f32]> = full.chunks(97).collect();
        let spread = full.iter().fold(0f32, |m, x| m.max(x.abs()));
        assert!(spread > 1.0, "the logits should differ: {spread}");
        // Float32 sums in another order: 40 units in the last place of the largest logit.
        let tolerance = 40.0 * f32::EPSILON * spread;
        for max_step_tokens in [1, 7, 39, 40] {
            let config = EngineConfig { max_step_tokens, max_len: Some(40), ..Default::default() };
            let mut engine = Engine::new(model.clone(), config)?;
            engine.submit(Request { prompt: TOKENS.to_vec(), max_new: 0, prompt_logprobs: Some(97), ..Default::default() })?;
            let mut seen = 0;
            while !engine.is_idle() {
                for event in engine.step()? {
                    let Event::Prompt { logprobs, .. } = event else { continue };
                    for (at, (found, logits)) in logprobs.iter().zip(&rows).enumerate() {
                        let sum: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
                        for &(token, logprob) in &found.top {
                            let right = f64::from(logits[token as usize]) - sum.ln();
                            let off = (f64::from(logprob) - right).abs() as f32;
                            assert!(off <= 2.0 * tolerance, "chunks of {max_step_tokens}: position {at} off by {off:e}");
                        }
                        assert_eq!(found.top.len(), 97);
                        seen += 1;
                    }
                }
            }
            assert_eq!(seen, 39);
            // Full.
            let e = engine.submit(Request { prompt: vec![1; 41], ..Default::default() }).unwrap_err();
            assert!(matches!(e, recua::Error::TooLong { got: 41, max: 40, .. }), "{e}");
        }
        Ok(())
    }
}

struct Generation;

impl Job for Generation {
    type Output = ();

    fn run<B: LlamaOps>(self, device: B::Device) -> recua::Result<()> {
        let model = model::<B>(&device);
        let write = |max_new: usize, eos: Option<u32>, stop_after: usize| {
            let sampling = SampleConfig { temperature: 0.0, ..Default::default() };
            let stop_ids = eos.into_iter().collect();
            let request = Request { prompt: TOKENS[..4].to_vec(), max_new, stop_ids, sampling, ..Default::default() };
            let mut seen = Vec::new();
            let mut see = |t| {
                seen.push(t);
                if seen.len() == stop_after { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            let (tokens, why) = generate(&model, request, &mut see)?;
            assert_eq!(tokens, seen, "shown as they come");
            recua::Result::Ok((tokens, why))
        };
        // Greedy: each token is the likeliest after all those before it, by the full forward.
        let (tokens, why) = write(12, None, 0)?;
        assert_eq!((tokens.len(), why), (12, Stop::Length));
        let mut context = TOKENS[..4].to_vec();
        for &token in &tokens {
            let next: Vec<f32> = (0..97)
                .map(|t| recua::eval::logprobs(&model, &[&context[..], &[t]].concat()).map(|p| p[context.len() - 1]))
                .collect::<recua::Result<_>>()?;
            let best = next.iter().fold(f32::NEG_INFINITY, |m, &x| m.max(x));
            assert!(next[token as usize] >= best - 1e-4, "{} is below {best}", next[token as usize]);
            let total: f32 = next.iter().map(|p| p.exp()).sum();
            assert!((total - 1.0).abs() < 1e-5, "probabilities add up to {total}");
            context.push(token);
        }
        // Every way to end.
        let eos = tokens[5];
        let first = tokens.iter().position(|&t| t == eos).unwrap();
        assert_eq!(write(12, Some(eos), 0)?, (tokens[..first].to_vec(), Stop::Eos));
        assert_eq!(write(12, None, 3)?, (tokens[..3].to_vec(), Stop::Caller));
        let (full, why) = write(1000, None, 0)?;
        assert_eq!((why, &full[..12]), (Stop::Full, &tokens[..]));
        assert_eq!(full.len(), 40 - 4 + 1, "the last token needs no room");
        assert_eq!(write(0, None, 0)?, (vec![], Stop::Length));
        Ok(())
    }
}

fn on_cpu_backends(run: impl Fn(BackendName)) {
    let names: Vec<&str> =
        recua::backend::Kind::ALL.into_iter().filter(|k| k.compiled() && k.is_cpu()).map(|k| k.name()).collect();
    assert!(!names.is_empty());
    names.into_iter().for_each(|name| run(name.parse().unwrap()));
}

#[test]
fn cached_decoding_equals_the_full_forward() {
    on_cpu_backends(|b| b.run(CachedEqualsFull).unwrap_or_else(|e| panic!("{b}: {e}")));
}

#[test]
fn generation_is_greedy_at_temperature_0_and_ends_as_told() {
    on_cpu_backends(|b| b.run(Generation).unwrap_or_else(|e| panic!("{b}: {e}")));
}

#[test]
fn backend_names() {
    for name in ["flex", "ndarray", "wgpu", "wgpu:1", "wgpu:cpu", "cuda", "cuda:3"] {
        assert_eq!(name.parse::<BackendName>().unwrap().to_string(), name);
    }
    for name in ["", "tpu", "flex:1", "flex:cpu", "cuda:x", "cuda:-1", "cuda:cpu", "wgpu:", "CUDA"] {
        let e = name.parse::<BackendName>().unwrap_err().to_string();
        assert!(e.starts_with(&format!("backend `{name}`: ")) && e.contains("take one of flex, ndarray"), "{e}");
    }
}
