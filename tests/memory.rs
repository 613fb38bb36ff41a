//! Memory: what `recua plan` says is what a run then needs, and nothing grows with the square of the sequence. Each measurement is
//! a process of its own; Linux only (`/proc`).

use std::process::Command;

use serde_json::Value;

fn recua(args: &str) -> Value {
    let out = Command::new(env!("CARGO_BIN_EXE_recua")).args(args.split_whitespace()).output().unwrap();
    assert!(out.status.success(), "{args}: {}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

/// dim, layers, heads, ffn, vocab, seq, batch.
type Sizes = (usize, usize, usize, usize, usize, usize, usize);

/// Peak of a training step over the process before it, in MiB; of a GPU, what its pool holds.
fn measured((dim, layers, heads, ffn, vocab, seq, batch): Sizes, how: &str) -> f64 {
    let shape = format!("--vocab {vocab} --dim {dim} --layers {layers} --heads {heads} --ffn {ffn} --seq {seq} --batch {batch}");
    recua(&format!("bench train {shape} {how} --steps 1 --threads 2 --json"))["work_mb"].as_f64().unwrap()
}

fn planned((dim, layers, heads, ffn, vocab, seq, batch): Sizes, how: &str) -> f64 {
    let sizes = format!(
        "--set model.dim={dim} --set model.n_layers={layers} --set model.n_heads={heads} --set model.ffn_dim={ffn} \
         --set model.vocab_size={vocab} --seq {seq} --batch {batch}"
    );
    recua(&format!("plan {sizes} {how} --json"))["needed_bytes"].as_f64().unwrap() / (1 << 20) as f64
}

/// The plan is within 10 % of the run, the bound that it states.
fn assert_planned(sizes: Sizes, how: &str) {
    let (plan, run) = (planned(sizes, how), measured(sizes, how));
    println!("plan: {sizes:?} {how}: planned {plan:.0} MiB, measured {run:.0} MiB, {:.3}", plan / run);
    assert!((plan / run - 1.0).abs() <= 0.1, "{sizes:?} {how}: planned {plan:.0} MiB, measured {run:.0} MiB");
}

#[test]
#[cfg(target_os = "linux")]
fn a_plan_is_what_a_run_needs() {
    let table = [
        ((288, 6, 6, 768, 4096, 256, 8), "--keep all"),
        ((288, 6, 6, 768, 4096, 256, 8), "--keep linear"),
        ((512, 8, 8, 1376, 4096, 512, 8), "--keep block"),
        ((288, 6, 6, 768, 4096, 2048, 1), "--keep linear"),
        ((512, 4, 8, 1376, 16_000, 256, 2), "--keep linear"),
        ((512, 4, 8, 1376, 16_000, 256, 2), "--keep linear --update-in-backward"),
        ((256, 12, 4, 704, 2048, 512, 4), "--keep linear"),
    ];
    table.iter().for_each(|(sizes, how)| assert_planned(*sizes, how));
}

/// What a GPU's memory pool comes to hold, on software Vulkan: the pool is CubeCL's on every device, its pages are a device's own.
/// Pages of 8 and 32 MiB make the tensors alone some two thirds of it at these sizes.
#[test]
#[cfg(feature = "wgpu")]
fn a_pool_holds_what_is_planned() {
    let table = [
        ((256, 4, 4, 704, 2048, 256, 2), "--keep linear"),
        ((256, 4, 4, 704, 2048, 256, 2), "--keep all"),
        ((256, 4, 4, 704, 2048, 256, 2), "--keep block --precision f16"),
        ((384, 2, 6, 1024, 8192, 256, 1), "--keep linear"),
        ((384, 2, 6, 1024, 8192, 256, 1), "--update-in-backward"),
        ((128, 6, 2, 344, 1024, 512, 4), "--keep linear"),
        ((128, 6, 2, 344, 1024, 512, 4), "--precision f16"),
    ];
    table.iter().for_each(|(sizes, how)| assert_planned(*sizes, &format!("{how} --backend wgpu:cpu")));
}

/// A loss of one's own under `Autodiff` keeps what `keep = "linear"` does, and the residual stream after attention.
#[test]
#[cfg(target_os = "linux")]
fn autodiff_keeps_what_linear_layers_give() {
    let (dim, layers, seq, batch) = (288, 6, 256, 8);
    let sizes = (dim, layers, 6, 768, 4096, seq, batch);
    let [autodiff, linear, all] = ["--autodiff", "--keep linear", "--keep all"].map(|how| measured(sizes, how));
    println!("autodiff: {autodiff:.0} MiB, linear {linear:.0} MiB, all {all:.0} MiB");
    let residual = (layers * batch * seq * dim * 4) as f64 / (1 << 20) as f64;
    assert!(autodiff <= linear + 1.5 * residual, "autodiff {autodiff:.0} MiB, linear {linear:.0} MiB, all {all:.0} MiB");
}

/// From 1k to 16k tokens: memory in proportion, where a square would make it 256-fold.
#[test]
#[cfg(target_os = "linux")]
fn memory_is_linear_in_the_sequence() {
    let attention = |seq: usize| {
        let args = format!("bench attention --dim 128 --heads 2 --seq {seq} --batch 1 --steps 1 --threads 2 --json");
        recua(&args)["work_mb"].as_f64().unwrap()
    };
    let training = |seq: usize| measured((64, 2, 2, 176, 512, seq, 1), "");
    let row = |what: &str, of: &dyn Fn(usize) -> f64| {
        let [short, long] = [1024, 16_384].map(of);
        println!("{what}: {short:.1} MiB at 1024 tokens, {long:.1} MiB at 16384");
        // Sixteen times the tokens, and the process's own few MiB.
        assert!(long <= 16.0 * short + 8.0, "{what}: {short:.1} MiB at 1024 tokens but {long:.1} MiB at 16384");
        // A square of float32 alone would be 1 GiB.
        assert!(long < 300.0, "{what}: {long:.1} MiB at 16384 tokens");
    };
    row("attention", &attention);
    row("training", &training);
}
