//! The agent's parsers of netlink, of its journal and of probes, compiled a second time: without the agent's client for
//! the API they are built in seconds.

#[path = "../../agent/src/journal/mod.rs"]
pub mod journal;
#[path = "../../agent/src/kernel/mod.rs"]
pub mod kernel;
#[path = "../../agent/src/probing/mod.rs"]
pub mod probing;
#[path = "../../agent/src/xfrm.rs"]
pub mod xfrm;
