//! Character sets: text files and streams to UTF-8.

use std::borrow::Cow;
use std::io::{self, BufRead, BufReader, Cursor, Read};

use encoding_rs::{Encoding, UTF_8, UTF_16BE, UTF_16LE, WINDOWS_1252};

use crate::unpack::CHUNK;

/// The byte order mark of UTF-8. It is no part of a text.
const BOM: &[u8] = b"\xef\xbb\xbf";
/// Bytes in which the zeros of UTF-16 are looked for.
const PROBE: usize = 1024;

/// Whether bytes are UTF-16: they begin with a byte order mark, or every second one of most characters is zero, as in texts with letters,
/// digits, blanks or marks of ASCII.
pub(crate) fn utf16(bytes: &[u8]) -> Option<&'static Encoding> {
    match bytes {
        [0xff, 0xfe, 0, 0, ..] => return None, // UTF-32
        [0xff, 0xfe, ..] => return Some(UTF_16LE),
        [0xfe, 0xff, ..] => return Some(UTF_16BE),
        _ => {}
    }
    let probe = &bytes[..bytes.len().min(PROBE) & !1];
    let zeros = |from: usize| probe.iter().skip(from).step_by(2).filter(|b| **b == 0).count();
    let (first, second, pairs) = (zeros(0), zeros(1), probe.len() / 2);
    match pairs >= 2 {
        true if second * 5 >= pairs * 2 && first * 20 <= pairs => Some(UTF_16LE),
        true if first * 5 >= pairs * 2 && second * 20 <= pairs => Some(UTF_16BE),
        _ => None,
    }
}

/// Bytes as text, and the name of their character set where it is not UTF-8: UTF-16 and UTF-8 are told by the bytes, whatever is
/// `declared`; all else is in the set that is declared, or in Windows-1252, which is what the web takes for Latin-1. `None`: bytes
/// that are no text, since they have zeros.
pub(crate) fn decode(
    bytes: Vec<u8>,
    declared: impl FnOnce(&[u8]) -> Option<&'static Encoding>,
) -> Option<(String, Option<&'static str>)> {
    if let Some(encoding) = utf16(&bytes) {
        let (text, bad) = encoding.decode_with_bom_removal(&bytes);
        return (!bad && !text.contains('\0')).then(|| (text.into_owned(), Some(encoding.name())));
    }
    if bytes.contains(&0) {
        return None;
    }
    Some(match String::from_utf8(bytes) {
        Ok(text) => (text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text), None),
        Err(e) => {
            let bytes = e.as_bytes();
            let declared = declared(bytes).filter(|e| *e != UTF_8 && *e != UTF_16LE && *e != UTF_16BE);
            let decoded = declared.map(|e| (e, e.decode_without_bom_handling(bytes))).filter(|(_, (_, bad))| !bad);
            let (encoding, text) = match decoded {
                Some((encoding, (text, _))) => (encoding, text),
                None => (WINDOWS_1252, WINDOWS_1252.decode_without_bom_handling(bytes).0),
            };
            (text.into_owned(), Some(encoding.name()))
        }
    })
}

/// [`decode`] of bytes that may be text, without a declaration: what is neither UTF-8 nor UTF-16 is read as far as it is.
pub(crate) fn lossy(bytes: &[u8]) -> Cow<'_, str> {
    match utf16(bytes) {
        Some(encoding) => encoding.decode_with_bom_removal(bytes).0,
        None => String::from_utf8_lossy(bytes.strip_prefix(BOM).unwrap_or(bytes)),
    }
}

/// A stream of text in UTF-8, without a byte order mark, of one in UTF-8 or UTF-16.
///
/// # Errors
/// Those of reading. What is damaged further on shows when it is read.
pub(crate) fn utf8<'a>(mut text: Box<dyn BufRead + 'a>) -> io::Result<Box<dyn BufRead + 'a>> {
    // A damaged beginning shows when it is read.
    let Ok(start) = text.fill_buf() else { return Ok(text) };
    if start.starts_with(BOM) {
        text.consume(BOM.len());
        return Ok(text);
    }
    if start.len() < 4 {
        let mut head = Vec::new();
        text.by_ref().take(4).read_to_end(&mut head)?;
        let text = Box::new(Cursor::new(head).chain(text));
        return utf8_of_start(text);
    }
    utf8_of_start(text)
}

fn utf8_of_start<'a>(mut text: Box<dyn BufRead + 'a>) -> io::Result<Box<dyn BufRead + 'a>> {
    let start = text.fill_buf()?;
    if start.starts_with(BOM) {
        text.consume(BOM.len());
        return Ok(text);
    }
    let Some(encoding) = utf16(start) else { return Ok(text) };
    if matches!(start, [0xff, 0xfe, ..] | [0xfe, 0xff, ..]) {
        text.consume(2);
    }
    let unit = if encoding == UTF_16LE { u16::from_le_bytes } else { u16::from_be_bytes };
    Ok(Box::new(BufReader::with_capacity(CHUNK, Utf16 { text, unit, ready: Vec::new(), at: 0, half: None })))
}

/// UTF-16 to UTF-8. What is not valid becomes U+FFFD.
struct Utf16<R> {
    text: R,
    unit: fn([u8; 2]) -> u16,
    ready: Vec<u8>,
    at: usize,
    /// The first half of a pair of surrogates at the end of what was read.
    half: Option<u16>,
}

impl<R: BufRead> Read for Utf16<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        while self.at == self.ready.len() {
            self.ready.clear();
            self.at = 0;
            let bytes = self.text.fill_buf()?;
            let mut units: Vec<u16> = self.half.take().into_iter().collect();
            let (used, end) = match bytes {
                [] => (0, true),
                &[last] => {
                    // The second byte of a unit may be in the next chunk.
                    self.text.consume(1);
                    let second = self.text.fill_buf()?.first().copied();
                    units.extend(second.map(|second| (self.unit)([last, second])));
                    (usize::from(second.is_some()), second.is_none())
                }
                _ => {
                    units.extend(bytes.chunks_exact(2).map(|b| (self.unit)([b[0], b[1]])));
                    (bytes.len() & !1, false)
                }
            };
            self.text.consume(used);
            if !end && units.last().is_some_and(|u| (0xd800..0xdc00).contains(u)) {
                self.half = units.pop();
            }
            let mut utf8 = [0; 4];
            for c in char::decode_utf16(units) {
                let c = c.unwrap_or(char::REPLACEMENT_CHARACTER);
                self.ready.extend_from_slice(c.encode_utf8(&mut utf8).as_bytes());
            }
            if end && self.ready.is_empty() {
                return Ok(0);
            }
        }
        let n = to.len().min(self.ready.len() - self.at);
        to[..n].copy_from_slice(&self.ready[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}
