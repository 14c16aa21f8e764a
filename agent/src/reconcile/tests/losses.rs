//! What was lost, what is known of it, and what is said of it.

use super::*;

const ACTIVE: &[(u8, Role)] = &[(1, Role::Active)];

fn plan_of(ring: &Ring, boots: &[(u8, u8)]) -> Plan {
    desired(ring, &end(1, 1), &peers(boots), Stage::Normal)
}

/// With this node's incarnation under every generation.
fn bumped(mut ring: Ring, incarnation: u32) -> Ring {
    for generation in &mut ring.generations {
        generation.incarnations.insert(uid(1), incarnation);
    }
    ring
}

fn permissive(generations: &[(u8, Role)]) -> Ring {
    ring(Enforcement::Permissive, generations)
}

fn inbound(kernel: &ModelKernel) -> SaId {
    *kernel.states.keys().find(|id| id.dst == addr(1)).unwrap()
}

#[test]
fn a_flush_burns_and_a_new_incarnation_heals() {
    let (mut kernel, now) = (kernel(), Instant::now());
    let mut reconciler = Reconciler::new(&mut kernel);
    let roles = [(1, Role::Active), (2, Role::Staged)];
    let outcome = reconciler.run(&plan_of(&permissive(&roles), THREE), now).unwrap();
    assert_eq!((outcome.lost, outcome.burnt.len(), outcome.findings.len()), (0, 0, 0));
    reconciler.kernel.flush_states();
    let outcome = reconciler.run(&plan_of(&permissive(&roles), THREE), now).unwrap();
    assert_eq!((outcome.lost, outcome.changed), (8, 4), "inbound SAs come back at once");
    assert_eq!(outcome.receives, [uid(201), uid(202)].into());
    assert_eq!(outcome.sends, Some(uid(201)), "held back, but not sent with another");
    assert_eq!(outcome.burnt, [(uid(201), 0), (uid(202), 0)].into());
    let healed = plan_of(&bumped(permissive(&roles), 1), THREE);
    let outcome = reconciler.run(&healed, now).unwrap();
    assert!(outcome.is_complete() && outcome.findings.is_empty() && outcome.burnt.is_empty());
    assert_eq!(reconciler.kernel.ours(), 8 + 2, "what was of the former incarnation is gone");
    assert_eq!(reconciler.run(&healed, now).unwrap().changed, 0);
}

#[test]
fn a_lost_inbound_sa_is_made_again_and_told_until_the_incarnation_is_new() {
    let (mut kernel, now) = (kernel(), Instant::now());
    let directory = tempfile::tempdir().unwrap();
    let journal = || Journal::open(directory.path(), uid(101));
    let plan = plan_of(&permissive(ACTIVE), THREE);
    Reconciler::with(&mut kernel, journal(), Limits::default()).run(&plan, now).unwrap();
    let id = inbound(&kernel);
    kernel.take_away(id);
    let outcome = Reconciler::with(&mut kernel, journal(), Limits::default()).run(&plan, now).unwrap();
    assert_eq!(outcome.findings, [Finding::LostInbound(1)].into());
    assert!(outcome.is_complete() && kernel.states.contains_key(&id));
    let mut reconciler = Reconciler::with(&mut kernel, journal(), Limits::default());
    for _ in 0..2 {
        let outcome = reconciler.run(&plan, now).unwrap();
        assert_eq!((outcome.changed, outcome.lost, outcome.findings.len()), (0, 0, 0));
        assert_eq!(outcome.burnt, [(uid(201), 0)].into());
    }
}

