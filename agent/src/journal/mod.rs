//! What the running kernel was ever given: which outbound keys, so that none is installed twice, and which inbound SAs
//! it should hold, so that a loss is noticed.
//!
//! As text, a header and one [`Entry`] a line:
//!
//! ```text
//! secureoverlay-journal 1 <boot ID>
//! out <generation> <own incarnation> <fingerprint of the key>
//! in <generation> <destination> <SPI> <fingerprint of the key>
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Write},
    net::IpAddr,
    str::{FromStr, SplitWhitespace},
};

use secureoverlay_common::uid::Uid;

use crate::xfrm::SaId;

mod file;

pub use file::{Journal, JournalError, Keeping};

const HEADER: &str = "secureoverlay-journal 1";

/// Something to remember.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// An outbound key is used from now on.
    Out {
        /// The key's generation.
        generation: Uid,
        /// This node's incarnation under it.
        incarnation: u32,
        /// `wire::fingerprint` of the key.
        key: u64,
    },
    /// The kernel refused the outbound SA: its key was not used.
    Unused {
        /// The key's generation.
        generation: Uid,
        /// `wire::fingerprint` of the key.
        key: u64,
    },
    /// The kernel holds an inbound SA.
    In {
        /// Its generation.
        generation: Uid,
        /// The SA.
        id: SaId,
        /// `wire::fingerprint` of its key.
        key: u64,
    },
    /// We take an inbound SA out ourselves.
    Gone(SaId),
    /// SAs were lost: this node needs a higher incarnation than this one.
    Burnt {
        /// The generation.
        generation: Uid,
        /// This node's incarnation under it.
        incarnation: u32,
    },
    /// The generation left the ring and the kernel. Should an old ring come back, no outbound key up to this incarnation is fresh.
    Finished {
        /// The generation.
        generation: Uid,
        /// This node's last incarnation under it.
        incarnation: u32,
    },
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Out { generation, incarnation, key } => write!(f, "out {generation} {incarnation} {key:x}"),
            Self::Unused { generation, key } => write!(f, "unused {generation} {key:x}"),
            Self::In { generation, id, key } => {
                write!(f, "in {generation} {} {:x} {key:x}", id.dst, id.spi)
            }
            Self::Gone(id) => write!(f, "gone {} {:x}", id.dst, id.spi),
            Self::Burnt { generation, incarnation } => write!(f, "burnt {generation} {incarnation}"),
            Self::Finished { generation, incarnation } => write!(f, "finished {generation} {incarnation}"),
        }
    }
}

impl Entry {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let entry = match words.next()? {
            "out" => Self::Out {
                generation: word(&mut words)?,
                incarnation: word(&mut words)?,
                key: hex(&mut words)?,
            },
            "unused" => Self::Unused { generation: word(&mut words)?, key: hex(&mut words)? },
            "in" => Self::In { generation: word(&mut words)?, id: sa_id(&mut words)?, key: hex(&mut words)? },
            "gone" => Self::Gone(sa_id(&mut words)?),
            "burnt" => Self::Burnt { generation: word(&mut words)?, incarnation: word(&mut words)? },
            "finished" => Self::Finished { generation: word(&mut words)?, incarnation: word(&mut words)? },
            _ => return None,
        };
        words.next().is_none().then_some(entry)
    }
}

fn word<T: FromStr>(words: &mut SplitWhitespace<'_>) -> Option<T> {
    words.next()?.parse().ok()
}

fn hex(words: &mut SplitWhitespace<'_>) -> Option<u64> {
    u64::from_str_radix(words.next()?, 16).ok()
}

fn sa_id(words: &mut SplitWhitespace<'_>) -> Option<SaId> {
    let dst: IpAddr = word(words)?;
    Some(SaId { dst, spi: hex(words)?.try_into().ok()? })
}

/// The text can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// It was written in another boot, whose keys are of no concern.
    #[error("it is of another boot")]
    OtherBoot,
    /// It is no journal of ours, or a damaged one.
    #[error("line {0} can't be understood")]
    Line(usize),
}

/// All that the entries say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    outbound: BTreeMap<Uid, Outbound>,
    inbound: BTreeMap<SaId, (Uid, u64)>,
    burnt: BTreeMap<Uid, u32>,
    finished: BTreeMap<Uid, u32>,
}

/// Outbound keys of a generation, with the incarnation of each.
type Outbound = BTreeMap<u64, u32>;

