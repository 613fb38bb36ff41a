//! Hugging Face's `config.json` of a LLaMA, read and written.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::Dtype;
use super::disk;
use crate::error::{Error, Result};
use crate::model::{ModelConfig, RopeScaling};

/// What a `config.json` says about a LLaMA.
#[derive(Clone, Debug, PartialEq)]
pub struct HfConfig {
    /// The hyper-parameters; `max_seq_len` is `max_position_embeddings`.
    pub model: ModelConfig,
    /// The output matrix is the embedding matrix.
    pub tie_word_embeddings: bool,
    /// Token that begins a text.
    pub bos_id: Option<u32>,
    /// Tokens that end one.
    pub eos_ids: Vec<u32>,
}

impl HfConfig {
    /// Reads a `config.json` as transformers 4 (`rope_theta`, `rope_scaling`) or 5 (`rope_parameters`) writes it. Absent keys
    /// have transformers' own defaults, but the five sizes must be there.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::BadFile`]; [`Error::BadValue`] for another architecture or a feature that LLaMA has not
    /// (biases, another activation, another `head_dim`, an unknown rope type, quantisation).
    pub fn read(path: &Path) -> Result<Self> {
        let value = disk::read_json("Hugging Face config", path)?;
        let Value::Object(map) = value else {
            return Err(Error::bad_file("Hugging Face config", path, "expected an object", "give a config.json of a LLaMA"));
        };
        Keys { path, map: &map }.config()
    }

    /// The `config.json` that transformers 4 and 5 both read: each finds its own spelling of rope and dtype.
    pub(super) fn write(&self, dtype: Dtype) -> Result<Value> {
        let m = &self.model;
        let mut scaling = match m.rope_scaling {
            RopeScaling::None => Map::new(),
            RopeScaling::Linear { factor } => object(json!({ "rope_type": "linear", "factor": factor })),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_seq_len } => object(json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor,
                "original_max_position_embeddings": original_max_seq_len,
            })),
            RopeScaling::Factors { .. } => return Err(no_factors()),
            RopeScaling::Ntk { .. } => {
                let problem = "Hugging Face has no fixed NTK scaling";
                return Err(Error::bad_value("model.rope_scaling", problem, "raise rope_theta instead"));
            }
        };
        let four = if scaling.is_empty() { Value::Null } else { Value::Object(scaling.clone()) };
        scaling.entry("rope_type").or_insert("default".into());
        scaling.insert("rope_theta".into(), m.rope_theta.into());
        let eos = match self.eos_ids.as_slice() {
            [] => Value::Null,
            [id] => json!(id),
            ids => json!(ids),
        };
        Ok(json!({
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": false,
            "attention_dropout": 0.0,
            "bos_token_id": self.bos_id,
            "dtype": dtype.torch_name(),
            "eos_token_id": eos,
            "head_dim": m.head_dim(),
            "hidden_act": "silu",
            "hidden_size": m.dim,
            "initializer_range": 0.02,
            "intermediate_size": m.hidden_dim(),
            "max_position_embeddings": m.max_seq_len,
            "mlp_bias": false,
            "model_type": "llama",
            "num_attention_heads": m.n_heads,
            "num_hidden_layers": m.n_layers,
            "num_key_value_heads": m.kv_heads(),
            "pretraining_tp": 1,
            "rms_norm_eps": m.norm_eps,
            "rope_parameters": scaling,
            "rope_scaling": four,
            "rope_theta": m.rope_theta,
            "tie_word_embeddings": self.tie_word_embeddings,
            "torch_dtype": dtype.torch_name(),
            "use_cache": true,
            "vocab_size": m.vocab_size,
        }))
    }
}

/// Refuses what [`HfConfig::write`] has no words for.
pub(super) fn check_config(config: &ModelConfig) -> Result<()> {
    if matches!(config.rope_scaling, RopeScaling::Factors { .. }) { Err(no_factors()) } else { Ok(()) }
}

