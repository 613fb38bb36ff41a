//! The first stage: dumps to documents as they are in them.

use std::path::PathBuf;

use serde_json::json;

use super::inputs::{self, Found};
use super::{Build, say};
use crate::engine::{Shard, StageSpec};
use crate::error::Result;
use crate::files::write_atomic;
use crate::sources::{ReadTools, Source};

/// What a shard writes beside its tables where there is something to tell.
const SKIPPED: &str = "skipped.json";
/// What was passed over of the inputs, beside the shards.
pub(super) const PASSED: &str = "passed-over.json";

/// The stage, and the dumps of each shard.
pub(super) struct Read {
    pub(super) spec: StageSpec,
    dumps: Vec<Vec<PathBuf>>,
    /// Files in the inputs that are no dumps.
    pub(super) passed: Vec<PathBuf>,
}

pub(super) fn plan(build: &Build<'_>, source: &dyn Source) -> Result<Read> {
    let Found { dumps, passed } = inputs::dumps(source)?;
    let dumps = source.shards(dumps, &build.config.out)?;
    let mut shards = Vec::with_capacity(dumps.len());
    for (i, paths) in dumps.iter().enumerate() {
        let mut all = Vec::new();
        for path in paths {
            all.extend(inputs::files_in(path)?);
        }
        shards.push(Shard::new(format!("shard-{i:05}"), all));
    }
    let name = source.common().name;
    // Only what reading depends on: another rule of cleaning does not read anew.
    let spec = build.spec("read", name, shards, &(name, source.read_settings()))?;
    Ok(Read { spec, dumps, passed })
}

impl Read {
    pub(super) fn run(&self, build: &Build<'_>, source: &dyn Source) -> Result<()> {
        let shuffle = || build.shuffle();
        build.stage(&self.spec, |_, out| {
            let dumps = self.dumps.get(out.index() as usize).map_or(&[][..], Vec::as_slice);
            let tools = ReadTools { scratch: out.path("sorted.parquet"), shuffle: &shuffle };
            let mut skipped = Default::default();
            let read = |sink: &mut crate::Sink<'_>| {
                skipped = source.read(dumps, &tools, sink)?;
                Ok(())
            };
            out.map(read, |record| record, |out, record| out.keep(&record))?;
            if !skipped.is_empty() {
                skipped.iter().for_each(|(reason, n)| out.skip(reason, *n));
                out.blob(SKIPPED, format!("{}\n", json!(skipped)).as_bytes())?;
            }
            Ok(())
        })?;
        if build.world.0 == 0 {
            let path = self.spec.out.join(PASSED);
            if !self.passed.is_empty() {
                write_atomic(&path, format!("{}\n", json!(self.passed)).as_bytes())?;
            } else if path.exists() {
                std::fs::remove_file(&path).map_err(crate::Error::io("remove", &path))?;
            }
        }
        Ok(())
    }

    /// Says which files were passed over.
    pub(super) fn tell(&self, build: &Build<'_>) {
        if let [first, ..] = &*self.passed {
            let n = self.passed.len();
            let more = if n > 1 { format!(" and {} more files or links", n - 1) } else { String::new() };
            let text = format!("passed over {}{more}: no dumps by their names; name a file itself to read it", first.display());
            say(build.observer, &self.spec.source, &text);
        }
    }
}
