//! wgpu's adapters, and the device of each: a new one where the last was lost (a driver that was reset, a GPU that was unplugged).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cubecl::device::Device as _;
use cubecl::wgpu::{AutoGraphicsApi, GraphicsApi, RuntimeOptions, WgpuDevice, WgpuSetup, init_device};
use wgpu::{DeviceType, Features};

use crate::fault;

/// An adapter.
pub(super) struct Adapter {
    pub(super) name: String,
    pub(super) software: bool,
    instance: wgpu::Instance,
    adapter: wgpu::Adapter,
}

/// All adapters, best first: GPUs before software, those of one kind as the driver has them.
pub(super) fn adapters() -> Vec<Adapter> {
    let backend = AutoGraphicsApi::backend();
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = backend.into();
    let instance = wgpu::Instance::new(descriptor);
    let mut all: Vec<(u8, Adapter)> = cubecl::future::block_on(instance.enumerate_adapters(backend.into()))
        .into_iter()
        .map(|adapter| {
            let info = adapter.get_info();
            let rank = match info.device_type {
                DeviceType::DiscreteGpu => 0,
                DeviceType::IntegratedGpu => 1,
                DeviceType::VirtualGpu => 2,
                DeviceType::Other => 3,
                DeviceType::Cpu => 4,
            };
            let name = format!("{} ({:?})", info.name, info.backend);
            (rank, Adapter { name, software: rank == 4, instance: instance.clone(), adapter })
        })
        .collect();
    all.sort_by_key(|(rank, _)| *rank); // stable
    all.into_iter().map(|(_, adapter)| adapter).collect()
}

/// A device that was opened.
struct Opened {
    /// The adapter's place in [`adapters`], and its name.
    adapter: (usize, String),
    device: wgpu::Device,
    id: WgpuDevice,
    lost: Arc<AtomicBool>,
}

impl Opened {
    /// wgpu says that a device is lost when it is polled.
    fn poll(&self) {
        // What it could not do the next operation says.
        let _ = self.device.poll(wgpu::PollType::Poll);
    }
}

/// A process has one device of an adapter: CubeCL keeps what belongs to it for good.
static OPENED: Mutex<Vec<Opened>> = Mutex::new(Vec::new());

/// The device of the adapter at place `index`. Everybody who computes on one that is lost is told, whenever that shows.
pub(super) fn device(index: usize, adapter: &Adapter) -> Result<WgpuDevice, String> {
    let key = (index, adapter.name.clone());
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    opened.iter().for_each(Opened::poll);
    if let Some(found) = opened.iter().find(|o| o.adapter == key && !o.lost.load(Ordering::Acquire)) {
        return Ok(found.id.clone());
    }
    // As CubeCL asks for one (cubecl-wgpu: backend/wgsl.rs, `request_device`), but for features on trial, which no kernel of ours uses.
    let unwanted = Features::MAPPABLE_PRIMARY_BUFFERS | Features::all_experimental_mask();
    let wanted = wgpu::DeviceDescriptor {
        required_features: adapter.adapter.features().difference(unwanted),
        required_limits: adapter.adapter.limits(),
        memory_hints: wgpu::MemoryHints::MemoryUsage,
        ..Default::default()
    };
    let (device, queue) = cubecl::future::block_on(adapter.adapter.request_device(&wanted)).map_err(|e| e.to_string())?;
    let setup = WgpuSetup {
        instance: adapter.instance.clone(),
        adapter: adapter.adapter.clone(),
        device: device.clone(),
        queue,
        backend: adapter.adapter.get_info().backend,
    };
    let id = init_device(setup, RuntimeOptions::default());
    let lost = Arc::new(AtomicBool::new(false));
    let thread = id.to_id();
    let noted = lost.clone();
    device.set_device_lost_callback(move |reason, message| {
        noted.store(true, Ordering::Release);
        let message = if message.is_empty() { String::new() } else { format!(": {message}") };
        fault::broken([thread.type_id, thread.index_id], &format!("the device is lost ({reason:?}){message}"));
    });
    opened.push(Opened { adapter: key, device, id: id.clone(), lost });
    Ok(id)
}

/// Lets wgpu tell whether a device is lost.
pub(super) fn poll(id: &WgpuDevice) {
    let opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    opened.iter().filter(|o| o.id == *id).for_each(Opened::poll);
}

/// For tests: loses a device, as when its driver is reset.
pub(super) fn destroy(id: &WgpuDevice) {
    let opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    let device = opened.iter().find(|o| o.id == *id).map(|o| o.device.clone());
    drop(opened);
    if let Some(device) = device {
        device.destroy();
    }
}
