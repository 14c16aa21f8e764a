//! The manager's decisions as a sans-IO core: events go in, one conditional write, notifications and a deadline come out.
//!
//! [`Controller`] reads no clock, draws no random number and does no I/O. A shell answers what
//! [`Controller::poll_request`] asks for with one of the `handle_*` functions; `secureoverlay-manager` does that with a
//! Kubernetes API server, the simulator (`tests/sim`) with a model of one. What either of them drives is this code.
//!
//! An *evaluation* is one pass from reading the Secret to at most one write. It may end anywhere, the process with it:
//! all that matters is in the Secret.
//!
//! ```
//! use std::{convert::Infallible, time::{Duration, Instant}};
//! use secureoverlay_keyring::{keyring::KeyRing, settings::{EnforcementGoal, Settings}};
//! use secureoverlay_rotation::Installation;
//! use secureoverlay_manager_core::{
//!     controller::{Controller, ControllerOptions, Now, Outcome, Request, WriteResult},
//!     operator::OperatorObjects,
//!     rollout_mode::RolloutMode,
//!     snapshot::{ClusterState, SecretSnapshot},
//! };
//!
//! // The world outside: an empty Secret, and clocks.
//! let (mut document, mut version) = (String::new(), 1_u64);
//! let mut now = Now { wall: "2026-11-20T03:00:00Z".parse().unwrap(), monotonic: Instant::now() };
//!
//! let mut controller = Controller::new(&ControllerOptions {
//!     settings: Some(Settings { enforcement: EnforcementGoal::Permissive, ..Settings::default() }),
//!     objects: false,
//!     mode: RolloutMode::Timed,
//!     delay: Duration::from_secs(180),
//!     limit: Duration::from_secs(3600),
//!     poll_interval: Duration::from_secs(2),
//!     startup_taint: false,
//! });
//! while document.matches("role: active").count() == 0 {
//!     // Wait for the deadline, or call `handle_change` where a watch brings something.
//!     if let Some(deadline) = controller.poll_timeout() {
//!         let wait = deadline.saturating_duration_since(now.monotonic);
//!         now = Now { wall: now.wall + wait, monotonic: now.monotonic + wait };
//!     }
//!     controller.handle_timeout();
//!     let mut drawn = 0;
//!     let mut random = |bytes: &mut [u8]| { drawn += 1; bytes.fill(drawn); Ok::<_, Infallible>(()) };
//!     while let Some(request) = controller.poll_request(&mut random).unwrap() {
//!         match request {
//!             Request::ReadSecret => {
//!                 let secret = SecretSnapshot {
//!                     uid: None,
//!                     resource_version: Some(version.to_string()),
//!                     ring: KeyRing::parse(document.as_bytes()),
//!                     rotate: false,
//!                 };
//!                 controller.handle_secret(secret, now).unwrap();
//!             }
//!             Request::ReadDaemonSet => controller.handle_daemon_set(Installation::Unknown, now),
//!             // Only where operators ask by objects.
//!             Request::ReadObjects => controller.handle_objects(OperatorObjects::default()),
//!             Request::CreateEncryption => controller.handle_encryption_created(now),
//!             Request::CreateRotation { .. } => controller.handle_rotation_created(None),
//!             Request::CheckAccess => controller.handle_access(false, now),
//!             Request::ReadCache | Request::ListCluster => {
//!                 controller.handle_cluster(ClusterState::default(), now);
//!             }
//!             Request::Write(write) => {
//!                 // Only over what was read: a write since then wins.
//!                 let result = if write.resource_version == Some(version.to_string()) {
//!                     (document, version) = (write.ring.to_yaml().to_string(), version + 1);
//!                     WriteResult::Written
//!                 } else {
//!                     WriteResult::Conflict
//!                 };
//!                 controller.handle_written(result, now);
//!             }
//!         }
//!     }
//!     while let Some(notification) = controller.poll_notification() { drop(notification) }
//!     while let Some(node) = controller.poll_taint_removal() { drop(node) }
//!     while let Some(object) = controller.poll_deletion() { drop(object) }
//!     while let Some(write) = controller.poll_object_write() { drop(write) }
//!     assert!(matches!(controller.outcome(), Some(Outcome::Written | Outcome::Waiting { .. })));
//! }
//! ```

pub mod controller;
mod evaluation;
mod last_good_ring;
pub mod node_count_guard;
pub mod notification;
pub mod operator;
pub mod orphans;
pub mod rollout_mode;
pub mod schedule;
pub mod snapshot;
pub mod taint;
#[cfg(test)]
mod testing;
pub mod wait_report;
