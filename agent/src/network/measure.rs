//! What there is around the tunnel, read from the kernel: links, routes, sysctls.

use std::net::IpAddr;

use secureoverlay_agent_core::{
    coverage::{MAIN_TABLE, PodNetworks},
    plan::DesiredInput,
};
use secureoverlay_agent_kernel::{KernelError, LinkSocket, Switches};

use super::{
    mtu,
    surroundings::{self, Neighbours, Pods, Surroundings},
};

/// Reads from this node's kernel what MTUs matter, and what lets traffic past the policies.
///
/// # Errors
/// The kernel can't be asked, or its answer can't be read.
pub fn measure(
    input: &DesiredInput,
    pod_networks: Option<&PodNetworks>,
) -> Result<(mtu::Facts, Surroundings), KernelError> {
    let claims = input.peers.claims();
    let peers: Neighbours<'_> = claims
        .iter()
        .filter(|(address, _)| !input.exclusion.sends_plaintext(**address))
        .map(|(address, claims)| (address.ip(), claims.first().map_or("", |claim| claim.name)))
        .collect();
    let facts = look_around(peers.keys().copied())?;
    let local = input.network.tunnel_addresses.first().map(|address| address.ip());
    let mtu = local.map(|local| mtu::Facts::new(&facts, local, &peers)).unwrap_or_default();
    let own = &input.network.pod_networks;
    let pods = pod_networks.map_or(Pods::Guessed, |peers| Pods::Announced { own, peers });
    Ok((mtu, Surroundings::new(&facts, local, &peers, &pods)))
}

/// Reads what there is around the tunnel to `peers`.
///
/// # Errors
/// The kernel can't be asked, or its answer can't be read.
pub fn look_around(peers: impl Iterator<Item = IpAddr>) -> Result<surroundings::Facts, KernelError> {
    let mut socket = LinkSocket::open()?;
    let (links, all_ways, tables) = (socket.links()?, socket.routes()?, socket.tables()?);
    let (main, others): (Vec<_>, Vec<_>) = all_ways.into_iter().partition(|(table, _)| *table == MAIN_TABLE);
    let ways = main.into_iter().map(|(_, way)| way).collect();
    let other_ways = others.into_iter().filter(|(table, _)| tables.contains(table)).collect();
    let mut routes = Vec::new();
    for peer in peers {
        routes.extend(socket.route_to(peer)?.ok().map(|route| (peer, route)));
    }
    let (all, unread) = Switches::of_all();
    Ok(surroundings::Facts { links, routes, ways, other_ways, all, unread })
}
