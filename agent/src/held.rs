//! Which key ring counts: the last good one that was made for this installation.

use std::sync::Arc;

use secureoverlay_common::{
    ring::{Ring, RingError},
    uid::Uid,
};
use zeroize::Zeroizing;

/// What the source of the ring shows.
pub enum Content {
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
pub enum Problem {
    /// There is no document.
    #[error("{0}; waiting for the manager to write a key ring")]
    Absent(String),
    /// The document is no ring.
    #[error(
        "{0}; mend the Secret, or empty it: the manager puts the last good ring back, or makes a new one"
    )]
    Bad(String),
    /// The ring belongs to a DaemonSet that is not ours.
    #[error(
        "the key ring was made for another installation ({0}); waiting for the manager to make a new one"
    )]
    Foreign(Uid),
}

/// The fold over all that the source showed.
#[derive(Default)]
pub struct Held {
    latest: Option<Result<Arc<Ring>, Problem>>,
    installation: Installation,
    ring: Option<Arc<Ring>>,
    problem: Option<Problem>,
}

impl Held {
    /// Takes what the source shows now. Its word counts even when the revision is lower than before (a restore).
    pub fn show(&mut self, content: Content) {
        self.latest = Some(match content {
            Content::Absent(why) => Err(Problem::Absent(why)),
            Content::Document(document) => match Ring::parse(&document) {
                Ok(ring) => Ok(Arc::new(ring)),
                Err(error @ RingError::Empty) => Err(Problem::Absent(error.to_string())),
                Err(error) => Err(Problem::Bad(error.to_string())),
            },
        });
        self.settle();
    }

    /// Takes what is known of our DaemonSet.
    pub fn installed(&mut self, installation: Installation) {
        self.installation = installation;
        self.settle();
    }

    /// The ring that counts.
    #[must_use]
    pub const fn ring(&self) -> Option<&Arc<Ring>> {
        self.ring.as_ref()
    }

    /// What is wrong with the source's present content.
    #[must_use]
    pub const fn problem(&self) -> Option<&Problem> {
        self.problem.as_ref()
    }

    fn settle(&mut self) {
        match &self.latest {
            None => {}
            Some(Err(problem)) => self.problem = Some(problem.clone()),
            Some(Ok(ring)) => match (ring.installation, self.installation) {
                // An old ring of a DaemonSet that was deleted would bring back keys that this boot has used.
                (Some(_), Installation::Pending) => {}
                (Some(theirs), Installation::Known(ours)) if theirs != ours => {
                    self.problem = Some(Problem::Foreign(theirs));
                }
                _ => {
                    self.ring = Some(ring.clone());
                    self.problem = None;
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = "0f3c9b1e-8d1f-4c57-9b43-5a9f3f1f2b6d";
    const OTHER: &str = "0f3c9b1e-8d1f-4c57-9b43-5a9f3f1f2b6e";

    fn ring(revision: u64, installation: Option<&str>) -> Content {
        let ring = Ring::off(revision, installation.map(|uid| uid.parse().unwrap()));
        Content::Document(Zeroizing::new(ring.to_yaml().as_bytes().to_vec()))
    }

    fn revision(held: &Held) -> Option<u64> {
        held.ring().map(|ring| ring.revision)
    }

    #[test]
    fn the_last_good_ring_stays_through_any_noise() {
        let mut held = Held::default();
        held.installed(Installation::Unreadable);
        held.show(ring(5, None));
        let noise: [&[u8]; 5] = [b"", b" \n", b"{[", &[0xff; 9], b"version: 9\n"];
        for bytes in noise {
            held.show(Content::Document(Zeroizing::new(bytes.to_vec())));
            assert_eq!(revision(&held), Some(5), "{bytes:?}");
            assert!(held.problem().is_some(), "{bytes:?}");
        }
        held.show(Content::Absent("the Secret is gone".into()));
        assert_eq!(revision(&held), Some(5));
        assert!(held.problem().unwrap().to_string().contains("the Secret is gone"));
        held.show(ring(6, None));
        assert_eq!((revision(&held), held.problem()), (Some(6), None));
    }

    #[test]
    fn a_restored_ring_counts_though_it_is_older() {
        let mut held = Held::default();
        held.installed(Installation::Unreadable);
        held.show(ring(9, None));
        held.show(ring(3, None));
        assert_eq!(revision(&held), Some(3));
    }

    #[test]
    fn a_ring_of_another_installation_is_ignored() {
        let mut held = Held::default();
        held.installed(Installation::Known(OURS.parse().unwrap()));
        held.show(ring(1, Some(OURS)));
        held.show(ring(2, Some(OTHER)));
        assert_eq!(revision(&held), Some(1));
        assert_eq!(held.problem(), Some(&Problem::Foreign(OTHER.parse().unwrap())));
        held.show(ring(3, None));
        assert_eq!((revision(&held), held.problem()), (Some(3), None));
    }

    #[test]
    fn a_ring_with_an_installation_waits_until_ours_is_known() {
        let mut held = Held::default();
        held.show(ring(1, Some(OTHER)));
        assert_eq!((revision(&held), held.problem()), (None, None));
        held.installed(Installation::Known(OURS.parse().unwrap()));
        assert_eq!(revision(&held), None);
        assert!(held.problem().is_some());
        held.show(ring(2, Some(OURS)));
        assert_eq!((revision(&held), held.problem()), (Some(2), None));
    }
}
