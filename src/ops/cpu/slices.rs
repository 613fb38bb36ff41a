//! From Flex's and NdArray's tensors to slices and back, and products on them.

use std::borrow::Cow;

use burn::tensor::backend::Backend;
use burn::tensor::ops::IntTensor;
use burn::tensor::{Int, Tensor, TensorData};
use gemm::Parallelism;

/// A float32 tensor seen through its strides.
pub(super) struct Strided<'a> {
    /// From the first element to the end of the storage.
    pub(super) data: &'a [f32],
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
}

impl Strided<'_> {
    fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.shape.iter().zip(&self.strides).rev().all(|(&n, &stride)| {
            let fits = n == 1 || stride == expected;
            expected *= n;
            fits
        })
    }

    fn len(&self) -> usize {
        self.shape.iter().product()
    }
}

/// The tensor primitive of a CPU backend, float32.
pub(super) trait CpuTensor: Sized {
    /// Storage, shape and strides; `None` if a stride is negative.
    fn strided(&self) -> Option<Strided<'_>>;
    /// The elements in order, writable, if nobody else holds them.
    fn slice_mut(&mut self) -> Option<&mut [f32]>;
    /// Takes the vector over without a copy.
    fn from_vec(values: Vec<f32>, shape: &[usize]) -> Self;
    /// A copy in plain order.
    fn copied(&self) -> Vec<f32>;

    /// The elements in order; copied only if they lie otherwise.
    fn contiguous(&self) -> Cow<'_, [f32]> {
        match self.strided() {
            Some(s) if s.is_contiguous() => Cow::Borrowed(&s.data[..s.len()]),
            _ => Cow::Owned(self.copied()),
        }
    }

    /// Storage and strides of a matrix with rows of `width`; copied only if a stride is negative.
    fn matrix(&self, width: usize) -> (Cow<'_, [f32]>, [usize; 2]) {
        match self.strided() {
            Some(s) if s.strides.len() == 2 => (Cow::Borrowed(s.data), [s.strides[0], s.strides[1]]),
            _ => (Cow::Owned(self.copied()), [width, 1]),
        }
    }

    /// Storage, shape and strides with the last dimension dense; copied if need be.
    fn rows(&self, shape: &[usize]) -> (Cow<'_, [f32]>, Vec<usize>) {
        match self.strided() {
            Some(s) if s.strides.last() == Some(&1) || s.shape.last() == Some(&1) => (Cow::Borrowed(s.data), s.strides),
            _ => {
                let mut strides = vec![1; shape.len()];
                for i in (0..shape.len() - 1).rev() {
                    strides[i] = strides[i + 1] * shape[i + 1];
                }
                (Cow::Owned(self.copied()), strides)
            }
        }
    }
}

#[cfg(feature = "flex")]
impl CpuTensor for burn_flex::FlexTensor {
    fn strided(&self) -> Option<Strided<'_>> {
        let layout = self.layout();
        let strides = layout.strides().iter().map(|&s| usize::try_from(s).ok()).collect::<Option<_>>()?;
        // `storage` is the whole buffer; the view begins at the offset.
        let data = self.storage::<f32>().get(layout.start_offset()..)?;
        Some(Strided { data, shape: layout.shape().to_vec(), strides })
    }

    fn slice_mut(&mut self) -> Option<&mut [f32]> {
        let (start, end) = self.layout().contiguous_offsets()?;
        self.try_storage_mut::<f32>()?.get_mut(start..end)
    }

    fn from_vec(values: Vec<f32>, shape: &[usize]) -> Self {
        Self::from_data(TensorData::new(values, shape.to_vec()))
    }

    fn copied(&self) -> Vec<f32> {
        let dense = self.to_contiguous();
        dense.as_slice::<f32>().map(<[f32]>::to_vec).unwrap_or_default()
    }
}

