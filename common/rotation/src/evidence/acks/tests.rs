//! Who is waited for, and what counts as done: the tables of `docs/rotation.md`, sections 3 and 4.

use std::time::Duration;

use secureoverlay_keyring::{
    acknowledgement::EnforcementBlocker,
    keyring::{
        Enforcement::{Enforcing, Permissive},
        Role::{Active, Retiring, Staged},
    },
};

use crate::{
    AckIdState, Action, Blocker, DRAIN, GRACE, Readiness,
    testing::{Cluster, LIMIT, address, missing, spec, uid},
};

mod claims;
mod who_counts;

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn activation_waits_until_all_receive_and_have_proven() {
    let mut cluster = Cluster::new(3, Permissive, &[Active, Staged], true);
    assert_eq!(cluster.evidence().staged_acked, Readiness::Ready);
    cluster.acknowledge(2, |ack| ack.receivable = [uid(1)].into());
    assert_eq!(missing(&cluster.evidence().staged_acked), Some(vec!["n2"]));
    cluster.acknowledge(2, |ack| ack.unproven_pairs = vec![Cluster::unproven(uid(2), &[3])]);
    let Readiness::Waiting(unmet) = cluster.after(MINUTE).staged_acked else {
        panic!("n2 has not proven n3")
    };
    assert_eq!((unmet.total, unmet.any_ready, unmet.waited), (3, true, MINUTE));
    // What is not proven with the active generation does not matter to the staged one.
    cluster.acknowledge(2, |ack| ack.unproven_pairs = vec![Cluster::unproven(uid(1), &[3])]);
    assert_eq!(cluster.evidence().staged_acked, Readiness::Ready);
}

#[test]
fn acknowledgement_counts_by_ack_id_node_and_instance() {
    for change in 0..5 {
        let mut cluster = Cluster::new(2, Permissive, &[Active, Staged], true);
        cluster.acknowledge(2, |ack| match change {
            0 => ack.ack_id = uid(81),
            1 => ack.node_uid = uid(99),
            2 => ack.instance = uid(98).into(),
            _ => (),
        });
        match change {
            3 => cluster.acks.get_mut("n2").unwrap().content = None,
            4 => drop(cluster.acks.remove("n2")),
            _ => (),
        }
        let evidence = cluster.evidence();
        assert_eq!(missing(&evidence.staged_acked), Some(vec!["n2"]), "{change}");
    }
    // An object that can't be read leaves in force what was read last.
    let mut cluster = Cluster::new(2, Permissive, &[Active, Staged], true);
    cluster.evidence();
    cluster.peers.get_mut("n2").unwrap().content = None;
    assert_eq!(cluster.evidence().staged_acked, Readiness::Ready);
}

#[test]
fn removal_waits_for_the_drain_after_the_last_node_moved() {
    let mut cluster = Cluster::new(2, Permissive, &[Retiring, Active], true);
    cluster.acknowledge(2, |ack| ack.active_generation = None);
    assert_eq!(missing(&cluster.evidence().drained), Some(vec!["n2"]));
    cluster.acknowledge(2, |ack| ack.unproven_pairs = vec![Cluster::unproven(uid(1), &[1])]);
    assert_eq!(missing(&cluster.after(DRAIN).drained), Some(vec!["n2"]), "it still sends to n1");
    cluster.acknowledge(2, |_| ());
    assert_eq!(cluster.after(DRAIN).drained, Readiness::After(DRAIN));
    assert_eq!(cluster.after(DRAIN / 2).drained, Readiness::After(DRAIN / 2));
    cluster.acknowledge(2, |ack| ack.active_generation = None);
    assert_eq!(missing(&cluster.after(DRAIN / 2).drained), Some(vec!["n2"]), "it took that back");
    cluster.acknowledge(2, |_| ());
    assert_eq!(cluster.evidence().drained, Readiness::After(DRAIN), "from the start");
    assert_eq!(cluster.after(DRAIN).drained, Readiness::Ready);
}

#[test]
fn way_to_off_waits_until_no_node_sends() {
    let mut cluster = Cluster::new(2, Permissive, &[Retiring], true);
    assert_eq!(cluster.evidence().drained, Readiness::After(DRAIN));
    assert_eq!(cluster.after(DRAIN).drained, Readiness::Ready);
    cluster.acknowledge(2, |ack| ack.sends_none = false);
    assert_eq!(missing(&cluster.evidence().drained), Some(vec!["n2"]));
    let mut cluster = Cluster::new(2, Permissive, &[Active], true);
    cluster.acknowledge(2, |ack| ack.enforcement = Enforcing);
    assert_eq!(missing(&cluster.evidence().none_enforcing), Some(vec!["n2"]));
    cluster.acknowledge(2, |_| ());
    assert_eq!(cluster.evidence().none_enforcing, Readiness::Ready);
}

