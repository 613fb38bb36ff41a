//! `recua serve`

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use recua::serve::tokio::net::TcpListener;
use recua::serve::tokio::runtime::Builder;
use recua::serve::tokio::{self};
use recua::serve::{ModelSource, ServeConfig, Server, serve};
use recua::{Error, Result};

use super::flags::{EngineFlags, bytes};
use super::{print, say};

/// Answer over HTTP: OpenAI's and Anthropic's APIs, and a chat page
///
///     recua serve --model runs/first
///     curl http://127.0.0.1:8080/v1/completions -d '{"prompt": "Once upon a time", "max_tokens": 32}'
///
/// Routes: /v1/completions (with `echo` and `logprobs` of the prompt), /v1/chat/completions, /v1/responses, /v1/messages,
/// /v1/embeddings, /v1/models, /tokenize, /detokenize, /tokenizer_info, /health, /metrics, /openapi.json, /docs, and the chat page at /.
///
/// API keys stand in a file (--api-key-file, one a line) or in the variable RECUA_API_KEY, never on the command line. Without one
/// everybody who reaches the address may ask: so it is 127.0.0.1 unless --host says otherwise.
///
/// SIGTERM or Ctrl-C: no new requests; those that are there have --drain-seconds to end. Once more: at once.
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Serve {
    /// A run, a checkpoint, a Hugging Face folder, a Meta folder or a GGUF file; may be repeated, each with a name
    #[arg(long, visible_alias = "run", value_name = "[NAME=]PATH", required = true)]
    model: Vec<String>,
    /// Tokenizer, if it is not beside the model
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Address to listen at; 0.0.0.0 for all networks
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    host: IpAddr,
    /// Port; 0 takes a free one and prints it
    #[arg(long, value_name = "N", default_value_t = 8080)]
    port: u16,
    /// Most sequences that are computed at once [default: --max-batch]
    #[arg(long, value_name = "N")]
    max_seqs: Option<usize>,
    /// Most sequences that wait; more are refused with 429
    #[arg(long, value_name = "N", default_value_t = 256)]
    max_queue: usize,
    /// Most connections; more wait until one ends
    #[arg(long, value_name = "N", default_value_t = 1000)]
    max_connections: usize,
    /// Largest body of a request: 8MiB, ...
    #[arg(long, value_name = "BYTES", default_value = "8MiB", value_parser = bytes)]
    max_body_bytes: u64,
    /// Most tokens of a text, whatever is asked for
    #[arg(long, value_name = "N")]
    max_output: Option<usize>,
    /// Most log-probabilities beside each token
    #[arg(long, value_name = "N", default_value_t = 100)]
    max_logprobs: usize,
    /// A request may take so long; 0: as long as it needs
    #[arg(long, value_name = "S", default_value_t = 600)]
    request_seconds: u64,
    /// Requests have so long to end once the server is told to stop
    #[arg(long, value_name = "S", default_value_t = 30)]
    drain_seconds: u64,
    /// Put BOS before prompts of token ids that have none; they are scored as the client sent them
    #[arg(long)]
    bos: bool,
    /// Guess up to K tokens ahead from each text itself, and check them in one pass
    #[arg(long, value_name = "K", default_value_t = 0)]
    speculate: usize,
    /// File of API keys, one a line
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Origin of pages elsewhere that may ask from a browser; may be repeated; `*`: all
    #[arg(long, value_name = "ORIGIN")]
    cors_origin: Vec<String>,
    /// No line for each request
    #[arg(long)]
    quiet: bool,
    #[command(flatten)]
    engine: EngineFlags,
    #[command(flatten)]
    device: super::Device,
}

