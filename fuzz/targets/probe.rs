//! A packet at one of the ports of probes.

#![no_main]

use libfuzzer_sys::fuzz_target;
use secureoverlay_keyring::probe::{Probe, ProbeKind};

fuzz_target!(|packet: &[u8]| {
    let Some(probe) = Probe::parse(packet) else { return };
    match probe.kind {
        ProbeKind::Ping => assert_eq!(probe.to_padded(packet.len()), packet, "not as it was written"),
        ProbeKind::Answer => assert_eq!(probe.to_bytes(), packet, "not as it was written"),
    }
});
