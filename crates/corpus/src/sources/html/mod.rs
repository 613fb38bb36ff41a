//! From the bytes of a web page to its text: the character set, then the HTML.

mod text;

use std::{
    borrow::Cow,
    cell::{Cell, RefCell},
    collections::HashMap,
};

use chardetng::EncodingDetector;
use dom_query::{Document, NodeId};
use encoding_rs::{Encoding, ISO_2022_JP, UTF_8};
use html5ever::{
    Attribute, ParseOpts, QualName,
    interface::{ElementFlags, NodeOrText, QuirksMode, TreeSink},
    tendril::{StrTendril, TendrilSink},
    tree_builder::TreeBuilderOpts,
};

use crate::charset;

/// Bytes at the beginning of a page in which `<meta charset>` is looked for. Browsers look at 1024; many pages have it later.
const META_WITHIN: usize = 4096;

/// Decodes a page or text file, and names its character set.
///
/// A byte order mark decides; then the zeros that UTF-16 has in every second byte; then text that is valid UTF-8 is UTF-8, whatever is declared (a text in another set is valid UTF-8 by chance
/// next to never, and wrong declarations are common); then the `charset` of the `Content-Type`, then the one of a `<meta>` tag; then a guess
/// from the bytes. A declaration that the bytes contradict (they have sequences that the set has not) loses to the guess if that fits.
pub fn decode<'a>(bytes: &'a [u8], content_type: Option<&str>) -> (Cow<'a, str>, &'static str) {
    if let Some((encoding, len)) = Encoding::for_bom(bytes) {
        let (text, _) = encoding.decode_without_bom_handling(&bytes[len..]);
        return (text, encoding.name());
    }
    // Its zeros are valid UTF-8, and hide its tags.
    if let Some(encoding) = charset::utf16(bytes) {
        let (text, _) = encoding.decode_without_bom_handling(bytes);
        return (text, encoding.name());
    }
    let declared = content_type.and_then(charset_param).or_else(|| meta_charset(&bytes[..bytes.len().min(META_WITHIN)]));
    // The only set of the web whose other letters are written in ASCII bytes.
    let ascii_is_text = declared != Some(ISO_2022_JP);
    match std::str::from_utf8(bytes) {
        Ok(text) if ascii_is_text => return (text.into(), UTF_8.name()),
        // Cut within a character.
        Err(e) if e.error_len().is_none() && ascii_is_text && e.valid_up_to() > 0 => {
            return (String::from_utf8_lossy(&bytes[..e.valid_up_to()]), UTF_8.name());
        }
        _ => {}
    }
    let guess = || {
        let mut detector = EncodingDetector::new();
        detector.feed(bytes, true);
        detector.guess(None, false)
    };
    let declared = declared.filter(|&e| e != UTF_8 || mostly_utf8(bytes));
    let Some(declared) = declared else {
        let encoding = if mostly_utf8(bytes) { UTF_8 } else { guess() };
        return (encoding.decode_without_bom_handling(bytes).0, encoding.name());
    };
    let (text, bad) = declared.decode_without_bom_handling(bytes);
    if bad && declared != UTF_8 {
        let encoding = guess();
        let (guessed, bad) = encoding.decode_without_bom_handling(bytes);
        if !bad {
            return (guessed, encoding.name());
        }
    }
    (text, declared.name())
}

/// Whether more of the sequences outside ASCII are UTF-8 than are not.
fn mostly_utf8(bytes: &[u8]) -> bool {
    let (mut good, mut bad) = (0_usize, 0_usize);
    for chunk in bytes.utf8_chunks() {
        good += chunk.valid().chars().filter(|c| !c.is_ascii()).count();
        bad += usize::from(!chunk.invalid().is_empty());
    }
    good > bad
}

/// The `charset` parameter of a `Content-Type`.
fn charset_param(content_type: &str) -> Option<&'static Encoding> {
    label_after(content_type.as_bytes(), b"charset")
}

/// The set that a `<meta>` tag or an XML declaration names. UTF-16 cannot be what an ASCII tag says (WHATWG HTML, 13.2.3.2).
fn meta_charset(start: &[u8]) -> Option<&'static Encoding> {
    let lower = start.to_ascii_lowercase();
    let xml = lower.starts_with(b"<?xml").then(|| label_after(until(&lower, b"?>"), b"encoding")).flatten();
    let meta = || memchr::memmem::find_iter(&lower, b"<meta").find_map(|i| label_after(until(&lower[i..], b">"), b"charset"));
    let encoding = xml.or_else(meta)?;
    Some(if encoding == encoding_rs::UTF_16BE || encoding == encoding_rs::UTF_16LE { UTF_8 } else { encoding })
}

