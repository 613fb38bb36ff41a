//! Hugging Face folders: `config.json` and `model.safetensors`, whole or in shards with an index.
//!
//! HF's attention rotates the two halves of a head against each other, Meta's (and ours) adjacent elements. So the rows of
//! `q_proj` and `k_proj` are permuted on the way in and out; the bytes of a row stay as they are, whatever their type.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::check::{check_layers, check_tensors};
use super::disk;
use super::tensors::{Dtype, SafetensorsFile, Tensor, TensorInfo, TensorSource, no_such_tensor, write_safetensors};
use crate::error::{Error, Result};
use crate::model::{ModelConfig, RopeScaling};

/// The one table of names: Meta's, Hugging Face's. Those of a block follow `layers.N.` and `model.layers.N.`.
const OUTER: [(&str, &str); 3] = [
    ("tok_embeddings.weight", "model.embed_tokens.weight"),
    ("norm.weight", "model.norm.weight"),
    ("output.weight", "lm_head.weight"),
];
const BLOCK: [(&str, &str); 9] = [
    ("attention_norm.weight", "input_layernorm.weight"),
    ("attention.wq.weight", "self_attn.q_proj.weight"),
    ("attention.wk.weight", "self_attn.k_proj.weight"),
    ("attention.wv.weight", "self_attn.v_proj.weight"),
    ("attention.wo.weight", "self_attn.o_proj.weight"),
    ("ffn_norm.weight", "post_attention_layernorm.weight"),
    ("feed_forward.w1.weight", "mlp.gate_proj.weight"),
    ("feed_forward.w2.weight", "mlp.down_proj.weight"),
    ("feed_forward.w3.weight", "mlp.up_proj.weight"),
];

