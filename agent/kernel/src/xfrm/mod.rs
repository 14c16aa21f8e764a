//! SAs and policies (`linux/xfrm.h`): messages, and the socket that reads and changes them.

mod counts;
mod decode;
mod encode;
mod socket;

pub use self::{
    counts::{parse_policy_count, parse_state_count},
    decode::{StateMessage, parse_policy, parse_sa},
    socket::XfrmSocket,
};
