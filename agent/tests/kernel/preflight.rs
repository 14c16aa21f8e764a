//! What lets traffic past the policies, as the kernel shows it, and the trial SA of `check`.

use std::{fs, io};

use secureoverlay_agent::{
    cli::check::{Trial, try_suite},
    network::{
        measure::look_around,
        surroundings::{Neighbours, Pods, Surroundings, overruling},
    },
};
use secureoverlay_agent_core::{
    kernel::Kernel,
    xfrm::{Direction, Op, PolicyAction, PolicyId},
};
use secureoverlay_agent_kernel::XfrmSocket;
use secureoverlay_keyring::suite::Suite;

use crate::{
    namespace::Nodes,
    objects::{add, all_done, outbound, policy},
};

/// What the node shows of itself and its peer b.
fn seen() -> Surroundings {
    let facts = look_around([Nodes::B].into_iter()).unwrap();
    assert_eq!((facts.unread.as_deref(), facts.routes.len()), (None, 1));
    Surroundings::new(&facts, Some(Nodes::A), &Neighbours::from([(Nodes::B, "b")]), &Pods::Guessed)
}

fn set(interface: &str, name: &str, value: u8) {
    fs::write(format!("/proc/sys/net/ipv4/conf/{interface}/{name}"), value.to_string()).unwrap();
}

#[test]
fn sysctls_are_seen_where_they_matter() {
    let nodes = Nodes::new();
    nodes.a.enter(|| {
        let well = seen();
        assert!(well.blockers().is_empty(), "{well:?}");
        for (interface, name, matters) in [
            ("eth0", "disable_xfrm", true),
            ("eth0", "disable_policy", true),
            ("all", "disable_xfrm", true),
            ("all", "disable_policy", true),
            ("tunl0", "disable_xfrm", false),
            ("tunl0", "disable_policy", false),
        ] {
            set(interface, name, 1);
            let found = seen().switches;
            assert_eq!(found.len(), usize::from(matters), "{interface} {name}: {found:?}");
            assert!(found.iter().all(|text| text.contains(&format!("{interface}/{name}"))), "{found:?}");
            set(interface, name, 0);
        }
        assert_eq!(seen(), well);
    });
}

#[test]
fn routes_around_the_tunnel_are_seen_and_other_sources() {
    let nodes = Nodes::new();
    // As with ipipMode: CrossSubnet; one of many ways; and what is not for pods of b.
    nodes.a.ip("route add 10.78.2.0/24 via 192.0.2.2 dev eth0");
    nodes.a.ip("route add 10.79.2.0/24 nexthop via 192.0.2.2 dev eth0 nexthop via 192.0.2.77 dev eth0");
    nodes.a.ip("route add 10.80.2.0/24 via 192.0.2.77 dev eth0");
    nodes.a.ip("route add 10.81.2.0/24 via 192.0.2.2 dev eth0 table 77");
    nodes.a.ip("route add blackhole 10.82.2.0/24");
    nodes.a.ip("route add default via 192.0.2.2 dev eth0");
    nodes.a.enter(|| {
        let found = seen();
        assert_eq!((found.coverage.covered, found.coverage.uncovered.len()), (1, 1), "{found:?}");
        let text = found.coverage.uncovered.first().unwrap().to_string();
        for part in ["10.78.2.0/24 on b (192.0.2.2)", "10.79.2.0/24", "by eth0"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(found.sources.is_empty(), "{found:?}");
    });
    nodes.a.ip("address add 192.0.2.99/32 dev lo");
    nodes.a.ip("route add 192.0.2.2/32 dev eth0 src 192.0.2.99");
    nodes.a.enter(|| {
        let found = seen();
        assert_eq!(found.sources.len(), 1, "{found:?}");
        assert!(found.sources.first().unwrap().contains("takes the source 192.0.2.99"), "{found:?}");
    });
}

#[test]
fn policies_of_others_are_seen_where_they_come_first() {
    let nodes = Nodes::new();
    for other in [
        "src 0.0.0.0/0 dst 0.0.0.0/0 dir out priority 100",
        "src 192.0.2.0/24 dst 192.0.2.0/24 proto 4 dir in priority 24256",
        // None of these comes first for the tunnel.
        "src 192.0.2.1/32 dst 0.0.0.0/0 dir out priority 30000",
        "src 0.0.0.0/0 dst 0.0.0.0/0 proto tcp dir in priority 1",
        "src 0.0.0.0/0 dst 0.0.0.0/0 dir in priority 1 mark 7",
        "src 0.0.0.0/0 dst 0.0.0.0/0 dir out priority 1 if_id 7",
        "src 198.51.100.0/24 dst 0.0.0.0/0 dir out priority 1",
        "src 0.0.0.0/0 dst 0.0.0.0/0 dir fwd priority 1",
    ] {
        nodes.a.ip(&format!("xfrm policy add {other}"));
    }
    nodes.a.enter(|| {
        let mut kernel = XfrmSocket::open().unwrap();
        all_done(kernel.apply(&[add(Nodes::A, Nodes::B, 0x1000)]));
        let ours = [
            outbound(Nodes::A, Nodes::B, 0x1000),
            policy(Direction::In, Nodes::B, Nodes::A, PolicyAction::Esp(None)),
        ];
        all_done(kernel.apply(&ours.map(Op::AddPolicy)));
        let pairs: Vec<PolicyId> = ours.map(|policy| policy.id).into();
        let found = overruling(&kernel.dump().unwrap().policies, &pairs.into_iter());
        let texts: Vec<&String> = found.iter().collect();
        assert_eq!(texts.len(), 2, "{texts:?}");
        assert!(texts[0].contains("in 192.0.2.0/24 → 192.0.2.0/24, protocol 4, priority 24256"), "{texts:?}");
        assert!(texts[1].contains("out 0.0.0.0/0 → 0.0.0.0/0, any protocol, priority 100"), "{texts:?}");
    });
}

#[test]
fn a_trial_leaves_nothing_and_touches_nothing() {
    let nodes = Nodes::new();
    nodes.a.enter(|| {
        let mut kernel = XfrmSocket::open().unwrap();
        all_done(kernel.apply(&[add(Nodes::A, Nodes::B, 0x1000)]));
        let before = kernel.dump().unwrap();
        for suite in Suite::ALL {
            let random = |bytes: &mut [u8]| {
                bytes.fill(7);
                io::Result::Ok(())
            };
            assert_eq!(try_suite(&mut kernel, &before, suite, random), Trial::Taken, "{suite}");
        }
        assert_eq!(kernel.dump().unwrap(), before);
    });
}
