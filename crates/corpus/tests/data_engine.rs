//! The engine of the data pipeline: tables, stages that survive a kill, and shuffles against plain references in memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    thread,
    time::Duration,
};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use recua_corpus::engine::{
    Drops, Duplicates, Fate, HashWriter, Hashes, Manifest, Output, Pending, Progress, Shard, Shuffle, ShuffleOptions, SortRow,
    SortWriter, StageSpec, Table, TableWriter, config_hash, descending, doc_key, find, input_hash, run_shards, shard_of,
};
use recua_corpus::{Cleaned, Record, Rejected, Removed};
use recua_corpus::{Error, Result};
use tempfile::tempdir;

fn below(rng: &mut ChaCha8Rng, n: u64) -> u64 {
    rng.next_u64() % n
}

fn record(id: impl Into<String>, text: impl Into<String>) -> Record {
    Record { id: id.into(), text: text.into(), meta: Default::default() }
}

/// Everything in a folder but what may differ between runs, by name.
fn outputs(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let names = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let names = names.filter(|n| !n.ends_with(".timing.json") && !n.ends_with(".lock"));
    names.map(|n| (n.clone(), fs::read(dir.join(&n)).unwrap())).collect()
}

fn write_table(path: &Path, records: &[Record]) {
    let mut table = TableWriter::create(path, "test").unwrap();
    records.iter().for_each(|r| table.push(r).unwrap());
    table.finish().unwrap();
}

/// Shards of different sizes, with documents that a stage keeps, drops, changes and rejects.
fn corpus(dir: &Path, shards: usize, docs: usize) -> Vec<Shard> {
    fs::create_dir_all(dir).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let files = (0..shards).map(|s| {
        let path = dir.join(format!("in-{s:03}.parquet"));
        let records: Vec<_> = (0..docs * (1 + s % 3))
            .map(|i| {
                let text: String = (0..below(&mut rng, 400)).map(|_| (b'a' + below(&mut rng, 26) as u8) as char).collect();
                record(format!("{s}/{i}"), text)
            })
            .collect();
        write_table(&path, &records);
        path
    });
    Shard::number(files.collect::<Vec<_>>())
}

fn spec(inputs: &[Shard], out: &Path) -> StageSpec {
    StageSpec::new("clean", "test", inputs.to_vec(), out, config_hash(&"settings").unwrap())
}

/// A cleaner by the length of the text: of ten documents one is rejected, one dropped, two lose a piece.
fn stage(shard: &Shard, out: &mut Output<'_>) -> Result<()> {
    let read = |sink: &mut recua_corpus::Sink<'_>| {
        for (i, record) in Table::open(&shard.files[0])?.enumerate() {
            let record = record?;
            if record.text.len() % 10 == 3 {
                sink(Err(Rejected { place: format!("record {i}"), reason: "a length ending in 3".into() }))?;
            } else {
                sink(Ok(record))?;
            }
        }
        Ok(())
    };
    out.clean(read, |record| match record.text.len() % 10 {
        4 => Cleaned::dropped("ends_in_4"),
        5 | 6 => {
            record.meta.insert("cut".into(), true.into());
            let (gone, kept) = record.text.split_at(5);
            let removed = vec![Removed::new("first_five", gone), Removed::new("nothing", "")];
            Cleaned { text: kept.to_owned(), dropped: None, removed }
        }
        _ => Cleaned::kept(record.text.to_uppercase()),
    })
}

