//! Clients that go, that are too many, that send rubbish; devices that fail; a server that is told to stop.

use std::io::Read;
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use recua::backend::{BackendName, DeviceContext};
use recua::checkpoint::Checkpoint;
use recua::generate::{Engine, EngineConfig};
use recua::serve::{ModelSource, ServeConfig};
use serde_json::{Value, json};

use super::{Up, config, endless, source};
use crate::cli_generate::run;

fn endless_body(stream: bool) -> Value {
    json!({ "prompt": "a", "max_tokens": 40_000, "temperature": 0, "ignore_eos": true, "stream": stream })
}

/// A stream of which some was read.
fn begun(up: &Up, path: &str, body: &Value) -> TcpStream {
    let mut stream = up.client.send("POST", path, body.to_string().as_bytes());
    let mut some = [0; 600];
    stream.read_exact(&mut some).unwrap();
    assert!(some.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&some));
    stream
}

#[test]
fn who_is_gone_is_not_computed_for() {
    let up = endless(config(), Duration::from_secs(5));
    let chat = json!({ "messages": [{ "role": "user", "content": "a" }], "stream": true, "max_tokens": 40_000, "temperature": 0, "ignore_eos": true });
    for round in 0..3 {
        let mut streams: Vec<TcpStream> = (0..4).map(|_| begun(&up, "/v1/completions", &endless_body(true))).collect();
        streams.push(up.client.send("POST", "/v1/chat/completions", chat.to_string().as_bytes()));
        // One that waits for the whole.
        streams.push(up.client.send("POST", "/v1/completions", endless_body(false).to_string().as_bytes()));
        up.until(|| up.server.active() == 6);
        drop(streams);
        up.idle();
        let counted = format!("finished_reason=\"abort\"}} {}\n", 6 * (round + 1));
        up.until(|| up.client.get("/metrics").text().contains(&counted));
    }
    // A reader that does not read delays nobody.
    let slow = begun(&up, "/v1/completions", &endless_body(true));
    let began = Instant::now();
    let answer = up.client.post("/v1/completions", &json!({ "prompt": "a", "max_tokens": 5, "temperature": 0 })).ok();
    assert_eq!(answer["choices"][0]["text"].as_str().unwrap().matches('a').count(), 5);
    assert!(began.elapsed() < Duration::from_secs(10));
    drop(slow);
    up.idle();
}

#[test]
fn the_queue_has_an_end() {
    let up = endless(ServeConfig { max_seqs: 1, max_queue: 1, ..ServeConfig::default() }, Duration::from_secs(5));
    let (one, two) = (
        begun(&up, "/v1/completions", &endless_body(true)),
        up.client.send("POST", "/v1/completions", endless_body(true).to_string().as_bytes()),
    );
    up.until(|| up.server.active() == 2);
    let answer = up.client.post("/v1/completions", &endless_body(true));
    assert_eq!((answer.refused(429)["code"].clone(), answer.header("retry-after")), (json!("queue_full"), Some("1")));
    assert_eq!(
        up.client.post("/v1/messages", &json!({ "messages": [{ "role": "user", "content": "a" }], "max_tokens": 3 })).json()["error"]
            ["type"],
        "rate_limit_error"
    );
    assert_eq!(up.client.post("/v1/completions", &json!({ "prompt": "a", "n": 3 })).refused(400)["param"], "n");
    drop((one, two));
    up.idle();
    up.client.post("/v1/completions", &json!({ "prompt": "a", "max_tokens": 1 })).ok();
    // A time for each.
    let config = ServeConfig { request_time: Some(Duration::from_millis(300)), ..config() };
    let up = endless(config, Duration::from_secs(5));
    assert_eq!(up.client.post("/v1/completions", &endless_body(false)).refused(503)["code"], "request_timeout");
    let events = up.client.post("/v1/completions", &endless_body(true)).events();
    assert_eq!(events.last().unwrap().1["error"]["code"], "request_timeout");
    up.idle();
}

