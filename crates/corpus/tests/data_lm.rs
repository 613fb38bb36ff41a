//! N-gram models: scores against a recursion written from the definition, all six binary layouts, and damaged files.
//!
//! Samples are found by `RECUA_DATA`; `RECUA_FUZZ` is the number of mutated inputs (3,000 by default, under two seconds).

use std::path::{Path, PathBuf};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use recua_corpus::error::Error;
use recua_corpus::lm::{LmScore, LoadOptions, Model};

use super::data_lm_train::Plain;

/// A model whose numbers are sums of powers of two, so that scores are exact.
const OWN: &str = "\\data\\\nngram 1=7\nngram 2=6\nngram 3=4\n\n\\1-grams:\n-1.5\t<unk>\t0\n0\t<s>\t-0.25\n-0.75\t</s>\t0\n\
    -0.5\tllama\t-0.125\n-1\teats\t-0.5\n-1.25\tgrass\t-0.0625\n-2\tquietly\t0\n\n\\2-grams:\n-0.375\t<s> llama\t-0.1875\n\
    -0.625\tllama eats\t-0.3125\n-0.25\teats grass\t0\n-1.125\tgrass </s>\t0\n-1.75\teats quietly\t-0.75\n\
    -2.25\tquietly eats\t0\n\n\\3-grams:\n-0.1875\t<s> llama eats\n-0.4375\tllama eats grass\n-0.03125\teats grass </s>\n\
    -0.9375\tquietly eats grass\n\n\\end\\\n";

/// Lines, and what KenLM's `query` gives for them with [`OWN`]: in full, and quantised to two bits.
const LINES: [(&str, f32, f32); 6] = [
    ("llama eats grass", -1.03125, -0.96875),
    ("quietly eats grass", -5.46875, -5.46875),
    ("llama eats quietly eats grass", -6.59375, -6.15625),
    ("grass grass llama cow eats", -7.25, -7.25),
    ("", -1.0, -1.0),
    ("eats quietly", -4.5, -4.1875),
];

// Binary files of `OWN` by KenLM's `build_binary` (of the kenlm 0.3.0 sources), from behind the sanity header on: hexadecimal, with
// `.n.` for n zero bytes.

/// `build_binary -r "1.arpa 2.arpa" probing`: its lower orders as rest costs.
const REST_PROBING: &str = "\
    03.5.c03f01.3.01.7.07.7.06.7.04.15.07.3.d44f2382aec827d304.3.1709d5d83cd0a62c06.3.0a6cf7f17d73e06b02.3.61a7f8f53\
    a18ddd005.51.707e21bd3986750001.3.e1d6567804c6e27903.5.c0bf.3.800000c0bf.6.80be.6.403f.3.80000040bf.3.3f.3.be.3.\
    bf0000803f.3.bf000080bf0000a03f000080bd0000a0bf.3.40.7.c0.12.08f2026884b133130000203f0000a0be000020bf8172edf07d7\
    b7c850000c0be000040be0000c0be205d94be8a903c2b0000903f.3.80000090bfbaa6038e1aaabeb60000803e.6.80be3daca7c2e948113\
    20000e0bf000040bf0000e0bf25293904b2ab0d38000010c0.6.10c0.60.26f4870efc3d916e000040bebe84ee1b511ec0970000e0be935f\
    d5776704febc000070bf.24.836c64c5f55ce777.3.bd3c756e6b3e003c733e003c2f733e006c6c616d61006561747300677261737300717\
    56965746c7900";

/// `build_binary trie`.
const TRIE: &str = "\
    03.5.c03f02.3.01.3.01.3.07.7.06.7.04.11.06.7.707e21bd398675001709d5d83cd0a62c0a6cf7f17d73e06be1d6567804c6e27961a\
    7f8f53a18ddd0d44f2382aec827d3.10.c0bf.3.80.14.80be.11.c0.14.40bf.3.8001.10.bf.3.be02.9.a0bf000080bd03.9.80bf.3.b\
    f04.15.06.23.060000ff010000fda20000903f.3.40040000d8070000e41b030000fa.4.2200000820.3.c0080000f2030000f51d.8.04.\
    8.060000e8090000ee470000705f0000807c.13.3c756e6b3e003c733e0071756965746c79003c2f733e006c6c616d610067726173730065\
    61747300";

