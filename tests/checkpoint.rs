//! Checkpoints on disk: exact round trips, errors, crashes, corrupted bytes.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use recua::checkpoint::native::MODEL;
use recua::checkpoint::{
    Checkpoint, Dtype, Format, HfConfig, HfFolder, MetaFolder, SafetensorsFile, SaveOptions, Tensor, TensorInfo, TensorSource,
    convert, meta, save, write_safetensors,
};
use recua::error::{Error, Result};
use recua::model::{ModelConfig, RopeScaling};
use serde_json::{Value, json};
use tempfile::TempDir;

/// xorshift64*: the tests want any bits, the same every time.
struct Bits(u64);

impl Bits {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| (self.next() >> 40) as u8).collect()
    }
}

/// Tensors in memory.
#[derive(Clone)]
struct Memory(Vec<TensorInfo>, BTreeMap<String, Vec<u8>>);

impl Memory {
    /// Every parameter with random bits: NaN payloads, infinities and denormals included.
    fn random(config: &ModelConfig, dtype: Dtype, seed: u64) -> Self {
        let mut bits = Bits(seed);
        let infos: Vec<_> = config.parameters().into_iter().map(|(name, shape)| TensorInfo { name, shape, dtype }).collect();
        let data = infos.iter().map(|i| (i.name.clone(), bits.bytes(i.byte_len().unwrap()))).collect();
        Self(infos, data)
    }

    /// This rank's part of every parameter, as Meta's code splits them; `dim` of tok_embeddings is 1 (LLaMA 1, 2) or 0 (3).
    fn part(&self, rank: usize, ranks: usize, embeddings: usize) -> Self {
        let mut part = Self(Vec::new(), BTreeMap::new());
        for info in &self.0 {
            let dim = match info.name.rsplit('.').nth(1).unwrap() {
                "wq" | "wk" | "wv" | "w1" | "w3" | "output" => 0,
                "wo" | "w2" => 1,
                "tok_embeddings" => embeddings,
                _ => 2,
            };
            let (mut info, bytes, size) = (info.clone(), &self.1[&info.name], info.dtype.block().1);
            let mut out = bytes.clone();
            if dim < 2 {
                let (rows, columns) = (info.shape[0], info.shape[1]);
                info.shape[dim] /= ranks;
                out.clear();
                // Element by element, unlike the code under test.
                for (r, c) in (0..rows).flat_map(|r| (0..columns).map(move |c| (r, c))) {
                    if [r * ranks / rows, c * ranks / columns][dim] == rank {
                        out.extend_from_slice(&bytes[(r * columns + c) * size..][..size]);
                    }
                }
            }
            part.1.insert(info.name.clone(), out);
            part.0.push(info);
        }
        part
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

fn config(n_kv_heads: Option<usize>) -> ModelConfig {
    let small =
        ModelConfig { dim: 32, n_layers: 2, n_heads: 4, n_kv_heads, vocab_size: 48, multiple_of: 8, ..ModelConfig::default() };
    ModelConfig { max_seq_len: 100, norm_eps: 1e-6, rope_theta: 500_000.0, ..small }
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny_llama")
}

fn assert_same(a: &dyn TensorSource, b: &dyn TensorSource) {
    assert_eq!(a.list().len(), b.list().len());
    for info in a.list() {
        let (x, y) = (a.read(&info.name).unwrap(), b.read(&info.name).unwrap());
        assert!((&x.shape, x.dtype, &x.bytes) == (&y.shape, y.dtype, &y.bytes), "{} differs", info.name);
    }
}

/// The error's text, which must have every word.
fn assert_error<T>(result: Result<T>, words: &[&str]) {
    let Err(error) = result else { panic!("expected an error with {words:?}") };
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "`{word}` is not in: {text}");
    }
}

