//! A GGUF file written, a tensor at a time.

use std::borrow::Cow;
use std::fs;
use std::io::Write;
use std::path::Path;

use super::{EMBEDDING, FREQS, OUTPUT, Planned, config, gguf_name, header};
use crate::checkpoint::Dtype;
use crate::checkpoint::ends::TextEnds;
use crate::checkpoint::tensors::TensorSource;
use crate::error::{Error, Result};
use crate::files::Atomic;
use crate::gguf::ALIGNMENT;
use crate::model::{ModelConfig, RopeScaling};
use crate::tokenizer::{Tokenizer, gguf_metadata};

/// Expects that nothing has the name of the file that is to be made.
pub(in crate::checkpoint) fn check_free(path: &Path) -> Result<()> {
    if path.symlink_metadata().is_err() {
        return Ok(());
    }
    let problem = format!("`{}` exists", path.display());
    Err(Error::bad_value("output file", problem, "name a new file, or remove this one first"))
}

/// Whether the output's matrix is the embedding's, in one place of the file that they are read from.
pub(in crate::checkpoint) fn tie(source: &dyn TensorSource) -> Result<bool> {
    let [a, b] = [source.read("tok_embeddings.weight")?.bytes, source.read("output.weight")?.bytes];
    Ok(matches!((a, b), (Cow::Borrowed(a), Cow::Borrowed(b)) if std::ptr::eq(a, b)))
}

/// Writes `path`, which appears whole or not at all. `source` has Meta's names and layout; its types are the file's, but for gains of
/// norms, which are float32. `tied`: no output's matrix, which is the embedding's.
pub(in crate::checkpoint) fn write(
    path: &Path,
    model: &ModelConfig,
    source: &dyn TensorSource,
    tied: bool,
    tokenizer: Option<&Tokenizer>,
    ends: &TextEnds,
) -> Result<()> {
    let mut planned: Vec<Planned> = Vec::new();
    let mut names: Vec<&str> = Vec::new();
    for info in source.list().iter().filter(|info| !(tied && info.name == "output.weight")) {
        let name = gguf_name(&info.name).unwrap_or_default();
        planned.push((name, info.shape.clone(), info.dtype));
        names.push(&info.name);
    }
    let scaled = matches!(model.rope_scaling, RopeScaling::Llama3 { .. } | RopeScaling::Factors { .. });
    let freqs = if scaled { config::rope_factors(model) } else { Vec::new() };
    if scaled {
        planned.push((FREQS.into(), vec![freqs.len()], Dtype::F32));
    }
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    let mut metadata = config::write(model, &name, file_type(&planned));
    metadata.extend(gguf_metadata(tokenizer, model.vocab_size, ends.bos_id, &ends.eos_ids)?);

    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
    }
    let mut file = Atomic::create(path)?;
    let mut put = |bytes: &[u8]| {
        let pad = bytes.len().next_multiple_of(ALIGNMENT) - bytes.len();
        file.write_all(bytes).and_then(|()| file.write_all(&[0; ALIGNMENT][..pad])).map_err(Error::io("write", path))
    };
    put(&header(&metadata, &planned)?)?;
    for (name, (_, shape, dtype)) in names.into_iter().zip(&planned) {
        let tensor = source.read(name)?;
        if tensor.shape != *shape || tensor.dtype != *dtype {
            let problem = format!("`{name}` is {} {:?}, planned was {dtype} {shape:?}", tensor.dtype, tensor.shape);
            return Err(Error::internal("GGUF writer", problem));
        }
        put(&tensor.bytes)?;
    }
    if scaled {
        let bytes: Vec<u8> = freqs.iter().flat_map(|f| (*f as f32).to_le_bytes()).collect();
        put(&bytes)?;
    }
    file.commit()
}

/// llama.cpp's number of what most of the elements of matrices are in.
fn file_type(planned: &[Planned]) -> u32 {
    let elements = |dtype: Dtype| {
        let of_type =
            planned.iter().filter(|(name, shape, d)| *d == dtype && shape.len() > 1 && name != EMBEDDING && name != OUTPUT);
        of_type.map(|(_, shape, _)| shape.iter().product::<usize>()).sum::<usize>()
    };
    match Dtype::ALL.into_iter().max_by_key(|dtype| elements(*dtype)).unwrap_or(Dtype::F32) {
        Dtype::F32 => 0,
        Dtype::F16 => 1,
        Dtype::Q4_0 => 2,
        Dtype::Q8_0 => 7,
        Dtype::Q5_0 => 8,
        Dtype::Q4_K => 15,
        Dtype::Q5_K => 17,
        Dtype::Q6_K => 18,
        Dtype::BF16 => 32,
    }
}
