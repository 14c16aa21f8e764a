//! When rotations are due: after an interval, or by a cron expression.

use std::{fmt, sync::Arc, time::Duration};

use croner::{
    Cron,
    parser::{CronParser, Seconds, Year},
};
use jiff::{Timestamp, tz::TimeZone};
use secureoverlay_common::{
    duration::Human,
    ring::{Ring, Role},
    rotation::RotationSchedule,
};

/// When rotations are due.
#[derive(Clone, Debug)]
pub enum Schedule {
    /// So long after the last one.
    Every(Duration),
    /// At fixed times.
    Cron(Arc<Timetable>),
}

/// A cron expression and the clock that it means.
#[derive(Debug)]
pub struct Timetable {
    text: String,
    cron: Cron,
    zone: TimeZone,
}

impl Timetable {
    /// The next time after `time`; the end of time where there is none.
    fn after(&self, time: Timestamp) -> Timestamp {
        let time = time.to_zoned(self.zone.clone());
        self.cron.find_next_occurrence(&time, false).map_or(Timestamp::MAX, |time| time.timestamp())
    }
}

impl Schedule {
    /// By the cron expression `text`, in the time of `zone`.
    ///
    /// # Errors
    /// A sentence for the user.
    pub fn cron(text: &str, zone: &TimeZone, now: Timestamp) -> Result<Self, String> {
        let explain = |fault: String| {
            format!(
                "{text:?} is no cron expression: {fault}. Write minute, hour, day of month, month and day of week, as in \
                 \"0 3 * * 0\" for Sundays at three in the morning"
            )
        };
        let parser = CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build();
        let cron = parser.parse(text).map_err(|error| explain(error.to_string()))?;
        let timetable = Timetable { text: text.to_owned(), cron, zone: zone.clone() };
        if timetable.after(now) == Timestamp::MAX {
            return Err(explain("it names a time that never comes".to_owned()));
        }
        Ok(Self::Cron(Arc::new(timetable)))
    }

    /// The same for `ring` as of `now`.
    #[must_use]
    pub fn for_ring(&self, ring: Option<&Ring>, now: Timestamp) -> RotationSchedule {
        match self {
            Self::Every(interval) => RotationSchedule::Every(*interval),
            Self::Cron(timetable) => {
                let active = ring.and_then(|ring| ring.with_role(Role::Active));
                let since = active.map_or(now, |active| active.role_since);
                RotationSchedule::At { due: timetable.after(since), next: timetable.after(now) }
            }
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Every(interval) => write!(f, "every {}", Human(*interval)),
            Self::Cron(timetable) => {
                let zone = timetable.zone.iana_name().unwrap_or("UTC");
                write!(f, "at {:?} ({zone})", timetable.text)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn next(schedule: &Schedule, now: &str) -> String {
        match schedule.for_ring(None, time(now)) {
            RotationSchedule::At { due, next } => {
                assert_eq!(due, next, "no generation is active");
                next.to_string()
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn expressions_mean_the_clock_of_their_zone() {
        let berlin = TimeZone::get("Europe/Berlin").unwrap();
        let schedule = Schedule::cron("0 3 * * 0", &berlin, time("2026-11-20T03:00:00Z")).unwrap();
        assert_eq!(next(&schedule, "2026-11-20T03:00:00Z"), "2026-11-22T02:00:00Z");
        assert_eq!(next(&schedule, "2026-11-22T02:00:00Z"), "2026-11-29T02:00:00Z", "after, not at");
        assert_eq!(next(&schedule, "2026-06-20T03:00:00Z"), "2026-06-21T01:00:00Z", "summer time");
        assert_eq!(schedule.to_string(), "at \"0 3 * * 0\" (Europe/Berlin)");
    }

    #[test]
    fn an_hour_that_a_day_leaves_out_is_no_reason_to_skip_the_rotation() {
        let berlin = TimeZone::get("Europe/Berlin").unwrap();
        let schedule = Schedule::cron("30 2 * * *", &berlin, time("2026-01-01T00:00:00Z")).unwrap();
        let found = time(&next(&schedule, "2026-03-28T12:00:00Z"));
        assert!(found < time("2026-03-29T12:00:00Z"), "{found}: the clock goes from 2 to 3 that night");
    }

    #[test]
    fn what_is_due_counts_from_the_last_rotation() {
        let now = time("2026-11-20T03:30:00Z");
        let schedule = Schedule::cron("0 * * * *", &TimeZone::UTC, now).unwrap();
        let mut ring = Ring::off(1, None);
        let role_since = time("2026-11-19T10:15:00Z");
        let generation = serde_json::json!({
            "id": 1, "uid": "9d0f5a37-62a5-4d5f-8a3d-1c1ad0f2b001", "role": "active", "suite": "aes128gcm8",
            "key": "AAECAwQFBgcICQoLDA0ODw==", "spiSeed": "AAECAwQFBgcICQoLDA0ODw==",
            "createdAt": role_since, "roleSince": role_since,
        });
        ring.generations.push(serde_json::from_value(generation).unwrap());
        let expected =
            RotationSchedule::At { due: time("2026-11-19T11:00:00Z"), next: time("2026-11-20T04:00:00Z") };
        assert_eq!(schedule.for_ring(Some(&ring), now), expected);
    }

    #[test]
    fn nonsense_is_refused_in_words() {
        let now = time("2026-11-20T03:00:00Z");
        for text in ["", "soon", "0 3 * *", "61 * * * *", "0 0 30 2 *", "* * * * * * *"] {
            let error = Schedule::cron(text, &TimeZone::UTC, now).unwrap_err();
            assert!(error.contains("cron expression") && error.contains("Sundays"), "{error}");
        }
    }
}
