//! Text to shards: files that cannot be trusted, documents that must come back unchanged. What follows the shards is in
//! `data_loader.rs`.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
};

use proptest::prelude::*;
use recua::{
    corpus::{Document, Documents},
    data::{
        DatasetIndex, DatasetWriter, Loader, MixturePart, Shard, ShardWriter, Shards, TokenWindows, TokenizeConfig, Verify,
        Vocab, tokenize_documents,
    },
    error::{Error, Result},
    tokenize_files,
};
use tempfile::tempdir;
use xxhash_rust::xxh3::xxh3_64;

use crate::common::outside;

#[path = "data_loader.rs"]
mod loader;

const VOCAB: Vocab = Vocab { size: 1000, hash: 0xABCD };

/// A small generator of the tests' own (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// A dataset of `tokens` tokens whose ids are their places (plus `first`), in documents of 7 tokens.
fn counting(dir: &Path, name: &str, first: u32, tokens: u32, shard_tokens: u64) -> Arc<Shards> {
    let out = dir.join(name);
    let mut writer = DatasetWriter::create(&out, Vocab { size: 1 << 20, hash: 5 }, shard_tokens, false).unwrap();
    let ids: Vec<u32> = (first..first + tokens).collect();
    ids.chunks(7).for_each(|document| writer.push(document, 11).unwrap());
    writer.finish(vec![name.into()]).unwrap();
    Arc::new(Shards::open(&out, Verify::Full).unwrap())
}

/// The bytes of a shard of three documents.
fn small_shard(vocab: Vocab) -> Vec<u8> {
    let dir = tempdir().unwrap();
    let path = dir.path().join("a.tok");
    let mut writer = ShardWriter::create(&path, vocab).unwrap();
    for document in [&[1, 2, 3][..], &[999], &[0, 500, 2, 2, 7]] {
        writer.push(document, document.len() as u64 * 3).unwrap();
    }
    writer.finish().unwrap();
    fs::read(path).unwrap()
}

/// The format as the documentation of `shards.rs` states it, written without its code.
#[test]
fn shard_bytes_are_the_documented_ones() {
    for (size, width) in [(1000_u32, 2_usize), (1 << 16, 2), ((1 << 16) + 1, 4)] {
        let bytes = small_shard(Vocab { size, hash: 0xABCD });
        let mut content = Vec::new();
        for id in [1_u32, 2, 3, 999, 0, 500, 2, 2, 7] {
            content.extend_from_slice(&id.to_le_bytes()[..width]);
        }
        content.resize(content.len().next_multiple_of(8), 0);
        [0_u64, 3, 4, 9].iter().for_each(|offset| content.extend_from_slice(&offset.to_le_bytes()));
        let mut header = b"RECUATOK".to_vec();
        header.extend_from_slice(&1_u32.to_le_bytes());
        header.extend_from_slice(&(width as u32).to_le_bytes());
        [u64::from(size), 0xABCD, 9, 3, 27, xxh3_64(&content)].iter().for_each(|w| header.extend_from_slice(&w.to_le_bytes()));
        header.extend_from_slice(&xxh3_64(&header).to_le_bytes());
        assert_eq!(bytes, [header, content].concat(), "vocabulary {size}");
    }
}

#[test]
fn round_trip_over_shards() {
    let mut random = Random(1);
    for vocab in [Vocab { size: 60_000, hash: 1 }, Vocab { size: 70_000, hash: 1 }] {
        let dir = tempdir().unwrap();
        let out = dir.path().join("set");
        let documents: Vec<Vec<u32>> =
            (0..200).map(|_| (0..1 + random.below(50)).map(|_| random.below(vocab.size as usize) as u32).collect()).collect();
        let mut writer = DatasetWriter::create(&out, vocab, 300, false).unwrap();
        documents.iter().for_each(|d| writer.push(d, d.len() as u64 + 1).unwrap());
        let index = writer.finish(vec!["here".into()]).unwrap();
        assert!(index.shards.len() > 5 && index.shards.iter().rev().skip(1).all(|s| (300..350).contains(&s.tokens)));
        assert_eq!(index, DatasetIndex::read(&out).unwrap());

        let all: Vec<u32> = documents.concat();
        assert_eq!((index.tokens, index.documents, index.text_bytes), (all.len() as u64, 200, all.len() as u64 + 200));
        for verify in [Verify::Full, Verify::Header] {
            let shards = Shards::open(&out, verify).unwrap();
            assert_eq!((shards.len_tokens(), shards.vocab()), (all.len() as u64, vocab));
            for (i, document) in documents.iter().enumerate() {
                let mut got = Vec::new();
                shards.read(shards.document(i as u64).unwrap(), &mut got).unwrap();
                assert_eq!(&got, document);
            }
            for _ in 0..300 {
                let (a, b) = (random.below(all.len() + 1), random.below(all.len() + 1));
                let (a, b) = (a.min(b), a.max(b));
                let mut got = vec![-1; b - a];
                shards.copy_into(a as u64, &mut got).unwrap();
                assert!(got.iter().map(|id| *id as u32).eq(all[a..b].iter().copied()));
            }
            assert!(shards.document(200).is_err() && shards.document(u64::MAX).is_err());
            for (start, count) in [(0, all.len() + 1), (all.len() as u64, 1), (u64::MAX, 1), (u64::MAX, 2)] {
                assert!(shards.copy_into(start, &mut vec![0; count]).is_err());
            }
        }
        let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["set"], "something temporary was left");
    }
}

