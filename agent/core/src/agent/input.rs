//! What goes into the decisions: settings, what a process begins with, events.

use std::{collections::BTreeSet, time::Duration};

use secureoverlay_keyring::{acknowledgement::EnforcementBlocker, uid::Uid};

use crate::{
    announcer::WriteResult,
    exclusion::Excluded,
    identity::{Identity, LocalIdentity},
    network::LocalNetwork,
    peers::{NodeLookup, PeerObject},
    persisted::PersistedState,
    ring_cache::{Installation, RingInput},
};

/// Times and choices that an operator may set.
#[derive(Clone, Copy, Debug)]
pub struct AgentSettings {
    /// How long changes are collected before the kernel is changed.
    pub debounce: Duration,
    /// How often the kernel is looked at though nothing is known to have changed.
    pub resync: Duration,
    /// By how much nodes may differ in noticing a teardown.
    pub skew: Duration,
    /// Whether a tunnel without room for ESP blocks enforcing, and a ping of its size has to pass.
    pub needs_room: bool,
}

/// Something that happened.
pub enum Event {
    /// The source of the ring shows this.
    Ring(RingInput),
    /// A full list of the objects that announce nodes.
    PeerList(Vec<PeerObject>),
    /// One came or changed.
    PeerApplied(PeerObject),
    /// One was deleted.
    PeerDeleted(String),
    /// What a GET of this node's Node said.
    OwnNode(NodeLookup),
    /// The ring was read by quorum, or was not; what it shows has come as another event.
    RingRead(bool),
    /// What the GET of a peer's Node said.
    PeerNode(String, NodeLookup),
    /// What became of the write of this node's object.
    Announced(WriteResult),
    /// What is excluded by labels, under MKE's manifest.
    Excluded(Excluded),
    /// What is known of our DaemonSet.
    Installation(Installation),
    /// The product is being removed.
    Uninstall,
    /// What the kernel says of this node's network.
    Network(LocalNetwork),
    /// Reasons of one kind why this node cannot guarantee encryption; replaces those of before.
    Blockers(&'static str, BTreeSet<EnforcementBlocker>),
    /// Whether the tunnel's MTU leaves no room for ESP.
    TunnelMtuTooLarge(bool),
    /// Another program changed policies, or an SA reached a limit.
    Kernel,
    /// There are more or fewer SAs or policies than there should be.
    KernelLost,
    /// Another program flushed the policies, and they were put back.
    PoliciesFlushed,
    /// The virtual machine was copied or put back.
    NewVmGeneration,
}

/// Where identity and state are kept.
pub trait IdentityStore {
    /// Keeps the identity.
    ///
    /// # Errors
    /// What to say of it, and what helps.
    fn save_identity(&mut self, identity: &Identity) -> Result<(), String>;

    /// Keeps the state.
    ///
    /// # Errors
    /// What to say of it, and what helps.
    fn save_state(&mut self, state: &PersistedState) -> Result<(), String>;
}

impl IdentityStore for crate::journal::NoStore {
    fn save_identity(&mut self, _: &Identity) -> Result<(), String> {
        Ok(())
    }

    fn save_state(&mut self, _: &PersistedState) -> Result<(), String> {
        Ok(())
    }
}

/// What a process begins with.
#[derive(Clone, Debug)]
pub struct Start {
    /// This node's name.
    pub name: String,
    /// Its identity, which is persisted already where it is announced.
    pub identity: LocalIdentity,
    /// What the process before remembered.
    pub state: PersistedState,
    /// Generations that left ring and kernel in this boot, by the journal.
    pub gone: BTreeSet<Uid>,
    /// The identity was drawn by this process: there was none, or the journal did not vouch for it.
    pub drawn: bool,
}
