//! An SA in a dump of the kernel (`XFRM_MSG_NEWSA`).

#![no_main]

use libfuzzer_sys::fuzz_target;
use secureoverlay_agent_core::xfrm::Owner;
use secureoverlay_agent_kernel::parse_sa;

fuzz_target!(|payload: &[u8]| {
    let Ok(Some(message)) = parse_sa(payload) else { return };
    let sa = &message.sa;
    assert!(sa.owner == Owner::Ours || sa.cipher.is_none(), "another's key was read");
    assert_eq!(sa.src.is_ipv4(), sa.id.dst.is_ipv4());
    drop(format!("{message:?}"));
});
