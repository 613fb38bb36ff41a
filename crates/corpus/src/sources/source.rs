//! What a source of documents is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::settings::Common;
use crate::dedup::Rule;
use crate::engine::Shuffle;
use crate::error::{Error, Result};
use crate::filters::perplexity::Bucket;
use crate::{Cleaned, Record, Rejected, Sink};

/// What is in the input and is no document, by reason.
pub type Skipped = BTreeMap<&'static str, u64>;

/// Cleans a document; what it finds out is added to the metadata.
pub type Cleaner<'a> = Box<dyn Fn(&mut Record) -> Cleaned + Sync + 'a>;

/// Which of the files that a configuration names are dumps.
pub enum Inputs {
    /// Each that is named; a folder is read as a whole.
    Whole,
    /// Each file that is named; of folders, the files whose names fit. The names are in lower case, without the ending of a packing.
    Files(fn(&str) -> bool),
}

/// What a reader may use beside its dumps.
pub struct ReadTools<'a> {
    /// A file that nobody else uses and that the reader removes again.
    pub scratch: PathBuf,
    /// Sorts what does not fit in memory.
    pub shuffle: &'a (dyn Fn() -> Result<&'a Shuffle> + Sync),
}

/// What models must say of a document for it to stay.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quality<'a> {
    /// The texts are in no natural language, and none is looked for.
    pub code: bool,
    /// Least probability of English, where there is a model that tells languages.
    pub min_english: Option<f32>,
    /// CCNet's filters.
    pub page: Option<PageQuality<'a>>,
}

/// CCNet's filters of pages, and the paper's classifier.
#[derive(Clone, Copy, Debug)]
pub struct PageQuality<'a> {
    /// Languages that stay. Empty: all.
    pub languages: &'a [String],
    /// Least probability of the language.
    pub min_language: f32,
    /// Buckets of perplexity that stay.
    pub buckets: &'a [Bucket],
    /// The classifier's label of pages that stay.
    pub classifier_label: &'a str,
    /// Its least probability.
    pub min_classifier: f32,
}

/// A source of documents, with its settings.
///
/// The settings that it gives of a stage are those that the stage's result depends on; where they change, the stage is run again.
pub trait Source: Sync {
    /// What it has in common with all others.
    fn common(&self) -> Common<'_>;

    /// Files that come with its dumps and are none, by their names in lower case without the ending of a packing: nobody misses them.
    fn company(&self) -> &'static [&'static str] {
        &[]
    }

    /// Looks at its own settings and the files that they name.
    ///
    /// # Errors
    /// [`Error::BadValue`] that names the key, and those of the files.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// Which files are its dumps.
    fn inputs(&self) -> Inputs;

    /// The dumps of each shard. `out` is the build's folder, for what is to be found out once only.
    ///
    /// # Errors
    /// Those of reading.
    fn shards(&self, dumps: Vec<PathBuf>, out: &Path) -> Result<Vec<Vec<PathBuf>>> {
        let _ = out;
        Ok(dumps.into_iter().map(|dump| vec![dump]).collect())
    }

    /// What reading depends on.
    fn read_settings(&self) -> Value;

    /// Reads a shard's dumps.
    ///
    /// # Errors
    /// A disk that fails, and the sink's. What is wrong with a dump or a record goes to the sink.
    fn read(&self, dumps: &[PathBuf], tools: &ReadTools<'_>, sink: &mut Sink<'_>) -> Result<Skipped>;

    /// What cleaning depends on.
    fn clean_settings(&self) -> Value {
        Value::Null
    }

    /// Its rules, ready.
    ///
    /// # Errors
    /// Those of files that it needs.
    fn cleaner(&self) -> Result<Cleaner<'_>>;

    /// A text by its rules: what `recua data clean` does. `name` is a path (GitHub) or a language code (Wikipedia).
    fn clean_text(&self, text: &str, name: Option<&str>) -> Cleaned;

    /// What of several documents counts as one.
    fn duplicates(&self) -> Rule {
        Rule::Nothing
    }

    /// Whether cleaning leaves a [`CONTENT_KEY`](crate::dedup::CONTENT_KEY) in the metadata.
    fn keyed(&self) -> bool {
        false
    }

    /// What models must say of its documents.
    fn quality(&self) -> Quality<'_> {
        Quality::default()
    }
}

/// Reads dumps one after the other. One damaged file among thousands, or a stranger among them, is written down; a disk that fails is not.
pub(super) fn each(
    dumps: &[PathBuf],
    sink: &mut Sink<'_>,
    mut read: impl FnMut(&Path, &mut Sink<'_>) -> Result<Skipped>,
) -> Result<Skipped> {
    let mut skipped = Skipped::new();
    for dump in dumps {
        match read(dump, sink) {
            Err(e @ Error::BadFile { .. }) => {
                sink(Err(Rejected { place: dump.display().to_string(), reason: e.to_string() }))?;
            }
            more => more?.into_iter().for_each(|(reason, n)| *skipped.entry(reason).or_default() += n),
        }
    }
    Ok(skipped)
}

/// A text that needs no cleaning.
pub(super) fn as_it_is(text: &str) -> Cleaned {
    if text.trim().is_empty() { Cleaned::dropped("empty") } else { Cleaned::kept(text.to_owned()) }
}
