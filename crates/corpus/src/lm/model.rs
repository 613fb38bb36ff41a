//! Scoring: KenLM's walk from the last word to the left, whatever the layout.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::arpa::LoadOptions;
use super::binary::{ANY_VERSION, Bytes, Header, Kind};
use super::probing::{Layout, Probing};
use super::trie::{Trie, TrieLayout};
use super::{MAX_ORDER, arpa, build};
use crate::error::{Error, Result};

/// Models that do not fit into the caches are read ahead of the scoring.
const PREFETCH_FROM: usize = 1 << 20;

/// The id of words that the model does not know.
const UNKNOWN: u32 = 0;

/// What a line's score is made of.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LmScore {
    /// log10 of the probability of all words together: a sum in single precision, which is [`Model::score`]'s.
    pub score: f64,
    /// One for each word, and one for `</s>` if that was asked for.
    pub words: Vec<WordScore>,
}

/// A word's score after the words before it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct WordScore {
    /// log10 of its probability, back-offs included; the model's single precision, as `f64` so that it is written out in full.
    pub log10: f64,
    /// Words of the longest n-gram of the model that ends in it.
    pub ngram_length: usize,
    /// The model does not know the word.
    pub oov: bool,
}

/// An n-gram as a layout finds it.
pub(super) struct Gram<N> {
    pub(super) log10: f32,
    pub(super) backoff: f32,
    /// What the n-gram one word longer to the left is found from.
    pub(super) node: N,
    /// There may be such a longer n-gram.
    pub(super) extends_left: bool,
}

/// A layout, as far as scoring is concerned. Every answer of a damaged file is a wrong one, never a panic.
pub(super) trait Search: Copy {
    type Node: Copy;

    /// A word's id.
    fn index(&self, word: &[u8]) -> u32;

    fn unigram(&self, word: u32) -> Gram<Self::Node>;

    /// The n-gram of `i + 2` words: `word` before those of `node`.
    fn middle(&self, i: usize, word: u32, node: Self::Node) -> Option<Gram<Self::Node>>;

    /// The same of the highest order, which has a probability only.
    fn longest(&self, word: u32, node: Self::Node) -> Option<f32>;

    /// Fetches what scoring the last of `words` will read.
    fn prefetch(&self, _words: &[u32]) {}
}

/// An n-gram model. Reading is all that it does: any number of threads can share it.
pub struct Model {
    bytes: Bytes,
    header: Header,
    layout: AnyLayout,
    begin: u32,
    end: u32,
}

enum AnyLayout {
    Probing(Layout),
    Trie(TrieLayout),
}

/// Runs an expression on the layout that a model has.
macro_rules! with_search {
    ($model:expr, $search:ident => $body:expr) => {
        match &$model.layout {
            AnyLayout::Probing(layout) => {
                let $search = Probing { data: &$model.bytes, layout };
                $body
            }
            AnyLayout::Trie(layout) => {
                let $search = Trie { data: &$model.bytes, layout };
                $body
            }
        }
    };
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model").field("counts", &self.header.counts).field("kind", &self.header.kind).finish_non_exhaustive()
    }
}

