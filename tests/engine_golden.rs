//! The engine against transformers: greedy continuations and log-probabilities of random LLaMAs (`tests/golden_generate/`), however
//! the requests are run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use recua::checkpoint::Checkpoint;
use recua::generate::{Engine, EngineConfig, Request, SampleConfig};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;

use crate::engine::{Answer, Requests, hash, mix};

/// Float32 against another float32; `make.py` prints what float64 differs by (some 1e-5).
const TOLERANCE: f32 = 1e-4;

/// The weights of `make.py`: bits of a hash of the parameter's name and the element's index, times the parameter's scale.
struct Formula {
    width: usize,
    tied: bool,
}

impl Formula {
    fn weights(&self, name: &str, n: usize) -> Vec<f32> {
        let seed = hash(name);
        let scale = match name.trim_end_matches(".weight").rsplit('.').next() {
            Some("embed_tokens") => {
                if self.tied {
                    0.25
                } else {
                    1.0
                }
            }
            Some("lm_head") => 0.5,
            _ => (2.0 / (self.width as f64).sqrt()) as f32,
        };
        (1..=n as u64)
            .map(|i| {
                let bits = mix(seed.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15))) >> 48;
                let unit = (bits as f32 - 32767.5) / 32768.0;
                if name.ends_with("norm.weight") { 1.0 + 0.25 * unit } else { scale * unit }
            })
            .collect()
    }
}

/// A Hugging Face folder of a case; `change` may alter a parameter.
pub(crate) fn folder(case: &str, change: impl Fn(&str, &mut [f32])) -> tempfile::TempDir {
    let text = std::fs::read_to_string(golden().join(format!("{case}.json"))).unwrap();
    let config: Value = serde_json::from_str(&text).unwrap();
    let size = |key: &str| config[key].as_u64().unwrap() as usize;
    let (d, f, vocab) = (size("hidden_size"), size("intermediate_size"), size("vocab_size"));
    let kv = d / size("num_attention_heads") * size("num_key_value_heads");
    let tied = config["tie_word_embeddings"].as_bool().unwrap();
    let mut shapes = vec![("model.embed_tokens".to_owned(), vec![vocab, d]), ("model.norm".to_owned(), vec![d])];
    if !tied {
        shapes.push(("lm_head".to_owned(), vec![vocab, d]));
    }
    for i in 0..size("num_hidden_layers") {
        let matrices = [
            ("self_attn.q_proj", [d, d]),
            ("self_attn.k_proj", [kv, d]),
            ("self_attn.v_proj", [kv, d]),
            ("self_attn.o_proj", [d, d]),
            ("mlp.gate_proj", [f, d]),
            ("mlp.up_proj", [f, d]),
            ("mlp.down_proj", [d, f]),
        ];
        shapes.extend(matrices.map(|(name, shape)| (format!("model.layers.{i}.{name}"), shape.to_vec())));
        shapes.extend(["input_layernorm", "post_attention_layernorm"].map(|n| (format!("model.layers.{i}.{n}"), vec![d])));
    }
    let formula = Formula { width: d, tied };
    let tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let name = format!("{name}.weight");
            let mut values = formula.weights(&name, shape.iter().product());
            change(&name, &mut values);
            (name, (shape, values.into_iter().flat_map(f32::to_le_bytes).collect()))
        })
        .collect();
    let views = tensors.iter().map(|(name, (shape, bytes))| (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    std::fs::write(dir.path().join("config.json"), text).unwrap();
    dir
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden_generate")
}

/// A prompt and what transformers makes of it.
struct Expected {
    prompt: Vec<u32>,
    prompt_logprobs: Vec<f32>,
    tokens: Vec<u32>,
    logprobs: Vec<f32>,
    top: Vec<Vec<(u32, f32)>>,
}

struct Case {
    name: &'static str,
    folder: tempfile::TempDir,
    expected: Vec<Expected>,
}

fn read(name: &'static str) -> Case {
    let bytes = std::fs::read(golden().join(format!("{name}.safetensors"))).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let words =
        |key: &str| -> Vec<[u8; 4]> { file.tensor(key).unwrap().data().chunks_exact(4).map(|b| b.try_into().unwrap()).collect() };
    let ints = |key: &str| -> Vec<u32> { words(key).into_iter().map(u32::from_le_bytes).collect() };
    let floats = |key: &str| -> Vec<f32> { words(key).into_iter().map(f32::from_le_bytes).collect() };
    let (lengths, prompts, scores) = (ints("lengths"), ints("prompts"), floats("prompt_logprobs"));
    let (tokens, logprobs, ids, values) = (ints("tokens"), floats("logprobs"), ints("top_ids"), floats("top_logprobs"));
    let (new, top) = (tokens.len() / lengths.len(), ids.len() / tokens.len());
    let (mut at, mut scored) = (0, 0);
    let mut expected = Vec::new();
    for (i, &n) in lengths.iter().enumerate() {
        let n = n as usize;
        let pairs: Vec<(u32, f32)> =
            ids.iter().copied().zip(values.iter().copied()).skip(i * new * top).take(new * top).collect();
        expected.push(Expected {
            prompt: prompts[at..at + n].to_vec(),
            prompt_logprobs: scores[scored..scored + n - 1].to_vec(),
            tokens: tokens[i * new..(i + 1) * new].to_vec(),
            logprobs: logprobs[i * new..(i + 1) * new].to_vec(),
            top: pairs.chunks(top).map(<[_]>::to_vec).collect(),
        });
        (at, scored) = (at + n, scored + n - 1);
    }
    Case { name, folder: folder(name, |_, _| {}), expected }
}

fn cases() -> &'static [Case] {
    static CASES: OnceLock<Vec<Case>> = OnceLock::new();
    CASES.get_or_init(|| ["mha", "gqa", "tied", "llama3"].map(read).into())
}

