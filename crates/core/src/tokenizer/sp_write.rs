//! SentencePiece's `.model` file (a protobuf message, `ModelProto`), written.

use super::sp_model::{Algorithm, Kind, Model};
use crate::protobuf::Message;

/// `ModelProto.SentencePiece.Type`.
pub(super) const NORMAL: u64 = 1;
pub(super) const UNKNOWN: u64 = 2;
pub(super) const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;
const UNUSED: u64 = 5;
const BYTE: u64 = 6;

/// A model with what [`Model::parse`] reads of it.
pub(super) fn write(model: &Model) -> Vec<u8> {
    let mut out = Message::default();
    for entry in &model.entries {
        out.message(1, |piece| {
            piece.bytes(1, entry.text.as_bytes());
            piece.float(2, entry.score);
            let kind = match entry.kind {
                Kind::Normal | Kind::Nul => NORMAL,
                Kind::Unknown => UNKNOWN,
                Kind::Control => CONTROL,
                Kind::UserDefined => USER_DEFINED,
                Kind::Unused => UNUSED,
                Kind::Byte => BYTE,
            };
            piece.varint(3, kind);
        });
    }
    let place = |found: &dyn Fn(&super::sp_model::Entry) -> bool| {
        model.entries.iter().position(found).map_or(u64::MAX, |id| id as u64) // -1: none
    };
    out.message(2, |trainer| {
        trainer.varint(3, if model.algorithm == Algorithm::Unigram { 1 } else { 2 }); // model_type
        trainer.varint(4, model.entries.len() as u64); // vocab_size
        trainer.varint(24, model.space_as_suffix.into()); // treat_whitespace_as_suffix
        trainer.varint(35, model.byte_fallback.into());
        trainer.varint(40, place(&|entry| entry.kind == Kind::Unknown));
        trainer.varint(41, place(&|entry| entry.kind == Kind::Control && entry.text == model.bos_piece));
        trainer.varint(42, place(&|entry| entry.kind == Kind::Control && entry.text == model.eos_piece));
        trainer.varint(43, u64::MAX); // pad_id
        trainer.bytes(44, model.unk_surface.as_bytes());
        trainer.bytes(46, model.bos_piece.as_bytes());
        trainer.bytes(47, model.eos_piece.as_bytes());
    });
    out.message(3, |normalizer| {
        normalizer.bytes(1, if model.charsmap.is_empty() { b"identity" } else { b"user_defined" });
        normalizer.bytes(2, &model.charsmap);
        normalizer.varint(3, model.add_dummy_prefix.into());
        normalizer.varint(4, model.remove_extra_whitespaces.into());
        normalizer.varint(5, model.escape_whitespaces.into());
    });
    out.into_bytes()
}

/// An entry of the vocabulary; its id is its place.
#[cfg(feature = "unigram")]
pub(super) struct Piece {
    pub(super) text: String,
    pub(super) score: f32,
    pub(super) kind: u64,
}

#[cfg(feature = "unigram")]
/// A unigram model whose first three pieces are `<unk>`, `<s>` and `</s>`. Texts are not normalised, apart from their spaces.
pub(super) fn model(pieces: &[Piece], coverage: f32) -> Vec<u8> {
    let mut out = Message::default();
    for piece in pieces {
        out.message(1, |entry| {
            entry.bytes(1, piece.text.as_bytes());
            entry.float(2, piece.score);
            entry.varint(3, piece.kind);
        });
    }
    out.message(2, |trainer| {
        trainer.varint(3, 1); // model_type: unigram
        trainer.varint(4, pieces.len() as u64); // vocab_size
        trainer.float(10, coverage); // character_coverage
        for (field, id) in [(40, 0), (41, 1), (42, 2), (43, u64::MAX)] {
            trainer.varint(field, id); // ids of <unk>, <s>, </s>; -1: no <pad>
        }
    });
    out.message(3, |normalizer| {
        normalizer.bytes(1, b"identity");
        for field in 3..=5 {
            normalizer.varint(field, 1); // add_dummy_prefix, remove_extra_whitespaces, escape_whitespaces
        }
    });
    out.into_bytes()
}
