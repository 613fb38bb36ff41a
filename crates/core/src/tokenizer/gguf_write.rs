//! A tokenizer as GGUF's metadata.

use std::collections::HashSet;
use std::path::Path;

use serde_json::Value as Json;

use super::decode::{Piece, SPACE, byte_of};
use super::gguf::{JSON, NO_TOKEN, NO_VOCAB, TEMPLATE, UNKNOWN_SURFACE, files, key, padding, types};
use super::gguf_pre::{DEFAULT, Pre};
use super::kind::without_bom;
use super::sp_model::{Algorithm, Kind, Model};
use super::{Encoder, Tokenizer};
use crate::error::{Error, Result};
use crate::gguf::{Array, Metadata, Value};

/// What a token that is no piece of SentencePiece's scores.
const ADDED_SCORE: f32 = -1000.0;

/// Texts on which a tokenizer and what became of it are held against each other, beside the tokens themselves.
const PROBES: [&str; 24] = [
    "",
    " ",
    "  ",
    "a",
    " a",
    "  a b   c",
    "\n",
    "\n\n  x\n\t y \r\n",
    "Hello, world!",
    "don't DON'T we'LL 'tis",
    "1234567 3.14 v2",
    "!!a ?! -- ...x",
    "caf\u{e9} cafe\u{301} na\u{ef}ve",
    "\u{fb01}ne \u{ff21}\u{ff22} \u{b2}",
    "\u{4f60}\u{597d}\u{3002} \u{3053}\u{3093}",
    "\u{1f600}\u{1f1e9}\u{1f1ea} \u{1f469}\u{200d}\u{1f4bb}",
    "\u{2581}x \u{2581}",
    "<s> </s> <unk> <|endoftext|>",
    "<0x0A><0xFF>",
    "if (x == 10) {\n    return a[i] + 1;\n}",
    "\u{0}\u{7f}\u{85}",
    "\u{627}\u{644}\u{633} \u{5e9}",
    "ALLCAPS MixedCase snake_case",
    "trailing   ",
];
/// Tokens that are encoded as texts, at most.
const PROBED_TOKENS: usize = 20_000;

/// The metadata of a tokenizer for a model with a vocabulary of `size`; of none, that there is none. What the keys cannot say exactly is
/// added as the whole `tokenizer.json`, and said in a warning.
///
/// # Errors
/// [`Error::Vocabulary`] for a tokenizer with more tokens than the model.
pub(crate) fn gguf_metadata(
    tokenizer: Option<&Tokenizer>,
    size: usize,
    bos_id: Option<u32>,
    eos_ids: &[u32],
) -> Result<Vec<(String, Value)>> {
    let mut out = Out(Vec::new());
    let Some(tokenizer) = tokenizer else {
        out.put("model", NO_VOCAB.into());
        out.ends(bos_id, eos_ids, |_| None);
        return Ok(out.0);
    };
    let inexact = out.vocabulary(tokenizer, size)?;
    let eos: Vec<u32> = if eos_ids.is_empty() { tokenizer.eos_id().into_iter().collect() } else { eos_ids.to_vec() };
    let bos = bos_id.or(tokenizer.bos_id());
    out.ends(bos, &eos, |id| tokenizer.token_of(id));
    // Where a key is not there, SentencePiece's are taken to be LLaMA's.
    for (name, is_none) in [("bos_token_id", bos.is_none()), ("eos_token_id", eos.is_empty())] {
        if is_none && matches!(tokenizer.0.encoder, Encoder::SentencePiece(_)) {
            out.put(name, Value::U32(NO_TOKEN));
        }
    }
    out.put("add_bos_token", Value::Bool(!tokenizer.prefix().is_empty()));
    let file = |name: &str| tokenizer.0.files.iter().find(|(n, _)| *n == name).map(|(_, bytes)| bytes);
    let config: Json =
        file("tokenizer_config.json").and_then(|bytes| serde_json::from_slice(without_bom(bytes)).ok()).unwrap_or_default();
    let named = |name: &str| config[name].as_str().or(config[name]["content"].as_str());
    if let Some(id) = named("pad_token").and_then(|token| tokenizer.id_of(token)) {
        out.put("padding_token_id", Value::U32(id));
    }
    let jinja = file("chat_template.jinja").map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    let default = || config["chat_template"].as_array()?.iter().find(|t| t["name"] == "default")?["template"].as_str();
    if let Some(template) = jinja.or_else(|| config["chat_template"].as_str().or_else(default).map(Into::into)) {
        out.0.push((TEMPLATE.into(), Value::String(template)));
    }

    let metadata: Metadata = out.0.iter().cloned().collect();
    let difference = match &inexact {
        Some(why) => Some(why.clone()),
        None => difference(tokenizer, &metadata, size),
    };
    if let Some(difference) = difference {
        let json = tokenizer.file_name() == "tokenizer.json";
        let kept = if json { "; here the whole tokenizer.json is read, which is in the file too" } else { "" };
        log::warn!("llama.cpp will not cut every text as this tokenizer does: {difference}{kept}");
        if json {
            let text = String::from_utf8_lossy(without_bom(tokenizer.0.files.main())).into_owned();
            out.0.push((JSON.into(), Value::String(text)));
        }
    }
    Ok(out.0)
}

