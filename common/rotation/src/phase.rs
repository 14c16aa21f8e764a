//! Where a key ring is in the life of its keys.

use secureoverlay_keyring::keyring::{Enforcement, Generation, KeyRing, Role};

/// Which roles the generations of a ring have, together. Found once, by [`Phase::of`], and matched
/// wherever it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase<'r> {
    /// There is no ring. That is not "off": nodes go on with what they hold.
    Empty,
    /// A ring without generations: encryption is off.
    Off,
    /// The first generation of a new ring is staged. The ring says nothing of what nodes sent with before.
    Bootstrapping {
        /// The first generation.
        staged: &'r Generation,
    },
    /// One generation is in use, and no other is there.
    Steady {
        /// The generation in use.
        active: &'r Generation,
    },
    /// The next generation is on its way to every node.
    Staged {
        /// The generation in use.
        active: &'r Generation,
        /// The next one.
        staged: &'r Generation,
    },
    /// The generation in use was replaced, and nodes move to the new one. One that is staged as well waits for the end
    /// of that.
    Draining {
        /// The generation that was replaced.
        retiring: &'r Generation,
        /// The generation in use.
        active: &'r Generation,
    },
    /// The last generation retires without a successor: encryption is being switched off.
    Stopping {
        /// The last generation.
        retiring: &'r Generation,
    },
    /// Encryption is wanted again before the last generation was drained.
    Resuming {
        /// The generation that was to be the last one.
        retiring: &'r Generation,
        /// The next one.
        staged: &'r Generation,
    },
}

impl<'r> Phase<'r> {
    /// The phase of `ring`; `None` where there is none.
    #[must_use]
    pub fn of(ring: Option<&'r KeyRing>) -> Self {
        let Some(ring) = ring else { return Self::Empty };
        if ring.enforcement == Enforcement::Off {
            return Self::Off;
        }
        let with_role = |role| ring.with_role(role);
        match (with_role(Role::Retiring), with_role(Role::Active), with_role(Role::Staged)) {
            (None, None, None) => Self::Off,
            (None, None, Some(staged)) => Self::Bootstrapping { staged },
            (None, Some(active), None) => Self::Steady { active },
            (None, Some(active), Some(staged)) => Self::Staged { active, staged },
            (Some(retiring), Some(active), _) => Self::Draining { retiring, active },
            (Some(retiring), None, None) => Self::Stopping { retiring },
            (Some(retiring), None, Some(staged)) => Self::Resuming { retiring, staged },
        }
    }

    /// The generation that nodes send with.
    #[must_use]
    pub const fn active(self) -> Option<&'r Generation> {
        match self {
            Self::Steady { active } | Self::Staged { active, .. } | Self::Draining { active, .. } => {
                Some(active)
            }
            Self::Empty
            | Self::Off
            | Self::Bootstrapping { .. }
            | Self::Stopping { .. }
            | Self::Resuming { .. } => None,
        }
    }

    /// The generation that is to be activated next.
    #[must_use]
    pub const fn staged(self) -> Option<&'r Generation> {
        match self {
            Self::Bootstrapping { staged } | Self::Staged { staged, .. } | Self::Resuming { staged, .. } => {
                Some(staged)
            }
            Self::Empty | Self::Off | Self::Steady { .. } | Self::Draining { .. } | Self::Stopping { .. } => {
                None
            }
        }
    }

    /// The generation that nodes are to stop sending with.
    #[must_use]
    pub const fn retiring(self) -> Option<&'r Generation> {
        match self {
            Self::Draining { retiring, .. }
            | Self::Stopping { retiring }
            | Self::Resuming { retiring, .. } => Some(retiring),
            Self::Empty
            | Self::Off
            | Self::Bootstrapping { .. }
            | Self::Steady { .. }
            | Self::Staged { .. } => None,
        }
    }

    /// Whether nothing was ever sent with a generation of this ring.
    #[must_use]
    pub const fn is_bootstrapping(self) -> bool {
        matches!(self, Self::Bootstrapping { .. })
    }

    /// In one word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Off => "off",
            Self::Bootstrapping { .. } => "bootstrapping",
            Self::Steady { .. } => "steady",
            Self::Staged { .. } => "staged",
            Self::Draining { .. } => "draining",
            Self::Stopping { .. } => "stopping",
            Self::Resuming { .. } => "resuming",
        }
    }
}
