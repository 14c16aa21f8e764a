//! `NodeEncryption.status`: what the agent of a node reports.
//!
//! What is written here is what `kubectl explain nodeencryption` shows.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{acknowledgement::Acknowledgement, address::NodeAddress, condition::Condition};

/// Most entries of [`NodeEncryptionStatus::findings`].
pub const MAX_FINDINGS: usize = 32;
/// Most generations in [`NodeEncryptionStatus::accepts`].
pub const MAX_ACCEPTS: usize = 16;

/// What a node does, in one word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum NodeState {
    /// The agent has not looked at its kernel yet.
    #[default]
    Unknown,
    /// Encryption is off.
    Off,
    /// There is no active key yet: the node keeps what its kernel holds.
    Waiting,
    /// Encrypts toward proven peers, and accepts plaintext.
    Permissive,
    /// Nothing leaves or enters in the clear.
    Enforcing,
    /// Takes no part.
    Excluded,
}

/// What an agent reports: the acknowledgement for the manager, the rest for operators.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeEncryptionStatus {
    /// What the manager acts on; absent until the agent knows its Node and its kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acknowledgement: Option<Acknowledgement>,
    /// What the node does.
    pub state: NodeState,
    /// Revision of the key ring that was applied last.
    pub revision: u64,
    /// Id of the key generation that the node sends with; absent while that is none, or more than one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<u64>,
    /// Ids of the key generations that the node receives with from all peers.
    #[schemars(length(max = 16))]
    pub accepts: Vec<u64>,
    /// How many peers, by what the node sends toward them.
    pub pairs: PairCounts,
    /// SAs and policies in the kernel.
    pub kernel: KernelCounts,
    /// The tunnel's MTU; absent where there is no tunnel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<TunnelMtu>,
    /// Version of the agent.
    #[schemars(length(max = 64))]
    pub version: String,
    /// What the agent found of its node.
    pub node: NodeInfo,
    /// What is wrong or unusual, beside what blocks enforcing.
    #[schemars(length(max = 32))]
    pub findings: Vec<Finding>,
    /// `Ready`, `KeysValid`, `MtuValid`, `PeersProgrammed`, `CoverageComplete`, `ESPReachable`.
    #[schemars(length(max = 16))]
    pub conditions: Vec<Condition>,
}

/// Pairs of this node and an address of a peer, by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PairCounts {
    /// All of them.
    pub total: u32,
    /// Traffic is encrypted.
    pub pinned: u32,
    /// Nothing is proven yet: in the clear while permissive, blocked while enforcing.
    pub open: u32,
    /// Traffic is held back: the SA is missing.
    pub held: u32,
    /// The peer or this node is excluded: in the clear.
    pub excluded: u32,
    /// Not proven with the active generation.
    pub unproven: u32,
    /// Pinned, and unanswered for ten minutes.
    pub unanswered: u32,
}

/// What of ours is in the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct KernelCounts {
    /// Inbound SAs.
    pub inbound_sas: u32,
    /// Outbound SAs.
    pub outbound_sas: u32,
    /// Policies.
    pub policies: u32,
    /// Desired SAs and policies that are not there.
    pub missing: u32,
}

/// A tunnel's MTU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TunnelMtu {
    /// The tunnel's MTU.
    pub tunnel: u32,
    /// The largest one that leaves room for ESP.
    pub limit: u32,
    /// The tunnel's device.
    #[schemars(length(max = 15))]
    pub interface: String,
}

/// What the agent found of its node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeInfo {
    /// Addresses that it announces.
    #[schemars(length(max = 4))]
    pub addresses: Vec<NodeAddress>,
    /// Release of its kernel.
    #[schemars(length(max = 64))]
    pub kernel: String,
    /// Where the identity and the journal are kept.
    pub durability: Durability,
}

/// Where an agent keeps its identity and its journal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Durability {
    /// Not known yet.
    #[default]
    Unknown,
    /// In files that outlive the agent, and end with the boot.
    Boot,
    /// In memory: the next agent draws anew.
    Volatile,
}

/// Something that is wrong or unusual, and does not block enforcing.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Finding {
    /// What it is, in one word.
    #[schemars(length(max = 64))]
    pub reason: String,
    /// What it is about and what to do.
    #[schemars(length(max = 1200))]
    pub message: String,
}
