//! Which nodes are waited for, and which pairs count.

use secureoverlay_keyring::{
    acknowledgement::NodeHashes,
    keyring::{
        Enforcement::Permissive,
        Role::{Active, Retiring, Staged},
    },
};

use super::MINUTE;
use crate::{
    DRAIN, Evidence, Readiness,
    testing::{Cluster, LIMIT, missing, spec, uid},
};

/// What n3 is while n1 and n2 are Ready and have done everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready,
    Joined,
    NotReady,
    LeftBehind,
    Excluded,
    ExcludedForLong,
    Gone,
}

const STATES: [State; 7] = [
    State::Ready,
    State::Joined,
    State::NotReady,
    State::LeftBehind,
    State::Excluded,
    State::ExcludedForLong,
    State::Gone,
];

/// `change` happens to the cluster at the end.
fn evidence(
    roles: &[secureoverlay_keyring::keyring::Role],
    state: State,
    change: impl FnOnce(&mut Cluster),
) -> Evidence {
    let joins = state == State::Joined;
    let mut cluster = Cluster::new(if joins { 2 } else { 3 }, Permissive, roles, true);
    cluster.evidence();
    cluster.now += 2 * MINUTE;
    match state {
        State::Ready => (),
        State::Joined => cluster.add(3),
        State::NotReady | State::LeftBehind => cluster.node(3).ready = false,
        State::Excluded | State::ExcludedForLong => cluster.node(3).excluded = true,
        State::Gone => drop(cluster.nodes.pop()),
    }
    change(&mut cluster);
    cluster.evidence();
    let long = matches!(state, State::LeftBehind | State::ExcludedForLong);
    cluster.after(if long { LIMIT } else { MINUTE });
    cluster.after(DRAIN)
}

fn silent(cluster: &mut Cluster) {
    cluster.acks.remove("n3");
}

#[test]
fn silent_node_is_waited_for_by_the_table() {
    use State::{Excluded, Joined, NotReady};
    // Those that are waited for: at activation, removal, enforcing, on the way to off.
    let table: [(&[State], &[secureoverlay_keyring::keyring::Role]); 4] = [
        (&[State::Ready], &[Active, Staged]),
        (&[State::Ready, NotReady, Excluded], &[Retiring, Active]),
        (&[State::Ready, Joined, NotReady], &[Active]),
        (&[State::Ready, Joined, NotReady, Excluded], &[Retiring]),
    ];
    for (at, (awaited, roles)) in table.into_iter().enumerate() {
        for state in STATES {
            let evidence = evidence(roles, state, silent);
            let readiness = match at {
                0 => evidence.staged_acked,
                2 => evidence.can_enforce,
                _ => evidence.drained,
            };
            let expected = awaited.contains(&state).then(|| vec!["n3"]);
            assert_eq!(missing(&readiness), expected, "{at} {state:?}");
            assert!(expected.is_some() || readiness == Readiness::Ready, "{at} {state:?} {readiness:?}");
        }
    }
}

#[test]
fn pair_toward_a_node_counts_by_the_table() {
    use State::{Excluded, Joined, NotReady};
    let table: [(&[State], &[secureoverlay_keyring::keyring::Role], u8); 3] = [
        (&[State::Ready], &[Active, Staged], 2),
        // Agents leave out excluded peers; what they list counts all the same.
        (&[State::Ready, Joined, NotReady, Excluded], &[Retiring, Active], 1),
        (&[State::Ready, Joined, NotReady, Excluded], &[Active], 1),
    ];
    for (at, (counting, roles, generation)) in table.into_iter().enumerate() {
        for state in STATES {
            let evidence = evidence(roles, state, |cluster| {
                cluster.acknowledge(1, |ack| {
                    ack.unproven_pairs = vec![Cluster::unproven(uid(generation), &[3])];
                });
            });
            let readiness = [evidence.staged_acked, evidence.drained, evidence.can_enforce][at].clone();
            let expected = counting.contains(&state).then(|| vec!["n1"]);
            assert_eq!(missing(&readiness), expected, "{at} {state:?}");
        }
    }
}

#[test]
fn pairs_without_hashes_count_all() {
    let evidence = evidence(&[Active, Staged], State::NotReady, |cluster| {
        cluster.acknowledge(1, |ack| {
            let mut pairs = Cluster::unproven(uid(2), &[3]);
            pairs.hashes = NodeHashes::default();
            ack.unproven_pairs = vec![pairs];
        });
    });
    assert_eq!(missing(&evidence.staged_acked), Some(vec!["n1"]));
}

