//! `/v1/chat/completions`.

use std::sync::Arc;

use axum::Extension;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use recua_core::tokenizer::TemplateValue;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::completions::fingerprint;
use super::{document, number, usage};
use crate::conversation;
use crate::error::{ApiError, Result};
use crate::fields::{Fields, expected};
use crate::model::{Model, now};
use crate::params::Params;
use crate::server::{Caller, Server, aside, body};
use crate::sse::{Events, Next, stream};
use crate::tools::Answer;
use crate::work::{Finish, Prompts, Step, Told, Work};

/// The route.
pub(crate) async fn chat(
    State(server): State<Server>,
    Extension(caller): Extension<Caller>,
    bytes: Result<Bytes, BytesRejection>,
) -> Response {
    answer(server, caller, bytes).await.unwrap_or_else(IntoResponse::into_response)
}

/// A conversation that is to be answered: of chat, responses and messages.
pub(crate) struct Plan {
    pub(crate) model: Arc<Model>,
    pub(crate) params: Params,
    pub(crate) ids: Vec<u32>,
    /// Names of the tools.
    pub(crate) tools: Vec<String>,
    /// One call at most.
    pub(crate) single: bool,
}

impl Plan {
    /// Hands it to the engine.
    pub(crate) fn start(&self, server: &Server, active: crate::server::Active, caller: Caller) -> Result<Work> {
        let prompts = Prompts { ids: vec![self.ids.clone()], scored: false, tell_end: false, counts_prompt: false };
        self.model.check("messages", &self.ids, self.model.max_len()?)?;
        Work::start(server, active, &self.model, caller, &prompts, &self.params)
    }

    /// What sorts the text of an answer.
    pub(crate) fn answer(&self) -> Answer {
        let plain = self.model.template.as_ref().is_none_or(|template| template.origin().is_none());
        Answer::new(self.tools.clone(), self.single, plain)
    }
}

/// Tools in the order in which they were written, members and all.
#[derive(Deserialize)]
struct Ordered {
    tools: Option<TemplateValue>,
}

/// OpenAI's list of functions: what the template gets, and their names.
pub(crate) fn functions(model: &Model, body: &[u8], list: &[Value]) -> Result<(Option<TemplateValue>, Vec<String>)> {
    let mut names = Vec::new();
    for (i, tool) in list.iter().enumerate() {
        match (tool["type"].as_str(), tool["function"]["name"].as_str()) {
            (Some("function"), Some(name)) if !name.is_empty() => names.push(name.to_string()),
            (Some("function"), _) => {
                return Err(ApiError::bad(&format!("tools[{i}].function.name"), "expected a name, got none"));
            }
            (Some(kind), _) => return Err(ApiError::unsupported(&format!("tools[{i}] of type {kind}"), "only functions are")),
            (None, _) => return Err(expected(&format!("tools[{i}]"), "a tool of type function", tool)),
        }
    }
    if names.is_empty() {
        return Ok((None, names));
    }
    if !model.template()?.takes_tools() {
        return Err(ApiError::unsupported("tools", "the model's chat template has no place for tools"));
    }
    let ordered: Ordered = serde_json::from_slice(body).map_err(|e| ApiError::bad("tools", e.to_string()))?;
    Ok((ordered.tools, names))
}

