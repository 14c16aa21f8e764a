//! A datagram of netlink, split into messages.

#![no_main]

use libfuzzer_sys::fuzz_target;
use secureoverlay_agent_kernel::messages;

/// Length of `struct nlmsghdr`.
const HEADER_LEN: usize = 16;

fuzz_target!(|datagram: &[u8]| {
    let (mut read, mut ended) = (0, false);
    for message in messages(datagram) {
        assert!(!ended, "something follows what can't be read");
        match message {
            Ok(message) => read += HEADER_LEN + message.payload.len(),
            Err(_) => ended = true,
        }
    }
    assert!(read <= datagram.len(), "more was read than is there");
});
