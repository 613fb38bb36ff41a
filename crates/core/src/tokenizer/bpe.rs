//! Byte-pair encoding: the merge loop that every BPE vocabulary shares, and the encoder of the tokenizers trained here.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

use tokenizers::utils::SysRegex;

/// No symbol: the end of the linked list, or a symbol without a vocabulary id.
pub(super) const NONE: u32 = u32::MAX;

/// A hash map with a short hash: the merge loop looks up a pair or a piece per character of text.
pub(super) type FastMap<K, V> = HashMap<K, V, BuildHasherDefault<FastHasher>>;

/// Multiply and rotate, eight bytes at a time; for tables built from a vocabulary, not from untrusted keys.
#[derive(Default)]
pub(super) struct FastHasher(u64);

impl FastHasher {
    fn mix(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

impl Hasher for FastHasher {
    fn write(&mut self, bytes: &[u8]) {
        let mut chunks = bytes.chunks_exact(8);
        for chunk in &mut chunks {
            self.mix(chunk.iter().rev().fold(0, |word, b| word << 8 | u64::from(*b)));
        }
        self.mix(chunks.remainder().iter().fold(bytes.len() as u64, |word, b| word << 8 | u64::from(*b)));
    }
    fn write_u8(&mut self, n: u8) {
        self.mix(n.into());
    }
    fn write_u32(&mut self, n: u32) {
        self.mix(n.into());
    }
    fn finish(&self) -> u64 {
        // The table takes its buckets from the low bits and its tags from the high ones; multiplying fills only the latter.
        self.0 ^ (self.0 >> 32)
    }
}

/// A stretch of the text that is being merged; symbols form a doubly linked list in text order.
#[derive(Debug, Clone, Copy)]
pub(super) struct Symbol {
    /// Where it begins in the text, in bytes.
    pub(super) start: usize,
    /// Its length in bytes; 0 once it has been merged into its left neighbour.
    pub(super) len: u32,
    /// Its vocabulary id, or [`NONE`].
    pub(super) id: u32,
    /// Never merged (a user-defined symbol of SentencePiece).
    pub(super) frozen: bool,
    prev: u32,
    next: u32,
}

/// The merge loop's state, kept between calls so that short pieces allocate nothing.
#[derive(Default)]
pub(super) struct Merger {
    symbols: Vec<Symbol>,
    heap: BinaryHeap<Reverse<(u32, u32, u32, u32)>>,
}

impl Merger {
    /// Forgets the previous text.
    pub(super) fn clear(&mut self) {
        self.symbols.clear();
        self.heap.clear();
    }

    /// Appends the next symbol of the text.
    pub(super) fn push(&mut self, start: usize, len: usize, id: u32, frozen: bool) {
        let at = self.symbols.len() as u32;
        if let Some(last) = self.symbols.last_mut() {
            last.next = at;
        }
        let prev = at.checked_sub(1).unwrap_or(NONE);
        self.symbols.push(Symbol { start, len: len as u32, id, frozen, prev, next: NONE });
    }

    /// Merges neighbours, lowest rank first and leftmost among equals, until `lookup` knows no pair any more.
    ///
    /// `lookup(left, right, is_new)` gives the rank and the id of the merged symbol; `is_new` is false when a pair that was
    /// seen before is looked at again. O(n log n) for n symbols.
    pub(super) fn run(&mut self, mut lookup: impl FnMut(&Symbol, &Symbol, bool) -> Option<(u32, u32)>) {
        let Self { symbols, heap } = self;
        for at in 1..symbols.len() {
            if let Some((rank, id)) = lookup(&symbols[at - 1], &symbols[at], true) {
                heap.push(Reverse((rank, at as u32 - 1, at as u32, id)));
            }
        }
        while let Some(Reverse((_, left, right, id))) = heap.pop() {
            let (l, r) = (symbols[left as usize], symbols[right as usize]);
            // Either side may have been merged with its other neighbour since the pair was seen.
            if l.len == 0 || r.len == 0 || l.next != right || lookup(&l, &r, false).is_none_or(|(_, now)| now != id) {
                continue;
            }
            symbols[left as usize] = Symbol { len: l.len + r.len, id, next: r.next, ..l };
            symbols[right as usize].len = 0;
            if r.next != NONE {
                symbols[r.next as usize].prev = left;
            }
            for (a, b) in [(l.prev, left), (left, r.next)] {
                if a != NONE
                    && b != NONE
                    && let Some((rank, id)) = lookup(&symbols[a as usize], &symbols[b as usize], true)
                {
                    heap.push(Reverse((rank, a, b, id)));
                }
            }
        }
    }

    /// The symbols that are left, in text order.
    pub(super) fn symbols(&self) -> impl Iterator<Item = &Symbol> {
        self.symbols.iter().filter(|s| s.len > 0)
    }
}

/// The encoder of the tokenizers that [`super::Tokenizer::train`] makes: a pattern splits the text, merges act within a piece,
/// and a character outside the vocabulary becomes its UTF-8 bytes. Works on the text as it is, so nothing is ever lost.
pub(super) struct SplitBpe {
    pattern: SysRegex,
    /// Whole pieces that are one token: most words of a text end here.
    whole: FastMap<Box<str>, u32>,
    chars: FastMap<char, u32>,
    bytes: Vec<u32>,
    /// (left, right) -> (rank, merged).
    merges: FastMap<(u32, u32), (u32, u32)>,
}

impl SplitBpe {
    /// From a vocabulary in raw text. `bytes` are the ids of the 256 byte tokens.
    pub(super) fn new<'a>(
        pattern: SysRegex,
        vocab: impl Iterator<Item = (&'a str, u32)>,
        bytes: Vec<u32>,
        merges: FastMap<(u32, u32), (u32, u32)>,
    ) -> Self {
        let mut this = Self { pattern, whole: FastMap::default(), chars: FastMap::default(), bytes, merges };
        let vocab: Vec<_> = vocab.collect();
        for (piece, id) in &vocab {
            let mut chars = piece.chars();
            if let (Some(c), None) = (chars.next(), chars.next()) {
                this.chars.insert(c, *id);
            }
        }
        // Only pieces that the merges do make of their own text: the shortcut must not change a single id.
        let (mut merger, mut ids) = (Merger::default(), Vec::new());
        for (piece, id) in &vocab {
            ids.clear();
            this.merge_piece(piece, &mut merger, &mut ids);
            if ids == [*id] {
                this.whole.insert((*piece).into(), *id);
            }
        }
        this
    }

    /// Appends the ids of `text`.
    pub(super) fn encode(&self, text: &str, ids: &mut Vec<u32>) {
        let mut merger = Merger::default();
        let mut end = 0;
        for (from, to) in self.pattern.find_iter(text) {
            // The pattern matches everything; a gap would be a piece of its own, as in `tokenizers`.
            self.piece(&text[end..from], &mut merger, ids);
            self.piece(&text[from..to], &mut merger, ids);
            end = to;
        }
        self.piece(&text[end..], &mut merger, ids);
    }

    fn piece(&self, piece: &str, merger: &mut Merger, ids: &mut Vec<u32>) {
        if piece.is_empty() {
            return;
        }
        match self.whole.get(piece) {
            Some(id) => ids.push(*id),
            None => self.merge_piece(piece, merger, ids),
        }
    }

    fn merge_piece(&self, piece: &str, merger: &mut Merger, ids: &mut Vec<u32>) {
        merger.clear();
        for (at, c) in piece.char_indices() {
            match self.chars.get(&c) {
                Some(id) => merger.push(at, c.len_utf8(), *id, false),
                None => {
                    for (i, byte) in piece.as_bytes()[at..at + c.len_utf8()].iter().enumerate() {
                        merger.push(at + i, 1, self.bytes[usize::from(*byte)], false);
                    }
                }
            }
        }
        merger.run(|l, r, _| self.merges.get(&(l.id, r.id)).copied());
        ids.extend(merger.symbols().map(|s| s.id));
    }
}
