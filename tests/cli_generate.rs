//! `recua generate`: every flag, on models whose next token is known and on small real ones.

use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::faults_generate::{Script, chain, json_of, open, recua, stderr, with_input};

/// A real model without a tokenizer: 512 tokens, 256 positions, BOS 1, EOS 2.
pub(crate) fn golden(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name).to_str().unwrap().into()
}

/// A small run with its tokenizer.
pub(crate) fn run() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/2026-11/run").to_str().unwrap().into()
}

/// A model that writes " llama walks home" after "The old", and what it writes as ids.
pub(crate) struct Walks {
    pub(crate) dir: TempDir,
    pub(crate) ids: Vec<u32>,
}

impl Walks {
    /// After its last token comes `then`.
    pub(crate) fn new(then: &[u32], positions: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = open("llama2.json");
        let all = tokenizer.encode("The old llama walks home").unwrap();
        let prompt = tokenizer.encode("The old").unwrap();
        let ids = all[prompt.len()..].to_vec();
        let mut next = chain(*prompt.last().unwrap(), &ids);
        next.extend(chain(*ids.last().unwrap(), then));
        let mut script = Script::new(tokenizer.vocab_size(), &next);
        script.config.max_seq_len = positions;
        script.save(&dir.path().join("model"), "llama2.json");
        Self { dir, ids }
    }

    pub(crate) fn model(&self) -> String {
        self.path("model").to_str().unwrap().into()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, more: &[&str]) -> Output {
        generate(&self.model(), more, "")
    }

    #[track_caller]
    fn json(&self, more: &[&str]) -> Value {
        json_of(&self.run(&[&["--json"], more, &["The old"]].concat()))
    }

    #[track_caller]
    fn text(&self, more: &[&str]) -> String {
        self.json(more)["text"].as_str().unwrap().into()
    }
}

/// Greedy, with `input` on stdin.
fn generate(model: &str, more: &[&str], input: &str) -> Output {
    let greedy: &[&str] = if more.contains(&"--temperature") { &[] } else { &["--temperature", "0"] };
    with_input(&[&["generate", "--model", model, "--threads", "2"], greedy, more].concat(), input)
}

