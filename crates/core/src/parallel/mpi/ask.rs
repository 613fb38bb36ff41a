//! Who hangs? A rank whose time is up asks all others. Their MPI threads answer, whatever else the ranks do, and say whether they have
//! an operation under way. A rank that does not answer is stopped, is gone, or stands behind a broken link.

use std::ffi::c_int;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use ::mpi::ffi;
use ::mpi::raw::AsRaw;
use ::mpi::topology::{Communicator as _, SimpleCommunicator};

use crate::parallel::comm::Missing;

const QUESTION: c_int = 1;
const ANSWER: c_int = 2;

/// How often a rank looks for questions.
pub(super) const EVERY: Duration = Duration::from_millis(50);
/// How long an answer may take.
pub(super) const PATIENCE: Duration = Duration::from_millis(1500);

/// What a question says, and the answer of a rank without an operation under way: it computes, reads or writes. Static, since nobody
/// waits for the end of a send.
static AT_WORK: u8 = 0;
/// The answer of a rank with an operation under way.
static WAITS: u8 = 1;

/// Questions and answers on a communicator of their own.
pub(super) struct Asking {
    comm: SimpleCommunicator,
    looked: Instant,
    asked: Option<Asked>,
}

struct Asked {
    at: Instant,
    /// Of each rank, what it answered.
    answered: Vec<Option<u8>>,
    tell: Vec<Sender<Missing>>,
}

impl Asking {
    pub(super) fn new(comm: SimpleCommunicator) -> Self {
        super::operation::return_errors(&comm);
        Self { comm, looked: Instant::now(), asked: None }
    }

    /// Asks all ranks.
    pub(super) fn ask(&mut self, tell: Sender<Missing>) {
        if let Some(asked) = &mut self.asked {
            asked.tell.push(tell);
            return;
        }
        let own = self.comm.rank();
        let answered = (0..self.comm.size()).map(|rank| (rank == own).then_some(WAITS)).collect();
        (0..self.comm.size()).filter(|rank| *rank != own).for_each(|rank| self.send(rank, QUESTION, &AT_WORK));
        self.asked = Some(Asked { at: Instant::now(), answered, tell: vec![tell] });
    }

    /// Whether an answer is waited for.
    pub(super) fn busy(&self) -> bool {
        self.asked.is_some()
    }

    /// Answers questions and takes answers, now and then; this rank may have an operation under way.
    pub(super) fn look(&mut self, under_way: bool) {
        if self.looked.elapsed() < EVERY {
            return;
        }
        self.looked = Instant::now();
        while let Some((rank, _)) = self.receive(QUESTION) {
            self.send(rank, ANSWER, if under_way { &WAITS } else { &AT_WORK });
        }
        while let Some((rank, answer)) = self.receive(ANSWER) {
            if let Some(asked) = &mut self.asked {
                asked.answered[rank as usize] = Some(answer);
            }
        }
        let Some(asked) = self.asked.take_if(|a| a.answered.iter().all(Option::is_some) || a.at.elapsed() > PATIENCE) else {
            return;
        };
        let of = |answer: Option<u8>| {
            let ranks = asked.answered.iter().enumerate().filter(|(_, answered)| **answered == answer);
            ranks.map(|(rank, _)| rank.to_string()).collect::<Vec<_>>().join(", ")
        };
        let (silent, at_work) = (of(None), of(Some(AT_WORK)));
        let said = if !silent.is_empty() {
            format!("no answer from rank {silent}: stopped, gone or cut off")
        } else if !at_work.is_empty() {
            format!("rank {at_work} has not come to it, and answers: it computes, reads or writes")
        } else {
            "every rank waits for some collective, not all for this one".to_string()
        };
        let missing = Missing { silent: !silent.is_empty(), said };
        for tell in asked.tell {
            let _ = tell.send(missing.clone());
        }
    }

    fn send(&self, rank: c_int, tag: c_int, what: &'static u8) {
        // SAFETY: a byte that lives for ever; the request is given back to MPI. What cannot be sent is not answered.
        unsafe {
            let mut request = ffi::RSMPI_REQUEST_NULL;
            let byte = std::ptr::from_ref(what).cast();
            let code = ffi::MPI_Isend(byte, 1, ffi::RSMPI_UINT8_T, rank, tag, self.comm.as_raw(), &raw mut request);
            if code == ffi::MPI_SUCCESS as c_int {
                ffi::MPI_Request_free(&raw mut request);
            }
        }
    }

    /// Takes a message that has come: who sent it, and what it says.
    fn receive(&self, tag: c_int) -> Option<(c_int, u8)> {
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
            (code == ffi::MPI_SUCCESS as c_int).then_some((rank, byte))
        }
    }
}
