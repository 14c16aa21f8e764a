//! Which pairs of nodes prove to each other that ESP passes, and the policies for it.

use std::{collections::BTreeMap, net::IpAddr};

use secureoverlay_common::{ring::Role, uid::Uid};

use crate::{
    agent::Program,
    plan::{Plan, Stage},
    xfrm::{Action, Direction, PolicyId},
};

/// Nodes with more peers than this probe a sample of them.
pub const ALL: usize = 500;
/// How many peers each node probes then, on average: this many at least and less than twice as many.
const SAMPLE: u64 = 32;

/// Adds the policies that probes go under to the plan for `program`: out with the generation that this node sends with,
/// or the staged one before that, and in by ESP only. So a probe that arrives has come through ESP.
///
/// While the ring enforces as well: what they show changes nothing then, but somebody may have begun to drop ESP.
pub fn add(plan: &mut Plan, program: &Program, stage: Stage) {
    let Program { local, peers, probe_port: port, .. } = program;
    if *port == 0 || stage != Stage::Normal {
        return;
    }
    let mut newest: BTreeMap<IpAddr, (Role, u32)> = BTreeMap::new();
    for planned in plan.states.values().filter(|planned| planned.direction == Direction::Out) {
        let (id, role) = (planned.sa.id, planned.role);
        match role {
            Role::Active => drop(newest.insert(id.dst, (role, id.spi))),
            Role::Staged => drop(newest.entry(id.dst).or_insert((role, id.spi))),
            Role::Retiring => {}
        }
    }
    let count = peers.values().filter(|peer| !peer.excluded).count();
    for (addr, (_, spi)) in newest {
        if peers.get(&addr).is_some_and(|peer| probes(&local.node, &peer.end.node, count)) {
            let out = PolicyId::probe(Direction::Out, local.addr, addr, *port);
            let back = PolicyId::probe(Direction::In, addr, local.addr, *port);
            plan.policies.extend([(out, Action::Esp(Some(spi))), (back, Action::Esp(None))]);
        }
    }
}

