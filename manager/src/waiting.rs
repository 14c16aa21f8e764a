//! When people are told that a rotation waits, and for whom. Pure: the clock is an argument.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::{Duration, Instant},
};

use secureoverlay_common::{
    ring::{Enforcement, Ring, Role},
    rotation::{Answer, Facts, Goal, Names},
    uid::Uid,
};
use secureoverlay_daemon::duration::Human;

use crate::notices::Reason;

/// Every rotation waits a little; only this is worth a word.
const QUIET: Duration = Duration::from_secs(15);
/// Between two Events about the same wait.
const REPEAT: Duration = Duration::from_secs(600);
/// So many nodes are told that they are awaited.
const NODES: usize = 20;
/// What the objects say is believed again after this: our own writes have reached the watch by then.
const RECHECK: Duration = Duration::from_secs(60);

/// What nodes are awaited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Receive,
    Switch,
    Insist,
    AcceptPlaintext,
    FallSilent,
}

/// Nodes that are awaited, and what for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wait<'f> {
    /// The step, and the generation that it is about.
    phase: (Uid, Step),
    nodes: &'f BTreeSet<String>,
    what: String,
    /// What speaks against it.
    obstacle: Option<&'f str>,
}

impl<'f> Wait<'f> {
    fn find(ring: Option<&Ring>, facts: &'f Facts, goal: Goal) -> Option<Self> {
        let ring = ring?;
        let with_role = |role| ring.with_role(role);
        let (retiring, active, staged) =
            (with_role(Role::Retiring), with_role(Role::Active), with_role(Role::Staged));
        let permissive = ring.enforcement == Enforcement::Permissive;
        let insists = goal == Goal::Auto && permissive;
        let (step, of, answer, what) = match (retiring, active, staged) {
            (Some(old), Some(active), _) => {
                (Step::Switch, old, &facts.nobody_sends, format!("switching to generation {}", active.id))
            }
            (Some(old), None, None) if goal == Goal::Off => {
                (Step::FallSilent, old, &facts.nobody_sends, "no longer encrypting".to_owned())
            }
            // Beside a first generation, whoever insists goes on until it is active.
            (_, active, staged) if goal == Goal::Off && permissive && !ring.is_first() => {
                let what = "accepting plaintext again".to_owned();
                (Step::AcceptPlaintext, active.or(staged)?, &facts.nobody_insists, what)
            }
            (_, _, Some(staged)) => {
                (Step::Receive, staged, &facts.all_receive, format!("receiving generation {}", staged.id))
            }
            (_, Some(active), None) if insists => {
                (Step::Insist, active, &facts.may_insist, "insisting".to_owned())
            }
            _ => return None,
        };
        let obstacle = facts.obstacle.as_deref().filter(|_| step == Step::Insist);
        match answer {
            Answer::Awaits { nodes, .. } => Some(Self { phase: (of.uid, step), nodes, what, obstacle }),
            Answer::Yes | Answer::In(_) => None,
        }
    }

    /// What `node` is told. What speaks against it elsewhere is none of its business.
    fn what(&self, node: &str) -> String {
        let own = self.obstacle.and_then(|obstacle| obstacle.strip_prefix(node)?.strip_prefix(": "));
        format!("{}{}", self.what, Because(own))
    }
}

/// What speaks against something, where anything does.
struct Because<'o>(Option<&'o str>);

impl fmt::Display for Because<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |obstacle| write!(f, ": {obstacle}"))
    }
}

impl Step {
    const fn reason(self, stalled: bool) -> Reason {
        match (self, stalled) {
            (Self::Receive | Self::Switch, false) => Reason::RotationWaiting,
            (Self::Receive | Self::Switch, true) => Reason::RotationStalled,
            (Self::Insist | Self::AcceptPlaintext | Self::FallSilent, false) => Reason::EnforcementWaiting,
            (Self::Insist | Self::AcceptPlaintext | Self::FallSilent, true) => Reason::EnforcementStalled,
        }
    }

