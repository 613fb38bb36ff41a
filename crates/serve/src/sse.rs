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
use tokio::time::{Instant, Sleep};

use crate::error::ApiError;
use crate::work::{Step, Work};

/// Pieces that wait for a reader before the writer waits for it.
const AHEAD: usize = 32;

/// Where events go.
pub(crate) struct Events(Sender<Bytes>);

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
        self.0.send(text.into()).await.is_ok()
    }

    /// The next step of a request.
    pub(crate) async fn next(&self, work: &mut Work) -> Next {
        tokio::select! {
            biased;
            () = self.0.closed() => Next::Gone,
            step = work.next() => match step {
                None => Next::End,
                Some(Ok(step)) => Next::Step(step),
                Some(Err(e)) => Next::Failed(e),
            },
        }
    }
}

/// A response whose events `write` sends. While there are none, a comment from time to time, so that nobody takes the line for dead.
pub(crate) fn stream<F: Future<Output = ()> + Send + 'static>(
    keep_alive: Duration,
    headers: HeaderMap,
    write: impl FnOnce(Events) -> F,
) -> Response {
    let (out, pieces) = channel(AHEAD);
    tokio::spawn(write(Events(out)));
    let wait = Box::pin(tokio::time::sleep(keep_alive));
    let mut response = Response::new(Body::new(Pieces { pieces, keep_alive, newest: Instant::now(), wait }));
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

struct Pieces {
    pieces: Receiver<Bytes>,
    keep_alive: Duration,
    /// When the newest piece went out.
    newest: Instant,
    /// Ends `keep_alive` after a piece, not always the newest: it is not set anew for each.
    wait: Pin<Box<Sleep>>,
}

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let mut piece = self.pieces.poll_recv(cx);
        while piece.is_pending() && self.wait.as_mut().poll(cx).is_ready() {
            if self.newest.elapsed() >= self.keep_alive {
                piece = Poll::Ready(Some(Bytes::from_static(b": keep-alive\n\n")));
                self.newest = Instant::now();
            }
            let until = self.newest + self.keep_alive;
            self.wait.as_mut().reset(until);
        }
        piece.map(|piece| {
            self.newest = Instant::now();
            piece.map(|piece| Ok(Frame::data(piece)))
        })
    }
}
