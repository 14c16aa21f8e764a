//! Evidence from the time that has passed, for clusters whose nodes can't say what they have done.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use secureoverlay_keyring::{
    keyring::{Enforcement, Generation, KeyRing, Role},
    uid::Uid,
};

use super::{Evidence, Readiness};
use crate::Phase;

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
    pub fn observe(&mut self, ring: Option<&KeyRing>, now: Instant) {
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

    /// For how long `phase` has been seen, where it waits for nodes.
    #[must_use]
    pub fn phase(&self, phase: Phase<'_>, now: Instant) -> Duration {
        let newest = phase.staged().or(phase.active()).or(phase.retiring());
        newest.map_or(Duration::ZERO, |generation| self.waited(generation, now))
    }
}

/// Takes for true, after a delay, what must have become true by then.
#[derive(Debug)]
pub struct DelayTracker {
    delay: Duration,
    since: RoleTimers,
    /// Since when the ring accepts plaintext.
    permissive: Option<Instant>,
}

impl DelayTracker {
    /// `delay`: time within which every node has read a new ring and programmed it.
    #[must_use]
    pub const fn new(delay: Duration) -> Self {
        Self { delay, since: RoleTimers::new(), permissive: None }
    }

    /// Notes what `ring` shows at `now`, and says what may be taken for true.
    pub fn observe(&mut self, ring: Option<&KeyRing>, now: Instant) -> Evidence {
        self.since.observe(ring, now);
        let waited = self.since.phase(Phase::of(ring), now);
        let permissive = ring.is_some_and(|ring| ring.enforcement == Enforcement::Permissive);
        self.permissive = permissive.then(|| self.permissive.unwrap_or(now));
        let accepted = self.permissive.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        Evidence {
            staged_acked: after(self.delay.saturating_sub(waited)),
            drained: after(self.delay.saturating_sub(waited)),
            none_enforcing: after(self.delay.saturating_sub(accepted)),
            ..Evidence::unknown()
        }
    }
}

const fn after(left: Duration) -> Readiness {
    if left.is_zero() { Readiness::Ready } else { Readiness::After(left) }
}

#[cfg(test)]
mod tests {
    use secureoverlay_keyring::keyring::Role::{Active, Retiring, Staged};

    use super::*;
    use crate::testing::ring;

    const DELAY: Duration = Duration::from_secs(180);

    #[test]
    fn each_role_is_given_the_delay_since_this_process_saw_it() {
        let (mut tracker, start) = (DelayTracker::new(DELAY), Instant::now());
        let (staged, draining) = (
            ring(Enforcement::Permissive, &[Active, Staged]),
            ring(Enforcement::Permissive, &[Retiring, Active]),
        );
        assert_eq!(tracker.observe(Some(&staged), start).staged_acked, Readiness::After(DELAY));
        let evidence = tracker.observe(Some(&staged), start + DELAY);
        assert_eq!(evidence.staged_acked, Readiness::Ready);
        assert_eq!((evidence.can_enforce, evidence.limit), (Readiness::Unknown, None));
        assert_eq!(tracker.observe(Some(&draining), start + DELAY).drained, Readiness::After(DELAY));
        assert_eq!(tracker.observe(Some(&draining), start + 2 * DELAY).drained, Readiness::Ready);
        // A ring that was gone in between is new.
        tracker.observe(None, start + 2 * DELAY);
        assert_eq!(tracker.observe(Some(&draining), start + 2 * DELAY).drained, Readiness::After(DELAY));
    }

    #[test]
    fn plaintext_is_accepted_everywhere_the_delay_after_the_ring_says_so() {
        let (mut tracker, start) = (DelayTracker::new(DELAY), Instant::now());
        let enforcing = ring(Enforcement::Enforcing, &[Active]);
        tracker.observe(Some(&enforcing), start);
        let permissive = ring(Enforcement::Permissive, &[Active]);
        let evidence = tracker.observe(Some(&permissive), start + DELAY);
        assert_eq!(evidence.none_enforcing, Readiness::After(DELAY), "the generation is older than that");
        assert_eq!(tracker.observe(Some(&permissive), start + 2 * DELAY).none_enforcing, Readiness::Ready);
    }
}
