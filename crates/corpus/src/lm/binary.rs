//! The header of KenLM's binary files (format version 5, 64 bits, little endian), and the bytes behind a model.
//!
//! A file is: a sanity header (magic text, floats and integers with known values), fixed-width parameters, one count per order,
//! padding to 8 bytes; then the vocabulary's table; then the n-grams in one of six layouts; then, usually, the words, each ended by
//! NUL, `<unk>` first. No table has a length of its own: all sizes follow from the counts.

use std::ops::Deref;

use super::MAX_ORDER;

/// What a complete binary file begins with; the writer puts another text there until it has finished.
pub(super) const MAGIC: &[u8] = b"mmap lm http://kheafield.com/code format version 5\n\0";
/// What all versions begin with, and with `incomplete` those that were never finished.
pub(super) const ANY_VERSION: &[u8] = b"mmap lm http://kheafield.com/code";

/// Magic (with a second NUL and padding to 8), three floats, three integers of 32 bits, one of 64.
const SANITY: usize = 56 + 12 + 12 + 8;
/// Order, probing multiplier, layout, has words, layout version; each padded to 4 bytes.
const FIXED: usize = 20;

/// How the n-grams lie in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Probing,
    /// With a rest cost beside each probability, which scores of whole sentences do not need.
    RestProbing,
    Trie {
        quantised: bool,
        array: bool,
    },
}

/// The parameters of a file.
#[derive(Clone, Debug)]
pub(super) struct Header {
    pub(super) multiplier: f32,
    pub(super) kind: Kind,
    pub(super) has_words: bool,
    /// n-grams by order, at least two.
    pub(super) counts: Vec<u64>,
}

/// A model's bytes, from a file or made here.
pub(super) enum Bytes {
    Mapped(memmap2::Mmap),
    Owned(Vec<u8>),
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(bytes) => bytes,
        }
    }
}

/// `N` bytes at an offset, if they are there.
#[inline]
pub(super) fn take<const N: usize>(data: &[u8], at: usize) -> Option<[u8; N]> {
    data.get(at..)?.first_chunk::<N>().copied()
}

#[inline]
pub(super) fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    take(data, at).map(u32::from_le_bytes)
}

#[inline]
pub(super) fn u64_at(data: &[u8], at: usize) -> Option<u64> {
    take(data, at).map(u64::from_le_bytes)
}

#[inline]
pub(super) fn f32_at(data: &[u8], at: usize) -> Option<f32> {
    take(data, at).map(f32::from_le_bytes)
}

/// The sanity header as it must be.
fn sanity() -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.resize(56, 0);
    for value in [0.0f32, 1.0, -0.5] {
        out.extend(value.to_le_bytes());
    }
    for value in [1u32, u32::MAX, 0] {
        out.extend(value.to_le_bytes());
    }
    out.extend(1u64.to_le_bytes());
    out
}

impl Header {
    /// Bytes before the vocabulary.
    pub(super) fn len(&self) -> usize {
        (SANITY + FIXED + 8 * self.counts.len()).next_multiple_of(8)
    }

    /// From the beginning of a file. The error says what is wrong.
    pub(super) fn parse(data: &[u8]) -> Result<Self, String> {
        let short = || "the file ends in the header".to_string();
        if !data.starts_with(MAGIC) {
            return Err(if data.starts_with(b"mmap lm http://kheafield.com/code incomplete") {
                "its writing did not finish".into()
            } else {
                "another version than 5 of KenLM's binary format".into()
            });
        }
        if data.get(..SANITY).ok_or_else(short)? != sanity() {
            return Err("the test values in the header differ: written on another kind of machine".into());
        }
        let order = usize::from(take::<1>(data, SANITY).ok_or_else(short)?[0]);
        let multiplier = f32_at(data, SANITY + 4).ok_or_else(short)?;
        let kind = match u32_at(data, SANITY + 8).ok_or_else(short)? {
            0 => Kind::Probing,
            1 => Kind::RestProbing,
            kind @ 2..=5 => Kind::Trie { quantised: kind & 1 == 1, array: kind >= 4 },
            kind => return Err(format!("layout {kind}; 0 to 5 are known")),
        };
        let has_words = take::<1>(data, SANITY + 12).ok_or_else(short)?[0] != 0;
        let version = u32_at(data, SANITY + 16).ok_or_else(short)?;
        let known = u32::from(matches!(kind, Kind::Trie { .. }));
        if version != known {
            return Err(format!("version {version} of its layout; {known} is known"));
        }
        if !(2..=MAX_ORDER).contains(&order) {
            return Err(format!("order {order}; 2 to {MAX_ORDER} are supported"));
        }
        if !(multiplier >= 1.0 && multiplier.is_finite()) {
            return Err(format!("probing multiplier {multiplier}"));
        }
        let counts = (0..order).map(|i| u64_at(data, SANITY + FIXED + 8 * i)).collect::<Option<Vec<_>>>().ok_or_else(short)?;
        Ok(Self { multiplier, kind, has_words, counts })
    }

    /// The bytes before the vocabulary, for a probing model.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut out = sanity();
        out.extend((self.counts.len() as u32).to_le_bytes());
        out.extend(self.multiplier.to_le_bytes());
        out.extend(0u32.to_le_bytes());
        out.extend(u32::from(self.has_words).to_le_bytes());
        out.extend(0u32.to_le_bytes());
        out.extend(self.counts.iter().flat_map(|count| count.to_le_bytes()));
        out.resize(self.len(), 0);
        out
    }
}
