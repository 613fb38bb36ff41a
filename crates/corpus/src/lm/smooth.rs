//! The steps of modified Kneser-Ney smoothing, as streams: adjusted counts, normalisation, interpolation.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::spill::{Gram, MAX_TRAIN_ORDER, Run, RunReader, RunWriter, Sorted, Sorter};
use super::train::{BEGIN, END, UNKNOWN};
use crate::error::{Error, Result};
use crate::files::{Atomic, Folder};

/// Marks an n-gram that pruning takes out; the other bits are its count.
const PRUNED: u64 = 1 << 63;

/// Counts of counts of one order (Chen and Goodman's n_1 to n_4), n-grams, and those that stay.
#[derive(Clone, Copy, Default)]
struct OrderCounts {
    of_counts: [u64; 5],
    all: u64,
    kept: u64,
}

impl OrderCounts {
    fn add(&mut self, count: u64, pruned: bool) {
        self.all += 1;
        self.kept += u64::from(!pruned);
        if let Some(n) = self.of_counts.get_mut(count as usize) {
            *n += 1;
        }
    }

    /// Equation 26 of Chen and Goodman, in single precision.
    fn discounts(&self) -> Result<[f32; 3], String> {
        let n = self.of_counts;
        if let Some(j) = (1..4).find(|j| n[*j] == 0) {
            return Err(format!("no n-gram has the adjusted count {j}"));
        }
        let y = n[1] as f32 / (n[1] as f64 + 2.0 * n[2] as f64) as f32;
        let mut discounts = [0.0; 3];
        for j in 1..4 {
            let d = j as f32 - (j + 1) as f32 * y * n[j + 1] as f32 / n[j] as f32;
            if !(0.0..=j as f32).contains(&d) {
                return Err(format!("the discount for the adjusted count {j} would be {d}"));
            }
            discounts[j - 1] = d;
        }
        Ok(discounts)
    }
}

/// Counts of counts of all orders.
pub(super) struct Counts(Vec<OrderCounts>);

impl Counts {
    /// n-grams that stay, by order.
    pub(super) fn kept(&self) -> Vec<u64> {
        self.0.iter().map(|order| order.kept).collect()
    }

    /// Discounts by order, and the orders that have the fallback.
    pub(super) fn discounts(&self, fallback: Option<[f32; 3]>) -> Result<(Vec<[f32; 3]>, Vec<usize>)> {
        let mut fallbacks = Vec::new();
        let mut discounts = Vec::new();
        for (order, counts) in (1..).zip(&self.0) {
            discounts.push(match (counts.discounts(), fallback) {
                (Ok(discounts), _) => discounts,
                (Err(_), Some(discounts)) => {
                    fallbacks.push(order);
                    discounts
                }
                (Err(problem), None) => {
                    let hint = "remove repeated lines from the corpus, give more text, or set discount_fallback";
                    return Err(Error::bad_value("corpus", format!("no discounts for {order}-grams: {problem}"), hint));
                }
            });
        }
        Ok((discounts, fallbacks))
    }
}

/// An n-gram of a lower order while the full n-grams that end in it pass by.
struct Level {
    words: [u32; MAX_TRAIN_ORDER],
    /// Different words before it, or, where it begins with `<s>`, its occurrences.
    adjusted: u64,
    occurrences: u64,
}

/// Where adjusted n-grams go.
struct Adjusted<'a> {
    sorters: Vec<Sorter>,
    counts: Vec<OrderCounts>,
    thresholds: &'a [u64],
}

impl Adjusted<'_> {
    /// Passes on an n-gram that is complete; `counted` goes into the counts of counts.
    fn emit(&mut self, level: &Level, n: usize, counted: u64) -> Result<()> {
        let special = n == 1 && level.words[0] <= END;
        let pruned = level.occurrences <= self.thresholds[n - 1] && !special;
        self.counts[n - 1].add(counted, pruned);
        let mut gram = Gram { words: level.words, value: level.adjusted | if pruned { PRUNED } else { 0 } };
        // Sorted by context: the word before the last one first, the last one last.
        gram.words[..n].rotate_left(1);
        self.sorters[n - 1].push(gram)
    }
}

