//! Counts what passes on the wire: headers are looked at one by one, and nothing of a packet is kept.

use std::{
    collections::BTreeSet,
    fs, iter,
    net::{IpAddr, Ipv4Addr},
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket, sockopt,
        },
        time::{TimeVal, TimeValLike},
    },
};
use secureoverlay_k8s::node::NodeFacts;
use secureoverlay_keyring::inspection::{Readable, WireCounts};

use super::Place;
use crate::network::measure::look_around;

/// Bytes that are read of a packet: the longest IPv4 header, and ports.
const HEADERS: usize = 64;
/// How long one wait for a packet may take.
const WAIT: i64 = 200;
/// In a kernel with ESP's offload loaded, packet sockets see packets that arrive encrypted once more, decrypted.
const OFFLOAD: &str = "esp4_offload ";
/// `ETH_P_IP` of `linux/if_ether.h`.
const ETH_P_IP: u16 = 0x0800;
/// `PACKET_OUTGOING` of `linux/if_packet.h`.
const OUTGOING: u8 = 4;
const IPIP: u8 = 4;
const UDP: u8 = 17;
const GRE: u8 = 47;
const ESP: u8 = 50;
/// The port of VXLAN, and the one that Linux and Flannel use.
const VXLAN: [u16; 2] = [4789, 8472];

/// What is counted.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// Addresses of the other nodes.
    peers: BTreeSet<IpAddr>,
    /// Their pods.
    pods: Vec<IpNet>,
    /// This node's interfaces with its address: index and name.
    interfaces: Vec<(usize, String)>,
    /// Packets that arrive are counted too.
    incoming: bool,
}

/// What a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Esp,
    Ipip,
    Vxlan,
    Gre,
    Routed,
}

impl Scope {
    /// The traffic with all other nodes.
    pub fn new(place: Option<&Place>, nodes: &[NodeFacts]) -> Result<Self, String> {
        let place = place.filter(|place| !place.peers.is_empty());
        let Some((place, local)) = place.and_then(|place| Some((place, place.local?))) else {
            return Err("the addresses of this node and of others are not known".to_owned());
        };
        let facts = look_around(iter::empty()).map_err(|error| error.to_string())?;
        let links = facts.links.into_iter().filter(|link| link.addresses.contains(&local));
        let interfaces = links.map(|link| (link.index as usize, link.name)).collect();
        let others = nodes.iter().filter(|node| node.name != place.name);
        let modules = fs::read_to_string("/proc/modules").unwrap_or_default();
        Ok(Self {
            peers: place.peers.keys().copied().collect(),
            pods: others.flat_map(|node| node.pod_cidrs.iter().copied()).collect(),
            interfaces,
            incoming: !modules.lines().any(|line| line.starts_with(OFFLOAD)),
        })
    }

    /// Reads an IPv4 header. `None` for what is not between nodes or pods, or can't be read.
    fn kind(&self, packet: &[u8]) -> Option<Kind> {
        let header = packet.get(..20).filter(|header| header[0] >> 4 == 4)?;
        let address = |at: usize| {
            let octets: [u8; 4] = header[at..at + 4].try_into().ok()?;
            Some(IpAddr::V4(Ipv4Addr::from(octets)))
        };
        let ends = [address(12)?, address(16)?];
        let with_peer = ends.iter().any(|end| self.peers.contains(end));
        let port = || {
            let first = u16::from_be_bytes([header[6], header[7]]) & 0x1fff == 0;
            let at = usize::from(header[0] & 0xf) * 4 + 2;
            let port = packet.get(at..at + 2).filter(|_| first)?;
            Some(u16::from_be_bytes([port[0], port[1]]))
        };
        match header[9] {
            ESP if with_peer => Some(Kind::Esp),
            IPIP if with_peer => Some(Kind::Ipip),
            GRE if with_peer => Some(Kind::Gre),
            UDP if with_peer && port().is_some_and(|port| VXLAN.contains(&port)) => Some(Kind::Vxlan),
            _ if ends.iter().any(|end| self.pods.iter().any(|pods| pods.contains(end))) => Some(Kind::Routed),
            _ => None,
        }
    }
}

