//! Whether the nodes have done what each step of a rotation needs.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use super::{
    super::{
        Readiness,
        snapshot::{ClusterSnapshot, Participant, names},
    },
    AckTracker, LOOK_AGAIN,
};
use crate::{
    acknowledgement::Acknowledgement,
    node::NodeFacts,
    ring::{Enforcement, Generation, Ring},
    uid::Uid,
};

/// After the last node has said that it no longer sends with a generation, packets of it may still be under way.
pub const DRAIN: Duration = Duration::from_secs(5);
/// An operator who goes on without nodes still gives them this long.
pub(super) const FORCED: Duration = Duration::from_secs(30);

impl AckTracker {
    pub(super) fn staged_acked(
        &self,
        participants: &[Participant<'_>],
        snapshot: ClusterSnapshot<'_>,
        staged: &Generation,
        now: Instant,
    ) -> Readiness {
        let receives = |node: &Participant<'_>| {
            node.says(|ack| ack.receives.get(&staged.uid) == Some(&staged.incarnations))
        };
        let first = snapshot.ring.and_then(Ring::active).is_none();
        let tried = |ack: &Acknowledgement| ack.unreachable.is_some();
        let probed = |node: &Participant<'_>| !(first && snapshot.probing) || node.ack.is_none_or(tried);
        let waited = self.since.waited(staged, now);
        let readiness = self.all(participants, snapshot.forced, (waited, now), |node| {
            (node.pending || receives(node)) && probed(node)
        });
        // A first generation that hardly any node has encrypts nothing.
        let enough = participants.len().min(2);
        let received = participants.iter().filter(|node| receives(node)).count();
        if first && readiness == Readiness::Ready && received < enough {
            let without = participants.iter().filter(|node| !receives(node));
            return Readiness::Waiting { nodes: names(without), look_in: LOOK_AGAIN };
        }
        readiness
    }

