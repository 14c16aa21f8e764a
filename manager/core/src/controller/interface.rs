//! What goes between the controller and its shell.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use secureoverlay_keyring::{keyring::KeyRing, settings::Settings};
use secureoverlay_rotation::{Action, Wait};

use crate::rollout_mode::RolloutMode;

/// What time it is. To be read after what is handed in with it: the controller must not believe that it saw something
/// before it was there.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// For the ring.
    pub wall: Timestamp,
    /// For waiting.
    pub monotonic: Instant,
}

/// What the operator wants of this process.
#[derive(Clone, Debug)]
pub struct ControllerOptions {
    /// The settings that are wanted; `None`: those of the ClusterEncryption, else those of the ring.
    pub settings: Option<Settings>,
    /// Whether operators ask by ClusterEncryption and KeyRotations; otherwise by an annotation of the Secret.
    pub objects: bool,
    /// What a rotation waits for.
    pub mode: RolloutMode,
    /// Time within which every node has read a new ring and programmed it, where time decides.
    pub delay: Duration,
    /// How long a rotation waits for nodes that are not Ready, where nodes acknowledge.
    pub limit: Duration,
    /// How often the Secret is read though nothing is known to have changed.
    pub poll_interval: Duration,
    /// Whether nodes have a start-up taint to be removed.
    pub startup_taint: bool,
}

/// What the shell must do next.
#[derive(Debug)]
pub enum Request {
    /// Take what the watches of ClusterEncryption and KeyRotations have brought: [`super::Controller::handle_objects`].
    ReadObjects,
    /// Read the Secret: [`super::Controller::handle_secret`].
    ReadSecret,
    /// Look at the agents' DaemonSet: [`super::Controller::handle_daemon_set`].
    ReadDaemonSet,
    /// Find out whether Nodes, EncryptionPeers and NodeEncryptions may be listed: [`super::Controller::handle_access`].
    CheckAccess,
    /// Make the ClusterEncryption, with the defaults: [`super::Controller::handle_encryption_created`].
    CreateEncryption,
    /// Make a KeyRotation of this name for a rotation that is due: [`super::Controller::handle_rotation_created`].
    CreateRotation {
        /// The name.
        name: String,
    },
    /// Take what the watches have brought: [`super::Controller::handle_cluster`].
    ReadCache,
    /// List Nodes, EncryptionPeers and NodeEncryptions anew, past every cache: [`super::Controller::handle_cluster`].
    ListCluster,
    /// Write: [`super::Controller::handle_written`].
    Write(Box<Write>),
}

/// One write of the ring into the Secret. Everything else in the Secret stays as it was read.
#[derive(Debug)]
pub struct Write {
    /// Only over this version of the Secret.
    pub resource_version: Option<String>,
    /// The new ring.
    pub ring: KeyRing,
    /// Whether the annotation that asks for a rotation is to be taken off.
    pub answers: bool,
    /// What the write does.
    pub action: Action,
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteResult {
    /// The ring is in the Secret.
    Written,
    /// Another writer was faster; nothing was changed.
    Conflict,
}

/// How an evaluation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing is to be done before the deadline.
    Waiting {
        /// How long the decision itself has time, whatever the poll interval.
        wake_in: Duration,
        /// What for.
        reason: String,
        /// The step that nodes have not done yet.
        wait: Option<Wait>,
    },
    /// The ring was written.
    Written,
    /// Another writer was faster.
    Conflict,
}
