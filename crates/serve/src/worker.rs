//! The thread that owns an engine. Requests come in between two steps; what they give goes to a channel of each request's own, so that
//! nobody waits for a slow reader, and one that is gone is given up before the next step.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use recua_core::generate::{Engine, Event, Request, RequestId, RequestStats, SampleConfig, Stop, TokenLogprob};
use recua_core::{Error, Result};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{oneshot, watch};

use crate::error::ApiError;
use crate::metrics::Metrics;

/// Builds the engine; again where its device has failed.
pub(crate) type Make = Box<dyn FnMut() -> Result<Engine> + Send>;

/// What a request is told.
#[derive(Debug)]
pub(crate) enum Update {
    Prompt(Vec<TokenLogprob>),
    Token { choice: usize, token: u32, logprob: Option<TokenLogprob> },
    Done { choice: usize, stop: Stop, stats: RequestStats },
    Failed(ApiError),
}

/// Whether an engine answers.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Status {
    Starting,
    Ready { max_len: usize, describe: String },
    Failed(String),
}

/// A request as the thread gets it.
pub(crate) struct Submission {
    pub(crate) key: u64,
    /// Which of the request's prompts.
    pub(crate) tag: usize,
    pub(crate) request: Request,
    pub(crate) updates: UnboundedSender<(usize, Update)>,
    pub(crate) arrived: Instant,
    pub(crate) deadline: Option<Instant>,
    pub(crate) slot: Slot,
}

/// Where a text's embedding goes.
pub(crate) type EmbedAnswer = oneshot::Sender<Result<Vec<f32>, ApiError>>;

pub(crate) enum Command {
    Submit(Box<Submission>),
    /// A text is whole: nothing more of it is wanted.
    StopChoice {
        key: u64,
        choice: usize,
    },
    Embed {
        tokens: Vec<u32>,
        answer: EmbedAnswer,
        slot: Slot,
    },
    /// Ends all requests.
    Abort(String),
}

/// Places of an engine's queue that are taken; given back when dropped.
#[derive(Debug)]
pub(crate) struct Slot(Arc<AtomicUsize>, usize);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Ordering::AcqRel);
    }
}

/// An engine as the rest of the server sees it.
#[derive(Debug)]
pub(crate) struct Handle {
    commands: Mutex<Sender<Command>>,
    pub(crate) status: watch::Receiver<Status>,
    pub(crate) metrics: Arc<Metrics>,
    taken: Arc<AtomicUsize>,
    capacity: usize,
}

impl Handle {
    /// Starts the thread; the engine is built on it. `batch`: how many sequences are computed at once, each size of which is computed
    /// once before the engine is ready, where `kernels` have to be compiled.
    pub(crate) fn start(name: &str, make: Make, batch: usize, kernels: bool, capacity: usize, max_restarts: usize) -> Self {
        let (commands, received) = channel();
        let (set_status, status) = watch::channel(Status::Starting);
        let metrics = Arc::new(Metrics::default());
        let mut worker = Worker {
            make,
            batch,
            kernels,
            max_restarts,
            received,
            status: set_status,
            metrics: metrics.clone(),
            jobs: HashMap::new(),
            keys: HashMap::new(),
            embeds: Vec::new(),
        };
        let thread = std::thread::Builder::new().name(format!("engine {name}")).spawn(move || worker.run());
        if let Err(e) = thread {
            log::error!("no thread for the engine of {name}: {e}"); // the status channel is closed with it
        }
        Self { commands: Mutex::new(commands), status, metrics, taken: Arc::default(), capacity }
    }

    /// Whether the thread has it.
    pub(crate) fn send(&self, command: Command) -> bool {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner).send(command).is_ok()
    }

    /// Takes places in the queue.
    pub(crate) fn admit(&self, sequences: usize) -> Result<Slot, ApiError> {
        if sequences > self.capacity {
            let problem = format!("{sequences} texts at once are more than the {} that the server takes", self.capacity);
            return Err(ApiError::bad("n", format!("{problem}; split the request")));
        }
        let take = |taken: usize| (taken + sequences <= self.capacity).then_some(taken + sequences);
        match self.taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, take) {
            Ok(_) => Ok(Slot(self.taken.clone(), sequences)),
            Err(taken) => {
                self.metrics.refused.fetch_add(1, Ordering::Relaxed);
                let message = format!("the queue is full: {taken} of {} texts are there already; try again", self.capacity);
                let status = axum::http::StatusCode::TOO_MANY_REQUESTS;
                Err(ApiError { code: Some("queue_full"), ..ApiError::new(status, message) })
            }
        }
    }

    /// A part of the places of another.
    pub(crate) fn split(&self, slot: &mut Slot, sequences: usize) -> Slot {
        slot.1 -= sequences.min(slot.1);
        Slot(self.taken.clone(), sequences)
    }
}