#[test]
fn a_stage_keeps_drops_rejects_and_counts() {
    let dir = tempdir().unwrap();
    let inputs = corpus(&dir.path().join("in"), 4, 200);
    let out = dir.path().join("out");
    let progress = Progress::default();
    let spec = spec(&inputs, &out);
    let summary = run_shards(&spec, stage, &progress).unwrap();
    assert_eq!((summary.done, summary.skipped), (4, 0));
    // The reference: the same rules over all documents, one after another.
    let (mut kept, mut dropped, mut rejected, mut pieces, mut read, mut bytes) = (vec![], vec![], 0, 0, 0, 0);
    for shard in &inputs {
        for r in Table::open(&shard.files[0]).unwrap().map(|r| r.unwrap()) {
            if r.text.len() % 10 != 3 {
                read += 1;
                bytes += r.text.len() as u64;
            }
            match r.text.len() % 10 {
                3 => rejected += 1,
                4 => dropped.push(r),
                5 | 6 => {
                    pieces += 1;
                    let mut cut = record(r.id, &r.text[5..]);
                    cut.meta.insert("cut".into(), true.into());
                    kept.push(cut);
                }
                _ => kept.push(record(r.id, r.text.to_uppercase())),
            }
        }
    }
    assert!(rejected > 20 && dropped.len() > 20 && pieces > 40);
    let tables = spec.tables();
    let got: Vec<_> = tables.iter().flat_map(|s| Table::open(&s.files[0]).unwrap()).map(|r| r.unwrap()).collect();
    assert!(got == kept);
    let counts = &summary.counts;
    assert_eq!((counts.docs_in, counts.bytes_in, counts.rejected), (read, bytes, rejected));
    assert_eq!(counts.docs_out, kept.len() as u64);
    assert_eq!(counts.bytes_out, kept.iter().map(|r| r.text.len() as u64).sum::<u64>());
    assert_eq!(counts.dropped, BTreeMap::from([("ends_in_4".to_owned(), dropped.len() as u64)]));
    assert_eq!(counts.removed, BTreeMap::from([("first_five".to_owned(), pieces), ("nothing".to_owned(), pieces)]));
    assert_eq!(progress.docs_in.load(Relaxed), read);
    assert_eq!(progress.docs_out.load(Relaxed), counts.docs_out);
    assert_eq!(progress.shards_done.load(Relaxed), 4);
    // What is written down of documents that went and pieces that went.
    let id = &dropped[1].id;
    let fates = find(&out, id).unwrap();
    let [Fate::Dropped { shard, reason, text }] = fates.as_slice() else { panic!("{fates:?}") };
    assert_eq!((shard.as_str(), reason.as_str(), text), ("shard-00000", "ends_in_4", &dropped[1].text));
    let cut = kept.iter().find(|r| r.meta.contains_key("cut")).unwrap();
    let fates = find(&out, &cut.id).unwrap();
    assert!(matches!(&fates[0], Fate::Kept { text, meta, .. } if *text == cut.text && *meta == cut.meta), "{fates:?}");
    assert!(matches!(&fates[1], Fate::Removed { rule, text, .. } if rule == "first_five" && text.len() == 5), "{fates:?}");
    assert!(matches!(&fates[2], Fate::Removed { rule, .. } if rule == "nothing"), "{fates:?}");
    assert_eq!(fates.len(), 3);
    assert_eq!(find(&out, "no such document").unwrap(), []);
    let lines: u64 = fs::read_dir(&out)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.to_str().unwrap().ends_with(".rejected.jsonl"))
        .map(|p| fs::read_to_string(p).unwrap().lines().filter(|l| l.ends_with(r#""reason":"a length ending in 3"}"#)).count())
        .sum::<usize>() as u64;
    assert_eq!(lines, rejected);
}

#[test]
fn one_in_so_many_documents_shows_its_pieces() {
    let dir = tempdir().unwrap();
    let inputs = corpus(&dir.path().join("in"), 1, 2000);
    let shown = |one_in: u64| {
        let mut spec = spec(&inputs, &dir.path().join(format!("out-{one_in}")));
        spec.show_one_in = one_in;
        let counts = run_shards(&spec, stage, &Progress::default()).unwrap().counts;
        let ids: BTreeSet<_> = Table::open(spec.out.join("shard-00000.parquet"))
            .unwrap()
            .map(|r| r.unwrap())
            .filter(|r| r.meta.contains_key("cut"))
            .map(|r| r.id)
            .collect();
        let shown = ids.iter().filter(|id| find(&spec.out, id).unwrap().len() > 1).cloned().collect::<BTreeSet<_>>();
        assert_eq!(counts.removed["first_five"], ids.len() as u64, "all are counted");
        (ids, shown)
    };
    let (all, first) = shown(1);
    assert_eq!(all, first);
    assert_eq!(shown(0).1, BTreeSet::new());
    let (_, tenth) = shown(10);
    assert!(tenth.len() > all.len() / 20 && tenth.len() < all.len() / 5, "{} of {}", tenth.len(), all.len());
}

#[test]
fn outputs_do_not_depend_on_threads_or_ranks() {
    let dir = tempdir().unwrap();
    let inputs = corpus(&dir.path().join("in"), 7, 60);
    let run = |name: &str, threads: usize, world: usize| {
        let mut spec = spec(&inputs, &dir.path().join(name));
        spec.threads = threads;
        let mut docs = Vec::new();
        for rank in (0..world).rev() {
            spec.world = (rank, world);
            let summary = run_shards(&spec, stage, &Progress::default()).unwrap();
            assert_eq!(summary.skipped, 0, "two ranks did the same shard");
            docs.push(summary.counts.docs_in);
        }
        spec.complete(Duration::ZERO).unwrap();
        (outputs(&spec.out), docs)
    };
    let (one, _) = run("one", 1, 1);
    assert_eq!(one.len(), 7 * 5, "{:?}", one.keys());
    assert!(run("four", 4, 1).0 == one);
    let (three, docs) = run("three", 2, 3);
    assert!(three == one);
    assert!(docs.iter().max().unwrap() < &(2 * docs.iter().min().unwrap()), "ranks have very different work: {docs:?}");
}

#[test]
fn only_what_changed_is_redone() {
    let dir = tempdir().unwrap();
    let inputs = corpus(&dir.path().join("in"), 5, 30);
    let mut spec = spec(&inputs, &dir.path().join("out"));
    let count = AtomicU64::new(0);
    let run = |spec: &StageSpec| {
        count.store(0, Relaxed);
        let counted = |shard: &Shard, out: &mut Output<'_>| {
            count.fetch_add(1, Relaxed);
            stage(shard, out)
        };
        let summary = run_shards(spec, counted, &Progress::default()).unwrap();
        assert_eq!(count.load(Relaxed), summary.done as u64);
        summary
    };
    assert_eq!(run(&spec).done, 5);
    let first = outputs(&spec.out);
    let manifest = fs::read(spec.out.join("shard-00001.manifest.json")).unwrap();
    let again = run(&spec);
    assert_eq!((again.done, again.skipped), (0, 5));
    let sum = spec.complete(Duration::ZERO).unwrap().iter().map(|m| m.counts.docs_in).sum::<u64>();
    assert_eq!(again.counts.docs_in, sum, "skipped shards count too");

    // The same contents with another time: read again, not done again. And the new time is remembered.
    let timing = || fs::read(spec.out.join("shard-00001.timing.json")).unwrap();
    let before = timing();
    let input = &inputs[1].files[0];
    let bytes = fs::read(input).unwrap();
    thread::sleep(Duration::from_millis(20));
    fs::write(input, &bytes).unwrap();
    assert_eq!(run(&spec).done, 0);
    assert_ne!(timing(), before);

    // Everything that makes a shard incomplete has just that one redone, and the outputs are as before.
    type Damage<'a> = (&'a str, &'a dyn Fn(&Path));
    let damage: [Damage<'_>; 6] = [
        ("no manifest", &|out| fs::remove_file(out.join("shard-00001.manifest.json")).unwrap()),
        ("no manifest", &|out| fs::write(out.join("shard-00001.manifest.json"), &manifest[..manifest.len() / 2]).unwrap()),
        ("no manifest", &|out| fs::write(out.join("shard-00001.manifest.json"), b"").unwrap()),
        ("made by another stage", &|out| {
            let text = String::from_utf8(manifest.clone()).unwrap().replace("\"clean\"", "\"read\"");
            fs::write(out.join("shard-00001.manifest.json"), text).unwrap();
        }),
        ("an output is not there", &|out| fs::remove_file(out.join("shard-00001.dropped.parquet")).unwrap()),
        ("an output is not there", &|out| {
            let table = fs::read(out.join("shard-00001.parquet")).unwrap();
            fs::write(out.join("shard-00001.parquet"), &table[..table.len() - 1]).unwrap();
        }),
    ];
    for (i, (why, damage)) in damage.iter().enumerate() {
        damage(&spec.out);
        // A temporary file of a process that was killed.
        fs::write(spec.out.join("shard-00001.parquet.tmp-1-0"), b"half").unwrap();
        let missing = spec.missing().unwrap();
        assert_eq!((missing.len(), missing[0].shard.as_str()), (1, "shard-00001"), "damage {i}");
        assert!(missing[0].why.starts_with(why), "damage {i}: {}", missing[0].why);
        assert_eq!(run(&spec).done, 1, "damage {i}");
        assert!(outputs(&spec.out) == first, "damage {i}");
    }

    // A changed byte of the same size is seen when asked for.
    let table = spec.out.join("shard-00003.parquet");
    let mut bytes = fs::read(&table).unwrap();
    bytes[100] ^= 1;
    fs::write(&table, bytes).unwrap();
    assert_eq!(run(&spec).done, 0);
    spec.verify = true;
    assert_eq!(run(&spec).done, 1);
    assert!(outputs(&spec.out) == first);

    // Another input, other settings, fewer inputs.
    write_table(&inputs[2].files[0], &[record("new", "document")]);
    assert_eq!(run(&spec).done, 1);
    spec.config_hash = config_hash(&"other settings").unwrap();
    assert_eq!(run(&spec).done, 5);
    fs::write(spec.out.join("notes.txt"), "the user's own").unwrap();
    spec.inputs.truncate(3);
    assert_eq!(run(&spec).skipped, 3);
    let names = outputs(&spec.out);
    assert!(!names.keys().any(|n| n.starts_with("shard-00003") || n.starts_with("shard-00004")), "{:?}", names.keys());
    assert!(names.contains_key("notes.txt"));
}

#[test]
fn an_error_stops_the_stage_and_the_rest_is_done_later() {
    let dir = tempdir().unwrap();
    let inputs = corpus(&dir.path().join("in"), 6, 30);
    let whole = spec(&inputs, &dir.path().join("whole"));
    run_shards(&whole, stage, &Progress::default()).unwrap();
    let mut spec = spec(&inputs, &dir.path().join("out"));
    spec.threads = 1;
    let failing = |shard: &Shard, out: &mut Output<'_>| {
        stage(shard, out)?;
        // The third by size.
        if shard.name == "shard-00001" { Err(Error::bad_value("test", "as planned", "go on")) } else { Ok(()) }
    };
    let error = run_shards(&spec, failing, &Progress::default()).unwrap_err();
    assert!(error.to_string().contains("as planned"), "{error}");
    let error = spec.complete(Duration::from_millis(10)).unwrap_err().to_string();
    assert!(error.contains("4 of 6 shards are missing, shard-00000 (no manifest), shard-00001 (no manifest)"), "{error}");
    assert!(!outputs(&spec.out).keys().any(|n| n.starts_with("shard-00001")), "a failed shard must leave nothing");
    let summary = run_shards(&spec, stage, &Progress::default()).unwrap();
    assert_eq!((summary.done, summary.skipped), (4, 2));
    assert!(outputs(&spec.out) == outputs(&whole.out));

    // A reader that fails in the middle, and a writer that does.
    let half = |_: &Shard, out: &mut Output<'_>| {
        out.clean(
            |sink| {
                sink(Ok(record("a", "b")))?;
                Err(Error::bad_value("reader", "broke", "-"))
            },
            |r| Cleaned::kept(r.text.clone()),
        )
    };
    spec.config_hash = "2".into();
    assert!(run_shards(&spec, half, &Progress::default()).unwrap_err().to_string().contains("broke"));
    let full = |_: &Shard, out: &mut Output<'_>| {
        let read = |sink: &mut recua_corpus::Sink<'_>| (0..1_000_000).try_for_each(|_| sink(Ok(record("a", "b"))));
        out.map(read, |r| r, |_, _| Err(Error::bad_value("disk", "full", "-")))
    };
    assert!(run_shards(&spec, full, &Progress::default()).unwrap_err().to_string().contains("full"));
}

