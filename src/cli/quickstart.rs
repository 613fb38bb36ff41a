//! `recua quickstart`

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use recua::Result;
use recua::quickstart::{self, Outcome, Planned};

use super::progress::Lines;
use super::{duration, human, print, print_json};

/// Train a small LLaMA on what is on this disk and show what it writes and how well
///
/// Takes the sources of the crates that recua itself is built from, as Cargo has unpacked them in its registry (MIT, Apache, BSD and
/// ISC only; generated, minified, vendored and duplicate files left out), holds out whole families of crates, trains a tokenizer and a
/// model of a million parameters, and compares its bits per byte with xz and with an n-gram model. Killed or interrupted, the same
/// command goes on.
#[derive(Args)]
pub(crate) struct Quickstart {
    /// A folder of text instead of Cargo's registry
    #[arg(long, value_name = "DIR")]
    input: Option<PathBuf>,
    /// The run directory [default: the first free or unfinished one of runs/quickstart, runs/quickstart-2, ...]
    #[arg(long, value_name = "DIR")]
    run: Option<PathBuf>,
    /// Time for all of it, in minutes
    #[arg(long, default_value_t = 5.0)]
    minutes: f64,
    /// Tokens of the vocabulary, at most 4096
    #[arg(long, default_value_t = 4096)]
    vocab_size: usize,
    /// Check every setting, look at the text, say what would be done, and stop
    #[arg(long)]
    dry_run: bool,
    /// Print the outcome as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: super::Device,
}

impl Quickstart {
    pub(crate) fn run(self) -> Result<()> {
        self.device.apply()?;
        let backend = &self.device.backend;
        let run = self.run.unwrap_or_else(|| {
            let name = |n| PathBuf::from(if n == 1 { "runs/quickstart".to_string() } else { format!("runs/quickstart-{n}") });
            (1..).map(name).find(|dir| !quickstart::is_finished(dir)).unwrap_or_default()
        });
        let q = quickstart::Quickstart { input: self.input, run, minutes: self.minutes, vocab_size: self.vocab_size };
        let mut lines = Lines::new(Duration::from_secs(10), true);
        if self.dry_run {
            let planned = q.dry_run(backend, &mut lines)?;
            if self.json {
                return print_json(&planned);
            }
            show_plan(&planned);
            return Ok(());
        }
        q.check(backend)?;
        introduce(&q, &backend.to_string(), &mut lines);
        let outcome = quickstart::run(&q, backend, super::stop_on_signal("stopping after this step")?, &mut lines)?;
        if self.json {
            return print_json(&outcome);
        }
        show(&outcome, &q);
        Ok(())
    }
}

/// How this program was called, for commands to paste.
fn program() -> String {
    std::env::args().next().unwrap_or_else(|| "recua".into())
}

/// What will be done, and how long it takes.
fn introduce(q: &quickstart::Quickstart, backend: &str, lines: &mut Lines) {
    let text = match &q.input {
        Some(dir) => format!("the text in {}", dir.display()),
        None => "the source code of the crates that recua is built from".into(),
    };
    lines.line(&format!(
        "A small LLaMA from nothing, in about {} on `{backend}`:
  1 text      {text}; a part is held out, to test with
  2 rivals    what a compressor and an n-gram model make of that part
  3 tokens    a vocabulary of {} tokens, and the text in it
  4 training  as many steps as the time allows
  5 results   how well the model predicts the part that it has never seen, and what it writes
Everything goes to {}. Ctrl-C saves, and the same command goes on.
",
        duration(60.0 * q.minutes),
        q.vocab_size,
        q.run.display()
    ));
}

fn show_plan(p: &Planned) {
    let does = if p.goes_on { "go on with the run" } else { "train a model" };
    print(&format!(
        "would {does} of {} parameters, in about {}, in {}; nothing was written",
        human(p.params as f64),
        duration(60.0 * p.minutes),
        p.run.display()
    ));
}

fn show(o: &Outcome, q: &quickstart::Quickstart) {
    for (prompt, text) in &o.texts {
        print(&format!("\n--- the model, after {prompt:?} ---\n{prompt}{text}"));
    }
    print("\n--- how well: bits per byte of text that no model has seen; less is better ---\n");
    let model = format!(
        "this model: {} parameters, {} tokens of training, {}",
        human(o.params as f64),
        human(o.tokens as f64),
        duration(o.seconds)
    );
    let rows = [
        (o.val_bpb, model.as_str()),
        (o.ngram_bpb, "an n-gram model, which sees the two bytes before"),
        (o.xz_bpb, "xz -9, a compressor, which sees all of the held-out text before"),
        (8.0, "knowing nothing"),
    ];
    for (bpb, name) in rows {
        // Three cells a bit, so that 8 bits fit beside the names.
        let cells = if bpb.is_finite() { (3.0 * bpb).round().clamp(0.0, 24.0) as usize } else { 0 };
        print(&format!("  {bpb:5.3}  {:24}  {name}", "#".repeat(cells)));
    }
    print(&format!(
        "\nA byte of the held-out text could be stored in so many bits with the help of these predictions. The text: {:.2} MB of {} {},
none of which was trained on; figures compare where its fingerprint is the same: {}",
        o.held_out.bytes as f64 / 1e6,
        o.held_out.sources,
        if q.input.is_some() { "files" } else { "crates" },
        o.held_out.fingerprint
    ));
    let mfu = o.mfu.map_or(String::new(), |m| {
        format!(
            ", MFU {:.0} % of the measured {:.0} GFLOP/s (6N + 12 n_layers dim seq_len FLOP a token)",
            100.0 * m,
            1e3 * o.peak_tflops
        )
    });
    print(&format!("\nloss    {:.4} nats a token, held out", o.val_loss));
    if !o.quick.is_empty() {
        print(&format!("right   {}: the held-out text's own words, each among three others (chance 25 %)", o.quick_words()));
    }
    print(&format!("speed   {} tok/s{mfu}", human(o.tok_s)));
    print(&format!("curves  {}", o.report.display()));
    let (program, run) = (program(), q.run.display());
    let prompt = if q.input.is_some() { "" } else { " \"pub fn \"" };
    let serve = if cfg!(feature = "serve") {
        format!("  {program} serve --run {run}      # over HTTP: a page to write with, and the APIs of OpenAI and Anthropic\n")
    } else {
        String::new()
    };
    print(&format!(
        "
Next:
  {program} generate --model {run} --tokens 200{prompt}      # more text
{serve}  {program} quickstart --input DIR --minutes 10      # the same on a folder of your own text
  {program} train --config {run}/config.toml --run {run}-longer --steps {}      # the same text, four times as long",
        4 * o.steps
    ));
}
