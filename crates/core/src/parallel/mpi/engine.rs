//! The thread that owns MPI.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use ::mpi::Threading;
use ::mpi::topology::{Color, Communicator as _, SimpleCommunicator};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::MpiOptions;
use super::ask::{Asking, EVERY};
use super::operation::{Collective, Running, Spare, resized, return_errors};
use crate::parallel::comm::{Buffer, Call, Completer, Completion, Missing, Operation, Reduce};

/// What the thread is asked for.
pub(super) enum Job {
    /// An operation of a group.
    Start(usize, Start),
    /// [`split`](crate::parallel::Communicator::split); answers with the new group, the rank in it, and its size.
    Split { group: usize, color: usize, key: usize, tell: Sender<Result<(usize, usize, usize), String>> },
    /// Which ranks do not answer.
    Ask(Sender<Missing>),
    /// The end, together with all ranks.
    Finish(Sender<()>),
    /// The end of the whole job, now.
    Abort(i32),
}

/// An operation.
pub(super) struct Start {
    pub(super) operation: Operation,
    pub(super) buffer: Buffer,
    pub(super) call: Call,
    pub(super) done: Completer,
}

/// What MPI says when it has started.
pub(super) struct Started {
    pub(super) rank: usize,
    pub(super) size: usize,
    pub(super) library: String,
}

/// How far an operation has come. All of it is collectives of the group, one after the other.
enum Stage {
    /// Ranks compare what they have called.
    Compare,
    /// A broadcast's length.
    Length,
    /// What is to be reduced: of every rank, this rank's part of it or, if it is small, all.
    Collect { whole: bool },
    /// The result, or the parts of a reduction's result.
    Move,
}

/// Up to so many elements every rank gets all of what is to be reduced: one exchange instead of two.
const SMALL: usize = 2048;

struct Active {
    start: Start,
    stage: Stage,
    running: Running,
    began: Instant,
    /// Elements of a result that was made longer on the way; 0: it was not.
    elements: usize,
}

struct Group {
    comm: SimpleCommunicator,
    waiting: VecDeque<Start>,
    active: Option<Active>,
    spare: Spare,
    /// Hash of all that was called.
    history: u64,
    called: u64,
}

/// Kind of operation, type and elements: what has to be the same on all ranks. A broadcast's lengths need not be.
fn described(start: &Start) -> [u64; 3] {
    let reduce = |how| match how {
        Reduce::Sum => 0,
        Reduce::Max => 1,
        Reduce::Min => 2,
    };
    let (operation, elements) = match start.operation {
        Operation::AllReduce(how) => (10 + reduce(how), start.buffer.len()),
        Operation::ReduceScatter(how) => (20 + reduce(how), start.buffer.len()),
        Operation::AllGather => (30, start.buffer.len()),
        Operation::Broadcast { root } => (1000 + root as u64, 0),
        Operation::Barrier => (40, 0),
    };
    let kind = match start.buffer {
        Buffer::F32(_) => 0,
        Buffer::F64(_) => 1,
        Buffer::U16(_) => 2,
        Buffer::Bytes(_) => 3,
    };
    [operation, kind, elements as u64]
}

/// [`described`], in words.
fn in_words([operation, kind, elements]: [u64; 3]) -> String {
    let kind = ["f32", "f64", "16-bit", "bytes"].get(kind as usize).unwrap_or(&"?");
    match operation {
        10..13 => format!("all_reduce of {elements} {kind}"),
        20..23 => format!("reduce_scatter of {elements} {kind}"),
        30 => format!("all_gather of {elements} {kind}"),
        40 => "barrier".into(),
        root => format!("broadcast of {kind} from rank {}", root.saturating_sub(1000)),
    }
}

fn words(numbers: &[u64]) -> Buffer {
    Buffer::Bytes(numbers.iter().flat_map(|n| n.to_le_bytes()).collect())
}

fn numbers(buffer: &Buffer) -> Vec<u64> {
    let Buffer::Bytes(bytes) = buffer else { return Vec::new() };
    bytes.chunks_exact(8).filter_map(|b| Some(u64::from_le_bytes(b.try_into().ok()?))).collect()
}

impl Group {
    fn new(comm: SimpleCommunicator) -> Self {
        return_errors(&comm);
        Self { comm, waiting: VecDeque::new(), active: None, spare: Spare::default(), history: 0, called: 0 }
    }

    /// Goes on as far as it can without waiting. Whether there was anything to go on with.
    fn advance(&mut self, options: &MpiOptions) -> bool {
        let mut moved = false;
        loop {
            let Some(active) = &mut self.active else {
                let Some(start) = self.waiting.pop_front() else { return moved };
                self.begin(start, options);
                moved = true;
                continue;
            };
            match active.running.test() {
                Ok(false) => return moved,
                Ok(true) => self.next_stage(options),
                Err(problem) => self.end(Err(problem)),
            }
            moved = true;
        }
    }

