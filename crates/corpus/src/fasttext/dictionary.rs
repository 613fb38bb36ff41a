//! Text to rows of the input matrix: fastText's tokens, their hashes, and n-grams of characters and of words.

use std::ops::Range;

/// The token that ends a line, and that every line has.
pub(super) const EOS: &[u8] = b"</s>";
/// What a label starts with. Not stored in a model.
pub(super) const LABEL_PREFIX: &str = "__label__";

const HASH_START: u32 = 2_166_136_261;

/// A step of FNV-1a as fastText has it: bytes are sign-extended, as `char` was where its first models were trained.
#[inline]
fn hash_step(hash: u32, byte: u8) -> u32 {
    (hash ^ byte as i8 as u32).wrapping_mul(16_777_619)
}

/// fastText's hash of a token.
pub(super) fn hash(token: &[u8]) -> u32 {
    token.iter().fold(HASH_START, |hash, &byte| hash_step(hash, byte))
}

/// What separates tokens: these seven bytes and no other Unicode white space.
#[inline]
fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\n' | b'\r' | b'\t' | 0x0b | 0x0c | 0)
}

/// The tokens of one line with their hashes, without the closing [`EOS`]. Ends before the first line feed.
pub(super) struct Tokens<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Tokens<'a> {
    pub(super) fn new(text: &'a [u8]) -> Self {
        Self { text, at: 0 }
    }
}

impl<'a> Iterator for Tokens<'a> {
    type Item = (&'a [u8], u32);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.text.get(self.at..)?;
        let skipped = rest.iter().position(|&byte| !is_space(byte) || byte == b'\n')?;
        let rest = &rest[skipped..];
        let mut hash = HASH_START;
        let mut len = 0;
        for &byte in rest {
            if is_space(byte) {
                break;
            }
            hash = hash_step(hash, byte);
            len += 1;
        }
        self.at += skipped + len;
        (len > 0).then(|| (&rest[..len], hash))
    }
}

/// `a % divisor` by two multiplications (Lemire, Kaser, Kurz: "Faster remainder by direct computation", 2019).
#[derive(Clone, Copy, Debug)]
struct Remainder {
    divisor: u32,
    inverse: u64,
}

impl Remainder {
    fn new(divisor: u32) -> Self {
        Self { divisor, inverse: (u64::MAX / u64::from(divisor.max(1))).wrapping_add(1) }
    }

    #[inline]
    fn of(self, a: u32) -> u32 {
        ((u128::from(self.inverse.wrapping_mul(u64::from(a))) * u128::from(self.divisor)) >> 64) as u32
    }
}

/// Spreads hashes, of which low or high bits alone may be poor, over 32 bits.
#[inline]
fn spread(hash: u32) -> usize {
    (u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize
}

/// The n-grams that a pruned model kept: from bucket to row behind the words.
#[derive(Debug)]
struct Kept {
    /// One bit for each value of a bucket's low bits: most n-grams of a text are not kept, and end here.
    seen: Vec<u64>,
    /// Open addressing, (bucket + 1, row); at most half full.
    slots: Vec<(u32, u32)>,
}

impl Kept {
    fn new(pairs: &[(u32, u32)]) -> Self {
        let slots = (pairs.len() * 2).next_power_of_two();
        let mut kept = Self { seen: vec![0; slots.div_ceil(8)], slots: vec![(0, 0); slots] };
        let bits = kept.seen.len() * 64 - 1;
        for &(bucket, row) in pairs {
            let bit = bucket as usize & bits;
            kept.seen[bit / 64] |= 1 << (bit % 64);
            let mut at = spread(bucket) & (slots - 1);
            while kept.slots[at].0 != 0 && kept.slots[at].0 != bucket + 1 {
                at = (at + 1) & (slots - 1);
            }
            kept.slots[at] = (bucket + 1, row);
        }
        kept
    }

    #[inline]
    fn row(&self, bucket: u32) -> Option<u32> {
        let bit = bucket as usize & (self.seen.len() * 64 - 1);
        if self.seen[bit / 64] >> (bit % 64) & 1 == 0 {
            return None;
        }
        let mut at = spread(bucket) & (self.slots.len() - 1);
        loop {
            match self.slots[at] {
                (0, _) => return None,
                (key, row) if key == bucket + 1 => return Some(row),
                _ => at = (at + 1) & (self.slots.len() - 1),
            }
        }
    }
}

/// Which n-grams a model uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GramSizes {
    /// Shortest and longest n-gram of characters; none if the longest is 0.
    pub min_chars: u32,
    pub max_chars: u32,
    /// Longest n-gram of words.
    pub words: u32,
    /// Rows that n-grams are hashed to; 0 only where there are none.
    pub buckets: u32,
}

impl GramSizes {
    /// Whether there are any n-grams.
    pub(super) fn any(&self) -> bool {
        self.max_chars > 0 || self.words > 1
    }
}

/// A part of a line, as the model sees it.
pub(super) enum Piece {
    /// A word of the vocabulary, which stands for its own row and for those of its character n-grams.
    Word(u32),
    /// The row of an n-gram of an unknown word, or of several words.
    Gram(u32),
    /// A label of the vocabulary, by its number among the labels.
    Label(u32),
}

/// Words and labels of a model, and its n-grams.
#[derive(Debug)]
pub(super) struct Dictionary {
    /// All words, then all labels, one after another.
    text: Vec<u8>,
    /// Where each ends.
    ends: Vec<usize>,
    words: u32,
    /// Open addressing, (hash, id + 1); at most half full.
    slots: Vec<(u32, u32)>,
    sizes: GramSizes,
    remainder: Remainder,
    kept: Option<Kept>,
}

