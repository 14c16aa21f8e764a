//! Which key ring counts: the last good one that was made for this installation and is not older than what was
//! applied.

use std::{collections::BTreeSet, sync::Arc};

use secureoverlay_keyring::{
    keyring::{KeyRing, KeyRingError},
    uid::Uid,
};
use zeroize::Zeroizing;

use crate::persisted::Applied;

/// What the source of the ring shows.
pub enum RingInput {
    /// The document, as yet unread.
    Document(Zeroizing<Vec<u8>>),
    /// There is no document, for the reason given.
    Absent(String),
}

/// The DaemonSet that this agent belongs to. A ring names the one that it was made for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Installation {
    /// The API has not said yet.
    #[default]
    Pending,
    /// Its UID.
    Known(Uid),
    /// This agent may not read it: every ring is taken for ours.
    Unreadable,
}

/// Why the source's content does not count.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingProblem {
    /// There is no document.
    #[error("{0}; waiting for the manager to write a key ring")]
    Absent(String),
    /// The document is no ring.
    #[error(
        "key ring rejected, keeping the last valid revision: {0}; mend the Secret, or empty it: the manager writes it anew"
    )]
    Invalid(String),
    /// The ring belongs to a DaemonSet that is not ours.
    #[error(
        "the key ring was made for another installation ({0}); waiting for the manager to make a new one"
    )]
    OtherInstallation(Uid),
    /// The ring is older than what this node applied.
    #[error(
        "the key ring is older than the one that this node applied ({0}); keeping that one until the manager makes a new one"
    )]
    OlderThanApplied(OlderRing),
}

impl RingProblem {
    /// The blocker or condition that it is, in one word.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Absent(_) => "KeyRingAbsent",
            Self::Invalid(_) => "KeyRingInvalid",
            Self::OtherInstallation(_) => "KeyRingOfOtherInstallation",
            Self::OlderThanApplied(_) => "KeyRingOlderThanApplied",
        }
    }
}

/// How a ring shows that it is older.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OlderRing {
    /// It lists a generation that has left this node's kernel.
    #[error("generation {0} was removed from this node already")]
    GenerationGone(u64),
    /// Its reference generation has a lower number.
    #[error("generation {theirs} instead of {ours}")]
    LowerGeneration {
        /// In the ring.
        theirs: u64,
        /// Applied.
        ours: u64,
    },
    /// The same number for another generation.
    #[error("another generation {0}")]
    OtherGeneration(u64),
    /// A lower revision of the same generation, or of a ring without any.
    #[error("revision {theirs} instead of {ours}")]
    LowerRevision {
        /// In the ring.
        theirs: u64,
        /// Applied.
        ours: u64,
    },
}

/// Whether a ring may be applied after what was applied already. Revisions of two histories can't be compared, so a
/// generation that is `gone` counts as well.
///
/// # Errors
/// How it shows that it is older.
pub fn admit(ring: &KeyRing, applied: Option<&Applied>, gone: &BTreeSet<Uid>) -> Result<(), OlderRing> {
    if let Some(generation) = ring.generations.iter().find(|generation| gone.contains(&generation.uid)) {
        return Err(OlderRing::GenerationGone(generation.id));
    }
    let Some(applied) = applied else { return Ok(()) };
    let lower_revision = OlderRing::LowerRevision { theirs: ring.revision, ours: applied.revision };
    let older = ring.revision < applied.revision;
    match ring.reference() {
        None if older => Err(lower_revision),
        None => Ok(()),
        Some(reference) if reference.id > applied.id => Ok(()),
        Some(reference) if reference.id < applied.id => {
            Err(OlderRing::LowerGeneration { theirs: reference.id, ours: applied.id })
        }
        Some(reference) if applied.uid != Some(reference.uid) => {
            Err(OlderRing::OtherGeneration(reference.id))
        }
        Some(_) if older => Err(lower_revision),
        Some(_) => Ok(()),
    }
}

