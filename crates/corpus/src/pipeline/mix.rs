//! The fifth stage: the final text, in documents for training and held-out ones.

use std::io::Write;

use serde_json::json;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::Build;
use super::config::Common;
use crate::engine::{StageSpec, read_table};
use crate::error::{Error, Result};

/// The metadata field that says `valid` of a held-out document.
pub(super) const SPLIT: &str = "split";
/// Fixed: the same documents are held out in every build.
const SEED: u64 = 0x7265_6375_6176_616c;

pub(super) fn plan(build: &Build<'_>, common: Common<'_>, score: &StageSpec) -> Result<StageSpec> {
    let mix = &build.config.mix;
    build.next("mix", score, &(common.source, mix.valid, mix.jsonl))
}

pub(super) fn run(build: &Build<'_>, common: Common<'_>, score: &StageSpec, spec: &StageSpec) -> Result<()> {
    score.complete(build.patience)?;
    let mix = &build.config.mix;
    build.stage(spec, |shard, out| {
        let tables = shard.files.clone();
        let lines_path = out.path("jsonl");
        let mut lines = mix.jsonl.then(|| out.file("jsonl")).transpose()?;
        out.map(
            |sink| tables.iter().try_for_each(|path| read_table(path, sink)),
            |mut record| {
                if held_out(&record.id, mix.valid) {
                    record.meta.insert(SPLIT.into(), "valid".into());
                }
                let line = mix.jsonl.then(|| {
                    json!({ "id": record.id, "source": common.source, "text": record.text, "meta": record.meta }).to_string()
                });
                (record, line)
            },
            |out, (record, line)| {
                if let (Some(file), Some(line)) = (&mut lines, line) {
                    writeln!(file, "{line}").map_err(Error::io("write", &lines_path))?;
                }
                out.keep(&record)
            },
        )?;
        match lines {
            Some(file) => out.add(file.finish()?),
            None => Ok(()),
        }
    })?;
    Ok(())
}

/// Whether a document is held out: by its id alone, so that it stays so however the corpus grows.
fn held_out(id: &str, share: f64) -> bool {
    (xxh3_64_with_seed(id.as_bytes(), SEED) as f64) < share * u64::MAX as f64
}
