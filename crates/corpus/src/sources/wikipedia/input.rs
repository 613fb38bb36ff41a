//! Bytes of a dump: unpacked, in UTF-8.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::Path;
use std::thread;

use crate::charset;
use crate::error::{Error, Result};
use crate::unpack::{self, Bzip2, CHUNK};

/// A stream of a multistream dump (100 pages) is far smaller than this. In a larger one nothing is decoded in parallel.
const STREAM: usize = 8 << 20;
/// The most that a stream is unpacked to at once.
const UNPACKED: u64 = 56 << 20;

/// The dump's text, whatever it is packed in.
pub(super) fn open(path: &Path, threads: usize) -> Result<Box<dyn BufRead>> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let mut file = BufReader::with_capacity(CHUNK, file);
    let magic = file.fill_buf().map_err(Error::io("read", path))?;
    let threads = match threads {
        0 => thread::available_parallelism().map_or(1, usize::from),
        n => n,
    };
    let unpacked: Box<dyn BufRead> = match magic.starts_with(b"BZh") && threads > 1 {
        true => Box::new(BufReader::with_capacity(CHUNK, Streams::new(file, threads))),
        false => unpack::unpack(file).map_err(Error::io("read", path))?,
    };
    charset::utf8(unpacked).map_err(Error::io("read", path))
}

/// The streams of a multistream bzip2 file, unpacked side by side and given in their order.
struct Streams {
    file: Option<BufReader<File>>,
    threads: usize,
    /// Packed bytes that were read and not handed to a thread, from a stream's beginning.
    packed: Vec<u8>,
    /// Up to where `packed` was searched for the next beginning.
    searched: usize,
    ready: VecDeque<io::Result<Vec<u8>>>,
    current: Cursor<Vec<u8>>,
    /// The rest of the file, where streams are too large to be held.
    rest: Option<Box<dyn Read>>,
}

impl Streams {
    fn new(file: BufReader<File>, threads: usize) -> Self {
        let (packed, ready, current) = (Vec::new(), VecDeque::new(), Cursor::default());
        Self { file: Some(file), threads, packed, searched: 0, ready, current, rest: None }
    }

    /// The next whole stream, packed; `None` at the end of the file or if it is too large.
    fn stream(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(next) = beginning(&self.packed, self.searched.max(1)) {
                let after = self.packed.split_off(next);
                self.searched = 0;
                return Ok(Some(std::mem::replace(&mut self.packed, after)));
            }
            self.searched = self.packed.len().saturating_sub(MAGIC - 1);
            let Some(file) = &mut self.file else { return Ok(None) };
            if self.packed.len() > STREAM {
                return Ok(None);
            }
            if file.by_ref().take(CHUNK as u64).read_to_end(&mut self.packed)? == 0 {
                self.file = None;
                let last = std::mem::take(&mut self.packed);
                return Ok(if last.is_empty() { None } else { Some(last) });
            }
        }
    }

    fn unpack_more(&mut self) {
        let mut batch = Vec::new();
        let mut failed = None;
        while batch.len() < self.threads && failed.is_none() {
            match self.stream() {
                Ok(Some(stream)) => batch.push(stream),
                Ok(None) => break,
                Err(error) => failed = Some(error),
            }
        }
        let unpacked: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = batch.iter().map(|stream| scope.spawn(move || unpack(stream))).collect();
            let failed = |_| (Vec::new(), Some(io::Error::other("a thread that unpacks failed")));
            threads.into_iter().map(|t| t.join().unwrap_or_else(failed)).collect()
        });
        for (at, (text, problem)) in unpacked.into_iter().enumerate() {
            if text.len() as u64 >= UNPACKED {
                return self.one_by_one(batch.split_off(at).concat());
            }
            self.ready.push_back(Ok(text));
            self.ready.extend(problem.map(Err));
        }
        self.ready.extend(failed.map(Err));
        if batch.is_empty() && (self.file.is_some() || !self.packed.is_empty()) {
            self.one_by_one(Vec::new());
        }
    }

    /// Streams too large to be held: `packed` and all after it in one thread, as they come.
    fn one_by_one(&mut self, mut packed: Vec<u8>) {
        packed.append(&mut self.packed);
        let file: Box<dyn BufRead> = match self.file.take() {
            Some(file) => Box::new(file),
            None => Box::new(io::empty()),
        };
        self.rest = Some(Box::new(Bzip2::new(Cursor::new(packed).chain(file))));
    }
}

impl Read for Streams {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        loop {
            let n = self.current.read(to)?;
            if n > 0 || to.is_empty() {
                return Ok(n);
            }
            match self.ready.pop_front() {
                Some(next) => self.current = Cursor::new(next?),
                None => match &mut self.rest {
                    Some(rest) => return rest.read(to),
                    None if self.file.is_none() && self.packed.is_empty() => return Ok(0),
                    None => self.unpack_more(),
                },
            }
        }
    }
}

/// Bytes that begin a bzip2 stream with something in it: `BZh`, the block size, and the block's mark (the digits of pi).
const MAGIC: usize = 10;

/// Where the next stream begins, at `from` or after.
fn beginning(packed: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    while let Some(next) = packed.get(at..)?.iter().position(|&b| b == b'B') {
        at += next;
        if let [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, 0x53, 0x59] = packed.get(at..at + MAGIC)? {
            return Some(at);
        }
        at += 1;
    }
    None
}

/// A stream's text, up to [`UNPACKED`] bytes, and the error that it breaks off with.
fn unpack(packed: &[u8]) -> (Vec<u8>, Option<io::Error>) {
    let mut text = Vec::new();
    let problem = Bzip2::new(packed).take(UNPACKED).read_to_end(&mut text).err();
    (text, problem)
}
