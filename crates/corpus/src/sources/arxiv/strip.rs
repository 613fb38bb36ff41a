//! What goes before macros are expanded: comments and the branches that TeX never reads.

use std::{collections::HashMap, ops::Range};

use super::lex::{Environments, Kind, Lexer, control};

/// How much of something was removed, and the first piece of it.
#[derive(Debug, Default)]
pub(super) struct Count {
    pub(super) pieces: usize,
    pub(super) first: String,
}

impl Count {
    pub(super) fn add(&mut self, piece: &str) {
        if self.pieces == 0 {
            let end = piece.floor_char_boundary(160.min(piece.len()));
            piece[..end].clone_into(&mut self.first);
        }
        self.pieces += 1;
    }
}

/// The text without comments; `comments` and `environments` count them.
///
/// As TeX reads it: a line with only a comment is no line, and a comment also takes the newline and the blanks of the next line's
/// start, so that `affine-%` and `invariant` come together. The line break is kept where it does no harm: after a command
/// (which it ends), after a blank, and before a command.
pub(super) fn comments(tex: &str, envs: &Environments, comments: &mut Count, environments: &mut Count) -> String {
    let mut out = String::with_capacity(tex.len());
    let mut line = 0; // where the current line of `out` starts
    let mut blank = true; // nothing but blanks on it so far
    let mut skip_newline = false; // the line had nothing but what went
    let mut joining = false; // a comment swallowed the newline
    let mut after_word = false;
    let mut lexer = Lexer::new(tex, envs);
    while let Some(token) = lexer.next() {
        if std::mem::take(&mut skip_newline) && token.kind == Kind::Newline {
            line = out.len();
            continue;
        }
        let mut text = token.text;
        if joining {
            text = text.trim_start_matches([' ', '\t']);
            match token.kind {
                Kind::Comment => {
                    comments.add(text);
                    skip_newline = true;
                    continue;
                }
                Kind::Newline | Kind::Word | Kind::Verbatim | Kind::Excluded => {
                    out.push('\n');
                    (line, blank) = (out.len(), true);
                }
                _ if text.is_empty() => continue,
                _ => {}
            }
            joining = false;
        }
        match token.kind {
            Kind::Comment => {
                comments.add(text);
                let ended_word = after_word;
                after_word = false;
                if blank {
                    out.truncate(line);
                    skip_newline = true;
                } else if ended_word || out.ends_with([' ', '\t']) {
                    // The newline that follows stands for the blank.
                    out.truncate(out.trim_end_matches([' ', '\t']).len());
                } else if tex[lexer.pos()..].starts_with('\n') {
                    skip_newline = true;
                    joining = true;
                }
                continue;
            }
            Kind::Excluded => {
                environments.add(text);
                if blank {
                    out.truncate(line);
                    skip_newline = true;
                }
                continue;
            }
            Kind::Newline => {
                out.push('\n');
                (line, blank) = (out.len(), true);
            }
            _ => {
                out.push_str(text);
                blank = blank && text.trim_start_matches([' ', '\t']).is_empty();
            }
        }
        after_word = token.kind == Kind::Word;
    }
    out
}

/// Copies `tex` without `ranges`, which are sorted by their start. A line that has nothing else on it goes whole.
pub(super) fn cut(tex: &str, ranges: &[Range<usize>]) -> String {
    let mut out = String::with_capacity(tex.len());
    let mut from = 0;
    for range in ranges {
        let start = range.start.max(from);
        if range.end <= start {
            continue;
        }
        out.push_str(&tex[from..start]);
        from = range.end;
        let rest = tex[from..].trim_start_matches([' ', '\t']);
        if rest.starts_with('\n') {
            let kept = out.trim_end_matches([' ', '\t']).len();
            if kept == 0 || out.as_bytes()[kept - 1] == b'\n' {
                out.truncate(kept);
                from = tex.len() - rest.len() + 1;
            }
        }
    }
    out.push_str(&tex[from.min(tex.len())..]);
    out
}

/// A conditional that is open.
struct Open {
    start: usize,
    end: usize,
    value: Option<bool>,
    orelse: Option<Range<usize>>,
}

/// The `\if..` of TeX, which need a `\fi` whatever follows. Any other `\if..` does where no `{` follows: a conditional made with
/// `\newif`, and not a command with arguments (`\ifthenelse{`).
const CONDITIONALS: [&str; 20] = [
    "if",
    "ifcat",
    "ifnum",
    "ifdim",
    "ifodd",
    "ifvmode",
    "ifhmode",
    "ifmmode",
    "ifinner",
    "ifvoid",
    "ifhbox",
    "ifvbox",
    "ifx",
    "ifeof",
    "iftrue",
    "iffalse",
    "ifcase",
    "ifdefined",
    "ifcsname",
    "iffontchar",
];

