//! The first rank's side of the meeting.

use std::collections::HashMap;
use std::io::BufReader;
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::meeting::{Known, PATIENCE, lock};
use super::message::{Message, receive, send};
use crate::error::{Error, Result};
use crate::parallel::comm::Missing;

/// What one member has called.
struct First {
    rank: usize,
    history: u64,
    what: String,
    /// Members that have told theirs.
    told: usize,
}

/// Of each rank what it answered: operations of the group that it has started.
type Answered = Vec<Option<Option<u64>>>;

/// All connections, and what is asked over them.
pub(super) struct Hub {
    /// Of ranks 1 and on.
    peers: Vec<Mutex<TcpStream>>,
    known: Arc<Known>,
    calls: Mutex<HashMap<(String, u64), First>>,
    questions: Mutex<HashMap<u64, Answered>>,
    next: AtomicU64,
    /// Ranks that have not left.
    there: AtomicUsize,
}

/// A thread a rank, which sleeps until that rank says something.
const STACK: usize = 256 << 10;

impl Hub {
    /// Listens to all.
    pub(super) fn start(peers: Vec<BufReader<TcpStream>>, known: Arc<Known>) -> Result<Arc<Self>> {
        let writers = peers.iter().map(|peer| peer.get_ref().try_clone().map(Mutex::new)).collect::<std::io::Result<_>>();
        let writers = writers.map_err(Error::io("speak to", "the ranks"))?;
        let (next, there) = (AtomicU64::new(0), AtomicUsize::new(peers.len()));
        let hub = Arc::new(Self { peers: writers, known, calls: Mutex::default(), questions: Mutex::default(), next, there });
        for (i, peer) in peers.into_iter().enumerate() {
            let own = hub.clone();
            let thread = std::thread::Builder::new().name("meeting".into()).stack_size(STACK);
            thread
                .spawn(move || {
                    own.listen(i + 1, peer);
                    own.there.fetch_sub(1, Ordering::Relaxed);
                })
                .map_err(Error::io("start", "a thread"))?;
        }
        Ok(hub)
    }

    fn listen(self: &Arc<Self>, rank: usize, mut from: BufReader<TcpStream>) {
        loop {
            match receive(&mut from) {
                Ok(Some(Message::Bye)) => return,
                Ok(Some(Message::Ask { question, group, sequence })) => {
                    // Not here: the rank that asks is asked as well, and answers on this connection.
                    let own = self.clone();
                    let answer = move || {
                        let Missing { silent, said: text } = own.inquire(&group, sequence);
                        let _ = send(&lock(&own.peers[rank - 1]), &Message::Said { question, silent, text });
                    };
                    let _ = std::thread::Builder::new().name("meeting".into()).stack_size(STACK).spawn(answer);
                }
                Ok(Some(message)) => self.take(rank, message),
                Ok(None) | Err(_) => {
                    let text = format!("rank {rank} is gone: its process ended, or the connection to it broke");
                    return self.end(&text, Some(rank));
                }
            }
        }
    }

    /// What a rank has said.
    pub(super) fn take(&self, rank: usize, message: Message) {
        match message {
            Message::Called { group, members, sequence, history, what } => {
                if let Some(problem) = self.compare(rank, (group, sequence), members, history, &what) {
                    self.end(&problem, None);
                }
            }
            Message::Here { question, came } => {
                if let Some(all) = lock(&self.questions).get_mut(&question) {
                    all[rank] = Some(came);
                }
            }
            Message::End { text } => self.end(&text, Some(rank)),
            _ => {}
        }
    }

    /// How a rank's call differs from that of the first member that told its own.
    fn compare(&self, rank: usize, at: (String, u64), members: usize, history: u64, what: &str) -> Option<String> {
        let mut calls = lock(&self.calls);
        let told = First { rank, history, what: what.into(), told: 0 };
        let first = calls.entry(at.clone()).or_insert(told);
        first.told += 1;
        let name = at.0.rsplit('/').next().unwrap_or_default();
        let problem = if first.what != what {
            let First { rank: other, what: theirs, .. } = first;
            Some(format!("operation {} of the group `{name}`: rank {other} called {theirs}, rank {rank} {what}", at.1))
        } else if first.history != history {
            let other = first.rank;
            Some(format!(
                "the ranks of the group `{name}` have called different operations before number {}: ranks {other} and {rank}",
                at.1
            ))
        } else {
            None
        };
        if first.told == members {
            calls.remove(&at);
        }
        problem
    }

    /// Asks every rank how far it is.
    pub(super) fn inquire(&self, group: &str, sequence: u64) -> Missing {
        let question = self.next.fetch_add(1, Ordering::Relaxed);
        let mut answered: Answered = vec![None; self.peers.len() + 1];
        answered[0] = Some(self.known.came(group));
        lock(&self.questions).insert(question, answered);
        for peer in &self.peers {
            let _ = send(&lock(peer), &Message::Ask { question, group: group.into(), sequence });
        }
        let until = Instant::now() + PATIENCE;
        let all = |answers: &Answered| answers.iter().all(Option::is_some);
        while Instant::now() < until && !lock(&self.questions).get(&question).is_some_and(all) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let answers = lock(&self.questions).remove(&question).unwrap_or_default();
        let list = |of: Vec<usize>| of.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        let silent: Vec<_> = (0..answers.len()).filter(|rank| answers[*rank].is_none()).collect();
        if !silent.is_empty() {
            return Missing { silent: true, said: format!("no answer from rank {}: stopped, gone or cut off", list(silent)) };
        }
        // A rank that is not in the group does not count.
        let late = |rank: &usize| matches!(answers[*rank], Some(Some(came)) if came <= sequence);
        let late: Vec<_> = (0..answers.len()).filter(late).collect();
        let said = match late.is_empty() {
            false => format!("rank {} has not come to it", list(late)),
            true => "every rank has come to it: a device or the network between them hangs".into(),
        };
        Missing { silent: false, said }
    }

    /// Ends the job, here and on all ranks but one.
    pub(super) fn end(&self, text: &str, but: Option<usize>) {
        if self.known.left.load(Ordering::Relaxed) {
            return;
        }
        self.known.end(text);
        for (_, peer) in self.peers.iter().enumerate().filter(|(i, _)| Some(i + 1) != but) {
            let _ = send(&lock(peer), &Message::End { text: text.into() });
        }
    }

    /// Lets all go, and waits a little until they have gone: a process that ends with messages unread breaks its connections, with
    /// whatever is on its way to the others.
    pub(super) fn leave(&self) {
        for peer in &self.peers {
            let peer = lock(peer);
            let _ = send(&peer, &Message::Bye);
            let _ = peer.shutdown(std::net::Shutdown::Write);
        }
        let until = Instant::now() + PATIENCE;
        while self.there.load(Ordering::Relaxed) > 0 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