/// `build_binary -a 3 trie`.
const ARRAY_TRIE: &str = "\
    03.5.c03f04.3.01.3.01.3.07.7.06.7.04.11.06.7.707e21bd398675001709d5d83cd0a62c0a6cf7f17d73e06be1d6567804c6e27961a\
    7f8f53a18ddd0d44f2382aec827d3.10.c0bf.3.80.14.80be.11.c0.14.40bf.3.8001.10.bf.3.be02.9.a0bf000080bd03.9.80bf.3.b\
    f04.15.06.24.03.21.060000ff010000fda20000903f.3.40040000d8070000e41b030000fa.4.2200000820.3.c0080000f2030000f51d\
    .8.04.8.060000e8090000ee470000705f0000807c.13.3c756e6b3e003c733e0071756965746c79003c2f733e006c6c616d610067726173\
    73006561747300";

/// `build_binary -q 2 -b 2 trie`.
const QUANTISED_TRIE: &str = "\
    03.5.c03f03.3.01.3.01.3.07.7.06.7.04.11.06.7.707e21bd398675001709d5d83cd0a62c0a6cf7f17d73e06be1d6567804c6e27961a\
    7f8f53a18ddd0d44f2382aec827d3.8.020202.7.10c00000b8bf000020bf0000a0be.3.80.6.40bf000080be000070bf0000e0be000040b\
    e.3.bd0000c0bf.3.80.14.80be.11.c0.14.40bf.3.8001.10.bf.3.be02.9.a0bf000080bd03.9.80bf.3.bf04.15.06.23.3694908f3b\
    8a710720.8.5eb008.9.3c756e6b3e003c733e0071756965746c79003c2f733e006c6c616d61006772617373006561747300";

/// `build_binary -q 2 -b 2 -a 3 trie`.
const QUANTISED_ARRAY_TRIE: &str = "\
    03.5.c03f05.3.01.3.01.3.07.7.06.7.04.11.06.7.707e21bd398675001709d5d83cd0a62c0a6cf7f17d73e06be1d6567804c6e27961a\
    7f8f53a18ddd0d44f2382aec827d3.8.020202.7.10c00000b8bf000020bf0000a0be.3.80.6.40bf000080be000070bf0000e0be000040b\
    e.3.bd0000c0bf.3.80.14.80be.11.c0.14.40bf.3.8001.10.bf.3.be02.9.a0bf000080bd03.9.80bf.3.bf04.15.06.24.03.21.3694\
    908f3b8a710720.8.5eb008.9.3c756e6b3e003c733e0071756965746c79003c2f733e006c6c616d61006772617373006561747300";

/// A binary file: the sanity header, and what is given.
fn binary(rest: &str) -> Vec<u8> {
    let mut out = b"mmap lm http://kheafield.com/code format version 5\n".to_vec();
    out.resize(56, 0);
    for value in [0.0f32, 1.0, -0.5] {
        out.extend(value.to_le_bytes());
    }
    for value in [1u32, u32::MAX, 0, 1, 0] {
        out.extend(value.to_le_bytes());
    }
    for (i, part) in rest.split('.').enumerate() {
        if i % 2 == 1 {
            out.resize(out.len() + part.parse::<usize>().unwrap(), 0);
        } else {
            let digits: Vec<u8> = part.bytes().map(|b| (b as char).to_digit(16).unwrap() as u8).collect();
            out.extend(digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]));
        }
    }
    out
}

pub(super) fn arpa(text: &str) -> recua_corpus::error::Result<Model> {
    Model::from_arpa(text.as_bytes(), &LoadOptions::default(), Path::new("test.arpa"))
}

pub(super) fn problem<T>(result: recua_corpus::error::Result<T>) -> String {
    result.err().expect("an error").to_string()
}

