//! Tensors as host bytes: where they come from ([`TensorSource`]) and the safetensors format, a tensor at a time.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use memmap2::Mmap;
use safetensors::tensor::Metadata;
use serde_json::{Map, Value, json};
use xxhash_rust::xxh3::Xxh3;

use super::weights::check_shape;
use crate::error::{Error, Result};
use crate::model::Slice;
use crate::ops::blocks::widened;
use crate::ops::{Dtype, blocks};

/// Name, shape and element type of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name in the file.
    pub name: String,
    /// Its dimensions, row-major, last one contiguous.
    pub shape: Vec<usize>,
    /// Its element type.
    pub dtype: Dtype,
}

impl TensorInfo {
    /// Bytes of the data; `None` where that does not fit in a `usize`, or rows are not whole blocks.
    pub fn byte_len(&self) -> Option<usize> {
        let Some((&width, rows)) = self.shape.split_last() else { return self.dtype.bytes(1) };
        rows.iter().try_fold(self.dtype.bytes(width)?, |n, &d| n.checked_mul(d))
    }

    /// `F32 [512, 64]`, for messages.
    pub(crate) fn describe(&self) -> String {
        format!("{} {:?}", self.dtype, self.shape)
    }
}

/// A tensor's data, contiguous and row-major; borrowed where the file is mapped.
#[derive(Clone, Debug)]
pub struct Tensor<'a> {
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// Its element type.
    pub dtype: Dtype,
    /// Its elements, little-endian.
    pub bytes: Cow<'a, [u8]>,
}

impl<'a> Tensor<'a> {
    /// The elements as float32 (exact from every [`Dtype`]).
    pub fn to_f32(&self) -> Vec<f32> {
        blocks::widened(self.dtype, &self.bytes)
    }

    /// The same tensor in another element type, rounded to nearest; unchanged where the type is the same.
    ///
    /// # Errors
    /// [`Error::BadValue`] for blocks that its rows cannot be cut into, or a type that is only read.
    pub fn cast(self, dtype: Dtype) -> Result<Tensor<'a>> {
        if dtype == self.dtype {
            return Ok(self);
        }
        let width = self.shape.last().copied().unwrap_or(1);
        let bytes = blocks::narrowed(dtype, &self.to_f32(), width)?;
        Ok(Tensor { shape: self.shape, dtype, bytes: Cow::Owned(bytes) })
    }
}

/// Named tensors that are read one at a time, so that a model never has to be in memory as a whole.
pub trait TensorSource {
    /// Every tensor.
    fn list(&self) -> &[TensorInfo];

    /// One tensor by name.
    ///
    /// # Errors
    /// [`Error::BadTensor`] if there is none of that name; errors of the file.
    fn read(&self, name: &str) -> Result<Tensor<'_>>;

    /// One tensor by name: shape, type, and bytes that may outlive the source. They are those of the mapped file where nothing needs
    /// to be rearranged, else a copy.
    ///
    /// # Errors
    /// As [`TensorSource::read`].
    fn share(&self, name: &str) -> Result<(Vec<usize>, Dtype, Bytes)> {
        let Tensor { shape, dtype, bytes } = self.read(name)?;
        Ok((shape, dtype, Bytes::from(bytes.into_owned())))
    }

    /// One tensor by name: shape and elements as float32.
    ///
    /// # Errors
    /// As [`TensorSource::read`].
    fn read_f32(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
        let tensor = self.read(name)?;
        let values = tensor.to_f32();
        Ok((tensor.shape, values))
    }

    /// A rectangle of a tensor as float32.
    ///
    /// # Errors
    /// As [`TensorSource::read`]; [`Error::BadTensor`] where the whole has another shape.
    fn read_slice(&self, slice: &Slice) -> Result<Vec<f32>> {
        let tensor = self.read(&slice.name)?;
        check_shape(&slice.name, &tensor.shape, &slice.shape)?;
        if slice.is_whole() {
            return Ok(tensor.to_f32());
        }
        // Of a mapped file no more is read than the rectangle's rows.
        match tensor.dtype {
            Dtype::F32 => Ok(widened(Dtype::F32, &slice.cut(&tensor.bytes, 4))),
            Dtype::F16 | Dtype::BF16 => Ok(widened(tensor.dtype, &slice.cut(&tensor.bytes, 2))),
            _ => Ok(slice.cut(&tensor.to_f32(), 1)),
        }
    }
}

/// A source seen in other element types.
pub(crate) struct Cast<'a> {
    source: &'a dyn TensorSource,
    infos: Vec<TensorInfo>,
    overflowed: AtomicU64,
}

