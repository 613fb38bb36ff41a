//! How texts are shown: as they are written, one after the other, or as lines of JSON.

use recua::Result;
use recua::generate::TokenLogprob;
use recua::tokenizer::Tokenizer;
use serde_json::{Map, Value, json};

use super::run::{Job, Text};
use crate::cli::{print, print_json, print_now};

/// What is shown, and how.
#[derive(Clone, Copy)]
pub(super) struct Show<'a> {
    pub(super) json: bool,
    /// Prompts came from a file.
    pub(super) many: bool,
    /// Continuations of a prompt.
    pub(super) n: usize,
    pub(super) tokenizer: Option<&'a Tokenizer>,
    /// Of several ranks the first speaks.
    pub(super) silent: bool,
}

impl Show<'_> {
    /// Text is shown while it is written: there is but one.
    fn streams(&self) -> bool {
        !self.silent && !self.json && !self.many && self.n == 1
    }

    /// Before the first step.
    pub(super) fn begin(&self, job: &Job<'_>) {
        if self.streams() {
            print_now(&self.prompt(job));
        }
    }

    /// New text.
    pub(super) fn text(&self, text: &str) {
        if self.streams() && !text.is_empty() {
            print_now(text);
        }
    }

    /// A new token of a model without a tokenizer.
    pub(super) fn token(&self, token: u32) {
        if self.streams() {
            print_now(&format!(" {token}"));
        }
    }

    /// The prompt as the text's beginning: ids without a tokenizer.
    fn prompt(&self, job: &Job<'_>) -> String {
        match (&job.prompt.given, self.tokenizer) {
            (Value::String(text), Some(_)) => text.clone(),
            (_, Some(tokenizer)) => tokenizer.decode(&job.prompt.ids).unwrap_or_default(),
            (_, None) => spaced(&job.prompt.ids),
        }
    }

    /// A prompt whose texts have all ended.
    pub(super) fn job(&self, index: usize, job: &Job<'_>) -> Result<()> {
        if self.silent {
            return Ok(());
        }
        if self.streams() {
            print("");
            return Ok(());
        }
        if let Some(error) = &job.failed {
            if self.json {
                return print_json(&json!({ "index": index, "prompt": job.prompt.given, "error": error.to_string() }));
            }
            print(&format!("--- {index} failed: {error} ---"));
            return Ok(());
        }
        for (choice, text) in job.texts.iter().enumerate() {
            if self.json {
                print_json(&self.object(index, job, choice, text))?;
                continue;
            }
            let name = if self.n > 1 { format!("{index}.{choice}") } else { index.to_string() };
            let text = if self.tokenizer.is_some() { text.text.clone() } else { format!(" {}", spaced(&text.tokens)) };
            print(&format!("--- {name} ---\n{}{text}", self.prompt(job)));
        }
        Ok(())
    }

    fn object(&self, index: usize, job: &Job<'_>, choice: usize, text: &Text) -> Value {
        let mut object = Map::new();
        let mut put = |key: &str, value: Value| object.insert(key.into(), value);
        if self.many {
            put("index", index.into());
        }
        if self.n > 1 {
            put("choice", choice.into());
        }
        put("prompt", job.prompt.given.clone());
        put("text", self.tokenizer.map_or(Value::Null, |_| text.text.clone().into()));
        put("tokens", text.tokens.clone().into());
        if !text.logprobs.is_empty() {
            put("logprobs", logprobs(&text.tokens, &text.logprobs).into());
        }
        if let Some(of_prompt) = &job.prompt_logprobs {
            put("prompt_tokens", job.prompt.ids.clone().into());
            // Nothing is before the first token.
            let mut all = vec![Value::Null];
            all.extend(logprobs(&job.prompt.ids[1..], of_prompt));
            put("prompt_logprobs", all.into());
        }
        put("stop", text.stop.into());
        if !self.many {
            put("tok_s", (text.tokens.len() as f64 / text.end_s.max(1e-9)).into());
            put("ttft_s", text.first_s.into());
        }
        object.into()
    }
}

fn logprobs(tokens: &[u32], all: &[TokenLogprob]) -> Vec<Value> {
    let one = |(token, of): (&u32, &TokenLogprob)| json!({ "token": token, "logprob": of.logprob, "top": of.top });
    tokens.iter().zip(all).map(one).collect()
}

fn spaced(ids: &[u32]) -> String {
    ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")
}
