//! Near-duplicates, personal data and evaluation sets.

use std::collections::HashSet;
use std::fs;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use recua_corpus::dedup::minhash::{Config, duplicates, similarity};
use recua_corpus::dedup::overlap::shingle_set;
use recua_corpus::filters::decontaminate::Contamination;
use recua_corpus::filters::pii::mask;

fn words(rng: &mut ChaCha8Rng, n: usize) -> Vec<String> {
    (0..n).map(|_| format!("w{}", rng.random_range(0..5000))).collect()
}

#[test]
fn signatures_estimate_the_jaccard_similarity() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let config = Config { bands: 64, rows: 8, seed: 7 };
    let mut squares = 0.0;
    let rounds = 200;
    for round in 0..rounds {
        let a = words(&mut rng, 400);
        let mut b = a.clone();
        for _ in 0..round / 2 {
            let i = rng.random_range(0..b.len());
            b[i] = format!("x{}", rng.random_range(0..1_000_000));
        }
        let (a, b) = (a.join(" "), b.join(" "));
        let sets = [&a, &b].map(|t| shingle_set(t).into_iter().collect::<HashSet<_>>());
        let exact = sets[0].intersection(&sets[1]).count() as f64 / sets[0].union(&sets[1]).count() as f64;
        let estimate = similarity(&config.signature(&a), &config.signature(&b));
        // A mean of 512 coin throws: a standard deviation of at most 0.0221.
        assert!((estimate - exact).abs() < 5.0 * 0.0221, "exact {exact:.3}, estimated {estimate:.3}");
        squares += (estimate - exact).powi(2);
    }
    let deviation = (squares / f64::from(rounds)).sqrt();
    assert!(deviation < 0.0221, "standard deviation {deviation:.4}: the hash functions are not independent enough");
}

#[test]
fn bands_meet_as_often_as_they_should() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let config = Config::default();
    let share = |similar: bool, rng: &mut ChaCha8Rng| {
        let rounds = 200;
        let met = (0..rounds).filter(|_| {
            let a = words(rng, 500);
            let mut b = a.clone();
            // One word in 200 changes five shingles: a similarity of about 0.95; or half of them: below 0.1.
            for _ in 0..if similar { 2 } else { 250 } {
                let i = rng.random_range(0..b.len());
                b[i] = format!("x{}", rng.random_range(0..1_000_000));
            }
            let keys: HashSet<u64> = config.bands(&a.join(" ")).into_iter().collect();
            config.bands(&b.join(" ")).iter().any(|key| keys.contains(key))
        });
        met.count() as f64 / f64::from(rounds)
    };
    assert!(share(true, &mut rng) > 0.98);
    assert!(share(false, &mut rng) < 0.02);
    assert!(config.bands("").is_empty() && config.bands(" . , ").is_empty(), "texts without words are no candidates");
    assert_eq!(config.bands("one two").len(), config.bands);
}

#[test]
fn the_first_of_each_group_stays() {
    let pairs = [(7, 9), (2, 5), (5, 11), (9, 20), (11, 20), (30, 31)];
    assert_eq!(duplicates(pairs.map(Ok)).unwrap(), [5, 7, 9, 11, 20, 31]);
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for _ in 0..50 {
        let n = 40_usize;
        let pairs: Vec<(u64, u64)> = (0..25).map(|_| (rng.random_range(0..n as u64), rng.random_range(0..n as u64))).collect();
        // By flooding: a document goes if a smaller one is reachable.
        let mut reach: Vec<HashSet<u64>> = (0..n as u64).map(|d| HashSet::from([d])).collect();
        for _ in 0..n {
            for &(a, b) in &pairs {
                let all: HashSet<u64> = reach[a as usize].union(&reach[b as usize]).copied().collect();
                (reach[a as usize], reach[b as usize]) = (all.clone(), all);
            }
        }
        let expected: Vec<u64> = (0..n as u64).filter(|d| reach[*d as usize].iter().any(|other| other < d)).collect();
        assert_eq!(duplicates(pairs.into_iter().map(Ok)).unwrap(), expected);
    }
}

#[test]
fn personal_data_is_masked_and_nothing_else() {
    for (text, expected, rules) in [
        ("Write to jane.doe+x@mail.example.org, please.", "Write to <EMAIL>, please.", &["email"][..]),
        ("from 203.1.5.9 and 8.8.8.8", "from <IP> and <IP>", &["ip", "ip"]),
        ("2001:db8:85a3:0:0:8a2e:370:7334 it is", "<IP> it is", &["ip"]),
        ("call +49 30 901820 or (555) 123-4567.", "call <PHONE> or <PHONE>.", &["phone", "phone"]),
        ("127.0.0.1, 192.168.1.1, 999.1.1.1 stay", "127.0.0.1, 192.168.1.1, 999.1.1.1 stay", &[]),
        ("version 1.2.3.4.5 and section 4.3.2", "version 1.2.3.4.5 and section 4.3.2", &[]),
        ("3.14159, 2020-01-02, 12:30:45, 1234567890123", "3.14159, 2020-01-02, 12:30:45, 1234567890123", &[]),
        ("@handle and a@b are no addresses; std::fmt neither", "@handle and a@b are no addresses; std::fmt neither", &[]),
    ] {
        let (masked, removed) = mask(text);
        assert_eq!(masked, expected, "`{text}`");
        assert_eq!(removed.iter().map(|r| r.rule).collect::<Vec<_>>(), rules, "`{text}`");
    }
    // Long runs of what may begin a match.
    let hostile = ["a@", "1.", "+1 ", "a:", "1", "(555) "].map(|piece| piece.repeat(200_000));
    hostile.iter().for_each(|text| drop(mask(text)));
}

#[test]
fn documents_with_a_run_of_an_evaluation_set_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("set.jsonl");
    let question = "Which of the following is the largest planet of the solar system by its mass and its volume?";
    fs::write(&file, format!("{}\n", serde_json::json!({ "q": question, "choices": ["Jupiter"] }))).unwrap();
    let set = Contamination::open(&[file], 13).unwrap();
    // 18 words have six runs of 13.
    assert_eq!(set.len(), 6);
    let quoted = "An exam asked: \"WHICH of the following is the largest planet - of the solar system, by its mass?\" and so on.";
    assert_eq!(set.found(quoted).as_deref(), Some("WHICH of the following is the largest planet - of the solar system, by"));
    assert_eq!(
        set.found("Which of the following is the largest planet of the milky way by its mass and its volume?"),
        None,
        "twelve words in a row"
    );
    assert_eq!(set.found(""), None);
    let short = dir.path().join("short.txt");
    fs::write(&short, "a few words\n").unwrap();
    assert!(Contamination::open(&[short], 13).unwrap_err().to_string().contains("13 words"));
}
