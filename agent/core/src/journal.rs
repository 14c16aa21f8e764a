//! The journal: which outbound keys the running kernel was ever given, so that none is installed twice.
//!
//! As text, one line each:
//!
//! ```text
//! secureoverlay-journal 1
//! instance <uuid>                  the last such line: the journal vouches for this instance alone
//! generation <uid>                 before the first SA of it, of either direction
//! out <generation uid> <16 hex digits of a hash of the key> <name of the peer's Node>
//! gone <generation uid>            left the ring and the kernel
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Write},
};

use secureoverlay_keyring::{peer::Instance, uid::Uid};

const HEADER: &str = "secureoverlay-journal 1";
/// Lines beyond what is needed before the journal is written anew.
const SLACK: usize = 4096;

/// A line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// The journal vouches for this instance from here on.
    Instance(Instance),
    /// SAs of this generation may be in the kernel.
    Generation(Uid),
    /// An outbound key is used from now on.
    Out {
        /// The key's generation.
        generation: Uid,
        /// A hash of the key ([`secureoverlay_keyring::secret::SecretBytes::fingerprint`]).
        key: u64,
        /// The peer, for people.
        peer: String,
    },
    /// The generation left the ring and the kernel.
    Gone(Uid),
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Instance(instance) => write!(f, "instance {instance}"),
            Self::Generation(uid) => write!(f, "generation {uid}"),
            Self::Out { generation, key, peer } => write!(f, "out {generation} {key:016x} {peer}"),
            Self::Gone(uid) => write!(f, "gone {uid}"),
        }
    }
}

impl Line {
    fn parse(line: &str) -> Option<Self> {
        let (kind, rest) = line.split_once(' ')?;
        Some(match kind {
            "instance" => Self::Instance(rest.parse().ok()?),
            "generation" => Self::Generation(rest.parse().ok()?),
            "gone" => Self::Gone(rest.parse().ok()?),
            "out" => {
                let mut words = rest.splitn(3, ' ');
                let generation = words.next()?.parse().ok()?;
                let key = u64::from_str_radix(words.next()?, 16).ok()?;
                Self::Out { generation, key, peer: words.next()?.to_owned() }
            }
            _ => return None,
        })
    }
}

/// A line of the journal can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {0} of the journal can't be read")]
pub struct Malformed(pub usize);

/// All that the lines say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    instance: Option<Instance>,
    generations: BTreeSet<Uid>,
    outbound: BTreeMap<Uid, BTreeMap<u64, String>>,
    gone: BTreeSet<Uid>,
}

impl Record {
    /// Reads the journal. A last line without an end was being written when the agent was killed: its SA was not
    /// installed.
    ///
    /// # Errors
    /// The first line that can't be read.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let end = bytes.iter().rposition(|byte| *byte == b'\n').ok_or(Malformed(1))?;
        let mut record = Self::default();
        for (at, line) in (1..).zip(bytes[..end].split(|byte| *byte == b'\n')) {
            let line = str::from_utf8(line).map_err(|_| Malformed(at))?;
            if at == 1 {
                if line != HEADER {
                    return Err(Malformed(1));
                }
                continue;
            }
            record.note(&Line::parse(line).ok_or(Malformed(at))?);
        }
        Ok(record)
    }

    /// The shortest journal that says the same.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = format!("{HEADER}\n");
        let instance = self.instance.map(Line::Instance);
        let generations = self.generations.iter().map(|uid| Line::Generation(*uid));
        let gone = self.gone.iter().map(|uid| Line::Gone(*uid));
        let outbound = self.outbound.iter().flat_map(|(generation, keys)| {
            keys.iter().map(|(key, peer)| Line::Out {
                generation: *generation,
                key: *key,
                peer: peer.clone(),
            })
        });
        append(&mut text, instance.into_iter().chain(gone).chain(generations).chain(outbound));
        text
    }

    /// Takes a line.
    pub fn note(&mut self, line: &Line) {
        match line {
            Line::Instance(instance) => self.instance = Some(*instance),
            Line::Generation(uid) => drop(self.generations.insert(*uid)),
            Line::Out { generation, key, peer } => {
                self.outbound.entry(*generation).or_default().insert(*key, peer.clone());
            }
            Line::Gone(uid) => {
                self.outbound.remove(uid);
                self.generations.remove(uid);
                self.gone.insert(*uid);
            }
        }
    }

    /// The instance that it vouches for: no key of it was used that is not written down.
    #[must_use]
    pub const fn instance(&self) -> Option<Instance> {
        self.instance
    }

    /// Whether this outbound key must not be installed any more.
    #[must_use]
    pub fn used(&self, generation: &Uid, key: u64) -> bool {
        self.gone.contains(generation)
            || self.outbound.get(generation).is_some_and(|keys| keys.contains_key(&key))
    }

    /// Whether SAs of this generation may be in the kernel.
    #[must_use]
    pub fn has_generation(&self, generation: &Uid) -> bool {
        self.generations.contains(generation)
    }

    /// Generations of which SAs may be in the kernel.
    #[must_use]
    pub const fn generations(&self) -> &BTreeSet<Uid> {
        &self.generations
    }

    /// Generations that left ring and kernel in this boot.
    #[must_use]
    pub const fn gone(&self) -> &BTreeSet<Uid> {
        &self.gone
    }

    fn len(&self) -> usize {
        let keys: usize = self.outbound.values().map(BTreeMap::len).sum();
        keys + self.generations.len() + self.gone.len()
    }
}

