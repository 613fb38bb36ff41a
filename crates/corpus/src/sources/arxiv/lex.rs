//! LaTeX as tokens, as far as cleaning needs: control sequences, groups, comments, and what must be left alone (verbatim).
//!
//! Category codes are fixed (TeX's defaults, `@` a letter between `\makeatletter` and `\makeatother`), which holds for all but
//! a few documents. The tokens of a text, put together, are the text.

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `\name`, without the blanks after it.
    Word,
    /// `\` and one character that is not a letter. A line's end after `\` is left to the next token.
    Symbol,
    /// `{`.
    Open,
    /// `}`.
    Close,
    /// From `%` to the end of the line, the newline not included.
    Comment,
    /// A newline.
    Newline,
    /// `\verb|..|` and its like, or a whole verbatim environment from `\begin` on.
    Verbatim,
    /// A whole environment that LaTeX would skip (`comment`).
    Excluded,
    /// A run of anything else.
    Text,
}

/// A token, with its place in the text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Token<'a> {
    pub(super) kind: Kind,
    pub(super) text: &'a str,
    pub(super) start: usize,
}

impl<'a> Token<'a> {
    /// The name of a control word, `""` for everything else.
    pub(super) fn name(&self) -> &'a str {
        if self.kind == Kind::Word { &self.text[1..] } else { "" }
    }
}

/// Environments whose content is not LaTeX: `alltt` has commands in it, but `%` is a character there.
const VERBATIM: [&str; 43] = [
    "verbatim",
    "verbatim*",
    "Verbatim",
    "Verbatim*",
    "BVerbatim",
    "LVerbatim",
    "SaveVerbatim",
    "VerbatimOut",
    "lstlisting",
    "lstlisting*",
    "minted",
    "minted*",
    "alltt",
    "filecontents",
    "filecontents*",
    "verbatimtab",
    "spverbatim",
    "pyverbatim",
    "boxedverbatim",
    "verbatimwrite",
    "verbbox",
    "BVerbatim*",
    "LVerbatim*",
    "VerbatimOut*",
    "tcblisting",
    "tcblisting*",
    "tcboutputlisting",
    "tcbwritetemp",
    "tcbverbatimwrite",
    "luacode",
    "luacode*",
    "luacodestar",
    "pycode",
    "pyblock",
    "pyconsole",
    "sageblock",
    "sagesilent",
    "asy",
    "asydef",
    "listing*",
    "Highlighting",
    "Sinput",
    "Soutput",
];
/// The most names that a document may add to those.
const MAX_ADDED: usize = 16;
/// The longest `\verb|..|`, in bytes. TeX ends it with the line.
const MAX_INLINE: usize = 1000;
/// The longest name of an environment, in bytes.
const MAX_NAME: usize = 60;

/// The environments that are not LaTeX inside: the usual ones and those that a document defines for itself.
#[derive(Clone, Debug, Default)]
pub(super) struct Environments {
    added: Vec<(String, Kind)>,
    /// Marks that stand for `\verb`: between two of them the text is not LaTeX.
    short: Vec<u8>,
}

