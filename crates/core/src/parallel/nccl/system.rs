//! The real library: NCCL as it is found, and the driver that CubeCL has loaded.
//!
//! The types are those of `cudarc`, as is the driver. NCCL's functions are looked up here: cudarc looks for `libnccl.so` and
//! `libnccl.so.{9..13}`, while the library is `libnccl.so.2` wherever its development files are not installed (NVIDIA's packages, pip's
//! `nvidia-nccl-cu13`), and it panics where it finds none.

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::sync::OnceLock;

use cudarc::driver::{DriverError, result as driver, sys as cuda};
use cudarc::nccl::sys::{ncclComm_t, ncclDataType_t, ncclRedOp_t, ncclUniqueId};

use super::library::{CallFailure, Called, Collective, Comm, Element, Event, Library, Move, Stream, UniqueId, nccl_failure};
use crate::error::{Error, Result};
use crate::parallel::comm::Reduce;

type Handle = *mut c_void;

/// Declares the functions, and how they are found in the library, which then stays loaded.
macro_rules! functions {
    ($($field:ident = $symbol:literal ($($argument:ty),*);)*) => {
        struct Api {
            $($field: unsafe extern "C" fn($($argument),*) -> c_int,)*
        }

        impl Api {
            /// # Safety
            /// The library is NCCL.
            unsafe fn load(library: libloading::Library) -> std::result::Result<Self, String> {
                let found = Self {
                    // SAFETY: the signatures are those of nccl.h.
                    $($field: unsafe { *library.get($symbol).map_err(|e| e.to_string())? },)*
                };
                std::mem::forget(library); // the pointers stay valid
                Ok(found)
            }
        }
    };
}

functions! {
    version = b"ncclGetVersion" (*mut c_int);
    unique_id = b"ncclGetUniqueId" (*mut ncclUniqueId);
    init = b"ncclCommInitRank" (*mut ncclComm_t, c_int, ncclUniqueId, c_int);
    async_error = b"ncclCommGetAsyncError" (ncclComm_t, *mut c_int);
    abort = b"ncclCommAbort" (ncclComm_t);
    destroy = b"ncclCommDestroy" (ncclComm_t);
    all_reduce = b"ncclAllReduce" (*const c_void, Handle, usize, c_int, c_int, ncclComm_t, Handle);
    reduce_scatter = b"ncclReduceScatter" (*const c_void, Handle, usize, c_int, c_int, ncclComm_t, Handle);
    all_gather = b"ncclAllGather" (*const c_void, Handle, usize, c_int, ncclComm_t, Handle);
    broadcast = b"ncclBroadcast" (*const c_void, Handle, usize, c_int, c_int, ncclComm_t, Handle);
}

const NAMES: [&str; 3] = ["libnccl.so.2", "libnccl.so", "nccl64_2.dll"];
/// The first with all that is used, bfloat16 among it.
const OLDEST: c_int = 21000;

/// The library and its version.
fn api() -> std::result::Result<&'static (Api, c_int), String> {
    static API: OnceLock<std::result::Result<(Api, c_int), String>> = OnceLock::new();
    let load = || {
        // SAFETY: loading NVIDIA's library runs its initialisers, which have no preconditions.
        let library = NAMES.iter().find_map(|name| unsafe { libloading::Library::new(name) }.ok());
        let library = library.ok_or("libnccl.so.2 is not found")?;
        // SAFETY: it is NCCL.
        let api = unsafe { Api::load(library) }.map_err(|e| format!("libnccl lacks a function: {e}"))?;
        let mut version = 0;
        // SAFETY: fills in the number.
        let code = unsafe { (api.version)(&mut version) };
        match nccl_failure("ncclGetVersion", code) {
            Some(e) => Err(e.to_string()),
            None if version < OLDEST => Err(format!("it is NCCL {}, and 2.10 is needed", words(version))),
            None => Ok((api, version)),
        }
    };
    API.get_or_init(load).as_ref().map_err(Clone::clone)
}

/// 22703 is 2.27.3, and 2804 was 2.8.4.
fn words(version: c_int) -> String {
    let (major, minor, patch) = match version {
        n if n < 10_000 => (n / 1000, n / 100 % 10, n % 100),
        n => (n / 10_000, n / 100 % 100, n % 100),
    };
    format!("{major}.{minor}.{patch}")
}

/// What is missing to use NCCL.
pub(super) fn missing() -> Option<String> {
    api().err()
}

