//! Where ranks meet before they have a communicator, and what they tell each other beside it: that one is gone, how far each has come,
//! what each has called. The first rank listens; each other one keeps a connection to it for the whole job. NCCL alone tells none of
//! this: of a rank that is gone it waits for ever.

use std::collections::HashMap;
use std::io::{self, BufReader};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::hub::Hub;
use super::library::UniqueId;
use super::message::{Message, receive, send};
use crate::error::{Error, Result};
use crate::parallel::comm::Missing;

/// How long an answer may take.
pub(super) const PATIENCE: Duration = Duration::from_millis(1500);
/// How long a connection may take to say who it is: not everything that connects is a rank.
const HELLO: Duration = Duration::from_secs(2);
/// How long a message may take to be sent; a rank that is stopped takes none.
const SEND: Duration = Duration::from_secs(5);

/// What a rank knows of the others, shared with the threads that listen.
#[derive(Default)]
pub(super) struct Known {
    /// Operations that this rank has started, by group.
    progress: Mutex<HashMap<String, u64>>,
    /// Why the job ends.
    ended: Mutex<Option<String>>,
    /// This rank is done: what happens to connections means nothing any more.
    pub(super) left: AtomicBool,
}

impl Known {
    pub(super) fn came(&self, group: &str) -> Option<u64> {
        lock(&self.progress).get(group).copied()
    }

    /// The first reason stands.
    pub(super) fn end(&self, text: &str) {
        if !self.left.load(Ordering::Relaxed) {
            lock(&self.ended).get_or_insert_with(|| text.into());
        }
    }
}

/// Nobody panics while holding a lock here, and what is in it is whole at all times.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Answers that are waited for, by question.
type Answers = Arc<Mutex<HashMap<u64, Sender<Missing>>>>;

enum Link {
    /// There is one rank.
    Alone,
    /// The first rank.
    Hub(Arc<Hub>),
    /// Another one's connection to the first.
    Spoke { to: Mutex<TcpStream>, answers: Answers, questions: AtomicU64 },
}

/// The ranks of a job, met.
pub(super) struct Meeting {
    known: Arc<Known>,
    link: Link,
}

fn failed(problem: String, hint: &str) -> Error {
    Error::Engine { what: "the meeting of the ranks", problem, hint: hint.into() }
}

const SAME: &str = "MASTER_ADDR and MASTER_PORT must name the first rank's machine and a free port there, the same on all ranks";

/// Small messages at once, and none that hangs.
pub(super) fn prepared(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(SEND))?;
    Ok(stream)
}

impl Meeting {
    /// Comes to the meeting, and gives what the world's communicator begins with: what `make` makes on the first rank.
    ///
    /// # Errors
    /// [`Error::Engine`] naming the ranks that did not come within `timeout`, or where this one could not get in.
    pub(super) fn join(
        rank: usize,
        ranks: usize,
        place: Option<&(String, u16)>,
        timeout: Duration,
        make: impl FnOnce() -> Result<UniqueId>,
    ) -> Result<(Self, UniqueId)> {
        let known = Arc::new(Known::default());
        if ranks == 1 {
            return Ok((Self { known, link: Link::Alone }, make()?));
        }
        let place = place.ok_or_else(|| failed("there is no place to meet".into(), SAME))?;
        if rank == 0 {
            let id = make()?;
            let hub = gather(place, ranks, timeout, id, &known)?;
            return Ok((Self { known, link: Link::Hub(hub) }, id));
        }
        let (stream, id) = come(place, rank, ranks, timeout)?;
        let answers = Answers::default();
        let (reader, knows, told) = (stream.try_clone(), known.clone(), answers.clone());
        let reader = BufReader::new(reader.map_err(Error::io("listen to", "the first rank"))?);
        let listen = move || listen(reader, &knows, &told);
        std::thread::Builder::new().name("meeting".into()).spawn(listen).map_err(Error::io("start", "a thread"))?;
        Ok((Self { known, link: Link::Spoke { to: Mutex::new(stream), answers, questions: 0.into() } }, id))
    }

    /// Why the job ends, where somebody has said so.
    pub(super) fn ended(&self) -> Option<String> {
        lock(&self.known.ended).clone()
    }

