//! The engine: a request's result depends on the request alone, whatever runs beside it; the cache is whole afterwards; what cannot be
//! done is said. (`engine_golden.rs` holds it against transformers.)

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use recua::backend::{BackendName, Flex};
use recua::checkpoint::weights::load_as;
use recua::checkpoint::{self, Checkpoint, Dtype, TensorInfo, TensorSource};
use recua::generate::{
    Engine, EngineConfig, Event, Request, RequestId, RequestStats, SampleConfig, Stop, TokenLogprob, TokenMask, TokenSet,
};
use recua::model::{InitConfig, Llama, ModelConfig};
use recua::ops::{KV_BLOCK, KvDtype, KvShape, LlamaOps, blocks};
use recua::{Error, Result};

/// splitmix64's finaliser.
pub(crate) fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// FNV-1a.
pub(crate) fn hash(text: &str) -> u64 {
    text.bytes().fold(0xCBF2_9CE4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01B3))
}

/// splitmix64.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        ((mix(self.0) >> 33) % n as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }
}

/// One continuation.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Choice {
    pub(crate) tokens: Vec<u32>,
    pub(crate) logprobs: Vec<Option<TokenLogprob>>,
    pub(crate) stop: Option<Stop>,
    pub(crate) stats: RequestStats,
}

/// What was told of one request.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Answer {
    pub(crate) prompt: Option<Vec<TokenLogprob>>,
    pub(crate) choices: BTreeMap<usize, Choice>,
    pub(crate) failed: Option<String>,
}

impl Answer {
    /// Without what depends on the neighbours, and floats as bits.
    fn bits(&self) -> impl PartialEq + std::fmt::Debug + use<> {
        let bits = |l: &TokenLogprob| (l.logprob.to_bits(), l.top.iter().map(|t| (t.0, t.1.to_bits())).collect::<Vec<_>>());
        let choice = |c: &Choice| {
            let logprobs: Vec<_> = c.logprobs.iter().map(|l| l.as_ref().map(bits)).collect();
            (c.tokens.clone(), logprobs, c.stop, c.stats.prompt_tokens, c.stats.new_tokens)
        };
        let prompt = self.prompt.as_ref().map(|p| p.iter().map(bits).collect::<Vec<_>>());
        (prompt, self.choices.values().map(choice).collect::<Vec<_>>(), self.failed.clone())
    }
}

/// An engine and what it told, checked for order.
pub(crate) struct Requests {
    pub(crate) engine: Engine,
    pub(crate) answers: BTreeMap<RequestId, Answer>,
    cancelled: BTreeSet<RequestId>,
    wanted: BTreeMap<RequestId, (usize, usize, bool)>,
}

impl Requests {
    pub(crate) fn new(engine: Engine) -> Self {
        Self { engine, answers: BTreeMap::new(), cancelled: BTreeSet::new(), wanted: BTreeMap::new() }
    }

    pub(crate) fn submit(&mut self, request: Request) -> RequestId {
        let wanted = (request.n, request.prompt.len(), request.prompt_logprobs.is_some());
        let id = self.engine.submit(request).unwrap();
        assert!(self.wanted.insert(id, wanted).is_none(), "{id:?} twice");
        self.answers.insert(id, Answer::default());
        id
    }

    pub(crate) fn cancel(&mut self, id: RequestId) {
        self.engine.cancel(id);
        self.cancelled.insert(id);
    }

    fn is_done(&self, id: RequestId) -> bool {
        let answer = &self.answers[&id];
        answer.failed.is_some() || answer.choices.values().filter(|c| c.stop.is_some()).count() == self.wanted[&id].0
    }