#[test]
fn mistakes_of_the_caller_are_named() {
    let dir = tempdir().unwrap();
    let inputs = corpus(&dir.path().join("in"), 2, 3);
    let good = spec(&inputs, &dir.path().join("out"));
    let run = |spec: &StageSpec| run_shards(spec, stage, &Progress::default());
    let error = run(&StageSpec { world: (3, 3), ..good.clone() }).unwrap_err().to_string();
    assert!(error.contains("got rank 3 of 3"), "{error}");
    for name in ["", "a.b", "a/b", "..", "shard-00001"] {
        let mut bad = good.clone();
        bad.inputs[0].name = name.into();
        assert!(matches!(run(&bad), Err(Error::BadValue { .. })), "`{name}`");
    }
    // Two processes with one rank.
    run(&good).unwrap();
    let held = fs::File::open(good.out.join(".rank-0-of-1.lock")).unwrap();
    held.lock().unwrap();
    let error = run(&good).unwrap_err().to_string();
    assert!(error.contains("rank 0 of 1 runs already"), "{error}");
    drop(held);
    run(&good).unwrap();
    // Documents where none were announced; outputs that would hide each other.
    let none = StageSpec { documents: false, out: dir.path().join("none"), ..good.clone() };
    assert!(run_shards(&none, |_, out| out.keep(&record("a", "b")), &Progress::default()).is_err());
    let twice = |_: &Shard, out: &mut Output<'_>| {
        out.blob("a.json", b"1")?;
        out.blob("a.json", b"2")
    };
    assert!(run_shards(&none, twice, &Progress::default()).is_err());
    assert!(run_shards(&none, |_, out| out.blob("manifest.json", b"{}"), &Progress::default()).is_err());
    assert!(run_shards(&none, |_, out| out.blob("a.json", b"1"), &Progress::default()).is_ok());
    assert_eq!(fs::read(none.out.join("shard-00000.a.json")).unwrap(), b"1");
}

