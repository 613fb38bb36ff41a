//! Speed of each operation of `LlamaOps` on the CPU, forward and backward, float32, at the sizes of small LLaMAs.
//!
//!     cargo bench --bench ops                   all of it, some three minutes on two cores
//!     cargo bench --bench ops -- attention      those whose name has `attention` in it
//!
//! Products and attention are counted in floating-point operations: criterion's `Gelem/s` are GFLOP/s. Causal attention counts
//! half of the square, two products forward and four backward; the scores that backward computes anew are not counted. The other
//! operations are counted in bytes that they have to read and write at least: `GB/s`. Inputs that an operation may write in
//! place are copied before each call, off the clock. `memory_copy` is no operation but the ceiling of those that memory bounds.

use std::hint::black_box;
use std::time::Duration;

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Distribution, Int, Tensor, TensorData};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use rayon::prelude::*;
use recua::backend::Flex;
use recua::ops::loss::forward_backward;
use recua::ops::{AdamWScalars, AdamWState, AttentionSaved, LlamaOps, Rotary, SelfAttention};

/// Rows: batch * seq.
const N: usize = 2048;
const VOCAB: usize = 32_000;
const DIMS: [usize; 2] = [288, 512];
/// Feed-forward widths, one a dim.
const HIDDEN: [usize; 2] = [768, 1376];
const BATCH: usize = 2;
const HEADS: usize = 8;
const HEAD_DIM: usize = 64;
const SEQS: [usize; 2] = [512, 2048];
const EPS: f64 = 1e-5;

fn primitive<B: LlamaOps, const D: usize>(x: &Tensor<B, D>) -> FloatTensor<B> {
    x.clone().into_primitive().tensor()
}

/// Makes copies that nobody else holds.
fn copy<B: LlamaOps, const D: usize>(x: &Tensor<B, D>) -> impl Fn() -> FloatTensor<B> {
    || primitive(&x.clone().add_scalar(0.0))
}

/// `n` token ids, and the order that sorts them.
fn ids<B: LlamaOps>(n: usize, device: &B::Device) -> [Tensor<B, 1, Int>; 2] {
    let ids: Vec<i32> = (0..n as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) as i32 % VOCAB as i32).collect();
    let mut order: Vec<i32> = (0..n as i32).collect();
    order.sort_by_key(|i| ids[*i as usize]);
    [ids, order].map(|x| Tensor::from_data(TensorData::new(x, [n]), device))
}

fn flop(n: usize) -> Throughput {
    Throughput::Elements(n as u64)
}

/// Bytes of so many float32.
fn floats(n: usize) -> Throughput {
    Throughput::BytesDecimal(4 * n as u64)
}

/// A backend's device, and where the figures go.
struct Bench<'a, B: LlamaOps> {
    criterion: &'a mut Criterion,
    device: B::Device,
}

impl<B: LlamaOps> Bench<'_, B> {
    fn time<O>(&mut self, name: &str, shape: &str, work: Throughput, call: impl Fn() -> O) {
        self.time_on(name, shape, work, || (), |()| call());
    }

    /// Times `call` on what `input` makes off the clock.
    fn time_on<I, O>(&mut self, name: &str, shape: &str, work: Throughput, input: impl Fn() -> I, call: impl Fn(I) -> O) {
        let (device, mut group) = (&self.device, self.criterion.benchmark_group(name));
        group.throughput(work).bench_function(shape, |b| {
            b.iter_batched(
                &input,
                |x| {
                    let y = black_box(call(x));
                    B::sync(device).expect("the device works");
                    y
                },
                BatchSize::PerIteration,
            );
        });
        group.finish();
    }

    fn random<const D: usize>(&self, shape: [usize; D]) -> Tensor<B, D> {
        Tensor::random(shape, Distribution::Normal(0.0, 1.0), &self.device)
    }
}

/// The four products of a linear layer, `[N, d_in] -> [N, d_out]`, and the plain one.
fn products<B: LlamaOps>(b: &mut Bench<B>) {
    for (d, f) in DIMS.into_iter().zip(HIDDEN) {
        for (d_in, d_out) in [(d, 3 * d), (d, 2 * f), (f, d)] {
            let (x, w, y) = (b.random([N, d_in]), b.random([d_out, d_in]), b.random([N, d_out]));
            let (shape, work) = (format!("{N}x{d_in}x{d_out}"), 2 * N * d_in * d_out);
            let wt = w.clone().transpose();
            b.time("matmul", &shape, flop(work), || B::matmul(primitive(&x), primitive(&wt)));
            let gain = b.random([d_in]);
            b.time("norm_project", &shape, flop(work), || {
                B::norm_project(primitive(&x), primitive(&gain), primitive(&w), EPS, DType::F32)
            });
            b.time("project", &shape, flop(work), || B::project(primitive(&x), primitive(&w), DType::F32));
            b.time_on("project_add", &shape, flop(work), copy(&y), |y| B::project_add(y, primitive(&x), primitive(&w)));
            b.time("project_backward_input", &shape, flop(work), || {
                B::project_backward_input(primitive(&y), primitive(&w), DType::F32)
            });
            b.time_on("project_backward_weight", &shape, flop(work), copy(&w), |sum| {
                B::project_backward_weight(primitive(&y), primitive(&x), Some(sum))
            });
        }
    }
}

