//! Where the record is kept: in memory, and in a file that outlives the agent but not the boot.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use secureoverlay_common::uid::Uid;

use super::{Entry, Record, Unusable, append};

/// A journal of 20,000 peers takes a third of this.
const MAX_LEN: u64 = 64 << 20;
/// A file with this many more lines than it needs is written anew.
const SLACK: usize = 10_000;
const JOURNAL: &str = "journal";
/// What will be the journal once it is whole.
const NEW: &str = "journal.new";

/// How a journal is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeping {
    /// In memory only: the next agent begins with what the kernel shows.
    Memory,
    /// In a file.
    File,
    /// In a file, which can't be written at present.
    Failing,
}

impl Keeping {
    /// Its name in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::File => "file",
            Self::Failing => "failing",
        }
    }
}

/// The file can't be written.
#[derive(Debug, thiserror::Error)]
#[error("writing the journal {path}: {source}")]
pub struct JournalError {
    path: String,
    source: io::Error,
}

/// The record of this boot, written down before it becomes true.
#[derive(Debug, Default)]
pub struct Journal {
    record: Record,
    place: Option<Place>,
    /// Whether the record goes back to when this boot's kernel was given its first SA of ours.
    whole: bool,
    /// Why the file, which was there, could not be read: whatever it may have said counts as said.
    doubt: Option<String>,
    /// Why it is in memory only.
    homeless: Option<String>,
}

#[derive(Debug)]
struct Place {
    directory: PathBuf,
    boot: Uid,
    /// Open while what it holds is known to be whole lines.
    file: Option<File>,
    lines: usize,
    failing: bool,
}

impl Place {
    fn path(&self) -> PathBuf {
        self.directory.join(JOURNAL)
    }

    fn append(&mut self, entries: &[Entry]) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let mut text = String::new();
        entries.iter().for_each(|entry| append(&mut text, entry));
        self.lines += entries.len();
        file.write_all(text.as_bytes())
    }

    /// Replaces the file as a whole.
    fn rewrite(&mut self, record: &Record) -> io::Result<()> {
        self.file = None;
        let new = self.directory.join(NEW);
        let mut file = create(&new)?;
        file.write_all(record.text(self.boot).as_bytes())?;
        fs::rename(&new, self.path())?;
        self.lines = record.len();
        self.file = Some(file);
        Ok(())
    }
}

/// A file that nobody else writes to. What a killed agent left there is removed.
fn create(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new().append(true).create_new(true).mode(0o600).open(path)
}

impl Journal {
    /// The journal in `directory`, whose file is begun anew where it is of another boot. Where the directory does not
    /// exist, or was never writable to us, the journal is kept in memory.
    #[must_use]
    pub fn open(directory: &Path, boot: Uid) -> Self {
        let found = read(&directory.join(JOURNAL));
        if !matches!(found, Ok(Some(_)))
            && let Err(error) = create(&directory.join(NEW))
        {
            let homeless = Some(format!("{}: {error}", directory.display()));
            // One is there, and may tell of keys that this agent would use again.
            let doubt = found.err().map(|error| format!("{}: {error}", directory.join(JOURNAL).display()));
            return Self { homeless, doubt, ..Self::default() };
        }
        let place = Place { directory: directory.to_owned(), boot, file: None, lines: 0, failing: false };
        let path = place.path();
        let doubt = |error: &dyn fmt::Display| Some(format!("{}: {error}", path.display()));
        let (record, doubt) = match found {
            Ok(None) => (None, None),
            Ok(Some(text)) => match Record::parse(&text, boot) {
                Ok(record) => (Some(record), None),
                Err(Unusable::OtherBoot) => (None, None),
                Err(error) => (None, doubt(&error)),
            },
            Err(error) => (None, doubt(&error)),
        };
        let whole = record.is_some();
        Self { record: record.unwrap_or_default(), place: Some(place), whole, doubt, homeless: None }
    }

