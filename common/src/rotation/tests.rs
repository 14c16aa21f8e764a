use std::{borrow::Borrow, collections::BTreeMap, convert::Infallible, net::IpAddr};

use jiff::{SignedDuration, Timestamp};

use super::{apply::distinct, *};
use crate::ring::{Ring, Role};

const YES: Evidence = Evidence::of(Readiness::Ready, Readiness::Ready);
const LATER: Evidence =
    Evidence::of(Readiness::After(Duration::from_secs(60)), Readiness::After(Duration::from_secs(60)));
const INTERVAL: Duration = Duration::from_secs(12 * 3600);
const SETTINGS: Settings = Settings {
    schedule: RotationSchedule::Every(INTERVAL),
    suite: Suite::Aes128Gcm8,
    goal: EnforcementGoal::Permissive,
};

/// A manager with a clock that only moves by hand and random numbers that count.
struct Run {
    ring: Option<Ring>,
    installation: Installation,
    now: Timestamp,
    settings: Settings,
    drawn: u8,
}

impl Run {
    fn new() -> Self {
        let now = "2026-11-20T03:00:00Z".parse().unwrap();
        Self { ring: None, installation: Installation::Unknown, now, settings: SETTINGS, drawn: 0 }
    }

    fn decide(&self, evidence: impl Borrow<Evidence>) -> Decision {
        decide(self.ring.as_ref(), self.installation, evidence.borrow(), self.now, &self.settings)
    }

    /// Decides, writes, and shows what the ring holds then, as the Secret would.
    fn step(&mut self, evidence: impl Borrow<Evidence>) -> (Action, Vec<(u64, Role)>) {
        let evidence = evidence.borrow();
        let action = self.decide(evidence).action;
        if action != Action::Wait {
            let drawn = &mut self.drawn;
            let ring = apply(
                self.ring.as_ref(),
                action,
                self.installation,
                evidence,
                self.now,
                &self.settings,
                |bytes| {
                    *drawn += 1;
                    bytes.fill(*drawn);
                    Ok::<_, Infallible>(())
                },
            )
            .unwrap();
            assert_eq!(
                Ring::parse(ring.to_yaml().as_bytes()).as_ref(),
                Ok(&ring),
                "every ring written can be read"
            );
            assert_eq!(ring.revision, self.ring.as_ref().map_or(0, |ring| ring.revision) + 1);
            self.ring = Some(ring);
        }
        let generations = self.ring.iter().flat_map(|ring| &ring.generations);
        (action, generations.map(|generation| (generation.id, generation.role)).collect())
    }

    fn advance(&mut self, hours: i64) {
        self.now = self.now.checked_add(SignedDuration::from_hours(hours)).unwrap();
    }

    fn steady() -> Self {
        let mut run = Self::new();
        run.step(YES);
        run.step(YES);
        assert_eq!(run.decide(YES).action, Action::Wait);
        run
    }
}

#[test]
fn from_nothing_through_one_rotation() {
    use Role::{Active, Retiring, Staged};
    let mut run = Run::new();
    assert_eq!(run.step(LATER), (Action::Bootstrap, vec![(1, Staged)]));
    assert_eq!(run.step(LATER), (Action::Wait, vec![(1, Staged)]));
    assert_eq!(run.step(YES), (Action::Activate, vec![(1, Active)]));
    assert_eq!(run.step(YES), (Action::Wait, vec![(1, Active)]));
    assert_eq!(run.decide(YES).wake_in, INTERVAL);
    run.advance(12);
    assert_eq!(run.step(LATER), (Action::Stage, vec![(1, Active), (2, Staged)]));
    assert_eq!(run.step(LATER), (Action::Wait, vec![(1, Active), (2, Staged)]));
    assert_eq!(run.step(YES), (Action::Activate, vec![(1, Retiring), (2, Active)]));
    assert_eq!(run.step(LATER), (Action::Wait, vec![(1, Retiring), (2, Active)]));
    assert_eq!(run.step(YES), (Action::RemoveRetired, vec![(2, Active)]));
    assert_eq!(run.step(YES), (Action::Wait, vec![(2, Active)]));
}

#[test]
fn generations_share_no_secret() {
    let mut run = Run::steady();
    run.advance(12);
    run.step(YES);
    let [old, new] = &run.ring.as_ref().unwrap().generations[..] else { panic!("two generations") };
    assert!(old.key != new.key && old.spi_seed != new.spi_seed && old.uid != new.uid);
}