    /// This rank has started so many operations of a group.
    pub(super) fn note(&self, group: &str, started: u64) {
        lock(&self.known.progress).insert(group.into(), started);
    }

    /// Lets the first rank compare what the members of a group have called.
    pub(super) fn compare(&self, group: &str, members: usize, sequence: u64, history: u64, what: String) {
        let message = Message::Called { group: group.into(), members, sequence, history, what };
        match &self.link {
            Link::Alone => {}
            Link::Hub(hub) => hub.take(0, message),
            // A connection that is gone is seen by the thread that listens to it.
            Link::Spoke { to, .. } => drop(send(&lock(to), &message)),
        }
    }

    /// Who has not come to an operation of a group, in words. Takes up to some seconds.
    pub(super) fn missing(&self, group: &str, sequence: u64) -> Missing {
        match &self.link {
            Link::Alone => Missing { silent: false, said: "the device hangs".into() },
            Link::Hub(hub) => hub.inquire(group, sequence),
            Link::Spoke { to, answers, questions } => {
                let question = questions.fetch_add(1, Ordering::Relaxed);
                let (tell, told) = channel();
                lock(answers).insert(question, tell);
                let asked = send(&lock(to), &Message::Ask { question, group: group.into(), sequence });
                let answer = asked.ok().and_then(|()| told.recv_timeout(2 * PATIENCE).ok());
                lock(answers).remove(&question);
                answer.unwrap_or_else(|| Missing { silent: true, said: "no answer from rank 0: stopped, gone or cut off".into() })
            }
        }
    }

    /// Ends the job on the others, with a reason.
    pub(super) fn end(&self, text: &str) {
        match &self.link {
            Link::Alone => {}
            Link::Hub(hub) => hub.end(text, None),
            Link::Spoke { to, .. } => drop(send(&lock(to), &Message::End { text: text.into() })),
        }
    }

    /// This rank is done, and so are all others.
    pub(super) fn leave(&self) {
        self.known.left.store(true, Ordering::Relaxed);
        match &self.link {
            Link::Alone => {}
            Link::Hub(hub) => hub.leave(),
            Link::Spoke { to, .. } => {
                let to = lock(to);
                let _ = send(&to, &Message::Bye);
                let _ = to.shutdown(std::net::Shutdown::Write);
            }
        }
    }
}

