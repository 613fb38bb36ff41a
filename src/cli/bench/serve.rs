//! `recua bench serve`

use std::time::Duration;

use clap::Args;
use recua::serve::load::{Arrival, Load, LoadConfig, LoadRow};
use recua::serve::tokio::runtime::Builder;
use recua::{Error, Result};

use crate::cli::{human, print, print_json, say};

/// A server that is running: requests over HTTP, what they wait for and what becomes of them
///
///     recua serve --model runs/first &
///     recua bench serve --url http://127.0.0.1:8080 --clients 1,8,64 --requests 256
///
/// Streams of /v1/completions with prompts of random token ids, each on a connection of its own; lengths are drawn as `bench serve-sim`
/// draws them. First each number of clients, who ask again once they are answered (refused, after as long as `Retry-After` says); with
/// --overload then requests that come that many times as fast as the last row's were answered, whether answers come or not. Times are of answered requests: the median, 95 and 99 of
/// 100. Each request is answered, refused (a status that is not 200), failed (an error in its stream), given up by its own client
/// (--leave), unreachable (nobody listens; its client stops) or lost; a lost one makes the exit code 1.
///
/// An API key stands in the variable RECUA_API_KEY.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Serve {
    /// The server: http://HOST:PORT
    #[arg(long, value_name = "URL")]
    url: String,
    /// Which of its models [default: the first]
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Clients at once, a row of results each
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_value = "1,8,64")]
    clients: Vec<usize>,
    /// Requests of a row
    #[arg(long, value_name = "N", default_value_t = 128)]
    requests: usize,
    /// A row takes so long instead, however many requests that is
    #[arg(long, value_name = "S")]
    duration: Option<f64>,
    /// Tokens of a prompt, on average
    #[arg(long, value_name = "N", default_value_t = 64)]
    prompt_len: usize,
    /// New tokens of a request, on average
    #[arg(long, value_name = "N", default_value_t = 64)]
    max_tokens: usize,
    /// Then requests at R times the rate that the last row answered
    #[arg(long, value_name = "R")]
    overload: Option<f64>,
    /// Share of the requests whose client goes at a random moment
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    leave: f64,
    /// An answer that takes longer is lost
    #[arg(long, value_name = "S", default_value_t = 600)]
    patience: u64,
    /// Seed of tokens, lengths and those that go
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// One JSON document
    #[arg(long)]
    json: bool,
}

impl Serve {
    pub(super) fn run(self) -> Result<()> {
        let bad = |flag: &str, problem: String| Err(Error::bad_value(flag, problem, "see --help"));
        if let Some(n) = self.clients.iter().find(|n| !(1..=10_000).contains(*n)) {
            return bad("--clients", format!("expected numbers from 1 to 10000, got {n}"));
        }
        for (flag, value) in [("--overload", self.overload), ("--duration", self.duration)] {
            if let Some(x) = value.filter(|x| !(*x > 0.0 && *x <= 1e6)) {
                return bad(flag, format!("expected a number above 0, up to a million, got {x}"));
            }
        }
        let config = LoadConfig {
            url: self.url.clone(),
            key: std::env::var("RECUA_API_KEY").ok(),
            model: self.model.clone(),
            requests: self.requests,
            duration: self.duration.map(Duration::from_secs_f64),
            prompt_tokens: self.prompt_len,
            new_tokens: self.max_tokens,
            leave: self.leave,
            patience: Duration::from_secs(self.patience),
            seed: self.seed,
        };
        // One thread: the server on the same machine needs the others.
        let runtime = Builder::new_current_thread().enable_all().build().map_err(Error::io("create", "a thread"))?;
        let rows = runtime.block_on(self.rows(config))?;
        if self.json {
            print_json(&rows)?;
        }
        match rows.iter().map(|row| row.lost).sum::<usize>() {
            0 => Ok(()),
            lost => {
                let hint = "the server's log may say more".into();
                Err(Error::Engine { what: "bench serve", problem: format!("{lost} requests were lost"), hint })
            }
        }
    }

    async fn rows(&self, config: LoadConfig) -> Result<Vec<LoadRow>> {
        let load = Load::new(config).await?;
        if !self.json {
            say(&format!("{} at {}; seed {}", load.model(), self.url, self.seed));
        }
        let mut rows: Vec<LoadRow> = Vec::new();
        let mut arrivals: Vec<Arrival> = self.clients.iter().map(|n| Arrival::Clients(*n)).collect();
        arrivals.reverse();
        let mut overload = self.overload;
        loop {
            let arrival = match arrivals.pop() {
                Some(arrival) => arrival,
                None => match (overload.take(), rows.last()) {
                    (Some(times), Some(row)) if row.requests_s > 0.0 => Arrival::Rate(times * row.requests_s),
                    (Some(_), _) => {
                        let problem = "the row before answered nothing, so there is no rate to multiply";
                        return Err(Error::bad_value("--overload", problem, "see the row's problems"));
                    }
                    _ => return Ok(rows),
                },
            };
            let row = load.run(arrival).await;
            if !self.json {
                print(&line(&row));
                row.problems.iter().for_each(|problem| say(problem));
            }
            rows.push(row);
        }
    }
}

fn line(row: &LoadRow) -> String {
    let who = match (row.clients, row.rate) {
        (Some(clients), _) => format!("{clients} client{}", if clients == 1 { "" } else { "s" }),
        (_, rate) => format!("{:.1} requests/s come", rate.unwrap_or_default()),
    };
    let times = |all: [f64; 3]| all.map(|s| format!("{:.1}", 1e3 * s)).join(" ");
    let statuses: Vec<String> = row.statuses.iter().map(|(status, n)| format!("{status}: {n}")).collect();
    let mut ends = vec![format!("{} asked, {} answered ({})", row.asked, row.answered, statuses.join(", "))];
    for (n, what) in [(row.failed, "failed"), (row.left, "left"), (row.unreachable, "unreachable"), (row.lost, "lost")] {
        ends.extend((n > 0).then(|| format!("{n} {what}")));
    }
    format!(
        "{who}: {} tok/s, {:.2} requests/s in {:.1} s; ms to the first token {}, between {}, whole {}; {}",
        human(row.tok_s),
        row.requests_s,
        row.seconds,
        times(row.ttft_s),
        times(row.between_s),
        times(row.e2e_s),
        ends.join(", ")
    )
}
