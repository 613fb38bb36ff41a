//! What inference computes with: products of few rows, attention over a cache of blocks, sampling.

use burn::tensor::{DType, Int, Tensor};

use super::cases::{Input, spread};
use super::reference::{self, AttentionShape};
use super::{Checks, Output, draw};
use crate::model::init::from_f32;
use crate::ops::{
    BatchRows, CacheRows, CachedAttention, KV_BLOCK, KvDtype, KvPool, KvShape, LlamaOps, Rotary, SampleRows, cast, primitive,
    tensor,
};

/// A check of attention over a cache.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CacheShape {
    /// Sequences, of lengths from 1 to `longest`.
    pub sequences: usize,
    /// The longest one's length.
    pub longest: usize,
    /// Rows of a sequence in one batch; 0: 1, 7 or 64, as the sequence's number has it.
    pub chunk: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

pub(super) fn project<B: LlamaOps>([n, d_in, d_out]: [usize; 3], device: &B::Device, checks: &mut Checks<'_>) {
    let (x, w, y) = (Input::new(1, &[n, d_in], 1.0), Input::new(2, &[d_out, d_in], 1.0), Input::new(3, &[n, d_out], 1.0));
    let [want, ..] = reference::linear(&x.f64(), &w.f64(), &y.f64(), [n, d_in, d_out]);
    let sums: Vec<f64> = want.iter().zip(y.f64()).map(|(a, b)| a + b).collect();
    let shape = format!("{n} x {d_in} -> {d_out}");
    checks.row("project_rows", &shape, checks.tolerance.sum(d_in), || {
        vec![Output::new::<B>(B::project_rows(x.at::<B>(device), w.at::<B>(device), DType::F32), &want).scale(spread(d_in))]
    });
    checks.row("project_rows_add", &shape, checks.tolerance.sum(d_in), || {
        let shared = y.at::<B>(device);
        let got = B::project_rows_add(shared.clone(), x.at::<B>(device), w.at::<B>(device));
        let own = B::project_rows_add(y.at::<B>(device), x.at::<B>(device), w.at::<B>(device));
        let [got, own] = [got, own].map(|x| Output::new::<B>(x, &sums).scale(spread(d_in)));
        vec![got, own, Output::new::<B>(shared, &y.f64())]
    });
    for (dtype, name) in [(DType::BF16, "bf16"), (DType::F16, "f16")] {
        if !B::supports_dtype(device, dtype) {
            continue;
        }
        // Both types hold these exactly, and the sums stay float32.
        let round =
            |x: &Input| Input { values: x.values.iter().map(|x| (x * 128.0).round() / 128.0).collect(), shape: x.shape.clone() };
        let (x, w) = (round(&x), round(&w));
        let [want, ..] = reference::linear(&x.f64(), &w.f64(), &y.f64(), [n, d_in, d_out]);
        let compute = B::activation_dtype(dtype);
        checks.row(&format!("{name} project_rows"), &shape, checks.tolerance.sum(d_in), || {
            let (x, w) = (cast::<B>(x.at::<B>(device), compute), cast::<B>(w.at::<B>(device), dtype));
            vec![Output::new::<B>(B::project_rows(x, w, DType::F32), &want).scale(spread(d_in))]
        });
    }
}

/// What is allowed beside float32's own error for keys and values of a type.
fn stored(dtype: KvDtype) -> f64 {
    match dtype {
        KvDtype::F32 => 0.0,
        KvDtype::Bf16 => 1.0 / 128.0,
        KvDtype::F16 => 1.0 / 1024.0,
        // Of the largest of a head, half a step; keys change the weights.
        KvDtype::Int8 => 2.0 / 127.0,
    }
}

/// The sequences of a check: of each, its packed rows and what attention makes of them.
struct Sequences {
    lengths: Vec<usize>,
    inputs: Vec<Input>,
    wants: Vec<Vec<f64>>,
    angles: Vec<f64>,
}

fn sequences(s: CacheShape) -> Sequences {
    let (d, all) = (s.head_dim, s.heads + 2 * s.kv_heads);
    let lengths: Vec<usize> = (0..s.sequences)
        .map(|i| match i {
            _ if i + 1 == s.sequences => s.longest,
            0 => 1,
            _ => 1 + (i * 7919 + 13) % s.longest,
        })
        .collect();
    let angles: Vec<f64> = draw(9, s.longest * d / 2).into_iter().map(|u| f64::from(u) * std::f64::consts::PI).collect();
    let inputs: Vec<Input> = lengths.iter().enumerate().map(|(i, n)| Input::new(100 + i as u64, &[1, *n, all, d], 1.0)).collect();
    let wants = inputs.iter().zip(&lengths).map(|(input, &n)| {
        let part = |from, count| super::attention::unpack(&input.f64(), [1, n, all, d], from, count);
        // `[heads, n, d]`: a head at a time, rotated.
        let turn =
            |x: Vec<f64>| x.chunks_exact(n * d).flat_map(|x| reference::rope(x, &angles[..n * d / 2], [n, 1, d / 2])).collect();
        let (q, k, v): (Vec<f64>, Vec<f64>, Vec<f64>) =
            (turn(part(0, s.heads)), turn(part(s.heads, s.kv_heads)), part(s.heads + s.kv_heads, s.kv_heads));
        let shape = AttentionShape { batch: 1, heads: s.heads, kv_heads: s.kv_heads, seq_q: n, seq_k: n, head_dim: d };
        let [out, ..] = reference::attention([&q, &k, &v, &q], shape, None, 1.0 / (d as f64).sqrt());
        super::attention::pack(&[(&out, s.heads)], [1, n, d])
    });
    Sequences { wants: wants.collect(), lengths, inputs, angles }
}

