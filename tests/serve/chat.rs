//! Conversations: chat, responses, messages, with tools and without.

use std::path::Path;

use recua::tokenizer::Tokenizer;
use serde_json::{Value, json};

use super::client::Answer;
use super::{Up, config, source};
use crate::faults_generate::{Script, chain, open};

/// A model that writes `text` after a prompt that ends as `last`, then the end.
fn scripted(tokenizer: &str, template: Option<&str>, last: &str, text: &str) -> Up {
    let dir = tempfile::tempdir().unwrap();
    let of = open(tokenizer);
    let last = *of.encode_with_special(last).unwrap().last().unwrap();
    // As it is written after something.
    let ids = after(&of, text);
    let mut all = chain(last, &ids);
    all.extend(chain(*ids.last().unwrap(), &[of.eos_id().unwrap()]));
    let mut script = Script::new(of.vocab_size(), &all);
    script.config.max_seq_len = 2048;
    let path = dir.path().join("model");
    script.save(&path, tokenizer);
    if let Some(template) = template {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/chat").join(template);
        std::fs::copy(from, path.join("chat_template.jinja")).unwrap();
    }
    let mut up = Up::new(vec![source("chat", &path)], config());
    up._dirs.push(dir);
    up
}

fn after(of: &Tokenizer, text: &str) -> Vec<u32> {
    let (before, all) = (of.encode(":").unwrap(), of.encode(&format!(":{text}")).unwrap());
    let ids = all[before.len()..].to_vec();
    let distinct: std::collections::HashSet<_> = ids.iter().collect();
    assert_eq!(distinct.len(), ids.len(), "a script writes each token once: {text}");
    ids
}

fn plain() -> Up {
    scripted("llama2.json", None, "Assistant:", " llama walks home")
}

/// Calls a tool.
fn calling() -> Up {
    scripted("llama3.json", Some("llama3.jinja"), "<|end_header_id|>\n\n", "[get(b=1)]")
}

fn user(text: &str) -> Value {
    json!([{ "role": "user", "content": text }])
}

