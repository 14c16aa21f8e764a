//! The key ring: the YAML document in the Secret's `data.keys`.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

pub use secureoverlay_keyring::keyring::{Enforcement, Role};

use crate::{
    phase::Phase,
    secret::{SecretBytes, base64_text},
    suite::Suite,
    uid::Uid,
};

/// The version of the document that this code reads and writes.
pub const VERSION: u32 = 1;
/// Bytes of [`Generation::spi_seed`].
pub const SPI_SEED_LEN: usize = 16;
/// What Kubernetes allows for a Secret; longer documents are not even parsed.
pub const MAX_LEN: usize = 1 << 20;
/// More generations than can ever be made: what comes after the last is a number too.
const MAX_ID: u64 = 1 << 56;

/// One key of the ring. Known by its `uid`: after a restore or a wipe the numbers come again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Generation {
    /// Number for people, strictly increasing within a ring.
    pub id: u64,
    /// Identity.
    pub uid: Uid,
    /// What it is used for.
    pub role: Role,
    /// Cipher suite of all SAs derived from it.
    pub suite: Suite,
    /// Input to the key derivation, as long as the suite's AES key. Never an SA key itself.
    #[serde(with = "base64_text")]
    pub key: SecretBytes,
    /// Key of the hash that gives each sender its SPI.
    #[serde(with = "base64_text")]
    pub spi_seed: SecretBytes,
    /// When it was staged.
    pub created_at: Timestamp,
    /// When it took its present role.
    pub role_since: Timestamp,
    /// Nodes that lost SAs and started anew under this generation, and how often.
    #[serde(default)]
    pub incarnations: BTreeMap<Uid, u32>,
}

impl Generation {
    /// How often `node` started anew under this generation.
    #[must_use]
    pub fn incarnation(&self, node: &Uid) -> u32 {
        self.incarnations.get(node).copied().unwrap_or(0)
    }
}

/// The whole document. Written only by the manager, always against the resourceVersion that it read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ring {
    /// Version of the document, [`VERSION`].
    pub version: u32,
    /// One more on every write.
    pub revision: u64,
    /// UID of the DaemonSet that this ring was made for; absent where the manager may not read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub installation: Option<Uid>,
    /// How far encryption is insisted on.
    pub enforcement: Enforcement,
    /// When the next rotation is due.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_rotation: Option<Timestamp>,
    /// UIDs of the nodes that peers do not encrypt to yet.
    #[serde(default)]
    pub pending: BTreeSet<Uid>,
    /// At most one of each role, ids strictly increasing.
    #[serde(default)]
    pub generations: Vec<Generation>,
}

/// Why a document is not a ring. Holds nothing of the document but numbers, so that it can be logged.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// There is no document, or only white space.
    #[error("the key ring is empty")]
    Empty,
    /// Longer than any Secret can be.
    #[error("the key ring is {0} bytes long; at most {MAX_LEN} are read")]
    TooLong(usize),
    /// Not text.
    #[error("the key ring is not UTF-8 text")]
    NotText,
    /// Not YAML, or YAML of another shape.
    #[error(
        "the key ring is not a YAML document of the expected shape, first fault at line {line}, column {column}"
    )]
    Malformed {
        /// Line of the first fault, from 1; 0 where unknown.
        line: u64,
        /// Column of the first fault, from 1; 0 where unknown.
        column: u64,
    },
    /// A version from the future, or none.
    #[error("the key ring has version {0}; this program reads version {VERSION}: upgrade it")]
    Version(u32),
    /// A key of the wrong length.
    #[error("generation {id}: {field} is {actual} bytes long, {expected} are needed")]
    Length {
        /// The generation's number.
        id: u64,
        /// `key` or `spiSeed`.
        field: &'static str,
        /// Bytes found.
        actual: usize,
        /// Bytes needed.
        expected: usize,
    },
    /// Two generations of one role.
    #[error("two generations have the role {0:?}; at most one may")]
    DuplicateRole(Role),
    /// No manager has come so far.
    #[error("the key ring has a generation {0}: none has a number above {MAX_ID}")]
    Id(u64),
    /// Ids do not increase.
    #[error("generation {0} does not have a higher id than the one before it")]
    Order(u64),
    /// One uid twice.
    #[error("two generations have the uid {0}")]
    DuplicateUid(Uid),
    /// Enforcement without an active generation, or generations while off.
    #[error("enforcement is {0:?}, which does not go with the generations in the ring")]
    Enforcement(Enforcement),
}