#[cfg(feature = "ndarray")]
impl CpuTensor for burn_ndarray::NdArrayTensor {
    fn strided(&self) -> Option<Strided<'_>> {
        let Self::F32(storage) = self else { return None };
        let view = storage.view();
        let shape = view.shape().to_vec();
        let strides: Vec<usize> = view.strides().iter().map(|&s| usize::try_from(s).ok()).collect::<Option<_>>()?;
        let last: usize = shape.iter().zip(&strides).map(|(&n, &s)| n.saturating_sub(1) * s).sum();
        let len = if shape.contains(&0) { 0 } else { last + 1 };
        // SAFETY: strides are not negative, so all elements of the view lie between the first and `last`, inside one
        // allocation that `self` keeps alive and that nobody writes to while it is borrowed.
        let data = unsafe { std::slice::from_raw_parts(view.as_ptr(), len) };
        Some(Strided { data, shape, strides })
    }

    fn slice_mut(&mut self) -> Option<&mut [f32]> {
        match self {
            Self::F32(storage) => storage.ensure_owned().as_slice_mut(),
            _ => None,
        }
    }

    fn from_vec(values: Vec<f32>, shape: &[usize]) -> Self {
        Self::from_data(TensorData::new(values, shape.to_vec()))
    }

    fn copied(&self) -> Vec<f32> {
        match self {
            Self::F32(storage) => storage.view().iter().copied().collect(),
            _ => Vec::new(),
        }
    }
}

/// Integer ids on the host.
pub(super) fn ids<B: Backend>(ids: IntTensor<B>) -> Vec<i64> {
    Tensor::<B, 1, Int>::from_primitive(ids).into_data().iter::<i64>().collect()
}

/// One operand of a product: where it begins and how far its rows and columns lie apart.
#[derive(Clone, Copy)]
pub(super) struct Mat<'a> {
    pub(super) data: &'a [f32],
    pub(super) rs: usize,
    pub(super) cs: usize,
}

impl<'a> Mat<'a> {
    /// Rows of `width` dense elements, one after the other.
    pub(super) fn rows(data: &'a [f32], rs: usize) -> Self {
        Self { data, rs, cs: 1 }
    }

    /// The transpose.
    pub(super) fn t(self) -> Self {
        Self { data: self.data, rs: self.cs, cs: self.rs }
    }

    fn check(&self, rows: usize, cols: usize) {
        assert!(rows == 0 || cols == 0 || (rows - 1) * self.rs + (cols - 1) * self.cs < self.data.len(), "operand out of bounds");
    }
}

/// `dst [m, n] = scale * a [m, k] x b [k, n]`, or added to what is there; the rows of `dst` are `rs` apart.
#[allow(clippy::too_many_arguments)]
pub(super) fn product(
    [m, n, k]: [usize; 3],
    dst: &mut [f32],
    rs: usize,
    add: bool,
    a: Mat<'_>,
    b: Mat<'_>,
    scale: f32,
    threads: Parallelism,
) {
    if m == 0 || n == 0 {
        return;
    }
    a.check(m, k);
    b.check(k, n);
    assert!(n <= rs || m == 1, "rows of a product overlap");
    assert!((m - 1) * rs + n <= dst.len(), "product out of bounds");
    // SAFETY: the asserts above keep every element that is read or written inside its slice; `dst` is borrowed mutably, so it
    // overlaps neither operand.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst.as_mut_ptr(),
            1,
            rs as isize,
            add,
            a.data.as_ptr(),
            a.cs as isize,
            a.rs as isize,
            b.data.as_ptr(),
            b.cs as isize,
            b.rs as isize,
            1.0,
            scale,
            false,
            false,
            false,
            threads,
        );
    }
}

/// All of rayon's threads.
pub(super) fn all_threads() -> Parallelism {
    Parallelism::Rayon(0)
}

/// A two-dimensional product of tensors with any strides.
pub(super) fn matmul<T: CpuTensor>(a: &T, b: &T, shapes: [[usize; 2]; 2]) -> T {
    let [[m, k], [k_b, n]] = shapes;
    assert_eq!(k, k_b, "matmul: inner dimensions differ");
    let mut out = vec![0f32; m * n];
    let (a, b) = (a.matrix(k), b.matrix(n));
    let mats = [&a, &b].map(|(data, [rs, cs])| Mat { data, rs: *rs, cs: *cs });
    product([m, n, k], &mut out, n, false, mats[0], mats[1], 1.0, all_threads());
    T::from_vec(out, &[m, n])
}
