//! Checkpoints that several ranks wrote: each its rectangles of parameters and moments, under the names that these have as a whole. Read as
//! if they were in one file, whole or any rectangle of them, so that any other number of ranks goes on from them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::native::FileEntry;
use super::tensors::{SafetensorsFile, Tensor, TensorInfo, TensorSource, no_such_tensor, write_safetensors};
use crate::error::{Error, Result};
use crate::files::sync_file;
use crate::model::Slice;
use crate::ops::Dtype;

/// A rectangle of a tensor, and the file that it is in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// Name, shape, offsets, sizes.
    #[serde(flatten)]
    pub slice: Slice,
    /// The file's name.
    pub file: String,
}

/// What a rank has written.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RankFiles {
    /// Its files.
    pub files: Vec<FileEntry>,
    /// What is in them.
    pub pieces: Vec<Piece>,
}

impl RankFiles {
    /// Writes rectangles, float32, as a safetensors file in the unfinished checkpoint `dir`, to the disk. The header says where each belongs
    /// as PyTorch's distributed checkpoints do.
    ///
    /// # Errors
    /// Those of [`write_safetensors`].
    pub fn write<'a>(
        &mut self,
        dir: &Path,
        file: &str,
        slices: &[Slice],
        next: &mut dyn FnMut(usize) -> Result<Cow<'a, [u8]>>,
    ) -> Result<()> {
        let path = dir.join(file);
        let info = |slice: &Slice| TensorInfo { name: slice.name.clone(), shape: slice.sizes.clone(), dtype: Dtype::F32 };
        let infos: Vec<TensorInfo> = slices.iter().map(info).collect();
        let offsets: Map<String, Value> =
            slices.iter().map(|slice| (slice.name.clone(), json!({ "saved_offsets": slice.offsets }))).collect();
        let summary = write_safetensors(&path, &infos, &[("DCP_SHARDING_INFO", &Value::Object(offsets).to_string())], next)?;
        sync_file(&path).map_err(Error::io("sync", &path))?;
        self.files.push(FileEntry::new(file, summary));
        self.pieces.extend(slices.iter().map(|slice| Piece { slice: slice.clone(), file: file.into() }));
        Ok(())
    }
}

/// Rows and columns of a rectangle.
fn extent(slice: &Slice) -> [Range<usize>; 2] {
    let of = |dim: usize| {
        let start = slice.offsets.get(dim).copied().unwrap_or(0);
        start..start + slice.sizes.get(dim).copied().unwrap_or(1)
    };
    [of(0), of(1)]
}

/// What two ranges share.
fn both(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    let start = a.start.max(b.start);
    start..a.end.min(b.end).max(start)
}

/// Checks that the rectangles of a tensor cover it, once.
fn check_cover(path: &Path, name: &str, slices: &[&Slice]) -> Result<()> {
    let shape = &slices[0].shape;
    let bad = |problem: String| Error::BadTensor {
        path: path.into(),
        name: name.into(),
        expected: format!("slices that cover {shape:?} once"),
        got: problem,
        hint: "the checkpoint is damaged: take an earlier one".into(),
    };
    let mut sorted = slices.to_vec();
    sorted.sort_by_key(|slice| slice.offsets.clone());
    let mut elements = 0usize;
    for (i, a) in sorted.iter().enumerate() {
        let fits =
            a.shape == *shape && a.offsets.len() == shape.len() && a.sizes.len() == shape.len() && (1..=2).contains(&shape.len());
        let inside = |dim: usize| a.offsets[dim].checked_add(a.sizes[dim]).is_some_and(|end| end <= shape[dim]);
        if !fits || !(0..shape.len()).all(inside) {
            return Err(bad(format!("one at {:?} of {:?} in {:?}", a.offsets, a.sizes, a.shape)));
        }
        elements = elements.saturating_add(a.elements());
        let [rows, columns] = extent(a);
        for b in &sorted[i + 1..] {
            if b.offsets.first().is_some_and(|row| *row >= rows.end) {
                break;
            }
            let [b_rows, b_columns] = extent(b);
            if !both(&rows, &b_rows).is_empty() && !both(&columns, &b_columns).is_empty() {
                return Err(bad(format!("an overlap of those at {:?} and {:?}", a.offsets, b.offsets)));
            }
        }
    }
    let all: usize = shape.iter().product();
    if elements != all {
        return Err(bad(format!("a hole: slices of {elements} of {all} elements")));
    }
    Ok(())
}