fn until<'a>(bytes: &'a [u8], end: &[u8]) -> &'a [u8] {
    memchr::memmem::find(bytes, end).map_or(bytes, |i| &bytes[..i])
}

/// The encoding that `NAME = LABEL` names, the label quoted or not.
fn label_after(bytes: &[u8], name: &[u8]) -> Option<&'static Encoding> {
    let at = bytes.windows(name.len()).position(|w| w.eq_ignore_ascii_case(name))?;
    let value = bytes[at + name.len()..].trim_ascii_start().strip_prefix(b"=")?.trim_ascii_start();
    let value = value.strip_prefix(b"\"").or_else(|| value.strip_prefix(b"'")).unwrap_or(value);
    let end =
        value.iter().position(|b| matches!(b, b'"' | b'\'' | b';' | b',') || b.is_ascii_whitespace()).unwrap_or(value.len());
    Encoding::for_label(&value[..end])
}

/// Bounds of the HTML extraction. Within them it takes time in proportion to the page's size (measured: well below a second a MB); pages
/// beyond them are rejected while they are parsed. All bounds count things of the page and not time, so that every run decides alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Bytes of a page. CommonCrawl cuts at 1 MiB, since 2025 at 5 MiB.
    pub max_bytes: usize,
    /// Elements within each other; browsers stop at 512. What parser and extraction cost grows with the depth.
    pub max_depth: usize,
    /// Elements and comments of a page. Beside it a page may have 20,000 and one for every 8 of its bytes; usual pages have one for
    /// 30 to 100 bytes.
    pub max_nodes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { max_bytes: 5 << 20, max_depth: 256, max_nodes: 200_000 }
    }
}

/// What was taken from a page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Its title, as the page's head or its headings have it.
    pub title: String,
    /// The main text: paragraphs with a blank line between them. Empty if the page has none.
    pub text: String,
}

