//! The second stage: each document by its source's rules, alone.

use super::Build;
use crate::Cleaned;
use crate::engine::{StageSpec, read_table};
use crate::error::Result;
use crate::filters::pii;
use crate::sources::{Source, SourceName, all};

pub(super) fn plan(build: &Build<'_>, source: &dyn Source, read: &StageSpec) -> Result<StageSpec> {
    build.next("clean", source, read, &(source.clean_settings(), source.common().mask_pii))
}

pub(super) fn run(build: &Build<'_>, source: &dyn Source, read: &StageSpec, spec: &StageSpec) -> Result<()> {
    let clean = source.cleaner()?;
    let mask = source.common().mask_pii;
    read.complete(build.patience)?;
    build.stage(spec, |shard, out| {
        let table = shard.files.clone();
        out.clean(
            |sink| table.iter().try_for_each(|path| read_table(path, sink)),
            |record| {
                let mut cleaned = clean(record);
                if mask && cleaned.dropped.is_none() {
                    let (text, removed) = pii::mask(&cleaned.text);
                    if !removed.is_empty() {
                        cleaned.text = text.into_owned();
                        cleaned.removed.extend(removed);
                    }
                }
                cleaned
            },
        )
    })?;
    Ok(())
}

/// A text by a source's rules with their default settings: what `recua data clean` does. `name` is a path (GitHub) or a language
/// code (Wikipedia).
pub fn clean_text(source: SourceName, text: &str, name: Option<&str>) -> Cleaned {
    let source = all().into_iter().find(|s| s.common().name == source);
    // A name is one of the table's.
    source.map_or_else(|| Cleaned::kept(text.to_owned()), |source| source.clean_text(text, name))
}
