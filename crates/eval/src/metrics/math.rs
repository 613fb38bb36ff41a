//! MATH's answers as its authors compare them: strings after a chain of rewritings (Hendrycks et al. 2021).

use std::sync::LazyLock;

use regex::Regex;

/// What a comparison of two formulas says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The same string, after normalisation.
    Equal,
    /// Two different numbers, or no answer at all.
    Different,
    /// Other strings, which may be the same number or formula: only a symbolic judge (the harness asks sympy) can tell. They count as wrong
    /// here, and are counted.
    Symbolic,
}

/// The last `\boxed{...}` or `\fbox{...}` of a solution, braces matched; with a space in place of the brace all up to a `$`.
pub fn last_boxed(text: &str) -> Option<&str> {
    if let Some(at) = text.rfind("\\boxed ") {
        let rest = &text[at..];
        return Some(rest.split('$').next().unwrap_or(rest));
    }
    let start = text.rfind("\\boxed").or_else(|| text.rfind("\\fbox"))?;
    let mut depth = 0_i64;
    for (at, c) in text[start..].char_indices() {
        match c {
            '{' => depth += 1,
            '}' => {
                depth -= 1;
                if depth == 0 {
                    return Some(&text[start..=start + at]);
                }
            }
            _ => {}
        }
    }
    None
}

/// What is in the box of [`last_boxed`].
pub fn boxed_answer(text: &str) -> Option<&str> {
    let boxed = last_boxed(text)?;
    boxed.strip_prefix("\\boxed ").or_else(|| {
        let inner = boxed.strip_prefix("\\boxed{").or_else(|| boxed.strip_prefix("\\fbox{"))?;
        inner.strip_suffix('}')
    })
}

/// The answer of a text without a box, by lm-eval's `hendrycks_math`: between the first and the last `$`, else all of it.
pub fn between_dollars(text: &str) -> &str {
    match (text.find('$'), text.rfind('$')) {
        (Some(first), Some(last)) if first < last => &text[first + 1..last],
        _ => text,
    }
}

/// Whose copy of the rules: they differ in what becomes of `a/b` where a side is no whole number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    /// The authors' own: it stays as it is.
    Authors,
    /// lm-eval's: the comparison falls back to the strings as they came.
    Harness,
}

/// Whether two answers are the same string after [`strip_string`]. Where the rules fail on one of them, the strings as they came decide.
pub fn is_equiv(a: &str, b: &str, rules: Rules) -> bool {
    match (strip_string(a, rules), strip_string(b, rules)) {
        (Some(left), Some(right)) => left == right,
        _ => a == b,
    }
}

/// An answer in the authors' normal form; `None` where their rules fail (a `\frac` without arguments, two units).
pub fn strip_string(text: &str, rules: Rules) -> Option<String> {
    const REPLACED: [(&str, &str); 10] = [
        ("\n", ""),
        ("\\!", ""),
        ("\\\\", "\\"),
        ("tfrac", "frac"),
        ("dfrac", "frac"),
        ("\\left", ""),
        ("\\right", ""),
        ("^{\\circ}", ""),
        ("^\\circ", ""),
        ("\\$", ""),
    ];
    let mut text = text.to_owned();
    for (from, to) in REPLACED {
        text = text.replace(from, to);
    }
    text = without_units(text)?;
    text = text.replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.");
    if text.is_empty() {
        return Some(text);
    }
    if text.starts_with('.') {
        text.insert(0, '0');
    }
    // `k = 5` is 5.
    let sides: Vec<&str> = text.split('=').collect();
    if let [name, value] = sides[..]
        && name.chars().count() <= 2
    {
        text = value.to_owned();
    }
    text = brace_roots(&text)?.replace(' ', "");
    text = brace_fractions(text)?;
    if text == "0.5" {
        text = "\\frac{1}{2}".into();
    }
    slash(text, rules)
}