    /// A journal in memory that goes on from the record of another in the same boot.
    #[must_use]
    pub fn remembering(record: Record) -> Self {
        Self { record, whole: true, ..Self::default() }
    }

    /// Why a journal that was there can't be read, until [`Self::suspect`] has drawn the consequences.
    #[must_use]
    pub fn doubt(&self) -> Option<&str> {
        self.doubt.as_deref()
    }

    /// Why nothing is kept beyond the end of this process.
    #[must_use]
    pub fn homeless(&self) -> Option<&str> {
        self.homeless.as_deref()
    }

    /// What is known.
    #[must_use]
    pub const fn record(&self) -> &Record {
        &self.record
    }

    /// Whether the record goes back to the first SA of ours in this boot's kernel.
    #[must_use]
    pub const fn whole(&self) -> bool {
        self.whole
    }

    /// How it is kept.
    #[must_use]
    pub fn keeping(&self) -> Keeping {
        match &self.place {
            None => Keeping::Memory,
            Some(place) if place.failing => Keeping::Failing,
            Some(_) => Keeping::File,
        }
    }

    /// Takes the generations of the ring, with this node's incarnation of each, when a file that could not be read may
    /// have told of their keys.
    pub fn suspect(&mut self, generations: impl Iterator<Item = (Uid, u32)>) {
        if self.doubt.is_some() {
            for (generation, incarnation) in generations {
                self.record.note(&Entry::Finished { generation, incarnation });
                self.doubt = None;
            }
        }
    }

    /// Writes down what of `entries` is new. It counts once this has succeeded.
    ///
    /// # Errors
    /// The file can't be written; nothing new is remembered.
    pub fn write(&mut self, entries: &[Entry]) -> Result<(), JournalError> {
        if self.place.is_none() {
            entries.iter().for_each(|entry| self.record.note(entry));
            return Ok(());
        }
        let new: Vec<Entry> = entries.iter().filter(|entry| !self.record.knows(entry)).copied().collect();
        if new.is_empty() {
            return Ok(());
        }
        let mut record = None;
        if let Some(place) = &mut self.place {
            let shrinks = new.iter().any(|entry| matches!(entry, Entry::Finished { .. }));
            let written = if place.file.is_none() || shrinks || place.lines > 2 * self.record.len() + SLACK {
                let mut next = self.record.clone();
                new.iter().for_each(|entry| next.note(entry));
                let written = place.rewrite(&next);
                record = Some(next);
                written
            } else {
                place.append(&new)
            };
            place.failing = written.is_err();
            if let Err(source) = written {
                // The last line may be torn: nothing may be appended to it.
                place.file = None;
                return Err(JournalError { path: place.path().display().to_string(), source });
            }
        }
        match record {
            Some(record) => self.record = record,
            None => new.iter().for_each(|entry| self.record.note(entry)),
        }
        Ok(())
    }
}

