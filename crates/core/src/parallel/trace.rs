//! The times of a step, computation and communication by rank, in the Trace Event format that `chrome://tracing` and ui.perfetto.dev open.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde_json::{Value, json};

use super::comm::Call;

/// Spans of one rank.
#[derive(Debug)]
pub struct Trace {
    rank: usize,
    origin: Instant,
    events: Mutex<Vec<Value>>,
}

/// Rows of a rank in the picture.
const COMPUTATION: u64 = 0;
const COMMUNICATION: u64 = 1;

impl Trace {
    /// Of a rank, with times from `origin` on, which ranks take together.
    pub fn new(rank: usize, origin: Instant) -> Self {
        Self { rank, origin, events: Mutex::default() }
    }

    fn span(&self, row: u64, name: String, category: &str, began: Instant, ended: Instant, args: &Value) {
        let micros = |at: Instant| at.saturating_duration_since(self.origin).as_secs_f64() * 1e6;
        let event = json!({
            "name": name, "cat": category, "ph": "X", "pid": self.rank, "tid": row,
            "ts": micros(began), "dur": micros(ended) - micros(began), "args": args,
        });
        self.events.lock().unwrap_or_else(PoisonError::into_inner).push(event);
    }

    /// An operation between ranks.
    pub fn communication(&self, call: &Call, began: Instant, ended: Instant, bytes: usize) {
        let name = format!("{} {}", call.group, call.operation);
        self.span(COMMUNICATION, name, "communication", began, ended, &json!({ "bytes": bytes, "sequence": call.sequence }));
    }

    /// Computation waited for an operation.
    pub fn waiting(&self, call: &Call, began: Instant, ended: Instant) {
        let name = format!("wait: {} {}", call.group, call.operation);
        self.span(COMPUTATION, name, "waiting", began, ended, &json!({ "sequence": call.sequence }));
    }

    /// A part of a step.
    pub fn computation(&self, name: &str, began: Instant, ended: Instant) {
        self.span(COMPUTATION, name.into(), "computation", began, ended, &json!({}));
    }

    /// The events with the names of the rows.
    pub fn events(&self) -> Vec<Value> {
        let label = |what: &str, row: u64, name: String| json!({ "name": what, "ph": "M", "pid": self.rank, "tid": row, "args": { "name": name } });
        let mut all = vec![
            label("process_name", 0, format!("rank {}", self.rank)),
            label("thread_name", COMPUTATION, "computation".into()),
            label("thread_name", COMMUNICATION, "communication".into()),
        ];
        all.extend(self.events.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned());
        all
    }
}
