//! The one way to write: a temporary name, sync, rename, sync of the folder. Files and folders appear whole or not at all,
//! and last through a power cut.
//!
//! What is being written stands beside its place as `NAME.tmp-PID-N`, locked by its writer; a folder that makes way for a
//! newer one is `NAME.old-PID-N` meanwhile. The system takes a lock back however its process ends, so what nobody holds was
//! left by a killed one: the next writer of the same name removes it, or puts it back where the new one never came. (On a
//! file system without locks it stays, and is named in a warning.)

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, ErrorKind, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};

/// Makes renames and new names in a folder last through a power cut. Elsewhere than on Unix a folder cannot be opened as a
/// file, and need not be.
pub fn sync_dir(dir: &Path) -> Result<()> {
    if cfg!(unix) {
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        File::open(dir).and_then(|d| d.sync_all()).map_err(Error::io("sync", dir))?;
    }
    Ok(())
}

/// Brings a closed file to the disk. Windows does so only for one that is open for writing.
///
/// # Errors
/// Those of opening it, and a disk that refuses.
pub fn sync_file(path: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).open(path).or_else(|_| File::open(path))?.sync_all()
}

/// Writes a whole small file.
///
/// # Errors
/// Those of [`Atomic`].
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = Atomic::create(path)?;
    file.write_all(bytes).map_err(Error::io("write", path))?;
    file.commit()
}

/// A file in the making, buffered. It appears in [`Atomic::commit`]; dropped before, nothing is left.
#[derive(Debug)]
pub struct Atomic {
    file: BufWriter<File>,
    temporary: Temporary,
}

/// A complete file that is on the disk and has not its name yet. Dropped, it is removed.
#[derive(Debug)]
pub struct Sealed {
    _lock: File,
    temporary: Temporary,
}

impl Atomic {
    /// Begins the file `path`, and removes what killed writers of it left.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::BadValue`] where `path` is a folder or a device.
    pub fn create(path: &Path) -> Result<Self> {
        remove_leftovers(path)?;
        Self::create_unswept(path)
    }

    /// [`Atomic::create`] that looks for no leftovers, for folders of so many files that they are listed only once: see
    /// [`clean`].
    ///
    /// # Errors
    /// Those of [`Atomic::create`].
    pub fn create_unswept(path: &Path) -> Result<Self> {
        // A device would be replaced by a file.
        if path.metadata().is_ok_and(|m| !m.is_file()) {
            let problem = format!("`{}` exists and is no plain file", path.display());
            return Err(Error::bad_value("output file", problem, "give another name"));
        }
        loop {
            let temporary = Temporary::beside(path)?;
            let file =
                OpenOptions::new().write(true).create_new(true).open(&temporary.path).map_err(Error::io("create", path))?;
            if is_held(&file, &temporary.path) {
                return Ok(Self { file: BufWriter::with_capacity(1 << 18, file), temporary });
            }
        }
    }

    /// Brings everything to the disk, still under the temporary name.
    ///
    /// # Errors
    /// [`Error::Io`], e.g. for a full disk.
    pub fn seal(self) -> Result<Sealed> {
        let Self { file, temporary } = self;
        let file = file.into_inner().map_err(|e| Error::io("write", &temporary.whole)(e.into_error()))?;
        file.sync_all().map_err(Error::io("sync", &temporary.whole))?;
        Ok(Sealed { _lock: file, temporary })
    }

    /// Brings everything to the disk and gives the file its name.
    ///
    /// # Errors
    /// Those of [`Atomic::seal`] and [`Sealed::commit`].
    pub fn commit(self) -> Result<()> {
        self.seal()?.commit()
    }
}

impl Write for Atomic {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for Atomic {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

impl Sealed {
    /// A second name, `path`, for the complete file `from`: a link, or a copy where the file system has no links.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn link(from: &Path, path: &Path) -> Result<Self> {
        let temporary = Temporary::beside(path)?;
        if fs::hard_link(from, &temporary.path).is_err() {
            fs::copy(from, &temporary.path).map_err(Error::io("write", path))?;
            sync_file(&temporary.path).map_err(Error::io("sync", path))?;
        }
        // A lock would be one on the first name too.
        Ok(Self { _lock: File::open(&temporary.path).map_err(Error::io("read", path))?, temporary })
    }

