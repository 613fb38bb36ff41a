//! `tokenizer.json`: those that this library trains get its own encoder, all others run on the crate `tokenizers`.

use std::path::Path;
use std::sync::OnceLock;

use serde_json::Value;
use tokenizers::utils::SysRegex;
use tokenizers::{AddedToken, DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, TokenizerImpl};

use super::Encoder;
use super::beside::{Beside, token};
use super::bpe::{FastMap, SplitBpe};
use super::cut::Cutter;
use super::decode::{Piece, Pieces, byte_of, byte_token};
use super::train::PATTERN;
use crate::error::{Error, Result};

/// `tokenizers`' own, but for how a text is cut.
type Foreign = TokenizerImpl<ModelWrapper, NormalizerWrapper, Cutter, PostProcessorWrapper, DecoderWrapper>;

/// A foreign `tokenizer.json`.
pub(super) struct HuggingFace {
    /// Takes the text of special tokens as text.
    plain: Foreign,
    /// Takes it as special tokens; made when first needed.
    special: OnceLock<Foreign>,
    /// What the `post_processor` puts before a text.
    pub(super) prefix: Vec<u32>,
}

impl HuggingFace {
    pub(super) fn kind(&self) -> &'static str {
        match self.plain.get_model() {
            ModelWrapper::BPE(_) => "tokenizer.json, BPE",
            ModelWrapper::Unigram(_) => "tokenizer.json, Unigram",
            ModelWrapper::WordPiece(_) => "tokenizer.json, WordPiece",
            ModelWrapper::WordLevel(_) => "tokenizer.json, WordLevel",
        }
    }

    pub(super) fn encode(&self, text: &str, with_special: bool) -> Result<Vec<u32>> {
        let tokenizer = if with_special {
            self.special.get_or_init(|| {
                let mut tokenizer = self.plain.clone();
                tokenizer.set_encode_special_tokens(false);
                tokenizer
            })
        } else {
            &self.plain
        };
        let encoding = tokenizer.encode_fast(text, false).map_err(|e| {
            let start: String = text.chars().take(40).collect();
            let problem = format!("{} bytes of text that begin with {start:?} cannot be encoded: {e}", text.len());
            Error::bad_value("tokenizer", problem, "take the text out, or another tokenizer")
        })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// How tokens become bytes: the names of the decoder's parts.
    pub(super) fn decoder_parts(&self) -> Vec<String> {
        fn walk(part: &Value, names: &mut Vec<String>) {
            names.extend(part.get("type").and_then(Value::as_str).map(String::from));
            part.get("decoders").and_then(Value::as_array).into_iter().flatten().for_each(|part| walk(part, names));
        }
        let mut names = Vec::new();
        walk(&serde_json::to_value(self.plain.get_decoder()).unwrap_or_default(), &mut names);
        names
    }

    /// Whether a token was added to the vocabulary: its text is itself.
    pub(super) fn is_added(&self, id: u32) -> bool {
        self.plain.get_added_tokens_decoder().contains_key(&id)
    }

    /// Ids must be in the vocabulary.
    pub(super) fn decode(&self, ids: &[u32], show_special: bool) -> Result<String, String> {
        self.plain.decode(ids, !show_special).map_err(|e| e.to_string())
    }
}

/// What a `tokenizer.json` gives: what encodes, the pieces, their ids, and what the hash is taken over.
pub(super) type Loaded = (Encoder, Pieces, FastMap<Box<str>, u32>, Value);

