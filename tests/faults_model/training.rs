//! Starts of runs, what they write down, and what they leave.

use std::fs;
use std::path::{Path, PathBuf};

use recua::backend::Flex;
use recua::checkpoint::{Checkpoint, Format, SaveOptions, convert, read_config, save};
use recua::data::{DatasetWriter, Shards, TokenWindows, Verify, Vocab};
use recua::error::Error;
use recua::model::{ModelConfig, RopeScaling};
use recua::tokenizer::{TokenBytes, Tokenizer, TrainConfig};
use recua::train::config::DataConfig;
use recua::train::{HeldOut, Layers, RunConfig, Start, check, metrics};
use serde_json::json;
use tempfile::TempDir;

use super::{Memory, case, data, go, json_of, ok, refused, rt_run, run, text};

/// A tokenizer is all of its files: in a run, in what is resumed, in what is exported.
#[test]
fn tokenizer_files_go_along() {
    let dir = TempDir::new().unwrap();
    let (tokens, at) = (dir.path().join("tokens"), |name: &str| dir.path().join(name));
    fs::create_dir(&tokens).unwrap();
    for entry in fs::read_dir(data("rt_tokens")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, tokens.join(path.file_name().unwrap())).unwrap();
    }
    fs::write(tokens.join("special_tokens_map.json"), "{}").unwrap();
    fs::write(tokens.join("chat_template.jinja"), "{{ messages }}").unwrap();
    let config = rt_run(&tokens);
    go(&config, &at("whole"), &Start::Fresh).unwrap();
    go(&config, &at("cut"), &Start::Fresh).unwrap();
    let names = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"];
    let same = |folder: &Path| {
        names.iter().for_each(|n| assert_eq!(fs::read(folder.join(n)).unwrap(), fs::read(tokens.join(n)).unwrap(), "{n}"));
    };
    same(&at("cut"));
    // Resumed at step 3, also where a binary of before left the other files behind, it is the same run.
    for name in &names[1..] {
        fs::remove_file(at("cut").join(name)).unwrap();
    }
    fs::remove_dir_all(at("cut/checkpoints/step-6")).unwrap();
    go(&config, &at("cut"), &Start::Resume).unwrap();
    same(&at("cut"));
    let weights = |run: &str| fs::read(at(run).join("checkpoints/step-6/model.safetensors")).unwrap();
    assert!(weights("whole") == weights("cut"), "the resumed run is another");
    // The ids are those of the names, in the state and in every format; the files come along.
    let tokenizer = Tokenizer::open(&tokens).unwrap();
    let ids = (tokenizer.id_of("<|bot|>"), vec![tokenizer.id_of("<|eot|>").unwrap()]);
    assert!(ids.0.is_some());
    let mut from = at("whole");
    for (format, to) in
        [(Format::Hf, at("hf")), (Format::Meta, at("meta")), (Format::Native, at("native")), (Format::Hf, at("hf2"))]
    {
        convert(&from, &to, format, &SaveOptions::default()).unwrap();
        let checkpoint = Checkpoint::open(&to).unwrap();
        assert_eq!((checkpoint.bos_eos().0, checkpoint.bos_eos().1.to_vec()), ids, "{format}");
        same(&to);
        from = to;
    }
    for folder in ["hf", "hf2"] {
        for file in ["config.json", "generation_config.json"] {
            let json = json_of(&at(folder).join(file));
            assert_eq!((&json["bos_token_id"], &json["eos_token_id"]), (&json!(ids.0), &json!(ids.1[0])), "{folder}/{file}");
        }
    }
    // Another tokenizer's files in the run's folder are refused before anything is written.
    fs::create_dir(at("stale")).unwrap();
    fs::write(at("stale/tokenizer_config.json"), "{}").unwrap();
    let e = go(&config, &at("stale"), &Start::Fresh).unwrap_err().to_string();
    assert!(e.contains("stale/tokenizer_config.json is of another tokenizer"), "{e}");
    assert!(!at("stale/config.toml").exists());
}

