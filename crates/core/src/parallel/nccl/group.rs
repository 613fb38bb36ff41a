//! A group of ranks: operations over device memory, and over host memory by way of the device.
//!
//! All operations of a group are launched by the device's thread, in the order in which they were started, on the group's own stream. That
//! order is the program's, the same on all ranks, as NCCL wants it.

use std::any::Any;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::device::Memory;
use super::library::{Collective, Comm, Element, Event, Move, Stream, UniqueId};
use super::meeting::lock;
use super::shared::{Flight, Landing, Shared, State};
use crate::error::{Error, Result};
use crate::parallel::collectives::Watch;
use crate::parallel::comm::{Buffer, Call, Communicator, Missing, Operation, Pending, Reduce, gather_numbers};

/// What a group has called so far.
#[derive(Default)]
struct Progress {
    sequence: u64,
    /// Hash of all that was called.
    history: u64,
}

/// A rank's view of a group.
#[derive(Clone)]
pub struct NcclGroup {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    comm: Comm,
    stream: Stream,
    rank: usize,
    size: usize,
    name: Arc<str>,
    /// The same on all members, and no other group's.
    key: Arc<str>,
    progress: Mutex<Progress>,
    splits: AtomicU64,
}

/// An operation over device memory that was started. Computation gets the memory back, on the device and in order, by [`Started::wait`]
/// or when this is dropped.
pub(super) struct Started {
    group: NcclGroup,
    call: Call,
    state: Arc<State>,
    done: Event,
    asked: Event,
    memories: [Memory; 2],
    /// Keeps others from writing to what is sent.
    lent: Option<Box<dyn Any + Send>>,
    closed: bool,
}

/// What an operation gives and gets, elements, as [`Operation`] has it.
fn sizes(operation: Operation, len: usize, ranks: usize) -> Result<(usize, Move, usize), String> {
    match operation {
        Operation::AllReduce(how) => Ok((len, Move::AllReduce(how), len)),
        Operation::ReduceScatter(how) if len.is_multiple_of(ranks) => Ok((len / ranks, Move::ReduceScatter(how), len / ranks)),
        Operation::ReduceScatter(_) => Err(format!("{len} elements cannot be divided among {ranks} ranks")),
        Operation::AllGather => Ok((len, Move::AllGather, len * ranks)),
        Operation::Broadcast { root } if root < ranks => Ok((len, Move::Broadcast(root), len)),
        Operation::Broadcast { root } => Err(format!("there is no rank {root}")),
        Operation::Barrier => Ok((1, Move::AllReduce(Reduce::Sum), 1)),
    }
}

impl NcclGroup {
    pub(super) fn world(shared: Arc<Shared>, comm: Comm, stream: Stream, ranks: usize) -> Self {
        let rank = shared.rank;
        Self::new(shared, comm, stream, [rank, ranks], "world".into(), "world".into())
    }

    fn new(shared: Arc<Shared>, comm: Comm, stream: Stream, [rank, size]: [usize; 2], name: Arc<str>, key: Arc<str>) -> Self {
        let (progress, splits) = (Mutex::default(), AtomicU64::new(0));
        shared.meeting.note(&key, 0);
        Self { inner: Arc::new(Inner { shared, comm, stream, rank, size, name, key, progress, splits }) }
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.inner.shared
    }

    /// Numbers an operation and tells the others of it now and then. Jobs are given while the guard is held: numbers and jobs have one
    /// order.
    fn begin(&self, operation: Operation, element: Element, len: usize) -> (Call, MutexGuard<'_, Progress>) {
        let Inner { shared, rank: _, name, key, progress, size, .. } = &*self.inner;
        let mut progress = lock(progress);
        let call = Call { rank: shared.rank, operation: operation.name(), sequence: progress.sequence, group: name.clone() };
        let what = match operation {
            Operation::Broadcast { root } => format!("broadcast of {len} {} from rank {root}", element.name()),
            Operation::Barrier => "barrier".into(),
            other => format!("{} of {len} {}", other.name(), element.name()),
        };
        let history = progress.history;
        let every = shared.options.check_every;
        if every > 0 && progress.sequence.is_multiple_of(every) {
            shared.meeting.compare(key, *size, progress.sequence, history, what.clone());
        }
        progress.history = xxh3_64_with_seed(what.as_bytes(), history);
        progress.sequence += 1;
        shared.meeting.note(key, progress.sequence);
        (call, progress)
    }

    /// The error of an operation that cannot be started.
    pub(super) fn refuse(&self, operation: Operation, problem: String) -> Error {
        let Inner { shared, name, progress, .. } = &*self.inner;
        let sequence = lock(progress).sequence;
        Call { rank: shared.rank, operation: operation.name(), sequence, group: name.clone() }.error(problem)
    }

