//! The tokenizer in a GGUF file, as the files that it would have in a folder.

use std::path::Path;

use serde_json::{Map, Value as Json, json};

use super::bpe::FastMap;
use super::decode::byte_of;
use super::files::TokenizerFiles;
use super::gguf_pre::{DEFAULT, Pre};
use super::sp_model::{Algorithm, Entry, Kind, Model};
use super::sp_write;
use crate::error::{Error, Result};
use crate::gguf::Metadata;

/// The key of a whole `tokenizer.json`, which is more than the other keys can say.
pub(super) const JSON: &str = "tokenizer.huggingface.json";
/// The key of the template.
pub(super) const TEMPLATE: &str = "tokenizer.chat_template";
/// The kind of tokenizer of files that have none.
pub(super) const NO_VOCAB: &str = "no_vocab";

/// The id of a token that there is none of.
pub(super) const NO_TOKEN: u32 = u32::MAX;
/// What an unknown token is shown as, if the file does not say.
pub(super) const UNKNOWN_SURFACE: &str = " \u{2047} ";

/// Types of tokens, by llama.cpp's numbers.
pub(super) mod types {
    pub(in crate::tokenizer) const NORMAL: i32 = 1;
    pub(in crate::tokenizer) const UNKNOWN: i32 = 2;
    pub(in crate::tokenizer) const CONTROL: i32 = 3;
    pub(in crate::tokenizer) const USER_DEFINED: i32 = 4;
    pub(in crate::tokenizer) const UNUSED: i32 = 5;
    pub(in crate::tokenizer) const BYTE: i32 = 6;
}

/// A key of the tokenizer.
pub(super) fn key(name: &str) -> String {
    format!("tokenizer.ggml.{name}")
}

/// The text of a token that only fills the vocabulary up to the model's.
pub(super) fn padding(id: usize) -> String {
    format!("[PAD{id}]")
}

/// Whether a file has a tokenizer.
pub(crate) fn in_gguf(metadata: &Metadata) -> bool {
    let model = metadata.text(&key("model")).ok().flatten();
    metadata.get(JSON).is_some() || model.is_some_and(|model| model != NO_VOCAB)
}

/// The files of the tokenizer in a GGUF file; `path` is for messages.
pub(super) fn files(metadata: &Metadata, path: &Path) -> Result<TokenizerFiles> {
    let bad = |problem: String| {
        Error::bad_file("tokenizer of a GGUF file", path, problem, "pass --tokenizer FILE, or get the file again")
    };
    if !in_gguf(metadata) {
        return Err(Error::Nothing { what: "tokenizer".into(), path: path.into(), hint: "pass --tokenizer FILE".into() });
    }
    let model = metadata.text(&key("model")).map_err(bad)?.unwrap_or(NO_VOCAB);
    let vocabulary = Vocabulary::of(metadata).map_err(bad)?;
    if let Some(json) = metadata.text(JSON).map_err(bad)? {
        let mut files = TokenizerFiles::of(json.as_bytes());
        files.push("tokenizer_config.json", vocabulary.config(metadata, true, "PreTrainedTokenizerFast").map_err(bad)?);
        return Ok(files);
    }
    let (main, add_bos, class) = match model {
        "llama" => (vocabulary.sentencepiece(metadata, Algorithm::Bpe).map_err(bad)?, true, "LlamaTokenizer"),
        "t5" => (vocabulary.sentencepiece(metadata, Algorithm::Unigram).map_err(bad)?, false, "LlamaTokenizer"),
        "gpt2" => {
            let name = metadata.text(&key("pre")).map_err(bad)?.unwrap_or(DEFAULT);
            let unknown = || bad(format!("{}: `{name}` is unknown; known are {}", key("pre"), Pre::known()));
            let pre = Pre::named(name).ok_or_else(unknown)?;
            (vocabulary.byte_level(metadata, pre).map_err(bad)?, pre.add_bos, "PreTrainedTokenizerFast")
        }
        other => return Err(bad(format!("{}: `{other}` is unknown; known are llama, gpt2, t5", key("model")))),
    };
    let mut files = TokenizerFiles::of(&main);
    files.push("tokenizer_config.json", vocabulary.config(metadata, add_bos, class).map_err(bad)?);
    Ok(files)
}

/// Tokens by their ids.
struct Vocabulary<'a> {
    tokens: Vec<&'a str>,
    types: Vec<i32>,
    scores: Vec<f32>,
}

