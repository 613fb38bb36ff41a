//! The checkpoints of a run: crashes, corruption, retention; and every reader on corrupted bytes.

use std::borrow::Cow;
use std::fs;
use std::io::{Cursor, Read as _, Write as _};
use std::path::{Path, PathBuf};

use recua::checkpoint::native::{self, CheckpointWriter, MODEL, NativeCheckpoint, Need, OPTIM};
use recua::checkpoint::{
    Checkpoint, Dtype, Format, HfFolder, MetaFolder, SafetensorsFile, SaveOptions, Tensor, TensorInfo, TensorSource, save,
    write_safetensors,
};
use recua::error::{Error, Result};
use recua::model::ModelConfig;
use serde_json::{Value, json};
use tempfile::TempDir;
use xxhash_rust::xxh3::xxh3_64;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// Parameters whose elements all are `value`.
struct Flat(Vec<TensorInfo>, f32);

impl Flat {
    fn new(value: f32) -> Self {
        let info = |(name, shape)| TensorInfo { name, shape, dtype: Dtype::F32 };
        Self(config().parameters().into_iter().map(info).collect(), value)
    }
}

impl TensorSource for Flat {
    fn list(&self) -> &[TensorInfo] {
        &self.0
    }

    fn read(&self, name: &str) -> Result<Tensor<'_>> {
        let info = self.0.iter().find(|i| i.name == name).unwrap();
        let bytes = self.1.to_le_bytes().repeat(info.byte_len().unwrap() / 4);
        Ok(Tensor { shape: info.shape.clone(), dtype: Dtype::F32, bytes: bytes.into() })
    }
}

fn config() -> ModelConfig {
    ModelConfig { dim: 8, n_layers: 1, n_heads: 2, vocab_size: 12, multiple_of: 4, ..ModelConfig::default() }
}

fn fill(writer: &mut CheckpointWriter, value: f32, state: Value) -> Result<()> {
    let source = Flat::new(value);
    writer.model(&config());
    writer.state(state);
    for file in [MODEL, OPTIM] {
        writer.tensors(file, source.list(), &mut |i| Ok(source.read(&source.list()[i].name)?.bytes))?;
    }
    Ok(())
}

fn save_step(root: &Path, step: u64) -> PathBuf {
    native::save(root, step, &mut |w| fill(w, step as f32, json!({ "sample": step }))).unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A folder in memory where the system has such: file systems write a replaced file to disk at once, which takes long.
fn in_memory() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() }.unwrap()
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn what_was_saved_is_found_again() {
    let dir = TempDir::new().unwrap();
    let root = dir.path().join("checkpoints");
    assert!(native::latest_valid(&root, Need::All).unwrap().checkpoint.is_none(), "of a run that has not begun");
    for step in [9, 10, 1000] {
        save_step(&root, step);
    }
    // Numbers of every size come back to the bit.
    let floats: Vec<f64> = (1..2000u64).map(|i| f64::from_bits(i.wrapping_mul(0x1234_5678_9abc_def1) & !(1 << 62))).collect();
    let state = json!({ "seed": u64::MAX, "floats": floats, "nested": { "name": "\u{2581}" } });
    native::save(&root, 2000, &mut |w| {
        w.bytes("rng.bin", b"abc")?;
        fill(w, 0.5, state.clone())
    })
    .unwrap();
    let steps: Vec<u64> = native::list(&root).unwrap().into_iter().map(|(step, _)| step).collect();
    assert_eq!(steps, [9, 10, 1000, 2000]);
    let latest = native::latest_valid(&root, Need::All).unwrap();
    assert!(latest.skipped.is_empty());
    let checkpoint = latest.checkpoint.unwrap();
    assert_eq!((checkpoint.step(), checkpoint.model(), checkpoint.state()), (2000, &config(), &state));
    let listed: Vec<&str> = checkpoint.files().iter().map(|f| f.name.as_str()).collect();
    assert_eq!(listed, ["rng.bin", MODEL, OPTIM]);
    assert_eq!(names(checkpoint.dir()), [MODEL, OPTIM, "rng.bin", "state.json"]);
    let tensors = checkpoint.tensors(OPTIM).unwrap();
    assert_eq!(tensors.read_f32("norm.weight").unwrap(), (vec![8], vec![0.5; 8]));
    assert!(matches!(checkpoint.tensors("rng"), Err(Error::Nothing { .. })));
    // Sizes and checksums by other means.
    for file in checkpoint.files() {
        let bytes = fs::read(checkpoint.dir().join(&file.name)).unwrap();
        assert_eq!((file.bytes, file.xxh3.clone()), (bytes.len() as u64, format!("{:016x}", xxh3_64(&bytes))));
    }
    // `state.json` is plain JSON for everybody else.
    let json: Value = serde_json::from_slice(&fs::read(checkpoint.dir().join("state.json")).unwrap()).unwrap();
    assert_eq!((&json["step"], &json["model"]["dim"], &json["state"]["seed"]), (&json!(2000), &json!(8), &json!(u64::MAX)));
    // A run, its `checkpoints` and one checkpoint are all a model; the tokenizer is the run's.
    fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
    for path in [dir.path(), &root, &root.join("step-2000")] {
        let opened = Checkpoint::open(path).unwrap();
        assert_eq!((opened.format(), opened.path()), (Format::Native, root.join("step-2000").as_path()));
        assert_eq!(opened.tokenizer_path(), Some(dir.path().join("tokenizer.json").as_path()));
    }
}

