//! The fifth stage: the final text. Which documents are held out follows from their ids, so that the tables are those of the stage
//! before, under another name; only JSON lines are written anew.

use std::io::Write;

use serde_json::json;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::Build;
use crate::Record;
use crate::engine::{StageSpec, read_table};
use crate::error::{Error, Result};
use crate::sources::Source;

/// The metadata field that says `valid` of a held-out document, in JSON lines and in `recua data explain`.
const SPLIT: &str = "split";
/// Fixed: the same documents are held out in every build.
const SEED: u64 = 0x7265_6375_6176_616c;

pub(super) fn plan(build: &Build<'_>, source: &dyn Source, score: &StageSpec) -> Result<StageSpec> {
    let mix = &build.config.mix;
    build.next("mix", source, score, &(source.common().name, mix.valid, mix.jsonl))
}

pub(super) fn run(build: &Build<'_>, source: &dyn Source, score: &StageSpec, spec: &StageSpec) -> Result<()> {
    let made = score.complete(build.patience)?;
    let mix = &build.config.mix;
    build.stage(spec, |shard, out| {
        let (Some(table), Some(made)) = (shard.files.first(), made.get(out.index() as usize)) else { return Ok(()) };
        if mix.jsonl {
            let lines_path = out.path("jsonl");
            let mut lines = out.file("jsonl")?;
            let line = |mut record: Record| {
                mark(&mut record.meta, &record.id, mix.valid);
                json!({ "id": record.id, "source": source.common().name, "text": record.text, "meta": record.meta }).to_string()
            };
            let write = |_: &mut _, line: String| writeln!(lines, "{line}").map_err(Error::io("write", &lines_path));
            out.each(|sink| read_table(table, sink), line, write)?;
            out.add(lines.finish()?)?;
        }
        out.pass(table, made)
    })?;
    Ok(())
}

/// Says of a held-out document that it is one.
pub(super) fn mark(meta: &mut serde_json::Map<String, serde_json::Value>, id: &str, share: f64) {
    if held_out(id, share) {
        meta.insert(SPLIT.into(), "valid".into());
    }
}

/// Whether a document is held out: by its id alone, so that it stays so however the corpus grows.
pub(super) fn held_out(id: &str, share: f64) -> bool {
    (xxh3_64_with_seed(id.as_bytes(), SEED) as f64) < share * u64::MAX as f64
}
