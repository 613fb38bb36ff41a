//! `/v1/completions`: texts that go on from prompts, and what the model thinks of given tokens.

use std::sync::Arc;

use axum::Extension;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use recua_core::generate::{Bos, TokenLogprob};
use serde_json::{Map, Value, json};

use super::{document, number, usage};
use crate::error::{ApiError, Result};
use crate::fields::{Fields, expected, ids};
use crate::model::{Model, now};
use crate::params::Params;
use crate::server::{Caller, Server, aside};
use crate::sse::{Events, Next, stream};
use crate::work::{Finish, Offsets, Prompts, Step, Told, Work};

/// Most log-probabilities of prompts in one answer.
const MOST_SCORES: usize = 4_000_000;

/// What was asked for, ready to be computed.
struct Plan {
    model: Arc<Model>,
    params: Params,
    prompts: Prompts,
    /// The text of each prompt, where it is echoed.
    texts: Option<Vec<String>>,
    /// Tokens before each prompt that the client knows nothing of.
    hidden: Vec<usize>,
}

/// The route.
pub(crate) async fn completions(State(server): State<Server>, Extension(caller): Extension<Caller>, body: Bytes) -> Response {
    answer(server, caller, body).await.unwrap_or_else(IntoResponse::into_response)
}

async fn answer(server: Server, caller: Caller, body: Bytes) -> Result<Response> {
    let active = server.begin()?;
    let of = server.clone();
    let (plan, work) = aside(move || {
        let plan = Plan::read(&of, &body)?;
        let work = Work::start(&of, active, &plan.model, caller, &plan.prompts, &plan.params)?;
        Ok((plan, work))
    })
    .await?;
    let shown = Shown { id: server.id("cmpl-"), created: now(), plan };
    if shown.plan.params.stream {
        let write = move |events| async move { shown.write(work, events).await };
        return Ok(stream(server.0.config.keep_alive, HeaderMap::new(), write));
    }
    shown.whole(work).await
}

impl Plan {
    fn read(server: &Server, bytes: &[u8]) -> Result<Self> {
        let mut fields = Fields::parse(bytes)?;
        let model = server.model(fields.text("model")?.as_deref())?;
        let max_len = model.max_len()?;
        let mut params = Params::take(&mut fields, &model, server)?;
        params.max_tokens = Some(fields.count("max_tokens")?.unwrap_or(16));
        let most = server.0.config.max_logprobs;
        params.logprobs = match fields.take("logprobs") {
            None | Some(Value::Bool(false)) => None,
            Some(value) => match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
                Some(n) if n <= most => Some(n),
                _ => return Err(expected("logprobs", &format!("a number from 0 to {most}"), &value)),
            },
        };
        let echo = fields.flag("echo")?.unwrap_or(false);
        let bos = if fields.flag("add_special_tokens")?.unwrap_or(true) { Bos::Auto } else { Bos::Never };
        let prompt = fields.take("prompt").ok_or_else(|| ApiError::bad("prompt", "expected a prompt, got none"))?;
        fields.finish()?;

