//! The second stage: each document by its source's rules, alone.

use serde_json::json;

use super::Build;
use super::config::Common;
use super::names::Source;
use crate::engine::{StageSpec, read_table};
use crate::error::Result;
use crate::filters::c4::{BadWords, C4Rules, Scope, clean_page};
use crate::filters::ccnet::{self, CcnetRules};
use crate::filters::pii;
use crate::sources::{arxiv, books, github, stackexchange, wikipedia};
use crate::{Cleaned, Record};

pub(super) fn plan(build: &Build<'_>, common: Common<'_>, read: &StageSpec) -> Result<StageSpec> {
    let sources = &build.config.sources;
    let settings = match common.source {
        Source::Commoncrawl => json!(sources.commoncrawl.as_ref().map(|s| s.min_chars)),
        Source::C4 => json!(sources.c4.as_ref().map(|s| (s.rules, &s.bad_words))),
        Source::Github => json!(sources.github.as_ref().map(|s| &s.rules)),
        Source::Wikipedia => json!(sources.wikipedia.as_ref().map(|s| &s.rules)),
        Source::Books => json!(sources.books.as_ref().map(|s| &s.rules)),
        Source::Arxiv => json!(sources.arxiv.as_ref().map(|s| &s.rules)),
        Source::Stackexchange => json!(null),
    };
    build.next("clean", read, &(settings, common.mask_pii))
}

pub(super) fn run(build: &Build<'_>, common: Common<'_>, read: &StageSpec, spec: &StageSpec) -> Result<()> {
    let cleaner = Cleaner::new(build, common)?;
    read.complete(build.patience)?;
    build.stage(spec, |shard, out| {
        let table = shard.files.clone();
        out.clean(|sink| table.iter().try_for_each(|path| read_table(path, sink)), |record| cleaner.clean(record))
    })?;
    Ok(())
}

/// A source's rules, ready.
struct Cleaner<'a> {
    build: &'a Build<'a>,
    common: Common<'a>,
    c4: Option<C4Rules>,
}

impl<'a> Cleaner<'a> {
    fn new(build: &'a Build<'_>, common: Common<'a>) -> Result<Self> {
        let c4 = build.config.sources.c4.as_ref().filter(|s| s.rules && common.source == Source::C4);
        let c4 = c4.map(|s| -> Result<C4Rules> {
            let bad_words = s.bad_words.as_ref().map(|path| BadWords::open(path, Scope::Page)).transpose()?;
            Ok(C4Rules { bad_words, ..C4Rules::default() })
        });
        Ok(Self { build, common, c4: c4.transpose()? })
    }

    fn clean(&self, record: &mut Record) -> Cleaned {
        let sources = &self.build.config.sources;
        let mut cleaned = match self.common.source {
            Source::Commoncrawl => {
                let min_chars = sources.commoncrawl.as_ref().map_or(300, |s| s.min_chars);
                ccnet::clean_page(&record.text, &CcnetRules { min_chars })
            }
            Source::C4 => match &self.c4 {
                Some(rules) => clean_page(&record.text, rules),
                None => kept(&record.text),
            },
            Source::Github => {
                // Copies are told by the raw file, before its header goes.
                let key = github::content_key(record.text.as_bytes());
                record.meta.insert(super::dedup::CONTENT_KEY.into(), format!("{key:032x}").into());
                let path = record.meta.get("path").and_then(|p| p.as_str());
                let default = github::Options::default();
                github::clean(&record.text, path, sources.github.as_ref().map_or(&default, |s| &s.rules))
            }
            Source::Wikipedia => {
                let default = wikipedia::CleanOptions::default();
                wikipedia::clean_record(record, sources.wikipedia.as_ref().map_or(&default, |s| &s.rules))
            }
            Source::Books => {
                let default = books::Options::default();
                books::clean(&record.text, sources.books.as_ref().map_or(&default, |s| &s.rules))
            }
            Source::Arxiv => {
                let default = arxiv::Options::default();
                arxiv::clean(&record.text, sources.arxiv.as_ref().map_or(&default, |s| &s.rules))
            }
            Source::Stackexchange => kept(&record.text), // its HTML is read when threads are made
        };
        if self.common.mask_pii && cleaned.dropped.is_none() {
            let (text, removed) = pii::mask(&cleaned.text);
            if !removed.is_empty() {
                cleaned.text = text.into_owned();
                cleaned.removed.extend(removed);
            }
        }
        cleaned
    }
}

fn kept(text: &str) -> Cleaned {
    if text.trim().is_empty() { Cleaned::dropped("empty") } else { Cleaned::kept(text.to_owned()) }
}

/// A text by a source's rules with their default settings: what `recua data clean` does. `name` is a path (GitHub) or a language
/// code (Wikipedia).
pub fn clean_text(source: Source, text: &str, name: Option<&str>) -> Cleaned {
    match source {
        Source::Commoncrawl => ccnet::clean_page(text, &CcnetRules::default()),
        Source::C4 => clean_page(text, &C4Rules::default()),
        Source::Github => github::clean(text, name, &github::Options::default()),
        Source::Wikipedia => wikipedia::clean(text, name.unwrap_or("en"), &wikipedia::CleanOptions::default()),
        Source::Books => books::clean(text, &books::Options::default()),
        Source::Arxiv => arxiv::clean(text, &arxiv::Options::default()),
        Source::Stackexchange => stackexchange::clean(text, &stackexchange::Options::default()),
    }
}
