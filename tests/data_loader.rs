//! Shards to batches: an order that depends on nothing but seed and index, and every window exactly once.

use std::{
    collections::HashMap,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use recua::{
    data::{
        Batch, BatchSplit, Loader, LoaderState, MixturePart, Permutation, Prefetch, Schedule, Shards, TokenWindows,
        ValidationBatches, mix_key,
    },
    error::{Error, Result},
};
use tempfile::tempdir;

use super::{Random, counting};

fn loader(sources: &[(&Arc<Shards>, Option<f64>)], seq_len: usize, seed: u64) -> Arc<Loader> {
    let sources: Vec<_> = sources.iter().map(|(s, weight)| MixturePart { shards: (*s).clone(), weight: *weight }).collect();
    Arc::new(Loader::new(&sources, seq_len, seed).unwrap())
}

#[test]
fn permutations_are_bijections() {
    let mut sizes: Vec<u64> = (0..130).collect();
    sizes.extend([251, 256, 257, 1023, 1024, 1025, 4093, 65_535, 65_536, 65_537, 99_991]);
    for n in sizes {
        for key in [0, 1, u64::MAX] {
            let (order, mut seen) = (Permutation::new(n, key), vec![false; n as usize]);
            for i in 0..n {
                let image = order.apply(i) as usize;
                assert!(!std::mem::replace(&mut seen[image], true), "n {n}, key {key}: {image} twice");
            }
        }
    }
    for n in [u64::MAX, u64::MAX - 1, 1 << 63, (1 << 32) + 1, 0xFFFF_FFFF_0000_0000] {
        let order = Permutation::new(n, 5);
        assert!((0..1000).chain(n - 1000..n).all(|i| order.apply(i) < n));
    }
}

/// From a second implementation, in Python with unbounded integers. If these change, runs can no longer be resumed.
#[test]
fn the_order_never_changes() {
    assert_eq!(mix_key(&[1, 2, 3]), 0x064b_dee9_7f14_38ea);
    let first = |n, key, places: &[u64]| {
        let order = Permutation::new(n, key);
        places.iter().map(|i| order.apply(*i)).collect::<Vec<_>>()
    };
    assert_eq!(first(10, 42, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]), [9, 7, 2, 0, 6, 1, 8, 4, 5, 3]);
    assert_eq!(first(1_000_003, 7, &[0, 1, 2, 3, 4, 5]), [235_749, 603_964, 263_416, 644_566, 690_499, 680_681]);
    let ends = [7_530_695_217_322_189_349, 9_874_769_680_137_813_682, 13_452_037_945_990_495_426];
    assert_eq!(first(u64::MAX, 5, &[0, 1, u64::MAX - 1]), ends);
    let from = |weights: &[u64], seed, n| {
        let schedule = Schedule::new(weights, seed).unwrap();
        (0..n).map(|i| schedule.locate(i).0).collect::<Vec<_>>()
    };
    assert_eq!(from(&[3, 1, 2], 9, 18), [0, 1, 0, 2, 0, 2, 0, 1, 0, 2, 0, 2, 0, 1, 0, 2, 0, 2]);
    let paper = Schedule::integer_weights(&[67.0, 15.0, 4.5, 4.5, 4.5, 2.5, 2.0]).unwrap();
    assert_eq!(from(&paper, 1, 24), [0, 0, 4, 0, 0, 1, 0, 0, 6, 0, 0, 1, 0, 0, 2, 0, 0, 0, 3, 0, 0, 1, 0, 0]);
}