    pub(crate) fn step(&mut self) {
        let events = self.engine.step().unwrap();
        for event in events {
            let id = match &event {
                Event::Prompt { id, .. } | Event::Token { id, .. } | Event::Done { id, .. } | Event::Failed { id, .. } => *id,
            };
            assert!(!self.cancelled.contains(&id), "{event:?} of a request that was given up");
            assert!(!self.is_done(id), "{event:?} after the end");
            let answer = self.answers.get_mut(&id).unwrap();
            let (n, prompt, scores) = self.wanted[&id];
            match event {
                Event::Prompt { logprobs, .. } => {
                    assert!(
                        scores && answer.prompt.is_none() && answer.choices.is_empty(),
                        "the prompt's scores come first, once"
                    );
                    assert_eq!(logprobs.len(), prompt - 1);
                    answer.prompt = Some(logprobs);
                }
                Event::Token { choice, token, logprob, .. } => {
                    assert!(choice < n && answer.prompt.is_some() == scores);
                    let choice = answer.choices.entry(choice).or_default();
                    assert_eq!(choice.stop, None, "a token after the end");
                    choice.tokens.push(token);
                    choice.logprobs.push(logprob);
                }
                Event::Done { choice, stop, stats, .. } => {
                    assert!(choice < n && answer.prompt.is_some() == scores);
                    let choice = answer.choices.entry(choice).or_default();
                    assert_eq!(choice.stop.replace(stop), None, "ended twice");
                    assert_eq!((stats.prompt_tokens, stats.new_tokens), (prompt, choice.tokens.len()));
                    assert!(stats.cached_tokens <= prompt && stats.accepted <= stats.drafted);
                    choice.stats = stats;
                }
                Event::Failed { error, .. } => answer.failed = Some(error.to_string()),
            }
        }
        let stats = self.engine.stats();
        assert!(stats.free_blocks <= stats.blocks);
    }

    /// Steps until nothing is left to do; everything is then told, and the cache is whole.
    pub(crate) fn finish(&mut self) {
        let mut steps = 0;
        while !self.engine.is_idle() {
            self.step();
            steps += 1;
            assert!(steps < 100_000, "no end: {:?}", self.engine.stats());
        }
        for id in self.answers.keys().filter(|id| !self.cancelled.contains(id)) {
            assert!(self.is_done(*id), "{id:?} was not ended: {:?}", self.answers[id]);
        }
        let stats = self.engine.stats();
        assert_eq!(stats.free_blocks, stats.blocks, "blocks are lost");
        assert!(self.engine.step().unwrap().is_empty());
    }
}

/// Bytes of a block in all layers.
pub(crate) fn block_bytes(model: &ModelConfig, dtype: KvDtype) -> u64 {
    let shape = KvShape { blocks: 0, kv_heads: model.kv_heads(), head_dim: model.head_dim(), dtype };
    (shape.block_bytes() * model.n_layers) as u64
}

const VOCAB: usize = 61;
const MAX_LEN: usize = 64;

fn tiny() -> ModelConfig {
    ModelConfig {
        dim: 32,
        n_layers: 2,
        n_heads: 4,
        n_kv_heads: Some(2),
        vocab_size: VOCAB,
        multiple_of: 16,
        max_seq_len: 96,
        ..ModelConfig::default()
    }
}

fn tiny_model() -> Llama<Flex> {
    fn on<B: LlamaOps>() -> Llama<B> {
        Llama::init(&tiny(), &InitConfig { seed: 11, std: 0.25 }, &B::Device::default()).unwrap()
    }
    on()
}

/// Random weights in a type of files.
struct Narrow {
    infos: Vec<TensorInfo>,
}

impl TensorSource for Narrow {
    fn list(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn read(&self, name: &str) -> Result<checkpoint::Tensor<'_>> {
        let info = self.infos.iter().find(|info| info.name == name).unwrap();
        let mut rng = Rng(hash(name));
        let dtype = info.dtype;
        let value = |rng: &mut Rng| (rng.below(2001) as f32 / 1000.0 - 1.0) * 0.2;
        let n: usize = info.shape.iter().product();
        let bytes = if let Ok(bytes) = blocks::narrowed(dtype, &(0..n).map(|_| value(&mut rng)).collect::<Vec<_>>(), n) {
            bytes
        } else {
            // Blocks that are only read: any codes, with small factors.
            let (len, size) = dtype.block();
            let factors: &[usize] = match dtype {
                Dtype::Q5_0 => &[0],
                Dtype::Q6_K => &[208],
                _ => &[0, 2],
            };
            let by = if dtype == Dtype::Q5_0 { 0.01 } else { 0.0003 };
            let mut bytes: Vec<u8> = (0..n / len * size).map(|_| rng.below(256) as u8).collect();
            for block in bytes.chunks_exact_mut(size) {
                for &at in factors {
                    let factor = half::f16::from_f32(by * (1.0 + rng.below(100) as f32 / 100.0));
                    block[at..at + 2].copy_from_slice(&factor.to_le_bytes());
                }
            }
            bytes
        };
        Ok(checkpoint::Tensor { shape: info.shape.clone(), dtype, bytes: bytes.into() })
    }
}

