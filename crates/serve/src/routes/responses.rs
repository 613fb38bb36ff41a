//! `/v1/responses`, stateless: text, functions, the stream of events that coding agents read.

use axum::Extension;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use recua_core::tokenizer::TemplateValue;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::document;
use crate::conversation::{Turn, arguments, content};
use crate::error::{ApiError, Result};
use crate::fields::{Fields, expected};
use crate::model::{Model, now};
use crate::params::{Params, response_format};
use crate::plan::{Plan, ToolChoice, Tools, begin};
use crate::server::{Caller, Server};
use crate::sse::{Events, Next, stream};
use crate::tools::{Call, Whole};
use crate::work::{Finish, Step, Usage, Work};

/// Names the tools that were left out.
const DROPPED: HeaderName = HeaderName::from_static("x-recua-dropped-tools");

/// The route.
pub(crate) async fn responses(State(server): State<Server>, Extension(caller): Extension<Caller>, body: Bytes) -> Response {
    answer(server, caller, body).await.unwrap_or_else(IntoResponse::into_response)
}

/// A tool with its schema as it was written.
#[derive(Deserialize)]
struct Tool {
    name: Option<TemplateValue>,
    description: Option<TemplateValue>,
    parameters: Option<TemplateValue>,
}

#[derive(Deserialize)]
struct Written {
    tools: Vec<Tool>,
}

/// The functions in the form that templates take, and what was left out: agents send tools that no server of a model alone
/// can run, and could not be used otherwise.
fn tools(model: &Model, body: &[u8], list: &[Value]) -> Result<(Tools, Vec<String>)> {
    let takes = model.template()?.takes_tools();
    let name = |tool: &Value| tool["name"].as_str().filter(|name| !name.is_empty()).map(String::from);
    let kept: Vec<bool> = list.iter().map(|tool| takes && tool["type"] == "function" && name(tool).is_some()).collect();
    let mut dropped = Vec::new();
    for (tool, kept) in list.iter().zip(&kept) {
        if !kept {
            let kind = tool["type"].as_str().unwrap_or("unknown").to_string();
            dropped.push(name(tool).map_or_else(|| kind.clone(), |name| format!("{kind}:{name}")));
        }
    }
    let of_kept = list.iter().zip(&kept).filter(|(_, kept)| **kept);
    let known: Vec<(String, Value)> = of_kept.filter_map(|(tool, _)| Some((name(tool)?, tool["parameters"].clone()))).collect();
    if known.is_empty() {
        return Ok((Tools::default(), dropped));
    }
    let given: Written = serde_json::from_slice(body).map_err(|e| ApiError::bad("tools", e.to_string()))?;
    let one = |tool: Tool| {
        let members = [("name", tool.name), ("description", tool.description), ("parameters", tool.parameters)];
        let function = TemplateValue::object(members.into_iter().filter_map(|(key, value)| Some((key, value?))));
        TemplateValue::object([("type", TemplateValue::text("function")), ("function", function)])
    };
    let all = given.tools.into_iter().zip(&kept).filter(|(_, kept)| **kept).map(|(tool, _)| one(tool));
    Ok((Tools { written: Some(TemplateValue::list(all)), known }, dropped))
}

/// What was asked for, and what of it is said again in the response.
struct Asked {
    plan: Plan,
    said: Map<String, Value>,
    dropped: Vec<String>,
}

fn read(server: &Server, bytes: &[u8]) -> Result<Asked> {
    let mut fields = Fields::parse(bytes)?;
    let model = server.model(fields.text("model")?.as_deref())?;
    model.max_len()?;
    model.tokenizer("input")?;
    for (field, why) in [
        ("previous_response_id", "nothing is stored here: send the whole conversation as `input`"),
        ("conversation", "nothing is stored here: send the whole conversation as `input`"),
        ("stop", "it is a field of another API"),
        ("n", "it is a field of another API"),
        ("response_format", "here it is `text.format`"),
    ] {
        if fields.has(field) {
            return Err(ApiError::unsupported(field, why));
        }
    }
    let mut said = Map::new();
    for key in ["instructions", "metadata", "tools", "tool_choice", "temperature", "top_p", "max_output_tokens", "text"] {
        said.insert(key.into(), fields.peek(key));
    }
    if let Some(options) = fields.take("stream_options") {
        let mut options = Fields::of("stream_options", options)?;
        let _ = options.flag("include_obfuscation")?;
        options.finish()?;
    }
    let mut params = Params::take(&mut fields, &model, server)?;
    params.max_tokens = fields.count("max_output_tokens")?;
    if let Some(text) = fields.take("text") {
        let mut text = Fields::of("text", text)?;
        if let Some(format) = text.take("format") {
            params.form = response_format("text.format", format)?.map(|form| ("text.format", form));
        }
        text.finish()?;
    }
    let instructions = fields.text("instructions")?;
    let input = fields.take("input").ok_or_else(|| ApiError::bad("input", "expected a text or a list of items, got nothing"))?;
    let given = fields.list("tools")?.unwrap_or_default();
    let choice = ToolChoice::openai(fields.take("tool_choice"))?;
    let single = fields.flag("parallel_tool_calls")? == Some(false);
    said.insert("parallel_tool_calls".into(), (!single).into());
    fields.finish()?;
    let (tools, dropped) = tools(&model, bytes, &given)?;
    let mut turns = Vec::new();
    turns.extend(instructions.map(|text| Turn::new("system", text)));
    items(input, &mut turns)?;
    Ok(Asked { plan: Plan::new(model, params, &turns, tools, choice, single)?, said, dropped })
}

