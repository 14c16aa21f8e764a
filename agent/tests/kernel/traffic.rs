//! Packets between two nodes under our SAs.

use std::{
    net::UdpSocket,
    sync::{
        Barrier,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::net::sockopt;
use secureoverlay_agent_core::{
    kernel::Kernel,
    xfrm::{Direction, Op, Policy, PolicyAction, PolicyId},
};
use secureoverlay_agent_kernel::{XfrmSocket, parse_xfrm_stat};

use crate::{
    namespace::{Namespace, Nodes},
    objects::{add, all_done, outbound, policy},
};

const PORT: u16 = 7777;
const QUIET: Duration = Duration::from_millis(500);

/// Sends one packet from pod to pod.
pub fn send_one(from: &str, to: &str) {
    let socket = UdpSocket::bind((from, 0)).unwrap();
    // Whether it may leave is for the test to see.
    drop(socket.send_to(b"x", (to, PORT)));
}

fn counter(node: &Namespace, name: &str) -> u64 {
    node.enter(|| parse_xfrm_stat(&std::fs::read_to_string("/proc/thread-self/net/xfrm_stat").unwrap())[name])
}

/// Everything for A to B under `spi`: B receives and enforces, A sends.
fn encrypt(nodes: &Nodes, spi: u32) {
    nodes.b.enter(|| {
        let mut kernel = XfrmSocket::open().unwrap();
        all_done(kernel.apply(&[add(Nodes::A, Nodes::B, spi)]));
        let required = policy(Direction::In, Nodes::A, Nodes::B, PolicyAction::Esp(None));
        all_done(kernel.apply(&[Op::AddPolicy(required)]));
    });
    nodes.a.enter(|| {
        let mut kernel = XfrmSocket::open().unwrap();
        all_done(kernel.apply(&[add(Nodes::A, Nodes::B, spi)]));
        all_done(kernel.apply(&[Op::AddPolicy(outbound(Nodes::A, Nodes::B, spi))]));
    });
}

/// A socket at B's pod that waits [`QUIET`] at most, with room for a flood.
fn receiver() -> UdpSocket {
    let socket = UdpSocket::bind((Nodes::POD_B, PORT)).unwrap();
    socket.set_read_timeout(Some(QUIET)).unwrap();
    sockopt::set_socket_recv_buffer_size_force(&socket, 16 << 20).unwrap();
    socket
}

#[test]
fn packets_pass_encrypted_and_only_so() {
    let nodes = Nodes::new();
    encrypt(&nodes, 0x1000);
    let receiver = nodes.b.enter(receiver);
    let mut buffer = [0; 16];

    for _ in 0..100 {
        nodes.a.enter(|| send_one(Nodes::POD_A, Nodes::POD_B));
        receiver.recv(&mut buffer).unwrap();
    }
    for node in [&nodes.a, &nodes.b] {
        let states = node.enter(|| XfrmSocket::open().unwrap().dump().unwrap().sas);
        assert_eq!((states.len(), states[0].packets), (1, 100));
        // The kernel counts the inner packet on the way out, of 20 + 8 + 1 bytes here, and more on the way in.
        assert!(states[0].bytes >= 100 * 29, "{states:?}");
    }

    nodes.a.enter(|| {
        let policy = outbound(Nodes::A, Nodes::B, 0x1000);
        all_done(XfrmSocket::open().unwrap().apply(&[Op::DeletePolicy(policy.id)]));
        send_one(Nodes::POD_A, Nodes::POD_B);
    });
    assert!(receiver.recv(&mut buffer).is_err(), "a packet in the clear was accepted");
    assert_eq!(counter(&nodes.b, "XfrmInTmplMismatch"), 1);
}

#[test]
fn a_policy_without_its_sa_and_a_block_let_nothing_out() {
    let nodes = Nodes::new();
    let receiver = nodes.b.enter(receiver);
    let mut buffer = [0; 16];
    nodes.a.enter(|| send_one(Nodes::POD_A, Nodes::POD_B));
    receiver.recv(&mut buffer).expect("without policies it passes in the clear");

    nodes.a.enter(|| {
        let mut kernel = XfrmSocket::open().unwrap();
        all_done(kernel.apply(&[Op::AddPolicy(outbound(Nodes::A, Nodes::B, 0x1000))]));
        send_one(Nodes::POD_A, Nodes::POD_B);
        let block = policy(Direction::Out, Nodes::A, Nodes::B, PolicyAction::Block);
        all_done(kernel.apply(&[Op::UpdatePolicy(block)]));
        send_one(Nodes::POD_A, Nodes::POD_B);
    });
    assert!(receiver.recv(&mut buffer).is_err(), "a packet left in the clear");
    assert_eq!((counter(&nodes.a, "XfrmOutNoStates"), counter(&nodes.a, "XfrmOutPolBlock")), (1, 1));
}

#[test]
fn probes_pass_as_esp_and_only_so_and_other_ports_as_before() {
    const PROBES: u16 = 9468;
    let nodes = Nodes::new();
    let probe = |direction, action| {
        let id = PolicyId::probe(direction, Nodes::A, Nodes::B, PROBES);
        Op::AddPolicy(Policy { id, action })
    };
    for (node, policy) in [
        (&nodes.b, probe(Direction::In, PolicyAction::Esp(None))),
        (&nodes.a, probe(Direction::Out, PolicyAction::Esp(Some(0x1000)))),
    ] {
        node.enter(|| {
            let mut kernel = XfrmSocket::open().unwrap();
            all_done(kernel.apply(&[add(Nodes::A, Nodes::B, 0x1000)]));
            all_done(kernel.apply(&[policy]));
        });
    }
    let bind = |at, port| {
        let socket = UdpSocket::bind((at, port)).unwrap();
        socket.set_read_timeout(Some(QUIET)).unwrap();
        socket
    };
    let (probes, others) = nodes.b.enter(|| (bind(Nodes::B, PROBES), bind(Nodes::B, PORT)));
    let send = || {
        nodes.a.enter(|| {
            let socket = bind(Nodes::A, PROBES);
            for port in [PROBES, PORT] {
                socket.send_to(b"x", (Nodes::B, port)).unwrap();
            }
        });
    };
    let carried = || nodes.b.enter(|| XfrmSocket::open().unwrap().dump().unwrap().sas[0].packets);
    let mut buffer = [0; 16];

    send();
    probes.recv(&mut buffer).unwrap();
    others.recv(&mut buffer).unwrap();
    assert_eq!(carried(), 1, "one came as ESP, the other in the clear");

    nodes.a.enter(|| {
        let id = PolicyId::probe(Direction::Out, Nodes::A, Nodes::B, PROBES);
        all_done(XfrmSocket::open().unwrap().apply(&[Op::DeletePolicy(id)]));
    });
    send();
    others.recv(&mut buffer).unwrap();
    assert!(probes.recv(&mut buffer).is_err(), "a probe in the clear was taken for proof");
    assert_eq!((carried(), counter(&nodes.b, "XfrmInTmplMismatch")), (1, 1));
}

/// Receives numbered packets until none comes for [`QUIET`] after `ended`, and returns how many of each number.
fn collect(socket: &UdpSocket, ended: &AtomicBool) -> Vec<u32> {
    let (mut counts, mut buffer) = (Vec::new(), [0; 16]);
    loop {
        match socket.recv(&mut buffer) {
            Ok(length) => {
                let number = u32::from_be_bytes(buffer[..length].try_into().unwrap()) as usize;
                counts.resize(counts.len().max(number + 1), 0);
                counts[number] += 1;
            }
            Err(_) if ended.load(Ordering::Relaxed) => return counts,
            Err(_) => {}
        }
    }
}

#[test]
fn switching_the_spi_under_traffic_loses_nothing() {
    const SWITCHES: u32 = 20;
    const PACKETS_BETWEEN: u32 = 1000;
    let nodes = Nodes::new();
    encrypt(&nodes, 0x1000);
    let (ready, switched, sent) = (Barrier::new(3), AtomicBool::new(false), AtomicU32::new(0));
    let ended = AtomicBool::new(false);
    let deadline = Instant::now() + Duration::from_secs(60);
    let pause = || {
        let target = sent.load(Ordering::Relaxed) + PACKETS_BETWEEN;
        while sent.load(Ordering::Relaxed) < target {
            assert!(Instant::now() < deadline, "only {} packets sent", sent.load(Ordering::Relaxed));
            thread::yield_now();
        }
    };

    let counts = thread::scope(|scope| {
        let counts = scope.spawn(|| {
            nodes.b.join_thread();
            let socket = receiver();
            ready.wait();
            collect(&socket, &ended)
        });
        scope.spawn(|| {
            nodes.a.join_thread();
            let socket = UdpSocket::bind((Nodes::POD_A, 0)).unwrap();
            ready.wait();
            while !switched.load(Ordering::Relaxed) && Instant::now() < deadline {
                let number = sent.load(Ordering::Relaxed);
                socket.send_to(&number.to_be_bytes(), (Nodes::POD_B, PORT)).unwrap();
                sent.store(number + 1, Ordering::Relaxed);
            }
            ended.store(true, Ordering::Relaxed);
        });
        ready.wait();
        let mut b = nodes.b.enter(|| XfrmSocket::open().unwrap());
        let mut a = nodes.a.enter(|| XfrmSocket::open().unwrap());
        for switch in 1..=SWITCHES {
            pause();
            let spi = 0x1000 + switch;
            all_done(b.apply(&[add(Nodes::A, Nodes::B, spi)]));
            all_done(a.apply(&[add(Nodes::A, Nodes::B, spi)]));
            all_done(a.apply(&[Op::UpdatePolicy(outbound(Nodes::A, Nodes::B, spi))]));
        }
        pause();
        switched.store(true, Ordering::Relaxed);
        // Every generation of SAs was in use.
        let states = b.dump().unwrap().sas;
        assert_eq!(states.len(), 1 + SWITCHES as usize);
        let idle: Vec<_> =
            states.iter().filter(|state| state.packets == 0).map(|state| state.id.spi).collect();
        assert!(idle.is_empty(), "never used: {idle:x?}");
        counts.join().unwrap()
    });

    let sent = sent.load(Ordering::Relaxed);
    let received = counts.iter().filter(|count| **count > 0).count();
    let duplicated = counts.iter().filter(|count| **count > 1).count();
    let dropped = counter(&nodes.b, "XfrmInNoStates") + counter(&nodes.a, "XfrmOutNoStates");
    eprintln!("{SWITCHES} switches: sent {sent}, received {received}, duplicated {duplicated}");
    assert!(sent >= SWITCHES * PACKETS_BETWEEN);
    assert_eq!((received, duplicated, dropped), (sent as usize, 0, 0));
}
