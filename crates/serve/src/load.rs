//! A load generator: clients that ask one after another, or requests that come whether answers do or not. It says what each waited for
//! and what became of it; every request is answered, refused, given up by its own client, or lost, and lost ones are named.

mod client;

use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::http::Uri;
use recua_core::{Error, Result};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use client::{Asked, Client, End};

/// Most connections at once of requests that come at a rate; further ones come late.
const MOST_OPEN: usize = 800;
/// Problems that are told.
const MOST_PROBLEMS: usize = 5;

/// What is asked for, of whom.
#[derive(Clone, Debug)]
pub struct LoadConfig {
    /// `http://HOST:PORT`.
    pub url: String,
    /// An API key.
    pub key: Option<String>,
    /// The model's name; `None`: the first one's.
    pub model: Option<String>,
    /// Requests of a run.
    pub requests: usize,
    /// A run takes so long instead, however many requests that is.
    pub duration: Option<Duration>,
    /// Tokens of a prompt on average, from half of it to one and a half, drawn as `recua bench serve-sim` draws them.
    pub prompt_tokens: usize,
    /// New tokens of a request, likewise.
    pub new_tokens: usize,
    /// Share of the requests whose client goes at a random moment.
    pub leave: f64,
    /// An answer that takes longer is lost.
    pub patience: Duration,
    /// Seed of tokens, lengths and those that go.
    pub seed: u64,
}

/// How requests come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arrival {
    /// From so many clients, each of which waits for its answer before it asks again, and as long as a refusal's `Retry-After` says.
    Clients(usize),
    /// So many a second, whether answers come or not.
    Rate(f64),
}

/// What came of a run. Times are those of answered requests in seconds: the median, 95 and 99 of 100.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LoadRow {
    /// Clients at once.
    pub clients: Option<usize>,
    /// Requests a second.
    pub rate: Option<f64>,
    /// From the first request to the last answer.
    pub seconds: f64,
    /// All requests.
    pub asked: usize,
    /// Those that were answered whole.
    pub answered: usize,
    /// By HTTP's status.
    pub statuses: BTreeMap<u16, usize>,
    /// Streams that ended with an error event.
    pub failed: usize,
    /// Whose client has gone, as it was meant to.
    pub left: usize,
    /// That found nobody who listens.
    pub unreachable: usize,
    /// That were cut, or got no answer at all.
    pub lost: usize,
    /// What was wrong, of the first few that failed or were lost.
    pub problems: Vec<String>,
    /// New tokens of answered requests.
    pub tokens: usize,
    /// Those a second.
    pub tok_s: f64,
    /// Answered requests a second.
    pub requests_s: f64,
    /// Until the first token.
    pub ttft_s: [f64; 3],
    /// From one event of a stream to the next.
    pub between_s: [f64; 3],
    /// Until the end.
    pub e2e_s: [f64; 3],
    /// Until a refusal.
    pub refused_s: [f64; 3],
}

/// Random numbers: the same for the same seed.
struct Draw {
    seed: u64,
    count: u64,
}

impl Draw {
    fn next(&mut self) -> u64 {
        self.count += 1;
        xxh3_64_with_seed(&self.count.to_le_bytes(), self.seed)
    }

    fn around(&mut self, mean: usize) -> usize {
        mean.div_ceil(2) + (self.next() % (mean as u64 + 1)) as usize
    }

    fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// A server that is asked.
#[derive(Clone, Debug)]
pub struct Load {
    config: Arc<LoadConfig>,
    client: Client,
    model: String,
    vocab: u64,
}

impl Load {
    /// Asks the server for its models.
    ///
    /// # Errors
    /// [`Error::BadValue`] for a configuration that cannot be, and where nobody answers.
    pub async fn new(config: LoadConfig) -> Result<Self> {
        let bad = |key: &str, problem: String, hint: &str| Error::bad_value(key, problem, hint);
        let sizes =
            [("--requests", config.requests), ("--prompt-len", config.prompt_tokens), ("--max-tokens", config.new_tokens)];
        if let Some((flag, _)) = sizes.iter().find(|(_, n)| *n == 0) {
            return Err(bad(flag, "expected at least 1, got 0".into(), "leave it out to take the default"));
        }
        if !(0.0..=1.0).contains(&config.leave) {
            return Err(bad("--leave", format!("expected a share from 0 to 1, got {}", config.leave), "see --help"));
        }
        let address = address(&config.url)?;
        let client = Client { address, host: address.to_string(), key: config.key.clone() };
        let nobody = |problem: String| bad("--url", format!("{}: {problem}", config.url), "is `recua serve` running there?");
        let (status, body) = client.get("/v1/models").await.map_err(nobody)?;
        let list: Value = serde_json::from_slice(&body).unwrap_or_default();
        let of = |model: &Value| Some((model["id"].as_str()?.to_string(), model["meta"]["n_vocab"].as_u64()?));
        let models: Vec<(String, u64)> = list["data"].as_array().into_iter().flatten().filter_map(of).collect();
        let names = models.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
        let found = models.iter().find(|(name, _)| config.model.as_ref().is_none_or(|wanted| wanted == name)).cloned();
        let Some((model, vocab)) = found.filter(|(_, vocab)| *vocab > 0) else {
            return Err(match &config.model {
                Some(wanted) if !models.is_empty() => {
                    bad("--model", format!("there is no {wanted}, but {names}"), "take one of them")
                }
                _ => nobody(format!("status {status}, and no list of models with their vocabularies")),
            });
        };
        Ok(Self { config: Arc::new(config), client, model, vocab })
    }

