//! Attention over a cache of blocks: keys and values of many sequences, each of its own length, in one pool; and its default body.
//!
//! A sequence is a list of blocks of [`KV_BLOCK`] positions. A batch is a list of rows, each one token of a sequence at its own
//! position; several rows of a sequence (a chunk of its prompt) lie one after the other.

use std::cell::OnceCell;
use std::sync::Arc;

use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{DType, FloatDType, Int, Tensor, TensorData, TensorMetadata};
use serde::{Deserialize, Serialize};

use super::{LlamaOps, Rotary, primitive, tensor};

/// Positions of a block.
pub const KV_BLOCK: usize = 16;

/// The type in which keys and values are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KvDtype {
    /// float32.
    #[default]
    F32,
    /// bfloat16.
    Bf16,
    /// float16.
    F16,
    /// Integers of -127 to 127 with one float32 factor for each head's key (or value) at a position: the largest of its absolute
    /// values over 127.
    Int8,
}

impl KvDtype {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::F32, Self::Bf16, Self::F16, Self::Int8];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Int8 => "int8",
        }
    }

    /// The type of the tensor; of [`KvDtype::Int8`] that of the codes.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
            Self::Int8 => DType::I8,
        }
    }

    /// Bytes of one head's key (or value) at a position.
    pub fn bytes(self, head_dim: usize) -> usize {
        match self {
            Self::F32 => 4 * head_dim,
            Self::Bf16 | Self::F16 => 2 * head_dim,
            Self::Int8 => head_dim + 4,
        }
    }
}

impl std::fmt::Display for KvDtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for KvDtype {
    type Err = crate::Error;

    fn from_str(text: &str) -> crate::Result<Self> {
        Self::ALL.into_iter().find(|d| d.name() == text).ok_or_else(|| {
            crate::Error::bad_value("kv_cache_dtype", format!("`{text}` is unknown"), "take one of f32, bf16, f16, int8")
        })
    }
}

/// Keys, or values, of a pool.
#[derive(Clone, Debug)]
pub enum KvValues<B: Backend> {
    /// `[blocks, kv, KV_BLOCK, head_dim]`
    Float(FloatTensor<B>),
    /// [`KvDtype::Int8`].
    Int8 {
        /// `[blocks, kv, KV_BLOCK, head_dim]`, or with four codes in an element's bytes, the first in the lowest,
        /// `[blocks, kv, KV_BLOCK, head_dim / 4]`, as the backend likes it.
        codes: IntTensor<B>,
        /// `[blocks, kv, KV_BLOCK]`, float32.
        factors: FloatTensor<B>,
    },
}

/// Keys and values of one layer.
#[derive(Clone, Debug)]
pub struct KvPool<B: Backend> {
    /// Keys, rotated.
    pub k: KvValues<B>,
    /// Values.
    pub v: KvValues<B>,
}

/// How a pool is shaped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Blocks of [`KV_BLOCK`] positions.
    pub blocks: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Type of the elements.
    pub dtype: KvDtype,
}

impl KvShape {
    /// Bytes of a block's keys and values in one layer.
    pub fn block_bytes(&self) -> usize {
        2 * KV_BLOCK * self.kv_heads * self.dtype.bytes(self.head_dim)
    }
}

/// The rows of a batch, on the host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchRows {
    /// Of each row, its position in its sequence.
    pub positions: Vec<u32>,
    /// Of each row, its sequence: a place in `tables`. Rows of one sequence lie together, at positions that follow each other.
    pub sequences: Vec<u32>,
    /// Of each sequence, its blocks in order, as far as its last row reaches at least.
    pub tables: Vec<Vec<u32>>,
}

impl BatchRows {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.positions.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }

    /// Where a row's key and value go: block, place in the block.
    pub fn slot(&self, row: usize) -> (usize, usize) {
        let position = self.positions[row] as usize;
        (self.tables[self.sequences[row] as usize][position / KV_BLOCK] as usize, position % KV_BLOCK)
    }

    /// The runs of rows of one sequence: first row, end, sequence.
    pub fn runs(&self) -> impl Iterator<Item = (usize, usize, usize)> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let sequence = *self.sequences.get(at)?;
            let first = at;
            at += self.sequences[first..].iter().take_while(|s| **s == sequence).count();
            Some((first, at, sequence as usize))
        })
    }
}

/// The rows of a batch, on the host, and on the device for those backends whose kernels read them there.
#[derive(Clone, Debug)]
pub struct CacheRows<B: Backend> {
    /// On the host.
    pub host: Arc<BatchRows>,
    positions: OnceCell<IntTensor<B>>,
    plan: OnceCell<Plan<B>>,
}