impl Environments {
    /// The usual ones and those that `tex` defines, with `\lstnewenvironment`, `\DefineVerbatimEnvironment`, `\newminted` and
    /// `\excludecomment`.
    pub(super) fn of(tex: &str) -> Self {
        const COMMANDS: [(&str, Kind, &str); 8] = [
            ("\\lstnewenvironment", Kind::Verbatim, ""),
            ("\\DefineVerbatimEnvironment", Kind::Verbatim, ""),
            ("\\newminted", Kind::Verbatim, "code"),
            ("\\newtcblisting", Kind::Verbatim, ""),
            ("\\DeclareTCBListing", Kind::Verbatim, ""),
            ("\\NewTCBListing", Kind::Verbatim, ""),
            ("\\excludecomment", Kind::Excluded, ""),
            ("\\excludeversion", Kind::Excluded, ""),
        ];
        let mut added = Vec::new();
        for (command, kind, suffix) in COMMANDS {
            for (at, _) in tex.match_indices(command).take(MAX_ADDED) {
                let line = tex[..at].rfind('\n').map_or(0, |n| n + 1);
                if tex[line..at].contains('%') {
                    continue;
                }
                let after = at + command.len();
                let options = optional(tex, after);
                let Some((name, _)) = braced(tex, options.map_or(after, |(_, end)| end)) else { continue };
                match options.filter(|_| *command == *"\\newminted") {
                    Some((own, _)) => added.push((own.to_owned(), kind)),
                    None => added.push((format!("{name}{suffix}"), kind)),
                }
            }
        }
        added.truncate(MAX_ADDED);
        let mut short = Vec::new();
        for command in ["\\MakeShortVerb", "\\DefineShortVerb", "\\lstMakeShortInline"] {
            for (at, _) in tex.match_indices(command).take(MAX_ADDED) {
                let line = tex[..at].rfind('\n').map_or(0, |n| n + 1);
                let rest = tex[at + command.len()..].trim_start_matches(['*', ' ', '\t']);
                let rest = optional(rest, 0).map_or(rest, |(_, end)| &rest[end..]).trim_start_matches(['{', '\\', ' ']);
                let mark = rest.bytes().next().filter(|b| b.is_ascii_punctuation() && !b"{}\\%#".contains(b));
                short.extend(mark.filter(|_| !tex[line..at].contains('%')));
            }
        }
        Self { added, short }
    }

    fn kind(&self, name: &str) -> Option<Kind> {
        if name == "comment" {
            return Some(Kind::Excluded);
        }
        if VERBATIM.contains(&name) {
            return Some(Kind::Verbatim);
        }
        self.added.iter().find(|(n, _)| n == name).map(|&(_, kind)| kind)
    }
}

/// Which bytes end a run of text.
static WITHOUT_COMMENTS: [bool; 256] = ends_text(false);
static WITH_COMMENTS: [bool; 256] = ends_text(true);

const fn ends_text(percent: bool) -> [bool; 256] {
    let mut ends = [false; 256];
    ends[b'\\' as usize] = true;
    ends[b'{' as usize] = true;
    ends[b'}' as usize] = true;
    ends[b'\n' as usize] = true;
    ends[b'%' as usize] = percent;
    ends
}

/// The place after the blanks at `at`, which TeX skips after a control word: one line end at most, since two end a paragraph.
pub(super) fn after_blanks(tex: &str, at: usize) -> usize {
    let Some(text) = tex.get(at..) else { return at };
    let rest = text.trim_start_matches([' ', '\t']);
    let rest = rest.strip_prefix('\n').unwrap_or(rest).trim_start_matches([' ', '\t']);
    at + text.len() - rest.len()
}

/// The content of `{..}` at `at` or after the blanks there, short and without anything but characters in it, and the place after it.
pub(super) fn braced(tex: &str, at: usize) -> Option<(&str, usize)> {
    let at = after_blanks(tex, at);
    let rest = tex.get(at..)?.strip_prefix('{')?;
    let end = rest.bytes().take(MAX_NAME).position(|b| matches!(b, b'}' | b'{' | b'\\' | b'\n'))?;
    (rest.as_bytes()[end] == b'}').then(|| (&rest[..end], at + end + 2))
}

/// The content of `[..]` at `at` or after the blanks there, of one line, and the place after it.
fn optional(tex: &str, at: usize) -> Option<(&str, usize)> {
    let at = after_blanks(tex, at);
    let rest = tex.get(at..)?.strip_prefix('[')?;
    let end = rest.bytes().take(MAX_INLINE).position(|b| matches!(b, b']' | b'\n'))?;
    (rest.as_bytes()[end] == b']').then(|| (&rest[..end], at + end + 2))
}

