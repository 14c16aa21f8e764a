//! Manifests and manager against a real API server.
//!
//! Needs KUBECONFIG for a bare one, without nodes, and kubectl, which `make api-tests` provides; elsewhere the tests
//! fail, so plain `cargo test` leaves them out. They share the cluster and take turns.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod cluster;
mod manifests;
mod program;
mod rights;
mod story;
mod word;
mod writes;
