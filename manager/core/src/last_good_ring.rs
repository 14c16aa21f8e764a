//! The last good ring, for when something empties the Secret.

use secureoverlay_keyring::keyring::KeyRing;
use secureoverlay_rotation::Installation;

/// The last good ring, and where it was read.
#[derive(Clone, Debug)]
pub(crate) struct LastGoodRing {
    /// UID of the Secret.
    pub(crate) secret: Option<String>,
    pub(crate) ring: KeyRing,
}

impl LastGoodRing {
    /// Whether it may be put back. A DaemonSet that was made anew is a new beginning. Where that can't be seen, a Secret
    /// that was made anew is one: nodes that have switched encryption off must never see the old keys again, and can't
    /// say that they refuse them.
    pub(crate) fn belongs_to(&self, secret: Option<&str>, installation: Installation) -> bool {
        match installation {
            Installation::Unknown => self.secret.as_deref() == secret,
            Installation::Absent => false,
            Installation::Present(uid) => self.ring.installation.is_none_or(|other| other == uid),
        }
    }
}
