//! What a text model has to beat: a strong general compressor and a byte n-gram model.

use std::io;

use liblzma::read::XzEncoder;

use crate::error::{Error, Result};

/// Bits per byte of `bytes` as one xz stream at preset 9, container included. Takes about 700 MB of memory.
///
/// # Errors
/// There is nothing to compress, or liblzma has no memory.
pub fn xz_bits_per_byte(bytes: &[u8]) -> Result<f64> {
    if bytes.is_empty() {
        return Err(Error::bad_value("held-out text", "expected at least one byte, got none", "hold out more text"));
    }
    let compressed = io::copy(&mut XzEncoder::new(bytes, 9), &mut io::sink()).map_err(Error::io("compress", "held-out text"))?;
    Ok(compressed as f64 * 8.0 / bytes.len() as f64)
}

/// Counts of a byte after the two, one and zero bytes before it. Counts stop at `u32::MAX`.
#[derive(Debug, Clone)]
struct Counts {
    /// `[context, next]`; the context is the bytes before as one big-endian number.
    rows: Vec<u32>,
}

impl Counts {
    fn new(order: u32) -> Self {
        Self { rows: vec![0; 256usize.pow(order + 1)] }
    }

    fn add(&mut self, context: usize, next: u8) {
        let count = &mut self.rows[context * 256 + usize::from(next)];
        *count = count.saturating_add(1);
    }
}

/// One order of the model: counts, and what smoothing needs of each context.
#[derive(Debug, Clone)]
struct Level {
    counts: Counts,
    /// `(sum of the counts, how many bytes were seen at all)` by context.
    totals: Vec<(u64, u32)>,
    discount: f64,
}

impl Level {
    fn new(counts: Counts) -> Self {
        let totals = counts.rows.chunks_exact(256).map(|row| {
            let sum = row.iter().map(|&count| u64::from(count)).sum();
            (sum, row.iter().map(|&count| u32::from(count > 0)).sum())
        });
        let totals = totals.collect();
        let [once, twice] = [1, 2].map(|n| counts.rows.iter().filter(|&&count| count == n).count() as f64);
        // Ney, Essen and Kneser (1994); where no count is 1 or none is 2 the estimate is void.
        let discount = if once > 0.0 && twice > 0.0 { once / (once + 2.0 * twice) } else { 0.5 };
        Self { counts, totals, discount }
    }

    /// The probability of `next`, given what the order below says.
    fn prob(&self, context: usize, next: u8, below: f64) -> f64 {
        let (sum, kinds) = self.totals[context];
        if sum == 0 {
            return below;
        }
        let count = f64::from(self.counts.rows[context * 256 + usize::from(next)]);
        ((count - self.discount).max(0.0) + self.discount * f64::from(kinds) * below) / sum as f64
    }
}

/// Counts for an [`Ngram`]: 64 MiB, filled a document at a time.
#[derive(Debug, Clone)]
pub struct NgramCounts([Counts; 3]);

impl Default for NgramCounts {
    fn default() -> Self {
        Self([Counts::new(0), Counts::new(1), Counts::new(2)])
    }
}

impl NgramCounts {
    /// Counts a document; contexts do not reach into the one before.
    pub fn add(&mut self, document: &[u8]) {
        for (index, &next) in document.iter().enumerate() {
            for (order, counts) in self.0.iter_mut().enumerate().take(index + 1) {
                counts.add(context(&document[index - order..index]), next);
            }
        }
    }

    /// The model of these counts.
    pub fn fit(self) -> Ngram {
        Ngram { levels: self.0.map(Level::new) }
    }
}

/// An order-2 byte model: absolute discounting, interpolated with order 1, order 0 and the uniform distribution, with the
/// discount of each order estimated from its counts. The probabilities of the 256 bytes sum to one in every context.
#[derive(Debug, Clone)]
pub struct Ngram {
    levels: [Level; 3],
}

impl Ngram {
    /// The probability of `next` after `before`, of which at most the last two bytes count.
    pub fn prob(&self, before: &[u8], next: u8) -> f64 {
        let orders = self.levels.iter().enumerate().take(before.len() + 1);
        orders.fold(1.0 / 256.0, |below, (order, level)| level.prob(context(&before[before.len() - order..]), next, below))
    }

    /// The information of a document in bits; divide the sum over documents by the sum of their bytes.
    pub fn bits(&self, document: &[u8]) -> f64 {
        let bits = |(index, &next): (usize, &u8)| -self.prob(&document[index.saturating_sub(2)..index], next).log2();
        document.iter().enumerate().map(bits).sum()
    }
}

fn context(before: &[u8]) -> usize {
    before.iter().fold(0, |number, &byte| number << 8 | usize::from(byte))
}
