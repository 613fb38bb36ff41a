//! Held-out text: one dataset, or several that are measured each on its own (the sources of a mixture).

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::config::HeldOut;
use super::metrics::Validation;
use super::observe::Observer;
use crate::data::{Batch, SequentialBatches, Shards, TokenWindows, Verify, Vocab};
use crate::error::{Error, Result};

/// Opened held-out sets.
pub(super) struct Valid(Vec<Set>);

struct Set {
    name: String,
    windows: TokenWindows,
    /// Tokens a byte of text: from nats a token to bits a byte.
    tokens_per_byte: f64,
}

impl Valid {
    /// Opens the sets. Of several, one that is shorter than a window is left out, with a note.
    pub(super) fn open(sets: &HeldOut, verify: bool, vocab: Vocab, seq_len: usize, observer: &mut dyn Observer) -> Result<Self> {
        let mut all = Vec::new();
        for (name, path) in sets.folders() {
            let shards = open_shards(path, verify)?;
            shards.check_vocab(vocab, "the training data")?;
            let index = shards.index();
            let tokens_per_byte = index.tokens as f64 / index.text_bytes.max(1) as f64;
            match TokenWindows::new(shards, seq_len) {
                Ok(windows) => all.push(Set { name: name.into(), windows, tokens_per_byte }),
                Err(e @ Error::Nothing { .. }) if !name.is_empty() => {
                    observer.note(&format!("held-out set `{name}` is left out: {e}"));
                }
                Err(e) => return Err(e),
            }
        }
        match all.is_empty() {
            true => Err(Error::bad_value("data.valid", "none of its sets has a whole window", "leave it out, or lower seq_len")),
            false => Ok(Self(all)),
        }
    }

    /// Measures by `loss` (mean in nats a token, number of tokens) over at most `windows` windows of each set.
    pub(super) fn measure(
        &self,
        batch: usize,
        windows: Option<u64>,
        loss: &mut dyn FnMut(Batch) -> (f64, u64),
    ) -> Result<Validation> {
        let (mut nats, mut tokens, mut bytes) = (0.0, 0, 0.0);
        let mut by_set = BTreeMap::new();
        for set in &self.0 {
            let (mut sum, mut count) = (0.0, 0);
            for batch in SequentialBatches::new(set.windows.clone(), batch, windows)? {
                let (mean, n) = loss(batch?);
                sum += mean * n as f64;
                count += n;
            }
            if self.0.len() > 1 {
                by_set.insert(set.name.clone(), sum / count.max(1) as f64);
            }
            nats += sum;
            tokens += count;
            bytes += count as f64 / set.tokens_per_byte;
        }
        Ok(Validation { loss: nats / tokens.max(1) as f64, bpb: nats / std::f64::consts::LN_2 / bytes, by_set })
    }
}

/// Opens a dataset.
pub(super) fn open_shards(path: &Path, verify: bool) -> Result<Arc<Shards>> {
    Ok(Arc::new(Shards::open(path, if verify { Verify::Full } else { Verify::Header })?))
}