fn with(body: Value, more: Value) -> Value {
    let mut body = body;
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[test]
fn a_conversation_is_answered() {
    let up = plain();
    let ask =
        |more: Value| up.client.post("/v1/chat/completions", &with(json!({ "messages": user("Hi"), "temperature": 0 }), more));
    let whole = ask(json!({})).ok();
    let choice = &whole["choices"][0];
    assert_eq!(choice["message"]["content"], "llama walks home");
    assert_eq!((&choice["message"]["role"], &choice["finish_reason"]), (&json!("assistant"), &json!("stop")));
    assert_eq!(whole["object"], "chat.completion");
    let chunks = ask(json!({ "stream": true, "stream_options": { "include_usage": true }, "n": 2 })).chunks();
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({ "role": "assistant", "content": "" }));
    for i in 0..2 {
        let of = || chunks.iter().filter_map(|chunk| chunk["choices"].get(0)).filter(|choice| choice["index"] == i);
        let text: String = of().filter_map(|choice| choice["delta"]["content"].as_str()).collect();
        assert_eq!(text, "llama walks home");
        let last = of().next_back().unwrap();
        assert_eq!((&last["finish_reason"], &last["delta"]), (&json!("stop"), &json!({})));
        assert_eq!(of().filter(|choice| !choice["finish_reason"].is_null()).count(), 1);
    }
    assert_eq!((&chunks.last().unwrap()["choices"], chunks.last().unwrap()["usage"].is_object()), (&json!([]), true));
    // Log-probabilities: their tokens are the text.
    let told = ask(json!({ "logprobs": true, "top_logprobs": 3 })).ok();
    let content = told["choices"][0]["logprobs"]["content"].as_array().unwrap();
    let text: String = content.iter().map(|one| one["token"].as_str().unwrap()).collect();
    assert_eq!(text.trim_start(), "llama walks home");
    for one in content {
        assert_eq!(one["top_logprobs"].as_array().unwrap().len(), 3);
        assert_eq!(one["top_logprobs"][0]["token"], one["token"]);
        assert_eq!(one["top_logprobs"][0]["logprob"], one["logprob"]);
        let bytes: Vec<u8> = serde_json::from_value(one["bytes"].clone()).unwrap();
        assert_eq!(bytes, one["token"].as_str().unwrap().as_bytes());
    }
    // Parts of text, the system's text, the turn after an answer: of that only what is new is computed.
    let parts = json!([{ "role": "user", "content": [{ "type": "text", "text": "H" }, { "type": "text", "text": "i" }] }]);
    assert_eq!(ask(json!({ "messages": parts })).ok()["usage"]["prompt_tokens"], whole["usage"]["prompt_tokens"]);
    let long = "a llama walks home and ".repeat(8);
    let talk = json!([{ "role": "system", "content": long }, { "role": "user", "content": "Hi" }]);
    ask(json!({ "messages": talk })).ok();
    let mut next = talk.as_array().unwrap().clone();
    next.extend([json!({ "role": "assistant", "content": "llama" }), json!({ "role": "user", "content": "And?" })]);
    let usage = ask(json!({ "messages": next })).ok()["usage"].clone();
    let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    assert!(cached > 0 && cached + 32 > usage["prompt_tokens"].as_u64().unwrap() / 2, "{usage}");
    assert_eq!(ask(json!({ "messages": next, "cache_salt": "mine" })).ok()["usage"]["prompt_tokens_details"]["cached_tokens"], 0);

    for (messages, about) in [
        (json!([]), "messages"),
        (json!("Hi"), "messages"),
        (json!([1]), "messages[0]"),
        (json!([{}]), "messages[0].role"),
        (json!([{ "role": "user" }]), "content"),
        (json!([{ "role": "user", "content": 1 }]), "content"),
        (json!([{ "role": "cat", "content": "a" }]), "role"),
        (json!([{ "role": "user", "content": [{ "type": "image_url" }] }]), "image_url"),
        (Value::Null, "messages"),
    ] {
        let error = ask(json!({ "messages": messages })).refused(400);
        assert!(error["param"].as_str().unwrap().contains(about), "{messages}: {error}");
    }
    for (key, value) in [
        ("top_logprobs", json!(2)),
        ("tools", json!([{ "type": "function", "function": { "name": "f" } }])),
        ("tool_choice", json!("required")),
        ("functions", json!([{}])),
        ("audio", json!({})),
        ("echo", json!(true)),
    ] {
        let mut more = json!({});
        more[key] = value;
        assert_eq!(ask(more).refused(400)["param"], key);
    }
}

