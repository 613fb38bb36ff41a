//! The texts of one request: prompts to the engine, what it gives back as text, up to where each text ends.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use recua_core::generate::{Request, RequestStats, Stop, TextStream, TokenLogprob};
use recua_core::tokenizer::DecodeStream;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use xxhash_rust::xxh3::xxh3_64;

use crate::error::{ApiError, Result};
use crate::model::Model;
use crate::params::Params;
use crate::server::{Active, Caller, Server};
use crate::worker::{Command, Submission, Update};

/// What a request wants of its prompts.
#[derive(Clone, Debug)]
pub(crate) struct Prompts {
    /// Of token ids, checked.
    pub(crate) ids: Vec<Vec<u32>>,
    /// Log-probabilities of the prompts' tokens.
    pub(crate) scored: bool,
    /// The token that ends a text is told with its log-probability.
    pub(crate) tell_end: bool,
    /// The places of tokens count from the prompts' beginnings.
    pub(crate) counts_prompt: bool,
}

/// Why a text has ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Finish {
    /// `stop` or `length`.
    pub(crate) reason: &'static str,
    /// The stop text that was found.
    pub(crate) stop: Option<String>,
}

/// A token that was told.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) token: u32,
    pub(crate) logprob: Option<TokenLogprob>,
    /// Characters of text before it.
    pub(crate) offset: usize,
}

/// More of a text.
#[derive(Clone, Debug, Default)]
pub(crate) struct Delta {
    /// Which text: prompts in their order, `n` of each.
    pub(crate) index: usize,
    pub(crate) text: String,
    /// Only where log-probabilities are asked for.
    pub(crate) told: Vec<Told>,
    pub(crate) finish: Option<Finish>,
}

/// What comes next.
#[derive(Debug)]
pub(crate) enum Step {
    /// The log-probabilities of a prompt's tokens after the first, for these of its texts.
    Prompt {
        prompt: usize,
        texts: Range<usize>,
        logprobs: Vec<TokenLogprob>,
    },
    Text(Delta),
}

/// Tokens of a request so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) prompt: usize,
    pub(crate) cached: usize,
    pub(crate) completion: usize,
}

struct Choice {
    key: u64,
    /// The engine's number.
    choice: usize,
    stream: Option<TextStream>,
    offsets: Option<Offsets>,
    finish: bool,
    /// The engine has said its last.
    over: bool,
}

/// How many characters of text there are before a token.
pub(crate) struct Offsets {
    stream: Option<DecodeStream>,
    chars: usize,
}

impl Offsets {
    pub(crate) fn new(model: &Model) -> Self {
        Self { stream: model.tokenizer.as_ref().map(|tokenizer| tokenizer.decode_stream()), chars: 0 }
    }

    /// Of text after a prompt; its own characters do not count.
    fn after(model: &Model, prompt: &[u32]) -> Self {
        Self { stream: model.tokenizer.as_ref().map(|tokenizer| tokenizer.decode_stream_after(prompt)), chars: 0 }
    }

    /// The token's place; it counts for those that follow.
    pub(crate) fn push(&mut self, model: &Model, token: u32) -> usize {
        let at = self.chars;
        let text = match &mut self.stream {
            Some(stream) => stream.push(token),
            None => Some(model.piece(token)),
        };
        self.chars += text.map_or(0, |text| text.chars().count());
        at
    }
}

/// A request that is being answered. Dropped, it is given up.
pub(crate) struct Work {
    pub(crate) model: Arc<Model>,
    updates: UnboundedReceiver<(usize, Update)>,
    choices: Vec<Choice>,
    n: usize,
    /// Each text is a request of its own.
    apart: bool,
    stops: Arc<[String]>,
    ends: Vec<u32>,
    tells: bool,
    tell_end: bool,
    /// Prompts whose cached tokens are counted.
    counted: Vec<bool>,
    pub(crate) usage: Usage,
    /// What was read but not given out yet.
    ready: std::collections::VecDeque<Step>,
    _active: Active,
}

