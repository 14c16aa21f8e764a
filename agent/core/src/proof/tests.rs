use rand::{SeedableRng, rngs::StdRng};

use super::*;
use crate::{
    pair::{Offer, PairPlan},
    testing::{address, uid},
};

const PIN: u32 = 0x1000;
const CANDIDATE: u32 = 0x2000;

fn pair(peer: u8) -> PairId {
    PairId { src: address(1), dst: address(peer) }
}

/// Node 1, whose peers have SAs in the kernel: pinned, and candidates.
fn report(peers: &[u8], pinned: bool, candidate: Option<u32>) -> ReconcileReport {
    let planned = |peer: u8| PlannedPair {
        peer: format!("node-{peer}"),
        plan: PairPlan { pin: pinned.then_some(PIN), candidate, offer: Offer::default() },
        offered: [PIN, CANDIDATE].into(),
        claims: 1,
    };
    let sa = |peer: u8, spi| SaId { dst: address(peer).ip(), spi };
    ReconcileReport {
        pairs: peers.iter().map(|peer| (pair(*peer), planned(*peer))).collect(),
        probed: peers.iter().map(|peer| pair(*peer)).collect(),
        pins: peers.iter().filter(|_| pinned).map(|peer| (pair(*peer), PIN)).collect(),
        sas: peers.iter().flat_map(|peer| [sa(*peer, PIN), sa(*peer, CANDIDATE)]).collect(),
        inbound: peers.iter().map(|peer| (address(*peer).ip(), PIN)).collect(),
        ..ReconcileReport::default()
    }
}

struct Bench {
    tracker: ProofTracker,
    now: Time,
    rng: StdRng,
}

impl Bench {
    fn new(report: &ReconcileReport) -> Self {
        let now = Time::from_secs(1000);
        let mut tracker = ProofTracker::default();
        tracker.handle_report(report, now);
        Self { tracker, now, rng: StdRng::seed_from_u64(1) }
    }

    /// Lets the time pass as the tracker asks for, until a ping leaves; `None` after an hour.
    fn ping(&mut self) -> Option<Ping> {
        let until = self.now + Duration::from_secs(3600);
        while self.now < until {
            self.tracker.handle_timeout(self.now);
            if let Some(ping) = self.tracker.poll_ping(self.now, &mut self.rng, |_| Some(1)).unwrap() {
                return Some(ping);
            }
            self.now = self.tracker.poll_timeout()?.max(self.now + Duration::from_millis(1));
        }
        None
    }

    fn answer(&mut self, ping: &Ping) -> bool {
        let answer = Probe::parse(&ping.payload).unwrap().answer().unwrap().to_bytes();
        self.tracker.handle_packet(ping.pair.dst.ip(), ping.port, &answer, self.now, |_| Some(2)).1
    }

    /// A ping of a peer comes.
    fn receive(&mut self, peer: u8, nonce: u32) -> Received {
        let mut bytes = [0; NONCE_LEN];
        bytes[..4].copy_from_slice(&nonce.to_be_bytes());
        let ping = Probe { kind: ProbeKind::Ping, spi: PIN, nonce: bytes };
        let from = address(peer).ip();
        self.tracker.handle_packet(from, PINNED_PORT, &ping.to_padded(0), self.now, |_| Some(2)).0
    }
}

#[test]
fn large_ping_follows_the_small_one_and_waits_for_room() {
    let mut bench = Bench::new(&report(&[2], false, Some(CANDIDATE)));
    bench.tracker.set_tunnel_mtu(Some(1400));
    bench.tracker.set_room(false);
    let small = bench.ping().unwrap();
    assert!(small.payload.len() < 100 && !bench.answer(&small), "a small one proves nothing");
    assert!(bench.tracker.is_settled(bench.now));
    assert_eq!(bench.ping(), None, "a large one would not leave");
    bench.tracker.set_room(true);
    let large = bench.ping().unwrap();
    assert_eq!(large.payload.len(), 1392);
    assert!(bench.answer(&large) && bench.ping().is_none());
}

#[test]
fn way_that_is_too_narrow_is_named_after_three_large_pings() {
    let mut bench = Bench::new(&report(&[2, 3], false, Some(CANDIDATE)));
    bench.tracker.set_tunnel_mtu(Some(1400));
    for _ in 0..12 {
        let ping = bench.ping().unwrap();
        if ping.payload.len() < 100 || ping.pair == pair(3) {
            bench.answer(&ping);
        }
    }
    assert_eq!(bench.tracker.too_narrow().collect::<Vec<_>>(), ["node-2"]);
    bench.tracker.set_room(false);
    assert_eq!(bench.tracker.too_narrow().count(), 0, "that is this node's own tunnel");
}

