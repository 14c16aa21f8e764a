use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use proptest::prelude::*;
use secureoverlay_common::{
    ring::{Enforcement, Generation, Ring, Role, SPI_SEED_LEN},
    secret::SecretBytes,
    suite::Suite,
    uid::Uid,
    wire::{self, End},
};

use super::*;
use crate::{
    agent::{Program, Target},
    diff::GRACE,
    model_kernel::ModelKernel,
    plan::{self, Stage, desired},
    roster::{Peer, Peers},
    worker::make_plan,
    xfrm::{Net, PolicyId, Traffic},
};

fn uid(n: u8) -> Uid {
    Uid::from_random([n; 16])
}

fn addr(n: u8) -> IpAddr {
    [192, 0, 2, n].into()
}

fn end(n: u8, boot: u8) -> End {
    End { addr: addr(n), node: uid(n), boot: uid(100 + boot) }
}

fn peers(boots: &[(u8, u8)]) -> Peers {
    let peer = |&(n, boot)| {
        (addr(n), Peer { name: format!("node-{n}"), end: end(n, boot), excluded: false, new: false })
    };
    boots.iter().map(peer).collect()
}

fn generation(n: u8, role: Role) -> Generation {
    let suite = Suite::ALL[usize::from(n) % 3];
    Generation {
        id: n.into(),
        uid: uid(200 + n),
        role,
        suite,
        key: SecretBytes::copy_from(&vec![n; suite.key_len()]),
        spi_seed: SecretBytes::copy_from(&[n; SPI_SEED_LEN]),
        created_at: Timestamp::UNIX_EPOCH,
        role_since: Timestamp::UNIX_EPOCH,
        incarnations: BTreeMap::new(),
    }
}

fn ring(enforcement: Enforcement, generations: &[(u8, Role)]) -> Ring {
    let generations = generations.iter().map(|&(n, role)| generation(n, role)).collect();
    Ring { enforcement, generations, ..Ring::off(1, None) }
}

/// What a node plans that probes.
fn probing(ring: &Ring, peers: &Peers, stage: Stage) -> Plan {
    let (ring, peers) = (Arc::new(ring.clone()), Arc::new(peers.clone()));
    let program = Program { ring, local: end(1, 1), peers, probe_port: PORT };
    make_plan(&Target { stage, content: Some(program) })
}

fn out(n: u8) -> PolicyId {
    PolicyId::tunnel(Direction::Out, Net::host(addr(1)), Net::host(addr(n)))
}

fn sends_with(kernel: &ModelKernel, n: u8) -> Option<u32> {
    match kernel.policies.get(&out(n))?.action? {
        Action::Esp(spi) => spi,
        Action::Allow | Action::Block => None,
    }
}

/// The SPI of node 1 under generation `n`.
fn spi(n: u8) -> Option<u32> {
    Some(wire::spi(&generation(n, Role::Active), &end(1, 1)))
}

fn kernel() -> ModelKernel {
    ModelKernel { local: Some(addr(1)), ..ModelKernel::default() }
}

const PORT: u16 = 9468;
const THREE: &[(u8, u8)] = &[(2, 2), (3, 3)];

#[test]
fn a_rotation_adds_before_it_switches_and_switches_before_it_removes() {
    use Role::{Active, Retiring, Staged};
    let (mut kernel, now, peers) = (kernel(), Instant::now(), peers(THREE));
    let mut reconciler = Reconciler::new(&mut kernel);
    let mut step = |generations: &[(u8, Role)]| {
        let plan = desired(&ring(Enforcement::Permissive, generations), &end(1, 1), &peers, Stage::Normal);
        let outcome = reconciler.run(&plan, now).unwrap();
        assert!(outcome.is_complete());
        assert_eq!(reconciler.run(&plan, now).unwrap().changed, 0, "a second run has nothing to do");
        (sends_with(reconciler.kernel, 2), reconciler.kernel.states.len(), outcome.changed)
    };
    assert_eq!(step(&[(1, Staged)]), (None, 4, 4));
    assert_eq!(step(&[(1, Active)]), (spi(1), 4, 2));
    assert_eq!(step(&[(1, Active), (2, Staged)]), (spi(1), 8, 4));
    assert_eq!(step(&[(1, Retiring), (2, Active)]), (spi(2), 8, 2), "activating is nothing but policies");
    assert_eq!(step(&[(2, Active)]), (spi(2), 4, 4));
}