/// Lines as they are appended.
pub fn append(text: &mut String, lines: impl IntoIterator<Item = Line>) {
    for line in lines {
        writeln!(text, "{line}").expect("writing to a String can't fail");
    }
}

/// Where the journal is kept.
pub trait JournalStore {
    /// Adds lines, all of them or none.
    ///
    /// # Errors
    /// What to say of it, and what helps.
    fn append(&mut self, lines: &str) -> Result<(), String>;

    /// Puts a whole journal in the place of the present one, at once.
    ///
    /// # Errors
    /// What to say of it, and what helps.
    fn replace(&mut self, journal: &str) -> Result<(), String>;
}

/// A journal in memory, for MKE's manifest, which gives agents no directory: forgotten when the process ends.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoStore;

impl JournalStore for NoStore {
    fn append(&mut self, _: &str) -> Result<(), String> {
        Ok(())
    }

    fn replace(&mut self, _: &str) -> Result<(), String> {
        Ok(())
    }
}

/// The journal and its store.
#[derive(Debug)]
pub struct Journal<S> {
    record: Record,
    lines: usize,
    store: S,
}

impl<S: JournalStore> Journal<S> {
    /// Goes on with what was read from the store.
    pub const fn new(record: Record, store: S) -> Self {
        Self { record, lines: usize::MAX, store }
    }

    /// What it says.
    pub const fn record(&self) -> &Record {
        &self.record
    }

    /// Writes lines down. Nothing that depends on them may be done where this fails.
    ///
    /// # Errors
    /// The store's.
    pub fn write(&mut self, lines: &[Line]) -> Result<(), String> {
        if lines.is_empty() {
            return Ok(());
        }
        let mut next = self.record.clone();
        lines.iter().for_each(|line| next.note(line));
        // The first write of a process starts a journal without torn lines; later ones are short.
        let anew =
            self.lines.saturating_add(lines.len()) > next.len().saturating_mul(2).saturating_add(SLACK);
        if anew {
            self.store.replace(&next.to_text())?;
            self.lines = next.len();
        } else {
            let mut text = String::new();
            append(&mut text, lines.iter().cloned());
            self.store.append(&text)?;
            self.lines += lines.len();
        }
        self.record = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uid(n: u8) -> Uid {
        Uid::from_random([n; 16])
    }

    fn out(generation: u8, key: u64) -> Line {
        Line::Out { generation: uid(generation), key, peer: "node-2".to_owned() }
    }

    #[derive(Default)]
    struct Memory {
        text: String,
        full: bool,
    }

    impl JournalStore for &mut Memory {
        fn append(&mut self, lines: &str) -> Result<(), String> {
            if self.full {
                return Err("full".to_owned());
            }
            self.text.push_str(lines);
            Ok(())
        }

        fn replace(&mut self, journal: &str) -> Result<(), String> {
            self.text.clear();
            self.append(journal)
        }
    }

    #[test]
    fn journal_is_read_as_it_was_written() {
        let mut store = Memory::default();
        let mut journal = Journal::new(Record::default(), &mut store);
        journal.write(&[Line::Instance(uid(9).into()), Line::Generation(uid(1)), out(1, 7)]).unwrap();
        journal.write(&[Line::Generation(uid(2)), out(2, u64::MAX)]).unwrap();
        journal.write(&[Line::Gone(uid(1))]).unwrap();
        let record = journal.record().clone();
        assert_eq!(Record::parse(store.text.as_bytes()), Ok(record.clone()));
        assert_eq!(Record::parse(record.to_text().as_bytes()), Ok(record.clone()));
        assert!(record.used(&uid(1), 8), "no key of a generation that is gone is fresh");
        assert!(record.used(&uid(2), u64::MAX) && !record.used(&uid(2), 7) && !record.used(&uid(3), 7));
        assert_eq!(record.instance(), Some(uid(9).into()));
    }

    #[test]
    fn key_that_could_not_be_written_down_is_not_recorded() {
        let mut store = Memory::default();
        Journal::new(Record::default(), &mut store).write(&[Line::Instance(uid(9).into())]).unwrap();
        let record = Record::parse(store.text.as_bytes()).unwrap();
        store.full = true;
        let mut journal = Journal::new(record, &mut store);
        assert!(journal.write(&[out(1, 7)]).is_err());
        assert!(!journal.record().used(&uid(1), 7));
    }

    #[test]
    fn torn_last_line_does_not_count_and_a_damaged_one_is_found() {
        let text = format!("{HEADER}\ninstance {}\nout {} 0000000000000007 node-2\nout", uid(9), uid(1));
        let record = Record::parse(text.as_bytes()).unwrap();
        assert!(record.used(&uid(1), 7) && record.instance().is_some());
        assert_eq!(Record::parse(format!("{HEADER}\nnoise here\n").as_bytes()), Err(Malformed(2)));
        assert_eq!(Record::parse(b"secureoverlay-journal 2\n"), Err(Malformed(1)));
        assert_eq!(Record::parse(b""), Err(Malformed(1)));
    }
}
