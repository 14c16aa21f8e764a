//! What an agent answers on its node's loopback, and `kubectl secureoverlay` reads. Nothing in it is a key.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Where the pairs with one peer are served, on the port of the metrics: behind it come `/` and the name of the Node.
pub const PATHS: &str = "/paths";
/// Where the check of the node is served.
pub const CHECK: &str = "/check";

/// The pairs between a node and one peer, as the node's agent knows them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerPaths {
    /// The agent's own Node.
    pub node: String,
    /// The peer's Node.
    pub peer: String,
    /// The peer announces itself.
    pub announced: bool,
    /// The agent has looked at its kernel.
    pub looked: bool,
    /// Away from the node.
    pub outbound: Vec<OutboundPath>,
    /// Toward the node.
    pub inbound: Vec<SaCounters>,
    /// The tunnel's MTU; absent where there is no tunnel, or none could be measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<MtuRoom>,
}

/// What is sent with to one address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OutboundPath {
    /// What the kernel does with pod traffic.
    pub state: PathState,
    /// This node's address.
    pub source: IpAddr,
    /// The peer's address.
    pub destination: IpAddr,
    /// The SA that the policy pins, where it is in the kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sa: Option<SaCounters>,
    /// The pinned SA's key generation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// Seconds since the pinned SA's last proof. Absent where an earlier process of the agent proved it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proven_seconds_ago: Option<u64>,
    /// Seconds since the pinned SA was pinged last, as long as that ping has no answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub awaited_seconds: Option<u64>,
    /// The SPI that is to be proven next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub candidate: Option<u32>,
}

/// What the kernel does with pod traffic of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PathState {
    /// It is encrypted with the SA that the policy pins.
    Pinned,
    /// No SA is proven yet: in the clear while plaintext is accepted, else blocked.
    Open,
    /// The pinned SA is missing: nothing leaves.
    Held,
    /// One of both nodes is excluded: in the clear.
    Excluded,
}

/// An SA and what it has carried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SaCounters {
    /// From this address.
    pub source: IpAddr,
    /// To this one.
    pub destination: IpAddr,
    /// Its SPI.
    pub spi: u32,
    /// Packets, probes among them.
    pub packets: u64,
    /// Bytes before encryption.
    pub bytes: u64,
}

/// A tunnel's MTU and its limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MtuRoom {
    /// Name of the tunnel device.
    pub interface: String,
    /// Bytes of the largest packet that is sent into it.
    pub tunnel: u32,
    /// The largest that leaves room for ESP.
    pub limit: u32,
}

impl MtuRoom {
    /// Bytes that are left; below zero where large packets do not fit.
    #[must_use]
    pub fn headroom(&self) -> i64 {
        i64::from(self.limit) - i64::from(self.tunnel)
    }
}

/// How one thing is that was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CheckVerdict {
    /// As it should be.
    Ok,
    /// It may be meant to be so.
    Warn,
    /// Traffic is lost or not encrypted because of it.
    Fail,
    /// It could not be seen.
    Unknown,
}

impl CheckVerdict {
    /// In a word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "WARN",
            Self::Fail => "FAIL",
            Self::Unknown => "unknown",
        }
    }
}

/// One line of a check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckItem {
    /// How it is.
    pub verdict: CheckVerdict,
    /// What was looked at, in a word.
    pub what: String,
    /// What there is to say, and to do.
    pub text: String,
}

/// The check of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckReport {
    /// All lines.
    pub items: Vec<CheckItem>,
    /// The kernel could not be asked.
    pub blind: bool,
    /// What passed on the wire, where that was counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capture: Option<WireCounts>,
}

/// Packets to and from other nodes that passed the interface with the node's address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WireCounts {
    /// How long was counted, in milliseconds.
    pub milliseconds: u64,
    /// The interfaces.
    pub interfaces: Vec<String>,
    /// Encrypted packets.
    pub esp: u64,
    /// Readable packets of tunnels or pods.
    pub readable: Readable,
}

/// Readable packets by how they travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readable {
    /// IP in IP (protocol 4).
    pub ipip: u64,
    /// VXLAN (UDP ports 4789 and 8472).
    pub vxlan: u64,
    /// GRE (protocol 47).
    pub gre: u64,
    /// Packets of pods in no tunnel.
    pub routed: u64,
}

impl Readable {
    /// All of them.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.ipip.saturating_add(self.vxlan).saturating_add(self.gre).saturating_add(self.routed)
    }
}