#[test]
fn scores_follow_the_definition() {
    let (model, plain) = (arpa(OWN).unwrap(), Plain::new(OWN));
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let words = ["llama", "eats", "grass", "quietly", "cow"];
    for _ in 0..500 {
        let line: Vec<&str> = (0..rng.random_range(0..8)).map(|_| words[rng.random_range(0..words.len())]).collect();
        let line = line.join(" ");
        let (got, wanted) = (model.full_scores(&line, true, true), plain.line(&line));
        assert_eq!(got.words.len(), wanted.len());
        for (got, (log10, length)) in got.words.iter().zip(&wanted) {
            assert!((got.log10 - log10).abs() < 1e-6, "{line}: {got:?}, {log10}");
            assert_eq!(got.ngram_length, *length, "{line}");
        }
        assert_eq!(got.score, f64::from(model.score(&line, true, true)));
        let ids: Vec<u32> = line.split_whitespace().map(|w| model.index(w)).collect();
        assert_eq!(got.score, f64::from(model.score_ids(ids.into_iter(), true, true)));
    }
}

#[test]
fn parts_of_a_score_are_as_asked_for() {
    let model = arpa(OWN).unwrap();
    assert_eq!((model.order(), model.counts(), model.vocab_size()), (3, &[7, 6, 4][..], 7));
    assert_eq!(model.index("cow"), 0);
    // By hand: llama -0.5; eats after llama -0.625; without </s>.
    assert_eq!(model.score("llama eats", false, false), -1.125);
    let LmScore { score, words } = model.full_scores("\tcow  \x0bllama\n", false, true);
    // cow -1.5 and no context; llama -0.5; </s> after llama: -0.125 and -0.75.
    assert_eq!(score, -2.875);
    assert_eq!(words.iter().map(|w| (w.ngram_length, w.oov)).collect::<Vec<_>>(), [(1, true), (1, false), (1, false)]);
    let json = serde_json::to_string(&model.full_scores("", false, true)).unwrap();
    assert_eq!(json, r#"{"score":-0.75,"words":[{"log10":-0.75,"ngram_length":1,"oov":false}]}"#);
}

#[test]
fn all_layouts_score_as_kenlm_does() {
    let own = arpa(OWN).unwrap();
    for (line, score, _) in LINES {
        assert_eq!(own.score(line, true, true), score, "{line}");
    }
    for (name, file, quantised) in [
        ("rest", REST_PROBING, false),
        ("trie", TRIE, false),
        ("array", ARRAY_TRIE, false),
        ("quantised", QUANTISED_TRIE, true),
        ("quantised array", QUANTISED_ARRAY_TRIE, true),
    ] {
        let model = Model::from_binary(binary(file), Path::new(name)).unwrap();
        assert_eq!((model.order(), model.vocab_size()), (3, 7), "{name}");
        for (line, score, rough) in LINES {
            assert_eq!(model.score(line, true, true), if quantised { rough } else { score }, "{name}: {line}");
        }
    }
}

#[test]
fn a_saved_model_is_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let (path, again) = (folder.path().join("own.binary"), folder.path().join("again.binary"));
    let model = arpa(OWN).unwrap();
    model.save_binary(&path).unwrap();
    let mapped = Model::open(&path).unwrap();
    mapped.save_binary(&again).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), std::fs::read(&again).unwrap());
    // The hash of what build_binary makes of the same ARPA file.
    assert_eq!(xxhash(&std::fs::read(&path).unwrap()), BUILD_BINARY_HASH);
    for (line, score, _) in LINES {
        assert_eq!(mapped.score(line, true, true), score);
    }
    // Gzip, by its contents and not by its name.
    let packed = folder.path().join("own.arpa");
    let mut encoder = flate2::write::GzEncoder::new(std::fs::File::create(&packed).unwrap(), flate2::Compression::default());
    std::io::Write::write_all(&mut encoder, OWN.as_bytes()).unwrap();
    encoder.finish().unwrap();
    assert_eq!(Model::open(&packed).unwrap().score(LINES[0].0, true, true), LINES[0].1);
}

