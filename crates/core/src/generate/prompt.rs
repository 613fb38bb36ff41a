//! How texts of a model begin and end: what its tokenizer's and its checkpoint's files say.

use std::fmt;
use std::str::FromStr;

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

/// Whether the begin-of-sequence token goes before a prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bos {
    /// As the tokenizer's own file does ([`Tokenizer::prefix`]). A prompt that begins so already gets no second one.
    #[default]
    Auto,
    /// In any case.
    Always,
    /// In no case.
    Never,
}

impl FromStr for Bos {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "always" => Ok(Self::Always),
            "never" => Ok(Self::Never),
            _ => Err(Error::bad_value("bos", format!("`{text}` is unknown"), "take one of auto, always, never")),
        }
    }
}

impl fmt::Display for Bos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Always => "always",
            Self::Never => "never",
        })
    }
}

/// A text as the tokens that a model goes on from. With `special` the text of a special token is that token, else it is text. An
/// empty text is BOS (or EOS where there is none), since a model cannot go on from nothing; but for [`Bos::Never`].
///
/// # Errors
/// [`Error::BadValue`] for [`Bos::Always`] with a tokenizer that has no BOS.
pub fn encode_prompt(tokenizer: &Tokenizer, text: &str, bos: Bos, special: bool) -> Result<Vec<u32>> {
    let mut ids = if special { tokenizer.encode_with_special(text)? } else { tokenizer.encode(text)? };
    let own = tokenizer.prefix().to_vec();
    let named = tokenizer.bos_id().or(own.first().copied());
    let prefix = match (bos, named) {
        (Bos::Never, _) => Vec::new(),
        (Bos::Always, Some(id)) => vec![id],
        (Bos::Always, None) => {
            let problem = "the tokenizer's files name no begin-of-sequence token";
            return Err(Error::bad_value("bos", problem, "name one in tokenizer_config.json, or take `auto`"));
        }
        (Bos::Auto, _) => own,
    };
    if bos == Bos::Always || !ids.starts_with(&prefix) {
        ids.splice(..0, prefix);
    }
    if ids.is_empty() && bos != Bos::Never {
        ids.extend(named.or(tokenizer.eos_id()));
    }
    Ok(ids)
}

/// The tokens that end a text: those that the checkpoint's files name (`generation_config.json` before `config.json`), else the
/// tokenizer's EOS.
pub fn end_ids(checkpoint: Option<&Checkpoint>, tokenizer: &Tokenizer) -> Vec<u32> {
    match checkpoint.map(|checkpoint| checkpoint.bos_eos().1) {
        Some(ids) if !ids.is_empty() => ids.to_vec(),
        _ => tokenizer.eos_id().into_iter().collect(),
    }
}