#[track_caller]
fn lines(output: &Output) -> Vec<Value> {
    assert!(output.status.success(), "{}", stderr(output));
    String::from_utf8_lossy(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// In order: how a program's objects are sorted is a matter of its features.
fn keys(object: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = object.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

#[track_caller]
fn text(output: &Output) -> String {
    assert!(output.status.success(), "{}", stderr(output));
    String::from_utf8_lossy(&output.stdout).into()
}

/// Fails with `code`, says `parts`, and writes no result.
#[track_caller]
pub(crate) fn fails(output: &Output, code: i32, parts: &[&str]) {
    let said = stderr(output);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(code), 0), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    parts.iter().for_each(|part| assert!(said.contains(part), "`{part}` is not in: {said}"));
}

#[test]
fn many_prompts_are_answered_in_their_order_as_each_alone() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("prompts.jsonl");
    let prompts = [json!("The llama"), json!([1, 266, 261]), json!("A river"), json!(""), json!("The llama walks over the pass")];
    let input: String = prompts.iter().map(|prompt| format!("{prompt}\n")).collect();
    std::fs::write(&file, &input).unwrap();
    let args = ["--tokens", "9", "--json", "--prompts"];
    let many = generate(&run(), &[&args[..], &[file.to_str().unwrap()]].concat(), "");
    let all = lines(&many);
    assert_eq!(all.len(), prompts.len());
    for (i, (line, prompt)) in all.iter().zip(&prompts).enumerate() {
        assert_eq!((&line["index"], &line["prompt"]), (&json!(i), prompt));
        assert_eq!(keys(line), ["index", "prompt", "stop", "text", "tokens"], "nothing that depends on the clock");
        if let Some(text) = prompt.as_str() {
            let alone = json_of(&generate(&run(), &["--tokens", "9", "--json", text], ""));
            assert_eq!((&alone["tokens"], &alone["text"]), (&line["tokens"], &line["text"]), "{text}");
        }
    }
    assert!(stderr(&many).contains("tok/s"), "{}", stderr(&many));
    // Whatever is computed beside what, and wherever it comes from; no line end at the end is no matter.
    for more in [vec!["--max-batch", "1"], vec!["--max-batch", "2"], vec!["--max-len", "64"]] {
        assert_eq!(lines(&generate(&run(), &[&args[..], &["-"], &more].concat(), input.trim_end())), all, "{more:?}");
    }
    // The same draws, too.
    let drawn =
        |batch| lines(&generate(&run(), &[&args[..], &["-", "--temperature", "1", "--max-batch", batch]].concat(), &input));
    assert_eq!(drawn("1"), drawn("4"));
    // As text, each under its number.
    let shown = text(&generate(&run(), &["--tokens", "9", "--prompts", "-"], &input));
    let expected = format!("--- 2 ---\nA river{}\n", all[2]["text"].as_str().unwrap());
    assert!(shown.starts_with("--- 0 ---\nThe llama") && shown.contains(&expected), "{shown}");
}

#[test]
fn a_bad_line_is_named_before_any_work() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("prompts.jsonl");
    let long = format!("[{}]", vec!["5"; 257].join(","));
    let cases: Vec<(&[u8], i32, &[&str])> = vec![
        (b"no json\n", 2, &["expected a JSON string or an array of token ids", "expected"]),
        (b"{\"prompt\": \"x\"}\n", 2, &["got `{\"prompt\":\"x\"}`"]),
        (b"[1, -2]\n", 2, &["got `[1,-2]`"]),
        (b"[1.5]\n", 2, &["got `[1.5]`"]),
        (b"[1, 512]\n", 2, &["token 512 is outside the model's vocabulary of 512"]),
        (b"[]\n", 2, &["at least one token"]),
        (b"\n[2]\n", 2, &["expected a JSON string"]),
        (b"\"\xff\"\n", 2, &["expected a JSON string"]),
        (long.as_bytes(), 1, &["257 tokens are more than the 256"]),
        (b"\"text\"\n", 1, &["no tokenizer", "pass --tokenizer FILE"]),
    ];
    for (line, code, parts) in cases {
        std::fs::write(&file, [b"[1, 5]\n", line].concat()).unwrap();
        let refused = generate(&golden("tiny_llama"), &["--json", "--prompts", file.to_str().unwrap()], "");
        fails(&refused, code, parts);
        if !parts[0].contains("tokenizer") {
            fails(&refused, code, &["prompts.jsonl line 2: "]);
        }
    }
    std::fs::write(&file, "").unwrap();
    let from = |path: &str| generate(&golden("tiny_llama"), &["--json", "--prompts", path], "[1, 700]");
    fails(&from(file.to_str().unwrap()), 1, &["prompts.jsonl: no prompt in it"]);
    fails(&from("nowhere.jsonl"), 1, &["cannot read nowhere.jsonl"]);
    fails(&from("-"), 2, &["stdin line 1: token 700"]);
    fails(&generate(&golden("tiny_llama"), &["--prompts", "-", "and a prompt"], ""), 2, &["cannot be used with"]);
    fails(
        &generate(&golden("tiny_llama"), &["--prompts", "-", "--max-len", "3"], "[1,2,3]\n[1,2,3,4]\n"),
        1,
        &["stdin line 2: 4 tokens are more than the 3", "--max-len"],
    );
}

