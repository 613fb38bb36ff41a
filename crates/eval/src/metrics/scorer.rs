//! A judge outside: a command that reads texts and gives scores. For toxicity, truth, or whatever needs a model of its own.
//!
//! The command gets a JSON object a line (`{"text": ...}` and what else the caller gives) on its input, and must print a line for each, in
//! the same order: a number, or an object with a number under `score`.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::{Error, Result};

/// A command that scores texts.
#[derive(Clone, Debug)]
pub struct Scorer {
    /// Program and arguments, run without a shell.
    pub command: Vec<String>,
    /// How long it may take, for all texts together.
    pub deadline: Duration,
}

/// What it may print at most, a text: longer output is not that of a scorer.
const MAX_LINE: usize = 64 << 10;

impl Scorer {
    /// Scores texts (or rows with more keys); one score each.
    ///
    /// # Errors
    /// [`Error::Engine`] where the command cannot be started, fails, takes longer than its deadline, prints another number of lines than it
    /// got, or a line that is no finite number.
    pub fn score(&self, rows: &[impl Serialize]) -> Result<Vec<f64>> {
        let Some((program, arguments)) = self.command.split_first() else {
            return Err(Error::bad_value("scorer", "the command is empty", "give the program and its arguments"));
        };
        let mut input = Vec::new();
        for row in rows {
            serde_json::to_writer(&mut input, row).map_err(|error| self.bad(error.to_string()))?;
            input.push(b'\n');
        }
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| self.bad(format!("it cannot be started: {error}")))?;
        let limit = rows.len().saturating_mul(MAX_LINE).saturating_add(MAX_LINE) as u64;
        let outcome = self.talk(&mut child, input, limit);
        if outcome.is_err() {
            // It may have ended by itself; what counts is the first error.
            let _ = child.kill();
            let _ = child.wait();
        }
        self.parse(&outcome?, rows.len())
    }

    fn talk(&self, child: &mut Child, input: Vec<u8>, limit: u64) -> Result<String> {
        let (Some(mut stdin), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take()) else {
            return Err(Error::internal("scorer", "a child without pipes"));
        };
        // Threads, as a child may print while it still reads. A broken pipe shows in the number of lines.
        std::thread::spawn(move || stdin.write_all(&input));
        let out = reader(stdout, limit);
        let err = reader(stderr, MAX_LINE as u64);
        let end = Instant::now() + self.deadline;
        let late = || self.bad(format!("it took longer than {} s", self.deadline.as_secs_f64()));
        let out = out.recv_timeout(end.saturating_duration_since(Instant::now())).map_err(|_| late())?;
        let err = err.recv_timeout(end.saturating_duration_since(Instant::now())).map_err(|_| late())?;
        let status = loop {
            match child.try_wait().map_err(|error| self.bad(error.to_string()))? {
                Some(status) => break status,
                None if Instant::now() >= end => return Err(late()),
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        if !status.success() {
            let tail = String::from_utf8_lossy(&err);
            return Err(self.bad(format!("it ended with {status}: {}", tail.trim().lines().last().unwrap_or("no message"))));
        }
        String::from_utf8(out).map_err(|_| self.bad("it printed what is no UTF-8".into()))
    }

    fn parse(&self, out: &str, expected: usize) -> Result<Vec<f64>> {
        let lines: Vec<&str> = out.lines().filter(|line| !line.trim().is_empty()).collect();
        if lines.len() != expected {
            return Err(self.bad(format!("expected {expected} lines, one a text, got {}", lines.len())));
        }
        let score = |line: &str| -> Option<f64> {
            let value: serde_json::Value = serde_json::from_str(line).ok()?;
            value.as_f64().or_else(|| value.get("score")?.as_f64())
        };
        let scores = lines.iter().enumerate().map(|(at, line)| {
            let shown: String = line.chars().take(80).collect();
            score(line)
                .ok_or_else(|| self.bad(format!("line {}: expected a number or {{\"score\": number}}, got `{shown}`", at + 1)))
        });
        scores.collect()
    }

    fn bad(&self, problem: String) -> Error {
        Error::Engine {
            what: "scorer",
            problem: format!("`{}`: {problem}", self.command.join(" ")),
            hint: "run it by hand: a JSON object a line in, a number a line out".into(),
        }
    }
}

/// Reads to the end, or to `limit` (what comes after is not read: the child then waits or fails, and the deadline or its status says so).
fn reader(from: impl Read + Send + 'static, limit: u64) -> mpsc::Receiver<Vec<u8>> {
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.take(limit).read_to_end(&mut bytes);
        let _ = send.send(bytes);
    });
    receive
}
