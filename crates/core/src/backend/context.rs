//! What a job has to itself on a device: the kernels that were chosen for it, and the failures that concern it.
//!
//! The operations are static functions of a backend's type, so what belongs to a job is the thread's while the job runs there: a
//! [`Scope`], entered for the duration of a call.

// As in `fault`.
#![cfg_attr(not(all(feature = "cube", feature = "train")), allow(dead_code))]

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use super::{BackendName, Choices, OpenDevice};
use crate::error::{Error, Result};
use crate::fault::{self, DeviceThread, Faults};

/// A device ready for jobs: its name, the kernels chosen ([`Choices`]), and a place for its failures. Made by
/// [`BackendName::open`]; cheap to clone, and a clone is the same context.
///
/// Two contexts know nothing of each other: jobs on two threads of a process may use different kernels, and a failure is told to
/// the job that it broke. Where a device itself breaks down, each of its contexts is told, and gives an error from then on.
#[derive(Clone, Debug)]
pub struct DeviceContext {
    name: BackendName,
    pub(crate) device: OpenDevice,
    scope: Scope,
}

impl DeviceContext {
    pub(super) fn new(name: BackendName, device: OpenDevice) -> Self {
        let scope = Scope::default();
        if let Some(thread) = device.thread() {
            scope.faults.listen(thread);
        }
        Self { name, device, scope }
    }

    /// The backend and device.
    pub fn name(&self) -> BackendName {
        self.name
    }

    /// The number of the CUDA device, where it is one.
    #[cfg(feature = "nccl")]
    pub(crate) fn cuda_index(&self) -> Option<usize> {
        match &self.device {
            OpenDevice::Cuda(device) => Some(device.index),
            _ => None,
        }
    }

    /// What is chosen.
    pub fn choices(&self) -> Choices {
        self.scope.choices
    }

    /// The same device for another job, with these kernels.
    #[must_use]
    pub fn with_choices(&self, choices: Choices) -> Self {
        let mut new = Self::new(self.name, self.device.clone());
        new.scope.choices = choices;
        new
    }

    /// Runs `job` with the context's choices. A failure of the device is an error, however it shows. An object that computes on a
    /// device from call to call enters its context at each.
    ///
    /// # Errors
    /// [`Error::Backend`] if the device failed, now or before; else the job's.
    ///
    /// # Panics
    /// As the job, where no device has failed.
    pub fn enter<T>(&self, job: impl FnOnce() -> Result<T>) -> Result<T> {
        let faults = &self.scope.faults;
        let failed = |problem: String| Error::Backend {
            name: self.name.to_string(),
            problem: format!("the device failed: {problem}"),
            hint: "`recua selftest` checks the device; a training goes on from its last checkpoint with --resume".into(),
        };
        if Scope::current().is_some_and(|outer| Arc::ptr_eq(&outer.faults, faults)) {
            return self.scope.enter(job); // whoever is outside looks
        }
        if let Some(problem) = faults.poison() {
            return Err(failed(problem));
        }
        let result = catch_unwind(AssertUnwindSafe(|| self.scope.enter(job)));
        #[cfg(feature = "wgpu")]
        if let (Err(_) | Ok(Err(_)), OpenDevice::Wgpu(device)) = (&result, &self.device) {
            super::wgpu::poll(device);
        }
        match (result, faults.take()) {
            (Ok(done), None) => done,
            (_, Some(problem)) => Err(failed(problem)),
            // A device's task that panics also drops the channel on which its caller waits, which then panics with `CallError` alone.
            (Err(panic), None) => match fault::message(&*panic) {
                text if FAILED_READS.iter().any(|begins| text.starts_with(begins)) => Err(failed(text)),
                _ => resume_unwind(panic),
            },
        }
    }

    /// For tests: the device is lost from here on, as when its driver is reset. Of `wgpu` alone; else nothing happens.
    #[doc(hidden)]
    pub fn lose_device(&self) {
        #[cfg(feature = "wgpu")]
        if let OpenDevice::Wgpu(device) = &self.device {
            super::wgpu::destroy(device);
        }
    }

    /// For tests: takes failures of a thread of this name (`DSD-<type>-<index>`) for the device's.
    #[doc(hidden)]
    pub fn listen(&self, thread: [u16; 2]) {
        self.scope.faults.listen(thread);
    }
}

/// How a read that fails begins (burn-tensor: tensor/api/base.rs, `into_data`; cubecl-wgpu: compute/stream.rs, `read_resources`).
const FAILED_READS: [&str; 2] = ["Error while reading data", "Failed to map buffer"];

/// What the operations see of a context.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scope {
    choices: Choices,
    faults: Arc<Faults>,
}

thread_local! {
    static SCOPE: RefCell<Option<Scope>> = const { RefCell::new(None) };
}

impl Scope {
    fn current() -> Option<Self> {
        SCOPE.with_borrow(Clone::clone)
    }

    /// The thread's scope. Code that names its backend and enters no context has one a thread.
    pub(crate) fn of_thread() -> Self {
        SCOPE.with_borrow_mut(|scope| scope.get_or_insert_default().clone())
    }

    /// The same job with other kernels.
    pub(crate) fn with_choices(self, choices: Choices) -> Self {
        Self { choices, ..self }
    }

    /// Runs `job` in this scope. The one before is back afterwards, after a panic too.
    pub(crate) fn enter<T>(&self, job: impl FnOnce() -> T) -> T {
        struct Restore(Option<Scope>);
        impl Drop for Restore {
            fn drop(&mut self) {
                SCOPE.set(self.0.take());
            }
        }
        let _restore = Restore(SCOPE.replace(Some(self.clone())));
        job()
    }
}

/// What is chosen for the job of this thread.
pub fn choices() -> Choices {
    SCOPE.with_borrow(|scope| scope.as_ref().map(|scope| scope.choices).unwrap_or_default())
}

/// The failures of this thread's job.
pub(crate) fn faults() -> Arc<Faults> {
    Scope::of_thread().faults
}

/// This thread's job computes on a device: it is told when that breaks down.
pub(crate) fn listen(device: DeviceThread) {
    faults().listen(device);
}

/// Notes a failure of this thread's job and gives up: for what a device, or a setting that does not fit it, can cause where no
/// error can be returned. [`DeviceContext::enter`] makes an error of it.
pub(crate) fn fail(problem: String) -> ! {
    faults().note(problem.clone());
    panic!("{problem}");
}
