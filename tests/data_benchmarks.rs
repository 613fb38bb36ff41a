//! Questions of benchmarks in the data of a build: found, counted, and their documents dropped.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use recua::build::{RecuaTokens, benchmark_items};
use recua::corpus::pipeline::{Build, BuildConfig, Silent, Stage, TaskCount, explain};
use serde_json::{Value, json};

use crate::common::outside;

const TASK: &str = r#"
name = "capitals"
version = "1"
source = "made by hand"
kind = "choices"
description = "Here are thirteen words that stand before each and every question of this task alone:\n"
prompt = "Q: {{question}}\nA:"
choices = "answers"
gold = "right"
metrics = ["acc"]
shots = 2

[data]
need = ["question", "answers", "right"]
"#;

const DESCRIPTION: &str = "Here are thirteen words that stand before each and every question of this task alone";
const LONG: &str = "Which town at the mouth of the river Mondego has been the seat of a university of kings since the year 1537";
const HALF: &str =
    "What do people of the northern valley call the narrow stone bridge that was built beside the old mill before the flood";
const ABSENT: &str =
    "Which of these islands is the furthest from any shore that a boat of oars could reach in a single summer night";

/// A folder of data with one task, and sentences that no question has.
fn capitals(dir: &Path) {
    let rows = [(LONG, "Figueira"), (HALF, "Ponte"), ("Too short?", "Yes"), (ABSENT, "Bouvet")];
    let rows: Vec<String> =
        rows.iter().map(|(q, a)| json!({ "question": q, "answers": [a, "Another one"], "right": 0 }).to_string()).collect();
    fs::create_dir_all(dir.join("eval/capitals")).unwrap();
    fs::write(dir.join("eval/capitals/test.jsonl"), rows.join("\n")).unwrap();
    fs::write(dir.join("capitals.toml"), TASK).unwrap();
}

/// Lines that C4's rules keep, that no benchmark has, and of which no two are the same with their digits left out.
fn filler(n: usize) -> String {
    let letters = |n: usize| [n / 676 % 26, n / 26 % 26, n % 26].map(|k| char::from(b'a' + k as u8)).iter().collect::<String>();
    let line = |i: usize| {
        let word = |k: usize| letters((100 * n + i) * 31 + 977 * k);
        format!(
            "The keeper {} told {} that the pier {} had lost {} of its lamps to {}.",
            word(0),
            word(1),
            word(2),
            word(3),
            word(4)
        )
    };
    (0..6).map(line).collect::<Vec<_>>().join("\n")
}

fn config(dir: &Path, pages: &[String], tasks: &[&str], data: &Path, set: &[&str]) -> BuildConfig {
    let line = |(i, text): (usize, &String)| {
        json!({ "text": text, "timestamp": "2019-01-01T00:00:00Z", "url": format!("http://c.org/{i}") }).to_string()
    };
    fs::write(dir.join("c4.json"), pages.iter().enumerate().map(line).collect::<Vec<_>>().join("\n")).unwrap();
    let quoted = |path: &Path| toml::Value::String(path.display().to_string()).to_string();
    let tasks: Vec<String> = tasks.iter().map(|task| toml::Value::String((*task).into()).to_string()).collect();
    let text = format!(
        "out = {}\n[mix]\nvalid = 0.0\n[decontaminate]\ntasks = [{}]\ndata = [{}]\n[sources.c4]\ninputs = [{}]\n",
        quoted(&dir.join("out")),
        tasks.join(", "),
        quoted(data),
        quoted(&dir.join("c4.json"))
    );
    fs::write(dir.join("build.toml"), text).unwrap();
    let set: Vec<String> = ["memory_mb=256", "threads=2"].iter().chain(set).map(|set| (*set).into()).collect();
    BuildConfig::resolve(Some(&dir.join("build.toml")), &set).unwrap()
}

fn run(config: &BuildConfig) -> BTreeMap<String, TaskCount> {
    let items = benchmark_items(config).unwrap();
    let build = Build::new(config, (0, 1), &Silent, &RecuaTokens).unwrap().with_items(items);
    build.run(&Stage::ALL).unwrap();
    build.benchmarks().unwrap().unwrap()
}

fn is_dropped(config: &BuildConfig, id: &str) -> bool {
    explain(config, id).unwrap().iter().any(|(stage, fate)| stage == "score/c4" && format!("{fate:?}").contains("contaminated"))
}

