//! The load generator, and what it shows: nothing is lost under overload, when clients go, and when the server or a client is killed.

use std::process::Stdio;
use std::time::{Duration, Instant};

use recua::serve::ServeConfig;
use recua::serve::load::{Arrival, Load, LoadConfig, LoadRow};
use serde_json::{Value, json};

use super::{Up, config, endless, source};
use crate::cli_generate::{golden, run};
use crate::faults_generate::{recua, stderr};

fn load(up: &Up, change: impl FnOnce(&mut LoadConfig), arrival: Arrival) -> LoadRow {
    let mut config = LoadConfig {
        url: format!("http://{}", up.client.address),
        key: None,
        model: None,
        requests: 60,
        duration: None,
        prompt_tokens: 8,
        new_tokens: 8,
        leave: 0.0,
        patience: Duration::from_secs(60),
        seed: 3,
    };
    change(&mut config);
    up.runtime.block_on(async { Load::new(config).await.unwrap().run(arrival).await })
}

/// A request ends in one way.
#[track_caller]
fn adds_up(row: &LoadRow) {
    let refused: usize = row.statuses.iter().filter(|(status, _)| **status != 200).map(|(_, n)| n).sum();
    let all = row.answered + refused + row.failed + row.left + row.unreachable + row.lost;
    assert_eq!((row.asked, row.lost), (all, 0), "{row:?}");
}

#[test]
fn clients_are_counted_and_timed() {
    let up = Up::new(vec![source("ids", golden("tiny_llama"))], config());
    let row = load(&up, |_| {}, Arrival::Clients(8));
    adds_up(&row);
    assert_eq!((row.asked, row.answered, row.statuses[&200]), (60, 60, 60));
    // From half of eight to one and a half: what the server has counted is what the clients have.
    assert!((4 * 60..=12 * 60).contains(&row.tokens), "{row:?}");
    let metrics = up.client.get("/metrics").text();
    assert!(metrics.contains(&format!("vllm:generation_tokens_total{{engine=\"0\",model_name=\"ids\"}} {}\n", row.tokens)));
    for times in [row.ttft_s, row.between_s, row.e2e_s] {
        assert!(times[0] > 0.0 && times.is_sorted(), "{row:?}");
    }
    assert!(row.ttft_s[0] < row.e2e_s[0] && row.tok_s > 0.0);
    // The same seed asks for the same.
    assert_eq!(load(&up, |_| {}, Arrival::Clients(3)).tokens, row.tokens);
    assert_ne!(load(&up, |config| config.seed = 4, Arrival::Clients(3)).tokens, row.tokens);
}

#[test]
fn an_overloaded_server_answers_or_refuses() {
    let up = Up::new(vec![source("run", run())], ServeConfig { max_queue: 4, ..config() });
    let calm = load(&up, |config| (config.requests, config.new_tokens) = (30, 40), Arrival::Clients(4));
    let more = |config: &mut LoadConfig| (config.duration, config.new_tokens) = (Some(Duration::from_secs(3)), 40);
    let row = load(&up, more, Arrival::Rate(10.0 * calm.requests_s));
    adds_up(&row);
    assert!(row.answered > 0 && row.statuses[&429] > row.answered, "{row:?}");
    assert_eq!(row.statuses.keys().copied().collect::<Vec<_>>(), [200, 429]);
    up.idle();
    assert_eq!(load(&up, |config| config.requests = 10, Arrival::Clients(2)).answered, 10, "it is as before");
}

#[test]
fn clients_that_go_leave_nothing_behind() {
    let up = Up::new(vec![source("run", run())], config());
    let row = load(&up, |config| (config.requests, config.leave, config.new_tokens) = (150, 0.8, 30), Arrival::Clients(16));
    adds_up(&row);
    assert!(row.left > 75 && row.answered > 5, "{row:?}");
    up.idle();
    let metrics = up.client.get("/metrics").text();
    let zero = |name: &str| metrics.contains(&format!("vllm:{name}{{engine=\"0\",model_name=\"run\"}} 0\n"));
    assert!(zero("num_requests_running") && zero("num_requests_waiting") && zero("kv_cache_usage_perc"), "{metrics}");
}

fn asking(up: &Up, more: &[&str]) -> std::process::Child {
    let url = format!("http://{}", up.client.address);
    let mut args = vec!["bench", "serve", "--url", &url, "--json"];
    args.extend(more);
    recua(&args).stdin(Stdio::null()).spawn().unwrap()
}

#[test]
fn a_client_that_is_killed_is_not_computed_for() {
    let up = endless(config(), Duration::from_secs(5));
    let mut child = asking(&up, &["--clients", "3", "--requests", "3", "--max-tokens", "30000", "--prompt-len", "2"]);
    let tokens = || {
        up.client.get("/metrics").text().lines().find_map(|line| {
            line.strip_prefix("vllm:generation_tokens_total{engine=\"0\",model_name=\"endless\"} ")?.parse::<u64>().ok()
        })
    };
    up.until(|| up.server.active() == 3 && tokens().unwrap() > 30);
    child.kill().unwrap();
    child.wait().unwrap();
    up.idle();
}

#[test]
fn a_server_that_is_told_to_stop_loses_nothing() {
    let mut up = Up::draining(vec![source("run", run())], config(), Duration::from_secs(30));
    let child = asking(&up, &["--clients", "8", "--duration", "20", "--max-tokens", "40", "--prompt-len", "8"]);
    up.until(|| up.server.active() >= 4);
    std::thread::sleep(Duration::from_millis(300));
    up.stopped().unwrap();
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "{}", stderr(&out));
    let rows: Value = serde_json::from_slice(&out.stdout).unwrap();
    let row = &rows[0];
    assert_eq!((&row["failed"], &row["lost"], &row["unreachable"]), (&json!(0), &json!(0), &json!(8)), "{row}");
    assert!(row["answered"].as_u64().unwrap() >= 4, "{row}");
}

#[test]
fn the_generator_says_what_cannot_be_asked() {
    let up = Up::new(vec![source("run", run())], config());
    let url = format!("http://{}", up.client.address);
    for (args, about) in [
        (vec!["--url", "https://localhost"], "expected http and a host"),
        (vec!["--url", "http://127.0.0.1:1"], "is `recua serve` running there?"),
        (vec!["--url", &url, "--model", "other"], "there is no other, but run"),
        (vec!["--url", &url, "--clients", "0"], "expected numbers from 1"),
        (vec!["--url", &url, "--requests", "0"], "--requests: expected at least 1"),
        (vec!["--url", &url, "--leave", "2"], "--leave: expected a share"),
    ] {
        let out = recua(&[vec!["bench", "serve"], args].concat()).output().unwrap();
        assert!(out.status.code() == Some(2) && stderr(&out).contains(about), "{about}: {}", stderr(&out));
    }
    let began = Instant::now();
    let out =
        recua(&["bench", "serve", "--url", &url, "--clients", "2,4", "--requests", "8", "--overload", "2"]).output().unwrap();
    let text = String::from_utf8(out.stdout.clone()).unwrap();
    assert!(out.status.success() && text.lines().count() == 3 && began.elapsed() < Duration::from_secs(60), "{text}");
    assert!(text.starts_with("2 clients: ") && text.contains("requests/s come: "), "{text}");
}
