//! A packet at the port for probes of whether ESP passes.

#![no_main]

use std::{collections::BTreeMap, net::IpAddr, time::Instant};

use libfuzzer_sys::fuzz_target;
use secureoverlay_common::uid::Uid;
use secureoverlay_fuzz::probing::{Probing, Received};

fuzz_target!(|packet: &[u8]| {
    let (peer, now) = (IpAddr::from([192, 0, 2, 2]), Instant::now());
    let mut probing = Probing::new([192, 0, 2, 1].into());
    probing.probe(&BTreeMap::from([(peer, Uid::from_random([2; 16]))]), now);
    probing.ping(peer, [7; 16], now);
    match probing.receive(peer, packet, now) {
        Received::Answer(answer) => {
            assert_eq!(answer.len(), packet.len(), "an answer of another size");
        }
        Received::Taken => {
            assert_eq!(packet.get(6..), Some(&[7; 16][..]), "not the answer to what was asked");
        }
        Received::Ignored => assert!(probing.verdicts().is_empty()),
    }
});
