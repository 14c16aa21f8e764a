//! What is known of the pairs with one peer, with the kernel's counters.

use std::net::IpAddr;

use secureoverlay_agent_core::{
    Time,
    agent::{IdentityStore, PathOut},
    xfrm::SaId,
};
use secureoverlay_keyring::inspection::{OutboundPath, PathState, PeerPaths, SaCounters};

use super::Shell;
use crate::{clock::now, io::queries::PathQuery};

impl<S: IdentityStore> Shell<S> {
    /// Answers, and pings the peer, so that the next answer tells whether it is reached.
    pub(super) fn answer_paths(&mut self, query: PathQuery) {
        let PathQuery { peer, answer } = query;
        let now = now();
        self.agent.recheck(&peer, now);
        let looked = self.agent.paths(&peer);
        let announced = self.agent.peers().by_name.contains_key(&peer);
        let node = self.agent.table().name().to_owned();
        let mtu = self.reporter.mtu_room();
        let mut paths =
            PeerPaths { node, peer, announced, looked: looked.is_some(), mtu, ..PeerPaths::default() };
        let (outbound, inbound) = looked.unwrap_or_default();
        paths.outbound = outbound.into_iter().map(|path| self.outbound(&path, now)).collect();
        paths.inbound = inbound.into_iter().filter_map(|(source, sa)| self.counted(source, sa)).collect();
        // The connection may have ended.
        drop(answer.send(paths));
    }

    fn outbound(&mut self, path: &PathOut, now: Time) -> OutboundPath {
        let PathOut { pair, .. } = path;
        let sa = path.pin.and_then(|pin| self.counted(pair.src.ip(), pin));
        let state = match (path.excluded, path.pin, &sa) {
            (true, ..) => PathState::Excluded,
            (_, None, _) => PathState::Open,
            (_, _, None) => PathState::Held,
            (_, _, Some(_)) => PathState::Pinned,
        };
        let ago = |at: Time| now.saturating_sub(at).as_secs();
        OutboundPath {
            state,
            source: pair.src.ip(),
            destination: pair.dst.ip(),
            sa,
            generation: path.generation,
            proven_seconds_ago: path.answered.map(ago),
            awaited_seconds: path.awaited.map(ago),
            candidate: path.candidate,
        }
    }

    fn counted(&mut self, source: IpAddr, sa: SaId) -> Option<SaCounters> {
        let (packets, bytes) = (self.counters)(sa)?;
        Some(SaCounters { source, destination: sa.dst, spi: sa.spi, packets, bytes })
    }
}
