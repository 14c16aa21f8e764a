//! The proof of pairs: which SA is pinged when, what counts as an answer, and what follows from silence.
//!
//! A ping names the SA that it tests; its answer counts for that SA alone, and only if that SA carried the ping. Proofs
//! are in memory: what a restarted agent finds pinned, with its SA, counts as proven.

mod schedule;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use rand_core::TryCryptoRng;
use secureoverlay_keyring::{
    probe::{CANDIDATE_PORT, NONCE_LEN, PINNED_PORT, Probe, ProbeKind},
    uid::Uid,
};

use self::schedule::{Place, Queue, RETRIES, Rank, Schedule, place};
use crate::{
    Time,
    pair::{PairId, PairStates},
    plan::PlannedPair,
    reconcile::ReconcileReport,
    xfrm::SaId,
};

/// How long an answer may take before its ping counts as missed.
pub const MISSED: Duration = Duration::from_secs(2);
/// Between two re-checks of a pinned SA.
pub const RECHECK: Duration = Duration::from_secs(300);
/// Pings in a row without an answer before a pair counts as unanswered.
pub const MISSES: u32 = 3;
/// How long an unanswered pair holds up a rotation.
pub const GRACE: Duration = Duration::from_secs(600);
/// An answer counts as long as its nonce is remembered.
const NONCE_AGE: Duration = Duration::from_secs(10);
/// Pings of one node in a second at most.
pub const PINGS_PER_SECOND: u32 = 500;
/// Answers of one node in a second at most: a peer pings again what got none.
const ANSWERS_PER_SECOND: u32 = 500;
/// Bytes of the UDP header: behind the IP header, a ping is as long as a packet in the tunnel.
const UDP_HEADER: usize = 8;

/// A ping to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ping {
    /// From this address, to that one.
    pub pair: PairId,
    /// UDP port at both ends.
    pub port: u16,
    /// The SA that it tests.
    pub sa: SaId,
    /// What to send, not to be fragmented.
    pub payload: Vec<u8>,
}

/// What became of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// It is to be answered with this, from the same port to the same.
    Answer(Vec<u8>),
    /// It was an answer.
    Taken,
    /// Malformed, from no peer, or an answer to nothing.
    Ignored,
}

/// The proofs of all pairs.
#[derive(Debug, Default)]
pub struct ProofTracker {
    states: Arc<PairStates>,
    pairs: BTreeMap<PairId, Probing>,
    by_peer: BTreeMap<IpAddr, Vec<PairId>>,
    queue: Queue,
    nonces: BTreeMap<[u8; NONCE_LEN], Asked>,
    /// In the order in which they are forgotten.
    nonce_ages: VecDeque<(Time, [u8; NONCE_LEN])>,
    /// Pings that named these are answered.
    inbound: BTreeSet<(IpAddr, u32)>,
    /// Pinged no more than this often.
    next_ping: Time,
    /// Answers since then.
    answers: (Time, u32),
    large: Option<usize>,
    /// This node's own tunnel has no room for ESP: large pings would not even leave.
    no_room: bool,
    /// Peers that are alive and do not hear the SA that they are sent to with.
    dead: BTreeSet<String>,
    /// Peers and generations for which a new instance was asked because of that.
    redrawn: BTreeSet<(String, Uid)>,
    looked: bool,
}

#[derive(Debug)]
struct Probing {
    planned: PlannedPair,
    /// The pinned SA is in the kernel.
    there: bool,
    candidate: Schedule,
    recheck: Schedule,
    /// Small pings that were answered, where large ones are due.
    small: Option<u32>,
    /// Since when the pinned SA gives no answers.
    unanswered: Option<Time>,
    /// When SAs answered last.
    answered: BTreeMap<u32, Time>,
}

#[derive(Debug)]
struct Asked {
    pair: PairId,
    spi: u32,
    port: u16,
    large: bool,
    at: Time,
    /// What the SA had carried before.
    packets: u64,
}

