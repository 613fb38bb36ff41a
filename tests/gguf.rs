//! GGUF: what gguf-py wrote (`tests/golden/gguf`), our own files, both kinds of tokenizer, damaged files.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use recua::checkpoint::gguf::{Array, Header, Metadata, Value, dtype};
use recua::checkpoint::weights::narrow_dtype;
use recua::checkpoint::{
    Checkpoint, Dtype, Format, GgufModel, SaveOptions, Saved, Tensor, TensorInfo, TensorSource, check_convert, convert, gguf,
    read_config, save,
};
use recua::error::{Error, Result};
use recua::model::{ModelConfig, RopeScaling, inverse_frequencies};
use recua::ops::blocks::{narrowed, widened};
use recua::tokenizer::{Tokenizer, TokenizerFiles, TrainConfig};
use serde_json::json;
use tempfile::TempDir;

use crate::common::outside;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// SplitMix64.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// About normal, of variance 1.
    fn normal(&mut self) -> f32 {
        let sum: f64 = (0..12).map(|_| (self.next() >> 11) as f64 / (1u64 << 53) as f64).sum();
        (sum - 6.0) as f32
    }
}

/// Tensors in memory.
struct Memory(Vec<TensorInfo>, BTreeMap<String, Vec<u8>>);

impl Memory {
    fn random(config: &ModelConfig, dtype: Dtype, seed: u64) -> Self {
        let mut rng = Rng(seed);
        let infos: Vec<_> = config.parameters().into_iter().map(|(name, shape)| TensorInfo { name, shape, dtype }).collect();
        let bytes = |info: &TensorInfo, rng: &mut Rng| {
            let values: Vec<f32> = (0..info.shape.iter().product()).map(|_| rng.normal()).collect();
            narrowed(dtype, &values, *info.shape.last().unwrap()).unwrap()
        };
        let data = infos.iter().map(|i| (i.name.clone(), bytes(i, &mut rng))).collect();
        Self(infos, data)
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

/// Widths that are whole blocks of 32, but for one.
fn config() -> ModelConfig {
    let sizes = ModelConfig { dim: 64, n_layers: 2, n_heads: 4, n_kv_heads: Some(2), vocab_size: 96, ..ModelConfig::default() };
    ModelConfig { ffn_dim: Some(80), multiple_of: 256, max_seq_len: 100, norm_eps: 1e-6, rope_theta: 500_000.0, ..sizes }
}

fn save_gguf(dir: &TempDir, name: &str, config: &ModelConfig, source: &dyn TensorSource, options: &SaveOptions) -> PathBuf {
    let path = dir.path().join(name);
    save(&path, Format::Gguf, config, source, options).unwrap();
    path
}

/// The error's text, which must have every word.
fn assert_error<T>(result: Result<T>, words: &[&str]) {
    let Err(error) = result else { panic!("expected an error with {words:?}") };
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "`{word}` is not in: {text}");
    }
}

/// Texts of what tokenizers get wrong.
fn texts() -> Vec<String> {
    let fixed = [
        "",
        " ",
        "  ",
        "   a",
        "a",
        " a",
        "a ",
        "  a b   c  ",
        "\n",
        "\n\n",
        " \n \n\n x",
        "\t\ty",
        "\r\n\r\n",
        "Hello, world!",
        "hello  world",
        "don't DON'T we'LL 'tis 'S",
        "123",
        "1234567 3.14 v2",
        "!!a ?! -- ...x",
        "a.b,c;d",
        "caf\u{e9}",
        "cafe\u{301}",
        "na\u{ef}ve \u{df}",
        "\u{4f60}\u{597d}\u{3002}",
        "\u{3053}\u{3093}",
        "\u{1f600}",
        "\u{1f1e9}\u{1f1ea} \u{1f469}\u{200d}\u{1f4bb}",
        "\u{2581}",
        "\u{2581}x \u{2581}\u{2581}",
        "<s>",
        "</s> <unk> <s>x",
        "<|begin_of_text|>a<|eot_id|> b",
        "<0x0A><0xFF>",
        "if (x == 10) {\n    return a[i] + 1;\n}\n",
        "\u{7f}\u{85}\u{a0}\u{2028}",
        "\u{627}\u{644}\u{633}\u{644}\u{627}\u{645}",
        "\u{5e9}\u{5dc}\u{5d5}\u{5dd}",
        "\u{928}\u{92e}\u{938}\u{94d}\u{924}\u{947}",
        "ALLCAPS MixedCase snake_case",
        "trailing   ",
        "a\u{0}b",
        "llama and another llama",
        "the llama, the Llama",
        "xxxxxxxxxxxxxxxxxxxxxxxxxxx",
        "=== --- ***",
        "http://a.b/c?d=e&f#g",
        "\u{b2}\u{2161}\u{664}",
        "1 2 3 4",
        "12 34",
        "$100.00",
        "a\u{300}\u{301}\u{302}",
        "\u{fffd}",
        "<ud>old <ud> x",
        "I I'm I'll",
        "\u{10ffff}\u{e000}",
    ];
    let mut texts: Vec<String> = fixed.map(String::from).to_vec();
    let mut rng = Rng(9);
    let parts = [
        "a",
        " ",
        "l",
        "the",
        " llama",
        "\n",
        "\u{e9}",
        "1",
        "'s",
        "!",
        "\u{4f60}",
        "\u{2581}",
        "<s>",
        "<ud>",
        "  ",
        "\t",
        "A",
        "\u{1f600}",
    ];
    for _ in 0..300 {
        texts.push((0..1 + rng.below(12)).map(|_| parts[rng.below(parts.len())]).collect());
    }
    texts
}

