//! Attention in CUDA C++: the launches of `attention_forward.cu` and `attention_backward.cu`, by the contract in the head of
//! `attention.cuh`.

use std::any::Any;

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::{cast, into_contiguous};
use burn_cubecl::tensor::CubeTensor;
use cubecl::cuda::CudaRuntime;
use cubecl::device::Device;
use cubecl::prelude::*;

use super::super::{count, empty};
use super::raw::{KernelText, RawCuda, launch, source};

static FORWARD: KernelText = source!("machine.cuh", "attention.cuh", "attention_forward.cu");
static BACKWARD: KernelText = source!("machine.cuh", "attention.cuh", "attention_backward.cu");

/// What the kernels do not take, or where they do not run.
type Refused = &'static str;

/// A packed projection, as the kernels take it.
struct Packed<R: CubeRuntime> {
    client: ComputeClient<CudaRuntime>,
    /// `[batch, seq, heads + 2 kv, dim]`, bfloat16.
    qkv: CubeTensor<R>,
    /// `[batch, seq]`, int32.
    doc_starts: Option<CubeTensor<R>>,
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
    fn new(qkv: &CubeTensor<R>, kv: usize, doc_starts: Option<&CubeTensor<R>>, scale: f64) -> Result<Self, Refused> {
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
        let doc_starts = match doc_starts {
            Some(doc_starts) if doc_starts.dtype != DType::I32 => return Err("starts of documents of another type than int32"),
            Some(doc_starts) => Some(dense(doc_starts, batch * seq)?),
            None => None,
        };
        let packed = Self { client, qkv: dense(qkv, batch * seq * all * dim)?, doc_starts, scale, batch, seq, heads, kv, dim };
        // Forward and backward together: either all of them run or none.
        if [packed.forward_kernel(), packed.kv_kernel(), packed.q_kernel()].iter().any(|k| k.shared > max_shared) {
            return Err("a device with too little shared memory for heads of this width");
        }
        Ok(packed)
    }

    fn kernel(&self, source: &'static KernelText, entry: &'static str, threads: u32, shared: usize) -> RawCuda {
        RawCuda { source, entry, define: ("HEAD_DIM", self.dim), shared, threads }
    }

    fn forward_kernel(&self) -> RawCuda {
        self.kernel(&FORWARD, "attention_forward", 128, 640 * self.dim)
    }

    fn kv_kernel(&self) -> RawCuda {
        self.kernel(&BACKWARD, "attention_backward_kv", if self.dim <= 64 { 128 } else { 256 }, 1024 * self.dim + 1536)
    }

    fn q_kernel(&self) -> RawCuda {
        self.kernel(&BACKWARD, "attention_backward_q", 128, if self.dim <= 80 { 1024 } else { 768 } * self.dim)
    }

    /// The kernel, and the rows of one of its blocks.
    fn delta_kernel(&self) -> (RawCuda, usize) {
        let rows = match self.dim {
            ..=16 => 128,
            17..=32 => 64,
            33..=64 => 32,
            _ => 16,
        };
        (self.kernel(&BACKWARD, "attention_delta", 256, 0), rows)
    }

    /// The starts of documents, or, where there are none, any buffer.
    fn doc_starts(&self) -> &CubeTensor<R> {
        self.doc_starts.as_ref().unwrap_or(&self.qkv)
    }

    /// On blocks of `rows` positions of each of `heads` heads of each sequence.
    fn launch<const N: usize>(&self, kernel: RawCuda, rows: usize, heads: usize, buffers: [&CubeTensor<R>; N]) {
        let sizes = [self.batch, self.seq, self.heads, self.kv, self.doc_starts.is_some().into()].map(|n| n as u64);
        let params = [&sizes[..], &[self.scale.to_bits()]].concat();
        let cubes = [self.seq.div_ceil(rows), heads, self.batch];
        let buffers = buffers.into_iter().map(|x| x.handle.clone().binding()).collect();
        // SAFETY: the buffers are those of the entry, in its order, of the types and of at least the sizes that `attention.cuh`
        // states for these parameters (`new`, `dense`, and the shapes given to `empty`); it stays inside them.
        unsafe { launch(&self.client, self.qkv.device.to_id(), kernel, cubes, buffers, params) };
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

/// See [`crate::ops::LlamaOps::self_attention_forward`].
pub(in crate::ops::cube) fn attention_forward<R: CubeRuntime>(
    qkv: &CubeTensor<R>,
    kv: usize,
    doc_starts: Option<&CubeTensor<R>>,
    scale: f64,
) -> Result<(CubeTensor<R>, CubeTensor<R>), Refused> {
    let p = Packed::new(qkv, kv, doc_starts, scale)?;
    let out = empty(qkv, &[p.batch, p.seq, p.heads, p.dim], DType::BF16);
    let lse = empty(qkv, &[p.batch, p.heads, p.seq, 1], DType::F32);
    if count(&out) > 0 {
        p.launch(p.forward_kernel(), TILE, p.heads, [&p.qkv, p.doc_starts(), &out, &lse]);
    }
    Ok((out, lse))
}

/// See [`crate::ops::LlamaOps::self_attention_backward`]: of `[qkv, out, dout]`.
pub(in crate::ops::cube) fn attention_backward<R: CubeRuntime>(
    [qkv, out, dout]: [&CubeTensor<R>; 3],
    lse: &CubeTensor<R>,
    kv: usize,
    doc_starts: Option<&CubeTensor<R>>,
    scale: f64,
) -> Result<CubeTensor<R>, Refused> {
    let p = Packed::new(qkv, kv, doc_starts, scale)?;
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
        let buffers = [&p.qkv, p.doc_starts(), &dout, &lse, &delta, &grad];
        p.launch(p.kv_kernel(), TILE, p.kv, buffers);
        p.launch(p.q_kernel(), TILE, p.heads, buffers);
    }
    Ok(grad)
}
