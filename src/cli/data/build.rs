//! `recua data build`, `recua data explain`

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use recua::build::{RecuaTokens, benchmark_items};
use recua::corpus::engine::{Fate, Progress, StageSummary};
use recua::corpus::pipeline::{self, BuildConfig, Observer, Stage};
use recua::{Error, Result};
use serde_json::json;

use super::super::{duration, human, print, print_json, say};

/// Raw dumps to the training mixture
///
/// LLaMA's section 2.1 as one program: reads the dumps of up to seven sources, cleans them by each source's rules, removes duplicates,
/// scores them with language identification, perplexity and a classifier, mixes them in the paper's proportions and makes token datasets.
/// Killed at any moment and started again, it goes on where it was; the result is the same to the byte.
#[derive(Args)]
#[command(after_help = "Examples:
  recua data build --config mixture.toml
  recua data build --config mixture.toml --stage read --stage clean
  recua data build --config mixture.toml --set sources.books.max_overlap=1 --stage report
  recua data build --config mixture.toml --rank 0 --world-size 4     (on each of four machines, over a shared folder)

A configuration needs no more than the inputs:
  out = \"data-build\"
  [mix]
  tokenizer = \"tokenizer.model\"
  [models]
  lid = \"lid.176.ftz\"
  [sources.commoncrawl]
  inputs = [\"crawl/*.warc.wet.gz\"]
  [sources.wikipedia]
  inputs = [\"dumps/enwiki-*-pages-articles.xml.bz2\"]")]
pub(crate) struct Build {
    /// Settings in TOML; OUT/config.toml afterwards has all of them with their defaults
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// One setting, e.g. mix.tokens=1000000000; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Only this stage: read, clean, dedup, score, mix, tokenize or report; may be repeated
    #[arg(long, value_name = "NAME")]
    stage: Vec<Stage>,
    /// The build's folder [default: the configuration's `out`]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Shards at a time, and threads [default: all cores]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// This process's number of --world-size ones that work on the same build
    #[arg(long, default_value_t = 0, requires = "world_size")]
    rank: usize,
    /// Processes that work on the same build
    #[arg(long, default_value_t = 1, value_name = "N")]
    world_size: usize,
    /// Run the shuffles on the Ballista cluster of this scheduler, df://host:port
    #[arg(long, value_name = "URL")]
    scheduler: Option<String>,
    /// Look at every setting and file, say what there is to read, and stop
    #[arg(long)]
    dry_run: bool,
    /// Print the mixture as JSON
    #[arg(long)]
    json: bool,
}

impl Build {
    pub(super) fn run(self) -> Result<()> {
        let mut config = BuildConfig::resolve(self.config.as_deref(), &self.set)?;
        config.out = self.out.unwrap_or(config.out);
        config.threads = self.threads.or(config.threads);
        config.scheduler = self.scheduler.or(config.scheduler);
        if let Some(threads) = self.threads {
            // Tokenizing runs on the process's own pool.
            super::super::Device { backend: Default::default(), threads: Some(threads) }.apply()?;
        }
        let stages = if self.stage.is_empty() { Stage::ALL.to_vec() } else { self.stage };
        let shown = Shown { quiet: self.json };
        let items = benchmark_items(&config)?;
        let build = pipeline::Build::new(&config, (self.rank, self.world_size), &shown, &RecuaTokens)?.with_items(items);
        if self.dry_run {
            build.check(&stages)?.iter().for_each(|line| print(line));
            return Ok(());
        }
        build.run(&stages)?;
        if self.json && stages.contains(&Stage::Tokenize) {
            return print_json(&build.mixture()?);
        }
        Ok(())
    }
}

/// Progress bars where there is a terminal, and a line a stage.
struct Shown {
    quiet: bool,
}