impl Ring {
    /// A ring without generations: encryption is off.
    #[must_use]
    pub const fn off(revision: u64, installation: Option<Uid>) -> Self {
        Self {
            version: VERSION,
            revision,
            installation,
            enforcement: Enforcement::Off,
            next_rotation: None,
            pending: BTreeSet::new(),
            generations: Vec::new(),
        }
    }

    /// Reads and checks a document.
    ///
    /// # Errors
    /// What is wrong with it, without any of its content.
    pub fn parse(document: &[u8]) -> Result<Self, RingError> {
        if document.len() > MAX_LEN {
            return Err(RingError::TooLong(document.len()));
        }
        let text = str::from_utf8(document).map_err(|_| RingError::NotText)?;
        if text.trim().is_empty() {
            return Err(RingError::Empty);
        }
        let version: VersionOnly = serde_saphyr::from_str(text).map_err(|error| malformed(&error))?;
        if version.version != VERSION {
            return Err(RingError::Version(version.version));
        }
        let ring: Self = serde_saphyr::from_str(text).map_err(|error| malformed(&error))?;
        ring.check()?;
        Ok(ring)
    }

    /// The document.
    #[must_use]
    pub fn to_yaml(&self) -> Zeroizing<String> {
        Zeroizing::new(serde_saphyr::to_string(self).expect("plain maps, text and numbers always serialize"))
    }

    /// The generation with this role.
    #[must_use]
    pub fn with_role(&self, role: Role) -> Option<&Generation> {
        self.generations.iter().find(|generation| generation.role == role)
    }

    /// The generation that senders use.
    #[must_use]
    pub fn active(&self) -> Option<&Generation> {
        self.with_role(Role::Active)
    }

    /// Where it is in the life of its keys.
    #[must_use]
    pub fn phase(&self) -> Phase<'_> {
        Phase::of(Some(self))
    }

    /// The highest id of its generations, 0 without any.
    #[must_use]
    pub fn newest(&self) -> u64 {
        self.generations.iter().map(|generation| generation.id).max().unwrap_or(0)
    }

    fn check(&self) -> Result<(), RingError> {
        for (at, generation) in self.generations.iter().enumerate() {
            let id = generation.id;
            let earlier = &self.generations[..at];
            if id > MAX_ID {
                return Err(RingError::Id(id));
            }
            if earlier.iter().any(|other| other.id >= id) {
                return Err(RingError::Order(id));
            }
            if earlier.iter().any(|other| other.role == generation.role) {
                return Err(RingError::DuplicateRole(generation.role));
            }
            if earlier.iter().any(|other| other.uid == generation.uid) {
                return Err(RingError::DuplicateUid(generation.uid));
            }
            let lengths = [
                ("key", &generation.key, generation.suite.key_len()),
                ("spiSeed", &generation.spi_seed, SPI_SEED_LEN),
            ];
            for (field, secret, expected) in lengths {
                if secret.len() != expected {
                    return Err(RingError::Length { id, field, actual: secret.len(), expected });
                }
            }
        }
        let fits = match self.enforcement {
            Enforcement::Off => self.generations.is_empty(),
            Enforcement::Permissive => !self.generations.is_empty(),
            Enforcement::Enforcing => self.active().is_some(),
        };
        if fits { Ok(()) } else { Err(RingError::Enforcement(self.enforcement)) }
    }
}

#[derive(Deserialize)]
struct VersionOnly {
    version: u32,
}

