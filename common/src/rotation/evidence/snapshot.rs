//! The cluster at one moment, as the manager sees it.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    acknowledgement::Acknowledgement,
    node::NodeFacts,
    phase::Phase,
    ring::{Enforcement, Ring},
    uid::Uid,
};

/// What the manager sees in one look.
#[derive(Clone, Copy, Debug)]
pub struct ClusterSnapshot<'s> {
    /// The ring.
    pub ring: Option<&'s Ring>,
    /// Every Node.
    pub nodes: &'s [NodeFacts],
    /// What each has said, by its name.
    pub acks: &'s BTreeMap<String, Acknowledgement>,
    /// Somebody wants the rotation under way to go on without the nodes that it waits for.
    pub forced: bool,
    /// Nodes find out whether ESP reaches their peers before the first generation is used.
    pub probing: bool,
}

/// How many nodes there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeCounts {
    /// Those that take part.
    pub expected: usize,
    /// Those of them that have said something, as what they are now.
    pub heard: usize,
}

impl<'s> ClusterSnapshot<'s> {
    /// Counts the nodes.
    #[must_use]
    pub fn counts(&self) -> NodeCounts {
        self.participants().fold(NodeCounts::default(), |counts, participant| NodeCounts {
            expected: counts.expected + 1,
            heard: counts.heard + usize::from(participant.ack.is_some()),
        })
    }

    /// The names of the nodes that pods may come to: they encrypt to every peer that is not pending, and insist where the
    /// ring does. Those that take no part may always have some.
    #[must_use]
    pub fn encrypting(&self) -> BTreeSet<String> {
        let (ring, active) = (self.ring, Phase::of(self.ring).active());
        let ready = |ack: &Acknowledgement| {
            let (Some(ring), Some(active)) = (ring, active) else { return false };
            // It talks to pending peers in the clear, as everybody does.
            let to_all = ack.encrypts || (!ring.pending.is_empty() && ack.revision == ring.revision);
            let insists = ack.enforcement == Enforcement::Enforcing;
            to_all && ack.uses(active) && (ring.enforcement != Enforcement::Enforcing || insists)
        };
        let excluded = self.nodes.iter().filter(|node| node.excluded);
        let encrypting = self.participants().filter(|node| !node.pending && node.says(ready));
        encrypting.map(|participant| participant.node).chain(excluded).map(|node| node.name.clone()).collect()
    }

    /// There are nodes, and all are excluded.
    pub(super) fn all_excluded(&self) -> bool {
        !self.nodes.is_empty() && self.nodes.iter().all(|node| node.excluded)
    }

    pub(super) fn participants(&self) -> impl Iterator<Item = Participant<'s>> {
        let Self { ring, nodes, acks, .. } = *self;
        let pending = move |uid: &Uid| ring.is_some_and(|ring| ring.pending.contains(uid));
        nodes.iter().filter(|node| !node.excluded).map(move |node| Participant {
            node,
            ack: acks.get(&node.name).filter(|ack| is_current(ack, node, ring)),
            pending: node.uid.as_ref().is_some_and(pending),
        })
    }
}

/// A node that takes part, and what it says as of now.
pub(super) struct Participant<'s> {
    pub(super) node: &'s NodeFacts,
    pub(super) ack: Option<&'s Acknowledgement>,
    /// By the ring, peers do not encrypt to it.
    pub(super) pending: bool,
}

impl Participant<'_> {
    pub(super) fn says(&self, what: impl Fn(&Acknowledgement) -> bool) -> bool {
        self.ack.is_some_and(what)
    }

    /// Nothing that it has said since it booted is to be had, and peers know.
    pub(super) const fn is_mute(&self) -> bool {
        self.pending && self.ack.is_none()
    }
}

/// Their names.
pub(super) fn names<'e, 's: 'e>(nodes: impl Iterator<Item = &'e Participant<'s>>) -> BTreeSet<String> {
    nodes.map(|participant| participant.node.name.clone()).collect()
}

/// Whether what was said was said by the node as it is now.
fn is_current(ack: &Acknowledgement, node: &NodeFacts, ring: Option<&Ring>) -> bool {
    node.uid == Some(ack.node) && node.boot == Some(ack.boot) && installed(ack, ring)
}

/// Whether it was said in the installation that the ring was made for.
pub(super) fn installed(ack: &Acknowledgement, ring: Option<&Ring>) -> bool {
    ring.and_then(|ring| ring.installation).is_none_or(|uid| ack.installation == Some(uid))
}
