//! Faults that were found in generation and on the command line: how a prompt begins, what ends a text, what is shown of it, and
//! results that cannot be written. Expected values are those of transformers and sentencepiece (`tests/faults/make.py`), or follow
//! from a model whose next token is known.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use proptest::prelude::*;
use recua::backend::BackendName;
use recua::checkpoint::{self, Checkpoint, Dtype, Format, SaveOptions, Tensor, TensorInfo, TensorSource};
use recua::eval::Scorer;
use recua::generate::{Bos, Engine, EngineConfig, Request, SampleConfig, Sampler, encode_prompt, end_ids};
use recua::model::ModelConfig;
use recua::tokenizer::{Tokenizer, TrainConfig};
use recua::{Error, Result};
use serde_json::{Value, json};
use tempfile::TempDir;

pub(crate) fn faults(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults").join(name)
}

pub(crate) fn open(name: &str) -> Tokenizer {
    Tokenizer::open(faults(name)).unwrap()
}

/// A tokenizer of each kind: ours, SentencePiece's, and foreign ones with their decoders.
fn kinds() -> Vec<(&'static str, Tokenizer)> {
    let texts = ["a llama walks home", "two llamas walk home in 1984", "der Pa\u{df}"].map(String::from);
    let ours = Tokenizer::train(texts.into_iter(), &TrainConfig { vocab_size: 290, ..Default::default() }).unwrap();
    let mut all = vec![("ours", ours)];
    all.extend(["llama.model", "llama2.json", "llama3.json", "smollm.json"].map(|name| (name, open(name))));
    all
}

#[test]
fn prompts_begin_as_the_tokenizers_file_says() {
    let cases: Vec<Value> = serde_json::from_slice(&std::fs::read(faults("prompts.json")).unwrap()).unwrap();
    assert!(cases.len() > 20);
    for case in &cases {
        let name = case["tokenizer"].as_str().unwrap();
        let bytes = std::fs::read(faults(name)).unwrap();
        let tokenizer = if name.ends_with(".model") {
            open(name)
        } else {
            let mut json: Value = serde_json::from_slice(&bytes).unwrap();
            json["post_processor"] = case["post_processor"].clone();
            Tokenizer::from_json(json.to_string().as_bytes(), Path::new(name)).unwrap()
        };
        for prompt in case["prompts"].as_array().unwrap() {
            let (text, special) = (prompt["text"].as_str().unwrap(), prompt["special"].as_bool().unwrap());
            let expected: Vec<u32> = serde_json::from_value(prompt["ids"].clone()).unwrap();
            let got = |bos| encode_prompt(&tokenizer, text, bos, special).unwrap();
            let at = format!("{name}, {}, {text:?}, special {special}", case["name"]);
            let bare = got(Bos::Never);
            match expected.is_empty() {
                false => assert_eq!(got(Bos::Auto), expected, "{at}"),
                true => assert_eq!(got(Bos::Auto), [tokenizer.bos_id().unwrap()], "{at}: nothing to go on from"),
            }
            let bos = tokenizer.bos_id().unwrap();
            assert_eq!(got(Bos::Always), [&[bos], &bare[..]].concat(), "{at}");
            assert!(expected.ends_with(&bare), "{at}");
        }
    }
}

#[test]
fn a_prompt_that_begins_with_bos_gets_no_second_one() {
    let tokenizer = open("llama2.json");
    let bos = tokenizer.bos_id().unwrap();
    let ids = encode_prompt(&tokenizer, "<s>The", Bos::Auto, true).unwrap();
    assert_eq!(ids.iter().filter(|id| **id == bos).count(), 1);
    assert_eq!(ids[0], bos);
    let text = encode_prompt(&tokenizer, "<s>The", Bos::Auto, false).unwrap();
    assert_eq!((text[0], text[1..].contains(&bos)), (bos, false), "without --special it is text");
    let ours = Tokenizer::train(
        ["a llama".to_string()].into_iter(),
        &TrainConfig { vocab_size: 262, min_frequency: 1, ..Default::default() },
    )
    .unwrap();
    assert_eq!(encode_prompt(&ours, "a", Bos::Auto, false).unwrap()[0], ours.bos_id().unwrap());
}

