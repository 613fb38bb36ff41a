//! Definitions: reading them, and putting arguments into them.

use super::lex::control;

/// The longest text of an argument, or of a body, in bytes.
const MAX_ARGUMENT: usize = 1 << 17;
/// `\long`, `\global` and the like before a `\def`, at most.
const MAX_PREFIXES: usize = 4;

/// What a name stands for.
#[derive(Clone, Debug)]
pub(super) struct Definition {
    pub(super) meaning: Meaning,
    /// Whether `@` was a letter where it was defined.
    pub(super) at_letter: bool,
}

#[derive(Clone, Debug)]
pub(super) enum Meaning {
    /// Another command or character, by `\let`.
    Same(String),
    Macro {
        /// What comes before the first argument, and after each: the delimiters of `\def`, all `""` for LaTeX's definitions.
        delimiters: Vec<String>,
        /// The first argument is optional, and this if absent.
        default: Option<String>,
        body: Vec<Piece>,
    },
}

/// A piece of a macro's body.
#[derive(Clone, Debug)]
pub(super) enum Piece {
    Text(String),
    /// The argument of this number, from 0.
    Argument(usize),
}

/// A definition that was read.
pub(super) enum Defined {
    Macro {
        name: String,
        definition: Definition,
        only_if_new: bool,
    },
    Let {
        name: String,
        text: String,
    },
    Environment {
        name: String,
        begin: Definition,
        end: String,
    },
    /// Of a kind that is not expanded.
    Nothing,
}

/// Reads on in a text from `at`, with TeX's ways of skipping blanks.
struct Reader<'a, 'l> {
    tex: &'a str,
    at: usize,
    at_letter: bool,
    /// Bytes that may still be read.
    left: &'l mut usize,
}

impl<'a> Reader<'a, '_> {
    fn rest(&self) -> &'a str {
        &self.tex[self.at..]
    }

    fn blanks(&mut self) {
        self.at += blanks(self.rest());
    }

    fn accept(&mut self, piece: &str) -> bool {
        let accepted = self.rest().starts_with(piece);
        self.at += if accepted { piece.len() } else { 0 };
        accepted
    }

    /// `\name` or `\` and a character.
    fn control(&mut self) -> Option<&'a str> {
        let control = control(self.rest(), self.at_letter)?;
        self.at += control.len();
        Some(control)
    }

    /// `name`, of a `\name`.
    fn word(&mut self) -> Option<&'a str> {
        self.control().map(|c| &c[1..]).filter(|n| n.starts_with(|c: char| c.is_ascii_alphabetic() || c == '@'))
    }

    /// The content of `{..}`.
    fn group(&mut self) -> Option<&'a str> {
        let end = group_end(self.rest(), self.left)?;
        let content = &self.rest()[1..end - 1];
        self.at += end;
        Some(content)
    }

    fn bracketed(&mut self) -> Option<&'a str> {
        let end = bracket_end(self.rest(), self.left)?;
        let content = &self.rest()[1..end - 1];
        self.at += end;
        Some(content)
    }

    /// `\name` or `{\name}`.
    fn name(&mut self) -> Option<&'a str> {
        self.blanks();
        let braced = self.accept("{");
        if braced {
            self.blanks();
        }
        let name = self.word()?;
        if braced {
            self.blanks();
            self.accept("}").then_some(name)
        } else {
            Some(name)
        }
    }

    /// `{body}`, or one token.
    fn body(&mut self) -> Option<&'a str> {
        self.blanks();
        if self.rest().starts_with('{') { self.group() } else { self.control() }
    }

    /// `[n][default]`.
    fn signature(&mut self) -> Option<(usize, Option<&'a str>)> {
        self.blanks();
        let Some(count) = self.bracketed() else { return Some((0, None)) };
        let count = count.trim().parse().ok().filter(|&n| n <= 9)?;
        self.blanks();
        Some((count, self.bracketed()))
    }
}

