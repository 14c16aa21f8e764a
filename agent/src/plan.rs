//! What this node's kernel should hold: a pure function of the ring and the peers.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr},
};

use secureoverlay_common::{
    phase::Phase,
    ring::{Enforcement, Generation, Ring, Role},
    uid::Uid,
    wire::{self, Derivation, End},
};

use crate::{
    roster::{Peer, Peers},
    xfrm::{Action, Direction, Net, PolicyId, Sa, SaId},
};

/// How far a removal has gone. Each stage waits until every node has reached the one before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// No removal.
    #[default]
    Normal,
    /// Nobody insists: no blocks, inbound plaintext accepted.
    Optional,
    /// Nobody sends ESP.
    Silent,
    /// Nothing of ours is left.
    Gone,
}

/// The SAs and policies that should be there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// SAs by id.
    pub states: BTreeMap<SaId, PlannedSa>,
    /// Policies by selector.
    pub policies: BTreeMap<PolicyId, Action>,
    /// Whom this plan sends with.
    pub sender: Sender,
    /// What turns plaintext away now goes on, and is put back if somebody takes it away.
    pub insists_as_before: bool,
    /// Address and SPI that this node sends with, for each generation. Outbound SAs with them live as long as the
    /// generation, even when their peer is gone: a peer that comes back must not make us install a key again.
    pub own_spis: BTreeSet<(IpAddr, u32)>,
    /// UID of this node's Node.
    pub node: Option<Uid>,
    /// The ring's generations, by uid.
    pub generations: BTreeMap<Uid, Standing>,
    /// The generation that this node sends with, if it may send.
    pub active: Option<Uid>,
    /// Pairs that can't be programmed.
    pub collisions: Vec<SpiCollision>,
}

/// A generation as this node takes part in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// What it is used for.
    pub role: Role,
    /// This node's incarnation under it.
    pub incarnation: u32,
}

/// What becomes of outbound policies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sender {
    /// There is no generation to send with: what the kernel sends with now, if anything, goes on.
    #[default]
    AsBefore,
    /// As the plan's policies say.
    Planned,
    /// Nothing of ours is to be left, whatever the kernel holds.
    Nothing,
}

/// An SA of the plan, and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedSa {
    /// The SA.
    pub sa: Sa,
    /// Toward this node or away from it.
    pub direction: Direction,
    /// Its generation.
    pub generation: Uid,
    /// Its generation's role.
    pub role: Role,
    /// [`wire::fingerprint`] of its key, for the journal.
    pub fingerprint: u64,
}

/// Two senders with one SPI: a receiver can't tell them apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SpiCollision {
    /// The SPI.
    pub spi: u32,
    /// The sender that is programmed, the one with the lower address.
    pub programmed: IpAddr,
    /// The sender that is not.
    pub left_out: IpAddr,
    /// The generation with which it should have it.
    pub generation: Uid,
}

impl fmt::Display for SpiCollision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { spi, programmed, left_out, .. } = self;
        write!(
            f,
            "{programmed} and {left_out} have the same SPI {spi:#010x}: {left_out} can't send encrypted until the \
             next rotation"
        )
    }
}