/// Takes the n-grams of the highest order, sorted by their ends, and gives those of each order with adjusted counts, sorted by
/// context. n-grams that go over the beginning of a line become shorter ones that begin with `<s>`.
pub(super) fn adjust(
    mut full: Sorted,
    folder: &Arc<Folder>,
    order: usize,
    thresholds: &[u64],
    memory: usize,
) -> Result<(Vec<Sorted>, Counts)> {
    let mut out =
        Adjusted { sorters: sorters(folder, "context", order, memory), counts: vec![OrderCounts::default(); order], thresholds };
    for id in [UNKNOWN, BEGIN] {
        let mut words = [0; MAX_TRAIN_ORDER];
        words[0] = id;
        out.emit(&Level { words, adjusted: 0, occurrences: 0 }, 1, 0)?;
    }
    let mut levels: Vec<Level> = Vec::with_capacity(order);
    while let Some(gram) = full.next()? {
        let same = levels.last().map_or(0, |last| {
            let pairs = last.words[..levels.len()].iter().zip(&gram.words);
            pairs.take_while(|(a, b)| a == b).count()
        });
        while levels.len() > same
            && let Some(level) = levels.pop()
        {
            out.emit(&level, levels.len() + 1, level.adjusted)?;
        }
        levels.iter_mut().for_each(|level| level.occurrences += gram.value);
        if let Some(level) = levels.last_mut() {
            level.adjusted += 1;
        }
        loop {
            let n = levels.len() + 1;
            let mut level = Level { words: gram.words, adjusted: gram.value, occurrences: gram.value };
            if n == order {
                out.emit(&level, n, gram.value)?;
                break;
            }
            level.words[n..].fill(0);
            let begins = level.words[n - 1] == BEGIN;
            if !begins {
                level.adjusted = 1;
            }
            levels.push(level);
            if begins {
                break;
            }
        }
    }
    while let Some(level) = levels.pop() {
        // lmplz counts occurrences instead of adjusted counts for these last few n-grams, and so do we.
        out.emit(&level, levels.len() + 1, level.occurrences)?;
    }
    let sorted = out.sorters.into_iter().map(Sorter::finish).collect::<Result<_>>()?;
    Ok((sorted, Counts(out.counts)))
}

/// A sorter for each order; longer n-grams, of which there are more, get more of the memory.
fn sorters(folder: &Arc<Folder>, name: &str, order: usize, memory: usize) -> Vec<Sorter> {
    let parts = order * (order + 1) / 2;
    (1..=order).map(|n| Sorter::new(folder.clone(), &format!("{name}{n}"), n, memory / parts * n, false)).collect()
}

/// A context's n-gram and what it shares with the others of its context.
#[derive(Clone, Copy)]
struct Share {
    prob: f32,
    gamma: f32,
}

impl Share {
    fn pack(self) -> u64 {
        u64::from(self.prob.to_bits()) << 32 | u64::from(self.gamma.to_bits())
    }

    fn unpack(value: u64) -> Self {
        Self { prob: f32::from_bits((value >> 32) as u32), gamma: f32::from_bits(value as u32) }
    }
}

/// Discounted probabilities within each context, and the weight of the lower order there (Chen and Goodman's gamma): the n-grams
/// of each order sorted by their ends, and the weights of the contexts of each order but the highest, sorted likewise.
pub(super) fn normalise(
    by_context: Vec<Sorted>,
    folder: &Arc<Folder>,
    discounts: &[[f32; 3]],
    memory: usize,
) -> Result<(Vec<Sorted>, Vec<Run>)> {
    let mut by_end = Vec::new();
    let mut gammas = Vec::new();
    let sorters = sorters(folder, "end", by_context.len(), memory);
    for (i, ((mut grams, mut sorter), discounts)) in by_context.into_iter().zip(sorters).zip(discounts).enumerate() {
        let n = i + 1;
        let discount = |count: u64| match count {
            0 => 0.0,
            1..=3 => discounts[count as usize - 1],
            _ => discounts[2],
        };
        let mut weights = (n > 1).then(|| RunWriter::create(folder.path().join(format!("gamma{n}")), n - 1)).transpose()?;
        let mut next = grams.next()?;
        // The n-grams of a context differ in the last word, so that they are no more than there are words.
        let mut group: Vec<Gram> = Vec::new();
        while let Some(first) = next {
            group.clear();
            group.push(first);
            next = grams.next()?;
            while let Some(gram) = next
                && gram.words[..i] == first.words[..i]
            {
                group.push(gram);
                next = grams.next()?;
            }
            let (mut total, mut cut, mut of_counts) = (0, 0, [0u64; 3]);
            for gram in &group {
                let count = gram.value & !PRUNED;
                total += count;
                if gram.value & PRUNED != 0 {
                    cut += count;
                } else if count > 0 {
                    of_counts[count.min(3) as usize - 1] += 1;
                }
            }
            let saved: f32 = of_counts.iter().zip(discounts).map(|(n, d)| d * *n as f32).sum();
            let gamma = (saved + cut as f32) / total as f32;
            if let Some(weights) = &mut weights {
                let mut context = Gram { words: [0; MAX_TRAIN_ORDER], value: u64::from(gamma.to_bits()) };
                context.words[..i].copy_from_slice(&first.words[..i]);
                weights.push(&context)?;
            }
            for mut gram in group.iter().copied().filter(|gram| gram.value & PRUNED == 0) {
                let mut share = Share { prob: (gram.value as f32 - discount(gram.value)) / total as f32, gamma };
                if n == 1 && gram.words[0] == BEGIN {
                    // So that its score is 0 where a sentence is scored with it.
                    share = Share { prob: 1.0, gamma: 0.0 };
                }
                gram.value = share.pack();
                gram.words[..n].rotate_right(1);
                sorter.push(gram)?;
            }
        }
        by_end.push(sorter.finish()?);
        gammas.extend(weights.map(RunWriter::finish).transpose()?);
    }
    Ok((by_end, gammas))
}