    /// What to do about a stall.
    const fn advice(self) -> &'static str {
        match self {
            Self::Receive | Self::Switch => {
                ". Nodes that are Ready are waited for without end: mend their agents, or go on without them \
                 (ucp-secureoverlay-mgr rotate --force)"
            }
            Self::Insist => ". Until then plaintext is accepted: mend what is named, or exclude those nodes",
            Self::AcceptPlaintext | Self::FallSilent => {
                ". Nodes that are Ready are waited for without end: mend their agents, or go on without them \
                 (kubectl -n kube-system annotate secret ucp-secureoverlay secureoverlay.io/press-on=true)"
            }
        }
    }
}

/// What there is to tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Words {
    /// An Event.
    pub event: Option<(Reason, String)>,
    /// What a node's `status.awaited` is to be, where that is another than it is.
    pub awaited: BTreeMap<String, Option<String>>,
    /// Nodes that are awaited now.
    pub count: usize,
    /// For how long this phase has waited for any.
    pub waited: Duration,
}

/// Remembers what was told.
#[derive(Debug)]
pub struct Waiting {
    limit: Duration,
    wait: Option<Told>,
    /// What the nodes' objects say, with our own writes.
    awaited: BTreeMap<String, String>,
    checked: Option<Instant>,
}

#[derive(Debug)]
struct Told {
    phase: (Uid, Step),
    since: Instant,
    event: Option<(Reason, Instant)>,
}

impl Waiting {
    /// A wait for longer than `limit` is a stall.
    #[must_use]
    pub const fn new(limit: Duration) -> Self {
        Self { limit, wait: None, awaited: BTreeMap::new(), checked: None }
    }

    /// What to tell at `now`. `shown` is what the nodes' objects say that they are awaited for.
    pub fn words(
        &mut self,
        ring: Option<&Ring>,
        facts: &Facts,
        goal: Goal,
        shown: impl FnOnce() -> BTreeMap<String, String>,
        now: Instant,
    ) -> Words {
        if self.checked.is_none_or(|at| now.saturating_duration_since(at) >= RECHECK) {
            self.awaited = shown();
            self.checked = Some(now);
        }
        let mut words = Words::default();
        let mut wanted = BTreeMap::new();
        self.wait = Wait::find(ring, facts, goal).map(|wait| {
            let mut told = match self.wait.take() {
                Some(told) if told.phase == wait.phase => told,
                _ => Told { phase: wait.phase, since: now, event: None },
            };
            words.count = wait.nodes.len();
            words.waited = now.saturating_duration_since(told.since);
            if words.waited >= QUIET {
                wanted = wait.nodes.iter().take(NODES).map(|node| (node.clone(), wait.what(node))).collect();
                words.event = told.event(&wait, words.waited, self.limit, now);
            }
            told
        });
        for node in self.awaited.keys().filter(|node| !wanted.contains_key(*node)) {
            words.awaited.insert(node.clone(), None);
        }
        for (node, what) in &wanted {
            if self.awaited.get(node) != Some(what) {
                words.awaited.insert(node.clone(), Some(what.clone()));
            }
        }
        self.awaited = wanted;
        words
    }
}

