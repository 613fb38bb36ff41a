//! Whole runs: from one mesh to another, the same to the bit, what is refused, what a timeline shows.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use recua::Error;
use recua::backend::BackendName;
use recua::checkpoint::native::{self, NativeCheckpoint, Need};
use recua::checkpoint::{self, Format, SaveOptions, TensorSource};
use recua::parallel::{LocalOptions, ParallelConfig, Trace, Watch, run_ranks};
use recua::train::{RunConfig, Start, metrics, train_on};

use super::common::{config, dataset, losses, of, run_config, train_ranks};

/// Weights and moments of a run's last checkpoint, by name.
fn last_checkpoint(dir: &Path) -> Vec<(String, Vec<f32>)> {
    let latest = native::latest_valid(&dir.join("checkpoints"), Need::All).unwrap().checkpoint.unwrap();
    let mut all = Vec::new();
    for file in [native::MODEL, native::OPTIM] {
        let source = latest.source(file).unwrap();
        all.extend(source.list().iter().map(|info| (info.name.clone(), source.read_f32(&info.name).unwrap().1)));
    }
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

#[test]
fn a_run_stops_and_goes_on_at_any_mesh() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path());
    let single = run_config(&data, ParallelConfig::default(), 50);
    let whole = dir.path().join("one");
    let summary = train_ranks(1, &single, &whole, &Start::Fresh, 0).unwrap();
    let want = losses(&whole);
    assert!(want[49] < want[0] - 0.5, "nothing is learned: {want:?}");
    let want_valid = summary.valid.unwrap();

    // Stopped at 20 and 30, each time another mesh.
    let path = [of(2, 2, true, 1), of(1, 1, false, 1), of(1, 4, true, 1), of(4, 1, false, 2)];
    for (a, b, c) in [(0, 1, 2), (2, 0, 3), (1, 3, 0)] {
        let run = dir.path().join(format!("{a}{b}{c}"));
        for (i, stop_at) in [(a, 20), (b, 30), (c, 0)] {
            let (ranks, parallel) = path[i].clone();
            let start = if stop_at == 20 { Start::Fresh } else { Start::Resume };
            match train_ranks(ranks, &run_config(&data, parallel, 50), &run, &start, stop_at) {
                Err(Error::Interrupted { step, .. }) => assert_eq!(step, stop_at),
                Ok(summary) => {
                    let valid = summary.valid.unwrap();
                    assert!((valid.loss / want_valid.loss - 1.0).abs() < 1e-5, "{} and {}", valid.loss, want_valid.loss);
                    assert!((valid.bpb / want_valid.bpb - 1.0).abs() < 1e-5);
                }
                Err(e) => panic!("{a}{b}{c}: {e}"),
            }
        }
        let got = losses(&run);
        assert_eq!(got.len(), 50);
        for (step, (got, want)) in got.iter().zip(&want).enumerate() {
            assert!((got / want - 1.0).abs() < 1e-5, "{a}{b}{c}: step {}: {got}, one device {want}", step + 1);
        }
        let last = last_checkpoint(&run);
        let names: Vec<_> = last.iter().map(|(name, _)| name.clone()).collect();
        assert_eq!(names.len(), 3 * config().parameters().len(), "{names:?}");
    }
}

#[test]
fn the_same_mesh_goes_on_to_the_bit() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path());
    let (ranks, parallel) = of(2, 2, true, 1);
    let config = run_config(&data, parallel, 20);
    let (whole, cut) = (dir.path().join("whole"), dir.path().join("cut"));
    train_ranks(ranks, &config, &whole, &Start::Fresh, 0).unwrap();
    let e = train_ranks(ranks, &config, &cut, &Start::Fresh, 7).unwrap_err();
    assert!(matches!(e, Error::Interrupted { step: 7, .. }), "{e}");
    train_ranks(ranks, &config, &cut, &Start::Resume, 0).unwrap();
    assert!(last_checkpoint(&whole) == last_checkpoint(&cut));
    assert_eq!(losses(&whole), losses(&cut));
    let records = metrics::read(&whole.join(metrics::METRICS_FILE)).unwrap();
    assert!(records.iter().all(|record| record.rank_tok_s.len() == 4 && record.rank_wait_s.len() == 4));

    // Four files of weights and four of moments; one device reads them, and they become one file.
    let step = cut.join("checkpoints/step-20");
    let files = std::fs::read_dir(&step).unwrap().count();
    assert_eq!(files, 9);
    let merged = dir.path().join("merged");
    checkpoint::convert(&cut, &merged, Format::Native, &SaveOptions::default()).unwrap();
    let one = NativeCheckpoint::open(&merged, Need::All).unwrap();
    let tensors = one.tensors(native::MODEL).unwrap();
    for (name, values) in last_checkpoint(&cut).iter().filter(|(name, _)| !name.starts_with("exp_avg")) {
        assert!(tensors.read_f32(name).unwrap().1 == *values, "{name}");
    }
    // The rectangles, as a reader of another number of ranks sees them.
    let sliced = NativeCheckpoint::open(&step, Need::All).unwrap().source(native::MODEL).unwrap();
    for index in 0..4 {
        for slice in config.model.slices(recua::model::Part { index, of: 4 }) {
            assert!(sliced.read_slice(&slice).unwrap() == tensors.read_slice(&slice).unwrap(), "{slice:?}");
        }
    }
}