/// A model whose matrices are in a type of files; a mix of all of them without one.
fn narrow_model(dtype: Option<Dtype>) -> Llama<Flex> {
    let config = ModelConfig { dim: 256, n_heads: 8, multiple_of: 256, ..tiny() };
    let all = |i: usize| dtype.unwrap_or(Dtype::ALL[i % Dtype::ALL.len()]);
    let infos = config.parameters().into_iter().enumerate().map(|(i, (name, shape))| {
        let dtype = if shape.len() == 2 { all(i) } else { Dtype::F32 };
        TensorInfo { name, shape, dtype }
    });
    load_as::<Flex>(&Narrow { infos: infos.collect() }, &config, &Default::default(), None).unwrap()
}

/// A mask that allows every token of one remainder by `by`, the next one in turn, `tokens` times; then fails or ends.
#[derive(Clone, Debug)]
struct Turns {
    by: usize,
    left: usize,
    fails: bool,
}

impl TokenMask for Turns {
    fn allowed(&mut self, set: &mut TokenSet) -> Result<()> {
        if self.left == 0 && self.fails {
            return Err(Error::bad_value("mask", "it has turned too often", "turn less"));
        }
        if self.left > 0 {
            (self.left % self.by..VOCAB).step_by(self.by).for_each(|t| set[t / 32] |= 1 << (t % 32));
        }
        Ok(())
    }

    fn take(&mut self, token: u32) -> Result<()> {
        assert_eq!(token as usize % self.by, self.left % self.by, "a token that was not allowed");
        self.left -= 1;
        Ok(())
    }
}

/// A request that can be made again.
#[derive(Clone, Debug, Default)]
struct Spec {
    prompt: Vec<u32>,
    max_new: usize,
    min_new: usize,
    stop_ids: Vec<u32>,
    ignore_eos: bool,
    sampling: SampleConfig,
    n: usize,
    logprobs: Option<usize>,
    prompt_logprobs: Option<usize>,
    speculate: usize,
    mask: Option<Turns>,
}

impl Spec {
    fn random(rng: &mut Rng) -> Self {
        // Few stems, so that prompts begin alike; loops, so that drafts are found.
        let mut of_stem = Rng(rng.below(4) as u64);
        let period = 2 + of_stem.below(30);
        let cycle: Vec<u32> = (0..period).map(|_| of_stem.below(VOCAB) as u32).collect();
        let stem = rng.below(56);
        let mut prompt: Vec<u32> = cycle.iter().copied().cycle().take(stem).collect();
        (0..rng.of(&[0, 0, 1, 3, 8])).for_each(|_| prompt.push(rng.below(VOCAB) as u32));
        if prompt.is_empty() {
            prompt.push(rng.below(VOCAB) as u32);
        }
        prompt.truncate(MAX_LEN);
        let mask = rng.one_in(8).then(|| Turns { by: 1 + rng.below(4), left: rng.below(12), fails: rng.one_in(3) });
        let temperature = rng.of(&[0.0, 0.0, 0.7, 1.5]);
        Self {
            prompt,
            // Some run into the longest sequence.
            max_new: rng.of(&[0, 1, 2, 5, 9, 14, 20, 30]),
            min_new: rng.of(&[0, 0, 3]),
            stop_ids: (0..rng.of(&[0, 1, 4])).map(|_| rng.below(VOCAB) as u32).collect(),
            ignore_eos: rng.one_in(4),
            sampling: SampleConfig {
                temperature,
                top_k: rng.one_in(3).then_some(7),
                top_p: rng.one_in(2).then_some(0.9),
                min_p: rng.one_in(4).then_some(0.05),
                repetition_penalty: rng.of(&[1.0, 1.0, 1.2]),
                presence_penalty: rng.of(&[0.0, 0.0, 0.5]),
                frequency_penalty: rng.of(&[0.0, 0.0, 0.3]),
                logit_bias: (0..rng.of(&[0, 0, 2])).map(|_| (rng.below(VOCAB) as u32, 1.5)).collect(),
                seed: rng.below(1000) as u64,
            },
            n: if mask.is_some() { 1 } else { rng.of(&[1, 1, 1, 2, 4]) },
            logprobs: rng.of(&[None, Some(0), Some(3)]),
            prompt_logprobs: rng.of(&[None, None, Some(0), Some(2)]),
            speculate: rng.of(&[0, 0, 2, 6]),
            mask,
        }
    }

