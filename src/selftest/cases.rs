//! The operations' checks.

use burn::tensor::backend::AutodiffBackend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Int, Tensor, TensorData};
use burn_autodiff::Autodiff;

use super::reference::{self, AttentionShape};
use super::{Checks, Output, draw, golden, magnitude};
use crate::model::init::from_f32;
use crate::ops::{self, AdamWScalars, AttentionSaved, LlamaOps, primitive, tensor};

/// One check or a few that share a reference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Case {
    /// `[batch, m, k] x [batch, k, n]`, also with transposed (strided) inputs.
    Matmul {
        /// Products.
        batch: usize,
        /// Rows.
        m: usize,
        /// Length of the sums.
        k: usize,
        /// Columns.
        n: usize,
    },
    /// Products that only true float32 gets exactly: TF32 and bfloat16 round 1 + 2^-12 to 1.
    TrueFloat32 {
        /// Length of the sums, at most 2048.
        k: usize,
    },
    /// `y = x W^T` and its gradients.
    Linear {
        /// Rows.
        n: usize,
        /// Width of the input.
        d_in: usize,
        /// Width of the output.
        d_out: usize,
    },
    /// RMSNorm and its gradients.
    RmsNorm {
        /// Rows.
        n: usize,
        /// Width.
        d: usize,
    },
    /// Rotary embedding and its gradient.
    Rope {
        /// Sequences.
        batch: usize,
        /// Positions.
        seq: usize,
        /// Heads.
        heads: usize,
        /// Width of a head.
        head_dim: usize,
    },
    /// SwiGLU and its gradients, gates up to +-100.
    SwiGlu {
        /// Elements.
        n: usize,
    },
    /// Causal attention and its gradients, on strided queries and on keys inside a longer cache.
    Attention(AttentionShape),
    /// Output projection with cross-entropy and its gradients; some targets do not count.
    CrossEntropy {
        /// Rows.
        n: usize,
        /// Width.
        dim: usize,
        /// Vocabulary.
        vocab: usize,
    },
    /// Sum of squares.
    SquareSum {
        /// Elements.
        n: usize,
    },
    /// AdamW.
    AdamW {
        /// Elements.
        n: usize,
    },
    /// The tiny LLaMA.
    Golden,
}

/// What [`super::run`] checks: each operation at a small odd size and at one of a real model's, 288 (9 x 32) among the widths,
/// which double-buffered matrix products with an odd number of stages get wrong; then the golden case.
pub fn cases() -> Vec<Case> {
    let attention = |batch, heads, kv_heads, seq_q, seq_k, head_dim| {
        Case::Attention(AttentionShape { batch, heads, kv_heads, seq_q, seq_k, head_dim })
    };
    vec![
        Case::TrueFloat32 { k: 32 },
        Case::TrueFloat32 { k: 288 },
        Case::Matmul { batch: 2, m: 63, k: 48, n: 65 },
        Case::Matmul { batch: 1, m: 64, k: 288, n: 96 },
        Case::Matmul { batch: 1, m: 1, k: 288, n: 768 },
        Case::Linear { n: 7, d_in: 80, d_out: 33 },
        Case::Linear { n: 130, d_in: 288, d_out: 288 },
        Case::RmsNorm { n: 3, d: 7 },
        Case::RmsNorm { n: 65, d: 288 },
        Case::Rope { batch: 1, seq: 1, heads: 1, head_dim: 2 },
        Case::Rope { batch: 2, seq: 65, heads: 6, head_dim: 48 },
        Case::SwiGlu { n: 7 },
        Case::SwiGlu { n: 65 * 768 },
        attention(2, 2, 2, 1, 1, 8),
        attention(2, 6, 6, 65, 65, 48),
        attention(1, 4, 2, 257, 257, 64),
        attention(2, 4, 1, 1, 130, 128),
        Case::CrossEntropy { n: 5, dim: 8, vocab: 7 },
        Case::CrossEntropy { n: 65, dim: 96, vocab: 4096 },
        Case::SquareSum { n: 1 },
        Case::SquareSum { n: 288 * 768 },
        Case::AdamW { n: 3 },
        Case::AdamW { n: 288 * 768 },
        Case::Golden,
    ]
}

/// Input of a case: values, exact in float32, of a shape.
struct Input {
    values: Vec<f32>,
    shape: Vec<usize>,
}

