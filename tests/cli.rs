//! The binary itself: the whole path by command line, what it says to misuse, signals, and kill -9 at any moment.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

const WORDS: &[&str] = &[
    "the", "pack", "train", "walks", "over", "a", "high", "pass", "and", "carries", "salt", "wool", "maize", "42", "llamas",
    "slowly", "down", "to", "every", "village",
];

/// Text that can be learned: each word has three likely successors.
fn text(sentences: usize, seed: u64) -> String {
    let mut rng = Rng(seed);
    let (mut out, mut word) = (String::new(), 0);
    for _ in 0..sentences {
        for _ in 0..6 + rng.below(6) {
            word = (word * 7 + 1 + rng.below(3)) % WORDS.len();
            out.push_str(WORDS[word]);
            out.push(' ');
        }
        out.push_str(".\n");
    }
    out
}

/// SplitMix64.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

/// A folder with a tokenizer and two datasets, made by the command line.
struct Fixture {
    dir: TempDir,
}

impl Fixture {
    fn new() -> Self {
        let it = Self { dir: tempfile::tempdir().unwrap() };
        for (name, sentences, seed) in [("train", 1500, 1), ("valid", 150, 2)] {
            std::fs::create_dir(it.path(name)).unwrap();
            for (i, part) in ["a", "b"].iter().enumerate() {
                std::fs::write(it.path(name).join(format!("{part}.txt")), text(sentences, seed + 10 * i as u64)).unwrap();
            }
        }
        it.ok(&["tokenizer", "train", "--input", "train", "--out", "tokenizer.json", "--vocab-size", "300"]);
        for name in ["train", "valid"] {
            it.ok(&["data", "tokenize", "--input", name, "--tokenizer", "tokenizer.json", "--out", &format!("{name}-tokens")]);
        }
        it
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_recua"));
        command.args(args).current_dir(self.dir.path()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs to the end, with `input` on stdin.
    fn run_with(&self, args: &[&str], input: &str) -> Output {
        let mut child = self.command(args).stdin(Stdio::piped()).spawn().unwrap();
        // A verb that fails early does not read.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    }

    /// Runs to the end and must succeed; gives stdout.
    #[track_caller]
    fn ok_with(&self, args: &[&str], input: &str) -> String {
        let out = self.run_with(args, input);
        assert!(out.status.success(), "recua {}: {}\n{}", args.join(" "), out.status, String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        self.ok_with(args, "")
    }

    /// Must fail with `code`, without a panic, saying each of `parts` on stderr and nothing on stdout.
    #[track_caller]
    fn fails_with(&self, args: &[&str], input: &str, code: i32, parts: &[&str]) {
        let out = self.run_with(args, input);
        let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        let what = format!("recua {}\nstdout: {stdout}\nstderr: {stderr}", args.join(" "));
        assert_eq!(out.status.code(), Some(code), "{what}");
        assert!(!stderr.contains("panicked"), "{what}");
        assert!(stdout.is_empty(), "{what}");
        for part in parts {
            assert!(stderr.contains(part), "`{part}` is not in stderr of {what}");
        }
    }

    #[track_caller]
    fn fails(&self, args: &[&str], code: i32, parts: &[&str]) {
        self.fails_with(args, "", code, parts);
    }

    /// The bytes of a file of a run's checkpoint.
    #[track_caller]
    fn saved(&self, run: &str, step: u64, file: &str) -> Vec<u8> {
        let path = self.path(run).join(format!("checkpoints/step-{step}")).join(file);
        std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    /// A run's metrics without the times: step, tokens, loss, learning rate, gradient norm, as written.
    #[track_caller]
    fn metrics(&self, run: &str) -> Vec<[String; 5]> {
        let text = std::fs::read_to_string(self.path(run).join("metrics.jsonl")).unwrap();
        text.lines()
            .map(|line| {
                let record: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"));
                ["step", "tokens", "loss", "lr", "grad_norm"].map(|key| record[key].to_string())
            })
            .collect()
    }
}

/// Arguments of a small run: 32 tokens a sample, a step takes about a millisecond.
fn train<'a>(run: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let base = "train --data train-tokens --valid valid-tokens --preset debug --set model.dim=32 --set model.n_layers=1 \
                --set model.max_seq_len=32 --set train.batch=4 --set train.val_windows=8 --set optim.warmup_steps=5 \
                --set optim.lr=3e-3 --set sample.tokens=8";
    base.split_whitespace().chain(["--run", run]).chain(more.iter().copied()).collect()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{text}: {e}"))
}

#[test]
fn held_out_sets_are_measured_each_on_its_own() {
    let f = Fixture::new();
    std::fs::create_dir(f.path("short")).unwrap();
    std::fs::write(f.path("short/a.txt"), "a word").unwrap();
    f.ok(&["data", "tokenize", "--input", "short", "--tokenizer", "tokenizer.json", "--out", "short-tokens"]);
    let run = |run: &str, sets: &[(&str, &str)]| {
        let set: Vec<String> = sets.iter().map(|(key, dir)| format!("data.{key}={}", f.path(dir).display())).collect();
        let mut args = train(run, &["--steps", "3", "--json"]);
        let at = args.iter().position(|a| *a == "--valid").unwrap();
        args.drain(at..at + 2);
        args.extend(set.iter().flat_map(|s| ["--set", s.as_str()]));
        json(&f.ok(&args))
    };
    let all = run("all", &[("valid.seen", "train-tokens"), ("valid.held", "valid-tokens"), ("valid.short", "short-tokens")]);
    let sets = all["val_losses"].as_object().unwrap();
    assert_eq!(sets.keys().collect::<Vec<_>>(), ["held", "seen"], "the set without a whole window is left out");
    for (name, dir) in [("seen", "train-tokens"), ("held", "valid-tokens")] {
        let alone = run(name, &[("valid", dir)]);
        assert_eq!(alone["val_loss"], sets[name], "{name}");
        assert_eq!(alone["val_losses"], json("{}"));
    }
    // Eight windows of each.
    let mean = (sets["held"].as_f64().unwrap() + sets["seen"].as_f64().unwrap()) / 2.0;
    assert!((all["val_loss"].as_f64().unwrap() - mean).abs() < 1e-12 * mean);
    let metrics = std::fs::read_to_string(f.path("all/metrics.jsonl")).unwrap();
    assert_eq!(json(metrics.lines().last().unwrap())["val_losses"], all["val_losses"]);
    assert!(std::fs::read_to_string(f.path("all/report.html")).unwrap().contains("validation loss, held"));
}

#[test]
fn text_to_tokens_to_weights_to_text() {
    let f = Fixture::new();
    // Tokens: decode turns back what encode made.
    let line = "the pack train 1942 \u{2581}\u{1F999} </s>\n";
    let ids = f.ok_with(&["tokenizer", "encode", "--tokenizer", "tokenizer.json", "--json"], &format!("{}\n", Value::from(line)));
    let back = f.ok_with(&["tokenizer", "decode", "--tokenizer", "tokenizer.json", "--json"], &ids);
    assert_eq!(json(&back), Value::from(line));

    // Weights: the loss falls well below that of guessing, ln(vocabulary).
    let summary = json(&f.ok(&train("run", &["--steps", "150", "--json"])));
    let vocab = json(&std::fs::read_to_string(f.path("train-tokens/dataset.json")).unwrap())["vocab"]["size"].as_f64().unwrap();
    let loss = summary["val_loss"].as_f64().unwrap();
    assert!(loss < 0.7 * vocab.ln(), "validation loss {loss} of a vocabulary of {vocab}");
    for file in ["config.toml", "metrics.jsonl", "report.html", "log.txt", "tokenizer.json", "checkpoints/step-150/state.json"] {
        assert!(f.path("run").join(file).exists(), "{file}");
    }
    assert!(std::fs::read_dir(f.path("run")).unwrap().any(|e| e.unwrap().file_name().to_string_lossy().starts_with("events.")));

    // Text: the same seed writes the same.
    let generate = ["generate", "--model", "run", "the pack", "--tokens", "20", "--seed", "7"];
    let first = f.ok(&generate);
    assert!(first.starts_with("the pack") && first.len() > "the pack".len() + 1, "{first:?}");
    assert_eq!(first, f.ok(&generate));

    // Scores survive every format, exactly; the formats are told apart without being named.
    let lines = "[1,5,6,7,100,200]\n[1]\n[1,260,261,262]\n";
    let score = |model: &str| f.ok_with(&["eval", "score", "--model", model, "--json"], lines);
    let scores = score("run");
    let rows: Vec<Value> = scores.lines().map(json).collect();
    assert_eq!(rows.iter().map(|r| r["logprobs"].as_array().unwrap().len()).collect::<Vec<_>>(), [5, 0, 3]);
    assert!(rows.iter().flat_map(|r| r["logprobs"].as_array().unwrap()).all(|p| p.as_f64().unwrap() < 0.0));
    for (from, to, format) in [("run", "as-hf", "hf"), ("as-hf", "as-meta", "meta"), ("as-meta", "as-native", "native")] {
        f.ok(&["convert", from, to, "--to", format]);
        assert_eq!(score(to), scores, "{format}");
    }
    // Training goes on from any of them; the model's shape comes from there.
    let start = ["train", "--run", "more", "--init", "as-hf", "--data", "train-tokens", "--steps", "2", "--json"];
    assert!(json(&f.ok(&start))["loss"].as_f64().unwrap() < 0.7 * vocab.ln());
}

#[cfg(feature = "eval")]
#[test]
fn benchmarks_of_a_training_are_those_of_its_checkpoint() {
    let it = Fixture::new();
    let eval = ["--set", "eval.every=20", "--set", "eval.limit=8", "--steps", "40", "--set", "train.val_every=0"];
    it.ok(&train("r", &eval));
    let metrics = std::fs::read_to_string(it.path("r/metrics.jsonl")).unwrap();
    let of_step = |n: usize| json(metrics.lines().nth(n - 1).unwrap())["eval"].clone();
    assert!(of_step(19).is_null() && of_step(20).is_object());
    assert!(std::fs::read_to_string(it.path("r/report.html")).unwrap().contains("Benchmarks"));
    let after = json(&it.ok(&["eval", "run", "--model", "r", "--suite", "quick", "--limit", "8", "--out", "scores", "--json"]));
    for task in after["tasks"].as_array().unwrap() {
        let name = task["info"]["name"].as_str().unwrap();
        let value = task["metrics"].as_object().unwrap().values().next().unwrap()["value"].as_f64().unwrap();
        let during = of_step(40)[name.trim_start_matches("quick_")].as_f64().unwrap();
        assert!((value - during).abs() < 1e-9, "{name}: {value} {during}");
    }
    assert_eq!(after["tasks"].as_array().unwrap().len(), 4);
    let samples = std::fs::read_to_string(it.path("scores/samples/quick_copy.jsonl")).unwrap();
    assert_eq!(samples.lines().count(), 8);
    assert_eq!(json(samples.lines().next().unwrap())["loglikelihoods"].as_array().unwrap().len(), 4);
    assert!(it.path("scores/report.html").is_file() && !it.path("scores/partial").exists());
    it.fails(&["eval", "run", "--model", "r", "--tasks", "nothing"], 2, &["`nothing` is no task"]);
    it.fails(&["eval", "run", "--model", "r", "--tasks", "piqa", "--data", "."], 1, &["folder piqa", "--data"]);
}

#[test]
fn misuse_is_told_by_exit_code_2() {
    let f = Fixture::new();
    // The parser's own.
    f.fails(&[], 2, &["Usage: recua"]);
    f.fails(&["fly"], 2, &["unrecognized subcommand 'fly'"]);
    f.fails(&["train", "--run", "r", "--backend", "tpu"], 2, &["no backend is called `tpu`", "flex, ndarray, wgpu"]);
    f.fails(&["train", "--run", "r", "--backend", "flex:1"], 2, &["`flex` has one device only"]);
    f.fails(&["convert", "a", "b", "--to", "ggml"], 2, &["choose hf, meta, gguf or native"]);
    // Settings: a wrong key names the right ones.
    f.fails(&train("r", &["--set", "optim.learning_rate=1"]), 2, &["unknown key `optim.learning_rate`", "`lr`"]);
    f.fails(&train("r", &["--set", "optimizer.lr=1"]), 2, &["unknown key `optimizer`", "`optim`"]);
    f.fails(&train("r", &["--set", "optim.lr=fast"]), 2, &["optim", "lr"]);
    f.fails(&train("r", &["--set", "optim.lr=-1"]), 2, &["optim.lr: expected a number of at least 0, got -1"]);
    f.fails(&train("r", &["--set", "optim.lr"]), 2, &["expected KEY=VALUE, got `optim.lr`"]);
    f.fails(&train("r", &["--set", "train.steps=0"]), 2, &["train.steps: expected at least 1, got 0"]);
    f.fails(&train("r", &["--set", "train.micro_batch=3"]), 2, &["batch 4 is not a multiple of micro_batch 3"]);
    f.fails(&["train", "--run", "r", "--data", "train-tokens", "--preset", "8b"], 2, &["no preset `8b`", "7b", "debug"]);
    f.fails(&["train", "--run", "r"], 2, &["no dataset given", "pass --data DIR"]);
    f.fails(&train("r", &["--weights", "1", "2"]), 2, &["2 weights for 1 datasets"]);
    f.fails(&["train", "--run", "r", "--data", "train-tokens", "--threads", "0"], 2, &["--threads: expected at least 1"]);
    // stdin.
    let score = ["eval", "score", "--json", "--model", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/tiny_llama")];
    for (input, part) in
        [("[1, 2\n", "stdin line 1: expected a JSON array of token ids"), ("[1,9999]\n", "token 9999 is outside")]
    {
        f.fails_with(&score, input, 2, &[part]);
    }
    let encode = ["tokenizer", "encode", "--tokenizer", "tokenizer.json", "--json"];
    f.fails_with(&encode, "no json\n", 2, &["stdin line 1: expected a JSON string"]);
    let decode = ["tokenizer", "decode", "--tokenizer", "tokenizer.json"];
    f.fails_with(&decode, "1 two\n", 2, &["stdin line 1: `two` is not a token id"]);
    // Nothing of all this made a run.
    assert!(!f.path("r").exists());
}

#[test]
fn what_cannot_be_done_is_told_by_exit_code_1() {
    let f = Fixture::new();
    // Nothing there, nothing in it.
    f.fails(&["tokenizer", "train", "--input", "nowhere", "--out", "t.json"], 1, &["nowhere"]);
    std::fs::create_dir(f.path("empty")).unwrap();
    std::fs::write(f.path("empty/blank.txt"), "").unwrap();
    f.fails(&["tokenizer", "train", "--input", "empty", "--out", "t.json"], 1, &["no "]);
    f.fails(&["data", "tokenize", "--input", "empty", "--tokenizer", "tokenizer.json", "--out", "e"], 1, &["empty", "no "]);
    f.fails(&["train", "--run", "r", "--data", "nowhere"], 1, &["nowhere"]);
    f.fails(&["generate", "--model", "nowhere", "x"], 1, &["nowhere", "no checkpoint"]);
    f.fails(&["quickstart", "--run", "q", "--input", "empty"], 1, &["empty", "no "]);
    // Longer than the model.
    f.fails(&train("r", &["--set", "train.seq_len=33"]), 1, &["train.seq_len", "33 tokens are more than the 32"]);
    // Vocabularies that differ: of model and data, of tokenizer and data, of tokenizer and model.
    f.fails(&train("r", &["--set", "model.vocab_size=299"]), 1, &["vocabulary mismatch", "the model has 299"]);
    f.ok(&["tokenizer", "train", "--input", "valid", "--out", "other.json", "--vocab-size", "270"]);
    f.fails(&train("r", &["--tokenizer", "other.json"]), 1, &["vocabulary mismatch", "other.json", "pass the tokenizer"]);
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/tiny_llama");
    f.fails(&["generate", "--model", golden, "x"], 1, &["no tokenizer", "pass --tokenizer FILE"]);
    let mut rng = Rng(9);
    let letters: Vec<String> =
        (0..4000).map(|i| char::from(b'a' + rng.below(26) as u8).to_string() + [" ", ""][(i % 4 != 0) as usize]).collect();
    std::fs::write(f.path("letters.txt"), letters.concat()).unwrap();
    f.ok(&["tokenizer", "train", "--input", "letters.txt", "--out", "large.json", "--vocab-size", "520"]);
    let tokenizer = ["--tokenizer", "large.json"];
    f.fails(&[&["generate", "--model", golden, "x"], &tokenizer[..]].concat(), 1, &["vocabulary mismatch", "the model has 512"]);
    // Backends that this build or machine does not have.
    if !cfg!(feature = "cuda") {
        f.fails(&train("r", &["--backend", "cuda"]), 1, &["backend `cuda`: not compiled", "--features cuda"]);
    }
    if !cfg!(feature = "wgpu") {
        f.fails(&train("r", &["--backend", "wgpu:cpu"]), 1, &["backend `wgpu:cpu`: not compiled", "--features wgpu"]);
    }
    f.fails(&train("r", &["--resume"]), 1, &["no checkpoint to resume from", "without --resume"]);
    assert!(!f.path("r/checkpoints/step-1").exists());

    // Files that are damaged are named, with what to do.
    let shard = std::fs::read_dir(f.path("train-tokens")).unwrap().map(|e| e.unwrap().path());
    let shard = shard.max_by_key(|p| p.metadata().unwrap().len()).unwrap();
    let whole = std::fs::read(&shard).unwrap();
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 1;
    std::fs::write(&shard, &damaged).unwrap();
    let name = shard.file_name().unwrap().to_str().unwrap();
    f.fails(&train("r2", &["--steps", "1"]), 1, &[name, "checksum"]);
    std::fs::write(&shard, &whole[..whole.len() / 2]).unwrap();
    f.fails(&train("r2", &["--steps", "1"]), 1, &[name]);
    std::fs::write(&shard, &whole).unwrap();

    f.ok(&train("r2", &["--steps", "1"]));
    f.fails(&train("r2", &["--steps", "1"]), 2, &["r2 already holds a run", "--resume"]);
    // A resumption that is refused leaves the run as it was.
    let config = std::fs::read_to_string(f.path("r2/config.toml")).unwrap();
    f.fails(&train("r2", &["--steps", "2", "--resume"]), 2, &["planned for 1 steps, now 2"]);
    f.fails(&["train", "--run", "r2", "--resume", "--set", "train.seed=9"], 2, &["seed"]);
    assert_eq!(std::fs::read_to_string(f.path("r2/config.toml")).unwrap(), config);
    let weights = f.path("r2/checkpoints/step-1/model.safetensors");
    let mut damaged = std::fs::read(&weights).unwrap();
    *damaged.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, damaged).unwrap();
    f.fails(&["eval", "score", "--model", "r2/checkpoints/step-1"], 1, &["model.safetensors", "not a usable checkpoint"]);
    f.fails(&["generate", "--model", "r2", "x"], 1, &["no whole checkpoint", "model.safetensors"]);
    f.fails(&["train", "--run", "r2", "--resume"], 1, &["no checkpoint to resume from", "step-1"]);
}

#[test]
fn dry_run_prints_settings_that_train_takes() {
    let f = Fixture::new();
    let printed = f.ok(&train("r", &["--dry-run", "--steps", "3"]));
    assert!(printed.contains("\n# ") && printed.contains("tokens a step"), "{printed}");
    assert!(!f.path("r").exists());
    std::fs::write(f.path("settings.toml"), &printed).unwrap();
    f.ok(&train("a", &["--steps", "3"]));
    f.ok(&["train", "--run", "b", "--config", "settings.toml"]);
    assert_eq!(f.saved("a", 3, "model.safetensors"), f.saved("b", 3, "model.safetensors"));
    let config = |run: &str| std::fs::read_to_string(f.path(run).join("config.toml")).unwrap();
    assert_eq!(config("a"), config("b"));
    assert!(printed.starts_with(&config("a")), "{printed}");
}

#[cfg(unix)]
mod unix {
    use std::os::unix::process::ExitStatusExt;
    use std::time::{Duration, Instant};

    use super::*;

    /// Waits until the metrics of a run that goes on have `lines` lines.
    fn wait_for_steps(f: &Fixture, child: &mut std::process::Child, run: &str, lines: usize) {
        let path = f.path(run).join("metrics.jsonl");
        while std::fs::read_to_string(&path).map_or(0, |t| t.lines().count()) < lines {
            assert!(child.try_wait().unwrap().is_none(), "{run}: it ended before step {lines}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    #[track_caller]
    fn same_end(f: &Fixture, run: &str, whole: &str, steps: u64) {
        for file in ["model.safetensors", "optim.safetensors"] {
            assert!(f.saved(run, steps, file) == f.saved(whole, steps, file), "{run}: {file} differs from {whole}'s");
        }
        assert_eq!(f.metrics(run), f.metrics(whole), "{run}: metrics");
    }

    #[test]
    fn an_interrupted_run_saves_and_goes_on_bit_for_bit() {
        let f = Fixture::new();
        let steps = ["--steps", "400", "--set", "train.checkpoint_every=0", "--set", "train.val_every=100"];
        f.ok(&train("whole", &steps));
        for (signal, run) in [(libc::SIGINT, "int"), (libc::SIGTERM, "term")] {
            let mut child = f.command(&train(run, &steps)).spawn().unwrap();
            wait_for_steps(&f, &mut child, run, 20);
            // SAFETY: kill has no preconditions; the child has not been waited for, so that its number is its own.
            assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, signal) }, 0);
            let out = child.wait_with_output().unwrap();
            let stderr = String::from_utf8_lossy(&out.stderr);
            assert_eq!(out.status.code(), Some(130), "{stderr}");
            assert!(stderr.contains("interrupted at step") && stderr.contains("go on with --resume"), "{stderr}");
            let done = f.metrics(run).len();
            assert!((20..400).contains(&done), "{done} steps were made");
            assert!(f.path(run).join(format!("checkpoints/step-{done}/state.json")).exists());
            f.ok(&["train", "--run", run, "--resume"]);
            same_end(&f, run, "whole", 400);
        }
        // A run that is finished says how it ended once more, and stays as it is.
        let summary = json(&f.ok(&["train", "--run", "int", "--resume", "--json"]));
        let last = f.metrics("whole").pop().unwrap();
        assert_eq!(["step", "loss"].map(|key| summary[key].to_string()), [last[0].clone(), last[2].clone()]);
        assert!(summary["val_loss"].is_f64(), "{summary}");
        same_end(&f, "int", "whole", 400);
    }

    /// A Hugging Face folder of zeros, 170 MB in 111 tensors that take no room on the disk.
    fn large_folder(dir: &Path) {
        let (dim, ffn, layers, vocab) = (768, 2048, 12, 64);
        std::fs::create_dir(dir).unwrap();
        let config = serde_json::json!({
            "model_type": "llama", "hidden_size": dim, "intermediate_size": ffn, "num_hidden_layers": layers, "num_attention_heads": 12,
            "num_key_value_heads": 12, "vocab_size": vocab, "rms_norm_eps": 1e-6, "rope_theta": 1e4, "max_position_embeddings": 256,
            "tie_word_embeddings": false, "hidden_act": "silu",
        });
        std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
        let mut tensors = vec![
            ("model.embed_tokens.weight".into(), vec![vocab, dim]),
            ("model.norm.weight".into(), vec![dim]),
            ("lm_head.weight".into(), vec![vocab, dim]),
        ];
        for layer in 0..layers {
            for (name, shape) in [
                ("self_attn.q_proj", vec![dim, dim]),
                ("self_attn.k_proj", vec![dim, dim]),
                ("self_attn.v_proj", vec![dim, dim]),
                ("self_attn.o_proj", vec![dim, dim]),
                ("mlp.gate_proj", vec![ffn, dim]),
                ("mlp.up_proj", vec![ffn, dim]),
                ("mlp.down_proj", vec![dim, ffn]),
                ("input_layernorm", vec![dim]),
                ("post_attention_layernorm", vec![dim]),
            ] {
                tensors.push((format!("model.layers.{layer}.{name}.weight"), shape));
            }
        }
        let mut end = 0;
        let header: serde_json::Map<String, Value> = tensors
            .into_iter()
            .map(|(name, shape)| {
                let begin = end;
                end += 2 * shape.iter().product::<usize>();
                (name, serde_json::json!({ "dtype": "BF16", "shape": shape, "data_offsets": [begin, end] }))
            })
            .collect();
        let header = Value::from(header).to_string();
        let mut file = std::fs::File::create(dir.join("model.safetensors")).unwrap();
        file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
        file.write_all(header.as_bytes()).unwrap();
        file.set_len((8 + header.len() + end) as u64).unwrap();
    }

    #[test]
    fn a_conversion_that_is_interrupted_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        large_folder(&dir.path().join("model"));
        let names = || {
            let mut names: Vec<_> =
                std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        for (signal, format) in [(libc::SIGINT, "native"), (libc::SIGTERM, "hf"), (libc::SIGINT, "meta")] {
            let mut child = Command::new(env!("CARGO_BIN_EXE_recua"))
                .args(["convert", "model", "made", "--to", format, "--dtype", "f32"])
                .current_dir(dir.path())
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            while names() == ["model"] {
                assert!(child.try_wait().unwrap().is_none(), "{format}: it ended before it began to write");
                std::thread::sleep(Duration::from_millis(1));
            }
            // SAFETY: kill has no preconditions; the child has not been waited for, so that its number is its own.
            assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, signal) }, 0);
            let out = child.wait_with_output().unwrap();
            let stderr = String::from_utf8_lossy(&out.stderr);
            assert_eq!(out.status.code(), Some(130), "{format}: {stderr}");
            assert!(stderr.contains("interrupted; nothing is left of made"), "{format}: {stderr}");
            assert!(out.stdout.is_empty());
            assert_eq!(names(), ["model"], "{format}");
        }
        // What was in the way is no reason to fail now, and what it makes is whole.
        let mut command = Command::new(env!("CARGO_BIN_EXE_recua"));
        let out = command.args(["convert", "model", "made", "--to", "hf"]).current_dir(dir.path()).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        assert_eq!(names(), ["made", "model"]);
    }

    #[test]
    fn a_run_in_use_is_refused() {
        let f = Fixture::new();
        let args = train("run", &["--steps", "100000"]);
        let mut child = f.command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait_for_steps(&f, &mut child, "run", 1);
        f.fails(&args, 2, &["run is in use"]);
        f.fails(&["train", "--run", "run", "--resume"], 2, &["run is in use"]);
        let _ = child.kill();
        child.wait().unwrap();
        // The lock went with the process.
        f.fails(&["train", "--run", "run", "--resume"], 1, &["no checkpoint to resume from"]);
    }

    #[test]
    fn resume_truncates_metrics_and_skips_what_is_half_written() {
        let f = Fixture::new();
        let more = ["--steps", "12", "--set", "train.checkpoint_every=4", "--set", "train.keep_last=3"];
        f.ok(&train("run", &more));
        f.ok(&train("whole", &more));
        // Step 12 is damaged, a later one half-written, and the metrics end in the middle of a line.
        let run = f.path("run");
        let weights = run.join("checkpoints/step-12/model.safetensors");
        let bytes = std::fs::read(&weights).unwrap();
        std::fs::write(&weights, &bytes[..bytes.len() - 100]).unwrap();
        let half = run.join("checkpoints/step-16.tmp-1");
        std::fs::create_dir(&half).unwrap();
        std::fs::write(half.join("model.safetensors"), &bytes[..100]).unwrap();
        let metrics = run.join("metrics.jsonl");
        let text = std::fs::read_to_string(&metrics).unwrap();
        std::fs::write(&metrics, format!("{text}{{\"step\":13,\"tok")).unwrap();
        // It goes on from step 8 and says why.
        let out = f.run_with(&["train", "--run", "run", "--resume"], "");
        let stderr = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{stderr}");
        assert!(stderr.contains("step-16.tmp-1") && stderr.contains("half-written"), "{stderr}");
        assert!(stderr.contains("step-12") && stderr.contains("model.safetensors"), "{stderr}");
        assert!(stderr.contains("step-8"), "{stderr}");
        same_end(&f, "run", "whole", 12);
    }

    /// Runs of 60 steps with a checkpoint every 3, killed again and again: at a random moment, or as soon as a checkpoint
    /// is being written, in turn. At least 12 kills.
    fn kills(backend: &str, seed: u64) {
        const STEPS: u64 = 60;
        const KILLS: u64 = 12;
        let f = Fixture::new();
        let more = ["--backend", backend, "--steps", "60", "--set", "train.checkpoint_every=3", "--set", "train.val_every=20"];
        let more: Vec<&str> = more.into_iter().chain(["--set", "sample.every=20"]).collect();
        let [whole, again] = ["whole", "again"].map(|run| {
            let began = Instant::now();
            f.ok(&train(run, &more));
            began.elapsed()
        });
        assert_eq!(f.metrics("whole").len() as u64, STEPS);
        same_end(&f, "again", "whole", STEPS);
        let whole = whole.min(again);

        let mut rng = Rng(seed);
        let (mut kills, mut while_saving, mut round, mut starts) = (0, 0, 0, 0);
        while kills < KILLS {
            round += 1;
            let run = format!("killed-{round}");
            loop {
                starts += 1;
                assert!(starts < 400, "{kills} kills in {starts} starts");
                // Before the first checkpoint there is nothing to resume.
                let saved = checkpoints(&f.path(&run), false) > 0;
                let args =
                    if saved { vec!["train", "--run", &run, "--resume", "--backend", backend] } else { train(&run, &more) };
                let mut child = f.command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
                let share = 0.05 + 0.01 * rng.below(50) as f64;
                let at = Instant::now() + whole.mul_f64(share);
                while Instant::now() < at && child.try_wait().unwrap().is_none() {
                    std::thread::sleep(Duration::from_micros(300));
                }
                if starts % 2 == 0 {
                    while checkpoints(&f.path(&run), true) == 0 && child.try_wait().unwrap().is_none() {}
                }
                let _ = child.kill();
                let status = child.wait().unwrap();
                if status.signal() == Some(libc::SIGKILL) {
                    kills += 1;
                    while_saving += u64::from(checkpoints(&f.path(&run), true) > 0);
                    continue;
                }
                assert!(status.success(), "{run}: {status}");
                break;
            }
            same_end(&f, &run, "whole", STEPS);
        }
        println!("{backend}: {kills} kills in {round} runs, {while_saving} of them while a checkpoint was written");
    }

    /// Number of whole or half-written checkpoints.
    fn checkpoints(run: &Path, half_written: bool) -> usize {
        let names = std::fs::read_dir(run.join("checkpoints")).into_iter().flatten().flatten().map(|e| e.file_name());
        names.filter(|name| name.to_string_lossy().contains(".tmp") == half_written).count()
    }

    #[test]
    #[cfg(feature = "flex")]
    fn killed_at_any_moment_a_run_ends_as_if_it_had_not_been_flex() {
        kills("flex", 1);
    }

    #[test]
    #[cfg(feature = "ndarray")]
    fn killed_at_any_moment_a_run_ends_as_if_it_had_not_been_ndarray() {
        kills("ndarray", 2);
    }
}
