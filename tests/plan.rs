//! `recua plan` for clusters, against the LLaMA paper and against an independent model of the same cluster (`cluster.py`, whose
//! numbers stand here).

use std::process::Command;

use recua::model::ModelConfig;
use recua::model::backward::ActivationCheckpointing as Keep;
use recua::parallel::cluster::Cluster;
use recua::parallel::plan::{ClusterPlan, Energy, Wanted, Workload, layout, paper_tokens, paper_tp, plan, search};
use serde_json::Value;

const SIZES: [&str; 4] = ["7b", "13b", "33b", "65b"];

fn cluster() -> Cluster {
    Cluster::open("a100-80").unwrap()
}

/// As the paper trained: 2048 sequences of 2048 tokens, bf16.
fn workload(size: &str) -> Workload {
    let model = ModelConfig::preset(size).unwrap();
    let tokens = paper_tokens(&model);
    Workload { model, seq_len: 2048, batch: 2048, tokens, keep: Keep::Selective, compute_bytes: 2, gradient_bytes: 2 }
}

fn of(w: &Workload, cluster: &Cluster, wanted: Wanted) -> ClusterPlan {
    plan(w, cluster, layout(w, cluster, &wanted).unwrap())
}

fn wanted(devices: usize) -> Wanted {
    Wanted { devices, ..Wanted::default() }
}

#[track_caller]
fn near(what: &str, got: f64, expected: f64, relative: f64) {
    assert!((got / expected - 1.0).abs() <= relative, "{what}: {got}, expected {expected} within {relative}");
}

/// Table 15 and section 2.4.
#[test]
fn a_cluster_takes_the_time_of_the_paper() {
    let hours = [82_432.0, 135_168.0, 530_432.0, 1_022_362.0];
    for (size, hours) in SIZES.into_iter().zip(hours) {
        let p = of(&workload(size), &cluster(), wanted(2048));
        println!(
            "{size}: {:.1} tok/s/GPU, {:.0} GPU-hours, paper {hours}: {:+.1} %",
            p.tok_s_gpu,
            p.gpu_hours,
            100.0 * (p.gpu_hours / hours - 1.0)
        );
        near(size, p.gpu_hours, hours, 0.08);
        assert!(p.fits, "{size}");
        assert_eq!(p.mesh.tp, paper_tp(&workload(size).model));
    }
    let p = of(&workload("65b"), &cluster(), wanted(2048));
    near("tok/s/GPU", p.tok_s_gpu, 380.0, 0.05);
    near("days", p.days, 21.0, 0.05);
    let fitted: Vec<_> = cluster().constants().into_iter().filter(|(_, c)| c.fitted).map(|(name, _)| name).collect();
    assert_eq!(fitted, ["schedule.efficiency"]);
    assert!(cluster().constants().iter().all(|(_, c)| !c.source.is_empty()));
}

/// cluster.py prints three to four digits and rounds the bytes of elementwise operations to whole numbers.
const DIGITS: f64 = 3e-3;

