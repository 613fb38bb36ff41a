//! Every operation once more, in float64, as plain loops from the formulas: what the backends are compared with. Nothing is
//! shared with [`crate::ops`]. Tensors are row-major slices.

use crate::ops::{AdamWScalars, SampleRows};

/// `a [m, k] x b [k, n] -> [m, n]`.
pub fn matmul(a: &[f64], b: &[f64], [m, k, n]: [usize; 3]) -> Vec<f64> {
    let mut out = vec![0.0; m * n];
    for i in 0..m {
        for j in 0..k {
            for l in 0..n {
                out[i * n + l] += a[i * k + j] * b[j * n + l];
            }
        }
    }
    out
}

/// `x [m, n] -> [n, m]`.
pub fn transpose(x: &[f64], [m, n]: [usize; 2]) -> Vec<f64> {
    (0..m * n).map(|i| x[i % m * n + i / m]).collect()
}

/// `y = x W^T` and, for its gradient `dy`, `(y, dx, dw)`; `x [n, d_in]`, `w [d_out, d_in]`, `dy [n, d_out]`.
pub fn linear(x: &[f64], w: &[f64], dy: &[f64], [n, d_in, d_out]: [usize; 3]) -> [Vec<f64>; 3] {
    let y = matmul(x, &transpose(w, [d_out, d_in]), [n, d_in, d_out]);
    let dx = matmul(dy, w, [n, d_out, d_in]);
    let dw = matmul(&transpose(dy, [n, d_out]), x, [d_out, n, d_in]);
    [y, dx, dw]
}

/// RMSNorm and its gradients: `(y, dx, dw)`; `x`, `dy [n, d]`, `w [d]`.
pub fn rms_norm(x: &[f64], w: &[f64], dy: &[f64], eps: f64) -> [Vec<f64>; 3] {
    let d = w.len();
    let (mut y, mut dx, mut dw) = (Vec::new(), Vec::new(), vec![0.0; d]);
    for (x, dy) in x.chunks_exact(d).zip(dy.chunks_exact(d)) {
        let r = 1.0 / (x.iter().map(|v| v * v).sum::<f64>() / d as f64 + eps).sqrt();
        // d r / d x_j = - r^3 x_j / d
        let dr: f64 = (0..d).map(|i| dy[i] * w[i] * x[i]).sum();
        for i in 0..d {
            y.push(x[i] * r * w[i]);
            dx.push(dy[i] * w[i] * r - dr * r.powi(3) * x[i] / d as f64);
            dw[i] += dy[i] * x[i] * r;
        }
    }
    [y, dx, dw]
}

/// Each adjacent pair of `x [batch, seq, heads, 2 half]` as a complex number, turned by its angle; `angles [seq, half]`.
pub fn rope(x: &[f64], angles: &[f64], [seq, heads, half]: [usize; 3]) -> Vec<f64> {
    let mut y = Vec::with_capacity(x.len());
    for (i, pair) in x.chunks_exact(2).enumerate() {
        let (sin, cos) = angles[i / (half * heads) % seq * half + i % half].sin_cos();
        y.extend([pair[0] * cos - pair[1] * sin, pair[1] * cos + pair[0] * sin]);
    }
    y
}

/// `silu(gate) * up` and its gradients: `(y, dgate, dup)`.
pub fn swiglu(gate: &[f64], up: &[f64], dy: &[f64]) -> [Vec<f64>; 3] {
    let (mut y, mut dgate, mut dup) = (Vec::new(), Vec::new(), Vec::new());
    for ((&g, &u), &dy) in gate.iter().zip(up).zip(dy) {
        let s = 1.0 / (1.0 + (-g).exp());
        y.push(g * s * u);
        dgate.push(dy * u * (s + g * s * (1.0 - s)));
        dup.push(dy * g * s);
    }
    [y, dgate, dup]
}

/// Sizes of an attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// Sequences.
    pub batch: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; a divisor of `heads`.
    pub kv_heads: usize,
    /// Queries; the last one sees the last key.
    pub seq_q: usize,
    /// Keys, at least `seq_q`.
    pub seq_k: usize,
    /// Width of a head.
    pub head_dim: usize,
}

