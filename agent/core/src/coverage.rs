//! How the pods of other nodes are reached, and whether our policies cover those packets: judged from routes and devices
//! of this node's kernel and from the networks that peers announce.
//!
//! Only a route into a network of a peer's pods counts. It is covered if it leads into an IPIP device toward an address
//! that a peer announces: for that packet there is a policy. A network without a route of its own is *unrouted*: that is
//! not known to be covered.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use ipnet::IpNet;
use secureoverlay_keyring::peer::PodNetwork;

use crate::{JOINING, Time, agent::GATEWAY_UNKNOWN};

/// The routing table that is looked up without any rule of its own (`RT_TABLE_MAIN`).
pub const MAIN_TABLE: u32 = 254;
/// How some packets for pods leave is not known.
pub const COVERAGE_UNKNOWN: &str = "CoverageUnknown";
/// Of many, this many are named.
const EXAMPLES: usize = 3;

/// Networks of pods by the names of their nodes.
pub type PodNetworks = BTreeMap<String, PeerNetworks>;

/// The networks of a node's pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerNetworks {
    /// The networks.
    pub networks: BTreeSet<PodNetwork>,
    /// Its object is gone, so its routes may be gone as well. Those that are there still count.
    pub departed: bool,
}

impl From<BTreeSet<PodNetwork>> for PeerNetworks {
    fn from(networks: BTreeSet<PodNetwork>) -> Self {
        Self { networks, departed: false }
    }
}

/// A route, or one next hop of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Its table.
    pub table: u32,
    /// The destinations.
    pub to: IpNet,
    /// Number of the device; 0 where packets are dropped.
    pub device: u32,
    /// The next hop, if the destinations are not themselves on the link.
    pub gateway: Option<IpAddr>,
}

/// What a device does with what is routed into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Encapsulation {
    /// IP in IP: what our policies are for.
    Ipip,
    /// It leads to pods of this node.
    Local,
    /// UDP, RFC 7348.
    Vxlan,
    /// Encrypted, but not by this product.
    WireGuard,
    /// Another kind of tunnel.
    Other,
    /// None: the packet of the pod is what is sent.
    None,
}

impl Encapsulation {
    /// Of a device of this kind, as the kernel names it (`IFLA_INFO_KIND`).
    #[must_use]
    pub fn of_kind(kind: Option<&str>) -> Self {
        match kind {
            Some("ipip") => Self::Ipip,
            Some("bridge" | "veth") => Self::Local,
            Some("vxlan") => Self::Vxlan,
            Some("wireguard") => Self::WireGuard,
            Some("geneve" | "gre" | "gretap" | "sit" | "ip6tnl" | "tun") => Self::Other,
            _ => Self::None,
        }
    }

    const fn text(self) -> &'static str {
        match self {
            Self::Ipip => "by IPIP",
            Self::Local => "to pods of this node",
            Self::Vxlan => "by VXLAN",
            Self::WireGuard => "by WireGuard, which encrypts it, not SecureOverlay",
            Self::Other => "by another kind of tunnel",
            Self::None => "without a tunnel",
        }
    }

    const fn remedy(self) -> &'static str {
        match self {
            Self::WireGuard => {
                "Switch WireGuard off (FelixConfiguration, wireguardEnabled: false), or do not use SecureOverlay beside it"
            }
            Self::Vxlan | Self::None => "Set ipipMode: Always and vxlanMode: Never in Calico's IP pools",
            Self::Ipip | Self::Local | Self::Other => {
                "Let the CNI plugin reach pods of other nodes by IPIP (Calico: ipipMode: Always in the IP pools)"
            }
        }
    }
}

/// A device that routes lead into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// What it does.
    pub encapsulation: Encapsulation,
    /// The other end of a tunnel that has a fixed one.
    pub remote: Option<IpAddr>,
}

/// What the kernel shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteFacts {
    /// Routes of all tables.
    pub routes: BTreeSet<Route>,
    /// Tables that some rule leads to.
    pub tables: BTreeSet<u32>,
    /// Devices by number.
    pub devices: BTreeMap<u32, Device>,
}

/// Routes to pods that our policies do not cover, by one device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Uncovered {
    /// The device.
    pub device: String,
    /// What it does.
    pub encapsulation: Encapsulation,
    /// The networks, and whose they are.
    pub networks: BTreeSet<(IpNet, String)>,
}

impl fmt::Display for Uncovered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "traffic to the pods {} leaves by {} {}: SecureOverlay does not encrypt it. {}",
            Listed(&self.networks),
            self.device,
            self.encapsulation.text(),
            self.encapsulation.remedy()
        )
    }
}

