//! What all groups of a process share: the library, what is under way, and what went wrong.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use super::NcclOptions;
use super::device::LaunchDevice;
use super::library::{Called, Comm, Event, Library, UniqueId};
use super::meeting::{Meeting, lock};
use super::staging::Block;
use crate::error::{Error, Result};
use crate::parallel::collectives::Watch;
use crate::parallel::comm::{Buffer, Call, Completer, Completion};

/// How far the launching thread is with an operation.
#[derive(Debug, Default)]
pub(super) struct State {
    stage: AtomicU8,
    closed: AtomicU8,
}

const LAUNCHED: u8 = 1;
const FAILED: u8 = 2;
const DROPPED: u8 = 1;
const WAITED: u8 = 2;

impl State {
    pub(super) fn set(&self, launched: bool) {
        self.stage.store(if launched { LAUNCHED } else { FAILED }, Ordering::Release);
    }

    /// All of its events are recorded.
    pub(super) fn launched(&self) -> bool {
        self.stage.load(Ordering::Acquire) == LAUNCHED
    }

    pub(super) fn failed(&self) -> bool {
        self.stage.load(Ordering::Acquire) == FAILED
    }

    /// Computation has been made to wait for it: its memory is computation's again. `timed`: with an event before that.
    pub(super) fn close(&self, timed: bool) {
        self.closed.store(if timed { WAITED } else { DROPPED }, Ordering::Release);
    }

    pub(super) fn closed(&self) -> bool {
        self.closed.load(Ordering::Acquire) > 0
    }

    /// The event where computation began to wait is recorded.
    pub(super) fn timed(&self) -> bool {
        self.closed.load(Ordering::Acquire) == WAITED
    }
}

/// What becomes of an operation's result.
pub(super) enum Landing {
    /// It is in device memory, and is nobody's business here but for what it took.
    Device {
        /// Recorded where computation began to wait.
        asked: Event,
        ready: Event,
        bytes: usize,
        watch: Watch,
    },
    /// It comes to the host.
    Host { give: Block, take: Block, empty: Buffer, len: usize, done: Completer },
}

/// An operation that was started.
pub(super) struct Flight {
    pub(super) call: Call,
    pub(super) group: Arc<str>,
    pub(super) issued: Instant,
    pub(super) state: Arc<State>,
    pub(super) began: Event,
    pub(super) done: Event,
    pub(super) landing: Landing,
    /// Its events were seen done.
    pub(super) ended: bool,
}

impl Flight {
    /// Under way from now on, between two events.
    pub(super) fn new(call: Call, group: Arc<str>, state: Arc<State>, [began, done]: [Event; 2], landing: Landing) -> Self {
        Self { call, group, issued: Instant::now(), state, began, done, landing, ended: false }
    }
}

/// Why nothing more is done.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    /// The operation that it befell, where it was one.
    call: Option<Call>,
    text: String,
}

impl Problem {
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// With the operation that it befell.
    pub(super) fn said(&self) -> String {
        match &self.call {
            Some(call) => format!("{} number {} of the group `{}`: {}", call.operation, call.sequence, call.group, self.text),
            None => self.text.clone(),
        }
    }

    /// As the error of a call: the one that it befell, else the one that found it.
    pub(super) fn error(&self, found: &Call) -> Error {
        self.call.as_ref().unwrap_or(found).error(self.text.clone())
    }
}

pub(super) struct Shared {
    pub(super) library: Arc<dyn Library>,
    pub(super) device: Arc<dyn LaunchDevice>,
    pub(super) options: NcclOptions,
    pub(super) rank: usize,
    pub(super) meeting: Meeting,
    problem: Mutex<Option<Problem>>,
    pub(super) comms: Mutex<Vec<Comm>>,
    pub(super) flights: Mutex<Vec<Flight>>,
    /// Something is under way, or went wrong, or the end has come.
    pub(super) news: Condvar,
    events: Mutex<Vec<Event>>,
    pub(super) blocks: Mutex<Vec<Block>>,
    /// A call of NCCL's is being made.
    calling: AtomicBool,
    pub(super) closing: AtomicBool,
}

