//! The first stage: dumps to documents as they are in them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::config::Common;
use super::names::Source;
use super::{Build, inputs};
use crate::engine::{self, Output, PostWriter, Shard, StageSpec};
use crate::error::{Error, Result};
use crate::sources::{arxiv, books, c4, commoncrawl, github, stackexchange, wikipedia};
use crate::{Record, Rejected, Sink};

/// What a reader passed over, by reason.
type Skipped = BTreeMap<String, u64>;

/// The stage, and the dump or folder of each shard.
pub(super) struct Read {
    pub(super) spec: StageSpec,
    roots: Vec<Vec<PathBuf>>,
}

pub(super) fn plan(build: &Build<'_>, common: Common<'_>) -> Result<Read> {
    let key = format!("sources.{}.inputs", common.source);
    let paths = inputs::expand(&key, common.inputs)?;
    let one_each = |paths: Vec<PathBuf>| paths.into_iter().map(|p| vec![p]).collect::<Vec<_>>();
    let roots = match (common.source, &build.config.sources.stackexchange) {
        // A folder of a source tree, of a paper or of books is read as a whole.
        (Source::Github | Source::Arxiv | Source::Books, _) => one_each(paths),
        (Source::Stackexchange, Some(config)) => {
            let dumps = files(&paths, &["Posts.xml", ".7z", "Posts.xml.gz", "Posts.xml.bz2", "Posts.xml.xz", "Posts.xml.zst"])?;
            sites(build, dumps, config.largest.unwrap_or(usize::MAX))?
        }
        (Source::Commoncrawl, _) => one_each(files(&paths, &[".warc", ".warc.gz", ".wet", ".wet.gz"])?),
        (Source::C4, _) => one_each(files(
            &paths,
            &[".json", ".json.gz", ".jsonl", ".jsonl.gz", ".zst", ".warc", ".warc.gz", ".wet", ".wet.gz"],
        )?),
        _ => one_each(files(&paths, &[".xml", ".bz2", ".xz", ".gz"])?),
    };
    if roots.is_empty() {
        let hint = format!("look at {key}: the folders have no file of this source's kinds");
        return Err(Error::Nothing {
            what: "dump".into(),
            path: common.inputs.first().map(PathBuf::from).unwrap_or_default(),
            hint,
        });
    }
    let mut shards = Vec::with_capacity(roots.len());
    for (i, paths) in roots.iter().enumerate() {
        let mut all = Vec::new();
        for path in paths {
            all.extend(inputs::files_in(path)?);
        }
        shards.push(Shard::new(format!("shard-{i:05}"), all));
    }
    let sources = &build.config.sources;
    // Only what reading depends on: another rule of cleaning does not read anew.
    let settings = match common.source {
        Source::Commoncrawl => json!({ "title_in_text": false }),
        Source::C4 => json!({ "title_in_text": true }),
        Source::Github => json!(sources.github.as_ref().map(|s| &s.read)),
        Source::Wikipedia => json!(sources.wikipedia.as_ref().map(|s| &s.read)),
        Source::Books => json!(sources.books.as_ref().map(|s| &s.rules)),
        Source::Arxiv => json!(sources.arxiv.as_ref().map(|s| &s.rules)),
        Source::Stackexchange => json!(sources.stackexchange.as_ref().map(|s| (&s.rules, s.largest))),
    };
    Ok(Read { spec: build.spec("read", common.source, shards, &(common.source, settings))?, roots })
}

/// The dumps of each of the largest sites, by name. Counting the posts unpacks all dumps: where there is a choice to be made, it is made
/// once and written down.
fn sites(build: &Build<'_>, dumps: Vec<PathBuf>, most: usize) -> Result<Vec<Vec<PathBuf>>> {
    let mut all: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for dump in &dumps {
        all.entry(stackexchange::site_name(dump)).or_default().push(dump.clone());
    }
    if all.len() > most {
        let chosen = build.config.out.join("read").join("stackexchange-sites.json");
        let of: Vec<_> = dumps.iter().map(|d| (d.display().to_string(), d.metadata().map_or(0, |m| m.len()))).collect();
        let key = engine::config_hash(&(of, most))?;
        let known = std::fs::read(&chosen).ok().and_then(|b| serde_json::from_slice::<(String, Vec<String>)>(&b).ok());
        let names = match known.filter(|(of, _)| *of == key) {
            Some((_, names)) => names,
            None => {
                let names: Vec<_> = stackexchange::largest_sites(&dumps, most)?.into_iter().map(|site| site.name).collect();
                std::fs::create_dir_all(build.config.out.join("read")).map_err(Error::io("create", &chosen))?;
                crate::files::write_atomic(&chosen, json!((key, &names)).to_string().as_bytes())?;
                names
            }
        };
        all.retain(|name, _| names.contains(name));
    }
    Ok(all.into_values().collect())
}

