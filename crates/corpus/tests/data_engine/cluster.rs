//! The same shuffles on a scheduler and two workers, each a process of its own.

use std::io::{BufRead, BufReader};

use recua_corpus::engine::{SchedulerOptions, WorkerOptions, scheduler, worker};

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
        host: [127, 0, 0, 1].into(),
        port: 0,
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

/// A scheduler and its address.
fn start_scheduler() -> (Running, String) {
    let mut scheduler = Running(child("cluster::child_scheduler", &[("RECUA_ENGINE_CHILD", "")]));
    let mut lines = BufReader::new(scheduler.0.stdout.take().unwrap()).lines();
    let address = lines.find_map(|l| l.unwrap().strip_prefix("listening on ").map(str::to_owned)).unwrap();
    (scheduler, format!("df://{address}"))
}

fn start_worker(work: &Path, scheduler: &str) -> Running {
    let work = work.to_str().unwrap();
    Running(child("cluster::child_worker", &[("RECUA_ENGINE_CHILD", work), ("RECUA_ENGINE_SCHEDULER", scheduler)]))
}

fn on_cluster(dir: &Path, scheduler: &str) -> Shuffle {
    let options = ShuffleOptions { memory: 256 << 20, threads: 4, spill: dir.join("spill"), scheduler: Some(scheduler.into()) };
    Shuffle::new(options).unwrap()
}

/// The folders of jobs in a worker's folder.
fn jobs(work: &Path) -> usize {
    let folders = fs::read_dir(work).into_iter().flatten().map(|e| e.unwrap().path());
    let folders = folders.filter(|p| p.is_dir()).flat_map(|p| fs::read_dir(p).unwrap()).map(|e| e.unwrap());
    folders.filter(|e| e.path().is_dir() && !e.file_name().to_str().unwrap().starts_with("datafusion-")).count()
}

#[test]
fn a_cluster_gives_the_same_bytes() {
    let dir = tempdir().unwrap();
    let (scheduler, address) = start_scheduler();
    let works = [dir.path().join("worker 0"), dir.path().join("worker 1")];
    let workers = works.each_ref().map(|work| start_worker(work, &address));
    let mut rng = ChaCha8Rng::seed_from_u64(21);
    let here = super::shuffle::shuffle(dir.path(), 2, 128 << 20);
    let there = on_cluster(dir.path(), &address);
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
    // Rows, some of them long; and both workers had part in it all.
    let paths: Vec<_> = (0..3).map(|i| dir.path().join(format!("rows {i}.parquet"))).collect();
    for (file, path) in paths.iter().enumerate() {
        let mut writer = SortWriter::<3>::create(path).unwrap();
        for row in (file as u64..3000).step_by(paths.len()) {
            let key = [below(&mut rng, 300), descending(below(&mut rng, 9) as i64), row];
            let text = "é ".repeat(if row % 500 == 0 { 1_000_000 } else { 100 });
            writer.push(&SortRow { key, text }).unwrap();
        }
        writer.finish().unwrap().publish().unwrap();
    }
    let sorted = |shuffle: &Shuffle| {
        let mut rows = Vec::new();
        let mut take = |row: SortRow<3>| {
            rows.push(row);
            Ok(())
        };
        shuffle.sort(&paths, &mut take).unwrap();
        rows
    };
    let rows = sorted(&here);
    assert!(rows.len() == 3000 && rows.is_sorted_by_key(|row| row.key) && rows == sorted(&there));
    let mut attempts = 0;
    while works.iter().any(|work| jobs(work) == 0) {
        attempts += 1;
        assert!(attempts < 100, "a worker did nothing: {:?}", works.each_ref().map(|w| jobs(w)));
        assert!(rows == sorted(&there));
    }
    drop((workers, scheduler));
}

#[test]
fn a_scheduler_that_is_gone_is_an_error() {
    let dir = tempdir().unwrap();
    let (scheduler, address) = start_scheduler();
    let work = dir.path().join("worker");
    let worker = start_worker(&work, &address);
    let mut rng = ChaCha8Rng::seed_from_u64(22);
    let docs = super::shuffle::documents(&mut rng, Hashes::NARROW, 100);
    let inputs = super::shuffle::write_hashes(&dir.path().join("in"), &mut rng, Hashes::NARROW, &docs, 1);
    let there = on_cluster(dir.path(), &address);
    let out = dir.path().join("out.parquet");
    there.pairs(&inputs, Hashes::NARROW, &out).unwrap().publish().unwrap();
    fs::remove_file(&out).unwrap();
    // The worker is killed, and the scheduler does not know it yet: the shuffle waits, until the scheduler is killed too.
    drop(worker);
    let mut finished = false;
    thread::scope(|scope| {
        let waiting = scope.spawn(|| there.pairs(&inputs, Hashes::NARROW, &out).map(|_| ()));
        thread::sleep(Duration::from_secs(2));
        finished = waiting.is_finished();
        drop(scheduler);
        let dying = waiting.join().unwrap();
        assert!(matches!(&dying, Err(Error::Backend { name, .. }) if *name == address), "{dying:?}");
    });
    assert!(!finished, "a shuffle without workers ended: the test shows nothing");
    let missing = there.pairs(&inputs, Hashes::NARROW, &out).map(|_| ()).unwrap_err();
    assert!(missing.to_string().starts_with(&format!("backend `{address}`: ")), "{missing}");
    assert!(missing.to_string().ends_with("is `recua data scheduler` running there?"), "{missing}");
    assert!(!out.exists(), "a shuffle that failed leaves nothing");
    // An address that is none is named before anything is asked.
    for scheduler in ["localhost:50050", "df://localhost", "df://:1", "df://localhost:port"] {
        let options =
            ShuffleOptions { memory: 256 << 20, threads: 4, spill: dir.path().join("spill"), scheduler: Some(scheduler.into()) };
        let wrong = Shuffle::new(options).map(|_| ()).unwrap_err();
        assert!(matches!(&wrong, Error::BadValue { .. }), "{wrong}");
    }
    // The folders of a worker that was killed go when the next one starts.
    assert!(fs::read_dir(&work).unwrap().count() > 0);
}
