//! Templates of numbers: with their exponents, units, ranges and all dimensions.

use super::templates::{Kept, Parameters};

/// `{{val|5.97|e=24|u=kg}}` is 5.97×10^24 kg; `{{val|5|2}}` is 5 ± 2, `{{val|5|(7)}}` 5(7), `{{val|5|+2|-1}}` 5 +2 −1.
pub(super) fn quantity(parameters: &Parameters<'_>) -> Option<Kept> {
    let exponent = parameters.named(&["e", "exp"]);
    let power = exponent.map(|e| format!("10^{}", e.trim_start_matches('+')));
    let mut unit = parameters.named(&["u", "ul", "up", "upl", "unit", "unité", "unite"]).map(str::to_owned);
    let mut text = String::new();
    if let Some(number) = parameters.get(1) {
        text.push_str(number);
        for n in 2..=3 {
            match parameters.get(n) {
                None => break,
                Some(error) if error.starts_with('(') => text.push_str(error),
                Some(error) if is_number(error) && !error.starts_with(|c: char| c.is_ascii_digit()) => {
                    text.push(' ');
                    text.push_str(error);
                }
                // With numbers on both sides the second is an upper, the third a lower error.
                Some(error) if is_number(error) => text.push_str(&format!(
                    " {} {error}",
                    ["±", "+", "−"][if n == 2 && parameters.get(3).is_none_or(|e| !is_number(e)) { 0 } else { n - 1 }]
                )),
                Some(other) => {
                    unit = unit.or_else(|| Some(unit_symbol(other)));
                    break;
                }
            }
        }
    }
    match (&power, text.is_empty()) {
        (Some(power), true) => text.push_str(power),
        (Some(power), false) => text.push_str(&format!("×{power}")),
        (None, true) => return None,
        (None, false) => {}
    }
    let mut text = format!("{}{text}{}", parameters.named(&["p"]).unwrap_or(""), parameters.named(&["s"]).unwrap_or(""));
    if let Some(unit) = unit {
        // `°` and `%` stand at the number.
        if !unit.starts_with(['°', '%', '\'', '"']) || unit.starts_with("°C") || unit.starts_with("°F") {
            text.push(' ');
        }
        text.push_str(&unit);
    }
    if let Some(per) = parameters.named(&["upl", "up"]).filter(|_| parameters.named(&["u", "ul"]).is_some()) {
        text.push_str(&format!("/{per}"));
    }
    Some(Kept::Text(text))
}

pub(super) fn is_number(text: &str) -> bool {
    let digits = text.trim_start_matches(['-', '−', '+', '±', '.', '~']);
    digits.starts_with(|c: char| c.is_ascii_digit() || "¼½¾⅓⅔⅛".contains(c))
}

/// What stands between two numbers of `{{convert}}`.
fn between(word: &str) -> Option<&'static str> {
    Some(match word.trim().trim_end_matches("(-)") {
        "to" | "-to-" => " to ",
        "and" | "-and-" | "&" | "," => " and ",
        "or" => " or ",
        "by" => " by ",
        "to about" => " to about ",
        "-" | "–" | "–to–" | "-;" => "–",
        "x" | "×" | "xx" | "*" | "X" => " × ",
        "+/-" | "±" | "+-" => " ± ",
        "+" => " + ",
        _ => return None,
    })
}

/// `{{convert|5|to|10|km|mi}}` is 5 to 10 km, `{{convert|2|x|3|x|4|m}}` 2 × 3 × 4 m, `{{convert|5|ft|7|in|cm}}` 5 ft 7 in: what is
/// converted, without the result.
pub(super) fn convert(parameters: &Parameters<'_>) -> Option<Kept> {
    let number = |n: usize| parameters.get(n).filter(|text| is_number(text)).map(whole_and_part);
    let mut text = number(1)?;
    let mut n = 2;
    // A range, or dimensions.
    while let (Some(word), Some(next)) = (parameters.get(n).and_then(between), number(n + 1)) {
        text.push_str(word);
        text.push_str(&next);
        n += 2;
    }
    let unit = parameters.get(n)?;
    push_unit(&mut text, unit);
    // Feet and inches, stones and pounds: each number with its unit.
    while let (Some(next), Some(unit)) = (number(n + 1), parameters.get(n + 2)) {
        let small = matches!(unit, "in" | "oz" | "lb" | "ft" | "yd" | "st" | "mi" | "chain" | "furlong");
        if !small || !matches!(parameters.get(n)?, "ft" | "lb" | "st" | "mi" | "yd" | "LT" | "ST" | "chain" | "furlong") {
            break;
        }
        text.push(' ');
        text.push_str(&next);
        push_unit(&mut text, unit);
        n += 2;
    }
    Some(Kept::Text(text))
}

