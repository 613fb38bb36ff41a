//! GGUF's container: metadata, the table of tensors, and where their bytes lie. What a key or a tensor means is left to
//! [`checkpoint::gguf`](crate::checkpoint::gguf) and to the tokenizer.
//!
//! Nothing is believed: every length is held against the bytes that are there before anything is made of it, and memory grows with
//! what was read, not with what a count says.

mod files;
mod value;

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;

use crate::dtype::Dtype;
use crate::error::{Error, Result};
pub(crate) use files::{Shard, bad, open_all};
pub use files::{has_extension, is_gguf, read_metadata};
pub use value::{Array, Kind, Metadata, Value};
use value::{put_string, scalar};

/// What every file begins with.
pub(crate) const MAGIC: [u8; 4] = *b"GGUF";
/// Where tensors begin, if the file does not say.
pub(crate) const ALIGNMENT: usize = 32;

/// Longest name of a key or a tensor.
const MAX_NAME: u64 = 65_535;
/// Arrays of arrays of arrays are in no file.
const MAX_DEPTH: usize = 4;
/// Dimensions of a tensor.
const MAX_DIMS: u32 = 4;

/// A tensor as the table has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Its dimensions, row-major, as everywhere here (in the file the first is the width).
    pub shape: Vec<usize>,
    /// ggml's number of its type.
    pub kind: u32,
    /// Where its bytes begin, from the file's beginning.
    pub start: usize,
    /// Where they end; where they begin for a type that is not read.
    pub end: usize,
}

/// Everything before the tensors' bytes.
#[derive(Clone, Debug)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// What the file says of itself.
    pub metadata: Metadata,
    /// In the order of the file.
    pub tensors: Vec<Entry>,
}

impl Header {
    /// Reads and checks what precedes the tensors in a file's bytes; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::BadFile`].
    pub fn parse(bytes: &Bytes, path: &Path) -> Result<Self> {
        const AGAIN: &str = "it is truncated or damaged: copy or download it again";
        let mut reader = Reader { bytes, at: 0 };
        let bad = |problem: String, hint: &str| Error::bad_file("GGUF file", path, problem, hint);
        let damaged = |problem: String| bad(problem, AGAIN);
        if reader.take(4).map_err(damaged)? != MAGIC {
            return Err(bad("it does not begin with `GGUF`".into(), "give a file of llama.cpp's format GGUF"));
        }
        let version = reader.u32().map_err(damaged)?;
        match (version, version.swap_bytes()) {
            (2 | 3, _) => {}
            (_, 1..=3) => return Err(bad("it is big-endian".into(), "take the little-endian file of this model")),
            (1, _) => return Err(bad("version 1, expected 2 or 3".into(), "take a newer file of this model")),
            _ => return Err(bad(format!("version {version}, expected 2 or 3"), AGAIN)),
        }
        let header = Self::read(&mut reader, bytes, version).map_err(damaged)?;
        if let Some(entry) = header.tensors.iter().find(|entry| dtype(entry.kind).is_none()) {
            let (name, kind) = (&entry.name, type_name(entry.kind));
            return Err(bad(
                format!("tensor `{name}` is of type {kind}, which is not read"),
                &format!("take a file in one of {}", Dtype::ALL.map(Dtype::name).join(", ")),
            ));
        }
        Ok(header)
    }

    fn read(reader: &mut Reader<'_>, bytes: &Bytes, version: u32) -> Result<Self, String> {
        let [tensors, keys] = [reader.u64()?, reader.u64()?];
        let mut metadata = BTreeMap::new();
        for _ in 0..keys {
            let key = reader.name("key")?;
            let value = reader.value(bytes).map_err(|problem| format!("{key}: {problem}"))?;
            if metadata.contains_key(&key) {
                return Err(format!("the key `{key}` is there twice"));
            }
            metadata.insert(key, value);
        }
        let metadata = Metadata(metadata);
        let alignment = metadata.size("general.alignment")?.unwrap_or(ALIGNMENT);
        if !alignment.is_power_of_two() || alignment > 1 << 20 {
            return Err(format!("general.alignment: expected a power of two, got {alignment}"));
        }
        let mut list = Vec::new();
        for _ in 0..tensors {
            list.push(reader.entry()?);
        }
        let mut header = Self { version, metadata, tensors: list };
        let start = reader.at.checked_next_multiple_of(alignment).ok_or("the header is larger than memory")?;
        header.place(start, alignment, bytes.len())?;
        Ok(header)
    }

