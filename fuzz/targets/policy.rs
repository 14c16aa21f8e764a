//! A policy in a dump of the kernel (`XFRM_MSG_NEWPOLICY`).

#![no_main]

use libfuzzer_sys::fuzz_target;
use secureoverlay_agent_core::xfrm::Owner;
use secureoverlay_agent_kernel::parse_policy;

fuzz_target!(|payload: &[u8]| {
    let Ok(Some(policy)) = parse_policy(payload) else { return };
    assert!(
        policy.owner == Owner::Ours || policy.action.is_none(),
        "another's policy was understood as ours"
    );
    drop(format!("{policy:?} {}", policy.id));
});
