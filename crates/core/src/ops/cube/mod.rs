//! CUDA and wgpu, through CubeCL: one kernel source for both, but for attention and products in bfloat16 on CUDA (`cuda/`).
//!
//! What all kernels keep to, so that a default WebGPU adapter runs them: at most 256 units a cube, 8 KiB of shared memory
//! (of the 16 that WebGPU promises; CubeCL's WGSL counts it twice, cubecl#1367), 7 tensors (8 storage buffers, of which CubeCL
//! takes one for shapes and scalars), no plane operations (software Vulkan has none), no atomics. `&&` and `||` do not
//! short-circuit in CubeCL 0.10 (cubecl#1348): bounds are nested `if`s. Sums have a fixed order: equal inputs give equal bits.
//! Arithmetic is float32, whatever the types of the tensors.

// A kernel takes its tensors and numbers one by one; its `if`s are nested because `&&` evaluates both sides; numbers of the device have
// no `div_ceil`.
#![allow(clippy::too_many_arguments, clippy::collapsible_if, clippy::manual_div_ceil)]

mod adamw;
mod attend;
mod attention;
mod cached;
#[cfg(feature = "cuda")]
mod cuda;
mod elementwise;
mod embedding;
mod loss;
mod matmul;
mod narrow;
mod narrow_kernels;
mod narrow_pack;
mod narrow_store;
mod norm;
mod paged;
mod reduce;
mod rope;
mod sample;
mod swiglu;
mod thin;
mod tile;

use std::cell::Cell;

use burn::tensor::ops::{FloatTensor, FloatTensorOps, IntTensor};
use burn::tensor::{DType, Shape, Tensor, TensorData};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use cubecl::MemoryAllocationMode;
use cubecl::device::Device as _;
use cubecl::prelude::*;

use super::{
    AdamWScalars, AdamWState, AttentionSaved, CacheRows, CachedAttention, KvPool, KvShape, LlamaOps, Rotary, SampleRows,
    SelfAttention, WeightPart,
};
use crate::backend::{Gemm, context};

#[cfg(feature = "nccl")]
pub(crate) use cuda::{Order, Way};

impl<R: CubeRuntime, F: FloatElement, I: IntElement, BT: BoolElement> LlamaOps for CubeBackend<R, F, I, BT> {
    fn matmul(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        let dtype = a.dtype;
        matmul::product(a, b, dtype)
    }

    fn project(x: FloatTensor<Self>, w: FloatTensor<Self>, out: DType) -> FloatTensor<Self> {
        matmul::product(x, Self::float_transpose(w), out)
    }
    fn project_add(y: FloatTensor<Self>, x: FloatTensor<Self>, w: FloatTensor<Self>) -> FloatTensor<Self> {
        matmul::product_add(y, x, Self::float_transpose(w))
    }
    fn project_backward_input(dy: FloatTensor<Self>, w: FloatTensor<Self>, out: DType) -> FloatTensor<Self> {
        matmul::product(dy, w, out)
    }
    fn project_backward_weight(dy: FloatTensor<Self>, x: FloatTensor<Self>, sum: Option<FloatTensor<Self>>) -> FloatTensor<Self> {
        let dy = Self::float_transpose(dy);
        match sum {
            Some(sum) => matmul::product_add(sum, dy, x),
            None => matmul::product(dy, x, DType::F32),
        }
    }

    fn rms_norm(x: FloatTensor<Self>, w: FloatTensor<Self>, eps: f64, out: DType) -> FloatTensor<Self> {
        norm::forward(x, w, eps, out)
    }
    fn rms_norm_backward(
        x: FloatTensor<Self>,
        w: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        eps: f64,
        add: Option<FloatTensor<Self>>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        norm::backward(x, w, dy, eps, add)
    }

    fn rope(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        rotated: usize,
        inverse: bool,
    ) -> FloatTensor<Self> {
        rope::rotate(x, cos, sin, rotated, inverse)
    }

    fn swiglu(gate_up: FloatTensor<Self>) -> FloatTensor<Self> {
        swiglu::forward(gate_up)
    }
    fn swiglu_backward(gate_up: FloatTensor<Self>, dy: FloatTensor<Self>) -> FloatTensor<Self> {
        swiglu::backward(gate_up, dy)
    }