/// A tokenizer that we train says in its file what is put before a text, so that other programs do so too; and it stays ours.
#[test]
fn trained_tokenizers_state_their_bos() {
    let dir = tempfile::tempdir().unwrap();
    let (_, ours) = kinds().remove(0);
    ours.save(dir.path()).unwrap();
    let path = dir.path().join("tokenizer.json");
    let json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(json["post_processor"]["single"][0]["SpecialToken"]["id"], "<s>");
    // Of the reference's own reading of the file.
    let reference = tokenizers::Tokenizer::from_file(&path).unwrap();
    let text = "two llamas";
    let expected = reference.encode(text, true).unwrap().get_ids().to_vec();
    let again = Tokenizer::open(&path).unwrap();
    assert_eq!(again.hash(), ours.hash());
    assert_eq!(encode_prompt(&again, text, Bos::Auto, false).unwrap(), expected);
    // Files of before have no post_processor: the same ids, the same hash.
    let mut before = json.clone();
    before["post_processor"] = Value::Null;
    let before = Tokenizer::from_json(before.to_string().as_bytes(), &path).unwrap();
    assert_eq!(before.hash(), ours.hash());
    assert_eq!(encode_prompt(&before, text, Bos::Auto, false).unwrap(), expected);
}

/// What `push` and `finish` give of `ids` after `prompt`.
fn streamed(tokenizer: &Tokenizer, prompt: &[u32], ids: &[u32]) -> String {
    let mut stream = tokenizer.decode_stream_after(prompt);
    let mut text: String = ids.iter().filter_map(|id| stream.push(*id)).collect();
    text.extend(stream.finish());
    text
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// decode(prompt) + shown text = decode(all), for every kind of tokenizer, whatever the ids.
    #[test]
    fn prompt_and_shown_text_are_the_text_of_all(
        prompt in proptest::sample::select(vec!["", "The old", " The old llama walks", "walks  home.", "1984\n"]),
        draws in proptest::collection::vec((any::<u32>(), any::<bool>()), 0..24),
    ) {
        for (name, tokenizer) in kinds() {
            let size = tokenizer.vocab_size() as u32;
            let prompt = encode_prompt(&tokenizer, prompt, Bos::Auto, false).unwrap();
            // Half of them out of the first 300 ids, where the byte tokens are; some beyond the vocabulary.
            let ids: Vec<u32> = draws.iter().map(|(n, low)| n % if *low { 300 } else { size + 8 }).collect();
            let known: Vec<u32> = ids.iter().copied().filter(|id| tokenizer.has_token(*id)).collect();
            let all = tokenizer.decode(&[&prompt[..], &known[..]].concat()).unwrap();
            let before = tokenizer.decode(&prompt).unwrap();
            prop_assert_eq!(&format!("{before}{}", streamed(&tokenizer, &prompt, &ids)), &all, "{} {:?}", name, ids);
            prop_assert_eq!(&format!("{before}{}", tokenizer.decode_after(&prompt, &ids).unwrap()), &all, "{} {:?}", name, ids);
            let alone = tokenizer.decode(&known).unwrap();
            prop_assert_eq!(streamed(&tokenizer, &[], &ids), alone, "{} {:?}", name, ids);
        }
    }

    /// Text that is text comes out as it went in, character by character, byte tokens and all.
    #[test]
    fn whole_characters_stream_as_they_are(text in "[a-z ]{1,6}[\u{e9}\u{65e5}\u{1f999} a-z]{0,40}") {
        for (name, tokenizer) in kinds() {
            let ids = tokenizer.encode(&text).unwrap();
            prop_assert_eq!(streamed(&tokenizer, &[], &ids), tokenizer.decode(&ids).unwrap(), "{} {:?}", name, ids);
        }
    }
}

