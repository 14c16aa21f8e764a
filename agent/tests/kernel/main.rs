//! The driver against a real kernel, each test in network namespaces of its own.
//!
//! Needs root, iproute2 and a kernel with ESP, GCM and IPIP, which `cargo lab kernel` provides; elsewhere the tests
//! fail, so plain `cargo test` leaves them out.

#![allow(clippy::unwrap_used)]

mod errors;
mod events;
mod flush;
mod links;
mod namespace;
mod objects;
mod preflight;
mod state_directory;
mod tables;
mod traffic;