impl Shared {
    pub(super) fn new(
        library: Arc<dyn Library>,
        device: Arc<dyn LaunchDevice>,
        options: NcclOptions,
        rank: usize,
        meeting: Meeting,
    ) -> Self {
        Self {
            library,
            device,
            options,
            rank,
            meeting,
            problem: Mutex::default(),
            comms: Mutex::default(),
            flights: Mutex::default(),
            news: Condvar::new(),
            events: Mutex::default(),
            blocks: Mutex::default(),
            calling: AtomicBool::new(false),
            closing: AtomicBool::new(false),
        }
    }

    pub(super) fn problem(&self) -> Option<Problem> {
        lock(&self.problem).clone()
    }

    /// Nothing more is done; the first reason stands.
    pub(super) fn fail(&self, call: Option<&Call>, text: impl Into<String>) {
        lock(&self.problem).get_or_insert_with(|| Problem { call: call.cloned(), text: text.into() });
        self.news.notify_all();
    }

    /// Tells whoever waits that nothing comes.
    pub(super) fn let_go(&self, problem: &Problem) {
        for flight in std::mem::take(&mut *lock(&self.flights)) {
            if let Landing::Host { done, .. } = flight.landing {
                let now = Instant::now();
                let _ = done.send(Completion { result: Err(problem.error(&flight.call)), began: now, ended: now });
            }
        }
    }

    /// Something is under way. What comes after the end of everything is let go at once.
    pub(super) fn fly(&self, flight: Flight) {
        lock(&self.flights).push(flight);
        if let Some(problem) = self.problem() {
            self.let_go(&problem);
        }
        self.news.notify_all();
    }

    /// Calls of the launching thread, unless something went wrong before.
    pub(super) fn calls(&self, make: impl FnOnce(&dyn Library) -> Result<(), String>) -> Result<(), String> {
        self.calling.store(true, Ordering::SeqCst);
        let result = if lock(&self.problem).is_some() {
            Err("given up: something went wrong before".into())
        } else {
            self.library.bind().map_err(|e| e.to_string()).and_then(|()| make(self.library.as_ref()))
        };
        self.calling.store(false, Ordering::SeqCst);
        result
    }

    /// Ends what is under way, of all communicators. A call that is being made may itself wait for other ranks; it is given time to
    /// return, since NCCL frees what it uses.
    pub(super) fn abort(&self) {
        let until = Instant::now() + Duration::from_secs(1);
        while self.calling.load(Ordering::SeqCst) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        for comm in std::mem::take(&mut *lock(&self.comms)) {
            if let Err(e) = self.library.comm_abort(comm) {
                log::warn!("{e}");
            }
        }
    }

    /// An event that nobody waits for.
    pub(super) fn event(&self) -> Called<Event> {
        let kept = lock(&self.events).pop();
        kept.map_or_else(|| self.library.event_create(), Ok)
    }

    /// An event may be recorded anew at once: a wait that was given is for what was recorded then.
    pub(super) fn give_back(&self, events: impl IntoIterator<Item = Event>) {
        lock(&self.events).extend(events);
    }

    /// A communicator of so many ranks, all of which call this.
    ///
    /// # Errors
    /// What NCCL says, or that not all came within the timeout.
    pub(super) fn communicator(self: &Arc<Self>, ranks: usize, id: UniqueId, rank: usize) -> Result<Comm, String> {
        let (tell, told) = channel();
        let library = self.library.clone();
        let make = move || {
            let _ = tell.send(library.bind().and_then(|()| library.comm_init_rank(ranks, id, rank)));
        };
        // NCCL waits for the others for ever: on a thread that is left behind then.
        std::thread::Builder::new().name("nccl".into()).spawn(make).map_err(|e| e.to_string())?;
        let until = Instant::now() + self.options.timeout;
        loop {
            match told.recv_timeout(Duration::from_millis(20)) {
                Ok(made) => {
                    let comm = made.map_err(|e| e.to_string())?;
                    lock(&self.comms).push(comm);
                    return Ok(comm);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err("its thread ended".into()),
            }
            if let Some(why) = self.meeting.ended() {
                return Err(why);
            }
            if Instant::now() > until {
                return Err(format!("no communicator of {ranks} ranks within {:.0} s", self.options.timeout.as_secs_f64()));
            }
        }
    }
}