#[test]
fn a_cluster_is_reckoned_as_independently() {
    // size, step, forward + backward + tensor-parallel, data-parallel in all, exposed, optimizer, tok/s/GPU, MFU, GPU-hours.
    #[rustfmt::skip]
    let table = [
        ("7b",  0.620, 0.149 + 0.325 + 0.000, 0.218, 0.087, 0.020, 3300.9, 0.454,    84_152.0),
        ("13b", 1.069, 0.262 + 0.564 + 0.041, 0.360, 0.113, 0.019, 1916.7, 0.505,   144_927.0),
        ("33b", 2.619, 0.648 + 1.370 + 0.202, 0.828, 0.207, 0.023,  782.1, 0.511,   497_255.0),
        ("65b", 5.384, 1.280 + 2.673 + 0.697, 1.602, 0.361, 0.024,  380.4, 0.495, 1_022_362.0),
    ];
    for (size, step, work, dp_total, dp_exposed, optimizer, tok, mfu, hours) in table {
        let p = of(&workload(size), &cluster(), wanted(2048));
        let t = p.time;
        near("step", p.step_s, step, DIGITS);
        near("work", t.forward + t.backward + t.tp_exposed, work, DIGITS);
        near("dp", t.dp_total, dp_total, DIGITS);
        near("dp exposed", t.dp_exposed, dp_exposed, 5e-3); // of three digits, the last
        near("optimizer", t.optimizer, optimizer, 3e-2); // of two
        near("tok/s/GPU", p.tok_s_gpu, tok, DIGITS);
        near("MFU", p.mfu, mfu, DIGITS);
        near("GPU-hours", p.gpu_hours, hours, DIGITS);
    }
    // Other meshes, micro-batches and types.
    let mesh = |size: &str, devices: usize, tp: usize| {
        of(&workload(size), &cluster(), Wanted { tp: Some(tp), ..wanted(devices) }).tok_s_gpu
    };
    for (size, devices, tp, tok) in
        [("65b", 2048, 4, 415.8), ("7b", 2048, 2, 3299.4), ("13b", 2048, 1, 1921.8), ("13b", 2048, 4, 1826.6)]
    {
        let micro = Some(tp); // one pass, whether it fits or not
        let p = of(&workload(size), &cluster(), Wanted { tp: Some(tp), micro_batch: micro, ..wanted(devices) });
        near(&format!("{size} tp {tp}"), p.tok_s_gpu, tok, DIGITS);
    }
    near("7b on 512", mesh("7b", 512, 1), 4109.0, DIGITS);
    near("7b on 1024", mesh("7b", 1024, 1), 3862.0, DIGITS);
    for (micro, tok) in [(1, 299.1), (2, 341.6), (4, 372.1), (8, 380.4)] {
        let p = of(&workload("65b"), &cluster(), Wanted { micro_batch: Some(micro), ..wanted(2048) });
        near(&format!("micro-batch {micro}"), p.tok_s_gpu, tok, DIGITS);
    }
    let wide = Workload { gradient_bytes: 4, ..workload("65b") };
    // They do not fit: left alone, the plan takes smaller passes.
    let p = of(&wide, &cluster(), Wanted { micro_batch: Some(8), ..wanted(2048) });
    near("float32 gradients", p.tok_s_gpu, 368.5, DIGITS);
    assert!(!p.fits && of(&wide, &cluster(), wanted(2048)).mesh.micro_batch < 8);
    let mut bare = cluster();
    (bare.schedule.dp_hidden.value, bare.schedule.tp_hidden.value) = (0.0, 0.0);
    let p = of(&workload("65b"), &bare, wanted(2048));
    near("no overlap", p.tok_s_gpu, 292.0, DIGITS);
    near("no overlap, days", p.days, 27.1, DIGITS);
}

