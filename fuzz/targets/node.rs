//! A Node object as the API server sends it, written by a kubelet or whoever may patch Nodes.

#![no_main]

use libfuzzer_sys::fuzz_target;
use secureoverlay_common::node::{NodeFacts, SlimNode};

fuzz_target!(|object: &[u8]| {
    let Ok(node) = serde_json::from_slice::<SlimNode>(object) else { return };
    let facts = NodeFacts::from(&node);
    if let Some(addr) = facts.addr {
        assert!(!addr.is_unspecified() && !addr.is_loopback() && !addr.is_multicast(), "no host has {addr}");
    }
    for uid in [facts.uid, facts.boot].into_iter().flatten() {
        assert_eq!(uid.as_str().parse(), Ok(uid));
    }
});