/// The fold over all that the source showed.
#[derive(Default)]
pub struct RingCache {
    latest: Option<Result<Arc<KeyRing>, RingProblem>>,
    installation: Installation,
    ring: Option<Arc<KeyRing>>,
    problem: Option<RingProblem>,
}

impl RingCache {
    /// Takes what the source shows now.
    pub fn update(&mut self, input: RingInput) {
        self.latest = Some(match input {
            RingInput::Absent(why) => Err(RingProblem::Absent(why)),
            RingInput::Document(document) => match KeyRing::parse(&document) {
                Ok(ring) => Ok(Arc::new(ring)),
                Err(error @ KeyRingError::Empty) => Err(RingProblem::Absent(error.to_string())),
                Err(error) => Err(RingProblem::Invalid(error.to_string())),
            },
        });
    }

    /// Takes what is known of our DaemonSet.
    pub const fn set_installation(&mut self, installation: Installation) {
        self.installation = installation;
    }

    /// Decides anew which ring counts. Returns whether it is another one than before.
    pub fn reevaluate(&mut self, applied: Option<&Applied>, gone: &BTreeSet<Uid>) -> bool {
        let ring = match &self.latest {
            None => return false,
            Some(Err(problem)) => {
                self.problem = Some(problem.clone());
                return false;
            }
            Some(Ok(ring)) => ring,
        };
        match (ring.installation, self.installation) {
            // A ring of a DaemonSet that was deleted must not be taken for ours meanwhile.
            (Some(_), Installation::Pending) => return false,
            (Some(theirs), Installation::Known(ours)) if theirs != ours => {
                self.problem = Some(RingProblem::OtherInstallation(theirs));
                return false;
            }
            _ => {}
        }
        // A list, or a read by quorum, shows the same ring again.
        if self.ring.as_ref() == Some(ring) {
            self.problem = None;
            return false;
        }
        match admit(ring, applied, gone) {
            Ok(()) => {
                self.ring = Some(ring.clone());
                self.problem = None;
                true
            }
            Err(older) => {
                self.problem = Some(RingProblem::OlderThanApplied(older));
                false
            }
        }
    }

    /// The ring that counts.
    #[must_use]
    pub const fn ring(&self) -> Option<&Arc<KeyRing>> {
        self.ring.as_ref()
    }

    /// The `ackId` to answer: that of the newest ring of our installation, also where it is refused.
    #[must_use]
    pub fn ack_id(&self) -> Option<Uid> {
        let refused = matches!(self.problem, Some(RingProblem::OlderThanApplied(_)));
        let latest = self.latest.as_ref().and_then(|latest| latest.as_ref().ok());
        latest.filter(|_| refused).or(self.ring.as_ref()).map(|ring| ring.ack_id)
    }

