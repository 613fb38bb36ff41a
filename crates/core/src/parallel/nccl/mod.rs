//! The engine of CUDA devices: NCCL, one process a device, tensors where they lie.
//!
//! **Streams.** Each group has a CUDA stream of its own. An operation on tensors is launched by the thread that launches CubeCL's kernels,
//! in order with them: an event is recorded on CubeCL's stream, NCCL's waits for it, the operation is launched, an event is recorded behind
//! it; where computation needs the result, CubeCL's stream waits for that. The host waits for nothing. Until then the memory of both sides is
//! held, also where nobody waits.
//!
//! **Host values** (norms, flags, names of files) go the same way through a piece of device memory and pinned memory: a [`Communicator`] as
//! any other.
//!
//! **Order.** NCCL wants the operations of a group in one order on all ranks, and never tells where that is not so. All of a rank's are
//! launched by one thread in the order in which the program starts them.
//!
//! **Failure.** NCCL waits for a rank that is gone for ever. A thread looks at what is under way: past the timeout, or when NCCL or
//! another rank reports something, it aborts the communicators, and every call from then on gives the reason. Ranks keep a connection to the
//! first one beside NCCL: who is gone is known at once, who hangs is found by asking, and now and then the first one compares what
//! all have called.
//!
//! **The library** is loaded when it is first asked for (`libnccl.so.2`), with the types of `cudarc`'s bindings; what is missing is an
//! error. Communicators are blocking ones: of NCCL's non-blocking ones every launch starts a thread, and what they are for, an end of
//! calls that wait, is had by an abort from the thread that looks after them.

mod cuda;
mod device;
mod group;
mod hub;
mod library;
mod meeting;
mod message;
mod shared;
mod staging;
mod system;
mod tensors;
mod watch;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use self::device::{DeviceTensors, Landing, LaunchDevice, LaunchJob, Launching, Memory};
pub use self::group::NcclGroup;
pub use self::library::{CallFailure, Called, Collective, Comm, Element, Event, Library, Move, Stream, UniqueId, nccl_failure};
pub use self::tensors::OnDevice;

use self::meeting::{Meeting, lock};
use self::shared::Shared;
use self::system::System;
use self::watch::Clock;
use super::comm::Communicator;
use super::launch::Launched;
use crate::backend::DeviceContext;
use crate::error::{Error, Result};

/// How the engine behaves.
#[derive(Clone, Copy, Debug)]
pub struct NcclOptions {
    /// How long a rank waits for the others before it ends the job.
    pub timeout: Duration,
    /// Before every so many operations of a group its ranks compare what each has called since; 0: never.
    pub check_every: u64,
}

impl Default for NcclOptions {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(300), check_every: 64 }
    }
}

/// A rank, and where it meets the others.
#[derive(Clone, Debug)]
pub struct Place {
    /// From 0.
    pub rank: usize,
    /// Ranks in all.
    pub ranks: usize,
    /// Machine and port of the first one.
    pub meeting: Option<(String, u16)>,
}

impl Place {
    /// Of a rank that a launcher has started.
    pub fn of(launched: &Launched) -> Self {
        Self { rank: launched.rank, ranks: launched.world, meeting: launched.meeting.clone() }
    }

    /// Of a rank that is alone.
    pub fn alone() -> Self {
        Self { rank: 0, ranks: 1, meeting: None }
    }
}

/// NCCL of this process. A process that is done calls [`Nccl::finish`]; dropped without, as by an error or a panic, it ends the whole job.
pub struct Nccl {
    shared: Arc<Shared>,
    world: NcclGroup,
    watcher: Option<JoinHandle<()>>,
    finished: bool,
}

/// What is missing to use NCCL here, if anything.
pub fn missing() -> Option<String> {
    system::missing()
}

impl Nccl {
    /// Starts NCCL on a CUDA device that was opened.
    ///
    /// # Errors
    /// [`Error::Engine`] if the library is missing, the ranks do not meet, or NCCL does not start.
    pub fn start(context: &DeviceContext, place: Place, options: NcclOptions) -> Result<Self> {
        let index = context.cuda_index().ok_or_else(|| {
            let problem = format!("it moves tensors of CUDA devices, and the backend is {}", context.name());
            Error::Engine { what: "NCCL", problem, hint: "take --backend cuda".into() }
        })?;
        let library = Arc::new(System::load(index)?);
        let device = Arc::new(cuda::NcclDevice::new(index, library.clone())) as Arc<dyn LaunchDevice>;
        Self::start_on(library, device, place, options)
    }