fn edit_json(path: &Path, edit: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    edit(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[test]
fn every_bit_survives_native_hf_meta_native() {
    for (dtype, kv) in [Dtype::F32, Dtype::F16, Dtype::BF16].into_iter().zip([None, Some(2), Some(1)]) {
        let (dir, config) = (TempDir::new().unwrap(), config(kv));
        let at = |name: &str| dir.path().join(name);
        let memory = Memory::random(&config, dtype, 7);
        let options = SaveOptions { bos_id: Some(1), eos_ids: vec![2, 7], hf_shard_bytes: 9_000, ..SaveOptions::default() };
        fs::write(at("tokenizer.json"), "{}").unwrap();
        let with_tokenizer = SaveOptions { tokenizer: Some(at("tokenizer.json")), ..options.clone() };
        save(at("a"), Format::Native, &config, &memory, &with_tokenizer).unwrap();
        let plain = SaveOptions { hf_shard_bytes: 9_000, ..SaveOptions::default() };
        convert(at("a"), at("b"), Format::Hf, &plain).unwrap();
        convert(at("b"), at("c"), Format::Meta, &plain).unwrap();
        convert(at("c"), at("d"), Format::Native, &plain).unwrap();
        for (name, format) in [("a", Format::Native), ("b", Format::Hf), ("c", Format::Meta), ("d", Format::Native)] {
            let checkpoint = Checkpoint::open(at(name)).unwrap();
            assert_same(&memory, checkpoint.source());
            assert_eq!(checkpoint.format(), format);
            assert_eq!(checkpoint.tokenizer_path(), Some(at(name).join("tokenizer.json").as_path()));
            let got = checkpoint.config();
            assert_eq!(got.parameters(), config.parameters());
            let numbers =
                |c: &ModelConfig| (c.n_heads, c.kv_heads(), c.norm_eps, c.max_seq_len, c.rope_theta, c.rope_scaling.clone());
            assert_eq!(numbers(got), numbers(&config));
            assert_eq!(checkpoint.bos_eos(), (Some(1), [2, 7].as_slice()), "{name}");
        }
        assert!(at("b/model.safetensors.index.json").exists(), "not in shards");
        assert_eq!(fs::read(at("a").join(MODEL)).unwrap(), fs::read(at("d").join(MODEL)).unwrap());
    }
}

#[test]
fn a_dtype_can_be_chosen() {
    let (dir, config) = (TempDir::new().unwrap(), config(None));
    let mut memory = Memory::random(&config, Dtype::F32, 3);
    // 1 + 2^-8 is half way between two bfloat16; 65520 rounds to infinity in float16.
    let values = [1.0f32 + 1.0 / 256.0, 65520.0, -0.0, 3.0].repeat(8);
    memory.1.insert("norm.weight".into(), values.iter().flat_map(|v| v.to_le_bytes()).collect());
    for (dtype, expected) in [(Dtype::BF16, [1.0f32, 65536.0, -0.0, 3.0]), (Dtype::F16, [1.003_906_2, f32::INFINITY, -0.0, 3.0])]
    {
        let out = dir.path().join(dtype.to_string());
        save(&out, Format::Hf, &config, &memory, &SaveOptions { dtype: Some(dtype), ..SaveOptions::default() }).unwrap();
        let folder = HfFolder::open(&out).unwrap();
        assert!(folder.list().iter().all(|i| i.dtype == dtype));
        let (shape, got) = folder.read_f32("norm.weight").unwrap();
        assert_eq!(
            (shape, got[..4].iter().map(|v| v.to_bits()).collect::<Vec<_>>()),
            (vec![32], expected.map(f32::to_bits).to_vec())
        );
        let json: Value = serde_json::from_slice(&fs::read(out.join("config.json")).unwrap()).unwrap();
        assert_eq!((&json["dtype"], &json["torch_dtype"]), (&json!(dtype.torch_name()), &json!(dtype.torch_name())));
    }
}

/// The rows of one head, HF's order from Meta's, written out: halves from adjacent pairs.
#[test]
fn rotary_rows_are_permuted_within_each_head() {
    let (dir, config) = (TempDir::new().unwrap(), config(Some(2)));
    let mut memory = Memory::random(&config, Dtype::F16, 5);
    for name in ["layers.1.attention.wq.weight", "layers.1.attention.wk.weight", "layers.1.attention.wv.weight"] {
        let rows = memory.1[name].len() / 64;
        memory.1.insert(name.into(), (0..rows).flat_map(|r| [r as u8; 64]).collect());
    }
    save(dir.path().join("hf"), Format::Hf, &config, &memory, &SaveOptions::default()).unwrap();
    let bytes = fs::read(dir.path().join("hf/model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let rows = |name: &str| {
        let view = file.tensor(&format!("model.layers.1.self_attn.{name}.weight")).unwrap();
        view.data().chunks(64).map(|row| row[0]).collect::<Vec<_>>()
    };
    let head = [0, 2, 4, 6, 1, 3, 5, 7];
    let expected = |heads: u8| (0..heads).flat_map(|h| head.map(|r| h * 8 + r)).collect::<Vec<_>>();
    assert_eq!(rows("q_proj"), expected(4));
    assert_eq!(rows("k_proj"), expected(2));
    assert_eq!(rows("v_proj"), (0..16).collect::<Vec<_>>());
}

/// What transformers wrote, read by us and by the safetensors crate, and written back.
#[test]
fn transformers_folder_is_read_and_written_back() {
    let (dir, folder) = (TempDir::new().unwrap(), HfFolder::open(golden()).unwrap());
    assert_eq!((folder.config().bos_id, folder.config().eos_ids.as_slice()), (Some(1), [2].as_slice()));
    let original = fs::read(golden().join("model.safetensors")).unwrap();
    let original = safetensors::SafeTensors::deserialize(&original).unwrap();
    let norm = original.tensor("model.layers.2.post_attention_layernorm.weight").unwrap();
    assert_eq!(folder.read("layers.2.ffn_norm.weight").unwrap().bytes, norm.data());
    convert(golden(), dir.path().join("meta"), Format::Meta, &SaveOptions::default()).unwrap();
    convert(dir.path().join("meta"), dir.path().join("hf"), Format::Hf, &SaveOptions::default()).unwrap();
    let back = fs::read(dir.path().join("hf/model.safetensors")).unwrap();
    let back = safetensors::SafeTensors::deserialize(&back).unwrap();
    assert_eq!(back.len(), original.len());
    for (name, view) in original.tensors() {
        assert!(back.tensor(&name).unwrap() == view, "{name} differs");
    }
}

/// Two ranks saved by torch.save (float32, float16, bfloat16; rope.freqs in float64), with values of a formula.
#[test]
fn meta_folder_of_torch_is_read() {
    let folder = MetaFolder::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/meta_torch")).unwrap();
    assert_eq!((folder.config().vocab_size, folder.config().norm_eps), (12, 1e-6));
    for (k, (name, shape)) in folder.config().parameters().into_iter().enumerate() {
        let expected: Vec<f32> = (0..shape.iter().product()).map(|j: usize| ((j + 37 * k) % 251) as f32 / 8.0 - 16.0).collect();
        assert_eq!(folder.list()[k].dtype, [Dtype::F32, Dtype::F16, Dtype::BF16][k % 3]);
        assert_eq!(folder.read_f32(&name).unwrap(), (shape, expected), "{name}");
    }
}

/// A config.json of the spelling of transformers 4.
fn four() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 172,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 8192, "rope_theta": 500000.0, "rope_scaling": null, "torch_dtype": "bfloat16",
        "tie_word_embeddings": true, "bos_token_id": 128000, "eos_token_id": [128001, 128009]
    })
}

