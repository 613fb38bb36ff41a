//! The fields of a request. What is not asked for by name is refused by name, so that nothing is ignored.

use serde_json::{Map, Value};

use crate::error::{ApiError, Result};

/// Fields that cannot change an answer here, whatever they say: names of users, hints to caches and bills, efforts of models that
/// think. They are read over.
pub const HARMLESS: [&str; 17] = [
    "user",
    "metadata",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "client_metadata",
    "prediction",
    "cache_prompt",
    "id_slot",
    "request_id",
    "priority",
    "reasoning",
    "reasoning_effort",
    "include",
    "verbosity",
    "return_progress",
];

/// Fields that say nothing with this value.
fn says_nothing(key: &str, value: &Value) -> bool {
    match key {
        "store" | "use_beam_search" | "include_stop_str_in_output" | "echo" | "background" | "spaces_between_special_tokens" => {
            value == false
        }
        "skip_special_tokens" => value == true,
        "best_of" => value == 1,
        "suffix" => value == "",
        "length_penalty" | "typical_p" | "dry_multiplier" | "xtc_probability" | "mirostat" => match key {
            "length_penalty" | "typical_p" => value.as_f64() == Some(1.0),
            _ => value.as_f64() == Some(0.0),
        },
        "truncation" => value == "disabled",
        "modalities" => *value == serde_json::json!(["text"]),
        "functions" | "tools" | "bad_words" => value.as_array().is_some_and(Vec::is_empty),
        "function_call" => value == "none",
        "logprobs" => value == false,
        _ => false,
    }
}

/// The members of an object, taken out one by one.
#[derive(Clone, Debug)]
pub(crate) struct Fields(Map<String, Value>);

impl Fields {
    /// A request's body.
    pub(crate) fn parse(body: &[u8]) -> Result<Self> {
        let bad = |problem: String| ApiError {
            code: Some("invalid_json"),
            ..ApiError::new(axum::http::StatusCode::BAD_REQUEST, format!("the body: {problem}"))
        };
        match serde_json::from_slice(body).map_err(|e| bad(format!("expected JSON, got something else: {e}")))? {
            Value::Object(map) => Ok(Self(map)),
            _ => Err(bad("expected a JSON object".into())),
        }
    }

    /// A member of a request that is an object itself; `at` names it.
    pub(crate) fn of(at: &str, value: Value) -> Result<Self> {
        match value {
            Value::Object(map) => Ok(Self(map)),
            _ => Err(ApiError::bad(at, "expected an object")),
        }
    }

    /// `null` is as good as nothing.
    pub(crate) fn take(&mut self, key: &str) -> Option<Value> {
        self.0.remove(key).filter(|value| !value.is_null())
    }

    /// A member that stays.
    pub(crate) fn peek(&self, key: &str) -> Value {
        self.0.get(key).cloned().unwrap_or_default()
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.0.get(key).is_some_and(|value| !value.is_null())
    }

    pub(crate) fn text(&mut self, key: &str) -> Result<Option<String>> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(expected(key, "a string", &other)),
        }
    }

    pub(crate) fn flag(&mut self, key: &str) -> Result<Option<bool>> {
        self.take(key).map(|value| value.as_bool().ok_or_else(|| expected(key, "true or false", &value))).transpose()
    }

    pub(crate) fn number(&mut self, key: &str) -> Result<Option<f64>> {
        self.take(key).map(|value| value.as_f64().ok_or_else(|| expected(key, "a number", &value))).transpose()
    }

    /// A whole number of at least 0.
    pub(crate) fn count(&mut self, key: &str) -> Result<Option<usize>> {
        let whole = |value: &Value| value.as_u64().or_else(|| value.as_f64().filter(|x| whole_number(*x)).map(|x| x as u64));
        self.take(key).map(|v| whole(&v).map(|n| n as usize).ok_or_else(|| expected(key, "a whole number", &v))).transpose()
    }

    /// A whole number, negative ones too.
    pub(crate) fn integer(&mut self, key: &str) -> Result<Option<i64>> {
        let whole = |v: &Value| v.as_i64().or_else(|| v.as_u64().map(|n| n as i64));
        self.take(key).map(|v| whole(&v).ok_or_else(|| expected(key, "a whole number", &v))).transpose()
    }

    pub(crate) fn list(&mut self, key: &str) -> Result<Option<Vec<Value>>> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(other) => Err(expected(key, "a list", &other)),
        }
    }

    /// Refuses what is left.
    pub(crate) fn finish(self) -> Result<()> {
        let left =
            |(key, value): &(String, Value)| !value.is_null() && !HARMLESS.contains(&key.as_str()) && !says_nothing(key, value);
        match self.0.into_iter().find(left) {
            Some((key, _)) => Err(ApiError::unsupported(&key, "")),
            None => Ok(()),
        }
    }
}

fn whole_number(x: f64) -> bool {
    x >= 0.0 && x.fract() == 0.0 && x < 9e15
}

/// 400 with what came instead, shortened.
pub(crate) fn expected(key: &str, what: &str, got: &Value) -> ApiError {
    let mut text = got.to_string();
    if text.chars().count() > 60 {
        text = text.chars().take(60).chain("...".chars()).collect();
    }
    ApiError::bad(key, format!("expected {what}, got {text}"))
}

/// Token ids.
pub(crate) fn ids(key: &str, list: &[Value]) -> Result<Vec<u32>> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    list.iter().map(|value| id(value).ok_or_else(|| expected(key, "a token id", value))).collect()
}
