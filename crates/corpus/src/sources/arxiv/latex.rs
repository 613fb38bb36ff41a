//! The cleaner: a paper's LaTeX to its text from the first section to the bibliography, with the macros expanded.

use std::ops::Range;

use super::{
    Options,
    lex::{Environments, Lexer, after_blanks, braced},
    macros, redpajama,
    strip::{self, Count},
};
use crate::{Cleaned, Removed};

/// Commands that head a section; the last is harvmac's.
const HEADS: [&str; 8] = ["part", "chapter", "section", "subsection", "subsubsection", "paragraph", "subparagraph", "newsec"];
/// Environments with which a bibliography begins.
const BIBLIOGRAPHIES: [&str; 10] = [
    "thebibliography",
    "references",
    "REFERENCES",
    "bibdiv",
    "bibdiv*",
    "biblist",
    "biblist*",
    "bibsection",
    "bibchapter",
    "bibliography",
];
/// Environments with which the appendix begins.
const APPENDICES: [&str; 3] = ["appendix", "appendices", "subappendices"];

/// Cleans the LaTeX of one paper, as [`super::read`] gives it, in time linear in its length (LLaMA section 2.1, after Lewkowycz
/// et al. 2022: "we removed everything before the first section, as well as the bibliography. We also removed the comments
/// from the .tex files, and inline-expanded definitions and macros written by users").
///
/// 1. Comments go (never `\%`, nor in verbatim text, nor in a `\url`), and `comment` environments.
/// 2. Branches that TeX never reads go: `\iffalse..\fi`.
/// 3. Macros are expanded, with arguments, and definitions go.
/// 4. What is kept begins with the first section's head after `\begin{document}` and ends before the bibliography, the appendix
///    (by [`Options::keep_appendix`]) or `\end{document}`, whichever is first. Without a section all of the document stays, or
///    it is dropped by [`Options::require_section`].
/// 5. Empty lines in a row become one.
///
/// With [`Options::rp_compat`] what RedPajama's cleaner gives, to the byte.
pub fn clean(tex: &str, options: &Options) -> Cleaned {
    if options.rp_compat {
        return redpajama::clean(tex);
    }
    let owned;
    let tex = if tex.contains('\r') {
        owned = tex.replace("\r\n", "\n").replace('\r', "\n");
        &owned
    } else {
        tex
    };
    let mut removed = Vec::new();
    let envs = Environments::of(tex);
    let (mut comments, mut environments) = (Count::default(), Count::default());
    let text = strip::comments(tex, &envs, &mut comments, &mut environments);
    note(&mut removed, "comments", &comments);
    note(&mut removed, "comment_environments", &environments);

    let dead = strip::dead_branches(&text, &envs);
    removed.extend(dead.first().map(|r| count_of("dead_branches", dead.len(), &text[r.clone()])));
    let text = if dead.is_empty() { text } else { strip::cut(&text, &dead) };

    let expanded = macros::expand(&text, &envs, options.expand_environments);
    drop(text);
    note(&mut removed, "definitions", &expanded.definitions);
    note(&mut removed, "macros_not_expanded", &expanded.unexpanded);

    let text = expanded.text;
    let landmarks = landmarks(&text, &envs);
    let Some(start) = start(&landmarks, options.require_section) else {
        return Cleaned::dropped("no_section");
    };
    if start > 0 {
        removed.push(Removed::new("before_first_section", &text[..start]));
    }
    let mut ranges = Vec::new();
    for (rule, range) in cuts(&landmarks, start, text.len(), options.keep_appendix) {
        removed.push(Removed::new(rule, &text[range.clone()]));
        ranges.push(range.start - start..range.end - start);
    }
    let text = strip::tidy(&strip::cut(&text[start..], &ranges), &envs);
    if text.trim().is_empty() {
        return Cleaned::dropped("empty");
    }
    Cleaned { text, dropped: None, removed }
}

fn note(removed: &mut Vec<Removed>, rule: &'static str, count: &Count) {
    if count.pieces > 0 {
        removed.push(count_of(rule, count.pieces, &count.first));
    }
}

fn count_of(rule: &'static str, pieces: usize, first: &str) -> Removed {
    let end = first.floor_char_boundary(Removed::SHOWN.min(first.len()));
    Removed::new(rule, &format!("{pieces}: {}", &first[..end]))
}

