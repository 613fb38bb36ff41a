//! What CubeCL cannot say: kernels in CUDA C++, and products by cuBLASLt (`product.rs`).
//!
//! The kernels are those of attention: `attention.cu`, whose head has the contract that the launches below keep.
//!
//! The source goes through CubeCL: NVRTC compiles it for the device's architecture when it is first used, the result is in
//! CubeCL's PTX cache where that is on, and launches are in order with all others on CubeCL's stream. A kernel gets a pointer a
//! buffer, and then one struct of 64-bit words by value (`__grid_constant__`).

mod cublaslt;
mod order;
mod product;

use std::any::Any;
use std::collections::HashSet;
use std::sync::{LazyLock, Mutex, PoisonError};

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::{cast, into_contiguous};
use burn_cubecl::tensor::CubeTensor;
use cubecl::cuda::{CudaCompiler, CudaRuntime};
use cubecl::device::{Device, DeviceId};
use cubecl::prelude::*;
use cubecl::server::{KernelArguments, MetadataBindingInfo};
use cubecl::{CompilationError, Compiler, CubeTask};
use cubecl_cpp::shared::{Elem, Item, SharedMemory};
use xxhash_rust::xxh3::xxh3_64;

use super::{count, empty};
use crate::fault;

pub(super) use product::product;

const SOURCE: &str = include_str!("attention.cu");

/// Of the source: CubeCL's PTX cache outlives a build, and knows a kernel by its id alone.
static SOURCE_HASH: LazyLock<u64> = LazyLock::new(|| xxh3_64(SOURCE.as_bytes()));