/// xxh3 of [`OWN`] through KenLM's `build_binary`, with its defaults.
const BUILD_BINARY_HASH: u64 = 792_318_799_930_891_632;

fn xxhash(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(bytes)
}

#[test]
fn what_an_arpa_file_may_look_like() {
    let score = |text: &str| arpa(text).map(|m| m.score("llama eats grass", true, true));
    let wanted = LINES[0].1;
    assert_eq!(score(&OWN.replace('\n', "\r\n")).unwrap(), wanted);
    assert_eq!(score(&OWN.replace('\t', " ")).unwrap(), wanted);
    assert_eq!(score(&OWN.replace('\t', "  \t ")).unwrap(), wanted);
    assert_eq!(score(&OWN.replace("-grams:\n", "-grams:\n\n")).unwrap(), wanted);
    assert_eq!(score(&format!("made by hand\n\n# or not\n{OWN}\nthe end\n")).unwrap(), wanted);
    assert_eq!(score(&OWN.replace("\t0\n", "\n")).unwrap(), wanted);
    assert_eq!(score(&OWN.replace("<unk>", "<UNK>")).unwrap(), wanted);
    assert_eq!(score(&OWN.replace("ngram 1=7", "ngram 1 = 7")).unwrap(), wanted);

    // Without <unk>, unknown words have log10 -100, or what is asked for.
    let none = OWN.replace("-1.5\t<unk>\t0\n", "").replace("ngram 1=7", "ngram 1=6");
    assert_eq!(arpa(&none).unwrap().score("cow", false, false), -100.0);
    let options = LoadOptions { unknown_log10: -7.0, ..Default::default() };
    let load = |text: &str, options: &LoadOptions| Model::from_arpa(text.as_bytes(), options, Path::new("x"));
    assert_eq!(load(&none, &options).unwrap().score("cow", false, false), -7.0);

    let positive = OWN.replace("-0.5\tllama", "0.5\tllama");
    assert!(problem(arpa(&positive)).contains("line 10: the log10 probability 0.5 is positive"));
    let options = LoadOptions { positive_as_zero: true, ..Default::default() };
    assert_eq!(load(&positive, &options).unwrap().score("llama", false, false), 0.0);

    let unmarked = OWN.replace("</s>", "END");
    assert!(problem(arpa(&unmarked)).contains("no </s> among the 1-grams"));
    let options = LoadOptions { without_markers: true, ..Default::default() };
    assert_eq!(load(&unmarked, &options).unwrap().score("cow", false, true), -3.0);
}

/// Endings that pruning took out of a model are backed off to, as if they were there.
#[test]
fn endings_that_are_missing_are_made_up_for() {
    let pruned = OWN.replace("-0.25\teats grass\t0\n", "").replace("ngram 2=6", "ngram 2=5");
    let pruned = pruned.replace("-0.03125\teats grass </s>\n", "").replace("ngram 3=4", "ngram 3=3");
    let (model, plain) = (arpa(&pruned).unwrap(), Plain::new(&pruned));
    for line in ["llama eats grass", "eats grass", "quietly eats grass eats grass", "grass eats grass cow"] {
        for (got, (log10, _)) in model.full_scores(line, true, true).words.iter().zip(plain.line(line)) {
            assert!((got.log10 - log10).abs() < 1e-6, "{line}");
        }
    }
    // A context that is missing is another matter: its weight is lost.
    let broken = OWN.replace("-0.375\t<s> llama\t-0.1875\n", "").replace("ngram 2=6", "ngram 2=5");
    assert!(problem(arpa(&broken)).contains("the first 2 words are not among the 2-grams"));
}

