//! Prompts through the engine, and what comes back to whoever shows it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use indicatif::ProgressBar;
use recua::generate::{Engine, Event, Request, RequestId, Stop, TextStream, TokenLogprob};
use recua::{Error, Result};

use super::prompts::Prompt;
use super::show::Show;
use crate::cli::{human, progress, say};

/// One continuation of a prompt.
pub(super) struct Text {
    stream: Option<TextStream>,
    pub(super) text: String,
    pub(super) tokens: Vec<u32>,
    pub(super) logprobs: Vec<TokenLogprob>,
    pub(super) stop: Option<&'static str>,
    /// Seconds until the first token, and until the end, from when all prompts were submitted.
    pub(super) first_s: Option<f64>,
    pub(super) end_s: f64,
}

/// A prompt and what became of it.
pub(super) struct Job<'a> {
    pub(super) prompt: &'a Prompt,
    pub(super) prompt_logprobs: Option<Vec<TokenLogprob>>,
    pub(super) texts: Vec<Text>,
    pub(super) failed: Option<Error>,
}

impl Job<'_> {
    fn is_over(&self) -> bool {
        self.failed.is_some() || self.texts.iter().all(|text| text.stop.is_some())
    }
}

/// All prompts of a call.
pub(super) struct Run<'a> {
    prompts: &'a [Prompt],
    stops: &'a [String],
    show: Show<'a>,
    jobs: Vec<Job<'a>>,
    by_id: HashMap<RequestId, usize>,
    began: Instant,
    /// Jobs before this one are shown.
    shown: usize,
}

impl<'a> Run<'a> {
    pub(super) fn new(prompts: &'a [Prompt], stops: &'a [String], show: Show<'a>) -> Self {
        Self { prompts, stops, show, jobs: Vec::new(), by_id: HashMap::new(), began: Instant::now(), shown: 0 }
    }

    /// Hands the next prompt's request to the engine.
    pub(super) fn submit(&mut self, engine: &mut Engine, request: Request) -> Result<()> {
        let prompt = &self.prompts[self.jobs.len()];
        let stream = || self.show.tokenizer.map(|t| TextStream::new(t, &prompt.ids, self.stops)).transpose();
        let texts = (0..request.n).map(|_| {
            Ok(Text {
                stream: stream()?,
                text: String::new(),
                tokens: Vec::new(),
                logprobs: Vec::new(),
                stop: None,
                first_s: None,
                end_s: 0.0,
            })
        });
        let texts = texts.collect::<Result<_>>()?;
        let id = engine.submit(request).map_err(|e| match e {
            Error::TooLong { got, max, hint, .. } => Error::TooLong { what: prompt.at.clone(), got, max, hint },
            e => e,
        })?;
        self.by_id.insert(id, self.jobs.len());
        self.jobs.push(Job { prompt, prompt_logprobs: None, texts, failed: None });
        Ok(())
    }

    /// Until all have ended, or `interrupted` is set: then what is there is shown, and the process ends with 130.
    pub(super) fn finish(mut self, engine: &mut Engine, interrupted: &AtomicBool) -> Result<()> {
        let bar = progress::count_bar("prompts", if self.show.many { self.jobs.len() as u64 } else { 0 });
        self.began = Instant::now();
        self.show.begin(&self.jobs[0]);
        while !engine.is_idle() && !interrupted.load(Ordering::Relaxed) {
            for event in engine.step()? {
                self.take(engine, event)?;
            }
            self.show_ended(&bar)?;
        }
        let stopped = interrupted.load(Ordering::Relaxed) && self.jobs.iter().any(|job| !job.is_over());
        if stopped {
            for i in 0..self.jobs.len() {
                for choice in 0..self.jobs[i].texts.len() {
                    self.end(i, choice, "interrupted");
                }
            }
            // Prompts that were not begun have nothing to show.
            self.jobs.retain(|job| !job.texts.iter().all(|text| text.stop == Some("interrupted") && text.tokens.is_empty()));
        }
        self.show_ended(&bar)?;
        bar.finish_and_clear();
        self.close(engine);
        if stopped {
            std::process::exit(130);
        }
        match self.jobs.into_iter().find_map(|job| job.failed) {
            Some(e) => Err(e),
            None => Ok(()),
        }
    }

