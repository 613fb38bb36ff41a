//! The shape of a LLaMA: hyper-parameters, presets, parameter and FLOP counts.

use serde::{Deserialize, Serialize};

use super::slots::{self, PerSlot, Widths};
use crate::error::{Error, Result};

/// Hyper-parameters of the architecture (Touvron et al. 2023, section 2.2), by Meta's names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelConfig {
    /// Width of the residual stream.
    pub dim: usize,
    /// Number of transformer blocks.
    pub n_layers: usize,
    /// Query heads; `head_dim = dim / n_heads`, which must be even (rotary pairs).
    pub n_heads: usize,
    /// Key/value heads; fewer than `n_heads` means grouped queries. `None`: as many as `n_heads` (LLaMA 1).
    pub n_kv_heads: Option<usize>,
    /// Number of tokens in the vocabulary.
    pub vocab_size: usize,
    /// The feed-forward width is rounded up to a multiple of this.
    pub multiple_of: usize,
    /// Feed-forward width, where it does not follow from `dim` and `multiple_of`. `None`: 2/3 * 4 * dim, rounded up.
    pub ffn_dim: Option<usize>,
    /// Added to the mean square inside RMSNorm. Meta's code says 1e-5, the released 7B to 33B checkpoints 1e-6.
    pub norm_eps: f64,
    /// Longest sequence, in tokens.
    pub max_seq_len: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// How positions beyond the training length are reached.
    pub rope_scaling: RopeScaling,
}

/// Extension of the rotary embedding to longer sequences.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub enum RopeScaling {
    /// None: positions as they are.
    #[default]
    None,
    /// Positions divided by `factor` (Chen et al. 2023, position interpolation).
    Linear {
        /// How many times longer than in training.
        factor: f64,
    },
    /// Base raised so that the lowest frequency stretches by `factor`: theta * factor^(d / (d - 2)) ("NTK-aware", fixed).
    Ntk {
        /// How many times longer than in training.
        factor: f64,
    },
    /// Low frequencies divided by `factor`, high ones kept, a ramp in between (Llama 3.1).
    Llama3 {
        /// How many times longer than in training.
        factor: f64,
        /// Wavelengths above `original_max_seq_len / low_freq_factor` are stretched in full.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_seq_len / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Sequence length of the original training.
        original_max_seq_len: usize,
    },
    /// Each pair's frequency divided by a number of its own (GGUF's `rope_freqs.weight`).
    Factors {
        /// A factor for each of the `head_dim / 2` pairs.
        factors: Vec<f64>,
    },
}

impl Default for ModelConfig {
    /// The `debug` preset.
    fn default() -> Self {
        Self {
            dim: 64,
            n_layers: 2,
            n_heads: 4,
            n_kv_heads: None,
            vocab_size: 512,
            multiple_of: 32,
            ffn_dim: None,
            norm_eps: 1e-5,
            max_seq_len: 256,
            rope_theta: 10_000.0,
            rope_scaling: RopeScaling::None,
        }
    }
}

