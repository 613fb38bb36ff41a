//! One document of a paper's files: the main file, with every `\input` in its place.

use std::collections::HashMap;

use super::lex::{Environments, Kind, Lexer, find_pair};
use super::notes::Notes;

/// Text that an `\input` may name, beside LaTeX proper.
pub(super) const TEXT: [&str; 7] = ["def", "inc", "txt", "tikz", "pgf", "pstex_t", "pdf_tex"];
/// Files inside each other, at most.
const MAX_DEPTH: usize = 16;
/// Files put in place in a paper, at most.
const MAX_INCLUDES: usize = 10_000;
/// Files that are tried as the main one, at most.
const MAX_CANDIDATES: usize = 16;
/// The longest path in an `\input`, in bytes.
const MAX_PATH: usize = 300;

/// A file of a paper.
#[derive(Debug)]
pub(super) struct TexFile {
    /// Its path in the archive, with `/`.
    pub(super) name: String,
    pub(super) text: String,
}

/// A paper's document.
#[derive(Debug, Default)]
pub(super) struct Document {
    pub(super) text: String,
    /// The files in it, the main one first.
    pub(super) files: Vec<String>,
    /// What `\input` and its like name and the archive lacks, or what would go round in circles.
    pub(super) missing: Vec<String>,
}

/// Whether a file is LaTeX by its name; others are only read where `\input` names them.
pub(super) fn is_tex(name: &str) -> bool {
    let extension = name.rsplit_once('.').map_or("", |(_, e)| e);
    ["tex", "ltx", "latex"].iter().any(|e| extension.eq_ignore_ascii_case(e))
}

/// Puts a paper together, with at most `max` bytes of text. The main file is the one that the paper's `00README` names. Else it is, of
/// those with `\documentclass` and `\begin{document}` (of all, where none has: plain TeX), without those that are to be ignored, one
/// with a bibliography that was compiled, if there is any; and of these, the one that makes the longest document; the first of equals.
pub(super) fn assemble(files: &[TexFile], notes: &Notes, max: u64) -> Result<Document, String> {
    let by_name: HashMap<&str, usize> = files.iter().enumerate().map(|(i, f)| (f.name.as_str(), i)).collect();
    let named = |names: &[String], file: &TexFile| names.contains(&file.name);
    let ignored = |file: &TexFile| named(&notes.ignored, file) || file.text.trim_start().starts_with("%auto-ignore");
    let text = |name: &str| TEXT.iter().any(|e| name.rsplit_once('.').is_some_and(|(_, its)| its.eq_ignore_ascii_case(e)));
    let candidates = |wanted: fn(&Marks) -> bool| {
        let tex = files.iter().enumerate().filter(|(_, f)| !text(&f.name) && !ignored(f));
        tex.filter(|(_, f)| wanted(&Marks::of(&f.text))).map(|(i, _)| i).collect::<Vec<_>>()
    };
    let top = |(i, file): (usize, &TexFile)| named(&notes.top_level, file).then_some(i);
    let mut mains: Vec<usize> = files.iter().enumerate().filter_map(top).collect();
    if mains.is_empty() {
        mains = candidates(|m| m.class && m.document && !m.part);
        let compiled =
            |i: &usize| notes.compiled.iter().any(|stem| files[*i].name.rsplit_once('.').is_some_and(|(s, _)| s == stem));
        if mains.iter().any(compiled) {
            mains.retain(compiled);
        }
    }
    for wanted in [|m: &Marks| m.class && m.document, |m: &Marks| m.document, |_: &Marks| true] {
        if mains.is_empty() {
            mains = candidates(wanted);
        }
    }
    if mains.is_empty() {
        return Err("no LaTeX source in the archive".into());
    }
    // The longest by themselves, in the archive's order.
    mains.sort_by_key(|&i| std::cmp::Reverse(files[i].text.len()));
    mains.truncate(MAX_CANDIDATES);
    mains.sort_unstable();
    let mut best: Option<Document> = None;
    let mut problem = String::new();
    for main in mains {
        let environments = Environments::of(&files[main].text);
        let dir = parent(&files[main].name);
        let mut assembly = Assembly {
            files,
            by_name: &by_name,
            environments,
            dir,
            max,
            includes: 0,
            stack: Vec::new(),
            document: Document::default(),
        };
        match assembly.add(main, "", false) {
            Err(reason) => problem = reason,
            Ok(()) => {
                if best.as_ref().is_none_or(|b| assembly.document.text.len() > b.text.len()) {
                    best = Some(assembly.document);
                }
            }
        }
    }
    best.ok_or(problem)
}

/// What says that a file is a main one.
struct Marks {
    class: bool,
    document: bool,
    /// Of a class for parts of documents.
    part: bool,
}

impl Marks {
    fn of(tex: &str) -> Self {
        let mut marks = Self { class: false, document: false, part: false };
        for line in tex.lines() {
            let begin = || find_pair(line, 0, "\\begin", "document").map(|(at, _)| at);
            let Some(at) = line.find("\\document").or_else(begin) else { continue };
            if line[..at].contains('%') {
                continue;
            }
            let rest = &line[at..];
            if rest.starts_with("\\documentclass") || rest.starts_with("\\documentstyle") {
                marks.class = true;
                marks.part |= rest.contains("{standalone}") || rest.contains("{subfiles}");
            }
            marks.document |= find_pair(rest, 0, "\\begin", "document").is_some();
        }
        marks
    }
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

/// `dir/path` without `.` and `..`.
fn join(dir: &str, path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in dir.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            _ => parts.push(part),
        }
    }
    parts.join("/")
}

