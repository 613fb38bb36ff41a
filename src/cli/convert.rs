//! `recua convert`

use std::path::PathBuf;

use clap::Args;
use recua::Result;
use recua::checkpoint::{Checkpoint, Dtype, Format, SaveOptions, convert};

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
    /// Tokenizer to copy along, if it is not beside the model
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
}

impl Convert {
    pub(crate) fn run(self) -> Result<()> {
        let options = SaveOptions { dtype: self.dtype, tokenizer: self.tokenizer, ..Default::default() };
        convert(&self.input, &self.output, self.to, &options)?;
        let made = Checkpoint::open(&self.output)?;
        super::print(&format!("{}: {} parameters, {}", self.output.display(), made.config().num_params(), made.format()));
        Ok(())
    }
}
