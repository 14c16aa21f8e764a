//! Notifications of the kernel.

use secureoverlay_agent_core::{kernel::Kernel, xfrm::Op};
use secureoverlay_agent_kernel::{Event, Events, NetworkEvents, XfrmSocket};
use std::time::{Duration, Instant};

use crate::{
    namespace::Namespace,
    objects::{address, all_done, outbound},
};

const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn policy_changes_and_expiries_are_told() {
    let namespace = Namespace::new();
    namespace.enter(|| {
        let mut events = Events::open().unwrap();
        assert_eq!(events.wait(Some(Duration::ZERO)).unwrap(), None);

        let policy = outbound(address(1), address(2), 0x1000);
        all_done(XfrmSocket::open().unwrap().apply(&[Op::AddPolicy(policy)]));
        assert_eq!(events.wait(Some(PATIENCE)).unwrap(), Some(Event::Policy));
        namespace.ip("xfrm policy flush");
        assert_eq!(events.wait(Some(PATIENCE)).unwrap(), Some(Event::Flush));

        let key = format!("0x{}", "5a".repeat(20));
        namespace.ip(&format!(
            "xfrm state add src 198.18.0.1 dst 198.18.0.2 proto esp spi 0x1000 mode transport aead rfc4106(gcm(aes)) {key} 64 limit time-soft 1"
        ));
        assert_eq!(events.wait(Some(PATIENCE)).unwrap(), Some(Event::Expire));
        assert_eq!(events.wait(Some(Duration::ZERO)).unwrap(), None);
    });
}

#[test]
fn too_many_notifications_are_one_reason_to_look() {
    Namespace::new().enter(|| {
        let mut events = Events::open().unwrap();
        let mut kernel = XfrmSocket::open().unwrap();
        let add: Vec<_> =
            (0..3000).map(|n| Op::AddPolicy(outbound(address(1), address(n), 0x1000))).collect();
        let delete: Vec<_> =
            (0..3000).map(|n| Op::DeletePolicy(outbound(address(1), address(n), 0x1000).id)).collect();
        for _ in 0..6 {
            all_done(kernel.apply(&add));
            all_done(kernel.apply(&delete));
        }
        let (mut overrun, deadline) = (false, Instant::now() + PATIENCE);
        while let Some(event) = events.wait(Some(Duration::from_millis(100))).unwrap() {
            overrun |= event == Event::Overrun;
            assert!(Instant::now() < deadline);
        }
        assert!(overrun, "36,000 notifications fit into the socket");
        // And it goes on afterwards.
        all_done(kernel.apply(&add[..1]));
        assert_eq!(events.wait(Some(PATIENCE)).unwrap(), Some(Event::Policy));
    });
}

#[test]
fn changes_of_addresses_and_routes_are_told() {
    let namespace = Namespace::new();
    namespace.enter(|| {
        let mut events = NetworkEvents::open().unwrap();
        let quiet = Duration::from_millis(200);
        while events.wait(Some(quiet)).unwrap() {}
        for command in [
            "address add 198.18.7.1/32 dev lo",
            "route add 198.18.8.0/24 dev lo",
            "route delete 198.18.8.0/24",
        ] {
            namespace.ip(command);
            assert!(events.wait(Some(PATIENCE)).unwrap(), "{command}");
            while events.wait(Some(quiet)).unwrap() {}
        }
    });
}
