//! Links and routes of the kernel.

use std::net::{IpAddr, Ipv4Addr};

use rustix::io::Errno;
use secureoverlay_agent_kernel::LinkSocket;

use crate::namespace::{Namespace, Nodes};

#[test]
fn tunnels_addresses_and_route_mtus_are_seen() {
    let nodes = Nodes::new();
    nodes.a.ip("link set eth0 mtu 1400");
    nodes.a.ip("address add 192.0.2.99/32 dev lo");
    nodes.a.ip("route add 198.18.0.0/16 via 192.0.2.2 mtu 1300 src 192.0.2.99");
    nodes.a.enter(|| {
        let mut socket = LinkSocket::open().unwrap();
        let links = socket.links().unwrap();
        let named = |name: &str| links.iter().find(|link| link.name == name).unwrap();
        let (tunnel, eth0) = (named("tunl0"), named("eth0"));
        assert_eq!((tunnel.kind.as_deref(), tunnel.mtu, tunnel.up), (Some("ipip"), 1452, true));
        assert_eq!(tunnel.addresses, [Nodes::POD_A.parse::<IpAddr>().unwrap()]);
        assert_eq!((eth0.kind.as_deref(), eth0.mtu, eth0.up), (Some("veth"), 1400, true));
        assert!(eth0.addresses.contains(&Nodes::A), "{eth0:?}");

        let direct = socket.route_to(Nodes::B).unwrap().unwrap();
        assert_eq!((direct.oif, direct.gateway, direct.prefsrc), (eth0.index, None, Some(Nodes::A)));
        assert_eq!((direct.mtu, direct.unicast), (None, true));

        let routed = socket.route_to(Ipv4Addr::new(198, 18, 0, 1).into()).unwrap().unwrap();
        assert_eq!((routed.oif, routed.gateway, routed.mtu), (eth0.index, Some(Nodes::B), Some(1300)));
        assert_eq!(routed.prefsrc, Some(Ipv4Addr::new(192, 0, 2, 99).into()));

        let pod = socket.route_to(Nodes::POD_B.parse().unwrap()).unwrap().unwrap();
        assert_eq!((pod.oif, pod.gateway), (tunnel.index, Some(Nodes::B)));

        let own = socket.route_to(Nodes::A).unwrap().unwrap();
        assert!(!own.unicast);
    });
}

#[test]
fn a_missing_route_is_an_answer() {
    Namespace::new().enter(|| {
        let refusal = LinkSocket::open().unwrap().route_to(Nodes::A).unwrap().unwrap_err();
        assert_eq!(refusal.errno, Errno::NETUNREACH);
    });
}