/// The same ids for every text, and the same texts back.
fn assert_same_tokenizer(a: &Tokenizer, b: &Tokenizer, what: &str) {
    assert_eq!(a.prefix(), b.prefix(), "{what}: prefix");
    assert_eq!((a.bos_id(), a.eos_id()), (b.bos_id(), b.eos_id()), "{what}: ends");
    for text in texts() {
        let ids = a.encode(&text).unwrap();
        assert_eq!(ids, b.encode(&text).unwrap(), "{what}: {text:?}");
        assert_eq!(a.decode(&ids).unwrap(), b.decode(&ids).unwrap(), "{what}: {text:?}");
        assert_eq!(a.encode_with_special(&text).unwrap(), b.encode_with_special(&text).unwrap(), "{what}: {text:?}, special");
    }
    for id in 0..a.vocab_size() as u32 {
        assert_eq!(a.decode(&[id]).ok(), b.decode(&[id]).ok(), "{what}: token {id}");
        assert_eq!(a.decode_with_special(&[id]).ok(), b.decode_with_special(&[id]).ok(), "{what}: token {id}");
        assert_eq!((a.token_of(id), a.is_special(id)), (b.token_of(id), b.is_special(id)), "{what}: token {id}");
    }
}

// What gguf-py writes

#[test]
fn gguf_blocks_are_those_of_gguf_py() {
    let path = golden("gguf/codecs.gguf");
    let bytes: bytes::Bytes = fs::read(&path).unwrap().into();
    let header = Header::parse(&bytes, &path).unwrap();
    let find = |name: &str| header.tensors.iter().find(|t| t.name == name).unwrap();
    let floats = |name: &str| widened(Dtype::F32, &bytes[find(name).start..find(name).end]);
    for of in Dtype::ALL.into_iter().filter(|d| *d != Dtype::F32) {
        let raw = find(&format!("{of}.raw"));
        assert_eq!((dtype(raw.kind), raw.shape.as_slice()), (Some(of), &[4, 256][..]));
        let (got, want) = (widened(of, &bytes[raw.start..raw.end]), floats(&format!("{of}.f32")));
        assert_eq!(got.len(), 4 * 256);
        for (i, (a, b)) in got.iter().zip(&want).enumerate() {
            assert!(
                a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()) || *a == 0.0 && *b == 0.0,
                "{of}, {i}: {a}, expected {b}"
            );
        }
    }
    let values = floats("values");
    for of in [Dtype::Q8_0, Dtype::Q4_0] {
        let made = find(&format!("{of}.made"));
        let (got, want) = (narrowed(of, &values, 256).unwrap(), &bytes[made.start..made.end]);
        let size = of.block().1;
        for (i, (a, b)) in got.chunks(size).zip(want.chunks(size)).enumerate() {
            assert_eq!(a, b, "{of}, block {i} of {:?}", &values[32 * i..32 * i + 32]);
        }
    }
}

#[test]
fn gguf_nan_in_blocks_is_not_hidden() {
    let mut values = vec![1.0f32; 64];
    values[3] = f32::NAN;
    values[40] = f32::INFINITY;
    for of in [Dtype::Q8_0, Dtype::Q4_0] {
        let back = widened(of, &narrowed(of, &values, 64).unwrap());
        assert!(back[3].is_nan() && !back[40].is_finite(), "{of}: {back:?}");
    }
}

#[test]
fn gguf_model_of_gguf_py_is_read() {
    let path = golden("gguf/spm.gguf");
    let expected: serde_json::Value = serde_json::from_slice(&fs::read(golden("gguf/expected.json")).unwrap()).unwrap();
    let model = GgufModel::open(&path).unwrap();
    let metadata = model.metadata();
    let get = |name: &str| metadata.get(&format!("test.{name}")).unwrap().clone();
    assert_eq!(get("u8"), Value::U8(200));
    assert_eq!(get("i8"), Value::I8(-100));
    assert_eq!(get("u16"), Value::U16(60_000));
    assert_eq!(get("i16"), Value::I16(-30_000));
    assert_eq!(get("u32"), Value::U32(4_000_000_000));
    assert_eq!(get("i32"), Value::I32(-2_000_000_000));
    assert_eq!(get("u64"), Value::U64((1 << 63) + 1));
    assert_eq!(get("i64"), Value::I64(-(1 << 62)));
    assert_eq!(get("f32"), Value::F32(0.1));
    assert_eq!(get("f64"), Value::F64(0.1));
    assert_eq!(get("bool"), Value::Bool(true));
    assert_eq!(get("string"), Value::String("\u{e9} \u{4f60}".into()));
    assert_eq!(get("strings"), Value::Array(Array::strings(["", "a", "\u{2581}"])));
    assert_eq!(get("floats"), Value::Array(Array::floats(&[0.5, -1.5])));
    assert!(matches!(get("nested"), Value::Array(a) if a.len() == 2));
    let config = model.config();
    assert_eq!((config.dim, config.n_layers, config.n_heads, config.kv_heads(), config.hidden_dim()), (32, 3, 4, 2, 32));
    assert_eq!((config.max_seq_len, config.norm_eps, config.rope_theta), (96, 1e-5, 10_000.0));
    assert_eq!(config.rope_scaling, RopeScaling::None);
    assert_tensors(&model, &expected["spm"]);

    let checkpoint = Checkpoint::open(&path).unwrap();
    assert_eq!((checkpoint.format(), checkpoint.bos_eos()), (Format::Gguf, (Some(1), &[2][..])));
    assert_eq!(read_config(&path).unwrap(), *config);
    let tokenizer = Tokenizer::open(checkpoint.tokenizer_path().unwrap()).unwrap();
    assert_eq!((tokenizer.prefix(), tokenizer.bos_id(), tokenizer.eos_id()), (&[1][..], Some(1), Some(2)));
    assert_eq!(tokenizer.decode(&tokenizer.encode("llama, the \u{e9}\n").unwrap()).unwrap(), "llama, the \u{e9}\n");
    #[cfg(feature = "chat")]
    {
        use recua::tokenizer::{ChatTemplate, Message};
        let template = ChatTemplate::of(&tokenizer).unwrap();
        let message = Message { role: "user".into(), content: "llama".into() };
        assert_eq!(template.render(&[message], true).unwrap(), "<s>[user] llama");
    }

    // The bytes are those of the mapped file, which lives as long as they do.
    let share = || model.share("layers.1.attention.wq.weight").unwrap();
    let ((shape, of, a), (.., b)) = (share(), share());
    assert_eq!((shape, of, a.as_ptr()), (vec![32, 32], Dtype::F16, b.as_ptr()));
    let read = model.read("layers.1.attention.wq.weight").unwrap().bytes.into_owned();
    drop(model);
    assert_eq!(a, read);
}

