//! Results, their page, and comparisons of two.

use recua_eval::compare::{self, compare};
use recua_eval::results::{self, Info, Results, Run, TaskResult};
use recua_eval::{Outcome, report};
use serde_json::{Value, json};

fn outcome(doc_id: usize, lls: &[f64], target: usize, group: Option<&str>) -> Outcome {
    let best = (0..lls.len()).fold(0, |best, at| if lls[at] > lls[best] { at } else { best });
    let right = best == target;
    Outcome {
        doc_id,
        arguments: (0..lls.len()).map(|at| (format!("Q{doc_id} <b>&</script>"), format!(" choice {at}"))).collect(),
        loglikelihoods: lls.to_vec(),
        pred: best.into(),
        target: target.into(),
        correct: Some(right),
        metrics: [("acc".to_owned(), f64::from(right)), ("acc_norm".to_owned(), f64::from(target == 0))].into(),
        group: group.map(str::to_owned),
        categories: vec![if doc_id.is_multiple_of(2) { "even" } else { "odd" }.into()],
        ..Outcome::default()
    }
}

fn info(name: &str, metrics: &[&str], groups: &[&str]) -> Info {
    Info {
        name: name.into(),
        version: "1.0".into(),
        protocol: "lm-eval".into(),
        metrics: metrics.iter().map(|name| (*name).to_owned()).collect(),
        original: 100,
        sha256: "ab".into(),
        groups: groups.iter().map(|name| (*name).to_owned()).collect(),
        ..Info::default()
    }
}

fn run() -> Run {
    Run {
        model: "runs/<small>".into(),
        dtype: "float32".into(),
        protocol: "lm-eval".into(),
        lm_eval: "0.4.13".into(),
        seed: 1234,
        limit: Some(4),
        ..Run::default()
    }
}

/// Two tasks of choices in a group, one of rolling text, one of texts.
fn tasks() -> (Vec<Info>, Vec<Vec<Outcome>>) {
    let choices = vec![
        outcome(0, &[-1.0, -2.0], 0, Some("a")),
        outcome(1, &[-2.0, -1.0], 0, Some("a")),
        outcome(2, &[-1.0, -2.0], 0, Some("b")),
        outcome(3, &[-3.0, -1.0], 1, Some("b")),
    ];
    let more = vec![outcome(0, &[-1.0, -2.0, -3.0, -4.0], 0, None), outcome(1, &[-1.0, -2.0, -3.0, -4.0], 1, None)];
    let rolling = |doc_id: usize, ll: f64, words: f64, bytes: f64| Outcome {
        doc_id,
        arguments: vec![(String::new(), "text".into())],
        loglikelihoods: vec![ll],
        metrics: [("ll".to_owned(), ll), ("words".to_owned(), words), ("bytes".to_owned(), bytes)].into(),
        ..Outcome::default()
    };
    let text = Outcome {
        arguments: vec![("Question".into(), String::new())],
        text: json!(["It is 18.", "<script>alert(1)</script>"]),
        answer: json!(["18", "7"]),
        pred: json!("18"),
        target: json!("18"),
        correct: Some(true),
        metrics: [
            ("exact_match,strict-match".to_owned(), 1.0),
            ("exact_match,maj@2".to_owned(), 0.0),
            ("symbolic".to_owned(), 1.0),
        ]
        .into(),
        ..Outcome::default()
    };
    (
        vec![
            info("piqa", &["acc", "acc_norm"], &["mmlu"]),
            info("boolq", &["acc"], &["mmlu", "alone"]),
            info("wikitext", &["word_perplexity", "byte_perplexity", "bits_per_byte"], &[]),
            info("gsm8k", &["exact_match,strict-match", "exact_match,maj@2"], &[]),
        ],
        vec![choices, more, vec![rolling(0, -10.0, 3.0, 20.0), rolling(1, -20.0, 7.0, 30.0)], vec![text]],
    )
}

fn results() -> (Results, Vec<Vec<Outcome>>) {
    let (infos, outcomes) = tasks();
    let tasks = infos.into_iter().zip(&outcomes).map(|(info, outcomes)| TaskResult::new(info, outcomes)).collect();
    (Results::new(run(), tasks), outcomes)
}

fn close(got: Option<f64>, expected: f64) {
    assert!(got.is_some_and(|got| (got - expected).abs() < 1e-12), "expected {expected}, got {got:?}");
}

