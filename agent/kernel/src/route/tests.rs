use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::{prelude::*, sample::Index};
use secureoverlay_agent_core::xfrm::Net;

use super::{
    link::{addresses_request, links_request},
    routes::{route_request, ways_request},
    *,
};
use crate::switches::Switches;

/// The bytes that hexadecimal digits spell; spaces are for the reader.
fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(&String::from_iter(pair), 16).unwrap()).collect()
}

// Messages of Linux 7.2 on a little-endian machine; of the link, attributes that the parser does not read are left out.

/// A tunnel device that is up.
fn tunnel() -> Vec<u8> {
    hex(concat!(
        "0000 0003 03000000 c1000100 00000000", // ifinfomsg: ARPHRD_TUNNEL, index, flags
        "0a00 0300 74756e6c30 000000",          // IFLA_IFNAME "tunl0", padded
        "0500 1000 00 000000",                  // IFLA_OPERSTATE, padded
        "0800 0400 ac050000",                   // IFLA_MTU 1452
        "7400 1200",                            // IFLA_LINKINFO
        "0900 0100 69706970 00000000",          // IFLA_INFO_KIND "ipip", padded
        "6400 0200 08000100 00000000 08000200 00000000 08000300 00000000 05000400 00000000 05000500 00000000",
        "05000900 00000000 05000a00 00000000 08001400 00000000 06000f00 00000000 06001100 00000000",
        "06001200 00000000 06001000 00000000", // IFLA_INFO_DATA
        "0400 3e80",                           // IFLA_DEVLINK_PORT, flagged as nested, empty
    ))
}

/// `192.0.2.1 peer 192.0.2.2`.
fn address_with_peer() -> Vec<u8> {
    hex(concat!(
        "02 20 80 00 06000000",        // ifaddrmsg: AF_INET, /32, permanent, global, index
        "0800 0100 c0000202",          // IFA_ADDRESS: the other end
        "0800 0200 c0000201",          // IFA_LOCAL
        "0900 0300 6574683900 000000", // IFA_LABEL "eth9", padded
        "0800 0800 80000000",          // IFA_FLAGS
        "1400 0600 ffffffffffffffff a9000000 a9000000", // IFA_CACHEINFO
    ))
}

/// `198.18.0.1 via 192.0.2.2 src 192.0.2.1 mtu 1300`.
fn route() -> Vec<u8> {
    hex(concat!(
        "02 20 00 00 fe 00 00 01 00020000", // rtmsg: AF_INET, /32, table main, RTN_UNICAST, cloned
        "0800 0f00 fe000000",               // RTA_TABLE
        "0800 0100 c6120001",               // RTA_DST
        "0800 0400 06000000",               // RTA_OIF
        "0800 0700 c0000201",               // RTA_PREFSRC
        "0800 0500 c0000202",               // RTA_GATEWAY
        "0c00 0800 0800 0200 14050000",     // RTA_METRICS: RTAX_MTU 1300
        "0800 1900 00000000",               // RTA_UID
    ))
}

fn v4(last: u8) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, last).into()
}

#[test]
fn the_kernels_messages_read_as_what_they_say() {
    let link = Link {
        index: 3,
        name: "tunl0".to_owned(),
        mtu: 1452,
        kind: Some("ipip".to_owned()),
        remote: None,
        up: true,
        addresses: Vec::new(),
        switches: Switches::default(),
    };
    assert_eq!(parse_link(&tunnel()), Ok(link));
    let mut to_peer = tunnel();
    let at = to_peer.windows(8).position(|window| window == hex("08000300 00000000")).unwrap();
    to_peer[at + 4..at + 8].copy_from_slice(&[192, 0, 2, 2]); // IFLA_IPTUN_REMOTE
    assert_eq!(parse_link(&to_peer).map(|link| link.remote), Ok(Some(v4(2))));
    assert_eq!(parse_address(&address_with_peer()), Ok(Some((6, v4(1)))));
    let expected =
        RouteTo { oif: 6, gateway: Some(v4(2)), prefsrc: Some(v4(1)), mtu: Some(1300), unicast: true };
    assert_eq!(parse_route(&route()), Ok(expected));
}

/// A route of the main table to 10.77.2.0/24 with these attributes.
fn way(attributes: &str) -> Vec<u8> {
    let header = "02 18 00 00 fe 04 00 01 00000000"; // rtmsg: AF_INET, /24, main, static, universe, RTN_UNICAST
    hex(&[header, "0800 0f00 fe000000", "0800 0100 0a4d0200", attributes].concat()) // RTA_TABLE, RTA_DST
}

