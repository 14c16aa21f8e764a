//! Numbered UDP packets between pods, and the accounting of what became of them.
//!
//! Every pod runs [`server::serve`]: it receives, and on request sends to its peers. [`session`] drives a whole
//! measurement from outside over the pods' control ports, and [`summary`] judges it, direction by direction.

pub mod account;
pub mod control;
mod metronome;
pub mod packet;
pub mod sender;
pub mod server;
pub mod session;
pub mod snmp;
pub mod summary;
