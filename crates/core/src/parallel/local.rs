//! The engine without a network: ranks are threads of one process, a group's operations meet in a hub. Reductions add in the order of ranks, so equal
//! inputs give equal bits. For tests of everything above it: a link of any speed can be put under it, and a rank can die or hang.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::comm::{Buffer, Call, Communicator, Completer, Completion, Missing, Operation, Pending, Reduce};
use crate::error::{Error, Result};

/// The time that operations take on the way, beside that of moving memory.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// Of each operation.
    pub latency: Duration,
    /// Of what crosses it: of `S` bytes on `n` ranks `2 (n - 1) / n * S` for an all-reduce, half for its two halves.
    pub bytes_per_s: f64,
}

/// How an in-process world behaves.
#[derive(Clone, Copy, Debug)]
pub struct LocalOptions {
    /// How long a rank waits for a result.
    pub timeout: Duration,
    /// The link under it; `None`: memory alone.
    pub link: Option<Link>,
}

impl Default for LocalOptions {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(60), link: None }
    }
}

/// What can befall a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It is gone; the others are told.
    Dead,
    /// It starts operations that never end; nobody is told.
    Hung,
}

const WELL: u8 = 0;
const DEAD: u8 = 1;
const HUNG: u8 = 2;

/// How often a thread that waits looks at the failures.
const LOOK: Duration = Duration::from_millis(20);

/// What came to one operation of a group.
#[derive(Default)]
struct Round {
    came: Vec<Option<(Operation, Buffer)>>,
    all: Option<Arc<Vec<(Operation, Buffer)>>>,
    took: usize,
}

/// Where a group's ranks meet.
struct Hub {
    name: Arc<str>,
    /// Ranks in the world.
    members: Vec<usize>,
    rounds: Mutex<HashMap<u64, Round>>,
    news: Condvar,
}

