//! NCCL and a driver of this process: streams are threads, memory is the host's, reductions add in the order of ranks. It writes down what
//! is called, and notices memory that goes away under an operation.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use half::bf16;
use recua::parallel::Reduce;
use recua::parallel::nccl::{
    CallFailure, Called, Collective, Comm, Element, Event, Library, Move, Stream, UniqueId, nccl_failure,
};

/// Where the ranks of all communicators meet.
#[derive(Default)]
pub(crate) struct FakeNetwork {
    hubs: Mutex<HashMap<UniqueId, Arc<Hub>>>,
    ids: AtomicUsize,
}

type Came = HashMap<usize, (Collective, Vec<u8>)>;

#[derive(Default)]
struct Hub {
    inits: Mutex<HashSet<usize>>,
    rounds: Mutex<HashMap<usize, Came>>,
    news: Condvar,
}

struct FakeComm {
    hub: Arc<Hub>,
    rank: usize,
    ranks: usize,
    launched: AtomicUsize,
    aborted: AtomicBool,
}

/// When an event was last recorded, and come to.
#[derive(Default)]
pub(super) struct FakeEvent {
    pub(super) counts: Mutex<(usize, usize, Option<Instant>)>,
    news: Condvar,
}

impl FakeEvent {
    pub(super) fn record(&self) -> usize {
        let mut counts = self.counts.lock().unwrap();
        counts.0 += 1;
        counts.0
    }

    pub(super) fn come_to(&self, count: usize) {
        let mut counts = self.counts.lock().unwrap();
        (counts.1, counts.2) = (counts.1.max(count), Some(Instant::now()));
        self.news.notify_all();
    }

    /// An event that was never recorded is no reason to wait, as in CUDA.
    pub(super) fn wait(&self, count: usize) {
        let mut counts = self.counts.lock().unwrap();
        while counts.1 < count {
            counts = self.news.wait(counts).unwrap();
        }
    }
}

type Task = Box<dyn FnOnce() + Send>;

/// The library of one rank.
pub(crate) struct Fake {
    network: Arc<FakeNetwork>,
    comms: Mutex<Vec<Arc<FakeComm>>>,
    streams: Mutex<Vec<Sender<Task>>>,
    events: Mutex<Vec<Arc<FakeEvent>>>,
    /// What was called, in order.
    pub(crate) log: Mutex<Vec<String>>,
    /// Memory that operations use, and what went wrong with it.
    used: Arc<Mutex<HashMap<u64, usize>>>,
    pub(crate) wrong: Arc<Mutex<Vec<String>>>,
    /// The next call of this name fails so.
    pub(crate) fails: Mutex<Option<(&'static str, i32)>>,
    pub(crate) async_error: AtomicUsize,
    /// How long each operation takes.
    pub(crate) takes: Mutex<Duration>,
}

impl Fake {
    pub(crate) fn new(network: Arc<FakeNetwork>) -> Arc<Self> {
        Arc::new(Self {
            network,
            comms: Mutex::default(),
            streams: Mutex::default(),
            events: Mutex::default(),
            log: Mutex::default(),
            used: Arc::default(),
            wrong: Arc::default(),
            fails: Mutex::default(),
            async_error: AtomicUsize::new(0),
            takes: Mutex::new(Duration::ZERO),
        })
    }

    pub(crate) fn note(&self, text: String) {
        self.log.lock().unwrap().push(text);
    }

    /// What was called since the last time.
    pub(crate) fn calls(&self) -> Vec<String> {
        std::mem::take(&mut *self.log.lock().unwrap())
    }

    pub(super) fn event(&self, event: Event) -> Arc<FakeEvent> {
        self.events.lock().unwrap()[event.0].clone()
    }

    fn comm(&self, comm: Comm) -> Arc<FakeComm> {
        self.comms.lock().unwrap()[comm.0].clone()
    }

    fn push(&self, stream: Stream, task: impl FnOnce() + Send + 'static) {
        self.streams.lock().unwrap()[stream.0].send(Box::new(task)).unwrap();
    }

    fn check(&self, call: &'static str) -> Called<()> {
        let mut fails = self.fails.lock().unwrap();
        match fails.take_if(|(name, _)| *name == call) {
            Some((_, code)) => nccl_failure(call, code).map_or(Ok(()), Err),
            None => Ok(()),
        }
    }

    pub(crate) fn memory(&self, bytes: Vec<u8>) -> Arc<FakeMemory> {
        let mut words = vec![0u64; bytes.len().div_ceil(8).max(1)];
        // SAFETY: as many bytes as are there.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), words.as_mut_ptr().cast(), bytes.len()) };
        let words = Box::into_raw(words.into_boxed_slice());
        Arc::new(FakeMemory { words, bytes: bytes.len(), used: self.used.clone(), wrong: self.wrong.clone() })
    }
}

/// A piece of device memory.
pub(crate) struct FakeMemory {
    words: *mut [u64],
    bytes: usize,
    used: Arc<Mutex<HashMap<u64, usize>>>,
    wrong: Arc<Mutex<Vec<String>>>,
}

// SAFETY: only addresses are shared; who reads and writes when is what is tested.
unsafe impl Send for FakeMemory {}
// SAFETY: as above.
unsafe impl Sync for FakeMemory {}

impl FakeMemory {
    pub(super) fn address(&self) -> u64 {
        self.words.cast::<u8>() as u64
    }