/// NCCL on one device.
pub(super) struct System {
    api: &'static Api,
    version: c_int,
    context: cuda::CUcontext,
}

// SAFETY: the context is the process's, and both libraries may be called by any thread.
unsafe impl Send for System {}
// SAFETY: as above.
unsafe impl Sync for System {}

impl System {
    /// On a device of this number, whose driver is known to be there.
    pub(super) fn load(index: usize) -> Result<Self> {
        let fail = |problem: String, hint: &str| Error::Engine { what: "NCCL", problem, hint: hint.into() };
        let get =
            "install NVIDIA's NCCL (Debian and Ubuntu: libnccl2; pip: nvidia-nccl-cu13) and put its folder on LD_LIBRARY_PATH";
        let (api, version) = api().map_err(|e| fail(e, get))?;
        let context = || {
            driver::init()?;
            let device = driver::device::get(index as c_int)?;
            // SAFETY: a device of the driver's; kept for the process's life, as CubeCL keeps it.
            unsafe { driver::primary_ctx::retain(device) }
        };
        let context = context().map_err(|e| fail(failure("cuDevicePrimaryCtxRetain", e).to_string(), "look at nvidia-smi"))?;
        Ok(Self { api, version: *version, context })
    }
}

fn failure(call: &'static str, e: DriverError) -> CallFailure {
    CallFailure { call, code: e.0 as i32, meaning: format!("{e}") }
}

fn check(call: &'static str, code: c_int) -> Called<()> {
    nccl_failure(call, code).map_or(Ok(()), Err)
}

/// NCCL's own numbers.
pub(super) fn data_type(element: Element) -> ncclDataType_t {
    match element {
        Element::U8 => ncclDataType_t::ncclUint8,
        Element::F16 => ncclDataType_t::ncclFloat16,
        Element::BF16 => ncclDataType_t::ncclBfloat16,
        Element::F32 => ncclDataType_t::ncclFloat32,
        Element::F64 => ncclDataType_t::ncclFloat64,
    }
}

fn reduction(how: Reduce) -> ncclRedOp_t {
    match how {
        Reduce::Sum => ncclRedOp_t::ncclSum,
        Reduce::Max => ncclRedOp_t::ncclMax,
        Reduce::Min => ncclRedOp_t::ncclMin,
    }
}

fn stream(of: Stream) -> cuda::CUstream {
    of.0 as cuda::CUstream
}

fn event(of: Event) -> cuda::CUevent {
    of.0 as cuda::CUevent
}

fn comm(of: Comm) -> ncclComm_t {
    of.0 as ncclComm_t
}

impl Library for System {
    fn describe(&self) -> String {
        format!("NCCL {}", words(self.version))
    }

    fn bind(&self) -> Called<()> {
        // SAFETY: a context that is never released.
        unsafe { driver::ctx::set_current(self.context) }.map_err(|e| failure("cuCtxSetCurrent", e))
    }

    fn unique_id(&self) -> Called<UniqueId> {
        let mut id = MaybeUninit::<ncclUniqueId>::uninit();
        // SAFETY: fills in the bytes.
        check("ncclGetUniqueId", unsafe { (self.api.unique_id)(id.as_mut_ptr()) })?;
        // SAFETY: it did.
        let id = unsafe { id.assume_init() };
        Ok(UniqueId(id.internal.map(|byte| byte as u8)))
    }

    fn comm_init_rank(&self, ranks: usize, id: UniqueId, rank: usize) -> Called<Comm> {
        let (mut made, id) = (std::ptr::null_mut(), ncclUniqueId { internal: id.0.map(|byte| byte as std::ffi::c_char) });
        // SAFETY: fills in the handle.
        check("ncclCommInitRank", unsafe { (self.api.init)(&mut made, ranks as c_int, id, rank as c_int) })?;
        Ok(Comm(made as usize))
    }

    fn comm_async_error(&self, of: Comm) -> Called<()> {
        let mut code = 0;
        // SAFETY: a communicator that is there; fills in the number.
        check("ncclCommGetAsyncError", unsafe { (self.api.async_error)(comm(of), &mut code) })?;
        check("an operation of NCCL's", code)
    }

    fn comm_abort(&self, of: Comm) -> Called<()> {
        // SAFETY: a communicator that is there, and is used no more after this.
        check("ncclCommAbort", unsafe { (self.api.abort)(comm(of)) })
    }

    fn comm_destroy(&self, of: Comm) -> Called<()> {
        // SAFETY: as above.
        check("ncclCommDestroy", unsafe { (self.api.destroy)(comm(of)) })
    }

