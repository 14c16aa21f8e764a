//! Planner, diff, reconciler and proof together, on a model of the kernel.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use rand::{SeedableRng, rngs::StdRng};
use secureoverlay_keyring::{
    keyring::{Enforcement, KeyRing, Role},
    probe::{CANDIDATE_PORT, PINNED_PORT, Probe},
};

use super::*;
use crate::{
    Time,
    ack::{AckFacts, acknowledge},
    exclusion::Exclusion,
    fake_kernel::FakeKernel,
    identity::LocalIdentity,
    journal::NoStore,
    network::LocalNetwork,
    peers::PeerTable,
    plan::DesiredInput,
    proof::{ProofTracker, Received},
    teardown::TeardownPhase,
    testing::{OwnedKernel, address, identity, instance, peer_object, ring, uid},
    xfrm::{Net, Traffic},
};

/// Node 1, whose peers are node 2 and node 3.
struct Bench {
    reconciler: Reconciler<OwnedKernel, NoStore>,
    proofs: ProofTracker,
    table: PeerTable,
    input: DesiredInput,
    now: Time,
    rng: StdRng,
}

impl Bench {
    fn new() -> Self {
        let kernel = FakeKernel { local: Some(address(1).ip()), ..FakeKernel::default() };
        let mut table = PeerTable::new("node-1".to_owned(), true);
        table.handle_list(vec![peer_object(2, &[(2, 2)]), peer_object(3, &[(3, 3)])], Time::ZERO);
        let network = LocalNetwork {
            tunnel_addresses: vec![address(1)],
            all_addresses: [address(1)].into(),
            ..LocalNetwork::default()
        };
        let input = DesiredInput {
            ring: Arc::new(ring(Enforcement::Permissive, &[(1, Role::Active)])),
            identity: Arc::new(LocalIdentity::Announced(identity(1))),
            network: Arc::new(network),
            peers: Arc::default(),
            exclusion: Arc::new(Exclusion::default()),
            pairs: None,
            announced: true,
        };
        Self {
            reconciler: Reconciler::new(
                OwnedKernel(kernel),
                Journal::new(Record::default(), NoStore),
                SaLimits::default(),
            ),
            proofs: ProofTracker::default(),
            table,
            input,
            now: Time::from_secs(1),
            rng: StdRng::seed_from_u64(1),
        }
    }

    fn set(&mut self, enforcement: Enforcement, generations: &[(u8, Role)]) {
        self.input.ring = Arc::new(ring(enforcement, generations));
    }

    fn run(&mut self) -> ReconcileReport {
        self.input.pairs = self.proofs.states();
        self.input.peers = Arc::new(self.table.snapshot(self.now));
        let target = ReconcileTarget { teardown: TeardownPhase::Inactive, input: Some(self.input.clone()) };
        let report = self.reconciler.run(&target).unwrap();
        self.proofs.handle_report(&report, self.now);
        report
    }

    /// Pings all that is due; peers of these numbers answer.
    fn ping(&mut self, answering: &[u8]) {
        while let Some(ping) = self.proofs.poll_ping(self.now, &mut self.rng, |_| Some(1)).unwrap() {
            let to = ping.pair.dst;
            if answering.iter().any(|n| address(*n) == to) {
                let answer = Probe::parse(&ping.payload).unwrap().answer().unwrap().to_bytes();
                let (received, _) =
                    self.proofs.handle_packet(to.ip(), ping.port, &answer, self.now, |_| Some(2));
                assert_eq!(received, Received::Taken);
            }
            self.now += Duration::from_millis(2);
        }
    }

    /// Until nothing is left to do.
    fn settle(&mut self) {
        for _ in 0..4 {
            self.run();
            self.ping(&[2, 3]);
        }
    }

    fn sends_with(&mut self, n: u8) -> Option<u32> {
        match self.reconciler.kernel().policies.get(&out(n))?.action? {
            PolicyAction::Esp(spi) => spi,
            PolicyAction::Allow | PolicyAction::Block => None,
        }
    }

    fn sas(&mut self) -> BTreeSet<SaId> {
        self.reconciler.kernel().sas.keys().copied().collect()
    }
}

