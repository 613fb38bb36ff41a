//! Tokenizers: lossless training, SentencePiece against its own oracle rows, `tokenizer.json`, damaged files.

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use recua::error::Error;
use recua::tokenizer::{Tokenizer, TrainConfig};
use serde_json::Value;

use crate::common::outside;

const SPECIALS: [&str; 10] = ["<s>", "</s>", "<unk>", "<0x41>", "<0xFF>", "<0x0A>", "<|begin_of_text|>", "<s", "0x41>", "[INST]"];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// Source code and prose with digits, indentation, other scripts and U+2581.
fn corpus() -> Vec<String> {
    let mut docs = Vec::new();
    for i in 0..300_u32 {
        docs.push(format!(
            "fn caravan_{i}(llamas: &[Llama], salt: usize) -> Option<u32> {{\n    let mut total = {};\n    for llama in llamas {{\n        \
             total += llama.load(salt) * {i};\n    }}\n    (total > 0).then_some(total)\n}}\n\n",
            i * 7919
        ));
        docs.push("Die Karawane zog \u{fc}ber den Pa\u{df}; \u{65e5}\u{672c}\u{8a9e} \u{2581}\u{2581} caf\u{e9} <s> it's </s>.\r\n\t\u{1f999}".into());
    }
    docs
}

fn trained(vocab_size: usize) -> Tokenizer {
    Tokenizer::train(corpus().into_iter(), &TrainConfig { vocab_size, ..Default::default() }).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let mut stream = tokenizer.decode_stream();
    let mut text: String = ids.iter().filter_map(|id| stream.push(*id)).collect();
    text.extend(stream.finish());
    text
}

/// Strings of what tokenizers get wrong.
fn nasty() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        4 => proptest::sample::select(vec![" ", "  ", "        ", "\u{2581}", "\u{2581}\u{2581}", "\n", "\r\n", "\n    ", "\t", "\0", "\u{1}", "\u{7f}"])
            .prop_map(String::from),
        2 => proptest::sample::select(SPECIALS.to_vec()).prop_map(String::from),
        3 => proptest::sample::select(vec!["llama", " total", "fn ", "Pa\u{df}", "\u{65e5}\u{672c}", "caf\u{e9}", "1984", "it's", "->", "::", "{\n"])
            .prop_map(String::from),
        2 => proptest::sample::select(vec![
            "\u{301}", "e\u{301}", "\u{d7ff}", "\u{e000}", "\u{ffff}", "\u{10ffff}", "\u{feff}", "\u{fffd}", "\u{200d}", "\u{1f999}", "\u{85}", "\u{a0}",
            "\u{2028}", "\u{3000}", "\u{664}", "\u{b2}", "\u{2161}", "\u{1d7d8}", "\u{202e}"])
            .prop_map(String::from),
        1 => any::<char>().prop_map(String::from),
        1 => "[0-9 ]{1,4}",
    ];
    proptest::collection::vec(part, 0..10).prop_map(|parts| parts.concat())
}

#[test]
fn trained_round_trip_of_100_000_strings() {
    let tokenizers = [trained(260), trained(350), trained(2000)];
    let mut runner = TestRunner::new(Config { cases: 100_000, failure_persistence: None, ..Config::default() });
    let turn = std::cell::Cell::new(0);
    runner
        .run(&nasty(), |text| {
            turn.set((turn.get() + 1) % tokenizers.len());
            let tokenizer = &tokenizers[turn.get()];
            let ids = tokenizer.encode(&text).unwrap();
            prop_assert!(
                ids.iter().all(|id| (3..tokenizer.vocab_size() as u32).contains(id)),
                "special or unknown id in {:?}",
                ids
            );
            let decoded = tokenizer.decode(&ids).unwrap();
            prop_assert_eq!(decoded, text.as_str());
            prop_assert_eq!(streamed(tokenizer, &ids), text.as_str());
            Ok(())
        })
        .unwrap();
}

