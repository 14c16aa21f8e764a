//! What must hold after every step (DESIGN, invariants 1 to 5), and in the end (6).

use std::time::Duration;

use secureoverlay_agent::{
    diff::GRACE,
    plan::Stage,
    xfrm::{Direction, SaId},
};
use secureoverlay_common::{
    node::NodeFacts,
    phase::Phase,
    ring::{Enforcement, Generation, Ring},
    rotation::Incarnations,
    uid::Uid,
    wire::Derivation,
};

use crate::{
    Time,
    machine::{Known, Machine},
    manager::Manager,
    world::{Break, Broken, World},
};

/// A node that joins is new to its peers for ten seconds; a manager that was away has noticed it a little later.
const UNNOTICED: Duration = Duration::from_secs(20);
/// For so long packets may be under way.
const FLIGHT: Duration = Duration::from_secs(4);

impl World {
    /// Checks what this step may have changed.
    pub fn check(&mut self) {
        let working = |manager: &Manager| manager.alive && manager.stopped_until <= self.now;
        let managed = self.managers.iter().any(working);
        let (since, before) = self.unmanaged;
        self.unmanaged = (if managed && before { since } else { self.now }, managed);
        for at in std::mem::take(&mut self.dirty) {
            self.check_kernel(at);
            self.check_plaintext(at);
            for peer in 0..self.machines.len() {
                if peer != at {
                    self.check_pair(at, peer);
                    self.check_pair(peer, at);
                }
            }
        }
    }

    fn check_kernel(&mut self, at: usize) {
        let tables = self.machines[at].tables.clone();
        let mut tables = tables.borrow_mut();
        let now = self.now;
        tables.switched.retain(|(_, since)| now <= *since + FLIGHT);
        for (invariant, text) in std::mem::take(&mut tables.wrongs) {
            self.violate(invariant, format!("node-{}: {text}", at + 1));
        }
        for sa in std::mem::take(&mut tables.deleted) {
            let Some(sender) = self.machines.iter().position(|other| other.live && other.addr == sa.src)
            else {
                continue;
            };
            let recent = |(id, since): &(SaId, Time)| *id == sa.id && now <= *since + FLIGHT;
            let under_way = self.machines[sender].tables.borrow().switched.iter().any(recent);
            if sender != at
                && under_way
                && !self.replaced(sender, at, sa.id)
                && !self.excused(sender, at, sa.id)
            {
                let text = format!("node-{} dropped {} while its packets were under way", at + 1, sa.id);
                self.violate(1, text);
            }
        }
    }

    /// Invariant 3: once it insists, nothing passes in the clear between it and a node that takes part.
    fn check_plaintext(&mut self, at: usize) {
        let machine = &self.machines[at];
        // Whoever takes policies away lets plaintext through until they are back.
        if !machine.live || !machine.insists || machine.flushed {
            return;
        }
        // Whom it is to take in again may be let through until the kernel has followed.
        let excluded = |addr| machine.let_through.contains(addr);
        let peers = self.machines.iter().filter(|peer| peer.addr != machine.addr && !excluded(&peer.addr));
        let tables = machine.tables.borrow();
        let mut wrong = None;
        for peer in peers {
            for direction in [Direction::In, Direction::Out] {
                if tables.clear(direction, peer.addr) {
                    wrong = Some(format!(
                        "{} insists, and {direction:?} with {} passes in the clear",
                        machine.name, peer.name
                    ));
                }
            }
        }
        drop(tables);
        if let Some(text) = wrong {
            self.violate(3, text);
        }
    }

    /// Whether an SA of a generation that is still there went: for an incarnation or an identity of its sender that is
    /// no more.
    fn replaced(&self, from: usize, to: usize, id: SaId) -> bool {
        let (sender, receiver) = (&self.machines[from], &self.machines[to]);
        let program = receiver.attempted.as_ref().and_then(|known| known.program.as_ref());
        let (Some(program), Some(uid)) = (program, sender.uid) else { return true };
        program
            .ring
            .generations
            .iter()
            .any(|found| incarnation(found, self.incarnations, sender, &uid, id).is_some())
    }

