//! What ranks say to each other beside NCCL: a JSON document a line.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use serde::{Deserialize, Serialize};

/// No message is longer, bytes.
const LONGEST: u64 = 1 << 20;

/// A message between the first rank and another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub(super) enum Message {
    /// A rank comes to the meeting.
    Hello { recua: String, rank: usize, ranks: usize },
    /// All are there; what the world's communicator begins with.
    Welcome { id: Vec<u8> },
    /// The rank cannot take part.
    Refused { why: String },
    /// What a rank has called in a group, and a hash of all before.
    Called { group: String, members: usize, sequence: u64, history: u64, what: String },
    /// How far has the group come?
    Ask { question: u64, group: String, sequence: u64 },
    /// So many operations were started.
    Here { question: u64, came: Option<u64> },
    /// What a question came to.
    Said { question: u64, silent: bool, text: String },
    /// The job ends on all ranks.
    End { text: String },
    /// A rank is done.
    Bye,
}

pub(super) fn send(mut to: &TcpStream, message: &Message) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    to.write_all(&line)
}

/// The next message; `None` at the end.
pub(super) fn receive(from: &mut BufReader<TcpStream>) -> io::Result<Option<Message>> {
    let mut line = Vec::new();
    from.by_ref().take(LONGEST).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    if line.last() != Some(&b'\n') {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "half a message"));
    }
    serde_json::from_slice(&line).map(Some).map_err(io::Error::from)
}
