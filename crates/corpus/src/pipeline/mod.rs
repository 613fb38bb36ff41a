//! Raw dumps to the training mixture (LLaMA, section 2.1): what `recua data build` does.
//!
//! Seven stages, each of which leaves its results in a folder and can be run alone; a shard that is done is not done again:
//!
//! | stage | reads | writes to `OUT/STAGE/SOURCE` |
//! |---|---|---|
//! | `read` | dumps | documents as they are in the dump |
//! | `clean` | `read` | their text, by the source's rules |
//! | `dedup` | `clean` | without duplicates: lines (CommonCrawl, C4), files (GitHub), books; near-duplicates where wanted |
//! | `score` | `dedup` | language, perplexity, classifier, contamination: what does not pass goes |
//! | `mix` | `score` | the final text, in training and held-out documents |
//! | `tokenize` | `mix` | token datasets, `mixture.json`, and `train.toml`, which `recua train` takes |
//! | `report` | all | `OUT/report.html` |
//!
//! [`Build::run`] runs them; [`explain`] tells what became of a document.

mod clean;
mod config;
mod dedup;
mod inputs;
mod mix;
mod mixture;
mod names;
mod read;
mod report;
mod score;
mod tokenize;

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use serde::Serialize;

pub use clean::clean_text;
pub use config::{
    Arxiv, Books, BuildConfig, C4, Common, CommonCrawl, Decontaminate, Github, Lines, LmFiles, Mix, Models, Sources,
    StackExchange, Wikipedia,
};
pub use mixture::{Mixture, Share};
pub use names::Source;

use crate::engine::{self, Output, Progress, Shard, Shuffle, ShuffleOptions, StageSpec, Summary};
use crate::error::{Error, Result};
use crate::tokens::Tokens;

/// A step of a build.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the module's table says it")]
pub enum Stage {
    Read,
    Clean,
    Dedup,
    Score,
    Mix,
    Tokenize,
    Report,
}

impl Stage {
    /// In their order.
    pub const ALL: [Self; 7] = [Self::Read, Self::Clean, Self::Dedup, Self::Score, Self::Mix, Self::Tokenize, Self::Report];
    /// Those that write documents.
    pub const TABLES: [Self; 5] = [Self::Read, Self::Clean, Self::Dedup, Self::Score, Self::Mix];

    /// Its name, and its folder's.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Clean => "clean",
            Self::Dedup => "dedup",
            Self::Score => "score",
            Self::Mix => "mix",
            Self::Tokenize => "tokenize",
            Self::Report => "report",
        }
    }
}

impl std::str::FromStr for Stage {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|s| s.name() == name).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            Error::bad_value("--stage", format!("expected one of {names}, got `{name}`"), "give one of these names")
        })
    }
}

/// Told of every stage of every source while it runs.
pub trait Observer: Sync {
    /// A stage begins; `progress` is written to while it runs.
    fn begin(&self, stage: &str, source: &str, progress: &Progress, work: &mut dyn FnMut());
    /// It ended.
    fn end(&self, stage: &str, source: &str, summary: &Summary);
    /// Something that a reader should know.
    fn note(&self, text: &str);
}

/// Sees nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Observer for Silent {
    fn begin(&self, _: &str, _: &str, _: &Progress, work: &mut dyn FnMut()) {
        work();
    }
    fn end(&self, _: &str, _: &str, _: &Summary) {}
    fn note(&self, _: &str) {}
}

/// A build and its part in it.
pub struct Build<'a> {
    config: &'a BuildConfig,
    world: (usize, usize),
    patience: Duration,
    observer: &'a dyn Observer,
    tokens: &'a dyn Tokens,
    shuffle: OnceLock<Shuffle>,
}

impl<'a> Build<'a> {
    /// This process's part, of `world.1` processes on the same folder.
    ///
    /// # Errors
    /// [`Error::BadValue`] for a setting that cannot be, or a rank out of range.
    pub fn new(
        config: &'a BuildConfig,
        world: (usize, usize),
        observer: &'a dyn Observer,
        tokens: &'a dyn Tokens,
    ) -> Result<Self> {
        config.validate()?;
        if world.0 >= world.1 {
            let problem = format!("expected a rank below the world size, got rank {} of {}", world.0, world.1);
            return Err(Error::bad_value("--rank", problem, "ranks count from 0"));
        }
        // Alone, what is not there now will not come.
        let patience = if world.1 > 1 { Duration::from_secs(7 * 24 * 3600) } else { Duration::ZERO };
        Ok(Self { config, world, patience, observer, tokens, shuffle: OnceLock::new() })
    }

