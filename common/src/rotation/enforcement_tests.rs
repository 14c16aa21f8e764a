//! The ladder from off to enforcing and back.

use std::convert::Infallible;

use jiff::{SignedDuration, Timestamp};

use super::*;
use crate::ring::{Ring, Role};

const DUE: Duration = Duration::from_secs(12 * 3600);

fn yes() -> Evidence {
    Evidence { can_enforce: Readiness::Ready, ..Evidence::of(Readiness::Ready, Readiness::Ready) }
}

fn awaits() -> Readiness {
    Readiness::Waiting { nodes: ["node-2".to_owned()].into(), look_in: Duration::from_secs(60) }
}

fn node(n: u8) -> Uid {
    Uid::from_random([n; 16])
}

struct Run {
    ring: Option<Ring>,
    goal: EnforcementGoal,
    now: Timestamp,
    drawn: u8,
}

impl Run {
    fn new(goal: EnforcementGoal) -> Self {
        Self { ring: None, goal, now: "2026-11-20T03:00:00Z".parse().unwrap(), drawn: 0 }
    }

    /// One that went as far as its goal with `evidence`.
    fn settled(goal: EnforcementGoal) -> Self {
        let mut run = Self::new(goal);
        while run.step(&yes()) != Action::Wait {}
        run
    }

    fn settings(&self) -> Settings {
        Settings { schedule: RotationSchedule::Every(DUE), suite: Suite::Aes128Gcm8, goal: self.goal }
    }

    fn decide(&self, evidence: &Evidence) -> Decision {
        decide(self.ring.as_ref(), Installation::Unknown, evidence, self.now, &self.settings())
    }

    fn step(&mut self, evidence: &Evidence) -> Action {
        let action = self.decide(evidence).action;
        if action != Action::Wait {
            let (settings, drawn) = (self.settings(), &mut self.drawn);
            let fill = |bytes: &mut [u8]| {
                *drawn += 1;
                bytes.fill(*drawn);
                Ok::<_, Infallible>(())
            };
            let next =
                apply(self.ring.as_ref(), action, Installation::Unknown, evidence, self.now, &settings, fill);
            let next = next.unwrap();
            assert_eq!(Ring::parse(next.to_yaml().as_bytes()).as_ref(), Ok(&next), "{action:?}");
            self.ring = Some(next);
        }
        action
    }

    fn steps(&mut self, evidence: &Evidence) -> Vec<Action> {
        std::iter::from_fn(|| Some(self.step(evidence)).filter(|action| *action != Action::Wait)).collect()
    }

    fn ring(&self) -> &Ring {
        self.ring.as_ref().unwrap()
    }

    fn roles(&self) -> Vec<Role> {
        self.ring().generations.iter().map(|generation| generation.role).collect()
    }
}

#[test]
fn up_to_enforcing_and_down_to_off_and_up_again() {
    let mut run = Run::new(EnforcementGoal::Auto);
    assert_eq!(
        run.steps(&yes()),
        [Action::Bootstrap, Action::Activate, Action::SetEnforcement(Enforcement::Enforcing)]
    );
    assert_eq!(run.ring().enforcement, Enforcement::Enforcing);
    run.goal = EnforcementGoal::Off;
    assert_eq!(
        run.steps(&yes()),
        [Action::SetEnforcement(Enforcement::Permissive), Action::StopSending, Action::Disable]
    );
    assert_eq!((run.ring().enforcement, run.roles()), (Enforcement::Off, vec![]));
    assert_eq!(run.decide(&yes()).reason, "encryption is off, as asked");
    run.goal = EnforcementGoal::Permissive;
    assert_eq!(run.steps(&yes()), [Action::Bootstrap, Action::Activate]);
    assert_eq!(run.ring().enforcement, Enforcement::Permissive);
}

#[test]
fn each_step_down_waits_for_the_one_before() {
    let mut run = Run::settled(EnforcementGoal::Auto);
    run.goal = EnforcementGoal::Off;
    let insisting = Evidence { none_enforcing: awaits(), drained: awaits(), ..yes() };
    assert_eq!(run.steps(&insisting), [Action::SetEnforcement(Enforcement::Permissive)], "at once");
    assert!(
        run.decide(&insisting).reason.ends_with("every node accepts plaintext again, waiting for node-2")
    );
    let sending = Evidence { drained: awaits(), ..yes() };
    assert_eq!(run.steps(&sending), [Action::StopSending]);
    assert_eq!((run.roles(), run.ring().next_rotation), (vec![Role::Retiring], None));
    assert!(run.decide(&sending).reason.ends_with("every node stops to encrypt, waiting for node-2"));
    assert_eq!(run.steps(&yes()), [Action::Disable]);
}

