//! `recua convert`

use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;
use recua::checkpoint::{Checkpoint, Dtype, Format, SaveOptions, check_convert, convert, gguf};
use recua::{Error, Result};

/// Turn a checkpoint into another format (Hugging Face, Meta, native, GGUF)
///
///     recua convert runs/first hf/ --to hf
///     recua convert hf/ model.gguf                      # a GGUF file, in the types of the input
///     recua convert hf/ model.gguf --quantize q8_0      # 8.5 bits a weight; q4_0: 4.5
///     recua convert model.gguf hf/ --to hf              # blocks become float32
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Convert {
    /// A run, a checkpoint, a Hugging Face folder, a Meta folder or a GGUF file
    input: PathBuf,
    /// The folder to make; for GGUF the file
    output: PathBuf,
    /// hf, meta, native or gguf [default: gguf for a name that ends in .gguf]
    #[arg(long, value_name = "FORMAT")]
    to: Option<Format>,
    /// Element type: f32, f16 or bf16 [default: as it is]
    #[arg(long)]
    dtype: Option<Dtype>,
    /// Blocks of a GGUF file: q8_0 or q4_0 (whose output matrix is q8_0)
    #[arg(long, value_name = "TYPE", conflicts_with = "dtype")]
    quantize: Option<Dtype>,
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
        let to = match self.to {
            Some(to) => to,
            None if gguf::has_extension(&self.output) => Format::Gguf,
            None => {
                let problem = format!("the name `{}` does not say which format is meant", self.output.display());
                return Err(Error::bad_value("--to", problem, "pass --to hf, meta, native or gguf"));
            }
        };
        if let Some(dtype) = self.quantize.filter(|dtype| dtype.float().is_some()) {
            return Err(Error::bad_value("--quantize", format!("{dtype} has no blocks"), "take q8_0 or q4_0, or pass --dtype"));
        }
        let dtype = self.quantize.or(self.dtype);
        let options = SaveOptions { dtype, tokenizer: self.tokenizer, stop: Some(&STOP), ..SaveOptions::default() };
        if self.dry_run {
            return check_convert(&self.input, &self.output, to, &options);
        }
        // A conversion that is stopped takes away what it has written.
        ctrlc::set_handler(|| STOP.store(true, Ordering::Relaxed))
            .map_err(|e| Error::bad_value("signals", e.to_string(), "run outside of another handler"))?;
        let saved = convert(&self.input, &self.output, to, &options).inspect_err(|_| {
            if STOP.load(Ordering::Relaxed) {
                let _ = writeln!(std::io::stderr(), "interrupted; nothing is left of {}", self.output.display());
                std::process::exit(130);
            }
        })?;
        let made = Checkpoint::open(&self.output)?;
        super::print(&format!("{}: {} parameters, {}", self.output.display(), made.config().num_params(), made.format()));
        if saved.widened > 0 {
            let text = format!("{} of them were blocks and are float32 now; {to} has no blocks", saved.widened);
            let _ = writeln!(std::io::stderr(), "{text}");
        }
        if saved.overflowed > 0 {
            let dtype = dtype.map_or(String::new(), |d| format!(" {d}"));
            let text =
                format!("warning: {} values are too large for{dtype} and became infinite; take bf16 or f32", saved.overflowed);
            let _ = writeln!(std::io::stderr(), "{text}");
        }
        Ok(())
    }
}