/// The judgement.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Routes to pods that are covered.
    pub covered: usize,
    /// Those that are not.
    pub uncovered: BTreeSet<Uncovered>,
    /// Ends of tunnels to pods that no peer announces.
    pub unknown_gateways: BTreeSet<IpAddr>,
    /// Networks of peers' pods without a route of their own.
    pub unrouted: BTreeSet<(IpNet, String)>,
}

impl Coverage {
    /// Judges how the networks of `peers` are reached. `own` are this node's networks, `announced` the addresses that
    /// peers send from and are sent to at.
    #[must_use]
    pub fn new(
        facts: &RouteFacts,
        own: &BTreeSet<PodNetwork>,
        peers: &PodNetworks,
        announced: &BTreeSet<IpAddr>,
    ) -> Self {
        let mut coverage = Self::default();
        let mut uncovered: BTreeMap<&str, Uncovered> = BTreeMap::new();
        for (peer, PeerNetworks { networks, departed }) in peers {
            // What every node has, such as a bridge of its container runtime, is this node's own here.
            for network in networks.difference(own).map(PodNetwork::net) {
                let mut routed = false;
                for table in facts.tables.iter().chain([&MAIN_TABLE]).collect::<BTreeSet<_>>() {
                    for route in facts.leading_to(*table, network) {
                        routed |= route.to.prefix_len() > 0;
                        coverage.judge(facts, route, (network, peer), announced, &mut uncovered);
                    }
                }
                if !routed && !departed {
                    coverage.unrouted.insert((network, peer.clone()));
                }
            }
        }
        coverage.uncovered = uncovered.into_values().collect();
        coverage
    }

    fn judge<'f>(
        &mut self,
        facts: &'f RouteFacts,
        route: &Route,
        (network, peer): (IpNet, &str),
        announced: &BTreeSet<IpAddr>,
        uncovered: &mut BTreeMap<&'f str, Uncovered>,
    ) {
        // Dropped, or the way of everything else: that is no way to pods.
        if route.device == 0 || route.to.prefix_len() == 0 {
            return;
        }
        let device = facts.devices.get(&route.device);
        let (name, encapsulation) = device
            .map_or(("another device", Encapsulation::None), |device| (&device.name, device.encapsulation));
        // A node's uplink may be a bridge or a veth, too; pods of this node are reached without a next hop.
        let encapsulation = match encapsulation {
            Encapsulation::Local if route.gateway.is_some() => Encapsulation::None,
            other => other,
        };
        match encapsulation {
            Encapsulation::Local => {}
            Encapsulation::Ipip => {
                match route.gateway.or_else(|| device?.remote) {
                    Some(gateway) if announced.contains(&gateway) => self.covered += 1,
                    Some(gateway) => drop(self.unknown_gateways.insert(gateway)),
                    // Without a next hop the destination itself is the tunnel's other end.
                    None => drop(self.unrouted.insert((network, peer.to_owned()))),
                }
            }
            _ => {
                let found = uncovered.entry(name).or_insert_with(|| Uncovered {
                    device: name.to_owned(),
                    encapsulation,
                    networks: BTreeSet::new(),
                });
                found.networks.insert((network, peer.to_owned()));
            }
        }
    }

    /// Everything is known, and all of it is covered.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.findings().is_empty()
    }

    /// What keeps this node from guaranteeing encryption: a reason and what to say.
    #[must_use]
    pub fn findings(&self) -> Vec<(&'static str, String)> {
        let mut findings: Vec<(&'static str, String)> =
            self.uncovered.iter().map(|uncovered| ("PlaintextBypass", uncovered.to_string())).collect();
        if !self.unknown_gateways.is_empty() {
            let text = format!(
                "tunnels to pods lead to {}, which no node announces: packets to them are not encrypted. Check that the \
                 agent runs on those nodes, and which address the CNI plugin has for them",
                Listed(&self.unknown_gateways)
            );
            findings.push((GATEWAY_UNKNOWN, text));
        }
        if !self.unrouted.is_empty() {
            let text = format!(
                "there is no route for the pods {} but perhaps the default route: it is not known how their packets leave. \
                 See `ip route get` for an address of them, and whether the CNI plugin runs on both nodes",
                Listed(&self.unrouted)
            );
            findings.push((COVERAGE_UNKNOWN, text));
        }
        findings
    }
}