/// A word beside bytes that form no character is shown (transformers' decode of all: `the` + U+FFFD twice + ` blo`).
#[test]
fn words_beside_broken_bytes_stay() {
    let tokenizer = open("llama2.json");
    let byte = |b: u8| tokenizer.id_of(&format!("<0x{b:02X}>")).unwrap();
    let id = |token: &str| tokenizer.id_of(token).unwrap();
    let ids = [&tokenizer.encode("the").unwrap()[..], &[byte(b'{'), byte(0xA0), id("\u{2581}b"), id("l"), id("o")]].concat();
    assert_eq!(streamed(&tokenizer, &[], &ids), "the\u{fffd}\u{fffd} blo");
    // A long row of byte tokens does not wait for its end.
    let mut stream = tokenizer.decode_stream();
    let row = "\u{1f999}".repeat(20);
    let early = row.bytes().filter_map(|b| stream.push(byte(b))).collect::<String>();
    assert!(early.len() >= 32 && row.starts_with(&early), "{early}");
    assert_eq!(early + &stream.finish().unwrap_or_default(), row);
}

/// A model whose likeliest next token is known: after `a` comes `b` for each pair of `next`. One layer that adds nothing; the
/// embeddings are the corners of a cube, and an output row is that of the token before it.
pub(crate) struct Script {
    pub(crate) config: ModelConfig,
    infos: Vec<TensorInfo>,
    next: HashMap<u32, u32>,
    /// Output row that is not a number.
    pub(crate) damaged: Option<(u32, f32)>,
}

pub(crate) const DIM: usize = 16;

impl Script {
    pub(crate) fn new(vocab_size: usize, next: &[(u32, u32)]) -> Self {
        let config =
            ModelConfig { dim: DIM, n_layers: 1, n_heads: 2, vocab_size, multiple_of: 8, max_seq_len: 64, ..Default::default() };
        let infos = config.parameters().into_iter().map(|(name, shape)| TensorInfo { name, shape, dtype: Dtype::F32 });
        Self { infos: infos.collect(), config, next: next.iter().copied().collect(), damaged: None }
    }

    fn corner(id: u32) -> [f32; DIM] {
        std::array::from_fn(|bit| if id >> bit & 1 == 1 { 1.0 } else { -1.0 })
    }

    pub(crate) fn save(&self, dir: &Path, tokenizer: &str) {
        checkpoint::save(dir, Format::Hf, &self.config, self, &SaveOptions::default()).unwrap();
        let name = if tokenizer.ends_with(".model") { "tokenizer.model" } else { "tokenizer.json" };
        std::fs::copy(faults(tokenizer), dir.join(name)).unwrap();
    }
}

impl TensorSource for Script {
    fn list(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn read(&self, name: &str) -> Result<Tensor<'_>> {
        let shape = self.infos.iter().find(|info| info.name == name).unwrap().shape.clone();
        let mut values = vec![0.0; shape.iter().product()];
        match name {
            "tok_embeddings.weight" => {
                (0..self.config.vocab_size).for_each(|id| values[id * DIM..][..DIM].copy_from_slice(&Self::corner(id as u32)));
            }
            "output.weight" => {
                for (before, after) in &self.next {
                    values[*after as usize * DIM..][..DIM].copy_from_slice(&Self::corner(*before));
                }
                if let Some((id, value)) = self.damaged {
                    values[id as usize * DIM..][..DIM].fill(value);
                }
            }
            name if name.ends_with("norm.weight") => values.fill(1.0),
            _ => {}
        }
        let bytes = Cow::Owned(values.into_iter().flat_map(f32::to_le_bytes).collect());
        Ok(Tensor { shape, dtype: Dtype::F32, bytes })
    }
}

/// Pairs that lead from a prompt's last token through `ids`.
pub(crate) fn chain(last: u32, ids: &[u32]) -> Vec<(u32, u32)> {
    let mut all = vec![last];
    all.extend(ids);
    all.windows(2).map(|pair| (pair[0], pair[1])).collect()
}

pub(crate) fn recua(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_recua"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(args: &[&str]) -> Output {
    recua(args).output().unwrap()
}

fn generate(model: &Path, more: &[&str], prompt: &str) -> Output {
    let model = model.to_str().unwrap();
    let mut args = vec!["generate", "--model", model, "--threads", "1"];
    if !more.contains(&"--temperature") {
        args.extend(["--temperature", "0"]);
    }
    args.extend(more);
    args.push(prompt);
    run(&args)
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into()
}

