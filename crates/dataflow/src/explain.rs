//! What became of a document in a stage.

use std::{fs, path::Path};

use arrow::array::AsArray;
use arrow::datatypes::DataType;
use serde::Serialize;

use super::{
    manifest::Manifest,
    table::{RowGroups, Table},
};
use crate::{
    Record,
    error::{Error, Result},
};

/// What a stage did with a document, or with a piece of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "fate", rename_all = "snake_case")]
pub enum Fate {
    /// It stays, like this.
    Kept {
        /// The shard that it is in.
        shard: String,
        /// The text as it left the stage.
        text: String,
        /// The metadata as they left the stage.
        meta: serde_json::Map<String, serde_json::Value>,
    },
    /// It went.
    Dropped {
        /// The shard that it was in.
        shard: String,
        /// Why.
        reason: String,
        /// The beginning of the text as it came to the stage.
        text: String,
    },
    /// A piece of it went.
    Removed {
        /// The shard that it is in.
        shard: String,
        /// The rule that took it out.
        rule: String,
        /// The beginning of the piece.
        text: String,
    },
}

/// What the stage in `dir` did with the document `id`, in the order of the shards. Empty where the stage has not seen it, or
/// its shard is not complete. Only the ids are read, and the rest of the files that have this one.
///
/// # Errors
/// [`Error::Io`] if the folder cannot be read, [`Error::BadFile`] if a file in it is damaged.
pub fn find(dir: &Path, id: &str) -> Result<Vec<Fate>> {
    let mut shards = Vec::new();
    for entry in fs::read_dir(dir).map_err(Error::io("read", dir))? {
        let name = entry.map_err(Error::io("read", dir))?.file_name();
        shards.extend(name.to_str().and_then(|n| n.strip_suffix(".manifest.json")).map(str::to_owned));
    }
    shards.sort_unstable();
    let mut fates = Vec::new();
    for shard in shards {
        let Some(manifest) = Manifest::read(dir, &shard)? else { continue };
        for output in &manifest.outputs {
            let path = dir.join(&output.name);
            let shard = || shard.clone();
            match output.name.strip_prefix(shard().as_str()) {
                Some(".parquet") if has(&path, id)? => {
                    for record in Table::open(&path)? {
                        let Record { id: its, text, meta } = record?;
                        if its == id {
                            fates.push(Fate::Kept { shard: shard(), text, meta });
                        }
                    }
                }
                Some(".dropped.parquet") if has(&path, id)? => notes(&path, id, "reason", |reason, text| {
                    fates.push(Fate::Dropped { shard: shard(), reason, text });
                })?,
                Some(".removed.parquet") if has(&path, id)? => notes(&path, id, "rule", |rule, text| {
                    fates.push(Fate::Removed { shard: shard(), rule, text });
                })?,
                _ => {}
            }
        }
    }
    Ok(fates)
}

const WHAT: &str = "stage output";

fn has(path: &Path, id: &str) -> Result<bool> {
    let mut rows = RowGroups::open(path, WHAT, &[("id", DataType::Utf8)])?;
    while let Some(batch) = rows.next_batch(8192)? {
        if batch.iter().any(|ids| ids.as_string::<i32>().iter().any(|its| its == Some(id))) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn notes(path: &Path, id: &str, why: &str, mut found: impl FnMut(String, String)) -> Result<()> {
    let columns = [("id", DataType::Utf8), (why, DataType::Utf8), ("text", DataType::LargeUtf8)];
    let mut rows = RowGroups::open(path, WHAT, &columns)?;
    while let Some(batch) = rows.next_batch(1024)? {
        let [ids, whys, texts] = batch.as_slice() else { continue };
        let (whys, texts) = (whys.as_string::<i32>(), texts.as_string::<i32>());
        for (row, its) in ids.as_string::<i32>().iter().enumerate() {
            if its == Some(id) {
                found(whys.value(row).to_owned(), texts.value(row).to_owned());
            }
        }
    }
    Ok(())
}
