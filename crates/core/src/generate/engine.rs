//! The engine: continuous batching over a cache of blocks. Requests join and leave between steps; a step is one forward pass over one
//! row of each text that is being written and chunks of the prompts that are not read yet, under a budget of rows.
//!
//! A request's result depends on the request and its seed alone, on CPU to the bit: not on its neighbours, on how its prompt was cut,
//! on what the cache held, on whether it was computed twice. It is synchronous and knows token ids only.

use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::cache::BlockPool;
use super::logprobs::{Scored, score_rows};
use super::runner::{CacheSize, ModelRunner, Runner, StepInput};
use super::sequence::{Outcome, Sequence, Wanted};
use super::{Event, Request, RequestId, RequestStats, Sampler, Stop, check_tokens};
use crate::backend::DeviceContext;
use crate::checkpoint::{Checkpoint, Dtype};
use crate::error::{Error, Result};
use crate::model::regions::{Regions, Single};
use crate::model::{Llama, ModelConfig};
use crate::ops::{Job, KV_BLOCK, KvDtype, LlamaOps, SampleRows};

/// How an engine computes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EngineConfig {
    /// Type of the weights: `f32`, `bf16`, `f16`, as the backend has them; `q8_0`, `q4_0`. `None`: a GGUF file's own, else float32.
    pub dtype: Option<String>,
    /// Longest sequence, prompt and text. `None`: the model's `max_seq_len`, as far as the cache reaches.
    pub max_len: Option<usize>,
    /// Bytes of keys and values, never exceeded. `None`: room for `max_batch` sequences of `max_len`, at most a quarter of the memory.
    pub kv_cache_bytes: Option<u64>,
    /// Type of keys and values.
    pub kv_cache_dtype: KvDtype,
    /// Most sequences that are computed at once.
    pub max_batch: usize,
    /// Most rows (tokens) of a step; what texts leave of them is for chunks of prompts.
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
            max_step_tokens: 512,
            prefix_cache: true,
        }
    }
}

impl EngineConfig {
    /// # Errors
    /// [`Error::BadValue`] for a setting that cannot be.
    pub fn validate(&self) -> Result<()> {
        self.weights()?;
        let bad = |key: &str, problem: String| Err(Error::bad_value(key, problem, "see `recua generate --help`"));
        if self.max_batch == 0 {
            return bad("max_batch", "expected at least 1, got 0".into());
        }
        if self.max_step_tokens == 0 {
            return bad("max_step_tokens", "expected at least 1, got 0".into());
        }
        if self.max_len == Some(0) {
            return bad("max_len", "expected at least 1, got 0".into());
        }
        Ok(())
    }

    /// The type of the weights.
    pub(crate) fn weights(&self) -> Result<Option<Dtype>> {
        match self.dtype.as_deref() {
            None => Ok(None),
            Some("f32") => Ok(Some(Dtype::F32)),
            Some("bf16") => Ok(Some(Dtype::BF16)),
            Some("f16") => Ok(Some(Dtype::F16)),
            Some("q8_0") => Ok(Some(Dtype::Q8_0)),
            Some("q4_0") => Ok(Some(Dtype::Q4_0)),
            Some(other) => {
                Err(Error::bad_value("dtype", format!("`{other}` is unknown"), "take one of f32, bf16, f16, q8_0, q4_0"))
            }
        }
    }
}

/// What an engine has done, and how full it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineStats {
    /// Forward passes.
    pub steps: u64,
    /// Rows of prompts, and of texts that were computed again.
    pub prefill_tokens: u64,
    /// Rows of texts, drafted ones included.
    pub decode_tokens: u64,
    /// Positions that the cache had already.
    pub cached_tokens: u64,
    /// Times that a text gave its blocks up.
    pub preemptions: u64,
    /// Tokens drafted.
    pub drafted: u64,
    /// Drafted tokens that were right.
    pub accepted: u64,
    /// Blocks of the cache.
    pub blocks: usize,
    /// Blocks that no request holds.
    pub free_blocks: usize,
    /// Sequences being computed.
    pub running: usize,
    /// Sequences that wait.
    pub waiting: usize,
}

/// A model that answers requests.
pub struct Engine {
    context: Option<DeviceContext>,
    runner: Box<dyn Runner>,
    config: EngineConfig,
    size: CacheSize,
    pool: BlockPool,
    waiting: VecDeque<Sequence>,
    /// In the order in which they were let in.
    running: Vec<Sequence>,
    events: Vec<Event>,
    next_id: u64,
    stats: EngineStats,
}

