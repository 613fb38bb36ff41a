//! Causal attention in tiles, without a T x T tensor: online softmax forward, weights recomputed from the log-sum-exp backward
//! (Dao et al. 2022; Dao 2023), on the units, in float32. Kernels: `attend.rs`, of tiles: `tile.rs`.
//!
//! A cube is `side x side` units on a block of `4 side` queries or keys. `side` is 16 (256 units, 32 KiB of shared memory) where
//! the device has twice that, else 8 (64 units, 8 KiB: what a default WebGPU adapter grants). At most 7 tensors. Blocks above the
//! diagonal, and before the first document of a block's queries, are not computed. Queries, keys and values may be strided and
//! heads of any width up to 256: outputs stay in registers, `dim / side` numbers of 4 a unit (at `side` 8, heads of more than 128
//! spill). No atomics: one kernel sums dq over blocks of keys, another dk and dv over blocks of queries of all heads of a group.
//!
//! Packed projections of bfloat16 on CUDA go to the tensor cores, by the kernels of `cuda/`.

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::{cast, into_contiguous, slice};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use cubecl::zspace::metadata::Metadata;

use super::attend::{ACROSS, DOWN, delta_kernel, dkv_kernel, dq_kernel, forward_kernel};
use super::{address, count, cubes, elementwise, empty, grid};
use crate::backend::AttentionKernel;
use crate::backend::context::{choices, fail};

#[cfg(not(feature = "cuda"))]
const NO_CUDA: &str = "a build without CUDA";

/// What the kernels in CUDA C++ give, if they are wanted and take the operands.
fn unless_refused<T>(raw: impl FnOnce() -> Result<T, &'static str>) -> Option<T> {
    let chosen = choices().attention;
    if chosen == AttentionKernel::CubeCl {
        return None;
    }
    match raw() {
        Ok(result) => Some(result),
        Err(reason) if chosen == AttentionKernel::Raw => {
            fail(format!("attention by the kernels in CUDA C++ (`{chosen}`): {reason}"))
        }
        Err(_) => None,
    }
}

/// Heads inside a tensor: `[batch, heads, rows, dim]`, strided, from element `first` of the buffer on.
#[derive(Clone)]
struct Heads<R: CubeRuntime> {
    x: CubeTensor<R>,
    first: usize,
}

impl<R: CubeRuntime> Heads<R> {
    /// A tensor `[batch, heads, rows, dim]`, copied only if the numbers of a row do not lie side by side.
    fn new(x: CubeTensor<R>) -> Self {
        let x = if x.meta.strides()[3] == 1 || x.meta.shape()[3] == 1 { x } else { into_contiguous(x) };
        Self { x, first: 0 }
    }

    /// `n` heads from head `at` on of a contiguous `[batch, seq, heads, dim]`.
    fn part(packed: &CubeTensor<R>, at: usize, n: usize) -> Self {
        let [batch, seq, heads, dim]: [usize; 4] = packed.meta.shape().dims();
        let mut x = packed.clone();
        x.meta = Box::new(Metadata::new([batch, n, seq, dim], [seq * heads * dim, dim, heads * dim, 1]));
        Self { x, first: at * dim }
    }

    fn shape(&self) -> [usize; 4] {
        self.x.meta.shape().dims()
    }

    fn fours(&self) -> bool {
        let at = |n: usize| n.is_multiple_of(4);
        at(self.shape()[3]) && at(self.first) && self.x.meta.strides()[..3].iter().all(|s| at(*s))
    }

    fn arg(&self) -> TensorArg<R> {
        self.x.clone().into_tensor_arg()
    }
}

/// 4 if all can be read four elements at a time, else 1.
fn lanes<R: CubeRuntime, const N: usize>(heads: [&Heads<R>; N]) -> usize {
    if heads.into_iter().all(Heads::fours) { 4 } else { 1 }
}

/// Units along a side of a cube for blocks of up to `rows` rows.
pub(super) fn side<R: CubeRuntime>(client: &ComputeClient<R>, rows: usize) -> usize {
    let hardware = &client.properties().hardware;
    let large = hardware.max_shared_memory_size >= 64 << 10 && hardware.max_units_per_cube >= 256;
    if large && rows > 32 { 16 } else { 8 }
}

/// Queries, keys, values, and what else all kernels need.
struct Inputs<R: CubeRuntime> {
    q: Heads<R>,
    k: Heads<R>,
    v: Heads<R>,
    doc_starts: Option<CubeTensor<R>>,
    scale: f64,
}

impl<R: CubeRuntime> Inputs<R> {
    fn new(q: Heads<R>, k: Heads<R>, v: Heads<R>, doc_starts: Option<CubeTensor<R>>, scale: f64) -> Self {
        assert!(q.x.dtype == k.x.dtype && q.x.dtype == v.x.dtype, "attention: queries, keys and values of several types");
        Self { q, k, v, doc_starts: doc_starts.map(into_contiguous), scale }
    }

