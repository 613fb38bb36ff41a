//! Flags that `generate` and `chat` share: how tokens are chosen, what form the text has, how the engine computes.

use std::path::PathBuf;

use clap::Args;
#[cfg(feature = "constrain")]
use recua::generate::{ConstraintFactory, Grammar};
use recua::generate::{EngineConfig, SampleConfig, TokenMask};
use recua::ops::KvDtype;
use recua::{Error, Result};
#[cfg(feature = "constrain")]
use serde_json::Value;

use recua::generate::TextModel;

/// How the next token is chosen.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct Sampling {
    /// Divides the logits; 0 takes the likeliest token
    #[arg(long, value_name = "T", default_value_t = 0.8)]
    temperature: f64,
    /// Only the K likeliest tokens
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Only the likeliest tokens whose probabilities reach P
    #[arg(long, value_name = "P", default_value_t = 0.95)]
    top_p: f64,
    /// Only tokens that are at least P times as likely as the likeliest
    #[arg(long, value_name = "P")]
    min_p: Option<f64>,
    /// Above 1: tokens already in prompt and text become less likely
    #[arg(long, value_name = "R", default_value_t = 1.0)]
    repetition_penalty: f64,
    /// Taken from the logits of tokens that are in the text so far (not the prompt)
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    presence_penalty: f64,
    /// The same, for each time that the token is there
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    frequency_penalty: f64,
    /// Adds B to the logit of token ID; may be repeated. -100 all but rules a token out
    #[arg(long, value_name = "ID=B", value_parser = bias, allow_hyphen_values = true)]
    logit_bias: Vec<(u32, f32)>,
    /// The same seed gives the same text
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

/// `1234=-5.5`
fn bias(text: &str) -> std::result::Result<(u32, f32), String> {
    let parsed = text.split_once('=').and_then(|(id, by)| Some((id.trim().parse().ok()?, by.trim().parse().ok()?)));
    parsed.filter(|(_, by): &(u32, f32)| by.is_finite()).ok_or_else(|| "expected ID=B, as 1234=-5.5".into())
}

impl Sampling {
    /// The settings, each in its range, for a vocabulary of this size.
    pub(crate) fn config(&self, vocab_size: usize) -> Result<SampleConfig> {
        if let Some((id, _)) = self.logit_bias.iter().find(|(id, _)| *id as usize >= vocab_size) {
            let problem = format!("token {id} is outside the model's vocabulary of {vocab_size}");
            return Err(Error::bad_value("--logit-bias", problem, "`recua tokenizer encode` gives the ids of a text"));
        }
        let config = SampleConfig {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: Some(self.top_p),
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias: self.logit_bias.clone(),
            seed: self.seed,
        };
        config.check(Some(vocab_size))?;
        Ok(config)
    }
}

/// What form the text has.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Form of the text")]
pub(crate) struct Form {
    /// Text is JSON that this JSON schema allows
    #[arg(long, value_name = "FILE|JSON", group = "form")]
    json_schema: Option<String>,
    /// Text matches this regular expression, from its beginning to its end
    #[arg(long, value_name = "REGEX", group = "form", allow_hyphen_values = true)]
    regex: Option<String>,
    /// Text is of this grammar (Lark, as llguidance reads it)
    #[arg(long, value_name = "FILE", group = "form")]
    grammar: Option<PathBuf>,
}

impl Form {
    /// The flag that is given.
    pub(crate) fn flag(&self) -> Option<&'static str> {
        let given = [
            (self.json_schema.is_some(), "--json-schema"),
            (self.regex.is_some(), "--regex"),
            (self.grammar.is_some(), "--grammar"),
        ];
        given.into_iter().find(|(given, _)| *given).map(|(_, flag)| flag)
    }

    /// What makes masks of it. A form that cannot be is an error here, before anything is computed.
    #[cfg(not(feature = "constrain"))]
    pub(crate) fn compile(&self, model: &TextModel, _ends: &[u32]) -> Result<CompiledForm> {
        let Some(flag) = self.flag() else { return Ok(CompiledForm) };
        model.tokenizer_for(flag)?;
        let problem = "forms of text are not compiled into this build";
        Err(Error::Engine { what: flag, problem: problem.into(), hint: "build with `--features constrain`".into() })
    }

    /// What makes masks of it. A form that cannot be is an error here, before anything is computed.
    #[cfg(feature = "constrain")]
    pub(crate) fn compile(&self, model: &TextModel, ends: &[u32]) -> Result<CompiledForm> {
        let Some(flag) = self.flag() else { return Ok(CompiledForm(None)) };
        let tokenizer = model.tokenizer_for(flag)?;
        let grammar = match (&self.json_schema, &self.regex, &self.grammar) {
            (Some(schema), _, _) => Grammar::JsonSchema(json_schema(schema)?),
            (_, Some(regex), _) => Grammar::Regex(regex.clone()),
            (_, _, Some(path)) => Grammar::Lark(std::fs::read_to_string(path).map_err(Error::io("read", path))?),
            _ => return Ok(CompiledForm(None)),
        };
        let form = CompiledForm(Some((ConstraintFactory::new(tokenizer)?, grammar, ends.to_vec())));
        form.mask().map_err(|e| match e {
            Error::BadValue { problem, hint, .. } => Error::BadValue { key: flag.into(), problem, hint },
            e => e,
        })?;
        Ok(form)
    }
}

