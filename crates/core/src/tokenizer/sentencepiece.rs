//! SentencePiece models, with the ids and texts that the original gives: BPE (merges by score) and unigram (Viterbi).

use std::path::Path;

use xxhash_rust::xxh3::xxh3_64;

use super::beside::Beside;
use super::bpe::{FastMap, Merger, NONE};
use super::decode::{Piece, Pieces, SPACE, Spaces, byte_of};
use super::sp_model::{Algorithm, Entry, Kind, Model};
use super::sp_normalize::{CharsMap, Normalizer, PrefixSet};
use crate::error::{Error, Result};

/// What the unknown token costs more than the worst piece, in a unigram model.
const UNKNOWN_PENALTY: f32 = 10.0;

/// What a user-defined symbol gains per byte after the first, in a unigram model (measured on sentencepiece 0.2.3, whose ids
/// are the reference; earlier versions gave each symbol -0.1).
const USER_DEFINED_BONUS: f32 = 0.1;

/// An encoder for one `.model` file.
pub(super) struct SentencePiece {
    normalizer: Normalizer,
    algorithm: Algorithm,
    kinds: Vec<Kind>,
    scores: Vec<f32>,
    /// BPE: the place of a piece's score among all scores, best first.
    ranks: Vec<u32>,
    /// Pieces that text can become (normal, user-defined and unused ones).
    pieces: FastMap<Box<str>, u32>,
    /// Special pieces, which win over equal text that nothing was merged into.
    reserved: FastMap<Box<str>, u32>,
    trie: Trie,
    unknown: u32,
    /// The ids of the 256 byte pieces, with byte fallback.
    bytes: Option<Vec<u32>>,
    longest: usize,
    has_unused: bool,
    /// No piece goes on over a space, so that words can be encoded one by one.
    cut_at_spaces: bool,
    /// Tokens that files beside the model add and that every text is searched for.
    pub(super) added: Vec<String>,
    min_score: f32,
}

/// The model's encoder, its table of pieces, the ids of `<s>` and `</s>` if the model has them, and the hash.
pub(super) type Loaded = (SentencePiece, Pieces, Option<u32>, Option<u32>, u64);

/// Reads the bytes of a `.model` file, to which the files beside it may add tokens; `path` is for messages.
pub(super) fn load(file: &[u8], beside: &Beside, path: &Path) -> Result<Loaded> {
    let hint = "get the file again, or re-export it with sentencepiece";
    let bad = |problem: String| Error::bad_file("SentencePiece model", path, problem, hint);
    let model = Model::parse(file, path)?;
    let (mut pieces, mut reserved) = (FastMap::<Box<str>, u32>::default(), FastMap::<Box<str>, u32>::default());
    let mut bytes = vec![NONE; 256];
    for (id, entry) in (0..).zip(&model.entries).filter(|(_, e)| e.kind != Kind::Nul) {
        let plain = matches!(entry.kind, Kind::Normal | Kind::UserDefined | Kind::Unused);
        if (if plain { &mut pieces } else { &mut reserved }).insert(entry.text.as_str().into(), id).is_some() {
            return Err(bad(format!("the piece `{}` is there twice", entry.text)));
        }
        if let (Kind::Byte, Some(byte)) = (entry.kind, byte_of(&entry.text)) {
            bytes[usize::from(byte)] = id;
        }
    }
    if model.byte_fallback && bytes.contains(&NONE) {
        return Err(bad("byte_fallback without the 256 byte pieces".into()));
    }
    let of_kind = |kind| (0u32..).zip(&model.entries).filter(move |(_, e)| e.kind == kind);
    let unknown = of_kind(Kind::Unknown).next().map_or(0, |(id, _)| id);
    let control = |text: &str| of_kind(Kind::Control).find(|(_, e)| e.text == text).map(|(id, _)| id);
    let (bos, eos) = (control(&model.bos_piece), control(&model.eos_piece));

    let mut by_score: Vec<f32> = model.entries.iter().map(|e| e.score).collect();
    by_score.sort_unstable_by(|a, b| b.total_cmp(a));
    by_score.dedup(); // by ==, so that 0.0 and -0.0 are one
    let rank = |score: f32| by_score.partition_point(|s| *s > score) as u32;

    let over_space = |text: &str| text.trim_start_matches(SPACE).contains(SPACE);
    let normal = || of_kind(Kind::Normal).map(|(_, e)| e.score);
    let has_unused = of_kind(Kind::Unused).next().is_some();
    let charsmap = (!model.charsmap.is_empty()).then(|| CharsMap::parse(&model.charsmap)).transpose().map_err(bad)?;
    let mut encoder = SentencePiece {
        normalizer: Normalizer {
            charsmap,
            add_dummy_prefix: model.add_dummy_prefix,
            remove_extra_whitespaces: model.remove_extra_whitespaces,
            escape_whitespaces: model.escape_whitespaces,
            space_as_suffix: model.space_as_suffix,
            user_defined: PrefixSet::new(of_kind(Kind::UserDefined).map(|(_, e)| e.text.as_str())),
        },
        algorithm: model.algorithm,
        kinds: model.entries.iter().map(|e| e.kind).collect(),
        scores: model.entries.iter().map(|e| e.score).collect(),
        ranks: model.entries.iter().map(|e| rank(e.score)).collect(),
        trie: if model.algorithm == Algorithm::Unigram { Trie::new(&pieces) } else { Trie::default() },
        longest: pieces.keys().map(|p| p.len()).max().unwrap_or(0),
        // Resegmenting unused pieces remembers how they came about anywhere in the text.
        cut_at_spaces: !has_unused && !pieces.keys().any(|p| over_space(p)),
        pieces,
        reserved,
        unknown,
        bytes: model.byte_fallback.then_some(bytes),
        has_unused,
        added: Vec::new(),
        min_score: normal().fold(f32::MAX, f32::min),
    };
    let mut list: Vec<Piece> = model.entries.iter().map(piece).collect();
    let mut added = Vec::new();
    for token in beside.missing(&[]) {
        let known = model.entries.iter().any(|e| e.text == token.content) || added.contains(&token.content);
        if !known && !token.content.is_empty() {
            let text = token.content.as_str().into();
            list.push(if token.special { Piece::Control(text) } else { Piece::Text(text) });
            if !token.special {
                encoder.added.push(token.content.clone());
            }
            added.push(token.content);
        }
    }
    let spaces = Spaces { dummy_prefix: model.add_dummy_prefix, remove_extra: model.remove_extra_whitespaces };
    let table = Pieces { list, spaces: Some(spaces), unknown: model.unk_surface.as_str().into() };
    beside.warn_of_other_ids(path, |text| table.ids().get(text).copied());
    let hash = if added.is_empty() { xxh3_64(file) } else { xxh3_64(&[file, added.join("\0").as_bytes()].concat()) };
    Ok((encoder, table, bos, eos, hash))
}

