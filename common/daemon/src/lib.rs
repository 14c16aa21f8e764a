//! What the manager and the agent share as long-running programs: logs, signals, the client of the Kubernetes
//! API, health and metrics over HTTP.

pub mod access;
pub mod client;
pub mod health;
pub mod http;
pub mod log;
pub mod node_encryption;
pub mod process;
pub mod signal;
pub mod watched_node;

pub use secureoverlay_common::duration;