/// The Hugging Face name of a parameter with Meta's name; `None` if a LLaMA has no such parameter.
pub fn hf_name(meta: &str) -> Option<String> {
    let find = |table: &[(&str, &'static str)], name: &str| table.iter().find(|(m, _)| *m == name).map(|(_, hf)| *hf);
    if let Some(rest) = meta.strip_prefix("layers.") {
        let (layer, name) = rest.split_once('.')?;
        return find(&BLOCK, name).map(|hf| format!("model.layers.{layer}.{hf}"));
    }
    find(&OUTER, meta).map(Into::into)
}

/// Heads of the parameters whose rows are permuted.
fn rotary_heads(config: &ModelConfig, meta: &str) -> Option<usize> {
    match meta {
        _ if meta.ends_with("attention.wq.weight") => Some(config.n_heads),
        _ if meta.ends_with("attention.wk.weight") => Some(config.kv_heads()),
        _ => None,
    }
}

/// Reorders rows within each head between adjacent pairs (Meta: row `2 i + j`) and halves (HF: row `j * head_dim/2 + i`).
fn permute(tensor: Tensor<'_>, heads: usize, to_hf: bool) -> Tensor<'static> {
    let rows = tensor.shape.first().copied().unwrap_or(0);
    let (row, half) = (tensor.bytes.len() / rows.max(1), rows / heads.max(1) / 2);
    let mut bytes = Vec::with_capacity(tensor.bytes.len());
    for head in 0..heads {
        for k in 0..2 * half {
            let from = if to_hf { 2 * (k % half) + k / half } else { (k % 2) * half + k / 2 };
            let start = (head * 2 * half + from) * row;
            bytes.extend_from_slice(&tensor.bytes[start..start + row]);
        }
    }
    Tensor { shape: tensor.shape, dtype: tensor.dtype, bytes: Cow::Owned(bytes) }
}

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
    fn write(&self, dtype: Dtype) -> Result<Value> {
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

/// Tensors by their name in the files, with the index of the file.
type Found = BTreeMap<String, (usize, TensorInfo)>;

/// A Hugging Face folder seen with Meta's names and layout.
#[derive(Debug)]
pub struct HfFolder {
    dir: PathBuf,
    config: HfConfig,
    files: Vec<SafetensorsFile>,
    infos: Vec<TensorInfo>,
    /// Meta's name -> index in `files` and the name there.
    places: HashMap<String, (usize, String)>,
}

impl HfFolder {
    /// Opens `config.json` and `model.safetensors`, or the shards of `model.safetensors.index.json`, and checks that they
    /// hold every parameter in the right shape, and nothing that a LLaMA does not have.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::BadFile`], [`Error::BadTensor`] naming shards and tensors; those of [`HfConfig::read`].
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let config = HfConfig::read(&dir.join("config.json"))?;
        let (files, mut found) = Self::find(dir)?;
        let listed: Vec<TensorInfo> =
            found.iter().map(|(name, (_, info))| TensorInfo { name: name.clone(), ..info.clone() }).collect();
        check_layers(dir, &config.model, listed.len())?;
        let mut wanted = config.model.parameters();
        if config.tie_word_embeddings {
            wanted.retain(|(name, _)| name != "output.weight");
            found.remove("lm_head.weight");
        }
        let hf = |meta: &str| hf_name(meta).unwrap_or_default();
        let wanted_hf: Vec<_> = wanted.iter().map(|(name, shape)| (hf(name), shape.clone())).collect();
        let listed: Vec<TensorInfo> =
            listed.into_iter().filter(|i| found.contains_key(&i.name) && !i.name.ends_with("rotary_emb.inv_freq")).collect();
        check_tensors(dir, &wanted_hf, &listed)?;

        let (mut infos, mut places) = (Vec::new(), HashMap::new());
        for (name, shape) in config.model.parameters() {
            let tied = config.tie_word_embeddings && name == "output.weight";
            let hf = if tied { hf("tok_embeddings.weight") } else { hf(&name) };
            let Some((file, info)) = found.get(&hf) else { return Err(no_such_tensor(dir, &hf)) };
            infos.push(TensorInfo { name: name.clone(), shape, dtype: info.dtype });
            places.insert(name, (*file, hf));
        }
        Ok(Self { dir: dir.into(), config, files, infos, places })
    }

    /// The files and what is in them.
    fn find(dir: &Path) -> Result<(Vec<SafetensorsFile>, Found)> {
        let (single, index) = (dir.join("model.safetensors"), dir.join("model.safetensors.index.json"));
        let mut found = Found::new();
        if single.exists() {
            let file = SafetensorsFile::open(&single)?;
            found.extend(file.list().iter().map(|i| (i.name.clone(), (0, i.clone()))));
            return Ok((vec![file], found));
        }
        if !index.exists() {
            let what = "model.safetensors and no model.safetensors.index.json".to_string();
            let hint = "pytorch_model.bin is not read: save it again with transformers' save_pretrained".to_string();
            return Err(Error::Nothing { what, path: dir.into(), hint });
        }
        let bad = |problem: String| Error::bad_file("safetensors index", &index, problem, "download the folder again");
        let json = disk::read_json("safetensors index", &index)?;
        let map = json.get("weight_map").and_then(Value::as_object).ok_or_else(|| bad("expected a `weight_map`".into()))?;
        let mut shards: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (name, shard) in map {
            let shard = shard.as_str().filter(|s| disk::is_plain_name(s));
            shards.entry(shard.ok_or_else(|| bad(format!("`{name}` is in no plain file name")))?).or_default().push(name);
        }
        let missing: Vec<&str> = shards.keys().copied().filter(|s| !dir.join(s).is_file()).collect();
        if !missing.is_empty() {
            return Err(bad(format!("shards missing from the folder: {}", missing.join(", "))));
        }
        let mut files = Vec::new();
        for (shard, names) in &shards {
            let file = SafetensorsFile::open(dir.join(shard))?;
            for info in file.list() {
                // A tensor that the index has in another shard is that one; one that it does not have is an extra.
                if map.get(&info.name).is_none_or(|s| s == shard) {
                    found.insert(info.name.clone(), (files.len(), info.clone()));
                }
            }
            if let Some(name) = names.iter().find(|n| found.get(**n).is_none_or(|(i, _)| *i != files.len())) {
                return Err(bad(format!("says that `{name}` is in {shard}, which has no such tensor")));
            }
            files.push(file);
        }
        Ok((files, found))
    }

    /// What `config.json` says.
    pub fn config(&self) -> &HfConfig {
        &self.config
    }
}

impl TensorSource for HfFolder {
    fn list(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn read(&self, name: &str) -> Result<Tensor<'_>> {
        let place = self.places.get(name).and_then(|(i, hf)| Some((self.files.get(*i)?, hf)));
        let (file, hf) = place.ok_or_else(|| no_such_tensor(&self.dir, name))?;
        let tensor = file.read(hf)?;
        Ok(match rotary_heads(&self.config.model, name) {
            Some(heads) => permute(tensor, heads, false),
            None => tensor,
        })
    }
}

/// transformers' own limit for one file.
pub const HF_SHARD_BYTES: u64 = 5_000_000_000;

/// Fills the existing folder `dir` as a Hugging Face folder; `source` has Meta's names and layout.
pub(crate) fn write_into(dir: &Path, config: &HfConfig, source: &dyn TensorSource, shard_bytes: u64) -> Result<()> {
    let config = HfConfig { model: config.model.without_ntk(), tie_word_embeddings: false, ..config.clone() };
    config.model.validate()?;
    check_layers(dir, &config.model, source.list().len())?;
    check_tensors(dir, &config.model.parameters(), source.list())?;
    let meta: Vec<&TensorInfo> = source.list().iter().collect();
    let hf: Vec<TensorInfo> =
        meta.iter().map(|info| TensorInfo { name: hf_name(&info.name).unwrap_or_default(), ..(*info).clone() }).collect();

    // Consecutive tensors share a shard up to `shard_bytes`; a larger tensor has one of its own.
    let (mut shards, mut room, mut total) = (Vec::<std::ops::Range<usize>>::new(), 0u64, 0u64);
    for (i, info) in hf.iter().enumerate() {
        let len = info.byte_len().unwrap_or(usize::MAX) as u64;
        total += len;
        match shards.last_mut() {
            Some(last) if len <= room => (last.end, room) = (i + 1, room - len),
            _ => {
                shards.push(i..i + 1);
                room = shard_bytes.saturating_sub(len);
            }
        }
    }
    let mut weight_map = Map::new();
    for (n, range) in shards.iter().enumerate() {
        let name = match shards.len() {
            1 => "model.safetensors".to_string(),
            all => format!("model-{:05}-of-{all:05}.safetensors", n + 1),
        };
        let (hf, meta) = (&hf[range.clone()], &meta[range.clone()]);
        write_safetensors(&dir.join(&name), hf, &[("format", "pt")], &mut |i| {
            let tensor = source.read(&meta[i].name)?;
            Ok(match rotary_heads(&config.model, &meta[i].name) {
                Some(heads) => permute(tensor, heads, true).bytes,
                None => tensor.bytes,
            })
        })?;
        weight_map.extend(hf.iter().map(|info| (info.name.clone(), Value::from(name.as_str()))));
    }
    if shards.len() > 1 {
        let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
        disk::write_file(&dir.join("model.safetensors.index.json"), format!("{index:#}\n").as_bytes())?;
    }
    let dtype = source.list().first().map_or(Dtype::F32, |info| info.dtype);
    let json = config.write(dtype)?;
    disk::write_file(&dir.join("config.json"), format!("{json:#}\n").as_bytes())?;
    let generation = json!({
        "_from_model_config": true, "bos_token_id": json["bos_token_id"], "eos_token_id": json["eos_token_id"],
    });
    disk::write_file(&dir.join("generation_config.json"), format!("{generation:#}\n").as_bytes())?;
    Ok(())
}
