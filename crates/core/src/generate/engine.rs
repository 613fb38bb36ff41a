//! The engine: requests join and leave between steps.
// STAND-IN of branch h-cli until the engine is there: take the other side whole when merging.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use super::{Event, Request, RequestId, RequestStats, Sampler, Stop, TokenLogprob, token_tensor};
use crate::backend::DeviceContext;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::model::Llama;
use crate::ops::{Job, KvDtype, LlamaOps};

/// How an engine computes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EngineConfig {
    /// Type of the weights: `None`: float32.
    pub dtype: Option<String>,
    /// Longest sequence, prompt and text. `None`: the model's `max_seq_len`, as far as the cache reaches.
    pub max_len: Option<usize>,
    /// Bytes of keys and values, never exceeded. `None`: room for `max_batch` sequences of `max_len`, at most a quarter of the memory.
    pub kv_cache_bytes: Option<u64>,
    /// Type of keys and values.
    pub kv_cache_dtype: KvDtype,
    /// Most sequences that decode at once.
    pub max_batch: usize,
    /// Most rows (tokens) of a step: what decode leaves of them is for chunks of prompts.
    pub max_step_tokens: usize,
    /// Blocks are shared between requests that begin alike.
    pub prefix_cache: bool,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            dtype: None,
            max_len: None,
            kv_cache_bytes: None,
            kv_cache_dtype: KvDtype::F32,
            max_batch: 16,
            max_step_tokens: 256,
            prefix_cache: true,
        }
    }
}

/// Counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct EngineStats {
    pub steps: u64,
    pub prefill_tokens: u64,
    pub decode_tokens: u64,
    pub cached_tokens: u64,
    pub preemptions: u64,
    pub drafted: u64,
    pub accepted: u64,
    pub blocks: usize,
    pub free_blocks: usize,
}

type Logits = dyn Fn(&[u32]) -> Result<Vec<f32>> + Send;

struct Live {
    id: RequestId,
    request: Request,
    choice: usize,
    sampler: Sampler,
    context: Vec<u32>,
    begun: bool,
}

/// Runs requests.
pub struct Engine {
    context: Option<DeviceContext>,
    logits: Box<Logits>,
    vocab: usize,
    config: EngineConfig,
    max_len: usize,
    live: Vec<Live>,
    next: u64,
    stats: EngineStats,
}

