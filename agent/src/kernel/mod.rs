//! The driver: reads the kernel's SAs, policies, links and routes over netlink, and changes the first two.
//!
//! Blocking, on the thread that calls it, and in that thread's network namespace. Buffers that hold keys on their
//! way to or from the kernel are wiped.

mod counts;
mod decode;
mod encode;
mod error;
mod events;
mod frame;
mod links;
mod rules;
mod socket;
mod stat;
mod switches;
mod xfrm_socket;

pub use counts::{parse_policy_count, parse_state_count};
pub use decode::{StateMessage, parse_policy, parse_sa};
pub use error::{KernelError, Malformed, Refusal};
pub use events::{Event, Events, NetworkEvents};
pub use frame::{Message, messages, parse_error};
pub use links::{Link, LinkSocket, RouteTo, Way, parse_address, parse_link, parse_route, parse_ways};
pub use rules::parse_rule;
pub use secureoverlay_agent_core::kernel::{Counts, Kernel, OpError, OpErrorKind};
pub use stat::{XFRM_STAT, parse_xfrm_stat, xfrm_stat};
pub use switches::Switches;
pub use xfrm_socket::XfrmSocket;