/// By 192.0.2.2 and by 192.0.2.3.
const HOPS: &str = concat!(
    "2400 0900",                              // RTA_MULTIPATH
    "1000 00 00 06000000 0800 0500 c0000202", // rtnexthop: length, flags, weight, index; RTA_GATEWAY
    "1000 00 00 07000000 0800 0500 c0000203",
);

/// The ways of a route of the main table.
fn main_ways(payload: &[u8]) -> Vec<Way> {
    let ways = parse_ways(payload).unwrap();
    assert!(ways.iter().all(|(table, _)| *table == MAIN_TABLE), "{ways:?}");
    ways.into_iter().map(|(_, way)| way).collect()
}

/// The route by 192.0.2.2 in another table.
fn single_in(table: &str) -> Vec<u8> {
    let header = "02 18 00 00 fc 04 00 01 00000000"; // RT_TABLE_COMPAT: the number is in the attribute
    hex(&[header, "0800 0f00", table, "0800 0100 0a4d0200 0800 0500 c0000202 0800 0400 06000000"].concat())
}

#[test]
fn ways_are_routes_of_all_tables_but_that_of_local_addresses() {
    let to = Net { addr: [10, 77, 2, 0].into(), prefix: 24 };
    let single = way("0800 0500 c0000202  0800 0400 06000000"); // RTA_GATEWAY, RTA_OIF
    let by_b = Way { to, oif: 6, gateway: Some(v4(2)), mtu: None };
    assert_eq!(main_ways(&single), [by_b]);
    let by_c = Way { oif: 7, gateway: Some(v4(3)), ..by_b };
    assert_eq!(main_ways(&way(HOPS)), [by_b, by_c]);
    let metrics = "0c00 0800 0800 0200 64050000"; // RTA_METRICS: RTAX_MTU 1380
    let both = [by_b, by_c].map(|way| Way { mtu: Some(1380), ..way });
    assert_eq!(main_ways(&way(&[HOPS, metrics].concat())), both);
    let default = hex("02 00 00 00 fe 03 00 01 00000000  0800 0500 c0000202  0800 0400 06000000");
    let everywhere = Net { addr: Ipv4Addr::UNSPECIFIED.into(), prefix: 0 };
    assert_eq!(main_ways(&default), [Way { to: everywhere, ..by_b }]);

    let direct = Way { gateway: None, ..by_b };
    assert_eq!(main_ways(&way("0800 0400 06000000")), [direct], "directly on the link");
    let hop = "0c00 0900  0800 00 00 06000000"; // RTA_MULTIPATH; rtnexthop without attributes
    assert_eq!(main_ways(&way(hop)), [direct]);
    let via_ipv6 = way("1600 1200 0a00 00000000000000000000000000000001 0000  0800 0400 06000000"); // RTA_VIA
    assert_eq!(main_ways(&via_ipv6), [direct], "a next hop of IPv6: around every tunnel");
    let mut blackhole = single.clone();
    blackhole[7] = 6;
    let block = Way { oif: 0, gateway: None, mtu: None, ..by_b };
    assert_eq!(main_ways(&blackhole), [block], "a block of this node's pods");
    let mut unreachable = single.clone();
    unreachable[7] = 7;
    assert_eq!(main_ways(&unreachable), []);
    assert_eq!(parse_ways(&single_in("ff000000")), Ok(vec![]), "addresses of this node");
    assert_eq!(parse_ways(&single_in("a0860100")), Ok(vec![(100_000, by_b)]));
    for bad in ["1000 0900 1000 00 00 06000000 0800", "0c00 0900 0700 00 00 06000000", "0800 0900 0800 00 00"]
    {
        assert!(parse_ways(&way(bad)).is_err(), "{bad}");
    }
}

#[test]
fn what_is_absent_is_left_out() {
    let mut down = tunnel();
    down[8] = 0;
    down.truncate(44);
    let link = parse_link(&down).unwrap();
    assert_eq!((link.up, link.kind, link.mtu), (false, None, 1452));

    let loopback = hex("0a 80 80 fe 01000000  1400 0100 00000000000000000000000000000001");
    assert_eq!(parse_address(&loopback), Ok(Some((1, Ipv6Addr::LOCALHOST.into()))));
    assert_eq!(
        parse_address(&hex("11 00 80 00 01000000  0600 0100 0203 0000")),
        Ok(None),
        "neither IPv4 nor IPv6"
    );

    let blackhole = hex("02 20 00 00 fe 00 00 06 00000000");
    let nowhere = RouteTo { oif: 0, gateway: None, prefsrc: None, mtu: None, unicast: false };
    assert_eq!(parse_route(&blackhole), Ok(nowhere));
}