impl Model {
    /// Opens an ARPA file (plain or gzip) or a KenLM binary file of any of its six layouts, told apart by their contents. Binary
    /// files are mapped, not read: opening takes no time, and processes share the memory. The file must not change while the
    /// model lives.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::BadFile`] for a file that is neither, is cut short or contradicts itself.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(path, &LoadOptions::default())
    }

    /// Like [`Model::open`], with a say in what an ARPA file may lack.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn open_with(path: impl AsRef<Path>, options: &LoadOptions) -> Result<Self> {
        let path = path.as_ref();
        let mut file = File::open(path).map_err(Error::io("read", path))?;
        let mut begin = [0; ANY_VERSION.len()];
        let mut got = 0;
        while got < begin.len() {
            match file.read(&mut begin[got..]).map_err(Error::io("read", path))? {
                0 => break,
                n => got += n,
            }
        }
        if begin[..got] != *ANY_VERSION {
            let bytes = arpa::open(path).and_then(|(reader, size)| build::image(reader, size, options, path))?;
            return Self::from_bytes(Bytes::Owned(bytes), path);
        }
        // SAFETY: the file must not be written to while it is mapped, which the documentation asks for.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(Error::io("map", path))?;
        Self::from_bytes(Bytes::Mapped(map), path)
    }

    /// From the contents of a binary file; `path` only names it in errors.
    ///
    /// # Errors
    /// [`Error::BadFile`].
    pub fn from_binary(bytes: Vec<u8>, path: &Path) -> Result<Self> {
        Self::from_bytes(Bytes::Owned(bytes), path)
    }

    /// From the text of an ARPA file, not compressed; `path` only names it in errors.
    ///
    /// # Errors
    /// [`Error::BadFile`].
    pub fn from_arpa(text: &[u8], options: &LoadOptions, path: &Path) -> Result<Self> {
        let bytes = build::image(text, text.len() as u64, options, path)?;
        Self::from_bytes(Bytes::Owned(bytes), path)
    }

    fn from_bytes(bytes: Bytes, path: &Path) -> Result<Self> {
        let bad = |problem: String| {
            Error::bad_file(
                "KenLM model",
                path,
                problem,
                "make it again from the ARPA file (recua data train-lm, or build_binary)",
            )
        };
        let header = Header::parse(&bytes).map_err(bad)?;
        let too_large = || bad(format!("counts {:?} are more than any file holds", header.counts));
        let (layout, end) = match header.kind {
            Kind::Probing | Kind::RestProbing => {
                let layout = Layout::new(&header).ok_or_else(too_large)?;
                let end = layout.end;
                (AnyLayout::Probing(layout), end)
            }
            Kind::Trie { .. } => {
                let layout = TrieLayout::new(&header, &bytes).map_err(bad)?;
                let end = layout.end;
                (AnyLayout::Trie(layout), end)
            }
        };
        if bytes.len() < end {
            return Err(bad(format!("expected at least {end} bytes, got {}", bytes.len())));
        }
        if header.has_words && bytes.get(end..end + 6) != Some(b"<unk>\0") {
            return Err(bad(format!("the words are not at byte {end}")));
        }
        match &layout {
            AnyLayout::Probing(layout) => layout.check(&bytes),
            AnyLayout::Trie(layout) => layout.check(&bytes),
        }
        .map_err(bad)?;
        let mut model = Self { bytes, header, layout, begin: UNKNOWN, end: UNKNOWN };
        (model.begin, model.end) = (model.index("<s>"), model.index("</s>"));
        Ok(model)
    }

    /// Words of the longest n-grams.
    pub fn order(&self) -> usize {
        self.header.counts.len()
    }

    /// n-grams by order, as the file counts them.
    pub fn counts(&self) -> &[u64] {
        &self.header.counts
    }

    /// Words with an id, `<unk>` included.
    pub fn vocab_size(&self) -> usize {
        match &self.layout {
            AnyLayout::Probing(layout) => layout.words(&self.bytes) as usize,
            AnyLayout::Trie(layout) => layout.words as usize,
        }
    }

    /// A word's id; 0 if the model does not know it.
    pub fn index(&self, word: &str) -> u32 {
        with_search!(self, search => search.index(word.as_bytes()))
    }

    /// log10 of the probability of a line's words, which white space (of ASCII, as KenLM has it) sets apart: after `<s>` with
    /// `begin`, and followed by `</s>` with `end`. Summed in single precision, in the order of the words, like KenLM's.
    pub fn score(&self, line: &str, begin: bool, end: bool) -> f32 {
        let mut total = 0.0;
        with_search!(self, search => {
            let ids = words(line).map(|word| search.index(word.as_bytes()));
            self.run(search, ids, begin, end, |log10, _, _| total += log10);
        });
        total
    }

    /// Like [`Model::score`], for words that were looked up with [`Model::index`].
    pub fn score_ids(&self, ids: impl Iterator<Item = u32>, begin: bool, end: bool) -> f32 {
        let mut total = 0.0;
        let known = self.vocab_size() as u32;
        let ids = ids.map(|id| if id < known { id } else { UNKNOWN });
        with_search!(self, search => self.run(search, ids, begin, end, |log10, _, _| total += log10));
        total
    }

    /// The score of each word; see [`Model::score`].
    pub fn full_scores(&self, line: &str, begin: bool, end: bool) -> LmScore {
        let mut out = LmScore::default();
        let mut total = 0.0f32;
        with_search!(self, search => {
            let ids = words(line).map(|word| search.index(word.as_bytes()));
            self.run(search, ids, begin, end, |log10, ngram_length, id| {
                total += log10;
                out.words.push(WordScore { log10: f64::from(log10), ngram_length, oov: id == UNKNOWN });
            });
        });
        out.score = f64::from(total);
        out
    }

    /// Writes a model that came from an ARPA file as a KenLM binary file, the same byte for byte as `build_binary` writes with its
    /// defaults (layout `probing`, multiplier 1.5). A model that came from a binary file is copied.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save_binary(&self, path: impl AsRef<Path>) -> Result<()> {
        crate::files::write_atomic(path.as_ref(), &self.bytes)
    }

    /// Hands on each word's log10, the length of its n-gram, and its id.
    fn run<S: Search>(
        &self,
        search: S,
        words: impl Iterator<Item = u32>,
        begin: bool,
        end: bool,
        mut each: impl FnMut(f32, usize, u32),
    ) {
        let ids: Vec<u32> = begin.then_some(self.begin).into_iter().chain(words).chain(end.then_some(self.end)).collect();
        let order = self.order();
        let ahead = self.bytes.len() >= PREFETCH_FROM;
        let mut state = State { len: 0, backoffs: [0.0; MAX_ORDER] };
        if begin {
            state.len = 1;
            state.backoffs[0] = search.unigram(self.begin).backoff;
        }
        for at in usize::from(begin)..ids.len() {
            if ahead && let Some(next) = ids.get((at + 2).saturating_sub(order)..at + 2) {
                search.prefetch(next);
            }
            let (log10, ngram_length) = step(search, order, &ids[..=at], &mut state);
            each(log10, ngram_length, ids[at]);
        }
    }
}