/// What the kernel of the node `local` should hold.
///
/// Every generation of the ring has an inbound and an outbound SA with every peer, whatever its role; only the
/// outbound policy says which one sends. So no SA comes or goes when a generation's role changes.
#[must_use]
pub fn desired(ring: &Ring, local: &End, peers: &Peers, stage: Stage) -> Plan {
    let mut plan = Plan {
        node: Some(local.node),
        generations: ring
            .generations
            .iter()
            .map(|generation| (generation.uid, standing(generation, local)))
            .collect(),
        ..Plan::default()
    };
    if stage == Stage::Gone || ring.enforcement == Enforcement::Off {
        plan.sender = Sender::Nothing;
        return plan;
    }
    let derivations: Vec<Derivation<'_>> = ring.generations.iter().map(Derivation::new).collect();
    let (senders, collisions) = senders(&derivations, local, peers);
    plan.collisions = collisions;
    plan.own_spis = ring
        .generations
        .iter()
        .filter_map(|generation| Some((local.addr, senders.spi(generation, local)?)))
        .collect();
    let encrypting = || peers.values().filter(|peer| !peer.excluded);
    for derivation in &derivations {
        for peer in encrypting() {
            add_states(&mut plan, &senders, derivation, local, &peer.end);
        }
    }
    let phase = ring.phase();
    plan.sender = match phase {
        _ if stage >= Stage::Silent => Sender::Planned,
        Phase::Bootstrapping { .. } | Phase::Resuming { .. } => Sender::AsBefore,
        // While stopping, what was in use retires and nothing follows: encryption is being switched off.
        Phase::Empty
        | Phase::Off
        | Phase::Stopping { .. }
        | Phase::Steady { .. }
        | Phase::Staged { .. }
        | Phase::Draining { .. } => Sender::Planned,
    };
    if let Some(active) = phase.active().filter(|_| stage < Stage::Silent) {
        plan.active = Some(active.uid);
        if let Some(spi) = senders.spi(active, local) {
            // ESP may not pass to or from a pending node, so it is silent itself, too.
            let clear = |peer: &&Peer| {
                ring.enforcement == Enforcement::Permissive
                    && (peer.new
                        || [local.node, peer.end.node].iter().any(|node| ring.pending.contains(node)))
            };
            for peer in encrypting().filter(|peer| !clear(peer)) {
                plan.policies.insert(pair(Direction::Out, local, &peer.end), Action::Esp(Some(spi)));
            }
        }
    }
    let insists = ring.enforcement == Enforcement::Enforcing && stage == Stage::Normal;
    // A first generation says nothing of what was before it: the ring may have been wiped.
    plan.insists_as_before = !insists && phase.is_bootstrapping() && stage == Stage::Normal;
    if insists || plan.insists_as_before {
        for peer in peers.values().filter(|peer| peer.excluded) {
            for direction in [Direction::In, Direction::Out] {
                plan.policies.insert(pair(direction, local, &peer.end), Action::Allow);
            }
        }
    }
    if insists {
        for peer in encrypting() {
            plan.policies.insert(pair(Direction::In, local, &peer.end), Action::Esp(None));
        }
        plan.policies.extend(blocks(local.addr).map(|id| (id, Action::Block)));
    }
    plan
}

/// What is turned away while this node, which has the address `local`, insists, where no pair's policy comes first.
#[must_use]
pub fn blocks(local: IpAddr) -> [PolicyId; 2] {
    let anywhere = Net { addr: Ipv4Addr::UNSPECIFIED.into(), prefix: 0 };
    [(Direction::In, anywhere), (Direction::Out, Net::host(local))]
        .map(|(direction, src)| PolicyId::tunnel(direction, src, anywhere))
}

fn standing(generation: &Generation, local: &End) -> Standing {
    Standing { role: generation.role, incarnation: generation.incarnation(&local.node) }
}

fn add_states(plan: &mut Plan, senders: &Senders, derivation: &Derivation<'_>, local: &End, peer: &End) {
    let generation = derivation.generation();
    for (direction, src, dst) in [(Direction::In, peer, local), (Direction::Out, local, peer)] {
        let Some(spi) = senders.spi(generation, src) else { continue };
        let id = SaId { dst: dst.addr, spi };
        let key = derivation.sa_key(src, dst, spi);
        let sa = Sa { src: src.addr, id, suite: generation.suite, key };
        let fingerprint = wire::fingerprint(&sa.key);
        let planned =
            PlannedSa { sa, direction, generation: generation.uid, role: generation.role, fingerprint };
        plan.states.insert(id, planned);
    }
}

fn pair(direction: Direction, local: &End, peer: &End) -> PolicyId {
    let (local, peer) = (Net::host(local.addr), Net::host(peer.addr));
    match direction {
        Direction::In => PolicyId::tunnel(direction, peer, local),
        Direction::Out => PolicyId::tunnel(direction, local, peer),
    }
}

/// The SPI of every sender that has one to itself, by address and generation.
struct Senders(BTreeMap<(IpAddr, Uid), u32>);

impl Senders {
    fn spi(&self, generation: &Generation, sender: &End) -> Option<u32> {
        self.0.get(&(sender.addr, generation.uid)).copied()
    }
}

/// Gives each SPI to the sender with the lowest address, as every other node does.
fn senders(derivations: &[Derivation<'_>], local: &End, peers: &Peers) -> (Senders, Vec<SpiCollision>) {
    let mut ends: Vec<&End> = peers.values().map(|peer| &peer.end).chain([local]).collect();
    ends.sort_by_key(|end| end.addr);
    let mut taken: BTreeMap<u32, IpAddr> = BTreeMap::new();
    let mut senders = Senders(BTreeMap::new());
    let mut collisions = Vec::new();
    for end in ends {
        for derivation in derivations {
            let spi = derivation.spi(end);
            match taken.get(&spi) {
                Some(&programmed) => {
                    let generation = derivation.generation().uid;
                    collisions.push(SpiCollision { spi, programmed, left_out: end.addr, generation });
                }
                None => {
                    taken.insert(spi, end.addr);
                    senders.0.insert((end.addr, derivation.generation().uid), spi);
                }
            }
        }
    }
    (senders, collisions)
}
