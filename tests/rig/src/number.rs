//! Names and addresses of nodes, by their numbers.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result};
use secureoverlay_keyring::{address::NodeAddress, peer::PodNetwork};

/// All addresses of nodes are local to the network namespace (`ip route add local 10.64.0.0/16 dev lo`).
const NODES: Ipv4Addr = Ipv4Addr::new(10, 64, 0, 0);
/// Networks of pods: 64 addresses a node.
const PODS: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 0);

/// Name of the Node.
pub fn name(number: u32) -> String {
    format!("scale-{number:05}.rig.example.com")
}

/// Address of the node.
pub fn address(number: u32) -> Result<NodeAddress> {
    IpAddr::from(Ipv4Addr::from_bits(NODES.to_bits() + number)).try_into().context("an address of a node")
}

/// Network of its pods, in text.
pub fn pod_network(number: u32) -> String {
    format!("{}/26", Ipv4Addr::from_bits(PODS.to_bits() + 64 * number))
}

/// Network of its pods.
pub fn pods(number: u32) -> Result<PodNetwork> {
    pod_network(number).parse().map_err(|error| anyhow::anyhow!("a network of pods: {error}"))
}
