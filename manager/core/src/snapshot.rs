//! What the shell has read: the Secret, and the cluster at one moment.

use std::collections::{BTreeMap, BTreeSet};

use secureoverlay_common::{
    acknowledgement::Acknowledgement,
    node::NodeFacts,
    ring::{Enforcement, Ring, RingError},
    rotation::ClusterSnapshot,
    uid::Uid,
};

/// The Secret as it was read.
#[derive(Debug)]
pub struct SecretSnapshot {
    /// The Secret's UID: another one means that it was deleted and made anew.
    pub uid: Option<String>,
    /// What a write must be made against.
    pub resource_version: Option<String>,
    /// The ring, or why there is none.
    pub ring: Result<Ring, RingError>,
    /// What operators ask for.
    pub requests: OperatorRequests,
}

/// What operators ask for, by annotations of the Secret.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OperatorRequests {
    /// A rotation now.
    pub rotate: bool,
    /// That the rotation goes on without the nodes that it waits for.
    pub press_on: bool,
    /// How far encryption is to be enforced.
    pub enforce: Option<Enforcement>,
}

/// All Nodes, and what each has acknowledged.
#[derive(Clone, Debug, Default)]
pub struct ClusterState {
    /// The Nodes.
    pub nodes: Vec<NodeFacts>,
    /// Acknowledgements by the Node's name.
    pub acknowledgements: BTreeMap<String, Acknowledgement>,
    /// `status.awaited` of the NodeEncryptions, by the Node's name.
    pub awaited: BTreeMap<String, String>,
    /// The names of the Nodes with the start-up taint.
    pub tainted: BTreeSet<String>,
}

impl ClusterState {
    /// For [`secureoverlay_common::rotation::evidence`].
    #[must_use]
    pub const fn snapshot<'s>(&'s self, ring: Option<&'s Ring>, forced: bool) -> ClusterSnapshot<'s> {
        let (nodes, acks) = (self.nodes.as_slice(), &self.acknowledgements);
        ClusterSnapshot { ring, nodes, acks, forced, probing: true }
    }

    /// The names of some nodes.
    pub(crate) fn names(&self, which: impl Fn(&Uid) -> bool) -> BTreeSet<String> {
        let chosen = self.nodes.iter().filter(|node| node.uid.as_ref().is_some_and(&which));
        chosen.map(|node| node.name.clone()).collect()
    }
}
