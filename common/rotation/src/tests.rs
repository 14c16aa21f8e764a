//! What the table of transitions leaves out: times, updates, renewals, seeds.

use std::{convert::Infallible, time::Duration};

use jiff::{SignedDuration, Timestamp};
use secureoverlay_keyring::{
    keyring::{
        Enforcement::{self, Permissive},
        Excluded, Identities, KeyRing,
        Role::{self, Active, Retiring, Staged},
    },
    settings::{EnforcementGoal, Settings},
    suite::Suite,
};

use crate::{
    testing::{NOW, address, ring, uid},
    *,
};

const MINUTE: Duration = Duration::from_secs(60);

/// All that a decision depends on.
struct Case {
    ring: KeyRing,
    evidence: Evidence,
    settings: Settings,
    excluded: Excluded,
    requests: Requests,
    identities: Identities,
    times: RotationTimes,
    pace: Pace,
    now: Timestamp,
}

impl Case {
    fn new(roles: &[Role]) -> Self {
        let settings = Settings { enforcement: EnforcementGoal::Permissive, ..Settings::default() };
        let evidence = Evidence {
            ack_id: AckIdState::Own { age: Duration::ZERO },
            limit: Some(MINUTE),
            ..Evidence::unknown()
        };
        Self {
            ring: KeyRing { settings: settings.clone(), ..ring(Permissive, roles) },
            evidence,
            settings,
            excluded: Excluded::default(),
            requests: Requests::default(),
            identities: Identities::Announced,
            times: RotationTimes::interval(60 * MINUTE, NOW, NOW),
            pace: Pace::default(),
            now: NOW,
        }
    }

    fn inputs(&self) -> Inputs<'_> {
        Inputs {
            ring: Some(&self.ring),
            last: None,
            installation: Installation::Unknown,
            evidence: &self.evidence,
            settings: &self.settings,
            excluded: &self.excluded,
            requests: &self.requests,
            identities: self.identities,
            times: self.times,
            pace: self.pace,
            history: History::Consistent,
            now: self.now,
        }
    }

    fn decide(&self) -> Decision {
        decide(&self.inputs())
    }

    fn apply(&self, action: Action) -> KeyRing {
        let mut drawn = 100;
        let fill = |bytes: &mut [u8]| {
            drawn += 1;
            bytes.fill(drawn);
            Ok::<_, Infallible>(())
        };
        apply(&self.inputs(), &Decision::act(action, ""), fill).unwrap().ring
    }
}

fn unmet(waited: Duration, any_ready: bool) -> Readiness {
    Readiness::Waiting(Unmet {
        nodes: ["n1".to_owned()].into(),
        total: 2,
        any_ready,
        waited,
        look_in: LOOK_AGAIN,
    })
}

#[test]
fn settings_and_exclusions_are_brought_up_to_date_but_not_all_the_time() {
    let mut case = Case::new(&[Active]);
    assert_eq!(case.decide().action, Action::Wait);
    case.excluded.nodes.insert("n9".to_owned());
    assert_eq!(case.decide().action, Action::Update);
    let written = case.apply(Action::Update);
    assert_eq!((written.ack_id, written.revision), (case.ring.ack_id, case.ring.revision + 1));
    assert_eq!(written.excluded, case.excluded);
    case.pace.update_in = UPDATE_INTERVAL;
    assert_eq!((case.decide().action, case.decide().wake_in), (Action::Wait, UPDATE_INTERVAL));
    // Other writes bring them along, and name another ackId.
    let written = case.apply(Action::RenewAckId);
    assert!(written.ack_id != case.ring.ack_id && written.excluded == case.excluded);
    assert_eq!(written.generations, case.ring.generations);
    let mut case = Case::new(&[Active]);
    case.settings.rotation.history_limit += 1;
    assert_eq!(case.decide().action, Action::Update);
}

#[test]
fn acknowledgements_are_renewed_while_a_step_waits_for_ready_nodes_six_times() {
    let mut case = Case::new(&[Retiring, Active]);
    let (long, waits) = (Duration::from_secs(100_000), [2, 4, 8, 16, 32, 60]);
    case.evidence.drained = unmet(long, true);
    for (count, minutes) in waits.into_iter().enumerate() {
        case.pace.renewed = (count > 0).then_some(((uid(2), Step::Switch), count));
        case.evidence.ack_id = AckIdState::Own { age: minutes * MINUTE - Duration::from_secs(1) };
        let decision = case.decide();
        assert_eq!((decision.action, decision.wake_in), (Action::Wait, Duration::from_secs(1)), "{minutes}");
        case.evidence.ack_id = AckIdState::Own { age: minutes * MINUTE };
        let decision = case.decide();
        assert_eq!(decision.action, Action::RenewAckId, "{minutes}");
        assert!(decision.wait.is_some(), "the wait goes on");
    }
    case.pace.renewed = Some(((uid(2), Step::Switch), waits.len()));
    case.evidence.ack_id = AckIdState::Own { age: long };
    assert_eq!(case.decide().action, Action::Wait, "never more");
    case.pace.renewed = Some(((uid(1), Step::Receive), waits.len()));
    assert_eq!(case.decide().action, Action::RenewAckId, "that was another step");
    case.evidence.drained = unmet(MINUTE, true);
    assert_eq!(case.decide().action, Action::Wait, "for as long as they were missing");
    case.evidence.drained = unmet(long, false);
    assert_eq!(case.decide().action, Action::Wait, "others do not answer anyway");
}