#[test]
fn trained_ids_are_those_of_the_tokenizers_crate() {
    let tokenizer = trained(420);
    let dir = tempfile::tempdir().unwrap();
    tokenizer.save(dir.path()).unwrap();
    let mut peer = tokenizers::Tokenizer::from_file(dir.path().join("tokenizer.json")).unwrap();
    peer.set_encode_special_tokens(true);
    let mut runner = TestRunner::new(Config { cases: 5_000, failure_persistence: None, ..Config::default() });
    runner
        .run(&nasty(), |text| {
            let expected = peer.encode(text.as_str(), false).unwrap();
            prop_assert_eq!(tokenizer.encode(&text).unwrap(), expected.get_ids());
            Ok(())
        })
        .unwrap();
    for doc in corpus() {
        let expected = peer.encode(doc.as_str(), false).unwrap();
        assert_eq!(tokenizer.encode(&doc).unwrap(), expected.get_ids());
        peer.set_encode_special_tokens(false);
        assert_eq!(tokenizer.encode_with_special(&doc).unwrap(), peer.encode(doc.as_str(), false).unwrap().get_ids());
        peer.set_encode_special_tokens(true);
    }
}

#[test]
fn trained_vocabulary_has_llamas_layout() {
    let tokenizer = trained(420);
    assert_eq!(tokenizer.vocab_size(), 420);
    for (id, token) in [(0, "<unk>"), (1, "<s>"), (2, "</s>"), (3, "<0x00>"), (258, "<0xFF>")] {
        assert_eq!(tokenizer.id_of(token), Some(id));
        assert_eq!(tokenizer.token_of(id).as_deref(), Some(token));
    }
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_id()), (Some(1), Some(2)));
    assert_eq!(tokenizer.token_of(420), None);
    for text in ["1234567890", " 42", "x1y2"] {
        let digits = text.chars().filter(|c| c.is_numeric()).count();
        let tokens: Vec<String> =
            tokenizer.encode(text).unwrap().into_iter().map(|id| tokenizer.decode(&[id]).unwrap()).collect();
        assert_eq!(
            tokens.iter().filter(|t| t.chars().count() == 1 && t.chars().all(char::is_numeric)).count(),
            digits,
            "{tokens:?}"
        );
    }
    let learned: Vec<String> = (259..420).filter_map(|id| tokenizer.token_of(id)).collect();
    assert!(learned.iter().all(|t| t.chars().count() == 1 || !t.contains(char::is_numeric)));
    assert!(
        learned.iter().any(|t| t.len() > 3 && t.bytes().all(|b| b == b' ' || b == b'\n')),
        "no indentation learned: {learned:?}"
    );
    assert!(learned.contains(&" llama".to_string()));
}

#[test]
fn special_tokens_are_text_unless_asked() {
    let tokenizer = trained(420);
    let text = "<s> llama</s><unk><0x41>";
    assert!(tokenizer.encode(text).unwrap().iter().all(|id| *id > 2));
    let with = tokenizer.encode_with_special(text).unwrap();
    assert_eq!(with.iter().filter(|id| **id <= 2).copied().collect::<Vec<_>>(), [1, 2, 0]);
    assert_eq!(tokenizer.decode(&with).unwrap(), " llama<0x41>");
    assert_eq!(tokenizer.decode_with_special(&with).unwrap(), text);
    let document = tokenizer.encode_document("llama", true, true).unwrap();
    assert_eq!((document[0], document[document.len() - 1]), (1, 2));
    assert_eq!(document[1..document.len() - 1], tokenizer.encode("llama").unwrap());
    assert!(tokenizer.encode_document("", false, false).unwrap().is_empty());
}

#[test]
fn training_is_deterministic_and_saving_keeps_everything() {
    let dir = tempfile::tempdir().unwrap();
    let config = TrainConfig { vocab_size: 400, ..Default::default() };
    let a = Tokenizer::train(corpus().into_iter(), &config).unwrap();
    let b = Tokenizer::train(corpus().into_iter().rev(), &config).unwrap();
    let (one, two) = (dir.path().join("a.json"), dir.path().join("b.json"));
    a.save(&one).unwrap();
    b.save(&two).unwrap();
    assert_eq!(std::fs::read(&one).unwrap(), std::fs::read(&two).unwrap());
    let again = Tokenizer::open(&one).unwrap();
    assert_eq!(again.hash(), a.hash());
    assert_ne!(trained(401).hash(), a.hash());
    for doc in corpus() {
        assert_eq!(again.encode(&doc).unwrap(), a.encode(&doc).unwrap());
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "temporary files left");
    assert!(matches!(a.save(dir.path().join("x.model")), Err(Error::BadValue { .. })));
}

