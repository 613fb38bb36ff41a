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
const VERBATIM: [&str; 18] = [
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
}

impl Environments {
    /// The usual ones and those that `tex` defines, with `\lstnewenvironment`, `\DefineVerbatimEnvironment`, `\newminted` and
    /// `\excludecomment`.
    pub(super) fn of(tex: &str) -> Self {
        const COMMANDS: [(&str, Kind, &str); 4] = [
            ("\\lstnewenvironment", Kind::Verbatim, ""),
            ("\\DefineVerbatimEnvironment", Kind::Verbatim, ""),
            ("\\newminted", Kind::Verbatim, "code"),
            ("\\excludecomment", Kind::Excluded, ""),
        ];
        let mut added = Vec::new();
        for (command, kind, suffix) in COMMANDS {
            for (at, _) in tex.match_indices(command).take(MAX_ADDED) {
                let line = tex[..at].rfind('\n').map_or(0, |n| n + 1);
                if !tex[line..at].contains('%')
                    && let Some((name, _)) = braced(tex, at + command.len())
                {
                    added.push((format!("{name}{suffix}"), kind));
                }
            }
        }
        added.truncate(MAX_ADDED);
        Self { added }
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

/// The content of `{..}` right at `at`, short and without anything but characters in it, and the place after it.
pub(super) fn braced(tex: &str, at: usize) -> Option<(&str, usize)> {
    let rest = tex.get(at..)?.strip_prefix('{')?;
    let end = rest.bytes().take(MAX_NAME).position(|b| matches!(b, b'}' | b'{' | b'\\' | b'\n'))?;
    (rest.as_bytes()[end] == b'}').then(|| (&rest[..end], at + end + 2))
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
            "url" | "href" | "path" | "nolinkurl" => self.url_next = bytes.get(end) == Some(&b'{'),
            "verb" => {
                let star = usize::from(bytes.get(end) == Some(&b'*'));
                if let Some(end) = self.delimited(end + star) {
                    return self.take(Kind::Verbatim, end);
                }
            }
            "lstinline" => {
                if let Some(end) = self.delimited(self.bracketed(end)) {
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
        let bytes = self.text.as_bytes();
        if bytes.get(at) != Some(&b'[') {
            return at;
        }
        let end = bytes[at..].iter().take(MAX_INLINE).position(|b| matches!(b, b']' | b'\n'));
        end.filter(|&e| bytes[at + e] == b']').map_or(at, |e| at + e + 1)
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
        let end = format!("\\end{{{name}}}");
        match self.text[body..].find(&end) {
            Some(n) => Some((kind, body + n + end.len())),
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
            _ => {
                let ends = if self.comments && self.url == 0 { &WITH_COMMENTS } else { &WITHOUT_COMMENTS };
                let end = bytes[one..].iter().position(|&b| ends[usize::from(b)]).map_or(bytes.len(), |n| one + n);
                self.take(Kind::Text, end)
            }
        };
        Some(token)
    }
}
