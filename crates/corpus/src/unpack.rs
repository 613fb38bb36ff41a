//! Packed input: gzip, bzip2, xz and Zstandard, told by the first bytes and never by a file's name.
//!
//! A packed file may have many members (streams, frames) one after the other. Bytes after the last gzip or bzip2 member are left out, as
//! `gzip` and `bzip2` do: zeros, which pad tapes, without a word, anything else with a warning in the log.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::Path;

use bzip2::bufread::BzDecoder;
use flate2::bufread::GzDecoder;

use crate::error::{Error, Result};

/// Bytes read at a time, packed and unpacked.
pub(crate) const CHUNK: usize = 256 << 10;
/// What unpacking may take: the largest window that the zstd program allows too, and a dictionary twice the largest of xz's levels.
const ZSTD_WINDOW_LOG: u32 = 27;
const XZ_MEMORY: u64 = 256 << 20;
/// Bytes of a Zstandard dictionary that a file brings along.
const ZSTD_DICTIONARY: u32 = 8 << 20;
/// Bytes that tell a packing.
const MAGIC: usize = 6;

const GZIP: &[u8] = &[0x1f, 0x8b];
const BZIP2: &[u8] = b"BZh";
const XZ: &[u8] = &[0xfd, b'7', b'z', b'X', b'Z', 0];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// Endings of the names of packed files.
const ENDINGS: [&str; 6] = [".gz", ".bz2", ".xz", ".zst", ".zstd", ".bz"];

/// A file's name in lower case without the ending of its packing.
pub(crate) fn without_packing(name: &str) -> &str {
    ENDINGS.iter().find_map(|ending| name.strip_suffix(ending)).unwrap_or(name)
}

/// The bytes in a file, unpacked if need be.
///
/// # Errors
/// [`Error::Io`]. What is damaged further on shows when it is read.
pub(crate) fn open(path: &Path) -> Result<Box<dyn BufRead>> {
    let file = File::open(path).map_err(Error::io("read", path))?;
    unpack(BufReader::with_capacity(CHUNK, file)).map_err(Error::io("read", path))
}

/// Whether bytes that begin so are packed.
pub(crate) fn is_packed(start: &[u8]) -> bool {
    [GZIP, BZIP2, XZ, ZSTD].iter().any(|magic| start.starts_with(magic)) || is_skippable(start)
}

/// [`open`], of bytes from anywhere.
pub(crate) fn unpack<'a>(mut packed: impl BufRead + 'a) -> io::Result<Box<dyn BufRead + 'a>> {
    if packed.fill_buf()?.len() >= MAGIC {
        return by_magic(packed);
    }
    // Pipes and archives may give fewer bytes at a time than tell a packing.
    let mut start = Vec::with_capacity(MAGIC);
    packed.by_ref().take(MAGIC as u64).read_to_end(&mut start)?;
    by_magic(Cursor::new(start).chain(packed))
}

fn by_magic<'a>(mut packed: impl BufRead + 'a) -> io::Result<Box<dyn BufRead + 'a>> {
    let start = packed.fill_buf()?;
    Ok(if start.starts_with(GZIP) {
        Box::new(BufReader::with_capacity(CHUNK, Members::<_, GzDecoder<_>>::new(packed)))
    } else if start.starts_with(BZIP2) {
        Box::new(BufReader::with_capacity(CHUNK, Members::<_, BzDecoder<_>>::new(packed)))
    } else if start.starts_with(XZ) {
        let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, liblzma::stream::CONCATENATED)?;
        Box::new(BufReader::with_capacity(CHUNK, liblzma::bufread::XzDecoder::new_stream(packed, stream)))
    } else if start.starts_with(ZSTD) || is_skippable(start) {
        let mut decoder = match dictionary(&mut packed)? {
            Some(dictionary) => zstd::stream::read::Decoder::with_dictionary(packed, &dictionary)?,
            None => zstd::stream::read::Decoder::with_buffer(packed)?,
        };
        decoder.window_log_max(ZSTD_WINDOW_LOG)?;
        Box::new(BufReader::with_capacity(CHUNK, decoder))
    } else {
        Box::new(packed)
    })
}

