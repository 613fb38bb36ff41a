//! burn-train's terminal dashboard for `recua train --tui`: curves, progress and a way to stop.
//!
//! While it has the terminal, lines go to `log.txt` only; warnings are shown again when it closes. Without a terminal there
//! are plain lines.

use std::io::{IsTerminal, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use burn::data::dataloader::Progress;
use burn_train::Interrupter;
use burn_train::metric::{
    MetricAttributes, MetricDefinition, MetricEntry, MetricId, NumericAttributes, NumericEntry, SerializedEntry,
};
use burn_train::renderer::tui::TuiMetricsRendererWrapper;
use burn_train::renderer::{MetricState, MetricsRenderer, MetricsRendererTraining, ProgressType, TrainingProgress};
use recua::train::metrics::StepRecord;
use recua::train::{Observer, RunInfo};

use super::progress::Lines;

/// The curves: name, unit, whether more is better.
const CURVES: [(&str, &str, bool); 6] = [
    ("Loss", "nats a token", false),
    ("Bits per byte", "bits", false),
    ("Learning rate", "", false),
    ("Gradient norm", "", false),
    ("Speed", "tok/s", true),
    ("MFU", "%", true),
];

/// An [`Observer`] that draws.
pub(crate) struct Dashboard {
    stop: &'static AtomicBool,
    /// Set by the dashboard when the user asks it to quit.
    interrupter: Interrupter,
    /// None: no terminal, or closed.
    screen: Option<TuiMetricsRendererWrapper>,
    lines: Lines,
    log: Option<std::fs::File>,
    notes: Vec<String>,
    info: Option<RunInfo>,
}

impl Dashboard {
    /// A dashboard in which quitting sets `stop`, so that the run saves and ends. It opens when training starts.
    pub(crate) fn new(stop: &'static AtomicBool) -> Self {
        let lines = Lines::new(Duration::from_secs(5), false);
        Self { stop, interrupter: Interrupter::new(), screen: None, lines, log: None, notes: Vec::new(), info: None }
    }

    /// Draws, unless the screen is closed. Its "stop immediately" is a panic, here and in its thread: it then closes, and the
    /// run saves and ends as after its "stop".
    fn draw(&mut self, f: impl FnOnce(&mut TuiMetricsRendererWrapper)) {
        let Some(screen) = &mut self.screen else { return };
        if catch_unwind(AssertUnwindSafe(|| f(screen))).is_err() {
            self.interrupter.stop(None);
            self.close();
        }
        if self.interrupter.should_stop() {
            self.stop.store(true, Ordering::Relaxed);
        }
    }

    /// Gives the terminal back and shows what was not shown.
    fn close(&mut self) {
        if let Some(screen) = self.screen.take() {
            let _ = catch_unwind(AssertUnwindSafe(|| drop(screen)));
        }
        for note in self.notes.drain(..) {
            let _ = writeln!(std::io::stderr(), "{note}");
        }
    }

    fn line(&mut self, text: &str, again: bool) {
        if self.screen.is_none() {
            return self.lines.line(text);
        }
        if let Some(log) = &mut self.log {
            let _ = writeln!(log, "{text}");
        }
        if again {
            self.notes.push(text.into());
        }
    }
}

impl Drop for Dashboard {
    fn drop(&mut self) {
        self.close();
    }
}

impl Observer for Dashboard {
    fn start(&mut self, info: &RunInfo) {
        self.lines.start(info);
        if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
            self.lines.line("no terminal for --tui: plain lines");
            return;
        }
        self.log = std::fs::File::options().create(true).append(true).open(info.dir.join("log.txt")).ok();
        self.info = Some(info.clone());
        self.screen = Some(TuiMetricsRendererWrapper::new(self.interrupter.clone(), Some(info.done as usize)));
        self.draw(|screen| {
            for (name, unit, higher_is_better) in CURVES {
                let unit = Some(unit.to_string()).filter(|unit| !unit.is_empty());
                let attributes = MetricAttributes::Numeric(NumericAttributes { unit, higher_is_better });
                screen.register_metric(MetricDefinition {
                    metric_id: id(name),
                    name: name.into(),
                    description: None,
                    attributes,
                });
            }
        });
    }

    fn step(&mut self, r: &StepRecord, eta_s: f64) {
        let Some(info) = self.info.clone().filter(|_| self.screen.is_some()) else { return self.lines.step(r, eta_s) };
        let r = r.clone();
        self.draw(move |screen| {
            let mut train = |name: &str, value: f64, text: String| screen.update_train(state(name, value, text));
            train("Loss", r.loss, format!("{:.4}", r.loss));
            train("Learning rate", r.lr, format!("{:.2e}", r.lr));
            train("Gradient norm", r.grad_norm, format!("{:.3}", r.grad_norm));
            train("Speed", r.tok_s, format!("{} tok/s", super::human(r.tok_s)));
            if let Some(mfu) = r.mfu {
                train("MFU", 100.0 * mfu, format!("{:.1} %", 100.0 * mfu));
            }
            if let (Some(loss), Some(bpb)) = (r.val_loss, r.val_bpb) {
                screen.update_valid(state("Loss", loss, format!("{loss:.4}")));
                screen.update_valid(state("Bits per byte", bpb, format!("{bpb:.3}")));
            }
            // Four lines fit; the time left stands beside the progress bar.
            let value = |tag: &str, value: u64| ProgressType::Value { tag: tag.into(), value: value as usize };
            let progress = || Progress { items_processed: r.step as usize, items_total: info.steps as usize };
            let status = vec![
                ProgressType::Detailed { tag: "Step".into(), progress: progress() },
                value("Tokens", r.tokens),
                value("Skipped steps", r.skipped),
            ];
            let item = TrainingProgress { progress: None, global_progress: progress(), iteration: Some(r.step as usize) };
            screen.render_train(item, status);
        });
    }

    fn saved(&mut self, step: u64, path: &Path) {
        if self.screen.is_none() {
            return self.lines.saved(step, path);
        }
        self.line(&format!("step {step}: saved {}", path.display()), false);
    }

    fn say(&mut self, text: &str) {
        self.line(text, false);
    }

    fn note(&mut self, text: &str) {
        self.line(&format!("warning: {text}"), true);
    }
}

fn id(name: &str) -> MetricId {
    MetricId::new(Arc::new(name.into()))
}

/// A point of a curve. One that is not finite would break the axes: it is shown as text only.
fn state(name: &str, value: f64, text: String) -> MetricState {
    let entry = MetricEntry::new(id(name), SerializedEntry::new(format!("{name}: {text}"), value.to_string()));
    if value.is_finite() { MetricState::Numeric(entry, NumericEntry::Value(value)) } else { MetricState::Generic(entry) }
}