/// Nobody panics while holding a lock here, and what is in it is whole at all times.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    fn new(name: Arc<str>, members: Vec<usize>) -> Arc<Self> {
        Arc::new(Self { name, members, rounds: Mutex::default(), news: Condvar::new() })
    }

    /// A rank that is a thread of this process never is silent: one that died is known without being asked.
    fn missing(&self, sequence: u64) -> Missing {
        let rounds = lock(&self.rounds);
        let Some(round) = rounds.get(&sequence) else {
            return Missing { silent: false, said: "no rank has come to it".into() };
        };
        let late: Vec<String> =
            self.members.iter().zip(&round.came).filter(|(_, came)| came.is_none()).map(|(rank, _)| rank.to_string()).collect();
        Missing { silent: false, said: format!("missing: rank {}", late.join(", ")) }
    }

    /// Brings this member's buffer and waits for all.
    fn meet(
        &self,
        world: &Shared,
        member: usize,
        sequence: u64,
        operation: Operation,
        buffer: Buffer,
    ) -> Result<Arc<Vec<(Operation, Buffer)>>, String> {
        let size = self.members.len();
        let mut rounds = lock(&self.rounds);
        let round = rounds.entry(sequence).or_default();
        round.came.resize_with(size, || None);
        round.came[member] = Some((operation, buffer));
        if round.came.iter().all(Option::is_some) {
            round.all = Some(Arc::new(round.came.iter_mut().filter_map(Option::take).collect()));
            self.news.notify_all();
        }
        loop {
            let round = rounds.get_mut(&sequence).ok_or("the round is gone")?;
            if let Some(all) = round.all.clone() {
                round.took += 1;
                if round.took == size {
                    rounds.remove(&sequence);
                }
                return Ok(all);
            }
            let dead = |(rank, came): (&usize, &Option<_>)| {
                (came.is_none() && world.failures[*rank].load(Ordering::Relaxed) == DEAD).then_some(*rank)
            };
            if let Some(rank) = self.members.iter().zip(&round.came).find_map(dead) {
                return Err(format!("rank {rank} died"));
            }
            if world.closed.load(Ordering::Relaxed) != 0 {
                return Err("the world was closed".into());
            }
            rounds = self.news.wait_timeout(rounds, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

struct Shared {
    options: LocalOptions,
    failures: Vec<AtomicU8>,
    closed: AtomicU8,
    /// Groups by parent, split of the parent, and color.
    groups: Mutex<HashMap<(usize, u64, usize), Arc<Hub>>>,
}

/// Ranks of one process.
pub struct LocalWorld {
    shared: Arc<Shared>,
    hub: Arc<Hub>,
}

impl LocalWorld {
    /// A world of `size` ranks.
    pub fn new(size: usize, options: LocalOptions) -> Self {
        let failures = (0..size).map(|_| AtomicU8::new(WELL)).collect();
        let shared = Shared { options, failures, closed: AtomicU8::new(0), groups: Mutex::default() };
        Self { shared: Arc::new(shared), hub: Hub::new("world".into(), (0..size).collect()) }
    }

    /// A rank's communicator; each is taken once.
    ///
    /// # Errors
    /// [`Error::Io`] if no thread can be started.
    pub fn rank(&self, rank: usize) -> Result<Arc<dyn Communicator>> {
        LocalComm::start(self.shared.clone(), self.hub.clone(), rank)
    }

    /// A rank dies or hangs from now on.
    pub fn fail(&self, rank: usize, failure: Failure) {
        let to = match failure {
            Failure::Dead => DEAD,
            Failure::Hung => HUNG,
        };
        self.shared.failures[rank].store(to, Ordering::Relaxed);
    }
}

impl Drop for LocalWorld {
    fn drop(&mut self) {
        self.shared.closed.store(1, Ordering::Relaxed);
    }
}

struct Job {
    sequence: u64,
    operation: Operation,
    buffer: Buffer,
    call: Call,
    done: Completer,
}

/// A member of a group. Its operations are worked on by a thread of their own, one after the other.
struct LocalComm {
    shared: Arc<Shared>,
    hub: Arc<Hub>,
    member: usize,
    sequence: AtomicU64,
    splits: AtomicU64,
    jobs: Mutex<Sender<Job>>,
}

impl LocalComm {
    fn start(shared: Arc<Shared>, hub: Arc<Hub>, member: usize) -> Result<Arc<dyn Communicator>> {
        let (jobs, received) = channel();
        let (of, at) = (shared.clone(), hub.clone());
        let work = move || work(&of, &at, member, &received);
        std::thread::Builder::new().name("communication".into()).spawn(work).map_err(Error::io("start", "a thread"))?;
        Ok(Arc::new(Self { shared, hub, member, sequence: 0.into(), splits: 0.into(), jobs: Mutex::new(jobs) }))
    }
}

/// The thread of a member.
fn work(world: &Shared, hub: &Hub, member: usize, jobs: &Receiver<Job>) {
    while let Ok(Job { sequence, operation, buffer, call, done }) = jobs.recv() {
        match world.failures[hub.members[member]].load(Ordering::Relaxed) {
            DEAD => {
                let now = Instant::now();
                let result = Err(call.error("this rank died"));
                let _ = done.send(Completion { result, began: now, ended: now });
                continue;
            }
            HUNG => {
                while world.closed.load(Ordering::Relaxed) == 0 {
                    std::thread::sleep(LOOK);
                }
                return;
            }
            _ => {}
        }
        let all = hub.meet(world, member, sequence, operation, buffer);
        let began = Instant::now();
        let result = all.and_then(|all| {
            let result = combine(operation, &all, member, &hub.members)?;
            if let Some(link) = world.options.link {
                let (n, own) = (all.len() as f64, all[member].1.bytes() as f64);
                let crossing = match operation {
                    Operation::AllReduce(_) => 2.0 * (n - 1.0) / n * own,
                    Operation::ReduceScatter(_) => (n - 1.0) / n * own,
                    Operation::AllGather => (n - 1.0) * own,
                    Operation::Broadcast { root } => all[root].1.bytes() as f64,
                    Operation::Barrier => 0.0,
                };
                let whole = link.latency + Duration::from_secs_f64(crossing / link.bytes_per_s);
                std::thread::sleep(whole.saturating_sub(began.elapsed()));
            }
            Ok(result)
        });
        // Nobody waits any more where the rank gave up.
        let _ = done.send(Completion { result: result.map_err(|problem| call.error(problem)), began, ended: Instant::now() });
    }
}

/// This member's result.
fn combine(operation: Operation, all: &[(Operation, Buffer)], member: usize, ranks: &[usize]) -> Result<Buffer, String> {
    let size = all.len();
    let free = matches!(operation, Operation::Broadcast { .. });
    for (i, (other, buffer)) in all.iter().enumerate() {
        let own = &all[member].1;
        if *other != operation || buffer.kind() != own.kind() || (!free && buffer.len() != own.len()) {
            let describe = |op: &Operation, b: &Buffer| format!("{} of {} {}", op.name(), b.len(), b.kind());
            return Err(format!("rank {} called {}, this rank {}", ranks[i], describe(other, buffer), describe(&operation, own)));
        }
    }
    let len = all[member].1.len();
    let part = |size: usize| {
        if len.is_multiple_of(size) {
            let n = len / size;
            return Ok(member * n..(member + 1) * n);
        }
        Err(format!("{len} elements cannot be divided among {size} ranks"))
    };
    match operation {
        Operation::Barrier => Ok(Buffer::empty()),
        Operation::Broadcast { root } => all.get(root).map(|(_, b)| b.clone()).ok_or(format!("there is no rank {root}")),
        Operation::AllGather => Ok(match &all[member].1 {
            Buffer::F32(_) => Buffer::F32(all.iter().flat_map(|(_, b)| f32s(b)).copied().collect()),
            Buffer::F64(_) => Buffer::F64(all.iter().flat_map(|(_, b)| f64s(b)).copied().collect()),
            Buffer::U16(_) => Buffer::U16(
                all.iter().flat_map(|(_, b)| if let Buffer::U16(x) = b { x.as_slice() } else { &[] }).copied().collect(),
            ),
            Buffer::Bytes(_) => Buffer::Bytes(
                all.iter().flat_map(|(_, b)| if let Buffer::Bytes(x) = b { x.as_slice() } else { &[] }).copied().collect(),
            ),
        }),
        Operation::AllReduce(how) => reduce(how, all, 0..len),
        Operation::ReduceScatter(how) => reduce(how, all, part(size)?),
    }
}

fn f32s(buffer: &Buffer) -> &[f32] {
    if let Buffer::F32(x) = buffer { x } else { &[] }
}

fn f64s(buffer: &Buffer) -> &[f64] {
    if let Buffer::F64(x) = buffer { x } else { &[] }
}

/// Elements of this range, from rank 0 on.
fn reduce(how: Reduce, all: &[(Operation, Buffer)], range: std::ops::Range<usize>) -> Result<Buffer, String> {
    fn fold<'a, T: Copy + 'a>(mut parts: impl Iterator<Item = &'a [T]>, with: impl Fn(T, T) -> T) -> Vec<T> {
        let mut sum = parts.next().map_or(Vec::new(), <[T]>::to_vec);
        for part in parts {
            sum.iter_mut().zip(part).for_each(|(a, b)| *a = with(*a, *b));
        }
        sum
    }
    match &all[0].1 {
        Buffer::F32(_) => {
            let parts = all.iter().map(|(_, b)| &f32s(b)[range.clone()]);
            Ok(Buffer::F32(match how {
                Reduce::Sum => fold(parts, |a, b| a + b),
                Reduce::Max => fold(parts, f32::max),
                Reduce::Min => fold(parts, f32::min),
            }))
        }
        Buffer::F64(_) => {
            let parts = all.iter().map(|(_, b)| &f64s(b)[range.clone()]);
            Ok(Buffer::F64(match how {
                Reduce::Sum => fold(parts, |a, b| a + b),
                Reduce::Max => fold(parts, f64::max),
                Reduce::Min => fold(parts, f64::min),
            }))
        }
        other => Err(format!("{} cannot be reduced", other.kind())),
    }
}

impl Communicator for LocalComm {
    fn rank(&self) -> usize {
        self.member
    }

    fn size(&self) -> usize {
        self.hub.members.len()
    }

    fn start(&self, operation: Operation, buffer: Buffer) -> Pending {
        // Numbers and jobs in one order.
        let jobs = lock(&self.jobs);
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
        let rank = self.hub.members[self.member];
        let call = Call { rank, operation: operation.name(), sequence, group: self.hub.name.clone() };
        let hub = self.hub.clone();
        let missing = Box::new(move || hub.missing(sequence));
        let (pending, done) = Pending::new(call.clone(), self.shared.options.timeout, Some(missing));
        // Where the thread has ended, so has the channel of the result.
        let _ = jobs.send(Job { sequence, operation, buffer, call, done });
        pending
    }

    fn split(&self, color: usize, key: usize, name: &str) -> Result<Arc<dyn Communicator>> {
        let own = [color as f64, key as f64, self.hub.members[self.member] as f64];
        let all = super::comm::gather_numbers(self, &own)?;
        let mut members: Vec<(usize, usize)> =
            all.iter().filter(|one| one[0] == own[0]).map(|one| (one[1] as usize, one[2] as usize)).collect();
        members.sort_unstable();
        let members: Vec<usize> = members.into_iter().map(|(_, rank)| rank).collect();
        let member = members.iter().position(|rank| *rank == self.hub.members[self.member]);
        let member = member.ok_or_else(|| Error::internal("split", "a rank is not in its own group"))?;
        let split = self.splits.fetch_add(1, Ordering::Relaxed);
        let parent = Arc::as_ptr(&self.hub) as usize;
        let mut groups = lock(&self.shared.groups);
        let hub = groups.entry((parent, split, color)).or_insert_with(|| Hub::new(name.into(), members)).clone();
        drop(groups);
        LocalComm::start(self.shared.clone(), hub, member)
    }
}

/// Runs `job` as every rank of a world, each on a thread; what they give, in the order of ranks. A rank that panics is dead to the
/// others, and panics here in the end.
///
/// # Panics
/// As a rank.
pub fn run_ranks<T: Send>(size: usize, options: LocalOptions, job: impl Fn(Arc<dyn Communicator>) -> T + Sync) -> Vec<T> {
    let world = LocalWorld::new(size, options);
    run_ranks_of(&world, job)
}

/// [`run_ranks`] of a world that the caller has made, to fail ranks of it.
///
/// # Panics
/// As a rank, or if no thread can be started.
pub fn run_ranks_of<T: Send>(world: &LocalWorld, job: impl Fn(Arc<dyn Communicator>) -> T + Sync) -> Vec<T> {
    struct Mourn<'a>(&'a LocalWorld, usize);
    impl Drop for Mourn<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                self.0.fail(self.1, Failure::Dead);
            }
        }
    }
    let job = &job;
    let results = std::thread::scope(|scope| {
        let one = |rank: usize| {
            scope.spawn(move || {
                let _mourn = Mourn(world, rank);
                job(world.rank(rank).expect("a thread"))
            })
        };
        let threads: Vec<_> = (0..world.hub.members.len()).map(one).collect();
        threads.into_iter().map(std::thread::ScopedJoinHandle::join).collect::<Vec<_>>()
    });
    results.into_iter().map(|result| result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
}
