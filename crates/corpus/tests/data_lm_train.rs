//! Training of n-gram models against a second, plain implementation of modified Kneser-Ney smoothing; pieces; perplexity.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use recua_corpus::filters::perplexity::{Bucket, Cutoffs, bucket, normalize_for_lm, perplexity};
use recua_corpus::lm::{LmTrainConfig, LmTrainStats, train_lm};

use super::data_lm::{arpa, problem};

/// The definition of a back-off model: the longest n-gram that is there, and the back-off weights of the contexts that are too
/// long.
pub(super) struct Plain {
    order: usize,
    pub(super) grams: HashMap<Vec<String>, (f64, f64)>,
}

impl Plain {
    pub(super) fn new(text: &str) -> Self {
        let mut this = Self { order: 0, grams: HashMap::new() };
        for line in text.lines() {
            if let Some(order) = line.strip_prefix('\\').and_then(|rest| rest.strip_suffix("-grams:")) {
                this.order = order.parse().unwrap();
            }
            let columns: Vec<&str> = line.split('\t').collect();
            if this.order > 0 && columns.len() > 1 {
                let words = columns[1].split(' ').map(String::from).collect();
                let backoff = columns.get(2).map_or(0.0, |b| b.parse().unwrap());
                this.grams.insert(words, (columns[0].parse().unwrap(), backoff));
            }
        }
        this
    }

    fn log10(&self, context: &[String], word: &str) -> (f64, usize) {
        let key: Vec<String> = context.iter().cloned().chain([word.to_string()]).collect();
        if let Some((log10, _)) = self.grams.get(&key) {
            return (*log10, key.len());
        }
        match context.split_first() {
            None => (self.grams[&vec!["<unk>".to_string()]].0, 1),
            Some((_, shorter)) => {
                let backoff = self.grams.get(context).map_or(0.0, |(_, backoff)| *backoff);
                let (log10, length) = self.log10(shorter, word);
                (backoff + log10, length)
            }
        }
    }

    fn known(&self, word: &str) -> String {
        let known = self.grams.contains_key(&vec![word.to_string()]);
        if known { word.into() } else { "<unk>".into() }
    }

    pub(super) fn line(&self, line: &str) -> Vec<(f64, usize)> {
        let mut history = vec!["<s>".to_string()];
        let words: Vec<String> = line.split_whitespace().chain(["</s>"]).map(|w| self.known(w)).collect();
        let mut out = Vec::new();
        for word in words {
            let context = &history[history.len().saturating_sub(self.order - 1)..];
            out.push(self.log10(context, &word));
            history.push(word);
        }
        out
    }
}

// Training.

/// Lines of words that are frequent in the way of language, with repetitions.
fn corpus(seed: u64, lines: usize, words: u32) -> Vec<String> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut word = move |last: u32| {
        let skewed = rng.random_range(0.0f64..1.0).powi(3) * f64::from(words);
        // Some of the time, the word follows from the one before.
        if rng.random_range(0..3) == 0 { (last * 7 + 1) % words } else { skewed as u32 }
    };
    (0..lines)
        .map(|i| {
            let mut last = 0;
            let line: Vec<String> = (0..(i * 7) % 13)
                .map(|_| {
                    last = word(last);
                    format!("w{last}")
                })
                .collect();
            line.join(" ")
        })
        .collect()
}

fn train(lines: &[String], config: &LmTrainConfig) -> (String, LmTrainStats) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.arpa");
    let config = LmTrainConfig { temp: folder.path().into(), ..config.clone() };
    let stats = train_lm(lines.iter().map(Ok), &config, &path).unwrap();
    // Nothing is left but the model.
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    (std::fs::read_to_string(&path).unwrap(), stats)
}

type Counts = BTreeMap<Vec<String>, u64>;

