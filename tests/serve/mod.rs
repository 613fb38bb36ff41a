//! The server over loopback, in this process: each route, limits, faults of clients and of engines.

mod chat;
mod client;
mod completions;
#[cfg(feature = "eval")]
mod evaluation;
mod faults;
mod load;
mod manners;
mod others;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use recua::generate::EngineConfig;
use recua::serve::tokio::net::TcpListener;
use recua::serve::tokio::runtime::{Builder, Runtime};
use recua::serve::tokio::sync::oneshot;
use recua::serve::tokio::task::JoinHandle;
use recua::serve::{ModelSource, ServeConfig, Server, serve};

use client::Client;

use crate::cli_generate::Walks;
use crate::faults_generate::{Script, open};

/// A server that is up; it stops when dropped.
struct Up {
    client: Client,
    server: Server,
    stop: Option<oneshot::Sender<()>>,
    running: Option<JoinHandle<recua::Result<()>>>,
    runtime: Runtime,
    /// Lines of the access log.
    log: Arc<Mutex<Vec<String>>>,
    _dirs: Vec<tempfile::TempDir>,
}

impl Up {
    fn new(models: Vec<ModelSource>, config: ServeConfig) -> Self {
        Self::draining(models, config, Duration::from_secs(5))
    }

    fn draining(models: Vec<ModelSource>, mut config: ServeConfig, drain: Duration) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let to = log.clone();
        config.access_log = Some(Arc::new(move |line: &str| to.lock().unwrap().push(line.into())));
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let client = Client::new(listener.local_addr().unwrap());
        let server = Server::new(config, models).unwrap();
        runtime.block_on(server.ready()).unwrap();
        let (stop, stopped) = oneshot::channel();
        let of = server.clone();
        let running = runtime.spawn(async move {
            let stopped = async {
                let _ = stopped.await;
            };
            serve(listener, of, stopped, drain).await
        });
        Self { client, server, stop: Some(stop), running: Some(running), runtime, log, _dirs: Vec::new() }
    }

    /// The end of the server as [`serve`] tells it.
    fn stopped(&mut self) -> recua::Result<()> {
        let _ = self.stop.take().map(|stop| stop.send(()));
        self.runtime.block_on(self.running.take().unwrap()).unwrap()
    }

    /// Waits until nothing is computed.
    #[track_caller]
    fn idle(&self) {
        let idle = || {
            let metrics = self.client.get("/metrics").text();
            let zero = |name: &str| metrics.lines().filter(|line| line.starts_with(name)).all(|line| line.ends_with("} 0"));
            self.server.active() == 0 && zero("vllm:num_requests_running{") && zero("vllm:kv_cache_usage_perc{")
        };
        self.until(idle);
    }

    #[track_caller]
    fn until(&self, done: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !done() {
            assert!(Instant::now() < deadline, "{}", self.client.get("/metrics").text());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.stop.take().map(|stop| stop.send(()));
    }
}

fn source(name: &str, path: impl AsRef<Path>) -> ModelSource {
    let config = EngineConfig { max_batch: 4, ..EngineConfig::default() };
    ModelSource::open(name, path.as_ref(), None, "flex".parse().unwrap(), config).unwrap()
}

fn config() -> ServeConfig {
    ServeConfig { max_seqs: 4, ..ServeConfig::default() }
}

/// " llama walks home" after "The old", then the end.
fn walks() -> Up {
    let walks = Walks::new(&[2], 64);
    let mut up = Up::new(vec![source("walks", walks.model())], config());
    up._dirs.push(walks.dir);
    up
}

/// A model that writes for as long as it may: an `a` after each `a`.
fn endless(config: ServeConfig, drain: Duration) -> Up {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = open("llama2.json");
    let a = *tokenizer.encode("a").unwrap().last().unwrap();
    let mut script = Script::new(tokenizer.vocab_size(), &[(a, a)]);
    script.config.max_seq_len = 100_000;
    let path = dir.path().join("model");
    script.save(&path, "llama2.json");
    let engine = EngineConfig { max_batch: config.max_seqs, max_len: Some(50_000), ..EngineConfig::default() };
    let model = ModelSource::open("endless", &path, None, "flex".parse().unwrap(), engine).unwrap();
    let mut up = Up::draining(vec![model], config, drain);
    up._dirs.push(dir);
    up
}
