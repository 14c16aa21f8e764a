//! What is known about the nodes: the input of [`decide`](super::decide) that comes from outside the ring.
//!
//! There are two sources of it: [`acks`], what the nodes say, and [`delay`], the time that has passed, for clusters whose
//! nodes can't say what they have done.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    time::Duration,
};

use crate::uid::Uid;

pub mod acks;
pub mod delay;
pub mod snapshot;

pub use acks::AckTracker;
pub use delay::{DelayTracker, RoleTimers};
pub use snapshot::{ClusterSnapshot, NodeCounts};

/// Names of nodes in a text for people.
const NAMES: usize = 5;
/// Characters of a blocker: what is in it comes from a node, and goes into Events and objects.
const BLOCKER: usize = 300;

/// Whether something that a step waits for has come true.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// It holds.
    Ready,
    /// It can't be said to hold before this time has passed.
    After(Duration),
    /// It does not hold for these nodes.
    Waiting {
        /// The nodes, by name.
        nodes: BTreeSet<String>,
        /// When one of them may be left behind at the earliest.
        look_in: Duration,
    },
    /// This source of evidence can't say it, however long it is asked.
    Unknown,
}

/// What is known about the nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// Every node receives with the staged generation.
    pub staged_acked: Readiness,
    /// No node sends with the retiring generation any more, and none of its packets is under way. Where no generation
    /// is active, no node sends with any.
    pub drained: Readiness,
    /// Every node encrypts to every other, and there is no blocker.
    pub can_enforce: Readiness,
    /// What speaks against enforcing, where it is known.
    pub blocker: Option<Blocker>,
    /// Every node accepts plaintext.
    pub none_enforcing: Readiness,
    /// Every node says that it turns plaintext away.
    pub all_enforcing: bool,
    /// The Nodes that peers must not encrypt to yet.
    pub pending: BTreeSet<Uid>,
    /// A rotation is wanted now, and why.
    pub requested: Option<String>,
    /// The incarnation that each node needs, for nodes that can't go on with the one that they have.
    pub rekey: BTreeMap<Uid, Incarnations>,
    /// The highest id of a generation that any node knows of.
    pub newest: u64,
    /// Nodes and their addresses, as far as they are known.
    pub senders: BTreeMap<Uid, IpAddr>,
}

/// Incarnations of one node, by the generation's uid.
pub type Incarnations = BTreeMap<Uid, u32>;

impl Evidence {
    /// Evidence from the time that has passed alone: whether nodes can enforce, it can't say.
    #[must_use]
    pub const fn of(staged_acked: Readiness, drained: Readiness) -> Self {
        Self {
            staged_acked,
            drained,
            can_enforce: Readiness::Unknown,
            blocker: None,
            none_enforcing: Readiness::Ready,
            all_enforcing: false,
            pending: BTreeSet::new(),
            requested: None,
            rekey: BTreeMap::new(),
            newest: 0,
            senders: BTreeMap::new(),
        }
    }
}

/// One thing that speaks against enforcing, and the node that it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocker {
    /// The node's name.
    pub node: String,
    /// What kind of thing.
    pub reason: BlockerReason,
    /// What the reason leaves open.
    pub detail: String,
}

/// A kind of [`Blocker`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockerReason {
    /// The node says so itself; the detail is its sentence.
    Reported,
    /// ESP does not pass between the node and the one that the detail names.
    EspBlocked,
    /// The MTU of the node's tunnel leaves no room for ESP. There is no detail.
    MtuTooLarge,
}

impl Blocker {
    /// What `node` says itself. Long sentences are cut.
    #[must_use]
    pub fn reported(node: &str, sentence: &str) -> Self {
        let room = BLOCKER.saturating_sub(node.chars().count() + ": ".len());
        let detail = sentence.chars().take(room).collect();
        Self { node: node.to_owned(), reason: BlockerReason::Reported, detail }
    }
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, reason, detail } = self;
        match reason {
            BlockerReason::Reported => write!(f, "{node}: {detail}"),
            BlockerReason::EspBlocked => write!(f, "ESP does not pass between {node} and {detail}"),
            BlockerReason::MtuTooLarge => {
                write!(f, "the tunnel's MTU of {node} leaves no room for ESP: see its NodeEncryption")
            }
        }
    }
}

/// The first few names, and how many more there are.
pub struct Names<'n>(pub &'n BTreeSet<String>);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first: Vec<&str> = self.0.iter().take(NAMES).map(String::as_str).collect();
        f.write_str(&first.join(", "))?;
        match self.0.len().saturating_sub(NAMES) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}