#[test]
fn an_agent_killed_between_journal_and_kernel_never_uses_the_key() {
    let (mut kernel, now) = (kernel(), Instant::now());
    let directory = tempfile::tempdir().unwrap();
    let journal = || Journal::open(directory.path(), uid(101));
    let plan = plan_of(&permissive(ACTIVE), THREE);
    kernel.dies_after = Some(3);
    Reconciler::with(&mut kernel, journal(), Limits::default()).run(&plan, now).unwrap();
    assert_eq!(kernel.states.len(), 3, "one outbound SA was announced, but not made");
    kernel.dies_after = None;
    let mut reconciler = Reconciler::with(&mut kernel, journal(), Limits::default());
    let outcome = reconciler.run(&plan, now).unwrap();
    assert_eq!((outcome.burnt.len(), outcome.peers_programmed), (1, 1));
    assert_eq!(sends_with(reconciler.kernel, 3), None, "no policy is made to pin what is not there");
    assert_eq!((outcome.sends, outcome.receives.len()), (None, 1));
    assert!(reconciler.run(&plan_of(&bumped(permissive(ACTIVE), 1), THREE), now).unwrap().is_complete());
}

#[test]
fn a_policy_is_not_moved_to_a_generation_that_was_lost() {
    let (mut kernel, now) = (kernel(), Instant::now());
    let mut reconciler = Reconciler::new(&mut kernel);
    let staged = permissive(&[(1, Role::Active), (2, Role::Staged)]);
    reconciler.run(&plan_of(&staged, THREE), now).unwrap();
    reconciler.kernel.take_away(SaId { dst: addr(2), spi: spi(2).unwrap() });
    let activated = permissive(&[(1, Role::Retiring), (2, Role::Active)]);
    let outcome = reconciler.run(&plan_of(&activated, THREE), now).unwrap();
    assert_eq!((sends_with(reconciler.kernel, 2), sends_with(reconciler.kernel, 3)), (spi(1), spi(2)));
    assert_eq!((outcome.sends, outcome.burnt), (None, [(uid(202), 0)].into()));
}

#[test]
fn what_a_retiring_generation_lost_does_not_matter() {
    let (mut kernel, now) = (kernel(), Instant::now());
    let mut reconciler = Reconciler::new(&mut kernel);
    let plan = plan_of(&permissive(&[(1, Role::Retiring), (2, Role::Active)]), THREE);
    reconciler.run(&plan, now).unwrap();
    let old = |planned: &&PlannedSa| planned.role == Role::Retiring;
    let ids: Vec<SaId> = plan.states.values().filter(old).map(|planned| planned.sa.id).collect();
    ids.iter().for_each(|id| reconciler.kernel.take_away(*id));
    let outcome = reconciler.run(&plan, now).unwrap();
    assert!(outcome.is_complete() && outcome.burnt.is_empty());
    assert_eq!((outcome.changed, outcome.findings), (2, [Finding::LostInbound(2)].into()));
    assert_eq!(outcome.receives.len(), 2);
}

#[test]
fn nobody_burns_because_another_node_reboots_leaves_or_is_excluded() {
    let (mut kernel, now) = (kernel(), Instant::now());
    let directory = tempfile::tempdir().unwrap();
    let ring = permissive(ACTIVE);
    let mut excluded = peers(THREE_REBOOTED);
    excluded.get_mut(&addr(3)).unwrap().excluded = true;
    let mut rekeyed = permissive(ACTIVE);
    rekeyed.generations[0].incarnations.insert(uid(2), 5);
    for plan in [
        plan_of(&ring, THREE),
        plan_of(&ring, &[(2, 9), (3, 3)]),
        plan_of(&ring, &[(3, 3)]),
        plan_of(&ring, THREE_REBOOTED),
        desired(&ring, &end(1, 1), &excluded, Stage::Normal),
        plan_of(&ring, &[(2, 9), (3, 4)]),
        plan_of(&rekeyed, &[(2, 9), (3, 4)]),
    ] {
        let journal = Journal::open(directory.path(), uid(101));
        let mut reconciler = Reconciler::with(&mut kernel, journal, Limits::default());
        for _ in 0..2 {
            let outcome = reconciler.run(&plan, now).unwrap();
            assert!(outcome.is_complete() && outcome.burnt.is_empty() && outcome.lost == 0, "{outcome:?}");
        }
    }
}

