//! What a decision can be: one write of the ring, or waiting for something.

use std::{collections::BTreeSet, time::Duration};

use super::Blocker;
use crate::{
    ring::{Enforcement, Generation},
    uid::Uid,
};

/// One write of the ring, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Leave the ring as it is.
    Wait,
    /// Make the first generation of a new ring, staged.
    Bootstrap,
    /// Make the next generation, staged.
    Stage,
    /// Make the staged generation the active one, and the active one retiring.
    Activate,
    /// Take the retiring generation out.
    RemoveRetired,
    /// Give nodes that lost SAs a new incarnation.
    Rekey,
    /// Say which nodes peers do not encrypt to yet.
    Pend,
    /// From permissive to enforcing, or back.
    SetEnforcement(Enforcement),
    /// The last generation retires without a successor: nodes are to send nothing encrypted any more.
    StopSending,
    /// Empty the ring: encryption is off.
    Disable,
    /// Empty the ring: it was made for an installation that is gone.
    Reset,
}

impl Action {
    /// From permissive to enforcing.
    pub const ENFORCE: Self = Self::SetEnforcement(Enforcement::Enforcing);
    /// From enforcing to permissive.
    pub const RELAX: Self = Self::SetEnforcement(Enforcement::Permissive);

    /// Whether deciding on this by an old view of the cluster would do harm. A rekey does none: at worst a node gets one
    /// incarnation more.
    #[must_use]
    pub const fn requires_fresh_list(self) -> bool {
        match self {
            Self::Bootstrap
            | Self::Stage
            | Self::Activate
            | Self::RemoveRetired
            | Self::Pend
            | Self::SetEnforcement(Enforcement::Enforcing | Enforcement::Off)
            | Self::StopSending
            | Self::Disable => true,
            Self::Wait | Self::Rekey | Self::SetEnforcement(Enforcement::Permissive) | Self::Reset => false,
        }
    }

    /// Whether leaving nodes out of this would do harm.
    #[must_use]
    pub const fn requires_all_nodes(self) -> bool {
        match self {
            Self::Activate
            | Self::RemoveRetired
            | Self::Pend
            | Self::SetEnforcement(Enforcement::Enforcing | Enforcement::Off)
            | Self::StopSending
            | Self::Disable => true,
            Self::Wait
            | Self::Bootstrap
            | Self::Stage
            | Self::Rekey
            | Self::SetEnforcement(Enforcement::Permissive)
            | Self::Reset => false,
        }
    }

    /// In a few words.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Wait => "wait",
            Self::Bootstrap => "bootstrap",
            Self::Stage => "stage",
            Self::Activate => "activate",
            Self::RemoveRetired => "remove retired",
            Self::Rekey => "rekey",
            Self::Pend => "pend",
            Self::SetEnforcement(Enforcement::Off) => "set enforcement off",
            Self::SetEnforcement(Enforcement::Permissive) => "set enforcement permissive",
            Self::SetEnforcement(Enforcement::Enforcing) => "set enforcement enforcing",
            Self::StopSending => "stop sending",
            Self::Disable => "disable",
            Self::Reset => "reset",
        }
    }
}

/// What makes a rotation due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// There is no key, or none that can be sent with.
    First,
    /// [`Evidence::requested`](super::Evidence::requested).
    Request,
    /// An older ring was put into the place of the last one.
    Restored,
    /// Another suite is wanted.
    Suite,
    /// The clock went back.
    Clock,
    /// The time has come.
    Schedule,
}

/// What the nodes are to do before the next write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Receive with the staged generation.
    Receive,
    /// Send with the active generation, and no longer with the retiring one.
    Switch,
    /// Encrypt to every peer, so that plaintext can be turned away.
    Enforce,
    /// Accept plaintext again.
    AcceptPlaintext,
    /// Send nothing encrypted any more.
    StopSending,
}

impl Step {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Receive, Self::Switch, Self::Enforce, Self::AcceptPlaintext, Self::StopSending];

    /// The write that comes once the nodes have done it.
    #[must_use]
    pub const fn action(self) -> Action {
        match self {
            Self::Receive => Action::Activate,
            Self::Switch => Action::RemoveRetired,
            Self::Enforce => Action::ENFORCE,
            Self::AcceptPlaintext => Action::StopSending,
            Self::StopSending => Action::Disable,
        }
    }

    /// In a few words.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Receive => "receive",
            Self::Switch => "switch",
            Self::Enforce => "enforce",
            Self::AcceptPlaintext => "accept plaintext",
            Self::StopSending => "stop sending",
        }
    }
}

/// A step that is not done yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// What the nodes are to do.
    pub step: Step,
    /// UID of the generation that they are to do it with: the new one where two are in use.
    pub generation: Uid,
    /// Its number.
    pub id: u64,
    /// The nodes that have not done it, by name. Empty where only time has to pass, or nothing is known.
    pub nodes: BTreeSet<String>,
    /// When it may be done at the earliest, or a node may be left behind; `None` where that is not known.
    pub look_in: Option<Duration>,
    /// What speaks against it.
    pub blocker: Option<Blocker>,
}

impl Wait {
    /// Tells this wait from the one for another step, or for the same step of another rotation.
    #[must_use]
    pub const fn key(&self) -> (Uid, Step) {
        (self.generation, self.step)
    }

    pub(super) fn new(step: Step, generation: &Generation) -> Self {
        Self {
            step,
            generation: generation.uid,
            id: generation.id,
            nodes: BTreeSet::new(),
            look_in: None,
            blocker: None,
        }
    }
}

/// What to do now, and when to look again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The write.
    pub action: Action,
    /// When to decide anew if nothing happens before; zero after a write.
    pub wake_in: Duration,
    /// Why, for people.
    pub reason: String,
    /// Why, for statistics, where a new generation is made.
    pub cause: Option<Cause>,
    /// The step that is not done yet. It may stand beside a write that takes nothing from it: [`Action::Rekey`],
    /// [`Action::Pend`].
    pub wait: Option<Wait>,
}

impl Decision {
    pub(super) fn act(action: Action, reason: impl Into<String>) -> Self {
        Self { action, wake_in: Duration::ZERO, reason: reason.into(), cause: None, wait: None }
    }

    pub(super) fn rotate(action: Action, cause: Cause, reason: impl Into<String>) -> Self {
        Self { cause: Some(cause), ..Self::act(action, reason) }
    }

    pub(super) fn wait(wake_in: Duration, reason: impl Into<String>) -> Self {
        Self { wake_in, ..Self::act(Action::Wait, reason) }
    }
}