#[test]
fn enforcing_waits_for_blockers_pairs_and_room() {
    let mut cluster = Cluster::new(2, Permissive, &[Active], true);
    let evidence = cluster.evidence();
    assert_eq!((evidence.can_enforce, evidence.blockers), (Readiness::Ready, Vec::new()));
    let check = |cluster: &mut Cluster, reason: &str| {
        let evidence = cluster.evidence();
        assert_eq!(missing(&evidence.can_enforce), Some(vec!["n2"]), "{reason}");
        let found: Vec<&str> = evidence.blockers.iter().map(|blocker| blocker.reason.as_str()).collect();
        assert_eq!(found, [reason]);
        assert!(evidence.blockers.iter().all(|blocker| blocker.node == "n2"));
    };
    let blocker = EnforcementBlocker { reason: "PlaintextBypass".to_owned(), detail: "a route".to_owned() };
    cluster.acknowledge(2, |ack| ack.enforcement_blockers = [blocker].into());
    check(&mut cluster, "PlaintextBypass");
    cluster.acknowledge(2, |ack| ack.no_peers = true);
    check(&mut cluster, Blocker::NO_PEERS);
    cluster.acknowledge(2, |ack| ack.tunnel_mtu_too_large = true);
    check(&mut cluster, Blocker::MTU_TOO_LARGE);
    cluster.acknowledge(2, |ack| ack.unproven_pairs = vec![Cluster::unproven(uid(1), &[1])]);
    check(&mut cluster, Blocker::UNPROVEN_PAIRS);
    cluster.acknowledge(2, |_| ());
    cluster.peers.get_mut("n2").unwrap().content = Some(spec(2, &[2, 1]));
    check(&mut cluster, Blocker::ADDRESS_CONFLICT);
    cluster.peers.get_mut("n2").unwrap().content = Some(spec(2, &[2]));
    cluster.acknowledge(2, |ack| ack.active_generation = None);
    let evidence = cluster.evidence();
    assert_eq!((missing(&evidence.can_enforce), evidence.blockers), (Some(vec!["n2"]), Vec::new()));
    cluster.ring.enforcement = Enforcing;
    assert_eq!(cluster.evidence().can_enforce, Readiness::Unknown, "there is nothing to wait for");
}

#[test]
fn gateway_blocks_where_it_is_a_ready_node_that_does_not_announce_it() {
    let mut cluster = Cluster::new(2, Permissive, &[Active], true);
    let other = address(77);
    cluster.acknowledge(2, |ack| ack.unknown_gateways = [other].into_iter().collect());
    assert_eq!(cluster.evidence().blockers, [], "a route of a node that is gone");
    cluster.nodes[0].addresses.insert(other);
    let blockers = cluster.evidence().blockers;
    assert_eq!(blockers.len(), 1);
    assert_eq!((blockers[0].node.as_str(), blockers[0].reason.as_str()), ("n2", Blocker::GATEWAY_UNKNOWN));
    assert!(blockers[0].detail.contains("192.0.2.77") && blockers[0].detail.contains("n1"));
    cluster.nodes[0].ready = false;
    assert_eq!(cluster.evidence().blockers, []);
}

#[test]
fn node_that_is_alone_has_no_peers_and_may_enforce() {
    let mut cluster = Cluster::new(1, Permissive, &[Active], true);
    cluster.acknowledge(1, |ack| ack.no_peers = true);
    assert_eq!(cluster.evidence().blockers, []);
}

#[test]
fn ready_node_of_any_kind_that_does_not_announce_blocks_enforcing_by_name() {
    let mut cluster = Cluster::new(3, Permissive, &[Active], true);
    cluster.peers.remove("n3");
    cluster.node(3).linux = false;
    let evidence = cluster.evidence();
    assert_eq!(missing(&evidence.can_enforce), Some(vec!["n3"]));
    assert_eq!(evidence.blockers[0].to_string(), "n3: NotAnnouncing (no agent on it announces a key)");
    cluster.node(3).excluded = true;
    assert_eq!(cluster.evidence().can_enforce, Readiness::Ready);
}

#[test]
fn object_that_vanished_counts_for_the_grace() {
    let mut cluster = Cluster::new(2, Permissive, &[Active, Staged], true);
    cluster.evidence();
    cluster.peers.clear();
    cluster.acks.clear();
    let evidence = cluster.evidence();
    assert_eq!(missing(&evidence.staged_acked), Some(vec!["n1", "n2"]));
    assert!(evidence.ack_deleted.is_some(), "agents are there to say it again");
    let evidence = cluster.after(GRACE);
    assert_eq!(
        missing(&evidence.staged_acked),
        Some(Vec::new()),
        "with no node to wait for no step is taken"
    );
}