/// What `--init` takes from the checkpoint, and what it refuses.
#[test]
fn init_takes_the_checkpoints_model() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    let llama3 = RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_seq_len: 64 };
    let model = ModelConfig {
        vocab_size: Shards::open(&data("rt_tokens"), Verify::Header).unwrap().vocab().size as usize,
        norm_eps: 1e-6,
        rope_theta: 500_000.0,
        rope_scaling: llama3,
        ..ModelConfig::default()
    };
    save(at("hf"), Format::Hf, &model, &Memory::of(&model), &SaveOptions::default()).unwrap();
    assert_eq!(read_config(at("hf")).unwrap(), Checkpoint::open(at("hf")).unwrap().config().clone());
    fs::write(at("optim.toml"), "[optim]\nlr = 1e-4\n").unwrap();
    fs::write(at("length.toml"), "[model]\nmax_seq_len = 128\n[train]\nsteps = 1\n").unwrap();
    fs::write(at("theta.toml"), "[model]\nrope_theta = 10000.0\n").unwrap();
    let tokens = data("rt_tokens");
    let mut count = 0;
    let mut begin = |more: &[&str]| {
        count += 1;
        let run_dir = at(&format!("run{count}"));
        let base = ["train", "--run", text(&run_dir), "--data", text(&tokens), "--init"];
        let hf = at("hf");
        let small = ["--set", "train.seq_len=32", "--set", "train.batch=1", "--steps", "1"];
        let out = run(&[&base[..], &[text(&hf)], &small, more].concat(), "");
        let config = RunConfig::read(&run_dir.join("config.toml")).map(|c| c.model);
        (out.status.code(), String::from_utf8(out.stderr).unwrap(), config)
    };
    let (optim, length, theta) = (at("optim.toml"), at("length.toml"), at("theta.toml"));
    for (more, seq) in [
        (vec![], 256),
        (vec!["--config", text(&optim)], 256),
        (vec!["--config", text(&length)], 128),
        (vec!["--preset", "debug"], 256),
        (vec!["--set", "model.max_seq_len=512"], 512),
        (vec!["--set", "model.rope_theta=500000", "--set", "model.norm_eps=1e-6"], 256),
        (vec!["--set", "model.rope_scaling.factor=8"], 256),
        (vec!["--set", "model.n_kv_heads=4"], 256),
    ] {
        let (code, stderr, config) = begin(&more);
        assert_eq!(code, Some(0), "{more:?}: {stderr}");
        let config = config.unwrap();
        assert!(model.changes(&config).is_empty(), "{more:?}: {:?}", model.changes(&config));
        assert_eq!(config.max_seq_len, seq, "{more:?}");
    }
    for (more, words) in [
        (vec!["--config", text(&theta)], ["rope_theta", "500000"]),
        (vec!["--set", "model.norm_eps=1e-5"], ["norm_eps", "0.000001"]),
        (vec!["--set", "model.rope_scaling.type=none"], ["rope_scaling", "Llama3"]),
        (vec!["--set", "model.rope_scaling.factor=32"], ["rope_scaling", "32"]),
        (vec!["--set", "model.n_heads=2"], ["another shape", "n_heads"]),
        (vec!["--set", "model.dim=32"], ["another shape", "dim"]),
        (vec!["--preset", "15m"], ["model.preset", "sizes"]),
    ] {
        let (code, stderr, config) = begin(&more);
        assert_eq!(code, Some(2), "{more:?}: {stderr}");
        assert!(words.iter().all(|w| stderr.contains(w)), "{more:?}: {stderr}");
        assert!(config.is_err(), "{more:?}: something was written");
    }
    // On purpose it may.
    let (code, stderr, config) = begin(&["--config", text(&theta), "--allow-model-changes"]);
    assert_eq!((code, config.unwrap().rope_theta), (Some(0), 10_000.0), "{stderr}");
    assert!(stderr.contains("compute something else from now on"), "{stderr}");
}