impl Input {
    /// From stream `seed`, in [-scale, scale).
    fn new(seed: u64, shape: &[usize], scale: f32) -> Self {
        let values = draw(seed, shape.iter().product()).into_iter().map(|u| u * scale).collect();
        Self { values, shape: shape.to_vec() }
    }

    fn f64(&self) -> Vec<f64> {
        self.values.iter().map(|&x| f64::from(x)).collect()
    }

    fn at<B: LlamaOps>(&self, device: &B::Device) -> FloatTensor<B> {
        from_f32::<B>(self.values.clone(), &self.shape, device)
    }

    /// The same with its last two dimensions stored the other way round.
    fn strided<B: LlamaOps>(&self, device: &B::Device) -> FloatTensor<B> {
        let [.., rows, columns] = self.shape[..] else { return self.at::<B>(device) };
        let swapped = |chunk: &[f32]| (0..rows * columns).map(|i| chunk[i % rows * columns + i / rows]).collect::<Vec<_>>();
        let values = self.values.chunks_exact(rows * columns).flat_map(swapped).collect();
        let mut shape = self.shape.clone();
        let rank = shape.len();
        shape.swap(rank - 2, rank - 1);
        B::float_transpose(from_f32::<B>(values, &shape, device))
    }

    /// `[a, b, c, d]` as a view of `[a, c, b, d]`, as heads come out of a projection.
    fn heads<B: LlamaOps>(&self, device: &B::Device) -> FloatTensor<B> {
        let [a, b, c, d] = self.shape[..] else { return self.at::<B>(device) };
        let values = (0..a * b * c).flat_map(|row| {
            let (i, j, k) = (row / (c * b), row / b % c, row % b);
            self.values[((i * b + k) * c + j) * d..][..d].iter().copied()
        });
        primitive(tensor::<B, 4>(from_f32::<B>(values.collect(), &[a, c, b, d], device)).swap_dims(1, 2))
    }

    /// `[a, b, c, d]` as the first rows of a cache `[a, b, c + 3, d]`, whose rest must not be read.
    fn cached<B: LlamaOps>(&self, device: &B::Device) -> FloatTensor<B> {
        let [a, b, c, d] = self.shape[..] else { return self.at::<B>(device) };
        let cache = Tensor::<B, 4>::full([a, b, c + 3, d], f32::NAN, (device, burn::tensor::DType::F32));
        let cache = cache.slice_assign([0..a, 0..b, 0..c, 0..d], tensor::<B, 4>(self.at::<B>(device)));
        primitive(cache.narrow(2, 0, c))
    }

    /// A leaf of the graph.
    fn leaf<B: LlamaOps, const D: usize>(&self, device: &B::Device) -> Tensor<Autodiff<B>, D> {
        Tensor::from_inner(tensor::<B, D>(self.at::<B>(device))).require_grad()
    }
}

/// Standard deviation of a sum of `terms` products of numbers drawn from [-1, 1): the magnitude that a sum's error is relative
/// to where a tensor has so few elements that all of them may be small by chance.
fn spread(terms: usize) -> f64 {
    (terms as f64).sqrt() / 3.0
}

type Leaf<B, const D: usize> = Tensor<Autodiff<B>, D>;

/// `y` and the gradients of `sum(y * dy)` for `inputs`, with what they should be.
fn backward<B: LlamaOps, const D: usize, const N: usize, const M: usize>(
    y: Leaf<B, D>,
    dy: &Input,
    inputs: [FloatTensor<Autodiff<B>>; N],
    wants: [&[f64]; M],
) -> [Output; M] {
    const { assert!(M == N + 1, "the output and every gradient") };
    let dy = Tensor::from_inner(tensor::<B, D>(dy.at::<B>(&y.device())));
    let mut grads = (y.clone() * dy).sum().backward();
    let mut got = vec![primitive(y.inner())].into_iter().chain(inputs.map(|x| {
        let grad = <Autodiff<B> as AutodiffBackend>::grad_remove(&x, &mut grads);
        grad.expect("every input is a leaf of the graph")
    }));
    wants.map(|want| Output::new::<B>(got.next().expect("M results"), want))
}