#[test]
fn deleted_acknowledgement_is_asked_for_again_where_an_agent_runs_and_not_often() {
    let mut cluster = Cluster::new(2, Permissive, &[Active], true);
    assert_eq!(cluster.evidence().ack_deleted, None);
    cluster.acks.remove("n2");
    let evidence = cluster.evidence();
    assert_eq!(evidence.ack_deleted.as_deref(), Some("n2"));
    cluster.tracker.handle_renewed(&evidence, cluster.now);
    assert_eq!(cluster.after(MINUTE).ack_deleted, None);
    assert!(cluster.after(GRACE).ack_deleted.is_some());
    cluster.pods.remove("n2");
    assert_eq!(cluster.evidence().ack_deleted, None);
    // One that never had any is no loss.
    cluster.add(3);
    cluster.acks.remove("n3");
    assert_eq!(cluster.evidence().ack_deleted, None);
}

#[test]
fn most_of_those_that_count_enforce() {
    let mut cluster = Cluster::new(4, Permissive, &[Staged], true);
    for n in 1..=2 {
        cluster.acknowledge(n, |ack| ack.enforcement = Enforcing);
    }
    assert!(!cluster.evidence().most_enforcing, "half is not most");
    cluster.acknowledge(4, |ack| ack.ack_id = uid(81));
    let evidence = cluster.evidence();
    assert!(evidence.most_enforcing && evidence.any_counts && evidence.any_receivable);
}

#[test]
fn ack_id_of_another_process_is_foreign_and_has_its_pause() {
    let mut cluster = Cluster::new(1, Permissive, &[Active], false);
    let nothing = Duration::ZERO;
    assert_eq!(
        cluster.evidence().ack_id,
        AckIdState::Foreign { age: nothing, pause: nothing },
        "a new process"
    );
    let mut cluster = Cluster::new(1, Permissive, &[Active], true);
    assert_eq!(cluster.after(MINUTE).ack_id, AckIdState::Own { age: MINUTE });
    cluster.ring.ack_id = uid(81);
    let AckIdState::Foreign { pause, .. } = cluster.evidence().ack_id else { panic!("it was replaced") };
    assert!(pause > nothing && pause <= MINUTE, "{pause:?}");
    assert!(matches!(cluster.after(pause).ack_id, AckIdState::Foreign { pause: Duration::ZERO, .. }));
    // An update keeps the ackId: its writer has not drawn that.
    let mut cluster = Cluster::new(1, Permissive, &[Active], false);
    cluster.evidence();
    let ring = cluster.ring.clone();
    cluster.memory.handle_writing(Some(&ring), &ring, cluster.now);
    cluster.memory.handle_written(Action::Update, None, Some(&ring), &ring, cluster.now);
    assert!(matches!(cluster.evidence().ack_id, AckIdState::Foreign { .. }));
    // A write whose answer was lost was this process's all the same.
    let mut cluster = Cluster::new(1, Permissive, &[Active], false);
    let before = cluster.ring.clone();
    cluster.ring.ack_id = uid(82);
    cluster.memory.handle_writing(Some(&before), &cluster.ring, cluster.now);
    assert_eq!(cluster.evidence().ack_id, AckIdState::Own { age: nothing });
    let mut cluster = Cluster::new(1, Permissive, &[Active], true);
    cluster.memory.handle_history_went_back();
    assert_eq!(cluster.evidence().ack_id, AckIdState::Foreign { age: nothing, pause: nothing });
}

#[test]
fn senders_are_those_of_all_objects_the_oldest_first() {
    let mut cluster = Cluster::new(2, Permissive, &[Active], true);
    cluster.peers.get_mut("n1").unwrap().created = None;
    let expected = vec![(uid(2).into(), address(2)), (uid(1).into(), address(1))];
    assert_eq!(cluster.evidence().senders, expected);
    cluster.node(1).excluded = true;
    assert_eq!(cluster.evidence().senders, expected, "excluded ones are received, too");
    assert!(cluster.evidence().limit.is_some_and(|left| left <= LIMIT));
}

#[test]
fn exhausted_generation_is_replaced_if_it_is_the_active_one() {
    let mut cluster = Cluster::new(2, Permissive, &[Retiring, Active], true);
    cluster.acknowledge(2, |ack| ack.exhausted_generations = [uid(1)].into());
    assert_eq!(cluster.evidence().exhausted, None);
    cluster.acknowledge(2, |ack| ack.exhausted_generations = [uid(2)].into());
    assert_eq!(cluster.evidence().exhausted.as_deref(), Some("n2"));
}
