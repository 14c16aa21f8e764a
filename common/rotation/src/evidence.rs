//! What is known about the nodes: the input of [`decide`](crate::decide) that comes from outside the ring.
//!
//! There are two sources of it: [`acks`], what the nodes acknowledge, and [`delay`], the time that has passed, for
//! clusters whose nodes can't say what they have done.

use std::{collections::BTreeSet, fmt, time::Duration};

use secureoverlay_keyring::{address::NodeAddress, peer::Instance};

pub mod acks;
pub mod delay;
pub mod snapshot;

pub use acks::{AckTracker, report::NodeReport};
pub use delay::{DelayTracker, RoleTimers};
pub use snapshot::{ClusterSnapshot, NodeCounts, NodeFacts, Object};

/// Names of nodes in a text for people.
const NAMES: usize = 5;

/// Whether something that a step waits for has come true.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// It holds.
    Ready,
    /// It can't be said to hold before this time has passed.
    After(Duration),
    /// It does not hold for some nodes, or no node is there to hold for.
    Waiting(Unmet),
    /// This source of evidence can't say it, however long it is asked.
    Unknown,
}

/// Nodes that something does not hold for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unmet {
    /// The nodes, by name.
    pub nodes: BTreeSet<String>,
    /// How many nodes are waited for, with those that it holds for.
    pub total: usize,
    /// Whether one of the missing nodes is Ready.
    pub any_ready: bool,
    /// For how long some were missing.
    pub waited: Duration,
    /// When one of them may be left behind at the earliest.
    pub look_in: Duration,
}

/// Whose `ackId` the ring has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AckIdState {
    /// Nothing rests on acknowledgements.
    Unused,
    /// This process drew it last.
    Own {
        /// How long ago.
        age: Duration,
    },
    /// Another process did, or it was put back by a backup.
    Foreign {
        /// How long it has been seen.
        age: Duration,
        /// How long to wait before it is renewed.
        pause: Duration,
    },
}

/// What is known about the nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// Every node receives with the staged generation, and has proven its pairs with it.
    pub staged_acked: Readiness,
    /// No node sends with the retiring generation any more, and none of its packets is under way. Where no generation
    /// is active, no node sends with any.
    pub drained: Readiness,
    /// Every node encrypts to every other, and there is no blocker.
    pub can_enforce: Readiness,
    /// What speaks against enforcing, where it is known.
    pub blockers: Vec<Blocker>,
    /// Every node accepts plaintext.
    pub none_enforcing: Readiness,
    /// More than half of the nodes whose acknowledgement counts enforce.
    pub most_enforcing: bool,
    /// The acknowledgement of at least one node counts.
    pub any_counts: bool,
    /// A node holds keys, by what it acknowledged last.
    pub any_receivable: bool,
    /// Nodes have applied a newer ring, and are believed.
    pub claim: Option<Claim>,
    /// A node on which an SA of the active generation has reached a limit.
    pub exhausted: Option<String>,
    /// The highest id of a generation that is believed to have been applied.
    pub believed_id: u64,
    /// Whose `ackId` the ring has.
    pub ack_id: AckIdState,
    /// A node whose NodeEncryption is gone though its agent is there.
    pub ack_deleted: Option<String>,
    /// How long a step that does no harm still waits.
    pub step_wait: Duration,
    /// How long the phase may still last before its rotation fails, or is ended by force; `None`: without end.
    pub limit: Option<Duration>,
    /// How many Nodes there are.
    pub nodes: usize,
    /// What nodes may send with, in the order in which SPIs belong to them.
    pub senders: Vec<(Instance, NodeAddress)>,
}

impl Evidence {
    /// Evidence of no node.
    #[must_use]
    pub const fn unknown() -> Self {
        Self {
            staged_acked: Readiness::Unknown,
            drained: Readiness::Unknown,
            can_enforce: Readiness::Unknown,
            blockers: Vec::new(),
            none_enforcing: Readiness::Unknown,
            most_enforcing: false,
            any_counts: false,
            any_receivable: false,
            claim: None,
            exhausted: None,
            believed_id: 0,
            ack_id: AckIdState::Unused,
            ack_deleted: None,
            step_wait: Duration::MAX,
            limit: None,
            nodes: 0,
            senders: Vec::new(),
        }
    }
}

/// Nodes have applied a newer ring than the one that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The nodes that say so.
    pub nodes: BTreeSet<String>,
    /// Whether they are more than half.
    pub most: bool,
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an older key ring was restored: {} applied a newer one", Names(&self.nodes))
    }
}

/// One thing that speaks against enforcing, and the node that it is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Blocker {
    /// The node's name.
    pub node: String,
    /// One word in CamelCase.
    pub reason: String,
    /// What the reason leaves open, for people.
    pub detail: String,
}

impl Blocker {
    /// A Ready node that announces nothing.
    pub const NOT_ANNOUNCING: &'static str = "NotAnnouncing";
    /// Two Ready nodes with one address.
    pub const ADDRESS_CONFLICT: &'static str = "AddressConflict";
    /// A node's tunnel routes lead to an address of a Ready node that this one does not announce.
    pub const GATEWAY_UNKNOWN: &'static str = "GatewayUnknown";
    /// A node knows no peers although there are other Ready nodes.
    pub const NO_PEERS: &'static str = "NoPeers";
    /// The tunnel leaves no room for ESP.
    pub const MTU_TOO_LARGE: &'static str = "MTUTooLarge";
    /// Pairs of the node are not proven.
    pub const UNPROVEN_PAIRS: &'static str = "UnprovenPairs";
    /// The node refuses the ring, because it has applied a newer one.
    pub const OLDER_RING: &'static str = "KeyRingOlderThanApplied";

    pub(crate) fn new(node: &str, reason: &str, detail: impl Into<String>) -> Self {
        Self { node: node.to_owned(), reason: reason.to_owned(), detail: detail.into() }
    }
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, reason, detail } = self;
        write!(f, "{node}: {reason}")?;
        if detail.is_empty() { Ok(()) } else { write!(f, " ({detail})") }
    }
}

/// The first few names, and how many more there are.
#[derive(Clone, Copy, Debug)]
pub struct Names<'n>(pub &'n BTreeSet<String>);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first: Vec<&str> = self.0.iter().take(NAMES).map(String::as_str).collect();
        f.write_str(if first.is_empty() { "no node" } else { "" })?;
        f.write_str(&first.join(", "))?;
        match self.0.len().saturating_sub(NAMES) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}
