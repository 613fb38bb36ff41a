//! `/v1/messages` and `/v1/messages/count_tokens`, in Anthropic's form.

use axum::Extension;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use recua_core::tokenizer::TemplateValue;
use serde::Deserialize;
use serde_json::{Value, json};

use super::document;
use crate::conversation::{Turn, content};
use crate::error::{ApiError, Result};
use crate::fields::{Fields, expected};
use crate::model::Model;
use crate::params::{Params, stops};
use crate::plan::{Plan, ToolChoice, Tools, begin};
use crate::server::{Caller, Server, aside};
use crate::sse::{Events, Next, stream};
use crate::tools::{Call, Whole};
use crate::work::{Finish, Step, Usage, Work};

/// The route.
pub(crate) async fn messages(State(server): State<Server>, Extension(caller): Extension<Caller>, body: Bytes) -> Response {
    answer(server, caller, body).await.unwrap_or_else(|e| e.respond(&e.anthropic()))
}

/// The route.
pub(crate) async fn count_tokens(State(server): State<Server>, body: Bytes) -> Response {
    match aside(move || Ok(read(&server, &body, false)?.ids.len())).await {
        Ok(tokens) => document(&json!({ "input_tokens": tokens })),
        Err(e) => e.respond(&e.anthropic()),
    }
}

/// A tool with its schema as it was written.
#[derive(Deserialize)]
struct Tool {
    name: Option<TemplateValue>,
    description: Option<TemplateValue>,
    input_schema: Option<TemplateValue>,
}

#[derive(Deserialize)]
struct Written {
    tools: Vec<Tool>,
}

/// The tools in OpenAI's form, which templates take.
fn tools(model: &Model, body: &[u8], list: &[Value]) -> Result<Tools> {
    let mut known = Vec::new();
    for (i, tool) in list.iter().enumerate() {
        match (tool["type"].as_str(), tool["name"].as_str()) {
            (None | Some("custom"), Some(name)) if !name.is_empty() => {
                known.push((name.to_string(), tool["input_schema"].clone()));
            }
            (None | Some("custom"), _) => return Err(ApiError::bad(&format!("tools[{i}].name"), "expected a name, got none")),
            (Some(kind), _) => {
                return Err(ApiError::unsupported(&format!("tools[{i}] of type {kind}"), "only tools of the client are"));
            }
        }
    }
    if known.is_empty() {
        return Ok(Tools::default());
    }
    if !model.template()?.takes_tools() {
        return Err(ApiError::unsupported("tools", "the model's chat template has no place for tools"));
    }
    let given: Written = serde_json::from_slice(body).map_err(|e| ApiError::bad("tools", e.to_string()))?;
    let one = |tool: Tool| {
        let members = [("name", tool.name), ("description", tool.description), ("parameters", tool.input_schema)];
        let function = TemplateValue::object(members.into_iter().filter_map(|(key, value)| Some((key, value?))));
        TemplateValue::object([("type", TemplateValue::text("function")), ("function", function)])
    };
    Ok(Tools { written: Some(TemplateValue::list(given.tools.into_iter().map(one))), known })
}

