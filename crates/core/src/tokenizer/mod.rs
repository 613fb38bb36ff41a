//! Text to token ids and back.
//!
//! Three kinds of tokenizer behind one type: those that [`Tokenizer::train`] makes (lossless for every UTF-8 string), any
//! `tokenizer.json` of Hugging Face `tokenizers`, and SentencePiece `.model` files (BPE and unigram), with the original's ids.
//!
//! ```
//! use recua::tokenizer::{Tokenizer, TrainConfig};
//!
//! let docs = ["a llama and another llama", "two llamas in 1984"].map(String::from);
//! let tokenizer = Tokenizer::train(docs.into_iter(), &TrainConfig { vocab_size: 300, ..Default::default() })?;
//! let ids = tokenizer.encode_document(" llama\u{2581}<s>", true, false)?;
//! assert_eq!(ids[0], 1); // BOS; the `<s>` in the text is text
//! assert_eq!(tokenizer.decode(&ids)?, " llama\u{2581}<s>");
//! # Ok::<(), recua::error::Error>(())
//! ```

mod beside;
mod bpe;
mod bytes;
#[cfg(feature = "chat")]
mod chat_json;
#[cfg(feature = "chat")]
mod chat_template;
mod cut;
mod decode;
mod files;
mod gguf;
mod gguf_pre;
mod gguf_write;
mod hf;
mod kind;
mod sentencepiece;
mod sp_model;
mod sp_normalize;
mod sp_write;
mod stream;
mod train;
#[cfg(feature = "unigram")]
mod unigram;
#[cfg(feature = "unigram")]
mod unigram_em;

use std::path::Path;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use crate::error::{Error, Result};
use crate::files::write_atomic;
use beside::Beside;
use bpe::FastMap;
pub use bytes::TokenBytes;
#[cfg(feature = "chat")]
pub use chat_template::{ChatTemplate, Message, TemplateValue};
use decode::{Piece, Pieces, State};
pub use files::{TokenizerFiles, find_tokenizer};
pub(crate) use gguf::in_gguf;
pub(crate) use gguf_write::gguf_metadata;
use kind::Kind;
use sp_normalize::PrefixSet;
pub use stream::DecodeStream;
pub use train::TrainConfig;
#[cfg(feature = "unigram")]
pub use unigram::{UnigramConfig, UnigramTrainer, save_unigram, train_unigram};

/// The beginning-of-sequence tokens that files without a `tokenizer_config.json` are searched for.
const BOS_NAMES: [&str; 5] = ["<s>", "<|begin_of_text|>", "<bos>", "<|startoftext|>", "<|endoftext|>"];
/// The same for the end of a sequence.
const EOS_NAMES: [&str; 4] = ["</s>", "<|end_of_text|>", "<eos>", "<|endoftext|>"];

/// A tokenizer; cloning is cheap, and all threads can use it at once.
#[derive(Clone)]
pub struct Tokenizer(Arc<Inner>);

struct Inner {
    encoder: Encoder,
    pieces: Pieces,
    ids: FastMap<Box<str>, u32>,
    /// The special tokens' texts.
    special: PrefixSet,
    /// Further tokens whose text is always that token, of those that are searched for here.
    added: PrefixSet,
    bos: Option<u32>,
    eos: Option<u32>,
    /// What goes before a text.
    prefix: Vec<u32>,
    /// The file and those beside it, as they were read.
    files: TokenizerFiles,
    hash: u64,
}