    fn request(&self) -> Request {
        let s = self.clone();
        Request {
            prompt: s.prompt,
            max_new: s.max_new,
            min_new: s.min_new,
            stop_ids: s.stop_ids,
            ignore_eos: s.ignore_eos,
            sampling: s.sampling,
            n: s.n,
            logprobs: s.logprobs,
            prompt_logprobs: s.prompt_logprobs,
            speculate: s.speculate,
            mask: s.mask.map(|m| Box::new(m) as Box<dyn TokenMask>),
            ..Request::default()
        }
    }
}

fn engine(model: &Llama<Flex>, config: EngineConfig) -> Requests {
    Requests::new(Engine::new(model.clone(), EngineConfig { max_len: Some(MAX_LEN), ..config }).unwrap())
}

/// By itself, all of its prompt at once, without drafts.
fn lone(model: &Llama<Flex>, spec: &Spec, kv_cache_dtype: KvDtype) -> Answer {
    let config = EngineConfig { kv_cache_dtype, max_batch: 4, max_step_tokens: 4096, prefix_cache: false, ..Default::default() };
    let mut requests = engine(model, config);
    let id = requests.submit(Request { speculate: 0, ..spec.request() });
    requests.finish();
    requests.answers.remove(&id).unwrap()
}

/// Random requests that come and are given up at random times, under random budgets: each has the result of its lone run to the bit.
/// What was given up had told the beginning of it.
fn schedules(model: &Llama<Flex>, seeds: std::ops::Range<u64>) -> [usize; 5] {
    let shape = model.config().clone();
    let mut rng = Rng(seeds.start);
    let specs: Vec<Spec> = (0..300).map(|_| Spec::random(&mut rng)).collect();
    let mut alone: HashMap<(usize, &str), Rc<Answer>> = HashMap::new();
    let (mut preemptions, mut cached, mut accepted, mut given_up, mut failed) = (0, 0, 0, 0, 0);
    for seed in seeds.clone() {
        let mut rng = Rng(mix(seed));
        let kv_cache_dtype = rng.of(&[KvDtype::F32, KvDtype::F32, KvDtype::Bf16, KvDtype::F16, KvDtype::Int8]);
        let bytes = rng.of(&[4, 4, 5, 6, 8, 12, 20]) * block_bytes(&shape, kv_cache_dtype) + rng.below(64) as u64;
        let config = EngineConfig {
            kv_cache_bytes: Some(bytes),
            kv_cache_dtype,
            max_batch: 1 + rng.below(8),
            max_step_tokens: rng.of(&[1, 2, 3, 5, 8, 16, 33, 64, 128]),
            prefix_cache: !rng.one_in(3),
            ..Default::default()
        };
        let what = format!("schedule {seed}, {config:?}");
        let mut requests = engine(model, config);
        assert!(
            requests.engine.stats().blocks as u64 * block_bytes(&shape, kv_cache_dtype) <= bytes,
            "{what}: more than the budget"
        );
        let mut left = 1 + rng.below(8);
        let mut submitted: Vec<(RequestId, usize)> = Vec::new();
        // Some schedules draw from few requests, so that equal ones meet.
        let few = rng.of(&[3, 20, specs.len()]);
        let first = rng.below(specs.len());
        while left > 0 || !requests.engine.is_idle() {
            if left > 0 && (rng.one_in(4) || requests.engine.is_idle()) {
                let spec = (first + rng.below(few)) % specs.len();
                submitted.push((requests.submit(specs[spec].request()), spec));
                left -= 1;
            } else if rng.one_in(25) && !submitted.is_empty() {
                // Also what has ended: no harm.
                let id = rng.of(&submitted).0;
                if !requests.is_done(id) {
                    requests.cancel(id);
                    given_up += 1;
                } else {
                    requests.engine.cancel(id);
                }
            } else {
                requests.step();
            }
            assert!(requests.engine.stats().steps < 5000, "{what}: no end, {:?}", requests.engine.stats());
        }
        requests.finish();
        for (id, spec) in submitted {
            let want = alone
                .entry((spec, kv_cache_dtype.name()))
                .or_insert_with(|| Rc::new(lone(model, &specs[spec], kv_cache_dtype)))
                .clone();
            let got = &requests.answers[&id];
            if requests.cancelled.contains(&id) {
                for (i, choice) in &got.choices {
                    assert!(want.choices[i].tokens.starts_with(&choice.tokens), "{what}: {:?}, given up", specs[spec]);
                }
            } else {
                assert!(got.bits() == want.bits(), "{what}: {:?} gave\n{got:?}\nexpected\n{want:?}", specs[spec]);
                failed += usize::from(got.failed.is_some());
            }
        }
        let stats = requests.engine.stats();
        preemptions += stats.preemptions;
        cached += stats.cached_tokens;
        accepted += requests.answers.values().flat_map(|a| a.choices.values()).map(|c| c.stats.accepted).sum::<usize>();
    }
    println!(
        "{} schedules: {preemptions} preemptions, {cached} positions from the cache, {accepted} drafted tokens accepted, \
         {given_up} requests given up, {failed} failed by their masks",
        seeds.end - seeds.start
    );
    [preemptions as usize, cached as usize, accepted, given_up, failed]
}

