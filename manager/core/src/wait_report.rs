//! When people are told that a rotation waits, and for whom. Pure: the clock is an argument.

use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, Instant},
};

use secureoverlay_common::{
    duration::Human,
    rotation::{Blocker, BlockerReason, Names, Step, Wait},
    uid::Uid,
};

use crate::notification::EventReason;

/// Every rotation waits a little; only this is worth a word.
const QUIET: Duration = Duration::from_secs(15);
/// Between two Events about the same wait.
const REPEAT: Duration = Duration::from_secs(600);
/// So many nodes are told that they are awaited.
const NODES: usize = 20;
/// What the objects say is believed again after this: our own writes have reached the watch by then.
const RECHECK: Duration = Duration::from_secs(60);

/// What the nodes are awaited for.
fn what(wait: &Wait) -> String {
    match wait.step {
        Step::Receive => format!("receiving generation {}", wait.id),
        Step::Switch => format!("switching to generation {}", wait.id),
        Step::Enforce => "insisting".to_owned(),
        Step::AcceptPlaintext => "accepting plaintext again".to_owned(),
        Step::StopSending => "no longer encrypting".to_owned(),
    }
}

/// What `node` is told. What blocks others is not its concern.
fn what_of(wait: &Wait, node: &str) -> String {
    let reported = |blocker: &&Blocker| blocker.reason == BlockerReason::Reported && blocker.node == node;
    let own = wait.blocker.as_ref().filter(reported);
    format!("{}{}", what(wait), Because(own.map(|blocker| &blocker.detail)))
}

/// What speaks against something, where anything does.
struct Because<T>(Option<T>);

impl<T: fmt::Display> fmt::Display for Because<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_ref().map_or(Ok(()), |blocker| write!(f, ": {blocker}"))
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
            ". Nodes that are Ready are waited for without end: mend their agents, or go on without them \
             (ucp-secureoverlay-mgr rotate --force)"
        }
        Step::Enforce => ". Until then plaintext is accepted: mend what is named, or exclude those nodes",
        Step::AcceptPlaintext | Step::StopSending => {
            ". Nodes that are Ready are waited for without end: mend their agents, or go on without them \
             (kubectl -n kube-system annotate secret ucp-secureoverlay secureoverlay.io/press-on=true)"
        }
    }
}

/// What there is to tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WaitReport {
    /// An Event.
    pub event: Option<(EventReason, String)>,
    /// What a node's `status.awaited` is to be, where that is another than it is.
    pub awaited: BTreeMap<String, Option<String>>,
    /// Nodes that are awaited now.
    pub count: usize,
    /// For how long this phase has waited for any.
    pub waited: Duration,
}

/// Remembers what was told.
#[derive(Debug)]
pub struct WaitReporter {
    limit: Duration,
    wait: Option<Told>,
    /// What the nodes' objects say, with our own writes.
    awaited: BTreeMap<String, String>,
    checked: Option<Instant>,
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
        Self { limit, wait: None, awaited: BTreeMap::new(), checked: None }
    }

    /// What to tell at `now`. `shown` is what the nodes' objects say that they are awaited for.
    pub fn report(
        &mut self,
        wait: Option<&Wait>,
        shown: impl FnOnce() -> BTreeMap<String, String>,
        now: Instant,
    ) -> WaitReport {
        if self.checked.is_none_or(|at| now.saturating_duration_since(at) >= RECHECK) {
            self.awaited = shown();
            self.checked = Some(now);
        }
        let mut report = WaitReport::default();
        let mut wanted = BTreeMap::new();
        // Where only time has to pass, no node is awaited.
        self.wait = wait.filter(|wait| !wait.nodes.is_empty()).map(|wait| {
            let mut told = match self.wait.take() {
                Some(told) if told.wait == wait.key() => told,
                _ => Told { wait: wait.key(), since: now, event: None },
            };
            report.count = wait.nodes.len();
            report.waited = now.saturating_duration_since(told.since);
            if report.waited >= QUIET {
                wanted =
                    wait.nodes.iter().take(NODES).map(|node| (node.clone(), what_of(wait, node))).collect();
                report.event = told.event(wait, report.waited, self.limit, now);
            }
            told
        });
        for node in self.awaited.keys().filter(|node| !wanted.contains_key(*node)) {
            report.awaited.insert(node.clone(), None);
        }
        for (node, what) in &wanted {
            if self.awaited.get(node) != Some(what) {
                report.awaited.insert(node.clone(), Some(what.clone()));
            }
        }
        self.awaited = wanted;
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
        let time = Human(Duration::from_secs(waited.as_secs()));
        let (nodes, because) = (Names(&wait.nodes), Because(wait.blocker.as_ref()));
        let mut note = format!("waiting for {time} for {nodes}: {}{because}", what(wait));
        if stalled {
            note.push_str(advice(wait.step));
        }
        Some((reason, note))
    }
}

