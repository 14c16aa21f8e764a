//! When rotations are due.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::{Cause, Evidence, Settings};
use crate::ring::{Generation, Ring};

/// Clocks of two hosts that a manager ran on may differ by this much.
const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_mins(5);

/// When a generation has been active for long enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RotationSchedule {
    /// So long after the last rotation.
    Every(Duration),
    /// By a timetable that this crate does not know.
    At {
        /// The first time in it after the active generation became that.
        due: Timestamp,
        /// The first time in it after now.
        next: Timestamp,
    },
}

impl RotationSchedule {
    /// When the generation that is active since `since` is to be replaced.
    fn due(self, since: Timestamp) -> Timestamp {
        match self {
            Self::Every(interval) => after(since, interval),
            Self::At { due, .. } => due,
        }
    }

    /// When the generation that becomes active at `now` is to be replaced.
    pub(super) fn next(self, now: Timestamp) -> Timestamp {
        match self {
            Self::Every(interval) => after(now, interval),
            Self::At { next, .. } => next,
        }
    }
}

/// Why a rotation is due, or in how long it will be.
pub(super) fn due(
    ring: &Ring,
    active: &Generation,
    evidence: &Evidence,
    now: Timestamp,
    settings: &Settings,
) -> Result<(Cause, String), Duration> {
    if let Some(why) = &evidence.requested {
        return Ok((Cause::Request, why.clone()));
    }
    if evidence.newest > ring.newest() {
        let why = format!(
            "a node knows of generation {}, the ring only of {}: an old ring was restored",
            evidence.newest,
            ring.newest()
        );
        return Ok((Cause::Restored, why));
    }
    if active.suite != settings.suite {
        return Ok((Cause::Suite, format!("the suite changes from {} to {}", active.suite, settings.suite)));
    }
    if active.role_since.duration_since(now) > CLOCK_TOLERANCE {
        let why =
            format!("generation {} is active since a time in the future: the clock went back", active.id);
        return Ok((Cause::Clock, why));
    }
    let by_schedule = settings.schedule.due(active.role_since);
    let due = ring.next_rotation.map_or(by_schedule, |binding| binding.min(by_schedule));
    match Duration::try_from(due.duration_since(now)) {
        Ok(left) if !left.is_zero() => Err(left),
        _ => Ok((Cause::Schedule, format!("generation {} is active since {}", active.id, active.role_since))),
    }
}

/// `time + span`, or the end of time.
fn after(time: Timestamp, span: Duration) -> Timestamp {
    SignedDuration::try_from(span).ok().and_then(|span| time.checked_add(span).ok()).unwrap_or(Timestamp::MAX)
}