/// `3+1/2` is 3 1/2.
fn whole_and_part(number: &str) -> String {
    match number.split_once('+') {
        Some((whole, part)) if !whole.is_empty() && part.contains('/') => format!("{whole} {part}"),
        _ => number.to_owned(),
    }
}

fn push_unit(text: &mut String, unit: &str) {
    text.push(' ');
    text.push_str(&unit_symbol(unit));
}

/// A unit's code as it is written. `e6acre` are millions of them.
pub(super) fn unit_symbol(unit: &str) -> String {
    let powers = [("e12", "trillion "), ("e9", "billion "), ("e6", "million "), ("e3", "thousand ")];
    let power = powers.iter().find_map(|(code, word)| Some((unit.strip_prefix(code)?, *word)));
    let (unit, word) = power.filter(|(unit, _)| !unit.is_empty()).unwrap_or((unit, ""));
    let symbol = match unit {
        "sqmi" | "mi2" => "sq mi",
        "sqft" | "ft2" => "sq ft",
        "sqyd" => "sq yd",
        "sqin" => "sq in",
        "sqkm" | "km2" => "km²",
        "sqm" | "m2" => "m²",
        "cm2" => "cm²",
        "m3" => "m³",
        "km3" => "km³",
        "cm3" => "cm³",
        "cuft" | "ft3" => "cu ft",
        "cumi" => "cu mi",
        "cuyd" => "cu yd",
        "cuin" => "cu in",
        "C" | "°C" => "°C",
        "F" | "°F" => "°F",
        "kph" => "km/h",
        "m/s2" => "m/s²",
        _ => unit,
    };
    format!("{word}{symbol}")
}

/// A height: `{{height|m=1.8}}`, `{{height|ft=5|in=11}}`.
pub(super) fn height(parameters: &Parameters<'_>) -> Option<Kept> {
    let of = |name: &str, unit: &str| parameters.named(&[name]).map(|n| format!("{n} {unit}"));
    let feet = of("ft", "ft").into_iter().chain(of("in", "in")).collect::<Vec<_>>().join(" ");
    let text = of("m", "m").or_else(|| of("meter", "m")).or_else(|| of("cm", "cm")).or(Some(feet).filter(|f| !f.is_empty()))?;
    Some(Kept::Text(text))
}

/// `{{as of|2015|3|14}}` is As of 14 March 2015, with `lc=y` as of; `alt=` stands for all of it.
pub(super) fn as_of(parameters: &Parameters<'_>) -> Option<Kept> {
    if let Some(other) = parameters.named(&["alt"]) {
        return Some(Kept::Text(other.to_owned()));
    }
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    let year = parameters.get(1)?;
    let month =
        parameters.get(2).map(|m| m.parse().ok().and_then(|m: usize| MONTHS.get(m.wrapping_sub(1))).copied().unwrap_or(m));
    let date = match (month, parameters.get(3)) {
        (Some(month), Some(day)) if parameters.named(&["df"]) == Some("US") => format!("{month} {day}, {year}"),
        (Some(month), Some(day)) => format!("{day} {month} {year}"),
        (Some(month), None) => format!("{month} {year}"),
        (None, _) => year.to_owned(),
    };
    let lower = parameters.named(&["lc"]).is_some();
    let before = match parameters.named(&["pre"]) {
        Some(pre) => format!("{pre} "),
        None => String::new(),
    };
    let words = match (parameters.named(&["since"]).is_some(), lower) {
        (false, false) => "As of",
        (false, true) => "as of",
        (true, false) => "Since",
        (true, true) => "since",
    };
    let bare = parameters.named(&["bare"]).is_some();
    Some(Kept::Text(if bare { format!("{before}{date}") } else { format!("{words} {before}{date}") }))
}