#[test]
fn tasks_and_groups_are_summed_by_hand() {
    let (results, _) = results();
    let piqa = &results.tasks[0];
    // 3 of 4 right: sd^2 = (3 * 1/16 + 9/16) / 3 = 1/4, its root over 2.
    close(piqa.metrics["acc"].value, 0.75);
    close(piqa.metrics["acc"].stderr, 0.25);
    // Deviations by group: a: 1/4 - 3/4, b: 1/4 + 1/4; sqrt(2/1 * (1/4 + 1/4)) / 4.
    close(piqa.metrics["acc"].clustered, 0.25);
    close(piqa.chance, 0.5);
    assert_eq!((piqa.categories["even"].value, piqa.categories["odd"].value), (Some(1.0), Some(0.5)));
    let boolq = &results.tasks[1];
    close(boolq.chance, 0.25);
    assert_eq!(boolq.metrics["acc"].clustered, None);
    let wikitext = &results.tasks[2];
    close(wikitext.metrics["word_perplexity"].value, 3.0_f64.exp());
    close(wikitext.metrics["byte_perplexity"].value, 0.6_f64.exp());
    close(wikitext.metrics["bits_per_byte"].value, 0.6 / std::f64::consts::LN_2);
    assert_eq!((wikitext.chance, wikitext.calibration.is_none()), (None, true));
    assert_eq!(results.tasks[3].symbolic, Some(1));
    // A group of one is none; acc of both by questions: (0.75 * 4 + 0.5 * 2) / 6; boolq has no acc_norm.
    assert_eq!(results.groups.len(), 1);
    let group = &results.groups[0];
    close(group.metrics["acc"].value, 4.0 / 6.0);
    // lm-eval's pooled error: 4 * 3 * 1/16 + 2 * 1 * 1/4 = 5/4, over 6 - 2, over 6.
    close(group.metrics["acc"].stderr, (1.25_f64 / 4.0 / 6.0).sqrt());
    assert!(!group.metrics.contains_key("acc_norm"));
    // Softmax of a difference of 1 is 0.731, of 2 is 0.881.
    let curve = piqa.calibration.as_ref().expect("choices have a curve");
    assert_eq!((curve.bins[7].count, curve.bins[8].count), (3, 1));
    assert!(results::table(&results).lines().next().is_some_and(|head| head.contains("chance")));
}

#[test]
fn files_are_in_the_harness_s_layout_and_come_back() {
    let (results, outcomes) = results();
    let slices: Vec<&[Outcome]> = outcomes.iter().map(Vec::as_slice).collect();
    let dir = tempfile::tempdir().expect("a temporary folder");
    results.write(dir.path(), &slices).unwrap_or_else(|error| panic!("{error}"));
    let all: Value = serde_json::from_slice(&std::fs::read(dir.path().join("results.json")).expect("a file")).expect("JSON");
    // lm-eval 0.4.13: result_schema.py.
    for key in [
        "results",
        "groups",
        "group_subtasks",
        "configs",
        "versions",
        "n-shot",
        "higher_is_better",
        "n-samples",
        "config",
        "date",
        "lm_eval_version",
        "model_name",
        "total_evaluation_time_seconds",
    ] {
        assert!(all.get(key).is_some(), "{key}");
    }
    let row = &all["results"]["piqa"];
    assert_eq!(
        (&row["alias"], &row["sample_len"], &row["acc,none"], &row["acc_stderr,none"]),
        (&json!("piqa"), &json!(4), &json!(0.75), &json!(0.25))
    );
    assert_eq!((&row["acc_clustered_stderr,none"], &row["chance,none"]), (&json!(0.25), &json!(0.5)));
    assert_eq!(all["results"]["wikitext"]["word_perplexity_stderr,none"], json!("N/A"));
    assert_eq!(all["results"]["gsm8k"]["exact_match,strict-match"], json!(1.0));
    assert_eq!(all["results"]["gsm8k"]["exact_match_stderr,strict-match"], json!("N/A"));
    assert_eq!((&all["versions"]["piqa"], &all["n-samples"]["piqa"]), (&json!(1.0), &json!({ "original": 100, "effective": 4 })));
    assert_eq!(
        (&all["group_subtasks"]["mmlu"], &all["higher_is_better"]["wikitext"]["bits_per_byte"]),
        (&json!(["piqa", "boolq"]), &json!(false))
    );
    assert_eq!((&all["configs"]["piqa"]["metadata"]["sha256"], &all["config"]["fewshot_seed"]), (&json!("ab"), &json!(1234)));
    assert_eq!(Results::read(dir.path()).unwrap_or_else(|error| panic!("{error}")), results);
    for (task, outcomes) in results.tasks.iter().zip(&outcomes) {
        assert_eq!(&results::read_samples(dir.path(), &task.info.name).unwrap_or_else(|error| panic!("{error}")), outcomes);
    }
    std::fs::write(dir.path().join("samples/piqa.jsonl"), "{\"doc_id\": 0, \"arguments\": [], \"metrics\": {}}\n{\n")
        .expect("a file");
    let error = results::read_samples(dir.path(), "piqa").unwrap_err().to_string();
    assert!(error.contains("piqa.jsonl") && error.contains("line 2"), "{error}");
    std::fs::write(dir.path().join("results.json"), "{\"results\": {}}").expect("a file");
    let error = Results::read(dir.path()).unwrap_err().to_string();
    assert!(error.contains("it has no key `recua`"), "{error}");
}