impl RouteFacts {
    /// The routes of a table by which packets to `network` leave: those inside it, and the most specific one around it.
    fn leading_to(&self, table: u32, network: IpNet) -> impl Iterator<Item = &Route> {
        let at = |to: IpNet| Route { table, to, device: 0, gateway: None };
        let last = Route { device: u32::MAX, ..at(network.broadcast().into()) };
        let inside = self.routes.range(at(network)..=last);
        let around = (0..=network.prefix_len()).rev().find_map(|prefix| {
            let to = IpNet::new(network.addr(), prefix).ok()?.trunc();
            let same = move |route: &&Route| (route.table, route.to) == (table, to);
            let mut found = self.routes.range(at(to)..).take_while(same).peekable();
            found.peek().is_some().then_some(found)
        });
        // The network's own route is inside as well.
        inside.chain(around.into_iter().flatten().filter(move |route| route.to != network))
    }
}

/// Since when it is not known how some packets leave. A node that joins announces its networks, and is announced, before
/// its routes are everywhere: that is no finding yet.
#[derive(Debug, Default)]
pub struct Settling {
    looked: bool,
    gateways: BTreeMap<IpAddr, Time>,
    networks: BTreeMap<(IpNet, String), Time>,
}

impl Settling {
    /// Leaves out what has been so for less than [`JOINING`]. What a process finds first counts at once.
    pub fn settle(&mut self, coverage: &mut Coverage, now: Time) {
        let first = !std::mem::replace(&mut self.looked, true);
        older(&mut self.gateways, &mut coverage.unknown_gateways, first, now);
        older(&mut self.networks, &mut coverage.unrouted, first, now);
    }
}

fn older<T: Ord + Clone>(since: &mut BTreeMap<T, Time>, found: &mut BTreeSet<T>, first: bool, now: Time) {
    since.retain(|it, _| found.contains(it));
    for it in found.iter() {
        since.entry(it.clone()).or_insert(if first { Time::ZERO } else { now });
    }
    found.retain(|it| since[it] + JOINING <= now);
}

/// The first of many, and how many more there are.
struct Listed<'l, T>(&'l BTreeSet<T>);

impl fmt::Display for Listed<'_, (IpNet, String)> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.0.iter().take(EXAMPLES).map(|(network, peer)| format!("{network} on {peer}"));
        list(f, names, self.0.len())
    }
}

impl fmt::Display for Listed<'_, IpAddr> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        list(f, self.0.iter().take(EXAMPLES).map(ToString::to_string), self.0.len())
    }
}

