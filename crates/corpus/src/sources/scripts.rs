//! Raised and lowered text as plain text. A number must not become another one: 10 to the power of 6 is not 106.

/// What ends an ordinal, or is a unit of time or angle, when it is raised after a number: the text is read right without a mark.
const PLAIN: [&str; 30] = [
    "st", "nd", "rd", "th", "e", "er", "re", "es", "ers", "ère", "ème", "eme", "o", "os", "a", "as", "º", "ª", "ste", "de", "te",
    "h", "m", "s", "d", "min", "n.d.", "tm", "bis", "ter",
];

/// Raised text after `before`: numbers in Unicode's digits, all else plain, with a `^` where it would run into a number.
pub(super) fn raised(before: Option<char>, text: &str) -> String {
    let text = text.trim();
    let number = text.chars().any(|c| c.is_ascii_digit()).then(|| text.chars().map(raised_digit).collect::<Option<String>>());
    if let Some(Some(digits)) = number {
        return digits;
    }
    let into_number = before.is_some_and(|c| c.is_ascii_digit() || c == ')');
    let number = text.starts_with(|c: char| c.is_ascii_digit() || "+-−–".contains(c));
    if text.is_empty() || !into_number || text.starts_with(['[', '*', '†']) || (!number && PLAIN.contains(&text)) {
        // A raised number after a letter is one that the letter does not contain.
        return if number && before.is_some_and(char::is_alphanumeric) { power(text) } else { text.to_owned() };
    }
    if !number && text.chars().count() > 3 { text.to_owned() } else { power(text) }
}

/// `^text`, in parentheses where it is more than a number or a word.
fn power(text: &str) -> String {
    let one =
        text.chars().enumerate().all(|(i, c)| c.is_alphanumeric() || matches!(c, '.' | ',') || (i == 0 && "+-−–".contains(c)));
    if one { format!("^{text}") } else { format!("^({text})") }
}

fn raised_digit(c: char) -> Option<char> {
    Some(match c {
        '1' => '¹',
        '2' => '²',
        '3' => '³',
        '0' | '4'..='9' => char::from_u32(0x2070 + u32::from(c) - u32::from('0'))?,
        '-' | '−' | '–' => '⁻',
        '+' => '⁺',
        _ => return None,
    })
}

/// Lowered text after `before`: a number after a number in Unicode's digits, all else plain, as in `H2O`.
pub(super) fn lowered(before: Option<char>, text: &str) -> String {
    let text = text.trim();
    let digit = |c: char| c.is_ascii_digit().then(|| char::from_u32(0x2080 + u32::from(c) - u32::from('0'))).flatten();
    let digits = before.filter(char::is_ascii_digit).and_then(|_| text.chars().map(digit).collect::<Option<String>>());
    digits.unwrap_or_else(|| text.to_owned())
}
