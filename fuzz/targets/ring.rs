//! The Secret's content.

#![no_main]

use libfuzzer_sys::fuzz_target;
use secureoverlay_common::ring::Ring;

fuzz_target!(|document: &[u8]| {
    match Ring::parse(document) {
        Ok(ring) => {
            assert_eq!(Ring::parse(ring.to_yaml().as_bytes()).as_ref(), Ok(&ring), "not as it was written");
        }
        Err(error) => drop(error.to_string()),
    }
});
