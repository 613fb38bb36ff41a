//! `recua eval run`

use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use clap::Args;
use recua::checkpoint::Checkpoint;
use recua::eval::metrics::scorer::Scorer;
use recua::eval::report;
use recua::eval::results::{self, Info, Results, TaskResult, table};
use recua::eval::sandbox::{Limits, Sandbox};
use recua::eval::{
    Answer, Asking, Kind, LM_EVAL, LocalModel, Model, Outcome, Prepared, Progress, Protocol, RemoteModel, TextSource, Verdicts,
    answer, find_tasks, forget, judge, prepare, quick,
};
use recua::evaluate::held_out;
use recua::generate::{Engine, EngineConfig, TextModel};
use recua::train::RunConfig;
use recua::{Error, Result};

use super::super::flags::EngineFlags;
use super::super::ranks::{Input, RankFlags, Role};
use super::super::{duration, print, print_json, say, stop_on_signal};

/// Which tasks.
#[derive(Args)]
pub(super) struct Which {
    /// Tasks, groups (mmlu), or files of tasks (.toml), separated by commas
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    pub(super) tasks: Vec<String>,
    /// Several tasks by one name: llama-paper, figure-2, quick
    #[arg(long, value_name = "NAME")]
    pub(super) suite: Option<String>,
    /// Folders with a folder of data a task; for the suite `quick` files of text. Nothing is downloaded
    #[arg(long, value_name = "DIR", num_args = 1..)]
    pub(super) data: Vec<PathBuf>,
    /// Whose prompts and metrics: lm-eval, paper
    #[arg(long, value_name = "NAME", default_value_t = Protocol::LmEval)]
    pub(super) protocol: Protocol,
}

impl Which {
    pub(super) fn names(&self) -> Vec<String> {
        self.tasks.iter().chain(&self.suite).map(|name| name.trim().to_string()).filter(|name| !name.is_empty()).collect()
    }
}

/// Score a model on benchmarks
///
/// Prompts, shots and metrics are lm-eval's, item by item, or the paper's. docs/eval.md has the table of both, and how to add a task.
#[derive(Args)]
pub(crate) struct Run {
    /// A run, a checkpoint, a Hugging Face folder, a Meta folder or a GGUF file
    #[arg(long, value_name = "DIR", required_unless_present_any = ["show", "url"], conflicts_with = "url")]
    model: Option<PathBuf>,
    /// A server that speaks OpenAI's completions, in place of a model: http://...; its key in RECUA_API_KEY or OPENAI_API_KEY
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// The model's name at --url [default: its first]
    #[arg(long, value_name = "NAME", requires = "url")]
    model_name: Option<String>,
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
    /// Run the programs that the model writes (humaneval, mbpp), within walls
    #[arg(long)]
    execute_code: bool,
    /// With --execute-code: without walls, where the kernel has none. The programs can then do what you can
    #[arg(long, requires = "execute_code")]
    unsandboxed: bool,
    /// A command that scores texts (toxicity, truth): it reads a JSON object with `text` a line, and prints a number a line
    #[arg(long, value_name = "COMMAND")]
    scorer: Option<String>,
    /// Print the prompts (of two questions a task, or of --limit), and compute nothing
    #[arg(long)]
    show: bool,
    /// Results as one JSON document on stdout
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    engine: EngineFlags,
    #[command(flatten)]
    ranks: RankFlags,
    #[command(flatten)]
    device: super::super::Device,
}

