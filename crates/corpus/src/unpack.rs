//! Files packed with gzip, bzip2, xz or Zstandard, told by their first bytes.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use crate::error::{Error, Result};

/// Bytes read at a time, packed and unpacked.
pub(crate) const CHUNK: usize = 256 << 10;
/// What unpacking may take: the largest window that the zstd program allows too, and a dictionary twice the largest of xz's levels.
const ZSTD_WINDOW_LOG: u32 = 27;
const XZ_MEMORY: u64 = 256 << 20;

/// The bytes in a file, unpacked if need be.
///
/// # Errors
/// [`Error::Io`]. What is damaged further on shows when it is read.
pub(crate) fn open(path: &Path) -> Result<Box<dyn BufRead>> {
    let file = File::open(path).map_err(Error::io("read", path))?;
    unpack(BufReader::with_capacity(CHUNK, file)).map_err(Error::io("read", path))
}

/// [`open`], of an open file.
pub(crate) fn unpack(mut file: BufReader<File>) -> io::Result<Box<dyn BufRead>> {
    let start = file.fill_buf()?;
    Ok(if start.starts_with(&[0x1f, 0x8b]) {
        Box::new(BufReader::with_capacity(CHUNK, flate2::bufread::MultiGzDecoder::new(file)))
    } else if start.starts_with(b"BZh") {
        Box::new(BufReader::with_capacity(CHUNK, bzip2::bufread::MultiBzDecoder::new(file)))
    } else if start.starts_with(&[0xfd, b'7', b'z', b'X', b'Z', 0]) {
        let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, liblzma::stream::CONCATENATED)?;
        Box::new(BufReader::with_capacity(CHUNK, liblzma::bufread::XzDecoder::new_stream(file, stream)))
    } else if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(file)?;
        decoder.window_log_max(ZSTD_WINDOW_LOG)?;
        Box::new(BufReader::with_capacity(CHUNK, decoder))
    } else {
        Box::new(file)
    })
}
