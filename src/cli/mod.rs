//! The command line: one file a verb. Results go to stdout, everything else to stderr.

mod bench;
mod chat;
mod convert;
mod data;
mod eval;
mod flags;
mod generate;
mod info;
mod plan;
mod progress;
mod quickstart;
mod ranks;
mod selftest;
#[cfg(feature = "serve")]
mod serve;
mod tokenizer;
mod train;
#[cfg(feature = "tui")]
mod tui;

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Args, Parser, Subcommand};
use recua::backend::BackendName;
use recua::{Error, Result};

/// LLaMA end to end: raw text -> tokens -> a trained model -> text.
///
/// The whole path in one command, on the source code in Cargo's own registry:
///     recua quickstart
///
/// Step by step:
///     recua tokenizer train --input texts/ --out tokenizer.json --vocab-size 8192
///     recua data tokenize --input texts/ --tokenizer tokenizer.json --out data/
///     recua train --data data/ --run runs/first --preset 15m --steps 1000
///     recua generate --model runs/first "Once upon a time"
///     recua chat --model runs/first
///     recua serve --model runs/first
#[derive(Parser)]
#[command(name = "recua", version, verbatim_doc_comment, max_term_width = 110)]
struct Cli {
    /// Say more on stderr: the cache's size, what was counted
    #[arg(long, global = true)]
    verbose: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Quickstart(quickstart::Quickstart),
    /// Text files to token datasets
    #[command(subcommand)]
    Data(data::Data),
    /// Train a tokenizer, encode, decode
    #[command(subcommand)]
    Tokenizer(tokenizer::TokenizerVerb),
    /// Train a model on token datasets
    Train(Box<train::Train>),
    Generate(Box<generate::Generate>),
    Chat(Box<chat::Chat>),
    #[cfg(feature = "serve")]
    Serve(Box<serve::Serve>),
    /// Benchmarks, and scores of given tokens
    #[command(subcommand)]
    Eval(eval::Eval),
    /// Turn a checkpoint into another format (Hugging Face, Meta, native, GGUF)
    Convert(convert::Convert),
    /// Measure training, attention, prefill, decoding and serving speed on this machine
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Say what memory a training step needs, and what a run takes on a cluster
    Plan(Box<plan::Plan>),
    /// Check every operation of a backend against CPU references
    Selftest(selftest::Selftest),
    Info(info::Info),
}

impl Verb {
    fn run(self) -> Result<()> {
        match self {
            Self::Quickstart(verb) => verb.run(),
            Self::Data(verb) => verb.run(),
            Self::Tokenizer(verb) => verb.run(),
            Self::Train(verb) => verb.run(),
            Self::Generate(verb) => verb.run(),
            Self::Chat(verb) => verb.run(),
            #[cfg(feature = "serve")]
            Self::Serve(verb) => verb.run(),
            Self::Eval(verb) => verb.run(),
            Self::Convert(verb) => verb.run(),
            Self::Bench(verb) => verb.run(),
            Self::Plan(verb) => verb.run(),
            Self::Selftest(verb) => verb.run(),
            Self::Info(verb) => verb.run(),
        }
    }
}

/// Where and with how many threads to compute.
#[derive(Args, Clone, Debug)]
struct Device {
    /// Backend and device: flex, ndarray, wgpu, wgpu:1, wgpu:cpu, cuda, cuda:0 (`recua info` lists them)
    #[arg(long, value_name = "NAME", default_value_t = BackendName::default())]
    backend: BackendName,
    /// CPU threads [default: all cores; of several ranks, their share]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

impl Device {
    /// [`Device::apply`] of one of several ranks, which share the machine's cores; of CUDA devices each takes its own.
    fn become_rank(&mut self, launched: &recua::parallel::launch::Launched) -> Result<()> {
        self.backend = self.backend.of_rank(launched.local_rank, launched.local_world)?;
        Self { threads: self.threads.or(Some(launched.threads(cores()))), ..self.clone() }.apply()
    }

    /// Sets the number of threads for the whole process.
    fn apply(&self) -> Result<()> {
        let Some(n) = self.threads else { return Ok(()) };
        if n == 0 {
            return Err(Error::bad_value("--threads", "expected at least 1, got 0", "leave it out to use all cores"));
        }
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build_global();
        pool.map_err(|e| Error::bad_value("--threads", e.to_string(), "leave it out to use all cores"))
    }
}

/// Of this machine.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Warnings of the library, on stderr; with `--verbose` what it tells beside them.
struct Stderr;

/// Set by `--verbose`.
static VERBOSE: AtomicBool = AtomicBool::new(false);

impl log::Log for Stderr {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        // Drivers and the shader compiler complain of what they then handle (a missing display, for one).
        let own = metadata.target().starts_with("recua");
        let most = if VERBOSE.load(Ordering::Relaxed) { log::Level::Info } else { log::Level::Warn };
        !metadata.target().starts_with("wgpu_hal") && metadata.level() <= if own { most } else { log::Level::Error }
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            let level = record.level();
            let level = if level > log::Level::Warn { String::new() } else { format!("{}: ", level.as_str().to_lowercase()) };
            let _ = writeln!(std::io::stderr(), "{level}{}", record.args());
        }
    }

    fn flush(&self) {}
}