/// A request that is being computed.
struct Job {
    key: u64,
    tag: usize,
    updates: UnboundedSender<(usize, Update)>,
    arrived: Instant,
    deadline: Option<Instant>,
    /// When each continuation's newest token came.
    newest: Vec<Option<Instant>>,
    ended: Vec<bool>,
    cut: bool,
    prompt: usize,
    tokens: usize,
    begun: bool,
    _slot: Slot,
}

impl Job {
    fn tell(&self, update: Update) {
        // Whoever is gone is seen before the next step.
        let _ = self.updates.send((self.tag, update));
    }
}

struct Worker {
    make: Make,
    batch: usize,
    kernels: bool,
    max_restarts: usize,
    received: Receiver<Command>,
    status: watch::Sender<Status>,
    metrics: Arc<Metrics>,
    jobs: HashMap<RequestId, Job>,
    keys: HashMap<u64, RequestId>,
    embeds: Vec<(Vec<u32>, EmbedAnswer, Slot)>,
}

/// Why the thread left its loop.
enum Left {
    /// Nobody can send any more.
    Over,
    /// The device has failed; another engine may do better.
    Device(String),
    /// A fault of the program.
    Panic(String),
}

impl Worker {
    fn run(&mut self) {
        for restart in 0.. {
            let left = match caught(|| self.build()) {
                Ok(mut engine) => {
                    let left = self.serve(&mut engine);
                    // What is left of a broken device may break on its way out.
                    let _ = catch_unwind(AssertUnwindSafe(|| drop(engine)));
                    left
                }
                Err(left) if restart == 0 => {
                    // What cannot be built the first time is a mistake of whoever started it.
                    let (Left::Device(problem) | Left::Panic(problem)) = left else { return };
                    return self.give_up(problem);
                }
                Err(left) => left,
            };
            let problem = match left {
                Left::Over => return,
                Left::Device(problem) if restart < self.max_restarts => {
                    log::error!("the engine failed and is built again ({} of {}): {problem}", restart + 1, self.max_restarts);
                    self.metrics.restarts.fetch_add(1, Ordering::Relaxed);
                    self.status.send_replace(Status::Starting);
                    self.fail_all(&ApiError::internal(format!("the engine failed: {problem}")));
                    continue;
                }
                Left::Device(problem) | Left::Panic(problem) => problem,
            };
            return self.give_up(problem);
        }
    }

    fn build(&mut self) -> Result<Engine> {
        let mut engine = (self.make)()?;
        warm_up(&mut engine, self.batch, self.kernels)?;
        self.metrics.set_engine(engine.stats());
        let (max_len, describe) = (engine.max_len(), engine.describe());
        self.status.send_replace(Status::Ready { max_len, describe });
        Ok(engine)
    }

    /// All requests end with an error, and those that still come.
    fn give_up(&mut self, problem: String) {
        let error = ApiError::internal(format!("the engine failed: {problem}"));
        self.status.send_replace(Status::Failed(problem));
        self.fail_all(&error);
        while let Ok(command) = self.received.recv() {
            refuse(command, &error);
        }
    }

    fn fail_all(&mut self, error: &ApiError) {
        self.keys.clear();
        for (_, job) in self.jobs.drain() {
            self.metrics.ended("error", job.arrived.elapsed(), job.prompt, job.tokens);
            job.tell(Update::Failed(error.clone()));
        }
        for (_, answer, _) in self.embeds.drain(..) {
            let _ = answer.send(Err(error.clone()));
        }
        while let Ok(command) = self.received.try_recv() {
            refuse(command, error);
        }
        let empty = recua_core::generate::EngineStats::default();
        self.metrics.set_engine(empty);
    }