/// Whether two nodes, each with so many peers, probe each other: a function of both that is the same at both ends, on
/// every build of ours. The number counts only by its power of two: nodes don't notice in the same moment that one came
/// or went.
#[must_use]
pub fn probes(one: &Uid, other: &Uid, peers: usize) -> bool {
    if peers <= ALL {
        return true;
    }
    let (low, high) = (one.min(other), one.max(other));
    // FNV-1a; the upper bits are the good ones.
    let hash = low.as_bytes().iter().chain(high.as_bytes()).fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    u64::from((hash >> 32) as u32) < (SAMPLE << 32) >> peers.ilog2()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use jiff::Timestamp;
    use secureoverlay_common::{
        ring::{Enforcement, Generation, Ring, SPI_SEED_LEN},
        secret::SecretBytes,
        suite::Suite,
        wire::End,
    };

    use super::*;
    use crate::{
        plan::desired,
        roster::{Peer, Peers},
        xfrm::SaId,
    };

    const PORT: u16 = 9468;

    fn end(n: u16) -> End {
        let [high, low] = n.to_be_bytes();
        let uid = |kind| Uid::from_random([kind, high, low, kind, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
        End { addr: [198, 18, high, low].into(), node: uid(1), boot: uid(2) }
    }

    fn peers(count: u16) -> Peers {
        let peer =
            |n| (end(n).addr, Peer { name: format!("node-{n}"), end: end(n), excluded: n == 2, new: false });
        (1..=count).map(peer).collect()
    }

    fn ring(enforcement: Enforcement, roles: &[Role]) -> Arc<Ring> {
        let generation = |(n, role): (u8, &Role)| Generation {
            id: n.into(),
            uid: Uid::from_random([n; 16]),
            role: *role,
            suite: Suite::Aes128Gcm8,
            key: SecretBytes::copy_from(&[n; 16]),
            spi_seed: SecretBytes::copy_from(&[n; SPI_SEED_LEN]),
            created_at: Timestamp::UNIX_EPOCH,
            role_since: Timestamp::UNIX_EPOCH,
            incarnations: BTreeMap::new(),
        };
        let generations = (1..).zip(roles).map(generation).collect();
        Arc::new(Ring { enforcement, generations, ..Ring::off(1, None) })
    }

    /// What the plan has for probes, and the SPI and generation of each outbound one.
    fn planned(program: &Program, stage: Stage) -> (Plan, Vec<(PolicyId, Action)>) {
        let mut plan = desired(&program.ring, &program.local, &program.peers, stage);
        add(&mut plan, program, stage);
        let probes = plan.policies.iter().filter(|(id, _)| id.is_probe());
        let probes = probes.map(|(id, action)| (*id, *action)).collect();
        (plan, probes)
    }

    fn program(enforcement: Enforcement, roles: &[Role]) -> Program {
        Program { ring: ring(enforcement, roles), local: end(0), peers: Arc::new(peers(3)), probe_port: PORT }
    }

    #[test]
    fn probes_go_with_what_is_sent_with_or_else_with_what_is_staged() {
        for (roles, used) in [
            (&[Role::Staged][..], Role::Staged),
            (&[Role::Active], Role::Active),
            (&[Role::Active, Role::Staged], Role::Active),
            (&[Role::Retiring, Role::Active], Role::Active),
        ] {
            let (plan, probes) = planned(&program(Enforcement::Permissive, roles), Stage::Normal);
            let ids: Vec<String> = probes.iter().map(|(id, _)| id.to_string()).collect();
            assert_eq!(
                ids,
                [
                    "in 198.18.0.1/32 → 198.18.0.0/32 UDP port 9468",
                    "in 198.18.0.3/32 → 198.18.0.0/32 UDP port 9468",
                    "out 198.18.0.0/32 → 198.18.0.1/32 UDP port 9468",
                    "out 198.18.0.0/32 → 198.18.0.3/32 UDP port 9468",
                ],
                "the excluded node takes no part"
            );
            assert_eq!([probes[0].1, probes[1].1], [Action::Esp(None); 2]);
            for (id, action) in &probes[2..] {
                let Action::Esp(Some(spi)) = action else { panic!("{action:?} pins nothing") };
                let sa = &plan.states[&SaId { dst: id.dst.addr, spi: *spi }];
                assert_eq!((sa.role, sa.direction), (used, Direction::Out), "{roles:?}");
            }
        }
    }

    #[test]
    fn insisting_changes_nothing_about_them() {
        let of = |enforcement| planned(&program(enforcement, &[Role::Active]), Stage::Normal).1;
        assert!(!of(Enforcement::Enforcing).is_empty());
        assert_eq!(of(Enforcement::Enforcing), of(Enforcement::Permissive));
    }

    #[test]
    fn there_are_none_where_nothing_is_to_be_proven() {
        let permissive = program(Enforcement::Permissive, &[Role::Active]);
        for stage in [Stage::Optional, Stage::Silent, Stage::Gone] {
            assert!(planned(&permissive, stage).1.is_empty(), "{stage:?}");
        }
        assert!(planned(&Program { probe_port: 0, ..permissive }, Stage::Normal).1.is_empty());
        for retiring in [Enforcement::Permissive, Enforcement::Off] {
            assert!(planned(&program(retiring, &[Role::Retiring]), Stage::Normal).1.is_empty());
        }
    }

    #[test]
    fn large_clusters_probe_a_sample_on_which_both_ends_agree() {
        let uids: Vec<Uid> = (0..3000).map(|n| end(n).node).collect();
        let count = uids.len() - 1;
        for one in uids.iter().step_by(100) {
            let others = || uids.iter().filter(|other| *other != one);
            assert!(others().all(|other| probes(one, other, ALL)));
            assert!(others().all(|other| probes(one, other, count) == probes(other, one, count)));
            let sampled = others().filter(|other| probes(one, other, count)).count();
            // 46 are expected: seven times their deviation to each side.
            assert!((5..100).contains(&sampled), "{one:?} probes {sampled}");
            // Somebody comes or goes.
            assert!(others().all(|other| probes(one, other, count) == probes(one, other, count + 1)));
        }
    }
}