    pub(crate) fn read(&self) -> Vec<u8> {
        read(self.address(), self.bytes)
    }
}

impl Drop for FakeMemory {
    fn drop(&mut self) {
        if self.used.lock().unwrap().contains_key(&self.address()) {
            self.wrong.lock().unwrap().push("memory goes away under an operation".into());
        }
        // SAFETY: made by `Box::into_raw`, and dropped once.
        drop(unsafe { Box::from_raw(self.words) });
    }
}

fn read(address: u64, bytes: usize) -> Vec<u8> {
    let mut out = vec![0; bytes];
    // SAFETY: the test's own memory of that size.
    unsafe { std::ptr::copy_nonoverlapping(address as *const u8, out.as_mut_ptr(), bytes) };
    out
}

fn write(address: u64, bytes: &[u8]) {
    // SAFETY: as above.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len()) };
}

/// Of the parts, from rank 0 on.
fn reduced(parts: &[&[u8]], element: Element, how: Reduce) -> Vec<u8> {
    macro_rules! fold {
        ($type:ty, $n:literal, $from:expr, $to:expr) => {{
            let numbers = |part: &[u8]| -> Vec<$type> { part.chunks_exact($n).map(|b| $from(b.try_into().unwrap())).collect() };
            let mut sum = numbers(parts[0]);
            for part in &parts[1..] {
                for (a, b) in sum.iter_mut().zip(numbers(part)) {
                    *a = match how {
                        Reduce::Sum => *a + b,
                        Reduce::Max => a.max(b),
                        Reduce::Min => a.min(b),
                    };
                }
            }
            sum.into_iter().flat_map($to).collect()
        }};
    }
    match element {
        Element::F32 => fold!(f32, 4, f32::from_le_bytes, f32::to_le_bytes),
        Element::F64 => fold!(f64, 8, f64::from_le_bytes, f64::to_le_bytes),
        Element::BF16 => fold!(f32, 2, |b| bf16::from_le_bytes(b).to_f32(), |x: f32| bf16::from_f32(x).to_le_bytes()),
        other => panic!("{other:?} is not reduced"),
    }
}

impl FakeComm {
    /// On the stream's thread.
    fn run(&self, number: usize, c: Collective) {
        let bytes = c.element.bytes() * c.count;
        let gives = if matches!(c.kind, Move::ReduceScatter(_)) { bytes * self.ranks } else { bytes };
        let mut rounds = self.hub.rounds.lock().unwrap();
        rounds.entry(number).or_default().insert(self.rank, (c, read(c.send, gives)));
        self.hub.news.notify_all();
        let same = |came: &Came| {
            came.len() == self.ranks && came.values().all(|(o, _)| (o.kind, o.count, o.element) == (c.kind, c.count, c.element))
        };
        // Ranks that call different things wait for ever, as NCCL's may.
        while !same(&rounds[&number]) {
            if self.aborted.load(Ordering::SeqCst) {
                return;
            }
            rounds = self.hub.news.wait_timeout(rounds, Duration::from_millis(5)).unwrap().0;
        }
        let parts: Vec<Vec<u8>> = (0..self.ranks).map(|rank| rounds[&number][&rank].1.clone()).collect();
        drop(rounds);
        let own = |part: &'_ [u8]| part[self.rank * bytes..][..bytes].to_vec();
        let result = match c.kind {
            Move::AllGather => parts.concat(),
            Move::Broadcast(root) => parts[root].clone(),
            Move::AllReduce(how) => reduced(&parts.iter().map(Vec::as_slice).collect::<Vec<_>>(), c.element, how),
            Move::ReduceScatter(how) => own(&reduced(&parts.iter().map(Vec::as_slice).collect::<Vec<_>>(), c.element, how)),
        };
        write(c.receive, &result);
    }
}

impl Library for Fake {
    fn describe(&self) -> String {
        "a fake".into()
    }

    fn bind(&self) -> Called<()> {
        Ok(())
    }

    fn unique_id(&self) -> Called<UniqueId> {
        let mut id = [0; 128];
        id[..8].copy_from_slice(&(self.network.ids.fetch_add(1, Ordering::SeqCst) as u64 + 1).to_le_bytes());
        Ok(UniqueId(id))
    }

