//! The simulator proves itself: deliberately wrong variants of manager and agent, each of which it must catch.
//!
//! All of them live in the simulator's own shells around the product's code; the product has no switch for them.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use secureoverlay_common::{
    acknowledgement::Acknowledgement,
    node::NodeFacts,
    phase::Phase,
    ring::{Enforcement, Ring, Role},
    rotation::evidence::acks::DRAIN,
    uid::Uid,
};
use secureoverlay_manager_core::snapshot::ClusterState;
use serde::{Deserialize, Serialize};

/// A mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
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
    /// The manager does not notice that its lists show a minority of the Nodes.
    BelieveMissingNodes,
    /// The manager leaves nodes behind that it was not told to.
    PressUnasked,
    /// The manager empties the ring while nodes encrypt.
    QuitUnsilenced,
    /// The manager gives nodes that say nothing less time than they need.
    HurryTimed,
}

impl Variant {
    /// All of them.
    pub const ALL: [Self; 16] = [
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
        Self::BelieveMissingNodes,
        Self::PressUnasked,
        Self::QuitUnsilenced,
        Self::HurryTimed,
    ];

    /// What this manager takes a snapshot for. `numbers`: those of all generations that ever were; `all`: the Nodes that
    /// there are.
    pub fn mishear(
        self,
        cluster: &mut ClusterState,
        ring: Option<&Ring>,
        numbers: &BTreeMap<Uid, u64>,
        all: &[NodeFacts],
    ) {
        let said = &mut cluster.acknowledgements;
        let with_role = |role| ring.and_then(|ring| ring.with_role(role));
        match (self, with_role(Role::Retiring), with_role(Role::Active), with_role(Role::Staged)) {
            (Self::CountFormerBoots, ..) => {
                for node in &cluster.nodes {
                    if let (Some(said), Some(boot)) = (said.get_mut(&node.name), node.boot) {
                        said.boot = boot;
                    }
                }
            }
            (Self::KnowByNumber, ..) => {
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
            (Self::ActivateUnacknowledged, _, _, Some(staged)) => pretend(cluster, ring, |said| {
                said.receives.insert(staged.uid, staged.incarnations.clone());
                said.unreachable.get_or_insert_default();
            }),
            (Self::InsistUnacknowledged, None, Some(active), None) => pretend(cluster, ring, |said| {
                said.receives.insert(active.uid, active.incarnations.clone());
                (said.sends, said.encrypts) = (Some(active.uid), true);
                said.revision = ring.map_or(0, |ring| ring.revision);
                said.unreachable = Some(BTreeSet::new());
            }),
            (Self::DropUnswitched, Some(_), Some(active), _) => {
                pretend(cluster, ring, |said| said.sends = Some(active.uid));
            }
            (Self::QuitUnsilenced, Some(_), None, None) => pretend(cluster, ring, |said| {
                (said.sends, said.silent) = (None, true);
                said.revision = ring.map_or(0, |ring| ring.revision);
            }),
            (Self::BelieveMissingNodes, ..) => {
                let missing = |node: &&NodeFacts| cluster.nodes.iter().all(|other| other.name != node.name);
                let missing: Vec<NodeFacts> = all.iter().filter(missing).cloned().collect();
                cluster.nodes.extend(missing.into_iter().map(|node| NodeFacts { excluded: true, ..node }));
            }
            _ => {}
        }
    }

    /// How far this manager's clock jumps ahead when it sees that: over the drain.
    #[must_use]
    pub fn hurries(self, cluster: &ClusterState, ring: Option<&Ring>) -> Duration {
        let with_role = |role| ring.and_then(|ring| ring.with_role(role));
        match (self, with_role(Role::Retiring), with_role(Role::Active)) {
            (Self::DropUndrained, Some(_), Some(active))
                if cluster.acknowledgements.values().all(|said| said.sends == Some(active.uid)) =>
            {
                DRAIN
            }
            _ => Duration::ZERO,
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
}

/// Makes every node say something, even those that say nothing.
fn pretend(cluster: &mut ClusterState, ring: Option<&Ring>, edit: impl Fn(&mut Acknowledgement)) {
    for node in &cluster.nodes {
        let (Some(uid), Some(boot)) = (node.uid, node.boot) else { continue };
        let nothing = Acknowledgement {
            node: uid,
            boot,
            installation: ring.and_then(|ring| ring.installation),
            receives: BTreeMap::new(),
            sends: None,
            silent: false,
            revision: 0,
            encrypts: false,
            burnt: BTreeMap::new(),
            spent: BTreeSet::new(),
            newest: 0,
            enforcement: Enforcement::Permissive,
            obstacles: BTreeSet::new(),
            unreachable: None,
            oversized: false,
        };
        edit(cluster.acknowledgements.entry(node.name.clone()).or_insert(nothing));
    }
}