    /// The name that the file will have.
    #[expect(clippy::misnamed_getters, reason = "the temporary file's own path is of no use outside")]
    pub fn path(&self) -> &Path {
        &self.temporary.whole
    }

    /// Gives the file its name. The caller syncs the folder, when all files have theirs.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder went away.
    pub fn rename(self) -> Result<()> {
        self.temporary.rename()
    }

    /// Gives the file its name, for good.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder went away.
    pub fn commit(self) -> Result<()> {
        let parent = parent(&self.temporary.whole).to_path_buf();
        self.rename()?;
        sync_dir(&parent)
    }
}

/// A folder in the making. It appears in [`Folder::commit`] or [`Folder::replace`]; dropped before, nothing is left. One
/// that never appears is a place for what is spilled.
#[derive(Debug)]
pub struct Folder {
    temporary: Temporary,
    _lock: Option<File>,
}

impl Folder {
    /// Begins the folder `path`, and removes what killed writers of it left. Folders above it are made.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::BadValue`] for a path that ends without a name.
    pub fn create(path: &Path) -> Result<Self> {
        let parent = parent(path);
        fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
        remove_leftovers(path)?;
        loop {
            let temporary = Temporary::beside(path)?;
            fs::create_dir(&temporary.path).map_err(Error::io("create", path))?;
            // Where a folder cannot be opened, it cannot be locked.
            let lock = File::open(&temporary.path).ok();
            if lock.as_ref().is_none_or(|lock| is_held(lock, &temporary.path)) {
                return Ok(Self { temporary, _lock: lock });
            }
        }
    }

    /// Where to write meanwhile.
    pub fn path(&self) -> &Path {
        &self.temporary.path
    }

    /// Brings all files in it to the disk and gives the folder its name, which must be free.
    ///
    /// # Errors
    /// Those of [`check_free`]; [`Error::Io`].
    pub fn commit(self) -> Result<()> {
        check_free(&self.temporary.whole)?;
        self.replace()
    }

    /// Brings all files in it to the disk and gives the folder its name. What has that name is removed.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn replace(self) -> Result<()> {
        sync_tree(self.path())?;
        let whole = self.temporary.whole.clone();
        let old = whole.exists().then(|| beside(&whole, "old"));
        // Held, so that nobody puts it back or removes it between the two renames.
        let _lock = old.as_ref().and_then(|_| File::open(&whole).ok()).filter(|lock| lock.try_lock().is_ok());
        if let Some(old) = &old {
            fs::rename(&whole, old).map_err(Error::io("rename", &whole))?;
        }
        if let Err(e) = self.temporary.rename() {
            // The first error is the one to tell; what stays away comes back with the next writer.
            let _ = old.map(|old| fs::rename(old, &whole));
            return Err(e);
        }
        sync_dir(parent(&whole))?;
        if let Some(e) = old.as_ref().and_then(|old| fs::remove_dir_all(old).err()) {
            log::warn!("{}: the one before it cannot be removed: {e}", whole.display());
        }
        Ok(())
    }
}

/// Expects that `dir` is not there, or is an empty folder.
///
/// # Errors
/// [`Error::BadValue`] for a folder with anything in it; [`Error::Io`].
pub fn check_free(dir: &Path) -> Result<()> {
    match fs::read_dir(dir).map(|mut entries| entries.next().is_some()) {
        Ok(false) => Ok(()),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::io("write", dir)(e)),
        Ok(true) => {
            let problem = format!("`{}` exists and is not empty", dir.display());
            Err(Error::bad_value("output folder", problem, "name a new folder, or remove this one first"))
        }
    }
}

/// Removes a folder so that no half of it is ever seen under its name.
///
/// # Errors
/// [`Error::Io`].
pub fn remove_folder(dir: &Path) -> Result<()> {
    let gone = beside(dir, "tmp");
    fs::rename(dir, &gone).map_err(Error::io("rename", dir))?;
    fs::remove_dir_all(&gone).map_err(Error::io("remove", &gone))?;
    sync_dir(parent(dir))
}

/// What stands beside a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aside {
    /// Being written, being removed, or left by a killed process.
    Temporary,
    /// Replaced by a newer one, if that is there.
    Old,
}

