//! The Secret's content in the coming protocol.

#![no_main]

use libfuzzer_sys::fuzz_target;
use secureoverlay_keyring::keyring::KeyRing;

fuzz_target!(|document: &[u8]| {
    match KeyRing::parse(document) {
        Ok(ring) => {
            assert_eq!(
                KeyRing::parse(ring.to_yaml().as_bytes()).as_ref(),
                Ok(&ring),
                "not as it was written"
            );
        }
        Err(error) => drop(error.to_string()),
    }
});