#[test]
fn deleted_acknowledgement_is_renewed_but_not_against_another_manager() {
    let mut case = Case::new(&[Active]);
    case.evidence.ack_deleted = Some("n1".to_owned());
    assert_eq!(case.decide().action, Action::RenewAckId);
    case.evidence.ack_id = AckIdState::Foreign { age: MINUTE, pause: MINUTE };
    assert_eq!(case.decide().action, Action::Wait);
}

#[test]
fn step_under_the_ack_id_of_another_process_is_renewed_after_the_pause() {
    let mut case = Case::new(&[Active, Staged]);
    case.evidence.staged_acked = Readiness::Ready;
    case.evidence.ack_id = AckIdState::Foreign { age: MINUTE, pause: MINUTE };
    assert_eq!((case.decide().action, case.decide().wake_in), (Action::Wait, MINUTE));
    case.evidence.ack_id = AckIdState::Foreign { age: MINUTE, pause: Duration::ZERO };
    assert_eq!(case.decide().action, Action::RenewAckId);
    case.evidence.ack_id = AckIdState::Unused;
    assert_eq!(case.decide().action, Action::Activate, "where time decides, nothing is renewed");
}

#[test]
fn minimum_interval_delays_every_rotation() {
    let mut case = Case::new(&[Active]);
    case.requests.rotate = Some("asked for".to_owned());
    assert_eq!(case.decide().action, Action::Stage);
    case.pace.stage_in = MINUTE;
    assert_eq!((case.decide().action, case.decide().wake_in), (Action::Wait, MINUTE));
}

#[test]
fn other_identities_are_a_rotation() {
    let mut case = Case::new(&[Active]);
    case.identities = Identities::BootId;
    let decision = case.decide();
    assert_eq!(decision.rotation.map(|rotation| rotation.cause), Some(Cause::Suite));
    assert_eq!(case.apply(Action::Stage).staged().unwrap().identities, Identities::BootId);
}

#[test]
fn suite_that_failed_does_not_end_all_rotations() {
    let wanted = Suite::Aes256Gcm16;
    let mut case = Case::new(&[Active]);
    (case.settings.cipher_suite, case.ring.settings.cipher_suite) = (wanted, wanted);
    case.pace.after_failure = Some(AfterFailure { left: MINUTE, suite: wanted });
    assert_eq!((case.decide().action, case.decide().wake_in), (Action::Wait, MINUTE));
    case.pace.after_failure = Some(AfterFailure { left: Duration::ZERO, suite: wanted });
    let rotation = |case: &Case| case.decide().rotation.unwrap();
    assert_eq!(rotation(&case), Rotation { cause: Cause::Suite, suite: wanted }, "it is tried again");
    case.now = NOW + SignedDuration::from_hours(1);
    assert_eq!(rotation(&case), Rotation { cause: Cause::Schedule, suite: Suite::default() });
    case.pace.after_failure = None;
    assert_eq!(rotation(&case), Rotation { cause: Cause::Suite, suite: wanted });
    // An operator who asks for a rotation is not made to wait.
    case.pace.after_failure = Some(AfterFailure { left: MINUTE, suite: wanted });
    case.requests.rotate = Some("asked for".to_owned());
    assert_eq!(rotation(&case), Rotation { cause: Cause::Request, suite: wanted });
}

#[test]
fn bound_that_was_written_is_never_exceeded_by_another_schedule() {
    let mut case = Case::new(&[Active]);
    case.ring.next_rotation = Some(NOW + SignedDuration::from_secs(60));
    assert_eq!(case.decide().wake_in, MINUTE);
    case.ring.next_rotation = Some(NOW + SignedDuration::from_hours(9));
    assert_eq!(case.decide().wake_in, 60 * MINUTE, "a shorter interval counts at once");
}

