//! The fourth stage: what models say of a document, and whether it is in an evaluation set.

use std::collections::BTreeMap;

use serde_json::json;

use super::Build;
use super::config::{Common, CommonCrawl};
use super::inputs;
use super::names::Source;
use crate::engine::{StageSpec, input_hash, read_table};
use crate::error::Result;
use crate::fasttext::{FastText, Lid};
use crate::filters::decontaminate::Contamination;
use crate::filters::perplexity::{Cutoffs, PerplexityModel, bucket};
use crate::lm::Model;
use crate::{Cleaned, Record};

pub(super) fn plan(build: &Build<'_>, common: Common<'_>, dedup: &StageSpec) -> Result<StageSpec> {
    let config = build.config;
    let crawl = config.sources.commoncrawl.as_ref().filter(|_| common.source == Source::Commoncrawl);
    let rules = crawl.map(|s| (&s.languages, s.min_language, &s.buckets, &s.classifier_label, s.min_classifier));
    let english = config.sources.c4.as_ref().filter(|s| s.rules && common.source == Source::C4).map(|s| s.min_english);
    // Models count by their contents: a new one under the old name is another.
    let hash = |path| input_hash(path).ok();
    let lms: BTreeMap<_, _> = match crawl {
        Some(_) => config.models.lm.iter().map(|(l, f)| (l, (hash(&f.sentencepiece), hash(&f.ngrams), f.cutoffs))).collect(),
        None => BTreeMap::new(),
    };
    let classifier = crawl.and_then(|_| config.models.classifier.as_deref().map(hash));
    let mut sets = Vec::new();
    for file in inputs::expand("decontaminate.files", &config.decontaminate.files)? {
        for file in inputs::files_in(&file)? {
            sets.push(input_hash(&file)?);
        }
    }
    let models = json!({ "lid": config.models.lid.as_deref().map(hash), "lms": lms, "classifier": classifier });
    build.next(
        "score",
        dedup,
        &json!({
            "source": common.source, "rules": rules, "english": english, "models": models, "sets": sets,
            "ngram": config.decontaminate.ngram,
        }),
    )
}

pub(super) fn run(build: &Build<'_>, common: Common<'_>, dedup: &StageSpec, spec: &StageSpec) -> Result<()> {
    dedup.complete(build.patience)?;
    let scorer = Scorer::open(build, common)?;
    build.stage(spec, |shard, out| {
        let tables = shard.files.clone();
        out.clean(
            |sink| tables.iter().try_for_each(|path| read_table(path, sink)),
            |record| match scorer.judge(record) {
                Some(reason) => Cleaned::dropped(reason),
                None => Cleaned::kept(std::mem::take(&mut record.text)),
            },
        )
    })?;
    Ok(())
}

/// The models, open.
struct Scorer<'a> {
    source: Source,
    crawl: Option<&'a CommonCrawl>,
    /// Least probability of English, where C4's rules are applied.
    english: Option<f32>,
    lid: Option<Lid>,
    lms: BTreeMap<&'a str, (PerplexityModel, Option<Cutoffs>)>,
    classifier: Option<FastText>,
    contamination: Option<Contamination>,
}