#[test]
fn a_server_that_stops_lets_requests_end() {
    let mut up = endless(config(), Duration::from_secs(120));
    let held = begun(&up, "/v1/completions", &endless_body(true));
    let body = json!({ "prompt": "a", "max_tokens": 2_000, "temperature": 0, "ignore_eos": true });
    let client = up.client.clone();
    let asked = std::thread::spawn(move || client.post("/v1/completions", &body));
    up.until(|| up.server.active() == 2);
    let _ = up.stop.take().unwrap().send(());
    up.until(|| up.client.get("/health").status == 503);
    assert_eq!(up.client.post("/v1/completions", &json!({ "prompt": "a" })).refused(503)["type"], "unavailable_error");
    assert_eq!(asked.join().unwrap().ok()["usage"]["completion_tokens"], 2_000);
    drop(held);
    up.stopped().unwrap();
    // After its time what is left ends with an error, in streams too.
    let mut up = endless(config(), Duration::from_millis(200));
    let client = up.client.clone();
    let streamed = std::thread::spawn(move || client.post("/v1/completions", &endless_body(true)));
    up.until(|| up.server.active() == 1);
    let began = Instant::now();
    up.stopped().unwrap();
    assert!(began.elapsed() < Duration::from_secs(5));
    let events = streamed.join().unwrap().events();
    assert_eq!(events.last().unwrap().1["error"]["type"], "unavailable_error");
}

/// An engine whose device is told to have failed by a thread with this name.
fn fragile(thread: [u16; 2], made: Arc<AtomicUsize>) -> ModelSource {
    let checkpoint = Checkpoint::open(run()).unwrap();
    let tokenizer = recua::tokenizer::Tokenizer::open(std::path::Path::new(&run()).join("tokenizer.json")).unwrap();
    ModelSource::build("fragile", checkpoint.config().vocab_size, Some(tokenizer), vec![2], move || {
        made.fetch_add(1, Ordering::Relaxed);
        let context: DeviceContext = "flex".parse::<BackendName>()?.open()?;
        context.listen(thread);
        Engine::load(&checkpoint, &context, EngineConfig { max_batch: 2, ..EngineConfig::default() })
    })
}

fn fail(thread: [u16; 2]) {
    let name = format!("DSD-{}-{}", thread[0], thread[1]);
    let died = std::thread::Builder::new().name(name).spawn(|| panic!("the device is lost")).unwrap().join();
    assert!(died.is_err());
}

#[test]
fn an_engine_whose_device_fails_is_built_again() {
    let thread = [4711, 1];
    let made = Arc::new(AtomicUsize::new(0));
    let mut up = Up::new(vec![fragile(thread, made.clone())], ServeConfig { max_restarts: 2, ..config() });
    let ask = || up.client.post("/v1/completions", &json!({ "prompt": "The", "max_tokens": 3, "temperature": 0 }));
    let expected = ask().ok()["choices"].clone();
    for round in 1..=2 {
        fail(thread);
        let error = ask().refused(500);
        assert!(error["message"].as_str().unwrap().contains("the device is lost"), "{error}");
        up.until(|| up.client.get("/health").status == 200);
        assert_eq!((made.load(Ordering::Relaxed), &ask().ok()["choices"]), (round + 1, &expected));
    }
    // But not for ever: then the server ends, and says why.
    fail(thread);
    assert_eq!(ask().status, 500);
    let problem = up.runtime.block_on(up.running.take().unwrap()).unwrap().unwrap_err().to_string();
    assert!(problem.contains("the device is lost"), "{problem}");
}

/// In a process of its own: all jobs of a process share an adapter's device, and other tests are among them.
#[cfg(feature = "wgpu")]
#[test]
fn a_device_that_is_lost_is_opened_again() {
    let test = ["--ignored", "--exact", "serve::faults::a_lost_device"];
    let child = std::process::Command::new(std::env::current_exe().unwrap()).args(test).output().unwrap();
    let text = String::from_utf8_lossy(&child.stdout) + String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success() && text.contains("1 passed"), "{text}");
}

