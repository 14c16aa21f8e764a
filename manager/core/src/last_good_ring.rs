//! The last good ring, for when something empties the Secret.

use secureoverlay_common::{ring::Ring, rotation::Installation};

/// The last good ring, and where it was read.
#[derive(Clone, Debug)]
pub(crate) struct LastGoodRing {
    /// UID of the Secret.
    pub(crate) secret: Option<String>,
    pub(crate) ring: Ring,
}

impl LastGoodRing {
    /// Whether it may be put back. A Secret that was made anew, or a DaemonSet that was, is a new beginning: nodes that
    /// have switched encryption off must never see the old keys again.
    pub(crate) fn belongs_to(&self, secret: Option<&str>, installation: Installation) -> bool {
        let same_installation = match installation {
            Installation::Unknown => true,
            Installation::Absent => false,
            Installation::Present(uid) => self.ring.installation.is_none_or(|other| other == uid),
        };
        same_installation && self.secret.as_deref() == secret
    }
}