    fn attention_forward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        doc_starts: Option<IntTensor<Self>>,
        scale: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        attention::forward(q, k, v, doc_starts, scale)
    }
    fn attention_backward(saved: AttentionSaved<Self>, dout: FloatTensor<Self>) -> [FloatTensor<Self>; 3] {
        let AttentionSaved { q, k, v, doc_starts, out, lse, scale } = saved;
        attention::backward([q, k, v, out, dout], lse, doc_starts, scale)
    }
    fn self_attention_forward(qkv: FloatTensor<Self>, s: SelfAttention<Self>) -> (FloatTensor<Self>, FloatTensor<Self>) {
        attention::packed_forward(qkv, s.kv_heads, s.doc_starts, s.scale)
    }
    fn self_attention_backward(
        qkv: FloatTensor<Self>,
        s: SelfAttention<Self>,
        out: FloatTensor<Self>,
        lse: FloatTensor<Self>,
        dout: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        attention::packed_backward([qkv, out, dout], lse, s.kv_heads, s.doc_starts, s.scale)
    }

    fn project_rows(x: FloatTensor<Self>, w: FloatTensor<Self>, out: DType) -> FloatTensor<Self> {
        thin::project(&x, &w, out).unwrap_or_else(|| Self::project(x, w, out))
    }
    fn project_rows_add(y: FloatTensor<Self>, x: FloatTensor<Self>, w: FloatTensor<Self>) -> FloatTensor<Self> {
        thin::project_add(y, &x, &w).unwrap_or_else(|y| Self::project_add(y, x, w))
    }
    fn project_parts(x: FloatTensor<Self>, parts: &[WeightPart], out: DType) -> FloatTensor<Self> {
        narrow::project::<R, F, I, BT>(x, parts, out, None)
    }
    fn project_parts_add(y: FloatTensor<Self>, x: FloatTensor<Self>, parts: &[WeightPart]) -> FloatTensor<Self> {
        let dtype = y.dtype;
        narrow::project::<R, F, I, BT>(x, parts, dtype, Some(y))
    }
    fn embed_parts(ids: IntTensor<Self>, parts: &[WeightPart], out: DType) -> FloatTensor<Self> {
        narrow::embed(ids, parts, out)
    }
    fn take_weight(parts: Vec<WeightPart>, device: &Self::Device) -> Vec<WeightPart> {
        narrow_store::take::<R, F, I, BT>(parts, device)
    }
    fn weight_bytes(part: &WeightPart) -> Vec<u8> {
        narrow_store::bytes::<R>(part)
    }
    fn float_of(part: &WeightPart) -> Option<DType> {
        narrow_store::float_of::<R>(part)
    }
    fn kv_pool(shape: KvShape, device: &Self::Device) -> KvPool<Self> {
        cached::pool::<R, F, I, BT>(shape, device)
    }
    fn cached_attention(
        qkv: FloatTensor<Self>,
        rotary: Rotary<Self>,
        pool: KvPool<Self>,
        rows: &CacheRows<Self>,
        s: CachedAttention,
    ) -> (FloatTensor<Self>, KvPool<Self>) {
        cached::attention(qkv, rotary, pool, rows, s)
    }
    fn copy_blocks(pool: KvPool<Self>, pairs: &[(u32, u32)]) -> KvPool<Self> {
        cached::copy_blocks(pool, pairs)
    }
    fn sample_rows(logits: FloatTensor<Self>, rows: &SampleRows) -> IntTensor<Self> {
        let settings =
            Tensor::<Self, 2>::from_data(TensorData::new(rows.settings(), [rows.len(), sample::SETTINGS]), &logits.device);
        sample::sample(logits, super::primitive(settings), I::dtype())
    }

    fn logit_stats(logits: FloatTensor<Self>, targets: IntTensor<Self>, first: usize) -> FloatTensor<Self> {
        loss::stats(logits, targets, first)
    }
    fn logit_grad(
        logits: FloatTensor<Self>,
        stats: FloatTensor<Self>,
        targets: IntTensor<Self>,
        first: usize,
        scale: f64,
        out: DType,
    ) -> FloatTensor<Self> {
        loss::grad(logits, stats, targets, first, scale, out)
    }

    fn logit_rows(vocab: usize) -> usize {
        // 128 MiB, the largest buffer that WebGPU promises to bind.
        ((32 << 20) / vocab).clamp(64, 8192)
    }

    fn embed(ids: IntTensor<Self>, w: FloatTensor<Self>, out: DType) -> FloatTensor<Self> {
        embedding::forward(ids, w, out)
    }
    fn embed_backward(
        ids: IntTensor<Self>,
        order: IntTensor<Self>,
        dx: FloatTensor<Self>,
        sum: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        embedding::backward(ids, order, dx, sum)
    }

    fn element_sum(x: FloatTensor<Self>) -> FloatTensor<Self> {
        adamw::fixed_sum(x, false)
    }
    fn square_sum(x: FloatTensor<Self>) -> FloatTensor<Self> {
        adamw::fixed_sum(x, true)
    }
    fn adamw_step(state: AdamWState<Self>, grad: FloatTensor<Self>, s: AdamWScalars) -> AdamWState<Self> {
        let AdamWState { w, m, v, copy } = state;
        let ([w, m, v], copy) = adamw::step([w, m, v], copy, grad, s);
        AdamWState { w, m, v, copy }
    }

    fn resident<T>(device: &Self::Device, make: impl FnOnce() -> T) -> T {
        /// The mode of this thread's stream, until it is dropped.
        struct Persistent<R: CubeRuntime>(ComputeClient<R>);
        impl<R: CubeRuntime> Persistent<R> {
            fn set(&self, mode: MemoryAllocationMode) {
                // SAFETY: the mode is put back; "memory leaks" means that what is allocated in `Persistent` is only given back by
                // `memory_cleanup`.
                unsafe { self.0.allocation_mode(mode) };
            }
        }
        impl<R: CubeRuntime> Drop for Persistent<R> {
            fn drop(&mut self) {
                self.set(MemoryAllocationMode::Auto);
                self.0.memory_cleanup(); // what was made on the way
            }
        }
        let id = device.to_id();
        context::listen([id.type_id, id.index_id]);
        let persistent = Persistent(R::client(device));
        persistent.set(MemoryAllocationMode::Persistent);
        make()
    }

    fn flush_uploads(device: &Self::Device) {
        if let Err(e) = R::client(device).flush() {
            context::faults().note(format!("{e:?}"));
        }
    }

    fn gemms(device: &Self::Device) -> Vec<(Gemm, Option<String>)> {
        let client = R::client(device);
        Gemm::ALL.iter().map(|&routine| (routine, matmul::missing(routine, &client))).collect()
    }

    fn pool_bytes(device: &Self::Device) -> Option<u64> {
        R::client(device).memory_usage().ok().map(|usage| usage.bytes_reserved)
    }

    fn largest_page(device: &Self::Device) -> Option<u64> {
        let most = R::client(device).properties().memory.max_page_size;
        Some(LARGEST.get().map_or(most, |limit| limit.min(most)))
    }

    fn samples_on_device() -> bool {
        true
    }

    fn bodies() -> &'static str {
        #[cfg(feature = "cuda")]
        if std::any::TypeId::of::<R>() == std::any::TypeId::of::<cubecl::cuda::CudaRuntime>() {
            return CUDA_BODIES;
        }
        BODIES
    }
}

