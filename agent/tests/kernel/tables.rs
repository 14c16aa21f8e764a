//! What we write is what the kernel holds, and what it holds is what we read.

use secureoverlay_agent_core::{
    kernel::Kernel,
    xfrm::{Direction, Net, Op, Owner, Policy, PolicyAction, PolicyId},
};
use secureoverlay_agent_kernel::XfrmSocket;
use secureoverlay_keyring::suite::Suite;
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::atomic::{AtomicBool, Ordering},
};

use crate::{
    namespace::Namespace,
    objects::{add, address, all_done, outbound, policy, sa},
};

#[test]
fn sas_of_every_suite_and_family_read_as_written() {
    let namespace = Namespace::new();
    namespace.enter(|| {
        let v6 = |last| IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last));
        let mut wanted = Vec::new();
        for (suite, spi) in Suite::ALL.into_iter().zip(0x1000..) {
            wanted.push(sa(suite, address(1), address(2), spi));
            wanted.push(sa(suite, v6(1), v6(2), spi));
        }
        let mut kernel = XfrmSocket::open().unwrap();
        all_done(kernel.apply(&wanted.iter().cloned().map(Op::AddSa).collect::<Vec<_>>()));
        let mut found = kernel.dump().unwrap().sas;
        found.sort_by_key(|state| (state.id.spi, state.id.dst));
        wanted.sort_by_key(|sa| (sa.id.spi, sa.id.dst));
        assert_eq!(found.len(), wanted.len());
        for (found, wanted) in found.iter().zip(&wanted) {
            assert_eq!((found.src, found.id, found.owner), (wanted.src, wanted.id, Owner::Ours));
            assert_eq!(found.cipher, Some((wanted.suite, wanted.key.clone())));
            assert!(found.well_formed, "{found:?}");
            assert_eq!((found.packets, found.bytes), (0, 0));
        }
    });
    // iproute2's view: nothing that the kernel could have ignored silently.
    let states = namespace.xfrm().0;
    assert_eq!(states.matches("rfc4106(gcm(aes))").count(), 6, "{states}");
    assert_eq!(states.matches("replay_window 4096, bitmap-length 128").count(), 6, "{states}");
    assert_eq!(states.matches("flag esn").count(), 6, "{states}");
    assert_eq!(states.matches("sel src 198.18.0.1/32 dst 198.18.0.2/32").count(), 3, "{states}");
}

#[test]
fn policies_of_every_form_read_as_written() {
    Namespace::new().enter(|| {
        let any = Net { addr: Ipv4Addr::UNSPECIFIED.into(), prefix: 0 };
        let block = |direction, src| Policy {
            id: PolicyId::tunnel(direction, src, any),
            action: PolicyAction::Block,
        };
        let mut wanted = vec![
            outbound(address(1), address(2), 0x1000),
            policy(Direction::In, address(2), address(1), PolicyAction::Esp(None)),
            policy(Direction::Out, address(1), address(3), PolicyAction::Allow),
            policy(Direction::In, address(3), address(1), PolicyAction::Allow),
            block(Direction::In, any),
            Policy {
                id: PolicyId::probe(Direction::Out, address(1), address(2), 9468),
                action: PolicyAction::Esp(Some(0x1000)),
            },
            Policy {
                id: PolicyId::probe(Direction::In, address(2), address(1), 9468),
                action: PolicyAction::Esp(None),
            },
            block(Direction::Out, Net::host(address(1))),
        ];
        let mut kernel = XfrmSocket::open().unwrap();
        all_done(kernel.apply(&wanted.iter().copied().map(Op::AddPolicy).collect::<Vec<_>>()));

        let update = outbound(address(1), address(2), 0x1001);
        wanted[0] = update;
        all_done(kernel.apply(&[Op::UpdatePolicy(update)]));

        let found = kernel.dump().unwrap().policies;
        assert!(found.iter().all(|found| found.owner == Owner::Ours), "{found:?}");
        let mut found: Vec<_> =
            found.iter().map(|found| Policy { id: found.id, action: found.action.unwrap() }).collect();
        found.sort();
        wanted.sort();
        assert_eq!(found, wanted);

        all_done(kernel.apply(&wanted.iter().map(|policy| Op::DeletePolicy(policy.id)).collect::<Vec<_>>()));
        assert_eq!(kernel.dump().unwrap().policies, []);
    });
}