/// Whether all questions were answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Came {
    /// They were, or another rank is asked.
    #[default]
    ToTheEnd,
    /// A signal came first.
    Stopped,
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

    #[cfg_attr(not(any(feature = "mpi", feature = "nccl")), allow(unused_mut))] // a rank has a device of its own
    pub(super) fn run(mut self) -> Result<()> {
        let role = self.ranks.role(&self.device.backend)?;
        self.engine.check()?;
        let names = self.which.names();
        if names.is_empty() {
            return Err(Error::bad_value("--tasks", "no task is named", "name some, or a --suite; `recua eval list` shows them"));
        }
        if !matches!(role, Role::Alone) {
            if let Some(flag) = [(self.show, "--show"), (self.url.is_some(), "--url")].iter().find(|(given, _)| *given) {
                let problem = format!("{} leaves several ranks nothing to compute", flag.1);
                return Err(Error::bad_value("--nproc", problem, "leave it out"));
            }
            super::check_dtype(self.engine.config(1).dtype)?;
        }
        let came = match &role {
            Role::Launcher(ranks, network) => {
                return self.ranks.launch_led(*ranks, *network, &self.device.backend, Input::None);
            }
            #[cfg(any(feature = "mpi", feature = "nccl"))]
            Role::Rank(launched, network) => {
                self.device.become_rank(launched)?;
                let path = self.model.as_deref().unwrap_or(Path::new(""));
                let split = super::Split { flags: &self.ranks, launched, network: *network, backend: &self.device.backend };
                split.run(&|| Ok(TextModel::open(path, self.tokenizer.as_deref())?.checkpoint), |engine| {
                    let prepared = self.prepare(&names)?;
                    let how = ("f32".into(), format!("{}, tp {}", self.device.backend, launched.world));
                    self.score_model(prepared, path, how, engine)
                })?
            }
            _ => {
                self.device.apply()?;
                self.alone(&names)?
            }
        };
        if came == Came::Stopped {
            std::process::exit(130);
        }
        Ok(())
    }

    /// On one device, or a server.
    fn alone(&self, names: &[String]) -> Result<Came> {
        let prepared = self.prepare(names)?;
        if self.show {
            for task in &prepared {
                task.items.iter().for_each(|item| print(&task.show(item)));
            }
            return Ok(Came::ToTheEnd);
        }
        match (&self.model, &self.url) {
            (Some(path), _) => {
                let dtype = self.engine.config(1).dtype.unwrap_or_else(|| "the file's".into());
                let context = self.device.backend.open()?;
                let load = |checkpoint: &Checkpoint, config| Engine::load(checkpoint, &context, config);
                self.score_model(prepared, path, (dtype, self.device.backend.to_string()), &load)
            }
            (None, Some(url)) => {
                let key = ["RECUA_API_KEY", "OPENAI_API_KEY"].iter().find_map(|name| std::env::var(name).ok());
                let mut model = RemoteModel::open(url, self.model_name.as_deref(), key)?;
                model.seed = self.seed;
                self.score(prepared, &mut model, (url.clone(), None), ("the server's".into(), "server".into()))
            }
            (None, None) => {
                Err(Error::bad_value("--model", "no model is named", "name a run or a checkpoint, or a server with --url"))
            }
        }
    }

    /// Of a checkpoint, with the engine that `load` makes of it; `how`: the weights' type, and where it computes.
    fn score_model(
        &self,
        prepared: Vec<Prepared>,
        path: &Path,
        how: (String, String),
        load: &dyn Fn(&Checkpoint, EngineConfig) -> Result<Engine>,
    ) -> Result<Came> {
        let model = TextModel::open(path, self.tokenizer.as_deref())?;
        let about = (path.display().to_string(), Some(model.checkpoint.config().num_params()));
        let mut model = LocalModel::load_by(model, self.engine.config(usize::MAX), load)?;
        model.seed = self.seed;
        self.score(prepared, &mut model, about, how)
    }

    /// The questions of the tasks. Of a suite or a group what is there is evaluated; a task that is named must be there.
    fn prepare(&self, names: &[String]) -> Result<Vec<Prepared>> {
        let asking = self.asking()?;
        let mut texts = None;
        let mut prepared = Vec::new();
        for task in find_tasks(names, self.which.protocol)? {
            let named = names.iter().any(|name| task.is_called(name));
            let one = match task.made {
                Some(made) => {
                    if texts.is_none() {
                        texts = Some(self.texts()?);
                    }
                    quick(&task, made, texts.as_deref().unwrap_or_default(), &asking)
                }
                None => prepare(&task, &self.which.data, &asking),
            };
            let left_out = |why: String| say(&format!("warning: {} is left out: {why}", task.name));
            match one {
                Ok(_) if task.runs_programs() && !self.execute_code && !self.show => {
                    let problem = format!("{} runs programs that the model writes", task.name);
                    if named {
                        return Err(Error::bad_value("--tasks", problem, "allow it with --execute-code, or leave the task out"));
                    }
                    left_out("it runs programs that the model writes; allow it with --execute-code".into());
                }
                Ok(one) => prepared.push(one),
                Err(e @ Error::Nothing { .. }) if !named => left_out(e.to_string()),
                Err(e) => return Err(e),
            }
        }
        if prepared.is_empty() {
            let path = self.which.data.first().cloned().unwrap_or_default();
            let hint = "`recua eval list --data DIR` says which data each task needs".into();
            return Err(Error::Nothing { what: "data of these tasks".into(), path, hint });
        }
        Ok(prepared)
    }

    /// Texts that questions are made of: the files of --data, else the run's held-out text.
    fn texts(&self) -> Result<Vec<TextSource>> {
        let files: Vec<&PathBuf> = self.which.data.iter().filter(|path| path.is_file()).collect();
        if files.is_empty() {
            let nothing = |path: &Path| Error::Nothing {
                what: "held-out text".into(),
                path: path.into(),
                hint: "give a file of text with --data FILE".into(),
            };
            let path = self.model.as_deref().ok_or_else(|| nothing(Path::new("--data")))?;
            let config = path.join("config.toml");
            if !config.is_file() {
                return Err(nothing(path));
            }
            let model = TextModel::open(path, self.tokenizer.as_deref())?;
            let sources = held_out(&RunConfig::read(&config)?, model.tokenizer_for("held-out text")?)?;
            return if sources.is_empty() { Err(nothing(path)) } else { Ok(sources) };
        }
        let read = |path: &&PathBuf| {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
            let text = String::from_utf8(bytes)
                .map_err(|e| Error::bad_file("file of text", path.as_path(), e.to_string(), "save it as UTF-8"))?;
            Ok(TextSource { name, texts: vec![text] })
        };
        files.iter().map(read).collect()
    }

    fn score(
        &self,
        prepared: Vec<Prepared>,
        model: &mut dyn Model,
        about: (String, Option<u64>),
        how: (String, String),
    ) -> Result<Came> {
        let sandbox = match prepared.iter().any(|task| task.task.runs_programs()) {
            true => Some(Sandbox::new(Limits::default(), self.unsandboxed, None)?),
            false => None,
        };
        let stop = stop_on_signal("stopping after this step")?;
        let answers_dir = self.out.as_ref().map(|out| out.join("partial"));
        let mut line = ProgressLine::new();
        let (began, date) = (Instant::now(), unix_time());
        let answers = answer(&prepared, model, answers_dir.as_deref(), &mut |progress| {
            line.show(progress);
            if stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        let Some(answers) = answers else {
            say(match answers_dir {
                Some(_) => "stopped; the same command goes on with it",
                None => "stopped; with --out DIR the answers would have been kept",
            });
            return Ok(Came::Stopped);
        };
        line.finish();
        let (mut tasks, mut outcomes): (Vec<TaskResult>, Vec<Vec<Outcome>>) = Default::default();
        for (task, answers) in prepared.iter().zip(answers) {
            let verdicts = self.verdicts(task, &answers, sandbox.as_ref())?;
            let of_task = judge(task, answers, &verdicts)?;
            tasks.push(TaskResult::new(info(task, &of_task)?, &of_task));
            outcomes.push(of_task);
        }
        let run = results::Run {
            model: about.0,
            parameters: about.1,
            dtype: how.0,
            backend: how.1,
            max_length: Some(model.max_len()),
            protocol: self.which.protocol.to_string(),
            lm_eval: LM_EVAL.into(),
            recua: env!("CARGO_PKG_VERSION").into(),
            seed: self.seed,
            limit: self.limit,
            shots: self.shots,
            samples: self.samples,
            temperature: self.temperature,
            walls: sandbox.as_ref().map(|sandbox| sandbox.walls().to_string()),
            date,
            seconds: began.elapsed().as_secs_f64(),
        };
        let results = Results::new(run, tasks);
        if let Some(out) = &self.out {
            let outcomes: Vec<&[Outcome]> = outcomes.iter().map(Vec::as_slice).collect();
            results.write(out, &outcomes)?;
            report::write(&results, &outcomes, out)?;
        }
        if let Some(dir) = answers_dir {
            forget(&dir, &prepared);
        }
        if self.json {
            print_json(&results)?;
            return Ok(Came::ToTheEnd);
        }
        print(table(&results).trim_end());
        say(&format!("computed in {}", duration(results.run.seconds)));
        Ok(Came::ToTheEnd)
    }

    fn verdicts(&self, task: &Prepared, answers: &[Answer], sandbox: Option<&Sandbox>) -> Result<Verdicts> {
        let mut verdicts = Verdicts::default();
        if let Some(sandbox) = sandbox.filter(|_| task.task.runs_programs()) {
            verdicts.run_programs(task, answers, sandbox)?;
        }
        if task.task.asks_outside() {
            match &self.scorer {
                Some(command) => {
                    let command = command.split_whitespace().map(String::from).collect();
                    verdicts.ask(task, answers, &Scorer { command, deadline: Duration::from_secs(24 * 3600) })?;
                }
                None => {
                    say(&format!("warning: the texts of {} are judged by no one; give a command with --scorer", task.task.name))
                }
            }
        }
        Ok(verdicts)
    }
}

fn unix_time() -> f64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

fn info(prepared: &Prepared, outcomes: &[Outcome]) -> Result<Info> {
    let task = &prepared.task;
    // pass@k of more programs than were written, and scores that nobody gave, are no results.
    let there = |name: &String| task.kind != Kind::Generate || outcomes.iter().any(|outcome| outcome.metrics.contains_key(name));
    Ok(Info {
        name: task.name.clone(),
        version: task.version.clone(),
        protocol: task.protocol.to_string(),
        metrics: task.metric_names().into_iter().filter(there).collect(),
        shots: prepared.shots,
        original: prepared.total,
        sha256: prepared.sha256.clone(),
        files: prepared.sources.clone(),
        groups: task.groups.clone(),
        config: serde_json::to_value(task).map_err(|e| Error::internal("task", e.to_string()))?,
    })
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
        if self.told.is_none() {
            (self.began, self.told) = (Instant::now(), Some(Instant::now()));
        }
        if self.told.is_some_and(|told| told.elapsed() < every) {
            return;
        }
        self.told = Some(Instant::now());
        let Progress { questions, tokens } = *progress;
        let share = tokens.0 as f64 / tokens.1.max(1) as f64;
        let left = if share > 0.0 { duration(self.began.elapsed().as_secs_f64() * (1.0 - share) / share) } else { "?".into() };
        let (start, end) = if self.terminal { ("\r\x1b[K", "") } else { ("", "\n") };
        let text = format!("{start}{} of {} questions, {:.0} %, eta {left}{end}", questions.0, questions.1, 100.0 * share);
        let _ = std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes());
    }

    fn finish(&self) {
        if self.terminal {
            let _ = std::io::Write::write_all(&mut std::io::stderr(), b"\r\x1b[K");
        }
    }
}
