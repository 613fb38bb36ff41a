//! The same shuffles on a scheduler and two workers, each a process of its own.

use std::io::{BufRead, BufReader};

use recua::data::engine::{SchedulerOptions, WorkerOptions, scheduler, worker};

use super::*;

#[test]
#[ignore = "the scheduler's process"]
fn child_scheduler() {
    std::env::var("RECUA_ENGINE_CHILD").expect("started by another test");
    let options = SchedulerOptions { listen: ([127, 0, 0, 1], 0).into(), host: "127.0.0.1".into() };
    scheduler(&options, |address| println!("\nlistening on {address}")).unwrap();
}

#[test]
#[ignore = "a worker's process"]
fn child_worker() {
    let options = WorkerOptions {
        scheduler: std::env::var("RECUA_ENGINE_SCHEDULER").expect("started by another test"),
        host: "127.0.0.1".into(),
        ports: (0, 0),
        threads: 1,
        memory: 256 << 20,
        work: std::env::var("RECUA_ENGINE_CHILD").expect("started by another test").into(),
    };
    worker(&options).unwrap();
}

/// Ends a process when the test ends, whichever way.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_cluster_gives_the_same_bytes() {
    let dir = tempdir().unwrap();
    let folder = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let mut first = Running(child("cluster::child_scheduler", &[("RECUA_ENGINE_CHILD", &folder("scheduler"))]));
    let mut lines = BufReader::new(first.0.stdout.take().unwrap()).lines();
    let address = lines.by_ref().find_map(|l| l.unwrap().strip_prefix("listening on ").map(str::to_owned)).unwrap();
    let address = format!("df://{address}");
    let workers: Vec<_> = (0..2)
        .map(|i| {
            let work = folder(&format!("worker {i}"));
            Running(child("cluster::child_worker", &[("RECUA_ENGINE_CHILD", &work), ("RECUA_ENGINE_SCHEDULER", &address)]))
        })
        .collect();
    let mut rng = ChaCha8Rng::seed_from_u64(21);
    let here = super::shuffle::shuffle(dir.path(), 2, 128 << 20);
    let there =
        Shuffle::new(ShuffleOptions { memory: 128 << 20, threads: 4, spill: dir.path().join("spill"), scheduler: Some(address) });
    let there = there.unwrap();
    let (a, b) = (dir.path().join("a.parquet"), dir.path().join("b.parquet"));
    for (round, (hashes, count, files)) in
        [(Hashes { wide: false, ranked: true }, 3000, 4), (Hashes::WIDE, 500, 1), (Hashes::NARROW, 0, 2)].into_iter().enumerate()
    {
        let docs = super::shuffle::documents(&mut rng, hashes, count);
        let inputs = super::shuffle::write_hashes(&dir.path().join(format!("in {round}")), &mut rng, hashes, &docs, files);
        let run = |shuffle: &Shuffle, what: usize, out: &Path| -> u64 {
            let rules = [Duplicates::Everywhere, Duplicates::KeepFirst, Duplicates::KeepLowestRank];
            let pending = match what {
                0..3 => shuffle.duplicates(&inputs, hashes, rules[what], out),
                3 => shuffle.pairs(&inputs, hashes, out),
                _ => shuffle.overlaps(&inputs, hashes, 10, 1, out),
            };
            let pending = pending.unwrap();
            let rows = pending.rows();
            pending.publish().unwrap();
            rows
        };
        for what in (0..5).filter(|what| *what != 2 || hashes.ranked) {
            let (rows, theirs) = (run(&here, what, &a), run(&there, what, &b));
            assert_eq!(rows, theirs, "shuffle {what} of {hashes:?}");
            assert!(count == 0 || rows > 0, "shuffle {what} of {hashes:?} found nothing: the test shows nothing");
            assert_eq!(fs::read(&a).unwrap(), fs::read(&b).unwrap(), "shuffle {what} of {hashes:?}");
        }
    }
    // Both workers had part in it.
    for i in 0..workers.len() {
        let files = fs::read_dir(folder(&format!("worker {i}"))).unwrap().count();
        assert!(files > 0, "worker {i} did nothing");
    }
}