const THREE_REBOOTED: &[(u8, u8)] = &[(2, 9), (3, 4)];

#[test]
fn a_restored_old_ring_brings_back_no_key() {
    let (mut kernel, now) = (kernel(), Instant::now());
    let directory = tempfile::tempdir().unwrap();
    let journal = || Journal::open(directory.path(), uid(101));
    let old = bumped(permissive(ACTIVE), 2);
    let mut reconciler = Reconciler::with(&mut kernel, journal(), Limits::default());
    reconciler.run(&plan_of(&old, THREE), now).unwrap();
    let retiring = bumped(permissive(&[(1, Role::Retiring), (2, Role::Active)]), 2);
    reconciler.run(&plan_of(&retiring, THREE), now).unwrap();
    for _ in 0..2 {
        reconciler.run(&plan_of(&permissive(&[(2, Role::Active)]), THREE), now).unwrap();
    }
    // What comes back is even older than what was dropped.
    let mut reconciler = Reconciler::with(&mut kernel, journal(), Limits::default());
    let outcome = reconciler.run(&plan_of(&permissive(ACTIVE), THREE), now).unwrap();
    assert_eq!(outcome.burnt, [(uid(201), 2)].into(), "one new incarnation has to do");
    let outcome = reconciler.run(&plan_of(&bumped(permissive(ACTIVE), 3), THREE), now).unwrap();
    assert!(outcome.is_complete() && outcome.burnt.is_empty());
}

#[test]
fn one_new_incarnation_heals_even_after_an_old_one_was_restored() {
    let (mut kernel, now) = (kernel(), Instant::now());
    let mut reconciler = Reconciler::new(&mut kernel);
    for incarnation in 0..3 {
        let plan = plan_of(&bumped(permissive(ACTIVE), incarnation), THREE);
        assert!(reconciler.run(&plan, now).unwrap().is_complete());
    }
    let outcome = reconciler.run(&plan_of(&permissive(ACTIVE), THREE), now).unwrap();
    assert_eq!(outcome.burnt, [(uid(201), 2)].into());
    let outcome = reconciler.run(&plan_of(&bumped(permissive(ACTIVE), 3), THREE), now).unwrap();
    assert!(outcome.is_complete() && outcome.burnt.is_empty());
}

#[test]
fn a_node_object_made_anew_has_nothing_to_answer_for() {
    let (mut kernel, now) = (kernel(), Instant::now());
    let mut reconciler = Reconciler::new(&mut kernel);
    reconciler.run(&plan_of(&permissive(ACTIVE), THREE), now).unwrap();
    reconciler.kernel.flush_states();
    assert_eq!(reconciler.run(&plan_of(&permissive(ACTIVE), THREE), now).unwrap().burnt.len(), 1);
    let anew = End { node: uid(99), ..end(1, 1) };
    let plan = desired(&bumped(permissive(ACTIVE), 1), &anew, &peers(THREE), Stage::Normal);
    let outcome = reconciler.run(&plan, now).unwrap();
    assert!(outcome.is_complete() && outcome.burnt.is_empty(), "{outcome:?}");
}

#[test]
fn after_a_wipe_and_a_restore_nobody_burns_for_a_peer_that_reboots() {
    let (mut kernel, now) = (kernel(), Instant::now());
    let directory = tempfile::tempdir().unwrap();
    let wiped = permissive(&[(2, Role::Staged)]);
    for plan in [
        plan_of(&permissive(ACTIVE), THREE),
        plan_of(&wiped, THREE),
        plan_of(&wiped, THREE),
        plan_of(&permissive(ACTIVE), THREE),
        plan_of(&permissive(ACTIVE), THREE_REBOOTED),
    ] {
        let journal = Journal::open(directory.path(), uid(101));
        let outcome = Reconciler::with(&mut kernel, journal, Limits::default()).run(&plan, now).unwrap();
        assert!(outcome.is_complete() && outcome.burnt.is_empty() && outcome.lost == 0, "{outcome:?}");
    }
}

