//! Weights in parts on a device: floats as tensors, blocks in the layout of `narrow_pack.rs`, multiplied and looked up by the kernels of
//! `narrow_kernels.rs`.
//!
//! Launches of a product by a part (parts of one type that lie side by side in a weight are one):
//! - up to 16 rows (8 with tensor cores): 1, which also adds
//! - more rows: for each piece of at most [`SCRATCH`] bytes its floats (1, of blocks), the product, and 1 that puts it in its columns where
//!   it is not the whole result; adding is in the product's pass where a routine can, else 1. With tensor cores and blocks, 1 more for the
//!   rows in bfloat16.

use burn::tensor::DType;
use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensorOps;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use cubecl::prelude::*;

use super::narrow_kernels::{columns_kernel, project_kernel, rows_kernel};
use super::narrow_pack::TILE;
use super::narrow_store::{Blocks, Stored, stored};
use super::thin::{self, GROUPS, UNITS, few};
use super::{EACH, address, count, embedding, empty, grid, grid_each, lanes, matmul, own};
use crate::ops::{WeightPart, cast, primitive, tensor};

/// Bytes of a weight that are floats at once for a product of many rows.
const SCRATCH: usize = 64 << 20;

/// See [`super::LlamaOps::project_parts`] and [`super::LlamaOps::project_parts_add`]: with `sum`, added to that.
pub(super) fn project<R, F, I, BT>(
    x: CubeTensor<R>,
    parts: &[WeightPart],
    out: DType,
    sum: Option<CubeTensor<R>>,
) -> CubeTensor<R>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
{
    let x = into_contiguous(x);
    let [n, width]: [usize; 2] = x.meta.shape().dims();
    let columns: usize = parts.iter().map(|part| part.rows).sum();
    assert!(parts.iter().all(|part| part.width == width), "product of rows: the input has another width than the weight");
    let add = sum.is_some();
    if n == 0 || columns == 0 {
        return sum.unwrap_or_else(|| empty(&x, &[n, columns], out));
    }
    if few(&x.client, n) {
        let y = sum.map_or_else(|| empty(&x, &[n, columns], out), own);
        let mut column = 0;
        for part in parts {
            match stored::<R>(part) {
                Stored::Float(w) => thin::launch(x.clone(), w.clone(), &y, column, add),
                Stored::Blocks(w) => launch(&x, w, part, &y, column, add),
            }
            column += part.rows;
        }
        return y;
    }
    // By tiles, of floats: tensor cores take bfloat16, whose range is that of float32.
    let features = &x.client.properties().features.matmul;
    let cores = !(features.cmma.is_empty() && features.mma.is_empty());
    let device = x.device.clone();
    let bf16 = CubeBackend::<R, F, I, BT>::supports_dtype(&device, DType::BF16);
    let narrow = if cores && bf16 { DType::BF16 } else { DType::F32 };
    let as_type = |x: CubeTensor<R>, to: DType| cast::<CubeBackend<R, F, I, BT>>(x, to);
    // Of a part: its type in the product.
    let kind = |part: &WeightPart| match stored::<R>(part) {
        Stored::Float(w) if w.dtype == x.dtype => w.dtype,
        Stored::Float(_) => DType::F32,
        Stored::Blocks(_) => narrow,
    };
    let pieces: Vec<(&WeightPart, usize, usize)> = parts
        .iter()
        .flat_map(|part| {
            let whole = matches!(stored::<R>(part), Stored::Float(w) if w.dtype == kind(part));
            let rows = if whole { part.rows } else { (SCRATCH / (width * kind(part).size()).max(1)).max(1) };
            (0..part.rows).step_by(rows.max(1)).map(move |first| (part, first, rows.min(part.rows - first)))
        })
        .collect();
    let mut inputs: Vec<CubeTensor<R>> = Vec::new();
    let mut input = |dtype: DType| match inputs.iter().find(|x| x.dtype == dtype) {
        Some(x) => x.clone(),
        None => {
            inputs.push(as_type(x.clone(), dtype));
            inputs[inputs.len() - 1].clone()
        }
    };
    let floats = |(part, first, rows): (&WeightPart, usize, usize)| {
        let w = match stored::<R>(part) {
            Stored::Float(w) if (first, rows) == (0, part.rows) => as_type(w.clone(), kind(part)),
            Stored::Float(w) => {
                let all = tensor::<CubeBackend<R, F, I, BT>, 2>(w.clone());
                as_type(primitive(all.narrow(0, first, rows)), kind(part))
            }
            Stored::Blocks(w) => {
                let to = empty(&w.low, &[rows, width], kind(part));
                fill_rows(w, part, first, None, &to, false);
                to
            }
        };
        CubeBackend::<R, F, I, BT>::float_transpose(w)
    };
    if let [piece] = pieces[..] {
        let (x, w) = (input(kind(piece.0)), floats(piece));
        return match sum {
            Some(y) => matmul::product_add(y, x, w),
            None => matmul::product(x, w, out),
        };
    }
    let y = sum.map_or_else(|| empty(&x, &[n, columns], out), own);
    let mut column = 0;
    for piece in pieces {
        let product = matmul::product(input(kind(piece.0)), floats(piece), if add { DType::F32 } else { out });
        put_columns(product, &y, column, add);
        column += piece.2;
    }
    y
}