fn assert_tensors(model: &GgufModel, expected: &serde_json::Value) {
    let mut seen = 0;
    for info in model.list() {
        let name = gguf::gguf_name(&info.name).unwrap();
        let Some(want) = expected.get(&name) else {
            assert_eq!(name, "output.weight");
            continue;
        };
        assert_eq!(json!([info.dtype.name(), info.shape]), json!([want[0], want[1]]), "{name}");
        let sum: f64 = model.read_f32(&info.name).unwrap().1.into_iter().map(f64::from).sum();
        assert!((sum - want[2].as_f64().unwrap()).abs() < 1e-6 * info.shape.iter().product::<usize>() as f64, "{name}: {sum}");
        seen += 1;
    }
    assert_eq!(seen, expected.as_object().unwrap().len());
}

#[test]
fn gguf_parts_are_one_model() {
    let expected: serde_json::Value = serde_json::from_slice(&fs::read(golden("gguf/expected.json")).unwrap()).unwrap();
    let names = ["bpe-00001-of-00002.gguf", "bpe-00002-of-00002.gguf"];
    for name in names {
        let path = golden("gguf").join(name);
        let model = GgufModel::open(&path).unwrap();
        assert_tensors(&model, &expected["bpe"]);
        assert_eq!(model.path(), golden("gguf").join(names[0]));
        let llama3 =
            RopeScaling::Llama3 { factor: 32.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_seq_len: 8192 };
        assert_eq!(model.config().rope_scaling, llama3);
        // Tied.
        assert_eq!(model.share("output.weight").unwrap().2.as_ptr(), model.share("tok_embeddings.weight").unwrap().2.as_ptr());

        let tokenizer = Tokenizer::open(&path).unwrap();
        let [bos, eos, eot] = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"].map(|t| tokenizer.id_of(t).unwrap());
        assert_eq!(tokenizer.prefix(), [bos]);
        assert_eq!(Checkpoint::open(&path).unwrap().bos_eos(), (Some(bos), &[eos, eot][..]));
        assert_eq!(tokenizer.encode_with_special("<|eot_id|>").unwrap(), [eot]);
        for text in texts() {
            assert_eq!(tokenizer.decode(&tokenizer.encode(&text).unwrap()).unwrap(), text);
        }
    }
    let dir = tempfile::tempdir().unwrap();
    fs::copy(golden("gguf").join(names[1]), dir.path().join(names[1])).unwrap();
    assert_error(GgufModel::open(dir.path().join(names[1])), &["bpe-00001-of-00002.gguf", "missing"]);
    assert_error(Tokenizer::open(dir.path().join(names[1])), &["bpe-00001-of-00002.gguf", "missing"]);
    fs::copy(golden("gguf").join(names[0]), dir.path().join("renamed.gguf")).unwrap();
    assert_error(GgufModel::open(dir.path().join("renamed.gguf")), &["part 1 of 2", "-00001-of-00002.gguf"]);
    // Two times the same part.
    fs::copy(golden("gguf").join(names[0]), dir.path().join(names[1])).unwrap();
    fs::copy(golden("gguf").join(names[0]), dir.path().join(names[0])).unwrap();
    assert_error(GgufModel::open(dir.path().join(names[0])), &["bpe-00002-of-00002.gguf", "part 1 of 2"]);
}

// Our own files