/// Reads a `tokenizer.json`, to which the files beside it may add tokens; `path` is for messages.
pub(super) fn load(bytes: &[u8], beside: &Beside, path: &Path) -> Result<Loaded> {
    let hint = "get the file again; it must be the tokenizer.json that Hugging Face `tokenizers` writes";
    let bad = |problem: String| Error::bad_file("tokenizer.json", path, problem, hint);
    let mut json: Value = serde_json::from_slice(bytes).map_err(|e| bad(format!("not JSON: {e}")))?;
    // Cutting, padding and random merges have no place in the encoding of documents.
    for (at, key) in [("", "truncation"), ("", "padding"), ("/model", "dropout")] {
        if let Some(Value::Object(map)) = json.pointer_mut(at)
            && let Some(value) = map.get_mut(key)
        {
            *value = Value::Null;
        }
    }
    let added = |json: &Value| json.get("added_tokens").and_then(Value::as_array).cloned().unwrap_or_default();
    let there: Vec<AddedToken> = added(&json).iter().filter_map(|entry| token(entry, false)).collect();
    let missing = beside.missing(&there);
    let (encoder, pieces, ids) = match split(&json).filter(|_| missing.is_empty()) {
        Some((encoder, pieces)) => {
            let ids = pieces.ids();
            (Encoder::Split(Box::new(encoder)), pieces, ids)
        }
        None => {
            check(&json).map_err(bad)?;
            let processor = json.get_mut("post_processor").map(Value::take).unwrap_or_default();
            let text = serde_json::to_vec(&json).map_err(|e| bad(e.to_string()))?;
            let mut plain = Foreign::from_bytes(text).map_err(|e| bad(e.to_string()))?;
            let fresh: Vec<String> =
                missing.iter().map(|t| t.content.clone()).filter(|t| plain.token_to_id(t).is_none()).collect();
            plain.add_tokens(missing).map_err(|e| bad(e.to_string()))?;
            plain.set_encode_special_tokens(true);
            beside.warn_of_other_ids(path, |text| plain.token_to_id(text));
            if !fresh.is_empty() {
                let mut list = added(&json);
                list.extend(fresh.iter().map(|text| serde_json::json!({"content": text, "id": plain.token_to_id(text)})));
                json["added_tokens"] = list.into();
            }
            let (pieces, ids) = pieces(&plain);
            let prefix = prefix(&processor, pieces.list.len()).map_err(bad)?;
            (Encoder::Foreign(Box::new(HuggingFace { plain, special: OnceLock::new(), prefix })), pieces, ids)
        }
    };
    if let Value::Object(map) = &mut json {
        map.retain(|key, _| ["added_tokens", "normalizer", "pre_tokenizer", "decoder", "model"].contains(&key.as_str()));
    }
    json.sort_all_objects(); // the hash is over sorted keys, whether or not serde_json keeps them so (feature `constrain`)
    Ok((encoder, pieces, ids, json))
}

/// Finds what `tokenizers` would only find when it meets unknown text, or not at all.
fn check(json: &Value) -> Result<(), String> {
    let model = json.get("model").filter(|m| m.is_object()).ok_or("no model")?;
    let vocab = model.get("vocab").ok_or("no model.vocab")?;
    let ids = vocab.as_object().map_or(0, |v| v.len()).max(vocab.as_array().map_or(0, Vec::len)) as u64;
    if ids == 0 {
        return Err("model.vocab is empty".into());
    }
    let added = json.get("added_tokens").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    // The table of pieces has a place for every id up to the highest.
    let limit = 4 * (ids + added.len() as u64) + 100_000;
    let mut all = vocab.as_object().into_iter().flat_map(|v| v.values()).chain(added.iter().filter_map(|t| t.get("id")));
    if let Some(id) = all.find(|id| id.as_u64().is_none_or(|id| id > limit)) {
        return Err(format!("the id {id} with only {ids} tokens"));
    }
    // Text for which there is no token is an error when it comes: many a file names an unknown token that it never needs.
    match model.get("type").and_then(Value::as_str).unwrap_or(if vocab.is_array() { "Unigram" } else { "BPE" }) {
        "BPE" => check_merges(model),
        "Unigram" | "WordPiece" | "WordLevel" => Ok(()),
        other => Err(format!("model type {other}; known are BPE, Unigram, WordPiece, WordLevel")),
    }
}

/// `tokenizers` panics on a merge whose result is longer than every token.
fn check_merges(model: &Value) -> Result<(), String> {
    let prefix = model.get("continuing_subword_prefix").and_then(Value::as_str).map_or(0, str::len);
    for merge in model.get("merges").and_then(Value::as_array).into_iter().flatten() {
        let pair = match merge {
            Value::String(pair) => pair.split_once(' '),
            _ => merge.get(0).and_then(Value::as_str).zip(merge.get(1).and_then(Value::as_str)),
        };
        let merged = pair.and_then(|(left, right)| Some(format!("{left}{}", right.get(prefix..)?)));
        if merged.is_none_or(|token| model["vocab"].get(token).is_none()) {
            return Err(format!("the merge {merge} does not make a token of the vocabulary"));
        }
    }
    Ok(())
}

/// Every id's token of a foreign tokenizer, and every token's id. Where two tokens have one id it is the added one's, as in
/// `tokenizers`.
fn pieces(tokenizer: &Foreign) -> (Pieces, FastMap<Box<str>, u32>) {
    let vocab = tokenizer.get_vocab(true);
    let mut list = vec![Piece::Gap; vocab.values().max().map_or(0, |id| *id as usize + 1)];
    let added = tokenizer.get_added_tokens_decoder();
    let mut tokens: Vec<(String, u32)> = vocab.into_iter().collect();
    tokens.sort_unstable();
    for (token, id) in &tokens {
        let place = &mut list[*id as usize];
        match added.get(id) {
            Some(added) if added.content != *token => {}
            Some(added) if added.special => *place = Piece::Control(token.as_str().into()),
            _ => *place = Piece::Text(token.as_str().into()),
        }
    }
    let ids = tokens.into_iter().map(|(token, id)| (token.into(), id)).collect();
    (Pieces { list, spaces: None, unknown: "".into() }, ids)
}

