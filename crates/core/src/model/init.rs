//! Random initialisation: the weights that training begins from. They are the same on every backend, whatever the number of threads.

use std::ops::Range;

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Tensor, TensorData};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Llama, ModelConfig, Part, Slice};
use crate::error::Result;
use crate::ops::{LlamaOps, primitive};

/// How the first weights are drawn. LLaMA's own initialisation is unpublished.
///
/// | parameter | distribution |
/// |---|---|
/// | norms | 1 |
/// | `wo`, `w2` (write to the residual stream) | normal, `std / sqrt(2 n_layers)`, cut at 3 sigma (GPT-2's rule) |
/// | all other matrices | normal, `std`, cut at 3 sigma |
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InitConfig {
    /// Seed of the weights.
    pub seed: u64,
    /// Standard deviation.
    pub std: f64,
}

impl Default for InitConfig {
    fn default() -> Self {
        Self { seed: 1, std: 0.02 }
    }
}

/// Elements drawn from one stream; a stream per chunk makes drawing parallel and independent of the number of threads.
const CHUNK: usize = 1 << 16;

/// The first values of the parameter `name` with `elements` elements.
///
/// A chunk's generator is ChaCha8 keyed by `seed`, with the stream number from a hash of the name and the chunk's index, so
/// that a parameter's values depend on its name alone, not on the others or on their order.
pub fn initial_weights(config: &ModelConfig, init: &InitConfig, name: &str, elements: usize) -> Vec<f32> {
    draw(config, init, name, 0..elements)
}

/// The same values of a rectangle of a parameter alone; those of whole rows are drawn without the others.
pub fn initial_slice(config: &ModelConfig, init: &InitConfig, slice: &Slice) -> Vec<f32> {
    match slice.range() {
        Some(range) => draw(config, init, &slice.name, range),
        None => slice.cut(&draw(config, init, &slice.name, 0..slice.shape.iter().product()), 1),
    }
}

fn draw(config: &ModelConfig, init: &InitConfig, name: &str, range: Range<usize>) -> Vec<f32> {
    if name.ends_with("norm.weight") {
        return vec![1.0; range.len()];
    }
    let writes_residual = name.ends_with("attention.wo.weight") || name.ends_with("feed_forward.w2.weight");
    let std = if writes_residual { init.std / (2.0 * config.n_layers as f64).sqrt() } else { init.std };
    let mut values = vec![0f32; range.len()];
    let name_hash = xxhash_rust::xxh3::xxh3_64(name.as_bytes());
    let mut chunks = Vec::new();
    let (mut at, mut rest) = (range.start, values.as_mut_slice());
    while !rest.is_empty() {
        let (chunk, after) = rest.split_at_mut(rest.len().min(CHUNK - at % CHUNK));
        rest = after;
        chunks.push((at, &mut *chunk));
        at = (at / CHUNK + 1) * CHUNK;
    }
    chunks.into_par_iter().for_each(|(at, chunk)| {
        let mut rng = ChaCha8Rng::seed_from_u64(init.seed);
        rng.set_stream(name_hash.wrapping_add((at / CHUNK) as u64));
        let mut next = || loop {
            let z: f64 = StandardNormal.sample(&mut rng);
            if z.abs() <= 3.0 {
                break z;
            }
        };
        for _ in 0..at % CHUNK {
            next();
        }
        for x in chunk {
            *x = (next() * std) as f32;
        }
    });
    values
}

impl<B: LlamaOps> Llama<B> {
    /// A model with fresh weights, float32.
    ///
    /// # Errors
    /// Those of [`ModelConfig::validate`].
    pub fn init(config: &ModelConfig, init: &InitConfig, device: &B::Device) -> Result<Self> {
        Self::init_part(config, init, Part::WHOLE, device)
    }

    /// A part of [`Llama::init`]'s model: the same values.
    ///
    /// # Errors
    /// Those of [`ModelConfig::validate`].
    pub fn init_part(config: &ModelConfig, init: &InitConfig, part: Part, device: &B::Device) -> Result<Self> {
        Self::build_part(config, part, device, &mut |slice| {
            Ok(from_f32::<B>(initial_slice(config, init, slice), &slice.sizes, device))
        })
    }
}

/// A float32 tensor of any rank from host values.
pub(crate) fn from_f32<B: LlamaOps>(values: Vec<f32>, shape: &[usize], device: &B::Device) -> FloatTensor<B> {
    let large = values.len() >= 1 << 20;
    let flat = Tensor::<B, 1>::from_data(TensorData::new(values, [shape.iter().product::<usize>()]), (device, DType::F32));
    if large {
        B::flush_uploads(device); // else all float32 weights of a model are in the host's memory at once
    }
    B::float_reshape(primitive(flat), shape.to_vec().into())
}
