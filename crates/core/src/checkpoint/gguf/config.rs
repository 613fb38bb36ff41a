//! A LLaMA's settings in GGUF's metadata, read and written.

use std::path::Path;

use super::{Metadata, Value, bad};
use crate::checkpoint::ends::TextEnds;
use crate::error::{Error, Result};
use crate::model::{ModelConfig, RopeScaling, inverse_frequencies};

/// The one architecture that is read.
const ARCHITECTURE: &str = "llama";
/// How far factors may be from those of a known scaling, to be it: they are in single precision.
const SAME_FACTORS: f64 = 1e-5;

/// Refuses another architecture by its name.
pub(super) fn check_architecture(metadata: &Metadata, path: &Path) -> Result<()> {
    match metadata.text("general.architecture").map_err(|e| bad(path, e))? {
        Some(ARCHITECTURE) => Ok(()),
        other => {
            let problem = format!("general.architecture: expected `{ARCHITECTURE}`, got `{}`", other.unwrap_or("nothing"));
            Err(Error::bad_file("GGUF file", path, problem, "only LLaMAs are read"))
        }
    }
}

/// The settings. `embedding` is the shape of the embedding, whose rows are the vocabulary; `freqs` what the frequencies are divided by.
pub(super) fn read(
    metadata: &Metadata,
    embedding: Option<&[usize]>,
    freqs: Option<Vec<f32>>,
    path: &Path,
) -> Result<ModelConfig> {
    let wrong = |key: &str, problem: String, hint: &str| {
        Error::bad_value(format!("{}: {ARCHITECTURE}.{key}", path.display()), problem, hint)
    };
    const NOT_READ: &str = "this model cannot be read";
    let size = |key: &str| metadata.size(&format!("{ARCHITECTURE}.{key}")).map_err(|e| bad(path, e));
    let need = |key: &str| {
        let missing = || wrong(key, "is missing".into(), "a GGUF file of a LLaMA must have it");
        size(key)?.ok_or_else(missing)
    };
    let number = |key: &str| metadata.number(&format!("{ARCHITECTURE}.{key}")).map_err(|e| bad(path, e));
    if let Some(experts) = size("expert_count")?.filter(|n| *n > 0) {
        return Err(wrong("expert_count", format!("{experts} experts, which a LLaMA does not have"), NOT_READ));
    }
    let dim = need("embedding_length")?;
    let n_heads = need("attention.head_count")?;
    let kv = size("attention.head_count_kv")?.filter(|kv| *kv != n_heads);
    let vocab_size = match embedding {
        Some([rows, _]) => *rows,
        _ => need("vocab_size")?,
    };
    let eps = number("attention.layer_norm_rms_epsilon")?;
    let missing = || wrong("attention.layer_norm_rms_epsilon", "is missing".into(), "a GGUF file of a LLaMA must have it");
    let model = ModelConfig {
        dim,
        n_layers: need("block_count")?,
        n_heads,
        n_kv_heads: kv,
        vocab_size,
        multiple_of: 256,
        ffn_dim: Some(need("feed_forward_length")?),
        norm_eps: eps.ok_or_else(missing)?,
        max_seq_len: need("context_length")?,
        rope_theta: number("rope.freq_base")?.unwrap_or(10_000.0),
        rope_scaling: RopeScaling::None,
    };
    let in_file = |e: Error| wrong("as a LLaMA", e.to_string(), NOT_READ);
    model.validate().map_err(in_file)?;
    for key in ["rope.dimension_count", "attention.key_length", "attention.value_length"] {
        if let Some(other) = size(key)?.filter(|n| *n != model.head_dim()) {
            let problem = format!("expected embedding_length / head_count = {}, got {other}", model.head_dim());
            return Err(wrong(key, problem, NOT_READ));
        }
    }
    let kind = metadata.text(&format!("{ARCHITECTURE}.rope.scaling.type")).map_err(|e| bad(path, e))?;
    let factor = match kind {
        // Files of before there was a type have the factor alone.
        None => number("rope.scale_linear")?,
        Some("none") => None,
        Some("linear") => number("rope.scaling.factor")?,
        Some(other) => {
            let problem = format!("`{other}`, expected none or linear");
            return Err(wrong("rope.scaling.type", problem, NOT_READ));
        }
    };
    let linear = factor.filter(|factor| *factor != 1.0 && *factor != 0.0);
    let rope_scaling = match (linear, freqs) {
        (None, None) => RopeScaling::None,
        (Some(factor), None) => RopeScaling::Linear { factor },
        (None, Some(freqs)) => {
            let original = size("rope.scaling.original_context_length")?;
            of_factors(&model, &freqs, original).map_err(|e| wrong("rope", e, NOT_READ))?
        }
        (Some(_), Some(_)) => {
            return Err(wrong("rope.scaling.type", "linear, and rope_freqs.weight as well".into(), NOT_READ));
        }
    };
    let model = ModelConfig { rope_scaling, ..model };
    model.validate().map_err(in_file)?;
    Ok(model.with_implied_ffn_dim())
}

