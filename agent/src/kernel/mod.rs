//! The threads that talk to the kernel, and what they and the main loop tell each other.
//!
//! [`worker`] changes SAs and policies and looks at the network; [`listeners`] hear of changes made by other programs;
//! [`machine`] is what all of that goes through.

pub mod listeners;
pub mod machine;
pub mod worker;

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use secureoverlay_agent_core::{
    coverage::PodNetworks, network::LocalNetwork, plan::ReconcileTarget, reconcile::ReconcileReport,
};

use crate::network::{mtu, surroundings::Surroundings};

/// What the thread is asked to do.
pub enum Job {
    /// Bring the kernel to this.
    Reconcile(Box<ReconcileTarget>),
    /// Look at the network: addresses or routes have changed.
    LookAtNetwork,
    /// Peers announce these networks of their pods now. Under MKE's manifest it never comes.
    PodNetworks(Arc<PodNetworks>),
    /// Put back the policies that another program flushed, where the flag still says so: one of several jobs does it.
    PutPoliciesBack(Arc<AtomicBool>),
}

/// What the thread tells.
pub enum News {
    /// An attempt at a target is over.
    Attempt(Box<ReconcileAttempt>),
    /// This node's network, where it is another than before, or why it can't be read.
    Network(Box<Result<LocalNetwork, String>>),
    /// The MTUs of this node, or why they and what is around them can't be read.
    Mtu(Result<mtu::Facts, String>),
    /// What lets traffic past the policies.
    Surroundings(Box<Surroundings>),
    /// There are more or fewer SAs or policies than after the last attempt.
    Counts,
    /// Another program flushed the policies: how many were put back, and how long that took.
    PoliciesFlushed(usize, Duration),
}

/// How an attempt went.
pub struct ReconcileAttempt {
    /// The run, or why there was none.
    pub run: Result<ReconcileReport, String>,
    /// How long it took.
    pub took: Duration,
}
