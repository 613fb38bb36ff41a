//! Operations on bfloat16 and float16: float32 inside, so that an error is that of one rounding of the result, and of rounded
//! intermediate values where an operation stores them.

use burn::tensor::{DType, Int, Tensor, TensorData, TensorMetadata};

use super::cases::Input;
use super::reference::{self, AttentionShape};
use super::{Checks, Output, magnitude};
use crate::backend::context::{Scope, choices};
use crate::backend::{Choices, Gemm};
use crate::model::init::from_f32;
use crate::ops::{AdamWScalars, AdamWState, LlamaOps, SelfAttention, cast};

/// Half a unit in the last place relative to the number, at most (just above a power of two): 8 and 11 significant bits.
fn rounding(dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => 1.0 / (1 << 8) as f64,
        _ => 1.0 / (1 << 11) as f64,
    }
}

/// Inputs with 8 significant bits, which both types hold exactly.
fn input(seed: u64, shape: &[usize], scale: f32) -> Input {
    let mut x = Input::new(seed, shape, 1.0);
    x.values.iter_mut().for_each(|x| *x = (*x * 128.0).round() / 128.0 * scale);
    x
}

pub(super) fn check<B: LlamaOps>([seq, dim]: [usize; 2], device: &B::Device, checks: &mut Checks<'_>) {
    for (dtype, name) in [(DType::BF16, "bf16"), (DType::F16, "f16")] {
        if B::supports_dtype(device, dtype) {
            of_type::<B>([seq, dim], dtype, name, device, checks);
        }
    }
}