#[test]
fn what_is_wrong_with_an_arpa_file_is_said() {
    for (from, to, said) in [
        ("ngram 2=6", "ngram 3=6", "expected `ngram 2=` and a number"),
        ("ngram 2=6", "ngram 2=99999999999", "do not fit into"),
        ("ngram 2=6\nngram 3=4\n", "", "order 1; 2 to"),
        ("ngram 2=6", "ngram 2=7", "line 23: fewer 2-grams than the header counts"),
        ("ngram 2=6", "ngram 2=5", "expected \\3-grams:"),
        ("-0.25\teats grass\t0", "-0.25\teats", "expected a number, 2 words"),
        ("-0.25\teats grass\t0", "x\teats grass\t0", "no log10 probability"),
        ("-0.25\teats grass\t0", "NaN\teats grass\t0", "no log10 probability"),
        ("-0.25\teats grass\t0", "-0.25\teats grass\tinf", "no back-off weight"),
        ("-0.25\teats grass\t0", "-0.25\teats hay\t0", "the word `hay` is not among the 1-grams"),
        ("-0.4375\tllama eats grass", "-0.4375\tllama eats grass\t-1", "in the highest order"),
        ("\\end\\", "", "the file ends; expected \\end\\"),
        ("\\data\\", "", "the file ends; expected \\data\\"),
    ] {
        let text = OWN.replacen(from, to, 1);
        assert_ne!(text, OWN);
        let error = arpa(&text).map(|_| ()).unwrap_err();
        assert!(matches!(error, Error::BadFile { .. }));
        assert!(error.to_string().contains(said), "{said}: {error}");
    }
    let long = format!("\\data\\\n{}", "a".repeat(2 << 20));
    assert!(problem(arpa(&long)).contains("a line of more than"));
}

#[test]
fn what_is_wrong_with_a_binary_file_is_said() {
    let file = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = binary(TRIE);
        change(&mut bytes);
        problem(Model::from_binary(bytes, Path::new("x")))
    };
    assert!(file(&|b| b.truncate(87)).contains("the file ends in the header"));
    assert!(file(&|b| b.truncate(300)).contains("expected at least"));
    assert!(file(&|b| b[49] = b'4').contains("another version than 5"));
    assert!(file(&|b| b[60] = 1).contains("another kind of machine"));
    assert!(file(&|b| b[88] = 1).contains("order 1"));
    assert!(file(&|b| b[88] = 200).contains("order 200"));
    assert!(file(&|b| b[96] = 6).contains("layout 6"));
    assert!(file(&|b| b[104] = 2).contains("version 2 of its layout"));
    assert!(file(&|b| b[95] = 0xff).contains("probing multiplier"));
    assert!(file(&|b| b[115] = 0x7f).contains("n-grams in"));
    assert!(file(&|b| b.truncate(b.len() - 38)).contains("the words are not at byte"));
    let incomplete = b"mmap lm http://kheafield.com/code incomplete\n".to_vec();
    assert!(problem(Model::from_binary(incomplete, Path::new("x"))).contains("did not finish"));
}

/// The scores of kenlm 0.3.0's Python package for its own test model.
#[test]
fn kenlm_gives_the_same_scores() {
    let Some(data) = std::env::var_os("RECUA_DATA").map(PathBuf::from) else {
        println!("skipped: RECUA_DATA is not set");
        return;
    };
    let oracle = std::fs::read(data.join("../golden/oracles/kenlm.json")).unwrap();
    let oracle: serde_json::Value = serde_json::from_slice(&oracle).unwrap();
    let model = Model::open(data.join("kenlm/test.arpa")).unwrap();
    let rows = oracle["rows"].as_array().unwrap();
    assert!(rows.len() > 100);
    for row in rows {
        let line = row["sentence"].as_str().unwrap();
        let got = model.full_scores(line, true, true);
        let near = |a: f64, b: &serde_json::Value| (a - b.as_f64().unwrap()).abs() < 1e-5;
        assert!(near(got.score, &row["score_bos_eos"]), "{line}");
        assert!(near(f64::from(model.score(line, false, false)), &row["score_plain"]), "{line}");
        let words = row["words"].as_array().unwrap();
        assert_eq!(words.len(), got.words.len());
        for (got, word) in got.words.iter().zip(words) {
            assert!(near(got.log10, &word["log10"]), "{line}");
            assert_eq!(Some(got.ngram_length as u64), word["ngram_length"].as_u64());
            assert_eq!(Some(got.oov), word["oov"].as_bool());
        }
    }
    for name in ["test_nounk.arpa", "toy0.arpa", "toy1.arpa", "100.lm.gz"] {
        let model = Model::open(data.join("kenlm").join(name)).unwrap();
        assert!(model.score("a b", true, true) < 0.0, "{name}");
    }
}