/// That what schedules are for has happened in `n` of them.
fn has_happened(n: usize, [preemptions, cached, accepted, given_up, failed]: [usize; 5]) {
    assert!(preemptions > n / 10 && cached > 5 * n && accepted > n / 10 && given_up > n / 10 && failed > 0);
}

#[test]
fn engine_schedules_1() {
    has_happened(1100, schedules(&tiny_model(), 0..1100));
}

/// The same with weights in types of files.
#[test]
fn engine_schedules_in_every_type() {
    let mut happened = [0; 5];
    for (i, dtype) in Dtype::ALL.into_iter().map(Some).chain([None]).enumerate() {
        let first = 20_000 + 100 * i as u64;
        let counts = schedules(&narrow_model(dtype), first..first + 40);
        happened.iter_mut().zip(counts).for_each(|(sum, n)| *sum += n);
    }
    has_happened(400, happened);
}

#[test]
fn engine_schedules_2() {
    has_happened(1100, schedules(&tiny_model(), 10_000..11_100));
}

#[test]
fn engine_refuses_what_cannot_be() {
    let model = tiny_model();
    let per_block = block_bytes(&tiny(), KvDtype::F32);
    let new = |config| match Engine::new(model.clone(), config) {
        Ok(_) => panic!("an engine that cannot be"),
        Err(e) => e.to_string(),
    };
    let says =
        |error: &str, parts: &[&str]| parts.iter().for_each(|part| assert!(error.contains(part), "`{part}` is not in: {error}"));
    let sized = |bytes, max_len| EngineConfig { kv_cache_bytes: Some(bytes), max_len, ..Default::default() };
    says(&new(sized(4 * per_block - 1, Some(MAX_LEN))), &["kv_cache_bytes", "64", &(4 * per_block).to_string()]);
    says(&new(sized(per_block - 1, None)), &["kv_cache_bytes", "4095", "96"]);
    says(&new(EngineConfig { max_batch: 0, ..Default::default() }), &["max_batch"]);
    says(&new(EngineConfig { max_step_tokens: 0, ..Default::default() }), &["max_step_tokens"]);
    says(&new(EngineConfig { max_len: Some(0), ..Default::default() }), &["max_len"]);

    let mut requests = engine(&model, sized(4 * per_block, None));
    let mut refused = |request: Request, parts: &[&str]| {
        says(&requests.engine.submit(request).unwrap_err().to_string(), parts);
        assert!(requests.engine.is_idle());
    };
    refused(Request::default(), &["token"]);
    let prompt = |prompt: Vec<u32>| Request { prompt, ..Default::default() };
    refused(prompt(vec![1, 61, 2]), &["61", "vocabulary"]);
    refused(prompt(vec![u32::MAX]), &["4294967295", "vocabulary"]);
    refused(prompt(vec![1; MAX_LEN + 1]), &["65", "64"]);
    refused(Request { n: 0, ..prompt(vec![1]) }, &["n"]);
    refused(Request { instead: vec![3], ..prompt(vec![1, 2]) }, &["instead", "prompt_logprobs"]);
    refused(Request { instead: vec![3], prompt_logprobs: Some(0), ..prompt(vec![1]) }, &["instead", "two tokens"]);
    refused(Request { instead: vec![61], prompt_logprobs: Some(0), ..prompt(vec![1, 2]) }, &["61", "vocabulary"]);
    let mask = || Some(Box::new(Turns { by: 1, left: 3, fails: false }) as Box<dyn TokenMask>);
    refused(Request { n: 2, mask: mask(), ..prompt(vec![1]) }, &["n"]);
    let sampling = SampleConfig { temperature: f64::NAN, ..Default::default() };
    refused(Request { sampling, ..prompt(vec![1]) }, &["temperature"]);

    // The longest prompt has one token after it.
    let id = requests.submit(Request { max_new: 5, ..prompt(vec![1; MAX_LEN]) });
    requests.finish();
    let choice = &requests.answers[&id].choices[&0];
    assert_eq!((choice.tokens.len(), choice.stop), (1, Some(Stop::Full)));
}