#[test]
fn the_page_is_whole_and_asks_for_nothing() {
    let (mut results, outcomes) = results();
    let slices: Vec<&[Outcome]> = outcomes.iter().map(Vec::as_slice).collect();
    let page = report::page(&results, &slices);
    for request in ["http:", "https:", "src=", "href=", "url(", "@import", "fetch("] {
        assert!(!page.contains(request), "{request}");
    }
    // What models and data say stays text: one script of ours, and one of data a task.
    assert_eq!(page.matches("<script").count(), 1 + results.tasks.len());
    assert_eq!(page.matches("</script>").count(), 1 + results.tasks.len());
    assert!(page.contains("runs/&lt;small&gt;") && !page.contains("<small>"));
    assert_eq!(page.matches("<svg").count(), 2, "a curve for each task of choices");
    // Beside the paper: PIQA by characters, LLaMA 7B's 79.8 in the same row; not as the paper asks.
    let row = page.lines().find(|line| line.starts_with("<tr><td>PIQA</td>")).expect("the paper's row");
    assert!(row.contains(">acc_norm<") && row.contains(">75.0<") && row.contains(">79.8<") && row.contains(">82.3<"), "{row}");
    let row = page.lines().find(|line| line.starts_with("<tr><td>GSM8K</td>")).expect("the paper's row");
    assert!(row.contains("exact_match,strict-match") && row.contains(">100.0<") && row.contains(">11.0<"), "{row}");
    let row = page.lines().find(|line| line.starts_with("<tr><td>GSM8K, maj1@k</td>")).expect("the paper's row");
    assert!(row.contains("exact_match,maj@2") && row.contains(">0.0<") && row.contains(">69.7<"), "{row}");
    assert!(page.contains("no difference between models"));
    // With other shots than the paper's there is no row.
    results.tasks[0].info.shots = 5;
    assert!(!report::page(&results, &slices).contains("<tr><td>PIQA</td>"));
    let data = page.split("id=\"items-0\">").nth(1).and_then(|rest| rest.split("</script>").next()).expect("items");
    let items: Vec<Value> = serde_json::from_str(data).expect("JSON");
    assert_eq!(
        (items.len(), &items[3]["choices"][1]["gold"], &items[0]["context"]),
        (4, &json!(true), &json!("Q0 <b>&</script>"))
    );
}

#[test]
fn differences_are_paired() {
    let (results, outcomes) = results();
    let slices: Vec<&[Outcome]> = outcomes.iter().map(Vec::as_slice).collect();
    let (a, b) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    results.write(a.path(), &slices).unwrap_or_else(|error| panic!("{error}"));
    // B has question 1 of piqa right too, was not asked question 3, and has no wikitext.
    let (mut infos, mut others) = tasks();
    others[0][1] = outcome(1, &[-1.0, -2.0], 0, None);
    others[0].pop();
    others[1][0].arguments[0].0.push('!');
    infos.remove(2);
    others.remove(2);
    infos[2].sha256 = "cd".into();
    let tasks = infos.into_iter().zip(&others).map(|(info, outcomes)| TaskResult::new(info, outcomes)).collect();
    let slices: Vec<&[Outcome]> = others.iter().map(Vec::as_slice).collect();
    Results::new(run(), tasks).write(b.path(), &slices).unwrap_or_else(|error| panic!("{error}"));
    let comparison = compare(a.path(), b.path()).unwrap_or_else(|error| panic!("{error}"));
    let row = comparison.rows.iter().find(|row| row.task == "piqa" && row.metric == "acc").expect("a row");
    assert_eq!((row.n, row.only), (3, (0, 1)));
    close(Some(row.difference), 1.0 / 3.0);
    // Differences 0, 1 (group a), 0 (group b); deviations -1/3 + 2/3 and -1/3: sqrt(2 * 2/9) / 3.
    close(row.stderr, (4.0_f64 / 9.0).sqrt() / 3.0);
    assert!(!row.is_clear());
    let notes = comparison.notes.join("\n");
    for part in [
        "piqa: 1 questions are in one evaluation only",
        "boolq: 1 questions were put in other words",
        "wikitext: only in A",
        "gsm8k: not the same questions: data (sha256) ab and cd",
    ] {
        assert!(notes.contains(part), "{notes}");
    }
    assert!(compare::table(&comparison).contains("+0.3333"));
    let same = compare(a.path(), a.path()).unwrap_or_else(|error| panic!("{error}"));
    assert!(same.notes.is_empty() && same.rows.iter().all(|row| row.difference == 0.0 && !row.is_clear()));
}
