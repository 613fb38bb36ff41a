//! The files that make a tokenizer. They go along together wherever it is copied: without `tokenizer_config.json` beside it a
//! `tokenizer.json` has another BOS and another EOS.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::kind::without_bom;
use crate::error::{Error, Result};
use crate::files::write_atomic;
use crate::gguf;

/// What a tokenizer's own file is called in a folder; the first that is there counts.
const MAIN: [&str; 2] = ["tokenizer.json", "tokenizer.model"];
/// What may lie beside it and goes along.
const BESIDE: [&str; 5] =
    ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json"];

/// The tokenizer in the first of these folders that has one.
pub fn find_tokenizer<'a>(folders: impl IntoIterator<Item = &'a Path>) -> Option<PathBuf> {
    folders.into_iter().flat_map(|folder| MAIN.map(|name| folder.join(name))).find(|path| path.is_file())
}

/// A tokenizer's files, by the names that they have in a folder of their own; the tokenizer's first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenizerFiles(Vec<(&'static str, Vec<u8>)>);

impl TokenizerFiles {
    /// Reads the tokenizer at `path`, whatever it is called, and what lies beside it; or that of a folder. A GGUF file's is made into the
    /// files that it would have.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::BadFile`] and [`Error::Nothing`] for a GGUF file that is damaged or has none.
    pub fn read(path: &Path) -> Result<Self> {
        let found = if path.is_dir() { find_tokenizer([path]) } else { None };
        let path = found.as_deref().unwrap_or(path);
        if gguf::is_gguf(path) {
            return super::gguf::files(&gguf::read_metadata(path)?, path);
        }
        let Self(mut files) = Self::of(&fs::read(path).map_err(Error::io("read", path))?);
        let json = files[0].0 == MAIN[0];
        // Where both forms of one tokenizer lie together, as in many a Llama 2, the .model goes along with the .json.
        for beside in BESIDE.into_iter().chain(json.then_some(MAIN[1])) {
            let path = path.with_file_name(beside);
            match fs::read(&path) {
                Ok(bytes) => files.push((beside, bytes)),
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(Error::io("read", &path)(e)),
            }
        }
        Ok(Self(files))
    }

    /// A tokenizer alone, by the contents of its file.
    pub(super) fn of(bytes: &[u8]) -> Self {
        let json = without_bom(bytes).trim_ascii_start().first() == Some(&b'{');
        Self(vec![(if json { MAIN[0] } else { MAIN[1] }, bytes.to_vec())])
    }

    /// The tokenizer's own file.
    pub(super) fn main(&self) -> &[u8] {
        &self.0[0].1
    }

    /// Those beside it that name or add tokens.
    pub(super) fn tokens(&self) -> impl Iterator<Item = (&'static str, &[u8])> {
        self.iter().filter(|(name, _)| BESIDE[..3].contains(name))
    }

    /// Whether a file of this name belongs to a tokenizer.
    pub fn has_name(name: &str) -> bool {
        MAIN.into_iter().chain(BESIDE).any(|n| n == name)
    }

    /// Names and contents.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &[u8])> {
        self.0.iter().map(|(name, bytes)| (*name, bytes.as_slice()))
    }

    /// Whether a file of this name is among them.
    pub fn contains(&self, name: &str) -> bool {
        self.0.iter().any(|(n, _)| *n == name)
    }

    /// Whether something beside the tokenizer says what begins and ends a text; a `.model` says it itself.
    pub fn has_config(&self) -> bool {
        self.contains(BESIDE[0]) || self.0[0].0 == MAIN[1]
    }

    /// Adds a file.
    pub fn push(&mut self, name: &'static str, bytes: Vec<u8>) {
        self.0.push((name, bytes));
    }

    /// The first of a tokenizer's files in `folder` that is not one of these, or not the same.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn conflict(&self, folder: &Path) -> Result<Option<PathBuf>> {
        for name in MAIN.into_iter().chain(BESIDE) {
            let path = folder.join(name);
            match fs::read(&path) {
                Ok(found) if self.iter().any(|(n, bytes)| n == name && bytes == found) => {}
                Ok(_) => return Ok(Some(path)),
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(Error::io("read", &path)(e)),
            }
        }
        Ok(None)
    }

    /// Writes those that `folder` has not.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write_missing(&self, folder: &Path) -> Result<()> {
        for (name, bytes) in self.iter() {
            let path = folder.join(name);
            if !path.exists() {
                write_atomic(&path, bytes)?;
            }
        }
        Ok(())
    }
}
