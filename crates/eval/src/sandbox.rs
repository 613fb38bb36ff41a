//! Programs that a model wrote are run here, within walls (Linux).
//!
//! 1. [`Sandbox::new`] looks for Python and tries the walls: where the kernel gives none, it refuses.
//! 2. [`Sandbox::run`] starts this program again under [`VERB`]; [`enter`] there builds the walls (`walls`) and becomes Python.
//! 3. The Python side (`runner.py`) gets the program and a random token on its input. Only who prints the token on a pipe of its own,
//!    after the last line of the program, has passed: a program that ends before its tests has not.
//!
//! The walls keep the machine from harm by bad programs. That a program which looks for it could find the token in its own process and
//! pass unjustly is not one of the things that they prevent.

#[cfg(target_os = "linux")]
mod walls;

use std::fmt;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The hidden verb under which the program starts itself: `recua VERB SETTINGS`. Its `main` calls [`enter`] first thing.
pub const VERB: &str = "__sandbox";

/// What a program may take.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// From its start to its end, Python's own start included.
    pub seconds: f64,
    /// Address space in bytes.
    pub memory: u64,
    /// Threads at a time. (Processes it cannot start at all.)
    pub threads: u64,
    /// A file's length in bytes; all files together may have four times that where the kernel lets us mount.
    pub file: u64,
    /// Bytes printed, to standard output and error together.
    pub output: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { seconds: 5.0, memory: 1 << 30, threads: 32, file: 16 << 20, output: 64 << 10 }
    }
}

/// How a program came to no good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "failure", content = "message")]
pub enum Failure {
    /// An assertion of the tests (or of its own) does not hold.
    WrongAnswer(String),
    /// It is no Python.
    Syntax(String),
    /// Another exception.
    Exception(String),
    /// It took longer than it may.
    Timeout,
    /// It wanted more memory than it may have.
    Memory,
    /// It printed more than it may.
    Output,
    /// It wanted more threads than it may have.
    Threads,
    /// It wrote more than it may.
    FileSize,
    /// It asked for what is walled off: files, network, processes, signals.
    Forbidden(String),
    /// It ended, with this code, before the tests did.
    ExitBeforeTheEnd(i32),
    /// A signal ended it.
    Crash(i32),
}

impl Failure {
    /// A word for tables.
    pub fn name(&self) -> &'static str {
        match self {
            Self::WrongAnswer(_) => "wrong answer",
            Self::Syntax(_) => "syntax",
            Self::Exception(_) => "exception",
            Self::Timeout => "timeout",
            Self::Memory => "memory",
            Self::Output => "output",
            Self::Threads => "threads",
            Self::FileSize => "file size",
            Self::Forbidden(_) => "forbidden",
            Self::ExitBeforeTheEnd(_) => "exit before the end",
            Self::Crash(_) => "crash",
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WrongAnswer(text) | Self::Syntax(text) | Self::Exception(text) | Self::Forbidden(text) => {
                write!(f, "{}: {text}", self.name())
            }
            Self::ExitBeforeTheEnd(code) => write!(f, "{} with code {code}", self.name()),
            Self::Crash(signal) => write!(f, "{} by signal {signal}", self.name()),
            _ => f.write_str(self.name()),
        }
    }
}

/// What came of a program.
#[derive(Clone, Debug, PartialEq)]
pub struct Ran {
    /// `None`: it passed.
    pub failure: Option<Failure>,
    /// The first of what it printed.
    pub output: String,
    /// How long it took.
    pub elapsed: Duration,
}

/// Which walls stand.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Walls {
    /// Namespaces of processes, network, mounts and IPC, with a root folder of its own.
    pub namespaces: bool,
    /// Landlock, and whether the kernel knows all of what is asked of it.
    pub landlock: Option<String>,
    /// System calls that are denied.
    pub seccomp: bool,
}

impl fmt::Display for Walls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut walls = Vec::new();
        if self.namespaces {
            walls.push("namespaces".to_owned());
        }
        walls.extend(self.landlock.as_ref().map(|how| format!("Landlock ({how})")));
        if self.seccomp {
            walls.push("seccomp".into());
        }
        f.write_str(&if walls.is_empty() { "none".to_owned() } else { walls.join(", ") })
    }
}

