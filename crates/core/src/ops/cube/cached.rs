//! Attention over a cache of blocks: what launches the kernels of `paged.rs`, in 2 launches a layer, whatever the batch: rotation with
//! the writes to the cache (2 for int8, whose values go by themselves), then attention. One more where a sequence is longer than
//! [`SPAN`] (the sum over parts of its keys), one more where rows that decode and a chunk of a prompt come together.
//!
//! A row that decodes, or one of few of its sequence, is a cube's for each [`SPAN`] of its keys and up to four heads that share them:
//! its result depends on its sequence alone, to the bit. Longer runs of rows (chunks of a prompt) go in tiles, as in `attention.rs`.
//!
//! Nothing is compiled for a length or a number of rows: they are numbers in the plan, an integer tensor that is sent once a step:
//!
//! - of each row, its slot: block times [`KV_BLOCK`] plus the place in it
//! - of each row taken by itself: the row, where its sequence's table begins in the plan, its number of keys
//! - of each tile: its first row, its number of rows, where the table begins, the position of its first row
//! - the tables
//!
//! Any device: 7 tensors, 5 KiB of shared memory for rows, for tiles as in `attention.rs`. Heads of up to 512.

use burn::tensor::{DType, Int, Tensor, TensorData};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use cubecl::prelude::*;

use super::attention::side;
use super::elementwise::zero;
use super::paged::{ACROSS, UNITS, combine_kernel, copy_kernel, place_codes_kernel, place_kernel, rows_kernel, tiles_kernel};
use super::{EACH, address, count, cubes, empty, grid, grid_each, lanes, own};
use crate::backend::context::fail;
use crate::ops::cached::PlanParts;
use crate::ops::{BatchRows, CacheRows, CachedAttention, KV_BLOCK, KvDtype, KvPool, KvShape, KvValues, Rotary};

/// Keys of a row that one cube takes. Fixed, so that a row's sums have the same order in every batch.
const SPAN: usize = 256;

/// Rows of a run from which on it goes in tiles: where both take as long on software Vulkan (8 rows at 1,024 keys).
const TILED: usize = 8;

/// The numbers of a batch, see above. `tile`: most rows of a tile.
fn plan(rows: &BatchRows, tile: usize) -> (Vec<u32>, PlanParts) {
    let (mut thin, mut tiles, mut parts) = (Vec::new(), Vec::new(), PlanParts::default());
    for (first, end, sequence) in rows.runs() {
        if end - first < TILED {
            thin.extend((first..end).map(|row| (row, sequence)));
        } else {
            tiles.extend((first..end).step_by(tile).map(|row| (row, end.min(row + tile), sequence)));
        }
    }
    // The last ones of a long prompt have the most keys: they begin first.
    tiles.sort_by_key(|(row, ..)| std::cmp::Reverse(rows.positions[*row]));
    parts.thin = (rows.len(), thin.len());
    parts.tiles = (parts.thin.0 + 3 * thin.len(), tiles.len());
    let mut at = parts.tiles.0 + 4 * tiles.len();
    let tables: Vec<u32> = rows
        .tables
        .iter()
        .map(|table| {
            at += table.len();
            (at - table.len()) as u32
        })
        .collect();
    let mut numbers: Vec<u32> = (0..rows.len())
        .map(|row| {
            let (block, place) = rows.slot(row);
            (block * KV_BLOCK + place) as u32
        })
        .collect();
    for (row, sequence) in thin {
        let len = rows.positions[row] as usize + 1;
        parts.longest = parts.longest.max(len);
        numbers.extend([row as u32, tables[sequence], len as u32]);
    }
    for (row, end, sequence) in tiles {
        numbers.extend([row as u32, (end - row) as u32, tables[sequence], rows.positions[row]]);
    }
    numbers.extend(rows.tables.iter().flatten());
    (numbers, parts)
}

/// See [`super::LlamaOps::kv_pool`]. Codes of int8 are four an element.
pub(super) fn pool<R, F, I, BT>(s: KvShape, device: &R::Device) -> KvPool<CubeBackend<R, F, I, BT>>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
{
    let client = R::client(device);
    let make = |shape: Vec<usize>, dtype: DType| {
        let bytes = shape.iter().product::<usize>() as u64 * dtype.size() as u64;
        let most = client.properties().memory.max_page_size;
        if bytes > most {
            fail(format!("a cache of {} blocks needs a tensor of {bytes} bytes; the device binds {most} at most", s.blocks));
        }
        zero(burn_cubecl::ops::numeric::empty_device_contiguous_dtype(client.clone(), device.clone(), shape.into(), dtype))
    };
    let values = || match s.dtype {
        KvDtype::Int8 => {
            if !s.head_dim.is_multiple_of(4) {
                fail(format!("keys and values in int8: a head of {} is not a multiple of 4", s.head_dim));
            }
            let factors = make(vec![s.blocks, s.kv_heads, KV_BLOCK], DType::F32);
            KvValues::Int8 { codes: make(vec![s.blocks, s.kv_heads, KV_BLOCK, s.head_dim / 4], DType::I32), factors }
        }
        float => KvValues::Float(make(vec![s.blocks, s.kv_heads, KV_BLOCK, s.head_dim], float.dtype())),
    };
    KvPool { k: values(), v: values() }
}