/// The scaling of these factors: Llama 3's where they are those, else themselves.
fn of_factors(model: &ModelConfig, freqs: &[f32], original: Option<usize>) -> Result<RopeScaling, String> {
    let pairs = model.head_dim() / 2;
    if freqs.len() != pairs {
        return Err(format!("rope_freqs.weight has {} factors, expected {pairs}", freqs.len()));
    }
    // As decimal numbers, as they were before they were narrowed.
    let factors: Vec<f64> = freqs.iter().map(|f| Value::F32(*f).as_f64().unwrap_or(f64::NAN)).collect();
    if factors.iter().all(|f| *f == 1.0) {
        return Ok(RopeScaling::None);
    }
    let most = factors.iter().copied().fold(1.0, f64::max);
    for (factor, original) in [8.0, 32.0, most].into_iter().flat_map(|f| [Some(8192), original].map(|o| (f, o))) {
        let Some(original_max_seq_len) = original else { continue };
        let llama3 = RopeScaling::Llama3 { factor, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_seq_len };
        let scaled = ModelConfig { rope_scaling: llama3.clone(), ..model.clone() };
        let near = |(a, b): (&f64, f64)| (a - b).abs() <= SAME_FACTORS * b;
        if scaled.validate().is_ok() && factors.iter().zip(rope_factors(&scaled)).all(near) {
            return Ok(llama3);
        }
    }
    Ok(RopeScaling::Factors { factors })
}

/// What the frequencies of a model are divided by, pair by pair.
pub(super) fn rope_factors(config: &ModelConfig) -> Vec<f64> {
    let plain = ModelConfig { rope_scaling: RopeScaling::None, ..config.without_ntk() };
    inverse_frequencies(&plain).into_iter().zip(inverse_frequencies(config)).map(|(base, scaled)| base / scaled).collect()
}

/// The settings as metadata; `name` is the model's.
pub(super) fn write(config: &ModelConfig, name: &str, file_type: u32) -> Vec<(String, Value)> {
    let config = config.without_ntk();
    let int = |n: usize| Value::U32(n.try_into().unwrap_or(u32::MAX));
    let mut out: Vec<(String, Value)> = vec![
        ("general.architecture".into(), ARCHITECTURE.into()),
        ("general.type".into(), "model".into()),
        ("general.name".into(), name.into()),
        ("general.file_type".into(), Value::U32(file_type)),
        ("general.quantization_version".into(), Value::U32(2)),
        ("general.alignment".into(), int(crate::gguf::ALIGNMENT)),
    ];
    let mut put = |key: &str, value: Value| out.push((format!("{ARCHITECTURE}.{key}"), value));
    put("block_count", int(config.n_layers));
    put("context_length", int(config.max_seq_len));
    put("embedding_length", int(config.dim));
    put("feed_forward_length", int(config.hidden_dim()));
    put("attention.head_count", int(config.n_heads));
    put("attention.head_count_kv", int(config.kv_heads()));
    put("attention.layer_norm_rms_epsilon", Value::F32(config.norm_eps as f32));
    put("rope.dimension_count", int(config.head_dim()));
    put("rope.freq_base", Value::F32(config.rope_theta as f32));
    put("vocab_size", int(config.vocab_size));
    match config.rope_scaling {
        RopeScaling::Linear { factor } => {
            put("rope.scaling.type", "linear".into());
            put("rope.scaling.factor", Value::F32(factor as f32));
        }
        RopeScaling::Llama3 { original_max_seq_len, .. } => {
            put("rope.scaling.original_context_length", int(original_max_seq_len));
        }
        _ => {}
    }
    out
}

/// The tokens that begin and end a text. `eot` ends a turn, `eom` a message to a tool.
pub(super) fn text_ends(metadata: &Metadata) -> Result<TextEnds, String> {
    let id = |name: &str| metadata.token(&format!("tokenizer.ggml.{name}_token_id"));
    let mut eos_ids = Vec::new();
    for end in [id("eos")?, id("eot")?.or_else(|| end_of_turn(metadata)), id("eom")?].into_iter().flatten() {
        if !eos_ids.contains(&end) {
            eos_ids.push(end);
        }
    }
    Ok(TextEnds { bos_id: id("bos")?, eos_ids })
}

/// The token that ends a turn in files that do not name it, as those of the first months of Llama 3: by its text, as llama.cpp does.
fn end_of_turn(metadata: &Metadata) -> Option<u32> {
    const CONTROL: i128 = 3;
    let list = |name: &str| metadata.array(&format!("tokenizer.ggml.{name}")).ok().flatten();
    let types = list("token_type")?.as_ints()?;
    let tokens = list("tokens")?.as_strings()?.ok()?;
    let is_end = |(text, kind): (&&str, &i128)| *kind == CONTROL && matches!(*text, "<|eot_id|>" | "<|im_end|>");
    tokens.iter().zip(&types).position(is_end).and_then(|id| u32::try_from(id).ok())
}
