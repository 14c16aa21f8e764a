//! Probes of whether ESP passes between this node and its peers: whom to ask when, what to answer, and the verdict.
//! No I/O, clock or randomness of its own.
//!
//! Probes are small UDP packets between the tunnel addresses, under policies that take them through ESP both ways
//! (`probe_plan.rs`): one that arrives has passed as ESP. A peer is reached when it answers, and unreachable when
//! it did not answer three times in a row, be it that ESP is dropped, or that no agent runs there.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use secureoverlay_common::uid::Uid;

/// How long an answer may take.
pub const TIMEOUT: Duration = Duration::from_secs(2);
/// How many pings in a row go without an answer before a peer is called unreachable.
pub const MISSES: u32 = 3;
/// Between two pings of a peer that does not answer.
pub const OFTEN: Duration = Duration::from_secs(5);
/// Between two pings of a peer that does.
pub const SELDOM: Duration = Duration::from_secs(60);
/// Between two pings of whomever: at most 100 a second.
pub const PACE: Duration = Duration::from_millis(10);

const MAGIC: [u8; 4] = *b"SOVP";
const VERSION: u8 = 1;
const PING: u8 = 1;
const PONG: u8 = 2;
/// Length of a packet: magic, version, kind, nonce.
pub const LEN: usize = 4 + 1 + 1 + NONCE_LEN;
const NONCE_LEN: usize = 16;

/// What ties an answer to its ping.
pub type Nonce = [u8; NONCE_LEN];
/// A packet as it is sent.
pub type Packet = [u8; LEN];

fn packet(kind: u8, nonce: &Nonce) -> Packet {
    let mut packet = [0; LEN];
    packet[..4].copy_from_slice(&MAGIC);
    packet[4..6].copy_from_slice(&[VERSION, kind]);
    packet[6..].copy_from_slice(nonce);
    packet
}

/// What this node probes, and from where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probes {
    /// This node's tunnel address.
    pub local: IpAddr,
    /// UDP port at both ends.
    pub port: u16,
    /// The peers whose policies for probes are in place: UIDs of their Nodes by tunnel address.
    pub peers: BTreeMap<IpAddr, Uid>,
}

/// Whether each peer that was judged was reached, by the UID of its Node.
pub type Verdicts = BTreeMap<Uid, bool>;

/// What becomes of a packet that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// It is to be answered with this.
    Answer(Packet),
    /// It was an answer.
    Taken,
    /// Not from a peer, malformed, or an answer to nothing.
    Ignored,
}

/// The probing of all peers.
#[derive(Debug)]
pub struct Probing {
    local: IpAddr,
    peers: BTreeMap<IpAddr, Peer>,
    /// Before this, nobody is pinged.
    paced: Option<Instant>,
}

#[derive(Debug)]
struct Peer {
    node: Uid,
    reached: Option<bool>,
    /// Pings in a row without an answer.
    misses: u32,
    /// The ping that is to be answered by `next`; without one `next` is when to ping.
    asked: Option<Nonce>,
    next: Instant,
}

impl Probing {
    /// Probes from the address `local`, of nobody yet.
    #[must_use]
    pub const fn new(local: IpAddr) -> Self {
        Self { local, peers: BTreeMap::new(), paced: None }
    }

    /// Takes who is to be probed from `now` on. Of those that were already, what is known stays.
    pub fn probe(&mut self, peers: &BTreeMap<IpAddr, Uid>, now: Instant) {
        self.peers.retain(|addr, peer| peers.get(addr) == Some(&peer.node));
        for (addr, node) in peers {
            let new = Peer { node: *node, reached: None, misses: 0, asked: None, next: now };
            self.peers.entry(*addr).or_insert(new);
        }
    }

    /// Gives up on answers that are late.
    pub fn expire(&mut self, now: Instant) {
        for peer in self.peers.values_mut().filter(|peer| peer.asked.is_some() && peer.next <= now) {
            peer.asked = None;
            peer.misses += 1;
            if peer.misses >= MISSES {
                peer.reached = Some(false);
                peer.next = now + (OFTEN - TIMEOUT);
            }
        }
    }

    /// The next peer to ping, if it is time for one.
    #[must_use]
    pub fn due(&self, now: Instant) -> Option<IpAddr> {
        if self.paced.is_some_and(|at| now < at) {
            return None;
        }
        let due = self.peers.iter().filter(|(_, peer)| peer.asked.is_none() && peer.next <= now);
        // Every node begins behind its own address: together they don't ping one after the other.
        due.min_by_key(|(addr, peer)| (peer.next, **addr < self.local, **addr)).map(|(addr, _)| *addr)
    }

    /// The ping to send to a peer that is [`Self::due`]; `nonce` is random.
    pub fn ping(&mut self, to: IpAddr, nonce: Nonce, now: Instant) -> Packet {
        self.paced = Some(now + PACE);
        if let Some(peer) = self.peers.get_mut(&to) {
            peer.asked = Some(nonce);
            peer.next = now + TIMEOUT;
        }
        packet(PING, &nonce)
    }

    /// Takes what came from the address `from`.
    pub fn receive(&mut self, from: IpAddr, bytes: &[u8], now: Instant) -> Received {
        let Some(peer) = self.peers.get_mut(&from) else { return Received::Ignored };
        let Some((head, nonce)) = bytes.split_first_chunk::<6>() else { return Received::Ignored };
        let Ok(nonce) = Nonce::try_from(nonce) else { return Received::Ignored };
        if head[..4] != MAGIC || head[4] != VERSION {
            return Received::Ignored;
        }
        match head[5] {
            PING => {
                // It gets through at least one way: worth trying the other.
                if peer.reached == Some(false) && peer.asked.is_none() {
                    peer.next = now;
                }
                Received::Answer(packet(PONG, &nonce))
            }
            PONG if peer.asked == Some(nonce) => {
                peer.asked = None;
                peer.misses = 0;
                peer.reached = Some(true);
                peer.next = now + SELDOM;
                Received::Taken
            }
            _ => Received::Ignored,
        }
    }

    /// When to look again: an answer is late then, or a peer is due.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        let times = self.peers.values().map(|peer| match peer.asked {
            Some(_) => peer.next,
            None => self.paced.map_or(peer.next, |at| at.max(peer.next)),
        });
        times.min()
    }

    /// Whether each peer was reached, as far as that is known.
    #[must_use]
    pub fn verdicts(&self) -> Verdicts {
        self.peers.values().filter_map(|peer| Some((peer.node, peer.reached?))).collect()
    }
}

#[cfg(test)]
mod tests;
