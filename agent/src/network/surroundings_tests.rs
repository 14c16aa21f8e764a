use secureoverlay_agent_core::xfrm::{Net, PRIORITY_BLOCK};

use super::*;

const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

fn addr(last: u8) -> IpAddr {
    [192, 0, 2, last].into()
}

fn link(index: u32, name: &str, kind: Option<&str>, addresses: &[IpAddr]) -> Link {
    let (name, kind, addresses) = (name.into(), kind.map(Into::into), addresses.into());
    let switches = Switches { disable_xfrm: Some(false), disable_policy: Some(false) };
    Link { index, name, mtu: 1500, kind, remote: None, up: true, addresses, switches }
}

fn route(peer: u8, oif: u32, source: IpAddr) -> (IpAddr, RouteTo) {
    (addr(peer), RouteTo { oif, gateway: None, prefsrc: Some(source), mtu: None, unicast: true })
}

fn way(third: u8, gateway: u8, oif: u32) -> Way {
    Way {
        to: Net { addr: [10, 77, third, 0].into(), prefix: 24 },
        oif,
        gateway: Some(addr(gateway)),
        mtu: None,
    }
}

/// Node a with the peers b and c, as Calico sets it up.
fn facts() -> Facts {
    let out = Switches { disable_xfrm: Some(true), disable_policy: Some(true) };
    Facts {
        links: vec![
            Link { switches: out, ..link(1, "lo", None, &[]) },
            link(2, "eth0.7", None, &[LOCAL]),
            link(3, "tunl0", Some("ipip"), &[]),
            link(4, "cali1", Some("veth"), &[]),
        ],
        routes: vec![route(2, 2, LOCAL), route(3, 2, LOCAL)],
        ways: vec![way(2, 2, 3), way(3, 3, 3)],
        other_ways: vec![],
        all: Switches { disable_xfrm: Some(false), disable_policy: Some(false) },
        unread: None,
    }
}

fn seen(facts: &Facts) -> Surroundings {
    Surroundings::new(facts, Some(LOCAL), &Neighbours::from([(addr(2), "b"), (addr(3), "")]), &Pods::Guessed)
}

/// What leads around the tunnel, and how many routes lead into it.
fn around(found: &Surroundings) -> (BTreeSet<String>, usize) {
    (found.uncovered().into_iter().map(|(_, text)| text).collect(), found.coverage.covered)
}

#[track_caller]
fn only(found: &BTreeSet<String>, parts: &[&str]) {
    assert_eq!(found.len(), 1, "{found:?}");
    for part in parts {
        assert!(found.first().unwrap().contains(part), "{part}: {found:?}");
    }
}

#[test]
fn calicos_usual_way_has_no_obstacles() {
    let coverage = Coverage { covered: 2, ..Coverage::default() };
    let expected = Surroundings { coverage, ..Surroundings::default() };
    assert_eq!(seen(&facts()), expected);
    // Nor has a kernel that does not say.
    let mut silent = facts();
    silent.all = Switches::default();
    silent.links.iter_mut().for_each(|link| link.switches = Switches::default());
    let expected = Surroundings { unread: Some("no /proc".into()), ..expected };
    assert_eq!(seen(&Facts { unread: Some("no /proc".into()), ..silent }), expected);
}

#[test]
fn switches_count_where_the_tunnels_packets_pass() {
    let set = |at: usize, xfrm, policy| {
        let mut facts = facts();
        facts.links[at].switches = Switches { disable_xfrm: Some(xfrm), disable_policy: Some(policy) };
        facts
    };
    let run = "sysctl -w net/ipv4/conf/eth0.7/disable_xfrm=0";
    only(
        &seen(&set(1, true, false)).switches,
        &["eth0.7/disable_xfrm is set", "leave by it unencrypted", run],
    );
    only(&seen(&set(1, false, true)).switches, &["eth0.7/disable_policy is set", "let in by it"]);
    // In the clear a packet may come in anywhere, but it leaves only where the routes to peers lead.
    only(&seen(&set(3, true, true)).switches, &["cali1/disable_policy"]);
    let mut routed = set(3, true, false);
    routed.routes[1].1.oif = 4;
    only(&seen(&routed).switches, &["cali1/disable_xfrm"]);
    routed.routes[1].1.unicast = false;
    assert!(seen(&routed).switches.is_empty());
    // What is inside the tunnel is not ours, and nothing passes an interface that is down.
    assert!(seen(&set(2, true, true)).switches.is_empty());
    let mut down = set(1, true, true);
    down.links[1].up = false;
    assert!(seen(&down).switches.is_empty());
    assert!(
        Surroundings::new(&set(1, true, false), None, &Neighbours::new(), &Pods::Guessed).switches.len() == 1,
        "by its routes"
    );
}

