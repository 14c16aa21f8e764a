//! The key ring: the YAML document in the Secret's `data.keys`.

use std::collections::BTreeSet;

use jiff::Timestamp;
use rand_core::TryCryptoRng;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{
    address::NodeAddress,
    phase::Phase,
    secret::{SecretBytes, base64_text},
    settings::{InvalidSettings, Settings},
    suite::Suite,
    uid::Uid,
};

/// The version of the document that this code reads and writes.
pub const VERSION: u32 = 1;
/// Bytes of [`Generation::spi_seed`].
pub const SPI_SEED_LEN: usize = 16;
/// What Kubernetes allows for a Secret; longer documents are not even parsed.
pub const MAX_LEN: usize = 1 << 20;
/// Highest id of a generation. Ids are Unix seconds or little more; the next one must be a number, too.
pub const MAX_ID: u64 = 1 << 56;
/// Most nodes, and most addresses, that the ring can exclude.
pub const MAX_EXCLUDED: usize = 10_000;
/// Longest name of a node (RFC 1123 subdomain), in bytes.
pub const MAX_NODE_NAME: usize = 253;

/// How far encryption is enforced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Enforcement {
    /// No generation, nothing programmed.
    #[default]
    Off,
    /// Encrypted where both ends are ready, plaintext still accepted.
    Permissive,
    /// Nothing leaves or enters in the clear.
    Enforcing,
}

impl Enforcement {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Off, Self::Permissive, Self::Enforcing];

    /// As it is written in the ring.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Permissive => "permissive",
            Self::Enforcing => "enforcing",
        }
    }

    /// The one of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|enforcement| enforcement.name() == name)
    }
}

/// What a generation is used for. The order is that of the generations in a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Still received, no longer sent.
    Retiring,
    /// Senders use it.
    Active,
    /// Every node can receive with it, pod traffic is not sent with it.
    Staged,
}

/// The traffic between nodes that a generation encrypts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Traffic {
    /// IP in IP, protocol 4 (RFC 2003).
    #[default]
    Ipip,
}

/// Where the identities come from that a generation's SAs are derived from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Identities {
    /// Nodes announce instances and X25519 keys in `EncryptionPeer` objects.
    #[default]
    Announced,
    /// The boot IDs in the Node objects: all that MKE's manifest lets agents know of each other. No key agreement.
    BootId,
}

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
    /// What its SAs encrypt.
    pub traffic: Traffic,
    /// Whose identities its SAs are derived from.
    pub identities: Identities,
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
}

impl Generation {
    /// A staged generation with a random uid, key and seed.
    ///
    /// # Errors
    /// The random number generator's.
    pub fn generate<R: TryCryptoRng>(
        id: u64,
        suite: Suite,
        identities: Identities,
        now: Timestamp,
        rng: &mut R,
    ) -> Result<Self, R::Error> {
        Ok(Self {
            id,
            uid: Uid::generate(rng)?,
            role: Role::Staged,
            suite,
            traffic: Traffic::Ipip,
            identities,
            key: SecretBytes::try_fill(suite.key_len(), |key| rng.try_fill_bytes(key))?,
            spi_seed: SecretBytes::try_fill(SPI_SEED_LEN, |seed| rng.try_fill_bytes(seed))?,
            created_at: now,
            role_since: now,
        })
    }
}

/// Nodes that take no part.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Excluded {
    /// Names of their Node objects.
    #[serde(default)]
    pub nodes: BTreeSet<String>,
    /// Their addresses; none that an included node has.
    #[serde(default)]
    pub addresses: BTreeSet<NodeAddress>,
}

/// The whole document. Written only by the manager, always against the resourceVersion that it read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyRing {
    /// Version of the document, [`VERSION`].
    pub version: u32,
    /// One more on every write.
    pub revision: u64,
    /// What acknowledgements name: drawn anew when roles or enforcement change, or acknowledgements must be renewed.
    pub ack_id: Uid,
    /// UID of the DaemonSet that this ring was made for; absent where the manager may not read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub installation: Option<Uid>,
    /// How far encryption is enforced.
    pub enforcement: Enforcement,
    /// When the next rotation is due.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_rotation: Option<Timestamp>,
    /// The settings in force.
    pub settings: Settings,
    /// Nodes that take no part.
    #[serde(default)]
    pub excluded: Excluded,
    /// At most one of each role, in the order of [`Role`], ids strictly increasing.
    #[serde(default)]
    pub generations: Vec<Generation>,
}

/// Why a document is not a key ring. Holds nothing of the document but numbers, so that it can be logged.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyRingError {
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
    /// Two generations of one role, or roles out of order.
    #[error("a {0:?} generation comes too late: at most one retiring, one active, one staged, in this order")]
    RoleOrder(Role),
    /// Out of the range of ids.
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
    /// The settings are out of bounds.
    #[error("the settings in the key ring are refused: {0}")]
    Settings(#[from] InvalidSettings),
    /// Too many exclusions.
    #[error("the key ring excludes {0} nodes or addresses; at most {MAX_EXCLUDED} of each are read")]
    Excluded(usize),
    /// The name of an excluded node cannot be the name of a node.
    #[error("the key ring excludes a node whose name is no RFC 1123 subdomain")]
    NodeName,
}

