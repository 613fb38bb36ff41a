//! What earlier versions made still opens, resumes and goes on: `tests/fixtures/`.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use recua::data::{Shards, Verify};
use recua::tokenizer::Tokenizer;
use serde_json::Value;

/// Copies a fixture; its paths lead to the copy.
fn copy(from: &Path, to: &Path, root: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (from, to) = (entry.as_ref().unwrap().path(), to.join(entry.as_ref().unwrap().file_name()));
        if from.is_dir() {
            copy(&from, &to, root);
        } else if from.extension().is_some_and(|e| e == "toml") {
            let text = fs::read_to_string(&from).unwrap();
            fs::write(to, text.replace("FIXTURE", root.to_str().unwrap())).unwrap();
        } else {
            fs::copy(from, to).unwrap();
        }
    }
}

fn fixture(version: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(version), dir.path(), dir.path());
    dir
}

/// Runs the binary in a folder; its standard output.
#[track_caller]
fn recua(dir: &Path, args: &[&str], input: &str) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_recua"));
    let command = command.args(args).current_dir(dir).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes()); // not all verbs read
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

fn lines(path: impl AsRef<Path>) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn close(a: &Value, b: &Value) -> bool {
    let [a, b] = [a, b].map(|v| v.as_f64().unwrap());
    (a - b).abs() <= 1e-4 * b.abs()
}

/// The numbers expected are those of the version that made the fixture, at the precision that other processors keep.
#[test]
fn a_run_of_november_2026() {
    let dir = fixture("2026-11");
    let at = |name: &str| dir.path().join(name);

    let tokenizer = Tokenizer::open(at("run")).unwrap();
    assert_eq!((tokenizer.vocab_size(), tokenizer.bos_id(), tokenizer.eos_id()), (300, Some(1), Some(2)));
    for (name, tokens, documents, first) in [
        ("tokens", 4573, 6, "A pack train waits for seven days, 1 times.\n"),
        ("held-out", 767, 1, "Salt and wool counts a river, 2 times.\n"),
    ] {
        let shards = Shards::open(&at(name), Verify::Full).unwrap();
        assert_eq!((shards.len_tokens(), shards.vocab().size, shards.vocab().hash), (tokens, 300, tokenizer.hash()), "{name}");
        let mut ids = Vec::new();
        shards.read(0..tokens, &mut ids).unwrap();
        let ends: Vec<_> = (0..ids.len()).filter(|i| ids[*i] == 2).collect();
        assert_eq!((ids[0], ends.len()), (1, documents), "{name}");
        assert!(tokenizer.decode(&ids[1..ends[0]]).unwrap().starts_with(first), "{name}");
    }

    let expected = [
        [266, 261, 266, 261, 266, 261, 266, 261, 266, 261, 266, 261],
        [291, 266, 261, 266, 261, 266, 261, 266, 261, 266, 261, 266],
    ];
    for (prompt, tokens) in ["The llama", "A river"].into_iter().zip(expected) {
        let out =
            recua(dir.path(), &["generate", "--model", "run", "--temperature", "0", "--tokens", "12", "--json", prompt], "");
        let out: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(out["tokens"], Value::from(tokens.to_vec()), "{prompt}");
    }
    let score = recua(dir.path(), &["eval", "score", "--model", "run", "--json"], "[1,5,9,77,100]\n");
    let score: Value = serde_json::from_str(&score).unwrap();
    let score = score["logprobs"].as_array().unwrap();
    let expected = [-5.624998092651367, -5.587114334106445, -5.699844837188721, -5.867463111877441];
    assert!(score.len() == 4 && score.iter().zip(expected).all(|(a, b)| close(a, &b.into())), "{score:?}");

    recua(dir.path(), &["train", "--run", "run", "--resume"], "");
    let (whole, resumed) = (lines(at("whole.jsonl")), lines(at("run/metrics.jsonl")));
    assert_eq!((whole.len(), resumed.len()), (20, 20));
    for (whole, resumed) in whole.iter().zip(&resumed) {
        for key in ["step", "tokens", "skipped"] {
            assert_eq!(whole[key], resumed[key]);
        }
        for key in ["loss", "lr", "grad_norm"] {
            assert!(close(&resumed[key], &whole[key]), "{key}: {whole} {resumed}");
        }
    }
    assert!(close(&resumed[19]["val_loss"], &whole[19]["val_loss"]), "{} {}", whole[19], resumed[19]);
    assert!(at("run/checkpoints/step-20/state.json").exists());
    recua(dir.path(), &["convert", "run", "hf", "--to", "hf"], "");
}

/// No stage that was done is done again, and the texts are those of the version that began.
#[cfg(feature = "data")]
#[test]
fn a_build_of_november_2026() {
    let dir = fixture("2026-11");
    let build = dir.path().join("pipeline");
    let tables = |stage: &str| {
        let mut all: Vec<_> = ["c4", "books", "wikipedia", "stackexchange"]
            .iter()
            .map(|source| build.join("build").join(stage).join(source).join("shard-00000.parquet"))
            .map(|path| (fs::metadata(&path).unwrap().modified().unwrap(), path))
            .collect();
        all.sort();
        all
    };
    let stages = ["read", "clean", "dedup", "score"];
    let before = stages.map(tables);
    recua(&build, &["data", "build", "--config", "mixture.toml"], "");
    assert_eq!(stages.map(tables), before, "a stage was done again");
    for source in ["c4", "books", "wikipedia", "stackexchange"] {
        let expected = fs::read_to_string(build.join("expected").join(format!("{source}.jsonl"))).unwrap();
        let got = fs::read_to_string(build.join("build/mix").join(source).join("shard-00000.jsonl")).unwrap();
        assert_eq!(got, expected, "{source}");
    }
    let fate = recua(&build, &["data", "explain", "http://c.org/1", "--out", "build"], "");
    assert!(fate.contains("score/c4") && fate.contains("kept"), "{fate}");
}
