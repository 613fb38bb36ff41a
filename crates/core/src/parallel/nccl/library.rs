//! What is used of NCCL and of CUDA's driver, as a table that a test can fill with its own.

use std::fmt;

use crate::parallel::comm::Reduce;

/// A CUDA stream (`CUstream`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stream(pub usize);

/// A CUDA event (`CUevent`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Event(pub usize);

/// A communicator (`ncclComm_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Comm(pub usize);

/// What the ranks of a communicator share before they have one (`ncclUniqueId`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UniqueId(pub [u8; 128]);

/// Types of elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    /// Bytes: gathered and broadcast, never reduced.
    U8,
    /// float16.
    F16,
    /// bfloat16.
    BF16,
    /// float32.
    F32,
    /// float64.
    F64,
}

impl Element {
    /// Bytes of one.
    pub fn bytes(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::F16 | Self::BF16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }

    /// As messages call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::U8 => "bytes",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::F32 => "f32",
            Self::F64 => "f64",
        }
    }
}

/// A collective operation on device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// `ncclAllReduce`; send and receive may be the same memory.
    AllReduce(Reduce),
    /// `ncclReduceScatter`.
    ReduceScatter(Reduce),
    /// `ncclAllGather`.
    AllGather,
    /// `ncclBroadcast` from this rank of the communicator.
    Broadcast(usize),
}

/// [`Move`] of what, from where to where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Collective {
    /// Which.
    pub kind: Move,
    /// Address of what this rank gives.
    pub send: u64,
    /// Address of what it gets.
    pub receive: u64,
    /// Elements as NCCL counts them: of what each rank gives, but of what each gets for [`Move::ReduceScatter`].
    pub count: usize,
    /// Their type.
    pub element: Element,
}

/// A call that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallFailure {
    /// The function.
    pub call: &'static str,
    /// What it gave.
    pub code: i32,
    /// In words.
    pub meaning: String,
}

impl fmt::Display for CallFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { call, code, meaning } = self;
        write!(f, "{call}: {meaning} ({code})")
    }
}

/// `ncclResult_t` by name, with what it mostly means. `None`: success.
pub fn nccl_failure(call: &'static str, code: i32) -> Option<CallFailure> {
    let meaning = match code {
        0 => return None,
        1 => "ncclUnhandledCudaError: a call of CUDA failed",
        2 => "ncclSystemError: a call of the system failed (sockets, shared memory; NCCL_DEBUG=WARN says which)",
        3 => "ncclInternalError: a fault of NCCL, or memory was overwritten",
        4 => "ncclInvalidArgument: an argument is invalid",
        5 => "ncclInvalidUsage: the call does not fit NCCL's state (two ranks on one device, for one)",
        6 => "ncclRemoteError: another rank's process ended, or the network failed",
        7 => "ncclInProgress: it is not finished",
        8 => "ncclTimeout: it took too long",
        _ => "unknown",
    };
    Some(CallFailure { call, code, meaning: meaning.into() })
}

/// The result of a call.
pub type Called<T> = std::result::Result<T, CallFailure>;

/// NCCL and the driver, on one device. Of each call that can wait for other ranks it is said; no other does.
///
/// Streams work in the order in which they were given; two streams are in no order but by events.
pub trait Library: Send + Sync {
    /// What it is: `NCCL 2.27.3`.
    fn describe(&self) -> String;

    /// Makes the device's context the calling thread's.
    fn bind(&self) -> Called<()>;

    /// `ncclGetUniqueId`
    fn unique_id(&self) -> Called<UniqueId>;
    /// `ncclCommInitRank`; waits for all ranks.
    fn comm_init_rank(&self, ranks: usize, id: UniqueId, rank: usize) -> Called<Comm>;
    /// `ncclCommGetAsyncError`: what befell operations that were launched.
    fn comm_async_error(&self, comm: Comm) -> Called<()>;
    /// `ncclCommAbort`: operations that are under way end, with whatever they have.
    fn comm_abort(&self, comm: Comm) -> Called<()>;
    /// `ncclCommDestroy`, with nothing under way.
    fn comm_destroy(&self, comm: Comm) -> Called<()>;
    /// Launches an operation on a stream. The first ones of a communicator may wait for all ranks.
    ///
    /// # Safety
    /// The addresses are of device memory as large as the operation says, which stays until the stream has come past it.
    unsafe fn launch(&self, collective: Collective, comm: Comm, stream: Stream) -> Called<()>;

    /// `cuStreamCreate`, in no order with the legacy stream.
    fn stream_create(&self) -> Called<Stream>;
    /// `cuStreamWaitEvent`: what the stream is given later waits for what was before the event when it was last recorded.
    fn stream_wait(&self, stream: Stream, event: Event) -> Called<()>;
    /// `cuEventCreate`, with times.
    fn event_create(&self) -> Called<Event>;
    /// `cuEventRecord`: the event is after all that the stream was given.
    fn event_record(&self, event: Event, stream: Stream) -> Called<()>;
    /// `cuEventQuery`: whether the stream has come to it.
    fn event_done(&self, event: Event) -> Called<bool>;
    /// `cuEventElapsedTime` in seconds, of two events that the streams have come to; negative where `to` was first.
    fn elapsed(&self, from: Event, to: Event) -> Called<f64>;

    /// `cuMemAllocAsync`: memory of the device in the order of a stream.
    fn allocate(&self, bytes: usize, stream: Stream) -> Called<u64>;
    /// `cuMemFreeAsync`, in the order of a stream.
    fn free(&self, address: u64, stream: Stream) -> Called<()>;
    /// `cuMemHostAlloc`: memory of the host from which and to which copies run beside everything else.
    fn allocate_host(&self, bytes: usize) -> Called<usize>;
    /// `cuMemcpyHtoDAsync`
    ///
    /// # Safety
    /// Both sides are that large and stay until the stream has come past it.
    unsafe fn copy_in(&self, to: u64, from: usize, bytes: usize, stream: Stream) -> Called<()>;
    /// `cuMemcpyDtoHAsync`
    ///
    /// # Safety
    /// As there.
    unsafe fn copy_out(&self, to: usize, from: u64, bytes: usize, stream: Stream) -> Called<()>;
}