/// Counts for a while.
pub fn count(scope: &Scope, duration: Duration) -> Result<WireCounts, String> {
    let failed = |doing: &str, errno: Errno| match errno {
        Errno::EPERM | Errno::EACCES => format!("failed to {doing}: {errno}: NET_RAW is missing"),
        _ => format!("failed to {doing}: {errno}"),
    };
    if scope.interfaces.is_empty() {
        return Err("no interface has this node's address".to_owned());
    }
    let (family, kind) = (AddressFamily::Packet, SockType::Datagram);
    let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)
        .map_err(|errno| failed("open a packet socket", errno))?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(WAIT))
        .map_err(|errno| failed("prepare the packet socket", errno))?;
    let begun = Instant::now();
    let mut counts = WireCounts {
        interfaces: scope.interfaces.iter().map(|(_, name)| name.clone()).collect(),
        ..WireCounts::default()
    };
    let mut buffer = [0; HEADERS];
    while begun.elapsed() < duration {
        let (length, from) = match recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer) {
            Ok((length, Some(from))) => (length, from),
            Ok((_, None)) | Err(Errno::EAGAIN | Errno::EINTR | Errno::ENOBUFS) => continue,
            Err(errno) => return Err(failed("read from the packet socket", errno)),
        };
        let here = scope.interfaces.iter().any(|(index, _)| *index == from.ifindex());
        let counted = scope.incoming || from.pkttype() == OUTGOING;
        if !here || !counted || from.protocol() != ETH_P_IP.to_be() {
            continue;
        }
        if let Some(kind) = scope.kind(&buffer[..length.min(HEADERS)]) {
            add(&mut counts, kind);
        }
    }
    counts.milliseconds = begun.elapsed().as_millis().try_into().unwrap_or(u64::MAX);
    Ok(counts)
}

fn add(counts: &mut WireCounts, kind: Kind) {
    let Readable { ipip, vxlan, gre, routed } = &mut counts.readable;
    *match kind {
        Kind::Esp => &mut counts.esp,
        Kind::Ipip => ipip,
        Kind::Vxlan => vxlan,
        Kind::Gre => gre,
        Kind::Routed => routed,
    } += 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(protocol: u8, src: [u8; 4], dst: [u8; 4], port: u16) -> Vec<u8> {
        let mut packet = vec![0; 28];
        (packet[0], packet[9]) = (0x45, protocol);
        packet[12..16].copy_from_slice(&src);
        packet[16..20].copy_from_slice(&dst);
        packet[22..24].copy_from_slice(&port.to_be_bytes());
        packet
    }

    #[test]
    fn packets_of_nodes_and_pods_are_told_apart() {
        let scope = Scope {
            peers: ["192.0.2.2".parse().unwrap()].into(),
            pods: vec!["10.244.2.0/24".parse().unwrap()],
            ..Scope::default()
        };
        let (own, peer, other, pod) = ([192, 0, 2, 1], [192, 0, 2, 2], [192, 0, 2, 9], [10, 244, 2, 7]);
        for (text, packet, expected) in [
            ("ESP", packet(ESP, own, peer, 0), Some(Kind::Esp)),
            ("ESP of others", packet(ESP, own, other, 0), None),
            ("IPIP", packet(IPIP, peer, own, 0), Some(Kind::Ipip)),
            ("GRE", packet(GRE, peer, own, 0), Some(Kind::Gre)),
            ("VXLAN", packet(UDP, own, peer, 4789), Some(Kind::Vxlan)),
            ("a probe", packet(UDP, own, peer, 9468), None),
            ("a pod's packet in no tunnel", packet(6, own, pod, 80), Some(Kind::Routed)),
            ("TCP between nodes", packet(6, own, peer, 443), None),
            ("too short", vec![0x45; 19], None),
            ("nothing", vec![], None),
            ("IPv6", vec![0x60; 40], None),
        ] {
            assert_eq!(scope.kind(&packet), expected, "{text}");
        }
        let mut fragment = packet(UDP, own, peer, 4789);
        fragment[7] = 1;
        assert_eq!(scope.kind(&fragment), None);
        // Options make the header longer than what is there.
        let mut long = packet(UDP, own, peer, 4789);
        long[0] = 0x4f;
        assert_eq!(scope.kind(&long), None);
    }

    #[test]
    fn without_peers_nothing_is_counted() {
        assert!(Scope::new(None, &[]).unwrap_err().contains("not known"));
        assert!(count(&Scope::default(), Duration::from_secs(1)).unwrap_err().contains("interface"));
    }
}
