//! fastText's binary format, versions 11 and 12, read with every size checked against the file.
//!
//! Little-endian, without alignment: magic and version; 12 settings of 4 bytes and one of 8; the dictionary (sizes, each
//! word with its count and kind, the n-grams that pruning kept); whether the input matrix is quantised, and it; whether the
//! output matrix is, and it.

use super::{
    dictionary::{Dictionary, GramSizes, LABEL_PREFIX},
    matrix::{CENTROIDS, Codes, Matrix, Norms},
    output::{Loss, Output, Sigmoid, Tree},
};

pub(super) const MAGIC: i32 = 793_712_314;
pub(super) const VERSION: i32 = 12;
/// The model kind with labels.
pub(super) const SUPERVISED: i32 = 3;
/// n-grams longer than this are damage: the time a text takes grows with their lengths.
pub(super) const MAX_GRAM: u32 = 64;
/// Bytes that an entry of the dictionary has beside its text: the zero that ends it, count and kind.
const ENTRY: usize = 10;

/// A model file taken apart. Matrices stay in it.
pub(super) struct Parts {
    pub(super) dictionary: Dictionary,
    /// Without their prefix.
    pub(super) labels: Vec<String>,
    pub(super) input: Matrix,
    pub(super) output: Matrix,
    pub(super) loss: Loss,
    pub(super) how: Output,
}

/// Reads forward. Errors say what was expected at which byte.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    fn take(&mut self, len: usize, what: &str) -> Result<&'a [u8], String> {
        let rest = self.rest();
        let taken = rest.get(..len).ok_or_else(|| {
            format!("expected {what}, {len} bytes from byte {} on, got the file's end after {} of them", self.at, rest.len())
        })?;
        self.at += len;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], String> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, what)?);
        Ok(array)
    }

    fn i32(&mut self, what: &str) -> Result<i32, String> {
        self.array(what).map(i32::from_le_bytes)
    }

    fn i64(&mut self, what: &str) -> Result<i64, String> {
        self.array(what).map(i64::from_le_bytes)
    }

    fn flag(&mut self, what: &str) -> Result<bool, String> {
        match self.array::<1>(what)? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(format!("expected {what}, 0 or 1, at byte {}, got {other}", self.at - 1)),
        }
    }

    /// A count of things of at least `size` bytes each, which the rest of the file must have room for.
    fn count(&self, count: i64, size: usize, what: &str) -> Result<usize, String> {
        let fits =
            usize::try_from(count).ok().filter(|count| count.checked_mul(size).is_some_and(|all| all <= self.rest().len()));
        fits.ok_or_else(|| {
            format!("expected {what} of at least {size} bytes each in the {} bytes that are left, got {count}", self.rest().len())
        })
    }

    fn floats(&mut self, count: usize, what: &str) -> Result<Vec<f32>, String> {
        let bytes = self.take(count.checked_mul(4).ok_or("too many numbers")?, what)?;
        Ok(bytes.as_chunks().0.iter().map(|number| f32::from_le_bytes(*number)).collect())
    }
}

/// The settings that matter to predictions.
struct Settings {
    dimension: usize,
    loss: Loss,
    sizes: GramSizes,
}

impl Settings {
    fn read(cursor: &mut Cursor<'_>) -> Result<Self, String> {
        let magic = cursor.i32("fastText's magic number")?;
        if magic != MAGIC {
            return Err(format!("expected fastText's magic number {MAGIC}, got {magic}"));
        }
        let version = cursor.i32("the version")?;
        if !(11..=VERSION).contains(&version) {
            return Err(format!("expected version 11 or 12, got {version}"));
        }
        let mut settings = [0; 12];
        for setting in &mut settings {
            *setting = cursor.i32("the settings")?;
        }
        // The last one is the threshold of subsampling, for word vectors only.
        cursor.take(8, "the settings")?;
        let [dimension, _, _, _, _, words, loss, model, buckets, min_chars, max_chars, _] = settings;
        if model != SUPERVISED {
            return Err(format!("expected a model with labels (kind {SUPERVISED}), got kind {model} (1 and 2 are word vectors)"));
        }
        let loss = Loss::from_code(loss).ok_or_else(|| format!("expected a loss from 1 to 4, got {loss}"))?;
        let dimension = usize::try_from(dimension).ok().filter(|&dimension| dimension > 0);
        let dimension = dimension.ok_or_else(|| format!("expected a dimension of at least 1, got {}", settings[0]))?;
        let length = |length: i32, what: &str| {
            let length = u32::try_from(length).unwrap_or(0);
            let fits = length <= MAX_GRAM;
            fits.then_some(length).ok_or_else(|| format!("expected {what} of at most {MAX_GRAM}, got {length}"))
        };
        // Supervised models of version 11 were trained without character n-grams, whatever their settings say.
        let max_chars = if version == 11 { 0 } else { length(max_chars, "character n-grams")? };
        let sizes = GramSizes {
            min_chars: u32::try_from(min_chars).unwrap_or(0),
            max_chars,
            words: length(words, "word n-grams")?,
            buckets: u32::try_from(buckets).unwrap_or(0),
        };
        if sizes.any() && sizes.buckets == 0 {
            return Err(format!("expected at least 1 bucket for the n-grams, got {buckets}"));
        }
        Ok(Self { dimension, loss, sizes })
    }
}