#[test]
fn the_switches_of_all_count_for_each() {
    let all = |xfrm, policy| Facts {
        all: Switches { disable_xfrm: Some(xfrm), disable_policy: Some(policy) },
        ..facts()
    };
    only(&seen(&all(true, false)).switches, &["conf/all/disable_xfrm is set", "by every interface"]);
    only(&seen(&all(false, true)).switches, &["conf/all/disable_policy is set", "by every interface"]);
}

#[test]
fn packets_must_leave_with_the_tunnels_address() {
    let mut other = facts();
    other.routes[0].1.prefsrc = Some(addr(99));
    only(&seen(&other).sources, &["to b (192.0.2.2) takes the source 192.0.2.99", "address 192.0.2.1"]);
    // Without a tunnel address there is nothing to compare with, and a route to ourselves is none.
    assert!(Surroundings::new(&other, None, &Neighbours::new(), &Pods::Guessed).sources.is_empty());
    other.routes[0].1.unicast = false;
    assert!(seen(&other).sources.is_empty());
    let many = Facts { routes: (2..200).map(|peer| route(peer, 2, addr(99))).collect(), ..facts() };
    only(&seen(&many).sources, &["b (192.0.2.2), 192.0.2.3, 192.0.2.4 and 195 more peers takes"]);
}

#[test]
fn routes_around_the_tunnel_are_named() {
    let mut native = facts();
    native.ways[0].oif = 2;
    let found = seen(&native);
    let (texts, covered) = around(&found);
    only(&texts, &["10.77.2.0/24 on b (192.0.2.2)", "eth0.7 without a tunnel", "ipipMode: Always"]);
    assert_eq!(covered, 1);
    let details: BTreeSet<String> = found.blockers().into_iter().map(|blocker| blocker.detail).collect();
    assert_eq!(details, texts);
    let many: Vec<Way> = (0..100).map(|third| way(third, 3, 2)).chain([way(100, 2, 9)]).collect();
    let (texts, covered) = around(&seen(&Facts { ways: many, ..facts() }));
    assert_eq!((texts.len(), covered), (2, 0));
    let text = format!("{texts:?}");
    assert!(text.contains("and 97 more leaves by eth0.7") && text.contains("another device"), "{text}");
}

#[test]
fn announced_networks_are_judged_and_nothing_else() {
    let networks = |text: &str| BTreeSet::from([text.parse().unwrap()]);
    let own = networks("10.77.1.0/24");
    let peers = [
        ("b".to_owned(), networks("10.77.2.0/24").into()),
        ("gone".to_owned(), networks("10.77.9.0/24").into()),
    ]
    .into();
    let pods = Pods::Announced { own: &own, peers: &peers };
    let neighbours = Neighbours::from([(addr(2), "b"), (addr(3), "c")]);
    let judged = |facts: &Facts| around(&Surroundings::new(facts, Some(LOCAL), &neighbours, &pods));
    // A node may be the next hop of a network that holds no pods.
    let gateway = Facts { ways: vec![way(2, 2, 3), way(200, 3, 2)], ..facts() };
    assert_eq!(judged(&gateway), (BTreeSet::new(), 1));
    let mut vxlan = facts();
    vxlan.links.push(link(6, "vxlan.calico", Some("vxlan"), &[]));
    vxlan.ways[0] = Way { gateway: Some([10, 77, 2, 0].into()), ..way(2, 2, 6) };
    only(&judged(&vxlan).0, &["vxlan.calico by VXLAN", "10.77.2.0/24 on b"]);
    let by_rule = Facts { other_ways: vec![(1, way(2, 2, 2))], ..facts() };
    only(&judged(&by_rule).0, &["eth0.7 without a tunnel"]);
    only(&judged(&Facts { ways: vec![], ..facts() }).0, &["no route for the pods 10.77.2.0/24 on b"]);
}

#[test]
fn routes_that_are_not_for_pods_of_peers_do_not_matter() {
    let default = Way { to: Net { addr: [0, 0, 0, 0].into(), prefix: 0 }, ..way(2, 2, 2) };
    let to_node = Way { to: Net::host(addr(3)), ..way(2, 2, 2) };
    let elsewhere = way(9, 254, 2);
    let own_pods = Way { gateway: None, ..way(1, 0, 4) };
    let found = seen(&Facts { ways: vec![default, to_node, elsewhere, own_pods], ..facts() });
    assert_eq!(around(&found), (BTreeSet::new(), 0));
}