impl Work {
    /// Hands the prompts to the engine. What can be wrong with them is checked before anything is computed.
    pub(crate) fn start(
        server: &Server,
        active: Active,
        model: &Arc<Model>,
        caller: Caller,
        prompts: &Prompts,
        params: &Params,
    ) -> Result<Self> {
        let max_len = model.max_len()?;
        let config = &server.0.config;
        let n = params.n;
        let total = prompts.ids.len().saturating_mul(n);
        if total > config.max_choices {
            let problem = format!("{} prompts with n = {n} are more than {} texts", prompts.ids.len(), config.max_choices);
            return Err(ApiError::bad("n", problem));
        }
        let max_new = params.max_tokens.unwrap_or(max_len).min(config.max_output.unwrap_or(max_len)).min(max_len);
        if params.min_tokens > max_new {
            let problem = format!("{} are more than the {max_new} that there can be", params.min_tokens);
            return Err(ApiError::bad("min_tokens", problem));
        }
        let mut salt = caller.salt;
        if let Some(text) = &params.cache_salt {
            salt ^= xxh3_64(text.as_bytes()) | 1;
        }
        // Each text of a form needs a mask of its own.
        let apart = params.form.is_some();
        let mut masks = Vec::new();
        if apart {
            for _ in 0..total {
                masks.push(params.mask(model)?);
            }
            masks.reverse();
        }
        let mut slot = model.handle.admit(total)?;
        let (sender, updates) = unbounded_channel();
        let stops: Arc<[String]> = params.stops.clone().into();
        let (mut choices, mut submissions, mut usage) = (Vec::new(), Vec::new(), Usage::default());
        let arrived = Instant::now();
        for (i, prompt) in prompts.ids.iter().enumerate() {
            usage.prompt += prompt.len();
            for j in 0..if apart { n } else { 1 } {
                let key = server.next_key();
                let of_request = if apart { 1 } else { n };
                for choice in 0..of_request {
                    let stream = |tokenizer| TextStream::new(tokenizer, prompt, &stops);
                    let offsets = params.logprobs.map(|_| {
                        if !prompts.counts_prompt {
                            return Offsets::after(model, prompt);
                        }
                        let mut offsets = Offsets::new(model);
                        prompt.iter().for_each(|token| {
                            offsets.push(model, *token);
                        });
                        offsets
                    });
                    let stream = model.tokenizer.as_ref().map(stream).transpose()?;
                    choices.push(Choice { key, choice, stream, offsets, finish: false, over: false });
                }
                let mut sampling = params.sampling.clone();
                sampling.seed = sampling.seed.wrapping_add(j as u64);
                let request = Request {
                    prompt: prompt.clone(),
                    max_new,
                    min_new: params.min_tokens,
                    stop_ids: params.ends.clone(),
                    ignore_eos: false,
                    sampling,
                    n: of_request,
                    logprobs: params.logprobs,
                    prompt_logprobs: prompts.scored.then(|| params.logprobs.unwrap_or(0)),
                    scored_from: 1,
                    instead: Vec::new(),
                    speculate: config.speculate,
                    mask: masks.pop().flatten(),
                    tell_end: prompts.tell_end,
                    salt,
                };
                let slot = model.handle.split(&mut slot, of_request);
                let tag = i * n + j;
                let deadline = config.request_time.map(|time| arrived + time);
                let updates = sender.clone();
                submissions.push(Submission { key, tag, request, updates, arrived, deadline, slot });
            }
        }
        for submission in submissions {
            if !model.handle.send(Command::Submit(Box::new(submission))) {
                return Err(ApiError::internal("the engine's thread has ended"));
            }
        }
        Ok(Self {
            model: model.clone(),
            updates,
            choices,
            n,
            apart,
            stops,
            ends: params.ends.clone(),
            tells: params.logprobs.is_some(),
            tell_end: prompts.tell_end,
            counted: vec![false; prompts.ids.len()],
            usage,
            ready: std::collections::VecDeque::new(),
            _active: active,
        })
    }

    /// How many texts there are.
    pub(crate) fn len(&self) -> usize {
        self.choices.len()
    }

    /// What comes next; nothing once all texts have ended.
    pub(crate) async fn next(&mut self) -> Option<Result<Step>> {
        loop {
            if let Some(step) = self.ready.pop_front() {
                return Some(Ok(step));
            }
            if self.choices.iter().all(|choice| choice.over) {
                return None;
            }
            let Some((tag, update)) = self.updates.recv().await else {
                return Some(Err(ApiError::internal("the engine's thread has ended")));
            };
            if let Err(e) = self.take(tag, update) {
                return Some(Err(e));
            }
        }
    }

    fn take(&mut self, tag: usize, update: Update) -> Result<()> {
        match update {
            Update::Failed(e) => return Err(e),
            Update::Prompt(logprobs) => {
                let texts = tag..tag + if self.apart { 1 } else { self.n };
                self.ready.push_back(Step::Prompt { prompt: tag / self.n, texts, logprobs });
            }
            Update::Token { choice, token, logprob } => self.token(tag + choice, token, logprob),
            Update::Done { choice, stop, stats } => self.done(tag + choice, stop, stats, tag / self.n),
        }
        Ok(())
    }

    fn token(&mut self, index: usize, token: u32, logprob: Option<TokenLogprob>) {
        let choice = &mut self.choices[index];
        if choice.finish {
            return; // computed before the engine knew
        }
        self.usage.completion += 1;
        let mut delta = Delta { index, ..Delta::default() };
        if self.tells {
            let offset = choice.offsets.as_mut().map_or(0, |offsets| offsets.push(&self.model, token));
            delta.told.push(Told { token, logprob, offset });
        }
        if !self.ends.contains(&token) {
            match &mut choice.stream {
                Some(stream) => {
                    let shown = stream.push(token);
                    delta.text = shown.text;
                    if let Some(which) = shown.stop {
                        choice.finish = true;
                        delta.finish = Some(Finish { reason: "stop", stop: self.stops.get(which).cloned() });
                        self.model.handle.send(Command::StopChoice { key: choice.key, choice: choice.choice });
                    }
                }
                None => delta.text = self.model.piece(token),
            }
        }
        if !delta.text.is_empty() || !delta.told.is_empty() || delta.finish.is_some() {
            self.ready.push_back(Step::Text(delta));
        }
    }

    fn done(&mut self, index: usize, stop: Stop, stats: RequestStats, prompt: usize) {
        if !std::mem::replace(&mut self.counted[prompt], true) {
            self.usage.cached += stats.cached_tokens;
        }
        let choice = &mut self.choices[index];
        choice.over = true;
        if std::mem::replace(&mut choice.finish, true) {
            return;
        }
        let rest = choice.stream.as_mut().map(TextStream::finish).unwrap_or_default();
        let stop_text = rest.stop.and_then(|which| self.stops.get(which).cloned());
        let reason = match stop {
            _ if stop_text.is_some() => "stop",
            Stop::Length | Stop::Full => "length",
            Stop::Eos | Stop::Mask | Stop::Caller => "stop",
        };
        // A token that ended the text was computed, whether it was told or not.
        self.usage.completion += usize::from(stop == Stop::Eos && !self.tell_end);
        let finish = Some(Finish { reason, stop: stop_text });
        self.ready.push_back(Step::Text(Delta { index, text: rest.text, told: Vec::new(), finish }));
    }
}
