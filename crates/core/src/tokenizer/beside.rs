//! What the files beside a tokenizer say of it: `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json`, in the
//! order and with the precedence of transformers 5.

use std::path::Path;

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::files::TokenizerFiles;
use super::kind::without_bom;
use crate::error::{Error, Result};

/// The names of special tokens, in the order in which tokens that are missing get their ids.
const NAMES: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// See above. Without any of the files it says nothing.
#[derive(Debug, Default)]
pub(super) struct Beside {
    /// Special tokens that have a name (`None`: the files say that there is none), in the order of [`NAMES`] and then of the file.
    named: Vec<(String, Option<AddedToken>)>,
    /// Special tokens without a name.
    unnamed: Vec<AddedToken>,
    /// Further tokens, with the ids that the files state, in the order of these.
    added: Vec<(u32, AddedToken)>,
    /// Whether BOS goes before a text, where the tokenizer's own file does not say.
    pub(super) add_bos: Option<bool>,
}

impl Beside {
    /// Of a tokenizer's files; `path` is that of the first, for messages.
    ///
    /// # Errors
    /// [`Error::BadFile`] for one that is not what its name says.
    pub(super) fn of(files: &TokenizerFiles, path: &Path) -> Result<Self> {
        let object = |file| object(files, path, file);
        let mut config = object("tokenizer_config.json")?;
        let mut this = Self::default();
        let decoder = config.remove("added_tokens_decoder");
        let extra = |config: &mut Map<String, Value>| {
            let [old, new] = ["additional_special_tokens", "extra_special_tokens"].map(|key| config.remove(key));
            new.filter(|list| !list.as_array().is_some_and(Vec::is_empty)).or(old)
        };
        let mut unnamed = extra(&mut config);
        let bad = |file: &'static str, problem: String| {
            Error::bad_file(file, path.with_file_name(file), problem, "correct the file, or get it again")
        };
        if let Some(tokens) = &decoder {
            const FILE: &str = "tokenizer_config.json";
            let tokens = tokens.as_object().ok_or_else(|| bad(FILE, "added_tokens_decoder: expected an object".into()))?;
            for (id, value) in tokens {
                let token = token(value, false).filter(|_| value.is_object());
                let (Ok(id), Some(token)) = (id.parse(), token) else {
                    return Err(bad(FILE, format!("added_tokens_decoder: `{id}`: expected an id and a token, got {value}")));
                };
                this.added.push((id, token));
            }
        } else {
            // Folders of before 2023 say it in two more files.
            let mut map = object("special_tokens_map.json")?;
            unnamed = extra(&mut map).or(unnamed);
            config.extend(map);
        }
        for key in NAMES {
            if let Some(value) = config.remove(key) {
                this.named.push((key.into(), token(&value, true)));
            }
        }
        config.sort_keys(); // as they are but with feature `constrain`
        for (key, value) in config.iter().filter(|(key, _)| key.ends_with("_token")) {
            this.named.extend(token(value, true).map(|token| (key.clone(), Some(token))));
        }
        match unnamed {
            Some(Value::Array(list)) => this.unnamed = list.iter().filter_map(|value| token(value, true)).collect(),
            Some(Value::Object(mut map)) => {
                map.sort_keys();
                this.named.extend(map.iter().filter_map(|(key, value)| Some((key.clone(), Some(token(value, true)?)))));
            }
            _ => {}
        }
        if decoder.is_none() {
            for (text, id) in object("added_tokens.json")? {
                let Some(id) = id.as_u64().and_then(|id| u32::try_from(id).ok()) else {
                    return Err(bad("added_tokens.json", format!("`{text}`: expected an id, got {id}")));
                };
                let special = this.specials().any(|token| token.content == text);
                this.added.push((id, AddedToken::from(text, special)));
            }
        }
        this.added.sort_by_key(|(id, _)| *id);
        this.add_bos = config.get("add_bos_token").and_then(Value::as_bool);
        Ok(this)
    }

    fn specials(&self) -> impl Iterator<Item = &AddedToken> {
        self.named.iter().filter_map(|(_, token)| token.as_ref()).chain(&self.unnamed)
    }

    /// The token of a name: `None` where the files do not have the name, `Some(None)` where they say that there is none.
    pub(super) fn name(&self, name: &str) -> Option<Option<&str>> {
        let (_, token) = self.named.iter().find(|(n, _)| n == name)?;
        Some(token.as_ref().map(|token| token.content.as_str()))
    }

    /// The tokens that a tokenizer with these added tokens still lacks, in the order in which it gets them.
    pub(super) fn missing(&self, there: &[AddedToken]) -> Vec<AddedToken> {
        let mut missing: Vec<AddedToken> = self.added.iter().map(|(_, token)| token.clone()).collect();
        missing.retain(|token| !there.iter().any(|t| same(t, token)));
        let listed: Vec<&str> = there.iter().chain(&missing).map(|token| token.content.as_str()).collect();
        let mut more: Vec<AddedToken> = Vec::new();
        for token in self.specials() {
            if !listed.contains(&token.content.as_str()) && !more.iter().any(|t| t.content == token.content) {
                // With the properties that the list of ids gives it.
                let of_id = self.added.iter().find(|(_, t)| t.content == token.content).map(|(_, t)| t);
                more.push(of_id.unwrap_or(token).clone());
            }
        }
        for token in &mut missing {
            token.special |= self.named.iter().any(|(_, t)| t.as_ref().is_some_and(|t| t.content == token.content));
        }
        missing.extend(more);
        missing
    }

    /// Says where a token got another id than the files state.
    pub(super) fn warn_of_other_ids(&self, path: &Path, id_of: impl Fn(&str) -> Option<u32>) {
        for (id, token) in &self.added {
            if let Some(got) = id_of(&token.content).filter(|got| got != id) {
                log::warn!("{}: `{}` is token {got}, though a file beside it says {id}", path.display(), token.content);
            }
        }
    }
}

/// `AddedToken` compares the text alone.
fn same(a: &AddedToken, b: &AddedToken) -> bool {
    let properties = |t: &AddedToken| (t.single_word, t.lstrip, t.rstrip, t.normalized, t.special);
    a.content == b.content && properties(a) == properties(b)
}

/// A token is its text, or an object with its text and its properties.
pub(super) fn token(value: &Value, special: bool) -> Option<AddedToken> {
    let content = value.as_str().or_else(|| value.get("content")?.as_str())?;
    let property = |key: &str| value.get(key).and_then(Value::as_bool);
    let special = property("special").unwrap_or(special);
    Some(
        AddedToken::from(content, special)
            .single_word(property("single_word").unwrap_or(false))
            .lstrip(property("lstrip").unwrap_or(false))
            .rstrip(property("rstrip").unwrap_or(false))
            .normalized(property("normalized").unwrap_or(!special)),
    )
}

/// The object in one of the files; an empty one where there is no such file.
fn object(files: &TokenizerFiles, path: &Path, file: &'static str) -> Result<Map<String, Value>> {
    let Some((_, bytes)) = files.iter().find(|(name, _)| *name == file) else { return Ok(Map::new()) };
    let path = path.with_file_name(file);
    let bad = |problem: String| Error::bad_file(file, &path, problem, "get the file again, or remove it");
    match serde_json::from_slice(without_bom(bytes)).map_err(|e| bad(format!("not JSON: {e}")))? {
        Value::Object(map) => Ok(map),
        _ => Err(bad("expected an object".into())),
    }
}