fn out(n: u8) -> PolicyId {
    PolicyId::tunnel(Direction::Out, Net::host(address(1).ip()), Net::host(address(n).ip()))
}

#[test]
fn rotation_moves_proven_pairs_and_removes_what_they_left() {
    use Role::{Active, Retiring, Staged};
    let mut bench = Bench::new();
    bench.settle();
    let first = bench.sends_with(2).expect("node 2 has answered");
    assert_eq!(bench.sas().len(), 4);
    assert_eq!(bench.run().changed, 0, "a second run has nothing to do");
    bench.set(Enforcement::Permissive, &[(1, Active), (2, Staged)]);
    bench.run();
    assert_eq!((bench.sends_with(2), bench.sas().len()), (Some(first), 8));
    bench.ping(&[2]);
    bench.set(Enforcement::Permissive, &[(1, Retiring), (2, Active)]);
    bench.run();
    assert_ne!(bench.sends_with(2), Some(first), "node 2 has answered by the staged generation");
    let third = bench.sends_with(3);
    bench.now += Duration::from_secs(10);
    bench.run();
    assert_eq!(bench.sends_with(3), third, "node 3 has not");
    bench.ping(&[3]);
    bench.run();
    assert_ne!(bench.sends_with(3), third);
    bench.set(Enforcement::Permissive, &[(2, Active)]);
    bench.run();
    assert_eq!(bench.sas().len(), 4);
}

#[test]
fn ring_begun_anew_removes_nothing_of_the_one_before() {
    use Role::{Active, Retiring, Staged};
    let mut bench = Bench::new();
    bench.settle();
    bench.set(Enforcement::Permissive, &[(1, Active), (2, Staged)]);
    bench.settle();
    bench.set(Enforcement::Permissive, &[(1, Retiring), (2, Active)]);
    bench.settle();
    let before = bench.sas();
    bench.set(Enforcement::Permissive, &[(3, Staged)]);
    bench.settle();
    assert!(bench.sas().is_superset(&before), "nodes that have not read it yet send with both generations");
    bench.set(Enforcement::Permissive, &[(3, Active)]);
    bench.settle();
    assert!(bench.sas().is_superset(&before));
    bench.set(Enforcement::Permissive, &[(3, Active), (4, Staged)]);
    bench.settle();
    bench.set(Enforcement::Permissive, &[(3, Retiring), (4, Active)]);
    bench.settle();
    bench.set(Enforcement::Permissive, &[(4, Active)]);
    bench.settle();
    assert!(bench.sas().is_disjoint(&before), "all that was there when they were found has left");
}

#[test]
fn lost_outbound_sa_holds_traffic_back_until_a_new_instance_is_proven() {
    let mut bench = Bench::new();
    bench.settle();
    let spi = bench.sends_with(2).unwrap();
    let lost = SaId { dst: address(2).ip(), spi };
    bench.reconciler.kernel().take_away(lost);
    let report = bench.run();
    assert!(report.needs_new_instance);
    assert_eq!(bench.sends_with(2), Some(spi), "never back to the clear");
    let blockers = BTreeSet::new();
    let ack = |report: &ReconcileReport, bench: &Bench| {
        acknowledge(&AckFacts {
            ack_id: uid(1),
            node_uid: uid(2),
            instance: instance(1),
            ring: Some(&bench.input.ring),
            network: Some(&bench.input.network),
            excluded: &BTreeSet::new(),
            report,
            proofs: &bench.proofs,
            blockers: &blockers,
            highest: 1,
            tunnel_mtu_too_large: false,
            unknown_gateways: &BTreeSet::new(),
            no_peers: false,
            now: bench.now,
        })
    };
    let said = ack(&report, &bench);
    assert!(!said.all_pairs_proven);
    assert_eq!(said.unproven_pairs[0].nodes, ["node-2".to_owned()].into());
    let other = crate::identity::Identity { instance: instance(9), ..identity(1) };
    bench.input.identity = Arc::new(LocalIdentity::Announced(other));
    bench.settle();
    assert!(bench.sends_with(2).is_some_and(|new| new != spi));
    let report = bench.run();
    assert!(ack(&report, &bench).all_pairs_proven);
}

