use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn addr(n: u8) -> IpAddr {
    [192, 0, 2, n].into()
}

fn uid(n: u8) -> Uid {
    Uid::from_random([n; 16])
}

fn peers(all: &[u8]) -> BTreeMap<IpAddr, Uid> {
    all.iter().map(|&n| (addr(n), uid(n))).collect()
}

/// Nodes that probe each other over a network that a test can cut.
struct Net {
    now: Instant,
    begun: Instant,
    nodes: BTreeMap<u8, Probing>,
    /// From whom to whom nothing arrives.
    cut: Vec<(u8, u8)>,
    nonce: u8,
    /// Sender, receiver and time of each ping.
    pings: Vec<(u8, u8, Duration)>,
}

impl Net {
    fn new(all: &[u8]) -> Self {
        let now = Instant::now();
        let mut nodes = BTreeMap::new();
        for &n in all {
            let mut probing = Probing::new(addr(n));
            let others: Vec<u8> = all.iter().copied().filter(|&other| other != n).collect();
            probing.probe(&peers(&others), now);
            nodes.insert(n, probing);
        }
        Self { now, begun: now, nodes, cut: Vec::new(), nonce: 0, pings: Vec::new() }
    }

    fn number(addr: IpAddr) -> u8 {
        let IpAddr::V4(addr) = addr else { panic!("{addr} is none of ours") };
        addr.octets()[3]
    }

    fn passes(&self, from: u8, to: u8) -> bool {
        !self.cut.contains(&(from, to))
    }

    /// Lets time pass; packets take none.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let all: Vec<u8> = self.nodes.keys().copied().collect();
            for from in all {
                let node = self.nodes.get_mut(&from).unwrap();
                node.expire(self.now);
                if let Some(to) = node.due(self.now) {
                    self.nonce = self.nonce.wrapping_add(1);
                    let ping = node.ping(to, [self.nonce; NONCE_LEN], self.now);
                    let to = Self::number(to);
                    self.pings.push((from, to, self.now - self.begun));
                    self.deliver(from, to, ping);
                }
            }
            let wake = self.nodes.values().filter_map(Probing::wake_at).min().unwrap_or(end);
            if wake > end {
                break;
            }
            // What is due now is done in the next turn.
            self.now = self.now.max(wake);
        }
        self.now = end;
    }

    fn deliver(&mut self, from: u8, to: u8, packet: Packet) {
        if !self.passes(from, to) {
            return;
        }
        let Some(receiver) = self.nodes.get_mut(&to) else { return };
        if let Received::Answer(pong) = receiver.receive(addr(from), &packet, self.now)
            && self.passes(to, from)
        {
            let taken = self.nodes.get_mut(&from).unwrap().receive(addr(to), &pong, self.now);
            assert_eq!(taken, Received::Taken);
        }
    }

    fn verdict(&self, of: u8, about: u8) -> Option<bool> {
        self.nodes[&of].verdicts().get(&uid(about)).copied()
    }
}

#[test]
fn an_answer_makes_a_peer_reachable_and_it_is_asked_again_every_minute() {
    let mut net = Net::new(&[1, 2]);
    assert_eq!(net.verdict(1, 2), None);
    net.pass(Duration::ZERO);
    assert_eq!((net.verdict(1, 2), net.verdict(2, 1)), (Some(true), Some(true)));
    net.pass(3 * SELDOM + SECOND);
    let times: Vec<Duration> = net.pings.iter().filter(|ping| ping.0 == 1).map(|ping| ping.2).collect();
    assert_eq!(times, [0, 1, 2, 3].map(|n| n * SELDOM));
}

#[test]
fn three_unanswered_pings_make_it_unreachable_and_it_is_tried_every_five_seconds() {
    let mut net = Net::new(&[1, 2]);
    net.cut = vec![(1, 2), (2, 1)];
    net.pass(MISSES * TIMEOUT - Duration::from_millis(1));
    assert_eq!(net.verdict(1, 2), None, "two answers are missing, the third may still come");
    net.pass(Duration::from_millis(2));
    assert_eq!(net.verdict(1, 2), Some(false));
    net.pass(3 * OFTEN);
    let times: Vec<u64> = net.pings.iter().filter(|ping| ping.0 == 1).map(|ping| ping.2.as_secs()).collect();
    assert_eq!(times, [0, 2, 4, 9, 14, 19]);
    net.cut.clear();
    net.pass(OFTEN);
    assert_eq!((net.verdict(1, 2), net.verdict(2, 1)), (Some(true), Some(true)), "it heals");
}

