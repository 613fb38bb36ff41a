//! What all ranks say, gathered on each: whether any of them says yes ([`any()`]), and their results, of which an error on one is an error
//! on all ([`agree()`]).

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::comm::{Communicator, gather_bytes, gather_numbers};
use crate::error::{Error, Result};

/// How long ranks wait for each other where one reads or writes a checkpoint: that takes longer than a step.
pub(crate) const SLOW_TIMEOUT: Duration = Duration::from_secs(1800);

/// Whether any rank of a group says so.
///
/// # Errors
/// [`Error::Communication`].
pub fn any(group: &dyn Communicator, own: bool) -> Result<bool> {
    Ok(gather_numbers(group, &[f64::from(u8::from(own))])?.iter().any(|x| x[0] > 0.0))
}

/// The results of all ranks of a group, in the order of ranks; an error on one is an error on all. Waits up to `timeout` for the slowest,
/// where that is given.
///
/// # Errors
/// This rank's; else [`Error::Rank`] naming the first that failed; [`Error::Communication`].
pub fn agree<T: Serialize + DeserializeOwned>(
    group: &dyn Communicator,
    own: Result<T>,
    timeout: Option<Duration>,
) -> Result<Vec<T>> {
    let said = match &own {
        Ok(value) => json!({ "ok": value }),
        Err(e) => json!({ "error": e.to_string() }),
    };
    let all = gather_bytes(group, said.to_string().as_bytes(), timeout)?;
    own?;
    let read = |(rank, bytes): (usize, &Vec<u8>)| {
        let garbled = || Error::internal("agree", format!("rank {rank} sent what cannot be read"));
        let mut said: Value = serde_json::from_slice(bytes).map_err(|_| garbled())?;
        match said["error"].as_str() {
            Some(problem) => Err(Error::Rank { rank, problem: problem.into() }),
            None => serde_json::from_value(said["ok"].take()).map_err(|_| garbled()),
        }
    };
    all.iter().enumerate().map(read).collect()
}
