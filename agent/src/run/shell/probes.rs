//! Pings and their answers.

use anyhow::{Context, Result};
use rand::rngs::SysRng;
use secureoverlay_agent_core::{
    agent::{Event, IdentityStore},
    proof::Received,
    xfrm::SaId,
};
use secureoverlay_agent_kernel::XfrmSocket;
use secureoverlay_keyring::acknowledgement::EnforcementBlocker;
use tokio::time::Instant;

use super::{AGAIN, Shell};
use crate::{clock::now, network::probe_sockets::Packet};

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
        let received = self
            .agent
            .handle_packet(packet.from, packet.port, &packet.payload, now(), |sa| packets(counters, sa));
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

/// How many packets an SA has carried.
fn packets(counters: &mut Option<XfrmSocket>, sa: SaId) -> Option<u64> {
    carried(counters, sa).map(|(packets, _)| packets)
}

/// How many packets and bytes an SA has carried.
pub(super) fn carried(counters: &mut Option<XfrmSocket>, sa: SaId) -> Option<(u64, u64)> {
    if counters.is_none() {
        *counters = XfrmSocket::open().ok();
    }
    let read = counters.as_mut()?.carried(sa);
    if read.is_err() {
        *counters = None;
    }
    read.ok().flatten()
}