/// Uses everything that an opened shard offers: none of it may panic.
fn use_all(shard: &Shard) {
    for i in [0, 1, 2, 3, u64::MAX] {
        let _ = shard.document(i);
    }
    assert!(shard.info().tokens <= 1 << 20, "a shard of a few bytes cannot hold {} tokens", shard.info().tokens);
}

#[test]
fn every_cut_and_every_flipped_bit_is_an_error() {
    let name = Path::new("somewhere/shard-00003.tok");
    for vocab in [VOCAB, Vocab { size: 1 << 20, hash: 0xABCD }] {
        let good = small_shard(vocab);
        assert_eq!(Shard::from_bytes(name, good.clone(), Verify::Full).unwrap().info().tokens, 9);
        let refused = |bytes: Vec<u8>, what: String| {
            let error = Shard::from_bytes(name, bytes, Verify::Full).expect_err(&what);
            assert!(matches!(&error, Error::BadFile { path, .. } if path == name), "{what}: {error}");
            error.to_string()
        };
        (0..good.len()).for_each(|n| drop(refused(good[..n].to_vec(), format!("cut to {n}"))));
        for bit in 0..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            refused(bytes, format!("bit {bit} flipped"));
        }
        assert!(refused([&good[..], &[0]].concat(), "longer".into()).contains("too long"));
        assert!(refused(good[..good.len() - 1].to_vec(), "shorter".into()).contains("truncated"));
        assert!(refused(b"PK\x03\x04 some other format".to_vec(), "foreign".into()).contains("RECUATOK"));
    }
}

/// With the checksums made right again, so that the checks behind them are reached too.
fn reseal(bytes: &mut [u8]) {
    if bytes.len() >= 72 {
        let content = xxh3_64(&bytes[72..]);
        bytes[56..64].copy_from_slice(&content.to_le_bytes());
        let header = xxh3_64(&bytes[..64]);
        bytes[64..72].copy_from_slice(&header.to_le_bytes());
    }
}