/// The parser's own message quotes the document, keys included: only the place is kept.
fn malformed(error: &serde_saphyr::Error) -> RingError {
    let (line, column) = error.location().map_or((0, 0), |at| (at.line(), at.column()));
    RingError::Malformed { line, column }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document() -> String {
        let generation = |id: u64, role: &str| {
            format!(
                "- {{id: {id}, uid: 0f3c9b1e-8d1f-4c57-9b43-5a9f3f1f2b6{id}, role: {role}, suite: aes128gcm8, \
                 key: AAECAwQFBgcICQoLDA0ODw==, spiSeed: EBESExQVFhcYGRobHB0eHw==, \
                 createdAt: 2026-11-20T03:00:00Z, roleSince: 2026-11-20T03:05:00Z, \
                 incarnations: {{9d0f5a37-62a5-4d5f-8a3d-1c1ad0f2b001: 2}}}}\n"
            )
        };
        format!(
            "version: 1\nrevision: 118\nenforcement: permissive\nnextRotation: 2026-11-21T03:00:00Z\npending: []\n\
             generations:\n{}{}{}",
            generation(1, "retiring"),
            generation(2, "active"),
            generation(3, "staged")
        )
    }

    #[test]
    fn a_document_survives_a_round_trip() {
        let ring = Ring::parse(document().as_bytes()).unwrap();
        assert_eq!(ring.revision, 118);
        assert_eq!(ring.active().unwrap().id, 2);
        let node = "9d0f5a37-62a5-4d5f-8a3d-1c1ad0f2b001".parse().unwrap();
        assert_eq!(ring.active().unwrap().incarnation(&node), 2);
        assert_eq!(Ring::parse(ring.to_yaml().as_bytes()), Ok(ring));
        let off = Ring::off(7, Some(node));
        assert_eq!(Ring::parse(off.to_yaml().as_bytes()), Ok(off));
    }

    #[test]
    fn enforcement_is_called_what_the_ring_calls_it() {
        for enforcement in Enforcement::ALL {
            let written = serde_json::to_value(enforcement).unwrap();
            assert_eq!(written, enforcement.name());
            assert_eq!(Enforcement::named(enforcement.name()), Some(enforcement));
        }
        assert_eq!(Enforcement::named("Off"), None);
    }

    #[test]
    fn bad_documents_are_named_without_being_quoted() {
        let with = |from: &str, to: &str| Ring::parse(document().replace(from, to).as_bytes()).unwrap_err();
        assert_eq!(Ring::parse(b" \n"), Err(RingError::Empty));
        assert_eq!(Ring::parse(&[0xff, 0xfe]), Err(RingError::NotText));
        assert_eq!(Ring::parse(&vec![b'a'; MAX_LEN + 1]), Err(RingError::TooLong(MAX_LEN + 1)));
        assert!(matches!(Ring::parse(b"{]: no yaml"), Err(RingError::Malformed { .. })));
        assert!(matches!(Ring::parse(b"keys: 1"), Err(RingError::Malformed { .. })));
        assert_eq!(with("version: 1\n", "version: 2\n"), RingError::Version(2));
        assert_eq!(
            with("key: AAECAwQFBgcICQoLDA0ODw==", "key: AAEC"),
            RingError::Length { id: 1, field: "key", actual: 3, expected: 16 }
        );
        assert_eq!(with("role: staged", "role: active"), RingError::DuplicateRole(Role::Active));
        assert_eq!(with("id: 3", "id: 2"), RingError::Order(2));
        assert_eq!(with("id: 3", "id: 18446744073709551615"), RingError::Id(u64::MAX));
        assert_eq!(
            with("enforcement: permissive", "enforcement: off"),
            RingError::Enforcement(Enforcement::Off)
        );
        for (from, to) in [
            ("aes128gcm8", "rot13"),
            ("key: AAECAwQFBgcICQoLDA0ODw==", "key: '*AAECAwQFBgcICQoLDA0ODw'"),
            ("role: staged", "role: sstaged"),
            ("2026-11-20T03:05:00Z", "yesterday"),
        ] {
            let error = with(from, to);
            assert!(matches!(error, RingError::Malformed { .. }), "{error:?}");
            assert!(!error.to_string().contains("AAEC"), "{error}");
        }
    }

    #[test]
    fn formatting_shows_no_key() {
        let text = format!("{:?}", Ring::parse(document().as_bytes()).unwrap());
        assert!(text.contains("secret bytes"), "{text}");
        assert!(!text.contains("AAEC") && !text.contains("0, 1, 2"), "{text}");
    }
}
