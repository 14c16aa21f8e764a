//! What this node's kernel should hold: a pure function of the ring, the peers, and what was proven.

mod policies;
mod refused;

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    sync::Arc,
};

use secureoverlay_keyring::{
    address::NodeAddress,
    derivation::{Derivation, EndpointKey, SaPath},
    keyring::{KeyRing, Role},
    node_key::{PublicKey, SharedSecret},
    peer::Instance,
    phase::Phase,
    probe,
    uid::Uid,
};

use crate::{
    exclusion::Exclusion,
    identity::LocalIdentity,
    network::LocalNetwork,
    pair::{Offer, PairId, PairPlan, PairState, PairStates},
    peers::Peers,
    teardown::TeardownPhase,
    xfrm::{Direction, PolicyAction, PolicyId, Sa, SaId},
};

use self::policies::{add_receiving, add_sending, between, probes};
pub use self::{policies::policy, refused::Refused};

/// The UDP ports of probes: the first takes the pinned SA, the second the candidate.
pub const PROBE_PORTS: [u16; 2] = [probe::PINNED_PORT, probe::CANDIDATE_PORT];

/// What to bring the kernel to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReconcileTarget {
    /// How far a teardown has gone.
    pub teardown: TeardownPhase,
    /// What to program; `None` where that is not known, or nothing.
    pub input: Option<DesiredInput>,
}

/// What a plan is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredInput {
    /// The ring.
    pub ring: Arc<KeyRing>,
    /// This node.
    pub identity: Arc<LocalIdentity>,
    /// Its network.
    pub network: Arc<LocalNetwork>,
    /// The other nodes.
    pub peers: Arc<Peers>,
    /// Which of them take no part.
    pub exclusion: Arc<Exclusion>,
    /// What was proven; `None` until the kernel was looked at, when its policies are left as they are.
    pub pairs: Option<Arc<PairStates>>,
    /// Peers know what this node sends with: outbound SAs may be made.
    pub announced: bool,
}

/// The SAs and policies that should be there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// SAs by id.
    pub sas: BTreeMap<SaId, PlannedSa>,
    /// Policies by selector.
    pub policies: BTreeMap<PolicyId, PolicyAction>,
    /// What becomes of our outbound policies for pod traffic that are not planned.
    pub other_outbound: Unplanned,
    /// What becomes of our policies that turn plaintext away, or let it pass, and are not planned.
    pub other_inbound: Unplanned,
    /// What becomes of policies of probes that are not planned.
    pub other_probes: Unplanned,
    /// Nothing of ours is to be left.
    pub remove_all: bool,
    /// Who sends.
    pub instance: Option<Instance>,
    /// The ring's generations.
    pub generations: BTreeMap<Uid, Role>,
    /// Every pair that can be sent to.
    pub pairs: BTreeMap<PairId, PlannedPair>,
    /// Entries that can't have an SA, and why.
    pub refused: BTreeSet<Refused>,
    /// Generations with which every entry can be received from, if the plan is carried out.
    pub receivable: BTreeSet<Uid>,
}

/// What becomes of policies that are not planned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unplanned {
    /// They stay; what other programs remove is put back.
    #[default]
    Keep,
    /// They go.
    Remove,
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
    /// Hash of its key, for the journal.
    pub fingerprint: u64,
    /// The peer's name.
    pub peer: String,
}

/// A pair of the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedPair {
    /// The name of the peer that has the address, or is tried for it.
    pub peer: String,
    /// What is sent with.
    pub plan: PairPlan,
    /// Every SPI that some claim to the address offers.
    pub offered: BTreeSet<u32>,
    /// Claims to the address.
    pub claims: usize,
}

/// Makes plans, and remembers the key agreements.
#[derive(Debug, Default)]
pub struct Planner {
    own: Option<PublicKey>,
    /// The peers whose keys are agreed upon.
    agreed: Option<Arc<Peers>>,
    shared: BTreeMap<PublicKey, Option<SharedSecret>>,
}