/// What a backend's kernels make of the rows, sent once for all layers: numbers of its own, and where the parts of them begin.
#[derive(Clone, Debug)]
#[cfg_attr(not(feature = "cube"), allow(dead_code))]
pub(crate) struct Plan<B: Backend> {
    pub(crate) numbers: IntTensor<B>,
    pub(crate) parts: PlanParts,
}

/// See `cube/cached.rs`, which writes and reads it.
#[derive(Clone, Copy, Debug, Default)]
#[cfg_attr(not(feature = "cube"), allow(dead_code))]
pub(crate) struct PlanParts {
    /// Rows that are taken one by one: where their list begins, and how many.
    pub(crate) thin: (usize, usize),
    /// Tiles of rows of one sequence: likewise.
    pub(crate) tiles: (usize, usize),
    /// Most positions that a row taken by itself attends to.
    pub(crate) longest: usize,
}

/// `[n]`
pub(crate) fn int_tensor<B: Backend>(values: impl Iterator<Item = u32>, device: &B::Device) -> Tensor<B, 1, Int> {
    let values: Vec<i32> = values.map(|x| x as i32).collect();
    let n = values.len();
    Tensor::from_data(TensorData::new(values, [n]), device)
}

impl<B: Backend> CacheRows<B> {
    /// Of rows on the host.
    pub fn new(host: BatchRows) -> Self {
        Self { host: Arc::new(host), positions: OnceCell::new(), plan: OnceCell::new() }
    }

    /// Position of each row `[n]`, sent once.
    pub fn positions(&self, device: &B::Device) -> &IntTensor<B> {
        self.positions.get_or_init(|| int_tensor::<B>(self.host.positions.iter().copied(), device).into_primitive())
    }

    /// The plan that `make` makes of the rows, sent once.
    #[cfg_attr(not(feature = "cube"), allow(dead_code))]
    pub(crate) fn plan(&self, device: &B::Device, make: impl FnOnce(&BatchRows) -> (Vec<u32>, PlanParts)) -> &Plan<B> {
        self.plan.get_or_init(|| {
            let (numbers, parts) = make(&self.host);
            Plan { numbers: int_tensor::<B>(numbers.into_iter(), device).into_primitive(), parts }
        })
    }
}

/// How attention over a cache reads a packed projection.
#[derive(Clone, Copy, Debug)]
pub struct CachedAttention {
    /// Key/value heads: of `H` heads in all, `H - 2 kv_heads` are query heads.
    pub kv_heads: usize,
    /// Factor on the scores.
    pub scale: f64,
}

/// An empty pool, default body. Codes of int8 are one an element.
pub(super) fn pool<B: LlamaOps>(s: KvShape, device: &B::Device) -> KvPool<B> {
    let shape = [s.blocks, s.kv_heads, KV_BLOCK, s.head_dim];
    let values = || match s.dtype {
        KvDtype::Int8 => KvValues::Int8 {
            codes: Tensor::<B, 4, Int>::zeros(shape, device).into_primitive(),
            factors: primitive(Tensor::<B, 3>::zeros([s.blocks, s.kv_heads, KV_BLOCK], (device, DType::F32))),
        },
        float => KvValues::Float(B::float_zeros(shape.into(), device, FloatDType::from(float.dtype()))),
    };
    KvPool { k: values(), v: values() }
}

/// Puts row `x [1, kv, 1, head_dim]` at a slot.
fn put<B: LlamaOps>(values: KvValues<B>, x: Tensor<B, 4>, (block, at): (usize, usize)) -> KvValues<B> {
    let [_, kv, _, head_dim] = x.dims();
    let place = [block..block + 1, 0..kv, at..at + 1, 0..head_dim];
    match values {
        KvValues::Float(all) => {
            let all = tensor::<B, 4>(all);
            let x = x.cast(all.dtype());
            KvValues::Float(primitive(all.slice_assign(place, x)))
        }
        KvValues::Int8 { codes, factors } => {
            let x = x.cast(DType::F32);
            // The largest of some backends passes over what is no number: it shows in the factor.
            let damaged = x.clone().is_finite().bool_not().any_dim(3);
            let factor = x.clone().abs().max_dim(3).div_scalar(127.0).mask_fill(damaged, f32::NAN);
            let by = factor.clone().mask_fill(factor.clone().equal_elem(0.0), 1.0);
            let code = (x / by).round().int();
            let codes = Tensor::<B, 4, Int>::from_primitive(codes).slice_assign(place.clone(), code);
            let [block, kv, at, _] = place;
            let factors = tensor::<B, 3>(factors).slice_assign([block, kv, at], factor.squeeze_dim::<3>(3));
            KvValues::Int8 { codes: codes.into_primitive(), factors: primitive(factors) }
        }
    }
}

