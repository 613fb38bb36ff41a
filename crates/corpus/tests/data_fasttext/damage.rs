//! Files that are cut, damaged, or lie.

use std::{collections::HashMap, env, fs};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use recua_corpus::fasttext::{FastText, Prediction, TrainOptions};

use super::{
    samples,
    spec::{Spec, Table, below, specs},
    train::{LOSSES, lines, small, trained},
};

/// Small models of every kind, as files.
fn seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = specs().iter().step_by(3).map(Spec::bytes).collect();
    for loss in LOSSES {
        let options = TrainOptions { word_ngrams: 2, minn: 2, maxn: 3, dim: 3, bucket: 20, epoch: 1, ..small(loss) };
        seeds.push(trained(&options, &lines(30, 5)).to_bytes());
    }
    seeds
}

/// Reads a file's bytes, and where that works predicts. Says whether it worked.
fn survives(bytes: Vec<u8>) -> bool {
    let model = match FastText::from_bytes(bytes, "x.bin") {
        Ok(model) => model,
        Err(error) => {
            let error = error.to_string();
            assert!(error.starts_with("x.bin: not a usable fastText model: ") && error.contains("got"), "{error}");
            return false;
        }
    };
    let mut predictor = model.predictor();
    for text in ["", "the cat ka1 né2", "日本語 __label__x zebra </s> a", "\n"] {
        for k in [1, 3] {
            let found = predictor.predict(text, k, 0.0);
            assert!(found.len() <= k && found.iter().all(|found| found.probability.is_finite()), "{found:?}");
            assert!(found.is_sorted_by(|a: &Prediction<'_>, b| a.probability >= b.probability), "{found:?}");
        }
    }
    true
}

#[test]
fn files_that_are_cut_or_go_on_are_errors() {
    for bytes in seeds() {
        assert!(survives(bytes.clone()));
        for end in 0..bytes.len() {
            // Long models at every 7th byte.
            if end < 400 || end % 7 == 0 {
                assert!(!survives(bytes[..end].to_vec()), "{end} of {}", bytes.len());
            }
        }
        assert!(!survives([&bytes[..], b"\n"].concat()));
    }
}

#[test]
fn errors_say_what_was_expected_and_got() {
    let spec = Spec { labels: vec![("x".into(), 1), ("y".into(), 1)], ..specs().swap_remove(0) };
    let bytes =
        Spec { output: Table { rows: 2, dense: vec![0.0; 2 * spec.dim], ..Table::default() }, version: 12, ..spec }.bytes();
    let error = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = bytes.clone();
        change(&mut bytes);
        FastText::from_bytes(bytes, "m.bin").unwrap_err().to_string()
    };
    let set =
        |at: usize, number: i32| error(&move |bytes: &mut Vec<u8>| bytes[at..at + 4].copy_from_slice(&number.to_le_bytes()));
    assert!(survives(bytes.clone()));
    assert!(set(0, 1).contains("expected fastText's magic number 793712314, got 1;"), "{}", set(0, 1));
    assert!(set(4, 13).contains("expected version 11 or 12, got 13;"));
    assert!(set(4, 10).contains("expected version 11 or 12, got 10;"));
    assert!(set(8, 0).contains("expected a dimension of at least 1, got 0;"));
    assert!(set(8, 1000).contains("expected 1000 columns in the input matrix"));
    assert!(set(28, 65).contains("word n-grams of at most 64, got 65"));
    assert!(set(32, 5).contains("expected a loss from 1 to 4, got 5;"));
    assert!(set(36, 1).contains("got kind 1 (1 and 2 are word vectors)"));
    assert!(set(64, i32::MAX).contains("dictionary entries"));
    assert!(set(68, 1).contains("words and at least one label"));
    assert!(error(&|bytes| bytes.truncate(3)).contains("the file's end after 3 of them"));
    assert!(error(&|bytes| bytes.push(0)).contains("got 1 more"));
}

/// Where nothing but this process's own peak of memory can tell: runs the test again in a process of its own.
#[cfg(target_os = "linux")]
fn in_own_process(run: fn()) {
    const CHILD: &str = "RECUA_FASTTEXT_CHILD";
    if env::var_os(CHILD).is_some() {
        return run();
    }
    let name = std::thread::current().name().unwrap().to_owned();
    let child = std::process::Command::new(env::current_exe().unwrap())
        .args([&name, "--exact", "--nocapture", "--test-threads=1"])
        // One arena: those of threads reserve address space that they do not use, behind which what is asked for would hide.
        .envs([(CHILD, "1"), ("MALLOC_ARENA_MAX", "1")])
        .output()
        .unwrap();
    let out = String::from_utf8_lossy(&child.stdout);
    print!("{out}");
    assert!(child.status.success() && out.contains("1 passed"), "{out}{}", String::from_utf8_lossy(&child.stderr));
}

#[cfg(not(target_os = "linux"))]
fn in_own_process(run: fn()) {
    run();
}

/// The most address space that this process has had, in KiB; 0 where that is not known. Memory asked for counts, used or not.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

/// Memory that files of at most 1 MB may take: 16 times that, and as much for what the test itself holds.
const BOUND_KIB: u64 = 32 << 10;

/// By how much the peak has grown, which has to show if twice the bound is asked for.
fn growth(before: u64) -> u64 {
    let grown = peak() - before;
    let probe = Vec::<u8>::with_capacity((BOUND_KIB as usize) << 11);
    assert!(std::hint::black_box(probe).capacity() > 0 && (before == 0 || peak() - before > BOUND_KIB));
    grown
}

#[test]
fn sizes_that_lie_cost_nothing() {
    in_own_process(|| {
        let (mut read, mut all) = (0, 0);
        let seeds = seeds();
        let before = peak();
        for bytes in &seeds {
            let end = bytes.len().min(1500);
            for at in 0..end - 8 {
                for number in [i64::MAX, i64::MIN, 1 << 31, i64::from(i32::MAX), 1 << 40, -1, 0, 1, 1 << 20] {
                    for size in [4, 8] {
                        let mut bytes = bytes.clone();
                        bytes[at..at + size].copy_from_slice(&number.to_le_bytes()[..size]);
                        // All places of the header, others by turns.
                        if at < 100 || (at + number as u8 as usize).is_multiple_of(16) {
                            read += usize::from(survives(bytes));
                            all += 1;
                        }
                    }
                }
            }
        }
        let grown = growth(before);
        println!("{all} files, {read} of them read, {grown} KiB");
        assert!(read > 0 && read < all && grown < BOUND_KIB, "{read} of {all} read, grown by {grown} KiB");
    });
}

#[test]
fn damaged_files_are_errors_not_panics() {
    in_own_process(|| {
        let inputs: usize = env::var("RECUA_FUZZ").ok().and_then(|count| count.parse().ok()).unwrap_or(3000);
        let mut seeds = seeds();
        let published = samples().map(|folder| fs::read(folder.join("models/lid.176.ftz")).unwrap());
        // Its head with settings and words, and the place where words end and n-grams begin.
        seeds.extend(published.iter().flat_map(|bytes| [bytes[..4000].to_vec(), bytes[115_000..119_000].to_vec()]));
        let mut rng = ChaCha8Rng::seed_from_u64(6);
        let rng = &mut rng;
        let before = peak();
        let mut counts = HashMap::new();
        for round in 0..inputs {
            let whole = published.as_ref().filter(|_| round % 100 == 0);
            let mut bytes = whole.unwrap_or_else(|| &seeds[below(rng, seeds.len())]).clone();
            for _ in 0..=below(rng, 4) {
                // Half of the damage is done near the start, where the sizes are.
                let near = if below(rng, 2) == 0 { 200 } else { usize::MAX };
                let at = below(rng, bytes.len().min(near).max(1));
                let end = bytes.len().min(at + 1 + below(rng, 40));
                match below(rng, 7) {
                    0 if at < bytes.len() => bytes[at] ^= 1 << below(rng, 8),
                    1 if at < bytes.len() => bytes[at] = rng.next_u32() as u8,
                    2 if below(rng, 4) == 0 => bytes.truncate(at),
                    3 => {
                        let piece = bytes[at.min(end)..end].to_vec();
                        bytes.splice(at..at, piece);
                    }
                    4 => drop(bytes.drain(at.min(end)..end)),
                    5 => {
                        let other = &seeds[below(rng, seeds.len())];
                        let from = below(rng, other.len());
                        let piece = &other[from..other.len().min(from + end - at.min(end))];
                        bytes.splice(at.min(end)..end, piece.iter().copied());
                    }
                    _ => {
                        let nasty = [0i32, 1, -1, i32::MAX, i32::MIN, 64, 256, 0x7fc0_0000, 0x7f80_0000][below(rng, 9)];
                        let end = bytes.len().min(at + 4);
                        bytes.splice(at.min(end)..end, nasty.to_le_bytes());
                    }
                }
            }
            let kind = if whole.is_some() { "published" } else { "small" };
            *counts.entry((kind, survives(bytes))).or_insert(0) += 1;
        }
        let grown = growth(before);
        println!("{counts:?}, {grown} KiB");
        assert!(counts.len() == 2 + 2 * published.iter().len() && grown < BOUND_KIB, "{counts:?}, grown by {grown} KiB");
    });
}