pub(crate) fn json_of(output: &Output) -> Value {
    assert!(output.status.success(), "{}", stderr(output));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn the_space_between_prompt_and_text_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = open("llama.model");
    let all = tokenizer.encode("The old llama walks").unwrap();
    let prompt = tokenizer.encode("The old").unwrap();
    assert!(all.starts_with(&prompt));
    let rest = &all[prompt.len()..];
    let model = dir.path().join("model");
    Script::new(tokenizer.vocab_size(), &chain(*prompt.last().unwrap(), rest)).save(&model, "llama.model");
    let n = rest.len().to_string();
    let shown = generate(&model, &["--tokens", &n], "The old");
    assert_eq!(String::from_utf8_lossy(&shown.stdout), "The old llama walks\n", "{}", stderr(&shown));
    let shown = json_of(&generate(&model, &["--tokens", &n, "--json"], "The old"));
    assert_eq!((&shown["prompt"], &shown["text"]), (&json!("The old"), &json!(" llama walks")));
}

#[test]
fn what_ends_a_text_is_what_the_files_name() {
    // generation_config.json, config.json, tokenizer_config.json -> the tokens that end; transformers' order.
    let cases = [
        (Some(json!([7, 9])), json!(5), vec![7, 9]),
        (Some(json!(9)), json!([5, 6]), vec![9]),
        (None, json!([5, 6]), vec![5, 6]),
        (None, json!(6), vec![6]),
        (None, Value::Null, vec![2]), // the tokenizer's
    ];
    for (generation, config, ends) in cases {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("model");
        let tokenizer = open("llama2.json");
        let last = *tokenizer.encode("The old").unwrap().last().unwrap();
        for end in ends {
            let _ = std::fs::remove_dir_all(&model);
            Script::new(tokenizer.vocab_size(), &chain(last, &[300, 301, end, 302])).save(&model, "llama2.json");
            edit(&model.join("config.json"), |json| json["eos_token_id"] = config.clone());
            let path = model.join("generation_config.json");
            match &generation {
                Some(ids) => std::fs::write(&path, json!({ "eos_token_id": ids }).to_string()).unwrap(),
                None => std::fs::remove_file(&path).unwrap(),
            }
            let _ = std::fs::remove_file(model.join("tokenizer_config.json"));
            let shown = json_of(&generate(&model, &["--tokens", "8", "--json"], "The old"));
            assert_eq!((&shown["tokens"], &shown["stop"]), (&json!([300, 301]), &json!("eos")), "{generation:?} {config} {end}");
            let checkpoint = Checkpoint::open(&model).unwrap();
            assert!(end_ids(Some(&checkpoint), &tokenizer).contains(&end));
        }
    }
}

pub(crate) fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut json: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    change(&mut json);
    std::fs::write(path, json.to_string()).unwrap();
}

#[test]
fn ids_without_a_token_are_left_out() {
    for name in ["llama2.json", "llama3.json", "llama.model"] {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = open(name);
        let size = tokenizer.vocab_size();
        let all = tokenizer.encode("The old llama walks").unwrap();
        let prompt = tokenizer.encode("The old").unwrap();
        let mut rest = all[prompt.len()..].to_vec();
        rest.insert(1, size as u32 + 3);
        let model = dir.path().join("model");
        Script::new(size + 8, &chain(*prompt.last().unwrap(), &rest)).save(&model, name);
        let n = rest.len().to_string();
        let shown = generate(&model, &["--tokens", &n, "--json"], "The old");
        assert!(stderr(&shown).contains("have no text"), "{name}: {}", stderr(&shown));
        let shown = json_of(&shown);
        assert_eq!((&shown["text"], &shown["tokens"]), (&json!(" llama walks"), &json!(rest)), "{name}");
        let shown = generate(&model, &["--tokens", &n], "The old");
        assert_eq!(String::from_utf8_lossy(&shown.stdout), "The old llama walks\n", "{name}");
    }
}

