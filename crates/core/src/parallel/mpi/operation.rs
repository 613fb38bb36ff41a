//! One collective of MPI that is under way, with the memory that MPI reads and writes.

use std::ffi::{c_int, c_void};
use std::ops::Range;

use ::mpi::ffi;
use ::mpi::raw::AsRaw;
use ::mpi::topology::{Communicator as _, SimpleCommunicator};

use crate::parallel::comm::Buffer;

/// Makes MPI return errors instead of ending the process.
pub(super) fn return_errors(comm: &SimpleCommunicator) {
    // SAFETY: a live communicator and a handler of MPI's own. It has no other way to fail than a bad argument.
    unsafe { ffi::MPI_Comm_set_errhandler(comm.as_raw(), ffi::RSMPI_ERRORS_RETURN) };
}

fn checked(code: c_int) -> Result<(), String> {
    if code == ffi::MPI_SUCCESS as c_int {
        return Ok(());
    }
    let mut text = [0; ffi::MPI_MAX_ERROR_STRING as usize];
    let mut length = 0;
    // SAFETY: the buffer is as long as MPI asks for.
    unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr(), &raw mut length) };
    let text: Vec<u8> = text.iter().take(length.max(0) as usize).map(|c| *c as u8).collect();
    Err(format!("MPI: {}", String::from_utf8_lossy(&text).trim()))
}

fn datatype(buffer: &Buffer) -> ffi::MPI_Datatype {
    // SAFETY: constants of the library.
    unsafe {
        match buffer {
            Buffer::F32(_) => ffi::RSMPI_FLOAT,
            Buffer::F64(_) => ffi::RSMPI_DOUBLE,
            Buffer::U16(_) => ffi::RSMPI_UINT16_T,
            Buffer::Bytes(_) => ffi::RSMPI_UINT8_T,
        }
    }
}

/// Address of an element.
fn at(buffer: &mut Buffer, element: usize) -> *mut c_void {
    match buffer {
        Buffer::F32(x) => x[element..].as_mut_ptr().cast(),
        Buffer::F64(x) => x[element..].as_mut_ptr().cast(),
        Buffer::U16(x) => x[element..].as_mut_ptr().cast(),
        Buffer::Bytes(x) => x[element..].as_mut_ptr().cast(),
    }
}

/// Copies a range of elements between buffers of one type.
fn copy(from: &Buffer, range: Range<usize>, to: &mut Buffer, start: usize) {
    let end = start + range.len();
    match (from, to) {
        (Buffer::F32(a), Buffer::F32(b)) => b[start..end].copy_from_slice(&a[range]),
        (Buffer::F64(a), Buffer::F64(b)) => b[start..end].copy_from_slice(&a[range]),
        (Buffer::U16(a), Buffer::U16(b)) => b[start..end].copy_from_slice(&a[range]),
        (Buffer::Bytes(a), Buffer::Bytes(b)) => b[start..end].copy_from_slice(&a[range]),
        _ => {} // the other is made like the one
    }
}

/// What collectives that have ended have sent, as memory for those that come: the allocator maps large blocks anew each time, and new
/// pages cost as much as moving the bytes.
#[derive(Default)]
pub(super) struct Spare(Vec<Buffer>);

/// A group keeps no more, bytes: two buckets of gradients of the default size.
const SPARE: usize = 36 << 20;
/// The allocator keeps smaller blocks itself (the command line's `tune_allocator`).
const LARGE: usize = 12 << 20;

impl Spare {
    /// Takes what is not needed any more.
    pub(super) fn keep(&mut self, buffer: Buffer) {
        let bytes = |of: &Buffer| of.capacity() * of.width();
        if bytes(&buffer) >= LARGE {
            self.0.push(buffer);
        }
        while self.0.iter().map(bytes).sum::<usize>() > SPARE {
            self.0.remove(0);
        }
    }