/// Over many keys, places, steps from place to place, and their correlation look like those of random permutations.
#[test]
fn permutations_look_random() {
    for n in [12_u64, 64, 100] {
        let (keys, n_) = (20_000_u64, n as usize);
        let mut images = vec![0_u32; n_ * n_];
        let mut fixed = 0_u64;
        let mut steps = vec![0_u32; n_];
        for key in 0..keys {
            let order = Permutation::new(n, key);
            for i in 0..n {
                let image = order.apply(i);
                images[i as usize * n_ + image as usize] += 1;
                fixed += u64::from(image == i);
                let step = (order.apply((i + 1) % n) + n - image) % n;
                steps[step as usize] += 1;
            }
        }
        // Each (place, image) pair is binomial; no one of the n^2 is 6.5 standard deviations off.
        let mean = keys as f64 / n as f64;
        let worst = images.iter().map(|c| (f64::from(*c) - mean).abs() / mean.sqrt()).fold(0.0, f64::max);
        assert!(worst < 6.5, "n {n}: {worst} standard deviations");
        assert!((fixed as f64 / keys as f64 - 1.0).abs() < 0.05, "n {n}: {fixed} fixed points over {keys} permutations");
        let mean = (keys * n) as f64 / (n - 1) as f64;
        assert_eq!(steps[0], 0);
        let worst = steps[1..].iter().map(|c| (f64::from(*c) - mean).abs() / mean.sqrt()).fold(0.0, f64::max);
        assert!(worst < 6.5, "n {n}: steps {worst} standard deviations off");
    }
    let (a, b) = (Permutation::new(10_000, 1), Permutation::new(10_000, 2));
    let same = (0..10_000).filter(|i| a.apply(*i) == b.apply(*i)).count();
    assert!(same < 12, "{same} places agree");
}

#[test]
fn shares_are_exact() {
    let mut random = Random(11);
    for case in 0..300 {
        let weights: Vec<u64> =
            (0..1 + random.below(8)).map(|_| 1 + random.next() % [3, 50, 1_000_000][random.below(3)]).collect();
        let total: u64 = weights.iter().sum();
        let schedule = Schedule::new(&weights, case).unwrap();
        let mut counted = vec![0_u64; weights.len()];
        for i in 0..3000.min(3 * total) {
            assert_eq!(schedule.counts(i), counted, "counts are the number of earlier samples, weights {weights:?}");
            let (source, place) = schedule.locate(i);
            assert_eq!(place, counted[source], "each source counts its own samples in order");
            counted[source] += 1;
            for (count, weight) in counted.iter().zip(&weights) {
                let due = (i + 1) as f64 * *weight as f64 / total as f64;
                assert!((*count as f64 - due).abs() < weights.len() as f64, "{count} of {due} after {i}, {weights:?}");
            }
        }
        for periods in [1, 2, 1000] {
            let expected: Vec<u64> = weights.iter().map(|w| w * periods).collect();
            assert_eq!(schedule.counts(total * periods), expected);
        }
        schedule.locate(u64::MAX);
    }
    for bad in [&[][..], &[1, 0], &[u64::MAX, 2], &[1 << 63]] {
        assert!(Schedule::new(bad, 0).is_err());
    }
    for bad in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e-7, 1e10] {
        assert!(Schedule::integer_weights(&[1.0, bad]).is_err());
    }
}