impl Case {
    pub(super) fn check<B: LlamaOps>(&self, device: &B::Device, checks: &mut Checks<'_>) {
        match *self {
            Self::Matmul { batch, m, k, n } => matmul::<B>([batch, m, k, n], device, checks),
            Self::TrueFloat32 { k } => true_float32::<B>(k, device, checks),
            Self::Linear { n, d_in, d_out } => linear::<B>([n, d_in, d_out], device, checks),
            Self::RmsNorm { n, d } => rms_norm::<B>([n, d], device, checks),
            Self::Rope { batch, seq, heads, head_dim } => rope::<B>([batch, seq, heads, head_dim], device, checks),
            Self::SwiGlu { n } => swiglu::<B>(n, device, checks),
            Self::Attention(shape) => attention::<B>(shape, device, checks),
            Self::CrossEntropy { n, dim, vocab } => cross_entropy::<B>([n, dim, vocab], device, checks),
            Self::SquareSum { n } => square_sum::<B>(n, device, checks),
            Self::AdamW { n } => adamw::<B>(n, device, checks),
            Self::Golden => golden::check::<B>(device, checks),
        }
    }
}

fn matmul<B: LlamaOps>([batch, m, k, n]: [usize; 4], device: &B::Device, checks: &mut Checks<'_>) {
    let (a, b) = (Input::new(1, &[batch, m, k], 1.0), Input::new(2, &[batch, k, n], 1.0));
    let (af, bf) = (a.f64(), b.f64());
    let each = af.chunks_exact(m * k).zip(bf.chunks_exact(k * n));
    let want: Vec<f64> = each.flat_map(|(a, b)| reference::matmul(a, b, [m, k, n])).collect();
    checks.row("matmul", &format!("{batch} x ({m} x {k} x {n})"), checks.tolerance.sum(k), || {
        let (an, bn, at, bt) = (a.at::<B>(device), b.at::<B>(device), a.strided::<B>(device), b.strided::<B>(device));
        [(an.clone(), bn.clone()), (at.clone(), bn), (an, bt.clone()), (at, bt)]
            .map(|(a, b)| Output::new::<B>(B::matmul(a, b), &want).scale(spread(k)))
            .into()
    });
}

fn true_float32<B: LlamaOps>(k: usize, device: &B::Device, checks: &mut Checks<'_>) {
    const SIZE: usize = 64;
    let full = |x: f32| Input { values: vec![x; SIZE * k], shape: vec![SIZE, k] };
    let (fine, one) = (full(1.0 + 1.0 / 4096.0), full(1.0));
    let want = vec![k as f64 * (1.0 + 1.0 / 4096.0); SIZE * SIZE];
    let shape = format!("{SIZE} x {k} x {SIZE}, 1 + 2^-12");
    // Every partial sum is exact in float32, in any order: no error is allowed.
    checks.row("matmul, true float32", &shape, 0.0, || {
        let product = |a: &Input, b: &Input| B::matmul(a.at::<B>(device), B::float_transpose(b.at::<B>(device)));
        vec![Output::new::<B>(product(&fine, &one), &want), Output::new::<B>(product(&one, &fine), &want)]
    });
    checks.row("project, true float32", &shape, 0.0, || {
        let product = |x: &Input, w: &Input| B::project(x.at::<B>(device), w.at::<B>(device));
        vec![Output::new::<B>(product(&fine, &one), &want), Output::new::<B>(product(&one, &fine), &want)]
    });
}

fn linear<B: LlamaOps>([n, d_in, d_out]: [usize; 3], device: &B::Device, checks: &mut Checks<'_>) {
    let (x, w, dy) = (Input::new(1, &[n, d_in], 1.0), Input::new(2, &[d_out, d_in], 1.0), Input::new(3, &[n, d_out], 1.0));
    let [y, dx, dw] = reference::linear(&x.f64(), &w.f64(), &dy.f64(), [n, d_in, d_out]);
    let shape = format!("{n} x {d_in} -> {d_out}");
    checks.row("project", &shape, checks.tolerance.sum(d_in), || {
        vec![Output::new::<B>(B::project(x.at::<B>(device), w.at::<B>(device)), &y).scale(spread(d_in))]
    });
    checks.row("autodiff project", &shape, checks.tolerance.sum(n.max(d_in).max(d_out)), || {
        let (xs, ws) = (x.leaf::<B, 2>(device), w.leaf::<B, 2>(device));
        let out = ops::linear(xs.clone().unsqueeze::<3>(), ws.clone()).squeeze_dim::<2>(0);
        let [got, gx, gw] = backward(out, &dy, [primitive(xs), primitive(ws)], [&y, &dx, &dw]);
        vec![got.scale(spread(d_in)), gx.scale(spread(d_out)), gw.scale(spread(n))]
    });
}

