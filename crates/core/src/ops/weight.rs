//! Weights as inference reads them: a float tensor, or parts in types of files, narrow ones among them.

use std::any::Any;
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{DType, Int, Tensor, TensorData, TensorMetadata};
use bytes::Bytes;

use super::{Dtype, LlamaOps, blocks, cast, primitive, tensor};

/// A weight `[d_out, d_in]`.
#[derive(Clone, Debug)]
pub enum Weight<B: Backend> {
    /// A tensor.
    Float(FloatTensor<B>),
    /// Its rows in order, in parts that a backend has made of bytes ([`LlamaOps::take_weight`]).
    Parts(Arc<[WeightPart]>),
}

impl<B: LlamaOps> Weight<B> {
    /// Rows and width.
    pub fn dims(&self) -> [usize; 2] {
        match self {
            Self::Float(w) => w.shape().dims(),
            Self::Parts(parts) => [parts.iter().map(|p| p.rows).sum(), parts.first().map_or(0, |p| p.width)],
        }
    }

    /// The type that decides in which one inference computes with it: its own where that is a float type, else float32.
    pub fn dtype(&self) -> DType {
        match self {
            Self::Float(w) => w.dtype(),
            Self::Parts(parts) => {
                let mut dtypes = parts.iter().map(B::float_of);
                let first = dtypes.next().flatten();
                if dtypes.all(|dtype| dtype == first) { first.unwrap_or(DType::F32) } else { DType::F32 }
            }
        }
    }

    /// Bytes of each type in it, by ggml's name.
    pub fn bytes(&self) -> Vec<(&'static str, u64)> {
        match self {
            Self::Float(w) => {
                let dtype = [Dtype::F32, Dtype::F16, Dtype::BF16].into_iter().find(|dtype| dtype.float() == Some(w.dtype()));
                vec![(dtype.map_or("float", Dtype::name), (w.shape().num_elements() * w.dtype().size()) as u64)]
            }
            Self::Parts(parts) => parts.iter().map(|p| (p.dtype.name(), (p.rows * p.row_bytes()) as u64)).collect(),
        }
    }

    /// As a tensor: the tensor itself, or the parts widened to float32.
    pub fn float(&self, device: &B::Device) -> FloatTensor<B> {
        match self {
            Self::Float(w) => w.clone(),
            Self::Parts(parts) => {
                let widened = |part: &WeightPart| {
                    tensor::<B, 2>(host_tensor::<B>(
                        blocks::widened(part.dtype, &part.bytes::<B>()),
                        [part.rows, part.width],
                        device,
                    ))
                };
                primitive(Tensor::cat(parts.iter().map(widened).collect(), 0))
            }
        }
    }
}

/// Some rows of a weight, all in one type.
#[derive(Clone)]
pub struct WeightPart {
    /// The type.
    pub dtype: Dtype,
    /// Rows.
    pub rows: usize,
    /// Elements of a row.
    pub width: usize,
    /// Where it is.
    pub place: WeightPlace,
}

/// Where a part is.
#[derive(Clone)]
pub enum WeightPlace {
    /// On the host, as in the file: mapped memory, or memory of its own.
    Host(Bytes),
    /// On a device, in a form that only the backend's own operations know.
    Device(Arc<dyn Any + Send + Sync>),
}

impl WeightPart {
    /// Rows on the host, `width` elements each.
    ///
    /// # Panics
    /// If the bytes are not those of so many rows.
    pub fn host(dtype: Dtype, [rows, width]: [usize; 2], bytes: Bytes) -> Self {
        assert_eq!(dtype.bytes(width).and_then(|n| n.checked_mul(rows)), Some(bytes.len()), "a part of a weight has other bytes");
        Self { dtype, rows, width, place: WeightPlace::Host(bytes) }
    }

    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        self.dtype.bytes(self.width).unwrap_or_default()
    }

    /// Its bytes as in the file.
    pub fn bytes<B: LlamaOps>(&self) -> Cow<'_, [u8]> {
        match &self.place {
            WeightPlace::Host(bytes) => Cow::Borrowed(bytes),
            WeightPlace::Device(_) => Cow::Owned(B::weight_bytes(self)),
        }
    }

    /// Those on the host.
    pub(super) fn host_bytes(&self) -> &Bytes {
        match &self.place {
            WeightPlace::Host(bytes) => bytes,
            WeightPlace::Device(_) => unreachable!("a backend that takes weights to a device has operations of its own for them"),
        }
    }
}

impl fmt::Debug for WeightPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}, {}]", self.dtype, self.rows, self.width)
    }
}

fn host_tensor<B: Backend>(values: Vec<f32>, shape: [usize; 2], device: &B::Device) -> FloatTensor<B> {
    primitive(Tensor::<B, 2>::from_data(TensorData::new(values, shape), (device, DType::F32)))
}

/// Elements that are widened at once by the default bodies.
const AT_ONCE: usize = 1 << 24;

/// [`LlamaOps::project_parts`], default body: some rows at a time, widened.
pub(super) fn project_parts<B: LlamaOps>(x: FloatTensor<B>, parts: &[WeightPart], out: DType) -> FloatTensor<B> {
    let device = B::float_device(&x);
    let x = cast::<B>(x, DType::F32);
    let mut products = Vec::new();
    for part in parts {
        let rows = (AT_ONCE / part.width.max(1)).max(1);
        for bytes in part.host_bytes().chunks((rows * part.row_bytes()).max(1)) {
            let values = blocks::widened(part.dtype, bytes);
            let rows = values.len() / part.width;
            let w = host_tensor::<B>(values, [rows, part.width], &device);
            products.push(tensor::<B, 2>(B::project_rows(x.clone(), w, out)));
        }
    }
    primitive(Tensor::cat(products, 1))
}

/// [`LlamaOps::embed_parts`], default body: the rows are picked on the host.
pub(super) fn embed_parts<B: LlamaOps>(ids: IntTensor<B>, parts: &[WeightPart], out: DType) -> FloatTensor<B> {
    let ids = Tensor::<B, 1, Int>::from_primitive(ids);
    let device = ids.device();
    let width = parts.first().map_or(0, |part| part.width);
    let ids: Vec<i64> = ids.into_data().iter::<i64>().collect();
    let mut values = vec![0f32; ids.len() * width];
    for (id, row) in ids.iter().zip(values.chunks_exact_mut(width.max(1))) {
        widen_row(parts, *id as usize, row);
    }
    cast::<B>(host_tensor::<B>(values, [ids.len(), width], &device), out)
}

/// One row of a weight on the host.
pub(super) fn widen_row(parts: &[WeightPart], mut row: usize, out: &mut [f32]) {
    for part in parts {
        if row < part.rows {
            let n = part.row_bytes();
            return blocks::widen(part.dtype, &part.host_bytes()[row * n..][..n], out);
        }
        row -= part.rows;
    }
    panic!("a token beyond the embedding's rows");
}
