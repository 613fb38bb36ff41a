//! Collective operations over host memory. Each **starts** and returns a [`Pending`], so that computation goes on until the result
//! is needed.
//!
//! All ranks of a group start the same operations in the same order; an engine numbers them, and an error names the number.

use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// What an operation moves. Sums and maxima are of `F32` and `F64`; 16-bit floats are gathered as they are (`U16`) and widened to be
/// summed.
#[derive(Clone, Debug, PartialEq)]
pub enum Buffer {
    /// Floats, 32 bits.
    F32(Vec<f32>),
    /// Floats, 64 bits.
    F64(Vec<f64>),
    /// bfloat16 or float16, as bits.
    U16(Vec<u16>),
    /// Anything.
    Bytes(Vec<u8>),
}

impl Buffer {
    /// Nothing: what a barrier moves.
    pub fn empty() -> Self {
        Self::Bytes(Vec::new())
    }

    /// Elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(x) => x.len(),
            Self::F64(x) => x.len(),
            Self::U16(x) => x.len(),
            Self::Bytes(x) => x.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of all elements.
    pub fn bytes(&self) -> usize {
        self.width() * self.len()
    }

    /// Bytes of an element.
    pub(crate) fn width(&self) -> usize {
        match self {
            Self::F32(_) => 4,
            Self::F64(_) => 8,
            Self::U16(_) => 2,
            Self::Bytes(_) => 1,
        }
    }

    /// Elements that it has memory for.
    #[cfg(feature = "mpi")]
    pub(crate) fn capacity(&self) -> usize {
        match self {
            Self::F32(x) => x.capacity(),
            Self::F64(x) => x.capacity(),
            Self::U16(x) => x.capacity(),
            Self::Bytes(x) => x.capacity(),
        }
    }

    /// So many zeros of the same type.
    #[cfg(any(feature = "mpi", feature = "nccl"))]
    pub(crate) fn zeros(&self, len: usize) -> Self {
        match self {
            Self::F32(_) => Self::F32(vec![0.0; len]),
            Self::F64(_) => Self::F64(vec![0.0; len]),
            Self::U16(_) => Self::U16(vec![0; len]),
            Self::Bytes(_) => Self::Bytes(vec![0; len]),
        }
    }

    /// The type's name, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::F32(_) => "f32",
            Self::F64(_) => "f64",
            Self::U16(_) => "16-bit",
            Self::Bytes(_) => "bytes",
        }
    }
}

/// How elements of several ranks become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduce {
    /// Their sum.
    Sum,
    /// The largest.
    Max,
    /// The smallest.
    Min,
}

/// A collective operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Buffers of one length; each rank gets the reduction of all.
    AllReduce(Reduce),
    /// Buffers of one length, a multiple of the number of ranks; rank `r` gets the `r`-th part of their reduction.
    ReduceScatter(Reduce),
    /// Buffers of one length; each rank gets all, in the order of ranks.
    AllGather,
    /// Each rank gets the buffer of `root`. Buffers of the others have its type; their contents and length do not matter.
    Broadcast {
        /// Whose.
        root: usize,
    },
    /// Ends when all ranks have come to it.
    Barrier,
}

impl Operation {
    /// As messages call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::AllReduce(_) => "all_reduce",
            Self::ReduceScatter(_) => "reduce_scatter",
            Self::AllGather => "all_gather",
            Self::Broadcast { .. } => "broadcast",
            Self::Barrier => "barrier",
        }
    }
}

/// Who waits for what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The rank in the whole job.
    pub rank: usize,
    /// The operation's name.
    pub operation: &'static str,
    /// Operations of the group before it.
    pub sequence: u64,
    /// The group's name.
    pub group: Arc<str>,
}

impl Call {
    /// The error of this call.
    pub fn error(&self, problem: impl Into<String>) -> Error {
        let Self { rank, operation, sequence, group } = self.clone();
        Error::Communication {
            rank,
            operation,
            sequence,
            group: group.to_string(),
            problem: problem.into(),
            hint: "look at the ranks named here; --resume goes on from the last checkpoint, at any number of ranks".into(),
        }
    }
}

/// A result with the times in which the engine worked on it.
#[derive(Debug)]
pub struct Completion {
    /// The result.
    pub result: Result<Buffer>,
    /// When all ranks had come and bytes began to move, as far as the engine can tell.
    pub began: Instant,
    /// When the result was there.
    pub ended: Instant,
}

/// What an engine knows of the ranks that have not come to an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// A rank does not answer at all: it is stopped, gone or cut off. One that is slow answers.
    pub silent: bool,
    /// Who, in words.
    pub said: String,
}

/// Asks which ranks have not come to an operation.
pub type Report = Box<dyn Fn() -> Missing + Send + Sync>;

/// The engine's end of a [`Pending`].
pub type Completer = Sender<Completion>;

/// An operation that was started.
pub struct Pending {
    call: Call,
    state: State,
    timeout: Duration,
    /// How long a wait may take while all ranks answer.
    patience: Duration,
    missing: Option<Report>,
}

enum State {
    Ready(Completion),
    Started(Receiver<Completion>),
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pending").field(&self.call).finish()
    }
}

impl Pending {
    /// An operation whose result the engine sends. Waiting ends with an error after `timeout`; `missing` says who has not come.
    pub fn new(call: Call, timeout: Duration, missing: Option<Report>) -> (Self, Completer) {
        let (send, receive) = channel();
        (Self { call, state: State::Started(receive), timeout, patience: timeout, missing }, send)
    }