/// The conversation so far.
fn items(input: Value, turns: &mut Vec<Turn>) -> Result<()> {
    let list = match input {
        Value::String(text) => {
            turns.push(Turn::new("user", text));
            return Ok(());
        }
        Value::Array(list) => list,
        other => return Err(expected("input", "a text or a list of items", &other)),
    };
    for (i, item) in list.iter().enumerate() {
        let at = format!("input[{i}]");
        let text = |key: &str| item[key].as_str().map(String::from);
        match item["type"].as_str().unwrap_or("message") {
            "message" => {
                let role = match item["role"].as_str() {
                    Some("developer") => "system",
                    Some(role @ ("system" | "user" | "assistant")) => role,
                    _ => return Err(expected(&format!("{at}.role"), "system, developer, user or assistant", &item["role"])),
                };
                let text = content(&format!("{at}.content"), Some(item["content"].clone()))?;
                match turns.last_mut() {
                    // Templates know one system text, at the beginning.
                    Some(last) if role == "system" && last.role == "system" => {
                        last.content = format!("{}\n\n{text}", last.content)
                    }
                    _ => turns.push(Turn::new(role, text)),
                }
            }
            "function_call" => {
                let (Some(name), Some(arguments)) = (text("name"), arguments(&item["arguments"])) else {
                    return Err(expected(&at, "a function_call with name and arguments", item));
                };
                let call = Call { id: text("call_id").unwrap_or_default(), name, arguments };
                match turns.last_mut() {
                    Some(last) if last.role == "assistant" => last.calls.push(call),
                    _ => turns.push(Turn { calls: vec![call], ..Turn::new("assistant", "") }),
                }
            }
            "function_call_output" => {
                let call_id = text("call_id");
                let called = |turn: &Turn| turn.calls.iter().find(|call| Some(&call.id) == call_id.as_ref()).cloned();
                let name = turns.iter().rev().find_map(called).map(|call| call.name);
                let output = content(&format!("{at}.output"), Some(item["output"].clone()))?;
                turns.push(Turn { call_id, name, ..Turn::new("tool", output) });
            }
            // What models have thought is not told again.
            "reasoning" => {}
            kind => return Err(ApiError::unsupported(&format!("{at} of type {kind}"), "")),
        }
    }
    Ok(())
}

async fn answer(server: Server, caller: Caller, body: Bytes) -> Result<Response> {
    let (asked, work) = begin(&server, caller, body, read, |asked| &asked.plan).await?;
    let mut headers = HeaderMap::new();
    if !asked.dropped.is_empty() {
        let names = asked.dropped.join(", ");
        log::warn!("tools that nobody can call here were left out: {names}");
        let printable: String = names.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect();
        headers.extend(HeaderValue::from_str(&printable).ok().map(|value| (DROPPED, value)));
    }
    let shown = Shown { id: server.id("resp_"), item: server.id("msg_"), created: now(), asked, server: server.clone() };
    if shown.asked.plan.params.stream {
        let write = move |events| async move { shown.write(work, events).await };
        return Ok(stream(server.0.config.keep_alive, headers, write));
    }
    let mut response = shown.whole(work).await?;
    response.headers_mut().extend(headers);
    Ok(response)
}

struct Shown {
    id: String,
    /// The message's name.
    item: String,
    created: u64,
    asked: Asked,
    server: Server,
}

impl Shown {
    fn object(&self, status: &str, output: Vec<Value>, used: Option<Usage>, finish: Option<&Finish>) -> Value {
        let mut object = self.asked.said.clone();
        let cut = finish.is_some_and(|finish| finish.reason == "length");
        let details = if cut { json!({ "reason": "max_output_tokens" }) } else { Value::Null };
        let usage = used.map(|used| {
            json!({
                "input_tokens": used.prompt,
                "input_tokens_details": { "cached_tokens": used.cached },
                "output_tokens": used.completion,
                "output_tokens_details": { "reasoning_tokens": 0 },
                "total_tokens": used.prompt + used.completion,
            })
        });
        for (key, value) in [
            ("id", json!(self.id)),
            ("object", json!("response")),
            ("created_at", json!(self.created)),
            ("status", json!(if cut { "incomplete" } else { status })),
            ("incomplete_details", details),
            ("error", Value::Null),
            ("model", json!(self.asked.plan.model.name)),
            ("output", output.into()),
            ("previous_response_id", Value::Null),
            ("store", json!(false)),
            ("truncation", json!("disabled")),
            ("usage", usage.unwrap_or_default()),
        ] {
            object.insert(key.into(), value);
        }
        for (key, value) in [
            ("tools", json!([])),
            ("tool_choice", json!("auto")),
            ("metadata", json!({})),
            ("temperature", json!(1.0)),
            ("top_p", json!(1.0)),
            ("text", json!({ "format": { "type": "text" } })),
        ] {
            if object.get(key).is_none_or(Value::is_null) {
                object.insert(key.into(), value);
            }
        }
        object.into()
    }