/// A text of which the metadata's tokenizer makes something else.
fn difference(tokenizer: &Tokenizer, metadata: &Metadata, size: usize) -> Option<String> {
    let path = Path::new("GGUF");
    let other = match files(metadata, path).and_then(|files| Tokenizer::read(files, path)) {
        Ok(other) => other,
        Err(e) => return Some(e.to_string()),
    };
    if other.prefix() != tokenizer.prefix() {
        return Some(format!("a text begins with {:?}, not {:?}", other.prefix(), tokenizer.prefix()));
    }
    let step = size.div_ceil(PROBED_TOKENS).max(1);
    let tokens = (0..tokenizer.vocab_size().min(size) as u32).step_by(step).filter_map(|id| tokenizer.decode(&[id]).ok());
    let same = |text: &str| {
        tokenizer.encode(text).ok() == other.encode(text).ok()
            && tokenizer.encode_with_special(text).ok() == other.encode_with_special(text).ok()
    };
    let differs = PROBES.into_iter().map(String::from).chain(tokens).find(|text| !same(text));
    differs.map(|text| format!("for example {text:?}"))
}

/// The metadata so far.
struct Out(Vec<(String, Value)>);

impl Out {
    fn put(&mut self, name: &str, value: Value) {
        self.0.push((key(name), value));
    }

    /// Tokens that begin and end a text. GGUF has three names for what ends one.
    fn ends(&mut self, bos: Option<u32>, eos: &[u32], text: impl Fn(u32) -> Option<String>) {
        if let Some(id) = bos {
            self.put("bos_token_id", Value::U32(id));
        }
        let mut names = vec!["eos", "eot", "eom"];
        for (i, id) in eos.iter().enumerate() {
            let own = match text(*id).as_deref() {
                Some("<|eot_id|>" | "<|im_end|>") if i > 0 => "eot",
                Some("<|eom_id|>") if i > 0 => "eom",
                _ => names.first().copied().unwrap_or_default(),
            };
            let name = if names.contains(&own) { own } else { names.first().copied().unwrap_or_default() };
            names.retain(|n| *n != name);
            if name.is_empty() {
                log::warn!("token {id} ends a text too, which a GGUF file has no key for");
            } else {
                self.put(&format!("{name}_token_id"), Value::U32(*id));
            }
        }
    }

