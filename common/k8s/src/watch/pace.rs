//! When a watch asks again: pure, so that the delays can be tested.

use std::time::Duration;

/// Neither event nor bookmark for so long: ask the server. A watch that the server serves from another history shows
/// nothing, and looks like one on which nothing happens. With [`SPREAD`] below the three minutes within which an agent
/// must have heard from the API server to be ready.
pub const SILENCE: Duration = Duration::from_secs(120);
/// The questions are spread over this time: all clients of a restarted server notice at once.
pub const SPREAD: Duration = Duration::from_secs(45);
/// Within this time after a watch that follows a failed one, the server is asked how far its history goes.
pub const AFTER_FAILURE: Duration = Duration::from_secs(20);
/// Longest pause after failed lists.
pub const LONGEST_LIST_PAUSE: Duration = Duration::from_secs(300);
/// Longest pause before a watch is started again.
pub const LONGEST_WATCH_PAUSE: Duration = Duration::from_secs(30);
/// Longest wish of a server that is obeyed.
const LONGEST_WISH: Duration = Duration::from_secs(600);

/// Failures in a row.
#[derive(Clone, Copy, Debug, Default)]
pub struct Failures {
    count: u32,
}

impl Failures {
    /// It worked.
    pub const fn reset(&mut self) {
        self.count = 0;
    }

    /// The pause after another failure: 1, 2, 4 s and so on up to `longest`, of which the last half is drawn
    /// (`fraction` is between 0 and 1), and not less than the server wishes.
    pub fn pause(&mut self, longest: Duration, wish: Option<Duration>, fraction: f64) -> Duration {
        let doubled = Duration::from_secs(1 << self.count.min(20)).min(longest);
        self.count = self.count.saturating_add(1);
        doubled
            .mul_f64((0.5 + fraction / 2.0).clamp(0.5, 1.0))
            .max(wish.unwrap_or_default().min(LONGEST_WISH))
    }
}

/// Whether version `one` is older than `other`. Versions are numbers of one etcd; what is no number is not compared.
#[must_use]
pub fn older(one: &str, other: &str) -> bool {
    match (one.parse::<u64>(), other.parse::<u64>()) {
        (Ok(one), Ok(other)) => one < other,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_begin_anew() {
        let mut failures = Failures::default();
        let mut pause = |wish| failures.pause(LONGEST_LIST_PAUSE, wish, 1.0).as_secs();
        let pauses: Vec<_> = (0..11).map(|_| pause(None)).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        assert_eq!(pause(Some(Duration::from_secs(400))), 400, "Retry-After counts");
        assert_eq!(pause(Some(Duration::from_secs(86_400))), 600, "within reason");
        failures.reset();
        assert_eq!(failures.pause(LONGEST_LIST_PAUSE, None, 0.0), Duration::from_millis(500));
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        assert!(older("9", "10") && !older("10", "9") && !older("10", "10"));
        assert!(!older("a", "b") && !older("", "1") && !older("1", ""));
    }
}