/// A stream with a look at its next record.
struct Peek<T> {
    stream: T,
    head: Option<Gram>,
}

trait Stream {
    fn advance(&mut self) -> Result<Option<Gram>>;
}

impl Stream for Sorted {
    fn advance(&mut self) -> Result<Option<Gram>> {
        self.next()
    }
}

impl Stream for RunReader {
    fn advance(&mut self) -> Result<Option<Gram>> {
        self.next()
    }
}

impl<T: Stream> Peek<T> {
    fn new(mut stream: T) -> Result<Self> {
        let head = stream.advance()?;
        Ok(Self { stream, head })
    }

    fn next(&mut self) -> Result<Option<Gram>> {
        let next = self.stream.advance()?;
        Ok(std::mem::replace(&mut self.head, next))
    }
}

/// Adds the lower orders' shares and writes the ARPA file. All orders are walked at once, each n-gram right after its ending.
pub(super) fn interpolate(
    by_end: Vec<Sorted>,
    gammas: Vec<Run>,
    folder: &Arc<Folder>,
    words: &[&str],
    counts: &[u64],
    arpa: &Path,
) -> Result<()> {
    let order = by_end.len();
    let mut grams = by_end.into_iter().map(Peek::new).collect::<Result<Vec<_>>>()?;
    let mut gammas = gammas.into_iter().map(|run| run.read(1 << 16).and_then(Peek::new)).collect::<Result<Vec<_>>>()?;
    let mut sections =
        (1..=order).map(|n| Section::create(folder.path().join(format!("section{n}")))).collect::<Result<Vec<_>>>()?;
    let mut current = [0; MAX_TRAIN_ORDER];
    let mut depth = 0;
    // probs[n]: of the last n words. Everything but `<s>` has the same share of what the unigrams leave.
    let mut probs = [1.0 / (counts[0] - 1) as f32; MAX_TRAIN_ORDER + 1];
    loop {
        let extends =
            |n: &usize| grams.get(*n).and_then(|stream| stream.head).is_some_and(|head| head.words[..*n] == current[..*n]);
        let Some(n) = (0..=depth).rev().find(extends) else { break };
        let Some(gram) = grams[n].next()? else { break };
        current = gram.words;
        depth = n + 1;
        let share = Share::unpack(gram.value);
        let prob = share.prob + share.gamma * probs[n];
        probs[n + 1] = prob;
        let mut backoff = 1.0;
        if let Some(stream) = gammas.get_mut(n)
            && !matches!(gram.words[0], UNKNOWN | END)
        {
            // Contexts whose n-gram was pruned are passed over.
            while stream.head.is_some_and(|head| head.words < gram.words) {
                stream.next()?;
            }
            if let Some(head) = stream.head.filter(|head| head.words == gram.words) {
                backoff = f32::from_bits(head.value as u32);
                stream.next()?;
            }
        }
        sections[n].line(prob.log10().min(0.0), &gram.words[..=n], words, (n + 1 < order).then(|| backoff.log10()))?;
    }
    assemble(sections, counts, arpa)
}

/// The lines of an order.
struct Section {
    file: BufWriter<File>,
    path: PathBuf,
}

impl Section {
    fn create(path: PathBuf) -> Result<Self> {
        let file = File::create(&path).map_err(Error::io("create", &path))?;
        Ok(Self { file: BufWriter::with_capacity(1 << 16, file), path })
    }

    /// Writes an n-gram whose last word comes first.
    fn line(&mut self, log10: f32, ids: &[u32], words: &[&str], backoff: Option<f32>) -> Result<()> {
        let file = &mut self.file;
        let mut write = || {
            write!(file, "{log10}")?;
            for (i, id) in ids.iter().rev().enumerate() {
                let word = words.get(*id as usize).copied().unwrap_or_default();
                write!(file, "{}{word}", if i == 0 { '\t' } else { ' ' })?;
            }
            match backoff {
                Some(backoff) => writeln!(file, "\t{}", backoff + 0.0),
                None => writeln!(file),
            }
        };
        write().map_err(Error::io("write", &self.path))
    }
}

/// Puts the file together, under a temporary name until it is whole.
fn assemble(sections: Vec<Section>, counts: &[u64], arpa: &Path) -> Result<()> {
    let mut out = Atomic::create(arpa)?;
    let write = |out: &mut Atomic| -> io::Result<()> {
        writeln!(out, "\\data\\")?;
        for (n, count) in (1..).zip(counts) {
            writeln!(out, "ngram {n}={count}")?;
        }
        for (n, section) in (1..).zip(sections) {
            write!(out, "\n\\{n}-grams:\n")?;
            section.file.into_inner().map_err(io::IntoInnerError::into_error)?;
            io::copy(&mut File::open(&section.path)?, out)?;
            fs::remove_file(&section.path)?;
        }
        writeln!(out, "\n\\end\\")
    };
    write(&mut out).map_err(Error::io("write", arpa))?;
    out.commit()
}
