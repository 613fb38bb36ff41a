//! GGUF, llama.cpp's format: one file with everything in it, or several that are one (`NAME-00001-of-00003.gguf`).
//!
//! Files of the architecture `llama` are read where they are mapped, in every type of [`Dtype`], and written. Their attention rotates
//! adjacent elements, as Meta's and ours does, so that no row is moved. `docs/gguf.md` says what is read and what is refused.

mod config;
mod write;

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::Dtype;
use super::check::{check_layers, check_tensors};
use super::ends::TextEnds;
use super::tensors::{Tensor, TensorInfo, TensorSource, map_file, no_such_tensor};
use crate::error::{Error, Result};
pub use crate::gguf::{Array, Entry, Header, Kind, Metadata, Value, dtype, type_name};
use crate::gguf::{MAGIC, Planned, header};
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

/// Whether a path is to be read as GGUF: by its name, or by what the file begins with.
pub fn is_gguf(path: &Path) -> bool {
    let begins = || {
        let mut magic = [0; 4];
        File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == MAGIC
    };
    path.is_file() && (has_extension(path) || begins())
}

/// Whether a name ends in `.gguf`.
pub fn has_extension(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"))
}

/// One file, mapped.
#[derive(Debug)]
struct Shard {
    path: PathBuf,
    bytes: Bytes,
    header: Header,
}

impl Shard {
    fn open(path: &Path) -> Result<Self> {
        let bytes = Bytes::from_owner(map_file(path)?);
        let header = Header::parse(&bytes, path)?;
        Ok(Self { path: path.into(), bytes, header })
    }

    /// Its number among how many, from 0.
    fn split(&self) -> Result<(usize, usize)> {
        let size = |key: &str| self.header.metadata.size(key).map_err(|e| bad(&self.path, e));
        let (number, count) = (size("split.no")?.unwrap_or(0), size("split.count")?.unwrap_or(1));
        if count > 1 && number >= count {
            return Err(bad(&self.path, format!("split.no is {number} of {count}")));
        }
        Ok((number, count.max(1)))
    }
}

fn bad(path: &Path, problem: impl Into<String>) -> Error {
    Error::bad_file("GGUF file", path, problem, "it is damaged, or made for another program: get it again")
}

/// All files of the model that `path` is, or is a part of; the first has the metadata.
fn open_all(path: &Path) -> Result<Vec<Shard>> {
    let opened = Shard::open(path)?;
    let (number, count) = opened.split()?;
    if count == 1 {
        return Ok(vec![opened]);
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let ending = format!("-{:05}-of-{count:05}.gguf", number + 1);
    let Some(prefix) = name.strip_suffix(&ending) else {
        let problem = format!("it is part {} of {count}, but its name does not end in `{ending}`", number + 1);
        return Err(Error::bad_file("GGUF file", path, problem, "give the files their names back"));
    };
    let mut shards = Vec::new();
    let mut opened = Some(opened);
    for i in 0..count {
        let part = path.with_file_name(format!("{prefix}-{:05}-of-{count:05}.gguf", i + 1));
        let shard = if i == number { opened.take() } else { None };
        if shard.is_none() && !part.is_file() {
            let problem = format!("{} of its {count} parts is missing", part.display());
            return Err(Error::bad_file("GGUF file", path, problem, "put all parts into one folder"));
        }
        let shard = shard.map_or_else(|| Shard::open(&part), Ok)?;
        if shard.split()? != (i, count) {
            let (number, of) = shard.split()?;
            return Err(bad(&part, format!("it says that it is part {} of {of}, its name {} of {count}", number + 1, i + 1)));
        }
        shards.push(shard);
    }
    let tensors: usize = shards.iter().map(|shard| shard.header.tensors.len()).sum();
    let said = shards[0].header.metadata.size("split.tensors.count").map_err(|e| bad(path, e))?;
    match said.filter(|said| *said != tensors) {
        Some(said) => Err(bad(path, format!("its parts hold {tensors} tensors, expected {said}"))),
        None => Ok(shards),
    }
}

/// The metadata of the model that `path` is, or is a part of.
///
/// # Errors
/// As [`GgufModel::open`].
pub fn read_metadata(path: &Path) -> Result<Metadata> {
    let opened = Shard::open(path)?;
    if opened.split()?.0 == 0 {
        return Ok(opened.header.metadata);
    }
    open_all(path)?.into_iter().next().map(|shard| shard.header.metadata).ok_or_else(|| bad(path, "no parts"))
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
    /// [`Error::Io`]; [`Error::BadFile`] for what is damaged, of another architecture, or missing parts; [`Error::BadTensor`] for tensors
    /// that are not those of the model; [`Error::BadValue`] for settings that are no LLaMA's.
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
