//! `recua eval run`, `recua eval list`

use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use clap::Args;
use recua::eval::{
    Asking, Kind, LM_EVAL, LocalModel, Outcome, Prepared, Progress, Protocol, Task, all_tasks, answer, find_tasks, folder,
    forget, judge, prepare,
};
use recua::generate::TextModel;
use recua::{Error, Result};
use serde_json::json;

use super::super::flags::EngineFlags;
use super::super::{duration, print, print_json, say, stop_on_signal};

/// Which tasks.
#[derive(Args)]
struct Which {
    /// Tasks, groups (mmlu), or files of tasks (.toml), separated by commas
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    tasks: Vec<String>,
    /// Several tasks by one name: llama-paper, figure-2
    #[arg(long, value_name = "NAME")]
    suite: Option<String>,
    /// Folders with a folder of data a task; nothing is downloaded
    #[arg(long, value_name = "DIR", num_args = 1..)]
    data: Vec<PathBuf>,
    /// Whose prompts and metrics: lm-eval, paper
    #[arg(long, value_name = "NAME", default_value_t = Protocol::LmEval)]
    protocol: Protocol,
}

impl Which {
    fn names(&self) -> Vec<String> {
        self.tasks.iter().chain(&self.suite).map(|name| name.trim().to_string()).filter(|name| !name.is_empty()).collect()
    }
}

/// Score a model on benchmarks
///
/// Prompts, shots and metrics are lm-eval's, item by item, or the paper's. docs/eval.md has the table of both, and how to add a task.
#[derive(Args)]
pub(crate) struct Run {
    /// A run, a checkpoint, a Hugging Face folder, a Meta folder or a GGUF file
    #[arg(long, value_name = "DIR", required_unless_present = "show")]
    model: Option<PathBuf>,
    /// Tokenizer, if it is not beside the model
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    #[command(flatten)]
    which: Which,
    /// Examples before each question [default: the task's]
    #[arg(long, value_name = "N")]
    shots: Option<usize>,
    /// Only the first N questions of each task
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Texts a question, where texts are generated [default: the task's]
    #[arg(long, value_name = "N")]
    samples: Option<usize>,
    /// Divides the logits, where texts are generated; 0 takes the likeliest token [default: the task's]
    #[arg(long, value_name = "T")]
    temperature: Option<f64>,
    /// Of the choice of shots, and of sampled texts
    #[arg(long, value_name = "N", default_value_t = 1234)]
    seed: u64,
    /// Where results.json, samples/ and report.html go; a run that was stopped goes on there
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print the prompts (of two questions a task, or of --limit), and compute nothing
    #[arg(long)]
    show: bool,
    /// Results as one JSON document on stdout
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    engine: EngineFlags,
    #[command(flatten)]
    device: super::super::Device,
}

impl Run {
    fn asking(&self) -> Result<Asking> {
        for (flag, value) in [("--limit", self.limit), ("--samples", self.samples)] {
            if value == Some(0) {
                return Err(Error::bad_value(flag, "expected at least 1, got 0", "leave it out to take the default"));
            }
        }
        if self.temperature.is_some_and(|t| !(t >= 0.0 && t.is_finite())) {
            return Err(Error::bad_value("--temperature", "expected a number of at least 0", "0 takes the likeliest token"));
        }
        let Self { shots, samples, temperature, seed, .. } = *self;
        let limit = if self.show { self.limit.or(Some(2)) } else { self.limit };
        Ok(Asking { shots, limit, samples, temperature, seed })
    }

    pub(super) fn run(self) -> Result<()> {
        self.device.apply()?;
        self.engine.check()?;
        let names = self.which.names();
        if names.is_empty() {
            return Err(Error::bad_value("--tasks", "no task is named", "name some, or a --suite; `recua eval list` shows them"));
        }
        let asking = self.asking()?;
        let tasks = find_tasks(&names, self.which.protocol)?;
        let mut prepared = Vec::new();
        for task in &tasks {
            match prepare(task, &self.which.data, &asking) {
                Ok(task) => prepared.push(task),
                // Of a suite or a group what is there is evaluated; a task that is named must be there.
                Err(e @ Error::Nothing { .. }) if !names.iter().any(|name| task.is_called(name)) => {
                    say(&format!("warning: {} is left out: {e}", task.name));
                }
                Err(e) => return Err(e),
            }
        }
        if prepared.is_empty() {
            let path = self.which.data.first().cloned().unwrap_or_default();
            let hint = "`recua eval list --data DIR` says which data each task needs".into();
            return Err(Error::Nothing { what: "data of these tasks".into(), path, hint });
        }
        if self.show {
            for task in &prepared {
                task.items.iter().for_each(|item| print(&task.show(item)));
            }
            return Ok(());
        }
        self.score(prepared)
    }