impl Planner {
    /// What the kernel of this node should hold.
    ///
    /// Every generation has an inbound SA for every entry of every peer, whatever its role; only the outbound policy
    /// says what is sent with. So no SA comes or goes when a generation's role changes.
    #[must_use]
    pub fn plan(&mut self, target: &ReconcileTarget) -> Plan {
        let Some(input) = &target.input else { return unknown(target.teardown) };
        let ring = &*input.ring;
        let mut plan = Plan {
            generations: ring
                .generations
                .iter()
                .map(|generation| (generation.uid, generation.role))
                .collect(),
            instance: Some(input.identity.instance()),
            ..Plan::default()
        };
        if target.teardown == TeardownPhase::Removed || ring.phase() == Phase::Off {
            plan.remove_all = true;
            plan.other_probes = Unplanned::Remove;
            (plan.other_outbound, plan.other_inbound) = (Unplanned::Remove, Unplanned::Remove);
            return plan;
        }
        self.agree(input);
        let derivations: Vec<Derivation<'_>> = ring.generations.iter().map(Derivation::new).collect();
        self.add_inbound(&mut plan, input, &derivations);
        self.add_outbound(&mut plan, input, &derivations);
        let between = between(input);
        let mut policies = add_sending(&mut plan, input, target.teardown);
        policies.extend(add_receiving(&mut plan, input, &between, target.teardown));
        // Before the first look it is not known what is pinned: what an earlier agent left stays.
        if input.pairs.is_some() || target.teardown != TeardownPhase::Inactive {
            plan.other_probes = Unplanned::Remove;
        }
        if target.teardown == TeardownPhase::Inactive {
            policies.extend(probes(&plan, input, &between));
        }
        // All at once: sorted, which takes a fraction of the time of as many insertions.
        plan.policies = policies.into_iter().collect();
        plan
    }

    /// Brings the key agreements up to date. One takes some 50 µs.
    fn agree(&mut self, input: &DesiredInput) {
        let LocalIdentity::Announced(identity) = &*input.identity else { return *self = Self::default() };
        let own = identity.key_pair.public();
        if self.own.as_ref() != Some(own) {
            *self = Self { own: Some(*own), ..Self::default() };
        }
        if self.agreed.as_ref().is_some_and(|agreed| Arc::ptr_eq(agreed, &input.peers)) {
            return;
        }
        self.agreed = Some(input.peers.clone());
        let entries = input.peers.by_name.values().flat_map(|peer| &peer.entries);
        let keys: BTreeSet<PublicKey> = entries
            .filter_map(|entry| match entry.key {
                EndpointKey::Public(key) => Some(key),
                EndpointKey::BootId(_) => None,
            })
            .collect();
        self.shared.retain(|key, _| keys.contains(key));
        for key in keys {
            self.shared.entry(key).or_insert_with(|| identity.key_pair.agree(&key).ok());
        }
    }

    fn derive(
        &self,
        derivation: &Derivation<'_>,
        path: &SaPath,
        peer: EndpointKey,
    ) -> Result<(SaId, Sa), String> {
        let shared = match peer {
            EndpointKey::Public(key) => match self.shared.get(&key) {
                Some(Some(shared)) => Some(shared),
                _ => return Err("the key agreement with its public key fails".to_owned()),
            },
            EndpointKey::BootId(_) => None,
        };
        let derived = derivation.derive_sa(path, shared).map_err(|error| error.to_string())?;
        let id = SaId { dst: path.dst.address.ip(), spi: derived.spi };
        let suite = derivation.generation().suite;
        Ok((id, Sa { src: path.src.address.ip(), id, suite, key: derived.key }))
    }