fn read(server: &Server, bytes: &[u8], writes: bool) -> Result<Plan> {
    let mut fields = Fields::parse(bytes)?;
    let model = server.model(fields.text("model")?.as_deref())?;
    model.max_len()?;
    model.tokenizer("messages")?;
    let stop = stops("stop_sequences", fields.take("stop_sequences"))?;
    for field in ["stop", "n", "stream_options", "response_format"] {
        if fields.has(field) {
            return Err(ApiError::unsupported(field, "it is a field of another API"));
        }
    }
    let mut params = Params::take(&mut fields, &model, server)?;
    params.stops = stop;
    params.max_tokens = fields.count("max_tokens")?;
    if writes && params.max_tokens.is_none_or(|n| n == 0) {
        return Err(ApiError::bad("max_tokens", "expected a number of at least 1"));
    }
    if let Some(thinking) = fields.take("thinking")
        && thinking["type"] != "disabled"
    {
        return Err(ApiError::unsupported("thinking", "the model does not think aloud"));
    }
    let system = content("system", fields.take("system"))?;
    let list = fields.list("messages")?.ok_or_else(|| ApiError::bad("messages", "expected a list, got nothing"))?;
    let given = fields.list("tools")?.unwrap_or_default();
    let choice = fields.take("tool_choice");
    fields.finish()?;
    let mut turns = Vec::new();
    if !system.is_empty() {
        turns.push(Turn::new("system", system));
    }
    for (i, message) in list.into_iter().enumerate() {
        turn(&format!("messages[{i}]"), &message, &mut turns)?;
    }
    let tools = tools(&model, bytes, &given)?;
    let single = choice.as_ref().is_some_and(|choice| choice["disable_parallel_tool_use"] == true);
    Plan::new(model, params, &turns, tools, ToolChoice::anthropic(choice.as_ref())?, single)
}

/// A message: text, calls and results of tools.
fn turn(at: &str, message: &Value, turns: &mut Vec<Turn>) -> Result<()> {
    let role = match message["role"].as_str() {
        Some(role @ ("user" | "assistant" | "system")) => role,
        _ => return Err(expected(&format!("{at}.role"), "user or assistant", &message["role"])),
    };
    let parts = match &message["content"] {
        Value::String(text) => {
            turns.push(Turn::new(role, text));
            return Ok(());
        }
        Value::Array(parts) => parts,
        other => return Err(expected(&format!("{at}.content"), "a text or a list of blocks", other)),
    };
    let mut turn = Turn::new(role, "");
    let mut results = Vec::new();
    for part in parts {
        match part["type"].as_str() {
            Some("text") => turn.content += part["text"].as_str().ok_or_else(|| expected(at, "a block of text", part))?,
            Some("tool_use") => {
                let name = part["name"].as_str().ok_or_else(|| expected(at, "a tool_use with a name", part))?;
                let id = part["id"].as_str().unwrap_or_default();
                turn.calls.push(Call { id: id.into(), name: name.into(), arguments: part["input"].to_string() });
            }
            Some("tool_result") => {
                let mut result = Turn::new("tool", content(&format!("{at}.content"), Some(part["content"].clone()))?);
                result.call_id = part["tool_use_id"].as_str().map(String::from);
                let called = |turn: &Turn| turn.calls.iter().find(|call| Some(&call.id) == result.call_id.as_ref()).cloned();
                result.name = turns.iter().rev().find_map(called).map(|call| call.name);
                results.push(result);
            }
            // What it has thought is not told again.
            Some("thinking" | "redacted_thinking") => {}
            Some(kind) => return Err(ApiError::unsupported(&format!("{at}.content of type {kind}"), "the model reads text")),
            None => return Err(expected(&format!("{at}.content"), "a block with a type", part)),
        }
    }
    let only_results = !results.is_empty() && turn.content.is_empty() && turn.calls.is_empty();
    turns.append(&mut results);
    if !only_results {
        turns.push(turn);
    }
    Ok(())
}

async fn answer(server: Server, caller: Caller, body: Bytes) -> Result<Response> {
    let read = |server: &Server, body: &[u8]| read(server, body, true);
    let (plan, work) = begin(&server, caller, body, read, |plan| plan).await?;
    let shown = Shown { id: server.id("msg_"), plan, server: server.clone() };
    if shown.plan.params.stream {
        let write = move |events| async move { shown.write(work, events).await };
        return Ok(stream(server.0.config.keep_alive, HeaderMap::new(), write));
    }
    shown.whole(work).await
}

struct Shown {
    id: String,
    plan: Plan,
    server: Server,
}

fn usage(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.prompt - usage.cached.min(usage.prompt),
        "cache_read_input_tokens": usage.cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.completion,
    })
}

