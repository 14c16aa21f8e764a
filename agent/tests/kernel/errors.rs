//! Refusals: attributed to the right operation, explained, and without harm to what is not ours.

use netlink_packet_xfrm::constants::XFRMNLGRP_ACQUIRE;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_XFRM};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
use secureoverlay_agent_core::{
    kernel::{Kernel, OpErrorKind},
    xfrm::{Direction, Net, Op, Owner, Policy, PolicyId, SaId},
};
use secureoverlay_agent_kernel::XfrmSocket;

use crate::{
    namespace::{Namespace, Nodes},
    objects::{add, address, all_done, outbound, sa},
    traffic::send_one,
};

#[test]
fn a_failure_in_a_batch_is_attributed_and_the_rest_is_done() {
    Namespace::new().enter(|| {
        let mut kernel = XfrmSocket::open().unwrap();
        let mut ops: Vec<_> = (0..300).map(|n| add(address(0), address(n), 0x1000)).collect();
        // In the middle, the last and the first of a batch, and the very last.
        let twice = [60, 127, 128, 299];
        for at in twice {
            ops[at] = ops[0].clone();
        }
        let outcomes = kernel.apply(&ops);
        let failed: Vec<_> = outcomes
            .iter()
            .enumerate()
            .filter_map(|(at, outcome)| Some((at, outcome.as_ref().err()?)))
            .collect();
        let places: Vec<_> = failed.iter().map(|(at, error)| (*at, error.kind)).collect();
        assert_eq!(places, twice.map(|at| (at, OpErrorKind::Exists)));
        assert_eq!(kernel.dump().unwrap().sas.len(), 296);
        assert!(failed[0].1.to_string().starts_with("adding SA 198.18.0.0 SPI 0x00001000 from 198.18.0.0"));
    });
}

#[test]
fn the_kernels_own_words_are_passed_on() {
    Namespace::new().enter(|| {
        let mut kernel = XfrmSocket::open().unwrap();
        let impossible =
            PolicyId::tunnel(Direction::Out, Net { addr: address(1), prefix: 33 }, Net::host(address(2)));
        let policy = Policy { id: impossible, action: secureoverlay_agent_core::xfrm::PolicyAction::Block };
        let error = kernel.apply(&[Op::AddPolicy(policy)]).remove(0).unwrap_err();
        assert_eq!(error.kind, OpErrorKind::Refused);
        assert!(error.detail.contains("Invalid argument (os error 22), \""), "{error}");
    });
}

#[test]
fn foreign_objects_in_the_way_stay_byte_for_byte() {
    let namespace = Namespace::new();
    let key = format!("0x{}", "5a".repeat(20));
    namespace.ip(&format!(
        "xfrm state add src 198.18.0.1 dst 198.18.0.2 proto esp spi 0x1000 mode transport reqid 99 aead rfc4106(gcm(aes)) {key} 64"
    ));
    namespace.ip(
        "xfrm policy add src 198.18.0.1/32 dst 198.18.0.2/32 proto 4 dir out priority 7 tmpl src 198.18.0.1 dst 198.18.0.2 proto esp mode transport reqid 99",
    );
    namespace.ip("xfrm policy add src 198.18.0.1/32 dst 198.18.0.3/32 proto udp dport 53 dir in priority 7");
    let before = namespace.xfrm();
    namespace.enter(|| {
        let mut kernel = XfrmSocket::open().unwrap();
        let actual = kernel.dump().unwrap();
        assert_eq!((actual.sas.len(), actual.policies.len()), (1, 2));
        assert_eq!((actual.sas[0].owner, &actual.sas[0].cipher), (Owner::Foreign, &None));
        assert!(actual.policies.iter().all(|policy| policy.owner == Owner::Foreign));

        let mut ops = vec![add(address(1), address(2), 0x1000), add(address(1), address(2), 0x1001)];
        let outcomes = kernel.apply(&ops);
        assert_eq!(outcomes[0].as_ref().unwrap_err().kind, OpErrorKind::Foreign);
        assert_eq!(outcomes[1], Ok(()));
        ops = vec![
            Op::AddPolicy(outbound(address(1), address(2), 0x1000)),
            Op::AddPolicy(outbound(address(1), address(3), 0x1000)),
        ];
        let outcomes = kernel.apply(&ops);
        assert_eq!(outcomes[0].as_ref().unwrap_err().kind, OpErrorKind::Foreign);
        assert_eq!(outcomes[1], Ok(()));

        all_done(kernel.apply(&[
            Op::DeleteSa(SaId { dst: address(2), spi: 0x1001 }),
            Op::DeletePolicy(outbound(address(1), address(3), 0x1000).id),
        ]));
    });
    assert_eq!(namespace.xfrm(), before);
}