impl Dictionary {
    /// Of `ends.len()` entries in `text`, the first `words` of which are words and the others labels. `kept` has the
    /// n-grams of a pruned model as (bucket, row behind the words).
    pub(super) fn new(text: Vec<u8>, ends: Vec<usize>, words: u32, sizes: GramSizes, kept: Option<&[(u32, u32)]>) -> Self {
        let slots = vec![(0, 0); (ends.len() * 2).next_power_of_two()];
        let kept = kept.map(Kept::new);
        let mut dictionary = Self { text, ends, words, slots, sizes, remainder: Remainder::new(sizes.buckets), kept };
        for id in 0..dictionary.ends.len() as u32 {
            let entry = dictionary.entry(id);
            let hash = hash(entry);
            // Of equal entries, which only a damaged file has, the last one counts.
            let at = dictionary.slot(entry, hash);
            dictionary.slots[at] = (hash, id + 1);
        }
        dictionary
    }

    pub(super) fn words(&self) -> u32 {
        self.words
    }

    pub(super) fn labels(&self) -> u32 {
        self.ends.len() as u32 - self.words
    }

    fn range(&self, id: u32) -> Range<usize> {
        let id = id as usize;
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        start..self.ends[id]
    }

    /// No fewer than all words have n-grams of characters.
    pub(super) fn char_grams_at_most(&self) -> usize {
        let lengths = (self.sizes.max_chars + 1).saturating_sub(self.sizes.min_chars.max(1)) as usize;
        let chars = self.words.checked_sub(1).map_or(0, |last| self.ends[last as usize]) + 2 * self.words as usize;
        chars.saturating_mul(lengths)
    }

    /// A word (`id < words()`) or label.
    pub(super) fn entry(&self, id: u32) -> &[u8] {
        &self.text[self.range(id)]
    }

    /// The slot that has the entry, or the empty one where it would be.
    #[inline]
    fn slot(&self, entry: &[u8], hash: u32) -> usize {
        let mask = self.slots.len() - 1;
        let mut at = spread(hash) & mask;
        loop {
            match self.slots[at] {
                (_, 0) => return at,
                (other, id) if other == hash && self.entry(id - 1) == entry => return at,
                _ => at = (at + 1) & mask,
            }
        }
    }

    /// The number of a word or label of the vocabulary.
    #[inline]
    pub(super) fn find(&self, entry: &[u8], hash: u32) -> Option<u32> {
        self.slots[self.slot(entry, hash)].1.checked_sub(1)
    }

    /// The row of a bucket, unless it was pruned.
    #[inline]
    fn row(&self, bucket: u32) -> Option<u32> {
        match &self.kept {
            None => Some(self.words + bucket),
            Some(kept) => kept.row(bucket).map(|row| self.words + row),
        }
    }

    /// The rows of the character n-grams of a word, in fastText's order. `buffer` is scratch space.
    #[inline]
    pub(super) fn char_grams(&self, word: &[u8], buffer: &mut Vec<u8>, mut push: impl FnMut(u32)) {
        if self.sizes.max_chars == 0 || word == EOS {
            return;
        }
        buffer.clear();
        buffer.push(b'<');
        buffer.extend_from_slice(word);
        buffer.push(b'>');
        let word = buffer.as_slice();
        let continues = |at: usize| word.get(at).is_some_and(|byte| byte & 0xc0 == 0x80);
        for start in 0..word.len() {
            if continues(start) {
                continue;
            }
            let mut hash = HASH_START;
            let mut end = start;
            for n in 1..=self.sizes.max_chars {
                let Some(&byte) = word.get(end) else { break };
                hash = hash_step(hash, byte);
                end += 1;
                while continues(end) {
                    hash = hash_step(hash, word[end]);
                    end += 1;
                }
                // The bare `<` and `>` are no n-grams.
                if n >= self.sizes.min_chars
                    && !(n == 1 && (start == 0 || end == word.len()))
                    && let Some(row) = self.row(self.remainder.of(hash))
                {
                    push(row);
                }
            }
        }
    }

    /// The pieces of a line up to its first line feed, its end included. Tokens that look like labels and are none give
    /// nothing, as unknown words do in a model without n-grams.
    pub(super) fn pieces(&self, line: &[u8], scratch: &mut LineScratch, mut push: impl FnMut(Piece)) {
        let LineScratch { hashes, buffer } = scratch;
        hashes.clear();
        let closing = (EOS, hash(EOS));
        for (token, hash) in Tokens::new(line).chain([closing]) {
            match self.find(token, hash) {
                Some(id) if id >= self.words => {
                    push(Piece::Label(id - self.words));
                    continue;
                }
                Some(id) => push(Piece::Word(id)),
                None if token.starts_with(LABEL_PREFIX.as_bytes()) => continue,
                None => self.char_grams(token, buffer, |row| push(Piece::Gram(row))),
            }
            if self.sizes.words > 1 {
                hashes.push(hash);
            }
            // Written out in a text it ends the line, too.
            if token == EOS {
                break;
            }
        }
        // 64-bit arithmetic on hashes taken as signed 32-bit numbers.
        let wide = |hash: u32| hash as i32 as u64;
        for (at, &first) in hashes.iter().enumerate() {
            let mut gram = wide(first);
            for &next in hashes[at + 1..].iter().take(self.sizes.words as usize - 1) {
                gram = gram.wrapping_mul(116_049_371).wrapping_add(wide(next));
                if let Some(row) = self.row((gram % u64::from(self.sizes.buckets)) as u32) {
                    push(Piece::Gram(row));
                }
            }
        }
    }
}

/// Space that [`Dictionary::pieces`] works in.
#[derive(Debug, Default)]
pub(super) struct LineScratch {
    hashes: Vec<u32>,
    buffer: Vec<u8>,
}