pub(super) fn attention<B: LlamaOps>(s: CacheShape, device: &B::Device, checks: &mut Checks<'_>) {
    let all = sequences(s);
    let text = format!(
        "{} of 1 to {}, {}/{} heads of {}, {}",
        s.sequences,
        s.longest,
        s.heads,
        s.kv_heads,
        s.head_dim,
        if s.chunk == 0 { "mixed".into() } else { format!("chunks of {}", s.chunk) }
    );
    for dtype in KvDtype::ALL {
        let known = dtype == KvDtype::Int8 || B::supports_dtype(device, dtype.dtype());
        if !known || (dtype == KvDtype::Int8 && !s.head_dim.is_multiple_of(4)) {
            continue;
        }
        let tolerance = checks.tolerance.softmax(s.head_dim.max(s.longest), 1.0) + stored(dtype);
        let (pool, moved) = (format!("{text}, {dtype}"), std::cell::OnceCell::new());
        checks.row("cached_attention", &pool, tolerance, || {
            let (got, last) = run::<B>(s, &all, dtype, device);
            let wants: Vec<f64> = all.wants.iter().flatten().copied().collect();
            // The last row of the longest one is the next check's.
            let n = wants.len() - s.heads * s.head_dim;
            let _ = moved.set(last);
            vec![Output { got, want: wants[..n].to_vec(), scale: 0.0 }]
        });
        checks.row("copy_blocks", &pool, tolerance, || {
            let got = moved.into_inner().unwrap_or_else(|| run::<B>(s, &all, dtype, device).1);
            let wants = all.wants.last().expect("at least one sequence");
            vec![Output { got, want: wants[wants.len() - s.heads * s.head_dim..].to_vec(), scale: 0.0 }]
        });
        // What is no number in a key or a value shows in all rows from there on, of the heads that share it.
        checks.row("cached_attention, damaged", &pool, 0.0, || {
            let (from, group, width) = (s.longest / 2, s.heads / s.kv_heads, s.heads + 2 * s.kv_heads);
            let before: usize = all.lengths[..s.sequences - 1].iter().sum();
            [s.heads, s.heads + s.kv_heads]
                .map(|head| {
                    let mut inputs = all.inputs.clone();
                    let last = inputs.last_mut().expect("at least one sequence");
                    last.values[(from * width + head) * s.head_dim] = f32::NAN;
                    let all = Sequences { inputs, lengths: all.lengths.clone(), wants: Vec::new(), angles: all.angles.clone() };
                    let (got, last) = run::<B>(s, &all, dtype, device);
                    let rows = [got, last].concat();
                    let shows = rows.chunks_exact(s.head_dim).map(|x| f32::from(u8::from(x.iter().any(|x| x.is_nan()))));
                    let got: Vec<f32> = shows.collect();
                    let want = got.iter().enumerate().map(|(i, &got)| match (i / s.heads, i % s.heads < group) {
                        (row, true) if row >= before + from => 1.0,
                        // Tiles multiply a value that their rows do not see by zero, which is NaN again.
                        (row, true) if head > s.heads && row + 64 > before + from && row >= before => f64::from(got),
                        _ => 0.0,
                    });
                    let want = want.collect();
                    Output { got, want, scale: 0.0 }
                })
                .into()
        });
    }
}