#[test]
fn thousands_of_operations_at_once() {
    Namespace::new().enter(|| {
        let mut kernel = XfrmSocket::open().unwrap();
        let states: Vec<_> = (1..3001).map(|n| add(address(0), address(n), 0x1000)).collect();
        let policies: Vec<_> =
            (1..3001).map(|n| Op::AddPolicy(outbound(address(0), address(n), 0x1000))).collect();
        all_done(kernel.apply(&states));
        all_done(kernel.apply(&policies));
        let actual = kernel.dump().unwrap();
        assert_eq!((actual.sas.len(), actual.policies.len()), (3000, 3000));
        assert!(actual.sas.iter().all(|state| state.owner == Owner::Ours && state.well_formed));
        assert!(actual.policies.iter().all(|policy| policy.action == Some(PolicyAction::Esp(Some(0x1000)))));

        let policies: Vec<_> = actual.policies.iter().map(|policy| Op::DeletePolicy(policy.id)).collect();
        let states: Vec<_> = actual.sas.iter().map(|state| Op::DeleteSa(state.id)).collect();
        all_done(kernel.apply(&policies));
        all_done(kernel.apply(&states));
        assert_eq!(kernel.dump().unwrap(), secureoverlay_agent_core::xfrm::Actual::default());
        // What is gone already is as wanted.
        all_done(kernel.apply(&policies));
        all_done(kernel.apply(&states));
    });
}

#[test]
fn dumps_succeed_while_others_change_the_tables() {
    let namespace = Namespace::new();
    let (before, busy) = (0x1000, AtomicBool::new(true));
    namespace.enter(|| {
        let mut kernel = XfrmSocket::open().unwrap();
        all_done(kernel.apply(&(0..500).map(|n| add(address(0), address(n), before)).collect::<Vec<_>>()));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut kernel = XfrmSocket::open().unwrap();
                while busy.load(Ordering::Relaxed) {
                    let ops: Vec<_> = (0..200).map(|n| add(address(0), address(n), 0x2000)).collect();
                    all_done(kernel.apply(&ops));
                    let ids = kernel.dump().unwrap().sas.into_iter().map(|state| state.id);
                    let ops: Vec<_> = ids.filter(|id| id.spi == 0x2000).map(Op::DeleteSa).collect();
                    all_done(kernel.apply(&ops));
                }
            });
            for _ in 0..50 {
                let states = kernel.dump().unwrap().sas;
                let mut stable: Vec<_> = states.iter().filter(|state| state.id.spi == before).collect();
                stable.sort_by_key(|state| state.id);
                stable.dedup_by_key(|state| state.id);
                assert_eq!(stable.len(), 500, "what was not touched is in every dump");
            }
            busy.store(false, Ordering::Relaxed);
        });
    });
}

#[test]
fn counting_sees_what_is_there() {
    Namespace::new().enter(|| {
        let mut kernel = XfrmSocket::open().unwrap();
        let counts = |kernel: &mut XfrmSocket| {
            let counts = kernel.counts().unwrap().unwrap();
            (counts.sas, counts.policies)
        };
        assert_eq!(counts(&mut kernel), (0, 0));
        all_done(kernel.apply(&[add(address(1), address(2), 0x1000), add(address(1), address(2), 0x1001)]));
        all_done(kernel.apply(&[Op::AddPolicy(outbound(address(1), address(2), 0x1000))]));
        assert_eq!(counts(&mut kernel), (2, 1));
    });
}
