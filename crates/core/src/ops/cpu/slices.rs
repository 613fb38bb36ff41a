//! From Flex's and NdArray's tensors to slices and back, and products on them.

use std::borrow::Cow;
use std::mem::MaybeUninit;

use burn::tensor::backend::Backend;
use burn::tensor::ops::IntTensor;
use burn::tensor::{DType, Int, Tensor, TensorData, TensorMetadata};
use gemm::Parallelism;
use rayon::prelude::*;

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

/// The tensor primitive of a CPU backend. Arithmetic is float32; narrower types are widened when read and rounded when written.
pub(super) trait CpuTensor: Sized + TensorMetadata {
    /// Storage, shape and strides; `None` if it is not float32, or if a stride is negative.
    fn strided(&self) -> Option<Strided<'_>>;
    /// The elements in order, writable, if they are float32 and nobody else holds them.
    fn slice_mut(&mut self) -> Option<&mut [f32]>;
    /// Takes the values over without a copy, float32.
    fn from_vec(values: Vec<f32>, shape: &[usize]) -> Self;
    /// A copy that nobody else holds, in the same type.
    fn duplicate(&self) -> Self;
    /// A copy in plain order, as float32.
    fn copied(&self) -> Vec<f32>;
    /// The elements in order in their own type; copied only if they lie otherwise.
    fn values(&self) -> Values<'_>;
    /// The elements in order, writable, in their own type; `None` where somebody else holds them.
    fn values_mut(&mut self) -> Option<ValuesMut<'_>>;
    /// Zeros that nobody else holds: float32, or what the backend has of bfloat16, float16 and int8.
    fn zeros(shape: &[usize], dtype: DType) -> Self;
    /// The values rounded to a narrower type.
    fn rounded(values: &[f32], shape: &[usize], dtype: DType) -> Self;

    /// From values, as `dtype`.
    fn make(values: Vec<f32>, shape: &[usize], dtype: DType) -> Self {
        if dtype == DType::F32 { Self::from_vec(values, shape) } else { Self::rounded(&values, shape, dtype) }
    }

    /// The elements in order; copied only if they lie otherwise or are of another type.
    fn contiguous(&self) -> Cow<'_, [f32]> {
        match self.strided() {
            Some(s) if s.is_contiguous() => Cow::Borrowed(&s.data[..s.len()]),
            _ => Cow::Owned(self.copied()),
        }
    }

    /// The elements in order to be written over: the storage itself where it may be, else a copy. The second is the tensor to
    /// keep alive; see [`Owned::done`].
    fn owned(mut self) -> Owned<Self> {
        let (shape, dtype) = (self.shape().to_vec(), self.dtype());
        if self.slice_mut().is_some() {
            return Owned { tensor: Some(self), values: Vec::new(), shape, dtype };
        }
        Owned { values: self.copied(), tensor: None, shape, dtype }
    }

    /// Storage and strides of a matrix with rows of `width`; copied only if need be.
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

