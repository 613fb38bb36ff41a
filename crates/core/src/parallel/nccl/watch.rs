//! The thread that looks after what was started: gives results that came to the host, notes what operations took, and ends everything
//! when one takes too long, NCCL reports an error, or another rank is gone. It launches nothing, and waits for nothing but time.

use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::library::{Called, Event};
use super::meeting::lock;
use super::shared::{Flight, Landing, Shared};
use crate::parallel::comm::Completion;

/// A core is given away at once, and slept on after this.
const EAGER: Duration = Duration::from_micros(50);
/// The longest sleep between two looks while the host waits for a result.
const LONGEST: Duration = Duration::from_micros(200);
/// Between two looks otherwise.
const CALM: Duration = Duration::from_millis(20);
/// Between two questions to NCCL.
const ERRORS: Duration = Duration::from_millis(200);

/// A moment on the device and on the host.
#[derive(Clone, Copy)]
pub(super) struct Clock {
    pub(super) event: Event,
    pub(super) at: Instant,
}

/// What a look at an operation found.
enum Seen {
    UnderWay,
    Ended,
    Late,
    Broken(String),
}

struct Watcher {
    shared: Arc<Shared>,
    clock: Clock,
}

/// Until the process is done with NCCL.
pub(super) fn run(shared: Arc<Shared>, clock: Clock) {
    if let Err(e) = shared.library.bind() {
        shared.fail(None, e.to_string());
    }
    let watcher = Watcher { shared, clock };
    let (mut moved, mut asked) = (Instant::now(), Instant::now());
    loop {
        let (some, host) = watcher.look();
        if some {
            moved = Instant::now();
        }
        if asked.elapsed() > ERRORS {
            asked = Instant::now();
            watcher.ask();
        }
        if watcher.shared.problem().is_some() {
            watcher.give_up();
            return;
        }
        let flights = lock(&watcher.shared.flights);
        // What has ended, and was never asked for, is left to whoever holds it.
        let left = |flight: &Flight| flight.ended && !flight.state.closed();
        if flights.iter().all(left) && watcher.shared.closing.load(Ordering::Acquire) {
            return;
        }
        let quiet = moved.elapsed();
        if host && quiet < EAGER {
            drop(flights);
            std::thread::yield_now();
        } else {
            let time = if host { (quiet / 8).min(LONGEST) } else { CALM };
            drop(watcher.shared.news.wait_timeout(flights, time).unwrap_or_else(PoisonError::into_inner));
        }
    }
}

impl Watcher {
    /// Whether any operation ended, and whether the host waits for one.
    fn look(&self) -> (bool, bool) {
        let (mut some, mut host) = (false, false);
        let mut flights = std::mem::take(&mut *lock(&self.shared.flights));
        let mut kept = Vec::with_capacity(flights.len());
        for mut flight in flights.drain(..) {
            match self.see(&mut flight) {
                Seen::UnderWay => {
                    host |= matches!(flight.landing, Landing::Host { .. });
                    kept.push(flight);
                }
                Seen::Ended => {
                    some = true;
                    self.land(flight);
                }
                Seen::Late => {
                    let who = self.shared.meeting.missing(&flight.group, flight.call.sequence).said;
                    let problem = format!("no result within {:.1} s: {who}", self.shared.options.timeout.as_secs_f64());
                    self.shared.fail(Some(&flight.call), problem);
                    kept.push(flight);
                }
                Seen::Broken(problem) => {
                    self.shared.fail(Some(&flight.call), problem);
                    kept.push(flight);
                }
            }
        }
        // In the order in which they were started: some may have come meanwhile.
        let mut flights = lock(&self.shared.flights);
        kept.append(&mut flights);
        *flights = kept;
        (some, host)
    }

    fn see(&self, flight: &mut Flight) -> Seen {
        if flight.state.failed() {
            return Seen::Ended;
        }
        if flight.state.launched() && !flight.ended {
            match self.shared.library.event_done(flight.done) {
                Ok(done) => flight.ended = done,
                Err(e) => return Seen::Broken(e.to_string()),
            }
        }
        let late = flight.issued.elapsed() > self.shared.options.timeout;
        match &flight.landing {
            Landing::Host { .. } if flight.ended => Seen::Ended,
            // Whoever waits has a time of its own, which may be longer.
            Landing::Host { .. } => Seen::UnderWay,
            Landing::Device { .. } if !flight.ended => {
                if late {
                    Seen::Late
                } else {
                    Seen::UnderWay
                }
            }
            Landing::Device { asked, .. } => {
                let there = !flight.state.timed() || self.shared.library.event_done(*asked).unwrap_or(true);
                if flight.state.closed() && there { Seen::Ended } else { Seen::UnderWay }
            }
        }
    }

    /// Host and device agree on when something was.
    fn at(&self, event: Event) -> Called<Instant> {
        let s = self.shared.library.elapsed(self.clock.event, event)?;
        Ok(self.clock.at + Duration::from_secs_f64(s.max(0.0)))
    }

    fn land(&self, flight: Flight) {
        let Flight { call, state, began, done, landing, .. } = flight;
        match landing {
            Landing::Host { give, take, empty, len, done: completer } => {
                let now = Instant::now();
                let result = match (state.failed(), self.shared.problem()) {
                    (false, None) => Ok(take.read(&empty, len)),
                    (_, Some(problem)) => Err(problem.error(&call)),
                    (true, None) => Err(call.error("it was not launched")),
                };
                let began = if result.is_ok() { self.at(began).unwrap_or(now).min(now) } else { now };
                // Nobody waits any more where the rank gave up.
                let _ = completer.send(Completion { result, began, ended: now });
                self.shared.keep(give);
                self.shared.keep(take);
            }
            Landing::Device { asked, ready, bytes, watch } => {
                if let (true, Ok(began), Ok(ended)) = (state.launched(), self.at(began), self.at(done)) {
                    let asked = if state.timed() { self.at(asked).ok() } else { None };
                    watch.note(&call, bytes, [began, ended.max(began)], asked);
                }
                self.shared.give_back([ready, asked]);
            }
        }
        self.shared.give_back([began, done]);
    }

    /// What NCCL knows of operations that were launched, and what other ranks say.
    fn ask(&self) {
        let comms = lock(&self.shared.comms).clone();
        for comm in comms {
            if let Err(e) = self.shared.library.comm_async_error(comm) {
                let oldest = lock(&self.shared.flights).first().map(|flight| flight.call.clone());
                self.shared.fail(oldest.as_ref(), e.to_string());
            }
        }
        if let Some(text) = self.shared.meeting.ended() {
            let oldest = lock(&self.shared.flights).first().map(|flight| flight.call.clone());
            self.shared.fail(oldest.as_ref(), text);
        }
    }

    /// Tells everybody, then ends what is under way.
    fn give_up(&self) {
        let Some(problem) = self.shared.problem() else { return };
        if self.shared.meeting.ended().is_none() {
            self.shared.meeting.end(&format!("rank {}: {}", self.shared.rank, problem.said()));
        }
        self.shared.let_go(&problem);
        self.shared.abort();
    }
}