/// One preset: name, dim, n_layers, n_heads, n_kv_heads, vocab_size, multiple_of, max_seq_len.
type Preset = (&'static str, usize, usize, usize, Option<usize>, usize, usize, usize);

/// `7b` to `65b`: table 2 of the paper. `15m` to `110m`: the sizes of the TinyStories models. `1b`: TinyLlama's shape.
#[rustfmt::skip]
const PRESETS: [Preset; 9] = [
    ("debug",   64,  2,  4, None,      512,  32,  256),
    ("15m",    288,  6,  6, None,   32_000,  32,  256),
    ("42m",    512,  8,  8, None,   32_000,  32, 1024),
    ("110m",   768, 12, 12, None,   32_000,  32, 1024),
    ("1b",    2048, 22, 32, Some(4), 32_000, 256, 2048),
    ("7b",    4096, 32, 32, None,   32_000, 256, 2048),
    ("13b",   5120, 40, 40, None,   32_000, 256, 2048),
    ("33b",   6656, 60, 52, None,   32_000, 256, 2048),
    ("65b",   8192, 80, 64, None,   32_000, 256, 2048),
];

impl ModelConfig {
    /// The names that [`ModelConfig::preset`] knows.
    pub fn preset_names() -> impl Iterator<Item = &'static str> {
        PRESETS.iter().map(|p| p.0)
    }

    /// A model size by name: `debug 15m 42m 110m 1b 7b 13b 33b 65b`.
    ///
    /// # Errors
    /// [`Error::BadValue`] naming the known presets.
    pub fn preset(name: &str) -> Result<Self> {
        let &(_, dim, n_layers, n_heads, n_kv_heads, vocab_size, multiple_of, max_seq_len) =
            PRESETS.iter().find(|p| p.0.eq_ignore_ascii_case(name)).ok_or_else(|| {
                let known: Vec<_> = Self::preset_names().collect();
                Error::bad_value("model.preset", format!("no preset `{name}`"), format!("take one of: {}", known.join(", ")))
            })?;
        Ok(Self { dim, n_layers, n_heads, n_kv_heads, vocab_size, multiple_of, max_seq_len, ..Self::default() })
    }

    /// Width of one head.
    pub fn head_dim(&self) -> usize {
        self.dim / self.n_heads
    }

    /// Number of key/value heads.
    pub fn kv_heads(&self) -> usize {
        self.n_kv_heads.unwrap_or(self.n_heads)
    }

    /// Feed-forward width: `ffn_dim`, or floor(2/3 * 4 * dim) rounded up to `multiple_of` (section 2.2; Meta's rounding).
    pub fn hidden_dim(&self) -> usize {
        self.ffn_dim.unwrap_or_else(|| (8 * self.dim / 3).div_ceil(self.multiple_of) * self.multiple_of)
    }

    /// Exact number of parameters.
    pub fn num_params(&self) -> u64 {
        self.parameters().iter().map(|(_, shape)| shape.iter().product::<usize>() as u64).sum()
    }

    /// Floating-point operations of training per token, forward and backward:
    /// `6 N + 12 * n_layers * dim * seq_len`, N without `tok_embeddings` (which is a look-up, no product).
    pub fn train_flop_per_token(&self, seq_len: usize) -> f64 {
        let n = self.num_params() as f64 - (self.vocab_size * self.dim) as f64;
        6.0 * n + 12.0 * (self.n_layers * self.dim * seq_len) as f64
    }

    /// Every parameter's name (Meta's, as in `consolidated.00.pth`) and shape (`[out, in]` for matrices), in the order of Meta's
    /// files. The one list that checkpoints, optimizer and tests share.
    pub fn parameters(&self) -> Vec<(String, Vec<usize>)> {
        let (d, kv) = (self.dim, self.kv_heads() * self.head_dim());
        slots::parameters(self.n_layers, Widths { vocab: self.vocab_size, d, kv, f: self.hidden_dim() })
    }

    /// The shape of every slot: what lies in it, one below the other.
    pub fn stored_shapes(&self) -> PerSlot<Vec<usize>> {
        let named = self.parameters();
        PerSlot::from_fn(self.n_layers, |slot| {
            let parts = slot.parts(self.n_layers);
            let mut shape = named[parts[0]].1.clone();
            shape[0] = parts.iter().map(|&part| named[part].1[0]).sum();
            shape
        })
    }

    /// What makes the same weights compute something else, or not fit: key, value here, value in `other`. The longest sequence does
    /// not.
    pub fn changes(&self, other: &Self) -> Vec<(&'static str, String, String)> {
        let of = |c: &Self| {
            let c = c.without_ntk();
            let sizes = [c.dim, c.n_layers, c.n_heads, c.kv_heads(), c.hidden_dim(), c.vocab_size].map(|n| n.to_string());
            sizes.into_iter().chain([c.norm_eps.to_string(), c.rope_theta.to_string(), format!("{:?}", c.rope_scaling)])
        };
        let keys =
            ["dim", "n_layers", "n_heads", "n_kv_heads", "ffn_dim", "vocab_size", "norm_eps", "rope_theta", "rope_scaling"];
        let both = keys.into_iter().zip(of(self).zip(of(other)));
        both.filter(|(_, (here, there))| here != there).map(|(key, (here, there))| (key, here, there)).collect()
    }

    /// The same model with `ffn_dim` only where it does not follow from `dim` and `multiple_of`.
    pub(crate) fn with_implied_ffn_dim(self) -> Self {
        let implied = Self { ffn_dim: None, ..self.clone() };
        if implied.hidden_dim() == self.hidden_dim() { implied } else { self }
    }

    /// The same model with fixed NTK scaling as what it is, a larger `rope_theta`: the lowest frequency stretches by the factor.
    pub fn without_ntk(&self) -> Self {
        let RopeScaling::Ntk { factor } = self.rope_scaling else { return self.clone() };
        let d = self.head_dim() as f64;
        // A head of one pair has one frequency, 1, whatever the base.
        let rope_theta = self.rope_theta * factor.powf(d / (d - 2.0).max(1.0));
        Self { rope_theta, rope_scaling: RopeScaling::None, ..self.clone() }
    }

    /// Checks every field against the others, so that nothing later can panic on them.
    ///
    /// # Errors
    /// [`Error::BadValue`] naming the key, what was expected and what to do.
    pub fn validate(&self) -> Result<()> {
        let bad = |key: &str, problem: String, hint: &str| Err(Error::bad_value(format!("model.{key}"), problem, hint));
        for (key, v) in [
            ("dim", self.dim),
            ("n_layers", self.n_layers),
            ("n_heads", self.n_heads),
            ("vocab_size", self.vocab_size),
            ("multiple_of", self.multiple_of),
            ("max_seq_len", self.max_seq_len),
            ("n_kv_heads", self.n_kv_heads.unwrap_or(1)),
            ("ffn_dim", self.ffn_dim.unwrap_or(1)),
        ] {
            if v == 0 {
                return bad(key, "expected at least 1, got 0".into(), "give a positive number");
            }
            if v > 1 << 30 {
                return bad(key, format!("expected at most 2^30, got {v}"), "give a smaller number");
            }
        }
        if !self.dim.is_multiple_of(self.n_heads) || !self.head_dim().is_multiple_of(2) {
            let problem = format!("dim {} over {} heads is not an even head_dim", self.dim, self.n_heads);
            return bad("n_heads", problem, "choose n_heads so that dim / n_heads is an even whole number");
        }
        if !self.n_heads.is_multiple_of(self.kv_heads()) {
            let problem = format!("{} query heads cannot share {} key/value heads", self.n_heads, self.kv_heads());
            return bad("n_kv_heads", problem, "choose a divisor of n_heads");
        }
        if !(self.norm_eps.is_finite() && self.norm_eps > 0.0) {
            return bad("norm_eps", format!("expected a positive number, got {}", self.norm_eps), "LLaMA has 1e-5 or 1e-6");
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 0.0) {
            return bad("rope_theta", format!("expected a positive number, got {}", self.rope_theta), "LLaMA has 10000");
        }
        if let RopeScaling::Factors { factors } = &self.rope_scaling
            && factors.len() != self.head_dim() / 2
        {
            let problem = format!("expected {} factors, one for each pair of a head, got {}", self.head_dim() / 2, factors.len());
            return bad("rope_scaling.factors", problem, "the factors are of another model");
        }
        self.rope_scaling.validate()
    }
}

