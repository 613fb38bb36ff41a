//! fastText models: the published language model against its reference, predictions against their definition, training,
//! and files that are not models.

use std::{
    cell::RefCell,
    collections::HashMap,
    env, fs,
    path::{Path, PathBuf},
};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use recua::{
    Error, Result,
    data::fasttext::{
        ClassDocuments, Example, Examples, FastText, LabelledLines, Lid, Loss, Prediction, Texts, TrainOptions, Trained,
        rank_labels, train,
    },
};
use serde_json::Value;

/// The folder of samples, or a word on why there is no test.
fn samples() -> Option<PathBuf> {
    let folder = env::var_os("RECUA_DATA").map(PathBuf::from);
    if folder.is_none() {
        println!("left out: RECUA_DATA is not set");
    }
    folder
}

fn below(rng: &mut ChaCha8Rng, end: usize) -> usize {
    ((u64::from(rng.next_u32()) * end as u64) >> 32) as usize
}

fn number(rng: &mut ChaCha8Rng) -> f32 {
    rng.next_u32() as f32 / u32::MAX as f32 * 4.0 - 2.0
}

/// A model by its parts, written out here so that reader and predictor are tested against something that is not they.
#[derive(Clone, Default)]
struct Spec {
    version: i32,
    dim: usize,
    words: Vec<Vec<u8>>,
    labels: Vec<(String, i64)>,
    loss: i32,
    word_ngrams: i32,
    minn: i32,
    maxn: i32,
    bucket: i32,
    /// Bucket and row behind the words of the n-grams that a pruned model has.
    kept: Option<Vec<(i32, i32)>>,
    input: Table,
    output: Table,
}

/// A matrix in the file's terms.
#[derive(Clone, Default)]
struct Table {
    rows: usize,
    dense: Vec<f32>,
    /// Width of a part, codes, centroids; codes of the lengths and the lengths.
    quantised: Option<(usize, Vec<u8>, Vec<f32>)>,
    lengths: Option<(Vec<u8>, Vec<f32>)>,
}

