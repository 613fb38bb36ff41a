//! Products that are more than that: of what is computed again in backward, or over what is no longer needed.

use burn::tensor::DType;

use super::cases::{Input, backward, spread};
use super::{Checks, Output, magnitude, reference};
use crate::ops::{self, LlamaOps, primitive};

/// The gradient of a norm's input is a difference of terms of the size of dy w / rms, which cancel where rows are short.
pub(super) fn norm_floor(x: &Input, w: &Input, dy: &[f64], eps: f64) -> f64 {
    let d = w.values.len();
    x.f64().chunks_exact(d).fold(0.0, |most: f64, row| {
        let rms = (row.iter().map(|v| v * v).sum::<f64>() / d as f64 + eps).sqrt();
        most.max(magnitude(dy) * magnitude(&w.f64()) / rms / 4.0)
    })
}

/// `old` is `[n, d_out]`, as `y` is.
pub(super) fn project_over<B: LlamaOps>([x, w, old]: [&Input; 3], y: &[f64], device: &B::Device, checks: &mut Checks<'_>) {
    let ([n, d_in], d_out) = ([x.shape[0], x.shape[1]], w.shape[0]);
    checks.row("project_over", &format!("{n} x {d_in} -> {d_out}"), checks.tolerance.sum(d_in), || {
        // Over nothing, over what may be written to, over what is shared, and over what has another shape.
        let shared = old.at::<B>(device);
        let other = Input::new(4, &[n + 1, d_out], 1.0).at::<B>(device);
        let mut all: Vec<Output> = [None, Some(old.at::<B>(device)), Some(shared.clone()), Some(other)]
            .map(|old| B::project_over(old, x.at::<B>(device), w.at::<B>(device), DType::F32))
            .map(|got| Output::new::<B>(got, y).scale(spread(d_in)))
            .into();
        all.push(Output::new::<B>(shared, &old.f64()));
        all
    });
}

pub(super) fn norm_project<B: LlamaOps>([n, d, d_out]: [usize; 3], device: &B::Device, checks: &mut Checks<'_>) {
    const EPS: f64 = 1e-5;
    let (x, gain) = (Input::new(1, &[n, d], 1.0), Input::new(2, &[d], 2.0));
    let (w, dy) = (Input::new(3, &[d_out, d], 1.0), Input::new(4, &[n, d_out], 1.0));
    let normed = reference::rms_norm(&x.f64(), &gain.f64(), &vec![0.0; n * d], EPS).into_iter().next();
    let [y, dnormed, dw] = reference::linear(&normed.expect("three results"), &w.f64(), &dy.f64(), [n, d, d_out]);
    let [_, dx, dgain] = reference::rms_norm(&x.f64(), &gain.f64(), &dnormed, EPS);
    let shape = format!("{n} x {d} -> {d_out}");
    let tolerance = checks.tolerance.sum(n.max(d).max(d_out));
    checks.row("norm_project", &shape, tolerance, || {
        let got = B::norm_project(x.at::<B>(device), gain.at::<B>(device), w.at::<B>(device), EPS, DType::F32);
        vec![Output::new::<B>(got, &y).scale(spread(d))]
    });
    checks.row("autodiff norm_project", &shape, tolerance, || {
        let (xs, gains, ws) = (x.leaf::<B, 2>(device), gain.leaf::<B, 1>(device), w.leaf::<B, 2>(device));
        let out = ops::norm_linear(xs.clone().unsqueeze::<3>(), gains.clone(), ws.clone(), EPS).squeeze_dim::<2>(0);
        let [got, gx, ggain, gw] = backward(out, &dy, [primitive(xs), primitive(gains), primitive(ws)], [&y, &dx, &dgain, &dw]);
        let floor = norm_floor(&x, &gain, &dnormed, EPS);
        vec![got.scale(spread(d)), gx.scale(floor), ggain.scale(spread(n) * spread(d_out)), gw.scale(spread(n))]
    });
}

pub(super) fn swiglu_project<B: LlamaOps>([n, f, d_out]: [usize; 3], device: &B::Device, checks: &mut Checks<'_>) {
    let (gate_up, w, dy) = (Input::new(1, &[n, 2 * f], 4.0), Input::new(2, &[d_out, f], 1.0), Input::new(3, &[n, d_out], 1.0));
    let half = |at: usize| gate_up.f64().chunks_exact(2 * f).flat_map(|row| row[at..at + f].to_vec()).collect::<Vec<_>>();
    let (gate, up) = (half(0), half(f));
    let swiglu = reference::swiglu(&gate, &up, &vec![0.0; n * f]).into_iter().next();
    let [y, dswiglu, dw] = reference::linear(&swiglu.expect("three results"), &w.f64(), &dy.f64(), [n, f, d_out]);
    let [_, dgate, dup] = reference::swiglu(&gate, &up, &dswiglu);
    let grad: Vec<f64> = dgate.chunks_exact(f).zip(dup.chunks_exact(f)).flat_map(|(g, u)| [g, u].concat()).collect();
    let shape = format!("{n} x {f} -> {d_out}");
    let tolerance = checks.tolerance.sum(n.max(f).max(d_out));
    checks.row("swiglu_project", &shape, tolerance, || {
        let got = B::swiglu_project(gate_up.at::<B>(device), w.at::<B>(device), DType::F32);
        vec![Output::new::<B>(got, &y).scale(spread(f))]
    });
    checks.row("autodiff swiglu_project", &shape, tolerance, || {
        let (xs, ws) = (gate_up.leaf::<B, 2>(device), w.leaf::<B, 2>(device));
        let out = ops::swiglu_linear(xs.clone().unsqueeze::<3>(), ws.clone()).squeeze_dim::<2>(0);
        let [got, gx, gw] = backward(out, &dy, [primitive(xs), primitive(ws)], [&y, &grad, &dw]);
        vec![got.scale(spread(f)), gx.scale(spread(d_out)), gw.scale(spread(n))]
    });
}
