//! How texts are to be written: the fields that all routes share.

use recua_core::generate::{SampleConfig, TokenMask};
use serde_json::{Value, json};

use crate::error::{ApiError, Result};
use crate::fields::{Fields, expected, ids};
use crate::model::Model;
use crate::server::Server;

/// The form that a text must have.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Form {
    Schema(Value),
    Regex(String),
    Grammar(String),
}

/// What a request says of its texts.
#[derive(Clone, Debug)]
pub(crate) struct Params {
    pub(crate) sampling: SampleConfig,
    pub(crate) max_tokens: Option<usize>,
    pub(crate) min_tokens: usize,
    pub(crate) stops: Vec<String>,
    /// Tokens that end the text.
    pub(crate) ends: Vec<u32>,
    pub(crate) n: usize,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    /// The form, and the field that says so.
    pub(crate) form: Option<(&'static str, Form)>,
    pub(crate) cache_salt: Option<String>,
    /// Likeliest tokens that are told beside each token.
    pub(crate) logprobs: Option<usize>,
}

impl Params {
    /// Takes the shared fields. `max_tokens` and `logprobs` are read by the routes, which call them differently.
    pub(crate) fn take(fields: &mut Fields, model: &Model, server: &Server) -> Result<Self> {
        let seed = fields.integer("seed")?.map_or_else(|| server.random(), |seed| seed as u64);
        let top_k = match fields.integer("top_k")? {
            None | Some(-1 | 0) => None,
            Some(k) => Some(usize::try_from(k).map_err(|_| ApiError::bad("top_k", format!("expected at least -1, got {k}")))?),
        };
        // llama.cpp's name is the second.
        let repetition = match fields.number("repetition_penalty")? {
            None => fields.number("repeat_penalty")?,
            given => given,
        };
        let sampling = SampleConfig {
            temperature: fields.number("temperature")?.unwrap_or(1.0),
            top_k,
            top_p: fields.number("top_p")?.filter(|p| *p != 1.0),
            min_p: fields.number("min_p")?.filter(|p| *p != 0.0),
            repetition_penalty: repetition.unwrap_or(1.0),
            presence_penalty: fields.number("presence_penalty")?.unwrap_or(0.0),
            frequency_penalty: fields.number("frequency_penalty")?.unwrap_or(0.0),
            logit_bias: fields.take("logit_bias").map(bias).transpose()?.unwrap_or_default(),
            seed,
        };
        sampling.check(Some(model.vocab_size))?;
        let stops = stops("stop", fields.take("stop"))?;
        if !stops.is_empty() {
            model.tokenizer("stop")?;
        }
        let mut ends = if fields.flag("ignore_eos")?.unwrap_or(false) { Vec::new() } else { model.ends.clone() };
        if let Some(list) = fields.list("stop_token_ids")? {
            ends.extend(ids("stop_token_ids", &list)?);
        }
        let n = fields.count("n")?.unwrap_or(1);
        let most = server.0.config.max_choices;
        if !(1..=most).contains(&n) {
            return Err(ApiError::bad("n", format!("expected a number from 1 to {most}, got {n}")));
        }
        let stream = fields.flag("stream")?.unwrap_or(false);
        let mut include_usage = false;
        if let Some(options) = fields.take("stream_options") {
            if !stream {
                return Err(ApiError::bad("stream_options", "it is for `stream: true` only"));
            }
            let mut options = Fields::of("stream_options", options)?;
            include_usage = options.flag("include_usage")?.unwrap_or(false);
            let _ = options.flag("include_obfuscation")?;
            options.finish()?;
        }
        let form = form(fields)?;
        Ok(Self {
            sampling,
            max_tokens: None,
            min_tokens: fields.count("min_tokens")?.unwrap_or(0),
            stops,
            ends,
            n,
            stream,
            include_usage,
            form,
            cache_salt: fields.text("cache_salt")?,
            logprobs: None,
        })
    }

    /// The mask of one text. A form that cannot be is an error here.
    #[cfg(feature = "constrain")]
    pub(crate) fn mask(&self, model: &Model) -> Result<Option<Box<dyn TokenMask>>> {
        use recua_core::generate::Grammar;
        let Some((param, form)) = &self.form else { return Ok(None) };
        let grammar = match form {
            Form::Schema(schema) => Grammar::JsonSchema(schema.clone()),
            Form::Regex(regex) => Grammar::Regex(regex.clone()),
            Form::Grammar(grammar) => Grammar::Lark(grammar.clone()),
        };
        match model.constraints(param)?.mask(&grammar, &self.ends) {
            Ok(mask) => Ok(Some(mask)),
            Err(recua_core::Error::BadValue { problem, .. }) => Err(ApiError::bad(param, problem)),
            Err(e) => Err(e.into()),
        }
    }