#[test]
fn odd_answers_are_errors() {
    let header = "0000 0100 03000000 c1000100 00000000";
    let name = "0800 0300 65746800";
    let mtu = "0800 0400 dc050000";
    let read = |parts: &[&str]| parse_link(&hex(&parts.concat())).map_err(|error| error.to_string());
    assert!(read(&[header, name, mtu]).is_ok());
    for (parts, says) in [
        (vec!["0000 0100 03000000"], "malformed"),
        (vec![header, mtu], "link 3 has no name"),
        (vec![header, name], "link 3 has no MTU"),
        (vec![header, name, "0600 0400 dc05 0000"], "malformed"),
        (vec![header, name, mtu, "0300 0500"], "malformed"),
        (vec![header, name, mtu, "ff00 0500 00000000"], "malformed"),
        (vec![header, name, mtu, "0c00 1200 0900 0100 69706970"], "malformed"),
        (vec!["0000 0100 ffffffff c1000100 00000000", name, mtu], "link number -1"),
    ] {
        let error = read(&parts).unwrap_err();
        assert!(error.contains(says), "{parts:?}: {error}");
    }
    assert_eq!(read(&[header, "0400 0300", mtu]).unwrap().name, "");
}

#[test]
fn requests_are_what_the_kernel_takes() {
    assert_eq!(links_request(), [0; 16]);
    assert_eq!(addresses_request(), [0; 8]);
    assert_eq!(
        route_request(v4(2)),
        hex("02 20 00 00 00 00 00 00 00000000  0800 0100 c0000202"),
        "rtmsg: AF_INET, /32; RTA_DST"
    );
    assert_eq!(
        route_request(Ipv6Addr::LOCALHOST.into()),
        hex("0a 80 00 00 00 00 00 00 00000000  1400 0100 00000000000000000000000000000001"),
        "rtmsg: AF_INET6, /128; RTA_DST"
    );
    assert_eq!(ways_request(), hex("02 00 00 00 00 00 00 00 00000000"), "rtmsg: AF_INET");
}

#[test]
fn the_loopback_is_as_everywhere() {
    let mut socket = LinkSocket::open().unwrap();
    let links = socket.links().unwrap();
    let lo = links.iter().find(|link| link.name == "lo").expect("every namespace has lo");
    assert_eq!((lo.index, lo.mtu, &lo.kind), (1, 65536, &None));
    // Unlike everything else it is born outside of IPsec.
    let switches = Switches { disable_xfrm: Some(true), disable_policy: Some(true) };
    assert_eq!(lo.switches, switches);
    // Whatever routes there are here, the dump comes to its end.
    assert!(socket.ways().unwrap().iter().all(|way| way.gateway.is_none_or(|gateway| gateway.is_ipv4())));
    if lo.up {
        assert!(lo.addresses.contains(&Ipv4Addr::LOCALHOST.into()), "{lo:?}");
        let route = socket.route_to(Ipv4Addr::LOCALHOST.into()).unwrap().unwrap();
        assert_eq!((route.oif, route.unicast), (lo.index, false));
    }
}

fn read_all(bytes: &[u8]) {
    let _ = (parse_link(bytes), parse_address(bytes), parse_route(bytes), parse_ways(bytes));
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
        read_all(&bytes);
    }

    #[test]
    fn any_attributes_are_read_without_panic(tail: Vec<u8>, kind in 0..32_u16, fixed in 8..17_usize) {
        let mut bytes = vec![0; fixed];
        bytes.extend((tail.len() as u16 + 4).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(&tail);
        read_all(&bytes);
    }

    #[test]
    fn damaged_messages_are_read_without_panic(at: Index, value: u8, cut: Index) {
        for mut bytes in [tunnel(), address_with_peer(), route(), way(HOPS)] {
            let at = at.index(bytes.len());
            bytes[at] = value;
            bytes.truncate(cut.index(bytes.len() + 1));
            read_all(&bytes);
        }
    }
}
