//! One continuation of a request: its tokens, its blocks, and what comes after its newest token.

use std::sync::Arc;

use super::cache::{BlockHash, BlockPool, block_hash};
use super::logprobs::{RowLogprobs, Scored, token_logprob};
use super::runner::NO_TOKEN;
use super::speculate::Drafter;
use super::{Event, RequestId, RequestStats, Sampler, Stop, TokenLogprob, TokenMask};
use crate::error::{Error, Result};
use crate::ops::{KV_BLOCK, SampleRows};

/// What all continuations of a request share.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) id: RequestId,
    pub(super) prompt_len: usize,
    pub(super) max_new: usize,
    pub(super) min_new: usize,
    pub(super) stop_ids: Vec<u32>,
    pub(super) ignore_eos: bool,
    pub(super) logprobs: Option<usize>,
    pub(super) prompt_logprobs: Option<usize>,
    pub(super) scored_from: usize,
    pub(super) instead: Vec<u32>,
    pub(super) speculate: usize,
    pub(super) tell_end: bool,
    pub(super) salt: u64,
    /// Longest sequence.
    pub(super) max_len: usize,
}

impl Wanted {
    /// What the first block comes after.
    fn root(&self) -> Option<BlockHash> {
        (self.salt != 0).then_some(BlockHash::from(self.salt))
    }
}

#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) wanted: Arc<Wanted>,
    pub(super) choice: usize,
    /// Prompt and new tokens.
    pub(super) tokens: Vec<u32>,
    /// Positions whose keys and values are in `blocks`.
    pub(super) computed: usize,
    pub(super) blocks: Vec<u32>,
    /// Of the full blocks that were told to the pool.
    hashes: Vec<BlockHash>,
    pub(super) sampler: Sampler,
    pub(super) mask: Option<Box<dyn TokenMask>>,
    drafter: Option<Drafter>,
    /// Samplers of the continuations that begin when the prompt is there.
    pub(super) forks: Vec<Sampler>,
    prompt_logprobs: Vec<TokenLogprob>,
    /// One a token of `Wanted::instead`.
    instead: Vec<f32>,
    prompt_told: bool,
    pub(super) stats: RequestStats,
}

impl Sequence {
    pub(super) fn new(wanted: Arc<Wanted>, prompt: Vec<u32>, sampler: Sampler, forks: Vec<Sampler>) -> Self {
        let mut drafter = (wanted.speculate > 0).then(Drafter::default);
        if let Some(drafter) = &mut drafter {
            prompt.iter().for_each(|&t| drafter.push(t));
        }
        let stats = RequestStats { prompt_tokens: prompt.len(), ..Default::default() };
        Self {
            wanted,
            choice: 0,
            tokens: prompt,
            computed: 0,
            blocks: Vec::new(),
            hashes: Vec::new(),
            sampler,
            mask: None,
            drafter,
            forks,
            prompt_logprobs: Vec::new(),
            instead: Vec::new(),
            prompt_told: false,
            stats,
        }
    }

    pub(super) fn id(&self) -> RequestId {
        self.wanted.id
    }

    /// Tokens that are to be computed before the next one is known.
    pub(super) fn pending(&self) -> usize {
        self.end() - self.computed
    }

    /// Where what is to be computed ends: a prompt that is only scored does without its last token.
    fn end(&self) -> usize {
        if self.wanted.max_new == 0 { self.wanted.prompt_len - 1 } else { self.tokens.len() }
    }

    pub(super) fn new_tokens(&self) -> &[u32] {
        &self.tokens[self.wanted.prompt_len..]
    }

    /// Tokens that may come after the newest one, as a guess.
    pub(super) fn draft(&self, most: usize) -> Vec<u32> {
        let room = (self.wanted.max_new - self.new_tokens().len()).saturating_sub(1);
        let room = room.min(self.wanted.max_len - self.tokens.len().min(self.wanted.max_len));
        let most = most.min(self.wanted.speculate).min(room);
        match &self.drafter {
            Some(drafter) if most > 0 && self.pending() == 1 => drafter.draft(most),
            _ => Vec::new(),
        }
    }

    /// Whether the logits after `position` are asked for.
    pub(super) fn wants_logits(&self, position: usize) -> bool {
        let last = position + 1 >= self.tokens.len() && self.wanted.max_new > 0;
        last || self.scores(position)
    }

    /// Whether the row at `position` says the log-probability of the prompt's next token, which is not known yet.
    fn scores(&self, position: usize) -> bool {
        self.wanted.prompt_logprobs.is_some() && position + 1 < self.wanted.prompt_len && position + 1 >= self.next_scored()
    }

    /// The first token of the prompt whose log-probability is not known yet.
    fn next_scored(&self) -> usize {
        self.wanted.scored_from + self.prompt_logprobs.len()
    }

