//! What a reader sees of a page's main part, as text: lines where blocks and line breaks are, code as it is indented, formulas once.

use dom_query::{Document, NodeRef};

use crate::sources::scripts;

/// A line break, in a text node in the place of a `<br>`: Readability loses those that stand alone.
const BREAK: char = '\u{1}';
/// Lines between which text stays as it is.
const CODE: &str = "\u{2}";
const CODE_END: &str = "\u{3}";
/// Bytes of raised or lowered text; more is small print.
const SHORT: usize = 40;

/// Makes a page ready for Readability, which decides on the main part.
pub(super) fn prepare(document: &Document) {
    let root = document.root();
    let (mut pictures, mut formulas, mut breaks) = (Vec::new(), Vec::new(), Vec::new());
    for node in root.descendants_it() {
        let name = node.qual_name_ref();
        match name.as_ref().map(|name| &*name.local) {
            Some("svg") => pictures.push(node),
            Some("math") => formulas.push(node),
            Some("br") => breaks.push(node),
            _ => {}
        }
    }
    // Titles and descriptions of drawings are not shown.
    pictures.iter().for_each(NodeRef::remove_from_parent);
    for formula in formulas {
        shown_once(&formula);
    }
    for line_break in breaks {
        let is_break = |node: Option<NodeRef<'_>>| node.is_some_and(|node| node.has_name("br"));
        if !is_break(neighbour(&line_break, NodeRef::prev_sibling)) && !is_break(neighbour(&line_break, NodeRef::next_sibling)) {
            line_break.replace_with(&document.tree.new_text(BREAK.to_string()));
        }
    }
}

/// The next node that is not blank.
fn neighbour<'a>(node: &NodeRef<'a>, step: fn(&NodeRef<'a>) -> Option<NodeRef<'a>>) -> Option<NodeRef<'a>> {
    let mut next = step(node);
    while let Some(node) = next.filter(|node| node.is_comment() || (node.is_text() && !node.is_nonempty_text())) {
        next = step(&node);
    }
    next
}

/// KaTeX and MathJax write a formula twice: as MathML for those who listen, and as boxes (`aria-hidden`) for those who look. The boxes go.
fn shown_once(formula: &NodeRef<'_>) {
    let mut inside = *formula;
    for around in formula.ancestors_it(Some(4)) {
        let name = around.node_name().unwrap_or_default();
        if !(*name == *"span" || *name == *"nobr" || name.starts_with("mjx-")) {
            break;
        }
        for child in around.children_it(false).collect::<Vec<_>>() {
            if child.id != inside.id && child.attr("aria-hidden").is_some_and(|hidden| *hidden == *"true") {
                child.remove_from_parent();
            }
        }
        inside = around;
    }
}

/// How an element breaks the text around it (HTML standard, 15.3).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Display {
    Inline,
    /// A blank line around it.
    Block,
    /// A line of its own.
    Line,
    /// A line end after it.
    End,
    Cell,
    /// Text as it stands.
    Code,
    /// Not shown.
    None,
}

fn display(name: &str) -> Display {
    match name {
        "article" | "blockquote" | "section" | "div" | "p" | "h1" | "h2" | "h3" | "h4" | "h5" | "h6" | "ul" | "ol" | "dl"
        | "table" | "figure" | "address" | "center" | "details" | "header" | "footer" | "main" | "aside" | "nav" | "form"
        | "fieldset" | "hgroup" | "search" | "dialog" | "menu" | "dir" | "listing" | "optgroup" => Display::Block,
        "dt" | "dd" | "figcaption" | "summary" | "legend" | "caption" | "option" => Display::Line,
        "br" | "hr" | "li" | "tr" => Display::End,
        "td" | "th" => Display::Cell,
        "pre" | "xmp" | "plaintext" => Display::Code,
        "script" | "style" | "template" | "annotation" | "annotation-xml" | "rp" | "noframes" => Display::None,
        _ => Display::Inline,
    }
}