impl RopeScaling {
    fn validate(&self) -> Result<()> {
        let factor = match *self {
            Self::None => return Ok(()),
            Self::Factors { ref factors } => match factors.iter().find(|f| !(f.is_finite() && **f > 0.0)) {
                None => return Ok(()),
                Some(f) => {
                    let problem = format!("expected positive numbers, got {f}");
                    return Err(Error::bad_value("model.rope_scaling.factors", problem, "the factors are damaged"));
                }
            },
            Self::Linear { factor } | Self::Ntk { factor } => factor,
            Self::Llama3 { factor, low_freq_factor: low, high_freq_factor: high, original_max_seq_len: original } => {
                if !(low > 0.0 && high > low && high.is_finite() && original > 0) {
                    return Err(Error::bad_value(
                        "model.rope_scaling",
                        format!(
                            "expected 0 < low_freq_factor < high_freq_factor, got {low} and {high} (original length {original})"
                        ),
                        "Llama 3.1 has 1 and 4 with an original length of 8192",
                    ));
                }
                factor
            }
        };
        if factor.is_finite() && factor >= 1.0 {
            return Ok(());
        }
        Err(Error::bad_value(
            "model.rope_scaling.factor",
            format!("expected at least 1, got {factor}"),
            "8 stretches positions eightfold",
        ))
    }
}