    /// What is wrong with the source's present content.
    #[must_use]
    pub const fn problem(&self) -> Option<&RingProblem> {
        self.problem.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use secureoverlay_keyring::{
        keyring::{Enforcement, Role},
        settings::Settings,
    };

    use super::*;
    use crate::testing::{generation, ring, uid};

    fn show(cache: &mut RingCache, ring: &KeyRing) -> bool {
        cache.update(RingInput::Document(Zeroizing::new(ring.to_yaml().as_bytes().to_vec())));
        cache.reevaluate(None, &BTreeSet::new())
    }

    #[test]
    fn last_good_ring_stays_through_any_noise() {
        let mut cache = RingCache::default();
        cache.set_installation(Installation::Unreadable);
        assert!(show(&mut cache, &ring(Enforcement::Permissive, &[(1, Role::Active)])));
        for bytes in [&b""[..], b" \n", b"{[", &[0xff; 9], b"version: 9\n"] {
            cache.update(RingInput::Document(Zeroizing::new(bytes.to_vec())));
            assert!(!cache.reevaluate(None, &BTreeSet::new()));
            assert!(cache.ring().is_some() && cache.problem().is_some(), "{bytes:?}");
        }
    }

    #[test]
    fn ring_that_is_shown_again_is_the_same() {
        let mut cache = RingCache::default();
        cache.set_installation(Installation::Unreadable);
        let same = ring(Enforcement::Permissive, &[(1, Role::Active)]);
        assert!(show(&mut cache, &same));
        let before = cache.ring().cloned().unwrap();
        assert!(!show(&mut cache, &same));
        assert!(Arc::ptr_eq(&before, cache.ring().unwrap()), "what was applied is this one");
    }

    #[test]
    fn ring_of_another_installation_waits_or_is_refused() {
        let mut cache = RingCache::default();
        let theirs = KeyRing::off(1, uid(3), Some(uid(9)), Settings::default());
        assert!(!show(&mut cache, &theirs));
        assert_eq!((cache.ring(), cache.problem()), (None, None));
        cache.set_installation(Installation::Known(uid(8)));
        cache.reevaluate(None, &BTreeSet::new());
        assert_eq!(cache.problem(), Some(&RingProblem::OtherInstallation(uid(9))));
        cache.set_installation(Installation::Known(uid(9)));
        assert!(cache.reevaluate(None, &BTreeSet::new()));
    }

    #[test]
    fn older_ring_is_refused_and_its_ack_id_is_answered() {
        let mut cache = RingCache::default();
        cache.set_installation(Installation::Unreadable);
        let new = ring(Enforcement::Permissive, &[(5, Role::Active)]);
        show(&mut cache, &new);
        let applied = Applied::after(None, &new);
        let old = KeyRing { ack_id: uid(77), ..ring(Enforcement::Permissive, &[(4, Role::Active)]) };
        cache.update(RingInput::Document(Zeroizing::new(old.to_yaml().as_bytes().to_vec())));
        assert!(!cache.reevaluate(Some(&applied), &BTreeSet::new()));
        assert_eq!(cache.problem().map(RingProblem::reason), Some("KeyRingOlderThanApplied"));
        assert_eq!((cache.ring().unwrap().highest_id(), cache.ack_id()), (5, Some(uid(77))));
    }

    #[test]
    fn rings_are_compared_by_their_reference_generation() {
        let with = |revision, roles: &[(u8, Role)]| KeyRing {
            revision,
            ..ring(if roles.is_empty() { Enforcement::Off } else { Enforcement::Permissive }, roles)
        };
        let applied = Applied::after(None, &with(10, &[(4, Role::Retiring), (5, Role::Active)]));
        for (text, ring, admitted) in [
            ("a later generation", with(1, &[(6, Role::Active)]), true),
            ("the same again", with(10, &[(5, Role::Active)]), true),
            ("a staged one was dropped", with(11, &[(5, Role::Active)]), true),
            ("a lower revision", with(9, &[(5, Role::Active), (6, Role::Staged)]), false),
            ("an earlier generation", with(11, &[(4, Role::Active)]), false),
            ("off, later", with(11, &[]), true),
            ("off, earlier", with(9, &[]), false),
        ] {
            assert_eq!(admit(&ring, Some(&applied), &BTreeSet::new()).is_ok(), admitted, "{text}");
            assert!(admit(&ring, None, &BTreeSet::new()).is_ok(), "{text}, nothing applied");
        }
        let mut other = with(12, &[(5, Role::Active)]);
        other.generations[0].uid = uid(99);
        assert!(admit(&other, Some(&applied), &BTreeSet::new()).is_err());
        let gone = [generation(6, Role::Active).uid].into();
        assert!(admit(&with(12, &[(6, Role::Active)]), Some(&applied), &gone).is_err());
        let off = Applied::after(Some(&applied), &with(11, &[]));
        assert_eq!((off.id, off.revision), (5, 11));
    }
}
