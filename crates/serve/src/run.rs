//! The whole server: a listener, until it is told to stop.

use std::time::Duration;

use recua_core::{Error, Result};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::router;
use crate::server::Server;

/// Answers until `stop` is done: then no new requests are taken, those that are there get `drain` to end, and what is left ends with
/// an error.
///
/// # Errors
/// [`Error::Backend`] once an engine has failed for good; its requests have ended with an error by then. [`Error::Io`] of the listener.
pub async fn serve(listener: TcpListener, server: Server, stop: impl Future<Output = ()>, drain: Duration) -> Result<()> {
    let (close, closed) = oneshot::channel::<()>();
    let app = router(&server);
    let listening = axum::serve(listener, app).with_graceful_shutdown(async {
        let _ = closed.await;
    });
    let listening = tokio::spawn(listening.into_future());
    let failed = tokio::select! {
        () = stop => None,
        problem = server.failed() => Some(problem),
    };
    server.drain(if failed.is_some() { Duration::from_secs(1) } else { drain }).await;
    let _ = close.send(());
    // Connections that are open without a request are closed; one that does not read is not waited for.
    let ended = tokio::time::timeout(Duration::from_secs(1), listening).await;
    if let Some(problem) = failed {
        let hint = "what is said above may tell more; start it again".into();
        return Err(Error::Backend { name: "engine".into(), problem, hint });
    }
    match ended {
        Ok(Ok(Err(e))) => Err(Error::io("serve", "the listener")(e)),
        _ => Ok(()),
    }
}