/// A unit stands at the end, as `\text{ cm}`; two of them are a failure.
fn without_units(text: String) -> Option<String> {
    let parts: Vec<&str> = text.split("\\text{ ").collect();
    match parts[..] {
        [_] => Some(text),
        [number, _] => Some(number.to_owned()),
        _ => None,
    }
}

/// `\sqrt3` is `\sqrt{3}`.
fn brace_roots(text: &str) -> Option<String> {
    let mut parts = text.split("\\sqrt");
    let mut out = parts.next()?.to_owned();
    for part in parts {
        let first = part.chars().next()?;
        out.push_str("\\sqrt");
        if first == '{' {
            out.push_str(part);
        } else {
            out.push('{');
            out.push(first);
            out.push('}');
            out.push_str(&part[first.len_utf8()..]);
        }
    }
    Some(out)
}

/// `\frac12`, `\frac1{72}` get their braces. A numerator in braces is left alone, and so is all where an argument is missing.
fn brace_fractions(text: String) -> Option<String> {
    let mut parts = text.split("\\frac");
    let mut out = parts.next()?.to_owned();
    for part in parts {
        out.push_str("\\frac");
        let mut chars = part.chars();
        let numerator = chars.next()?;
        if numerator == '{' {
            out.push_str(part);
            continue;
        }
        let Some(denominator) = chars.next() else { return Some(text) };
        let rest = chars.as_str();
        if denominator == '{' {
            out.push_str(&format!("{{{numerator}}}{{{rest}"));
        } else {
            out.push_str(&format!("{{{numerator}}}{{{denominator}}}{rest}"));
        }
    }
    Some(out)
}

/// `1/2` is `\frac{1}{2}`.
fn slash(text: String, rules: Rules) -> Option<String> {
    let sides: Vec<&str> = text.split('/').collect();
    let [a, b] = sides[..] else { return Some(text) };
    if !is_python_int(a) || !is_python_int(b) {
        return (rules == Rules::Authors).then_some(text);
    }
    // Written otherwise than Python would print it (`+1`, `01`, `-0`), it stays.
    let canonical = |side: &str| {
        let digits = side.strip_prefix('-').unwrap_or(side);
        digits.bytes().all(|byte| byte.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0')) && side != "-0"
    };
    Some(if canonical(a) && canonical(b) { format!("\\frac{{{a}}}{{{b}}}") } else { text })
}

/// What Python's `int` takes: spaces around, a sign, decimal digits (of any script) with single `_` between them.
fn is_python_int(text: &str) -> bool {
    static INT: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"\A\s*[+-]?\d+(_\d+)*\s*\z").expect("a constant that tests compile"));
    INT.is_match(text)
}

/// A plain number (`-3`, `0.25`, `1/4`, `\frac{1}{4}`) as numerator and denominator in lowest terms.
pub(super) fn number(text: &str) -> Option<(i128, i128)> {
    let text = text.trim();
    let (negative, body) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (top, bottom) = if let Some(rest) = body.strip_prefix("\\frac{") {
        let (top, bottom) = rest.strip_suffix('}')?.split_once("}{")?;
        (top, bottom)
    } else {
        body.split_once('/').unwrap_or((body, "1"))
    };
    let (a, b) = (decimal(top)?, decimal(bottom)?);
    let (top, bottom) = (a.0.checked_mul(b.1)?, a.1.checked_mul(b.0)?);
    if bottom == 0 {
        return None;
    }
    let divisor = gcd(top, bottom).max(1);
    Some((if negative { -top } else { top } / divisor, bottom / divisor))
}

fn decimal(text: &str) -> Option<(i128, i128)> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(part) || whole.len() + part.len() > 18 {
        return None;
    }
    Some((format!("{whole}{part}").parse().ok()?, 10_i128.checked_pow(part.len() as u32)?))
}

fn gcd(a: i128, b: i128) -> i128 {
    if b == 0 { a } else { gcd(b, a % b) }
}
