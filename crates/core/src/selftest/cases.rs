//! The operations' checks.

use burn::tensor::backend::AutodiffBackend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Int, Tensor, TensorData};
use burn_autodiff::Autodiff;

use super::reference::{self, AttentionShape};
use super::{CacheShape, Checks, Output, attention, cached, composed, draw, golden, narrow, parts};
use crate::model::init::from_f32;
use crate::ops::{self, AdamWScalars, AdamWState, LlamaOps, loss, primitive, tensor};

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
        /// Rows.
        n: usize,
        /// Gates of a row.
        f: usize,
    },
    /// A product of the norm, and its gradients.
    NormProject {
        /// Rows.
        n: usize,
        /// Width of the input.
        d: usize,
        /// Width of the output.
        d_out: usize,
    },
    /// A product of the SwiGLU, and its gradients.
    SwiGluProject {
        /// Rows.
        n: usize,
        /// Gates of a row.
        f: usize,
        /// Width of the output.
        d_out: usize,
    },
    /// Causal attention and its gradients, on strided queries and on keys inside a longer cache.
    Attention(AttentionShape),
    /// Attention of a packed projection, rotated first, whole and inside documents, and its gradient; `seq_q = seq_k`.
    SelfAttention(AttentionShape),
    /// Output projection with cross-entropy and its gradients; some targets do not count.
    CrossEntropy {
        /// Rows.
        n: usize,
        /// Width.
        dim: usize,
        /// Vocabulary.
        vocab: usize,
    },
    /// Rows of the embedding and their gradient.
    Embedding {
        /// Tokens.
        n: usize,
        /// Width.
        dim: usize,
        /// Vocabulary.
        vocab: usize,
    },
    /// Products, norms, SwiGLU and attention on bfloat16 and float16, where the backend has them.
    Narrow {
        /// Positions.
        seq: usize,
        /// Width of a head.
        head_dim: usize,
    },
    /// Products of bfloat16 and float16 in the three layouts of a linear layer, by every routine that the backend has
    /// ([`LlamaOps::gemms`]) and that takes them, but for Burn's own choice.
    NarrowProducts {
        /// Rows.
        m: usize,
        /// Length of the sums.
        k: usize,
        /// Columns.
        n: usize,
    },
    /// Products of inference, by rows.
    ProjectRows {
        /// Rows.
        n: usize,
        /// Width of the input.
        d_in: usize,
        /// Width of the output.
        d_out: usize,
    },
    /// Products and rows of weights in parts, of every type of files whose blocks divide the width, and mixed.
    Parts {
        /// Rows of the input.
        n: usize,
        /// Width of the input.
        width: usize,
        /// Rows of the first part.
        rows: usize,
    },
    /// Attention over a cache of blocks, of every type that the backend keeps it in.
    CachedAttention(CacheShape),
    /// Sampling, each row with other settings.
    Sample {
        /// Rows.
        n: usize,
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
/// which double-buffered matrix products with an odd number of stages get wrong; then the golden case; and last, since they are many, the
/// routines for products among which one can choose.
pub fn cases() -> Vec<Case> {
    let attention = |batch, heads, kv_heads, seq_q, seq_k, head_dim| {
        Case::Attention(AttentionShape { batch, heads, kv_heads, seq_q, seq_k, head_dim })
    };
    let self_attention = |batch, heads, kv_heads, seq, head_dim| {
        Case::SelfAttention(AttentionShape { batch, heads, kv_heads, seq_q: seq, seq_k: seq, head_dim })
    };
    let cached = |sequences, longest, chunk, heads, kv_heads, head_dim| {
        Case::CachedAttention(CacheShape { sequences, longest, chunk, heads, kv_heads, head_dim })
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
        Case::SwiGlu { n: 1, f: 7 },
        Case::SwiGlu { n: 65, f: 768 },
        Case::NormProject { n: 3, d: 7, d_out: 5 },
        Case::NormProject { n: 65, d: 288, d_out: 96 },
        Case::SwiGluProject { n: 3, f: 7, d_out: 5 },
        Case::SwiGluProject { n: 65, f: 768, d_out: 288 },
        attention(2, 2, 2, 1, 1, 8),
        attention(2, 6, 6, 65, 65, 48),
        attention(1, 4, 2, 257, 257, 64),
        attention(2, 4, 1, 1, 130, 128),
        self_attention(2, 2, 1, 3, 8),
        self_attention(2, 6, 6, 65, 48),
        self_attention(1, 4, 2, 257, 64),
        self_attention(1, 2, 2, 130, 128),
        Case::ProjectRows { n: 1, d_in: 7, d_out: 5 },
        Case::ProjectRows { n: 3, d_in: 288, d_out: 96 },
        Case::ProjectRows { n: 8, d_in: 1024, d_out: 33 },
        Case::ProjectRows { n: 17, d_in: 288, d_out: 96 },
        Case::Parts { n: 1, width: 512, rows: 33 },
        Case::Parts { n: 7, width: 96, rows: 17 },
        Case::Parts { n: 33, width: 256, rows: 5 },
        cached(2, 5, 2, 2, 1, 8),
        cached(5, 40, 0, 6, 2, 48),
        cached(3, 300, 64, 8, 2, 64),
        Case::Sample { n: 3, vocab: 7 },
        Case::Sample { n: 65, vocab: 1000 },
        Case::Sample { n: 7, vocab: 32_000 },
        Case::CrossEntropy { n: 5, dim: 8, vocab: 7 },
        Case::CrossEntropy { n: 65, dim: 96, vocab: 4096 },
        Case::Embedding { n: 5, dim: 3, vocab: 4 },
        Case::Embedding { n: 257, dim: 288, vocab: 32_000 },
        Case::Narrow { seq: 3, head_dim: 16 },
        Case::Narrow { seq: 130, head_dim: 64 },
        Case::Narrow { seq: 300, head_dim: 128 },
        Case::SquareSum { n: 1 },
        Case::SquareSum { n: 288 * 768 },
        Case::AdamW { n: 3 },
        Case::AdamW { n: 288 * 768 },
        Case::Golden,
        Case::NarrowProducts { m: 33, k: 48, n: 65 },
        Case::NarrowProducts { m: 33, k: 80, n: 65 },
        Case::NarrowProducts { m: 33, k: 288, n: 65 },
        Case::NarrowProducts { m: 33, k: 4096, n: 65 },
        Case::NarrowProducts { m: 200, k: 48, n: 136 },
        Case::NarrowProducts { m: 200, k: 80, n: 136 },
        Case::NarrowProducts { m: 200, k: 288, n: 136 },
        Case::NarrowProducts { m: 200, k: 4096, n: 136 },
    ]
}

/// Input of a case: values, exact in float32, of a shape.
#[derive(Clone)]
pub(super) struct Input {
    pub(super) values: Vec<f32>,
    pub(super) shape: Vec<usize>,
}

impl Input {
    /// From stream `seed`, in [-scale, scale).
    pub(super) fn new(seed: u64, shape: &[usize], scale: f32) -> Self {
        let values = draw(seed, shape.iter().product()).into_iter().map(|u| u * scale).collect();
        Self { values, shape: shape.to_vec() }
    }

    pub(super) fn f64(&self) -> Vec<f64> {
        self.values.iter().map(|&x| f64::from(x)).collect()
    }

    pub(super) fn at<B: LlamaOps>(&self, device: &B::Device) -> FloatTensor<B> {
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
    pub(super) fn heads<B: LlamaOps>(&self, device: &B::Device) -> FloatTensor<B> {
        let [a, b, c, d] = self.shape[..] else { return self.at::<B>(device) };
        let values = (0..a * b * c).flat_map(|row| {
            let (i, j, k) = (row / (c * b), row / b % c, row % b);
            self.values[((i * b + k) * c + j) * d..][..d].iter().copied()
        });
        primitive(tensor::<B, 4>(from_f32::<B>(values.collect(), &[a, c, b, d], device)).swap_dims(1, 2))
    }

    /// `[a, b, c, d]` as the first rows of a cache `[a, b, c + 3, d]`, whose rest must not be read.
    pub(super) fn cached<B: LlamaOps>(&self, device: &B::Device) -> FloatTensor<B> {
        let [a, b, c, d] = self.shape[..] else { return self.at::<B>(device) };
        let cache = Tensor::<B, 4>::full([a, b, c + 3, d], f32::NAN, (device, burn::tensor::DType::F32));
        let cache = cache.slice_assign([0..a, 0..b, 0..c, 0..d], tensor::<B, 4>(self.at::<B>(device)));
        primitive(cache.narrow(2, 0, c))
    }

    /// A leaf of the graph.
    pub(super) fn leaf<B: LlamaOps, const D: usize>(&self, device: &B::Device) -> Tensor<Autodiff<B>, D> {
        Tensor::from_inner(tensor::<B, D>(self.at::<B>(device))).require_grad()
    }
}

/// Standard deviation of a sum of `terms` products of numbers drawn from [-1, 1): the magnitude that a sum's error is relative
/// to where a tensor has so few elements that all of them may be small by chance.
pub(super) fn spread(terms: usize) -> f64 {
    (terms as f64).sqrt() / 3.0
}

pub(super) type Leaf<B, const D: usize> = Tensor<Autodiff<B>, D>;

/// `y` and the gradients of `sum(y * dy)` for `inputs`, with what they should be.
pub(super) fn backward<B: LlamaOps, const D: usize, const N: usize, const M: usize>(
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
            Self::SwiGlu { n, f } => swiglu::<B>([n, f], device, checks),
            Self::NormProject { n, d, d_out } => composed::norm_project::<B>([n, d, d_out], device, checks),
            Self::SwiGluProject { n, f, d_out } => composed::swiglu_project::<B>([n, f, d_out], device, checks),
            Self::Attention(shape) => attention::attention::<B>(shape, device, checks),
            Self::SelfAttention(shape) => attention::self_attention::<B>(shape, device, checks),
            Self::Embedding { n, dim, vocab } => embedding::<B>([n, dim, vocab], device, checks),
            Self::Narrow { seq, head_dim } => narrow::check::<B>([seq, head_dim], device, checks),
            Self::NarrowProducts { m, k, n } => narrow::products::<B>([m, k, n], device, checks),
            Self::CrossEntropy { n, dim, vocab } => cross_entropy::<B>([n, dim, vocab], device, checks),
            Self::ProjectRows { n, d_in, d_out } => cached::project::<B>([n, d_in, d_out], device, checks),
            Self::Parts { n, width, rows } => parts::check::<B>([n, width, rows], device, checks),
            Self::CachedAttention(shape) => cached::attention::<B>(shape, device, checks),
            Self::Sample { n, vocab } => cached::sample::<B>([n, vocab], device, checks),
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
        let product = |x: &Input, w: &Input| B::project(x.at::<B>(device), w.at::<B>(device), DType::F32);
        vec![Output::new::<B>(product(&fine, &one), &want), Output::new::<B>(product(&one, &fine), &want)]
    });
}

