//! A link, an address or a route in a dump of the kernel; the first byte says which.

#![no_main]

use libfuzzer_sys::fuzz_target;
use secureoverlay_agent_kernel::{parse_address, parse_link, parse_route, parse_ways};

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, payload)) = bytes.split_first() else { return };
    match kind % 4 {
        0 => {
            if let Ok(link) = parse_link(payload) {
                assert!(link.addresses.is_empty(), "addresses come with messages of their own");
                assert!(!link.name.ends_with('\0'));
            }
        }
        1 => drop(parse_address(payload)),
        2 => drop(parse_route(payload)),
        _ => drop(parse_ways(payload)),
    }
});