fn parse(value: &Value) -> Result<HfConfig> {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("config.json"), value.to_string()).unwrap();
    HfConfig::read(&dir.path().join("config.json"))
}

fn with(mut value: Value, edits: &[(&str, Value)]) -> Value {
    edits.iter().for_each(|(key, new)| value[*key] = new.clone());
    value
}

fn without(mut value: Value, keys: &[&str]) -> Value {
    keys.iter().for_each(|key| drop(value.as_object_mut().unwrap().remove(*key)));
    value
}

#[test]
fn both_spellings_of_hf_configs_are_read() {
    let config = parse(&four()).unwrap();
    assert_eq!((config.model.rope_theta, &config.model.rope_scaling), (500_000.0, &RopeScaling::None));
    assert_eq!((config.model.max_seq_len, config.model.hidden_dim(), config.model.kv_heads()), (8192, 172, 2));
    assert!(config.tie_word_embeddings);
    assert_eq!((config.bos_id, config.eos_ids.as_slice()), (Some(128_000), [128_001, 128_009].as_slice()));

    let five = without(four(), &["rope_theta", "rope_scaling", "torch_dtype"]);
    let rope = |v: Value| with(five.clone(), &[("dtype", json!("bfloat16")), ("rope_parameters", v)]);
    assert_eq!(parse(&rope(json!({ "rope_type": "default", "rope_theta": 500000.0 }))).unwrap(), config);

    // Llama 3.1: in transformers 4 beside theta, in 5 together with it. Without an original length it is the whole length.
    let llama3 = json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0 });
    let expected = |original_max_seq_len| RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_seq_len,
    };
    let original = with(llama3.clone(), &[("original_max_position_embeddings", json!(1024))]);
    assert_eq!(parse(&with(four(), &[("rope_scaling", original.clone())])).unwrap().model.rope_scaling, expected(1024));
    let got = parse(&rope(with(original.clone(), &[("rope_theta", json!(500000.0))]))).unwrap().model;
    assert_eq!((got.rope_theta, got.rope_scaling), (500_000.0, expected(1024)));
    assert_eq!(parse(&rope(llama3.clone())).unwrap().model.rope_scaling, expected(8192));
    // The old key of the type; integers where a float is meant.
    let linear = with(four(), &[("rope_scaling", json!({ "type": "linear", "factor": 4 }))]);
    assert_eq!(parse(&linear).unwrap().model.rope_scaling, RopeScaling::Linear { factor: 4.0 });

    // transformers' defaults.
    let bare = without(five.clone(), &["num_key_value_heads", "rms_norm_eps", "max_position_embeddings", "tie_word_embeddings"]);
    let bare = parse(&without(bare, &["bos_token_id", "eos_token_id", "architectures"])).unwrap();
    let m = &bare.model;
    assert_eq!((m.rope_theta, m.norm_eps, m.max_seq_len, m.kv_heads()), (10_000.0, 1e-6, 2048, 4));
    assert_eq!((bare.tie_word_embeddings, bare.bos_id, bare.eos_ids.len()), (false, None, 0));
    // 8/3 * 64 rounded up to 256 is the usual width.
    let usual = parse(&with(four(), &[("intermediate_size", json!(256))])).unwrap().model;
    assert_eq!((usual.ffn_dim, usual.multiple_of), (None, 256));
}