impl Expected {
    /// After the prompt and the first `from` tokens of the text.
    fn request(&self, from: usize, scores: bool) -> Request {
        Request {
            prompt: [&self.prompt[..], &self.tokens[..from]].concat(),
            max_new: self.tokens.len() - from,
            sampling: SampleConfig { temperature: 0.0, ..Default::default() },
            logprobs: Some(self.top[0].len()),
            prompt_logprobs: scores.then_some(0),
            ..Default::default()
        }
    }

    fn check(&self, what: &str, from: usize, answer: &Answer) {
        assert!(answer.choices[&0].logprobs.iter().all(Option::is_some), "{what}");
        self.check_within(TOLERANCE, what, from, answer);
    }

    fn check_within(&self, tolerance: f32, what: &str, from: usize, answer: &Answer) {
        let what = format!("{what}, prompt of {} and {from}", self.prompt.len());
        let close = |place: usize, got: f32, want: f32| {
            assert!((got - want).abs() <= tolerance, "{what}: log-probability {place} is {got}, expected {want}");
        };
        assert_eq!(answer.failed, None, "{what}");
        let choice = &answer.choices[&0];
        assert_eq!(choice.tokens, self.tokens[from..], "{what}");
        for (i, got) in choice.logprobs.iter().enumerate() {
            let Some(got) = got else { continue };
            close(i, got.logprob, self.logprobs[from + i]);
            let ids = |top: &[(u32, f32)]| top.iter().map(|t| t.0).collect::<Vec<_>>();
            assert_eq!(ids(&got.top), ids(&self.top[from + i]), "{what}: likeliest at {i}");
            got.top.iter().zip(&self.top[from + i]).for_each(|(got, want)| close(i, got.1, want.1));
        }
        if let Some(scores) = &answer.prompt {
            let want = self.prompt_logprobs.iter().chain(&self.logprobs[..from]);
            assert_eq!(scores.len(), self.prompt.len() + from - 1, "{what}");
            scores.iter().zip(want).enumerate().for_each(|(i, (got, want))| close(i, got.logprob, *want));
        }
    }
}

const SIXTEEN: EngineConfig = EngineConfig {
    dtype: None,
    max_len: None,
    kv_cache_bytes: None,
    kv_cache_dtype: recua::ops::KvDtype::F32,
    max_batch: 16,
    max_step_tokens: 512,
    prefix_cache: false,
};

/// Each case on a backend, by an engine with this configuration.
fn with_engines(backend: &str, config: &EngineConfig, mut run: impl FnMut(&Case, Engine)) {
    let context = backend.parse::<recua::backend::BackendName>().unwrap().open().unwrap();
    for case in cases() {
        let checkpoint = Checkpoint::open(case.folder.path()).unwrap();
        run(case, Engine::load(&checkpoint, &context, config.clone()).unwrap_or_else(|e| panic!("{}: {e}", case.name)));
    }
}

/// All prompts at once.
fn all_at_once(how: &str, config: &EngineConfig, scores: bool, alter: impl Fn(&mut Request)) {
    with_engines("flex", config, |case, engine| {
        let mut requests = Requests::new(engine);
        let ids: Vec<_> = case
            .expected
            .iter()
            .map(|e| {
                let mut request = e.request(0, scores);
                alter(&mut request);
                requests.submit(request)
            })
            .collect();
        requests.finish();
        for (id, e) in ids.iter().zip(&case.expected) {
            e.check(&format!("{}, {how}", case.name), 0, &requests.answers[id]);
        }
    });
}

fn lone(backend: &str, alter: impl Fn(&mut Request)) {
    with_engines(backend, &SIXTEEN, |case, engine| {
        let mut requests = Requests::new(engine);
        for e in &case.expected {
            let mut request = e.request(0, true);
            alter(&mut request);
            let id = requests.submit(request);
            requests.finish();
            e.check(&format!("{}, lone, {backend}", case.name), 0, &requests.answers[&id]);
        }
    });
}

#[test]
fn engine_golden_lone() {
    lone("flex", |_| {});
}

#[test]
fn engine_golden_on_ndarray() {
    lone("ndarray", |_| {});
}

#[test]
fn engine_golden_speculative() {
    lone("flex", |request| request.speculate = 4);
    all_at_once("speculative", &EngineConfig { max_step_tokens: 40, ..SIXTEEN }, false, |request| request.speculate = 8);
}