#[test]
fn a_model_without_a_tokenizer_takes_and_gives_ids() {
    let model = golden("tiny_llama");
    let one = json_of(&generate(&model, &["--tokens", "4", "--json", "[1, 5, 9]"], ""));
    assert_eq!((&one["prompt"], &one["text"]), (&json!([1, 5, 9]), &Value::Null));
    let ids: Vec<u32> = serde_json::from_value(one["tokens"].clone()).unwrap();
    assert_eq!(ids.len(), 4);
    let shown: Vec<String> = [1, 5, 9].iter().chain(&ids).map(u32::to_string).collect();
    assert_eq!(text(&generate(&model, &["--tokens", "4", "[1, 5, 9]"], "")), shown.join(" ") + "\n");
    let many = lines(&generate(&model, &["--tokens", "4", "--json", "--prompts", "-"], "[1,5,9]\n[3]\n"));
    assert_eq!((&many[0]["tokens"], many.len()), (&one["tokens"], 2));
    let shown = text(&generate(&model, &["--tokens", "4", "--prompts", "-"], "[1,5,9]\n"));
    assert!(shown.starts_with("--- 0 ---\n1 5 9 "), "{shown}");
    // Nothing to go on from is BOS, which the files name.
    assert_eq!(json_of(&generate(&model, &["--tokens", "4", "--json"], ""))["prompt"], json!([1]));
    fails(&generate(&model, &["x"], ""), 1, &["no tokenizer", "`[1, 5, 9]`"]);
    fails(&generate(&model, &["[1, 900]"], ""), 2, &["the prompt: token 900 is outside"]);
    fails(&generate(&model, &["--stop", "x", "[1]"], ""), 1, &["no tokenizer, which --stop needs"]);
    fails(&generate(&model, &["--regex", "x", "[1]"], ""), 1, &["no tokenizer, which --regex needs"]);
}

#[test]
fn one_prompt_says_what_it_took() {
    let walks = Walks::new(&[2], 64);
    let one = walks.json(&[]);
    assert_eq!(keys(&one), ["prompt", "stop", "text", "tok_s", "tokens", "ttft_s"]);
    assert_eq!((&one["text"], &one["stop"], &one["tokens"]), (&json!(" llama walks home"), &json!("eos"), &json!(walks.ids)));
    assert!(one["tok_s"].as_f64().unwrap() > 0.0 && one["ttft_s"].as_f64().unwrap() > 0.0);
    let shown = walks.run(&["The old"]);
    assert_eq!(text(&shown), "The old llama walks home\n");
    let said = stderr(&shown);
    assert!(said.contains(&format!("{} tokens in", walks.ids.len())) && said.contains("the first after"), "{said}");
    assert!(
        said.starts_with("KV cache ") && said.contains("64 positions in 4 blocks"),
        "the cache is stated at the start: {said}"
    );
}

#[test]
fn a_stop_text_ends_and_is_not_shown() {
    let walks = Walks::new(&[2], 64);
    let stopped = |stops: &[&str]| {
        let flags: Vec<&str> = stops.iter().flat_map(|stop| ["--stop", stop]).collect();
        let object = walks.json(&flags);
        let shown = text(&walks.run(&[&flags[..], &["The old"]].concat()));
        assert_eq!(shown, format!("The old{}\n", object["text"].as_str().unwrap()), "{stops:?}");
        (object["text"].as_str().unwrap().to_string(), object["stop"].as_str().unwrap().to_string())
    };
    assert_eq!(stopped(&["ma w"]), (" lla".into(), "stop".into()));
    assert_eq!(stopped(&["home", "walks"]), (" llama ".into(), "stop".into()));
    assert_eq!(stopped(&[" llama"]), (String::new(), "stop".into()));
    // What only begins like one is shown in the end.
    assert_eq!(stopped(&["walks home again", "llamas"]), (" llama walks home".into(), "eos".into()));
    assert_eq!(stopped(&["home!"]), (" llama walks home".into(), "eos".into()));
    // The tokens are those that were computed, to the one that made the text.
    let tokens = walks.json(&["--stop", "ma w"])["tokens"].as_array().unwrap().len();
    assert!(tokens > 0 && tokens < walks.ids.len());
    // Each of several, and each prompt.
    let all = lines(&generate(
        &walks.model(),
        &["--json", "--prompts", "-", "--n", "2", "--stop", "walks"],
        "\"The old\"\n\"The old\"\n",
    ));
    assert_eq!(all.len(), 4);
    assert!(all.iter().all(|line| line["text"] == " llama " && line["stop"] == "stop"), "{all:?}");
    fails(&walks.run(&["--stop", "", "The old"]), 2, &["--stop: expected a text"]);
}