#[test]
fn hf_configs_of_other_models_are_refused() {
    for (key, value, words) in [
        ("attention_bias", json!(true), vec!["attention_bias", "biases"]),
        ("mlp_bias", json!(true), vec!["mlp_bias", "biases"]),
        ("hidden_act", json!("gelu"), vec!["hidden_act", "silu", "gelu"]),
        ("model_type", json!("mistral"), vec!["model_type", "llama", "mistral"]),
        ("architectures", json!(["LlamaForSequenceClassification"]), vec!["architectures", "LlamaForCausalLM"]),
        ("head_dim", json!(32), vec!["head_dim", "16", "32"]),
        ("rope_scaling", json!({ "type": "dynamic", "factor": 2.0 }), vec!["rope_scaling", "unknown rope type", "dynamic"]),
        ("rope_scaling", json!({ "rope_type": "yarn", "factor": 2.0 }), vec!["unknown rope type", "yarn"]),
        ("rope_scaling", json!({ "rope_type": "linear" }), vec!["rope_scaling.factor", "missing"]),
        ("rope_parameters", json!({ "rope_theta": 10000.0 }), vec!["rope_theta", "10000", "500000"]),
        ("rope_parameters", json!({ "full_attention": { "rope_theta": 1.0 } }), vec!["rope_parameters", "full_attention"]),
        ("partial_rotary_factor", json!(0.5), vec!["partial_rotary_factor"]),
        ("quantization_config", json!({ "bits": 4 }), vec!["quantization_config", "quantised"]),
        ("hidden_size", json!("64"), vec!["hidden_size", "whole number"]),
        ("num_attention_heads", json!(0), vec!["n_heads", "at least 1"]),
        ("num_key_value_heads", json!(3), vec!["n_kv_heads"]),
        ("vocab_size", json!(u64::MAX), vec!["vocab_size"]),
    ] {
        assert_error(parse(&with(four(), &[(key, value)])), &words);
    }
    for key in ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"] {
        assert_error(parse(&without(four(), &[key])), &[key, "missing"]);
    }
    assert_error(parse(&without(four(), &["model_type", "architectures"])), &["model_type", "llama"]);
    assert_error(parse(&json!([1])), &["config.json", "object"]);
}