    fn packed(qkv: &CubeTensor<R>, kv: usize, doc_starts: Option<CubeTensor<R>>, scale: f64) -> Self {
        let h = qkv.meta.shape()[2] - 2 * kv;
        Self::new(Heads::part(qkv, 0, h), Heads::part(qkv, h, kv), Heads::part(qkv, h + kv, kv), doc_starts, scale)
    }

    fn dtypes(&self) -> [StorageType; 2] {
        [self.q.x.dtype.into(), self.doc_starts.as_ref().map_or(DType::I32, |s| s.dtype).into()]
    }

    fn doc_starts(&self) -> Option<TensorArg<R>> {
        self.doc_starts.clone().map(CubeTensor::into_tensor_arg)
    }

    /// Fills `out`, returns the log-sum-exp.
    fn forward(&self, out: &Heads<R>) -> CubeTensor<R> {
        let [batch, heads, rows, dim] = self.q.shape();
        let client = self.q.x.client.clone();
        let lse = empty(&self.q.x, &[batch, heads, rows, 1], DType::F32);
        if batch * heads * rows * dim == 0 {
            return lse;
        }
        let side = side(&client, rows);
        let Self { q, k, v, .. } = self;
        // SAFETY: the kernel reads and writes rows and columns inside the shapes, by the tensors' strides; those of a part
        // lie inside its buffer.
        unsafe {
            forward_kernel::launch_unchecked(
                &client,
                cubes(rows.div_ceil(4 * side), heads, batch),
                CubeDim::new_1d((side * side) as u32),
                address([&q.x, &k.x, &v.x, &out.x]),
                lanes([q, k, v, out]),
                q.arg(),
                k.arg(),
                v.arg(),
                self.doc_starts().into(),
                out.arg(),
                lse.clone().into_tensor_arg(),
                q.first,
                k.first,
                v.first,
                self.scale as f32,
                side,
                dim,
                self.dtypes(),
            );
        }
        lse
    }

    /// Fills `dq`, laid out like `q`, and `dk` and `dv`, parts of one buffer.
    fn backward(&self, out: Heads<R>, lse: CubeTensor<R>, dout: Heads<R>, dq: &Heads<R>, dk: &Heads<R>, dv: &Heads<R>) {
        let [batch, heads, rows, dim] = self.q.shape();
        let [_, kv, keys, _] = self.k.shape();
        let client = self.q.x.client.clone();
        let Self { q, k, v, .. } = self;
        let as_q = |x: Heads<R>| if x.x.dtype == q.x.dtype { x } else { Heads { x: cast(x.x, q.x.dtype), first: x.first } };
        let (out, dout, lse) = (as_q(out), as_q(dout), into_contiguous(lse));
        let n = batch * heads * rows;
        let stats = empty(&lse, &[n, 2], DType::F32);
        let side = side(&client, keys);
        let units = CubeDim::new_1d((side * side) as u32);
        let widest = address([&q.x, &k.x, &v.x, &dout.x, &out.x, &dq.x, &dk.x]);
        // SAFETY: as in `forward`; `stats` has 2 numbers for each row of queries.
        unsafe {
            delta_kernel::launch_unchecked(
                &client,
                grid(&client, n.div_ceil(DOWN)),
                CubeDim::new_2d(ACROSS as u32, DOWN as u32),
                widest,
                lanes([&out, &dout]),
                out.arg(),
                dout.arg(),
                lse.into_tensor_arg(),
                stats.clone().into_tensor_arg(),
                dim,
                q.x.dtype.into(),
            );
            dq_kernel::launch_unchecked(
                &client,
                cubes(rows.div_ceil(4 * side), heads, batch),
                units,
                widest,
                lanes([q, k, v, &dout, dq]),
                q.arg(),
                k.arg(),
                v.arg(),
                dout.arg(),
                stats.clone().into_tensor_arg(),
                self.doc_starts().into(),
                dq.arg(),
                q.first,
                k.first,
                v.first,
                self.scale as f32,
                side,
                dim,
                self.dtypes(),
            );
            dkv_kernel::launch_unchecked(
                &client,
                cubes(keys.div_ceil(4 * side), kv, batch),
                units,
                widest,
                lanes([q, k, v, &dout, dk, dv]),
                q.arg(),
                k.arg(),
                v.arg(),
                dout.arg(),
                stats.into_tensor_arg(),
                self.doc_starts().into(),
                dk.arg(),
                q.first,
                k.first,
                v.first,
                dk.first,
                dv.first,
                self.scale as f32,
                side,
                dim,
                self.dtypes(),
            );
        }
    }
}