    /// An operation that has ended.
    pub fn ready(call: Call, result: Result<Buffer>) -> Self {
        let now = Instant::now();
        let (state, none) = (State::Ready(Completion { result, began: now, ended: now }), Duration::ZERO);
        Self { call, state, timeout: none, patience: none, missing: None }
    }

    /// What it is.
    pub fn call(&self) -> &Call {
        &self.call
    }

    /// How long [`Pending::wait`] waits.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The result.
    ///
    /// # Errors
    /// [`Error::Communication`] naming rank, operation and sequence number: the engine's, or none came in time.
    pub fn wait(self) -> Result<Buffer> {
        self.complete().result
    }

    /// [`Pending::wait`] for what takes longer than a step, saving: goes on for so long while all ranks answer. One that does not is an
    /// error as soon as elsewhere.
    ///
    /// # Errors
    /// As there.
    pub fn wait_within(mut self, patience: Duration) -> Result<Buffer> {
        self.patience = patience;
        self.wait()
    }

    /// [`Pending::wait`] with the times.
    pub fn complete(self) -> Completion {
        let Self { call, state, timeout, patience, missing } = self;
        let receive = match state {
            State::Ready(done) => return done,
            State::Started(receive) => receive,
        };
        let asked = Instant::now();
        let problem = loop {
            match receive.recv_timeout(timeout.min(patience.saturating_sub(asked.elapsed()))) {
                Ok(done) => return done,
                Err(RecvTimeoutError::Disconnected) => break "the engine ended".to_string(),
                Err(RecvTimeoutError::Timeout) => {}
            }
            let waited = asked.elapsed();
            let unknown = || Missing { silent: false, said: "a rank hangs, died or is much slower".into() };
            let Missing { silent, said } = missing.as_ref().map_or_else(unknown, |missing| missing());
            if silent || waited >= patience {
                break format!("no result within {:.1} s: {said}", waited.as_secs_f64());
            }
        };
        Completion { result: Err(call.error(problem)), began: asked, ended: Instant::now() }
    }
}

/// A rank's view of a group of ranks. An engine implements [`Communicator::start`] and [`Communicator::split`].
pub trait Communicator: Send + Sync {
    /// This rank, from 0.
    fn rank(&self) -> usize;

    /// Ranks of the group.
    fn size(&self) -> usize;

    /// Starts an operation; it makes progress whether somebody waits or not.
    fn start(&self, operation: Operation, buffer: Buffer) -> Pending;

    /// The group of the ranks that give the same `color`, in the order of `key` (then of rank). Every rank of this group calls it.
    /// `name` is for messages.
    ///
    /// # Errors
    /// [`Error::Communication`].
    fn split(&self, color: usize, key: usize, name: &str) -> Result<Arc<dyn Communicator>>;

    /// The group as NCCL's, which takes tensors where they lie.
    #[cfg(feature = "nccl")]
    fn nccl(&self) -> Option<super::nccl::NcclGroup> {
        None
    }

    /// See [`Operation::AllReduce`].
    fn all_reduce(&self, buffer: Buffer, reduce: Reduce) -> Pending {
        self.start(Operation::AllReduce(reduce), buffer)
    }

    /// See [`Operation::ReduceScatter`].
    fn reduce_scatter(&self, buffer: Buffer, reduce: Reduce) -> Pending {
        self.start(Operation::ReduceScatter(reduce), buffer)
    }

    /// See [`Operation::AllGather`].
    fn all_gather(&self, buffer: Buffer) -> Pending {
        self.start(Operation::AllGather, buffer)
    }

    /// See [`Operation::Broadcast`].
    fn broadcast(&self, buffer: Buffer, root: usize) -> Pending {
        self.start(Operation::Broadcast { root }, buffer)
    }

    /// See [`Operation::Barrier`].
    fn barrier(&self) -> Pending {
        self.start(Operation::Barrier, Buffer::empty())
    }
}

/// Numbers of all ranks, in the order of ranks: whoever adds them up gets the same bits on every rank.
///
/// # Errors
/// [`Error::Communication`].
pub fn gather_numbers(group: &dyn Communicator, own: &[f64]) -> Result<Vec<Vec<f64>>> {
    if group.size() == 1 {
        return Ok(vec![own.to_vec()]);
    }
    match group.all_gather(Buffer::F64(own.to_vec())).wait()? {
        Buffer::F64(all) => Ok(all.chunks_exact(own.len().max(1)).map(<[f64]>::to_vec).collect()),
        other => Err(Error::internal("all_gather", format!("expected f64, got {}", other.kind()))),
    }
}

/// Texts of all ranks, of any lengths, in the order of ranks; waits up to `timeout` where that is given.
///
/// # Errors
/// [`Error::Communication`].
pub fn gather_bytes(group: &dyn Communicator, own: &[u8], timeout: Option<Duration>) -> Result<Vec<Vec<u8>>> {
    if group.size() == 1 {
        return Ok(vec![own.to_vec()]);
    }
    let lengths = group.all_gather(Buffer::F64(vec![own.len() as f64]));
    let lengths = match timeout {
        Some(timeout) => lengths.wait_within(timeout)?,
        None => lengths.wait()?,
    };
    let Buffer::F64(lengths) = lengths else { return Err(Error::internal("all_gather", "lengths came back as another type")) };
    let longest = lengths.iter().fold(0.0, |a: f64, b| a.max(*b)) as usize;
    let mut padded = own.to_vec();
    padded.resize(longest, 0);
    let Buffer::Bytes(all) = group.all_gather(Buffer::Bytes(padded)).wait()? else {
        return Err(Error::internal("all_gather", "bytes came back as another type"));
    };
    Ok(lengths.iter().enumerate().map(|(i, n)| all[i * longest..i * longest + *n as usize].to_vec()).collect())
}