/// Which body each operation runs, with what else there is to say of products, of their sums, and of attention.
macro_rules! bodies {
    ($gemm:literal, $add:literal, $attention:literal) => {
        concat!(
            "\
matmul, project*       cubek, single-buffered: float32 on the units (never TF32); bfloat16, float16 on the tensor cores
                       (",
            $gemm,
            "TMA + mma, else cyclic mma, else cyclic cmma; `gemm` chooses), float32 sums
project_add            ",
            $add,
            "product, then one CubeCL kernel that adds in place; the same for a weight gradient with a sum
rms_norm*, rope        CubeCL kernels, a cube a row; gradients of the weight in two fixed-order passes; rope in place
swiglu*                CubeCL kernels; backward in place
*_project              norm_project, swiglu_project: the product after the kernel
",
            $attention,
            "\
*attention*            CubeCL kernels, tiled online softmax on the units in float32; packed, strided, grouped, by document
project_rows*          up to 16 rows (8 with tensor cores): one CubeCL kernel that reads each weight once and adds in place; more: as project
*_parts                weights in types of files, as those, one launch a run of parts of one type: blocks become numbers in registers (up
                       to 16 rows, or 8), or 64 MiB of them at a time float32 (with tensor cores bfloat16); embed_parts on the device
cached_attention       CubeCL kernels over tables of blocks, 2 launches a layer; any type of cache
copy_blocks, sample_rows  CubeCL kernels, one for all pairs, one for all rows
logit_stats, _grad     CubeCL kernels, a cube a row; the gradient in place
embed*                 CubeCL kernels; the gradient sums runs of equal ids in order, in place
element_sum, square_sum  CubeCL kernel, two fixed-order passes
adamw_step             one CubeCL kernel, in place
linear_cross_entropy   the shared loop over chunks of rows, on the above"
        )
    };
}

const BODIES: &str = bodies!("", "", "");
#[cfg(feature = "cuda")]
const CUDA_BODIES: &str = bodies!(
    "cuBLASLt if there is libcublasLt, else ",
    "in cuBLASLt's own pass; else ",
    "\
self_attention*        bfloat16, heads of a multiple of 16 up to 128: CUDA C++, tiled online softmax on the tensor cores (mma,
                       cp.async), float32 sums (`Attention` chooses); all else as the next line
"
);

