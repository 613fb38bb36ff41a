//! What the server says of itself.

use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::document;
use crate::error::ApiError;
use crate::metrics;
use crate::model::{Model, unknown};
use crate::server::Server;
use crate::worker::Status;

fn model(model: &Model) -> Value {
    let max_len = match &*model.handle.status.borrow() {
        Status::Ready { max_len, .. } => Value::from(*max_len),
        _ => Value::Null,
    };
    json!({
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "recua",
        "root": model.path,
        "max_model_len": max_len,
        "meta": { "n_ctx": max_len, "n_vocab": model.vocab_size, "has_tokenizer": model.tokenizer.is_some() },
    })
}

/// `/v1/models`
pub(crate) async fn models(State(server): State<Server>) -> Response {
    let data: Vec<Value> = server.0.models.iter().map(|one| model(one)).collect();
    document(&json!({ "object": "list", "data": data }))
}

/// `/v1/models/NAME`
pub(crate) async fn one_model(State(server): State<Server>, Path(name): Path<String>) -> Response {
    let found = server.0.models.iter().find(|model| model.name == name);
    let known = || server.0.models.iter().map(|model| model.name.as_str()).collect::<Vec<_>>();
    found.map_or_else(|| unknown(&name, &known()).into_response(), |one| document(&model(one)))
}

/// `/health`: 503 until all engines answer and once the server is shutting down.
pub(crate) async fn health(State(server): State<Server>) -> Response {
    if server.is_draining() {
        return ApiError::unavailable("the server is shutting down").into_response();
    }
    for model in &server.0.models {
        if let Err(e) = model.max_len() {
            return e.into_response();
        }
    }
    document(&json!({ "status": "ok" }))
}

/// `/metrics`
pub(crate) async fn prometheus(State(server): State<Server>) -> Response {
    let models: Vec<_> = server.0.models.iter().map(|model| (model.name.as_str(), &*model.handle.metrics)).collect();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics::text(&models)).into_response()
}

/// A page, or a part of one, that asks nobody else for anything.
fn page(kind: &'static str, text: &'static str, policy: &'static str) -> Response {
    let mut response = ([(header::CONTENT_TYPE, kind)], text).into_response();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::CACHE_CONTROL, "no-cache"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

const HTML: &str = "text/html; charset=utf-8";

/// Of the chat page, which has nothing inline: what a model says cannot run even if it came in as HTML.
const STRICT: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";

/// `/`
pub(crate) async fn chat_page() -> Response {
    page(HTML, include_str!("../page/index.html"), STRICT)
}

/// `/page.css`
pub(crate) async fn chat_style() -> Response {
    page("text/css; charset=utf-8", include_str!("../page/page.css"), STRICT)
}

/// `/page.js`
pub(crate) async fn chat_script() -> Response {
    page("text/javascript; charset=utf-8", include_str!("../page/page.js"), STRICT)
}

/// `/docs`
pub(crate) async fn docs() -> Response {
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; \
                  base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    page(HTML, include_str!("../page/docs.html"), policy)
}

/// `/openapi.json`
pub(crate) async fn openapi() -> Response {
    document(&crate::openapi::document())
}

/// What is not there.
pub(crate) async fn nothing(uri: axum::http::Uri) -> Response {
    ApiError { code: Some("not_found"), ..ApiError::new(StatusCode::NOT_FOUND, format!("there is no {}; see /docs", uri.path())) }
        .into_response()
}

/// What is there, for another method.
pub(crate) async fn other_method(method: axum::http::Method, uri: axum::http::Uri) -> Response {
    let message = format!("{} does not take {method}; see /docs", uri.path());
    ApiError { code: Some("method_not_allowed"), ..ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message) }.into_response()
}