#[test]
fn unusable_input_is_an_error() {
    let train = |docs: &[&str], vocab_size| {
        Tokenizer::train(
            docs.iter().map(|d| d.to_string()).collect::<Vec<_>>().into_iter(),
            &TrainConfig { vocab_size, ..Default::default() },
        )
    };
    assert!(matches!(train(&["llama llama"], 259), Err(Error::BadValue { .. })));
    assert!(matches!(train(&["llama llama"], usize::MAX), Err(Error::BadValue { .. })));
    assert!(matches!(train(&[], 300), Err(Error::Nothing { .. })));
    assert!(matches!(train(&["", ""], 300), Err(Error::Nothing { .. })));
    let small = train(&["llama llama"], 32_000).unwrap();
    assert!((260..280).contains(&small.vocab_size()), "{}", small.vocab_size());
    assert!(matches!(small.decode(&[1, 32_000]), Err(Error::BadValue { .. })));
    assert!(matches!(small.decode(&[u32::MAX]), Err(Error::BadValue { .. })));
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(Tokenizer::open(dir.path()), Err(Error::Nothing { .. })));
    assert!(matches!(Tokenizer::open(dir.path().join("none.json")), Err(Error::Io { .. })));
    for (name, bytes) in [("a.json", &b"{}"[..]), ("b.json", b"{\"model\": 3"), ("c.model", b"\xff\xff\xff"), ("d.model", b"")] {
        std::fs::write(dir.path().join(name), bytes).unwrap();
        assert!(matches!(Tokenizer::open(dir.path().join(name)), Err(Error::BadFile { .. })), "{name}");
    }
}

#[test]
fn a_long_line_takes_linear_time() {
    let tokenizer = trained(420);
    let long = |mb: usize| ["llama", " ", "{", "\u{2581}", "llama total "].map(|s| s.repeat(mb * 1_000_000 / s.len()));
    for text in long(2) {
        // Anything quadratic does not come to an end.
        let ids = tokenizer.encode(&text).unwrap();
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    }
}

#[test]
fn streaming_never_splits_a_character() {
    let tokenizer = trained(300);
    let text = "a\u{1f999}\u{65e5}z";
    let mut stream = tokenizer.decode_stream();
    let parts: Vec<String> = tokenizer.encode(text).unwrap().into_iter().filter_map(|id| stream.push(id)).collect();
    assert_eq!(parts.concat(), text);
    assert!(parts.len() >= 4);
    let llama = [3 + 0xF0, 3 + 0x9F, 3 + 0xA6];
    let mut stream = tokenizer.decode_stream();
    assert!(llama.iter().all(|id| stream.push(*id).is_none()));
    assert_eq!(stream.finish().as_deref(), Some("\u{fffd}\u{fffd}\u{fffd}"));
    assert_eq!(tokenizer.decode(&llama).unwrap(), "\u{fffd}\u{fffd}\u{fffd}");
    assert_eq!(tokenizer.decode(&[3 + 0x9F, 3 + b'a' as u32]).unwrap(), "\u{fffd}a");
}

#[test]
fn sentencepiece_models_give_the_originals_ids_and_text() {
    let mut models = 0;
    for entry in std::fs::read_dir(golden("sp")).unwrap() {
        let model = entry.unwrap().path();
        if model.extension().is_none_or(|e| e != "model") {
            continue;
        }
        models += 1;
        let oracle: Value = serde_json::from_slice(&std::fs::read(model.with_extension("json")).unwrap()).unwrap();
        let tokenizer = Tokenizer::open(&model).unwrap();
        assert_eq!(tokenizer.vocab_size() as u64, oracle["size"].as_u64().unwrap());
        assert_eq!(tokenizer.bos_id().map_or(-1, i64::from), oracle["bos"].as_i64().unwrap());
        assert_eq!(tokenizer.eos_id().map_or(-1, i64::from), oracle["eos"].as_i64().unwrap());
        for row in oracle["rows"].as_array().unwrap() {
            assert_eq!(tokenizer.encode(row["text"].as_str().unwrap()).unwrap(), ids(&row["ids"]), "{}: {row}", model.display());
        }
        for row in oracle["rows"].as_array().unwrap().iter().chain(oracle["lists"].as_array().unwrap()) {
            assert_eq!(
                tokenizer.decode(&ids(&row["ids"])).unwrap(),
                row["decoded"].as_str().unwrap(),
                "{}: {row}",
                model.display()
            );
            assert_eq!(streamed(&tokenizer, &ids(&row["ids"])), row["decoded"].as_str().unwrap(), "{}: {row}", model.display());
        }
        let dir = tempfile::tempdir().unwrap();
        tokenizer.save(dir.path()).unwrap();
        assert_eq!(Tokenizer::open(dir.path()).unwrap().hash(), tokenizer.hash());
        assert!(matches!(tokenizer.save(dir.path().join("tokenizer.json")), Err(Error::BadValue { .. })));
    }
    assert!(models >= 7);
}

