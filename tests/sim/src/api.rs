//! The API server: a few objects, resourceVersions, and watches that are late, break, and say things twice.

use std::collections::{BTreeMap, VecDeque};

use secureoverlay_agent::removal::Sighting;
use secureoverlay_common::{acknowledgement::Acknowledgement, node::NodeFacts, uid::Uid};
use secureoverlay_manager_core::snapshot::OperatorRequests;

use crate::Time;

/// The Secret.
#[derive(Clone, Debug)]
pub struct Secret {
    /// `metadata.uid`.
    pub uid: Uid,
    /// `data.keys`.
    pub document: Option<Vec<u8>>,
    /// What its annotations ask for.
    pub requests: OperatorRequests,
}

impl Secret {
    /// One that asks for nothing.
    #[must_use]
    pub fn new(uid: Uid, document: Option<Vec<u8>>) -> Self {
        Self { uid, document, requests: OperatorRequests::default() }
    }
}

/// A NodeEncryption.
#[derive(Clone, Debug)]
pub struct NodeEncryption {
    /// UID of the Node that owns it.
    pub owner: Uid,
    /// Its status.
    pub said: Acknowledgement,
}

/// The DaemonSet.
#[derive(Clone, Copy, Debug)]
pub struct DaemonSet {
    /// `metadata.uid`.
    pub uid: Uid,
    /// It is being deleted and leaves its pods.
    pub orphaning: bool,
}

/// Everything that is stored.
#[derive(Debug, Default)]
pub struct Objects {
    /// The version of the newest change of anything.
    pub version: u64,
    /// The Secret and its resourceVersion.
    pub secret: Option<(Secret, u64)>,
    /// Nodes by name.
    pub nodes: BTreeMap<String, NodeFacts>,
    /// NodeEncryptions by name.
    pub said: BTreeMap<String, NodeEncryption>,
    /// The agents' DaemonSet.
    pub daemon_set: Option<DaemonSet>,
}

impl Objects {
    /// What a watch shows of the DaemonSet.
    #[must_use]
    pub fn sighting(&self) -> Sighting {
        self.daemon_set.map_or(Sighting::Absent, |set| Sighting::Present {
            uid: Some(set.uid),
            deleting: set.orphaning,
            orphaning: set.orphaning,
        })
    }

    /// The acknowledgements as a list shows them.
    #[must_use]
    pub fn said(&self) -> BTreeMap<String, Acknowledgement> {
        self.said.iter().map(|(name, object)| (name.clone(), object.said.clone())).collect()
    }

    /// The full state of a resource.
    #[must_use]
    pub fn list(&self, what: What) -> Change {
        match what {
            What::Ring => self.ring(),
            What::Nodes => Change::Nodes(self.nodes.values().cloned().collect()),
            What::DaemonSet => Change::DaemonSet(self.sighting()),
            What::Said => Change::AllSaid(self.said()),
        }
    }

    /// What the Secret shows.
    #[must_use]
    pub fn ring(&self) -> Change {
        match &self.secret {
            Some((secret, version)) => Change::Ring(secret.document.clone(), *version),
            None => Change::Ring(None, self.version),
        }
    }
}

/// Who watches: by machine, or by the manager's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// The agent of a machine.
    Agent(usize),
    /// A manager.
    Manager(usize),
}

/// What is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// The Secret.
    Ring,
    /// The Nodes.
    Nodes,
    /// The DaemonSet.
    DaemonSet,
    /// The NodeEncryptions.
    Said,
}

/// What a watch delivers.
#[derive(Clone, Debug)]
pub enum Change {
    /// The Secret's document and its version.
    Ring(Option<Vec<u8>>, u64),
    /// A full list of Nodes.
    Nodes(Vec<NodeFacts>),
    /// A Node came or changed.
    Node(NodeFacts),
    /// A Node went.
    NodeGone(String),
    /// The DaemonSet.
    DaemonSet(Sighting),
    /// All acknowledgements.
    AllSaid(BTreeMap<String, Acknowledgement>),
    /// One came, changed or went.
    Said(String, Option<Acknowledgement>),
}

/// One watch connection and what is under way on it.
#[derive(Debug, Default)]
pub struct Stream {
    /// Counts connections: what was under way on a former one is lost.
    pub connection: u64,
    /// It is up.
    pub up: bool,
    /// What is under way, in order.
    pub queue: VecDeque<Change>,
    /// When the last of these arrives.
    pub last: Time,
}

impl Stream {
    /// The connection breaks.
    pub fn cut(&mut self) {
        self.connection += 1;
        self.up = false;
        self.queue.clear();
    }
}
