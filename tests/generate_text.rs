//! Text as tokens come: stop strings over every split, and conversations by chat templates against jinja2.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use recua::error::Error;
use recua::generate::{StopStrings, TextStream};
use recua::tokenizer::{ChatTemplate, Message, Tokenizer, TrainConfig};
use serde::Deserialize;

/// The stop that ends first, the longest of those, and the text before it; by looking at every place.
fn naive(text: &str, stops: &[String]) -> (String, Option<usize>) {
    for end in 0..=text.len() {
        let ends = |stop: &&String| end >= stop.len() && text.as_bytes()[..end].ends_with(stop.as_bytes());
        if let Some(stop) = stops.iter().filter(ends).max_by_key(|stop| stop.len()) {
            return (text[..end - stop.len()].into(), stops.iter().position(|s| s == stop));
        }
    }
    (text.into(), None)
}

/// Pieces as they come; what was shown after each, and the stop.
fn shown(pieces: &[&str], stops: &[String]) -> (Vec<String>, Option<usize>) {
    let mut search = StopStrings::new(stops).unwrap();
    let (mut text, mut all, mut stop) = (String::new(), Vec::new(), None);
    for piece in pieces {
        let new = search.push(piece);
        assert!(stop.is_none() || new == Default::default(), "something after the stop");
        text += &new.text;
        stop = stop.or(new.stop);
        all.push(text.clone());
    }
    let rest = search.finish();
    assert!(stop.is_none() || rest.is_empty());
    all.push(text + &rest);
    (all, stop)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn stop_strings_are_found_however_the_text_is_cut(
        text in "[abé\u{1f999}]{0,9}", stops in proptest::collection::vec("[abé\u{1f999}]{1,4}", 0..4),
    ) {
        let (expected, which) = naive(&text, &stops);
        let places: Vec<usize> = text.char_indices().map(|(i, _)| i).skip(1).collect();
        for cuts in 0u32..1 << places.len() {
            let mut from = 0;
            let mut pieces: Vec<&str> = Vec::new();
            for (i, place) in places.iter().enumerate() {
                if cuts >> i & 1 == 1 {
                    pieces.push(&text[from..*place]);
                    from = *place;
                }
            }
            pieces.push(&text[from..]);
            let (all, stop) = shown(&pieces, &stops);
            prop_assert_eq!(stop, which, "{:?}", pieces);
            prop_assert_eq!(all.last().unwrap(), &expected, "{:?}", pieces);
            // Nothing is held back that cannot become a stop.
            let mut seen = String::new();
            for (piece, shown) in pieces.iter().zip(&all) {
                seen += piece;
                prop_assert!(expected.starts_with(shown.as_str()));
                if stop.is_none() {
                    let held = &seen[shown.len()..];
                    prop_assert!(held.is_empty() || stops.iter().any(|s| s.len() > held.len() && s.starts_with(held)), "{held}");
                }
            }
        }
    }
}

#[test]
fn tokens_become_text_up_to_a_stop() {
    let config = TrainConfig { vocab_size: 290, ..Default::default() };
    let docs = ["a llama and another llama", "the llama stops"].map(String::from);
    let tokenizer = Tokenizer::train(docs.into_iter(), &config).unwrap();
    let prompt = tokenizer.encode_document("a llama", true, false).unwrap();
    let text = " and é\u{1f999} llama\n\nUser: more";
    let run = |text: &str, stops: &[&str]| {
        let mut stream = TextStream::new(&tokenizer, &prompt, stops).unwrap();
        let (mut out, mut stop) = (String::new(), None);
        for token in tokenizer.encode(text).unwrap() {
            let shown = stream.push(token);
            out += &shown.text;
            stop = stop.or(shown.stop);
        }
        let rest = stream.finish();
        (out + &rest.text, stop.or(rest.stop))
    };
    assert_eq!(run(text, &[]), (text.into(), None));
    assert_eq!(run(text, &["never", "\nUser:"]), (" and é\u{1f999} llama\n".into(), Some(1)));
    assert_eq!(run(text, &["\u{1f999}"]), (" and é".into(), Some(0)));
    assert_eq!(run(text, &["more and more"]), (text.into(), None));
    assert!(matches!(StopStrings::new(&["a", ""]), Err(Error::BadValue { .. })));
    // A character that is cut off at the end.
    let mut stream = TextStream::new(&tokenizer, &prompt, &["\u{fffd}"]).unwrap();
    assert_eq!(stream.push(tokenizer.id_of("<0xF0>").unwrap()), Default::default());
    assert_eq!(stream.finish().stop, Some(0));
}

