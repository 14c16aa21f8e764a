//! What must hold after every step, and what must come to pass once faults are over.

use std::time::Duration;

use secureoverlay_agent_core::{
    proof::GRACE,
    xfrm::{Direction, PolicyId, SaId, Traffic},
};
use secureoverlay_keyring::{
    acknowledgement::Acknowledgement,
    derivation::Derivation,
    keyring::{Enforcement, KeyRing},
    phase::Phase as RingPhase,
};

use crate::{
    Time,
    kernel::{Egress, KernelEvent},
    world::{Event, Phase, World},
};

/// How long nothing may be written once nothing happens.
const IDLE: Duration = Duration::from_secs(1500);
/// What still may be written after the last step: what no longer matters goes after the grace.
const SETTLED: Duration = Duration::from_secs(1500);

impl World {
    /// After a step: what kernels told, and what must hold where something changed.
    pub fn check(&mut self) {
        let events = std::mem::take(&mut self.shared.borrow_mut().events);
        for event in events {
            match event {
                KernelEvent::Wrong(invariant, text) => self.violate(invariant, text),
                KernelEvent::Deleted { at, id, key } => self.check_deleted(at, id, key),
                KernelEvent::Pinned { at, policy, id } => self.check_pinned(at, &policy, id),
                KernelEvent::Opened { at, policy } => self.check_opened(at, &policy),
                KernelEvent::Held { at, policy, id } => self.check_held(at, &policy, id),
            }
        }
        for at in std::mem::take(&mut self.dirty) {
            self.check_enforcing(at);
        }
    }

    /// Why a machine's traffic need not arrive: it was left behind, or it is none any more.
    fn left_behind(&self, at: usize) -> bool {
        let machine = &self.machines[at];
        let longer = |since: Option<Time>| since.is_some_and(|since| since + self.scenario.limit <= self.now);
        !machine.live
            || !self.api.store.nodes.contains_key(&machine.name)
            || !self.api.store.peers.contains_key(&machine.name)
            || longer(machine.not_ready)
            || longer(machine.excluded)
            || self.now < machine.booted
    }

    /// Whether a sender knows that a pair gives no answers, and has known it for so long that no step waits for it.
    fn unanswered(&self, from: usize, policy: &PolicyId) -> bool {
        let machine = &self.machines[from];
        let (Ok(src), Ok(dst)) = (policy.src.addr.try_into(), policy.dst.addr.try_into()) else {
            return true;
        };
        let pair = secureoverlay_agent_core::pair::PairId { src, dst };
        let uptime = self.now.saturating_sub(machine.booted);
        let since = machine.process.as_ref().and_then(|process| process.agent.proofs().unanswered(&pair));
        since.is_some_and(|since| since + GRACE <= uptime)
    }

    /// An inbound SA goes only when nothing that counts sends with it.
    fn check_deleted(&mut self, at: usize, id: SaId, key: u64) {
        let owner = self.network.owners.get(&id.dst).copied();
        if self.skipped || self.left_behind(at) || owner != Some(at) {
            return;
        }
        let sends = (0..self.machines.len()).find(|&from| {
            let tables = self.machines[from].tables.borrow();
            let pin = tables.pins().find(|(_, pinned)| *pinned == id).filter(|_| {
                let own = self.machines[from].ip();
                tables.sas.get(&id).is_some_and(|sa| sa.key == key && sa.actual.src == own)
            });
            pin.is_some_and(|(policy, _)| !self.left_behind(from) && !self.unanswered(from, &policy))
        });
        if let Some(from) = sends {
            self.violate(
                2,
                format!("machine {} removed {id}, with which machine {} sends", at + 1, from + 1),
            );
        }
    }

    /// What was pinned goes back to the clear only where that is asked for, or where the peer is gone.
    fn check_opened(&mut self, at: usize, policy: &PolicyId) {
        let machine = &self.machines[at];
        let excluded = policy.dst.addr.try_into().is_ok_and(|peer| machine.exclusion.sends_plaintext(peer));
        let to = self.network.owners.get(&policy.dst.addr).copied();
        // Where its object was spoiled, a restarted agent does not know the peer, and keeps what it finds for the grace.
        let young = machine.process.as_ref().is_some_and(|process| process.started + GRACE > self.now);
        let listed = |to: usize| {
            let peer = self.api.store.peers.get(&self.machines[to].name);
            peer.is_some_and(|peer| {
                peer.spec.senders.iter().any(|sender| sender.address == self.machines[to].address)
            })
        };
        let there = to.is_some_and(|to| !self.left_behind(to) && (young || listed(to)));
        if machine.sends && !excluded && there && policy.src.addr == machine.ip() {
            self.violate(3, format!("machine {} sends in the clear to {} again", at + 1, policy.dst.addr));
        }
        // An exclusion waits for nothing but the skew.
        if !excluded {
            self.check_accepted(at, policy);
        }
    }