#[test]
fn llamas_own_model_gives_sentencepieces_ids_and_text() {
    let Some(model) = outside("RECUA_DATA", "models/tokenizer.model") else { return };
    let tokenizer = Tokenizer::open(model).unwrap();
    assert_eq!((tokenizer.vocab_size(), tokenizer.bos_id(), tokenizer.eos_id()), (32_000, Some(1), Some(2)));
    let oracle: Value = serde_json::from_slice(&std::fs::read(golden("oracles/sentencepiece.json")).unwrap()).unwrap();
    let rows = oracle["rows"].as_array().unwrap();
    for row in rows {
        let (text, expected) = (row["text"].as_str().unwrap(), ids(&row["ids"]));
        assert_eq!(tokenizer.encode(text).unwrap(), expected, "{text:?}");
        assert_eq!(tokenizer.decode(&expected).unwrap(), row["decoded"].as_str().unwrap());
        assert_eq!(streamed(&tokenizer, &expected), row["decoded"].as_str().unwrap());
    }
    println!("{} rows", rows.len());
}

/// A `tokenizer.json` in the style of Llama 3: byte-level, look-ahead in the pattern, special tokens beyond the vocabulary.
fn llama3_style() -> Value {
    let pattern =
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let mut alphabet: Vec<char> = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let mut vocab = serde_json::Map::new();
    for token in alphabet.iter().map(char::to_string).chain(["ll".into(), "lla".into(), "\u{120}lla".into()]) {
        vocab.insert(token, vocab.len().into());
    }
    let n = vocab.len();
    let special = |id: usize, content: &str| serde_json::json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    let byte_level =
        |add: bool| serde_json::json!({"type": "ByteLevel", "add_prefix_space": add, "trim_offsets": true, "use_regex": false});
    serde_json::json!({
        "version": "1.0", "truncation": {"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}, "padding": null,
        "added_tokens": [special(n, "<|begin_of_text|>"), special(n + 1, "<|end_of_text|>")],
        "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false}, byte_level(false)]},
        "post_processor": null, "decoder": byte_level(true),
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "ignore_merges": true, "vocab": vocab,
            "merges": [["l", "l"], ["ll", "a"], ["\u{120}", "lla"]]}
    })
}

#[test]
fn llama3_style_json() {
    let json = llama3_style();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
    let tokenizer = Tokenizer::open(dir.path()).unwrap();
    let (bos, eos) = (tokenizer.id_of("<|begin_of_text|>").unwrap(), tokenizer.id_of("<|end_of_text|>").unwrap());
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_id()), (Some(bos), Some(eos)));
    assert_eq!(tokenizer.vocab_size(), 256 + 3 + 2);
    let text = "<|begin_of_text|> lla\u{1f999}  x<|end_of_text|>";
    let plain = tokenizer.encode(text).unwrap();
    assert!(plain.iter().all(|id| *id != bos && *id != eos) && plain.contains(&tokenizer.id_of("\u{120}lla").unwrap()));
    assert_eq!(tokenizer.decode(&plain).unwrap(), text);
    assert_eq!(streamed(&tokenizer, &plain), text);
    let special = tokenizer.encode_with_special(text).unwrap();
    assert_eq!((special[0], special[special.len() - 1]), (bos, eos));
    assert_eq!(tokenizer.decode(&special).unwrap(), " lla\u{1f999}  x");
    assert_eq!(tokenizer.decode_with_special(&special).unwrap(), text);
    assert!(matches!(tokenizer.decode(&[eos + 1]), Err(Error::BadValue { .. })));

    let config = serde_json::json!({"bos_token": {"content": "lla"}, "eos_token": "ll"});
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    let named = Tokenizer::open(dir.path()).unwrap();
    assert_eq!((named.bos_id(), named.eos_id()), (named.id_of("lla"), named.id_of("ll")));
    let copy = tempfile::tempdir().unwrap();
    named.save(copy.path()).unwrap();
    let copy = Tokenizer::open(copy.path()).unwrap();
    assert_eq!((copy.bos_id(), copy.eos_id(), copy.hash()), (named.bos_id(), named.eos_id(), named.hash()));
}