/// Keys or values that may be written.
struct Stored<R: CubeRuntime> {
    x: CubeTensor<R>,
    factors: Option<CubeTensor<R>>,
}

impl<R: CubeRuntime> Stored<R> {
    fn new<F: FloatElement, I: IntElement, BT: BoolElement>(values: KvValues<CubeBackend<R, F, I, BT>>) -> Self {
        match values {
            KvValues::Float(x) => Self { x: own(x), factors: None },
            KvValues::Int8 { codes, factors } => Self { x: own(codes), factors: Some(own(factors)) },
        }
    }

    fn values<F: FloatElement, I: IntElement, BT: BoolElement>(self) -> KvValues<CubeBackend<R, F, I, BT>> {
        match self.factors {
            None => KvValues::Float(self.x),
            Some(factors) => KvValues::Int8 { codes: self.x, factors },
        }
    }

    fn arg(&self) -> TensorArg<R> {
        self.x.clone().into_tensor_arg()
    }

    fn factors(&self) -> Option<TensorArg<R>> {
        self.factors.clone().map(CubeTensor::into_tensor_arg)
    }

    /// Elements that a kernel reads at once: of codes, the one that holds four.
    fn lanes(&self, dim: usize) -> usize {
        if self.factors.is_none() && dim.is_multiple_of(4) { 4 } else { 1 }
    }
}

/// Heads of a group that one cube takes: a vector of them.
fn shared(group: usize) -> usize {
    [4, 2, 1].into_iter().find(|n| group.is_multiple_of(*n)).unwrap_or(1)
}

/// See [`super::LlamaOps::cached_attention`].
#[allow(clippy::type_complexity)] // a tensor and a pool
pub(super) fn attention<R, F, I, BT>(
    qkv: CubeTensor<R>,
    rotary: Rotary<CubeBackend<R, F, I, BT>>,
    pool: KvPool<CubeBackend<R, F, I, BT>>,
    rows: &CacheRows<CubeBackend<R, F, I, BT>>,
    s: CachedAttention,
) -> (CubeTensor<R>, KvPool<CubeBackend<R, F, I, BT>>)
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
{
    let qkv = own(qkv);
    let [n, all, dim]: [usize; 3] = qkv.meta.shape().dims();
    let (kv, heads) = (s.kv_heads, all - 2 * s.kv_heads);
    let out = empty(&qkv, &[n, heads, dim], qkv.dtype);
    if n == 0 {
        return (out, pool);
    }
    if dim > 512 {
        fail(format!("attention over a cache: heads of {dim}; the kernels take up to 512"));
    }
    let client = qkv.client.clone();
    let (cos, sin) = (into_contiguous(rotary.cos), into_contiguous(rotary.sin));
    let (k, v) = (Stored::new(pool.k), Stored::new(pool.v));
    let side = side(&client, TILED.max(rows.host.len()));
    let plan = rows.plan(&qkv.device, |rows| plan(rows, 4 * side));
    let (numbers, parts) = (plan.numbers.clone(), plan.parts);
    let integer: StorageType = numbers.dtype.into();
    let widest = address([&qkv, &k.x, &v.x, &out]);
    let group = heads / kv;
    // Rotation, and keys and values to their places.
    // SAFETY: `qkv` has `n` rows of `all` heads of `dim`, the tables have a number for each pair of each row, and the slots in the plan
    // lie inside the pool: its blocks are the caller's.
    unsafe {
        if k.factors.is_some() {
            for (values, pool) in [(false, &k), (true, &v)] {
                let each = if values { kv } else { heads + kv };
                place_codes_kernel::launch_unchecked(
                    &client,
                    grid(&client, n * each),
                    CubeDim::new_1d(32),
                    widest,
                    qkv.clone().into_tensor_arg(),
                    cos.clone().into_tensor_arg(),
                    sin.clone().into_tensor_arg(),
                    numbers.clone().into_tensor_arg(),
                    pool.arg(),
                    pool.factors.clone().expect("codes have factors").into_tensor_arg(),
                    n,
                    heads,
                    kv,
                    dim,
                    values,
                    [qkv.dtype.into(), integer],
                );
            }
        } else {
            let lanes = lanes(&client, &[qkv.dtype, k.x.dtype], &[dim]);
            assert!(lanes > 1, "attention over a cache: a head of {dim} does not divide into pairs");
            place_kernel::launch_unchecked(
                &client,
                grid_each(&client, n * all * (dim / lanes)),
                CubeDim::new_1d(EACH as u32),
                widest,
                lanes,
                qkv.clone().into_tensor_arg(),
                cos.into_tensor_arg(),
                sin.into_tensor_arg(),
                numbers.clone().into_tensor_arg(),
                k.arg(),
                v.arg(),
                n * all * (dim / lanes),
                heads,
                kv,
                dim / lanes,
                [qkv.dtype.into(), k.x.dtype.into(), integer],
            );
        }
    }
    let q_lanes = if dim.is_multiple_of(4) { 4 } else { 1 };
    let (at, thin) = parts.thin;
    if thin > 0 {
        let shared = shared(group);
        let splits = parts.longest.div_ceil(SPAN);
        // A part's output, unscaled, with its largest score and its sum: whole vectors.
        let width = 4 * dim.div_ceil(4) + 4;
        let to = if splits > 1 { empty(&qkv, &[thin, heads, splits, width], DType::F32) } else { out.clone() };
        // SAFETY: the kernels keep to the rows that the plan names, to the blocks of their tables, and to `to` of the shape above.
        unsafe {
            rows_kernel::launch_unchecked(
                &client,
                cubes(splits, heads / shared, thin),
                CubeDim::new_1d(UNITS as u32),
                widest,
                q_lanes,
                k.lanes(dim),
                shared,
                qkv.clone().into_tensor_arg(),
                k.arg(),
                v.arg(),
                k.factors().into(),
                v.factors().into(),
                numbers.clone().into_tensor_arg(),
                to.clone().into_tensor_arg(),
                at,
                kv,
                SPAN,
                s.scale as f32,
                dim,
                splits > 1,
                [qkv.dtype.into(), k.x.dtype.into(), to.dtype.into(), integer],
            );
            if splits > 1 {
                combine_kernel::launch_unchecked(
                    &client,
                    grid_each(&client, thin * heads * dim.div_ceil(4)),
                    CubeDim::new_1d(EACH as u32),
                    widest,
                    q_lanes,
                    to.into_tensor_arg(),
                    numbers.clone().into_tensor_arg(),
                    out.clone().into_tensor_arg(),
                    thin * heads * dim.div_ceil(4),
                    at,
                    heads,
                    splits,
                    SPAN,
                    dim,
                    [out.dtype.into(), integer],
                );
            }
        }
    }
    let (at, tiles) = parts.tiles;
    if tiles > 0 {
        // SAFETY: as above.
        unsafe {
            tiles_kernel::launch_unchecked(
                &client,
                cubes(tiles, heads, 1),
                CubeDim::new_1d((side * side) as u32),
                widest,
                q_lanes,
                k.lanes(dim),
                qkv.clone().into_tensor_arg(),
                k.arg(),
                v.arg(),
                k.factors().into(),
                v.factors().into(),
                numbers.clone().into_tensor_arg(),
                out.clone().into_tensor_arg(),
                at,
                kv,
                s.scale as f32,
                side,
                dim,
                [qkv.dtype.into(), k.x.dtype.into(), integer],
            );
        }
    }
    (out, KvPool { k: k.values(), v: v.values() })
}

