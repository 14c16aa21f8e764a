//! What can be read of the decisions' state.

use std::sync::Arc;

use secureoverlay_keyring::keyring::KeyRing;

use super::Agent;
use crate::{
    announcer::DrawCause,
    identity::LocalIdentity,
    peers::{PeerTable, Peers},
    plan::ReconcileTarget,
    proof::ProofTracker,
    reconcile::ReconcileReport,
    ring_cache::RingCache,
    teardown::Teardown,
};

impl<S> Agent<S> {
    /// A target is being worked at.
    #[must_use]
    pub const fn is_under_way(&self) -> bool {
        self.under_way.is_some()
    }

    /// The product is being removed from this node.
    #[must_use]
    pub const fn is_uninstalling(&self) -> bool {
        self.uninstalling
    }

    /// Nothing of ours is left in the kernel.
    #[must_use]
    pub fn is_removed(&self) -> bool {
        self.uninstalling && self.teardown.as_ref().is_some_and(Teardown::done)
    }

    /// Which ring counts, and what is wrong with the source.
    #[must_use]
    pub const fn ring_cache(&self) -> &RingCache {
        &self.ring_cache
    }

    /// The peers.
    #[must_use]
    pub const fn peers(&self) -> &Arc<Peers> {
        &self.peers
    }

    /// What the peers' objects say.
    #[must_use]
    pub const fn table(&self) -> &PeerTable {
        &self.table
    }

    /// The last run.
    #[must_use]
    pub const fn report(&self) -> Option<&ReconcileReport> {
        self.report.as_ref()
    }

    /// What the kernel was last brought to, or as near to it as was possible.
    #[must_use]
    pub const fn applied(&self) -> Option<&ReconcileTarget> {
        self.applied.as_ref()
    }

    /// Why this process drew another identity last.
    #[must_use]
    pub const fn last_draw(&self) -> Option<DrawCause> {
        self.last_draw
    }

    /// This node's identity.
    #[must_use]
    pub const fn identity(&self) -> &Arc<LocalIdentity> {
        &self.identity
    }

    /// The proofs.
    #[must_use]
    pub const fn proofs(&self) -> &ProofTracker {
        &self.proofs
    }

    /// The ring that is programmed.
    #[must_use]
    pub fn applied_ring(&self) -> Option<&KeyRing> {
        self.applied.as_ref().and_then(|target| target.input.as_ref()).map(|input| input.ring.as_ref())
    }
}