#[test]
fn gguf_round_trip_in_every_type() {
    let dir = tempfile::tempdir().unwrap();
    let config = config();
    let source = Memory::random(&config, Dtype::F32, 3);
    for (i, asked) in [None, Some(Dtype::F32), Some(Dtype::F16), Some(Dtype::BF16), Some(Dtype::Q8_0), Some(Dtype::Q4_0)]
        .into_iter()
        .enumerate()
    {
        let options = SaveOptions { dtype: asked, bos_id: Some(5), eos_ids: vec![7, 8, 9], ..SaveOptions::default() };
        let path = save_gguf(&dir, &format!("{i}.gguf"), &config, &source, &options);
        let checkpoint = Checkpoint::open(&path).unwrap();
        assert_eq!(*checkpoint.config(), config);
        assert_eq!(checkpoint.bos_eos(), (Some(5), &[7, 8, 9][..]));
        assert_eq!(checkpoint.tokenizer_path(), None);
        for info in checkpoint.source().list() {
            let width = *info.shape.last().unwrap();
            let of = match asked {
                _ if info.shape.len() == 1 => Dtype::F32,
                None => Dtype::F32,
                Some(of) => narrow_dtype(&info.name, width, of),
            };
            let want = source.read(&info.name).unwrap().cast(of).unwrap();
            let got = checkpoint.source().read(&info.name).unwrap();
            assert_eq!((got.shape, got.dtype), (want.shape, of), "{}", info.name);
            assert!(got.bytes == want.bytes, "{} in {of} differs", info.name);
        }
        // Rows of 80 are no whole blocks.
        if asked == Some(Dtype::Q4_0) {
            let of = |name: &str| checkpoint.source().list().iter().find(|i| i.name == name).unwrap().dtype;
            assert_eq!(of("layers.0.feed_forward.w2.weight"), Dtype::F16);
            assert_eq!((of("output.weight"), of("layers.0.attention.wq.weight")), (Dtype::Q8_0, Dtype::Q4_0));
        }
        // To other formats, and back as it was.
        let kept = SaveOptions::default();
        for format in [Format::Hf, Format::Meta, Format::Native] {
            let to = dir.path().join(format!("{i}-{format}"));
            let saved = convert(&path, &to, format, &kept).unwrap();
            let blocks = checkpoint.source().list().iter().filter(|i| i.dtype.float().is_none());
            let blocks: u64 = blocks.map(|i| i.shape.iter().product::<usize>() as u64).sum();
            assert_eq!(saved, Saved { overflowed: 0, widened: blocks });
            let made = Checkpoint::open(&to).unwrap();
            for info in made.source().list() {
                let values = |c: &Checkpoint| c.source().read_f32(&info.name).unwrap().1;
                assert!(values(&made) == values(&checkpoint), "{} differs", info.name);
            }
        }
        let again = dir.path().join(format!("{i}-again.gguf"));
        convert(&path, &again, Format::Gguf, &kept).unwrap();
        let again = GgufModel::open(again).unwrap();
        let same = |a: &Metadata, b: &Metadata| {
            a.iter().filter(|(k, _)| *k != "general.name").eq(b.iter().filter(|(k, _)| *k != "general.name"))
        };
        assert!(same(again.metadata(), GgufModel::open(&path).unwrap().metadata()));
        for info in again.list() {
            let (a, b) = (again.read(&info.name).unwrap(), checkpoint.source().read(&info.name).unwrap());
            assert!((a.dtype, &a.bytes) == (b.dtype, &b.bytes), "{}", info.name);
        }
    }
}

#[test]
fn gguf_rotary_scalings() {
    let dir = tempfile::tempdir().unwrap();
    let llama3 = |factor, original_max_seq_len| RopeScaling::Llama3 {
        factor,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_seq_len,
    };
    let odd = RopeScaling::Llama3 { factor: 4.0, low_freq_factor: 1.0, high_freq_factor: 3.0, original_max_seq_len: 64 };
    let cases = [
        RopeScaling::Linear { factor: 2.5 },
        llama3(8.0, 8192),
        llama3(32.0, 8192),
        llama3(4.0, 64),
        RopeScaling::Ntk { factor: 4.0 },
        odd.clone(),
    ];
    for (i, rope_scaling) in cases.into_iter().enumerate() {
        let config = ModelConfig { rope_scaling: rope_scaling.clone(), ..config() };
        let source = Memory::random(&config, Dtype::F16, 3);
        let path = save_gguf(&dir, &format!("{i}.gguf"), &config, &source, &SaveOptions::default());
        let read = Checkpoint::open(&path).unwrap().config().clone();
        match &rope_scaling {
            RopeScaling::Ntk { .. } => assert_eq!(read.rope_scaling, RopeScaling::None),
            _ if rope_scaling == odd => assert!(matches!(read.rope_scaling, RopeScaling::Factors { .. })),
            same => assert_eq!(read.rope_scaling, *same),
        }
        for (a, b) in inverse_frequencies(&read).into_iter().zip(inverse_frequencies(&config)) {
            assert!((a - b).abs() <= 1e-6 * b, "{rope_scaling:?}: {a}, expected {b}");
        }
        if rope_scaling == odd {
            let hf = dir.path().join("hf");
            assert_error(convert(&path, &hf, Format::Hf, &SaveOptions::default()), &["rope_scaling", "factors"]);
            assert!(!hf.exists());
            let native = dir.path().join("native");
            convert(&path, &native, Format::Native, &SaveOptions::default()).unwrap();
            assert_eq!(*Checkpoint::open(&native).unwrap().config(), read);
            convert(&native, dir.path().join("back.gguf"), Format::Gguf, &SaveOptions::default()).unwrap();
            assert_eq!(read_config(dir.path().join("back.gguf")).unwrap(), read);
        }
    }
}

/// A model that a tokenizer fits, as a GGUF file.
fn with_tokenizer(dir: &TempDir, tokenizer: &Path, more: usize) -> PathBuf {
    let size = Tokenizer::open(tokenizer).unwrap().vocab_size() + more;
    let config = ModelConfig { vocab_size: size, ..ModelConfig::default() };
    let source = Memory::random(&config, Dtype::F16, 4);
    let options = SaveOptions { tokenizer: Some(tokenizer.into()), ..SaveOptions::default() };
    save_gguf(dir, &format!("{}.gguf", fs::read_dir(dir.path()).unwrap().count()), &config, &source, &options)
}

