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
mod socket;
mod stat;
mod switches;
mod xfrm_socket;

pub use counts::{Counts, parse_policy_count, parse_state_count};
pub use decode::{StateMessage, parse_policy, parse_sa};
pub use error::{KernelError, Malformed, OpError, OpErrorKind, Refusal};
pub use events::{Event, Events};
pub use frame::{Message, messages, parse_error};
pub use links::{Link, LinkSocket, RouteTo, Way, parse_address, parse_link, parse_route, parse_ways};
pub use stat::{XFRM_STAT, parse_xfrm_stat, xfrm_stat};
pub use switches::Switches;
pub use xfrm_socket::XfrmSocket;

use crate::xfrm::{Actual, Op};

/// What holds SAs and policies: the kernel ([`XfrmSocket`]), or a model of it in the simulator.
pub trait Kernel {
    /// All in and out policies and all ESP SAs, ours and foreign.
    ///
    /// # Errors
    /// The kernel can't be asked or refuses, or its answer can't be read. Nothing is returned by halves.
    fn dump(&mut self) -> Result<Actual, KernelError>;

    /// How many SAs and policies there are; `None` where that can't be told without a dump.
    ///
    /// # Errors
    /// The kernel can't be asked, or its answer can't be read.
    fn counts(&mut self) -> Result<Option<Counts>, KernelError> {
        Ok(None)
    }

    /// Carries out `ops`, which must not depend on each other, and returns the outcome of each in the same order. A
    /// failure does not keep the others from being tried. Deleting what is gone already succeeds.
    fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), OpError>>;
}