/// The definition that the command `name`, which ends at `at`, begins; and the place after it. Takes what it reads off `left`.
pub(super) fn definition(tex: &str, name: &str, at: usize, at_letter: bool, left: &mut usize) -> Option<(Defined, usize)> {
    let mut reader = Reader { tex, at, at_letter, left };
    let mut command = name;
    for _ in 0..MAX_PREFIXES {
        if matches!(command, "long" | "global" | "outer" | "protected") {
            reader.blanks();
            command = reader.word()?;
        }
    }
    let defined = match command {
        "newcommand" | "renewcommand" | "providecommand" | "DeclareRobustCommand" => {
            reader.accept("*");
            let name = reader.name()?;
            let (count, default) = reader.signature()?;
            let definition = latex(count, default, reader.body()?, reader.at_letter);
            Defined::Macro { name: name.to_owned(), definition, only_if_new: command == "providecommand" }
        }
        "DeclareMathOperator" => {
            let star = if reader.accept("*") { "*" } else { "" };
            let name = reader.name()?;
            reader.blanks();
            let body = format!("\\operatorname{star}{{{}}}", reader.group()?);
            Defined::Macro { name: name.to_owned(), definition: latex(0, None, &body, reader.at_letter), only_if_new: false }
        }
        "NewDocumentCommand" | "RenewDocumentCommand" | "DeclareDocumentCommand" => {
            let name = reader.name()?;
            reader.blanks();
            let arguments = reader.group()?;
            let body = reader.body()?;
            // Only mandatory arguments; any other command is removed and not expanded.
            let count = arguments.chars().filter(|c| !c.is_whitespace()).try_fold(0, |n, c| (c == 'm' && n < 9).then_some(n + 1));
            match count {
                Some(count) => {
                    let definition = latex(count, None, body, reader.at_letter);
                    Defined::Macro { name: name.to_owned(), definition, only_if_new: false }
                }
                None => Defined::Nothing,
            }
        }
        "def" | "gdef" | "edef" | "xdef" => {
            reader.blanks();
            let name = reader.word()?;
            let delimiters = parameters(&mut reader)?;
            let body = reader.group()?;
            let body = pieces(body, delimiters.len() - 1);
            let definition =
                Definition { meaning: Meaning::Macro { delimiters, default: None, body }, at_letter: reader.at_letter };
            Defined::Macro { name: name.to_owned(), definition, only_if_new: false }
        }
        "let" => {
            let name = reader.name()?;
            reader.blanks();
            if reader.accept("=") {
                reader.accept(" ");
            }
            let text = match reader.control() {
                Some(control) => control,
                // A character; but `\let\bgroup={` makes a group that is none.
                None => {
                    let one = reader.rest().chars().next().filter(|c| !matches!(c, '{' | '}' | '\n' | '#'))?.len_utf8();
                    reader.at += one;
                    &tex[reader.at - one..reader.at]
                }
            };
            Defined::Let { name: name.to_owned(), text: text.to_owned() }
        }
        "newenvironment" | "renewenvironment" => {
            reader.accept("*");
            reader.blanks();
            let name = reader.group()?.trim().to_owned();
            let (count, default) = reader.signature()?;
            reader.blanks();
            let begin = latex(count, default, reader.group()?, reader.at_letter);
            reader.blanks();
            Defined::Environment { name, begin, end: reader.group()?.to_owned() }
        }
        _ => return None,
    };
    Some((defined, reader.at))
}

/// The parameter text of `\def`, up to the `{` of the body.
fn parameters(reader: &mut Reader) -> Option<Vec<String>> {
    let rest = reader.rest();
    let open = rest.bytes().take(200).position(|b| b == b'{')?;
    let text = &rest[..open];
    reader.at += open;
    let mut pieces = text.split('#');
    let mut delimiters = vec![pieces.next().unwrap_or_default().trim_start().to_owned()];
    for (number, piece) in (1..=9).zip(&mut pieces) {
        delimiters.push(piece.strip_prefix(char::from(b'0' + number))?.to_owned());
    }
    // An empty line before the body: something else is going on.
    (pieces.next().is_none() && !text.contains("\n\n")).then_some(delimiters)
}

