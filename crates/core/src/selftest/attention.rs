//! Attention's checks.

use burn::tensor::{Int, Tensor, TensorData};

use super::cases::{Input, backward};
use super::reference::{self, AttentionShape};
use super::{Checks, Output, draw, magnitude};
use crate::model::init::from_f32;
use crate::ops::{self, AttentionSaved, LlamaOps, Rotary, SelfAttention, primitive, tensor};

pub(super) fn attention<B: LlamaOps>(s: AttentionShape, device: &B::Device, checks: &mut Checks<'_>) {
    let AttentionShape { batch, heads, kv_heads, seq_q, seq_k, head_dim } = s;
    let (q_shape, k_shape) = ([batch, heads, seq_q, head_dim], [batch, kv_heads, seq_k, head_dim]);
    // Scores of +-6 or so: weights that are far from even.
    let (q, k) = (Input::new(1, &q_shape, 4.0), Input::new(2, &k_shape, 2.0));
    let (v, dout) = (Input::new(3, &k_shape, 1.0), Input::new(4, &q_shape, 1.0));
    let scale = 1.0 / (head_dim as f64).sqrt();
    let inputs = [q.f64(), k.f64(), v.f64(), dout.f64()];
    let [out, lse, dq, dk, dv] = reference::attention(inputs.each_ref().map(Vec::as_slice), s, None, scale);
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
        let (o, l) = B::attention_forward(q, k, v, None, scale);
        vec![Output::new::<B>(o, &out), Output::new::<B>(l, &lse)]
    });
    checks.row("attention_backward", &text, tolerance, || {
        let (q, k, v) = inputs();
        // Saved values from the reference: the errors are those of backward alone.
        let saved = |x: &[f64], width: usize| {
            let values = x.iter().map(|&x| x as f32).collect();
            from_f32::<B>(values, &[batch, heads, seq_q, width], device)
        };
        let saved = AttentionSaved { q, k, v, doc_starts: None, out: saved(&out, head_dim), lse: saved(&lse, 1), scale };
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

/// `[batch, seq, heads, head_dim]` from head-major parts `[batch, h, seq, head_dim]`, one after the other.
pub(super) fn pack(parts: &[(&[f64], usize)], [batch, seq, dim]: [usize; 3]) -> Vec<f64> {
    let mut all = Vec::new();
    for row in 0..batch * seq {
        let (b, i) = (row / seq, row % seq);
        for &(x, heads) in parts {
            all.extend((0..heads).flat_map(|h| &x[((b * heads + h) * seq + i) * dim..][..dim]));
        }
    }
    all
}

/// The heads `from..from + n` of `[batch, seq, all, head_dim]`, head-major.
pub(super) fn unpack(x: &[f64], [batch, seq, all, dim]: [usize; 4], from: usize, n: usize) -> Vec<f64> {
    let mut part = Vec::new();
    for b in 0..batch {
        for h in from..from + n {
            part.extend((0..seq).flat_map(|i| &x[((b * seq + i) * all + h) * dim..][..dim]));
        }
    }
    part
}

/// Sorted starts of documents of odd lengths, `[batch, seq]`.
pub(super) fn document_starts(batch: usize, seq: usize) -> Vec<i32> {
    let cuts = |row: usize| draw(9 + row as u64, seq).into_iter().map(|u| u > 0.9).collect::<Vec<_>>();
    let of_row = |row: usize| {
        let mut start = 0;
        cuts(row).into_iter().enumerate().map(move |(i, cut)| {
            // A whole block of keys lies before the last document.
            if cut || (row == 0 && i == seq - 1) {
                start = i as i32;
            }
            start
        })
    };
    (0..batch).flat_map(of_row).collect()
}

pub(super) fn self_attention<B: LlamaOps>(s: AttentionShape, device: &B::Device, checks: &mut Checks<'_>) {
    let AttentionShape { batch, heads, kv_heads, seq_q: seq, head_dim: dim, .. } = s;
    let all = heads + 2 * kv_heads;
    let shape = [batch, seq, all, dim];
    let (mut qkv, dout) = (Input::new(1, &shape, 2.0), Input::new(2, &[batch, seq, heads, dim], 1.0));
    // Keys and values smaller, as in `attention`.
    for (i, x) in qkv.values.iter_mut().enumerate() {
        *x /= if i / dim % all < heads { 1.0 } else { 2.0 };
    }
    let angles: Vec<f64> = draw(4, seq * dim / 2).into_iter().map(|u| f64::from(u) * std::f64::consts::PI).collect();
    let table = |f: fn(f64) -> f64| Input { values: angles.iter().map(|&a| f(a) as f32).collect(), shape: vec![seq, dim / 2] };
    let (cos, sin) = (table(f64::cos), table(f64::sin));
    let opposite: Vec<f64> = angles.iter().map(|a| -a).collect();
    let scale = 1.0 / (dim as f64).sqrt();
    let part = |from, n| unpack(&qkv.f64(), shape, from, n);
    let turn = |x: &[f64], angles: &[f64], heads: usize| {
        let packed = pack(&[(x, heads)], [batch, seq, dim]);
        unpack(&reference::rope(&packed, angles, [seq, heads, dim / 2]), [batch, seq, heads, dim], 0, heads)
    };
    let (q, k) = (turn(&part(0, heads), &angles, heads), turn(&part(heads, kv_heads), &angles, kv_heads));
    let v = part(heads + kv_heads, kv_heads);
    let rotated = pack(&[(&q, heads), (&k, kv_heads), (&v, kv_heads)], [batch, seq, dim]);
    let go = unpack(&dout.f64(), [batch, seq, heads, dim], 0, heads);
    let starts = document_starts(batch, seq);
    for starts in [None, Some(&starts[..])] {
        let [out, lse, dq, dk, dv] = reference::attention([&q, &k, &v, &go], s, starts, scale);
        let out = pack(&[(&out, heads)], [batch, seq, dim]);
        let grad = pack(&[(&dq, heads), (&dk, kv_heads), (&dv, kv_heads)], [batch, seq, dim]);
        let turned_back = [turn(&dq, &opposite, heads), turn(&dk, &opposite, kv_heads)];
        let leaf_grad = pack(&[(&turned_back[0], heads), (&turned_back[1], kv_heads), (&dv, kv_heads)], [batch, seq, dim]);
        let documents = if starts.is_some() { ", documents" } else { "" };
        let text = format!("{batch} x {heads}/{kv_heads} heads of {dim}, {seq}{documents}");
        // One rounding more than `attention`, that of the rotation, on each side of a score.
        let tolerance = checks.tolerance.softmax(dim + seq, magnitude(&lse).max(magnitude(&q) * magnitude(&k) * scale));
        let floor = magnitude(&dv) / 4.0;
        let ints = || starts.map(|x| Tensor::<B, 2, Int>::from_data(TensorData::new(x.to_vec(), [batch, seq]), device));
        let settings = || SelfAttention { kv_heads, doc_starts: ints().map(Tensor::into_primitive), scale };
        let rotary = || Rotary { cos: cos.at::<B>(device), sin: sin.at::<B>(device) };
        let at = |x: &[f64], shape: &[usize]| from_f32::<B>(x.iter().map(|&x| x as f32).collect(), shape, device);
        checks.row("self_attention", &text, tolerance, || {
            vec![Output::new::<B>(B::self_attention(qkv.at::<B>(device), rotary(), settings()), &out)]
        });
        checks.row("self_attention_forward", &text, tolerance, || {
            let (o, l) = B::self_attention_forward(at(&rotated, &shape), settings());
            vec![Output::new::<B>(o, &out), Output::new::<B>(l, &lse)]
        });
        checks.row("self_attention_backward", &text, tolerance, || {
            let saved = (at(&out, &[batch, seq, heads, dim]), at(&lse, &[batch, heads, seq, 1]));
            let got = B::self_attention_backward(at(&rotated, &shape), settings(), saved.0, saved.1, dout.at::<B>(device));
            vec![Output::new::<B>(got, &grad).scale(floor)]
        });
        checks.row("autodiff self_attention", &text, tolerance * std::f64::consts::SQRT_2, || {
            let xs = qkv.leaf::<B, 4>(device);
            let table = |t: &Input| Tensor::from_inner(tensor::<B, 2>(t.at::<B>(device)));
            let starts = ints().map(Tensor::from_inner);
            let y = ops::self_attention(xs.clone(), table(&cos), table(&sin), kv_heads, starts);
            let [y, g] = backward(y, &dout, [primitive(xs)], [&out, &leaf_grad]);
            vec![y, g.scale(floor)]
        });
    }
}
