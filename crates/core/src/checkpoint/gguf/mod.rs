//! GGUF, llama.cpp's format: one file with everything in it, or several that are one (`NAME-00001-of-00003.gguf`).
//!
//! Files of the architecture `llama` are read where they are mapped, in every type of [`Dtype`], and written. Their attention rotates
//! adjacent elements, as Meta's and ours does, so that no row is moved. `docs/gguf.md` says what is read and what is refused.

mod config;
mod write;

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use bytes::Bytes;

use super::Dtype;
use super::check::{check_layers, check_tensors};
use super::ends::TextEnds;
use super::tensors::{Tensor, TensorInfo, TensorSource, no_such_tensor};
use crate::error::Result;
pub use crate::gguf::{Array, Entry, Header, Kind, Metadata, Value, dtype, type_name};
use crate::gguf::{Planned, header};
use crate::gguf::{Shard, bad, open_all};
pub use crate::gguf::{has_extension, is_gguf, read_metadata};
use crate::model::ModelConfig;
pub(super) use write::{check_free, tie, write};

/// The one table of names: Meta's, GGUF's. Those of a block follow `layers.N.` and `blk.N.`.
const OUTER: [(&str, &str); 3] =
    [("tok_embeddings.weight", EMBEDDING), ("norm.weight", "output_norm.weight"), ("output.weight", OUTPUT)];
const BLOCK: [(&str, &str); 9] = [
    ("attention_norm.weight", "attn_norm.weight"),
    ("attention.wq.weight", "attn_q.weight"),
    ("attention.wk.weight", "attn_k.weight"),
    ("attention.wv.weight", "attn_v.weight"),
    ("attention.wo.weight", "attn_output.weight"),
    ("ffn_norm.weight", "ffn_norm.weight"),
    ("feed_forward.w1.weight", "ffn_gate.weight"),
    ("feed_forward.w2.weight", "ffn_down.weight"),
    ("feed_forward.w3.weight", "ffn_up.weight"),
];
const EMBEDDING: &str = "token_embd.weight";
const OUTPUT: &str = "output.weight";
/// What the rotary frequencies are divided by.
const FREQS: &str = "rope_freqs.weight";