fn rms_norm<B: LlamaOps>(b: &mut Bench<B>) {
    for d in DIMS {
        let (x, w, dy) = (b.random([N, d]), b.random([d]), b.random([N, d]));
        let shape = format!("{N}x{d}");
        b.time("rms_norm", &shape, floats(2 * N * d), || B::rms_norm(primitive(&x), primitive(&w), EPS, DType::F32));
        // x, dy and what is added are read, dx is written.
        b.time_on("rms_norm_backward", &shape, floats(4 * N * d), copy(&dy), |add| {
            B::rms_norm_backward(primitive(&x), primitive(&w), primitive(&dy), EPS, Some(add))
        });
    }
}

/// Queries and keys of a packed projection; backward is the same by the opposite angles.
fn rope<B: LlamaOps>(b: &mut Bench<B>) {
    for seq in SEQS {
        let x = b.random([BATCH, seq, 3 * HEADS, HEAD_DIM]);
        let (cos, sin) = (b.random([seq, HEAD_DIM / 2]), b.random([seq, HEAD_DIM / 2]));
        let work = floats(2 * BATCH * seq * 2 * HEADS * HEAD_DIM);
        for (name, inverse) in [("rope", false), ("rope_backward", true)] {
            b.time_on(name, &format!("{BATCH}x{seq}x{HEADS}x{HEAD_DIM}"), work.clone(), copy(&x), |x| {
                B::rope(x, primitive(&cos), primitive(&sin), 2 * HEADS, inverse)
            });
        }
    }
}

fn swiglu<B: LlamaOps>(b: &mut Bench<B>) {
    for (d, f) in DIMS.into_iter().zip(HIDDEN) {
        let (gate_up, dy, w) = (b.random([N, 2 * f]), b.random([N, f]), b.random([d, f]));
        b.time("swiglu", &format!("{N}x{f}"), floats(3 * N * f), || B::swiglu(primitive(&gate_up)));
        b.time("swiglu_project", &format!("{N}x{f}x{d}"), flop(2 * N * f * d), || {
            B::swiglu_project(primitive(&gate_up), primitive(&w), DType::F32)
        });
        b.time_on("swiglu_backward", &format!("{N}x{f}"), floats(5 * N * f), copy(&gate_up), |gate_up| {
            B::swiglu_backward(gate_up, primitive(&dy))
        });
    }
}

/// FLOP of one product of causal attention.
fn half_square(seq: usize) -> usize {
    BATCH * HEADS * HEAD_DIM * seq * seq
}

fn attention<B: LlamaOps>(b: &mut Bench<B>) {
    for seq in SEQS {
        let [q, k, v, dout] = [(); 4].map(|()| b.random([BATCH, HEADS, seq, HEAD_DIM]));
        let (shape, scale) = (format!("{BATCH}x{HEADS}x{seq}x{HEAD_DIM}"), 1.0 / (HEAD_DIM as f64).sqrt());
        let forward = || B::attention_forward(primitive(&q), primitive(&k), primitive(&v), None, scale);
        b.time("attention_forward", &shape, flop(2 * half_square(seq)), forward);
        b.time("causal_attention", &shape, flop(2 * half_square(seq)), || {
            B::causal_attention(primitive(&q), primitive(&k), primitive(&v), scale)
        });
        let (out, lse) = forward();
        let saved = || {
            let (q, k, v) = (primitive(&q), primitive(&k), primitive(&v));
            AttentionSaved { q, k, v, doc_starts: None, out: out.clone(), lse: lse.clone(), scale }
        };
        b.time_on("attention_backward", &shape, flop(4 * half_square(seq)), saved, |s| {
            B::attention_backward(s, primitive(&dout))
        });
    }
}

/// Attention as the model calls it, over a packed projection.
fn self_attention<B: LlamaOps>(b: &mut Bench<B>) {
    for seq in SEQS {
        let qkv = b.random([BATCH, seq, 3 * HEADS, HEAD_DIM]);
        let dout = b.random([BATCH, seq, HEADS, HEAD_DIM]);
        let (cos, sin) = (b.random([seq, HEAD_DIM / 2]), b.random([seq, HEAD_DIM / 2]));
        let s = || SelfAttention { kv_heads: HEADS, doc_starts: None, scale: 1.0 / (HEAD_DIM as f64).sqrt() };
        let (shape, one) = (format!("{BATCH}x{HEADS}x{seq}x{HEAD_DIM}"), half_square(seq));
        b.time_on("self_attention", &shape, flop(2 * one), copy(&qkv), |qkv| {
            B::self_attention(qkv, Rotary { cos: primitive(&cos), sin: primitive(&sin) }, s())
        });
        let forward = || B::self_attention_forward(primitive(&qkv), s());
        b.time("self_attention_forward", &shape, flop(2 * one), forward);
        let (out, lse) = forward();
        b.time_on("self_attention_backward", &shape, flop(4 * one), copy(&qkv), |qkv| {
            B::self_attention_backward(qkv, s(), out.clone(), lse.clone(), primitive(&dout))
        });
    }
}

