//! Weights in types of files on their way to a device and back: parts of one type side by side become one, those too large for the
//! device's pages several; blocks are packed a piece at a time (`narrow_pack.rs`), so that the host holds little.

use std::sync::Arc;

use burn::tensor::backend::Backend;
use burn::tensor::{Bytes, DType, Shape};
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use cubecl::prelude::*;
use rayon::prelude::*;

use super::narrow_kernels::put_kernel;
use super::narrow_pack::{Layout, Packed, factors, narrowed_bits, pack, unpack, widened_bits};
use super::{EACH, address, count, grid_each, lanes};
use crate::backend::context::{fail, faults};
use crate::ops::{Dtype, LlamaOps, WeightPart, WeightPlace};

/// Bytes that are packed and uploaded at once.
const PIECE: usize = 32 << 20;

/// Rows of a weight on a device.
#[allow(clippy::large_enum_variant)] // lies behind a pointer
pub(super) enum Stored<R: CubeRuntime> {
    /// `[rows, width]`.
    Float(CubeTensor<R>),
    Blocks(Blocks<R>),
}

pub(super) struct Blocks<R: CubeRuntime> {
    pub(super) layout: Layout,
    pub(super) low: CubeTensor<R>,
    pub(super) high: Option<CubeTensor<R>>,
    pub(super) scales: Option<CubeTensor<R>>,
    pub(super) factors: CubeTensor<R>,
}

/// A part as this device stores it.
pub(super) fn stored<R: CubeRuntime>(part: &WeightPart) -> &Stored<R> {
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
            taken.push(WeightPart { dtype, rows, width, place: WeightPlace::Device(Arc::new(stored)) });
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
        faults().note(format!("{e:?}"));
    }
}

fn upload_floats<R: CubeRuntime>(
    plan: &Plan,
    float: DType,
    rows: usize,
    source: &mut Source<'_>,
    device: &R::Device,
) -> CubeTensor<R> {
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
