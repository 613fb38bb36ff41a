//! Document tables, and damaged files of every kind.

use super::*;

#[test]
fn a_table_gives_back_what_was_written() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("a.parquet");
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut records: Vec<_> = (0..5000)
        .map(|i| {
            let text: String =
                (0..below(&mut rng, 300)).map(|_| char::from_u32(below(&mut rng, 0x2000) as u32 + 1).unwrap()).collect();
            let mut r = record(format!("doc/{i}"), text);
            r.meta.insert("n".into(), i.into());
            r.meta.insert("ключ".into(), serde_json::json!([1.5, null, {"a": "\u{0}\n"}]));
            r
        })
        .collect();
    records[7] = Record::default();
    records[9].text = "x".repeat(3 << 20);
    write_table(&path, &records);
    let mut table = Table::open(&path).unwrap();
    assert_eq!(table.documents(), 5000);
    assert_eq!(table.source(), "");
    assert_eq!(table.next().unwrap().unwrap(), records[0]);
    assert_eq!(table.source(), "test");
    assert!(table.map(|r| r.unwrap()).eq(records[1..].iter().cloned()));
    // The same documents give the same bytes, and the entry tells them.
    let second = dir.path().join("b.parquet");
    let mut writer = TableWriter::create(&second, "test").unwrap();
    records.iter().for_each(|r| writer.push(r).unwrap());
    assert!(!second.exists(), "a table must not appear before it is finished");
    let entry = writer.finish().unwrap();
    assert_eq!(fs::read(&path).unwrap(), fs::read(&second).unwrap());
    assert_eq!((entry.name.as_str(), entry.bytes), ("b.parquet", fs::metadata(&second).unwrap().len()));
    assert_eq!(entry.hash, input_hash(&second).unwrap());
    // One that is not finished leaves nothing.
    drop(TableWriter::create(dir.path().join("c.parquet"), "test").unwrap());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn row_groups_are_bounded_in_bytes() {
    use parquet::file::reader::{FileReader, SerializedFileReader};
    let dir = tempdir().unwrap();
    let path = dir.path().join("a.parquet");
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    // 48 MiB that do not compress below the bound, in documents of 100 bytes to 200 KB.
    let (mut records, mut bytes) = (Vec::new(), 0);
    while bytes < 48 << 20 {
        let n = if records.len() % 50 == 0 { 200_000 } else { 100 + below(&mut rng, 4000) };
        let text: String = (0..n).map(|_| (b' ' + below(&mut rng, 90) as u8) as char).collect();
        bytes += text.len();
        records.push(record(records.len().to_string(), text));
    }
    write_table(&path, &records);
    let reader = SerializedFileReader::new(fs::File::open(&path).unwrap()).unwrap();
    let metadata = reader.metadata();
    let sizes: Vec<_> = metadata.row_groups().iter().map(|g| g.total_byte_size()).collect();
    assert!(sizes.len() >= 3, "{sizes:?}");
    // A batch of 1 MiB may come on top.
    assert!(sizes.iter().all(|&s| s < (18 << 20)), "{sizes:?}");
    let columns = metadata.file_metadata().schema_descr();
    let columns: Vec<_> = (0..columns.num_columns()).map(|i| columns.column(i).name().to_owned()).collect();
    assert_eq!(columns, ["id", "source", "text", "meta"]);
    let text = metadata.row_group(0).column(2);
    assert!(format!("{:?}", text.compression()).starts_with("ZSTD"), "{:?}", text.compression());
    assert!(Table::open(&path).unwrap().map(|r| r.unwrap()).eq(records));
}