/// As in transformers 5: tied weights are the embedding where the file has no head of its own, and its head where it has one.
#[test]
fn tied_embeddings_are_the_output_unless_there_is_a_head() {
    let (dir, config) = (TempDir::new().unwrap(), config(None));
    let (hf, memory) = (dir.path().join("hf"), Memory::random(&config, Dtype::F32, 11));
    save(&hf, Format::Hf, &config, &memory, &SaveOptions::default()).unwrap();
    edit_json(&hf.join("config.json"), |c| c["tie_word_embeddings"] = json!(true));
    let read = |name: &str| HfFolder::open(&hf).unwrap().read(name).unwrap().bytes.into_owned();
    assert_eq!(read("output.weight"), memory.1["output.weight"]);
    convert(&hf, dir.path().join("meta"), Format::Meta, &SaveOptions::default()).unwrap();
    assert_same(&memory, &MetaFolder::open(dir.path().join("meta")).unwrap());
    rewrite(&hf.join(MODEL), |list| list.retain(|(info, _)| info.name != "lm_head.weight"));
    assert_eq!(read("output.weight"), memory.1["tok_embeddings.weight"]);
    edit_json(&hf.join("config.json"), |c| c["tie_word_embeddings"] = json!(false));
    assert_error(HfFolder::open(&hf), &["lm_head.weight", "[48, 32]", "nothing"]);
}

type Tensors = Vec<(TensorInfo, Vec<u8>)>;

/// Rewrites a safetensors file with another list of tensors.
fn rewrite(path: &Path, edit: impl FnOnce(&mut Tensors)) {
    let file = SafetensorsFile::open(path).unwrap();
    let mut list: Vec<_> = file.list().iter().map(|i| (i.clone(), file.read(&i.name).unwrap().bytes.into_owned())).collect();
    drop(file);
    edit(&mut list);
    let infos: Vec<_> = list.iter().map(|(info, _)| info.clone()).collect();
    write_safetensors(path, &infos, &[], &mut |i| Ok(Cow::Borrowed(&list[i].1))).unwrap();
}

#[test]
fn hf_folders_that_do_not_fit_are_refused_by_name() {
    let (dir, config) = (TempDir::new().unwrap(), config(Some(2)));
    let (whole, sharded) = (dir.path().join("whole"), dir.path().join("sharded"));
    let memory = Memory::random(&config, Dtype::BF16, 13);
    save(&whole, Format::Hf, &config, &memory, &SaveOptions::default()).unwrap();
    let options = SaveOptions { hf_shard_bytes: 9_000, ..SaveOptions::default() };
    save(&sharded, Format::Hf, &config, &memory, &options).unwrap();
    let case = |from: &Path, break_it: &dyn Fn(&Path), words: &[&str]| {
        let broken = TempDir::new().unwrap();
        copy_dir(from, broken.path());
        break_it(broken.path());
        assert_error(HfFolder::open(broken.path()), words);
    };
    let extra = |name: &str, shape: &[usize]| {
        let info = TensorInfo { name: name.into(), shape: shape.to_vec(), dtype: Dtype::F32 };
        let bytes = vec![0; info.byte_len().unwrap()];
        (info, bytes)
    };
    let model = |edit: &dyn Fn(&mut Tensors), d: &Path| rewrite(&d.join(MODEL), edit);
    case(
        &whole,
        &|d| model(&|l| l.retain(|(i, _)| !i.name.contains("1.self_attn.k_proj")), d),
        &["layers.1.self_attn.k_proj", "[16, 32]", "nothing"],
    );
    case(
        &whole,
        &|d| model(&|l| l.retain(|(i, _)| !i.name.contains("1.mlp")), d),
        &["mlp.gate_proj", "2 more", "mlp.down_proj", "mlp.up_proj"],
    );
    case(&whole, &|d| model(&|l| l.push(extra("model.layers.0.self_attn.q_proj.bias", &[32])), d), &["q_proj.bias", "no biases"]);
    case(
        &whole,
        &|d| model(&|l| l.push(extra("model.layers.0.self_attn.q_norm.weight", &[8])), d),
        &["q_norm", "no plain LLaMA"],
    );
    case(
        &whole,
        &|d| edit_json(&d.join("config.json"), |c| c["vocab_size"] = json!(64)),
        &["embed_tokens", "[64, 32]", "[48, 32]"],
    );
    case(&whole, &|d| edit_json(&d.join("config.json"), |c| c["num_hidden_layers"] = json!(1)), &["layers.1", "no plain LLaMA"]);
    case(
        &whole,
        &|d| edit_json(&d.join("config.json"), |c| c["num_hidden_layers"] = json!(1 << 29)),
        &["n_layers", "21 tensors"],
    );
    case(&whole, &|d| fs::remove_file(d.join(MODEL)).unwrap(), &["no model.safetensors", "pytorch_model.bin"]);
    case(&whole, &|d| fs::write(d.join("config.json"), "{").unwrap(), &["config.json", "not JSON"]);
    let shard = fs::read_dir(&sharded).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let shard = { shard }.find(|n| n.starts_with("model-00002-of")).unwrap();
    case(&sharded, &|d| fs::remove_file(d.join(&shard)).unwrap(), &["shards missing", &shard]);
    let index = "model.safetensors.index.json";
    case(
        &sharded,
        &|d| edit_json(&d.join(index), |i| i["weight_map"]["model.norm.weight"] = json!("../x")),
        &["model.norm.weight", "plain file name"],
    );
    case(
        &sharded,
        &|d| edit_json(&d.join(index), |i| i["weight_map"]["lm_head.weight"] = json!(shard)),
        &["lm_head.weight", &shard],
    );
    case(&sharded, &|d| edit_json(&d.join(index), |i| i["weight_map"] = json!(1)), &["weight_map"]);
    case(
        &sharded,
        &|d| {
            let bytes = fs::read(d.join(&shard)).unwrap();
            fs::write(d.join(&shard), &bytes[..bytes.len() - 1]).unwrap();
        },
        &[&shard, "truncated"],
    );
    // Buffers that old versions saved are no parameters.
    rewrite(&whole.join(MODEL), |l| l.push(extra("model.layers.0.self_attn.rotary_emb.inv_freq", &[4])));
    assert_same(&memory, &HfFolder::open(&whole).unwrap());
}

