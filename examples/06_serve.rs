//! The server inside a program of one's own: its routes under a prefix, beside others.
//!
//!     cargo run --release --example 06_serve [FOLDER]
//!     curl http://127.0.0.1:3000/llama/v1/completions -d '{"prompt": [1, 17, 230], "max_tokens": 8}'
//!
//! Without a folder (Hugging Face, Meta or native) it serves the small random model of the tests, which speaks token ids.

use std::error::Error;

use recua::generate::EngineConfig;
use recua::serve::axum::{self, Router, routing::get};
use recua::serve::tokio::{net::TcpListener, runtime::Runtime};
use recua::serve::{ModelSource, ServeConfig, Server, router};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args().nth(1);
    let folder = folder.unwrap_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/tiny_llama").into());
    let model = ModelSource::open("llama", folder.as_ref(), None, "flex".parse()?, EngineConfig::default())?;
    Runtime::new()?.block_on(async {
        let server = Server::new(ServeConfig::default(), vec![model])?;
        server.ready().await?;
        let app = Router::new().route("/", get(|| async { "a page of one's own" })).nest("/llama", router(&server));
        let listener = TcpListener::bind("127.0.0.1:3000").await?;
        println!("http://{}/llama/v1/completions", listener.local_addr()?);
        axum::serve(listener, app).await?;
        Ok(())
    })
}
