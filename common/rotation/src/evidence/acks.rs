//! Evidence from what the nodes themselves acknowledge.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use secureoverlay_keyring::{
    address::NodeAddress,
    keyring::{Enforcement, KeyRing},
    peer::{EncryptionPeerSpec, Instance},
    uid::Uid,
};

use super::{
    AckIdState, Evidence, NodeCounts, RoleTimers,
    snapshot::{ClusterSnapshot, NodeFacts},
};
use crate::{Exclusions, Phase, RotationMemory, Step, exclusions, step_wait};

mod claims;
mod participant;
mod record;
pub mod report;
mod steps;
mod taint;

use claims::ClaimLimiter;
use participant::Participant;
use record::NodeRecord;

/// Between two renewals because acknowledgements were deleted.
const RENEW_DELETED: Duration = Duration::from_secs(600);

/// Remembers what nodes announced, and since when this process has waited for what.
#[derive(Debug)]
pub struct AckTracker {
    /// How long a rotation waits for a node that is not Ready.
    limit: Duration,
    since: RoleTimers,
    records: BTreeMap<String, NodeRecord>,
    /// What the first lists hold was there before.
    listed: bool,
    /// Since when no node sends with a generation that is to be removed, under the step that ends its use.
    drained_since: Option<((Uid, Step), Instant)>,
    /// Since when nodes are missing for a step.
    missing_since: BTreeMap<Step, (Uid, Instant)>,
    claims: ClaimLimiter,
    /// When acknowledgements were last renewed because one was deleted.
    renewed_deleted: Option<Instant>,
}

impl AckTracker {
    /// `limit`: how long a rotation waits for a node that is not Ready. One that is Ready is waited for without end.
    #[must_use]
    pub fn new(limit: Duration) -> Self {
        Self {
            limit,
            since: RoleTimers::new(),
            records: BTreeMap::new(),
            listed: false,
            drained_since: None,
            missing_since: BTreeMap::new(),
            claims: ClaimLimiter::default(),
            renewed_deleted: None,
        }
    }

    /// The ring is gone or can't be read: whatever nodes were given time for starts again.
    pub fn forget_ring(&mut self) {
        self.since = RoleTimers::new();
        self.drained_since = None;
        self.missing_since.clear();
    }

    /// Notes what is there at `now`, and says what is true. `minimum`: the least time between two rotations.
    pub fn observe(
        &mut self,
        snapshot: ClusterSnapshot<'_>,
        memory: &RotationMemory,
        minimum: Duration,
        (now, wall): (Instant, Timestamp),
    ) -> Evidence {
        let ring = snapshot.ring;
        self.since.observe(ring, now);
        self.note(snapshot, now);
        let records = std::mem::take(&mut self.records);
        let view = view(&records, snapshot, memory.drawn(), self.limit, now);
        let phase = Phase::of(ring);
        let ack_id = memory.ack_id(now);
        let step_wait = {
            let waited = match ack_id {
                AckIdState::Own { age } => age,
                AckIdState::Foreign { .. } | AckIdState::Unused => self.since.phase(phase, now),
            };
            step_wait(snapshot.nodes.len()).saturating_sub(waited)
        };
        let blockers = steps::blockers(&view, phase);
        let counting = || view.iter().filter_map(|node| node.ack);
        let enforce = counting().filter(|ack| ack.enforcement == Enforcement::Enforcing).count();
        let enforcing = ring.is_some_and(|ring| ring.enforcement == Enforcement::Enforcing);
        let evidence = Evidence {
            staged_acked: self.staged_acked(&view, phase, now),
            drained: self.drained(&view, phase, now),
            can_enforce: self.can_enforce(&view, phase, (enforcing, &blockers), now),
            blockers: steps::shortened(blockers),
            none_enforcing: self.none_enforcing(&view, phase, enforcing, now),
            most_enforcing: enforce * 2 > counting().count(),
            any_counts: counting().next().is_some(),
            any_receivable: view.iter().any(|node| node.said.is_some_and(|ack| !ack.receivable.is_empty())),
            claim: self.claims.claim(&view, ring, minimum, (now, wall)),
            exhausted: exhausted(&view, phase),
            believed_id: claims::believed_id(&view, wall),
            ack_id,
            ack_deleted: self.ack_deleted(&view, now),
            step_wait,
            limit: Some(self.limit.saturating_sub(self.since.phase(phase, now))),
            nodes: snapshot.nodes.len(),
            senders: senders(&records, snapshot),
        };
        self.records = records;
        evidence
    }

    /// Nodes that take no part, as the ring is to name them.
    #[must_use]
    pub fn exclusions(&self, snapshot: ClusterSnapshot<'_>) -> Exclusions {
        let here = |(name, record): &(&String, &NodeRecord)| {
            record.node_gone_since.is_none() || snapshot.peers.contains_key(*name)
        };
        let kept = self.records.iter().filter(here);
        let kept = kept.filter_map(|(name, record)| Some((name.as_str(), record.spec()?)));
        let others = snapshot.peers.iter().filter(|(name, _)| !self.records.contains_key(*name));
        let others = others.filter_map(|(name, peer)| Some((name.as_str(), peer.content.as_ref()?)));
        exclusions(snapshot.nodes, kept.chain(others))
    }