impl<'a> Vocabulary<'a> {
    fn of(metadata: &'a Metadata) -> Result<Self, String> {
        let list = |name: &str| metadata.array(&key(name));
        let mut tokens = match list("tokens")? {
            Some(tokens) => tokens.as_strings().ok_or("tokens that are no strings")??,
            None => Vec::new(),
        };
        let ints = |name: &str| {
            let ints = list(name)?.map(|list| list.as_ints().ok_or_else(|| format!("{name} that are no whole numbers")));
            ints.transpose()
        };
        let types: Vec<i32> = match ints("token_type")? {
            Some(types) => types.into_iter().map(|t| i32::try_from(t).unwrap_or(0)).collect(),
            None => vec![types::NORMAL; tokens.len()],
        };
        let scores = match list("scores")? {
            Some(scores) => scores.as_floats().ok_or("scores that are no numbers")?.into_iter().map(|s| s as f32).collect(),
            None => vec![0.0; tokens.len()],
        };
        if tokens.len() != types.len() || tokens.len() != scores.len() {
            return Err(format!("{} tokens with {} types and {} scores", tokens.len(), types.len(), scores.len()));
        }
        // The model's vocabulary is larger than the tokenizer's: what fills it is no part of this.
        while let Some(last) = tokens.len().checked_sub(1)
            && types[last] == types::UNUSED
            && tokens[last] == padding(last)
        {
            tokens.pop();
        }
        Ok(Self { types, scores, tokens })
    }

    /// What `tokenizer_config.json` would say.
    fn config(&self, metadata: &Metadata, add_bos: bool, class: &str) -> Result<Vec<u8>, String> {
        let mut config = Map::new();
        let is_json = metadata.get(JSON).is_some();
        let is_sentencepiece = metadata.text(&key("model"))? == Some("llama") && !is_json;
        for (name, ours) in [("bos", "bos_token"), ("eos", "eos_token"), ("unknown", "unk_token"), ("padding", "pad_token")] {
            if is_json && name == "unknown" {
                continue; // its own to say
            }
            let id = match metadata.token(&key(&format!("{name}_token_id")))? {
                // Files that say nothing of a SentencePiece model have LLaMA's.
                None if is_sentencepiece && metadata.get(&key(&format!("{name}_token_id"))).is_none() => match name {
                    "bos" => Some(1),
                    "eos" => Some(2),
                    _ => None,
                },
                id => id,
            };
            let token = id.and_then(|id| self.tokens.get(id as usize));
            if let Some(token) = token {
                config.insert(ours.into(), (*token).into());
            } else if metadata.get(&key(&format!("{name}_token_id"))).is_some() {
                config.insert(ours.into(), Json::Null);
            }
        }
        for (name, otherwise) in [("add_bos_token", Some(add_bos)), ("add_eos_token", None)] {
            if let Some(flag) = metadata.flag(&key(name))?.or(otherwise) {
                config.insert(name.into(), flag.into());
            }
        }
        if let Some(template) = metadata.text(TEMPLATE)? {
            config.insert("chat_template".into(), template.into());
        }
        config.insert("clean_up_tokenization_spaces".into(), false.into());
        config.insert("tokenizer_class".into(), class.into());
        Ok(format!("{:#}\n", Json::Object(config)).into_bytes())
    }

    /// A SentencePiece model.
    fn sentencepiece(&self, metadata: &Metadata, algorithm: Algorithm) -> Result<Vec<u8>, String> {
        let flag = |name: &str, otherwise: bool| Ok::<_, String>(metadata.flag(&key(name))?.unwrap_or(otherwise));
        let token = |name: &str| metadata.token(&key(&format!("{name}_token_id")));
        let mut bytes = [false; 256];
        for (text, kind) in self.tokens.iter().zip(&self.types) {
            // llama.cpp finds them by their texts; some writers call them normal.
            if let Some(byte) = byte_of(text).filter(|_| matches!(*kind, types::BYTE | types::NORMAL)) {
                bytes[usize::from(byte)] = true;
            }
        }
        let byte_fallback = !bytes.contains(&false);
        let unknown = match self.types.iter().position(|kind| *kind == types::UNKNOWN) {
            Some(id) => id,
            None => token("unknown")?.unwrap_or(0) as usize,
        };
        let entry = |(id, text): (usize, &&str)| {
            let kind = match self.types[id] {
                _ if id == unknown => Kind::Unknown,
                types::BYTE | types::NORMAL if byte_fallback && byte_of(text).is_some() => Kind::Byte,
                types::NORMAL => Kind::Normal,
                types::UNKNOWN | types::CONTROL => Kind::Control,
                types::USER_DEFINED => Kind::UserDefined,
                types::UNUSED | types::BYTE => Kind::Unused,
                other => return Err(format!("token {id}, `{text}`, is of type {other}, expected 1 to 6")),
            };
            Ok(Entry { text: (*text).into(), score: self.scores[id], kind })
        };
        let text = |id: Option<u32>, otherwise: &str| {
            let found = id.and_then(|id| self.tokens.get(id as usize));
            found.map_or(otherwise, |text| text).to_string()
        };
        let charsmap = match metadata.array(&key("precompiled_charsmap"))? {
            Some(map) => map.as_bytes().ok_or("precompiled_charsmap that is no bytes")?.to_vec(),
            None => Vec::new(),
        };
        let model = Model {
            entries: self.tokens.iter().enumerate().map(entry).collect::<Result<_, _>>()?,
            algorithm,
            byte_fallback,
            space_as_suffix: flag("treat_whitespace_as_suffix", false)?,
            unk_surface: metadata.text(&key("unknown_surface"))?.unwrap_or(UNKNOWN_SURFACE).into(),
            bos_piece: text(token("bos")?, "<s>"),
            eos_piece: text(token("eos")?, "</s>"),
            charsmap,
            add_dummy_prefix: flag("add_space_prefix", true)?,
            remove_extra_whitespaces: flag("remove_extra_whitespaces", false)?,
            escape_whitespaces: flag("escape_whitespaces", true)?,
        };
        Ok(sp_write::write(&model))
    }

