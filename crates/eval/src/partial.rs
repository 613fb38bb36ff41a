//! Answers that are on disk: a run that was killed goes on where it was.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Answer, Error, Item, Result};

#[derive(Serialize, Deserialize)]
struct Line {
    doc_id: usize,
    #[serde(flatten)]
    answer: Answer,
}

#[derive(Serialize, Deserialize)]
struct Head {
    asked: String,
}

/// The file of a task's answers.
pub(crate) struct Partial {
    path: PathBuf,
    file: File,
}

impl Partial {
    /// Opens the file of a task in `dir`, with the answers that it has. They count only if the same model was asked the same:
    /// `model` names it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn open(dir: &Path, task: &str, model: &str, items: &[Item]) -> Result<(Self, HashMap<usize, Answer>)> {
        std::fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        let path = dir.join(format!("{task}.jsonl"));
        let asked = fingerprint(model, items);
        let known = read(&path, &asked);
        let file = match &known {
            // A line that was cut off by the kill is not gone on with.
            Some((_, end)) => {
                // Windows cuts no file that is open for appending only.
                let cut = File::options().write(true).open(&path).and_then(|file| file.set_len(*end));
                cut.map_err(Error::io("cut", &path))?;
                File::options().append(true).open(&path).map_err(Error::io("open", &path))?
            }
            None => {
                let mut file = File::create(&path).map_err(Error::io("create", &path))?;
                write(&mut file, &path, &Head { asked })?;
                file
            }
        };
        Ok((Self { path, file }, known.map(|known| known.0).unwrap_or_default()))
    }

    /// Writes an answer down.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn add(&mut self, doc_id: usize, answer: &Answer) -> Result<()> {
        write(&mut self.file, &self.path, &Line { doc_id, answer: answer.clone() })
    }
}

fn write(file: &mut File, path: &Path, line: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string(line).map_err(|e| Error::internal("answer", e.to_string()))?;
    text.push('\n');
    file.write_all(text.as_bytes()).map_err(Error::io("write", path))
}

/// The answers and where the last whole line ends; `None` where others were asked.
fn read(path: &Path, asked: &str) -> Option<(HashMap<usize, Answer>, u64)> {
    let mut reader = BufReader::new(File::open(path).ok()?);
    let mut line = String::new();
    let mut end = reader.read_line(&mut line).ok()? as u64;
    if serde_json::from_str::<Head>(&line).ok()?.asked != asked {
        return None;
    }
    let mut known = HashMap::new();
    loop {
        line.clear();
        let length = reader.read_line(&mut line).unwrap_or(0);
        match serde_json::from_str::<Line>(&line) {
            Ok(read) if line.ends_with('\n') => known.insert(read.doc_id, read.answer),
            _ => return Some((known, end)),
        };
        end += length as u64;
    }
}

fn fingerprint(model: &str, items: &[Item]) -> String {
    let mut hash = xxhash_rust::xxh3::Xxh3::new();
    hash.update(model.as_bytes());
    for item in items {
        hash.update(format!("{}{:?}", item.doc_id, item.ask).as_bytes());
    }
    format!("{:032x}", hash.digest128())
}
