//! Evidence from the time that has passed, for clusters whose nodes can't say what they have done.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{Evidence, Readiness};
use crate::{
    phase::Phase,
    ring::{Enforcement, Generation, Ring, Role},
    uid::Uid,
};

/// Since when this process has seen each generation in its role.
///
/// The times in the ring are not used: another manager's clock may have written them.
#[derive(Debug, Default)]
pub struct RoleTimers(BTreeMap<(Uid, Role), Instant>);

impl RoleTimers {
    /// Nothing was seen yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// Notes what `ring` shows at `now`.
    pub fn observe(&mut self, ring: Option<&Ring>, now: Instant) {
        let before = std::mem::take(&mut self.0);
        for generation in ring.iter().flat_map(|ring| &ring.generations) {
            let id = (generation.uid, generation.role);
            self.0.insert(id, before.get(&id).copied().unwrap_or(now));
        }
    }

    /// For how long `generation` has been seen in its role.
    #[must_use]
    pub fn waited(&self, generation: &Generation, now: Instant) -> Duration {
        let since = self.0.get(&(generation.uid, generation.role));
        since.map_or(Duration::ZERO, |since| now.saturating_duration_since(*since))
    }
}

/// Takes for true, after a delay, what must have become true by then.
#[derive(Debug)]
pub struct DelayTracker {
    delay: Duration,
    since: RoleTimers,
    /// Since when plaintext is accepted by the ring.
    permissive: Option<Instant>,
}

impl DelayTracker {
    /// `delay`: time within which every node has read a new ring and programmed it.
    #[must_use]
    pub const fn new(delay: Duration) -> Self {
        Self { delay, since: RoleTimers::new(), permissive: None }
    }

    /// Notes what `ring` shows at `now`, and says what may be taken for true.
    pub fn observe(&mut self, ring: Option<&Ring>, now: Instant) -> Evidence {
        self.since.observe(ring, now);
        let phase = Phase::of(ring);
        let in_its_role = |generation: Option<&Generation>| {
            let waited = generation.map_or(Duration::ZERO, |generation| self.since.waited(generation, now));
            after(self.delay.saturating_sub(waited))
        };
        let (staged_acked, drained) = (in_its_role(phase.staged()), in_its_role(phase.retiring()));
        let permissive = ring.is_some_and(|ring| ring.enforcement == Enforcement::Permissive);
        self.permissive = permissive.then(|| self.permissive.unwrap_or(now));
        let accepted = self.permissive.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        Evidence {
            // Whom ESP does not reach is not known: who was pending stays so.
            pending: ring.map_or_else(Default::default, |ring| ring.pending.clone()),
            none_enforcing: after(self.delay.saturating_sub(accepted)),
            ..Evidence::of(staged_acked, drained)
        }
    }
}

const fn after(left: Duration) -> Readiness {
    if left.is_zero() { Readiness::Ready } else { Readiness::After(left) }
}