/// Set by SIGINT and SIGTERM.
static STOP: AtomicBool = AtomicBool::new(false);

/// From here on the first SIGINT or SIGTERM asks the loop to stop, as is then said; the second ends the process at once.
fn stop_on_signal(said: &'static str) -> Result<&'static AtomicBool> {
    let handler = move || {
        if STOP.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        let _ = writeln!(std::io::stderr(), "\n{said}; once more to stop at once");
    };
    ctrlc::set_handler(handler).map_err(|e| Error::bad_value("signals", e.to_string(), "run outside of another handler"))?;
    Ok(&STOP)
}

/// Prints a line to stdout.
fn print(text: &str) {
    print_now(&format!("{text}\n"));
}

/// Prints without a line end, at once.
fn print_now(text: &str) {
    let mut out = std::io::stdout();
    written(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
}

/// Says something on stderr; there is nobody to tell where that fails.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// A result that cannot be written ends the program: quietly where nobody wants it any more (`recua ... | head`), else as a failure.
fn written(result: std::io::Result<()>) {
    let Err(e) = result else { return };
    if e.kind() == std::io::ErrorKind::BrokenPipe {
        std::process::exit(0);
    }
    let _ = writeln!(std::io::stderr(), "error: {}", Error::io("write", "stdout")(e));
    std::process::exit(1);
}

/// Prints a value as one line of JSON.
fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string(value).map_err(|e| Error::internal("--json", e.to_string()))?;
    print(&text);
    Ok(())
}

/// `1234567` as `1.23M`.
fn human(n: f64) -> String {
    for (unit, size) in [("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)] {
        if n >= size {
            return format!(
                "{:.*}{unit}",
                if n >= 100.0 * size {
                    0
                } else if n >= 10.0 * size {
                    1
                } else {
                    2
                },
                n / size
            );
        }
    }
    format!("{n:.0}")
}

/// Seconds as `1h02m` or `3m20s` or `12s`.
fn duration(seconds: f64) -> String {
    let s = seconds.round().max(0.0) as u64;
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        _ => format!("{}h{:02}m", s / 3600, s % 3600 / 60),
    }
}

/// How glibc's allocator treats the tensors of a step, which come and go in the same order every time.
///
/// Blocks of 12 MiB and more are mapped, and go back to the system when they are freed, where no hole fits them: glibc raises the
/// size from which it does so up to 32 MiB on its own, and a step's peak then stands 10 % above what lives. The heap's end stays
/// when it is freed: given back, as from 128 KiB on by default, it is zeroed again by the kernel at every step, which costs 12 to
/// 15 % of the time (docs/LOG.md).
fn tune_allocator() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: sets numbers of the allocator; no other thread runs yet.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 12 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 1 << 30);
    }
}

/// On a machine without a display Mesa's layer that sorts Vulkan's devices asks Wayland all the same, whose library complains on
/// stderr, at every list of devices, that this variable is not set. With a folder where no server listens it says nothing.
fn quiet_wayland() {
    if cfg!(target_os = "linux") && std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        // SAFETY: no other thread runs yet.
        unsafe { std::env::set_var("XDG_RUNTIME_DIR", std::env::temp_dir()) };
    }
}

fn exit_code(e: &Error) -> u8 {
    match e {
        Error::Interrupted { .. } => 130,
        Error::UnknownKey { .. } | Error::BadValue { .. } => 2,
        Error::Internal { .. } => 70,
        _ => 1,
    }
}

pub(crate) fn main() -> ExitCode {
    // A program of a benchmark is run by this program, started again.
    #[cfg(feature = "eval")]
    if std::env::args_os().nth(1).is_some_and(|verb| verb == recua::eval::sandbox::VERB) {
        return recua::eval::sandbox::enter();
    }
    tune_allocator();
    quiet_wayland();
    let cli = Cli::try_parse().unwrap_or_else(|e| {
        let printed = e.print();
        if !e.use_stderr() {
            written(printed.and_then(|()| std::io::stdout().flush()));
        }
        std::process::exit(e.exit_code());
    });
    VERBOSE.store(cli.verbose, Ordering::Relaxed);
    if log::set_logger(&Stderr).is_ok() {
        log::set_max_level(if cli.verbose { log::LevelFilter::Info } else { log::LevelFilter::Warn });
    }
    // The hook has said where.
    let done = catch_unwind(AssertUnwindSafe(|| cli.verb.run()));
    match done.unwrap_or_else(|_| Err(Error::internal("recua", "it panicked, see above"))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(std::io::stderr(), "error: {e}");
            ExitCode::from(exit_code(&e))
        }
    }
}
