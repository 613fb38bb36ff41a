//! SentencePiece's `.model` file (a protobuf message, `ModelProto`), written.

use crate::protobuf::Message;

/// `ModelProto.SentencePiece.Type`.
pub(super) const NORMAL: u64 = 1;
pub(super) const UNKNOWN: u64 = 2;
pub(super) const CONTROL: u64 = 3;

/// An entry of the vocabulary; its id is its place.
pub(super) struct Piece {
    pub(super) text: String,
    pub(super) score: f32,
    pub(super) kind: u64,
}

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