#[test]
fn gguf_keeps_sentencepiece_tokenizers() {
    let mut models: Vec<PathBuf> = fs::read_dir(golden("sp")).unwrap().map(|e| e.unwrap().path()).collect();
    models.retain(|path| path.extension().is_some_and(|e| e == "model"));
    models.extend(outside("RECUA_DATA", "models/tokenizer.model"));
    assert!(models.len() >= 7);
    for model in models {
        let dir = tempfile::tempdir().unwrap();
        let what = model.file_name().unwrap().to_string_lossy().into_owned();
        let before = Tokenizer::open(&model).unwrap();
        for more in [0, 5] {
            let path = with_tokenizer(&dir, &model, more);
            let after = Tokenizer::open(&path).unwrap();
            assert_eq!(after.file_name(), "tokenizer.model");
            assert_same_tokenizer(&before, &after, &what);
            // To a folder of Hugging Face's, and back.
            let hf = dir.path().join(format!("hf{more}"));
            convert(&path, &hf, Format::Hf, &SaveOptions::default()).unwrap();
            assert_same_tokenizer(&before, &Tokenizer::open(&hf).unwrap(), &what);
            let back = dir.path().join(format!("back{more}.gguf"));
            convert(&hf, &back, Format::Gguf, &SaveOptions::default()).unwrap();
            assert_same_tokenizer(&before, &Tokenizer::open(&back).unwrap(), &what);
        }
    }
}

/// Text to learn tokens from.
fn corpus() -> Vec<String> {
    (0..200)
        .map(|i| {
            format!("the llama {i} isn't over the caf\u{e9};\n\n    if (x == {}) {{ return; }}  ALL \u{4f60}\u{597d} <s>", i * 31)
        })
        .collect()
}

#[test]
fn gguf_keeps_our_tokenizers_and_says_what_others_will_not() {
    let dir = tempfile::tempdir().unwrap();
    let before = Tokenizer::train(corpus().into_iter(), &TrainConfig { vocab_size: 400, ..Default::default() }).unwrap();
    let json = dir.path().join("tokenizer.json");
    before.save(&json).unwrap();
    let path = with_tokenizer(&dir, &json, 3);
    let model = GgufModel::open(&path).unwrap();
    // The whole file is there for us, and the closest kind for others.
    assert_eq!(model.metadata().text("tokenizer.ggml.model").unwrap(), Some("llama"));
    assert!(model.metadata().get("tokenizer.huggingface.json").is_some());
    let tokens = model.metadata().array("tokenizer.ggml.tokens").unwrap().unwrap().as_strings().unwrap().unwrap();
    assert_eq!(tokens.len(), model.config().vocab_size);
    let after = Tokenizer::open(&path).unwrap();
    assert_same_tokenizer(&before, &after, "ours");
    assert_eq!(before.hash(), after.hash());
}