impl Record {
    /// Reads what [`Self::text`] wrote, and lines that were appended to it. A last line without an end was being written
    /// when the agent was killed: what it announces was not done.
    ///
    /// # Errors
    /// The text can't be used.
    pub fn parse(text: &[u8], boot: Uid) -> Result<Self, Unusable> {
        let end = text.iter().rposition(|byte| *byte == b'\n').ok_or(Unusable::Line(1))?;
        let whole = &text[..end];
        let mut lines = (1..).zip(whole.split(|byte| *byte == b'\n'));
        let of = lines
            .next()
            .and_then(|(_, line)| str::from_utf8(line).ok()?.strip_prefix(HEADER)?.trim().parse::<Uid>().ok())
            .ok_or(Unusable::Line(1))?;
        if of != boot {
            return Err(Unusable::OtherBoot);
        }
        let mut record = Self::default();
        for (number, line) in lines {
            let entry = str::from_utf8(line).ok().and_then(Entry::parse).ok_or(Unusable::Line(number))?;
            record.note(&entry);
        }
        Ok(record)
    }

    /// The record as text.
    #[must_use]
    pub fn text(&self, boot: Uid) -> String {
        let mut text = format!("{HEADER} {boot}\n");
        for entry in self.entries() {
            append(&mut text, &entry);
        }
        text
    }

    fn entries(&self) -> impl Iterator<Item = Entry> {
        let finished = self
            .finished
            .iter()
            .map(|(&generation, &incarnation)| Entry::Finished { generation, incarnation });
        let burnt =
            self.burnt.iter().map(|(&generation, &incarnation)| Entry::Burnt { generation, incarnation });
        let outbound = self.outbound.iter().flat_map(|(&generation, keys)| {
            keys.iter().map(move |(&key, &incarnation)| Entry::Out { generation, incarnation, key })
        });
        let inbound = self.inbound.iter().map(|(&id, &(generation, key))| Entry::In { generation, id, key });
        // What is finished takes everything of its generation with it: first.
        finished.chain(burnt).chain(outbound).chain(inbound)
    }

    /// How many entries it takes.
    #[must_use]
    pub fn len(&self) -> usize {
        let keys: usize = self.outbound.values().map(BTreeMap::len).sum();
        keys + self.inbound.len() + self.burnt.len() + self.finished.len()
    }

    /// Nothing was ever given to the kernel.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes an entry.
    pub fn note(&mut self, entry: &Entry) {
        match *entry {
            Entry::Out { generation, incarnation, key } => {
                self.outbound.entry(generation).or_default().insert(key, incarnation);
            }
            Entry::Unused { generation, key } => {
                if let Some(keys) = self.outbound.get_mut(&generation) {
                    keys.remove(&key);
                }
            }
            Entry::In { generation, id, key } => {
                self.inbound.insert(id, (generation, key));
            }
            Entry::Gone(id) => {
                self.inbound.remove(&id);
            }
            Entry::Burnt { generation, incarnation } => raise(&mut self.burnt, generation, incarnation),
            Entry::Finished { generation, incarnation } => {
                self.outbound.remove(&generation);
                self.inbound.retain(|_, (of, _)| *of != generation);
                self.burnt.remove(&generation);
                raise(&mut self.finished, generation, incarnation);
            }
        }
    }

    /// Whether an entry says nothing new.
    #[must_use]
    pub fn knows(&self, entry: &Entry) -> bool {
        match *entry {
            Entry::Out { generation, key, .. } => {
                self.outbound.get(&generation).is_some_and(|keys| keys.contains_key(&key))
            }
            Entry::Unused { generation, key } => {
                !self.outbound.get(&generation).is_some_and(|keys| keys.contains_key(&key))
            }
            Entry::In { generation, id, key } => self.inbound.get(&id) == Some(&(generation, key)),
            Entry::Gone(id) => !self.inbound.contains_key(&id),
            Entry::Burnt { generation, incarnation } => self.burnt(&generation) >= Some(incarnation),
            Entry::Finished { generation, incarnation } => {
                !self.outbound.contains_key(&generation) && self.finished(&generation) >= Some(incarnation)
            }
        }
    }

    /// The generation of an inbound SA.
    #[must_use]
    pub fn generation_of(&self, id: &SaId) -> Option<Uid> {
        self.inbound.get(id).map(|(generation, _)| *generation)
    }

    /// Whether this outbound key must not be installed (any more).
    #[must_use]
    pub fn used(&self, generation: Uid, incarnation: u32, key: u64) -> bool {
        self.finished(&generation) >= Some(incarnation)
            || self.knows(&Entry::Out { generation, incarnation, key })
    }

    /// The incarnation under which this node lost SAs of a generation.
    #[must_use]
    pub fn burnt(&self, generation: &Uid) -> Option<u32> {
        self.burnt.get(generation).copied()
    }

    /// The last incarnation under which outbound keys of a generation were used.
    #[must_use]
    pub fn last(&self, generation: &Uid) -> Option<u32> {
        let keys = self.outbound.get(generation).and_then(|keys| keys.values().max().copied());
        keys.max(self.finished(generation))
    }

    fn finished(&self, generation: &Uid) -> Option<u32> {
        self.finished.get(generation).copied()
    }