#[test]
fn answers_are_limited_to_500_a_second() {
    let mut bench = Bench::new(&report(&[2, 3], true, None));
    let answered = |bench: &mut Bench, from: u32| {
        let count =
            (from..from + 600).filter(|n| matches!(bench.receive(2, *n), Received::Answer(_))).count();
        bench.now += Duration::from_secs(1);
        count
    };
    assert_eq!(answered(&mut bench, 0), 500);
    assert_eq!(answered(&mut bench, 1000), 500);
}

#[test]
fn dead_sa_is_told_once_and_only_where_the_peer_lives() {
    let mut bench = Bench::new(&report(&[2, 3], true, None));
    let (mut told, begun) = (Vec::new(), bench.now);
    for n in 0..30 {
        bench.ping().unwrap();
        if n > 10 {
            bench.receive(2, n);
        }
        told.extend(bench.tracker.poll_dead(uid(1)).map(|peer| (peer, n)));
    }
    let unanswered: Vec<&str> = bench.tracker.all_unanswered().map(|(peer, _)| peer).collect();
    assert_eq!(unanswered, ["node-2", "node-3"]);
    assert!(bench.tracker.all_unanswered().all(|(_, since)| since > begun));
    assert!(matches!(&told[..], [(peer, n)] if peer == "node-2" && *n > 13), "{told:?}");
}

#[test]
fn agent_that_was_away_makes_no_peer_draw() {
    let mut bench = Bench::new(&report(&[2], true, None));
    // Its probes came before it went.
    bench.receive(2, 1);
    for _ in 0..6 {
        bench.ping().unwrap();
    }
    assert!(bench.tracker.unanswered(&pair(2)).is_some());
    // It is back, and pings first.
    bench.receive(2, 2);
    let ping = bench.ping().unwrap();
    bench.answer(&ping);
    assert_eq!((bench.tracker.poll_dead(uid(1)), bench.tracker.unanswered(&pair(2))), (None, None));
}

#[test]
fn pings_go_to_every_pair_in_order_of_their_time() {
    let peers: Vec<u8> = (2..200).collect();
    let mut bench = Bench::new(&report(&peers, true, None));
    let mut pinged = BTreeSet::new();
    let mut before = Time::ZERO;
    for _ in 0..peers.len() {
        let ping = bench.ping().unwrap();
        assert!(bench.now >= before && ping.port == PINNED_PORT);
        before = bench.now;
        bench.answer(&ping);
        pinged.insert(ping.pair);
    }
    assert_eq!(pinged.len(), peers.len());
    let begun = bench.now;
    assert!(bench.ping().is_some() && bench.now - begun > Duration::from_secs(60), "not before the re-check");
}

#[test]
fn operator_who_asks_has_the_pinned_sa_pinged_at_once_and_sees_the_answer() {
    let mut bench = Bench::new(&report(&[2], true, None));
    let (pair, asked) = (pair(2), bench.now);
    assert_eq!((bench.tracker.answered(&pair, PIN), bench.tracker.awaited(&pair)), (None, None));
    bench.tracker.recheck(pair, bench.now);
    let ping = bench.ping().unwrap();
    assert!(bench.now <= asked + Duration::from_millis(1) && ping.sa.spi == PIN, "{ping:?}");
    assert_eq!(bench.tracker.awaited(&pair), Some(bench.now));
    // One that asks again at once has to wait for the answer.
    bench.tracker.recheck(pair, bench.now);
    assert!(bench.tracker.poll_timeout().unwrap() > bench.now + MISSED);
    bench.answer(&ping);
    assert_eq!((bench.tracker.answered(&pair, PIN), bench.tracker.awaited(&pair)), (Some(bench.now), None));
    // What was answered is forgotten with its SA.
    bench
        .tracker
        .handle_report(&ReconcileReport { pins: BTreeMap::new(), ..report(&[2], false, None) }, bench.now);
    bench.tracker.recheck(pair, bench.now);
    assert_eq!((bench.tracker.awaited(&pair), bench.ping()), (None, None));
}
