//! What broke on a device while nobody was asking: noted for the jobs that it concerns, which ask at every step and at their end.
//!
//! CubeCL 0.10 runs every launch on a thread of the device's own, some time after the call that wanted it. What such a task
//! returns as an error is kept on its stream and comes out of the next read or wait (cubecl-cuda: compute/server.rs, `launch` and
//! `flush_errors`). What it panics with (a driver call that is unwrapped, a kernel that cannot be compiled) is caught, logged as
//! a warning and forgotten, and the results are garbage from there on (cubecl-common: device/handle/channel.rs, `Task::init`).
//! A panic hook keeps the message, for all jobs that listen to that device.

// Without CubeCL an operation computes where it is called, and panics there.
#![cfg_attr(not(all(feature = "cube", feature = "train")), allow(dead_code))]

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, Once, PoisonError, Weak};

/// A device as CubeCL names its thread: `DSD-<type>-<index>` (cubecl-common: device/handle/channel.rs, `DeviceClient::new`). The same
/// card through CUDA and through Vulkan may share a thread, and then its failures.
pub(crate) type DeviceThread = [u16; 2];

/// The failures that concern one job.
#[derive(Debug, Default)]
pub(crate) struct Faults(Mutex<Option<Fault>>);

#[derive(Clone, Debug)]
struct Fault {
    problem: String,
    /// A task of the device panicked: nothing that it computes from there on is worth anything.
    poisons: bool,
}

impl Faults {
    /// Notes a failure. The first one stays: later ones are its consequences.
    pub(crate) fn note(&self, problem: String) {
        self.add(problem, false);
    }

    fn add(&self, problem: String, poisons: bool) {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        slot.get_or_insert(Fault { problem, poisons }).poisons |= poisons;
    }

    /// The first failure since the last call; that of a poisoned device each time.
    pub(crate) fn take(&self) -> Option<String> {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fault = slot.clone()?;
        if !fault.poisons {
            *slot = None;
        }
        Some(fault.problem)
    }

    /// [`Faults::take`], of a poisoned device too: for whoever judges each result by itself.
    pub(crate) fn clear(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take().map(|fault| fault.problem)
    }

    /// Why the device is worth nothing any more.
    pub(crate) fn poison(&self) -> Option<String> {
        let slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        slot.as_ref().filter(|fault| fault.poisons).map(|fault| fault.problem.clone())
    }

    /// From now on a panic on the device's thread is a failure here.
    pub(crate) fn listen(self: &Arc<Self>, device: DeviceThread) {
        watch();
        let mut listeners = LISTENERS.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.retain(|(_, faults)| faults.strong_count() > 0);
        let this = Arc::downgrade(self);
        if !listeners.iter().any(|(of, faults)| *of == device && faults.ptr_eq(&this)) {
            listeners.push((device, this));
        }
    }
}

/// Who listens to which device. Global as the panic hook is; what it holds belongs to the jobs.
static LISTENERS: Mutex<Vec<(DeviceThread, Weak<Faults>)>> = Mutex::new(Vec::new());

thread_local! {
    /// A panic on this thread is somebody's result.
    static CAUGHT: Cell<bool> = const { Cell::new(false) };
}

fn device_thread(name: &str) -> Option<DeviceThread> {
    let (kind, index) = name.strip_prefix("DSD-").or_else(|| name.strip_prefix("DSU-"))?.split_once('-')?;
    Some([kind.parse().ok()?, index.parse().ok()?])
}

/// Tells all jobs that listen to a device that nothing it computes from here on is worth anything.
pub(crate) fn broken(device: DeviceThread, problem: &str) {
    let listeners = LISTENERS.lock().unwrap_or_else(PoisonError::into_inner);
    for faults in listeners.iter().filter(|(of, _)| *of == device).filter_map(|(_, faults)| faults.upgrade()) {
        faults.add(problem.into(), true);
    }
}

/// Sets the panic hook, once. The hook that was there still runs.
fn watch() {
    static WATCH: Once = Once::new();
    WATCH.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if let Some(device) = std::thread::current().name().and_then(device_thread)
                && !CAUGHT.get()
            {
                let place = info.location().map(|at| format!(" ({at})")).unwrap_or_default();
                let problem = format!("{}{place}", message(info.payload()));
                broken(device, &problem);
            }
            before(info);
        }));
    });
}

/// Runs `job` on a device's thread; if it panics, that is its error and no failure of the device.
#[cfg_attr(not(feature = "cuda"), allow(dead_code))]
pub(crate) fn caught<T>(job: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    let before = CAUGHT.replace(true);
    let result = catch_unwind(AssertUnwindSafe(job));
    CAUGHT.set(before);
    result.unwrap_or_else(|panic| Err(message(&*panic)))
}

/// What a panic says.
pub(crate) fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_string()).or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "a panic without a message".into())
}
