//! The order between CubeCL's work and a library's that is launched beside it: without a wait of the host.
//!
//! CubeCL 0.10 keeps its CUDA stream to itself. Two ways round, in this order:
//!
//! 1. **Its own stream.** `CudaServer` derives `Debug` (cubecl-cuda: compute/server.rs:57), and what that prints has the handle of
//!    every stream that it has made: `Stream { sys: 0x..` (compute/stream.rs:20, `sys` is a pointer). Streams are made by the
//!    thread that asks first and live as long as the server (cubecl-runtime: stream/base.rs, `StreamPool`; stream/event.rs), and a
//!    `StreamId` has the same stream for good (`stream_index`). So where there is one stream only and the caller's has been
//!    asked for, that is the caller's. All launches of the server happen on the device's thread, in the order of submission, on
//!    that stream: what is launched there by that thread is in order with all of them, by the stream's own rule, and so is the
//!    reuse of memory. The crate is pinned to the version whose source this is (`=0.10.0`); with any other text nothing is found.
//! 2. **Events of the whole context** where there are several streams: the library's own stream waits for all that the context
//!    has been given before (`cuCtxRecordEvent`), and all that the context is given later waits for the library's stream
//!    (`cuCtxWaitEvent`; CUDA 12.5). Two waits on the device a product, some microseconds in which it is idle.

use std::collections::HashMap;
use std::ffi::{c_int, c_uint, c_void};
use std::fmt::{self, Write};
use std::ptr::null_mut;

use cubecl::stream_id::StreamId;
use libloading::Library;

use super::cublaslt::functions;

/// A `CUstream`.
pub(crate) type Stream = *mut c_void;

const BEFORE: &[u8] = b"Stream { sys: 0x";

/// Finds the handles in a text that comes piece by piece (megabytes, where compiled kernels are kept) without keeping it.
#[derive(Default)]
struct Handles {
    matched: usize,
    number: Option<usize>,
    found: Vec<usize>,
}

impl Write for Handles {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for &byte in text.as_bytes() {
            if let Some(number) = self.number {
                if let Some(digit) = char::from(byte).to_digit(16) {
                    self.number = Some(number << 4 | digit as usize);
                    continue;
                }
                self.found.push(number);
                self.number = None;
            }
            // No part of the pattern but the whole begins like it: `S` is there once.
            self.matched = if byte == BEFORE[self.matched] { self.matched + 1 } else { usize::from(byte == BEFORE[0]) };
            if self.matched == BEFORE.len() {
                (self.matched, self.number) = (0, Some(0));
            }
        }
        Ok(())
    }
}

/// The server's only stream.
fn only_stream(server: &impl fmt::Debug) -> Option<Stream> {
    let mut handles = Handles::default();
    write!(handles, "{server:?} ").ok()?;
    match handles.found[..] {
        [handle] if handle != 0 => Some(handle as Stream),
        _ => None,
    }
}

functions! {
    /// The part of the driver that is used.
    Driver {
        current = b"cuCtxGetCurrent" (*mut *mut c_void);
        stream = b"cuStreamCreate" (*mut Stream, c_uint);
        event = b"cuEventCreate" (*mut *mut c_void, c_uint);
        record = b"cuEventRecord" (*mut c_void, Stream);
        wait = b"cuStreamWaitEvent" (Stream, *mut c_void, c_uint);
        record_all = b"cuCtxRecordEvent" (*mut c_void, *mut c_void);
        all_wait = b"cuCtxWaitEvent" (*mut c_void, *mut c_void);
    }
}

fn check(what: &str, status: c_int) -> Result<(), String> {
    if status == 0 { Ok(()) } else { Err(format!("CUDA: {what}: error {status}")) }
}

/// A stream of one's own, and what orders it.
pub(crate) struct Events {
    driver: Driver,
    context: *mut c_void,
    stream: Stream,
    before: *mut c_void,
    after: *mut c_void,
}

