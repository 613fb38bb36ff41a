//! Weights in parts on a device: floats as tensors, blocks in the layout of `narrow_pack.rs`, multiplied and looked up by the kernels of
//! `narrow_kernels.rs`.
//!
//! Launches of a product by a part (parts of one type that lie side by side in a weight are one):
//! - up to 16 rows (8 with tensor cores): 1, which also adds
//! - more rows: for each piece of at most [`SCRATCH`] bytes its floats (1, of blocks), the product, and 1 that puts it in its columns where
//!   it is not the whole result; adding is in the product's pass where a routine can, else 1. With tensor cores and blocks, 1 more for the
//!   rows in bfloat16.

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensorOps;
use burn::tensor::{Bytes, DType, Shape};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use cubecl::prelude::*;
use rayon::prelude::*;

use super::narrow_kernels::{columns_kernel, project_kernel, put_kernel, rows_kernel};
use super::narrow_pack::{Layout, Packed, TILE, factors, narrowed_bits, pack, unpack, widened_bits};
use super::thin::{self, GROUPS, UNITS, few};
use super::{EACH, address, count, embedding, empty, grid, grid_each, lanes, matmul, own};
use crate::backend::context::fail;
use crate::ops::{Dtype, LlamaOps, WeightPart, WeightPlace, cast, primitive, tensor};

/// Bytes that are packed and uploaded at once.
const PIECE: usize = 32 << 20;

/// Bytes of a weight that are floats at once for a product of many rows.
const SCRATCH: usize = 64 << 20;

/// Rows of a weight on a device.
enum Stored<R: CubeRuntime> {
    /// `[rows, width]`.
    Float(CubeTensor<R>),
    Blocks(Blocks<R>),
}

struct Blocks<R: CubeRuntime> {
    layout: Layout,
    low: CubeTensor<R>,
    high: Option<CubeTensor<R>>,
    scales: Option<CubeTensor<R>>,
    factors: CubeTensor<R>,
}

/// A part as this device stores it.
fn stored<R: CubeRuntime>(part: &WeightPart) -> &Stored<R> {
    match &part.place {
        WeightPlace::Device(place) => place.downcast_ref().expect("a part of another backend"),
        WeightPlace::Host(_) => panic!("a part of a weight that was not taken to the device"),
    }
}

/// The float type of a part that is no blocks.
pub(super) fn float_of<R: CubeRuntime>(part: &WeightPart) -> Option<DType> {
    match &part.place {
        WeightPlace::Host(_) => part.dtype.float(),
        WeightPlace::Device(_) => match stored::<R>(part) {
            Stored::Float(w) => Some(w.dtype),
            Stored::Blocks(_) => None,
        },
    }
}

// ---- To the device and back.

/// See [`LlamaOps::take_weight`].
pub(super) fn take<R, F, I, BT>(parts: Vec<WeightPart>, device: &R::Device) -> Vec<WeightPart>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
{
    let has = |dtype| CubeBackend::<R, F, I, BT>::supports_dtype(device, dtype);
    let largest = CubeBackend::<R, F, I, BT>::largest_page(device).unwrap_or(u64::MAX);
    let mut taken = Vec::new();
    let groups = parts.chunk_by(|a, b| (a.dtype, a.width) == (b.dtype, b.width));
    for group in groups {
        let (dtype, width) = (group[0].dtype, group[0].width);
        let rows: usize = group.iter().map(|part| part.rows).sum();
        let plan = Plan { dtype, width, float: dtype.float().map(|float| if has(float) { float } else { DType::F32 }) };
        let row = plan.row_bytes() as u64;
        if row > largest {
            fail(format!("a row of {width} elements of {dtype} takes {row} bytes; the device's tensors have {largest} at most"));
        }
        let most = usize::try_from(largest / row.max(1)).unwrap_or(usize::MAX);
        let mut source = Source { parts: group, at: 0 };
        let mut left = rows;
        while left > 0 {
            let rows = left.min(most);
            let stored: Stored<R> = match plan.float {
                Some(float) => Stored::Float(upload_floats(&plan, float, rows, &mut source, device)),
                None => Stored::Blocks(upload_blocks(&plan, rows, &mut source, device, has(DType::F16))),
            };
            taken.push(WeightPart { dtype, rows, width, place: WeightPlace::Device(std::sync::Arc::new(stored)) });
            left -= rows;
        }
    }
    taken
}