fn of_type<B: LlamaOps>([seq, dim]: [usize; 2], dtype: DType, name: &str, device: &B::Device, checks: &mut Checks<'_>) {
    let at = |x: &Input| cast::<B>(x.at::<B>(device), dtype);
    let full = |x: &[f64], shape: &[usize]| from_f32::<B>(x.iter().map(|&x| x as f32).collect(), shape, device);
    let narrow = |x: &[f64], shape: &[usize]| cast::<B>(full(x, shape), dtype);
    // The result's rounding is half a unit of its own size, which is at most that of the largest.
    let one = rounding(dtype) * 1.01;
    let (n, d_in, d_out) = (seq, 2 * dim, 3 * dim);
    let (x, w, dy) = (input(1, &[n, d_in], 1.0), input(2, &[d_out, d_in], 1.0), input(3, &[n, d_out], 1.0));
    let [y, dx, dw] = reference::linear(&x.f64(), &w.f64(), &dy.f64(), [n, d_in, d_out]);
    let shape = format!("{n} x {d_in} -> {d_out}");
    checks.row(&format!("{name} project"), &shape, one + checks.tolerance.sum(d_in), || {
        let got = B::project(at(&x), at(&w), dtype);
        assert_eq!(got.dtype(), dtype);
        vec![Output::new::<B>(got, &y)]
    });
    // float32 out of narrow operands: nothing is rounded on the way.
    checks.row(&format!("{name} project to float32"), &shape, checks.tolerance.sum(d_in), || {
        vec![Output::new::<B>(B::project(at(&x), at(&w), DType::F32), &y)]
    });
    checks.row(&format!("{name} project_add"), &shape, checks.tolerance.sum(d_in) + one, || {
        let want: Vec<f64> = y.iter().zip(dy.f64()).map(|(a, b)| a + b).collect();
        vec![Output::new::<B>(B::project_add(dy.at::<B>(device), at(&x), at(&w)), &want)]
    });
    checks.row(&format!("{name} project_backward_input"), &shape, one + checks.tolerance.sum(d_out), || {
        vec![Output::new::<B>(B::project_backward_input(at(&dy), at(&w), dtype), &dx)]
    });
    checks.row(&format!("{name} project_backward_weight"), &shape, checks.tolerance.sum(n), || {
        let sums: Vec<f64> = dw.iter().zip(w.f64()).map(|(a, b)| a + b).collect();
        let added = B::project_backward_weight(at(&dy), at(&x), Some(w.at::<B>(device)));
        assert_eq!(added.dtype(), DType::F32);
        vec![Output::new::<B>(B::project_backward_weight(at(&dy), at(&x), None), &dw), Output::new::<B>(added, &sums)]
    });

    let (gain, dnormed) = (input(4, &[d_in], 2.0), input(5, &[n, d_in], 1.0));
    let [normed, dx, dgain] = reference::rms_norm(&x.f64(), &gain.f64(), &dnormed.f64(), 1e-5);
    let tolerance = checks.tolerance.sum(n.max(d_in));
    checks.row(&format!("{name} rms_norm"), &shape, one + tolerance, || {
        vec![Output::new::<B>(B::rms_norm(x.at::<B>(device), gain.at::<B>(device), 1e-5, dtype), &normed)]
    });
    checks.row(&format!("{name} rms_norm_backward"), &shape, tolerance, || {
        let add = x.at::<B>(device);
        let sums: Vec<f64> = dx.iter().zip(x.f64()).map(|(a, b)| a + b).collect();
        let (gx, gw) = B::rms_norm_backward(x.at::<B>(device), gain.at::<B>(device), at(&dnormed), 1e-5, Some(add));
        let floor = magnitude(&dgain) / (n as f64).sqrt();
        vec![Output::new::<B>(gx, &sums).scale(floor), Output::new::<B>(gw, &dgain)]
    });

    // The normed rows are rounded, then the product is.
    checks.row(&format!("{name} norm_project"), &shape, 2.0 * one + tolerance, || {
        let [y, ..] = reference::linear(&normed, &w.f64(), &vec![0.0; n * d_out], [n, d_in, d_out]);
        vec![Output::new::<B>(B::norm_project(x.at::<B>(device), gain.at::<B>(device), at(&w), 1e-5, dtype), &y)]
    });

    let (gate_up, dy) = (input(6, &[n, 2 * dim], 4.0), input(7, &[n, dim], 1.0));
    let half = |at: usize| gate_up.f64().chunks_exact(2 * dim).flat_map(|r| r[at..at + dim].to_vec()).collect::<Vec<_>>();
    let [y, dgate, dup] = reference::swiglu(&half(0), &half(dim), &dy.f64());
    let grad: Vec<f64> = dgate.chunks_exact(dim).zip(dup.chunks_exact(dim)).flat_map(|(g, u)| [g, u].concat()).collect();
    let text = format!("{n} x {dim}");
    checks.row(&format!("{name} swiglu"), &text, one + checks.tolerance.sum(1), || {
        vec![Output::new::<B>(B::swiglu(at(&gate_up)), &y)]
    });
    checks.row(&format!("{name} swiglu_backward"), &text, one + checks.tolerance.sum(1), || {
        vec![Output::new::<B>(B::swiglu_backward(at(&gate_up), at(&dy)), &grad)]
    });

    let (heads, kv_heads, batch) = (4, 2, 2);
    let s = AttentionShape { batch, heads, kv_heads, seq_q: seq, seq_k: seq, head_dim: dim };
    let all = heads + 2 * kv_heads;
    let (qkv, dout) = (input(8, &[batch, seq, all, dim], 1.0), input(9, &[batch, seq, heads, dim], 1.0));
    let scale = 1.0 / (dim as f64).sqrt();
    let unpack = super::attention::unpack;
    let part = |from, n| unpack(&qkv.f64(), [batch, seq, all, dim], from, n);
    let go = unpack(&dout.f64(), [batch, seq, heads, dim], 0, heads);
    let documents = super::attention::document_starts(batch, seq);
    let (q, k, v) = (part(0, heads), part(heads, kv_heads), part(heads + kv_heads, kv_heads));
    let pack = super::attention::pack;
    for starts in [None, Some(&documents)] {
        let [out, lse, dq, dk, dv] = reference::attention([&q, &k, &v, &go], s, starts.map(Vec::as_slice), scale);
        let out = pack(&[(&out, heads)], [batch, seq, dim]);
        let grad = pack(&[(&dq, heads), (&dk, kv_heads), (&dv, kv_heads)], [batch, seq, dim]);
        let text =
            format!("{batch} x {heads}/{kv_heads} heads of {dim}, {seq}{}", if starts.is_some() { ", documents" } else { "" });
        let settings = || {
            let of = |starts: &Vec<i32>| TensorData::new(starts.clone(), [batch, seq]);
            let starts = starts.map(|s| Tensor::<B, 2, Int>::from_data(of(s), device).into_primitive());
            SelfAttention { kv_heads, doc_starts: starts, scale }
        };
        // Weights and their gradients may be rounded before the second product, as tensor cores want them; independent roundings of
        // the terms of a sum stay below one rounding of the sum's largest possible size.
        checks.row(&format!("{name} self_attention_forward"), &text, 3.0 * one, || {
            let (o, l) = B::self_attention_forward(at(&qkv), settings());
            assert_eq!((o.dtype(), l.dtype()), (dtype, DType::F32));
            vec![Output::new::<B>(o, &out), Output::new::<B>(l, &lse)]
        });
        checks.row(&format!("{name} self_attention_backward"), &text, 6.0 * one, || {
            let saved = (narrow(&out, &[batch, seq, heads, dim]), full(&lse, &[batch, heads, seq, 1]));
            let got = B::self_attention_backward(at(&qkv), settings(), saved.0, saved.1, at(&dout));
            vec![Output::new::<B>(got, &grad)]
        });
    }

    let rounded = rounding(dtype) * 1.01 + checks.tolerance.sum(1);
    checks.row(&format!("{name} adamw_step, copy"), &format!("{}", d_out * d_in), rounded, || {
        let s = AdamWScalars {
            lr: 0.25,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            grad_scale: 1.0,
            bias1: 0.1,
            bias2: 0.05,
        };
        let zeros = || full(&vec![0.0; d_out * d_in], &[d_out, d_in]);
        let state = AdamWState { w: w.at::<B>(device), m: zeros(), v: zeros(), copy: Some(at(&w)) };
        let state = B::adamw_step(state, w.at::<B>(device), s);
        let none = vec![0.0; d_out * d_in];
        let [want, ..] = reference::adamw(&w.f64(), &w.f64(), &none, &none, s);
        let mut copy = Output::new::<B>(cast::<B>(state.copy.expect("a copy went in"), DType::F32), &want);
        // It is the new parameter, rounded, to the bit.
        let parameter = Output::new::<B>(state.w, &want);
        for (copy, w) in copy.got.iter_mut().zip(&parameter.got) {
            let exact = if dtype == DType::BF16 { half::bf16::from_f32(*w).to_f32() } else { half::f16::from_f32(*w).to_f32() };
            if *copy != exact {
                *copy = f32::NAN;
            }
        }
        vec![copy, parameter]
    });
}

