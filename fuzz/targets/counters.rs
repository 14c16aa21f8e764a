//! `/proc/net/xfrm_stat`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use secureoverlay_agent_kernel::parse_xfrm_stat;

fuzz_target!(|text: &[u8]| {
    let text = String::from_utf8_lossy(text);
    for name in parse_xfrm_stat(&text).keys() {
        // They become labels of metrics.
        assert!(name.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{name:?}");
    }
});
