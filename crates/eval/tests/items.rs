//! Prompts, log-probabilities, texts and metrics against lm-eval's, item by item: `benches/peers/eval/lm_eval_items.py` made the goldens.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use recua_core::backend::BackendName;
use recua_core::generate::{EngineConfig, TextModel};
use recua_eval::{
    Ask, Asking, Item, LocalModel, Outcome, Prepared, Protocol, PythonRandom, Verdicts, all_tasks, answer, find_tasks, folder,
    judge, prepare, suites,
};
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/lm_eval").join(name)
}

fn json<T: for<'a> Deserialize<'a>>(path: &Path) -> T {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn requests(item: &Item) -> Vec<(String, String)> {
    match &item.ask {
        Ask::Pairs(pairs) => pairs.clone(),
        Ask::Rolling(text) => vec![(text.clone(), String::new())],
        Ask::Generate { context, .. } => vec![(context.clone(), String::new())],
    }
}

fn digest<'a>(requests: impl IntoIterator<Item = &'a (String, String)>) -> String {
    let mut hash = Sha256::new();
    for (context, continuation) in requests {
        hash.update(format!("{context}\0{continuation}\u{1}"));
    }
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn shots_are_drawn_as_cpython_draws() {
    // random.Random(1234).sample(range(n), k), twice where two lists stand; CPython 3.11.
    let mut random = PythonRandom::new(1234);
    assert_eq!(random.sample(7473, 5).unwrap(), [6374, 3610, 957, 61, 742]);
    assert_eq!(random.sample(7473, 5).unwrap(), [7462, 6610, 4769, 286, 5501]);
    assert_eq!(PythonRandom::new(1234).sample(87925, 5).unwrap(), [57767, 15315, 981, 11880, 76313]);
    assert_eq!(PythonRandom::new(1234).sample(20, 5).unwrap(), [14, 3, 0, 2, 1]);
    assert_eq!(PythonRandom::new(1234).sample(4, 5), None);
}

#[test]
fn every_task_is_known_by_its_names() {
    for protocol in [Protocol::LmEval, Protocol::Paper] {
        let tasks = all_tasks(protocol).unwrap();
        let names: std::collections::BTreeSet<&str> = tasks.iter().map(|task| task.name.as_str()).collect();
        assert_eq!(names.len(), tasks.len(), "two tasks of one name");
        assert_eq!(find_tasks(&["mmlu".into()], protocol).unwrap().len(), 57);
        assert_eq!(find_tasks(&["math".into()], protocol).unwrap().len(), 7);
        assert_eq!(find_tasks(&["siqa".into(), "social_iqa".into()], protocol).unwrap().len(), 1);
        assert!(tasks.iter().all(|task| task.protocol == protocol && !task.metric_names().is_empty()));
    }
    assert_eq!(suites().unwrap().into_iter().collect::<Vec<_>>(), ["figure-2", "llama-paper", "quick"]);
    let of_suite = |name: &str| find_tasks(&[name.into()], Protocol::Paper).unwrap();
    // MMLU has 57 subjects and MATH 7.
    assert_eq!(of_suite("llama-paper").len(), 57 + 7 + 21);
    let curves: Vec<String> = of_suite("figure-2").into_iter().map(|task| task.name).collect();
    assert_eq!(curves, ["piqa", "social_iqa", "hellaswag", "winogrande", "nq_open", "triviaqa"]);
    assert_eq!(find_tasks(&["math500".into()], Protocol::LmEval).unwrap()[0].name, "minerva_math500");
    let error = find_tasks(&["mmlu-astro".into()], Protocol::LmEval).unwrap_err().to_string();
    assert!(error.contains("did you mean mmlu_astronomy") || error.contains("mmlu"), "{error}");
}

#[derive(Deserialize)]
struct Prompts {
    prompts: BTreeMap<String, Prompt>,
}

#[derive(Deserialize)]
struct Prompt {
    items: usize,
    all: String,
    each: Vec<String>,
}

/// The published files that a task reads, in folders as a user has them.
fn published(into: &Path) -> bool {
    let (Some(data), Some(samples)) = (std::env::var_os("RECUA_DATA"), std::env::var_os("RECUA_EVAL_DATA")) else {
        eprintln!("skipped: RECUA_DATA and RECUA_EVAL_DATA name the folders of published data");
        return false;
    };
    let (data, samples) = (PathBuf::from(data).join("eval"), PathBuf::from(samples));
    let files = [
        (data.join("boolq/dev.jsonl.gz"), "boolq"),
        (data.join("piqa/dev.jsonl"), "piqa"),
        (data.join("piqa/dev-labels.lst"), "piqa"),
        (data.join("siqa/dev.jsonl"), "siqa"),
        (data.join("siqa/dev-labels.lst"), "siqa"),
        (data.join("nq_open/NQ-open.efficientqa.dev.1.1.jsonl"), "nq_open"),
        (data.join("gsm8k/test.jsonl"), "gsm8k"),
        (data.join("humaneval/HumanEval.jsonl.gz"), "humaneval"),
        (data.join("humaneval/example_problem.jsonl"), "humaneval"),
        (data.join("crows_pairs/crows_pairs_anonymized.csv"), "crows_pairs"),
        (data.join("winogender/all_sentences.tsv"), "winogender"),
        (data.join("winogender/occupations-stats.tsv"), "winogender"),
        (samples.join("hellaswag/hellaswag_val_sample.jsonl"), "hellaswag"),
        (samples.join("winogrande/train_sample.jsonl"), "winogrande"),
        (samples.join("mbpp/mbpp_sample.jsonl"), "mbpp"),
        (samples.join("math/math500_sample.jsonl"), "math"),
        (samples.join("truthfulqa/mc_task_sample.json"), "truthfulqa"),
        (samples.join("wikitext-2-raw/wiki.test.sample.raw"), "wikitext"),
    ];
    let copy = |from: &Path, folder: &Path| {
        std::fs::create_dir_all(folder).unwrap();
        std::fs::copy(from, folder.join(from.file_name().unwrap())).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
    };
    files.iter().for_each(|(from, folder)| copy(from, &into.join(folder)));
    for split in ["dev", "val"] {
        for subject in ["abstract_algebra", "high_school_us_history", "moral_scenarios"] {
            copy(&data.join(format!("mmlu/{split}/{subject}_{split}.csv")), &into.join("mmlu").join(split));
        }
    }
    true
}

#[test]
fn prompts_of_published_data_are_lm_evals() {
    let roots = tempfile::tempdir().unwrap();
    if !published(roots.path()) {
        return;
    }
    let roots = [roots.path().to_path_buf()];
    let known: Prompts = json(&golden("prompts.json"));
    let (mut compared, mut left_out) = (0, Vec::new());
    for (key, want) in &known.prompts {
        let (name, shots) = key.split_once(' ').unwrap();
        let task = &find_tasks(&[name.into()], Protocol::LmEval).unwrap()[0];
        if folder(task, &roots).is_err() {
            left_out.push(name);
            continue;
        }
        let asking = Asking { shots: shots.parse().ok(), limit: Some(200), ..Asking::default() };
        let items = prepare(task, &roots, &asking).unwrap().items;
        let each: Vec<String> = items.iter().take(want.each.len()).map(|item| digest(&requests(item))[..8].into()).collect();
        assert_eq!(each, want.each, "{key}");
        let all: Vec<_> = items.iter().flat_map(requests).collect();
        assert_eq!((items.len(), digest(&all)), (want.items, want.all.clone()), "{key}");
        compared += items.len();
    }
    left_out.dedup();
    eprintln!("{compared} items equal; no published data of {left_out:?}");
    assert!(compared > 5000, "{compared}");
}

#[derive(Deserialize)]
struct Scores {
    tasks: BTreeMap<String, Scored>,
}

#[derive(Deserialize)]
struct Scored {
    items: Vec<ScoredItem>,
}

#[derive(Deserialize)]
struct ScoredItem {
    doc_id: usize,
    arguments: Vec<(String, String)>,
    #[serde(default)]
    lls: Vec<f64>,
    #[serde(default)]
    greedy: Vec<bool>,
    text: Option<String>,
    metrics: BTreeMap<String, Value>,
}

fn model(name: &str, config: EngineConfig) -> LocalModel {
    let model = TextModel::open(&golden("made").join(name), None).unwrap();
    LocalModel::load(model, &"flex".parse::<BackendName>().unwrap().open().unwrap(), config).unwrap()
}

fn go_on(_: &recua_eval::Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn made(key: &str, limit: usize) -> Prepared {
    asked(key, limit, "made/published")
}

fn asked(key: &str, limit: usize, root: &str) -> Prepared {
    let (name, shots) = key.split_once(' ').unwrap();
    let task = &find_tasks(&[name.into()], Protocol::LmEval).unwrap()[0];
    let asking = Asking { shots: shots.parse().ok(), limit: Some(limit), ..Asking::default() };
    prepare(task, &[golden(root)], &asking).unwrap_or_else(|e| panic!("{key}: {e}"))
}

/// The largest difference of a log-probability from float32 torch's: other orders of summing. It is for up to 1,000 nats; a long text has
/// more, whose float32 sum in the reference alone is rounded by as much.
const BOUND: f64 = 1e-3;

/// As many marks as bytes that are no UTF-8, or one for all that belong together: the decoders differ.
fn marks(text: &str) -> String {
    let mut out = String::new();
    text.chars().filter(|c| *c != '\u{fffd}').for_each(|c| out.push(c));
    out
}

/// Holds our answers by the model `name` against the golden `file` of questions under `root`; gives how many metrics were compared and how
/// many choices were too close.
fn compare(name: &str, file: &str, root: &str) -> (usize, usize) {
    let known: Scores = json(&golden(file));
    let prepared: Vec<Prepared> = known.tasks.iter().map(|(key, scored)| asked(key, scored.items.len(), root)).collect();
    // Every task under a name of its own: tasks of two numbers of shots stand in one stream.
    let answers = answer(&prepared, &mut model(name, EngineConfig::default()), None, &mut go_on).unwrap().unwrap();
    let (mut worst, mut close, mut compared) = (0.0f64, 0, 0);
    for (((key, scored), prepared), answers) in known.tasks.iter().zip(&prepared).zip(answers) {
        let outcomes: Vec<Outcome> = judge(prepared, answers, &Verdicts::default()).unwrap();
        assert_eq!(outcomes.len(), scored.items.len(), "{key}");
        for ((item, outcome), want) in prepared.items.iter().zip(&outcomes).zip(&scored.items) {
            let at = format!("{key}, question {}", want.doc_id);
            assert_eq!(outcome.doc_id, want.doc_id, "{at}");
            assert_eq!(requests(item), want.arguments, "{at}");
            assert_eq!(outcome.loglikelihoods.len(), want.lls.len(), "{at}");
            for (ours, theirs) in outcome.loglikelihoods.iter().zip(&want.lls) {
                let difference = (ours - theirs).abs() / (theirs.abs() / 1000.0).max(1.0);
                worst = worst.max(difference);
                assert!(difference < BOUND, "{at}: {ours} {theirs}");
            }
            if !want.greedy.is_empty() {
                assert_eq!(outcome.is_greedy, want.greedy, "{at}");
            }
            if let Some(text) = &want.text {
                assert_eq!(outcome.text.as_str().map(marks), Some(marks(text)), "{at}");
            }
            // A choice by two numbers that are nearer than the bound may fall otherwise.
            let mut sorted = want.lls.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            if sorted.len() > 1 && sorted[0] - sorted[1] < 2.0 * BOUND {
                close += 1;
                continue;
            }
            for (metric, value) in &outcome.metrics {
                let theirs = want.metrics.get(&format!("{metric},none")).or_else(|| want.metrics.get(metric));
                let theirs = theirs.or_else(|| want.metrics.get("acc,none").filter(|_| metric == "mc2"));
                if let Some(theirs) = theirs.and_then(Value::as_f64) {
                    assert!((value - theirs).abs() < BOUND, "{at}: {metric} {value} {theirs}");
                    compared += 1;
                }
            }
            if let (Some(words), Some(Value::Array(theirs))) =
                (outcome.metrics.get("words"), want.metrics.get("word_perplexity,none"))
            {
                assert_eq!(Some(*words), theirs[1].as_f64(), "{at}");
                compared += 1;
            }
        }
    }
    eprintln!(
        "{file}: the largest difference of a log-probability {worst:.1e}; {compared} metrics equal, {close} choices too close to tell"
    );
    (compared, close)
}

#[test]
fn items_are_lm_evals_with_bos_and_spaces_in_words() {
    let (compared, close) = compare("mha", "mha.json", "made/published");
    assert!(compared > 120 && close < 20, "{compared} {close}");
}

#[test]
fn items_are_lm_evals_without_bos_by_bytes() {
    let (compared, close) = compare("gqa", "gqa.json", "made/published");
    assert!(compared > 120 && close < 20, "{compared} {close}");
}

/// ARC-challenge, RACE, TriviaQA, RealToxicityPrompts and MATH-500 in their published formats, by both models.
#[test]
fn items_of_further_sets_are_lm_evals() {
    for name in ["mha", "gqa"] {
        let (compared, close) = compare(name, &format!("more_{name}.json"), "more/published");
        assert!(compared >= 40 && close < 10, "{compared} {close}");
    }
}

#[test]
fn answers_do_not_depend_on_the_stream() {
    let tasks: Vec<Prepared> = ["piqa 2", "boolq 0", "nq_open 0"].iter().map(|key| made(key, 2)).collect();
    let wide = answer(&tasks, &mut model("gqa", EngineConfig::default()), None, &mut go_on).unwrap().unwrap();
    let narrow = EngineConfig { max_batch: 2, max_step_tokens: 37, prefix_cache: false, ..EngineConfig::default() };
    let alone = answer(&tasks, &mut model("gqa", narrow), None, &mut go_on).unwrap().unwrap();
    assert_eq!(wide, alone, "to the bit");
}

#[test]
fn a_run_that_was_stopped_goes_on() {
    let tasks: Vec<Prepared> = ["piqa 2", "openbookqa 0"].iter().map(|key| made(key, 6)).collect();
    let whole = answer(&tasks, &mut model("gqa", EngineConfig::default()), None, &mut go_on).unwrap().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let small = EngineConfig { max_batch: 1, ..EngineConfig::default() };
    let mut stop = |progress: &recua_eval::Progress| {
        if progress.questions.0 >= 5 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    assert_eq!(answer(&tasks, &mut model("gqa", small.clone()), Some(dir.path()), &mut stop).unwrap(), None);
    // Killed in the middle of a line.
    let file = dir.path().join("piqa.jsonl");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("{text}{{\"doc_id\":5,\"loglik")).unwrap();
    let mut first = None;
    let mut see = |progress: &recua_eval::Progress| {
        first.get_or_insert(*progress);
        ControlFlow::Continue(())
    };
    let resumed = answer(&tasks, &mut model("gqa", small.clone()), Some(dir.path()), &mut see).unwrap().unwrap();
    assert_eq!(resumed, whole);
    assert!(first.unwrap().questions.0 >= 5, "{first:?}");
    // Another question is not answered by what is on disk.
    let other = [made("piqa 1", 6)];
    let mut first = None;
    let mut see = |progress: &recua_eval::Progress| {
        first.get_or_insert(*progress);
        ControlFlow::Continue(())
    };
    answer(&other, &mut model("gqa", small), Some(dir.path()), &mut see).unwrap().unwrap();
    assert_eq!(first.unwrap().questions, (0, 6));
}

#[test]
fn a_server_that_speaks_tls_only_is_refused_by_name() {
    let Err(error) = recua_eval::RemoteModel::open("https://api.example.com/v1", None, None) else { panic!("no TLS here") };
    let text = error.to_string();
    assert!(text.contains("--url") && text.contains("https") && text.contains("proxy"), "{text}");
    let Err(error) = recua_eval::RemoteModel::open("api.example.com", None, None) else { panic!("no address") };
    assert!(error.to_string().contains("http://"), "{error}");
}
