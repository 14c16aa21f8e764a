//! Which addresses take no part in encryption, and since when: both ends of a pair change at slightly different times,
//! so each accepts plaintext before it sends any, and the other way round.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use secureoverlay_keyring::address::NodeAddress;

use crate::Time;

/// By how much nodes may differ in noticing a change.
pub const SKEW: Duration = Duration::from_secs(4);

/// What is excluded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Excluded {
    /// This node: it takes no part at all.
    pub local: bool,
    /// Addresses of other nodes.
    pub addresses: BTreeSet<NodeAddress>,
}

/// What follows from it at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exclusion {
    /// Plaintext from and to these is accepted.
    pub accepts: Excluded,
    /// Plaintext is sent to these.
    pub sends: Excluded,
}

impl Exclusion {
    /// Whether pod traffic to this address goes in the clear.
    #[must_use]
    pub fn sends_plaintext(&self, to: NodeAddress) -> bool {
        self.sends.local || self.sends.addresses.contains(&to)
    }

    /// Whether plaintext from this address is accepted.
    #[must_use]
    pub fn accepts_plaintext(&self, from: NodeAddress) -> bool {
        self.accepts.local || self.accepts.addresses.contains(&from)
    }
}

/// The fold over what the rings said.
#[derive(Clone, Debug, Default)]
pub struct ExclusionTracker {
    now: Excluded,
    seen: bool,
    /// When what is excluded, or what is not any more, changed; `None` is this node.
    changed: BTreeMap<Option<NodeAddress>, Time>,
}

impl ExclusionTracker {
    /// Takes what is excluded now. What the first ring says has been so for long.
    pub fn update(&mut self, excluded: Excluded, now: Time) {
        if self.seen {
            let before = &self.now.addresses;
            for address in before.symmetric_difference(&excluded.addresses) {
                self.changed.insert(Some(*address), now);
            }
            if self.now.local != excluded.local {
                self.changed.insert(None, now);
            }
        }
        (self.now, self.seen) = (excluded, true);
    }

    /// What follows at `now`.
    #[must_use]
    pub fn at(&mut self, now: Time) -> Exclusion {
        self.changed.retain(|_, since| *since + SKEW > now);
        let mut exclusion = Exclusion { accepts: self.now.clone(), sends: self.now.clone() };
        for address in self.changed.keys() {
            match address {
                Some(address) => {
                    exclusion.accepts.addresses.insert(*address);
                    exclusion.sends.addresses.remove(address);
                }
                None => (exclusion.accepts.local, exclusion.sends.local) = (true, false),
            }
        }
        exclusion
    }

    /// When something changes by itself.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        self.changed.values().map(|since| *since + SKEW).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::address;

    #[test]
    fn plaintext_is_accepted_before_it_is_sent_and_after_it_was() {
        let x = address(7);
        let only = |addresses: &[NodeAddress]| Excluded {
            local: false,
            addresses: addresses.iter().copied().collect(),
        };
        let mut tracker = ExclusionTracker::default();
        let second = Time::from_secs(1);
        tracker.update(only(&[]), second);
        let mut at = |excluded: Excluded, secs: u64, later: u64| {
            tracker.update(excluded, Time::from_secs(secs));
            let exclusion = tracker.at(Time::from_secs(secs + later));
            (exclusion.accepts_plaintext(x), exclusion.sends_plaintext(x))
        };
        assert_eq!(at(only(&[]), 5, 0), (false, false));
        assert_eq!(at(only(&[x]), 10, 0), (true, false));
        assert_eq!(at(only(&[x]), 10, 4), (true, true));
        assert_eq!(at(only(&[]), 20, 0), (true, false));
        assert_eq!(at(only(&[]), 20, 4), (false, false));
        assert_eq!(at(Excluded { local: true, ..Excluded::default() }, 30, 3), (true, false));
        assert_eq!(at(Excluded { local: true, ..Excluded::default() }, 30, 5), (true, true));
    }

    #[test]
    fn first_ring_says_what_has_been_so_for_long() {
        let mut tracker = ExclusionTracker::default();
        tracker.update(Excluded { local: false, addresses: [address(7)].into() }, Time::from_secs(9));
        assert!(tracker.at(Time::from_secs(9)).sends_plaintext(address(7)));
        assert_eq!(tracker.poll_timeout(), None);
    }
}