    /// So many elements of a buffer's type, whatever is in them: of the smallest that has room.
    pub(super) fn take(&mut self, like: &Buffer, len: usize) -> Buffer {
        let room = |kept: &Buffer| if kept.kind() == like.kind() { kept.capacity() } else { 0 };
        let fits = self.0.iter().enumerate().filter(|(_, kept)| room(kept) >= len);
        match fits.min_by_key(|(_, kept)| room(kept)).map(|(at, _)| at) {
            Some(at) if len > 0 => resized(self.0.swap_remove(at), len),
            _ => like.zeros(len),
        }
    }
}

/// The same type with this length.
pub(super) fn resized(buffer: Buffer, length: usize) -> Buffer {
    fn to<T: Clone + Default>(mut of: Vec<T>, length: usize) -> Vec<T> {
        of.resize(length, T::default());
        of
    }
    match buffer {
        Buffer::F32(x) => Buffer::F32(to(x, length)),
        Buffer::F64(x) => Buffer::F64(to(x, length)),
        Buffer::U16(x) => Buffer::U16(to(x, length)),
        Buffer::Bytes(x) => Buffer::Bytes(to(x, length)),
    }
}

/// What MPI is called for. Reductions are not among it: OpenMPI's non-blocking ones send everything through one rank (coll/libnbc),
/// which takes several times as long as [`Collective::Exchange`] and a sum.
#[derive(Clone, Copy, Debug)]
pub(super) enum Collective {
    Barrier,
    /// From a rank; all buffers have one length.
    Broadcast(usize),
    /// Every rank's buffer to every rank.
    Gather,
    /// The n-th of equal parts to rank n.
    Exchange,
}

/// What is too large for one call: this range of every rank's part, side by side.
struct Piece {
    range: Range<usize>,
    side_by_side: Buffer,
}

/// A collective under way. It owns what MPI reads and writes until MPI is done with it.
pub(super) struct Running {
    requests: Vec<ffi::MPI_Request>,
    /// What MPI reads.
    sent: Vec<Buffer>,
    result: Buffer,
    /// What is put into `result` in the end, where a rank's part has this length.
    pieces: Vec<Piece>,
    part: usize,
}

impl Running {
    /// Nothing.
    pub(super) fn none() -> Self {
        Self { requests: Vec::new(), sent: Vec::new(), result: Buffer::empty(), pieces: Vec::new(), part: 0 }
    }

    /// Starts a collective, in as many calls as `most` elements of all ranks a call make it.
    pub(super) fn start(
        comm: &SimpleCommunicator,
        collective: Collective,
        buffer: Buffer,
        most: usize,
        spare: &mut Spare,
    ) -> Result<Self, String> {
        let (size, len) = (comm.size() as usize, buffer.len());
        let mut running = Self::none();
        let each = (most / size).clamp(1, i32::MAX as usize);
        match collective {
            Collective::Barrier => running.call(|request| {
                // SAFETY: a live communicator; the request is waited for before it is dropped.
                unsafe { ffi::MPI_Ibarrier(comm.as_raw(), request) }
            })?,
            Collective::Broadcast(root) => {
                if root >= size {
                    return Err(format!("there is no rank {root}"));
                }
                running.result = buffer;
                for range in ranges(len, each) {
                    let kind = datatype(&running.result);
                    let here = at(&mut running.result, range.start);
                    running.call(|request| {
                        // SAFETY: the range lies in `result`, which lives and is not touched until the request has ended.
                        unsafe { ffi::MPI_Ibcast(here, range.len() as c_int, kind, root as c_int, comm.as_raw(), request) }
                    })?;
                }
            }
            Collective::Gather => {
                running.result = spare.take(&buffer, size * len);
                running.part = len;
                running.sent.push(buffer);
                for range in ranges(len, each) {
                    let (kind, n) = (datatype(&running.result), range.len() as c_int);
                    let from = at(&mut running.sent[0], range.start);
                    let to = running.receive(range, size);
                    running.call(|request| {
                        // SAFETY: the range lies in `sent`, and `to` has room for that of every rank; both live and are not touched
                        // until the request has ended.
                        unsafe { ffi::MPI_Iallgather(from, n, kind, to, n, kind, comm.as_raw(), request) }
                    })?;
                }
            }
            Collective::Exchange => {
                let part = len / size;
                if part * size != len {
                    return Err(format!("{len} elements cannot be divided among {size} ranks"));
                }
                running.result = spare.take(&buffer, len);
                running.part = part;
                if part <= each {
                    running.sent.push(buffer);
                } else {
                    for range in ranges(part, each) {
                        let mut sent = buffer.zeros(size * range.len());
                        for rank in 0..size {
                            copy(&buffer, rank * part + range.start..rank * part + range.end, &mut sent, rank * range.len());
                        }
                        running.sent.push(sent);
                    }
                }
                for (i, range) in ranges(part, each).enumerate() {
                    let (kind, n) = (datatype(&running.result), range.len() as c_int);
                    let from = at(&mut running.sent[i], 0);
                    let to = running.receive(range, size);
                    running.call(|request| {
                        // SAFETY: `sent` has this range of every rank's part, and `to` has room for as much; both live and are not
                        // touched until the request has ended.
                        unsafe { ffi::MPI_Ialltoall(from, n, kind, to, n, kind, comm.as_raw(), request) }
                    })?;
                }
            }
        }
        Ok(running)
    }

