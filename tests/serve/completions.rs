//! `/v1/completions`, and the routes of tokens.

use std::path::Path;

use recua::checkpoint::Checkpoint;
use recua::eval::Scorer;
use recua::serve::ServeConfig;
use recua::tokenizer::Tokenizer;
use serde_json::{Value, json};

use super::{Up, config, source, walks};
use crate::cli_generate::{golden, run};

const ROUTE: &str = "/v1/completions";

fn scores(path: &str, ids: &[u32]) -> Vec<f32> {
    let device = "flex".parse::<recua::backend::BackendName>().unwrap().open().unwrap();
    Scorer::load(&Checkpoint::open(path).unwrap(), &device).unwrap().logprobs(ids).unwrap()
}

/// The text of a stream's choice, why it ended, its tokens' log-probabilities.
fn joined(chunks: &[Value], index: usize) -> (String, Vec<String>, Vec<Value>) {
    let of = chunks.iter().filter_map(|chunk| chunk["choices"].get(0)).filter(|choice| choice["index"] == index);
    let (mut text, mut reasons, mut logprobs) = (String::new(), Vec::new(), Vec::new());
    for choice in of {
        text += choice["text"].as_str().unwrap();
        reasons.extend(choice["finish_reason"].as_str().map(String::from));
        logprobs.extend(choice["logprobs"]["token_logprobs"].as_array().cloned().unwrap_or_default());
    }
    (text, reasons, logprobs)
}

#[test]
fn texts_go_on_from_prompts() {
    let up = walks();
    let ask = |more: Value| {
        let mut body = json!({ "model": "any", "prompt": "The old", "temperature": 0, "max_tokens": 32 });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        up.client.post(ROUTE, &body)
    };
    let whole = ask(json!({})).ok();
    assert_eq!(whole["choices"][0]["text"], " llama walks home");
    assert_eq!((&whole["choices"][0]["finish_reason"], &whole["object"]), (&json!("stop"), &json!("text_completion")));
    assert_eq!(whole["choices"][0]["logprobs"], Value::Null);
    assert!(whole["id"].as_str().unwrap().starts_with("cmpl-"));
    let n = whole["usage"]["completion_tokens"].as_u64().unwrap();
    assert_eq!(whole["usage"]["total_tokens"], n + whole["usage"]["prompt_tokens"].as_u64().unwrap());
    let cut = ask(json!({ "max_tokens": 2 })).ok();
    assert_eq!((&cut["choices"][0]["finish_reason"], &cut["usage"]["completion_tokens"]), (&json!("length"), &json!(2)));

    // The prompt as ids, lists of either, all at once.
    let tokens = up.client.post("/tokenize", &json!({ "prompt": "The old" })).ok()["tokens"].clone();
    assert_eq!(ask(json!({ "prompt": tokens })).ok()["choices"][0]["text"], " llama walks home");
    let many = ask(json!({ "prompt": ["The old", tokens, "The old llama"], "n": 2 })).ok();
    let choices = many["choices"].as_array().unwrap();
    let texts: Vec<&str> = choices.iter().map(|choice| choice["text"].as_str().unwrap()).collect();
    assert_eq!(texts, [[" llama walks home"; 4].as_slice(), &[" walks home"; 2]].concat());
    assert!(choices.iter().enumerate().all(|(i, choice)| choice["index"] == i));

    // A stream gives the same; one chunk has the reason, and it is the last.
    for more in [json!({}), json!({ "max_tokens": 3 }), json!({ "stop": ["walks"] }), json!({ "echo": true })] {
        let mut streamed = more.clone();
        (streamed["stream"], streamed["stream_options"]) = (json!(true), json!({ "include_usage": true }));
        let (whole, chunks) = (ask(more).ok(), ask(streamed).chunks());
        let (text, reasons, _) = joined(&chunks, 0);
        assert_eq!(
            (json!(text), json!(reasons)),
            (whole["choices"][0]["text"].clone(), json!([whole["choices"][0]["finish_reason"]]))
        );
        let last = chunks.last().unwrap();
        assert_eq!((&last["choices"], &last["usage"]["completion_tokens"]), (&json!([]), &whole["usage"]["completion_tokens"]));
        assert!(chunks.iter().all(|chunk| chunk["id"] == chunks[0]["id"]));
    }
    // Stop texts, more than four of them; they are not shown, and what they cut is not waited for.
    let stops = json!(["a", "b", "c", "d", "wal", "k"]);
    let stopped = ask(json!({ "stop": stops, "prompt": "The old llama" })).ok();
    assert_eq!((&stopped["choices"][0]["text"], &stopped["choices"][0]["finish_reason"]), (&json!(" w"), &json!("stop")));
    assert_eq!(ask(json!({ "echo": true, "max_tokens": 0 })).ok()["choices"][0]["text"], "The old");
    assert_eq!(ask(json!({ "echo": true })).ok()["choices"][0]["text"], "The old llama walks home");
    up.idle();
}