/// Takes a model file apart.
///
/// # Errors
/// What is wrong with it, in words.
pub(super) fn parse(bytes: &[u8]) -> Result<Parts, String> {
    let cursor = &mut Cursor { bytes, at: 0 };
    let Settings { dimension, loss, sizes } = Settings::read(cursor)?;
    let (dictionary, counts, last_kept) = read_dictionary(cursor, sizes)?;

    let quantised = cursor.flag("whether the input matrix is quantised")?;
    let input = read_matrix(cursor, "the input matrix", dimension, quantised)?;
    let grams = match last_kept {
        Some(_) if !quantised => return Err("expected a quantised input matrix in a pruned model, got a dense one".into()),
        Some(last) => last,
        None if sizes.any() => sizes.buckets as usize,
        None => 0,
    };
    let needed = dictionary.words() as usize + grams;
    if input.rows < needed || needed > u32::MAX as usize {
        return Err(format!("expected at least {needed} rows in the input matrix, for words and n-grams, got {}", input.rows));
    }
    let quantised = cursor.flag("whether the output matrix is quantised")? && quantised;
    let output = read_matrix(cursor, "the output matrix", dimension, quantised)?;
    if output.rows != counts.len() {
        return Err(format!("expected {} rows in the output matrix, one a label, got {}", counts.len(), output.rows));
    }
    if !cursor.rest().is_empty() {
        return Err(format!("expected the file to end after {} bytes, got {} more", cursor.at, cursor.rest().len()));
    }

    let how = match loss {
        Loss::Softmax => Output::Softmax,
        Loss::NegativeSampling | Loss::OneVsAll => Output::Independent(Box::new(Sigmoid::new())),
        Loss::HierarchicalSoftmax => {
            Output::Tree(Tree::new(&counts).ok_or("expected counts of labels from 0 to 1e15, got others")?)
        }
    };
    let first = dictionary.words();
    let labels = (0..dictionary.labels()).map(|label| {
        let label = String::from_utf8_lossy(dictionary.entry(first + label));
        label.strip_prefix(LABEL_PREFIX).unwrap_or(&label).to_owned()
    });
    Ok(Parts { labels: labels.collect(), dictionary, input, output, loss, how })
}