    /// Where a range of every rank's part is received: in the result, if it is all there is, else in memory of its own, which stays
    /// where it is when the list of pieces grows.
    fn receive(&mut self, range: Range<usize>, size: usize) -> *mut c_void {
        if range.len() == self.part {
            return at(&mut self.result, 0);
        }
        let mut side_by_side = self.result.zeros(size * range.len());
        let to = at(&mut side_by_side, 0);
        self.pieces.push(Piece { range, side_by_side });
        to
    }

    fn call(&mut self, start: impl FnOnce(*mut ffi::MPI_Request) -> c_int) -> Result<(), String> {
        // SAFETY: a constant of the library.
        let mut request = unsafe { ffi::RSMPI_REQUEST_NULL };
        checked(start(&raw mut request))?;
        self.requests.push(request);
        Ok(())
    }

    /// Whether it has ended; makes MPI go on with it.
    pub(super) fn test(&mut self) -> Result<bool, String> {
        if self.requests.is_empty() {
            return Ok(true);
        }
        let mut ended = 0;
        // SAFETY: requests that have started and were not waited for yet.
        let code = unsafe {
            let n = self.requests.len() as c_int;
            ffi::MPI_Testall(n, self.requests.as_mut_ptr(), &raw mut ended, ffi::RSMPI_STATUSES_IGNORE)
        };
        checked(code)?;
        if ended != 0 {
            self.requests.clear();
        }
        Ok(ended != 0)
    }

    /// The result, once it has ended.
    pub(super) fn finish(mut self, spare: &mut Spare) -> Buffer {
        let mut result = std::mem::replace(&mut self.result, Buffer::empty());
        self.sent.drain(..).for_each(|sent| spare.keep(sent));
        for Piece { range, side_by_side } in &self.pieces {
            let ranks = side_by_side.len() / range.len().max(1);
            for rank in 0..ranks {
                copy(side_by_side, rank * range.len()..(rank + 1) * range.len(), &mut result, rank * self.part + range.start);
            }
        }
        result
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.requests.is_empty() {
            // MPI may still write: the memory is never given back. The job is about to end.
            std::mem::forget(std::mem::replace(&mut self.result, Buffer::empty()));
            std::mem::forget(std::mem::take(&mut self.sent));
            std::mem::forget(std::mem::take(&mut self.pieces));
        }
    }
}

/// `0..len` in ranges of at most `most`. Nothing has none: the address of no elements is one that means something else to MPI.
fn ranges(len: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
    (0..len).step_by(most).map(move |start| start..(start + most).min(len))
}