/// What the child is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Settings {
    python: PathBuf,
    /// Folders that Python needs.
    trees: Vec<PathBuf>,
    /// The program's own folder.
    dir: PathBuf,
    limits: Limits,
    walled: bool,
}

/// A place to run programs in.
#[derive(Clone, Debug)]
pub struct Sandbox {
    helper: Vec<String>,
    python: PathBuf,
    trees: Vec<PathBuf>,
    limits: Limits,
    walled: bool,
    walls: Walls,
}

#[cfg(target_os = "linux")]
const RUNNER: &str = include_str!("sandbox/runner.py");

/// What Python says of itself: its program, and where its files are.
const ABOUT: &str = "import sys, json, os\nprint(json.dumps([os.path.realpath(sys.executable)] + [os.path.realpath(p) for p in {sys.prefix, sys.base_prefix, sys.exec_prefix}]))";

impl Sandbox {
    /// Looks for `python3` and tries the walls. `helper` is the command that leads to [`enter`]; `None`: this program with [`VERB`].
    /// With `unsandboxed` there are no walls but limits, a deadline and a folder of its own.
    ///
    /// # Errors
    /// [`Error::BadValue`] where there is no Linux, no `python3`, or a kernel that gives no walls (unless `unsandboxed`).
    pub fn new(limits: Limits, unsandboxed: bool, helper: Option<Vec<String>>) -> Result<Self> {
        if !cfg!(target_os = "linux") {
            let problem = format!("generated programs are run on Linux only, this is {}", std::env::consts::OS);
            return Err(refused(problem));
        }
        let helper = match helper {
            Some(helper) => helper,
            None => {
                let exe =
                    std::env::current_exe().map_err(|error| refused(format!("this program's own file is not known: {error}")))?;
                vec![exe.to_string_lossy().into_owned(), VERB.into()]
            }
        };
        let mut problems = Vec::new();
        for name in ["python3", "/usr/bin/python3"] {
            let about = match about(name) {
                Ok(about) => about,
                Err(problem) => {
                    problems.push(format!("{name}: {problem}"));
                    continue;
                }
            };
            let Some((python, trees)) = about.split_first() else { continue };
            let mut sandbox = Self {
                helper: helper.clone(),
                python: python.clone(),
                trees: trees.to_vec(),
                limits: limits.clone(),
                walled: !unsandboxed,
                walls: Walls::default(),
            };
            match sandbox.probe() {
                Ok(walls) => {
                    sandbox.walls = walls;
                    return Ok(sandbox);
                }
                Err(problem) => problems.push(format!("{name}: {problem}")),
            }
        }
        Err(refused(problems.join("; ")))
    }

    /// The walls that stand.
    pub fn walls(&self) -> &Walls {
        &self.walls
    }

    /// Runs nothing, to see what the kernel allows.
    fn probe(&self) -> std::result::Result<Walls, String> {
        let generous = Self { limits: Limits { seconds: self.limits.seconds.max(10.0), ..self.limits.clone() }, ..self.clone() };
        let (ran, walls) = generous.attempt("").map_err(|error| error.to_string())?;
        match (ran.failure, walls) {
            (None, Some(walls)) => Ok(walls),
            (Some(failure), _) => Err(format!("an empty program failed: {failure}; {}", ran.output.trim())),
            (None, None) => Err("the child said nothing of its walls".into()),
        }
    }

    /// Runs a program: its tests are its last lines, and it passes by coming to their end.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::BadValue`] for what is not the program's fault: no room for a folder, no child, walls that are gone.
    pub fn run(&self, program: &str) -> Result<Ran> {
        self.attempt(program).map(|(ran, _)| ran)
    }

