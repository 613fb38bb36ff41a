//! The shuffles against plain references in memory.

use super::*;

pub(super) fn shuffle(dir: &Path, threads: usize, memory: usize) -> Shuffle {
    Shuffle::new(ShuffleOptions { memory, threads, spill: dir.join("spill"), scheduler: None }).unwrap()
}

/// A document: its key, its rank and the hashes of its lines.
pub(super) type Doc = (u64, u64, Vec<u128>);

/// Random documents over few hashes and ranks, so that there are ties of every kind.
pub(super) fn documents(rng: &mut ChaCha8Rng, hashes: Hashes, count: u64) -> Vec<Doc> {
    let (values, ranks) = (1 + below(rng, 4 * count.max(1)), 1 + below(rng, 5));
    let shards = 1 + below(rng, 4) as u32;
    let mut places = vec![0; shards as usize];
    (0..count)
        .map(|_| {
            let shard = below(rng, shards.into()) as u32;
            places[shard as usize] += 1 + below(rng, 3);
            let lines = (0..below(rng, 8)).map(|_| {
                // Far apart, so that all bits count; wide ones share halves.
                let half = |n: u64| u128::from(n.wrapping_mul(0x9E37_79B9_7F4A_7C15));
                if hashes.wide {
                    half(below(rng, values.isqrt() + 1)) << 64 | half(below(rng, values.isqrt() + 1))
                } else {
                    half(below(rng, values))
                }
            });
            let lines = lines.collect();
            (doc_key(shard, places[shard as usize]).unwrap(), below(rng, ranks), lines)
        })
        .collect()
}

/// Writes documents into `files` files, dealt out at random.
pub(super) fn write_hashes(dir: &Path, rng: &mut ChaCha8Rng, hashes: Hashes, docs: &[Doc], files: usize) -> Vec<PathBuf> {
    fs::create_dir_all(dir).unwrap();
    // A name with what DataFusion would take for patterns.
    let paths: Vec<_> = (0..files).map(|i| dir.join(format!("h [{i}] *?%20é.parquet"))).collect();
    let mut writers: Vec<_> = paths.iter().map(|p| HashWriter::create(p, hashes).unwrap()).collect();
    for (doc, rank, lines) in docs {
        writers[below(rng, files as u64) as usize].push(*doc, *rank, lines.iter().copied()).unwrap();
    }
    writers.into_iter().for_each(|w| drop(w.finish().unwrap().publish().unwrap()));
    paths
}

/// From the definitions, one rule after another over everything in memory.
fn duplicates(docs: &[Doc], rule: Duplicates) -> BTreeSet<(u64, u32)> {
    let mut owners: BTreeMap<u128, BTreeSet<(u64, u64)>> = BTreeMap::new();
    for (doc, rank, lines) in docs {
        let rank = if rule == Duplicates::KeepLowestRank { *rank } else { 0 };
        for hash in lines {
            owners.entry(*hash).or_default().insert((rank, *doc));
        }
    }
    let mut gone = BTreeSet::new();
    for (doc, _, lines) in docs {
        let mut seen = BTreeSet::new();
        for (line, hash) in lines.iter().enumerate() {
            let owners = &owners[hash];
            let loses = match rule {
                Duplicates::Everywhere => owners.len() > 1,
                Duplicates::KeepFirst | Duplicates::KeepLowestRank => owners.first().unwrap().1 != *doc,
            };
            if !seen.insert(hash) || loses {
                gone.insert((*doc, line as u32));
            }
        }
    }
    gone
}

/// The numbers of a result in their order.
fn rows(path: &Path) -> Vec<Vec<u64>> {
    use arrow::{array::AsArray, compute::cast, datatypes::DataType, datatypes::UInt64Type};
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
    let reader = ParquetRecordBatchReaderBuilder::try_new(fs::File::open(path).unwrap()).unwrap().build().unwrap();
    let mut rows = Vec::new();
    for batch in reader.map(|b| b.unwrap()) {
        let columns: Vec<_> = batch.columns().iter().map(|c| cast(c, &DataType::UInt64).unwrap()).collect();
        let value = |column: &arrow::array::ArrayRef, row| column.as_primitive::<UInt64Type>().value(row);
        rows.extend((0..batch.num_rows()).map(|row| columns.iter().map(|c| value(c, row)).collect::<Vec<_>>()));
    }
    rows
}

fn publish(pending: Pending) -> u64 {
    let rows = pending.rows();
    pending.publish().unwrap();
    rows
}