/// GGUF's name of a parameter with Meta's name; `None` if a LLaMA has no such parameter.
pub fn gguf_name(meta: &str) -> Option<String> {
    let find = |table: &[(&str, &'static str)], name: &str| table.iter().find(|(m, _)| *m == name).map(|(_, gguf)| *gguf);
    if let Some(rest) = meta.strip_prefix("layers.") {
        let (layer, name) = rest.split_once('.')?;
        return find(&BLOCK, name).map(|gguf| format!("blk.{layer}.{gguf}"));
    }
    find(&OUTER, meta).map(Into::into)
}

/// A GGUF file of a LLaMA, seen with Meta's names and layout, mapped.
#[derive(Debug)]
pub struct GgufModel {
    config: ModelConfig,
    shards: Vec<Shard>,
    infos: Vec<TensorInfo>,
    /// Meta's name -> index in `shards`, start and end of the bytes.
    places: HashMap<String, (usize, usize, usize)>,
}

impl GgufModel {
    /// Opens a file, or all parts of a model that is split, of which `path` may be any. Without `output.weight` the output matrix is the
    /// embedding's.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io); [`Error::BadFile`](crate::Error::BadFile) for what is damaged, of another architecture, or missing
    /// parts; [`Error::BadTensor`](crate::Error::BadTensor) for tensors
    /// that are not those of the model; [`Error::BadValue`](crate::Error::BadValue) for settings that are no LLaMA's.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let shards = open_all(path)?;
        let metadata = &shards[0].header.metadata;
        config::check_architecture(metadata, path)?;
        let mut found: HashMap<&str, (usize, &Entry)> = HashMap::new();
        for (i, shard) in shards.iter().enumerate() {
            for entry in &shard.header.tensors {
                if found.insert(&entry.name, (i, entry)).is_some() {
                    return Err(bad(&shard.path, format!("the tensor `{}` is in another part too", entry.name)));
                }
            }
        }
        let freqs = found.get(FREQS).map(|(i, entry)| floats(&shards[*i], entry)).transpose()?;
        let embedding = found.get(EMBEDDING).map(|(_, entry)| entry.shape.as_slice());
        let config = config::read(metadata, embedding, freqs, path)?;
        check_layers(path, &config, found.len())?;

        let tied = !found.contains_key(OUTPUT);
        let mut wanted: Vec<_> =
            config.parameters().into_iter().map(|(name, shape)| (gguf_name(&name).unwrap_or_default(), shape)).collect();
        wanted.retain(|(name, _)| !(tied && name == OUTPUT));
        // Frequencies that older files store, and that are computed.
        let is_extra = |name: &str| name == FREQS || name.ends_with("attn_rot_embd.weight") || name == "rope.inv_freq";
        let info = |(_, entry): &(usize, &Entry)| {
            let dtype = crate::gguf::dtype(entry.kind);
            let unknown = || bad(path, format!("tensor `{}` is of type {}", entry.name, type_name(entry.kind)));
            Ok(TensorInfo { name: entry.name.clone(), shape: entry.shape.clone(), dtype: dtype.ok_or_else(unknown)? })
        };
        let listed = found.values().filter(|(_, entry)| !is_extra(&entry.name)).map(info).collect::<Result<Vec<_>>>()?;
        check_tensors(path, &wanted, &listed)?;

        let (mut infos, mut places) = (Vec::new(), HashMap::new());
        for (name, shape) in config.parameters() {
            let gguf = if tied && name == "output.weight" { EMBEDDING.into() } else { gguf_name(&name).unwrap_or_default() };
            let place = found.get(gguf.as_str()).ok_or_else(|| no_such_tensor(path, &gguf))?;
            infos.push(TensorInfo { name: name.clone(), shape, dtype: info(place)?.dtype });
            places.insert(name, (place.0, place.1.start, place.1.end));
        }
        Ok(Self { config, shards, infos, places })
    }

    /// The hyper-parameters.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// What the file says of itself: settings, tokenizer.
    pub fn metadata(&self) -> &Metadata {
        &self.shards[0].header.metadata
    }

    /// The first file of the model.
    pub fn path(&self) -> &Path {
        &self.shards[0].path
    }

    pub(super) fn text_ends(&self) -> Result<TextEnds> {
        config::text_ends(self.metadata()).map_err(|e| bad(self.path(), e))
    }

    /// Whether there is a tokenizer in the file.
    pub fn has_tokenizer(&self) -> bool {
        crate::tokenizer::in_gguf(self.metadata())
    }

    fn slice(&self, name: &str) -> Result<(&TensorInfo, Bytes)> {
        let found = self.places.get(name).zip(self.infos.iter().find(|info| info.name == name));
        let (&(shard, start, end), info) = found.ok_or_else(|| no_such_tensor(self.path(), name))?;
        // In bounds: checked when it was opened.
        Ok((info, self.shards[shard].bytes.slice(start..end)))
    }
}

/// A tensor's elements.
fn floats(shard: &Shard, entry: &Entry) -> Result<Vec<f32>> {
    let dtype = crate::gguf::dtype(entry.kind).filter(|dtype| dtype.float().is_some());
    let dtype = dtype.ok_or_else(|| bad(&shard.path, format!("`{}` is in {}", entry.name, type_name(entry.kind))))?;
    Ok(crate::ops::blocks::widened(dtype, &shard.bytes[entry.start..entry.end]))
}

impl TensorSource for GgufModel {
    fn list(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn read(&self, name: &str) -> Result<Tensor<'_>> {
        let found = self.places.get(name).zip(self.infos.iter().find(|info| info.name == name));
        let (&(shard, start, end), info) = found.ok_or_else(|| no_such_tensor(self.path(), name))?;
        let bytes = Cow::Borrowed(&self.shards[shard].bytes[start..end]);
        Ok(Tensor { shape: info.shape.clone(), dtype: info.dtype, bytes })
    }

    fn share(&self, name: &str) -> Result<(Vec<usize>, Dtype, Bytes)> {
        let (info, bytes) = self.slice(name)?;
        Ok((info.shape.clone(), info.dtype, bytes))
    }
}