    /// Starts an operation from memory to memory: `len` elements of what this rank gives. `lent` is dropped once computation has its memory back.
    pub(super) fn start_on_device(
        &self,
        operation: Operation,
        (element, len): (Element, usize),
        memories: [Memory; 2],
        lent: Box<dyn Any + Send>,
        watch: Watch,
    ) -> Result<Started> {
        let Inner { shared, comm, stream, size, key, .. } = &*self.inner;
        let (call, _order) = self.begin(operation, element, len);
        if let Some(problem) = shared.problem() {
            return Err(problem.error(&call));
        }
        let (count, kind, _) = sizes(operation, len, *size).map_err(|e| call.error(e))?;
        let events =
            shared.library.bind().and_then(|()| Ok([shared.event()?, shared.event()?, shared.event()?, shared.event()?]));
        let [ready, began, done, asked] = events.map_err(|e| call.error(e.to_string()))?;
        let state = Arc::new(State::default());
        let landing = Landing::Device { asked, ready, bytes: len * element.bytes(), watch };
        shared.fly(Flight::new(call.clone(), key.clone(), state.clone(), [began, done], landing));
        let (of, comm, stream, told, at) = (shared.clone(), *comm, *stream, call.clone(), state.clone());
        let [send, receive] = memories.clone();
        shared.device.submit(Box::new(move |launching| {
            let launched = of.calls(|library| {
                let (send, receive) = (launching.address(&send)?, launching.address(&receive)?);
                let text = |e: super::library::CallFailure| e.to_string();
                // What is sent has been computed once computation has come so far, and not before.
                launching.record(ready)?;
                library.stream_wait(stream, ready).map_err(text)?;
                library.event_record(began, stream).map_err(text)?;
                let collective = Collective { kind, send, receive, count, element };
                // SAFETY: as large as the tensors that they are; the memory is held until computation waits for `done`.
                unsafe { library.launch(collective, comm, stream) }.map_err(text)?;
                library.event_record(done, stream).map_err(text)
            });
            at.set(launched.is_ok());
            if let Err(problem) = launched {
                of.fail(Some(&told), problem);
            }
        }));
        let group = self.clone();
        Ok(Started { group, call, state, done, asked, memories, lent: Some(lent), closed: false })
    }

    /// Starts an operation of host memory.
    fn start_on_host(&self, operation: Operation, buffer: &Buffer) -> Pending {
        let Inner { shared, comm, stream, size, key, .. } = &*self.inner;
        let (element, per) = match buffer {
            Buffer::F32(_) => (Element::F32, 1),
            Buffer::F64(_) => (Element::F64, 1),
            Buffer::U16(_) => (Element::U8, 2),
            Buffer::Bytes(_) => (Element::U8, 1),
        };
        let (call, _order) = self.begin(operation, element, per * buffer.len());
        let failed = |problem: String| Pending::ready(call.clone(), Err(call.error(problem)));
        if let Some(problem) = shared.problem() {
            return Pending::ready(call.clone(), Err(problem.error(&call)));
        }
        let reduces = matches!(operation, Operation::AllReduce(_) | Operation::ReduceScatter(_));
        if reduces && element == Element::U8 {
            return failed(format!("{} cannot be reduced", buffer.kind()));
        }
        let barrier = Buffer::F32(vec![0.0]);
        let (given, element, empty) = match operation {
            Operation::Barrier => (&barrier, Element::F32, Buffer::empty()),
            _ => (buffer, element, buffer.zeros(0)),
        };
        let (count, kind, gets) = match sizes(operation, given.len(), *size) {
            Ok(sizes) => sizes,
            Err(e) => return failed(e),
        };
        let len = if operation == Operation::Barrier { 0 } else { gets };
        if given.is_empty() {
            return Pending::ready(call, Ok(empty));
        }
        let (gives, gets) = (given.bytes(), gets * given.bytes() / given.len());
        let needed = shared
            .library
            .bind()
            .and_then(|()| Ok((shared.block(gives)?, shared.block(gets)?, shared.event()?, shared.event()?)));
        let (give, take, began, done) = match needed {
            Ok(needed) => needed,
            Err(e) => return failed(e.to_string()),
        };
        give.fill(given);
        let (of, at) = (shared.clone(), key.clone());
        let sequence = call.sequence;
        let missing = Box::new(move || match of.problem() {
            Some(problem) => Missing { silent: true, said: problem.text().to_string() },
            None => of.meeting.missing(&at, sequence),
        });
        let (pending, completer) = Pending::new(call.clone(), shared.options.timeout, Some(missing));
        let state = Arc::new(State::default());
        let landing = Landing::Host { give, take, empty, len, done: completer };
        shared.fly(Flight::new(call.clone(), key.clone(), state.clone(), [began, done], landing));
        let (of, comm, stream) = (shared.clone(), *comm, *stream);
        shared.device.submit(Box::new(move |_| {
            let launched = of.calls(|library| {
                let work = || {
                    let (send, receive) = (library.allocate(gives, stream)?, library.allocate(gets, stream)?);
                    let collective = Collective { kind, send, receive, count: count * per, element };
                    // SAFETY: the blocks are kept until `done` is seen, device memory is given back behind the operation on its stream.
                    unsafe {
                        library.copy_in(send, give.address, gives, stream)?;
                        library.event_record(began, stream)?;
                        library.launch(collective, comm, stream)?;
                        library.copy_out(take.address, receive, gets, stream)?;
                    }
                    library.event_record(done, stream)?;
                    library.free(send, stream)?;
                    library.free(receive, stream)
                };
                work().map_err(|e: super::library::CallFailure| e.to_string())
            });
            state.set(launched.is_ok());
            if let Err(problem) = launched {
                of.fail(Some(&call), problem);
            }
        }));
        pending
    }
}