    /// Invariant 1: what `from` sends to `to` with can be decrypted there.
    fn check_pair(&mut self, from: usize, to: usize) {
        let (sender, receiver) = (&self.machines[from], &self.machines[to]);
        if !sender.live || !receiver.live {
            return;
        }
        let met = (sender.end(), receiver.end());
        let text = {
            let (sending, receiving) = (sender.tables.borrow(), receiver.tables.borrow());
            let Some(id) = sending.pinned(receiver.addr) else { return };
            let Some(out) = sending.states.get(&id) else { return };
            let found = receiving.states.get(&id);
            if found.is_some_and(|found| found.src == sender.addr && found.cipher == out.cipher) {
                drop((sending, receiving));
                // Not with keys of who they were before.
                if knows(sender, receiver) && knows(receiver, sender) {
                    self.understood.insert((from, to), (id, met));
                }
                return;
            }
            if self.excused(from, to, id) {
                drop((sending, receiving));
                self.understood.remove(&(from, to));
                return;
            }
            let has = if found.is_some() { "has another key for" } else { "does not have" };
            format!("{} sends to {} with {id}, which that {has}", sender.name, receiver.name)
        };
        self.violate(1, text);
    }

    /// Whether two nodes can't be expected to understand each other.
    fn excused(&self, from: usize, to: usize, id: SaId) -> bool {
        let (sender, receiver) = (&self.machines[from], &self.machines[to]);
        let troubled = |machine: &Machine| {
            let node = self.objects.nodes.get(&machine.name);
            machine.flushed || machine.left_behind.is_some() || node.is_none_or(|node| node.excluded)
        };
        let (Some(sent), Some(received)) = (both(sender), both(receiver)) else { return true };
        if troubled(sender) || troubled(receiver) || !knows(sender, receiver) || !knows(receiver, sender) {
            return true;
        }
        // One that was never done since it came need not receive what was in use by then.
        let late = || {
            let active = sent.iter().filter_map(|known| known.program.as_ref()?.ring.active());
            let versions = active.filter_map(|active| Some(self.activated.get(&active.uid)?.1));
            versions.min() > receiver.first
        };
        if sender.applied.is_none() || (receiver.applied.is_none() && !late()) {
            return true;
        }
        if refused(sender, id) {
            return true;
        }
        let rings: Vec<&Ring> =
            sent.iter().chain(&received).filter_map(|known| Some(&*known.program.as_ref()?.ring)).collect();
        let (Some(from_uid), Some(to_uid)) = (sender.uid, receiver.uid) else { return true };
        let of = rings
            .iter()
            .flat_map(|ring| &ring.generations)
            .find_map(|found| Some((found, incarnation(found, self.incarnations, sender, &from_uid, id)?)));
        // The sender goes on with what its kernel holds.
        let unexplained = |of: Option<Uid>| {
            let own = rings[..sent.len()].iter().flat_map(|ring| &ring.generations);
            own.filter(|generation| Some(generation.uid) == of).count() == 0
        };
        if let Some((generation, sent_under)) = of {
            let pair = |map: &Incarnations| {
                let of = |uid| map.get(uid).copied().unwrap_or(0);
                (of(&from_uid), of(&to_uid))
            };
            let mut known = rings.iter().filter_map(|ring| {
                let found = ring.generations.iter().find(|found| found.uid == generation.uid)?;
                Some(pair(&found.incarnations))
            });
            let now = known.next().unwrap_or_default();
            // A new incarnation that one of them has not seen, or has not moved to.
            if now.0 != sent_under || known.any(|other| other != now) {
                return true;
            }
            // One that is asked for.
            if sender.burnt.contains(&generation.uid) || receiver.burnt.contains(&generation.uid) {
                return true;
            }
            // A receiver that says that it can't is not waited for by a sender that came after the activation.
            let came_after = self
                .activated
                .get(&generation.uid)
                .is_some_and(|(_, version)| sender.first >= Some(*version));
            if came_after && !receiver.receives.contains(&generation.uid) {
                return true;
            }
            // One that takes part again after the activation is waited for by nobody.
            let activated = self.activated.get(&generation.uid).map(|(_, version)| *version);
            if receiver.included > activated && !receiver.receives.contains(&generation.uid) {
                return true;
            }
            // For one that joins while there is no manager, nobody finds out whether its agent works.
            if self.now < self.unmanaged.0 + UNNOTICED && !receiver.receives.contains(&generation.uid) {
                return true;
            }
            // One that came after the activation is waited for by nobody.
            let since = self.activated.get(&generation.uid).is_some_and(|(before, _)| pair(before) != now);
            let claims = receiver.claims.get(&generation.uid).map(pair);
            let unseen = since && unexplained(Some(generation.uid));
            if unseen || (claims != Some(now) && (since || claims.is_some())) {
                return true;
            }
        }
        // Keys of a generation that no ring has any more can't be made for a node that came or rebooted since.
        let strangers = self.understood.get(&(from, to)) != Some(&(id, (sender.end(), receiver.end())));
        let of = of.map(|(generation, _)| generation.uid);
        let held = unexplained(of);
        (strangers && held) || self.broken(&sent, receiver, &received, strangers, held)
    }

