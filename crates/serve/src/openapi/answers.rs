//! What the routes answer, as JSON schemas.

use serde_json::{Map, Value, json};

fn text() -> Value {
    json!({ "type": "string" })
}

fn count() -> Value {
    json!({ "type": "integer", "minimum": 0 })
}

fn one_of(words: &[&str]) -> Value {
    json!({ "enum": words })
}

fn list(of: Value) -> Value {
    json!({ "type": "array", "items": of })
}

fn or_null(of: Value) -> Value {
    json!({ "anyOf": [of, { "type": "null" }] })
}

/// An object that has all of these.
fn object<const N: usize>(members: [(&str, Value); N]) -> Value {
    let required: Vec<&str> = members.iter().map(|(name, _)| *name).collect();
    let properties: Map<String, Value> = members.iter().map(|(name, value)| ((*name).into(), value.clone())).collect();
    json!({ "type": "object", "properties": properties, "required": required })
}

fn usage() -> Value {
    let details = object([("cached_tokens", count())]);
    let counts = ["prompt_tokens", "completion_tokens", "total_tokens"].map(|name| (name, count()));
    let [prompt, completion, total] = counts;
    object([prompt, completion, total, ("prompt_tokens_details", details)])
}

pub(super) fn completions() -> Value {
    let number = || or_null(json!({ "type": "number", "maximum": 0 }));
    let top = or_null(json!({ "type": "object", "additionalProperties": { "type": "number", "maximum": 0 } }));
    let logprobs = object([
        ("tokens", list(text())),
        ("token_logprobs", list(number())),
        ("top_logprobs", list(top)),
        ("text_offset", list(count())),
    ]);
    let choice = object([
        ("index", count()),
        ("text", text()),
        ("logprobs", or_null(logprobs)),
        ("finish_reason", one_of(&["stop", "length"])),
    ]);
    object([
        ("id", text()),
        ("object", one_of(&["text_completion"])),
        ("created", count()),
        ("model", text()),
        ("choices", list(choice)),
        ("usage", usage()),
    ])
}

pub(super) fn chat() -> Value {
    let likely = || [("token", text()), ("logprob", json!({ "type": "number", "maximum": 0 })), ("bytes", list(count()))];
    let [token, logprob, bytes] = likely();
    let told = object([token, logprob, bytes, ("top_logprobs", list(object(likely())))]);
    let function = object([("name", text()), ("arguments", text())]);
    let call = object([("id", text()), ("type", one_of(&["function"])), ("function", function)]);
    let mut message = object([("role", one_of(&["assistant"])), ("content", or_null(text()))]);
    message["properties"]["tool_calls"] = list(call);
    let choice = object([
        ("index", count()),
        ("message", message),
        ("logprobs", or_null(object([("content", list(told))]))),
        ("finish_reason", one_of(&["stop", "length", "tool_calls"])),
    ]);
    object([
        ("id", text()),
        ("object", one_of(&["chat.completion"])),
        ("created", count()),
        ("model", text()),
        ("choices", list(choice)),
        ("usage", usage()),
    ])
}

pub(super) fn responses() -> Value {
    let part = object([("type", one_of(&["output_text"])), ("text", text())]);
    let message = object([
        ("type", one_of(&["message"])),
        ("id", text()),
        ("role", one_of(&["assistant"])),
        ("status", one_of(&["completed", "incomplete"])),
        ("content", list(part)),
    ]);
    let call = object([
        ("type", one_of(&["function_call"])),
        ("id", text()),
        ("call_id", text()),
        ("name", text()),
        ("arguments", text()),
    ]);
    object([
        ("id", text()),
        ("object", one_of(&["response"])),
        ("created_at", count()),
        ("status", one_of(&["completed", "incomplete"])),
        ("model", text()),
        ("output", list(json!({ "anyOf": [message, call] }))),
        ("usage", object([("input_tokens", count()), ("output_tokens", count()), ("total_tokens", count())])),
    ])
}

pub(super) fn messages() -> Value {
    let said = object([("type", one_of(&["text"])), ("text", text())]);
    let call =
        object([("type", one_of(&["tool_use"])), ("id", text()), ("name", text()), ("input", json!({ "type": "object" }))]);
    object([
        ("id", text()),
        ("type", one_of(&["message"])),
        ("role", one_of(&["assistant"])),
        ("model", text()),
        ("content", list(json!({ "anyOf": [said, call] }))),
        ("stop_reason", one_of(&["end_turn", "max_tokens", "stop_sequence", "tool_use"])),
        ("stop_sequence", or_null(text())),
        ("usage", object([("input_tokens", count()), ("output_tokens", count())])),
    ])
}

pub(super) fn count_tokens() -> Value {
    object([("input_tokens", count())])
}

pub(super) fn embeddings() -> Value {
    let embedding = json!({ "anyOf": [text(), list(json!({ "type": "number", "minimum": -1.001, "maximum": 1.001 }))] });
    let one = object([("object", one_of(&["embedding"])), ("index", count()), ("embedding", embedding)]);
    object([
        ("object", one_of(&["list"])),
        ("data", list(one)),
        ("model", text()),
        ("usage", object([("prompt_tokens", count())])),
    ])
}

fn model() -> Value {
    object([("id", text()), ("object", one_of(&["model"])), ("created", count()), ("max_model_len", or_null(count()))])
}

pub(super) fn models() -> Value {
    object([("object", one_of(&["list"])), ("data", list(model()))])
}

pub(super) fn tokenize() -> Value {
    let piece = json!({ "anyOf": [text(), list(count())] });
    let token = json!({ "anyOf": [count(), object([("id", count()), ("piece", piece)])] });
    let strings = or_null(list(text()));
    object([("count", count()), ("max_model_len", count()), ("tokens", list(token)), ("token_strs", strings)])
}

pub(super) fn detokenize() -> Value {
    object([("prompt", text()), ("content", text())])
}

pub(super) fn tokenizer_info() -> Value {
    object([("tokenizer_class", text()), ("vocab_size", count()), ("eos_token", or_null(text())), ("bos_token", or_null(text()))])
}

pub(super) fn health() -> Value {
    object([("status", one_of(&["ok"]))])
}
