//! Calls of tools in what a model writes, in the formats of Llama 3.x: `{"name": ..., "parameters": {...}}` (several with `;` or lines
//! between them, the whole in a list, after `<|python_tag|>` or not), `<function=name>{...}</function>`, and `[name(key=value)]`. What
//! is none of them, or calls a tool that is not there, is text.

use serde_json::{Map, Value};

use crate::error::Result;
use crate::work::{Delta, Finish, Step, Work};

/// A call of a tool.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Call {
    pub(crate) id: String,
    pub(crate) name: String,
    /// JSON.
    pub(crate) arguments: String,
}

/// The calls that a text consists of; `None`: it is text.
pub(crate) fn parse(text: &str, known: &[String]) -> Option<Vec<(String, String)>> {
    let text = text.trim();
    let text = text.strip_prefix("<|python_tag|>").unwrap_or(text).trim();
    let calls = if text.starts_with("<function=") { tagged(text)? } else { json(text).or_else(|| pythonic(text))? };
    (!calls.is_empty() && calls.iter().all(|(name, _)| known.contains(name))).then_some(calls)
}

/// Whether a text that begins so may be calls.
pub(crate) fn may_call(text: &str) -> bool {
    let text = text.trim_start();
    let begins = |with: &str| text.starts_with(with) || with.starts_with(text);
    text.is_empty() || text.starts_with('{') || text.starts_with('[') || begins("<|python_tag|>") || begins("<function=")
}

fn json(text: &str) -> Option<Vec<(String, String)>> {
    let mut calls = Vec::new();
    let mut rest = text;
    while !rest.trim_start_matches([';', '\n', ' ', '\r', '\t']).is_empty() {
        rest = rest.trim_start_matches([';', '\n', ' ', '\r', '\t']);
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
        let value = values.next()?.ok()?;
        rest = &rest[values.byte_offset()..];
        match value {
            Value::Array(list) => {
                for one in &list {
                    calls.push(object(one)?);
                }
            }
            one => calls.push(object(&one)?),
        }
    }
    Some(calls)
}

fn object(value: &Value) -> Option<(String, String)> {
    let of = value.get("function").filter(|function| function.is_object()).unwrap_or(value);
    let name = of.get("name").or_else(|| of.get("function"))?.as_str()?;
    let arguments = match of.get("parameters").or_else(|| of.get("arguments")) {
        None | Some(Value::Null) => "{}".into(),
        Some(Value::String(text)) => serde_json::from_str::<Map<String, Value>>(text).ok().map(|_| text.clone())?,
        Some(object @ Value::Object(_)) => object.to_string(),
        Some(_) => return None,
    };
    Some((name.into(), arguments))
}

fn tagged(text: &str) -> Option<Vec<(String, String)>> {
    let mut calls = Vec::new();
    let mut rest = text;
    while let Some(begun) = rest.trim_start_matches([';', '\n', ' ']).strip_prefix("<function=") {
        let (name, after) = begun.split_once('>')?;
        let (arguments, after) = after.split_once("</function>").unwrap_or((after, ""));
        let arguments: Map<String, Value> = serde_json::from_str(arguments.trim()).ok()?;
        calls.push((name.trim().to_string(), Value::Object(arguments).to_string()));
        rest = after;
    }
    rest.trim().is_empty().then_some(calls)
}

/// `[name(key="value", other=[1, True]), ...]`
fn pythonic(text: &str) -> Option<Vec<(String, String)>> {
    let mut p = Python { text: text.strip_prefix('[')?, depth: 0 };
    let mut calls = Vec::new();
    loop {
        let name = p.word()?;
        p.eat("(")?;
        let mut arguments = Map::new();
        while p.eat(")").is_none() {
            let key = p.word()?;
            p.eat("=")?;
            arguments.insert(key, p.value()?);
            if p.eat(",").is_none() && !p.sees(")") {
                return None;
            }
        }
        calls.push((name, Value::Object(arguments).to_string()));
        if p.eat(",").is_none() {
            break;
        }
    }
    p.eat("]")?;
    p.text.trim().is_empty().then_some(calls)
}

/// A reader of Python's literals.
struct Python<'t> {
    text: &'t str,
    depth: usize,
}

