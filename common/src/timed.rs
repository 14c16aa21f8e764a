//! Facts from the time that has passed, for clusters whose nodes can't say what they have done.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::{
    ring::{Ring, Role},
    rotation::{Answer, Facts},
    uid::Uid,
};

/// Remembers since when this process has seen each generation in its role.
///
/// The times in the ring are not used: another manager's clock may have written them.
#[derive(Debug)]
pub struct Timed {
    delay: Duration,
    seen: BTreeMap<(Uid, Role), Instant>,
}

impl Timed {
    /// `delay`: time within which every node has read a new ring and programmed it.
    #[must_use]
    pub const fn new(delay: Duration) -> Self {
        Self { delay, seen: BTreeMap::new() }
    }

    /// Notes what `ring` shows at `now`, and says what may be taken for true.
    pub fn observe(&mut self, ring: Option<&Ring>, now: Instant) -> Facts {
        let generations = ring.map_or(&[][..], |ring| &ring.generations);
        let seen_before = std::mem::take(&mut self.seen);
        for generation in generations {
            let id = (generation.uid, generation.role);
            self.seen.insert(id, seen_before.get(&id).copied().unwrap_or(now));
        }
        let answer = |role| {
            let since = generations
                .iter()
                .find(|generation| generation.role == role)
                .and_then(|generation| self.seen.get(&(generation.uid, role)));
            let left = since
                .map_or(self.delay, |since| self.delay.saturating_sub(now.saturating_duration_since(*since)));
            if left.is_zero() { Answer::Yes } else { Answer::In(left) }
        };
        Facts { all_receive: answer(Role::Staged), nobody_sends: answer(Role::Retiring) }
    }
}
