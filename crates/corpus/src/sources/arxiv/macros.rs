//! Expansion of the macros that a document defines, in place, and removal of their definitions.
//!
//! Definitions are read in the order of the text, so that a use has the meaning of the last definition before it; groups do not
//! limit them. What is expanded is expanded again, within three bounds: [`MAX_DEPTH`] expansions inside each other,
//! [`MAX_USE`] bytes of work for one use in the document, and a budget of work for a document that grows with its length. A use
//! that breaks one stays as it was written, and its macro is not tried again; so does a use whose arguments are not there.

use std::collections::{HashMap, HashSet};

use super::{
    define::{self, Definition, Meaning},
    lex::{Environments, Kind, Lexer, Token},
    strip::Count,
};

/// Expansions inside each other, at most. Recursive macros end here.
const MAX_DEPTH: usize = 64;
/// Bytes read and made for one use in the document, at most.
const MAX_USE: usize = 1 << 18;
/// Bytes read and made for all uses: these, and [`BUDGET_PER_BYTE`] for each byte of the document.
const BUDGET: usize = 1 << 20;
const BUDGET_PER_BYTE: usize = 16;
/// Definitions of a document, at most; those after them are ignored.
const MAX_MACROS: usize = 20_000;

/// Commands that make a document's structure. A document that redefines one (for its looks) means the same by it.
const STRUCTURE: [&str; 46] = [
    "part",
    "chapter",
    "section",
    "subsection",
    "subsubsection",
    "paragraph",
    "subparagraph",
    "begin",
    "end",
    "document",
    "enddocument",
    "documentclass",
    "usepackage",
    "input",
    "include",
    "title",
    "author",
    "date",
    "maketitle",
    "abstract",
    "endabstract",
    "appendix",
    "bibliography",
    "bibliographystyle",
    "printbibliography",
    "thebibliography",
    "endthebibliography",
    "bibitem",
    "cite",
    "label",
    "ref",
    "eqref",
    "pageref",
    "footnote",
    "caption",
    "item",
    "figure",
    "endfigure",
    "table",
    "endtable",
    "equation",
    "endequation",
    "par",
    "left",
    "right",
    "tableofcontents",
];

/// A use could not be expanded within its bounds.
struct TooMuch;

/// What expansion makes of a document.
pub(super) struct Expanded {
    pub(super) text: String,
    /// The definitions that went.
    pub(super) definitions: Count,
    /// The uses that broke a bound and stay.
    pub(super) unexpanded: Count,
}

/// `tex`, a text without comments, with its macros expanded. `environments`: also those of `\newenvironment`.
pub(super) fn expand(tex: &str, envs: &Environments, environments: bool) -> Expanded {
    let mut expander = Expander {
        envs,
        environments,
        macros: HashMap::new(),
        beginnings: HashMap::new(),
        hopeless: HashSet::new(),
        budget: tex.len().saturating_mul(BUDGET_PER_BYTE).saturating_add(BUDGET),
        left: 0,
        definitions: Count::default(),
        unexpanded: Count::default(),
    };
    let mut text = Output { text: String::with_capacity(tex.len()), word: false, xspace: false };
    // At depth 0 each use has its own bound, so that nothing fails as a whole.
    let _ = expander.run(tex, false, 0, &mut text);
    let Expander { definitions, unexpanded, .. } = expander;
    Expanded { text: text.text, definitions, unexpanded }
}

/// Text being made. A letter after a command's name is kept apart from it, and so is what follows an `\xspace`.
struct Output {
    text: String,
    word: bool,
    xspace: bool,
}

impl Output {
    fn push(&mut self, piece: &str, word: bool) {
        if piece.is_empty() {
            return;
        }
        let first = piece.as_bytes()[0];
        // The exceptions of the xspace package.
        let close = b",.'/?;:!~-)]{} \t\n".contains(&first) || piece.starts_with("\\footnote") || matches!(piece, "\\ " | "\\/");
        if (self.word && first.is_ascii_alphabetic()) || (self.xspace && !close) {
            self.text.push(' ');
        }
        self.xspace = false;
        self.text.push_str(piece);
        self.word = word;
    }

    /// A place to go back to.
    fn place(&self) -> (usize, bool, bool) {
        (self.text.len(), self.word, self.xspace)
    }

    fn truncate(&mut self, (len, word, xspace): (usize, bool, bool)) {
        self.text.truncate(len);
        (self.word, self.xspace) = (word, xspace);
    }
}

struct Expander<'e> {
    envs: &'e Environments,
    environments: bool,
    macros: HashMap<String, Definition>,
    /// `\begin` and `\end` parts of the document's own environments, by name.
    beginnings: HashMap<String, (Definition, String)>,
    /// Macros that broke a bound.
    hopeless: HashSet<String>,
    /// Bytes that may still be worked on, in all.
    budget: usize,
    /// The same for the current use in the document.
    left: usize,
    definitions: Count,
    unexpanded: Count,
}