// Damaged files.

fn mutate(rng: &mut ChaCha8Rng, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut out = seeds[rng.random_range(0..seeds.len())].clone();
    for _ in 0..rng.random_range(1..=3) {
        if out.is_empty() {
            break;
        }
        let from = rng.random_range(0..out.len());
        let to = rng.random_range(from..=out.len().min(from + 64));
        match rng.random_range(0..12) {
            0 => out[from] ^= 1 << rng.random_range(0..8),
            1 => out[from] = [0, 0xff, 0x7f, b'9', b'\\', b'\t', b'\n'][rng.random_range(0..7)],
            2 => out.truncate(from),
            3 => drop(out.drain(from..to)),
            4 => {
                let piece = out[from..to].to_vec();
                out.splice(from..from, piece);
            }
            5 => {
                let other = &seeds[rng.random_range(0..seeds.len())];
                let begin = rng.random_range(0..other.len());
                let end = (begin + rng.random_range(0..64)).min(other.len());
                out.splice(from..to, other[begin..end].iter().copied());
            }
            7..12 => {
                // Numbers that are still numbers.
                let digits: Vec<usize> = (from..to).filter(|i| out[*i].is_ascii_digit()).collect();
                digits.into_iter().for_each(|i| out[i] = rng.random_range(b'0'..=b'9'));
            }
            _ => out[from..to].fill(if rng.random_range(0..2) == 0 { 0 } else { 0xff }),
        }
    }
    out
}

#[test]
fn damaged_files_are_refused_or_read() {
    let inputs = std::env::var("RECUA_FUZZ").ok().and_then(|n| n.parse().ok()).unwrap_or(3000);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("own.binary");
    arpa(OWN).unwrap().save_binary(&path).unwrap();
    let nasty = [
        OWN.replace("ngram 2=6", "ngram 2=18446744073709551615"),
        OWN.replace("\\2-grams:", "\\1-grams:"),
        OWN.replace("<unk>", "<s>"),
        OWN.replace("llama eats grass", "llama llama llama"),
        OWN.replace("-0.25\teats grass\t0\n", "").replace("ngram 2=6", "ngram 2=5"),
    ];
    let texts: Vec<Vec<u8>> = nasty.into_iter().chain(std::iter::repeat_n(OWN.to_string(), 10)).map(String::into_bytes).collect();
    let mut binaries: Vec<Vec<u8>> = [REST_PROBING, TRIE, ARRAY_TRIE, QUANTISED_TRIE, QUANTISED_ARRAY_TRIE].map(binary).to_vec();
    binaries.push(std::fs::read(&path).unwrap());
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut read = [0, 0];
    for i in 0..inputs {
        let kind = i % 2;
        let bytes = mutate(&mut rng, if kind == 0 { &texts } else { &binaries });
        let options = LoadOptions { positive_as_zero: i % 4 == 0, without_markers: i % 8 == 0, ..Default::default() };
        let model = match kind {
            0 => Model::from_arpa(&bytes, &options, Path::new("x")),
            _ => Model::from_binary(bytes, Path::new("x")),
        };
        match model {
            Ok(model) => {
                read[kind] += 1;
                for (line, ..) in LINES {
                    let scores = model.full_scores(line, true, true);
                    assert_eq!(scores.words.len(), line.split_whitespace().count() + 1);
                }
            }
            Err(Error::BadFile { .. }) => {}
            Err(e) => panic!("{e}"),
        }
    }
    assert!(read.iter().all(|n| *n > inputs / 50), "{read:?} of {inputs} were read: the mutations are too hard");
}
