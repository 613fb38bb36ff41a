//! `recua quickstart`

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use recua::quickstart::{self, Outcome};
use recua::{Error, Result};

use super::progress::Lines;

/// Train a small LLaMA on what is on this disk and show what it writes and how well
///
/// Takes the sources of the crates that Cargo has unpacked in its registry (MIT, Apache, BSD and ISC only; generated, minified,
/// vendored and duplicate files left out), holds out whole crates, trains a tokenizer and a model of at most 2 M parameters,
/// and compares its bits per byte with xz and with an n-gram model. Killed or interrupted, the same command goes on.
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
    #[arg(long, default_value_t = 2048)]
    vocab_size: usize,
    /// Print the outcome as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: super::Device,
}

impl Quickstart {
    pub(crate) fn run(self) -> Result<()> {
        self.device.apply()?;
        let run = match &self.run {
            Some(dir) if quickstart::is_finished(dir) => {
                let problem = format!("{} holds a finished quickstart", dir.display());
                return Err(Error::bad_value("--run", problem, "give another folder, or `recua generate --model` it"));
            }
            Some(dir) => dir.clone(),
            None => (1..)
                .map(|n| PathBuf::from(if n == 1 { "runs/quickstart".to_string() } else { format!("runs/quickstart-{n}") }))
                .find(|dir| !quickstart::is_finished(dir))
                .unwrap_or_default(),
        };
        let quickstart = quickstart::Quickstart { input: self.input, run, minutes: self.minutes, vocab_size: self.vocab_size };
        let mut lines = Lines::new(Duration::from_secs(10), true);
        let outcome = quickstart::run(&quickstart, &self.device.backend, super::stop_on_signal()?, &mut lines)?;
        if self.json {
            return super::print_json(&outcome);
        }
        show(&outcome, &quickstart.run);
        Ok(())
    }
}

fn show(o: &Outcome, run: &Path) {
    let say = |text: String| super::print(&text);
    for (prompt, text) in &o.texts {
        say(format!("\n--- the model, after {prompt:?} ---\n{prompt}{text}"));
    }
    say("\n--- how well ---".into());
    say(format!("held-out loss       {:.4} nats a token", o.val_loss));
    say(format!(
        "bits per byte       {:.3}   this model ({} parameters, {} tokens)",
        o.val_bpb,
        super::human(o.params as f64),
        super::human(o.tokens as f64)
    ));
    say(format!("                    {:.3}   order-2 byte n-gram of the same text", o.ngram_bpb));
    say(format!("                    {:.3}   xz -9 on the held-out text", o.xz_bpb));
    let mfu = o.mfu.map_or(String::new(), |m| {
        format!(
            ", MFU {:.0}% of the measured {:.0} GFLOP/s (6N + 12 n_layers dim seq_len FLOP a token)",
            100.0 * m,
            1e3 * o.peak_tflops
        )
    });
    say(format!("speed               {} tok/s{mfu}", super::human(o.tok_s)));
    say(format!("time                {}", super::duration(o.seconds)));
    say(format!("curves and samples  {}", o.report.display()));
    say(format!("write more          recua generate --model {} \"fn main() {{\"", run.display()));
}
