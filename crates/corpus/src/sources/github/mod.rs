//! Source code: projects under MIT, BSD and Apache licences, without the headers that all their files have.
//!
//! LLaMA (2.1): such projects of the GitHub dataset on BigQuery; low quality filtered by the length of lines and the share
//! of alphanumeric characters; boilerplate such as headers removed with regular expressions; deduplicated at the file
//! level, exact matches. The numbers are RedPajama's (branch `rp_v1`, `data_prep/github`). The steps:
//!
//! 1. [`read`] makes a record of each file of a source tree, of JSON lines or of Parquet; [`licence`] says which projects.
//! 2. [`content_key`] of the raw text tells copies.
//! 3. [`clean`] takes the header out and says whether the file stays.

mod filter;
mod header;
pub mod licence;
mod read;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_128;

pub use filter::{Shape, count_pieces, is_source, is_source_redpajama};
pub use header::{strip_header, strip_header_redpajama};
pub use read::{ReadOptions, read};

use super::{Cleaner, Common, Inputs, Quality, ReadTools, Skipped, Source, settings, source::each};
use crate::dedup::{CONTENT_KEY, Rule};
use crate::error::Result;
use crate::{Cleaned, Removed, Sink};

settings::settings! {
    /// Source files of projects under MIT, BSD and Apache licences (LLaMA section 2.1).
    Github, github, paper = (4.5, 0.64),
    {
        /// What is read.
        read: ReadOptions = ReadOptions::default(),
        /// What stays.
        rules: Options = Options::default(),
        /// Removes files that another project has, byte for byte.
        exact_duplicates: bool = true,
    }
}

impl Source for Github {
    fn common(&self) -> Common<'_> {
        self.shared()
    }

    fn check(&self) -> Result<()> {
        settings::share(self.shared(), "rules.min_alphanumeric", self.rules.min_alphanumeric)
    }

    fn inputs(&self) -> Inputs {
        Inputs::Whole
    }

    fn read_settings(&self) -> Value {
        json!(self.read)
    }

    fn read(&self, dumps: &[PathBuf], _: &ReadTools<'_>, sink: &mut Sink<'_>) -> Result<Skipped> {
        each(dumps, sink, |dump, sink| read(dump, &self.read, sink))
    }

    fn clean_settings(&self) -> Value {
        json!(self.rules)
    }

    fn cleaner(&self) -> Result<Cleaner<'_>> {
        Ok(Box::new(|record| {
            // Copies are told by the raw file, before its header goes.
            let key = content_key(record.text.as_bytes());
            record.meta.insert(CONTENT_KEY.into(), format!("{key:032x}").into());
            let path = record.meta.get("path").and_then(Value::as_str);
            clean(&record.text, path, &self.rules)
        }))
    }

    fn clean_text(&self, text: &str, name: Option<&str>) -> Cleaned {
        clean(text, name, &self.rules)
    }

    fn duplicates(&self) -> Rule {
        if self.exact_duplicates { Rule::Exact } else { Rule::Nothing }
    }

    fn keyed(&self) -> bool {
        true
    }

    fn quality(&self) -> Quality<'_> {
        Quality { code: true, ..Quality::default() }
    }
}

/// Which files stay, and what of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// RedPajama's rules to the letter: its header rule ([`strip_header_redpajama`]), extensions as the end of the path
    /// ([`is_source_redpajama`]), only `LICENSE` in a project's root left out, licences in files not looked at.
    pub redpajama: bool,
    /// Whether notices of copyright and licence are taken out.
    pub strip_headers: bool,
    /// Files with a longer line go (characters).
    pub max_line: usize,
    /// Files whose lines are longer on the average go (characters, line ends too).
    pub max_mean_line: f64,
    /// Files with a smaller share of letters and digits go.
    pub min_alphanumeric: f64,
    /// Files with fewer letters a token go. See [`clean_with`] for what is a token.
    pub min_letters_per_token: f64,
    /// File name extensions to take instead of the built-in list, with the dot, in lower case.
    pub extensions: Option<Vec<String>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            redpajama: false,
            strip_headers: true,
            max_line: 1000,
            max_mean_line: 100.0,
            min_alphanumeric: 0.25,
            min_letters_per_token: 1.5,
            extensions: None,
        }
    }
}

/// Tells exact copies: 128 bits of xxh3 of the raw file, before its header goes.
pub fn content_key(content: &[u8]) -> u128 {
    xxh3_128(content)
}

/// A file without its header, or why it goes. `path` is the one inside the project; without it, what depends on the name is
/// left out. Reasons, in the order of the checks: `certificate`, `licence_text`, `licence` (the file's own one),
/// `empty`, `extension`, `long_line`, `long_lines`, `few_alphanumeric`, `few_letters_per_token`.
///
/// Tokens are those of [`count_pieces`].
pub fn clean(text: &str, path: Option<&str>, options: &Options) -> Cleaned {
    clean_with(text, path, options, &count_pieces)
}

/// [`clean`] with the number of tokens of a text from the caller: RedPajama's are those of pythia-6.9b's tokenizer.
pub fn clean_with(text: &str, path: Option<&str>, options: &Options, tokens: &dyn Fn(&str) -> usize) -> Cleaned {
    let name = path.map(|path| path.rsplit(['/', '\\']).next().unwrap_or(path));
    if path.is_some_and(|path| path.ends_with(".crt")) {
        return Cleaned::dropped("certificate");
    }
    let licence_text = if options.redpajama { path == Some("LICENSE") } else { name.is_some_and(licence::is_licence_file) };
    if licence_text {
        return Cleaned::dropped("licence_text");
    }
    let (cleaned, removed) = match (options.strip_headers, options.redpajama) {
        (false, _) => (text.into(), Vec::new()),
        (true, true) => (strip_header_redpajama(text), Vec::new()),
        (true, false) => strip_header(text, path),
    };
    if !options.redpajama {
        let denied = |notice: &&str| matches!(licence::detect(notice), licence::Detected::Denied(_));
        if licence::spdx_header(text).is_some_and(|expression| !licence::is_allowed(expression)) || removed.iter().any(denied) {
            return Cleaned::dropped("licence");
        }
    }
    if cleaned.is_empty() || !options.redpajama && cleaned.trim().is_empty() {
        return Cleaned::dropped("empty");
    }
    let known = |path: &str| match (&options.extensions, options.redpajama) {
        (Some(list), _) => list.iter().any(|extension| path.to_ascii_lowercase().ends_with(extension.as_str())),
        (None, true) => is_source_redpajama(path),
        (None, false) => is_source(path),
    };
    if path.is_some_and(|path| !known(path)) {
        return Cleaned::dropped("extension");
    }
    let shape = Shape::of(&cleaned);
    if shape.max_line > options.max_line {
        return Cleaned::dropped("long_line");
    }
    if shape.mean_line() > options.max_mean_line {
        return Cleaned::dropped("long_lines");
    }
    if shape.alphanumeric_share() < options.min_alphanumeric {
        return Cleaned::dropped("few_alphanumeric");
    }
    if (shape.letters as f64) < options.min_letters_per_token * tokens(&cleaned) as f64 {
        return Cleaned::dropped("few_letters_per_token");
    }
    let removed = removed.into_iter().map(|piece| Removed::new("licence_header", piece)).collect();
    Cleaned { removed, ..Cleaned::kept(cleaned.into_owned()) }
}
