//! Evidence from what the nodes themselves say.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use jiff::Timestamp;

use super::{
    Blocker, Evidence, Readiness, RoleTimers,
    snapshot::{ClusterSnapshot, Participant, installed},
};
use crate::{
    phase::Phase,
    ring::{Enforcement, Ring},
    rotation::LAST_ID,
    uid::Uid,
};

mod pending;
mod rekey;
mod steps;

pub use pending::{MISSED, PENDING_AFTER};
pub use steps::DRAIN;

/// When to look again though nothing is known to change.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Remembers since when this process has waited for what.
#[derive(Debug)]
pub struct AckTracker {
    /// How long a rotation waits for a node that is not ready.
    limit: Duration,
    since: RoleTimers,
    /// Since when no node sends with a generation that is retiring since then by the ring: an old ring that comes back
    /// may activate and retire it again unseen.
    drained_since: Option<(Uid, Timestamp, Instant)>,
    /// Since when the ring accepts plaintext, and a node does not.
    insisted: Option<Instant>,
    /// Since when which node is not Ready.
    unready: BTreeMap<Uid, Instant>,
    /// The pending nodes of the ring, and since when it names these; not known for those that a new process finds.
    pended: Option<(BTreeSet<Uid>, Option<Instant>)>,
    rekeyed: Option<Instant>,
    /// What was heard last of nodes, by UID.
    heard: BTreeMap<Uid, LastAck>,
}

/// What a node has said, and since when its acknowledgement is missing: it was deleted.
#[derive(Debug)]
struct LastAck {
    boot: Uid,
    /// The generations that its kernel goes on receiving with, whatever becomes of its acknowledgement.
    receives: BTreeSet<Uid>,
    missing: Option<Instant>,
}

impl AckTracker {
    /// `limit`: how long a rotation waits for a node that its kubelet says nothing good of. One that is Ready is
    /// waited for without end.
    #[must_use]
    pub const fn new(limit: Duration) -> Self {
        Self {
            limit,
            since: RoleTimers::new(),
            drained_since: None,
            insisted: None,
            unready: BTreeMap::new(),
            pended: None,
            rekeyed: None,
            heard: BTreeMap::new(),
        }
    }

    /// Notes what is there at `now`, and says what is true.
    pub fn observe(&mut self, snapshot: ClusterSnapshot<'_>, now: Instant) -> Evidence {
        let ClusterSnapshot { ring, nodes, acks, .. } = snapshot;
        self.since.observe(ring, now);
        let participants: Vec<Participant<'_>> = snapshot.participants().collect();
        self.note(&participants, ring, now);
        let phase = Phase::of(ring);
        let staged_acked = phase
            .staged()
            .map_or(Readiness::Ready, |staged| self.staged_acked(&participants, snapshot, staged, now));
        let drained = match phase {
            Phase::Draining { retiring, active } => {
                self.drained(&participants, snapshot, retiring, Some(active), now)
            }
            Phase::Stopping { retiring } => self.drained(&participants, snapshot, retiring, None, now),
            Phase::Empty
            | Phase::Off
            | Phase::Bootstrapping { .. }
            | Phase::Steady { .. }
            | Phase::Staged { .. }
            | Phase::Resuming { .. } => Readiness::Ready,
        };
        let pending = self.pending(&participants, snapshot, now);
        let can_enforce = phase.active().map_or(Readiness::Unknown, |active| {
            self.can_enforce(&participants, snapshot, active, &pending.nodes, now)
        });
        let rekey = self.rekey(&participants, ring, now);
        let many = rekey::too_many(&rekey, phase, participants.len());
        let newest = acks.values().filter(|ack| installed(ack, ring)).map(|ack| ack.newest);
        Evidence {
            staged_acked,
            drained,
            can_enforce,
            blocker: pending.blocker.or_else(|| reported(&participants)),
            none_enforcing: self.none_enforcing(&participants, snapshot, now),
            all_enforcing: !participants.is_empty()
                && participants.iter().all(|node| node.says(|ack| ack.enforcement == Enforcement::Enforcing)),
            pending: pending.nodes,
            rekey: if many.is_some() { BTreeMap::new() } else { rekey },
            requested: many.or_else(|| exhausted(&participants, phase)),
            newest: newest.filter(|id| *id <= LAST_ID).max().unwrap_or(0),
            senders: nodes.iter().filter_map(|node| Some((node.uid?, node.addr?))).collect(),
        }
    }

    /// Notes since when things are as they are.
    fn note(&mut self, participants: &[Participant<'_>], ring: Option<&Ring>, now: Instant) {
        let before = std::mem::take(&mut self.unready);
        let unready = participants.iter().filter(|it| !it.node.ready).filter_map(|it| it.node.uid);
        self.unready = unready.map(|uid| (uid, before.get(&uid).copied().unwrap_or(now))).collect();
        if !participants.is_empty() {
            let mut before = std::mem::take(&mut self.heard);
            let heard = |participant: &Participant<'_>| {
                let uid = participant.node.uid?;
                if let Some(ack) = participant.ack {
                    let receives = ack.receives.keys().copied().collect();
                    return Some((uid, LastAck { boot: ack.boot, receives, missing: None }));
                }
                let heard = before.remove(&uid)?;
                let same = participant.node.boot.is_none_or(|boot| boot == heard.boot);
                same.then(|| (uid, LastAck { missing: Some(heard.missing.unwrap_or(now)), ..heard }))
            };
            self.heard = participants.iter().filter_map(heard).collect();
        }
        let pending = ring.map_or_else(BTreeSet::new, |ring| ring.pending.clone());
        self.pended = Some(match self.pended.take() {
            Some((before, since)) if before == pending => (before, since),
            before => (pending, before.map(|_| now)),
        });
    }

    /// The incarnations that [`Self::observe`] asked for were written.
    pub fn rekeyed(&mut self, now: Instant) {
        self.rekeyed = Some(now);
    }
}

/// The first thing that a node itself says speaks against enforcing.
fn reported(participants: &[Participant<'_>]) -> Option<Blocker> {
    participants.iter().find_map(|participant| {
        let sentence = participant.ack?.obstacles.first()?;
        Some(Blocker::reported(&participant.node.name, sentence))
    })
}

/// Why the generation in use is to be replaced before its time, where a node says so.
fn exhausted(participants: &[Participant<'_>], phase: Phase<'_>) -> Option<String> {
    let active = phase.active()?;
    let node = participants.iter().find(|node| node.says(|ack| ack.spent.contains(&active.uid)))?;
    let name = &node.node.name;
    Some(format!(
        "node {name} says that the generation in use has reached its limits, or that two senders have one SPI"
    ))
}

#[cfg(test)]
mod tests;