    /// What the row at `position` is asked for.
    pub(super) fn scored(&self, position: usize) -> Option<Scored<'_>> {
        let top = self.wanted.prompt_logprobs.filter(|_| self.scores(position))?;
        let instead = if position + 2 == self.wanted.prompt_len { &self.wanted.instead[..] } else { &[] };
        Some(Scored { token: self.tokens[position + 1], instead, top })
    }

    /// Takes the logits after `position`. `scored`: what [`Sequence::scored`] asked for. `drafted`: the token that was computed after it
    /// as a guess.
    pub(super) fn take_logits(
        &mut self,
        position: usize,
        logits: &mut [f32],
        scored: Option<Result<RowLogprobs>>,
        drafted: Option<u32>,
        out: &mut Outcome,
    ) -> Result<()> {
        if let Some(scored) = scored {
            let RowLogprobs { token, mut instead } = scored?;
            self.prompt_logprobs.push(token);
            self.instead.append(&mut instead);
        }
        if position + 1 < self.tokens.len() || out.ended.is_some() || out.missed {
            return Ok(());
        }
        let raw = self.wanted.logprobs.map(|top| (logits.to_vec(), top));
        for (i, sampler) in std::mem::take(&mut self.forks).into_iter().enumerate() {
            let mut fork = self.fork(i + 1, sampler);
            let mut of_fork = Outcome::default();
            fork.choose(&mut logits.to_vec(), raw.as_ref(), &mut of_fork)?;
            out.forks.push((fork, of_fork));
        }
        self.choose(logits, raw.as_ref(), out)?;
        match (drafted, self.tokens.get(position + 1)) {
            (Some(drafted), Some(&token)) if drafted == token && out.ended.is_none() => {
                self.stats.accepted += 1;
                out.accepted += 1;
            }
            (Some(_), _) => out.missed = true,
            (None, _) => {}
        }
        Ok(())
    }

    /// Whether the device can draw the next token: nothing is asked for that needs the logits.
    pub(super) fn is_plain(&self) -> bool {
        let (c, w) = (self.sampler.config(), &self.wanted);
        let scored = w.prompt_logprobs.is_none() || self.next_scored() >= w.prompt_len;
        let unpunished = c.repetition_penalty == 1.0 && c.presence_penalty == 0.0 && c.frequency_penalty == 0.0;
        let free = w.ignore_eos || w.stop_ids.is_empty() || self.new_tokens().len() >= w.min_new;
        scored
            && unpunished
            && free
            && c.logit_bias.is_empty()
            && w.logprobs.is_none()
            && self.mask.is_none()
            && self.forks.is_empty()
    }

    /// How many tokens may come from here on.
    pub(super) fn room(&self) -> usize {
        let new = self.wanted.max_new - self.new_tokens().len();
        new.min((self.wanted.max_len + 1).saturating_sub(self.tokens.len()))
    }

    /// How the device draws its next token.
    pub(super) fn push_draw(&mut self, rows: &mut SampleRows) {
        let uniform = if self.sampler.config().temperature == 0.0 { 0.0 } else { self.sampler.uniform() as f32 };
        let c = self.sampler.config();
        let top_k = c.top_k.map_or(u32::MAX, |k| k.min(u32::MAX as usize) as u32);
        // A number just below 1 may round to it.
        let uniform = uniform.min(1.0 - f32::EPSILON / 2.0);
        let (top_p, min_p) = (c.top_p.unwrap_or(1.0), c.min_p.unwrap_or(0.0));
        rows.push(c.temperature as f32, top_k, top_p as f32, min_p as f32, uniform);
    }

    /// Takes a token that the device drew.
    pub(super) fn take_drawn(&mut self, token: u32, out: &mut Outcome) -> Result<()> {
        if out.ended.is_some() {
            return Ok(());
        }
        if token == NO_TOKEN {
            let what = format!("logits after {} tokens", self.tokens.len());
            return Err(Error::NotFinite { what, got: f64::NAN });
        }
        self.take_token(token, None, out)
    }

    fn choose(&mut self, logits: &mut [f32], raw: Option<&(Vec<f32>, usize)>, out: &mut Outcome) -> Result<()> {
        let wanted = self.wanted.clone();
        let new = self.new_tokens().len();
        let banned: &[u32] = if new < wanted.min_new && !wanted.ignore_eos { &wanted.stop_ids } else { &[] };
        let mut allowed = Vec::new();
        if let Some(mask) = &mut self.mask {
            allowed = vec![0u32; logits.len().div_ceil(32)];
            mask.allowed(&mut allowed)?;
            if allowed.iter().all(|word| *word == 0) {
                out.ended = Some(Stop::Mask);
                return Ok(());
            }
        }
        let allowed = self.mask.is_some().then_some(&allowed[..]);
        let (prompt, generated) = self.tokens.split_at(wanted.prompt_len);
        let token = self.sampler.sample(logits, prompt, generated, allowed, banned)?;
        self.take_token(token, raw, out)
    }

    fn take_token(&mut self, token: u32, raw: Option<&(Vec<f32>, usize)>, out: &mut Outcome) -> Result<()> {
        let wanted = self.wanted.clone();
        let new = self.new_tokens().len();
        if wanted.stop_ids.contains(&token) && !wanted.ignore_eos {
            if wanted.tell_end {
                let logprob = raw.map(|(logits, top)| token_logprob(logits, token, *top)).transpose()?;
                out.events.push(Event::Token { id: wanted.id, choice: self.choice, token, logprob });
            }
            out.ended = Some(Stop::Eos);
            return Ok(());
        }
        if let Some(mask) = &mut self.mask {
            mask.take(token)?;
        }
        let logprob = raw.map(|(logits, top)| token_logprob(logits, token, *top)).transpose()?;
        self.tokens.push(token);
        if let Some(drafter) = &mut self.drafter {
            drafter.push(token);
        }
        self.stats.new_tokens += 1;
        out.events.push(Event::Token { id: wanted.id, choice: self.choice, token, logprob });
        if new + 1 == wanted.max_new {
            out.ended = Some(Stop::Length);
        } else if self.tokens.len() > wanted.max_len {
            out.ended = Some(Stop::Full);
        }
        Ok(())
    }

    /// Another continuation of the same prompt, with no blocks yet.
    fn fork(&self, choice: usize, sampler: Sampler) -> Self {
        Self {
            wanted: self.wanted.clone(),
            choice,
            tokens: self.tokens.clone(),
            computed: 0,
            blocks: Vec::new(),
            hashes: self.hashes.clone(),
            sampler,
            mask: None,
            drafter: self.drafter.clone(),
            forks: Vec::new(),
            prompt_logprobs: Vec::new(),
            instead: Vec::new(),
            prompt_told: true,
            stats: self.stats,
        }
    }

    /// The prompt's log-probabilities, once all are there, and once.
    pub(super) fn tell_prompt(&mut self) -> Option<Event> {
        let whole = self.wanted.prompt_logprobs.is_some() && self.next_scored() == self.wanted.prompt_len;
        let due = whole && !self.prompt_told;
        self.prompt_told |= due;
        due.then(|| Event::Prompt { id: self.id(), logprobs: self.prompt_logprobs.clone(), instead: self.instead.clone() })
    }

    /// Tells the pool of the blocks that are full now.
    pub(super) fn publish(&mut self, pool: &mut BlockPool) {
        for i in self.hashes.len()..self.computed / KV_BLOCK {
            let tokens = &self.tokens[i * KV_BLOCK..(i + 1) * KV_BLOCK];
            let parent = self.hashes.last().copied().or(self.wanted.root());
            let hash = block_hash(parent, tokens);
            pool.fill(self.blocks[i], hash, parent, tokens);
            self.hashes.push(hash);
        }
    }

    /// Blocks that hold the beginning of this sequence already. Its newest token is never among them: its logits are wanted.
    pub(super) fn known_blocks(&self, pool: &BlockPool) -> Vec<(u32, BlockHash)> {
        let mut found: Vec<(u32, BlockHash)> = Vec::new();
        let mut end = self.tokens.len() - 1;
        if self.wanted.prompt_logprobs.is_some() && self.next_scored() < self.wanted.prompt_len {
            end = self.next_scored() - 1; // the logits from there on are wanted
        }
        for tokens in self.tokens[..end].chunks_exact(KV_BLOCK) {
            let parent = found.last().map(|f| f.1).or(self.wanted.root());
            let hash = block_hash(parent, tokens);
            match pool.find(hash, parent, tokens) {
                Some(block) => found.push((block, hash)),
                None => break,
            }
        }
        found
    }

    /// Begins with these blocks, which it holds from now on.
    pub(super) fn begin_with(&mut self, found: Vec<(u32, BlockHash)>, pool: &mut BlockPool) {
        self.computed = found.len() * KV_BLOCK;
        self.hashes = found.iter().map(|f| f.1).collect();
        self.blocks = found.into_iter().map(|f| f.0).collect();
        self.blocks.iter().for_each(|&block| pool.share(block));
    }

    /// Gives its blocks back; it can be computed again.
    pub(super) fn drop_blocks(&mut self, pool: &mut BlockPool) {
        pool.release_all(&mut self.blocks);
        self.hashes.clear();
        self.computed = 0;
    }
}

/// What a step did to a sequence.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) events: Vec<Event>,
    pub(super) ended: Option<Stop>,
    /// A guess was wrong: what was computed after it is worth nothing.
    pub(super) missed: bool,
    /// Guesses that were right.
    pub(super) accepted: usize,
    pub(super) forks: Vec<(Sequence, Outcome)>,
    pub(super) failed: Option<crate::Error>,
}
