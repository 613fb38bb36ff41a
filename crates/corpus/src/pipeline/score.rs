//! The fourth stage: what models say of a document, and whether it is in an evaluation set.

use std::collections::BTreeMap;

use serde_json::json;

use super::benchmarks::{SEEN, Seen};
use super::{Build, inputs};
use crate::engine::{StageSpec, config_hash, input_hash, read_table};
use crate::error::{Error, Result};
use crate::fasttext::{FastText, Lid};
use crate::filters::decontaminate::{Contamination, ItemRun};
use crate::filters::perplexity::{Cutoffs, PerplexityModel, bucket};
use crate::lm::Model;
use crate::sources::{PageQuality, Source};
use crate::{Cleaned, Record};

const SETS: &str = "decontaminate.files";

pub(super) fn plan(build: &Build<'_>, source: &dyn Source, dedup: &StageSpec) -> Result<StageSpec> {
    let config = build.config;
    let quality = source.quality();
    let rules = quality.page.map(|p| (p.languages, p.min_language, p.buckets, p.classifier_label, p.min_classifier));
    // Models count by their contents: a new one under the old name is another.
    let hash = |path| input_hash(path).ok();
    let lms: BTreeMap<_, _> = match quality.page {
        Some(_) => config.models.lm.iter().map(|(l, f)| (l, (hash(&f.sentencepiece), hash(&f.ngrams), f.cutoffs))).collect(),
        None => BTreeMap::new(),
    };
    let classifier = quality.page.and_then(|_| config.models.classifier.as_deref().map(hash));
    let sets = inputs::files(SETS, &config.decontaminate.files)?;
    let sets = sets.iter().map(|file| input_hash(file)).collect::<Result<Vec<_>>>()?;
    let models = json!({ "lid": config.models.lid.as_deref().map(hash), "lms": lms, "classifier": classifier });
    let mut settings = json!({
        "source": source.common().name, "rules": rules, "english": quality.min_english, "models": models, "sets": sets,
        "ngram": config.decontaminate.ngram,
    });
    // Only where they say something: what was built without them is not to be built again.
    if !build.items.is_empty() {
        settings["items"] = config_hash(&build.items)?.into();
    }
    if !config.decontaminate.remove {
        settings["remove"] = false.into();
    }
    build.next("score", source, dedup, &settings)
}

pub(super) fn run(build: &Build<'_>, source: &dyn Source, dedup: &StageSpec, spec: &StageSpec) -> Result<()> {
    let made = dedup.complete(build.patience)?;
    let judge = Judge { source, models: build.models()?, remove: build.config.decontaminate.remove };
    judge.tell(build);
    build.stage(spec, |shard, out| {
        if let (true, Some(table), Some(made)) = (judge.asks_nothing(), shard.files.first(), made.get(out.index() as usize)) {
            return out.pass(table, made);
        }
        let tables = shard.files.clone();
        let mut seen = Seen::default();
        out.map(
            |sink| tables.iter().try_for_each(|path| read_table(path, sink)),
            |mut record| {
                let (reason, items) = match judge.judge(&mut record) {
                    Some(reason) => (Some(reason), Vec::new()),
                    None => judge.contaminated(&mut record),
                };
                let cleaned = match reason {
                    Some(reason) => Cleaned::dropped(reason),
                    None => Cleaned::kept(std::mem::take(&mut record.text)),
                };
                (record, cleaned, items)
            },
            |out, (record, cleaned, items)| {
                seen.add(&items);
                out.cleaned(record, cleaned)
            },
        )?;
        if build.items.is_empty() { Ok(()) } else { out.blob(SEEN, &seen.to_bytes()?) }
    })?;
    Ok(())
}

/// The models of a build, open.
pub(super) struct OpenModels {
    lid: Option<Lid>,
    lms: BTreeMap<String, (PerplexityModel, Option<Cutoffs>)>,
    classifier: Option<FastText>,
    contamination: Option<Contamination>,
}

impl OpenModels {
    /// Opens the models that the sources of a build ask.
    ///
    /// # Errors
    /// Those of the files, and [`Error::BadValue`] for a classifier without the label that is asked for.
    pub(super) fn open(build: &Build<'_>) -> Result<Self> {
        let config = build.config;
        let pages: Vec<_> = config.sources.used().into_iter().filter_map(|s| Some((s.common(), s.quality().page?))).collect();
        let lid = config.models.lid.as_deref().map(Lid::open).transpose()?;
        let (mut lms, mut classifier) = (BTreeMap::new(), None);
        if !pages.is_empty() {
            let wanted = |language: &String| pages.iter().any(|(_, p)| p.languages.is_empty() || p.languages.contains(language));
            for (language, files) in config.models.lm.iter().filter(|(l, _)| wanted(l)) {
                let model = PerplexityModel::new(build.tokens.pieces(&files.sentencepiece)?, Model::open(&files.ngrams)?);
                lms.insert(language.clone(), (model, files.cutoffs.or_else(|| Cutoffs::ccnet(language))));
            }
            classifier = config.models.classifier.as_deref().map(FastText::open).transpose()?;
            for (common, page) in &pages {
                let labels = classifier.as_ref().map_or(&[][..], FastText::labels);
                if classifier.is_some() && !labels.iter().any(|label| label == page.classifier_label) {
                    let some = labels.iter().take(8).map(String::as_str).collect::<Vec<_>>().join(", ");
                    let problem = format!("expected a label of models.classifier ({some}), got `{}`", page.classifier_label);
                    return Err(Error::bad_value(common.key("classifier_label"), problem, "name the label of pages that stay"));
                }
            }
        }
        let sets = &config.decontaminate;
        let files = inputs::files(SETS, &sets.files)?;
        let mut contamination = (!files.is_empty()).then(|| Contamination::open(&files, sets.ngram)).transpose()?;
        if !build.items.is_empty() {
            contamination.get_or_insert_with(|| Contamination::of(&[], sets.ngram)).watch(&build.items);
        }
        Ok(Self { lid, lms, classifier, contamination })
    }
}