/// What makes out the parts of an expanded document.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Landmark {
    /// `\begin{document}`.
    Document,
    /// A section's head.
    Head,
    /// A command for a bibliography, or the beginning of its environment.
    Bibliography { environment: bool },
    /// The end of that environment.
    BibliographyEnd,
    /// The appendix begins.
    Appendix,
    /// `\end{document}` or plain TeX's.
    End,
}

/// The landmarks of a text, with the place of each.
fn landmarks(tex: &str, envs: &Environments) -> Vec<(Landmark, Range<usize>)> {
    let mut landmarks = Vec::new();
    let mut lexer = Lexer::without_comments(tex, envs);
    while let Some(token) = lexer.next() {
        let (name, at) = (token.name(), lexer.pos());
        if name.is_empty() {
            continue;
        }
        let next = tex.as_bytes().get(at).copied();
        let mut end = at;
        let landmark = match name {
            "begin" | "end" => {
                let Some((environment, after)) = braced(tex, at) else { continue };
                end = after;
                match (name, environment) {
                    ("begin", "document") => Landmark::Document,
                    ("end", "document") => Landmark::End,
                    ("begin", e) if BIBLIOGRAPHIES.contains(&e) => Landmark::Bibliography { environment: true },
                    ("end", e) if BIBLIOGRAPHIES.contains(&e) => Landmark::BibliographyEnd,
                    ("begin", e) if APPENDICES.contains(&e) => Landmark::Appendix,
                    _ => continue,
                }
            }
            "appendix" | "appendices" => Landmark::Appendix,
            "bye" => Landmark::End,
            "printbibliography" | "printbib" | "printbibheading" | "putbib" | "bibselect" | "listrefs" | "Refs" => {
                Landmark::Bibliography { environment: false }
            }
            // Also with a star (chapterbib), and for one of several (multibib: `\bibliographysec{..}`).
            _ if name.starts_with("bibliography") && name != "bibliographystyle" && name != "bibliographyunit" => {
                let star = at + usize::from(next == Some(b'*'));
                if tex.as_bytes().get(after_blanks(tex, star)) != Some(&b'{') {
                    continue;
                }
                end = braced(tex, star).map_or(at, |(_, after)| after);
                Landmark::Bibliography { environment: false }
            }
            "beginsection" => Landmark::Head,
            _ if HEADS.contains(&name) && matches!(next, Some(b'{' | b'[' | b'*' | b' ' | b'\t' | b'\n')) => Landmark::Head,
            _ => continue,
        };
        landmarks.push((landmark, token.start..end));
    }
    landmarks
}

/// Where the text to keep begins: at the first section, else with the document, else (plain TeX, a piece) with the text.
fn start(landmarks: &[(Landmark, Range<usize>)], require_section: bool) -> Option<usize> {
    let document = landmarks.iter().position(|(l, _)| *l == Landmark::Document);
    // A head in the preamble belongs to a definition.
    let body = &landmarks[document.map_or(0, |d| d + 1)..];
    let section = body.iter().take_while(|(l, _)| *l != Landmark::End).find(|(l, _)| *l == Landmark::Head);
    match section {
        Some((_, place)) => Some(place.start),
        None if require_section => None,
        None => Some(document.map_or(0, |d| landmarks[d].1.end)),
    }
}

/// What goes after `start`, by rule.
fn cuts(
    landmarks: &[(Landmark, Range<usize>)],
    start: usize,
    end: usize,
    keep_appendix: bool,
) -> Vec<(&'static str, Range<usize>)> {
    let mut cuts = Vec::new();
    let mut after = landmarks.iter().filter(|(_, place)| place.start >= start);
    while let Some((landmark, place)) = after.next() {
        match landmark {
            Landmark::End => cuts.push(("after_document", place.start..end)),
            Landmark::Appendix if !keep_appendix => cuts.push(("appendix", place.start..end)),
            Landmark::Bibliography { .. } if !keep_appendix => cuts.push(("bibliography", place.start..end)),
            Landmark::Bibliography { environment: true } => {
                let close = after.find(|(l, _)| *l == Landmark::BibliographyEnd);
                cuts.push(("bibliography", place.start..close.map_or(end, |(_, c)| c.end)));
                continue;
            }
            Landmark::Bibliography { environment: false } => {
                cuts.push(("bibliography", place.clone()));
                continue;
            }
            _ => continue,
        }
        break;
    }
    cuts
}