impl Probing {
    /// The candidate has to pass by a large ping, and this node could not send one.
    fn waits_for_room(&self, no_room: bool) -> bool {
        no_room && self.small.is_some() && self.small == self.candidate.spi
    }

    fn places(&self, pair: PairId, no_room: bool) -> impl Iterator<Item = (Rank, Place)> {
        let rank = if self.there { Rank::Candidate } else { Rank::Unproven };
        let candidate = self.candidate.spi.filter(|_| !self.waits_for_room(no_room));
        let candidate = candidate.map(|_| (rank, place(self.candidate.due, pair)));
        let recheck = self.recheck.spi.map(|_| (Rank::Recheck, place(self.recheck.due, pair)));
        candidate.into_iter().chain(recheck)
    }
}

impl ProofTracker {
    /// What is known of all pairs; `None` before the kernel was looked at.
    #[must_use]
    pub fn states(&self) -> Option<Arc<PairStates>> {
        self.looked.then(|| self.states.clone())
    }

    /// From now on proofs need a ping as long as a packet of this many bytes in the tunnel to be answered as well.
    pub fn set_tunnel_mtu(&mut self, bytes: Option<u16>) {
        self.large = bytes.map(|bytes| usize::from(bytes).saturating_sub(UDP_HEADER));
    }

    /// Takes whether this node's own tunnel has room for ESP. Without it large pings are due, and not sent.
    pub fn set_room(&mut self, room: bool) {
        if std::mem::replace(&mut self.no_room, !room) == room {
            self.queue_all();
        }
    }

    fn queue_all(&mut self) {
        self.queue.clear_pings();
        for (pair, probing) in &self.pairs {
            probing.places(*pair, self.no_room).for_each(|(rank, place)| self.queue.insert(rank, place));
        }
    }

    /// Changes when a pair is pinged.
    fn change<T>(&mut self, pair: PairId, change: impl FnOnce(&mut Probing) -> T) -> Option<T> {
        let probing = self.pairs.get_mut(&pair)?;
        probing.places(pair, self.no_room).for_each(|(rank, place)| self.queue.remove(rank, &place));
        let changed = change(probing);
        probing.places(pair, self.no_room).for_each(|(rank, place)| self.queue.insert(rank, place));
        Some(changed)
    }

    /// Takes what a run found and did. Returns whether what is known of the pairs is another thing than before.
    pub fn handle_report(&mut self, report: &ReconcileReport, now: Time) -> bool {
        let before = self.states.clone();
        let states = Arc::make_mut(&mut self.states);
        let there = |pair: &PairId, spi: u32| report.sas.contains(&SaId { dst: pair.dst.ip(), spi });
        states.retain(|pair, _| report.pins.contains_key(pair) || report.pairs.contains_key(pair));
        for pair in report.pairs.keys().chain(report.pins.keys()) {
            let state = states.entry(*pair).or_default();
            let pin = report.pins.get(pair).copied();
            if state.pin != pin && state.yields {
                // Another claim has the address now: the former one has to answer anew.
                state.yields = false;
                state.pin.take().map(|former| state.proven.remove(&former));
            }
            state.pin = pin;
            let offered = report.pairs.get(pair).map(|planned| &planned.offered);
            state.proven.retain(|spi| {
                there(pair, *spi)
                    && (state.pin == Some(*spi) || offered.is_some_and(|offered| offered.contains(spi)))
            });
            if let Some(pin) = state.pin.filter(|pin| !self.looked && there(pair, *pin)) {
                state.proven.insert(pin);
            }
        }
        self.looked = true;
        self.inbound.clone_from(&report.inbound);
        self.pairs.retain(|pair, _| report.probed.contains(pair));
        for pair in &report.probed {
            let planned = report.pairs[pair].clone();
            let spread = spread(pair);
            let probing = self.pairs.entry(*pair).or_insert_with(|| Probing {
                planned: planned.clone(),
                there: false,
                candidate: Schedule::IDLE,
                recheck: Schedule::IDLE,
                small: None,
                unanswered: None,
                answered: BTreeMap::new(),
            });
            let pin = report.pins.get(pair).copied();
            probing.there = pin.is_some_and(|pin| there(pair, pin));
            probing.candidate.set(planned.plan.candidate.filter(|spi| there(pair, *spi)), now);
            let former = probing.recheck.spi;
            probing.recheck.set(pin.filter(|_| probing.there), now + spread);
            if former != probing.recheck.spi {
                probing.unanswered = None;
            }
            if planned.claims > probing.planned.claims {
                // Another node may have the address by now.
                probing.recheck.due = now;
            }
            if report.lost_inbound.contains(&pair.dst.ip()) {
                (probing.recheck.due, probing.candidate.due) = (now, now);
            }
            let pinned = probing.recheck.spi;
            probing.answered.retain(|spi, _| planned.offered.contains(spi) || pinned == Some(*spi));
            probing.planned = planned;
        }
        self.by_peer.clear();
        for pair in self.pairs.keys() {
            self.by_peer.entry(pair.dst.ip()).or_default().push(*pair);
        }
        self.queue_all();
        *before != *self.states
    }

