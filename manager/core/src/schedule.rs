//! When rotations are due: after an interval, or by a cron expression.

use croner::{
    Cron,
    parser::{CronParser, Seconds, Year},
};
use jiff::{Timestamp, tz::TimeZone};
use secureoverlay_keyring::{keyring::KeyRing, settings::RotationSchedule};
use secureoverlay_rotation::{Phase, RotationTimes};

/// A cron expression and the clock that it means.
struct Timetable {
    cron: Cron,
    zone: TimeZone,
}

impl Timetable {
    fn new(expression: &str, time_zone: &str) -> Result<Self, String> {
        let zone = TimeZone::get(time_zone).map_err(|error| {
            format!("{time_zone:?} is no time zone, as \"Europe/Berlin\" is one: {error}")
        })?;
        let parser = CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build();
        let cron = parser.parse(expression).map_err(|error| explain(expression, &error.to_string()))?;
        Ok(Self { cron, zone })
    }

    /// The next time after `time`; the end of time where there is none.
    fn after(&self, time: Timestamp) -> Timestamp {
        let time = time.to_zoned(self.zone.clone());
        self.cron.find_next_occurrence(&time, false).map_or(Timestamp::MAX, |time| time.timestamp())
    }
}

fn explain(expression: &str, fault: &str) -> String {
    format!(
        "{expression:?} is no cron expression: {fault}. Write minute, hour, day of month, month and day of week, as in \
         \"0 3 * * 0\" for Sundays at three in the morning"
    )
}

/// Whether rotations will ever be due by `schedule`.
///
/// # Errors
/// A sentence for the user.
pub fn check(schedule: &RotationSchedule, now: Timestamp) -> Result<(), String> {
    match schedule {
        RotationSchedule::Interval(_) => Ok(()),
        RotationSchedule::Cron { expression, time_zone } => {
            let never = Timetable::new(expression, time_zone)?.after(now) == Timestamp::MAX;
            if never { Err(explain(expression, "it names a time that never comes")) } else { Ok(()) }
        }
    }
}

/// What `schedule` comes to for `ring`. What can't be read is never due.
#[must_use]
pub fn times(schedule: &RotationSchedule, ring: Option<&KeyRing>, now: Timestamp) -> RotationTimes {
    let since = Phase::of(ring).active().map_or(now, |active| active.role_since);
    match schedule {
        RotationSchedule::Interval(interval) => RotationTimes::interval(*interval, since, now),
        RotationSchedule::Cron { expression, time_zone } => {
            Timetable::new(expression, time_zone)
                .map_or(RotationTimes { due: Timestamp::MAX, next: Timestamp::MAX }, |timetable| {
                    RotationTimes { due: timetable.after(since), next: timetable.after(now) }
                })
        }
    }
}

#[cfg(test)]
mod tests {
    use secureoverlay_keyring::keyring::Enforcement;

    use super::*;
    use crate::testing::ring;

    fn time(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn cron(expression: &str, time_zone: &str) -> RotationSchedule {
        RotationSchedule::Cron { expression: expression.to_owned(), time_zone: time_zone.to_owned() }
    }

    fn next(schedule: &RotationSchedule, now: &str) -> String {
        let RotationTimes { due, next } = times(schedule, None, time(now));
        assert_eq!(due, next, "no generation is active");
        next.to_string()
    }

    #[test]
    fn expression_means_the_clock_of_its_zone() {
        let schedule = cron("0 3 * * 0", "Europe/Berlin");
        assert_eq!(check(&schedule, time("2026-11-20T03:00:00Z")), Ok(()));
        assert_eq!(next(&schedule, "2026-11-20T03:00:00Z"), "2026-11-22T02:00:00Z");
        assert_eq!(next(&schedule, "2026-11-22T02:00:00Z"), "2026-11-29T02:00:00Z", "after, not at");
        assert_eq!(next(&schedule, "2026-06-20T03:00:00Z"), "2026-06-21T01:00:00Z", "summer time");
    }

    #[test]
    fn hour_that_a_day_leaves_out_is_no_reason_to_skip_the_rotation() {
        let found = time(&next(&cron("30 2 * * *", "Europe/Berlin"), "2026-03-28T12:00:00Z"));
        assert!(found < time("2026-03-29T12:00:00Z"), "{found}: the clock goes from 2 to 3 that night");
    }

    #[test]
    fn what_is_due_counts_from_the_last_activation() {
        let mut ring = ring(Enforcement::Permissive, &[(1, "active")]);
        ring.generations[0].role_since = time("2026-11-19T10:15:00Z");
        let found = times(&cron("0 * * * *", "UTC"), Some(&ring), time("2026-11-20T03:30:00Z"));
        let expected =
            RotationTimes { due: time("2026-11-19T11:00:00Z"), next: time("2026-11-20T04:00:00Z") };
        assert_eq!(found, expected);
    }

    #[test]
    fn nonsense_is_refused_in_words_and_never_due() {
        let now = time("2026-11-20T03:00:00Z");
        for text in ["", "soon", "0 3 * *", "61 * * * *", "0 0 30 2 *", "* * * * * * *"] {
            let error = check(&cron(text, "UTC"), now).unwrap_err();
            assert!(error.contains("cron expression") && error.contains("Sundays"), "{error}");
            assert_eq!(times(&cron(text, "UTC"), None, now).due, Timestamp::MAX, "{text}");
        }
        assert!(check(&cron("0 3 * * 0", "Mars"), now).unwrap_err().contains("time zone"));
    }
}
