//! fastText models: the published language model against its reference, predictions against their definition, training,
//! and files that are not models.

#[path = "data_fasttext/damage.rs"]
mod damage;
#[path = "data_fasttext/spec.rs"]
mod spec;
#[path = "data_fasttext/train.rs"]
mod train;

use std::{env, fs, path::PathBuf};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use recua_corpus::fasttext::{FastText, Lid, Loss, rank_labels};
use serde_json::Value;

use self::spec::{Spec, Table, WORDS, random_line, specs};

/// The folder of samples, or a word on why there is no test.
fn samples() -> Option<PathBuf> {
    let folder = env::var_os("RECUA_DATA").map(PathBuf::from);
    if folder.is_none() {
        println!("skipped: RECUA_DATA is not set");
    }
    folder
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
