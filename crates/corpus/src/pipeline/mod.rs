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

mod benchmarks;
mod clean;
mod config;
mod dedup;
mod inputs;
mod mix;
mod mixture;
mod read;
mod report;
mod score;
mod tokenize;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use serde::Serialize;

pub use benchmarks::{ItemCount, TaskCount};
pub use clean::clean_text;
pub use config::{BuildConfig, Decontaminate, LmFiles, Mix, Models};
pub use mixture::{Mixture, Part, Share};

use crate::engine::{self, Counts, Output, Progress, Shard, Shuffle, ShuffleOptions, StageSpec, StageSummary};
use crate::error::{Error, Result};
use crate::filters::decontaminate::Item;
use crate::sources::{NAMES, Source, SourceName};
use crate::tokens::Tokens;
use crate::walk;

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
    fn end(&self, stage: &str, source: &str, summary: &StageSummary);
    /// Something that a reader should know.
    fn note(&self, text: &str);
    /// Something that was left out and may have been meant.
    fn warn(&self, text: &str) {
        log::warn!("{text}");
    }
}

/// Sees nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Observer for Silent {
    fn begin(&self, _: &str, _: &str, _: &Progress, work: &mut dyn FnMut()) {
        work();
    }
    fn end(&self, _: &str, _: &str, _: &StageSummary) {}
    fn note(&self, _: &str) {}
    fn warn(&self, _: &str) {}
}

/// Tells what was left out of a source.
fn say(observer: &dyn Observer, source: &str, text: &str) {
    observer.warn(&format!("{source}: {text}"));
}

/// A build and its part in it.
pub struct Build<'a> {
    config: &'a BuildConfig,
    world: (usize, usize),
    patience: Duration,
    observer: &'a dyn Observer,
    tokens: &'a dyn Tokens,
    items: Vec<Item>,
    shuffle: OnceLock<Shuffle>,
    models: OnceLock<score::OpenModels>,
}