    fn take(&mut self, engine: &mut Engine, event: Event) -> Result<()> {
        let now = self.began.elapsed().as_secs_f64();
        match event {
            Event::Prompt { id, logprobs, .. } => self.jobs[self.by_id[&id]].prompt_logprobs = Some(logprobs),
            Event::Token { id, choice, token, logprob } => {
                let i = self.by_id[&id];
                let text = &mut self.jobs[i].texts[choice];
                if text.stop.is_some() {
                    return Ok(()); // its siblings go on
                }
                text.first_s.get_or_insert(now);
                text.tokens.push(token);
                text.logprobs.extend(logprob);
                let Some(stream) = &mut text.stream else {
                    self.show.token(token);
                    return Ok(());
                };
                let shown = stream.push(token);
                text.text.push_str(&shown.text);
                self.show.text(&shown.text);
                if shown.stop.is_some() {
                    self.end(i, choice, "stop");
                    if self.jobs[i].is_over() {
                        engine.cancel(id);
                    }
                }
            }
            Event::Done { id, choice, stop, .. } => {
                let i = self.by_id[&id];
                self.end(
                    i,
                    choice,
                    match stop {
                        Stop::Eos => "eos",
                        Stop::Full => "full",
                        Stop::Mask => "mask",
                        Stop::Length | Stop::Caller => "length",
                    },
                );
            }
            Event::Failed { id, error } => {
                let i = self.by_id[&id];
                if !self.show.many {
                    return Err(error);
                }
                self.jobs[i].failed = Some(error);
            }
        }
        Ok(())
    }

    /// A continuation has ended; what was held back of it is shown.
    fn end(&mut self, i: usize, choice: usize, stop: &'static str) {
        let text = &mut self.jobs[i].texts[choice];
        if text.stop.is_none() {
            let rest = text.stream.as_mut().map(TextStream::finish).unwrap_or_default();
            text.text.push_str(&rest.text);
            self.show.text(&rest.text);
            text.end_s = self.began.elapsed().as_secs_f64();
            text.stop = Some(if rest.stop.is_some() { "stop" } else { stop });
        }
    }

    /// Shows the jobs that have ended, in their order.
    fn show_ended(&mut self, bar: &ProgressBar) -> Result<()> {
        while let Some(job) = self.jobs.get(self.shown).filter(|job| job.is_over()) {
            bar.suspend(|| self.show.job(self.shown, job))?;
            self.shown += 1;
        }
        bar.set_position(self.jobs.iter().filter(|job| job.is_over()).count() as u64);
        Ok(())
    }

    /// What is said at the end, on stderr.
    fn close(&self, engine: &Engine) {
        let texts = || self.jobs.iter().flat_map(|job| &job.texts);
        let seconds = self.began.elapsed().as_secs_f64();
        let tokens: usize = texts().map(|text| text.tokens.len()).sum();
        if let Some(tokenizer) = self.show.tokenizer {
            let left_out = texts().flat_map(|text| &text.tokens).filter(|id| !tokenizer.has_token(**id)).count();
            if left_out > 0 {
                log::warn!("{left_out} of {tokens} tokens have no text in the tokenizer (a padded vocabulary): left out");
            }
        }
        let mut first: Vec<f64> = texts().filter_map(|text| text.first_s).collect();
        first.sort_by(f64::total_cmp);
        let at = |share: f64| first[((first.len() - 1) as f64 * share).round() as usize];
        let mut line = format!("{tokens} tokens in {seconds:.2} s, {} tok/s", human(tokens as f64 / seconds));
        match first.len() {
            0 => {}
            1 => line += &format!("; the first after {:.3} s", at(0.0)),
            _ => line += &format!("; the first of a text after {:.3} s (median), {:.3} s (99 of 100)", at(0.5), at(0.99)),
        }
        // Of texts that a stop text ended the engine says no more: what it has counted itself has them.
        let counted = engine.stats();
        if counted.cached_tokens > 0 {
            line += &format!("; {} prompt tokens were in the cache", counted.cached_tokens);
        }
        if counted.drafted > 0 {
            line += &format!("; {} of {} guessed tokens were right", counted.accepted, counted.drafted);
        }
        if counted.preemptions > 0 {
            line += &format!("; the cache was full {} times, a larger --kv-cache-bytes is faster", counted.preemptions);
        }
        let failed = self.jobs.iter().filter(|job| job.failed.is_some()).count();
        if failed > 0 {
            line += &format!("; {failed} of {} prompts failed", self.jobs.len());
        }
        log::info!("{:?}", engine.stats());
        say(&line);
    }
}
