//! Texts that a model wrote: what is read off them, and whether it is the answer.

use std::collections::HashMap;

use fancy_regex::Regex;

use crate::{Error, Result};

/// What ASCII calls punctuation: Python's `string.punctuation`.
const PUNCTUATION: &str = r##"!"#$%&'()*+,-./:;<=>?@[\]^_`{|}~"##;

/// A regular expression of Python's `re`. The dialects differ in `$`, which in Python also stands before a final line feed.
///
/// # Errors
/// [`Error::BadValue`] for one that is none.
pub fn python_regex(pattern: &str) -> Result<Regex> {
    let mut translated = String::with_capacity(pattern.len() + 16);
    let (mut escaped, mut in_class) = (false, false);
    for c in pattern.chars() {
        match c {
            '$' if !escaped && !in_class => {
                translated.push_str(r"(?=\n?\z)");
                continue;
            }
            '[' if !escaped => in_class = true,
            ']' if !escaped => in_class = false,
            _ => {}
        }
        escaped = c == '\\' && !escaped;
        translated.push(c);
    }
    Regex::new(&translated)
        .map_err(|error| Error::bad_value("regex", format!("`{pattern}`: {error}"), "write it as for Python's `re`"))
}

fn gave_up(regex: &Regex, error: fancy_regex::Error) -> Error {
    Error::bad_value("regex", format!("`{regex}` on a text: {error}"), "write it so that it needs less going back")
}

/// All matches removed, as `re.sub(regex, "", text)`.
fn remove(regex: &Regex, text: &str) -> Result<String> {
    let mut kept = String::with_capacity(text.len());
    let mut at = 0;
    for found in regex.find_iter(text) {
        let found = found.map_err(|error| gave_up(regex, error))?;
        kept.push_str(&text[at..found.start()]);
        at = found.end();
    }
    kept.push_str(&text[at..]);
    Ok(kept)
}

/// lm-eval's filter `regex`: reads an answer off a text.
#[derive(Clone, Debug)]
pub struct Extract {
    regex: Regex,
    last: bool,
}

/// The answer of a text in which no answer was found.
pub const INVALID: &str = "[invalid]";

impl Extract {
    /// The first match of a regular expression, or the `last` one (`group_select: -1`).
    ///
    /// # Errors
    /// Those of [`python_regex`].
    pub fn new(pattern: &str, last: bool) -> Result<Self> {
        Ok(Self { regex: python_regex(pattern)?, last })
    }

    /// GSM8K's `strict-match`.
    ///
    /// # Errors
    /// None in practice: those of [`Extract::new`].
    pub fn gsm8k_strict() -> Result<Self> {
        Self::new(r"#### (\-?[0-9\.\,]+)", false)
    }

    /// GSM8K's `flexible-extract`: the last number.
    ///
    /// # Errors
    /// None in practice: those of [`Extract::new`].
    pub fn gsm8k_flexible() -> Result<Self> {
        Self::new(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", true)
    }

    /// The match, or its first group that is not empty, without spaces around it; [`INVALID`] where there is none.
    ///
    /// # Errors
    /// [`Error::BadValue`] for an expression that goes back too often.
    pub fn apply(&self, text: &str) -> Result<String> {
        let mut chosen = None;
        for captures in self.regex.captures_iter(text) {
            chosen = Some(captures.map_err(|error| gave_up(&self.regex, error))?);
            if !self.last {
                break;
            }
        }
        let Some(captures) = chosen else { return Ok(INVALID.into()) };
        let group = |at: usize| captures.get(at).map_or("", |group| group.as_str());
        let answer = match captures.len() {
            1 => group(0),
            2 => group(1),
            // Python's `findall` gives all groups of a match.
            count => (1..count).map(group).find(|text| !text.is_empty()).unwrap_or(INVALID),
        };
        Ok(answer.trim().into())
    }
}

/// lm-eval's `exact_match`: equal after both sides were treated alike, in this order.
#[derive(Clone, Debug, Default)]
pub struct ExactMatch {
    /// All matches of these are removed, one expression after the other.
    pub remove: Vec<Regex>,
    /// Lower case.
    pub ignore_case: bool,
    /// Without ASCII punctuation.
    pub ignore_punctuation: bool,
    /// Without ASCII digits.
    pub ignore_numbers: bool,
}

impl ExactMatch {
    /// From expressions of Python's `re`.
    ///
    /// # Errors
    /// Those of [`python_regex`].
    pub fn new(remove: &[&str], ignore_case: bool, ignore_punctuation: bool) -> Result<Self> {
        let remove = remove.iter().map(|pattern| python_regex(pattern)).collect::<Result<_>>()?;
        Ok(Self { remove, ignore_case, ignore_punctuation, ignore_numbers: false })
    }

    /// NaturalQuestions' of lm-eval 0.4: case and punctuation ignored, articles gone where they are the harness's spelling.
    ///
    /// # Errors
    /// None in practice: those of [`ExactMatch::new`].
    pub fn nq_open() -> Result<Self> {
        Self::new(&[r"\b(?:The |the |An |A |The |a |an )"], true, true)
    }

