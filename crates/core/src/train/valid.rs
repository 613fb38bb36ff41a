//! Held-out text: one dataset, or several that are measured each on its own (the sources of a mixture).

use std::collections::BTreeMap;

use super::config::{HeldOut, RunConfig};
use super::metrics::Validation;
use super::observe::Observer;
use super::shards::open_shards;
use crate::data::{Batch, TokenWindows, ValidationBatches, Vocab};
use crate::error::{Error, Result};
use crate::model::Part;
use crate::parallel::Mesh;
use crate::parallel::comm::gather_numbers;
use crate::tokenizer::{TokenBytes, Tokenizer};

/// Opened held-out sets.
pub(super) struct Valid {
    sets: Vec<Set>,
    /// Bytes of each token of the text.
    bytes: Option<TokenBytes>,
}

struct Set {
    name: String,
    windows: TokenWindows,
    /// Of the whole set: where there is no tokenizer.
    tokens_per_byte: f64,
}

impl Valid {
    /// Opens the sets. Of several, one that is shorter than a window is left out, with a note.
    pub(super) fn open(
        sets: &HeldOut,
        config: &RunConfig,
        vocab: Vocab,
        tokenizer: Option<&Tokenizer>,
        observer: &mut dyn Observer,
    ) -> Result<Self> {
        let mut all = Vec::new();
        for (name, path) in sets.folders() {
            let shards = open_shards(path, config)?;
            shards.check_vocab(vocab, "the training data")?;
            let index = shards.index();
            let tokens_per_byte = index.tokens as f64 / index.text_bytes.max(1) as f64;
            match TokenWindows::new(shards, config.seq_len()) {
                Ok(windows) => all.push(Set { name: name.into(), windows, tokens_per_byte }),
                Err(e @ Error::Nothing { .. }) if !name.is_empty() => {
                    observer.note(&format!("held-out set `{name}` is left out: {e}"));
                }
                Err(e) => return Err(e),
            }
        }
        match all.is_empty() {
            true => Err(Error::bad_value("data.valid", "none of its sets has a whole window", "leave it out, or lower seq_len")),
            false => Ok(Self { sets: all, bytes: tokenizer.map(TokenBytes::new) }),
        }
    }

    /// Measures by `loss` (mean in nats a token, number of tokens) over at most `windows` windows of each set, spread evenly over it.
    /// Bits per byte are over the text of these very windows. Replicas of a mesh take batches by turns.
    pub(super) fn measure(
        &self,
        batch: usize,
        windows: Option<u64>,
        mesh: Option<&Mesh>,
        loss: &mut dyn FnMut(Batch) -> Result<(f64, u64)>,
    ) -> Result<Validation> {
        let replica = mesh.map_or(Part::WHOLE, Mesh::replica);
        let (mut nats, mut tokens, mut bytes) = (0.0, 0, 0.0);
        let mut by_set = BTreeMap::new();
        for set in &self.sets {
            let (mut sum, mut count, mut text_of) = (0.0, 0, if mesh.is_none() { bytes } else { 0.0 });
            let all = ValidationBatches::new(set.windows.clone(), batch, windows)?;
            for batch in all.skip(replica.index).step_by(replica.of) {
                let batch = batch?;
                let text = self.bytes.as_ref().map(|bytes| text_bytes(bytes, &batch, set.windows.seq_len()));
                let (mean, n) = loss(batch)?;
                sum += mean * n as f64;
                count += n;
                text_of += text.map_or(n as f64 / set.tokens_per_byte, |n| n as f64);
            }
            if let Some(mesh) = mesh {
                let all = gather_numbers(mesh.data(), &[sum, count as f64, text_of])?;
                let total = |i: usize| all.iter().map(|own| own[i]).sum::<f64>();
                (sum, count, text_of) = (total(0), total(1) as u64, bytes + total(2));
            }
            bytes = text_of;
            if self.sets.len() > 1 {
                by_set.insert(set.name.clone(), sum / count.max(1) as f64);
            }
            nats += sum;
            tokens += count;
        }
        Ok(Validation { loss: nats / tokens.max(1) as f64, bpb: nats / std::f64::consts::LN_2 / bytes.max(1.0), by_set })
    }
}

/// Bytes of the targets of a batch.
fn text_bytes(bytes: &TokenBytes, batch: &Batch, seq_len: usize) -> u64 {
    let rows = batch.tokens.chunks_exact(seq_len + 1);
    rows.map(|row| {
        let row: Vec<u32> = row.iter().map(|&t| t as u32).collect();
        bytes.count(row[0], &row[1..])
    })
    .sum()
}