    /// Counts the nodes.
    #[must_use]
    pub fn counts(&self, snapshot: ClusterSnapshot<'_>, now: Instant) -> NodeCounts {
        let view = view(&self.records, snapshot, None, self.limit, now);
        let count = |which: &dyn Fn(&Participant<'_>) -> bool| view.iter().filter(|node| which(node)).count();
        NodeCounts {
            expected: count(&|node| node.is_expected()),
            acknowledged: count(&|node| node.is_expected() && node.ack.is_some()),
            announcing: count(&|node| node.announces),
        }
    }

    /// A new ring was written because of `evidence`.
    pub fn handle_claim_answered(&mut self, evidence: &Evidence, now: Instant) {
        if let Some(claim) = &evidence.claim {
            self.claims.answered(claim, now);
        }
    }

    /// Acknowledgements were renewed because of `evidence`.
    pub fn handle_renewed(&mut self, evidence: &Evidence, now: Instant) {
        if evidence.ack_deleted.is_some() {
            self.renewed_deleted = Some(now);
        }
    }

    /// Notes since when things are as they are.
    fn note(&mut self, snapshot: ClusterSnapshot<'_>, now: Instant) {
        if snapshot.nodes.is_empty() {
            // No cluster is empty: this is a list that went wrong.
            return;
        }
        let first = !std::mem::replace(&mut self.listed, true);
        let mut before = std::mem::take(&mut self.records);
        for node in snapshot.nodes {
            let mut record = before.remove(&node.name).unwrap_or_default();
            record.note(node, snapshot, first, now);
            self.records.insert(node.name.clone(), record);
        }
        // A Node that is missing in one list and is back in the next has not joined.
        before.retain(|name, record| record.outlasts_its_node(snapshot.peers.contains_key(name), now));
        self.records.append(&mut before);
    }

    fn ack_deleted(&self, view: &[Participant<'_>], now: Instant) -> Option<String> {
        let recent = |at: Instant| now.saturating_duration_since(at) < RENEW_DELETED;
        if self.renewed_deleted.is_some_and(recent) {
            return None;
        }
        view.iter().find(|node| node.record.ack_deleted && node.pod_ready).map(|node| node.name().to_owned())
    }

    /// What [`Readiness::Waiting`](super::Readiness::Waiting) says of a step: since when nodes are missing for it.
    fn missing(&mut self, step: Step, generation: Uid, now: Instant) -> Duration {
        let since = match self.missing_since.get(&step) {
            Some((uid, since)) if *uid == generation => *since,
            _ => now,
        };
        self.missing_since.insert(step, (generation, since));
        now.saturating_duration_since(since)
    }
}

fn view<'v>(
    records: &'v BTreeMap<String, NodeRecord>,
    snapshot: ClusterSnapshot<'v>,
    drawn: Option<Instant>,
    limit: Duration,
    now: Instant,
) -> Vec<Participant<'v>> {
    let participant = |node: &'v NodeFacts| {
        let record = records.get(&node.name)?;
        Some(Participant::new(node, record, snapshot, drawn, limit, now))
    };
    snapshot.nodes.iter().filter_map(participant).collect()
}

/// All senders that are announced, those of the oldest objects first.
fn senders(
    records: &BTreeMap<String, NodeRecord>,
    snapshot: ClusterSnapshot<'_>,
) -> Vec<(Instance, NodeAddress)> {
    let mut peers: Vec<_> = snapshot.peers.iter().collect();
    peers.sort_by_key(|(_, peer)| (peer.created.unwrap_or(Timestamp::MAX), peer.uid));
    let known = |name: &String, spec: Option<&EncryptionPeerSpec>| {
        let spec = records.get(name).and_then(NodeRecord::spec).or(spec);
        spec.map(|spec| spec.senders.clone()).unwrap_or_default()
    };
    let all = peers.into_iter().flat_map(|(name, peer)| known(name, peer.content.as_ref()));
    all.map(|sender| (sender.instance, sender.address)).collect()
}

/// A node on which an SA of the active generation has reached a limit.
fn exhausted(view: &[Participant<'_>], phase: Phase<'_>) -> Option<String> {
    let active = phase.active()?;
    let node = view.iter().find(|node| node.says(|ack| ack.exhausted_generations.contains(&active.uid)))?;
    Some(node.name().to_owned())
}

/// Whether an acknowledgement of this ring has `ack_id`.
fn is_current(ack_id: Uid, ring: Option<&KeyRing>) -> bool {
    ring.is_some_and(|ring| ring.ack_id == ack_id)
}

#[cfg(test)]
mod tests;