    /// What is sent in the clear on purpose is let in there.
    fn check_accepted(&mut self, at: usize, policy: &PolicyId) {
        let own = self.machines[at].ip();
        let Some(to) = self.network.owners.get(&policy.dst.addr).copied() else { return };
        if policy.src.addr != own || self.left_behind(at) || self.left_behind(to) || self.skipped {
            return;
        }
        let refuses = !self.machines[to].tables.borrow().clear(Direction::In, policy.dst.addr, own);
        if refuses {
            self.violate(
                2,
                format!("machine {} sends in the clear to machine {}, which refuses that", at + 1, to + 1),
            );
        }
    }

    /// Traffic is held back only where the pair did not work.
    fn check_held(&mut self, at: usize, policy: &PolicyId, id: SaId) {
        let to = self.network.owners.get(&policy.dst.addr).copied();
        let excused = self.skipped
            || self.left_behind(at)
            || self.unanswered(at, policy)
            || policy.src.addr != self.machines[at].ip()
            || to.is_none_or(|to| self.left_behind(to) || !self.knows(at, to));
        if !excused {
            self.violate(2, format!("machine {} removed {id}, with which it sends", at + 1));
        }
    }

    /// Whether a machine is still the one that another one pins to: it has not booted since.
    fn knows(&self, at: usize, to: usize) -> bool {
        self.machines[to].booted <= self.machines[at].booted || self.machines[to].booted == Time::ZERO
    }

    /// What is sent with can be received.
    fn check_pinned(&mut self, at: usize, policy: &PolicyId, id: SaId) {
        let Some(to) = self.network.owners.get(&policy.dst.addr).copied() else { return };
        let key = self.machines[at].tables.borrow().sas.get(&id).map(|sa| sa.key);
        let receiver = &self.machines[to];
        let received = {
            let tables = receiver.tables.borrow();
            let there = tables.sas.get(&id).is_some_and(|sa| Some(sa.key) == key);
            // An address that moved: what was answered there before was true.
            let elsewhere = self.machines.iter().any(|machine| {
                machine
                    .tables
                    .borrow()
                    .sas
                    .get(&id)
                    .is_some_and(|sa| Some(sa.key) == key && machine.ip() != policy.src.addr)
            });
            there || tables.lost.contains(&id) || elsewhere
        };
        if key.is_none() || received || self.left_behind(at) || self.left_behind(to) || self.skipped {
            return;
        }
        self.violate(
            1,
            format!("machine {} sends with {id}, which machine {} does not have", at + 1, to + 1),
        );
    }

    /// While enforcing, nothing leaves or enters in the clear.
    fn check_enforcing(&mut self, at: usize) {
        let machine = &self.machines[at];
        if !machine.enforces || machine.flushed || !machine.live || self.now < machine.booted {
            return;
        }
        let exclusion = machine.exclusion.clone();
        let own = machine.ip();
        let tables = machine.tables.borrow();
        let unknown = std::net::IpAddr::from([203, 0, 113, 9]);
        let peers = self.machines.iter().filter(|peer| peer.live).map(super::machine::Machine::ip);
        let open = peers.chain([unknown]).filter(|peer| *peer != own).find_map(|peer| {
            let address = peer.try_into().ok()?;
            let out = !exclusion.sends_plaintext(address) && tables.clear(Direction::Out, own, peer);
            let accepts = exclusion.accepts_plaintext(address) || exclusion.sends_plaintext(address);
            let into = !accepts && tables.clear(Direction::In, own, peer);
            (out || into).then_some((peer, out))
        });
        drop(tables);
        if let Some((peer, out)) = open {
            let way = if out { "to" } else { "from" };
            self.violate(3, format!("machine {} enforces, and lets plaintext pass {way} {peer}", at + 1));
        }
    }