/// A byte-level BPE of the crate `tokenizers`, with a way to cut.
fn byte_level(dir: &Path, pre_tokenizer: serde_json::Value, ignore_merges: bool) -> PathBuf {
    use tokenizers::models::bpe::{BPE, BpeTrainer};
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;
    use tokenizers::{AddedToken, TokenizerBuilder};
    let mut trained = TokenizerBuilder::<BPE, tokenizers::NormalizerWrapper, ByteLevel, ByteLevel, ByteLevel>::new()
        .with_model(BPE::default())
        .with_normalizer(None)
        .with_pre_tokenizer(Some(ByteLevel::default().add_prefix_space(false)))
        .with_post_processor(None)
        .with_decoder(Some(ByteLevel::default()))
        .build()
        .unwrap();
    let mut trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(400)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    trained.train(&mut trainer, corpus().into_iter()).unwrap();
    trained.add_special_tokens([AddedToken::from("<|begin_of_text|>", true), AddedToken::from("<|eot_id|>", true)]).unwrap();
    trained.add_tokens([AddedToken::from("<ud>", false).normalized(false)]).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&trained.to_string(false).unwrap()).unwrap();
    json["pre_tokenizer"] = pre_tokenizer;
    json["model"]["ignore_merges"] = ignore_merges.into();
    let path = dir.join("tokenizer.json");
    fs::write(&path, json.to_string()).unwrap();
    let config =
        json!({"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "chat_template": "{{ messages[0].content }}"});
    fs::write(dir.join("tokenizer_config.json"), config.to_string()).unwrap();
    path
}

#[test]
fn gguf_keeps_byte_level_tokenizers() {
    let bytes =
        |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    let split = |regex: &str| {
        let split = json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
        json!({"type": "Sequence", "pretokenizers": [split, bytes(false)]})
    };
    let digits = json!({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": true}, bytes(true)]});
    let llama3 =
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let cases = [
        (bytes(true), false, "gpt-2", true),
        (split(llama3), true, "llama-bpe", true),
        (split(llama3), false, "smaug-bpe", true),
        (digits, false, "smollm", true),
        (split(r"\w+|\W+"), false, "default", false),
    ];
    for (pre, ignore_merges, name, exact) in cases {
        let dir = tempfile::tempdir().unwrap();
        let json = byte_level(dir.path(), pre, ignore_merges);
        let before = Tokenizer::open(&json).unwrap();
        for more in [0, 2] {
            let path = with_tokenizer(&dir, &json, more);
            let model = GgufModel::open(&path).unwrap();
            let text = |key: &str| model.metadata().text(key).unwrap().map(String::from);
            assert_eq!(text("tokenizer.ggml.model").as_deref(), Some("gpt2"));
            assert_eq!(text("tokenizer.ggml.pre").as_deref(), Some(name));
            assert_eq!(text("tokenizer.chat_template").as_deref(), Some("{{ messages[0].content }}"));
            // What has no name is there as a whole.
            assert_eq!(model.metadata().get("tokenizer.huggingface.json").is_none(), exact, "{name}");
            assert_same_tokenizer(&before, &Tokenizer::open(&path).unwrap(), name);
            let hf = dir.path().join(format!("hf{more}"));
            convert(&path, &hf, Format::Hf, &SaveOptions::default()).unwrap();
            assert_same_tokenizer(&before, &Tokenizer::open(&hf).unwrap(), name);
            assert!(TokenizerFiles::read(&hf).unwrap().contains("tokenizer_config.json"));
        }
    }
}

#[test]
fn gguf_add_bos_and_unknown_names() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = fs::read(golden("gguf/spm.gguf")).unwrap();
    let key = b"tokenizer.ggml.add_bos_token\x07\0\0\0\x01";
    let at = bytes.windows(key.len()).position(|w| w == key).unwrap() + key.len() - 1;
    let mut changed = bytes.clone();
    changed[at] = 0;
    let path = dir.path().join("a.gguf");
    fs::write(&path, &changed).unwrap();
    let tokenizer = Tokenizer::open(&path).unwrap();
    assert_eq!((tokenizer.prefix(), tokenizer.bos_id()), (&[][..], Some(1)));

    let replaced = |file: &str, from: &[u8], to: &[u8]| {
        assert_eq!(from.len(), to.len());
        let mut bytes = fs::read(golden("gguf").join(file)).unwrap();
        let at = bytes.windows(from.len()).position(|w| w == from).unwrap();
        bytes[at..at + to.len()].copy_from_slice(to);
        let path = dir.path().join("b.gguf");
        fs::write(&path, bytes).unwrap();
        path
    };
    // "llama" is both the architecture and the kind of tokenizer: the first comes first in the file.
    assert_error(GgufModel::open(replaced("spm.gguf", b"llama", b"gemma")), &["general.architecture", "gemma", "llama"]);
    assert_error(GgufModel::open(replaced("spm.gguf", b"GGUF\x03\0\0\0", b"GGUF\x01\0\0\0")), &["version 1", "2 or 3"]);
    assert_error(GgufModel::open(replaced("spm.gguf", b"GGUF\x03\0\0\0", b"GGUF\0\0\0\x03")), &["big-endian"]);
    assert_error(GgufModel::open(replaced("spm.gguf", b"GGUF\x03", b"GGML\x03")), &["does not begin with `GGUF`"]);
    assert_error(
        GgufModel::open(replaced("spm.gguf", b"llama.block_count", b"llama.blocks_read")),
        &["llama.block_count", "missing"],
    );
    assert_error(
        GgufModel::open(replaced("spm.gguf", b"blk.1.attn_q.weight", b"blk.1.attn_q.w_ight")),
        &["blk.1.attn_q.weight", "nothing"],
    );
    assert_error(GgufModel::open(replaced("spm.gguf", b"test.u32", b"test.u16")), &["test.u16", "twice"]);
    let file = |name: &str| golden("gguf").join(name);
    fs::copy(file("bpe-00002-of-00002.gguf"), dir.path().join("bpe-00002-of-00002.gguf")).unwrap();
    fs::rename(replaced("bpe-00001-of-00002.gguf", b"llama-bpe", b"other-bpe"), dir.path().join("bpe-00001-of-00002.gguf"))
        .unwrap();
    let path = dir.path().join("bpe-00002-of-00002.gguf");
    assert_error(Tokenizer::open(&path), &["tokenizer.ggml.pre", "other-bpe", "llama-bpe", "--tokenizer"]);
    assert!(GgufModel::open(&path).is_ok());
}

// Files by hand

/// A file's bytes: keys with encoded values, tensors with their dimensions as in the file, type and offset.
fn raw(keys: &[(&str, u32, Vec<u8>)], tensors: &[(&str, &[u64], u32, u64)], data: usize) -> Vec<u8> {
    let mut out = b"GGUF\x03\0\0\0".to_vec();
    let text = |out: &mut Vec<u8>, text: &str| {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
    };
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((keys.len() as u64).to_le_bytes());
    for (key, kind, value) in keys {
        text(&mut out, key);
        out.extend(kind.to_le_bytes());
        out.extend(value);
    }
    for (name, dims, kind, offset) in tensors {
        text(&mut out, name);
        out.extend((dims.len() as u32).to_le_bytes());
        out.extend(dims.iter().flat_map(|d| d.to_le_bytes()));
        out.extend(kind.to_le_bytes());
        out.extend(offset.to_le_bytes());
    }
    out.resize(out.len().next_multiple_of(32) + data, 0);
    out
}

fn u32s(v: u32) -> Vec<u8> {
    v.to_le_bytes().to_vec()
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

/// The keys of a small model.
fn keys() -> Vec<(&'static str, u32, Vec<u8>)> {
    vec![
        ("general.architecture", 8, string("llama")),
        ("llama.block_count", 4, u32s(1)),
        ("llama.context_length", 4, u32s(8)),
        ("llama.embedding_length", 4, u32s(32)),
        ("llama.feed_forward_length", 4, u32s(32)),
        ("llama.attention.head_count", 4, u32s(2)),
        ("llama.attention.layer_norm_rms_epsilon", 6, 1e-5f32.to_le_bytes().to_vec()),
    ]
}

#[test]
fn gguf_refuses_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.gguf");
    let open = |bytes: Vec<u8>| {
        fs::write(&path, bytes).unwrap();
        GgufModel::open(&path)
    };
    let with = |key: &'static str, kind: u32, value: Vec<u8>| {
        let mut keys = keys();
        keys.retain(|(k, ..)| *k != key);
        keys.push((key, kind, value));
        keys
    };
    let embedding: (&str, &[u64], u32, u64) = ("token_embd.weight", &[32, 4], 0, 0);
    let settings: [(&'static str, u32, Vec<u8>, &[&str]); 11] = [
        ("llama.expert_count", 4, u32s(8), &["expert_count", "8 experts"]),
        ("llama.attention.key_length", 4, u32s(8), &["key_length", "16", "8"]),
        ("llama.rope.dimension_count", 4, u32s(8), &["rope.dimension_count", "16"]),
        ("llama.rope.scaling.type", 8, string("yarn"), &["rope.scaling.type", "yarn", "linear"]),
        ("llama.attention.head_count", 4, u32s(3), &["n_heads"]),
        ("llama.attention.head_count", 4, u32s(0), &["n_heads"]),
        ("llama.block_count", 4, u32s(1 << 29), &["n_layers", "1 tensors"]),
        ("llama.block_count", 8, string("many"), &["llama.block_count", "whole number"]),
        (
            "llama.feed_forward_length",
            9,
            [u32s(4), 2u64.to_le_bytes().to_vec(), u32s(3), u32s(4)].concat(),
            &["feed_forward_length", "layer"],
        ),
        ("llama.attention.layer_norm_rms_epsilon", 6, f32::NAN.to_le_bytes().to_vec(), &["norm_eps", "NaN"]),
        ("general.alignment", 4, u32s(24), &["general.alignment", "24", "power of two"]),
    ];
    for (key, kind, value, words) in settings {
        assert_error(open(raw(&with(key, kind, value), &[embedding], 512)), words);
    }
    /// Name, shape, type and offset of tensors, and what is said of them.
    type Refused<'a> = (&'a [(&'a str, &'a [u64], u32, u64)], &'a [&'a str]);
    let tensors: [Refused<'_>; 9] = [
        (&[("x", &[256], 23, 0)], &["`x`", "IQ4_XS", "Q4_K"]),
        (&[("x", &[256], 77, 0)], &["`x`", "77 (unknown)"]),
        (&[("x", &[32, 4], 0, 16)], &["`x`", "16", "alignment 32"]),
        (&[("x", &[32, 4], 0, 32)], &["`x`", "512 bytes", "ends at"]),
        (&[("x", &[32, 4], 0, 0), ("y", &[32], 0, 352)], &["`x`", "`y`", "over each other"]),
        (&[("x", &[32], 0, 0), ("x", &[32], 0, 128)], &["`x`", "twice"]),
        (&[("x", &[1 << 33, 1 << 33], 0, 0)], &["`x`", "larger than memory"]),
        (&[("x", &[33, 1], 8, 0)], &["`x`", "rows of 33", "Q8_0"]),
        (&[("x", &[0, 1], 0, 0)], &["`x`", "dimension of 0"]),
    ];
    for (tensors, words) in tensors {
        assert_error(open(raw(&keys(), tensors, 512)), words);
    }
    assert_error(open(raw(&keys(), &[embedding], 512)), &["attn_norm.weight", "missing"]);
    assert_error(open(raw(&[("a", 13, vec![0])], &[], 0)), &["type 13"]);
    assert_error(open(raw(&[("a", 7, vec![2])], &[], 0)), &["a:", "0 or 1"]);
    assert_error(open(Vec::new()), &["expected 4 bytes"]);
    // Extra tensors by name.
    let whole = |more: &[(&'static str, &'static [u64], u32, u64)]| {
        let names =
            ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_down", "ffn_up"].map(|n| format!("blk.0.{n}.weight"));
        let mut list: Vec<(&str, &[u64], u32, u64)> = vec![embedding];
        let mut at = 512;
        for name in &names {
            list.push((name, &[32, 32], 0, at));
            at += 4096;
        }
        for name in ["blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight"] {
            list.push((name, &[32], 0, at));
            at += 128;
        }
        list.extend(more.iter().map(|(name, dims, kind, offset)| (*name, *dims, *kind, at + offset)));
        raw(&keys(), &list, at as usize + 4096)
    };
    let model = open(whole(&[])).unwrap();
    assert!(!model.has_tokenizer());
    assert_eq!(model.config().vocab_size, 4);
    assert_error(open(whole(&[("blk.0.attn_q.bias", &[32], 0, 0)])), &["blk.0.attn_q.bias", "no biases"]);
    assert_error(
        open(whole(&[("blk.0.ffn_gate_exps.weight", &[32], 0, 0)])),
        &["blk.0.ffn_gate_exps.weight", "nothing of this name"],
    );
    assert_error(open(whole(&[("rope_freqs.weight", &[4], 0, 0)])), &["rope_freqs.weight", "4 factors", "8"]);
    assert_error(open(whole(&[("rope_freqs.weight", &[8], 0, 0)])), &["rope", "positive"]);
    // A tokenizer is asked for where there is none.
    open(whole(&[])).unwrap();
    assert_error(Tokenizer::open(&path), &["tokenizer", "--tokenizer"]);
}

