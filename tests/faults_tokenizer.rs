//! Faults of tokenizers by their kinds. Expected values are those of transformers, `tokenizers` and sentencepiece (`tests/faults/*.py`
//! made the tables), or follow from the definition.

use std::fs;
use std::path::{Path, PathBuf};

use recua::error::Error;
use recua::tokenizer::{Tokenizer, TrainConfig};
use serde_json::{Value, json};

fn fault(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults").join(name)
}

fn read_json(name: &str) -> Value {
    serde_json::from_slice(&fs::read(fault(name)).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// A folder with a tokenizer of `tests/faults` and files beside it.
fn folder(tokenizer: &str, files: &[(&str, String)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let extension = Path::new(tokenizer).extension().unwrap().to_str().unwrap();
    fs::copy(fault(tokenizer), dir.path().join(format!("tokenizer.{extension}"))).unwrap();
    for (name, content) in files {
        fs::write(dir.path().join(name), content).unwrap();
    }
    dir
}

/// F15, F3: tokens that files beside a tokenizer add, and the names they give.
#[test]
fn files_beside_a_tokenizer() {
    let cases = read_json("beside.json");
    for case in cases.as_array().unwrap() {
        let label = format!("{} {}", case["tokenizer"], case["name"]);
        let files: Vec<(&str, String)> =
            case["files"].as_object().unwrap().iter().map(|(name, content)| (name.as_str(), content.to_string())).collect();
        let dir = folder(case["tokenizer"].as_str().unwrap(), &files);
        let opened = Tokenizer::open(dir.path()).unwrap();
        // What is saved is the same tokenizer.
        let copy = tempfile::tempdir().unwrap();
        opened.save(copy.path()).unwrap();
        for tokenizer in [&opened, &Tokenizer::open(copy.path()).unwrap()] {
            assert_eq!(tokenizer.hash(), opened.hash(), "{label}");
            assert_eq!(tokenizer.vocab_size() as u64, case["size"].as_u64().unwrap(), "{label}");
            for (i, id) in [tokenizer.bos_id(), tokenizer.eos_id()].into_iter().enumerate() {
                // Where no file names them, they are the usual ones, which transformers does not know.
                let named = case["files"]["tokenizer_config.json"].get(["bos_token", "eos_token"][i]).is_some();
                if named || !case["ends"][i].is_null() {
                    assert_eq!(json!(id), case["ends"][i], "{label}: BOS, EOS");
                }
            }
            for row in case["rows"].as_array().unwrap() {
                let text = row["text"].as_str().unwrap();
                let special = row["special"].as_bool().unwrap();
                let got = if special { tokenizer.encode_with_special(text) } else { tokenizer.encode(text) }.unwrap();
                assert_eq!(got, ids(&row["ids"]), "{label}: {row}");
                assert_eq!(tokenizer.decode(&got).unwrap(), row["decoded"].as_str().unwrap(), "{label}: {row}");
            }
        }
    }
    assert_eq!(cases.as_array().unwrap().len(), 63);
}

/// F15 for SentencePiece, whose own ids stay.
#[test]
fn files_beside_a_sentencepiece_model() {
    let plain = Tokenizer::open(fault("llama.model")).unwrap();
    let n = plain.vocab_size() as u32;
    let (old, llama) = (plain.encode("The old").unwrap(), plain.encode("llama").unwrap());
    let config = json!({"eos_token": "<|im_end|>", "pad_token": "<pad>", "bos_token": "<s>", "added_tokens_decoder": {
        (n + 1).to_string(): {"content": "<|im_end|>", "special": true},
        n.to_string(): {"content": "<sep>", "special": false},
        "1": {"content": "<s>", "special": true}}});
    let with_list = [("tokenizer_config.json", config.to_string())];
    let in_two = [
        ("added_tokens.json", json!({"<|im_end|>": n + 1, "<sep>": n}).to_string()),
        ("special_tokens_map.json", json!({"eos_token": "<|im_end|>", "pad_token": "<pad>"}).to_string()),
    ];
    for files in [&with_list[..], &in_two[..]] {
        let dir = folder("llama.model", files);
        let tokenizer = Tokenizer::open(dir.path()).unwrap();
        assert_eq!((tokenizer.vocab_size() as u32, tokenizer.bos_id(), tokenizer.eos_id()), (n + 3, plain.bos_id(), Some(n + 1)));
        assert_eq!(tokenizer.id_of("<pad>"), Some(n + 2));
        assert_ne!(tokenizer.hash(), plain.hash(), "other ids come out");
        // A token that is not special is one in any text; a special one where it is asked for. What stands between is a text each.
        let text = "The old<sep>llama";
        let expected = [&old[..], &[n], &llama[..]].concat();
        assert_eq!(tokenizer.encode(text).unwrap(), expected);
        assert_eq!(tokenizer.encode_with_special(text).unwrap(), expected);
        assert_eq!(tokenizer.encode_with_special("The old<|im_end|>llama").unwrap(), [&old[..], &[n + 1], &llama[..]].concat());
        assert_eq!(tokenizer.encode("<|im_end|>").unwrap(), plain.encode("<|im_end|>").unwrap());
        assert_eq!(tokenizer.decode(&[n, n + 1, n + 2]).unwrap(), "<sep>");
        assert_eq!(tokenizer.encode("The old llama").unwrap(), plain.encode("The old llama").unwrap());
    }
    let same = folder("llama.model", &[("tokenizer_config.json", json!({"bos_token": "<s>", "pad_token": "<unk>"}).to_string())]);
    assert_eq!(Tokenizer::open(same.path()).unwrap().hash(), plain.hash());
}

/// F3: whether BOS goes before a prompt is said by the files, not by a token's name.
#[test]
fn what_goes_before_a_prompt() {
    let own =
        Tokenizer::train(["a llama and a llama".to_string()].into_iter(), &TrainConfig { vocab_size: 262, ..Default::default() });
    assert_eq!(own.unwrap().prefix(), [1]);
    for (tokenizer, config, prefix) in [
        // Of before tokenizers stated it: `tests/fixtures`.
        ("own.json", json!({}), vec![1]),
        ("llama.model", json!({}), vec![1]),
        ("llama.model", json!({"add_bos_token": true}), vec![1]),
        ("llama.model", json!({"add_bos_token": false}), vec![]),
        ("llama.model", json!({"bos_token": null}), vec![]),
        ("llama2.json", json!({}), vec![1]),
        ("llama2.json", json!({"add_bos_token": false, "bos_token": null}), vec![1]),
        ("smollm.json", json!({}), vec![]),
        ("smollm.json", json!({"add_bos_token": true, "bos_token": "<|endoftext|>"}), vec![]),
    ] {
        let dir = folder(tokenizer, &[("tokenizer_config.json", config.to_string())]);
        assert_eq!(Tokenizer::open(dir.path()).unwrap().prefix(), prefix, "{tokenizer} {config}");
    }
    // Templates that cannot be are refused, by name.
    for processor in [
        json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<x>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [], "special_tokens": {}}),
        json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<x>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [], "special_tokens": {"<x>": {"id": "<x>", "ids": [400], "tokens": ["<x>"]}}}),
        json!({"type": "BertProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1_u64 << 40]}),
    ] {
        let mut json = read_json("llama2.json");
        json["post_processor"] = processor;
        let error = Tokenizer::from_json(json.to_string().as_bytes(), Path::new("t.json")).unwrap_err().to_string();
        assert!(error.contains("t.json") && error.contains("post_processor"), "{error}");
    }
}

/// F20: files of other kinds are named, and what some programs put before or into one is read.
#[test]
fn files_of_other_kinds() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.model");
    let json = fs::read(fault("llama2.json")).unwrap();
    let utf16: Vec<u8> = [0xff, 0xfe].into_iter().chain("{\"a\": 1}".bytes().flat_map(|b| [b, 0])).collect();
    for (content, words) in [
        (&b"AA== 0\nAQ== 1\nAg== 2\n"[..], "tiktoken"),
        (b"IQ== 0\r\nIg== 1\r\n", "tiktoken"),
        (b"\xef\xbb\xbfIQ== 0\n", "tiktoken"),
        (b"", "empty"),
        (b" \n\n", "empty"),
        (b"\xef\xbb\xbf", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 499723\n", "Git LFS"),
        (b"<!DOCTYPE html>\n<html>", "web page"),
        (b"\n<HTML><body>Not found", "web page"),
        (b"PK\x03\x04\x00\x00", "packed"),
        (b"\x1f\x8b\x08\x00", "packed"),
        (&utf16, "UTF-16"),
        (b"[1, 2]", "no object"),
        (b"Entry not found", "it is text"),
        (b"{\"a\": 1}", "no model"),
    ] {
        fs::write(&path, content).unwrap();
        let error = Tokenizer::open(&path).unwrap_err();
        assert!(matches!(error, Error::BadFile { .. }), "{error}");
        assert!(error.to_string().contains(words) && !error.to_string().contains("wire type"), "{words}: {error}");
    }
    // A byte order mark before JSON, here and beside it.
    let with_mark = |bytes: &[u8]| [b"\xef\xbb\xbf", bytes].concat();
    let plain = Tokenizer::from_json(&json, Path::new("t")).unwrap();
    let beside = dir.path().join("tokenizer_config.json");
    for (name, bytes) in [("tokenizer.json", with_mark(&json)), ("a.json", [&b"\n  "[..], &json].concat())] {
        fs::write(dir.path().join(name), bytes).unwrap();
        fs::write(&beside, with_mark(b"{\"eos_token\": \"<unk>\"}")).unwrap();
        let tokenizer = Tokenizer::open(dir.path().join(name)).unwrap();
        assert_eq!((tokenizer.hash(), tokenizer.eos_id()), (plain.hash(), Some(0)), "{name}");
    }
    for (bad, words) in
        [("[]", "an object"), ("{", "not JSON"), ("{\"added_tokens_decoder\": {\"x\": \"y\"}}", "added_tokens_decoder")]
    {
        fs::write(&beside, bad).unwrap();
        let error = Tokenizer::open(dir.path().join("a.json")).unwrap_err().to_string();
        assert!(error.contains("tokenizer_config.json") && error.contains(words), "{error}");
    }
}

/// F20: a piece of U+0000 beside the 256 bytes, as sentencepiece 0.2.3 reads it: no text becomes it.
#[test]
fn a_piece_of_the_character_nul() {
    let model = fs::read(fault("llama.model")).unwrap();
    let piece = |text: &str, kind: u8| {
        let entry = [&[0x0a, text.len() as u8], text.as_bytes(), &[0x15], &(-1f32).to_le_bytes(), &[0x18, kind]].concat();
        [&model[..], &[0x0a, entry.len() as u8], &entry].concat()
    };
    let open = |bytes: &[u8]| Tokenizer::from_sentencepiece(bytes, Path::new("nul.model"));
    let n = open(&model).unwrap().vocab_size() as u32;
    for kind in [1, 3, 4, 5] {
        let tokenizer = open(&piece("\0", kind)).unwrap();
        assert_eq!(tokenizer.encode("x\0y a\0b").unwrap(), [348, 393, 3, 371, 348, 351, 3, 368], "type {kind}");
        assert_eq!(tokenizer.decode(&[5, n, 6]).unwrap(), "\u{2}\0\u{3}", "type {kind}");
        assert!(open(&piece("a\0b", kind)).unwrap_err().to_string().contains("NUL"), "type {kind}");
    }
}

/// F21: white space of any length is cut as the pattern says: all but the last character, which goes with the word after it.
#[test]
fn a_million_spaces() {
    let tokenizer = Tokenizer::open(fault("llama3.json")).unwrap();
    let long = |n: usize| format!("The old llama{}x end", " ".repeat(n));
    // As of a length that every engine can do: four tokens after the spaces, and twice as many spaces are twice the tokens.
    let short = tokenizer.encode(&long(2001)).unwrap();
    let (head, tail) = (tokenizer.encode("The old llama").unwrap(), &short[short.len() - 5..]);
    let spaces = tokenizer.encode(&" ".repeat(1000)).unwrap();
    assert!(spaces.iter().all(|id| tokenizer.decode(&[*id]).unwrap().trim().is_empty()));
    let got = tokenizer.encode(&long(1_100_001)).unwrap();
    assert_eq!(&got[..head.len()], head);
    assert_eq!(&got[got.len() - 5..], tail);
    assert_eq!(tokenizer.decode(&got).unwrap(), long(1_100_001));
    assert_eq!(got.iter().filter(|id| !spaces.contains(id)).count(), short.iter().filter(|id| !spaces.contains(id)).count());
}

/// F21: our way of cutting is that of `tokenizers`, for every pattern and every text that its engine can do.
#[test]
fn words_are_cut_as_tokenizers_cuts_them() {
    use proptest::prelude::*;
    let patterns = [
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s",
        r"\s?\p{L}+|\s?\p{P}+|\s+(?!\S)|\s+",
        r"(a|b)+|(\s\s)|\s+(?!\S)|\s+",
        r"x*|\s+(?!\S)|\s+",
        r"\s+(?!\S)|\s+",
        r"\s+(?!\S)",
        r"(?<=\s)\S|\s+",
        r"[\r\n]",
    ];
    let mut tokenizers = Vec::new();
    for pattern in patterns {
        for behavior in ["Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"] {
            for invert in [false, true] {
                let mut json = read_json("llama3.json");
                json["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
                    {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert},
                    {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]});
                tokenizers.push(json);
            }
        }
    }
    for add_prefix_space in [false, true] {
        let mut json = read_json("llama3.json");
        json["pre_tokenizer"] =
            json!({"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": true, "use_regex": true});
        tokenizers.push(json);
    }
    let pairs: Vec<(Tokenizer, tokenizers::Tokenizer)> = tokenizers
        .into_iter()
        .map(|json| {
            let text = json.to_string();
            let mut theirs = tokenizers::Tokenizer::from_bytes(&text).unwrap();
            theirs.set_encode_special_tokens(true);
            (Tokenizer::from_json(text.as_bytes(), Path::new("t")).unwrap(), theirs)
        })
        .collect();
    let part = prop_oneof![
        proptest::sample::select(vec![
            " ",
            "  ",
            "   ",
            "\n",
            "\r\n",
            "\t",
            "\u{a0}",
            "\u{3000}",
            "\u{2003} ",
            "'s",
            "'LL",
            "12345",
            "x",
            "a",
            "b",
            "?!"
        ]),
        proptest::sample::select(vec![
            "The",
            " old",
            "llama",
            "\u{e9}t\u{e9}",
            "\u{65e5}\u{672c}",
            "\u{1f999}",
            "'",
            "\u{200b}",
            "\u{301}"
        ]),
    ];
    let texts = proptest::collection::vec(part, 0..14).prop_map(|parts| parts.concat());
    proptest!(ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() }, |(text in texts)| {
        for (ours, theirs) in &pairs {
            let theirs = theirs.encode_fast(text.as_str(), false).unwrap();
            prop_assert_eq!(ours.encode(&text).unwrap(), theirs.get_ids(), "{:?}", text);
        }
    });
}