fn read(server: &Server, bytes: &[u8]) -> Result<Plan> {
    let mut fields = Fields::parse(bytes)?;
    let model = server.model(fields.text("model")?.as_deref())?;
    model.max_len()?;
    model.tokenizer("messages")?;
    let mut params = Params::take(&mut fields, &model, server)?;
    // The older name is the second.
    let older = fields.count("max_tokens")?;
    params.max_tokens = fields.count("max_completion_tokens")?.or(older);
    let wanted = fields.flag("logprobs")?.unwrap_or(false);
    let top = fields.count("top_logprobs")?;
    let most = server.0.config.max_logprobs;
    match top {
        Some(_) if !wanted => return Err(ApiError::bad("top_logprobs", "it is for `logprobs: true` only")),
        Some(n) if n > most => return Err(ApiError::bad("top_logprobs", format!("expected a number from 0 to {most}, got {n}"))),
        _ => params.logprobs = wanted.then(|| top.unwrap_or(0)),
    }
    let messages = fields.list("messages")?.ok_or_else(|| ApiError::bad("messages", "expected a list, got nothing"))?;
    let list = fields.list("tools")?.unwrap_or_default();
    let choice = fields.take("tool_choice");
    let single = fields.flag("parallel_tool_calls")? == Some(false);
    fields.finish()?;
    let turns = conversation::openai(messages)?;
    let (mut tools, mut names) = functions(&model, bytes, &list)?;
    match choice.as_ref().map(|choice| choice.as_str().unwrap_or("a named tool")) {
        None | Some("auto") => {}
        Some("none") => (tools, names) = (None, Vec::new()),
        Some(other) => {
            return Err(ApiError::unsupported("tool_choice", &format!("expected auto or none, got {other}")));
        }
    }
    let ids = conversation::prompt(&model, &turns, tools.as_ref())?;
    if let Some(template) = &model.template {
        params.stops.extend(template.stops().iter().map(|stop| (*stop).to_string()));
    }
    Ok(Plan { model, params, ids, tools: names, single })
}

async fn answer(server: Server, caller: Caller, bytes: Result<Bytes, BytesRejection>) -> Result<Response> {
    let active = server.begin()?;
    let bytes = body(bytes)?;
    let of = server.clone();
    let (plan, work) = aside(move || {
        let plan = read(&of, &bytes)?;
        let work = plan.start(&of, active, caller)?;
        Ok((plan, work))
    })
    .await?;
    let shown = Shown { id: server.id("chatcmpl-"), created: now(), plan, server: server.clone() };
    if shown.plan.params.stream {
        let write = move |events| async move { shown.write(work, events).await };
        return Ok(stream(server.0.config.keep_alive, HeaderMap::new(), write));
    }
    shown.whole(work).await
}

struct Shown {
    id: String,
    created: u64,
    plan: Plan,
    server: Server,
}

/// Log-probabilities of tokens in the chat's form.
fn content(model: &Model, told: &[Told]) -> Vec<Value> {
    let one = |id: u32, logprob: f32| json!({ "token": model.piece(id), "logprob": number(logprob), "bytes": model.bytes(id) });
    let all = told.iter().map(|told| {
        let mut object = one(told.token, told.logprob.as_ref().map_or(0.0, |of| of.logprob));
        let top = told.logprob.as_ref().map(|of| of.top.iter().map(|(id, logprob)| one(*id, *logprob)).collect::<Vec<_>>());
        object["top_logprobs"] = top.unwrap_or_default().into();
        object
    });
    all.collect()
}

impl Shown {
    fn object(&self, kind: &str, choices: Vec<Value>) -> Map<String, Value> {
        let mut object = Map::new();
        let mut put = |key: &str, value: Value| object.insert(key.into(), value);
        put("id", self.id.clone().into());
        put("object", kind.into());
        put("created", self.created.into());
        put("model", self.plan.model.name.clone().into());
        put("system_fingerprint", fingerprint().into());
        put("choices", choices.into());
        object
    }

    fn calls(&self, calls: Vec<(String, String)>, indexed: bool) -> Vec<Value> {
        let one = |(i, (name, arguments)): (usize, (String, String))| {
            let function = json!({ "name": name, "arguments": arguments });
            let mut call = json!({ "id": self.server.id("call_"), "type": "function", "function": function });
            if indexed {
                call["index"] = i.into();
            }
            call
        };
        calls.into_iter().enumerate().map(one).collect()
    }