    fn attempt(&self, program: &str) -> Result<(Ran, Option<Walls>)> {
        let start = Instant::now();
        let dir = tempfile::Builder::new().prefix("recua-eval-").tempdir().map_err(Error::io("create", std::env::temp_dir()))?;
        let settings = Settings {
            python: self.python.clone(),
            trees: self.trees.clone(),
            dir: dir.path().into(),
            limits: self.limits.clone(),
            walled: self.walled,
        };
        let settings = serde_json::to_string(&settings).map_err(|error| Error::internal("sandbox", error.to_string()))?;
        let Some((program_file, arguments)) = self.helper.split_first() else {
            return Err(Error::internal("sandbox", "an empty command for the child"));
        };
        let mut child = Command::new(program_file)
            .args(arguments)
            .env_clear()
            .env(SETTINGS, settings)
            .current_dir(dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(Error::io("start", program_file))?;
        let token = token()?;
        let outcome = self.watch(&mut child, format!("{token}\n{program}").into_bytes(), start);
        // Whatever came, nothing of it lives on.
        kill_group(&child);
        let status = child.wait().map_err(Error::io("wait for", program_file))?;
        let (ended, output, said) = outcome?;
        let (walls, said) = split_report(&said)?;
        let failure = match ended {
            Ended::Late => Some(Failure::Timeout),
            Ended::TooMuchOutput => Some(Failure::Output),
            Ended::ByItself if said.trim_end() == token => None,
            Ended::ByItself => Some(classify(&said, status)),
        };
        Ok((Ran { failure, output: String::from_utf8_lossy(&output).into_owned(), elapsed: start.elapsed() }, walls))
    }

    /// Reads what the child prints until it ends, is late, or prints too much.
    fn watch(&self, child: &mut Child, input: Vec<u8>, start: Instant) -> Result<(Ended, Vec<u8>, Vec<u8>)> {
        let (Some(mut stdin), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take()) else {
            return Err(Error::internal("sandbox", "a child without pipes"));
        };
        // A child that does not read to the end shows in what it says.
        std::thread::spawn(move || stdin.write_all(&input));
        let (send, events) = mpsc::channel();
        let cap = self.limits.output;
        let other = send.clone();
        std::thread::spawn(move || other.send(Event::Output(capped(stdout, cap))));
        std::thread::spawn(move || send.send(Event::Said(capped(stderr, 64 << 10))));
        let end = start + Duration::from_secs_f64(self.limits.seconds.clamp(0.0, 1e6));
        let (mut output, mut said, mut ended) = (None, None, Ended::ByItself);
        while output.is_none() || said.is_none() {
            match events.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(Event::Output(bytes)) => {
                    if bytes.len() > cap {
                        ended = Ended::TooMuchOutput;
                        kill_group(child);
                    }
                    output = Some(bytes);
                }
                Ok(Event::Said(bytes)) => said = Some(bytes),
                Err(_) => {
                    if ended == Ended::ByItself {
                        ended = Ended::Late;
                    }
                    kill_group(child);
                    // Its pipes close now; what does not is not waited for.
                    while let Ok(event) = events.recv_timeout(Duration::from_secs(5)) {
                        match event {
                            Event::Output(bytes) => output = Some(bytes),
                            Event::Said(bytes) => said = Some(bytes),
                        }
                    }
                    break;
                }
            }
        }
        // Both pipes are closed: a program may do that and live on.
        while ended == Ended::ByItself && child.try_wait().map_err(Error::io("wait for", &self.python))?.is_none() {
            if Instant::now() >= end {
                ended = Ended::Late;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut output = output.unwrap_or_default();
        output.truncate(cap);
        Ok((ended, output, said.unwrap_or_default()))
    }
}

/// The environment variable that carries [`Settings`] to the child; the program does not see it.
const SETTINGS: &str = "RECUA_SANDBOX";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    ByItself,
    Late,
    TooMuchOutput,
}

enum Event {
    Output(Vec<u8>),
    Said(Vec<u8>),
}

/// Up to one byte more than `cap`: that byte tells that there was more.
fn capped(from: impl Read, cap: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A broken pipe is the end of what it said.
    let _ = from.take(cap as u64 + 1).read_to_end(&mut bytes);
    bytes
}

fn refused(problem: String) -> Error {
    Error::bad_value(
        "--execute-code",
        problem,
        "without walls generated programs run with your rights: only --unsandboxed allows that",
    )
}

fn about(python: &str) -> std::result::Result<Vec<PathBuf>, String> {
    let output = Command::new(python)
        .args(["-I", "-S", "-B", "-c", ABOUT])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())
}

