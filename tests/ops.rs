//! Every operation of `LlamaOps`, on every backend compiled in, against float64 loops, and the loops' gradients against
//! finite differences. The checks and their tolerances are those of `recua::selftest`; here they run over many more shapes.

use std::collections::BTreeMap;

use proptest::prelude::*;
use recua::backend::BackendName;
use recua::ops::AdamWScalars;
use recua::selftest::reference::{self, AttentionShape};
use recua::selftest::{self, CacheShape, Case, Filter, Row, Tolerance};

pub(crate) fn backends() -> Vec<BackendName> {
    let compiled =
        [(cfg!(feature = "flex"), "flex"), (cfg!(feature = "ndarray"), "ndarray"), (cfg!(feature = "wgpu"), "wgpu:cpu")];
    compiled.into_iter().filter(|(yes, _)| *yes).map(|(_, name)| name.parse().unwrap()).collect()
}

/// Fails with every row that failed; else prints the largest error of each operation.
fn assert_passed(backend: &BackendName, rows: &[Row]) {
    let failed: Vec<String> = rows.iter().filter(|r| !r.passed).map(Row::to_string).collect();
    let mut worst: BTreeMap<&str, &Row> = BTreeMap::new();
    for row in rows {
        let entry = worst.entry(&row.name).or_insert(row);
        if row.max_error / row.tolerance.max(1e-30) > entry.max_error / entry.tolerance.max(1e-30) {
            *entry = row;
        }
    }
    for row in worst.values() {
        println!("{backend}: {row}");
    }
    assert!(failed.is_empty(), "{backend}: {} of {} rows failed:\n{}", failed.len(), rows.len(), failed.join("\n"));
}

/// The sizes at which kernels go wrong: one, two, one less and one more than a block, odd multiples of 32 and 16.
fn shapes() -> Vec<Case> {
    let mut cases = Vec::new();
    for k in [1, 31, 48, 80, 96, 160, 288, 2048] {
        cases.push(Case::TrueFloat32 { k });
    }
    for (m, n) in [(1, 1), (1, 288), (2, 7), (63, 65), (257, 33)] {
        for k in [1, 48, 80, 96, 288] {
            cases.push(Case::Matmul { batch: 1, m, k, n });
            cases.push(Case::Linear { n: m, d_in: k, d_out: n });
        }
        cases.push(Case::Matmul { batch: 3, m, k: 80, n });
    }
    for n in [1, 2, 63, 65, 257] {
        for d in [1, 7, 64, 288] {
            cases.push(Case::RmsNorm { n, d });
            cases.push(Case::SwiGlu { n, f: d });
            cases.push(Case::NormProject { n, d, d_out: 33 });
            cases.push(Case::SwiGluProject { n, f: d, d_out: 33 });
            cases.push(Case::AdamW { n: n * d });
            cases.push(Case::SquareSum { n: n * d });
        }
        for head_dim in [32, 64, 80, 128] {
            cases.push(Case::Rope { batch: 2, seq: n, heads: 3, head_dim });
            let shape = AttentionShape { batch: 1, heads: 2, kv_heads: 2, seq_q: n, seq_k: n, head_dim };
            cases.push(Case::Attention(shape));
            cases.push(Case::Attention(AttentionShape { seq_k: n + 66, kv_heads: 1, ..shape }));
            cases.push(Case::SelfAttention(AttentionShape { heads: 4, ..shape }));
        }
        cases.push(Case::CrossEntropy { n, dim: 48, vocab: 7 });
    }
    for (n, d_out) in [(1, 1), (1, 288), (2, 7), (5, 33), (8, 96), (9, 65), (16, 33), (63, 65)] {
        for d_in in [1, 7, 48, 288, 1024] {
            cases.push(Case::ProjectRows { n, d_in, d_out });
        }
    }
    // Every mix of lengths, 16 at once; chunks; heads that share keys; more keys than one cube takes.
    for (sequences, longest, chunk, heads, kv_heads, head_dim) in [
        (1, 1, 1, 1, 1, 2),
        (2, 33, 7, 3, 1, 10),
        (16, 300, 0, 4, 2, 32),
        (16, 300, 1, 2, 2, 32),
        (16, 300, 7, 4, 1, 16),
        (3, 300, 64, 8, 1, 80),
        (2, 600, 64, 2, 1, 128),
    ] {
        cases.push(Case::CachedAttention(CacheShape { sequences, longest, chunk, heads, kv_heads, head_dim }));
    }
    for (n, vocab) in [(1, 1), (2, 2), (420, 257)] {
        cases.push(Case::Sample { n, vocab });
    }
    // More than one block of rows, the last one short: 4096 tokens a row, 2^22 logits a block.
    cases.push(Case::CrossEntropy { n: 1030, dim: 8, vocab: 4096 });
    cases.push(Case::CrossEntropy { n: 1, dim: 288, vocab: 4096 });
    cases
}

