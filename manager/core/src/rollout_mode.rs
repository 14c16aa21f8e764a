//! Whether the nodes say what they have done, or time must tell.

use std::time::{Duration, Instant};

/// How long a "no" to the question whether nodes may be listed is believed.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// Where the facts come from that a rotation waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RolloutMode {
    /// The nodes acknowledge each step.
    Acknowledged,
    /// Time has passed.
    Timed,
    /// `Acknowledged` where the manager has the rights for it, else `Timed`.
    Auto,
}

/// What the mode is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Selected {
    Acknowledged,
    Timed,
    /// The rights must be checked.
    Unknown,
}

/// Selects between acknowledgements and time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ModeSelector {
    wanted: RolloutMode,
    refused: Option<Instant>,
    granted: bool,
}

impl ModeSelector {
    pub(crate) const fn new(wanted: RolloutMode) -> Self {
        Self { wanted, refused: None, granted: false }
    }

    pub(crate) fn selected(&self, now: Instant) -> Selected {
        let recent = |since: Instant| now.saturating_duration_since(since) < ASK_AGAIN;
        match self.wanted {
            RolloutMode::Acknowledged => Selected::Acknowledged,
            RolloutMode::Timed => Selected::Timed,
            // Once granted it stays so: time is the weaker proof.
            RolloutMode::Auto if self.granted => Selected::Acknowledged,
            RolloutMode::Auto if self.refused.is_some_and(recent) => Selected::Timed,
            RolloutMode::Auto => Selected::Unknown,
        }
    }

    pub(crate) fn handle_access(&mut self, granted: bool, now: Instant) {
        self.granted |= granted;
        self.refused = (!granted).then_some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_select_the_mode_and_time_never_comes_back() {
        let now = Instant::now();
        let mut selector = ModeSelector::new(RolloutMode::Auto);
        assert_eq!(selector.selected(now), Selected::Unknown);
        selector.handle_access(false, now);
        assert_eq!(selector.selected(now), Selected::Timed);
        assert_eq!(selector.selected(now + ASK_AGAIN), Selected::Unknown);
        selector.handle_access(true, now);
        selector.handle_access(false, now);
        assert_eq!(selector.selected(now), Selected::Acknowledged);
    }

    #[test]
    fn a_fixed_mode_asks_for_no_rights() {
        let now = Instant::now();
        for (wanted, expected) in
            [(RolloutMode::Acknowledged, Selected::Acknowledged), (RolloutMode::Timed, Selected::Timed)]
        {
            assert_eq!(ModeSelector::new(wanted).selected(now), expected);
        }
    }
}