impl Events {
    fn new() -> Result<Self, String> {
        let names = ["libcuda.so.1", "libcuda.so", "nvcuda.dll"];
        // SAFETY: CubeCL has loaded and initialised the driver already.
        let library = names.iter().find_map(|name| unsafe { Library::new(name) }.ok()).ok_or("no NVIDIA driver")?;
        // SAFETY: the signatures are those of cuda.h.
        let driver = unsafe { Driver::load(library) }.map_err(|e| format!("the NVIDIA driver is older than CUDA 12.5: {e}"))?;
        let (mut context, mut stream, mut before, mut after) = (null_mut(), null_mut(), null_mut(), null_mut());
        // SAFETY: each fills in a handle; the context that is current on the device's thread is CubeCL's. 1: not in step with the
        // legacy stream, 2: no times.
        unsafe {
            check("current context", (driver.current)(&mut context))?;
            check("stream", (driver.stream)(&mut stream, 1))?;
            check("event", (driver.event)(&mut before, 2))?;
            check("event", (driver.event)(&mut after, 2))?;
        }
        Ok(Self { driver, context, stream, before, after })
    }

    /// Launches between all that came before and all that comes after.
    fn between<T>(&self, launch: impl FnOnce(Stream) -> Result<T, String>) -> Result<T, String> {
        let Self { driver, context, stream, before, after } = self;
        // SAFETY: handles of this context, which live as long as the process. An event may be recorded anew at once: a wait that
        // has been given is for what was recorded then.
        unsafe {
            check("event of the context", (driver.record_all)(*context, *before))?;
            check("wait", (driver.wait)(*stream, *before, 0))?;
        }
        let result = launch(*stream);
        // SAFETY: as above.
        unsafe {
            check("event", (driver.record)(*after, *stream))?;
            check("wait of the context", (driver.all_wait)(*context, *after))?;
        }
        result
    }
}

/// Events of the whole context, for a library with streams of its own.
#[cfg(feature = "nccl")]
impl Events {
    /// Records an event after all that the context was given.
    pub(crate) fn record(&self, event: *mut c_void) -> Result<(), String> {
        // SAFETY: handles of this context, which live as long as the process.
        check("event of the context", unsafe { (self.driver.record_all)(self.context, event) })
    }

    /// All that the context is given later waits for an event.
    pub(crate) fn wait(&self, event: *mut c_void) -> Result<(), String> {
        // SAFETY: as above.
        check("wait of the context", unsafe { (self.driver.all_wait)(self.context, event) })
    }
}

/// What stands for CubeCL's work.
#[derive(Clone, Copy)]
pub(crate) enum Way<'a> {
    /// Its stream.
    Stream(Stream),
    /// The whole context.
    Context(&'a Events),
}

/// The ways found so far. Belongs to the device's thread.
#[derive(Default)]
pub(crate) struct Order {
    streams: HashMap<StreamId, Stream>,
    events: Option<Events>,
}

impl Order {
    /// Launches in order with what `id` has given to `server` and will give it. The server must have been asked for something of
    /// `id` before.
    pub(crate) fn launch<T>(
        &mut self,
        server: &impl fmt::Debug,
        id: StreamId,
        launch: impl FnOnce(Stream) -> Result<T, String>,
    ) -> Result<T, String> {
        match self.way(server, id)? {
            Way::Stream(stream) => launch(stream),
            Way::Context(events) => events.between(launch),
        }
    }

    /// What stands for what `id` has given to `server` and will give it. The server must have been asked for something of `id` before.
    pub(crate) fn way(&mut self, server: &impl fmt::Debug, id: StreamId) -> Result<Way<'_>, String> {
        if let Some(stream) = self.streams.get(&id) {
            return Ok(Way::Stream(*stream));
        }
        if self.events.is_none() {
            if let Some(stream) = only_stream(server) {
                self.streams.insert(id, stream);
                return Ok(Way::Stream(stream));
            }
            self.events = Some(Events::new()?);
        }
        self.events.as_ref().map(Way::Context).ok_or_else(|| "no order between streams".into())
    }
}
