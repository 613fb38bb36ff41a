//! Where prompts come from: the command line, or a file of lines of JSON.

use std::io::Read;
use std::path::Path;

use recua::generate::Bos;
use recua::{Error, Result};
use serde_json::Value;

use recua::generate::TextModel;

/// What a text goes on from.
pub(crate) struct Prompt {
    /// Where it stands, for messages.
    pub(crate) at: String,
    /// As it was given: a string or an array of ids.
    pub(crate) given: Value,
    pub(crate) ids: Vec<u32>,
}

/// How texts become prompts.
#[derive(Clone, Copy)]
pub(crate) struct Encoding {
    pub(crate) bos: Bos,
    pub(crate) special: bool,
    pub(crate) max_len: Option<usize>,
}

/// The prompt of the command line. A model without a tokenizer takes `[1, 5, 9]`.
pub(crate) fn single(model: &TextModel, text: &str, how: Encoding) -> Result<Prompt> {
    let at = "the prompt".to_string();
    if model.tokenizer.is_none() {
        let ids = match (text, model.checkpoint.bos_eos()) {
            ("", (Some(bos), _)) => Some(vec![bos]),
            _ => serde_json::from_str::<Value>(text).ok().as_ref().and_then(ids),
        };
        if let Some(ids) = ids {
            model.check(&at, &ids, how.max_len)?;
            return Ok(Prompt { at, given: ids.clone().into(), ids });
        }
    }
    let ids = model.encode(text, how.bos, how.special)?;
    model.check(&at, &ids, how.max_len)?;
    Ok(Prompt { at, given: text.into(), ids })
}

/// The prompts of a file, or of stdin (`-`): a JSON string or an array of token ids a line. All are checked before any is used.
pub(crate) fn from_file(model: &TextModel, path: &Path, how: Encoding) -> Result<Vec<Prompt>> {
    let stdin = path == Path::new("-");
    let name = if stdin { "stdin".to_string() } else { path.display().to_string() };
    let mut bytes = Vec::new();
    if stdin {
        std::io::stdin().lock().read_to_end(&mut bytes).map_err(Error::io("read", "stdin"))?;
    } else {
        bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    }
    let lines: Vec<&[u8]> = bytes.strip_suffix(b"\n").unwrap_or(&bytes).split(|b| *b == b'\n').collect();
    if bytes.is_empty() {
        let hint = "write a JSON string or an array of token ids a line".into();
        return Err(Error::Nothing { what: "prompt in it".into(), path: name.into(), hint });
    }
    let prompts = lines.into_iter().enumerate().map(|(i, line)| {
        let at = format!("{name} line {}", i + 1);
        let bad = |problem: String| {
            let hint = "write one a line, as \"Once upon a time\" or [1, 5, 9]";
            Error::bad_value(&at, format!("expected a JSON string or an array of token ids{problem}"), hint)
        };
        let given: Value = serde_json::from_slice(line).map_err(|e| bad(format!(": {e}")))?;
        let ids = match &given {
            Value::String(text) => model.encode(text, how.bos, how.special).map_err(|e| match e {
                Error::BadValue { problem, hint, .. } => Error::BadValue { key: at.clone(), problem, hint },
                e => e,
            })?,
            _ => ids(&given).ok_or_else(|| bad(format!(", got `{}`", shortened(&given))))?,
        };
        model.check(&at, &ids, how.max_len)?;
        Ok(Prompt { at, given, ids })
    });
    prompts.collect()
}

fn ids(value: &Value) -> Option<Vec<u32>> {
    value.as_array()?.iter().map(|id| u32::try_from(id.as_u64()?).ok()).collect()
}

fn shortened(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 40 { text } else { text.chars().take(40).chain("...".chars()).collect() }
}
