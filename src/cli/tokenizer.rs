//! `recua tokenizer train|encode|decode`

use std::io::BufRead;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use recua::corpus::Documents;
use recua::tokenizer::{Tokenizer, TrainConfig};
use recua::{Error, Result};

#[derive(Subcommand)]
pub(crate) enum TokenizerVerb {
    /// Train a BPE tokenizer: digits split, byte fallback, nothing normalised away
    Train(Train),
    /// Text on stdin to token ids on stdout, a line each
    Encode(Encode),
    /// Token ids on stdin to text on stdout, a line each
    Decode(Decode),
}

impl TokenizerVerb {
    pub(crate) fn run(self) -> Result<()> {
        match self {
            Self::Train(verb) => verb.run(),
            Self::Encode(verb) => verb.run(),
            Self::Decode(verb) => verb.run(),
        }
    }
}

#[derive(Args)]
pub(crate) struct Train {
    /// Text files, folders of them, or .jsonl files
    #[arg(long, num_args = 1.., required = true, value_name = "PATH")]
    input: Vec<PathBuf>,
    /// Where to write the tokenizer.json
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Number of tokens, special and byte tokens included
    #[arg(long, default_value_t = 32_000)]
    vocab_size: usize,
    /// Field of a .jsonl line that holds the text
    #[arg(long, default_value = "text")]
    text_key: String,
}

impl Train {
    fn run(self) -> Result<()> {
        let mut failed = None;
        let documents = Documents::open(&self.input, &self.text_key)?;
        let bar = super::progress::bytes_bar("reading", documents.total_bytes());
        let read = documents.read_bytes();
        let texts = documents.map_while(|document| {
            bar.set_position(read.load(std::sync::atomic::Ordering::Relaxed));
            document.map_err(|e| failed = Some(e)).ok().map(|d| d.text)
        });
        let config = TrainConfig { vocab_size: self.vocab_size, ..Default::default() };
        let trained = Tokenizer::train(texts, &config);
        bar.finish_and_clear();
        if let Some(e) = failed {
            return Err(e);
        }
        let tokenizer = trained?;
        tokenizer.save(&self.out)?;
        super::print(&format!("{}: {} tokens", self.out.display(), tokenizer.vocab_size()));
        Ok(())
    }
}

#[derive(Args)]
pub(crate) struct Encode {
    /// tokenizer.json, SentencePiece .model, GGUF file, or a folder with one of the first two
    #[arg(long, value_name = "FILE")]
    tokenizer: PathBuf,
    /// A JSON string a line in, a JSON array of ids a line out
    #[arg(long)]
    json: bool,
    /// Put the begin-of-sequence token first
    #[arg(long)]
    bos: bool,
    /// Put the end-of-sequence token last
    #[arg(long)]
    eos: bool,
    /// Read the text of special tokens as those tokens
    #[arg(long)]
    special: bool,
}

impl Encode {
    fn run(self) -> Result<()> {
        let tokenizer = Tokenizer::open(&self.tokenizer)?;
        for_lines(|number, line| {
            let text = if self.json { parse::<String>(number, &line, "a JSON string")? } else { line };
            let ids = if self.special {
                let bos = tokenizer.bos_id().filter(|_| self.bos);
                let eos = tokenizer.eos_id().filter(|_| self.eos);
                bos.into_iter().chain(tokenizer.encode_with_special(&text)?).chain(eos).collect()
            } else {
                tokenizer.encode_document(&text, self.bos, self.eos)?
            };
            if self.json {
                return super::print_json(&ids);
            }
            let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
            super::print(&ids.join(" "));
            Ok(())
        })
    }
}

#[derive(Args)]
pub(crate) struct Decode {
    /// tokenizer.json, SentencePiece .model, GGUF file, or a folder with one of the first two
    #[arg(long, value_name = "FILE")]
    tokenizer: PathBuf,
    /// A JSON array of ids a line in, a JSON string a line out
    #[arg(long)]
    json: bool,
    /// Show special tokens
    #[arg(long)]
    special: bool,
}

impl Decode {
    fn run(self) -> Result<()> {
        let tokenizer = Tokenizer::open(&self.tokenizer)?;
        for_lines(|number, line| {
            let ids: Vec<u32> = if self.json {
                parse(number, &line, "a JSON array of token ids")?
            } else {
                let bad = |t: &str| {
                    Error::bad_value(format!("stdin line {number}"), format!("`{t}` is not a token id"), "give numbers")
                };
                line.split_whitespace().map(|t| t.parse().map_err(|_| bad(t))).collect::<Result<_>>()?
            };
            let text = if self.special { tokenizer.decode_with_special(&ids)? } else { tokenizer.decode(&ids)? };
            if self.json {
                return super::print_json(&text);
            }
            super::print(&text);
            Ok(())
        })
    }
}

/// Calls `f` with every line of stdin and its number, from 1. A line ends with `\n`, which is taken off; `\r` is text.
pub(crate) fn for_lines(mut f: impl FnMut(usize, String) -> Result<()>) -> Result<()> {
    let mut stdin = std::io::stdin().lock();
    let mut line = String::new();
    for number in 1.. {
        line.clear();
        if stdin.read_line(&mut line).map_err(Error::io("read", "stdin"))? == 0 {
            break;
        }
        f(number, line.strip_suffix('\n').unwrap_or(&line).to_string())?;
    }
    Ok(())
}

/// Parses a line of JSON.
pub(crate) fn parse<T: serde::de::DeserializeOwned>(number: usize, line: &str, expected: &str) -> Result<T> {
    serde_json::from_str(line).map_err(|e| {
        Error::bad_value(format!("stdin line {number}"), format!("expected {expected}: {e}"), "one JSON value a line")
    })
}