#[test]
fn memory_of_a_device_by_part() {
    // cluster.py: weights, gradients, ZeRO-1 state, activations, logits, in GB.
    #[rustfmt::skip]
    let table = [
        ("7b",  13.48, 13.48, 0.04,  6.11, 0.13),
        ("13b", 13.02, 13.02, 0.08,  9.56, 0.13),
        ("33b", 16.26, 16.26, 0.19, 18.62, 0.13),
        ("65b", 16.32, 16.32, 0.38, 30.53, 0.13),
    ];
    for (size, weights, gradients, state, activations, logits) in table {
        let m = of(&workload(size), &cluster(), wanted(2048)).memory;
        for (part, got, expected) in [
            ("weights", m.weights, weights),
            ("gradients", m.gradients, gradients),
            ("state", m.state, state),
            // Ours has attention's log-sum-exp too, 4 bytes a head and token.
            ("activations", m.activations, activations),
            ("logits", m.logits, logits),
        ] {
            assert!((got / 1e9 - expected).abs() <= 0.005 + 0.002 * expected, "{size} {part}: {got}, expected {expected} GB");
        }
    }
    // Korthikanti et al.: activations fall as 1 / tp with sequence parallelism; without it the residual stream, 4 bytes a token and
    // d here, does not. State falls as 1 / dp; ZeRO-2 does the same to gradients.
    let w = Workload { batch: 64, ..workload("7b") };
    let memory = |devices: usize, tp: usize, sequence: bool, zero: u8| {
        let all = Wanted { devices, tp: Some(tp), micro_batch: Some(1), sequence: Some(sequence), zero: Some(zero) };
        of(&w, &cluster(), all).memory
    };
    let [one, two, four] = [1, 2, 4].map(|tp| memory(tp, tp, true, 1).activations);
    near("tp 2", one / two, 2.0, 1e-12);
    near("tp 4", one / four, 4.0, 1e-12);
    let residual = 2048.0 * 4.0 * 4096.0 * 32.0;
    near("no sequence", memory(4, 4, false, 1).activations, residual + (one - residual) / 4.0, 1e-12);
    near("state", memory(1, 1, false, 1).state / memory(8, 1, false, 1).state, 8.0, 1e-12);
    near("no ZeRO", memory(8, 1, false, 0).state, 12.0 * w.model.num_params() as f64, 1e-12);
    near("ZeRO-2", memory(8, 1, false, 1).gradients / memory(8, 1, false, 2).gradients, 8.0, 1e-12);
    // Of one replica with one pass a step gradients take the place of activations; of several passes they stand beside them.
    let alone = |batch: usize, seq_len: usize| {
        let w = Workload { batch, seq_len, compute_bytes: 4, gradient_bytes: 4, ..workload("7b") };
        of(&w, &cluster(), Wanted { devices: 1, tp: Some(1), micro_batch: Some(1), ..Wanted::default() }).memory
    };
    let all = 4.0 * w.model.num_params() as f64;
    let (passes, short, long) = (alone(2, 2048), alone(1, 2048), alone(1, 65536));
    near("passes", passes.gradients, all, 1e-12);
    near("one pass, its gradients are more", short.gradients, all, 1e-12);
    near("and then one layer's activations", short.activations, passes.activations / 32.0, 1e-12);
    near("one pass, its activations are more", long.activations, passes.activations * 32.0, 1e-12);
    near("and then the first gradients", long.gradients, 4.0 * (32000.0 + 11008.0) * 4096.0, 1e-12);
}

/// NCCL's formula by hand, and its measured curve.
#[test]
fn collectives_take_what_they_were_measured_to() {
    let c = cluster();
    near("all of a node, 32 MiB", c.half(8, 1, 33_554_432.0), 424.0e-6 / 2.0, 1e-12);
    near("two of it", c.half(2, 1, 33_554_432.0), 424.0e-6 / 2.0 * 0.5 / (7.0 / 8.0), 1e-12);
    // 256 replicas of 8: each neighbour on another node, 255 steps of 9.6 us, 22.5 GB/s.
    near("a network", c.half(256, 8, 1e9), 8.4e-6 + 255.0 * 9.6e-6 + 255.0 / 256.0 / 22.5, 1e-12);
    // 2048 of 1: eight ports a node, 180 GB/s, under NVLink's 234.
    let steps = (2048.0 - 256.0) * 3.4e-6 + 255.0 * 9.6e-6;
    near("eight a node", c.half(2048, 1, 1e9), 8.4e-6 + steps + 2047.0 / 2048.0 / 180.0, 1e-12);
    assert_eq!(c.half(1, 1, 1e9), 0.0);
    // A product that fills every wave runs at the measured speed but for its short inner size.
    let [m, n] = [256.0 * 12.0, 128.0 * 9.0];
    near("product", c.matmul(m, n, 1e9), 2.0 * m * n * 1e9 / (271.2e12 * 0.93), 1e-6);
    near("short product", c.matmul(m, n, 256.0), 2.0 * 2.0 * m * n * 256.0 / (271.2e12 * 0.93), 1e-12);
}

/// Table 15: 400 W, PUE 1.1, 0.385 kg a kWh. It cuts 449.8 to 449.
#[test]
fn energy_and_carbon_are_those_of_the_paper() {
    let table = [(82_432.0, 36.0, 14.0), (135_168.0, 59.0, 23.0), (530_432.0, 233.0, 90.0), (1_022_362.0, 449.0, 173.0)];
    for (hours, mwh, co2) in table {
        let e = Energy::of(hours, 400.0, 1.1, 0.385);
        assert!((e.mwh - mwh).abs() < 1.0 && (e.t_co2 - co2).abs() < 1.0, "{hours}: {e:?}");
    }
}