#[test]
fn one_way_is_not_enough_and_a_single_loss_is_no_verdict() {
    let mut net = Net::new(&[1, 2, 3]);
    net.cut = vec![(2, 1)];
    net.pass(10 * SECOND);
    // Neither gets an answer: 1's are lost on the way back, 2's pings on the way there.
    assert_eq!((net.verdict(1, 2), net.verdict(2, 1)), (Some(false), Some(false)));
    assert_eq!((net.verdict(1, 3), net.verdict(2, 3)), (Some(true), Some(true)));

    let mut net = Net::new(&[1, 2]);
    net.pass(SELDOM - SECOND);
    net.cut = vec![(1, 2), (2, 1)];
    net.pass(4 * SECOND);
    net.cut.clear();
    net.pass(2 * SECOND);
    assert_eq!((net.verdict(1, 2), net.verdict(2, 1)), (Some(true), Some(true)));
    assert_eq!(net.pings.iter().filter(|ping| ping.0 == 1).count(), 4, "it is asked again without pause");
}

#[test]
fn a_ping_from_an_unreachable_peer_is_answered_and_returned_at_once() {
    let now = Instant::now();
    let mut probing = Probing::new(addr(1));
    probing.probe(&peers(&[2]), now);
    let mut at = now;
    for _ in 0..MISSES {
        assert_eq!(probing.due(at), Some(addr(2)));
        probing.ping(addr(2), [1; NONCE_LEN], at);
        at += TIMEOUT;
        probing.expire(at);
    }
    assert_eq!((probing.verdicts(), probing.due(at)), ([(uid(2), false)].into(), None));
    let answer = probing.receive(addr(2), &packet(PING, &[7; NONCE_LEN]), at);
    assert_eq!(answer, Received::Answer(packet(PONG, &[7; NONCE_LEN])), "as long as what was asked");
    assert_eq!(probing.due(at), Some(addr(2)));
}

#[test]
fn only_the_right_answer_from_a_peer_counts() {
    let now = Instant::now();
    let mut probing = Probing::new(addr(1));
    probing.probe(&peers(&[2, 3]), now);
    let nonce = [9; NONCE_LEN];
    let ping = probing.ping(addr(2), nonce, now);
    let pong = packet(PONG, &nonce);
    let mut malformed: Vec<Vec<u8>> = (0..6)
        .map(|at| {
            let mut bytes = pong.to_vec();
            bytes[at] ^= 0x40;
            bytes
        })
        .collect();
    malformed.extend([vec![], pong[..LEN - 1].to_vec(), [&pong[..], &[0]].concat()]);
    malformed.push(packet(PONG, &[8; NONCE_LEN]).to_vec());
    for bytes in malformed {
        assert_eq!(probing.receive(addr(2), &bytes, now), Received::Ignored, "{bytes:?}");
    }
    assert_eq!(probing.receive(addr(3), &pong, now), Received::Ignored, "another peer's answer");
    assert_eq!(probing.receive(addr(4), &ping, now), Received::Ignored, "a ping from nobody we know");
    assert!(probing.verdicts().is_empty());
    assert_eq!(probing.receive(addr(2), &pong, now), Received::Taken);
    assert_eq!(probing.receive(addr(2), &pong, now), Received::Ignored, "an answer counts once");
    assert_eq!(probing.verdicts(), [(uid(2), true)].into());
}

#[test]
fn who_leaves_is_forgotten_and_who_takes_an_address_begins_anew() {
    let mut net = Net::new(&[1, 2, 3]);
    net.pass(SECOND);
    let now = net.now;
    let node = net.nodes.get_mut(&1).unwrap();
    node.probe(&[(addr(2), uid(2)), (addr(3), uid(33))].into(), now);
    assert_eq!(node.verdicts(), [(uid(2), true)].into());
    node.probe(&BTreeMap::new(), now);
    assert_eq!((node.verdicts(), node.wake_at(), node.due(now)), (Verdicts::new(), None, None));
    assert_eq!(node.receive(addr(2), &packet(PING, &[1; NONCE_LEN]), now), Received::Ignored);
}

#[test]
fn pings_are_paced_whoever_is_due() {
    let mut probing = Probing::new(addr(100));
    let now = Instant::now();
    probing.probe(&peers(&(101..=250).chain(1..100).collect::<Vec<u8>>()), now);
    let (mut at, mut order) = (now, Vec::new());
    while at < now + SECOND {
        if let Some(to) = probing.due(at) {
            probing.ping(to, [0; NONCE_LEN], at);
            order.push(Net::number(to));
        }
        at += Duration::from_millis(1);
    }
    assert_eq!(order.len(), 100);
    assert_eq!(order[..3], [101, 102, 103], "from its own address on");
    assert_eq!(probing.wake_at(), Some(now + SECOND));
}

proptest! {
    #[test]
    fn nothing_that_comes_is_answered_with_more_bytes(
        bytes in prop::collection::vec(any::<u8>(), 0..40), from in 1_u8..5, ping: bool,
    ) {
        let now = Instant::now();
        let mut probing = Probing::new(addr(1));
        probing.probe(&peers(&[2, 3]), now);
        let mut sent = bytes;
        if ping {
            sent.splice(..0, packet(PING, &[0; NONCE_LEN])[..6].iter().copied());
        }
        if let Received::Answer(answer) = probing.receive(addr(from), &sent, now) {
            prop_assert_eq!(answer.len(), sent.len());
            prop_assert!((2..=3).contains(&from));
        }
        prop_assert!(probing.verdicts().is_empty());
    }
}
