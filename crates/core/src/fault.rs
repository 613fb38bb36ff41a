//! What broke on a device while nobody was asking: noted here, and taken by who asks next (each step of a training does).
//!
//! CubeCL 0.10 runs every launch on a thread of the device's own, some time after the call that wanted it. What such a task
//! returns as an error is kept on its stream and comes out of the next read or wait (cubecl-cuda: compute/server.rs, `launch` and
//! `flush_errors`). What it panics with (a driver call that is unwrapped, a kernel that cannot be compiled) is caught, logged as
//! a warning and forgotten, and the results are garbage from there on (cubecl-common: device/handle/channel.rs, `Task::init`).
//! `watch` keeps the message.

// Backends without CubeCL compute where they are called, and panic there.
#![cfg_attr(not(feature = "cube"), allow(dead_code))]

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Mutex, Once, PoisonError};

static FAULT: Mutex<Option<String>> = Mutex::new(None);

/// Notes a failure. The first one stays: later ones are its consequences.
pub(crate) fn report(problem: String) {
    FAULT.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(problem);
}

/// The first failure since the last call.
pub fn take() -> Option<String> {
    FAULT.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// What a panic says.
pub(crate) fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_string()).or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "a panic without a message".into())
}

/// From now on a panic on a thread of CubeCL's devices is a failure that is noted. The hook that was there still runs.
pub(crate) fn watch() {
    static WATCH: Once = Once::new();
    WATCH.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            // "DSD-<type>-<index>": cubecl-common, device/handle/channel.rs, `DeviceClient::new`.
            if std::thread::current().name().is_some_and(|name| name.starts_with("DSD-") || name.starts_with("DSU-")) {
                let place = info.location().map(|at| format!(" ({at})")).unwrap_or_default();
                report(format!("{}{place}", message(info.payload())));
            }
            before(info);
        }));
    });
}

/// Notes a failure and gives up: for what a device, or a setting that does not fit it, can cause where no error can be
/// returned. [`guarded`] makes an error of it.
pub(crate) fn fail(problem: String) -> ! {
    report(problem.clone());
    panic!("{problem}");
}

/// How a read that fails begins (burn-tensor: tensor/api/base.rs, `into_data`).
const FAILED_READ: &str = "Error while reading data";

/// Runs `job`. A failure that is left at its end is an error, as is a panic that follows from one: a device's task that panics
/// also drops the channel on which its caller waits, which then panics with nothing but `CallError`.
///
/// # Errors
/// The failure; else the job's.
///
/// # Panics
/// As the job, where no device has failed.
pub(crate) fn guarded<T, E>(job: impl FnOnce() -> Result<T, E>, error: impl Fn(String) -> E) -> Result<T, E> {
    thread_local! {
        static INSIDE: Cell<bool> = const { Cell::new(false) };
    }
    if INSIDE.replace(true) {
        return job(); // whoever is outside looks
    }
    watch();
    let result = catch_unwind(AssertUnwindSafe(job));
    INSIDE.set(false);
    let problem = take();
    match (result, problem) {
        (Ok(Ok(done)), None) => Ok(done),
        (Ok(Err(e)), None) => Err(e),
        (_, Some(problem)) => Err(error(problem)),
        (Err(panic), None) => match message(&*panic) {
            text if text.starts_with(FAILED_READ) => Err(error(text)),
            _ => resume_unwind(panic),
        },
    }
}