impl Shown {
    /// Why it ended, in Anthropic's words, and the text that ended it.
    fn reason(&self, finish: Option<&Finish>, calls: bool) -> (&'static str, Value) {
        let own = self.plan.model.template.as_ref().map_or(&[][..], |template| template.stops());
        let stop = finish.and_then(|finish| finish.stop.clone()).filter(|stop| !own.contains(&stop.as_str()));
        match (finish.map(|finish| finish.reason), stop) {
            _ if calls => ("tool_use", Value::Null),
            (_, Some(stop)) => ("stop_sequence", stop.into()),
            (Some("length"), None) => ("max_tokens", Value::Null),
            _ => ("end_turn", Value::Null),
        }
    }

    fn message(&self, content: Vec<Value>, reason: Value, stop: Value, used: Usage) -> Value {
        json!({
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.plan.model.name,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": stop,
            "usage": usage(used),
        })
    }

    fn call(&self, name: &str, input: Value) -> Value {
        json!({ "type": "tool_use", "id": self.server.id("toolu_"), "name": name, "input": input })
    }

    async fn whole(self, mut work: Work) -> Result<Response> {
        let Whole { text, calls, finish } = Whole::read(self.plan.answer(), &mut work).await?;
        let (reason, stop) = self.reason(finish.as_ref(), !calls.is_empty());
        let mut content = Vec::new();
        if !text.is_empty() || calls.is_empty() {
            content.push(json!({ "type": "text", "text": text }));
        }
        for (name, arguments) in &calls {
            content.push(self.call(name, serde_json::from_str(arguments).unwrap_or_default()));
        }
        Ok(document(&self.message(content, reason.into(), stop, work.usage)))
    }

    async fn write(self, mut work: Work, events: Events) {
        let send = async |value: Value| events.event(value["type"].as_str().unwrap_or_default(), &value).await;
        let (mut answer, mut open, mut index, mut finish) = (self.plan.answer(), false, 0, None);
        let message = self.message(Vec::new(), Value::Null, Value::Null, work.usage);
        if !send(json!({ "type": "message_start", "message": message })).await || !send(json!({ "type": "ping" })).await {
            return;
        }
        let start = |index: usize| {
            let block = json!({ "type": "text", "text": "" });
            json!({ "type": "content_block_start", "index": index, "content_block": block })
        };
        let more = |index: usize, delta: Value| json!({ "type": "content_block_delta", "index": index, "delta": delta });
        let close = |index: usize| json!({ "type": "content_block_stop", "index": index });
        let mut calls = Vec::new();
        loop {
            match events.next(&mut work).await {
                Next::Gone => return,
                Next::End => break,
                Next::Failed(e) => {
                    send(e.anthropic()).await;
                    return;
                }
                Next::Step(Step::Prompt { .. }) => {}
                Next::Step(Step::Text(delta)) => {
                    let (text, found) = answer.take(&delta);
                    calls.extend(found);
                    finish = delta.finish.or(finish);
                    if text.is_empty() {
                        continue;
                    }
                    if !open && !send(start(index)).await {
                        return;
                    }
                    open = true;
                    if !send(more(index, json!({ "type": "text_delta", "text": text }))).await {
                        return;
                    }
                }
            }
        }
        if !open && calls.is_empty() {
            open = send(start(index)).await;
        }
        if open {
            send(close(index)).await;
            index += 1;
        }
        for (name, arguments) in &calls {
            let block = self.call(name, json!({}));
            send(json!({ "type": "content_block_start", "index": index, "content_block": block })).await;
            send(more(index, json!({ "type": "input_json_delta", "partial_json": arguments }))).await;
            send(close(index)).await;
            index += 1;
        }
        let (reason, stop) = self.reason(finish.as_ref(), !calls.is_empty());
        let delta = json!({ "stop_reason": reason, "stop_sequence": stop });
        send(json!({ "type": "message_delta", "delta": delta, "usage": usage(work.usage) })).await;
        send(json!({ "type": "message_stop" })).await;
    }
}