impl KeyRing {
    /// A ring without generations: encryption is off.
    #[must_use]
    pub const fn off(revision: u64, ack_id: Uid, installation: Option<Uid>, settings: Settings) -> Self {
        Self {
            version: VERSION,
            revision,
            ack_id,
            installation,
            enforcement: Enforcement::Off,
            next_rotation: None,
            settings,
            excluded: Excluded { nodes: BTreeSet::new(), addresses: BTreeSet::new() },
            generations: Vec::new(),
        }
    }

    /// Reads and checks a document.
    ///
    /// # Errors
    /// What is wrong with it, without any of its content.
    pub fn parse(document: &[u8]) -> Result<Self, KeyRingError> {
        if document.len() > MAX_LEN {
            return Err(KeyRingError::TooLong(document.len()));
        }
        let text = str::from_utf8(document).map_err(|_| KeyRingError::NotText)?;
        if text.trim().is_empty() {
            return Err(KeyRingError::Empty);
        }
        let version: VersionOnly = serde_saphyr::from_str(text).map_err(|error| malformed(&error))?;
        if version.version != VERSION {
            return Err(KeyRingError::Version(version.version));
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

    /// The generation that is being distributed and proven.
    #[must_use]
    pub fn staged(&self) -> Option<&Generation> {
        self.with_role(Role::Staged)
    }

    /// The generation that is being phased out.
    #[must_use]
    pub fn retiring(&self) -> Option<&Generation> {
        self.with_role(Role::Retiring)
    }

    /// The generation with this uid.
    #[must_use]
    pub fn generation(&self, uid: &Uid) -> Option<&Generation> {
        self.generations.iter().find(|generation| generation.uid == *uid)
    }

    /// Where it is in the life of its keys.
    #[must_use]
    pub fn phase(&self) -> Phase<'_> {
        Phase::of(Some(self))
    }

    /// The generation that rings are compared by: the active one, else the retiring, else the staged one.
    #[must_use]
    pub fn reference(&self) -> Option<&Generation> {
        self.active().or_else(|| self.retiring()).or_else(|| self.staged())
    }

    /// The highest id of its generations, 0 without any.
    #[must_use]
    pub fn highest_id(&self) -> u64 {
        self.generations.iter().map(|generation| generation.id).max().unwrap_or(0)
    }

    /// What [`Self::parse`] checks beyond the shape of the document; the manager checks it before it writes.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn check(&self) -> Result<(), KeyRingError> {
        for (at, generation) in self.generations.iter().enumerate() {
            let id = generation.id;
            let earlier = &self.generations[..at];
            if id > MAX_ID {
                return Err(KeyRingError::Id(id));
            }
            if earlier.iter().any(|other| other.id >= id) {
                return Err(KeyRingError::Order(id));
            }
            if earlier.iter().any(|other| other.role >= generation.role) {
                return Err(KeyRingError::RoleOrder(generation.role));
            }
            if earlier.iter().any(|other| other.uid == generation.uid) {
                return Err(KeyRingError::DuplicateUid(generation.uid));
            }
            let lengths = [
                ("key", &generation.key, generation.suite.key_len()),
                ("spiSeed", &generation.spi_seed, SPI_SEED_LEN),
            ];
            for (field, secret, expected) in lengths {
                if secret.len() != expected {
                    return Err(KeyRingError::Length { id, field, actual: secret.len(), expected });
                }
            }
        }
        self.settings.rotation.check()?;
        let Excluded { nodes, addresses } = &self.excluded;
        let most = nodes.len().max(addresses.len());
        if most > MAX_EXCLUDED {
            return Err(KeyRingError::Excluded(most));
        }
        if !nodes.iter().all(|name| is_node_name(name)) {
            return Err(KeyRingError::NodeName);
        }
        let fits = match self.enforcement {
            Enforcement::Off => self.generations.is_empty(),
            Enforcement::Permissive => !self.generations.is_empty(),
            Enforcement::Enforcing => self.active().is_some(),
        };
        if fits { Ok(()) } else { Err(KeyRingError::Enforcement(self.enforcement)) }
    }
}

/// Whether a Node can have this name: an RFC 1123 subdomain, as Kubernetes checks it.
#[must_use]
pub fn is_node_name(name: &str) -> bool {
    let label = |label: &str| {
        let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let bytes = label.as_bytes();
        bytes.iter().all(|byte| alphanumeric(*byte) || *byte == b'-')
            && bytes.first().is_some_and(|byte| alphanumeric(*byte))
            && bytes.last().is_some_and(|byte| alphanumeric(*byte))
    };
    name.len() <= MAX_NODE_NAME && name.split('.').all(label)
}

#[derive(Deserialize)]
struct VersionOnly {
    version: u32,
}

/// The parser's own message quotes the document, keys included: only the place is kept.
fn malformed(error: &serde_saphyr::Error) -> KeyRingError {
    let (line, column) = error.location().map_or((0, 0), |at| (at.line(), at.column()));
    KeyRingError::Malformed { line, column }
}
