//! The times of a step, computation and communication by rank, in the Trace Event format that `chrome://tracing` and ui.perfetto.dev open.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde_json::{Value, json};

use super::comm::{Call, Communicator, gather_bytes};
use crate::error::Result;
use crate::files::write_atomic;

/// Spans of one rank, of a few steps.
#[derive(Debug)]
pub struct Trace {
    path: PathBuf,
    state: Mutex<State>,
    on: AtomicBool,
}

#[derive(Debug)]
struct State {
    rank: usize,
    origin: Instant,
    /// When computation last changed from one thing to another.
    mark: Instant,
    events: Vec<Value>,
}

/// Rows of a rank in the picture.
const COMPUTATION: u64 = 0;
const COMMUNICATION: u64 = 1;

impl Trace {
    /// The first rank will write it to `path`.
    pub fn new(path: &Path) -> Self {
        let now = Instant::now();
        let state = State { rank: 0, origin: now, mark: now, events: Vec::new() };
        Self { path: path.into(), state: Mutex::new(state), on: AtomicBool::new(false) }
    }

    /// Spans are noted from now on. All ranks call it: their times begin where the slowest has come.
    ///
    /// # Errors
    /// [`Error::Communication`](crate::Error::Communication).
    pub fn begin(&self, world: &dyn Communicator) -> Result<()> {
        world.barrier().wait()?;
        let now = Instant::now();
        *self.lock() = State { rank: world.rank(), origin: now, mark: now, events: Vec::new() };
        self.on.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn span(&self, row: u64, name: &str, category: &str, [began, ended]: [Instant; 2], args: &Value) {
        if !self.on.load(Ordering::Relaxed) {
            return;
        }
        let mut state = self.lock();
        let micros = |at: Instant| at.saturating_duration_since(state.origin).as_secs_f64() * 1e6;
        let event = json!({
            "name": name, "cat": category, "ph": "X", "pid": state.rank, "tid": row,
            "ts": micros(began), "dur": micros(ended) - micros(began), "args": args,
        });
        state.events.push(event);
    }

    /// An operation between ranks.
    pub fn communication(&self, call: &Call, began: Instant, ended: Instant, bytes: usize) {
        let name = format!("{} {}", call.group, call.operation);
        self.span(COMMUNICATION, &name, "communication", [began, ended], &json!({ "bytes": bytes, "sequence": call.sequence }));
    }

    /// Computation waited for an operation.
    pub fn waiting(&self, call: &Call, began: Instant, ended: Instant) {
        let name = format!("wait: {} {}", call.group, call.operation);
        self.span(COMPUTATION, &name, "waiting", [began, ended], &json!({ "sequence": call.sequence }));
    }

    /// What was computed since the last mark.
    pub fn mark(&self, name: &str) {
        if self.on.load(Ordering::Relaxed) {
            let now = Instant::now();
            let since = std::mem::replace(&mut self.lock().mark, now);
            self.span(COMPUTATION, name, "computation", [since, now], &json!({}));
        }
    }

    /// Ends the noting, where it was begun; the first rank writes what all have noted. All ranks call it.
    ///
    /// # Errors
    /// [`Error::Communication`](crate::Error::Communication); those of the file.
    pub fn end(&self, world: &dyn Communicator) -> Result<()> {
        if !self.on.swap(false, Ordering::Relaxed) {
            return Ok(());
        }
        let (rank, events) = {
            let mut state = self.lock();
            (state.rank, std::mem::take(&mut state.events))
        };
        let label = |what: &str, row: u64, name: String| json!({ "name": what, "ph": "M", "pid": rank, "tid": row, "args": { "name": name } });
        let mut own = vec![
            label("process_name", 0, format!("rank {rank}")),
            label("thread_name", COMPUTATION, "computation".into()),
            label("thread_name", COMMUNICATION, "communication".into()),
        ];
        own.extend(events);
        let text: Vec<String> = own.iter().map(Value::to_string).collect();
        let all = gather_bytes(world, text.join(",\n").as_bytes(), None)?;
        if world.rank() > 0 {
            return Ok(());
        }
        let all: Vec<_> = all.iter().map(|bytes| String::from_utf8_lossy(bytes)).collect();
        write_atomic(&self.path, format!("{{\"traceEvents\": [\n{}\n]}}\n", all.join(",\n")).as_bytes())
    }
}