fn arguments<R: CubeRuntime>(w: &Blocks<R>) -> [Option<TensorArg<R>>; 2] {
    [&w.high, &w.scales].map(|x| x.clone().map(CubeTensor::into_tensor_arg))
}

fn launch<R: CubeRuntime>(x: &CubeTensor<R>, w: &Blocks<R>, part: &WeightPart, y: &CubeTensor<R>, column: usize, add: bool) {
    let client = x.client.clone();
    let [n, stride] = [x.meta.shape()[0], y.meta.shape()[1]];
    assert!(column + part.rows <= stride, "product of rows: more columns than the result has");
    let (rows, outs) = (n.next_power_of_two(), 4);
    let [high, scales] = arguments(w);
    // SAFETY: `x` has `n` rows of `width / 4` vectors, `w` `rows` of `tiles`, `y` `n` of `stride`, and the kernel keeps to them.
    unsafe {
        project_kernel::launch_unchecked(
            &client,
            grid(&client, part.rows.div_ceil(GROUPS * outs)),
            CubeDim::new_1d(UNITS as u32),
            address([x, &w.low, y]),
            w.layout.high().max(1),
            w.layout.read_at_once(),
            x.clone().into_tensor_arg(),
            w.low.clone().into_tensor_arg(),
            high.into(),
            scales.into(),
            w.factors.clone().into_tensor_arg(),
            y.clone().into_tensor_arg(),
            n,
            part.rows,
            part.width.div_ceil(TILE),
            part.width / 4,
            column,
            stride,
            w.layout,
            rows,
            outs,
            part.width.is_multiple_of(TILE),
            add,
            [x.dtype.into(), w.factors.dtype.into(), y.dtype.into()],
        );
    }
}

/// Rows of a part in `to [n, width]`: those from `first` on; or those of `ids`, the part's first being `first`, others zeros or as they are.
fn fill_rows<R: CubeRuntime>(
    w: &Blocks<R>,
    part: &WeightPart,
    first: usize,
    ids: Option<&CubeTensor<R>>,
    to: &CubeTensor<R>,
    zero: bool,
) {
    let client = to.client.clone();
    let (tiles, integer) = (part.width.div_ceil(TILE), ids.map_or(DType::I32, |ids| ids.dtype));
    let items = to.meta.shape()[0] * tiles * 4;
    if items == 0 {
        return;
    }
    let [high, scales] = arguments(w);
    // SAFETY: `to` has rows of `width / 4` vectors; of `w`, rows below `rows` are read alone.
    unsafe {
        rows_kernel::launch_unchecked(
            &client,
            grid_each(&client, items),
            CubeDim::new_1d(EACH as u32),
            address([&w.low, to]),
            w.layout.high().max(1),
            w.layout.read_at_once(),
            w.low.clone().into_tensor_arg(),
            high.into(),
            scales.into(),
            w.factors.clone().into_tensor_arg(),
            ids.cloned().map(CubeTensor::into_tensor_arg).into(),
            to.clone().into_tensor_arg(),
            items,
            tiles,
            part.width / 4,
            first,
            part.rows,
            u32::from(zero),
            w.layout,
            [w.factors.dtype.into(), to.dtype.into(), integer.into()],
        );
    }
}

/// Columns of `y` from `column` on.
fn put_columns<R: CubeRuntime>(piece: CubeTensor<R>, y: &CubeTensor<R>, column: usize, add: bool) {
    let client = y.client.clone();
    let [columns, stride] = [piece.meta.shape()[1], y.meta.shape()[1]];
    let lanes = lanes(&client, &[piece.dtype, y.dtype], &[columns, column, stride]);
    let items = count(&piece) / lanes;
    // SAFETY: `y` has the rows of `piece` and its columns from `column` on; a unit has a vector of its own.
    unsafe {
        columns_kernel::launch_unchecked(
            &client,
            grid_each(&client, items),
            CubeDim::new_1d(EACH as u32),
            address([&piece, y]),
            lanes,
            piece.clone().into_tensor_arg(),
            y.clone().into_tensor_arg(),
            items,
            columns / lanes,
            column / lanes,
            stride / lanes,
            add,
            [piece.dtype.into(), y.dtype.into()],
        );
    }
}

/// See [`super::LlamaOps::embed_parts`]: one launch a part.
pub(super) fn embed<R: CubeRuntime>(ids: CubeTensor<R>, parts: &[WeightPart], out: DType) -> CubeTensor<R> {
    let ids = into_contiguous(ids);
    let width = parts.first().map_or(0, |part| part.width);
    let y = empty(&ids, &[count(&ids), width], out);
    if count(&y) == 0 {
        return y;
    }
    let mut first = 0;
    for part in parts {
        match stored::<R>(part) {
            Stored::Float(w) => embedding::pick(&ids, w, first, &y, first == 0),
            Stored::Blocks(w) => fill_rows(w, part, first, Some(&ids), &y, first == 0),
        }
        first += part.rows;
    }
    y
}