#[test]
fn broken_checkpoints_are_skipped_by_name() {
    let dir = TempDir::new().unwrap();
    let root = dir.path();
    for step in 1..=8 {
        save_step(root, step);
    }
    let at = |step: u64, file: &str| root.join(format!("step-{step}")).join(file);
    let cut = |path: PathBuf, n: usize| fs::write(&path, &fs::read(&path).unwrap()[..n]).unwrap();
    flip(&at(3, OPTIM), 900);
    cut(at(4, MODEL), 700);
    fs::remove_file(at(5, OPTIM)).unwrap();
    cut(at(6, "state.json"), 300);
    let state = fs::read_to_string(at(7, "state.json")).unwrap();
    fs::write(at(7, "state.json"), state.replace("\"sample\": 7", "\"sample\": 8")).unwrap();
    fs::remove_file(at(8, "state.json")).unwrap();
    fs::create_dir(root.join("step-9.tmp-123")).unwrap();
    fs::write(root.join("step-9.tmp-123/model.safetensors"), "half").unwrap();
    fs::create_dir(root.join("step-007")).unwrap();
    fs::create_dir(root.join("notes")).unwrap();

    let latest = native::latest_valid(root, Need::All).unwrap();
    assert_eq!(latest.checkpoint.unwrap().step(), 2);
    let expected: [(&str, &[&str]); 7] = [
        ("step-9.tmp-123", &["half-written"]),
        ("step-8", &["state.json", "No such file"]),
        ("step-7", &["state.json", "checksum", "edited"]),
        ("step-6", &["state.json", "truncated"]),
        ("step-5", &["optim.safetensors", "missing"]),
        ("step-4", &["model.safetensors", "expected", "got 700"]),
        ("step-3", &["optim.safetensors", "checksum"]),
    ];
    assert_eq!(latest.skipped.len(), expected.len());
    for (skipped, (name, words)) in latest.skipped.iter().zip(expected) {
        assert_eq!(skipped.path, root.join(name));
        for word in words {
            assert!(skipped.reason.contains(word), "`{word}` is not in: {}", skipped.reason);
        }
    }
    // Weights need no moments.
    let weights = Checkpoint::open(root).unwrap();
    assert_eq!((weights.path(), weights.skipped().len()), (root.join("step-5").as_path(), 4));
    // Nothing was touched by looking; the next save clears the half-written one and nothing else.
    assert!(root.join("step-9.tmp-123").exists());
    save_step(root, 10);
    assert!(!root.join("step-9.tmp-123").exists() && root.join("step-3").exists() && root.join("step-007").exists());
    // Only broken ones: the error says what is wrong with each.
    for step in [1, 2, 3, 5, 10] {
        fs::remove_dir_all(root.join(format!("step-{step}"))).unwrap();
    }
    let error = Checkpoint::open(root).err().unwrap().to_string();
    assert!(error.contains("no whole checkpoint") && error.contains("checksum"), "{error}");
}

#[test]
fn every_byte_of_a_checkpoint_is_checked() {
    let dir = in_memory();
    let step = save_step(dir.path(), 1);
    for file in [MODEL, "state.json"] {
        let path = step.join(file);
        for at in (0..fs::metadata(&path).unwrap().len() as usize).step_by(7) {
            flip(&path, at);
            assert!(NativeCheckpoint::open(&step, Need::All).is_err(), "byte {at} of {file}");
            flip(&path, at);
        }
        NativeCheckpoint::open(&step, Need::All).unwrap();
    }
}