/// How rows of a type are stored; `float`: as that.
struct Plan {
    dtype: Dtype,
    width: usize,
    float: Option<DType>,
}

impl Plan {
    /// Bytes of a row in the largest of its tensors.
    fn row_bytes(&self) -> usize {
        match (self.float, Layout::of(self.dtype)) {
            (Some(float), _) => self.width * float.size(),
            (None, Some(layout)) => 4 * layout.sizes(self.width).into_iter().max().unwrap_or(0),
            (None, None) => unreachable!("a type is a float type or one of blocks"),
        }
    }

    /// Rows of a piece.
    fn piece(&self) -> usize {
        (PIECE / self.row_bytes().max(1)).max(1)
    }
}

/// Rows on the host, one part after the other.
struct Source<'a> {
    parts: &'a [WeightPart],
    /// Row of the first part.
    at: usize,
}

impl<'a> Source<'a> {
    /// The bytes of up to `most` rows of one part, and how many those are.
    fn next(&mut self, most: usize) -> (&'a [u8], usize) {
        while self.at == self.parts[0].rows {
            (self.parts, self.at) = (&self.parts[1..], 0);
        }
        let part = &self.parts[0];
        let rows = most.min(part.rows - self.at);
        let (from, each) = (self.at * part.row_bytes(), part.row_bytes());
        self.at += rows;
        (&part.host_bytes()[from..from + rows * each], rows)
    }

    /// Whether a factor of the next `left` rows of blocks is below float16's normal numbers.
    fn below_normal(&self, dtype: Dtype, mut left: usize) -> bool {
        let mut rest = Source { parts: self.parts, at: self.at };
        while left > 0 {
            let (bytes, n) = rest.next(left);
            if bytes.par_chunks(dtype.block().1).any(|block| factors(dtype, block).into_iter().any(below_normal)) {
                return true;
            }
            left -= n;
        }
        false
    }
}

fn below_normal(half: u16) -> bool {
    (1..0x400).contains(&(half & 0x7fff))
}

/// A tensor of the device that is filled from pieces, which are sent on their way one by one.
struct Filling<R: CubeRuntime> {
    whole: Option<CubeTensor<R>>,
    at: usize,
    shape: Vec<usize>,
    dtype: DType,
    device: R::Device,
}

impl<R: CubeRuntime> Filling<R> {
    fn new(shape: &[usize], dtype: DType, device: &R::Device) -> Self {
        Self { whole: None, at: 0, shape: shape.to_vec(), dtype, device: device.clone() }
    }

    fn put(&mut self, elements: Bytes) {
        let client = R::client(&self.device);
        let n = elements.len() / self.dtype.size();
        let handle = client.create(elements);
        let all: usize = self.shape.iter().product();
        let shape: Shape = if n == all { self.shape.clone().into() } else { [n].into() };
        let piece = CubeTensor::new_contiguous(client.clone(), self.device.clone(), shape, handle, self.dtype);
        if n == all {
            self.whole = Some(piece);
            return;
        }
        let empty = || empty_device_contiguous_dtype(client.clone(), self.device.clone(), self.shape.clone().into(), self.dtype);
        let whole = self.whole.get_or_insert_with(empty);
        let lanes = lanes(&client, &[self.dtype], &[n, self.at]);
        // SAFETY: the piece has `n` elements, and the whole has as many from `at` on.
        unsafe {
            put_kernel::launch_unchecked(
                &client,
                grid_each(&client, n / lanes),
                CubeDim::new_1d(EACH as u32),
                address([&*whole]),
                lanes,
                piece.into_tensor_arg(),
                whole.clone().into_tensor_arg(),
                n / lanes,
                self.at / lanes,
                self.dtype.into(),
            );
        }
        self.at += n;
    }

    fn done(self) -> CubeTensor<R> {
        let empty = || empty_device_contiguous_dtype(R::client(&self.device), self.device.clone(), self.shape.into(), self.dtype);
        self.whole.unwrap_or_else(empty)
    }
}

fn flush<R: CubeRuntime>(device: &R::Device) {
    if let Err(e) = R::client(device).flush() {
        crate::backend::context::faults().note(format!("{e:?}"));
    }
}