/// As kube-router sets it up.
#[test]
fn routes_without_a_next_hop_lead_to_the_tunnels_other_end() {
    let tunnel = |remote| Link { remote: Some(addr(remote)), ..link(5, "tun-3", Some("ipip"), &[]) };
    let direct = Way { gateway: None, ..way(3, 0, 5) };
    for (remote, tunnelled) in [(3, 1), (254, 0)] {
        let mut facts = Facts { ways: vec![direct], ..facts() };
        facts.links.push(tunnel(remote));
        let found = seen(&facts);
        assert_eq!(around(&found), (BTreeSet::new(), tunnelled), "{remote}");
    }
}

fn pair(direction: Direction) -> PolicyId {
    let (local, peer) = (Net::host(LOCAL), Net::host(addr(2)));
    match direction {
        Direction::In => PolicyId::tunnel(direction, peer, local),
        Direction::Out => PolicyId::tunnel(direction, local, peer),
    }
}

/// A foreign policy that covers everything.
fn wide(direction: Direction, priority: u32) -> ActualPolicy {
    let any = Net { addr: [0, 0, 0, 0].into(), prefix: 0 };
    let id = PolicyId::tunnel(direction, any, any);
    let owner = Owner::Foreign;
    ActualPolicy {
        id,
        index: 8,
        priority,
        protocol: 0,
        conditional: false,
        marked: false,
        owner,
        action: None,
    }
}

fn overruled(policy: ActualPolicy) -> BTreeSet<String> {
    overruling(&[policy], &[Direction::In, Direction::Out].map(pair).into_iter())
}

#[test]
fn a_policy_of_others_that_comes_first_is_named() {
    for direction in [Direction::In, Direction::Out] {
        for priority in [0, PRIORITY_PEER] {
            let parts = ["0.0.0.0/0", "any protocol", "with 192.0.2.2", "priority above 24256"];
            only(&overruled(wide(direction, priority)), &parts);
        }
        let network = Net { addr: [192, 0, 2, 0].into(), prefix: 24 };
        let id = PolicyId::tunnel(direction, network, network);
        only(&overruled(ActualPolicy { id, protocol: 4, ..wide(direction, 7) }), &["protocol 4, priority 7"]);
        // Ours can't be had then, whatever the priority.
        let same = ActualPolicy { id: pair(direction), protocol: 4, ..wide(direction, PRIORITY_BLOCK) };
        only(&overruled(same), &["comes before ours"]);
    }
}

#[test]
fn other_policies_do_not_matter() {
    let first = wide(Direction::Out, 0);
    let elsewhere = Net { addr: [198, 51, 100, 0].into(), prefix: 24 };
    for (policy, what) in [
        (wide(Direction::Out, PRIORITY_PEER + 1), "it comes after ours"),
        (ActualPolicy { owner: Owner::Ours, ..first }, "it is ours"),
        (ActualPolicy { protocol: 6, ..first }, "TCP"),
        (ActualPolicy { conditional: true, ..first }, "for marked packets"),
        (
            ActualPolicy {
                id: pair(Direction::Out),
                protocol: 4,
                marked: true,
                ..wide(Direction::Out, PRIORITY_BLOCK)
            },
            "beside ours by its mark, and behind it",
        ),
        (ActualPolicy { id: PolicyId { dst: elsewhere, ..first.id }, ..first }, "to another address"),
        (ActualPolicy { id: PolicyId { src: elsewhere, ..first.id }, ..first }, "from another address"),
        (ActualPolicy { id: pair(Direction::Out), ..wide(Direction::Out, PRIORITY_PEER + 1) }, "beside ours"),
    ] {
        assert_eq!(overruled(policy), BTreeSet::new(), "{what}");
    }
    let inward: Vec<PolicyId> = vec![pair(Direction::In)];
    assert_eq!(overruling(&[first], &inward.into_iter()), BTreeSet::new(), "the other direction");
}

#[test]
fn a_policy_of_others_where_a_block_has_to_be_is_named() {
    for id in blocks() {
        let there = ActualPolicy { id, protocol: 4, ..wide(Direction::In, PRIORITY_BLOCK + 1) };
        only(&overruled(there), &["turns all other plaintext away", "protocol 4"]);
        assert_eq!(overruled(ActualPolicy { protocol: 17, ..there }), BTreeSet::new());
    }
}