#[test]
fn crafted_shards_are_refused() {
    let name = Path::new("crafted.tok");
    let good = small_shard(VOCAB);
    let cases: [(usize, u64, &str); 8] = [
        (8, 2, "version"),
        (16, 0, "vocabulary"),
        (16, u64::MAX, "vocabulary"),
        (16, 1 << 17, "bytes a token"),
        (16, 999, "token ids below 999, got 999"),
        (32, u64::MAX, "impossible"),
        (40, u64::MAX, "impossible"),
        (104, 5, "document offset 4 after 5"), // 72 + 24 bytes of tokens + 8
    ];
    for (at, value, says) in cases {
        let mut bytes = good.clone();
        let width = if at == 8 { 4 } else { 8 };
        bytes[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
        reseal(&mut bytes);
        let error = Shard::from_bytes(name, bytes, Verify::Full).expect_err(says).to_string();
        assert!(error.contains(says), "{at}: {error}");
    }
    // An id beyond the vocabulary is found when it is read, even where opening did not look.
    let dir = tempdir().unwrap();
    let out = dir.path().join("set");
    let mut writer = DatasetWriter::create(&out, VOCAB, 100, false).unwrap();
    writer.push(&[1, 2, 3, 4], 4).unwrap();
    writer.finish(vec![]).unwrap();
    let path = out.join("shard-00000.tok");
    let mut bytes = fs::read(&path).unwrap();
    bytes[72..74].copy_from_slice(&1000_u16.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    assert!(Shards::open(&out, Verify::Full).is_err());
    let shards = Shards::open(&out, Verify::Header).unwrap();
    let error = shards.copy_into(0, &mut [0; 2]).unwrap_err().to_string();
    assert!(error.contains("shard-00000.tok") && error.contains("below 1000, got 1000"), "{error}");
    shards.copy_into(1, &mut [0; 3]).unwrap();
}

/// 120,000 damaged files: never a panic, and never accepted unless the checksums were made right again.
#[test]
fn damaged_bytes_never_panic() {
    let mut random = Random(7);
    let name = Path::new("fuzz.tok");
    let good = [small_shard(VOCAB), small_shard(Vocab { size: 1 << 20, hash: 1 })];
    let dir = tempdir().unwrap();
    let set = counting(dir.path(), "set", 0, 50, 20);
    let json = fs::read(set.dir().join("dataset.json")).unwrap();
    let mut accepted = [0; 2];
    for case in 0..120_000 {
        let is_json = case % 4 == 3;
        let original = if is_json { &json } else { &good[case % 2] };
        let mut bytes = original.clone();
        match random.below(6) {
            0 => bytes.truncate(random.below(bytes.len())),
            1 => bytes = (0..random.below(200)).map(|_| random.next() as u8).collect(),
            2 => {
                let (from, to, n) = (random.below(bytes.len()), random.below(bytes.len()), random.below(16));
                let n = n.min(bytes.len() - from.max(to));
                bytes.copy_within(from..from + n, to);
            }
            3 => {
                let at = random.below(bytes.len() / 8) * 8;
                let word = [0, 1, u64::MAX, 1 << 63, random.next()][random.below(5)];
                bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
            }
            _ => {
                for _ in 0..=random.below(4) {
                    let at = random.below(bytes.len());
                    bytes[at] ^= 1 + random.below(255) as u8;
                }
            }
        }
        if is_json {
            if let Ok(index) = DatasetIndex::parse(name, &bytes) {
                let sum: u64 = index.shards.iter().map(|s| s.tokens).sum();
                assert_eq!(sum, index.tokens);
                assert!(index.shards.iter().all(|s| !s.file.contains(['/', '\\'])));
            }
            continue;
        }
        let changed = bytes != *original;
        let resealed = random.below(2) == 1;
        if resealed {
            reseal(&mut bytes);
        }
        if let Ok(shard) = Shard::from_bytes(name, bytes.clone(), Verify::Full) {
            assert!(resealed || !changed, "case {case}: accepted");
            accepted[usize::from(resealed)] += 1;
            use_all(&shard);
        }
        if let Ok(shard) = Shard::from_bytes(name, bytes, Verify::Header) {
            use_all(&shard);
        }
    }
    assert!(accepted[1] > 1000, "the resealed cases are to reach the code behind the checksums: {accepted:?}");
}

#[test]
fn a_damaged_dataset_names_the_file() {
    let dir = tempdir().unwrap();
    let path = counting(dir.path(), "set", 0, 100, 30).dir().to_path_buf();
    let shard = |n: usize| path.join(format!("shard-0000{n}.tok"));
    let good: Vec<_> = (0..3).map(|n| fs::read(shard(n)).unwrap()).collect();
    let refused = |file: &Path, says: &str| {
        let error = Shards::open(&path, Verify::Header).unwrap_err().to_string();
        assert!(error.contains(&file.display().to_string()) && error.contains(says), "{error}");
    };
    fs::write(shard(2), &good[2][..good[2].len() - 8]).unwrap();
    refused(&shard(2), "truncated");
    fs::write(shard(2), b"").unwrap();
    refused(&shard(2), "RECUATOK");
    fs::remove_file(shard(2)).unwrap();
    refused(&shard(2), "cannot read");
    fs::create_dir(shard(2)).unwrap();
    refused(&shard(2), "");
    fs::remove_dir(shard(2)).unwrap();
    fs::write(shard(2), &good[1]).unwrap(); // a sound shard, but not this one
    refused(&shard(2), "dataset.json lists");
    fs::write(shard(2), &good[2]).unwrap();
    Shards::open(&path, Verify::Full).unwrap();

    let json = fs::read_to_string(path.join("dataset.json")).unwrap();
    for (from, to, says) in [
        ("\"version\": 1", "\"version\": 2", "version 2"),
        ("shard-00001.tok", "../else/shard-00001.tok", "shard-NNNNN.tok"),
        ("\"tokens\": 100", "\"tokens\": 101", "sums"),
        ("\"size\": 1048576", "\"size\": 1048577", "not the one"),
        ("{", "", "expected"),
    ] {
        assert!(json.contains(from));
        fs::write(path.join("dataset.json"), json.replacen(from, to, 1)).unwrap();
        refused(&path, says);
    }
    fs::remove_file(path.join("dataset.json")).unwrap();
    assert!(matches!(Shards::open(&path, Verify::Full), Err(Error::Nothing { .. })));
    assert!(matches!(Shards::open(&path.join("no-such"), Verify::Full), Err(Error::Nothing { .. })));
}

#[test]
fn other_vocabularies_are_refused() {
    let dir = tempdir().unwrap();
    let set = counting(dir.path(), "a", 0, 100, 1000);
    let vocab = set.vocab();
    set.check_vocab(vocab, "tokenizer t").unwrap();
    let size = set.check_vocab(Vocab { size: 32_000, ..vocab }, "tokenizer t").unwrap_err();
    assert!(matches!(size, Error::Vocabulary { left_size: 1_048_576, right_size: 32_000, .. }));
    let hash = set.check_vocab(Vocab { hash: 6, ..vocab }, "tokenizer t").unwrap_err().to_string();
    assert!(hash.contains("tokenizer t") && hash.contains("0000000000000006"), "{hash}");

    let mut writer = DatasetWriter::create(&dir.path().join("b"), Vocab { hash: 6, ..vocab }, 1000, false).unwrap();
    writer.push(&[1; 100], 1).unwrap();
    writer.finish(vec![]).unwrap();
    let other = Arc::new(Shards::open(&dir.path().join("b"), Verify::Full).unwrap());
    let sources = [set, other].map(|shards| MixturePart { shards, weight: None });
    assert!(Loader::new(&sources, 10, 0).is_err());

    let mut writer = ShardWriter::create(&dir.path().join("c.tok"), VOCAB).unwrap();
    let error = writer.push(&[1, 1000], 1).unwrap_err();
    assert!(matches!(error, Error::Vocabulary { left_size: 1000, right_size: 1001, .. }));
    for size in [0, 1 << 31] {
        assert!(ShardWriter::create(&dir.path().join("d.tok"), Vocab { size, hash: 0 }).is_err());
    }
    drop(writer);
    assert!(!dir.path().read_dir().unwrap().any(|e| e.unwrap().file_name().to_string_lossy().contains("tok")));
}

fn write(path: impl AsRef<Path>, content: impl AsRef<[u8]>) {
    fs::create_dir_all(path.as_ref().parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

#[test]
fn documents_come_in_order_and_unchanged() {
    let dir = tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    write(at("b/2.txt"), "two\r\n \u{2581}\u{1F999}");
    write(at("b/10.rs"), "fn ten() {}\n");
    write(at("b/c/x"), "deep");
    write(at("a.jsonl"), "{\"text\": \"l1 \\u00e9\\n\", \"id\": [1]}\n\n{\"text\":\" \"}\r\n{\"text\":\"last\"}");
    write(at("binary"), b"\x7fELF\0\0");
    write(at("latin1.txt"), b"caf\xe9");
    write(at("late.txt"), [&[b'a'; 9000][..], b"\xe9"].concat());
    write(at("edge.txt"), "x".repeat(8191) + "\u{e9}"); // a character across the end of the probe
    write(at("cut.txt"), b"a\xc3");
    write(at("empty.txt"), " \n\t");
    write(at(".git/config"), "hidden");
    write(at("bad.jsonl"), b"{\"text\": \"caf\xe9\"}\n{\"text\": \"fine\"}\n");
    let mut documents = Documents::open(&[dir.path().into(), at("b/c/x")], "text").unwrap();
    let got: Vec<Document> = documents.by_ref().map(Result::unwrap).collect();
    let expected = [
        ("l1 \u{e9}\n".into(), "a.jsonl:1"),
        ("last".into(), "a.jsonl:4"),
        ("fn ten() {}\n".into(), "b/10.rs"),
        ("two\r\n \u{2581}\u{1F999}".into(), "b/2.txt"),
        ("deep".into(), "b/c/x"),
        ("fine".into(), "bad.jsonl:2"),
        ("x".repeat(8191) + "\u{e9}", "edge.txt"),
        ("deep".into(), "b/c/x"),
    ];
    let expected: Vec<_> = expected.map(|(text, name)| Document { text, source: at(name).display().to_string() }).into();
    assert_eq!(got, expected);
    let skipped = documents.skipped();
    assert_eq!((skipped.not_text, skipped.empty, skipped.hidden, skipped.special), (5, 2, 1, 0));
    assert!(["bad.jsonl:1", "binary", "cut.txt", "late.txt", "latin1.txt"].iter().all(|name| {
        let name = at(name).display().to_string();
        skipped.examples.contains(&name)
    }));
    assert_eq!(documents.read_bytes().load(Ordering::Relaxed), documents.total_bytes());
}

/// U+FEFF at the start of a file says that it is UTF-8; anywhere else it is a character.
#[test]
fn a_byte_order_mark_is_no_text() {
    let dir = tempdir().unwrap();
    write(dir.path().join("a.txt"), "\u{feff}caf\u{e9} \u{feff}");
    write(dir.path().join("b.jsonl"), "\u{feff}{\"text\": \"\u{feff}one\"}\n{\"text\": \"two\"}\n");
    let documents = Documents::open(&[dir.path().into()], "text").unwrap();
    let texts: Vec<String> = documents.map(|document| document.unwrap().text).collect();
    assert_eq!(texts, ["caf\u{e9} \u{feff}", "\u{feff}one", "two"]);
}

#[cfg(unix)]
#[test]
fn what_is_passed_over_in_a_folder_is_counted() {
    let dir = tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    write(at("in/a.txt"), "a");
    write(at("elsewhere/b.txt"), "b");
    write(at("in/.hidden/c.txt"), "c");
    write(at("in/.d.txt"), "d");
    let link = |to: &str, name: &str| std::os::unix::fs::symlink(at(to), at(name)).unwrap();
    link("elsewhere/b.txt", "in/link.txt");
    link("elsewhere", "in/folder");
    link("nowhere", "in/dangling");
    let mut documents = Documents::open(&[at("in")], "text").unwrap();
    let texts: Vec<String> = documents.by_ref().map(|document| document.unwrap().text).collect();
    assert_eq!(texts, ["a", "b"], "a link to a file is a file");
    assert_eq!((documents.skipped().hidden, documents.skipped().special), (2, 2));
}

#[test]
fn bad_inputs_are_named() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("x.jsonl");
    for (line, says) in [
        ("{\"txt\": \"a\", \"id\": 1}", "field `text`, got `id`, `txt`"),
        ("{\"text\": 3}", "string in `text`"),
        ("[1]", "JSON object"),
        ("{\"text\": \"a", "EOF"),
    ] {
        write(&path, format!("{{\"text\": \"good\"}}\n{line}\n{{\"text\": \"after\"}}\n"));
        let mut documents = Documents::open(std::slice::from_ref(&path), "text").unwrap();
        assert_eq!(documents.next().unwrap().unwrap().text, "good");
        let error = documents.next().unwrap().unwrap_err().to_string();
        assert!(error.contains("x.jsonl") && error.contains("line 2") && error.contains(says), "{error}");
        assert!(documents.next().is_none(), "it ends after an error");
    }
    // Python writes half a surrogate pair as it stands: no character, and no reason to give up the file.
    write(&path, "{\"text\": \"a\\ud800b\"}");
    assert_eq!(Documents::open(std::slice::from_ref(&path), "text").unwrap().next().unwrap().unwrap().text, "a\u{fffd}b");
    write(&path, "{\"content\": \"c\"}");
    assert_eq!(Documents::open(&[path], "content").unwrap().next().unwrap().unwrap().text, "c");

    let missing = dir.path().join("missing");
    assert!(matches!(Documents::open(std::slice::from_ref(&missing), "text"), Err(Error::Io { path, .. }) if path == missing));
    fs::create_dir(dir.path().join("void")).unwrap();
    for inputs in [vec![], vec![dir.path().join("void")]] {
        assert!(matches!(Documents::open(&inputs, "text"), Err(Error::Nothing { .. })));
    }
}

/// Bytes as tokens between a BOS (256) and an EOS (257).
fn encode(text: &str) -> Result<Vec<u32>> {
    Ok(bytes_between(text))
}

fn bytes_between(text: &str) -> Vec<u32> {
    std::iter::once(256).chain(text.bytes().map(u32::from)).chain([257]).collect()
}

const BYTES: Vocab = Vocab { size: 258, hash: 3 };

fn threads(n: usize) -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap()
}

/// All files of a folder, by name.
fn content(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files: Vec<_> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap()).map(|e| (e.file_name().into(), fs::read(e.path()).unwrap())).collect();
    files.sort();
    files
}

#[test]
fn tokenizing_is_the_same_on_any_number_of_threads() {
    let dir = tempdir().unwrap();
    let mut random = Random(3);
    let texts: Vec<String> = (0..40_000).map(|i| format!("{i} {}", "word ".repeat(random.below(60)))).collect();
    let lines: Vec<_> = texts.iter().map(|t| serde_json::json!({ "text": t }).to_string()).collect();
    write(dir.path().join("in/a.jsonl"), lines[..30_000].join("\n"));
    write(dir.path().join("in/b.jsonl"), lines[30_000..].join("\n"));
    let inputs = [dir.path().join("in")];
    let run = |n: usize| {
        let config = TokenizeConfig { shard_tokens: 1 << 20, ..TokenizeConfig::new(dir.path().join(format!("out{n}")), BYTES) };
        let mut seen = Vec::new();
        let made = threads(n).install(|| tokenize_files(&inputs, "text", &encode, &config, &mut |p| seen.push(p))).unwrap();
        assert!(seen.len() > 1 && seen.windows(2).all(|w| w[0].written.documents < w[1].written.documents));
        let last = seen.last().unwrap();
        assert_eq!((last.written.documents, last.written.tokens), (made.index.documents, made.index.tokens));
        assert!(last.input_bytes == last.input_total && last.input_total > 0);
        content(&config.out)
    };
    let one = run(1);
    assert!(one.len() > 4);
    for n in [2, 5] {
        assert!(one == run(n), "{n} threads");
    }

    let shards = Shards::open(&dir.path().join("out1"), Verify::Full).unwrap();
    assert_eq!(shards.index().text_bytes, texts.iter().map(|t| t.len() as u64).sum::<u64>());
    let mut stream = Vec::new();
    shards.read(0..shards.len_tokens(), &mut stream).unwrap();
    assert!(stream == texts.iter().flat_map(|t| bytes_between(t)).collect::<Vec<_>>());
}

#[test]
fn a_dataset_is_made_whole_or_not_at_all() {
    let dir = tempdir().unwrap();
    let out = dir.path().join("deep/er/set");
    let document = |text: &str| Ok(text.to_string());
    let make = |documents: Vec<Result<String>>, config: &TokenizeConfig| {
        tokenize_documents(documents.into_iter(), vec![], &encode, config, &mut |_| ())
    };
    let config = TokenizeConfig { shard_tokens: 4, ..TokenizeConfig::new(&out, BYTES) };
    let left = || fs::read_dir(out.parent().unwrap()).map_or(0, Iterator::count);

    let failing = vec![document("one"), document("two"), Err(Error::bad_value("x", "y", "z"))];
    assert!(matches!(make(failing, &config), Err(Error::BadValue { .. })));
    assert_eq!(left(), 0);
    assert!(matches!(make(vec![], &config), Err(Error::Nothing { .. })));
    let small = TokenizeConfig { vocab: Vocab { size: 257, hash: 0 }, ..config.clone() };
    assert!(matches!(make(vec![document("one")], &small), Err(Error::Vocabulary { .. })));
    let panics = |_: &str| -> Result<Vec<u32>> { panic!("in the tokenizer") };
    let panicked = std::panic::catch_unwind(|| {
        tokenize_documents([document("one")].into_iter(), vec![], &panics, &config, &mut |_| ()).map(|_| ())
    });
    assert!(panicked.is_err());
    assert_eq!(left(), 0);

    assert_eq!(make(vec![document("one"), document("two")], &config).unwrap().shards.len(), 2);
    let first = content(&out);
    let forced = TokenizeConfig { force: true, ..config.clone() };
    let refused = make(vec![document("three")], &config).unwrap_err().to_string();
    assert!(refused.contains("--out") && refused.contains("--force"), "{refused}");
    assert!(make(vec![document("three"), Err(Error::bad_value("x", "y", "z"))], &forced).is_err());
    assert_eq!(content(&out), first, "a failed replacement leaves what was there");
    assert_eq!(make(vec![document("three")], &forced).unwrap().shards.len(), 1);
    assert_eq!((content(&out).len(), left()), (2, 1));
    // With the tokenizer beside it, as `data tokenize` leaves it.
    write(out.join("tokenizer.json"), "{}");
    write(out.join("tokenizer_config.json"), "{}");
    assert_eq!(make(vec![document("three")], &forced).unwrap().shards.len(), 1);
    assert_eq!((content(&out).len(), left()), (2, 1));
    write(out.join("notes.md"), "mine");
    assert!(make(vec![document("four")], &forced).is_err(), "a folder with other files is not replaced");
    assert!(out.join("notes.md").exists());

    let other = dir.path().join("other");
    write(other.join("a.txt"), "not a dataset");
    assert!(make(vec![document("five")], &TokenizeConfig { out: other.clone(), ..forced.clone() }).is_err());
    assert!(make(vec![document("six")], &TokenizeConfig { out: other.join("a.txt"), ..forced.clone() }).is_err());
    assert_eq!(fs::read_to_string(other.join("a.txt")).unwrap(), "not a dataset");
    fs::create_dir(dir.path().join("void")).unwrap();
    make(vec![document("seven")], &TokenizeConfig { out: dir.path().join("void"), ..config.clone() }).unwrap();
    assert!(make(vec![document("eight")], &TokenizeConfig { out: "/".into(), ..config }).is_err());

    let empty = dir.path().join("empty.txt");
    write(&empty, "  ");
    let error =
        tokenize_files(&[empty], "text", &encode, &TokenizeConfig::new(dir.path().join("e"), BYTES), &mut |_| ()).unwrap_err();
    assert!(matches!(error, Error::Nothing { .. }) && error.to_string().contains("1 documents are empty"), "{error}");
}

/// Real documents of the CCNet sample, through files, shards and back.
#[test]
fn real_documents_survive() {
    let Some(path) = outside("RECUA_DATA", "c4/cc_en_head-0174.jsonl") else { return };
    let dir = tempdir().unwrap();
    let config = TokenizeConfig { shard_tokens: 20_000, ..TokenizeConfig::new(dir.path().join("set"), BYTES) };
    let made = tokenize_files(std::slice::from_ref(&path), "text", &encode, &config, &mut |_| ()).unwrap();
    let texts: Vec<String> = fs::read_to_string(&path)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["text"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!((made.index.documents, texts.len()), (10, 10));
    assert!(made.index.shards.len() > 1);
    let shards = Shards::open(&config.out, Verify::Full).unwrap();
    for (i, text) in texts.iter().enumerate() {
        let mut ids = Vec::new();
        shards.read(shards.document(i as u64).unwrap(), &mut ids).unwrap();
        assert_eq!(ids, bytes_between(text));
    }
}

proptest! {
    /// Any documents in shards of any size, read at any place.
    #[test]
    fn any_documents_survive(
        documents in prop::collection::vec(prop::collection::vec(0_u32..1000, 1..20), 1..20),
        shard_tokens in 1_u64..60, seq_len in 1_usize..12,
    ) {
        let dir = tempdir().unwrap();
        let out = dir.path().join("set");
        let mut writer = DatasetWriter::create(&out, VOCAB, shard_tokens, false).unwrap();
        for document in &documents {
            writer.push(document, 1).unwrap();
        }
        writer.finish(vec![]).unwrap();
        let shards = Arc::new(Shards::open(&out, Verify::Full).unwrap());
        let all = documents.concat();
        let mut got = Vec::new();
        shards.read(0..shards.len_tokens(), &mut got).unwrap();
        prop_assert_eq!(&got, &all);
        match TokenWindows::new(shards, seq_len) {
            Err(_) => prop_assert!(all.len() < seq_len + 1),
            Ok(windows) => {
                prop_assert_eq!(windows.count() as usize, (all.len() - 1) / seq_len);
                for w in 0..windows.count() {
                    let mut row = vec![0; seq_len + 1];
                    windows.copy_into(w, &mut row).unwrap();
                    let at = w as usize * seq_len;
                    prop_assert!(row.iter().map(|id| *id as u32).eq(all[at..=at + seq_len].iter().copied()));
                }
            }
        }
    }
}