    fn begin(&mut self, start: Start, options: &MpiOptions) {
        let began = Instant::now();
        let own = described(&start);
        let compare = options.check_every > 0 && self.called.is_multiple_of(options.check_every);
        let (stage, running) = if compare {
            (Stage::Compare, self.collective(Collective::Gather, words(&[self.history, own[0], own[1], own[2]]), options))
        } else {
            (Stage::Move, Ok(Running::none()))
        };
        let hashed: Vec<u8> = own.iter().flat_map(|n| n.to_le_bytes()).collect();
        self.history = xxh3_64_with_seed(&hashed, self.history);
        self.called += 1;
        match running {
            Ok(running) => {
                self.active = Some(Active { start, stage, running, began, elements: 0 });
                if !compare {
                    self.enter(options);
                }
            }
            Err(problem) => self.end_of(start, began, Err(problem)),
        }
    }

    fn collective(&mut self, collective: Collective, buffer: Buffer, options: &MpiOptions) -> Result<Running, String> {
        Running::start(&self.comm, collective, buffer, options.most_elements, &mut self.spare)
    }

    /// Starts the operation itself, or what it needs first.
    fn enter(&mut self, options: &MpiOptions) {
        let Some(mut active) = self.active.take() else { return };
        let buffer = std::mem::replace(&mut active.start.buffer, Buffer::empty());
        let (size, len) = (self.comm.size() as usize, buffer.len());
        active.stage = Stage::Move;
        let running = match active.start.operation {
            Operation::Broadcast { root } => {
                active.start.buffer = buffer;
                active.stage = Stage::Length;
                self.collective(Collective::Broadcast(root), words(&[len as u64]), options)
            }
            Operation::AllReduce(_) | Operation::ReduceScatter(_) if !matches!(buffer, Buffer::F32(_) | Buffer::F64(_)) => {
                Err(format!("{} cannot be reduced", buffer.kind()))
            }
            Operation::AllReduce(_) if len <= SMALL => {
                active.stage = Stage::Collect { whole: true };
                self.collective(Collective::Gather, buffer, options)
            }
            Operation::AllReduce(_) => {
                active.elements = len;
                active.stage = Stage::Collect { whole: false };
                self.collective(Collective::Exchange, resized(buffer, len.next_multiple_of(size)), options)
            }
            Operation::ReduceScatter(_) => {
                active.stage = Stage::Collect { whole: true };
                self.collective(Collective::Exchange, buffer, options)
            }
            Operation::AllGather => self.collective(Collective::Gather, buffer, options),
            Operation::Barrier => self.collective(Collective::Barrier, buffer, options),
        };
        self.go_on(active, running);
    }

    fn go_on(&mut self, mut active: Active, running: Result<Running, String>) {
        match running {
            Ok(running) => {
                active.running = running;
                self.active = Some(active);
            }
            Err(problem) => self.end_of(active.start, active.began, Err(problem)),
        }
    }

    /// A stage has ended.
    fn next_stage(&mut self, options: &MpiOptions) {
        let Some(mut active) = self.active.take() else { return };
        let result = std::mem::replace(&mut active.running, Running::none()).finish(&mut self.spare);
        match active.stage {
            Stage::Compare => match self.differs(&numbers(&result)) {
                Some(problem) => self.end_of(active.start, active.began, Err(problem)),
                None => {
                    self.active = Some(active);
                    self.enter(options);
                }
            },
            Stage::Length => {
                let length = numbers(&result).first().map_or(0, |n| *n as usize);
                let buffer = std::mem::replace(&mut active.start.buffer, Buffer::empty());
                active.stage = Stage::Move;
                let Operation::Broadcast { root } = active.start.operation else { return };
                let running = self.collective(Collective::Broadcast(root), resized(buffer, length), options);
                self.go_on(active, running);
            }
            Stage::Collect { whole } => {
                let (Operation::AllReduce(how) | Operation::ReduceScatter(how)) = active.start.operation else { return };
                let reduced = folded(result, self.comm.size() as usize, how);
                if whole {
                    return self.end_of(active.start, active.began, Ok(reduced));
                }
                active.stage = Stage::Move;
                let running = self.collective(Collective::Gather, reduced, options);
                self.go_on(active, running);
            }
            Stage::Move => {
                let result = if active.elements > 0 { resized(result, active.elements) } else { result };
                self.end_of(active.start, active.began, Ok(result));
            }
        }
    }

    /// Whose calls are not this rank's; `all` are history and description of each rank.
    fn differs(&self, all: &[u64]) -> Option<String> {
        let own = all.chunks_exact(4).nth(self.comm.rank() as usize)?;
        let (rank, other) = all.chunks_exact(4).enumerate().find(|(_, other)| *other != own)?;
        let what = |one: &[u64]| in_words([one[1], one[2], one[3]]);
        Some(if other[1..] != own[1..] {
            format!("rank {rank} of the group called {}, this rank {}", what(other), what(own))
        } else {
            format!("rank {rank} of the group has called other operations than this rank before this one")
        })
    }

