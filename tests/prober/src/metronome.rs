//! When this process did not run: on a busy machine a whole node may stand still, and what came meanwhile was not late.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

const PERIOD: Duration = Duration::from_millis(5);
/// What wakes up later than this after its time has stood still.
const LATE: Duration = Duration::from_millis(5);
/// The latest pauses that are kept; a gap does not span more.
const KEPT: usize = 64;

/// A thread that wakes every few milliseconds, and notes when it did not.
#[derive(Clone, Debug)]
pub struct Metronome(Arc<Mutex<Ticks>>);

impl Metronome {
    /// Starts it. Times are counted from `origin`.
    #[must_use]
    pub fn start(origin: Instant) -> Self {
        let ticks = Arc::new(Mutex::new(Ticks { last: origin.elapsed(), pauses: VecDeque::new() }));
        let weak = Arc::downgrade(&ticks);
        thread::spawn(move || {
            while let Some(ticks) = weak.upgrade() {
                ticks.lock().unwrap_or_else(PoisonError::into_inner).tick(origin.elapsed());
                drop(ticks);
                thread::sleep(PERIOD);
            }
        });
        Self(ticks)
    }

    /// For how much of the time between the two this process stood still.
    #[must_use]
    pub fn paused(&self, from: Duration, to: Duration) -> Duration {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).paused(from, to)
    }
}

#[derive(Debug)]
struct Ticks {
    last: Duration,
    pauses: VecDeque<(Duration, Duration)>,
}

impl Ticks {
    fn tick(&mut self, at: Duration) {
        if let Some(pause) = self.since_last(at) {
            self.pauses.push_back(pause);
            if self.pauses.len() > KEPT {
                self.pauses.pop_front();
            }
        }
        self.last = at;
    }

    /// The pause that is going on, or has just ended without a tick yet.
    fn since_last(&self, at: Duration) -> Option<(Duration, Duration)> {
        let due = self.last + PERIOD;
        (at > due + LATE).then_some((due, at))
    }

    fn paused(&self, from: Duration, to: Duration) -> Duration {
        let pauses = self.pauses.iter().copied().chain(self.since_last(to));
        pauses.map(|(begin, end)| end.min(to).saturating_sub(begin.max(from))).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn pauses_are_what_lies_between_late_ticks() {
        let mut ticks = Ticks { last: ms(0), pauses: VecDeque::new() };
        for at in [5, 10, 17, 117, 122] {
            ticks.tick(ms(at));
        }
        assert_eq!(ticks.paused(ms(0), ms(120)), ms(95), "from when the tick was due");
        assert_eq!(ticks.paused(ms(0), ms(20)), ms(0));
        assert_eq!(ticks.paused(ms(50), ms(60)), ms(10));
        assert_eq!(ticks.paused(ms(100), ms(300)), ms(17) + ms(173), "one that has no tick yet counts too");
        assert_eq!(ticks.paused(ms(60), ms(50)), ms(0));
    }

    #[test]
    fn only_the_latest_are_kept() {
        let mut ticks = Ticks { last: ms(0), pauses: VecDeque::new() };
        for at in 1..=1000 {
            ticks.tick(ms(at * 100));
        }
        assert_eq!(ticks.pauses.len(), KEPT);
        assert_eq!(ticks.paused(ms(99_900), ms(100_000)), ms(95));
    }
}