/// All sequences, a chunk of each a batch; the outputs one sequence after the other, and apart from them that of the longest one's last
/// row, which is computed after its blocks were copied elsewhere.
fn run<B: LlamaOps>(s: CacheShape, all: &Sequences, dtype: KvDtype, device: &B::Device) -> (Vec<f32>, Vec<f32>) {
    let (d, heads) = (s.head_dim, s.heads + 2 * s.kv_heads);
    let each = s.longest.div_ceil(KV_BLOCK);
    let blocks = (s.sequences + 1) * each;
    // Blocks lie far from each other: 7 and 11 share no factor with most numbers of blocks, and else the tables still differ.
    let step = [7, 11, 13, 1].into_iter().find(|n| !blocks.is_multiple_of(*n)).unwrap_or(1);
    let table = |sequence: usize| (0..each).map(|i| ((sequence * each + i) * step % blocks) as u32).collect::<Vec<u32>>();
    let shape = KvShape { blocks, kv_heads: s.kv_heads, head_dim: d, dtype };
    let mut pool = B::kv_pool(shape, device);
    let mut done = vec![0; s.sequences];
    let mut got: Vec<Vec<f32>> = vec![Vec::new(); s.sequences];
    let mut tables: Vec<Vec<u32>> = (0..s.sequences).map(table).collect();
    let last = s.sequences - 1;
    while done != all.lengths {
        if done[last] + 1 == s.longest {
            let to = table(s.sequences);
            let pairs: Vec<(u32, u32)> = tables[last].iter().copied().zip(to.iter().copied()).collect();
            pool = B::copy_blocks(pool, &pairs);
            tables[last] = to;
        }
        let mut rows = BatchRows::default();
        let (mut values, mut angles) = (Vec::new(), Vec::new());
        let mut taken = Vec::new();
        for i in 0..s.sequences {
            let chunk = if s.chunk == 0 { [1, 7, 64][i % 3] } else { s.chunk };
            // The longest one's last row by itself.
            let most = if i == last && done[i] + 1 < s.longest { s.longest - 1 } else { all.lengths[i] };
            let end = most.min(done[i] + chunk);
            if end == done[i] {
                continue;
            }
            let sequence = rows.tables.len() as u32;
            rows.tables.push(tables[i].clone());
            for at in done[i]..end {
                rows.positions.push(at as u32);
                rows.sequences.push(sequence);
                values.extend_from_slice(&all.inputs[i].values[at * heads * d..(at + 1) * heads * d]);
                angles.extend_from_slice(&all.angles[at * d / 2..(at + 1) * d / 2]);
            }
            taken.push((i, end - done[i]));
            done[i] = end;
        }
        let n = rows.len();
        let rotary = |f: fn(f64) -> f64| from_f32::<B>(angles.iter().map(|a| f(*a) as f32).collect(), &[n, d / 2], device);
        let rotary = Rotary { cos: rotary(f64::cos), sin: rotary(f64::sin) };
        let qkv = from_f32::<B>(values, &[n, heads, d], device);
        let settings = CachedAttention { kv_heads: s.kv_heads, scale: 1.0 / (d as f64).sqrt() };
        let (out, after): (_, KvPool<B>) = B::cached_attention(qkv, rotary, pool, &CacheRows::new(rows), settings);
        pool = after;
        let out: Vec<f32> = tensor::<B, 3>(out).into_data().convert::<f32>().iter::<f32>().collect();
        let mut at = 0;
        for (i, count) in taken {
            let size = count * s.heads * d;
            got[i].extend_from_slice(&out[at..at + size]);
            at += size;
        }
    }
    let size = s.heads * d;
    let longest = got[last].len();
    let moved = got[last].split_off(longest - size);
    (got.concat(), moved)
}

/// Settings of `n` rows, all different.
fn settings(n: usize, vocab: usize) -> SampleRows {
    let mut rows = SampleRows::default();
    for (i, u) in draw(5, n).into_iter().enumerate() {
        let temperature = [1.0, 0.5, 0.0, 2.0, 0.1][i % 5];
        let top_k = [u32::MAX, 1, 40, vocab as u32 / 2 + 1][i % 4];
        let top_p = [1.0, 0.9, 0.5, 0.1, 0.99, 1.0][i % 6];
        let min_p = [0.0, 0.05, 0.0, 0.3, 0.0, 0.0, 0.001][i % 7];
        rows.push(temperature, top_k, top_p, min_p, (u + 1.0) / 2.0);
    }
    rows
}

pub(super) fn sample<B: LlamaOps>([n, vocab]: [usize; 2], device: &B::Device, checks: &mut Checks<'_>) {
    let mut logits = Input::new(1, &[n, vocab], 8.0);
    // Ties, and tokens that must not come.
    for (i, l) in logits.values.iter_mut().enumerate() {
        if i / vocab % 2 == 1 {
            *l = (*l * 2.0).round() / 2.0;
        }
        if i % 11 == 3 && vocab > 1 {
            *l = f32::NEG_INFINITY;
        }
    }
    let rows = settings(n, vocab);
    let want: Vec<f64> = (0..n)
        .map(|i| {
            let row: Vec<f64> = logits.values[i * vocab..(i + 1) * vocab].iter().map(|x| f64::from(*x)).collect();
            reference::sample(&row, &rows, i) as f64
        })
        .collect();
    let ids = |logits, rows: &SampleRows| Tensor::<B, 1, Int>::from_primitive(B::sample_rows(logits, rows)).float();
    checks.row("sample_rows", &format!("{n} x {vocab}"), 0.0, || {
        vec![Output::new::<B>(primitive(ids(logits.at::<B>(device), &rows)), &want)]
    });
    checks.row("sample_rows, damaged", &format!("{n} x {vocab}"), 0.0, || {
        let mut broken = Input { values: logits.values.clone(), shape: logits.shape.clone() };
        let mut want = want.clone();
        for (row, bad) in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -f32::NAN].into_iter().enumerate().take(n) {
            let of = &mut broken.values[row * vocab..(row + 1) * vocab];
            if bad == f32::NEG_INFINITY {
                of.fill(bad)
            } else {
                of[vocab / 2] = bad
            }
            want[row] = -1.0;
        }
        vec![Output::new::<B>(primitive(ids(broken.at::<B>(device), &rows)), &want)]
    });
}