#[test]
fn nothing_is_added_while_the_journal_cannot_be_written() {
    let (mut kernel, now) = (kernel(), Instant::now());
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("place");
    std::fs::create_dir(&place).unwrap();
    let mut reconciler = Reconciler::with(&mut kernel, Journal::open(&place, uid(101)), Limits::default());
    std::fs::remove_dir_all(&place).unwrap();
    let plan = plan_of(&permissive(ACTIVE), THREE);
    let outcome = reconciler.run(&plan, now).unwrap();
    assert!(outcome.findings.iter().all(|finding| matches!(finding, Finding::Journal(_))), "{outcome:?}");
    // What was received before is no secret and opens nothing; what would be sent with is held back.
    assert!(!reconciler.kernel.states.keys().any(|id| id.dst != addr(1)));
    assert_eq!((outcome.peers_programmed, outcome.sends, outcome.journal), (0, None, Some(Keeping::Failing)));
    std::fs::create_dir(&place).unwrap();
    let outcome = reconciler.run(&plan, now).unwrap();
    assert!(outcome.is_complete() && outcome.burnt.is_empty(), "{outcome:?}");
    assert_eq!(outcome.journal, Some(Keeping::File));
}

#[test]
fn a_refused_sa_is_tried_again_with_the_same_key() {
    struct Full<'k>(&'k mut ModelKernel);
    impl Kernel for Full<'_> {
        fn dump(&mut self) -> Result<Actual, KernelError> {
            self.0.dump()
        }

        fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), OpError>> {
            let (kind, detail) = (OpErrorKind::Refused, String::new());
            ops.iter()
                .map(|op| Err(OpError { what: format!("{op:?}"), kind, detail: detail.clone() }))
                .collect()
        }
    }
    let (mut kernel, now) = (kernel(), Instant::now());
    let directory = tempfile::tempdir().unwrap();
    let journal = || Journal::open(directory.path(), uid(101));
    let plan = plan_of(&permissive(ACTIVE), THREE);
    let outcome = Reconciler::with(Full(&mut kernel), journal(), Limits::default()).run(&plan, now).unwrap();
    assert_eq!((outcome.receives.len(), outcome.sends, outcome.failed.len()), (0, None, 4));
    let outcome = Reconciler::with(&mut kernel, journal(), Limits::default()).run(&plan, now).unwrap();
    assert!(outcome.is_complete() && outcome.burnt.is_empty(), "{outcome:?}");
}

#[test]
fn receiving_and_sending_are_only_said_when_true() {
    let (mut kernel, now) = (kernel(), Instant::now());
    let mut reconciler = Reconciler::new(&mut kernel);
    let staged = permissive(&[(1, Role::Active), (2, Role::Staged)]);
    let plan = plan_of(&staged, THREE);
    // The first operations are the inbound SAs.
    reconciler.kernel.refuse = (0..4).collect();
    let outcome = reconciler.run(&plan, now).unwrap();
    assert_eq!((outcome.receives.len(), outcome.sends), (0, Some(uid(201))));
    let outcome = reconciler.run(&plan, now).unwrap();
    assert_eq!((outcome.receives.len(), outcome.sends), (2, Some(uid(201))));
    // Both policies are to move, one does not.
    reconciler.kernel.refuse = [reconciler.kernel.done].into();
    let moved = plan_of(&permissive(&[(1, Role::Retiring), (2, Role::Active)]), THREE);
    assert_eq!(reconciler.run(&moved, now).unwrap().sends, None);
    assert_eq!(reconciler.run(&moved, now).unwrap().sends, Some(uid(202)));
    let alone = reconciler.run(&plan_of(&staged, &[]), now).unwrap();
    assert_eq!((alone.receives.len(), alone.sends), (2, Some(uid(201))), "there is nobody to send to");
    for stage in [Stage::Silent, Stage::Gone] {
        let outcome = reconciler.run(&desired(&staged, &end(1, 1), &peers(THREE), stage), now).unwrap();
        assert_eq!((outcome.receives.len(), outcome.sends), (if stage == Stage::Gone { 0 } else { 2 }, None));
    }
}

