//! A model with what makes text of its tokens.

use std::path::{Path, PathBuf};

use super::{Bos, encode_prompt, end_ids};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

/// A checkpoint, and its tokenizer where it has one.
pub struct TextModel {
    /// Where it is.
    pub path: PathBuf,
    /// Its files.
    pub checkpoint: Checkpoint,
    /// `None`: it speaks token ids.
    pub tokenizer: Option<Tokenizer>,
    /// Tokens that end a text.
    pub ends: Vec<u32>,
}

impl TextModel {
    /// Opens the files; no weight is read yet. `tokenizer`: another than that beside the model.
    ///
    /// # Errors
    /// Those of the files; [`Error::Vocabulary`] for a tokenizer of another model.
    pub fn open(path: &Path, tokenizer: Option<&Path>) -> Result<Self> {
        let checkpoint = Checkpoint::open(path)?;
        let tokenizer = tokenizer.or(checkpoint.tokenizer_path()).map(Tokenizer::open).transpose()?;
        let size = checkpoint.config().vocab_size;
        let ends = match &tokenizer {
            Some(tokenizer) => {
                fits(tokenizer, size)?;
                end_ids(Some(&checkpoint), tokenizer)
            }
            None => checkpoint.bos_eos().1.to_vec(),
        };
        Ok(Self { path: path.into(), checkpoint, tokenizer, ends })
    }

    /// Tokens that the model knows.
    pub fn vocab_size(&self) -> usize {
        self.checkpoint.config().vocab_size
    }

    /// The tokenizer, for what cannot be done without.
    ///
    /// # Errors
    /// [`Error::Nothing`] where there is none.
    pub fn tokenizer_for(&self, what: &str) -> Result<&Tokenizer> {
        self.tokenizer.as_ref().ok_or_else(|| Error::Nothing {
            what: format!("tokenizer, which {what} needs"),
            path: self.path.clone(),
            hint: "pass --tokenizer FILE".into(),
        })
    }

    /// A text as token ids; see [`encode_prompt`].
    ///
    /// # Errors
    /// [`Error::Nothing`] without a tokenizer; those of [`encode_prompt`].
    pub fn encode(&self, text: &str, bos: Bos, special: bool) -> Result<Vec<u32>> {
        let Some(tokenizer) = &self.tokenizer else {
            return Err(Error::Nothing {
                what: "tokenizer".into(),
                path: self.path.clone(),
                hint: "pass --tokenizer FILE, or give a prompt of token ids, as `[1, 5, 9]`".into(),
            });
        };
        encode_prompt(tokenizer, text, bos, special)
    }

    /// Token ids that are a prompt: at least one, all inside the vocabulary; `at` names them.
    ///
    /// # Errors
    /// [`Error::BadValue`], [`Error::TooLong`].
    pub fn check(&self, at: &str, ids: &[u32], max_len: Option<usize>) -> Result<()> {
        let size = self.vocab_size();
        if ids.is_empty() {
            return Err(Error::bad_value(at, "expected at least one token, got none", "begin with the BOS token"));
        }
        if let Some(id) = ids.iter().find(|id| **id as usize >= size) {
            let problem = format!("token {id} is outside the model's vocabulary of {size}");
            return Err(Error::bad_value(at, problem, "encode with the tokenizer that the model was trained with"));
        }
        let longest = self.checkpoint.config().max_seq_len;
        let max = max_len.unwrap_or(longest).min(longest);
        if ids.len() > max {
            let hint = "shorten the prompt".to_string() + if max < longest { ", or raise --max-len" } else { "" };
            return Err(Error::TooLong { what: at.into(), got: ids.len(), max, hint });
        }
        Ok(())
    }
}

/// Special tokens beyond the model's vocabulary (a padding token that was added) are of no harm unless a prompt has one.
fn fits(tokenizer: &Tokenizer, model_size: usize) -> Result<()> {
    let beyond = model_size as u32..tokenizer.vocab_size() as u32;
    if beyond.into_iter().any(|id| tokenizer.has_token(id) && !tokenizer.is_special(id)) {
        return Err(Error::Vocabulary {
            left: "the tokenizer".into(),
            left_size: tokenizer.vocab_size(),
            right: "the model".into(),
            right_size: model_size,
            hint: "pass the tokenizer that the model was trained with".into(),
        });
    }
    Ok(())
}
