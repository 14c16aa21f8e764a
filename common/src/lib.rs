//! The pure core of SecureOverlay: key ring, wire scheme, rotation, MTU rules.
//!
//! Nothing here does I/O, looks at a clock or draws a random number: time and randomness are arguments.

pub mod acknowledgement;
pub mod duration;
pub mod mtu;
pub mod names;
pub mod node;
pub mod phase;
pub mod ring;
pub mod rotation;
pub mod secret;
pub mod suite;
pub mod uid;
pub mod wire;
