//! The ladder from off to enforcing and back.

use std::convert::Infallible;

use super::*;

const DUE: Duration = Duration::from_secs(12 * 3600);

fn yes() -> Facts {
    Facts { may_insist: Answer::Yes, ..Facts::of(Answer::Yes, Answer::Yes) }
}

fn awaits() -> Answer {
    Answer::Awaits { nodes: ["node-2".to_owned()].into(), look_in: Duration::from_secs(60) }
}

fn node(n: u8) -> Uid {
    Uid::from_random([n; 16])
}

struct Run {
    ring: Option<Ring>,
    goal: Goal,
    now: Timestamp,
    drawn: u8,
}

impl Run {
    fn new(goal: Goal) -> Self {
        Self { ring: None, goal, now: "2026-11-20T03:00:00Z".parse().unwrap(), drawn: 0 }
    }

    /// One that went as far as its goal with `facts`.
    fn settled(goal: Goal) -> Self {
        let mut run = Self::new(goal);
        while run.step(&yes()) != Action::Wait {}
        run
    }

    fn settings(&self) -> Settings {
        Settings { pace: Pace::Every(DUE), suite: Suite::Aes128Gcm8, goal: self.goal }
    }

    fn decide(&self, facts: &Facts) -> Decision {
        decide(self.ring.as_ref(), Installation::Unknown, facts, self.now, &self.settings())
    }

    fn step(&mut self, facts: &Facts) -> Action {
        let action = self.decide(facts).action;
        if action != Action::Wait {
            let (settings, drawn) = (self.settings(), &mut self.drawn);
            let fill = |bytes: &mut [u8]| {
                *drawn += 1;
                bytes.fill(*drawn);
                Ok::<_, Infallible>(())
            };
            let next =
                apply(self.ring.as_ref(), action, Installation::Unknown, facts, self.now, &settings, fill);
            let next = next.unwrap();
            assert_eq!(Ring::parse(next.to_yaml().as_bytes()).as_ref(), Ok(&next), "{action:?}");
            self.ring = Some(next);
        }
        action
    }

