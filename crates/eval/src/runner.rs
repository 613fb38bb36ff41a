//! Scores and generates for all tasks with one engine: their passes go through it in one stream, the next ones come in as others end, so
//! that a batch is always full.
//!
//! Passes of one question that share a context go one after the other: the first computes the context, whose blocks the others find in
//! the cache. Those that score one token after the same context are one pass: one row of logits says them all.

use std::collections::{HashMap, VecDeque};
use std::ops::ControlFlow;

use recua_core::generate::{Engine, Event, Request, RequestId, SampleConfig};
use recua_core::ops::KV_BLOCK;
use recua_core::tokenizer::{DecodeStream, Tokenizer};
use xxhash_rust::xxh3::xxh3_64;

use crate::encode::{Pass, cut_at};
use crate::{Answer, Ask, Error, Result};

/// A question on its way.
pub struct Work {
    /// What the caller calls it.
    pub id: usize,
    /// For errors: `boolq, question 17`.
    pub name: String,
    /// What is asked.
    pub ask: Ask,
    /// As passes.
    pub passes: Vec<Pass>,
    /// Texts are decoded as what goes on from the context; else by themselves, as the reference does.
    pub goes_on: bool,
}

impl Work {
    /// Tokens of all its passes.
    pub fn tokens(&self) -> usize {
        self.passes.iter().map(|pass| pass.tokens().len()).sum()
    }
}

/// An engine with what makes text of tokens.
pub struct Runner<'a> {
    /// Computes.
    pub engine: &'a mut Engine,
    /// Decodes.
    pub tokenizer: &'a Tokenizer,
    /// Tokens that end a text.
    pub ends: &'a [u32],
    /// Most requests that are handed to the engine at once.
    pub in_flight: usize,
    /// Of sampled texts.
    pub seed: u64,
}

/// A question that is being computed.
struct Running {
    work: Work,
    /// Passes that wait for the first of their context.
    after: HashMap<usize, Vec<usize>>,
    /// Passes whose one token is scored with that of another.
    with: HashMap<usize, Vec<usize>>,
    left: usize,
    answer: Answer,
    texts: Vec<Text>,
}

/// A text that is being written.
struct Text {
    decode: DecodeStream,
    text: String,
    ended: bool,
}

