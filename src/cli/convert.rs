//! `recua convert`

use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;
use recua::checkpoint::{Checkpoint, Dtype, Format, SaveOptions, check_convert, convert};
use recua::{Error, Result};

/// Turn a checkpoint into another format (Hugging Face, Meta, native)
#[derive(Args)]
pub(crate) struct Convert {
    /// A run, a checkpoint, a Hugging Face folder or a Meta folder
    input: PathBuf,
    /// The folder to make
    output: PathBuf,
    /// hf, meta or native
    #[arg(long, value_name = "FORMAT")]
    to: Format,
    /// Element type: f32, f16 or bf16 [default: as it is]
    #[arg(long)]
    dtype: Option<Dtype>,
    /// Tokenizer to copy along, with the files beside it, if it is not beside the model
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Check everything that the conversion needs, and stop
    #[arg(long)]
    dry_run: bool,
}

/// Set by SIGINT and SIGTERM.
static STOP: AtomicBool = AtomicBool::new(false);

impl Convert {
    pub(crate) fn run(self) -> Result<()> {
        let options = SaveOptions { dtype: self.dtype, tokenizer: self.tokenizer, stop: Some(&STOP), ..SaveOptions::default() };
        if self.dry_run {
            return check_convert(&self.input, &self.output, self.to, &options);
        }
        // A conversion that is stopped takes away what it has written.
        ctrlc::set_handler(|| STOP.store(true, Ordering::Relaxed))
            .map_err(|e| Error::bad_value("signals", e.to_string(), "run outside of another handler"))?;
        let saved = convert(&self.input, &self.output, self.to, &options).inspect_err(|_| {
            if STOP.load(Ordering::Relaxed) {
                let _ = writeln!(std::io::stderr(), "interrupted; nothing is left of {}", self.output.display());
                std::process::exit(130);
            }
        })?;
        let made = Checkpoint::open(&self.output)?;
        super::print(&format!("{}: {} parameters, {}", self.output.display(), made.config().num_params(), made.format()));
        if saved.overflowed > 0 {
            let dtype = self.dtype.map_or(String::new(), |d| format!(" {d}"));
            let text =
                format!("warning: {} values are too large for{dtype} and became infinite; take bf16 or f32", saved.overflowed);
            let _ = writeln!(std::io::stderr(), "{text}");
        }
        Ok(())
    }
}