#[test]
fn the_reader_waits_for_the_writer() {
    let dir = tempdir().unwrap();
    let inputs = corpus(&dir.path().join("in"), 1, 1);
    let spec = spec(&inputs, &dir.path().join("out"));
    let (read, written, most) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let text = "x".repeat(1 << 20);
    let slow = |_: &Shard, out: &mut Output<'_>| {
        let reader = |sink: &mut recua_corpus::Sink<'_>| {
            (0..100).try_for_each(|i| {
                let ahead = read.fetch_add(1, Relaxed) + 1 - written.load(Relaxed);
                most.fetch_max(ahead, Relaxed);
                sink(Ok(record(i.to_string(), text.clone())))
            })
        };
        out.map(
            reader,
            |r| r,
            |_, _| {
                thread::sleep(Duration::from_millis(1));
                written.fetch_add(1, Relaxed);
                Ok(())
            },
        )
    };
    run_shards(&spec, slow, &Progress::default()).unwrap();
    assert_eq!(written.load(Relaxed), 100);
    // Three batches of 4 MiB behind the reader, and the one that it fills.
    assert!(most.load(Relaxed) <= 17, "{} records of 1 MiB in flight", most.load(Relaxed));
}

/// The same test binary as another process, in which only the ignored test `name` of this file runs.
fn child(name: &str, variables: &[(&str, &str)]) -> Child {
    let module = module_path!().split_once("::").map_or("", |(_, module)| module);
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("{module}::{name}"), "--ignored", "--nocapture", "--test-threads=1"]);
    command.envs(variables.iter().copied()).stdout(Stdio::piped()).stderr(Stdio::null());
    command.spawn().unwrap()
}