struct Assembly<'a> {
    files: &'a [TexFile],
    by_name: &'a HashMap<&'a str, usize>,
    environments: Environments,
    /// The main file's folder, from which TeX looks for files.
    dir: &'a str,
    max: u64,
    includes: usize,
    stack: Vec<usize>,
    document: Document,
}

impl Assembly<'_> {
    /// Appends a file; `import` is the folder that an `\import` around it names, `inner` whether only its `document` counts.
    fn add(&mut self, index: usize, import: &str, inner: bool) -> Result<(), String> {
        let files = self.files;
        let source = &files[index];
        if !self.document.files.contains(&source.name) {
            self.document.files.push(source.name.clone());
        }
        self.stack.push(index);
        let mut tex = source.text.as_str();
        if inner {
            // A `subfiles` file has a preamble of its own.
            tex = find_pair(tex, 0, "\\begin", "document").map_or(tex, |(_, body)| &tex[body..]);
            tex = find_pair(tex, 0, "\\end", "document").map_or(tex, |(end, _)| &tex[..end]);
        }
        let environments = self.environments.clone();
        let mut lexer = Lexer::new(tex, &environments);
        while let Some(token) = lexer.next() {
            let at = lexer.pos();
            if token.kind == Kind::Word && token.name() == "endinput" {
                break;
            }
            match Include::at(tex, token.name(), at) {
                Some((include, end)) => {
                    lexer.jump(end);
                    self.include(&include, import, parent(&source.name))?;
                }
                None => self.push(token.text)?,
            }
        }
        self.stack.pop();
        Ok(())
    }

    fn push(&mut self, text: &str) -> Result<(), String> {
        if (self.document.text.len() + text.len()) as u64 > self.max {
            return Err(format!("its files put together are more than {} bytes of LaTeX", self.max));
        }
        self.document.text.push_str(text);
        Ok(())
    }

    fn include(&mut self, include: &Include, import: &str, current: &str) -> Result<(), String> {
        let name = include.path.trim().trim_matches('"');
        if name.ends_with(".bbl") {
            // Where the bibliography is, but not what is in it.
            return self.push("\\bibliography{}");
        }
        let import = if include.relative { join(import, include.dir) } else { include.dir.to_owned() };
        let dirs = [join(self.dir, &import), self.dir.to_owned(), current.to_owned()];
        let found = dirs.iter().find_map(|dir| {
            let path = join(dir, name);
            self.by_name.get(format!("{path}.tex").as_str()).or_else(|| self.by_name.get(path.as_str())).copied()
        });
        self.includes += 1;
        match found {
            Some(i) if !self.stack.contains(&i) && self.stack.len() < MAX_DEPTH && self.includes <= MAX_INCLUDES => {
                let before = self.document.text.len();
                self.add(i, &import, include.inner)?;
                // TeX ends a file's last line; a comment on it must not swallow what follows.
                if self.document.text.len() > before && !self.document.text.ends_with('\n') {
                    self.push("\n")?;
                }
            }
            _ => {
                let name = &name[..name.floor_char_boundary(MAX_PATH.min(name.len()))];
                if self.document.missing.len() < 100 && !self.document.missing.iter().any(|m| m == name) {
                    self.document.missing.push(name.to_owned());
                }
            }
        }
        Ok(())
    }
}

/// A command that puts a file in its place.
struct Include<'a> {
    dir: &'a str,
    path: &'a str,
    /// The folder is relative to the one in force.
    relative: bool,
    inner: bool,
}

impl<'a> Include<'a> {
    /// The one that `\name` before `at` is, and where it ends.
    fn at(tex: &'a str, name: &str, at: usize) -> Option<(Self, usize)> {
        let (dir, path, end) = match name {
            "input" | "@input" => match argument(tex, at) {
                Some((path, end)) => ("", path, end),
                None => {
                    // TeX's own form: a blank, and a name up to the next.
                    let rest = tex[at..].trim_start_matches([' ', '\t']);
                    let start = tex.len() - rest.len();
                    let ends = |c: char| c.is_whitespace() || matches!(c, '\\' | '{' | '}' | '%');
                    let len = rest.find(ends).unwrap_or(rest.len());
                    if start == at || len == 0 || len > MAX_PATH {
                        return None;
                    }
                    ("", &rest[..len], start + len)
                }
            },
            "include" | "subfile" | "subfileinclude" => {
                let (path, end) = argument(tex, at)?;
                ("", path, end)
            }
            "import" | "subimport" | "includefrom" | "subincludefrom" | "inputfrom" | "subinputfrom" => {
                let (dir, next) = argument(tex, at)?;
                let (path, end) = argument(tex, next)?;
                (dir, path, end)
            }
            _ => return None,
        };
        // A parameter of a macro names no file.
        (!path.contains(['#', '\\'])).then_some((
            Self { dir, path, relative: name.starts_with("sub") || dir.is_empty(), inner: name.starts_with("subfile") },
            end,
        ))
    }
}

/// `{..}` after blanks.
fn argument(tex: &str, at: usize) -> Option<(&str, usize)> {
    let rest = tex[at..].trim_start_matches([' ', '\t']);
    let inner = rest.strip_prefix('{')?;
    let len = inner.bytes().take(MAX_PATH).position(|b| matches!(b, b'}' | b'{' | b'\n'))?;
    (inner.as_bytes()[len] == b'}').then(|| (&inner[..len], tex.len() - rest.len() + len + 2))
}
