//! Claims of a newer ring.

use std::time::Duration;

use secureoverlay_keyring::{
    acknowledgement::EnforcementBlocker,
    keyring::{Enforcement, Enforcement::Permissive, Role::Active},
};

use super::MINUTE;
use crate::{
    Blocker, Evidence,
    testing::{Cluster, uid},
};

const DAY: Duration = Duration::from_secs(86_400);
/// 30 days after the clock of these tests.
const BOUND: u64 = 30 * 86_400;

fn claim(cluster: &mut Cluster, nodes: &[u8], id: u64) -> Evidence {
    for n in nodes {
        cluster.acknowledge(*n, |ack| ack.highest_generation_seen = id);
    }
    cluster.evidence()
}

fn answer(cluster: &mut Cluster, evidence: &Evidence) {
    cluster.tracker.handle_claim_answered(evidence, cluster.now);
}

#[test]
fn claim_by_most_is_believed_once_in_the_minimum_interval() {
    let mut cluster = Cluster::new(3, Permissive, &[Active], true);
    assert_eq!(cluster.evidence().claim, None);
    let evidence = claim(&mut cluster, &[1, 2], 1 << 50);
    let found = evidence.claim.clone().unwrap();
    assert!(found.most && found.nodes == ["n1".to_owned(), "n2".to_owned()].into());
    assert_eq!(evidence.believed_id, 1 << 50);
    answer(&mut cluster, &evidence);
    assert_eq!(cluster.after(MINUTE).claim, None);
    assert!(cluster.after(4 * MINUTE).claim.is_some());
}

#[test]
fn claim_by_few_is_believed_once_a_day_and_not_of_any_id() {
    let mut cluster = Cluster::new(3, Permissive, &[Active], true);
    let evidence = claim(&mut cluster, &[1], 1 << 50);
    assert_eq!((evidence.claim, evidence.believed_id), (None, 1), "one node can't use the ids up");
    let evidence = claim(&mut cluster, &[1], BOUND);
    assert!(evidence.claim.as_ref().is_some_and(|claim| !claim.most) && evidence.believed_id == BOUND);
    answer(&mut cluster, &evidence);
    assert_eq!(cluster.after(DAY - MINUTE).claim, None);
    let evidence = claim(&mut cluster, &[2], BOUND);
    assert!(evidence.claim.is_some_and(|claim| claim.most), "by most it is believed at once");
    let evidence = claim(&mut cluster, &[2], 1);
    assert_eq!(evidence.claim, None);
    assert!(cluster.after(MINUTE).claim.is_some());
}

#[test]
fn refusal_is_a_claim_under_the_rings_ack_id_alone() {
    let mut cluster = Cluster::new(1, Permissive, &[Active], true);
    let refuse = |cluster: &mut Cluster, ack_id| {
        cluster.acknowledge(1, |ack| {
            let blocker =
                EnforcementBlocker { reason: Blocker::OLDER_RING.to_owned(), detail: String::new() };
            (ack.ack_id, ack.enforcement_blockers) = (ack_id, [blocker].into());
        });
        cluster.evidence().claim.is_some()
    };
    assert!(!refuse(&mut cluster, uid(81)));
    let ack_id = cluster.ring.ack_id;
    assert!(refuse(&mut cluster, ack_id));
    (cluster.ring.enforcement, cluster.ring.generations) = (Enforcement::Off, Vec::new());
    assert!(refuse(&mut cluster, ack_id));
    // Of a ring that is off, a higher id alone says nothing.
    assert_eq!(claim(&mut cluster, &[1], 9).claim, None);
}

#[test]
fn claim_of_another_node_of_that_name_does_not_count() {
    let mut cluster = Cluster::new(1, Permissive, &[Active], true);
    cluster.acknowledge(1, |ack| (ack.node_uid, ack.highest_generation_seen) = (uid(99), 9));
    let evidence = cluster.evidence();
    assert_eq!((evidence.claim, evidence.believed_id), (None, 0));
    // Under whatever ackId, though: it can only be too low.
    cluster.acknowledge(1, |ack| (ack.ack_id, ack.highest_generation_seen) = (uid(81), 9));
    assert!(cluster.evidence().claim.is_some());
}
