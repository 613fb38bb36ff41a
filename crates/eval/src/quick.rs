//! Questions that need no download: made of held-out text, so that every run shows whether its model learns something.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::data::{Rows, Value};
use crate::prepare::{Prepared, prepared};
use crate::prompts::Asking;
use crate::random::PythonRandom;
use crate::task::Task;
use crate::{Error, Result};

/// What is made of texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Made {
    /// The next word, among three others of the texts.
    NextWord,
    /// A word in the middle, among three others of the texts.
    Cloze,
    /// The last word of a list that was there before, among three others of the list.
    Copy,
    /// The texts themselves.
    Texts,
}

/// Texts of one source.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// What results call it.
    pub name: String,
    /// Documents.
    pub texts: Vec<String>,
}

/// Questions of each kind unless `limit` says otherwise.
const QUESTIONS: usize = 200;
/// Words before the one that is asked for.
const BEFORE: usize = 48;
/// At least so many.
const BEFORE_MIN: usize = 8;
/// Words after a gap.
const AFTER: usize = 8;
/// Words of a list to copy.
const LIST: usize = 8;
/// Bytes of a text that is scored whole.
const TEXT_BYTES: usize = 2000;

/// A made task's questions, the same for the same texts and seed.
///
/// # Errors
/// [`Error::Nothing`] for too little text.
pub fn quick(task: &Task, made: Made, sources: &[Source], asking: &Asking) -> Result<Prepared> {
    let mut random = PythonRandom::new(asking.seed);
    let n = asking.limit.unwrap_or(QUESTIONS);
    let rows = match made {
        Made::Texts => texts(sources, n),
        Made::NextWord | Made::Cloze => gaps(sources, n, made == Made::Cloze, &mut random),
        Made::Copy => lists(sources, n, &mut random),
    };
    if rows.is_empty() {
        let hint = "hold out more text, or give a longer one with --data FILE".into();
        return Err(Error::Nothing { what: format!("text enough for {}", task.name), path: "held-out text".into(), hint });
    }
    prepared(task, Rows { rows, split: None, sources: Vec::new() }, None, &Asking { shots: Some(0), ..asking.clone() })
}

fn row(fields: impl IntoIterator<Item = (&'static str, Value)>) -> Value {
    Value::Object(fields.into_iter().map(|(name, value)| (name.to_string(), value)).collect())
}

/// Pieces of the texts, of each source equally many.
fn texts(sources: &[Source], n: usize) -> Vec<Value> {
    let mut rows = Vec::new();
    for source in sources {
        let mut left = n.div_ceil(sources.len().max(1));
        for text in &source.texts {
            let mut rest = text.as_str();
            while !rest.trim().is_empty() && left > 0 {
                let piece = rest.len().min(TEXT_BYTES);
                let end = (0..=piece).rev().find(|at| rest.is_char_boundary(*at)).filter(|at| *at > 0).unwrap_or(rest.len());
                let (piece, after) = rest.split_at(end);
                rows.push(row([("text", piece.into()), ("source", source.name.as_str().into())]));
                (rest, left) = (after, left - 1);
            }
        }
    }
    rows
}

/// A word that a question may ask for: letters only.
fn is_word(word: &str) -> bool {
    word.chars().count() > 1 && word.chars().all(char::is_alphabetic)
}

/// Where each word of a text begins and ends.
fn words(text: &str) -> Vec<(usize, usize)> {
    let mut words = Vec::new();
    let mut start = None;
    for (at, c) in text.char_indices().chain([(text.len(), ' ')]) {
        match (c.is_whitespace(), start) {
            (true, Some(begun)) => {
                words.push((begun, at));
                start = None;
            }
            (false, None) => start = Some(at),
            _ => {}
        }
    }
    words
}

/// Words that follow a space, with what stands before and after.
fn gaps(sources: &[Source], n: usize, cloze: bool, random: &mut PythonRandom) -> Vec<Value> {
    let texts: Vec<(&str, Vec<(usize, usize)>)> =
        sources.iter().flat_map(|source| &source.texts).map(|text| (text.as_str(), words(text))).collect();
    let mut places = Vec::new();
    let mut pool: Vec<&str> = Vec::new();
    for (i, (text, words)) in texts.iter().enumerate() {
        for (j, &(start, end)) in words.iter().enumerate() {
            let word = &text[start..end];
            if !is_word(word) {
                continue;
            }
            pool.push(word);
            let after = words.get(j + AFTER).map(|word| word.1);
            if j >= BEFORE_MIN && text[..start].ends_with(' ') && (!cloze || after.is_some()) {
                places.push((i, j));
            }
        }
    }
    let count = n.min(places.len());
    let Some(chosen) = random.sample(places.len(), count) else { return Vec::new() };
    let mut rows = Vec::new();
    for at in chosen {
        let (i, j) = places[at];
        let (text, words) = &texts[i];
        let (start, end) = words[j];
        let Some((choices, right)) = among(&text[start..end], &pool, random) else { continue };
        let before = &text[words[j.saturating_sub(BEFORE)].0..start - 1];
        let mut fields = vec![("before", before.into()), ("words", Value::from(choices)), ("right", Value::from(right as u64))];
        if let Some(&(_, last)) = words.get(j + AFTER).filter(|_| cloze) {
            fields.push(("after", text[end..last].into()));
        }
        rows.push(row(fields));
    }
    rows
}

/// A word among three others, in any order.
fn among(word: &str, pool: &[&str], random: &mut PythonRandom) -> Option<(Vec<String>, usize)> {
    let mut others: Vec<&str> = Vec::new();
    for _ in 0..100 {
        let other = pool[*random.sample(pool.len(), 1)?.first()?];
        if other != word && !others.contains(&other) {
            others.push(other);
        }
        if others.len() == 3 {
            let right = *random.sample(4, 1)?.first()?;
            others.insert(right, word);
            return Some((others.into_iter().map(String::from).collect(), right));
        }
    }
    None
}

fn lists(sources: &[Source], n: usize, random: &mut PythonRandom) -> Vec<Value> {
    let mut seen = HashSet::new();
    let of_text = |text: &'_ String| words(text).into_iter().map(|(start, end)| text[start..end].to_string()).collect::<Vec<_>>();
    let all: Vec<String> = sources.iter().flat_map(|source| &source.texts).flat_map(of_text).collect();
    let pool: Vec<&String> = all.iter().filter(|word| is_word(word) && seen.insert(word.as_str())).collect();
    let mut rows = Vec::new();
    for _ in 0..n {
        let Some(drawn) = random.sample(pool.len(), LIST) else { return rows };
        let list: Vec<&str> = drawn.into_iter().map(|at| pool[at].as_str()).collect();
        let Some((last, others)) = list.split_last() else { return rows };
        let Some((choices, right)) = among(last, others, random) else { continue };
        let before = format!("{}\n{}", list.join(" "), others.join(" "));
        rows.push(row([("before", before.into()), ("words", Value::from(choices)), ("right", Value::from(right as u64))]));
    }
    rows
}