impl Observer for Shown {
    fn begin(&self, stage: &str, source: &str, progress: &Progress, work: &mut dyn FnMut()) {
        if !std::io::stderr().is_terminal() {
            return work();
        }
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let bar = ProgressBar::with_draw_target(Some(1), ProgressDrawTarget::stderr());
                if let Ok(style) = ProgressStyle::with_template("{prefix} [{bar:30}] {pos}/{len} shards {msg}") {
                    bar.set_style(style.progress_chars("=> "));
                }
                bar.set_prefix(format!("{source} {stage}"));
                let start = Instant::now();
                while !done.load(Relaxed) {
                    let get = |n: &std::sync::atomic::AtomicU64| n.load(Relaxed) as f64;
                    let (shards, finished, skipped) =
                        (get(&progress.shards), get(&progress.shards_done), get(&progress.shards_skipped));
                    bar.set_length(shards as u64);
                    bar.set_position((finished + skipped) as u64);
                    let seconds = start.elapsed().as_secs_f64();
                    let eta = match finished {
                        n if n > 0.0 => format!(", eta {}", duration(seconds / n * (shards - skipped - n))),
                        _ => String::new(),
                    };
                    let docs = get(&progress.docs_in).max(get(&progress.docs_out));
                    let bytes = get(&progress.bytes_in).max(get(&progress.bytes_out));
                    bar.set_message(format!("{} docs/s, {}B/s{eta}", human(docs / seconds), human(bytes / seconds)));
                    std::thread::sleep(Duration::from_millis(100));
                }
                bar.finish_and_clear();
            });
            work();
            done.store(true, Relaxed);
        });
    }

    fn end(&self, stage: &str, source: &str, s: &StageSummary) {
        let c = &s.counts;
        let rejected = if c.rejected > 0 { format!(", {} rejected", c.rejected) } else { String::new() };
        let dropped: u64 = c.dropped.values().sum();
        let dropped = if dropped > 0 { format!(", {dropped} dropped") } else { String::new() };
        let skipped = if s.skipped > 0 { format!(", {} shards were done", s.skipped) } else { String::new() };
        let rate = if s.done > 0 && c.docs_in > 0 {
            format!(", {} docs/s", human(c.docs_in as f64 / s.seconds.max(1e-3)))
        } else {
            String::new()
        };
        let passed: u64 = c.skipped.values().sum();
        let passed = if passed > 0 { format!(", {passed} passed over") } else { String::new() };
        let docs = match stage {
            "hash" | "duplicates" | "tokenize" => String::new(),
            _ => format!("{} -> {} documents{dropped}{rejected}{passed}, ", c.docs_in, c.docs_out),
        };
        say(&format!("{source:<13} {stage:<10} {docs}{}{rate}{skipped}", duration(s.seconds)));
    }

    fn note(&self, text: &str) {
        if self.quiet { say(text) } else { print(text) }
    }
}

/// Tell what became of a document, and why
///
/// Follows a document through the stages of a build: kept, dropped for a reason, pieces removed by a rule.
#[derive(Args)]
pub(crate) struct Explain {
    /// The document's id: a URL, a title with its number, a path (column `id` of the Parquet files; samples in report.html)
    id: String,
    /// The build's folder
    #[arg(long, value_name = "DIR", default_value = "data-build")]
    out: PathBuf,
    /// One JSON document
    #[arg(long)]
    json: bool,
}

/// Characters of a text that are shown.
const SHOWN: usize = 400;

impl Explain {
    pub(super) fn run(self) -> Result<()> {
        let file = self.out.join("config.toml");
        if !file.is_file() {
            let hint = "give the folder of a build with --out";
            return Err(Error::Nothing { what: "build".into(), path: self.out, hint: hint.into() });
        }
        let set = [format!("out={}", toml::Value::String(self.out.display().to_string()))];
        let config = BuildConfig::resolve(Some(&file), &set)?;
        let fates = pipeline::explain(&config, &self.id)?;
        if self.json {
            let all: Vec<_> = fates.iter().map(|(stage, fate)| json!({ "stage": stage, "what": fate })).collect();
            return print_json(&all);
        }
        for (stage, fate) in fates {
            let short = |text: &str| {
                let mut start: String = text.chars().take(SHOWN).collect();
                if start.len() < text.len() {
                    start += " ...";
                }
                start.replace('\n', "\n    | ")
            };
            match fate {
                Fate::Kept { shard, text, .. } => {
                    print(&format!("{stage} ({shard}): kept, {} bytes\n    | {}", text.len(), short(&text)))
                }
                Fate::Dropped { shard, reason, text } => {
                    print(&format!("{stage} ({shard}): dropped, {reason}\n    | {}", short(&text)))
                }
                Fate::Removed { rule, text, .. } => print(&format!("{stage}: removed by {rule}\n    | {}", short(&text))),
            }
        }
        Ok(())
    }
}
