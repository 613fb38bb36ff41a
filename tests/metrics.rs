//! `metrics.jsonl`, TensorBoard events and `report.html`.

use std::fs;
use std::path::{Path, PathBuf};

use recua::train::metrics::{self, METRICS_FILE, MetricsLog, StepRecord};
use recua::train::report::{self, ReportInfo};

fn record(step: u64) -> StepRecord {
    let loss = 2.0 + 1.0 / step as f64;
    StepRecord { step, tokens: step * 4096, loss, lr: 1e-3, grad_norm: 0.5, tok_s: 2e4, step_s: 0.2, ..StepRecord::default() }
}

fn write_steps(dir: &Path, resume: Option<u64>, steps: std::ops::RangeInclusive<u64>) {
    let mut log = MetricsLog::open(dir, resume).unwrap();
    steps.for_each(|step| log.append(&record(step)).unwrap());
    log.sync().unwrap();
}

fn text(dir: &Path) -> String {
    fs::read_to_string(dir.join(METRICS_FILE)).unwrap()
}

#[test]
fn resume_keeps_lines_up_to_the_checkpoint() {
    let (whole, resumed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write_steps(whole.path(), None, 1..=10);
    write_steps(resumed.path(), None, 1..=8);
    write_steps(resumed.path(), Some(5), 6..=10);
    assert_eq!(text(resumed.path()), text(whole.path()), "byte for byte");
    assert_eq!(text(whole.path()).lines().count(), 10);
    // A new run starts a new file; a checkpoint of step 0 keeps nothing of later steps.
    write_steps(resumed.path(), Some(0), 1..=2);
    assert_eq!(metrics::read(&resumed.path().join(METRICS_FILE)).unwrap(), [record(1), record(2)]);
    write_steps(resumed.path(), None, 1..=1);
    assert_eq!(text(resumed.path()).lines().count(), 1);
    let mut names: Vec<_> = fs::read_dir(resumed.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.retain(|name| !name.to_string_lossy().starts_with("events."));
    assert_eq!(names, [METRICS_FILE], "no temporary file is left");
}

#[test]
fn half_written_line_is_dropped_wherever_it_breaks() {
    let dir = tempfile::tempdir().unwrap();
    write_steps(dir.path(), None, 1..=4);
    let whole = text(dir.path());
    let fourth = whole.match_indices('\n').nth(2).unwrap().0 + 1;
    let three = &whole[..fourth];
    for end in fourth..=whole.len() {
        fs::write(dir.path().join(METRICS_FILE), &whole[..end]).unwrap();
        let complete = end >= whole.len() - 1;
        let read = metrics::read(&dir.path().join(METRICS_FILE)).unwrap();
        assert_eq!(read.len(), if complete { 4 } else { 3 }, "cut at {end}");
        write_steps(dir.path(), Some(9), 5..=5);
        let five = format!("{}\n", serde_json::to_string(&record(5)).unwrap());
        let expected = format!("{}{five}", if complete { &whole } else { three });
        assert_eq!(text(dir.path()), expected, "cut at {end}");
    }
}

#[test]
fn lines_that_stay_are_not_reformatted() {
    let dir = tempfile::tempdir().unwrap();
    let odd = "{ \"tokens\":1,  \"step\": 1, \"of_another_version\": [1.50] }\n";
    fs::write(dir.path().join(METRICS_FILE), format!("{odd}{{\"step\": 2}}\n\0\0\0")).unwrap();
    drop(MetricsLog::open(dir.path(), Some(1)).unwrap());
    assert_eq!(text(dir.path()), odd);
}

#[test]
fn numbers_that_are_not_finite_are_null() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = MetricsLog::open(dir.path(), None).unwrap();
    log.append(&StepRecord { loss: f64::NAN, grad_norm: f64::INFINITY, val_loss: Some(f64::NAN), skipped: 1, ..record(1) })
        .unwrap();
    let line = text(dir.path());
    assert!(
        line.contains("\"loss\":null") && line.contains("\"grad_norm\":null") && line.contains("\"val_loss\":null"),
        "{line}"
    );
    let read = metrics::read(&dir.path().join(METRICS_FILE)).unwrap().remove(0);
    assert!(read.loss.is_nan() && read.grad_norm.is_nan() && read.val_loss.is_none() && read.skipped == 1 && read.lr == 1e-3);
}

#[test]
fn folder_that_is_missing_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let error = MetricsLog::open(&dir.path().join("gone"), None).unwrap_err().to_string();
    assert!(error.contains("gone"), "{error}");
    assert!(report::write(dir.path(), &ReportInfo::default()).is_err());
    fs::write(dir.path().join(METRICS_FILE), "").unwrap();
    let error = report::write(dir.path(), &ReportInfo::default()).unwrap_err().to_string();
    assert!(error.contains("no steps"), "{error}");
}

