//! Kinds of fault that the users of other projects have met: checkpoints, conversion, training and the tokenizer's files. Expected values
//! are transformers' (docs of the folder that RECUA_FAULTS names) or follow from the definition. `tests/faults` has the small ones.

mod formats;
mod training;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::AtomicBool;

use recua::checkpoint::{Dtype, Tensor, TensorInfo, TensorSource};
use recua::data::{Shards, Verify};
use recua::error::Result;
use recua::model::ModelConfig;
use recua::train::config::DataConfig;
use recua::train::{Layers, RunConfig, Start, train};
use serde_json::Value;

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
