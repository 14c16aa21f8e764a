//! The manager, turn by turn, against an API server that misbehaves on demand.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod acknowledged;
mod fake;
mod insisting;
mod notices;
mod timed;
mod view;
