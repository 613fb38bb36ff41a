//! Connections that say nothing, prompts that take long, an engine that panics.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use burn::tensor::Tensor;
use recua::backend::Flex;
use recua::generate::{Engine, EngineConfig};
use recua::model::{Llama, ModelConfig};
use recua::serve::{ModelSource, ServeConfig};
use serde_json::{Value, json};

use super::{Up, config, endless, source};
use crate::cli_generate::run;

/// What comes until the other side closes.
fn rest(mut stream: &TcpStream) -> String {
    let mut all = String::new();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let _ = stream.read_to_string(&mut all); // a reset is an end too
    all
}

#[test]
fn who_says_nothing_is_not_waited_for() {
    let config = ServeConfig { read_time: Duration::from_millis(400), max_connections: 4, ..config() };
    let up = Up::new(vec![source("run", run())], config);
    let connect = |text: &str| {
        let mut stream = TcpStream::connect(up.client.address).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        stream
    };
    // Heads that never end, of all the connections that there may be: others wait until those are closed.
    let began = Instant::now();
    let slow: Vec<TcpStream> =
        ["", "GET ", "POST /v1/completions HTTP/1.1\r\nHost:", "GET /health HTTP/1.1\r\nX: "].into_iter().map(connect).collect();
    up.client.get("/health").ok();
    assert!(began.elapsed() >= Duration::from_millis(300) && began.elapsed() < Duration::from_secs(10));
    slow.iter().for_each(|stream| assert!(!rest(stream).contains(" 200 ")));
    // A body that stops.
    let body = connect("POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{\"prompt\": ");
    let answer = rest(&body);
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("body_timeout"), "{answer}");
    // A client that waits between its requests has the same time; an answer may take longer than that.
    let idle = connect("GET /health HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(rest(&idle).starts_with("HTTP/1.1 200 "));
    up.client.post("/v1/completions", &json!({ "prompt": "a", "max_tokens": 200, "ignore_eos": true })).ok();
    up.idle();
}

#[test]
fn answers_may_take_longer_than_questions() {
    let up = endless(ServeConfig { read_time: Duration::from_millis(200), ..config() }, Duration::from_secs(5));
    let began = Instant::now();
    let mut tokens = 2_000;
    while began.elapsed() < Duration::from_millis(400) {
        let body = json!({ "prompt": "a", "max_tokens": tokens, "temperature": 0, "ignore_eos": true });
        assert_eq!(up.client.post("/v1/completions", &body).ok()["usage"]["completion_tokens"], tokens);
        tokens += 8_000;
    }
}

#[test]
fn a_line_that_waits_is_kept_alive() {
    let keep_alive = Duration::from_millis(5);
    let up = endless(ServeConfig { keep_alive, ..config() }, Duration::from_secs(5));
    let long = "a ".repeat(6_000);
    let stream = json!({ "stream": true, "max_tokens": 2, "temperature": 0 });
    for (path, prompt) in
        [("/v1/completions", json!(long)), ("/v1/chat/completions", json!([{ "role": "user", "content": long }]))]
    {
        let mut body = stream.clone();
        body[if path.ends_with("chat/completions") { "messages" } else { "prompt" }] = prompt;
        // The second time it would be in the cache.
        body["cache_salt"] = path.into();
        let answer = up.client.post(path, &body);
        let text = answer.text();
        let (before, _) = text.split_once("\"finish_reason\":\"length\"").unwrap();
        assert!(before.contains(": keep-alive\n\n"), "{path}: {text}");
        // Nobody takes them for events.
        assert!(!answer.chunks().is_empty());
    }
}

/// A model that knows fewer tokens than it says: asked for one of the others it panics in the middle of a step.
fn brittle() -> ModelSource {
    let model = ModelConfig { dim: 32, n_layers: 1, n_heads: 2, vocab_size: 600, max_seq_len: 50_000, ..ModelConfig::default() };
    let device = Default::default();
    let built = Llama::<Flex>::build(&model, &device, &mut |name, shape| {
        let rows = if name == "tok_embeddings.weight" { 500 } else { shape[0] };
        let values = match shape {
            [_] => Tensor::<Flex, 1>::ones([rows], &device).into_primitive(),
            shape => Tensor::<Flex, 2>::full([rows, shape[1]], 0.01, &device).into_primitive(),
        };
        Ok(values.tensor())
    });
    let engine = Engine::new(built.unwrap(), EngineConfig { max_batch: 4, max_len: Some(40_000), ..EngineConfig::default() });
    ModelSource::from_engine("brittle", engine.unwrap(), None, vec![])
}

#[test]
fn a_panic_of_the_engine_ends_the_server_and_says_why() {
    let mut up = Up::new(vec![brittle()], config());
    let ask = |body: Value| {
        let client = up.client.clone();
        std::thread::spawn(move || client.post("/v1/completions", &body))
    };
    // They write a token that it knows.
    let long = json!({ "prompt": [1, 2], "max_tokens": 30_000, "temperature": 0, "logit_bias": { "7": 100 } });
    let others = [false, true].map(|stream| {
        let mut body = long.clone();
        body["stream"] = stream.into();
        ask(body)
    });
    up.until(|| up.server.active() == 2);
    let error = ask(json!({ "prompt": [1, 599] })).join().unwrap().refused(500);
    assert!(error["message"].as_str().unwrap().contains("token 599 is outside the vocabulary"), "{error}");
    let [whole, streamed] = others.map(|other| other.join().unwrap());
    let errors = [whole.refused(500), streamed.events().pop().unwrap().1["error"].clone()];
    assert!(errors.iter().all(|other| other["message"] == error["message"]), "{errors:?}");
    let problem = up.runtime.block_on(up.running.take().unwrap()).unwrap().unwrap_err().to_string();
    assert!(problem.contains("brittle: it panicked: ") && problem.contains("outside the vocabulary of 500"), "{problem}");
}