#[test]
fn what_is_no_number_is_an_error_and_no_text() {
    let tokenizer = open("llama2.json");
    let last = *tokenizer.encode("The old").unwrap().last().unwrap();
    for value in [f32::NAN, f32::INFINITY] {
        for temperature in ["0", "1"] {
            let dir = tempfile::tempdir().unwrap();
            let model = dir.path().join("model");
            let mut script = Script::new(tokenizer.vocab_size(), &chain(last, &[300, 301]));
            script.damaged = Some((340, value));
            script.save(&model, "llama2.json");
            let shown = generate(&model, &["--tokens", "3", "--json", "--temperature", temperature], "The old");
            assert_eq!((shown.status.code(), shown.stdout.len()), (Some(1), 0), "{value}: {}", stderr(&shown));
            assert!(stderr(&shown).contains("expected a finite number"), "{}", stderr(&shown));
            let checkpoint = Checkpoint::open(&model).unwrap();
            let mut scorer = Scorer::load(&checkpoint, &BackendName::default().open().unwrap()).unwrap();
            assert!(matches!(scorer.logprobs(&[1, last, 300]), Err(Error::NotFinite { .. })), "{value}");
        }
    }
    let mut sampler = Sampler::new(SampleConfig::default()).unwrap();
    let infinity = f32::INFINITY;
    for bad in [vec![0.0, f32::NAN], vec![infinity, 0.0], vec![-infinity, -infinity], vec![]] {
        assert!(matches!(sampler.sample(&mut bad.clone(), &[], &[], None, &[]), Err(Error::NotFinite { .. })), "{bad:?}");
    }
    // A token that is ruled out is none of that.
    assert_eq!(sampler.sample(&mut [-infinity, 1.0, -infinity], &[], &[], None, &[]).unwrap(), 1);
}

#[test]
fn tokenizers_with_special_tokens_beyond_the_model_are_taken() {
    let dir = tempfile::tempdir().unwrap();
    let (tokenizer, model) = (open("llama2.json"), dir.path().join("model"));
    let size = tokenizer.vocab_size();
    let last = *tokenizer.encode("The old").unwrap().last().unwrap();
    Script::new(size, &chain(last, &[300, 301])).save(&model, "llama2.json");
    let added = |special: bool| {
        let token = json!({"id": size, "content": "<pad>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": special});
        edit(&model.join("tokenizer.json"), |json| {
            let list = json["added_tokens"].as_array_mut().unwrap();
            list.retain(|token| token["content"] != "<pad>");
            list.push(token);
        });
    };
    added(true);
    assert_eq!(json_of(&generate(&model, &["--tokens", "2", "--json"], "The old"))["tokens"], json!([300, 301]));
    let refused = generate(&model, &["--tokens", "2", "--special"], "The <pad>old");
    assert!(stderr(&refused).contains(&format!("token {size} is outside")), "{}", stderr(&refused));
    added(false);
    let refused = generate(&model, &["--tokens", "2"], "The old");
    assert!(stderr(&refused).contains("vocabulary mismatch"), "{}", stderr(&refused));
}

#[test]
fn a_prompt_may_begin_with_a_hyphen() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    Script::new(open("llama2.json").vocab_size(), &[(0, 1)]).save(&model, "llama2.json");
    for prompt in ["- item", "-5 degrees", "-1", "-- the end", "-", "--set a", "- [ ] a=b"] {
        assert_eq!(json_of(&generate(&model, &["--tokens", "1", "--json"], prompt))["prompt"], prompt);
    }
    for slip in ["--tokns=3", "--jsn", "-x", "--temprature"] {
        let refused = generate(&model, &[], slip);
        assert_eq!(refused.status.code(), Some(2), "{slip}: {}", stderr(&refused));
    }
    assert_eq!(json_of(&generate(&model, &["--tokens", "1", "--json", "--"], "--jsn"))["prompt"], "--jsn");
    // Flags after the prompt are flags.
    let shown = run(&["generate", "--model", model.to_str().unwrap(), "- item", "--tokens", "1", "--json"]);
    assert_eq!(json_of(&shown)["prompt"], "- item");
}