fn no_factors() -> Error {
    let problem = "Hugging Face's LLaMA has no factors for single rotary frequencies";
    Error::bad_value("model.rope_scaling", problem, "convert to gguf or native instead")
}

fn object(value: Value) -> Map<String, Value> {
    if let Value::Object(map) = value { map } else { Map::new() }
}

/// Typed access to an object of `config.json`; `null` is the same as absent.
struct Keys<'a> {
    path: &'a Path,
    map: &'a Map<String, Value>,
}

impl Keys<'_> {
    fn bad(&self, key: &str, problem: impl Into<String>, hint: &str) -> Error {
        Error::bad_value(format!("{}: {key}", self.path.display()), problem, hint)
    }

    fn get<'v, T>(&'v self, key: &str, what: &str, read: impl Fn(&'v Value) -> Option<T>) -> Result<Option<T>> {
        match self.map.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(v) => match read(v) {
                Some(t) => Ok(Some(t)),
                None => Err(self.bad(key, format!("expected {what}, got {v}"), "correct the file")),
            },
        }
    }

    fn size(&self, key: &str) -> Result<Option<usize>> {
        self.get(key, "a whole number", |v| v.as_u64().and_then(|n| n.try_into().ok()))
    }

    fn required(&self, key: &str) -> Result<usize> {
        self.size(key)?.ok_or_else(|| self.bad(key, "is missing", "a LLaMA's config.json must have it"))
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        self.get(key, "a number", Value::as_f64)
    }

    fn text(&self, key: &str) -> Result<Option<&str>> {
        self.get(key, "a string", Value::as_str)
    }

    fn flag(&self, key: &str) -> Result<bool> {
        Ok(self.get(key, "true or false", Value::as_bool)?.unwrap_or(false))
    }

    fn config(&self) -> Result<HfConfig> {
        const ONLY: &str = "only LLaMA (LlamaForCausalLM) is read";
        let architectures = self.get("architectures", "a list", Value::as_array)?;
        let model_type = self.text("model_type")?;
        if model_type.is_some_and(|t| t != "llama") || (model_type.is_none() && architectures.is_none()) {
            return Err(self.bad("model_type", format!("expected `llama`, got `{}`", model_type.unwrap_or("nothing")), ONLY));
        }
        if let Some(list) = architectures
            && !list.iter().any(|a| matches!(a.as_str(), Some("LlamaForCausalLM" | "LLaMAForCausalLM")))
        {
            let problem = format!("expected `LlamaForCausalLM`, got {}", Value::Array(list.clone()));
            return Err(self.bad("architectures", problem, ONLY));
        }
        for key in ["attention_bias", "mlp_bias"] {
            if self.flag(key)? {
                return Err(self.bad(key, "expected false, got true: LLaMA has no biases", "this model cannot be read"));
            }
        }
        if let Some(act) = self.text("hidden_act")?.filter(|a| !matches!(*a, "silu" | "swish")) {
            return Err(self.bad("hidden_act", format!("expected `silu`, got `{act}`"), "this model cannot be read"));
        }
        if self.map.get("quantization_config").is_some_and(|v| !v.is_null()) {
            let hint = "take the original checkpoint in float16 or bfloat16";
            return Err(self.bad("quantization_config", "quantised weights are not read", hint));
        }
        let max_seq_len = self.size("max_position_embeddings")?.unwrap_or(2048);
        let (rope_theta, rope_scaling) = self.rope(max_seq_len)?;
        let model = ModelConfig {
            dim: self.required("hidden_size")?,
            n_layers: self.required("num_hidden_layers")?,
            n_heads: self.required("num_attention_heads")?,
            n_kv_heads: self.size("num_key_value_heads")?,
            vocab_size: self.required("vocab_size")?,
            multiple_of: 256,
            ffn_dim: Some(self.required("intermediate_size")?),
            norm_eps: self.number("rms_norm_eps")?.unwrap_or(1e-6),
            max_seq_len,
            rope_theta,
            rope_scaling,
        };
        let in_file = |e: Error| self.bad("as a LLaMA", e.to_string(), "this model cannot be read");
        model.validate().map_err(in_file)?;
        if let Some(head_dim) = self.size("head_dim")?
            && head_dim != model.head_dim()
        {
            let problem = format!("expected hidden_size / num_attention_heads = {}, got {head_dim}", model.head_dim());
            return Err(self.bad("head_dim", problem, "this model cannot be read"));
        }
        let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        let ids = |v: &Value| v.as_array().map_or_else(|| id(v).map(|i| vec![i]), |list| list.iter().map(id).collect());
        Ok(HfConfig {
            model: model.with_implied_ffn_dim(),
            tie_word_embeddings: self.flag("tie_word_embeddings")?,
            bos_id: self.get("bos_token_id", "a token id", id)?,
            eos_ids: self.get("eos_token_id", "a token id or a list of them", ids)?.unwrap_or_default(),
        })
    }

    /// `rope_theta` and the scaling. As in transformers 5, `rope_scaling` comes before `rope_parameters`.
    fn rope(&self, max_seq_len: usize) -> Result<(f64, RopeScaling)> {
        let mut theta = self.number("rope_theta")?;
        let mut scaling = RopeScaling::None;
        let mut seen = false;
        if self.number("partial_rotary_factor")?.is_some_and(|f| f != 1.0) {
            return Err(self.bad("partial_rotary_factor", "LLaMA rotates whole heads", "this model cannot be read"));
        }
        for name in ["rope_scaling", "rope_parameters"] {
            let Some(map) = self.get(name, "an object", Value::as_object)?.filter(|m| !m.is_empty()) else { continue };
            let keys = Keys { path: self.path, map };
            if let Some((key, _)) = map.iter().find(|(_, v)| v.is_object()) {
                return Err(self.bad(name, format!("different rope for `{key}`"), "LLaMA has one for all layers"));
            }
            if keys.number("partial_rotary_factor")?.is_some_and(|f| f != 1.0) {
                return Err(self.bad(name, "partial_rotary_factor: LLaMA rotates whole heads", "this model cannot be read"));
            }
            if let Some(own) = keys.number("rope_theta")? {
                if theta.is_some_and(|t| t != own) {
                    let problem = format!("says {own} in {name} and {} elsewhere", theta.unwrap_or(own));
                    return Err(self.bad("rope_theta", problem, "correct the one that is wrong"));
                }
                theta = Some(own);
            }
            let found = keys.scaling(name, max_seq_len)?;
            if seen && found != scaling {
                let problem = format!("says {scaling:?} in rope_scaling and {found:?} in rope_parameters");
                return Err(self.bad("rope type", problem, "correct the one that is wrong"));
            }
            (scaling, seen) = (found, true);
        }
        Ok((theta.unwrap_or(10_000.0), scaling))
    }

    fn scaling(&self, name: &str, max_seq_len: usize) -> Result<RopeScaling> {
        let need = |key: &str| {
            let missing = || self.bad(&format!("{name}.{key}"), "is missing", "this rope type needs it");
            self.number(key)?.ok_or_else(missing)
        };
        match self.text("rope_type")?.or(self.text("type")?).unwrap_or("default") {
            "default" => Ok(RopeScaling::None),
            "linear" => Ok(RopeScaling::Linear { factor: need("factor")? }),
            "llama3" => Ok(RopeScaling::Llama3 {
                factor: need("factor")?,
                low_freq_factor: need("low_freq_factor")?,
                high_freq_factor: need("high_freq_factor")?,
                original_max_seq_len: self.size("original_max_position_embeddings")?.unwrap_or(max_seq_len),
            }),
            other => {
                let problem = format!("unknown rope type `{other}`, expected default, linear or llama3");
                Err(self.bad(name, problem, "this model cannot be read"))
            }
        }
    }
}
