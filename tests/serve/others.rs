//! What is not a text: models, keys, embeddings, metrics, pages, and `recua serve` itself.

use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;

use recua::serve::ServeConfig;
use serde_json::{Value, json};

use super::client::Client;
use super::{Up, config, endless, source, walks};
use crate::cli_generate::{golden, run};
use crate::faults_generate::{recua, stderr};

#[test]
fn several_models_are_told_apart() {
    let up = Up::new(vec![source("small", run()), source("ids", golden("tiny_llama"))], config());
    let list = up.client.get("/v1/models").ok();
    let names: Vec<&str> = list["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert_eq!(names, ["small", "ids"]);
    assert_eq!(list["data"][1]["max_model_len"], 256);
    assert_eq!(up.client.get("/v1/models/ids").ok()["id"], "ids");
    assert_eq!(up.client.get("/v1/models/none").refused(404)["code"], "model_not_found");
    let ask = |model: Value| up.client.post("/v1/completions", &json!({ "model": model, "prompt": [1], "max_tokens": 1 }));
    assert_eq!(ask(json!("ids")).ok()["model"], "ids");
    assert_eq!(ask(json!("small")).ok()["model"], "small");
    let error = ask(json!("none")).refused(404);
    assert!(error["message"].as_str().unwrap().contains("small, ids"), "{error}");
    assert_eq!(ask(Value::Null).refused(400)["param"], "model");
    assert!(up.client.get("/metrics").text().contains("model_name=\"ids\""));
}

#[test]
fn keys_open_the_door() {
    let config =
        ServeConfig { api_keys: vec!["first".into(), "second".into()], cors_origins: vec!["http://page".into()], ..config() };
    let up = Up::new(vec![source("run", run())], config);
    let body = json!({ "prompt": (1..25).collect::<Vec<u32>>(), "max_tokens": 1 });
    for client in [up.client.clone(), up.client.with("Authorization: Bearer third"), up.client.with("X-Api-Key: firs")] {
        let error = client.post("/v1/completions", &body).refused(401);
        assert_eq!((&error["type"], &error["code"]), (&json!("authentication_error"), &json!("invalid_api_key")));
        assert_eq!(client.get("/v1/models").status, 401);
        client.get("/health").ok();
        assert_eq!(client.get("/").status, 200);
    }
    assert_eq!(up.client.post("/v1/messages", &json!({})).json()["type"], "error");
    let cached = |client: &Client| {
        client.post("/v1/completions", &body).ok()["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
    };
    let (first, second) = (up.client.with("Authorization: Bearer first"), up.client.with("x-api-key: second"));
    assert_eq!(cached(&first), 0);
    assert!(cached(&first) > 0);
    assert_eq!(cached(&second), 0, "nobody sees what others have asked");
    // A page elsewhere.
    let page = up.client.with("Origin: http://page").with("Access-Control-Request-Headers: authorization");
    let preflight = page.raw("OPTIONS", "/v1/completions", b"");
    assert_eq!((preflight.status, preflight.header("access-control-allow-origin")), (204, Some("http://page")));
    assert_eq!(preflight.header("access-control-allow-headers"), Some("authorization"));
    let other = up.client.with("Origin: http://other").raw("OPTIONS", "/v1/completions", b"");
    assert_eq!(other.header("access-control-allow-origin"), None);
    // Names of requests.
    let named = first.with("X-Request-Id: my-7").post("/v1/completions", &body);
    assert_eq!(named.header("x-request-id"), Some("my-7"));
    assert!(up.client.get("/health").header("x-request-id").unwrap().starts_with("req-"));
    up.until(|| {
        up.log.lock().unwrap().iter().any(|line| line.starts_with("POST /v1/completions 200 ") && line.ends_with("my-7"))
    });
    assert!(up.log.lock().unwrap().iter().all(|line| !line.contains("first") && !line.contains("second")));
}

#[test]
fn embeddings_are_of_length_one() {
    let up = walks();
    let ask = |input: Value, more: Value| {
        let mut body = json!({ "input": input, "model": "m" });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        up.client.post("/v1/embeddings", &body)
    };
    let floats = |value: &Value| value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect::<Vec<_>>();
    let two = ask(json!(["The old llama", "walks"]), json!({})).ok();
    let (a, b) = (floats(&two["data"][0]["embedding"]), floats(&two["data"][1]["embedding"]));
    for one in [&a, &b] {
        let norm: f32 = one.iter().map(|x| x * x).sum();
        assert!(one.len() == 16 && (norm - 1.0).abs() < 1e-5, "{one:?}");
    }
    assert_ne!(a, b);
    let alone = ask(json!("walks"), json!({ "encoding_format": "float", "user": "me" })).ok();
    assert_eq!(floats(&alone["data"][0]["embedding"]), b);
    let tokens = up.client.post("/tokenize", &json!({ "prompt": "walks" })).ok();
    assert_eq!(floats(&ask(tokens["tokens"].clone(), json!({})).ok()["data"][0]["embedding"]), b);
    assert_eq!(alone["usage"]["prompt_tokens"], tokens["count"]);
    // The mean of the corners that its tokens' embeddings are: the model's one layer adds nothing.
    let ids: Vec<u32> = serde_json::from_value(tokens["tokens"].clone()).unwrap();
    let sum: Vec<f32> =
        (0..16).map(|bit| ids.iter().map(|id| if id >> bit & 1 == 1 { 1.0 } else { -1.0 }).sum::<f32>()).collect();
    let norm = sum.iter().map(|x| x * x).sum::<f32>().sqrt();
    assert!(sum.iter().zip(&b).all(|(x, y)| (x / norm - y).abs() < 1e-4), "{sum:?} {b:?}");
    let base64 =
        ask(json!("walks"), json!({ "encoding_format": "base64" })).ok()["data"][0]["embedding"].as_str().unwrap().to_string();
    assert_eq!(decode(&base64).chunks(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect::<Vec<_>>(), b);
    for (input, more) in [
        (json!([]), json!({})),
        (json!({}), json!({})),
        (json!("a"), json!({ "dimensions": 4 })),
        (json!([99_999]), json!({})),
        (json!(vec![3; 65]), json!({})),
    ] {
        ask(input, more).refused(400);
    }
    up.idle();
}

fn decode(text: &str) -> Vec<u8> {
    const LETTERS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits: Vec<u32> = text.trim_end_matches('=').chars().map(|c| LETTERS.find(c).unwrap() as u32).collect();
    let mut out = Vec::new();
    for chunk in bits.chunks(4) {
        let all = chunk.iter().fold(0, |all, six| all << 6 | six) << (6 * (4 - chunk.len()));
        out.extend((0..chunk.len() - 1).map(|i| (all >> (16 - 8 * i)) as u8));
    }
    out
}

#[test]
fn the_server_says_what_it_has_done() {
    let up = walks();
    for _ in 0..10 {
        up.client.post("/v1/completions", &json!({ "prompt": "The old", "max_tokens": 2, "temperature": 0 })).ok();
    }
    up.idle();
    let metrics = up.client.get("/metrics");
    assert!(metrics.header("content-type").unwrap().starts_with("text/plain"));
    let text = metrics.text();
    let value = |name: &str| {
        let line =
            text.lines().find(|line| line.starts_with(&format!("vllm:{name}"))).unwrap_or_else(|| panic!("{name}: {text}"));
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    assert_eq!(value("generation_tokens_total{"), 20.0);
    assert_eq!(value("request_success_total{engine=\"0\",model_name=\"walks\",finished_reason=\"length\"}"), 10.0);
    assert_eq!((value("time_to_first_token_seconds_count"), value("inter_token_latency_seconds_count")), (10.0, 10.0));
    assert_eq!((value("e2e_request_latency_seconds_count"), value("num_requests_running{")), (10.0, 0.0));
    assert!(value("prompt_tokens_total{") >= 20.0);
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        assert!(line.rsplit(' ').next().unwrap().parse::<f64>().is_ok(), "{line}");
    }
    let api = up.client.get("/openapi.json").ok();
    for path in ["/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/embeddings", "/tokenize"] {
        assert!(api["paths"][path]["post"].is_object(), "{path}");
    }
    // Pages that ask nobody else for anything.
    for path in ["/", "/docs"] {
        let page = up.client.get(path);
        let html = page.text();
        assert!(html.starts_with("<!doctype html>") && !html.contains("http://") && !html.contains("https://"), "{path}");
        assert!(page.header("content-security-policy").unwrap().contains("default-src 'none'"));
    }
    for (path, kind) in [("/page.css", "text/css"), ("/page.js", "text/javascript")] {
        let part = up.client.get(path);
        assert!(part.status == 200 && part.header("content-type").unwrap().starts_with(kind), "{path}");
    }
    assert_eq!(up.client.get("/nothing").refused(404)["code"], "not_found");
    assert_eq!(up.client.get("/v1/completions").refused(405)["code"], "method_not_allowed");
}

#[cfg(unix)]
#[test]
fn the_verb_serves_until_it_is_told_to_stop() {
    let (path, model) = (run(), format!("llama={}", run()));
    let mut child = recua(&["serve", "--model", &model, "--port", "0", "--threads", "1"]).stdin(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("http://").unwrap_or_else(|| panic!("{line}")).parse().unwrap();
    let client = Client::new(address);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while client.get("/health").status != 200 {
        assert!(std::time::Instant::now() < deadline);
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let answer = client.post("/v1/completions", &json!({ "prompt": "The", "max_tokens": 3 })).ok();
    assert_eq!(answer["model"], "llama");
    // Another one at its port.
    let other = recua(&["serve", "--run", &path, "--port", &address.port().to_string()]).output().unwrap();
    assert_eq!(other.status.code(), Some(2));
    assert!(stderr(&other).contains("is taken by another program"), "{}", stderr(&other));
    // SAFETY: sends a signal to a child of this process.
    unsafe { libc::kill(child.id() as i32, libc::SIGTERM) };
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "{}", stderr(&out));
    let said = stderr(&out);
    assert!(said.contains("curl http://") && said.contains("POST /v1/completions 200"), "{said}");
    let missing = recua(&["serve", "--model", "/nowhere/at/all", "--port", "0"]).output().unwrap();
    assert_eq!(missing.status.code(), Some(1), "{}", stderr(&missing));
}

#[cfg(unix)]
#[test]
fn a_second_signal_is_enough() {
    let endless = endless(config(), std::time::Duration::from_secs(5));
    let path = endless._dirs[0].path().join("model").to_str().unwrap().to_string();
    let more = ["--port", "0", "--threads", "1", "--drain-seconds", "600", "--max-len", "50000"];
    let args = [&["serve", "--model", path.as_str()], &more[..]].concat();
    let mut child = recua(&args).stdin(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let client = Client::new(line.trim().strip_prefix("http://").unwrap().parse().unwrap());
    let until = |status: u16| {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while client.get("/health").status != status {
            assert!(std::time::Instant::now() < deadline);
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    };
    until(200);
    let body = json!({ "prompt": "a", "max_tokens": 40_000, "temperature": 0, "ignore_eos": true, "stream": true });
    let mut held = client.send("POST", "/v1/completions", body.to_string().as_bytes());
    held.read_exact(&mut [0; 300]).unwrap();
    let pid = child.id() as i32;
    // SAFETY: sends a signal to a child of this process.
    let signal = || unsafe { libc::kill(pid, libc::SIGTERM) };
    signal();
    until(503);
    signal();
    assert_eq!(child.wait().unwrap().code(), Some(130));
}