#[test]
fn questions_in_the_data_are_counted_one_by_one() {
    let dir = tempfile::tempdir().unwrap();
    capitals(dir.path());
    // The first question whole and twice, the first half of the second, and what stands before every question.
    let half = HALF.split(' ').take(14).collect::<Vec<_>>().join(" ");
    let pages = [
        format!("{}\nSomebody asked, \"{}?\" and nobody knew.", filler(1), LONG.to_uppercase()),
        format!("{}\nIt was written there: {half} in other words.", filler(2)),
        format!("{}\nThe page begins so: {DESCRIPTION}.", filler(3)),
        format!("{}\nAgain the question was {LONG}, they said.", filler(4)),
        filler(5),
    ];
    let task = dir.path().join("capitals.toml");
    let tasks = [task.to_str().unwrap()];
    let counted = |tasks: &BTreeMap<String, TaskCount>| {
        assert_eq!(tasks.keys().collect::<Vec<_>>(), ["capitals"]);
        let count = &tasks["capitals"];
        assert_eq!((count.items, count.too_short, count.found), (4, 1, 2), "{count:?}");
        assert!((count.share - 0.5).abs() < 1e-12 && count.sources["c4"] == 2, "{count:?}");
        let which: Vec<_> = count.which.iter().map(|item| (item.doc_id, item.documents)).collect();
        assert_eq!(which, [(0, 2), (1, 1)]);
        // 22 words have ten runs of 13, and 14 have two.
        let [whole, half] = &count.which[..] else { panic!("{count:?}") };
        assert_eq!((whole.found, whole.runs, half.found), (10, 10, 2), "{count:?}");
    };
    let set = config(dir.path(), &pages, &tasks, &dir.path().join("eval"), &[]);
    counted(&run(&set));
    let dropped: Vec<bool> = (0..5).map(|i| is_dropped(&set, &format!("http://c.org/{i}"))).collect();
    assert_eq!(dropped, [true, true, false, true, false]);
    let page = fs::read_to_string(set.out.join("report.html")).unwrap();
    assert!(
        page.contains("Benchmarks in the data") && page.contains("<td>50.0 %") && page.contains("river Mondego"),
        "no section"
    );
    let file: BTreeMap<String, TaskCount> =
        serde_json::from_slice(&fs::read(set.out.join("contamination.json")).unwrap()).unwrap();
    counted(&file);
    // Again: nothing is left to do, and the counts are there.
    counted(&run(&set));

    // Only counted.
    let kept = config(dir.path(), &pages, &tasks, &dir.path().join("eval"), &["decontaminate.remove=false"]);
    counted(&run(&kept));
    assert!((0..5).all(|i| !is_dropped(&kept, &format!("http://c.org/{i}"))));

    // Without benchmarks the documents stay as they are, and nothing is said.
    let none = config(dir.path(), &pages, &[], &dir.path().join("eval"), &["decontaminate.data=[]"]);
    let build = Build::new(&none, (0, 1), &Silent, &RecuaTokens).unwrap();
    build.run(&Stage::ALL).unwrap();
    assert_eq!(build.benchmarks().unwrap(), None);
    assert!(!is_dropped(&none, "http://c.org/0"));
}

