//! What a process begins with: identity, state and journal of this boot, or new ones.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Context, Result};
use rand::rngs::SysRng;
use secureoverlay_agent_core::{
    agent::{IdentityStore, Start},
    identity::{Identity, LocalIdentity},
    journal::{Journal, JournalStore, Record},
    persisted::PersistedState,
};
use secureoverlay_k8s::node_encryption::Durability;
use secureoverlay_keyring::uid::Uid;

use crate::state_directory::{FileContent, JournalFile, StateDirectory, StateError};

/// What there is to go on with.
pub struct Opened {
    /// For the decisions.
    pub start: Start,
    /// Keeps identity and state.
    pub store: Store,
    /// Keeps which keys the kernel was given.
    pub journal: Journal<Lines>,
    /// How long all of that lasts.
    pub durability: Durability,
    /// The directory was removed or replaced: this process must end.
    pub replaced: Arc<AtomicBool>,
}

/// Identity and state, in the directory or nowhere.
pub struct Store {
    directory: Option<StateDirectory>,
    replaced: Arc<AtomicBool>,
}

/// The journal, in the directory or nowhere.
pub struct Lines {
    file: Option<JournalFile>,
    replaced: Arc<AtomicBool>,
}

fn told(result: Result<(), StateError>, replaced: &AtomicBool) -> Result<(), String> {
    if matches!(result, Err(StateError::Replaced { .. })) {
        replaced.store(true, Ordering::Relaxed);
    }
    result.map_err(|error| error.to_string())
}

impl IdentityStore for Store {
    fn save_identity(&mut self, identity: &Identity) -> Result<(), String> {
        let Some(directory) = &mut self.directory else { return Ok(()) };
        told(directory.write_identity(&identity.to_bytes()), &self.replaced)
    }

    fn save_state(&mut self, state: &PersistedState) -> Result<(), String> {
        let Some(directory) = &mut self.directory else { return Ok(()) };
        told(directory.write_state(&state.to_bytes()), &self.replaced)
    }
}

impl JournalStore for Lines {
    fn append(&mut self, lines: &str) -> Result<(), String> {
        let Some(file) = &mut self.file else { return Ok(()) };
        told(file.append(lines.as_bytes()), &self.replaced)
    }

    fn replace(&mut self, journal: &str) -> Result<(), String> {
        let Some(file) = &mut self.file else { return Ok(()) };
        told(file.replace(journal.as_bytes()), &self.replaced)
    }
}

/// Under MKE's manifest: the boot ID is the identity, and nothing is kept.
#[must_use]
pub fn by_boot_id(name: String, boot_id: Uid) -> Opened {
    let start = Start {
        name,
        identity: LocalIdentity::BootId(boot_id),
        state: PersistedState::default(),
        gone: Default::default(),
        drawn: false,
    };
    in_memory(start)
}

fn in_memory(start: Start) -> Opened {
    let replaced = Arc::new(AtomicBool::new(false));
    Opened {
        start,
        store: Store { directory: None, replaced: replaced.clone() },
        journal: Journal::new(Record::default(), Lines { file: None, replaced: replaced.clone() }),
        durability: Durability::Volatile,
        replaced,
    }
}

/// Goes on with what the directory holds. Where that can't be kept until the boot, everything is drawn anew.
///
/// # Errors
/// [`StateError::AnotherAgentRuns`], or files that can't be read, by which nothing can be decided; or no random numbers.
pub fn from_directory(name: &str, path: &Path) -> Result<Opened> {
    match open(name, path) {
        Err(error) => match error.downcast_ref::<StateError>() {
            Some(
                state @ (StateError::NotTmpfs { .. }
                | StateError::Unwritable { .. }
                | StateError::Full { .. }),
            ) => {
                tracing::warn!(
                    reason = state.reason(),
                    error = format!("{error:#}"),
                    "identity and journal are kept in memory only"
                );
                let identity = Identity::generate(&mut SysRng).context("drawing an identity")?;
                let start = Start {
                    name: name.to_owned(),
                    identity: LocalIdentity::Announced(identity),
                    state: PersistedState::default(),
                    gone: Default::default(),
                    // What is kept in memory is lost with each process: that is said of the directory.
                    drawn: false,
                };
                Ok(in_memory(start))
            }
            _ => Err(error),
        },
        opened => opened,
    }
}

fn open(name: &str, path: &Path) -> Result<Opened> {
    let mut directory = StateDirectory::open(path)?;
    let known = match directory.read_identity()? {
        FileContent::Bytes(bytes) => Identity::parse(&bytes),
        FileContent::Absent | FileContent::TooLong => None,
    };
    let state = match directory.read_state()? {
        FileContent::Bytes(bytes) => PersistedState::parse(&bytes),
        FileContent::Absent | FileContent::TooLong => PersistedState::default(),
    };
    let (file, lines) = directory.open_journal()?;
    let record = match lines {
        FileContent::Bytes(bytes) => Record::parse(&bytes)
            .inspect_err(
                |error| tracing::warn!(%error, "the journal of used keys is damaged: drawing a new identity"),
            )
            .ok(),
        FileContent::Absent | FileContent::TooLong => None,
    };
    let vouched = |identity: &Identity| {
        record.as_ref().is_some_and(|record| record.instance() == Some(identity.instance))
    };
    let known = known.filter(vouched);
    let drawn = known.is_none();
    let identity = match known {
        Some(identity) => identity,
        // Drawing is always safe: no key can repeat.
        None => {
            let identity = Identity::generate(&mut SysRng).context("drawing an identity")?;
            directory.write_identity(&identity.to_bytes())?;
            identity
        }
    };
    let record = record.unwrap_or_default();
    tracing::info!(directory = %path.display(), instance = %identity.instance, "identity of this node");
    let replaced = Arc::new(AtomicBool::new(false));
    let start = Start {
        name: name.to_owned(),
        gone: record.gone().clone(),
        identity: LocalIdentity::Announced(identity),
        state,
        drawn,
    };
    Ok(Opened {
        start,
        store: Store { directory: Some(directory), replaced: replaced.clone() },
        journal: Journal::new(record, Lines { file: Some(file), replaced: replaced.clone() }),
        durability: Durability::Boot,
        replaced,
    })
}