    /// None of a form can be made.
    #[cfg(not(feature = "constrain"))]
    pub(crate) fn mask(&self, _model: &Model) -> Result<Option<Box<dyn TokenMask>>> {
        match &self.form {
            None => Ok(None),
            Some((param, _)) => {
                Err(ApiError::unsupported(param, "forms of text are not compiled into this server (feature `constrain`)"))
            }
        }
    }
}

/// Most bytes of a request's stop texts, all together: each text that is written looks for all of them.
const MOST_STOP_BYTES: usize = 16 << 10;

/// A text or a list of texts.
pub(crate) fn stops(key: &str, value: Option<Value>) -> Result<Vec<String>> {
    let list = match value {
        None => Vec::new(),
        Some(Value::Array(list)) => list,
        Some(one) => vec![one],
    };
    let text = |value: Value| match value {
        Value::String(text) if !text.is_empty() => Ok(text),
        other => Err(expected(key, "a text that is not empty, or a list of such", &other)),
    };
    let texts: Vec<String> = list.into_iter().map(text).collect::<Result<_>>()?;
    let bytes: usize = texts.iter().map(String::len).sum();
    if bytes > MOST_STOP_BYTES {
        return Err(ApiError::bad(key, format!("{bytes} bytes are more than {MOST_STOP_BYTES}")));
    }
    Ok(texts)
}

/// `{"15043": -5}` or `[[15043, -5]]`.
fn bias(value: Value) -> Result<Vec<(u32, f32)>> {
    let bad = |got: &Value| expected("logit_bias", "an object of token ids and numbers from -100 to 100", got);
    let pair = |id: Option<u32>, by: &Value| {
        let by = by.as_f64().filter(|by| (-100.0..=100.0).contains(by)).map(|by| by as f32);
        id.zip(by).ok_or_else(|| bad(&value))
    };
    match &value {
        Value::Object(map) => map.iter().map(|(id, by)| pair(id.trim().parse().ok(), by)).collect(),
        Value::Array(list) => list
            .iter()
            .map(|one| match one.as_array().map(Vec::as_slice) {
                Some([id, by]) => pair(id.as_u64().and_then(|id| u32::try_from(id).ok()), by),
                _ => Err(bad(one)),
            })
            .collect(),
        other => Err(bad(other)),
    }
}

/// `response_format`, `regex`, `grammar`; at most one.
fn form(fields: &mut Fields) -> Result<Option<(&'static str, Form)>> {
    let mut found = Vec::new();
    if let Some(format) = fields.take("response_format") {
        found.extend(response_format("response_format", format)?.map(|form| ("response_format", form)));
    }
    if let Some(schema) = fields.take("json_schema") {
        found.push(("json_schema", Form::Schema(schema)));
    }
    found.extend(fields.text("regex")?.map(|regex| ("regex", Form::Regex(regex))));
    found.extend(fields.text("grammar")?.map(|grammar| ("grammar", Form::Grammar(grammar))));
    match found.len() {
        0 | 1 => Ok(found.pop()),
        _ => Err(ApiError::bad(found[1].0, format!("a text has one form, and `{}` says one already", found[0].0))),
    }
}

/// OpenAI's `response_format`, or `text.format` of its responses, where the schema stands a level higher.
pub(crate) fn response_format(key: &str, value: Value) -> Result<Option<Form>> {
    let mut format = Fields::of(key, value)?;
    let kind = format.text("type")?;
    let form = match kind.as_deref() {
        Some("text") => None,
        Some("json_object") => Some(Form::Schema(format.take("schema").unwrap_or_else(|| json!({ "type": "object" })))),
        Some("json_schema") => {
            let mut inner = match format.take("json_schema") {
                Some(inner) => Fields::of(&format!("{key}.json_schema"), inner)?,
                None => format.clone(),
            };
            let schema = inner.take("schema");
            Some(Form::Schema(schema.ok_or_else(|| ApiError::bad(key, "expected a `schema`, got none"))?))
        }
        other => {
            let got = other.unwrap_or("nothing");
            return Err(ApiError::bad(key, format!("expected a `type` of text, json_object or json_schema, got {got}")));
        }
    };
    Ok(form)
}