fn piece(entry: &Entry) -> Piece {
    let text = || entry.text.as_str().into();
    match entry.kind {
        Kind::Unknown => Piece::Unknown(text()),
        Kind::Control => Piece::Control(text()),
        Kind::Byte => byte_of(&entry.text).map_or(Piece::Gap, Piece::Byte),
        _ => Piece::Text(text()),
    }
}

impl SentencePiece {
    pub(super) fn kind(&self) -> &'static str {
        match self.algorithm {
            Algorithm::Unigram => "SentencePiece, unigram",
            _ => "SentencePiece, BPE",
        }
    }

    /// Appends the ids of `text`.
    pub(super) fn encode(&self, text: &str, ids: &mut Vec<u32>) {
        let text = self.normalizer.normalize(text);
        let mut out = Output { model: self, ids, after_unknown: false };
        match self.algorithm {
            Algorithm::Unigram => self.viterbi(&text, &mut out),
            Algorithm::Bpe if self.cut_at_spaces => {
                let mut merger = Merger::default();
                let (mut start, mut in_word) = (0, false);
                for (at, c) in text.char_indices() {
                    if c == SPACE && in_word {
                        self.merge(&text[start..at], &mut merger, &mut out);
                        start = at;
                    }
                    in_word = c != SPACE;
                }
                self.merge(&text[start..], &mut merger, &mut out);
            }
            Algorithm::Bpe => self.merge(&text, &mut Merger::default(), &mut out),
        }
    }

    fn merge(&self, text: &str, merger: &mut Merger, out: &mut Output) {
        merger.clear();
        let mut at = 0;
        while let Some(c) = text[at..].chars().next() {
            let user = self.normalizer.user_defined.longest(&text[at..]);
            let len = user.unwrap_or(c.len_utf8());
            merger.push(at, len, NONE, user.is_some());
            at += len;
        }
        // Where unused pieces, which may be steps of a merge but not its result, were put together: they are taken apart there.
        let mut seams: FastMap<&str, usize> = FastMap::default();
        merger.run(|l, r, is_new| {
            let len = (l.len + r.len) as usize;
            if l.frozen || r.frozen || len > self.longest {
                return None;
            }
            let piece = &text[l.start..l.start + len];
            let id = *self.pieces.get(piece)?;
            if is_new && self.has_unused && self.kinds[id as usize] == Kind::Unused {
                seams.insert(piece, l.len as usize);
            }
            Some((self.ranks[id as usize], id))
        });
        for symbol in merger.symbols() {
            let mut stack = vec![&text[symbol.start..symbol.start + symbol.len as usize]];
            while let Some(piece) = stack.pop() {
                let id = self.reserved.get(piece).or_else(|| self.pieces.get(piece)).copied().unwrap_or(self.unknown);
                match seams.get(piece) {
                    Some(seam) if self.kinds[id as usize] == Kind::Unused => {
                        stack.extend([&piece[*seam..], &piece[..*seam]]);
                    }
                    _ => out.push(piece, id),
                }
            }
        }
    }

    /// The best path through all pieces, in the original's order and single precision: which of two equal paths wins depends on
    /// how their sums are rounded.
    fn viterbi(&self, text: &str, out: &mut Output) {
        #[derive(Clone)]
        struct Best {
            score: f32,
            start: usize,
            id: u32,
        }
        const UNREACHED: usize = usize::MAX;
        let unknown_score = self.min_score - UNKNOWN_PENALTY;
        let mut best = vec![Best { score: 0.0, start: UNREACHED, id: NONE }; text.len() + 1];
        for (start, c) in text.char_indices() {
            let so_far = best[start].score;
            let mut has_single = false;
            for (len, id) in self.trie.prefixes(&text.as_bytes()[start..]) {
                let score = match self.kinds[id as usize] {
                    Kind::Unused => continue,
                    Kind::UserDefined => len as f32 * USER_DEFINED_BONUS - USER_DEFINED_BONUS,
                    _ => self.scores[id as usize],
                };
                let score = score + so_far;
                let end = &mut best[start + len];
                if end.start == UNREACHED || score > end.score {
                    *end = Best { score, start, id };
                }
                has_single |= len == c.len_utf8();
            }
            if !has_single {
                let score = unknown_score + so_far;
                let end = &mut best[start + c.len_utf8()];
                if end.start == UNREACHED || score > end.score {
                    *end = Best { score, start, id: self.unknown };
                }
            }
        }
        let mut path = Vec::new();
        let mut end = text.len();
        while end > 0 {
            let Best { start, id, .. } = best[end];
            path.push((start, end, id));
            end = start;
        }
        for (start, end, id) in path.into_iter().rev() {
            out.push(&text[start..end], id);
        }
    }
}

