//! The engine of processes: MPI (OpenMPI or MPICH, through the crate `mpi`).
//!
//! OpenMPI makes progress only inside calls of it. So one thread of a process owns all of MPI, from its start to its end, and the
//! others send it jobs and wait for results ([`Pending`]). It starts non-blocking collectives and asks after them, sleeping in
//! between: a blocking call would spin on a core that computes. Without a job it looks 20 times a second whether another rank asks if
//! this one is still there.
//!
//! A group's operations run one after the other; those of several groups (`tp`, `dp`) at the same time.

mod ask;
mod engine;
mod operation;

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use self::engine::{Job, Start};
use super::comm::{Buffer, Call, Communicator, Missing, Operation, Pending};
use crate::error::{Error, Result};

/// How the engine behaves.
#[derive(Clone, Copy, Debug)]
pub struct MpiOptions {
    /// How long a rank waits for a result before it ends the job.
    pub timeout: Duration,
    /// Before every so many operations of a group its ranks compare what each has called since; 0: never.
    pub check_every: u64,
    /// Most elements, of all ranks, that one call of MPI moves. Its counts are 32 bits, and libraries add them up in as many.
    pub most_elements: usize,
}

impl Default for MpiOptions {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(300), check_every: 64, most_elements: 1 << 28 }
    }
}

/// MPI of this process, started once. A process that is done calls [`Mpi::finish`]; dropped without, as by an error or a panic, it
/// ends the whole job.
pub struct Mpi {
    jobs: Sender<Job>,
    world: Arc<MpiComm>,
    library: String,
    timeout: Duration,
    finished: bool,
}

/// How long the engine has to end the job.
const ABORT: Duration = Duration::from_secs(10);

impl Mpi {
    /// Starts MPI.
    ///
    /// # Errors
    /// [`Error::Engine`] if it does not start or was started before.
    pub fn start(options: MpiOptions) -> Result<Self> {
        let (jobs, received) = channel();
        let (tell, told) = channel();
        let work = move || engine::run(options, &received, &tell);
        std::thread::Builder::new().name("mpi".into()).spawn(work).map_err(Error::io("start", "a thread"))?;
        let fail = |problem: String| {
            let hint = "is the launcher of the same MPI as the one that recua was built with?".to_string();
            Error::Engine { what: "MPI", problem, hint }
        };
        let answer: std::result::Result<engine::Started, String> = told.recv().map_err(|_| fail("its thread ended".into()))?;
        let started = answer.map_err(fail)?;
        let group = Group { id: 0, rank: started.rank, world_rank: started.rank, size: started.size, name: "world".into() };
        let world = Arc::new(MpiComm { jobs: jobs.clone(), timeout: options.timeout, group, sequence: Mutex::new(0) });
        Ok(Self { jobs, world, library: started.library, timeout: options.timeout, finished: false })
    }

    /// All ranks.
    pub fn world(&self) -> Arc<dyn Communicator> {
        self.world.clone()
    }

    /// The library's own words.
    pub fn library(&self) -> &str {
        &self.library
    }

    /// Ends MPI: every rank calls it, with nothing under way.
    ///
    /// # Errors
    /// [`Error::Engine`] if the others do not come to it in time.
    pub fn finish(mut self) -> Result<()> {
        let (tell, told) = channel();
        let _ = self.jobs.send(Job::Finish(tell));
        match told.recv_timeout(self.timeout) {
            Ok(()) => {
                self.finished = true;
                Ok(())
            }
            Err(e) => {
                let problem = match e {
                    RecvTimeoutError::Timeout => {
                        format!("not all ranks came to the end within {:.0} s", self.timeout.as_secs_f64())
                    }
                    RecvTimeoutError::Disconnected => "its thread ended".into(),
                };
                Err(Error::Engine { what: "MPI", problem, hint: "the ranks' own messages say why".into() })
            }
        }
    }
}

impl Mpi {
    /// Ends the whole job, every rank of it, with this exit code.
    pub fn abort(mut self, code: i32) {
        self.end(code);
    }

    fn end(&mut self, code: i32) {
        self.finished = true;
        let _ = self.jobs.send(Job::Abort(code));
        // The process ends in there. Where MPI itself hangs, the caller ends it, and its launcher sees that.
        std::thread::sleep(ABORT);
    }
}

impl Drop for Mpi {
    fn drop(&mut self) {
        if !self.finished {
            self.end(1);
        }
    }
}

/// A group of ranks, seen by one.
#[derive(Clone)]
struct Group {
    id: usize,
    rank: usize,
    world_rank: usize,
    size: usize,
    name: Arc<str>,
}

struct MpiComm {
    jobs: Sender<Job>,
    timeout: Duration,
    group: Group,
    /// Operations so far.
    sequence: Mutex<u64>,
}

impl Communicator for MpiComm {
    fn rank(&self) -> usize {
        self.group.rank
    }

    fn size(&self) -> usize {
        self.group.size
    }

    fn start(&self, operation: Operation, buffer: Buffer) -> Pending {
        // Numbers and jobs in one order.
        let mut next = self.sequence.lock().unwrap_or_else(PoisonError::into_inner);
        let sequence = *next;
        *next += 1;
        let call = Call { rank: self.group.world_rank, operation: operation.name(), sequence, group: self.group.name.clone() };
        let jobs = self.jobs.clone();
        let who = move || {
            let (tell, told) = channel();
            let _ = jobs.send(Job::Ask(tell));
            let unknown = |_| Missing { silent: true, said: "MPI does not answer".into() };
            told.recv_timeout(2 * ask::PATIENCE).unwrap_or_else(unknown)
        };
        let (pending, done) = Pending::new(call.clone(), self.timeout, Some(Box::new(who)));
        // Where the thread has ended, so has the channel of the result.
        let _ = self.jobs.send(Job::Start(self.group.id, Start { operation, buffer, call, done }));
        pending
    }

    fn split(&self, color: usize, key: usize, name: &str) -> Result<Arc<dyn Communicator>> {
        let (tell, told) = channel();
        let _ = self.jobs.send(Job::Split { group: self.group.id, color, key, tell });
        let sequence = *self.sequence.lock().unwrap_or_else(PoisonError::into_inner);
        let call = Call { rank: self.group.world_rank, operation: "split", sequence, group: self.group.name.clone() };
        let answer = told.recv_timeout(self.timeout);
        let late = format!("not all ranks came to it within {:.0} s", self.timeout.as_secs_f64());
        let (id, rank, size) = answer.map_err(|_| call.error(late))?.map_err(|problem| call.error(problem))?;
        let group = Group { id, rank, size, name: name.into(), world_rank: self.group.world_rank };
        Ok(Arc::new(Self { jobs: self.jobs.clone(), timeout: self.timeout, group, sequence: Mutex::new(0) }))
    }
}
