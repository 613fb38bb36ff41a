//! A model on a device behind a border that knows no backend: the engine is compiled once.

use std::collections::BTreeMap;

use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{Int, Tensor};
use serde::{Deserialize, Serialize};

use super::engine::EngineConfig;
use crate::error::{Error, Result};
use crate::model::regions::Regions;
use crate::model::{Llama, ModelConfig};
use crate::ops::{BatchRows, CacheRows, KV_BLOCK, KvDtype, KvPool, KvShape, LlamaOps, SampleRows, Weight, int_tensor, tensor};

/// Rows whose logits are on the host at once.
const LOGIT_ROWS: usize = 32;

/// No token was drawn.
pub(super) const NO_TOKEN: u32 = u32::MAX;

/// One forward pass.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct StepInput {
    /// The token of each row.
    pub(crate) tokens: Vec<u32>,
    /// Where the rows are.
    pub(crate) rows: BatchRows,
    /// The rows whose logits are asked for, in order.
    pub(crate) logits: Vec<u32>,
}

/// What an engine runs on.
pub(crate) trait Runner: Send {
    /// The model's shape.
    fn model(&self) -> &ModelConfig;
    /// Bytes of the matrices that a step reads, all but the embedding, of which it looks up some rows: of each type, by ggml's name.
    fn weight_bytes(&self) -> &BTreeMap<&'static str, u64>;
    /// Computes a step and shows the logits `[rows, vocab_size]` of the rows asked for, some at a time, in order: the place of the first of
    /// them, the logits, and `vocab_size`.
    fn run(&mut self, step: &StepInput, see: &mut dyn FnMut(usize, &mut [f32], usize)) -> Result<()>;
    /// Whether [`Runner::sample`] is the way to a token where nothing is asked for that needs the logits.
    fn samples(&self) -> bool;
    /// Computes a step and draws a token, on the device, after each row asked for; then the steps that follow it, a row a sequence
    /// whose token is the one that the step before drew. One wait for all. A token that cannot be drawn, of logits that are no
    /// numbers, is [`NO_TOKEN`].
    fn sample(&mut self, step: &StepInput, rows: &SampleRows, then: &[(BatchRows, SampleRows)]) -> Result<Vec<Vec<u32>>>;
    /// Computes a step: the sum of its rows' last hidden states, after the last norm.
    fn hidden_sum(&mut self, step: &StepInput) -> Result<Vec<f32>>;
    /// Copies blocks, one after the other.
    fn copy_blocks(&mut self, pairs: &[(u32, u32)]);
}

/// Sizes of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CacheSize {
    /// Of all layers.
    pub(crate) block_bytes: u64,
    pub(crate) blocks: usize,
    pub(crate) max_len: usize,
}

/// How many blocks there are, and how long a sequence may be.
fn cache_size(
    model: &ModelConfig,
    kv_heads: usize,
    config: &EngineConfig,
    memory: Option<u64>,
    largest: Option<u64>,
) -> Result<CacheSize> {
    let shape = KvShape { blocks: 0, kv_heads, head_dim: model.head_dim(), dtype: config.kv_cache_dtype };
    let block_bytes = (shape.block_bytes() * model.n_layers) as u64;
    let longest = config.max_len.unwrap_or(model.max_seq_len).min(model.max_seq_len).max(1);
    if let Some(asked) = config.max_len.filter(|asked| *asked > longest) {
        log::warn!("max_len: {asked} is more than the model's max_seq_len of {longest}, which counts");
    }
    let blocks_of = |len: usize| len.div_ceil(KV_BLOCK);
    let wanted = (blocks_of(longest) * config.max_batch) as u64 * block_bytes;
    let budget = config.kv_cache_bytes.unwrap_or_else(|| match memory {
        Some(memory) => wanted.min((memory / 4).max(block_bytes)),
        None => wanted.min((1 << 30).max(block_bytes)),
    });
    let mut blocks = (budget / block_bytes).min(u64::from(u32::MAX)) as usize;
    if let Some(largest) = largest {
        // Keys of one layer are one tensor.
        let bound = (largest / (shape.block_bytes() / 2) as u64) as usize;
        if bound < blocks {
            let (of, to) = (blocks as u64 * block_bytes, bound as u64 * block_bytes);
            log::warn!("the KV cache has {to} bytes instead of {of}: the device binds {largest} bytes at most to a kernel");
            blocks = bound;
        }
    }
    if config.kv_cache_bytes.is_none() {
        blocks = blocks.min(blocks_of(longest) * config.max_batch);
    }
    let room = blocks * KV_BLOCK;
    if blocks == 0 || config.max_len.is_some_and(|_| room < longest) {
        return Err(Error::bad_value(
            "kv_cache_bytes",
            format!("{budget} bytes hold {room} positions, and a sequence may have {longest}"),
            format!("give {} bytes at least, or a smaller max_len", blocks_of(longest) as u64 * block_bytes),
        ));
    }
    Ok(CacheSize { block_bytes, blocks, max_len: longest.min(room) })
}

/// A model with its cache.
pub(crate) struct ModelRunner<B: LlamaOps> {
    model: Llama<B>,
    /// Between the devices that have parts of the model.
    regions: Box<dyn Regions<B>>,
    pools: Vec<Option<KvPool<B>>>,
    device: B::Device,
    weight_bytes: BTreeMap<&'static str, u64>,
}

