//! What the nodes do, for operators: `ClusterEncryption.status.nodes`. No decision rests on it.

use std::{collections::BTreeSet, time::Instant};

use secureoverlay_keyring::{
    acknowledgement::Acknowledgement, cluster_encryption::NodeSummary, keyring::Enforcement,
};

use super::{
    AckTracker,
    participant::{CountingPeers, Participant},
    view,
};
use crate::{ClusterSnapshot, Phase, Step};

/// What the nodes do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeReport {
    /// How many there are.
    pub counts: NodeSummary,
    /// Ready nodes that take part.
    pub participants: u32,
    /// Those of them of which it is not known what they do: they report nothing, or nothing of this boot.
    pub silent: BTreeSet<String>,
    /// Those that do not encrypt to every other one, as far as is known.
    pub not_encrypting: BTreeSet<String>,
    /// Those that do not refuse plaintext, as far as is known.
    pub not_enforcing: BTreeSet<String>,
    /// Those that have not proven every pair with the active generation.
    pub unproven: BTreeSet<String>,
    /// Those with a blocker.
    pub blocked: BTreeSet<String>,
}

impl AckTracker {
    /// What the nodes said last, under whatever `ackId`: a rotation that has just begun makes nothing less encrypted.
    #[must_use]
    pub fn report(&self, snapshot: ClusterSnapshot<'_>, now: Instant) -> NodeReport {
        let view = view(&self.records, snapshot, None, self.limit, now);
        let peers = CountingPeers::new(view.iter().filter(|node| node.counts_as_peer(Step::Enforce)));
        let phase = Phase::of(snapshot.ring);
        let mut report = NodeReport::default();
        report.counts.total = number(view.len());
        for node in &view {
            let named = |names: &mut BTreeSet<String>, add: bool| {
                if add {
                    names.insert(node.name().to_owned());
                }
            };
            let said = said(node);
            let counts = &mut report.counts;
            counts.mtu_too_large += u32::from(said.is_some_and(|ack| ack.tunnel_mtu_too_large));
            counts.bypass += u32::from(said.is_some_and(bypasses));
            counts.excluded += u32::from(node.node.excluded);
            if !node.node.ready || node.node.excluded {
                continue;
            }
            report.participants += 1;
            counts.stale += u32::from(node.pod_missing && node.node.linux);
            let encrypts = said.is_some_and(|ack| !node.pod_missing && encrypts(ack, phase, &peers));
            let enforces = said.is_some_and(|ack| ack.enforcement == Enforcement::Enforcing);
            let unproven = phase.active().is_some_and(|active| {
                said.is_some_and(|ack| {
                    peers.unproven(ack, &active.uid) > 0 || !ack.receivable.contains(&active.uid)
                })
            });
            counts.encrypting += u32::from(encrypts);
            counts.enforcing += u32::from(enforces);
            counts.plaintext += u32::from(!encrypts && !enforces);
            counts.unproven += u32::from(unproven);
            named(&mut report.silent, said.is_none());
            named(&mut report.not_encrypting, !encrypts);
            named(&mut report.not_enforcing, !enforces);
            named(&mut report.unproven, unproven);
            named(&mut report.blocked, said.is_some_and(|ack| !ack.enforcement_blockers.is_empty()));
        }
        report
    }
}

/// What a node acknowledged last, where it is of the instance that the node announces.
fn said<'v>(node: &Participant<'v>) -> Option<&'v Acknowledgement> {
    let newest = node.record.spec().and_then(|spec| spec.senders.first()).map(|sender| sender.instance);
    node.said.filter(|ack| node.announces && Some(ack.instance) == newest)
}

fn bypasses(ack: &Acknowledgement) -> bool {
    ack.enforcement_blockers.iter().any(|blocker| blocker.reason == "PlaintextBypass")
}

/// Whether every pair of the node is encrypted, by the active generation or by the one that it replaces.
fn encrypts(ack: &Acknowledgement, phase: Phase<'_>, peers: &CountingPeers) -> bool {
    let Some(active) = phase.active() else { return false };
    let retiring = phase.retiring().and_then(|retiring| ack.unproven(&retiring.uid));
    let still = retiring.map_or(0, |pairs| pairs.count);
    ack.all_pairs_proven
        || (ack.receivable.contains(&active.uid) && peers.unproven(ack, &active.uid) <= still)
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use secureoverlay_keyring::{acknowledgement::EnforcementBlocker, keyring::Role};

    use super::*;
    use crate::testing::{Cluster, uid};

    fn report(cluster: &mut Cluster, after: Duration) -> NodeReport {
        cluster.after(after);
        cluster.tracker.report(cluster.snapshot(), cluster.now)
    }

    #[test]
    fn nodes_count_by_what_they_do() {
        let mut cluster = Cluster::new(6, Enforcement::Enforcing, &[Role::Active], true);
        cluster.node(2).ready = false;
        cluster.node(3).excluded = true;
        cluster.peers.remove("n4");
        cluster.acks.remove("n4");
        let active = uid(1);
        cluster.acknowledge(5, |ack| {
            ack.enforcement = Enforcement::Permissive;
            ack.all_pairs_proven = false;
            ack.unproven_pairs = vec![Cluster::unproven(active, &[6])];
            let reason = "PlaintextBypass".to_owned();
            ack.enforcement_blockers = [EnforcementBlocker { reason, detail: String::new() }].into();
        });
        let found = report(&mut cluster, Duration::ZERO);
        let counts = NodeSummary {
            total: 6,
            encrypting: 2,
            enforcing: 2,
            plaintext: 2,
            excluded: 1,
            stale: 0,
            unproven: 1,
            mtu_too_large: 0,
            bypass: 1,
        };
        assert_eq!((found.counts, found.participants), (counts, 4));
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        assert_eq!((found.silent, found.unproven), (names(&["n4"]), names(&["n5"])));
        assert_eq!((found.not_encrypting, found.blocked), (names(&["n4", "n5"]), names(&["n5"])));
    }

    #[test]
    fn new_step_makes_nothing_less_encrypted_and_a_missing_agent_does() {
        let mut cluster = Cluster::new(2, Enforcement::Permissive, &[Role::Active], true);
        assert_eq!(report(&mut cluster, Duration::ZERO).counts.encrypting, 2);
        cluster.ring = crate::testing::ring(Enforcement::Permissive, &[Role::Retiring, Role::Active]);
        cluster.ring.ack_id = uid(81);
        assert_eq!(report(&mut cluster, Duration::ZERO).counts.encrypting, 2, "not acknowledged yet");
        cluster.acknowledge(1, |ack| {
            (ack.active_generation, ack.all_pairs_proven) = (None, false);
            ack.unproven_pairs = vec![Cluster::unproven(uid(1), &[2]), Cluster::unproven(uid(2), &[2])];
        });
        let found = report(&mut cluster, Duration::ZERO);
        assert_eq!((found.counts.encrypting, found.counts.unproven), (2, 2), "by the old one");
        cluster.acknowledge(1, |ack| {
            (ack.active_generation, ack.all_pairs_proven) = (None, false);
            ack.unproven_pairs = vec![Cluster::unproven(uid(2), &[2])];
        });
        assert_eq!(report(&mut cluster, Duration::ZERO).counts.encrypting, 1, "nothing is sent encrypted");
        cluster.pods.remove("n2");
        report(&mut cluster, Duration::ZERO);
        let found = report(&mut cluster, Duration::from_secs(60));
        assert_eq!((found.counts.stale, found.counts.encrypting), (1, 0));
    }
}
