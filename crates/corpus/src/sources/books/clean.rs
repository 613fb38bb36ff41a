//! A book without what Project Gutenberg puts before and after it.

use super::{Options, unix};
use crate::{Cleaned, Removed};

/// Lines in which a header's marker can be; the longest headers, with the small print before the book, have about 400.
const HEADER_LINES: usize = 600;
/// Lines in which a header without a marker is looked for.
const FIELD_LINES: usize = 80;
/// The longest footer in bytes; the licence has about 19,000.
const FOOTER: usize = 40_000;
/// The most paragraphs at the book's start that can be about its production, and the most lines of one.
const CREDITS: (usize, usize) = (8, 16);
/// Lines from a book's start or end in which a transcriber's note is one, and the most lines of it.
const NEAR: usize = 60;

/// A line: its place, and its text without blanks around it.
type Line<'a> = (usize, &'a str);

fn lines(text: &str) -> Vec<Line<'_>> {
    let mut at = 0;
    let place = |line: &'_ str| {
        at += line.len();
        at - line.len()
    };
    text.split_inclusive('\n')
        .map(place)
        .zip(text.split_inclusive('\n').map(|l| l.trim_matches(['\n', ' ', '\t', '\u{feff}'])))
        .collect()
}

/// What a header says: `title`, `author`, `language` and `ebook`, as far as it does.
pub(super) fn header(text: &str) -> Vec<(&'static str, String)> {
    const KEYS: [(&str, &str); 3] = [("Title:", "title"), ("Author:", "author"), ("Language:", "language")];
    let raw: Vec<&str> = text.lines().take(HEADER_LINES).collect();
    let lines: Vec<Line> = raw.iter().map(|l| (0, l.trim())).collect();
    let mut found: Vec<(&'static str, String)> = Vec::new();
    if !mentions(&lines) {
        return found;
    }
    let end = header_end(&lines).unwrap_or(0);
    for (i, (_, line)) in lines[..end].iter().enumerate() {
        for (field, key) in KEYS {
            if let Some(value) = line.strip_prefix(field).map(str::trim).filter(|v| !v.is_empty())
                && !found.iter().any(|(k, _)| *k == key)
            {
                // A long title goes on in indented lines.
                let more = raw[i + 1..end].iter().take(4).take_while(|l| l.starts_with([' ', '\t']) && !l.trim().is_empty());
                let value = more.fold(value.to_owned(), |v, l| v + " " + l.trim());
                found.push((key, value));
            }
        }
        let lower = line.to_ascii_lowercase();
        if let Some((_, number)) = lower.split_once("[ebook #").or_else(|| lower.split_once("[etext #"))
            && let Some((number, _)) = number.split_once(']')
            && number.bytes().all(|b| b.is_ascii_digit())
            && !found.iter().any(|(k, _)| *k == "ebook")
        {
            found.push(("ebook", number.to_owned()));
        }
    }
    // `The Project Gutenberg EBook of TITLE, by AUTHOR`, where there are no fields.
    let first = lines.iter().map(|(_, l)| *l).find(|l| !l.is_empty()).unwrap_or_default().replace('’', "'");
    if !found.iter().any(|(k, _)| *k == "title")
        && let Some((title, author)) = first.split_once(", by ")
    {
        let intros = ["EBook of ", "eBook of ", "Etext of ", "eBook, ", "EBook, ", "Gutenberg's "];
        if let Some((_, title)) = intros.iter().find_map(|i| title.split_once(i)) {
            found.push(("title", title.trim().to_owned()));
            found.push(("author", author.trim().to_owned()));
        }
    }
    found
}

/// Whether the first lines say that this is a file of Project Gutenberg.
fn mentions(lines: &[Line]) -> bool {
    lines.iter().take(40).any(|(_, l)| l.to_ascii_lowercase().contains("gutenberg"))
}

/// A line without stars and blanks around it, in upper case, if it may be a marker.
fn marker(line: &str) -> Option<String> {
    let body = line.trim_matches(['*', ' ', '=', '-']);
    (body.len() < 300 && body.starts_with(['S', 's', 'E', 'e', 'T', 't', 'U', 'u', 'F', 'f'])).then(|| body.to_uppercase())
}

/// Whether a marker goes on with the project's name, with or without what may stand before it.
fn is_project(marker: &str) -> bool {
    let mut rest = marker;
    while let Some(short) = ["THE ", "THIS ", "COPYRIGHTED ", "L'", "CET ", "CE "].iter().find_map(|word| rest.strip_prefix(word))
    {
        rest = short;
    }
    rest.starts_with("PROJECT GUTENBERG") || rest.starts_with("PROJEKT GUTENBERG")
}

/// The line after a header, if there is one. `lines` are a book's first or all of them.
///
/// The `START OF` line, of which the first counts, so that a later line like it is the book's; or the small print's last line, which
/// was the marker until about 2003; or, where both are missing, the last of the header's fields.
fn header_end(lines: &[Line]) -> Option<usize> {
    let window = &lines[..lines.len().min(HEADER_LINES)];
    let start =
        window.iter().position(|(_, l)| marker(l).and_then(|m| Some(is_project(m.strip_prefix("START OF ")?))).unwrap_or(false));
    let after_start = start.map(|s| {
        // It can be broken over lines, up to the closing stars.
        let long = window[s].1.starts_with("***") && !window[s].1.ends_with("***");
        let close = window[s..].iter().take(5).take_while(|(_, l)| !l.is_empty()).position(|(_, l)| l.ends_with("***"));
        s + 1 + close.filter(|_| long).unwrap_or(0)
    });
    let small_print = |l: &str| l.to_ascii_uppercase().contains("SMALL PRINT");
    let first = window.iter().position(|(_, l)| small_print(l));
    let after_small_print = window.iter().position(|(_, l)| l.starts_with("*END") && small_print(l)).map(|e| e + 1);
    let after_small_print = after_small_print.filter(|&e| first.is_some_and(|f| f + 1 < e) && mentions(lines));
    // Small print after the marker belongs to the header only if nothing stands between them; else the book has begun.
    let at_once = |from: usize| first.is_some_and(|first| first < from || window[from..first].iter().all(|(_, l)| l.is_empty()));
    let after_small_print = after_small_print.filter(|_| after_start.is_none_or(at_once));
    if let Some(end) = after_start.max(after_small_print) {
        return Some(end);
    }
    if !mentions(lines) {
        return None;
    }
    const FIELDS: [&str; 9] = [
        "Title:",
        "Author:",
        "Language:",
        "Release Date:",
        "Release date:",
        "Posting Date:",
        "Last Updated:",
        "Character set encoding:",
        "Credits:",
    ];
    let fields = window.iter().take(FIELD_LINES).rposition(|(_, l)| FIELDS.iter().any(|f| l.starts_with(f)));
    // Without fields, the paragraph that says what it is.
    let first = window.iter().position(|(_, l)| !l.is_empty())?;
    let named = window[first].1.to_ascii_lowercase().contains("project gutenberg").then_some(first);
    let last = fields.or(named)?;
    Some(last + window[last..].iter().position(|(_, l)| l.is_empty()).unwrap_or(window.len() - last))
}

/// Lines of the longest small print.
const SMALL_PRINT: usize = 400;

/// The first small print of some lines, from its headline to its last line.
fn small_print(lines: &[Line]) -> Option<(usize, usize)> {
    let said = |l: &str| l.to_ascii_uppercase().contains("SMALL PRINT");
    let first = lines.iter().position(|(_, l)| l.starts_with('*') && said(l) && !l.starts_with("*END"))?;
    let end = lines[first..].iter().take(SMALL_PRINT).position(|(_, l)| l.starts_with("*END") && said(l))?;
    Some((first, first + end + 1))
}

/// The first line of a footer after `start`, if there is one: its markers, or the licence's first words where they are missing.
///
/// Only within the last [`FOOTER`] bytes, and only where what follows is Gutenberg's, so that a line in the book that looks like
/// a marker does not end it.
fn footer_start(text: &str, lines: &[Line], start: usize) -> Option<usize> {
    let is_end = |l: &str| {
        marker(l).is_some_and(|m| {
            let ends = ["END OF ", "ENDE DIESES ", "ENDE DIESE ", "ENDE DES ", "FIN DE ", "FIN DU ", "FINE DI ", "FINE DEL "];
            let rest = ends.iter().find_map(|end| m.strip_prefix(end));
            rest.is_some_and(|r| {
                is_project(r) || r == "ETEXTES" || r.starts_with("ETEXTES ") || r.starts_with("THIS IS COPYRIGHTED")
            })
        })
    };
    let is_gutenbergs = |at: usize| {
        let rest = &text[at..];
        let known = [
            "Project Gutenberg-tm",
            "Project Gutenberg™",
            "should be named",
            "Small Print",
            "SMALL PRINT",
            "gutenberg.",
            "Updated editions",
        ];
        rest.len() < 500 || known.iter().any(|k| rest.contains(k))
    };
    let from = lines.partition_point(|(at, _)| text.len() - at > FOOTER).max(start);
    let end = lines[from..].iter().rposition(|(_, l)| is_end(l)).map(|i| from + i);
    if let Some(mut end) = end.filter(|&e| is_gutenbergs(lines[e].0)) {
        // The marker can be doubled: `End of the Project Gutenberg EBook of ..`, which may go on in a second line, before the stars.
        while let Some(above) = (from..end).rev().take(6).find(|&i| is_end(lines[i].1)) {
            if lines[above..end].iter().filter(|(_, l)| !l.is_empty()).count() > 3 {
                break;
            }
            end = above;
        }
        return Some(end);
    }
    let licence = |l: &str| {
        let m = l.trim_matches(['*', ' ']);
        [
            "This file should be named",
            "START: FULL LICENSE",
            "THE FULL PROJECT GUTENBERG LICENSE",
            "Updated editions will replace the previous one",
        ]
        .iter()
        .any(|p| m.starts_with(p))
    };
    lines[from..].iter().position(|(_, l)| licence(l)).map(|i| from + i)
}

/// Cleans a book: without Gutenberg's header and footer, whether their markers are there or one is missing, and without the lines
/// that say who produced the file. A book that is not from Gutenberg stays as it is. At most two empty lines in a row are kept, and
/// no blanks at the ends of lines.
pub fn clean(text: &str, options: &Options) -> Cleaned {
    // Ends of files and pages, and other marks of devices, are none of the book.
    let device = |c: char| c.is_ascii_control() && !matches!(c, '\n' | '\t');
    let owned;
    let text = if text.contains(device) {
        let lines = unix(text.to_owned());
        owned = lines.replace('\x0c', "\n").replace(device, "");
        &owned
    } else {
        text
    };
    let lines = lines(text);
    let mut removed = Vec::new();
    let place = |line: usize| lines.get(line).map_or(text.len(), |(at, _)| *at);
    let mut start = header_end(&lines).unwrap_or(0);
    if start > 0 {
        removed.push(Removed::new("gutenberg_header", &text[..place(start)]));
    }
    let is_gutenberg = start > 0 || mentions(&lines);
    let end = footer_start(text, &lines, start).filter(|_| is_gutenberg || text.len() > FOOTER).unwrap_or(lines.len());
    if end < lines.len() {
        removed.push(Removed::new("gutenberg_footer", &text[place(end)..]));
    }
    let mut kept: Vec<Line> = Vec::new();
    if is_gutenberg {
        for _ in 0..CREDITS.0 {
            let Some((from, to)) = paragraph(&lines, start, end) else { break };
            let (rule, to) = if options.remove_credits && is_credit(&lines[from..to]) {
                ("credits", to)
            } else if options.remove_notes && is_note(lines[from].1) {
                ("transcribers_note", note_end(&lines[..end], from))
            } else {
                break;
            };
            removed.push(Removed::new(rule, &text[place(from)..place(to)]));
            start = to;
        }
    }
    let mut from = start;
    // Small print of a book within the book.
    while let Some((begin, after)) = small_print(&lines[from..end]).filter(|_| is_gutenberg) {
        removed.push(Removed::new("gutenberg_header", &text[place(from + begin)..place(from + after)]));
        kept.extend(&lines[from..from + begin]);
        from += after;
    }
    kept.extend(&lines[from..end]);
    if options.remove_notes {
        kept = without_notes(kept, text, &mut removed);
    }
    let mut out = String::with_capacity(text.len());
    for (at, line) in kept {
        let raw = text[at..].split('\n').next().unwrap_or_default();
        if line.is_empty() && (out.is_empty() || out.ends_with("\n\n\n")) {
            continue;
        }
        out.push_str(raw.trim_end());
        out.push('\n');
    }
    out.truncate(out.trim_end().len());
    if out.is_empty() {
        return Cleaned { removed, ..Cleaned::dropped("empty") };
    }
    Cleaned { text: out, dropped: None, removed }
}

/// The lines of the next paragraph.
fn paragraph(lines: &[Line], start: usize, end: usize) -> Option<(usize, usize)> {
    let from = start + lines.get(start..end)?.iter().position(|(_, l)| !l.is_empty())?;
    let to = from + lines[from..end].iter().position(|(_, l)| l.is_empty()).unwrap_or(end - from);
    Some((from, to))
}

/// Whether a paragraph at a book's start says who made the file, and from what.
fn is_credit(lines: &[Line]) -> bool {
    const STARTS: [&str; 33] = [
        "produced by",
        "e-text prepared by",
        "etext prepared by",
        "e-text produced by",
        "this etext was",
        "this e-text was",
        "this ebook was",
        "this text was prepared",
        "transcribed from",
        "transcribed by",
        "text file produced by",
        "prepared by",
        "scanned by",
        "scanned and",
        "digitized by",
        "html version by",
        "proofread by",
        "the project gutenberg e",
        "project gutenberg e",
        "project gutenberg's",
        "note: project gutenberg also has",
        "note: images of the original",
        "note: the original of this",
        "images of the original pages",
        "this file was produced from",
        "images generously made available",
        "produced from images generously",
        "credits:",
        "updated:",
        "email ",
        "we thank the",
        "nous remercions la",
        "special thanks are due",
    ];
    if lines.len() > CREDITS.1 {
        return false;
    }
    let first = lines.first().map_or("", |(_, l)| l).trim_start_matches(['[', '(', '*', ' ']);
    let first = first[..first.floor_char_boundary(60.min(first.len()))].to_lowercase();
    // A line of stars divides such paragraphs.
    first.is_empty() || STARTS.iter().any(|s| first.starts_with(s))
}

fn is_note(line: &str) -> bool {
    let line = line.trim_start_matches(['[', '(', '*', '_', ' ']).replace('’', "'").to_lowercase();
    let line = line.strip_prefix("original ").unwrap_or(&line);
    ["transcriber's note", "transcribers' note", "transcriber note", "project gutenberg editor's note"]
        .iter()
        .any(|n| line.starts_with(n))
}

/// The line after a note: after its paragraph, or the `]` of one that starts with `[`, if that is near.
fn note_end(lines: &[Line], from: usize) -> usize {
    let bracketed = lines[from].1.starts_with('[');
    let ends = |l: &str| if bracketed { l.ends_with(']') } else { l.is_empty() };
    let end = lines[from..].iter().take(NEAR).position(|(_, l)| ends(l)).map(|n| from + n + 1);
    end.unwrap_or(if bracketed || lines.len() - from > NEAR { from + 1 } else { lines.len() })
}

/// Without the transcriber's notes among the first and last lines.
fn without_notes<'a>(lines: Vec<Line<'a>>, text: &str, removed: &mut Vec<Removed>) -> Vec<Line<'a>> {
    let mut kept = Vec::with_capacity(lines.len());
    let mut i = 0;
    while i < lines.len() {
        let (at, line) = lines[i];
        if !(i < NEAR || i + NEAR > lines.len()) || !is_note(line) {
            kept.push(lines[i]);
            i += 1;
            continue;
        }
        let next = note_end(&lines, i);
        removed.push(Removed::new("transcribers_note", &text[at..lines.get(next).map_or(text.len(), |(p, _)| *p)]));
        i = next;
    }
    kept
}
