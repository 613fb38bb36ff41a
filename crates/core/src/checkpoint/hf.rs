//! Hugging Face folders: `config.json` and `model.safetensors`, whole or in shards with an index.
//!
//! HF's attention rotates the two halves of a head against each other, Meta's (and ours) adjacent elements. So the rows of
//! `q_proj` and `k_proj` are permuted on the way in and out; the bytes of a row stay as they are, whatever their type.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::Dtype;
use super::check::{check_layers, check_tensors};
use super::disk;
use super::ends::TextEnds;
pub use super::hf_config::HfConfig;
use super::tensors::{SafetensorsFile, Tensor, TensorInfo, TensorSource, no_such_tensor, write_safetensors};
use crate::error::{Error, Result};
use crate::model::ModelConfig;
use crate::tokenizer::Tokenizer;

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

/// Whether a tensor is computed, and not read.
fn is_computed(name: &str) -> bool {
    name.ends_with("rotary_emb.inv_freq")
}

/// The files of a folder and what is in them.
struct Files {
    files: Vec<SafetensorsFile>,
    /// Tensors by their name in the files, with the index of the file.
    found: BTreeMap<String, (usize, TensorInfo)>,
    /// Names in the index that no file has, and the file where they should be.
    gone: Vec<(String, String)>,
}

impl Files {
    fn open(dir: &Path) -> Result<Self> {
        let (single, index) = (dir.join("model.safetensors"), dir.join("model.safetensors.index.json"));
        let mut found = BTreeMap::new();
        if single.exists() {
            let file = SafetensorsFile::open(&single)?;
            found.extend(file.list().iter().map(|i| (i.name.clone(), (0, i.clone()))));
            return Ok(Self { files: vec![file], found, gone: Vec::new() });
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
        // A shard of nothing but what is computed may be gone.
        shards.retain(|shard, names| dir.join(shard).is_file() || !names.iter().all(|name| is_computed(name)));
        let missing: Vec<&str> = shards.keys().copied().filter(|s| !dir.join(s).is_file()).collect();
        if !missing.is_empty() {
            return Err(bad(format!("shards missing from the folder: {}", missing.join(", "))));
        }
        let (mut files, mut gone) = (Vec::new(), Vec::new());
        for (shard, names) in &shards {
            let file = SafetensorsFile::open(dir.join(shard))?;
            for info in file.list() {
                // A tensor that the index has in another shard is that one; one that it does not have is an extra.
                if map.get(&info.name).is_none_or(|s| s == shard) {
                    found.insert(info.name.clone(), (files.len(), info.clone()));
                }
            }
            let there = |name: &str| {
                found.get(name).is_some_and(|(i, _)| *i == files.len()) || file.others().iter().any(|(other, ..)| other == name)
            };
            gone.extend(names.iter().filter(|name| !there(name)).map(|name| (name.to_string(), shard.to_string())));
            files.push(file);
        }
        Ok(Self { files, found, gone })
    }

    /// Refuses parameters of element types that are not read, or that the index names and no file has; says what else is passed
    /// over.
    fn check_others(&self, dir: &Path, wanted: &[(String, Vec<usize>)]) -> Result<()> {
        let others = || self.files.iter().flat_map(|file| file.others()).filter(|(name, ..)| !is_computed(name));
        let is_wanted = |name: &str| wanted.iter().any(|(wanted, _)| wanted == name);
        if let Some((name, shard)) = self.gone.iter().find(|(name, _)| is_wanted(name)) {
            let problem = format!("says that `{name}` is in {shard}, which has no such tensor");
            let path = dir.join("model.safetensors.index.json");
            return Err(Error::bad_file("safetensors index", path, problem, "download the folder again"));
        }
        if let Some((name, dtype, shape)) = others().find(|(name, ..)| is_wanted(name)) {
            return Err(Error::BadTensor {
                path: dir.into(),
                name: name.clone(),
                expected: "F32, F16 or BF16".into(),
                got: format!("{dtype} {shape:?}"),
                hint: "quantised and integer weights are not read: take the original checkpoint".into(),
            });
        }
        // Floats of other widths, and what holds quantised weights, are no buffers.
        let whole = |dtype: &str| matches!(dtype, "BOOL" | "U8" | "I8" | "I16" | "U16" | "I32" | "U32" | "I64" | "U64");
        let missing = wanted.iter().any(|(name, _)| !self.found.contains_key(name));
        if let Some((name, dtype, _)) = others().find(|(_, dtype, _)| missing || !whole(dtype)) {
            let problem = format!("tensor `{name}` has elements of type {dtype}, expected F32, F16 or BF16");
            let hint = "quantised and integer weights are not read: take the original checkpoint";
            return Err(Error::bad_file("Hugging Face folder", dir, problem, hint));
        }
        let names: Vec<&str> = others().map(|(name, ..)| name.as_str()).collect();
        if !names.is_empty() {
            log::warn!("{}: passed over, since a LLaMA has no such parameters: {}", dir.display(), names.join(", "));
        }
        Ok(())
    }
}

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
    /// Buffers that need no reading are passed over: `inv_freq`, which is computed, and tensors of whole numbers or booleans beside
    /// the parameters (position ids, masks), which are named in a warning. With `tie_word_embeddings` an `lm_head.weight` need not be
    /// there; one that is there is what the model computes with, as in transformers 5.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::BadFile`], [`Error::BadTensor`] naming shards and tensors; those of [`HfConfig::read`].
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let config = HfConfig::read(&dir.join("config.json"))?;
        let files = Files::open(dir)?;
        check_layers(dir, &config.model, files.found.len())?;
        let hf = |meta: &str| hf_name(meta).unwrap_or_default();
        let (embedding, head) = (hf("tok_embeddings.weight"), hf("output.weight"));
        let tied = config.tie_word_embeddings && !files.found.contains_key(&head);
        let mut wanted: Vec<_> = config.model.parameters().into_iter().map(|(name, shape)| (hf(&name), shape)).collect();
        wanted.retain(|(name, _)| !(tied && *name == head));
        files.check_others(dir, &wanted)?;
        let listed = files.found.iter().filter(|(name, _)| !is_computed(name));
        let listed: Vec<TensorInfo> = listed.map(|(name, (_, info))| TensorInfo { name: name.clone(), ..info.clone() }).collect();
        check_tensors(dir, &wanted, &listed)?;