fn latex(count: usize, default: Option<&str>, body: &str, at_letter: bool) -> Definition {
    let delimiters = vec![String::new(); count + 1];
    let default = default.filter(|_| count > 0).map(str::to_owned);
    Definition { meaning: Meaning::Macro { delimiters, default, body: pieces(body, count) }, at_letter }
}

/// A body, taken apart at its arguments. `##` is the `#` of a definition inside.
fn pieces(body: &str, count: usize) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut text = String::new();
    let mut chars = body.chars().peekable();
    while let Some(c) = chars.next() {
        match (c, chars.peek().copied()) {
            ('\\', Some(next)) => {
                text.push(c);
                text.push(next);
                chars.next();
            }
            ('#', Some('#')) => {
                text.push('#');
                chars.next();
            }
            ('#', Some(digit @ '1'..='9')) if (digit as usize - '1' as usize) < count => {
                pieces.push(Piece::Text(std::mem::take(&mut text)));
                pieces.push(Piece::Argument(digit as usize - '1' as usize));
                chars.next();
            }
            _ => text.push(c),
        }
    }
    pieces.push(Piece::Text(text));
    pieces
}

impl Definition {
    /// Whether the body has inner commands of LaTeX in it.
    pub(super) fn is_internal(&self) -> bool {
        let Meaning::Macro { body, .. } = &self.meaning else { return false };
        self.at_letter && body.iter().any(|p| matches!(p, Piece::Text(t) if t.contains('@')))
    }

    /// The body with the arguments that stand at `at` in `tex`, and the place after them; `None` where they are not there.
    /// Takes what it reads off `left`, and leaves 0 there if that does not do.
    pub(super) fn apply(&self, tex: &str, at: usize, left: &mut usize) -> Option<(String, usize)> {
        let Meaning::Macro { delimiters, default, body } = &self.meaning else { return None };
        let mut at = at;
        let mut arguments: [&str; 9] = [""; 9];
        if let Some(first) = delimiters.first().filter(|d| !d.is_empty()) {
            at += blanks(&tex[at..]);
            at += tex[at..].starts_with(first.as_str()).then_some(first.len())?;
        }
        for (i, delimiter) in delimiters.iter().skip(1).enumerate() {
            let rest = &tex[at..];
            let (argument, end) = match (default, i) {
                (Some(default), 0) => {
                    let skipped = blanks(rest);
                    match bracket_end(&rest[skipped..], left) {
                        Some(end) => (&rest[skipped + 1..skipped + end - 1], skipped + end),
                        None => (default.as_str(), 0),
                    }
                }
                _ if delimiter.is_empty() => argument(rest, left)?,
                _ => {
                    let (start, end) = find(rest, delimiter, left)?;
                    let argument = rest[..start].trim();
                    let inner = (argument.starts_with('{') && group_end(argument, left) == Some(argument.len()))
                        .then(|| &argument[1..argument.len() - 1]);
                    (inner.unwrap_or(argument), end)
                }
            };
            arguments[i] = argument;
            at += end;
        }
        // `\name{}` and `\name\ ` are how to end a name and keep the blank. Without them blanks after a name are none, which is
        // followed where it can be seen: after a word.
        if delimiters.len() == 1 && delimiters[0].is_empty() {
            let rest = &tex[at..];
            let word = matches!(body.last(), Some(Piece::Text(t)) if !t.ends_with('}') && !ends_with_word(t));
            at += match rest.as_bytes() {
                [b'{', b'}', ..] => 2,
                [b'\\', b' ', ..] => 1,
                _ if word => rest.len() - rest.trim_start_matches([' ', '\t']).len(),
                _ => 0,
            };
        }
        let mut text = String::new();
        for piece in body {
            let piece = match piece {
                Piece::Text(piece) => piece.as_str(),
                Piece::Argument(i) => arguments[*i],
            };
            if piece.starts_with(|c: char| c.is_ascii_alphabetic()) && ends_with_word(&text) {
                text.push(' ');
            }
            if text.len() + piece.len() > *left {
                *left = 0;
                return None;
            }
            text.push_str(piece);
        }
        Some((text, at))
    }
}

