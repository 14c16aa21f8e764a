//! The simulator proves itself: deliberately wrong variants of manager and agent, each of which it must catch.
//!
//! All of them live in the simulator's own shells around the product's code; the product has no switch for them.

use std::collections::BTreeMap;

use secureoverlay_common::{
    acknowledgement::Acknowledgement,
    node::NodeFacts,
    phase::Phase,
    ring::{Ring, Role},
    rotation::{Evidence, Readiness},
    uid::Uid,
};

/// A mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Variant {
    /// The manager activates what nobody has acknowledged.
    ActivateUnacknowledged,
    /// The manager counts what was said in a boot before this one.
    CountFormerBoots,
    /// The manager knows generations by their number instead of their uid.
    KnowByNumber,
    /// The manager drops a generation while nodes send with it.
    DropUnswitched,
    /// The manager drops a generation while its packets are under way.
    DropUndrained,
    /// The manager writes whatever was written since it read.
    WriteUnconditionally,
    /// The agent makes policies before the SAs that they need.
    PoliciesFirst,
    /// The agent sends with a new generation when it can itself receive with it.
    OutboundFirst,
    /// Boot IDs are left out of everything.
    IgnoreBoot,
    /// The agent makes lost outbound SAs again.
    RecreateLost,
    /// The agent says that it has done what it only begins.
    AcknowledgeEarly,
    /// The manager insists though nodes send in the clear.
    InsistUnacknowledged,
}

impl Variant {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::ActivateUnacknowledged,
        Self::CountFormerBoots,
        Self::KnowByNumber,
        Self::DropUnswitched,
        Self::DropUndrained,
        Self::WriteUnconditionally,
        Self::PoliciesFirst,
        Self::OutboundFirst,
        Self::IgnoreBoot,
        Self::RecreateLost,
        Self::AcknowledgeEarly,
        Self::InsistUnacknowledged,
    ];

    /// What this manager takes the acknowledgements for. `numbers`: those of all generations that ever were.
    pub fn mishear(
        self,
        said: &mut BTreeMap<String, Acknowledgement>,
        nodes: &[NodeFacts],
        ring: Option<&Ring>,
        numbers: &BTreeMap<Uid, u64>,
    ) {
        match self {
            Self::CountFormerBoots => {
                for node in nodes {
                    if let (Some(said), Some(boot)) = (said.get_mut(&node.name), node.boot) {
                        said.boot = boot;
                    }
                }
            }
            Self::KnowByNumber => {
                let same = |uid: &Uid| {
                    let number = numbers.get(uid)?;
                    ring?.generations.iter().find(|generation| generation.id == *number)
                };
                for said in said.values_mut() {
                    let known: Vec<_> = said.receives.keys().filter_map(same).collect();
                    said.receives.extend(known.iter().map(|found| (found.uid, found.incarnations.clone())));
                    said.sends = said.sends.map(|uid| same(&uid).map_or(uid, |found| found.uid));
                    // Who takes the number for the name has no need of another one.
                    said.newest = 0;
                }
            }
            _ => {}
        }
    }

    /// A seed that is known to show it, of those that few do.
    #[must_use]
    pub const fn caught_by(self) -> Option<u64> {
        match self {
            Self::CountFormerBoots => Some(53),
            _ => None,
        }
    }

    /// What this agent takes the ring for.
    pub fn misread(self, ring: &Ring) -> Option<Ring> {
        if self != Self::OutboundFirst || !matches!(ring.phase(), Phase::Staged { .. }) {
            return None;
        }
        let mut ring = ring.clone();
        ring.generations.retain(|generation| generation.role != Role::Retiring);
        for generation in &mut ring.generations {
            generation.role = if generation.role == Role::Staged { Role::Active } else { Role::Retiring };
        }
        Some(ring)
    }

    /// What this manager takes the evidence for.
    pub fn misjudge(self, evidence: &mut Evidence, ring: Option<&Ring>) {
        match self {
            Self::ActivateUnacknowledged => evidence.staged_acked = Readiness::Ready,
            Self::InsistUnacknowledged => evidence.can_enforce = Readiness::Ready,
            Self::DropUnswitched => evidence.drained = Readiness::Ready,
            Self::DropUndrained if Phase::of(ring).retiring().is_some() => {
                if matches!(evidence.drained, Readiness::After(_)) {
                    evidence.drained = Readiness::Ready;
                }
            }
            _ => {}
        }
    }
}