/// The dictionary, the counts of the labels, and for a pruned model how many rows its n-grams reach to behind the words.
fn read_dictionary(cursor: &mut Cursor<'_>, sizes: GramSizes) -> Result<(Dictionary, Vec<i64>, Option<usize>), String> {
    let size = cursor.i32("the dictionary's size")?;
    let words = cursor.i32("the number of words")?;
    let labels = cursor.i32("the number of labels")?;
    cursor.i64("the number of tokens")?;
    let kept = cursor.i64("the number of n-grams kept")?;
    let entries = cursor.count(size.into(), ENTRY, "dictionary entries")?;
    if words < 0 || labels < 1 || i64::from(words) + i64::from(labels) != i64::from(size) {
        return Err(format!("expected words and at least one label, {size} together, got {words} and {labels}"));
    }
    let mut text = Vec::new();
    let mut ends = Vec::with_capacity(entries);
    let mut counts = Vec::with_capacity(labels as usize);
    for entry in 0..size {
        let len = cursor.rest().iter().position(|&byte| byte == 0);
        let len =
            len.ok_or_else(|| format!("expected the zero that ends entry {entry} of the dictionary, got the file's end"))?;
        text.extend_from_slice(cursor.take(len + 1, "a word")?);
        text.pop();
        ends.push(text.len());
        let count = cursor.i64("a word's count")?;
        match (cursor.array("a word's kind")?, entry < words) {
            ([0], true) => {}
            ([1], false) => counts.push(count),
            ([kind], _) => {
                return Err(format!("expected {words} words (kind 0), then labels (kind 1), got kind {kind} for entry {entry}"));
            }
        }
    }
    // -1: not pruned.
    if kept < 0 {
        return Ok((Dictionary::new(text, ends, words as u32, sizes, None), counts, None));
    }
    let mut pairs = Vec::with_capacity(cursor.count(kept, 8, "n-grams kept")?);
    let mut last = 0;
    for _ in 0..kept {
        let bucket = cursor.i32("an n-gram kept")?;
        let row = cursor.i32("the row of an n-gram kept")?;
        let (Ok(bucket), Ok(row)) = (u32::try_from(bucket), u32::try_from(row)) else {
            return Err(format!("expected a bucket and row of at least 0 for an n-gram kept, got {bucket} and {row}"));
        };
        last = last.max(row as usize + 1);
        pairs.push((bucket, row));
    }
    Ok((Dictionary::new(text, ends, words as u32, sizes, Some(&pairs)), counts, Some(last)))
}

fn read_matrix(cursor: &mut Cursor<'_>, what: &str, dimension: usize, quantised: bool) -> Result<Matrix, String> {
    let with_norms = quantised && cursor.flag("whether lengths of rows are quantised")?;
    let rows = cursor.i64(what)?;
    let columns = cursor.i64(what)?;
    if columns != dimension as i64 {
        return Err(format!("expected {dimension} columns in {what}, got {columns}"));
    }
    if !quantised {
        let row = dimension.checked_mul(4).ok_or("too many columns")?;
        let rows = cursor.count(rows, row, "rows of a matrix")?;
        let start = cursor.at;
        cursor.take(rows * row, what)?;
        return Ok(Matrix { rows, columns: dimension, start, codes: None });
    }
    let size = cursor.i32("the number of codes")?;
    let size = cursor.count(size.into(), 1, "codes")?;
    let rows = cursor.count(rows, 1, "rows of codes")?;
    let start = cursor.at;
    cursor.take(size, "codes")?;
    let (width, centroids) = read_quantiser(cursor, dimension)?;
    let parts = dimension.div_ceil(width);
    if rows.checked_mul(parts) != Some(size) {
        return Err(format!("expected {rows} rows of {parts} codes in {what}, got {size} codes"));
    }
    let norms = if with_norms {
        let start = cursor.at;
        cursor.take(rows, "lengths of rows")?;
        Some(Norms { start, lengths: read_quantiser(cursor, 1)?.1 })
    } else {
        None
    };
    Ok(Matrix { rows, columns: dimension, start, codes: Some(Codes { width, centroids, norms }) })
}

/// The width of a quantiser's parts, and its centroids.
fn read_quantiser(cursor: &mut Cursor<'_>, dimension: usize) -> Result<(usize, Vec<f32>), String> {
    let what = "a product quantiser's sizes";
    let [columns, parts, width, last] = [cursor.i32(what)?, cursor.i32(what)?, cursor.i32(what)?, cursor.i32(what)?];
    let expected = usize::try_from(width).ok().filter(|&width| width > 0).map(|width| {
        let parts = dimension.div_ceil(width);
        [dimension, parts, width, dimension - (parts - 1) * width]
    });
    let got = [columns, parts, width, last].map(|number| usize::try_from(number).unwrap_or(usize::MAX));
    match expected {
        Some(expected) if expected == got => {
            let centroids = dimension.checked_mul(CENTROIDS).ok_or("too many columns")?;
            Ok((expected[2], cursor.floats(centroids, "a product quantiser's centroids")?))
        }
        _ => Err(format!(
            "expected a product quantiser for {dimension} columns, got {columns} columns in {parts} parts of {width}, the last of {last}"
        )),
    }
}