/// A pattern that cannot be cut in linear time: an error, never another cutting.
#[test]
fn a_text_that_cannot_be_cut_is_an_error() {
    let mut json = read_json("llama3.json");
    json["pre_tokenizer"]["pretokenizers"][0] =
        json!({"type": "Split", "pattern": {"Regex": r"(?=x)x|\s+(?!\S)"}, "behavior": "Isolated", "invert": false});
    let tokenizer = Tokenizer::from_json(json.to_string().as_bytes(), Path::new("t")).unwrap();
    assert!(tokenizer.encode("the   old").is_ok());
    let error = tokenizer.encode(&format!("the {} old", " ".repeat(2_000_000))).unwrap_err().to_string();
    assert!(error.contains("\"the  ") && error.contains("cannot be encoded"), "{error}");
}

/// F24: tokenizers without an unknown token that they could use are read, as `tokenizers` does; only text that needs it is an error.
#[test]
fn unknown_tokens_that_are_not_there() {
    let mut byte_level = read_json("llama3.json");
    byte_level["model"]["unk_token"] = json!("<|end_of_text|>");
    let vocab = json!({"a": 0, "b": 1});
    let level = |model: Value| json!({"version": "1.0", "added_tokens": [], "model": model});
    let unigram = |id: Value| level(json!({"type": "Unigram", "unk_id": id, "vocab": [["a", -1.0], ["b", -2.0], ["ab", -2.5]]}));
    for (name, json, good, bad) in [
        ("unk_token among added tokens", byte_level, "a\u{1f999}", None),
        ("unigram without unk_id", unigram(Value::Null), "abab", Some("xab")),
        ("word level", level(json!({"type": "WordLevel", "unk_token": "<unk>", "vocab": vocab})), "a", Some("xa")),
        ("byte pairs", level(json!({"type": "BPE", "unk_token": "<unk>", "vocab": vocab, "merges": []})), "abba", Some("xa")),
    ] {
        let text = json.to_string();
        let tokenizer = Tokenizer::from_json(text.as_bytes(), Path::new(name)).unwrap();
        let theirs = tokenizers::Tokenizer::from_bytes(&text).unwrap();
        assert_eq!(tokenizer.encode(good).unwrap(), theirs.encode_fast(good, false).unwrap().get_ids(), "{name}");
        if let Some(bad) = bad {
            assert!(theirs.encode_fast(bad, false).is_err(), "{name}");
            let error = tokenizer.encode(bad).unwrap_err().to_string();
            assert!(error.contains(bad) && tokenizer.encode_document(bad, true, true).is_err(), "{name}: {error}");
        }
    }
    assert!(
        Tokenizer::from_json(unigram(json!(3)).to_string().as_bytes(), Path::new("t")).is_err(),
        "an unk_id that is no token"
    );
}