/// Damaged weights of one token: a request with it fails, those beside it and after it (in the same blocks) do not.
#[test]
fn engine_keeps_a_failure_to_one_request() {
    let damaged = crate::engine_golden::folder("mha", |name, values| {
        if name == "model.embed_tokens.weight" {
            values[7 * 64..8 * 64].fill(f32::NAN);
        }
    });
    let checkpoint = Checkpoint::open(damaged.path()).unwrap();
    for backend in ["flex", "ndarray"] {
        let context = backend.parse::<BackendName>().unwrap().open().unwrap();
        let run = |prompts: &[Vec<u32>], config: EngineConfig| {
            let mut requests = Requests::new(Engine::load(&checkpoint, &context, config).unwrap());
            let request = |prompt: &Vec<u32>| Request {
                prompt: prompt.clone(),
                max_new: 12,
                sampling: SampleConfig { temperature: 0.0, ..Default::default() },
                logprobs: Some(2),
                ..Default::default()
            };
            let ids: Vec<_> = prompts.iter().map(|p| requests.submit(request(p))).collect();
            requests.finish();
            ids.into_iter().map(|id| requests.answers.remove(&id).unwrap()).collect::<Vec<_>>()
        };
        let bytes = block_bytes(&ModelConfig::default(), KvDtype::F32);
        let prompts: Vec<Vec<u32>> = (0..12)
            .map(|i: u32| {
                let mut prompt: Vec<u32> = (0..20 + i).map(|j| 8 + (i * 31 + j * 7) % 500).collect();
                // The damaged ones fill whole blocks with what is not a number.
                if i % 3 == 1 {
                    prompt.iter_mut().skip(i as usize).step_by(2).for_each(|t| *t = 7);
                }
                prompt
            })
            .collect();
        // Three blocks a request: two or three at once, one after the other in the same blocks.
        for (blocks, max_step_tokens) in [(64, 512), (8, 512), (8, 5)] {
            let config =
                EngineConfig { kv_cache_bytes: Some(blocks * bytes), max_len: Some(64), max_step_tokens, ..Default::default() };
            let together = run(&prompts, config.clone());
            for (i, (prompt, got)) in prompts.iter().zip(&together).enumerate() {
                if i % 3 == 1 {
                    assert!(
                        got.failed.as_ref().is_some_and(|e| e.contains("not finite") || e.contains("NaN")),
                        "{backend}: {got:?}"
                    );
                    assert!(got.choices.is_empty(), "{backend}: {got:?}");
                } else {
                    let alone = run(std::slice::from_ref(prompt), config.clone());
                    assert!(
                        got.bits() == alone[0].bits(),
                        "{backend}, {blocks} blocks, request {i}: {got:?}, alone {:?}",
                        alone[0]
                    );
                    assert_eq!(got.failed, None, "{backend}");
                }
            }
        }
    }
}

/// Keys that are no numbers show whatever they are kept as: codes of integers could pass for numbers.
#[test]
fn engine_tells_damaged_keys_in_every_type() {
    let damaged = crate::engine_golden::folder("gqa", |name, values| {
        if name == "model.layers.0.self_attn.k_proj.weight" {
            values[5] = f32::NAN;
        }
    });
    let checkpoint = Checkpoint::open(damaged.path()).unwrap();
    let context = "flex".parse::<BackendName>().unwrap().open().unwrap();
    for kv_cache_dtype in KvDtype::ALL {
        let config = EngineConfig { kv_cache_dtype, ..Default::default() };
        let mut engine = Engine::load(&checkpoint, &context, config).unwrap();
        let request = Request { prompt: vec![1, 2, 3], max_new: 4, ..Default::default() };
        let answer = engine.generate(request, &mut |_| std::ops::ControlFlow::Continue(()));
        assert!(matches!(answer, Err(recua::Error::NotFinite { .. })), "{kv_cache_dtype}: {answer:?}");
    }
}