#[test]
fn sa_of_a_former_instance_stays_under_a_policy_that_is_put_back() {
    let mut bench = Bench::new();
    bench.settle();
    let pinned = SaId { dst: address(2).ip(), spi: bench.sends_with(2).unwrap() };
    bench.reconciler.kernel().policies.clear();
    let other = crate::identity::Identity { instance: instance(9), ..identity(1) };
    bench.input.identity = Arc::new(LocalIdentity::Announced(other));
    bench.run();
    assert_eq!(bench.sends_with(2), Some(pinned.spi));
    assert!(bench.sas().contains(&pinned));
}

#[test]
fn blocks_come_before_sas_when_a_node_boots_into_an_enforcing_ring() {
    let mut bench = Bench::new();
    bench.set(Enforcement::Enforcing, &[(1, Role::Active)]);
    // Two policies that require ESP, four for probes, two blocks.
    bench.proofs.handle_report(&ReconcileReport::default(), bench.now);
    bench.reconciler.kernel().dies_after = Some(8);
    bench.run();
    let blocks = bench.reconciler.kernel().policies.keys().filter(|id| id.is_block()).count();
    assert_eq!((blocks, bench.sas().is_empty()), (2, true), "nothing passes in the clear meanwhile");
}

#[test]
fn flushed_policies_come_back_without_a_dump_and_blocks_first() {
    let mut bench = Bench::new();
    bench.set(Enforcement::Enforcing, &[(1, Role::Active)]);
    bench.settle();
    let before = bench.reconciler.kernel().policies.clone();
    bench.reconciler.kernel().policies.clear();
    bench.reconciler.kernel().flush_sas();
    let done = bench.reconciler.kernel().done;
    bench.reconciler.kernel().dies_after = Some(done + 2);
    assert_eq!(bench.reconciler.put_policies_back(), 2);
    assert!(bench.reconciler.kernel().policies.keys().all(PolicyId::is_block));
    bench.reconciler.kernel().dies_after = None;
    bench.reconciler.put_policies_back();
    assert_eq!(
        bench.reconciler.kernel().policies.keys().collect::<Vec<_>>(),
        before.keys().collect::<Vec<_>>()
    );
    assert_eq!(bench.reconciler.kernel().done, done + 2 * before.len(), "no other operation");
}

#[test]
fn flush_after_a_removal_brings_nothing_back() {
    let mut bench = Bench::new();
    bench.set(Enforcement::Enforcing, &[(1, Role::Active)]);
    bench.settle();
    let target = ReconcileTarget { teardown: TeardownPhase::Removed, input: Some(bench.input.clone()) };
    bench.reconciler.run(&target).unwrap();
    assert_eq!((bench.reconciler.put_policies_back(), bench.reconciler.kernel().ours()), (0, 0));
}

#[test]
fn restarted_agent_adopts_all_that_is_there() {
    let mut bench = Bench::new();
    bench.set(Enforcement::Enforcing, &[(1, Role::Active)]);
    bench.settle();
    let kernel = bench.reconciler.kernel().clone();
    let record = bench.reconciler.record().clone();
    bench.reconciler = Reconciler::new(kernel, Journal::new(record, NoStore), SaLimits::default());
    bench.proofs = ProofTracker::default();
    assert_eq!(bench.run().changed, 0);
    assert_eq!(bench.run().changed, 0);
    assert!(bench.proofs.is_settled(bench.now), "what is pinned is proven");
}

#[test]
fn answer_counts_for_the_sa_that_carried_its_ping() {
    let mut bench = Bench::new();
    bench.run();
    bench.run();
    let ping = bench.proofs.poll_ping(bench.now, &mut bench.rng, |_| Some(1)).unwrap().unwrap();
    assert_eq!(ping.port, CANDIDATE_PORT);
    let probe = Probe::parse(&ping.payload).unwrap();
    let (from, answer) = (ping.pair.dst.ip(), probe.answer().unwrap().to_bytes());
    let other = Probe { spi: probe.spi ^ 1, ..probe }.answer().unwrap().to_bytes();
    let mut handle = |from, port, bytes: &[u8], packets| {
        bench.proofs.handle_packet(from, port, bytes, bench.now, |_| Some(packets)).1
    };
    assert!(!handle(from, CANDIDATE_PORT, &other, 2), "another SA");
    assert!(!handle(address(9).ip(), CANDIDATE_PORT, &answer, 2), "another peer");
    assert!(!handle(from, PINNED_PORT, &answer, 2), "another port");
    assert!(!handle(from, CANDIDATE_PORT, &answer, 1), "the SA has carried nothing");
    assert!(!handle(from, CANDIDATE_PORT, &answer, 2), "its nonce counts once");
}

