//! The ordered way down from encrypted to not, so that no packet is lost on it: receivers stop insisting, then
//! senders stop encrypting, then everything of ours goes. Every node walks it at about the same time; `skew` is by
//! how much they may differ.

use std::time::{Duration, Instant};

use crate::plan::Stage;

/// Where this node is on its way down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descent {
    stage: Stage,
    skew: Duration,
    since: Option<Instant>,
    done: bool,
}

impl Descent {
    /// Begins. Where no node `insists` on encryption, the first step is not needed.
    #[must_use]
    pub const fn new(insists: bool, skew: Duration) -> Self {
        let stage = if insists { Stage::Optional } else { Stage::Silent };
        Self { stage, skew, since: None, done: false }
    }

    /// What the kernel should hold now.
    #[must_use]
    pub const fn stage(&self) -> Stage {
        self.stage
    }

    /// Nothing of ours is left.
    #[must_use]
    pub const fn done(&self) -> bool {
        self.done
    }

    /// The kernel was brought to `stage`, `complete`ly or as far as it went. Only the last step insists on completeness:
    /// before that, going on does less harm than staying.
    pub fn applied(&mut self, stage: Stage, complete: bool, now: Instant) {
        if stage == self.stage {
            self.since.get_or_insert(now);
            self.done |= stage == Stage::Gone && complete;
        }
    }

    /// When [`Self::advance`] has something to do.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        if self.stage == Stage::Gone { None } else { self.since.map(|since| since + self.skew) }
    }

    /// Takes the next step if it is time.
    pub fn advance(&mut self, now: Instant) {
        if self.wake_at().is_some_and(|at| at <= now) {
            self.stage = match self.stage {
                Stage::Normal | Stage::Optional => Stage::Silent,
                Stage::Silent | Stage::Gone => Stage::Gone,
            };
            self.since = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SKEW: Duration = Duration::from_secs(4);

    fn walk(mut descent: Descent) -> Vec<(Stage, u64)> {
        let start = Instant::now();
        let mut now = start;
        let mut steps = Vec::new();
        for _ in 0..10 {
            descent.advance(now);
            steps.push((descent.stage(), (now - start).as_secs()));
            descent.applied(descent.stage(), true, now);
            if descent.done() {
                return steps;
            }
            now = descent.wake_at().unwrap();
        }
        panic!("never done: {steps:?}");
    }

    #[test]
    fn each_step_waits_for_the_slowest_node() {
        let all = [(Stage::Optional, 0), (Stage::Silent, 4), (Stage::Gone, 8)];
        assert_eq!(walk(Descent::new(true, SKEW)), all);
        assert_eq!(walk(Descent::new(false, SKEW)), [(Stage::Silent, 0), (Stage::Gone, 4)]);
    }

    #[test]
    fn the_clock_starts_when_the_kernel_was_changed() {
        let now = Instant::now();
        let mut descent = Descent::new(true, SKEW);
        descent.advance(now + 10 * SKEW);
        assert_eq!((descent.stage(), descent.wake_at()), (Stage::Optional, None));
        descent.applied(Stage::Normal, true, now);
        assert_eq!(descent.wake_at(), None);
        descent.applied(Stage::Optional, false, now);
        assert_eq!(descent.wake_at(), Some(now + SKEW));
        descent.applied(Stage::Optional, true, now + SKEW / 2);
        assert_eq!(descent.wake_at(), Some(now + SKEW));
    }

    #[test]
    fn done_only_when_nothing_is_left() {
        let now = Instant::now();
        let mut descent = Descent::new(false, SKEW);
        descent.applied(Stage::Silent, true, now);
        descent.advance(now + SKEW);
        descent.applied(Stage::Gone, false, now + SKEW);
        assert!(!descent.done());
        descent.applied(Stage::Gone, true, now + SKEW);
        assert!(descent.done());
    }
}
