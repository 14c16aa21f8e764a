//! What the kernel says of this node's network: the addresses that tunnels go from, and the networks of its pods.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use secureoverlay_agent_core::network::LocalNetwork;
use secureoverlay_agent_kernel::{KernelError, Link, LinkSocket, Way};
use secureoverlay_keyring::address::NodeAddress;

/// Devices that have pods behind them.
const POD_DEVICES: [&str; 2] = ["bridge", "veth"];
/// Devices whose addresses are those of services, of which one may be another node's.
const SERVICE_DEVICES: [&str; 1] = ["dummy"];

/// Reads it, and remembers what the last answers rested on: routes are looked up only when something changed.
#[derive(Default)]
pub struct NetworkReader {
    seen: Option<(Vec<Link>, Vec<Way>)>,
    network: LocalNetwork,
}

impl NetworkReader {
    /// The network now, and whether it is another than before.
    ///
    /// # Errors
    /// The kernel can't be asked, or its answer can't be read.
    pub fn read(&mut self) -> Result<(LocalNetwork, bool), KernelError> {
        let mut socket = LinkSocket::open()?;
        let now = (socket.links()?, socket.ways()?);
        if self.seen.as_ref() == Some(&now) {
            return Ok((self.network.clone(), false));
        }
        let first = self.seen.is_none();
        let (links, ways) = &now;
        let mut sources = BTreeMap::new();
        for peer in gateways(links, ways) {
            let route = socket.route_to(peer)?.ok().filter(|route| route.unicast);
            let source = route.and_then(|route| route.prefsrc).and_then(|source| source.try_into().ok());
            if let (Ok(peer), Some(source)) = (NodeAddress::try_from(peer), source) {
                sources.insert(peer, source);
            }
        }
        let network = network(links, ways, sources);
        let changed = first || network != self.network;
        self.seen = Some(now);
        self.network = network.clone();
        Ok((network, changed))
    }
}

/// The other ends of tunnels: next hops of routes into IPIP devices, and fixed ends of such devices.
fn gateways(links: &[Link], ways: &[Way]) -> BTreeSet<IpAddr> {
    let tunnel =
        |way: &&Way| links.iter().find(|link| link.index == way.oif).filter(|link| link.up && link.is_ipip());
    ways.iter().filter_map(|way| tunnel(&way).and_then(|link| way.gateway.or(link.remote))).collect()
}

fn network(links: &[Link], ways: &[Way], sources: BTreeMap<NodeAddress, NodeAddress>) -> LocalNetwork {
    let mut uses: BTreeMap<NodeAddress, usize> = BTreeMap::new();
    for source in sources.values() {
        *uses.entry(*source).or_default() += 1;
    }
    let mut tunnel_addresses: Vec<NodeAddress> = uses.keys().copied().collect();
    tunnel_addresses.sort_by_key(|address| (std::cmp::Reverse(uses[address]), *address));
    let kind = |link: &Link, kinds: &[&str]| link.kind.as_deref().is_some_and(|kind| kinds.contains(&kind));
    let sending = links.iter().filter(|link| link.up && !kind(link, &SERVICE_DEVICES));
    let addresses = sending.flat_map(|link| &link.addresses).filter(|address| address.is_ipv4());
    // A route to one pod comes and goes with it; blocks and bridges stay.
    let networks = ways.iter().filter(|way| way.to.prefix < 32);
    let (blocks, others): (Vec<&Way>, Vec<&Way>) = networks.partition(|way| way.oif == 0);
    let bridges = others.into_iter().filter(|way| {
        let device = links.iter().find(|link| link.index == way.oif);
        way.gateway.is_none() && device.is_some_and(|link| kind(link, &POD_DEVICES))
    });
    let network = |way: &Way| IpNet::new(way.to.addr, way.to.prefix).ok().and_then(|net| net.try_into().ok());
    LocalNetwork {
        tunnel_addresses,
        sources,
        all_addresses: addresses.filter_map(|address| (*address).try_into().ok()).collect(),
        pod_networks: blocks.into_iter().filter_map(network).collect(),
        bridge_networks: bridges.filter_map(network).collect(),
        ..LocalNetwork::default()
    }
}

#[cfg(test)]
mod tests {
    use secureoverlay_agent_core::xfrm::Net;
    use secureoverlay_agent_kernel::Switches;

    use super::*;

    fn link(index: u32, kind: Option<&str>, addresses: &[IpAddr]) -> Link {
        Link {
            index,
            name: format!("dev{index}"),
            mtu: 1500,
            kind: kind.map(str::to_owned),
            remote: None,
            up: true,
            addresses: addresses.to_vec(),
            switches: Switches::default(),
        }
    }

    fn way(to: &str, prefix: u8, oif: u32, gateway: Option<&str>) -> Way {
        let to = Net { addr: to.parse().unwrap(), prefix };
        Way { to, oif, gateway: gateway.map(|gateway| gateway.parse().unwrap()), mtu: None }
    }

    #[test]
    fn gateways_are_next_hops_of_tunnels_and_fixed_ends() {
        let mut fixed = link(3, Some("ipip"), &[]);
        fixed.remote = Some([192, 0, 2, 9].into());
        let links = [link(1, None, &[]), link(2, Some("ipip"), &[]), fixed];
        let ways = [
            way("10.244.1.0", 26, 2, Some("192.0.2.2")),
            way("10.244.2.0", 26, 3, None),
            way("10.244.3.0", 26, 1, Some("192.0.2.3")),
        ];
        let expected: BTreeSet<IpAddr> = ["192.0.2.2", "192.0.2.9"].map(|text| text.parse().unwrap()).into();
        assert_eq!(gateways(&links, &ways), expected);
    }

    #[test]
    fn address_that_most_routes_use_comes_first_and_services_are_left_out() {
        let at = |last: u8| NodeAddress::try_from(IpAddr::from([192, 0, 2, last])).unwrap();
        let sources = [(at(7), at(2)), (at(8), at(1)), (at(9), at(2))].into();
        let links = [
            link(1, None, &[[192, 0, 2, 1].into(), [192, 0, 2, 2].into()]),
            link(2, Some("dummy"), &[[10, 96, 0, 1].into()]),
            link(3, Some("bridge"), &[]),
        ];
        let ways =
            [way("10.244.1.0", 26, 0, None), way("10.244.1.5", 32, 3, None), way("10.9.0.0", 24, 3, None)];
        let mut network = network(&links, &ways, sources);
        assert_eq!(network.tunnel_addresses, [at(2), at(1)]);
        assert_eq!(network.all_addresses, [at(1), at(2)].into());
        let pods = |network: &LocalNetwork| {
            network.pod_networks.iter().map(ToString::to_string).collect::<Vec<String>>()
        };
        network.adopt_bridges(&["10.244.0.0/16".parse().unwrap()]);
        assert_eq!(pods(&network), ["10.244.1.0/26"], "a bridge of other containers");
        network.adopt_bridges(&[]);
        assert_eq!(pods(&network), ["10.9.0.0/24", "10.244.1.0/26"]);
    }
}