#[test]
fn what_is_insisted_on_beside_a_first_generation_ends_when_that_is_active() {
    let mut run = Run::new(EnforcementGoal::Off);
    let insisting = Evidence { none_enforcing: awaits(), staged_acked: awaits(), newest: 7, ..yes() };
    assert_eq!(run.steps(&insisting), [Action::Bootstrap], "without a ring, nodes go on as before");
    let received = Evidence { staged_acked: Readiness::Ready, ..insisting };
    assert_eq!(run.steps(&received), [Action::Activate], "and with nothing but a staged generation too");
    assert_eq!(run.decide(&received).action, Action::Wait);
    assert_eq!(run.steps(&yes()), [Action::StopSending, Action::Disable]);
}

#[test]
fn a_drain_ends_first_and_a_staged_generation_is_dropped() {
    let mut run = Run::settled(EnforcementGoal::Permissive);
    run.now = run.now.checked_add(SignedDuration::from_hours(12)).unwrap();
    assert_eq!(run.step(&yes()), Action::Stage);
    let mut draining = Run { ring: run.ring.clone(), drawn: 50, ..Run::new(EnforcementGoal::Permissive) };
    run.goal = EnforcementGoal::Off;
    assert_eq!(run.step(&yes()), Action::StopSending);
    assert_eq!(run.roles(), [Role::Retiring], "nobody ever sent with the staged one");
    assert_eq!(draining.step(&yes()), Action::Activate);
    draining.goal = EnforcementGoal::Off;
    assert_eq!(draining.decide(&Evidence { drained: awaits(), ..yes() }).action, Action::Wait);
    assert_eq!(draining.steps(&yes()), [Action::RemoveRetired, Action::StopSending, Action::Disable]);
}

#[test]
fn a_change_of_mind_on_the_way_down_is_a_new_generation() {
    let mut run = Run::settled(EnforcementGoal::Auto);
    run.goal = EnforcementGoal::Off;
    run.step(&yes());
    run.goal = EnforcementGoal::Auto;
    assert_eq!(
        run.steps(&yes()),
        [Action::SetEnforcement(Enforcement::Enforcing)],
        "nobody had stopped to send"
    );
    run.goal = EnforcementGoal::Off;
    run.step(&yes());
    assert_eq!(run.step(&yes()), Action::StopSending);
    run.goal = EnforcementGoal::Auto;
    assert_eq!(run.step(&yes()), Action::Stage);
    assert_eq!(run.roles(), [Role::Retiring, Role::Staged]);
    // And once more.
    let mut down = Run { ring: run.ring.clone(), ..Run::new(EnforcementGoal::Off) };
    assert_eq!(down.steps(&yes()), [Action::StopSending, Action::Disable]);
    assert_eq!(
        run.steps(&yes()),
        [Action::Activate, Action::RemoveRetired, Action::SetEnforcement(Enforcement::Enforcing)]
    );
}

#[test]
fn off_from_the_start_makes_no_key_unless_nodes_hold_one() {
    let mut run = Run::new(EnforcementGoal::Off);
    assert_eq!(run.steps(&yes()), []);
    assert_eq!(run.decide(&yes()).reason, "encryption is off, as asked");
    // The Secret was emptied: without a ring the nodes would go on with what they have.
    let known = Evidence { newest: 7, ..yes() };
    assert_eq!(run.step(&known), Action::Bootstrap);
    assert_eq!(run.step(&known), Action::StopSending);
    assert_eq!(run.roles(), [Role::Retiring], "its ring tells nodes to stop");
    assert_eq!(run.steps(&known), [Action::Disable]);
}

#[test]
fn nodes_that_come_and_go_are_written_down_while_plaintext_is_accepted() {
    let mut run = Run::settled(EnforcementGoal::Permissive);
    let joined = Evidence { pending: [node(4)].into(), ..yes() };
    assert_eq!(run.steps(&joined), [Action::Pend]);
    assert_eq!(run.ring().pending, [node(4)].into());
    assert_eq!(run.steps(&yes()), [Action::Pend]);
    assert_eq!(run.ring().pending, [].into());
    run.steps(&joined);
    // An activation comes after it, and tells the same.
    run.now = run.now.checked_add(SignedDuration::from_hours(12)).unwrap();
    assert_eq!(run.steps(&joined), [Action::Stage, Action::Activate, Action::RemoveRetired]);
    assert_eq!(run.ring().pending, [node(4)].into());
    run.goal = EnforcementGoal::Off;
    run.step(&joined);
    assert_eq!(run.roles(), [Role::Retiring]);
    assert_eq!(
        run.decide(&Evidence { drained: awaits(), ..yes() }).action,
        Action::Wait,
        "nobody sends at all"
    );
}