    /// The model's name.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// One run.
    pub async fn run(&self, arrival: Arrival) -> LoadRow {
        let began = Instant::now();
        let until = self.config.duration.map(|time| began + time);
        let ends = match arrival {
            Arrival::Clients(clients) => self.clients(clients.max(1), until).await,
            Arrival::Rate(rate) => self.rate(rate, began, until).await,
        };
        let (clients, rate) = match arrival {
            Arrival::Clients(clients) => (Some(clients), None),
            Arrival::Rate(rate) => (None, Some(rate)),
        };
        LoadRow { clients, rate, seconds: began.elapsed().as_secs_f64(), ..sum(ends) }.rates()
    }

    fn over(&self, i: usize, until: Option<Instant>) -> bool {
        until.map_or(i >= self.config.requests, |until| Instant::now() >= until)
    }

    async fn clients(&self, clients: usize, until: Option<Instant>) -> Vec<Asked> {
        let next = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        for _ in 0..clients {
            let (load, next) = (self.clone(), next.clone());
            tasks.spawn(async move {
                let mut ends = Vec::new();
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if load.over(i, until) {
                        return ends;
                    }
                    let asked = load.ask(i).await;
                    let (gone, wait) = (matches!(asked.end, End::Unreachable), asked.wait);
                    ends.push(asked);
                    if let Some(wait) = wait {
                        tokio::time::sleep(wait).await;
                    }
                    if gone {
                        return ends;
                    }
                }
            });
        }
        tasks.join_all().await.into_iter().flatten().collect()
    }

    async fn rate(&self, rate: f64, began: Instant, until: Option<Instant>) -> Vec<Asked> {
        let open = Arc::new(Semaphore::new(MOST_OPEN));
        let mut tasks = JoinSet::new();
        let mut ends = Vec::new();
        for i in 0.. {
            let at = began + Duration::from_secs_f64(i as f64 / rate);
            tokio::time::sleep_until(at.into()).await;
            if self.over(i, until) {
                break;
            }
            let Ok(place) = open.clone().acquire_owned().await else { break };
            let load = self.clone();
            tasks.spawn(async move {
                let _place = place;
                load.ask(i).await
            });
            while let Some(Ok(asked)) = tasks.try_join_next() {
                ends.push(asked);
            }
        }
        ends.extend(tasks.join_all().await);
        ends
    }

    async fn ask(&self, i: usize) -> Asked {
        let config = &self.config;
        let mut draw = Draw { seed: config.seed.wrapping_add((i as u64) << 20), count: 0 };
        let (prompt, new) = (draw.around(config.prompt_tokens), draw.around(config.new_tokens));
        let leaves = (draw.share() < config.leave).then(|| (draw.share() * (new + 1) as f64) as usize);
        let ids: Vec<u64> = (0..prompt).map(|_| draw.next() % self.vocab).collect();
        let body = json!({
            "model": self.model, "prompt": ids, "max_tokens": new, "temperature": 0, "ignore_eos": true,
            "stream": true, "stream_options": { "include_usage": true },
        });
        let asked = self.client.stream("/v1/completions", body.to_string(), leaves);
        match tokio::time::timeout(config.patience, asked).await {
            Ok(asked) => asked,
            Err(_) => Asked::ended(End::Lost(format!("no end within {} s", config.patience.as_secs()))),
        }
    }
}

/// The address of `http://HOST:PORT`.
fn address(url: &str) -> Result<SocketAddr> {
    let bad = |problem: String| Error::bad_value("--url", format!("{url}: {problem}"), "write http://127.0.0.1:8080");
    let uri: Uri = url.parse().map_err(|e| bad(format!("{e}")))?;
    let (Some("http"), Some(host)) = (uri.scheme_str(), uri.host()) else { return Err(bad("expected http and a host".into())) };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let mut found = (host, uri.port_u16().unwrap_or(80)).to_socket_addrs().map_err(|e| bad(e.to_string()))?;
    found.next().ok_or_else(|| bad("the host has no address".into()))
}

fn sum(all: Vec<Asked>) -> LoadRow {
    let mut row = LoadRow { asked: all.len(), ..LoadRow::default() };
    let (mut first, mut between, mut whole, mut refused) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for asked in all {
        if let Some(status) = asked.status {
            *row.statuses.entry(status).or_default() += 1;
        }
        match asked.end {
            End::Answered { tokens } => {
                row.answered += 1;
                row.tokens += tokens;
                first.extend(asked.first);
                between.extend(asked.between);
                whole.push(asked.seconds);
            }
            End::Refused => refused.push(asked.seconds),
            End::Left => row.left += 1,
            End::Unreachable => row.unreachable += 1,
            End::Failed(problem) => {
                row.failed += 1;
                row.problems.push(problem);
            }
            End::Lost(problem) => {
                row.lost += 1;
                row.problems.push(format!("lost: {problem}"));
            }
        }
    }
    row.problems.sort_unstable();
    row.problems.dedup();
    row.problems.truncate(MOST_PROBLEMS);
    [row.ttft_s, row.between_s, row.e2e_s, row.refused_s] = [first, between, whole, refused].map(percentiles);
    row
}

impl LoadRow {
    fn rates(mut self) -> Self {
        self.tok_s = self.tokens as f64 / self.seconds;
        self.requests_s = self.answered as f64 / self.seconds;
        self
    }
}

/// The median, 95 and 99 of 100.
fn percentiles(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [0.5, 0.95, 0.99].map(|share| match values.len() {
        0 => 0.0,
        n => values[((n - 1) as f64 * share).round() as usize],
    })
}