#[test]
fn a_restarted_agent_adopts() {
    let (mut kernel, now) = (kernel(), Instant::now());
    let plan = desired(
        &ring(Enforcement::Enforcing, &[(1, Role::Active)]),
        &end(1, 1),
        &peers(THREE),
        Stage::Normal,
    );
    Reconciler::new(&mut kernel).run(&plan, now).unwrap();
    for hidden in [false, true] {
        if hidden {
            kernel.states.values_mut().for_each(|sa| sa.cipher = None);
        }
        let outcome = Reconciler::new(&mut kernel).run(&plan, now).unwrap();
        assert_eq!((outcome.changed, outcome.peers_programmed), (0, 2));
    }
}

#[test]
fn a_wiped_ring_costs_nothing() {
    let (mut kernel, mut now, peers) = (kernel(), Instant::now(), peers(THREE));
    let plan = |generations: &[(u8, Role)]| {
        desired(&ring(Enforcement::Permissive, generations), &end(1, 1), &peers, Stage::Normal)
    };
    Reconciler::new(&mut kernel).run(&plan(&[(1, Role::Active)]), now).unwrap();
    // The agent restarts, and all that it finds is a ring that was begun anew.
    let mut reconciler = Reconciler::new(&mut kernel);
    now += GRACE;
    reconciler.run(&plan(&[(2, Role::Staged)]), now).unwrap();
    assert_eq!((sends_with(reconciler.kernel, 2), reconciler.kernel.states.len()), (spi(1), 8));
    now += GRACE;
    let outcome = reconciler.run(&plan(&[(2, Role::Active)]), now).unwrap();
    assert_eq!((sends_with(reconciler.kernel, 2), reconciler.kernel.states.len()), (spi(2), 8));
    assert_eq!(outcome.findings, [Finding::Unexplained(4)].into());
    assert_eq!(reconciler.run(&plan(&[(2, Role::Active)]), now).unwrap().wake_at, outcome.wake_at);
    reconciler.run(&plan(&[(2, Role::Active)]), outcome.wake_at.unwrap()).unwrap();
    assert_eq!(reconciler.kernel.states.len(), 4);
}

