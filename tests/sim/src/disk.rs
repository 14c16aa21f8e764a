//! The state directory of a machine, in memory: what an agent persists until the machine boots.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
};

use secureoverlay_agent_core::{
    agent::IdentityStore,
    identity::Identity,
    journal::{JournalStore, Record},
    persisted::PersistedState,
};
use secureoverlay_keyring::uid::Uid;

use crate::rng::Rng;

/// Steps that an agent may still take before it is killed, where that is decided.
pub type Fuse = Rc<Cell<Option<usize>>>;

/// Burns one step; whether the process is dead.
pub fn burn(fuse: &Fuse) -> bool {
    match fuse.get() {
        Some(0) => true,
        Some(left) => {
            fuse.set(Some(left - 1));
            false
        }
        None => false,
    }
}

/// The files.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    /// `identity`.
    pub identity: Option<Vec<u8>>,
    /// The first `identity` of this boot.
    pub first: Option<Vec<u8>>,
    /// `state`.
    pub state: Option<Vec<u8>>,
    /// `journal`.
    pub journal: Option<Vec<u8>>,
    /// Nothing can be written: ENOSPC.
    pub full: bool,
    /// Counts how often it was emptied: an agent of before ends when it finds that.
    pub emptied: u64,
}

/// A process's access to the directory.
#[derive(Clone, Debug)]
pub struct Store {
    /// The files.
    pub directory: Rc<RefCell<Directory>>,
    /// What it was when the process began.
    pub emptied: u64,
    /// The process must end.
    pub ended: Rc<Cell<bool>>,
    /// When it is killed.
    pub fuse: Fuse,
    /// The wrong variant that never writes its identity.
    pub no_identity: bool,
    /// The wrong variant that never writes its journal.
    pub no_journal: bool,
    /// The generations of outbound keys, as the journal says: for the world.
    pub generations: Rc<RefCell<BTreeMap<u64, Uid>>>,
}

impl Store {
    fn write(&self, change: impl FnOnce(&mut Directory)) -> Result<(), String> {
        let mut directory = self.directory.borrow_mut();
        if burn(&self.fuse) {
            return Err("killed".to_owned());
        }
        if directory.emptied != self.emptied {
            self.ended.set(true);
            return Err("the directory was replaced".to_owned());
        }
        if directory.full {
            return Err("no space left".to_owned());
        }
        change(&mut directory);
        Ok(())
    }
}

impl IdentityStore for Store {
    fn save_identity(&mut self, identity: &Identity) -> Result<(), String> {
        if self.no_identity {
            return Ok(());
        }
        let bytes = identity.to_bytes().to_vec();
        self.write(|directory| {
            directory.first.get_or_insert_with(|| bytes.clone());
            directory.identity = Some(bytes);
        })
    }

    fn save_state(&mut self, state: &PersistedState) -> Result<(), String> {
        self.write(|directory| directory.state = Some(state.to_bytes()))
    }
}

impl Store {
    fn note(&self, lines: &str) {
        for line in lines.lines() {
            let mut words = line.split(' ');
            if let (Some("out"), Some(Ok(uid)), Some(Ok(key))) = (
                words.next(),
                words.next().map(str::parse),
                words.next().map(|key| u64::from_str_radix(key, 16)),
            ) {
                self.generations.borrow_mut().insert(key, uid);
            }
        }
    }
}

impl JournalStore for Store {
    fn append(&mut self, lines: &str) -> Result<(), String> {
        self.note(lines);
        if self.no_journal {
            return Ok(());
        }
        self.write(|directory| directory.journal.get_or_insert_default().extend_from_slice(lines.as_bytes()))
    }

    fn replace(&mut self, journal: &str) -> Result<(), String> {
        self.note(journal);
        if self.no_journal {
            return Ok(());
        }
        self.write(|directory| directory.journal = Some(journal.as_bytes().to_vec()))
    }
}

/// What a process begins with: identity, state, and what the journal says.
///
/// # Errors
/// The process ends before it has begun.
pub fn load(
    store: &mut Store,
    rng: &mut Rng,
    believes: bool,
) -> Result<(Identity, PersistedState, Record), String> {
    let files = store.directory.borrow().clone();
    let state = files.state.as_deref().map(PersistedState::parse).unwrap_or_default();
    let record = files.journal.as_deref().and_then(|bytes| Record::parse(bytes).ok());
    let found = files.identity.as_deref().and_then(Identity::parse);
    let vouched = |identity: &Identity| {
        believes || record.as_ref().is_some_and(|record| record.instance() == Some(identity.instance))
    };
    match found {
        Some(identity) if vouched(&identity) => Ok((identity, state, record.unwrap_or_default())),
        found => {
            let Ok(identity) = Identity::generate(rng);
            store.save_identity(&identity)?;
            // With a journal that does not vouch, what it knew of generations is lost as well.
            let record = if found.is_some() { None } else { record };
            Ok((identity, state, record.unwrap_or_default()))
        }
    }
}