    /// Tokens, and what they are made with. What cannot be said so is told.
    fn vocabulary(&mut self, tokenizer: &Tokenizer, size: usize) -> Result<Option<String>> {
        let pieces = &tokenizer.0.pieces.list;
        let count = pieces.iter().rposition(|p| !matches!(p, Piece::Gap | Piece::Control(_))).map_or(0, |last| last + 1);
        if count > size {
            return Err(Error::Vocabulary {
                left: "the tokenizer".into(),
                left_size: tokenizer.vocab_size(),
                right: "the model".into(),
                right_size: size,
                hint: "pass the tokenizer that the model was trained with".into(),
            });
        }
        let json = || -> Result<Json> {
            let bad = |e: serde_json::Error| Error::internal("tokenizer.json", e.to_string());
            serde_json::from_slice(without_bom(tokenizer.0.files.main())).map_err(bad)
        };
        match &tokenizer.0.encoder {
            Encoder::SentencePiece(_) => self.sentencepiece(tokenizer, size),
            Encoder::Split(_) => {
                self.spelled(&json()?, tokenizer, size, false);
                Ok(Some("it merges runs of spaces and signs with the word after them".into()))
            }
            Encoder::Foreign(_) => {
                let json = json()?;
                let is_bpe = json["model"]["type"] == "BPE" || json["model"]["merges"].is_array();
                if is_bpe && names(&json["decoder"], "decoders").contains(&"ByteLevel") {
                    Ok(self.byte_level(&json, tokenizer, size))
                } else if let (true, Some(prefix)) = (is_bpe && json["model"]["byte_fallback"] == true, adds_space(&json)) {
                    self.spelled(&json, tokenizer, size, prefix);
                    Ok(None)
                } else {
                    self.put("model", NO_VOCAB.into());
                    Ok(Some(format!("there are no keys for its kind ({})", tokenizer.kind())))
                }
            }
        }
    }

    /// The list of tokens, filled up to the model's vocabulary. Each text must be there once only, and must not be empty.
    fn tokens(&mut self, mut tokens: Vec<(String, i32, f32)>, size: usize, scores: bool) {
        tokens.truncate(size);
        for id in tokens.len()..size {
            tokens.push((padding(id), types::UNUSED, ADDED_SCORE));
        }
        let mut seen: HashSet<&str> = HashSet::new();
        let twice: Vec<usize> =
            tokens.iter().enumerate().filter(|(_, (text, ..))| text.is_empty() || !seen.insert(text)).map(|(id, _)| id).collect();
        for id in twice {
            (tokens[id].0, tokens[id].1) = (format!("[UNUSED{id}]"), types::UNUSED);
        }
        self.put("tokens", Value::Array(Array::strings(tokens.iter().map(|(text, ..)| text.as_str()))));
        if scores {
            let scores: Vec<f32> = tokens.iter().map(|(.., score)| *score).collect();
            self.put("scores", Value::Array(Array::floats(&scores)));
        }
        let types: Vec<i32> = tokens.iter().map(|(_, kind, _)| *kind).collect();
        self.put("token_type", Value::Array(Array::ints(&types)));
        if let Some(id) = types.iter().position(|kind| *kind == types::UNKNOWN) {
            self.put("unknown_token_id", Value::U32(id as u32));
        }
    }

