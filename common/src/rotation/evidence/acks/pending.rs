//! Which nodes peers must not encrypt to yet.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use super::{
    super::{Blocker, BlockerReason},
    AckTracker, ClusterSnapshot, Participant,
};
use crate::{ring::Enforcement, uid::Uid};

/// So long the nodes have to receive with the first generation before it is used without them, and a second more for
/// every hundred nodes, which take turns in saying it.
pub const PENDING_AFTER: Duration = Duration::from_secs(60);
/// So long the word of a node may be missing that was heard since it booted, and a second more likewise: somebody has
/// deleted it, and its kernel goes on receiving. Agents look about once a minute whether it is there.
pub const MISSED: Duration = Duration::from_secs(120);
/// Between two writes after which fewer nodes are pending, likewise: each is read by all nodes.
const PAUSE: Duration = Duration::from_secs(5);

/// Who is pending.
#[derive(Default)]
pub(super) struct Pending {
    pub(super) nodes: BTreeSet<Uid>,
    /// Why, for one of them.
    pub(super) blocker: Option<Blocker>,
}

impl AckTracker {
    /// The nodes that don't receive with the generation in use, or with the first one to be, and so many of those that
    /// ESP does not pass between that it passes between the others. Incarnations don't matter: or new keys for one node
    /// would make all others pending.
    pub(super) fn pending(
        &self,
        participants: &[Participant<'_>],
        snapshot: ClusterSnapshot<'_>,
        now: Instant,
    ) -> Pending {
        let ring = snapshot.ring.filter(|ring| ring.enforcement == Enforcement::Permissive);
        let Some(ring) = ring else { return Pending::default() };
        if participants.is_empty() {
            // No cluster is empty: this is a list that went wrong.
            return Pending { nodes: ring.pending.clone(), blocker: None };
        }
        let phase = ring.phase();
        let active = phase.active();
        let Some(generation) = active.or_else(|| phase.staged()) else {
            return Pending::default();
        };
        let turns = Duration::from_secs(participants.len() as u64 / 100);
        let late = active.is_some() || self.since.waited(generation, now) >= PENDING_AFTER + turns;
        let first = active.is_none();
        // Its kernel turns plaintext away, whatever has become of its agent: it is not to be spoken to in the clear.
        let insists =
            |node: &Participant<'_>| first && node.says(|ack| ack.enforcement == Enforcement::Enforcing);
        let (received, lacking): (Vec<_>, Vec<_>) =
            participants.iter().partition(|node| node.says(|ack| ack.receives.contains_key(&generation.uid)));
        let silent = lacking.into_iter().filter(|node| {
            let gone = late && !self.misses(node, generation.uid, MISSED + turns, now);
            (node.pending || gone) && !insists(node)
        });
        let (unfit, fit): (Vec<_>, Vec<_>) = received.into_iter().partition(|node| {
            (is_cramped(node, first) || (snapshot.probing && is_trying(node))) && !insists(node)
        });
        let pairs = pairs(&fit);
        // Where ESP has passed once, a missing answer tells of an agent that is away: that is no reason to go back to
        // plaintext.
        let doubtful = fit.iter().filter(|node| first || node.pending);
        let cut_off = cut_off(&pairs, &doubtful.map(|node| node.node.name.as_str()).collect());
        let cramped = unfit.iter().find(|node| is_cramped(node, first)).map(|node| &node.node.name);
        let apart =
            fit.iter().copied().filter(|node| cut_off.contains(node.node.name.as_str()) && !insists(node));
        let nodes: BTreeSet<Uid> =
            silent.chain(unfit.iter().copied()).chain(apart).filter_map(|node| node.node.uid).collect();
        let fewer = nodes.is_subset(&ring.pending);
        Pending {
            nodes: if fewer && self.pended_for(now) < PAUSE.max(turns) {
                ring.pending.clone()
            } else {
                nodes
            },
            blocker: pairs
                .first()
                .map(|pair| esp_blocked(*pair))
                .or_else(|| cramped.map(|name| mtu_too_large(name))),
        }
    }

    /// The word of a node is gone, not for longer than `grace`, that has said in this boot that it receives with
    /// `generation`.
    fn misses(&self, node: &Participant<'_>, generation: Uid, grace: Duration, now: Instant) -> bool {
        let heard = node.node.uid.and_then(|uid| self.heard.get(&uid));
        let since =
            heard.filter(|heard| heard.receives.contains(&generation)).and_then(|heard| heard.missing);
        since.is_some_and(|since| now.saturating_duration_since(since) < grace)
    }

    /// For how long the ring has named the pending nodes that it names.
    fn pended_for(&self, now: Instant) -> Duration {
        let since = self.pended.as_ref().and_then(|(_, since)| *since);
        since.map_or(Duration::MAX, |since| now.saturating_duration_since(since))
    }
}

fn esp_blocked((one, other): (&str, &str)) -> Blocker {
    Blocker { node: one.to_owned(), reason: BlockerReason::EspBlocked, detail: other.to_owned() }
}

fn mtu_too_large(node: &str) -> Blocker {
    Blocker { node: node.to_owned(), reason: BlockerReason::MtuTooLarge, detail: String::new() }
}

/// An agent that was started anew has to find out again whom ESP reaches.
fn is_trying(node: &Participant<'_>) -> bool {
    node.pending && node.says(|ack| ack.unreachable.is_none())
}

/// There is no room in its tunnel, and it sends nothing yet: what had room when it began is told of, and goes on.
fn is_cramped(node: &Participant<'_>, first: bool) -> bool {
    node.says(|ack| ack.oversized && (node.pending || (first && ack.silent)))
}

/// Pairs of these nodes, by name and the lower one first, of which one says that ESP does not reach the other.
fn pairs<'e>(nodes: &[&'e Participant<'_>]) -> BTreeSet<(&'e str, &'e str)> {
    let names: BTreeMap<Uid, &str> =
        nodes.iter().filter_map(|node| Some((node.node.uid?, node.node.name.as_str()))).collect();
    let unreachable = nodes.iter().flat_map(|node| {
        let peers = node.ack.iter().flat_map(|ack| ack.unreachable.iter().flatten());
        peers.map(|peer| (node.node.name.as_str(), peer))
    });
    let known = unreachable.filter_map(|(name, peer)| Some((name, *names.get(peer)?)));
    known.filter(|(one, other)| one != other).map(|(one, other)| (one.min(other), one.max(other))).collect()
}