/// A tensor's elements in order, in its own type.
pub(super) enum Values<'a> {
    F32(Cow<'a, [f32]>),
    BF16(Cow<'a, [half::bf16]>),
    F16(Cow<'a, [half::f16]>),
}

impl Values<'_> {
    pub(super) fn widened(&self) -> Vec<f32> {
        match self {
            Self::F32(x) => x.to_vec(),
            Self::BF16(x) => x.iter().map(|x| x.to_f32()).collect(),
            Self::F16(x) => x.iter().map(|x| x.to_f32()).collect(),
        }
    }
}

/// Puts what was read into memory into pages of 2 MiB, where the kernel can (Linux 6.1): a page's address is else looked up for every
/// 4 KiB of a weight. A wish: what fails changes nothing.
pub(super) fn large_pages(values: &Values<'_>) {
    let (at, bytes) = match values {
        Values::F32(x) => (x.as_ptr().cast(), size_of_val(&**x)),
        Values::BF16(x) => (x.as_ptr().cast(), size_of_val(&**x)),
        Values::F16(x) => (x.as_ptr().cast(), size_of_val(&**x)),
    };
    advise(at, bytes, true);
}

/// [`large_pages`] of what is to be written: its pages will be large ones from the beginning.
pub(super) fn large_pages_to_come(values: &ValuesMut<'_>) {
    let (at, bytes) = match values {
        ValuesMut::F32(x) => (x.as_ptr().cast(), size_of_val(&**x)),
        ValuesMut::BF16(x) => (x.as_ptr().cast(), size_of_val(&**x)),
        ValuesMut::F16(x) => (x.as_ptr().cast(), size_of_val(&**x)),
        ValuesMut::I8(x) => (x.as_ptr().cast(), size_of_val(&**x)),
    };
    advise(at, bytes, false);
}

/// Pages that lie in these bytes as a whole. The bytes must be a tensor's that is alive.
fn advise(at: *const u8, bytes: usize, collapse: bool) {
    #[cfg(target_os = "linux")]
    {
        const PAGE: usize = 2 << 20;
        let at = at as usize;
        let from = at.next_multiple_of(PAGE);
        let len = (at + bytes).saturating_sub(from) / PAGE * PAGE;
        if len > 0 {
            // SAFETY: the pages lie inside of a tensor that is alive, and their content stays.
            unsafe {
                libc::madvise(from as *mut _, len, libc::MADV_HUGEPAGE);
                if collapse {
                    libc::madvise(from as *mut _, len, libc::MADV_COLLAPSE);
                }
            }
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (at, bytes, collapse);
}

/// Elements to be written over, in a tensor's own type.
pub(super) enum ValuesMut<'a> {
    F32(&'a mut [f32]),
    BF16(&'a mut [half::bf16]),
    F16(&'a mut [half::f16]),
    I8(&'a mut [i8]),
}

/// A tensor that is being written over.
pub(super) struct Owned<T> {
    tensor: Option<T>,
    values: Vec<f32>,
    shape: Vec<usize>,
    dtype: DType,
}

impl<T: CpuTensor> Owned<T> {
    pub(super) fn values(&mut self) -> &mut [f32] {
        match self.tensor.as_mut().and_then(T::slice_mut) {
            Some(values) => values,
            None => &mut self.values,
        }
    }

    /// The tensor, in its old shape and type.
    pub(super) fn done(self) -> T {
        self.tensor.unwrap_or_else(|| T::make(self.values, &self.shape, self.dtype))
    }
}

/// Room for `n` elements, to be written before they are read: a `vec![0.0; n]` would write large results twice.
pub(super) fn unwritten(n: usize) -> Box<[MaybeUninit<f32>]> {
    Box::new_uninit_slice(n)
}

/// Copies values into room of their number.
pub(super) fn write_all(room: &mut [MaybeUninit<f32>], values: &[f32]) {
    assert_eq!(room.len(), values.len(), "a copy of another length");
    for (room, &x) in room.iter_mut().zip(values) {
        room.write(x);
    }
}

#[cfg(feature = "flex")]
impl CpuTensor for burn_flex::FlexTensor {
    fn strided(&self) -> Option<Strided<'_>> {
        if self.dtype() != DType::F32 {
            return None;
        }
        let layout = self.layout();
        let strides = layout.strides().iter().map(|&s| usize::try_from(s).ok()).collect::<Option<_>>()?;
        // `storage` is the whole buffer; the view begins at the offset.
        let data = self.storage::<f32>().get(layout.start_offset()..)?;
        Some(Strided { data, shape: layout.shape().to_vec(), strides })
    }

    fn slice_mut(&mut self) -> Option<&mut [f32]> {
        if self.dtype() != DType::F32 {
            return None;
        }
        let (start, end) = self.layout().contiguous_offsets()?;
        self.try_storage_mut::<f32>()?.get_mut(start..end)
    }

    fn from_vec(values: Vec<f32>, shape: &[usize]) -> Self {
        Self::from_data(TensorData::new(values, shape.to_vec()))
    }

    fn copied(&self) -> Vec<f32> {
        let dense = self.to_contiguous();
        match self.dtype() {
            DType::BF16 => widened(dense.as_slice::<half::bf16>(), half::bf16::to_f32),
            DType::F16 => widened(dense.as_slice::<half::f16>(), half::f16::to_f32),
            _ => dense.as_slice::<f32>().map(<[f32]>::to_vec).unwrap_or_default(),
        }
    }

    fn values(&self) -> Values<'_> {
        match self.dtype() {
            DType::BF16 => Values::BF16(match self.as_slice() {
                Some(x) => Cow::Borrowed(x),
                None => Cow::Owned(self.to_contiguous().as_slice().map(<[half::bf16]>::to_vec).unwrap_or_default()),
            }),
            DType::F16 => Values::F16(match self.as_slice() {
                Some(x) => Cow::Borrowed(x),
                None => Cow::Owned(self.to_contiguous().as_slice().map(<[half::f16]>::to_vec).unwrap_or_default()),
            }),
            _ => Values::F32(self.contiguous()),
        }
    }

    fn values_mut(&mut self) -> Option<ValuesMut<'_>> {
        let (start, end) = self.layout().contiguous_offsets()?;
        match self.dtype() {
            DType::F32 => Some(ValuesMut::F32(self.try_storage_mut()?.get_mut(start..end)?)),
            DType::BF16 => Some(ValuesMut::BF16(self.try_storage_mut()?.get_mut(start..end)?)),
            DType::F16 => Some(ValuesMut::F16(self.try_storage_mut()?.get_mut(start..end)?)),
            DType::I8 => Some(ValuesMut::I8(self.try_storage_mut()?.get_mut(start..end)?)),
            _ => None,
        }
    }

    fn duplicate(&self) -> Self {
        Self::from_data(self.clone().into_data())
    }

    fn zeros(shape: &[usize], dtype: DType) -> Self {
        use half::vec::HalfBitsVecExt;
        // A vector of zeros is zeroed by the system, as it is first written. (`Self::empty` copies its bytes to align them.)
        let n = shape.iter().product();
        match dtype {
            DType::BF16 => Self::from_data(TensorData::new(vec![0u16; n].reinterpret_into::<half::bf16>(), shape.to_vec())),
            DType::F16 => Self::from_data(TensorData::new(vec![0u16; n].reinterpret_into::<half::f16>(), shape.to_vec())),
            DType::I8 => Self::from_data(TensorData::new(vec![0i8; n], shape.to_vec())),
            _ => Self::from_vec(vec![0f32; n], shape),
        }
    }

    fn rounded(values: &[f32], shape: &[usize], dtype: DType) -> Self {
        match dtype {
            DType::BF16 => Self::from_data(TensorData::new(narrowed(values, half::bf16::from_f32), shape.to_vec())),
            _ => Self::from_data(TensorData::new(narrowed(values, half::f16::from_f32), shape.to_vec())),
        }
    }
}

#[cfg(feature = "flex")]
fn widened<E: Copy + Sync>(values: Option<&[E]>, to: impl Fn(E) -> f32 + Sync) -> Vec<f32> {
    values.unwrap_or_default().par_iter().with_min_len(1 << 14).map(|&x| to(x)).collect()
}

#[cfg(feature = "flex")]
fn narrowed<E: Send>(values: &[f32], from: impl Fn(f32) -> E + Sync) -> Vec<E> {
    values.par_iter().with_min_len(1 << 14).map(|&x| from(x)).collect()
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
            Self::F32(storage) if storage.is_unique() => storage.ensure_owned().as_slice_mut(),
            _ => None,
        }
    }

    fn from_vec(values: Vec<f32>, shape: &[usize]) -> Self {
        Self::from_data(TensorData::new(values, shape.to_vec()))
    }

    fn values(&self) -> Values<'_> {
        Values::F32(self.contiguous())
    }

    fn values_mut(&mut self) -> Option<ValuesMut<'_>> {
        match self {
            Self::F32(storage) if storage.is_unique() => storage.ensure_owned().as_slice_mut().map(ValuesMut::F32),
            Self::I8(storage) if storage.is_unique() => storage.ensure_owned().as_slice_mut().map(ValuesMut::I8),
            _ => None,
        }
    }

    fn duplicate(&self) -> Self {
        match self {
            Self::I8(storage) => {
                Self::from_data(TensorData::new(storage.view().iter().copied().collect::<Vec<i8>>(), self.shape()))
            }
            _ => Self::from_vec(self.copied(), &self.shape()),
        }
    }

    fn zeros(shape: &[usize], dtype: DType) -> Self {
        let n = shape.iter().product();
        match dtype {
            DType::I8 => Self::from_data(TensorData::new(vec![0i8; n], shape.to_vec())),
            _ => Self::from_data(TensorData::new(vec![0f32; n], shape.to_vec())),
        }
    }

    fn copied(&self) -> Vec<f32> {
        match self {
            Self::F32(storage) => storage.view().iter().copied().collect(),
            _ => Vec::new(),
        }
    }

    /// Never called: the backend has no narrower type than float32.
    fn rounded(values: &[f32], shape: &[usize], _: DType) -> Self {
        Self::from_vec(values.to_vec(), shape)
    }
}