        let mut all = Vec::new();
        let mut texts = Vec::new();
        let mut hidden = Vec::new();
        for one in split(prompt)? {
            let (ids, text, before) = match one {
                One::Text(text) => (model.encode(&text, bos)?, Some(text), 0),
                One::Ids(mut ids) => {
                    let before = server.0.config.score_bos && ids.first() != model.bos.as_ref();
                    if before && let Some(bos) = model.bos {
                        ids.insert(0, bos);
                    }
                    (ids, None, usize::from(before && model.bos.is_some()))
                }
            };
            // One that is only scored does without its last token's position.
            let scored_only = params.max_tokens == Some(0);
            model.check("prompt", &ids, if scored_only { max_len + 1 } else { max_len })?;
            if echo {
                let text = text.unwrap_or_else(|| match &model.tokenizer {
                    Some(tokenizer) => tokenizer.decode_after(&[], &ids).unwrap_or_default(),
                    None => ids[before..].iter().map(|id| model.piece(*id)).collect(),
                });
                texts.push(text);
            }
            all.push(ids);
            hidden.push(before);
        }
        if all.is_empty() {
            return Err(ApiError::bad("prompt", "expected at least one prompt, got none"));
        }
        if let Some(top) = params.logprobs.filter(|_| echo) {
            let numbers = all.iter().map(Vec::len).sum::<usize>().saturating_mul(params.n).saturating_mul(top + 1);
            if numbers > MOST_SCORES {
                let problem = format!("{numbers} log-probabilities at once are more than {MOST_SCORES}; split the request");
                return Err(ApiError::bad("logprobs", problem));
            }
        }
        let logprobs = params.logprobs.is_some();
        let prompts = Prompts { ids: all, scored: echo && logprobs, tell_end: logprobs, counts_prompt: echo };
        Ok(Self { model, params, prompts, texts: echo.then_some(texts), hidden })
    }

    /// The beginning of a text that is echoed: the prompt with its log-probabilities.
    fn echo(&self, prompt: usize, of_prompt: Option<&[TokenLogprob]>) -> (String, Option<Logprobs>) {
        let Some(texts) = &self.texts else { return (String::new(), None) };
        let logprobs = of_prompt.map(|of_prompt| {
            let (ids, hidden) = (&self.prompts.ids[prompt], self.hidden[prompt]);
            let mut offsets = Offsets::new(&self.model);
            let mut all = Logprobs::default();
            for (i, id) in ids.iter().enumerate() {
                let offset = offsets.push(&self.model, *id);
                if i >= hidden {
                    let logprob = i.checked_sub(1).and_then(|i| of_prompt.get(i));
                    all.push(&self.model, *id, logprob, offset);
                }
            }
            all
        });
        (texts[prompt].clone(), logprobs)
    }
}

enum One {
    Text(String),
    Ids(Vec<u32>),
}

/// A text, token ids, or a list of either.
fn split(prompt: Value) -> Result<Vec<One>> {
    let what = "a text, a list of token ids, or a list of those";
    let one = |value: Value| match value {
        Value::String(text) => Ok(One::Text(text)),
        Value::Array(list) => Ok(One::Ids(ids("prompt", &list)?)),
        other => Err(expected("prompt", what, &other)),
    };
    match prompt {
        Value::Array(list) if list.first().is_some_and(Value::is_number) => Ok(vec![One::Ids(ids("prompt", &list)?)]),
        Value::Array(list) => list.into_iter().map(one).collect(),
        other => Ok(vec![one(other)?]),
    }
}

/// OpenAI's four lists.
#[derive(Default)]
struct Logprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<Value>,
    top_logprobs: Vec<Value>,
    text_offset: Vec<usize>,
}

impl Logprobs {
    fn push(&mut self, model: &Model, token: u32, logprob: Option<&TokenLogprob>, offset: usize) {
        let piece = model.piece(token);
        let (own, top) = match logprob {
            None => (Value::Null, Value::Null),
            Some(of) => {
                // Of two tokens with one name the likelier.
                let mut top: Map<String, Value> = Map::new();
                for (id, logprob) in of.top.iter().rev() {
                    top.insert(model.piece(*id), number(*logprob));
                }
                top.entry(piece.clone()).or_insert_with(|| number(of.logprob));
                (number(of.logprob), top.into())
            }
        };
        self.tokens.push(piece);
        self.token_logprobs.push(own);
        self.top_logprobs.push(top);
        self.text_offset.push(offset);
    }

    fn tell(&mut self, model: &Model, told: &[Told]) {
        for told in told {
            self.push(model, told.token, told.logprob.as_ref(), told.offset);
        }
    }

    fn append(&mut self, mut other: Self) {
        self.tokens.append(&mut other.tokens);
        self.token_logprobs.append(&mut other.token_logprobs);
        self.top_logprobs.append(&mut other.top_logprobs);
        self.text_offset.append(&mut other.text_offset);
    }

    fn json(self) -> Value {
        json!({
            "tokens": self.tokens,
            "token_logprobs": self.token_logprobs,
            "top_logprobs": self.top_logprobs,
            "text_offset": self.text_offset,
        })
    }
}

struct Shown {
    id: String,
    created: u64,
    plan: Plan,
}

