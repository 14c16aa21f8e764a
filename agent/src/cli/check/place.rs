//! Which node this is, and who its peers are.

use std::{collections::BTreeMap, net::IpAddr};

use secureoverlay_agent_core::xfrm::{ActualSa, Direction, Net, Owner, PolicyId};
use secureoverlay_k8s::node::NodeFacts;
use secureoverlay_keyring::address::NodeAddress;

use crate::network::surroundings::Neighbours;

/// This node among the others, as far as that can be told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Name of its Node object; empty where only the kernel was asked.
    pub name: String,
    /// Its tunnel address.
    pub local: Option<IpAddr>,
    /// The other nodes that take part, by tunnel address, with their names.
    pub peers: BTreeMap<IpAddr, String>,
    /// It takes no part itself.
    pub excluded: bool,
}

impl Place {
    /// By the Node objects: the Node called `name`, else the one with an address of this host's.
    #[must_use]
    pub fn among(nodes: &[NodeFacts], name: Option<&str>, own: &[IpAddr]) -> Option<Self> {
        let named = name.and_then(|name| nodes.iter().find(|node| node.name == name));
        let address = |node: &NodeFacts| node.address().map(NodeAddress::ip);
        let here = |node: &&NodeFacts| address(node).is_some_and(|addr| own.contains(&addr));
        let node = named.or_else(|| nodes.iter().find(here))?;
        let takes_part = |node: &NodeFacts| !node.excluded && node.linux;
        let others = nodes.iter().filter(|other| other.name != node.name && takes_part(other));
        let others = others.filter_map(|other| Some((address(other)?, other.name.clone())));
        Some(Self {
            name: node.name.clone(),
            local: address(node),
            peers: others.filter(|(addr, _)| Some(*addr) != address(node)).collect(),
            excluded: !takes_part(node),
        })
    }

    /// By our SAs in the kernel.
    #[must_use]
    pub fn by_states(states: &[ActualSa], own: &[IpAddr]) -> Option<Self> {
        let ours = states.iter().filter(|sa| sa.owner == Owner::Ours);
        let pairs = ours.filter_map(|sa| match (own.contains(&sa.src), own.contains(&sa.id.dst)) {
            (true, false) => Some((sa.src, sa.id.dst)),
            (false, true) => Some((sa.id.dst, sa.src)),
            _ => None,
        });
        let (local, _) = pairs.clone().next()?;
        let peers = pairs.filter(|(own, _)| *own == local).map(|(_, peer)| (peer, String::new())).collect();
        Some(Self { local: Some(local), peers, ..Self::default() })
    }

    /// The peers as others take them.
    #[must_use]
    pub fn neighbours(&self) -> Neighbours<'_> {
        self.peers.iter().map(|(addr, name)| (*addr, name.as_str())).collect()
    }

    /// The selectors of the policies that there are with the peers, or may be.
    #[must_use]
    pub fn pairs(&self) -> Vec<PolicyId> {
        let pair = |(local, peer): (IpAddr, IpAddr)| {
            let (local, peer) = (Net::host(local), Net::host(peer));
            [PolicyId::tunnel(Direction::In, peer, local), PolicyId::tunnel(Direction::Out, local, peer)]
        };
        let local = self.local;
        self.peers.keys().filter_map(|peer| Some((local?, *peer))).flat_map(pair).collect()
    }
}

#[cfg(test)]
mod tests {
    use secureoverlay_agent_core::xfrm::SaId;

    use super::*;

    fn addr(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    fn node(n: u8) -> NodeFacts {
        let internal_addresses = vec![addr(n).try_into().unwrap()];
        NodeFacts {
            name: format!("node-{n}"),
            internal_addresses,
            ready: true,
            linux: true,
            ..NodeFacts::default()
        }
    }

    fn sa(src: u8, dst: u8, owner: Owner) -> ActualSa {
        let id = SaId { dst: addr(dst), spi: 256 };
        ActualSa { src: addr(src), id, owner, cipher: None, well_formed: true, packets: 0, bytes: 0 }
    }

    #[test]
    fn the_api_knows_names() {
        let nodes = [
            node(1),
            node(2),
            NodeFacts { excluded: true, ..node(3) },
            NodeFacts { internal_addresses: vec![], ..node(4) },
            // Claims our address.
            NodeFacts { internal_addresses: node(1).internal_addresses, ..node(5) },
        ];
        let expected = Place {
            name: "node-1".into(),
            local: Some(addr(1)),
            peers: [(addr(2), "node-2".to_owned())].into(),
            excluded: false,
        };
        for (name, own) in [(Some("node-1"), vec![]), (None, vec![addr(1)]), (Some("node-9"), vec![addr(1)])]
        {
            assert_eq!(Place::among(&nodes, name, &own), Some(expected.clone()), "{name:?}");
        }
        assert_eq!(Place::among(&nodes, None, &[addr(9)]), None);
        let excluded = Place::among(&nodes, Some("node-3"), &[]).unwrap();
        assert!(excluded.excluded && excluded.peers.len() == 2, "{excluded:?}");
        let pairs = expected.pairs();
        assert_eq!(pairs.len(), 2);
        assert_eq!(pairs[0].to_string(), "in 192.0.2.2/32 → 192.0.2.1/32 protocol 4");
        assert_eq!(pairs[1].to_string(), "out 192.0.2.1/32 → 192.0.2.2/32 protocol 4");
        assert_eq!(Place { local: None, ..expected }.pairs(), []);
    }

    #[test]
    fn the_kernel_knows_addresses() {
        use Owner::{Foreign, Ours};
        let own = [addr(1), addr(101)];
        let states = [
            sa(8, 1, Foreign),
            sa(8, 9, Ours),
            sa(2, 1, Ours),
            sa(1, 3, Ours),
            sa(1, 2, Ours),
            sa(4, 101, Ours),
        ];
        let place = Place::by_states(&states, &own).unwrap();
        assert_eq!(place.local, Some(addr(1)));
        assert_eq!(place.peers.keys().copied().collect::<Vec<_>>(), [addr(2), addr(3)]);
        assert_eq!(Place::by_states(&states[..2], &own), None);
    }
}
