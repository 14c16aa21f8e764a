//! What this node reports to the manager, from what it has brought its kernel to.

use std::collections::{BTreeMap, BTreeSet};

use secureoverlay_keyring::{
    acknowledgement::{
        Acknowledgement, EnforcementBlocker, MAX_BLOCKERS, MAX_DETAIL, MAX_HASHES, MAX_NAMES, NodeHash,
        NodeHashes, UnprovenPairs,
    },
    address::NodeAddress,
    keyring::{Enforcement, KeyRing},
    peer::Instance,
    uid::Uid,
};

use crate::{
    Time,
    network::LocalNetwork,
    pair::{PairId, PairState, PairStates},
    proof::{GRACE, ProofTracker},
    reconcile::ReconcileReport,
    xfrm::SaId,
};

/// What an acknowledgement is made of.
#[derive(Clone, Copy, Debug)]
pub struct AckFacts<'f> {
    /// The `ackId` that is answered.
    pub ack_id: Uid,
    /// UID of the Node.
    pub node_uid: Uid,
    /// The newest instance.
    pub instance: Instance,
    /// The ring that was applied, where one was.
    pub ring: Option<&'f KeyRing>,
    /// The network that was applied.
    pub network: Option<&'f LocalNetwork>,
    /// The names of peers that take no part.
    pub excluded: &'f BTreeSet<String>,
    /// The last run.
    pub report: &'f ReconcileReport,
    /// The proofs.
    pub proofs: &'f ProofTracker,
    /// Reasons why this node cannot guarantee encryption.
    pub blockers: &'f BTreeSet<EnforcementBlocker>,
    /// The highest id of a generation that was applied.
    pub highest: u64,
    /// The tunnel's MTU leaves no room for ESP.
    pub tunnel_mtu_too_large: bool,
    /// Where tunnels lead to that no node announces.
    pub unknown_gateways: &'f BTreeSet<NodeAddress>,
    /// No other node is known.
    pub no_peers: bool,
    /// When.
    pub now: Time,
}

/// The acknowledgement.
#[must_use]
pub fn acknowledge(facts: &AckFacts<'_>) -> Acknowledgement {
    let AckFacts { report, ring, .. } = facts;
    let states = facts.proofs.states().unwrap_or_default();
    let unproven = ring.map(|ring| unproven(facts, ring, &states)).unwrap_or_default();
    let generations = ring.iter().flat_map(|ring| &ring.generations).map(|generation| generation.uid);
    let proven = generations.filter(|uid| unproven.iter().all(|pairs| pairs.generation != *uid));
    let active = ring.and_then(|ring| ring.active());
    // Once every pair that is proven with it has moved.
    let moved = |(pair, state): (&PairId, &PairState)| {
        let target = report.pairs.get(pair).and_then(|planned| planned.plan.offer.active);
        // A pair without a policy of ours sends with no generation: a foreign policy is in its place.
        let pinned = state.pin.is_none() || state.pin == target;
        target.is_none_or(|target| pinned || !state.proven.contains(&target))
    };
    let active_generation = active.filter(|_| states.iter().all(moved));
    let all_pairs_proven =
        active.is_some_and(|active| unproven.iter().all(|pairs| pairs.generation != active.uid));
    let receivable = ring.iter().flat_map(|ring| &ring.generations).map(|generation| generation.uid);
    Acknowledgement {
        ack_id: facts.ack_id,
        node_uid: facts.node_uid,
        instance: facts.instance,
        receivable: receivable.filter(|uid| report.receivable.contains(uid)).collect(),
        proven_generations: proven.collect(),
        sends_none: report.pins.is_empty() && active.is_none(),
        active_generation: active_generation.map(|active| active.uid),
        all_pairs_proven,
        exhausted_generations: report.exhausted.clone(),
        highest_generation_seen: facts.highest,
        enforcement: match ring {
            _ if report.enforcing => Enforcement::Enforcing,
            Some(_) => Enforcement::Permissive,
            None => Enforcement::Off,
        },
        enforcement_blockers: limited(facts.blockers),
        unproven_pairs: unproven,
        tunnel_mtu_too_large: facts.tunnel_mtu_too_large,
        unknown_gateways: facts.unknown_gateways.iter().copied().collect(),
        no_peers: facts.no_peers,
    }
}