#[cfg(test)]
mod tests {
    use secureoverlay_common::{
        ring::{Enforcement, Ring},
        rotation::{EnforcementGoal, Evidence, Installation, Readiness, RotationSchedule, Settings, decide},
        suite::Suite,
    };

    use super::*;
    use crate::testing;

    const LIMIT: Duration = Duration::from_secs(3600);

    fn ring(roles: &[(u64, &str)]) -> Ring {
        testing::ring(Enforcement::Permissive, roles)
    }

    fn awaits(count: usize) -> Readiness {
        let nodes = (1..=count).map(|n| format!("node-{n:02}")).collect();
        Readiness::Waiting { nodes, look_in: LIMIT }
    }

    struct Case {
        waiting: WaitReporter,
        ring: Ring,
        evidence: Evidence,
        goal: EnforcementGoal,
        shown: BTreeMap<String, String>,
        now: Instant,
    }

    impl Case {
        fn new(roles: &[(u64, &str)], answer: Readiness) -> Self {
            let evidence = Evidence::of(answer.clone(), answer);
            let (waiting, goal) = (WaitReporter::new(LIMIT), EnforcementGoal::Permissive);
            Self { waiting, ring: ring(roles), evidence, goal, shown: BTreeMap::new(), now: Instant::now() }
        }

        fn report(&mut self) -> WaitReport {
            let shown = self.shown.clone();
            let wait = self.wait();
            let report = self.waiting.report(wait.as_ref(), || shown, self.now);
            for (node, what) in &report.awaited {
                match what {
                    Some(what) => self.shown.insert(node.clone(), what.clone()),
                    None => self.shown.remove(node),
                };
            }
            report
        }

        /// What the real decision waits for.
        fn wait(&self) -> Option<Wait> {
            let schedule = RotationSchedule::Every(Duration::from_secs(12 * 3600));
            let settings = Settings { schedule, suite: Suite::default(), goal: self.goal };
            let now = "2026-11-20T03:00:00Z".parse().unwrap();
            decide(Some(&self.ring), Installation::Unknown, &self.evidence, now, &settings).wait
        }

        fn after(&mut self, time: Duration) -> WaitReport {
            self.now += time;
            self.report()
        }
    }

    const STAGED: [(u64, &str); 2] = [(42, "active"), (43, "staged")];

    #[test]
    fn a_short_wait_is_no_news() {
        let mut case = Case::new(&STAGED, awaits(2));
        assert_eq!(case.report(), WaitReport { count: 2, ..WaitReport::default() });
        let report = case.after(QUIET);
        let note = "waiting for 15s for node-01, node-02: receiving generation 43".to_owned();
        assert_eq!(report.event, Some((EventReason::RotationWaiting, note)));
        let what = Some("receiving generation 43".to_owned());
        assert_eq!(
            report.awaited,
            BTreeMap::from([("node-01".into(), what.clone()), ("node-02".into(), what)])
        );
        assert_eq!((report.count, report.waited), (2, QUIET));
    }

    #[test]
    fn events_repeat_but_not_often_and_a_stall_is_told_at_once() {
        let mut case = Case::new(&STAGED, awaits(1));
        case.report();
        let mut events = Vec::new();
        for minute in 0..=62 {
            events.extend(case.after(Duration::from_secs(60)).event.map(|(reason, _)| (minute, reason)));
        }
        let (waiting, stalled) = (EventReason::RotationWaiting, EventReason::RotationStalled);
        let expected = [0, 10, 20, 30, 40, 50].map(|minute| (minute, waiting));
        assert_eq!(events, [&expected[..], &[(60, stalled)]].concat());
    }

    #[test]
    fn each_phase_waits_anew() {
        let mut case = Case::new(&STAGED, awaits(1));
        case.report();
        case.after(QUIET);
        case.ring = ring(&[(42, "retiring"), (43, "active")]);
        let report = case.report();
        assert_eq!((report.event, report.waited), (None, Duration::ZERO));
        assert_eq!(report.awaited, BTreeMap::from([("node-01".into(), None)]), "it received");
        let report = case.after(QUIET);
        assert!(report.event.unwrap().1.ends_with("node-01: switching to generation 43"));
    }