/// A device, an entry, a width of heads.
type Launched = (DeviceId, &'static str, usize);

/// What the kernels do not take, or where they do not run.
type Refused = &'static str;

/// An entry of `attention.cu`.
#[derive(Clone, Copy)]
struct RawCuda {
    entry: &'static str,
    head_dim: usize,
    /// Dynamic shared memory, bytes.
    shared: usize,
    cube_dim: CubeDim,
}

impl KernelMetadata for RawCuda {
    fn id(&self) -> KernelId {
        KernelId::new::<Self>().info((self.entry, self.head_dim, *SOURCE_HASH)).cube_dim(self.cube_dim)
    }

    fn address_type(&self) -> StorageType {
        AddressType::U32.unsigned_type()
    }
}

impl CubeTask<CudaCompiler> for RawCuda {
    fn compile(
        &self,
        compiler: &mut CudaCompiler,
        options: &<CudaCompiler as Compiler>::CompilationOptions,
        mode: ExecutionMode,
        address: StorageType,
    ) -> Result<CompiledKernel<CudaCompiler>, CompilationError> {
        // CubeCL takes the size of the shared memory from its own form of a kernel: that of one that does nothing.
        let settings = KernelSettings { cube_dim: self.cube_dim, ..Default::default() };
        let mut empty = compiler.compile(KernelBuilder::default().build(settings), options, mode, address)?;
        let item = Item::scalar(Elem::U8, false);
        empty.body.shared_memories = match self.shared {
            0 => Vec::new(),
            length => vec![SharedMemory::Array { index: 0, item, length, align: 128, offset: 0 }],
        };
        Ok(CompiledKernel {
            entrypoint_name: self.entry.into(),
            debug_name: None,
            source: format!("#define HEAD_DIM {}\n{SOURCE}", self.head_dim),
            repr: Some(empty),
            cube_dim: self.cube_dim,
            debug_info: None,
        })
    }
}

/// A packed projection, as the kernels take it.
struct Packed<R: CubeRuntime> {
    client: ComputeClient<CudaRuntime>,
    /// `[batch, seq, heads + 2 kv, dim]`, bfloat16.
    qkv: CubeTensor<R>,
    /// `[batch, seq]`, int32.
    starts: Option<CubeTensor<R>>,
    scale: f64,
    batch: usize,
    seq: usize,
    heads: usize,
    kv: usize,
    dim: usize,
}

/// Rows of a block (`TILE` in the source).
const TILE: usize = 128;

impl<R: CubeRuntime> Packed<R> {
    fn new(qkv: &CubeTensor<R>, kv: usize, starts: Option<&CubeTensor<R>>, scale: f64) -> Result<Self, Refused> {
        // `R` is the CUDA runtime if its client is that runtime's.
        let Some(client) = (&qkv.client as &dyn Any).downcast_ref::<ComputeClient<CudaRuntime>>() else {
            return Err("another runtime than CUDA");
        };
        if qkv.dtype != DType::BF16 {
            return Err("another type than bfloat16");
        }
        let [batch, seq, all, dim]: [usize; 4] = qkv.meta.shape().dims();
        let heads = all.saturating_sub(2 * kv);
        if kv == 0 || heads == 0 || !heads.is_multiple_of(kv) {
            return Err("query heads that are no multiple of the key heads");
        }
        if !dim.is_multiple_of(16) || !(16..=128).contains(&dim) {
            return Err("heads of another width than a multiple of 16 up to 128");
        }
        if seq >= 1 << 30 || batch > u16::MAX.into() || heads > u16::MAX.into() {
            return Err("more than 2^30 - 1 positions, or 65535 sequences or heads");
        }
        // The largest score is found before the factor is applied.
        if !(scale > 0.0 && scale.is_finite()) {
            return Err("a factor on the scores that is not positive");
        }
        let properties = client.properties();
        // Copies to shared memory that need no registers came with compute capability 8.0, as did the products of bfloat16.
        if !properties.features.copy_async {
            return Err("a device of compute capability below 8.0");
        }
        let client = client.clone();
        let max_shared = properties.hardware.max_shared_memory_size;
        let starts = match starts {
            Some(starts) if starts.dtype != DType::I32 => return Err("starts of documents of another type than int32"),
            Some(starts) => Some(dense(starts, batch * seq)?),
            None => None,
        };
        let packed = Self { client, qkv: dense(qkv, batch * seq * all * dim)?, starts, scale, batch, seq, heads, kv, dim };
        // Forward and backward together: either all of them run or none.
        if [packed.forward_kernel(), packed.kv_kernel(), packed.q_kernel()].iter().any(|k| k.shared > max_shared) {
            return Err("a device with too little shared memory for heads of this width");
        }
        Ok(packed)
    }

    fn kernel(&self, entry: &'static str, threads: u32, shared: usize) -> RawCuda {
        RawCuda { entry, head_dim: self.dim, shared, cube_dim: CubeDim::new_1d(threads) }
    }

    fn forward_kernel(&self) -> RawCuda {
        self.kernel("attention_forward", 128, 640 * self.dim)
    }

    fn kv_kernel(&self) -> RawCuda {
        self.kernel("attention_backward_kv", if self.dim <= 64 { 128 } else { 256 }, 1024 * self.dim + 1536)
    }

    fn q_kernel(&self) -> RawCuda {
        self.kernel("attention_backward_q", 128, if self.dim <= 80 { 1024 } else { 768 } * self.dim)
    }

    /// The kernel, and the rows of one of its blocks.
    fn delta_kernel(&self) -> (RawCuda, usize) {
        let rows = match self.dim {
            ..=16 => 128,
            17..=32 => 64,
            33..=64 => 32,
            _ => 16,
        };
        (self.kernel("attention_delta", 256, 0), rows)
    }

    /// The starts, or, where there are none, any buffer.
    fn starts(&self) -> &CubeTensor<R> {
        self.starts.as_ref().unwrap_or(&self.qkv)
    }

    /// On blocks of `rows` positions of each of `heads` heads of each sequence.
    fn launch<const N: usize>(&self, kernel: RawCuda, rows: usize, heads: usize, buffers: [&CubeTensor<R>; N]) {
        let Self { batch, seq, dim, .. } = *self;
        let RawCuda { entry, .. } = kernel;
        let sizes = [batch, seq, self.heads, self.kv, self.starts.is_some().into()].map(|n| n as u64);
        let params = [&sizes[..], &[self.scale.to_bits()]].concat();
        let words = params.len(); // CubeCL puts what follows these into a buffer of its own: nothing
        let arguments = KernelArguments::new()
            .with_buffers(buffers.into_iter().map(|x| x.handle.clone().binding()).collect())
            .with_info(MetadataBindingInfo::new(params, words));
        let cubes = CubeCount::Static(seq.div_ceil(rows) as u32, heads as u32, batch as u32);
        // SAFETY: the buffers are those of the entry, in its order, of the types and of at least the sizes that `attention.cu`
        // states for these parameters (`new`, `dense`, and the shapes given to `empty`); it stays inside them.
        unsafe { self.client.launch_unchecked(Box::new(kernel), cubes, arguments) };

        // A launch that fails is only noted on CubeCL's stream, until something is read. What can fail is the compilation and the
        // size of a block, which are the same each time: asked for once.
        static LAUNCHED: LazyLock<Mutex<HashSet<Launched>>> = LazyLock::new(Default::default);
        let launched = || LAUNCHED.lock().unwrap_or_else(PoisonError::into_inner);
        let this = (self.qkv.device.to_id(), entry, dim);
        let new = launched().insert(this);
        if !new {
            return;
        }
        if let Err(e) = self.client.flush() {
            launched().remove(&this);
            let (shared, threads) = (kernel.shared, kernel.cube_dim.x);
            fault::fail(format!(
                "{entry} (CUDA C++; heads of {dim}, {threads} threads, {shared} bytes of shared memory), or something launched \
                 before it, failed: {e}"
            ));
        }
    }
}

/// `x` as the kernels read it: `elements`, without gaps, from a multiple of 16 bytes on.
fn dense<R: CubeRuntime>(x: &CubeTensor<R>, elements: usize) -> Result<CubeTensor<R>, Refused> {
    let x = into_contiguous(x.clone());
    assert_eq!(count(&x), elements, "attention: tensors of shapes that do not belong together: {:?}", x.meta.shape());
    let mut stride = 1;
    for (n, s) in x.meta.shape().iter().zip(x.meta.strides().iter()).rev() {
        if *n > 1 && *s != stride {
            return Err("rows with gaps");
        }
        stride *= n;
    }
    if x.handle.offset_start.unwrap_or(0).is_multiple_of(16) { Ok(x) } else { Err("a tensor that does not begin at 16 bytes") }
}

/// See [`super::LlamaOps::self_attention_forward`].
pub(super) fn attention_forward<R: CubeRuntime>(
    qkv: &CubeTensor<R>,
    kv: usize,
    starts: Option<&CubeTensor<R>>,
    scale: f64,
) -> Result<(CubeTensor<R>, CubeTensor<R>), Refused> {
    let p = Packed::new(qkv, kv, starts, scale)?;
    let out = empty(qkv, &[p.batch, p.seq, p.heads, p.dim], DType::BF16);
    let lse = empty(qkv, &[p.batch, p.heads, p.seq, 1], DType::F32);
    if count(&out) > 0 {
        p.launch(p.forward_kernel(), TILE, p.heads, [&p.qkv, p.starts(), &out, &lse]);
    }
    Ok((out, lse))
}

/// See [`super::LlamaOps::self_attention_backward`]: of `[qkv, out, dout]`.
pub(super) fn attention_backward<R: CubeRuntime>(
    [qkv, out, dout]: [&CubeTensor<R>; 3],
    lse: &CubeTensor<R>,
    kv: usize,
    starts: Option<&CubeTensor<R>>,
    scale: f64,
) -> Result<CubeTensor<R>, Refused> {
    let p = Packed::new(qkv, kv, starts, scale)?;
    if lse.dtype != DType::F32 {
        return Err("a log-sum-exp of another type than float32");
    }
    let rows = p.batch * p.heads * p.seq;
    let narrow = |x: &CubeTensor<R>| match x.dtype {
        DType::BF16 => dense(x, rows * p.dim),
        _ => dense(&cast(x.clone(), DType::BF16), rows * p.dim),
    };
    let (out, dout, lse) = (narrow(out)?, narrow(dout)?, dense(lse, rows)?);
    let delta = empty(&lse, &[p.batch, p.heads, p.seq], DType::F32);
    let grad = empty(qkv, qkv.meta.shape(), DType::BF16);
    if rows > 0 {
        let (kernel, block) = p.delta_kernel();
        p.launch(kernel, block, p.heads, [&out, &dout, &delta]);
        // Both write their own heads of `grad`, each element once.
        let buffers = [&p.qkv, p.starts(), &dout, &lse, &delta, &grad];
        p.launch(p.kv_kernel(), TILE, p.kv, buffers);
        p.launch(p.q_kernel(), TILE, p.heads, buffers);
    }
    Ok(grad)
}
