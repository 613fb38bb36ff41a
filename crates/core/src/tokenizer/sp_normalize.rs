//! SentencePiece's normaliser: compiled replacement rules, spaces made visible, surplus spaces dropped.

use super::decode::SPACE;

/// The rules of one model.
pub(super) struct Normalizer {
    pub(super) charsmap: Option<CharsMap>,
    pub(super) add_dummy_prefix: bool,
    pub(super) remove_extra_whitespaces: bool,
    pub(super) escape_whitespaces: bool,
    pub(super) space_as_suffix: bool,
    /// User-defined symbols: taken as they are, the longest first.
    pub(super) user_defined: PrefixSet,
}

/// A set of strings, asked for the longest that a text begins with.
#[derive(Default)]
pub(super) struct PrefixSet {
    set: std::collections::HashSet<Box<[u8]>>,
    /// The lengths that occur, longest first.
    lens: Vec<usize>,
}

impl PrefixSet {
    pub(super) fn new<'a>(items: impl Iterator<Item = &'a str>) -> Self {
        let set: std::collections::HashSet<Box<[u8]>> = items.map(|s| s.as_bytes().into()).collect();
        let mut lens: Vec<usize> = set.iter().map(|s| s.len()).collect();
        lens.sort_unstable_by(|a, b| b.cmp(a));
        lens.dedup();
        Self { set, lens }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.set.is_empty()
    }

    /// The length in bytes of the longest member that `text` begins with.
    pub(super) fn longest(&self, text: &str) -> Option<usize> {
        let bytes = text.as_bytes();
        self.lens.iter().copied().find(|len| bytes.get(..*len).is_some_and(|head| self.set.contains(head)))
    }
}

/// `precompiled_charsmap`: a double-array trie (darts-clone) from byte strings to offsets in a table of NUL-ended replacements.
/// (The crate `spm_precompiled` reads it too, but applies the shortest rule to whole graphemes, as Hugging Face does.)
pub(super) struct CharsMap {
    units: Vec<u32>,
    replacements: String,
}

impl CharsMap {
    /// From the bytes in the model; the error says what is wrong with them.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let broken = || "a broken precompiled_charsmap".to_string();
        let (size, rest) = bytes.split_first_chunk::<4>().ok_or_else(broken)?;
        let (trie, table) = rest.split_at_checked(u32::from_le_bytes(*size) as usize).ok_or_else(broken)?;
        let units = trie.chunks_exact(4).map(|c| c.iter().rev().fold(0, |unit, b| unit << 8 | u32::from(*b))).collect();
        let replacements = String::from_utf8(table.to_vec()).map_err(|_| broken())?;
        Ok(Self { units, replacements })
    }

    /// The longest rule that `text` begins with: its length in bytes and its replacement.
    fn longest(&self, text: &str) -> Option<(usize, &str)> {
        let offset = |unit: u32| ((unit >> 10) << ((unit & (1 << 9)) >> 6)) as usize;
        let mut at = offset(*self.units.first()?);
        let mut found = None;
        for (i, byte) in text.bytes().enumerate() {
            at ^= usize::from(byte);
            let Some(unit) = self.units.get(at) else { break };
            if unit & (1 << 31 | 0xff) != u32::from(byte) {
                break;
            }
            at ^= offset(*unit);
            if unit & (1 << 8) != 0 {
                let Some(leaf) = self.units.get(at) else { break };
                found = Some((i + 1, (leaf & 0x7fff_ffff) as usize));
            }
        }
        let (len, start) = found.filter(|(len, _)| text.is_char_boundary(*len))?;
        Some((len, self.replacements.get(start..)?.split('\0').next()?))
    }
}

impl Normalizer {
    /// What `text` (not empty) begins with, normalised, and how many bytes of it that takes.
    fn prefix<'a>(&'a self, text: &'a str) -> (&'a str, usize) {
        if let Some(len) = self.user_defined.longest(text) {
            return (&text[..len], len);
        }
        if let Some((len, replacement)) = self.charsmap.as_ref().and_then(|map| map.longest(text)) {
            return (replacement, len);
        }
        let len = text.chars().next().map_or(text.len(), char::len_utf8);
        (&text[..len], len)
    }

    /// The text that the vocabulary is matched against.
    pub(super) fn normalize(&self, mut text: &str) -> String {
        if self.remove_extra_whitespaces {
            while !text.is_empty() {
                let (head, len) = self.prefix(text);
                if head != " " {
                    break;
                }
                text = &text[len..];
            }
        }
        if text.is_empty() {
            return String::new();
        }
        let space = if self.escape_whitespaces { SPACE } else { ' ' };
        let mut out = String::with_capacity(text.len() + text.len() / 2 + 3);
        if self.add_dummy_prefix && !self.space_as_suffix {
            out.push(space);
        }
        let mut after_space = self.remove_extra_whitespaces;
        while !text.is_empty() {
            let (head, len) = self.prefix(text);
            let head = if after_space { head.trim_start_matches(' ') } else { head };
            if !head.is_empty() {
                out.extend(head.chars().map(|c| if c == ' ' { space } else { c }));
                after_space = self.remove_extra_whitespaces && head.ends_with(' ');
            }
            text = &text[len..];
        }
        if self.remove_extra_whitespaces {
            out.truncate(out.trim_end_matches(space).len());
        }
        if self.add_dummy_prefix && self.space_as_suffix {
            out.push(space);
        }
        out
    }
}