    fn end(&mut self, result: Result<Buffer, String>) {
        if let Some(Active { start, began, .. }) = self.active.take() {
            self.end_of(start, began, result);
        }
    }

    fn end_of(&mut self, start: Start, began: Instant, result: Result<Buffer, String>) {
        let result = result.map_err(|problem| start.call.error(problem));
        // Nobody waits any more where the rank gave up.
        let _ = start.done.send(Completion { result, began, ended: Instant::now() });
    }

    fn busy(&self) -> bool {
        self.active.is_some() || !self.waiting.is_empty()
    }
}

/// The reduction of `n` equal parts, in the order of ranks: equal inputs give equal bits, here and in the engine of threads.
fn folded(parts: Buffer, n: usize, how: Reduce) -> Buffer {
    fn fold<T: Copy>(mut parts: Vec<T>, n: usize, with: impl Fn(T, T) -> T) -> Vec<T> {
        let len = parts.len() / n;
        let (sum, others) = parts.split_at_mut(len);
        for part in others.chunks_exact(len.max(1)) {
            sum.iter_mut().zip(part).for_each(|(a, b)| *a = with(*a, *b));
        }
        parts.truncate(len);
        // A result is kept until somebody waits for it; what the others sent is not.
        parts.shrink_to_fit();
        parts
    }
    match (parts, how) {
        (Buffer::F32(x), Reduce::Sum) => Buffer::F32(fold(x, n, |a, b| a + b)),
        (Buffer::F32(x), Reduce::Max) => Buffer::F32(fold(x, n, f32::max)),
        (Buffer::F32(x), Reduce::Min) => Buffer::F32(fold(x, n, f32::min)),
        (Buffer::F64(x), Reduce::Sum) => Buffer::F64(fold(x, n, |a, b| a + b)),
        (Buffer::F64(x), Reduce::Max) => Buffer::F64(fold(x, n, f64::max)),
        (Buffer::F64(x), Reduce::Min) => Buffer::F64(fold(x, n, f64::min)),
        (other, _) => other, // refused before it was moved
    }
}

/// A core is given away at once, and slept on after this.
const EAGER: Duration = Duration::from_micros(50);
/// The longest sleep between two looks.
const LONGEST: Duration = Duration::from_micros(200);

pub(super) fn run(options: MpiOptions, jobs: &Receiver<Job>, tell: &Sender<Result<Started, String>>) {
    // This thread alone calls MPI, and it is the one that starts and ends it.
    let Some((universe, granted)) = ::mpi::initialize_with_threading(Threading::Funneled) else {
        let _ = tell.send(Err("it was started before in this process".into()));
        return;
    };
    if granted < Threading::Funneled {
        let _ = tell.send(Err(format!("it has no threads: it grants {granted:?}")));
        return;
    }
    let world = universe.world();
    let library = ::mpi::environment::library_version().unwrap_or_default();
    let library = library.split(['\n', ',', '\0']).next().unwrap_or_default().trim().to_string();
    let _ = tell.send(Ok(Started { rank: world.rank() as usize, size: world.size() as usize, library }));
    // Operations of ours and of anybody else who may use the world never meet.
    let mut groups = vec![Group::new(world.duplicate())];
    let mut asking = Asking::new(world.duplicate());
    let mut last = Instant::now();
    loop {
        let busy = asking.busy() || groups.iter().any(Group::busy);
        let quiet = last.elapsed();
        let job = if !busy {
            // Others may ask whether this rank is still there.
            jobs.recv_timeout(EVERY)
        } else if quiet < EAGER {
            std::thread::yield_now();
            jobs.recv_timeout(Duration::ZERO)
        } else {
            jobs.recv_timeout((quiet / 8).min(LONGEST))
        };
        match job {
            Ok(Job::Start(group, start)) => {
                groups[group].waiting.push_back(start);
                last = Instant::now();
            }
            Ok(Job::Split { group, color, key, tell }) => {
                let comm = groups[group].comm.split_by_color_with_key(Color::with_value(color as i32), key as i32);
                let comm = comm.ok_or_else(|| "MPI made no group".to_string());
                let made = comm.map(|comm| {
                    let (rank, size) = (comm.rank() as usize, comm.size() as usize);
                    groups.push(Group::new(comm));
                    (groups.len() - 1, rank, size)
                });
                let _ = tell.send(made);
            }
            Ok(Job::Ask(tell)) => asking.ask(tell),
            Ok(Job::Finish(tell)) => {
                // Communicators are freed before the end of MPI.
                drop((groups, asking));
                drop(universe);
                let _ = tell.send(());
                return;
            }
            Ok(Job::Abort(code)) => world.abort(code),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                // The process ends without having ended MPI; its launcher then ends the others.
                std::mem::forget((groups, asking, universe));
                return;
            }
        }
        asking.look(groups.iter().any(Group::busy));
        for group in &mut groups {
            if group.advance(&options) {
                last = Instant::now();
            }
        }
    }
}