    unsafe fn launch(&self, c: Collective, of: Comm, on: Stream) -> Called<()> {
        let (send, receive, element) = (c.send as *const c_void, c.receive as Handle, data_type(c.element) as c_int);
        let (of, on) = (comm(of), stream(on).cast::<c_void>());
        // SAFETY: as the caller says.
        unsafe {
            match c.kind {
                Move::AllReduce(how) => {
                    let how = reduction(how) as c_int;
                    check("ncclAllReduce", (self.api.all_reduce)(send, receive, c.count, element, how, of, on))
                }
                Move::ReduceScatter(how) => {
                    let how = reduction(how) as c_int;
                    check("ncclReduceScatter", (self.api.reduce_scatter)(send, receive, c.count, element, how, of, on))
                }
                Move::AllGather => check("ncclAllGather", (self.api.all_gather)(send, receive, c.count, element, of, on)),
                Move::Broadcast(root) => {
                    check("ncclBroadcast", (self.api.broadcast)(send, receive, c.count, element, root as c_int, of, on))
                }
            }
        }
    }

    fn stream_create(&self) -> Called<Stream> {
        let made = driver::stream::create(driver::stream::StreamKind::NonBlocking);
        made.map(|stream| Stream(stream as usize)).map_err(|e| failure("cuStreamCreate", e))
    }

    fn stream_wait(&self, on: Stream, until: Event) -> Called<()> {
        // SAFETY: both live as long as the process.
        let waits =
            unsafe { driver::stream::wait_event(stream(on), event(until), cuda::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT) };
        waits.map_err(|e| failure("cuStreamWaitEvent", e))
    }

    fn event_create(&self) -> Called<Event> {
        let made = driver::event::create(cuda::CUevent_flags::CU_EVENT_DEFAULT);
        made.map(|event| Event(event as usize)).map_err(|e| failure("cuEventCreate", e))
    }

    fn event_record(&self, of: Event, on: Stream) -> Called<()> {
        // SAFETY: both live as long as the process.
        unsafe { driver::event::record(event(of), stream(on)) }.map_err(|e| failure("cuEventRecord", e))
    }

    fn event_done(&self, of: Event) -> Called<bool> {
        // SAFETY: it lives as long as the process.
        match unsafe { driver::event::query(event(of)) } {
            Ok(()) => Ok(true),
            Err(DriverError(cuda::CUresult::CUDA_ERROR_NOT_READY)) => Ok(false),
            Err(e) => Err(failure("cuEventQuery", e)),
        }
    }

    fn elapsed(&self, from: Event, to: Event) -> Called<f64> {
        // SAFETY: both live as long as the process.
        let ms = unsafe { driver::event::elapsed(event(from), event(to)) };
        ms.map(|ms| f64::from(ms) * 1e-3).map_err(|e| failure("cuEventElapsedTime", e))
    }

    fn allocate(&self, bytes: usize, on: Stream) -> Called<u64> {
        // SAFETY: whoever asked writes it before it is read.
        unsafe { driver::malloc_async(stream(on), bytes) }.map_err(|e| failure("cuMemAllocAsync", e))
    }

    fn free(&self, address: u64, on: Stream) -> Called<()> {
        // SAFETY: allocated by `allocate`, and given back once.
        unsafe { driver::free_async(address, stream(on)) }.map_err(|e| failure("cuMemFreeAsync", e))
    }

    fn allocate_host(&self, bytes: usize) -> Called<usize> {
        // SAFETY: kept for the process's life.
        let made = unsafe { driver::malloc_host(bytes, 0) };
        made.map(|pointer| pointer as usize).map_err(|e| failure("cuMemHostAlloc", e))
    }

    unsafe fn copy_in(&self, to: u64, from: usize, bytes: usize, on: Stream) -> Called<()> {
        // SAFETY: as the caller says.
        let copies = unsafe { cuda::cuMemcpyHtoDAsync_v2(to, from as *const c_void, bytes, stream(on)).result() };
        copies.map_err(|e| failure("cuMemcpyHtoDAsync", e))
    }

    unsafe fn copy_out(&self, to: usize, from: u64, bytes: usize, on: Stream) -> Called<()> {
        // SAFETY: as the caller says.
        let copies = unsafe { cuda::cuMemcpyDtoHAsync_v2(to as *mut c_void, from, bytes, stream(on)).result() };
        copies.map_err(|e| failure("cuMemcpyDtoHAsync", e))
    }
}