#[test]
fn meta_shards_are_merged() {
    let config = config(None);
    for (ranks, embeddings, dtype) in [(2, 1, Dtype::F16), (4, 1, Dtype::BF16), (2, 0, Dtype::F32), (4, 0, Dtype::F16)] {
        let dir = TempDir::new().unwrap();
        let memory = Memory::random(&config, dtype, 17);
        for rank in 0..ranks {
            let mut part = memory.part(rank, ranks, embeddings);
            part.0.push(TensorInfo { name: "rope.freqs".into(), shape: vec![4], dtype });
            part.1.insert("rope.freqs".into(), vec![1; 4 * dtype.block().1]);
            meta::write_pth(&dir.path().join(format!("consolidated.{rank:02}.pth")), &part).unwrap();
        }
        let params = json!({
            "dim": 32, "n_layers": 2, "n_heads": 4, "vocab_size": -1, "multiple_of": 8, "norm_eps": 1e-6, "rope_theta": 5e5
        });
        fs::write(dir.path().join("params.json"), params.to_string()).unwrap();
        let folder = MetaFolder::open(dir.path()).unwrap();
        assert_same(&memory, &folder);
        // Without a file of ours beside it the length is that of Llama 3.
        assert_eq!(folder.config(), &ModelConfig { max_seq_len: 8192, n_kv_heads: None, ..config.clone() });

        let path = dir.path().join("consolidated.00.pth");
        fs::rename(&path, dir.path().join("aside")).unwrap();
        assert_error(MetaFolder::open(dir.path()), &["shards missing", "consolidated.00.pth"]);
        meta::write_pth(&path, &memory).unwrap();
        assert_error(MetaFolder::open(dir.path()), &["consolidated.01.pth", "as in consolidated.00.pth"]);
    }
}