/// F24: two tokens of one id: the same ones every time, and as in `tokenizers` the added one is it.
#[test]
fn two_tokens_of_one_id() {
    let mut json = read_json("llama2.json");
    json["model"]["vocab"]["</s>"].take();
    json["model"]["vocab"].as_object_mut().unwrap().retain(|_, id| !id.is_null());
    json["model"]["vocab"]["<|end|>"] = json!(2);
    json["added_tokens"] = json!([{"id": 2, "content": "<|end|>", "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false}]);
    json["model"]["vocab"]["\u{2581}old"] = json!(2);
    let text = json.to_string();
    let theirs = tokenizers::Tokenizer::from_bytes(&text).unwrap();
    for _ in 0..8 {
        let tokenizer = Tokenizer::from_json(text.as_bytes(), Path::new("t")).unwrap();
        for token in ["<|end|>", "\u{2581}old"] {
            assert_eq!(tokenizer.id_of(token), theirs.token_to_id(token), "{token}");
        }
        assert_eq!(tokenizer.token_of(2), theirs.id_to_token(2));
    }
}

/// What is kept in the given folder, with the values that the reference gives there.
#[test]
fn the_cases_given() {
    let Some(cases) = crate::common::outside("RECUA_FAULTS", "model/cases") else { return };
    let at = |name: &str| Tokenizer::open(cases.join(name)).unwrap();
    let added = at("addcfg");
    assert_eq!((added.eos_id(), added.bos_id()), (Some(426), Some(420)));
    assert_eq!(added.encode_with_special("<|im_start|>a").unwrap(), [425, 64]);
    assert!(at("bos_smollm").prefix().is_empty());
    let spaces = at("tok_l3").encode(&format!("The old llama{}x end", " ".repeat(1_100_000))).unwrap();
    assert_eq!(&spaces[spaces.len() - 8..], [319, 319, 220, 419, 220, 68, 77, 67]);
    assert!(Tokenizer::open(cases.join("tiktoken")).unwrap_err().to_string().contains("tiktoken"));
    assert!(Tokenizer::open(cases.join("tiktoken/e.model")).unwrap_err().to_string().contains("empty"));
    assert!(Tokenizer::open(cases.join("tiktoken/bom.json")).is_ok());
    let (bos, eos) = (at("gap").bos_id(), at("gap").eos_id());
    assert!((0..8).all(|_| (at("gap").bos_id(), at("gap").eos_id()) == (bos, eos)));
}
