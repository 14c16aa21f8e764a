//! The journal's file: whole lines, appended with one write each time.

use std::os::fd::OwnedFd;

use rustix::{
    fs::{self, AtFlags, FallocateFlags, Mode, OFlags},
    io::Errno,
};

use super::{
    Directory, FileContent, JOURNAL, JOURNAL_ROOM, MAX_JOURNAL, StateError, read_all, spare::Spare,
    write_error,
};

/// The journal.
#[derive(Debug)]
pub struct JournalFile {
    directory: Directory,
    spare: Spare,
    /// Absent until the first [`Self::replace`] where there was none.
    file: Option<OwnedFd>,
    /// Where the next line begins.
    end: u64,
    /// Up to where there is room.
    room: u64,
}

impl JournalFile {
    pub(super) fn open(directory: Directory) -> Result<(Self, FileContent), StateError> {
        let spare = Spare::new(&directory, JOURNAL, JOURNAL_ROOM);
        let mut journal = Self { directory, spare, file: None, end: 0, room: 0 };
        let flags = OFlags::RDWR | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match fs::openat(&journal.directory.fd, JOURNAL, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok((journal, FileContent::Absent)),
            opened => opened.map_err(|errno| journal.unreadable(errno.into()))?,
        };
        let mut content = match read_all(&file, MAX_JOURNAL).map_err(|error| journal.unreadable(error))? {
            FileContent::Bytes(bytes) => bytes,
            other => return Ok((journal, other)),
        };
        let whole = content.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        if whole < content.len() {
            // The SA of a torn line was not installed.
            fs::ftruncate(&file, whole as u64).map_err(|errno| journal.failed(errno))?;
        }
        (journal.end, journal.file) = (whole as u64, Some(file));
        journal.make_room(0);
        content.truncate(whole);
        Ok((journal, FileContent::Bytes(content)))
    }

    /// Appends whole lines with one write. They count once this has succeeded.
    ///
    /// # Errors
    /// [`StateError::Replaced`]: the agent must end. [`StateError::Full`], [`StateError::Unwritable`]: nothing was
    /// appended.
    pub fn append(&mut self, lines: &[u8]) -> Result<(), StateError> {
        self.verify()?;
        let needed = lines.len() as u64;
        let room = self.make_room(needed);
        let Some(file) = &self.file else { return Err(self.failed(Errno::NOENT)) };
        if !room {
            return Err(self.failed(Errno::NOSPC));
        }
        let written = loop {
            match rustix::io::write(file, lines) {
                Err(Errno::INTR) => {}
                written => break written,
            }
        };
        let errno = match written {
            Ok(count) if count == lines.len() => {
                self.end += needed;
                // For the next time, while there may be space.
                self.make_room(JOURNAL_ROOM / 2);
                return Ok(());
            }
            Ok(_) => Errno::NOSPC,
            Err(errno) => errno,
        };
        // A part of a line is worse than none: the next append would complete it.
        if let Err(errno) = fs::ftruncate(file, self.end) {
            self.file = None;
            return Err(self.failed(errno));
        }
        self.room = self.end;
        Err(self.failed(errno))
    }

    /// Replaces all lines, as a whole or not at all.
    ///
    /// # Errors
    /// As [`Self::append`].
    pub fn replace(&mut self, lines: &[u8]) -> Result<(), StateError> {
        if self.file.is_some() {
            self.verify()?;
        }
        self.file = Some(self.spare.write(&self.directory, lines)?);
        (self.end, self.room) = (lines.len() as u64, JOURNAL_ROOM);
        self.make_room(JOURNAL_ROOM / 2);
        Ok(())
    }

    /// Bytes that the file has.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.end
    }

    /// Whether there is nothing in it, or no file.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.end == 0
    }

    /// Whether the directory and the journal are still those that were opened.
    ///
    /// # Errors
    /// [`StateError::Replaced`]: the agent must end.
    pub fn verify(&self) -> Result<(), StateError> {
        self.directory.verify()?;
        let Some(file) = &self.file else { return Ok(()) };
        let named = fs::statat(&self.directory.fd, JOURNAL, AtFlags::SYMLINK_NOFOLLOW);
        self.directory.same(file, named, &self.directory.path.join(JOURNAL))
    }

    /// Sees to it that there is room for `needed` bytes, and takes [`JOURNAL_ROOM`] where there is not. The size of the
    /// file stays: appends go to its end.
    fn make_room(&mut self, needed: u64) -> bool {
        if self.room >= self.end + needed.max(1) {
            return true;
        }
        let Some(file) = &self.file else { return false };
        let wanted = needed.max(JOURNAL_ROOM);
        for length in [wanted, needed] {
            if length > 0 && fs::fallocate(file, FallocateFlags::KEEP_SIZE, self.end, length).is_ok() {
                self.room = self.end + length;
                return true;
            }
        }
        false
    }

    fn unreadable(&self, source: std::io::Error) -> StateError {
        StateError::Unreadable { file: self.directory.file(JOURNAL), source }
    }

    fn failed(&self, errno: Errno) -> StateError {
        write_error(self.directory.file(JOURNAL), errno)
    }
}
