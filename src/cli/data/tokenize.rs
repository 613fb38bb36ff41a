//! `recua data tokenize`

use std::path::PathBuf;

use clap::Args;
use recua::Result;
use recua::data::{DEFAULT_SHARD_TOKENS, TokenizeConfig, Vocab};
use recua::tokenize_files;
use recua::tokenizer::Tokenizer;

#[derive(Args)]
pub(crate) struct Tokenize {
    /// Text files, folders of them, or .jsonl files
    #[arg(long, num_args = 1.., required = true, value_name = "PATH")]
    input: Vec<PathBuf>,
    /// tokenizer.json, SentencePiece .model, or a folder with one
    #[arg(long, value_name = "FILE")]
    tokenizer: PathBuf,
    /// The dataset folder to make
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Leave out the begin-of-sequence token before each document
    #[arg(long)]
    no_bos: bool,
    /// Leave out the end-of-sequence token after each document
    #[arg(long)]
    no_eos: bool,
    /// Field of a .jsonl line that holds the text
    #[arg(long, default_value = "text")]
    text_key: String,
    /// Tokens a shard file
    #[arg(long, default_value_t = DEFAULT_SHARD_TOKENS)]
    shard_tokens: u64,
    /// Replace a dataset that is already there
    #[arg(long)]
    force: bool,
    /// CPU threads [default: all cores]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

impl Tokenize {
    pub(super) fn run(self) -> Result<()> {
        super::super::Device { backend: Default::default(), threads: self.threads }.apply()?;
        let tokenizer = Tokenizer::open(&self.tokenizer)?;
        let vocab = Vocab { size: tokenizer.vocab_size() as u32, hash: tokenizer.hash() };
        let mut config = TokenizeConfig::new(&self.out, vocab);
        (config.shard_tokens, config.force) = (self.shard_tokens, self.force);
        let encode = |text: &str| tokenizer.encode_document(text, !self.no_bos, !self.no_eos);
        let bar = super::super::progress::bytes_bar("tokenizing", 0);
        let made = tokenize_files(&self.input, &self.text_key, &encode, &config, &mut |p| {
            bar.set_length(p.input_total);
            bar.set_position(p.input_bytes);
            bar.set_message(format!("{} tokens", super::super::human(p.written.tokens as f64)));
        });
        bar.finish_and_clear();
        let made = made?;
        tokenizer.save(&self.out)?;
        if self.json {
            return super::super::print_json(&made.index);
        }
        let i = &made.index;
        super::super::print(&format!(
            "{}: {} documents, {} bytes of text, {} tokens ({:.2} bytes a token), {} shard{}",
            self.out.display(),
            i.documents,
            i.text_bytes,
            i.tokens,
            i.text_bytes as f64 / i.tokens.max(1) as f64,
            i.shards.len(),
            if i.shards.len() == 1 { "" } else { "s" }
        ));
        Ok(())
    }
}
