//! A Node object as the API server sends it: a kubelet, or any program that may patch Nodes, has written it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use secureoverlay_k8s::{node::NodeFacts, object::Object};

fuzz_target!(|object: &[u8]| {
    let Ok(object) = serde_json::from_slice::<Object<NodeFacts>>(object) else { return };
    let Ok(facts) = object.content else { return };
    if let Some(address) = facts.address() {
        let ip = address.ip();
        assert!(!ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast(), "no host has {ip}");
    }
});