impl Expander<'_> {
    /// Appends what `tex` becomes.
    fn run(&mut self, tex: &str, at_letter: bool, depth: usize, out: &mut Output) -> Result<(), TooMuch> {
        let mut lexer = Lexer::without_comments(tex, self.envs).with_at_letter(at_letter);
        while let Some(token) = lexer.next() {
            if token.kind != Kind::Word {
                out.push(token.text, false);
                continue;
            }
            let name = token.name();
            if let Some((defined, end)) = define::definition(tex, name, lexer.pos(), lexer.at_letter(), &mut self.budget) {
                self.definitions.add(&tex[token.start..end]);
                self.define(defined);
                // The line goes with it where there was nothing else on it.
                let rest = tex[end..].trim_start_matches([' ', '\t']);
                lexer.jump(end);
                if rest.starts_with('\n') {
                    let kept = out.text.trim_end_matches([' ', '\t']).len();
                    if kept == 0 || out.text.as_bytes()[kept - 1] == b'\n' {
                        out.truncate((kept, false, false));
                        lexer.jump(tex.len() - rest.len() + 1);
                    }
                }
                continue;
            }
            if name == "xspace" && depth > 0 {
                out.xspace = true;
                continue;
            }
            let place = out.place();
            if depth == 0 {
                self.left = MAX_USE.min(self.budget);
            }
            let before = self.left;
            let used = self.use_of(tex, token, lexer.pos(), depth, out);
            if depth == 0 {
                self.budget = self.budget.saturating_sub(before - self.left);
            }
            match used {
                Ok(Some(end)) => lexer.jump(end),
                Ok(None) => out.push(token.text, true),
                Err(TooMuch) if depth > 0 => return Err(TooMuch),
                Err(TooMuch) => {
                    out.truncate(place);
                    out.push(token.text, true);
                    self.unexpanded.add(token.text);
                    self.hopeless.insert(name.to_owned());
                }
            }
        }
        Ok(())
    }

    /// Appends the expansion of the macro `token` whose name ends at `at`; the place after its arguments, or `None` where it is
    /// none or they are not there.
    fn use_of(&mut self, tex: &str, token: Token, at: usize, depth: usize, out: &mut Output) -> Result<Option<usize>, TooMuch> {
        let name = token.name();
        let (body, end, at_letter);
        if self.environments && matches!(name, "begin" | "end") {
            let Some((environment, after)) = super::lex::braced(tex, at) else { return Ok(None) };
            let Some((begin, finish)) = self.beginnings.get(environment) else { return Ok(None) };
            if name == "begin" {
                let Some(found) = begin.apply(tex, after, &mut self.left) else { return self.unless_spent() };
                (body, end) = found;
            } else {
                (body, end) = (finish.clone(), after);
            }
            at_letter = begin.at_letter;
        } else {
            let Some(definition) = self.macros.get(name) else { return Ok(None) };
            if self.hopeless.contains(name) {
                return Ok(None);
            }
            match &definition.meaning {
                // `\let` to something that is no macro of the document: nothing more to expand.
                Meaning::Same(text) => {
                    out.push(text, text.starts_with('\\') && text.len() > 1 && text.ends_with(|c: char| c.is_ascii_alphabetic()));
                    return Ok(Some(at));
                }
                Meaning::Macro { .. } => {
                    let Some(found) = definition.apply(tex, at, &mut self.left) else { return self.unless_spent() };
                    (body, end) = found;
                    at_letter = definition.at_letter;
                }
            }
        }
        if depth + 1 > MAX_DEPTH || self.left < body.len() {
            return Err(TooMuch);
        }
        self.left -= body.len();
        self.run(&body, at_letter, depth + 1, out)?;
        Ok(Some(end))
    }

    /// Arguments were not found: because they are not there, or because the search for them took too long.
    fn unless_spent(&self) -> Result<Option<usize>, TooMuch> {
        if self.left == 0 { Err(TooMuch) } else { Ok(None) }
    }

    fn define(&mut self, defined: define::Defined) {
        if self.macros.len() + self.beginnings.len() >= MAX_MACROS {
            return;
        }
        match defined {
            define::Defined::Macro { name, definition, only_if_new } => {
                let internal = name.contains('@') || definition.is_internal();
                if STRUCTURE.contains(&name.as_str()) || (only_if_new && self.macros.contains_key(&name)) {
                    return;
                }
                // What is made of LaTeX's inner commands is looks, and means nothing to a reader.
                if internal {
                    self.macros.remove(&name);
                } else {
                    self.hopeless.remove(&name);
                    self.macros.insert(name, definition);
                }
            }
            define::Defined::Let { name, text } => {
                if STRUCTURE.contains(&name.as_str()) || name.contains('@') {
                    return;
                }
                let copied = text.strip_prefix('\\').and_then(|n| self.macros.get(n)).cloned();
                let meaning = copied.unwrap_or(Definition { meaning: Meaning::Same(text), at_letter: false });
                self.hopeless.remove(&name);
                self.macros.insert(name, meaning);
            }
            define::Defined::Environment { name, begin, end } => {
                if !begin.is_internal() && !end.contains('@') {
                    self.beginnings.insert(name, (begin, end));
                }
            }
            define::Defined::Nothing => {}
        }
    }
}
