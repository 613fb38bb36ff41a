//! Wikipedia: `pages-articles` dumps of `MediaWiki`'s XML, and their wikitext as running text.
//!
//! [`read`] gives a record for each page, [`clean`] its text. Hyperlinks, comments and other formatting go, as the LLaMA
//! paper has it (section 2.1); what "other formatting" is, the paper leaves open. The published recipe nearest to it is that
//! of the Hugging Face data set `wikipedia`, which is also `RedPajama`'s: the text of `mwparserfromhell` without tables,
//! references and files. [`CleanOptions::recipe`] comes as close to that as it can; the default differs from it where the
//! recipe's text reads badly, each difference being an option.

mod dump;
mod input;
mod lines;
mod links;
mod names;
mod quantities;
mod strip;
mod tables;
mod tags;
mod templates;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use names::LANGUAGES;

use super::{Cleaner, Common, Inputs, ReadTools, Skipped, Source, settings, source::each};
use crate::error::Result;
use crate::{Cleaned, Record, Removed, Sink};

settings::settings! {
    /// Wikipedia dumps, `pages-articles` (LLaMA section 2.1).
    Wikipedia, wikipedia, paper = (4.5, 2.45),
    {
        /// What is read.
        read: Options = Options::default(),
        /// What stays.
        rules: CleanOptions = CleanOptions::default(),
    }
}

impl Source for Wikipedia {
    fn common(&self) -> Common<'_> {
        self.shared()
    }

    fn inputs(&self) -> Inputs {
        // Dumps in parts are `...-pages-articles1.xml-p1p41242.bz2`, and without the last ending when unpacked.
        Inputs::Files(|name| {
            let part = name.rsplit_once(".xml-p").is_some_and(|(_, pages)| pages.starts_with(|c: char| c.is_ascii_digit()));
            part || [".xml", ".bz2", ".xz", ".gz", ".zst"].iter().any(|end| name.ends_with(end))
        })
    }

    fn read_settings(&self) -> Value {
        json!(self.read)
    }

    fn read(&self, dumps: &[PathBuf], _: &ReadTools<'_>, sink: &mut Sink<'_>) -> Result<Skipped> {
        each(dumps, sink, |dump, sink| {
            let others = read(dump, &self.read, sink)?.other_namespaces;
            Ok([("other_namespaces", others)].into_iter().filter(|(_, n)| *n > 0).collect())
        })
    }

    fn clean_settings(&self) -> Value {
        json!(self.rules)
    }

    fn cleaner(&self) -> Result<Cleaner<'_>> {
        Ok(Box::new(|record| clean_record(record, &self.rules)))
    }

    fn clean_text(&self, text: &str, name: Option<&str>) -> Cleaned {
        clean(text, name.unwrap_or("en"), &self.rules)
    }
}

/// How a dump is read.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// The namespaces whose pages are read; 0 has the articles.
    pub namespaces: Vec<i32>,
    /// The most bytes of wikitext a page may have; longer ones are rejected. `MediaWiki` saves at most 2 MiB.
    pub max_page_bytes: usize,
    /// Threads that unpack a multistream `.bz2`; 0 means one for each core.
    pub threads: usize,
    /// The language's code where neither the dump nor its file name says it, or where they say it wrongly.
    pub language: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self { namespaces: vec![0], max_page_bytes: 8 << 20, threads: 1, language: None }
    }
}

/// What was in a dump.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageCounts {
    /// Pages, of every namespace.
    pub pages: u64,
    /// Of those, records handed on, redirects among them.
    pub records: u64,
    /// Redirects.
    pub redirects: u64,
    /// Pages of other namespaces, which are not handed on.
    pub other_namespaces: u64,
    /// Pages that could not be read, which the sink was told of.
    pub rejected: u64,
}

/// Reads the pages of a dump in their order: XML in UTF-8 or UTF-16, as it is or in `.bz2` (also multistream), `.xz` or
/// `.gz`, which is told from the file's first bytes.
///
/// A record's id is `LANGUAGE:PAGE`, its text the wikitext. Its `meta` has `title`, `url_title` (as in the page's URL), `url`,
/// `page_id`, `timestamp` (of the revision, ISO 8601), `language`, and for redirects `redirect` (the target's title), for
/// pages that are not wikitext `model`. Of several revisions the last is taken.
///
/// A file that ends or is damaged in the middle gives its whole pages, and then tells the sink where it ended. Memory: four
/// times [`Options::max_page_bytes`] at the most, and some buffers; for each thread of [`Options::threads`] 64 MiB at the most,
/// and for `.xz` what it was packed with, up to 256 MiB.
///
/// # Errors
/// The file cannot be read, or is no dump at all; or `sink` fails.
pub fn read(path: &Path, options: &Options, sink: &mut Sink<'_>) -> Result<PageCounts> {
    dump::read(path, options, sink)
}

