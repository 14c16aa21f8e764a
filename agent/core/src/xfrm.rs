//! What the kernel's XFRM subsystem holds, as plain data: SAs ("states") and policies.

use std::{fmt, net::IpAddr};

use secureoverlay_keyring::{secret::SecretBytes, suite::Suite};

/// Our mark of ownership on SAs and on the templates of policies (`xfrm_usersa_info.reqid`).
pub const REQID: u32 = 0x5ec0_0e5b;
/// Priority of policies for one peer (`xfrm_userpolicy_info.priority`; lower comes first).
pub const PRIORITY_PEER: u32 = 0x5ec0;
/// Priority of policies that let an excluded node's traffic through: no template, so this value marks them as ours.
pub const PRIORITY_ALLOW: u32 = 0x5ec0_0a10;
/// Priority of the policies that block what no other policy covers; marks them as ours.
pub const PRIORITY_BLOCK: u32 = 0x5ec0_0b10;
/// Packets by which one may overtake another before it counts as replayed (bits of the ESN bitmap).
pub const REPLAY_WINDOW: u32 = 4096;
/// IP-in-IP, the protocol of Calico's tunnels (RFC 2003).
pub const IPPROTO_IPIP: u8 = 4;
/// UDP (RFC 768), the protocol of probes.
pub const IPPROTO_UDP: u8 = 17;

/// What makes an ESP SA unique in a kernel (RFC 4301, section 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SaId {
    /// Destination of the outer packet.
    pub dst: IpAddr,
    /// Security parameters index, host byte order.
    pub spi: u32,
}

impl fmt::Display for SaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} SPI {:#010x}", self.dst, self.spi)
    }
}

/// Direction as seen from this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// Toward this node.
    In,
    /// Away from this node.
    Out,
}

/// An SA as we install it: ESP, transport mode, ESN, [`REPLAY_WINDOW`], [`REQID`], selector `src/32 → dst/32`,
/// no lifetimes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sa {
    /// Source of the outer packet.
    pub src: IpAddr,
    /// Destination and SPI.
    pub id: SaId,
    /// Cipher and ICV length.
    pub suite: Suite,
    /// AES key followed by the 4-byte salt (RFC 4106, section 8.1).
    pub key: SecretBytes,
}

/// An SA that a dump showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActualSa {
    /// Source of the outer packet.
    pub src: IpAddr,
    /// Destination and SPI.
    pub id: SaId,
    /// Who it belongs to.
    pub owner: Owner,
    /// Suite and key; `None` where it is foreign, not one of our suites, or the kernel hides keys (lockdown).
    pub cipher: Option<(Suite, SecretBytes)>,
    /// Selector, replay window, ESN, mode and limits are as we install them.
    pub well_formed: bool,
    /// Packets that it carried so far (`xfrm_lifetime_cur.packets`).
    pub packets: u64,
    /// Bytes that it carried so far (`xfrm_lifetime_cur.bytes`).
    pub bytes: u64,
}

/// Who made an object of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// It carries our mark.
    Ours,
    /// Another program: never touched.
    Foreign,
}

/// A network: address and prefix length. Host policies have the full length, blocks have 0 on one or both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Net {
    /// Network address.
    pub addr: IpAddr,
    /// Length of the prefix in bits.
    pub prefix: u8,
}

impl Net {
    /// The single address `addr`.
    #[must_use]
    pub const fn host(addr: IpAddr) -> Self {
        Self { addr, prefix: if addr.is_ipv4() { 32 } else { 128 } }
    }

    /// Whether `addr` is in it.
    #[must_use]
    pub fn covers(self, addr: IpAddr) -> bool {
        let (differing, bits) = match (self.addr, addr) {
            (IpAddr::V4(net), IpAddr::V4(addr)) => (u128::from(net.to_bits() ^ addr.to_bits()), 32_u32),
            (IpAddr::V6(net), IpAddr::V6(addr)) => (net.to_bits() ^ addr.to_bits(), 128),
            _ => return false,
        };
        differing.checked_shr(bits.saturating_sub(self.prefix.into())).unwrap_or(0) == 0
    }
}

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.prefix)
    }
}

/// The traffic between its two networks that a policy selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Traffic {
    /// The tunnel: protocol 4.
    Tunnel,
    /// Probes of whether ESP passes: UDP from this port to the same.
    Probe(u16),
}

impl Traffic {
    /// The IP protocol.
    #[must_use]
    pub const fn protocol(self) -> u8 {
        match self {
            Self::Tunnel => IPPROTO_IPIP,
            Self::Probe(_) => IPPROTO_UDP,
        }
    }
}

/// What makes a policy unique in a kernel: direction and selector, without mark or interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyId {
    /// In or out; we install no forward policies.
    pub direction: Direction,
    /// Source selector.
    pub src: Net,
    /// Destination selector.
    pub dst: Net,
    /// What it selects of the traffic between the two.
    pub traffic: Traffic,
}

impl PolicyId {
    /// A policy for the tunnel's packets.
    #[must_use]
    pub const fn tunnel(direction: Direction, src: Net, dst: Net) -> Self {
        Self { direction, src, dst, traffic: Traffic::Tunnel }
    }

