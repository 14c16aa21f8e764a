//! A plan that goes on from another one.

use secureoverlay_keyring::{keyring::SPI_SEED_LEN, secret::SecretBytes, suite::Suite};

use super::*;
use crate::{
    entry::Entry,
    peers::Peer,
    testing::{address, identity, ring},
};

/// Node 1 with peers, each with entries of these instances at its address.
fn target(ring: &KeyRing, own: u8, peers: &[(u8, &[u8])]) -> ReconcileTarget {
    let peer = |(n, instances): &(u8, &[u8])| {
        let entries = instances.iter().map(|who| Entry::from(&identity(*who).sender(address(*n)))).collect();
        (format!("node-{n}"), Peer { entries })
    };
    let peers = Peers { by_name: peers.iter().map(peer).collect(), ..Peers::default() };
    let network = LocalNetwork { tunnel_addresses: vec![address(1)], ..LocalNetwork::default() };
    let input = DesiredInput {
        ring: Arc::new(ring.clone()),
        identity: Arc::new(LocalIdentity::Announced(identity(own))),
        network: Arc::new(network),
        peers: Arc::new(peers),
        exclusion: Arc::default(),
        pairs: Some(Arc::default()),
        announced: true,
    };
    ReconcileTarget { teardown: TeardownPhase::Inactive, input: Some(input) }
}

#[test]
fn plan_after_another_is_the_plan_made_anew() {
    let steady = ring(Enforcement::Permissive, &[(1, Role::Active)]);
    let staged = ring(Enforcement::Permissive, &[(1, Role::Active), (2, Role::Staged)]);
    let moved = ring(Enforcement::Enforcing, &[(1, Role::Retiring), (2, Role::Active)]);
    // What no manager writes: other keys under the same UID.
    let changed = |change: fn(&mut Generation)| {
        let mut ring = moved.clone();
        ring.generations.iter_mut().for_each(change);
        ring
    };
    let other_key = changed(|generation| generation.key = SecretBytes::copy_from(&[77; 16]));
    let other_seed = changed(|generation| {
        generation.spi_seed = SecretBytes::copy_from(&[78; SPI_SEED_LEN]);
    });
    let other_suite = changed(|generation| generation.suite = Suite::Aes128Gcm16);
    let two: &[(u8, &[u8])] = &[(2, &[2]), (3, &[3])];
    let three: &[(u8, &[u8])] = &[(2, &[2]), (3, &[3]), (4, &[4])];
    let renewed: &[(u8, &[u8])] = &[(2, &[12, 2]), (3, &[3]), (4, &[4])];
    let steps = [
        ("the first", target(&steady, 1, two)),
        ("a node joins", target(&steady, 1, three)),
        ("a generation is staged", target(&staged, 1, three)),
        ("a peer has another instance", target(&staged, 1, renewed)),
        ("it is activated", target(&moved, 1, renewed)),
        ("the node has another identity", target(&moved, 9, renewed)),
        ("another ring key", target(&other_key, 9, renewed)),
        ("another seed", target(&other_seed, 9, renewed)),
        ("another suite", target(&other_suite, 9, renewed)),
        ("another address has the instance", target(&other_suite, 9, &[(5, &[2]), (3, &[3])])),
        ("an instance has two addresses", target(&other_suite, 9, &[(2, &[2]), (5, &[2])])),
        ("nothing is known", ReconcileTarget { input: None, ..target(&steady, 1, two) }),
        ("the first again", target(&steady, 1, two)),
    ];
    let mut planner = Planner::default();
    let mut plan = Plan::default();
    for (what, target) in &steps {
        plan = planner.plan_after(plan, target);
        assert!(plan == Planner::default().plan(target), "{what}");
        assert!(planner.made.is_empty(), "{what}: keys are left behind");
    }
}

#[test]
fn sa_that_was_planned_is_not_derived_again() {
    let steady = ring(Enforcement::Permissive, &[(1, Role::Active)]);
    let mut planner = Planner::default();
    let mut before = planner.plan(&target(&steady, 1, &[(2, &[2])]));
    // A key that no derivation gives shows where it comes from.
    let mark = SecretBytes::copy_from(&[55; 20]);
    before.sas.values_mut().for_each(|planned| planned.sa.key = mark.clone());
    let after = planner.plan_after(before.clone(), &target(&steady, 1, &[(2, &[2]), (3, &[3])]));
    let marked = after.sas.values().filter(|planned| planned.sa.key == mark).count();
    assert_eq!((marked, after.sas.len()), (before.sas.len(), 2 * before.sas.len()));
}