fn rms_norm<B: LlamaOps>([n, d]: [usize; 2], device: &B::Device, checks: &mut Checks<'_>) {
    const EPS: f64 = 1e-5;
    let (mut x, w, dy) = (Input::new(1, &[n, d], 1.0), Input::new(2, &[d], 2.0), Input::new(3, &[n, d], 1.0));
    // The last row is of the size of sqrt(eps), which then counts.
    x.values[(n - 1) * d..].iter_mut().for_each(|x| *x /= 256.0);
    let [y, dx, dw] = reference::rms_norm(&x.f64(), &w.f64(), &dy.f64(), EPS);
    let shape = format!("{n} x {d}");
    let tolerance = checks.tolerance.sum(n.max(d));
    // dx is a difference of terms of the size of dy w / rms, which cancel where d is small.
    let floor = x.f64().chunks_exact(d).fold(0.0, |most: f64, row| {
        let rms = (row.iter().map(|v| v * v).sum::<f64>() / d as f64 + EPS).sqrt();
        most.max(magnitude(&dy.f64()) * magnitude(&w.f64()) / rms / 4.0)
    });
    checks.row("rms_norm", &shape, tolerance, || {
        vec![Output::new::<B>(B::rms_norm(x.at::<B>(device), w.at::<B>(device), EPS), &y)]
    });
    checks.row("rms_norm_backward", &shape, tolerance, || {
        let (gx, gw) = B::rms_norm_backward(x.at::<B>(device), w.at::<B>(device), dy.at::<B>(device), EPS);
        vec![Output::new::<B>(gx, &dx).scale(floor), Output::new::<B>(gw, &dw).scale(spread(n))]
    });
    checks.row("autodiff rms_norm", &shape, tolerance, || {
        let (xs, ws) = (x.leaf::<B, 2>(device), w.leaf::<B, 1>(device));
        let out = ops::rms_norm(xs.clone().unsqueeze::<3>(), ws.clone(), EPS).squeeze_dim::<2>(0);
        let [got, gx, gw] = backward(out, &dy, [primitive(xs), primitive(ws)], [&y, &dx, &dw]);
        vec![got, gx.scale(floor), gw.scale(spread(n))]
    });
}

fn rope<B: LlamaOps>([batch, seq, heads, head_dim]: [usize; 4], device: &B::Device, checks: &mut Checks<'_>) {
    let (half, shape) = (head_dim / 2, [batch, seq, heads, head_dim]);
    let (x, dy) = (Input::new(1, &shape, 1.0), Input::new(3, &shape, 1.0));
    let angles: Vec<f64> = draw(4, seq * half).into_iter().map(|u| f64::from(u) * std::f64::consts::PI).collect();
    let opposite: Vec<f64> = angles.iter().map(|a| -a).collect();
    let y = reference::rope(&x.f64(), &angles, [seq, heads, half]);
    let dx = reference::rope(&dy.f64(), &opposite, [seq, heads, half]);
    let table = |f: fn(f64) -> f64| Input { values: angles.iter().map(|&a| f(a) as f32).collect(), shape: vec![seq, half] };
    let (cos, sin) = (table(f64::cos), table(f64::sin));
    let text = format!("{batch} x {seq} x {heads} heads of {head_dim}");
    checks.row("rope", &text, checks.tolerance.sum(2), || {
        let got = B::rope(x.at::<B>(device), cos.at::<B>(device), sin.at::<B>(device));
        vec![Output::new::<B>(got, &y)]
    });
    checks.row("autodiff rope", &text, checks.tolerance.sum(2), || {
        let xs = x.leaf::<B, 4>(device);
        let table = |t: &Input| Tensor::from_inner(tensor::<B, 2>(t.at::<B>(device)));
        backward(ops::rope(xs.clone(), table(&cos), table(&sin)), &dy, [primitive(xs)], [&y, &dx]).into()
    });
}