#[test]
#[ignore = "the process that `a_killed_run_ends_like_one_that_was_not` kills"]
fn child_stage() {
    let dir = PathBuf::from(std::env::var("RECUA_ENGINE_CHILD").expect("started by the test that kills it"));
    let inputs: Vec<_> = (0..8).map(|s| dir.join(format!("in/in-{s:03}.parquet"))).collect();
    let slow = |shard: &Shard, out: &mut Output<'_>| {
        thread::sleep(Duration::from_millis(10));
        stage(shard, out)
    };
    let mut spec = spec(&Shard::number(inputs), &dir.join("out"));
    spec.threads = 2;
    run_shards(&spec, slow, &Progress::default()).unwrap();
}

#[test]
fn a_killed_run_ends_like_one_that_was_not() {
    let dir = tempdir().unwrap();
    let inputs = corpus(&dir.path().join("in"), 8, 400);
    let whole = spec(&inputs, &dir.path().join("whole"));
    run_shards(&whole, stage, &Progress::default()).unwrap();
    let whole = outputs(&whole.out);
    let rounds: u64 = std::env::var("RECUA_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(6);
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let (mut kills, mut partial) = (0, 0);
    while kills < rounds {
        let _ = fs::remove_dir_all(dir.path().join("out"));
        loop {
            let mut child = child("child_stage", &[("RECUA_ENGINE_CHILD", dir.path().to_str().unwrap())]);
            let patience = below(&mut rng, 150);
            thread::sleep(Duration::from_millis(patience));
            child.kill().unwrap();
            if child.wait().unwrap().success() {
                break;
            }
            kills += 1;
            let done = fs::read_dir(dir.path().join("out")).map_or(0, |d| {
                d.filter(|e| e.as_ref().unwrap().file_name().to_str().unwrap().ends_with("manifest.json")).count()
            });
            partial += u64::from((1..8).contains(&done));
            if kills % 20 == 0 || kills >= rounds {
                // As a user would: once more, to the end.
                let end = self::child("child_stage", &[("RECUA_ENGINE_CHILD", dir.path().to_str().unwrap())]);
                assert!(end.wait_with_output().unwrap().status.success());
                break;
            }
        }
        assert!(outputs(&dir.path().join("out")) == whole, "after {kills} kills");
    }
    assert!(partial > 0, "no kill came in the middle; the times of this test are wrong");
}

#[cfg(feature = "ballista")]
#[path = "data_engine/cluster.rs"]
mod cluster;
#[path = "data_engine/table.rs"]
mod table;

#[path = "data_engine/shuffle.rs"]
mod shuffle;
