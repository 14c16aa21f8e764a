//! All that a decision depends on.

use jiff::Timestamp;
use secureoverlay_keyring::{
    keyring::{Excluded, Identities, KeyRing},
    settings::Settings,
};

use crate::{Evidence, Installation, Pace, RotationTimes};

/// What operators ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// A rotation now, and in which way it was asked for.
    pub rotate: Option<String>,
    /// The rotation under way goes on without the nodes that it waits for.
    pub skip_unresponsive: bool,
}

/// Whether what the API server shows can be built on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum History {
    /// Nothing speaks against it.
    #[default]
    Consistent,
    /// The store went back, and the API server was not restarted: agents see another state than a quorum read.
    WentBack,
}

/// What [`decide`](crate::decide) decides by.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'i> {
    /// The ring; `None` where the Secret is empty or gone.
    pub ring: Option<&'i KeyRing>,
    /// The last ring that this process read or wrote, where it may be put back.
    pub last: Option<&'i KeyRing>,
    /// The DaemonSet of the agents.
    pub installation: Installation,
    /// What is known of the nodes.
    pub evidence: &'i Evidence,
    /// The settings that are wanted, as the ring is to hold them.
    pub settings: &'i Settings,
    /// The exclusions that are wanted, as the ring is to hold them.
    pub excluded: &'i Excluded,
    /// What operators ask for.
    pub requests: &'i Requests,
    /// Identities of new generations.
    pub identities: Identities,
    /// When rotations are due.
    pub times: RotationTimes,
    /// What this process has to wait for by itself.
    pub pace: Pace,
    /// Whether the API server can be built on.
    pub history: History,
    /// What time it is.
    pub now: Timestamp,
}