/// A long prompt does not keep those waiting who write; a text is told token by token.
#[test]
fn engine_reads_prompts_beside_texts() {
    let model = tiny_model();
    let mut requests = engine(&model, EngineConfig { max_step_tokens: 4, max_batch: 8, ..Default::default() });
    let write = |prompt: Vec<u32>| Request { prompt, max_new: 20, ignore_eos: true, ..Default::default() };
    let first = requests.submit(write(vec![5]));
    requests.step();
    assert_eq!(requests.answers[&first].choices[&0].tokens.len(), 1);
    let long = requests.submit(write((0..40).collect()));
    for i in 2..=13 {
        requests.step();
        assert_eq!(requests.answers[&first].choices[&0].tokens.len(), i, "one token a step");
        assert!(requests.answers[&long].choices.is_empty() || i >= 13);
    }
    requests.step();
    requests.step();
    assert!(!requests.answers[&long].choices.is_empty(), "three tokens of its prompt a step");
    // Given up in the middle of a prompt: the next step has none of it.
    let third = requests.submit(write((0..50).rev().collect()));
    requests.step();
    let before = requests.engine.stats().prefill_tokens;
    requests.cancel(third);
    requests.step();
    assert_eq!(requests.engine.stats().prefill_tokens, before);
    requests.finish();
}

#[test]
fn engine_continuations_and_reuse() {
    let model = tiny_model();
    for prefix_cache in [false, true] {
        let mut requests = engine(&model, EngineConfig { prefix_cache, ..Default::default() });
        let sampling = SampleConfig { temperature: 1.5, top_p: None, seed: 4, ..Default::default() };
        let spec = Spec { prompt: (0..40).collect(), max_new: 10, ignore_eos: true, sampling, n: 1, ..Default::default() };
        let one = requests.submit(spec.request());
        requests.finish();
        let four = requests.submit(Request { n: 4, ..spec.request() });
        requests.finish();
        let [one, four] = [one, four].map(|id| requests.answers[&id].clone());
        assert_eq!(one.choices[&0].tokens, four.choices[&0].tokens, "the first does not depend on n");
        let texts: BTreeSet<_> = four.choices.values().map(|c| c.tokens.clone()).collect();
        assert_eq!(texts.len(), 4, "the others are others: {four:?}");
        assert_eq!(one.choices[&0].stats.cached_tokens, 0);
        assert_eq!(four.choices[&0].stats.cached_tokens, if prefix_cache { 32 } else { 0 });
        assert_eq!(requests.engine.stats().cached_tokens, if prefix_cache { 32 } else { 0 });
    }
    fn send<T: Send>() {}
    send::<Engine>();
    assert_eq!(KV_BLOCK, 16, "the numbers above");
}

/// The first continuation ends at its first token while the others hold all blocks of the cache.
#[test]
fn engine_continuations_in_a_full_cache() {
    let model = tiny_model();
    let small = EngineConfig { kv_cache_bytes: Some(4 * block_bytes(&tiny(), KvDtype::F32)), ..Default::default() };
    for seed in 0..12 {
        let sampling = SampleConfig { temperature: 1.5, seed, ..Default::default() };
        let prompt = (0..50 + seed as u32).map(|t| t * 7 % 61).collect();
        let mut spec = Spec { prompt, max_new: 20, sampling, n: 3, logprobs: Some(1), ..Default::default() };
        let first = lone(&model, &spec, KvDtype::F32).choices[&0].tokens[0];
        spec.stop_ids = vec![first];
        let mut requests = engine(&model, small.clone());
        let id = requests.submit(spec.request());
        let beside = requests.submit(Request { n: 1, ..spec.request() });
        requests.finish();
        let want = lone(&model, &spec, KvDtype::F32);
        assert_eq!(want.choices[&0].stop, Some(Stop::Eos));
        assert!(requests.answers[&id].bits() == want.bits(), "seed {seed}: {:?}, expected {want:?}", requests.answers[&id]);
        assert_eq!(requests.answers[&beside].choices[&0].tokens, want.choices[&0].tokens);
    }
}

