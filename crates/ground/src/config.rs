//! Layered settings of any kind: a TOML file, then `--set a.b=c`; what neither says is the default of the type.

use std::path::Path;

use toml::{Table, Value};

use crate::error::{Error, Result};

/// Where settings come from, in the order in which they count.
#[derive(Clone, Debug, Default)]
pub struct Layers<'a> {
    /// A TOML file.
    pub file: Option<&'a Path>,
    /// `a.b=c`, one each.
    pub set: &'a [String],
}

fn insert(table: &mut Table, key: &str, value: Value) -> Result<()> {
    let bad = || Error::bad_value("--set", format!("`{key}` is not a setting"), "e.g. --set optim.lr=1e-4");
    let mut parts = key.split('.').peekable();
    let mut at = table;
    while let Some(part) = parts.next() {
        if part.is_empty() {
            return Err(bad());
        }
        if parts.peek().is_none() {
            at.insert(part.into(), value);
            return Ok(());
        }
        at = at.entry(part).or_insert_with(|| Value::Table(Table::new())).as_table_mut().ok_or_else(bad)?;
    }
    Err(bad())
}

/// The deserializer's own text names the place, the key and the known keys.
pub fn parse_error(origin: &str, e: &toml::de::Error) -> Error {
    let text = e.to_string();
    let message = e.message();
    if let Some(rest) = message.strip_prefix("unknown field `") {
        let (key, hint) = rest.split_once('`').unwrap_or((rest, ""));
        let key = text
            .lines()
            .find_map(|l| l.strip_prefix("in `"))
            .map_or(key.to_string(), |s| format!("{}.{key}", s.trim_end_matches('`')));
        return Error::UnknownKey { origin: origin.into(), key, hint: hint.trim_start_matches([',', ' ']).into() };
    }
    Error::bad_value(origin, text.trim().replace('\n', " "), "see `recua train --help`")
}

/// A file's settings with those of `--set` over them, and where they come from.
pub fn table(layers: &Layers<'_>) -> Result<(Table, String)> {
    let mut table = Table::new();
    let mut origin = String::from("--set");
    if let Some(path) = layers.file {
        origin = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
        table = text.parse().map_err(|e| parse_error(&origin, &e))?;
    }
    for entry in layers.set {
        let (key, value) = entry
            .split_once('=')
            .ok_or_else(|| Error::bad_value("--set", format!("expected KEY=VALUE, got `{entry}`"), "e.g. --set optim.lr=1e-4"))?;
        // A value that is no TOML is a string: `--set sample.prompt=fn` needs no quotes.
        let value = value.trim();
        let parsed = format!("v = {value}").parse::<Table>().ok().and_then(|mut t| t.remove("v"));
        insert(&mut table, key.trim(), parsed.unwrap_or_else(|| Value::String(value.into())))?;
    }
    Ok((table, origin))
}

/// Settings of any kind from a file and `--set`.
///
/// # Errors
/// [`Error::UnknownKey`] and [`Error::BadValue`] naming the file or flag and the key; [`Error::Io`].
pub fn resolve<T: serde::de::DeserializeOwned>(layers: &Layers<'_>) -> Result<T> {
    let (table, origin) = table(layers)?;
    table.try_into().map_err(|e| parse_error(&origin, &e))
}
