//! MATH's answers as Minerva normalises them (Lewkowycz et al. 2022, appendix D.1), in the form of lm-eval 0.4.13.

use std::sync::LazyLock;

use regex::{Captures, Regex};

use super::math::{Verdict, boxed_answer, number};

/// The answer of a text that gives none.
pub const INVALID: &str = "[invalidanswer]";

/// What stands between `The final answer is` and `I hope it is correct.`, on one line; [`INVALID`] where it does not.
pub fn final_answer(text: &str) -> String {
    static FINAL: LazyLock<Regex> = LazyLock::new(|| regex(r"Final Answer: The final answer is(.*?). I hope it is correct."));
    let text = format!("{text}I hope it is correct.");
    FINAL.captures(&text).map_or_else(|| INVALID.into(), |found| found[1].trim().to_owned())
}

/// The gold answer of a solution: what is in its last box, normalised.
pub fn gold(solution: &str) -> Option<String> {
    boxed_answer(solution).map(normalize)
}

/// Compares a model's answer with the gold one, both normalised. The harness takes equal strings as equal, and asks sympy about others.
pub fn judge(answer: &str, gold: &str) -> Verdict {
    if !answer.is_empty() && answer == gold {
        return Verdict::Equal;
    }
    if answer.is_empty() || gold.is_empty() || answer == INVALID {
        return Verdict::Different;
    }
    match (number(answer), number(gold)) {
        (Some(a), Some(b)) if a != b => Verdict::Different,
        _ => Verdict::Symbolic,
    }
}

/// Replaced one after the other. Articles go with the space behind them, all other spaces after them.
const REPLACED: [(&str, &str); 10] = [
    ("an ", ""),
    ("a ", ""),
    (".$", "$"),
    ("\\$", ""),
    ("\\ ", ""),
    (" ", ""),
    ("mbox", "text"),
    (",\\text{and}", ","),
    ("\\text{and}", ","),
    ("\\text{m}", "\\text{}"),
];

/// What goes, in this order: words of units, and marks.
const REMOVED: [&str; 42] = [
    "square",
    "ways",
    "integers",
    "dollars",
    "mph",
    "inches",
    "ft",
    "hours",
    "km",
    "units",
    "\\ldots",
    "sue",
    "points",
    "feet",
    "minutes",
    "digits",
    "cents",
    "degrees",
    "cm",
    "gm",
    "pounds",
    "meters",
    "meals",
    "edges",
    "students",
    "childrentickets",
    "multiples",
    "\\text{s}",
    "\\text{.}",
    "\\text{\ns}",
    "\\text{}^2",
    "\\text{}^3",
    "\\text{\n}",
    "\\text{}",
    "\\mathrm{th}",
    "^\\circ",
    "^{\\circ}",
    "\\;",
    ",\\!",
    "{,}",
    "\"",
    "\\dots",
];

fn is_word(removed: &str) -> bool {
    removed.bytes().all(|byte| byte.is_ascii_alphabetic())
}

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).expect("a constant that tests compile")
}

/// An answer in Minerva's normal form.
pub fn normalize(answer: &str) -> String {
    let mut text = answer.rsplit('=').next().unwrap_or_default().to_owned();
    // Words of units go while spaces still part them, so that `2\pi cm` loses its `cm` and `\left` keeps its `ft`.
    static WORDS: LazyLock<Vec<Regex>> = LazyLock::new(|| {
        let words = REMOVED.iter().filter(|removed| is_word(removed));
        words.map(|word| regex(&format!(r"(\\)?\b{word}\b"))).collect()
    });
    for word in WORDS.iter() {
        let kept = word
            .replace_all(&text, |found: &Captures<'_>| if found.get(1).is_some() { found[0].to_owned() } else { String::new() });
        text = kept.into_owned();
    }
    for (from, to) in REPLACED {
        text = text.replace(from, to);
    }
    for removed in REMOVED {
        text = if is_word(removed) { outside_commands(&text, removed) } else { text.replace(removed, "") };
    }
    static LAYOUT: LazyLock<[(Regex, &str); 8]> = LazyLock::new(|| {
        [
            // What is in dollars, bold, boxed, ...
            (regex(r"(.*?)(\$)(.*?)(\$)(.*)"), "$$${3}$$"),
            (regex(r"(\\text\{)(.*?)(\})"), "${2}"),
            (regex(r"(\\textbf\{)(.*?)(\})"), "${2}"),
            (regex(r"(\\overline\{)(.*?)(\})"), "${2}"),
            (regex(r"(\\boxed\{)(.*)(\})"), "${2}"),
            // Shorthand: \frac12, \sqrt[3]8, \sqrt2.
            (regex(r"(frac)([^{])(.)"), "frac{${2}}{${3}}"),
            (regex(r"(sqrt)(\[[^\]]*\])(\w)"), "${1}${2}{${3}}"),
            (regex(r"(sqrt)([^{\[])"), "sqrt{${2}}"),
        ]
    });
    for (pattern, replacement) in LAYOUT.iter() {
        text = pattern.replace_all(&text, *replacement).into_owned();
    }
    text = text.replace('$', "");
    static THOUSANDS: LazyLock<Regex> = LazyLock::new(|| regex(r"\A-?\d{1,3}(,\d{3})+\z"));
    if THOUSANDS.is_match(&text) {
        text = text.replace(',', "");
    }
    text
}

/// A word removed everywhere but in LaTeX's commands.
fn outside_commands(text: &str, word: &str) -> String {
    static COMMAND: LazyLock<Regex> = LazyLock::new(|| regex(r"\\[a-zA-Z]+"));
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    for command in COMMAND.find_iter(text) {
        out.push_str(&text[at..command.start()].replace(word, ""));
        out.push_str(command.as_str());
        at = command.end();
    }
    out.push_str(&text[at..].replace(word, ""));
    out
}