const KINDS: [Hashes; 4] =
    [Hashes::NARROW, Hashes::WIDE, Hashes { wide: false, ranked: true }, Hashes { wide: true, ranked: true }];

#[test]
fn duplicates_are_those_of_the_definition() {
    let dir = tempdir().unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let (one, three) = (shuffle(dir.path(), 1, 128 << 20), shuffle(dir.path(), 3, 200 << 20));
    let mut total = 0;
    for round in 0..40 {
        let hashes = KINDS[round % 4];
        let count = [0, 1, 2, 10, 100, 1000][below(&mut rng, 6) as usize];
        let docs = documents(&mut rng, hashes, count);
        let files = [1, 1, 2, 7][below(&mut rng, 4) as usize];
        let inputs = write_hashes(&dir.path().join(format!("in {round}")), &mut rng, hashes, &docs, files);
        for rule in [Duplicates::Everywhere, Duplicates::KeepFirst, Duplicates::KeepLowestRank] {
            if rule == Duplicates::KeepLowestRank && !hashes.ranked {
                continue;
            }
            let (a, b) = (dir.path().join("a.parquet"), dir.path().join("b.parquet"));
            let found = publish(one.duplicates(&inputs, hashes, rule, &a).unwrap());
            let expected = duplicates(&docs, rule);
            let got = rows(&a);
            let expected_rows: Vec<_> = expected.iter().map(|&(doc, line)| vec![doc, line.into()]).collect();
            assert!(got == expected_rows, "round {round}: {rule:?}, {hashes:?}, {count} documents in {files} files");
            assert_eq!(found, got.len() as u64);
            total += found;
            // More threads, and the files in another order: the same bytes.
            let reversed: Vec<_> = inputs.iter().rev().cloned().collect();
            publish(three.duplicates(&reversed, hashes, rule, &b).unwrap());
            assert_eq!(fs::read(&a).unwrap(), fs::read(&b).unwrap(), "round {round}: {rule:?}");
            // As the next stage reads them, shard by shard.
            for shard in 0..4 {
                let mut drops = Drops::open(&a, shard).unwrap();
                let mut ours: Vec<_> = docs.iter().map(|d| d.0).filter(|d| shard_of(*d) == shard).collect();
                ours.sort_unstable();
                for doc in ours {
                    let lines: Vec<_> = expected.range((doc, 0)..=(doc, u32::MAX)).map(|d| d.1).collect();
                    assert_eq!(drops.of(doc - doc_key(shard, 0).unwrap()).unwrap(), lines);
                }
            }
        }
    }
    assert!(total > 5000, "{total} duplicates are too few to show anything");
    drop((one, three));
    assert_eq!(fs::read_dir(dir.path().join("spill")).unwrap().count(), 0, "what was spilled must go");
}

#[test]
fn ccnet_drops_every_copy_and_repeats_within_a_document() {
    // The semantics in one small example: doc 0 = [a, b, a, c], doc 1 = [b, d, d], doc 2 = [e].
    let dir = tempdir().unwrap();
    let doc = |n| doc_key(0, n).unwrap();
    let docs = vec![(doc(0), 2, vec![1, 2, 1, 3]), (doc(1), 1, vec![2, 4, 4]), (doc(2), 0, vec![5])];
    let hashes = Hashes { wide: false, ranked: true };
    let inputs = write_hashes(dir.path(), &mut ChaCha8Rng::seed_from_u64(0), hashes, &docs, 1);
    let shuffle = shuffle(dir.path(), 1, 128 << 20);
    let out = dir.path().join("out.parquet");
    let gone = |rule| {
        publish(shuffle.duplicates(&inputs, hashes, rule, &out).unwrap());
        rows(&out)
    };
    assert_eq!(gone(Duplicates::Everywhere), [[doc(0), 1], [doc(0), 2], [doc(1), 0], [doc(1), 2]]);
    assert_eq!(gone(Duplicates::KeepFirst), [[doc(0), 2], [doc(1), 0], [doc(1), 2]]);
    assert_eq!(gone(Duplicates::KeepLowestRank), [[doc(0), 1], [doc(0), 2], [doc(1), 2]]);
}

