//! The simulator proves itself: deliberately wrong variants of manager and agent, each of which it must catch.
//!
//! All of them live in the simulator's own shells around the product's code; the product has no switch for them.

use std::{collections::BTreeMap, sync::Arc};

use secureoverlay_agent_core::{
    agent::Start,
    journal::Record,
    pair::PairId,
    plan::{PlannedPair, ReconcileTarget},
    xfrm::SaId,
};
use secureoverlay_keyring::keyring::{KeyRing, Role};
use secureoverlay_manager_core::{controller::Write, snapshot::ClusterState};
use secureoverlay_rotation::Action;
use serde::{Deserialize, Serialize};

/// A mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Variant {
    /// The agent draws a new identity at every start.
    RedrawAtRestart,
    /// The agent installs outbound SAs without writing down that their keys are used.
    InstallBeforeJournal,
    /// The agent pins what was not answered.
    PinUnanswered,
    /// The agent takes an answer that came by another SA.
    CountAnswerForAnother,
    /// The agent drops inbound SAs with the entries that they are for, and makes them anew when these come back.
    DropWithdrawn,
    /// The agent follows rings that are older than what it applied.
    FollowOlderRing,
    /// The agent follows rings with generations that were removed.
    FollowGoneGeneration,
    /// The agent takes peers away whose objects are gone.
    TakeVanishedAway,
    /// The agent removes policies whose SAs are missing.
    UnpinLost,
    /// The manager removes a generation while nodes send with it.
    RemoveUnmoved,
    /// The manager counts acknowledgements of whatever was asked before.
    BelieveRestoredAcks,
    /// The manager begins anew beside a restored active generation.
    BootstrapBesideActive,
    /// The manager writes whatever was written since it read.
    WriteUnconditionally,
}

impl Variant {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::RedrawAtRestart,
        Self::InstallBeforeJournal,
        Self::PinUnanswered,
        Self::CountAnswerForAnother,
        Self::DropWithdrawn,
        Self::FollowOlderRing,
        Self::FollowGoneGeneration,
        Self::TakeVanishedAway,
        Self::UnpinLost,
        Self::RemoveUnmoved,
        Self::BelieveRestoredAcks,
        Self::BootstrapBesideActive,
        Self::WriteUnconditionally,
    ];

    /// The faults that it stumbles over, by their numbers; none: any.
    #[must_use]
    pub const fn kinds(self) -> &'static [u64] {
        match self {
            Self::RedrawAtRestart => &[5],
            Self::InstallBeforeJournal => &[5, 22, 25],
            Self::PinUnanswered | Self::CountAnswerForAnother => &[12, 27, 43],
            Self::DropWithdrawn => &[14, 22, 38, 43],
            Self::FollowOlderRing | Self::FollowGoneGeneration | Self::BootstrapBesideActive => {
                &[0, 33, 35, 43]
            }
            Self::TakeVanishedAway => &[37],
            Self::UnpinLost => &[22, 25],
            Self::RemoveUnmoved => &[6, 7, 43],
            // Turned away, accepted, and off: an agent that is late, and what it said the last time.
            Self::BelieveRestoredAcks => &[6, 7, 41, 42, 46],
            Self::WriteUnconditionally => &[1, 2, 43],
        }
    }

    /// What this agent remembers at its start.
    pub fn forget(self, start: &mut Start, record: &mut Record) {
        if matches!(self, Self::FollowOlderRing | Self::FollowGoneGeneration) {
            start.gone.clear();
            let text = record.to_text();
            let lines = text.lines().filter(|line| !line.starts_with("gone "));
            let text: String = lines.map(|line| format!("{line}\n")).collect();
            *record = Record::parse(text.as_bytes()).unwrap_or_default();
        }
        if self == Self::FollowOlderRing {
            start.state.applied = None;
        }
    }

    /// What this agent takes its target for. `pairs`: those of the run before; `there`: whether the kernel has an SA.
    pub fn misread(
        self,
        target: &mut ReconcileTarget,
        pairs: &BTreeMap<PairId, PlannedPair>,
        there: impl Fn(SaId) -> bool,
    ) {
        let Some(states) = target.input.as_mut().and_then(|input| input.pairs.as_mut()) else { return };
        match self {
            Self::PinUnanswered => {
                for (pair, planned) in pairs {
                    let state = Arc::make_mut(states).entry(*pair).or_default();
                    state.proven.extend(planned.offered.iter().copied());
                }
            }
            Self::UnpinLost => {
                for (pair, state) in Arc::make_mut(states) {
                    state.pin = state.pin.filter(|spi| there(SaId { dst: pair.dst.ip(), spi: *spi }));
                }
            }
            _ => {}
        }
    }

    /// What this manager takes a snapshot for.
    pub fn mishear(self, cluster: &mut ClusterState, ring: Option<&KeyRing>) {
        let Some(ring) = ring else { return };
        let acks = cluster.acks.values_mut().filter_map(|object| object.content.as_mut());
        for ack in acks {
            if matches!(self, Self::BelieveRestoredAcks | Self::RemoveUnmoved) {
                ack.ack_id = ring.ack_id;
            }
            if self == Self::RemoveUnmoved
                && let (Some(_), Some(active)) = (ring.retiring(), ring.active())
            {
                ack.active_generation = Some(active.uid);
                ack.unproven_pairs.clear();
            }
        }
    }

    /// What this manager writes.
    pub fn miswrite(self, write: &mut Write, before: Option<&KeyRing>) {
        if self == Self::BootstrapBesideActive
            && write.action == Action::Bootstrap
            && let Some(active) = before.and_then(KeyRing::active)
        {
            let mut active = active.clone();
            active.role = Role::Active;
            write.ring.generations.insert(0, active);
        }
    }
}