    /// What is acknowledged is true.
    pub fn check_ack(&mut self, at: usize, ack: &Acknowledgement) {
        let machine = &self.machines[at];
        // An acknowledgement takes a moment; what others took away meanwhile is another matter.
        let Some(process) = machine.process.as_ref().filter(|_| !machine.flushed) else { return };
        // One that answers an earlier ackId speaks of an earlier ring.
        let current = process.agent.ring_cache().ack_id() == Some(ack.ack_id);
        if !current || process.agent.acknowledgement() != Some(ack) || process.under_way.is_some() {
            return;
        }
        let Some(input) = process.agent.applied().and_then(|target| target.input.as_ref()) else { return };
        let Some(ring) = process.agent.applied_ring() else { return };
        let tables = machine.tables.borrow();
        let peers = &input.peers;
        let mut wrong = None;
        let included = !machine.exclusion.accepts.local && !machine.exclusion.sends.local;
        if ack.enforcement == Enforcement::Enforcing
            && included
            && ack.enforcement_blockers.is_empty()
            && tables.clear(Direction::In, machine.ip(), [203, 0, 113, 9].into())
        {
            wrong = Some("says that it enforces, and lets plaintext in".to_owned());
        }
        for (number, peer) in self.machines.iter().enumerate() {
            let Some(known) = peers.by_name.get(&peer.name).filter(|_| number != at && peer.live) else {
                continue;
            };
            let other = peer.tables.borrow();
            let generations = self.generations.borrow();
            // Whatever the peer may send with, by an entry that this node knows.
            for generation in ring.generations.iter().filter(|found| ack.receivable.contains(&found.uid)) {
                let derivation = Derivation::new(generation);
                let there = known.entries.iter().filter(|entry| entry.address != machine.address);
                for entry in there {
                    let path = entry.path_to(input.identity.entry(machine.address).endpoint());
                    let id = SaId { dst: machine.ip(), spi: derivation.spi(&path) };
                    let sent = other.sas.get(&id).filter(|sa| sa.actual.src == entry.address.ip());
                    if !tables.sas.contains_key(&id) || sent.is_some_and(|sa| sa.key != tables.sas[&id].key) {
                        wrong = Some(format!("says that it receives, and has not {id} of {}", peer.name));
                    }
                }
            }
            let excluded =
                ring.excluded.nodes.contains(&peer.name) || ring.excluded.nodes.contains(&machine.name);
            if let Some(active) = ack.active_generation.filter(|_| ack.all_pairs_proven && !excluded) {
                let first = known.entries.first().map(|entry| entry.address);
                if first != Some(peer.address) {
                    continue;
                }
                let pin = tables.pin(machine.ip(), peer.ip());
                let sends = pin.and_then(|id| tables.sas.get(&id)).and_then(|sa| generations.get(&sa.key));
                if sends != Some(&active) {
                    wrong =
                        Some(format!("says that all pairs are proven, and sends to {} otherwise", peer.name));
                }
            }
        }
        drop(tables);
        if let Some(wrong) = wrong {
            self.violate(7, format!("machine {} {wrong}", at + 1));
        }
    }

    /// Pods of two machines talk.
    pub fn traffic(&mut self) {
        self.after(Time::from_secs(5), Event::Traffic);
        let count = self.machines.len() as u64;
        let (from, to) = (self.rng.below(count) as usize, self.rng.below(count) as usize);
        let usable = |at: usize| self.machines[at].live && self.now >= self.machines[at].booted;
        if from == to || !usable(from) || !usable(to) {
            return;
        }
        let (src, dst) = (self.machines[from].ip(), self.machines[to].ip());
        let egress = self.machines[from].tables.borrow_mut().egress(src, dst, Traffic::Tunnel);
        let passes = match egress {
            Egress::Esp(..) => self.network.passes(from, to, false),
            Egress::Clear => true,
            Egress::Dropped => false,
        };
        let arrives =
            passes && self.machines[to].tables.borrow_mut().ingress(src, dst, Traffic::Tunnel, egress);
        let kind = match (egress, arrives) {
            (Egress::Esp(..), true) => "encrypted",
            (Egress::Clear, true) => "in the clear",
            (Egress::Clear, false) => "refused",
            (Egress::Esp(..), false) => "lost",
            (Egress::Dropped, _) => "held back",
        };
        *self.tally.packets.entry(kind).or_default() += 1;
    }