#[test]
fn gguf_damaged_files_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.gguf");
    // What is made of a file's bytes, whatever they are: an error, or a model.
    let all = |bytes: &[u8]| -> Result<()> {
        fs::write(&path, bytes).unwrap();
        let tokenizer = Tokenizer::open(&path).map(|t| t.encode("the llama \u{e9}").map(|ids| t.decode(&ids)));
        let model = Checkpoint::open(&path)?;
        for info in model.source().list() {
            model.source().read(&info.name)?;
        }
        tokenizer.map(|_| ())
    };
    let whole = fs::read(golden("gguf/spm.gguf")).unwrap();
    all(&whole).unwrap();
    let header = Header::parse(&whole.clone().into(), &path).unwrap();
    let start = header.tensors.iter().map(|t| t.start).min().unwrap();
    let end = header.tensors.iter().map(|t| t.end).max().unwrap();
    let mut rng = Rng(7);
    let mut cuts: Vec<usize> = (0..64).chain([start, end - 1]).collect();
    cuts.extend((0..150).map(|_| rng.below(start)));
    cuts.extend((0..50).map(|_| start + rng.below(end - start)));
    for cut in cuts {
        assert!(all(&whole[..cut]).is_err(), "cut at {cut}");
    }
    // Bytes of the header, some of them as large numbers.
    let mut refused = 0;
    for _ in 0..2500 {
        let mut bytes = whole.clone();
        for _ in 0..1 + rng.below(3) {
            let at = rng.below(start);
            bytes[at] = match rng.below(4) {
                0 => 0xff,
                1 => bytes[at] ^ 1 << rng.below(8),
                2 => 0,
                _ => rng.next() as u8,
            };
        }
        refused += u32::from(all(&bytes).is_err());
    }
    assert!(refused > 300, "{refused}");
    // Every count and length is put to the test: eight bytes that may be one.
    for at in (8..start - 8).step_by(if cfg!(debug_assertions) { 97 } else { 13 }) {
        for huge in [u64::MAX, 1 << 62, 1 << 40, 1 << 31, 0xffff] {
            let mut bytes = whole.clone();
            bytes[at..at + 8].copy_from_slice(&huge.to_le_bytes());
            let _ = Header::parse(&bytes.into(), &path);
        }
    }
}

