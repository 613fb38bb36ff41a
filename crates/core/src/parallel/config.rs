//! The settings `[parallel]`: how many replicas, how many ranks a model is split over, what is sharded, what overlaps.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::model::ModelConfig;

/// How training is divided among ranks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ParallelConfig {
    /// Replicas of the model, each with its share of every step's samples. `None`: ranks / `tp`.
    pub dp: Option<usize>,
    /// Ranks that hold a model together.
    pub tp: usize,
    /// Norms and residual stream of a split model are split over its ranks by rows (sequence parallelism).
    pub sequence: bool,
    /// What replicas share out among themselves (ZeRO): 0 nothing, 1 the optimizer's state, 2 the sums of gradients as well.
    pub zero: u8,
    /// Computation goes on while ranks exchange.
    pub overlap: bool,
    /// Elements of the gradients that replicas exchange at once, at least.
    pub bucket: usize,
}

impl Default for ParallelConfig {
    fn default() -> Self {
        Self { dp: None, tp: 1, sequence: false, zero: 1, overlap: true, bucket: 4 << 20 }
    }
}

impl ParallelConfig {
    /// Checks the settings against model and batch on `ranks` ranks.
    ///
    /// # Errors
    /// [`Error::BadValue`] naming what cannot be split, with the values that can.
    pub fn validate(&self, model: &ModelConfig, seq_len: usize, batch: usize, micro_batch: usize, ranks: usize) -> Result<()> {
        let bad = |key: &str, problem: String, hint: String| Err(Error::bad_value(format!("parallel.{key}"), problem, hint));
        if self.zero > 2 {
            return bad(
                "zero",
                format!("expected 0, 1 or 2, got {}", self.zero),
                "1 shards the optimizer's state, 2 gradients as well".into(),
            );
        }
        if self.bucket == 0 {
            return bad("bucket", "expected at least 1, got 0".into(), "leave it out".into());
        }
        if self.tp == 0 || self.dp == Some(0) {
            return bad(if self.tp == 0 { "tp" } else { "dp" }, "expected at least 1, got 0".into(), "leave it out".into());
        }
        self.check_model(model)?;
        let tp = self.tp;
        if self.sequence && !seq_len.is_multiple_of(tp) {
            let problem = format!("sequences of {seq_len} tokens cannot be split over {tp} ranks");
            return bad("sequence", problem, format!("set train.seq_len to a multiple of {tp}, or sequence = false"));
        }
        let dp = self.dp_of(ranks)?;
        if micro_batch == 0 || !batch.is_multiple_of(dp * micro_batch) {
            let divides: Vec<String> = (1..=batch).filter(|m| batch.is_multiple_of(dp * m)).map(|m| m.to_string()).collect();
            let hint = match divides.is_empty() {
                true => format!("set train.batch to a multiple of {dp}"),
                false => format!("set train.micro_batch to one of {}", divides.join(", ")),
            };
            let problem = format!("train.batch {batch} is no multiple of dp {dp} x train.micro_batch {micro_batch}");
            return bad("dp", problem, hint);
        }
        Ok(())
    }

    /// Checks that a model can be split by `tp`.
    ///
    /// # Errors
    /// [`Error::BadValue`] naming what cannot be split, with the values that can.
    pub fn check_model(&self, model: &ModelConfig) -> Result<()> {
        let tp = self.tp;
        let split = [
            ("model.n_heads", model.n_heads),
            ("model.n_kv_heads", model.kv_heads()),
            ("model.vocab_size", model.vocab_size),
            ("the feed-forward width", model.hidden_dim()),
        ];
        if let Some((what, n)) = split.iter().find(|(_, n)| !n.is_multiple_of(tp)) {
            let fits = |t: &usize| split.iter().all(|(_, n)| n.is_multiple_of(*t));
            let all: Vec<String> = (1..=model.n_heads).filter(fits).map(|t| t.to_string()).collect();
            return Err(Error::bad_value(
                "parallel.tp",
                format!("{what} = {n} cannot be split over {tp} ranks"),
                format!("this model takes {}", all.join(", ")),
            ));
        }
        Ok(())
    }
}
