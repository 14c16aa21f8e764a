//! When a rotation is due.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use secureoverlay_keyring::{
    keyring::{Generation, KeyRing},
    suite::Suite,
};

use crate::{Cause, Inputs};

/// Clocks of two hosts that a manager ran on may differ by this much.
const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_mins(5);

/// What the schedule in the settings comes to. Cron expressions are read elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RotationTimes {
    /// When the active generation is to be replaced.
    pub due: Timestamp,
    /// When a generation that becomes active now is to be replaced.
    pub next: Timestamp,
}

impl RotationTimes {
    /// Each generation is replaced so long after its activation.
    #[must_use]
    pub fn interval(interval: Duration, active_since: Timestamp, now: Timestamp) -> Self {
        Self { due: after(active_since, interval), next: after(now, interval) }
    }
}

/// Why a rotation is due, or in how long one can be.
pub(crate) fn due(
    ring: &KeyRing,
    active: &Generation,
    inputs: &Inputs<'_>,
) -> Result<(Cause, Suite, String), Duration> {
    let pace = &inputs.pace;
    let found = by_cause(ring, active, inputs)?;
    if pace.stage_in.is_zero() { Ok(found) } else { Err(pace.stage_in) }
}

fn by_cause(
    ring: &KeyRing,
    active: &Generation,
    inputs: &Inputs<'_>,
) -> Result<(Cause, Suite, String), Duration> {
    let wanted = inputs.settings.cipher_suite;
    if let Some(why) = &inputs.requests.rotate {
        return Ok((Cause::Request, wanted, why.clone()));
    }
    let failed = inputs.pace.after_failure;
    if let Some(left) = failed.map(|failed| failed.left).filter(|left| !left.is_zero()) {
        return Err(left);
    }
    let changed = suite_or_identities(active, inputs);
    // A suite that one pair can't carry must not end all rotations.
    let first = failed.is_some_and(|failed| failed.suite == wanted && wanted != active.suite);
    let suite = if first { active.suite } else { wanted };
    let timely = by_time(ring, active, inputs).map(|(cause, why)| (cause, suite, why));
    match (changed, timely) {
        (Some(_), Ok(timely)) if first => Ok(timely),
        (Some(why), _) => Ok((Cause::Suite, wanted, why)),
        (None, timely) => timely,
    }
}

fn suite_or_identities(active: &Generation, inputs: &Inputs<'_>) -> Option<String> {
    let wanted = inputs.settings.cipher_suite;
    if active.suite != wanted {
        return Some(format!("the suite changes from {} to {wanted}", active.suite));
    }
    let identities = inputs.identities;
    (active.identities != identities)
        .then(|| format!("the identities change from {:?} to {identities:?}", active.identities))
}

fn by_time(ring: &KeyRing, active: &Generation, inputs: &Inputs<'_>) -> Result<(Cause, String), Duration> {
    if let Some(node) = &inputs.evidence.exhausted {
        let why = format!("an SA of generation {} on node {node} has reached a limit", active.id);
        return Ok((Cause::Exhausted, why));
    }
    if active.role_since.duration_since(inputs.now) > CLOCK_TOLERANCE {
        let why =
            format!("generation {} is active since a time in the future: the clock went back", active.id);
        return Ok((Cause::Clock, why));
    }
    let by_schedule = inputs.times.due;
    let due = ring.next_rotation.map_or(by_schedule, |binding| binding.min(by_schedule));
    match Duration::try_from(due.duration_since(inputs.now)) {
        Ok(left) if !left.is_zero() => Err(left),
        _ => Ok((Cause::Schedule, format!("generation {} is active since {}", active.id, active.role_since))),
    }
}

/// `time + span`, or the end of time.
fn after(time: Timestamp, span: Duration) -> Timestamp {
    SignedDuration::try_from(span).ok().and_then(|span| time.checked_add(span).ok()).unwrap_or(Timestamp::MAX)
}
