//! Kernels in CUDA C++ through CubeCL: NVRTC compiles the text for the device's architecture when it is first used, the result is in
//! CubeCL's cache of kernels where that is on, and launches are in order with all others on CubeCL's stream. A kernel gets a
//! pointer a buffer, and then one struct of 64-bit words by value (`__grid_constant__`).

use std::collections::HashSet;
use std::sync::{LazyLock, Mutex, PoisonError};

use cubecl::cuda::{CudaCompiler, CudaRuntime};
use cubecl::device::DeviceId;
use cubecl::prelude::*;
use cubecl::server::{Binding, KernelArguments, MetadataBindingInfo};
use cubecl::{CompilationError, Compiler, CubeTask};
use cubecl_cpp::shared::{Elem, Item, SharedMemory};

use crate::backend::context::fail;

/// A text, of the files that belong together.
pub(super) struct KernelText {
    text: &'static str,
    /// CubeCL's cache outlives a build, and knows a kernel by its id alone.
    hash: LazyLock<u64>,
}

/// Files of this folder, one after the other, as a [`KernelText`].
macro_rules! source {
    ($($file:literal),*) => {{
        const TEXT: &str = concat!($(include_str!($file)),*);
        crate::ops::cube::cuda::raw::KernelText::new(TEXT, || xxhash_rust::xxh3::xxh3_64(TEXT.as_bytes()))
    }};
}
pub(super) use source;

impl KernelText {
    pub(super) const fn new(text: &'static str, hash: fn() -> u64) -> Self {
        Self { text, hash: LazyLock::new(hash) }
    }
}

/// A kernel of a source.
#[derive(Clone, Copy)]
pub(super) struct RawCuda {
    pub(super) source: &'static KernelText,
    pub(super) entry: &'static str,
    /// A macro that the source wants, and its value.
    pub(super) define: (&'static str, usize),
    /// Dynamic shared memory, bytes.
    pub(super) shared: usize,
    pub(super) threads: u32,
}

impl RawCuda {
    fn cube_dim(&self) -> CubeDim {
        CubeDim::new_1d(self.threads)
    }
}

impl KernelMetadata for RawCuda {
    fn id(&self) -> KernelId {
        KernelId::new::<Self>().info((self.entry, self.define, *self.source.hash)).cube_dim(self.cube_dim())
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
        let settings = KernelSettings { cube_dim: self.cube_dim(), ..Default::default() };
        let mut empty = compiler.compile(KernelBuilder::default().build(settings), options, mode, address)?;
        let item = Item::scalar(Elem::U8, false);
        empty.body.shared_memories = match self.shared {
            0 => Vec::new(),
            length => vec![SharedMemory::Array { index: 0, item, length, align: 128, offset: 0 }],
        };
        Ok(CompiledKernel {
            entrypoint_name: self.entry.into(),
            debug_name: None,
            source: format!("#define {} {}\n{}", self.define.0, self.define.1, self.source.text),
            repr: Some(empty),
            cube_dim: self.cube_dim(),
            debug_info: None,
        })
    }
}

/// A device, an entry, its macro's value.
type Launched = (DeviceId, &'static str, usize);

/// Launches a kernel on `cubes` blocks.
///
/// # Safety
/// The buffers are those of the entry, in its order, of the types and of at least the sizes that its source states for `params`, the
/// words of its struct; and it stays inside them.
pub(super) unsafe fn launch(
    client: &ComputeClient<CudaRuntime>,
    device: DeviceId,
    kernel: RawCuda,
    cubes: [usize; 3],
    buffers: Vec<Binding>,
    params: Vec<u64>,
) {
    let words = params.len(); // CubeCL puts what follows these into a buffer of its own: nothing
    let arguments = KernelArguments::new().with_buffers(buffers).with_info(MetadataBindingInfo::new(params, words));
    let [x, y, z] = cubes.map(|n| n as u32);
    // SAFETY: as the caller says.
    unsafe { client.launch_unchecked(Box::new(kernel), CubeCount::Static(x, y, z), arguments) };

    // A launch that fails is only noted on CubeCL's stream, until something is read. What can fail is the compilation and the
    // size of a block, which are the same each time: asked for once.
    static LAUNCHED: LazyLock<Mutex<HashSet<Launched>>> = LazyLock::new(Default::default);
    let launched = || LAUNCHED.lock().unwrap_or_else(PoisonError::into_inner);
    let RawCuda { entry, define: (name, value), shared, threads, .. } = kernel;
    let new = launched().insert((device, entry, value));
    if !new {
        return;
    }
    if let Err(e) = client.flush() {
        launched().remove(&(device, entry, value));
        fail(format!(
            "{entry} (CUDA C++; {name} {value}, {threads} threads, {shared} bytes of shared memory), or something launched before \
             it, failed: {e}"
        ));
    }
}