/// CRC-32C a bit at a time, from its polynomial.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0x82F6_3B78 } else { 0 })
    })
}

fn masked(bytes: &[u8]) -> u32 {
    let crc = crc32c(bytes);
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The data of each TFRecord of a file, after checking both checksums.
fn frames(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let (head, rest) = bytes.split_at(12);
        let length = u64::from_le_bytes(head[..8].try_into().unwrap()) as usize;
        assert_eq!(u32::from_le_bytes(head[8..].try_into().unwrap()), masked(&head[..8]), "checksum of the length");
        let (data, rest) = rest.split_at(length);
        let (check, rest) = rest.split_at(4);
        assert_eq!(u32::from_le_bytes(check.try_into().unwrap()), masked(data), "checksum of the data");
        found.push(data.to_vec());
        bytes = rest;
    }
    found
}

/// A field of a protocol buffer: its number and its value (a number's bits, or bytes).
#[derive(Debug, Clone, PartialEq)]
enum Value {
    Number(u64),
    Bytes(Vec<u8>),
}

fn fields(bytes: &[u8]) -> Vec<(u64, Value)> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            value |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                break;
            }
        }
        value
    }
    let (mut bytes, mut found) = (bytes, Vec::new());
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let value = match key & 7 {
            0 => Value::Number(varint(&mut bytes)),
            1 => Value::Number(u64::from_le_bytes(take(&mut bytes, 8).try_into().unwrap())),
            2 => {
                let length = varint(&mut bytes) as usize;
                Value::Bytes(take(&mut bytes, length).to_vec())
            }
            5 => Value::Number(u64::from(u32::from_le_bytes(take(&mut bytes, 4).try_into().unwrap()))),
            kind => panic!("wire type {kind}"),
        };
        found.push((key >> 3, value));
    }
    found
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (head, rest) = bytes.split_at(count);
    *bytes = rest;
    head
}

fn number(fields: &[(u64, Value)], field: u64) -> u64 {
    fields.iter().find_map(|(key, value)| matches!(value, Value::Number(_) if *key == field).then(|| value.clone())).map_or(
        0,
        |value| {
            let Value::Number(number) = value else { unreachable!() };
            number
        },
    )
}

fn bytes_of(fields: &[(u64, Value)], field: u64) -> Vec<Vec<u8>> {
    let of = |(key, value): &(u64, Value)| match value {
        Value::Bytes(bytes) if *key == field => Some(bytes.clone()),
        _ => None,
    };
    fields.iter().filter_map(of).collect()
}

fn event_files(dir: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> = paths.filter(|path| path.to_string_lossy().contains("events.out.tfevents.")).collect();
    paths.sort();
    paths
}

#[test]
fn tensorboard_events() {
    assert_eq!(crc32c(b"123456789"), 0xE306_9283, "the check value of CRC-32C");
    let dir = tempfile::tempdir().unwrap();
    let mut log = MetricsLog::open(dir.path(), None).unwrap();
    log.append(&record(1)).unwrap();
    let sample = Some("fn a() {\n}".to_string());
    let val_losses = [("books".to_string(), 2.5)].into();
    log.append(&StepRecord { val_bpb: Some(1.25), val_losses, sample, ..record(300) }).unwrap();
    drop(log);
    let files = event_files(dir.path());
    assert_eq!(files.len(), 1);
    let events: Vec<_> = frames(&fs::read(&files[0]).unwrap()).iter().map(|data| fields(data)).collect();
    assert_eq!(events.len(), 4, "version, start, two steps");
    assert_eq!(bytes_of(&events[0], 3), [b"brain.Event:2".to_vec()]);
    let wall_time = f64::from_bits(number(&events[0], 1));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!((now - wall_time).abs() < 600.0, "{wall_time}");
    assert_eq!(number(&events[3], 2), 300);
    let values = |event: &[(u64, Value)]| -> Vec<_> {
        let summary = fields(&bytes_of(event, 5)[0]);
        bytes_of(&summary, 1).iter().map(|value| fields(value)).collect()
    };
    let scalar = |event: &[(u64, Value)], tag: &str| {
        let values = values(event);
        let value = values.iter().find(|value| bytes_of(value, 1) == [tag.as_bytes()])?;
        Some(f32::from_bits(number(value, 2) as u32))
    };
    assert_eq!(scalar(&events[2], "train/loss"), Some(3.0));
    assert_eq!(scalar(&events[2], "valid/bpb"), None);
    assert_eq!(scalar(&events[3], "valid/bpb"), Some(1.25));
    assert_eq!(scalar(&events[3], "valid/loss_books"), Some(2.5));
    assert_eq!(scalar(&events[3], "train/lr"), Some(1e-3));
    let values = values(&events[3]);
    let text = values.iter().find(|value| bytes_of(value, 1) == [b"sample"]).unwrap();
    let tensor = fields(&bytes_of(text, 8)[0]);
    assert_eq!((number(&tensor, 1), bytes_of(&tensor, 8)), (7, vec![b"    fn a() {\n    }".to_vec()]));

    // Restarts within a second: other files, later in order, that tell TensorBoard from which step on they count.
    write_steps(dir.path(), Some(1), 2..=2);
    write_steps(dir.path(), Some(2), 3..=3);
    let later = event_files(dir.path());
    assert_eq!((later.len(), &later[0]), (3, &files[0]));
    let start = fields(&frames(&fs::read(&later[2]).unwrap())[1]);
    assert_eq!((number(&start, 2), number(&fields(&bytes_of(&start, 7)[0]), 1)), (3, 1));
}