    #[test]
    fn the_ladder_waits_as_well() {
        let mut case = Case::new(&[(42, "active")], Readiness::Ready);
        case.evidence.can_enforce = awaits(1);
        case.evidence.none_enforcing = awaits(2);
        case.evidence.drained = awaits(3);
        assert_eq!(case.report().count, 0, "nobody wants to insist");
        case.goal = EnforcementGoal::Auto;
        case.evidence.blocker = Some(Blocker::reported("node-01", "a foreign policy"));
        case.report();
        let report = case.after(QUIET);
        let note = "waiting for 15s for node-01: insisting: node-01: a foreign policy".to_owned();
        assert_eq!(report.event, Some((EventReason::EnforcementWaiting, note)));
        let (reason, note) = case.after(LIMIT).event.unwrap();
        assert!(
            reason == EventReason::EnforcementStalled && note.contains("plaintext is accepted"),
            "{note}"
        );
        case.ring.enforcement = Enforcement::Enforcing;
        assert_eq!(case.report().count, 0, "what speaks against it later lowers nothing");
        case.ring.enforcement = Enforcement::Permissive;
        case.goal = EnforcementGoal::Off;
        assert_eq!((case.report().count, case.report().waited), (2, Duration::ZERO));
        assert!(case.after(QUIET).event.unwrap().1.ends_with("accepting plaintext again"));
        case.ring = ring(&[(42, "staged")]);
        case.evidence.staged_acked = awaits(4);
        assert_eq!(case.report().count, 4, "it is used before anybody stops insisting");
        case.ring = ring(&[(42, "retiring")]);
        assert_eq!(case.report().count, 3);
        assert!(case.after(QUIET).event.unwrap().1.ends_with("no longer encrypting"));
        assert!(case.after(LIMIT).event.unwrap().1.contains("press-on=true"));
    }

    #[test]
    fn a_node_is_told_of_its_own_blocker_alone() {
        let told = |blocker: &Blocker| {
            let mut case = Case::new(&[(42, "active")], Readiness::Ready);
            (case.goal, case.evidence.can_enforce) = (EnforcementGoal::Auto, awaits(2));
            case.evidence.blocker = Some(blocker.clone());
            case.report();
            let report = case.after(QUIET);
            assert!(report.event.unwrap().1.ends_with(&format!("insisting: {blocker}")));
            report.awaited.into_values().map(Option::unwrap).collect::<Vec<_>>()
        };
        assert_eq!(told(&Blocker::reported("node-02", "a policy")), ["insisting", "insisting: a policy"]);
        let of = |reason, detail: &str| Blocker { node: "node-01".into(), reason, detail: detail.into() };
        for others in [
            Blocker::reported("node-03", "a policy"),
            Blocker::reported("node-0", "b"),
            of(BlockerReason::EspBlocked, "node-02"),
            of(BlockerReason::MtuTooLarge, ""),
        ] {
            assert_eq!(told(&others), ["insisting"; 2], "{others}");
        }
    }

    #[test]
    fn what_nodes_are_told_is_taken_back() {
        let mut case = Case::new(&STAGED, awaits(2));
        case.report();
        case.after(QUIET);
        case.evidence.staged_acked = awaits(1);
        assert_eq!(case.report().awaited, BTreeMap::from([("node-02".into(), None)]));
        assert_eq!(case.report().awaited, BTreeMap::new(), "once");
        case.evidence.staged_acked = Readiness::Ready;
        assert_eq!(case.report().awaited, BTreeMap::from([("node-01".into(), None)]));
        // What a manager before this one said, too.
        let mut case = Case::new(&[(43, "active")], Readiness::Ready);
        case.shown.insert("node-07".into(), "receiving generation 41".into());
        assert_eq!(case.report().awaited, BTreeMap::from([("node-07".into(), None)]));
    }

    #[test]
    fn a_word_that_got_lost_is_said_again() {
        let mut case = Case::new(&STAGED, awaits(1));
        case.report();
        case.after(QUIET);
        case.shown.clear();
        assert_eq!(case.report().awaited, BTreeMap::new(), "it may be on its way");
        assert_eq!(case.after(RECHECK).awaited.len(), 1);
    }

    #[test]
    fn a_whole_cluster_is_not_written_to() {
        let mut case = Case::new(&STAGED, awaits(50));
        case.report();
        let report = case.after(QUIET);
        assert_eq!((report.awaited.len(), report.count), (NODES, 50));
        assert!(report.event.unwrap().1.contains("node-05 and 45 more"));
    }
}