/// Runs these on every backend.
pub(crate) fn check(cases: &[Case]) {
    for backend in backends() {
        let rows = selftest::run_cases(&backend.open().unwrap(), cases, Tolerance::of(&backend), &Filter::default(), &mut |_| {})
            .unwrap();
        assert_passed(&backend, &rows);
    }
}

#[test]
fn operations_at_awkward_sizes() {
    check(&shapes());
}

fn any_case() -> impl Strategy<Value = Case> {
    let attention = (1..4usize, 1..4usize, 1..4usize, 1..140usize, 0..70usize, 1..49usize);
    prop_oneof![
        (1..4usize, 1..70usize, 1..130usize, 1..70usize).prop_map(|(batch, m, k, n)| Case::Matmul { batch, m, k, n }),
        (1..70usize, 1..130usize, 1..70usize).prop_map(|(n, d_in, d_out)| Case::Linear { n, d_in, d_out }),
        (1..70usize, 1..300usize).prop_map(|(n, d)| Case::RmsNorm { n, d }),
        (1..4usize, 1..70usize, 1..5usize, 1..40usize).prop_map(|(batch, seq, heads, half)| Case::Rope {
            batch,
            seq,
            heads,
            head_dim: 2 * half
        }),
        (1..60usize, 1..90usize).prop_map(|(n, f)| Case::SwiGlu { n, f }),
        (1..60usize, 1..130usize, 1..70usize).prop_map(|(n, d, d_out)| Case::NormProject { n, d, d_out }),
        (1..60usize, 1..90usize, 1..70usize).prop_map(|(n, f, d_out)| Case::SwiGluProject { n, f, d_out }),
        (1..90usize, 1..70usize, 1..200usize).prop_map(|(n, dim, vocab)| Case::Embedding { n, dim, vocab }),
        (1..3usize, 1..4usize, 1..4usize, 1..140usize, 1..49usize).prop_map(|(batch, kv_heads, group, seq, half)| {
            let heads = kv_heads * group;
            Case::SelfAttention(AttentionShape { batch, heads, kv_heads, seq_q: seq, seq_k: seq, head_dim: 2 * half })
        }),
        attention.prop_map(|(batch, kv_heads, group, seq_q, earlier, half)| {
            let (heads, seq_k, head_dim) = (kv_heads * group, seq_q + earlier, 2 * half);
            Case::Attention(AttentionShape { batch, heads, kv_heads, seq_q, seq_k, head_dim })
        }),
        (1..70usize, 1..70usize, 2..300usize).prop_map(|(n, dim, vocab)| Case::CrossEntropy { n, dim, vocab }),
        (1..5000usize).prop_map(|n| Case::SquareSum { n }),
        (1..5000usize).prop_map(|n| Case::AdamW { n }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn operations_at_random_sizes(cases in prop::collection::vec(any_case(), 6)) {
        for backend in backends() {
            let rows = selftest::run_cases(&backend.open().unwrap(), &cases, Tolerance::of(&backend), &Filter::default(), &mut |_| {}).unwrap();
            let failed: Vec<String> = rows.iter().filter(|r| !r.passed).map(Row::to_string).collect();
            prop_assert!(failed.is_empty(), "{backend}:\n{}", failed.join("\n"));
        }
    }
}

/// Methods of the trait, from its source: an operation that is added has to be checked too.
fn operations() -> Vec<&'static str> {
    let source = include_str!("../crates/core/src/ops/mod.rs");
    let start = source.find("pub trait LlamaOps").unwrap();
    let body = &source[start..start + source[start..].find("\n}").unwrap()];
    let methods = body.lines().filter_map(|l| l.strip_prefix("    fn ")).map(|l| l.split('(').next().unwrap());
    methods
        .filter(|name| {
            ![
                "activation_dtype",
                "bodies",
                "float_of",
                "flush_uploads",
                "gemms",
                "in_pool<T: Send>",
                "kv_pool",
                "largest_page",
                "logit_rows",
                "pool_bytes",
                "read_often",
                "resident<T>",
                "samples_on_device",
                "take_weight",
            ]
            .contains(name)
        })
        .collect()
}

/// Whether a row is an operation's, by itself or of a type.
fn is_of(row: &Row, name: &str) -> bool {
    row.name.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
}

/// Operations that `Autodiff` overrides, from its source.
fn differentiable() -> Vec<&'static str> {
    let source = include_str!("../crates/core/src/ops/autodiff.rs");
    let body = &source[source.find("LlamaOps for Autodiff").unwrap()..];
    let methods = body.lines().filter_map(|l| l.strip_prefix("    fn ")).map(|l| l.split('(').next().unwrap());
    methods.filter(|name| *name != "bodies").collect()
}