    /// What to note when only the generations of which `lives` is true are still in use.
    #[must_use]
    pub fn finish(&self, lives: impl Fn(&Uid) -> bool) -> Vec<Entry> {
        let inbound = self.inbound.values().map(|(generation, _)| *generation);
        let all: BTreeSet<Uid> =
            self.outbound.keys().chain(self.burnt.keys()).copied().chain(inbound).collect();
        all.iter()
            .filter(|generation| !lives(generation))
            .map(|generation| {
                let incarnation = self.last(generation).max(self.burnt(generation)).unwrap_or(0);
                Entry::Finished { generation: *generation, incarnation }
            })
            .collect()
    }
}

fn raise(map: &mut BTreeMap<Uid, u32>, generation: Uid, incarnation: u32) {
    let known = map.entry(generation).or_insert(incarnation);
    *known = incarnation.max(*known);
}

fn append(text: &mut String, entry: &Entry) {
    writeln!(text, "{entry}").expect("writing to a String can't fail");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn uid(n: u8) -> Uid {
        Uid::from_random([n; 16])
    }

    const BOOT: u8 = 99;

    fn entry() -> impl Strategy<Value = Entry> {
        let generation = || (1..4u8).prop_map(uid);
        let id = || (1..4u8, any::<u32>()).prop_map(|(n, spi)| SaId { dst: [192, 0, 2, n].into(), spi });
        let key = || 0..9u64;
        prop_oneof![
            (generation(), 0..3u32, key()).prop_map(|(generation, incarnation, key)| Entry::Out {
                generation,
                incarnation,
                key
            }),
            (generation(), key()).prop_map(|(generation, key)| Entry::Unused { generation, key }),
            (generation(), id(), key()).prop_map(|(generation, id, key)| Entry::In { generation, id, key }),
            id().prop_map(Entry::Gone),
            (generation(), any::<u32>())
                .prop_map(|(generation, incarnation)| Entry::Burnt { generation, incarnation }),
            (generation(), any::<u32>())
                .prop_map(|(generation, incarnation)| Entry::Finished { generation, incarnation }),
        ]
    }

    proptest! {
        /// However the lines are appended, rewritten and torn, what they say stays the same.
        #[test]
        fn a_record_survives_appending_rewriting_and_tearing(
            entries in prop::collection::vec(entry(), 0..30), cut in 0..30usize, torn in 0..20usize,
        ) {
            let boot = uid(BOOT);
            let (mut record, mut text) = (Record::default(), Record::default().text(boot));
            for (at, entry) in entries.iter().enumerate() {
                record.note(entry);
                append(&mut text, entry);
                prop_assert!(record.knows(entry));
                if at == cut {
                    text = record.text(boot);
                }
            }
            prop_assert_eq!(Record::parse(text.as_bytes(), boot).unwrap().text(boot), record.text(boot));
            let next = format!("{}\n", Entry::Gone(SaId { dst: [192, 0, 2, 1].into(), spi: 1 }));
            text.push_str(&next[..torn.min(next.len() - 1)]);
            prop_assert_eq!(Record::parse(text.as_bytes(), boot).unwrap().text(boot), record.text(boot));
        }

        #[test]
        fn noise_is_an_error_and_no_panic(noise in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Record::parse(&noise, uid(BOOT));
            let mut text = Record::default().text(uid(BOOT)).into_bytes();
            text.extend_from_slice(&noise);
            let _ = Record::parse(&text, uid(BOOT));
        }
    }

    #[test]
    fn what_is_wrong_is_told() {
        let boot = uid(BOOT);
        let text = Record::default().text(boot);
        assert_eq!(Record::parse(text.as_bytes(), uid(1)), Err(Unusable::OtherBoot));
        assert_eq!(Record::parse(b"", boot), Err(Unusable::Line(1)));
        assert_eq!(Record::parse(b"\n", boot), Err(Unusable::Line(1)));
        let with = |line: &str| Record::parse(format!("{text}{line}\n").as_bytes(), boot);
        for line in ["", "out", "sing a song", &format!("burnt {boot} 1 2"), &format!("burnt {boot} -1")] {
            assert_eq!(with(line), Err(Unusable::Line(2)), "{line:?}");
        }
        assert!(with(&format!("burnt {boot} 1")).is_ok());
    }

    #[test]
    fn a_finished_generation_stays_used_up_to_its_incarnation() {
        let (mut record, generation) = (Record::default(), uid(1));
        for (incarnation, key) in [(0, 10), (2, 12)] {
            record.note(&Entry::Out { generation, incarnation, key });
        }
        assert!(record.used(generation, 2, 12) && !record.used(generation, 2, 13));
        assert_eq!(record.finish(|_| true), []);
        let finished = record.finish(|_| false);
        assert_eq!(finished, [Entry::Finished { generation, incarnation: 2 }]);
        finished.iter().for_each(|entry| record.note(entry));
        assert_eq!((record.len(), record.finish(|_| false)), (1, vec![]));
        assert!(record.used(generation, 2, 13) && !record.used(generation, 3, 13));
        assert!(!record.used(uid(2), 0, 10));
    }
}
