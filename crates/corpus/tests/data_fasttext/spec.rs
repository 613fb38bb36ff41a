//! Models by their parts, written out here so that reader and predictor are tested against something that is not they.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use recua_corpus::fasttext::FastText;

pub(super) fn below(rng: &mut ChaCha8Rng, end: usize) -> usize {
    ((u64::from(rng.next_u32()) * end as u64) >> 32) as usize
}

pub(super) fn number(rng: &mut ChaCha8Rng) -> f32 {
    rng.next_u32() as f32 / u32::MAX as f32 * 4.0 - 2.0
}

/// A model by its parts.
#[derive(Clone, Default)]
pub(super) struct Spec {
    pub(super) version: i32,
    pub(super) dim: usize,
    pub(super) words: Vec<Vec<u8>>,
    pub(super) labels: Vec<(String, i64)>,
    pub(super) loss: i32,
    pub(super) word_ngrams: i32,
    pub(super) minn: i32,
    pub(super) maxn: i32,
    pub(super) bucket: i32,
    /// Bucket and row behind the words of the n-grams that a pruned model has.
    pub(super) kept: Option<Vec<(i32, i32)>>,
    pub(super) input: Table,
    pub(super) output: Table,
}

/// A matrix in the file's terms.
#[derive(Clone, Default)]
pub(super) struct Table {
    pub(super) rows: usize,
    pub(super) dense: Vec<f32>,
    /// Width of a part, codes, centroids; codes of the lengths and the lengths.
    pub(super) quantised: Option<(usize, Vec<u8>, Vec<f32>)>,
    pub(super) lengths: Option<(Vec<u8>, Vec<f32>)>,
}

impl Table {
    pub(super) fn random(rng: &mut ChaCha8Rng, rows: usize, dim: usize, width: Option<usize>, lengths: bool) -> Self {
        let mut codes = |count: usize| (0..count).map(|_| rng.next_u32() as u8).collect::<Vec<u8>>();
        let Some(width) = width else {
            return Self { rows, dense: (0..rows * dim).map(|_| number(rng)).collect(), ..Self::default() };
        };
        let (row_codes, length_codes) = (codes(rows * dim.div_ceil(width)), codes(rows));
        let quantised = Some((width, row_codes, (0..dim * 256).map(|_| number(rng)).collect()));
        let lengths = lengths.then(|| (length_codes, (0..256).map(|_| number(rng)).collect()));
        Self { rows, dense: Vec::new(), quantised, lengths }
    }

    /// The numbers of a row: parts of `width` (the last one narrower), each one of 256 centroids, by the length.
    pub(super) fn row(&self, row: usize, dim: usize) -> Vec<f64> {
        let Some((width, codes, centroids)) = &self.quantised else {
            return self.dense[row * dim..(row + 1) * dim].iter().map(|&number| f64::from(number)).collect();
        };
        let length = self.lengths.as_ref().map_or(1.0, |(codes, lengths)| lengths[usize::from(codes[row])]);
        let parts = dim.div_ceil(*width);
        let mut numbers = Vec::new();
        for part in 0..parts {
            let wide = if part + 1 == parts { dim - part * width } else { *width };
            let start = part * 256 * width + usize::from(codes[row * parts + part]) * wide;
            numbers.extend(centroids[start..start + wide].iter().map(|&number| f64::from(number * length)));
        }
        numbers
    }

    pub(super) fn write(&self, to: &mut Vec<u8>, dim: usize) {
        let sizes = [self.rows as i64, dim as i64].map(i64::to_le_bytes).concat();
        let floats = |numbers: &[f32]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();
        let quantiser = |dim: usize, width: usize, centroids: &[f32]| {
            let parts = dim.div_ceil(width);
            let sizes = [dim, parts, width, dim - (parts - 1) * width].map(|size| (size as i32).to_le_bytes()).concat();
            [sizes, floats(centroids)].concat()
        };
        to.push(u8::from(self.quantised.is_some()));
        let Some((width, codes, centroids)) = &self.quantised else {
            to.extend([sizes, floats(&self.dense)].concat());
            return;
        };
        to.push(u8::from(self.lengths.is_some()));
        to.extend(sizes);
        to.extend((codes.len() as i32).to_le_bytes());
        to.extend(codes);
        to.extend(quantiser(dim, *width, centroids));
        if let Some((codes, lengths)) = &self.lengths {
            to.extend(codes);
            to.extend(quantiser(1, 1, lengths));
        }
    }
}