#[test]
fn id_is_above_all_that_are_known_and_no_less_than_the_time() {
    let mut case = Case::new(&[Active]);
    assert_eq!(case.apply(Action::Stage).highest_id(), 2);
    case.evidence.believed_id = 41;
    assert_eq!(case.apply(Action::Stage).highest_id(), 42);
    case.now = "2026-11-20T03:00:00Z".parse().unwrap();
    assert_eq!(case.apply(Action::Stage).highest_id(), 1_795_143_600);
    let bootstrapped = case.apply(Action::Bootstrap);
    assert_eq!((bootstrapped.generations.len(), bootstrapped.revision), (1, case.ring.revision + 1));
}

#[test]
fn restored_ring_has_the_next_revision_and_another_ack_id() {
    let case = Case::new(&[Active]);
    let last = KeyRing { revision: 7, ..ring(Enforcement::Enforcing, &[Active]) };
    let inputs = Inputs { ring: None, last: Some(&last), ..case.inputs() };
    let decision = decide(&inputs);
    assert_eq!(decision.action, Action::Restore);
    let fill = |bytes: &mut [u8]| {
        bytes.fill(5);
        Ok::<_, Infallible>(())
    };
    let restored = apply(&inputs, &decision, fill).unwrap().ring;
    assert!(restored.revision == 8 && restored.ack_id != last.ack_id);
    assert_eq!((restored.generations, restored.enforcement), (last.generations.clone(), last.enforcement));
    // A ring of another history has a higher id: it stays.
    let other = KeyRing { revision: 1, ..ring(Permissive, &[Retiring, Active]) };
    assert_ne!(decide(&Inputs { ring: Some(&other), ..inputs }).action, Action::Restore);
}

#[test]
fn seed_with_the_fewest_collisions_is_taken() {
    // One sender under two generations collides if these have one seed.
    let mut case = Case::new(&[Active]);
    case.evidence.senders = vec![(uid(1).into(), address(1))];
    let seed = case.ring.generations[0].spi_seed.clone();
    // Before the seeds, ackId, uid and key are drawn.
    let applied = |colliding: std::ops::Range<u8>| {
        let mut draw = 0;
        let fill = |bytes: &mut [u8]| {
            if colliding.contains(&draw) {
                bytes.copy_from_slice(seed.expose());
            } else {
                bytes.fill(100 + draw);
            }
            draw += 1;
            Ok::<_, Infallible>(())
        };
        let applied = apply(&case.inputs(), &Decision::act(Action::Stage, ""), fill).unwrap();
        (draw, applied.collisions)
    };
    assert_eq!(applied(0..0), (4, 0));
    assert_eq!(applied(3..5), (6, 0));
    assert_eq!(applied(3..99), (23, 1), "20 draws");
}

#[test]
fn memory_paces_by_its_own_clock_and_by_the_ring_where_it_staged_nothing() {
    let (minimum, limit) = (5 * MINUTE, 60 * MINUTE);
    let start = std::time::Instant::now();
    let (before, after) = (ring(Permissive, &[Active]), ring(Permissive, &[Active, Staged]));
    let mut memory = RotationMemory::default();
    let wall = |minutes: i64| NOW + SignedDuration::from_mins(minutes);
    let pace = |memory: &RotationMemory, ring, passed, wall| {
        memory.pace(Some(ring), minimum, limit, (start + passed, wall))
    };
    assert_eq!(pace(&memory, &after, Duration::ZERO, wall(1)).stage_in, 4 * MINUTE, "createdAt");
    assert_eq!(
        pace(&memory, &after, Duration::ZERO, wall(-1)).stage_in,
        Duration::ZERO,
        "the clock went back"
    );
    memory.handle_written(Action::Stage, None, Some(&before), &after, start);
    assert_eq!(pace(&memory, &after, MINUTE, wall(99)).stage_in, 4 * MINUTE);
    memory.handle_written(Action::RemoveStaged, None, Some(&after), &before, start + MINUTE);
    let paced = pace(&memory, &before, MINUTE, wall(99));
    assert_eq!(paced.after_failure, Some(AfterFailure { left: limit, suite: Suite::default() }));
    assert_eq!((paced.stage_in, paced.update_in), (4 * MINUTE, UPDATE_INTERVAL));
    memory.handle_written(
        Action::Activate,
        None,
        Some(&after),
        &ring(Permissive, &[Retiring, Active]),
        start,
    );
    assert_eq!(pace(&memory, &before, MINUTE, wall(99)).after_failure, None, "that suite works");
    memory.handle_written(Action::Bootstrap, None, Some(&before), &ring(Permissive, &[Staged]), start);
    assert_eq!(
        pace(&memory, &before, Duration::ZERO, wall(0)).stage_in,
        Duration::ZERO,
        "that does not count"
    );
}