#[test]
fn a_failed_save_leaves_nothing_and_a_second_one_replaces() {
    let dir = TempDir::new().unwrap();
    let root = dir.path();
    let fail = |w: &mut CheckpointWriter| fill(w, 1.0, json!(1)).and_then(|()| Err(Error::bad_value("test", "disk full", "")));
    assert!(native::save(root, 5, &mut { fail }).unwrap_err().to_string().contains("disk full"));
    assert!(names(root).is_empty());
    // A bug of the caller is an error, too.
    let source = Flat::new(1.0);
    for (bug, words) in [
        (&(|w: &mut CheckpointWriter| w.bytes("a/b", b"")) as &dyn Fn(&mut CheckpointWriter) -> Result<()>, "a/b"),
        (&|w| w.bytes("state.json", b""), "state.json"),
        (&|w| w.bytes("x", b"").and_then(|()| w.bytes("x", b"")), "`x`"),
        (&|w| w.bytes("x", b""), "no model"),
        (&|w| w.tensors("t", source.list(), &mut |_| Ok(Cow::Borrowed(b"abc"))), "3 bytes"),
    ] {
        let error = native::save(root, 5, &mut |w| bug(w)).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
        assert!(names(root).is_empty());
    }
    for value in [1.0, 2.0] {
        native::save(root, 5, &mut |w| fill(w, value, json!(1))).unwrap();
        assert_eq!(names(root), ["step-5"]);
        let tensors = NativeCheckpoint::open(root.join("step-5"), Need::All).unwrap().tensors(MODEL).unwrap();
        assert_eq!(tensors.read_f32("norm.weight").unwrap().1[0], value);
    }
    // A crash between the two renames of a replacement: the old one is found, and put back by the next save.
    fs::rename(root.join("step-5"), root.join("step-5.old-77")).unwrap();
    assert_eq!(native::latest_valid(root, Need::All).unwrap().checkpoint.unwrap().step(), 5);
    assert_eq!(native::list(root).unwrap(), [(5, root.join("step-5.old-77"))]);
    save_step(root, 6);
    assert_eq!(names(root), ["step-5", "step-6"]);
    // A crash after them: the newer one is the one.
    fs::create_dir(root.join("step-6.old-77")).unwrap();
    assert_eq!(native::list(root).unwrap()[1].1, root.join("step-6"));
    save_step(root, 7);
    assert_eq!(names(root), ["step-5", "step-6", "step-7"]);
}

#[test]
fn retention_keeps_the_last_every_nth_and_the_newest_whole_one() {
    let dir = TempDir::new().unwrap();
    let root = dir.path();
    let steps = || native::list(root).unwrap().into_iter().map(|(step, _)| step).collect::<Vec<_>>();
    assert!(native::prune(&root.join("none"), 1, None).unwrap().is_empty());
    for step in [10, 20, 30, 40, 50, 100, 110, 120] {
        save_step(root, step);
    }
    let removed = native::prune(root, 2, Some(50)).unwrap();
    assert_eq!(removed, [10, 20, 30, 40].map(|s| root.join(format!("step-{s}"))));
    assert_eq!(steps(), [50, 100, 110, 120]);
    assert!(native::prune(root, 2, Some(50)).unwrap().is_empty());
    // 120 lost a bit and 110 a file: 100 is the newest whole one and stays, whatever the rule says.
    flip(&root.join("step-120").join(OPTIM), 1500);
    fs::remove_file(root.join("step-110").join(MODEL)).unwrap();
    native::prune(root, 1, None).unwrap();
    assert_eq!(steps(), [100, 120]);
    assert_eq!(native::latest_valid(root, Need::All).unwrap().checkpoint.unwrap().step(), 100);
    // To keep none is to keep one; steps in every Nth of 0 means no such rule.
    save_step(root, 130);
    native::prune(root, 0, Some(0)).unwrap();
    assert_eq!((steps(), names(root)), (vec![130], vec!["step-130".to_string()]));
}

