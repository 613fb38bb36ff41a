//! Streams of events. What writes them runs on its own and waits for its reader alone; it ends when the reader is gone.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use http_body::Frame;
use serde_json::Value;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::error::ApiError;
use crate::work::{Step, Work};

/// Pieces that wait for a reader before the writer waits for it.
const AHEAD: usize = 32;

/// Where events go.
pub(crate) struct Events {
    out: Sender<Bytes>,
    keep_alive: Duration,
}

/// What comes next in a stream.
pub(crate) enum Next {
    Step(Step),
    Failed(ApiError),
    End,
    /// The reader is gone.
    Gone,
}

impl Events {
    /// `data: {...}`. `false`: the reader is gone.
    pub(crate) async fn data(&self, value: &Value) -> bool {
        self.send(format!("data: {value}\n\n")).await
    }

    /// `event: NAME` with its data.
    pub(crate) async fn event(&self, name: &str, value: &Value) -> bool {
        self.send(format!("event: {name}\ndata: {value}\n\n")).await
    }

    /// OpenAI's end of a stream.
    pub(crate) async fn done(&self) -> bool {
        self.send("data: [DONE]\n\n".into()).await
    }

    async fn send(&self, text: String) -> bool {
        self.out.send(text.into()).await.is_ok()
    }

    /// The next step of a request. While there is none, a comment from time to time, so that nobody takes the line for dead.
    pub(crate) async fn next(&self, work: &mut Work) -> Next {
        loop {
            tokio::select! {
                biased;
                () = self.out.closed() => return Next::Gone,
                step = work.next() => return match step {
                    None => Next::End,
                    Some(Ok(step)) => Next::Step(step),
                    Some(Err(e)) => Next::Failed(e),
                },
                () = tokio::time::sleep(self.keep_alive) => {
                    if !self.send(": keep-alive\n\n".into()).await {
                        return Next::Gone;
                    }
                }
            }
        }
    }
}

/// A response whose events `write` sends.
pub(crate) fn stream<F: Future<Output = ()> + Send + 'static>(
    keep_alive: Duration,
    headers: HeaderMap,
    write: impl FnOnce(Events) -> F,
) -> Response {
    let (out, pieces) = channel(AHEAD);
    tokio::spawn(write(Events { out, keep_alive }));
    let mut response = Response::new(Body::new(Pieces(pieces)));
    *response.headers_mut() = headers;
    for (name, value) in [
        (header::CONTENT_TYPE, "text/event-stream; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache"),
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

struct Pieces(Receiver<Bytes>);

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0.poll_recv(cx).map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}