#[test]
fn sampling_is_as_asked() {
    let up = Up::new(vec![source("run", run())], config());
    let text = |more: Value| {
        let mut body = json!({ "prompt": "The", "max_tokens": 12 });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        up.client.post(ROUTE, &body).ok()["choices"].as_array().unwrap().iter().map(|c| c["text"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(text(json!({ "seed": 7 })), text(json!({ "seed": 7 })));
    assert_ne!(text(json!({ "seed": 7 })), text(json!({ "seed": 8 })));
    assert_ne!(text(json!({})), text(json!({})), "without a seed each time another");
    let three = text(json!({ "n": 3, "seed": 42 }));
    assert_eq!(three[0], text(json!({ "seed": 42 }))[0]);
    assert!(three[0] != three[1] && three[1] != three[2]);
    // A bias of 100 decides, by id, in both forms.
    let greedy = |bias: Value| {
        let body = json!({ "prompt": "The", "max_tokens": 3, "temperature": 0, "logit_bias": bias, "logprobs": 0 });
        up.client.post(ROUTE, &body).ok()["choices"][0]["logprobs"]["tokens"].clone()
    };
    let token = up.client.post("/tokenize", &json!({ "content": "a" })).ok()["tokens"][0].clone();
    assert_eq!(greedy(json!({ token.to_string(): 100 })), json!(["a", "a", "a"]));
    assert_eq!(greedy(json!([[token, 100]])), json!(["a", "a", "a"]));
}

/// What lm-eval's `local-completions` asks for, and how it reads the answer.
#[test]
fn given_tokens_are_scored_as_by_the_scorer() {
    for (path, ids) in [(run(), vec![1u32, 5, 9, 77, 100, 259, 0, 3]), (golden("tiny_llama"), vec![1, 17, 230, 5, 8])] {
        let up = Up::new(vec![source("m", &path)], config());
        let expected: Vec<Value> = scores(&path, &ids).iter().map(|x| serde_json::from_str(&x.to_string()).unwrap()).collect();
        let ask = |more: Value| {
            let mut body = json!({ "prompt": [ids], "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": true, "ignore_eos": true });
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            up.client.post(ROUTE, &body)
        };
        for (more, new) in [(json!({}), 1), (json!({ "max_tokens": 0 }), 0), (json!({ "logprobs": 5, "max_tokens": 3 }), 3)] {
            let answer = ask(more.clone()).ok();
            let choice = &answer["choices"][0];
            let of = &choice["logprobs"];
            let list = |name: &str| of[name].as_array().unwrap().clone();
            let own = list("token_logprobs");
            assert_eq!(own.len(), ids.len() + new, "{more}");
            assert_eq!((&own[0], &list("top_logprobs")[0]), (&Value::Null, &Value::Null));
            assert_eq!(own[1..ids.len()], expected[..], "{path} {more}");
            let k = more["logprobs"].as_u64().unwrap_or(1) as usize;
            for ((own, top), token) in own.iter().zip(list("top_logprobs")).zip(list("tokens")).skip(1) {
                let top = top.as_object().unwrap();
                assert!((k..=k + 1).contains(&top.len()), "{top:?}");
                assert_eq!(&top[token.as_str().unwrap()], own);
            }
            // New tokens are the likeliest, to the bit.
            for (own, top) in own.iter().zip(list("top_logprobs")).skip(ids.len()) {
                let most = top.as_object().unwrap().values().map(|x| x.as_f64().unwrap()).fold(f64::MIN, f64::max);
                assert_eq!(own.as_f64().unwrap(), most);
            }
            let offsets: Vec<u64> = list("text_offset").iter().map(|x| x.as_u64().unwrap()).collect();
            assert!(
                offsets[0] == 0
                    && offsets.is_sorted()
                    && *offsets.last().unwrap() <= choice["text"].as_str().unwrap().chars().count() as u64
            );
            let (text, _, streamed) = joined(
                &ask(json!({ "stream": true })
                    .as_object()
                    .unwrap()
                    .iter()
                    .chain(more.as_object().unwrap())
                    .map(|(k, v)| (k.clone(), v.clone()))
                    .collect())
                .chunks(),
                0,
            );
            assert_eq!((json!(text), streamed), (choice["text"].clone(), own));
        }
        let limit = ask(json!({ "logprobs": 101 })).refused(400);
        assert_eq!(limit["param"], "logprobs");
        ask(json!({})).ok();
        // With BOS before them all tokens have a probability, those of a sequence that begins so.
        let with_bos = Up::new(vec![source("m", &path)], ServeConfig { score_bos: true, ..config() });
        let body = json!({ "prompt": ids[1..], "max_tokens": 0, "logprobs": 1, "echo": true });
        let own = with_bos.client.post(ROUTE, &body).ok()["choices"][0]["logprobs"]["token_logprobs"].clone();
        assert_eq!(own, json!(expected));
    }
}

#[test]
fn texts_that_end_are_told_whole() {
    let up = walks();
    let body = json!({ "prompt": "The old llama walks home", "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": true });
    let answer = up.client.post(ROUTE, &body).ok();
    let of = &answer["choices"][0]["logprobs"];
    // The token that ends the text is the one that was written.
    assert_eq!(of["tokens"].as_array().unwrap().last().unwrap(), "</s>");
    assert_eq!(of["tokens"].as_array().unwrap().len() as u64, answer["usage"]["total_tokens"].as_u64().unwrap());
    assert_eq!(
        (&answer["choices"][0]["text"], &answer["choices"][0]["finish_reason"]),
        (&json!("The old llama walks home"), &json!("stop"))
    );
    let on = json!({ "prompt": "The old llama walks home", "max_tokens": 1, "temperature": 0, "ignore_eos": true });
    assert_eq!(up.client.post(ROUTE, &on).ok()["choices"][0]["finish_reason"], "length");
    let none = json!({ "prompt": "The old", "max_tokens": 9, "temperature": 0, "stop_token_ids": up.client.post("/tokenize", &json!({ "content": "The old llama" })).ok()["tokens"].as_array().unwrap().iter().rev().take(1).collect::<Vec<_>>() });
    assert!(!up.client.post(ROUTE, &none).ok()["choices"][0]["text"].as_str().unwrap().contains("walks"));
}

#[test]
fn tokens_have_names_of_their_own() {
    let up = Up::new(vec![source("run", run())], config());
    let tokenizer = Tokenizer::open(Path::new(&run()).join("tokenizer.json")).unwrap();
    let ids: Vec<u32> = (0..tokenizer.vocab_size() as u32).collect();
    let strings = |text: &str| {
        let body = json!({ "prompt": text, "return_token_strs": true, "add_special_tokens": false });
        up.client.post("/tokenize", &body).ok()["token_strs"].clone()
    };
    assert_eq!(strings("\u{1f999}"), json!(["bytes:\\xf0", "bytes:\\x9f", "bytes:\\xa6", "bytes:\\x99"]));
    // All of them, as keys of one place.
    let body = json!({ "prompt": [1], "max_tokens": 1, "logprobs": 100, "ignore_eos": true });
    let top = up.client.post(ROUTE, &body).ok()["choices"][0]["logprobs"]["top_logprobs"][0].clone();
    assert!((100..=101).contains(&top.as_object().unwrap().len()));
    // llama.cpp's and vLLM's names of the same.
    let both = |body: Value| up.client.post("/tokenize", &body).ok();
    let theirs = both(json!({ "content": "The old", "add_special": true }));
    assert_eq!(theirs["tokens"], both(json!({ "prompt": "The old" }))["tokens"]);
    assert_eq!((&theirs["tokens"][0], &theirs["count"]), (&json!(1), &json!(theirs["tokens"].as_array().unwrap().len())));
    let pieces = both(json!({ "content": "a\u{1f999}", "with_pieces": true }));
    assert_eq!((&pieces["tokens"][0]["piece"], &pieces["tokens"][1]["piece"]), (&json!("a"), &json!([0xf0])));
    let text = "The old llama, in 1984: \u{65e5}";
    let tokens = both(json!({ "content": text }))["tokens"].clone();
    let back = up.client.post("/detokenize", &json!({ "tokens": tokens })).ok();
    assert_eq!((&back["prompt"], &back["content"]), (&json!(text), &json!(text)));
    assert_eq!(up.client.post("/detokenize", &json!({ "tokens": [ids.len()] })).refused(400)["type"], "invalid_request_error");
    let info = up.client.get("/tokenizer_info").ok();
    assert_eq!((&info["bos_token"], &info["eos_token"]), (&json!("<s>"), &json!("</s>")));
}

#[test]
fn a_model_without_a_tokenizer_speaks_ids() {
    let up = Up::new(vec![source("ids", golden("tiny_llama"))], config());
    let body =
        json!({ "prompt": [1, 17, 230], "max_tokens": 3, "temperature": 0, "echo": true, "logprobs": 0, "ignore_eos": true });
    let answer = up.client.post(ROUTE, &body).ok();
    let tokens = answer["choices"][0]["logprobs"]["tokens"].as_array().unwrap().clone();
    let text: String = tokens.iter().map(|token| token.as_str().unwrap()).collect();
    assert_eq!(answer["choices"][0]["text"], text);
    assert!(text.starts_with("<1><17><230><"), "{text}");
    for (path, body) in [
        (ROUTE, json!({ "prompt": "The old" })),
        (ROUTE, json!({ "prompt": [1], "stop": "a" })),
        ("/v1/chat/completions", json!({ "messages": [{ "role": "user", "content": "a" }] })),
        ("/v1/responses", json!({ "input": "a" })),
        ("/tokenize", json!({ "content": "a" })),
    ] {
        let error = up.client.post(path, &body).refused(400);
        assert_eq!(error["code"], "no_tokenizer", "{path}");
    }
    assert_eq!(up.client.get("/tokenizer_info").status, 400);
    up.client.post("/v1/embeddings", &json!({ "input": [1, 2, 3] })).ok();
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let up = walks();
    let ask = |key: &str, value: Value| {
        let mut body = json!({ "prompt": "The old", "max_tokens": 1 });
        body[key] = value;
        up.client.post(ROUTE, &body)
    };
    for (key, value) in [
        ("best_of", json!(2)),
        ("suffix", json!("a")),
        ("nonsense", json!(1)),
        ("use_beam_search", json!(true)),
        ("prompt_logprobs", json!(1)),
        ("prompt_embeds", json!("AAAA")),
        ("store", json!(true)),
        ("temperature", json!(-1)),
        ("temperature", json!("hot")),
        ("top_p", json!(0)),
        ("top_k", json!(-2)),
        ("n", json!(0)),
        ("n", json!(100_000)),
        ("logprobs", json!(-1)),
        ("stop", json!([""])),
        ("logit_bias", json!({ "1": 200 })),
        ("logit_bias", json!({ "99999": 1 })),
        ("stream_options", json!({})),
        ("max_tokens", json!(-1)),
        ("seed", json!(0.5)),
        ("stop_token_ids", json!(["a"])),
        ("min_tokens", json!(5)),
        ("min_p", json!(2)),
        ("repetition_penalty", json!(0)),
        ("response_format", json!({ "type": "xml" })),
        ("prompt", json!([])),
        ("prompt", json!([[]])),
        ("prompt", json!([99_999])),
        ("prompt", json!({})),
        ("prompt", json!(["a", 1])),
    ] {
        let error = ask(key, value.clone()).refused(400);
        assert!(error["param"] == key || error["message"].as_str().unwrap().contains(key), "{key} {value}: {error}");
    }
    for (key, value) in [
        ("user", json!("me")),
        ("metadata", json!({})),
        ("best_of", json!(1)),
        ("store", json!(false)),
        ("suffix", Value::Null),
        ("top_k", json!(-1)),
        ("logit_bias", Value::Null),
    ] {
        ask(key, value).ok();
    }
    // With the numbers.
    let error = ask("prompt", json!(vec![5; 100])).refused(400);
    assert_eq!(
        (&error["code"], &error["n_prompt_tokens"], &error["n_ctx"]),
        (&json!("context_length_exceeded"), &json!(100), &json!(64))
    );
    let error = up.client.post(ROUTE, &json!({ "prompt": vec![5; 100], "stream": true })).refused(400);
    assert_eq!(error["param"], "prompt");
    #[cfg(not(feature = "constrain"))]
    assert_eq!(ask("regex", json!("a+")).refused(400)["param"], "regex");
    #[cfg(feature = "constrain")]
    {
        assert_eq!(ask("regex", json!("a(")).refused(400)["param"], "regex");
        let body = json!({ "prompt": "The old", "max_tokens": 8, "regex": "[0-9]{3}", "n": 2 });
        let answer = up.client.post(ROUTE, &body).ok();
        for choice in answer["choices"].as_array().unwrap() {
            assert!(choice["text"].as_str().unwrap().parse::<u32>().is_ok(), "{choice}");
        }
    }
}

#[test]
fn log_probabilities_are_as_many_as_asked_for() {
    let up = walks();
    let ask = |logprobs: Value| {
        up.client.post(
            ROUTE,
            &json!({ "prompt": [5, 5, 5, 5, 5], "max_tokens": 5, "temperature": 0, "logprobs": logprobs, "ignore_eos": true }),
        )
    };
    assert_eq!(ask(Value::Null).ok()["choices"][0]["logprobs"], Value::Null);
    for k in [0usize, 1, 5] {
        let of = ask(json!(k)).ok()["choices"][0]["logprobs"].clone();
        for top in of["top_logprobs"].as_array().unwrap() {
            assert!((k.max(1)..=k + 1).contains(&top.as_object().unwrap().len()), "{k}: {top}");
        }
        for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            assert_eq!(of[list].as_array().unwrap().len(), 5, "{list}");
        }
        assert!(of["token_logprobs"].as_array().unwrap().iter().all(|x| x.as_f64().unwrap() <= 0.0));
    }
    assert_eq!(ask(json!(101)).refused(400)["param"], "logprobs");
    ask(json!(5)).ok();
}

#[test]
fn prompts_are_told_apart_in_streams() {
    let up = walks();
    let body = json!({ "prompt": ["The old", "The old llama"], "n": 2, "temperature": 0, "max_tokens": 32, "stream": true });
    let chunks = up.client.post(ROUTE, &body).chunks();
    assert!(chunks.iter().all(|chunk| chunk["choices"].as_array().unwrap().len() == 1));
    for (index, text) in [(0, " llama walks home"), (1, " llama walks home"), (2, " walks home"), (3, " walks home")] {
        let (found, reasons, _) = joined(&chunks, index);
        assert_eq!((found.as_str(), reasons), (text, vec!["stop".to_string()]));
        let mut of = chunks.iter().filter(|chunk| chunk["choices"][0]["index"] == index);
        assert!(of.next_back().unwrap()["choices"][0]["finish_reason"].is_string());
    }
}

#[test]
fn contexts_have_an_end() {
    let up = walks();
    let long = "The old llama walks home. ".repeat(20);
    for stream in [false, true] {
        let chat = json!({ "messages": [{ "role": "user", "content": long }], "stream": stream });
        for (path, body) in [("/v1/chat/completions", chat), (ROUTE, json!({ "prompt": long, "stream": stream }))] {
            let error = up.client.post(path, &body).refused(400);
            assert_eq!((&error["type"], &error["n_ctx"]), (&json!("exceed_context_size_error"), &json!(64)), "{path}");
            assert!(error["n_prompt_tokens"].as_u64().unwrap() > 64);
            assert!(error["message"].as_str().unwrap().contains("exceeds the available context size"));
        }
    }
    // A text ends where the context does.
    let full = up.client.post(ROUTE, &json!({ "prompt": vec![5; 60], "max_tokens": 100, "ignore_eos": true })).ok();
    assert_eq!((&full["choices"][0]["finish_reason"], &full["usage"]["prompt_tokens"]), (&json!("length"), &json!(60)));
    assert!((4..=5).contains(&full["usage"]["completion_tokens"].as_u64().unwrap()), "{full}");
}

#[test]
fn forms_that_cannot_be_are_refused() {
    let up = walks();
    let schema =
        |schema: Value| json!({ "response_format": { "type": "json_schema", "json_schema": { "name": "a", "schema": schema } } });
    for more in [
        schema(json!({ "type": "nothing" })),
        schema(json!(5)),
        json!({ "response_format": { "type": "json_schema" } }),
        json!({ "response_format": { "type": "yaml" } }),
        json!({ "response_format": "json_object" }),
        json!({ "regex": "a(" }),
        json!({ "grammar": "start: [" }),
        json!({ "regex": "a", "grammar": "start: \"a\"" }),
    ] {
        let mut body = json!({ "prompt": "The old", "max_tokens": 4 });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let error = up.client.post(ROUTE, &body).refused(400);
        let key = more.as_object().unwrap().keys().next_back().unwrap();
        assert!(
            error["param"].as_str().unwrap().starts_with(key.as_str()) || more.as_object().unwrap().len() > 1,
            "{more}: {error}"
        );
    }
    up.client.post(ROUTE, &json!({ "prompt": "The old", "max_tokens": 4 })).ok();
}
