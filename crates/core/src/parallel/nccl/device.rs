//! Where computation is launched, seen by the engine.

use std::any::Any;
use std::sync::Arc;

use burn::tensor::ops::FloatTensor;

use super::library::Event;
use crate::ops::LlamaOps;

/// A piece of a device's memory, which is not given out anew while somebody holds this.
#[derive(Clone)]
pub struct Memory(pub Arc<dyn Any + Send + Sync>);

/// What a job finds where computation is launched.
pub trait Launching {
    /// The address of memory.
    ///
    /// # Errors
    /// What is wrong with it.
    fn address(&mut self, memory: &Memory) -> Result<u64, String>;
    /// Records an event after all computation that was launched.
    ///
    /// # Errors
    /// The driver's.
    fn record(&mut self, event: Event) -> Result<(), String>;
    /// Computation that is launched later waits for an event. The host does not.
    ///
    /// # Errors
    /// The driver's.
    fn wait(&mut self, event: Event) -> Result<(), String>;
}

/// Work for the thread that launches.
pub type LaunchJob = Box<dyn FnOnce(&mut dyn Launching) + Send>;

/// A device on which computation is launched by one thread, in the order in which it is given.
pub trait LaunchDevice: Send + Sync {
    /// Runs a job there, in order with all computation that this thread has given and will give. Does not wait for it.
    fn submit(&self, job: LaunchJob);
    /// An `Arc<dyn DeviceTensors<B>>` for the backend whose tensors lie on the device.
    fn tensors(&self) -> Box<dyn Any>;
}

/// A tensor that is being written, and where: called once it is there.
pub type Landing<B> = (Memory, Box<dyn FnOnce() -> FloatTensor<B> + Send>);

/// A backend's tensors as the memory that they are.
pub trait DeviceTensors<B: LlamaOps>: Send + Sync {
    /// A tensor's memory, its elements one after the other, and the tensor that keeps anybody from writing to it.
    ///
    /// # Errors
    /// Why it cannot be lent.
    fn lend(&self, x: FloatTensor<B>) -> Result<(FloatTensor<B>, Memory), String>;
    /// A tensor of this shape, of the type and on the device of `like`.
    fn land(&self, like: &FloatTensor<B>, shape: &[usize]) -> Landing<B>;
    /// The tensor itself as the place of its result, if nobody else holds it.
    ///
    /// # Errors
    /// Gives the tensor back: somebody does.
    fn in_place(&self, x: FloatTensor<B>) -> Result<Landing<B>, FloatTensor<B>>;
}
