//! `/tokenize`, `/detokenize`, `/tokenizer_info`: the fields of llama.cpp and of vLLM, of both at once.

use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use recua_core::generate::Bos;
use recua_core::tokenizer::Tokenizer;
use serde_json::{Value, json};

use super::chat::functions;
use super::document;
use crate::conversation;
use crate::error::{ApiError, Result};
use crate::fields::{Fields, ids};
use crate::model::Model;
use crate::server::{Server, aside};

async fn answer(server: Server, body: Bytes, job: impl FnOnce(&Server, &[u8]) -> Result<Value> + Send + 'static) -> Response {
    aside(move || job(&server, &body)).await.map_or_else(IntoResponse::into_response, |value| document(&value))
}

/// The route.
pub(crate) async fn tokenize(State(server): State<Server>, body: Bytes) -> Response {
    answer(server, body, |server, bytes| {
        let mut fields = Fields::parse(bytes)?;
        let model = server.model(fields.text("model")?.as_deref())?;
        let pieces = fields.flag("with_pieces")?.unwrap_or(false);
        let strings = fields.flag("return_token_strs")?.unwrap_or(false);
        // llama.cpp's text gets no BOS unless asked for, vLLM's does unless not.
        let (content, prompt) = (fields.text("content")?, fields.text("prompt")?);
        let add = match fields.flag("add_special")? {
            None => fields.flag("add_special_tokens")?,
            given => given,
        };
        let special = fields.flag("parse_special")?.unwrap_or(true);
        let messages = fields.list("messages")?;
        let tools = fields.list("tools")?.unwrap_or_default();
        let _ = fields.flag("add_generation_prompt")?;
        fields.finish()?;
        let tokenizer = model.tokenizer("content")?;
        let tokens = match (content, prompt, messages) {
            (Some(text), None, None) => encode(tokenizer, &text, add.unwrap_or(false), special)?,
            (None, Some(text), None) => encode(tokenizer, &text, add.unwrap_or(true), special)?,
            (None, None, Some(messages)) => {
                let tools = functions(&model, bytes, &tools)?.written;
                conversation::prompt(&model, &conversation::openai(messages)?, tools.as_ref())?
            }
            _ => return Err(ApiError::bad("prompt", "expected one of `content`, `prompt`, `messages`")),
        };
        let spelled = || tokens.iter().map(|id| model.piece(*id)).collect::<Vec<_>>();
        let mut object = json!({
            "count": tokens.len(),
            "max_model_len": model.max_len().ok(),
            "token_strs": strings.then(spelled),
        });
        object["tokens"] = if pieces {
            tokens.iter().map(|id| json!({ "id": id, "piece": piece(&model, *id) })).collect()
        } else {
            tokens.clone().into()
        };
        Ok(object)
    })
    .await
}

fn encode(tokenizer: &Tokenizer, text: &str, add: bool, special: bool) -> Result<Vec<u32>> {
    let bos = if add { Bos::Auto } else { Bos::Never };
    Ok(recua_core::generate::encode_prompt(tokenizer, text, bos, special)?)
}

/// llama.cpp's: a text, or the bytes where they are none.
fn piece(model: &Model, id: u32) -> Value {
    let bytes = model.bytes(id);
    if bytes.is_empty() {
        return model.piece(id).into();
    }
    String::from_utf8(bytes).map_or_else(|e| e.into_bytes().into(), Value::from)
}

/// The route.
pub(crate) async fn detokenize(State(server): State<Server>, body: Bytes) -> Response {
    answer(server, body, |server, bytes| {
        let mut fields = Fields::parse(bytes)?;
        let model = server.model(fields.text("model")?.as_deref())?;
        let list = fields.list("tokens")?.ok_or_else(|| ApiError::bad("tokens", "expected a list of ids, got nothing"))?;
        fields.finish()?;
        let text = match &model.tokenizer {
            Some(tokenizer) => tokenizer.decode_with_special(&ids("tokens", &list)?)?,
            None => ids("tokens", &list)?.into_iter().map(|id| model.piece(id)).collect(),
        };
        Ok(json!({ "prompt": text, "content": text }))
    })
    .await
}

/// The route.
pub(crate) async fn tokenizer_info(State(server): State<Server>) -> Response {
    let about = || -> Result<Value> {
        let model = server.model(None)?;
        let tokenizer = model.tokenizer("tokenizer_info")?;
        let spelled = |id: Option<u32>| id.and_then(|id| tokenizer.token_of(id));
        let eos = tokenizer.eos_id().or(model.ends.first().copied());
        let template = model.template.as_ref().filter(|template| template.origin().is_some());
        Ok(json!({
            "tokenizer_class": tokenizer.kind(),
            "bos_token": spelled(tokenizer.bos_id()),
            "eos_token": spelled(eos),
            "pad_token": spelled(eos),
            "bos_token_id": tokenizer.bos_id(),
            "eos_token_id": eos,
            "vocab_size": tokenizer.vocab_size(),
            "model_max_length": model.max_len().ok(),
            "add_bos_token": !tokenizer.prefix().is_empty(),
            "chat_template": template.map(|template| template.source()),
        }))
    };
    about().map_or_else(IntoResponse::into_response, |value| document(&value))
}