#[test]
fn ends_can_be_put_off() {
    // EOS in the middle: " llama", EOS, "walks".
    let tokenizer = open("llama2.json");
    let last = *tokenizer.encode("The old").unwrap().last().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    Script::new(tokenizer.vocab_size(), &chain(last, &[300, 2, 301, 302, 303])).save(&model, "llama2.json");
    let tokens = |more: &[&str]| {
        let out = json_of(&generate(model.to_str().unwrap(), &[&["--json", "--tokens", "5"], more, &["The old"]].concat(), ""));
        (serde_json::from_value::<Vec<u32>>(out["tokens"].clone()).unwrap(), out["stop"].as_str().unwrap().to_string())
    };
    assert_eq!(tokens(&[]), (vec![300], "eos".into()));
    assert_eq!(tokens(&["--ignore-eos"]), (vec![300, 2, 301, 302, 303], "length".into()));
    let (later, _) = tokens(&["--min-tokens", "3"]);
    assert!(later.len() >= 3 && !later.contains(&2), "{later:?}");
    fails(&generate(model.to_str().unwrap(), &["--tokens", "3", "--min-tokens", "4", "x"], ""), 2, &["--min-tokens: 4 are more"]);
}

#[test]
fn logprobs_are_those_of_the_model() {
    let model = golden("tiny_llama");
    let scored = json_of(&generate(&model, &["--json", "--tokens", "3", "--logprobs", "4", "--echo", "[1, 5, 9, 77]"], ""));
    let (tokens, logprobs) = (scored["tokens"].as_array().unwrap(), scored["logprobs"].as_array().unwrap());
    assert_eq!((tokens.len(), logprobs.len()), (3, 3));
    for (token, of) in tokens.iter().zip(logprobs) {
        assert_eq!(&of["token"], token);
        let top: Vec<(u32, f64)> = serde_json::from_value(of["top"].clone()).unwrap();
        assert_eq!(top.len(), 4);
        assert!(top.windows(2).all(|pair| pair[0].1 >= pair[1].1) && top[0].1 < 0.0, "{top:?}");
        // Greedy took the likeliest.
        assert_eq!((json!(top[0].0), json!(top[0].1)), (token.clone(), of["logprob"].clone()));
    }
    // Those of prompt and text are those that `eval score` gives for all.
    assert_eq!(scored["prompt_tokens"], json!([1, 5, 9, 77]));
    let of_prompt = scored["prompt_logprobs"].as_array().unwrap();
    assert_eq!((of_prompt.len(), &of_prompt[0]), (4, &Value::Null));
    let all: Vec<u32> = [1, 5, 9, 77].into_iter().chain(tokens.iter().map(|t| t.as_u64().unwrap() as u32)).collect();
    let score = json_of(&with_input(&["eval", "score", "--json", "--model", &model], &format!("{all:?}\n")));
    let got = of_prompt[1..].iter().chain(logprobs).map(|of| of["logprob"].as_f64().unwrap());
    for (got, expected) in got.zip(score["logprobs"].as_array().unwrap()) {
        assert!((got - expected.as_f64().unwrap()).abs() < 1e-4, "{got} {expected}");
    }
    // Only a score, of many.
    let scored = lines(&generate(&model, &["--json", "--tokens", "0", "--echo", "--prompts", "-"], "[1,5,9,77]\n[1]\n"));
    assert_eq!((&scored[0]["tokens"], &scored[0]["stop"]), (&json!([]), &json!("length")));
    let alone = scored[0]["prompt_logprobs"].as_array().unwrap();
    assert_eq!(alone.len(), 4);
    assert_eq!((&alone[3]["logprob"], &alone[3]["top"]), (&of_prompt[3]["logprob"], &json!([])));
    assert_eq!(scored[1]["prompt_logprobs"], json!([null]));
    fails(&generate(&model, &["--logprobs", "2", "[1]"], ""), 2, &["--json"]);
    fails(&generate(&model, &["--echo", "[1]"], ""), 2, &["--json"]);
}