/// Takes the main text out of a page: what a reader view shows (the algorithm of Mozilla's Readability).
///
/// # Errors
/// A reason for a reader: the page is beyond a bound.
pub fn extract(html: &str, options: &Options) -> Result<Page, String> {
    let document = parse(html, options)?;
    text::prepare(&document);
    let config = dom_smoothie::Config { disable_json_ld: true, ..Default::default() };
    // The only error of the first is a bad address, and of the second that the page has no text.
    let Ok(mut page) = dom_smoothie::Readability::with_document(document, None, Some(config)) else { return Ok(Page::default()) };
    let Ok(article) = page.parse() else { return Ok(Page::default()) };
    // Where it has put the main part.
    let main = page.doc.select_single("#readability-page-1");
    let text = main.nodes().first().map(text::text).unwrap_or_default();
    Ok(Page { title: one_line(&article.title), text })
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Bytes that are parsed before the bounds are looked at again.
const STEP: usize = 1024;
/// Comparisons of attribute names that a page may cost, beside `WORK_PER_BYTE`: about 0.1 s.
const WORK: usize = 50_000_000;
const WORK_PER_BYTE: usize = 50;

fn parse(html: &str, options: &Options) -> Result<Document, String> {
    if html.len() > options.max_bytes {
        return Err(format!("the page has {} bytes, more than the {} that are read", html.len(), options.max_bytes));
    }
    let tree_builder = TreeBuilderOpts { scripting_enabled: false, ..Default::default() };
    let mut parser = html5ever::parse_document(Guard::default(), ParseOpts { tree_builder, ..Default::default() });
    let mut rest = html;
    // An attribute is compared with all those before it in its tag, and a tag shows only when it ends: within it the
    // work is estimated from what separates attributes.
    let (mut separators, mut work) = (0, 0);
    let max_nodes = options.max_nodes.min(20_000 + html.len() / 8);
    while !rest.is_empty() {
        let (step, after) = rest.split_at(rest.floor_char_boundary(STEP.min(rest.len())));
        rest = after;
        parser.process(step.into());
        let guard = &parser.tokenizer.sink.sink;
        if guard.called.take() {
            separators = 0;
        } else {
            let more = step.bytes().filter(|b| b.is_ascii_whitespace() || matches!(b, b'/' | b'"' | b'\'')).count();
            separators += more;
            work += more * separators;
        }
        if work > WORK + WORK_PER_BYTE * html.len() {
            return Err("a tag or comment of the page is too long".to_owned());
        }
        if guard.nodes.get() > max_nodes {
            return Err(format!("the page has more than {max_nodes} elements"));
        }
        if guard.depth(options.max_depth) > options.max_depth {
            return Err(format!("the page has elements nested deeper than {}", options.max_depth));
        }
    }
    Ok(parser.finish())
}

/// The document as it is built, watched.
#[derive(Default)]
struct Guard {
    document: Document,
    /// Whether anything was added since the last look.
    called: Cell<bool>,
    /// Elements and comments. There are no more texts than these, and one.
    nodes: Cell<usize>,
    last: Cell<Option<NodeId>>,
    /// The contents of a template have no parent: the template that they belong to.
    templates: RefCell<HashMap<NodeId, NodeId>>,
}

impl Guard {
    /// How deep the last node is, counted up to one more than `max`.
    fn depth(&self, max: usize) -> usize {
        let mut depth = 0;
        let mut node = self.last.get();
        while let Some(id) = node
            && depth <= max
        {
            depth += 1;
            let parent = self.document.tree.parent_of(&id).map(|p| p.id);
            node = parent.or_else(|| self.templates.borrow().get(&id).copied());
        }
        depth
    }

    fn made(&self, id: NodeId) -> NodeId {
        self.nodes.set(self.nodes.get() + 1);
        self.last.set(Some(id));
        id
    }

    fn called(&self) -> &Document {
        self.called.set(true);
        &self.document
    }
}

impl TreeSink for Guard {
    type Handle = NodeId;
    type Output = Document;
    type ElemName<'a> = <Document as TreeSink>::ElemName<'a>;

    fn finish(self) -> Document {
        self.document
    }

    fn parse_error(&self, _: Cow<'static, str>) {} // a page can have as many as it has bytes

    fn get_document(&self) -> NodeId {
        self.document.get_document()
    }

    fn elem_name<'a>(&'a self, target: &'a NodeId) -> Self::ElemName<'a> {
        self.document.elem_name(target)
    }

    fn create_element(&self, name: QualName, attrs: Vec<Attribute>, flags: ElementFlags) -> NodeId {
        let template = flags.template;
        let id = self.called().create_element(name, attrs, flags);
        if template {
            self.templates.borrow_mut().insert(self.document.get_template_contents(&id), id);
        }
        self.made(id)
    }

    fn create_comment(&self, text: StrTendril) -> NodeId {
        self.made(self.called().create_comment(text))
    }

    fn create_pi(&self, target: StrTendril, data: StrTendril) -> NodeId {
        self.made(self.called().create_pi(target, data))
    }

    fn append(&self, parent: &NodeId, child: NodeOrText<NodeId>) {
        self.called().append(parent, child);
    }

    fn append_based_on_parent_node(&self, element: &NodeId, previous: &NodeId, child: NodeOrText<NodeId>) {
        self.called().append_based_on_parent_node(element, previous, child);
    }

    fn append_doctype_to_document(&self, name: StrTendril, public_id: StrTendril, system_id: StrTendril) {
        self.called().append_doctype_to_document(name, public_id, system_id);
    }

    fn get_template_contents(&self, target: &NodeId) -> NodeId {
        self.document.get_template_contents(target)
    }

    fn same_node(&self, x: &NodeId, y: &NodeId) -> bool {
        self.document.same_node(x, y)
    }

    fn set_quirks_mode(&self, mode: QuirksMode) {
        self.document.set_quirks_mode(mode);
    }

    fn append_before_sibling(&self, sibling: &NodeId, node: NodeOrText<NodeId>) {
        self.called().append_before_sibling(sibling, node);
    }

    fn add_attrs_if_missing(&self, target: &NodeId, attrs: Vec<Attribute>) {
        self.called().add_attrs_if_missing(target, attrs);
    }

    fn remove_from_parent(&self, target: &NodeId) {
        self.document.remove_from_parent(target);
    }

    fn reparent_children(&self, node: &NodeId, new_parent: &NodeId) {
        self.document.reparent_children(node, new_parent);
    }

    fn is_mathml_annotation_xml_integration_point(&self, handle: &NodeId) -> bool {
        self.document.is_mathml_annotation_xml_integration_point(handle)
    }

    fn maybe_clone_an_option_into_selectedcontent(&self, option: &NodeId) {
        self.document.maybe_clone_an_option_into_selectedcontent(option);
    }
}