#[test]
fn selftest_passes_and_covers_every_operation() {
    let operations = operations();
    assert!(operations.len() >= 25, "{operations:?}");
    for backend in backends() {
        let mut seen = Vec::new();
        let rows = selftest::run(&backend.open().unwrap(), &Filter::default(), &mut |row| seen.push(row.clone())).unwrap();
        assert_eq!(rows, seen);
        assert_passed(&backend, &rows);
        for name in &operations {
            assert!(rows.iter().any(|r| is_of(r, name)), "{backend}: no row checks `{name}`");
        }
        for name in differentiable() {
            assert!(rows.iter().any(|r| r.name == format!("autodiff {name}")), "{backend}: no gradient of `{name}`");
        }
        for name in ["matmul, true float32", "golden logits", "golden loss", "golden gradients", "golden training, 3 steps"] {
            assert!(rows.iter().any(|r| r.name == name), "{backend}: no row `{name}`");
        }
    }
}

/// Under Burn's `Fusion` each operation is a step of its stream, with a shape that is stated beforehand.
#[cfg(all(feature = "fusion", feature = "wgpu"))]
#[test]
fn selftest_passes_under_fusion() {
    type Fused = burn_fusion::Fusion<recua::backend::Wgpu>;
    let backend: BackendName = "wgpu:cpu".parse().unwrap();
    let mut cases = selftest::cases();
    cases.push(Case::Linear { n: 257, d_in: 80, d_out: 33 });
    let device = cubecl::wgpu::WgpuDevice::Cpu;
    let rows = selftest::run_on::<Fused>(&device, &cases, Tolerance::of(&backend), &Filter::default(), &mut |_| {});
    assert_passed(&backend, &rows);
}

#[test]
fn selftest_can_fail() {
    let backend = BackendName::default();
    // Tolerances of a thousandth: only what is exact passes.
    let tight = Tolerance { device: Tolerance::of(&backend).device / 1000.0 };
    let rows = selftest::run_cases(&backend.open().unwrap(), &selftest::cases(), tight, &Filter::default(), &mut |_| {}).unwrap();
    // `embed` moves numbers; `embed_backward` adds multiples of 2^-15, of which no sum here is rounded.
    for name in operations()
        .into_iter()
        .filter(|name| !name.starts_with("embed") && !["sample_rows", "weight_bytes"].contains(name))
        .chain(["golden logits", "golden gradients", "golden training, 3 steps"])
    {
        assert!(rows.iter().any(|r| is_of(r, name) && !r.passed), "nothing is too far off for `{name}`");
    }
    assert!(rows.iter().filter(|r| r.name.ends_with("true float32")).all(|r| r.passed && r.max_error == 0.0));

    // A row says where to begin.
    let row = rows.iter().find(|r| r.name == "rms_norm" && !r.passed).unwrap();
    let problem = row.problem.as_deref().unwrap_or_default();
    assert!(problem.contains("elements differ, first element ") && problem.contains("expected"), "{row}");

    // A panic inside an operation (an odd head has no pairs) is a row, and the next case runs.
    let cases = [Case::Rope { batch: 1, seq: 2, heads: 1, head_dim: 3 }, Case::SwiGlu { n: 1, f: 5 }];
    let rows =
        selftest::run_cases(&backend.open().unwrap(), &cases, Tolerance::of(&backend), &Filter::default(), &mut |_| {}).unwrap();
    assert!(!rows[0].passed && rows[0].problem.as_ref().is_some_and(|p| p.contains("panicked")), "{}", rows[0]);
    assert!(rows[2].name == "swiglu" && rows[2].passed, "{}", rows[2]);
}