pub(crate) fn with_input(args: &[&str], input: &str) -> Output {
    use std::io::Write;
    let mut child = recua(args).stdin(Stdio::piped()).spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

#[test]
fn lines_of_text_keep_their_carriage_returns() {
    let path = faults("llama3.json");
    let tokenizer = open("llama3.json");
    let encode = |input: &str| with_input(&["tokenizer", "encode", "--tokenizer", path.to_str().unwrap()], input).stdout;
    let line = |text: &str| tokenizer.encode(text).unwrap().iter().map(u32::to_string).collect::<Vec<_>>().join(" ") + "\n";
    let expected = line("a\r") + &line("b") + &line("") + &line("c\r");
    assert_eq!(String::from_utf8(encode("a\r\nb\n\nc\r")).unwrap(), expected);
}

#[test]
fn the_score_of_one_token_is_zero() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    Script::new(64, &[(0, 1)]).save(&model, "llama2.json");
    let score = with_input(&["eval", "score", "--model", model.to_str().unwrap()], "[1]\n");
    assert_eq!(String::from_utf8_lossy(&score.stdout), "0.000000\n", "{}", stderr(&score));
}

/// A full disk under stdout: whatever is lost, it is said, and the program fails.
#[cfg(target_os = "linux")]
#[test]
fn results_that_cannot_be_written_are_failures() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let (model, tokenizer) = (at("model"), faults("llama2.json").to_str().unwrap().to_string());
    Script::new(open("llama2.json").vocab_size(), &[(0, 1)]).save(Path::new(&model), "llama2.json");
    std::fs::write(at("text.txt"), "the old llama walks home\n".repeat(50)).unwrap();
    let tokens = at("tokens");
    let made = run(&["data", "tokenize", "--input", &at("text.txt"), "--tokenizer", &tokenizer, "--out", &tokens]);
    assert!(made.status.success(), "{}", stderr(&made));
    let vocabulary = format!("model.vocab_size={}", open("llama2.json").vocab_size());
    let cases: Vec<(Vec<&str>, &str)> = vec![
        (vec!["--help"], ""),
        (vec!["--version"], ""),
        (vec!["generate", "--help"], ""),
        (vec!["generate", "--model", &model, "--tokens", "2", "The"], ""),
        (vec!["generate", "--model", &model, "--tokens", "2", "--json", "The"], ""),
        (vec!["eval", "score", "--model", &model], "[1,3]\n"),
        (vec!["eval", "score", "--model", &model, "--json"], "[1,3]\n"),
        (vec!["tokenizer", "encode", "--tokenizer", &tokenizer], "a\n"),
        (vec!["tokenizer", "encode", "--tokenizer", &tokenizer, "--json"], "\"a\"\n"),
        (vec!["tokenizer", "decode", "--tokenizer", &tokenizer], "300\n"),
        (vec!["info"], ""),
        (vec!["info", "--json"], ""),
        (vec!["info", &model], ""),
        (vec!["generate", "--model", &model, "--prompts", "-"], "\"The\"\n"),
        (vec!["chat", "--model", &model, "--tokens", "2"], "The\n"),
        (vec!["plan", "--preset", "debug"], ""),
        (vec!["plan", "--preset", "debug", "--json"], ""),
        (vec!["bench", "gemm", "--m", "8", "--n", "8", "--k", "8", "--steps", "1"], ""),
        (vec!["train", "--run", "unused", "--data", &tokens, "--preset", "debug", "--set", &vocabulary, "--dry-run"], ""),
        (vec!["data", "clean", "--source", "wikipedia"], "\"a\"\n"),
        (vec!["tokenizer", "train", "--input", "text.txt", "--out", "t.json", "--vocab-size", "270"], ""),
        (vec!["data", "tokenize", "--input", "text.txt", "--tokenizer", &tokenizer, "--out", "again"], ""),
        (vec!["convert", &model, "meta", "--to", "meta"], ""),
        (vec!["selftest", "--only", "swiglu"], ""),
        (
            vec![
                "bench",
                "decode",
                "--dim",
                "32",
                "--heads",
                "2",
                "--layers",
                "1",
                "--new-tokens",
                "2",
                "--repeat",
                "1",
                "--vocab",
                "64",
            ],
            "",
        ),
        (vec!["train", "--run", "run", "--data", &tokens, "--preset", "debug", "--set", &vocabulary, "--steps", "1"], ""),
    ];
    for (args, input) in cases {
        if args[..] == ["data", "clean", "--source", "wikipedia"] && !cfg!(feature = "data") {
            continue;
        }
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut child = recua(&args).stdin(Stdio::piped()).stdout(full).current_dir(dir.path()).spawn().unwrap();
        {
            use std::io::Write;
            let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        }
        let output = child.wait_with_output().unwrap();
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
        assert!(said.contains("cannot write stdout"), "{args:?}: {said}");
    }
}

