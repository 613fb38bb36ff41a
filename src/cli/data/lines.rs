//! The parts of the pipeline one by one: a JSON string a line on stdin, a JSON object a line on stdout.

use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::PathBuf;

use clap::Args;
use rayon::prelude::*;
use recua::corpus::fasttext::{FastText, rank_labels};
use recua::corpus::lm::Model;
use recua::corpus::pipeline::clean_text;
use recua::corpus::sources::SourceName;
use recua::{Error, Result};
use serde::Serialize;
use serde_json::json;

use super::super::written;

/// Lines that are worked on at a time.
const BATCH: usize = 1024;
/// ... or bytes of them.
const BATCH_BYTES: usize = 16 << 20;

/// Works on lines in parallel and answers in their order, as soon as a batch is full or no more is to be read at once.
fn each_line<T: Serialize + Send>(work: impl Fn(&str) -> T + Sync) -> Result<()> {
    let mut input = BufReader::with_capacity(1 << 20, std::io::stdin());
    let mut out = BufWriter::new(std::io::stdout().lock());
    let mut number = 0_u64;
    loop {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        let mut problem = None;
        while batch.len() < BATCH && bytes < BATCH_BYTES {
            let mut line = Vec::new();
            number += 1;
            if input.read_until(b'\n', &mut line).map_err(Error::io("read", "stdin"))? == 0 {
                break;
            }
            // What was read before is answered first.
            let Ok(line) = String::from_utf8(line) else {
                let problem_text = "expected a JSON string in UTF-8, got other bytes";
                problem =
                    Some(Error::bad_value(format!("stdin, line {number}"), problem_text, "write each text as a JSON string"));
                break;
            };
            if line.trim().is_empty() {
                continue;
            }
            bytes += line.len();
            match serde_json::from_str::<String>(&line) {
                Ok(text) => batch.push(text),
                Err(e) => {
                    let problem_text =
                        format!("expected a JSON string, got `{}` ({e})", line.chars().take(60).collect::<String>().trim_end());
                    problem =
                        Some(Error::bad_value(format!("stdin, line {number}"), problem_text, "write each text as a JSON string"));
                    break;
                }
            }
            // Someone may be waiting for the answer to this line before the next one is written.
            if input.buffer().is_empty() {
                break;
            }
        }
        let answers: Vec<_> = batch.par_iter().map(|text| serde_json::to_string(&work(text))).collect();
        for answer in answers {
            let answer = answer.map_err(|e| Error::internal("answer", e.to_string()))?;
            written(writeln!(out, "{answer}"));
        }
        written(out.flush());
        if let Some(problem) = problem {
            return Err(problem);
        }
        if batch.is_empty() {
            return Ok(());
        }
    }
}

/// Clean texts by a source's rules
///
/// Reads a JSON string a line, writes {"text": ..., "dropped": reason or null} a line.
#[derive(Args)]
#[command(after_help = "Example:
  echo '\"See [[Paris|the capital]].{{cn}}\"' | recua data clean --source wikipedia")]
pub(crate) struct Clean {
    /// commoncrawl, c4, github, wikipedia, books, arxiv or stackexchange
    #[arg(long, value_name = "NAME")]
    source: SourceName,
    /// wikipedia: the language's code
    #[arg(long, value_name = "CODE", conflicts_with = "path")]
    language: Option<String>,
    /// github: the file's path in its project, for the rules that depend on it
    #[arg(long)]
    path: Option<String>,
}

impl Clean {
    pub(super) fn run(self) -> Result<()> {
        let name = self.language.or(self.path);
        each_line(|text| {
            let cleaned = clean_text(self.source, text, name.as_deref());
            json!({ "text": cleaned.text, "dropped": cleaned.dropped })
        })
    }
}

/// Identify languages
///
/// Reads a JSON string a line, writes {"labels": [...], "probs": [...]} a line, the most probable first. Line feeds in a text are
/// deleted, as CCNet does.
#[derive(Args)]
#[command(after_help = "Example:
  echo '\"Guten Tag, wie geht es Ihnen?\"' | recua data lid --model lid.176.ftz --top 3")]
pub(crate) struct Lid {
    /// fastText model, .bin or .ftz
    #[arg(long, value_name = "FILE")]
    model: PathBuf,
    /// Labels to give
    #[arg(long, default_value_t = 1, value_name = "N")]
    top: usize,
}

impl Lid {
    pub(super) fn run(self) -> Result<()> {
        let model = FastText::open(&self.model)?;
        each_line(|text| rank_labels(&mut model.predictor(), text, self.top))
    }
}

/// Score sentences
///
/// Reads a JSON string a line (words set apart by white space), writes {"score": the log10 probability with <s> and </s>, "words":
/// [{"log10", "ngram_length", "oov"}, ...]} a line; the last word is </s>.
#[derive(Args)]
pub(crate) struct LmScore {
    /// ARPA (also .gz) or KenLM binary model
    #[arg(long, value_name = "FILE")]
    model: PathBuf,
}

impl LmScore {
    pub(super) fn run(self) -> Result<()> {
        let model = Model::open(&self.model)?;
        each_line(|text| model.full_scores(text, true, true))
    }
}