/// The file's content; `None` if there is none.
fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory].contains(&error.kind()) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let mut text = Vec::new();
    file.take(MAX_LEN + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_LEN {
        return Err(io::Error::other(format!("it is longer than {MAX_LEN} bytes")));
    }
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uid(n: u8) -> Uid {
        Uid::from_random([n; 16])
    }

    fn out(key: u64) -> Entry {
        Entry::Out { generation: uid(1), incarnation: 0, key }
    }

    #[test]
    fn the_next_agent_of_the_boot_knows_and_the_next_boot_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(directory.path(), uid(9));
        assert_eq!((journal.keeping(), journal.whole()), (Keeping::File, false));
        for key in 0..3 {
            journal.write(&[out(key)]).unwrap();
            journal.write(&[out(key)]).unwrap();
        }
        let again = Journal::open(directory.path(), uid(9));
        assert_eq!((again.record(), again.whole()), (journal.record(), true));
        let text = fs::read(directory.path().join("journal")).unwrap();
        fs::write(directory.path().join("journal"), &text[..text.len() - 3]).unwrap();
        let mut torn = Journal::open(directory.path(), uid(9));
        assert_eq!(torn.record().len(), 2, "what was torn was never done");
        torn.write(&[out(7)]).unwrap();
        assert_eq!(Journal::open(directory.path(), uid(9)).record(), torn.record());
        let mut other = Journal::open(directory.path(), uid(8));
        assert!(other.record().is_empty() && !other.whole());
        other.write(&[out(5)]).unwrap();
        assert!(Journal::open(directory.path(), uid(9)).record().is_empty());
    }

    #[test]
    fn a_damaged_file_means_that_every_key_was_used() {
        for damage in [&b""[..], b"no journal\n", b"secureoverlay-journal 1 x\n", &[0xff; 50]] {
            let directory = tempfile::tempdir().unwrap();
            fs::write(directory.path().join("journal"), damage).unwrap();
            let mut journal = Journal::open(directory.path(), uid(9));
            journal.suspect([].into_iter());
            journal.suspect([(uid(1), 3)].into_iter());
            assert!(journal.record().used(uid(1), 3, 77) && !journal.record().used(uid(1), 4, 77));
            journal.write(&[out(1)]).unwrap();
            journal.suspect([(uid(2), 3)].into_iter());
            assert_eq!(Journal::open(directory.path(), uid(9)).record(), journal.record());
            assert!(!journal.record().used(uid(2), 0, 77), "only once");
        }
    }

    #[test]
    fn what_could_not_be_written_does_not_count_and_is_mended_later() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("journals");
        fs::create_dir(&place).unwrap();
        let mut journal = Journal::open(&place, uid(9));
        fs::remove_dir_all(&place).unwrap();
        assert!(journal.write(&[out(1)]).unwrap_err().to_string().contains("journals/journal"));
        assert_eq!((journal.record().len(), journal.keeping()), (0, Keeping::Failing));
        fs::create_dir(&place).unwrap();
        journal.write(&[out(1)]).unwrap();
        assert_eq!((journal.record().len(), journal.keeping()), (1, Keeping::File));
    }

    #[test]
    fn without_the_directory_it_is_kept_in_memory() {
        let mut journal = Journal::open(Path::new("/nonexistent/secureoverlay"), uid(9));
        journal.write(&[out(1)]).unwrap();
        assert_eq!((journal.record().len(), journal.keeping()), (1, Keeping::Memory));
        assert!(journal.homeless().is_some_and(|why| why.contains("/nonexistent/secureoverlay: ")));
        // Nothing can be created under a file either, though it is there.
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(Journal::open(file.path(), uid(9)).keeping(), Keeping::Memory);
    }

    #[test]
    fn one_that_can_be_neither_read_nor_written_is_doubted_all_the_same() {
        let directory = tempfile::tempdir().unwrap();
        for name in [JOURNAL, NEW] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        let mut journal = Journal::open(directory.path(), uid(9));
        assert_eq!((journal.keeping(), journal.doubt().is_some()), (Keeping::Memory, true));
        journal.suspect([(uid(1), 3)].into_iter());
        assert!(journal.record().used(uid(1), 3, 77));
    }

    #[test]
    fn a_file_of_leftovers_is_written_anew() {
        let directory = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(directory.path(), uid(9));
        for _ in 0..SLACK {
            journal.write(&[out(1)]).unwrap();
            journal.write(&[Entry::Unused { generation: uid(1), key: 1 }]).unwrap();
        }
        let text = fs::read_to_string(directory.path().join("journal")).unwrap();
        assert!(text.lines().count() < SLACK + 10, "{}", text.lines().count());
        journal.write(&[out(2), Entry::Finished { generation: uid(1), incarnation: 0 }]).unwrap();
        let text = fs::read_to_string(directory.path().join("journal")).unwrap();
        assert_eq!(text.lines().count(), 2, "{text}");
    }
}
