//! The files that outlive an agent and end with the boot (`docs/agent.md`, section 1): the identity, the state and
//! the journal of used keys, in a directory that one agent has at a time.
//!
//! What the files say is not known here. Reading and writing are relative to the opened directory, so that a directory
//! that is put in its place is never taken for it.

mod journal_file;
mod spare;

use std::{
    fmt, io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{self, AtFlags, CWD, FileType, FlockOperation, Mode, OFlags},
    io::Errno,
};
use zeroize::Zeroizing;

pub use self::journal_file::JournalFile;
use self::spare::Spare;

/// The file with the node's private key.
pub const IDENTITY: &str = "identity";
/// The file with what was applied, announced and drawn.
pub const STATE: &str = "state";
/// The file with the keys that this boot's kernel may have been given.
pub const JOURNAL: &str = "journal";

/// `TMPFS_MAGIC` of `linux/magic.h`.
const TMPFS_MAGIC: u64 = 0x0102_1994;
const DIRECTORY_MODE: Mode = Mode::RWXU;
const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);
/// Room that is kept for the next identity: it has 150 bytes.
const IDENTITY_ROOM: u64 = 4 << 10;
/// Room that is kept for the next state: 400 entries, each of a draw or an address.
const STATE_ROOM: u64 = 64 << 10;
/// Room that is kept in front of the journal's end, and for its successor.
const JOURNAL_ROOM: u64 = 1 << 20;
/// Longest identity and state that are read.
const MAX_LEN: u64 = 4 << 20;
/// Longest journal that is read: one of 20,000 peers takes a tenth of this.
const MAX_JOURNAL: u64 = 64 << 20;

/// Why the directory can't be used. [`Self::reason`] is what the agent reports.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// What is written there would outlive the boot, or the agent alone has it.
    #[error(
        "{path} is not a mounted tmpfs ({found}): identity and journal are kept in memory; mount the host's {path}"
    )]
    NotTmpfs {
        /// The directory.
        path: String,
        /// What it is.
        found: String,
    },
    /// The lock is held.
    #[error("another agent runs on this node: it holds the lock on {path}")]
    AnotherAgentRuns {
        /// The directory.
        path: String,
    },
    /// No room.
    #[error("{file}: no space left on the tmpfs; free space on it")]
    Full {
        /// The file.
        file: String,
    },
    /// It is there, and what it says is not known.
    #[error("failed to read {file}: {source}")]
    Unreadable {
        /// The file or directory.
        file: String,
        /// Why.
        source: io::Error,
    },
    /// It can't be written, and there is room.
    #[error("failed to write {file}: {source}")]
    Unwritable {
        /// The file.
        file: String,
        /// Why.
        source: io::Error,
    },
    /// Another agent may have begun with what is there now: this one must end.
    #[error(
        "{file} was removed or replaced while the agent ran; the agent ends, its successor begins with what is there"
    )]
    Replaced {
        /// The file or directory.
        file: String,
    },
}

impl StateError {
    /// The reason under which it is reported.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::NotTmpfs { .. } => "StateDirectoryVolatile",
            Self::AnotherAgentRuns { .. } => "AnotherAgentRuns",
            Self::Full { .. } => "StateDirectoryFull",
            Self::Unreadable { .. } => "StateDirectoryUnreadable",
            Self::Unwritable { .. } => "StateDirectoryUnwritable",
            Self::Replaced { .. } => "StateDirectoryReplaced",
        }
    }
}

/// What a file holds. The bytes are wiped when dropped.
#[derive(PartialEq, Eq)]
pub enum FileContent {
    /// There is no such file.
    Absent,
    /// Its bytes.
    Bytes(Zeroizing<Vec<u8>>),
    /// More than any file of ours has: malformed, whatever it says.
    TooLong,
}

impl fmt::Debug for FileContent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("Absent"),
            Self::Bytes(bytes) => write!(f, "Bytes({} bytes)", bytes.len()),
            Self::TooLong => f.write_str("TooLong"),
        }
    }
}

/// The directory, locked by this process for as long as it has it.
#[derive(Debug)]
pub struct StateDirectory {
    directory: Directory,
    identity: Spare,
    state: Spare,
}

impl StateDirectory {
    /// Opens and locks the directory. In a tmpfs it is created.
    ///
    /// # Errors
    /// [`StateError::NotTmpfs`], [`StateError::AnotherAgentRuns`], [`StateError::Unreadable`].
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let directory = Directory::open(path)?;
        // A process that was killed left these; what they hold was never in force.
        let identity = Spare::new(&directory, IDENTITY, IDENTITY_ROOM);
        let state = Spare::new(&directory, STATE, STATE_ROOM);
        Ok(Self { directory, identity, state })
    }

    /// What the identity's file holds.
    ///
    /// # Errors
    /// [`StateError::Unreadable`].
    pub fn read_identity(&self) -> Result<FileContent, StateError> {
        self.directory.read(IDENTITY, MAX_LEN)
    }

    /// What the state's file holds.
    ///
    /// # Errors
    /// [`StateError::Unreadable`].
    pub fn read_state(&self) -> Result<FileContent, StateError> {
        self.directory.read(STATE, MAX_LEN)
    }

    /// Replaces the identity, as a whole or not at all.
    ///
    /// # Errors
    /// [`StateError::Full`], [`StateError::Unwritable`], [`StateError::Replaced`].
    pub fn write_identity(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        self.identity.write(&self.directory, bytes).map(drop)
    }

    /// Replaces the state, as a whole or not at all.
    ///
    /// # Errors
    /// [`StateError::Full`], [`StateError::Unwritable`], [`StateError::Replaced`].
    pub fn write_state(&mut self, bytes: &[u8]) -> Result<(), StateError> {
        self.state.write(&self.directory, bytes).map(drop)
    }

    /// Opens the journal, and what it holds: whole lines.
    ///
    /// # Errors
    /// [`StateError::Unreadable`], [`StateError::Unwritable`] where a torn line can't be cut off.
    pub fn open_journal(&self) -> Result<(JournalFile, FileContent), StateError> {
        JournalFile::open(self.directory.try_clone()?)
    }

    /// Ends with an error where the directory was removed or another is in its place.
    ///
    /// # Errors
    /// [`StateError::Replaced`].
    pub fn verify(&self) -> Result<(), StateError> {
        self.directory.verify()
    }
}