#[test]
fn engine_golden_batched() {
    all_at_once("batched", &SIXTEEN, true, |_| {});
}

#[test]
fn engine_golden_chunked() {
    for max_step_tokens in [1, 7, 64] {
        all_at_once(
            &format!("chunks of {max_step_tokens}"),
            &EngineConfig { max_step_tokens, ..SIXTEEN },
            max_step_tokens > 1,
            |_| {},
        );
    }
}

/// Prompts that begin with a prompt before them, by a different number of tokens each.
#[test]
fn engine_golden_with_shared_prefixes() {
    with_engines("flex", &EngineConfig { prefix_cache: true, ..SIXTEEN }, |case, engine| {
        let mut requests = Requests::new(engine);
        for round in 0..3 {
            let ids: Vec<_> = case
                .expected
                .iter()
                .enumerate()
                .map(|(i, e)| {
                    let from = round * (i % 16);
                    (requests.submit(e.request(from, false)), from)
                })
                .collect();
            let cached = requests.engine.stats().cached_tokens;
            requests.finish();
            for ((id, from), e) in ids.iter().zip(&case.expected) {
                e.check(&format!("{}, shared prefixes, round {round}", case.name), *from, &requests.answers[id]);
            }
            let cached = requests.engine.stats().cached_tokens - cached;
            assert!(round == 0 || cached > 2000, "round {round}: {cached} positions came from the cache");
        }
    });
}

/// A cache that holds one long sequence and a half, for sixteen.
#[test]
fn engine_golden_preempted() {
    with_engines("flex", &EngineConfig { prefix_cache: true, ..SIXTEEN }, |case, engine| {
        let model = engine.model().clone();
        drop(engine);
        let bytes = 33 * crate::engine::block_bytes(&model, SIXTEEN.kv_cache_dtype);
        for prefix_cache in [false, true] {
            let config = EngineConfig { kv_cache_bytes: Some(bytes), max_len: Some(340), prefix_cache, ..SIXTEEN };
            let context = "flex".parse::<recua::backend::BackendName>().unwrap().open().unwrap();
            let engine = Engine::load(&Checkpoint::open(case.folder.path()).unwrap(), &context, config).unwrap();
            let mut requests = Requests::new(engine);
            let ids: Vec<_> = case.expected.iter().enumerate().map(|(i, e)| requests.submit(e.request(0, i % 2 == 0))).collect();
            requests.finish();
            let preemptions = requests.engine.stats().preemptions;
            assert!(preemptions > 0, "{}: nobody was preempted", case.name);
            for (id, e) in ids.iter().zip(&case.expected) {
                e.check(&format!("{}, {preemptions} preemptions", case.name), 0, &requests.answers[id]);
            }
        }
    });
}

/// Between the prompts are others that are given up, each some steps later than the one before.
#[test]
fn engine_golden_beside_cancelled() {
    with_engines("flex", &EngineConfig { max_step_tokens: 96, prefix_cache: true, ..SIXTEEN }, |case, engine| {
        let mut requests = Requests::new(engine);
        let (mut ids, mut others) = (Vec::new(), Vec::new());
        for (i, e) in case.expected.iter().enumerate() {
            let mut other = e.request(0, i % 3 == 0);
            other.prompt.reverse();
            other.n = 1 + i % 3;
            // Half of them begin as the prompt that they stand beside.
            if i % 2 == 0 {
                other.prompt = [&e.prompt[..], &other.prompt[..]].concat();
                other.prompt.truncate(400);
            }
            others.push(requests.submit(other));
            ids.push(requests.submit(e.request(0, false)));
        }
        for (i, id) in others.into_iter().enumerate() {
            (0..i % 4).for_each(|_| requests.step());
            requests.cancel(id);
        }
        requests.finish();
        for (id, e) in ids.iter().zip(&case.expected) {
            e.check(&format!("{}, beside cancelled", case.name), 0, &requests.answers[id]);
        }
    });
}

/// On a GPU's kernels (software Vulkan): five times the tolerance, as in `golden.rs`; with log-probabilities, and without any, where the
/// device draws the tokens.
#[cfg(feature = "wgpu")]
#[test]
fn engine_golden_on_wgpu() {
    with_engines(
        "wgpu:cpu",
        &EngineConfig { prefix_cache: true, max_step_tokens: 40, max_len: Some(96), ..SIXTEEN },
        |case, engine| {
            let mut requests = Requests::new(engine);
            for logprobs in [Some(case.expected[0].top[0].len()), None] {
                let short: Vec<_> = case.expected.iter().filter(|e| e.prompt.len() <= 64).collect();
                let ids: Vec<_> =
                    short.iter().map(|e| requests.submit(Request { logprobs, ..e.request(0, logprobs.is_some()) })).collect();
                requests.finish();
                for (id, e) in ids.iter().zip(&short) {
                    e.check_within(5.0 * TOLERANCE, &format!("{}, wgpu:cpu, {logprobs:?}", case.name), 0, &requests.answers[id]);
                }
            }
        },
    );
}