#[test]
fn what_cannot_be_split_is_told_before_anything_starts() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset(dir.path());
    let refused = |ranks: usize, change: &dyn Fn(&mut RunConfig)| {
        let mut config = run_config(&data, ParallelConfig::default(), 10);
        change(&mut config);
        let run = dir.path().join("refused");
        let e = train_ranks(ranks, &config, &run, &Start::Fresh, 0).unwrap_err().to_string();
        assert!(!run.join("config.toml").exists(), "{e}");
        e
    };
    let says = |e: String, all: &[&str]| all.iter().for_each(|part| assert!(e.contains(part), "{e}: no `{part}`"));
    says(refused(3, &|c| c.parallel.tp = 3), &["parallel.tp", "n_heads = 8", "1, 2, 4"]);
    says(refused(8, &|c| c.parallel.tp = 8), &["parallel.tp", "n_kv_heads = 4", "1, 2, 4"]);
    says(
        refused(2, &|c| (c.parallel.tp, c.parallel.sequence, c.train.seq_len) = (2, true, Some(31))),
        &["parallel.sequence", "31"],
    );
    says(refused(2, &|c| c.parallel.tp = 4), &["parallel", "2 ranks"]);
    says(refused(1, &|c| c.parallel.tp = 2), &["parallel", "1 ranks"]);
    says(refused(3, &|_| {}), &["parallel.dp", "train.batch 4"]);
    says(refused(2, &|c| c.train.micro_batch = Some(4)), &["parallel.dp", "train.micro_batch to one of 1, 2"]);
    says(refused(2, &|c| c.train.autodiff = true), &["train.autodiff"]);
    says(refused(2, &|c| c.train.update_in_backward = true), &["train.update_in_backward"]);
    says(refused(2, &|c| c.parallel.zero = 3), &["parallel.zero", "0, 1 or 2"]);
}

#[test]
fn a_timeline_shows_what_every_rank_computes_and_exchanges() {
    let dir = tempfile::tempdir().unwrap();
    let (ranks, parallel) = of(2, 2, true, 1);
    let config = run_config(&dataset(dir.path()), parallel, 6);
    let (run, path) = (dir.path().join("run"), dir.path().join("trace.json"));
    let backend: BackendName = "flex".parse().unwrap();
    let results = run_ranks(ranks, LocalOptions::default(), |world| {
        let watch = Watch { trace: Some(Arc::new(Trace::new(&path))), ..Watch::default() };
        let stop = AtomicBool::new(false);
        train_on(config.clone(), &run, &Start::Fresh, &backend, world, watch, &stop, &mut (), &mut |_, _, _| Ok(())).map(drop)
    });
    results.into_iter().for_each(|result| result.unwrap());
    let trace: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    for rank in 0..ranks {
        let spans = |category: &str| -> Vec<&str> {
            let of = events.iter().filter(|e| e["pid"] == rank && e["cat"] == category);
            of.map(|e| {
                assert!(e["ph"] == "X" && e["ts"].as_f64().unwrap() >= 0.0 && e["dur"].as_f64().unwrap() >= 0.0, "{e}");
                e["name"].as_str().unwrap()
            })
            .collect()
        };
        let count = |all: &[&str], name: &str| all.iter().filter(|n| **n == name).count();
        let (computed, exchanged) = (spans("computation"), spans("communication"));
        // Three steps.
        assert_eq!(count(&computed, "backward, layers.2.feed_forward.w13.weight"), 3, "rank {rank}: {computed:?}");
        assert_eq!(count(&computed, "norm, update"), 3);
        // A layer gathers twice forward, four times backward; scatters twice forward, once more for what is computed again, twice backward.
        let layers = config.model.n_layers;
        assert_eq!(count(&exchanged, "tp reduce_scatter"), 3 * (5 * layers + 2), "rank {rank}: {exchanged:?}");
        assert!(count(&exchanged, "dp reduce_scatter") >= 9 && count(&exchanged, "dp all_gather") >= 6);
        assert_eq!(spans("waiting").len(), exchanged.len(), "rank {rank}");
    }
}