#[test]
fn init_of_the_whole_set() {
    let (Some(init), Some(tokens)) = (case("in_hf"), case("rt/tokens")) else { return };
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("c.toml"), "[optim]\nlr = 1e-4\n").unwrap();
    let (run_dir, c) = (dir.path().join("i"), dir.path().join("c.toml"));
    ok(&["train", "--run", text(&run_dir), "--data", text(&tokens), "--init", text(&init), "--config", text(&c), "--steps", "1"]);
    let model = RunConfig::read(&run_dir.join("config.toml")).unwrap().model;
    let llama3 = RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_seq_len: 64 };
    assert_eq!((model.rope_theta, model.norm_eps, model.rope_scaling), (500_000.0, 1e-6, llama3));
}

/// `tests/golden/sp` and our own: the bytes that tokens stand for are the bytes of the text, wherever it is cut.
#[test]
fn bytes_of_tokens_are_bytes_of_text() {
    let texts =
        ["the old llama walks home", "Übermäßig große Ähren: 12 345 €", "\u{1f999}\u{1f999} a\n\tb  c", "山の上のリャマ", ""];
    let docs = texts.iter().chain(&texts[..3]).map(|t| t.to_string()).collect::<Vec<_>>();
    let own = Tokenizer::train(docs.into_iter(), &TrainConfig { vocab_size: 300, ..Default::default() }).unwrap();
    let mut kinds = vec![("trained".to_string(), own)];
    for name in ["bpe_llama", "unigram_bytes"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/sp/{name}.model"));
        kinds.push((name.to_string(), Tokenizer::open(path).unwrap()));
    }
    kinds.push(("byte-level".into(), byte_level()));
    for (name, tokenizer) in &kinds {
        let bytes = TokenBytes::new(tokenizer);
        let bos = tokenizer.bos_id().unwrap_or(u32::MAX);
        let mut checked = 0;
        for text in texts {
            let ids = tokenizer.encode(text).unwrap();
            // Kinds that normalise are held to what they give back.
            if tokenizer.decode(&ids).unwrap() != text {
                continue;
            }
            checked += 1;
            assert_eq!(bytes.count(bos, &ids), text.len() as u64, "{name}: {text:?} as {ids:?}");
            for cut in 1..ids.len() {
                let (head, tail) = ids.split_at(cut);
                let parts = bytes.count(bos, head) + bytes.count(head[cut - 1], tail);
                assert_eq!(parts, text.len() as u64, "{name}: {text:?} cut at {cut}");
            }
            let two: Vec<u32> =
                ids.iter().copied().chain(tokenizer.eos_id()).chain(tokenizer.bos_id()).chain(ids.clone()).collect();
            if tokenizer.bos_id().is_some() {
                assert_eq!(bytes.count(bos, &two), 2 * text.len() as u64, "{name}: two documents of {text:?}");
            }
        }
        assert!(checked >= 3, "{name}: only {checked} texts come back as they were");
    }
}

/// A byte-level tokenizer in the style of GPT-2, without merges: every byte is spelled with one letter.
fn byte_level() -> Tokenizer {
    let printable = |b: u32| (33..=126).contains(&b) || (161..=172).contains(&b) || (174..=255).contains(&b);
    let mut next = 256;
    let mut vocab = serde_json::Map::new();
    for b in 0..256u32 {
        let spelled = if printable(b) {
            b
        } else {
            next += 1;
            next - 1
        };
        vocab.insert(char::from_u32(spelled).unwrap().to_string(), json!(b));
    }
    vocab.insert("<s>".into(), json!(256));
    let special = json!({ "id": 256, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true });
    let level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [special], "normalizer": null,
        "pre_tokenizer": level, "post_processor": null, "decoder": level,
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
                   "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": [] }
    });
    Tokenizer::from_json(json.to_string().as_bytes(), Path::new("test")).unwrap()
}

