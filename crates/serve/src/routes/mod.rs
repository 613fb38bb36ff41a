//! One file a route, or a few that belong together.

pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod embeddings;
pub(crate) mod info;
pub(crate) mod messages;
pub(crate) mod responses;
pub(crate) mod tokenize;

use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::work::Usage;

/// A JSON document.
pub(crate) fn document(value: &Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

/// A number with the digits that it has as float32: the same as `recua eval score` writes.
pub(crate) fn number(x: f32) -> Value {
    // vLLM's stand-in for minus infinity, which JSON has not.
    let x = if x.is_finite() { x } else { -9999.0 };
    json!(x.to_string().parse::<f64>().unwrap_or(f64::from(x)))
}

/// OpenAI's `usage`.
pub(crate) fn usage(usage: Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "prompt_tokens_details": { "cached_tokens": usage.cached },
    })
}