/// The stages of a source that write documents.
struct Stages<'a> {
    source: &'a dyn Source,
    read: read::Read,
    clean: StageSpec,
    dedup: dedup::Dedup,
    score: StageSpec,
    mix: StageSpec,
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
        let (items, shuffle, models) = (Vec::new(), OnceLock::new(), OnceLock::new());
        Ok(Self { config, world, patience, observer, tokens, items, shuffle, models })
    }

    /// The questions of `decontaminate.tasks`, which evaluation's room reads (`recua::build::benchmark_items`). Without them a build whose
    /// settings name tasks ends with an error before the work.
    #[must_use]
    pub fn with_items(mut self, items: Vec<Item>) -> Self {
        self.items = items;
        self
    }

    /// Looks at every setting and every file that some stages need, and says what there is to do. Nothing is read or written.
    ///
    /// # Errors
    /// The first mistake, which names its setting or file.
    pub fn check(&self, stages: &[Stage]) -> Result<Vec<String>> {
        let runs = |stage: Stage| stages.contains(&stage);
        let mut lines = Vec::new();
        for source in self.config.sources.used() {
            let inputs::Found { dumps, passed } = inputs::dumps(source)?;
            let passed = if passed.is_empty() { String::new() } else { format!(", {} files passed over", passed.len()) };
            lines.push(format!("{:<13} {} files or folders to read{passed}", source.common().name, dumps.len()));
        }
        if let Some(scheduler) = &self.config.scheduler {
            engine::check_scheduler(scheduler)?;
        }
        inputs::files("decontaminate.files", &self.config.decontaminate.files)?;
        if self.items.is_empty() && !self.config.decontaminate.tasks.is_empty() {
            let problem = "the questions of the tasks were not handed to the build";
            let hint = "give it `recua::build::benchmark_items(&config)` with `Build::with_items`, as `recua data build` does";
            return Err(Error::bad_value("decontaminate.tasks", problem, hint));
        }
        if !self.items.is_empty() {
            let tasks: BTreeSet<&str> = self.items.iter().map(|item| item.task.as_str()).collect();
            lines.push(format!("decontaminate {} questions of {} tasks to look for", self.items.len(), tasks.len()));
        }
        if runs(Stage::Score) {
            self.models()?;
        }
        if let Some(path) = self.config.mix.tokenizer.as_ref().filter(|_| runs(Stage::Tokenize)) {
            self.tokens.tokenizer(path)?;
        }
        Ok(lines)
    }

    /// Runs some stages, in their order, over all sources. Everything is looked at before the first begins.
    ///
    /// # Errors
    /// The first error; what is done stays done. [`Error::Nothing`] if no source had a document to read.
    pub fn run(&self, stages: &[Stage]) -> Result<()> {
        let out = &self.config.out;
        self.check(stages)?;
        std::fs::create_dir_all(out).map_err(Error::io("create", out))?;
        if self.world.0 == 0 {
            let mark = out.join(walk::BUILD);
            if !mark.exists() {
                crate::files::write_atomic(&mark, b"A build of recua: never read as an input.\n")?;
            }
            crate::files::write_atomic(&out.join("config.toml"), self.config.to_toml()?.as_bytes())?;
        }
        let mut nothing = true;
        for source in self.config.sources.used() {
            nothing &= self.run_source(source, stages)? == Some(0);
        }
        let runs = |stage: Stage| stages.contains(&stage) && self.world.0 == 0;
        if runs(Stage::Report) {
            let path = report::write(self)?;
            if let Some(tasks) = self.benchmarks()? {
                benchmarks::lines(&tasks).iter().for_each(|line| self.observer.note(line));
            }
            self.observer.note(&format!("report: {}", path.display()));
        }
        if nothing {
            let hint = "see the warnings above, *.rejected.jsonl in its folder `read`, and report.html".into();
            return Err(Error::Nothing { what: "document to build from".into(), path: out.clone(), hint });
        }
        if runs(Stage::Tokenize)
            && let Some(mixture) = self.mixture()?
        {
            mixture.save(self.config)?;
            self.observer.note(&mixture.to_string());
        }
        Ok(())
    }

    /// Runs some stages of a source; gives the number of documents that were read, if that stage is complete.
    fn run_source(&self, source: &dyn Source, stages: &[Stage]) -> Result<Option<u64>> {
        let stage = self.stages(source)?;
        let runs = |stage: Stage| stages.contains(&stage);
        if runs(Stage::Read) {
            stage.read.tell(self);
            stage.read.run(self, source)?;
        }
        if runs(Stage::Clean) {
            clean::run(self, source, &stage.read.spec, &stage.clean)?;
        }
        if runs(Stage::Dedup) {
            stage.dedup.run(self, &stage.clean)?;
        }
        if runs(Stage::Score) {
            score::run(self, source, &stage.dedup.spec, &stage.score)?;
        }
        if runs(Stage::Mix) {
            mix::run(self, source, &stage.score, &stage.mix)?;
        }
        if runs(Stage::Tokenize) && self.world.0 == 0 {
            tokenize::run(self, source, &stage.mix)?;
        }
        self.tell_losses(&stage)
    }

    /// The stages of a source, planned.
    fn stages<'s>(&self, source: &'s dyn Source) -> Result<Stages<'s>> {
        let read = read::plan(self, source)?;
        let clean = clean::plan(self, source, &read.spec)?;
        let dedup = dedup::Dedup::plan(self, source, &clean)?;
        let score = score::plan(self, source, &dedup.spec)?;
        let mix = mix::plan(self, source, &score)?;
        Ok(Stages { source, read, clean, dedup, score, mix })
    }

    /// Says it where nothing was read of a source, or nothing is left of it. Gives the number of documents that were read.
    fn tell_losses(&self, stages: &Stages<'_>) -> Result<Option<u64>> {
        let name = stages.source.common().name;
        let specs = [&stages.read.spec, &stages.clean, &stages.dedup.spec, &stages.score, &stages.mix];
        let mut read = None;
        for spec in specs {
            let Some(counts) = counts(spec)? else { break };
            let read = *read.get_or_insert(counts.docs_out);
            if counts.docs_out == 0 {
                let of = if read == 0 { String::new() } else { format!(" of {read} documents") };
                let why = reasons(&counts);
                say(self.observer, name.as_str(), &format!("nothing is left{of} after `{}`: {why}", spec.name));
                break;
            }
        }
        Ok(read)
    }

    /// The mixture of the token datasets that are there; `None` where the build has no tokenizer.
    ///
    /// # Errors
    /// [`Error::Nothing`] if `tokenize` has not run.
    pub fn mixture(&self) -> Result<Option<Mixture>> {
        if self.config.mix.tokenizer.is_none() {
            return Ok(None);
        }
        let part = |source: &dyn Source| {
            let common = source.common();
            Ok(Part {
                source: common.name,
                weight: common.weight,
                max_epochs: common.max_epochs,
                tokens: tokenize::count(self, common.name)?,
                paper_epochs: common.paper.1,
            })
        };
        let parts = self.config.sources.used().into_iter().map(part).collect::<Result<Vec<_>>>()?;
        Mixture::new(&parts, self.config.mix.tokens, self.tokens).map(Some)
    }

    /// `OUT/STAGE/SOURCE`.
    pub fn folder(&self, stage: &str, source: SourceName) -> PathBuf {
        self.config.out.join(stage).join(source.as_str())
    }

    fn spec(&self, stage: &str, source: SourceName, inputs: Vec<Shard>, settings: &impl Serialize) -> Result<StageSpec> {
        let hash = engine::config_hash(settings)?;
        let mut spec = StageSpec::new(stage, source.as_str(), inputs, self.folder(stage, source), hash);
        spec.world = self.world;
        spec.threads = self.config.threads();
        spec.show_one_in = self.config.show_one_in;
        Ok(spec)
    }

    /// A stage that reads the tables of another.
    fn next(&self, stage: &str, source: &dyn Source, before: &StageSpec, settings: &impl Serialize) -> Result<StageSpec> {
        self.spec(stage, source.common().name, before.tables(), settings)
    }

    /// The models, opened at their first use.
    fn models(&self) -> Result<&score::OpenModels> {
        if let Some(models) = self.models.get() {
            return Ok(models);
        }
        let models = score::OpenModels::open(self)?;
        Ok(self.models.get_or_init(|| models))
    }

    /// Runs this rank's shards of a stage, and waits for those of the others.
    fn stage(&self, spec: &StageSpec, work: impl Fn(&Shard, &mut Output<'_>) -> Result<()> + Sync) -> Result<StageSummary> {
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

/// What happened to the documents of a stage, in all of its shards; `None` if one is missing.
fn counts(spec: &StageSpec) -> Result<Option<Counts>> {
    let mut all = Counts::default();
    for shard in &spec.inputs {
        let Some(manifest) = engine::Manifest::read(&spec.out, &shard.name)? else { return Ok(None) };
        all.add(&manifest.counts);
    }
    Ok(Some(all))
}

/// Why documents are not there, the commonest first.
fn reasons(counts: &Counts) -> String {
    let mut all: Vec<_> = counts.dropped.iter().chain(&counts.skipped).map(|(why, n)| (*n, why.as_str())).collect();
    all.extend((counts.rejected > 0).then_some((counts.rejected, "rejected")));
    all.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
    let all: Vec<_> = all.iter().take(6).map(|(n, why)| format!("{n} {why}")).collect();
    if all.is_empty() { "the inputs have no record".into() } else { all.join(", ") }
}

/// What each stage did with a document, in their order.
///
/// # Errors
/// [`Error::Nothing`] if no stage knows the id.
pub fn explain(config: &BuildConfig, id: &str) -> Result<Vec<(String, engine::Fate)>> {
    let mut all = Vec::new();
    for stage in Stage::TABLES {
        for source in NAMES {
            let dir = config.out.join(stage.name()).join(source.as_str());
            if !dir.is_dir() {
                continue;
            }
            for mut fate in engine::find(&dir, id)? {
                if let (Stage::Mix, engine::Fate::Kept { meta, .. }) = (stage, &mut fate) {
                    mix::mark(meta, id, config.mix.valid);
                }
                all.push((format!("{}/{source}", stage.name()), fate));
            }
        }
    }
    if all.is_empty() {
        let hint = "ids are URLs, titles, paths: see the `id` column of the Parquet files, or the samples in report.html";
        return Err(Error::Nothing { what: format!("document `{id}`"), path: config.out.clone(), hint: hint.into() });
    }
    Ok(all)
}