/// Tensors in slices, as if each were one.
#[derive(Debug)]
pub struct SlicedTensors {
    dir: PathBuf,
    infos: Vec<TensorInfo>,
    pieces: BTreeMap<String, Vec<Piece>>,
    files: BTreeMap<String, SafetensorsFile>,
}

impl SlicedTensors {
    /// Opens those in files whose names begin with `prefix`.
    ///
    /// # Errors
    /// [`Error::BadTensor`] for a tensor with a hole or an overlap; those of [`SafetensorsFile::open`].
    pub(super) fn open(dir: &Path, all: &[Piece], prefix: &str) -> Result<Self> {
        let mut pieces: BTreeMap<String, Vec<Piece>> = BTreeMap::new();
        let mut files = BTreeMap::new();
        let mut infos: Vec<TensorInfo> = Vec::new();
        for piece in all.iter().filter(|piece| piece.file.starts_with(prefix)) {
            let Slice { name, shape, .. } = &piece.slice;
            let of_name = pieces.entry(name.clone()).or_default();
            if of_name.is_empty() {
                infos.push(TensorInfo { name: name.clone(), shape: shape.clone(), dtype: Dtype::F32 });
            }
            of_name.push(piece.clone());
            if !files.contains_key(&piece.file) {
                files.insert(piece.file.clone(), SafetensorsFile::open(dir.join(&piece.file))?);
            }
        }
        for (name, of_name) in &pieces {
            check_cover(dir, name, &of_name.iter().map(|piece| &piece.slice).collect::<Vec<_>>())?;
        }
        Ok(Self { dir: dir.into(), infos, pieces, files })
    }

    /// The bytes of a rectangle, put together from those that were written.
    fn bytes(&self, wanted: &Slice) -> Result<Vec<u8>> {
        const UNIT: usize = size_of::<f32>();
        let pieces = self.pieces.get(&wanted.name).ok_or_else(|| no_such_tensor(&self.dir, &wanted.name))?;
        let mut out = vec![0; wanted.elements() * UNIT];
        let [want_rows, want_columns] = extent(wanted);
        for Piece { slice, file } in pieces {
            let [rows, columns] = extent(slice);
            let (shared_rows, shared_columns) = (both(&rows, &want_rows), both(&columns, &want_columns));
            if shared_rows.is_empty() || shared_columns.is_empty() {
                continue;
            }
            let source = self.files.get(file).ok_or_else(|| no_such_tensor(&self.dir.join(file), &slice.name))?;
            let found = source.read(&slice.name)?;
            if found.shape != slice.sizes || found.dtype != Dtype::F32 {
                return Err(Error::BadTensor {
                    path: self.dir.join(file),
                    name: slice.name.clone(),
                    expected: format!("F32 {:?}", slice.sizes),
                    got: format!("{} {:?}", found.dtype, found.shape),
                    hint: "the checkpoint is damaged: take an earlier one".into(),
                });
            }
            let place = |row: usize, rows: &Range<usize>, columns: &Range<usize>| {
                ((row - rows.start) * columns.len() + shared_columns.start - columns.start) * UNIT
            };
            let n = shared_columns.len() * UNIT;
            for row in shared_rows {
                let (to, from) = (place(row, &want_rows, &want_columns), place(row, &rows, &columns));
                out[to..to + n].copy_from_slice(&found.bytes[from..from + n]);
            }
        }
        Ok(out)
    }
}

impl TensorSource for SlicedTensors {
    fn list(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn read(&self, name: &str) -> Result<Tensor<'_>> {
        let info = self.infos.iter().find(|info| info.name == name).ok_or_else(|| no_such_tensor(&self.dir, name))?;
        let bytes = self.bytes(&Slice::whole(name, &info.shape))?;
        Ok(Tensor { shape: info.shape.clone(), dtype: Dtype::F32, bytes: Cow::Owned(bytes) })
    }

    fn read_slice(&self, slice: &Slice) -> Result<Vec<f32>> {
        let found = self.infos.iter().find(|info| info.name == slice.name).map(|info| &info.shape);
        super::weights::check_shape(&slice.name, found.map_or(&[][..], Vec::as_slice), &slice.shape)?;
        let bytes = self.bytes(slice)?;
        Ok(bytes.as_chunks::<4>().0.iter().map(|x| f32::from_le_bytes(*x)).collect())
    }
}