fn ends_with_word(text: &str) -> bool {
    let name = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    // An even number of backslashes is line breaks.
    name.len() < text.len() && (name.len() - name.trim_end_matches('\\').len()) % 2 == 1
}

/// The length of the blanks that TeX skips before an argument: not past an empty line.
fn blanks(tex: &str) -> usize {
    let rest = tex.trim_start_matches([' ', '\t']);
    let rest = rest.strip_prefix('\n').map_or(rest, |r| r.trim_start_matches([' ', '\t']));
    tex.len() - rest.len()
}

/// An undelimited argument: a group, a command, or a character; and where it ends.
fn argument<'a>(tex: &'a str, left: &mut usize) -> Option<(&'a str, usize)> {
    let at = blanks(tex);
    let rest = &tex[at..];
    match rest.chars().next()? {
        '{' => {
            let end = group_end(rest, left)?;
            Some((&rest[1..end - 1], at + end))
        }
        '\\' => {
            let letters = rest[1..].bytes().take_while(u8::is_ascii_alphabetic).count();
            let len = if letters > 0 { letters } else { rest[1..].chars().next()?.len_utf8() };
            Some((&rest[..1 + len], at + 1 + len))
        }
        '}' | '\n' => None,
        c => Some((&rest[..c.len_utf8()], at + c.len_utf8())),
    }
}

/// The length of the `{..}` that a text starts with.
fn group_end(tex: &str, left: &mut usize) -> Option<usize> {
    tex.starts_with('{').then(|| scan(tex, left, |depth, rest| depth == 0 && rest.starts_with('}')))?.map(|end| end + 1)
}

/// The length of the `[..]` that a text starts with; a `]` in a group is part of it.
fn bracket_end(tex: &str, left: &mut usize) -> Option<usize> {
    tex.starts_with('[').then(|| scan(tex, left, |depth, rest| depth == 0 && rest.starts_with(']')))?.map(|end| end + 1)
}

/// The start of `delimiter`, outside of groups, and its end.
fn find(tex: &str, delimiter: &str, left: &mut usize) -> Option<(usize, usize)> {
    // The blanks after a command are no part of it, and those of other delimiters may be a newline.
    let piece = if delimiter.trim().is_empty() { delimiter } else { delimiter.trim_end() };
    let word = ends_with_word(piece);
    let start = scan(tex, left, |depth, rest| {
        depth == 0 && rest.strip_prefix(piece).is_some_and(|after| !word || !after.starts_with(|c: char| c.is_ascii_alphabetic()))
    })?;
    Some((start, start + piece.len()))
}

/// The first place, outside of what is escaped, where `ends(groups open after this character, text from it)`. An unbalanced
/// `}`, [`MAX_ARGUMENT`] bytes, or `left` end the search.
fn scan(tex: &str, left: &mut usize, ends: impl Fn(i32, &str) -> bool) -> Option<usize> {
    let limit = MAX_ARGUMENT.min(*left);
    let (mut depth, mut escaped, mut read) = (0, false, 0);
    let mut found = None;
    for (i, c) in tex.char_indices() {
        read = i + 1;
        if i > limit {
            break;
        }
        if std::mem::take(&mut escaped) {
            continue;
        }
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if ends(depth, &tex[i..]) {
            found = Some(i);
            break;
        }
        if depth < 0 {
            break;
        }
        escaped = c == '\\';
    }
    *left = left.saturating_sub(read);
    found
}
