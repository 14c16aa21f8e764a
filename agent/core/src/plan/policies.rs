//! The policies of a plan.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use secureoverlay_keyring::{address::NodeAddress, keyring::Enforcement, phase::Phase};

use super::{DesiredInput, PROBE_PORTS, Plan, Unplanned};
use crate::{
    pair::PairId,
    teardown::TeardownPhase,
    xfrm::{Direction, Net, PolicyAction, PolicyId},
};

/// Whether pod traffic may be sent as ESP at all.
const fn sends(phase: Phase<'_>) -> bool {
    match phase {
        Phase::Steady { .. } | Phase::Staged { .. } | Phase::Draining { .. } => true,
        Phase::Empty
        | Phase::Off
        | Phase::Bootstrapping { .. }
        | Phase::Stopping { .. }
        | Phase::Resuming { .. } => false,
    }
}

/// Policies with what they do; of two with one selector the later one counts.
type Policies = Vec<(PolicyId, PolicyAction)>;

/// The outbound policies for pod traffic.
pub(super) fn add_sending(plan: &mut Plan, input: &DesiredInput, teardown: TeardownPhase) -> Policies {
    let mut policies = Policies::new();
    let phase = input.ring.phase();
    if teardown >= TeardownPhase::StopSending || !(sends(phase) || phase.is_bootstrapping()) {
        plan.other_outbound = Unplanned::Remove;
        return policies;
    }
    let Some(pairs) = &input.pairs else { return policies };
    if sends(phase) {
        plan.other_outbound = Unplanned::Remove;
    }
    let known = input.peers.addresses();
    let own: BTreeSet<NodeAddress> = input.network.receiving().collect();
    // Beside a ring that was begun anew, what was in use before goes on; nothing new is pinned.
    let kept = pairs.iter().filter_map(|(pair, state)| Some((*pair, state.pin?)));
    let decided = plan.pairs.iter().filter_map(|(pair, planned)| Some((*pair, planned.plan.pin?)));
    let mut pins: BTreeMap<PairId, u32> = kept.collect();
    if sends(phase) {
        pins.extend(decided);
    }
    pins.retain(|pair, _| known.contains(&pair.dst) && own.contains(&pair.src));
    let pinned: BTreeSet<NodeAddress> = pins.keys().map(|pair| pair.dst).collect();
    let moved = plan.pairs.keys().filter(|pair| !pins.contains_key(pair) && pinned.contains(&pair.dst));
    let open = |pair: &PairId| input.exclusion.sends_plaintext(pair.dst);
    for (pair, spi) in pins.iter().filter(|(pair, _)| !open(pair)) {
        policies.push((policy(Direction::Out, *pair), PolicyAction::Esp(Some(*spi))));
    }
    // The kernel sends from another address now: nothing leaves in the clear until that one is proven.
    for pair in moved.filter(|pair| !open(pair)) {
        policies.push((policy(Direction::Out, *pair), PolicyAction::Block));
    }
    policies
}

/// What turns plaintext away.
pub(super) fn add_receiving(
    plan: &mut Plan,
    input: &DesiredInput,
    between: &[(NodeAddress, NodeAddress)],
    teardown: TeardownPhase,
) -> Policies {
    let mut policies = Policies::new();
    let bootstrapping = input.ring.phase().is_bootstrapping();
    if teardown >= TeardownPhase::AllowPlaintext {
        plan.other_inbound = Unplanned::Remove;
        return policies;
    }
    // A first generation says nothing of what was before it: the ring may have been wiped.
    plan.other_inbound = if bootstrapping { Unplanned::Keep } else { Unplanned::Remove };
    let enforcing = input.ring.enforcement == Enforcement::Enforcing;
    if !enforcing && !bootstrapping {
        return policies;
    }
    let exclusion = &input.exclusion;
    for own in input.network.receiving() {
        let excluded = |addresses: &BTreeSet<NodeAddress>| -> Vec<PairId> {
            let same = addresses.iter().filter(|address| address.same_family(own));
            same.map(|dst| PairId { src: own, dst: *dst }).collect()
        };
        for pair in excluded(&exclusion.accepts.addresses) {
            policies.push((policy(Direction::In, pair), PolicyAction::Allow));
        }
        for pair in excluded(&exclusion.sends.addresses) {
            policies.push((policy(Direction::Out, pair), PolicyAction::Allow));
        }
    }
    if !enforcing {
        return policies;
    }
    if !exclusion.accepts.local {
        for (own, address) in between {
            if !exclusion.accepts_plaintext(*address) {
                let pair = PairId { src: *own, dst: *address };
                policies.push((policy(Direction::In, pair), PolicyAction::Esp(None)));
            }
        }
        policies.push((PolicyId::tunnel(Direction::In, ANYWHERE, ANYWHERE), PolicyAction::Block));
    }
    // From any address: one that the node gets later is blocked before the agent knows it.
    if !exclusion.sends.local {
        policies.push((PolicyId::tunnel(Direction::Out, ANYWHERE, ANYWHERE), PolicyAction::Block));
    }
    policies
}

const ANYWHERE: Net = Net { addr: IpAddr::V4(Ipv4Addr::UNSPECIFIED), prefix: 0 };

/// The policies that take probes through ESP.
pub(super) fn probes(plan: &Plan, input: &DesiredInput, between: &[(NodeAddress, NodeAddress)]) -> Policies {
    let mut policies = Policies::new();
    let Some(pairs) = &input.pairs else { return policies };
    for (pair, planned) in &plan.pairs {
        let held = planned.plan.pin.is_some_and(|spi| {
            let known = pairs.get(pair);
            known.is_none_or(|state| !state.proven.contains(&spi))
        });
        for (port, spi) in PROBE_PORTS.into_iter().zip(planned.plan.probes(held)) {
            if let Some(spi) = spi {
                let id = PolicyId::probe(Direction::Out, pair.src.ip(), pair.dst.ip(), port);
                policies.push((id, PolicyAction::Esp(Some(spi))));
            }
        }
    }
    for (own, address) in between {
        for port in PROBE_PORTS {
            let id = PolicyId::probe(Direction::In, address.ip(), own.ip(), port);
            policies.push((id, PolicyAction::Esp(None)));
        }
    }
    policies
}

/// Every address of this node with every address of a peer.
pub(super) fn between(input: &DesiredInput) -> Vec<(NodeAddress, NodeAddress)> {
    let own: BTreeSet<NodeAddress> = input.network.receiving().collect();
    let peers: Vec<NodeAddress> =
        input.peers.addresses().into_iter().filter(|address| !input.network.holds(*address)).collect();
    let all = own.iter().flat_map(|own| peers.iter().map(move |peer| (*own, *peer)));
    all.filter(|(own, peer)| own.same_family(*peer) && own != peer).collect()
}

/// The policy for pod traffic of a pair.
#[must_use]
pub fn policy(direction: Direction, pair: PairId) -> PolicyId {
    let (local, peer) = (Net::host(pair.src.ip()), Net::host(pair.dst.ip()));
    match direction {
        Direction::In => PolicyId::tunnel(direction, peer, local),
        Direction::Out => PolicyId::tunnel(direction, local, peer),
    }
}
