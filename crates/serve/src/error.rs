//! What a client is told when it cannot be answered, in OpenAI's and in Anthropic's form.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use recua_core::Error;
use serde_json::{Map, Value, json};

/// An answer that is an error.
#[derive(Clone, Debug)]
pub struct ApiError {
    /// HTTP's.
    pub status: StatusCode,
    /// What is wrong and what to do.
    pub message: String,
    /// The field that it is about.
    pub param: Option<String>,
    /// A word for programs.
    pub code: Option<&'static str>,
    /// Further members of the error object.
    pub more: Vec<(&'static str, usize)>,
}

/// `Result` of a request.
pub(crate) type Result<T, E = ApiError> = std::result::Result<T, E>;

impl ApiError {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code: None, more: Vec::new() }
    }

    /// 400, about a field.
    pub(crate) fn bad(param: &str, problem: impl AsRef<str>) -> Self {
        let message = format!("{param}: {}", problem.as_ref());
        Self { param: Some(param.into()), code: Some("invalid_value"), ..Self::new(StatusCode::BAD_REQUEST, message) }
    }

    /// 400, for a field that is known but not supported, or not known.
    pub(crate) fn unsupported(param: &str, why: &str) -> Self {
        let why = if why.is_empty() { String::new() } else { format!(": {why}") };
        let message = format!("`{param}` is not supported{why}; leave it out");
        Self { param: Some(param.into()), code: Some("unsupported_parameter"), ..Self::new(StatusCode::BAD_REQUEST, message) }
    }

    /// 503.
    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self { code: Some("unavailable"), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, message) }
    }

    /// 500.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self { code: Some("internal_error"), ..Self::new(StatusCode::INTERNAL_SERVER_ERROR, message) }
    }

    /// 400 for a prompt that does not fit.
    pub(crate) fn too_long(got: usize, max: usize) -> Self {
        let message = format!(
            "the prompt has {got} tokens and exceeds the available context size of {max} tokens; shorten it, or start the server \
             with a larger --max-len"
        );
        let mut error = Self { code: Some("context_length_exceeded"), ..Self::new(StatusCode::BAD_REQUEST, message) };
        error.param = Some("prompt".into());
        error.more = vec![("n_prompt_tokens", got), ("n_ctx", max)];
        error
    }

    fn kind(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            503 => "unavailable_error",
            500.. => "server_error",
            _ if self.code == Some("context_length_exceeded") => "exceed_context_size_error",
            _ => "invalid_request_error",
        }
    }

    /// `{"error": {...}}`
    pub(crate) fn openai(&self) -> Value {
        let mut error: Map<String, Value> = self.more.iter().map(|(key, n)| ((*key).into(), (*n).into())).collect();
        error.insert("message".into(), self.message.clone().into());
        error.insert("type".into(), self.kind().into());
        error.insert("param".into(), self.param.clone().into());
        error.insert("code".into(), self.code.into());
        json!({ "error": error })
    }

    /// `{"type": "error", "error": {...}}`
    pub(crate) fn anthropic(&self) -> Value {
        let kind = match self.status.as_u16() {
            401 => "authentication_error",
            404 => "not_found_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            503 => "overloaded_error",
            500.. => "api_error",
            _ => "invalid_request_error",
        };
        json!({ "type": "error", "error": { "type": kind, "message": self.message } })
    }

    pub(crate) fn respond(&self, body: &Value) -> Response {
        let mut response = (self.status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response();
        if matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        self.respond(&self.openai())
    }
}

impl From<Error> for ApiError {
    fn from(e: Error) -> Self {
        match e {
            Error::BadValue { key, problem, .. } => Self::bad(&key, problem),
            Error::TooLong { got, max, .. } => Self::too_long(got, max),
            Error::Nothing { .. } | Error::UnknownKey { .. } => Self::new(StatusCode::BAD_REQUEST, e.to_string()),
            e => Self::internal(e.to_string()),
        }
    }
}
