//! What the agent remembers over its own restarts, beside identity and journal: the file `state`, in JSON.

use secureoverlay_keyring::{keyring::KeyRing, peer::Sender, uid::Uid};
use serde::{Deserialize, Serialize};

use crate::identity::DrawPace;

/// Entries that are remembered as our own.
const MAX_ENTRIES: usize = 256;

/// The ring that was applied last, as far as it matters for the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// The highest id of a reference generation that was applied, 0 for none.
    pub id: u64,
    /// The uid of that generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<Uid>,
    /// The ring's revision.
    pub revision: u64,
}

impl Applied {
    /// After `ring` was applied. A ring that is off has no reference generation: the one of before stays.
    #[must_use]
    pub fn after(before: Option<&Self>, ring: &KeyRing) -> Self {
        let before = before.copied().unwrap_or(Self { id: 0, uid: None, revision: 0 });
        let revision = ring.revision;
        match ring.reference() {
            Some(reference) => Self { id: reference.id, uid: Some(reference.uid), revision },
            None => Self { revision, ..before },
        }
    }
}

/// What this boot has put into its EncryptionPeer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Announced {
    /// UID of the object that was written last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object_uid: Option<Uid>,
    /// Its `metadata.generation` after that.
    #[serde(default)]
    pub generation: i64,
    /// Every entry that was ever put into a write.
    #[serde(default)]
    entries: Vec<Sender>,
}

impl Announced {
    /// Whether this boot ever wrote this entry.
    #[must_use]
    pub fn wrote(&self, entry: &Sender) -> bool {
        self.entries.contains(entry)
    }

    /// Remembers entries before they are written. The newest are kept: nodes draw rarely, and the oldest are long gone
    /// from every object.
    pub fn remember(&mut self, entries: &[Sender]) -> bool {
        let before = self.entries.len();
        for entry in entries {
            if !self.entries.contains(entry) {
                self.entries.push(*entry);
            }
        }
        let changed = self.entries.len() != before;
        let over = self.entries.len().saturating_sub(MAX_ENTRIES);
        self.entries.drain(..over);
        changed
    }
}

/// The file's content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PersistedState {
    version: u32,
    /// The ring that was applied last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied: Option<Applied>,
    /// What was announced.
    #[serde(default)]
    pub announced: Announced,
    /// When was drawn.
    #[serde(default)]
    pub draws: DrawPace,
    /// When the last strange entry was found, in milliseconds since boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strange_ms: Option<u64>,
    /// UIDs of objects of other nodes that listed this node's identity, and were drawn for already.
    #[serde(default)]
    pub duplicates: Vec<Uid>,
}

const VERSION: u32 = 1;

impl PersistedState {
    /// Reads the file; what can't be read counts as nothing remembered.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Self {
        let read: Option<Self> = serde_json::from_slice(bytes).ok();
        read.filter(|state| state.version == VERSION).unwrap_or_default()
    }

    /// The file's content.
    ///
    /// # Panics
    /// Never: numbers and text always serialize.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let state = Self { version: VERSION, ..self.clone() };
        serde_json::to_vec(&state).expect("numbers and text always serialize")
    }
}