/// Whose temporary name `entry` is: `NAME.tmp-PID-N` or `NAME.old-PID-N`. Earlier versions wrote no `-N`, and a dot before
/// some names, which is left to the caller.
pub fn parse_aside(entry: &str) -> Option<(&str, Aside)> {
    let numbers = |text: &str| text.split('-').all(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
    [(".tmp-", Aside::Temporary), (".old-", Aside::Old)].into_iter().find_map(|(mark, aside)| {
        let (name, ids) = entry.rsplit_once(mark)?;
        (numbers(ids) && !name.is_empty()).then_some((name, aside))
    })
}

/// Removes what killed writers left in a folder of the names for which `ours` holds; what was being replaced comes back
/// where the new one never came. What a living process writes is left alone.
///
/// # Errors
/// [`Error::Io`].
pub fn clean(folder: &Path, ours: &dyn Fn(&str) -> bool) -> Result<()> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(Error::io("read", folder))?,
    };
    for entry in entries {
        let entry = entry.map_err(Error::io("read", folder))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let found = parse_aside(&name).filter(|(name, _)| ours(name) || name.strip_prefix('.').is_some_and(ours));
        let Some((name, aside)) = found else { continue };
        let (path, whole) = (entry.path(), folder.join(name));
        // A file must be open for writing where locks go over the network; a folder cannot be.
        let lock = OpenOptions::new().write(true).open(&path).or_else(|_| File::open(&path));
        let _lock = match lock.and_then(|lock| Ok(lock.try_lock().map(|()| lock)?)) {
            Ok(lock) => lock,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::NotFound) => continue,
            Err(e) => {
                log::warn!("{}: remove it if nobody writes here; whether it is in use cannot be told ({e})", path.display());
                continue;
            }
        };
        if aside == Aside::Old && !whole.exists() {
            log::warn!("{}: put back; its replacement was interrupted", whole.display());
            fs::rename(&path, &whole).map_err(Error::io("rename", &path))?;
            continue;
        }
        log::warn!("{}: removing what an interrupted process left", path.display());
        match if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) } {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(Error::io("remove", &path)(e)),
            _ => {}
        }
    }
    Ok(())
}

/// Removes what killed writers of `path` left.
fn remove_leftovers(path: &Path) -> Result<()> {
    let own = path.file_name().unwrap_or_default().to_string_lossy();
    clean(parent(path), &|name| name == own)
}

/// Whether a new temporary file is locked and was not taken for a leftover before it was. On a file system without locks
/// nobody takes it for one.
fn is_held(file: &File, path: &Path) -> bool {
    match file.try_lock() {
        Ok(()) => path.exists(),
        Err(TryLockError::WouldBlock) => false,
        Err(TryLockError::Error(_)) => true,
    }
}

/// A temporary name, and what has it until it is renamed.
#[derive(Debug)]
struct Temporary {
    path: PathBuf,
    whole: PathBuf,
}

impl Temporary {
    fn beside(whole: &Path) -> Result<Self> {
        if whole.file_name().is_none() {
            let problem = format!("`{}` does not end with a name", whole.display());
            return Err(Error::bad_value("output", problem, "name a new file or folder"));
        }
        Ok(Self { path: beside(whole, "tmp"), whole: whole.into() })
    }

    fn rename(&self) -> Result<()> {
        fs::rename(&self.path, &self.whole).map_err(Error::io("rename", &self.whole))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Nothing is there once it is renamed. What cannot be removed, the next writer of the name removes.
        let _ = if self.path.is_dir() { fs::remove_dir_all(&self.path) } else { fs::remove_file(&self.path) };
    }
}

/// A name that no process uses twice: a leftover is never mistaken for what has its name now.
fn beside(path: &Path, mark: &str) -> PathBuf {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let mut name = path.file_name().unwrap_or(OsStr::new("")).to_os_string();
    name.push(format!(".{mark}-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed)));
    path.with_file_name(name)
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Brings all files and folders in a folder to the disk, and itself.
fn sync_tree(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(Error::io("read", dir))? {
        let path = entry.map_err(Error::io("read", dir))?.path();
        if path.is_dir() {
            sync_tree(&path)?;
        } else {
            sync_file(&path).map_err(Error::io("sync", &path))?;
        }
    }
    sync_dir(dir)
}