    /// The next ping, if it is time for one. `packets` says what an SA has carried so far.
    ///
    /// # Errors
    /// The random number generator's.
    pub fn poll_ping<R: TryCryptoRng>(
        &mut self,
        now: Time,
        rng: &mut R,
        packets: impl FnOnce(SaId) -> Option<u64>,
    ) -> Result<Option<Ping>, R::Error> {
        if now < self.next_ping {
            return Ok(None);
        }
        let Some((rank, pair)) = self.queue.due(now) else { return Ok(None) };
        let mut nonce = [0; NONCE_LEN];
        rng.try_fill_bytes(&mut nonce)?;
        let drawn = f64::from(rng.try_next_u32()?) / f64::from(u32::MAX);
        let large = self.large;
        let sent = self.change(pair, |probing| {
            // Where another node claims the address, an answer is wanted soon.
            let steady = rank == Rank::Recheck && probing.planned.claims < 2;
            let small = probing.small;
            let schedule = if rank == Rank::Recheck { &mut probing.recheck } else { &mut probing.candidate };
            schedule.sent(now, steady, drawn);
            let large = large.filter(|_| rank != Rank::Recheck && small == schedule.spi);
            (schedule.spi, large, schedule.deadline())
        });
        let Some((Some(spi), large, deadline)) = sent else { return Ok(None) };
        if let Some(deadline) = deadline {
            self.queue.add_deadline(deadline, pair);
        }
        self.next_ping = now + Duration::from_secs(1) / PINGS_PER_SECOND;
        while self.nonce_ages.front().is_some_and(|(at, _)| *at + NONCE_AGE <= now) {
            self.nonce_ages.pop_front().map(|(_, nonce)| self.nonces.remove(&nonce));
        }
        let port = if rank == Rank::Recheck { PINNED_PORT } else { CANDIDATE_PORT };
        let sa = SaId { dst: pair.dst.ip(), spi };
        // Without the SA there is nothing to prove.
        let Some(packets) = packets(sa) else { return Ok(None) };
        self.nonces.insert(nonce, Asked { pair, spi, port, large: large.is_some(), at: now, packets });
        self.nonce_ages.push_back((now, nonce));
        let probe = Probe { kind: ProbeKind::Ping, spi, nonce };
        Ok(Some(Ping { pair, port, sa, payload: probe.to_padded(large.unwrap_or(0)) }))
    }