fn swiglu<B: LlamaOps>(n: usize, device: &B::Device, checks: &mut Checks<'_>) {
    let [mut gate, mut up, mut dy] = [(1, 8.0), (2, 1.0), (3, 1.0)].map(|(seed, scale)| Input::new(seed, &[1, 1, n], scale));
    // Where an exponential overflows; the other factors small, so that these elements do not set the scale.
    for (i, g) in [100.0, -100.0, 0.0].into_iter().enumerate().take(n) {
        (gate.values[i], up.values[i], dy.values[i]) = (g, 1.0 / 16.0, 1.0 / 16.0);
    }
    let [y, dgate, dup] = reference::swiglu(&gate.f64(), &up.f64(), &dy.f64());
    let shape = format!("{n}");
    let tolerance = checks.tolerance.sum(1);
    checks.row("swiglu", &shape, tolerance, || vec![Output::new::<B>(B::swiglu(gate.at::<B>(device), up.at::<B>(device)), &y)]);
    checks.row("swiglu_backward", &shape, tolerance, || {
        let (dg, du) = B::swiglu_backward(gate.at::<B>(device), up.at::<B>(device), dy.at::<B>(device));
        vec![Output::new::<B>(dg, &dgate), Output::new::<B>(du, &dup)]
    });
    checks.row("autodiff swiglu", &shape, tolerance, || {
        let (gs, us) = (gate.leaf::<B, 3>(device), up.leaf::<B, 3>(device));
        backward(ops::swiglu(gs.clone(), us.clone()), &dy, [primitive(gs), primitive(us)], [&y, &dgate, &dup]).into()
    });
}

fn attention<B: LlamaOps>(s: AttentionShape, device: &B::Device, checks: &mut Checks<'_>) {
    let AttentionShape { batch, heads, kv_heads, seq_q, seq_k, head_dim } = s;
    let (q_shape, k_shape) = ([batch, heads, seq_q, head_dim], [batch, kv_heads, seq_k, head_dim]);
    // Scores of +-6 or so: weights that are far from even.
    let (q, k) = (Input::new(1, &q_shape, 4.0), Input::new(2, &k_shape, 2.0));
    let (v, dout) = (Input::new(3, &k_shape, 1.0), Input::new(4, &q_shape, 1.0));
    let scale = 1.0 / (head_dim as f64).sqrt();
    let [out, lse, dq, dk, dv] = reference::attention(&q.f64(), &k.f64(), &v.f64(), &dout.f64(), s, scale);
    let text = format!("{batch} x {heads}/{kv_heads} heads of {head_dim}, {seq_q} on {seq_k}");
    let tolerance = checks.tolerance.softmax(head_dim + seq_k, magnitude(&lse));
    // dq and dk are differences of terms of the size of dv.
    let floor = magnitude(&dv) / 4.0;
    let inputs = || (q.heads::<B>(device), k.cached::<B>(device), v.cached::<B>(device));
    checks.row("causal_attention", &text, tolerance, || {
        let (q, k, v) = inputs();
        vec![Output::new::<B>(B::causal_attention(q, k, v, scale), &out)]
    });
    checks.row("attention_forward", &text, tolerance, || {
        let (q, k, v) = inputs();
        let (o, l) = B::attention_forward(q, k, v, scale);
        vec![Output::new::<B>(o, &out), Output::new::<B>(l, &lse)]
    });
    checks.row("attention_backward", &text, tolerance, || {
        let (q, k, v) = inputs();
        // Saved values from the reference: the errors are those of backward alone.
        let saved = |x: &[f64], width: usize| {
            let values = x.iter().map(|&x| x as f32).collect();
            from_f32::<B>(values, &[batch, heads, seq_q, width], device)
        };
        let saved = AttentionSaved { q, k, v, out: saved(&out, head_dim), lse: saved(&lse, 1), scale };
        let [gq, gk, gv] = B::attention_backward(saved, dout.heads::<B>(device));
        vec![Output::new::<B>(gq, &dq).scale(floor), Output::new::<B>(gk, &dk).scale(floor), Output::new::<B>(gv, &dv)]
    });
    // Backward here takes the forward's own output and log-sum-exp: two passes, two independent errors.
    checks.row("autodiff causal_attention", &text, tolerance * std::f64::consts::SQRT_2, || {
        let (qs, ks, vs) = (q.leaf::<B, 4>(device), k.leaf::<B, 4>(device), v.leaf::<B, 4>(device));
        let o = ops::attention(qs.clone(), ks.clone(), vs.clone());
        let inputs = [primitive(qs), primitive(ks), primitive(vs)];
        let [o, gq, gk, gv] = backward(o, &dout, inputs, [&out, &dq, &dk, &dv]);
        vec![o, gq.scale(floor), gk.scale(floor), gv]
    });
}