    async fn whole(self, mut work: Work) -> Result<Response> {
        struct Text {
            answer: Answer,
            text: String,
            logprobs: Vec<Value>,
            finish: Option<Finish>,
        }
        let text = || Text { answer: self.plan.answer(), text: String::new(), logprobs: Vec::new(), finish: None };
        let mut texts: Vec<Text> = (0..work.len()).map(|_| text()).collect();
        while let Some(step) = work.next().await {
            if let Step::Text(delta) = step? {
                let text = &mut texts[delta.index];
                text.text += &text.answer.push(&delta.text);
                text.logprobs.extend(content(&self.plan.model, &delta.told));
                text.finish = delta.finish.or(text.finish.take());
            }
        }
        let tells = self.plan.params.logprobs.is_some();
        let choice = |(i, mut text): (usize, Text)| {
            let (rest, calls) = text.answer.finish();
            text.text += &rest;
            let mut reason = text.finish.map_or("stop", |finish| finish.reason);
            let mut message = json!({ "role": "assistant", "content": text.text, "refusal": null });
            if !calls.is_empty() {
                reason = "tool_calls";
                message["tool_calls"] = self.calls(calls, false).into();
                message["content"] = Value::Null;
            }
            let logprobs = if tells { json!({ "content": text.logprobs, "refusal": null }) } else { Value::Null };
            json!({ "index": i, "message": message, "logprobs": logprobs, "finish_reason": reason })
        };
        let choices = texts.into_iter().enumerate().map(choice).collect();
        let mut object = self.object("chat.completion", choices);
        object.insert("usage".into(), usage(work.usage));
        Ok(document(&object.into()))
    }

    async fn chunk(&self, events: &Events, index: usize, delta: Value, logprobs: Value, finish: Option<&str>) -> bool {
        let choice = json!({ "index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish });
        let mut object = self.object("chat.completion.chunk", vec![choice]);
        if self.plan.params.include_usage {
            object.insert("usage".into(), Value::Null);
        }
        events.data(&object.into()).await
    }

    async fn write(self, mut work: Work, events: Events) {
        let mut answers: Vec<Answer> = (0..work.len()).map(|_| self.plan.answer()).collect();
        let tells = self.plan.params.logprobs.is_some();
        for i in 0..work.len() {
            let delta = json!({ "role": "assistant", "content": "" });
            if !self.chunk(&events, i, delta, Value::Null, None).await {
                return;
            }
        }
        loop {
            match events.next(&mut work).await {
                Next::Gone => return,
                Next::End => break,
                Next::Failed(e) => {
                    events.data(&e.openai()).await;
                    return;
                }
                Next::Step(Step::Prompt { .. }) => {}
                Next::Step(Step::Text(delta)) => {
                    let (i, answer) = (delta.index, &mut answers[delta.index]);
                    let mut text = answer.push(&delta.text);
                    let mut calls = Vec::new();
                    if delta.finish.is_some() {
                        let (rest, found) = answer.finish();
                        text += &rest;
                        calls = self.calls(found, true);
                    }
                    let told = content(&self.plan.model, &delta.told);
                    let logprobs =
                        if tells && !told.is_empty() { json!({ "content": told, "refusal": null }) } else { Value::Null };
                    if (!text.is_empty() || !logprobs.is_null())
                        && !self.chunk(&events, i, json!({ "content": text }), logprobs, None).await
                    {
                        return;
                    }
                    let Some(finish) = delta.finish else { continue };
                    let reason = if calls.is_empty() { finish.reason } else { "tool_calls" };
                    if !calls.is_empty() && !self.chunk(&events, i, json!({ "tool_calls": calls }), Value::Null, None).await {
                        return;
                    }
                    if !self.chunk(&events, i, json!({}), Value::Null, Some(reason)).await {
                        return;
                    }
                }
            }
        }
        if self.plan.params.include_usage {
            let mut object = self.object("chat.completion.chunk", Vec::new());
            object.insert("usage".into(), usage(work.usage));
            events.data(&object.into()).await;
        }
        events.done().await;
    }
}