    /// Whether one of two nodes has seen a break in the ring's history and the other has not.
    fn broken(
        &self,
        sent: &[&Known; 2],
        receiver: &Machine,
        received: &[&Known; 2],
        strangers: bool,
        held: bool,
    ) -> bool {
        self.breaks.iter().any(|(version, Broken { kind, .. })| {
            let newer = |known: &[&Known; 2]| known.iter().any(|known| known.version >= *version);
            let older = |known: &[&Known; 2]| known.iter().any(|known| known.version < *version);
            let behind = older(received) && newer(sent);
            let ahead = newer(received) && older(sent);
            let over = strangers
                || receiver.sends_since.get(version).is_some_and(|since| self.now >= *since + GRACE);
            match kind {
                // Somebody else says what to send with, before anybody receives it. And a generation that only kernels
                // held comes back, with other keys for a Node that was made anew since.
                Break::Restored => behind || (ahead && (over || held)),
                Break::Lost => ahead && over,
                Break::Reset => behind || ahead,
            }
        })
    }

    /// Invariant 1 for plaintext: when a manager insists, everybody encrypts to everybody, those aside that may be left
    /// behind. Who sends in the clear would be turned away.
    pub fn check_insist(&mut self, nodes: &[NodeFacts]) {
        let counts = |machine: &&Machine| {
            let node = nodes.iter().find(|node| node.uid.is_some() && node.uid == machine.uid);
            // Until the kubelet tells of a boot nobody knows of it, and no pod sends there.
            let known = node.is_some_and(|node| node.boot.is_none_or(|boot| boot == machine.boot));
            machine.live && !machine.flushed && known && node.is_some_and(|node| node.ready && !node.excluded)
        };
        let machines: Vec<&Machine> = self.machines.iter().filter(counts).collect();
        let mut wrong = None;
        for (from, to) in machines.iter().flat_map(|from| machines.iter().map(move |to| (from, to))) {
            let met = from.addr != to.addr && (from.attempted.is_none() || knows(from, to));
            if met && from.tables.borrow().clear(Direction::Out, to.addr) {
                wrong = Some(format!("plaintext is turned away while {} sends it to {}", from.name, to.name));
            }
        }
        if let Some(text) = wrong {
            self.violate(1, text);
        }
    }

    /// Invariant 2: nobody sends with a generation that this write of a manager takes out of the ring, those aside that
    /// may be left behind.
    pub fn check_drop(&mut self, next: &Ring, nodes: &[NodeFacts], behind: &[usize]) {
        let Some((ring, _)) = self.ring() else { return };
        let stays = |old: &Generation| next.generations.iter().any(|generation| generation.uid == old.uid);
        for old in ring.generations.iter().filter(|old| !stays(old)) {
            self.check_dropped(old, nodes, behind);
        }
    }

    fn check_dropped(&mut self, old: &Generation, nodes: &[NodeFacts], behind: &[usize]) {
        let mut wrongs = Vec::new();
        let followed = |at: usize, machine: &Machine| {
            machine.live && machine.left_behind.is_none() && !behind.contains(&at)
        };
        let machines = self.machines.iter().enumerate();
        for (_, machine) in machines.filter(|(at, machine)| followed(*at, machine)) {
            let node = nodes.iter().find(|node| node.name == machine.name);
            let Some(uid) = machine.uid.filter(|_| node.is_none_or(|node| node.ready && !node.excluded))
            else {
                continue;
            };
            let tables = machine.tables.borrow();
            let peers = self.machines.iter().filter(|peer| peer.live && peer.uid.is_some());
            let spi = spi(old, machine, &uid);
            let sends = peers.filter(|peer| tables.pinned(peer.addr).is_some_and(|id| id.spi == spi)).count();
            if sends > 0 {
                wrongs.push(format!("generation {} is dropped while {} sends with it", old.id, machine.name));
            }
        }
        for text in wrongs {
            self.violate(2, text);
        }
    }

