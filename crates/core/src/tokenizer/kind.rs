//! Which kind of file a tokenizer's file is, by its content.

use std::path::Path;

use crate::error::{Error, Result};

/// A file that can be read.
pub(super) enum Kind<'a> {
    /// The text of a `tokenizer.json`.
    Json(&'a [u8]),
    /// Anything that may be SentencePiece's protobuf.
    Model(&'a [u8]),
}

/// Windows' editors put a mark before UTF-8, which is no part of the JSON.
pub(super) fn without_bom(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
}

/// Tells the kinds apart, and says of what often lies in a tokenizer's place what it is.
pub(super) fn tell<'a>(bytes: &'a [u8], path: &Path) -> Result<Kind<'a>> {
    let text = without_bom(bytes).trim_ascii_start();
    let starts = |prefix: &str| text.get(..prefix.len()).is_some_and(|head| head.eq_ignore_ascii_case(prefix.as_bytes()));
    let again = "get the file again";
    let (problem, hint) = match text.first() {
        None => ("it is empty", again),
        Some(b'{') => return Ok(Kind::Json(text)),
        _ if starts("version https://git-lfs") => ("it is a pointer of Git LFS, not the file itself", "run `git lfs pull`"),
        _ if starts("<!doctype") || starts("<html") => ("it is a web page", again),
        _ if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") => ("it is UTF-16 text", "save it as UTF-8"),
        _ if bytes.starts_with(b"\x1f\x8b") || bytes.starts_with(b"PK\x03\x04") => ("it is packed", "unpack it"),
        _ if is_tiktoken(text) => (
            "it is tiktoken's (a line for each token: base64 and rank), which says neither how a text is cut nor which special tokens there are",
            "take the tokenizer.json of the same model; Llama 3's lies beside its weights in Hugging Face's format",
        ),
        _ if starts("[") => ("it is JSON, but no object", again),
        // Pieces begin with a key of field 1 of wire type 2, and no text has that for its first byte but one that begins with a line end.
        _ if std::str::from_utf8(text).is_ok() && !text.contains(&0) && bytes.first() != Some(&0x0a) => {
            ("it is text", "give a tokenizer.json of Hugging Face `tokenizers`, or a SentencePiece .model")
        }
        _ => return Ok(Kind::Model(bytes)),
    };
    Err(Error::bad_file("tokenizer", path, problem, hint))
}

/// Lines of base64 and a number.
fn is_tiktoken(text: &[u8]) -> bool {
    let line = |line: &[u8]| {
        let mut words = line.trim_ascii_end().split(|b| *b == b' ');
        let base64 = |word: &[u8]| {
            !word.is_empty()
                && word.len().is_multiple_of(4)
                && word.iter().all(|b| b.is_ascii_alphanumeric() || b"+/=".contains(b))
        };
        let number = |word: &[u8]| !word.is_empty() && word.iter().all(u8::is_ascii_digit);
        words.next().is_some_and(base64) && words.next().is_some_and(number) && words.next().is_none()
    };
    text.split(|b| *b == b'\n').take(3).filter(|l| !l.is_empty()).all(line)
}