#[test]
fn beside_a_new_ring_what_was_insisted_on_goes_on_until_the_ring_has_something_to_send_with() {
    use Role::{Active, Retiring, Staged};
    let (mut kernel, now) = (kernel(), Instant::now());
    let inbound = |n: u8| PolicyId::tunnel(Direction::In, Net::host(addr(n)), Net::host(addr(1)));
    let with_excluded = |who: u8| {
        let mut peers = peers(&[(2, 2), (3, 3), (4, 4), (5, 5)]);
        peers.get_mut(&addr(who)).unwrap().excluded = true;
        peers
    };
    let of = |enforcement, generations: &[(u8, Role)], peers: &Peers, stage| {
        desired(&ring(enforcement, generations), &end(1, 1), peers, stage)
    };
    let enforcing = of(Enforcement::Enforcing, &[(1, Active)], &with_excluded(4), Stage::Normal);
    Reconciler::new(&mut kernel).run(&enforcing, now).unwrap();
    let (held, anew) =
        (kernel.clone(), |peers: &Peers, stage| of(Enforcement::Permissive, &[(2, Staged)], peers, stage));

    // With the agent that knew the former ring, or another one.
    let mut reconciler = Reconciler::new(&mut kernel);
    for _ in 0..2 {
        let outcome = reconciler.run(&anew(&with_excluded(4), Stage::Normal), now).unwrap();
        assert!(outcome.is_complete() && outcome.insists && !outcome.silent);
        assert_eq!(reconciler.kernel.policies, held.policies);
    }
    // What somebody takes away is put back, but for the way out: that is blocked.
    let sending = |action| matches!(action, Some(Action::Esp(Some(_))));
    reconciler.kernel.policies.clear();
    for _ in 0..2 {
        let outcome = reconciler.run(&anew(&with_excluded(4), Stage::Normal), now).unwrap();
        assert!(outcome.is_complete() && outcome.insists);
        let mut left = held.policies.clone();
        left.retain(|_, policy| !sending(policy.action));
        assert_eq!(reconciler.kernel.policies, left);
    }
    // A node that came has no policy: the blocks stop it. Who is excluded is known.
    let outcome = reconciler.run(&anew(&with_excluded(5), Stage::Normal), now).unwrap();
    assert!(outcome.is_complete() && outcome.insists);
    let action = |kernel: &ModelKernel, id| kernel.policies.get(&id).map(|policy| policy.action);
    for (n, expected) in [(3, Some(Some(Action::Esp(None)))), (4, None), (5, Some(Some(Action::Allow)))] {
        assert_eq!(action(reconciler.kernel, inbound(n)), expected, "{n}");
    }
    assert_eq!([4, 5].map(|n| action(reconciler.kernel, out(n))), [None, Some(Some(Action::Allow))]);

    // What has a meaning of its own, and any step down, ends it.
    for plan in [
        anew(&with_excluded(4), Stage::Optional),
        of(Enforcement::Permissive, &[(1, Retiring), (2, Staged)], &with_excluded(4), Stage::Normal),
        of(Enforcement::Permissive, &[(2, Active)], &with_excluded(4), Stage::Normal),
        of(Enforcement::Permissive, &[(2, Retiring)], &with_excluded(4), Stage::Normal),
        of(Enforcement::Off, &[], &with_excluded(4), Stage::Normal),
    ] {
        let mut kernel = held.clone();
        let outcome = Reconciler::new(&mut kernel).run(&plan, now).unwrap();
        assert!(!outcome.insists, "{plan:?}");
    }
    // Where nothing was insisted on, nothing is.
    let mut kernel = ModelKernel { local: Some(addr(1)), ..ModelKernel::default() };
    let outcome = Reconciler::new(&mut kernel).run(&anew(&with_excluded(4), Stage::Normal), now).unwrap();
    assert!(!outcome.insists && outcome.silent);
}

#[test]
fn a_peer_that_rebooted_gets_new_keys_and_one_that_left_none() {
    let (mut kernel, now) = (kernel(), Instant::now());
    let ring = ring(Enforcement::Permissive, &[(1, Role::Active)]);
    let plan = |boots: &[(u8, u8)]| desired(&ring, &end(1, 1), &peers(boots), Stage::Normal);
    let mut reconciler = Reconciler::new(&mut kernel);
    reconciler.run(&plan(THREE), now).unwrap();
    let before = reconciler.kernel.states.clone();
    let outcome = reconciler.run(&plan(&[(2, 9), (3, 3)]), now).unwrap();
    assert_eq!((outcome.changed, outcome.peers_programmed), (4, 2), "two SAs deleted and added");
    let changed = before.values().filter(|sa| reconciler.kernel.states[&sa.id] != **sa).count();
    assert_eq!(changed, 2);
    reconciler.run(&plan(&[(3, 3)]), now).unwrap();
    assert_eq!(reconciler.kernel.ours(), 4, "its outbound SA stays with its generation, unused");
    let outcome = reconciler.run(&plan(&[(2, 9), (3, 3)]), now).unwrap();
    assert_eq!(
        (outcome.changed, outcome.peers_programmed),
        (2, 2),
        "when it comes back, no key is used again"
    );
}