#[test]
fn a_clock_that_jumps_neither_stops_nor_storms_rotation() {
    let mut run = Run::steady();
    run.advance(-24 * 365);
    assert_eq!(run.step(YES).0, Action::Stage, "a clock that went back must not stop rotation for a year");
    for action in [Action::Activate, Action::RemoveRetired, Action::Wait, Action::Wait] {
        assert_eq!(run.step(YES).0, action);
    }
    run.advance(24 * 365);
    assert_eq!(run.step(YES).0, Action::Stage);
    for action in [Action::Activate, Action::RemoveRetired, Action::Wait, Action::Wait] {
        assert_eq!(run.step(YES).0, action);
    }
}

#[test]
fn a_shorter_interval_counts_at_once() {
    let mut run = Run::steady();
    run.advance(1);
    run.settings.schedule = RotationSchedule::Every(Duration::from_secs(1800));
    assert_eq!(run.step(YES).0, Action::Stage);
}

/// With a timetable that says noon and midnight (UTC).
fn by_timetable(run: &mut Run) {
    let after = |time: Timestamp| {
        let half_day = 12 * 3600;
        Timestamp::from_second((time.as_second().div_euclid(half_day) + 1) * half_day).unwrap()
    };
    let since = run.ring.as_ref().and_then(Ring::active).map_or(run.now, |active| active.role_since);
    run.settings.schedule = RotationSchedule::At { due: after(since), next: after(run.now) };
}

#[test]
fn a_timetable_is_kept() {
    let mut run = Run::new();
    let mut activated = Vec::new();
    // From 3 in the morning, an hour at a time; each rotation takes two hours.
    for _ in 0..48 {
        by_timetable(&mut run);
        if run.step(YES).0 == Action::Activate {
            activated.push(run.now.to_string());
        }
        run.advance(1);
    }
    let times = ["20T04", "20T13", "21T01", "21T13", "22T01"];
    assert_eq!(activated, times.map(|time| format!("2026-11-{time}:00:00Z")));
}

#[test]
fn a_timetable_survives_a_clock_that_jumps() {
    for years in [-1, 1] {
        let mut run = Run::steady();
        run.advance(24 * 365 * years);
        for action in [Action::Stage, Action::Activate, Action::RemoveRetired, Action::Wait, Action::Wait] {
            by_timetable(&mut run);
            assert_eq!(run.step(YES).0, action, "{years}");
        }
        let next = run.ring.as_ref().unwrap().next_rotation.unwrap();
        assert!(next > run.now && next.duration_since(run.now) <= SignedDuration::from_hours(12));
    }
}

#[test]
fn another_suite_is_a_rotation() {
    let mut run = Run::steady();
    run.settings.suite = Suite::Aes256Gcm16;
    assert_eq!(run.step(YES).0, Action::Stage);
    run.step(YES);
    run.step(YES);
    assert_eq!(run.ring.as_ref().unwrap().active().unwrap().suite, Suite::Aes256Gcm16);
    assert_eq!(run.decide(YES).action, Action::Wait);
}

#[test]
fn a_request_is_a_rotation() {
    let mut run = Run::steady();
    let wanted = Evidence { requested: Some("somebody asked".into()), ..YES };
    assert_eq!(run.decide(&wanted).reason, "somebody asked");
    assert_eq!(run.decide(&wanted).cause, Some(Cause::Request));
    assert_eq!(run.step(&wanted).0, Action::Stage);
    // Once it is under way, the request changes nothing.
    assert_eq!(run.step(&wanted).0, Action::Activate);
}

#[test]
fn awaited_nodes_are_named() {
    let mut run = Run::steady();
    run.advance(12);
    run.step(YES);
    let nodes = (1..=7).map(|n| format!("node-{n}")).collect();
    let look_in = Duration::from_secs(9);
    let decision = run.decide(Evidence { staged_acked: Readiness::Waiting { nodes, look_in }, ..YES });
    assert_eq!((decision.action, decision.wake_in), (Action::Wait, look_in));
    assert_eq!(
        decision.reason,
        "generation 2 is on its way to every node, waiting for node-1, node-2, node-3, node-4, node-5 and 2 more"
    );
}

#[test]
fn an_old_ring_that_came_back_is_replaced_by_a_newer_one() {
    let mut run = Run::steady();
    let evidence = Evidence { newest: 7, ..YES };
    assert_eq!(run.step(&evidence), (Action::Stage, vec![(1, Role::Active), (8, Role::Staged)]));
    for _ in 0..2 {
        run.step(&evidence);
    }
    assert_eq!(run.step(&evidence), (Action::Wait, vec![(8, Role::Active)]));
    // As does one that was wiped.
    run.ring = None;
    assert_eq!(run.step(Evidence { newest: 8, ..YES }), (Action::Bootstrap, vec![(9, Role::Staged)]));
    run.ring = None;
    let absurd = Evidence { newest: u64::MAX, ..YES };
    assert_eq!(run.step(&absurd), (Action::Bootstrap, vec![(LAST_ID + 1, Role::Staged)]));
}