fn list(f: &mut fmt::Formatter<'_>, names: impl Iterator<Item = String>, all: usize) -> fmt::Result {
    f.write_str(&names.collect::<Vec<_>>().join(", "))?;
    match all.saturating_sub(EXAMPLES) {
        0 => Ok(()),
        more => write!(f, " and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn networks(texts: &[&str]) -> BTreeSet<PodNetwork> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn route(table: u32, to: &str, device: u32, gateway: Option<&str>) -> Route {
        Route { table, to: net(to), device, gateway: gateway.map(|text| text.parse().unwrap()) }
    }

    /// Device 1 is an uplink, 2 tunl0, 3 a bridge, 4 VXLAN, 5 WireGuard.
    fn facts(routes: &[Route], tables: &[u32]) -> RouteFacts {
        let device = |name: &str, kind| Device {
            name: name.to_owned(),
            encapsulation: Encapsulation::of_kind(kind),
            remote: None,
        };
        let devices = [
            (1, device("eth0", None)),
            (2, device("tunl0", Some("ipip"))),
            (3, device("br0", Some("bridge"))),
            (4, device("vxlan.calico", Some("vxlan"))),
            (5, device("wireguard.cali", Some("wireguard"))),
        ];
        RouteFacts {
            routes: routes.iter().copied().collect(),
            tables: tables.iter().copied().collect(),
            devices: devices.into(),
        }
    }

    fn judged(routes: &[Route], tables: &[u32]) -> Coverage {
        judged_of(routes, tables, false)
    }

    fn judged_of(routes: &[Route], tables: &[u32], departed: bool) -> Coverage {
        let networks_of_b = networks(&["10.244.1.0/26", "172.17.0.0/16"]);
        let peers = [("b".to_owned(), PeerNetworks { networks: networks_of_b, departed })].into();
        let own = networks(&["10.244.0.0/26", "172.17.0.0/16"]);
        Coverage::new(&facts(routes, tables), &own, &peers, &[[192, 0, 2, 2].into()].into())
    }

    fn reasons(coverage: &Coverage) -> Vec<&'static str> {
        coverage.findings().into_iter().map(|(reason, _)| reason).collect()
    }

    const TUNNEL: (&str, u32, Option<&str>) = ("10.244.1.0/26", 2, Some("192.0.2.2"));

    #[test]
    fn route_into_the_tunnel_toward_an_announced_address_is_covered() {
        let (to, device, gateway) = TUNNEL;
        let coverage = judged(&[route(254, to, device, gateway), route(254, "0.0.0.0/0", 1, None)], &[]);
        assert_eq!((coverage.covered, coverage.is_complete()), (1, true), "{coverage:?}");
    }

    #[test]
    fn way_around_the_tunnel_is_named_with_device_and_remedy() {
        let cases = [
            (route(254, "10.244.1.0/26", 4, Some("10.244.1.0")), "vxlan.calico by VXLAN", "vxlanMode: Never"),
            (route(254, "10.244.1.0/26", 1, Some("192.0.2.2")), "eth0 without a tunnel", "ipipMode: Always"),
            (route(254, "10.244.1.0/26", 3, Some("192.0.2.2")), "br0 without a tunnel", "ipipMode: Always"),
            (route(254, "10.244.0.0/16", 1, Some("192.0.2.2")), "eth0 without a tunnel", "ipipMode: Always"),
            (route(254, "10.244.1.7/32", 1, Some("192.0.2.2")), "eth0 without a tunnel", "ipipMode: Always"),
            (route(1, "10.244.1.0/26", 5, None), "wireguard.cali by WireGuard", "wireguardEnabled: false"),
        ];
        for (way, device, remedy) in cases {
            let coverage = judged(&[way], &[1]);
            assert_eq!(coverage.uncovered.len(), 1, "{way:?}");
            let (reason, text) = &coverage.findings()[0];
            assert_eq!(*reason, "PlaintextBypass");
            assert!(
                text.contains(device) && text.contains(remedy) && text.contains("10.244.1.0/26 on b"),
                "{text}"
            );
        }
    }

    #[test]
    fn single_address_that_leaves_around_the_tunnel_is_found_beside_the_block_that_does_not() {
        let (to, device, gateway) = TUNNEL;
        let single = route(254, "10.244.1.7/32", 1, Some("192.0.2.2"));
        let coverage = judged(&[route(254, to, device, gateway), single], &[]);
        assert_eq!((coverage.covered, reasons(&coverage)), (1, vec!["PlaintextBypass"]));
    }

    #[test]
    fn table_counts_only_if_a_rule_leads_to_it() {
        let (to, device, gateway) = TUNNEL;
        let routes = [route(254, to, device, gateway), route(1, to, 5, None)];
        assert!(judged(&routes, &[]).is_complete());
        assert_eq!(reasons(&judged(&routes, &[1])), ["PlaintextBypass"]);
    }

    #[test]
    fn borrowed_address_and_network_without_pods_do_not_count() {
        let (to, device, gateway) = TUNNEL;
        let borrowed = route(254, "10.244.1.9/32", 3, None);
        let elsewhere = route(254, "10.9.0.0/16", 1, Some("192.0.2.2"));
        assert!(judged(&[route(254, to, device, gateway), borrowed, elsewhere], &[]).is_complete());
    }

    #[test]
    fn network_of_a_node_that_joins_is_waited_for() {
        let at = |seconds: u64| Time::from_secs(1000 + seconds);
        let unrouted = || judged(&[], &[]);
        let mut settling = Settling::default();
        let mut judge = |mut coverage: Coverage, now: Time| {
            settling.settle(&mut coverage, now);
            coverage.is_complete()
        };
        assert!(!judge(unrouted(), at(0)), "the process has just started");
        let (to, device, gateway) = TUNNEL;
        assert!(judge(judged(&[route(254, to, device, gateway)], &[]), at(1)));
        assert!(judge(unrouted(), at(2)));
        assert!(judge(unrouted(), at(11)));
        assert!(!judge(unrouted(), at(12)));
    }

    #[test]
    fn peer_whose_object_is_gone_needs_no_routes_and_those_that_are_left_count() {
        assert!(judged_of(&[], &[], true).is_complete());
        let (to, device, _) = TUNNEL;
        let left = [
            (route(254, to, 1, Some("192.0.2.2")), "PlaintextBypass"),
            (route(254, to, device, Some("192.0.2.9")), "GatewayUnknown"),
        ];
        for (route, reason) in left {
            assert_eq!(reasons(&judged_of(&[route], &[], true)), [reason]);
        }
    }

    #[test]
    fn not_knowing_is_never_complete() {
        assert_eq!(reasons(&judged(&[], &[])), ["CoverageUnknown"]);
        assert_eq!(
            reasons(&judged(&[route(254, "0.0.0.0/0", 1, Some("192.0.2.1"))], &[])),
            ["CoverageUnknown"]
        );
        let stranger = route(254, "10.244.1.0/26", 2, Some("192.0.2.9"));
        assert_eq!(reasons(&judged(&[stranger], &[])), ["GatewayUnknown"]);
    }
}