/// Bits per byte of a validation are those of its own windows, which lie evenly over the set: half of it is of letters, half of
/// characters of four tokens each. By hand: the same loss over the bytes of the decoded windows.
#[test]
fn bits_per_byte_are_of_the_windows_measured() {
    let dir = TempDir::new().unwrap();
    let words = ["llama ".repeat(400), "the pack train walks ".repeat(200)];
    let tokenizer = Tokenizer::train(words.iter().cloned(), &TrainConfig { vocab_size: 300, ..Default::default() }).unwrap();
    let vocab = Vocab { size: tokenizer.vocab_size() as u32, hash: tokenizer.hash() };
    let make = |name: &str, texts: &[String]| {
        let out = dir.path().join(name);
        let mut writer = DatasetWriter::create(&out, vocab, 1 << 20, false).unwrap();
        texts.iter().for_each(|t| writer.push(&tokenizer.encode_document(t, true, true).unwrap(), t.len() as u64).unwrap());
        writer.finish(vec![name.into()]).unwrap();
        out
    };
    let train_set = make("train", &words);
    let valid_set = make("valid", &["llama llama train ".repeat(60), "\u{1f999}\u{6771}".repeat(150)]);
    tokenizer.save(dir.path().join("train/tokenizer.json")).unwrap();
    let set =
        ["train.steps=2", "train.batch=2", "train.seq_len=32", "train.val_every=1", "train.val_windows=6", "sample.every=0"];
    let (mut config, _) = RunConfig::resolve(&Layers { file: None, set: &set.map(String::from) }).unwrap();
    config.model.vocab_size = tokenizer.vocab_size();
    config.data = DataConfig { train: vec![train_set], valid: Some(HeldOut::One(valid_set.clone())), ..DataConfig::default() };
    go(&config, &dir.path().join("run"), &Start::Fresh).unwrap();
    let windows = TokenWindows::new(Shards::open(&valid_set, Verify::Full).unwrap().into(), 32).unwrap();
    let chosen: Vec<u64> = (0..6).map(|i| (2 * i + 1) * windows.count() / 12).collect();
    let (mut bytes, mut targets) = (0, 0);
    for &index in &chosen {
        let mut window = vec![0; 33];
        windows.copy_into(index, &mut window).unwrap();
        let ids: Vec<u32> = window[1..].iter().map(|&t| t as u32).collect();
        // A byte token is a byte; the others are their text.
        let byte = |id: &u32| tokenizer.token_of(*id).is_some_and(|t| t.starts_with("<0x"));
        bytes += ids.iter().map(|id| if byte(id) { 1 } else { tokenizer.decode(&[*id]).unwrap().len() }).sum::<usize>();
        targets += ids.len();
    }
    assert!(chosen[5] > windows.count() * 3 / 4, "the windows do not reach the end");
    let records = metrics::read(&dir.path().join("run/metrics.jsonl")).unwrap();
    assert_eq!(records.len(), 2);
    for record in records {
        let (loss, bpb) = (record.val_loss.unwrap(), record.val_bpb.unwrap());
        let want = loss * targets as f64 / std::f64::consts::LN_2 / bytes as f64;
        assert!((bpb / want - 1.0).abs() < 1e-9, "{bpb} bits a byte, by hand {want}");
    }
}