impl Spec {
    pub(super) fn bytes(&self) -> Vec<u8> {
        let dim = self.dim as i32;
        let (grams, chars) = (self.word_ngrams, [self.minn, self.maxn]);
        let header = [793_712_314, self.version, dim, 5, 5, 1, 5, grams, self.loss, 3, self.bucket, chars[0], chars[1], 100];
        let mut bytes = header.map(i32::to_le_bytes).concat();
        bytes.extend(1e-4f64.to_le_bytes());
        let (words, labels) = (self.words.len() as i32, self.labels.len() as i32);
        bytes.extend([words + labels, words, labels].map(i32::to_le_bytes).concat());
        bytes.extend([1000, self.kept.as_ref().map_or(-1, |kept| kept.len() as i64)].map(i64::to_le_bytes).concat());
        let entries = self.words.iter().map(|word| (word.clone(), 1, 0));
        let labels = self.labels.iter().map(|(label, count)| (format!("__label__{label}").into_bytes(), *count, 1));
        for (text, count, kind) in entries.chain(labels) {
            bytes.extend([text, vec![0], count.to_le_bytes().to_vec(), vec![kind]].concat());
        }
        for (bucket, row) in self.kept.iter().flatten() {
            bytes.extend([bucket.to_le_bytes(), row.to_le_bytes()].concat());
        }
        self.input.write(&mut bytes, self.dim);
        self.output.write(&mut bytes, self.dim);
        bytes
    }

    pub(super) fn model(&self) -> FastText {
        FastText::from_bytes(self.bytes(), "spec.bin").unwrap()
    }

    /// Rows of a line by fastText's rules, in their simplest form.
    pub(super) fn rows(&self, line: &str) -> Vec<usize> {
        let hash = |bytes: &[u8]| {
            bytes.iter().fold(2_166_136_261u32, |hash, &byte| (hash ^ i32::from(byte as i8) as u32).wrapping_mul(16_777_619))
        };
        let gram_row = |bucket: u64| match &self.kept {
            None => Some(self.words.len() + bucket as usize),
            Some(kept) => kept.iter().find(|pair| pair.0 as u64 == bucket).map(|pair| self.words.len() + pair.1 as usize),
        };
        let maxn = if self.version == 11 { 0 } else { self.maxn };
        let line = line.split('\n').next().unwrap();
        let spaces = [' ', '\r', '\t', '\u{b}', '\u{c}', '\0'];
        let (mut rows, mut hashes) = (Vec::new(), Vec::new());
        for token in line.split(spaces).filter(|token| !token.is_empty()).chain(["</s>"]) {
            let known = self.words.iter().rposition(|word| word == token.as_bytes());
            if token.starts_with("__label__") && known.is_none() {
                continue;
            }
            rows.extend(known);
            hashes.push(i64::from(hash(token.as_bytes()) as i32));
            if token == "</s>" {
                break;
            }
            let chars: Vec<String> = format!("<{token}>").chars().map(String::from).collect();
            for start in 0..chars.len() {
                for n in 1..=maxn.min((chars.len() - start) as i32) {
                    let alone = n == 1 && (start == 0 || start + 1 == chars.len());
                    if n >= self.minn && !alone {
                        let gram = chars[start..start + n as usize].concat();
                        rows.extend(gram_row(u64::from(hash(gram.as_bytes()) % self.bucket as u32)));
                    }
                }
            }
        }
        for start in 0..hashes.len() {
            let mut gram = hashes[start] as u64;
            for next in hashes.iter().skip(start + 1).take((self.word_ngrams - 1).max(0) as usize) {
                gram = gram.wrapping_mul(116_049_371).wrapping_add(*next as u64);
                rows.extend(gram_row(gram % self.bucket as u64));
            }
        }
        rows
    }

