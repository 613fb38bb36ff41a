//! A file that is written under a temporary name, hashed on the way, and appears when it is complete.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use xxhash_rust::xxh3::Xxh3;

use super::manifest::{FileEntry, hex};
use crate::error::{Error, Result};
use crate::files::sync_dir;

/// A file in the making. Dropped before [`AtomicFile::seal`], it leaves nothing behind.
pub(super) struct AtomicFile {
    file: BufWriter<File>,
    names: Names,
    hash: Box<Xxh3>,
    bytes: u64,
}

/// A complete file that is on the disk, under its temporary name.
pub(super) struct Sealed {
    names: Names,
    pub(super) entry: FileEntry,
}

/// Removes the temporary file unless it was renamed.
struct Names {
    path: PathBuf,
    temporary: PathBuf,
    published: bool,
}

impl Drop for Names {
    fn drop(&mut self) {
        if !self.published {
            // What may be left is a temporary file, which the next run of the shard removes.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

impl Names {
    fn of(path: &Path) -> Self {
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(format!(".{}.tmp", std::process::id()));
        Self { path: path.to_path_buf(), temporary: path.with_file_name(name), published: false }
    }
}

impl AtomicFile {
    pub(super) fn create(path: &Path) -> Result<Self> {
        let names = Names::of(path);
        let file = File::create(&names.temporary).map_err(Error::io("create", path))?;
        Ok(Self { file: BufWriter::with_capacity(1 << 18, file), names, hash: Box::default(), bytes: 0 })
    }

    /// Brings everything to the disk, still under the temporary name.
    pub(super) fn seal(self) -> Result<Sealed> {
        let Self { file, names, hash, bytes } = self;
        let file = file.into_inner().map_err(|e| Error::io("write", &names.path)(e.into_error()))?;
        file.sync_all().map_err(Error::io("sync", &names.path))?;
        let name = names.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Sealed { entry: FileEntry { name, bytes, hash: hex(hash.digest128()) }, names })
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
    /// [`Error::Io`] if the folder went away.
    pub fn publish(self) -> Result<FileEntry> {
        self.sealed.publish()
    }
}

impl Sealed {
    /// A second name for a complete file, or a copy of it where the file system has no links. `entry` says what is in it.
    pub(super) fn link(from: &Path, to: &Path, entry: FileEntry) -> Result<Self> {
        let names = Names::of(to);
        // Left by a process of the same number that was killed.
        let _ = fs::remove_file(&names.temporary);
        if fs::hard_link(from, &names.temporary).is_err() {
            fs::copy(from, &names.temporary).map_err(Error::io("write", to))?;
            File::open(&names.temporary).and_then(|f| f.sync_all()).map_err(Error::io("sync", to))?;
        }
        Ok(Self { names, entry })
    }

    /// The folder that it is in.
    pub(super) fn dir(&self) -> &Path {
        self.names.path.parent().unwrap_or(Path::new(""))
    }

    /// Gives the file its name. The folder is still to be synced.
    pub(super) fn rename(mut self) -> Result<FileEntry> {
        fs::rename(&self.names.temporary, &self.names.path).map_err(Error::io("rename", &self.names.path))?;
        self.names.published = true;
        Ok(self.entry)
    }

    /// Gives the file its name, for good.
    pub(super) fn publish(self) -> Result<FileEntry> {
        let dir = self.dir().to_path_buf();
        let entry = self.rename()?;
        sync_dir(&dir)?;
        Ok(entry)
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
