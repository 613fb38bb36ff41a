//! `/v1/embeddings`: the mean of the model's last hidden states over a text's tokens, of length 1.

use axum::Extension;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use recua_core::generate::Bos;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::{document, number};
use crate::error::{ApiError, Result};
use crate::fields::{Fields, expected, ids};
use crate::server::{Caller, Server, aside};
use crate::worker::Command;

/// The route.
pub(crate) async fn embeddings(State(server): State<Server>, Extension(_): Extension<Caller>, body: Bytes) -> Response {
    answer(server, body).await.unwrap_or_else(IntoResponse::into_response)
}

async fn answer(server: Server, body: Bytes) -> Result<Response> {
    let _active = server.begin()?;
    let of = server.clone();
    let (model, base64, all) = aside(move || {
        let mut fields = Fields::parse(&body)?;
        let model = of.model(fields.text("model")?.as_deref())?;
        let max_len = model.max_len()?;
        let base64 = match fields.text("encoding_format")?.as_deref() {
            None | Some("float") => false,
            Some("base64") => true,
            Some(other) => return Err(ApiError::bad("encoding_format", format!("expected float or base64, got {other}"))),
        };
        let input = fields.take("input").ok_or_else(|| ApiError::bad("input", "expected a text, got nothing"))?;
        fields.finish()?;
        let one = |value: &Value| -> Result<Vec<u32>> {
            let found = match value {
                Value::String(text) => model.encode(text, Bos::Auto)?,
                Value::Array(list) => ids("input", list)?,
                other => return Err(expected("input", "a text or token ids", other)),
            };
            model.check("input", &found, max_len)?;
            Ok(found)
        };
        let all: Vec<Vec<u32>> = match &input {
            Value::Array(list) if !list.first().is_some_and(Value::is_number) => list.iter().map(one).collect::<Result<_>>()?,
            other => vec![one(other)?],
        };
        if all.is_empty() || all.len() > of.0.config.max_choices {
            let most = of.0.config.max_choices;
            return Err(ApiError::bad("input", format!("expected 1 to {most} texts, got {}", all.len())));
        }
        Ok((model, base64, all))
    })
    .await?;
    let tokens: usize = all.iter().map(Vec::len).sum();
    let mut data = Vec::new();
    for (i, tokens) in all.into_iter().enumerate() {
        let slot = model.handle.admit(1)?;
        let (answer, embedding) = oneshot::channel();
        let gone = || ApiError::internal("the engine's thread has ended");
        if !model.handle.send(Command::Embed { tokens, answer, slot }) {
            return Err(gone());
        }
        let embedding = embedding.await.map_err(|_| gone())??;
        let value = if base64 {
            encode(&embedding.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>()).into()
        } else {
            embedding.into_iter().map(number).collect::<Value>()
        };
        data.push(json!({ "object": "embedding", "index": i, "embedding": value }));
    }
    let usage = json!({ "prompt_tokens": tokens, "total_tokens": tokens });
    Ok(document(&json!({ "object": "list", "data": data, "model": model.name, "usage": usage })))
}

/// Base64 (RFC 4648), padded.
fn encode(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let all = chunk.iter().fold(0u32, |all, byte| all << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for i in 0..4 {
            let letter = LETTERS[(all >> (18 - 6 * i)) as usize & 63];
            out.push(if i <= chunk.len() { char::from(letter) } else { '=' });
        }
    }
    out
}
