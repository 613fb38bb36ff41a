//! Tensors of CubeCL's on CUDA for NCCL: where they lie, and how a stream beside CubeCL's is ordered with it.
//!
//! Jobs are given to the device's thread like CubeCL's own launches (`DeviceHandle::submit`: first in, first out); there the stream is found
//! as for products (`ops/cube/cuda/order.rs`). A binding keeps its memory from being given out anew (cubecl-runtime: memory_pool/handle.rs, `is_free`) and
//! counts for nothing where a tensor may be written in place (`can_mut`); the tensor itself is held for that.

use std::any::Any;
use std::cell::RefCell;
use std::sync::Arc;

use burn::tensor::ops::FloatTensor;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::Runtime;
use cubecl::cuda::{CudaDevice, CudaRuntime};
use cubecl::device::{Device, DeviceId};
use cubecl::device_handle::DeviceHandle;
use cubecl::server::{Binding, ComputeServer};
use cubecl::stream_id::StreamId;

use crate::backend::Cuda;
use crate::fault::caught;
use crate::ops::{Order, Way};

use super::{DeviceTensors, Event, LaunchDevice, LaunchJob, Launching, Library, Memory, Stream};

type Server = <CudaRuntime as Runtime>::Server;
type Tensor = CubeTensor<CudaRuntime>;

thread_local! {
    static ORDER: RefCell<Order> = RefCell::default();
}

/// A device's thread, for NCCL.
pub(crate) struct NcclDevice {
    id: DeviceId,
    library: Arc<dyn Library>,
}

impl NcclDevice {
    pub(crate) fn new(index: usize, library: Arc<dyn Library>) -> Self {
        Self { id: CudaDevice { index }.to_id(), library }
    }
}

impl LaunchDevice for NcclDevice {
    fn submit(&self, job: LaunchJob) {
        let (library, id) = (self.library.clone(), StreamId::current());
        DeviceHandle::<Server>::new(self.id).submit(move |server| {
            let run = || {
                job(&mut OnThread { server, id, library: library.as_ref() });
                Ok(())
            };
            // A job tells of its own failures; a panic in it must not end the device's thread.
            if let Err(e) = caught(run) {
                log::error!("NCCL's launch: {e}");
            }
        });
    }

    fn tensors(&self) -> Box<dyn Any> {
        Box::new(Arc::new(CudaTensors) as Arc<dyn DeviceTensors<Cuda>>)
    }
}

/// On the device's thread.
struct OnThread<'a> {
    server: &'a mut Server,
    id: StreamId,
    library: &'a dyn Library,
}

impl OnThread<'_> {
    fn way(&mut self, what: impl FnOnce(&dyn Library, Way<'_>) -> Result<(), String>) -> Result<(), String> {
        ORDER.with_borrow_mut(|order| what(self.library, order.way(self.server, self.id)?))
    }
}

impl Launching for OnThread<'_> {
    fn address(&mut self, memory: &Memory) -> Result<u64, String> {
        let binding = memory.0.downcast_ref::<Binding>().ok_or("memory of another device")?;
        // Also makes `id`'s stream exist (cubecl-cuda: compute/server.rs, `command`).
        let resource = self.server.get_resource(binding.clone(), self.id).map_err(|e| format!("a buffer is not there: {e}"))?;
        Ok(resource.resource().ptr)
    }

    fn record(&mut self, event: Event) -> Result<(), String> {
        self.way(|library, way| match way {
            Way::Stream(stream) => library.event_record(event, Stream(stream as usize)).map_err(|e| e.to_string()),
            Way::Context(events) => events.record(event.0 as _),
        })
    }

    fn wait(&mut self, event: Event) -> Result<(), String> {
        self.way(|library, way| match way {
            Way::Stream(stream) => library.stream_wait(Stream(stream as usize), event).map_err(|e| e.to_string()),
            Way::Context(events) => events.wait(event.0 as _),
        })
    }
}

struct CudaTensors;

fn memory(x: &Tensor) -> Memory {
    Memory(Arc::new(x.handle.clone().binding()))
}

/// Elements one after the other, of this thread's stream.
fn own(x: Tensor) -> Result<Tensor, String> {
    let x = into_contiguous(x);
    match x.handle.stream == StreamId::current() {
        true => Ok(x),
        false => Err("a tensor of another thread".into()),
    }
}

impl DeviceTensors<Cuda> for CudaTensors {
    fn lend(&self, x: FloatTensor<Cuda>) -> Result<(FloatTensor<Cuda>, Memory), String> {
        let x = own(x)?;
        let memory = memory(&x);
        Ok((x, memory))
    }

    fn land(&self, like: &FloatTensor<Cuda>, shape: &[usize]) -> (Memory, Box<dyn FnOnce() -> FloatTensor<Cuda> + Send>) {
        let made = empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), shape.to_vec().into(), like.dtype);
        (memory(&made), Box::new(move || made))
    }

    fn in_place(
        &self,
        x: FloatTensor<Cuda>,
    ) -> Result<(Memory, Box<dyn FnOnce() -> FloatTensor<Cuda> + Send>), FloatTensor<Cuda>> {
        let x = own(x.clone()).map_err(|_| x)?;
        if !x.can_mut() {
            return Err(x);
        }
        Ok((memory(&x), Box::new(move || x)))
    }
}
