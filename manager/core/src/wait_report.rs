//! When people are told that a rotation waits, and for which nodes. Pure: the clock is an argument.

use std::time::{Duration, Instant};

use secureoverlay_keyring::duration::HumanDuration;
use secureoverlay_keyring::uid::Uid;
use secureoverlay_rotation::{Names, Step, Wait};

use crate::notification::EventReason;

/// Every rotation waits a little; only this is worth an Event.
const QUIET: Duration = Duration::from_secs(15);
/// Between two Events about the same wait.
const REPEAT: Duration = Duration::from_secs(600);
/// Blockers in an Event.
const BLOCKERS: usize = 3;

/// What the nodes are waited for.
fn what(wait: &Wait) -> String {
    match wait.step {
        Step::Receive => format!("receiving and proving generation {}", wait.id),
        Step::Switch => format!("moving to generation {}", wait.id),
        Step::Enforce => "being ready to enforce".to_owned(),
        Step::AcceptPlaintext => "accepting plaintext again".to_owned(),
        Step::StopSending => "no longer encrypting".to_owned(),
    }
}

const fn reason(step: Step, stalled: bool) -> EventReason {
    match (step, stalled) {
        (Step::Receive | Step::Switch, false) => EventReason::RotationWaiting,
        (Step::Receive | Step::Switch, true) => EventReason::RotationStalled,
        (Step::Enforce | Step::AcceptPlaintext | Step::StopSending, false) => EventReason::EnforcementWaiting,
        (Step::Enforce | Step::AcceptPlaintext | Step::StopSending, true) => EventReason::EnforcementStalled,
    }
}

/// What to do about a stall.
const fn advice(step: Step) -> &'static str {
    match step {
        Step::Receive | Step::Switch => {
            ". Repair the agents of these nodes, exclude the nodes, or go on without them \
             (spec.skipUnresponsive of the KeyRotation)"
        }
        Step::Enforce => ". Until then plaintext is accepted: repair what is named, or exclude the nodes",
        Step::AcceptPlaintext | Step::StopSending => {
            ". Repair the agents of these nodes; one that stays silent is left behind"
        }
    }
}

/// What there is to tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WaitReport {
    /// An Event.
    pub event: Option<(EventReason, String)>,
    /// How many nodes are missing now.
    pub count: usize,
    /// For how long this step has waited for any.
    pub waited: Duration,
}

/// Remembers what was told.
#[derive(Debug)]
pub struct WaitReporter {
    limit: Duration,
    told: Option<Told>,
}

#[derive(Debug)]
struct Told {
    wait: (Uid, Step),
    since: Instant,
    event: Option<(EventReason, Instant)>,
}

impl WaitReporter {
    /// A wait for longer than `limit` is a stall.
    #[must_use]
    pub const fn new(limit: Duration) -> Self {
        Self { limit, told: None }
    }

    /// What to tell at `now`.
    pub fn report(&mut self, wait: Option<&Wait>, now: Instant) -> WaitReport {
        let mut report = WaitReport::default();
        // Where only time has to pass, no node is waited for.
        self.told = wait.filter(|wait| !wait.nodes.is_empty()).map(|wait| {
            let mut told = match self.told.take() {
                Some(told) if told.wait == wait.key() => told,
                _ => Told { wait: wait.key(), since: now, event: None },
            };
            report.count = wait.nodes.len();
            report.waited = now.saturating_duration_since(told.since);
            if report.waited >= QUIET {
                report.event = told.event(wait, report.waited, self.limit, now);
            }
            told
        });
        report
    }
}