/// 128 random bits of the system.
fn token() -> Result<String> {
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(Error::io("read", "/dev/urandom"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The child's first line says which walls stand, or why none could be built.
fn split_report(said: &[u8]) -> Result<(Option<Walls>, String)> {
    let said = String::from_utf8_lossy(said);
    // What the test harness prints before it comes to the child.
    let Some(at) = said.find("walls:") else {
        return Ok((None, said.into_owned()));
    };
    let (report, rest) = said[at + 6..].split_once('\n').unwrap_or((&said[at + 6..], ""));
    let walls: std::result::Result<Walls, String> = serde_json::from_str(report)
        .map_err(|error| Error::internal("sandbox", format!("the child's report `{report}`: {error}")))?;
    walls.map(|walls| (Some(walls), rest.to_owned())).map_err(refused)
}

/// What went wrong, from the exception that the runner named (`Type:errno:message`) or from how the process ended.
fn classify(said: &str, status: ExitStatus) -> Failure {
    let mut parts = said.trim_end().splitn(3, ':');
    if let (Some(kind), Some(errno), Some(message)) = (parts.next(), parts.next(), parts.next()) {
        let text = if message.is_empty() { kind.to_owned() } else { format!("{kind}: {message}") };
        return match (kind, errno.parse().unwrap_or(0)) {
            ("AssertionError", _) => Failure::WrongAnswer(message.to_owned()),
            ("SyntaxError" | "IndentationError" | "TabError", _) => Failure::Syntax(message.to_owned()),
            ("MemoryError", _) | (_, 12) => Failure::Memory,
            ("SystemExit" | "KeyboardInterrupt", _) => Failure::ExitBeforeTheEnd(message.parse().unwrap_or(0)),
            // EPERM, EACCES; EROFS is what a root folder of its own says.
            (_, 1 | 13 | 30) => Failure::Forbidden(text),
            // EFBIG, ENOSPC, EDQUOT.
            (_, 27 | 28 | 122) => Failure::FileSize,
            (_, 11) => Failure::Threads,
            ("RuntimeError", _) if message.contains("can't start new thread") => Failure::Threads,
            _ => Failure::Exception(text),
        };
    }
    ended_by(status)
}

#[cfg(unix)]
fn ended_by(status: ExitStatus) -> Failure {
    use std::os::unix::process::ExitStatusExt;
    const SIGXCPU: i32 = 24;
    // The helper passes its child's signal on as a shell does.
    let signal = status.signal().or_else(|| status.code().filter(|code| *code > 128).map(|code| code - 128));
    match (signal, status.code()) {
        (Some(SIGXCPU), _) => Failure::Timeout,
        (Some(signal), _) => Failure::Crash(signal),
        (None, code) => Failure::ExitBeforeTheEnd(code.unwrap_or(0)),
    }
}

#[cfg(not(unix))]
fn ended_by(status: ExitStatus) -> Failure {
    Failure::ExitBeforeTheEnd(status.code().unwrap_or(0))
}

/// The child leads a session of its own; nobody in it may leave it.
#[cfg(target_os = "linux")]
fn kill_group(child: &Child) {
    let Ok(pid) = i32::try_from(child.id()) else { return };
    // SAFETY: plain system calls. The child is not waited for yet, so that its number is no other's.
    unsafe {
        libc::kill(-pid, libc::SIGKILL);
        libc::kill(pid, libc::SIGKILL);
    }
}

#[cfg(not(target_os = "linux"))]
fn kill_group(_child: &Child) {}

/// The child's side: builds the walls and becomes Python. Returns only if it cannot.
#[cfg(target_os = "linux")]
pub fn enter() -> std::process::ExitCode {
    let problem = match std::env::var(SETTINGS)
        .map_err(|error| error.to_string())
        .and_then(|text| serde_json::from_str(&text).map_err(|error| error.to_string()))
    {
        Ok(settings) => walls::enter(&settings),
        Err(problem) => format!("this verb is for the program itself: {problem}"),
    };
    walls::report(&Err(problem));
    std::process::ExitCode::FAILURE
}

/// The child's side, which only Linux has.
#[cfg(not(target_os = "linux"))]
pub fn enter() -> std::process::ExitCode {
    std::process::ExitCode::FAILURE
}