    fn serve(&mut self, engine: &mut Engine) -> Left {
        loop {
            if engine.is_idle() && self.embeds.is_empty() {
                self.metrics.set_engine(engine.stats());
                match self.received.recv() {
                    Ok(command) => self.take(engine, command),
                    Err(_) => return Left::Over,
                }
            }
            while let Ok(command) = self.received.try_recv() {
                self.take(engine, command);
            }
            self.give_up_the_gone(engine);
            if let Err(left) = self.embed(engine) {
                return left;
            }
            match caught(|| engine.step()) {
                Ok(events) => events.into_iter().for_each(|event| self.tell(event)),
                Err(left) => return left,
            }
            self.metrics.set_engine(engine.stats());
        }
    }

    fn take(&mut self, engine: &mut Engine, command: Command) {
        match command {
            Command::Submit(submission) => self.submit(engine, *submission),
            Command::StopChoice { key, choice } => {
                let Some(&id) = self.keys.get(&key) else { return };
                let Some(job) = self.jobs.get_mut(&id) else { return };
                if let Some(stats) = engine.cancel_choice(id, choice) {
                    job.cut = true;
                    self.tell(Event::Done { id, choice, stop: Stop::Caller, stats });
                }
            }
            Command::Embed { tokens, answer, slot } => self.embeds.push((tokens, answer, slot)),
            Command::Abort(why) => {
                self.jobs.keys().for_each(|id| engine.cancel(*id));
                self.fail_all(&ApiError::unavailable(why));
            }
        }
    }

    fn submit(&mut self, engine: &mut Engine, submission: Submission) {
        let Submission { key, tag, request, updates, arrived, deadline, slot } = submission;
        if updates.is_closed() {
            self.metrics.ended("abort", arrived.elapsed(), request.prompt.len(), 0);
            return;
        }
        let (n, prompt) = (request.n, request.prompt.len());
        match engine.submit(request) {
            Ok(id) => {
                self.metrics.prompt_tokens.fetch_add(prompt as u64, Ordering::Relaxed);
                let (newest, ended) = (vec![None; n], vec![false; n]);
                let job = Job {
                    key,
                    tag,
                    updates,
                    arrived,
                    deadline,
                    newest,
                    ended,
                    cut: false,
                    prompt,
                    tokens: 0,
                    begun: false,
                    _slot: slot,
                };
                self.metrics.queued(arrived.elapsed());
                self.jobs.insert(id, job);
                self.keys.insert(key, id);
            }
            Err(e) => {
                let _ = updates.send((tag, Update::Failed(e.into())));
            }
        }
    }

    /// Cancels what nobody waits for, and what has taken too long.
    fn give_up_the_gone(&mut self, engine: &mut Engine) {
        let now = Instant::now();
        let late = |job: &Job| job.deadline.is_some_and(|deadline| now >= deadline);
        let gone: Vec<RequestId> =
            self.jobs.iter().filter(|(_, job)| job.updates.is_closed() || late(job)).map(|(id, _)| *id).collect();
        for id in gone {
            engine.cancel(id);
            if let Some(job) = self.remove(id) {
                if late(&job) {
                    let error = ApiError::unavailable("the request took longer than the server allows (--request-seconds)");
                    job.tell(Update::Failed(ApiError { code: Some("request_timeout"), ..error }));
                }
                self.metrics.ended("abort", job.arrived.elapsed(), job.prompt, job.tokens);
            }
        }
    }

    fn remove(&mut self, id: RequestId) -> Option<Job> {
        let job = self.jobs.remove(&id)?;
        self.keys.remove(&job.key);
        Some(job)
    }

    /// The first text that waits for its embedding.
    fn embed(&mut self, engine: &mut Engine) -> Result<(), Left> {
        self.embeds.retain(|(_, answer, _)| !answer.is_closed());
        let Some((tokens, _, _)) = self.embeds.first() else { return Ok(()) };
        let result = match catch_unwind(AssertUnwindSafe(|| engine.embed(tokens))) {
            Ok(Ok(None)) if !engine.is_idle() => return Ok(()),
            Ok(Ok(None)) => Err(ApiError::internal("the cache has no room")),
            Ok(Ok(Some(embedding))) => Ok(embedding),
            Ok(Err(e @ Error::Backend { .. })) => return Err(Left::Device(e.to_string())),
            Ok(Err(e)) => Err(ApiError::from(e)),
            Err(panic) => return Err(Left::Panic(says(&*panic))),
        };
        let (tokens, answer, _) = self.embeds.remove(0);
        self.metrics.prompt_tokens.fetch_add(tokens.len() as u64, Ordering::Relaxed);
        let _ = answer.send(result);
        Ok(())
    }