impl Engine {
    #[allow(missing_docs)]
    pub fn load(checkpoint: &Checkpoint, context: &DeviceContext, config: EngineConfig) -> Result<Self> {
        struct Load<'a>(&'a Checkpoint, EngineConfig);
        impl Job for Load<'_> {
            type Output = Engine;
            fn run<B: LlamaOps>(self, device: B::Device) -> Result<Engine> {
                Engine::new(self.0.load::<B>(&device)?, self.1)
            }
        }
        let mut engine = context.run(Load(checkpoint, config))?;
        engine.context = Some(context.clone());
        Ok(engine)
    }

    #[allow(missing_docs)]
    pub fn new<B: LlamaOps>(model: Llama<B>, config: EngineConfig) -> Result<Self> {
        let (vocab, max) = (model.config().vocab_size, model.config().max_seq_len);
        let logits = move |tokens: &[u32]| {
            let x = model.hidden(token_tensor(tokens, &model.device()));
            let last = x.narrow(1, tokens.len() - 1, 1);
            Ok(model.output.forward(last).into_data().convert::<f32>().iter::<f32>().collect())
        };
        let max_len = config.max_len.unwrap_or(max).min(max);
        let (live, stats) = (Vec::new(), EngineStats::default());
        Ok(Self { context: None, logits: Box::new(logits), vocab, config, max_len, live, next: 0, stats })
    }

    #[allow(missing_docs)]
    pub fn submit(&mut self, request: Request) -> Result<RequestId> {
        super::check_tokens(&request.prompt, self.vocab)?;
        if request.prompt.len() > self.max_len {
            let hint = "shorten the prompt or generate fewer tokens".into();
            return Err(Error::TooLong { what: "prompt and text".into(), got: request.prompt.len(), max: self.max_len, hint });
        }
        let id = RequestId(self.next);
        self.next += 1;
        let mut mask = request.mask;
        for choice in 0..request.n {
            let mut sampling = request.sampling.clone();
            sampling.seed += choice as u64;
            self.live.push(Live {
                id,
                sampler: Sampler::new(sampling.clone())?,
                request: Request {
                    prompt: request.prompt.clone(),
                    stop_ids: request.stop_ids.clone(),
                    sampling,
                    mask: mask.take(),
                    ..request
                },
                choice,
                context: request.prompt.clone(),
                begun: false,
            });
        }
        Ok(id)
    }

    #[allow(missing_docs)]
    pub fn step(&mut self) -> Result<Vec<Event>> {
        let mut events = Vec::new();
        self.stats.steps += 1;
        let context = self.context.clone();
        let mut done = Vec::new();
        for i in 0..self.live.len().min(self.config.max_batch) {
            let one = match &context {
                Some(c) => c.enter(|| self.one(i, &mut events)),
                None => self.one(i, &mut events),
            };
            let live = &self.live[i];
            let (id, choice) = (live.id, live.choice);
            let new = live.context.len() - live.request.prompt.len();
            let stats = RequestStats { prompt_tokens: live.request.prompt.len(), new_tokens: new, ..Default::default() };
            match one {
                Ok(None) => continue,
                Ok(Some(stop)) => events.push(Event::Done { id, choice, stop, stats }),
                Err(error) => events.push(Event::Failed { id, error }),
            }
            done.push(i);
        }
        for i in done.into_iter().rev() {
            self.live.remove(i);
        }
        Ok(events)
    }

    fn one(&mut self, i: usize, events: &mut Vec<Event>) -> Result<Option<Stop>> {
        let live = &mut self.live[i];
        let r = &live.request;
        let lp = |logits: &[f32], token: u32, k: usize| {
            let max = logits.iter().copied().fold(f32::MIN, f32::max);
            let sum = logits.iter().map(|l| (l - max).exp()).sum::<f32>().ln() + max;
            let mut all: Vec<(u32, f32)> = logits.iter().enumerate().map(|(i, l)| (i as u32, l - sum)).collect();
            all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            all.truncate(k);
            TokenLogprob { logprob: logits[token as usize] - sum, top: all }
        };
        if !live.begun {
            live.begun = true;
            self.stats.prefill_tokens += r.prompt.len() as u64;
            if let Some(k) = r.prompt_logprobs
                && live.choice == 0
            {
                let of = |n: usize| Ok(lp(&(self.logits)(&r.prompt[..n])?, r.prompt[n], k));
                let logprobs = (1..r.prompt.len()).map(of).collect::<Result<_>>()?;
                events.push(Event::Prompt { id: live.id, logprobs });
            }
        }
        let new = live.context.len() - r.prompt.len();
        if new == r.max_new {
            return Ok(Some(Stop::Length));
        }
        if live.context.len() >= self.max_len {
            return Ok(Some(Stop::Full));
        }
        let mut logits = (self.logits)(&live.context)?;
        let raw = logits.clone();
        if new < r.min_new {
            r.stop_ids.iter().for_each(|id| logits[*id as usize] = f32::NEG_INFINITY);
        }
        if let Some(mask) = &mut live.request.mask {
            let mut set = vec![0u32; self.vocab.div_ceil(32)];
            mask.allowed(&mut set)?;
            if set.iter().all(|w| *w == 0) {
                return Ok(Some(Stop::Mask));
            }
            for (t, l) in logits.iter_mut().enumerate() {
                if set[t / 32] >> (t % 32) & 1 == 0 {
                    *l = f32::NEG_INFINITY;
                }
            }
        }
        let token = live.sampler.sample(&mut logits, &live.context)?;
        if !live.request.ignore_eos && live.request.stop_ids.contains(&token) {
            return Ok(Some(Stop::Eos));
        }
        if let Some(mask) = &mut live.request.mask {
            mask.take(token)?;
        }
        self.stats.decode_tokens += 1;
        live.context.push(token);
        let logprob = live.request.logprobs.map(|k| lp(&raw, token, k));
        events.push(Event::Token { id: live.id, choice: live.choice, token, logprob });
        Ok((new + 1 == live.request.max_new).then_some(Stop::Length))
    }

    #[allow(missing_docs)]
    pub fn cancel(&mut self, id: RequestId) {
        self.live.retain(|l| l.id != id);
    }

    #[allow(missing_docs)]
    pub fn is_idle(&self) -> bool {
        self.live.is_empty()
    }

    #[allow(missing_docs)]
    pub fn describe(&self) -> String {
        format!("stand-in, sequences of up to {}", self.max_len)
    }

    #[allow(missing_docs)]
    pub fn stats(&self) -> EngineStats {
        self.stats
    }

    #[allow(missing_docs)]
    pub fn generate(&mut self, request: Request, see: &mut dyn FnMut(u32) -> ControlFlow<()>) -> Result<(Vec<u32>, Stop)> {
        let id = self.submit(request)?;
        let mut tokens = Vec::new();
        loop {
            for event in self.step()? {
                match event {
                    Event::Token { token, .. } => {
                        tokens.push(token);
                        if see(token).is_break() {
                            self.cancel(id);
                            return Ok((tokens, Stop::Caller));
                        }
                    }
                    Event::Done { stop, .. } => return Ok((tokens, stop)),
                    Event::Failed { error, .. } => return Err(error),
                    Event::Prompt { .. } => {}
                }
            }
        }
    }
}