impl Serve {
    pub(crate) fn run(self) -> Result<()> {
        self.device.apply()?;
        self.engine.check()?;
        let config = self.config()?;
        // The network needs little, and on the CPU each of its threads takes a core from the engine's.
        let threads = std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).clamp(1, 4));
        let runtime = Builder::new_multi_thread().worker_threads(threads).max_blocking_threads(16).enable_all().build();
        let runtime = runtime.map_err(Error::io("create", "threads"))?;
        // Before anything is read: whoever has the port has it.
        let address = SocketAddr::new(self.host, self.port);
        let listener = runtime.block_on(TcpListener::bind(address)).map_err(|e| self.cannot_listen(address, &e))?;
        let address = listener.local_addr().map_err(Error::io("read", "the address"))?;
        let server = Server::new(config, self.models()?)?;
        print(&format!("http://{address}"));
        if !self.host.is_loopback() && !self.has_keys() {
            say("warning: everybody who reaches this address may ask; give keys with --api-key-file or RECUA_API_KEY");
        }
        runtime.block_on(async {
            let of = server.clone();
            let first = Path::new(&self.model[0]).display().to_string();
            let keys = self.has_keys();
            tokio::spawn(async move {
                let began = Instant::now();
                if of.ready().await.is_ok() {
                    of.describe().iter().for_each(|line| say(line));
                    say(&welcome(address, keys, began.elapsed().as_secs_f64(), &first));
                }
            });
            serve(listener, server, stopped(), Duration::from_secs(self.drain_seconds)).await
        })?;
        // Engines that are still computing for nobody are not waited for.
        runtime.shutdown_background();
        Ok(())
    }

    fn cannot_listen(&self, address: SocketAddr, e: &std::io::Error) -> Error {
        match e.kind() {
            std::io::ErrorKind::AddrInUse => Error::bad_value(
                "--port",
                format!("{address} is taken by another program"),
                "take another with --port, or 0 for any that is free",
            ),
            std::io::ErrorKind::PermissionDenied => {
                Error::bad_value("--port", format!("{address} needs more rights: {e}"), "take one above 1023")
            }
            _ => Error::bad_value("--host", format!("cannot listen at {address}: {e}"), "take an address of this machine"),
        }
    }

    fn has_keys(&self) -> bool {
        self.api_key_file.is_some() || std::env::var_os("RECUA_API_KEY").is_some()
    }

    fn keys(&self) -> Result<Vec<String>> {
        let mut keys = Vec::new();
        if let Some(path) = &self.api_key_file {
            let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
            keys.extend(text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).map(String::from));
            if keys.is_empty() {
                return Err(Error::Nothing { what: "API key in it".into(), path: path.clone(), hint: "write one a line".into() });
            }
        }
        if let Some(key) = std::env::var_os("RECUA_API_KEY") {
            let key = key.into_string().ok().filter(|key| !key.trim().is_empty());
            let key = key.ok_or_else(|| Error::bad_value("RECUA_API_KEY", "expected a key, got none", "set one, or unset it"))?;
            keys.push(key.trim().into());
        }
        Ok(keys)
    }

    fn config(&self) -> Result<ServeConfig> {
        let max_seqs = self.max_seqs.unwrap_or_else(|| self.engine.config(usize::MAX).max_batch);
        if max_seqs == 0 {
            return Err(Error::bad_value("--max-seqs", "expected at least 1, got 0", "leave it out to take the default"));
        }
        let request_time = Some(Duration::from_secs(self.request_seconds)).filter(|time| !time.is_zero());
        Ok(ServeConfig {
            max_seqs,
            max_queue: self.max_queue,
            max_connections: self.max_connections,
            max_body_bytes: usize::try_from(self.max_body_bytes).unwrap_or(usize::MAX),
            max_output: self.max_output,
            max_logprobs: self.max_logprobs,
            request_time,
            speculate: self.speculate,
            score_bos: self.bos,
            api_keys: self.keys()?,
            cors_origins: self.cors_origin.clone(),
            access_log: if self.quiet { None } else { Some(Arc::new(say)) },
            ..ServeConfig::default()
        })
    }

    fn models(&self) -> Result<Vec<ModelSource>> {
        if self.tokenizer.is_some() && self.model.len() > 1 {
            let hint = "put each tokenizer beside its model";
            return Err(Error::bad_value("--tokenizer", "of several models it is not said whose it is", hint));
        }
        let mut config = self.engine.config(usize::MAX);
        config.max_batch = self.config()?.max_seqs;
        let open = |given: &String| {
            let (name, path) = named(given);
            ModelSource::open(name, &path, self.tokenizer.as_deref(), self.device.backend, config.clone())
        };
        self.model.iter().map(open).collect()
    }
}

/// `NAME=PATH`, or a path that is called by its last part.
fn named(given: &str) -> (String, PathBuf) {
    match given.split_once('=') {
        Some((name, path)) if !name.is_empty() && !name.contains(['/', '\\']) && !Path::new(given).exists() => {
            (name.into(), path.into())
        }
        _ => {
            let path = PathBuf::from(given);
            let whole = path.canonicalize().unwrap_or_else(|_| path.clone());
            let stem = if whole.is_dir() { whole.file_name() } else { whole.file_stem() };
            (stem.map_or_else(|| given.into(), |stem| stem.to_string_lossy().into_owned()), path)
        }
    }
}

fn welcome(address: SocketAddr, keys: bool, seconds: f64, model: &str) -> String {
    let key = if keys { " -H \"Authorization: Bearer $RECUA_API_KEY\"" } else { "" };
    let body = r#"'{"prompt": "Once upon a time", "max_tokens": 32}'"#;
    format!(
        "{model} is ready after {seconds:.1} s; a chat page is at http://{address}/, the routes at http://{address}/docs\n\
         curl http://{address}/v1/completions{key} -d {body}"
    )
}

/// SIGTERM or Ctrl-C; the second ends the process at once.
async fn stopped() {
    signal().await;
    say("\nno new requests are taken; once more to stop at once");
    tokio::spawn(async {
        signal().await;
        std::process::exit(130);
    });
}

async fn signal() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
            let term = term.recv();
            let int = int.recv();
            tokio::pin!(term, int);
            std::future::poll_fn(|cx| {
                use std::task::Poll;
                let both = term.as_mut().poll(cx).is_ready() | int.as_mut().poll(cx).is_ready();
                if both { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
            return;
        }
    }
    let _ = tokio::signal::ctrl_c().await;
}