#[test]
fn safetensors_of_the_writer_are_those_of_the_crate() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("x.safetensors");
    let info = |name: &str, shape: &[usize], dtype| TensorInfo { name: name.into(), shape: shape.to_vec(), dtype };
    let infos = [
        info("b", &[3], Dtype::BF16),
        info("a \"quoted\" \u{2581}", &[2, 2], Dtype::F32),
        info("none", &[0, 5], Dtype::F16),
        info("scalar", &[], Dtype::F16),
    ];
    let data = |i: usize| (0..infos[i].byte_len().unwrap()).map(|b| (i * 50 + b) as u8).collect::<Vec<u8>>();
    let summary = write_safetensors(&path, &infos, &[("format", "pt")], &mut |i| Ok(data(i).into())).unwrap();
    let bytes = fs::read(&path).unwrap();
    assert_eq!((summary.bytes, summary.xxh3), (bytes.len() as u64, xxh3_64(&bytes)));
    let theirs = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let ours = SafetensorsFile::open(&path).unwrap();
    assert_eq!((theirs.len(), ours.list().len(), ours.metadata()["format"].as_str()), (4, 4, "pt"));
    for (i, info) in infos.iter().enumerate() {
        let (view, tensor) = (theirs.tensor(&info.name).unwrap(), ours.read(&info.name).unwrap());
        assert_eq!((view.data(), view.shape()), (data(i).as_slice(), info.shape.as_slice()));
        assert_eq!((tensor.bytes.as_ref(), tensor.shape.as_slice(), tensor.dtype), (view.data(), view.shape(), info.dtype));
        // Aligned to its elements, as torch's zero-copy readers want.
        assert_eq!((view.data().as_ptr() as usize - bytes.as_ptr() as usize) % info.dtype.block().1, 0);
    }
    assert!(ours.read("c").unwrap_err().to_string().contains("`c`"));
    let twice = [infos[0].clone(), infos[0].clone()];
    assert!(write_safetensors(&path, &twice, &[], &mut |_| Ok(data(0).into())).unwrap_err().to_string().contains("two tensors"));
    let huge = [info("huge", &[usize::MAX, 8], Dtype::F32)];
    assert!(write_safetensors(&path, &huge, &[], &mut |_| Ok(data(0).into())).is_err());

    // Headers that lie about sizes, whose sums overflow among them.
    let header = |json: &str, data: &[u8]| [&(json.len() as u64).to_le_bytes(), json.as_bytes(), data].concat();
    let tensor = |dtype: &str, shape: &str, end: &str| {
        format!("{{\"t\":{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":[0,{end}]}}}}")
    };
    let max = usize::MAX.to_string();
    // Eight tensors of nearly 2^61 bytes: no one overflows, header and all together do.
    let (each, entry) = ((1usize << 61) - 1, |t: usize, n: usize| {
        format!("\"t{t}\":{{\"dtype\":\"U8\",\"shape\":[{n}],\"data_offsets\":[{},{}]}}", t * n, (t + 1) * n)
    });
    let wrap = format!("{{{}}}", (0..8).map(|t| entry(t, each)).collect::<Vec<_>>().join(","));
    for (file, word) in [
        (vec![1, 0, 0], "at least 8 bytes"),
        (u64::MAX.to_le_bytes().to_vec(), "header"),
        (header("{", &[]), "header"),
        (header(&tensor("F32", "[2]", "8"), &[0; 7]), "expected 8 bytes"),
        (header(&tensor("F32", "[2]", "8"), &[0; 9]), "expected 8 bytes"),
        (header(&tensor("F32", "[3]", "8"), &[0; 8]), "header"),
        (header(&tensor("U8", &format!("[{max}]"), &max), &[]), "header"),
        (header(&tensor("F32", "[4611686018427387904, 4]", "0"), &[]), "header"),
        (header(&wrap, &[]), "expected"),
    ] {
        fs::write(&path, file).unwrap();
        let error = SafetensorsFile::open(&path).unwrap_err().to_string();
        assert!(error.contains(word) && error.contains("x.safetensors"), "`{word}` is not in: {error}");
    }
}

