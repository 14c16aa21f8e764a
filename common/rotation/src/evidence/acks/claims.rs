//! Claims of a newer ring than the one that is there: `docs/rotation.md`, section 6.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};
use secureoverlay_keyring::{acknowledgement::Acknowledgement, keyring::KeyRing};

use super::{
    super::{Blocker, Claim},
    is_current,
    participant::Participant,
};

/// Claims by few nodes are believed once in so long.
const FEW: Duration = Duration::from_secs(86_400);
/// Ids of generations are Unix seconds: fewer than half of the nodes can't move them further than this.
const BELIEVED: SignedDuration = SignedDuration::from_hours(30 * 24);

/// Remembers when claims were answered: one node must not keep the ring in bootstraps.
#[derive(Debug, Default)]
pub(super) struct ClaimLimiter {
    any: Option<Instant>,
    few: Option<Instant>,
}

impl ClaimLimiter {
    /// The claim that is to be answered, if there is one.
    pub(super) fn claim(
        &self,
        view: &[Participant<'_>],
        ring: Option<&KeyRing>,
        minimum: Duration,
        (now, wall): (Instant, Timestamp),
    ) -> Option<Claim> {
        let ring = ring?;
        let recent =
            |at: Option<Instant>, span| at.is_some_and(|at| now.saturating_duration_since(at) < span);
        if recent(self.any, minimum) {
            return None;
        }
        let bound = bound(wall);
        let expected = view.iter().filter(|node| node.is_expected()).count();
        let claiming = || view.iter().filter(|node| node.said.is_some_and(|ack| is_claim(ack, ring)));
        let most = claiming().filter(|node| node.is_expected()).count() * 2 > expected;
        let credible = |ack: &Acknowledgement| most || ack.highest_generation_seen <= bound;
        let credible = claiming().filter(|node| node.said.is_some_and(credible));
        let nodes: BTreeSet<String> = credible.map(|node| node.name().to_owned()).collect();
        let believed = !nodes.is_empty() && (most || !recent(self.few, FEW));
        believed.then_some(Claim { nodes, most })
    }

    pub(super) fn answered(&mut self, claim: &Claim, now: Instant) {
        self.any = Some(now);
        if !claim.most {
            self.few = Some(now);
        }
    }
}

fn is_claim(ack: &Acknowledgement, ring: &KeyRing) -> bool {
    let higher = !ring.generations.is_empty() && ack.highest_generation_seen > ring.highest_id();
    let refused = || ack.enforcement_blockers.iter().any(|it| it.reason == Blocker::OLDER_RING);
    higher || (is_current(ack.ack_id, Some(ring)) && refused())
}

fn bound(wall: Timestamp) -> u64 {
    wall.checked_add(BELIEVED).map_or(u64::MAX, |bound| u64::try_from(bound.as_second()).unwrap_or(0))
}

/// The highest id that new generations must be above.
pub(super) fn believed_id(view: &[Participant<'_>], wall: Timestamp) -> u64 {
    let bound = bound(wall);
    let mut seen: Vec<u64> =
        view.iter().filter_map(|node| node.said).map(|ack| ack.highest_generation_seen).collect();
    seen.sort_unstable_by(|one, other| other.cmp(one));
    // What more than half of them say at least.
    let by_most = seen.get(seen.len() / 2).copied().unwrap_or(0);
    let by_any = seen.into_iter().find(|id| *id <= bound).unwrap_or(0);
    by_most.max(by_any)
}