/// The words of a line, as KenLM takes it apart.
pub(super) fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(['\0', '\t', '\n', '\x0b', '\x0c', '\r', ' ']).filter(|word| !word.is_empty())
}

/// How many of the words before the next one matter, and what backing off from them costs, the shortest context first.
struct State {
    len: usize,
    backoffs: [f32; MAX_ORDER],
}

/// Scores the last of `ids`: log10, and the length of the n-gram that it was found in.
#[inline]
fn step<S: Search>(search: S, order: usize, ids: &[u32], state: &mut State) -> (f32, usize) {
    let Some((word, before)) = ids.split_last() else { return (0.0, 0) };
    // As KenLM compares: -0.0 means that the n-gram is no context.
    let is_context = |backoff: f32| backoff.to_bits() != (-0.0f32).to_bits();
    let unigram = search.unigram(*word);
    let (mut log10, mut length) = (unigram.log10, 1);
    let mut next = State { len: usize::from(is_context(unigram.backoff)), backoffs: [0.0; MAX_ORDER] };
    next.backoffs[0] = unigram.backoff;
    let (mut node, mut extends) = (unigram.node, unigram.extends_left);
    for (i, word) in before.iter().rev().take(state.len).enumerate() {
        if !extends {
            break;
        }
        if i + 2 == order {
            if let Some(found) = search.longest(*word, node) {
                (log10, length) = (found, order);
            }
            break;
        }
        let Some(gram) = search.middle(i, *word, node) else { break };
        (log10, length) = (gram.log10, i + 2);
        next.backoffs[i + 1] = gram.backoff;
        if is_context(gram.backoff) {
            next.len = length;
        }
        (node, extends) = (gram.node, gram.extends_left);
    }
    for backoff in state.backoffs[..state.len].iter().skip(length - 1) {
        log10 += backoff;
    }
    *state = next;
    (log10, length)
}