impl Started {
    /// Computation that is launched from now on waits for the operation; the host does not.
    ///
    /// # Errors
    /// [`Error::Communication`] of whatever went wrong up to now.
    pub(super) fn wait(mut self) -> Result<()> {
        self.close(true);
        self.group.shared().problem().map_or(Ok(()), |problem| Err(problem.error(&self.call)))
    }

    fn close(&mut self, asked_for: bool) {
        if std::mem::replace(&mut self.closed, true) {
            return;
        }
        let (of, state, done, asked, call) =
            (self.group.shared().clone(), self.state.clone(), self.done, self.asked, self.call.clone());
        let memories = self.memories.clone();
        self.group.shared().device.submit(Box::new(move |launching| {
            if state.launched() {
                let bound = of.library.bind().map_err(|e| e.to_string());
                let recorded = bound.and_then(|()| if asked_for { launching.record(asked) } else { Ok(()) });
                if let Err(problem) = recorded.and_then(|()| launching.wait(done)) {
                    of.fail(Some(&call), problem);
                }
            }
            state.close(asked_for && state.launched());
            // From here on the memory may be given out anew: whatever is launched later waits for the operation.
            drop(memories);
        }));
        self.lent = None;
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        self.close(false);
    }
}

impl Communicator for NcclGroup {
    fn rank(&self) -> usize {
        self.inner.rank
    }

    fn size(&self) -> usize {
        self.inner.size
    }

    fn start(&self, operation: Operation, buffer: Buffer) -> Pending {
        let Operation::Broadcast { root } = operation else { return self.start_on_host(operation, &buffer) };
        // The others must know how much comes. The length is waited for here: what is started later must come later on every rank.
        let length = Buffer::Bytes((buffer.len() as u64).to_le_bytes().to_vec());
        let pending = self.start_on_host(operation, &length);
        let call = pending.call().clone();
        let length = match pending.wait() {
            Ok(Buffer::Bytes(bytes)) => bytes.try_into().map_or(0, u64::from_le_bytes) as usize,
            Ok(other) => return Pending::ready(call.clone(), Err(Error::internal("broadcast", other.kind()))),
            Err(e) => return Pending::ready(call, Err(e)),
        };
        let own = self.rank() == root;
        self.start_on_host(operation, &if own { buffer } else { buffer.zeros(length) })
    }

    fn split(&self, color: usize, key: usize, name: &str) -> Result<Arc<dyn Communicator>> {
        let Inner { shared, rank, splits, key: parent, .. } = &*self.inner;
        let split = splits.fetch_add(1, Ordering::Relaxed);
        let all = gather_numbers(self, &[color as f64, key as f64])?;
        let mut members: Vec<(usize, usize)> =
            all.iter().enumerate().filter(|(_, one)| one[0] as usize == color).map(|(i, one)| (one[1] as usize, i)).collect();
        members.sort_unstable();
        let own = members
            .iter()
            .position(|(_, i)| i == rank)
            .ok_or_else(|| Error::internal("split", "a rank is not in its own group"))?;
        let first = members[0].1;
        let call = Call { rank: shared.rank, operation: "split", sequence: split, group: self.inner.name.clone() };
        // Of each group the first member says what its communicator begins with.
        let id = match first == *rank {
            true => shared.library.unique_id().map_err(|e| call.error(e.to_string()))?.0.to_vec(),
            false => vec![0; 128],
        };
        let ids = self.all_gather(Buffer::Bytes(id)).wait()?;
        let Buffer::Bytes(ids) = ids else { return Err(Error::internal("split", "ids came back as another type")) };
        let id = ids.get(first * 128..(first + 1) * 128).and_then(|id| id.try_into().ok());
        let id = UniqueId(id.ok_or_else(|| Error::internal("split", "too few ids came back"))?);
        let comm = shared.communicator(members.len(), id, own).map_err(|e| call.error(e))?;
        let stream =
            shared.library.bind().and_then(|()| shared.library.stream_create()).map_err(|e| call.error(e.to_string()))?;
        let key = format!("{parent}/{split}.{color}/{name}").into();
        Ok(Arc::new(Self::new(shared.clone(), comm, stream, [own, members.len()], name.into(), key)))
    }

    fn nccl(&self) -> Option<NcclGroup> {
        Some(self.clone())
    }
}
