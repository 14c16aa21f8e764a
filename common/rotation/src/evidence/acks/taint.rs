//! Which nodes lose the start-up taint: `docs/rotation.md`, section 10.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use secureoverlay_keyring::{
    acknowledgement::{Acknowledgement, NodeHash},
    keyring::{Enforcement, KeyRing},
    uid::Uid,
};

use super::{
    AckTracker,
    participant::{CountingPeers, Participant},
    view,
};
use crate::{ClusterSnapshot, Phase, Step};

impl AckTracker {
    /// The names of the nodes that pods may come to: all their pairs are proven, and they enforce where the ring does.
    /// Excluded nodes may always have some.
    #[must_use]
    pub fn encrypting(&self, snapshot: ClusterSnapshot<'_>, now: Instant) -> BTreeSet<String> {
        let view = view(&self.records, snapshot, None, self.limit, now);
        let name = |node: &Participant<'_>| node.name().to_owned();
        let mut names: BTreeSet<String> = view.iter().filter(|node| node.node.excluded).map(name).collect();
        if let (Some(ring), Some(active)) = (snapshot.ring, Phase::of(snapshot.ring).active()) {
            names.extend(encrypting(&view, ring, &active.uid).map(name));
        }
        names
    }
}

fn encrypting<'p, 'v: 'p>(
    view: &'p [Participant<'v>],
    ring: &'p KeyRing,
    active: &'p Uid,
) -> impl Iterator<Item = &'p Participant<'v>> {
    let at_fault = at_fault(view, active);
    let healthy = |peer: &&Participant<'_>| {
        let works = peer.ack.is_some() && !peer.pod_missing && peer.counts_as_peer(Step::Enforce);
        works && !at_fault.contains(&NodeHash::of(peer.name()))
    };
    let peers = CountingPeers::new(view.iter().filter(healthy));
    let ready = move |ack: &Acknowledgement| {
        let enforces = ack.enforcement == Enforcement::Enforcing;
        ack.receivable.contains(active)
            && peers.unproven(ack, active) == 0
            && (enforces || ring.enforcement != Enforcement::Enforcing)
            && !ack.tunnel_mtu_too_large
    };
    view.iter().filter(move |node| node.says(&ready))
}

/// Peers that more than half of the nodes have not proven: they are at fault themselves.
fn at_fault(view: &[Participant<'_>], active: &Uid) -> BTreeSet<NodeHash> {
    let expected: Vec<_> = view.iter().filter(|node| node.is_expected()).collect();
    let mut listed: BTreeMap<NodeHash, usize> = BTreeMap::new();
    for pairs in expected.iter().filter_map(|node| node.ack?.unproven(active)) {
        for hash in pairs.hashes.set() {
            *listed.entry(*hash).or_default() += 1;
        }
    }
    listed.into_iter().filter(|(_, count)| count * 2 > expected.len()).map(|(hash, _)| hash).collect()
}