#[test]
fn tools_are_called() {
    let up = calling();
    let tools = json!([{ "type": "function", "function": { "name": "get", "description": "b", "parameters": { "type": "object", "properties": {} } } }]);
    let ask = |more: Value| {
        up.client.post("/v1/chat/completions", &with(json!({ "messages": user("Hi"), "temperature": 0, "tools": tools }), more))
    };
    let whole = ask(json!({})).ok();
    let choice = &whole["choices"][0];
    assert_eq!((&choice["finish_reason"], &choice["message"]["content"]), (&json!("tool_calls"), &Value::Null), "{whole}");
    let call = &choice["message"]["tool_calls"][0];
    assert_eq!(call["function"], json!({ "name": "get", "arguments": "{\"b\":1}" }));
    let chunks = ask(json!({ "stream": true })).chunks();
    let calls: Vec<&Value> = chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"].get("tool_calls")).collect();
    assert_eq!((calls.len(), &calls[0][0]["function"], &calls[0][0]["index"]), (1, &call["function"], &json!(0)));
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
    // What calls no tool that is there is text.
    for more in [
        json!({ "tool_choice": "none" }),
        json!({ "tools": [{ "type": "function", "function": { "name": "put" } }] }),
        json!({ "tools": [] }),
    ] {
        let text = ask(more).ok();
        assert_eq!(
            (&text["choices"][0]["message"]["content"], &text["choices"][0]["finish_reason"]),
            (&json!("[get(b=1)]"), &json!("stop"))
        );
    }
    // The result comes back.
    let talk = json!([
        user("Hi")[0],
        { "role": "assistant", "content": null, "tool_calls": [call] },
        { "role": "tool", "tool_call_id": call["id"], "content": "2" },
    ]);
    assert!(ask(json!({ "messages": talk })).ok()["usage"]["prompt_tokens"].as_u64() > whole["usage"]["prompt_tokens"].as_u64());
    // The template gets the tools as they were written, members in their order.
    let count =
        |tools: Value| up.client.post("/tokenize", &json!({ "messages": user("Hi"), "tools": tools })).ok()["count"].clone();
    assert_eq!(count(tools.clone()), whole["usage"]["prompt_tokens"]);

    // The same by Anthropic's route and by the responses'.
    let of = |more: Value| with(json!({ "model": "m", "temperature": 0 }), more);
    let input = json!({ "name": "get", "description": "b", "input_schema": { "type": "object", "properties": {} } });
    let body = of(json!({ "messages": user("Hi"), "max_tokens": 50, "tools": [input] }));
    let message = up.client.post("/v1/messages", &body).ok();
    assert_eq!((&message["stop_reason"], &message["content"][0]["input"]), (&json!("tool_use"), &json!({ "b": 1 })), "{message}");
    assert_eq!((&message["content"][0]["type"], &message["content"][0]["name"]), (&json!("tool_use"), &json!("get")));
    let events = up.client.post("/v1/messages", &with(body, json!({ "stream": true }))).events();
    let delta = events.iter().find(|(_, data)| data["delta"]["type"] == "input_json_delta").unwrap();
    assert_eq!(delta.1["delta"]["partial_json"], "{\"b\":1}");
    let talk = json!([user("Hi")[0], { "role": "assistant", "content": message["content"] }, { "role": "user", "content": [{ "type": "tool_result", "tool_use_id": message["content"][0]["id"], "content": "2" }] }]);
    up.client.post("/v1/messages", &of(json!({ "messages": talk, "max_tokens": 5 }))).ok();

    let function =
        json!({ "type": "function", "name": "get", "description": "b", "parameters": { "type": "object", "properties": {} } });
    let body =
        of(json!({ "input": "Hi", "tools": [function, { "type": "web_search" }, { "type": "custom", "name": "apply_patch" }] }));
    let answer = up.client.post("/v1/responses", &body);
    assert_eq!(answer.header("x-recua-dropped-tools"), Some("web_search, custom:apply_patch"));
    let response = answer.ok();
    let call = &response["output"][0];
    assert_eq!((&call["type"], &call["name"], &call["arguments"]), (&json!("function_call"), &json!("get"), &json!("{\"b\":1}")));
    let kinds = kinds(&up.client.post("/v1/responses", &with(body, json!({ "stream": true }))));
    assert!(kinds.contains(&"response.function_call_arguments.done".to_string()), "{kinds:?}");
    let talk = json!([{ "role": "user", "content": "Hi" }, call, { "type": "function_call_output", "call_id": call["call_id"], "output": "2" }]);
    up.client.post("/v1/responses", &of(json!({ "input": talk, "max_output_tokens": 5 }))).ok();
}