    fn tell(&mut self, event: Event) {
        let id = event.id();
        let Some(job) = self.jobs.get_mut(&id) else { return };
        match event {
            Event::Prompt { logprobs, .. } => job.tell(Update::Prompt(logprobs)),
            Event::Token { choice, token, logprob, .. } => {
                let now = Instant::now();
                if !job.begun {
                    self.metrics.first_token(now - job.arrived);
                    job.begun = true;
                }
                if let Some(before) = job.newest[choice].replace(now) {
                    self.metrics.next_token(now - before);
                }
                job.tokens += 1;
                self.metrics.generation_tokens.fetch_add(1, Ordering::Relaxed);
                job.tell(Update::Token { choice, token, logprob });
            }
            Event::Done { choice, stop, stats, .. } => {
                job.tell(Update::Done { choice, stop, stats });
                job.ended[choice] = true;
                job.cut |= matches!(stop, Stop::Eos | Stop::Mask);
                if job.ended.iter().all(|ended| *ended)
                    && let Some(job) = self.remove(id)
                {
                    self.metrics.cached_tokens.fetch_add(stats.cached_tokens as u64, Ordering::Relaxed);
                    let why = if job.cut { "stop" } else { "length" };
                    self.metrics.ended(why, job.arrived.elapsed(), job.prompt, job.tokens);
                }
            }
            Event::Failed { error, .. } => {
                if let Some(job) = self.remove(id) {
                    self.metrics.ended("error", job.arrived.elapsed(), job.prompt, job.tokens);
                    job.tell(Update::Failed(error.into()));
                }
            }
        }
    }
}

fn refuse(command: Command, error: &ApiError) {
    match command {
        Command::Submit(submission) => {
            let _ = submission.updates.send((submission.tag, Update::Failed(error.clone())));
        }
        Command::Embed { answer, .. } => {
            let _ = answer.send(Err(error.clone()));
        }
        Command::StopChoice { .. } | Command::Abort(_) => {}
    }
}

fn caught<T>(job: impl FnOnce() -> Result<T>) -> Result<T, Left> {
    match catch_unwind(AssertUnwindSafe(job)) {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(e)) => Err(Left::Device(e.to_string())),
        Err(panic) => Err(Left::Panic(format!("it panicked: {}", says(&*panic)))),
    }
}

/// What a panic says.
pub(crate) fn says(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_string()).or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "a panic without a message".into())
}

/// Computes once what requests will ask for, so that no request waits for kernels to be compiled.
fn warm_up(engine: &mut Engine, batch: usize, kernels: bool) -> Result<()> {
    let (vocab, max_len) = (engine.model().vocab_size, engine.max_len());
    let mut run = |sequences: usize, len: usize, logprobs: bool| -> Result<()> {
        for i in 0..sequences {
            let len = len.clamp(1, max_len);
            let request = Request {
                prompt: (0..len).map(|j| ((i * 31 + j * 7) % vocab) as u32).collect(),
                max_new: 3,
                sampling: SampleConfig { temperature: if i % 2 == 0 { 0.0 } else { 0.9 }, ..SampleConfig::default() },
                logprobs: logprobs.then_some(1),
                prompt_logprobs: logprobs.then_some(1),
                salt: u64::MAX, // nobody's
                ..Request::default()
            };
            engine.submit(request)?;
        }
        while !engine.is_idle() {
            for event in engine.step()? {
                if let Event::Failed { error, .. } = event {
                    return Err(error);
                }
            }
        }
        Ok(())
    };
    run(1, 4, true)?;
    if kernels {
        for len in [24, 100, 512] {
            run(1, len, false)?;
        }
        let mut sequences = 2;
        while sequences < 2 * batch {
            run(sequences.min(batch), 8, false)?;
            sequences *= 2;
        }
    }
    Ok(())
}