    /// Invariant 6: why the cluster is not where it should be; `None` once it is.
    #[must_use]
    pub fn unsettled(&self, rotations: u64) -> Option<String> {
        let Some((ring, version)) = self.ring() else { return Some("there is no ring".into()) };
        let Phase::Steady { active } = ring.phase() else {
            return Some(format!("the ring is {}", crate::writes::roles(&ring)));
        };
        if self.tally.rotations <= rotations {
            return Some("no rotation was completed".into());
        }
        // Time says of nothing that it speaks against enforcing, nor for it.
        if self.scenario.timed.is_none() && ring.enforcement != Enforcement::Enforcing {
            return Some(format!(
                "the ring is {:?}, with {} nodes pending",
                ring.enforcement,
                ring.pending.len()
            ));
        }
        let live: Vec<&Machine> = self.machines.iter().filter(|machine| machine.live).collect();
        for machine in &live {
            let name = &machine.name;
            let Some(known) = &machine.applied else { return Some(format!("{name} is not programmed")) };
            if known.version < version || machine.flushed || machine.left_behind.is_some() {
                return Some(format!("{name} is not up to date"));
            }
            if machine.tainted && self.scenario.timed.is_none() {
                return Some(format!("{name} has the start-up taint"));
            }
            if known.stage != Stage::Normal {
                return Some(format!("{name} is at {:?}", known.stage));
            }
            let Some(uid) = machine.uid else { return Some(format!("{name} has no Node")) };
            let spi = spi(active, machine, &uid);
            let sending = machine.tables.borrow();
            for peer in live.iter().filter(|peer| peer.addr != machine.addr) {
                let id = SaId { dst: peer.addr, spi };
                let pair = format!("{name} to {}", peer.name);
                if sending.pinned(peer.addr) != Some(id) {
                    return Some(format!("{pair}: does not send with the active generation"));
                }
                let receiving = peer.tables.borrow();
                let (Some(out), Some(found)) = (sending.states.get(&id), receiving.states.get(&id)) else {
                    return Some(format!("{pair}: an SA is missing"));
                };
                if found.src != machine.addr || found.cipher != out.cipher {
                    return Some(format!("{pair}: the SAs differ"));
                }
            }
        }
        None
    }
}

/// What a machine was brought to, if it ever was, and what it was last to be brought to, in this boot.
fn both(machine: &Machine) -> Option<[&Known; 2]> {
    let attempted = machine.attempted.as_ref()?;
    Some([machine.applied.as_ref().unwrap_or(attempted), attempted])
}

/// Whether the kernel of a machine does not take the key that this SA is to have now.
fn refused(machine: &Machine, id: SaId) -> bool {
    let Some(process) = &machine.process else { return false };
    let planned = process.plan.as_ref().and_then(|(_, plan)| plan.states.get(&id));
    let version = |known: &Option<Known>| known.as_ref().map(|known| known.version);
    let refuses = version(&machine.applied) != version(&machine.attempted);
    let tables = machine.tables.borrow();
    let held = tables.states.get(&id).and_then(|held| held.cipher.as_ref());
    refuses
        && planned
            .zip(held)
            .is_some_and(|(planned, (suite, key))| (planned.sa.suite, &planned.sa.key) != (*suite, key))
}

/// Whether a machine knows itself and another one as they are, and so did its last attempt.
fn knows(machine: &Machine, other: &Machine) -> bool {
    let (Some(end), Some(theirs), Some(known)) = (machine.end(), other.end(), both(machine)) else {
        return false;
    };
    known.iter().all(|known| {
        let program = known.program.as_ref().filter(|_| known.stage == Stage::Normal);
        program.is_some_and(|program| {
            let peer = program.peers.get(&theirs.addr);
            program.local == end && peer.is_some_and(|peer| peer.end == theirs && !peer.excluded)
        })
    })
}

fn spi(generation: &Generation, machine: &Machine, uid: &Uid) -> u32 {
    Derivation::new(generation).spi_of(machine.addr, uid)
}

/// The incarnation, `last` at most, under which a machine has this SPI in a generation.
fn incarnation(generation: &Generation, last: u32, machine: &Machine, uid: &Uid, id: SaId) -> Option<u32> {
    let present = generation.incarnation(uid);
    if spi(generation, machine, uid) == id.spi {
        return Some(present);
    }
    let mut former = generation.clone();
    (0..=last).find(|incarnation| {
        former.incarnations.insert(*uid, *incarnation);
        spi(&former, machine, uid) == id.spi
    })
}
