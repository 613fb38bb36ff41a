//! What `recua data build` makes, from what: one TOML file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::filters::perplexity::Cutoffs;
use crate::sources::{NAMES, Sources};

/// MiB that a shuffle needs at the least.
const LEAST_MB: usize = 128;

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
    /// Text, JSON, CSV or Parquet files of the sets, or folders of them. Empty: nothing is done.
    pub files: Vec<String>,
    /// Tasks of `recua eval`, whose questions are counted one by one: names, groups, suites, task files (.toml).
    pub tasks: Vec<String>,
    /// Folders with a folder of data a task, as `recua eval run --data` takes them.
    pub data: Vec<PathBuf>,
    /// Words of a run (GPT-3 and later work: 13).
    pub ngram: usize,
    /// Documents with such a run go. `false`: they stay, and are counted and marked.
    pub remove: bool,
}

impl Default for Decontaminate {
    fn default() -> Self {
        Self { files: Vec::new(), tasks: Vec::new(), data: Vec::new(), ngram: 13, remove: true }
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

    /// Looks at the settings, and at the files that sources' settings name.
    ///
    /// # Errors
    /// [`Error::BadValue`] that names the key.
    pub fn validate(&self) -> Result<()> {
        let bad = |key: String, problem: String, hint: &str| Err(Error::bad_value(key, problem, hint));
        let used = self.sources.used();
        if used.is_empty() {
            let hint =
                format!("write a table [sources.NAME] with inputs = [...]; names: {}", NAMES.map(|n| n.as_str()).join(", "));
            return bad("sources".into(), "none is given".into(), &hint);
        }
        for source in used {
            source.common().check()?;
            source.check()?;
        }
        if !(0.0..1.0).contains(&self.mix.valid) {
            return bad("mix.valid".into(), format!("expected 0 to below 1, got {}", self.mix.valid), "0: nothing is held out");
        }
        if self.decontaminate.ngram == 0 {
            return bad("decontaminate.ngram".into(), "expected a number above 0, got 0".into(), "the usual number is 13");
        }
        if self.decontaminate.tasks.is_empty() != self.decontaminate.data.is_empty() {
            let (key, other) = if self.decontaminate.data.is_empty() { ("data", "tasks") } else { ("tasks", "data") };
            let problem = format!("none is given, though decontaminate.{other} are");
            return bad(
                format!("decontaminate.{key}"),
                problem,
                "name both: tasks of `recua eval list`, and the folders that hold their data",
            );
        }
        if self.threads == Some(0) {
            return bad("threads".into(), "expected a number above 0, got 0".into(), "leave it out for all cores");
        }
        if self.mix.tokens == Some(0) {
            return bad("mix.tokens".into(), "expected a number above 0, got 0".into(), "leave it out for as many as there are");
        }
        if self.mix.shard_tokens == 0 {
            return bad("mix.shard_tokens".into(), "expected a number above 0, got 0".into(), "the usual number is 134217728");
        }
        if self.memory_mb < LEAST_MB {
            let problem = format!("expected at least {LEAST_MB}, got {}", self.memory_mb);
            return bad("memory_mb".into(), problem, "1024 is the default");
        }
        for (language, lm) in &self.models.lm {
            if let Some(Cutoffs { head, tail }) = lm.cutoffs
                && !(head > 0.0 && head <= tail && tail.is_finite())
            {
                let problem = format!("expected perplexities above 0, head not above tail, got {head} and {tail}");
                return bad(
                    format!("models.lm.{language}.cutoffs"),
                    problem,
                    "`recua data train-lm` writes them to cutoffs.toml",
                );
            }
        }
        Ok(())
    }

    /// Threads to use.
    pub fn threads(&self) -> usize {
        self.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
    }
}