/// The tensor in another type.
pub(super) fn cast<T: CpuTensor>(x: T, dtype: DType) -> T {
    if x.dtype() == dtype { x } else { T::make(x.copied(), &x.shape(), dtype) }
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

    /// The rows from `row` on.
    fn skip_rows(self, row: usize) -> Self {
        Self { data: &self.data[row * self.rs..], ..self }
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
    shape: [usize; 3],
    dst: &mut [f32],
    rs: usize,
    add: bool,
    a: Mat<'_>,
    b: Mat<'_>,
    scale: f32,
    threads: Parallelism,
) {
    check_product(shape, dst.len(), rs, a, b);
    // SAFETY: checked; `dst` is borrowed mutably, so it overlaps neither operand, and its elements are there to be added to.
    unsafe { raw_product(shape, dst.as_mut_ptr(), rs, add, a, b, scale, threads) }
}

/// `dst [m, n] = a [m, k] x b [k, n]`, dense, every element of which is written.
pub(super) fn product_into([m, n, k]: [usize; 3], dst: &mut [MaybeUninit<f32>], a: Mat<'_>, b: Mat<'_>, threads: Parallelism) {
    assert_eq!(dst.len(), m * n, "room of another size than the product");
    if k == 0 {
        dst.fill(MaybeUninit::new(0.0));
        return;
    }
    check_product([m, n, k], dst.len(), n, a, b);
    // SAFETY: checked; `dst` is borrowed mutably, so it overlaps neither operand; without `add` it is not read.
    unsafe { raw_product([m, n, k], dst.as_mut_ptr().cast(), n, false, a, b, 1.0, threads) }
}

/// Whether every element that a product reads or writes is inside its slice.
fn check_product([m, n, k]: [usize; 3], len: usize, rs: usize, a: Mat<'_>, b: Mat<'_>) {
    a.check(m, k);
    b.check(k, n);
    assert!(n <= rs || m <= 1, "rows of a product overlap");
    assert!(m == 0 || n == 0 || (m - 1) * rs + n <= len, "product out of bounds");
}

/// # Safety
/// [`check_product`] for the room at `dst`, which overlaps neither operand and is initialised if it is added to.
#[allow(clippy::too_many_arguments)]
unsafe fn raw_product(
    [m, n, k]: [usize; 3],
    dst: *mut f32,
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
    let (row, a_row, a_column, b_row, b_column) = (rs as isize, a.rs as isize, a.cs as isize, b.rs as isize, b.cs as isize);
    let (a, b) = (a.data.as_ptr(), b.data.as_ptr());
    // SAFETY: by the caller's promise.
    unsafe {
        gemm::gemm(m, n, k, dst, 1, row, add, a, a_column, a_row, b, b_column, b_row, 1.0, scale, false, false, false, threads);
    }
}

/// All of rayon's threads.
pub(super) fn all_threads() -> Parallelism {
    Parallelism::Rayon(0)
}

/// A two-dimensional product of tensors with any strides, as `dtype`.
pub(super) fn matmul<T: CpuTensor>(a: &T, b: &T, shapes: [[usize; 2]; 2], dtype: DType) -> T {
    let [[m, k], [k_b, n]] = shapes;
    assert_eq!(k, k_b, "matmul: inner dimensions differ");
    let mut out = unwritten(m * n);
    with_operands(a, b, [k, n], |a, b| product_into([m, n, k], &mut out, a, b, all_threads()));
    // SAFETY: the product wrote every element.
    T::make(unsafe { out.assume_init() }.into_vec(), &[m, n], dtype)
}

/// `y + a b`, or only the product (`add`), in place where nobody else holds `y [m, n]`.
pub(super) fn matmul_into<T: CpuTensor>(y: T, add: bool, a: &T, b: &T, shapes: [[usize; 2]; 2]) -> T {
    let [[m, k], [k_b, n]] = shapes;
    assert_eq!(k, k_b, "matmul: inner dimensions differ");
    let mut y = y.owned();
    with_operands(a, b, [k, n], |a, b| product([m, n, k], y.values(), n, add, a, b, 1.0, all_threads()));
    y.done()
}

/// `sum + a b` (or `a b`), float32, where `a` is a transposed view: the gradient of a weight. `gemm` packs such an operand on one
/// thread; cut by hand into blocks of rows, 3 to 20 % are gained (docs/LOG.md). Tall outputs are cut finer.
pub(super) fn matmul_rows<T: CpuTensor>(sum: Option<T>, a: &T, b: &T, shapes: [[usize; 2]; 2]) -> T {
    let [[m, k], [k_b, n]] = shapes;
    assert_eq!(k, k_b, "matmul: inner dimensions differ");
    let threads = rayon::current_num_threads();
    let tasks = if m >= 8 * n { 4 * threads } else { threads };
    let rows = m.div_ceil(tasks).next_multiple_of(16);
    let task = (rows * n).max(1);
    if let Some(sum) = sum {
        let mut sum = sum.owned();
        with_operands(a, b, [k, n], |a, b| {
            sum.values().par_chunks_mut(task).enumerate().for_each(|(i, dst)| {
                product([dst.len() / n, n, k], dst, n, true, a.skip_rows(i * rows), b, 1.0, Parallelism::None);
            });
        });
        return sum.done();
    }
    let mut out = unwritten(m * n);
    with_operands(a, b, [k, n], |a, b| {
        out.par_chunks_mut(task).enumerate().for_each(|(i, dst)| {
            product_into([dst.len() / n, n, k], dst, a.skip_rows(i * rows), b, Parallelism::None);
        });
    });
    // SAFETY: the products wrote every element.
    T::from_vec(unsafe { out.assume_init() }.into_vec(), &[m, n])
}

fn with_operands<T: CpuTensor>(a: &T, b: &T, widths: [usize; 2], f: impl FnOnce(Mat<'_>, Mat<'_>)) {
    let (a, b) = (a.matrix(widths[0]), b.matrix(widths[1]));
    let [a, b] = [&a, &b].map(|(data, [rs, cs])| Mat { data, rs: *rs, cs: *cs });
    f(a, b);
}
