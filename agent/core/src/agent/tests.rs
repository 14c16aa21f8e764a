//! The agent as its shell drives it, on a model of the kernel.

use rand::{SeedableRng, rngs::StdRng};
use secureoverlay_keyring::{
    keyring::{Enforcement, KeyRing, Role},
    probe::Probe,
};
use zeroize::Zeroizing;

use super::*;
use crate::{
    announcer::{Announcement, Request, WriteResult},
    fake_kernel::FakeKernel,
    identity::{Identity, LocalIdentity},
    journal::{Journal, NoStore, Record},
    peers::{Content, NodeLookup, PeerObject},
    reconcile::{Reconciler, SaLimits},
    ring_cache::{Installation, RingInput},
    testing::{OwnedKernel, address, identity, peer_object, ring, uid},
};

/// Node 1, whose peer is node 2.
struct Bench {
    agent: Agent<NoStore>,
    reconciler: Reconciler<OwnedKernel, NoStore>,
    now: Time,
    rng: StdRng,
}

const NODE: u8 = 50;

impl Bench {
    fn new() -> Self {
        let kernel = FakeKernel { local: Some(address(1).ip()), ..FakeKernel::default() };
        Self::with(identity(1), false, OwnedKernel(kernel))
    }

    fn with(identity: Identity, drawn: bool, kernel: OwnedKernel) -> Self {
        let settings = AgentSettings {
            debounce: Duration::ZERO,
            resync: Duration::from_secs(60),
            skew: Duration::from_secs(4),
            needs_room: true,
        };
        let start = Start {
            name: "node-1".to_owned(),
            identity: LocalIdentity::Announced(identity),
            state: PersistedState::default(),
            gone: BTreeSet::new(),
            drawn,
        };
        let journal = Journal::new(Record::default(), NoStore);
        let mut bench = Self {
            agent: Agent::new(start, NoStore, settings),
            reconciler: Reconciler::new(kernel, journal, SaLimits::default()),
            now: Time::from_secs(100),
            rng: StdRng::seed_from_u64(1),
        };
        let network = LocalNetwork {
            tunnel_addresses: vec![address(1)],
            all_addresses: [address(1)].into(),
            ..LocalNetwork::default()
        };
        bench.input(Event::Installation(Installation::Unreadable));
        bench.input(Event::Network(network));
        bench.input(Event::PeerList(vec![peer_object(2, &[(2, 2)])]));
        bench
    }

    fn input(&mut self, event: Event) {
        self.agent.handle_event(event, self.now);
    }

    /// The source shows a ring with this `ackId`.
    fn show(&mut self, ack_id: u8, generations: &[(u8, Role)]) {
        let shown = KeyRing { ack_id: uid(ack_id), ..ring(Enforcement::Enforcing, generations) };
        self.input(Event::Ring(RingInput::Document(Zeroizing::new(shown.to_yaml().as_bytes().to_vec()))));
    }

    /// Half a second passes. What the agent asks for; its kernel is brought to what it wants.
    fn step(&mut self) -> Vec<Request> {
        self.now += Duration::from_millis(500);
        self.agent.handle_timeout(self.now);
        if let Some(target) = self.agent.poll_target(self.now) {
            let report = self.reconciler.run(&target).unwrap();
            self.agent.handle_reconciled(Some(report), self.now);
        }
        let mut requests = Vec::new();
        while let Some(request) = self.agent.poll_request(self.now, &mut self.rng).unwrap() {
            requests.push(request);
        }
        requests
    }

    /// What it asks for within five seconds, one after the other, each answered as the API server would.
    fn serve(&mut self) -> Vec<&'static str> {
        let mut all = Vec::new();
        for _ in 0..10 {
            for request in self.step() {
                match request {
                    Request::GetOwnNode => {
                        all.push("node");
                        self.input(Event::OwnNode(NodeLookup::Found(uid(NODE))));
                    }
                    Request::GetRing => {
                        all.push("ring");
                        self.input(Event::RingRead(true));
                    }
                    Request::Write(Announcement { spec, .. }) => {
                        all.push("write");
                        let object = PeerObject {
                            name: "node-1".to_owned(),
                            content: Ok(Content::Announced(spec)),
                            ..peer_object(1, &[])
                        };
                        self.input(Event::Announced(WriteResult::Written(object)));
                    }
                }
            }
        }
        all
    }

    /// The next that it asks for, within five seconds.
    fn asks(&mut self) -> Vec<Request> {
        (0..10).map(|_| self.step()).find(|requests| !requests.is_empty()).unwrap_or_default()
    }

    /// Pings all that is due. Peers answer the pings that `answers` is true for.
    fn ping(&mut self, answers: impl Fn(&Ping) -> bool) {
        while let Some(ping) = self.agent.poll_ping(self.now, &mut self.rng, |_| Some(1)).unwrap() {
            if answers(&ping) {
                let answer = Probe::parse(&ping.payload).unwrap().answer().unwrap().to_bytes();
                self.agent.handle_packet(ping.pair.dst.ip(), ping.port, &answer, self.now, |_| Some(2));
            }
            self.now += Duration::from_millis(2);
        }
    }

    fn notices(&self) -> Vec<&'static str> {
        self.agent.notices(self.now).into_iter().map(|(reason, _)| reason).collect()
    }

    fn acked(&self) -> Option<Uid> {
        self.agent.acknowledgement().map(|ack| ack.ack_id)
    }
}

