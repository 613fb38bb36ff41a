//! What a run writes down at each step: `metrics.jsonl` (one JSON object a line) and TensorBoard events.
//!
//! `metrics.jsonl` is only ever appended to, so a crash can hurt at most its last line; [`MetricsLog::open`] drops that line,
//! and on resume the steps after the checkpoint, which are about to be run again. Lines that stay are not touched.
//! JSON has no infinities and no NaN: a number that is not finite is written as `null` and read back as NaN.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize};

use crate::error::{Error, Result};
use crate::files::Atomic;
use crate::protobuf::Message;

/// The file's name in a run directory.
pub const METRICS_FILE: &str = "metrics.jsonl";

/// One line of `metrics.jsonl`. Fields that a step does not have are left out of the line.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Optimizer steps done, this one included: the first is 1, and a checkpoint of step N has the records up to N.
    pub step: u64,
    /// Tokens trained on since step 0.
    pub tokens: u64,
    /// Mean cross-entropy of the step's tokens, in nats.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
    /// Learning rate.
    #[serde(deserialize_with = "null_is_nan")]
    pub lr: f64,
    /// Global L2 norm of the gradient before clipping.
    #[serde(deserialize_with = "null_is_nan")]
    pub grad_norm: f64,
    /// Tokens a second of this step.
    #[serde(deserialize_with = "null_is_nan")]
    pub tok_s: f64,
    /// Share of the device's stated peak, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mfu: Option<f64>,
    /// Seconds of this step.
    #[serde(deserialize_with = "null_is_nan")]
    pub step_s: f64,
    /// Steps skipped since step 0 because something was not finite.
    #[serde(default)]
    pub skipped: u64,
    /// The factor on this step's loss, in float16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<f64>,
    /// Of several ranks: tokens a second of each while it computed, its share of a step over the time that it did not wait.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rank_tok_s: Vec<f64>,
    /// Of several ranks: seconds that each waited for others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rank_wait_s: Vec<f64>,
    /// Validation loss after this step, in nats a token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_loss: Option<f64>,
    /// Validation bits per byte after this step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_bpb: Option<f64>,
    /// Validation loss after this step by held-out set, where there are several, in nats a token.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub val_losses: BTreeMap<String, f64>,
    /// Benchmarks after this step, by their names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub eval: BTreeMap<String, f64>,
    /// Text that the model wrote after this step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample: Option<String>,
}

impl StepRecord {
    /// The validation after this step, if there was one.
    pub fn validation(&self) -> Option<Validation> {
        let (loss, bpb) = self.val_loss.zip(self.val_bpb)?;
        Some(Validation { loss, bpb, by_set: self.val_losses.clone() })
    }
}

/// What a validation found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Validation {
    /// Mean over all tokens looked at, in nats a token.
    pub loss: f64,
    /// Bits per byte over all of them.
    pub bpb: f64,
    /// Nats a token by held-out set, where there are several.
    pub by_set: BTreeMap<String, f64>,
}

fn null_is_nan<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// Reads a `metrics.jsonl`; lines that are no records (a half-written last one) are skipped.
///
/// # Errors
/// The file cannot be read.
pub fn read(path: &Path) -> Result<Vec<StepRecord>> {
    let mut records = Vec::new();
    for_lines(path, |line| {
        records.extend(serde_json::from_slice::<StepRecord>(line).ok());
        Ok(())
    })?;
    Ok(records)
}

/// Calls `each` with every line, without its end.
fn for_lines(path: &Path, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let mut reader = BufReader::new(File::open(path).map_err(Error::io("read", path))?);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).map_err(Error::io("read", path))? > 0 {
        each(line.strip_suffix(b"\n").unwrap_or(&line))?;
        line.clear();
    }
    Ok(())
}

/// The open metrics of a run.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: File,
    events: EventWriter,
}

impl MetricsLog {
    /// Opens the metrics of the run directory `dir`, which must exist. With the step of the checkpoint that the run resumes
    /// from, keeps the lines up to that step; with `None` starts an empty file.
    ///
    /// # Errors
    /// The directory cannot be written or the old file not be read.
    pub fn open(dir: &Path, resume_step: Option<u64>) -> Result<Self> {
        let path = dir.join(METRICS_FILE);
        truncate(&path, resume_step.filter(|_| path.exists()))?;
        let file = OpenOptions::new().append(true).open(&path).map_err(Error::io("open", &path))?;
        let events = EventWriter::create(dir, resume_step)?;
        Ok(Self { path, file, events })
    }

    /// Appends a step to both files; it is in the system's hands on return.
    ///
    /// # Errors
    /// A file cannot be written (disk full).
    pub fn append(&mut self, record: &StepRecord) -> Result<()> {
        let mut line = serde_json::to_vec(record).map_err(|error| Error::io("write", &self.path)(error.into()))?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(Error::io("write", &self.path))?;
        self.events.step(record)
    }

    /// Waits until `metrics.jsonl` is on the disk. Call it before a checkpoint is renamed into place: a checkpoint then
    /// never has a step that the metrics lack.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(Error::io("sync", &self.path))
    }
}