impl Told {
    fn event(
        &mut self,
        wait: &Wait<'_>,
        waited: Duration,
        limit: Duration,
        now: Instant,
    ) -> Option<(Reason, String)> {
        let (_, step) = wait.phase;
        let stalled = waited > limit;
        let reason = step.reason(stalled);
        let again = |(last, at)| last != reason || now.saturating_duration_since(at) >= REPEAT;
        if !self.event.is_none_or(again) {
            return None;
        }
        self.event = Some((reason, now));
        let time = Human(Duration::from_secs(waited.as_secs()));
        let (nodes, because) = (Names(wait.nodes), Because(wait.obstacle));
        let mut note = format!("waiting for {time} for {nodes}: {}{because}", wait.what);
        if stalled {
            note.push_str(step.advice());
        }
        Some((reason, note))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    const LIMIT: Duration = Duration::from_secs(3600);

    fn ring(roles: &[(u64, &str)]) -> Ring {
        testing::ring(Enforcement::Permissive, roles)
    }

    fn awaits(count: usize) -> Answer {
        let nodes = (1..=count).map(|n| format!("node-{n:02}")).collect();
        Answer::Awaits { nodes, look_in: LIMIT }
    }

    struct Case {
        waiting: Waiting,
        ring: Ring,
        facts: Facts,
        goal: Goal,
        shown: BTreeMap<String, String>,
        now: Instant,
    }

    impl Case {
        fn new(roles: &[(u64, &str)], answer: Answer) -> Self {
            let facts = Facts::of(answer.clone(), answer);
            let (waiting, goal) = (Waiting::new(LIMIT), Goal::Permissive);
            Self { waiting, ring: ring(roles), facts, goal, shown: BTreeMap::new(), now: Instant::now() }
        }

        fn words(&mut self) -> Words {
            let shown = self.shown.clone();
            let words = self.waiting.words(Some(&self.ring), &self.facts, self.goal, || shown, self.now);
            for (node, what) in &words.awaited {
                match what {
                    Some(what) => self.shown.insert(node.clone(), what.clone()),
                    None => self.shown.remove(node),
                };
            }
            words
        }

        fn after(&mut self, time: Duration) -> Words {
            self.now += time;
            self.words()
        }
    }

    const STAGED: [(u64, &str); 2] = [(42, "active"), (43, "staged")];

    #[test]
    fn a_short_wait_is_no_news() {
        let mut case = Case::new(&STAGED, awaits(2));
        assert_eq!(case.words(), Words { count: 2, ..Words::default() });
        let words = case.after(QUIET);
        let note = "waiting for 15s for node-01, node-02: receiving generation 43".to_owned();
        assert_eq!(words.event, Some((Reason::RotationWaiting, note)));
        let what = Some("receiving generation 43".to_owned());
        assert_eq!(
            words.awaited,
            BTreeMap::from([("node-01".into(), what.clone()), ("node-02".into(), what)])
        );
        assert_eq!((words.count, words.waited), (2, QUIET));
    }

    #[test]
    fn events_repeat_but_not_often_and_a_stall_is_told_at_once() {
        let mut case = Case::new(&STAGED, awaits(1));
        case.words();
        let mut events = Vec::new();
        for minute in 0..=62 {
            events.extend(case.after(Duration::from_secs(60)).event.map(|(reason, _)| (minute, reason)));
        }
        let (waiting, stalled) = (Reason::RotationWaiting, Reason::RotationStalled);
        let expected = [0, 10, 20, 30, 40, 50].map(|minute| (minute, waiting));
        assert_eq!(events, [&expected[..], &[(60, stalled)]].concat());
    }

    #[test]
    fn each_phase_waits_anew() {
        let mut case = Case::new(&STAGED, awaits(1));
        case.words();
        case.after(QUIET);
        case.ring = ring(&[(42, "retiring"), (43, "active")]);
        let words = case.words();
        assert_eq!((words.event, words.waited), (None, Duration::ZERO));
        assert_eq!(words.awaited, BTreeMap::from([("node-01".into(), None)]), "it received");
        let words = case.after(QUIET);
        assert!(words.event.unwrap().1.ends_with("node-01: switching to generation 43"));
    }

    #[test]
    fn the_ladder_waits_as_well() {
        let mut case = Case::new(&[(42, "active")], Answer::Yes);
        case.facts.may_insist = awaits(1);
        case.facts.nobody_insists = awaits(2);
        case.facts.nobody_sends = awaits(3);
        assert_eq!(case.words().count, 0, "nobody wants to insist");
        case.goal = Goal::Auto;
        case.facts.obstacle = Some("node-01: a policy of somebody else".into());
        case.words();
        let words = case.after(QUIET);
        let note = "waiting for 15s for node-01: insisting: node-01: a policy of somebody else".to_owned();
        assert_eq!(words.event, Some((Reason::EnforcementWaiting, note)));
        let (reason, note) = case.after(LIMIT).event.unwrap();
        assert!(reason == Reason::EnforcementStalled && note.contains("plaintext is accepted"), "{note}");
        case.ring.enforcement = Enforcement::Enforcing;
        assert_eq!(case.words().count, 0, "what speaks against it later lowers nothing");
        case.ring.enforcement = Enforcement::Permissive;
        case.goal = Goal::Off;
        assert_eq!((case.words().count, case.words().waited), (2, Duration::ZERO));
        assert!(case.after(QUIET).event.unwrap().1.ends_with("accepting plaintext again"));
        case.ring = ring(&[(42, "staged")]);
        case.facts.all_receive = awaits(4);
        assert_eq!(case.words().count, 4, "it is used before anybody stops insisting");
        case.ring = ring(&[(42, "retiring")]);
        assert_eq!(case.words().count, 3);
        assert!(case.after(QUIET).event.unwrap().1.ends_with("no longer encrypting"));
        assert!(case.after(LIMIT).event.unwrap().1.contains("press-on=true"));
    }

    #[test]
    fn a_node_is_told_of_its_own_obstacle_alone() {
        let told = |obstacle: &str| {
            let mut case = Case::new(&[(42, "active")], Answer::Yes);
            (case.goal, case.facts.may_insist) = (Goal::Auto, awaits(2));
            case.facts.obstacle = Some(obstacle.to_owned());
            case.words();
            let words = case.after(QUIET);
            assert!(words.event.unwrap().1.ends_with(&format!("insisting: {obstacle}")));
            words.awaited.into_values().map(Option::unwrap).collect::<Vec<_>>()
        };
        assert_eq!(told("node-02: a policy"), ["insisting", "insisting: a policy"]);
        for others in ["node-03: a policy", "ESP does not pass between node-01 and node-02", "node-0: b", ""]
        {
            assert_eq!(told(others), ["insisting"; 2], "{others}");
        }
    }

    #[test]
    fn what_nodes_are_told_is_taken_back() {
        let mut case = Case::new(&STAGED, awaits(2));
        case.words();
        case.after(QUIET);
        case.facts.all_receive = awaits(1);
        assert_eq!(case.words().awaited, BTreeMap::from([("node-02".into(), None)]));
        assert_eq!(case.words().awaited, BTreeMap::new(), "once");
        case.facts.all_receive = Answer::Yes;
        assert_eq!(case.words().awaited, BTreeMap::from([("node-01".into(), None)]));
        // What a manager before this one said, too.
        let mut case = Case::new(&[(43, "active")], Answer::Yes);
        case.shown.insert("node-07".into(), "receiving generation 41".into());
        assert_eq!(case.words().awaited, BTreeMap::from([("node-07".into(), None)]));
    }

    #[test]
    fn a_word_that_got_lost_is_said_again() {
        let mut case = Case::new(&STAGED, awaits(1));
        case.words();
        case.after(QUIET);
        case.shown.clear();
        assert_eq!(case.words().awaited, BTreeMap::new(), "it may be on its way");
        assert_eq!(case.after(RECHECK).awaited.len(), 1);
    }

    #[test]
    fn a_whole_cluster_is_not_written_to() {
        let mut case = Case::new(&STAGED, awaits(50));
        case.words();
        let words = case.after(QUIET);
        assert_eq!((words.awaited.len(), words.count), (NODES, 50));
        assert!(words.event.unwrap().1.contains("node-05 and 45 more"));
    }
}