/// What cannot be is told before the first step and by --dry-run, by name; nothing is written.
#[test]
fn impossible_settings_are_refused_at_the_start() {
    let dir = TempDir::new().unwrap();
    let (tokens, run_dir) = (data("rt_tokens"), dir.path().join("run"));
    let base = ["train", "--run", text(&run_dir), "--data", text(&tokens), "--valid", text(&tokens), "--set", "train.seq_len=32"];
    for (set, words) in [
        ("train.val_windows=0", ["train.val_windows", "at least 1"]),
        ("init.std=nan", ["init.std", "NaN"]),
        ("init.std=-1", ["init.std", "-1"]),
        ("train.peak_tflops=0", ["train.peak_tflops", "above 0"]),
        ("data.weights=[nan]", ["data.weights", "NaN"]),
        ("data.weights=[-1.0]", ["data.weights", "-1"]),
        ("train.batch=1000000000000", ["train.batch", "2^31"]),
        ("train.seed=18446744073709551615", ["seed", "u64"]),
        ("data.valid=nowhere", ["nowhere", ""]),
        ("data.tokenizer=nowhere.json", ["nowhere.json", ""]),
        ("model.vocab_size=10", ["vocabulary mismatch", "10"]),
        ("train.document_mask=maybe", ["document_mask", "bool"]),
    ] {
        for dry in [&["--dry-run"][..], &[]] {
            let out = run(&[&base[..], &["--set", set], dry].concat(), "");
            let stderr = String::from_utf8(out.stderr).unwrap();
            assert!(matches!(out.status.code(), Some(1 | 2)), "{set} {dry:?}: {:?} {stderr}", out.status);
            assert!(words.iter().all(|w| stderr.contains(w)), "{set} {dry:?}: {stderr}");
            assert!(out.stdout.is_empty() && !run_dir.exists(), "{set} {dry:?}");
        }
    }
    let long = format!("sample.prompt={}", "a long prompt ".repeat(200));
    refused(&[&base[..], &["--set", &long, "--dry-run"]].concat(), 1, &["sample.prompt", "tokens are more than"]);
    refused(&["train", "--run", text(&run_dir), "--dry-run"], 2, &["no dataset given"]);
    refused(&["train", "--run", text(&run_dir), "--resume"], 1, &["no checkpoint to resume from", "without --resume"]);
    // A folder that a full disk left at the very start.
    fs::create_dir_all(run_dir.join("checkpoints")).unwrap();
    refused(&["train", "--run", text(&run_dir), "--resume"], 1, &["no checkpoint to resume from", "without --resume"]);
    let backend = "flex".parse().unwrap();
    check(&rt_run(&tokens), &dir.path().join("other"), &Start::Fresh, &backend, &mut ()).unwrap();
    assert!(!dir.path().join("other").exists());
}

/// Text needs no quotes, whatever it looks like.
#[test]
fn text_settings_need_no_quotes() {
    for (said, prompt) in [
        ("1984", "1984"),
        ("true", "true"),
        ("1.50", "1.50"),
        ("[a]", "[a]"),
        ("1979-05-27", "1979-05-27"),
        ("\"quoted\"", "quoted"),
        ("'1984'", "1984"),
        ("The old", "The old"),
        ("a=b", "a=b"),
        ("[1, 2]", "[1, 2]"),
        ("", ""),
    ] {
        let set = [format!("sample.prompt={said}"), "data.tokenizer=42".into(), "data.valid=2024".into()];
        let (config, _) = RunConfig::resolve(&Layers { file: None, set: &set }).unwrap_or_else(|e| panic!("{said}: {e}"));
        assert_eq!(config.sample.prompt, prompt, "{said}");
        assert_eq!(config.data.tokenizer, Some(PathBuf::from("42")));
        assert_eq!(config.data.valid, Some(HeldOut::One("2024".into())));
    }
    let set = ["data.valid={ wiki = \"a\", books = \"b\" }".to_string()];
    let (config, _) = RunConfig::resolve(&Layers { file: None, set: &set }).unwrap();
    assert!(matches!(config.data.valid, Some(HeldOut::Named(sets)) if sets.len() == 2));
}

