use std::{
    fs::{self as files, File, OpenOptions},
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
};

use tempfile::TempDir;

use super::*;

/// A directory in a tmpfs that every Linux has.
fn tmpfs() -> TempDir {
    tempfile::tempdir_in("/dev/shm").expect("/dev/shm is a tmpfs")
}

fn bytes(content: &FileContent) -> &[u8] {
    match content {
        FileContent::Bytes(bytes) => bytes,
        other => panic!("{other:?}"),
    }
}

#[test]
fn files_are_found_by_the_next_agent() {
    let place = tmpfs();
    let path = place.path().join("secureoverlay");
    let mut first = StateDirectory::open(&path).unwrap();
    assert_eq!(first.read_identity().unwrap(), FileContent::Absent);
    assert_eq!(first.read_state().unwrap(), FileContent::Absent);
    for round in [&b"one"[..], b"two, which is longer", b""] {
        first.write_identity(round).unwrap();
        first.write_state(round).unwrap();
        assert_eq!(bytes(&first.read_identity().unwrap()), round);
    }
    first.write_identity(b"mine").unwrap();
    drop(first);
    let second = StateDirectory::open(&path).unwrap();
    assert_eq!(bytes(&second.read_identity().unwrap()), b"mine");
    assert_eq!(bytes(&second.read_state().unwrap()), b"");
    assert_eq!(files::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o700);
    assert_eq!(files::metadata(path.join("identity")).unwrap().permissions().mode() & 0o7777, 0o600);
}

#[test]
fn directory_has_one_agent_at_a_time() {
    let place = tmpfs();
    let first = StateDirectory::open(place.path()).unwrap();
    let error = StateDirectory::open(place.path()).unwrap_err();
    assert_eq!(error.reason(), "AnotherAgentRuns");
    let (journal, _) = first.open_journal().unwrap();
    drop(first);
    assert!(StateDirectory::open(place.path()).is_err(), "its journal can still be written");
    drop(journal);
    assert!(StateDirectory::open(place.path()).is_ok());
}

#[test]
fn directory_that_is_no_tmpfs_is_neither_read_nor_written() {
    // Not a tmpfs anywhere that this runs, and not writable either.
    let error = StateDirectory::open(Path::new("/proc")).unwrap_err();
    assert_eq!(error.reason(), "StateDirectoryVolatile");
    let error = StateDirectory::open(Path::new("/proc/self/secureoverlay")).unwrap_err();
    assert_eq!(error.reason(), "StateDirectoryVolatile");
    assert!(error.to_string().contains("0x9fa0"), "{error}");
}

#[test]
fn what_can_not_be_opened_is_not_taken_for_absent() {
    let place = tmpfs();
    let directory = StateDirectory::open(place.path()).unwrap();
    let path = place.path().join("identity");
    files::create_dir(&path).unwrap();
    assert_eq!(directory.read_identity().unwrap_err().reason(), "StateDirectoryUnreadable");
    files::remove_dir(&path).unwrap();
    symlink("state", &path).unwrap();
    assert_eq!(
        directory.read_identity().unwrap_err().reason(),
        "StateDirectoryUnreadable",
        "a link is not followed"
    );
    files::remove_file(&path).unwrap();
    symlink("/dev/null", place.path().join("journal")).unwrap();
    assert_eq!(directory.open_journal().unwrap_err().reason(), "StateDirectoryUnreadable");
    let file = File::create(place.path().join("state")).unwrap();
    file.set_len(MAX_LEN + 1).unwrap();
    assert_eq!(directory.read_state().unwrap(), FileContent::TooLong);
    let linked = place.path().join("linked");
    symlink(place.path(), &linked).unwrap();
    assert_eq!(StateDirectory::open(&linked).unwrap_err().reason(), "StateDirectoryUnreadable");
    let file = place.path().join("state");
    assert_eq!(StateDirectory::open(&file).unwrap_err().reason(), "StateDirectoryUnreadable");
}

#[test]
fn leftovers_of_a_killed_agent_are_not_in_force() {
    let place = tmpfs();
    for name in ["identity.new", "state.new", "journal.new"] {
        files::write(place.path().join(name), "half a").unwrap();
    }
    let mut directory = StateDirectory::open(place.path()).unwrap();
    assert_eq!(directory.read_identity().unwrap(), FileContent::Absent);
    directory.write_identity(b"whole").unwrap();
    assert_eq!(bytes(&directory.read_identity().unwrap()), b"whole");
    let (mut journal, content) = directory.open_journal().unwrap();
    assert_eq!(content, FileContent::Absent);
    journal.replace(b"a\n").unwrap();
    assert_eq!(files::read(place.path().join("journal")).unwrap(), b"a\n");
}