#[test]
fn gguf_conversion_is_checked_first() {
    let dir = tempfile::tempdir().unwrap();
    let config = config();
    let source = Memory::random(&config, Dtype::F32, 3);
    let path = save_gguf(&dir, "a.gguf", &config, &source, &SaveOptions::default());
    let options = |dtype| SaveOptions { dtype: Some(dtype), ..SaveOptions::default() };
    let to = |name: &str| dir.path().join(name);
    assert_error(convert(&path, &path, Format::Gguf, &SaveOptions::default()), &["output file", "exists"]);
    assert_error(convert(&path, to("hf"), Format::Hf, &options(Dtype::Q8_0)), &["Q8_0", "gguf"]);
    assert_error(convert(&path, to("b.gguf"), Format::Gguf, &options(Dtype::Q4_K)), &["Q4_K", "read only"]);
    check_convert(&path, to("b.gguf"), Format::Gguf, &options(Dtype::Q4_0)).unwrap();
    static STOP: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(true);
    let stopped = SaveOptions { stop: Some(&STOP), ..SaveOptions::default() };
    assert!(matches!(convert(&path, to("c.gguf"), Format::Gguf, &stopped), Err(Error::Io { .. })));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left");
    // A tokenizer that is larger than the model.
    let large = SaveOptions { tokenizer: Some(golden("sp/bpe_llama.model")), ..SaveOptions::default() };
    assert!(matches!(convert(&path, to("d.gguf"), Format::Gguf, &large), Err(Error::Vocabulary { .. })));
    assert!(matches!(check_convert(&path, to("d.gguf"), Format::Gguf, &large), Err(Error::Vocabulary { .. })));
}

#[cfg(feature = "cli")]
#[test]
fn gguf_by_command_line() {
    let dir = tempfile::tempdir().unwrap();
    let run = |args: &[&str], input: &str| {
        use std::io::Write;
        use std::process::{Command, Stdio};
        let mut child = Command::new(env!("CARGO_BIN_EXE_recua"))
            .args(args)
            .current_dir(dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let [out, err] = [output.stdout, output.stderr].map(|b| String::from_utf8_lossy(&b).into_owned());
        (output.status.success(), out, err)
    };
    let spm = golden("gguf/spm.gguf");
    let spm = spm.to_str().unwrap();
    let (ok, out, err) = run(&["info", spm], "");
    assert!(ok && out.contains("(gguf)") && out.contains("Q4_0") && out.contains("SentencePiece, BPE"), "{out}{err}");
    let (ok, out, err) = run(&["convert", spm, "a.gguf", "--quantize", "q8_0"], "");
    assert!(ok && out.contains("gguf"), "{out}{err}");
    let (ok, out, err) = run(&["convert", "a.gguf", "hf", "--to", "hf"], "");
    assert!(ok && out.contains("hf") && err.contains("float32"), "{out}{err}");
    assert!(dir.path().join("hf/tokenizer.model").is_file());
    let (ok, _, err) = run(&["convert", "a.gguf", "b"], "");
    assert!(!ok && err.contains("--to"), "{err}");
    let (ok, _, err) = run(&["convert", "a.gguf", "a.gguf"], "");
    assert!(!ok && err.contains("exists"), "{err}");
    #[cfg(feature = "flex")]
    {
        let score = |model: &str, more: &[&str]| -> f64 {
            let args: Vec<&str> = ["eval", "score", "--model", model].into_iter().chain(more.iter().copied()).collect();
            let (ok, out, err) = run(&args, "[1, 260, 261, 262]\n");
            assert!(ok, "{out}{err}");
            out.trim().parse().unwrap()
        };
        let (file, folder) = (score("a.gguf", &["--dtype", "f32"]), score("hf", &[]));
        assert!((file - folder).abs() < 1e-4, "{file} {folder}");
        let (ok, out, err) = run(&["generate", "--model", "a.gguf", "--dtype", "f32", "--tokens", "4", "the llama"], "");
        assert!(ok && !out.is_empty(), "{out}{err}");
    }
}