/// Where `\COMMAND{NAME}` is at `from` or after, with or without blanks before the brace, and the place after it.
pub(super) fn find_pair(tex: &str, from: usize, command: &str, name: &str) -> Option<(usize, usize)> {
    let mut at = from;
    loop {
        at += tex.get(at..)?.find(command)?;
        match braced(tex, at + command.len()) {
            Some((found, end)) if found == name => return Some((at, end)),
            _ => at += command.len(),
        }
    }
}

/// The control sequence that a text starts with: `\name`, or `\` and one character that is not a newline.
pub(super) fn control(tex: &str, at_letter: bool) -> Option<&str> {
    let rest = tex.strip_prefix('\\')?;
    let letters = rest.bytes().take_while(|&b| b.is_ascii_alphabetic() || (b == b'@' && at_letter)).count();
    let len = if letters > 0 { letters } else { rest.chars().next().filter(|&c| c != '\n').map_or(0, char::len_utf8) };
    Some(&tex[..1 + len])
}

/// Splits a text into tokens, in time linear in its length.
pub(super) struct Lexer<'a, 'e> {
    text: &'a str,
    pos: usize,
    comments: bool,
    at_letter: bool,
    /// Groups open since the `{` of a `\url{`, where `%` is a character.
    url: u32,
    url_next: bool,
    environments: &'e Environments,
    /// Names of environments that are known not to end any more.
    unclosed: Vec<&'a str>,
}

impl<'a, 'e> Lexer<'a, 'e> {
    /// Tokens of a text as an author wrote it.
    pub(super) fn new(text: &'a str, environments: &'e Environments) -> Self {
        Self { text, pos: 0, comments: true, at_letter: false, url: 0, url_next: false, environments, unclosed: Vec::new() }
    }

    /// Tokens of a text without comments, where each `%` is a character.
    pub(super) fn without_comments(text: &'a str, environments: &'e Environments) -> Self {
        Self { comments: false, ..Self::new(text, environments) }
    }

    /// Where the next token begins.
    pub(super) fn pos(&self) -> usize {
        self.pos
    }

    /// Goes on at `pos`, a place between two characters.
    pub(super) fn jump(&mut self, pos: usize) {
        self.pos = pos;
    }

    /// Whether `@` is a letter now.
    pub(super) fn at_letter(&self) -> bool {
        self.at_letter
    }

    /// Has `@` as a letter from the start (a macro's body that was defined so).
    pub(super) fn with_at_letter(mut self, at_letter: bool) -> Self {
        self.at_letter = at_letter;
        self
    }