/// The models, and what a source asks of them.
struct Judge<'a> {
    source: &'a dyn Source,
    models: &'a OpenModels,
    /// What is in an evaluation set goes.
    remove: bool,
}

impl Judge<'_> {
    /// Says which filters are left out.
    fn tell(&self, build: &Build<'_>) {
        let (models, quality) = (self.models, self.source.quality());
        let needs = [
            (models.lid.is_none() && (quality.page.is_some() || quality.min_english.is_some()), "models.lid"),
            (models.lms.is_empty() && quality.page.is_some(), "models.lm"),
            (models.classifier.is_none() && quality.page.is_some(), "models.classifier"),
        ];
        let missing: Vec<_> = needs.iter().filter(|(missing, _)| *missing).map(|(_, key)| *key).collect();
        if !missing.is_empty() {
            let name = self.source.common().name;
            build.observer.note(&format!("{name}: without {} the filters that need it are left out", missing.join(", ")));
        }
    }

    /// Whether every document stays as it is.
    fn asks_nothing(&self) -> bool {
        let quality = self.source.quality();
        quality.page.is_none() && (quality.code || self.models.lid.is_none()) && self.models.contamination.is_none()
    }

    /// Why a document goes; what was found out is added to its metadata.
    fn judge(&self, record: &mut Record) -> Option<&'static str> {
        let quality = self.source.quality();
        let mut language = None;
        if let Some(lid) = self.models.lid.as_ref().filter(|_| !quality.code)
            && let Some(found) = lid.identifier().identify(&record.text)
        {
            language = Some((found.label.to_owned(), found.score));
            record.meta.insert("lid".into(), found.label.into());
            record.meta.insert("lid_score".into(), rounded(found.score));
        }
        if let (Some(min), Some(_)) = (quality.min_english, &self.models.lid)
            && !language.as_ref().is_some_and(|(label, score)| label == "en" && *score >= min)
        {
            return Some("not_english");
        }
        if let Some(page) = quality.page
            && let Some(reason) = self.judge_page(record, page, language)
        {
            return Some(reason);
        }
        None
    }

    /// Whether a document goes for what it has of evaluation sets, and what it has of benchmarks' questions.
    fn contaminated(&self, record: &mut Record) -> (Option<&'static str>, Vec<ItemRun>) {
        let Some(contamination) = &self.models.contamination else { return (None, Vec::new()) };
        let found = contamination.look(&record.text);
        let Some(words) = found.words else { return (None, found.items) };
        record.meta.insert("contamination".into(), words.into());
        (self.remove.then_some("contaminated"), found.items)
    }

    /// CCNet's filters and the paper's classifier.
    fn judge_page(&self, record: &mut Record, page: PageQuality<'_>, language: Option<(String, f32)>) -> Option<&'static str> {
        let OpenModels { lid, lms, classifier, .. } = self.models;
        if lid.is_some() {
            let Some((label, score)) = &language else { return Some("no_language") };
            if *score < page.min_language {
                return Some("language_unsure");
            }
            if !page.languages.is_empty() && !page.languages.contains(label) {
                return Some("other_language");
            }
        }
        // Without language identification a single model is meant for all.
        let label = language.as_ref().map(|(label, _)| label.as_str());
        let only = || (lid.is_none() && lms.len() == 1).then(|| lms.values().next()).flatten();
        let model = label.map_or_else(only, |label| lms.get(label));
        let perplexity = model.and_then(|(model, _)| model.perplexity(&record.text));
        let place = bucket(perplexity, model.and_then(|(_, cutoffs)| cutoffs.as_ref()));
        if let Some(perplexity) = perplexity {
            record.meta.insert("perplexity".into(), perplexity.into());
        }
        record.meta.insert("bucket".into(), place.as_str().into());
        if !page.buckets.contains(&place) {
            return Some("perplexity");
        }
        if let Some(classifier) = classifier {
            let label = page.classifier_label;
            let probability = classifier.predictor().probability(&record.text, label).unwrap_or(0.0);
            record.meta.insert(format!("{label}_prob"), rounded(probability));
            if probability < page.min_classifier {
                return Some("classifier");
            }
        }
        None
    }
}

/// A float32 as the decimal that it is read as.
fn rounded(x: f32) -> serde_json::Value {
    (f64::from(x) * 1e4).round().to_string().parse::<f64>().map_or(serde_json::Value::Null, |x| (x / 1e4).into())
}
