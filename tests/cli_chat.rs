//! `recua chat` through a pipe: what a script, or a test, makes of it.

use std::io::{BufRead, BufReader, Write};
use std::process::{Output, Stdio};

use serde_json::{Value, json};

use crate::cli_generate::{Walks, fails, golden, run};
use crate::faults_generate::{recua, stderr, with_input};

fn chat(model: &str, more: &[&str], input: &str) -> Output {
    with_input(&[&["chat", "--model", model, "--threads", "1", "--temperature", "0"], more].concat(), input)
}

#[track_caller]
fn answers(output: &Output) -> Vec<String> {
    assert!(output.status.success(), "{}", stderr(output));
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_string).collect()
}

#[test]
fn questions_are_answered_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let saved = dir.path().join("talk.json");
    let save = format!("/save {}", saved.display());
    let input = format!("The llama\n\nA river\\\nand a pass\n{save}\n");
    let out = chat(&run(), &["--tokens", "6", "--system", "Be brief."], &input);
    answers(&out);
    let talk: Value = serde_json::from_slice(&std::fs::read(&saved).unwrap()).unwrap();
    let messages = talk["messages"].as_array().unwrap();
    let roles: Vec<&str> = messages.iter().map(|m| m["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["system", "user", "assistant", "user", "assistant"]);
    assert_eq!((&messages[0]["content"], &messages[1]["content"]), (&json!("Be brief."), &json!("The llama")));
    assert_eq!(messages[3]["content"], "A river\nand a pass");
    // Each answer is on stdout, its cost on stderr; the second question is read on from the first.
    let said = stderr(&out);
    let costs: Vec<&str> = said.lines().filter(|line| line.contains("prompt tokens were in the cache")).collect();
    assert_eq!(costs.len(), 2, "{said}");
    let cached = |line: &str| line.split("; ").nth(1).unwrap().split(' ').next().unwrap().parse::<usize>().unwrap();
    assert!(cached(costs[1]) >= 16, "{said}");
    let shown = String::from_utf8_lossy(&out.stdout).into_owned();
    for i in [2, 4] {
        assert!(shown.contains(messages[i]["content"].as_str().unwrap()), "{shown}\n{talk}");
    }
    // It goes on from the file as it would have gone on.
    let next = |more: &[&str], input: &str| {
        let input = format!("{input}And then?\n{save}\n");
        answers(&chat(&run(), &[&["--tokens", "6"], more].concat(), &input));
        std::fs::read_to_string(&saved).unwrap()
    };
    let before = std::fs::read_to_string(&saved).unwrap();
    let with_flag = next(&["--load", saved.to_str().unwrap()], "");
    std::fs::write(&saved, &before).unwrap();
    assert_eq!(next(&[], &format!("/load {}\n", saved.display())), with_flag);
    std::fs::write(&saved, &before).unwrap();
    let whole = format!("The llama\nA river\\\nand a pass\nAnd then?\n{save}\n");
    answers(&chat(&run(), &["--tokens", "6", "--system", "Be brief."], &whole));
    assert_eq!(std::fs::read_to_string(&saved).unwrap(), with_flag);
}

#[test]
fn commands_change_the_conversation() {
    let dir = tempfile::tempdir().unwrap();
    let saved = dir.path().join("talk.json");
    let messages = |input: &str| {
        let input = format!("{input}\n/save {}\n", saved.display());
        let out = chat(&run(), &["--tokens", "3"], &input);
        answers(&out);
        let talk: Value = serde_json::from_slice(&std::fs::read(&saved).unwrap()).unwrap();
        let all: Vec<[String; 2]> = talk["messages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|m| ["role", "content"].map(|k| m[k].as_str().unwrap().into()))
            .collect();
        (all, stderr(&out))
    };
    assert_eq!(messages("The llama\n/reset").0, Vec::<[String; 2]>::new());
    assert_eq!(messages("/system Be kind.\nThe llama\n/reset").0, [["system", "Be kind."].map(String::from)]);
    assert_eq!(messages("/system Be kind.\n/system").0, Vec::<[String; 2]>::new());
    let (all, _) = messages("//help");
    assert_eq!(all[0], ["user", "/help"].map(String::from));
    let (_, said) = messages("/help\n/set\n/set temperature 0.5\n/set top_k 4\n/set top_k none\n/set tokens 2\n/set");
    assert!(
        said.contains("/reset") && said.contains("temperature 0.5") && said.contains("top_k null") && said.contains("tokens 2"),
        "{said}"
    );
    assert!(messages("/set tokens 2\nThe llama").1.contains("[2 tokens"));
    // /quit leaves what comes after it.
    assert_eq!(answers(&chat(&run(), &[], "/quit\nThe llama\n")), Vec::<String>::new());
}

#[test]
fn what_is_wrong_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("talk.json");
    let path = file.to_str().unwrap();
    for (line, code, part) in [
        ("/jump", 2, "/jump: there is no such command; /help lists them"),
        ("/save", 2, "/save: expected a file"),
        ("/reset all", 2, "/reset: expected nothing after it"),
        ("/set heat 1", 2, "/set heat: there is no such setting; take one of"),
        ("/set temperature", 2, "/set: expected a value"),
        ("/set temperature -1", 2, "temperature: expected a number of at least 0"),
        ("/set temperature warm", 2, "/set temperature: "),
        ("/set tokens 0", 2, "/set tokens: expected a number above 0"),
        ("/load nowhere.json", 1, "cannot read nowhere.json"),
        ("/save nowhere/talk.json", 1, "nowhere"),
    ] {
        fails(&chat(&run(), &[], &format!("{line}\n")), code, &[part]);
    }
    for (content, part) in [
        ("no json", "not a usable conversation"),
        (r#"{"messages": [{"role": "assistant", "content": "x"}]}"#, "got `assistant` as turn 1"),
        (r#"{"messages": [{"role": "user", "text": "x"}]}"#, "unknown field `text`"),
    ] {
        std::fs::write(&file, content).unwrap();
        fails(&chat(&run(), &["--load", path], ""), 1, &[part, "give a file that /save wrote"]);
    }
    fails(&chat(&golden("tiny_llama"), &[], ""), 1, &["no tokenizer", "pass --tokenizer FILE"]);
    fails(&chat(&run(), &["--tokens", "0"], ""), 2, &["--tokens: expected at least 1"]);
    fails(&chat(&run(), &["--max-len", "4"], "a long question, longer than that\n"), 1, &["the conversation", "/reset"]);
}

/// The template in the model's files is used; what the plain form is has been seen above.
#[test]
fn the_models_template_is_used() {
    let walks = Walks::new(&[2], 64);
    let config = walks.path("model").join("tokenizer_config.json");
    let mut json: Value = std::fs::read(&config).map_or(json!({}), |bytes| serde_json::from_slice(&bytes).unwrap());
    json["chat_template"] = "{{ bos_token }}{{ messages[-1].content }}".into();
    std::fs::write(&config, json.to_string()).unwrap();
    let out = chat(&walks.model(), &["--tokens", "20"], "The old\nAnd the old\n");
    assert_eq!(answers(&out), ["llama walks home"; 2]);
    let about = with_input(&["info", &walks.model()], "");
    assert!(String::from_utf8_lossy(&about.stdout).contains("template of tokenizer_config.json"));
    json["chat_template"] = "{{ raise_exception('Only one question') if messages | length > 1 }}{{ bos_token }}The old".into();
    std::fs::write(&config, json.to_string()).unwrap();
    let out = chat(&walks.model(), &[], "One\nTwo\n");
    assert_eq!((out.status.code(), String::from_utf8_lossy(&out.stdout).into_owned()), (Some(2), "llama walks home\n".into()));
    assert!(stderr(&out).contains("Only one question"), "{}", stderr(&out));
    json["chat_template"] = "{% if %}".into();
    std::fs::write(&config, json.to_string()).unwrap();
    fails(&chat(&walks.model(), &[], "One\n"), 1, &["tokenizer_config.json", "not a usable chat template"]);
}

/// Ctrl-C ends the answer and not the program; the next question is answered.
#[cfg(unix)]
#[test]
fn an_answer_is_interrupted() {
    let walks = Walks::new(&[], 1 << 20);
    let args =
        ["chat", "--model", &walks.model(), "--threads", "1", "--temperature", "0", "--tokens", "1000000", "--max-len", "200000"];
    let mut child = recua(&[&args[..], &["--max-batch", "1"]].concat()).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap());
    let mut shown = child.stdout.take().unwrap();
    for question in ["The old", "And then"] {
        writeln!(stdin, "{question}").unwrap();
        let mut begun = [0];
        std::io::Read::read_exact(&mut shown, &mut begun).unwrap();
        // SAFETY: kill has no preconditions; the child has not been waited for, so that its number is its own.
        assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGINT) }, 0);
        // What was written until then would fill the pipe.
        let mut line = String::new();
        let rest = std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut byte = [0];
                while std::io::Read::read(&mut shown, &mut byte).unwrap() == 1 && byte != *b"\n" {}
                byte
            });
            said.read_line(&mut line).unwrap();
            reader.join().unwrap()
        });
        assert_eq!(&rest, b"\n");
        assert!(line.contains("stopped]"), "{line}");
    }
    drop(stdin);
    assert!(child.wait().unwrap().success());
}