#[test]
fn a_closed_pipe_ends_quietly() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = recua(&["info"]).stdout(writer).output().unwrap();
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
}

/// The inputs as they were found, where `RECUA_FAULTS` names their folder.
#[test]
fn faults_as_they_were_found() {
    let Some(folder) = std::env::var_os("RECUA_FAULTS") else {
        println!("faults_as_they_were_found: skipped, RECUA_FAULTS is not set");
        return;
    };
    let case = |name: &str| Path::new(&folder).join("model/cases").join(name);
    let shown = generate(&case("tsx_run"), &["--tokens", "6"], "The old");
    assert!(String::from_utf8_lossy(&shown.stdout).starts_with("The old llama walks"), "{shown:?}");
    let copied = |name: &str, without: &str| {
        let dir = TempDir::new().unwrap();
        for entry in std::fs::read_dir(case(name)).unwrap() {
            let path = entry.unwrap().path();
            if path.file_name().unwrap() != without {
                std::fs::write(dir.path().join(path.file_name().unwrap()), std::fs::read(&path).unwrap()).unwrap();
            }
        }
        dir
    };
    let ends = copied("eos_list", "tokenizer_config.json");
    let shown = json_of(&generate(ends.path(), &["--tokens", "12", "--json"], "The old llama"));
    assert_eq!((shown["tokens"].as_array().unwrap().len(), &shown["stop"]), (5, &json!("eos")));
    let shown = json_of(&generate(&case("bos_smollm"), &["--tokens", "12", "--json"], "The old llama walks"));
    assert_eq!(shown["tokens"], json!([246, 300, 143, 107, 131, 226, 5, 280, 351, 197, 131, 45]));
    let padded = generate(&case("padded"), &["--tokens", "3", "--json"], "The old llama");
    assert!(json_of(&padded)["text"].is_string() && stderr(&padded).contains("have no text"), "{}", stderr(&padded));
    let nan = generate(&case("nan_all_nan"), &["--tokens", "6", "--json"], "The old llama");
    assert_eq!((nan.status.code(), nan.stdout.len()), (Some(1), 0), "{}", stderr(&nan));
    let pad = json_of(&generate(&case("pad_tok"), &["--tokens", "3", "--json"], "The old llama"));
    assert_eq!(pad["tokens"].as_array().unwrap().len(), 3);
    // The model writes: the, {, byte A0, b, l, o.
    let stream = generate(&case("stream_l2"), &["--tokens", "6"], "The old llama");
    let text = String::from_utf8_lossy(&stream.stdout).into_owned();
    assert!(text.ends_with("\u{fffd}\u{fffd} blo\n"), "{text:?}");
}

/// A generator's ends and prompts in the library: what the README shows.
#[test]
fn a_generator_stops_at_any_of_its_ends() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    Script::new(64, &chain(3, &[10, 11, 12, 13])).save(&model, "llama2.json");
    let checkpoint = Checkpoint::open(&model).unwrap();
    let mut engine = Engine::load(&checkpoint, &BackendName::default().open().unwrap(), EngineConfig::default()).unwrap();
    let sampling = SampleConfig { temperature: 0.0, ..Default::default() };
    for (ends, count) in [(vec![], 4), (vec![12], 2), (vec![13, 11], 1), (vec![10], 0)] {
        let request =
            Request { prompt: vec![1, 3], max_new: 4, stop_ids: ends.clone(), sampling: sampling.clone(), ..Default::default() };
        let (tokens, _) = engine.generate(request, &mut |_| ControlFlow::Continue(())).unwrap();
        assert_eq!(tokens.len(), count, "{ends:?}");
    }
}
