//! SentencePiece's `.model` file: the few protobuf fields that encoding and decoding need.

use std::path::Path;

use crate::error::{Error, Result};
use crate::protobuf::{Fields, Value};

/// How the vocabulary cuts a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Algorithm {
    Unigram,
    Bpe,
}

/// What a piece is for (`ModelProto.SentencePiece.Type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
    /// A piece of the one character U+0000, beside the bytes: no text becomes it, but it becomes text.
    Nul,
}

/// One vocabulary entry; its id is its place.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) text: String,
    pub(super) score: f32,
    pub(super) kind: Kind,
}

/// The contents of a `.model` file.
#[derive(Debug, Clone)]
pub(super) struct Model {
    pub(super) entries: Vec<Entry>,
    pub(super) algorithm: Algorithm,
    pub(super) byte_fallback: bool,
    pub(super) space_as_suffix: bool,
    pub(super) unk_surface: String,
    pub(super) bos_piece: String,
    pub(super) eos_piece: String,
    pub(super) charsmap: Vec<u8>,
    pub(super) add_dummy_prefix: bool,
    pub(super) remove_extra_whitespaces: bool,
    pub(super) escape_whitespaces: bool,
}

fn text(bytes: &[u8]) -> Result<String, String> {
    String::from_utf8(bytes.to_vec()).map_err(|e| format!("a string that is not UTF-8 ({e})"))
}

impl Model {
    /// Reads and checks the bytes of a `.model` file; `path` is for the message.
    pub(super) fn parse(bytes: &[u8], path: &Path) -> Result<Self> {
        let hint = "get the file again, or re-export it with sentencepiece";
        let bad = |problem: String| Error::bad_file("SentencePiece model", path, problem, hint);
        let mut model = Self::read(bytes).map_err(|e| bad(format!("not this kind of protobuf: {e}")))?;
        for entry in model.entries.iter_mut().filter(|e| e.text == "\0" && model.byte_fallback) {
            entry.kind = Kind::Nul;
        }
        model.check().map_err(bad)?;
        Ok(model)
    }

    fn read(bytes: &[u8]) -> Result<Self, String> {
        let mut model = Self {
            entries: Vec::new(),
            algorithm: Algorithm::Unigram,
            byte_fallback: false,
            space_as_suffix: false,
            unk_surface: " \u{2047} ".into(),
            bos_piece: "<s>".into(),
            eos_piece: "</s>".into(),
            charsmap: Vec::new(),
            add_dummy_prefix: true,
            remove_extra_whitespaces: true,
            escape_whitespaces: true,
        };
        let mut fields = Fields(bytes);
        while let Some((field, value)) = fields.next()? {
            match (field, value) {
                (1, Value::Bytes(entry)) => model.entries.push(Self::entry(entry)?),
                (2, Value::Bytes(spec)) => model.trainer_spec(spec)?,
                (3, Value::Bytes(spec)) => model.normalizer_spec(spec)?,
                (5, Value::Bytes(spec)) => {
                    let mut fields = Fields(spec);
                    while let Some((field, value)) = fields.next()? {
                        if matches!((field, value), (2, Value::Bytes(map)) if !map.is_empty()) {
                            return Err("a denormalizer, which is not supported".into());
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(model)
    }

    fn entry(bytes: &[u8]) -> Result<Entry, String> {
        let mut entry = Entry { text: String::new(), score: 0.0, kind: Kind::Normal };
        let mut fields = Fields(bytes);
        while let Some((field, value)) = fields.next()? {
            match (field, value) {
                (1, Value::Bytes(bytes)) => entry.text = text(bytes)?,
                (2, Value::Fixed32(bits)) => entry.score = f32::from_le_bytes(bits),
                (3, Value::Varint(kind)) => {
                    entry.kind = match kind {
                        1 => Kind::Normal,
                        2 => Kind::Unknown,
                        3 => Kind::Control,
                        4 => Kind::UserDefined,
                        5 => Kind::Unused,
                        6 => Kind::Byte,
                        _ => return Err(format!("piece type {kind}")),
                    }
                }
                _ => {}
            }
        }
        Ok(entry)
    }

    fn trainer_spec(&mut self, bytes: &[u8]) -> Result<(), String> {
        let mut fields = Fields(bytes);
        while let Some((field, value)) = fields.next()? {
            match (field, value) {
                (3, Value::Varint(kind)) => {
                    self.algorithm = match kind {
                        1 => Algorithm::Unigram,
                        2 => Algorithm::Bpe,
                        3 => return Err("model type `word`; only `bpe` and `unigram` are supported".into()),
                        4 => return Err("model type `char`; only `bpe` and `unigram` are supported".into()),
                        _ => return Err(format!("model type {kind}")),
                    }
                }
                (24, Value::Varint(flag)) => self.space_as_suffix = flag != 0,
                (35, Value::Varint(flag)) => self.byte_fallback = flag != 0,
                (44, Value::Bytes(bytes)) => self.unk_surface = text(bytes)?,
                (46, Value::Bytes(bytes)) if !bytes.is_empty() => self.bos_piece = text(bytes)?,
                (47, Value::Bytes(bytes)) if !bytes.is_empty() => self.eos_piece = text(bytes)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn normalizer_spec(&mut self, bytes: &[u8]) -> Result<(), String> {
        let mut fields = Fields(bytes);
        while let Some((field, value)) = fields.next()? {
            match (field, value) {
                (2, Value::Bytes(map)) => self.charsmap = map.to_vec(),
                (3, Value::Varint(flag)) => self.add_dummy_prefix = flag != 0,
                (4, Value::Varint(flag)) => self.remove_extra_whitespaces = flag != 0,
                (5, Value::Varint(flag)) => self.escape_whitespaces = flag != 0,
                _ => {}
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<(), String> {
        if self.entries.is_empty() {
            return Err("no pieces".into());
        }
        if self.entries.len() > i32::MAX as usize {
            return Err(format!("{} pieces", self.entries.len()));
        }
        for (id, entry) in self.entries.iter().enumerate() {
            let Entry { text, score, kind } = entry;
            if text.is_empty() || (text.contains('\0') && *kind != Kind::Nul) || text.len() >= 8000 {
                return Err(format!("piece {id} is empty, has a NUL or is too long"));
            }
            if !score.is_finite() {
                return Err(format!("piece {id} has the score {score}"));
            }
            if *kind == Kind::Byte && (!self.byte_fallback || super::decode::byte_of(text).is_none()) {
                return Err(format!("piece {id}, `{text}`, is marked as a byte but is none, or byte_fallback is off"));
            }
        }
        let unknown = self.entries.iter().filter(|e| e.kind == Kind::Unknown).count();
        if unknown != 1 {
            return Err(format!("{unknown} unknown tokens; one is needed"));
        }
        Ok(())
    }
}