#[test]
fn what_is_no_table_is_an_error_that_says_so() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("a.parquet");
    assert!(matches!(Table::open(&path), Err(Error::Io { .. })));
    fs::write(&path, b"PAR1 and then nothing of the kind").unwrap();
    assert!(matches!(Table::open(&path), Err(Error::BadFile { .. })));
    fs::write(&path, b"").unwrap();
    assert!(matches!(Table::open(&path), Err(Error::BadFile { .. })));
    HashWriter::create(&path, Hashes::NARROW).unwrap().finish().unwrap().publish().unwrap();
    let error = Table::open(&path).err().unwrap().to_string();
    assert!(error.contains("column `id`: expected Utf8, got no such column"), "{error}");
    let error = TableWriter::create(dir.path().join("no/such/a.parquet"), "test").err().unwrap();
    assert!(matches!(error, Error::Io { .. }), "{error}");
}

#[test]
fn damaged_files_are_errors_not_panics() {
    let inputs: usize = std::env::var("RECUA_FUZZ").ok().and_then(|n| n.parse().ok()).unwrap_or(3000);
    let dir = tempdir().unwrap();
    let (table, hashes) = (dir.path().join("t.parquet"), dir.path().join("h.parquet"));
    let mut records: Vec<_> = (0..20).map(|i| record(format!("id {i}"), "some text ".repeat(i))).collect();
    records[3].meta.insert("url".into(), "http://a.b/c".into());
    write_table(&table, &records);
    let mut writer = HashWriter::create(&hashes, Hashes::NARROW).unwrap();
    (0..3).for_each(|place| writer.push(doc_key(0, place).unwrap(), 0, [1, 2, 3]).unwrap());
    writer.finish().unwrap().publish().unwrap();
    let manifest = dir.path().join("s.manifest.json");
    let input = dir.path().join("in");
    fs::write(&input, "x").unwrap();
    let spec = StageSpec::new("a", "b", vec![Shard::new("s", [input])], dir.path().join("out"), config_hash(&1).unwrap());
    run_shards(&spec, |_, out| out.drop("i", "t", "r"), &Progress::default()).unwrap();
    fs::copy(spec.out.join("s.manifest.json"), &manifest).unwrap();
    let seeds = [fs::read(&table).unwrap(), fs::read(&hashes).unwrap(), fs::read(&manifest).unwrap()];
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let (mut errors, mut read) = (0, 0);
    let path = dir.path().join("x.manifest.json");
    for round in 0..inputs {
        let kind = round % 3;
        let mut bytes = seeds[kind].clone();
        for _ in 0..=below(&mut rng, 4) {
            let at = below(&mut rng, bytes.len() as u64) as usize;
            match below(&mut rng, 5) {
                0 => bytes[at] ^= 1 << below(&mut rng, 8),
                1 => bytes[at] = below(&mut rng, 256) as u8,
                2 => bytes.truncate(at.max(1)),
                3 => {
                    let end = (at + below(&mut rng, 64) as usize).min(bytes.len());
                    let piece = bytes[at..end].to_vec();
                    let to = below(&mut rng, bytes.len() as u64) as usize;
                    bytes.splice(to..to, piece);
                }
                _ => {
                    let other = &seeds[below(&mut rng, 3) as usize];
                    let from = below(&mut rng, other.len() as u64) as usize;
                    let piece = &other[from..(from + 32).min(other.len())];
                    let end = (at + piece.len()).min(bytes.len());
                    bytes.splice(at..end, piece.iter().copied());
                }
            }
        }
        fs::write(&path, &bytes).unwrap();
        let failed = match kind {
            0 => match Table::open(&path) {
                Ok(table) => table.take(1000).any(|r| r.is_err()),
                Err(_) => true,
            },
            1 => Drops::open(&path, 0).and_then(|mut d| Ok(d.of(0)?.len() + d.of(1)?.len() + d.of(1 << 30)?.len())).is_err(),
            _ => Manifest::read(dir.path(), "x").unwrap().is_none(),
        };
        *(if failed { &mut errors } else { &mut read }) += 1;
    }
    assert!(errors > inputs / 5, "{errors} errors of {inputs}");
    assert!(read > 0, "nothing could be read: the mutator does too much");
}