    /// From offsets to places, which must lie in the file and not over each other.
    fn place(&mut self, start: usize, alignment: usize, len: usize) -> Result<(), String> {
        for entry in &mut self.tensors {
            let Entry { name, shape, start: at, end, .. } = entry;
            if !at.is_multiple_of(alignment) {
                return Err(format!("tensor `{name}` begins at {at}, which is no multiple of the alignment {alignment}"));
            }
            let place = start.checked_add(*at);
            let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
            let Some((place, elements)) = place.zip(elements).filter(|(_, elements)| *elements < usize::MAX / 8) else {
                return Err(format!("tensor `{name}` {shape:?} is larger than memory"));
            };
            let Some(dtype) = dtype(entry.kind) else {
                (*at, *end) = (place, place);
                continue;
            };
            let width = shape.last().copied().unwrap_or(1);
            if !width.is_multiple_of(dtype.block().0) {
                let block = dtype.block().0;
                return Err(format!("tensor `{name}` {shape:?}: rows of {width} are not whole blocks of {block}, of {dtype}"));
            }
            let size = elements / dtype.block().0 * dtype.block().1;
            match place.checked_add(size).filter(|end| *end <= len) {
                Some(there) => (*at, *end) = (place, there),
                None => return Err(format!("tensor `{name}` has {size} bytes from {place} on, but the file ends at {len}")),
            }
        }
        let mut order: Vec<&Entry> = self.tensors.iter().collect();
        order.sort_unstable_by_key(|entry| (entry.start, entry.end));
        if let Some(pair) = order.windows(2).find(|pair| pair[0].end > pair[1].start) {
            return Err(format!("tensors `{}` and `{}` lie over each other", pair[0].name, pair[1].name));
        }
        order.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        match order.windows(2).find(|pair| pair[0].name == pair[1].name) {
            Some(pair) => Err(format!("the tensor `{}` is there twice", pair[0].name)),
            None => Ok(()),
        }
    }
}

/// What is to come, from a place on.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: u64) -> Result<&'a [u8], String> {
        let end = usize::try_from(n).ok().and_then(|n| self.at.checked_add(n));
        let taken = end.and_then(|end| Some((end, self.bytes.get(self.at..end)?)));
        let ends = || format!("expected {n} bytes at {}, but {} are left", self.at, self.bytes.len() - self.at);
        let (end, taken) = taken.ok_or_else(ends)?;
        self.at = end;
        Ok(taken)
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.take(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }

    fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from(self.u32()?) | u64::from(self.u32()?) << 32)
    }

    fn long_string(&mut self) -> Result<&'a [u8], String> {
        let len = self.u64()?;
        self.take(len)
    }

    fn name(&mut self, what: &str) -> Result<String, String> {
        let len = self.u64()?;
        if len > MAX_NAME {
            return Err(format!("a {what} of {len} bytes, expected at most {MAX_NAME}"));
        }
        String::from_utf8(self.take(len)?.to_vec()).map_err(|e| format!("a {what} that is not UTF-8 ({e})"))
    }

    fn value(&mut self, all: &Bytes) -> Result<Value, String> {
        match Kind::of(self.u32()?)? {
            // Free text of others may be in any encoding.
            Kind::String => Ok(Value::String(String::from_utf8_lossy(self.long_string()?).into_owned())),
            Kind::Array => {
                let kind = Kind::of(self.u32()?)?;
                let len = self.u64()?;
                let start = self.at;
                self.skip(kind, len, MAX_DEPTH)?;
                // No longer than its bytes: every value has at least one.
                Ok(Value::Array(Array { kind, len: len as usize, data: all.slice(start..self.at) }))
            }
            kind => scalar(kind, self.take(kind.size().unwrap_or_default() as u64)?),
        }
    }

    /// Passes over `len` values.
    fn skip(&mut self, kind: Kind, len: u64, depth: usize) -> Result<(), String> {
        let depth = depth.checked_sub(1).ok_or("arrays in arrays in arrays")?;
        if let Some(size) = kind.size() {
            let bytes = len.checked_mul(size as u64).ok_or_else(|| format!("an array of {len} values"))?;
            return self.take(bytes).map(|_| ());
        }
        for _ in 0..len {
            if kind == Kind::String {
                self.long_string()?;
            } else {
                let kind = Kind::of(self.u32()?)?;
                let len = self.u64()?;
                self.skip(kind, len, depth)?;
            }
        }
        Ok(())
    }

    /// A row of the table of tensors; `start` is still the offset among the tensors.
    fn entry(&mut self) -> Result<Entry, String> {
        let name = self.name("tensor's name")?;
        let dims = self.u32()?;
        if dims > MAX_DIMS {
            return Err(format!("tensor `{name}` has {dims} dimensions, expected at most {MAX_DIMS}"));
        }
        let mut shape = Vec::new();
        for _ in 0..dims {
            let size = self.u64()?;
            let size = usize::try_from(size).ok().filter(|size| *size > 0);
            shape.push(size.ok_or_else(|| format!("tensor `{name}` has a dimension of 0, or larger than memory"))?);
        }
        shape.reverse();
        let kind = self.u32()?;
        let offset = self.u64()?;
        let start = usize::try_from(offset).map_err(|_| format!("tensor `{name}` begins at {offset}"))?;
        Ok(Entry { name, shape, kind, start, end: start })
    }
}

