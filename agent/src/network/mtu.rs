//! Whether encrypted packets of the tunnel fit through the network.

use std::{cmp::Reverse, collections::BTreeMap, fmt, net::IpAddr};

use secureoverlay_agent_kernel::Link;
use secureoverlay_keyring::{keyring::KeyRing, mtu::Bound, suite::Suite};

use crate::network::{
    mtu_setting::MtuSetting,
    surroundings::{self, Neighbours, pods_of},
};

/// Of many devices without room, this many are named: another network plugin may have one for each peer.
const NAMED: usize = 20;

/// An interface or route and its MTU in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measured {
    /// Name of the interface.
    pub interface: String,
    /// Bytes of the largest IP packet.
    pub mtu: u32,
}

/// A tunnel device and the MTU for the packets inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// Name of the device.
    pub interface: String,
    /// Bytes of the largest IP packet that is sent into it.
    pub mtu: u32,
    /// What that MTU is taken from.
    pub source: MtuSource,
    /// It has a fixed other end: another network plugin's, for Calico's has none.
    pub point_to_point: bool,
}

/// What a tunnel's MTU is taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MtuSource {
    /// The device.
    Device,
    /// A route: the kernel takes a route's MTU, smaller or larger, in place of the device's
    /// (`ip_dst_mtu_maybe_forward` in `include/net/ip.h`).
    Route,
    /// The device, into which no route to other nodes' pods leads yet.
    UnusedDevice,
}

impl fmt::Display for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { interface, mtu, .. } = self;
        match self.source {
            MtuSource::Device => write!(f, "{mtu} of {interface}"),
            MtuSource::Route => write!(f, "{mtu} of the routes over {interface}"),
            MtuSource::UnusedDevice => {
                write!(f, "{mtu} of {interface} (no route to other nodes' pods uses it yet)")
            }
        }
    }
}

/// The MTUs that matter on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The tunnel devices that routes to peers' pods lead into, the largest MTU first. Before there are any such routes:
    /// all that are up.
    pub tunnels: Vec<Tunnel>,
    /// The smallest MTU among the interfaces with the node's address and the routes to its peers.
    pub external: Option<Measured>,
}

impl Facts {
    /// Picks them out of what the kernel says, of a node with the tunnel address `local`.
    #[must_use]
    pub fn new(network: &surroundings::Facts, local: IpAddr, peers: &Neighbours<'_>) -> Self {
        let up = || network.links.iter().filter(|link| link.up);
        let measured = |link: &Link, mtu: u32| Measured { interface: link.name.clone(), mtu };
        let own = up()
            .filter(|link| !link.is_ipip() && link.addresses.contains(&local))
            .map(|link| measured(link, link.mtu));
        let routed = network.routes.iter().filter(|(_, route)| route.unicast).filter_map(|(_, route)| {
            let link = up().find(|link| link.index == route.oif && !link.is_ipip())?;
            Some(measured(link, route.mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu))))
        });
        Self {
            tunnels: tunnels(network, peers),
            external: own.chain(routed).min_by_key(|measured| measured.mtu),
        }
    }
}

fn tunnels(network: &surroundings::Facts, peers: &Neighbours<'_>) -> Vec<Tunnel> {
    let links: BTreeMap<u32, &Link> = network
        .links
        .iter()
        .filter(|link| link.up && link.is_ipip())
        .map(|link| (link.index, link))
        .collect();
    let tunnel = |link: &Link, mtu: u32, source| {
        let (interface, point_to_point) = (link.name.clone(), link.remote.is_some());
        Tunnel { interface, mtu, source, point_to_point }
    };
    let mut used: BTreeMap<u32, Tunnel> = BTreeMap::new();
    for way in &network.ways {
        let Some(link) = links.get(&way.oif) else { continue };
        if pods_of(way, Some(link), peers).is_none() {
            continue;
        }
        let found = match way.mtu {
            Some(mtu) if mtu != link.mtu => tunnel(link, mtu, MtuSource::Route),
            _ => tunnel(link, link.mtu, MtuSource::Device),
        };
        let largest = used.entry(way.oif).or_insert_with(|| found.clone());
        if found.mtu > largest.mtu {
            *largest = found;
        }
    }
    let mut tunnels: Vec<Tunnel> = if used.is_empty() {
        links.values().map(|link| tunnel(link, link.mtu, MtuSource::UnusedDevice)).collect()
    } else {
        used.into_values().collect()
    };
    tunnels.sort_by(|a, b| (Reverse(a.mtu), &a.interface).cmp(&(Reverse(b.mtu), &b.interface)));
    tunnels
}

/// The tunnel's MTU beside both bounds for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The tunnel device with the largest MTU.
    pub tunnel: Tunnel,
    /// Others that have no room either, the largest first.
    pub others: Vec<Tunnel>,
    /// What carries the encrypted packets.
    pub external: Measured,
    /// The suite in the ring with the largest overhead.
    pub suite: Suite,
    /// MKE's rule and the kernel's.
    pub bound: Bound,
    /// What the advice is for.
    pub setting: MtuSetting,
}

impl Finding {
    /// `None` where there is nothing to compare: no tunnel, no external interface, or no generation in the ring.
    #[must_use]
    pub fn new(facts: &Facts, ring: &KeyRing) -> Option<Self> {
        let suites = ring.generations.iter().map(|generation| generation.suite);
        Self::with(facts, suites.max_by_key(|suite| suite.icv_len())?)
    }

    /// The finding for one suite; `None` where there is no tunnel or no external interface.
    #[must_use]
    pub fn with(facts: &Facts, suite: Suite) -> Option<Self> {
        let ((tunnel, others), external) = (facts.tunnels.split_first()?, facts.external.clone()?);
        let bound = Bound::new(external.mtu, suite);
        let others = others.iter().filter(|tunnel| tunnel.mtu > bound.accepted()).cloned().collect();
        Some(Self { tunnel: tunnel.clone(), others, external, suite, bound, setting: MtuSetting::default() })
    }

    /// The same, with advice that fits what sets the MTU here.
    #[must_use]
    pub fn advised(mut self, setting: &MtuSetting) -> Self {
        if !self.valid() {
            self.setting = if self.tunnel.point_to_point { MtuSetting::Other } else { setting.clone() };
        }
        self
    }

    /// The tunnel's packets fit.
    #[must_use]
    pub const fn valid(&self) -> bool {
        self.tunnel.mtu <= self.bound.accepted()
    }

    /// What sets the MTU here is worth finding out.
    #[must_use]
    pub const fn needs_advice(&self) -> bool {
        !self.valid() && !self.tunnel.point_to_point
    }

    /// The devices in words: all without room, else the one with the least.
    fn devices(&self) -> String {
        let named = [&self.tunnel].into_iter().chain(&self.others).take(NAMED);
        let named: Vec<String> = named.map(ToString::to_string).collect();
        match self.others.len().saturating_sub(NAMED - 1) {
            0 => named.join(", "),
            more => format!("{} and {more} more devices", named.join(", ")),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { external, suite, bound, .. } = self;
        let limit = bound.accepted();
        let verdict = if self.valid() { "fits" } else { "is too large" };
        write!(
            f,
            "the MTU {} {verdict}: at most {limit} with {suite} over {} with MTU {} (MKE's rule {}, this kernel's \
             limit {})",
            self.devices(),
            external.interface,
            external.mtu,
            bound.mke,
            bound.kernel
        )?;
        if !self.valid() {
            write!(f, "; large packets of pods may get lost. {}", self.setting.advice(limit))?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "mtu_tests.rs"]
mod tests;
