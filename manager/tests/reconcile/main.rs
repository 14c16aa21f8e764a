//! The manager, evaluation by evaluation, against an API server that misbehaves on demand.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod acknowledged;
mod commands;
mod enforcing;
mod fake;
mod notices;
mod objects;
mod timed;
mod view;