#[test]
fn redrawn_instance_has_not_joined() {
    let mut cluster = Cluster::new(2, Permissive, &[Retiring, Active], true);
    cluster.evidence();
    cluster.now += 2 * MINUTE;
    // A new instance, and the old entry is listed still.
    let mut redrawn = spec(12, &[2]);
    redrawn.senders.extend(spec(2, &[2]).senders);
    cluster.peers.get_mut("n2").unwrap().content = Some(redrawn);
    assert_eq!(missing(&cluster.evidence().drained), Some(vec!["n2"]));
    // It has booted: nothing of what it listed is left.
    cluster.peers.get_mut("n2").unwrap().content = Some(spec(13, &[2]));
    assert!(matches!(cluster.evidence().drained, Readiness::After(_)));
    // What comes within a minute of the ackId has not joined since.
    let mut cluster = Cluster::new(1, Permissive, &[Active, Staged], true);
    cluster.evidence();
    cluster.now += MINUTE;
    cluster.add(2);
    silent_two(&mut cluster);
    assert_eq!(missing(&cluster.evidence().staged_acked), Some(vec!["n2"]));
}

#[test]
fn node_that_was_missing_in_a_list_has_not_joined() {
    let mut cluster = Cluster::new(2, Permissive, &[Retiring, Active], true);
    cluster.evidence();
    cluster.now += 2 * MINUTE;
    let node = cluster.nodes.pop().unwrap();
    silent_two(&mut cluster);
    assert_eq!(missing(&cluster.evidence().drained), None, "there is no Node");
    cluster.nodes.push(node);
    assert_eq!(missing(&cluster.evidence().drained), Some(vec!["n2"]));
}

fn silent_two(cluster: &mut Cluster) {
    cluster.acks.remove("n2");
}

#[test]
fn silent_ready_node_is_left_behind_on_the_way_to_off_alone() {
    let silence = |roles: &[secureoverlay_keyring::keyring::Role]| {
        let mut cluster = Cluster::new(2, Permissive, roles, true);
        cluster.evidence();
        silent_two(&mut cluster);
        cluster.evidence();
        cluster.after(LIMIT);
        cluster.after(DRAIN).drained
    };
    assert_eq!(silence(&[Retiring]), Readiness::Ready);
    assert_eq!(missing(&silence(&[Retiring, Active])), Some(vec!["n2"]));
}

#[test]
fn node_that_comes_back_is_away_anew() {
    let mut cluster = Cluster::new(2, Permissive, &[Retiring, Active], true);
    cluster.node(2).ready = false;
    silent_two(&mut cluster);
    cluster.evidence();
    cluster.now += LIMIT / 2;
    cluster.node(2).ready = true;
    cluster.evidence();
    cluster.node(2).ready = false;
    cluster.evidence();
    assert_eq!(missing(&cluster.after(LIMIT / 2).drained), Some(vec!["n2"]));
    assert_eq!(missing(&cluster.after(LIMIT / 2).drained), None);
}

#[test]
fn way_down_is_open_where_all_nodes_are_excluded_for_good() {
    let mut cluster = Cluster::new(2, Permissive, &[Retiring], true);
    for n in 1..=2 {
        cluster.node(n).excluded = true;
    }
    cluster.acks.clear();
    assert_eq!(missing(&cluster.evidence().drained), Some(vec!["n1", "n2"]));
    cluster.after(LIMIT);
    assert_eq!(cluster.after(DRAIN).drained, Readiness::Ready);
}

#[test]
fn taint_stays_until_all_pairs_with_healthy_peers_are_proven() {
    let mut cluster = Cluster::new(4, Permissive, &[Active], true);
    cluster.evidence();
    let free = |cluster: &Cluster| cluster.tracker.encrypting(cluster.snapshot(), cluster.now).contains("n1");
    assert!(free(&cluster));
    let unproven = |cluster: &mut Cluster| {
        cluster.acknowledge(1, |ack| ack.unproven_pairs = vec![Cluster::unproven(uid(1), &[2])]);
    };
    unproven(&mut cluster);
    assert!(!free(&cluster));
    // The peer's agent is away.
    cluster.pods.remove("n2");
    cluster.evidence();
    assert!(!free(&cluster), "not for long enough");
    cluster.after(MINUTE);
    assert!(free(&cluster));
    cluster.pods.insert("n2".to_owned());
    cluster.evidence();
    assert!(!free(&cluster));
    // The peer says nothing.
    silent_two(&mut cluster);
    cluster.evidence();
    assert!(free(&cluster));
    cluster.acknowledge(2, |_| ());
    // Most others have not proven it either.
    for n in 3..=4 {
        cluster.acknowledge(n, |ack| ack.unproven_pairs = vec![Cluster::unproven(uid(1), &[2])]);
    }
    cluster.evidence();
    assert!(free(&cluster));
    cluster.acknowledge(1, |ack| ack.tunnel_mtu_too_large = true);
    assert!(!free(&cluster));
    cluster.node(1).excluded = true;
    assert!(free(&cluster));
}
