//! The state directory in a tmpfs that is full.

use std::{fs, io::Write, path::Path, process::Command};

use secureoverlay_agent::state_directory::{FileContent, StateDirectory};
use tempfile::TempDir;

/// A tmpfs of 8 MiB; unmounted when dropped.
struct Mount(TempDir);

impl Mount {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=8m", "none"]).arg(directory.path()));
        Self(directory)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Takes all that is left.
    fn fill(&self) {
        let mut file =
            fs::OpenOptions::new().create(true).append(true).open(self.path().join("filler")).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
    }

    fn free(&self) {
        fs::remove_file(self.path().join("filler")).unwrap();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        run(Command::new("umount").arg(self.path()));
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn journal_goes_on_in_a_full_tmpfs_as_far_as_its_room_goes() {
    let mount = Mount::new();
    let directory = StateDirectory::open(mount.path()).unwrap();
    let (mut journal, _) = directory.open_journal().unwrap();
    journal.replace(b"journal 1\n").unwrap();
    mount.fill();
    let line = [b"x".repeat(999), b"\n".to_vec()].concat();
    let mut appended = 0;
    let error = loop {
        match journal.append(&line) {
            Ok(()) => appended += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error.reason(), "StateDirectoryFull");
    assert!((500..=1100).contains(&appended), "{appended} lines of 1,000 bytes");
    assert_eq!(journal.append(&line).unwrap_err().reason(), "StateDirectoryFull", "it stays so");
    assert_eq!(fs::read(mount.path().join("journal")).unwrap().len(), 10 + appended * 1000, "whole lines");
    // Its successor has room of its own.
    journal.replace(b"journal 1\nshort\n").unwrap();
    mount.free();
    journal.append(b"again\n").unwrap();
    drop((directory, journal));
    let (_, content) = StateDirectory::open(mount.path()).unwrap().open_journal().unwrap();
    assert!(matches!(content, FileContent::Bytes(bytes) if *bytes == *b"journal 1\nshort\nagain\n"));
}

#[test]
fn identity_and_state_are_replaced_in_a_full_tmpfs() {
    let mount = Mount::new();
    let mut directory = StateDirectory::open(mount.path()).unwrap();
    directory.write_identity(b"one").unwrap();
    directory.write_state(b"one").unwrap();
    for round in ["two", "three", "four"] {
        mount.fill();
        directory.write_identity(round.as_bytes()).unwrap();
        directory.write_state(round.as_bytes()).unwrap();
        assert_eq!(fs::read_to_string(mount.path().join("identity")).unwrap(), round);
        assert_eq!(fs::read_to_string(mount.path().join("state")).unwrap(), round);
    }
    let long = vec![b'x'; 1 << 20];
    assert_eq!(directory.write_state(&long).unwrap_err().reason(), "StateDirectoryFull");
    assert_eq!(fs::read_to_string(mount.path().join("state")).unwrap(), "four", "nothing of it is in force");
    mount.free();
    directory.write_state(&long).unwrap();
}

#[test]
fn agent_that_begins_in_a_full_tmpfs_says_so() {
    let mount = Mount::new();
    mount.fill();
    let mut directory = StateDirectory::open(mount.path()).unwrap();
    assert_eq!(directory.read_identity().unwrap(), FileContent::Absent);
    assert_eq!(directory.write_identity(b"one").unwrap_err().reason(), "StateDirectoryFull");
    let (mut journal, _) = directory.open_journal().unwrap();
    assert_eq!(journal.replace(b"journal 1\n").unwrap_err().reason(), "StateDirectoryFull");
    mount.free();
    directory.write_identity(b"one").unwrap();
    journal.replace(b"journal 1\n").unwrap();
}