#[test]
fn an_epoch_is_every_window_once() {
    let dir = tempdir().unwrap();
    let sets =
        [(0, 1000), (100_000, 333), (200_000, 77)].map(|(first, n)| counting(dir.path(), &first.to_string(), first, n, 90));
    let all = loader(&[(&sets[0], None), (&sets[1], None), (&sets[2], None)], 9, 4);
    let windows: Vec<u64> = [999 / 9, 332 / 9, 76 / 9].into();
    assert_eq!(all.windows(), windows.iter().sum::<u64>());
    let seen = |epochs: u64| {
        let mut seen = HashMap::new();
        (0..epochs * all.windows()).for_each(|i| {
            let sample = all.sample(i);
            *seen.entry((sample.source, sample.window)).or_insert(0) += 1;
        });
        seen
    };
    for epochs in [1, 2] {
        let seen = seen(epochs);
        assert_eq!(seen.len() as u64, all.windows());
        assert!(seen.values().all(|times| *times == epochs));
    }
    let order = |seed, epoch: u64| -> Vec<u64> {
        let one = loader(&[(&sets[0], None)], 9, seed);
        (0..windows[0]).map(|i| one.sample(epoch * windows[0] + i).window).collect()
    };
    assert!(order(4, 0) != order(4, 1) && order(4, 0) != order(5, 0));
    assert!(!order(4, 0).is_sorted());

    // The tokens of a window are consecutive, and every token but the last few is a target exactly once.
    let batch = all.batch(0, all.windows() as usize).unwrap();
    assert_eq!((batch.batch as u64, batch.first_sample, batch.valid), (all.windows(), 0, all.windows() * 9));
    let rows: Vec<&[i32]> = batch.tokens.chunks(10).collect();
    assert!(rows.iter().all(|row| row.windows(2).all(|w| w[1] == w[0] + 1)));
    let mut targets: Vec<i32> = rows.iter().flat_map(|row| &row[1..]).copied().collect();
    targets.sort_unstable();
    let expected = [(0, windows[0]), (100_000, windows[1]), (200_000, windows[2])];
    assert!(targets.into_iter().eq(expected.into_iter().flat_map(|(first, n)| first + 1..first + 1 + 9 * n as i32)));
}

#[test]
fn weights_are_kept() {
    let dir = tempdir().unwrap();
    let a = counting(dir.path(), "a", 0, 500, 90);
    let b = counting(dir.path(), "b", 100_000, 300, 90);
    let c = counting(dir.path(), "c", 200_000, 200, 90);
    let mix = loader(&[(&a, Some(67.0)), (&b, Some(4.5)), (&c, Some(28.5))], 10, 1);
    let mut counted = [0; 3];
    mix.batch(0, 2000).unwrap().tokens.chunks(11).for_each(|row| counted[row[0] as usize / 100_000] += 1);
    assert_eq!(counted, [1340, 90, 570]);
    assert_eq!(mix.counts(2000), [1340, 90, 570]);
    let mut epochs = HashMap::new();
    (0..2000).map(|i| mix.sample(i)).for_each(|s| *epochs.entry(s).or_insert(0) += 1);
    assert!(epochs.values().all(|n| *n == 1), "within an epoch of its source no window comes twice");

    let sources = [(&a, Some(1.0)), (&b, None)].map(|(s, weight)| MixturePart { shards: s.clone(), weight });
    assert!(matches!(Loader::new(&sources, 10, 1), Err(Error::BadValue { .. })));
    for seq_len in [0, 500, usize::MAX] {
        let error = Loader::new(&sources[..1], seq_len, 1).unwrap_err();
        assert!(matches!(error, Error::BadValue { .. } | Error::Nothing { .. }), "{error}");
    }
    assert!(Loader::new(&[MixturePart { weight: None, ..sources[0].clone() }], 499, 1).is_ok());
    assert!(matches!(Loader::new(&[], 10, 1), Err(Error::Nothing { .. })));
}

fn take(batches: impl Iterator<Item = Result<Batch>>, n: usize) -> Vec<Batch> {
    batches.take(n).map(Result::unwrap).collect()
}