/// Ids as they leave the encoder: unknown pieces become bytes, or one unknown token for a run of them.
struct Output<'a> {
    model: &'a SentencePiece,
    ids: &'a mut Vec<u32>,
    after_unknown: bool,
}

impl Output<'_> {
    fn push(&mut self, piece: &str, id: u32) {
        let unknown = id == self.model.unknown;
        match &self.model.bytes {
            Some(bytes) if unknown => self.ids.extend(piece.bytes().map(|b| bytes[usize::from(b)])),
            _ if unknown && self.after_unknown => {}
            _ => self.ids.push(id),
        }
        self.after_unknown = unknown;
    }
}

/// All pieces by their bytes.
#[derive(Default)]
struct Trie {
    nodes: Vec<Node>,
}

#[derive(Default)]
struct Node {
    /// The piece that ends here.
    id: Option<u32>,
    /// By byte, sorted.
    children: Vec<(u8, u32)>,
}

impl Trie {
    fn new(pieces: &FastMap<Box<str>, u32>) -> Self {
        let mut nodes = vec![Node::default()];
        for (piece, id) in pieces {
            let mut at = 0;
            for byte in piece.bytes() {
                let fresh = nodes.len() as u32;
                let children = &mut nodes[at].children;
                at = match children.binary_search_by_key(&byte, |c| c.0) {
                    Ok(i) => children[i].1 as usize,
                    Err(i) => {
                        children.insert(i, (byte, fresh));
                        nodes.push(Node::default());
                        fresh as usize
                    }
                };
            }
            nodes[at].id = Some(*id);
        }
        Self { nodes }
    }

    /// Every piece that `text` begins with, shortest first: its length in bytes and its id.
    fn prefixes(&self, text: &[u8]) -> impl Iterator<Item = (usize, u32)> {
        let walk = text.iter().scan(0, |at, byte| {
            let children = &self.nodes.get(*at)?.children;
            let i = children.binary_search_by_key(byte, |c| c.0).ok()?;
            *at = children[i].1 as usize;
            Some(*at)
        });
        (1..).zip(walk).filter_map(|(len, at)| Some((len, self.nodes[at].id?)))
    }
}
