//! This node's identity and its announcement: when to draw anew, what to ask the API for and to write there.

use std::sync::Arc;

use rand_core::TryCryptoRng;
use secureoverlay_keyring::phase::Phase;

use super::{Agent, IdentityStore};
use crate::{
    Time,
    announcer::{DrawCause, Facts, Request, WriteResult, collides, draw},
    entry::Entry,
    identity::LocalIdentity,
};

impl<S: IdentityStore> Agent<S> {
    pub(super) fn judge_objects(&mut self, now: Time) {
        let LocalIdentity::Announced(identity) = &*self.identity.clone() else { return };
        let mut state = self.state.clone();
        let facts = Facts {
            identity,
            network: &self.network,
            table: &self.table,
            peers: &self.peers,
            ring: self.ring_cache.ring().map(Arc::as_ref),
            ack_id: self.ring_cache.ack_id(),
            sas: self.report.as_ref().map(|report| &report.sas),
        };
        let cause = self.announcer.judge(&facts, &mut state, now);
        if state != self.state {
            self.state = state;
            self.save_state();
        }
        if let Some(cause) = cause {
            self.needs_draw(cause);
        }
    }

    /// An SPI belongs to the sender that has it; of two, the owner of the younger object draws anew.
    pub(super) fn check_spis<'e>(&mut self, others: impl Iterator<Item = &'e Entry>) {
        let (LocalIdentity::Announced(identity), Some(ring)) = (&*self.identity, self.ring_cache.ring())
        else {
            return;
        };
        let clashing: Vec<&Entry> = others
            .filter(|other| {
                collides(ring, identity.instance, &self.network.tunnel_addresses, std::iter::once(*other))
            })
            .collect();
        let own = self.table.own().map(|own| (own.created, own.uid));
        let yields = clashing.iter().any(|other| {
            let holders = self.table.listing(|entry| entry == *other);
            holders.map(|(uid, created)| (created, uid)).any(|holder| own.is_none_or(|own| holder < own))
        });
        if yields {
            self.needs_draw(DrawCause::SpiCollision);
        }
    }

    pub(super) fn needs_draw(&mut self, cause: DrawCause) {
        if self.announces {
            self.draw_causes.insert(cause);
        }
    }

    pub(super) fn take_announced(&mut self, result: WriteResult, now: Time) {
        let Some(sent) = self.sent.take() else { return };
        let before = self.state.clone();
        self.announcer.handle_written(&result, &sent, &mut self.state, now);
        if self.state != before {
            self.save_state();
        }
        if let WriteResult::Written(object) = result {
            self.table.handle_applied(object, now);
        }
    }

    /// What to ask the API for, or to write there.
    ///
    /// # Errors
    /// The random number generator's.
    pub fn poll_request<R: TryCryptoRng>(
        &mut self,
        now: Time,
        rng: &mut R,
    ) -> Result<Option<Request>, R::Error> {
        if !self.announces || self.uninstalling || !self.table.is_listed() {
            return Ok(None);
        }
        self.draw(now, rng)?;
        let identity = self.identity.clone();
        let LocalIdentity::Announced(identity) = &*identity else { return Ok(None) };
        let facts = Facts {
            identity,
            network: &self.network,
            table: &self.table,
            peers: &self.peers,
            ring: self.ring_cache.ring().map(Arc::as_ref),
            ack_id: self.ring_cache.ack_id(),
            sas: self.report.as_ref().map(|report| &report.sas),
        };
        // Inbound SAs come before the announcement of what they are for.
        if !self.receives() {
            return Ok(None);
        }
        let request = self.announcer.poll_request(&facts, now, rng)?;
        if let Some(Request::Write(announcement)) = &request {
            self.sent = Some(announcement.spec.clone());
            // Its own write must not be taken for another machine's.
            if self.state.announced.remember(&announcement.spec.senders) {
                self.save_state();
            }
        }
        Ok(request)
    }

    /// Whether the last run programmed this identity at these addresses, as far as there is a ring.
    pub(super) fn receives(&self) -> bool {
        let encrypting = self.ring_cache.ring().is_some_and(|ring| !matches!(ring.phase(), Phase::Off));
        !encrypting
            || self.applied.as_ref().and_then(|target| target.input.as_ref()).is_some_and(|input| {
                *input.identity == *self.identity
                    && input.network.tunnel_addresses == self.network.tunnel_addresses
            })
    }

    fn draw<R: TryCryptoRng>(&mut self, now: Time, rng: &mut R) -> Result<(), R::Error> {
        let Some(cause) = self.draw_causes.first().copied() else { return Ok(()) };
        if self.state.draws.next() > now {
            return Ok(());
        }
        let LocalIdentity::Announced(identity) = &*self.identity.clone() else { return Ok(()) };
        let facts = Facts {
            identity,
            network: &self.network,
            table: &self.table,
            peers: &self.peers,
            ring: self.ring_cache.ring().map(Arc::as_ref),
            ack_id: self.ring_cache.ack_id(),
            sas: None,
        };
        let drawn = draw(identity, cause, &facts, rng)?;
        self.state.draws.note(now);
        self.save_state();
        // Persisted before anything is derived from it.
        match self.store.save_identity(&drawn) {
            Ok(()) => {
                self.draw_causes.clear();
                self.last_draw = Some(cause);
                self.identity = Arc::new(LocalIdentity::Announced(drawn));
                self.changed_at = Some(now);
            }
            Err(problem) => self.store_problem = Some(problem),
        }
        Ok(())
    }
}