/// `required`, a function by its name, and the same in the words of the other routes.
#[test]
fn tools_must_be_called_where_that_is_asked_for() {
    let up = calling();
    let schema =
        json!({ "type": "object", "properties": { "b": { "enum": [1, 2] } }, "required": ["b"], "additionalProperties": false });
    let function = |name: &str| json!({ "name": name, "description": "b", "parameters": schema });
    let tools = json!([{ "type": "function", "function": function("get") }, { "type": "function", "function": function("put") }]);
    let chat = json!({ "messages": user("Hi"), "temperature": 0, "tools": tools, "max_tokens": 100 });
    let mut flat = [function("get"), function("put")];
    flat.iter_mut().for_each(|tool| tool["type"] = "function".into());
    let responses = json!({ "input": "Hi", "temperature": 0, "tools": flat, "max_output_tokens": 100 });
    let mut theirs = ["get", "put"].map(|name| json!({ "name": name, "input_schema": schema }));
    theirs.iter_mut().for_each(|tool| tool["description"] = "b".into());
    let messages = json!({ "messages": user("Hi"), "temperature": 0, "tools": theirs, "max_tokens": 100 });
    let ask =
        |path: &str, body: &Value, choice: Value| up.client.post(path, &with(body.clone(), json!({ "tool_choice": choice })));
    let named = |name: &str| json!({ "type": "function", "function": { "name": name } });
    for (path, body, choice, about) in [
        ("/v1/chat/completions", &chat, named("cut"), "`cut` is none of the tools"),
        ("/v1/chat/completions", &chat, json!({ "type": "function" }), "a function with a name"),
        ("/v1/chat/completions", &chat, json!("always"), "required or a function"),
        ("/v1/responses", &responses, json!({ "type": "function", "name": "cut" }), "`cut` is none of the tools"),
        ("/v1/messages", &messages, json!({ "type": "tool", "name": "cut" }), "`cut` is none of the tools"),
        ("/v1/messages", &messages, json!({ "type": "tool" }), "tool with a name"),
    ] {
        let error = ask(path, body, choice).refused(400);
        assert!(error["message"].as_str().unwrap().contains(about), "{error}");
    }
    if cfg!(not(feature = "constrain")) {
        for (path, body, choice) in [
            ("/v1/chat/completions", &chat, json!("required")),
            ("/v1/chat/completions", &chat, named("put")),
            ("/v1/responses", &responses, json!("required")),
            ("/v1/messages", &messages, json!({ "type": "any" })),
        ] {
            let error = ask(path, body, choice).refused(400);
            assert!(error["message"].as_str().unwrap().contains("`tool_choice` is not supported"), "{path}: {error}");
        }
        return;
    }
    // The model itself would write something else; the arguments are of the schema.
    let fits = |arguments: &Value| {
        let object: Value = arguments.as_str().map_or(arguments.clone(), |text| serde_json::from_str(text).unwrap());
        object == json!({ "b": 1 }) || object == json!({ "b": 2 })
    };
    for (choice, name) in [(json!("required"), "get"), (named("put"), "put")] {
        let whole = ask("/v1/chat/completions", &chat, choice).ok();
        let choice = &whole["choices"][0];
        let function = &choice["message"]["tool_calls"][0]["function"];
        assert_eq!((&choice["finish_reason"], &function["name"]), (&json!("tool_calls"), &json!(name)), "{whole}");
        assert!(fits(&function["arguments"]), "{whole}");
    }
    let response = ask("/v1/responses", &responses, json!({ "type": "function", "name": "put" })).ok();
    let call = &response["output"][0];
    assert!(call["name"] == "put" && fits(&call["arguments"]), "{response}");
    let message = ask("/v1/messages", &messages, json!({ "type": "tool", "name": "put" })).ok();
    assert!(message["content"][0]["name"] == "put" && fits(&message["content"][0]["input"]), "{message}");
    let both = with(chat, json!({ "response_format": { "type": "json_object" } }));
    assert_eq!(ask("/v1/chat/completions", &both, json!("required")).refused(400)["param"], "tool_choice");
}

fn kinds(answer: &Answer) -> Vec<String> {
    answer.events().into_iter().map(|(name, _)| name).collect()
}

