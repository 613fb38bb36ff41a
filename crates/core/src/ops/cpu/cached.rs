//! Attention over a cache of blocks. A row attends to its sequence's blocks one after the other, with a running maximum and sum, and
//! the blocks' borders are those of positions: so its result is the same to the bit however the prompt was cut and whoever else is
//! in the batch. Rows of one sequence share what they read.

use std::mem::MaybeUninit;

use burn::tensor::DType;
use half::{bf16, f16};
use rayon::prelude::*;

use super::attention::Rows;
use super::elementwise;
use super::lanes::{Element, Lanes, prefetch, with_lanes};
use super::math::exp;
use super::rows::tile;
use super::slices::{CpuTensor, ValuesMut, large_pages_to_come, unwritten};
use crate::ops::{BatchRows, CachedAttention, KV_BLOCK, KvDtype, KvShape};

/// Queries (rows times heads that share a key head) of a task.
const QUERIES: usize = 64;

/// Queries up to which time goes into reading keys and values.
const FEW: usize = 8;

/// Keys or values of a pool as tensors of the CPU.
pub(super) struct Stored<T> {
    pub(super) codes: T,
    /// Of int8.
    pub(super) factors: Option<T>,
}

impl<T: CpuTensor> Stored<T> {
    pub(super) fn zeros(s: KvShape) -> Self {
        let mut codes = T::zeros(&[s.blocks, s.kv_heads, KV_BLOCK, s.head_dim], s.dtype.dtype());
        if let Some(values) = codes.values_mut() {
            large_pages_to_come(&values);
        }
        let factors = (s.dtype == KvDtype::Int8).then(|| T::zeros(&[s.blocks, s.kv_heads, KV_BLOCK], DType::F32));
        Self { codes, factors }
    }

    /// The storage, to be written and read in place. Copied first where somebody else holds it.
    fn open<R>(&mut self, f: impl FnOnce(Values<'_>) -> R) -> R {
        if self.codes.values_mut().is_none() {
            self.codes = self.codes.duplicate();
        }
        if let Some(factors) = &mut self.factors
            && factors.values_mut().is_none()
        {
            *factors = factors.duplicate();
        }
        match (self.codes.values_mut(), self.factors.as_mut().and_then(T::slice_mut)) {
            (Some(ValuesMut::F32(x)), _) => f(Values::F32(x)),
            (Some(ValuesMut::BF16(x)), _) => f(Values::Bf16(x)),
            (Some(ValuesMut::F16(x)), _) => f(Values::F16(x)),
            (Some(ValuesMut::I8(x)), Some(factors)) => f(Values::Int8(x, factors)),
            _ => unreachable!("a pool is of one of the types that `zeros` makes, and nobody else holds it now"),
        }
    }
}

/// `[blocks, kv, KV_BLOCK, head_dim]`
enum Values<'a> {
    F32(&'a mut [f32]),
    Bf16(&'a mut [bf16]),
    F16(&'a mut [f16]),
    Int8(&'a mut [i8], &'a mut [f32]),
}

impl Values<'_> {
    /// Writes a row of `head_dim` elements at the place `at`, counted in rows.
    fn put(&mut self, at: usize, x: &[f32]) {
        fn narrow<E: Element>(to: &mut [E], x: &[f32]) {
            to.iter_mut().zip(x).for_each(|(to, &x)| *to = E::narrow(x));
        }
        let place = at * x.len()..(at + 1) * x.len();
        match self {
            Self::F32(all) => narrow(&mut all[place], x),
            Self::Bf16(all) => narrow(&mut all[place], x),
            Self::F16(all) => narrow(&mut all[place], x),
            Self::Int8(all, factors) => {
                // NaN stays: as the factor it makes the whole row NaN, which shows, where its codes would pass for numbers.
                let largest = x.iter().fold(0f32, |a, x| if x.abs() > a || x.is_nan() { x.abs() } else { a });
                let factor = largest / 127.0;
                factors[at] = factor;
                let by = if factor > 0.0 { 1.0 / factor } else { 0.0 };
                all[place].iter_mut().zip(x).for_each(|(to, &x)| *to = (x * by).round_ties_even() as i8);
            }
        }
    }

    /// The rows of a block from row `at` on as float32: as they lie, or widened into `room`.
    fn block<'b>(&'b self, at: usize, width: usize, room: &'b mut [f32]) -> &'b [f32] {
        fn widen<'b, E: Element>(from: &[E], room: &'b mut [f32]) -> &'b [f32] {
            room.iter_mut().zip(from).for_each(|(to, x)| *to = x.widen());
            room
        }
        let place = at * width..(at + KV_BLOCK) * width;
        match self {
            Self::F32(all) => &all[place],
            Self::Bf16(all) => widen(&all[place], room),
            Self::F16(all) => widen(&all[place], room),
            Self::Int8(all, factors) => {
                let rows = all[place].chunks_exact(width).zip(room.chunks_exact_mut(width));
                for ((from, to), factor) in rows.zip(&factors[at..at + KV_BLOCK]) {
                    to.iter_mut().zip(from).for_each(|(to, &x)| *to = f32::from(x) * factor);
                }
                room
            }
        }
    }