#[test]
fn a_lost_outbound_sa_is_not_made_again() {
    let now = Instant::now();
    let plan = desired(
        &ring(Enforcement::Permissive, &[(1, Role::Active)]),
        &end(1, 1),
        &peers(THREE),
        Stage::Normal,
    );
    let lost = SaId { dst: addr(2), spi: spi(1).unwrap() };
    for restarted in [false, true] {
        let mut kernel = kernel();
        let mut reconciler = Reconciler::new(&mut kernel);
        reconciler.run(&plan, now).unwrap();
        reconciler.kernel.take_away(lost);
        if restarted {
            reconciler = Reconciler::new(&mut kernel);
        }
        for lost_now in [1, 0] {
            let outcome = reconciler.run(&plan, now).unwrap();
            assert_eq!(outcome.findings, [Finding::LostOutbound(lost)].into());
            assert_eq!((outcome.changed, outcome.peers_programmed, outcome.lost), (0, 1, lost_now));
            assert_eq!(outcome.burnt, [(uid(201), 0)].into());
            assert_eq!(sends_with(reconciler.kernel, 2), spi(1), "held back rather than sent in the clear");
        }
    }
}

#[test]
fn removal_leaves_nothing_and_insists_on_nothing_meanwhile() {
    let (mut kernel, now) = (kernel(), Instant::now());
    let ring = ring(Enforcement::Enforcing, &[(1, Role::Retiring), (2, Role::Active)]);
    let mut reconciler = Reconciler::new(&mut kernel);
    let mut at = |stage| {
        reconciler.run(&desired(&ring, &end(1, 1), &peers(THREE), stage), now).unwrap();
        let inbound = PolicyId::tunnel(Direction::In, Net::host(addr(2)), Net::host(addr(1)));
        (reconciler.kernel.clear(&inbound), reconciler.kernel.clear(&out(2)), reconciler.kernel.ours())
    };
    assert_eq!(at(Stage::Normal), (false, false, 8 + 4 + 2));
    assert_eq!(at(Stage::Optional), (true, false, 8 + 2));
    assert_eq!(at(Stage::Silent), (true, true, 8));
    assert_eq!(at(Stage::Gone), (true, true, 0));
}

#[test]
fn enforcing_covers_everything_but_excluded_nodes() {
    let (mut kernel, now, mut peers) = (kernel(), Instant::now(), peers(THREE));
    peers.get_mut(&addr(3)).unwrap().excluded = true;
    let plan =
        desired(&ring(Enforcement::Enforcing, &[(1, Role::Active)]), &end(1, 1), &peers, Stage::Normal);
    Reconciler::new(&mut kernel).run(&plan, now).unwrap();
    let from = |n| PolicyId::tunnel(Direction::In, Net::host(addr(n)), Net::host(addr(1)));
    assert_eq!(
        [2, 3, 77].map(|n| (kernel.clear(&out(n)), kernel.clear(&from(n)))),
        [(false, false), (true, true), (false, false)]
    );
}

#[test]
fn pending_peers_are_spoken_to_in_the_clear() {
    let (mut kernel, now) = (kernel(), Instant::now());
    let ring = Ring { pending: [uid(2)].into(), ..ring(Enforcement::Permissive, &[(1, Role::Active)]) };
    let plan = desired(&ring, &end(1, 1), &peers(THREE), Stage::Normal);
    Reconciler::new(&mut kernel).run(&plan, now).unwrap();
    assert_eq!((sends_with(&kernel, 2), sends_with(&kernel, 3), kernel.states.len()), (None, spi(1), 4));
}

#[test]
fn a_pending_node_speaks_in_the_clear_itself_and_says_that_it_is_silent() {
    let (mut kernel, now) = (kernel(), Instant::now());
    let ring = Ring { pending: [uid(1)].into(), ..ring(Enforcement::Permissive, &[(1, Role::Active)]) };
    let plan = desired(&ring, &end(1, 1), &peers(THREE), Stage::Normal);
    let outcome = Reconciler::new(&mut kernel).run(&plan, now).unwrap();
    assert!(outcome.silent && outcome.receives.contains(&uid(201)), "{outcome:?}");
    assert_eq!((sends_with(&kernel, 2), sends_with(&kernel, 3), kernel.states.len()), (None, None, 4));
}