#[test]
fn order_is_a_function_of_the_index() {
    let dir = tempdir().unwrap();
    let a = counting(dir.path(), "a", 0, 500, 90);
    let b = counting(dir.path(), "b", 100_000, 300, 90);
    let mix = loader(&[(&a, Some(0.7)), (&b, Some(0.3))], 10, 1);
    let plan = BatchSplit::single(12, 4);
    let sequential = take(mix.batches(plan, 0).unwrap(), 60);
    assert_eq!(take(mix.batches(plan, 0).unwrap(), 60), sequential);
    for (k, batch) in sequential.iter().enumerate().rev() {
        assert_eq!(&mix.batch(4 * k as u64, 4).unwrap(), batch, "random access");
    }
    let again = loader(&[(&a, Some(0.7)), (&b, Some(0.3))], 10, 1);
    let prefetched = Prefetch::new(again.batches(plan, 0).unwrap(), 3, a.dir()).unwrap();
    assert_eq!(take(prefetched, 60), sequential);

    // Going on from any step is the same as never having stopped.
    for step in 0..20 {
        let next = again.resume(&mix.state(12 * step as u64)).unwrap();
        assert_eq!(take(again.batches(plan, next).unwrap(), 60 - 3 * step), sequential[3 * step..]);
    }
    // The samples of a step are the same for any number of ranks and any size of micro-batch.
    let step_tokens = |batches: &[Batch]| batches.iter().flat_map(|b| b.tokens.clone()).collect::<Vec<_>>();
    for (world_size, micro_batch) in [(1, 1), (1, 12), (2, 3), (3, 2), (4, 3), (12, 1)] {
        let mut steps = vec![Vec::new(); 20];
        for rank in 0..world_size {
            let plan = BatchSplit { batch: 12, micro_batch, rank, world_size };
            let n = plan.micro_batches();
            let mine = take(mix.batches(plan, 0).unwrap(), 20 * n);
            mine.chunks(n).zip(&mut steps).for_each(|(batches, step)| step.extend(step_tokens(batches)));
        }
        assert!(steps.concat() == step_tokens(&sequential), "{world_size} ranks");
    }
    for (batch, micro_batch, rank, world_size) in
        [(12, 5, 0, 1), (12, 4, 1, 1), (12, 4, 0, 2), (0, 1, 0, 1), (12, 0, 0, 1), (12, 4, 0, 0), (8, usize::MAX, 0, 2)]
    {
        assert!(mix.batches(BatchSplit { batch, micro_batch, rank, world_size }, 0).is_err());
    }
    assert!(mix.batch(u64::MAX, 2).is_err() && mix.batch(0, usize::MAX).is_err() && mix.batch(0, usize::MAX / 64).is_err());
    assert!(mix.batches(plan, u64::MAX - 20).unwrap().take(20).any(|batch| batch.is_err()));
}

#[test]
fn resuming_on_other_data_is_refused() {
    let dir = tempdir().unwrap();
    let a = counting(dir.path(), "a", 0, 500, 90);
    let b = counting(dir.path(), "b", 1, 500, 90);
    let one = loader(&[(&a, None)], 10, 1);
    let state = one.state(77);
    let json = serde_json::to_string(&state).unwrap();
    assert_eq!(serde_json::from_str::<LoaderState>(&json).unwrap(), state);
    assert_eq!(one.resume(&state).unwrap(), 77);
    let moved = counting(dir.path(), "elsewhere", 0, 500, 90);
    assert_eq!(loader(&[(&moved, None)], 10, 1).resume(&state).unwrap(), 77, "the same data under another name");
    let others: [(&str, Arc<Loader>); 5] = [
        ("seed", loader(&[(&a, None)], 10, 2)),
        ("seq_len", loader(&[(&a, None)], 11, 1)),
        ("data", loader(&[(&b, None)], 10, 1)),
        ("data", loader(&[(&a, None), (&b, None)], 10, 1)),
        ("data", loader(&[(&a, Some(3.0))], 10, 1)),
    ];
    for (says, other) in others {
        let error = other.resume(&state).unwrap_err();
        assert!(matches!(&error, Error::BadValue { key, .. } if key == says), "{error}");
    }
    let two = loader(&[(&a, None), (&b, None)], 10, 1).state(0);
    assert!(loader(&[(&b, None), (&a, None)], 10, 1).resume(&two).is_err());
}