/// The whole loss, and the two halves of a chunk of it.
fn loss<B: LlamaOps>(b: &mut Bench<B>) {
    let rows = B::logit_rows(VOCAB).min(N);
    let [targets, _] = ids::<B>(N, &b.device).map(|x| x.into_primitive());
    for d in DIMS {
        let (x, w) = (b.random([N, d]), b.random([VOCAB, d]).mul_scalar(0.02));
        let (shape, work) = (format!("{N}x{d}x{VOCAB}"), 2 * N * d * VOCAB);
        b.time("linear_cross_entropy", &shape, flop(work), || {
            B::linear_cross_entropy(primitive(&x), primitive(&w), targets.clone())
        });
        b.time_on("loss::forward_backward", &shape, flop(3 * work), copy(&w), |sum| {
            let whole = |stats| Ok::<_, std::convert::Infallible>(stats);
            let Ok(grads) = forward_backward::<B, _>(primitive(&x), primitive(&w), targets.clone(), 1.0, Some(sum), 0, &whole);
            grads
        });
    }
    let logits = b.random([rows, VOCAB]);
    let [targets, _] = ids::<B>(rows, &b.device).map(|x| x.into_primitive());
    let shape = format!("{rows}x{VOCAB}");
    let stats = || B::logit_stats(primitive(&logits), targets.clone(), 0);
    b.time("logit_stats", &shape, floats(rows * VOCAB), stats);
    let stats = stats();
    b.time_on("logit_grad", &shape, floats(2 * rows * VOCAB), copy(&logits), |logits| {
        B::logit_grad(logits, stats.clone(), targets.clone(), 0, 1.0, DType::F32)
    });
}

fn embedding<B: LlamaOps>(b: &mut Bench<B>) {
    let [ids, order] = ids::<B>(N, &b.device).map(|x| x.into_primitive());
    for d in DIMS {
        let (w, dx) = (b.random([VOCAB, d]), b.random([N, d]));
        b.time("embed", &format!("{N}x{d}"), floats(2 * N * d), || B::embed(ids.clone(), primitive(&w), DType::F32));
        b.time_on("embed_backward", &format!("{N}x{d}"), floats(3 * N * d), copy(&w), |sum| {
            B::embed_backward(ids.clone(), order.clone(), primitive(&dx), sum)
        });
    }
}

fn optimizer<B: LlamaOps>(b: &mut Bench<B>) {
    const SHAPE: [usize; 2] = [2048, 2048]; // 4 M parameters
    let n = SHAPE.iter().product();
    let [w, grad, m] = [(); 3].map(|()| b.random(SHAPE));
    let v = m.clone().square();
    let shape = format!("{n}");
    b.time("square_sum", &shape, floats(n), || B::square_sum(primitive(&grad)));
    let s = AdamWScalars {
        lr: 1e-4,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
        grad_scale: 0.5,
        bias1: 0.1,
        bias2: 0.05,
    };
    // Weight, gradient and two moments are read, all but the gradient are written.
    let state = || AdamWState { w: copy(&w)(), m: copy(&m)(), v: copy(&v)(), copy: None };
    b.time_on("adamw_step", &shape, floats(7 * n), state, |state| B::adamw_step(state, primitive(&grad), s));
}

/// All cores copy: 2 MiB and 32 MiB, which caches may hold, and 256 MiB.
fn memory_copy<B: LlamaOps>(b: &mut Bench<B>) {
    for mib in [2, 32, 256] {
        let n = mib << 18;
        let from: Vec<f32> = (0..n).map(|i| i as f32).collect();
        let to = std::cell::RefCell::new(vec![1.0f32; n]);
        let part = n.div_ceil(rayon::current_num_threads());
        b.time("memory_copy", &format!("{mib}MiB"), floats(2 * n), || {
            to.borrow_mut().par_chunks_mut(part).zip(from.par_chunks(part)).for_each(|(to, from)| to.copy_from_slice(from));
        });
    }
}

fn all<B: LlamaOps>(criterion: &mut Criterion) {
    let b = &mut Bench::<B> { criterion, device: Default::default() };
    memory_copy(b);
    products(b);
    rms_norm(b);
    rope(b);
    swiglu(b);
    attention(b);
    self_attention(b);
    loss(b);
    embedding(b);
    optimizer(b);
}

criterion_group! {
    name = ops;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = all::<Flex>
}
criterion_main!(ops);