#[test]
fn new_peers_are_spoken_to_in_the_clear_while_that_is_accepted() {
    let (mut kernel, now, mut peers) = (kernel(), Instant::now(), peers(THREE));
    peers.get_mut(&addr(2)).unwrap().new = true;
    let mut reconciler = Reconciler::new(&mut kernel);
    for (enforcement, to) in [(Enforcement::Permissive, None), (Enforcement::Enforcing, spi(1))] {
        let plan = desired(&ring(enforcement, &[(1, Role::Active)]), &end(1, 1), &peers, Stage::Normal);
        let outcome = reconciler.run(&plan, now).unwrap();
        assert_eq!((outcome.sends, outcome.silent), (Some(uid(201)), false), "the others are sent to");
        assert_eq!(outcome.encrypts, to.is_some(), "but not to everybody");
        assert_eq!((sends_with(reconciler.kernel, 2), sends_with(reconciler.kernel, 3)), (to, spi(1)));
    }
}

#[test]
fn a_silenced_ring_takes_the_outbound_policies_and_nothing_else() {
    let (mut kernel, now) = (kernel(), Instant::now());
    let mut reconciler = Reconciler::new(&mut kernel);
    let plan = |generations: &[(u8, Role)]| {
        desired(&ring(Enforcement::Permissive, generations), &end(1, 1), &peers(THREE), Stage::Normal)
    };
    let outcome = reconciler.run(&plan(&[(1, Role::Active)]), now).unwrap();
    assert!(!outcome.silent && outcome.encrypts);
    // A ring that was begun anew: what is sent with goes on, and is not silence.
    assert!(!reconciler.run(&plan(&[(2, Role::Staged)]), now).unwrap().silent);
    let outcome = reconciler.run(&plan(&[(1, Role::Retiring)]), now).unwrap();
    assert!(
        outcome.silent && !outcome.encrypts && outcome.is_complete() && outcome.receives.contains(&uid(201)),
        "{outcome:?}"
    );
    assert_eq!((outcome.sends, sends_with(reconciler.kernel, 2)), (None, None));
    // A policy that could not be taken out still sends.
    reconciler.run(&plan(&[(1, Role::Active)]), now).unwrap();
    reconciler.kernel.refuse = [reconciler.kernel.done].into();
    assert!(!reconciler.run(&plan(&[(1, Role::Retiring)]), now).unwrap().silent);
    assert!(reconciler.run(&plan(&[(1, Role::Retiring)]), now).unwrap().silent);
}

#[test]
fn senders_with_one_spi_are_told_apart_by_address() {
    let seeds = (0..u8::MAX).map(|seed| {
        let mut generation = generation(1, Role::Active);
        generation.spi_seed = SecretBytes::copy_from(&[seed; SPI_SEED_LEN]);
        generation
    });
    // One generation twice under two uids: all SPIs collide, and the address can't decide.
    for generation in seeds.take(3) {
        let twin = Generation { id: 2, uid: uid(250), role: Role::Staged, ..generation.clone() };
        let ring = Ring { generations: vec![generation, twin], ..ring(Enforcement::Permissive, &[]) };
        let plan = desired(&ring, &end(1, 1), &peers(THREE), Stage::Normal);
        assert_eq!(plan.collisions.len(), 3);
        assert_eq!(plan.states.len(), 4, "the older generation works");
    }
}

#[test]
fn a_foreign_policy_where_a_block_has_to_be_is_a_hole() {
    let (mut kernel, now) = (kernel(), Instant::now());
    let hole = plan::blocks(addr(1))[0];
    kernel.add_foreign_policy(hole);
    let insisting =
        |enforcement| probing(&ring(enforcement, &[(1, Role::Active)]), &peers(THREE), Stage::Normal);
    let mut reconciler = Reconciler::new(&mut kernel);
    let before = reconciler.run(&insisting(Enforcement::Permissive), now).unwrap();
    assert!(before.is_complete() && before.overruled.len() == 1, "said before anybody insists: {before:?}");
    let outcome = reconciler.run(&insisting(Enforcement::Enforcing), now).unwrap();
    assert_eq!(outcome.findings, [Finding::ForeignPolicy(hole)].into());
    assert!(!outcome.is_complete());
}

mod history;
mod losses;
mod probes;