    /// Where the rows of a block lie.
    fn place(&self, at: usize, width: usize) -> Ahead {
        fn of<E>(rows: &[E]) -> Ahead {
            Ahead { at: rows.as_ptr().cast(), bytes: size_of_val(rows) }
        }
        let place = at * width..(at + KV_BLOCK) * width;
        match self {
            Self::F32(all) => of(&all[place]),
            Self::Bf16(all) => of(&all[place]),
            Self::F16(all) => of(&all[place]),
            Self::Int8(all, _) => of(&all[place]),
        }
    }

    fn copy(&mut self, from: usize, to: usize, block: usize, factors_of_block: usize) {
        let place = from * block..(from + 1) * block;
        match self {
            Self::F32(all) => all.copy_within(place, to * block),
            Self::Bf16(all) => all.copy_within(place, to * block),
            Self::F16(all) => all.copy_within(place, to * block),
            Self::Int8(all, factors) => {
                all.copy_within(place, to * block);
                factors.copy_within(from * factors_of_block..(from + 1) * factors_of_block, to * factors_of_block);
            }
        }
    }
}

/// Memory that is needed soon: the block after the present one. Blocks lie anywhere, and the CPU does not see them coming.
#[derive(Clone, Copy)]
struct Ahead {
    at: *const u8,
    bytes: usize,
}

impl Ahead {
    const NOTHING: Self = Self { at: std::ptr::null(), bytes: 0 };

    /// Asks for one of `parts`, between pieces of work: all at once would stop the core until most of them are there.
    #[inline(always)]
    fn ask(self, part: usize, parts: usize) {
        let lines = self.bytes / 64;
        for line in part * lines / parts..(part + 1) * lines / parts {
            prefetch(self.at.wrapping_add(line * 64));
        }
    }
}

/// Queries of a task: what they have so far.
struct Queries {
    /// `[queries, head_dim]`
    q: Vec<f32>,
    /// Weighted values so far, `[queries, head_dim]`.
    sums: Vec<f32>,
    /// Largest score so far.
    largest: Vec<f32>,
    /// Sum of the weights so far.
    weights: Vec<f32>,
    /// Scores of a block, `[queries, KV_BLOCK]`.
    scores: Vec<f32>,
    /// Keys that each query sees in the present block.
    seen: Vec<usize>,
    /// Keys and values of the next block.
    next: [Ahead; 2],
    head_dim: usize,
    scale: f32,
}

