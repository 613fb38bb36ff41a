//! Data files of tasks, as published, as rows.
//!
//! 1. [`find`]: the folder of a task under the folders that `--data` names.
//! 2. [`Folder::open`]: which of its files are data, and of which split.
//! 3. [`Folder::load`]: the rows of a split, with the checksum of each file.
//! 4. [`read`]: one file, by its name's ending.

#[cfg(feature = "arrow")]
mod columns;
mod folder;
mod text;
mod value;

use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};
pub use folder::{Folder, Rows, Source, Split, find};
pub use value::{Number, Object, Value};

/// How the files of a task are read: the table `[data]` of its file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Only files in whose path (below the task's folder, case ignored) one of these stands; empty: all.
    pub files: Vec<String>,
    /// Keys that rows must have; files without them are of another format, and left out.
    pub need: Vec<String>,
    /// Columns of CSV and TSV files without a header.
    pub columns: Vec<String>,
    /// The key under which rows get the name of their file, without ending and split.
    pub stem_as: Option<String>,
    /// Only rows with these texts under these keys.
    pub only: std::collections::BTreeMap<String, String>,
    /// What of a file of plain text is a row.
    pub text: Text,
}

/// What of a file of plain text is a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Text {
    /// All of it: `text`.
    #[default]
    Whole,
    /// Each line that is not blank: `text`.
    Lines,
    /// Each article, with its title, of a file of WikiText: `page`.
    Articles,
}

/// Kinds of files, by their names' endings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    JsonLines,
    Json,
    Csv,
    Tsv,
    Plain,
    Parquet,
    Arrow,
}

impl Format {
    /// The kind, and whether the file is gzipped.
    fn of(name: &str) -> Option<(Self, bool)> {
        let name = name.to_ascii_lowercase();
        let (name, gzipped) = name.strip_suffix(".gz").map_or((name.as_str(), false), |inner| (inner, true));
        let format = match name.rsplit_once('.')?.1 {
            "jsonl" | "ndjson" => Self::JsonLines,
            "json" => Self::Json,
            "csv" => Self::Csv,
            "tsv" => Self::Tsv,
            "txt" | "raw" | "tokens" => Self::Plain,
            "parquet" => Self::Parquet,
            "arrow" => Self::Arrow,
            _ => return None,
        };
        Some((format, gzipped))
    }
}

/// A gzipped file of data may unpack to this much; a larger one is a mistake or a trap.
const MAX_UNPACKED: u64 = 8 << 30;

/// Reads one file of data.
///
/// # Errors
/// [`Error::Io`]; [`Error::BadFile`] with the line for a damaged file, and for one whose ending says no format.
pub fn read(path: &Path, options: &Options) -> Result<Vec<Value>> {
    let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
    parse(path, bytes, options)
}

/// [`read`] for the bytes of a file that was read already; `path` says the format and stands in errors.
///
/// # Errors
/// Those of [`read`], without [`Error::Io`].
pub fn parse(path: &Path, bytes: Vec<u8>, options: &Options) -> Result<Vec<Value>> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let Some((format, gzipped)) = Format::of(&name) else {
        return Err(Error::bad_file("file of data", path, "its name ends in no format that can be read", FORMATS));
    };
    let bytes = if gzipped { unpack(path, &bytes)? } else { bytes };
    let text = || text::utf8(path, &bytes);
    match format {
        Format::JsonLines => text::json_lines(path, text()?),
        Format::Json => text::json(path, text()?),
        Format::Csv => text::separated(path, text()?, b',', options),
        Format::Tsv => text::separated(path, text()?, b'\t', options),
        Format::Plain => text::plain(path, text()?, options),
        #[cfg(feature = "arrow")]
        Format::Parquet => columns::parquet(path, bytes),
        #[cfg(feature = "arrow")]
        Format::Arrow => columns::arrow(path, bytes),
        #[cfg(not(feature = "arrow"))]
        Format::Parquet | Format::Arrow => Err(Error::bad_file(
            "file of data",
            path,
            "this build reads neither Parquet nor Arrow",
            "build with the feature `arrow` (or `data`, which has it), or save the file as JSON Lines",
        )),
    }
}

const FORMATS: &str = "use .jsonl, .json, .csv, .tsv, .txt, .parquet or .arrow, each also with .gz";

fn unpack(path: &Path, bytes: &[u8]) -> Result<Vec<u8>> {
    let bad = |problem: String| Error::bad_file("gzip file", path, problem, "get the file again");
    let mut unpacked = Vec::new();
    let mut reader = flate2::read::MultiGzDecoder::new(bytes).take(MAX_UNPACKED + 1);
    reader.read_to_end(&mut unpacked).map_err(|error| bad(format!("after {} unpacked bytes: {error}", unpacked.len())))?;
    if unpacked.len() as u64 > MAX_UNPACKED {
        return Err(bad(format!("it unpacks to more than {} GiB", MAX_UNPACKED >> 30)));
    }
    Ok(unpacked)
}
