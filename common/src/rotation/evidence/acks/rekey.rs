//! Which nodes need new incarnations, because they lost SAs whose keys can't be used again.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{super::Incarnations, AckTracker, Participant};
use crate::{
    phase::Phase,
    ring::{Ring, Role},
    uid::Uid,
};

/// Between two writes that give nodes new incarnations, so that something that keeps deleting SAs can't make the whole
/// cluster change keys all the time.
pub(super) const PAUSE: Duration = Duration::from_secs(5);
/// When more nodes than this need new incarnations at once, a rotation gives new keys to all: the ring would name every one
/// of them, and every node repeats that in its acknowledgement.
pub(super) const REKEYED: usize = 100;
/// Likewise in the middle of a rotation, where these nodes can't send and so wait for its end, and it for them: names in
/// the acknowledgements of all nodes together, as many as an API server can be asked to hold.
const NAMED: usize = 500_000;
/// And at most so many.
const REKEYED_MIDWAY: usize = 1000;

impl AckTracker {
    pub(super) fn rekey(
        &self,
        participants: &[Participant<'_>],
        ring: Option<&Ring>,
        now: Instant,
    ) -> BTreeMap<Uid, Incarnations> {
        if self.rekeyed.is_some_and(|at| now.saturating_duration_since(at) < PAUSE) {
            return BTreeMap::new();
        }
        let generations = || ring.iter().flat_map(|ring| &ring.generations);
        let mut rekey = BTreeMap::new();
        for ack in participants.iter().filter_map(|participant| participant.ack) {
            // No node sends with a retiring generation: its keys need not be fresh.
            let needed: Incarnations = generations()
                .filter(|generation| generation.role != Role::Retiring)
                .filter_map(|generation| {
                    let burnt = *ack.burnt.get(&generation.uid)?;
                    let next = burnt.checked_add(1)?;
                    (burnt >= generation.incarnation(&ack.node)).then_some((generation.uid, next))
                })
                .collect();
            if !needed.is_empty() {
                rekey.insert(ack.node, needed);
            }
        }
        rekey
    }
}

/// Why a rotation is to give new keys to all instead, where these are too many for a cluster of `nodes`.
pub(super) fn too_many(
    rekey: &BTreeMap<Uid, Incarnations>,
    phase: Phase<'_>,
    nodes: usize,
) -> Option<String> {
    let (named, limit) = match phase {
        // One by one they would fill the ring as well.
        Phase::Steady { active } => (active.incarnations.len(), REKEYED),
        _ => (0, (NAMED / nodes.max(1)).clamp(REKEYED, REKEYED_MIDWAY)),
    };
    (named + rekey.len() > limit && !rekey.is_empty()).then(|| {
        let before = if named > 0 { format!(", after {named} that have new ones") } else { String::new() };
        format!("{} nodes lost SAs whose keys can't be used again{before}", rekey.len())
    })
}
