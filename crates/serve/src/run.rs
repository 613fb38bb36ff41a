//! The whole server: a listener, until it is told to stop.

use std::time::Duration;

use recua_core::{Error, Result};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::listen::connections;
use crate::router;
use crate::server::Server;

/// Answers until `stop` is done: then no new requests are taken, those that are there get `drain` to end, and what is left ends with
/// an error.
///
/// # Errors
/// [`Error::Backend`] once an engine has failed for good; its requests have ended with an error by then.
pub async fn serve(listener: TcpListener, server: Server, stop: impl Future<Output = ()>, drain: Duration) -> Result<()> {
    let (close, closed) = watch::channel(false);
    let (app, of) = (router(&server), server.clone());
    tokio::spawn(async move { connections(listener, app, &of.0.config, closed).await });
    let failed = tokio::select! {
        () = stop => None,
        problem = server.failed() => Some(problem),
    };
    server.drain(if failed.is_some() { Duration::from_secs(1) } else { drain }).await;
    close.send_replace(true);
    // Connections that are open without a request are closed; one that does not read is not waited for.
    let _ = tokio::time::timeout(Duration::from_secs(1), close.closed()).await;
    let Some(problem) = failed else { return Ok(()) };
    let hint = "what is said above may tell more; start it again".into();
    Err(Error::Backend { name: "engine".into(), problem, hint })
}
