//! Expectation maximisation over the ways to cut words into pieces.

use rayon::iter::{IntoParallelIterator, IntoParallelRefIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;

use super::unigram::UnigramConfig;

/// Rounds of expectation maximisation between two removals of pieces.
const ROUNDS: usize = 2;
/// What a removal leaves at least, as a share; and what it stops at, in vocabularies. SentencePiece's values.
const SHRINK: f64 = 0.75;
const STOP: f64 = 1.1;
/// Pieces that are expected less often go.
const MIN_EXPECTED: f64 = 0.5;
/// Parts that work is cut into, whatever the number of threads, so that sums of floats come out the same.
const PARTS: usize = 16;

/// Words as characters, one after another, and how often each occurs.
pub(super) struct Words {
    chars: Vec<char>,
    ends: Vec<usize>,
    counts: Vec<u64>,
}

impl Words {
    /// From words in a fixed order.
    pub(super) fn new(words: &[(&str, u64)]) -> Self {
        let mut this = Self { chars: Vec::new(), ends: Vec::new(), counts: Vec::new() };
        for (word, count) in words {
            this.chars.extend(word.chars());
            this.ends.push(this.chars.len());
            this.counts.push(*count);
        }
        this
    }

    fn get(&self, i: usize) -> (&[char], f64) {
        let start = if i == 0 { 0 } else { self.ends[i - 1] };
        (&self.chars[start..self.ends[i]], self.counts[i] as f64)
    }

    /// Ranges of words with about as many characters each.
    fn parts(&self) -> Vec<std::ops::Range<usize>> {
        let cut = |part: usize| self.ends.partition_point(|end| *end <= self.chars.len() / PARTS * part);
        (0..PARTS).map(|part| cut(part)..if part + 1 == PARTS { self.ends.len() } else { cut(part + 1) }).collect()
    }
}

type Pieces = Vec<(Vec<char>, f64)>;

/// Learns at most `room` pieces with their log probabilities, the most probable first. All of the alphabet is among them.
pub(super) fn train(words: &Words, alphabet: &[char], config: &UnigramConfig, room: usize) -> Vec<(String, f32)> {
    let mut pieces = seeds(words, alphabet, config);
    let wanted = (room as f64 * STOP) as usize;
    loop {
        for _ in 0..ROUNDS {
            pieces = maximise(words, pieces);
        }
        if pieces.len() <= wanted {
            break;
        }
        let before = pieces.len();
        pieces = prune(words, pieces, wanted);
        if pieces.len() == before {
            break; // nothing more can go
        }
    }
    // Characters first: they must be there, however improbable they have become.
    pieces.sort_by(|(a, x), (b, y)| (a.len() > 1).cmp(&(b.len() > 1)).then(y.total_cmp(x)).then_with(|| a.cmp(b)));
    pieces.truncate(room);
    pieces.sort_by(|(a, x), (b, y)| y.total_cmp(x).then_with(|| a.cmp(b)));
    pieces.into_iter().map(|(piece, score)| (piece.into_iter().collect(), score as f32)).collect()
}

/// The first pieces: all characters, and the substrings of words that cover most of the text (occurrences times length), among
/// those that no longer substring replaces everywhere.
fn seeds(words: &Words, alphabet: &[char], config: &UnigramConfig) -> Pieces {
    let max = config.max_piece_chars;
    // Every place in a word, sorted by what begins there.
    let mut places: Vec<(u32, u8)> = Vec::with_capacity(words.chars.len());
    for i in 0..words.ends.len() {
        places.extend((0..words.get(i).0.len()).map(|at| (i as u32, at as u8)));
    }
    let text = |place: &(u32, u8)| {
        let rest = &words.get(place.0 as usize).0[usize::from(place.1)..];
        &rest[..rest.len().min(max)]
    };
    places.par_sort_unstable_by(|a, b| text(a).cmp(text(b)).then(a.cmp(b)));
    let mut found: Vec<(u64, &[char])> = Vec::new();
    let mut of_chars: std::collections::HashMap<char, u64> = alphabet.iter().map(|c| (*c, 0)).collect();
    // Open substrings that the places so far begin with: their length and occurrences.
    let mut open: Vec<(usize, u64)> = Vec::new();
    for (i, place) in places.iter().enumerate() {
        let here = text(place);
        let count = words.counts[place.0 as usize];
        if let Some(n) = here.first().and_then(|c| of_chars.get_mut(c)) {
            *n += count;
        }
        let next = places.get(i + 1).map_or(&[][..], text);
        let common = here.iter().zip(next).take_while(|(a, b)| a == b).count();
        // What ends here: the whole rest of the word, or a substring that goes on differently in the next place.
        let mut carried = count;
        let mut len = here.len();
        loop {
            match open.last_mut() {
                Some((open_len, occurrences)) if *open_len == len => {
                    carried += *occurrences;
                    open.pop();
                }
                _ => {}
            }
            if len <= common {
                break;
            }
            if len > 1 && carried > 1 {
                found.push((carried * len as u64, &here[..len]));
            }
            len = open.last().map_or(0, |(len, _)| *len).max(common);
        }
        if len > 0 {
            open.push((len, carried));
        }
    }
    let room = config.seed_size.saturating_sub(alphabet.len());
    found.par_sort_unstable_by(|(x, a), (y, b)| y.cmp(x).then(a.cmp(b)));
    found.truncate(room);
    let singles = alphabet.iter().map(|c| (vec![*c], of_chars.get(c).copied().unwrap_or(0).max(1) as f64));
    let mut pieces: Pieces = singles.chain(found.iter().map(|(score, text)| (text.to_vec(), *score as f64))).collect();
    let total: f64 = pieces.iter().map(|(_, score)| score).sum();
    pieces.iter_mut().for_each(|(_, score)| *score = score.ln() - total.ln());
    pieces.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    pieces
}

/// All pieces by their characters; the children of a node lie next to each other.
struct Trie {
    labels: Vec<char>,
    /// Where the children begin; those of the next node begin where they end.
    children: Vec<u32>,
    ids: Vec<u32>,
}

const NO_PIECE: u32 = u32::MAX;

impl Trie {
    /// From sorted pieces.
    fn new(pieces: &Pieces) -> Self {
        let mut this = Self { labels: vec!['\0'], children: Vec::new(), ids: vec![NO_PIECE] };
        let mut level = vec![(0..pieces.len(), 0)];
        let mut at = 0;
        while at < level.len() {
            let (range, depth): (std::ops::Range<usize>, usize) = level[at].clone();
            at += 1;
            this.children.push(this.labels.len() as u32);
            let mut begin = range.start;
            while begin < range.end {
                let Some(label) = pieces[begin].0.get(depth).copied() else {
                    begin += 1; // the piece that ends in this node
                    continue;
                };
                let same = pieces[begin..range.end].partition_point(|(piece, _)| piece.get(depth) <= Some(&label));
                let ends = pieces[begin].0.len() == depth + 1;
                this.labels.push(label);
                this.ids.push(if ends { begin as u32 } else { NO_PIECE });
                level.push((begin..begin + same, depth + 1));
                begin += same;
            }
        }
        this.children.push(this.labels.len() as u32);
        this
    }

    /// Every piece that `text` begins with, shortest first: its length and its id.
    fn prefixes(&self, text: &[char]) -> impl Iterator<Item = (usize, u32)> {
        let walk = text.iter().scan(0usize, |node, c| {
            let (begin, end) = (self.children[*node] as usize, self.children[*node + 1] as usize);
            *node = begin + self.labels[begin..end].binary_search(c).ok()?;
            Some(self.ids[*node])
        });
        (1..).zip(walk).filter(|(_, id)| *id != NO_PIECE)
    }
}

/// One round: how often each piece is expected over all cuts of the words, and the scores that follow from it, with the sparse
/// prior of a Dirichlet process (digamma), as SentencePiece has it.
fn maximise(words: &Words, pieces: Pieces) -> Pieces {
    let trie = Trie::new(&pieces);
    let probs: Vec<f64> = pieces.iter().map(|(_, score)| score.exp()).collect();
    let sums: Vec<Vec<f64>> = words.parts().into_par_iter().map(|range| expect(words, range, &trie, &probs)).collect();
    let mut expected = vec![0.0; pieces.len()];
    for sum in sums {
        expected.iter_mut().zip(sum).for_each(|(a, b)| *a += b);
    }
    let kept = pieces.into_iter().zip(expected).filter(|((piece, _), n)| piece.len() == 1 || *n >= MIN_EXPECTED);
    let mut kept: Pieces = kept.map(|((piece, _), n)| (piece, n.max(MIN_EXPECTED))).collect();
    let total = digamma(kept.iter().map(|(_, n)| n).sum());
    kept.iter_mut().for_each(|(_, n)| *n = digamma(*n) - total);
    kept
}

/// Forward and backward over the words of a range.
fn expect(words: &Words, range: std::ops::Range<usize>, trie: &Trie, probs: &[f64]) -> Vec<f64> {
    let mut expected = vec![0.0; probs.len()];
    let mut edges: Vec<(usize, usize, u32)> = Vec::new();
    let (mut forward, mut backward) = (Vec::new(), Vec::new());
    for i in range {
        let (word, count) = words.get(i);
        let n = word.len();
        edges.clear();
        for start in 0..n {
            edges.extend(trie.prefixes(&word[start..]).map(|(len, id)| (start, start + len, id)));
        }
        for table in [&mut forward, &mut backward] {
            table.clear();
            table.resize(n + 1, 0.0f64);
        }
        (forward[0], backward[n]) = (1.0, 1.0);
        for (start, end, id) in &edges {
            forward[*end] += forward[*start] * probs[*id as usize];
        }
        for (start, end, id) in edges.iter().rev() {
            backward[*start] += backward[*end] * probs[*id as usize];
        }
        if forward[n] > 0.0 {
            let scale = count / forward[n];
            for (start, end, id) in &edges {
                expected[*id as usize] += forward[*start] * probs[*id as usize] * backward[*end] * scale;
            }
        }
    }
    expected
}

/// The best cut of a word, `without` one of the pieces: ids from the last piece to the first.
fn viterbi(word: &[char], trie: &Trie, pieces: &Pieces, without: u32, best: &mut Vec<(f64, usize, u32)>) -> Vec<u32> {
    best.clear();
    best.resize(word.len() + 1, (f64::NEG_INFINITY, 0, NO_PIECE));
    best[0].0 = 0.0;
    for start in 0..word.len() {
        let so_far = best[start].0;
        for (len, id) in trie.prefixes(&word[start..]) {
            let score = so_far + pieces[id as usize].1;
            if id != without && score > best[start + len].0 {
                best[start + len] = (score, start, id);
            }
        }
    }
    let mut path = Vec::new();
    let mut end = word.len();
    while end > 0 && best[end].2 != NO_PIECE {
        path.push(best[end].2);
        end = best[end].1;
    }
    path
}

/// Removes the pieces that are missed least: whose occurrences cost little when they are cut the next best way.
fn prune(words: &Words, pieces: Pieces, wanted: usize) -> Pieces {
    let trie = Trie::new(&pieces);
    let parts: Vec<Vec<f64>> = (words.parts().into_par_iter())
        .map(|range| {
            let (mut counts, mut best) = (vec![0.0; pieces.len()], Vec::new());
            for i in range {
                let (word, count) = words.get(i);
                for id in viterbi(word, &trie, &pieces, NO_PIECE, &mut best) {
                    counts[id as usize] += count;
                }
            }
            counts
        })
        .collect();
    let mut counts = vec![0.0; pieces.len()];
    for part in parts {
        counts.iter_mut().zip(part).for_each(|(a, b)| *a += b);
    }
    let total: f64 = counts.iter().sum();
    let loss = |id: usize| {
        let (piece, score) = &pieces[id];
        if piece.len() == 1 {
            return f64::INFINITY;
        }
        let mut best = Vec::new();
        let instead = viterbi(piece, &trie, &pieces, id as u32, &mut best);
        let count = counts[id];
        if count == 0.0 {
            // In no best cut: these go before all others, the least probable first.
            return *score;
        }
        if instead.is_empty() || best[piece.len()].0 >= *score {
            return f64::INFINITY; // it occurs although its parts are more probable: as good as nothing is gained
        }
        let new_total = (total + count * (instead.len() as f64 - 1.0)).ln();
        let after: f64 = instead.iter().map(|other| (counts[*other as usize] + count).ln() - new_total).sum();
        count * (count.ln() - total.ln() - after)
    };
    let ids: Vec<usize> = (0..pieces.len()).collect();
    let mut losses: Vec<(f64, usize)> = ids.par_iter().map(|id| (loss(*id), *id)).collect();
    losses.par_sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let keep = wanted.max((pieces.len() as f64 * SHRINK) as usize);
    let mut kept = vec![false; pieces.len()];
    for (i, (loss, id)) in losses.into_iter().enumerate() {
        kept[id] = loss == f64::INFINITY || i < keep;
    }
    pieces.into_iter().zip(kept).filter(|(_, keep)| *keep).map(|(piece, _)| piece).collect()
}

/// The derivative of ln gamma: shifted up by its recurrence, then its asymptotic series.
fn digamma(mut x: f64) -> f64 {
    let mut shift = 0.0;
    while x < 7.0 {
        shift -= 1.0 / x;
        x += 1.0;
    }
    let square = 1.0 / (x * x);
    shift + x.ln() - 0.5 / x - square * (1.0 / 12.0 - square * (1.0 / 120.0 - square * (1.0 / 252.0 - square / 240.0)))
}