impl Python<'_> {
    fn sees(&mut self, what: &str) -> bool {
        self.text = self.text.trim_start();
        self.text.starts_with(what)
    }

    fn eat(&mut self, what: &str) -> Option<()> {
        self.text = self.text.trim_start();
        self.text = self.text.strip_prefix(what)?;
        Some(())
    }

    fn word(&mut self) -> Option<String> {
        self.text = self.text.trim_start();
        let end = self.text.find(|c: char| !(c.is_alphanumeric() || "_.-".contains(c))).unwrap_or(self.text.len());
        let (word, rest) = self.text.split_at(end);
        self.text = rest;
        (!word.is_empty()).then(|| word.to_string())
    }

    fn value(&mut self) -> Option<Value> {
        self.depth += 1;
        let value = if self.depth > 64 { None } else { self.inner() };
        self.depth -= 1;
        value
    }

    fn inner(&mut self) -> Option<Value> {
        self.text = self.text.trim_start();
        match self.text.chars().next()? {
            '\'' | '"' => self.string().map(Value::String),
            '[' | '(' => {
                let close = if self.sees("[") { "]" } else { ")" };
                self.text = &self.text[1..];
                let mut list = Vec::new();
                while self.eat(close).is_none() {
                    list.push(self.value()?);
                    if self.eat(",").is_none() && !self.sees(close) {
                        return None;
                    }
                }
                Some(list.into())
            }
            '{' => {
                self.text = &self.text[1..];
                let mut map = Map::new();
                while self.eat("}").is_none() {
                    self.text = self.text.trim_start();
                    let key = self.string()?;
                    self.eat(":")?;
                    map.insert(key, self.value()?);
                    if self.eat(",").is_none() && !self.sees("}") {
                        return None;
                    }
                }
                Some(map.into())
            }
            _ => {
                let end = self.text.find([',', ')', ']', '}']).unwrap_or(self.text.len());
                let (word, rest) = self.text.split_at(end);
                self.text = rest;
                match word.trim() {
                    "True" | "true" => Some(true.into()),
                    "False" | "false" => Some(false.into()),
                    "None" | "null" => Some(Value::Null),
                    number => serde_json::from_str(number).ok().filter(Value::is_number),
                }
            }
        }
    }

    fn string(&mut self) -> Option<String> {
        let quote = self.text.chars().next().filter(|c| "'\"".contains(*c))?;
        let mut out = String::new();
        let mut chars = self.text.char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            match c {
                '\\' => match chars.next()?.1 {
                    'n' => out.push('\n'),
                    't' => out.push('\t'),
                    'r' => out.push('\r'),
                    other => out.push(other),
                },
                c if c == quote => {
                    self.text = &self.text[at + c.len_utf8()..];
                    return Some(out);
                }
                c => out.push(c),
            }
        }
        None
    }
}

/// An answer as it comes: text is shown, but what may be calls of tools is held back until it is known.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// Names of the tools; none: all is text.
    known: Vec<String>,
    /// Only the first call counts.
    single: bool,
    /// Spaces before the first word are left out.
    trims: bool,
    held: String,
    is_text: bool,
}

impl Answer {
    pub(crate) fn new(known: Vec<String>, single: bool, trims: bool) -> Self {
        Self { is_text: known.is_empty(), known, single, trims, held: String::new() }
    }

    /// More text: what of it can be shown.
    fn push(&mut self, text: &str) -> String {
        if self.is_text {
            return self.shown(text.into());
        }
        self.held.push_str(text);
        if may_call(&self.held) {
            return String::new();
        }
        self.is_text = true;
        let held = std::mem::take(&mut self.held);
        self.shown(held)
    }

    /// A step of the answer: the text that it shows, and with its last the calls.
    pub(crate) fn take(&mut self, delta: &Delta) -> (String, Vec<(String, String)>) {
        let mut text = self.push(&delta.text);
        let mut calls = Vec::new();
        if delta.finish.is_some() {
            let rest;
            (rest, calls) = self.finish();
            text += &rest;
        }
        (text, calls)
    }

    /// No more text comes: the rest, and the calls without their ids.
    fn finish(&mut self) -> (String, Vec<(String, String)>) {
        if self.is_text {
            return (String::new(), Vec::new());
        }
        self.is_text = true;
        let held = std::mem::take(&mut self.held);
        match parse(&held, &self.known) {
            Some(mut calls) => {
                calls.truncate(if self.single { 1 } else { calls.len() });
                (String::new(), calls)
            }
            None => (self.shown(held), Vec::new()),
        }
    }

    fn shown(&mut self, text: String) -> String {
        if !self.trims {
            return text;
        }
        let text = text.trim_start().to_string();
        self.trims = text.is_empty();
        text
    }
}

/// The answer of a request that has one.
pub(crate) struct Whole {
    pub(crate) text: String,
    pub(crate) calls: Vec<(String, String)>,
    pub(crate) finish: Option<Finish>,
}

impl Whole {
    pub(crate) async fn read(mut answer: Answer, work: &mut Work) -> Result<Self> {
        let mut whole = Self { text: String::new(), calls: Vec::new(), finish: None };
        while let Some(step) = work.next().await {
            if let Step::Text(delta) = step? {
                let (text, calls) = answer.take(&delta);
                whole.text += &text;
                whole.calls.extend(calls);
                whole.finish = delta.finish.or(whole.finish);
            }
        }
        Ok(whole)
    }
}
