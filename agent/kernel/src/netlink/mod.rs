//! Netlink itself: frames, and the socket that requests, dumps and notifications share.

pub mod frame;
pub mod socket;