impl Shown {
    fn object(&self, choices: Vec<Value>) -> Map<String, Value> {
        let mut object = Map::new();
        let mut put = |key: &str, value: Value| object.insert(key.into(), value);
        put("id", self.id.clone().into());
        put("object", "text_completion".into());
        put("created", self.created.into());
        put("model", self.plan.model.name.clone().into());
        put("system_fingerprint", fingerprint().into());
        put("choices", choices.into());
        object
    }

    fn choice(index: usize, text: String, logprobs: Option<Logprobs>, finish: Option<&Finish>) -> Value {
        json!({
            "index": index,
            "text": text,
            "logprobs": logprobs.map(Logprobs::json),
            "finish_reason": finish.map(|finish| finish.reason),
        })
    }

    async fn whole(self, mut work: Work) -> Result<Response> {
        let (plan, n) = (&self.plan, self.plan.params.n);
        let tells = plan.params.logprobs.is_some();
        let mut texts: Vec<(String, Logprobs, Option<Finish>)> =
            (0..work.len()).map(|_| (String::new(), Logprobs::default(), None)).collect();
        if plan.texts.is_some() && !tells {
            texts.iter_mut().enumerate().for_each(|(i, text)| text.0 = plan.echo(i / n, None).0);
        }
        while let Some(step) = work.next().await {
            match step? {
                Step::Prompt { prompt, texts: of, logprobs } => {
                    for text in &mut texts[of] {
                        let (echoed, of_prompt) = plan.echo(prompt, Some(&logprobs));
                        text.0 = echoed;
                        text.1 = of_prompt.unwrap_or_default();
                    }
                }
                Step::Text(delta) => {
                    let text = &mut texts[delta.index];
                    text.0.push_str(&delta.text);
                    text.1.tell(&plan.model, &delta.told);
                    text.2 = delta.finish.or(text.2.take());
                }
            }
        }
        let choice = |(i, (text, logprobs, finish)): (usize, (String, Logprobs, Option<Finish>))| {
            Self::choice(i, text, tells.then_some(logprobs), finish.as_ref())
        };
        let choices = texts.into_iter().enumerate().map(choice).collect();
        let mut object = self.object(choices);
        object.insert("usage".into(), usage(work.usage));
        Ok(document(&object.into()))
    }

    async fn write(self, mut work: Work, events: Events) {
        let (plan, n) = (&self.plan, self.plan.params.n);
        let tells = plan.params.logprobs.is_some();
        // What is echoed goes with the first piece of text.
        let mut begun: Vec<Option<(String, Option<Logprobs>)>> = (0..work.len()).map(|_| None).collect();
        if plan.texts.is_some() && !tells {
            begun.iter_mut().enumerate().for_each(|(i, begun)| *begun = Some(plan.echo(i / n, None)));
        }
        loop {
            match events.next(&mut work).await {
                Next::Gone => return,
                Next::End => break,
                Next::Failed(e) => {
                    events.data(&e.openai()).await;
                    return;
                }
                Next::Step(Step::Prompt { prompt, texts, logprobs }) => {
                    for begun in &mut begun[texts] {
                        *begun = Some(plan.echo(prompt, Some(&logprobs)));
                    }
                }
                Next::Step(Step::Text(delta)) => {
                    let (mut text, mut logprobs) = begun[delta.index].take().unwrap_or_default();
                    text.push_str(&delta.text);
                    if tells {
                        let mut of_text = Logprobs::default();
                        of_text.tell(&plan.model, &delta.told);
                        logprobs.get_or_insert_default().append(of_text);
                    }
                    let choice = Self::choice(delta.index, text, logprobs, delta.finish.as_ref());
                    let mut object = self.object(vec![choice]);
                    if plan.params.include_usage {
                        object.insert("usage".into(), Value::Null);
                    }
                    if !events.data(&object.into()).await {
                        return;
                    }
                }
            }
        }
        if plan.params.include_usage {
            let mut object = self.object(Vec::new());
            object.insert("usage".into(), usage(work.usage));
            events.data(&object.into()).await;
        }
        events.done().await;
    }
}

/// Which program answered.
pub(crate) fn fingerprint() -> &'static str {
    concat!("recua-", env!("CARGO_PKG_VERSION"))
}