    fn sentencepiece(&mut self, tokenizer: &Tokenizer, size: usize) -> Result<Option<String>> {
        let model = Model::parse(tokenizer.0.files.main(), Path::new("tokenizer.model"))?;
        let unigram = model.algorithm == Algorithm::Unigram;
        self.put("model", if unigram { "t5" } else { "llama" }.into());
        self.put("pre", DEFAULT.into());
        let of_kind = |kind: Kind| match kind {
            Kind::Normal | Kind::Nul => types::NORMAL,
            Kind::Unknown => types::UNKNOWN,
            Kind::Control => types::CONTROL,
            Kind::UserDefined => types::USER_DEFINED,
            Kind::Unused => types::UNUSED,
            Kind::Byte => types::BYTE,
        };
        let own = model.entries.iter().map(|e| (e.text.clone(), of_kind(e.kind), e.score));
        // Tokens that the files beside the model add.
        let added = tokenizer.0.pieces.list.iter().skip(model.entries.len()).map(|piece| match piece {
            Piece::Text(text) => (text.to_string(), types::USER_DEFINED, ADDED_SCORE),
            Piece::Control(text) | Piece::Unknown(text) => (text.to_string(), types::CONTROL, ADDED_SCORE),
            Piece::Byte(_) | Piece::Gap => (String::new(), types::UNUSED, ADDED_SCORE),
        });
        self.tokens(own.chain(added).collect(), size, true);
        if unigram {
            // llama.cpp's own is to end a text so.
            self.put("add_eos_token", Value::Bool(false));
        }
        self.put("add_space_prefix", Value::Bool(model.add_dummy_prefix));
        self.put("remove_extra_whitespaces", Value::Bool(model.remove_extra_whitespaces));
        if !model.escape_whitespaces {
            self.put("escape_whitespaces", Value::Bool(false));
        }
        if model.unk_surface != UNKNOWN_SURFACE {
            self.put("unknown_surface", Value::String(model.unk_surface.clone()));
        }
        if model.space_as_suffix {
            self.put("treat_whitespace_as_suffix", Value::Bool(true));
        }
        if !model.charsmap.is_empty() {
            self.put("precompiled_charsmap", Value::Array(Array::bytes(&model.charsmap)));
        }
        let has_unused = model.entries.iter().any(|entry| entry.kind == Kind::Unused);
        let why = [
            (unigram && model.byte_fallback, "it has no bytes for characters that a unigram model lacks"),
            (unigram && !model.remove_extra_whitespaces, "it drops spaces that begin a text"),
            (!unigram && !model.byte_fallback, "it fails for characters that the vocabulary lacks"),
            (!unigram && !model.charsmap.is_empty(), "it does not normalise the characters of a text"),
            (!unigram && model.remove_extra_whitespaces, "it does not drop surplus spaces"),
            (has_unused, "it takes tokens that are marked as unused"),
        ];
        let why: Vec<&str> = why.into_iter().filter(|(holds, _)| *holds).map(|(_, why)| why).collect();
        Ok((!why.is_empty()).then(|| why.join("; ")))
    }

    /// A BPE whose tokens are spelled out, with bytes for what it lacks, as SentencePiece's: of two merges the one of the better token
    /// comes first, which is the one with the earlier merge.
    fn spelled(&mut self, json: &Json, tokenizer: &Tokenizer, size: usize, prefix: bool) {
        self.put("model", "llama".into());
        self.put("pre", DEFAULT.into());
        let merges = json["model"]["merges"].as_array().map_or(&[][..], Vec::as_slice);
        let mut scores: std::collections::HashMap<String, f32> = std::collections::HashMap::new();
        for (rank, merge) in merges.iter().enumerate() {
            if let Some((left, right)) = pair(merge) {
                scores.entry(format!("{left}{right}")).or_insert(-(rank as f32));
            }
        }
        let single = -(merges.len() as f32);
        let unknown = json["model"]["unk_token"].as_str().unwrap_or("<unk>");
        let added = json["added_tokens"].as_array().map_or(&[][..], Vec::as_slice);
        let is_added = |text: &str| added.iter().any(|token| token["content"] == text);
        let pieces = tokenizer.0.pieces.list.iter();
        let tokens = pieces.map(|piece| match piece {
            Piece::Control(text) | Piece::Unknown(text) if **text == *unknown => (unknown.to_string(), types::UNKNOWN, 0.0),
            Piece::Control(text) | Piece::Unknown(text) => (text.to_string(), types::CONTROL, 0.0),
            Piece::Byte(byte) => (super::decode::byte_token(*byte), types::BYTE, 0.0),
            Piece::Text(text) if **text == *unknown => (unknown.to_string(), types::UNKNOWN, 0.0),
            Piece::Text(text) if byte_of(text).is_some() => (text.to_string(), types::BYTE, 0.0),
            Piece::Text(text) if is_added(text) => (text.to_string(), types::USER_DEFINED, ADDED_SCORE),
            Piece::Text(text) => {
                let score = scores.get(&**text).copied().unwrap_or(single);
                (text.replace(' ', &SPACE.to_string()), types::NORMAL, score)
            }
            Piece::Gap => (String::new(), types::UNUSED, ADDED_SCORE),
        });
        self.tokens(tokens.collect(), size, true);
        self.put("add_space_prefix", Value::Bool(prefix));
    }