/// Files as they are named; of folders, those whose names end like a dump's.
fn files(paths: &[PathBuf], endings: &[&str]) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for path in paths {
        if path.is_dir() {
            let fits = |p: &PathBuf| endings.iter().any(|end| p.to_string_lossy().ends_with(end));
            all.extend(inputs::files_in(path)?.into_iter().filter(fits));
        } else {
            all.push(path.clone());
        }
    }
    Ok(all)
}

impl Read {
    pub(super) fn run(&self, build: &Build<'_>) -> Result<()> {
        let spec = &self.spec;
        let source: Source = spec.source.parse()?;
        build.stage(spec, |_, out| {
            let roots = self.roots.get(out.index() as usize).map_or(&[][..], Vec::as_slice);
            if source == Source::Stackexchange {
                return threads(build, roots, out);
            }
            let mut skipped = Skipped::new();
            let read = |sink: &mut Sink<'_>| {
                for root in roots {
                    let more = match read(build, source, root, sink) {
                        // One damaged file among thousands, or a stranger among them, is written down; a disk that fails is not.
                        Err(e @ Error::BadFile { .. }) => {
                            sink(Err(Rejected { place: root.display().to_string(), reason: e.to_string() }))?;
                            continue;
                        }
                        more => more?,
                    };
                    more.into_iter().for_each(|(reason, n)| *skipped.entry(reason).or_default() += n);
                }
                Ok(())
            };
            out.map(read, |record| record, |out, record| out.keep(&record))?;
            note(out, &skipped)
        })?;
        Ok(())
    }
}

/// Writes down what was passed over.
fn note(out: &mut Output<'_>, skipped: &Skipped) -> Result<()> {
    if skipped.is_empty() {
        return Ok(());
    }
    out.blob("skipped.json", format!("{}\n", json!(skipped)).as_bytes())
}

fn read(build: &Build<'_>, source: Source, path: &Path, sink: &mut Sink<'_>) -> Result<Skipped> {
    let sources = &build.config.sources;
    let named = |counts: BTreeMap<&'static str, u64>| counts.into_iter().map(|(k, n)| (k.to_owned(), n)).collect::<Skipped>();
    let crawl = |title_in_text, sink: &mut Sink<'_>| {
        let options = commoncrawl::Options { title_in_text, ..Default::default() };
        Ok(named(commoncrawl::read(path, &options, sink)?.skipped))
    };
    match source {
        Source::Commoncrawl => crawl(false, sink),
        Source::C4 => {
            let name = path.to_string_lossy();
            if name.trim_end_matches(".gz").ends_with(".warc") || name.trim_end_matches(".gz").ends_with(".wet") {
                return crawl(true, sink);
            }
            c4::read(path, c4::Options::default(), sink)?;
            Ok(Skipped::new())
        }
        Source::Github => {
            let options = sources.github.as_ref().map(|s| s.read.clone()).unwrap_or_default();
            Ok(named(github::read(path, &options, sink)?))
        }
        Source::Wikipedia => {
            let options = sources.wikipedia.as_ref().map(|s| s.read.clone()).unwrap_or_default();
            let counts = wikipedia::read(path, &options, sink)?;
            Ok([("other_namespaces".to_owned(), counts.other_namespaces)].into_iter().filter(|(_, n)| *n > 0).collect())
        }
        Source::Books => {
            let options = sources.books.as_ref().map(|s| s.rules.clone()).unwrap_or_default();
            books::read(path, &options, sink).map(|()| Skipped::new())
        }
        Source::Arxiv => {
            let options = sources.arxiv.as_ref().map(|s| s.rules.clone()).unwrap_or_default();
            arxiv::read(path, &options, sink).map(|()| Skipped::new())
        }
        Source::Stackexchange => Ok(Skipped::new()), // see `threads`
    }
}