#[test]
fn meta_params_are_read_and_refused() {
    let (dir, config) = (TempDir::new().unwrap(), config(Some(2)));
    let folder = dir.path().join("meta");
    let memory = Memory::random(&config, Dtype::BF16, 19);
    save(&folder, Format::Meta, &config, &memory, &SaveOptions::default()).unwrap();
    let path = folder.join("params.json");
    let original = fs::read(&path).unwrap();
    let open = |edit: &dyn Fn(&mut Value)| {
        fs::write(&path, &original).unwrap();
        edit_json(&path, edit);
        MetaFolder::open(&folder).map(|f| f.config().clone())
    };
    let scaled = open(&|p| p["use_scaled_rope"] = json!(true)).unwrap();
    let llama3 = RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_seq_len: 8192 };
    assert_eq!(scaled.rope_scaling, llama3);
    // floor(1.1 * floor(8 * 32 / 3)) = 93, up to a multiple of 8: 96, whereas the weights have 88.
    assert_error(open(&|p| p["ffn_dim_multiplier"] = json!(1.1)), &["feed_forward.w1", "[96, 32]", "[88, 32]"]);
    assert_eq!(open(&|p| p["ffn_dim_multiplier"] = json!(1.03)).unwrap().hidden_dim(), 88);
    assert_error(open(&|p| p["ffn_dim_multiplier"] = json!(1e300)), &["ffn_dim_multiplier"]);
    assert_error(open(&|p| p["dim"] = Value::Null), &["params.json: dim", "missing"]);
    assert_error(open(&|p| p["n_heads"] = json!(2.5)), &["n_heads", "whole number"]);
    assert_error(open(&|p| p["n_layers"] = json!(1 << 30)), &["n_layers", "21 tensors"]);
    assert_error(open(&|p| p["n_kv_heads"] = json!(4)), &["attention.wk", "[32, 32]", "[16, 32]"]);
    assert_error(open(&|p| p["n_layers"] = json!(3)), &["layers.2", "nothing"]);
    assert_error(open(&|p| p["n_layers"] = json!(1)), &["layers.1", "no plain LLaMA"]);
    // A width below the usual needs a multiplier; either way Meta's formula gives it back. NTK is a larger theta.
    for ffn_dim in [7, 40, 85, 86, 333] {
        let ntk = RopeScaling::Ntk { factor: 4.0 };
        let config = ModelConfig { ffn_dim: Some(ffn_dim), rope_scaling: ntk, ..config.clone() };
        let out = dir.path().join(format!("ffn{ffn_dim}"));
        save(&out, Format::Meta, &config, &Memory::random(&config, Dtype::F16, 1), &SaveOptions::default()).unwrap();
        let got = MetaFolder::open(&out).unwrap().config().clone();
        assert_eq!((got.hidden_dim(), got.rope_scaling), (ffn_dim, RopeScaling::None));
        assert!((got.rope_theta / (500_000.0 * 4f64.powf(8.0 / 6.0)) - 1.0).abs() < 1e-12);
    }
    let linear = ModelConfig { rope_scaling: RopeScaling::Linear { factor: 2.0 }, ..config.clone() };
    let out = dir.path().join("linear");
    assert_error(save(&out, Format::Meta, &linear, &memory, &SaveOptions::default()), &["rope_scaling", "Linear"]);
    assert!(!out.exists());
}

#[test]
fn outputs_appear_whole_or_not_at_all() {
    let (dir, config) = (TempDir::new().unwrap(), config(None));
    let memory = Memory::random(&config, Dtype::F16, 23);
    fs::create_dir(dir.path().join("full")).unwrap();
    fs::write(dir.path().join("full/x"), "x").unwrap();
    fs::create_dir(dir.path().join("empty")).unwrap();
    struct Failing(Memory);
    impl TensorSource for Failing {
        fn list(&self) -> &[TensorInfo] {
            self.0.list()
        }
        fn read(&self, name: &str) -> Result<Tensor<'_>> {
            if name == "norm.weight" { Err(Error::bad_value("test", "no more", "nothing")) } else { self.0.read(name) }
        }
    }
    for format in [Format::Native, Format::Hf, Format::Meta] {
        let to =
            |name: &str, source: &dyn TensorSource| save(dir.path().join(name), format, &config, source, &SaveOptions::default());
        assert_error(to("full", &memory), &["full", "not empty"]);
        assert_error(to("new", &Failing(memory.clone())), &["no more"]);
        let mut short = memory.clone();
        short.0.pop();
        assert_error(to("new", &short), &["output.weight", "nothing"]);
        let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "{names:?}");
        to("empty", &memory).unwrap();
        assert_same(&memory, Checkpoint::open(dir.path().join("empty")).unwrap().source());
        fs::remove_dir_all(dir.path().join("empty")).unwrap();
        fs::create_dir(dir.path().join("empty")).unwrap();
    }
    assert_error(Checkpoint::open(dir.path().join("full")), &["full", "no checkpoint", "config.json"]);
    assert_error(Checkpoint::open(dir.path().join("nowhere")), &["nowhere", "no checkpoint"]);
}
