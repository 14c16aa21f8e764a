//! What this node acknowledges, and when.

use std::{collections::BTreeSet, sync::Arc};

use secureoverlay_keyring::{
    acknowledgement::{Acknowledgement, EnforcementBlocker},
    address::NodeAddress,
    peer::MAX_SENDERS,
    phase::Phase,
    uid::Uid,
};

use super::{Agent, IdentityStore};
use crate::{
    Time,
    ack::{AckFacts, acknowledge},
    diff::Finding,
    exclusion::Exclusion,
    plan::DesiredInput,
    ring_cache::RingProblem,
};

impl<S: IdentityStore> Agent<S> {
    pub(super) fn renew_ack(&mut self, now: Time) {
        self.ack_at = None;
        let (Some(report), Some(ack_id)) = (&self.report, self.ring_cache.ack_id()) else { return };
        let Some(node_uid) = self.announcer.node_uid() else { return };
        // Asked for by `poll_request`. Under MKE's manifest the answer carries nothing that a Node made anew changes.
        if self.announces && !self.announcer.may_answer(ack_id) {
            return;
        }
        // What the answer is about has to be programmed first.
        let applied = self.applied.as_ref().and_then(|target| target.input.as_ref());
        let current = self.ring_cache.ring().filter(|_| self.ring_cache.problem().is_none());
        let waits = current.is_some_and(|ring| {
            ring.phase() != Phase::Off && applied.is_none_or(|input| !Arc::ptr_eq(&input.ring, ring))
        });
        if waits {
            return;
        }
        if self.ack_is_new(ack_id) && now < self.settling.1 && !self.proofs.is_settled(now) {
            self.ack_at = Some(self.settling.1);
            return;
        }
        let mut blockers: BTreeSet<EnforcementBlocker> = self.blockers.values().flatten().cloned().collect();
        blockers.extend(self.own_blockers());
        let ring = applied.map(|input| input.ring.as_ref());
        let gateways = applied.map(unknown_gateways).unwrap_or_default();
        self.ack = Some(acknowledge(&AckFacts {
            ack_id,
            node_uid,
            instance: self.identity.instance(),
            ring,
            network: applied.map(|input| input.network.as_ref()),
            excluded: &self.excluded_names,
            report,
            proofs: &self.proofs,
            blockers: &blockers,
            highest: self.state.applied.map_or(0, |applied| applied.id),
            tunnel_mtu_too_large: self.settings.needs_room && self.tunnel_mtu_too_large,
            unknown_gateways: &gateways,
            no_peers: applied.is_some_and(|input| input.peers.by_name.is_empty()),
            now,
        }));
    }

    fn ack_is_new(&self, ack_id: Uid) -> bool {
        self.ack.as_ref().is_none_or(|ack| ack.ack_id != ack_id)
    }

    pub(super) fn own_blockers(&self) -> Vec<EnforcementBlocker> {
        let blocker = |reason: &str, detail: String| EnforcementBlocker { reason: reason.to_owned(), detail };
        let mut blockers = Vec::new();
        if let Some(problem @ RingProblem::OlderThanApplied(_)) = self.ring_cache.problem() {
            blockers.push(blocker(problem.reason(), problem.to_string()));
        }
        if self.announcer.has_name_conflict() {
            let text = "another machine announces itself under this node's name";
            blockers.push(blocker("NodeNameConflict", text.to_owned()));
        }
        if let Some((reason, text)) = self.announcer.problem() {
            blockers.push(blocker(reason, text));
        }
        let addresses = self.network.tunnel_addresses.len();
        if self.announces && addresses > MAX_SENDERS {
            let text = format!(
                "the tunnels of this node have {addresses} addresses, and {MAX_SENDERS} can be announced: give them fewer"
            );
            blockers.push(blocker("TooManyAddresses", text));
        }
        if let Some(problem) = &self.store_problem {
            blockers.push(blocker("StateDirectoryFull", problem.clone()));
        }
        if let Some(error) = self.report.iter().flat_map(|report| &report.failed).next() {
            blockers.push(blocker("KernelIncomplete", error.to_string()));
        }
        let findings = self.report.iter().flat_map(|report| &report.findings);
        for finding in findings.filter(|finding| !matches!(finding, Finding::Orphaned(_))) {
            blockers.push(blocker(finding.reason(), finding.to_string()));
        }
        blockers
    }

    /// What this node has to report, once it has looked at its kernel.
    #[must_use]
    pub const fn acknowledgement(&self) -> Option<&Acknowledgement> {
        self.ack.as_ref()
    }
}

/// Next hops of tunnel routes that neither a node announces nor the ring excludes.
fn unknown_gateways(input: &DesiredInput) -> BTreeSet<NodeAddress> {
    let Exclusion { accepts, sends } = &*input.exclusion;
    let mut known = input.peers.addresses();
    known.extend(accepts.addresses.iter().chain(&sends.addresses));
    input.network.unknown_gateways(&known)
}