    fn score(&self, prepared: Vec<Prepared>) -> Result<()> {
        let Some(path) = &self.model else {
            return Err(Error::bad_value("--model", "no model is named", "name a run or a checkpoint"));
        };
        let stop = stop_on_signal("stopping after this step")?;
        let model = TextModel::open(path, self.tokenizer.as_deref())?;
        let config = self.engine.config(usize::MAX);
        let mut model = LocalModel::load(model, &self.device.backend.open()?, config)?;
        model.seed = self.seed;
        let answers_dir = self.out.as_ref().map(|out| out.join("partial"));
        let mut line = ProgressLine::new();
        let began = Instant::now();
        let answers = answer(&prepared, &mut model, answers_dir.as_deref(), &mut |progress| {
            line.show(progress);
            if stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        let Some(answers) = answers else {
            say(match answers_dir {
                Some(_) => "stopped; the same command goes on with it",
                None => "stopped; with --out DIR the answers would have been kept",
            });
            std::process::exit(130);
        };
        line.finish(began.elapsed().as_secs_f64());
        let mut results: Vec<(Prepared, Vec<Outcome>)> = Vec::new();
        for (task, answers) in prepared.into_iter().zip(answers) {
            let outcomes = judge(&task, answers, None)?;
            results.push((task, outcomes));
        }
        self.tell(&results)?;
        if let Some(dir) = answers_dir {
            let tasks: Vec<Prepared> = results.into_iter().map(|(task, _)| task).collect();
            forget(&dir, &tasks);
        }
        Ok(())
    }

    fn tell(&self, results: &[(Prepared, Vec<Outcome>)]) -> Result<()> {
        for (task, outcomes) in results {
            let mean = |name: &str| {
                let values: Vec<f64> = outcomes.iter().filter_map(|o| o.metrics.get(name)).copied().collect();
                values.iter().sum::<f64>() / values.len() as f64
            };
            if self.json {
                print_json(
                    &json!({"task": task.task.name, "metrics": task.task.metric_names().iter().map(|n| (n.clone(), mean(n))).collect::<std::collections::BTreeMap<_,_>>()}),
                )?;
            } else {
                for name in task.task.metric_names() {
                    print(&format!(
                        "{:30} {:24} {:8.4} n={} shots={}",
                        task.task.name,
                        name,
                        mean(&name),
                        outcomes.len(),
                        task.shots
                    ));
                }
            }
        }
        Ok(())
    }
}

/// How far it is, on stderr: every second on a terminal, else every half minute.
struct ProgressLine {
    began: Instant,
    told: Option<Instant>,
    terminal: bool,
}

impl ProgressLine {
    fn new() -> Self {
        Self { began: Instant::now(), told: None, terminal: std::io::stderr().is_terminal() }
    }

    fn show(&mut self, progress: &Progress) {
        let every = Duration::from_secs(if self.terminal { 1 } else { 30 });
        if self.told.is_some_and(|told| told.elapsed() < every) {
            return;
        }
        if self.told.is_none() {
            self.began = Instant::now();
        }
        self.told = Some(Instant::now());
        let Progress { questions, tokens } = *progress;
        let share = tokens.0 as f64 / tokens.1.max(1) as f64;
        let left = if share > 0.0 { duration(self.began.elapsed().as_secs_f64() * (1.0 - share) / share) } else { "?".into() };
        let (start, end) = if self.terminal { ("\r\x1b[K", "") } else { ("", "\n") };
        let text = format!("{start}{} of {} questions, {:.0} %, eta {left}{end}", questions.0, questions.1, 100.0 * share);
        let _ = std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes());
    }

    fn finish(&self, seconds: f64) {
        if self.terminal {
            let _ = std::io::Write::write_all(&mut std::io::stderr(), b"\r\x1b[K");
        }
        say(&format!("computed in {}", duration(seconds)));
    }
}

/// Show the tasks
///
/// Protocol, version, metrics, shots, and where each task's data comes from; with --data whether it is there.
#[derive(Args)]
pub(crate) struct List {
    #[command(flatten)]
    which: Which,
    /// One JSON document on stdout
    #[arg(long)]
    json: bool,
}

impl List {
    pub(super) fn run(self) -> Result<()> {
        let names = self.which.names();
        let tasks = if names.is_empty() { all_tasks(self.which.protocol)? } else { find_tasks(&names, self.which.protocol)? };
        let found =
            |task: &Task| (!self.which.data.is_empty()).then(|| folder(task, &self.which.data).map_err(|e| e.to_string()));
        if self.json {
            let rows = tasks.iter().map(|task| {
                let found = found(task);
                json!({
                    "task": task.name, "aliases": task.aliases, "groups": task.groups, "protocol": task.protocol, "version": task.version,
                    "kind": task.kind, "metrics": task.metric_names(), "shots": task.shots, "source": task.source,
                    "found": found.as_ref().map(Result::is_ok),
                    "problem": found.and_then(Result::err),
                })
            });
            return print_json(&rows.collect::<Vec<_>>());
        }
        let protocol = self.which.protocol;
        print(&match protocol {
            Protocol::LmEval => format!("protocol lm-eval: prompts, shots and metrics of lm-eval {LM_EVAL}"),
            Protocol::Paper => "protocol paper: those of the LLaMA paper; docs/eval.md says where it is silent".into(),
        });
        for task in tasks {
            let also = if task.aliases.is_empty() { String::new() } else { format!(" ({})", task.aliases.join(", ")) };
            let shots = if task.kind == Kind::Text { String::new() } else { format!(", {} shots", task.shots) };
            print(&format!("{}{also}  {}, {}{shots}", task.name, task.version, task.metric_names().join(" ")));
            print(&format!("    {}", task.source));
            match found(&task) {
                Some(Ok(_)) => print("    found"),
                Some(Err(e)) => print(&format!("    not found: {e}")),
                None => {}
            }
        }
        Ok(())
    }
}
