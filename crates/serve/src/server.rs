//! What all requests share.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use recua_core::{Error, Result};

use crate::config::ServeConfig;
use crate::error::ApiError;
use crate::model::{Model, ModelSource, unknown};
use crate::worker::{Command, Status};

/// Models and their engines, ready to be asked. Cheap to clone; a clone is the same server.
#[derive(Clone)]
pub struct Server(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) config: ServeConfig,
    pub(crate) models: Vec<Arc<Model>>,
    draining: AtomicBool,
    active: AtomicUsize,
    keys: AtomicU64,
    /// Keyed by the system with what nobody knows.
    random: RandomState,
}

/// Counts a request for as long as it lives.
pub(crate) struct Active(Server);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.0.active.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Who asks.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Caller {
    /// Of the prefix cache: another for each key.
    pub(crate) salt: u64,
}

impl Server {
    /// Starts the engines, each on a thread of its own; [`Server::ready`] waits for them.
    ///
    /// # Errors
    /// [`Error::BadValue`] without a model or for two of one name; those of the chat templates.
    pub fn new(config: ServeConfig, models: Vec<ModelSource>) -> Result<Self> {
        let bad = |key: &str, problem: &str, hint: &str| Err(Error::bad_value(key, problem, hint));
        if models.is_empty() {
            return bad("models", "expected at least one, got none", "give one with --model");
        }
        for (i, model) in models.iter().enumerate() {
            if models[..i].iter().any(|other| other.name() == model.name()) {
                return bad("models", &format!("two are named `{}`", model.name()), "write --model NAME=PATH");
            }
        }
        if config.api_keys.iter().any(|key| key.is_empty()) {
            return bad("API keys", "expected a key, got an empty line", "take it out");
        }
        if config.max_seqs == 0 {
            return bad("max_seqs", "expected at least 1, got 0", "leave it out");
        }
        let models = models.into_iter().map(|source| Ok(Arc::new(Model::start(source, &config)?))).collect::<Result<_>>()?;
        let (draining, active, keys) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicU64::new(0));
        Ok(Self(Arc::new(Inner { config, models, draining, active, keys, random: RandomState::new() })))
    }

    /// Waits until all engines answer.
    ///
    /// # Errors
    /// [`Error::Backend`] where one cannot be built.
    pub async fn ready(&self) -> Result<()> {
        for model in &self.0.models {
            let mut status = model.handle.status.clone();
            let failed = |problem: &str| Error::Backend {
                name: model.name.clone(),
                problem: problem.into(),
                hint: "`recua generate` with the same model shows more".into(),
            };
            match status.wait_for(|status| *status != Status::Starting).await.as_deref() {
                Ok(Status::Failed(problem)) => return Err(failed(problem)),
                Ok(_) => {}
                Err(_) => return Err(failed("its thread has ended")),
            }
        }
        Ok(())
    }

    /// Waits until an engine has failed for good, and says why. Never returns where none does.
    pub async fn failed(&self) -> String {
        let mut waits: Vec<_> = self.0.models.iter().map(|model| (model.name.clone(), model.handle.status.clone())).collect();
        loop {
            for (name, status) in &mut waits {
                if let Status::Failed(problem) = &*status.borrow_and_update() {
                    return format!("{name}: {problem}");
                }
                if status.has_changed().is_err() {
                    return format!("{name}: its thread has ended");
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// What the engines say of their caches, a line a model.
    pub fn describe(&self) -> Vec<String> {
        let of = |model: &Arc<Model>| match &*model.handle.status.borrow() {
            Status::Ready { describe, .. } => format!("{}: {describe}", model.name),
            Status::Starting => format!("{}: being loaded", model.name),
            Status::Failed(problem) => format!("{}: failed: {problem}", model.name),
        };
        self.0.models.iter().map(of).collect()
    }

    /// Takes no new requests from here on; waits until those that are there have ended. After `most` they end with an error.
    pub async fn drain(&self, most: Duration) {
        self.0.draining.store(true, Ordering::Release);
        let deadline = Instant::now() + most;
        while self.active() > 0 && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if self.active() == 0 {
            return;
        }
        for model in &self.0.models {
            model.handle.send(Command::Abort("the server is shutting down".into()));
        }
        // What is told still has to be written.
        let deadline = Instant::now() + Duration::from_secs(2);
        while self.active() > 0 && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Requests that are being answered.
    pub fn active(&self) -> usize {
        self.0.active.load(Ordering::Acquire)
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.0.draining.load(Ordering::Acquire)
    }

    /// Counts a request, if the server still takes them.
    pub(crate) fn begin(&self) -> Result<Active, ApiError> {
        self.0.active.fetch_add(1, Ordering::AcqRel);
        let active = Active(self.clone());
        if self.is_draining() { Err(ApiError::unavailable("the server is shutting down")) } else { Ok(active) }
    }

    /// The model of this name. Of one model any name is right.
    pub(crate) fn model(&self, name: Option<&str>) -> Result<Arc<Model>, ApiError> {
        let models = &self.0.models;
        if let [only] = &models[..] {
            return Ok(only.clone());
        }
        let known: Vec<&str> = models.iter().map(|model| model.name.as_str()).collect();
        let Some(name) = name else {
            return Err(ApiError::bad("model", format!("expected one of {}, got nothing", known.join(", "))));
        };
        models.iter().find(|model| model.name == name).cloned().ok_or_else(|| unknown(name, &known))
    }

    pub(crate) fn next_key(&self) -> u64 {
        self.0.keys.fetch_add(1, Ordering::Relaxed)
    }

    /// A number that nobody can guess and no other request has.
    pub(crate) fn random(&self) -> u64 {
        self.0.random.hash_one(self.next_key())
    }

    /// `chatcmpl-0123456789abcdef0123456789abcdef`
    pub(crate) fn id(&self, prefix: &str) -> String {
        format!("{prefix}{:016x}{:016x}", self.random(), self.random())
    }
}

/// Runs what takes longer than a network should wait for: parsing, templates, tokens, grammars. A panic there is an error of this
/// request alone.
pub(crate) async fn aside<T: Send + 'static>(job: impl FnOnce() -> Result<T, ApiError> + Send + 'static) -> Result<T, ApiError> {
    match tokio::task::spawn_blocking(job).await {
        Ok(done) => done,
        Err(_) => Err(ApiError::internal("the server made a mistake; please report it with the request")),
    }
}
