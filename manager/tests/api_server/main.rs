//! Manifests and manager against a real API server.
//!
//! Needs KUBECONFIG for a bare one, without nodes, and kubectl, which `make api-tests` provides; elsewhere the tests
//! fail, so plain `cargo test` leaves them out. They share the cluster and take turns.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod acknowledgement;
mod admission_policy;
mod cluster;
mod manifests;
mod objects;
mod program;
mod rights;
mod story;
mod watching;
mod writes;
