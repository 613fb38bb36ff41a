//! Turns the strings of a question into the tokens that a model is given and those that are scored, by lm-evaluation-harness's rules for
//! causal models: context and continuation are encoded together and cut where the context ends.

use recua_core::tokenizer::Tokenizer;

use crate::{Ask, Error, Result};

/// What makes tokens of text.
pub trait Encode {
    /// Tokens of a text; the text of a special token is that token. Nothing is put before them.
    ///
    /// # Errors
    /// Text that has no tokens.
    fn tokens(&self, text: &str) -> Result<Vec<u32>>;

    /// What every text begins with: in most cases BOS, or nothing.
    fn prefix(&self) -> &[u32];

    /// What stands for an empty context: BOS, else EOS.
    fn empty(&self) -> Option<u32>;

    /// BOS as text: a text that begins so gets no second one.
    fn bos_text(&self) -> &str;
}

/// A tokenizer of this process.
pub struct Local {
    tokenizer: Tokenizer,
    bos_text: String,
}

impl Local {
    /// Encodes with a tokenizer.
    pub fn new(tokenizer: &Tokenizer) -> Self {
        let bos = tokenizer.bos_id().or(tokenizer.eos_id());
        let bos_text = bos.and_then(|id| tokenizer.token_of(id)).unwrap_or_default();
        Self { tokenizer: tokenizer.clone(), bos_text }
    }
}

impl Encode for Local {
    fn tokens(&self, text: &str) -> Result<Vec<u32>> {
        self.tokenizer.encode_with_special(text)
    }

    fn prefix(&self) -> &[u32] {
        self.tokenizer.prefix()
    }

    fn empty(&self) -> Option<u32> {
        self.tokenizer.bos_id().or(self.tokenizer.eos_id())
    }

    fn bos_text(&self) -> &str {
        &self.bos_text
    }
}

/// One pass through a model.
#[derive(Clone, Debug, PartialEq)]
pub enum Pass {
    /// The tokens from `from` on are scored.
    Score {
        /// Context and what is scored, no more than the model reads.
        tokens: Vec<u32>,
        /// The first that is scored.
        from: usize,
    },
    /// Texts that go on from the tokens.
    Generate {
        /// The context.
        tokens: Vec<u32>,
    },
}

impl Pass {
    /// Its tokens.
    pub fn tokens(&self) -> &[u32] {
        let (Self::Score { tokens, .. } | Self::Generate { tokens }) = self;
        tokens
    }
}

/// What an item asks, as passes; a rolling text has a pass a window. `max_len`: the longest sequence that the model reads.
///
/// # Errors
/// [`Error::TooLong`] for a continuation that no context fits before; those of the tokenizer.
pub fn passes(encode: &dyn Encode, ask: &Ask, max_len: usize) -> Result<Vec<Pass>> {
    match ask {
        Ask::Pairs(pairs) => {
            // Choices of one question have one context, which is encoded once.
            let mut known: Option<(&str, Vec<u32>)> = None;
            let mut all = Vec::new();
            for (context, continuation) in pairs {
                let mut before = known.take().filter(|(of, _)| of == context).map(|(_, tokens)| tokens);
                all.push(pair(encode, context, continuation, max_len, &mut before)?);
                known = before.map(|tokens| (context.as_str(), tokens));
            }
            Ok(all)
        }
        Ask::Rolling(text) => Ok(windows(&whole(encode, text)?, beginning(encode)?, max_len)),
        Ask::Generate { context, max_new, .. } => {
            if *max_new >= max_len {
                let hint = "the model reads too little for this task; leave the task out".into();
                return Err(Error::TooLong { what: "text to generate".into(), got: *max_new, max: max_len - 1, hint });
            }
            let mut tokens = whole(encode, context)?;
            if tokens.is_empty() {
                tokens.push(beginning(encode)?);
            }
            let surplus = tokens.len().saturating_sub(max_len - max_new);
            Ok(vec![Pass::Generate { tokens: tokens.split_off(surplus) }])
        }
    }
}

fn beginning(encode: &dyn Encode) -> Result<u32> {
    encode.empty().ok_or_else(|| {
        Error::bad_value(
            "tokenizer",
            "it names neither BOS nor EOS, and a text must follow something",
            "name one in tokenizer_config.json",
        )
    })
}

/// A text with what stands before every text.
fn whole(encode: &dyn Encode, text: &str) -> Result<Vec<u32>> {
    let mut tokens = encode.tokens(text)?;
    let bos = encode.bos_text();
    if bos.is_empty() || !text.starts_with(bos) {
        tokens.splice(..0, encode.prefix().iter().copied());
    }
    Ok(tokens)
}

/// `before`: the context's tokens, where they are known; they are afterwards.
fn pair(encode: &dyn Encode, context: &str, continuation: &str, max_len: usize, before: &mut Option<Vec<u32>>) -> Result<Pass> {
    let (mut tokens, scored);
    if context.is_empty() {
        let bos = beginning(encode)?;
        scored = encode.tokens(continuation)?;
        tokens = if scored.first() == Some(&bos) { Vec::new() } else { vec![bos] };
        let from = 1.max(tokens.len());
        tokens.extend(scored);
        return cut(tokens, from, max_len);
    }
    // Spaces go to what follows, with which they make tokens; the border is where the context alone ends.
    let kept = context.trim_end();
    let together = whole(encode, &format!("{context}{continuation}"))?;
    let of_context = match before.take() {
        Some(known) => known,
        None => whole(encode, kept)?,
    };
    scored = together.get(of_context.len()..).unwrap_or_default().to_vec();
    tokens = of_context.clone();
    *before = Some(of_context);
    if tokens.is_empty() {
        tokens.push(beginning(encode)?);
    }
    let from = tokens.len();
    tokens.extend(scored);
    cut(tokens, from, max_len)
}

/// Keeps the end of what is too long. The last token is only scored, not read.
fn cut(mut tokens: Vec<u32>, from: usize, max_len: usize) -> Result<Pass> {
    let scored = tokens.len() - from.min(tokens.len());
    if scored == 0 {
        let hint = "a continuation must be more than its context's last token; correct the task's file or its data";
        return Err(Error::bad_value("continuation", "it has no tokens of its own", hint));
    }
    if scored > max_len {
        let hint = "the model reads too little for this task; leave the task out".into();
        return Err(Error::TooLong { what: "continuation".into(), got: scored, max: max_len, hint });
    }
    let surplus = tokens.len().saturating_sub(max_len + 1);
    let tokens = tokens.split_off(surplus);
    Ok(Pass::Score { from: tokens.len() - scored, tokens })
}

/// Windows that score each token once: the first after `prefix`, each further one with as much context as there is room for.
fn windows(tokens: &[u32], prefix: u32, max_len: usize) -> Vec<Pass> {
    let mut passes = Vec::new();
    let mut scored = tokens.len().min(max_len);
    if scored > 0 {
        let mut first = vec![prefix];
        first.extend(&tokens[..scored]);
        passes.push(Pass::Score { tokens: first, from: 1 });
    }
    while scored < tokens.len() {
        let count = (tokens.len() - scored).min(max_len);
        let end = scored + count;
        passes.push(Pass::Score { tokens: tokens[end - max_len - 1..end].to_vec(), from: max_len + 1 - count });
        scored = end;
    }
    passes
}

/// The text before the first occurrence of each stop, one after the other.
pub(crate) fn cut_at(text: &str, until: &[String]) -> String {
    let cut = until.iter().filter(|stop| !stop.is_empty());
    cut.fold(text, |text, stop| text.split(stop.as_str()).next().unwrap_or(text)).into()
}
