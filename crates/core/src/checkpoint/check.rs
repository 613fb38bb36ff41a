//! Whether the tensors of files are those of a model.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::tensors::TensorInfo;
use crate::error::{Error, Result};
use crate::model::ModelConfig;

/// Refuses a number of layers for which the files cannot have the tensors, before anything is made for each layer.
pub(super) fn check_layers(path: &Path, config: &ModelConfig, tensors: usize) -> Result<()> {
    if config.n_layers <= tensors {
        return Ok(());
    }
    let problem = format!("{} layers, but the files hold {tensors} tensors in all", config.n_layers);
    let hint = "the configuration is of another model, or files are missing";
    Err(Error::bad_value(format!("{}: n_layers", path.display()), problem, hint))
}

/// Checks that `listed` has each of `wanted` in its shape, and nothing else.
pub(super) fn check_tensors(path: &Path, wanted: &[(String, Vec<usize>)], listed: &[TensorInfo]) -> Result<()> {
    let bad = |name: &str, expected: String, got: String, hint: &str| {
        Err(Error::BadTensor { path: path.into(), name: name.into(), expected, got, hint: hint.into() })
    };
    let have: BTreeMap<&str, &TensorInfo> = listed.iter().map(|i| (i.name.as_str(), i)).collect();
    let missing: Vec<&(String, Vec<usize>)> = wanted.iter().filter(|(name, _)| !have.contains_key(name.as_str())).collect();
    if let [(name, shape), others @ ..] = missing.as_slice() {
        let mut got = "nothing".to_string();
        if !others.is_empty() {
            let names: Vec<&str> = others.iter().take(8).map(|(name, _)| name.as_str()).collect();
            got += &format!(
                " ({} more are missing: {}{})",
                others.len(),
                names.join(", "),
                if others.len() > 8 { " ..." } else { "" }
            );
        }
        return bad(name, format!("{shape:?}"), got, "the configuration is of another model, or files are missing");
    }
    for (name, shape) in wanted {
        if let Some(info) = have.get(name.as_str()).filter(|i| i.shape != *shape) {
            return bad(name, format!("{shape:?}"), info.describe(), "the configuration does not belong to these weights");
        }
    }
    let known: BTreeSet<&str> = wanted.iter().map(|(name, _)| name.as_str()).collect();
    match have.iter().find(|(name, _)| !known.contains(*name)) {
        None => Ok(()),
        Some((name, info)) if name.ends_with(".bias") => {
            bad(name, "nothing: LLaMA has no biases".into(), info.describe(), "this model cannot be read")
        }
        Some((name, info)) => bad(name, "nothing of this name".into(), info.describe(), "this is no plain LLaMA of these layers"),
    }
}