/// Contiguous tensor without values, where `like` is.
fn empty<R: CubeRuntime>(like: &CubeTensor<R>, shape: &[usize], dtype: DType) -> CubeTensor<R> {
    empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), Shape::from(shape.to_vec()), dtype)
}

/// A contiguous tensor that may be written: the given one if nobody else holds it, else a copy.
fn own<R: CubeRuntime>(x: CubeTensor<R>) -> CubeTensor<R> {
    let x = into_contiguous(x);
    if x.can_mut() { x } else { elementwise::copy(x) }
}

/// Elements that a unit reads at once: the widest vector of the widest of `dtypes` that divides all of `divides`.
fn lanes<R: CubeRuntime>(client: &ComputeClient<R>, dtypes: &[DType], divides: &[usize]) -> usize {
    let size = dtypes.iter().map(|d| d.size()).max().unwrap_or(4);
    client.io_optimized_vector_sizes(size).find(|lanes| divides.iter().all(|n| n.is_multiple_of(*lanes))).unwrap_or(1)
}

/// Units of a cube whose units share `items`: a power of two, 32 to 256.
fn units(items: usize) -> usize {
    items.next_power_of_two().clamp(32, 256)
}

thread_local! {
    static LAUNCHES: Cell<u64> = const { Cell::new(0) };
    static LARGEST: Cell<Option<u64>> = const { Cell::new(None) };
}

/// See [`super::limit_pages`].
pub(crate) fn limit_pages(bytes: Option<u64>) {
    LARGEST.set(bytes);
}

/// Kernels of ours that this thread has launched.
pub(crate) fn launches() -> u64 {
    LAUNCHES.get()
}

/// One more.
fn counted() {
    LAUNCHES.set(LAUNCHES.get() + 1);
}

/// A launch of so many cubes.
fn cubes(x: usize, y: usize, z: usize) -> CubeCount {
    counted();
    CubeCount::Static(x as u32, y as u32, z as u32)
}

/// At least `cubes` cubes, in as few dimensions as the device's limit (65,535 a dimension on WebGPU) allows. Kernels check
/// `CUBE_POS`, of which there may be more.
fn grid<R: CubeRuntime>(client: &ComputeClient<R>, cubes: usize) -> CubeCount {
    let most = client.properties().hardware.max_cube_count.0.min(u16::MAX.into()) as usize;
    let rows = cubes.div_ceil(most).max(1);
    self::cubes(cubes.div_ceil(rows), rows, 1)
}

/// Units of a cube of a kernel that does the same for each of many items.
const EACH: usize = 256;

/// [`grid`] of [`EACH`] units for `items`.
fn grid_each<R: CubeRuntime>(client: &ComputeClient<R>, items: usize) -> CubeCount {
    grid(client, items.div_ceil(EACH))
}

/// The integers that can index all of the tensors.
fn address<R: CubeRuntime, const N: usize>(tensors: [&CubeTensor<R>; N]) -> AddressType {
    tensors.into_iter().map(CubeTensor::required_address_type).max().unwrap_or_default()
}

/// Number of elements.
fn count<R: CubeRuntime>(x: &CubeTensor<R>) -> usize {
    x.meta.shape().num_elements()
}
