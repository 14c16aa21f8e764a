//! What the shell has read: the Secret, and the cluster at one moment.

use std::collections::{BTreeMap, BTreeSet};

use secureoverlay_keyring::{
    acknowledgement::Acknowledgement,
    keyring::{KeyRing, KeyRingError},
    peer::EncryptionPeerSpec,
};
use secureoverlay_rotation::{ClusterSnapshot, NodeFacts, Object};

/// The Secret as it was read.
#[derive(Debug)]
pub struct SecretSnapshot {
    /// The Secret's UID: another one means that it was deleted and made anew.
    pub uid: Option<String>,
    /// What a write must be made against; `None` where there is no Secret.
    pub resource_version: Option<String>,
    /// The ring, or why there is none.
    pub ring: Result<KeyRing, KeyRingError>,
    /// Its annotation asks for a rotation. Counts only where operators do not ask by objects.
    pub rotate: bool,
}

/// All Nodes, and what each announces and acknowledges.
#[derive(Clone, Debug, Default)]
pub struct ClusterState {
    /// The Nodes.
    pub nodes: Vec<NodeFacts>,
    /// The EncryptionPeers, by name.
    pub peers: BTreeMap<String, Object<EncryptionPeerSpec>>,
    /// The acknowledgements in the NodeEncryptions, by name.
    pub acks: BTreeMap<String, Object<Acknowledgement>>,
    /// The names of the Nodes on which an agent's Pod is Ready.
    pub ready_pods: BTreeSet<String>,
    /// The names of the Nodes whose agents say that all pod traffic is covered.
    pub covered: BTreeSet<String>,
    /// The names of the Nodes with the start-up taint.
    pub tainted: BTreeSet<String>,
}

impl ClusterState {
    /// For [`secureoverlay_rotation::AckTracker`].
    #[must_use]
    pub const fn snapshot<'s>(&'s self, ring: Option<&'s KeyRing>) -> ClusterSnapshot<'s> {
        let Self { nodes, peers, acks, ready_pods, .. } = self;
        ClusterSnapshot { ring, nodes: nodes.as_slice(), peers, acks, ready_pods }
    }
}