/// The first rank: waits for all others, then lets them in.
fn gather((host, port): &(String, u16), ranks: usize, timeout: Duration, id: UniqueId, known: &Arc<Known>) -> Result<Arc<Hub>> {
    let until = Instant::now() + timeout;
    // Other machines come by any of this one's addresses.
    let own = ["127.0.0.1", "localhost", "::1"].contains(&host.as_str());
    let address = match (own, host.as_str()) {
        (true, "::1") => "::1",
        (true, _) => "127.0.0.1",
        (false, _) => "0.0.0.0",
    };
    let listener = TcpListener::bind((address, *port));
    let listener = listener.map_err(|e| failed(format!("rank 0 cannot listen on {address}:{port}: {e}"), SAME))?;
    listener.set_nonblocking(true).map_err(Error::io("listen on", address))?;
    let mut came: Vec<Option<BufReader<TcpStream>>> = (0..ranks).map(|_| None).collect();
    while came[1..].iter().any(Option::is_none) {
        if Instant::now() > until {
            let missing = came.iter().enumerate().skip(1).filter(|(_, c)| c.is_none()).map(|(rank, _)| rank.to_string());
            let missing = missing.collect::<Vec<_>>().join(", ");
            let problem = format!("did not come to {host}:{port} within {:.0} s: rank {missing}", timeout.as_secs_f64());
            return Err(failed(problem, SAME));
        }
        match listener.accept() {
            Ok((stream, _)) => {
                if let Some((rank, reader)) = greet(stream, ranks, &came) {
                    came[rank] = Some(reader);
                }
            }
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
    let peers: Vec<_> = came.into_iter().skip(1).flatten().collect();
    for peer in &peers {
        let welcome = send(peer.get_ref(), &Message::Welcome { id: id.0.to_vec() });
        welcome.map_err(|e| failed(format!("a rank that had come is gone: {e}"), "the ranks' own messages say why"))?;
    }
    Hub::start(peers, known.clone())
}

/// A connection that says which rank it is.
fn greet(stream: TcpStream, ranks: usize, came: &[Option<BufReader<TcpStream>>]) -> Option<(usize, BufReader<TcpStream>)> {
    let stream = prepared(stream).ok()?;
    stream.set_read_timeout(Some(HELLO)).ok()?;
    let mut reader = BufReader::new(stream);
    let Ok(Some(Message::Hello { recua, rank, ranks: of })) = receive(&mut reader) else { return None };
    let own = env!("CARGO_PKG_VERSION");
    let why = if recua != own {
        format!("rank {rank} is recua {recua}, rank 0 is {own}")
    } else if of != ranks {
        format!("rank {rank} is one of {of} ranks, rank 0 one of {ranks}")
    } else if rank >= ranks {
        format!("there is no rank {rank} among {ranks}")
    } else if rank == 0 || came[rank].is_some() {
        format!("there is a rank {rank} already")
    } else {
        reader.get_ref().set_read_timeout(None).ok()?;
        return Some((rank, reader));
    };
    let _ = send(reader.get_ref(), &Message::Refused { why });
    None
}

/// Another rank: tries until the first one listens.
fn come((host, port): &(String, u16), rank: usize, ranks: usize, timeout: Duration) -> Result<(TcpStream, UniqueId)> {
    let until = Instant::now() + timeout;
    let late = |e: String| {
        failed(format!("rank {rank} was not let in at {host}:{port} within {:.0} s: {e}", timeout.as_secs_f64()), SAME)
    };
    loop {
        let error = match attempt((host.as_str(), *port), rank, ranks, until) {
            Ok(Ok(met)) => return Ok(met),
            Ok(Err(why)) => return Err(failed(format!("rank {rank} was refused at {host}:{port}: {why}"), SAME)),
            Err(e) => e,
        };
        if Instant::now() > until {
            return Err(late(error.to_string()));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// One attempt; inside, what the first rank says against it.
fn attempt(
    place: (&str, u16),
    rank: usize,
    ranks: usize,
    until: Instant,
) -> io::Result<std::result::Result<(TcpStream, UniqueId), String>> {
    let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(50));
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in place.to_socket_addrs()? {
        let stream = match TcpStream::connect_timeout(&address, left.min(Duration::from_secs(5))) {
            Ok(stream) => prepared(stream)?,
            Err(e) => {
                last = e;
                continue;
            }
        };
        send(&stream, &Message::Hello { recua: env!("CARGO_PKG_VERSION").into(), rank, ranks })?;
        stream.set_read_timeout(Some(left))?;
        // Nothing follows the welcome before this rank speaks again: nothing is lost in the reader's buffer.
        let mut reader = BufReader::new(stream.try_clone()?);
        return match receive(&mut reader)? {
            Some(Message::Welcome { id }) => {
                stream.set_read_timeout(None)?;
                match id.try_into() {
                    Ok(id) => Ok(Ok((stream, UniqueId(id)))),
                    Err(_) => Ok(Err("what it sent cannot be read".into())),
                }
            }
            Some(Message::Refused { why }) => Ok(Err(why)),
            Some(_) => Ok(Err("something else than recua listens there".into())),
            None => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection was closed")),
        };
    }
    Err(last)
}

/// What the first rank says to another.
fn listen(mut from: BufReader<TcpStream>, known: &Known, answers: &Answers) {
    loop {
        match receive(&mut from) {
            Ok(Some(Message::Ask { question, group, .. })) => {
                let _ = send(from.get_ref(), &Message::Here { question, came: known.came(&group) });
            }
            Ok(Some(Message::Said { question, silent, text })) => {
                if let Some(tell) = lock(answers).remove(&question) {
                    let _ = tell.send(Missing { silent, said: text });
                }
            }
            Ok(Some(Message::End { text })) => known.end(&text),
            Ok(Some(Message::Bye)) => return,
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => return known.end("rank 0 is gone: its process ended, or the connection to it broke"),
        }
    }
}
