//! SentencePiece's `.model` file (a protobuf message, `ModelProto`), written.

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

/// A protobuf message on its way to bytes.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn number(&mut self, field: u64, value: u64) {
        self.varint(field << 3);
        self.varint(value);
    }

    fn float(&mut self, field: u64, value: f32) {
        self.varint(field << 3 | 5);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.varint(field << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend(value);
    }
}

/// A unigram model whose first three pieces are `<unk>`, `<s>` and `</s>`. Texts are not normalised, apart from their spaces.
pub(super) fn model(pieces: &[Piece], coverage: f32) -> Vec<u8> {
    let mut out = Message::default();
    for piece in pieces {
        let mut entry = Message::default();
        entry.bytes(1, piece.text.as_bytes());
        entry.float(2, piece.score);
        entry.number(3, piece.kind);
        out.bytes(1, &entry.0);
    }
    let mut trainer = Message::default();
    trainer.number(3, 1); // model_type: unigram
    trainer.number(4, pieces.len() as u64); // vocab_size
    trainer.float(10, coverage); // character_coverage
    for (field, id) in [(40, 0), (41, 1), (42, 2), (43, u64::MAX)] {
        trainer.number(field, id); // ids of <unk>, <s>, </s>; -1: no <pad>
    }
    out.bytes(2, &trainer.0);
    let mut normalizer = Message::default();
    normalizer.bytes(1, b"identity");
    for field in 3..=5 {
        normalizer.number(field, 1); // add_dummy_prefix, remove_extra_whitespaces, escape_whitespaces
    }
    out.bytes(3, &normalizer.0);
    out.0
}