    /// Starts any library on any device.
    ///
    /// # Errors
    /// As [`Nccl::start`].
    pub fn start_on(
        library: Arc<dyn Library>,
        device: Arc<dyn LaunchDevice>,
        place: Place,
        options: NcclOptions,
    ) -> Result<Self> {
        let Place { rank, ranks, meeting } = place;
        let fail = |problem: String| {
            let hint = "NCCL_DEBUG=WARN makes NCCL say more; NCCL_SOCKET_IFNAME names the network".to_string();
            Error::Engine { what: "NCCL", problem: format!("rank {rank}: {problem}"), hint }
        };
        let make = || library.unique_id().map_err(|e| fail(e.to_string()));
        let (meeting, id) = Meeting::join(rank, ranks, meeting.as_ref(), options.timeout, make)?;
        let shared = Arc::new(Shared::new(library.clone(), device, options, rank, meeting));
        let begin = || {
            let comm = shared.communicator(ranks, id, rank)?;
            let made = library.bind().and_then(|()| {
                let (stream, event) = (library.stream_create()?, library.event_create()?);
                library.event_record(event, stream)?;
                Ok((stream, event))
            });
            let (stream, event) = made.map_err(|e| e.to_string())?;
            // When that was on the device: soon, since nothing stands before it.
            let until = Instant::now() + options.timeout;
            while !library.event_done(event).map_err(|e| e.to_string())? {
                if Instant::now() > until {
                    return Err("the device does not answer".into());
                }
                std::thread::yield_now();
            }
            Ok((comm, stream, Clock { event, at: Instant::now() }))
        };
        let (comm, stream, clock) = begin().map_err(|problem: String| {
            // The others would wait for this rank.
            shared.meeting.end(&format!("rank {rank}: {problem}"));
            fail(problem)
        })?;
        let own = shared.clone();
        let watcher = std::thread::Builder::new().name("nccl".into()).spawn(move || watch::run(own, clock));
        let watcher = Some(watcher.map_err(Error::io("start", "a thread"))?);
        let world = NcclGroup::world(shared.clone(), comm, stream, ranks);
        Ok(Self { shared, world, watcher, finished: false })
    }

    /// All ranks.
    pub fn world(&self) -> Arc<dyn Communicator> {
        Arc::new(self.world.clone())
    }

    /// The world's group itself.
    pub fn group(&self) -> NcclGroup {
        self.world.clone()
    }

    /// The library's name and version.
    pub fn library(&self) -> String {
        self.shared.library.describe()
    }

    /// Ends NCCL: every rank calls it, with nothing under way.
    ///
    /// # Errors
    /// [`Error::Communication`] if the others do not come to it in time; [`Error::Engine`].
    pub fn finish(mut self) -> Result<()> {
        self.world.barrier().wait()?;
        self.shared.meeting.leave();
        self.shared.closing.store(true, Ordering::Release);
        self.shared.news.notify_all();
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join();
        }
        self.finished = true;
        let destroy = || {
            self.shared.library.bind()?;
            std::mem::take(&mut *lock(&self.shared.comms)).into_iter().try_for_each(|comm| self.shared.library.comm_destroy(comm))
        };
        destroy().map_err(|e| Error::Engine {
            what: "NCCL",
            problem: e.to_string(),
            hint: "all results are there all the same".into(),
        })
    }

    /// Ends the job on all ranks, with a reason. The process then ends itself: what it had under way is garbage.
    pub fn abort(mut self, why: &str) {
        self.end(why);
    }

    fn end(&mut self, why: &str) {
        self.finished = true;
        self.shared.fail(None, why);
        if let Some(watcher) = self.watcher.take() {
            let _ = watcher.join();
        }
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        if !self.finished {
            self.end("it ended without a word");
        }
    }
}