impl Told {
    fn event(
        &mut self,
        wait: &Wait,
        waited: Duration,
        limit: Duration,
        now: Instant,
    ) -> Option<(EventReason, String)> {
        let stalled = waited > limit;
        let reason = reason(wait.step, stalled);
        let again = |(last, at)| last != reason || now.saturating_duration_since(at) >= REPEAT;
        if !self.event.is_none_or(again) {
            return None;
        }
        self.event = Some((reason, now));
        let time = HumanDuration(Duration::from_secs(waited.as_secs()));
        let mut note = format!("waiting for {time} for {}: {}", Names(&wait.nodes), what(wait));
        let blockers: Vec<String> = wait.blockers.iter().take(BLOCKERS).map(ToString::to_string).collect();
        if !blockers.is_empty() {
            note.push_str(&format!(": {}", blockers.join("; ")));
        }
        if stalled {
            note.push_str(advice(wait.step));
        }
        Some((reason, note))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use secureoverlay_rotation::Blocker;

    use super::*;
    use crate::testing::uid;

    const LIMIT: Duration = Duration::from_secs(3600);

    fn wait(step: Step, count: usize) -> Wait {
        let nodes: BTreeSet<String> = (1..=count).map(|n| format!("node-{n:02}")).collect();
        Wait {
            step,
            generation: uid(43),
            id: 43,
            total: nodes.len(),
            nodes,
            any_ready: true,
            waited: Duration::ZERO,
            look_in: None,
            blockers: Vec::new(),
        }
    }

    struct Case {
        reporter: WaitReporter,
        now: Instant,
    }

    impl Case {
        fn new() -> Self {
            Self { reporter: WaitReporter::new(LIMIT), now: Instant::now() }
        }

        fn after(&mut self, time: Duration, wait: &Wait) -> WaitReport {
            self.now += time;
            self.reporter.report(Some(wait), self.now)
        }
    }

    #[test]
    fn short_wait_is_no_news() {
        let (mut case, wait) = (Case::new(), wait(Step::Receive, 2));
        assert_eq!(case.after(Duration::ZERO, &wait), WaitReport { count: 2, ..WaitReport::default() });
        let report = case.after(QUIET, &wait);
        let note = "waiting for 15s for node-01, node-02: receiving and proving generation 43".to_owned();
        assert_eq!(report.event, Some((EventReason::RotationWaiting, note)));
        assert_eq!((report.count, report.waited), (2, QUIET));
        assert_eq!(case.reporter.report(None, case.now), WaitReport::default());
        assert_eq!(case.after(Duration::ZERO, &wait).waited, Duration::ZERO, "it begins anew");
    }

    #[test]
    fn events_repeat_but_not_often_and_a_stall_is_told_at_once() {
        let (mut case, wait) = (Case::new(), wait(Step::Receive, 1));
        case.after(Duration::ZERO, &wait);
        let mut events = Vec::new();
        for minute in 0..=62 {
            let event = case.after(Duration::from_secs(60), &wait).event;
            events.extend(event.map(|(reason, _)| (minute, reason)));
        }
        let expected = [0, 10, 20, 30, 40, 50].map(|minute| (minute, EventReason::RotationWaiting));
        assert_eq!(events, [&expected[..], &[(60, EventReason::RotationStalled)]].concat());
    }

    #[test]
    fn each_step_waits_anew_and_says_what_for() {
        let mut case = Case::new();
        for step in Step::ALL {
            assert_eq!(case.after(Duration::ZERO, &wait(step, 50)).waited, Duration::ZERO);
            let (reason, note) = case.after(QUIET, &wait(step, 50)).event.unwrap();
            assert!(!reason.is_warning() && note.contains("node-05 and 45 more"), "{note}");
            let (reason, stalled) = case.after(LIMIT, &wait(step, 50)).event.unwrap();
            assert!(reason.is_warning() && stalled.len() > note.len(), "{stalled}");
        }
    }

    #[test]
    fn wait_for_enforcing_names_the_first_blockers() {
        let blocker = |n: usize| Blocker {
            node: format!("node-{n:02}"),
            reason: "PlaintextBypass".to_owned(),
            detail: "a route".to_owned(),
        };
        let wait = Wait { blockers: (1..=5).map(blocker).collect(), ..wait(Step::Enforce, 5) };
        let mut case = Case::new();
        case.after(Duration::ZERO, &wait);
        let (_, note) = case.after(QUIET, &wait).event.unwrap();
        assert!(
            note.contains("node-01: PlaintextBypass (a route); node-02") && !note.contains("node-04: P"),
            "{note}"
        );
    }
}
