//! Stack Exchange: the posts of a site's dump to one document a question, with its answers.
//!
//! LLaMA (2.1): the 28 largest sites, HTML tags removed, answers from the highest score to the lowest. The steps:
//!
//! 1. [`largest_sites`] counts the posts of each dump.
//! 2. [`posts`] reads a dump, row by row. A question and its answers lie anywhere in it.
//! 3. Sorting by [`SortKey`] brings them together ([`StackExchange`] does it on the disk, [`group`] in memory, for a site that fits).
//! 4. [`Threads`] folds the sorted posts to questions with answers; [`thread`] makes the document.

mod html;
mod posts;
mod source;
mod threads;

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use memchr::memmem;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use html::{clean_html, redpajama_text};
pub use posts::{Kind, MAX_ROW, Post, PostSink, posts, read_posts};
pub use source::StackExchange;
pub use threads::{SortKey, Thread, Threads, group};

use crate::{
    Cleaned, Record,
    error::{Error, Result},
};

/// How a thread is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// `Q: title`, body, and each `A: answer` as paragraphs.
    #[default]
    Plain,
    /// `Q:`, title, body, `A:`, answer ... each a paragraph of its own, as in The Pile.
    Pile,
    /// RedPajama's, to the letter: `Q: title body\nA: answer\nA: answer`, the title read as HTML too, text by
    /// [`redpajama_text`], and the answers in the order of their scores *as strings*, backwards (9, 10, -1).
    Redpajama,
}

/// How threads become documents. The Pile takes `min_score = 3`, `max_answers = 3`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// How a thread is written.
    pub layout: Layout,
    /// Answers with fewer points are left out.
    pub min_score: Option<i64>,
    /// Further answers are left out.
    pub max_answers: Option<usize>,
}

/// The document of a question: its id is the site's name and the question's number. `answers` are put in their order.
///
/// `None` for a question that has neither a title nor, after the options, an answer: there is nothing to learn from it.
pub fn thread(site: &str, question: &Post, answers: &mut [Post], options: &Options) -> Option<Record> {
    answers.sort_by(|a, b| match options.layout {
        // Python's sort is stable backwards, too.
        Layout::Redpajama => b.score.to_string().cmp(&a.score.to_string()),
        _ => b.score.cmp(&a.score).then(a.id.cmp(&b.id)),
    });
    let wanted = answers.iter().filter(|answer| options.min_score.is_none_or(|min| answer.score >= min));
    let wanted = wanted.take(options.max_answers.unwrap_or(usize::MAX));
    let clean = |post: &Post| clean_html(&post.body);
    let mut texts: Vec<String> = match options.layout {
        Layout::Redpajama => wanted.map(|post| redpajama_text(&post.body)).collect(),
        _ => wanted.map(clean).filter(|text| !text.is_empty()).collect(),
    };
    let title = question.title.split_whitespace().collect::<Vec<_>>().join(" ");
    if title.is_empty() && texts.is_empty() {
        return None;
    }
    let count = texts.len();
    let text = match options.layout {
        Layout::Redpajama => {
            texts.insert(0, format!("Q: {}", redpajama_text(&format!("{} {}", question.title, question.body))));
            texts.join("\nA: ")
        }
        layout => {
            let (question_mark, answer_mark) = if layout == Layout::Pile { ("Q:\n\n", "A:\n\n") } else { ("Q: ", "A: ") };
            let body = clean(question);
            let between = if title.is_empty() || body.is_empty() { "" } else { "\n\n" };
            let mut text = format!("{question_mark}{title}{between}{body}");
            for answer in &texts {
                text.extend(["\n\n", answer_mark, answer]);
            }
            text
        }
    };
    let meta = [
        ("site", Value::from(site)),
        ("question_score", question.score.into()),
        ("answers", count.into()),
        ("tags", question.tags.clone().into()),
        ("date", question.date.clone().into()),
        ("url", format!("https://{site}/questions/{}", question.id).into()),
    ];
    let meta = meta.into_iter().map(|(key, value)| (key.to_owned(), value)).collect::<Map<_, _>>();
    Some(Record { id: format!("{site}/{}", question.id), text, meta })
}