#[test]
fn tasks_that_cannot_be_read_are_errors_before_the_work() {
    let dir = tempfile::tempdir().unwrap();
    capitals(dir.path());
    let data = dir.path().join("eval");
    let told = |tasks: &[&str], set: &[&str]| {
        let set = config(dir.path(), &[filler(1)], tasks, &data, set);
        let error = benchmark_items(&set).unwrap_err().to_string();
        assert!(!set.out.exists());
        error
    };
    let error = told(&["hellaswga"], &[]);
    assert!(error.contains("decontaminate.tasks") && error.contains("hellaswga"), "{error}");
    let error = told(&["hellaswag"], &[]);
    assert!(error.contains("hellaswag") && error.contains("decontaminate.data"), "{error}");
    let error = told(&["quick"], &[]);
    assert!(error.contains("decontaminate.tasks") && error.contains("held-out"), "{error}");
    // Through the binary: nothing is written.
    let out = Command::new(env!("CARGO_BIN_EXE_recua"))
        .args(["data", "build", "--config"])
        .arg(dir.path().join("build.toml"))
        .args(["--set", "decontaminate.tasks=[\"hellaswag\"]"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.code() == Some(1) && text.contains("hellaswag") && !dir.path().join("out").exists(), "{text}");
    // Half of the setting, and a build that was not handed the questions.
    let half = BuildConfig::resolve(Some(&dir.path().join("build.toml")), &["decontaminate.data=[]".into()]);
    assert!(half.unwrap_err().to_string().contains("decontaminate.data"));
    let set = config(dir.path(), &[filler(1)], &["hellaswag"], &data, &[]);
    let error = Build::new(&set, (0, 1), &Silent, &RecuaTokens).unwrap().run(&Stage::ALL).unwrap_err().to_string();
    assert!(error.contains("with_items") && !set.out.exists(), "{error}");
}

/// Runs of 13 words, the plain way: all samples are ASCII but for some letters that have no other form.
fn runs(text: &str) -> BTreeSet<String> {
    let lower = text.to_lowercase();
    let words: Vec<&str> = lower.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
    words.windows(13).map(|run| run.join(" ")).collect()
}

fn strings(value: &Value, into: &mut Vec<String>) {
    match value {
        Value::String(text) => into.push(text.clone()),
        Value::Array(values) => values.iter().for_each(|value| strings(value, into)),
        Value::Object(fields) => fields.values().for_each(|value| strings(value, into)),
        _ => {}
    }
}

/// Planted questions of published sets are found, all of them and no others.
#[test]
fn planted_questions_of_published_sets_are_found() {
    let Some(samples) = outside("RECUA_EVAL_DATA", "") else { return };
    let dir = tempfile::tempdir().unwrap();
    let rows = |file: &str| -> Vec<Value> {
        let text = fs::read_to_string(samples.join(file)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let hellaswag = rows("hellaswag/hellaswag_val_sample.jsonl");
    let winogrande = rows("winogrande/train_sample.jsonl");
    let ending =
        |row: &Value| format!("{} {}", text(&row["ctx"]), text(&row["endings"][row["label"].as_u64().unwrap() as usize]));
    let filled =
        |row: &Value| text(&row["sentence"]).replace('_', &text(&row[if row["answer"] == "1" { "option1" } else { "option2" }]));
    // A sentence of which 13 words in a row are only there with the word that belongs into its gap.
    let gap = winogrande.iter().position(|row| {
        let (with, without) = (runs(&filled(row)), runs(&text(&row["sentence"])));
        !with.is_empty() && with.is_disjoint(&without)
    });
    let gap = gap.expect("a sentence whose gap is in its middle");
    let planted = [ending(&hellaswag[3]), ending(&hellaswag[57]), filled(&winogrande[gap])];
    let mut pages: Vec<String> =
        planted.iter().enumerate().map(|(i, text)| format!("{}\n{text} It was so.", filler(i))).collect();
    pages.push(filler(9));
    let tasks = ["hellaswag", "winogrande", "truthfulqa_mc1"];
    let set = config(dir.path(), &pages, &tasks, &samples, &["decontaminate.remove=false"]);
    let counts = run(&set);
    let data = pages.iter().flat_map(|page| runs(page)).collect::<BTreeSet<String>>();
    let in_data = |rows: &[Value], whole: &dyn Fn(&Value) -> String| -> Vec<usize> {
        let is_in = |row: &Value| {
            let mut texts = vec![whole(row)];
            strings(row, &mut texts);
            texts.iter().flat_map(|text| runs(text)).any(|run| data.contains(&run))
        };
        rows.iter().enumerate().filter(|(_, row)| is_in(row)).map(|(at, _)| at).collect()
    };
    let found = |task: &str| -> Vec<usize> { counts[task].which.iter().map(|item| item.doc_id).collect() };
    let expected = in_data(&hellaswag, &ending);
    assert!(expected.contains(&3) && expected.contains(&57) && expected.len() < 20, "{expected:?}");
    assert_eq!(found("hellaswag"), expected);
    let expected = in_data(&winogrande, &filled);
    assert!(expected.contains(&gap) && expected.len() < 5, "{expected:?}");
    assert_eq!(found("winogrande"), expected);
    assert_eq!((counts["hellaswag"].items, counts["winogrande"].items, counts["truthfulqa_mc1"].found), (200, 200, 0));
}
