//! What to bring the kernel to, when, and what follows from how that went.

use std::{sync::Arc, time::Duration};

use secureoverlay_keyring::{keyring::Enforcement, phase::Phase};

use super::{ADDRESS_GRACE, Agent, IdentityStore, PROOF_PAUSE, RETRY_FIRST, earliest};
use crate::{
    Time,
    announcer::DrawCause,
    identity::LocalIdentity,
    plan::{DesiredInput, ReconcileTarget},
    reconcile::ReconcileReport,
    teardown::{Teardown, TeardownPhase},
};

/// The longest pause between attempts.
const RETRY_LAST: Duration = Duration::from_secs(30);

impl<S: IdentityStore> Agent<S> {
    /// A target for the kernel, if it is time for one. The caller answers with [`Self::handle_reconciled`] before it
    /// gets another.
    pub fn poll_target(&mut self, now: Time) -> Option<ReconcileTarget> {
        if self.under_way.is_some() {
            return None;
        }
        let look = self.look_at.is_some_and(|at| at <= now);
        if !look && self.wake_target().is_none_or(|at| at > now) {
            return None;
        }
        self.changed_at = None;
        let target = self.target(now);
        if look {
            self.look_at = target.is_none().then(|| now + self.settings.resync);
        }
        let target = target.filter(|target| look || self.reached.as_ref() != Some(target))?;
        self.under_way = Some(target.clone());
        Some(target)
    }

    fn target(&mut self, now: Time) -> Option<ReconcileTarget> {
        self.expire_addresses(now);
        self.refresh_peers(now);
        let exclusion = self.exclusions.at(now);
        if exclusion != *self.exclusion {
            self.exclusion = Arc::new(exclusion);
        }
        let ring = self.ring_cache.ring().cloned();
        let off = ring.as_ref().is_some_and(|ring| ring.phase() == Phase::Off);
        if self.uninstalling || off {
            let teardown = self.begin_teardown();
            teardown.handle_timeout(now);
            let phase = teardown.phase();
            let input = if phase == TeardownPhase::Removed { None } else { self.on.clone() };
            return Some(ReconcileTarget { teardown: phase, input });
        }
        self.teardown = None;
        if !self.table.is_listed() || !self.network_known {
            return None;
        }
        let announced = match &*self.identity {
            LocalIdentity::Announced(identity) => self.announcer.is_announced(identity, &self.network),
            LocalIdentity::BootId(_) => true,
        };
        let input = DesiredInput {
            ring: ring?,
            identity: self.identity.clone(),
            network: self.network.clone(),
            peers: self.peers.clone(),
            exclusion: self.exclusion.clone(),
            pairs: self.proofs.states(),
            announced,
        };
        self.on = Some(input.clone());
        Some(ReconcileTarget { teardown: TeardownPhase::Inactive, input: Some(input) })
    }

    pub(super) fn begin_teardown(&mut self) -> &mut Teardown {
        let enforcing = match &self.on {
            Some(on) if on.ring.enforcement == Enforcement::Enforcing => true,
            Some(on) if !on.ring.phase().is_bootstrapping() => false,
            // An agent that has programmed nothing can't know what its predecessor left.
            _ => true,
        };
        let skew = self.settings.skew;
        self.teardown.get_or_insert_with(|| Teardown::new(enforcing, skew))
    }

    /// Takes how the attempt at the last target went; `None` where the kernel could not be read.
    pub fn handle_reconciled(&mut self, report: Option<ReconcileReport>, now: Time) {
        let Some(target) = self.under_way.take() else { return };
        let complete = report.as_ref().is_some_and(ReconcileReport::is_complete);
        if let Some(teardown) = &mut self.teardown {
            teardown.handle_applied(target.teardown, complete, now);
        }
        if let Some(report) = report {
            if self.report.is_none() {
                let known = self.peers.addresses();
                for pair in report.pins.keys().filter(|pair| !known.contains(&pair.dst)) {
                    self.table.handle_pinned(pair.dst, now);
                }
                self.take_peers(now);
            }
            if self.proofs.handle_report(&report, now) {
                // The first look says what is pinned, and what is proven may be pinned at once.
                self.changed_at = earliest(self.changed_at, Some(now + PROOF_PAUSE));
            }
            if report.needs_new_instance {
                self.needs_draw(DrawCause::LostOutbound);
            }
            if std::mem::take(&mut self.drawn_at_start) && report.found > 0 {
                self.lost_identity = Some(report.found);
            }
            self.gone.clone_from(&report.gone);
            self.applied = Some(target.clone());
            self.report = Some(report);
            self.renew_ack(now);
        }
        let again = if complete {
            self.retry = RETRY_FIRST;
            self.settings.resync
        } else {
            let pause = self.retry;
            self.retry = (2 * self.retry).min(RETRY_LAST);
            pause
        };
        self.look_at = earliest(self.look_at, Some(now + again));
        self.reached = complete.then_some(target);
    }

    pub(super) fn wake_target(&self) -> Option<Time> {
        let teardown = self.teardown.as_ref().and_then(Teardown::poll_timeout);
        let former = self.former_addresses.values().map(|since| *since + ADDRESS_GRACE).min();
        [self.changed_at, self.table.poll_timeout(), self.exclusions.poll_timeout(), teardown, former]
            .into_iter()
            .flatten()
            .min()
    }
}
