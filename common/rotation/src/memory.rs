//! What a manager process knows by itself. Losing it costs time only.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use secureoverlay_keyring::{keyring::KeyRing, suite::Suite, uid::Uid};

use crate::{AckIdState, Action, Phase, Step, UPDATE_INTERVAL, Wait};

/// Longest pause before an `ackId` that another process replaced is renewed.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What this process has to wait for by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    /// Until the minimum interval between two rotations is over.
    pub stage_in: Duration,
    /// Until settings and exclusions may be written by themselves.
    pub update_in: Duration,
    /// A rotation that failed.
    pub after_failure: Option<AfterFailure>,
    /// The step that acknowledgements were renewed for, and how often.
    pub renewed: Option<((Uid, Step), usize)>,
}

/// A rotation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AfterFailure {
    /// Until the next may begin, unless an operator asks for it.
    pub left: Duration,
    /// The suite that it failed with.
    pub suite: Suite,
}

#[derive(Clone, Copy, Debug)]
struct OwnAckId {
    id: Uid,
    drawn: Instant,
}

/// Remembers what this process wrote, and when.
#[derive(Debug, Default)]
pub struct RotationMemory {
    own: Option<OwnAckId>,
    /// The `ackId` of a write whose result is not known yet.
    attempted: Option<OwnAckId>,
    /// The `ackId` of another process, and since when it is there.
    foreign: Option<(Uid, Instant)>,
    /// Highest id that was staged or bootstrapped, and when it was staged.
    staged: Option<(u64, Option<Instant>)>,
    failed: Option<(Instant, Suite)>,
    updated: Option<Instant>,
    renewed: Option<((Uid, Step), usize)>,
}

impl RotationMemory {
    /// Notes the ring that is there at `now`.
    pub fn observe(&mut self, ring: Option<&KeyRing>, now: Instant) {
        let Some(ring) = ring else { return };
        if let Some(attempted) = self.attempted.filter(|attempted| attempted.id == ring.ack_id) {
            self.own = Some(attempted);
        }
        let own = self.own.is_some_and(|own| own.id == ring.ack_id);
        let known = self.foreign.filter(|(id, _)| *id == ring.ack_id);
        self.foreign = (!own).then(|| known.unwrap_or((ring.ack_id, now)));
    }

    /// Whose `ackId` the ring has.
    #[must_use]
    pub fn ack_id(&self, now: Instant) -> AckIdState {
        let passed = |since: Instant| now.saturating_duration_since(since);
        match (self.foreign, self.own) {
            (Some((_, since)), own) => {
                let pause = own.map_or(Duration::ZERO, |own| pause(own.id));
                AckIdState::Foreign { age: passed(since), pause: pause.saturating_sub(passed(since)) }
            }
            (None, Some(own)) => AckIdState::Own { age: passed(own.drawn) },
            (None, None) => AckIdState::Foreign { age: Duration::ZERO, pause: Duration::ZERO },
        }
    }

    /// When the ring's `ackId` was drawn, where this process did it.
    #[must_use]
    pub fn drawn(&self) -> Option<Instant> {
        self.own.filter(|_| self.foreign.is_none()).map(|own| own.drawn)
    }

    /// The history of the API server went back: what was acknowledged under an `ackId` may be older than it seems.
    pub const fn handle_history_went_back(&mut self) {
        (self.own, self.attempted) = (None, None);
    }

    /// `after` is about to be written over `before`.
    pub fn handle_writing(&mut self, before: Option<&KeyRing>, after: &KeyRing, now: Instant) {
        if before.is_none_or(|before| before.ack_id != after.ack_id) {
            self.attempted = Some(OwnAckId { id: after.ack_id, drawn: now });
        }
    }

    /// `after` was written over `before`.
    pub fn handle_written(
        &mut self,
        action: Action,
        wait: Option<&Wait>,
        before: Option<&KeyRing>,
        after: &KeyRing,
        now: Instant,
    ) {
        self.updated = Some(now);
        if before.is_none_or(|before| before.ack_id != after.ack_id) {
            (self.own, self.foreign) = (Some(OwnAckId { id: after.ack_id, drawn: now }), None);
        }
        match action {
            Action::Stage => self.staged = Some((after.highest_id(), Some(now))),
            Action::Bootstrap => self.staged = Some((after.highest_id(), None)),
            Action::RemoveStaged => {
                self.failed =
                    Phase::of(before).staged().map_or(self.failed, |staged| Some((now, staged.suite)));
            }
            Action::Activate => {
                let active = Phase::of(Some(after)).active().map(|active| active.suite);
                self.failed = self.failed.filter(|(_, suite)| active != Some(*suite));
            }
            Action::RenewAckId => {
                self.renewed = wait.map(|wait| {
                    let before =
                        self.renewed.filter(|(key, _)| *key == wait.key()).map_or(0, |(_, count)| count);
                    (wait.key(), before + 1)
                });
            }
            Action::Wait
            | Action::RemoveRetired
            | Action::SetEnforcement(_)
            | Action::StopSending
            | Action::Disable
            | Action::Restore
            | Action::Update => {}
        }
    }

    /// What is to be waited for at `now`. `limit`: how long after a failure.
    #[must_use]
    pub fn pace(
        &self,
        ring: Option<&KeyRing>,
        minimum: Duration,
        limit: Duration,
        (now, wall): (Instant, Timestamp),
    ) -> Pace {
        let left = |since: Instant, span: Duration| span.saturating_sub(now.saturating_duration_since(since));
        let newest = ring.and_then(|ring| ring.generations.iter().max_by_key(|generation| generation.id));
        let stage_in = match (self.staged, newest) {
            (Some((id, staged)), newest) if newest.is_none_or(|newest| newest.id <= id) => {
                staged.map_or(Duration::ZERO, |staged| left(staged, minimum))
            }
            // A time in the future counts as long ago.
            (_, Some(newest)) => Duration::try_from(wall.duration_since(newest.created_at))
                .map_or(Duration::ZERO, |passed| minimum.saturating_sub(passed)),
            (_, None) => Duration::ZERO,
        };
        Pace {
            stage_in,
            update_in: self.updated.map_or(Duration::ZERO, |updated| left(updated, UPDATE_INTERVAL)),
            after_failure: self
                .failed
                .map(|(failed, suite)| AfterFailure { left: left(failed, limit), suite }),
            renewed: self.renewed,
        }
    }
}

/// Two managers must not renew against each other for ever. What each drew last at random tells them apart.
fn pause(own: Uid) -> Duration {
    let digits = own
        .as_bytes()
        .iter()
        .take(4)
        .fold(0_u32, |sum, digit| sum * 16 + char::from(*digit).to_digit(16).unwrap_or(0));
    LONGEST_PAUSE * digits / 0xffff
}