#[test]
fn validation_reads_evenly_in_order_and_ends() {
    let dir = tempdir().unwrap();
    let windows = TokenWindows::new(counting(dir.path(), "a", 0, 105, 20), 10).unwrap();
    assert_eq!(windows.count(), 10);
    for (limit, rows) in [(None, vec![4, 4, 2]), (Some(5), vec![4, 1]), (Some(8), vec![4, 4]), (Some(99), vec![4, 4, 2])] {
        let batches: Vec<Batch> = ValidationBatches::new(windows.clone(), 4, limit).unwrap().map(Result::unwrap).collect();
        assert_eq!(batches.iter().map(|b| b.batch).collect::<Vec<_>>(), rows);
        assert!(batches.iter().all(|b| b.valid == 10 * b.batch as u64 && b.tokens.len() == 11 * b.batch));
        assert!(batches.iter().enumerate().all(|(i, b)| b.first_sample == 4 * i as u64));
        let tokens: Vec<i32> = batches.into_iter().flat_map(|b| b.tokens).collect();
        // Of ten windows five are every second; of eight, none is far from its share.
        let expected = match limit {
            Some(5) => vec![1, 3, 5, 7, 9],
            Some(8) => vec![0, 1, 3, 4, 5, 6, 8, 9],
            _ => (0..10).collect(),
        };
        assert!(tokens.into_iter().eq(expected.into_iter().flat_map(|w| 10 * w..=10 * w + 10)));
    }
    assert!(ValidationBatches::new(windows.clone(), 0, None).is_err());
    assert!(ValidationBatches::new(windows, 4, Some(0)).is_err());
}

#[test]
#[cfg(feature = "train")]
fn token_windows_are_a_burn_dataset() {
    use burn_dataset::Dataset;
    let dir = tempdir().unwrap();
    let windows = TokenWindows::new(counting(dir.path(), "a", 0, 105, 20), 10).unwrap();
    let set: &dyn Dataset<Vec<i32>> = &windows;
    assert_eq!(set.len(), 10);
    assert_eq!(set.get(9), Some((90..=100).collect()));
    assert_eq!((set.get(10), set.get(usize::MAX)), (None, None));
    assert_eq!(windows.iter().count(), 10);
}

#[test]
fn prefetching_hands_on_errors_and_panics_and_stops() {
    let batch = |i: u64| Ok(Batch { tokens: vec![], batch: 0, first_sample: i, valid: 0 });
    let data = Path::new("some/data");
    let mut failing =
        Prefetch::new((0..9).map(move |i| if i == 2 { Err(Error::bad_value("a", "b", "c")) } else { batch(i) }), 2, data)
            .unwrap();
    assert!(failing.next().unwrap().is_ok() && failing.next().unwrap().is_ok());
    assert!(matches!(failing.next(), Some(Err(Error::BadValue { .. }))));
    assert!(failing.next().is_none() && failing.next().is_none());

    let mut panicking = Prefetch::new((0..9).map(move |i| if i == 1 { panic!("boom {i}") } else { batch(i) }), 2, data).unwrap();
    assert!(panicking.next().unwrap().is_ok());
    let error = panicking.next().unwrap().unwrap_err().to_string();
    assert!(error.contains("boom 1") && error.contains("some/data"), "{error}");
    assert!(panicking.next().is_none());

    let mut ending = Prefetch::new((0..3).map(batch), 0, data).unwrap();
    assert_eq!(ending.by_ref().count(), 3);
    assert!(ending.next().is_none());

    // Never far ahead, and gone when dropped.
    struct Gone(Arc<Mutex<bool>>);
    impl Drop for Gone {
        fn drop(&mut self) {
            *self.0.lock().unwrap() = true;
        }
    }
    let (made, gone) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(false)));
    let (count, guard) = (made.clone(), Gone(gone.clone()));
    let endless = (0..).map(move |i| {
        let _ = &guard;
        count.fetch_add(1, Ordering::SeqCst);
        batch(i)
    });
    let mut ahead = Prefetch::new(endless, 2, data).unwrap();
    ahead.next();
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert!(made.load(Ordering::SeqCst) <= 4, "one taken, two waiting, one in hand");
    drop(ahead);
    assert!(*gone.lock().unwrap(), "the thread has ended");
}
