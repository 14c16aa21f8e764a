//! What the agent knows of its own node's network, read from the kernel by the shell.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use secureoverlay_keyring::{address::NodeAddress, peer::PodNetwork};

/// One look at it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalNetwork {
    /// Addresses that tunnels go from, the one that most routes use first: the source that the kernel chooses toward
    /// the gateways of the tunnel's routes; before there are any, what the Node object shows.
    pub tunnel_addresses: Vec<NodeAddress>,
    /// The source that the kernel chooses toward each address that a tunnel's route leads to.
    pub sources: BTreeMap<NodeAddress, NodeAddress>,
    /// Addresses that tunnels went from until lately: peers may still send to them.
    pub former_addresses: BTreeSet<NodeAddress>,
    /// Every address of the node but those of services: no peer can be at one of them.
    pub all_addresses: BTreeSet<NodeAddress>,
    /// Networks of this node's pods.
    pub pod_networks: BTreeSet<PodNetwork>,
    /// Networks of bridges, which may be those of other containers.
    pub bridge_networks: BTreeSet<PodNetwork>,
    /// Bytes of the largest packet that the tunnel takes; a ping of this size has to pass as ESP. `None` where only
    /// small ones are sent.
    pub tunnel_mtu: Option<u16>,
}

impl LocalNetwork {
    /// Takes the networks of bridges for those of pods that overlap what the cluster gave to this node's pods; all of
    /// them where it gave nothing.
    pub fn adopt_bridges(&mut self, pod_cidrs: &[IpNet]) {
        let overlap = |net: IpNet| pod_cidrs.iter().any(|cidr| cidr.contains(&net) || net.contains(cidr));
        let bridges = self.bridge_networks.iter().filter(|it| pod_cidrs.is_empty() || overlap(it.net()));
        self.pod_networks.extend(bridges);
    }

    /// The addresses that peers may send to.
    pub fn receiving(&self) -> impl Iterator<Item = NodeAddress> {
        let former = self.former_addresses.iter().filter(|former| !self.tunnel_addresses.contains(former));
        self.tunnel_addresses.iter().chain(former).copied()
    }

    /// Whether an address is this node's now, so that no peer can be at it.
    #[must_use]
    pub fn holds(&self, address: NodeAddress) -> bool {
        self.tunnel_addresses.contains(&address) || self.all_addresses.contains(&address)
    }

    /// Where tunnels lead to that is none of the `known` addresses.
    #[must_use]
    pub fn unknown_gateways(&self, known: &BTreeSet<NodeAddress>) -> BTreeSet<NodeAddress> {
        self.sources.keys().filter(|gateway| !known.contains(gateway)).copied().collect()
    }

    /// The address from which the kernel sends to `peer`.
    #[must_use]
    pub fn source_to(&self, peer: NodeAddress) -> Option<NodeAddress> {
        let first = || self.tunnel_addresses.iter().copied().find(|own| own.same_family(peer));
        self.sources.get(&peer).copied().or_else(first)
    }
}
