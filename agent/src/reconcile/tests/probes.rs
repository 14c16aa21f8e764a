//! Probe policies beside those for the tunnel.

use super::*;

fn probe(direction: Direction, n: u8) -> PolicyId {
    match direction {
        Direction::In => PolicyId::probe(direction, addr(n), addr(1), PORT),
        Direction::Out => PolicyId::probe(direction, addr(1), addr(n), PORT),
    }
}

fn permissive(generations: &[(u8, Role)]) -> Plan {
    probing(&ring(Enforcement::Permissive, generations), &peers(THREE), Stage::Normal)
}

/// The SPI that probes to node 2 go with.
fn probes_with(kernel: &ModelKernel) -> Option<u32> {
    match kernel.policies.get(&probe(Direction::Out, 2))?.action? {
        Action::Esp(spi) => spi,
        Action::Allow | Action::Block => None,
    }
}

#[test]
fn probes_follow_the_generations_and_are_neither_sending_nor_insisting() {
    use Role::{Active, Retiring, Staged};
    let (mut kernel, now) = (kernel(), Instant::now());
    let mut reconciler = Reconciler::new(&mut kernel);
    let mut step = |generations: &[(u8, Role)]| {
        let outcome = reconciler.run(&permissive(generations), now).unwrap();
        assert!(outcome.is_complete() && !outcome.insists);
        assert_eq!(outcome.silent, outcome.sends.is_none());
        assert_eq!(outcome.overruled, [].into());
        assert_eq!(outcome.probes, [(addr(2), true), (addr(3), true)].into());
        assert_eq!(reconciler.run(&permissive(generations), now).unwrap().changed, 0);
        (sends_with(reconciler.kernel, 2), probes_with(reconciler.kernel), outcome.sends)
    };
    assert_eq!(step(&[(1, Staged)]), (None, spi(1), None));
    assert_eq!(step(&[(1, Active)]), (spi(1), spi(1), Some(uid(201))));
    assert_eq!(step(&[(1, Active), (2, Staged)]), (spi(1), spi(1), Some(uid(201))));
    assert_eq!(step(&[(1, Retiring), (2, Active)]), (spi(2), spi(2), Some(uid(202))));
    assert_eq!(step(&[(2, Active)]), (spi(2), spi(2), Some(uid(202))));
}

#[test]
fn they_go_with_the_first_step_down() {
    let generations = [(1, Role::Active)];
    for enforcement in [Enforcement::Enforcing, Enforcement::Permissive] {
        let (mut kernel, now) = (kernel(), Instant::now());
        let mut reconciler = Reconciler::new(&mut kernel);
        let plan = |stage| probing(&ring(enforcement, &generations), &peers(THREE), stage);
        let outcome = reconciler.run(&plan(Stage::Normal), now).unwrap();
        assert!(outcome.is_complete());
        assert_eq!(outcome.probes, [(addr(2), true), (addr(3), true)].into());
        let outcome = reconciler.run(&plan(Stage::Optional), now).unwrap();
        assert!(outcome.is_complete() && outcome.probes.is_empty());
        assert!(!kernel.policies.keys().any(PolicyId::is_probe));
        assert_eq!(sends_with(&kernel, 2), spi(1));
    }
    // Nothing is known of the ring: what sends goes on, and probes with what may soon be gone do not.
    let (mut kernel, now) = (kernel(), Instant::now());
    Reconciler::new(&mut kernel).run(&permissive(&generations), now).unwrap();
    let unknown = make_plan(&Target { stage: Stage::Optional, content: None });
    Reconciler::new(&mut kernel).run(&unknown, now).unwrap();
    assert!(!kernel.policies.keys().any(PolicyId::is_probe));
    assert_eq!(sends_with(&kernel, 2), spi(1));
    let gone = make_plan(&Target { stage: Stage::Gone, content: None });
    Reconciler::new(&mut kernel).run(&permissive(&generations), now).unwrap();
    Reconciler::new(&mut kernel).run(&gone, now).unwrap();
    assert_eq!(kernel.ours(), 0);
}

#[test]
fn what_an_agent_with_another_port_left_is_taken_away() {
    let (mut kernel, now) = (kernel(), Instant::now());
    let mut plan = permissive(&[(1, Role::Staged)]);
    Reconciler::new(&mut kernel).run(&plan, now).unwrap();
    let all = kernel.policies.len();
    plan.policies = plan
        .policies
        .iter()
        .map(|(id, action)| (PolicyId { traffic: Traffic::Probe(7), ..*id }, *action))
        .collect();
    let outcome = Reconciler::new(&mut kernel).run(&plan, now).unwrap();
    assert_eq!((outcome.changed, kernel.policies.len()), (2 * all, all));
    assert!(kernel.policies.keys().all(|id| id.traffic == Traffic::Probe(7)));
}

#[test]
fn a_foreign_policy_in_their_place_is_left_and_told_and_nobody_waits_for_it() {
    let (mut kernel, now) = (kernel(), Instant::now());
    kernel.add_foreign_policy(probe(Direction::In, 2));
    let foreign = kernel.foreign();
    let outcome = Reconciler::new(&mut kernel).run(&permissive(&[(1, Role::Active)]), now).unwrap();
    assert_eq!(outcome.findings, [Finding::ForeignPolicy(probe(Direction::In, 2))].into());
    assert_eq!(outcome.probes, [(addr(3), true)].into());
    assert_eq!((outcome.sends, kernel.foreign()), (Some(uid(201)), foreign));
    let text = outcome.findings.first().unwrap().to_string();
    assert!(text.contains("in 192.0.2.2/32 → 192.0.2.1/32 UDP port 9468"), "{text}");
}

#[test]
fn without_their_policies_they_are_wanted_and_not_there() {
    let (mut kernel, now) = (kernel(), Instant::now());
    let plan = permissive(&[(1, Role::Staged)]);
    // Four inbound SAs and policies come first, then outbound ones.
    kernel.refuse = [2, 7].into();
    let mut reconciler = Reconciler::new(&mut kernel);
    let outcome = reconciler.run(&plan, now).unwrap();
    assert_eq!(outcome.probes, [(addr(2), false), (addr(3), false)].into(), "{:?}", outcome.failed);
    reconciler.kernel.refuse.clear();
    assert_eq!(reconciler.run(&plan, now).unwrap().probes, [(addr(2), true), (addr(3), true)].into());
}

#[test]
fn a_probe_policy_shows_that_its_key_was_used() {
    let (mut kernel, now) = (kernel(), Instant::now());
    let plan = permissive(&[(1, Role::Staged)]);
    Reconciler::new(&mut kernel).run(&plan, now).unwrap();
    let lost = SaId { dst: addr(2), spi: spi(1).unwrap() };
    kernel.take_away(lost);
    // Its successor has nothing else to know it from; the model would notice a second use.
    let outcome = Reconciler::new(&mut kernel).run(&plan, now).unwrap();
    assert_eq!(outcome.findings, [Finding::LostOutbound(lost)].into());
    assert_eq!(outcome.burnt, [(uid(201), 0)].into());
}