impl<'a> Cast<'a> {
    /// `dtype` gives the type of each tensor.
    pub(crate) fn new(source: &'a dyn TensorSource, dtype: impl Fn(&TensorInfo) -> Dtype) -> Self {
        let infos = source.list().iter().map(|info| TensorInfo { dtype: dtype(info), ..info.clone() }).collect();
        Self { source, infos, overflowed: AtomicU64::new(0) }
    }

    /// Finite values so far that became infinite.
    pub(crate) fn overflowed(&self) -> u64 {
        self.overflowed.load(Ordering::Relaxed)
    }
}

impl TensorSource for Cast<'_> {
    fn list(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn read(&self, name: &str) -> Result<Tensor<'_>> {
        let tensor = self.source.read(name)?;
        let dtype = self.infos.iter().find(|info| info.name == name).map_or(tensor.dtype, |info| info.dtype);
        if tensor.dtype == dtype {
            return Ok(tensor);
        }
        let before = tensor.to_f32();
        let cast = tensor.cast(dtype)?;
        // A factor of blocks that became infinite makes some of its elements NaN.
        let lost = before.iter().zip(cast.to_f32()).filter(|(a, b)| a.is_finite() && !b.is_finite()).count();
        self.overflowed.fetch_add(lost as u64, Ordering::Relaxed);
        Ok(cast)
    }
}

/// A source that gives no more tensors once it is told to stop.
pub(crate) struct Stoppable<'a> {
    source: &'a dyn TensorSource,
    stop: Option<&'static AtomicBool>,
}

impl<'a> Stoppable<'a> {
    pub(crate) fn new(source: &'a dyn TensorSource, stop: Option<&'static AtomicBool>) -> Self {
        Self { source, stop }
    }
}

impl TensorSource for Stoppable<'_> {
    fn list(&self) -> &[TensorInfo] {
        self.source.list()
    }

    fn read(&self, name: &str) -> Result<Tensor<'_>> {
        if self.stop.is_some_and(|stop| stop.load(Ordering::Relaxed)) {
            return Err(Error::io("write", name)(ErrorKind::Interrupted.into()));
        }
        self.source.read(name)
    }
}

pub(crate) fn no_such_tensor(path: &Path, name: &str) -> Error {
    Error::BadTensor {
        path: path.into(),
        name: name.into(),
        expected: "a tensor of this name".into(),
        got: "nothing".into(),
        hint: "see what the file lists".into(),
    }
}

/// Maps a file for reading.
pub(crate) fn map_file(path: &Path) -> Result<Mmap> {
    let file = File::open(path).map_err(Error::io("read", path))?;
    // SAFETY: the mapping is only read. Checkpoints are never changed in place: they are written under another name and
    // renamed, and removed by unlinking, which leaves mapped pages alone.
    unsafe { Mmap::map(&file) }.map_err(Error::io("read", path))
}

/// A safetensors file, memory-mapped. The header is checked in full when it is opened; data is read when asked for. Tensors of
/// float32, float16 and bfloat16 are read; those of other types are only told of.
#[derive(Debug)]
pub struct SafetensorsFile {
    path: PathBuf,
    map: Mmap,
    infos: Vec<TensorInfo>,
    /// By name: the index in `infos`, and the bytes' start and end in the file.
    places: HashMap<String, (usize, usize, usize)>,
    /// Tensors of other element types: names, types and shapes.
    others: Vec<(String, String, Vec<usize>)>,
    metadata: BTreeMap<String, String>,
}

