//! What every request passes: its name, who asks, where its page is from, the access log.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body::{Body as _, Frame, SizeHint};
use subtle::ConstantTimeEq;
use xxhash_rust::xxh3::xxh3_64;

use crate::config::AccessLog;
use crate::error::ApiError;
use crate::server::{Caller, Server};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What needs no key: it says nothing of anybody's texts.
const PUBLIC: [&str; 7] = ["/", "/page.css", "/page.js", "/health", "/docs", "/openapi.json", "/favicon.ico"];

/// The layer around all routes.
pub(crate) async fn edge(State(server): State<Server>, mut request: Request, next: Next) -> Response {
    let began = Instant::now();
    let id = name_of(request.headers()).unwrap_or_else(|| server.id("req-"));
    let line = format!("{} {}", request.method(), request.uri().path());
    let origin = request.headers().get(header::ORIGIN).cloned().filter(|origin| allows(&server, origin));
    let anthropic = request.uri().path().starts_with("/v1/messages");

    let mut response = if request.method() == Method::OPTIONS && request.headers().contains_key(header::ORIGIN) {
        preflight(request.headers())
    } else {
        match caller(&server, &request) {
            Ok(caller) => {
                request.extensions_mut().insert(caller);
                match whole(&server, request).await {
                    Ok(request) => next.run(request).await,
                    Err(e) if anthropic => e.respond(&e.anthropic()),
                    Err(e) => e.into_response(),
                }
            }
            Err(e) if anthropic => e.respond(&e.anthropic()),
            Err(e) => e.into_response(),
        }
    };
    if let Some(origin) = origin {
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::VARY, HeaderValue::from_static("origin"));
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("x-request-id, retry-after"));
    }
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    let Some(log) = server.0.config.access_log.clone() else { return response };
    let status = response.status();
    response.map(|inner| Body::new(Logged { inner, log, line, id, status, began, bytes: 0, whole: false }))
}

/// The request with its whole body, which has to come in time.
async fn whole(server: &Server, request: Request) -> Result<Request, ApiError> {
    let (parts, mut body) = request.into_parts();
    let (most, time) = (server.0.config.max_body_bytes, server.0.config.read_time);
    let large = || {
        let message = format!("the body is larger than the {most} bytes that the server takes (--max-body-bytes)");
        ApiError { code: Some("body_too_large"), ..ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message) }
    };
    if body.size_hint().lower() > most as u64 {
        return Err(large());
    }
    let read = async {
        let mut all = Vec::new();
        while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            let bad = |e| ApiError::new(StatusCode::BAD_REQUEST, format!("the body cannot be read: {e}"));
            if let Ok(data) = frame.map_err(bad)?.into_data() {
                if all.len() + data.len() > most {
                    return Err(large());
                }
                all.extend_from_slice(&data);
            }
        }
        Ok(all)
    };
    match tokio::time::timeout(time, read).await {
        Ok(all) => Ok(Request::from_parts(parts, all?.into())),
        Err(_) => {
            let message = format!("the body did not come within {} s", time.as_secs_f64());
            Err(ApiError { code: Some("body_timeout"), ..ApiError::new(StatusCode::REQUEST_TIMEOUT, message) })
        }
    }
}

/// The client's own name for its request, if it can be written into a log.
fn name_of(headers: &HeaderMap) -> Option<String> {
    let name = headers.get(REQUEST_ID)?.to_str().ok()?;
    let fits = !name.is_empty() && name.len() <= 128 && name.bytes().all(|b| b.is_ascii_graphic());
    fits.then(|| name.into())
}

fn allows(server: &Server, origin: &HeaderValue) -> bool {
    server.0.config.cors_origins.iter().any(|allowed| allowed == "*" || allowed.as_bytes() == origin.as_bytes())
}

/// What a browser asks before it sends a request of another origin's page. Without the header that says yes it does not send it.
fn preflight(asked: &HeaderMap) -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, OPTIONS"));
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    if let Some(names) = asked.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, names.clone());
    }
    response
}

/// Who asks, by a key.
fn caller(server: &Server, request: &Request) -> Result<Caller, ApiError> {
    let keys = &server.0.config.api_keys;
    if keys.is_empty() {
        return Ok(Caller::default());
    }
    let headers = request.headers();
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| match value.as_bytes().split_at_checked(7) {
        Some((scheme, key)) if scheme.eq_ignore_ascii_case(b"bearer ") => Some(key),
        _ => None,
    });
    let given = bearer.or_else(|| headers.get("x-api-key").map(HeaderValue::as_bytes)).unwrap_or_default().trim_ascii();
    // All keys are looked at, each of the same length to its end: how long it takes says nothing of what is in them.
    let mut found = subtle::Choice::from(0);
    for key in keys {
        found |= key.as_bytes().ct_eq(given);
    }
    if bool::from(found) {
        return Ok(Caller { salt: xxh3_64(given) | 1 });
    }
    if PUBLIC.contains(&request.uri().path()) {
        return Ok(Caller::default());
    }
    let problem = if given.is_empty() { "no API key was given" } else { "the API key is not known" };
    let message = format!("{problem}; send `Authorization: Bearer KEY`");
    Err(ApiError { code: Some("invalid_api_key"), ..ApiError::new(StatusCode::UNAUTHORIZED, message) })
}

/// A body that is written into the log once it is sent, or given up.
struct Logged {
    inner: Body,
    log: AccessLog,
    line: String,
    id: String,
    status: StatusCode,
    began: Instant,
    bytes: u64,
    whole: bool,
}

impl http_body::Body for Logged {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                self.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
                self.whole = self.inner.is_end_stream();
            }
            Poll::Ready(None) => self.whole = true,
            _ => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for Logged {
    fn drop(&mut self) {
        let Self { line, id, status, bytes, .. } = self;
        let ms = self.began.elapsed().as_secs_f64() * 1000.0;
        let gone = if self.whole || self.inner.is_end_stream() { "" } else { " (client gone)" };
        (self.log)(&format!("{line} {} {bytes} bytes {ms:.1} ms {id}{gone}", status.as_u16()));
    }
}