#[test]
fn several_texts_of_a_prompt() {
    let args = ["--json", "--tokens", "12", "--temperature", "1.5", "--top-p", "1", "--seed", "3"];
    let of = |n: &str| lines(&generate(&run(), &[&args[..], &["--n", n, "The llama"]].concat(), ""));
    let (three, one) = (of("3"), of("1"));
    assert_eq!(three.iter().map(|line| line["choice"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(three[0]["tokens"], one[0]["tokens"], "the first is the same for every n");
    assert!(three[0]["tokens"] != three[1]["tokens"] && three[1]["tokens"] != three[2]["tokens"]);
    let tokens = |lines: &[Value]| lines.iter().map(|line| line["tokens"].clone()).collect::<Vec<_>>();
    assert_eq!(tokens(&three), tokens(&of("3")));
    let shown = text(&generate(&run(), &["--tokens", "3", "--n", "2", "The llama"], ""));
    assert!(shown.starts_with("--- 0.0 ---\nThe llama") && shown.contains("--- 0.1 ---\nThe llama"), "{shown}");
    fails(&generate(&run(), &["--n", "0", "x"], ""), 2, &["--n: expected at least 1"]);
}

#[test]
fn sampling_flags_do_what_they_say() {
    let greedy = |more: &[&str]| json_of(&generate(&run(), &[&["--json", "--tokens", "8"], more, &["The llama"]].concat(), ""));
    let plain = greedy(&[]);
    let first = plain["tokens"][0].as_u64().unwrap();
    // A bias that outweighs all, and one that rules out.
    assert_eq!(greedy(&["--logit-bias", "70=1000", "--ignore-eos"])["tokens"], json!([70; 8].to_vec()));
    let without = greedy(&["--logit-bias", &format!("{first}=-1000"), "--logit-bias", "71=-1000"]);
    assert!(!without["tokens"].as_array().unwrap().contains(&json!(first)), "{without}");
    // Penalties: with a large one no token comes twice.
    for flag in ["--presence-penalty", "--frequency-penalty"] {
        let mut tokens: Vec<u64> = serde_json::from_value(greedy(&[flag, "1000", "--ignore-eos"])["tokens"].clone()).unwrap();
        let n = tokens.len();
        tokens.sort_unstable();
        tokens.dedup();
        assert_eq!((tokens.len(), n), (8, 8), "{flag}");
    }
    assert_ne!(greedy(&["--repetition-penalty", "1000"])["tokens"], plain["tokens"]);
    // Each of these leaves the likeliest token alone.
    for only in [["--top-k", "1"], ["--top-p", "1e-9"], ["--min-p", "1"]] {
        assert_eq!(greedy(&[&["--temperature", "5"], &only[..]].concat())["tokens"], plain["tokens"], "{only:?}");
    }
    let drawn = |seed: &str| greedy(&["--temperature", "3", "--top-p", "1", "--seed", seed])["tokens"].clone();
    assert_eq!(drawn("1"), drawn("1"));
    assert_ne!(drawn("1"), drawn("2"));
    for (flag, value, part) in [
        ("--temperature", "-1", "temperature"),
        ("--top-k", "0", "top_k"),
        ("--top-p", "1.5", "top_p"),
        ("--min-p", "2", "min_p"),
        ("--repetition-penalty", "0", "repetition_penalty"),
        ("--presence-penalty", "nan", "presence_penalty"),
        ("--frequency-penalty", "inf", "frequency_penalty"),
        ("--logit-bias", "5", "expected ID=B"),
        ("--logit-bias", "99999=1", "token 99999 is outside the model's vocabulary"),
    ] {
        fails(&generate(&run(), &[&format!("{flag}={value}"), "x"], ""), 2, &[part]);
    }
}

#[test]
fn speculation_changes_no_token() {
    for prompt in ["The llama walks. The llama walks.", "A river"] {
        let tokens = |more: &[&str]| {
            json_of(&generate(&run(), &[&["--json", "--tokens", "24"], more, &[prompt]].concat(), ""))["tokens"].clone()
        };
        assert_eq!(tokens(&["--speculate", "4"]), tokens(&[]), "{prompt}");
    }
}

#[test]
fn engine_flags_do_what_they_say() {
    let walks = Walks::new(&[2], 64);
    let full = walks.json(&["--max-len", "8"]);
    assert_eq!(full["stop"], "full");
    assert!(walks.ids.starts_with(&serde_json::from_value::<Vec<u32>>(full["tokens"].clone()).unwrap()));
    fails(&walks.run(&["--max-len", "2", "The old"]), 1, &["the prompt", "more than the 2"]);
    for flags in [
        ["--dtype", "bf16"],
        ["--dtype", "f16"],
        ["--kv-cache-dtype", "bf16"],
        ["--kv-cache-dtype", "f16"],
        ["--kv-cache-dtype", "int8"],
        ["--kv-cache-bytes", "1MiB"],
        ["--kv-cache-bytes", "2MB"],
        ["--max-batch", "1"],
    ] {
        assert_eq!(walks.text(&flags), " llama walks home", "{flags:?}");
    }
    for (flag, value, part) in [
        ("--dtype", "int4", "possible values: f32, bf16, f16"),
        ("--kv-cache-dtype", "int4", "take one of f32, bf16, f16, int8"),
        ("--kv-cache-bytes", "much", "expected a number of bytes, as 512MiB, 2GB"),
        ("--kv-cache-bytes", "5 llamas", "expected a number of bytes"),
        ("--kv-cache-bytes", "-1", "expected a number of bytes"),
        ("--max-batch", "0", "--max-batch: expected at least 1"),
        ("--max-len", "0", "--max-len: expected at least 1"),
    ] {
        fails(&walks.run(&[&format!("{flag}={value}"), "x"]), 2, &[part]);
    }
    // No room for one block.
    let refused = walks.run(&["--kv-cache-bytes", "1", "The old"]);
    assert!(matches!(refused.status.code(), Some(1 | 2)) && refused.stdout.is_empty(), "{}", stderr(&refused));
}

#[test]
fn a_prompt_that_fails_leaves_the_others() {
    // After 300 a logit that is no number.
    let tokenizer = open("llama2.json");
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    let mut script = Script::new(tokenizer.vocab_size(), &[(3, 4), (4, 5)]);
    script.damaged = Some((340, f32::NAN));
    script.save(&model, "llama2.json");
    let out = generate(model.to_str().unwrap(), &["--json", "--tokens", "2", "--prompts", "-"], "[3]\n[4]\n");
    assert_eq!(out.status.code(), Some(1), "{}", stderr(&out));
    let shown = String::from_utf8_lossy(&out.stdout);
    let all: Vec<Value> = shown.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(all.len(), 2);
    for (i, line) in all.iter().enumerate() {
        assert_eq!(line["index"], json!(i));
        assert!(line["error"].as_str().unwrap().contains("expected a finite number"), "{line}");
    }
    assert!(stderr(&out).contains("2 of 2 prompts failed"), "{}", stderr(&out));
}

#[cfg(unix)]
#[test]
fn interrupted_it_shows_what_is_there() {
    use std::io::Read;
    let walks = Walks::new(&[], 1 << 20);
    let model = walks.model();
    let interrupt = |more: &[&str]| {
        let args =
            ["generate", "--model", &model, "--threads", "1", "--ignore-eos", "--tokens", "1000000", "--max-len", "200000"];
        let mut child = recua(&[&args[..], &["--max-batch", "1"], more].concat()).spawn().unwrap();
        let mut begun = [0; 24];
        if !more.contains(&"--json") {
            child.stdout.as_mut().unwrap().read_exact(&mut begun).unwrap();
        } else {
            std::thread::sleep(std::time::Duration::from_millis(1500));
        }
        // SAFETY: kill has no preconditions; the child has not been waited for, so that its number is its own.
        assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGINT) }, 0);
        let out = child.wait_with_output().unwrap();
        assert_eq!(out.status.code(), Some(130), "{}", stderr(&out));
        assert!(stderr(&out).contains("tok/s"), "{}", stderr(&out));
        String::from_utf8_lossy(&begun).into_owned() + &String::from_utf8_lossy(&out.stdout)
    };
    let shown = interrupt(&["The old"]);
    assert!(shown.starts_with("The old llama walks home") && shown.ends_with('\n'), "{shown}");
    let shown = interrupt(&["--json", "The old"]);
    let shown: Value = serde_json::from_str(shown.trim_start_matches('\0')).unwrap();
    assert_eq!(shown["stop"], "interrupted");
    assert!(shown["text"].as_str().unwrap().starts_with(" llama walks home"), "{shown}");
}