/// A JSON schema itself, or a file with one.
#[cfg(feature = "constrain")]
fn json_schema(given: &str) -> Result<Value> {
    let inline = given.trim_start().starts_with('{') || ["true", "false"].contains(&given.trim());
    if inline {
        return serde_json::from_str(given)
            .map_err(|e| Error::bad_value("--json-schema", e.to_string(), "give a JSON schema or a file with one"));
    }
    let bytes = std::fs::read(given).map_err(Error::io("read", given))?;
    serde_json::from_slice(&bytes).map_err(|e| Error::bad_file("JSON schema", given, e.to_string(), "correct it"))
}

/// A form, ready: the grammar, and the tokens that end a text.
#[cfg(feature = "constrain")]
pub(crate) struct CompiledForm(Option<(ConstraintFactory, Grammar, Vec<u32>)>);

/// No form.
#[cfg(not(feature = "constrain"))]
pub(crate) struct CompiledForm;

impl CompiledForm {
    /// The mask of one text.
    pub(crate) fn mask(&self) -> Result<Option<Box<dyn TokenMask>>> {
        #[cfg(feature = "constrain")]
        return self.0.as_ref().map(|(factory, grammar, ends)| factory.mask(grammar, ends)).transpose();
        #[cfg(not(feature = "constrain"))]
        Ok(None)
    }
}

/// In which type the weights are.
#[derive(Args, Clone, Debug)]
pub(crate) struct WeightFlags {
    /// Type of the weights: f32, bf16, f16 [default: f32; of a GGUF file, its own]
    #[arg(long, value_name = "TYPE", value_parser = ["f32", "bf16", "f16"], conflicts_with = "quantize")]
    dtype: Option<String>,
    /// Make the weights narrower as they are loaded: q8_0 (8.5 bits each) or q4_0 (4.5 bits)
    #[arg(long, value_name = "TYPE", value_parser = ["q8_0", "q4_0"])]
    quantize: Option<String>,
}

impl WeightFlags {
    /// What is asked for, as [`EngineConfig::dtype`].
    pub(crate) fn dtype(&self) -> Option<String> {
        self.dtype.clone().or(self.quantize.clone())
    }
}

/// How the engine computes.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Engine")]
pub(crate) struct EngineFlags {
    #[command(flatten)]
    weights: WeightFlags,
    /// Longest sequence, prompt and text, in tokens [default: the model's, as far as the cache reaches]
    #[arg(long, value_name = "N")]
    pub(crate) max_len: Option<usize>,
    /// Room for keys and values, never exceeded: 512MiB, 2GB, ... [default: what --max-batch sequences of --max-len need, at most a
    /// quarter of the memory]
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    kv_cache_bytes: Option<u64>,
    /// Type of keys and values: f32, bf16, f16, int8
    #[arg(long, value_name = "TYPE", default_value_t = KvDtype::F32)]
    kv_cache_dtype: KvDtype,
    /// Most sequences that are computed at once [default: as many as there are texts, at most 16]
    #[arg(long, value_name = "N")]
    max_batch: Option<usize>,
}

impl EngineFlags {
    /// What can be known of the flags alone.
    pub(crate) fn check(&self) -> Result<()> {
        for (flag, value) in [("--max-batch", self.max_batch), ("--max-len", self.max_len)] {
            if value == Some(0) {
                return Err(Error::bad_value(flag, "expected at least 1, got 0", "leave it out to take the default"));
            }
        }
        Ok(())
    }

    /// For a number of texts, which are no more at once.
    pub(crate) fn config(&self, texts: usize) -> EngineConfig {
        EngineConfig {
            dtype: self.weights.dtype(),
            max_len: self.max_len,
            kv_cache_bytes: self.kv_cache_bytes,
            kv_cache_dtype: self.kv_cache_dtype,
            max_batch: self.max_batch.unwrap_or(EngineConfig::default().max_batch).min(texts),
            ..EngineConfig::default()
        }
    }
}

/// `512MiB`, `2GB`, `1.5G`, `4096`: kB, MB, GB, TB are powers of 1000; KiB, MiB, GiB, TiB and K, M, G, T of 1024.
pub(crate) fn bytes(text: &str) -> std::result::Result<u64, String> {
    let bad = || "expected a number of bytes, as 512MiB, 2GB or 1073741824".to_string();
    let text = text.trim();
    let at = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let number: f64 = text[..at].parse().map_err(|_| bad())?;
    let unit = text[at..].trim().to_ascii_lowercase();
    let power = |letter: &str| "kmgt".find(letter).map(|i| i as i32 + 1);
    let factor = match (unit.as_str(), unit.get(..1)) {
        ("" | "b", _) => Some(1.0),
        (unit, Some(letter)) => match &unit[1..] {
            "b" => power(letter).map(|p| 1000f64.powi(p)),
            "" | "ib" => power(letter).map(|p| 1024f64.powi(p)),
            _ => None,
        },
        _ => None,
    };
    let bytes = number * factor.ok_or_else(bad)?;
    // Beyond 2^53 no byte is sure, nor is any memory that large.
    if (1.0..9e15).contains(&bytes) { Ok(bytes as u64) } else { Err(bad()) }
}