#[test]
fn pairs_and_overlaps_are_those_of_the_definition() {
    let dir = tempdir().unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(12);
    let shuffles = [shuffle(dir.path(), 1, 128 << 20), shuffle(dir.path(), 2, 128 << 20)];
    let (mut pairs_found, mut overlaps_found, mut too_common) = (0, 0, 0);
    for round in 0..20 {
        let hashes = KINDS[round % 2];
        let count = [0, 1, 5, 60, 300][below(&mut rng, 5) as usize];
        let docs = documents(&mut rng, hashes, count);
        let files = 1 + below(&mut rng, 3) as usize;
        let inputs = write_hashes(&dir.path().join(format!("in {round}")), &mut rng, hashes, &docs, files);
        let mut groups: BTreeMap<u128, BTreeSet<u64>> = BTreeMap::new();
        for (doc, key) in docs.iter().flat_map(|(doc, _, keys)| keys.iter().map(move |key| (*doc, *key))) {
            groups.entry(key).or_default().insert(doc);
        }
        let mut pairs = BTreeSet::new();
        let mut shared: BTreeMap<(u64, u64), u64> = BTreeMap::new();
        let (max_docs, min_shared) = (2 + below(&mut rng, 5), 1 + below(&mut rng, 2));
        for group in groups.values() {
            pairs.extend(group.iter().skip(1).map(|other| vec![*group.first().unwrap(), *other]));
            too_common += usize::from(group.len() as u64 > max_docs);
            if group.len() as u64 <= max_docs {
                for a in group {
                    group.range(a + 1..).for_each(|b| *shared.entry((*a, *b)).or_default() += 1);
                }
            }
        }
        let overlaps: Vec<_> = shared.iter().filter(|(_, n)| **n >= min_shared).map(|((a, b), n)| vec![*a, *b, *n]).collect();
        for shuffle in &shuffles {
            let out = dir.path().join("out.parquet");
            pairs_found += publish(shuffle.pairs(&inputs, hashes, &out).unwrap());
            assert!(rows(&out).into_iter().eq(pairs.iter().cloned()), "round {round}: pairs");
            let found = shuffle.overlaps(&inputs, hashes, max_docs as u32, min_shared as u32, &out).unwrap();
            overlaps_found += publish(found);
            assert_eq!(rows(&out), overlaps, "round {round}: overlaps");
        }
    }
    assert!(pairs_found > 500 && overlaps_found > 500 && too_common > 20, "{pairs_found} {overlaps_found} {too_common}");
}

#[test]
fn posts_come_in_threads() {
    let dir = tempdir().unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(13);
    for (round, (count, files)) in [(0, 1), (1, 1), (300, 1), (5000, 4)].into_iter().enumerate() {
        // The second key from the highest to the lowest.
        let mut rows: Vec<_> = (0..count)
            .map(|row| {
                let score = below(&mut rng, 25) as i64 - 5;
                let text = format!("{row} é").repeat(below(&mut rng, 40) as usize);
                (below(&mut rng, 1 + count / 5), score, SortRow { key: [0, descending(score), row], text })
            })
            .collect();
        rows.iter_mut().for_each(|(first, _, row)| row.key[0] = *first);
        let paths: Vec<_> = (0..files).map(|f| dir.path().join(format!("{round}-{f}.parquet"))).collect();
        let mut writers: Vec<_> = paths.iter().map(|p| SortWriter::<3>::create(p).unwrap()).collect();
        rows.iter().for_each(|(.., row)| writers[below(&mut rng, files as u64) as usize].push(row).unwrap());
        writers.into_iter().for_each(|w| drop(w.finish().unwrap().publish().unwrap()));
        rows.sort_by_key(|(first, score, row)| (*first, -score, row.key[2]));
        let rows: Vec<_> = rows.into_iter().map(|(.., row)| row).collect();
        for threads in [1, 2] {
            let mut got = Vec::new();
            let mut take = |row: SortRow<3>| {
                got.push(row);
                Ok(())
            };
            shuffle(dir.path(), threads, 128 << 20).sort(&paths, &mut take).unwrap();
            assert!(got == rows, "round {round}, {threads} threads");
        }
        let mut fail = |_: SortRow<3>| Err(Error::bad_value("take", "no more", "-"));
        let stopped = shuffle(dir.path(), 1, 128 << 20).sort(&paths, &mut fail);
        assert_eq!(stopped.is_err(), count > 0, "the error of the closure comes back");
    }
}

