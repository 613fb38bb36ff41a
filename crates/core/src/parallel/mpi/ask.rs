//! Who hangs? A rank whose time is up asks all others; those that wait for a collective answer, since their MPI threads look
//! around. A rank that does not answer computes, is stopped, is gone, or stands behind a broken link.

use std::ffi::c_int;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use ::mpi::ffi;
use ::mpi::raw::AsRaw;
use ::mpi::topology::{Communicator as _, SimpleCommunicator};

const QUESTION: c_int = 1;
const ANSWER: c_int = 2;

/// How often a rank that waits looks for questions.
const EVERY: Duration = Duration::from_millis(50);
/// How long an answer may take.
pub(super) const PATIENCE: Duration = Duration::from_millis(1500);

/// What every question and answer says: nothing. Static, since nobody waits for the end of a send.
static NOTHING: u8 = 0;

/// Questions and answers on a communicator of their own.
pub(super) struct Asking {
    comm: SimpleCommunicator,
    looked: Instant,
    asked: Option<Asked>,
}

struct Asked {
    at: Instant,
    answered: Vec<bool>,
    tell: Vec<Sender<String>>,
}

impl Asking {
    pub(super) fn new(comm: SimpleCommunicator) -> Self {
        super::operation::return_errors(&comm);
        Self { comm, looked: Instant::now(), asked: None }
    }

    /// Asks all ranks.
    pub(super) fn ask(&mut self, tell: Sender<String>) {
        if let Some(asked) = &mut self.asked {
            asked.tell.push(tell);
            return;
        }
        let own = self.comm.rank();
        let answered = (0..self.comm.size()).map(|rank| rank == own).collect();
        (0..self.comm.size()).filter(|rank| *rank != own).for_each(|rank| self.send(rank, QUESTION));
        self.asked = Some(Asked { at: Instant::now(), answered, tell: vec![tell] });
    }

    /// Whether an answer is waited for.
    pub(super) fn busy(&self) -> bool {
        self.asked.is_some()
    }

    /// Answers questions and takes answers, now and then.
    pub(super) fn look(&mut self) {
        if self.looked.elapsed() < EVERY {
            return;
        }
        self.looked = Instant::now();
        while let Some(rank) = self.receive(QUESTION) {
            self.send(rank, ANSWER);
        }
        while let Some(rank) = self.receive(ANSWER) {
            if let Some(asked) = &mut self.asked {
                asked.answered[rank as usize] = true;
            }
        }
        let Some(asked) = self.asked.take_if(|a| a.answered.iter().all(|a| *a) || a.at.elapsed() > PATIENCE) else { return };
        let silent = asked.answered.iter().enumerate().filter(|(_, answered)| !**answered);
        let silent: Vec<_> = silent.map(|(rank, _)| rank.to_string()).collect();
        let said = if silent.is_empty() {
            "every rank waits for some collective, not all for this one".to_string()
        } else {
            format!("no answer from rank {}: stopped, gone, cut off, or still computing", silent.join(", "))
        };
        for tell in asked.tell {
            let _ = tell.send(said.clone());
        }
    }

    fn send(&self, rank: c_int, tag: c_int) {
        // SAFETY: a byte that lives for ever; the request is given back to MPI. What cannot be sent is not answered.
        unsafe {
            let mut request = ffi::RSMPI_REQUEST_NULL;
            let byte = (&raw const NOTHING).cast();
            let code = ffi::MPI_Isend(byte, 1, ffi::RSMPI_UINT8_T, rank, tag, self.comm.as_raw(), &raw mut request);
            if code == ffi::MPI_SUCCESS as c_int {
                ffi::MPI_Request_free(&raw mut request);
            }
        }
    }

    /// Takes a message that has come; who sent it.
    fn receive(&self, tag: c_int) -> Option<c_int> {
        // SAFETY: the status is written before it is read, and a message of one byte is received into a byte.
        unsafe {
            let (mut there, mut status, mut byte) = (0, std::mem::zeroed::<ffi::MPI_Status>(), 0u8);
            let code = ffi::MPI_Iprobe(ffi::RSMPI_ANY_SOURCE, tag, self.comm.as_raw(), &raw mut there, &raw mut status);
            if code != ffi::MPI_SUCCESS as c_int || there == 0 {
                return None;
            }
            let (rank, to) = (status.MPI_SOURCE, (&raw mut byte).cast());
            let kind = ffi::RSMPI_UINT8_T;
            let code = ffi::MPI_Recv(to, 1, kind, rank, tag, self.comm.as_raw(), &raw mut status);
            (code == ffi::MPI_SUCCESS as c_int).then_some(rank)
        }
    }
}