/// More than 100,000 corrupted files through every reader: an error or a result, and no panic (which would fail this test).
#[test]
fn corrupted_bytes_never_panic() {
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let mut below = move |n: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % n.max(1)
    };
    let mut mutate = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        for _ in 0..=below(3) {
            let at = below(bytes.len());
            let (len, special) = (bytes.len(), [0u64, 1, 0x7fff_ffff, u64::MAX, 1 << 63, 1 << 40][below(6)].to_le_bytes());
            match below(7) {
                0 => bytes.truncate(at),
                1 if at < len => drop(bytes.remove(at)),
                2 => bytes.insert(at, below(256) as u8),
                3 if at < len => bytes[at..].iter_mut().zip(special).for_each(|(b, s)| *b = s),
                // JSON's numbers and structure.
                4 if at < len => bytes[at] = b"0123456789eE-+.,:[]{}\"ntf"[below(25)],
                5 => {
                    let part = bytes[at..len.min(at + below(40))].to_vec();
                    let to = below(bytes.len());
                    bytes.splice(to..to, part);
                }
                _ if at < len => bytes[at] ^= 1 << below(8),
                _ => {}
            }
        }
        bytes
    };
    let read_all = |source: &dyn TensorSource| {
        for info in source.list() {
            let _ = source.read_f32(&info.name);
        }
    };
    let dir = in_memory();
    let at = |name: &str| dir.path().join(name);
    let source = Flat::new(1.0);
    let sharded = SaveOptions { hf_shard_bytes: 600, ..SaveOptions::default() };
    save(at("hf"), Format::Hf, &config(), &source, &sharded).unwrap();
    save(at("meta"), Format::Meta, &config(), &source, &SaveOptions::default()).unwrap();
    save(at("native"), Format::Native, &config(), &source, &SaveOptions::default()).unwrap();
    let small = TensorInfo { name: "t".into(), shape: vec![2, 3], dtype: Dtype::BF16 };
    write_safetensors(&at("small"), &[small.clone(), TensorInfo { name: "u".into(), ..small }], &[("a", "b")], &mut |_| {
        Ok(Cow::Borrowed(&[7; 12]))
    })
    .unwrap();

    type Read<'a> = &'a dyn Fn(&Path) -> bool;
    let open_hf: Read = &|p| HfFolder::open(p.parent().unwrap()).map(|f| read_all(&f)).is_ok();
    let open_meta: Read = &|p| MetaFolder::open(p.parent().unwrap()).map(|f| read_all(&f)).is_ok();
    let open_native: Read = &|p| Checkpoint::open(p.parent().unwrap()).map(|c| read_all(c.source())).is_ok();
    // The checksum is put right, or nothing behind it would ever be reached.
    let open_state: Read = &|p| {
        let bytes = fs::read(p).unwrap();
        let rest = bytes.iter().position(|&b| b == b'\n').map_or(bytes.as_slice(), |i| &bytes[i + 1..]);
        let line = format!("{{ \"xxh3\": \"{:016x}\",\n", xxh3_64(rest));
        fs::write(p, [line.as_bytes(), rest].concat()).unwrap();
        open_native(p)
    };
    // Likewise the zip's checksum of the pickle.
    let archive = fs::read(at("meta/consolidated.00.pth")).unwrap();
    let mut archive = zip::ZipArchive::new(Cursor::new(archive)).unwrap();
    let entries: Vec<(String, Vec<u8>)> = (0..archive.len())
        .map(|i| {
            let (mut entry, mut bytes) = (archive.by_index(i).unwrap(), Vec::new());
            entry.read_to_end(&mut bytes).unwrap();
            (entry.name().to_string(), bytes)
        })
        .collect();
    fs::create_dir(at("pickle")).unwrap();
    fs::copy(at("meta/params.json"), at("pickle/params.json")).unwrap();
    fs::write(at("pickle/data.pkl"), &entries[0].1).unwrap();
    let open_pickle: Read = &|p| {
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
        for (i, (name, bytes)) in entries.iter().enumerate() {
            zip.start_file(name.as_str(), stored).unwrap();
            zip.write_all(if i == 0 { fs::read(p).unwrap() } else { bytes.clone() }.as_slice()).unwrap();
        }
        fs::write(p.with_file_name("consolidated.00.pth"), zip.finish().unwrap().into_inner()).unwrap();
        open_meta(p)
    };
    let (mut cases, mut read) = (0, 0);
    for (path, count, open) in [
        (at("small"), 40_000, &(|p: &Path| SafetensorsFile::open(p).map(|f| read_all(&f)).is_ok()) as Read),
        (at("meta/consolidated.00.pth"), 26_000, open_meta),
        (at("pickle/data.pkl"), 15_000, open_pickle),
        (at("native/state.json"), 10_000, open_native),
        (at("native/state.json"), 10_000, open_state),
        (at("hf/config.json"), 3_000, open_hf),
        (at("hf/model.safetensors.index.json"), 3_000, open_hf),
        (at("meta/params.json"), 3_000, open_meta),
    ] {
        let original = fs::read(&path).unwrap();
        assert!(open(&path), "{} is not read unharmed", path.display());
        let mut here = 0;
        for _ in 0..count {
            fs::write(&path, mutate(&original)).unwrap();
            here += usize::from(open(&path));
        }
        println!("{}: {count} corrupted files, {here} read all the same", path.display());
        (cases, read) = (cases + count, read + here);
        fs::write(&path, original).unwrap();
    }
    assert!(cases >= 100_000 && read > 100);
}