#[test]
fn a_shuffle_is_a_stage() {
    // A million and a half of hashes with the least memory that is allowed.
    let dir = tempdir().unwrap();
    let inputs: Vec<_> = (0..3).map(|i| dir.path().join(format!("h{i}.parquet"))).collect();
    let (shards, docs, lines) = (3, 5000, 100);
    let mut rng = ChaCha8Rng::seed_from_u64(14);
    let mut counts: BTreeMap<u64, u64> = BTreeMap::new();
    for (i, path) in inputs.iter().enumerate() {
        let mut writer = HashWriter::create(path, Hashes::NARROW).unwrap();
        for doc in 0..docs {
            let hashes: Vec<u128> = (0..lines).map(|_| below(&mut rng, 4_000_000).into()).collect();
            hashes.iter().collect::<BTreeSet<_>>().into_iter().for_each(|h| *counts.entry(*h as u64).or_default() += 1);
            writer.push(doc_key(i as u32, doc).unwrap(), 0, hashes).unwrap();
        }
        writer.finish().unwrap().publish().unwrap();
    }
    let shuffle = shuffle(dir.path(), 1, 128 << 20);
    let mut spec = StageSpec::new("dedup", "test", vec![Shard::new("all", inputs)], dir.path().join("out"), "1".into());
    spec.documents = false;
    let work = |shard: &Shard, out: &mut Output<'_>| {
        let found = shuffle.duplicates(&shard.files, Hashes::NARROW, Duplicates::Everywhere, &out.path("drops.parquet"))?;
        out.add(found)
    };
    assert_eq!(run_shards(&spec, work, &Progress::default()).unwrap().done, 1);
    assert_eq!(run_shards(&spec, work, &Progress::default()).unwrap().skipped, 1);
    // Of every hash that one document alone has, one line stays; everything else goes.
    let alone = counts.values().filter(|n| **n == 1).count() as u64;
    let found = Table::open(spec.out.join("all.drops.parquet"));
    assert!(found.is_err(), "a list of duplicates is no document table");
    let mut drops = 0;
    for shard in 0..shards {
        let mut list = Drops::open(spec.out.join("all.drops.parquet"), shard).unwrap();
        drops += (0..docs).map(|doc| list.of(doc).unwrap().len() as u64).sum::<u64>();
    }
    assert_eq!(drops, u64::from(shards) * docs * lines - alone);
}

#[test]
fn mistakes_are_named() {
    let dir = tempdir().unwrap();
    let options = |memory, scheduler: Option<&str>| ShuffleOptions {
        memory,
        threads: 2,
        spill: dir.path().join("spill"),
        scheduler: scheduler.map(Into::into),
    };
    let error = Shuffle::new(options(100 << 20, None)).err().unwrap().to_string();
    assert!(error.contains("at least 134217728 bytes for 2 threads"), "{error}");
    if !cfg!(feature = "ballista") {
        let error = Shuffle::new(options(1 << 30, Some("df://localhost:1"))).err().unwrap().to_string();
        assert!(error.contains("--features ballista"), "{error}");
    }
    // A spill folder of a process that was killed goes; one in use stays.
    let left = dir.path().join("spill/spill.tmp-1-0");
    fs::create_dir_all(&left).unwrap();
    let shuffle = Shuffle::new(options(1 << 30, None)).unwrap();
    assert!(!left.exists());
    let _second = Shuffle::new(options(1 << 30, None)).unwrap();
    assert_eq!(fs::read_dir(dir.path().join("spill")).unwrap().count(), 2);
    let out = dir.path().join("out.parquet");
    let run =
        |path: &Path, hashes, rule| shuffle.duplicates(&[path.to_path_buf()], hashes, rule, &out).err().unwrap().to_string();
    let narrow = dir.path().join("narrow.parquet");
    HashWriter::create(&narrow, Hashes::NARROW).unwrap().finish().unwrap().publish().unwrap();
    assert!(run(&narrow, Hashes::NARROW, Duplicates::KeepLowestRank).contains("files without a rank"));
    assert!(
        run(&narrow, Hashes::WIDE, Duplicates::Everywhere).contains("column `hash_low`: expected UInt64, got no such column")
    );
    fs::write(&narrow, "x").unwrap();
    assert!(run(&narrow, Hashes::NARROW, Duplicates::Everywhere).contains("not a usable input of a shuffle"));
    assert!(run(&dir.path().join("none.parquet"), Hashes::NARROW, Duplicates::Everywhere).contains("cannot read"));
    assert!(!out.exists(), "a shuffle that failed leaves nothing");
    assert!(matches!(doc_key(1 << 24, 0), Err(Error::BadValue { .. })));
    assert!(matches!(doc_key(0, 1 << 40), Err(Error::BadValue { .. })));
    assert_eq!(shard_of(doc_key((1 << 24) - 1, (1 << 40) - 1).unwrap()), (1 << 24) - 1);
}
