//! The HTTP server: OpenAI's completions, chat, responses and embeddings, Anthropic's messages, tokens, metrics, and a chat page.
//!
//! Each engine has a thread of its own and knows nothing of HTTP; requests come to it between two steps. [`Server`] holds the models,
//! [`router`] gives their routes to a program of one's own, [`serve`] is the whole server.
//!
//! ```no_run
//! use recua_core::generate::EngineConfig;
//! use recua_serve::{ModelSource, ServeConfig, Server, router};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let model = ModelSource::open("llama", "runs/first".as_ref(), None, "flex".parse()?, EngineConfig::default())?;
//! let server = Server::new(ServeConfig::default(), vec![model])?;
//! let app = router(&server); // an axum::Router: merge it, nest it, put layers around it
//! # Ok(())
//! # }
//! ```
//!
//! A field of a request that is not supported is refused by name with 400, but for [`HARMLESS`], which cannot change an answer.

mod config;
mod conversation;
mod edge;
mod error;
mod fields;
mod listen;
pub mod load;
mod metrics;
mod model;
mod openapi;
mod params;
mod plan;
mod routes;
mod run;
mod server;
mod sse;
mod tools;
mod work;
mod worker;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};

pub use axum;
pub use config::{AccessLog, ServeConfig};
pub use error::ApiError;
pub use fields::HARMLESS;
pub use model::ModelSource;
pub use run::serve;
pub use server::Server;
pub use tokio;

use routes::{chat, completions, embeddings, info, messages, responses, tokenize};

/// All routes of a server.
pub fn router(server: &Server) -> Router {
    Router::new()
        .route("/", get(info::chat_page))
        .route("/page.css", get(info::chat_style))
        .route("/page.js", get(info::chat_script))
        .route("/docs", get(info::docs))
        .route("/openapi.json", get(info::openapi))
        .route("/health", get(info::health))
        .route("/v1/health", get(info::health))
        .route("/metrics", get(info::prometheus))
        .route("/v1/models", get(info::models))
        .route("/models", get(info::models))
        .route("/v1/models/{*name}", get(info::one_model))
        .route("/v1/completions", post(completions::completions))
        .route("/v1/chat/completions", post(chat::chat))
        .route("/v1/responses", post(responses::responses))
        .route("/v1/messages", post(messages::messages))
        .route("/v1/messages/count_tokens", post(messages::count_tokens))
        .route("/v1/embeddings", post(embeddings::embeddings))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .route("/tokenizer_info", get(tokenize::tokenizer_info))
        .fallback(info::nothing)
        .method_not_allowed_fallback(info::other_method)
        .layer(DefaultBodyLimit::disable()) // the edge has counted
        .layer(from_fn_with_state(server.clone(), edge::edge))
        .with_state(server.clone())
}