    /// A `tokenizer.json` of byte-level BPE.
    fn byte_level(&self, metadata: &Metadata, pre: &Pre) -> Result<Vec<u8>, String> {
        let is_added = |id: usize| matches!(self.types[id], types::CONTROL | types::USER_DEFINED | types::UNKNOWN);
        // Added tokens after all others get the next ids, and are no tokens of the model itself.
        let tail = (0..self.tokens.len()).rev().take_while(|id| is_added(*id)).last().unwrap_or(self.tokens.len());
        let vocab: FastMap<&str, usize> = (0..tail).map(|id| (self.tokens[id], id)).collect();
        if vocab.len() != tail {
            return Err("two tokens of one text".into());
        }
        let added = (0..self.tokens.len()).filter(|id| is_added(*id)).map(|id| {
            let special = self.types[id] != types::USER_DEFINED;
            json!({
                "id": id, "content": self.tokens[id], "special": special,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            })
        });
        let merges = match metadata.array(&key("merges"))? {
            Some(merges) => merges.as_strings().ok_or("merges that are no strings")??,
            None => return Err("no merges".into()),
        };
        let (mut pairs, mut merged) = (Vec::new(), String::new());
        for merge in &merges {
            let Some(at) = merge.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(at, _)| at) else { continue };
            let pair = [&merge[..at], &merge[at + 1..]];
            merged.clear();
            merged.extend(pair);
            if pair.into_iter().chain([merged.as_str()]).all(|token| vocab.contains_key(token)) {
                pairs.push(pair);
            }
        }
        if pairs.len() < merges.len() {
            log::warn!("{} merges of tokens that the vocabulary does not have are left out", merges.len() - pairs.len());
        }
        let bos = metadata.token(&key("bos_token_id"))?.filter(|id| (*id as usize) < self.tokens.len());
        let add_bos = metadata.flag(&key("add_bos_token"))?.unwrap_or(pre.add_bos);
        let processor = bos.filter(|_| add_bos).map(|id| {
            let token = self.tokens[id as usize];
            let special = json!({"SpecialToken": {"id": token, "type_id": 0}});
            json!({
                "type": "TemplateProcessing",
                "single": [special, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [special, {"Sequence": {"id": "A", "type_id": 0}}, special, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}},
            })
        });
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
        // Hundreds of thousands of tokens and merges are written as they are, not by way of a tree of values.
        let text = |value: &str| Json::from(value).to_string();
        let mut lists = String::new();
        for (id, token) in self.tokens[..tail].iter().enumerate() {
            lists += &format!("{}{}:{id}", if id == 0 { "\"vocab\":{" } else { "," }, text(token));
        }
        lists += if tail == 0 { "\"vocab\":{},\"merges\":[" } else { "},\"merges\":[" };
        for (i, [left, right]) in pairs.iter().enumerate() {
            lists += &format!("{}[{},{}]", if i == 0 { "" } else { "," }, text(left), text(right));
        }
        lists += "]";
        const LISTS: &str = "\"lists\":null";
        let json = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added.collect::<Vec<_>>(),
            "normalizer": null,
            "pre_tokenizer": pre.json(),
            "post_processor": processor,
            "decoder": bytes,
            "model": {
                "type": "BPE",
                "dropout": null,
                "unk_token": null,
                "continuing_subword_prefix": null,
                "end_of_word_suffix": null,
                "fuse_unk": false,
                "byte_fallback": false,
                "ignore_merges": pre.ignore_merges,
                "lists": null,
            },
        });
        // `model` is the only object with this key; texts of tokens have their quotation marks escaped.
        Ok(json.to_string().replacen(LISTS, &lists, 1).into_bytes())
    }
}