/// Modified Kneser-Ney smoothing from its formulas (Chen and Goodman 1998, section 4.1.6), with tables of everything in double
/// precision: probabilities and back-off weights by n-gram.
fn kneser_ney(lines: &[String], order: usize, prune: &[u64], fallback: [f32; 3]) -> HashMap<Vec<String>, (f64, f64)> {
    let mut occurrences: Vec<Counts> = vec![Counts::new(); order];
    for line in lines {
        let words: Vec<&str> = ["<s>"].into_iter().chain(line.split_whitespace()).chain(["</s>"]).collect();
        for n in 1..=order {
            for gram in words.windows(n) {
                *occurrences[n - 1].entry(gram.iter().map(|w| w.to_string()).collect()).or_default() += 1;
            }
        }
    }
    // Adjusted counts: words before it, but occurrences in the highest order and after <s>.
    let mut adjusted = occurrences.clone();
    for n in 1..order {
        let mut before: BTreeMap<&[String], BTreeSet<&String>> = BTreeMap::new();
        for gram in occurrences[n].keys() {
            before.entry(&gram[1..]).or_default().insert(&gram[0]);
        }
        for (gram, count) in &mut adjusted[n - 1] {
            if gram[0] != "<s>" {
                *count = before[gram.as_slice()].len() as u64;
            }
        }
    }
    adjusted[0].insert(vec!["<s>".into()], 0);
    adjusted[0].insert(vec!["<unk>".into()], 0);
    let kept = |gram: &Vec<String>, n: usize| {
        let threshold = prune.get(n - 1).or(prune.last()).copied().unwrap_or(0);
        n == 1 || occurrences[n - 1][gram] > threshold
    };
    let last = last_endings(lines, order);
    let discounts: Vec<[f64; 3]> = (1..=order)
        .map(|n| {
            let mut of_counts = [0.0; 5];
            for (gram, count) in &adjusted[n - 1] {
                // As lmplz counts the n-grams that its sorting puts last.
                let count = if n < order && last.contains(gram) { occurrences[n - 1][gram] } else { *count };
                if count < 5 {
                    of_counts[count as usize] += 1.0;
                }
            }
            let y = of_counts[1] / (of_counts[1] + 2.0 * of_counts[2]);
            let d: Vec<f64> = (1..4).map(|j| j as f64 - (j + 1) as f64 * y * of_counts[j + 1] / of_counts[j]).collect();
            let sound = (1..4).all(|j| of_counts[j] > 0.0 && (0.0..=j as f64).contains(&d[j - 1]));
            if sound { [d[0], d[1], d[2]] } else { fallback.map(f64::from) }
        })
        .collect();
    let mut gamma: HashMap<Vec<String>, f64> = HashMap::new();
    let mut totals: HashMap<Vec<String>, f64> = HashMap::new();
    let mut of_context: HashMap<Vec<String>, f64> = HashMap::new();
    let discount = |n: usize, count: u64| if count == 0 { 0.0 } else { discounts[n - 1][count.min(3) as usize - 1] };
    for n in 1..=order {
        for (gram, count) in &adjusted[n - 1] {
            let context = gram[..n - 1].to_vec();
            *totals.entry(context.clone()).or_default() += *count as f64;
            *of_context.entry(context).or_default() += if kept(gram, n) { discount(n, *count) } else { *count as f64 };
        }
    }
    for (context, saved) in of_context {
        let total = totals[&context];
        gamma.insert(context, saved / total);
    }
    let uniform = 1.0 / (adjusted[0].len() - 1) as f64;
    let mut probs: HashMap<Vec<String>, f64> = HashMap::new();
    for n in 1..=order {
        for (gram, count) in adjusted[n - 1].iter().filter(|(gram, _)| kept(gram, n)) {
            let context = &gram[..n - 1];
            let own = (*count as f64 - discount(n, *count)) / totals[context];
            let lower = if n == 1 { uniform } else { probs[&gram[1..]] };
            probs.insert(gram.clone(), own + gamma[context] * lower);
        }
    }
    probs.insert(vec!["<s>".into()], 1.0);
    let backoff = |gram: &Vec<String>| if gram.len() < order { gamma.get(gram).copied().unwrap_or(1.0) } else { 1.0 };
    probs.iter().map(|(gram, prob)| (gram.clone(), (prob.log10(), backoff(gram).log10()))).collect()
}