    fn take(&mut self, kind: Kind, end: usize) -> Token<'a> {
        let start = self.pos;
        self.pos = end;
        Token { kind, text: &self.text[start..end], start }
    }

    fn control(&mut self) -> Token<'a> {
        let bytes = self.text.as_bytes();
        let name = control(&self.text[self.pos..], self.at_letter).map_or("", |c| &c[1..]);
        let end = self.pos + 1 + name.len();
        if !name.starts_with(|c: char| c.is_ascii_alphabetic() || (c == '@' && self.at_letter)) {
            return self.take(Kind::Symbol, end);
        }
        match name {
            "makeatletter" => self.at_letter = true,
            "makeatother" => self.at_letter = false,
            "url" | "href" | "path" | "nolinkurl" | "burl" | "burlalt" => {
                let next = after_blanks(self.text, end);
                self.url_next = bytes.get(next) == Some(&b'{');
                // An address between two marks, as `\verb` has it.
                if matches!(name, "url" | "path" | "nolinkurl" | "burl")
                    && matches!(bytes.get(next), Some(b'|' | b'!' | b'+' | b'"' | b'/' | b'=' | b'@' | b'?' | b'^'))
                    && let Some(end) = self.delimited(next)
                {
                    return self.take(Kind::Verbatim, end);
                }
            }
            "verb" | "Verb" | "spverb" | "fverb" | "EscVerb" => {
                let end = if name == "verb" { end } else { self.bracketed(end) };
                let star = usize::from(bytes.get(end) == Some(&b'*'));
                if let Some(end) = self.delimited(end + star) {
                    return self.take(Kind::Verbatim, end);
                }
            }
            "lstinline" | "code" if name == "lstinline" || bytes.get(end) == Some(&b'|') => {
                if let Some(end) = self.delimited(after_blanks(self.text, self.bracketed(end))) {
                    return self.take(Kind::Verbatim, end);
                }
            }
            "mintinline" => {
                if let Some((_, language)) = braced(self.text, self.bracketed(end))
                    && let Some(end) = self.delimited(language)
                {
                    return self.take(Kind::Verbatim, end);
                }
            }
            "begin" => {
                if let Some((kind, end)) = self.environment(end) {
                    return self.take(kind, end);
                }
            }
            _ => {}
        }
        self.take(Kind::Word, end)
    }

    /// The place after a `[..]` of one line at `at`, or `at`.
    fn bracketed(&self, at: usize) -> usize {
        optional(self.text, at).map_or(at, |(_, end)| end)
    }

    /// The place after `|..|` at `at`, whatever the delimiter, or after `{..}`.
    fn delimited(&self, at: usize) -> Option<usize> {
        let rest = self.text.get(at..)?;
        let open = rest.chars().next().filter(|c| !c.is_alphabetic() && !c.is_whitespace() && *c != '*')?;
        let body = &rest[open.len_utf8()..];
        let body = &body[..body.floor_char_boundary(MAX_INLINE.min(body.len()))];
        let body = &body[..body.find('\n').unwrap_or(body.len())];
        let mut depth = 1;
        let end = body.char_indices().find(|&(_, c)| {
            match (open, c) {
                ('{', '{') => depth += 1,
                ('{', '}') => depth -= 1,
                _ if c == open => depth = 0,
                _ => {}
            }
            depth == 0
        });
        end.map(|(i, c)| at + open.len_utf8() + i + c.len_utf8())
    }

    /// The kind and end of a verbatim or excluded environment whose `\begin` ends at `at`.
    fn environment(&mut self, at: usize) -> Option<(Kind, usize)> {
        let (name, body) = braced(self.text, at)?;
        let kind = self.environments.kind(name)?;
        if self.unclosed.contains(&name) {
            return None;
        }
        match find_pair(self.text, body, "\\end", name) {
            Some((_, end)) => Some((kind, end)),
            None => {
                self.unclosed.push(name);
                None
            }
        }
    }
}

impl<'a> Iterator for Lexer<'a, '_> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        let bytes = self.text.as_bytes();
        let open_url = std::mem::take(&mut self.url_next);
        let one = self.pos + 1;
        let token = match *bytes.get(self.pos)? {
            b'\\' => self.control(),
            b'{' => {
                self.url += u32::from(open_url || self.url > 0);
                self.take(Kind::Open, one)
            }
            b'}' => {
                self.url = self.url.saturating_sub(1);
                self.take(Kind::Close, one)
            }
            b'\n' => {
                self.url = 0;
                self.take(Kind::Newline, one)
            }
            b'%' if self.comments && self.url == 0 => {
                let end = self.text[one..].find('\n').map_or(bytes.len(), |n| one + n);
                self.take(Kind::Comment, end)
            }
            mark if self.environments.short.contains(&mark) && self.url == 0 => match self.delimited(self.pos) {
                Some(end) => self.take(Kind::Verbatim, end),
                None => self.take(Kind::Text, one),
            },
            _ => {
                let ends = if self.comments && self.url == 0 { &WITH_COMMENTS } else { &WITHOUT_COMMENTS };
                let short = &self.environments.short;
                let stops = |b: u8| ends[usize::from(b)] || (!short.is_empty() && short.contains(&b));
                let end = bytes[one..].iter().position(|&b| stops(b)).map_or(bytes.len(), |n| one + n);
                self.take(Kind::Text, end)
            }
        };
        // Blanks between a command and its brace.
        if open_url && matches!(token.kind, Kind::Text | Kind::Newline) && token.text.trim().is_empty() {
            self.url_next = true;
        }
        Some(token)
    }
}
