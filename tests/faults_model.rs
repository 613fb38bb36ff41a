//! Kinds of fault that the users of other projects have met: checkpoints, conversion, training and the tokenizer's files. Expected values
//! are transformers' (docs of the folder that RECUA_FAULTS names) or follow from the definition. `tests/faults` has the small ones.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::AtomicBool;

use recua::backend::Flex;
use recua::checkpoint::{
    Checkpoint, Dtype, Format, HfFolder, MetaFolder, SaveOptions, Tensor, TensorInfo, TensorSource, convert, read_config, save,
};
use recua::data::{DatasetWriter, Shards, TokenWindows, Verify, Vocab};
use recua::error::{Error, Result};
use recua::model::block::{Rope, inverse_frequencies};
use recua::model::{ModelConfig, RopeScaling};
use recua::tokenizer::{TokenBytes, Tokenizer, TrainConfig};
use recua::train::config::DataConfig;
use recua::train::{HeldOut, Layers, RunConfig, Start, check, metrics, train};
use serde_json::{Value, json};
use tempfile::TempDir;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults").join(name)
}

/// A case of the whole set; without it, says so.
fn case(name: &str) -> Option<PathBuf> {
    match std::env::var_os("RECUA_FAULTS") {
        Some(root) => {
            let root = PathBuf::from(root);
            let root = if root.join("model").exists() { root.join("model") } else { root };
            Some(root.join("cases").join(name))
        }
        None => {
            println!("skipped: {name} is in the folder that RECUA_FAULTS names");
            None
        }
    }
}