/// The endings of the n-gram that comes last when words are numbered as they appear and n-grams are compared from their ends.
fn last_endings(lines: &[String], order: usize) -> BTreeSet<Vec<String>> {
    let mut ids: HashMap<&str, usize> = HashMap::from([("<s>", 1), ("</s>", 2)]);
    let mut last: Vec<(usize, &str)> = Vec::new();
    for line in lines {
        let padded = std::iter::repeat_n("<s>", order - 1).chain(line.split_whitespace()).chain(["</s>"]);
        let padded: Vec<(usize, &str)> = padded
            .map(|word| {
                let next = ids.len() + 1;
                (*ids.entry(word).or_insert(next), word)
            })
            .collect();
        for gram in padded.windows(order) {
            last = last.max(gram.iter().rev().copied().collect());
        }
    }
    let mut out = BTreeSet::new();
    for n in 1..order {
        let gram: Vec<String> = last[..n].iter().rev().map(|(_, word)| word.to_string()).collect();
        let begins = gram[0] == "<s>";
        out.insert(gram);
        if begins {
            break;
        }
    }
    out
}

#[test]
fn training_follows_the_formulas() {
    for (seed, lines, words, order, prune) in [
        (1, 400, 40, 3, vec![]),
        (2, 1500, 120, 5, vec![]),
        (3, 30, 9, 2, vec![]),
        (4, 1500, 60, 4, vec![0, 0, 1]),
        (5, 900, 50, 3, vec![0, 1, 2]),
    ] {
        let lines = corpus(seed, lines, words);
        let config = LmTrainConfig { order, prune: prune.clone(), ..Default::default() };
        let (text, stats) = train(&lines, &config);
        let wanted = kneser_ney(&lines, order, &prune, [0.5, 1.0, 1.5]);
        let got = Plain::new(&text);
        assert_eq!(got.grams.len(), wanted.len());
        assert_eq!(stats.counts.iter().sum::<u64>() as usize, wanted.len());
        assert_eq!((stats.counts.len(), stats.discounts.len()), (order, order));
        for (gram, (prob, backoff)) in &wanted {
            let found = got.grams.get(gram).unwrap_or_else(|| panic!("no {gram:?}"));
            assert!((found.0 - prob).abs() < 1e-5, "{gram:?}: {found:?}, {prob} {backoff}");
            assert!((found.1 - backoff).abs() < 1e-5, "{gram:?}: {found:?}, {prob} {backoff}");
        }
    }
}

/// After every context, seen or not, the probabilities of all words but `<s>` are 1 together.
#[test]
fn probabilities_sum_to_one() {
    for prune in [vec![], vec![0, 0, 1]] {
        let lines = corpus(7, 700, 50);
        let (text, _) = train(&lines, &LmTrainConfig { order: 4, prune, ..Default::default() });
        let plain = Plain::new(&text);
        let words: Vec<String> = plain.grams.keys().filter(|g| g.len() == 1 && g[0] != "<s>").map(|g| g[0].clone()).collect();
        let mut contexts: Vec<Vec<String>> =
            plain.grams.keys().filter(|g| g.len() < 4 && g[g.len() - 1] != "</s>").cloned().collect();
        contexts.extend([
            vec![],
            vec!["<unk>".into()],
            vec!["w1".into(), "<unk>".into()],
            vec!["w49".into(), "w48".into(), "w47".into()],
        ]);
        assert!(contexts.len() > 1000);
        for context in contexts {
            let sum: f64 = words.iter().map(|word| 10f64.powf(plain.log10(&context, word).0)).sum();
            assert!((sum - 1.0).abs() < 2e-5, "{context:?}: {sum}");
        }
        // The model reads it as the definition does.
        let model = arpa(&text).unwrap();
        for line in &lines[..50] {
            for (got, (log10, length)) in model.full_scores(line, true, true).words.iter().zip(plain.line(line)) {
                assert!((got.log10 - log10).abs() < 1e-5 && got.ngram_length == length, "{line}");
            }
        }
    }
}

#[test]
fn memory_does_not_change_the_model() {
    let lines = corpus(11, 30_000, 5000);
    let train_in = |memory| train(&lines, &LmTrainConfig { memory, order: 4, ..Default::default() });
    let (small, large) = (train_in(1 << 20), train_in(1 << 30));
    assert!(small.1.counts[3] * 32 > 2 << 20, "not enough n-grams to spill");
    assert!(small == large);
}