impl<B: LlamaOps> ModelRunner<B> {
    pub(crate) fn new(
        model: Llama<B>,
        regions: Box<dyn Regions<B>>,
        config: &EngineConfig,
        memory: Option<u64>,
    ) -> Result<(Self, CacheSize)> {
        let device = model.device();
        let shape = model.config();
        let dtype = config.kv_cache_dtype;
        if dtype != KvDtype::Int8 && !<B as Backend>::supports_dtype(&device, dtype.dtype()) {
            return Err(Error::bad_value("kv_cache_dtype", format!("the backend has no {dtype}"), "take f32 or int8"));
        }
        let kv_heads = model.layers.first().map_or(0, |layer| layer.attention.heads().1);
        let size = cache_size(shape, kv_heads, config, memory, B::largest_page(&device))?;
        let head_dim = shape.head_dim();
        let pool = KvShape { blocks: size.blocks, kv_heads, head_dim, dtype };
        let pools = B::resident(&device, || (0..shape.n_layers).map(|_| Some(B::kv_pool(pool, &device))).collect());
        for weight in model.weights() {
            if let Weight::Float(w) = weight {
                B::read_often(&w);
            }
        }
        let mut weight_bytes = BTreeMap::new();
        for (dtype, bytes) in model.weights().skip(1).flat_map(|w| w.bytes()) {
            *weight_bytes.entry(dtype).or_default() += bytes;
        }
        Ok((Self { model, regions, pools, device, weight_bytes }, size))
    }

    /// The residual stream of a step's rows. A pass that waits for other devices does so on a thread of its own, not on one of the pool's.
    fn pass(&mut self, tokens: IntTensor<B>, rows: &BatchRows) -> Result<FloatTensor<B>> {
        let (model, pools) = (&self.model, &mut self.pools);
        if self.regions.split() {
            return model.forward_rows_in(tokens, &CacheRows::new(rows.clone()), pools, self.regions.as_ref());
        }
        Ok(B::in_pool(|| model.forward_rows(tokens, &CacheRows::new(rows.clone()), pools)))
    }

    /// The logits of rows of [`ModelRunner::pass`].
    fn logits(&self, rows: FloatTensor<B>) -> Result<FloatTensor<B>> {
        let model = &self.model;
        if self.regions.split() {
            return model.logits_of_rows_in(rows, self.regions.as_ref());
        }
        Ok(B::in_pool(|| model.logits_of_rows(rows)))
    }
}

impl<B: LlamaOps> Runner for ModelRunner<B> {
    fn model(&self) -> &ModelConfig {
        self.model.config()
    }

    fn weight_bytes(&self) -> &BTreeMap<&'static str, u64> {
        &self.weight_bytes
    }

    fn run(&mut self, step: &StepInput, see: &mut dyn FnMut(usize, &mut [f32], usize)) -> Result<()> {
        let tokens = int_tensor::<B>(step.tokens.iter().copied(), &self.device).into_primitive();
        let x = self.pass(tokens, &step.rows)?;
        let vocab = self.model.config().vocab_size;
        for (i, asked) in step.logits.chunks(LOGIT_ROWS).enumerate() {
            let logits = tensor::<B, 2>(self.logits(Llama::<B>::pick_rows(x.clone(), asked))?).into_data();
            let mut logits: Vec<f32> = logits.into_vec().map_err(|e| Error::internal("logits", format!("not float32: {e:?}")))?;
            see(i * LOGIT_ROWS, &mut logits, vocab);
        }
        Ok(())
    }

    fn samples(&self) -> bool {
        B::samples_on_device()
    }

    fn sample(&mut self, step: &StepInput, rows: &SampleRows, then: &[(BatchRows, SampleRows)]) -> Result<Vec<Vec<u32>>> {
        let tokens = int_tensor::<B>(step.tokens.iter().copied(), &self.device).into_primitive();
        let x = self.pass(tokens, &step.rows)?;
        let logits = self.logits(Llama::<B>::pick_rows(x, &step.logits))?;
        let mut drawn = vec![B::sample_rows(logits, rows)];
        for (rows, sampling) in then {
            let before = drawn.last().expect("the first step's").clone();
            let x = self.pass(before, rows)?;
            drawn.push(B::sample_rows(self.logits(x)?, sampling));
        }
        let n = step.logits.len();
        let drawn = drawn.into_iter().map(Tensor::<B, 1, Int>::from_primitive).collect();
        let all: Vec<u32> =
            Tensor::cat(drawn, 0).into_data().iter::<i64>().map(|t| u32::try_from(t).unwrap_or(NO_TOKEN)).collect();
        Ok(all.chunks(n.max(1)).map(<[u32]>::to_vec).collect())
    }

    fn hidden_sum(&mut self, step: &StepInput) -> Result<Vec<f32>> {
        let tokens = int_tensor::<B>(step.tokens.iter().copied(), &self.device).into_primitive();
        let x = self.pass(tokens, &step.rows)?;
        let sum = tensor::<B, 2>(self.model.norm_of_rows(x)).sum_dim(0).into_data();
        sum.into_vec().map_err(|e| Error::internal("hidden states", format!("not float32: {e:?}")))
    }

    fn copy_blocks(&mut self, pairs: &[(u32, u32)]) {
        for pool in &mut self.pools {
            *pool = pool.take().map(|pool| B::copy_blocks(pool, pairs));
        }
    }
}
