//! A file that is written under a temporary name, hashed on the way, and appears when it is complete.

use std::io::{self, Write};
use std::path::Path;

use xxhash_rust::xxh3::Xxh3;

use super::manifest::{FileEntry, hex};
use crate::error::Result;
use crate::files::{self, Atomic};

/// A file in the making. Dropped before [`AtomicFile::seal`], it leaves nothing behind.
pub(super) struct AtomicFile {
    file: Atomic,
    hash: Box<Xxh3>,
    bytes: u64,
}

/// A complete file that is on the disk, under its temporary name.
pub(super) struct Sealed {
    file: files::Sealed,
    pub(super) entry: FileEntry,
}

impl AtomicFile {
    pub(super) fn create(path: &Path) -> Result<Self> {
        // What killed processes left goes with the shard, before it is made anew.
        Ok(Self { file: Atomic::create_unswept(path)?, hash: Box::default(), bytes: 0 })
    }

    /// Brings everything to the disk, still under the temporary name.
    pub(super) fn seal(self) -> Result<Sealed> {
        let Self { file, hash, bytes } = self;
        let file = file.seal()?;
        let name = file.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Sealed { entry: FileEntry { name, bytes, hash: hex(hash.digest128()) }, file })
    }
}

/// A complete file that is on the disk and has not its name yet. Dropped, it is removed.
pub struct Pending {
    pub(super) sealed: Sealed,
    pub(super) rows: u64,
}

impl Pending {
    /// The rows in it.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Makes it appear under its name.
    ///
    /// # Errors
    /// [`crate::Error::Io`] if the folder went away.
    pub fn publish(self) -> Result<FileEntry> {
        self.sealed.publish()
    }
}

impl Sealed {
    /// A second name for a complete file. `entry` says what is in it.
    pub(super) fn link(from: &Path, to: &Path, entry: FileEntry) -> Result<Self> {
        Ok(Self { file: files::Sealed::link(from, to)?, entry })
    }

    /// The folder that it is in.
    pub(super) fn dir(&self) -> &Path {
        self.file.path().parent().unwrap_or(Path::new(""))
    }

    /// Gives the file its name. The folder is still to be synced.
    pub(super) fn rename(self) -> Result<FileEntry> {
        self.file.rename()?;
        Ok(self.entry)
    }

    /// Gives the file its name, for good.
    pub(super) fn publish(self) -> Result<FileEntry> {
        self.file.commit()?;
        Ok(self.entry)
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