/// Replaces the file by its records up to `last` (by an empty file for `None`), in one rename.
fn truncate(path: &Path, last: Option<u64>) -> Result<()> {
    #[derive(Deserialize)]
    struct OnlyStep {
        step: u64,
    }
    let mut out = Atomic::create(path)?;
    if let Some(last) = last {
        for_lines(path, |line| match serde_json::from_slice::<OnlyStep>(line) {
            Ok(OnlyStep { step }) if step > last => Ok(()),
            Ok(_) => out.write_all(line).and_then(|()| out.write_all(b"\n")).map_err(Error::io("write", path)),
            Err(error) => {
                // Metrics are no reason not to resume.
                log::warn!("{}: dropped a line that is no record ({error})", path.display());
                Ok(())
            }
        })?;
    }
    out.commit()
}

/// Writes a TensorBoard event file: TFRecord frames around `Event` messages (tensorflow/core/util/event.proto).
#[derive(Debug)]
struct EventWriter {
    path: PathBuf,
    file: File,
}

impl EventWriter {
    /// Starts a new file `events.out.tfevents.<seconds>.<host>`; TensorBoard reads all files of a directory in this order.
    fn create(dir: &Path, resume_step: Option<u64>) -> Result<Self> {
        let host = host();
        // A run that is restarted within the second must neither overwrite nor precede the file before.
        let mut seconds = now().as_secs();
        let (path, file) = loop {
            let path = dir.join(format!("events.out.tfevents.{seconds:010}.{host}"));
            match OpenOptions::new().append(true).create_new(true).open(&path) {
                Ok(file) => break (path, file),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => seconds += 1,
                Err(error) => return Err(Error::io("create", &path)(error)),
            }
        };
        let mut writer = Self { path, file };
        let version = event(0, |message| message.bytes(3, b"brain.Event:2"));
        // SessionLog { status: START }: TensorBoard drops what earlier files say of this step and later ones.
        let first = resume_step.map_or(0, |step| step.saturating_add(1));
        let start = event(first, |message| message.message(7, |session| session.varint(1, 1)));
        let frames = [frame(&version), frame(&start)].concat();
        writer.write(&frames)?;
        Ok(writer)
    }

    fn step(&mut self, record: &StepRecord) -> Result<()> {
        let scalars = [
            ("train/loss", Some(record.loss)),
            ("train/lr", Some(record.lr)),
            ("train/grad_norm", Some(record.grad_norm)),
            ("train/tok_s", Some(record.tok_s)),
            ("train/mfu", record.mfu),
            ("train/step_s", Some(record.step_s)),
            ("train/tokens", Some(record.tokens as f64)),
            ("train/skipped", Some(record.skipped as f64)),
            ("train/loss_scale", record.loss_scale),
            ("valid/loss", record.val_loss),
            ("valid/bpb", record.val_bpb),
        ];
        let message = event(record.step, |message| {
            message.message(5, |summary| {
                for (tag, value) in scalars {
                    if let Some(value) = value {
                        summary.message(1, |item| {
                            item.bytes(1, tag.as_bytes());
                            item.float(2, value as f32);
                        });
                    }
                }
                let of_sets = record.val_losses.iter().map(|(name, value)| (format!("valid/loss_{name}"), value));
                let of_tasks = record.eval.iter().map(|(name, value)| (format!("eval/{name}"), value));
                for (tag, value) in of_sets.chain(of_tasks) {
                    summary.message(1, |item| {
                        item.bytes(1, tag.as_bytes());
                        item.float(2, *value as f32);
                    });
                }
                if let Some(text) = &record.sample {
                    summary.message(1, |item| text_value(item, "sample", text));
                }
            });
        });
        self.write(&frame(&message))
    }

    /// One write a step, so that a reader sees whole frames.
    fn write(&mut self, frames: &[u8]) -> Result<()> {
        self.file.write_all(frames).map_err(Error::io("write", &self.path))
    }
}

/// A `Summary.Value` of the text plugin, which renders Markdown: four spaces make a block of verbatim text.
fn text_value(item: &mut Message, tag: &str, text: &str) {
    const DT_STRING: u64 = 7;
    const DATA_CLASS_TENSOR: u64 = 2;
    let verbatim = format!("    {}", text.replace('\n', "\n    "));
    item.bytes(1, tag.as_bytes());
    item.message(8, |tensor| {
        tensor.varint(1, DT_STRING);
        tensor.message(2, |_scalar_shape| {});
        tensor.bytes(8, verbatim.as_bytes());
    });
    item.message(9, |metadata| {
        metadata.message(1, |plugin| plugin.bytes(1, b"text"));
        metadata.varint(4, DATA_CLASS_TENSOR);
    });
}

/// An `Event` with the time and the step.
fn event(step: u64, fill: impl FnOnce(&mut Message)) -> Vec<u8> {
    let mut message = Message::default();
    message.double(1, now().as_secs_f64());
    message.varint(2, step);
    fill(&mut message);
    message.into_bytes()
}

/// A TFRecord: length, its checksum, the data, its checksum; all little-endian.
fn frame(data: &[u8]) -> Vec<u8> {
    // The mask keeps a checksum of data that holds checksums from being weak.
    let masked = |bytes: &[u8]| crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xA282_EAD8).to_le_bytes();
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &masked(&length), data, &masked(data)].concat()
}

fn now() -> std::time::Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The machine's name, for the event file's name only.
fn host() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let name = name.or_else(|| std::env::var("HOSTNAME").or_else(|_| std::env::var("COMPUTERNAME")).ok()).unwrap_or_default();
    let name: String = name.trim().chars().filter(|c| c.is_ascii_alphanumeric() || "-_".contains(*c)).collect();
    if name.is_empty() { "localhost".into() } else { name }
}