#[test]
fn a_search_finds_what_fits_and_is_no_slower() {
    for size in SIZES {
        let w = workload(size);
        let found = search(&w, &cluster(), &wanted(2048)).unwrap();
        assert_eq!(found.tried, found.found.len() + found.too_large);
        let paper = of(&w, &cluster(), wanted(2048));
        assert!(found.found[0].1.step_s <= paper.step_s);
        assert!(found.found.windows(2).all(|pair| pair[0].1.step_s <= pair[1].1.step_s));
        for (_, p) in &found.found {
            assert!(p.fits && p.memory.total() <= 76e9 && w.model.n_heads.is_multiple_of(p.mesh.tp), "{p:?}");
            assert_eq!((p.mesh.dp * p.mesh.tp, p.mesh.dp * p.mesh.micro_batch * p.mesh.micro_batches), (2048, 2048));
        }
        assert!(
            found.found.iter().any(|(keep, p)| *keep == Keep::Selective && p.mesh == paper.mesh),
            "{size}: the paper's is among them"
        );
    }
}

/// docs/scaling.md says what the plan says.
#[test]
fn the_docs_have_the_plans_numbers() {
    let docs = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/scaling.md")).unwrap();
    let grouped = |n: f64| {
        let (thousands, rest) = ((n / 1000.0) as u64, n.round() as u64 % 1000);
        if thousands < 1000 {
            format!("{thousands},{rest:03}")
        } else {
            format!("{},{:03},{rest:03}", thousands / 1000, thousands % 1000)
        }
    };
    let has = |row: String| assert!(docs.contains(&row), "docs/scaling.md has no `{row}`");
    for size in SIZES {
        let p = of(&workload(size), &cluster(), wanted(2048));
        let name = size.to_uppercase();
        let (mesh, mfu, hours) = (p.mesh, 100.0 * p.mfu, grouped(p.gpu_hours));
        has(format!(
            "| {name} | dp {} x tp {} | {:.3} | {:.0} | {mfu:.1} % | {hours} |",
            mesh.dp, mesh.tp, p.step_s, p.tok_s_gpu
        ));
        let m = p.memory;
        let parts = [m.weights, m.gradients, m.state, m.activations, m.logits, m.working, m.buffers, m.total()];
        has(format!("| {name} | {} |", parts.map(|bytes| format!("{:.1}", bytes / 1e9)).join(" | ")));
    }
    for (tokens, batch, devices) in
        [("4.2M on 2048", 2048, 2048), ("5.2M", 2560, 20_480), ("10.5M", 5120, 20_480), ("41.9M", 20_480, 20_480)]
    {
        let p = of(&Workload { batch, ..workload("65b") }, &cluster(), wanted(devices));
        let (t, mfu) = (p.time, 100.0 * p.mfu);
        let dp = format!("{:.2} of {:.2} s", t.dp_exposed, t.dp_total);
        has(format!(
            "| {tokens} | {} | {:.3} | {:.0} | {mfu:.1} % | {dp} | {:.1} |",
            p.mesh.micro_batch, p.step_s, p.tok_s_gpu, p.days
        ));
    }
}

fn recua(args: &str) -> (Option<i32>, String, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_recua")).args(args.split_whitespace()).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (out.status.code(), text(out.stdout), text(out.stderr))
}