    /// A policy for probes between two nodes.
    #[must_use]
    pub const fn probe(direction: Direction, src: IpAddr, dst: IpAddr, port: u16) -> Self {
        Self { direction, src: Net::host(src), dst: Net::host(dst), traffic: Traffic::Probe(port) }
    }

    /// It selects nothing but probes.
    #[must_use]
    pub const fn is_probe(&self) -> bool {
        matches!(self.traffic, Traffic::Probe(_))
    }

    /// It selects what goes to any address, or comes from any.
    #[must_use]
    pub const fn is_block(&self) -> bool {
        match self.direction {
            Direction::In => self.src.prefix == 0,
            Direction::Out => self.dst.prefix == 0,
        }
    }

    /// The address of this node in it.
    #[must_use]
    pub const fn local(&self) -> IpAddr {
        match self.direction {
            Direction::In => self.dst.addr,
            Direction::Out => self.src.addr,
        }
    }
}

impl fmt::Display for PolicyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = match self.direction {
            Direction::In => "in",
            Direction::Out => "out",
        };
        write!(f, "{direction} {} → {} ", self.src, self.dst)?;
        match self.traffic {
            Traffic::Tunnel => f.write_str("protocol 4"),
            Traffic::Probe(port) => write!(f, "UDP port {port}"),
        }
    }
}

/// What a policy does with the packets that it selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PolicyAction {
    /// ESP in transport mode is required. Outbound the template pins the SPI to send with; inbound any SA of ours
    /// between the two addresses will do (`None`).
    Esp(Option<u32>),
    /// Pass in the clear (excluded nodes). Priority [`PRIORITY_ALLOW`].
    Allow,
    /// Drop. Priority [`PRIORITY_BLOCK`].
    Block,
}

impl PolicyAction {
    /// The priority that goes with the action.
    #[must_use]
    pub const fn priority(self) -> u32 {
        match self {
            Self::Esp(_) => PRIORITY_PEER,
            Self::Allow => PRIORITY_ALLOW,
            Self::Block => PRIORITY_BLOCK,
        }
    }
}

/// A policy of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Policy {
    /// Direction and selector.
    pub id: PolicyId,
    /// What happens to the packets.
    pub action: PolicyAction,
}

/// A policy that a dump showed. Foreign ones are kept as far as they can stand in our way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ActualPolicy {
    /// Direction and selector.
    pub id: PolicyId,
    /// `xfrm_userpolicy_info.index`.
    pub index: u32,
    /// `xfrm_userpolicy_info.priority`.
    pub priority: u32,
    /// Protocol of the selector; 0 selects every protocol.
    pub protocol: u8,
    /// Beyond `id` it asks for ports, a mark or an XFRM interface, which neither the tunnel's packets nor probes have.
    pub conditional: bool,
    /// It has a mark or an interface id, which is part of what the kernel knows it by: beside one without, never in its
    /// place.
    pub marked: bool,
    /// Who it belongs to.
    pub owner: Owner,
    /// What it does, where it is ours and of a form that we install.
    pub action: Option<PolicyAction>,
}

/// One dump of the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Actual {
    /// All ESP SAs, ours and foreign, without larval ones (no key yet, made by the kernel while it asks a key manager).
    pub sas: Vec<ActualSa>,
    /// All in and out policies, ours and foreign (forward and socket policies are left out).
    pub policies: Vec<ActualPolicy>,
}

/// One change of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Create an SA; fails if one with its id is there.
    AddSa(Sa),
    /// Delete an SA that a dump showed to be ours.
    DeleteSa(SaId),
    /// Create a policy; fails if one with its selector is there.
    AddPolicy(Policy),
    /// Replace, in one atomic step, a policy that a dump showed to be ours.
    UpdatePolicy(Policy),
    /// Delete a policy that a dump showed to be ours.
    DeletePolicy(PolicyId),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_covers_its_addresses() {
        let covers = |net: &str, prefix, addr: &str| {
            Net { addr: net.parse().unwrap(), prefix }.covers(addr.parse().unwrap())
        };
        for (net, prefix, addr) in [
            ("192.0.2.0", 24, "192.0.2.255"),
            ("192.0.2.7", 24, "192.0.2.1"),
            ("192.0.2.1", 32, "192.0.2.1"),
            ("0.0.0.0", 0, "192.0.2.1"),
            ("::", 0, "2001:db8::1"),
            ("2001:db8::", 32, "2001:db8::1"),
        ] {
            assert!(covers(net, prefix, addr), "{net}/{prefix} {addr}");
        }
        for (net, prefix, addr) in [
            ("192.0.2.0", 24, "192.0.3.0"),
            ("192.0.2.1", 32, "192.0.2.0"),
            ("192.0.2.1", 255, "192.0.2.0"),
            ("::", 0, "192.0.2.1"),
            ("0.0.0.0", 0, "::1"),
            ("2001:db8::", 128, "2001:db8::1"),
        ] {
            assert!(!covers(net, prefix, addr), "{net}/{prefix} {addr}");
        }
    }
}