impl Runner<'_> {
    /// Computes all, in this order as far as there is room. `done` gets each answer with its work's name, as soon as it is there, and
    /// may end the run.
    ///
    /// # Errors
    /// Those of the engine and of its requests, with the question's name; those of `done`.
    pub fn run(&mut self, works: Vec<Work>, done: &mut dyn FnMut(usize, usize, Answer) -> Result<ControlFlow<()>>) -> Result<()> {
        let mut waiting: VecDeque<Work> = works.into();
        let mut running: HashMap<usize, Running> = HashMap::new();
        let mut requests: HashMap<RequestId, (usize, usize)> = HashMap::new();
        loop {
            while requests.len() < self.in_flight {
                let Some(work) = waiting.pop_front() else { break };
                let (key, mut begun) = (work.id, self.begin(work)?);
                for pass in begun.firsts() {
                    requests.insert(self.submit(&begun, pass)?, (key, pass));
                }
                if begun.left == 0 {
                    let (tokens, answer) = (begun.work.tokens(), std::mem::take(&mut begun.answer));
                    if done(key, tokens, answer)?.is_break() {
                        return Ok(());
                    }
                } else {
                    running.insert(key, begun);
                }
            }
            if requests.is_empty() {
                return Ok(());
            }
            for event in self.engine.step()? {
                let id = event.id();
                let Some(&(key, pass)) = requests.get(&id) else { continue };
                let Some(question) = running.get_mut(&key) else { continue };
                let over = match event {
                    Event::Prompt { logprobs, instead, .. } => {
                        let Pass::Score { tokens, from } = &question.work.passes[pass] else { continue };
                        question.answer.loglikelihoods[pass] = logprobs.iter().map(|l| f64::from(l.logprob)).sum();
                        let mut likeliest = tokens[*from..].iter().zip(&logprobs);
                        question.answer.is_greedy[pass] =
                            likeliest.all(|(token, l)| l.top.first().is_some_and(|top| top.0 == *token));
                        let likeliest = logprobs.last().and_then(|l| l.top.first()).map(|top| top.0);
                        for (pass, logprob) in question.with.get(&pass).into_iter().flatten().zip(instead) {
                            question.answer.loglikelihoods[*pass] = f64::from(logprob);
                            question.answer.is_greedy[*pass] = question.work.passes[*pass].tokens().last().copied() == likeliest;
                        }
                        false
                    }
                    Event::Token { choice, token, .. } => {
                        let Ask::Generate { until, .. } = &question.work.ask else { continue };
                        let text = &mut question.texts[choice];
                        if !text.ended && text.push(token, until) {
                            text.ended = true;
                            let last = question.texts.iter().all(|text| text.ended);
                            if last {
                                self.engine.cancel(id);
                            } else {
                                self.engine.cancel_choice(id, choice);
                            }
                            last
                        } else {
                            false
                        }
                    }
                    Event::Done { choice, .. } => match &question.work.passes[pass] {
                        Pass::Score { .. } => true,
                        Pass::Generate { .. } => {
                            question.texts[choice].ended = true;
                            question.texts.iter().all(|text| text.ended)
                        }
                    },
                    Event::Failed { error, .. } => {
                        let hint = format!("of {}", question.work.name);
                        return Err(Error::internal(hint, error.to_string()));
                    }
                };
                if !over {
                    continue;
                }
                requests.remove(&id);
                question.left -= 1;
                for after in question.after.remove(&pass).unwrap_or_default() {
                    requests.insert(self.submit(question, after)?, (key, after));
                }
                if question.left == 0
                    && let Some(question) = running.remove(&key)
                {
                    let tokens = question.work.tokens();
                    if done(key, tokens, question.finish())?.is_break() {
                        requests.keys().for_each(|id| self.engine.cancel(*id));
                        return Ok(());
                    }
                }
            }
        }
    }

    fn begin(&self, work: Work) -> Result<Running> {
        let (after, with, left) = (HashMap::new(), HashMap::new(), work.passes.len());
        let mut question = Running { after, with, left, answer: Answer::default(), texts: Vec::new(), work };
        let passes = &question.work.passes;
        if let Ask::Generate { samples, .. } = &question.work.ask {
            let context: &[u32] = if question.work.goes_on { passes[0].tokens() } else { &[] };
            let text = || Text { decode: self.tokenizer.decode_stream_after(context), text: String::new(), ended: false };
            question.texts = (0..*samples).map(|_| text()).collect();
            return Ok(question);
        }
        question.answer.loglikelihoods = vec![0.0; passes.len()];
        question.answer.is_greedy = vec![false; passes.len()];
        let context = |pass: &Pass| match pass {
            Pass::Score { tokens, from } => tokens[..*from].to_vec(),
            Pass::Generate { tokens } => tokens.clone(),
        };
        let contexts: Vec<Vec<u32>> = passes.iter().map(context).collect();
        let mut first = HashMap::<&[u32], usize>::new();
        let mut rows = HashMap::<&[u32], usize>::new();
        for (at, context) in contexts.iter().enumerate() {
            if passes[at].tokens().len() == context.len() + 1 {
                if let Some(leader) = rows.get(&context[..]) {
                    question.with.entry(*leader).or_default().push(at);
                    question.left -= 1;
                    continue;
                }
                rows.insert(context, at);
            }
            // The last token of a context is computed with what follows.
            if context.len() > KV_BLOCK {
                match first.get(&context[..]) {
                    Some(leader) => question.after.entry(*leader).or_default().push(at),
                    None => {
                        first.insert(context, at);
                    }
                }
            }
        }
        Ok(question)
    }

    fn submit(&mut self, question: &Running, pass: usize) -> Result<RequestId> {
        let work = &question.work;
        let last = |pass: &Pass| pass.tokens().last().copied();
        let request = match (&work.passes[pass], &work.ask) {
            (Pass::Score { tokens, from }, ask) => {
                // Whether each token is the likeliest, nobody asks of a whole text.
                Request {
                    prompt: tokens.clone(),
                    max_new: 0,
                    prompt_logprobs: Some(usize::from(!matches!(ask, Ask::Rolling(_)))),
                    scored_from: *from,
                    instead: question.with.get(&pass).into_iter().flatten().filter_map(|at| last(&work.passes[*at])).collect(),
                    ..Request::default()
                }
            }
            (Pass::Generate { tokens }, Ask::Generate { max_new, samples, temperature, top_p, .. }) => Request {
                prompt: tokens.clone(),
                max_new: *max_new,
                n: *samples,
                stop_ids: self.ends.to_vec(),
                sampling: SampleConfig {
                    temperature: *temperature,
                    top_k: None,
                    top_p: Some(*top_p),
                    seed: self.seed ^ xxh3_64(work.name.as_bytes()),
                    ..SampleConfig::default()
                },
                ..Request::default()
            },
            (Pass::Generate { .. }, _) => return Err(Error::internal(&work.name, "a generation of something else")),
        };
        self.engine.submit(request)
    }
}

impl Running {
    /// Passes that wait for no other.
    fn firsts(&self) -> Vec<usize> {
        let waits = |pass: usize| self.after.values().chain(self.with.values()).any(|others| others.contains(&pass));
        (0..self.work.passes.len()).filter(|pass| !waits(*pass)).collect()
    }

    fn finish(mut self) -> Answer {
        if let Ask::Generate { until, .. } = &self.work.ask {
            let whole = |text: &mut Text| {
                text.text += &text.decode.finish().unwrap_or_default();
                cut_at(&text.text, until)
            };
            self.answer.texts = self.texts.iter_mut().map(whole).collect();
        }
        self.answer
    }
}

impl Text {
    /// Whether a stop is there now.
    fn push(&mut self, token: u32, until: &[String]) -> bool {
        let before = self.text.len();
        self.text += &self.decode.push(token).unwrap_or_default();
        let stops = |stop: &String| {
            let mut from = before.saturating_sub(stop.len());
            while !self.text.is_char_boundary(from) {
                from -= 1;
            }
            !stop.is_empty() && self.text[from..].contains(stop.as_str())
        };
        until.iter().any(stops)
    }
}