/// Nodes of the `doubtful` ones without which none of their pairs is left, chosen greedily: the one with the most pairs
/// first, of several the first by name. So one node behind a bad link stands alone, rather than all of its peers.
fn cut_off<'n>(pairs: &BTreeSet<(&'n str, &'n str)>, doubtful: &BTreeSet<&'n str>) -> BTreeSet<&'n str> {
    let mut apart = BTreeMap::<&str, BTreeSet<&str>>::new();
    for (one, other) in pairs {
        apart.entry(one).or_default().insert(other);
        apart.entry(other).or_default().insert(one);
    }
    let mut chosen = BTreeSet::new();
    let doubted = |name: &&str| doubtful.contains(name);
    // Of equal ones the last counts, so the first name has to come last.
    while let Some((&worst, _)) =
        apart.iter().rev().filter(|(name, _)| doubted(name)).max_by_key(|(_, others)| others.len())
    {
        for other in apart.remove(worst).unwrap_or_default() {
            if let Some(others) = apart.get_mut(other) {
                others.remove(worst);
                if others.is_empty() {
                    apart.remove(other);
                }
            }
        }
        chosen.insert(worst);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_nodes_stand_for_many_pairs() {
        let chosen = |pairs: &[(&'static str, &'static str)], doubtful: &[&'static str]| {
            let doubtful = doubtful.iter().copied().collect();
            cut_off(&pairs.iter().copied().collect(), &doubtful).into_iter().collect::<Vec<_>>()
        };
        let all = ["a", "b", "c", "d", "e"];
        assert_eq!(chosen(&[], &all), [""; 0]);
        assert_eq!(chosen(&[("a", "b")], &all), ["a"], "of two alike the first");
        assert_eq!(chosen(&[("a", "d"), ("b", "d"), ("c", "d")], &all), ["d"]);
        assert_eq!(chosen(&[("a", "d"), ("b", "d"), ("a", "c"), ("a", "e")], &all), ["a", "b"]);
        assert_eq!(chosen(&[("a", "b"), ("a", "c"), ("b", "c")], &all), ["a", "b"], "a triangle");
        assert_eq!(chosen(&[("a", "d"), ("b", "d"), ("c", "d")], &["a", "b"]), ["a", "b"]);
        assert_eq!(chosen(&[("a", "d"), ("b", "c")], &["c", "e"]), ["c"]);
    }
}