impl<'a> Scorer<'a> {
    fn open(build: &'a Build<'_>, common: Common<'_>) -> Result<Self> {
        let config = build.config;
        let source = common.source;
        let crawl = config.sources.commoncrawl.as_ref().filter(|_| source == Source::Commoncrawl);
        let english = config.sources.c4.as_ref().filter(|s| s.rules && source == Source::C4).map(|s| s.min_english);
        let mut missing = Vec::new();
        let lid = config.models.lid.as_deref().map(Lid::open).transpose()?;
        let mut lms = BTreeMap::new();
        let mut classifier = None;
        if let Some(crawl) = crawl {
            let wanted = |language: &&String| crawl.languages.is_empty() || crawl.languages.contains(language);
            for (language, files) in config.models.lm.iter().filter(|(l, _)| wanted(l)) {
                let model = PerplexityModel::new(build.tokens.pieces(&files.sentencepiece)?, Model::open(&files.ngrams)?);
                lms.insert(language.as_str(), (model, files.cutoffs.or_else(|| Cutoffs::ccnet(language))));
            }
            classifier = config.models.classifier.as_deref().map(FastText::open).transpose()?;
            let needs =
                [(lid.is_some(), "models.lid"), (!lms.is_empty(), "models.lm"), (classifier.is_some(), "models.classifier")];
            missing.extend(needs.iter().filter(|(there, _)| !there).map(|(_, key)| *key));
        } else if english.is_some() && lid.is_none() {
            missing.push("models.lid");
        }
        if !missing.is_empty() {
            build.observer.note(&format!("{source}: without {} the filters that need it are left out", missing.join(", ")));
        }
        let sets = &config.decontaminate;
        let files = inputs::expand("decontaminate.files", &sets.files)?;
        let contamination = (!files.is_empty()).then(|| -> Result<_> {
            let mut all = Vec::new();
            for file in &files {
                all.extend(inputs::files_in(file)?);
            }
            Contamination::open(&all, sets.ngram)
        });
        Ok(Self { source, crawl, english, lid, lms, classifier, contamination: contamination.transpose()? })
    }

    /// Why a document goes; what was found out is added to its metadata.
    fn judge(&self, record: &mut Record) -> Option<&'static str> {
        let mut language = None;
        // The language of code is not a natural one.
        if let Some(lid) = self.lid.as_ref().filter(|_| self.source != Source::Github)
            && let Some(found) = lid.identifier().identify(&record.text)
        {
            language = Some((found.label.to_owned(), found.score));
            record.meta.insert("lid".into(), found.label.into());
            record.meta.insert("lid_score".into(), rounded(found.score));
        }
        if let (Some(min), Some(_)) = (self.english, &self.lid)
            && !language.as_ref().is_some_and(|(label, score)| label == "en" && *score >= min)
        {
            return Some("not_english");
        }
        if let Some(crawl) = self.crawl {
            if self.lid.is_some() {
                let Some((label, score)) = &language else { return Some("no_language") };
                if *score < crawl.min_language {
                    return Some("language_unsure");
                }
                if !crawl.languages.is_empty() && !crawl.languages.contains(label) {
                    return Some("other_language");
                }
            }
            // Without language identification a single model is meant for all.
            let label = language.as_ref().map(|(label, _)| label.as_str());
            let only = || (self.lid.is_none() && self.lms.len() == 1).then(|| self.lms.values().next()).flatten();
            let model = label.map_or_else(only, |label| self.lms.get(label));
            let perplexity = model.and_then(|(model, _)| model.perplexity(&record.text));
            let place = bucket(perplexity, model.and_then(|(_, cutoffs)| cutoffs.as_ref()));
            if let Some(perplexity) = perplexity {
                record.meta.insert("perplexity".into(), perplexity.into());
            }
            record.meta.insert("bucket".into(), place.as_str().into());
            if !crawl.buckets.contains(&place) {
                return Some("perplexity");
            }
            if let Some(classifier) = &self.classifier {
                let label = &crawl.classifier_label;
                let probability = classifier.predictor().probability(&record.text, label).unwrap_or(0.0);
                record.meta.insert(format!("{label}_prob"), rounded(probability));
                if probability < crawl.min_classifier {
                    return Some("classifier");
                }
            }
        }
        if let Some(contamination) = &self.contamination
            && let Some(words) = contamination.found(&record.text)
        {
            record.meta.insert("contamination".into(), words.into());
            return Some("contaminated");
        }
        None
    }
}

/// A float32 as the decimal that it is read as.
fn rounded(x: f32) -> serde_json::Value {
    (f64::from(x) * 1e4).round().to_string().parse::<f64>().map_or(serde_json::Value::Null, |x| (x / 1e4).into())
}
