//! Products and embeddings by weights in parts on the host, read where they are: the file, mapped.

use std::mem::MaybeUninit;

use burn::tensor::DType;
use rayon::prelude::*;

use super::super::WeightPart;
use super::super::weight::widen_row;
use super::narrow::{Activations, Part};
use super::rows::{float, product_of_bytes};
use super::slices::{CpuTensor, unwritten};

/// The products of all parts side by side into `out [rows, rows of all]`, or added to what is there.
fn products(x: &[f32], rows: usize, parts: &[WeightPart], out: &mut [MaybeUninit<f32>], add: bool) {
    let width = parts.iter().map(|part| part.rows).sum();
    let mut blocks = Vec::new();
    let mut first = 0;
    for part in parts {
        assert_eq!(x.len(), rows * part.width, "product of rows: inner dimensions differ");
        let bytes = part.host_bytes();
        if part.dtype.float().is_some() {
            product_of_bytes(x, (part.dtype, bytes), out, [rows, part.rows, part.width], [first, width], add);
        } else {
            blocks.push(Part { dtype: part.dtype, w: bytes, rows: part.rows, first });
        }
        first += part.rows;
    }
    if !blocks.is_empty() {
        Activations::new(x, rows).product(&blocks, out, width, add);
    }
}

/// `x [n, width]` times all parts, `[n, rows of all]`, as `dtype`.
pub(super) fn project<T: CpuTensor>(x: &T, parts: &[WeightPart], dtype: DType) -> T {
    let [n, _]: [usize; 2] = x.shape().dims();
    let width = parts.iter().map(|part| part.rows).sum();
    let mut out = unwritten(n * width);
    products(&float(&x.values()), n, parts, &mut out, false);
    // SAFETY: the products wrote every element.
    T::make(unsafe { out.assume_init() }.into_vec(), &[n, width], dtype)
}

/// `y` and [`project`], in place where nobody else holds `y`.
pub(super) fn project_add<T: CpuTensor>(y: T, x: &T, parts: &[WeightPart]) -> T {
    let [n, _]: [usize; 2] = x.shape().dims();
    let mut y = y.owned();
    let out = y.values();
    // SAFETY: initialised floats are also maybe initialised ones; the products write floats only.
    let room = unsafe { std::slice::from_raw_parts_mut(out.as_mut_ptr().cast::<MaybeUninit<f32>>(), out.len()) };
    products(&float(&x.values()), n, parts, room, true);
    y.done()
}

/// Rows of the parts as `dtype`.
pub(super) fn embed<T: CpuTensor>(ids: &[i64], parts: &[WeightPart], dtype: DType) -> T {
    let width = parts.first().map_or(0, |part| part.width);
    let mut rows = vec![0f32; ids.len() * width];
    let each = rows.par_chunks_exact_mut(width.max(1)).zip(ids);
    each.for_each(|(row, &id)| widen_row(parts, usize::try_from(id).expect("a token's number"), row));
    T::make(rows, &[ids.len(), width], dtype)
}