/// The opened directory. Clones share the lock.
#[derive(Debug)]
struct Directory {
    fd: OwnedFd,
    path: PathBuf,
}

impl Directory {
    fn open(path: &Path) -> Result<Self, StateError> {
        let name = path.display().to_string();
        let unreadable = |errno: Errno| StateError::Unreadable { file: name.clone(), source: errno.into() };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = match fs::open(path, flags, Mode::empty()) {
            Err(Errno::NOENT) => {
                // Nothing is written to what may be a disk.
                let parent = path.parent().unwrap_or(path);
                let inside = fs::statfs(parent).map_err(unreadable)?.f_type as u64;
                if inside != TMPFS_MAGIC {
                    return Err(not_tmpfs(&name, inside));
                }
                match fs::mkdir(path, DIRECTORY_MODE) {
                    Ok(()) | Err(Errno::EXIST) => fs::open(path, flags, Mode::empty()),
                    Err(errno) => Err(errno),
                }
            }
            opened => opened,
        };
        let fd = fd.map_err(unreadable)?;
        let found = fs::fstatfs(&fd).map_err(unreadable)?.f_type as u64;
        if found != TMPFS_MAGIC {
            return Err(not_tmpfs(&name, found));
        }
        match fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(StateError::AnotherAgentRuns { path: name }),
            Err(errno) => return Err(unreadable(errno)),
        }
        // The kubelet creates it for all to read.
        fs::fchmod(&fd, DIRECTORY_MODE).map_err(unreadable)?;
        let directory = Self { fd, path: path.to_owned() };
        directory.verify()?;
        Ok(directory)
    }

    fn try_clone(&self) -> Result<Self, StateError> {
        let fd =
            self.fd.try_clone().map_err(|source| StateError::Unreadable { file: self.name(), source })?;
        Ok(Self { fd, path: self.path.clone() })
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn file(&self, name: &str) -> String {
        self.path.join(name).display().to_string()
    }

    fn verify(&self) -> Result<(), StateError> {
        self.same(&self.fd, fs::statat(CWD, &self.path, AtFlags::SYMLINK_NOFOLLOW), &self.path)
    }

    /// Whether `opened` still has a name, and `named` is what that name leads to.
    fn same(
        &self,
        opened: impl AsFd,
        named: rustix::io::Result<fs::Stat>,
        path: &Path,
    ) -> Result<(), StateError> {
        let file = path.display().to_string();
        let unreadable = |errno: Errno| StateError::Unreadable { file: file.clone(), source: errno.into() };
        let opened = fs::fstat(opened).map_err(unreadable)?;
        let named = match named {
            Err(Errno::NOENT | Errno::NOTDIR) => return Err(StateError::Replaced { file }),
            named => named.map_err(unreadable)?,
        };
        let same = (opened.st_dev, opened.st_ino) == (named.st_dev, named.st_ino);
        if opened.st_nlink == 0 || !same { Err(StateError::Replaced { file }) } else { Ok(()) }
    }

    fn read(&self, name: &str, longest: u64) -> Result<FileContent, StateError> {
        let unreadable = |source: io::Error| StateError::Unreadable { file: self.file(name), source };
        // Without O_NONBLOCK, opening a FIFO waits.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match fs::openat(&self.fd, name, flags, Mode::empty()) {
            Err(Errno::NOENT) => Ok(FileContent::Absent),
            Err(errno) => Err(unreadable(errno.into())),
            Ok(file) => read_all(&file, longest).map_err(unreadable),
        }
    }
}

fn not_tmpfs(path: &str, magic: u64) -> StateError {
    StateError::NotTmpfs { path: path.to_owned(), found: format!("file system type {magic:#x}") }
}

/// Reads a regular file from its start, without a copy that is not wiped.
fn read_all(file: &OwnedFd, longest: u64) -> io::Result<FileContent> {
    let stat = fs::fstat(file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(io::Error::other("not a regular file"));
    }
    let length = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
    if length > longest {
        return Ok(FileContent::TooLong);
    }
    let length = usize::try_from(length).map_err(io::Error::other)?;
    let mut bytes = Zeroizing::new(vec![0; length]);
    let mut read = 0;
    while read < length {
        match rustix::io::pread(file, &mut bytes[read..], read as u64) {
            Ok(0) => return Err(io::Error::other("it became shorter while it was read")),
            Ok(count) => read += count,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(FileContent::Bytes(bytes))
}

/// What a failed write is.
fn write_error(file: String, errno: Errno) -> StateError {
    match errno {
        Errno::NOSPC | Errno::DQUOT => StateError::Full { file },
        errno => StateError::Unwritable { file, source: errno.into() },
    }
}

#[cfg(test)]
mod tests;