pub(super) fn products<B: LlamaOps>([m, k, n]: [usize; 3], device: &B::Device, checks: &mut Checks<'_>) {
    let of_device = B::gemms(device).into_iter().filter(|(_, missing)| missing.is_none()).map(|(gemm, _)| gemm);
    // Burn's own choice is there to be measured: its double-buffered routines are wrong at K = 288.
    let mut routines: Vec<Gemm> = of_device.filter(|gemm| *gemm != Gemm::Burn).collect();
    if routines.is_empty() {
        routines.push(Gemm::Auto);
    }
    let (a, b) = (input(1, &[m, k], 1.0), input(2, &[k, n], 1.0));
    let want = reference::matmul(&a.f64(), &b.f64(), [m, k, n]);
    let turned = |x: &Input, [rows, columns]: [usize; 2]| Input {
        values: (0..rows * columns).map(|i| x.values[i % rows * columns + i / rows]).collect(),
        shape: vec![columns, rows],
    };
    let (a_turned, b_turned) = (turned(&a, [m, k]), turned(&b, [k, n]));
    let there = input(3, &[m, n], 1.0);
    let sums: Vec<f64> = want.iter().zip(there.f64()).map(|(x, y)| x + y).collect();
    for (dtype, name) in [(DType::BF16, "bf16"), (DType::F16, "f16")] {
        if !B::supports_dtype(device, dtype) {
            continue;
        }
        let at = |x: &Input| cast::<B>(x.at::<B>(device), dtype);
        let (rounded, exact) = (rounding(dtype) * 1.01 + checks.tolerance.sum(k), checks.tolerance.sum(k));
        for &gemm in &routines {
            let chosen = Scope::of_thread().with_choices(Choices { gemm, ..choices() });
            let mut row = |what: &str, tolerance: f64, outputs: &dyn Fn() -> Vec<Output>| {
                let shape = format!("{m} x {k} x {n}, {gemm}");
                let outputs = || chosen.enter(outputs);
                checks.row_unless_refused(&format!("{name} {what}"), &shape, tolerance, gemm != Gemm::Auto, outputs);
            };
            row("project", rounded, &|| vec![Output::new::<B>(B::project(at(&a), at(&b_turned), dtype), &want)]);
            row("project to float32", exact, &|| {
                let added = B::project_add(there.at::<B>(device), at(&a), at(&b_turned));
                let plain = B::project(at(&a), at(&b_turned), DType::F32);
                vec![Output::new::<B>(plain, &want), Output::new::<B>(added, &sums)]
            });
            row("project_backward_input", rounded, &|| {
                vec![Output::new::<B>(B::project_backward_input(at(&a), at(&b), dtype), &want)]
            });
            row("project_backward_weight", exact, &|| {
                let plain = B::project_backward_weight(at(&a_turned), at(&b), None);
                let added = B::project_backward_weight(at(&a_turned), at(&b), Some(there.at::<B>(device)));
                vec![Output::new::<B>(plain, &want), Output::new::<B>(added, &sums)]
            });
        }
    }
}