impl Table {
    fn random(rng: &mut ChaCha8Rng, rows: usize, dim: usize, width: Option<usize>, lengths: bool) -> Self {
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
    fn row(&self, row: usize, dim: usize) -> Vec<f64> {
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

    fn write(&self, to: &mut Vec<u8>, dim: usize) {
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
    fn bytes(&self) -> Vec<u8> {
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

    fn model(&self) -> FastText {
        FastText::from_bytes(self.bytes(), "spec.bin").unwrap()
    }

    /// Rows of a line by fastText's rules, in their simplest form.
    fn rows(&self, line: &str) -> Vec<usize> {
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
    fn probabilities(&self, line: &str) -> Option<Vec<f64>> {
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
fn random_line(rng: &mut ChaCha8Rng, words: &[&str]) -> String {
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

const WORDS: [&str; 6] = ["</s>", "the", "déjà", "щи", "a", "cat"];

/// Models of every kind that can be written: dense or not, with norms or not, odd widths, pruned or not.
fn specs() -> Vec<Spec> {
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

#[test]
fn predictions_are_what_the_definition_says() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let (mut compared, mut steps) = (0, 0);
    for (number, spec) in specs().iter().enumerate() {
        let model = spec.model();
        assert_eq!(model.labels(), spec.labels.iter().map(|(label, _)| label.clone()).collect::<Vec<_>>());
        assert_eq!((model.words(), model.dimension()), (spec.words.len(), spec.dim));
        let mut predictor = model.predictor();
        for _ in 0..100 {
            let line = random_line(&mut rng, &WORDS);
            let found = predictor.predict(&line, usize::MAX, 0.0);
            assert!(found.is_sorted_by(|a, b| a.probability >= b.probability), "{number}: {line:?}: {found:?}");
            let Some(expected) = spec.probabilities(&line) else {
                assert!(found.is_empty(), "{number}: {line:?}: {found:?}");
                continue;
            };
            assert_eq!(found.len(), expected.len(), "{number}: {line:?}");
            for ((label, _), expected) in spec.labels.iter().zip(expected) {
                let got = found.iter().find(|found| found.label == label).unwrap().probability;
                let apart = (f64::from(got) - expected).abs();
                // Where rounding crosses a step of the sigmoid's table it is one step off, at most 1/128.
                assert!(apart < 2e-5 || spec.loss != 3 && apart < 1.0 / 128.0, "{number}: {line:?}: {label} {got} {expected}");
                steps += usize::from(apart >= 2e-5);
                compared += 1;
            }
        }
    }
    assert!(compared > 10_000 && steps * 1000 < compared, "{compared} compared, {steps} a step off");
}

#[test]
fn the_best_are_the_first_of_all() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for (number, mut spec) in specs().into_iter().enumerate() {
        if number % 2 == 0 {
            spec.loss = 1;
        }
        let model = spec.model();
        for _ in 0..30 {
            let line = random_line(&mut rng, &WORDS);
            let all: Vec<f32> = model.predict(&line, 100, 0.0).iter().map(|found| found.probability).collect();
            if spec.loss == 1 && !all.is_empty() {
                // What the tree leaves out has less than its threshold, 1e-5; each level adds 1e-5.
                let sum: f32 = all.iter().sum();
                assert!((sum - 1.0).abs() < 1e-3, "{number}: {line:?}: {all:?}");
            }
            for k in 0..4 {
                let best: Vec<f32> = model.predict(&line, k, 0.0).iter().map(|found| found.probability).collect();
                assert_eq!(best, all[..k.min(all.len())], "{number}: {line:?}");
            }
            for threshold in [0.2, 0.5] {
                let best: Vec<f32> = model.predict(&line, 100, threshold).iter().map(|found| found.probability).collect();
                // 1e-5 is added after the comparison, or for a tree also before.
                let near = |p: f32| (p - threshold).abs() < 5e-5;
                let expected: Vec<f32> = all.iter().copied().filter(|&p| p >= threshold || near(p)).collect();
                assert!(best.len() <= expected.len() && expected[best.len()..].iter().all(|&p| near(p)), "{best:?} {expected:?}");
            }
        }
    }
}

#[test]
fn the_published_language_model_agrees_with_its_reference() {
    let Some(folder) = samples() else { return };
    let oracle = folder.join("../golden/oracles/fasttext.json");
    let Ok(oracle) = fs::read(&oracle) else {
        return println!("left out: no {}", oracle.display());
    };
    let oracle: Value = serde_json::from_slice(&oracle).unwrap();
    let model = FastText::open(folder.join("models/lid.176.ftz")).unwrap();
    assert_eq!((model.labels().len(), model.words(), model.dimension()), (176, 7235, 16));
    assert_eq!((model.loss(), model.is_quantised()), (Loss::HierarchicalSoftmax, true));
    let mut predictor = model.predictor();
    let rows = oracle["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 260);
    for row in rows {
        let text = row["text"].as_str().unwrap();
        let found = rank_labels(&mut predictor, text, 3);
        assert_eq!(serde_json::to_value(&found.labels).unwrap(), row["labels"], "{text}");
        for (found, expected) in found.probs.iter().zip(row["probs"].as_array().unwrap()) {
            assert!((f64::from(*found) - expected.as_f64().unwrap()).abs() < 1e-4, "{text}: {found} {expected}");
        }
    }
    let lid = Lid::new(model);
    let mut identifier = lid.identifier();
    let language = identifier.confident("Es war einmal ein kleines Mädchen,\ndas hatte weder Vater noch Mutter mehr.").unwrap();
    assert_eq!(language.label, "de");
    assert_eq!(identifier.identify(""), None);
}

/// Of three labels the first one gets `probability` for the word `a`.
fn with_probability(probability: f64) -> FastText {
    let score = (2.0 * probability / (1.0 - probability)).ln() as f32;
    let dense = |rows: usize, dense: Vec<f32>| Table { rows, dense, ..Table::default() };
    let spec = Spec {
        version: 12,
        dim: 1,
        words: vec![b"a".to_vec(), b"ab".to_vec()],
        labels: ["x", "y", "z"].map(|label| (label.to_owned(), 1)).to_vec(),
        loss: 3,
        word_ngrams: 1,
        input: dense(2, vec![1.0, -1.0]),
        output: dense(3, vec![score, 0.0, 0.0]),
        ..Spec::default()
    };
    spec.model()
}

#[test]
fn languages_are_rounded_and_then_compared() {
    for (probability, score) in
        [(0.4949, None), (0.4951, Some(0.5)), (0.5049, Some(0.5)), (0.5051, Some(0.51)), (0.999, Some(1.0))]
    {
        let lid = Lid::new(with_probability(probability));
        let found = lid.identifier().confident("a");
        assert_eq!(found.map(|language| (language.label, language.score)), score.map(|score| ("x", score)), "{probability}");
    }
    let lid = Lid::new(with_probability(0.4949)).with_threshold(0.49);
    let mut identifier = lid.identifier();
    assert_eq!(identifier.confident("a").unwrap().score, 0.49);
    // Nothing known: no language. Line feeds are deleted, so that these are one word, for which the first label is not it.
    assert_eq!(identifier.identify("b"), None);
    assert_ne!(identifier.identify("a\nb").unwrap().label, "x");
    assert_eq!(identifier.identify("a\n").unwrap().label, "x");
    assert_eq!(identifier.identify("\n"), None);
}

#[test]
fn labels_as_json() {
    let model = with_probability(0.9);
    let found = rank_labels(&mut model.predictor(), "a\n", 2);
    let json = serde_json::to_value(&found).unwrap();
    // Of the two equal ones fastText's heap keeps the later.
    assert_eq!(json["labels"], serde_json::json!(["x", "z"]));
    assert!((json["probs"][0].as_f64().unwrap() - 0.900_01).abs() < 1e-6, "{json}");
    let nothing = serde_json::to_string(&rank_labels(&mut model.predictor(), "", 2)).unwrap();
    assert_eq!(nothing, r#"{"labels":[],"probs":[]}"#);
}

#[test]
fn a_document_is_one_line_of_joined_lines() {
    let model = with_probability(0.9);
    let mut predictor = model.predictor();
    assert!((predictor.probability("b\na\nb", "x").unwrap() - 0.9).abs() < 1e-4);
    assert_eq!(predictor.probability("a", "w"), None);
    assert_eq!(predictor.probability("b", "x"), None);
    fn shared<T: Send + Sync>(_: &T) {}
    shared(&model);
}

/// Examples in memory.
struct Lines(Vec<String>);

impl Examples for Lines {
    fn visit(&self, take: &mut dyn FnMut(Example<'_>) -> Result<()>) -> Result<()> {
        self.0.iter().try_for_each(|text| take(Example { label: None, text }))
    }
}

/// Lines of four kinds of words, each with the label of its kind.
fn lines(count: usize, seed: u64) -> Lines {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let line = |_| {
        let kind = below(&mut rng, 4);
        let words: Vec<String> = (0..3 + below(&mut rng, 8))
            .map(|_| {
                let kind = if below(&mut rng, 3) == 0 { 4 } else { kind };
                format!("{}{}", ["ka", "lo", "mi", "né", "zz"][kind], below(&mut rng, 20))
            })
            .collect();
        format!("__label__{} {}", ["one", "two", "three", "four"][kind], words.join(" "))
    };
    Lines((0..count).map(line).collect())
}

fn small(loss: Loss) -> TrainOptions {
    TrainOptions { dim: 6, loss, bucket: 50, ..TrainOptions::default() }
}

fn trained(options: &TrainOptions, examples: &dyn Examples) -> Trained {
    train(options, examples, &mut |_, _| {}).unwrap()
}

fn accuracy(model: &FastText, lines: &Lines) -> f64 {
    let mut predictor = model.predictor();
    let right = lines.0.iter().filter(|line| {
        let (label, text) = line.split_once(' ').unwrap();
        predictor.predict(text, 1, 0.0).first().is_some_and(|found| label.ends_with(found.label))
    });
    right.count() as f64 / lines.0.len() as f64
}

const LOSSES: [Loss; 4] = [Loss::Softmax, Loss::HierarchicalSoftmax, Loss::NegativeSampling, Loss::OneVsAll];

#[test]
fn every_loss_learns() {
    let (examples, held_out) = (lines(2000, 1), lines(500, 2));
    for loss in LOSSES {
        for (word_ngrams, maxn) in [(1, 0), (2, 0), (1, 3)] {
            let options = TrainOptions { word_ngrams, maxn, minn: maxn.min(1), lr: 0.5, ..small(loss) };
            let trained = trained(&options, &examples);
            let summary = trained.summary;
            assert_eq!((summary.labels, summary.examples), (4, 2000));
            assert!(summary.loss < 0.7, "{loss:?} {word_ngrams} {maxn}: {summary:?}");
            let accuracy = accuracy(&trained.into_model().unwrap(), &held_out);
            assert!(accuracy > 0.95, "{loss:?} {word_ngrams} {maxn}: {accuracy}");
        }
    }
}

#[test]
fn training_is_repeatable_and_what_is_saved_is_what_is_used() {
    let examples = lines(300, 3);
    for loss in LOSSES {
        let options = TrainOptions { word_ngrams: 2, ..small(loss) };
        let first = trained(&options, &examples);
        assert_eq!(first.to_bytes(), trained(&options, &examples).to_bytes(), "{loss:?}");
        assert_ne!(first.to_bytes(), trained(&TrainOptions { seed: 1, ..options.clone() }, &examples).to_bytes(), "{loss:?}");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.bin");
        first.save(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), first.to_bytes());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let (opened, kept) = (FastText::open(&path).unwrap(), first.into_model().unwrap());
        for line in &examples.0[..20] {
            assert_eq!(opened.predict(line, 3, 0.0), kept.predict(line, 3, 0.0));
        }
    }
}

#[test]
fn the_file_has_fasttexts_layout_and_the_vocabulary_its_order() {
    let examples = Lines(vec!["__label__b x y x".into(), "__label__a z x y q".into(), "__label__b\n x".into()]);
    let options = TrainOptions { min_count: 2, dim: 1, lr: 0.25, epoch: 3, ..TrainOptions::default() };
    let bytes = trained(&options, &examples).to_bytes();
    let header = [793_712_314, 12, 1, 5, 3, 2, 5, 1, 3, 3, 0, 0, 0, 100].map(i32::to_le_bytes).concat();
    assert_eq!(bytes[..56], header);
    assert_eq!(bytes[56..64], 1e-4f64.to_le_bytes());
    assert_eq!(bytes[64..76], [5, 3, 2].map(i32::to_le_bytes).concat());
    // Every token, those left out as well, with three line ends; the third line ends after its label.
    assert_eq!(bytes[76..92], [13i64, -1].map(i64::to_le_bytes).concat());
    let mut dictionary = Vec::new();
    for (text, count, kind) in [("x", 3i64, 0), ("</s>", 3, 0), ("y", 2, 0), ("__label__b", 2, 1), ("__label__a", 1, 1)] {
        dictionary.extend([text.as_bytes(), &[0], &count.to_le_bytes(), &[kind]].concat());
    }
    assert_eq!(bytes[92..92 + dictionary.len()], dictionary);
    let rest = &bytes[92 + dictionary.len()..];
    assert_eq!(rest.len(), 1 + 16 + 3 * 4 + 1 + 16 + 2 * 4);
    assert_eq!((rest[0], &rest[1..17]), (0, &[3i64, 1].map(i64::to_le_bytes).concat()[..]));
    assert_eq!((rest[29], &rest[30..46]), (0, &[2i64, 1].map(i64::to_le_bytes).concat()[..]));
}

fn documents(texts: &[&str]) -> Box<dyn Fn() -> Result<Texts<'static>>> {
    let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
    Box::new(move || Ok(Box::new(texts.clone().into_iter().map(Ok))))
}

#[test]
fn documents_of_classes_are_mixed_evenly_on_one_line() {
    let classes = ClassDocuments {
        classes: vec![("many".into(), documents(&["1", "2", "3\n3", "4", "5", "6"])), ("few".into(), documents(&["a", "b"]))],
    };
    let seen = RefCell::new(Vec::new());
    let visit = || {
        classes.visit(&mut |example| {
            seen.borrow_mut().push(format!("{} {}", example.label.unwrap(), example.text));
            Ok(())
        })
    };
    visit().unwrap();
    let expected = ["many 1", "many 2", "few a", "many 3 3", "many 4", "many 5", "few b", "many 6"];
    assert_eq!(*seen.borrow(), expected);
    let stop = classes.visit(&mut |_| Err(Error::bad_value("k", "p", "h")));
    assert!(matches!(stop, Err(Error::BadValue { .. })));
}

#[test]
fn labels_in_the_text_of_a_document_are_not_its_labels() {
    let texts: Vec<String> = (0..200).map(|i| format!("word{} __label__bad __label__evil", i % 7)).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let classes =
        ClassDocuments { classes: vec![("good".into(), documents(&texts)), ("bad".into(), documents(&["other thing"; 100]))] };
    let trained = trained(&TrainOptions { lr: 0.5, ..small(Loss::Softmax) }, &classes);
    assert_eq!((trained.summary.labels, trained.summary.examples), (2, 300));
    let model = trained.into_model().unwrap();
    assert_eq!(model.labels(), ["good", "bad"]);
    let mut predictor = model.predictor();
    assert!(predictor.probability("word1\nword2 __label__bad", "good").unwrap() > 0.9);
    assert!(predictor.probability("other\nthing", "good").unwrap() < 0.1);
}

#[test]
fn settings_and_examples_that_cannot_be_are_errors() {
    let good = small(Loss::Softmax);
    let examples = lines(20, 4);
    let cases: Vec<(TrainOptions, &str)> = vec![
        (TrainOptions { lr: 0.0, ..good.clone() }, "lr: expected"),
        (TrainOptions { lr: f32::NAN, ..good.clone() }, "lr: expected"),
        (TrainOptions { lr: 1e30, ..good.clone() }, "lr: the loss is no number"),
        (TrainOptions { dim: 0, ..good.clone() }, "dim: expected"),
        (TrainOptions { epoch: 0, ..good.clone() }, "epoch: expected"),
        (TrainOptions { word_ngrams: 65, ..good.clone() }, "word_ngrams: expected at most 64"),
        (TrainOptions { minn: 3, maxn: 2, ..good.clone() }, "minn: expected at most maxn"),
        (TrainOptions { maxn: 2, bucket: 0, ..good.clone() }, "bucket: expected"),
        (TrainOptions { maxn: 2, bucket: 2_000_000_000, dim: i32::MAX as usize, ..good.clone() }, "bucket: no memory"),
        (TrainOptions { min_count: 1000, ..good.clone() }, "min_count: expected 1 to"),
    ];
    for (options, expected) in cases {
        let error = train(&options, &examples, &mut |_, _| {}).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
    let fails = |examples: &dyn Examples| train(&good, examples, &mut |_, _| {}).unwrap_err().to_string();
    assert!(fails(&Lines(vec!["__label__a b".into(), "no label".into()])).contains("at least 2 labels, got 1"));
    assert!(fails(&Lines(vec![])).contains("at least 2 labels, got 0"));
    let spaced = ClassDocuments { classes: vec![("a b".into(), documents(&["x"]))] };
    assert!(fails(&spaced).contains("labels without white space, got `a b`"));
    let missing = LabelledLines(Path::new("no/such/file").into());
    assert!(fails(&missing).contains("cannot open no/such/file"));
}

#[test]
fn words_are_forgotten_where_there_are_too_many() {
    let mut texts: Vec<String> = (0..500).map(|i| format!("__label__{} often rare{i}", i % 2)).collect();
    texts.push("__label__0 often".into());
    let options = TrainOptions { max_words: 100, ..small(Loss::Softmax) };
    let summary = trained(&options, &Lines(texts)).summary;
    assert!(summary.words < 110 && summary.labels == 2, "{summary:?}");
}

#[test]
fn a_file_of_labelled_lines_is_read_as_fasttext_reads_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("train.txt");
    fs::write(&path, b"__label__a x \xff y\r\n\n__label__b z").unwrap();
    let mut seen = Vec::new();
    LabelledLines(path)
        .visit(&mut |example| {
            seen.push(example.text.to_owned());
            assert_eq!(example.label, None);
            Ok(())
        })
        .unwrap();
    assert_eq!(seen, ["__label__a x \u{fffd} y\r\n", "\n", "__label__b z"]);
}

/// Small models of every kind, as files.
fn seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = specs().iter().step_by(3).map(Spec::bytes).collect();
    for loss in LOSSES {
        let options = TrainOptions { word_ngrams: 2, minn: 2, maxn: 3, dim: 3, bucket: 20, epoch: 1, ..small(loss) };
        seeds.push(trained(&options, &lines(30, 5)).to_bytes());
    }
    seeds
}

/// Reads a file's bytes, and where that works predicts. Says whether it worked.
fn survives(bytes: Vec<u8>) -> bool {
    let model = match FastText::from_bytes(bytes, "x.bin") {
        Ok(model) => model,
        Err(error) => {
            let error = error.to_string();
            assert!(error.starts_with("x.bin: not a usable fastText model: ") && error.contains("got"), "{error}");
            return false;
        }
    };
    let mut predictor = model.predictor();
    for text in ["", "the cat ka1 né2", "日本語 __label__x zebra </s> a", "\n"] {
        for k in [1, 3] {
            let found = predictor.predict(text, k, 0.0);
            assert!(found.len() <= k && found.iter().all(|found| found.probability.is_finite()), "{found:?}");
            assert!(found.is_sorted_by(|a: &Prediction<'_>, b| a.probability >= b.probability), "{found:?}");
        }
    }
    true
}

#[test]
fn files_that_are_cut_or_go_on_are_errors() {
    for bytes in seeds() {
        assert!(survives(bytes.clone()));
        for end in 0..bytes.len() {
            // Long models at every 7th byte.
            if end < 400 || end % 7 == 0 {
                assert!(!survives(bytes[..end].to_vec()), "{end} of {}", bytes.len());
            }
        }
        assert!(!survives([&bytes[..], b"\n"].concat()));
    }
}

#[test]
fn errors_say_what_was_expected_and_got() {
    let spec = Spec { labels: vec![("x".into(), 1), ("y".into(), 1)], ..specs().swap_remove(0) };
    let bytes =
        Spec { output: Table { rows: 2, dense: vec![0.0; 2 * spec.dim], ..Table::default() }, version: 12, ..spec }.bytes();
    let error = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = bytes.clone();
        change(&mut bytes);
        FastText::from_bytes(bytes, "m.bin").unwrap_err().to_string()
    };
    let set =
        |at: usize, number: i32| error(&move |bytes: &mut Vec<u8>| bytes[at..at + 4].copy_from_slice(&number.to_le_bytes()));
    assert!(survives(bytes.clone()));
    assert!(set(0, 1).contains("expected fastText's magic number 793712314, got 1;"), "{}", set(0, 1));
    assert!(set(4, 13).contains("expected version 11 or 12, got 13;"));
    assert!(set(4, 10).contains("expected version 11 or 12, got 10;"));
    assert!(set(8, 0).contains("expected a dimension of at least 1, got 0;"));
    assert!(set(8, 1000).contains("expected 1000 columns in the input matrix"));
    assert!(set(28, 65).contains("word n-grams of at most 64, got 65"));
    assert!(set(32, 5).contains("expected a loss from 1 to 4, got 5;"));
    assert!(set(36, 1).contains("got kind 1 (1 and 2 are word vectors)"));
    assert!(set(64, i32::MAX).contains("dictionary entries"));
    assert!(set(68, 1).contains("words and at least one label"));
    assert!(error(&|bytes| bytes.truncate(3)).contains("the file's end after 3 of them"));
    assert!(error(&|bytes| bytes.push(0)).contains("got 1 more"));
}

/// Where nothing but this process's own peak of memory can tell: runs the test again in a process of its own.
#[cfg(target_os = "linux")]
fn in_own_process(run: fn()) {
    const CHILD: &str = "RECUA_FASTTEXT_CHILD";
    if env::var_os(CHILD).is_some() {
        return run();
    }
    let name = std::thread::current().name().unwrap().to_owned();
    let child = std::process::Command::new(env::current_exe().unwrap())
        .args([&name, "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let out = String::from_utf8_lossy(&child.stdout);
    print!("{out}");
    assert!(child.status.success() && out.contains("1 passed"), "{out}{}", String::from_utf8_lossy(&child.stderr));
}

#[cfg(not(target_os = "linux"))]
fn in_own_process(run: fn()) {
    run();
}

/// The most address space that this process has had, in KiB; 0 where that is not known. Memory asked for counts, used or not.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

/// No panic, and no more memory than the files call for: these are at most 1 MB, so that 16 times that and what the seeds
/// need is far below the bound.
const BOUND_KIB: u64 = 64 << 10;

#[test]
fn sizes_that_lie_cost_nothing() {
    in_own_process(|| {
        let (mut read, mut all) = (0, 0);
        let seeds = seeds();
        let before = peak();
        for bytes in &seeds {
            let end = bytes.len().min(1500);
            for at in 0..end - 8 {
                for number in [i64::MAX, i64::MIN, 1 << 31, i64::from(i32::MAX), 1 << 40, -1, 0, 1, 1 << 20] {
                    for size in [4, 8] {
                        let mut bytes = bytes.clone();
                        bytes[at..at + size].copy_from_slice(&number.to_le_bytes()[..size]);
                        // All places of the header, others by turns.
                        if at < 100 || (at + number as u8 as usize) % 16 == 0 {
                            read += usize::from(survives(bytes));
                            all += 1;
                        }
                    }
                }
            }
        }
        let grown = peak() - before;
        println!("{all} files, {read} of them read, {grown} KiB");
        assert!(read > 0 && read < all && grown < BOUND_KIB, "{read} of {all} read, grown by {grown} KiB");
    });
}

#[test]
fn damaged_files_are_errors_not_panics() {
    in_own_process(|| {
        let inputs: usize = env::var("RECUA_FUZZ").ok().and_then(|count| count.parse().ok()).unwrap_or(3000);
        let mut seeds = seeds();
        let published = samples().map(|folder| fs::read(folder.join("models/lid.176.ftz")).unwrap());
        // Its head with settings and words, and the place where words end and n-grams begin.
        seeds.extend(published.iter().flat_map(|bytes| [bytes[..4000].to_vec(), bytes[115_000..119_000].to_vec()]));
        let mut rng = ChaCha8Rng::seed_from_u64(6);
        let rng = &mut rng;
        let before = peak();
        let mut counts = HashMap::new();
        for round in 0..inputs {
            let mut bytes = match &published {
                Some(published) if round % 100 == 0 => published.clone(),
                _ => seeds[below(rng, seeds.len())].clone(),
            };
            for _ in 0..=below(rng, 4) {
                // Half of the damage is done near the start, where the sizes are.
                let near = if below(rng, 2) == 0 { 200 } else { usize::MAX };
                let at = below(rng, bytes.len().min(near).max(1));
                let end = bytes.len().min(at + 1 + below(rng, 40));
                match below(rng, 7) {
                    0 if at < bytes.len() => bytes[at] ^= 1 << below(rng, 8),
                    1 if at < bytes.len() => bytes[at] = rng.next_u32() as u8,
                    2 if below(rng, 4) == 0 => bytes.truncate(at),
                    3 => {
                        let piece = bytes[at.min(end)..end].to_vec();
                        bytes.splice(at..at, piece);
                    }
                    4 => drop(bytes.drain(at.min(end)..end)),
                    5 => {
                        let other = &seeds[below(rng, seeds.len())];
                        let from = below(rng, other.len());
                        let piece = &other[from..other.len().min(from + end - at.min(end))];
                        bytes.splice(at.min(end)..end, piece.iter().copied());
                    }
                    _ => {
                        let nasty = [0i32, 1, -1, i32::MAX, i32::MIN, 64, 256, 0x7fc0_0000, 0x7f80_0000][below(rng, 9)];
                        let end = bytes.len().min(at + 4);
                        bytes.splice(at.min(end)..end, nasty.to_le_bytes());
                    }
                }
            }
            *counts.entry(survives(bytes)).or_insert(0) += 1;
        }
        let grown = peak() - before;
        println!("{counts:?}, {grown} KiB");
        assert!(counts.len() == 2 && grown < BOUND_KIB, "{counts:?}, grown by {grown} KiB");
    });
}