/// A site: its posts, sorted by threads, folded to documents.
fn threads(build: &Build<'_>, dumps: &[PathBuf], out: &mut Output<'_>) -> Result<()> {
    let options = build.config.sources.stackexchange.as_ref().map(|s| s.rules.clone()).unwrap_or_default();
    let site = dumps.first().map(|p| stackexchange::site_name(p)).unwrap_or_default();
    let sorted = out.path("posts.parquet");
    let mut writer = PostWriter::create(&sorted)?;
    let mut skipped = Skipped::new();
    for dump in dumps {
        let read = stackexchange::posts(dump, &mut |post| match post {
            Ok(post) => writer.push(&to_row(&post)),
            Err(rejected) => out.reject(&rejected),
        });
        match read {
            Ok(others) => *skipped.entry("not_a_post".into()).or_default() += others,
            Err(e @ Error::BadFile { .. }) => {
                out.reject(&Rejected { place: dump.display().to_string(), reason: e.to_string() })?
            }
            Err(e) => return Err(e),
        }
    }
    writer.finish()?.publish()?;
    let mut fold =
        Fold { site: &site, options: &options, question: None, answers: Vec::new(), bytes: 0, orphans: 0, untitled: 0 };
    build.shuffle()?.threads(std::slice::from_ref(&sorted), &mut |row| {
        if let Some(record) = fold.push(row)? {
            out.read(&record);
            out.keep(&record)?;
        }
        Ok(())
    })?;
    if let Some(record) = fold.finish() {
        out.read(&record);
        out.keep(&record)?;
    }
    skipped.extend([("answer_without_question".to_owned(), fold.orphans), ("nothing_to_learn".to_owned(), fold.untitled)]);
    skipped.retain(|_, n| *n > 0);
    std::fs::remove_file(&sorted).map_err(Error::io("remove", &sorted))?;
    note(out, &skipped)
}

fn to_row(post: &stackexchange::Post) -> engine::Post {
    engine::Post {
        thread: post.parent.unwrap_or(post.id),
        answer: post.kind == stackexchange::Kind::Answer,
        score: post.score,
        post: post.id,
        text: post.body.clone(),
        meta: json!({ "title": post.title, "tags": post.tags, "date": post.date }).to_string(),
    }
}

fn of_row(row: engine::Post) -> stackexchange::Post {
    // Written by `to_row`; what is not there is empty.
    let meta: Value = serde_json::from_str(&row.meta).unwrap_or_default();
    let text = |key: &str| meta[key].as_str().unwrap_or_default().to_owned();
    stackexchange::Post {
        id: row.post,
        kind: if row.answer { stackexchange::Kind::Answer } else { stackexchange::Kind::Question },
        parent: row.answer.then_some(row.thread),
        score: row.score,
        title: text("title"),
        body: row.text,
        tags: meta["tags"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect(),
        date: text("date"),
    }
}

/// Consecutive posts of a thread to a document.
struct Fold<'a> {
    site: &'a str,
    options: &'a stackexchange::Options,
    question: Option<stackexchange::Post>,
    answers: Vec<stackexchange::Post>,
    bytes: usize,
    orphans: u64,
    untitled: u64,
}

/// Bytes of answers that a thread is held with; those with lower scores are left out.
const MAX_THREAD: usize = 64 << 20;

impl Fold<'_> {
    fn push(&mut self, row: engine::Post) -> Result<Option<Record>> {
        let post = of_row(row);
        if post.kind == stackexchange::Kind::Question {
            let done = self.finish();
            self.bytes = 0;
            self.question = Some(post);
            return Ok(done);
        }
        if self.question.as_ref().map(|q| q.id) != post.parent {
            self.orphans += 1;
            return Ok(None);
        }
        self.bytes += post.body.len();
        if self.bytes <= MAX_THREAD {
            self.answers.push(post);
        }
        Ok(None)
    }

    fn finish(&mut self) -> Option<Record> {
        let question = self.question.take()?;
        let mut answers = std::mem::take(&mut self.answers);
        let record = stackexchange::thread(self.site, &question, &mut answers, self.options);
        self.untitled += u64::from(record.is_none());
        record
    }
}