enum Step<'a> {
    Open(NodeRef<'a>),
    Close(Display),
    Raised(NodeRef<'a>),
    Lowered(NodeRef<'a>),
    Text(&'static str),
}

/// The text in a node. Paragraphs have a blank line between them.
pub(super) fn text(root: &NodeRef<'_>) -> String {
    let mut writer = Writer { out: String::new(), code: 0 };
    let mut steps: Vec<Step<'_>> = root.children_it(true).map(Step::Open).collect();
    while let Some(step) = steps.pop() {
        match step {
            Step::Text(text) => writer.out.push_str(text),
            Step::Close(display) => writer.close(display),
            Step::Raised(node) => writer.script(&node, true),
            Step::Lowered(node) => writer.script(&node, false),
            Step::Open(node) if node.is_text() => writer.text(&node.text()),
            Step::Open(node) => {
                let Some(name) = node.qual_name_ref().map(|name| name.local.clone()) else { continue };
                if matches!(&*name, "sup" | "sub") && short(&node) {
                    writer.script(&node, &*name == "sup");
                    continue;
                }
                if name.starts_with('m') && formula(&name, &node, &mut steps) {
                    continue;
                }
                let display = display(&name);
                if display != Display::None {
                    writer.open(display);
                    steps.push(Step::Close(display));
                    steps.extend(node.children_it(true).map(Step::Open));
                }
            }
        }
    }
    lines(&writer.out)
}

/// The parts of a formula in MathML that stand above and below each other, one after the other.
fn formula<'a>(name: &str, node: &NodeRef<'a>, steps: &mut Vec<Step<'a>>) -> bool {
    if !matches!(name, "msup" | "mover" | "msub" | "munder" | "msubsup" | "munderover" | "mfrac") {
        return false;
    }
    match (name, node.element_children().as_slice()) {
        ("msup" | "mover", [base, raised]) => steps.extend([Step::Raised(*raised), Step::Open(*base)]),
        ("msub" | "munder", [base, lowered]) => steps.extend([Step::Lowered(*lowered), Step::Open(*base)]),
        ("msubsup" | "munderover", [base, lowered, raised]) => {
            steps.extend([Step::Raised(*raised), Step::Lowered(*lowered), Step::Open(*base)]);
        }
        ("mfrac", [above, below]) => steps.extend([Step::Open(*below), Step::Text("/"), Step::Open(*above)]),
        _ => return false,
    }
    true
}

/// Whether a node has a short text and no links, which raised are notes.
fn short(node: &NodeRef<'_>) -> bool {
    /// Nodes of a number or a short formula.
    const FEW: usize = 12;
    let inside: Vec<_> = node.descendants_it().take(FEW + 1).collect();
    inside.len() <= FEW && inside.iter().all(|node| !node.has_name("a")) && node.text().len() <= SHORT
}

struct Writer {
    out: String,
    /// Elements of code that are open.
    code: usize,
}

impl Writer {
    fn text(&mut self, text: &str) {
        let mut pieces = text.split(BREAK);
        if let Some(first) = pieces.next() {
            self.piece(first);
        }
        for piece in pieces {
            self.close(Display::End);
            self.piece(piece);
        }
    }

    fn piece(&mut self, text: &str) {
        let shown = |c: char| !c.is_control() || c.is_whitespace();
        if self.code > 0 {
            self.out.extend(text.chars().filter(|c| shown(*c)));
            return;
        }
        let fresh = self.out.is_empty() || self.out.ends_with(['\n', ' ']);
        let mut first = true;
        for word in text.split_whitespace() {
            let space = if first { !fresh && text.starts_with(char::is_whitespace) } else { true };
            if space {
                self.out.push(' ');
            }
            self.out.extend(word.chars().filter(|c| shown(*c)));
            first = false;
        }
        let blank = first && fresh;
        if !blank && text.ends_with(char::is_whitespace) && !self.out.ends_with(char::is_whitespace) {
            self.out.push(' ');
        }
    }

    /// Raised or lowered text.
    fn script(&mut self, node: &NodeRef<'_>, raised: bool) {
        let before = self.out.chars().next_back();
        let text = node.text();
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        self.out.push_str(&if raised { scripts::raised(before, &text) } else { scripts::lowered(before, &text) });
    }

    fn open(&mut self, display: Display) {
        let blank = self.out.is_empty() || self.out.ends_with("\n\n");
        match display {
            Display::Block if !blank => self.out.push('\n'),
            Display::Line if !self.out.is_empty() && !self.out.ends_with('\n') => self.out.push('\n'),
            Display::Code => {
                if self.code == 0 {
                    self.out.push_str(if blank { "" } else { "\n" });
                    self.out.push_str(&format!("{CODE}\n"));
                }
                self.code += 1;
            }
            _ => {}
        }
    }

    fn close(&mut self, display: Display) {
        if display == Display::Code {
            self.code -= 1;
            if self.code == 0 {
                self.out.push_str(&format!("\n{CODE_END}\n\n"));
            }
            return;
        }
        if self.code > 0 {
            if display != Display::Inline && display != Display::Cell && !self.out.ends_with('\n') {
                self.out.push('\n');
            }
            return;
        }
        if self.out.is_empty() || self.out.ends_with("\n\n") {
            return;
        }
        match display {
            Display::Block => {
                self.out.truncate(self.out.trim_end_matches(' ').len());
                self.out.push_str("\n\n");
            }
            Display::Line if self.out.ends_with('\n') => {}
            Display::End | Display::Line => {
                self.out.truncate(self.out.trim_end_matches(' ').len());
                self.out.push('\n');
            }
            Display::Cell if !self.out.ends_with(['\n', ' ']) => self.out.push(' '),
            _ => {}
        }
    }
}

/// Lines without white space around them, but for code, and never more than one blank one.
fn lines(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let (mut blank, mut code) = (false, false);
    for line in text.lines() {
        match line {
            CODE | CODE_END => {
                code = line == CODE;
                blank |= !code && !out.is_empty();
                continue;
            }
            _ => {}
        }
        let line = if code { line.trim_end() } else { line.trim() };
        if line.is_empty() {
            blank = !out.is_empty();
            continue;
        }
        if !out.is_empty() {
            out.push_str(if blank { "\n\n" } else { "\n" });
        }
        out.push_str(line);
        blank = false;
    }
    out
}
