//! The kernel's answer to a request, with or without an extended acknowledgement (`NLMSG_ERROR`).

#![no_main]

use libfuzzer_sys::fuzz_target;
use secureoverlay_agent_kernel::parse_error;

fuzz_target!(|input: &[u8]| {
    let Some((flags, payload)) = input.split_first_chunk() else { return };
    match parse_error(payload, u16::from_ne_bytes(*flags)) {
        Ok(Some(refusal)) => {
            assert!((1..4096).contains(&refusal.errno.raw_os_error()));
            drop(refusal.to_string());
        }
        Ok(None) => assert_eq!(payload.get(..4), Some(&[0; 4][..]), "a refusal was taken for success"),
        Err(error) => drop(error.to_string()),
    }
});