    fn comm_init_rank(&self, ranks: usize, id: UniqueId, rank: usize) -> Called<Comm> {
        self.check("ncclCommInitRank")?;
        let hub = self.network.hubs.lock().unwrap().entry(id).or_default().clone();
        let mut inits = hub.inits.lock().unwrap();
        inits.insert(rank);
        hub.news.notify_all();
        while inits.len() < ranks {
            inits = hub.news.wait_timeout(inits, Duration::from_millis(5)).unwrap().0;
        }
        drop(inits);
        let comm = FakeComm { hub, rank, ranks, launched: AtomicUsize::new(0), aborted: AtomicBool::new(false) };
        let mut comms = self.comms.lock().unwrap();
        comms.push(Arc::new(comm));
        Ok(Comm(comms.len() - 1))
    }

    fn comm_async_error(&self, _: Comm) -> Called<()> {
        nccl_failure("an operation of NCCL's", self.async_error.load(Ordering::SeqCst) as i32).map_or(Ok(()), Err)
    }

    fn comm_abort(&self, comm: Comm) -> Called<()> {
        self.note("abort".into());
        self.comm(comm).aborted.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn comm_destroy(&self, _: Comm) -> Called<()> {
        self.note("destroy".into());
        Ok(())
    }

    unsafe fn launch(&self, c: Collective, comm: Comm, stream: Stream) -> Called<()> {
        let name = match c.kind {
            Move::AllReduce(_) => "ncclAllReduce",
            Move::ReduceScatter(_) => "ncclReduceScatter",
            Move::AllGather => "ncclAllGather",
            Move::Broadcast(_) => "ncclBroadcast",
        };
        self.check(name)?;
        self.note(format!("{name} {} {} on stream {}", c.count, c.element.name(), stream.0));
        let comm = self.comm(comm);
        let number = comm.launched.fetch_add(1, Ordering::SeqCst);
        let (used, takes) = (self.used.clone(), *self.takes.lock().unwrap());
        for address in [c.send, c.receive] {
            *used.lock().unwrap().entry(address).or_default() += 1;
        }
        self.push(stream, move || {
            std::thread::sleep(takes);
            comm.run(number, c);
            let mut used = used.lock().unwrap();
            for address in [c.send, c.receive] {
                let count = used.get_mut(&address).unwrap();
                *count -= 1;
                if *count == 0 {
                    used.remove(&address);
                }
            }
        });
        Ok(())
    }

    fn stream_create(&self) -> Called<Stream> {
        let (tasks, given) = channel::<Task>();
        std::thread::spawn(move || given.into_iter().for_each(|task| task()));
        let mut streams = self.streams.lock().unwrap();
        streams.push(tasks);
        Ok(Stream(streams.len() - 1))
    }

    fn stream_wait(&self, stream: Stream, event: Event) -> Called<()> {
        self.note(format!("stream {} waits for {}", stream.0, event.0));
        let event = self.event(event);
        let count = event.counts.lock().unwrap().0;
        self.push(stream, move || event.wait(count));
        Ok(())
    }

    fn event_create(&self) -> Called<Event> {
        let mut events = self.events.lock().unwrap();
        events.push(Arc::default());
        Ok(Event(events.len() - 1))
    }

    fn event_record(&self, event: Event, stream: Stream) -> Called<()> {
        self.note(format!("stream {} records {}", stream.0, event.0));
        let event = self.event(event);
        let count = event.record();
        self.push(stream, move || event.come_to(count));
        Ok(())
    }

    fn event_done(&self, event: Event) -> Called<bool> {
        let event = self.event(event);
        let counts = event.counts.lock().unwrap();
        Ok(counts.0 == counts.1)
    }

    fn elapsed(&self, from: Event, to: Event) -> Called<f64> {
        let at = |event| self.event(event).counts.lock().unwrap().2;
        match (at(from), at(to)) {
            (Some(from), Some(to)) if to >= from => Ok((to - from).as_secs_f64()),
            (Some(from), Some(to)) => Ok(-(from - to).as_secs_f64()),
            _ => Err(CallFailure { call: "cuEventElapsedTime", code: 400, meaning: "never recorded".into() }),
        }
    }

    fn allocate(&self, bytes: usize, _: Stream) -> Called<u64> {
        Ok(Box::leak(vec![0u64; bytes.div_ceil(8)].into_boxed_slice()).as_mut_ptr() as u64)
    }

    fn free(&self, _: u64, _: Stream) -> Called<()> {
        Ok(()) // a test is short
    }

    fn allocate_host(&self, bytes: usize) -> Called<usize> {
        self.allocate(bytes, Stream(0)).map(|address| address as usize)
    }

    unsafe fn copy_in(&self, to: u64, from: usize, bytes: usize, stream: Stream) -> Called<()> {
        self.push(stream, move || write(to, &read(from as u64, bytes)));
        Ok(())
    }

    unsafe fn copy_out(&self, to: usize, from: u64, bytes: usize, stream: Stream) -> Called<()> {
        self.push(stream, move || write(to as u64, &read(from, bytes)));
        Ok(())
    }
}