impl SafetensorsFile {
    /// Opens and checks a file: lengths, offsets without gap or overlap.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::BadFile`] for anything that is not a whole safetensors file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let map = map_file(path)?;
        let bad = |problem: String| {
            Error::bad_file("safetensors file", path, problem, "it is truncated or damaged: copy or download it again")
        };
        let len = map.len();
        let prefix = map.get(..8).and_then(|b| b.try_into().ok());
        let prefix: [u8; 8] = prefix.ok_or_else(|| bad(format!("expected at least 8 bytes, got {len}")))?;
        let header_len = u64::from_le_bytes(prefix);
        let start = usize::try_from(header_len).ok().and_then(|n| n.checked_add(8)).filter(|&n| n <= len);
        let start = start.ok_or_else(|| bad(format!("a header of {header_len} bytes in a file of {len}")))?;
        // The crate's own check of the total adds without looking for overflow; so the header only is parsed by it.
        let header: Metadata = serde_json::from_slice(&map[8..start]).map_err(|e| bad(format!("bad header: {e}")))?;
        if start.checked_add(header.data_len()) != Some(len) {
            let problem = format!("expected {} bytes of tensors, got {}", header.data_len(), len - start);
            return Err(bad(problem));
        }
        let mut infos = Vec::new();
        let (mut places, mut others) = (HashMap::new(), Vec::new());
        for name in header.offset_keys() {
            let Some(info) = header.info(&name) else { continue };
            let dtype = match info.dtype {
                safetensors::Dtype::F32 => Dtype::F32,
                safetensors::Dtype::F16 => Dtype::F16,
                safetensors::Dtype::BF16 => Dtype::BF16,
                other => {
                    others.push((name, format!("{other:?}"), info.shape.clone()));
                    continue;
                }
            };
            // In bounds: offsets are contiguous from 0 to `data_len`.
            places.insert(name.clone(), (infos.len(), start + info.data_offsets.0, start + info.data_offsets.1));
            infos.push(TensorInfo { name, shape: info.shape.clone(), dtype });
        }
        let metadata = header.metadata().clone().unwrap_or_default().into_iter().collect();
        Ok(Self { path: path.into(), map, infos, places, others, metadata })
    }

    /// Tensors of other element types than F32, F16 and BF16, which are not read: names, types and shapes.
    pub fn others(&self) -> &[(String, String, Vec<usize>)] {
        &self.others
    }

    /// The header's free text.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }
}

impl TensorSource for SafetensorsFile {
    /// In the order of the file.
    fn list(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn read(&self, name: &str) -> Result<Tensor<'_>> {
        let found = self.places.get(name).and_then(|&(i, start, end)| Some((self.infos.get(i)?, self.map.get(start..end)?)));
        let (info, bytes) = found.ok_or_else(|| no_such_tensor(&self.path, name))?;
        Ok(Tensor { shape: info.shape.clone(), dtype: info.dtype, bytes: Cow::Borrowed(bytes) })
    }
}

/// Size and checksum of a file just written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileSummary {
    /// Length in bytes.
    pub bytes: u64,
    /// XXH3, 64 bits, of all bytes.
    pub xxh3: u64,
}

/// Writes a safetensors file: the header, then one tensor at a time as `next(i)` gives the bytes of `infos[i]`.
///
/// Wider element types come first, so that every tensor is aligned to its elements; otherwise the order is that of `infos`,
/// and `next` is called in the order of the file. No more than one tensor is in memory. The checksum is taken on the way.
/// The file is written in place: write into a temporary folder and rename that.
///
/// # Errors
/// [`Error::Io`]; errors of `next`; [`Error::BadTensor`] where `next` gives another number of bytes than the shape says;
/// [`Error::BadValue`] for two tensors of one name.
pub fn write_safetensors<'a>(
    path: &Path,
    infos: &[TensorInfo],
    metadata: &[(&str, &str)],
    next: &mut dyn FnMut(usize) -> Result<Cow<'a, [u8]>>,
) -> Result<FileSummary> {
    let mut order: Vec<usize> = (0..infos.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(infos[i].dtype.block().1));

    let mut header = Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".into(), metadata.iter().map(|(k, v)| (k.to_string(), Value::from(*v))).collect());
    }
    let mut offset = 0usize;
    for info in order.iter().map(|&i| &infos[i]) {
        let end = info.byte_len().and_then(|n| n.checked_add(offset)).ok_or_else(|| {
            Error::bad_value(&info.name, format!("shape {:?} is larger than memory", info.shape), "check the shape")
        })?;
        let entry = json!({ "dtype": info.dtype.to_string(), "shape": info.shape, "data_offsets": [offset, end] });
        if header.insert(info.name.clone(), entry).is_some() {
            return Err(Error::bad_value(&info.name, "two tensors of this name in one file", "give each its own name"));
        }
        offset = end;
    }
    let mut text = Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');

    let mut file = File::create(path).map_err(Error::io("create", path))?;
    let mut summary = FileSummary { bytes: 0, xxh3: 0 };
    let mut hash = Xxh3::new();
    let mut put = |bytes: &[u8]| {
        hash.update(bytes);
        summary.bytes += bytes.len() as u64;
        file.write_all(bytes).map_err(Error::io("write", path))
    };
    put(&(text.len() as u64).to_le_bytes())?;
    put(&text)?;
    for i in order {
        let (info, bytes) = (&infos[i], next(i)?);
        if info.byte_len() != Some(bytes.len()) {
            return Err(Error::BadTensor {
                path: path.into(),
                name: info.name.clone(),
                expected: info.describe(),
                got: format!("{} bytes", bytes.len()),
                hint: "the writer gave data that does not fit the shape".into(),
            });
        }
        put(&bytes)?;
    }
    summary.xxh3 = hash.digest();
    Ok(summary)
}