    fn message(&self, status: &str, text: Option<&str>) -> Value {
        let content: Vec<Value> = text.map(part).into_iter().collect();
        json!({ "type": "message", "id": self.item, "status": status, "role": "assistant", "content": content })
    }

    fn calls(&self, calls: &[(String, String)]) -> Vec<Value> {
        let one = |(name, arguments): &(String, String)| {
            let (id, call_id) = (self.server.id("fc_"), self.server.id("call_"));
            json!({
                "type": "function_call", "id": id, "call_id": call_id, "name": name, "arguments": arguments,
                "status": "completed",
            })
        };
        calls.iter().map(one).collect()
    }

    async fn whole(self, mut work: Work) -> Result<Response> {
        let Whole { text, calls, finish } = Whole::read(self.asked.plan.answer(), &mut work).await?;
        let mut output = Vec::new();
        if !text.is_empty() || calls.is_empty() {
            output.push(self.message(ended(finish.as_ref()), Some(&text)));
        }
        output.extend(self.calls(&calls));
        Ok(document(&self.object("completed", output, Some(work.usage), finish.as_ref())))
    }

    async fn write(self, mut work: Work, events: Events) {
        let mut number = 0;
        let mut send = async |kind: &str, mut value: Value| {
            value["type"] = kind.into();
            value["sequence_number"] = number.into();
            number += 1;
            events.event(kind, &value).await
        };
        let response = self.object("in_progress", Vec::new(), None, None);
        send("response.created", json!({ "response": response })).await;
        send("response.in_progress", json!({ "response": response })).await;
        let (mut answer, mut text, mut open, mut finish) = (self.asked.plan.answer(), String::new(), false, None);
        let mut calls = Vec::new();
        let item = self.item.clone();
        let at = |more: Value| {
            let mut value = json!({ "item_id": item, "output_index": 0, "content_index": 0 });
            if let (Value::Object(value), Value::Object(more)) = (&mut value, more) {
                value.extend(more);
            }
            value
        };
        loop {
            let (piece, last) = match events.next(&mut work).await {
                Next::Gone => return,
                Next::End => (String::new(), true),
                Next::Failed(e) => {
                    let mut response = self.object("failed", Vec::new(), None, None);
                    response["error"] = json!({ "code": e.code.unwrap_or("server_error"), "message": e.message });
                    send("response.failed", json!({ "response": response })).await;
                    return;
                }
                Next::Step(Step::Prompt { .. }) => continue,
                Next::Step(Step::Text(delta)) => {
                    let (piece, found) = answer.take(&delta);
                    calls.extend(found);
                    finish = delta.finish.or(finish);
                    (piece, false)
                }
            };
            // An answer without a word is a message too.
            if !open && (!piece.is_empty() || (last && calls.is_empty())) {
                open = true;
                let added = json!({ "output_index": 0, "item": self.message("in_progress", None) });
                send("response.output_item.added", added).await;
                send("response.content_part.added", at(json!({ "part": part("") }))).await;
            }
            if !piece.is_empty() {
                text += &piece;
                if !send("response.output_text.delta", at(json!({ "delta": piece, "logprobs": [] }))).await {
                    return;
                }
            }
            if last {
                break;
            }
        }
        let mut output = Vec::new();
        if open {
            send("response.output_text.done", at(json!({ "text": text, "logprobs": [] }))).await;
            send("response.content_part.done", at(json!({ "part": part(&text) }))).await;
            let message = self.message(ended(finish.as_ref()), Some(&text));
            send("response.output_item.done", json!({ "output_index": 0, "item": message })).await;
            output.push(message);
        }
        for call in self.calls(&calls) {
            let index = output.len();
            let mut begun = call.clone();
            (begun["status"], begun["arguments"]) = ("in_progress".into(), "".into());
            send("response.output_item.added", json!({ "output_index": index, "item": begun })).await;
            let (id, arguments) = (&call["id"], &call["arguments"]);
            let delta = json!({ "item_id": id, "output_index": index, "delta": arguments });
            send("response.function_call_arguments.delta", delta).await;
            let done = json!({ "item_id": id, "output_index": index, "arguments": arguments });
            send("response.function_call_arguments.done", done).await;
            send("response.output_item.done", json!({ "output_index": index, "item": call })).await;
            output.push(call);
        }
        let response = self.object("completed", output, Some(work.usage), finish.as_ref());
        let kind = if response["status"] == "incomplete" { "response.incomplete" } else { "response.completed" };
        send(kind, json!({ "response": response })).await;
    }
}

fn ended(finish: Option<&Finish>) -> &'static str {
    if finish.is_some_and(|finish| finish.reason == "length") { "incomplete" } else { "completed" }
}

fn part(text: &str) -> Value {
    json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": [] })
}
