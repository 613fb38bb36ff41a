//! Prompts as Jinja templates, with what the tasks' files need beyond it: Python's methods, and a few filters.

use std::sync::LazyLock;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Rest, Serde, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, UndefinedBehavior, Value};
use regex::Regex;

use crate::literal;
use crate::metrics::math::boxed_answer;

/// Steps of a template, after which it is given up.
const FUEL: u64 = 10_000_000;

/// An environment as lm-eval's: names must be known, the last line feed stays.
pub(crate) fn environment() -> Result<Environment<'static>, Error> {
    let mut env = Environment::new();
    env.set_syntax(SyntaxConfig::builder().keep_trailing_newline(true).build()?);
    env.set_undefined_behavior(UndefinedBehavior::Strict);
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_fuel(Some(FUEL));
    env.set_unknown_method_callback(method);
    env.add_filter("sub", |text: String, pattern: String, by: String| -> Result<String, Error> {
        Ok(compile(&pattern)?.replace_all(&text, by).into_owned())
    });
    env.add_filter("search", |text: String, pattern: String| -> Result<Value, Error> {
        Ok(compile(&pattern)?.find(&text).map_or(Value::from(()), |found| found.as_str().into()))
    });
    env.add_filter("literal", |value: Value| -> Result<Value, Error> {
        match value.as_str() {
            Some(text) => literal::parse(text)
                .map(|parsed| Value::from(Serde(&parsed)))
                .ok_or_else(|| Error::new(ErrorKind::InvalidOperation, format!("no Python literal: {text:.60}"))),
            None => Ok(value),
        }
    });
    env.add_filter("boxed", |text: String| boxed_answer(&text).map(str::to_string));
    env.add_filter("hellaswag", |text: String| hellaswag(&text));
    env.add_filter("detokenize", |text: String| detokenize(&text));
    Ok(env)
}

fn compile(pattern: &str) -> Result<Regex, Error> {
    Regex::new(pattern).map_err(|e| Error::new(ErrorKind::InvalidOperation, e.to_string()))
}

/// Python's methods; `index` of lists, which `pycompat` has not.
fn method(state: &mut State<'_, '_>, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if name == "index" && value.kind() == ValueKind::Seq {
        let (wanted, _): (Value, Rest<Value>) = minijinja::value::from_args(args)?;
        let at = value.try_iter()?.position(|item| item == wanted);
        return at.map(Value::from).ok_or_else(|| Error::new(ErrorKind::InvalidOperation, format!("{wanted} is not in {value}")));
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}

/// Takes WikiHow's marks out of a text of HellaSwag. Two spaces become one once, not again and again.
fn hellaswag(text: &str) -> String {
    static BRACKETS: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\[.*?\]").expect("a constant"));
    let text = text.trim().replace(" [title]", ". ");
    BRACKETS.replace_all(&text, "").replace("  ", " ")
}

/// Takes WikiText's spaces around punctuation out, in the order of the reference: its second rule looks for slashes,
/// which hardly any text has, and is kept; brackets and quotes are matched shortest first.
fn detokenize(text: &str) -> String {
    static PAIRS: LazyLock<[(Regex, &str); 5]> = LazyLock::new(|| {
        [
            (r"\(\s*([^\)]*?)\s*\)", "($1)"),
            (r"\[\s*([^\]]*?)\s*\]", "[$1]"),
            (r"\{\s*([^}]*?)\s*\}", "{$1}"),
            (r#""\s*([^"]*?)\s*""#, "\"$1\""),
            (r"'\s*([^']*?)\s*'", "'$1'"),
        ]
        .map(|(pattern, by)| (Regex::new(pattern).expect("a constant"), by))
    });
    const SLASHES: &str = "/'[0-9]/";
    static DIGIT: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"/' [0-9]/").expect("a constant"));
    let mut text = DIGIT.replace_all(&text.replace("s '", "s'"), SLASHES).into_owned();
    for (from, to) in [
        (" @-@ ", "-"),
        (" @,@ ", ","),
        (" @.@ ", "."),
        (" : ", ": "),
        (" ; ", "; "),
        (" . ", ". "),
        (" ! ", "! "),
        (" ? ", "? "),
        (" , ", ", "),
    ] {
        text = text.replace(from, to);
    }
    for (pattern, by) in &*PAIRS {
        text = pattern.replace_all(&text, *by).into_owned();
    }
    for (from, to) in [
        ("= = = =", "===="),
        ("= = =", "==="),
        ("= =", "=="),
        (" \u{b0} ", "\u{b0}"),
        (" \n", "\n"),
        ("\n ", "\n"),
        (" N ", " 1 "),
        (" 's", "'s"),
    ] {
        text = text.replace(from, to);
    }
    text
}
