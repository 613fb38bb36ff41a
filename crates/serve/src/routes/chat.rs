//! `/v1/chat/completions`.

use axum::Extension;
use axum::body::Bytes;
use axum::extract::State;
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
use crate::plan::{Plan, ToolChoice, Tools, begin};
use crate::server::{Caller, Server};
use crate::sse::{Events, Next, stream};
use crate::tools::Answer;
use crate::work::{Finish, Step, Told, Work};

/// The route.
pub(crate) async fn chat(State(server): State<Server>, Extension(caller): Extension<Caller>, body: Bytes) -> Response {
    answer(server, caller, body).await.unwrap_or_else(IntoResponse::into_response)
}

/// Tools in the order in which they were written, members and all.
#[derive(Deserialize)]
struct Ordered {
    tools: Option<TemplateValue>,
}

/// OpenAI's list of functions.
pub(crate) fn functions(model: &Model, body: &[u8], list: &[Value]) -> Result<Tools> {
    let mut known = Vec::new();
    for (i, tool) in list.iter().enumerate() {
        match (tool["type"].as_str(), tool["function"]["name"].as_str()) {
            (Some("function"), Some(name)) if !name.is_empty() => {
                known.push((name.to_string(), tool["function"]["parameters"].clone()));
            }
            (Some("function"), _) => {
                return Err(ApiError::bad(&format!("tools[{i}].function.name"), "expected a name, got none"));
            }
            (Some(kind), _) => return Err(ApiError::unsupported(&format!("tools[{i}] of type {kind}"), "only functions are")),
            (None, _) => return Err(expected(&format!("tools[{i}]"), "a tool of type function", tool)),
        }
    }
    if known.is_empty() {
        return Ok(Tools::default());
    }
    if !model.template()?.takes_tools() {
        return Err(ApiError::unsupported("tools", "the model's chat template has no place for tools"));
    }
    let ordered: Ordered = serde_json::from_slice(body).map_err(|e| ApiError::bad("tools", e.to_string()))?;
    Ok(Tools { written: ordered.tools, known })
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
    let choice = ToolChoice::openai(fields.take("tool_choice"))?;
    let single = fields.flag("parallel_tool_calls")? == Some(false);
    fields.finish()?;
    let turns = conversation::openai(messages)?;
    let tools = functions(&model, bytes, &list)?;
    Plan::new(model, params, &turns, tools, choice, single)
}

async fn answer(server: Server, caller: Caller, body: Bytes) -> Result<Response> {
    let (plan, work) = begin(&server, caller, body, read, |plan| plan).await?;
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
            calls: Vec<(String, String)>,
            logprobs: Vec<Value>,
            finish: Option<Finish>,
        }
        let text =
            || Text { answer: self.plan.answer(), text: String::new(), calls: Vec::new(), logprobs: Vec::new(), finish: None };
        let mut texts: Vec<Text> = (0..work.len()).map(|_| text()).collect();
        while let Some(step) = work.next().await {
            if let Step::Text(delta) = step? {
                let text = &mut texts[delta.index];
                let (more, calls) = text.answer.take(&delta);
                text.text += &more;
                text.calls.extend(calls);
                text.logprobs.extend(content(&self.plan.model, &delta.told));
                text.finish = delta.finish.or(text.finish.take());
            }
        }
        let tells = self.plan.params.logprobs.is_some();
        let choice = |(i, text): (usize, Text)| {
            let mut reason = text.finish.map_or("stop", |finish| finish.reason);
            let mut message = json!({ "role": "assistant", "content": text.text, "refusal": null });
            if !text.calls.is_empty() {
                reason = "tool_calls";
                message["tool_calls"] = self.calls(text.calls, false).into();
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
                    let i = delta.index;
                    let (text, calls) = answers[i].take(&delta);
                    let calls = self.calls(calls, true);
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