/// What becomes of formulas (`<math>`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Math {
    /// Their LaTeX, between dollar signs: sentences stay whole.
    #[default]
    Latex,
    /// They go, as in the recipe.
    Drop,
}

/// What is kept of a page. The default makes text that reads well; [`CleanOptions::recipe`] what the published recipe makes.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CleanOptions {
    /// The languages whose pages stay: LLaMA's 20 ([`LANGUAGES`]). Empty: all.
    pub languages: Vec<String>,
    /// Formulas.
    pub math: Math,
    /// Keep the text of templates that stand for a text: `{{lang|fr|mot}}`, `{{nowrap|5 km}}`, `{{convert|5|km|mi}}`.
    pub templates: bool,
    /// Keep the names of categories, as the recipe does.
    pub categories: bool,
    /// Keep the names of links to other languages, as the recipe does.
    pub language_links: bool,
    /// Drop the headings of sections of which nothing is left.
    pub drop_empty_sections: bool,
    /// Mend what the removal leaves: `( ; )`, ` ,`, lines of punctuation; a line for each `<br>` and block; digits of
    /// `<sup>` as Unicode's superscripts; `;term : text` as `term: text`.
    pub tidy: bool,
}

impl Default for CleanOptions {
    fn default() -> Self {
        Self {
            languages: LANGUAGES.map(String::from).to_vec(),
            math: Math::Latex,
            templates: true,
            categories: false,
            language_links: false,
            drop_empty_sections: true,
            tidy: true,
        }
    }
}

impl CleanOptions {
    /// As near as can be to `mwparserfromhell`'s `strip_code` with the recipe's removals: no templates, no formulas, categories
    /// and language links as text, headings of empty sections, nothing mended.
    pub fn recipe() -> Self {
        Self {
            math: Math::Drop,
            templates: false,
            categories: true,
            language_links: true,
            drop_empty_sections: false,
            tidy: false,
            ..Self::default()
        }
    }
}

/// What the first pass takes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    Category,
    Comment,
    Extension,
    ExternalLink,
    LanguageLink,
    MagicWord,
    Math,
    Media,
    Reference,
    Table,
    Tag,
    Template,
    Unclosed,
    Variant,
}

impl Rule {
    const NAMES: [&'static str; 14] = [
        "category",
        "comment",
        "extension_tag",
        "external_link",
        "language_link",
        "magic_word",
        "math",
        "media",
        "reference",
        "table",
        "html_tag",
        "template",
        "unclosed",
        "language_variant",
    ];
    const COUNT: usize = Self::NAMES.len();
}

/// The text of a page's wikitext. Time is linear in its length, whatever is in it; memory is a few times its length and 5 MiB.
///
/// Dropped are redirects (`redirect`) and pages without text (`empty`). [`Cleaned::removed`] has for each rule how many pieces
/// it took, and each empty section by its heading.
pub fn clean(wikitext: &str, language: &str, options: &CleanOptions) -> Cleaned {
    if names::is_redirect(wikitext) {
        return Cleaned::dropped("redirect");
    }
    let (marked, counts) = strip::Stripper::new(wikitext, language, options).run();
    let mut removed = Vec::new();
    let text = lines::finish(&marked, options.tidy, options.drop_empty_sections, &mut removed);
    if text.is_empty() {
        return Cleaned { removed, ..Cleaned::dropped("empty") };
    }
    let counted = Rule::NAMES.iter().zip(counts).filter(|c| c.1 > 0);
    removed.extend(counted.map(|(rule, count)| Removed { rule, text: count.to_string() }));
    Cleaned { removed, ..Cleaned::kept(text) }
}

/// [`clean`] for a record of [`read`], whose `meta` also says of redirects (`redirect`), of other contents than wikitext
/// (`not_wikitext`), and of its language (`language`, where it is none of [`CleanOptions::languages`]).
pub fn clean_record(record: &Record, options: &CleanOptions) -> Cleaned {
    let meta = |key| record.meta.get(key).and_then(|value| value.as_str());
    let language = meta("language").unwrap_or("");
    if meta("redirect").is_some() {
        Cleaned::dropped("redirect")
    } else if meta("model").is_some() {
        Cleaned::dropped("not_wikitext")
    } else if !options.languages.is_empty() && !options.languages.iter().any(|l| l == language) {
        Cleaned::dropped("language")
    } else {
        clean(&record.text, language, options)
    }
}
