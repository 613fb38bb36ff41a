//! What `recua data build` makes, from what: one TOML file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::names::Source;
use crate::error::{Error, Result};
use crate::filters::perplexity::{Bucket, Cutoffs};
use crate::sources::{arxiv, books, github, stackexchange, wikipedia};

/// All settings of a build. Paths are relative to where the program runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BuildConfig {
    /// The folder of the build: one folder a stage in it, and `report.html`.
    pub out: PathBuf,
    /// Shards in flight and threads. `None`: all cores.
    pub threads: Option<usize>,
    /// MiB for sorting and grouping in shuffles; the rest is spilled to `OUT/spill`.
    pub memory_mb: usize,
    /// `df://host:port` of a Ballista scheduler for the shuffles; its workers must see the same files.
    pub scheduler: Option<String>,
    /// Of one document in so many the removed pieces are written down, for the report and `recua data explain`. 0: of none.
    pub show_one_in: u64,
    /// Model files.
    pub models: Models,
    /// Evaluation sets whose text must not be in the data.
    pub decontaminate: Decontaminate,
    /// The mixture and its tokens.
    pub mix: Mix,
    /// The sources that are used: `[sources.wikipedia]` and so on.
    pub sources: Sources,
}

impl Default for BuildConfig {
    fn default() -> Self {
        Self {
            out: "data-build".into(),
            threads: None,
            memory_mb: 1024,
            scheduler: None,
            show_one_in: 1,
            models: Models::default(),
            decontaminate: Decontaminate::default(),
            mix: Mix::default(),
            sources: Sources::default(),
        }
    }
}

/// Model files; each may be left out, and what needs it is then not done.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Models {
    /// fastText language identification, `lid.176.ftz` or `.bin`.
    pub lid: Option<PathBuf>,
    /// fastText classifier of pages that Wikipedia cites (`recua data train-classifier`).
    pub classifier: Option<PathBuf>,
    /// Language models of CCNet's perplexity, by language code.
    pub lm: BTreeMap<String, LmFiles>,
}

/// A language's perplexity model.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LmFiles {
    /// SentencePiece `.model`.
    pub sentencepiece: PathBuf,
    /// ARPA or KenLM binary over its pieces.
    pub ngrams: PathBuf,
    /// Head and tail. `None`: CCNet's for the language, which hold for CCNet's own models only.
    #[serde(default)]
    pub cutoffs: Option<Cutoffs>,
}

/// N-gram decontamination: documents that share a run of words with an evaluation set go.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Decontaminate {
    /// Text, JSON or CSV files of the sets. Empty: nothing is done.
    pub files: Vec<String>,
    /// Words of a run (GPT-3 and later work: 13).
    pub ngram: usize,
}

impl Default for Decontaminate {
    fn default() -> Self {
        Self { files: Vec::new(), ngram: 13 }
    }
}

/// How sources become one set of tokens.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mix {
    /// Tokens of the training run that is planned for. `None`: as many as the caps on epochs allow.
    pub tokens: Option<u64>,
    /// Share of the documents that is held out for validation, chosen by the hash of the id.
    pub valid: f64,
    /// Also writes the text as JSON lines beside the Parquet tables.
    pub jsonl: bool,
    /// tokenizer.json, SentencePiece `.model`, or a folder with one. `None`: the build ends with text.
    pub tokenizer: Option<PathBuf>,
    /// Tokens of a shard file; 2^27 are 256 MiB.
    pub shard_tokens: u64,
}

impl Default for Mix {
    fn default() -> Self {
        Self { tokens: None, valid: 0.01, jsonl: false, tokenizer: None, shard_tokens: 1 << 27 }
    }
}

/// What goes when documents are the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lines {
    /// Nothing.
    None,
    /// Every copy of a line that two documents have (CCNet).
    #[default]
    Everywhere,
    /// Every copy but the first document's.
    KeepFirst,
}

