//! What `recua bench cluster` measures, over links whose speed is known.

use std::time::Duration;

use recua::bench::{self, ClusterBench};
use recua::parallel::cluster::Cluster;
use recua::parallel::{Link, LocalOptions, Mesh, ParallelConfig, Watch, run_ranks};

/// On `tp x dp` ranks, `tp` of them in a node.
fn measure(tp: usize, dp: usize, link: Link, largest: usize) -> Cluster {
    let config = ClusterBench { seconds: 0.02, largest, watts: Some(65.0), ..ClusterBench::default() };
    let options = LocalOptions { link: Some(link), ..LocalOptions::default() };
    let mut all = run_ranks(tp * dp, options, |world| {
        let mesh = Mesh::new(world, &ParallelConfig { tp, ..ParallelConfig::default() }, Watch::default()).unwrap();
        let context = "flex".parse::<recua::backend::BackendName>().unwrap().open().unwrap();
        bench::cluster(&context, Some(&mesh), "threads", &config).unwrap()
    });
    let first = all.swap_remove(0);
    for other in &all {
        let same = |c: &Cluster| (c.node.bandwidth.value, c.network.latency.value, c.device.matmul_flops.value);
        assert_eq!(same(other), same(&first), "ranks come to different descriptions");
    }
    first
}

/// On a machine that is busy an exchange takes longer than the link, never less.
fn near(what: &str, got: f64, link: f64, least: f64, most: f64) {
    assert!((least * link..most * link).contains(&got), "{what}: measured {got:e}, the link has {link:e}");
}

#[test]
fn links_are_measured_as_they_are() {
    let link = Link { latency: Duration::from_millis(4), bytes_per_s: 20e6 };
    let cluster = measure(2, 1, link, 1 << 20);
    assert_eq!(cluster.devices_per_node, 2);
    near("bandwidth", cluster.node.bandwidth.value, 20e6, 0.3, 1.2);
    near("latency", cluster.node.latency.value, 4e-3, 0.95, 5.0);
    // An all-reduce of two ranks moves each byte once in each direction: twice (n - 1) / n.
    let curve = &cluster.node.all_reduce;
    assert!(curve.len() == 5 && curve.windows(2).all(|pair| pair[0][1] < 2.0 * pair[1][1]), "{curve:?}");
    near("an all-reduce of 1 MiB", curve[4][1] * 1e-6, 4e-3 + 1048576.0 / 20e6, 0.95, 3.0);
    // What a plan takes for half of one.
    near("half of 1 MiB", cluster.half(2, 1, 1048576.0), 4e-3 + 0.5 * 1048576.0 / 20e6, 0.8, 3.0);

    // Two nodes of one device: the network's.
    let cluster = measure(1, 2, link, 256 << 10);
    assert_eq!((cluster.devices_per_node, cluster.node.all_reduce.len()), (1, 0));
    near("the network's bandwidth", cluster.network.bandwidth.value, 20e6, 0.3, 1.2);
    near("the network's latency", cluster.network.latency.value, 4e-3, 0.95, 5.0);
}

#[test]
fn a_measured_description_is_one_that_plans_read() {
    let link = Link { latency: Duration::from_micros(100), bytes_per_s: 1e9 };
    let cluster = measure(2, 1, link, 64 << 10);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("here.toml");
    std::fs::write(&path, cluster.to_toml().unwrap()).unwrap();
    let read = Cluster::open(path.to_str().unwrap()).unwrap();
    assert_eq!(read, cluster);
    let (device, schedule) = (&cluster.device, &cluster.schedule);
    // A core of anything gives a hundred million operations a second, and no two of them a hundred million million.
    for speed in [&device.matmul_flops, &device.peak_flops, &device.attention_forward_flops, &device.attention_backward_flops] {
        assert!((1e8..1e14).contains(&speed.value), "{speed:?}");
    }
    assert!((1e8..1e13).contains(&device.memory_bandwidth.value) && device.memory_bytes.value > 1e8);
    assert!((0.0..=1.0).contains(&schedule.dp_hidden.value) && schedule.efficiency.fitted);
    assert_eq!((device.watts.value, device.watts.source.as_str()), (65.0, "stated"));
    assert!(device.matmul_flops.source.starts_with("measured"));
}