    /// Once faults are over: what is still missing.
    fn missing(&self) -> Option<String> {
        let ring = self.ring()?;
        let RingPhase::Steady { active } = ring.phase() else {
            return Some(format!("the ring is {}", ring.phase().name()));
        };
        if ring.enforcement != Enforcement::Enforcing {
            return Some("the ring does not enforce".to_owned());
        }
        let generations = self.generations.borrow();
        for (at, machine) in self.machines.iter().enumerate().filter(|(_, machine)| machine.live) {
            let tables = machine.tables.borrow();
            for peer in self.machines.iter().filter(|peer| peer.live && peer.address != machine.address) {
                let sends = tables.pin(machine.ip(), peer.ip()).and_then(|id| {
                    let sa = tables.sas.get(&id)?;
                    let there = peer.tables.borrow().sas.get(&id).is_some_and(|other| other.key == sa.key);
                    there.then_some(sa.key)
                });
                if sends.and_then(|key| generations.get(&key)) != Some(&active.uid) {
                    return Some(format!(
                        "machine {} does not send to {} with {}",
                        at + 1,
                        peer.name,
                        active.id
                    ));
                }
            }
            if tables.clear(Direction::In, machine.ip(), [203, 0, 113, 9].into()) {
                return Some(format!("machine {} does not enforce", at + 1));
            }
        }
        None
    }

    /// The ring in the store.
    #[must_use]
    pub fn ring(&self) -> Option<KeyRing> {
        let document = self.api.store.secret.as_ref()?.document.as_ref()?;
        KeyRing::parse(document).ok()
    }

    /// What has to come to pass.
    pub fn check_progress(&mut self) {
        let missing = match self.ring() {
            None => Some("there is no ring".to_owned()),
            Some(_) => self.missing(),
        };
        let now = self.now;
        match (self.phase, missing) {
            (Phase::Converging(until) | Phase::Rotating(until), Some(missing)) if now > until => {
                let phase = if matches!(self.phase, Phase::Rotating(_)) {
                    "a rotation is not done"
                } else {
                    "no convergence"
                };
                let says = self.manager_says();
                return self.violate(6, format!("{phase}: {missing}; the manager: {says}"));
            }
            (Phase::Converging(_), None) => {
                self.tell(|| "everything has converged; a rotation is asked for".to_owned());
                self.ask_for_rotation();
                self.wake_managers();
                self.active = self.ring().and_then(|ring| ring.active().map(|active| active.uid));
                self.phase = Phase::Rotating(now + self.scenario.limit + Duration::from_secs(3600));
            }
            (Phase::Rotating(_), None)
                if self.active != self.ring().and_then(|ring| ring.active().map(|active| active.uid)) =>
            {
                self.tell(|| "the rotation is done".to_owned());
                let (settled, idle) =
                    if self.machines.len() > 24 { (SETTLED / 2, IDLE / 4) } else { (SETTLED, IDLE) };
                self.phase = Phase::Idle(now + settled, now + settled + idle);
                self.writes = u64::MAX;
            }
            (Phase::Rotating(until), None) if now > until => {
                return self.violate(6, "no rotation began".to_owned());
            }
            (Phase::Idle(from, until), missing) => {
                if let Some(missing) = missing {
                    return self.violate(6, format!("it did not stay so: {missing}"));
                }
                if now >= from && self.writes == u64::MAX {
                    // A restart costs nothing either.
                    let number = usize::try_from(self.rng.below(self.machines.len() as u64)).unwrap_or(0);
                    self.replace_agent(number, Duration::from_secs(2));
                    self.tell(|| "nothing may be written from here on".to_owned());
                    self.writes = self.api.writes;
                    self.kinds.clone_from(&self.api.kinds);
                } else if now > until {
                    let all = self.api.kinds.iter();
                    let more = |(kind, count): (&&'static str, &u64)| {
                        let before = self.kinds.get(*kind).copied().unwrap_or_default();
                        (*count > before).then(|| format!("{} {kind}", count - before))
                    };
                    let more: Vec<String> = all.filter_map(more).collect();
                    if self.api.writes != self.writes {
                        return self.violate(8, format!("an idle world writes: {}", more.join(", ")));
                    }
                    self.phase = Phase::Done;
                    return;
                }
            }
            _ => {}
        }
        self.after(Duration::from_secs(10), Event::Check);
    }
}