        let (mut infos, mut places) = (Vec::new(), HashMap::new());
        for (name, shape) in config.model.parameters() {
            let hf = if tied && name == "output.weight" { embedding.clone() } else { hf(&name) };
            let Some((file, info)) = files.found.get(&hf) else { return Err(no_such_tensor(dir, &hf)) };
            infos.push(TensorInfo { name: name.clone(), shape, dtype: info.dtype });
            places.insert(name, (*file, hf));
        }
        let folder = Self { dir: dir.into(), files: files.files, config, infos, places };
        if folder.config.tie_word_embeddings && !tied && folder.heads_differ()? {
            log::warn!(
                "{}: tie_word_embeddings, but lm_head.weight is not the embedding: it is used, as transformers 5 does",
                dir.display()
            );
        }
        Ok(folder)
    }

    /// Whether output and embedding differ in their first bytes; a head of its own does so at once.
    fn heads_differ(&self) -> Result<bool> {
        let [embedding, head] = [self.read("tok_embeddings.weight")?, self.read("output.weight")?];
        let first = |tensor: &Tensor<'_>| tensor.bytes[..tensor.bytes.len().min(1 << 20)].to_vec();
        Ok(embedding.dtype != head.dtype || first(&embedding) != first(&head))
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

/// Where tokens that begin and end a text are named.
pub(crate) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

/// transformers' own limit for one file.
pub const HF_SHARD_BYTES: u64 = 5_000_000_000;

/// Fills the existing folder `dir` as a Hugging Face folder; `source` has Meta's names and layout.
pub(crate) fn write_into(
    dir: &Path,
    config: &HfConfig,
    generation: &Map<String, Value>,
    source: &dyn TensorSource,
    shard_bytes: u64,
) -> Result<()> {
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
    let mut generation = generation.clone();
    if generation.is_empty() {
        generation.insert("_from_model_config".into(), true.into());
    }
    for key in ["bos_token_id", "eos_token_id"] {
        generation.insert(key.into(), json[key].clone());
    }
    let generation = Value::Object(generation);
    disk::write_file(&dir.join("generation_config.json"), format!("{generation:#}\n").as_bytes())?;
    Ok(())
}

/// The object of `generation_config.json`; empty where there is none.
pub(crate) fn read_generation(dir: &Path) -> Result<Map<String, Value>> {
    let path = dir.join("generation_config.json");
    if !path.exists() {
        return Ok(Map::new());
    }
    match disk::read_json("generation config", &path)? {
        Value::Object(map) => Ok(map),
        _ => Err(Error::bad_file("generation config", &path, "expected an object", "correct the file, or remove it")),
    }
}

/// A `tokenizer_config.json` that names the tokens that begin and end a text, for folders whose tokenizer has none: without it other
/// programs do not know them.
pub(crate) fn tokenizer_config(tokenizer: &Tokenizer, config: &ModelConfig, ids: &TextEnds) -> Vec<u8> {
    let token = |id: Option<u32>| id.and_then(|id| tokenizer.token_of(id));
    let (bos, eos) = (token(ids.bos_id), token(ids.eos_ids.first().copied()));
    let class = if tokenizer.file_name() == "tokenizer.model" { "LlamaTokenizer" } else { "PreTrainedTokenizerFast" };
    let json = json!({
        "add_bos_token": bos.is_some(),
        "add_eos_token": false,
        "bos_token": bos,
        "clean_up_tokenization_spaces": false,
        "eos_token": eos,
        "model_max_length": config.max_seq_len,
        "tokenizer_class": class,
    });
    format!("{json:#}\n").into_bytes()
}