/// A vocabulary that is padded on purpose, and a tokenizer with holes: training goes to its end, whatever a sample is.
#[test]
fn padded_vocabularies_train_and_samples_end_nothing() {
    let dir = TempDir::new().unwrap();
    let hole = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": { "type": "Whitespace" }, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": { "<unk>": 0, "llama": 1, "pack": 2, "train": 40, "<pad>": 44 }, "unk_token": "<unk>" }
    });
    fs::write(dir.path().join("tokenizer.json"), hole.to_string()).unwrap();
    let tokenizer = Tokenizer::open(dir.path().join("tokenizer.json")).unwrap();
    let tokens = dir.path().join("tokens");
    let vocab = Vocab { size: tokenizer.vocab_size() as u32, hash: tokenizer.hash() };
    let mut writer = DatasetWriter::create(&tokens, vocab, 1 << 20, false).unwrap();
    writer.push(&tokenizer.encode(&"llama pack train ".repeat(200)).unwrap(), 3400).unwrap();
    writer.finish(vec!["test".into()]).unwrap();
    let set = ["train.steps=2", "train.batch=2", "train.seq_len=16", "sample.every=1", "sample.prompt=llama", "sample.tokens=24"];
    let (mut config, _) = RunConfig::resolve(&Layers { file: None, set: &set.map(String::from) }).unwrap();
    config.data.train = vec![tokens];
    config.data.tokenizer = Some(dir.path().join("tokenizer.json"));
    // 40 is the id of a word that occurs; of the 42nd to the 45th nothing does.
    let files = config.data.tokenizer.clone();
    for (name, vocab_size, fits) in [("equal", 45, true), ("padded", 64, true), ("unused", 41, true), ("short", 40, false)] {
        config.model.vocab_size = vocab_size;
        // By its file, or by its folder.
        config.data.tokenizer = if name == "padded" { Some(dir.path().into()) } else { files.clone() };
        let run_dir = dir.path().join(name);
        let went = go(&config, &run_dir, &Start::Fresh);
        assert_eq!(went.is_ok(), fits, "{name}: {went:?}");
        assert_eq!(run_dir.join("checkpoints/step-2").exists(), fits, "{name}");
    }
}

/// A training whose last step had no loss is no success, however few its steps.
#[test]
fn training_without_a_loss_fails() {
    let dir = TempDir::new().unwrap();
    let mut config = rt_run(&data("rt_tokens"));
    (config.train.steps, config.train.checkpoint_every, config.init.std) = (2, 1, 1e40);
    match go(&config, &dir.path().join("run"), &Start::Fresh).unwrap_err() {
        Error::Diverged { step: 2, in_a_row: 2, .. } => {}
        e => panic!("{e}"),
    }
    assert_eq!(fs::read_dir(dir.path().join("run/checkpoints")).unwrap().count(), 0);
}

/// What was published without its moments is read by all but --resume; what is not needed is not looked at.
#[test]
fn weights_alone_are_enough() {
    let dir = TempDir::new().unwrap();
    let tokens = data("rt_tokens");
    let config = rt_run(&tokens);
    let run_dir = dir.path().join("run");
    go(&config, &run_dir, &Start::Fresh).unwrap();
    let newest = run_dir.join("checkpoints/step-6");
    let damage = |file: &str| {
        let mut bytes = fs::read(newest.join(file)).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(newest.join(file), bytes).unwrap();
    };
    let weights = Checkpoint::open(&run_dir).unwrap().load::<Flex>(&Default::default()).unwrap();
    let n = weights.config().num_params();
    damage("optim.safetensors");
    assert_eq!(Checkpoint::open(&run_dir).unwrap().path(), newest);
    fs::remove_file(newest.join("optim.safetensors")).unwrap();
    for path in [&run_dir, &newest] {
        let checkpoint = Checkpoint::open(path).unwrap();
        assert_eq!((checkpoint.path(), checkpoint.config().num_params()), (newest.as_path(), n));
        assert!(checkpoint.skipped().is_empty());
    }
    convert(&newest, dir.path().join("hf"), Format::Hf, &SaveOptions::default()).unwrap();
    let init = Start::Init(newest.clone());
    go(
        &RunConfig { train: recua::train::config::TrainConfig { steps: 1, ..config.train.clone() }, ..config.clone() },
        &dir.path().join("next"),
        &init,
    )
    .unwrap();
    // The run goes on from the checkpoint before, or, without one, is told what can be done.
    fs::remove_dir_all(run_dir.join("checkpoints/step-3")).unwrap();
    match go(&config, &run_dir, &Start::Resume).unwrap_err() {
        Error::Nothing { hint, .. } => assert!(hint.contains("--init") && hint.contains("step-6"), "{hint}"),
        e => panic!("{e}"),
    }
    // Weights that are damaged are no weights.
    damage("model.safetensors");
    let e = Checkpoint::open(&run_dir).err().unwrap().to_string();
    assert!(e.contains("model.safetensors") && e.contains("checksum"), "{e}");
}
