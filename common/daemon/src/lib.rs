//! What the manager and the agent share as long-running programs: logs, signals, the client of the Kubernetes
//! API, health and metrics over HTTP.

pub mod health;
pub mod http;
pub mod log;
pub mod process;
pub mod signal;

pub use secureoverlay_k8s::{access, client};
pub use secureoverlay_keyring::duration;