    /// Probabilities of all labels, by definition.
    pub(super) fn probabilities(&self, line: &str) -> Option<Vec<f64>> {
        let rows = self.rows(line);
        let mut hidden = vec![0.0; self.dim];
        for &row in &rows {
            hidden.iter_mut().zip(self.input.row(row, self.dim)).for_each(|(to, number)| *to += number / rows.len() as f64);
        }
        let scores = (0..self.labels.len()).map(|label| {
            self.output.row(label, self.dim).iter().zip(&hidden).map(|(weight, number)| weight * number).sum::<f64>()
        });
        let scores: Vec<f64> = scores.collect();
        let sum: f64 = scores.iter().map(|score| score.exp()).sum();
        let probability = |score: f64| match self.loss {
            3 => score.exp() / sum,
            // The sigmoid, from -8 to 8 in steps of 1/32.
            _ if score.abs() > 8.0 => f64::from(u8::from(score > 0.0)),
            _ => 1.0 / (1.0 + (-(score * 32.0).floor() / 32.0).exp()),
        };
        (!rows.is_empty()).then(|| scores.into_iter().map(|score| probability(score) + 1e-5).collect())
    }
}

/// Something like text: known words, unknown ones of several scripts, labels, all kinds of space.
pub(super) fn random_line(rng: &mut ChaCha8Rng, words: &[&str]) -> String {
    const PIECES: [&str; 16] = [
        "zebra",
        "é",
        "naïve",
        "щука",
        "日本語",
        "👩‍🔬",
        "<",
        ">",
        "a",
        "__label__x",
        "__label__nope",
        "\u{a0}",
        "0",
        "</s>",
        "\u{301}",
        "x</s>",
    ];
    const SPACES: [&str; 10] = [" ", " ", " ", "  ", "\t", "\u{b}", "\u{c}", "\r", "\0", "\n"];
    let mut line = String::new();
    for _ in 0..below(rng, 12) {
        let all = words.len() + PIECES.len();
        let piece = below(rng, all);
        line.push_str(words.get(piece).copied().unwrap_or_else(|| PIECES[piece - words.len()]));
        if below(rng, 8) > 0 {
            let rarely_a_line_feed = SPACES.len() - usize::from(below(rng, 4) > 0);
            line.push_str(SPACES[below(rng, rarely_a_line_feed)]);
        }
    }
    line
}

pub(super) const WORDS: [&str; 6] = ["</s>", "the", "déjà", "щи", "a", "cat"];

/// Models of every kind that can be written: dense or not, with norms or not, odd widths, pruned or not.
pub(super) fn specs() -> Vec<Spec> {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let rng = &mut rng;
    let mut specs = Vec::new();
    for round in 0..48 {
        let dim = 1 + below(rng, 9);
        let width = [None, Some(1), Some(2), Some(3)][round % 4];
        let (minn, maxn) = [(0, 0), (1, 2), (2, 4), (3, 3)][(round / 4) % 4];
        let word_ngrams = 1 + (round / 2 % 3) as i32;
        let bucket = if maxn > 0 || word_ngrams > 1 { 1 + below(rng, 200) as i32 } else { 0 };
        let kept: Option<Vec<(i32, i32)>> = (width.is_some() && bucket > 0 && round % 3 == 0)
            .then(|| (0..bucket).step_by(3).enumerate().map(|(row, bucket)| (bucket, row as i32)).collect());
        let grams = kept.as_ref().map_or(bucket as usize, Vec::len);
        let labels: Vec<(String, i64)> =
            (0..1 + below(rng, 6)).map(|label| (["x", "y", "z", "é", "en", "de"][label].into(), 100 - label as i64)).collect();
        let quantised_output = width.filter(|_| round % 5 == 0);
        specs.push(Spec {
            version: 12 - i32::from(round % 7 == 0),
            dim,
            words: WORDS.iter().skip(usize::from(round % 6 == 0)).map(|word| word.as_bytes().to_vec()).collect(),
            loss: [3, 4, 2][round % 3],
            word_ngrams,
            minn,
            maxn,
            bucket,
            input: Table::random(rng, WORDS.len() + grams, dim, width, round % 8 > 3),
            output: Table::random(rng, labels.len(), dim, quantised_output, round % 10 == 0),
            labels,
            kept,
        });
    }
    specs
}
