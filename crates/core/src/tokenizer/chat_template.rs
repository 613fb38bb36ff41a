//! Conversations as text: Hugging Face's chat templates (Jinja), as they are.
//!
//! Templates see what transformers shows them: `messages`, `add_generation_prompt`, `tools` and `documents` (none), the special tokens
//! that have a name; `raise_exception`, `strftime_now` (in UTC), `tojson` as Python writes JSON, `break` and `continue`, the methods of
//! Python's strings, lists and dictionaries.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, ErrorKind, context};
use serde::{Deserialize, Serialize};

use super::Tokenizer;
use super::chat_json::{Separators, to_json};
use crate::error::{Error, Result};

/// For models without a template. What follows `User:` is the other side's, so that is where an answer ends.
const PLAIN: &str = "{% for message in messages %}\
    {% if message.role == 'system' %}{{ message.content | trim }}\n\n\
    {% elif message.role == 'assistant' %}Assistant: {{ message.content | trim }}\n\
    {% else %}User: {{ message.content | trim }}\n{% endif %}\
    {% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}";

/// What an answer by [`PLAIN`] ends before.
const PLAIN_STOPS: [&str; 1] = ["\nUser:"];

/// Steps of a template, so that none runs for ever: enough for a conversation of 100,000 messages.
const FUEL: u64 = 50_000_000;

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant` or what else the template knows.
    pub role: String,
    /// What was said.
    pub content: String,
}

/// What a template sees of a conversation that is more than texts: JSON, whose objects keep their order.
#[derive(Clone, Debug, Deserialize)]
#[serde(transparent)]
pub struct TemplateValue(Value);

impl TemplateValue {
    /// # Errors
    /// [`Error::BadValue`] for what is no JSON.
    pub fn from_json(text: &str) -> Result<Self> {
        serde_json::from_str(text).map_err(|e| Error::bad_value("JSON", e.to_string(), "correct it"))
    }

    /// A text.
    pub fn text(text: &str) -> Self {
        Self(Value::from(text))
    }

    /// A list.
    pub fn list(items: impl IntoIterator<Item = Self>) -> Self {
        Self(items.into_iter().map(|item| item.0).collect())
    }

    /// An object.
    pub fn object<'k>(members: impl IntoIterator<Item = (&'k str, Self)>) -> Self {
        Self(Value::from_pairs(members.into_iter().map(|(key, value)| (key, value.0))))
    }
}

/// How a model's conversations are written. What [`ChatTemplate::render`] gives is encoded with special tokens read
/// ([`Tokenizer::encode_with_special`]) and with no second BOS, since templates write their own.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    tokens: Vec<(&'static str, String)>,
    origin: Option<&'static str>,
    source: String,
}

impl ChatTemplate {
    /// The template beside the tokenizer at `path` (a file or a folder); see [`ChatTemplate::of`].
    ///
    /// # Errors
    /// Those of [`Tokenizer::open`] and of [`ChatTemplate::of`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::of(&Tokenizer::open(path)?)
    }

    /// The template that came with a tokenizer: that in `chat_template.jinja`, else `chat_template` of `tokenizer_config.json` (of
    /// several the one named `default`), else that of `chat_template.json`. Where there is none, a plain one: the system's text, then
    /// `User: ...` and `Assistant: ...`, a line each.
    ///
    /// # Errors
    /// [`Error::BadFile`] for a file that is damaged or a template that does not compile.
    pub fn of(tokenizer: &Tokenizer) -> Result<Self> {
        let file = |name: &str| tokenizer.0.files.iter().find(|(n, _)| *n == name);
        let mut found = None;
        if let Some((name, bytes)) = file("chat_template.jinja") {
            found = Some((name, String::from_utf8_lossy(bytes).into_owned()));
        }
        for (name, bytes) in ["tokenizer_config.json", "chat_template.json"].into_iter().filter_map(file) {
            if found.is_none() {
                found = in_json(bytes).map_err(|problem| bad(name, problem))?.map(|source| (name, source));
            }
        }
        let token = |id: Option<u32>| id.and_then(|id| tokenizer.token_of(id));
        let tokens = [("bos_token", token(tokenizer.bos_id())), ("eos_token", token(tokenizer.eos_id()))];
        let tokens = tokens.into_iter().filter_map(|(name, token)| Some((name, token?))).collect();
        let (origin, source) = found.map_or((None, PLAIN.into()), |(name, source)| (Some(name), source));
        let environment =
            environment(&source).map_err(|e| bad(origin.unwrap_or_default(), format!("the template: {}", says(&e))))?;
        Ok(Self { environment, tokens, origin, source })
    }

    /// The file that the template is from. `None`: the model has none, and the plain one is used.
    pub fn origin(&self) -> Option<&'static str> {
        self.origin
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Texts that end an answer, where no token does.
    pub fn stops(&self) -> &'static [&'static str] {
        if self.origin.is_none() { &PLAIN_STOPS } else { &[] }
    }

    /// A conversation as text, up to where the next answer begins if that is asked for.
    ///
    /// # Errors
    /// [`Error::BadValue`] for a conversation that the template refuses, [`Error::BadFile`] if the template fails.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let message = |m: &Message| context! { role => m.role.as_str(), content => m.content.as_str() };
        let messages: Vec<Value> = messages.iter().map(message).collect();
        self.render_as(messages.into(), Value::from(()), add_generation_prompt)
    }

    /// [`ChatTemplate::render`] of messages as transformers takes them, with calls of tools and their results, and the tools that may
    /// be called.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn render_json(
        &self,
        messages: &TemplateValue,
        tools: Option<&TemplateValue>,
        add_generation_prompt: bool,
    ) -> Result<String> {
        self.render_as(messages.0.clone(), tools.map_or(Value::from(()), |tools| tools.0.clone()), add_generation_prompt)
    }

    /// Whether the template has a place for tools.
    pub fn takes_tools(&self) -> bool {
        self.source.contains("tools")
    }

    fn render_as(&self, messages: Value, tools: Value, add_generation_prompt: bool) -> Result<String> {
        let tokens = Value::from_pairs(self.tokens.iter().map(|(name, token)| (*name, token.as_str())));
        let context = context! { messages, add_generation_prompt, tools, documents => (), ..tokens };
        let template = self.environment.get_template(NAME);
        template.and_then(|template| template.render(context)).map_err(|e| {
            let refused =
                std::iter::successors(Some(&e as &dyn std::error::Error), |e| e.source()).find_map(|e| e.downcast_ref());
            match refused {
                Some(Refused(why)) => Error::bad_value("messages", why, "change the order or the roles of the messages"),
                None => bad(self.origin.unwrap_or_default(), format!("the template: {}", says(&e))),
            }
        })
    }
}

/// The template's name in its environment.
const NAME: &str = "chat_template";

fn bad(file: &'static str, problem: String) -> Error {
    Error::bad_file("chat template", Path::new(file), problem, "get the file again, or correct the template")
}

/// With the line, which `Display` has only without its causes.
fn says(e: &minijinja::Error) -> String {
    let line = e.line().map(|line| format!("line {line}: ")).unwrap_or_default();
    format!("{line}{}", e.detail().map_or_else(|| e.kind().to_string(), |detail| format!("{}: {detail}", e.kind())))
}

/// `chat_template` of a JSON file: a text, or a list of texts with names.
fn in_json(bytes: &[u8]) -> Result<Option<String>, String> {
    let json: serde_json::Value =
        serde_json::from_slice(super::kind::without_bom(bytes)).map_err(|e| format!("not JSON: {e}"))?;
    let names = |list: &[serde_json::Value]| {
        let template = list.iter().find(|one| one["name"] == "default")?;
        template["template"].as_str().map(String::from)
    };
    match &json["chat_template"] {
        serde_json::Value::Null => Ok(None),
        serde_json::Value::String(source) => Ok(Some(source.clone())),
        serde_json::Value::Array(list) => {
            names(list).map(Some).ok_or("chat_template: expected one that is named `default` in the list, got none".into())
        }
        _ => Err("chat_template: expected a text or a list of named ones".into()),
    }
}

/// A conversation that the template refuses.
#[derive(Debug)]
struct Refused(String);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

/// As transformers sets Jinja up.
fn environment(source: &str) -> Result<Environment<'static>, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    // Python's names of these three.
    environment.set_formatter(|out, state, value| match value.kind() {
        ValueKind::None => out.write_str("None").map_err(Into::into),
        ValueKind::Bool => out.write_str(if value.is_true() { "True" } else { "False" }).map_err(Into::into),
        _ => minijinja::escape_formatter(out, state, value),
    });
    environment.add_function("raise_exception", |why: String| -> Result<Value, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, "raised").with_source(Refused(why)))
    });
    environment.add_function("strftime_now", |format: &str| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        strftime(now, format).map_err(|problem| minijinja::Error::new(ErrorKind::InvalidOperation, problem))
    });
    environment.add_filter("tojson", |value: Value, options: Kwargs| -> Result<Value, minijinja::Error> {
        let fail = |problem: String| minijinja::Error::new(ErrorKind::InvalidOperation, format!("tojson: {problem}"));
        let indent: Option<usize> = options.get("indent")?;
        let separators = match options.get::<Option<Vec<String>>>("separators")?.as_deref() {
            None => Separators::python(indent.is_some()),
            Some([item, key]) => Separators { item: item.clone(), key: key.clone() },
            Some(_) => return Err(fail("expected two separators".into())),
        };
        let sorted = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
        if options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false) {
            return Err(fail("ensure_ascii=True is not supported".into()));
        }
        options.assert_all_used()?;
        // Not escaped: transformers' filter does not either.
        to_json(&value, separators, indent, sorted).map(Value::from_safe_string).map_err(|e| fail(e.to_string()))
    });
    environment.add_template_owned(NAME, without_generation(source))?;
    Ok(environment)
}

/// `{% generation %}` marks what a model is trained on; here it stands for itself.
fn without_generation(source: &str) -> String {
    let mut out = String::new();
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(end) = rest[start..].find("%}").map(|end| start + end + 2) else { break };
        let tag = &rest[start..end];
        let word = tag[2..tag.len() - 2].trim_matches(['-', '+']).trim();
        out.push_str(&rest[..start]);
        match word {
            "generation" => out.push_str(&tag.replacen(word, "if true", 1)),
            "endgeneration" => out.push_str(&tag.replacen(word, "endif", 1)),
            _ => out.push_str(tag),
        }
        rest = &rest[end..];
    }
    out + rest
}

const MONTHS: [&str; 12] =
    ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// Python's `strftime` of a time in seconds since 1970, in UTC.
fn strftime(seconds: u64, format: &str) -> Result<String, String> {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let (mut year, mut day) = (1970, days);
    while day >= 365 + u64::from(leap(year)) {
        day -= 365 + u64::from(leap(year));
        year += 1;
    }
    let of_year = day + 1;
    let mut month = 0;
    for length in [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    let (day, weekday) = (day + 1, DAYS[((days + 4) % 7) as usize]);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut code = chars.next();
        let bare = code == Some('-'); // without a leading zero
        if bare {
            code = chars.next();
        }
        let number = |value: u64, width: usize| if bare { value.to_string() } else { format!("{value:0width$}") };
        out += &match code {
            Some('Y') => number(year, 4),
            Some('y') => number(year % 100, 2),
            Some('m') => number(month as u64 + 1, 2),
            Some('d') => number(day, 2),
            Some('j') => number(of_year, 3),
            Some('H') => number(hour, 2),
            Some('I') => number((hour + 11) % 12 + 1, 2),
            Some('M') => number(minute, 2),
            Some('S') => number(second, 2),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.into(),
            Some('B') => MONTHS[month].into(),
            Some('b') => MONTHS[month][..3].into(),
            Some('A') => weekday.into(),
            Some('a') => weekday[..3].into(),
            Some('%') => "%".into(),
            other => return Err(format!("strftime_now: %{} is unknown", other.unwrap_or(' '))),
        };
    }
    Ok(out)
}