fn upload_floats<R: CubeRuntime>(plan: &Plan, float: DType, rows: usize, source: &mut Source<'_>, device: &R::Device) -> CubeTensor<R> {
    let mut all = Filling::<R>::new(&[rows, plan.width], float, device);
    let mut left = rows;
    while left > 0 {
        let (bytes, n) = source.next(left.min(plan.piece()));
        if Some(float) == plan.dtype.float() {
            all.put(Bytes::from_bytes_vec(bytes.to_vec()));
        } else {
            all.put(Bytes::from_elems(exactly_widened(plan.dtype, bytes)));
        }
        flush::<R>(device);
        left -= n;
    }
    all.done()
}

/// Elements of a float type as float32's bits, what is no number too.
fn exactly_widened(dtype: Dtype, bytes: &[u8]) -> Vec<u32> {
    let halves = bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    match dtype {
        Dtype::F16 => halves.map(widened_bits).collect(),
        Dtype::BF16 => halves.map(|b| u32::from(b) << 16).collect(),
        _ => bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
    }
}

fn upload_blocks<R: CubeRuntime>(plan: &Plan, rows: usize, source: &mut Source<'_>, device: &R::Device, f16: bool) -> Blocks<R> {
    let layout = Layout::of(plan.dtype).expect("a type of blocks");
    let [low, high, scales, factor] = layout.sizes(plan.width);
    // Numbers below float16's normal ones are zero for some devices; CUDA reads them.
    let narrow = f16 && (R::name(&R::client(device)).contains("cuda") || !source.below_normal(plan.dtype, rows));
    let word = |n: usize| Filling::<R>::new(&[rows, n], DType::U32, device);
    let mut all = [word(low), word(high), word(scales)];
    let mut all_factors = Filling::<R>::new(&[rows, factor], if narrow { DType::F16 } else { DType::F32 }, device);
    let mut left = rows;
    while left > 0 {
        let (bytes, n) = source.next(left.min(plan.piece()));
        let Packed { low, high, scales, factors } = pack(plan.dtype, bytes, plan.width);
        for (all, words) in all.iter_mut().zip([low, high, scales]) {
            if !words.is_empty() {
                all.put(Bytes::from_elems(words));
            }
        }
        if narrow {
            all_factors.put(Bytes::from_elems(factors));
        } else {
            all_factors.put(Bytes::from_elems(factors.into_iter().map(widened_bits).collect()));
        }
        flush::<R>(device);
        left -= n;
    }
    let [low, high, scales] = all;
    let (high, scales) = ((layout.high() > 0).then(|| high.done()), (layout.scales() > 0).then(|| scales.done()));
    Blocks { layout, low: low.done(), high, scales, factors: all_factors.done() }
}

/// See [`LlamaOps::weight_bytes`].
pub(super) fn bytes<R: CubeRuntime>(part: &WeightPart) -> Vec<u8> {
    if let WeightPlace::Host(bytes) = &part.place {
        return bytes.to_vec();
    }
    match stored::<R>(part) {
        Stored::Float(w) => {
            let bytes = read(w);
            let floats = || bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            match part.dtype {
                dtype if dtype.float() == Some(w.dtype) => bytes,
                Dtype::F16 => floats().flat_map(|b| narrowed_bits(b).to_le_bytes()).collect(),
                _ => floats().flat_map(|b| ((b >> 16) as u16).to_le_bytes()).collect(),
            }
        }
        Stored::Blocks(w) => {
            let words = |x: &CubeTensor<R>| -> Vec<u32> {
                read(x).chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
            };
            let optional = |x: &Option<CubeTensor<R>>| x.as_ref().map(words).unwrap_or_default();
            let factors = match w.factors.dtype {
                DType::F16 => read(&w.factors).chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect(),
                _ => words(&w.factors).into_iter().map(narrowed_bits).collect(),
            };
            let packed = Packed { low: words(&w.low), high: optional(&w.high), scales: optional(&w.scales), factors };
            unpack(part.dtype, &packed, part.width)
        }
    }
}

fn read<R: CubeRuntime>(x: &CubeTensor<R>) -> Vec<u8> {
    match x.client.read_one(x.handle.clone()) {
        Ok(bytes) => bytes[..count(x) * x.dtype.size()].to_vec(),
        Err(e) => fail(format!("a weight cannot be read back: {e:?}")),
    }
}

// ---- Products.

/// See [`LlamaOps::project_parts`] and [`LlamaOps::project_parts_add`]: with `sum`, added to that.
pub(super) fn project<R, F, I, BT>(x: CubeTensor<R>, parts: &[WeightPart], out: DType, sum: Option<CubeTensor<R>>) -> CubeTensor<R>
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

/// See [`LlamaOps::embed_parts`]: one launch a part.
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
