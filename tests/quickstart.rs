//! The whole path in small: settings that are refused before anything happens, a dry run, a run that is stopped and goes on.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use recua::backend::BackendName;
use recua::error::Error;
use recua::quickstart::{Quickstart, is_finished, run};
use recua::train::metrics::StepRecord;
use recua::train::{Observer, RunInfo};

/// Sets the stop flag at a step, and keeps what is said.
struct Watch<'a> {
    stop: &'a AtomicBool,
    at: u64,
    steps: u64,
    said: Vec<String>,
}

impl Observer for Watch<'_> {
    fn start(&mut self, info: &RunInfo) {
        self.steps = info.steps;
    }
    fn step(&mut self, record: &StepRecord, _eta_s: f64) {
        if record.step == self.at {
            self.stop.store(true, Ordering::Relaxed);
        }
    }
    fn say(&mut self, text: &str) {
        self.said.push(text.into());
    }
}

fn text(dir: &Path) {
    fs::create_dir_all(dir).unwrap();
    let words = ["the", "llama", "carries", "a", "load", "over", "the", "pass", "and", "rests"];
    let mut state = 7u64;
    for file in 0..40 {
        let mut word = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            words[(state >> 33) as usize % words.len()]
        };
        let lines: String = (0..120).map(|_| format!("{} {} {} {} {}.\n", word(), word(), word(), word(), word())).collect();
        fs::write(dir.join(format!("{file}.txt")), lines).unwrap();
    }
}

#[test]
fn stopped_and_started_again_it_comes_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let (input, run_dir) = (dir.path().join("texts"), dir.path().join("run"));
    text(&input);
    let q = Quickstart { input: Some(input), run: run_dir.clone(), minutes: 0.01, vocab_size: 300 };
    let backend: BackendName = "flex".parse().unwrap();

    let planned = q.dry_run(&backend, &mut ()).unwrap();
    assert!(planned.corpus.train.bytes > 10 * planned.corpus.valid.bytes && !planned.goes_on);
    assert!(!run_dir.exists(), "a dry run writes nothing");

    let stop = AtomicBool::new(false);
    let mut watch = Watch { stop: &stop, at: 3, steps: 0, said: Vec::new() };
    let interrupted = run(&q, &backend, &stop, &mut watch).unwrap_err();
    assert!(matches!(interrupted, Error::Interrupted { step: 3, .. }), "{interrupted}");
    assert!(watch.steps >= 10 && !is_finished(&run_dir));
    for stage in ["[1/5] text", "[2/5] rivals", "[3/5] tokens", "[4/5] training"] {
        assert!(watch.said.iter().any(|line| line.starts_with(stage)), "{stage} is not in {:?}", watch.said);
    }

    // With other settings it is another run.
    let other = Quickstart { vocab_size: 400, ..q.clone() };
    let error = run(&other, &backend, &AtomicBool::new(false), &mut ()).unwrap_err().to_string();
    assert!(error.contains("--vocab-size 300") && error.contains("--vocab-size 400"), "{error}");

    let stop = AtomicBool::new(false);
    let mut watch = Watch { stop: &stop, at: u64::MAX, steps: 0, said: Vec::new() };
    let outcome = run(&q, &backend, &stop, &mut watch).unwrap();
    assert!(watch.said.iter().any(|line| line.starts_with("going on")) && watch.said.iter().all(|line| !line.contains("[1/5]")));
    assert_eq!(outcome.steps, watch.steps);
    // Nine words, one of them as likely as two others: 3.12 bits a word, 0.61 a byte with the spaces and full stops between them.
    // Nobody can do better than that (by more than chance), and a few steps are better than the 8 bits of knowing nothing.
    assert!(outcome.val_bpb > 0.55 && outcome.val_bpb < 8.0, "{}", outcome.val_bpb);
    assert!(outcome.ngram_bpb > 0.55 && outcome.xz_bpb > 0.55);
    assert_eq!(outcome.held_out.bytes, planned.corpus.valid.bytes);
    assert_eq!(outcome.held_out.sources, planned.corpus.held_out.len());
    assert_eq!(outcome.texts.len(), 2);
    let valid: Vec<String> =
        planned.corpus.held_out.iter().map(|name| fs::read_to_string(dir.path().join("texts").join(name)).unwrap()).collect();
    for (prompt, _) in &outcome.texts {
        assert!(valid.iter().any(|text| text.starts_with(prompt.as_str())), "prompts are the beginnings of held-out files");
    }
    let report = fs::read_to_string(&outcome.report).unwrap();
    assert!(report.contains("order-2 n-gram") && report.contains("fingerprint"));
    // Questions of the held-out text, on the way and at the end.
    if cfg!(feature = "eval") {
        let asked = ["cloze", "copy", "next_word"];
        assert_eq!(outcome.quick.keys().collect::<Vec<_>>(), asked);
        assert!(outcome.quick.values().all(|share| (0.0..=1.0).contains(share)));
        let curves: Vec<StepRecord> = fs::read_to_string(run_dir.join("metrics.jsonl"))
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(curves.last().unwrap().eval, outcome.quick);
        assert!(report.contains("Benchmarks") && report.contains(&outcome.quick_words()), "no curves of the questions");
    }
    assert!(is_finished(&run_dir));
    let error = q.check(&backend).unwrap_err().to_string();
    assert!(error.contains("holds a finished quickstart"), "{error}");
}

#[test]
fn settings_are_refused_before_anything_happens() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("texts");
    text(&input);
    let good = Quickstart { input: Some(input.clone()), run: dir.path().join("run"), minutes: 1.0, vocab_size: 300 };
    let backend: BackendName = "flex".parse().unwrap();
    good.check(&backend).unwrap();
    let another = dir.path().join("another");
    fs::create_dir(&another).unwrap();
    fs::write(another.join("config.toml"), "").unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    let cases = [
        (Quickstart { minutes: 0.0, ..good.clone() }, "--minutes"),
        (Quickstart { minutes: f64::NAN, ..good.clone() }, "--minutes"),
        (Quickstart { vocab_size: 259, ..good.clone() }, "--vocab-size"),
        (Quickstart { vocab_size: 4097, ..good.clone() }, "--vocab-size"),
        (Quickstart { input: Some(dir.path().join("gone")), ..good.clone() }, "gone"),
        (Quickstart { run: input.join("run"), ..good.clone() }, "lies inside of --input"),
        (Quickstart { run: input.join("../texts/runs/run"), ..good.clone() }, "lies inside of --input"),
        (Quickstart { run: another, ..good.clone() }, "another kind"),
        (Quickstart { run: dir.path().join("file"), ..good.clone() }, "is a file"),
    ];
    for (q, part) in cases {
        let error = run(&q, &backend, &AtomicBool::new(false), &mut ()).unwrap_err().to_string();
        assert!(error.contains(part), "{part} is not in: {error}");
        assert!(!q.run.join("data").exists(), "nothing was made");
    }
    let missing = if cfg!(feature = "cuda") { return } else { "cuda".parse().unwrap() };
    assert!(matches!(good.check(&missing).unwrap_err(), Error::Backend { .. }));
}
