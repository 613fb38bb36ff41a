//! A client of one request: a connection of its own, which can be dropped at any moment.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::http::{Request, header};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

/// What became of a request.
#[derive(Debug)]
pub(super) enum End {
    Answered {
        tokens: usize,
    },
    /// With a status that is not 200.
    Refused,
    /// An error in the stream.
    Failed(String),
    /// This client has gone.
    Left,
    Unreachable,
    Lost(String),
}

/// A request and what it waited for.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) end: End,
    pub(super) status: Option<u16>,
    /// Seconds until the first token.
    pub(super) first: Option<f64>,
    /// Seconds between events with tokens.
    pub(super) between: Vec<f64>,
    /// Until the end.
    pub(super) seconds: f64,
    /// How long a refusal tells its client to wait.
    pub(super) wait: Option<Duration>,
}

impl Asked {
    pub(super) fn ended(end: End) -> Self {
        Self { end, status: None, first: None, between: Vec::new(), seconds: 0.0, wait: None }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Client {
    pub(super) address: SocketAddr,
    pub(super) host: String,
    pub(super) key: Option<String>,
}

impl Client {
    async fn connect(&self) -> Result<SendRequest<Body>, String> {
        let stream = TcpStream::connect(self.address).await.map_err(|e| e.to_string())?;
        stream.set_nodelay(true).map_err(|e| e.to_string())?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
        // It ends once the sender and the answer are dropped, with the connection.
        tokio::spawn(connection);
        Ok(sender)
    }

    fn request(&self, method: &str, path: &str, body: String) -> Result<Request<Body>, String> {
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, &self.host);
        request = request.header(header::CONTENT_TYPE, "application/json").header(header::CONNECTION, "close");
        if let Some(key) = &self.key {
            request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        }
        request.body(Body::from(body)).map_err(|e| e.to_string())
    }

    /// Status and body.
    pub(super) async fn get(&self, path: &str) -> Result<(u16, Vec<u8>), String> {
        let mut sender = self.connect().await?;
        let request = self.request("GET", path, String::new())?;
        let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
        let (status, mut body, mut all) = (response.status().as_u16(), response.into_body(), Vec::new());
        while let Some(data) = data(&mut body).await? {
            all.extend_from_slice(&data);
        }
        Ok((status, all))
    }

    /// Asks for a stream and reads it to its end, or goes after `leaves` events.
    pub(super) async fn stream(&self, path: &str, body: String, leaves: Option<usize>) -> Asked {
        let began = Instant::now();
        let mut asked = Asked::ended(End::Left);
        asked.end = match self.connect().await {
            Err(_) => End::Unreachable,
            Ok(sender) => {
                let mut read = Reader { began, newest: None, leaves, events: 0, tokens: 0, rest: Vec::new() };
                read.run(self.request("POST", path, body), sender, &mut asked).await.unwrap_or_else(End::Lost)
            }
        };
        asked.seconds = began.elapsed().as_secs_f64();
        asked
    }
}

/// The next piece of a body; nothing at its end.
async fn data(body: &mut Incoming) -> Result<Option<Bytes>, String> {
    loop {
        match poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await {
            None => return Ok(None),
            Some(Err(e)) => return Err(format!("the answer was cut: {e}")),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

struct Reader {
    began: Instant,
    /// When the newest event with text came.
    newest: Option<Instant>,
    leaves: Option<usize>,
    events: usize,
    tokens: usize,
    /// Of an event that is not whole yet.
    rest: Vec<u8>,
}

impl Reader {
    async fn run(
        &mut self,
        request: Result<Request<Body>, String>,
        mut sender: SendRequest<Body>,
        asked: &mut Asked,
    ) -> Result<End, String> {
        let response = sender.send_request(request?);
        if self.leaves == Some(0) {
            // Sent, and not waited for.
            let _ = tokio::time::timeout(Duration::from_millis(2), response).await;
            return Ok(End::Left);
        }
        let response = response.await.map_err(|e| format!("no answer: {e}"))?;
        let status = response.status().as_u16();
        asked.status = Some(status);
        let wait = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        asked.wait = wait.map(|seconds: u64| Duration::from_secs(seconds.min(60)));
        let mut body = response.into_body();
        let mut done = None;
        while let Some(data) = data(&mut body).await? {
            if status != 200 {
                continue;
            }
            self.rest.extend_from_slice(&data);
            while let Some(end) = self.rest.windows(2).position(|two| two == b"\n\n") {
                let event: Vec<u8> = self.rest.drain(..end + 2).collect();
                done = self.event(&event[..end], asked).or(done);
                if self.leaves.is_some_and(|leaves| self.events >= leaves) {
                    return Ok(End::Left);
                }
            }
        }
        match (status, done) {
            (200, Some(end)) => Ok(end),
            (200, None) => Err("the stream has no end".into()),
            _ => Ok(End::Refused),
        }
    }

    fn event(&mut self, event: &[u8], asked: &mut Asked) -> Option<End> {
        let data = event.strip_prefix(b"data: ")?; // or a comment
        if data == b"[DONE]" {
            return Some(End::Answered { tokens: self.tokens });
        }
        let has = |what: &[u8]| data.windows(what.len()).any(|part| part == what);
        if data.starts_with(b"{\"error\"") {
            return Some(End::Failed(String::from_utf8_lossy(data).into_owned()));
        }
        // The last one, with the number of tokens; the others are counted and not read, which would take the server's time.
        if has(b"\"choices\":[]") {
            let usage: Value = serde_json::from_slice(data).unwrap_or_default();
            self.tokens = usage["usage"]["completion_tokens"].as_u64().unwrap_or_default() as usize;
            return None;
        }
        let now = Instant::now();
        match self.newest.replace(now) {
            None => asked.first = Some((now - self.began).as_secs_f64()),
            Some(before) => asked.between.push((now - before).as_secs_f64()),
        }
        self.events += 1;
        None
    }
}