#[cfg(feature = "wgpu")]
#[test]
#[ignore = "run by a_device_that_is_lost_is_opened_again"]
fn a_lost_device() {
    let opened = Arc::new(Mutex::new(Vec::<DeviceContext>::new()));
    let checkpoint = Checkpoint::open(run()).unwrap();
    let vocab_size = checkpoint.config().vocab_size;
    let tokenizer = recua::tokenizer::Tokenizer::open(std::path::Path::new(&run()).join("tokenizer.json")).unwrap();
    let contexts = opened.clone();
    let source = ModelSource::build("run", vocab_size, Some(tokenizer), vec![2], move || {
        let context: DeviceContext = "wgpu:cpu".parse::<BackendName>()?.open()?;
        contexts.lock().unwrap().push(context.clone());
        Engine::load(&checkpoint, &context, EngineConfig { max_batch: 2, ..EngineConfig::default() })
    });
    let mut up = Up::new(vec![source], ServeConfig { max_restarts: 2, ..config() });
    let ask = || up.client.post("/v1/completions", &json!({ "prompt": "The", "max_tokens": 3, "temperature": 0 }));
    let lose = || opened.lock().unwrap().last().unwrap().lose_device();
    let expected = ask().ok()["choices"].clone();
    for round in 1..=2 {
        lose();
        let error = ask().refused(500);
        assert!(error["message"].as_str().unwrap().contains("the device is lost"), "{error}");
        up.until(|| up.client.get("/health").status == 200);
        assert_eq!((opened.lock().unwrap().len(), &ask().ok()["choices"]), (round + 1, &expected));
    }
    lose();
    assert_eq!(ask().status, 500);
    let problem = up.runtime.block_on(up.running.take().unwrap()).unwrap().unwrap_err().to_string();
    assert!(problem.contains("the device is lost"), "{problem}");
}

#[test]
fn bodies_are_read_with_care() {
    let up = Up::new(vec![source("run", run())], ServeConfig { max_body_bytes: 2_000, ..config() });
    let long = json!({ "prompt": "a".repeat(3_000) }).to_string();
    assert_eq!(up.client.raw("POST", "/v1/completions", long.as_bytes()).refused(413)["code"], "body_too_large");
    for body in [&b""[..], b"{", b"[]", b"\"a\"", b"null", b"{\"prompt\": }", b"\xff\xfe", b"{\"prompt\": \"\\ud800\"}"] {
        let error = up.client.raw("POST", "/v1/completions", body).refused(400);
        assert_eq!(error["code"], "invalid_json", "{body:?}");
    }
    let deep = "[".repeat(900) + &"]".repeat(900);
    up.client.raw("POST", "/v1/completions", format!("{{\"prompt\": {deep}}}").as_bytes()).refused(400);
    up.client.post("/v1/completions", &json!({ "prompt": "a", "max_tokens": 1 })).ok();
}