enum Encoder {
    Split(Box<bpe::SplitBpe>),
    Foreign(Box<hf::HuggingFace>),
    SentencePiece(Box<sentencepiece::SentencePiece>),
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_size", &self.vocab_size()).field("hash", &self.hash()).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Opens a `tokenizer.json`, a SentencePiece `.model` (told apart by their contents), a GGUF file's tokenizer, or a folder that holds
    /// `tokenizer.json` or `tokenizer.model` (the first that is there).
    ///
    /// The files beside it (`tokenizer_config.json`, `special_tokens_map.json`, `added_tokens.json`) name BOS and EOS, and may add
    /// tokens, which get their ids as in transformers 5: the next that are free. Where they do not name BOS and EOS, these are the
    /// usual ones.
    ///
    /// # Errors
    /// [`Error::Io`] if nothing can be read, [`Error::Nothing`] for a folder without either file, [`Error::BadFile`] if the
    /// contents are damaged or not supported (SentencePiece `word` and `char` models, tiktoken's files).
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let mut path = path.as_ref().to_path_buf();
        if path.is_dir() {
            path = find_tokenizer([path.as_path()]).ok_or_else(|| Error::Nothing {
                what: "tokenizer.json or tokenizer.model".into(),
                path: path.clone(),
                hint: "give the file itself, or train one with `recua tokenizer train`".into(),
            })?;
        }
        Self::read(TokenizerFiles::read(&path)?, &path)
    }

    fn read(files: TokenizerFiles, path: &Path) -> Result<Self> {
        let beside = &Beside::of(&files, path)?;
        let (encoder, pieces, ids, mut bos, mut eos, hash) = match kind::tell(files.main(), path)? {
            Kind::Json(text) => {
                let (encoder, pieces, ids, state) = hf::load(text, beside, path)?;
                let find = |names: &[&str]| names.iter().find_map(|name| ids.get(*name).copied());
                let (bos, eos) = (find(&BOS_NAMES), find(&EOS_NAMES));
                (encoder, pieces, ids, bos, eos, xxh3_64(state.to_string().as_bytes()))
            }
            Kind::Model(bytes) => {
                let (encoder, pieces, bos, eos, hash) = sentencepiece::load(bytes, beside, path)?;
                let ids = pieces.ids();
                (Encoder::SentencePiece(Box::new(encoder)), pieces, ids, bos, eos, hash)
            }
        };
        for (name, id) in [("bos_token", &mut bos), ("eos_token", &mut eos)] {
            if let Some(named) = beside.name(name) {
                *id = named.and_then(|token| ids.get(token).copied());
            }
        }
        let prefix = match &encoder {
            Encoder::Foreign(hf) => hf.prefix.clone(),
            // Tokenizers that earlier versions trained have no `post_processor`; all their datasets have BOS.
            Encoder::Split(_) => bos.into_iter().collect(),
            Encoder::SentencePiece(_) => bos.into_iter().filter(|_| beside.add_bos != Some(false)).collect(),
        };
        let special = PrefixSet::new(pieces.list.iter().filter_map(|piece| match piece {
            Piece::Control(text) | Piece::Unknown(text) => Some(&**text),
            _ => None,
        }));
        let added = match &encoder {
            Encoder::SentencePiece(sp) => PrefixSet::new(sp.added.iter().map(String::as_str)),
            _ => PrefixSet::default(),
        };
        Ok(Self(Arc::new(Inner { encoder, pieces, ids, special, added, bos, eos, prefix, files, hash })))
    }

    /// From the bytes of a `tokenizer.json`; `path` only names it in errors, and no file beside it is read. Truncation, padding and
    /// dropout that the file asks for are left out.
    ///
    /// # Errors
    /// [`Error::BadFile`].
    pub fn from_json(bytes: &[u8], path: &Path) -> Result<Self> {
        Self::read(TokenizerFiles::of(bytes), path)
    }

    /// From the bytes of a SentencePiece `.model`; `path` only names it in errors, and no file beside it is read.
    ///
    /// # Errors
    /// [`Error::BadFile`].
    pub fn from_sentencepiece(bytes: &[u8], path: &Path) -> Result<Self> {
        Self::read(TokenizerFiles::of(bytes), path)
    }

    /// Trains a byte-pair encoding: `<unk> <s> </s>` (ids 0, 1, 2), 256 bytes, then the learned pieces: first characters, then
    /// merges. Every digit is a token of its own, characters outside the vocabulary become bytes, and nothing is normalised:
    /// decoding gives back every UTF-8 string as it was.
    ///
    /// The documents are read once, one by one, on all threads of the current rayon pool; the result depends on nothing but
    /// their contents (not on their order either). [`Tokenizer::vocab_size`] is smaller than asked if the text has less to
    /// learn.
    ///
    /// # Errors
    /// [`Error::BadValue`] for a vocabulary below 260, [`Error::Nothing`] for documents without text.
    pub fn train(docs: impl Iterator<Item = String> + Send, config: &TrainConfig) -> Result<Self> {
        train::train(docs, config)
    }

    /// The name that the tokenizer's file should have: `tokenizer.json`, or `tokenizer.model` for SentencePiece.
    pub fn file_name(&self) -> &'static str {
        match self.0.encoder {
            Encoder::SentencePiece(_) => "tokenizer.model",
            _ => "tokenizer.json",
        }
    }

    /// What kind it is, in words.
    pub fn kind(&self) -> &'static str {
        match &self.0.encoder {
            Encoder::Split(_) => "BPE, digits split, byte fallback",
            Encoder::Foreign(hf) => hf.kind(),
            Encoder::SentencePiece(sp) => sp.kind(),
        }
    }

    /// Saves the tokenizer as it came, byte for byte: SentencePiece as `.model`, all others as `tokenizer.json`, with the files beside
    /// it that name or add tokens. An existing folder gets a file with [`Tokenizer::file_name`]. Files appear whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::BadValue`] for a name that ends in `.json` or `.model` when it is the other kind.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let mut path = path.as_ref().to_path_buf();
        if path.is_dir() {
            path.push(self.file_name());
        }
        let own = Path::new(self.file_name()).extension();
        if path.extension() != own && path.extension().is_some_and(|e| e == "json" || e == "model") {
            let problem = format!("expected a {}, got {}", self.file_name(), path.display());
            return Err(Error::bad_value("tokenizer file", problem, "give the folder, or a name with the other ending"));
        }
        if let Some(folder) = path.parent().filter(|f| !f.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        }
        write_atomic(&path, self.0.files.main())?;
        for (name, bytes) in self.0.files.tokens() {
            write_atomic(&path.with_file_name(name), bytes)?;
        }
        Ok(())
    }

    /// The ids of `text`, without BOS and EOS. The text of a special token is text. (Added tokens that are not marked special, and
    /// user-defined symbols of SentencePiece, are always taken as themselves.)
    ///
    /// # Errors
    /// [`Error::BadValue`] for text that a foreign `tokenizer.json` has no tokens for, and no unknown token.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        self.encode_into(text, &mut ids)?;
        Ok(ids)
    }

    /// Like [`Tokenizer::encode`], but the text of a special token becomes its id. What stands between special tokens is
    /// encoded on its own (with SentencePiece's added space, where the model has one).
    ///
    /// # Errors
    /// Those of [`Tokenizer::encode`].
    pub fn encode_with_special(&self, text: &str) -> Result<Vec<u32>> {
        if let Encoder::Foreign(hf) = &self.0.encoder {
            return hf.encode(text, true);
        }
        let mut ids = Vec::new();
        self.encode_between(&[&self.0.special, &self.0.added], text, &mut ids);
        Ok(ids)
    }

    /// A training document: BOS + tokens + EOS, either as asked for and as far as the tokenizer has them.
    ///
    /// # Errors
    /// Those of [`Tokenizer::encode`].
    pub fn encode_document(&self, text: &str, bos: bool, eos: bool) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        ids.extend(self.0.bos.filter(|_| bos));
        self.encode_into(text, &mut ids)?;
        ids.extend(self.0.eos.filter(|_| eos));
        Ok(ids)
    }

    /// What the tokenizer's files put before every text that a model reads: the `post_processor` of a `tokenizer.json` (in most cases BOS
    /// or nothing; `add_bos_token` beside it counts as little as in transformers 5); BOS for tokenizers that [`Tokenizer::train`] made,
    /// and for SentencePiece unless a `tokenizer_config.json` says `"add_bos_token": false`.
    pub fn prefix(&self) -> &[u32] {
        &self.0.prefix
    }

    fn encode_into(&self, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        match &self.0.encoder {
            Encoder::Foreign(hf) => ids.extend(hf.encode(text, false)?),
            _ if self.0.added.is_empty() => self.encode_text(text, ids),
            _ => self.encode_between(&[&self.0.added], text, ids),
        }
        Ok(())
    }

    /// The longest text of these sets at each place becomes its token; what stands between is encoded on its own.
    fn encode_between(&self, sets: &[&PrefixSet], text: &str, ids: &mut Vec<u32>) {
        let (mut start, mut at) = (0, 0);
        while let Some(c) = text[at..].chars().next() {
            let found = sets.iter().filter_map(|set| set.longest(&text[at..])).max();
            match found.and_then(|len| Some((len, *self.0.ids.get(&text[at..at + len])?))) {
                Some((len, id)) => {
                    self.encode_text(&text[start..at], ids);
                    ids.push(id);
                    at += len;
                    start = at;
                }
                None => at += c.len_utf8(),
            }
        }
        self.encode_text(&text[start..], ids);
    }

    /// Those that are not foreign have ids for every text.
    fn encode_text(&self, text: &str, ids: &mut Vec<u32>) {
        match &self.0.encoder {
            Encoder::Split(split) => split.encode(text, ids),
            Encoder::SentencePiece(sp) => sp.encode(text, ids),
            Encoder::Foreign(_) => {}
        }
    }

    /// The text of `ids`, without special tokens (SentencePiece's unknown token is shown as its `unk_surface`). Bytes that form
    /// no UTF-8 become U+FFFD each.
    ///
    /// # Errors
    /// [`Error::BadValue`] for an id outside the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.decode_as(ids, false)
    }

    /// Like [`Tokenizer::decode`], with the texts of special tokens.
    ///
    /// # Errors
    /// [`Error::BadValue`] for an id outside the vocabulary.
    pub fn decode_with_special(&self, ids: &[u32]) -> Result<String> {
        self.decode_as(ids, true)
    }

    fn decode_as(&self, ids: &[u32], show_special: bool) -> Result<String> {
        let bad = |problem: String| Error::bad_value("token id", problem, "is this the tokenizer that the ids were made with?");
        let outside = |id: &u32| bad(format!("expected one of {} tokens, got {id}", self.vocab_size()));
        let pieces = &self.0.pieces;
        if let Encoder::Foreign(hf) = &self.0.encoder {
            let gap = |id: &&u32| matches!(pieces.list.get(**id as usize), None | Some(Piece::Gap));
            return ids.iter().find(gap).map_or_else(|| hf.decode(ids, show_special).map_err(bad), |id| Err(outside(id)));
        }
        let (mut state, mut out) = (State::new(show_special), String::new());
        for id in ids {
            if !state.push(pieces, *id, &mut out) {
                return Err(outside(id));
            }
        }
        state.finish(&mut out);
        Ok(out)
    }

    /// One more than the highest id.
    pub fn vocab_size(&self) -> usize {
        self.0.pieces.list.len()
    }

    /// Whether an id is a special token: invisible in a decoded text.
    pub fn is_special(&self, id: u32) -> bool {
        matches!(self.0.pieces.list.get(id as usize), Some(Piece::Control(_)))
    }

    /// The beginning-of-sequence token.
    pub fn bos_id(&self) -> Option<u32> {
        self.0.bos
    }

    /// The end-of-sequence token.
    pub fn eos_id(&self) -> Option<u32> {
        self.0.eos
    }

    /// The id of a token, special ones included, as it is spelled in the vocabulary.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.0.ids.get(token).copied()
    }

    /// The token of an id, as it is spelled in the vocabulary (`<0x0A>`, SentencePiece's U+2581).
    pub fn token_of(&self, id: u32) -> Option<String> {
        self.0.pieces.token(id)
    }

    /// xxh3 of what decides ids and texts: the vocabulary with its merges or scores, and the rules around it. The same after
    /// saving and loading; token shards carry it.
    pub fn hash(&self) -> u64 {
        self.0.hash
    }
}
