//! One peer as the table knows it: its entries now, and those that it takes later.

use std::{collections::BTreeMap, time::Duration};

use secureoverlay_keyring::{address::NodeAddress, uid::Uid};

use crate::{Time, entry::Entry};

/// Changes of one peer's entries that are taken at once; each adds SAs that stay for a generation.
pub(super) const CHANGES: u32 = 10;
/// After those, one is taken in this time.
pub(super) const CHANGE_EVERY: Duration = Duration::from_secs(60);

/// What is known of a peer.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) object: Uid,
    pub(super) created: i64,
    pub(super) entries: Vec<Entry>,
    pub(super) node_uid: Option<Uid>,
    pub(super) problem: Option<String>,
    pub(super) withdrawn: BTreeMap<NodeAddress, Time>,
    pub(super) vanished: Option<Time>,
    /// When it may be looked up, or leaves.
    pub(super) due: Time,
    /// Changes that may still be taken at once, and since when they are counted.
    pub(super) allowance: (u32, Time),
    pub(super) waiting: Option<Vec<Entry>>,
}

impl Known {
    pub(super) const fn new(object: Uid, created: i64, now: Time) -> Self {
        Self {
            object,
            created,
            entries: Vec::new(),
            node_uid: None,
            problem: None,
            withdrawn: BTreeMap::new(),
            vanished: None,
            due: Time::ZERO,
            allowance: (CHANGES, now),
            waiting: None,
        }
    }

    /// Takes other entries, at once or later. Returns whether something changed at once.
    pub(super) fn offer(&mut self, entries: Vec<Entry>, now: Time) -> bool {
        if entries == self.entries {
            self.waiting = None;
            return false;
        }
        self.waiting = Some(entries);
        self.settle(now)
    }

    pub(super) fn settle(&mut self, now: Time) -> bool {
        let passed = now.saturating_sub(self.allowance.1).as_secs() / CHANGE_EVERY.as_secs();
        if passed > 0 {
            let more = u32::try_from(passed).unwrap_or(u32::MAX);
            self.allowance = (self.allowance.0.saturating_add(more).min(CHANGES), now);
        }
        if self.allowance.0 == 0 {
            return false;
        }
        let Some(entries) = self.waiting.take() else { return false };
        self.allowance.0 -= 1;
        for former in &self.entries {
            self.withdrawn.insert(former.address, now);
        }
        for entry in &entries {
            self.withdrawn.remove(&entry.address);
        }
        self.entries = entries;
        true
    }
}