#[test]
fn the_verb_prints_a_plan() {
    let (code, out, err) = recua("plan --preset 65b --cluster a100-80 --devices 2048 --tokens 1.4e12 --json");
    assert_eq!(code, Some(0), "{err}");
    let json: Value = serde_json::from_str(&out).unwrap();
    let number = |path: &str| json.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("no {path} in {out}"));
    near("tok/s/GPU", number("/tok_s_gpu"), 380.0, 0.05);
    near("days", number("/days"), 21.0, 0.05);
    near("GPU-hours", number("/gpu_hours"), 1_022_362.0, 0.08);
    near("step", number("/step_s"), 4_194_304.0 / 2048.0 / number("/tok_s_gpu"), 1e-9);
    near("MFU", number("/mfu"), 0.495, 0.01);
    assert_eq!((number("/mesh/dp"), number("/mesh/tp"), number("/mesh/micro_batch")), (256.0, 8.0, 8.0));
    assert!(number("/memory/total") < 76e9 && json["fitted"] == serde_json::json!(["schedule.efficiency"]));

    let (code, out, _) = recua("plan --preset 65b --cluster a100-80 --gpu-hours 1022362");
    assert_eq!(code, Some(0));
    for said in [
        "dp 256 x tp 8",
        "sequence parallel",
        "fits",
        "1,022,362 GPU-hours draw 450 MWh and 173 t",
        "fitted: schedule.efficiency",
    ] {
        assert!(out.contains(said), "no `{said}` in {out}");
    }
    let (code, out, _) = recua("plan --preset 33b --cluster h100 --devices 256 --search");
    assert!(code == Some(0) && out.contains("layouts") && out.contains("tok/s/GPU"), "{out}");
    let (code, out, _) = recua("plan --cluster a100-80 --constants");
    assert!(code == Some(0) && out.contains("FITTED") && out.contains("2.712e14"), "{out}");
}

#[test]
fn what_cannot_be_planned_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let own = |name: &str, from: &str, to: &str| {
        let text = cluster().to_toml().unwrap();
        assert!(from.is_empty() || text.contains(from), "{text}");
        let path = dir.path().join(name);
        std::fs::write(&path, text.replacen(from, to, usize::from(!from.is_empty()))).unwrap();
        path.display().to_string()
    };
    let whole = own("whole.toml", "", "");
    let (code, out, err) = recua(&format!("plan --preset 65b --cluster {whole} --json"));
    assert_eq!(code, Some(0), "{err}");
    near("the same", serde_json::from_str::<Value>(&out).unwrap()["tok_s_gpu"].as_f64().unwrap(), 380.4, DIGITS);

    let missing = own("missing.toml", "[network.latency]", "[network.latencies]");
    let negative = own("negative.toml", "value = 312000000000000.0", "value = -1.0");
    let falling = own("falling.toml", "2097152.0", "1.0");
    let cases = [
        ("--preset 7b --devices 0".to_string(), "--devices: expected at least 1, got 0"),
        ("--preset 33b --tp 8".into(), "8 does not divide 52 heads; take one of: 1, 2, 4"),
        ("--preset 65b --devices 2047".into(), "2047 devices do not split into groups of 8"),
        ("--preset 65b --devices 20480".into(), "2048 sequences do not split over 2560 replicas; take 2560"),
        ("--preset 65b --micro-batch 3".into(), "3 does not divide the 8 sequences of a replica; take one of: 1, 2, 4, 8"),
        ("--preset 7b --tokens=-1".into(), "--tokens"),
        ("--preset 9b".into(), "no preset `9b`"),
        ("--preset 65b --devices 8 --batch 1 --search".into(), "none of"),
    ];
    for (args, said) in cases {
        let (code, _, err) = recua(&format!("plan --cluster a100-80 {args}"));
        assert!(code == Some(2) && err.contains(said), "{args}: {code:?} {err}");
    }
    for (cluster, said) in [
        ("a100", "no cluster `a100`; take a100-80, h100 or a TOML file"),
        ("gone.toml", "cannot read gone.toml"),
        (&missing, "latenc"),
        (&negative, "`device.peak_flops`: expected a number above 0, got -1"),
        (&falling, "`node.all_reduce`: expected rising sizes"),
    ] {
        let (code, _, err) = recua(&format!("plan --preset 7b --cluster {cluster}"));
        assert!(matches!(code, Some(1 | 2)) && err.contains(said), "{cluster}: {code:?} {err}");
    }
    // A number may stand alone.
    let bare = own("bare.toml", "", "");
    let text = std::fs::read_to_string(&bare).unwrap();
    let without = text.find("[node.latency]").unwrap();
    let rest = text[without + 1..].find('[').map_or(text.len(), |at| without + 1 + at);
    let text = format!("{}{}", &text[..without], &text[rest..]).replace("[node]\n", "[node]\nlatency = 3.4e-6\n");
    let parsed = Cluster::parse("bare", &text).unwrap();
    assert_eq!((parsed.node.latency.value, parsed.node.latency.source.as_str()), (3.4e-6, ""));
}