/// One post's HTML to text, alone: what `recua data clean --source stackexchange` does.
pub fn clean(html: &str, options: &Options) -> Cleaned {
    let text = if options.layout == Layout::Redpajama { redpajama_text(html) } else { clean_html(html) };
    if text.trim().is_empty() { Cleaned::dropped("empty") } else { Cleaned::kept(text) }
}

/// The site that a dump is of: `coffee.stackexchange.com` for `coffee.stackexchange.com.7z`,
/// `coffee.stackexchange.com/Posts.xml.gz`, `coffee.stackexchange.com-Posts.7z` and `coffee.stackexchange.com.xml`.
pub fn site_name(path: &Path) -> String {
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut stem = name(path);
    for extension in [".7z", ".gz", ".bz2", ".xz", ".zst", ".xml"] {
        let length = stem.len().saturating_sub(extension.len());
        if stem.get(length..).is_some_and(|end| end.eq_ignore_ascii_case(extension)) {
            stem.truncate(length);
        }
    }
    if stem.eq_ignore_ascii_case("posts") {
        return std::path::absolute(path).ok().and_then(|path| path.parent().map(name)).unwrap_or_default();
    }
    stem.strip_suffix("-Posts").unwrap_or(&stem).to_owned()
}

/// A site and its size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// See [`site_name`].
    pub name: String,
    /// Questions and answers.
    pub posts: u64,
    /// Its dumps: one, or several parts.
    pub paths: Vec<PathBuf>,
}

/// The `count` sites with the most posts, the largest first. Files are decompressed, but not parsed, on all cores.
///
/// RedPajama counts all rows (the lines of the file less three), tag wikis too; these are questions and answers only.
///
/// # Errors
/// [`Error::Io`] and [`Error::BadFile`] for a file that cannot be read. Of a damaged one the readable posts count.
pub fn largest_sites(paths: &[PathBuf], count: usize) -> Result<Vec<Site>> {
    let counts: Vec<u64> = paths.par_iter().map(|path| count_posts(path)).collect::<Result<_>>()?;
    let mut sites = BTreeMap::<String, Site>::new();
    for (path, posts) in paths.iter().zip(counts) {
        let name = site_name(path);
        let site = sites.entry(name.clone()).or_insert(Site { name, posts: 0, paths: Vec::new() });
        site.posts += posts;
        site.paths.push(path.clone());
    }
    let mut sites: Vec<Site> = sites.into_values().collect();
    // Stable, so that sites of one size stay in the order of their names.
    sites.sort_by_key(|site| Reverse(site.posts));
    sites.truncate(count);
    Ok(sites)
}

/// A quote inside of an attribute is escaped, so that these bytes are an attribute.
fn count_posts(path: &Path) -> Result<u64> {
    const MARK: &[u8] = b" PostTypeId=\"";
    /// With the number and the closing quote.
    const WHOLE: usize = MARK.len() + 2;
    let mut total = 0;
    posts::open(path, &mut |reader| {
        let (mut buffer, mut kept) = (vec![0; 1 << 16], 0);
        loop {
            let read = match reader.read(&mut buffer[kept..]) {
                Ok(0) => return Ok(()),
                Ok(read) => read,
                Err(problem) if problem.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(problem) if problem.raw_os_error().is_none() => return Ok(()),
                Err(problem) => return Err(Error::io("read", path)(problem)),
            };
            let filled = buffer.get(..kept + read).unwrap_or_default();
            let whole = |at: &usize| matches!(filled.get(at + MARK.len()..at + WHOLE), Some(b"1\"" | b"2\""));
            total += memmem::find_iter(filled, MARK).filter(whole).count() as u64;
            // What may be the beginning of one is looked at again.
            kept = (WHOLE - 1).min(filled.len());
            let end = filled.len();
            buffer.copy_within(end - kept..end, 0);
        }
    })?;
    Ok(total)
}
