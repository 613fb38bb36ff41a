//! A dataset for a run.

use std::path::Path;
use std::sync::Arc;

use super::config::RunConfig;
use crate::data::{Shards, Verify};
use crate::error::{Error, Result};

/// Opens a dataset whose tokens the model has.
pub(super) fn open_shards(path: &Path, config: &RunConfig) -> Result<Arc<Shards>> {
    let shards = Shards::open(path, if config.data.verify { Verify::Full } else { Verify::Header })?;
    check_tokens(&shards, config.model.vocab_size, path)?;
    Ok(Arc::new(shards))
}

/// The model's vocabulary may be larger than the data's: rows that no token uses. A tokenizer may have more tokens than the model (a
/// padding token that was added): only those that occur count, for which the data are read through.
fn check_tokens(shards: &Shards, vocab_size: usize, path: &Path) -> Result<()> {
    const CHUNK: u64 = 1 << 20;
    let left_size = shards.vocab().size as usize;
    if left_size <= vocab_size {
        return Ok(());
    }
    let (all, mut ids) = (shards.index().tokens, Vec::new());
    for start in (0..all).step_by(CHUNK as usize) {
        ids.clear();
        shards.read(start..all.min(start + CHUNK), &mut ids)?;
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(Error::Vocabulary {
                left: path.display().to_string(),
                left_size,
                right: "the model".into(),
                right_size: vocab_size,
                hint: format!("token {id} occurs: set model.vocab_size to the data's or more, or tokenize again"),
            });
        }
    }
    Ok(())
}