#[test]
fn ring_is_read_by_quorum_before_new_entries_are_announced_and_no_other_write() {
    let mut bench = Bench::new();
    bench.show(1, &[(1, Role::Active)]);
    assert_eq!(bench.serve(), ["node", "ring", "write"]);
    let network = LocalNetwork {
        pod_networks: ["10.244.1.0/26".parse().unwrap()].into(),
        ..(*bench.agent.network).clone()
    };
    bench.input(Event::Network(network));
    assert_eq!(bench.serve(), ["write"], "the same entries");
    bench.now += Duration::from_secs(60);
    bench.input(Event::NewVmGeneration);
    assert_eq!(bench.serve(), ["ring", "write"]);
}

#[test]
fn peers_after_a_join_are_those_of_the_table() {
    let mut bench = Bench::new();
    bench.show(1, &[(1, Role::Active)]);
    bench.serve();
    let now = bench.now;
    for object in [peer_object(3, &[(3, 3)]), peer_object(3, &[(4, 4), (3, 3)]), peer_object(5, &[])] {
        bench.input(Event::PeerApplied(object));
        assert_eq!(*bench.agent.peers, bench.agent.table.snapshot(now));
    }
    assert_eq!(bench.agent.peers.by_name.len(), 2);
}

#[test]
fn ring_that_could_not_be_read_is_asked_for_again_and_nothing_is_written() {
    let mut bench = Bench::new();
    let mut asked = 0;
    for _ in 0..20 {
        for request in bench.step() {
            match request {
                Request::GetOwnNode => bench.input(Event::OwnNode(NodeLookup::Found(uid(NODE)))),
                Request::GetRing => {
                    asked += 1;
                    bench.input(Event::RingRead(false));
                }
                Request::Write(_) => panic!("written beside a ring that may be old"),
            }
        }
    }
    assert!((2..=5).contains(&asked), "{asked} times in ten seconds");
}

#[test]
fn new_ack_id_is_answered_once_the_node_was_asked_for() {
    let mut bench = Bench::new();
    bench.show(1, &[(1, Role::Active)]);
    bench.serve();
    bench.now += Duration::from_secs(60);
    bench.step();
    assert_eq!(bench.acked(), Some(uid(1)));
    bench.show(2, &[(1, Role::Active)]);
    assert_eq!(bench.asks(), [Request::GetOwnNode]);
    assert_eq!(bench.acked(), Some(uid(1)), "not before the answer");
    // Made anew under the living agent, while its objects live on.
    bench.input(Event::OwnNode(NodeLookup::Found(uid(NODE + 1))));
    assert_eq!(bench.acked(), Some(uid(2)));
    assert_eq!(bench.agent.acknowledgement().unwrap().node_uid, uid(NODE + 1));
    assert_eq!(bench.serve(), ["write"], "its EncryptionPeer belongs to the new Node");
    assert_eq!(bench.serve(), [""; 0], "nothing is asked for while nothing changes");
}

#[test]
fn new_ack_id_waits_while_the_node_can_not_be_asked_for() {
    let mut bench = Bench::new();
    bench.show(1, &[(1, Role::Active)]);
    bench.serve();
    bench.now += Duration::from_secs(60);
    bench.show(2, &[(1, Role::Active)]);
    for lookup in [NodeLookup::Failed, NodeLookup::NotFound] {
        assert_eq!(bench.asks(), [Request::GetOwnNode]);
        bench.input(Event::OwnNode(lookup));
        assert_ne!(bench.acked(), Some(uid(2)), "{lookup:?}");
    }
}

#[test]
fn flush_is_shown_for_ten_minutes_and_looked_at_at_once() {
    let mut bench = Bench::new();
    bench.show(1, &[(1, Role::Active)]);
    bench.serve();
    let shown =
        |bench: &Bench, now| bench.agent.notices(now).iter().any(|notice| notice.0 == "PoliciesFlushed");
    assert!(!shown(&bench, bench.now));
    bench.input(Event::PoliciesFlushed);
    assert!(bench.agent.poll_target(bench.now).is_some());
    assert!(shown(&bench, bench.now + Duration::from_secs(599)));
    assert!(!shown(&bench, bench.now + Duration::from_secs(600)));
}

#[test]
fn sas_beside_an_empty_directory_are_an_identity_that_was_lost() {
    let mut bench = Bench::new();
    bench.show(1, &[(1, Role::Active)]);
    bench.serve();
    let kernel = bench.reconciler.kernel().clone();
    for (drawn, who, expected) in
        [(false, identity(1), &[][..]), (true, identity(9), &["IdentityLost", "OrphanedSAs"])]
    {
        let mut bench = Bench::with(who, drawn, kernel.clone());
        bench.input(Event::PeerList(vec![peer_object(1, &[(1, 1)]), peer_object(2, &[(2, 2)])]));
        bench.show(1, &[(1, Role::Active)]);
        bench.step();
        assert_eq!(bench.notices(), expected, "drawn: {drawn}");
    }
    let mut booted = Bench::with(identity(9), true, OwnedKernel(FakeKernel::default()));
    booted.show(1, &[(1, Role::Active)]);
    booted.step();
    assert_eq!(booted.notices(), [""; 0], "a node that boots has lost nothing");
}