/// Defines a source's settings: those that all have, and its own.
macro_rules! source {
    ($(#[$doc:meta])* $name:ident, $source:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty = $default:expr,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            /// Files and folders; `*` and `?` in a name stand for any characters.
            pub inputs: Vec<String>,
            /// Share of the mixture, in any unit; over the sources that are used (LLaMA, table 1).
            pub weight: f64,
            /// A source is repeated at most so often: four times are nearly as good as new text (Muennighoff et al. 2023).
            pub max_epochs: f64,
            /// Removes near-duplicate documents (MinHash).
            pub near_duplicates: bool,
            /// Masks e-mail addresses, IP addresses and phone numbers.
            pub mask_pii: bool,
            $($(#[$field_doc])* pub $field: $type,)*
        }

        impl Default for $name {
            fn default() -> Self {
                Self {
                    inputs: Vec::new(),
                    weight: Source::$source.paper().0,
                    max_epochs: 4.0,
                    near_duplicates: false,
                    mask_pii: false,
                    $($field: $default,)*
                }
            }
        }

        impl $name {
            fn common(&self) -> Common<'_> {
                Common {
                    source: Source::$source,
                    inputs: &self.inputs,
                    weight: self.weight,
                    max_epochs: self.max_epochs,
                    near_duplicates: self.near_duplicates,
                    mask_pii: self.mask_pii,
                }
            }
        }
    };
}

source!(
    /// CommonCrawl by CCNet (LLaMA section 2.1): WET or WARC files.
    CommonCrawl, Commoncrawl {
        /// Characters that a page must have before lines are removed.
        min_chars: usize = 300,
        /// What goes of lines that several pages have.
        lines: Lines = Lines::Everywhere,
        /// Languages that stay, if there is `models.lid`. Empty: all.
        languages: Vec<String> = vec!["en".into()],
        /// Least probability of the language, after rounding to two decimals.
        min_language: f32 = 0.5,
        /// Buckets of perplexity that stay, if there is a model of the language; CCNet keeps them apart, RedPajama takes these.
        buckets: Vec<Bucket> = vec![Bucket::Head, Bucket::Middle, Bucket::All],
        /// The classifier's label of pages that stay, if there is `models.classifier`.
        classifier_label: String = "wiki".into(),
        /// Its least probability.
        min_classifier: f32 = 0.25,
    }
);

source!(
    /// C4 (section 2.1): the published JSON lines, or WET and WARC files with `rules = true`.
    C4, C4 {
        /// Applies C4's rules: for those who make their own. The published files have them applied.
        rules: bool = false,
        /// A list of words, one a line, that a page must not have. `None`: no such rule.
        bad_words: Option<PathBuf> = None,
        /// With `rules`: least probability of English, if there is `models.lid`.
        min_english: f32 = 0.99,
        /// With `rules`: removes the lines that another page has.
        line_duplicates: bool = true,
    }
);

source!(
    /// Source files of projects under MIT, BSD and Apache licences (section 2.1).
    Github, Github {
        /// What is read.
        read: github::ReadOptions = github::ReadOptions::default(),
        /// What stays.
        rules: github::Options = github::Options::default(),
        /// Removes files that another project has, byte for byte.
        exact_duplicates: bool = true,
    }
);

source!(
    /// Wikipedia dumps, `pages-articles` (section 2.1).
    Wikipedia, Wikipedia {
        /// What is read.
        read: wikipedia::Options = wikipedia::Options::default(),
        /// What stays.
        rules: wikipedia::CleanOptions = wikipedia::CleanOptions::default(),
    }
);

source!(
    /// Books of Project Gutenberg, or any folder of books (section 2.1).
    Books, Books {
        /// How they are read and cleaned.
        rules: books::Options = books::Options::default(),
        /// A book of which more than this share is in an earlier one goes. 1: none goes.
        max_overlap: f64 = crate::dedup::overlap::THRESHOLD,
    }
);

source!(
    /// LaTeX sources of arXiv (section 2.1).
    Arxiv, Arxiv {
        /// How they are read and cleaned.
        rules: arxiv::Options = arxiv::Options::default(),
    }
);

source!(
    /// Dumps of Stack Exchange sites (section 2.1).
    StackExchange, Stackexchange {
        /// How threads are written.
        rules: stackexchange::Options = stackexchange::Options::default(),
        /// Only the largest sites, by posts. `None`: all.
        largest: Option<usize> = Some(28),
    }
);

/// What all sources have.
#[derive(Clone, Copy, Debug)]
pub struct Common<'a> {
    /// Which.
    pub source: Source,
    /// Files, folders, patterns.
    pub inputs: &'a [String],
    /// Share of the mixture.
    pub weight: f64,
    /// Cap.
    pub max_epochs: f64,
    /// Whether near-duplicates go.
    pub near_duplicates: bool,
    /// What is masked.
    pub mask_pii: bool,
}

