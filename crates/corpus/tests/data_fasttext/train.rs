//! Training: what it learns, that it can be repeated, what it writes, and what it refuses.

use std::{cell::RefCell, fs, path::Path};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use recua_corpus::{
    Error, Result,
    fasttext::{ClassDocuments, Example, Examples, FastText, LabelledLines, Loss, OpenTexts, TrainOptions, Trained, train},
};

use super::spec::below;

/// Examples in memory.
pub(super) struct Lines(Vec<String>);

impl Examples for Lines {
    fn visit(&self, take: &mut dyn FnMut(Example<'_>) -> Result<()>) -> Result<()> {
        self.0.iter().try_for_each(|text| take(Example { label: None, text }))
    }
}

/// Lines of four kinds of words, each with the label of its kind.
pub(super) fn lines(count: usize, seed: u64) -> Lines {
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

pub(super) fn small(loss: Loss) -> TrainOptions {
    TrainOptions { dim: 6, loss, bucket: 50, ..TrainOptions::default() }
}

pub(super) fn trained(options: &TrainOptions, examples: &dyn Examples) -> Trained {
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

pub(super) const LOSSES: [Loss; 4] = [Loss::Softmax, Loss::HierarchicalSoftmax, Loss::NegativeSampling, Loss::OneVsAll];

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

fn documents(texts: &[&str]) -> OpenTexts<'static> {
    let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
    Box::new(move || Ok(Box::new(texts.clone().into_iter().map(Ok))))
}

#[test]
fn documents_of_classes_are_mixed_evenly_on_one_line() {
    let classes = ClassDocuments::new(vec![
        ("many".into(), documents(&["1", "2", "3\n3", "4", "5", "6"])),
        ("few".into(), documents(&["a", "b"])),
    ]);
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
    let classes = ClassDocuments::new(vec![("good".into(), documents(&texts)), ("bad".into(), documents(&["other thing"; 100]))]);
    let trained = trained(&TrainOptions { lr: 0.5, ..small(Loss::Softmax) }, &classes);
    assert_eq!((trained.summary.labels, trained.summary.examples), (2, 300));
    let model = trained.into_model().unwrap();
    assert_eq!(model.labels(), ["good", "bad"]);
    let mut predictor = model.predictor();
    assert!(predictor.probability("word1\nword2 __label__bad", "good").unwrap() > 0.9);
    assert!(predictor.probability("other\nthing", "good").unwrap() < 0.1);
}

#[test]
fn losses_have_fasttexts_names() {
    assert_eq!(["softmax", "hs", "ns", "ova"].map(|name| name.parse::<Loss>().unwrap()), LOSSES);
    assert!("nope".parse::<Loss>().unwrap_err().to_string().contains("got `nope`"));
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
    let spaced = ClassDocuments::new(vec![("a b".into(), documents(&["x"]))]);
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
