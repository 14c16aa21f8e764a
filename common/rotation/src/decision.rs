//! What a decision can be: one write of the ring, or waiting for something.

use std::{collections::BTreeSet, time::Duration};

use secureoverlay_keyring::{
    keyring::{Enforcement, Generation},
    suite::Suite,
    uid::Uid,
};

use crate::evidence::Blocker;

/// One write of the ring, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Leave the ring as it is.
    Wait,
    /// Make the first generation of a new ring, staged alone.
    Bootstrap,
    /// Make the next generation, staged.
    Stage,
    /// Make the staged generation the active one, and the active one retiring.
    Activate,
    /// Take the retiring generation out.
    RemoveRetired,
    /// Take the staged generation out: nodes could not prove it.
    RemoveStaged,
    /// From permissive to enforcing, or back.
    SetEnforcement(Enforcement),
    /// The last generation retires without a successor: nodes are to send nothing encrypted any more.
    StopSending,
    /// Empty the ring: encryption is off.
    Disable,
    /// Put the last ring of this process back into a Secret that lost it.
    Restore,
    /// Ask every node to acknowledge again.
    RenewAckId,
    /// Bring settings and exclusions up to date.
    Update,
}

impl Action {
    /// From permissive to enforcing.
    pub const ENFORCE: Self = Self::SetEnforcement(Enforcement::Enforcing);
    /// From enforcing to permissive.
    pub const RELAX: Self = Self::SetEnforcement(Enforcement::Permissive);

    /// Whether deciding on this by an old view of the cluster would do harm.
    #[must_use]
    pub const fn requires_fresh_list(self) -> bool {
        match self {
            Self::Bootstrap
            | Self::Stage
            | Self::Activate
            | Self::RemoveRetired
            | Self::RemoveStaged
            | Self::SetEnforcement(Enforcement::Enforcing | Enforcement::Off)
            | Self::StopSending
            | Self::Disable => true,
            Self::Wait
            | Self::SetEnforcement(Enforcement::Permissive)
            | Self::Restore
            | Self::RenewAckId
            | Self::Update => false,
        }
    }

    /// Whether leaving nodes out of this would do harm.
    #[must_use]
    pub const fn requires_all_nodes(self) -> bool {
        match self {
            Self::Activate
            | Self::RemoveRetired
            | Self::SetEnforcement(Enforcement::Enforcing | Enforcement::Off)
            | Self::StopSending
            | Self::Disable => true,
            Self::Wait
            | Self::Bootstrap
            | Self::Stage
            | Self::RemoveStaged
            | Self::SetEnforcement(Enforcement::Permissive)
            | Self::Restore
            | Self::RenewAckId
            | Self::Update => false,
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
            Self::RemoveStaged => "remove staged",
            Self::SetEnforcement(Enforcement::Off) => "set enforcement off",
            Self::SetEnforcement(Enforcement::Permissive) => "set enforcement permissive",
            Self::SetEnforcement(Enforcement::Enforcing) => "set enforcement enforcing",
            Self::StopSending => "stop sending",
            Self::Disable => "disable",
            Self::Restore => "restore",
            Self::RenewAckId => "renew ackId",
            Self::Update => "update",
        }
    }
}

/// What makes a rotation due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// There is no key, or none that can be sent with.
    First,
    /// Nodes have applied a newer ring than the one that is there.
    Restored,
    /// An operator asks for it.
    Request,
    /// Another suite, or another kind of identities, is wanted.
    Suite,
    /// An SA has reached a limit.
    Exhausted,
    /// The clock went back.
    Clock,
    /// The time has come.
    Schedule,
}

/// A new generation: why, and with which suite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// Why it is made.
    pub cause: Cause,
    /// Its suite.
    pub suite: Suite,
}

/// What the nodes are to do before the next write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Receive with the staged generation, and prove it.
    Receive,
    /// Send with the active generation, and no longer with the retiring one.
    Switch,
    /// Prove every pair, so that plaintext can be turned away.
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
    /// How many nodes are waited for, with those that have done it.
    pub total: usize,
    /// Whether one of the missing nodes is Ready.
    pub any_ready: bool,
    /// For how long nodes have been missing.
    pub waited: Duration,
    /// When it may be done at the earliest; `None` where that is not known.
    pub look_in: Option<Duration>,
    /// What speaks against it.
    pub blockers: Vec<Blocker>,
}

impl Wait {
    /// Tells this wait from the one for another step, or for the same step of another rotation.
    #[must_use]
    pub const fn key(&self) -> (Uid, Step) {
        (self.generation, self.step)
    }

    pub(crate) const fn new(step: Step, generation: &Generation) -> Self {
        Self {
            step,
            generation: generation.uid,
            id: generation.id,
            nodes: BTreeSet::new(),
            total: 0,
            any_ready: false,
            waited: Duration::ZERO,
            look_in: None,
            blockers: Vec::new(),
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
    /// The new generation, where one is made.
    pub rotation: Option<Rotation>,
    /// The step that is not done yet. It may stand beside a write that takes nothing from it: [`Action::RenewAckId`],
    /// [`Action::Update`].
    pub wait: Option<Wait>,
}

impl Decision {
    pub(crate) fn act(action: Action, reason: impl Into<String>) -> Self {
        Self { action, wake_in: Duration::ZERO, reason: reason.into(), rotation: None, wait: None }
    }

    pub(crate) fn rotate(action: Action, cause: Cause, suite: Suite, reason: impl Into<String>) -> Self {
        Self { rotation: Some(Rotation { cause, suite }), ..Self::act(action, reason) }
    }

    /// Waits, and does nothing else.
    #[must_use]
    pub fn wait(wake_in: Duration, reason: impl Into<String>) -> Self {
        Self { wake_in, ..Self::act(Action::Wait, reason) }
    }
}