#[test]
fn llama2_style_json() {
    let mut vocab = serde_json::Map::new();
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).to_vec();
    tokens.extend((0..=255).map(|b| format!("<0x{b:02X}>")));
    tokens.extend(["\u{2581}", "l", "a", "m", "la", "\u{2581}la"].map(String::from));
    for token in tokens {
        vocab.insert(token, vocab.len().into());
    }
    let special = |id: usize, content: &str| serde_json::json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u{2581}"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"}]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": 0.5, "unk_token": "<unk>", "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": true, "byte_fallback": true, "vocab": vocab, "merges": ["l a", "\u{2581} la"]}
    });
    let tokenizer = Tokenizer::from_json(json.to_string().as_bytes(), Path::new("llama2")).unwrap();
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.vocab_size()), (Some(1), Some(2), 265));
    for text in ["lama", " la", "la <s>", "\u{1f999}\n", "la  la"] {
        let ids = tokenizer.encode(text).unwrap();
        assert!(ids.iter().all(|id| *id > 2), "{text:?}: {ids:?}");
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        assert_eq!(streamed(&tokenizer, &ids), text);
        assert_eq!(tokenizer.encode(text).unwrap(), ids);
    }
    assert_eq!(tokenizer.encode("la").unwrap(), [264]);
    assert_eq!(tokenizer.encode_with_special("<s>la").unwrap()[0], 1);
}

/// A small change somewhere: a bit, a byte, a piece cut out or doubled, the rest gone.
fn damage(bytes: &[u8], (kind, at, with): (u8, usize, u8)) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let at = at % bytes.len();
    let end = (at + usize::from(with)).min(bytes.len());
    match kind % 5 {
        0 => bytes[at] ^= 1 << (with % 8),
        1 => bytes[at] = with,
        2 => bytes.truncate(at),
        3 => drop(bytes.drain(at..end)),
        _ => bytes.splice(at..at, bytes[at..end].to_vec()).for_each(drop),
    }
    bytes
}

#[test]
fn damaged_files_never_panic() {
    let dir = tempfile::tempdir().unwrap();
    trained(264).save(dir.path()).unwrap();
    let json = std::fs::read(dir.path().join("tokenizer.json")).unwrap();
    let foreign = llama3_style().to_string().into_bytes();
    let models = ["bpe_rules", "unigram_bytes", "unigram_rules"]
        .map(|m| std::fs::read(golden("sp").join(m).with_extension("model")).unwrap());
    let change = || proptest::collection::vec((any::<u8>(), any::<usize>(), any::<u8>()), 1..4);
    let check = |cases: u32, files: &[Vec<u8>], open: &dyn Fn(&[u8]) -> recua::error::Result<Tokenizer>| {
        let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
        let loaded = std::cell::Cell::new(0);
        runner
            .run(&(0..files.len(), change()), |(file, changes)| {
                let bytes = changes.into_iter().fold(files[file].clone(), |b, c| if b.is_empty() { b } else { damage(&b, c) });
                if let Ok(tokenizer) = open(&bytes) {
                    loaded.set(loaded.get() + 1);
                    // Text for which a damaged file has no token is an error.
                    if let Ok(ids) = tokenizer.encode(" llama\u{2581}\u{1f999} 42 <sep> the\u{fb01}ne\0<s>") {
                        tokenizer.decode(&ids).unwrap();
                    }
                    let _ = tokenizer.encode_with_special("<s>llama");
                }
                Ok(())
            })
            .unwrap();
        assert!(loaded.get() > 0 && loaded.get() < cases, "{} of {cases} loaded", loaded.get());
    };
    let cases = |usual| std::env::var("RECUA_FUZZ").ok().and_then(|n| n.parse().ok()).unwrap_or(usual);
    check(cases(60_000), &models, &|bytes| Tokenizer::from_sentencepiece(bytes, Path::new("damaged")));
    check(cases(20_000), &[json], &|bytes| Tokenizer::from_json(bytes, Path::new("damaged")));
    check(cases(20_000), &[foreign], &|bytes| Tokenizer::from_json(bytes, Path::new("damaged")));
}