#[test]
fn a_node_that_lost_its_sas_gets_a_new_incarnation_in_any_phase() {
    let mut run = Run::steady();
    run.advance(12);
    run.step(YES);
    let node = Uid::from_random([9; 16]);
    let [active, staged] = &run.ring.as_ref().unwrap().generations[..] else { panic!("two generations") };
    let needed = BTreeMap::from([(active.uid, 1), (staged.uid, 4)]);
    let evidence = Evidence { rekey: BTreeMap::from([(node, needed)]), ..LATER };
    assert_eq!(run.step(&evidence).0, Action::Rekey);
    let incarnations: Vec<u32> =
        run.ring.as_ref().unwrap().generations.iter().map(|g| g.incarnation(&node)).collect();
    assert_eq!(incarnations, [1, 4]);
}

#[test]
fn no_two_nodes_share_an_spi() {
    // With a seed that can't be told apart from another draw's, every draw collides with the generation before.
    let mut run = Run::new();
    let senders: BTreeMap<Uid, IpAddr> =
        (1..=3).map(|n| (Uid::from_random([n; 16]), IpAddr::from([192, 0, 2, n]))).collect();
    let evidence = Evidence { senders, ..YES };
    run.step(&evidence);
    run.step(&evidence);
    run.advance(12);
    let mut seeds = 0;
    let old_seed = run.ring.as_ref().unwrap().generations[0].spi_seed.clone();
    let ring = apply(
        run.ring.as_ref(),
        Action::Stage,
        run.installation,
        &evidence,
        run.now,
        &run.settings,
        |bytes| {
            seeds += 1;
            // uid, key, and then seeds; the first is the active generation's.
            bytes.fill(seeds + 100);
            if seeds == 3 {
                bytes.copy_from_slice(old_seed.expose());
            }
            Ok::<_, Infallible>(())
        },
    )
    .unwrap();
    assert_eq!(seeds, 4, "one seed more was drawn");
    assert!(ring.generations[0].spi_seed != ring.generations[1].spi_seed);
    assert!(distinct(ring.generations.iter(), &evidence.senders));
}

#[test]
fn a_ring_ends_with_its_installation() {
    let (one, two) = (Uid::from_random([1; 16]), Uid::from_random([2; 16]));
    let mut run = Run::new();
    run.installation = Installation::Absent;
    assert_eq!(run.step(YES).0, Action::Wait);
    run.installation = Installation::Present(one);
    run.step(YES);
    assert_eq!(run.ring.as_ref().unwrap().installation, Some(one));
    run.step(YES);
    run.installation = Installation::Present(two);
    let before = run.ring.clone().unwrap();
    assert_eq!(run.step(YES), (Action::Bootstrap, vec![(1, Role::Staged)]));
    let after = run.ring.as_ref().unwrap();
    assert_eq!(
        (after.installation, after.enforcement),
        (Some(two), Enforcement::Permissive),
        "never off in between"
    );
    assert!(after.generations[0].uid != before.generations[0].uid && after.revision > before.revision);
    run.installation = Installation::Absent;
    run.advance(24 * 365);
    assert_eq!(run.step(YES), (Action::Wait, vec![(1, Role::Staged)]), "orphaned agents keep their keys");
}

#[test]
fn a_manager_that_learns_of_the_installation_keeps_the_ring() {
    let mut run = Run::steady();
    run.installation = Installation::Present(Uid::from_random([1; 16]));
    assert_eq!(run.decide(YES).action, Action::Wait);
}

#[test]
fn the_clock_of_timed_facts_starts_with_the_process() {
    let mut run = Run::new();
    run.step(YES);
    let (delay, start) = (Duration::from_secs(180), std::time::Instant::now());
    let mut timed = DelayTracker::new(delay);
    run.advance(24 * 365);
    assert_eq!(timed.observe(run.ring.as_ref(), start).staged_acked, Readiness::After(delay));
    let later = start + Duration::from_secs(100);
    assert_eq!(
        timed.observe(run.ring.as_ref(), later).staged_acked,
        Readiness::After(Duration::from_secs(80))
    );
    assert_eq!(timed.observe(run.ring.as_ref(), start + delay).staged_acked, Readiness::Ready);
    // The next role starts anew, and a manager that was restarted knows nothing.
    run.step(YES);
    run.advance(12);
    run.step(YES);
    assert_eq!(timed.observe(run.ring.as_ref(), start + delay).staged_acked, Readiness::After(delay));
    let mut restarted = DelayTracker::new(delay);
    assert_eq!(restarted.observe(run.ring.as_ref(), start + delay).staged_acked, Readiness::After(delay));
}
