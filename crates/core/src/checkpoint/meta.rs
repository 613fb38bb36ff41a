//! Meta's folders: `params.json` and `consolidated.NN.pth`, one file a model-parallel rank.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::Dtype;
use super::check::{check_layers, check_tensors};
use super::disk;
use super::ends::TextEnds;
use super::meta_pickle::PthFile;
pub use super::meta_pickle::write_pth;
use super::tensors::{Tensor, TensorInfo, TensorSource, no_such_tensor};
use crate::error::{Error, Result};
use crate::model::{ModelConfig, RopeScaling};

const WHAT: &str = "params.json";
const PARAMS: &str = "params.json";
/// What `params.json` cannot say: Meta's own loader takes the sequence length from its caller and stumbles over it there, and the
/// tokens that begin and end a text from the tokenizer.
const EXTRA: &str = "recua.json";
/// Llama 3.1's constants, which are code and not configuration at Meta: low and high frequency factor, original length.
const LLAMA3: (f64, f64, usize) = (1.0, 4.0, 8192);

/// The factor of `use_scaled_rope`, which is not in these files: that of Llama 3.2's small models, which are known by width and
/// layers, or that of all others.
fn llama3_factor(dim: usize, n_layers: usize) -> f64 {
    if matches!((dim, n_layers), (2048, 16) | (3072, 28)) { 32.0 } else { 8.0 }
}

/// How a parameter is laid out over the ranks.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Split {
    /// Every rank has all of it.
    Whole,
    /// Every rank has some rows.
    Rows,
    /// Every rank has some columns.
    Columns,
}

/// The ways in which Meta's code may have split a parameter.
fn splits(name: &str) -> &'static [Split] {
    match name.rsplit('.').nth(1) {
        Some("wq" | "wk" | "wv" | "w1" | "w3" | "output") => &[Split::Rows],
        Some("wo" | "w2") => &[Split::Columns],
        // LLaMA 1 and 2: columns; Llama 3: rows.
        Some("tok_embeddings") => &[Split::Columns, Split::Rows],
        _ => &[],
    }
}

/// A Meta folder, its shards seen as one.
pub struct MetaFolder {
    dir: PathBuf,
    config: ModelConfig,
    ends: TextEnds,
    shards: Vec<PthFile>,
    infos: Vec<TensorInfo>,
    splits: Vec<Split>,
}

