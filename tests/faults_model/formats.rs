//! Files of checkpoints, read and converted.

use std::fs;
use std::io::{Cursor, Write};
use std::path::Path;

use recua::backend::Flex;
use recua::checkpoint::{Checkpoint, Dtype, Format, HfFolder, MetaFolder, SaveOptions, TensorSource, convert, save};
use recua::model::block::{Rope, inverse_frequencies};
use recua::model::{ModelConfig, RopeScaling};
use serde_json::{Value, json};
use tempfile::TempDir;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::{Memory, assert_same, case, edit_json, json_of, run, small, text};

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
        let got = MetaFolder::open(dir.path()).unwrap().config().rope_scaling.clone();
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
        ("model.embed_tokens.weight", shard.clone(), false),
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