/// What of `tex`, a text without comments, TeX never reads or needs not: `\iffalse..\fi`, the other branch of `\iftrue`, and
/// those of conditionals made with `\newif` that are set at most outside of groups. Sorted by start.
///
/// An `\if` whose `\fi` is missing or in another group stays, with all that follows.
pub(super) fn dead_branches(tex: &str, envs: &Environments) -> Vec<Range<usize>> {
    let mut dead = Vec::new();
    // The conditionals open in the document itself, and in each group around this place.
    let mut groups: Vec<Vec<Open>> = vec![Vec::new()];
    let mut flags: HashMap<&str, Option<bool>> = HashMap::new();
    let mut lexer = Lexer::without_comments(tex, envs);
    while let Some(token) = lexer.next() {
        match token.kind {
            Kind::Open => groups.push(Vec::new()),
            Kind::Close if groups.len() > 1 => {
                groups.pop();
            }
            _ => {}
        }
        let name = token.name();
        let top = groups.len() == 1;
        let (Some(open), end) = (groups.last_mut(), lexer.pos()) else { continue };
        // TeX skips the blanks after a command's name.
        let after = tex.len() - tex[end..].trim_start_matches([' ', '\t']).len();
        match name {
            "newif" => {
                let rest = tex[end..].trim_start_matches([' ', '\t']);
                if let Some(flag) = control(rest, lexer.at_letter())
                    && let Some(flag_name) = flag.strip_prefix("\\if")
                {
                    flags.insert(flag_name, (top && open.is_empty()).then_some(false));
                    lexer.jump(tex.len() - rest.len() + flag.len());
                }
            }
            "else" => {
                if let Some(last) = open.last_mut() {
                    last.orelse.get_or_insert(token.start..after);
                }
            }
            "fi" => {
                if let Some(Open { start, end: body, value: Some(value), orelse }) = open.pop() {
                    match (value, orelse) {
                        (false, Some(orelse)) => dead.extend([start..orelse.end, token.start..after]),
                        (false, None) => dead.push(start..after),
                        (true, Some(orelse)) => dead.extend([start..body, orelse.start..after]),
                        (true, None) => dead.extend([start..body, token.start..after]),
                    }
                }
            }
            _ if name.starts_with("if") && name != "iff" => {
                let next = tex[end..].trim_start_matches([' ', '\t']);
                if !CONDITIONALS.contains(&name) && next.starts_with('{') {
                    continue;
                }
                let mut body = after;
                let value = match name {
                    "iftrue" => Some(true),
                    "iffalse" => Some(false),
                    "if" => {
                        // The two ways to write it that people use for commenting out: `\if0` and `\if false`.
                        let test = ["false", "01", "0"].into_iter().find(|t| next.starts_with(t));
                        body = tex.len() - next.len() + test.map_or(0, str::len);
                        test.filter(|_| !next.starts_with("00")).map(|_| false)
                    }
                    _ => flags.get(&name[2..]).copied().flatten(),
                };
                open.push(Open { start: token.start, end: body, value, orelse: None });
            }
            _ => {
                let set = [("true", true), ("false", false)].into_iter().find_map(|(s, v)| Some((name.strip_suffix(s)?, v)));
                if let Some((flag, value)) = set
                    && let Some(state) = flags.get_mut(flag)
                {
                    // Set in a group or a branch, or in a macro: who knows when.
                    *state = if top && open.is_empty() { state.map(|_| value) } else { None };
                }
            }
        }
    }
    dead.sort_by_key(|r| (r.start, r.end));
    dead
}

/// Without blanks at the ends of lines, and with at most one empty line in a row. Verbatim text is left as it is.
pub(super) fn tidy(tex: &str, envs: &Environments) -> String {
    let mut out = String::with_capacity(tex.len());
    for token in Lexer::without_comments(tex, envs) {
        if token.kind == Kind::Newline {
            let kept = out.trim_end_matches([' ', '\t']).len();
            // A backslash before a blank is a command.
            let kept = if out[..kept].ends_with('\\') && kept < out.len() { kept + 1 } else { kept };
            out.truncate(kept);
            if !out.is_empty() && !out.ends_with("\n\n") {
                out.push('\n');
            }
        } else {
            out.push_str(token.text);
        }
    }
    let start = out.len() - out.trim_start_matches('\n').len();
    out.truncate(out.trim_end().len().max(start));
    out.split_off(start)
}
