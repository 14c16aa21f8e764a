use secureoverlay_agent_core::xfrm::Net;
use secureoverlay_agent_kernel::{RouteTo, Switches, Way};

use super::*;

const LOCAL: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

/// A ring up to its generations.
const HEAD: &str = "version: 1\nrevision: 1\nackId: 0f3c9b1e-8d1f-4c57-9b43-5a9f3f1f2b60\nsettings: {enforcement: Auto, \
                    cipherSuite: aes128gcm8, rotation: {interval: 12h, minimumInterval: 5m, historyLimit: 10}, \
                    deletionPolicy: Disable}\n";

fn addr(last: u8) -> IpAddr {
    [192, 0, 2, last].into()
}

fn link(index: u32, name: &str, mtu: u32, kind: Option<&str>, addresses: &[IpAddr]) -> Link {
    let (name, kind, addresses) = (name.into(), kind.map(Into::into), addresses.into());
    Link { index, name, mtu, kind, remote: None, up: true, addresses, switches: Switches::default() }
}

fn ipip(index: u32, name: &str, mtu: u32) -> Link {
    link(index, name, mtu, Some("ipip"), &[])
}

/// As kube-router makes them.
fn to_peer(index: u32, name: &str, mtu: u32, peer: u8) -> Link {
    Link { remote: Some(addr(peer)), ..ipip(index, name, mtu) }
}

fn route(oif: u32, mtu: Option<u32>) -> (IpAddr, RouteTo) {
    (addr(2), RouteTo { oif, gateway: None, prefsrc: None, mtu, unicast: true })
}

/// A route to pods; a gateway of 0 is none.
fn way(third: u8, gateway: u8, oif: u32, mtu: Option<u32>) -> Way {
    let to = Net { addr: [10, 77, third, 0].into(), prefix: 26 };
    Way { to, oif, gateway: (gateway > 0).then(|| addr(gateway)), mtu }
}

fn ring(suites: &[&str]) -> KeyRing {
    let generation = |(at, suite): (usize, &&str)| {
        let key = if suite.contains("256") {
            "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
        } else {
            "AAECAwQFBgcICQoLDA0ODw=="
        };
        let (id, role) = (at + 1, ["active", "staged"][at]);
        format!(
            "- {{id: {id}, uid: 0f3c9b1e-8d1f-4c57-9b43-5a9f3f1f2b6{id}, role: {role}, suite: {suite}, traffic: ipip, \
             identities: announced, key: {key}, spiSeed: EBESExQVFhcYGRobHB0eHw==, createdAt: 2026-11-20T03:00:00Z, roleSince: 2026-11-20T03:05:00Z}}\n"
        )
    };
    let generations: String = suites.iter().enumerate().map(generation).collect();
    let document = format!("{HEAD}enforcement: permissive\ngenerations:\n{generations}");
    KeyRing::parse(document.as_bytes()).unwrap()
}

/// With eth0 of 1500 bytes.
fn seen(links: &[Link], ways: &[Way]) -> Facts {
    let links = [&[link(2, "eth0", 1500, None, &[LOCAL])], links].concat();
    let network = surroundings::Facts { links, ways: ways.into(), ..surroundings::Facts::default() };
    Facts::new(&network, LOCAL, &Neighbours::from([(addr(2), "b"), (addr(3), "c")]))
}

fn facts(tunnel: u32) -> Facts {
    seen(&[ipip(3, "tunl0", tunnel)], &[way(2, 2, 3, None)])
}

fn finding(facts: &Facts) -> Finding {
    Finding::new(facts, &ring(&["aes128gcm8"])).unwrap()
}

