//! Connections: as many as there may be, each with a time to say what it wants.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, timeout};

use crate::config::ServeConfig;

/// Serves connections until `stop` changes; those that are open then end with the request that they are at. All clones of `stop` are
/// gone once the last has ended.
pub(crate) async fn connections(listener: TcpListener, app: Router, config: &ServeConfig, stop: watch::Receiver<bool>) {
    let mut http = http1::Builder::new();
    // Of an idle connection too: the next request's head is what it waits for.
    http.timer(TokioTimer::new()).header_read_timeout(config.read_time);
    let places = Arc::new(Semaphore::new(config.max_connections.clamp(1, Semaphore::MAX_PERMITS)));
    let serve = |stream: TcpStream, place: Option<OwnedSemaphorePermit>| {
        // A token that is there is sent: without this it waits until the one before it is acknowledged.
        let _ = stream.set_nodelay(true);
        let served = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(app.clone()));
        let mut stop = stop.clone();
        tokio::spawn(async move {
            let _place = place;
            let mut served = pin!(served);
            let told = async {
                let _ = stop.changed().await;
                // One that has just been opened may say what it wants.
                tokio::time::sleep(Duration::from_millis(50)).await;
            };
            tokio::select! {
                _ = served.as_mut() => return,
                () = told => served.as_mut().graceful_shutdown(),
            }
            let _ = served.await;
        });
    };
    let mut stopped = stop.clone();
    loop {
        let accepted = async {
            let place = places.clone().acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            _ = stopped.changed() => break,
            accepted = accepted => accepted,
        };
        match accepted {
            Ok((stream, _)) => serve(stream, place.ok()),
            Err(e) => {
                // One that was gone at once, or no descriptors for more: those that are open end some time.
                log::warn!("a connection was not taken: {e}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    // Who has connected before the door is shut is told that it is.
    let until = Instant::now() + Duration::from_millis(200);
    while Instant::now() < until
        && let Ok(Ok((stream, _))) = timeout(Duration::from_millis(20), listener.accept()).await
    {
        serve(stream, None);
    }
}