/// A Zstandard frame that holds no data.
fn is_skippable(start: &[u8]) -> bool {
    matches!(start, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..])
}

/// The dictionary of a file that begins with one, as the WARC files of some crawlers do (IIPC, WARC-zstd 1.0): a skippable frame of the
/// number 0x5d, its content packed or not.
fn dictionary(packed: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    if packed.fill_buf()?.first() != Some(&0x5d) {
        return Ok(None);
    }
    let mut head = [0; 8];
    packed.read_exact(&mut head)?;
    let length = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
    if length > ZSTD_DICTIONARY {
        return Err(io::Error::other(format!("a dictionary of {length} bytes, more than the {ZSTD_DICTIONARY} that are read")));
    }
    let mut bytes = Vec::new();
    packed.take(u64::from(length)).read_to_end(&mut bytes)?;
    if bytes.starts_with(ZSTD) {
        let (inner, mut plain) = (std::mem::take(&mut bytes), Vec::new());
        zstd::stream::read::Decoder::with_buffer(&*inner)?.take(u64::from(ZSTD_DICTIONARY)).read_to_end(&mut plain)?;
        bytes = plain;
    }
    Ok(Some(bytes))
}

/// A decoder of one member.
pub(crate) trait Member<R>: Read {
    const MAGIC: &'static [u8];
    const NAME: &'static str;
    fn begin(packed: R) -> Self;
    fn end(self) -> R;
}

impl<R: BufRead> Member<R> for GzDecoder<R> {
    const MAGIC: &'static [u8] = GZIP;
    const NAME: &'static str = "gzip";

    fn begin(packed: R) -> Self {
        Self::new(packed)
    }

    fn end(self) -> R {
        self.into_inner()
    }
}

impl<R: BufRead> Member<R> for BzDecoder<R> {
    const MAGIC: &'static [u8] = BZIP2;
    const NAME: &'static str = "bzip2";

    fn begin(packed: R) -> Self {
        Self::new(packed)
    }

    fn end(self) -> R {
        self.into_inner()
    }
}

/// Members one after the other, up to what is none.
pub(crate) struct Members<R, D> {
    member: Option<D>,
    packed: Option<R>,
}

/// Streams of bzip2.
pub(crate) type Bzip2<R> = Members<R, BzDecoder<R>>;

impl<R: BufRead, D> Members<R, D> {
    /// Of bytes that begin with a member.
    pub(crate) fn new(packed: R) -> Self {
        Self { member: None, packed: Some(packed) }
    }
}

impl<R: BufRead, D: Member<R>> Members<R, D> {
    /// Whether another member follows.
    fn more(packed: &mut R) -> io::Result<bool> {
        let mut zeros = true;
        loop {
            let bytes = packed.fill_buf()?;
            match bytes.iter().position(|b| *b != 0).filter(|_| zeros) {
                _ if bytes.is_empty() => return Ok(false),
                None => {
                    let all = bytes.len();
                    packed.consume(all);
                }
                Some(at) if at > 0 => packed.consume(at),
                Some(_) => {
                    // A member that the buffer cuts after its first byte is begun; its decoder says what is wrong with it.
                    if bytes[..bytes.len().min(D::MAGIC.len())] == D::MAGIC[..bytes.len().min(D::MAGIC.len())] {
                        return Ok(true);
                    }
                    log::warn!("bytes after the last {} member are left out", D::NAME);
                    zeros = false;
                    let all = bytes.len();
                    packed.consume(all);
                }
            }
        }
    }
}

impl<R: BufRead, D: Member<R>> Read for Members<R, D> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(member) = &mut self.member {
                let read = member.read(to)?;
                if read > 0 || to.is_empty() {
                    return Ok(read);
                }
                self.packed = self.member.take().map(D::end);
            }
            let Some(mut packed) = self.packed.take() else { return Ok(0) };
            if !Self::more(&mut packed)? {
                return Ok(0);
            }
            self.member = Some(D::begin(packed));
        }
    }
}

/// Errors that the decoders make of bad bytes, as against those of the disk.
pub(crate) fn is_damage(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, InvalidInput, Other, UnexpectedEof};
    matches!(error.kind(), InvalidData | InvalidInput | Other | UnexpectedEof) && error.raw_os_error().is_none()
}