/// Rows of a sequence in a step.
struct Part {
    /// Place among the running.
    sequence: usize,
    /// Its first row's position.
    position: usize,
    rows: usize,
    drafted: Vec<u32>,
}

impl Engine {
    /// An engine on a model that is there.
    ///
    /// # Errors
    /// [`Error::BadValue`] for a setting that cannot be, a cache too small for one sequence among them.
    pub fn new<B: LlamaOps>(model: Llama<B>, config: EngineConfig) -> Result<Self> {
        Self::of_part(model, Box::new(Single), None, config)
    }

    /// An engine on the part of a model that one of several devices has. On each the same requests are given and the same steps made; all
    /// draw the same tokens.
    ///
    /// # Errors
    /// As [`Engine::new`].
    pub fn of_part<B: LlamaOps>(
        model: Llama<B>,
        regions: Box<dyn Regions<B>>,
        context: Option<DeviceContext>,
        config: EngineConfig,
    ) -> Result<Self> {
        config.validate()?;
        let memory = context.as_ref().and_then(|context| context.name().memory());
        let (runner, size) = ModelRunner::new(model, regions, &config, memory)?;
        Ok(Self::with_runner(context, Box::new(runner), config, size))
    }

    /// Loads a checkpoint's model onto a device.
    ///
    /// # Errors
    /// As [`Engine::new`]; those of the device and of the checkpoint's files.
    pub fn load(checkpoint: &Checkpoint, context: &DeviceContext, config: EngineConfig) -> Result<Self> {
        struct Load<'a>(&'a Checkpoint, &'a EngineConfig, Option<u64>);
        impl Job for Load<'_> {
            type Output = (Box<dyn Runner>, CacheSize);
            fn run<B: LlamaOps>(self, device: B::Device) -> Result<Self::Output> {
                let model = self.0.load_as::<B>(&device, self.1.weights()?)?;
                let (runner, size) = ModelRunner::new(model, Box::new(Single), self.1, self.2)?;
                Ok((Box::new(runner), size))
            }
        }
        config.validate()?;
        let (runner, size) = context.run(Load(checkpoint, &config, context.name().memory()))?;
        Ok(Self::with_runner(Some(context.clone()), runner, config, size))
    }

    pub(crate) fn with_runner(
        context: Option<DeviceContext>,
        runner: Box<dyn Runner>,
        config: EngineConfig,
        size: CacheSize,
    ) -> Self {
        let pool = BlockPool::new(size.blocks, config.prefix_cache);
        let (waiting, running, events) = (VecDeque::new(), Vec::new(), Vec::new());
        let stats = EngineStats::default();
        Self { context, runner, config, size, pool, waiting, running, events, next_id: 0, stats }
    }

    /// The model's shape.
    pub fn model(&self) -> &ModelConfig {
        self.runner.model()
    }

    /// Bytes of the matrices that a step reads, all but the embedding, of which it looks up some rows: of each type, by ggml's name.
    pub fn weight_bytes(&self) -> &BTreeMap<&'static str, u64> {
        self.runner.weight_bytes()
    }

    /// Longest sequence, prompt and text.
    pub fn max_len(&self) -> usize {
        self.size.max_len
    }

    /// The cache in words.
    pub fn describe(&self) -> String {
        let CacheSize { block_bytes, blocks, max_len } = self.size;
        let mib = (block_bytes * blocks as u64) as f64 / f64::from(1 << 20);
        let (positions, dtype) = (blocks * KV_BLOCK, self.config.kv_cache_dtype);
        format!("KV cache {mib:.1} MiB ({dtype}, {positions} positions in {blocks} blocks), sequences of up to {max_len}")
    }

    /// What it has done.
    pub fn stats(&self) -> EngineStats {
        EngineStats {
            blocks: self.pool.len(),
            free_blocks: self.pool.free(),
            running: self.running.len(),
            waiting: self.waiting.len(),
            ..self.stats
        }
    }

    /// Whether there is nothing to do and nothing to tell.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty() && self.events.is_empty()
    }

    /// Takes a request, to be computed by the steps that follow.
    ///
    /// # Errors
    /// [`Error::BadValue`] for an empty prompt, a token outside the vocabulary or settings that cannot be; [`Error::TooLong`] for a
    /// prompt that leaves no room.
    pub fn submit(&mut self, request: Request) -> Result<RequestId> {
        let vocab = self.model().vocab_size;
        check_tokens(&request.prompt, vocab)?;
        if !request.instead.is_empty() {
            check_tokens(&request.instead, vocab)?;
        }
        let (prompt_len, max_len) = (request.prompt.len(), self.size.max_len);
        // The last token of a prompt that is only scored is not computed.
        let needed = if request.max_new == 0 { prompt_len - 1 } else { prompt_len };
        if needed > max_len {
            return Err(Error::TooLong {
                what: "prompt and text".into(),
                got: needed,
                max: max_len,
                hint:
                    "shorten the prompt; what a sequence may have is the model's max_seq_len, --max-len and what the cache holds"
                        .into(),
            });
        }
        if request.n == 0 || (request.n > 1 && request.mask.is_some()) {
            let problem = if request.n == 0 { "expected at least 1, got 0" } else { "a constrained text is one" };
            return Err(Error::bad_value("n", problem, "submit several requests"));
        }
        let from = request.scored_from;
        if from == 0 || (from > 1 && from >= prompt_len) {
            let problem = format!("expected a token after the first of the prompt's {prompt_len}, got {from}");
            return Err(Error::bad_value("scored_from", problem, "1 scores all that can be scored"));
        }
        if !request.instead.is_empty() && (request.prompt_logprobs.is_none() || prompt_len < 2) {
            let problem = "tokens in the place of the prompt's last one, where that one is not scored";
            return Err(Error::bad_value("instead", problem, "set prompt_logprobs, and give a prompt of two tokens at least"));
        }
        request.sampling.check(Some(vocab))?;
        let sampler = Sampler::for_choice(request.sampling.clone(), 0)?;
        let forks = (1..request.n).map(|i| Sampler::for_choice(request.sampling.clone(), i)).collect::<Result<Vec<_>>>()?;
        let id = RequestId(self.next_id);
        self.next_id += 1;
        let wanted = Wanted {
            id,
            prompt_len,
            max_new: request.max_new,
            min_new: request.min_new,
            stop_ids: request.stop_ids,
            ignore_eos: request.ignore_eos,
            logprobs: request.logprobs,
            prompt_logprobs: request.prompt_logprobs,
            scored_from: request.scored_from,
            instead: request.instead,
            speculate: request.speculate,
            tell_end: request.tell_end,
            salt: request.salt,
            max_len,
        };
        let mut sequence = Sequence::new(Arc::new(wanted), request.prompt, sampler, forks);
        sequence.mask = request.mask;
        self.waiting.push_back(sequence);
        Ok(id)
    }

    /// Gives a request up: nothing more is said of it.
    pub fn cancel(&mut self, id: RequestId) {
        let pool = &mut self.pool;
        let mut keep = |sequence: &mut Sequence| {
            if sequence.id() == id {
                sequence.drop_blocks(pool);
            }
            sequence.id() != id
        };
        self.running.retain_mut(&mut keep);
        self.waiting.retain_mut(&mut keep);
        self.events.retain(|event| event.id() != id);
    }

    /// Gives one continuation of a request up, once it has begun: the others go on. What it cost; `None` if there is none such.
    pub fn cancel_choice(&mut self, id: RequestId, choice: usize) -> Option<RequestStats> {
        let (pool, mut stats) = (&mut self.pool, None);
        let mut keep = |sequence: &mut Sequence| {
            // The first carries the others until they begin.
            let ends = sequence.id() == id && sequence.choice == choice && sequence.forks.is_empty();
            if ends {
                sequence.drop_blocks(pool);
                stats = Some(sequence.stats);
            }
            !ends
        };
        self.running.retain_mut(&mut keep);
        self.waiting.retain_mut(&mut keep);
        stats
    }

    /// The mean of the last hidden states (after the last norm) of these tokens, of length 1. `None`: the cache has no room for them
    /// now; it will once some of the requests have ended. Nothing else is computed meanwhile.
    ///
    /// # Errors
    /// As [`Engine::submit`] and [`Engine::step`].
    pub fn embed(&mut self, tokens: &[u32]) -> Result<Option<Vec<f32>>> {
        check_tokens(tokens, self.model().vocab_size)?;
        if tokens.len() > self.size.max_len {
            let hint = "split the text".into();
            return Err(Error::TooLong { what: "text to embed".into(), got: tokens.len(), max: self.size.max_len, hint });
        }
        let needed = tokens.len().div_ceil(KV_BLOCK);
        if self.pool.free() < needed {
            return Ok(None);
        }
        let mut table: Vec<u32> = (0..needed).filter_map(|_| self.pool.allocate()).collect();
        let sums = match self.context.clone() {
            Some(context) => context.enter(|| self.hidden_sums(tokens, &table)),
            None => self.hidden_sums(tokens, &table),
        };
        self.pool.release_all(&mut table);
        let sums = sums?;
        let norm = sums.iter().map(|x| x * x).sum::<f64>().sqrt();
        if !norm.is_finite() {
            return Err(Error::NotFinite { what: "hidden states".into(), got: norm });
        }
        Ok(Some(sums.into_iter().map(|x| if norm > 0.0 { (x / norm) as f32 } else { 0.0 }).collect()))
    }

    fn hidden_sums(&mut self, tokens: &[u32], table: &[u32]) -> Result<Vec<f64>> {
        let mut sums = vec![0.0f64; self.model().dim];
        for (i, chunk) in tokens.chunks(self.config.max_step_tokens).enumerate() {
            let from = i * self.config.max_step_tokens;
            let mut step = StepInput { tokens: chunk.to_vec(), ..StepInput::default() };
            step.rows.positions = (from..from + chunk.len()).map(|p| p as u32).collect();
            step.rows.sequences = vec![0; chunk.len()];
            step.rows.tables = vec![table.to_vec()];
            self.stats.steps += 1;
            self.stats.prefill_tokens += chunk.len() as u64;
            let of_chunk = self.runner.hidden_sum(&step)?;
            sums.iter_mut().zip(of_chunk).for_each(|(sum, x)| *sum += f64::from(x));
        }
        Ok(sums)
    }

    /// Computes one step and tells what it gave.
    ///
    /// # Errors
    /// [`Error::Backend`] if the device fails: the engine is then of no more use. What concerns one request is an event.
    pub fn step(&mut self) -> Result<Vec<Event>> {
        let parts = self.plan();
        if !parts.is_empty() {
            match self.context.clone() {
                Some(context) => context.enter(|| self.compute(parts)),
                None => self.compute(parts),
            }?;
        }
        Ok(std::mem::take(&mut self.events))
    }

    /// Answers one request, showing each token of its first continuation to `see` as it comes. Other requests go on meanwhile, and
    /// what is told of them is lost.
    ///
    /// # Errors
    /// Those of [`Engine::submit`] and [`Engine::step`], and of the request itself.
    pub fn generate(&mut self, request: Request, see: &mut dyn FnMut(u32) -> ControlFlow<()>) -> Result<(Vec<u32>, Stop)> {
        let id = self.submit(request)?;
        let mut tokens = Vec::new();
        loop {
            for event in self.step()? {
                match event {
                    Event::Token { id: of, choice: 0, token, .. } if of == id => {
                        tokens.push(token);
                        if see(token).is_break() {
                            self.cancel(id);
                            return Ok((tokens, Stop::Caller));
                        }
                    }
                    Event::Done { id: of, choice: 0, stop, .. } if of == id => {
                        self.cancel(id);
                        return Ok((tokens, stop));
                    }
                    Event::Failed { id: of, error } if of == id => return Err(error),
                    _ => {}
                }
            }
        }
    }

    /// Which rows the next step has. Every part's blocks are there afterwards.
    fn plan(&mut self) -> Vec<Part> {
        let mut left = self.config.max_step_tokens;
        self.finish_empty();
        let mut parts: Vec<Part> = Vec::new();
        // Texts first, then prompts in their order, then those who wait.
        let mut at = 0;
        while at < self.running.len() && left > 0 {
            if self.running[at].pending() == 1 {
                let drafted = self.running[at].draft((left - 1).min(MOST_DRAFTED));
                self.add_part(&mut parts, &mut left, at, 1, drafted);
            }
            at += 1;
        }
        let mut at = 0;
        while at < self.running.len() && left > 0 {
            let pending = self.running[at].pending();
            if pending > 1 {
                let rows = pending.min(left);
                self.add_part(&mut parts, &mut left, at, rows, Vec::new());
            }
            at += 1;
        }
        while left > 0 && self.running.len() < self.config.max_batch && self.admit() {
            let at = self.running.len() - 1;
            let rows = self.running[at].pending().min(left);
            if !self.add_part(&mut parts, &mut left, at, rows, Vec::new()) {
                break;
            }
        }
        parts
    }

    /// Ends what needs no computing: a request for no token and no score.
    fn finish_empty(&mut self) {
        let mut at = 0;
        while at < self.waiting.len() {
            let sequence = &self.waiting[at];
            if sequence.wanted.max_new == 0 && (sequence.pending() == 0 || sequence.wanted.prompt_logprobs.is_none()) {
                let Some(mut sequence) = self.waiting.remove(at) else { break };
                self.events.extend(sequence.tell_prompt());
                for choice in 0..=sequence.forks.len() {
                    let (id, stats) = (sequence.id(), sequence.stats);
                    self.events.push(Event::Done { id, choice, stop: Stop::Length, stats });
                }
                sequence.drop_blocks(&mut self.pool);
            } else {
                at += 1;
            }
        }
    }

    /// Lets the first who waits in, if the cache has room for what it has to compute.
    fn admit(&mut self) -> bool {
        let Some(first) = self.waiting.front() else { return false };
        if first.blocks.is_empty() {
            let known = first.known_blocks(&self.pool);
            let blocks: Vec<u32> = known.iter().map(|k| k.0).collect();
            let needed = (first.computed + first.tokens.len()).div_ceil(KV_BLOCK) - known.len();
            // Known blocks that nobody holds are no longer free once they are shared.
            if needed + self.pool.idle_among(&blocks) > self.pool.free() {
                let holds = |s: &Sequence| !s.blocks.is_empty();
                if !self.running.is_empty() || !self.waiting.iter().any(holds) {
                    return false;
                }
                // Nobody would ever give blocks back but those who wait.
                self.waiting.iter_mut().for_each(|s| s.drop_blocks(&mut self.pool));
                return self.admit();
            }
            let Some(mut sequence) = self.waiting.pop_front() else { return false };
            sequence.begin_with(known, &mut self.pool);
            sequence.stats.cached_tokens = sequence.stats.cached_tokens.max(sequence.computed.min(sequence.wanted.prompt_len));
            self.stats.cached_tokens += sequence.computed as u64;
            self.running.push(sequence);
            return true;
        }
        // A fork of a prompt that is there: it writes to a copy of the last block.
        if self.pool.free() < 2 && !self.running.is_empty() {
            return false;
        }
        let Some(sequence) = self.waiting.pop_front() else { return false };
        self.running.push(sequence);
        true
    }

    /// Adds rows of a running sequence, as far as blocks for them are to be had.
    fn add_part(&mut self, parts: &mut Vec<Part>, left: &mut usize, at: usize, rows: usize, drafted: Vec<u32>) -> bool {
        let position = self.running[at].computed;
        let end = position + rows + drafted.len();
        // Others may be preempted for it, but none before it.
        let has_room = self.make_room(parts, at, position, end);
        if has_room {
            *left -= rows + drafted.len();
            parts.push(Part { sequence: at, position, rows, drafted });
        }
        has_room
    }

    /// Blocks for positions up to `end` of a running sequence, of its own where it writes; whoever came later gives up blocks for it.
    /// `false`: it gave up its own.
    fn make_room(&mut self, parts: &mut Vec<Part>, at: usize, position: usize, end: usize) -> bool {
        let copy = loop {
            let blocks = &self.running[at].blocks;
            let copy = blocks.get(position / KV_BLOCK).copied().filter(|&block| self.pool.is_shared(block));
            let missing = end.div_ceil(KV_BLOCK).saturating_sub(blocks.len()) + usize::from(copy.is_some());
            if self.pool.free() >= missing {
                break copy;
            }
            // Those who wait and hold blocks first, then the last who was let in.
            if let Some(sequence) = self.waiting.iter_mut().rev().find(|s| !s.blocks.is_empty()) {
                sequence.drop_blocks(&mut self.pool);
                continue;
            }
            let last = self.running.len() - 1;
            let Some(mut sequence) = self.running.pop() else { return false };
            parts.retain(|part| part.sequence != last);
            sequence.drop_blocks(&mut self.pool);
            sequence.stats.preemptions += 1;
            self.stats.preemptions += 1;
            self.waiting.push_front(sequence);
            if last == at {
                return false;
            }
        };
        let sequence = &mut self.running[at];
        if let Some(shared) = copy
            && let Some(block) = self.pool.allocate()
        {
            self.runner.copy_blocks(&[(shared, block)]);
            sequence.blocks[position / KV_BLOCK] = block;
            self.pool.release(shared);
        }
        while sequence.blocks.len() * KV_BLOCK < end {
            match self.pool.allocate() {
                Some(block) => sequence.blocks.push(block),
                None => return false,
            }
        }
        true
    }

    fn compute(&mut self, parts: Vec<Part>) -> Result<()> {
        let mut step = StepInput::default();
        // Of each row of logits: part, position, the token drafted after it.
        let mut asked: Vec<(usize, usize, Option<u32>)> = Vec::new();
        for (i, part) in parts.iter().enumerate() {
            let sequence = &self.running[part.sequence];
            let known = &sequence.tokens[part.position..part.position + part.rows];
            for (j, &token) in known.iter().chain(&part.drafted).enumerate() {
                let position = part.position + j;
                if sequence.wants_logits(position) {
                    step.logits.push(step.tokens.len() as u32);
                    let next = (j + 1).checked_sub(part.rows).and_then(|d| part.drafted.get(d)).copied();
                    asked.push((i, position, next));
                }
                step.tokens.push(token);
                step.rows.positions.push(position as u32);
                step.rows.sequences.push(i as u32);
            }
            step.rows.tables.push(sequence.blocks.clone());
            let is_text = part.rows == 1 && part.position >= sequence.wanted.prompt_len;
            let count = if is_text { &mut self.stats.decode_tokens } else { &mut self.stats.prefill_tokens };
            *count += (part.rows + part.drafted.len()) as u64;
        }
        let mut outcomes: Vec<Outcome> = parts.iter().map(|_| Outcome::default()).collect();
        let plain = |part: &Part| part.drafted.is_empty() && self.running[part.sequence].is_plain();
        if self.runner.samples() && !asked.is_empty() && parts.iter().all(plain) {
            let asked: Vec<usize> = asked.into_iter().map(|a| a.0).collect();
            let more = self.draw(&parts, step, &asked, &mut outcomes)?;
            self.take_outcomes(parts, outcomes, more);
            return Ok(());
        }
        self.stats.steps += 1;
        let running = &mut self.running;
        self.runner.run(&step, &mut |first, rows, vocab| {
            let asked = &asked[first..];
            let of = |(part, position, _): &(usize, usize, Option<u32>)| running[parts[*part].sequence].scored(*position);
            let scored: Vec<Option<Scored<'_>>> = asked.iter().take(rows.len() / vocab).map(of).collect();
            let scored = score_rows(rows, vocab, &scored);
            for ((logits, scored), (part, position, drafted)) in rows.chunks_exact_mut(vocab).zip(scored).zip(asked) {
                let out = &mut outcomes[*part];
                if out.failed.is_none() {
                    let sequence = &mut running[parts[*part].sequence];
                    out.failed = sequence.take_logits(*position, logits, scored, *drafted, out).err();
                }
            }
        })?;
        self.take_outcomes(parts, outcomes, 0);
        Ok(())
    }

    /// Computes a step whose tokens the device draws and, where only texts are being written, further ones before it is waited for:
    /// how many. `asked`: the part of each row whose token is drawn.
    fn draw(&mut self, parts: &[Part], mut step: StepInput, asked: &[usize], outcomes: &mut [Outcome]) -> Result<usize> {
        let texts = parts.iter().all(|part| part.rows == 1) && asked.len() == parts.len() && self.waiting.is_empty();
        let room = parts.iter().map(|part| self.running[part.sequence].room()).min().unwrap_or(1);
        let mut more = if texts { room.clamp(1, MOST_RECORDED) - 1 } else { 0 };
        let missing = |more: usize| {
            let blocks = |part: &Part| {
                (part.position + 1 + more).div_ceil(KV_BLOCK).saturating_sub(self.running[part.sequence].blocks.len())
            };
            parts.iter().map(blocks).sum::<usize>()
        };
        if missing(more) > self.pool.free() {
            more = 0;
        }
        for (i, part) in parts.iter().enumerate() {
            let sequence = &mut self.running[part.sequence];
            while sequence.blocks.len() * KV_BLOCK < part.position + part.rows + more {
                let block = self.pool.allocate();
                sequence.blocks.push(block.ok_or_else(|| Error::internal("KV cache", "fewer blocks than were counted"))?);
            }
            step.rows.tables[i].clone_from(&sequence.blocks);
        }
        let mut draws = Vec::new();
        for _ in 0..=more {
            let mut rows = SampleRows::default();
            for &part in asked {
                self.running[parts[part].sequence].push_draw(&mut rows);
            }
            draws.push(rows);
        }
        let first = draws.remove(0);
        let mut rows = step.rows.clone();
        let then: Vec<_> = draws
            .into_iter()
            .map(|draw| {
                rows.positions.iter_mut().for_each(|position| *position += 1);
                (rows.clone(), draw)
            })
            .collect();
        self.stats.steps += 1 + more as u64;
        self.stats.decode_tokens += (more * parts.len()) as u64;
        for drawn in self.runner.sample(&step, &first, &then)? {
            for (&part, token) in asked.iter().zip(drawn) {
                let out = &mut outcomes[part];
                if out.failed.is_none() {
                    out.failed = self.running[parts[part].sequence].take_drawn(token, out).err();
                }
            }
        }
        Ok(more)
    }

    /// `more`: steps after the first, each with a row a part.
    fn take_outcomes(&mut self, parts: Vec<Part>, outcomes: Vec<Outcome>, more: usize) {
        let (mut ended, mut failed) = (Vec::new(), Vec::new());
        for (part, mut out) in parts.into_iter().zip(outcomes) {
            let sequence = &mut self.running[part.sequence];
            // Of drafted rows those whose tokens were right; the newest token's keys and values are not there yet.
            let end = part.position + part.rows + part.drafted.len() + more;
            sequence.computed = end.min(sequence.tokens.len().saturating_sub(1).max(part.position + part.rows));
            sequence.stats.drafted += part.drafted.len();
            self.stats.drafted += part.drafted.len() as u64;
            self.stats.accepted += out.accepted as u64;
            if let Some(error) = out.failed {
                // What came before is told, as it is where the rows are in other steps.
                self.events.extend(sequence.tell_prompt());
                self.events.append(&mut out.events);
                failed.push((sequence.id(), error));
                continue;
            }
            sequence.publish(&mut self.pool);
            self.events.extend(sequence.tell_prompt());
            if sequence.wanted.max_new == 0 && sequence.pending() == 0 {
                out.ended = Some(Stop::Length);
                for choice in 1..=sequence.forks.len() {
                    let (id, stats) = (sequence.id(), sequence.stats);
                    self.events.push(Event::Done { id, choice, stop: Stop::Length, stats });
                }
            }
            self.events.append(&mut out.events);
            for (mut fork, mut of_fork) in out.forks.into_iter().rev() {
                self.events.append(&mut of_fork.events);
                match of_fork.ended {
                    Some(stop) => {
                        self.events.push(Event::Done { id: fork.id(), choice: fork.choice, stop, stats: fork.stats });
                    }
                    None => {
                        // The first continuation may be further: drafted tokens were right.
                        fork.computed = self.running[part.sequence].computed.min(fork.tokens.len() - 1);
                        fork.blocks = self.running[part.sequence].blocks[..fork.computed.div_ceil(KV_BLOCK)].to_vec();
                        fork.blocks.iter().for_each(|&block| self.pool.share(block));
                        self.waiting.push_front(fork);
                    }
                }
            }
            if let Some(stop) = out.ended {
                let sequence = &self.running[part.sequence];
                let (id, choice, stats) = (sequence.id(), sequence.choice, sequence.stats);
                self.events.push(Event::Done { id, choice, stop, stats });
                ended.push(part.sequence);
            }
        }
        ended.sort_unstable();
        for at in ended.into_iter().rev() {
            let mut sequence = self.running.remove(at);
            sequence.drop_blocks(&mut self.pool);
        }
        for (id, error) in failed {
            // Its other continuations with it; what was told before stays.
            let told = std::mem::take(&mut self.events);
            self.cancel(id);
            self.events = told;
            self.events.push(Event::Failed { id, error });
        }
    }
}

/// Most steps that are recorded before they are waited for, where the device draws.
const MOST_RECORDED: usize = 8;
/// Most tokens drafted at once.
const MOST_DRAFTED: usize = 16;