#[test]
fn pairs_that_are_too_narrow_or_stop_answering_are_named() {
    let mut bench = Bench::new();
    bench.show(1, &[(1, Role::Active)]);
    bench.input(Event::Network(LocalNetwork { tunnel_mtu: Some(1400), ..(*bench.agent.network).clone() }));
    bench.serve();
    for _ in 0..40 {
        bench.ping(|ping| ping.payload.len() < 100);
        bench.step();
    }
    assert_eq!(bench.notices(), ["LargePacketsUnanswered"]);
    for _ in 0..40 {
        bench.ping(|_| true);
        bench.step();
    }
    assert_eq!(bench.notices(), [""; 0]);
    assert_eq!(bench.agent.report().unwrap().pins.len(), 1);
    bench.now += Duration::from_secs(300);
    for _ in 0..1300 {
        bench.ping(|_| false);
        bench.step();
    }
    assert_eq!(bench.notices(), ["PairsUnanswered"]);
}

#[test]
fn more_addresses_than_can_be_announced_block() {
    let mut bench = Bench::new();
    bench.show(1, &[(1, Role::Active)]);
    bench.serve();
    let addresses: Vec<NodeAddress> = (10..15).map(address).collect();
    bench.input(Event::Network(LocalNetwork { tunnel_addresses: addresses, ..LocalNetwork::default() }));
    assert!(bench.agent.own_blockers().iter().any(|blocker| blocker.reason == "TooManyAddresses"));
}

#[test]
fn gateway_that_no_node_announces_is_reported_until_one_does() {
    let mut bench = Bench::new();
    bench.show(1, &[(1, Role::Active)]);
    let sources = [(address(2), address(1)), (address(3), address(1))].into();
    bench.input(Event::Network(LocalNetwork { sources, ..(*bench.agent.network).clone() }));
    bench.serve();
    bench.now += Duration::from_secs(60);
    bench.step();
    let gateways = &bench.agent.acknowledgement().unwrap().unknown_gateways;
    assert_eq!((gateways.count, &gateways.addresses), (1, &[address(3)].into()));
    assert_eq!(bench.notices(), ["GatewayUnknown"]);
    bench.input(Event::PeerApplied(peer_object(3, &[(3, 3)])));
    bench.step();
    bench.step();
    assert_eq!(bench.agent.acknowledgement().unwrap().unknown_gateways.count, 0);
    assert_eq!(bench.notices(), [""; 0]);
}

#[test]
fn node_without_peers_says_so() {
    let mut bench = Bench::new();
    bench.show(1, &[(1, Role::Active)]);
    bench.serve();
    bench.now += Duration::from_secs(60);
    bench.step();
    assert!(!bench.agent.acknowledgement().unwrap().no_peers);
    let mut alone = Bench::new();
    alone.input(Event::PeerList(Vec::new()));
    alone.show(1, &[(1, Role::Active)]);
    alone.serve();
    alone.now += Duration::from_secs(700);
    alone.step();
    alone.input(Event::PeerNode("node-2".to_owned(), NodeLookup::NotFound));
    alone.serve();
    assert!(alone.agent.acknowledgement().unwrap().no_peers);
}

#[test]
fn paths_tell_the_sa_in_use_its_generation_and_its_last_proof() {
    let mut bench = Bench::new();
    assert_eq!(bench.agent.paths("node-2"), None, "the kernel was not looked at");
    bench.show(1, &[(1, Role::Active)]);
    bench.serve();
    let (outbound, inbound) = bench.agent.paths("node-2").unwrap();
    assert!(
        outbound.len() == 1 && outbound[0].pin.is_none() && outbound[0].candidate.is_some(),
        "{outbound:?}"
    );
    assert!(inbound.len() == 1 && inbound[0].1.dst == address(1).ip(), "{inbound:?}");
    bench.ping(|_| true);
    let proven = bench.now;
    bench.serve();
    let (outbound, _) = bench.agent.paths("node-2").unwrap();
    let path = &outbound[0];
    assert!(path.there && path.pin.is_some() && !path.excluded && path.candidate.is_none(), "{path:?}");
    assert_eq!(path.generation, Some(bench.agent.applied_ring().unwrap().generations[0].id));
    assert!(path.answered.is_some_and(|at| at <= proven) && path.awaited.is_none(), "{path:?}");
    bench.agent.recheck("node-2", bench.now);
    bench.ping(|_| false);
    assert!(bench.agent.paths("node-2").unwrap().0[0].awaited.is_some());
    assert_eq!(bench.agent.paths("node-9"), Some((vec![], vec![])));
}