    /// A BPE whose tokens are bytes, each spelled as a letter.
    fn byte_level(&mut self, json: &Json, tokenizer: &Tokenizer, size: usize) -> Option<String> {
        let ignore_merges = json["model"]["ignore_merges"] == true;
        let pre = Pre::recognise(&json["pre_tokenizer"], ignore_merges);
        self.put("model", "gpt2".into());
        self.put("pre", pre.unwrap_or(DEFAULT).into());
        let vocab = json["model"]["vocab"].as_object();
        let in_vocab = |text: &str| vocab.is_some_and(|vocab| vocab.contains_key(text));
        let added = json["added_tokens"].as_array().map_or(&[][..], Vec::as_slice);
        let added: HashSet<&str> = added.iter().filter_map(|token| token["content"].as_str()).collect();
        let pieces = tokenizer.0.pieces.list.iter();
        let tokens = pieces.map(|piece| match piece {
            Piece::Text(text) if added.contains(&**text) || !in_vocab(text) => (text.to_string(), types::USER_DEFINED, 0.0),
            Piece::Text(text) => (text.to_string(), types::NORMAL, 0.0),
            Piece::Control(text) | Piece::Unknown(text) => (text.to_string(), types::CONTROL, 0.0),
            Piece::Byte(_) | Piece::Gap => (String::new(), types::UNUSED, 0.0),
        });
        self.tokens(tokens.collect(), size, false);
        let merges = json["model"]["merges"].as_array().map_or(&[][..], Vec::as_slice);
        let merges: Vec<String> = merges.iter().filter_map(|m| pair(m).map(|(left, right)| format!("{left} {right}"))).collect();
        self.put("merges", Value::Array(Array::strings(merges.iter().map(String::as_str))));
        let normalizer = (!json["normalizer"].is_null()).then(|| "it does not normalise a text".to_string());
        let unknown = || "there is no name for how it cuts a text into words".to_string();
        pre.is_none().then(unknown).or(normalizer)
    }
}

/// The two tokens of a merge.
fn pair(merge: &Json) -> Option<(&str, &str)> {
    match merge {
        Json::String(pair) => pair.split_once(' '),
        _ => merge[0].as_str().zip(merge[1].as_str()),
    }
}

/// The names of a part's parts, and its own.
fn names<'a>(part: &'a Json, list: &str) -> Vec<&'a str> {
    let inner = part[list].as_array().map_or(&[][..], Vec::as_slice);
    part["type"].as_str().into_iter().chain(inner.iter().flat_map(|part| names(part, list))).collect()
}

/// Whether a tokenizer that writes spaces as U+2581 puts one before a text; `None` if it writes them otherwise.
fn adds_space(json: &Json) -> Option<bool> {
    let metaspace = &json["pre_tokenizer"];
    if metaspace["type"] == "Metaspace" {
        return Some(metaspace["prepend_scheme"].as_str().map_or(metaspace["add_prefix_space"] != false, |s| s != "never"));
    }
    let normalizers = names(&json["normalizer"], "normalizers");
    (metaspace.is_null() && normalizers.contains(&"Replace")).then(|| normalizers.contains(&"Prepend"))
}