#[test]
fn insisting_clears_what_was_pending_and_waits_until_nothing_speaks_against_it() {
    let mut run = Run::settled(EnforcementGoal::Permissive);
    run.goal = EnforcementGoal::Auto;
    run.ring.as_mut().unwrap().pending = [node(9)].into();
    let evidence = Evidence {
        can_enforce: awaits(),
        blocker: Some(Blocker::reported("node-2", "a policy of somebody else")),
        pending: [node(9)].into(),
        ..yes()
    };
    let decision = run.decide(&evidence);
    assert_eq!((decision.action, decision.wake_in), (Action::Wait, Duration::from_secs(60)));
    assert_eq!(
        decision.reason,
        "generation 1 is active, not insisted on yet (node-2: a policy of somebody else), waiting for node-2"
    );
    assert_eq!(
        run.steps(&Evidence { can_enforce: Readiness::Ready, ..evidence.clone() }),
        [Action::SetEnforcement(Enforcement::Enforcing)]
    );
    assert_eq!(run.ring().pending, [].into());
    // What comes up later is told by others; the ring stays.
    let later = Evidence { pending: [].into(), ..evidence };
    assert_eq!(run.decide(&later).action, Action::Wait);
    assert_eq!(run.decide(&later).wake_in, DUE);
}

#[test]
fn time_alone_never_insists_and_never_relents() {
    let mut run = Run::settled(EnforcementGoal::Permissive);
    run.goal = EnforcementGoal::Auto;
    let timed = Evidence::of(Readiness::Ready, Readiness::Ready);
    let decision = run.decide(&timed);
    assert_eq!((decision.action, decision.wake_in), (Action::Wait, DUE));
    assert_eq!(run.steps(&yes()), [Action::SetEnforcement(Enforcement::Enforcing)]);
    assert_eq!(run.decide(&timed).action, Action::Wait, "a manager that lost its rights changes nothing");
}

#[test]
fn a_rotation_that_is_due_comes_before_insisting() {
    let mut run = Run::settled(EnforcementGoal::Permissive);
    run.goal = EnforcementGoal::Auto;
    let wanted = Evidence { requested: Some("somebody asked".into()), ..yes() };
    assert_eq!(run.decide(&wanted).action, Action::Stage);
    let mut enforcing = Run::settled(EnforcementGoal::Auto);
    assert_eq!(enforcing.step(&wanted), Action::Stage);
    assert_eq!(enforcing.steps(&yes()), [Action::Activate, Action::RemoveRetired], "rotations go on");
    assert_eq!(enforcing.ring().enforcement, Enforcement::Enforcing);
}

#[test]
fn timed_facts_give_each_step_down_its_time() {
    let mut run = Run::settled(EnforcementGoal::Auto);
    let (delay, start) = (Duration::from_secs(180), std::time::Instant::now());
    let mut timed = DelayTracker::new(delay);
    timed.observe(run.ring.as_ref(), start);
    run.goal = EnforcementGoal::Off;
    assert_eq!(run.step(&yes()), Action::SetEnforcement(Enforcement::Permissive));
    assert_eq!(timed.observe(run.ring.as_ref(), start + delay).none_enforcing, Readiness::After(delay));
    assert_eq!(timed.observe(run.ring.as_ref(), start + 2 * delay).none_enforcing, Readiness::Ready);
    assert_eq!(run.step(&yes()), Action::StopSending);
    assert_eq!(timed.observe(run.ring.as_ref(), start + 2 * delay).drained, Readiness::After(delay));
    assert_eq!(timed.observe(run.ring.as_ref(), start + 3 * delay).drained, Readiness::Ready);
}

#[test]
fn time_makes_nobody_less_pending() {
    let mut ring = Run::settled(EnforcementGoal::Permissive).ring.unwrap();
    ring.enforcement = Enforcement::Permissive;
    ring.pending = [Uid::from_random([7; 16])].into();
    let mut timed = DelayTracker::new(Duration::from_secs(180));
    assert_eq!(timed.observe(Some(&ring), std::time::Instant::now()).pending, ring.pending);
}