/// The peers that are not proven, for each generation that has any.
fn unproven(facts: &AckFacts<'_>, ring: &KeyRing, states: &PairStates) -> Vec<UnprovenPairs> {
    let phase = ring.phase();
    let mut lists = Vec::new();
    let roles = [phase.retiring(), phase.active(), phase.staged()];
    for (role, generation) in roles.into_iter().enumerate() {
        let Some(generation) = generation else { continue };
        let mut nodes: BTreeMap<&str, Vec<(bool, bool)>> = BTreeMap::new();
        for (pair, planned) in &facts.report.pairs {
            if facts.excluded.contains(&planned.peer) {
                continue;
            }
            let state = states.get(pair);
            let works = works(facts, pair, state);
            let offer = planned.plan.offer;
            let pin = state.and_then(|state| state.pin);
            let has = |spi: Option<u32>| {
                spi.is_some_and(|spi| state.is_some_and(|state| state.proven.contains(&spi)))
            };
            let bad = match role {
                0 => works && pin.is_some() && pin != offer.active && pin != offer.staged,
                // A policy whose SA is missing holds traffic back: nothing is sent.
                1 => pin.is_none() || pin != offer.active || !is_there(facts, pair, pin),
                _ => works && pin.is_some() && !has(offer.staged),
            };
            let routed = facts.network.is_some_and(|network| network.sources.contains_key(&pair.dst));
            nodes.entry(&planned.peer).or_default().push((routed, bad));
        }
        let names: Vec<&str> =
            nodes.iter().filter(|(_, pairs)| is_unproven(pairs)).map(|(name, _)| *name).collect();
        lists.extend(list(generation.uid, &names));
    }
    lists
}

/// A peer is proven when each of its addresses that a tunnel's route leads to is; without such a route, when one is.
fn is_unproven(pairs: &[(bool, bool)]) -> bool {
    if pairs.iter().any(|(routed, _)| *routed) {
        pairs.iter().any(|(routed, bad)| *routed && *bad)
    } else {
        pairs.iter().all(|(_, bad)| *bad)
    }
}

/// Whether the pinned SA is there and not unanswered for long: a pair that does not work is made no worse by a step.
fn works(facts: &AckFacts<'_>, pair: &PairId, state: Option<&PairState>) -> bool {
    is_there(facts, pair, state.and_then(|state| state.pin))
        && facts.proofs.unanswered(pair).is_none_or(|since| since + GRACE > facts.now)
}

/// Whether the kernel holds the SA that a pair's policy pins.
fn is_there(facts: &AckFacts<'_>, pair: &PairId, pin: Option<u32>) -> bool {
    pin.is_some_and(|spi| facts.report.sas.contains(&SaId { dst: pair.dst.ip(), spi }))
}

fn list(generation: Uid, names: &[&str]) -> Option<UnprovenPairs> {
    if names.is_empty() {
        return None;
    }
    let hashes: NodeHashes = if names.len() > MAX_HASHES {
        NodeHashes::default()
    } else {
        names.iter().map(|name| NodeHash::of(name)).collect()
    };
    Some(UnprovenPairs {
        generation,
        count: u32::try_from(names.len()).unwrap_or(u32::MAX),
        nodes: names.iter().take(MAX_NAMES).map(|name| (*name).to_owned()).collect(),
        hashes,
    })
}

/// As many blockers as there is room for, and how many more there are.
fn limited(all: &BTreeSet<EnforcementBlocker>) -> BTreeSet<EnforcementBlocker> {
    let over = all.len() > MAX_BLOCKERS;
    let room = if over { MAX_BLOCKERS - 1 } else { MAX_BLOCKERS };
    let mut limited: BTreeSet<EnforcementBlocker> = all.iter().take(room).map(short).collect();
    if over {
        let detail = format!("{} more: see the log of this node's agent", all.len() - room);
        limited.insert(EnforcementBlocker { reason: "More".to_owned(), detail });
    }
    limited
}

fn short(blocker: &EnforcementBlocker) -> EnforcementBlocker {
    let EnforcementBlocker { reason, detail } = blocker;
    let mut detail = detail.clone();
    if detail.len() > MAX_DETAIL {
        let end = (0..=MAX_DETAIL - 3).rev().find(|end| detail.is_char_boundary(*end)).unwrap_or(0);
        detail.truncate(end);
        detail.push('…');
    }
    EnforcementBlocker { reason: reason.clone(), detail }
}
