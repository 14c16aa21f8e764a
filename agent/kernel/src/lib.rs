//! The driver: reads the kernel's SAs, policies, links and routes over netlink, and changes the first two.
//!
//! Blocking, on the thread that calls it, and in that thread's network namespace. Buffers that hold keys on their
//! way to or from the kernel are wiped. What SAs and policies are is the model's business
//! ([`secureoverlay_agent_core::xfrm`]); [`XfrmSocket`] is its [`Kernel`](secureoverlay_agent_core::kernel::Kernel).
//!
//! | module | does |
//! |---|---|
//! | `netlink` | frames, requests, batches, dumps |
//! | `xfrm` | SAs and policies |
//! | `route` | links, addresses, routes, rules |
//! | `events` | notifications that one of these changed |
//! | `switches`, `stat` | sysctls that take interfaces out of IPsec; the kernel's counters of dropped packets |
//! | `vm_generation` | the notification that this machine is a copy |
//! | `error` | what can go wrong, and what to do about it |

mod error;
mod events;
mod netlink;
mod route;
mod stat;
mod switches;
mod vm_generation;
mod xfrm;

pub use error::{KernelError, Malformed, Refusal};
pub use events::{Event, Events, NetworkEvents};
pub use netlink::frame::{Message, messages, parse_error};
pub use route::{
    Link, LinkSocket, RouteTo, Way, parse_address, parse_link, parse_route, parse_rule, parse_ways,
};
pub use stat::{XFRM_STAT, parse_xfrm_stat, xfrm_stat};
pub use switches::Switches;
pub use vm_generation::{VmEvent, VmGenerationEvents};
pub use xfrm::{StateMessage, XfrmSocket, parse_policy, parse_policy_count, parse_sa, parse_state_count};