/// What a `post_processor` puts before a text; what it puts after one is not for prompts. (Read here, as that of `tokenizers` panics
/// on a template that names a token it does not have.)
fn prefix(processor: &Value, size: usize) -> Result<Vec<u32>, String> {
    let id = |id: &Value| {
        let id = id.as_u64().and_then(|id| u32::try_from(id).ok()).filter(|id| (*id as usize) < size);
        id.ok_or_else(|| format!("post_processor: expected the id of one of {size} tokens"))
    };
    let list = |of: &Value, key: &str| of.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    match processor.get("type").and_then(Value::as_str) {
        Some("TemplateProcessing") => {
            let mut ids = Vec::new();
            for piece in list(processor, "single").iter().map_while(|piece| piece.get("SpecialToken")) {
                let token = piece.get("id").and_then(Value::as_str).and_then(|name| processor.get("special_tokens")?.get(name));
                let token = token.ok_or_else(|| format!("post_processor: its special_tokens lack that of {piece}"))?;
                ids.extend(list(token, "ids").iter().map(id).collect::<Result<Vec<_>, _>>()?);
            }
            Ok(ids)
        }
        Some("BertProcessing" | "RobertaProcessing") => Ok(vec![id(&processor["cls"][1])?]),
        // Each has the text of the one before it.
        Some("Sequence") => {
            let all = list(processor, "processors");
            Ok(all.iter().rev().map(|processor| prefix(processor, size)).collect::<Result<Vec<_>, _>>()?.concat())
        }
        _ => Ok(Vec::new()),
    }
}

/// One of our own: raw text cut by [`PATTERN`], all 256 bytes, decoded by joining. `None` for anything else.
fn split(json: &Value) -> Option<(SplitBpe, Pieces)> {
    let part = |key: &str| json.get(key).unwrap_or(&Value::Null);
    let pre_tokenizer =
        serde_json::json!({"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": false});
    let decoder = serde_json::json!({"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]});
    let model = part("model");
    let falsy = |key: &str| matches!(model.get(key), None | Some(Value::Null | Value::Bool(false)));
    let ours = part("normalizer").is_null()
        && *part("pre_tokenizer") == pre_tokenizer
        && *part("decoder") == decoder
        && model.get("type") == Some(&"BPE".into())
        && model.get("byte_fallback") == Some(&true.into())
        && ["continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "ignore_merges"].into_iter().all(falsy);
    let vocab = model.get("vocab").filter(|_| ours)?.as_object()?;
    let mut list = vec![Piece::Gap; vocab.len()];
    let mut ids = FastMap::default();
    for (token, id) in vocab {
        let id = u32::try_from(id.as_u64()?).ok()?;
        let place = list.get_mut(id as usize)?;
        if *place != Piece::Gap {
            return None;
        }
        *place = byte_of(token).map_or_else(|| Piece::Text(token.as_str().into()), Piece::Byte);
        ids.insert(token.as_str(), id);
    }
    for added in part("added_tokens").as_array()? {
        let token = added.get("content")?.as_str()?;
        let plain = |key: &str| added.get(key) == Some(&false.into());
        let exact = ["single_word", "lstrip", "rstrip", "normalized"].into_iter().all(plain);
        let id = *ids.get(token)?;
        if added.get("special") != Some(&true.into()) || added.get("id") != Some(&id.into()) || !exact || byte_of(token).is_some()
        {
            return None;
        }
        list[id as usize] = Piece::Control(token.into());
    }
    let bytes = (0..=255).map(|b| ids.get(byte_token(b).as_str()).copied()).collect::<Option<Vec<u32>>>()?;
    let mut merges = FastMap::default();
    for (rank, merge) in (0..).zip(model.get("merges")?.as_array()?) {
        let [left, right] = merge.as_array()?.as_slice() else { return None };
        let (left, right) = (left.as_str()?, right.as_str()?);
        merges.insert((*ids.get(left)?, *ids.get(right)?), (rank, *ids.get(format!("{left}{right}").as_str())?));
    }
    let encoder = SplitBpe::new(SysRegex::new(PATTERN).ok()?, ids.iter().map(|(t, id)| (*t, *id)), bytes, merges);
    Some((encoder, Pieces { list, spaces: None, unknown: "".into() }))
}
