//! A node, and what it counts for: the tables of `docs/rotation.md`, section 3.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use secureoverlay_keyring::{
    acknowledgement::{Acknowledgement, NodeHash},
    uid::Uid,
};

use super::{
    super::snapshot::{ClusterSnapshot, NodeFacts},
    record::{NodeRecord, elapsed},
};
use crate::{GRACE, LOOK_AGAIN, Step};

/// What is announced for the first time so long after the `ackId` was written has joined since.
const JOINED_AFTER: Duration = Duration::from_secs(60);
/// A Pod that is not Ready for so long is a sign that its agent is at fault.
const POD_UNREADY: Duration = Duration::from_secs(60);

/// A node at one moment.
pub(super) struct Participant<'v> {
    pub(super) node: &'v NodeFacts,
    pub(super) record: &'v NodeRecord,
    /// What it acknowledged last, under whatever `ackId`.
    pub(super) said: Option<&'v Acknowledgement>,
    /// Its acknowledgement, where it counts.
    pub(super) ack: Option<&'v Acknowledgement>,
    /// There is an EncryptionPeer of its name, or was one lately.
    pub(super) announces: bool,
    /// It announces nothing of what was there when the `ackId` was drawn.
    pub(super) joined: bool,
    /// Not Ready, or excluded, for the limit.
    pub(super) left_behind: bool,
    /// Its acknowledgement has not counted for the limit.
    pub(super) silent: bool,
    pub(super) pod_ready: bool,
    /// No Pod was Ready there for a while.
    pub(super) pod_missing: bool,
    /// How long until it is left behind, or silent for the limit.
    left: Duration,
}

impl<'v> Participant<'v> {
    /// `drawn`: when the ring's `ackId` was, where that is known.
    pub(super) fn new(
        node: &'v NodeFacts,
        record: &'v NodeRecord,
        snapshot: ClusterSnapshot<'v>,
        drawn: Option<Instant>,
        limit: Duration,
        now: Instant,
    ) -> Self {
        let said = snapshot.acks.get(&node.name).and_then(|object| object.content.as_ref());
        let here = |since: Instant| now.saturating_duration_since(since) < GRACE;
        let peer = record.peer.as_ref();
        let away = elapsed(record.away_since, now);
        let silent = elapsed(record.silent_since, now);
        let newer =
            |(peer, drawn): (&super::record::PeerRecord, Instant)| peer.is_newer_than(drawn + JOINED_AFTER);
        Self {
            node,
            record,
            said: said.filter(|ack| Some(ack.node_uid) == node.uid),
            ack: said.filter(|_| record.counts(node, snapshot)),
            announces: peer.is_some_and(|peer| peer.gone_since.is_none_or(here)),
            joined: peer.zip(drawn).is_some_and(newer),
            left_behind: record.away_since.is_some() && away >= limit,
            silent: record.silent_since.is_some() && silent >= limit,
            pod_ready: snapshot.ready_pods.contains(&node.name),
            pod_missing: elapsed(record.pod_unready_since, now) >= POD_UNREADY,
            left: limit.saturating_sub(if node.ready && !node.excluded { silent } else { away }),
        }
    }

    pub(super) fn name(&self) -> &'v str {
        &self.node.name
    }

    /// Ready, included and announcing.
    pub(super) fn is_expected(&self) -> bool {
        self.node.ready && !self.node.excluded && self.announces
    }

    pub(super) fn says(&self, what: impl Fn(&Acknowledgement) -> bool) -> bool {
        self.ack.is_some_and(what)
    }

    /// Whether the step waits for this node.
    pub(super) fn is_awaited(&self, step: Step) -> bool {
        let away = !self.node.ready || self.node.excluded;
        match step {
            Step::Receive => self.is_expected() && !self.joined,
            Step::Switch => self.announces && !self.left_behind && !self.joined,
            Step::Enforce if away => self.announces && !self.node.excluded && !self.left_behind,
            // One that does not announce blocks.
            Step::Enforce => true,
            Step::AcceptPlaintext | Step::StopSending if away => self.announces && !self.left_behind,
            Step::AcceptPlaintext | Step::StopSending => self.announces && !self.silent,
        }
    }

    /// Whether pairs toward this node count for the step.
    pub(super) fn counts_as_peer(&self, step: Step) -> bool {
        match step {
            Step::Receive => self.is_expected() && !self.joined,
            Step::Switch | Step::Enforce | Step::AcceptPlaintext | Step::StopSending => !self.left_behind,
        }
    }

    /// When the step may go on without it, or should be looked at again.
    pub(super) fn look_in(&self, step: Step) -> Duration {
        let may_leave = match step {
            Step::Receive => false,
            Step::Switch | Step::Enforce => !self.node.ready || self.node.excluded,
            Step::AcceptPlaintext | Step::StopSending => true,
        };
        if may_leave { self.left.min(LOOK_AGAIN) } else { LOOK_AGAIN }
    }
}

/// Peers that pairs count toward.
pub(super) struct CountingPeers(BTreeSet<NodeHash>);

impl CountingPeers {
    pub(super) fn new<'p, 'v: 'p>(peers: impl Iterator<Item = &'p Participant<'v>>) -> Self {
        Self(peers.map(|peer| NodeHash::of(peer.name())).collect())
    }

    /// How many pairs of `generation` are not proven toward peers that count. Pairs without a hash count always.
    pub(super) fn unproven(&self, ack: &Acknowledgement, generation: &Uid) -> u32 {
        ack.unproven(generation).map_or(0, |pairs| {
            let excused = pairs.hashes.set().difference(&self.0).count();
            pairs.count.saturating_sub(u32::try_from(excused).unwrap_or(u32::MAX))
        })
    }
}