/// With a program that listens for ACQUIREs (strongSwan, say), a packet for an SA that is missing leaves a placeholder
/// with the SPI that the policy pins.
fn larval(nodes: &Nodes, reqid: &str) -> Socket {
    nodes.a.enter(|| {
        let mut listener = Socket::new(NETLINK_XFRM).unwrap();
        listener.bind(&SocketAddr::new(0, 1 << (XFRMNLGRP_ACQUIRE - 1))).unwrap();
        nodes.a.ip(&format!(
            "xfrm policy add src 192.0.2.1/32 dst 192.0.2.2/32 proto 4 dir out tmpl src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x1000 mode transport reqid {reqid}"
        ));
        send_one(Nodes::POD_A, Nodes::POD_B);
        let states = nodes.a.ip("xfrm state list");
        assert!(states.contains("spi 0x00001000") && !states.contains("aead"), "no larval SA: {states}");
        listener
    })
}

#[test]
fn a_larval_sa_of_our_policy_is_replaced() {
    let nodes = Nodes::new();
    let _listener = larval(&nodes, &secureoverlay_agent_core::xfrm::REQID.to_string());
    nodes.a.enter(|| {
        let mut kernel = XfrmSocket::open().unwrap();
        assert_eq!(kernel.dump().unwrap().sas, [], "it is no SA");
        let wanted = sa(secureoverlay_keyring::suite::Suite::Aes256Gcm16, Nodes::A, Nodes::B, 0x1000);
        all_done(kernel.apply(&[Op::AddSa(wanted.clone())]));
        let found = kernel.dump().unwrap().sas;
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].cipher, Some((wanted.suite, wanted.key)));
        assert!(found[0].well_formed);
    });
}

#[test]
fn a_larval_sa_of_somebody_else_is_left_alone() {
    let nodes = Nodes::new();
    let _listener = larval(&nodes, "99");
    let before = nodes.a.xfrm();
    nodes.a.enter(|| {
        let error =
            XfrmSocket::open().unwrap().apply(&[add(Nodes::A, Nodes::B, 0x1000)]).remove(0).unwrap_err();
        assert_eq!(error.kind, OpErrorKind::Foreign, "{error}");
    });
    assert_eq!(nodes.a.xfrm(), before);
}

#[test]
fn without_net_admin_the_advice_names_it() {
    Namespace::new().enter(|| {
        let mut kernel = XfrmSocket::open().unwrap();
        let none = CapabilitySet::empty();
        // Capabilities belong to the thread, and this one ends here.
        set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
            .unwrap();
        let error = kernel.apply(&[add(address(1), address(2), 0x1000)]).remove(0).unwrap_err();
        assert_eq!(error.kind, OpErrorKind::NotPermitted);
        assert!(error.detail.contains("NET_ADMIN"), "{error}");
        assert!(kernel.dump().unwrap_err().to_string().contains("NET_ADMIN"));
    });
}

#[test]
fn no_text_shows_a_key() {
    Namespace::new().enter(|| {
        let mut kernel = XfrmSocket::open().unwrap();
        let op = add(address(1), address(2), 0x1000);
        let Op::AddSa(sa) = &op else { unreachable!("it is an AddSa") };
        all_done(kernel.apply(std::slice::from_ref(&op)));
        let error = kernel.apply(std::slice::from_ref(&op)).remove(0).unwrap_err();
        let text = format!("{op:?} {:?} {error} {error:?}", kernel.dump().unwrap()).to_lowercase();
        let key = sa.key.expose();
        let hex: String = key[4..8].iter().map(|byte| format!("{byte:02x}")).collect();
        let decimal = format!("{}, {}, {}", key[4], key[5], key[6]);
        assert!(!text.contains(&hex) && !text.contains(&decimal), "{text}");
    });
}
