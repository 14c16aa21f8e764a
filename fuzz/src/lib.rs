//! The agent's parsers of netlink, compiled a second time: without the agent's client for the API they are built in
//! seconds.

#[path = "../../agent/src/kernel/mod.rs"]
pub mod kernel;
#[path = "../../agent/src/xfrm.rs"]
pub mod xfrm;