    /// When [`Self::poll_ping`] or [`Self::handle_timeout`] has something to do.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        let ping = self.queue.next_ping().map(|due| due.max(self.next_ping));
        ping.into_iter().chain(self.queue.next_deadline()).min()
    }

    /// Takes a packet that came through ESP. `packets` says what an SA has carried so far. Returns what it was, and
    /// whether something was proven.
    pub fn handle_packet(
        &mut self,
        from: IpAddr,
        port: u16,
        payload: &[u8],
        now: Time,
        packets: impl FnOnce(SaId) -> Option<u64>,
    ) -> (Received, bool) {
        let Some(probe) = Probe::parse(payload) else { return (Received::Ignored, false) };
        match probe.kind {
            ProbeKind::Ping if self.inbound.contains(&(from, probe.spi)) => {
                self.hear(from, now);
                self.hurry(from, now);
                if self.answers.0 + Duration::from_secs(1) <= now {
                    self.answers = (now, 0);
                }
                self.answers.1 += 1;
                let answer = probe.answer().filter(|_| self.answers.1 <= ANSWERS_PER_SECOND);
                let answer = answer.map(|answer| answer.to_bytes().to_vec());
                (answer.map_or(Received::Ignored, Received::Answer), false)
            }
            ProbeKind::Ping => (Received::Ignored, false),
            ProbeKind::Answer => self.handle_answer(from, port, &probe, now, packets),
        }
    }

    fn hear(&mut self, from: IpAddr, now: Time) {
        for pair in self.by_peer.get(&from).into_iter().flatten() {
            if let Some(probing) = self.pairs.get_mut(pair) {
                probing.recheck.hear(now);
            }
        }
    }

    /// A ping gets through one way: the other way is worth a try at once.
    fn hurry(&mut self, from: IpAddr, now: Time) {
        for pair in self.by_peer.get(&from).cloned().unwrap_or_default() {
            self.change(pair, |probing| {
                let recent = probing.candidate.sent.is_some_and(|sent| sent + RETRIES[0] > now);
                if probing.candidate.spi.is_some() && !recent {
                    probing.candidate.due = now;
                }
            });
        }
    }

    fn handle_answer(
        &mut self,
        from: IpAddr,
        port: u16,
        probe: &Probe,
        now: Time,
        packets: impl FnOnce(SaId) -> Option<u64>,
    ) -> (Received, bool) {
        let ignored = (Received::Ignored, false);
        let valid = |asked: &Asked| {
            (asked.pair.dst.ip(), asked.spi, asked.port) == (from, probe.spi, port)
                && asked.at + NONCE_AGE > now
        };
        if !self.nonces.get(&probe.nonce).is_some_and(valid) {
            return ignored;
        }
        let Some(Asked { pair, spi, large, packets: before, .. }) = self.nonces.remove(&probe.nonce) else {
            return ignored;
        };
        self.hear(from, now);
        // The ping took another way than this SA.
        if packets(SaId { dst: from, spi }).is_none_or(|after| after <= before) {
            return ignored;
        }
        let needs_large = self.large.is_some() && !large;
        let answered = self.change(pair, |probing| {
            probing.answered.insert(spi, now);
            let recheck = probing.recheck.spi == Some(spi);
            if recheck {
                probing.recheck.answered(now + RECHECK);
                probing.unanswered = None;
            }
            let candidate = probing.candidate.spi == Some(spi);
            if candidate {
                probing.candidate.answered(now);
                probing.small = needs_large.then_some(spi);
                probing.candidate.spi = probing.candidate.spi.filter(|_| needs_large);
            }
            (recheck, candidate && !needs_large)
        });
        let Some((recheck, proven)) = answered else { return ignored };
        if recheck {
            let states = Arc::make_mut(&mut self.states);
            states.entry(pair).and_modify(|state| state.yields = false);
        }
        let proven = proven && Arc::make_mut(&mut self.states).entry(pair).or_default().proven.insert(spi);
        (Received::Taken, proven)
    }

    /// Notes pings that were missed. Returns whether what is known of the pairs has changed.
    pub fn handle_timeout(&mut self, now: Time) -> bool {
        let mut changed = false;
        while let Some(pair) = self.queue.pop_deadline(now) {
            changed |= self.note_missed(pair, now);
        }
        changed
    }

    fn note_missed(&mut self, pair: PairId, now: Time) -> bool {
        let Some(probing) = self.pairs.get_mut(&pair) else { return false };
        let mut changed = false;
        let shared = probing.planned.claims > 1;
        let yields = self.states.get(&pair).is_some_and(|state| state.yields);
        if probing.recheck.missed(now) {
            probing.unanswered.get_or_insert(now);
            if shared && !yields {
                let state = Arc::make_mut(&mut self.states).entry(pair).or_default();
                (state.yields, state.turn) = (true, state.turn.wrapping_add(1));
                changed = true;
            }
        }
        if probing.recheck.is_deaf(now) && !shared {
            self.dead.insert(probing.planned.peer.clone());
        }
        // The pinned claim is the one that is tried, as long as it answers.
        let held = probing.there
            && probing.recheck.spi.is_some_and(|spi| probing.planned.offered.contains(&spi))
            && !(yields || changed);
        if shared && !held && probing.candidate.missed(now) {
            let state = Arc::make_mut(&mut self.states).entry(pair).or_default();
            state.turn = state.turn.wrapping_add(1);
            changed = true;
            self.change(pair, |probing| probing.candidate = Schedule::IDLE);
        }
        changed
    }

    /// A pinned SA that its peer does not hear although the peer's probes arrive: this node must draw a new instance.
    /// Said once for each peer and generation.
    pub fn poll_dead(&mut self, generation: Uid) -> Option<String> {
        while let Some(peer) = self.dead.pop_first() {
            self.redrawn.retain(|(_, of)| *of == generation);
            if self.redrawn.insert((peer.clone(), generation)) {
                return Some(peer);
            }
        }
        None
    }

    /// Since when the pinned SA of a pair gives no answers.
    #[must_use]
    pub fn unanswered(&self, pair: &PairId) -> Option<Time> {
        self.pairs.get(pair).and_then(|probing| probing.unanswered)
    }

    /// When the pinned SA of a pair was pinged last, as long as that ping has no answer.
    #[must_use]
    pub fn awaited(&self, pair: &PairId) -> Option<Time> {
        self.pairs.get(pair).and_then(|probing| probing.recheck.sent)
    }

    /// An operator wants to know whether the pinned SA of a pair answers: it is pinged at once, unless it just was.
    pub fn recheck(&mut self, pair: PairId, now: Time) {
        self.change(pair, |probing| {
            let recent = probing.recheck.sent.is_some_and(|sent| sent + MISSED > now);
            if probing.recheck.spi.is_some() && !recent {
                probing.recheck.due = now;
            }
        });
    }

    /// When an SA of a pair answered last.
    #[must_use]
    pub fn answered(&self, pair: &PairId, spi: u32) -> Option<Time> {
        self.pairs.get(pair)?.answered.get(&spi).copied()
    }

    /// Pairs whose pinned SA gives no answers, and since when.
    pub fn all_unanswered(&self) -> impl Iterator<Item = (&str, Time)> {
        let pairs = self.pairs.values();
        pairs.filter_map(|probing| Some((probing.planned.peer.as_str(), probing.unanswered?)))
    }

    /// Whether every candidate was answered, or has been tried often enough for a first word about it.
    #[must_use]
    pub fn is_settled(&self, now: Time) -> bool {
        self.pairs.values().all(|probing| {
            probing.candidate.spi.is_none()
                || probing.candidate.missed(now)
                || probing.waits_for_room(self.no_room)
        })
    }

    /// Peers whose large pings get no answer although small ones do: the way to them is too narrow.
    pub fn too_narrow(&self) -> impl Iterator<Item = &str> {
        let narrow = self.pairs.values().filter(|probing| {
            !self.no_room
                && probing.small.is_some()
                && probing.small == probing.candidate.spi
                && probing.candidate.misses >= MISSES
        });
        narrow.map(|probing| probing.planned.peer.as_str())
    }
}

/// Spreads re-checks over their interval.
fn spread(pair: &PairId) -> Duration {
    let bytes = pair.dst.addr16();
    let hash = bytes.iter().fold(0_u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(u32::from(*byte)));
    RECHECK / 2 + RECHECK / 1000 * (hash % 500)
}

#[cfg(test)]
mod tests;
