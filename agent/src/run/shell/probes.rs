//! Pings and their answers.

use anyhow::{Context, Result};
use rand::rngs::SysRng;
use secureoverlay_agent_core::{
    agent::{Event, IdentityStore},
    proof::Received,
    xfrm::SaId,
};
use secureoverlay_keyring::acknowledgement::EnforcementBlocker;
use tokio::time::Instant;

use super::{AGAIN, Shell};
use crate::{clock::now, kernel::machine::Counters, network::probe_sockets::Packet};

/// Pings and answers that one turn of the loop sends at most.
const PINGS: usize = 16;

impl<S: IdentityStore> Shell<S> {
    pub(super) fn ping(&mut self) -> Result<()> {
        for _ in 0..PINGS {
            let counters = &mut self.counters;
            let ping = self.agent.poll_ping(now(), &mut SysRng, |sa| packets(counters, sa));
            match ping.context("drawing random numbers")? {
                Some(ping) => self.sockets.ping(&ping),
                None => return Ok(()),
            }
        }
        Ok(())
    }

    pub(super) fn receive(&mut self, packet: &Packet) {
        let counters = &mut self.counters;
        let counted = |sa| packets(counters, sa);
        let received = self.agent.handle_packet(packet.from, packet.port, &packet.payload, now(), counted);
        match received {
            Received::Answer(payload) => self.sockets.answer(packet, &payload),
            Received::Taken => {}
            Received::Ignored => self.reporter.probe_ignored(),
        }
    }

    pub(super) async fn open_sockets(&mut self) {
        if self.sockets_due.is_none_or(|due| Instant::now() < due) {
            return;
        }
        let addresses = self.network().map(|network| network.tunnel_addresses).unwrap_or_default();
        let opened = self.sockets.listen_at(&addresses).await;
        let blocker = |detail: String| EnforcementBlocker { reason: "ProbePortTaken".to_owned(), detail };
        self.sockets_due = opened.is_err().then(|| Instant::now() + AGAIN);
        let blockers = opened.err().map(blocker).into_iter().collect();
        self.agent.handle_event(Event::Blockers("probes", blockers), now());
    }
}

fn packets(counters: &mut Counters, sa: SaId) -> Option<u64> {
    counters(sa).map(|(packets, _)| packets)
}
