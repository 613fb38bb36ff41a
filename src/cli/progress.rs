//! What a run looks like while it runs: plain lines on stderr and in `log.txt`, and progress bars.

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use recua::train::metrics::StepRecord;
use recua::train::{Observer, RunInfo};

use super::{duration, human};

/// A bar over bytes on stderr; hidden where there is no terminal.
pub(crate) fn bytes_bar(what: &'static str, total: u64) -> ProgressBar {
    let target = if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(total), target);
    if let Ok(style) = ProgressStyle::with_template("{prefix} [{bar:40}] {bytes}/{total_bytes} {eta} {msg}") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_prefix(what);
    bar
}

/// A bar over a number of things on stderr; hidden where there is no terminal, or nothing to count.
pub(crate) fn count_bar(what: &'static str, total: u64) -> ProgressBar {
    let seen = total > 0 && std::io::stderr().is_terminal();
    let target = if seen { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(total), target);
    if let Ok(style) = ProgressStyle::with_template("{prefix} [{bar:40}] {pos}/{len} {eta} {msg}") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_prefix(what);
    bar
}

/// Lines of a sample that are shown; `metrics.jsonl` and `report.html` have the whole.
const SAMPLE_LINES: usize = 6;

/// Lines on stderr and in `log.txt`: the first steps, then one every few seconds, and every step with something to say.
pub(crate) struct Lines {
    log: Option<File>,
    steps: u64,
    last_line: Option<Instant>,
    every: Duration,
    show_samples: bool,
}

impl Lines {
    /// A line at least every `every`; lines go to `dir/log.txt` too, which grows from run to run.
    pub(crate) fn new(every: Duration, show_samples: bool) -> Self {
        Self { log: None, steps: 0, last_line: None, every, show_samples }
    }

    pub(crate) fn open_log(&mut self, dir: &Path) {
        self.log = File::options().create(true).append(true).open(dir.join("log.txt")).ok();
    }

    pub(crate) fn line(&mut self, text: &str) {
        let _ = writeln!(std::io::stderr(), "{text}");
        if let Some(log) = &mut self.log {
            let _ = writeln!(log, "{text}");
        }
    }
}

impl Observer for Lines {
    fn start(&mut self, info: &RunInfo) {
        self.open_log(&info.dir);
        self.steps = info.steps;
        let tokens = info.steps as f64 * info.tokens_per_step as f64;
        let epochs = info.steps as f64 * info.batch as f64 / info.windows as f64;
        self.line(&format!(
            "{} parameters, {} steps of {} tokens = {} tokens, {epochs:.2} epochs of the data, in {}",
            human(info.params as f64),
            info.steps,
            info.tokens_per_step,
            human(tokens),
            info.dir.display()
        ));
    }

    fn step(&mut self, r: &StepRecord, eta_s: f64) {
        let news = r.val_loss.is_some() || r.sample.is_some() || r.step == 1 || r.step == self.steps;
        if !news && self.last_line.is_some_and(|at| at.elapsed() < self.every) {
            return;
        }
        self.last_line = Some(Instant::now());
        let width = self.steps.to_string().len();
        let mfu = r.mfu.map_or(String::new(), |m| format!("  mfu {:.1}%", 100.0 * m));
        let eta = if r.step < self.steps { format!("  eta {}", duration(eta_s)) } else { String::new() };
        self.line(&format!(
            "step {:>width$}/{}  loss {:.4}  lr {:.2e}  grad {:.2}  {} tok/s{mfu}{eta}",
            r.step,
            self.steps,
            r.loss,
            r.lr,
            r.grad_norm,
            human(r.tok_s)
        ));
        if let (Some(loss), Some(bpb)) = (r.val_loss, r.val_bpb) {
            let by_set: Vec<String> = r.val_losses.iter().map(|(name, loss)| format!("{name} {loss:.4}")).collect();
            let by_set = if by_set.is_empty() { String::new() } else { format!(" ({})", by_set.join(", ")) };
            self.line(&format!(
                "step {:>width$}/{}  validation loss {loss:.4}, {bpb:.3} bits per byte{by_set}",
                r.step, self.steps
            ));
        }
        if self.show_samples
            && let Some(sample) = &r.sample
        {
            let sample = sample.trim().lines().take(SAMPLE_LINES).collect::<Vec<_>>().join("\n  | ");
            self.line(&format!("  | {sample}"));
        }
    }

    fn saved(&mut self, step: u64, path: &Path) {
        if let Some(log) = &mut self.log {
            let _ = writeln!(log, "step {step}: saved {}", path.display());
        }
    }

    fn say(&mut self, text: &str) {
        self.line(text);
    }

    fn note(&mut self, text: &str) {
        self.line(&format!("warning: {text}"));
    }
}