/// Causal attention and its gradients: `[out, lse, dq, dk, dv]`; `q`, `dout [batch, heads, seq_q, head_dim]`,
/// `k`, `v [batch, kv_heads, seq_k, head_dim]`, `lse [batch, heads, seq_q]`. `starts [batch, seq_q]`: the first key that each query
/// sees; `None`: the first of all.
pub fn attention([q, k, v, dout]: [&[f64]; 4], s: AttentionShape, starts: Option<&[i32]>, scale: f64) -> [Vec<f64>; 5] {
    let d = s.head_dim;
    let (mut out, mut lse) = (vec![0.0; q.len()], Vec::new());
    let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    for (row, (qi, go)) in q.chunks_exact(d).zip(dout.chunks_exact(d)).enumerate() {
        let (b, h, i) = (row / (s.heads * s.seq_q), row / s.seq_q % s.heads, row % s.seq_q);
        let group = (b * s.kv_heads + h / (s.heads / s.kv_heads)) * s.seq_k;
        let seen = s.seq_k - s.seq_q + i + 1;
        let from = starts.map_or(0, |starts| starts[b * s.seq_q + i] as usize);
        let key = |j: usize| (group + from + j) * d..(group + from + j + 1) * d;
        let seen = seen - from;
        let scores: Vec<f64> = (0..seen).map(|j| scale * dot(qi, &k[key(j)])).collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|x| (x - max).exp()).sum();
        lse.push(max + sum.ln());
        let p: Vec<f64> = scores.iter().map(|x| (x - max).exp() / sum).collect();
        let dp: Vec<f64> = (0..seen).map(|j| dot(go, &v[key(j)])).collect();
        let mean = dot(&p, &dp);
        for j in 0..seen {
            let ds = p[j] * (dp[j] - mean) * scale;
            for (c, at) in key(j).enumerate() {
                out[row * d + c] += p[j] * v[at];
                dv[at] += p[j] * go[c];
                dq[row * d + c] += ds * k[at];
                dk[at] += ds * qi[c];
            }
        }
    }
    [out, lse, dq, dk, dv]
}

/// Sum of the cross-entropy of `softmax(x W^T)` and its gradients: `[loss, dx, dw]`; `x [n, d]`, `w [v, d]`, `targets [n]`,
/// of which negative ones do not count.
pub fn cross_entropy(x: &[f64], w: &[f64], targets: &[i32], dim: usize) -> [Vec<f64>; 3] {
    let vocab = w.len() / dim;
    let (mut loss, mut dx, mut dw) = (0.0, vec![0.0; x.len()], vec![0.0; w.len()]);
    for (row, &target) in targets.iter().enumerate() {
        let Ok(target) = usize::try_from(target) else { continue };
        let x = &x[row * dim..(row + 1) * dim];
        let logits: Vec<f64> = (0..vocab).map(|t| x.iter().zip(&w[t * dim..]).map(|(a, b)| a * b).sum()).collect();
        let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = logits.iter().map(|l| (l - max).exp()).sum();
        loss += max + sum.ln() - logits[target];
        for t in 0..vocab {
            let g = (logits[t] - max).exp() / sum - f64::from(t == target);
            for c in 0..dim {
                dx[row * dim + c] += g * w[t * dim + c];
                dw[t * dim + c] += g * x[c];
            }
        }
    }
    [vec![loss], dx, dw]
}

/// `sum [v, d]` with each row of `dx [n, d]` added at its token's row.
pub fn embedding_backward(ids: &[i32], dx: &[f64], sum: &[f64]) -> Vec<f64> {
    let (mut sum, d) = (sum.to_vec(), dx.len() / ids.len());
    for (i, &id) in ids.iter().enumerate() {
        for c in 0..d {
            sum[id as usize * d + c] += dx[i * d + c];
        }
    }
    sum
}

/// One AdamW step: `[w, m, v]` after it.
pub fn adamw(w: &[f64], grad: &[f64], m: &[f64], v: &[f64], s: AdamWScalars) -> [Vec<f64>; 3] {
    let mut out = [Vec::new(), Vec::new(), Vec::new()];
    for i in 0..w.len() {
        let g = grad[i] * s.grad_scale;
        let m = s.beta1 * m[i] + (1.0 - s.beta1) * g;
        let v = s.beta2 * v[i] + (1.0 - s.beta2) * g * g;
        out[0].push(w[i] - s.lr * (m / s.bias1 / ((v / s.bias2).sqrt() + s.eps) + s.weight_decay * w[i]));
        out[1].push(m);
        out[2].push(v);
    }
    out
}

/// The token that row `i`'s settings draw from its logits; see [`SampleRows`].
pub fn sample(logits: &[f64], rows: &SampleRows, i: usize) -> usize {
    let mut ranked: Vec<usize> = (0..logits.len()).collect();
    // Stable: of equal ones the smaller id first.
    ranked.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
    let temperature = f64::from(rows.temperature[i]);
    if temperature == 0.0 {
        return ranked[0];
    }
    let p = |kept: &[usize]| {
        let e: Vec<f64> = kept.iter().map(|t| ((logits[*t] - logits[ranked[0]]) / temperature).exp()).collect();
        let sum: f64 = e.iter().sum();
        e.into_iter().map(|e| e / sum).collect::<Vec<f64>>()
    };
    let mut kept = ranked[..logits.len().min(rows.top_k[i] as usize)].to_vec();
    let mut sum = 0.0;
    let mut most = 0;
    for p in p(&kept) {
        most += 1;
        sum += p;
        if sum >= f64::from(rows.top_p[i]) && rows.top_p[i] < 1.0 {
            break;
        }
    }
    kept.truncate(most);
    let all = p(&kept);
    kept = kept.iter().zip(&all).filter(|(_, p)| **p >= f64::from(rows.min_p[i]) * all[0]).map(|(t, _)| *t).collect();
    kept.sort_unstable();
    let mut rest = f64::from(rows.uniform[i]);
    let mut token = kept[0];
    for (t, p) in kept.iter().zip(p(&kept)) {
        if p > 0.0 {
            token = *t;
        }
        rest -= p;
        if rest < 0.0 {
            break;
        }
    }
    token
}
