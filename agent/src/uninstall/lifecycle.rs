//! Whether this process goes on, ends, or takes everything of ours out of the kernel before it ends.

use secureoverlay_agent_core::ring_cache::Installation;

use crate::uninstall::removal::{Sighting, Verdict, Watched};

/// What to find out when the process is asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutdownQuery {
    /// Nothing: it is known already.
    None,
    /// Whether the DaemonSet is still there.
    DaemonSet,
    /// Whether this agent may still read its own Node.
    Node,
}

/// The fold over what the API shows of our DaemonSet.
#[derive(Debug, Default)]
pub struct Lifecycle {
    watched: Watched,
    installation: Installation,
    /// A DaemonSet took this agent's pod over after the removal had begun.
    adopted: bool,
    ending: Option<Verdict>,
}

impl Lifecycle {
    /// Takes what the API shows. Returns whether the product is being removed.
    pub fn see(&mut self, sighting: Option<Sighting>, removing: bool) -> bool {
        match sighting {
            None => self.installation = Installation::Unreadable,
            Some(Sighting::Present { uid: Some(uid), .. }) => self.installation = Installation::Known(uid),
            Some(Sighting::Present { uid: None, .. }) => {}
            // Nothing to compare a ring with: this agent was started by hand, or is being removed.
            Some(Sighting::Absent) if self.installation == Installation::Pending => {
                self.installation = Installation::Unreadable;
            }
            Some(Sighting::Absent) => {}
        }
        let removal = sighting.and_then(|sighting| self.watched.sight(sighting)).is_some();
        let present = matches!(sighting, Some(Sighting::Present { deleting: false, .. }));
        self.adopted = (removing || removal) && present;
        removal
    }

    /// The DaemonSet that a ring has to be made for.
    #[must_use]
    pub const fn installation(&self) -> Installation {
        self.installation
    }

    /// The DaemonSet was deleted without its pods: the next process on this node should know.
    #[must_use]
    pub const fn orphaned(&self) -> bool {
        self.watched.orphaned()
    }

    /// The process before this one has seen that.
    pub const fn remember_orphaned(&mut self) {
        self.watched.remember_orphaned();
    }

    /// What to find out now that the process is asked to end. `heard`: the API has shown peers to this process.
    #[must_use]
    pub const fn query(&self, removing: bool, heard: bool) -> ShutdownQuery {
        match self.installation {
            _ if removing => ShutdownQuery::None,
            Installation::Known(_) => ShutdownQuery::DaemonSet,
            Installation::Unreadable if heard => ShutdownQuery::Node,
            Installation::Pending | Installation::Unreadable => ShutdownQuery::None,
        }
    }

    /// The verdict once the API answered about the DaemonSet; `None` where it did not.
    pub fn judge(&mut self, answer: Option<Sighting>) -> Verdict {
        self.watched.at_the_end(answer)
    }

    /// The process is asked to end for this reason.
    pub const fn end(&mut self, verdict: Verdict) {
        self.ending = Some(verdict);
    }

    /// Nothing is left to do before the process may end: everything of ours is gone, or nothing of it is to go.
    #[must_use]
    pub const fn may_end(&self, under_way: bool, removing: bool, removed: bool) -> bool {
        match self.ending {
            // The next process begins anew.
            None => removed && self.adopted,
            // An attempt that breaks off leaves keys that count as used and never were.
            Some(Verdict::Restart) => !under_way && (!removing || removed),
            Some(Verdict::Removal) => removed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0f3c9b1e-8d1f-4c57-9b43-5a9f3f1f2b6d";

    fn present(deleting: bool, orphaning: bool) -> Option<Sighting> {
        Some(Sighting::Present { uid: UID.parse().ok(), deleting, orphaning })
    }

    #[test]
    fn daemon_set_that_goes_takes_everything_along_unless_it_leaves_its_pods() {
        let mut lifecycle = Lifecycle::default();
        assert!(!lifecycle.see(present(false, false), false));
        assert_eq!(lifecycle.installation(), Installation::Known(UID.parse().unwrap()));
        assert!(lifecycle.see(Some(Sighting::Absent), false));
        let mut orphaned = Lifecycle::default();
        orphaned.see(present(false, false), false);
        assert!(!orphaned.see(present(true, true), false) && orphaned.orphaned());
        assert!(!orphaned.see(Some(Sighting::Absent), false));
    }

    #[test]
    fn restart_ends_once_nothing_is_under_way_and_a_removal_once_it_is_over() {
        let mut lifecycle = Lifecycle::default();
        assert!(!lifecycle.may_end(false, false, false));
        lifecycle.end(Verdict::Restart);
        assert!(!lifecycle.may_end(true, false, false) && lifecycle.may_end(false, false, false));
        assert!(!lifecycle.may_end(false, true, false) && lifecycle.may_end(false, true, true));
        lifecycle.end(Verdict::Removal);
        assert!(!lifecycle.may_end(false, true, false) && lifecycle.may_end(false, true, true));
    }

    #[test]
    fn removed_agent_that_another_daemon_set_takes_over_begins_anew() {
        let mut lifecycle = Lifecycle::default();
        lifecycle.see(present(false, false), false);
        lifecycle.see(Some(Sighting::Absent), false);
        assert!(!lifecycle.may_end(false, true, true));
        lifecycle.see(present(false, false), true);
        assert!(lifecycle.may_end(false, true, true));
    }

    #[test]
    fn last_question_is_about_what_this_agent_may_read() {
        let mut lifecycle = Lifecycle::default();
        assert_eq!(lifecycle.query(false, true), ShutdownQuery::None);
        lifecycle.see(None, false);
        assert_eq!(lifecycle.query(false, true), ShutdownQuery::Node);
        assert_eq!(lifecycle.query(false, false), ShutdownQuery::None);
        lifecycle.see(present(false, false), false);
        assert_eq!(lifecycle.query(false, true), ShutdownQuery::DaemonSet);
        assert_eq!(lifecycle.query(true, true), ShutdownQuery::None);
    }
}