/// Requests that are nearly right: values replaced, taken out, doubled; bytes changed. Nothing that a client sends may be the server's
/// mistake. `RECUA_FUZZ` requests, 3,000 by default.
#[test]
fn whatever_is_sent_is_answered() {
    let up = Up::new(vec![source("run", run())], ServeConfig { max_output: Some(2), max_choices: 4, ..config() });
    let seeds = [
        (
            "/v1/completions",
            json!({ "prompt": "The", "max_tokens": 2, "logprobs": 1, "echo": true, "n": 2, "stop": ["a"], "logit_bias": { "5": 1 }, "seed": 1, "stream": false }),
        ),
        (
            "/v1/completions",
            json!({ "prompt": [[1, 5], [1]], "max_tokens": 1, "temperature": 0.5, "top_p": 0.5, "top_k": 4, "min_p": 0.1, "stream": true }),
        ),
        (
            "/v1/chat/completions",
            json!({ "messages": [{ "role": "user", "content": "a" }, { "role": "assistant", "content": null, "tool_calls": [{ "id": "1", "function": { "name": "f", "arguments": "{}" } }] }], "max_tokens": 1, "logprobs": true, "top_logprobs": 2 }),
        ),
        (
            "/v1/responses",
            json!({ "input": [{ "role": "user", "content": [{ "type": "input_text", "text": "a" }] }, { "type": "function_call", "name": "f", "call_id": "1", "arguments": "{}" }], "max_output_tokens": 1, "tools": [{ "type": "function", "name": "f" }], "stream": true }),
        ),
        (
            "/v1/messages",
            json!({ "messages": [{ "role": "user", "content": [{ "type": "text", "text": "a" }, { "type": "tool_result", "tool_use_id": "1", "content": "b" }] }], "max_tokens": 1, "system": [{ "type": "text", "text": "s" }] }),
        ),
        ("/v1/messages/count_tokens", json!({ "messages": [{ "role": "user", "content": "a" }] })),
        ("/v1/embeddings", json!({ "input": ["a", "b"], "encoding_format": "base64" })),
        ("/tokenize", json!({ "content": "a", "add_special": true, "with_pieces": true })),
        ("/detokenize", json!({ "tokens": [1, 2, 3] })),
    ];
    let count: usize = std::env::var("RECUA_FUZZ").ok().and_then(|n| n.parse().ok()).unwrap_or(3_000);
    let statuses = Mutex::new(std::collections::BTreeMap::<u16, usize>::new());
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (up, seeds, statuses) = (&up, &seeds, &statuses);
            scope.spawn(move || {
                let mut rng = ChaCha8Rng::seed_from_u64(thread);
                for _ in 0..count / 3 {
                    let (path, seed) = &seeds[rng.random_range(0..seeds.len())];
                    let mut value = seed.clone();
                    for _ in 0..rng.random_range(0..4) {
                        change(&mut value, &mut rng);
                    }
                    let mut body = value.to_string().into_bytes();
                    if rng.random_range(0..4) == 0 {
                        let at = rng.random_range(0..body.len());
                        body[at] = rng.next_u32() as u8;
                    }
                    let answer = up.client.raw("POST", path, &body);
                    assert!(
                        [200, 400, 404, 413].contains(&answer.status),
                        "{path} {}: {} {}",
                        String::from_utf8_lossy(&body),
                        answer.status,
                        answer.text()
                    );
                    if answer.status != 200 {
                        assert!(answer.json()["error"]["message"].is_string());
                    } else if let Some(error) = answer.text().find("\"error\":{") {
                        panic!("{path} {}: {}", String::from_utf8_lossy(&body), &answer.text()[error..]);
                    }
                    *statuses.lock().unwrap().entry(answer.status).or_default() += 1;
                }
            });
        }
    });
    let statuses = statuses.into_inner().unwrap();
    assert!(statuses[&200] > count / 20 && statuses[&400] > count / 4, "{statuses:?}");
    up.idle();
    up.client.get("/health").ok();
}

/// Another value somewhere in it.
fn change(value: &mut Value, rng: &mut ChaCha8Rng) {
    let odd = [
        json!(null),
        json!(true),
        json!(-1),
        json!(0),
        json!(1e300),
        json!(18_446_744_073_709_551_615u64),
        json!(0.1),
        json!(""),
        json!("\u{0}\u{1f999}<s></s>"),
        json!([]),
        json!({}),
        json!([[[]]]),
        json!(["a", 1]),
        json!({ "type": "x" }),
        json!("auto"),
    ];
    match value {
        Value::Object(map) if !map.is_empty() => {
            let key = map.keys().nth(rng.random_range(0..map.len())).unwrap().clone();
            match rng.random_range(0..6) {
                0 => drop(map.remove(&key)),
                1 => drop(map.insert(format!("{key}x"), odd[rng.random_range(0..odd.len())].clone())),
                2 => map[&key] = odd[rng.random_range(0..odd.len())].clone(),
                _ => change(&mut map[&key], rng),
            }
        }
        Value::Array(list) if !list.is_empty() => {
            let at = rng.random_range(0..list.len());
            match rng.random_range(0..4) {
                0 => drop(list.remove(at)),
                1 => list.push(list[at].clone()),
                _ => change(&mut list[at], rng),
            }
        }
        other => *other = odd[rng.random_range(0..odd.len())].clone(),
    }
}
