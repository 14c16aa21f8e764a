//! A file's successor, with room already taken: a full tmpfs does not stop a file from being replaced.

use std::os::fd::OwnedFd;

use rustix::{
    fs::{self, AtFlags, FallocateFlags, OFlags},
    io::Errno,
};

use super::{Directory, FILE_MODE, StateError, write_error};

/// `NAME.new`, for a file NAME.
#[derive(Debug)]
pub(super) struct Spare {
    name: &'static str,
    room: u64,
    /// Empty, with room; absent while there was no space for it.
    file: Option<OwnedFd>,
}

impl Spare {
    /// Takes the room. Where that fails, the write that needs it says so.
    pub fn new(directory: &Directory, name: &'static str, room: u64) -> Self {
        let mut spare = Self { name, room, file: None };
        let _ = spare.prepare(directory);
        spare
    }

    fn new_name(&self) -> String {
        format!("{}.new", self.name)
    }

    /// Creates the file anew: what a killed process left under its name is removed.
    fn prepare(&mut self, directory: &Directory) -> Result<(), StateError> {
        let new = self.new_name();
        let failed = |errno| write_error(directory.file(&new), errno);
        match fs::unlinkat(&directory.fd, &new, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(failed(errno)),
        }
        let flags = OFlags::RDWR
            | OFlags::APPEND
            | OFlags::CREATE
            | OFlags::EXCL
            | OFlags::NOFOLLOW
            | OFlags::CLOEXEC;
        let file = fs::openat(&directory.fd, &new, flags, FILE_MODE).map_err(failed)?;
        fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, self.room).map_err(failed)?;
        self.file = Some(file);
        Ok(())
    }

    /// Writes `bytes` and gives the file its name. The file, open for appending.
    pub fn write(&mut self, directory: &Directory, bytes: &[u8]) -> Result<OwnedFd, StateError> {
        directory.verify()?;
        let new = self.new_name();
        let failed = |errno| write_error(directory.file(&new), errno);
        let file = match self.file.take() {
            Some(file) => file,
            None => {
                self.prepare(directory)?;
                self.file.take().expect("prepared")
            }
        };
        let written = write_whole(&file, bytes)
            .and_then(|()| fs::renameat(&directory.fd, &new, &directory.fd, self.name));
        if let Err(errno) = written {
            // What is in it is of no use, and its room may be what others need.
            let _ = self.prepare(directory);
            return Err(failed(errno));
        }
        // Without space now, there may be some when the next write needs it.
        let _ = self.prepare(directory);
        Ok(file)
    }
}

fn write_whole(file: &OwnedFd, bytes: &[u8]) -> rustix::io::Result<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        match rustix::io::write(file, rest) {
            Ok(0) => return Err(Errno::NOSPC),
            Ok(count) => rest = &rest[count..],
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