#[test]
fn what_cannot_be_trained_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.arpa");
    let config = LmTrainConfig { temp: folder.path().into(), ..Default::default() };
    let run = |lines: &[&str], config: &LmTrainConfig| problem(train_lm(lines.iter().map(Ok), config, &path));
    assert!(run(&[], &config).contains("no words to train on"));
    assert!(run(&["", " "], &config).contains("no words to train on"));
    assert!(run(&["a <s> b"], &config).contains("line 1: the word `<s>` is not allowed"));
    assert!(run(&["a b"], &LmTrainConfig { discount_fallback: None, ..config.clone() }).contains("no discounts for 1-grams"));
    assert!(run(&["a"], &LmTrainConfig { order: 7, ..config.clone() }).contains("expected 2 to 6, got 7"));
    assert!(run(&["a"], &LmTrainConfig { prune: vec![1, 0], ..config.clone() }).contains("never decrease"));
    assert!(run(&["a"], &LmTrainConfig { memory: 1, ..config.clone() }).contains("bytes or more"));
    let bad = Some([0.5, 1.0, 4.0]);
    assert!(run(&["a"], &LmTrainConfig { discount_fallback: bad, ..config.clone() }).contains("0 to 3"));
    let skip = LmTrainConfig { skip_symbols: true, ..config };
    let stats = train_lm(["a <s> b"].iter().map(Ok), &skip, &path).unwrap();
    assert_eq!((stats.lines, stats.words, stats.counts[0]), (1, 2, 5));
    assert_eq!(stats.fallbacks, [1, 2, 3, 4, 5]);
}

// Perplexity.

/// cc_net's `normalize`: white space around, lower case, accents, digits, punctuation, control characters.
#[test]
fn texts_are_normalized_as_ccnet_does() {
    for (text, wanted) in [
        ("H\u{e9}llo W\u{f6}rld 12\nSecond Line \u{ff11}", "hello world 00second line 0"),
        ("  A\tB\u{a0}\u{1f}", "ab"),
        ("ASCII 3.14\r\nonly", "ascii 0.00only"),
        ("\u{201c}a\u{201d} \u{2014} b\u{2026} \u{2019}c\u{2019}\u{ff0e}", "\"a\"  -  b... 'c'. "),
        ("\u{ff08}x\u{ff09}\u{3001}\u{3002}\u{25ba}\u{ff5e}\u{2501}", "(x),.-~-"),
        ("\u{663}\u{967}", "00"),
        ("\u{130}I\u{327}", "ii"),
        ("\u{3a3}\u{399}\u{3a3}", "\u{3c3}\u{3b9}\u{3c2}"),
        ("a\u{85}b\u{9f}c\u{a0}d", "abc\u{a0}d"),
        ("\u{ac00}", "\u{1100}\u{1161}"),
        ("\n \u{3000}", ""),
    ] {
        assert_eq!(normalize_for_lm(text), wanted, "{text:?}");
    }
}

#[test]
fn perplexity_decides_the_bucket() {
    assert_eq!(perplexity(-2.0, 1), 10.0);
    assert_eq!(perplexity(-25.25, 9), 335.0); // 10^2.525 = 334.965...
    assert_eq!(perplexity(0.0, 0), 1.0);
    let english = Cutoffs::ccnet("en").unwrap();
    assert_eq!((english.head, english.tail), (340.0, 520.0));
    assert!(["sl", "sr", "sv", "xx"].iter().all(|code| Cutoffs::ccnet(code).is_none()));
    for (value, wanted) in [(339.9, Bucket::Head), (340.0, Bucket::Middle), (519.9, Bucket::Middle), (520.0, Bucket::Tail)] {
        assert_eq!(bucket(Some(value), Some(&english)), wanted);
    }
    assert_eq!(bucket(None, Some(&english)), Bucket::All);
    assert_eq!(bucket(Some(1.0), None), Bucket::All);
    assert_eq!(serde_json::to_string(&Bucket::Middle).unwrap(), format!("\"{}\"", Bucket::Middle.as_str()));
    let sample: Vec<f64> = (0..=10).rev().map(f64::from).chain([f64::NAN]).collect();
    let own = Cutoffs::from_perplexities(&sample, Cutoffs::PERCENTILES).unwrap();
    assert_eq!((own.head, own.tail), (3.0, 6.0));
    assert_eq!(Cutoffs::from_perplexities(&[1.0, 2.0], (25.0, 75.0)), Some(Cutoffs { head: 1.25, tail: 1.75 }));
    assert_eq!(Cutoffs::from_perplexities(&[], (30.0, 60.0)), None);
}