fn cross_entropy<B: LlamaOps>([n, dim, vocab]: [usize; 3], device: &B::Device, checks: &mut Checks<'_>) {
    let (x, w) = (Input::new(1, &[n, dim], 1.0), Input::new(2, &[vocab, dim], 1.0));
    let pick = |u: f32| (((u + 1.0) / 2.0 * vocab as f32) as i32).min(vocab as i32 - 1);
    let target = |(i, u): (usize, f32)| if i % 3 == 1 { -1 - i as i32 } else { pick(u) };
    let targets: Vec<i32> = draw(3, n).into_iter().enumerate().map(target).collect();
    let [loss, dx, dw] = reference::cross_entropy(&x.f64(), &w.f64(), &targets, dim);
    let ids = || Tensor::<B, 1, Int>::from_data(TensorData::new(targets.clone(), [n]), device);
    let shape = format!("{n} x {dim}, vocab {vocab}");
    // Row sums over the vocabulary, products over the width, and the sum over the rows.
    let tolerance = checks.tolerance.sum(dim.max(vocab).max(n));
    checks.row("linear_cross_entropy", &shape, tolerance, || {
        let got = B::linear_cross_entropy(x.at::<B>(device), w.at::<B>(device), ids().into_primitive());
        vec![Output::new::<B>(got, &loss)]
    });
    checks.row("linear_cross_entropy_grad", &shape, tolerance, || {
        let got = B::linear_cross_entropy_grad(x.at::<B>(device), w.at::<B>(device), ids().into_primitive());
        got.into_iter().zip([&loss, &dx, &dw]).map(|(got, want)| Output::new::<B>(got, want)).collect()
    });
    checks.row("autodiff linear_cross_entropy", &shape, tolerance, || {
        let (xs, ws) = (x.leaf::<B, 2>(device), w.leaf::<B, 2>(device));
        let ids = Tensor::from_inner(ids().reshape([1, n]));
        let out = ops::linear_cross_entropy(xs.clone().unsqueeze::<3>(), ws.clone(), ids);
        // A loss gradient other than 1.
        let dy = Input { values: vec![-0.5], shape: vec![1] };
        let half = |x: &[f64]| x.iter().map(|x| x * -0.5).collect::<Vec<_>>();
        backward(out, &dy, [primitive(xs), primitive(ws)], [&loss, &half(&dx), &half(&dw)]).into()
    });
}

fn square_sum<B: LlamaOps>(n: usize, device: &B::Device, checks: &mut Checks<'_>) {
    let x = Input::new(1, &[1, n], 1.0);
    let want = [x.f64().iter().map(|x| x * x).sum::<f64>()];
    checks.row("square_sum", &format!("{n}"), checks.tolerance.sum(n), || {
        vec![Output::new::<B>(B::square_sum(x.at::<B>(device)), &want)]
    });
}

fn adamw<B: LlamaOps>(n: usize, device: &B::Device, checks: &mut Checks<'_>) {
    // A learning rate so large that the update is of the size of the weight.
    let s = AdamWScalars {
        lr: 0.25,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
        grad_scale: 0.37,
        bias1: 1.0 - 0.9f64.powi(7),
        bias2: 1.0 - 0.95f64.powi(7),
    };
    let [w, g, m, mut v] = [1, 2, 3, 4].map(|seed| Input::new(seed, &[1, n], 1.0));
    // Moments as they come about: the second is at least of the size of the first's square.
    v.values.iter_mut().zip(&m.values).for_each(|(v, m)| *v = v.abs() + m * m);
    let wants = reference::adamw(&w.f64(), &g.f64(), &m.f64(), &v.f64(), s);
    let inputs = || [&w, &g, &m, &v].map(|x| x.at::<B>(device));
    checks.row("adamw_step", &format!("{n}"), checks.tolerance.sum(1), || {
        let [w, g, m, v] = inputs();
        let got = B::adamw_step(w, g, m, v, s);
        got.into_iter().zip(&wants).map(|(got, want)| Output::new::<B>(got, want)).collect()
    });
}