/// Pairs whose blocks nobody writes while another reads them, as `[from, to]`, in rows that are done one after the other: one row but
/// for chains that go in a circle. A block that was copied before is read where it came from.
fn rounds(pairs: &[(u32, u32)]) -> Vec<Vec<[u32; 2]>> {
    let mut rounds: Vec<Vec<[u32; 2]>> = vec![Vec::new()];
    for &(from, to) in pairs {
        let round = rounds.last_mut().expect("one at least");
        let source = round.iter().rev().find(|pair| pair[1] == from).map_or(from, |pair| pair[0]);
        if round.iter().any(|pair| pair[0] == to) {
            rounds.push(vec![[from, to]]);
            continue;
        }
        round.retain(|pair| pair[1] != to);
        if source != to {
            round.push([source, to]);
        }
    }
    rounds
}

/// See [`super::LlamaOps::copy_blocks`].
pub(super) fn copy_blocks<R, F, I, BT>(
    pool: KvPool<CubeBackend<R, F, I, BT>>,
    pairs: &[(u32, u32)],
) -> KvPool<CubeBackend<R, F, I, BT>>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
{
    let (k, v) = (Stored::new(pool.k), Stored::new(pool.v));
    for round in rounds(pairs).into_iter().filter(|round| !round.is_empty()) {
        let numbers: Vec<i32> = round.iter().flatten().map(|block| *block as i32).collect();
        let data = TensorData::new(numbers, [2 * round.len()]);
        let numbers = Tensor::<CubeBackend<R, F, I, BT>, 1, Int>::from_data(data, &k.x.device).into_primitive();
        for x in [Some(&k.x), k.factors.as_ref(), Some(&v.x), v.factors.as_ref()].into_iter().flatten() {
            let block = count(x) / x.meta.shape()[0];
            let lanes = lanes(&x.client, &[x.dtype], &[block]);
            let items = round.len() * (block / lanes);
            // SAFETY: the pairs name blocks of the pool; none that is written is read.
            unsafe {
                copy_kernel::launch_unchecked(
                    &x.client,
                    grid_each(&x.client, items),
                    CubeDim::new_1d(EACH as u32),
                    address([x]),
                    lanes,
                    x.clone().into_tensor_arg(),
                    numbers.clone().into_tensor_arg(),
                    items,
                    block / lanes,
                    [x.dtype.into(), numbers.dtype.into()],
                );
            }
        }
    }
    KvPool { k: k.values(), v: v.values() }
}

/// Units on a key of a row, and of a cube.
const _: () = assert!(UNITS == ACROSS * KV_BLOCK);
