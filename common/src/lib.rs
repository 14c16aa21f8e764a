//! The pure core of SecureOverlay: key ring, wire scheme, rotation, MTU rules.
//!
//! Nothing here does I/O, looks at a clock or draws a random number: time and randomness are arguments.

pub use secureoverlay_keyring::{mtu, secret, suite, uid};

pub mod acknowledgement;
pub mod duration;
pub mod names;
pub mod node;
pub mod phase;
pub mod ring;
pub mod rotation;
pub mod wire;