/// Drafts of the first continuation are right in the step in which the others begin, up to the end of a block and of the text: the
/// others go on in their own blocks, and what is kept is what a later request finds.
#[test]
fn engine_continuations_beside_drafts() {
    let model = tiny_model();
    let mut accepted = 0;
    for seed in 0..40 {
        let mut requests = engine(&model, EngineConfig { max_batch: 4, ..Default::default() });
        let greedy = SampleConfig { temperature: 0.0, ..Default::default() };
        let before = Spec { prompt: vec![5; 17], max_new: 1, sampling: greedy.clone(), n: 1, ..Default::default() };
        requests.submit(before.request());
        requests.finish();
        // Nearly always the same token: the text before says so too.
        let sampling = SampleConfig { temperature: 1.0, top_p: None, logit_bias: vec![(5, 11.0)], seed, ..Default::default() };
        let max_new = 12 + seed as usize % 8;
        let spec = Spec { max_new, sampling, n: 3, speculate: 16, logprobs: Some(1), ..before.clone() };
        let id = requests.submit(spec.request());
        requests.finish();
        let want = lone(&model, &spec, KvDtype::F32);
        assert!(requests.answers[&id].bits() == want.bits(), "seed {seed}: {:?}, expected {want:?}", requests.answers[&id]);
        accepted += requests.answers[&id].choices[&0].stats.accepted;
        for n in [33, 40, 50] {
            let after = Spec { prompt: vec![5; n], max_new: 4, logprobs: Some(2), ..before.clone() };
            let id = requests.submit(after.request());
            requests.finish();
            let want = lone(&model, &after, KvDtype::F32);
            assert!(
                requests.answers[&id].bits() == want.bits(),
                "seed {seed}, after: {:?}, expected {want:?}",
                requests.answers[&id]
            );
        }
    }
    assert!(accepted > 100, "{accepted} drafted tokens were accepted");
}

/// Log-probabilities of prompts as bits: of all their tokens, of the likeliest, and of tokens in the place of the last.
fn scores(model: &Llama<Flex>, prompts: &[Vec<u32>], instead: &[u32]) -> Vec<(Vec<u32>, Vec<u32>)> {
    let mut engine = Engine::new(model.clone(), EngineConfig { max_len: Some(MAX_LEN), ..Default::default() }).unwrap();
    let request = |prompt: &Vec<u32>| Request {
        prompt: prompt.clone(),
        max_new: 0,
        prompt_logprobs: Some(2),
        instead: instead.to_vec(),
        ..Default::default()
    };
    let ids: Vec<RequestId> = prompts.iter().map(|prompt| engine.submit(request(prompt)).unwrap()).collect();
    let mut found = HashMap::new();
    while !engine.is_idle() {
        for event in engine.step().unwrap() {
            let Event::Prompt { id, logprobs, instead } = event else { continue };
            let own = logprobs.iter().flat_map(|l| std::iter::once(l.logprob).chain(l.top.iter().map(|top| top.1)));
            let bits = (own.map(f32::to_bits).collect(), instead.into_iter().map(f32::to_bits).collect());
            assert!(found.insert(id, bits).is_none());
        }
    }
    ids.iter().map(|id| found.remove(id).unwrap()).collect()
}

#[test]
fn tokens_in_the_place_of_the_last_are_scored_as_by_passes_of_their_own() {
    let model = tiny_model();
    let mut rng = Rng(5);
    for len in [2, KV_BLOCK, KV_BLOCK + 1, 40] {
        let prompt: Vec<u32> = (0..len).map(|_| rng.below(VOCAB) as u32).collect();
        let instead: Vec<u32> = (0..VOCAB as u32).rev().collect();
        let [(_, together)] = &scores(&model, std::slice::from_ref(&prompt), &instead)[..] else { panic!("one prompt") };
        let ends = |token: &u32| [&prompt[..len - 1], &[*token]].concat();
        let alone = scores(&model, &instead.iter().map(ends).collect::<Vec<_>>(), &[]);
        // Of a row's three numbers the first is the token's.
        let alone: Vec<u32> = alone.iter().map(|(own, _)| own[own.len() - 3]).collect();
        assert_eq!(together, &alone, "a prompt of {len} tokens");
        assert!(alone.iter().collect::<BTreeSet<_>>().len() > VOCAB / 2, "the scores should differ");
    }
}

#[test]
fn scores_do_not_depend_on_the_number_of_threads() {
    let model = tiny_model();
    let mut rng = Rng(6);
    let prompts: Vec<Vec<u32>> = (0..9).map(|i| (0..7 * i + 2).map(|_| rng.below(VOCAB) as u32).collect()).collect();
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| scores(&model, &prompts, &[3, 5]))
    };
    let one = with(1);
    assert!(one.iter().zip(&prompts).all(|((own, instead), prompt)| own.len() == 3 * (prompt.len() - 1) && instead.len() == 2));
    assert_eq!(one, with(2));
    assert_eq!(one, with(7));
}