fn info() -> ReportInfo {
    ReportInfo {
        title: "run <1> & \"more\"".into(),
        subtitle: "1.9 M parameters".into(),
        rows: vec![("validation loss".into(), "2.412".into())],
        bits_per_byte: vec![("recua".into(), 1.532), ("xz <9>".into(), 1.701)],
    }
}

#[test]
fn report_shows_the_numbers_and_escapes_text() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = MetricsLog::open(dir.path(), None).unwrap();
    for step in 1..=50 {
        let sample = (step % 25 == 0).then(|| format!("</pre><script>alert({step})</script>\u{1b}[0m"));
        let (val_loss, loss) = ((step % 10 == 0).then_some(2.125), if step == 7 { f64::NAN } else { record(step).loss });
        let val_losses = val_loss.iter().flat_map(|&l| [("a\"<b>".into(), l), ("wikipedia".into(), l + 1.0)]).collect();
        log.append(&StepRecord { sample, val_loss, val_losses, loss, skipped: u64::from(step > 7), ..record(step) }).unwrap();
    }
    let path = report::write(dir.path(), &info()).unwrap();
    let page = fs::read_to_string(path).unwrap();
    for expected in [
        "run &lt;1&gt; &amp; &quot;more&quot;",
        "1.9 M parameters",
        "<th>validation loss</th><td>2.412</td>",
        "<th>skipped steps</th><td>1</td>",
        "1.532",
        "xz &lt;9&gt;",
        "step 25",
        "&lt;/pre&gt;&lt;script&gt;alert(50)&lt;/script&gt;",
        "nats per token",
        "Learning rate",
        "Gradient norm",
        "tok/s",
        "[10,2.1250e0]",
        "prefers-color-scheme:dark",
    ] {
        assert!(page.contains(expected), "{expected} is missing");
    }
    assert!(!page.contains("<script>alert") && !page.contains('\u{1b}') && !page.contains("NaN"));
    assert!(!page.contains("http:") && !page.contains("https:") && !page.contains("src="), "the page needs no other file");
    assert_eq!(page.matches("<circle class=\"valid\"").count(), 5);
    assert_eq!(page.matches("<circle class=\"valid s1\"").count(), 5, "the second of the held-out sets");
    assert!(page.contains("a&quot;&lt;b&gt;") && !page.contains("<b>\""));
    let names = || std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    assert!(names().all(|name| !name.contains(".tmp")), "{:?}", names().collect::<Vec<_>>());
}

#[test]
fn report_of_a_long_run_is_small_and_keeps_spikes() {
    let mut records: Vec<_> = (1..=100_000).map(|step| StepRecord { sample: Some("x".repeat(2000)), ..record(step) }).collect();
    records[54_320].loss = 3.75;
    let page = report::render(&info(), &records);
    assert!(page.len() < 600_000, "{} bytes", page.len());
    assert!(page.contains("[54321,3.7500e0]"), "the spike is lost");
    assert!(page.contains(">100,000<"), "the last step has a tick");
    let most = page.split("<polyline").skip(1).map(|line| line.split('"').nth(3).unwrap().split(' ').count()).max();
    assert!(most.is_some_and(|points| (500..=1000).contains(&points)), "{most:?}");
}

#[test]
fn report_of_odd_runs() {
    let all_nan = StepRecord { loss: f64::NAN, grad_norm: f64::NAN, tok_s: f64::INFINITY, lr: f64::NAN, ..record(1) };
    let huge = StepRecord { loss: 1e300, grad_norm: -1e300, tok_s: 0.0, lr: 0.0, ..record(u64::MAX >> 12) };
    for records in [vec![record(1)], vec![all_nan.clone()], vec![record(1), record(1)], vec![all_nan, record(2), huge]] {
        let page = report::render(&ReportInfo::default(), &records);
        assert_eq!(page.matches("<svg").count(), 4);
        for bad in ["NaN", "inf", "\"-\""] {
            let drawn = page.split("<script>").next().unwrap().split("</style>").nth(1).unwrap();
            assert!(!drawn.contains(bad), "{bad} with {} records", records.len());
        }
    }
}
