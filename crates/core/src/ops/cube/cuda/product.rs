//! Products by cuBLASLt on CubeCL's buffers.
//!
//! A product is submitted to the device's thread like a launch of CubeCL's (`DeviceHandle::submit`: first in, first out), finds
//! the addresses of its buffers there, and is launched in order (`order.rs`). The host waits for nothing but the first product of
//! each kind, whose kernel is chosen then: whether there is one must be known before another routine can be taken instead.
//!
//! Buffers of another thread's stream are refused: CubeCL frees them by an event that it records before the product is launched
//! (cubecl-runtime: stream/event.rs, `Drop for ResolvedStreams`).

use std::any::Any;
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::Runtime;
use cubecl::cuda::CudaRuntime;
use cubecl::device::{Device, DeviceId};
use cubecl::device_handle::DeviceHandle;
use cubecl::prelude::ComputeClient;
use cubecl::server::{Binding, ComputeServer};
use cubecl::stream_id::StreamId;

use super::cublaslt::{CublasLt, Key, Side, WORKSPACE, api};
use super::order::Order;
use crate::backend::context::faults;
use crate::fault::caught;

type Server = <CudaRuntime as Runtime>::Server;

/// Of each kind of product on each device: the workspace that it takes, or why it is refused.
type Kinds = HashMap<(DeviceId, Key), Result<usize, String>>;

static KINDS: LazyLock<Mutex<Kinds>> = LazyLock::new(Default::default);

/// What a device's thread keeps.
#[derive(Default)]
struct Local {
    library: Option<CublasLt>,
    order: Order,
}

thread_local! {
    static LOCAL: RefCell<Local> = RefCell::default();
}

/// On the device's thread.
fn launch(
    server: &mut Server,
    stream: StreamId,
    key: Key,
    buffers: [Binding; 3],
    workspace: Option<Binding>,
) -> Result<usize, String> {
    // Also makes the device's context current, and `stream`'s stream exist (cubecl-cuda: compute/server.rs, `command`).
    let mut resource = |binding| server.get_resource(binding, stream).map_err(|e| format!("a buffer is not there: {e}"));
    let [a, b, y] = buffers;
    let buffers = [resource(a)?, resource(b)?, resource(y)?];
    let workspace = workspace.map(resource).transpose()?;
    let addresses = buffers.each_ref().map(|r| r.resource().ptr);
    let workspace = workspace.as_ref().map_or((0, 0), |w| (w.resource().ptr, w.resource().size as usize));
    LOCAL.with_borrow_mut(|Local { library, order }| {
        let library = match library {
            Some(library) => library,
            None => library.insert(CublasLt::new()?),
        };
        order.launch(server, stream, |stream| {
            // SAFETY: the buffers have the shapes, strides and alignment of the key (`kind`), are bound until this returns, and
            // are given out anew in the stream's order only.
            unsafe { library.product(key, addresses, workspace, stream) }
        })
    })
}

/// The last two dimensions, and how they lie.
pub(super) fn side<R: CubeRuntime>(x: &CubeTensor<R>) -> Result<([usize; 2], Side), String> {
    let (shape, strides) = (x.meta.shape(), x.meta.strides());
    let rank = shape.len();
    if rank < 2 || shape[..rank - 2].iter().any(|n| *n != 1) {
        return Err("not one matrix but several".into());
    }
    let size @ [rows, columns] = [shape[rank - 2], shape[rank - 1]];
    let (row, column) = (strides[rank - 2], strides[rank - 1]);
    let (transposed, stride) = if (column == 1 || columns == 1) && (row >= columns || rows == 1) {
        (false, row.max(columns))
    } else if (row == 1 || rows == 1) && (column >= rows || columns == 1) {
        (true, column.max(rows))
    } else {
        return Err("a matrix of which neither rows nor columns lie side by side".into());
    };
    // CubeCL's allocations begin at multiples of 512 (cubecl-cuda: runtime.rs, `mem_alignment`).
    let offset = x.handle.offset_start.unwrap_or(0);
    let align = if offset == 0 { 256 } else { 1 << offset.trailing_zeros().min(8) };
    Ok((size, Side { transposed, stride, align }))
}

fn kind<R: CubeRuntime>([a, b, y]: [&CubeTensor<R>; 3], accumulate: bool) -> Result<Key, String> {
    let (([m, k], a_side), ([k_too, n], b_side), (out, y_side)) = (side(a)?, side(b)?, side(y)?);
    if k != k_too || out != [m, n] || y_side.transposed || a.dtype != b.dtype {
        return Err(format!("matrices that do not belong together: {:?} x {:?}", a.meta.shape(), b.meta.shape()));
    }
    if !matches!(a.dtype, DType::BF16 | DType::F16) || !(y.dtype == a.dtype || y.dtype == DType::F32) {
        return Err(format!("no products of {:?} as {:?}", a.dtype, y.dtype));
    }
    Ok(Key { size: [m, n, k], a: a_side, b: b_side, y: y_side, operands: a.dtype, out: y.dtype, accumulate })
}

/// `y = a b`, or `y += a b`. What is refused has not been begun.
pub(crate) fn product<R: CubeRuntime>(matrices: [&CubeTensor<R>; 3], accumulate: bool) -> Result<(), String> {
    let Some(client) = (&matrices[0].client as &dyn Any).downcast_ref::<ComputeClient<CudaRuntime>>() else {
        return Err("another runtime than CUDA".into());
    };
    api()?;
    let key = kind(matrices, accumulate)?;
    let stream = StreamId::current();
    if matrices.iter().any(|x| x.handle.stream != stream) {
        return Err("a tensor of another thread".into());
    }
    let id = matrices[0].device.to_id();
    let kinds = || KINDS.lock().unwrap_or_else(PoisonError::into_inner);
    let known = kinds().get(&(id, key)).cloned();
    let bytes = known.clone().unwrap_or(Ok(WORKSPACE))?;
    let workspace = (bytes > 0).then(|| client.empty(bytes).binding());
    let buffers = matrices.map(|x| x.handle.clone().binding());
    let device = DeviceHandle::<Server>::new(id);
    if known.is_some() {
        let faults = faults();
        device.submit(move |server| {
            if let Err(e) = caught(|| launch(server, stream, key, buffers, workspace)) {
                faults.note(format!("product of {:?}: {e}", key.size));
            }
        });
        return Ok(());
    }
    let first = device.submit_blocking(move |server| caught(|| launch(server, stream, key, buffers, workspace)));
    let first = first.unwrap_or_else(|_| Err("CubeCL's thread gave no answer".into()));
    if let Err(e) = &first {
        log::warn!("a product of {:?} is left to another routine than cuBLASLt: {e}", key.size);
    }
    kinds().insert((id, key), first.clone());
    first.map(drop)
}