    /// `active`: what the nodes are to send with instead; `None` where no node is to send at all.
    pub(super) fn drained(
        &mut self,
        participants: &[Participant<'_>],
        snapshot: ClusterSnapshot<'_>,
        old: &Generation,
        active: Option<&Generation>,
        now: Instant,
    ) -> Readiness {
        let waited = self.since.waited(old, now);
        // What it said may have been lost while it goes on sending: so it is not left out at once.
        let revision = snapshot.ring.map_or(0, |ring| ring.revision);
        let left_behind = |node: &Participant<'_>| node.is_mute() && waited >= self.limit;
        if snapshot.all_excluded() {
            return self.after_drain(old, Readiness::Ready, now);
        }
        let switched = self.all(participants, snapshot.forced, (waited, now), |node| {
            // "Silent" names no generation: said under another ring, it says nothing of this one.
            let stopped = |ack: &Acknowledgement| {
                ack.silent && ack.revision == revision && (active.is_none() || node.pending)
            };
            let follows = |ack: &Acknowledgement| active.is_some_and(|active| ack.sends == Some(active.uid));
            left_behind(node) || node.says(|ack| stopped(ack) || follows(ack))
        });
        self.after_drain(old, switched, now)
    }

    /// Packets may be under way for a while after every node has `switched`.
    fn after_drain(&mut self, old: &Generation, switched: Readiness, now: Instant) -> Readiness {
        if switched != Readiness::Ready {
            self.drained_since = None;
            return switched;
        }
        let since = match self.drained_since {
            Some((uid, retiring, since)) if (uid, retiring) == (old.uid, old.role_since) => since,
            _ => now,
        };
        self.drained_since = Some((old.uid, old.role_since, since));
        let left = DRAIN.saturating_sub(now.saturating_duration_since(since));
        if left.is_zero() { Readiness::Ready } else { Readiness::After(left) }
    }

    pub(super) fn can_enforce(
        &self,
        participants: &[Participant<'_>],
        snapshot: ClusterSnapshot<'_>,
        active: &Generation,
        pending: &BTreeSet<Uid>,
        now: Instant,
    ) -> Readiness {
        // Under an older ring it may send in the clear to nodes that were pending then.
        let revision = snapshot.ring.map_or(0, |ring| ring.revision);
        let is_pending =
            |node: &Participant<'_>| node.pending || node.node.uid.is_some_and(|uid| pending.contains(&uid));
        // It is not urgent: a node is left behind only when it has been away for the whole limit, whatever it said.
        let gone = |node: &Participant<'_>| {
            let since = node.node.uid.and_then(|uid| self.unready.get(&uid));
            since.is_some_and(|since| now.saturating_duration_since(*since) >= self.limit)
        };
        let readiness = self.all(participants, false, (Duration::ZERO, now), |node| {
            let encrypts = |ack: &Acknowledgement| {
                let reaches = ack.unreachable.as_ref().map_or(!snapshot.probing, BTreeSet::is_empty);
                ack.uses(active) && ack.encrypts && reaches && ack.revision == revision
            };
            gone(node) || (!is_pending(node) && node.says(encrypts))
        });
        // What a node itself has found does not get better by waiting.
        let blocked = names(participants.iter().filter(|node| node.says(|ack| !ack.obstacles.is_empty())));
        match readiness {
            readiness if blocked.is_empty() => readiness,
            Readiness::Waiting { nodes, look_in } => Readiness::Waiting { nodes: &nodes | &blocked, look_in },
            Readiness::Ready | Readiness::After(_) | Readiness::Unknown => {
                Readiness::Waiting { nodes: blocked, look_in: LOOK_AGAIN }
            }
        }
    }

    pub(super) fn none_enforcing(
        &mut self,
        participants: &[Participant<'_>],
        snapshot: ClusterSnapshot<'_>,
        now: Instant,
    ) -> Readiness {
        if snapshot.all_excluded() {
            return Readiness::Ready;
        }
        // Said under an older ring, it may have enforced since.
        let revision = snapshot.ring.map_or(0, |ring| ring.revision);
        let accepts = |node: &Participant<'_>| {
            let accepting =
                |ack: &Acknowledgement| ack.enforcement != Enforcement::Enforcing && ack.revision == revision;
            node.is_mute() || node.says(accepting)
        };
        let permissive = snapshot.ring.is_some_and(|ring| ring.enforcement == Enforcement::Permissive);
        let awaited = permissive && !participants.iter().all(accepts);
        self.insisted = awaited.then(|| self.insisted.unwrap_or(now));
        let waited = self.insisted.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        self.all(participants, snapshot.forced, (waited, now), accepts)
    }

    /// Whether every node says so, those aside that are left behind; `waited`: for how long that has been asked.
    fn all(
        &self,
        participants: &[Participant<'_>],
        forced: bool,
        (waited, now): (Duration, Instant),
        says: impl Fn(&Participant<'_>) -> bool,
    ) -> Readiness {
        if participants.is_empty() {
            // No cluster is empty: this is a list that went wrong, or they are all excluded.
            return Readiness::After(LOOK_AGAIN);
        }
        // A node that was there until now has not been away for as long as it is awaited.
        let away = |node: &NodeFacts| {
            let since = node.uid.and_then(|uid| self.unready.get(&uid));
            since.map_or(waited, |since| waited.min(now.saturating_duration_since(*since)))
        };
        let patience = |node: &NodeFacts| match (forced, node.ready) {
            (true, _) => Some(FORCED.min(self.limit).saturating_sub(waited)),
            (false, false) => Some(self.limit.saturating_sub(away(node))),
            (false, true) => None,
        };
        let mut look_in = LOOK_AGAIN;
        let mut nodes = BTreeSet::new();
        for Participant { node, .. } in participants.iter().filter(|participant| !says(participant)) {
            let left = patience(node);
            if left != Some(Duration::ZERO) {
                nodes.insert(node.name.clone());
                look_in = look_in.min(left.unwrap_or(LOOK_AGAIN));
            }
        }
        if nodes.is_empty() { Readiness::Ready } else { Readiness::Waiting { nodes, look_in } }
    }
}
