//! candle's speeds and greedy tokens of a quantized LLaMA, one JSON line: what narrow.py asks of each peer.
//!
//! candle_bench MODEL.gguf [--prefill 512] [--new 64] [--depth 1024] [--many 8] [--repeat 1] [--what prefill,decode,deep,many]
//!              [--gate PROMPTS --gate-new 24]
//!
//! candle makes float32 of F32, F16 and BF16 when it loads them (QMatMul::from_arc); its cache is float32 and is copied each token.
//! Threads: RAYON_NUM_THREADS. PROMPTS: a prompt a line, token ids with spaces between.

use std::collections::HashMap;
use std::time::Instant;

use candle_core::quantized::gguf_file;
use candle_core::{Device, Result, Tensor};
use candle_transformers::models::quantized_llama::ModelWeights;

struct Bench {
    model: ModelWeights,
    vocab: u32,
}

fn median(mut x: Vec<f64>) -> f64 {
    x.sort_by(f64::total_cmp);
    x[x.len() / 2]
}

/// Pseudo-random ids.
fn prompt_of(n: usize, vocab: u32, seed: u64) -> Vec<u32> {
    let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..n)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            300 + (x % u64::from(vocab - 300)) as u32
        })
        .collect()
}

fn likeliest(logits: &[f32]) -> u32 {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]).then(b.cmp(&a))).unwrap_or(0) as u32
}

impl Bench {
    /// Logits after the last token of each of `rows` sequences; `ids` has them one after the other.
    fn read(&mut self, ids: &[u32], rows: usize, at: usize) -> Result<Vec<Vec<f32>>> {
        let x = Tensor::from_slice(ids, (rows, ids.len() / rows), &Device::Cpu)?;
        self.model.forward(&x, at)?.to_vec2()
    }

    fn prefill(&mut self, n: usize, repeat: usize) -> Result<f64> {
        let mut speeds = vec![];
        for i in 0..=repeat {
            self.model.clear_kv_cache();
            let ids = prompt_of(if i > 0 { n } else { n.min(64) }, self.vocab, 3 + i as u64);
            let start = Instant::now();
            likeliest(&self.read(&ids, 1, 0)?[0]);
            if i > 0 {
                speeds.push(n as f64 / start.elapsed().as_secs_f64());
            }
        }
        Ok(median(speeds))
    }

    /// New tokens of `rows` sequences behind `depth`. It cannot cut its cache: a repetition goes on behind the last one.
    fn decode(&mut self, depth: usize, new: usize, rows: usize, repeat: usize) -> Result<f64> {
        self.model.clear_kv_cache();
        let mut at = depth.max(1);
        let logits = self.read(&prompt_of(rows * at, self.vocab, 2), rows, 0)?;
        let mut next: Vec<u32> = logits.iter().map(|l| likeliest(l)).collect();
        let mut speeds = vec![];
        for i in 0..=repeat {
            let n = if i > 0 { new } else { new.min(4) };
            let start = Instant::now();
            for _ in 0..n {
                next = self.read(&next, rows, at)?.iter().map(|l| likeliest(l)).collect();
                at += 1;
            }
            if i > 0 {
                speeds.push((n * rows) as f64 / start.elapsed().as_secs_f64());
            }
        }
        Ok(median(speeds))
    }

    fn gate(&mut self, file: &str, new: usize) -> Result<serde_json::Value> {
        let mut answers = vec![];
        for line in std::fs::read_to_string(file)?.lines() {
            let mut ids: Vec<u32> = line.split_whitespace().filter_map(|x| x.parse().ok()).collect();
            let (mut tokens, mut logprobs, mut at) = (vec![], vec![], 0);
            self.model.clear_kv_cache();
            for _ in 0..new {
                let logits = self.read(&ids, 1, at)?.remove(0);
                at += ids.len();
                let best = likeliest(&logits);
                let sum: f64 = logits.iter().map(|&l| f64::from(l - logits[best as usize]).exp()).sum();
                tokens.push(best);
                logprobs.push(-sum.ln());
                ids = vec![best];
            }
            answers.push(serde_json::json!({"tokens": tokens, "logprobs": logprobs}));
        }
        Ok(answers.into())
    }
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (file, flags) = arguments.split_first().expect("MODEL.gguf");
    let flags: HashMap<&str, &str> = flags.chunks(2).map(|pair| (pair[0].as_str(), pair[1].as_str())).collect();
    let number = |name: &str, default: usize| flags.get(name).map_or(default, |x| x.parse().expect("a number"));
    let start = Instant::now();
    let mut reader = std::fs::File::open(file)?;
    let content = gguf_file::Content::read(&mut reader)?;
    let vocab = content.tensor_infos["token_embd.weight"].shape.dims()[0] as u32;
    let model = ModelWeights::from_gguf(content, &mut reader, &Device::Cpu)?;
    let mut bench = Bench { model, vocab };
    let mut result = serde_json::json!({"loaded_s": start.elapsed().as_secs_f64()});
    let (new, repeat) = (number("--new", 64), number("--repeat", 1));
    for what in flags.get("--what").copied().unwrap_or_default().split(',').filter(|w| !w.is_empty()) {
        result[what] = match what {
            "prefill" => bench.prefill(number("--prefill", 512), repeat)?,
            "decode" => bench.decode(0, new, 1, repeat)?,
            "deep" => bench.decode(number("--depth", 1024), new, 1, repeat)?,
            "many" => bench.decode(0, new, number("--many", 8), repeat)?,
            other => panic!("--what: {other}"),
        }
        .into();
    }
    if let Some(file) = flags.get("--gate") {
        result["answers"] = bench.gate(file, number("--gate-new", 24))?;
    }
    result["threads"] = rayon::current_num_threads().into();
    result["system"] = format!(
        "candle-core 0.11.1, avx2 {}, avx512f {}, f16c {}",
        candle_core::utils::with_avx(),
        cfg!(target_feature = "avx512f"),
        candle_core::utils::with_f16c()
    )
    .into();
    println!("{result}");
    Ok(())
}