/// The first `len` positions of a sequence, float32 (int8) or as they are: `[1, kv, len, head_dim]`.
fn gather<B: LlamaOps>(values: &KvValues<B>, table: &[u32], len: usize) -> Tensor<B, 4> {
    let all = match values {
        KvValues::Float(all) => {
            let all = tensor::<B, 4>(all.clone());
            let ids = int_tensor::<B>(table.iter().copied(), &all.device());
            all.select(0, ids)
        }
        KvValues::Int8 { codes, factors } => {
            let codes = Tensor::<B, 4, Int>::from_primitive(codes.clone());
            let ids = int_tensor::<B>(table.iter().copied(), &codes.device());
            codes.select(0, ids.clone()).float() * tensor::<B, 3>(factors.clone()).select(0, ids).unsqueeze_dim::<4>(3)
        }
    };
    let [blocks, kv, _, head_dim] = all.dims();
    all.swap_dims(0, 1).reshape([1, kv, blocks * KV_BLOCK, head_dim]).narrow(2, 0, len)
}

/// See [`LlamaOps::cached_attention`].
pub(super) fn attention<B: LlamaOps>(
    qkv: FloatTensor<B>,
    rotary: Rotary<B>,
    pool: KvPool<B>,
    rows: &CacheRows<B>,
    s: CachedAttention,
) -> (FloatTensor<B>, KvPool<B>) {
    let [n, all, head_dim] = qkv.shape().dims();
    let heads = all - 2 * s.kv_heads;
    let packed = B::float_reshape(qkv, [1, n, all, head_dim].into());
    let qkv = tensor::<B, 4>(B::rope(packed, rotary.cos, rotary.sin, heads + s.kv_heads, false)).swap_dims(1, 2);
    let KvPool { mut k, mut v } = pool;
    for row in 0..n {
        let slot = rows.host.slot(row);
        let part = |first| qkv.clone().narrow(1, first, s.kv_heads).narrow(2, row, 1);
        k = put(k, part(heads), slot);
        v = put(v, part(heads + s.kv_heads), slot);
    }
    let mut outs = Vec::new();
    for (first, end, sequence) in rows.host.runs() {
        let len = rows.host.positions[end - 1] as usize + 1;
        let table = &rows.host.tables[sequence][..len.div_ceil(KV_BLOCK)];
        let q = qkv.clone().narrow(1, 0, heads).narrow(2, first, end - first);
        let dtype = q.dtype();
        let [k, v] = [&k, &v].map(|x| primitive(gather(x, table, len).cast(dtype)));
        let out = tensor::<B, 4>(B::causal_attention(primitive(q), k, v, s.scale));
        outs.push(out.swap_dims(1, 2).reshape([end - first, heads, head_dim]));
    }
    (primitive(Tensor::cat(outs, 0)), KvPool { k, v })
}

/// See [`LlamaOps::copy_blocks`].
pub(super) fn copy_blocks<B: LlamaOps>(pool: KvPool<B>, pairs: &[(u32, u32)]) -> KvPool<B> {
    let float = |x: FloatTensor<B>| {
        let mut x = tensor::<B, 4>(x);
        let [_, kv, _, width] = x.dims();
        for &(from, to) in pairs {
            let block = x.clone().narrow(0, from as usize, 1);
            let to = to as usize;
            x = x.slice_assign([to..to + 1, 0..kv, 0..KV_BLOCK, 0..width], block);
        }
        primitive(x)
    };
    let values = |values| match values {
        KvValues::Float(x) => KvValues::Float(float(x)),
        KvValues::Int8 { codes, factors } => {
            let mut codes = Tensor::<B, 4, Int>::from_primitive(codes);
            let [_, kv, _, width] = codes.dims();
            for &(from, to) in pairs {
                let block = codes.clone().narrow(0, from as usize, 1);
                let to = to as usize;
                codes = codes.slice_assign([to..to + 1, 0..kv, 0..KV_BLOCK, 0..width], block);
            }
            let factors = primitive(tensor::<B, 3>(factors).unsqueeze_dim::<4>(3));
            let factors = tensor::<B, 4>(float(factors)).squeeze_dim::<3>(3);
            KvValues::Int8 { codes: codes.into_primitive(), factors: primitive(factors) }
        }
    };
    KvPool { k: values(pool.k), v: values(pool.v) }
}