    /// Runs some stages, in their order, over all sources.
    ///
    /// # Errors
    /// The first error; what is done stays done.
    pub fn run(&self, stages: &[Stage]) -> Result<()> {
        let out = &self.config.out;
        std::fs::create_dir_all(out).map_err(Error::io("create", out))?;
        if self.world.0 == 0 {
            crate::files::write_atomic(&out.join("config.toml"), self.config.to_toml()?.as_bytes())?;
        }
        let runs = |stage: Stage| stages.contains(&stage);
        for common in self.config.sources.used() {
            let read = read::plan(self, common)?;
            let clean = clean::plan(self, common, &read.spec)?;
            let dedup = dedup::Dedup::plan(self, common, &clean)?;
            let score = score::plan(self, common, &dedup.spec)?;
            let mix = mix::plan(self, common, &score)?;
            if runs(Stage::Read) {
                read.run(self)?;
            }
            if runs(Stage::Clean) {
                clean::run(self, common, &read.spec, &clean)?;
            }
            if runs(Stage::Dedup) {
                dedup.run(self, &clean)?;
            }
            if runs(Stage::Score) {
                score::run(self, common, &dedup.spec, &score)?;
            }
            if runs(Stage::Mix) {
                mix::run(self, common, &score, &mix)?;
            }
            if runs(Stage::Tokenize) && self.world.0 == 0 {
                tokenize::run(self, common, &mix)?;
            }
        }
        if runs(Stage::Tokenize) && self.world.0 == 0 {
            let mixture = self.mixture()?;
            if let Some(mixture) = &mixture {
                mixture.save(self.config)?;
                self.observer.note(&mixture.to_string());
            }
        }
        if runs(Stage::Report) && self.world.0 == 0 {
            let path = report::write(self)?;
            self.observer.note(&format!("report: {}", path.display()));
        }
        Ok(())
    }

    /// The mixture of the token datasets that are there; `None` where the build has no tokenizer.
    ///
    /// # Errors
    /// [`Error::Nothing`] if `tokenize` has not run.
    pub fn mixture(&self) -> Result<Option<Mixture>> {
        if self.config.mix.tokenizer.is_none() {
            return Ok(None);
        }
        let used = self.config.sources.used();
        let sources = used.iter().map(|c| Ok((c.source, c.weight, c.max_epochs, tokenize::count(self, c.source)?)));
        Mixture::new(&sources.collect::<Result<Vec<_>>>()?, self.config.mix.tokens, self.tokens).map(Some)
    }

    /// `OUT/STAGE/SOURCE`.
    pub fn folder(&self, stage: &str, source: Source) -> PathBuf {
        self.config.out.join(stage).join(source.name())
    }

    fn spec(&self, stage: &str, source: Source, inputs: Vec<Shard>, settings: &impl Serialize) -> Result<StageSpec> {
        let hash = engine::config_hash(settings)?;
        let mut spec = StageSpec::new(stage, source.name(), inputs, self.folder(stage, source), hash);
        spec.world = self.world;
        spec.threads = self.config.threads();
        spec.show_one_in = self.config.show_one_in;
        Ok(spec)
    }

    /// A stage that reads the tables of another.
    fn next(&self, stage: &str, before: &StageSpec, settings: &impl Serialize) -> Result<StageSpec> {
        self.spec(stage, before.source.parse()?, before.tables(), settings)
    }

    /// Runs this rank's shards of a stage, and waits for those of the others.
    fn stage(&self, spec: &StageSpec, work: impl Fn(&Shard, &mut Output<'_>) -> Result<()> + Sync) -> Result<Summary> {
        let progress = Progress::default();
        let mut result = None;
        self.observer.begin(&spec.name, &spec.source, &progress, &mut || {
            result = Some(engine::run_shards(spec, &work, &progress).and_then(|s| Ok((s, spec.complete(self.patience)?))));
        });
        let none = || Error::internal("observer", "the stage was not run");
        let (summary, _) = result.ok_or_else(none)??;
        self.observer.end(&spec.name, &spec.source, &summary);
        Ok(summary)
    }

    /// The shuffle engine, started at its first use.
    fn shuffle(&self) -> Result<&Shuffle> {
        if let Some(shuffle) = self.shuffle.get() {
            return Ok(shuffle);
        }
        let threads = self.config.threads();
        let options = ShuffleOptions {
            memory: self.config.memory_mb << 20,
            threads: threads.min((self.config.memory_mb / 64).max(1)),
            spill: self.config.out.join("spill"),
            scheduler: self.config.scheduler.clone(),
        };
        let shuffle = Shuffle::new(options)?;
        Ok(self.shuffle.get_or_init(|| shuffle))
    }
}

/// What each stage did with a document, in their order.
///
/// # Errors
/// [`Error::Nothing`] if no stage knows the id.
pub fn explain(config: &BuildConfig, id: &str) -> Result<Vec<(String, engine::Fate)>> {
    let mut all = Vec::new();
    for stage in Stage::TABLES {
        for source in Source::ALL {
            let dir = config.out.join(stage.name()).join(source.name());
            if dir.is_dir() {
                let place = format!("{}/{}", stage.name(), source.name());
                all.extend(engine::find(&dir, id)?.into_iter().map(|fate| (place.clone(), fate)));
            }
        }
    }
    if all.is_empty() {
        let hint = "ids are URLs, titles, paths: see the `id` column of the Parquet files, or the samples in report.html";
        return Err(Error::Nothing { what: format!("document `{id}`"), path: config.out.clone(), hint: hint.into() });
    }
    Ok(all)
}
