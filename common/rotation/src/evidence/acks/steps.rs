//! Whether the nodes have done what each step of a rotation needs: `docs/rotation.md`, section 4.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use secureoverlay_keyring::{
    acknowledgement::{Acknowledgement, EnforcementBlocker},
    address::NodeAddress,
    keyring::{Enforcement, Generation},
    peer::EncryptionPeerSpec,
};

use super::{
    super::{Blocker, Readiness, Unmet},
    AckTracker,
    participant::{CountingPeers, Participant},
};
use crate::{DRAIN, LOOK_AGAIN, Phase, Step};

/// Blockers that are told of.
const BLOCKERS: usize = 20;

/// Whether every node that the step waits for says this of itself. As long as one does not, pairs toward it are not
/// proven either: the node is named then, and not its peers.
fn every(view: &[Participant<'_>], step: Step, says: impl Fn(&Acknowledgement) -> bool) -> bool {
    view.iter().filter(|node| node.is_awaited(step)).all(|node| node.says(&says))
}

impl AckTracker {
    pub(super) fn staged_acked(
        &mut self,
        view: &[Participant<'_>],
        phase: Phase<'_>,
        now: Instant,
    ) -> Readiness {
        let Some(staged) = phase.staged() else { return Readiness::Unknown };
        let peers = counting(view, Step::Receive);
        let receives = |ack: &Acknowledgement| ack.receivable.contains(&staged.uid);
        let all_receive = every(view, Step::Receive, receives);
        self.all(view, Step::Receive, staged, now, |ack| {
            receives(ack) && (!all_receive || peers.unproven(ack, &staged.uid) == 0)
        })
    }

    pub(super) fn drained(&mut self, view: &[Participant<'_>], phase: Phase<'_>, now: Instant) -> Readiness {
        let (step, generation, readiness) = match phase {
            Phase::Draining { retiring, active } => {
                let peers = counting(view, Step::Switch);
                let sends = |ack: &Acknowledgement| ack.active_generation == Some(active.uid);
                let all_send = every(view, Step::Switch, sends);
                let moved = |ack: &Acknowledgement| {
                    sends(ack) && (!all_send || peers.unproven(ack, &retiring.uid) == 0)
                };
                (Step::Switch, active, self.all(view, Step::Switch, active, now, moved))
            }
            Phase::Stopping { retiring } => {
                let stopped = |ack: &Acknowledgement| ack.sends_none;
                (Step::StopSending, retiring, self.all(view, Step::StopSending, retiring, now, stopped))
            }
            Phase::Empty
            | Phase::Off
            | Phase::Bootstrapping { .. }
            | Phase::Steady { .. }
            | Phase::Staged { .. }
            | Phase::Resuming { .. } => {
                self.drained_since = None;
                return Readiness::Unknown;
            }
        };
        self.after_drain(step, generation, readiness, now)
    }

    /// Packets may be under way for a while after every node has done it.
    fn after_drain(
        &mut self,
        step: Step,
        generation: &Generation,
        done: Readiness,
        now: Instant,
    ) -> Readiness {
        if done != Readiness::Ready {
            self.drained_since = None;
            return done;
        }
        let key = (generation.uid, step);
        let since = self.drained_since.filter(|(other, _)| *other == key).map_or(now, |(_, since)| since);
        self.drained_since = Some((key, since));
        let left = DRAIN.saturating_sub(now.saturating_duration_since(since));
        if left.is_zero() { Readiness::Ready } else { Readiness::After(left) }
    }

    pub(super) fn can_enforce(
        &mut self,
        view: &[Participant<'_>],
        phase: Phase<'_>,
        (enforcing, blockers): (bool, &[Blocker]),
        now: Instant,
    ) -> Readiness {
        let Some(active) = phase.active().filter(|_| !enforcing) else {
            self.missing_since.remove(&Step::Enforce);
            return Readiness::Unknown;
        };
        let blocked: BTreeSet<&str> = blockers.iter().map(|blocker| blocker.node.as_str()).collect();
        self.all_nodes(view, Step::Enforce, active, now, |node| {
            let sends = |ack: &Acknowledgement| {
                ack.receivable.contains(&active.uid) && ack.active_generation == Some(active.uid)
            };
            !blocked.contains(node.name()) && node.says(sends)
        })
    }

    pub(super) fn none_enforcing(
        &mut self,
        view: &[Participant<'_>],
        phase: Phase<'_>,
        enforcing: bool,
        now: Instant,
    ) -> Readiness {
        let generation = phase.retiring().or(phase.active()).or(phase.staged());
        let Some(generation) = generation.filter(|_| !enforcing) else {
            self.missing_since.remove(&Step::AcceptPlaintext);
            return Readiness::Unknown;
        };
        self.all(view, Step::AcceptPlaintext, generation, now, |ack| {
            ack.enforcement != Enforcement::Enforcing
        })
    }

    fn all(
        &mut self,
        view: &[Participant<'_>],
        step: Step,
        generation: &Generation,
        now: Instant,
        says: impl Fn(&Acknowledgement) -> bool,
    ) -> Readiness {
        self.all_nodes(view, step, generation, now, |node| node.says(&says))
    }

    /// Whether it holds for every node that the step waits for.
    fn all_nodes(
        &mut self,
        view: &[Participant<'_>],
        step: Step,
        generation: &Generation,
        now: Instant,
        holds: impl Fn(&Participant<'_>) -> bool,
    ) -> Readiness {
        let awaited: Vec<_> = view.iter().filter(|node| node.is_awaited(step)).collect();
        let missing: Vec<_> = awaited.iter().filter(|node| !holds(node)).collect();
        // With none to wait for no step is taken, but down where all nodes are excluded for good.
        let abandoned = !view.is_empty() && view.iter().all(|node| node.node.excluded && node.left_behind);
        let down = !matches!(step, Step::Receive | Step::Enforce);
        if missing.is_empty() && (!awaited.is_empty() || (abandoned && down)) {
            self.missing_since.remove(&step);
            return Readiness::Ready;
        }
        Readiness::Waiting(Unmet {
            nodes: missing.iter().map(|node| node.name().to_owned()).collect(),
            total: awaited.len(),
            any_ready: missing.iter().any(|node| node.node.ready && !node.node.excluded),
            waited: self.missing(step, generation.uid, now),
            look_in: missing.iter().map(|node| node.look_in(step)).min().unwrap_or(LOOK_AGAIN),
        })
    }
}

fn counting(view: &[Participant<'_>], step: Step) -> CountingPeers {
    CountingPeers::new(view.iter().filter(|node| node.counts_as_peer(step)))
}

/// What speaks against enforcing: what nodes say themselves, and what only the manager can see. All of it, because
/// nodes with a blocker are the ones that are waited for.
pub(super) fn blockers(view: &[Participant<'_>], phase: Phase<'_>) -> Vec<Blocker> {
    let Some(active) = phase.active() else { return Vec::new() };
    let peers = counting(view, Step::Enforce);
    let mut blockers = conflicts(view);
    let silent = unannounced(view);
    let announcing = view.iter().filter(|node| node.is_expected()).count();
    for node in view.iter().filter(|node| node.is_awaited(Step::Enforce)) {
        let name = node.name();
        if !node.announces {
            blockers.push(Blocker::new(name, Blocker::NOT_ANNOUNCING, "no agent on it announces a key"));
        }
        let Some(ack) = node.ack else { continue };
        let reported = |it: &EnforcementBlocker| Blocker::new(name, &it.reason, it.detail.clone());
        blockers.extend(ack.enforcement_blockers.iter().map(reported));
        let gateways = ack.unknown_gateways.addresses.iter();
        if let Some((gateway, owner)) = gateways.filter_map(|it| silent.get_key_value(it)).next() {
            let detail = format!("its tunnel leads to {gateway}, which {owner} has and does not announce");
            blockers.push(Blocker::new(name, Blocker::GATEWAY_UNKNOWN, detail));
        }
        if ack.no_peers && announcing > 1 {
            blockers.push(Blocker::new(name, Blocker::NO_PEERS, "it knows no other node"));
        }
        if ack.tunnel_mtu_too_large {
            blockers.push(Blocker::new(name, Blocker::MTU_TOO_LARGE, "its tunnel leaves no room for ESP"));
        }
        let unproven = peers.unproven(ack, &active.uid);
        if unproven > 0 {
            let named = ack.unproven(&active.uid).into_iter().flat_map(|pairs| pairs.nodes.iter().take(3));
            let named: Vec<&str> = named.map(String::as_str).collect();
            let detail = format!("{unproven} peers, such as {}", named.join(", "));
            blockers.push(Blocker::new(name, Blocker::UNPROVEN_PAIRS, detail));
        }
    }
    blockers
}

/// Addresses of Ready nodes that announce others, and not these.
fn unannounced<'v>(view: &[Participant<'v>]) -> BTreeMap<NodeAddress, &'v str> {
    let announced = |node: &Participant<'_>| -> BTreeSet<NodeAddress> {
        node.record.spec().into_iter().flat_map(|spec| &spec.senders).map(|it| it.address).collect()
    };
    let all: BTreeSet<NodeAddress> = view.iter().flat_map(announced).collect();
    let expected = view.iter().filter(|node| node.is_expected());
    let own = expected.flat_map(|node| node.node.addresses.iter().map(|address| (*address, node.name())));
    own.filter(|(address, _)| !all.contains(address)).collect()
}

/// Two Ready nodes that claim one address.
fn conflicts(view: &[Participant<'_>]) -> Vec<Blocker> {
    let mut owners: BTreeMap<NodeAddress, &str> = BTreeMap::new();
    let mut found = Vec::new();
    for node in view.iter().filter(|node| node.node.ready && !node.node.excluded) {
        let announced =
            node.record.spec().into_iter().flat_map(EncryptionPeerSpec::newest).map(|it| it.address);
        let addresses: BTreeSet<NodeAddress> = announced.chain(node.node.addresses.iter().copied()).collect();
        for address in addresses {
            let owner = *owners.entry(address).or_insert_with(|| node.name());
            if owner != node.name() {
                let detail = format!("{owner} has {address}, too");
                found.push(Blocker::new(node.name(), Blocker::ADDRESS_CONFLICT, detail));
            }
        }
    }
    found
}

/// As many as are told of.
pub(super) fn shortened(mut blockers: Vec<Blocker>) -> Vec<Blocker> {
    blockers.truncate(BLOCKERS);
    blockers
}