fn run(args: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_recua"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

#[track_caller]
fn ok(args: &[&str]) -> String {
    let out = run(args, "");
    assert!(out.status.success(), "recua {}: {}", args.join(" "), String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

#[track_caller]
fn refused(args: &[&str], code: i32, words: &[&str]) {
    let out = run(args, "");
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(code), "recua {}: {stderr}", args.join(" "));
    words.iter().for_each(|word| assert!(stderr.contains(word), "`{word}` is not in: {stderr}"));
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn edit_json(path: &Path, edit: impl FnOnce(&mut Value)) {
    let mut value = json_of(path);
    edit(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

/// Tensors in memory.
struct Memory(Vec<TensorInfo>, BTreeMap<String, Vec<u8>>);

impl Memory {
    /// Every parameter in float32, each value another.
    fn of(config: &ModelConfig) -> Self {
        let mut next = 0u32;
        let mut this = Self(Vec::new(), BTreeMap::new());
        for (name, shape) in config.parameters() {
            let values = (0..shape.iter().product::<usize>()).flat_map(|_| {
                next = next.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                ((next >> 8) as f32 / 1.6e8 - 0.05).to_le_bytes()
            });
            this.1.insert(name.clone(), values.collect());
            this.0.push(TensorInfo { name, shape, dtype: Dtype::F32 });
        }
        this
    }
}

impl TensorSource for Memory {
    fn list(&self) -> &[TensorInfo] {
        &self.0
    }

    fn read(&self, name: &str) -> Result<Tensor<'_>> {
        let info = self.0.iter().find(|i| i.name == name).unwrap();
        Ok(Tensor { shape: info.shape.clone(), dtype: info.dtype, bytes: Cow::Borrowed(&self.1[name]) })
    }
}

fn small() -> ModelConfig {
    ModelConfig {
        dim: 32,
        n_layers: 2,
        n_heads: 4,
        n_kv_heads: Some(2),
        vocab_size: 48,
        multiple_of: 8,
        ..ModelConfig::default()
    }
}

fn assert_same(a: &dyn TensorSource, b: &dyn TensorSource) {
    for info in a.list() {
        assert!(a.read(&info.name).unwrap().bytes == b.read(&info.name).unwrap().bytes, "{} differs", info.name);
    }
}

/// Settings for a few steps of a tiny model on the dataset whose tokenizer has its BOS and EOS from a file beside it.
fn rt_run(data: &Path) -> RunConfig {
    let set = ["train.batch=2", "train.seq_len=32", "train.steps=6", "train.checkpoint_every=3", "train.document_mask=true"];
    let set: Vec<String> = set.map(String::from).into_iter().chain(["sample.every=0".into()]).collect();
    let (mut config, _) = RunConfig::resolve(&Layers { file: None, set: &set }).unwrap();
    config.model.vocab_size = Shards::open(data, Verify::Header).unwrap().vocab().size as usize;
    config.data = DataConfig { train: vec![data.to_path_buf()], ..DataConfig::default() };
    config
}

fn go(config: &RunConfig, dir: &Path, start: &Start) -> Result<()> {
    train(config.clone(), dir, start, &"flex".parse().unwrap(), &AtomicBool::new(false), &mut ()).map(drop)
}

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

/// A run of before its state had the ids, with a tokenizer that we trained: those that the data were made with.
#[test]
fn exports_name_bos_and_eos() {
    let Some(run) = case("own/run") else { return };
    let dir = TempDir::new().unwrap();
    let to = dir.path().join("hf");
    convert(run, &to, Format::Hf, &SaveOptions::default()).unwrap();
    for file in ["config.json", "generation_config.json"] {
        let json = json_of(&to.join(file));
        assert_eq!((&json["bos_token_id"], &json["eos_token_id"]), (&json!(1), &json!(2)), "{file}");
    }
    let json = json_of(&to.join("tokenizer_config.json"));
    assert_eq!((&json["bos_token"], &json["eos_token"]), (&json!("<s>"), &json!("</s>")));
}

/// A list of end tokens, in whichever file, and all that generation_config.json says, survive every format.
#[test]
fn end_tokens_survive_conversion() {
    let (dir, config) = (TempDir::new().unwrap(), small());
    let at = |name: &str| dir.path().join(name);
    save(
        at("a"),
        Format::Hf,
        &config,
        &Memory::of(&config),
        &SaveOptions { bos_id: Some(1), eos_ids: vec![2], ..Default::default() },
    )
    .unwrap();
    let generation = json!({ "bos_token_id": 1, "eos_token_id": [21, 24], "temperature": 0.6, "do_sample": true });
    for (place, eos) in [("generation_config.json", json!([21, 24])), ("config.json", json!([21, 24]))] {
        if place == "config.json" {
            fs::remove_file(at("a/generation_config.json")).unwrap();
            edit_json(&at("a/config.json"), |c| c["eos_token_id"] = eos.clone());
        } else {
            fs::write(at("a/generation_config.json"), generation.to_string()).unwrap();
        }
        let mut from = at("a");
        for (format, name) in [(Format::Hf, "b"), (Format::Native, "c"), (Format::Meta, "d"), (Format::Hf, "e")] {
            let to = at(&format!("{place}-{name}"));
            convert(&from, &to, format, &SaveOptions::default()).unwrap();
            assert_eq!(Checkpoint::open(&to).unwrap().bos_eos(), (Some(1), [21, 24].as_slice()), "{place}, {format}");
            if format == Format::Hf {
                let json = json_of(&to.join("generation_config.json"));
                assert_eq!((&json["eos_token_id"], &json["bos_token_id"]), (&eos, &json!(1)));
                assert_eq!(json_of(&to.join("config.json"))["eos_token_id"], eos);
            }
            from = to;
        }
        if place == "generation_config.json" {
            let json = json_of(&at(&format!("{place}-b")).join("generation_config.json"));
            assert_eq!((&json["temperature"], &json["do_sample"]), (&json!(0.6), &json!(true)));
        }
    }
}

/// Log-probabilities of transformers 5.24, which does not tie where lm_head.weight has values of its own.
#[test]
fn a_head_of_its_own_is_used() {
    let Some(folder) = case("st_tied_head_differs") else { return };
    let out = run(&["eval", "score", "--model", text(&folder), "--json"], "[1,5,9,77]\n");
    let (stdout, stderr) = (String::from_utf8(out.stdout).unwrap(), String::from_utf8(out.stderr).unwrap());
    let scores: Value = serde_json::from_str(stdout.trim()).unwrap_or_else(|e| panic!("{e}: {stdout} {stderr}"));
    let mut numbers = Vec::new();
    collect_numbers(&scores, &mut numbers);
    for want in [-5.9524, -5.0599, -4.9543] {
        assert!(numbers.iter().any(|x| (x - want).abs() < 1e-4), "{want} is not in {stdout}");
    }
    assert!(stderr.contains("lm_head.weight"), "{stderr}");
}

fn collect_numbers(value: &Value, out: &mut Vec<f64>) {
    match value {
        Value::Number(n) => out.extend(n.as_f64()),
        Value::Array(list) => list.iter().for_each(|v| collect_numbers(v, out)),
        Value::Object(map) => map.values().for_each(|v| collect_numbers(v, out)),
        _ => {}
    }
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

/// A tensor of a `.pth` that is being made: name, storage, offset, shape, strides.
type PthTensor<'a> = (&'a str, usize, usize, &'a [usize], &'a [usize]);

/// A file as `torch.save` writes it (protocol 2), of float32 storages; without checksums if asked.
fn write_pth(path: &Path, storages: &[Vec<f32>], tensors: &[PthTensor<'_>], checksums: bool) {
    let string = |s: &str| [b"X".as_slice(), &(s.len() as u32).to_le_bytes(), s.as_bytes()].concat();
    let number = |n: usize| [b"\x8a\x08".as_slice(), &(n as u64).to_le_bytes()].concat();
    let tuple = |items: &[usize]| [b"(".to_vec(), items.iter().flat_map(|&n| number(n)).collect(), b"t".to_vec()].concat();
    let mut pickle = b"\x80\x02}(".to_vec();
    for &(name, storage, offset, shape, strides) in tensors {
        pickle.extend(string(name));
        pickle.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        pickle.extend(string("storage"));
        pickle.extend(b"ctorch\nFloatStorage\n");
        pickle.extend([string(&storage.to_string()), string("cpu"), number(storages[storage].len())].concat());
        pickle.extend(b"tQ");
        pickle.extend([number(offset), tuple(shape), tuple(strides)].concat());
        pickle.extend(b"\x89ccollections\nOrderedDict\n)RtR");
    }
    pickle.extend(b"u.");
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    let mut entries = vec![("m/data.pkl".to_string(), pickle), ("m/byteorder".into(), b"little".to_vec())];
    entries.extend(
        storages.iter().enumerate().map(|(i, s)| (format!("m/data/{i}"), s.iter().flat_map(|x| x.to_le_bytes()).collect())),
    );
    entries.push(("m/version".into(), b"3\n".to_vec()));
    for (name, bytes) in &entries {
        zip.start_file(name.as_str(), stored).unwrap();
        zip.write_all(bytes).unwrap();
    }
    let mut file = zip.finish().unwrap().into_inner();
    if !checksums {
        // The checksum stands 14 bytes into an entry's header and 16 into its line of the directory.
        for (signature, at) in [(b"PK\x03\x04", 14), (b"PK\x01\x02", 16)] {
            let places: Vec<usize> = (0..file.len() - 4).filter(|&i| &file[i..i + 4] == signature).collect();
            places.into_iter().for_each(|i| file[i + at..i + at + 4].fill(0));
        }
    }
    fs::write(path, file).unwrap();
}

/// What `torch.load` reads: transposed, cut and offset views, and files without checksums. A repeated or too long view is refused.
#[test]
fn views_of_storages_are_read() {
    let config = small();
    let memory = Memory::of(&config);
    let values = |name: &str| memory.read_f32(name).unwrap().1;
    let params = json!({ "dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 48, "multiple_of": 8 });
    for checksums in [true, false] {
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join("params.json"), params.to_string()).unwrap();
        let names = config.parameters();
        let (mut storages, mut places) = (Vec::new(), Vec::new());
        for (i, (name, shape)) in names.iter().enumerate() {
            let v = values(name);
            let (storage, offset, strides) = match (i % 4, shape.as_slice()) {
                // Saved as the transpose of a matrix.
                (0, &[r, c]) => ((0..r * c).map(|at| v[at % r * c + at / r]).collect(), 0, vec![1, r]),
                // The right half of a wider matrix, and the last element is the storage's.
                (1, &[r, c]) => {
                    let wide = (0..r * 2 * c).map(|at| if at % (2 * c) < c { 9.0 } else { v[at / (2 * c) * c + at % c] });
                    (wide.collect(), c, vec![2 * c, 1])
                }
                // A part of a larger storage.
                (2, &[_, c]) => ([vec![7.0; 5], v, vec![8.0; 3]].concat(), 5, vec![c, 1]),
                (_, &[_, c]) => (v, 0, vec![c, 1]),
                (_, &[n]) => ((0..2 * n).map(|at| if at % 2 == 0 { v[at / 2] } else { 5.0 }).collect(), 0, vec![2]),
                _ => unreachable!(),
            };
            storages.push(storage);
            places.push((name, i, offset, shape, strides));
        }
        let tensors: Vec<PthTensor<'_>> = places
            .iter()
            .map(|(name, i, at, shape, strides)| (name.as_str(), *i, *at, shape.as_slice(), strides.as_slice()))
            .collect();
        let path = dir.path().join("consolidated.00.pth");
        write_pth(&path, &storages, &tensors, checksums);
        assert_same(&memory, &MetaFolder::open(dir.path()).unwrap());
        // A row, or one element, over and over.
        let at = names.iter().position(|(name, _)| name == "layers.0.attention.wq.weight").unwrap();
        for (strides, row) in [([0, 1], (0..32).map(|i| i as f32).collect::<Vec<_>>()), ([0, 0], vec![3.0; 32])] {
            let mut repeated = tensors.clone();
            (storages[at], repeated[at].2, repeated[at].4) = (row.clone(), 0, &strides);
            write_pth(&path, &storages, &repeated, checksums);
            let got = MetaFolder::open(dir.path()).unwrap().read_f32("layers.0.attention.wq.weight").unwrap().1;
            assert_eq!(got, row.repeat(32));
        }
        // Beyond the storage, and far larger than it.
        for (offset, shape, strides) in
            [(1, [32, 32], [32, 1]), (0, [32, 32], [33, 1]), (0, [1 << 12, 1 << 12], [0, 0]), (0, [1 << 40, 1 << 40], [0, 0])]
        {
            let mut bad = tensors.clone();
            storages[at] = vec![0.0; 32 * 32];
            (bad[at].2, bad[at].3, bad[at].4) = (offset, &shape, &strides);
            write_pth(&path, &storages, &bad, checksums);
            let e = MetaFolder::open(dir.path()).err().expect("a view outside its storage").to_string();
            assert!(e.contains("storage"), "{e}");
        }
    }
}

/// Meta says `use_scaled_rope` and no factor: that of Llama 3.2's shapes is 32, that of all others 8; a factor in the file counts.
#[test]
fn scaled_rope_has_the_factor_of_its_model() {
    for (dim, n_layers, said, factor) in [
        (2048, 16, None, 32.0),
        (3072, 28, None, 32.0),
        (2048, 17, None, 8.0),
        (2048, 16, Some(8.0), 8.0),
        (64, 2, Some(4.0), 4.0),
    ] {
        let config = ModelConfig { dim, n_layers, n_heads: 32, n_kv_heads: Some(8), vocab_size: 8, ffn_dim: Some(8), ..small() };
        let dir = TempDir::new().unwrap();
        let mut params = json!({
            "dim": dim, "n_layers": n_layers, "n_heads": 32, "n_kv_heads": 8, "vocab_size": 8, "multiple_of": 8,
            "ffn_dim_multiplier": 7.5 / (8 * dim / 3) as f64, "rope_theta": 5e5, "use_scaled_rope": true
        });
        if let Some(said) = said {
            params["rope_scaling_factor"] = json!(said);
        }
        fs::write(dir.path().join("params.json"), params.to_string()).unwrap();
        // All tensors are of one storage of zeros.
        let names = config.parameters();
        let strides: Vec<Vec<usize>> = names.iter().map(|(_, s)| if s.len() == 2 { vec![s[1], 1] } else { vec![1] }).collect();
        let tensors: Vec<PthTensor<'_>> = names
            .iter()
            .zip(&strides)
            .map(|((name, shape), strides)| (name.as_str(), 0, 0, shape.as_slice(), strides.as_slice()))
            .collect();
        write_pth(&dir.path().join("consolidated.00.pth"), &[vec![0.0; dim * dim]], &tensors, true);
        let got = MetaFolder::open(dir.path()).unwrap().config().rope_scaling;
        let want = RopeScaling::Llama3 { factor, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_seq_len: 8192 };
        assert_eq!(got, want, "dim {dim}, {n_layers} layers, {said:?}");
    }
}

/// A safetensors file of raw entries.
fn write_safetensors_raw(path: &Path, tensors: &[(String, &str, Vec<usize>, Vec<u8>)]) {
    let (mut header, mut bytes) = (serde_json::Map::new(), Vec::new());
    for (name, dtype, shape, values) in tensors {
        let at = bytes.len();
        bytes.extend(values);
        header.insert(name.clone(), json!({ "dtype": dtype, "shape": shape, "data_offsets": [at, bytes.len()] }));
    }
    let header = Value::Object(header).to_string();
    fs::write(path, [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &bytes].concat()).unwrap();
}

/// Buffers that no model needs are passed over; parameters of a type that is not read are refused by name.
#[test]
fn harmless_tensors_are_passed_over() {
    let (dir, config) = (TempDir::new().unwrap(), small());
    let memory = Memory::of(&config);
    save(dir.path().join("hf"), Format::Hf, &config, &memory, &SaveOptions::default()).unwrap();
    let path = dir.path().join("hf/model.safetensors");
    let original = fs::read(&path).unwrap();
    let original = safetensors::SafeTensors::deserialize(&original).unwrap();
    let all: Vec<(String, &str, Vec<usize>, Vec<u8>)> =
        original.tensors().into_iter().map(|(name, view)| (name, "F32", view.shape().to_vec(), view.data().to_vec())).collect();
    let with = |extra: &[(&str, &'static str, usize, usize)]| {
        let extra = extra.iter().map(|&(name, dtype, n, size)| (name.to_string(), dtype, vec![n], vec![0; n * size]));
        write_safetensors_raw(&path, &all.iter().cloned().chain(extra).collect::<Vec<_>>());
        HfFolder::open(dir.path().join("hf"))
    };
    for extra in [
        &[("model.position_ids", "I64", 4, 8)][..],
        &[("model.layers.0.self_attn.bias", "BOOL", 4, 1)],
        &[("model.layers.1.self_attn.mask", "U8", 4, 1), ("x", "I32", 2, 4)],
        &[("model.layers.0.self_attn.rotary_emb.inv_freq", "F32", 4, 4), ("model.rotary_emb.inv_freq", "F64", 4, 8)],
    ] {
        let folder = with(extra).unwrap_or_else(|e| panic!("{extra:?}: {e}"));
        assert_same(&memory, &folder);
    }
    for (extra, words) in [
        (("model.layers.0.mlp.gate_proj.weight_scale", "F32", 4, 4), ["weight_scale", "no plain LLaMA"]),
        (("model.layers.0.mlp.scale", "F64", 4, 8), ["model.layers.0.mlp.scale", "F64"]),
    ] {
        let e = with(&[extra]).err().unwrap_or_else(|| panic!("{extra:?}")).to_string();
        assert!(words.iter().all(|w| e.contains(w)), "{e}");
    }
    // A parameter of another type, and one whose place a quantised one has taken.
    let mut quantised = all.clone();
    let at = quantised.iter().position(|t| t.0 == "model.layers.0.mlp.up_proj.weight").unwrap();
    quantised[at] = (quantised[at].0.clone(), "I8", quantised[at].2.clone(), vec![0; quantised[at].3.len() / 4]);
    write_safetensors_raw(&path, &quantised);
    let e = HfFolder::open(dir.path().join("hf")).err().unwrap().to_string();
    assert!(e.contains("up_proj.weight") && e.contains("I8") && e.contains("original checkpoint"), "{e}");
    quantised[at].0 = "model.layers.0.mlp.up_proj.qweight".into();
    write_safetensors_raw(&path, &quantised);
    let e = HfFolder::open(dir.path().join("hf")).err().unwrap().to_string();
    assert!(e.contains("up_proj.qweight") && e.contains("original checkpoint"), "{e}");
}

/// An index that still lists what is not in the shards: harmless for buffers, an error for parameters.
#[test]
fn stale_index_entries_are_passed_over() {
    let (dir, config) = (TempDir::new().unwrap(), small());
    let (hf, memory) = (dir.path().join("hf"), Memory::of(&config));
    save(&hf, Format::Hf, &config, &memory, &SaveOptions { hf_shard_bytes: 9_000, ..Default::default() }).unwrap();
    let index = hf.join("model.safetensors.index.json");
    let (original, shard) = (fs::read(&index).unwrap(), json_of(&index)["weight_map"]["lm_head.weight"].clone());
    for (name, place, fine) in [
        ("model.layers.0.self_attn.rotary_emb.inv_freq", shard.clone(), true),
        ("model.rotary_emb.inv_freq", json!("model-gone.safetensors"), true),
        ("model.layers.0.self_attn.bias", shard.clone(), true),
        ("model.norm.weight", shard.clone(), false),
        ("model.norm.weight", json!("model-gone.safetensors"), false),
    ] {
        fs::write(&index, &original).unwrap();
        edit_json(&index, |i| i["weight_map"][name] = place.clone());
        match HfFolder::open(&hf) {
            Ok(folder) if fine => assert_same(&memory, &folder),
            Err(e) if !fine => assert!(e.to_string().contains("safetensors.index.json"), "{e}"),
            other => panic!("{name} in {place}: {:?}", other.map(drop)),
        }
    }
}

#[test]
fn folders_of_the_whole_set_are_read() {
    for name in ["st_extra_i64", "st_index_lists_gone_inv_freq", "pth_transposed_view"] {
        let Some(folder) = case(name) else { return };
        let checkpoint = Checkpoint::open(&folder).unwrap_or_else(|e| panic!("{name}: {e}"));
        for info in checkpoint.source().list() {
            checkpoint.source().read(&info.name).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
    }
}

/// Positions cost nothing until they are used, and those beyond the table have the angles of the definition.
#[test]
fn rotary_tables_are_those_of_the_positions_used() {
    let config = ModelConfig { max_seq_len: 1 << 30, rope_theta: 500_000.0, ..small() };
    let rope = Rope::<Flex>::new(&config, &Default::default());
    let frequencies = inverse_frequencies(&config);
    for (start, seq) in [(0, 5), (8190, 2), (8190, 5), (8192, 1), ((1 << 30) - 3, 3)] {
        let (cos, sin) = rope.at(start, seq);
        assert_eq!(cos.dims(), [seq, 4]);
        let [cos, sin] = [cos, sin].map(|t| t.into_data().to_vec::<f32>().unwrap());
        for (i, (cos, sin)) in cos.into_iter().zip(sin).enumerate() {
            let angle = (start + i / 4) as f64 * frequencies[i % 4];
            assert_eq!((cos, sin), (angle.cos() as f32, angle.sin() as f32), "position {}", start + i / 4);
        }
    }
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

/// Values that the new type cannot hold are counted and told.
#[test]
fn values_that_become_infinite_are_told() {
    let (dir, config) = (TempDir::new().unwrap(), small());
    let mut memory = Memory::of(&config);
    let put = |memory: &mut Memory, name: &str, values: &[f32]| {
        let bytes = memory.1.get_mut(name).unwrap();
        values.iter().enumerate().for_each(|(i, v)| bytes[4 * i..4 * i + 4].copy_from_slice(&v.to_le_bytes()));
    };
    put(&mut memory, "norm.weight", &[65504.0, 65519.0, 65520.0, -70000.0, f32::INFINITY, f32::NAN]);
    put(&mut memory, "output.weight", &[3.4e38, 1e5]);
    let at = |name: &str| dir.path().join(name);
    save(at("f32"), Format::Hf, &config, &memory, &SaveOptions::default()).unwrap();
    for (dtype, count) in [(Some(Dtype::F16), 4), (Some(Dtype::BF16), 1), (Some(Dtype::F32), 0), (None, 0)] {
        let name = format!("{dtype:?}");
        let saved = convert(at("f32"), at(&name), Format::Hf, &SaveOptions { dtype, ..Default::default() }).unwrap();
        assert_eq!(saved.overflowed, count, "{name}");
    }
    let (from, to) = (at("f32"), at("told"));
    let out = run(&["convert", text(&from), text(&to), "--to", "hf", "--dtype", "f16"], "");
    let stderr = String::from_utf8(out.stderr).unwrap();
    assert!(out.status.success() && stderr.contains("4 values") && stderr.contains("infinite"), "{stderr}");
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