#[inline(always)]
unsafe fn block_body<L: Lanes, E: Element>(s: &mut Queries, keys: *const E, values: *const f32) {
    let n = s.seen.len();
    let dim = s.head_dim;
    let mut row = 0;
    while row < n {
        let left = (n - row).min(L::ROWS);
        // SAFETY: `n` queries, and a whole block of keys and values, all of `head_dim` elements.
        unsafe {
            let q = s.q.as_ptr().add(row * dim);
            let scores = s.scores.as_mut_ptr().add(row * KV_BLOCK);
            for key in (0..KV_BLOCK).step_by(4) {
                let keys = keys.add(key * dim);
                if row == 0 {
                    s.next[0].ask(key / 4, KV_BLOCK / 4);
                }
                macro_rules! put {
                    ($rows:literal) => {
                        for (r, sums) in tile::<L, f32, E, $rows, 4>(q, dim, keys, dim, dim).iter().enumerate() {
                            for (c, sum) in sums.iter().enumerate() {
                                *scores.add(r * KV_BLOCK + key + c) = sum * s.scale;
                            }
                        }
                    };
                }
                match left {
                    1 => put!(1),
                    2 => put!(2),
                    3 => put!(3),
                    4 => put!(4),
                    _ => put!(5),
                }
            }
        }
        row += left;
    }
    for i in 0..n {
        s.next[1].ask(i, n);
        let seen = s.seen[i];
        if seen == 0 {
            continue;
        }
        let scores = &mut s.scores[i * KV_BLOCK..(i + 1) * KV_BLOCK];
        let mut largest = s.largest[i];
        for &x in &scores[..seen] {
            largest = if x > largest { x } else { largest };
        }
        let rescale = exp(s.largest[i] - largest);
        s.largest[i] = largest;
        scores.iter_mut().for_each(|x| *x = exp(*x - largest));
        let mut weights = s.weights[i] * rescale;
        for &p in &scores[..seen] {
            weights += p;
        }
        s.weights[i] = weights;
        let sums = &mut s.sums[i * dim..(i + 1) * dim];
        // SAFETY: inside of the sums and of the block's values.
        unsafe {
            let by = L::splat(rescale);
            let mut d = 0;
            while d + 4 * L::WIDTH <= dim {
                accumulate::<L, 4>(sums.as_mut_ptr().add(d), by, &scores[..seen], values.add(d), dim);
                d += 4 * L::WIDTH;
            }
            while d + L::WIDTH <= dim {
                accumulate::<L, 1>(sums.as_mut_ptr().add(d), by, &scores[..seen], values.add(d), dim);
                d += L::WIDTH;
            }
            for (d, to) in sums.iter_mut().enumerate().skip(d) {
                let mut sum = *to * rescale;
                for (j, p) in scores[..seen].iter().enumerate() {
                    sum += p * *values.add(j * dim + d);
                }
                *to = sum;
            }
        }
    }
}

/// `sums = sums * by + weights x values` of `N` vectors.
#[inline(always)]
unsafe fn accumulate<L: Lanes, const N: usize>(sums: *mut f32, by: L, weights: &[f32], values: *const f32, stride: usize) {
    // SAFETY: the caller's promise: N vectors at `sums` and in each row of `values`.
    unsafe {
        let mut all = [by; N];
        for (i, sum) in all.iter_mut().enumerate() {
            *sum = L::load(sums.add(i * L::WIDTH)).scale(by);
        }
        for (j, &p) in weights.iter().enumerate() {
            let p = L::splat(p);
            for (i, sum) in all.iter_mut().enumerate() {
                *sum = sum.add_product(p, L::load(values.add(j * stride + i * L::WIDTH)));
            }
        }
        for (i, sum) in all.iter().enumerate() {
            sum.store(sums.add(i * L::WIDTH));
        }
    }
}

with_lanes! {
    /// # Safety
    /// `keys` and `values` are a block, `[KV_BLOCK, head_dim]`.
    unsafe fn attend_block<E: Element>(s: &mut Queries, keys: *const E, values: *const f32) = block_body
}

/// See [`LlamaOps::cached_attention`](crate::ops::LlamaOps::cached_attention).
pub(super) fn attention<T: CpuTensor>(
    qkv: T,
    [cos, sin]: [&T; 2],
    k: &mut Stored<T>,
    v: &mut Stored<T>,
    rows: &BatchRows,
    s: CachedAttention,
) -> T {
    let [n, all, dim] = qkv.shape().dims();
    let (kv, dtype) = (s.kv_heads, qkv.dtype());
    let heads = all - 2 * kv;
    let qkv = elementwise::rotate_rows(qkv, cos, sin, heads + kv);
    let qkv = qkv.contiguous();
    let mut out = unwritten(n * heads * dim);
    k.open(|mut k| {
        v.open(|mut v| {
            for row in 0..n {
                let (block, at) = rows.slot(row);
                for head in 0..kv {
                    let place = (block * kv + head) * KV_BLOCK + at;
                    let part = |head: usize| &qkv[(row * all + head) * dim..][..dim];
                    k.put(place, part(heads + head));
                    v.put(place, part(heads + kv + head));
                }
            }
            let head = Heads { qkv: &qkv, all, heads, kv, dim, scale: s.scale as f32 };
            attend(&head, &k, &v, rows, &mut out);
        });
    });
    // SAFETY: every row of every head was written.
    T::make(unsafe { out.assume_init() }.into_vec(), &[n, heads, dim], dtype)
}

