//! What is known of the pairs with one peer, for an operator who asks.

use std::{collections::BTreeSet, net::IpAddr};

use secureoverlay_keyring::keyring::Role;

use super::Agent;
use crate::{Time, pair::PairId, plan::PlannedPair, reconcile::ReconcileReport, xfrm::SaId};

/// What is sent with to one address of the peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathOut {
    /// This node's address, and the peer's.
    pub pair: PairId,
    /// Pod traffic goes in the clear, because one of both nodes is excluded.
    pub excluded: bool,
    /// What the kernel's policy pins.
    pub pin: Option<SaId>,
    /// The pinned SA is in the kernel.
    pub there: bool,
    /// Its key generation, where the ring still has it.
    pub generation: Option<u64>,
    /// When the pinned SA answered last.
    pub answered: Option<Time>,
    /// When it was pinged last, as long as that ping has no answer.
    pub awaited: Option<Time>,
    /// What is to be proven next.
    pub candidate: Option<u32>,
}

/// An SA from the peer: the peer's address, and the SA.
pub type PathIn = (IpAddr, SaId);

impl<S> Agent<S> {
    /// The pairs with a peer, and the SAs from it; `None` before the kernel was looked at.
    #[must_use]
    pub fn paths(&self, peer: &str) -> Option<(Vec<PathOut>, Vec<PathIn>)> {
        let report = self.report.as_ref()?;
        let outbound = pairs(report, peer).map(|(pair, planned)| self.path(report, pair, planned)).collect();
        let entries = self.peers.by_name.get(peer).into_iter().flat_map(|peer| &peer.entries);
        let addresses: BTreeSet<IpAddr> = entries.map(|entry| entry.address.ip()).collect();
        let own = |sa: &&SaId| self.network.tunnel_addresses.iter().any(|address| address.ip() == sa.dst);
        let from = report.inbound.iter().filter(|(src, _)| addresses.contains(src));
        let inbound = from.flat_map(|(src, spi)| {
            let toward = report.sas.iter().filter(own).filter(move |sa| sa.spi == *spi);
            toward.map(move |sa| (*src, *sa))
        });
        Some((outbound, inbound.collect()))
    }

    fn path(&self, report: &ReconcileReport, pair: PairId, planned: &PlannedPair) -> PathOut {
        let input = self.applied.as_ref().and_then(|target| target.input.as_ref());
        let pin = report.pins.get(&pair).map(|spi| SaId { dst: pair.dst.ip(), spi: *spi });
        let ring = input.map(|input| input.ring.as_ref());
        let generation = pin.zip(ring).and_then(|(pin, ring)| {
            let role = match pin.spi {
                spi if planned.plan.offer.active == Some(spi) => Role::Active,
                spi if planned.plan.offer.staged == Some(spi) => Role::Staged,
                _ => Role::Retiring,
            };
            ring.generations.iter().find(|generation| generation.role == role).map(|found| found.id)
        });
        PathOut {
            pair,
            excluded: input.is_some_and(|input| input.exclusion.sends_plaintext(pair.dst)),
            pin,
            there: pin.is_some_and(|pin| report.sas.contains(&pin)),
            generation,
            answered: pin.and_then(|pin| self.proofs.answered(&pair, pin.spi)),
            awaited: self.proofs.awaited(&pair),
            candidate: planned.plan.candidate,
        }
    }

    /// Pings the pinned SAs of a peer at once.
    pub fn recheck(&mut self, peer: &str, now: Time) {
        let report = self.report.as_ref();
        let pairs: Vec<PairId> =
            report.into_iter().flat_map(|report| pairs(report, peer)).map(|(pair, _)| pair).collect();
        pairs.into_iter().for_each(|pair| self.proofs.recheck(pair, now));
    }
}

fn pairs<'r>(report: &'r ReconcileReport, peer: &str) -> impl Iterator<Item = (PairId, &'r PlannedPair)> {
    report
        .pairs
        .iter()
        .filter(move |(_, planned)| planned.peer == peer)
        .map(|(pair, planned)| (*pair, planned))
}