    fn steps(&mut self, facts: &Facts) -> Vec<Action> {
        std::iter::from_fn(|| Some(self.step(facts)).filter(|action| *action != Action::Wait)).collect()
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
    let mut run = Run::new(Goal::Auto);
    assert_eq!(run.steps(&yes()), [Action::Begin, Action::Activate, Action::Insist]);
    assert_eq!(run.ring().enforcement, Enforcement::Enforcing);
    run.goal = Goal::Off;
    assert_eq!(run.steps(&yes()), [Action::Relent, Action::Silence, Action::Quit]);
    assert_eq!((run.ring().enforcement, run.roles()), (Enforcement::Off, vec![]));
    assert_eq!(run.decide(&yes()).reason, "encryption is off, as asked");
    run.goal = Goal::Permissive;
    assert_eq!(run.steps(&yes()), [Action::Begin, Action::Activate]);
    assert_eq!(run.ring().enforcement, Enforcement::Permissive);
}

#[test]
fn each_step_down_waits_for_the_one_before() {
    let mut run = Run::settled(Goal::Auto);
    run.goal = Goal::Off;
    let insisting = Facts { nobody_insists: awaits(), nobody_sends: awaits(), ..yes() };
    assert_eq!(run.steps(&insisting), [Action::Relent], "at once");
    assert!(
        run.decide(&insisting).reason.ends_with("every node accepts plaintext again, waiting for node-2")
    );
    let sending = Facts { nobody_sends: awaits(), ..yes() };
    assert_eq!(run.steps(&sending), [Action::Silence]);
    assert_eq!((run.roles(), run.ring().next_rotation), (vec![Role::Retiring], None));
    assert!(run.decide(&sending).reason.ends_with("every node stops to encrypt, waiting for node-2"));
    assert_eq!(run.steps(&yes()), [Action::Quit]);
}

#[test]
fn what_is_insisted_on_beside_a_first_generation_ends_when_that_is_active() {
    let mut run = Run::new(Goal::Off);
    let insisting = Facts { nobody_insists: awaits(), all_receive: awaits(), newest: 7, ..yes() };
    assert_eq!(run.steps(&insisting), [Action::Begin], "without a ring, nodes go on as before");
    let received = Facts { all_receive: Answer::Yes, ..insisting };
    assert_eq!(run.steps(&received), [Action::Activate], "and with nothing but a staged generation too");
    assert_eq!(run.decide(&received).action, Action::Wait);
    assert_eq!(run.steps(&yes()), [Action::Silence, Action::Quit]);
}

#[test]
fn a_drain_ends_first_and_a_staged_generation_is_dropped() {
    let mut run = Run::settled(Goal::Permissive);
    run.now = run.now.checked_add(SignedDuration::from_hours(12)).unwrap();
    assert_eq!(run.step(&yes()), Action::Stage);
    let mut draining = Run { ring: run.ring.clone(), drawn: 50, ..Run::new(Goal::Permissive) };
    run.goal = Goal::Off;
    assert_eq!(run.step(&yes()), Action::Silence);
    assert_eq!(run.roles(), [Role::Retiring], "nobody ever sent with the staged one");
    assert_eq!(draining.step(&yes()), Action::Activate);
    draining.goal = Goal::Off;
    assert_eq!(draining.decide(&Facts { nobody_sends: awaits(), ..yes() }).action, Action::Wait);
    assert_eq!(draining.steps(&yes()), [Action::Drop, Action::Silence, Action::Quit]);
}

#[test]
fn a_change_of_mind_on_the_way_down_is_a_new_generation() {
    let mut run = Run::settled(Goal::Auto);
    run.goal = Goal::Off;
    run.step(&yes());
    run.goal = Goal::Auto;
    assert_eq!(run.steps(&yes()), [Action::Insist], "nobody had stopped to send");
    run.goal = Goal::Off;
    run.step(&yes());
    assert_eq!(run.step(&yes()), Action::Silence);
    run.goal = Goal::Auto;
    assert_eq!(run.step(&yes()), Action::Stage);
    assert_eq!(run.roles(), [Role::Retiring, Role::Staged]);
    // And once more.
    let mut down = Run { ring: run.ring.clone(), ..Run::new(Goal::Off) };
    assert_eq!(down.steps(&yes()), [Action::Silence, Action::Quit]);
    assert_eq!(run.steps(&yes()), [Action::Activate, Action::Drop, Action::Insist]);
}

#[test]
fn off_from_the_start_makes_no_key_unless_nodes_hold_one() {
    let mut run = Run::new(Goal::Off);
    assert_eq!(run.steps(&yes()), []);
    assert_eq!(run.decide(&yes()).reason, "encryption is off, as asked");
    // The Secret was emptied: without a ring the nodes would go on with what they have.
    let known = Facts { newest: 7, ..yes() };
    assert_eq!(run.step(&known), Action::Begin);
    assert_eq!(run.step(&known), Action::Silence);
    assert_eq!(run.roles(), [Role::Retiring], "its ring tells nodes to stop");
    assert_eq!(run.steps(&known), [Action::Quit]);
}

#[test]
fn nodes_that_come_and_go_are_written_down_while_plaintext_is_accepted() {
    let mut run = Run::settled(Goal::Permissive);
    let joined = Facts { pending: [node(4)].into(), ..yes() };
    assert_eq!(run.steps(&joined), [Action::Pend]);
    assert_eq!(run.ring().pending, [node(4)].into());
    assert_eq!(run.steps(&yes()), [Action::Pend]);
    assert_eq!(run.ring().pending, [].into());
    run.steps(&joined);
    // An activation comes after it, and tells the same.
    run.now = run.now.checked_add(SignedDuration::from_hours(12)).unwrap();
    assert_eq!(run.steps(&joined), [Action::Stage, Action::Activate, Action::Drop]);
    assert_eq!(run.ring().pending, [node(4)].into());
    run.goal = Goal::Off;
    run.step(&joined);
    assert_eq!(run.roles(), [Role::Retiring]);
    assert_eq!(
        run.decide(&Facts { nobody_sends: awaits(), ..yes() }).action,
        Action::Wait,
        "nobody sends at all"
    );
}

#[test]
fn insisting_clears_what_was_pending_and_waits_until_nothing_speaks_against_it() {
    let mut run = Run::settled(Goal::Permissive);
    run.goal = Goal::Auto;
    run.ring.as_mut().unwrap().pending = [node(9)].into();
    let facts = Facts {
        may_insist: awaits(),
        obstacle: Some("node-2: a policy of somebody else".into()),
        pending: [node(9)].into(),
        ..yes()
    };
    let decision = run.decide(&facts);
    assert_eq!((decision.action, decision.wake_in), (Action::Wait, Duration::from_secs(60)));
    assert_eq!(
        decision.reason,
        "generation 1 is active, not insisted on yet (node-2: a policy of somebody else), waiting for node-2"
    );
    assert_eq!(run.steps(&Facts { may_insist: Answer::Yes, ..facts.clone() }), [Action::Insist]);
    assert_eq!(run.ring().pending, [].into());
    // What comes up later is told by others; the ring stays.
    let later = Facts { pending: [].into(), ..facts };
    assert_eq!(run.decide(&later).action, Action::Wait);
    assert_eq!(run.decide(&later).wake_in, DUE);
}

#[test]
fn time_alone_never_insists_and_never_relents() {
    let mut run = Run::settled(Goal::Permissive);
    run.goal = Goal::Auto;
    let timed = Facts::of(Answer::Yes, Answer::Yes);
    let decision = run.decide(&timed);
    assert_eq!((decision.action, decision.wake_in), (Action::Wait, DUE));
    assert_eq!(run.steps(&yes()), [Action::Insist]);
    assert_eq!(run.decide(&timed).action, Action::Wait, "a manager that lost its rights changes nothing");
}

#[test]
fn a_rotation_that_is_due_comes_before_insisting() {
    let mut run = Run::settled(Goal::Permissive);
    run.goal = Goal::Auto;
    let wanted = Facts { requested: Some("somebody asked".into()), ..yes() };
    assert_eq!(run.decide(&wanted).action, Action::Stage);
    let mut enforcing = Run::settled(Goal::Auto);
    assert_eq!(enforcing.step(&wanted), Action::Stage);
    assert_eq!(enforcing.steps(&yes()), [Action::Activate, Action::Drop], "rotations go on");
    assert_eq!(enforcing.ring().enforcement, Enforcement::Enforcing);
}

#[test]
fn timed_facts_give_each_step_down_its_time() {
    let mut run = Run::settled(Goal::Auto);
    let (delay, start) = (Duration::from_secs(180), std::time::Instant::now());
    let mut timed = crate::timed::Timed::new(delay);
    timed.observe(run.ring.as_ref(), start);
    run.goal = Goal::Off;
    assert_eq!(run.step(&yes()), Action::Relent);
    assert_eq!(timed.observe(run.ring.as_ref(), start + delay).nobody_insists, Answer::In(delay));
    assert_eq!(timed.observe(run.ring.as_ref(), start + 2 * delay).nobody_insists, Answer::Yes);
    assert_eq!(run.step(&yes()), Action::Silence);
    assert_eq!(timed.observe(run.ring.as_ref(), start + 2 * delay).nobody_sends, Answer::In(delay));
    assert_eq!(timed.observe(run.ring.as_ref(), start + 3 * delay).nobody_sends, Answer::Yes);
}

#[test]
fn time_makes_nobody_less_pending() {
    let mut ring = Run::settled(Goal::Permissive).ring.unwrap();
    ring.enforcement = Enforcement::Permissive;
    ring.pending = [Uid::from_random([7; 16])].into();
    let mut timed = crate::timed::Timed::new(Duration::from_secs(180));
    assert_eq!(timed.observe(Some(&ring), std::time::Instant::now()).pending, ring.pending);
}