#[test]
fn responses_are_stateless() {
    let up = plain();
    let ask =
        |more: Value| up.client.post("/v1/responses", &with(json!({ "input": "Hi", "temperature": 0, "model": "m" }), more));
    let whole = ask(json!({})).ok();
    assert_eq!((&whole["status"], &whole["object"]), (&json!("completed"), &json!("response")));
    assert_eq!(whole["output"][0]["content"][0]["text"], "llama walks home");
    assert_eq!(whole["output"][0]["role"], "assistant");
    let usage = &whole["usage"];
    assert_eq!(
        usage["total_tokens"].as_u64().unwrap(),
        usage["input_tokens"].as_u64().unwrap() + usage["output_tokens"].as_u64().unwrap()
    );
    let answer = ask(json!({ "stream": true }));
    let events = answer.events();
    let mut names = kinds(&answer);
    names.dedup();
    assert_eq!(
        names,
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.completed",
        ]
    );
    assert!(events.iter().enumerate().all(|(i, (name, data))| data["sequence_number"] == i && data["type"] == *name));
    let text: String = events
        .iter()
        .filter(|(name, _)| name == "response.output_text.delta")
        .map(|(_, data)| data["delta"].as_str().unwrap())
        .collect();
    assert_eq!(text, "llama walks home");
    assert_eq!(events.last().unwrap().1["response"]["output"][0]["content"], whole["output"][0]["content"]);
    let cut = ask(json!({ "max_output_tokens": 1 })).ok();
    assert_eq!((&cut["status"], &cut["incomplete_details"]["reason"]), (&json!("incomplete"), &json!("max_output_tokens")));
    // What Codex sends beside.
    let codex = json!({
        "instructions": "Be brief.", "store": false, "prompt_cache_key": "a", "include": ["reasoning.encrypted_content"],
        "reasoning": { "effort": "low", "summary": "auto" }, "parallel_tool_calls": false, "tool_choice": "auto",
        "client_metadata": {}, "text": { "verbosity": "low" },
        "tools": [{ "type": "function", "name": "shell", "parameters": {} }, { "type": "local_shell" }],
        "input": [
            { "type": "message", "role": "developer", "content": [{ "type": "input_text", "text": "a" }] },
            { "type": "reasoning", "summary": [] },
            { "type": "message", "role": "user", "content": [{ "type": "input_text", "text": "Hi" }] },
        ],
    });
    let answer = ask(codex);
    assert_eq!(
        answer.header("x-recua-dropped-tools"),
        Some("function:shell, local_shell"),
        "the plain form has no place for tools"
    );
    assert_eq!(answer.ok()["output"][0]["content"][0]["text"], "llama walks home");
    for (key, value) in [
        ("previous_response_id", json!("resp_1")),
        ("background", json!(true)),
        ("store", json!(true)),
        ("conversation", json!("c")),
        ("tool_choice", json!("required")),
        ("input", json!(1)),
        ("truncation", json!("auto")),
    ] {
        let mut more = json!({});
        more[key] = value;
        assert_eq!(ask(more).refused(400)["param"], key);
    }
}

#[test]
fn messages_have_anthropics_shape() {
    let up = plain();
    let ask = |more: Value| {
        up.client.post(
            "/v1/messages",
            &with(json!({ "model": "m", "messages": user("Hi"), "max_tokens": 50, "temperature": 0 }), more),
        )
    };
    let whole = ask(json!({})).ok();
    assert_eq!(
        (&whole["type"], &whole["role"], &whole["stop_reason"]),
        (&json!("message"), &json!("assistant"), &json!("end_turn"))
    );
    assert_eq!(whole["content"], json!([{ "type": "text", "text": "llama walks home" }]));
    let answer = ask(json!({ "stream": true }));
    let mut names = kinds(&answer);
    names.dedup();
    assert_eq!(
        names,
        [
            "message_start",
            "ping",
            "content_block_start",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop"
        ]
    );
    let text: String = answer.events().iter().filter_map(|(_, data)| data["delta"]["text"].as_str().map(String::from)).collect();
    assert_eq!(text, "llama walks home");
    assert_eq!(ask(json!({ "max_tokens": 1 })).ok()["stop_reason"], "max_tokens");
    let stopped = ask(json!({ "stop_sequences": [" walks"] })).ok();
    assert_eq!(
        (&stopped["stop_reason"], &stopped["stop_sequence"], &stopped["content"][0]["text"]),
        (&json!("stop_sequence"), &json!(" walks"), &json!("llama"))
    );
    let count = |body: Value| up.client.post("/v1/messages/count_tokens", &body).ok()["input_tokens"].as_u64().unwrap();
    let usage = &whole["usage"];
    let counted = usage["input_tokens"].as_u64().unwrap() + usage["cache_read_input_tokens"].as_u64().unwrap();
    assert_eq!(count(json!({ "messages": user("Hi") })), counted);
    let system = json!([{ "type": "text", "text": "Be brief.", "cache_control": { "type": "ephemeral" } }]);
    assert!(count(json!({ "messages": user("Hi"), "system": system })) > counted);
    for more in [
        json!({ "max_tokens": 0 }),
        json!({ "messages": [] }),
        json!({ "thinking": { "type": "enabled" } }),
        json!({ "n": 2 }),
        json!({ "messages": [{ "role": "user", "content": [{ "type": "image" }] }] }),
    ] {
        let answer = ask(more.clone());
        assert_eq!((answer.status, &answer.json()["type"]), (400, &json!("error")), "{more}");
        assert_eq!(answer.json()["error"]["type"], "invalid_request_error");
    }
}