#[test]
fn an_sa_past_a_limit_spends_its_generation() {
    let (mut kernel, now) = (kernel(), Instant::now());
    let plan = plan_of(&permissive(ACTIVE), THREE);
    let limits = Limits { packets: 100, bytes: 10_000 };
    for (packets, bytes, spent) in [(99, 9_999, false), (100, 0, true), (0, 10_000, true)] {
        let mut reconciler = Reconciler::with(&mut kernel, Journal::default(), limits);
        reconciler.run(&plan, now).unwrap();
        let sa = reconciler.kernel.states.values_mut().next().unwrap();
        (sa.packets, sa.bytes) = (packets, bytes);
        assert_eq!(reconciler.run(&plan, now).unwrap().spent.contains(&uid(201)), spent, "{packets} {bytes}");
    }
}

#[test]
fn what_was_retiring_stays_for_a_while_when_the_ring_was_lost_in_the_middle() {
    let (mut kernel, now) = (kernel(), Instant::now());
    let mut reconciler = Reconciler::new(&mut kernel);
    let rotating = plan_of(&permissive(&[(1, Role::Retiring), (2, Role::Active)]), THREE);
    reconciler.run(&rotating, now).unwrap();
    // A wiped ring is begun anew, or an old one is restored: peers may still send with the retiring one.
    for round in 0..2 {
        let outcome = reconciler.run(&plan_of(&permissive(&[(3, Role::Active)]), THREE), now).unwrap();
        assert_eq!(outcome.findings, [Finding::Unexplained(8)].into(), "round {round}");
    }
    reconciler.run(&plan_of(&permissive(&[(3, Role::Active)]), THREE), now + GRACE).unwrap();
    assert_eq!(reconciler.kernel.ours(), 4 + 2);
}

#[test]
fn what_a_rotation_retired_goes_at_once() {
    let (mut kernel, now) = (kernel(), Instant::now());
    let mut reconciler = Reconciler::new(&mut kernel);
    reconciler.run(&plan_of(&permissive(&[(1, Role::Retiring), (2, Role::Active)]), THREE), now).unwrap();
    let outcome = reconciler.run(&plan_of(&permissive(&[(2, Role::Active)]), THREE), now).unwrap();
    assert_eq!((outcome.changed, outcome.findings.len()), (4, 0));
    assert_eq!(reconciler.kernel.ours(), 4 + 2);
}

#[test]
fn a_foreign_policy_in_the_place_of_ours_is_no_other_generation() {
    let (mut kernel, now) = (kernel(), Instant::now());
    let plan = plan_of(&permissive(&[(1, Role::Retiring), (2, Role::Active)]), THREE);
    let taken = *plan.policies.keys().next().unwrap();
    kernel.add_foreign_policy(taken);
    let outcome = Reconciler::new(&mut kernel).run(&plan, now).unwrap();
    assert!(outcome.findings.contains(&Finding::ForeignPolicy(taken)) && !outcome.is_complete());
    assert_eq!(outcome.sends, Some(uid(202)), "a rotation need not wait for it");
    let overruled: Vec<String> = outcome.overruled.into_iter().collect();
    assert!(
        overruled.len() == 1 && overruled[0].contains("(out 192.0.2.1/32 → 192.0.2.2/32, protocol 4, "),
        "{overruled:?}"
    );
    // One beside it is nobody's business.
    kernel.policies.remove(&taken);
    kernel.add_foreign_policy(PolicyId { src: Net::host(addr(99)), ..taken });
    assert!(Reconciler::new(&mut kernel).run(&plan, now).unwrap().overruled.is_empty());
}