/// A tensor that is to be written: name, shape (row-major), type.
pub(crate) type Planned = (String, Vec<usize>, Dtype);

/// Everything before the tensors' bytes, up to where the first begins, in version 3 with [`ALIGNMENT`]. Each tensor is to begin at the
/// next multiple of it.
///
/// # Errors
/// [`Error::BadValue`] for a tensor that is larger than memory, or whose rows are not whole blocks.
pub(crate) fn header(metadata: &[(String, Value)], tensors: &[Planned]) -> Result<Vec<u8>> {
    let mut out = MAGIC.to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        put_string(&mut out, key);
        out.extend((value.kind() as u32).to_le_bytes());
        value.put(&mut out);
    }
    let mut offset = 0usize;
    for (name, shape, dtype) in tensors {
        put_string(&mut out, name);
        out.extend((shape.len() as u32).to_le_bytes());
        for size in shape.iter().rev() {
            out.extend((*size as u64).to_le_bytes());
        }
        out.extend(type_number(*dtype).to_le_bytes());
        out.extend((offset as u64).to_le_bytes());
        let (width, rows) = shape.split_last().map_or((1, 1), |(w, rows)| (*w, rows.iter().product()));
        let end = dtype.bytes(width).and_then(|row| offset.checked_add(row.checked_mul(rows)?));
        let end = end.and_then(|end| end.checked_next_multiple_of(ALIGNMENT));
        let problem = || format!("{shape:?} in {dtype} is larger than memory, or its rows are not whole blocks");
        offset = end.ok_or_else(|| Error::bad_value(name, problem(), "take another type"))?;
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    Ok(out)
}

/// ggml's types by their numbers; empty where there is none any more.
const TYPES: [&str; 42] = [
    "F32", "F16", "Q4_0", "Q4_1", "", "", "Q5_0", "Q5_1", "Q8_0", "Q8_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_K",
    "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS", "I8", "I16", "I32", "I64", "F64", "IQ1_M",
    "BF16", "", "", "", "TQ1_0", "TQ2_0", "", "", "", "MXFP4", "NVFP4", "",
];

/// The name of a type by ggml's number.
pub fn type_name(number: u32) -> String {
    let name = TYPES.get(number as usize).filter(|name| !name.is_empty());
    name.map_or_else(|| format!("{number} (unknown)"), |name| (*name).into())
}

/// The type of a number, where it is read.
pub fn dtype(number: u32) -> Option<Dtype> {
    let name = TYPES.get(number as usize)?;
    Dtype::ALL.into_iter().find(|dtype| dtype.name() == *name)
}

/// ggml's number of a type.
pub(crate) fn type_number(dtype: Dtype) -> u32 {
    TYPES.iter().position(|name| *name == dtype.name()).unwrap_or_default() as u32
}
