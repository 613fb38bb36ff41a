//! JSON as it is written in practice: Python's `json.dumps` writes `NaN`, `Infinity` and half surrogate pairs, which JSON does not know.

use std::borrow::Cow;

#[cfg(feature = "pipeline")]
use serde_json::Map;
use serde_json::Value;

/// A JSON value, `None` if the text is none.
#[cfg(feature = "pipeline")]
pub(crate) fn value(text: &str) -> Option<Value> {
    parse(text).ok()
}

/// Parses the bytes of a JSON object, as [`parse`] does.
///
/// # Errors
/// Those of the text as it was written.
#[cfg(feature = "pipeline")]
pub(crate) fn object(bytes: &[u8]) -> serde_json::Result<Map<String, Value>> {
    match (serde_json::from_slice(bytes), std::str::from_utf8(bytes)) {
        (Err(e), Ok(text)) => match parse(text) {
            Ok(Value::Object(object)) => Ok(object),
            _ => Err(e),
        },
        (result, _) => result,
    }
}

/// Parses JSON: numbers that are none become null, and halves of surrogate pairs U+FFFD.
///
/// # Errors
/// Those of the text as it was written.
pub(crate) fn parse(text: &str) -> serde_json::Result<Value> {
    match serde_json::from_str(text) {
        Ok(value) => Ok(value),
        Err(e) => match mended(text) {
            Cow::Owned(text) => serde_json::from_str(&text).map_err(|_| e),
            Cow::Borrowed(_) => Err(e),
        },
    }
}

/// The text with what Python writes replaced by what JSON knows.
fn mended(text: &str) -> Cow<'_, str> {
    const NUMBERS: [&str; 3] = ["NaN", "-Infinity", "Infinity"];
    if !text.contains("\\u") && !NUMBERS.iter().any(|n| text.contains(n)) {
        return text.into();
    }
    let mut out = String::with_capacity(text.len());
    let (mut rest, mut quoted, mut changed) = (text, false, false);
    while let Some(c) = rest.chars().next() {
        let mut length = c.len_utf8();
        if quoted {
            if let Some((first, second)) = surrogates(rest) {
                length = match second {
                    Some(_) => 12,
                    None => 6,
                };
                if (0xd800..0xdc00).contains(&first) && second.is_some() {
                    out.push_str(&rest[..length]);
                } else {
                    out.push_str("\\ufffd");
                    (length, changed) = (6, true);
                }
            } else if c == '\\' {
                length += rest[1..].chars().next().map_or(0, char::len_utf8);
                out.push_str(&rest[..length]);
            } else {
                quoted = c != '"';
                out.push(c);
            }
        } else if let Some(number) = NUMBERS.iter().find(|n| rest.starts_with(**n)) {
            out.push_str("null");
            (length, changed) = (number.len(), true);
        } else {
            quoted = c == '"';
            // All up to the next that matters at once.
            let end = rest.find(['"', 'N', 'I', '-']).filter(|end| *end > 0).unwrap_or(length);
            out.push_str(&rest[..end]);
            length = end;
        }
        rest = &rest[length..];
    }
    if changed { out.into() } else { text.into() }
}

/// The escaped surrogate that a text begins with, and the second half after it if there is one.
fn surrogates(text: &str) -> Option<(u32, Option<u32>)> {
    let unit = |text: &str| {
        let digits = text.strip_prefix("\\u")?.get(..4)?;
        u32::from_str_radix(digits, 16).ok()
    };
    let first = unit(text).filter(|unit| (0xd800..0xe000).contains(unit))?;
    let second = text.get(6..).and_then(unit).filter(|unit| first < 0xdc00 && (0xdc00..0xe000).contains(unit));
    Some((first, second))
}