/// A packed projection.
struct Heads<'a> {
    qkv: &'a [f32],
    all: usize,
    heads: usize,
    kv: usize,
    dim: usize,
    scale: f32,
}

fn attend(h: &Heads<'_>, k: &Values<'_>, v: &Values<'_>, rows: &BatchRows, out: &mut [MaybeUninit<f32>]) {
    let group = h.heads / h.kv;
    let most = (QUERIES / group).max(1);
    let mut tasks = Vec::new();
    for (first, end, sequence) in rows.runs() {
        for from in (first..end).step_by(most) {
            tasks.extend((0..h.kv).map(|head| (from, end.min(from + most), sequence, head)));
        }
    }
    let out = Rows::new(out);
    tasks.into_par_iter().for_each(|(first, end, sequence, head)| {
        let n = (end - first) * group;
        let query = |row: usize, g: usize| &h.qkv[(row * h.all + head * group + g) * h.dim..][..h.dim];
        let mut s = Queries {
            q: (first..end).flat_map(|row| (0..group).flat_map(move |g| query(row, g))).copied().collect(),
            sums: vec![0.0; n * h.dim],
            largest: vec![f32::NEG_INFINITY; n],
            weights: vec![0.0; n],
            scores: vec![0.0; n * KV_BLOCK],
            seen: vec![0; n],
            next: [Ahead::NOTHING; 2],
            head_dim: h.dim,
            scale: h.scale,
        };
        let mut room = [vec![0f32; KV_BLOCK * h.dim], vec![0f32; KV_BLOCK * h.dim]];
        let last = rows.positions[end - 1] as usize;
        let [room_k, room_v] = &mut room;
        for (i, &block) in rows.tables[sequence][..=last / KV_BLOCK].iter().enumerate() {
            for (q, seen) in s.seen.iter_mut().enumerate() {
                let position = rows.positions[first + q / group] as usize;
                *seen = (position + 1).saturating_sub(i * KV_BLOCK).min(KV_BLOCK);
            }
            let place = |block: u32| (block as usize * h.kv + head) * KV_BLOCK;
            let at = place(block);
            s.next = [Ahead::NOTHING; 2];
            if n <= FEW && i < last / KV_BLOCK {
                let next = place(rows.tables[sequence][i + 1]);
                s.next = [k.place(next, h.dim), v.place(next, h.dim)];
            }
            let (keys, values) = (k.block(at, h.dim, room_k), v.block(at, h.dim, room_v));
            // SAFETY: both are a block's rows.
            unsafe { attend_block(&mut s, keys.as_ptr(), values.as_ptr()) };
        }
        for (q, (sums, weights)) in s.sums.chunks_exact(h.dim).zip(&s.weights).enumerate() {
            let (row, g) = (first + q / group, q % group);
            // SAFETY: this row of this head belongs to this task alone.
            let to = unsafe { out.slice((row * h.heads + head * group + g) * h.dim, h.dim) };
            to.iter_mut().zip(sums).for_each(|(to, sum)| _ = to.write(sum / weights));
        }
    });
}

/// Copies blocks, one after the other.
pub(super) fn copy_blocks<T: CpuTensor>(values: &mut Stored<T>, pairs: &[(u32, u32)]) {
    let [_, kv, _, dim]: [usize; 4] = values.codes.shape().dims();
    values.open(|mut values| {
        for &(from, to) in pairs {
            values.copy(from as usize, to as usize, kv * KV_BLOCK * dim, kv * KV_BLOCK);
        }
    });
}
