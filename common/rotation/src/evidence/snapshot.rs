//! The cluster at one moment, as the manager sees it.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use secureoverlay_keyring::{
    acknowledgement::Acknowledgement, address::NodeAddress, keyring::KeyRing, peer::EncryptionPeerSpec,
    uid::Uid,
};

/// What the manager knows of a Node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`; `None` where it is malformed.
    pub uid: Option<Uid>,
    /// The kubelet says that the node is ready.
    pub ready: bool,
    /// The node has the label that excludes it.
    pub excluded: bool,
    /// Whether it runs Linux. Other nodes have no agent.
    pub linux: bool,
    /// Its addresses, as its Node object shows them.
    pub addresses: BTreeSet<NodeAddress>,
}

/// An object that a node's agent wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object<T> {
    /// `metadata.uid`; `None` where it is malformed.
    pub uid: Option<Uid>,
    /// `metadata.creationTimestamp`.
    pub created: Option<Timestamp>,
    /// What it says; `None` where it can't be read, or says nothing yet.
    pub content: Option<T>,
}

/// What the manager sees in one look.
#[derive(Clone, Copy, Debug)]
pub struct ClusterSnapshot<'s> {
    /// The ring.
    pub ring: Option<&'s KeyRing>,
    /// Every Node.
    pub nodes: &'s [NodeFacts],
    /// What nodes announce, by their names.
    pub peers: &'s BTreeMap<String, Object<EncryptionPeerSpec>>,
    /// What nodes acknowledge, by their names.
    pub acks: &'s BTreeMap<String, Object<Acknowledgement>>,
    /// Names of the Nodes on which an agent's Pod is Ready.
    pub ready_pods: &'s BTreeSet<String>,
}

/// How many nodes there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeCounts {
    /// Those that are Ready, included, and announce.
    pub expected: usize,
    /// Those of them whose acknowledgement counts.
    pub acknowledged: usize,
    /// Those that announce, whatever else they are.
    pub announcing: usize,
}
