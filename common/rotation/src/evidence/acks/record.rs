//! What is remembered of a node from one look to the next.

use std::time::{Duration, Instant};

use secureoverlay_keyring::{
    peer::{EncryptionPeerSpec, Sender},
    uid::Uid,
};

use super::super::snapshot::{ClusterSnapshot, NodeFacts};
use crate::GRACE;

/// What is remembered of a node.
#[derive(Debug, Default)]
pub(super) struct NodeRecord {
    node_uid: Option<Uid>,
    /// Since when it is not Ready, or excluded, without interruption.
    pub(super) away_since: Option<Instant>,
    /// Since when its acknowledgement does not count.
    pub(super) silent_since: Option<Instant>,
    /// Since when no agent's Pod is Ready there.
    pub(super) pod_unready_since: Option<Instant>,
    /// It had a NodeEncryption, which is gone.
    pub(super) ack_deleted: bool,
    had_ack: bool,
    /// Since when there is no Node of this name.
    pub(super) node_gone_since: Option<Instant>,
    pub(super) peer: Option<PeerRecord>,
}

/// What a node announced last.
#[derive(Debug, Default)]
pub(super) struct PeerRecord {
    /// What could be read last.
    pub(super) spec: Option<EncryptionPeerSpec>,
    /// When each of its entries was seen first; `None` for what was there before this process.
    first_seen: Vec<(Sender, Option<Instant>)>,
    /// Since when the object is gone.
    pub(super) gone_since: Option<Instant>,
}

impl NodeRecord {
    pub(super) fn spec(&self) -> Option<&EncryptionPeerSpec> {
        self.peer.as_ref()?.spec.as_ref()
    }

    /// `first`: this is in the first lists that the process sees.
    pub(super) fn note(
        &mut self,
        node: &NodeFacts,
        snapshot: ClusterSnapshot<'_>,
        first: bool,
        now: Instant,
    ) {
        self.node_gone_since = None;
        if self.node_uid != node.uid {
            (self.node_uid, self.away_since, self.silent_since) = (node.uid, None, None);
            (self.had_ack, self.ack_deleted) = (false, false);
        }
        keep_since(&mut self.away_since, !node.ready || node.excluded, now);
        keep_since(&mut self.pod_unready_since, !snapshot.ready_pods.contains(&node.name), now);
        let has_ack = snapshot.acks.contains_key(&node.name);
        self.ack_deleted = self.had_ack && !has_ack;
        self.had_ack |= has_ack;
        self.note_peer(&node.name, snapshot, first, now);
        let counts = self.counts(node, snapshot);
        keep_since(&mut self.silent_since, !counts, now);
    }

    /// Whether this is kept though there is no Node of this name: while that `announces`, and for the grace.
    pub(super) fn outlasts_its_node(&mut self, announces: bool, now: Instant) -> bool {
        let since = *self.node_gone_since.get_or_insert(now);
        announces || now.saturating_duration_since(since) < GRACE
    }

    /// Whether the node's acknowledgement counts.
    pub(super) fn counts(&self, node: &NodeFacts, snapshot: ClusterSnapshot<'_>) -> bool {
        let newest = self.spec().and_then(|spec| spec.senders.first()).map(|sender| sender.instance);
        let ack = snapshot.acks.get(&node.name).and_then(|object| object.content.as_ref());
        ack.is_some_and(|ack| {
            super::is_current(ack.ack_id, snapshot.ring)
                && Some(ack.node_uid) == node.uid
                && Some(ack.instance) == newest
        })
    }

    fn note_peer(&mut self, name: &str, snapshot: ClusterSnapshot<'_>, first: bool, now: Instant) {
        let Some(object) = snapshot.peers.get(name) else {
            if let Some(peer) = &mut self.peer {
                peer.gone_since.get_or_insert(now);
            }
            return;
        };
        let peer = self.peer.get_or_insert_default();
        peer.gone_since = None;
        let Some(spec) = &object.content else { return };
        if peer.spec.as_ref() == Some(spec) {
            return;
        }
        let seen = |sender: &Sender| {
            let before = peer.first_seen.iter().find(|(other, _)| other == sender);
            (*sender, before.map_or((!first).then_some(now), |(_, at)| *at))
        };
        let first_seen = spec.senders.iter().map(seen).collect();
        (peer.first_seen, peer.spec) = (first_seen, Some(spec.clone()));
    }
}

impl PeerRecord {
    /// Whether every entry was seen for the first time after `time`.
    pub(super) fn is_newer_than(&self, time: Instant) -> bool {
        !self.first_seen.is_empty() && self.first_seen.iter().all(|(_, at)| at.is_some_and(|at| at > time))
    }
}

fn keep_since(since: &mut Option<Instant>, holds: bool, now: Instant) {
    *since = holds.then(|| since.unwrap_or(now));
}

/// For how long.
pub(super) fn elapsed(since: Option<Instant>, now: Instant) -> Duration {
    since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
}