impl MetaFolder {
    /// Opens `params.json` and every `consolidated.NN.pth`, and checks that they hold every parameter, in shapes that go
    /// together, and nothing else (`rope.freqs` is computed, not read).
    ///
    /// `max_seq_len` is not in these files: 2048, or 8192 where `rope_theta` is above 10000 (Llama 3), or 131072 with
    /// `use_scaled_rope` (3.1), unless the folder was written by [`convert`](super::convert).
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::BadFile`], [`Error::BadTensor`], [`Error::BadValue`], each naming file and tensor.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let params = read_object(&dir.join(PARAMS))?;
        let shards = find_shards(dir)?.iter().map(|path| PthFile::open(path)).collect::<Result<Vec<_>>>()?;
        let extra = dir.join(EXTRA);
        let extra = if extra.exists() { read_object(&extra)? } else { Map::new() };
        let output = shards[0].list().find(|(name, ..)| *name == "output.weight");
        let rows = output.and_then(|(_, shape, _)| shape.first()).map(|&rows| rows.saturating_mul(shards.len()));
        let config = parse_params(&dir.join(PARAMS), &params, &extra, rows)?;

        check_layers(dir, &config, shards[0].list().count())?;
        let wanted = config.parameters();
        let (mut merged, mut splits) = (Vec::new(), Vec::new());
        for (name, full) in &wanted {
            let first = shards[0].list().find(|(n, ..)| n == name);
            let Some((_, shape, dtype)) = first else { continue };
            let dtype = dtype.ok_or_else(|| {
                let problem = format!("`{name}` is not float32, float16 or bfloat16");
                Error::bad_file("Meta checkpoint", dir, problem, "quantised weights are not read: take the original")
            })?;
            for (rank, shard) in shards.iter().enumerate() {
                let here = shard.list().find(|(n, ..)| n == name).map(|(_, s, d)| (s, d));
                if here != Some((shape, Some(dtype))) {
                    return Err(Error::BadTensor {
                        path: dir.join(format!("consolidated.{rank:02}.pth")),
                        name: name.clone(),
                        expected: format!("{dtype} {shape:?}, as in consolidated.00.pth"),
                        got: here.map_or("nothing".into(), |(s, d)| format!("{} {s:?}", d.map_or("?".into(), |d| d.to_string()))),
                        hint: "the shards are not of one model: download the folder again".into(),
                    });
                }
            }
            let split = if shape == full { Some(Split::Whole) } else { find_split(name, shape, full, shards.len()) };
            // Where no split fits, the shard's own shape goes into the message.
            let shape = if split.is_some() { full.clone() } else { shape.to_vec() };
            merged.push(TensorInfo { name: name.clone(), shape, dtype });
            splits.push(split.unwrap_or(Split::Whole));
        }
        let known: BTreeSet<&str> = wanted.iter().map(|(name, _)| name.as_str()).collect();
        let mut listed = merged.clone();
        for (name, shape, dtype) in shards.iter().flat_map(PthFile::list) {
            if !known.contains(name) && name != "rope.freqs" {
                let dtype = dtype.unwrap_or(Dtype::F32);
                listed.push(TensorInfo { name: name.into(), shape: shape.to_vec(), dtype });
            }
        }
        check_tensors(dir, &wanted, &listed)?;
        let ends = TextEnds::of(&Value::Object(extra), "bos_id", "eos_ids");
        Ok(Self { dir: dir.into(), config, ends, shards, infos: merged, splits })
    }

    /// The hyper-parameters.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The tokens that begin and end a text, where the folder was written by [`convert`](super::convert) and says so.
    pub(crate) fn text_ends(&self) -> TextEnds {
        self.ends.clone()
    }
}

impl TensorSource for MetaFolder {
    fn list(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn read(&self, name: &str) -> Result<Tensor<'_>> {
        let at = self.infos.iter().position(|i| i.name == name).ok_or_else(|| no_such_tensor(&self.dir, name))?;
        let (info, split) = (&self.infos[at], self.splits[at]);
        if split == Split::Whole {
            return self.shards[0].read(name);
        }
        // A row of the whole is a piece of each rank's row; whole blocks of rows are one row of everything.
        let rows = if split == Split::Rows { 1 } else { info.shape[0] };
        let mut bytes = vec![0; info.byte_len().unwrap_or(0)];
        let row = bytes.len() / rows;
        let piece = row / self.shards.len();
        for (rank, shard) in self.shards.iter().enumerate() {
            let part = shard.read(name)?;
            for (whole, part) in bytes.chunks_exact_mut(row).zip(part.bytes.chunks_exact(piece)) {
                whole[rank * piece..][..piece].copy_from_slice(part);
            }
        }
        Ok(Tensor { shape: info.shape.clone(), dtype: info.dtype, bytes: bytes.into() })
    }
}

/// The split that makes `full` of `ranks` times `part`.
fn find_split(name: &str, part: &[usize], full: &[usize], ranks: usize) -> Option<Split> {
    let (&[rows, columns], &[full_rows, full_columns]) = (part, full) else { return None };
    splits(name).iter().copied().find(|split| match split {
        Split::Rows => columns == full_columns && rows.checked_mul(ranks) == Some(full_rows),
        Split::Columns => rows == full_rows && columns.checked_mul(ranks) == Some(full_columns),
        Split::Whole => false,
    })
}

fn find_shards(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut ranks = BTreeSet::new();
    for entry in fs::read_dir(dir).map_err(Error::io("read", dir))? {
        let name = entry.map_err(Error::io("read", dir))?.file_name();
        let rank = name.to_str().and_then(|n| n.strip_prefix("consolidated.")?.strip_suffix(".pth"));
        ranks.extend(rank.filter(|r| r.len() == 2).and_then(|r| r.parse::<usize>().ok()));
    }
    let Some(&last) = ranks.last() else {
        let hint = "Meta's folders have consolidated.00.pth and on".to_string();
        return Err(Error::Nothing { what: "consolidated.NN.pth".into(), path: dir.into(), hint });
    };
    let name = |rank: usize| format!("consolidated.{rank:02}.pth");
    let missing: Vec<String> = (0..=last).filter(|r| !ranks.contains(r)).map(name).collect();
    if !missing.is_empty() {
        let problem = format!("shards missing from the folder: {}", missing.join(", "));
        return Err(Error::bad_file("Meta checkpoint", dir, problem, "download the folder again"));
    }
    Ok(ranks.into_iter().map(|r| dir.join(name(r))).collect())
}

fn read_object(path: &Path) -> Result<Map<String, Value>> {
    match disk::read_json(WHAT, path)? {
        Value::Object(map) => Ok(map),
        _ => Err(Error::bad_file(WHAT, path, "expected an object", "give Meta's params.json")),
    }
}

/// `params.json` -> hyper-parameters; `rows`: of the output matrix, for files that leave the vocabulary to the tokenizer.
fn parse_params(path: &Path, map: &Map<String, Value>, extra: &Map<String, Value>, rows: Option<usize>) -> Result<ModelConfig> {
    let bad = |key: &str, problem: String| Error::bad_value(format!("{}: {key}", path.display()), problem, "correct the file");
    let number = |map: &Map<String, Value>, key: &str| match map.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(v) => v.as_f64().map(Some).ok_or_else(|| bad(key, format!("expected a number, got {v}"))),
    };
    let size = |map: &Map<String, Value>, key: &str| {
        let whole = |n: f64| if n >= 0.0 && n.fract() == 0.0 && n <= f64::from(1u32 << 30) { Some(n as usize) } else { None };
        number(map, key)?.map(|n| whole(n).ok_or_else(|| bad(key, format!("expected a whole number, got {n}")))).transpose()
    };
    let need = |key: &str| size(map, key)?.ok_or_else(|| bad(key, "is missing".into()));
    let (dim, n_layers) = (need("dim")?, need("n_layers")?);
    let rope_theta = number(map, "rope_theta")?.unwrap_or(10_000.0);
    let scaled = map.get("use_scaled_rope").and_then(Value::as_bool).unwrap_or(false);
    let rope_scaling = if scaled {
        RopeScaling::Llama3 {
            factor: number(map, "rope_scaling_factor")?.unwrap_or(llama3_factor(dim, n_layers)),
            low_freq_factor: LLAMA3.0,
            high_freq_factor: number(map, "rope_high_freq_factor")?.unwrap_or(LLAMA3.1),
            original_max_seq_len: LLAMA3.2,
        }
    } else {
        RopeScaling::None
    };
    let usual_len = match (scaled, rope_theta > 10_000.0) {
        (true, _) => 131_072,
        (_, true) => 8192,
        _ => 2048,
    };
    let vocab_size = match number(map, "vocab_size")? {
        Some(n) if n >= 0.0 => size(map, "vocab_size")?,
        _ => rows, // -1: as many as the tokenizer
    };
    let multiple_of = need("multiple_of")?;
    let mut config = ModelConfig {
        dim,
        n_layers,
        n_heads: need("n_heads")?,
        n_kv_heads: size(map, "n_kv_heads")?,
        vocab_size: vocab_size.ok_or_else(|| bad("vocab_size", "neither given nor to be had from output.weight".into()))?,
        multiple_of,
        ffn_dim: None,
        norm_eps: number(map, "norm_eps")?.unwrap_or(1e-5),
        max_seq_len: size(extra, "max_seq_len")?.unwrap_or(usual_len),
        rope_theta,
        rope_scaling,
    };
    config.validate().map_err(|e| bad("as a LLaMA", e.to_string()))?;
    if let Some(multiplier) = number(map, "ffn_dim_multiplier")? {
        // Meta's order: 2/3 of 4 dim, rounded down; times the multiplier, rounded down; up to a multiple.
        let hidden = multiplier * (8 * config.dim / 3) as f64;
        if !(1.0..f64::from(1u32 << 30)).contains(&hidden) {
            return Err(bad("ffn_dim_multiplier", format!("{multiplier} makes a feed-forward width of {hidden}")));
        }
        config.ffn_dim = Some((hidden as usize).div_ceil(multiple_of) * multiple_of);
        config.validate().map_err(|e| bad("ffn_dim_multiplier", e.to_string()))?;
    }
    Ok(config.with_implied_ffn_dim())
}

/// Hyper-parameters -> `params.json`.
fn write_params(config: &ModelConfig) -> Result<Value> {
    let mut map = json!({
        "dim": config.dim,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "n_kv_heads": config.kv_heads(),
        "vocab_size": config.vocab_size,
        "multiple_of": config.multiple_of,
        "norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
    });
    if let Some(ffn_dim) = config.ffn_dim {
        // Meta has no key for the width itself: any width below it rounds up to it as its own multiple.
        map["multiple_of"] = ffn_dim.into();
        let usual = 8 * config.dim / 3;
        if usual > ffn_dim {
            map["ffn_dim_multiplier"] = ((ffn_dim as f64 - 0.5) / usual as f64).into();
        }
    }
    match config.rope_scaling {
        RopeScaling::None => {}
        RopeScaling::Llama3 { factor, low_freq_factor: low, high_freq_factor: high, original_max_seq_len: original }
            if (low, original) == (LLAMA3.0, LLAMA3.2) =>
        {
            map["use_scaled_rope"] = true.into();
            if (factor, high) != (llama3_factor(config.dim, config.n_layers), LLAMA3.1) {
                map["rope_scaling_factor"] = factor.into();
                map["rope_high_freq_factor"] = high.into();
            }
        }
        ref other => {
            let problem = format!("Meta's params.json cannot say {other:?}");
            return Err(Error::bad_value("model.rope_scaling", problem, "convert to hf or native instead"));
        }
    }
    Ok(map)
}

/// Whether these files can say the model.
pub(crate) fn check_config(config: &ModelConfig) -> Result<()> {
    write_params(&config.without_ntk()).map(drop)
}

/// Fills the existing folder `dir` as a Meta folder of one rank.
pub(crate) fn write_into(dir: &Path, config: &ModelConfig, ends: &TextEnds, source: &dyn TensorSource) -> Result<()> {
    let config = config.without_ntk();
    config.validate()?;
    check_layers(dir, &config, source.list().len())?;
    check_tensors(dir, &config.parameters(), source.list())?;
    let params = write_params(&config)?;
    write_pth(&dir.join("consolidated.00.pth"), source)?;
    disk::write_file(&dir.join(PARAMS), format!("{params:#}\n").as_bytes())?;
    let mut extra = json!({ "max_seq_len": config.max_seq_len });
    if *ends != TextEnds::default() {
        extra["bos_id"] = json!(ends.bos_id);
        extra["eos_ids"] = json!(ends.eos_ids);
    }
    disk::write_file(&dir.join(EXTRA), format!("{extra:#}\n").as_bytes())?;
    Ok(())
}