    fn add_inbound(&self, plan: &mut Plan, input: &DesiredInput, derivations: &[Derivation<'_>]) {
        let own: BTreeSet<NodeAddress> = input.network.receiving().collect();
        let mut lacking = BTreeSet::new();
        for (entry, peer) in input.peers.entries() {
            if input.network.holds(entry.address) {
                plan.refused.insert(Refused::OwnAddress { peer: peer.to_owned(), address: entry.address });
                continue;
            }
            // An address that was this node's until lately may be a peer's by now.
            for address in own.iter().filter(|own| own.same_family(entry.address) && **own != entry.address) {
                let path = entry.path_to(input.identity.entry(*address).endpoint());
                for derivation in derivations {
                    let added = self
                        .derive(derivation, &path, entry.key)
                        .map_err(|error| Refused::Derivation { peer: peer.to_owned(), error });
                    let added = added.and_then(|(id, sa)| add(plan, id, sa, Direction::In, derivation, peer));
                    if let Err(refused) = added {
                        // A sender whose SPI is another's is left to mend it.
                        if matches!(refused, Refused::Derivation { .. }) {
                            lacking.insert(derivation.generation().uid);
                        }
                        plan.refused.insert(refused);
                    }
                }
            }
        }
        plan.receivable = plan.generations.keys().filter(|uid| !lacking.contains(uid)).copied().collect();
    }

    fn add_outbound(&self, plan: &mut Plan, input: &DesiredInput, derivations: &[Derivation<'_>]) {
        let phase = input.ring.phase();
        let (active, staged) = (phase.active(), phase.staged());
        for (dst, claims) in input.peers.claims() {
            let Some(src) = input.network.source_to(dst).filter(|_| !input.network.holds(dst)) else {
                continue;
            };
            let entry = input.identity.entry(src);
            let mut offers = vec![Offer::default(); claims.len()];
            for derivation in derivations {
                let generation = derivation.generation();
                let is = |other: Option<&secureoverlay_keyring::keyring::Generation>| {
                    other.is_some_and(|other| other.uid == generation.uid)
                };
                if !input.announced || !(is(active) || is(staged)) {
                    continue;
                }
                for (claim, offer) in claims.iter().zip(&mut offers) {
                    let path = entry.path_to(secureoverlay_keyring::derivation::Endpoint {
                        address: dst,
                        key: claim.key,
                    });
                    let Ok((id, sa)) = self.derive(derivation, &path, claim.key) else { continue };
                    if add(plan, id, sa, Direction::Out, derivation, claim.name).is_ok() {
                        *(if is(active) { &mut offer.active } else { &mut offer.staged }) = Some(id.spi);
                    }
                }
            }
            let pair = PairId { src, dst };
            let fresh = PairState::default();
            let state = input.pairs.as_ref().and_then(|pairs| pairs.get(&pair)).unwrap_or(&fresh);
            let decided = PairPlan::new(state, &offers);
            let offered = offers.iter().flat_map(|offer| [offer.active, offer.staged]).flatten().collect();
            let at = offers.iter().position(|offer| *offer == decided.offer).unwrap_or(0);
            let planned = PlannedPair {
                peer: claims[at].name.to_owned(),
                plan: decided,
                offered,
                claims: claims.len(),
            };
            plan.pairs.insert(pair, planned);
        }
    }
}

/// Adds an SA. The first sender that has an SPI keeps it.
fn add(
    plan: &mut Plan,
    id: SaId,
    sa: Sa,
    direction: Direction,
    derivation: &Derivation<'_>,
    peer: &str,
) -> Result<(), Refused> {
    let generation = derivation.generation().uid;
    match plan.sas.entry(id) {
        Entry::Occupied(first) => Err(Refused::SpiCollision {
            programmed: first.get().peer.clone(),
            left_out: peer.to_owned(),
            generation,
        }),
        Entry::Vacant(free) => {
            let fingerprint = sa.key.fingerprint();
            free.insert(PlannedSa { sa, direction, generation, fingerprint, peer: peer.to_owned() });
            Ok(())
        }
    }
}

/// The plan where only the kernel's content is known: what to take away can be told from that.
fn unknown(teardown: TeardownPhase) -> Plan {
    let (other_inbound, other_outbound) = match teardown {
        TeardownPhase::Inactive => (Unplanned::Keep, Unplanned::Keep),
        TeardownPhase::AllowPlaintext => (Unplanned::Remove, Unplanned::Keep),
        TeardownPhase::StopSending | TeardownPhase::Removed => (Unplanned::Remove, Unplanned::Remove),
    };
    let remove_all = teardown == TeardownPhase::Removed;
    let other_probes = if teardown == TeardownPhase::Inactive { Unplanned::Keep } else { Unplanned::Remove };
    Plan { other_inbound, other_outbound, other_probes, remove_all, ..Plan::default() }
}