#[test]
fn selftest_makes_the_checks_that_are_asked_for() {
    let context = BackendName::default().open().unwrap();
    let names = |only: &[&str], skip: &[&str]| {
        let list = |texts: &[&str]| texts.iter().map(|text| text.to_string()).collect();
        let rows = selftest::run(&context, &Filter { only: list(only), skip: list(skip) }, &mut |_| {}).unwrap();
        rows.into_iter().map(|row| format!("{}  {}", row.name, row.shape)).collect::<Vec<_>>()
    };
    let some = names(&["swiglu", "golden"], &["autodiff", "bf16"]);
    assert!(some.len() >= 6 && some.iter().all(|line| line.contains("swiglu") || line.contains("golden")), "{some:?}");
    assert!(!some.iter().any(|line| line.contains("autodiff") || line.contains("bf16")), "{some:?}");
    assert!(names(&["nothing of this name"], &[]).is_empty());
}

#[test]
fn selftest_names_a_backend_that_is_not_there() {
    if cfg!(feature = "cuda") {
        return;
    }
    let error = "cuda".parse::<BackendName>().unwrap().open().unwrap_err().to_string();
    assert!(error.contains("cuda") && error.contains("--features cuda"), "{error}");
}

/// Numbers in [-1, 1), independent of the library's.
pub(crate) fn random(seed: u64, n: usize) -> Vec<f64> {
    let mut x = seed * 2 + 1;
    let mut next = || {
        x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (x >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// Gradients of `f` by central differences, of all inputs, against `gradients`.
fn assert_gradients(name: &str, inputs: &[Vec<f64>], gradients: &[&[f64]], f: impl Fn(&[Vec<f64>]) -> f64) {
    const STEP: f64 = 1e-5;
    for (which, want) in gradients.iter().enumerate() {
        assert_eq!(want.len(), inputs[which].len(), "{name}, input {which}");
        assert!(want.iter().any(|g| g.abs() > 1e-3), "{name}, input {which}: no gradient to speak of");
        for (i, want) in want.iter().enumerate() {
            let at = |step: f64| {
                let mut inputs = inputs.to_vec();
                inputs[which][i] += step;
                f(&inputs)
            };
            let got = (at(STEP) - at(-STEP)) / (2.0 * STEP);
            // Truncation: STEP^2; cancellation: 2^-53 / STEP.
            assert!((got - want).abs() < 1e-8 * (1.0 + want.abs()), "{name}, input {which}[{i}]: {want}, by differences {got}");
        }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[test]
fn references_agree_with_finite_differences() {
    let (x, w, dy) = (random(1, 12), random(2, 20), random(3, 15));
    let [_, dx, dw] = reference::linear(&x, &w, &dy, [3, 4, 5]);
    assert_gradients("linear", &[x, w], &[&dx, &dw], |i| dot(&reference::linear(&i[0], &i[1], &dy, [3, 4, 5])[0], &dy));

    let (x, w, dy) = (random(1, 12), random(2, 4), random(3, 12));
    let [_, dx, dw] = reference::rms_norm(&x, &w, &dy, 0.1);
    assert_gradients("rms_norm", &[x, w], &[&dx, &dw], |i| dot(&reference::rms_norm(&i[0], &i[1], &dy, 0.1)[0], &dy));

    let (gate, up, dy) = (random(1, 9), random(2, 9), random(3, 9));
    let [_, dg, du] = reference::swiglu(&gate, &up, &dy);
    assert_gradients("swiglu", &[gate, up], &[&dg, &du], |i| dot(&reference::swiglu(&i[0], &i[1], &dy)[0], &dy));

    let (x, angles, dy) = (random(1, 2 * 3 * 2 * 4), random(2, 3 * 2), random(3, 2 * 3 * 2 * 4));
    let opposite: Vec<f64> = angles.iter().map(|a| -a).collect();
    let dx = reference::rope(&dy, &opposite, [3, 2, 2]);
    assert_gradients("rope", &[x], &[&dx], |i| dot(&reference::rope(&i[0], &angles, [3, 2, 2]), &dy));

    let s = AttentionShape { batch: 2, heads: 4, kv_heads: 2, seq_q: 3, seq_k: 5, head_dim: 4 };
    let (q, k, v, dout) = (random(1, 96), random(2, 80), random(3, 80), random(4, 96));
    let [_, _, dq, dk, dv] = reference::attention([&q, &k, &v, &dout], s, None, 0.7);
    assert_gradients("attention", &[q, k, v], &[&dq, &dk, &dv], |i| {
        dot(&reference::attention([&i[0], &i[1], &i[2], &dout], s, None, 0.7)[0], &dout)
    });

    let (x, w, targets) = (random(1, 12), random(2, 21), [6, -1, 0, 3]);
    let [_, dx, dw] = reference::cross_entropy(&x, &w, &targets, 3);
    assert_gradients("cross-entropy", &[x, w], &[&dx, &dw], |i| reference::cross_entropy(&i[0], &i[1], &targets, 3)[0][0]);
}

/// Forward references at values that are known without them.
#[test]
fn references_agree_with_known_values() {
    let close = |got: &[f64], want: &[f64]| {
        assert_eq!(got.len(), want.len());
        assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-14), "{got:?}, expected {want:?}");
    };
    close(
        &reference::matmul(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[1.0, 0.0, 2.0, 1.0, 0.0, 3.0], [2, 3, 2]),
        &[5.0, 11.0, 14.0, 23.0],
    );
    // Mean square of 3 and 4 is 12.5.
    let r = 12.5f64.sqrt();
    close(&reference::rms_norm(&[3.0, 4.0], &[1.0, 10.0], &[0.0, 0.0], 0.0)[0], &[3.0 / r, 40.0 / r]);
    // A quarter turn at the second position.
    let quarter = std::f64::consts::FRAC_PI_2;
    close(&reference::rope(&[1.0, 2.0, 1.0, 2.0], &[0.0, quarter], [2, 1, 1]), &[1.0, 2.0, -2.0, 1.0]);
    // sigmoid(ln 3) = 3/4
    close(&reference::swiglu(&[3f64.ln(), 0.0], &[2.0, 5.0], &[0.0, 0.0])[0], &[1.5 * 3f64.ln(), 0.0]);
    // Zero scores: the average of the values seen. Two queries on three keys: the first sees two. Heads share the keys.
    let s = AttentionShape { batch: 1, heads: 2, kv_heads: 1, seq_q: 2, seq_k: 3, head_dim: 1 };
    let [out, lse, ..] = reference::attention([&[0.0; 4], &[1.0; 3], &[3.0, 6.0, 9.0], &[0.0; 4]], s, None, 1.0);
    close(&out, &[4.5, 6.0, 4.5, 6.0]);
    close(&lse, &[2f64.ln(), 3f64.ln(), 2f64.ln(), 3f64.ln()]);
    // Even logits: ln(vocab) a row; a negative target counts for nothing.
    close(&reference::cross_entropy(&[0.0; 3], &[1.0; 5], &[4, -1, 0], 1)[0], &[2.0 * 5f64.ln()]);
    // First step, no decay, no eps: the sign of the gradient times the learning rate.
    let (beta1, beta2) = (0.9, 0.95);
    let s = AdamWScalars {
        lr: 0.1,
        beta1,
        beta2,
        eps: 0.0,
        weight_decay: 0.5,
        grad_scale: 0.5,
        bias1: 1.0 - beta1,
        bias2: 1.0 - beta2,
    };
    let [w, m, v] = reference::adamw(&[1.0, 2.0], &[4.0, -8.0], &[0.0; 2], &[0.0; 2], s);
    close(&w, &[1.0 * 0.95 - 0.1, 2.0 * 0.95 + 0.1]);
    close(&m, &[0.2, -0.4]);
    close(&v, &[0.2, 0.8]);
}
