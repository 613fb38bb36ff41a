//! The HTTP server inside a program of one's own: its routes under a prefix, beside other ones.
//!
//!     cargo run --release --example 06_serve [MODEL]
//!     curl http://127.0.0.1:3000/llama/v1/completions -d '{"prompt": [1, 17, 230], "max_tokens": 8}'
//!
//! Runs until Ctrl-C. MODEL is a folder of Hugging Face's, Meta's or recua's format, or a GGUF file; without it the small random model of the
//! tests, which has no tokenizer and takes and gives token ids.

use std::error::Error;

use recua::generate::EngineConfig;
use recua::serve::axum::{self, Router, routing::get};
use recua::serve::tokio::{net::TcpListener, runtime::Runtime};
use recua::serve::{ModelSource, ServeConfig, Server, router};

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1);
    let path = path.unwrap_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/tiny_llama").into());
    let model = ModelSource::open("llama", path.as_ref(), None, "flex".parse()?, EngineConfig::default())?;
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