#[derive(Deserialize)]
struct Case {
    template: String,
    messages: Vec<Message>,
    add_generation_prompt: bool,
    text: Option<String>,
    refused: Option<String>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/chat")
}

/// A tokenizer with these files beside it.
fn beside(files: &[(&str, &str)]) -> recua::Result<ChatTemplate> {
    let dir = tempfile::tempdir().unwrap();
    let config = TrainConfig { vocab_size: 260, ..Default::default() };
    Tokenizer::train(["abc abc abc".to_string()].into_iter(), &config).unwrap().save(dir.path()).unwrap();
    files.iter().for_each(|(name, text)| fs::write(dir.path().join(name), text).unwrap());
    ChatTemplate::open(dir.path())
}

#[test]
fn chat_templates_render_as_in_jinja2() {
    let cases: Vec<Case> = serde_json::from_slice(&fs::read(folder().join("cases.json")).unwrap()).unwrap();
    assert!(cases.len() >= 80);
    for case in cases {
        let source = fs::read_to_string(folder().join(&case.template)).unwrap();
        let template = beside(&[("chat_template.jinja", &source)]).unwrap();
        let got = template.render(&case.messages, case.add_generation_prompt);
        match (&case.text, &case.refused) {
            (Some(text), _) => assert_eq!(&got.unwrap(), text, "{}", case.template),
            (_, Some(why)) => {
                let error = got.unwrap_err();
                assert!(matches!(&error, Error::BadValue { problem, .. } if problem == why), "{}: {error}", case.template);
            }
            _ => panic!("{}: neither text nor refusal", case.template),
        }
    }
}

#[test]
fn templates_are_found_where_they_are() {
    let hello = [Message { role: "user".into(), content: " Hello\n".into() }];
    let name = |files: &[(&str, &str)]| {
        let template = beside(files).unwrap();
        (template.origin(), template.render(&hello, true).unwrap())
    };
    let config = ("tokenizer_config.json", r#"{"chat_template": "config{{ eos_token }}", "eos_token": "</s>"}"#);
    let named = r#"{"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "named"}]}"#;
    let (jinja, json) = (("chat_template.jinja", "jinja\n"), ("chat_template.json", r#"{"chat_template": "json"}"#));
    assert_eq!(name(&[config, jinja, json]), (Some("chat_template.jinja"), "jinja".into()));
    assert_eq!(name(&[config, json]), (Some("tokenizer_config.json"), "config</s>".into()));
    assert_eq!(name(&[("tokenizer_config.json", named)]), (Some("tokenizer_config.json"), "named".into()));
    assert_eq!(name(&[("tokenizer_config.json", "{}"), json]), (Some("chat_template.json"), "json".into()));
    let plain = beside(&[]).unwrap();
    let all = ["system", "user", "assistant", "user"].map(|role| Message { role: role.into(), content: format!(" {role}! ") });
    assert_eq!(plain.render(&all, true).unwrap(), "system!\n\nUser: user!\nAssistant: assistant!\nUser: user!\nAssistant:");
    assert_eq!((plain.origin(), plain.stops()), (None, &["\nUser:"][..]));
}

#[test]
fn templates_that_fail_say_why() {
    let fails = |source: &str, part: &str| {
        let all = [Message { role: "user".into(), content: "x".into() }];
        let error = beside(&[("chat_template.jinja", source)]).and_then(|t| t.render(&all, true)).unwrap_err();
        assert!(error.to_string().contains(part) && matches!(error, Error::BadFile { .. }), "{source}: {error}");
    };
    fails("{% for x in %}", "line 1");
    fails("\n{{ messages.nothing.more }}", "line 2");
    fails("{{ strftime_now('%Q') }}", "%Q is unknown");
    fails(
        "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}",
        "fuel",
    );
    fails("{{ messages | tojson(what=1) }}", "what");
    let error = beside(&[("tokenizer_config.json", r#"{"chat_template": [{"name": "rag", "template": ""}]}"#)]).unwrap_err();
    assert!(error.to_string().contains("`default`"), "{error}");
    let date = beside(&[("chat_template.jinja", "{{ strftime_now('%Y-%m-%d %j %a %A %b %B %I %p %-d') }}")]).unwrap();
    let now = std::process::Command::new("date").args(["-u", "+%Y-%m-%d %j %a %A %b %B %I %p %-d"]).env("LC_ALL", "C").output();
    assert_eq!(date.render(&[], false).unwrap(), String::from_utf8(now.unwrap().stdout).unwrap().trim());
}