fn linear<B: LlamaOps>([n, d_in, d_out]: [usize; 3], device: &B::Device, checks: &mut Checks<'_>) {
    let (x, w, dy) = (Input::new(1, &[n, d_in], 1.0), Input::new(2, &[d_out, d_in], 1.0), Input::new(3, &[n, d_out], 1.0));
    let [y, dx, dw] = reference::linear(&x.f64(), &w.f64(), &dy.f64(), [n, d_in, d_out]);
    let shape = format!("{n} x {d_in} -> {d_out}");
    checks.row("project", &shape, checks.tolerance.sum(d_in), || {
        vec![Output::new::<B>(B::project(x.at::<B>(device), w.at::<B>(device), DType::F32), &y).scale(spread(d_in))]
    });
    composed::project_over::<B>([&x, &w, &dy], &y, device, checks);
    checks.row("project_add", &shape, checks.tolerance.sum(d_in), || {
        // On handles that are shared and on ones that may be written to.
        let want: Vec<f64> = y.iter().zip(dy.f64()).map(|(a, b)| a + b).collect();
        let shared = dy.at::<B>(device);
        let got = B::project_add(shared.clone(), x.at::<B>(device), w.at::<B>(device));
        let own = B::project_add(dy.at::<B>(device), x.at::<B>(device), w.at::<B>(device));
        let [got, own] = [got, own].map(|x| Output::new::<B>(x, &want).scale(spread(d_in)));
        vec![got, own, Output::new::<B>(shared, &dy.f64())]
    });
    checks.row("project_backward_input", &shape, checks.tolerance.sum(d_out), || {
        let got = B::project_backward_input(dy.at::<B>(device), w.at::<B>(device), DType::F32);
        vec![Output::new::<B>(got, &dx).scale(spread(d_out))]
    });
    checks.row("project_backward_weight", &shape, checks.tolerance.sum(n), || {
        let sums = dw.iter().zip(w.f64()).map(|(a, b)| a + b).collect::<Vec<_>>();
        let shared = w.at::<B>(device);
        let got = [None, Some(w.at::<B>(device)), Some(shared.clone())]
            .map(|sum| B::project_backward_weight(dy.at::<B>(device), x.at::<B>(device), sum));
        let mut all: Vec<Output> = got.into_iter().zip([&dw, &sums, &sums]).map(|(g, want)| Output::new::<B>(g, want)).collect();
        all.iter_mut().for_each(|o| o.scale = spread(n));
        all.push(Output::new::<B>(shared, &w.f64()));
        all
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
    let floor = composed::norm_floor(&x, &w, &dy.f64(), EPS);
    checks.row("rms_norm", &shape, tolerance, || {
        vec![Output::new::<B>(B::rms_norm(x.at::<B>(device), w.at::<B>(device), EPS, DType::F32), &y)]
    });
    checks.row("rms_norm_backward", &shape, tolerance, || {
        let backward = |add| B::rms_norm_backward(x.at::<B>(device), w.at::<B>(device), dy.at::<B>(device), EPS, add);
        let (gx, gw) = backward(None);
        let shared = dy.at::<B>(device);
        let sums: Vec<f64> = dx.iter().zip(dy.f64()).map(|(a, b)| a + b).collect();
        let added = [dy.at::<B>(device), shared.clone()].map(|add| Output::new::<B>(backward(Some(add)).0, &sums).scale(floor));
        let mut all = vec![Output::new::<B>(gx, &dx).scale(floor), Output::new::<B>(gw, &dw).scale(spread(n))];
        all.extend(added);
        all.push(Output::new::<B>(shared, &dy.f64()));
        all
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
        let turn = |x, rotated, inverse| B::rope(x, cos.at::<B>(device), sin.at::<B>(device), rotated, inverse);
        // The last head is left as it is.
        let partly = |turned: &[f64], x: &[f64]| {
            let heads_of = |i: usize| i / head_dim % heads;
            (0..x.len()).map(|i| if heads_of(i) + 1 < heads { turned[i] } else { x[i] }).collect::<Vec<_>>()
        };
        let shared = x.at::<B>(device);
        vec![
            Output::new::<B>(turn(shared.clone(), heads, false), &y),
            Output::new::<B>(turn(dy.at::<B>(device), heads, true), &dx),
            Output::new::<B>(turn(x.at::<B>(device), heads - 1, false), &partly(&y, &x.f64())),
            Output::new::<B>(shared, &x.f64()),
        ]
    });
    checks.row("autodiff rope", &text, checks.tolerance.sum(2), || {
        let xs = x.leaf::<B, 4>(device);
        let table = |t: &Input| Tensor::from_inner(tensor::<B, 2>(t.at::<B>(device)));
        backward(ops::rope(xs.clone(), table(&cos), table(&sin)), &dy, [primitive(xs)], [&y, &dx]).into()
    });
}

fn swiglu<B: LlamaOps>([n, f]: [usize; 2], device: &B::Device, checks: &mut Checks<'_>) {
    let [mut gate, mut up, mut dy] = [(1, 8.0), (2, 1.0), (3, 1.0)].map(|(seed, scale)| Input::new(seed, &[n, f], scale));
    // Where an exponential overflows; the other factors small, so that these elements do not set the scale.
    for (i, g) in [100.0, -100.0, 0.0].into_iter().enumerate().take(n * f) {
        (gate.values[i], up.values[i], dy.values[i]) = (g, 1.0 / 16.0, 1.0 / 16.0);
    }
    let [y, dgate, dup] = reference::swiglu(&gate.f64(), &up.f64(), &dy.f64());
    let packed = Input {
        values: gate.values.chunks_exact(f).zip(up.values.chunks_exact(f)).flat_map(|(g, u)| [g, u].concat()).collect(),
        shape: vec![n, 2 * f],
    };
    let grad: Vec<f64> = dgate.chunks_exact(f).zip(dup.chunks_exact(f)).flat_map(|(g, u)| [g, u].concat()).collect();
    let shape = format!("{n} x {f}");
    let tolerance = checks.tolerance.sum(1);
    checks.row("swiglu", &shape, tolerance, || vec![Output::new::<B>(B::swiglu(packed.at::<B>(device)), &y)]);
    checks.row("swiglu_backward", &shape, tolerance, || {
        let shared = packed.at::<B>(device);
        let got = [packed.at::<B>(device), shared.clone()].map(|x| B::swiglu_backward(x, dy.at::<B>(device)));
        let mut all: Vec<Output> = got.into_iter().map(|got| Output::new::<B>(got, &grad)).collect();
        all.push(Output::new::<B>(shared, &packed.f64()));
        all
    });
    checks.row("autodiff swiglu", &shape, tolerance, || {
        let xs = packed.leaf::<B, 2>(device);
        let y_got = ops::swiglu(xs.clone().unsqueeze::<3>()).squeeze_dim::<2>(0);
        backward(y_got, &dy, [primitive(xs)], [&y, &grad]).into()
    });
}

fn embedding<B: LlamaOps>([n, dim, vocab]: [usize; 3], device: &B::Device, checks: &mut Checks<'_>) {
    let (w, dx, sum) = (Input::new(1, &[vocab, dim], 1.0), Input::new(2, &[n, dim], 1.0), Input::new(3, &[vocab, dim], 1.0));
    // Few different tokens, some of them often.
    let ids: Vec<i32> = draw(4, n).into_iter().map(|u| ((u * u * u * vocab as f32).abs() as i32).min(vocab as i32 - 1)).collect();
    let mut order: Vec<i32> = (0..n as i32).collect();
    order.sort_by_key(|&i| ids[i as usize]);
    let ints = |x: &[i32]| Tensor::<B, 1, Int>::from_data(TensorData::new(x.to_vec(), [n]), device).into_primitive();
    let rows: Vec<f64> = ids.iter().flat_map(|&id| w.f64()[id as usize * dim..][..dim].to_vec()).collect();
    let shape = format!("{n} x {dim}, vocab {vocab}");
    checks.row("embed", &shape, 0.0, || vec![Output::new::<B>(B::embed(ints(&ids), w.at::<B>(device), DType::F32), &rows)]);
    let want = reference::embedding_backward(&ids, &dx.f64(), &sum.f64());
    checks.row("embed_backward", &shape, checks.tolerance.sum(n), || {
        let shared = sum.at::<B>(device);
        let got =
            [sum.at::<B>(device), shared.clone()].map(|sum| B::embed_backward(ints(&ids), ints(&order), dx.at::<B>(device), sum));
        let mut all: Vec<Output> = got.into_iter().map(|got| Output::new::<B>(got, &want)).collect();
        all.push(Output::new::<B>(shared, &sum.f64()));
        all
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
    checks.row("linear_cross_entropy, gradients", &shape, tolerance, || {
        let sum = w.at::<B>(device);
        let scale = 0.25;
        let part = |first, w, dw| {
            let targets = ids().into_primitive();
            let whole = |stats| Ok::<_, std::convert::Infallible>(stats);
            let Ok(grads) = loss::forward_backward::<B, _>(x.at::<B>(device), w, targets, scale, dw, first, &whole);
            grads
        };
        let got = part(0, w.at::<B>(device), None);
        let scaled = |x: &[f64]| x.iter().map(|x| x * scale).collect::<Vec<_>>();
        let added: Vec<f64> = scaled(&dw).iter().zip(w.f64()).map(|(a, b)| a + b).collect();
        let more = part(0, w.at::<B>(device), Some(sum));
        vec![
            Output::new::<B>(got.loss, &loss),
            Output::new::<B>(got.dx, &scaled(&dx)),
            Output::new::<B>(got.dw, &scaled(&dw)),
            Output::new::<B>(more.dw, &added),
        ]
    });
    let logits = reference::linear(&x.f64(), &w.f64(), &vec![0.0; n * vocab], [n, dim, vocab]).into_iter().next();
    let logits: Vec<f32> = logits.expect("three results").into_iter().map(|l| l as f32).collect();
    // The reference takes the rounded logits, so that the errors are those of the operation alone.
    let exact: Vec<f64> = logits.iter().map(|&l| f64::from(l)).collect();
    let cut = vocab.div_ceil(3);
    let [left, right] = [(0, cut), (cut, vocab)].map(|(from, to)| {
        let values = logits.chunks_exact(vocab).flat_map(|row| row[from..to].to_vec()).collect();
        Input { values, shape: vec![n, to - from] }
    });
    let mut want_stats = Vec::new();
    let mut want_grad = Vec::new();
    for (row, &target) in exact.chunks_exact(vocab).zip(&targets) {
        let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row.iter().map(|l| (l - max).exp()).sum();
        let counts = usize::try_from(target).ok();
        // The target's logit of a row that does not count is nobody's concern.
        want_stats.extend([max, sum, counts.map_or(0.0, |t| row[t])]);
        want_grad.extend(row.iter().enumerate().map(|(t, l)| match counts {
            Some(target) => 0.5 * ((l - max).exp() / sum - f64::from(t == target)),
            None => 0.0,
        }));
    }
    let joined = || {
        let part = |x: &Input, first| tensor::<B, 2>(B::logit_stats(x.at::<B>(device), ids().into_primitive(), first));
        let stats = loss::join(vec![part(&left, 0), part(&right, cut)]);
        let counted = ids().greater_equal_elem(0).reshape([n, 1]);
        let picked = stats.clone().narrow(1, 2, 1).mask_fill(counted.bool_not(), 0.0);
        (stats.clone(), Tensor::cat(vec![stats.narrow(1, 0, 2), picked], 1))
    };
    checks.row("logit_stats", &shape, tolerance, || vec![Output::new::<B>(primitive(joined().1), &want_stats)]);
    checks.row("logit_grad", &shape, tolerance, || {
        let stats = joined().0;
        let grad = |x: &Input, first| {
            let stats = primitive(stats.clone());
            tensor::<B, 2>(B::logit_grad(x.at::<B>(device), stats, ids().into_primitive(), first, 0.5, DType::F32))
        };
        vec![Output::new::<B>(primitive(Tensor::cat(vec![grad(&left, 0), grad(&right, cut)], 1)), &want_grad)]
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
    // Of positive numbers, as losses are; two of them, which must be the same to the bit.
    let x = Input { values: x.values.iter().map(|x| x.abs()).collect(), ..x };
    let want = [x.f64().iter().sum::<f64>()];
    checks.row("element_sum", &format!("{n}"), checks.tolerance.sum(n), || {
        let [one, two] = [0, 1].map(|_| Output::new::<B>(B::element_sum(x.at::<B>(device)), &want));
        let same = one.got.iter().zip(&two.got).all(|(a, b)| a.to_bits() == b.to_bits());
        if same { vec![one, two] } else { vec![one, Output { got: vec![f32::NAN], ..two }] }
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
    let w_before = w.f64();
    let inputs = || [&w, &g, &m, &v].map(|x| x.at::<B>(device));
    checks.row("adamw_step", &format!("{n}"), checks.tolerance.sum(1), || {
        let [w, g, m, v] = inputs();
        let shared = w.clone();
        let got = B::adamw_step(AdamWState { w, m, v, copy: None }, g, s);
        let mut all: Vec<Output> =
            [got.w, got.m, got.v].into_iter().zip(&wants).map(|(got, want)| Output::new::<B>(got, want)).collect();
        all.push(Output::new::<B>(shared, &w_before));
        all
    });
}