#[test]
fn the_message_says_what_to_do() {
    let cramped = finding(&facts(1480)).advised(&MtuSetting::FelixConfiguration);
    assert!(!cramped.valid() && cramped.needs_advice());
    let text = cramped.to_string();
    for part in [
        "the MTU 1480 of tunl0 is too large",
        "at most 1452",
        "eth0 with MTU 1500",
        "MKE's rule 1452",
        "limit 1454",
        r#"kubectl patch felixconfiguration default --type merge --patch '{"spec":{"ipipMTU":1452}}'"#,
        "keep their MTU",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let fits = finding(&facts(1452)).advised(&MtuSetting::FelixConfiguration);
    assert!(fits.valid() && !fits.needs_advice() && !fits.to_string().contains("kubectl"));
}

#[test]
fn tunnels_of_other_plugins_need_no_calico_command() {
    let facts = seen(&[to_peer(5, "tun-2", 1480, 2)], &[way(2, 0, 5, None)]);
    let finding = finding(&facts).advised(&MtuSetting::FelixConfiguration);
    assert!(!finding.valid() && !finding.needs_advice());
    let text = finding.to_string();
    assert!(text.contains("1480 of tun-2") && text.contains("not Calico's"), "{text}");
    assert!(!text.contains("kubectl"), "{text}");
}

#[test]
fn the_largest_overhead_in_the_ring_counts() {
    let finding = Finding::new(&facts(1452), &ring(&["aes128gcm8", "aes256gcm16"])).unwrap();
    assert_eq!((finding.valid(), finding.bound.accepted()), (false, 1444));
    assert_eq!(
        Finding::new(&facts(1480), &KeyRing::parse(format!("{HEAD}enforcement: off\n").as_bytes()).unwrap()),
        None
    );
}

#[test]
fn the_devices_that_routes_to_pods_lead_into_are_judged() {
    let tunl0 = ipip(3, "tunl0", 1480);
    let (tun_2, tun_3) = (to_peer(5, "tun-2", 1440, 2), to_peer(6, "tun-3", 1460, 3));
    let (elsewhere, down) = (to_peer(7, "vpn", 9000, 99), Link { up: false, ..ipip(8, "tunl9", 9000) });
    let all = [&tunl0, &tun_2, &tun_3, &elsewhere, &down].map(Clone::clone);
    let default = Way { to: Net { addr: [0, 0, 0, 0].into(), prefix: 0 }, ..way(0, 2, 3, None) };
    for (what, links, ways, expected) in [
        (
            "Calico: blocks by the next hop",
            &all[..1],
            vec![way(2, 2, 3, None), way(3, 3, 3, None)],
            "1480 of tunl0",
        ),
        (
            "kube-router: tunl0 is idle",
            &all[..],
            vec![way(2, 0, 5, None), way(3, 0, 6, None)],
            "1460 of tun-3, 1440 of tun-2",
        ),
        ("one route alone", &all[..], vec![way(2, 0, 5, None)], "1440 of tun-2"),
        (
            "a route's MTU is smaller",
            &all[..1],
            vec![way(2, 2, 3, Some(1440))],
            "1440 of the routes over tunl0",
        ),
        ("or larger", &all[1..2], vec![way(2, 0, 5, Some(1480))], "1480 of the routes over tun-2"),
        ("or the same", &all[..1], vec![way(2, 2, 3, Some(1480))], "1480 of tunl0"),
        (
            "the largest of a device counts",
            &all[..1],
            vec![way(2, 2, 3, Some(1440)), way(3, 3, 3, None)],
            "1480 of tunl0",
        ),
        ("in any order", &all[..1], vec![way(2, 2, 3, None), way(3, 3, 3, Some(1440))], "1480 of tunl0"),
        // Neither other networks' routes nor those that are not for pods.
        (
            "a tunnel to no peer",
            &all[..],
            vec![way(2, 0, 5, None), way(9, 0, 7, None), way(8, 99, 3, None)],
            "1440 of tun-2",
        ),
        ("a default route", &all[..], vec![way(2, 0, 5, None), default], "1440 of tun-2"),
        ("around the tunnel", &all[..2], vec![way(2, 0, 5, None), way(3, 3, 2, None)], "1440 of tun-2"),
        (
            "no routes yet",
            &all[..2],
            vec![],
            "1480 of tunl0 (no route to other nodes' pods uses it yet), 1440 of tun-2 (no route to other nodes' pods uses \
             it yet)",
        ),
        ("no tunnel", &[], vec![way(3, 3, 2, None)], ""),
        ("none that is up", &all[4..], vec![], ""),
    ] {
        let tunnels = seen(links, &ways).tunnels;
        let text: Vec<String> = tunnels.iter().map(ToString::to_string).collect();
        assert_eq!(text.join(", "), expected, "{what}");
    }
}

#[test]
fn every_device_without_room_is_named_the_largest_first() {
    let links: Vec<Link> = (0..4).map(|n| to_peer(10 + n, &format!("tun-{n}"), 1450 + 10 * n, 2)).collect();
    let ways: Vec<Way> = (0..4).map(|n| way(n, 0, 10 + u32::from(n), None)).collect();
    let text = finding(&seen(&links, &ways)).to_string();
    assert!(text.starts_with("the MTU 1480 of tun-3, 1470 of tun-2, 1460 of tun-1 is too large"), "{text}");

    let links: Vec<Link> = (0..200).map(|n| to_peer(10 + n, &format!("tun-{n:03}"), 1480, 2)).collect();
    let ways: Vec<Way> = (0..200).map(|n| way(n, 0, 10 + u32::from(n), None)).collect();
    let text = finding(&seen(&links, &ways)).to_string();
    assert!(text.contains("1480 of tun-019 and 180 more devices is too large"), "{text}");
}

#[test]
fn the_smallest_way_out_counts() {
    let links = [
        link(1, "lo", 65536, None, &[]),
        link(2, "eth0", 1500, None, &[LOCAL]),
        link(3, "eth1", 9000, None, &[]),
        ipip(4, "tunl0", 1440),
    ];
    let with = |routes: &[(IpAddr, RouteTo)]| {
        let (links, routes) = (links.to_vec(), routes.to_vec());
        let network = surroundings::Facts { links, routes, ..surroundings::Facts::default() };
        Facts::new(&network, LOCAL, &Neighbours::new()).external
    };
    let measured = |interface: &str, mtu| Some(Measured { interface: interface.into(), mtu });
    assert_eq!(with(&[route(3, None)]), measured("eth0", 1500));
    assert_eq!(with(&[route(3, Some(1400))]), measured("eth1", 1400));
    // Neither a route into the tunnel itself nor one that leads nowhere says anything.
    let nowhere = (addr(2), RouteTo { unicast: false, ..route(3, Some(100)).1 });
    assert_eq!(with(&[route(4, None), nowhere, route(99, None)]), measured("eth0", 1500));
    assert_eq!(Facts::new(&surroundings::Facts::default(), LOCAL, &Neighbours::new()), Facts::default());
}