/// See [`super::LlamaOps::attention_forward`].
pub(super) fn forward<R: CubeRuntime>(
    q: CubeTensor<R>,
    k: CubeTensor<R>,
    v: CubeTensor<R>,
    doc_starts: Option<CubeTensor<R>>,
    scale: f64,
) -> (CubeTensor<R>, CubeTensor<R>) {
    let out = empty(&q, q.meta.shape(), q.dtype);
    let inputs = Inputs::new(Heads::new(q), Heads::new(k), Heads::new(v), doc_starts, scale);
    let lse = inputs.forward(&Heads { x: out.clone(), first: 0 });
    (out, lse)
}

/// See [`super::LlamaOps::attention_backward`]: `(dq, dk, dv)` of `[q, k, v, out, dout]`.
pub(super) fn backward<R: CubeRuntime>(
    tensors: [CubeTensor<R>; 5],
    lse: CubeTensor<R>,
    doc_starts: Option<CubeTensor<R>>,
    scale: f64,
) -> [CubeTensor<R>; 3] {
    let [q, k, v, out, dout] = tensors;
    let [batch, kv, keys, dim]: [usize; 4] = k.meta.shape().dims();
    let n = count(&k);
    let dq = empty(&q, q.meta.shape(), q.dtype);
    // Both in one tensor: with two the kernel would need an eighth. A layer more along the batch.
    let dkv = empty(&k, &[2 * batch, kv, keys, dim], k.dtype);
    if count(&q) == 0 {
        let zero = elementwise::zero(empty(&k, k.meta.shape(), k.dtype));
        return [dq, zero.clone(), zero];
    }
    let inputs = Inputs::new(Heads::new(q), Heads::new(k), Heads::new(v), doc_starts, scale);
    let part = |first| Heads { x: dkv.clone(), first };
    inputs.backward(Heads::new(out), lse, Heads::new(dout), &Heads { x: dq.clone(), first: 0 }, &part(0), &part(n));
    let half = |at: usize| slice(dkv.clone(), &[at * batch..(at + 1) * batch, 0..kv, 0..keys, 0..dim]);
    [dq, half(0), half(1)]
}

/// `[batch, seq, heads, dim]` as heads.
fn unpacked<R: CubeRuntime>(x: CubeTensor<R>) -> Heads<R> {
    let x = into_contiguous(x);
    let heads = x.meta.shape()[2];
    Heads::part(&x, 0, heads)
}

/// See [`super::LlamaOps::self_attention_forward`].
pub(super) fn packed_forward<R: CubeRuntime>(
    qkv: CubeTensor<R>,
    kv: usize,
    doc_starts: Option<CubeTensor<R>>,
    scale: f64,
) -> (CubeTensor<R>, CubeTensor<R>) {
    #[cfg(feature = "cuda")]
    let raw = || super::cuda::attention_forward(&qkv, kv, doc_starts.as_ref(), scale);
    #[cfg(not(feature = "cuda"))]
    let raw = || Err(NO_CUDA);
    if let Some(result) = unless_refused(raw) {
        return result;
    }
    let qkv = into_contiguous(qkv);
    let [batch, seq, heads, dim]: [usize; 4] = qkv.meta.shape().dims();
    let out = empty(&qkv, &[batch, seq, heads - 2 * kv, dim], qkv.dtype);
    let lse = Inputs::packed(&qkv, kv, doc_starts, scale).forward(&unpacked(out.clone()));
    (out, lse)
}

/// See [`super::LlamaOps::self_attention_backward`]: of `[qkv, out, dout]`.
pub(super) fn packed_backward<R: CubeRuntime>(
    tensors: [CubeTensor<R>; 3],
    lse: CubeTensor<R>,
    kv: usize,
    doc_starts: Option<CubeTensor<R>>,
    scale: f64,
) -> CubeTensor<R> {
    let [qkv, out, dout] = tensors;
    #[cfg(feature = "cuda")]
    let raw = || super::cuda::attention_backward([&qkv, &out, &dout], &lse, kv, doc_starts.as_ref(), scale);
    #[cfg(not(feature = "cuda"))]
    let raw = || Err(NO_CUDA);
    if let Some(result) = unless_refused(raw) {
        return result;
    }
    let qkv = into_contiguous(qkv);
    let grad = empty(&qkv, qkv.meta.shape(), qkv.dtype);
    if count(&qkv) > 0 {
        let inputs = Inputs::packed(&qkv, kv, doc_starts, scale);
        let parts = Inputs::packed(&grad, kv, None, scale);
        inputs.backward(unpacked(out), lse, unpacked(dout), &parts.q, &parts.k, &parts.v);
    }
    grad
}
