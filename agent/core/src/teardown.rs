//! The ordered way from encrypted to not, so that no packet is lost: receivers accept plaintext, then senders stop
//! encrypting, then everything of ours goes. Every node walks it at about the same time.

use std::time::Duration;

use crate::Time;

/// How far it has gone. Each phase waits until every node has reached the one before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum TeardownPhase {
    /// Nothing is taken down.
    #[default]
    Inactive,
    /// No blocks, and inbound plaintext is accepted.
    AllowPlaintext,
    /// No pod traffic leaves as ESP.
    StopSending,
    /// Nothing of ours is left.
    Removed,
}

/// Where this node is on the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Teardown {
    phase: TeardownPhase,
    skew: Duration,
    since: Option<Time>,
    done: bool,
}

impl Teardown {
    /// Begins; `skew` is by how much nodes may differ. Where no node enforces, the first phase is not needed.
    #[must_use]
    pub const fn new(enforcing: bool, skew: Duration) -> Self {
        let phase = if enforcing { TeardownPhase::AllowPlaintext } else { TeardownPhase::StopSending };
        Self { phase, skew, since: None, done: false }
    }

    /// What the kernel should hold now.
    #[must_use]
    pub const fn phase(&self) -> TeardownPhase {
        self.phase
    }

    /// Nothing of ours is left.
    #[must_use]
    pub const fn done(&self) -> bool {
        self.done
    }

    /// The kernel was brought to `phase`, `complete`ly or as far as it went. Only the last phase has to be complete:
    /// before that, going on does less harm than staying.
    pub fn handle_applied(&mut self, phase: TeardownPhase, complete: bool, now: Time) {
        if phase == self.phase {
            self.since.get_or_insert(now);
            self.done |= phase == TeardownPhase::Removed && complete;
        }
    }

    /// When [`Self::handle_timeout`] has something to do.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        if self.phase == TeardownPhase::Removed { None } else { self.since.map(|since| since + self.skew) }
    }

    /// Goes on to the next phase if it is time.
    pub fn handle_timeout(&mut self, now: Time) {
        if self.poll_timeout().is_some_and(|at| at <= now) {
            self.phase = match self.phase {
                TeardownPhase::Inactive | TeardownPhase::AllowPlaintext => TeardownPhase::StopSending,
                TeardownPhase::StopSending | TeardownPhase::Removed => TeardownPhase::Removed,
            };
            self.since = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SKEW: Duration = Duration::from_secs(4);

    fn walk(mut teardown: Teardown) -> Vec<(TeardownPhase, u64)> {
        let mut now = Time::from_secs(100);
        let mut steps = Vec::new();
        for _ in 0..10 {
            teardown.handle_timeout(now);
            steps.push((teardown.phase(), now.as_secs() - 100));
            teardown.handle_applied(teardown.phase(), true, now);
            if teardown.done() {
                return steps;
            }
            now = teardown.poll_timeout().unwrap();
        }
        panic!("never done: {steps:?}");
    }

    #[test]
    fn each_phase_waits_for_the_slowest_node() {
        use TeardownPhase::{AllowPlaintext, Removed, StopSending};
        assert_eq!(walk(Teardown::new(true, SKEW)), [(AllowPlaintext, 0), (StopSending, 4), (Removed, 8)]);
        assert_eq!(walk(Teardown::new(false, SKEW)), [(StopSending, 0), (Removed, 4)]);
    }

    #[test]
    fn clock_starts_when_the_kernel_was_changed() {
        let now = Time::from_secs(100);
        let mut teardown = Teardown::new(true, SKEW);
        teardown.handle_timeout(now + 10 * SKEW);
        assert_eq!((teardown.phase(), teardown.poll_timeout()), (TeardownPhase::AllowPlaintext, None));
        teardown.handle_applied(TeardownPhase::Inactive, true, now);
        assert_eq!(teardown.poll_timeout(), None);
        teardown.handle_applied(TeardownPhase::AllowPlaintext, false, now);
        teardown.handle_applied(TeardownPhase::AllowPlaintext, true, now + SKEW / 2);
        assert_eq!(teardown.poll_timeout(), Some(now + SKEW));
    }

    #[test]
    fn done_only_when_nothing_is_left() {
        let now = Time::from_secs(100);
        let mut teardown = Teardown::new(false, SKEW);
        teardown.handle_applied(TeardownPhase::StopSending, true, now);
        teardown.handle_timeout(now + SKEW);
        teardown.handle_applied(TeardownPhase::Removed, false, now + SKEW);
        assert!(!teardown.done());
        teardown.handle_applied(TeardownPhase::Removed, true, now + SKEW);
        assert!(teardown.done());
    }
}