    /// TriviaQA's of lm-eval 0.4: case and punctuation ignored; articles count.
    ///
    /// # Errors
    /// None in practice: those of [`ExactMatch::new`].
    pub fn triviaqa() -> Result<Self> {
        Self::new(&[], true, true)
    }

    /// GSM8K's: commas, dollars, all before the last `#### ` and a final period gone, case ignored.
    ///
    /// # Errors
    /// None in practice: those of [`ExactMatch::new`].
    pub fn gsm8k() -> Result<Self> {
        Self::new(&[",", r"\$", r"(?s).*#### ", r"\.$"], true, false)
    }

    /// A text as it is compared.
    ///
    /// # Errors
    /// [`Error::BadValue`] for an expression that goes back too often.
    pub fn normalize(&self, text: &str) -> Result<String> {
        let mut text = text.to_owned();
        for regex in &self.remove {
            text = remove(regex, &text)?;
        }
        if self.ignore_case {
            text = text.to_lowercase();
        }
        if self.ignore_punctuation {
            text.retain(|c| !PUNCTUATION.contains(c));
        }
        if self.ignore_numbers {
            text.retain(|c| !c.is_ascii_digit());
        }
        Ok(text)
    }

    /// Whether an answer is one of `golds`.
    ///
    /// # Errors
    /// Those of [`ExactMatch::normalize`].
    pub fn any(&self, answer: &str, golds: &[impl AsRef<str>]) -> Result<bool> {
        let answer = self.normalize(answer)?;
        for gold in golds {
            if self.normalize(gold.as_ref())? == answer {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// The paper's answer in what a model wrote (appendix A): up to the first line break, without a final dot or comma.
pub fn paper_answer(text: &str) -> &str {
    let line = text.split('\n').next().unwrap_or_default().trim();
    line.strip_suffix(['.', ',']).unwrap_or(line).trim_end()
}

/// The paper's form of an answer, SQuAD's and TriviaQA's: lower case, no punctuation, no articles, single spaces.
pub fn paper_normalize(text: &str) -> String {
    let lower = text.to_lowercase();
    let plain: String = lower.chars().filter(|c| !PUNCTUATION.contains(*c)).collect();
    // A word of Python's `\b`: what stands between other characters than letters, digits and `_`, which punctuation took away already.
    let mut words = Vec::new();
    for word in plain.split_whitespace() {
        let mut rest = String::new();
        for piece in pieces(word) {
            if matches!(piece, "a" | "an" | "the") {
                rest.push(' ');
            } else {
                rest.push_str(piece);
            }
        }
        words.extend(rest.split_whitespace().map(str::to_owned));
    }
    words.join(" ")
}

/// A text cut wherever letters and digits meet other characters.
fn pieces(text: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    let (mut start, mut inside) = (0, None);
    for (at, c) in text.char_indices() {
        let word = c.is_alphanumeric();
        if inside.is_some_and(|inside| inside != word) {
            pieces.push(&text[start..at]);
            start = at;
        }
        inside = Some(word);
    }
    pieces.push(&text[start..]);
    pieces
}

/// Whether an answer is one of `golds` in the paper's form.
pub fn paper_match(answer: &str, golds: &[impl AsRef<str>]) -> bool {
    let answer = paper_normalize(paper_answer(answer));
    golds.iter().any(|gold| paper_normalize(gold.as_ref()) == answer)
}

/// SQuAD's F1: words that an answer shares with a gold answer, both in [`paper_normalize`]'s form. Two empty answers are equal.
pub fn f1(answer: &str, gold: &str) -> f64 {
    let (answer, gold) = (paper_normalize(answer), paper_normalize(gold));
    let (answer, gold): (Vec<&str>, Vec<&str>) = (answer.split(' ').collect(), gold.split(' ').collect());
    if answer == [""] || gold == [""] {
        return f64::from(u8::from(answer == gold));
    }
    let mut left: HashMap<&str, usize> = HashMap::new();
    for word in &gold {
        *left.entry(word).or_default() += 1;
    }
    let mut shared = 0_usize;
    for word in &answer {
        if let Some(count) = left.get_mut(word).filter(|count| **count > 0) {
            *count -= 1;
            shared += 1;
        }
    }
    2.0 * shared as f64 / (answer.len() + gold.len()) as f64
}

/// The best [`f1`] over gold answers.
pub fn f1_any(answer: &str, golds: &[impl AsRef<str>]) -> f64 {
    golds.iter().map(|gold| f1(answer, gold.as_ref())).fold(0.0, f64::max)
}

/// The answer that comes most often; of equally many the one that came first. `None` of nothing.
pub fn majority<T: AsRef<str>>(answers: &[T]) -> Option<&T> {
    let mut counts: HashMap<&str, (usize, usize)> = HashMap::new();
    for (at, answer) in answers.iter().enumerate() {
        counts.entry(answer.as_ref()).or_insert((0, at)).0 += 1;
    }
    let (_, first) = counts.into_values().max_by_key(|&(count, first)| (count, std::cmp::Reverse(first)))?;
    answers.get(first)
}
