//! `recua data train-lm`, `recua data train-classifier`

use std::path::PathBuf;

use clap::Args;
use recua::Result;
use recua::build::train_perplexity;
use recua::corpus::fasttext::{self, ClassDocuments, Examples, LabelledLines, TrainOptions};
use recua::corpus::filters::perplexity::Cutoffs;
use recua::corpus::lm::{LmTrainConfig, PerplexityTrained, PerplexityTraining};
use serde_json::json;

use super::super::{print, print_json, say};

/// Train CCNet's perplexity model of a language
///
/// Texts are normalised as CCNet does (lower case, no accents, digits to 0, one line a document), cut into the pieces of a SentencePiece
/// unigram model that is trained on them, and their n-grams are counted and smoothed (modified Kneser-Ney). Writes to --out: sp.model,
/// lm.arpa, lm.bin (KenLM's binary format) and cutoffs.toml, a table for `[models.lm.LANGUAGE]` of `recua data build`.
#[derive(Args)]
#[command(after_help = "Examples:
  recua data train-lm --input wikipedia/*.jsonl --out lm/en --language en
  recua data train-lm --words --input sentences.txt --out lm --order 3")]
pub(crate) struct TrainLm {
    /// Text files (a document each), folders of them, or .jsonl files (a document a line)
    #[arg(long, num_args = 1.., required = true, value_name = "PATH")]
    input: Vec<PathBuf>,
    /// Folder to write to
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Language code, for the name of the table in cutoffs.toml
    #[arg(long, default_value = "en", value_name = "CODE")]
    language: String,
    /// Pieces of the SentencePiece model
    #[arg(long, default_value_t = 65_536, value_name = "N")]
    pieces: usize,
    /// Share of all characters that the pieces cover
    #[arg(long, default_value_t = 0.9995)]
    coverage: f64,
    /// Words of the longest n-grams, 2 to 6
    #[arg(long, default_value_t = 5, value_name = "N")]
    order: usize,
    /// Leaves out n-grams that occur so often or less, by order, e.g. 0 0 1
    #[arg(long, num_args = 1.., value_name = "N")]
    prune: Vec<u64>,
    /// MiB for n-grams in memory; the rest is sorted on disk
    #[arg(long, default_value_t = 1024, value_name = "MIB")]
    memory: u64,
    /// Documents whose perplexities give the cut-offs [default: one in twenty of the input, which is then not learnt]
    #[arg(long, num_args = 1.., value_name = "PATH")]
    cutoffs_from: Vec<PathBuf>,
    /// No pieces: each line is a sentence whose words are set apart by white space
    #[arg(long)]
    words: bool,
    /// Field of a .jsonl line that holds the text
    #[arg(long, default_value = "text")]
    text_key: String,
    /// Print a summary as JSON
    #[arg(long)]
    json: bool,
}

impl TrainLm {
    pub(super) fn run(self) -> Result<()> {
        let training = PerplexityTraining {
            input: self.input,
            cutoffs_from: self.cutoffs_from,
            text_key: self.text_key,
            language: self.language,
            lm: LmTrainConfig {
                order: self.order,
                memory: self.memory << 20,
                prune: self.prune,
                temp: self.out.clone(),
                skip_symbols: true,
                ..LmTrainConfig::default()
            },
        };
        let mut note = |step: &str| say(&format!("{}: {step}", self.out.display()));
        let PerplexityTrained { stats, cutoffs, skipped } = match self.words {
            true => training.words(&self.out, &mut note)?,
            false => train_perplexity(&training, self.pieces, self.coverage, &self.out, &mut note)?,
        };
        skipped.warn();
        if self.json {
            return print_json(&json!({
                "lines": stats.lines, "words": stats.words, "ngrams": stats.counts, "discounts": stats.discounts, "cutoffs": cutoffs,
            }));
        }
        let counts: Vec<String> = stats.counts.iter().map(u64::to_string).collect();
        print(&format!("{}: {} lines, {} words, n-grams {}", self.out.display(), stats.lines, stats.words, counts.join(" ")));
        if let Some(Cutoffs { head, tail }) = cutoffs {
            let file = self.out.join("cutoffs.toml");
            print(&format!("head below {head:.1}, middle below {tail:.1}; see {}", file.display()));
        }
        Ok(())
    }
}

/// Train a fastText classifier
///
/// With --positives and --negatives: the paper's classifier of pages that Wikipedia cites (labels `wiki` and `other`). With --input: any
/// file of fastText's own format, `__label__x some text`, an example a line. The defaults are those of `fasttext supervised`; the same
/// input gives the same model, byte for byte.
#[derive(Args)]
#[command(after_help = "Examples:
  recua data train-classifier --positives cited.jsonl --negatives random.jsonl --out wiki.bin
  recua data train-classifier --input labelled.txt --out model.bin --word-ngrams 2")]
pub(crate) struct TrainClassifier {
    /// Documents with the label of --positive-label: text files, folders, .jsonl files
    #[arg(long, num_args = 1.., value_name = "PATH", requires = "negatives", required_unless_present = "input")]
    positives: Vec<PathBuf>,
    /// Documents with the label `other`
    #[arg(long, num_args = 1.., value_name = "PATH", requires = "positives")]
    negatives: Vec<PathBuf>,
    /// A file of fastText's own format
    #[arg(long, value_name = "FILE", conflicts_with = "positives")]
    input: Option<PathBuf>,
    /// The model to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Label of the positives
    #[arg(long, default_value = "wiki", value_name = "NAME")]
    positive_label: String,
    /// Learning rate
    #[arg(long, default_value_t = 0.1)]
    lr: f32,
    /// Width of the vectors
    #[arg(long, default_value_t = 100)]
    dim: usize,
    /// Passes over the examples
    #[arg(long, default_value_t = 5)]
    epoch: u32,
    /// Longest n-gram of words
    #[arg(long, default_value_t = 1, value_name = "N")]
    word_ngrams: u32,
    /// Shortest n-gram of characters
    #[arg(long, default_value_t = 0, value_name = "N")]
    minn: u32,
    /// Longest n-gram of characters; 0: none
    #[arg(long, default_value_t = 0, value_name = "N")]
    maxn: u32,
    /// Words that occur less often are left out
    #[arg(long, default_value_t = 1, value_name = "N")]
    min_count: u64,
    /// Rows that n-grams are hashed to
    #[arg(long, default_value_t = 2_000_000, value_name = "N")]
    bucket: u32,
    /// Field of a .jsonl line that holds the text
    #[arg(long, default_value = "text")]
    text_key: String,
    /// Print a summary as JSON
    #[arg(long)]
    json: bool,
}

impl TrainClassifier {
    pub(super) fn run(self) -> Result<()> {
        let options = TrainOptions {
            lr: self.lr,
            dim: self.dim,
            epoch: self.epoch,
            word_ngrams: self.word_ngrams,
            minn: self.minn,
            maxn: self.maxn,
            min_count: self.min_count,
            bucket: self.bucket,
            ..TrainOptions::default()
        };
        let examples: Box<dyn Examples> = match &self.input {
            Some(file) => Box::new(LabelledLines(file.clone())),
            None => {
                let classes = vec![(self.positive_label, self.positives), ("other".to_owned(), self.negatives)];
                Box::new(ClassDocuments::open(classes, &self.text_key))
            }
        };
        let bar = super::super::progress::bytes_bar("training", 1000);
        let trained = fasttext::train(&options, &*examples, &mut |share, loss| {
            bar.set_position((share * 1000.0) as u64);
            bar.set_message(format!("loss {loss:.4}"));
        });
        bar.finish_and_clear();
        let trained = trained?;
        trained.save(&self.out)?;
        let s = trained.summary;
        if self.json {
            return print_json(&json!({
                "words": s.words, "labels": s.labels, "tokens": s.tokens, "examples": s.examples, "loss": s.loss,
            }));
        }
        print(&format!(
            "{}: {} labels, {} words, {} examples, mean loss {:.4}",
            self.out.display(),
            s.labels,
            s.words,
            s.examples,
            s.loss
        ));
        Ok(())
    }
}