/// The sources that are used.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(missing_docs, reason = "the types say it")]
pub struct Sources {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commoncrawl: Option<CommonCrawl>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub c4: Option<C4>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub github: Option<Github>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wikipedia: Option<Wikipedia>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub books: Option<Books>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arxiv: Option<Arxiv>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stackexchange: Option<StackExchange>,
}

impl Sources {
    /// Those that are used, in the order of the paper's table.
    pub fn used(&self) -> Vec<Common<'_>> {
        [
            self.commoncrawl.as_ref().map(CommonCrawl::common),
            self.c4.as_ref().map(C4::common),
            self.github.as_ref().map(Github::common),
            self.wikipedia.as_ref().map(Wikipedia::common),
            self.books.as_ref().map(Books::common),
            self.arxiv.as_ref().map(Arxiv::common),
            self.stackexchange.as_ref().map(StackExchange::common),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

impl BuildConfig {
    /// Defaults, then a file, then `--set a.b=c`.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::UnknownKey`], [`Error::BadValue`].
    pub fn resolve(file: Option<&Path>, set: &[String]) -> Result<Self> {
        let config: Self = crate::config::resolve(&crate::config::Layers { file, set })?;
        config.validate()?;
        Ok(config)
    }

    /// As TOML, every value.
    ///
    /// # Errors
    /// [`Error::BadValue`] for a number that TOML cannot hold.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| Error::bad_value("config", e.to_string(), "TOML holds no integer above 2^63 - 1"))
    }

    /// # Errors
    /// [`Error::BadValue`] that names the key.
    pub fn validate(&self) -> Result<()> {
        let bad = |key: String, problem: String, hint: &str| Err(Error::bad_value(key, problem, hint));
        let used = self.sources.used();
        if used.is_empty() {
            let names = Source::ALL.map(Source::name).join(", ");
            return bad(
                "sources".into(),
                "none is given".into(),
                &format!("write a table [sources.NAME] with inputs = [...]; names: {names}"),
            );
        }
        for s in &used {
            let key = |k: &str| format!("sources.{}.{k}", s.source.name());
            if s.inputs.is_empty() {
                return bad(key("inputs"), "no file or folder is given".into(), "e.g. inputs = [\"dumps/*.gz\"]");
            }
            if !(s.weight > 0.0 && s.weight.is_finite()) {
                return bad(
                    key("weight"),
                    format!("expected a number above 0, got {}", s.weight),
                    "leave the source out to not use it",
                );
            }
            if s.max_epochs.is_nan() || s.max_epochs <= 0.0 {
                return bad(key("max_epochs"), format!("expected a number above 0, got {}", s.max_epochs), "inf: no cap");
            }
        }
        if !(0.0..1.0).contains(&self.mix.valid) {
            return bad("mix.valid".into(), format!("expected 0 to below 1, got {}", self.mix.valid), "0: nothing is held out");
        }
        if self.decontaminate.ngram == 0 {
            return bad("decontaminate.ngram".into(), "expected a number above 0, got 0".into(), "the usual number is 13");
        }
        if self.threads == Some(0) {
            return bad("threads".into(), "expected a number above 0, got 0".into(), "leave it out for all cores");
        }
        Ok(())
    }

    /// Threads to use.
    pub fn threads(&self) -> usize {
        self.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
    }
}