#[test]
fn journal_is_appended_by_this_and_the_next_agent() {
    let place = tmpfs();
    let directory = StateDirectory::open(place.path()).unwrap();
    let (mut journal, content) = directory.open_journal().unwrap();
    assert_eq!((content, journal.is_empty()), (FileContent::Absent, true));
    assert_eq!(
        journal.append(b"lost\n").unwrap_err().reason(),
        "StateDirectoryUnwritable",
        "there is no journal yet"
    );
    journal.replace(b"journal 1\n").unwrap();
    journal.append(b"one\ntwo\n").unwrap();
    drop((directory, journal));
    let directory = StateDirectory::open(place.path()).unwrap();
    let (mut journal, content) = directory.open_journal().unwrap();
    assert_eq!(bytes(&content), b"journal 1\none\ntwo\n");
    journal.append(b"three\n").unwrap();
    journal.replace(b"journal 1\n").unwrap();
    journal.append(b"four\n").unwrap();
    assert_eq!(journal.len(), 15);
    let path = place.path().join("journal");
    assert_eq!(files::read(&path).unwrap(), b"journal 1\nfour\n");
    let stat = files::metadata(&path).unwrap();
    assert!(stat.blocks() * 512 >= JOURNAL_ROOM, "room is taken beyond its {} bytes", stat.size());
}

#[test]
fn torn_line_is_cut_off() {
    for (before, after) in [("a\nb\nto", "a\nb\n"), ("torn", ""), ("", ""), ("a\n\0\0", "a\n")] {
        let place = tmpfs();
        let path = place.path().join("journal");
        files::write(&path, before).unwrap();
        let directory = StateDirectory::open(place.path()).unwrap();
        let (mut journal, content) = directory.open_journal().unwrap();
        assert_eq!(bytes(&content), after.as_bytes());
        journal.append(b"c\n").unwrap();
        assert_eq!(files::read_to_string(&path).unwrap(), format!("{after}c\n"));
    }
}

#[test]
fn agent_ends_when_its_journal_or_directory_is_replaced() {
    let replaced = |change: &dyn Fn(&Path)| {
        let place = tmpfs();
        let path = place.path().join("d");
        let mut directory = StateDirectory::open(&path).unwrap();
        let (mut journal, _) = directory.open_journal().unwrap();
        journal.replace(b"a\n").unwrap();
        journal.append(b"b\n").unwrap();
        change(&path);
        let reason = |result: Result<(), StateError>| result.map_err(|error| error.reason());
        [
            reason(journal.append(b"c\n")),
            reason(journal.replace(b"c\n")),
            reason(directory.write_identity(b"d")),
        ]
    };
    let error = Err("StateDirectoryReplaced");
    assert_eq!(replaced(&|path| files::remove_file(path.join("journal")).unwrap()), [error, error, Ok(())]);
    let other_file = |path: &Path| {
        files::rename(path.join("journal"), path.join("kept")).unwrap();
        files::write(path.join("journal"), "a\nb\n").unwrap();
    };
    assert_eq!(replaced(&other_file), [error, error, Ok(())]);
    assert_eq!(replaced(&|path| files::remove_dir_all(path).unwrap()), [error; 3]);
    let other_directory = |path: &Path| {
        files::rename(path, path.with_extension("kept")).unwrap();
        files::create_dir(path).unwrap();
    };
    assert_eq!(replaced(&other_directory), [error; 3]);
}

#[test]
fn content_is_not_printed() {
    let place = tmpfs();
    let mut directory = StateDirectory::open(place.path()).unwrap();
    directory.write_identity(b"hush").unwrap();
    let shown = format!("{:?} {directory:?}", directory.read_identity().unwrap());
    assert!(shown.starts_with("Bytes(4 bytes)") && !shown.contains("hush"), "{shown}");
}

#[test]
fn file_that_is_not_readable_as_its_size_says_is_an_error() {
    let place = tmpfs();
    let path = place.path().join("file");
    files::write(&path, "text").unwrap();
    let file = OwnedFd::from(OpenOptions::new().write(true).open(&path).unwrap());
    assert!(read_all(&file, 100).is_err());
    assert_eq!(read_all(&file, 3).unwrap(), FileContent::TooLong);
}