#[test]
fn pinned_sa_is_unanswered_after_three_pings_that_had_two_seconds_each() {
    let mut bench = Bench::new();
    bench.settle();
    let pair = PairId { src: address(1), dst: address(2) };
    let begun = bench.now + crate::proof::RECHECK;
    bench.now = begun;
    for _ in 0..40 {
        bench.ping(&[3]);
        bench.proofs.handle_timeout(bench.now);
        if bench.proofs.unanswered(&pair).is_some() {
            break;
        }
        bench.now += Duration::from_millis(500);
    }
    let since = bench.proofs.unanswered(&pair).expect("it never answers");
    assert!(since - begun >= Duration::from_secs(10), "{:?}", since - begun);
    assert_eq!(bench.proofs.unanswered(&PairId { src: address(1), dst: address(3) }), None);
}

#[test]
fn address_goes_to_the_claim_that_answers() {
    let mut bench = Bench::new();
    bench.settle();
    let before = bench.sends_with(2);
    // Node 3 moves to the address of node 2, which says so later.
    bench.table.handle_applied(peer_object(3, &[(3, 2)]), bench.now);
    for _ in 0..40 {
        bench.run();
        while let Some(ping) = bench.proofs.poll_ping(bench.now, &mut bench.rng, |_| Some(1)).unwrap() {
            let answer = Probe::parse(&ping.payload).unwrap().answer().unwrap().to_bytes();
            if Some(ping.sa.spi) != before {
                let from = ping.pair.dst.ip();
                bench.proofs.handle_packet(from, ping.port, &answer, bench.now, |_| Some(2));
            }
            bench.now += Duration::from_millis(2);
        }
        bench.proofs.handle_timeout(bench.now);
        bench.now += Duration::from_millis(300);
    }
    let after = bench.sends_with(2);
    assert!(after.is_some() && after != before);
    bench.run();
    assert_eq!(bench.sends_with(2), after, "it stays there");
}

#[test]
fn foreign_objects_are_left_alone_and_reported() {
    let mut bench = Bench::new();
    bench.set(Enforcement::Enforcing, &[(1, Role::Active)]);
    bench.settle();
    let sa = *bench.sas().iter().find(|id| id.dst == address(1).ip()).unwrap();
    bench.reconciler.kernel().sas.remove(&sa);
    bench.reconciler.kernel().add_foreign_sa(sa);
    let foreign = bench.reconciler.kernel().foreign();
    let report = bench.run();
    assert!(report.findings.contains(&Finding::ForeignSa(sa)) && report.receivable.is_empty());
    assert_eq!(bench.reconciler.kernel().foreign(), foreign);
}

#[test]
fn probe_policies_take_esp_alone() {
    let mut bench = Bench::new();
    bench.settle();
    let probes: Vec<_> = bench.reconciler.kernel().policies.iter().filter(|(id, _)| id.is_probe()).collect();
    assert_eq!(probes.len(), 8, "two ports, two directions, two peers");
    let esp = |action| matches!(action, Some(PolicyAction::Esp(_)));
    assert!(probes.iter().all(|(id, policy)| esp(policy.action) && matches!(id.traffic, Traffic::Probe(_))));
}

#[test]
fn what_is_pinned_is_of_the_active_generation_in_every_phase_that_sends() {
    let ring_of = |bench: &Bench| -> Arc<KeyRing> { bench.input.ring.clone() };
    let mut bench = Bench::new();
    bench.settle();
    assert!(ring_of(&bench).active().is_some() && bench.sends_with(2).is_some());
    bench.set(Enforcement::Permissive, &[(1, Role::Retiring)]);
    bench.run();
    assert_eq!(bench.sends_with(2), None, "on the way to off, pods are sent to in the clear");
    assert_eq!(bench.sas().len(), 4, "and what still comes is received");
}