#[cfg(not(feature = "constrain"))]
#[test]
fn forms_that_are_not_compiled_in_are_refused() {
    for form in [["--regex", "a+"], ["--json-schema", "{}"], ["--grammar", "form.lark"]] {
        fails(&generate(&run(), &[&form[..], &["The llama"]].concat(), ""), 1, &[form[0], "--features constrain"]);
    }
}

#[cfg(feature = "constrain")]
#[test]
fn text_has_the_form_that_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str, content: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_string()
    };
    let written = |form: &[&str]| {
        let args = [&["--json", "--tokens", "200", "--temperature", "1", "--seed", "4"], form, &["The llama"]].concat();
        let out = json_of(&generate(&run(), &args, ""));
        assert!(out["stop"] == "eos" || out["stop"] == "mask", "{out}");
        out["text"].as_str().unwrap().to_string()
    };
    let text = written(&["--regex", "[ab]{3}-[0-9]{2}"]);
    let (letters, digits) = text.split_once('-').unwrap();
    assert!(letters.len() == 3 && letters.chars().all(|c| "ab".contains(c)), "{text}");
    assert!(digits.len() == 2 && digits.chars().all(|c| c.is_ascii_digit()), "{text}");
    let schema =
        r#"{"type": "object", "properties": {"n": {"enum": [1, 22]}}, "required": ["n"], "additionalProperties": false}"#;
    for given in [schema.to_string(), path("schema.json", schema)] {
        let json: Value = serde_json::from_str(&written(&["--json-schema", &given])).unwrap();
        assert!(json["n"] == 1 || json["n"] == 22, "{json}");
    }
    let grammar = path("form.lark", "start: \"yes\" | \"no\"\n");
    assert!(["yes", "no"].contains(&written(&["--grammar", &grammar]).as_str()));
    // Each prompt has its own.
    let all = lines(&generate(&run(), &["--json", "--regex", "x{4}", "--prompts", "-"], "\"The\"\n\"A river\"\n"));
    assert!(all.iter().all(|line| line["text"] == "xxxx") && all.len() == 2, "{all:?}");
    for (form, code, parts) in [
        (["--regex", "(a"], 2, ["--regex: ", "correct it"]),
        (["--json-schema", "{\"type\": 5}"], 2, ["--json-schema: ", "correct it"]),
        (["--json-schema", "{oops"], 2, ["--json-schema: ", "give a JSON schema or a file"]),
        (["--json-schema", "nowhere.json"], 1, ["cannot read nowhere.json", ""]),
        (["--grammar", "nowhere.lark"], 1, ["cannot read nowhere.lark", ""]),
        (["--grammar", &path("bad.lark", "start: (\n")], 2, ["--grammar: ", "correct it"]),
    ] {
        fails(&generate(&run(), &[&form[..], &["x"]].concat(), ""), code, &parts);
    }
    fails(&generate(&run(), &["--regex", "a", "--n", "2", "x"], ""), 2, &["--n: expected 1 with --regex"]);
    fails(&generate(&run(), &["--regex", "a", "--grammar", "b", "x"], ""), 2, &["cannot be used with"]);
}
