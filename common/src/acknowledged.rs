//! Facts from what the nodes themselves say.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    node::NodeFacts,
    ring::{Enforcement, Generation, Ring, Role},
    rotation::{Answer, Facts, Incarnations, LAST_ID},
    timed::Since,
    uid::Uid,
};

mod pending;

pub use pending::{MISSED, PENDING_AFTER};

/// After the last node has said that it no longer sends with a generation, packets of it may still be under way.
pub const DRAIN: Duration = Duration::from_secs(5);
/// Between two writes that give nodes new incarnations, so that something that keeps deleting SAs can't make the whole
/// cluster change keys all the time.
const REKEY_PAUSE: Duration = Duration::from_secs(5);
/// When more nodes than this need new incarnations at once, a rotation gives new keys to all: the ring would name every one
/// of them, and every node repeats that in its word.
const REKEYED: usize = 100;
/// Likewise in the middle of a rotation, where these nodes can't send and so wait for its end, and it for them: names in the
/// words of all nodes together, as many as an API server can be asked to hold.
const NAMED: usize = 500_000;
/// And at most so many.
const REKEYED_MIDWAY: usize = 1000;
/// Somebody who presses on still gives the nodes this long.
const PRESSED: Duration = Duration::from_secs(30);
/// Characters of what speaks against insisting: it comes from a node, and goes into Events and objects.
const OBSTACLE: usize = 300;
/// When to look again though nothing is known to change.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// What a node says of itself. Everything in it is an identity, so that what is said of a boot, an installation or a
/// generation is never taken for another's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Acknowledgement {
    /// UID of its Node.
    pub node: Uid,
    /// Boot ID of its kernel.
    pub boot: Uid,
    /// UID of the agents' DaemonSet; absent where the agent may not read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub installation: Option<Uid>,
    /// The generations, by uid, that it receives with from every peer that it knows, and the incarnations (by Node UID)
    /// under which it does.
    #[serde(default)]
    pub receives: BTreeMap<Uid, BTreeMap<Uid, u32>>,
    /// The one generation that it sends with, to every peer; absent while that is none, or more than one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sends: Option<Uid>,
    /// It sends with no generation at all; absent where it sends with one, or nobody knows.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub silent: bool,
    /// Revision of the ring that it has applied.
    #[serde(default)]
    pub revision: u64,
    /// It encrypts to every peer that it knows and that takes part; absent where it does not, to pending or new ones for
    /// instance, or nobody knows.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub encrypts: bool,
    /// Its own incarnations, by generation, under which it lost SAs and that it can't go on with.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub burnt: Incarnations,
    /// Generations that ought to be replaced before their time: an SA of theirs has reached a limit, or two senders have
    /// one SPI.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub spent: BTreeSet<Uid>,
    /// The highest id of a generation that it has seen in this installation.
    #[serde(default)]
    pub newest: u64,
    /// How far it insists: enforcing as long as anything in its kernel does, permissive where SAs are there and nothing
    /// insists.
    #[serde(default)]
    pub enforcement: Enforcement,
    /// Why it would be a lie to insist here, in sentences for people: something lets traffic past the policies.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 400)))]
    pub obstacles: BTreeSet<String>,
    /// Peers, by Node UID, that ESP did not reach, or did not come back from; absent until that was tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub unreachable: Option<BTreeSet<Uid>>,
    /// The tunnel's MTU leaves no room for ESP, and it does not want to begin with it before it does.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub oversized: bool,
}

impl Acknowledgement {
    /// It receives and sends under the incarnations of this very generation.
    fn uses(&self, active: &Generation) -> bool {
        self.receives.get(&active.uid) == Some(&active.incarnations) && self.sends == Some(active.uid)
    }
}

/// What the manager sees in one look.
#[derive(Clone, Copy, Debug)]
pub struct Sight<'s> {
    /// The ring.
    pub ring: Option<&'s Ring>,
    /// Every Node.
    pub nodes: &'s [NodeFacts],
    /// What each has said, by its name.
    pub said: &'s BTreeMap<String, Acknowledgement>,
    /// Somebody wants the rotation under way to go on without the nodes that it waits for.
    pub pressed: bool,
    /// Nodes find out whether ESP reaches their peers before the first generation is used.
    pub probing: bool,
}

/// How many nodes there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Those that take part.
    pub expected: usize,
    /// Those of them that have said something, as what they are now.
    pub heard: usize,
}

impl<'s> Sight<'s> {
    /// Counts the nodes.
    #[must_use]
    pub fn census(&self) -> Census {
        self.expected().fold(Census::default(), |census, expected| Census {
            expected: census.expected + 1,
            heard: census.heard + usize::from(expected.said.is_some()),
        })
    }

    /// The names of the nodes that pods may come to: they encrypt to every peer that is not pending, and insist where the
    /// ring does. Those that take no part may always have some.
    #[must_use]
    pub fn encrypting(&self) -> BTreeSet<String> {
        let (ring, active) = (self.ring, self.ring.and_then(Ring::active));
        let ready = |said: &Acknowledgement| {
            let (Some(ring), Some(active)) = (ring, active) else { return false };
            // It talks to pending peers in the clear, as everybody does.
            let to_all = said.encrypts || (!ring.pending.is_empty() && said.revision == ring.revision);
            let insists = said.enforcement == Enforcement::Enforcing;
            to_all && said.uses(active) && (ring.enforcement != Enforcement::Enforcing || insists)
        };
        let excluded = self.nodes.iter().filter(|node| node.excluded);
        let encrypting = self.expected().filter(|node| !node.pending && node.says(ready));
        encrypting.map(|expected| expected.node).chain(excluded).map(|node| node.name.clone()).collect()
    }

    /// There are nodes, and all are excluded.
    fn nobody_takes_part(&self) -> bool {
        !self.nodes.is_empty() && self.nodes.iter().all(|node| node.excluded)
    }

    fn expected(&self) -> impl Iterator<Item = Expected<'s>> {
        let Self { ring, nodes, said, .. } = *self;
        let pending = move |uid: &Uid| ring.is_some_and(|ring| ring.pending.contains(uid));
        nodes.iter().filter(|node| !node.excluded).map(move |node| Expected {
            node,
            said: said.get(&node.name).filter(|said| counts(said, node, ring)),
            pending: node.uid.as_ref().is_some_and(pending),
        })
    }
}

/// Remembers since when this process has waited for what.
#[derive(Debug)]
pub struct Acknowledged {
    /// How long a rotation waits for a node that is not ready.
    limit: Duration,
    since: Since,
    /// Since when nobody sends with a generation that is retiring since then by the ring: an old ring that comes back may
    /// activate and retire it again unseen.
    quiet: Option<(Uid, Timestamp, Instant)>,
    /// Since when the ring accepts plaintext, and somebody does not.
    insisted: Option<Instant>,
    /// Since when which node is not Ready.
    unready: BTreeMap<Uid, Instant>,
    /// The pending nodes of the ring, and since when it names these; not known for those that a new process finds.
    pended: Option<(BTreeSet<Uid>, Option<Instant>)>,
    rekeyed: Option<Instant>,
    /// What was heard last of nodes, by UID.
    heard: BTreeMap<Uid, Heard>,
}

impl Acknowledged {
    /// `limit`: how long a rotation waits for a node that its kubelet says nothing good of. One that is Ready is
    /// waited for without end.
    #[must_use]
    pub const fn new(limit: Duration) -> Self {
        Self {
            limit,
            since: Since::new(),
            quiet: None,
            insisted: None,
            unready: BTreeMap::new(),
            pended: None,
            rekeyed: None,
            heard: BTreeMap::new(),
        }
    }

    /// Notes what is there at `now`, and says what is true.
    pub fn observe(&mut self, sight: Sight<'_>, now: Instant) -> Facts {
        let Sight { ring, nodes, said, .. } = sight;
        self.since.observe(ring, now);
        let expected: Vec<Expected<'_>> = sight.expected().collect();
        self.note(&expected, ring, now);
        let with_role = |role| ring.and_then(|ring| ring.with_role(role));
        let active = with_role(Role::Active);
        let all_receive = with_role(Role::Staged)
            .map_or(Answer::Yes, |staged| self.all_receive(&expected, sight, staged, now));
        let nobody_sends = match (with_role(Role::Retiring), with_role(Role::Staged)) {
            (Some(old), _) if active.is_some() => self.nobody_sends(&expected, sight, old, active, now),
            (Some(old), None) => self.nobody_sends(&expected, sight, old, None, now),
            _ => Answer::Yes,
        };
        let pending = self.pending(&expected, sight, now);
        let may_insist = active.map_or(Answer::In(LOOK_AGAIN), |active| {
            self.may_insist(&expected, sight, active, &pending.nodes, now)
        });
        let spent = active.and_then(|active| {
            expected.iter().find(|expected| expected.says(|said| said.spent.contains(&active.uid)))
        });
        let rekey = self.rekey(&expected, ring, now);
        let steady = active.is_some() && ring.is_some_and(|ring| ring.generations.len() == 1);
        let midway = (NAMED / expected.len().max(1)).clamp(REKEYED, REKEYED_MIDWAY);
        // One by one they would fill the ring as well.
        let named = active.filter(|_| steady).map_or(0, |active| active.incarnations.len());
        let many =
            (named + rekey.len() > if steady { REKEYED } else { midway } && !rekey.is_empty()).then(|| {
                let before =
                    if named > 0 { format!(", after {named} that have new ones") } else { String::new() };
                format!("{} nodes lost SAs whose keys can't be used again{before}", rekey.len())
            });
        let newest = said.values().filter(|said| installed(said, ring)).map(|said| said.newest);
        Facts {
            all_receive,
            nobody_sends,
            may_insist,
            obstacle: pending.obstacle.or_else(|| obstacle(&expected)),
            nobody_insists: self.nobody_insists(&expected, sight, now),
            all_insist: !expected.is_empty()
                && expected.iter().all(|node| node.says(|said| said.enforcement == Enforcement::Enforcing)),
            pending: pending.nodes,
            rekey: if many.is_some() { BTreeMap::new() } else { rekey },
            requested: many.or_else(|| {
                let name = &spent?.node.name;
                Some(format!("node {name} says that the generation in use has reached its limits, or that two senders have one SPI"))
            }),
            newest: newest.filter(|id| *id <= LAST_ID).max().unwrap_or(0),
            senders: nodes.iter().filter_map(|node| Some((node.uid?, node.addr?))).collect(),
        }
    }

    /// Notes since when things are as they are.
    fn note(&mut self, expected: &[Expected<'_>], ring: Option<&Ring>, now: Instant) {
        let before = std::mem::take(&mut self.unready);
        let unready = expected.iter().filter(|expected| !expected.node.ready).filter_map(|it| it.node.uid);
        self.unready = unready.map(|uid| (uid, before.get(&uid).copied().unwrap_or(now))).collect();
        if !expected.is_empty() {
            let mut before = std::mem::take(&mut self.heard);
            let heard = |expected: &Expected<'_>| {
                let uid = expected.node.uid?;
                if let Some(said) = expected.said {
                    let receives = said.receives.keys().copied().collect();
                    return Some((uid, Heard { boot: said.boot, receives, missing: None }));
                }
                let heard = before.remove(&uid)?;
                let same = expected.node.boot.is_none_or(|boot| boot == heard.boot);
                same.then(|| (uid, Heard { missing: Some(heard.missing.unwrap_or(now)), ..heard }))
            };
            self.heard = expected.iter().filter_map(heard).collect();
        }
        let pending = ring.map_or_else(BTreeSet::new, |ring| ring.pending.clone());
        self.pended = Some(match self.pended.take() {
            Some((before, since)) if before == pending => (before, since),
            before => (pending, before.map(|_| now)),
        });
    }

    /// The incarnations that [`Self::observe`] asked for were written.
    pub fn rekeyed(&mut self, now: Instant) {
        self.rekeyed = Some(now);
    }

    fn all_receive(
        &self,
        expected: &[Expected<'_>],
        sight: Sight<'_>,
        staged: &Generation,
        now: Instant,
    ) -> Answer {
        let receives = |node: &Expected<'_>| {
            node.says(|said| said.receives.get(&staged.uid) == Some(&staged.incarnations))
        };
        let first = sight.ring.and_then(Ring::active).is_none();
        let tried = |said: &Acknowledgement| said.unreachable.is_some();
        let probed = |node: &Expected<'_>| !(first && sight.probing) || node.said.is_none_or(tried);
        let waited = self.since.waited(staged, now);
        let answer = self.all(expected, sight.pressed, (waited, now), |node| {
            (node.pending || receives(node)) && probed(node)
        });
        // A first generation that hardly anybody has encrypts nothing.
        let enough = expected.len().min(2);
        if first && answer == Answer::Yes && expected.iter().filter(|node| receives(node)).count() < enough {
            let without = expected.iter().filter(|node| !receives(node));
            return Answer::Awaits { nodes: names(without), look_in: LOOK_AGAIN };
        }
        answer
    }

    /// `active`: what everybody is to send with instead; `None` where nobody is to send at all.
    fn nobody_sends(
        &mut self,
        expected: &[Expected<'_>],
        sight: Sight<'_>,
        old: &Generation,
        active: Option<&Generation>,
        now: Instant,
    ) -> Answer {
        let waited = self.since.waited(old, now);
        // What it said may have been lost while it goes on sending: so it is not left out at once.
        let revision = sight.ring.map_or(0, |ring| ring.revision);
        let left_behind = |node: &Expected<'_>| node.is_mute() && waited >= self.limit;
        if sight.nobody_takes_part() {
            return self.drained(old, Answer::Yes, now);
        }
        let switched = self.all(expected, sight.pressed, (waited, now), |node| {
            // Silence names no generation: said under another ring, it says nothing of this one.
            let quiet = |said: &Acknowledgement| {
                said.silent && said.revision == revision && (active.is_none() || node.pending)
            };
            let follows =
                |said: &Acknowledgement| active.is_some_and(|active| said.sends == Some(active.uid));
            left_behind(node) || node.says(|said| quiet(said) || follows(said))
        });
        self.drained(old, switched, now)
    }

    fn may_insist(
        &self,
        expected: &[Expected<'_>],
        sight: Sight<'_>,
        active: &Generation,
        pending: &BTreeSet<Uid>,
        now: Instant,
    ) -> Answer {
        // Under an older ring it may send in the clear to nodes that were pending then.
        let revision = sight.ring.map_or(0, |ring| ring.revision);
        let is_pending =
            |node: &Expected<'_>| node.pending || node.node.uid.is_some_and(|uid| pending.contains(&uid));
        // It is not urgent: a node is left behind only when it has been away for the whole limit, whatever its word is worth.
        let gone = |node: &Expected<'_>| {
            let since = node.node.uid.and_then(|uid| self.unready.get(&uid));
            since.is_some_and(|since| now.saturating_duration_since(*since) >= self.limit)
        };
        let answer = self.all(expected, false, (Duration::ZERO, now), |node| {
            let encrypts = |said: &Acknowledgement| {
                let reaches = said.unreachable.as_ref().map_or(!sight.probing, BTreeSet::is_empty);
                said.uses(active) && said.encrypts && reaches && said.revision == revision
            };
            gone(node) || (!is_pending(node) && node.says(encrypts))
        });
        // What a node itself has found does not get better by waiting.
        let objecting = names(expected.iter().filter(|node| node.says(|said| !said.obstacles.is_empty())));
        match answer {
            answer if objecting.is_empty() => answer,
            Answer::Awaits { nodes, look_in } => Answer::Awaits { nodes: &nodes | &objecting, look_in },
            Answer::Yes | Answer::In(_) => Answer::Awaits { nodes: objecting, look_in: LOOK_AGAIN },
        }
    }

    fn nobody_insists(&mut self, expected: &[Expected<'_>], sight: Sight<'_>, now: Instant) -> Answer {
        if sight.nobody_takes_part() {
            return Answer::Yes;
        }
        // Said under an older ring, it may have insisted since.
        let revision = sight.ring.map_or(0, |ring| ring.revision);
        let accepts = |node: &Expected<'_>| {
            let accepting = |said: &Acknowledgement| {
                said.enforcement != Enforcement::Enforcing && said.revision == revision
            };
            node.is_mute() || node.says(accepting)
        };
        let permissive = sight.ring.is_some_and(|ring| ring.enforcement == Enforcement::Permissive);
        let awaited = permissive && !expected.iter().all(accepts);
        self.insisted = awaited.then(|| self.insisted.unwrap_or(now));
        let waited = self.insisted.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        self.all(expected, sight.pressed, (waited, now), accepts)
    }

    /// Whether every node says so, those aside that are left behind; `waited`: for how long that has been asked.
    fn all(
        &self,
        expected: &[Expected<'_>],
        pressed: bool,
        (waited, now): (Duration, Instant),
        says: impl Fn(&Expected<'_>) -> bool,
    ) -> Answer {
        if expected.is_empty() {
            // No cluster is empty: this is a list that went wrong, or they are all excluded.
            return Answer::In(LOOK_AGAIN);
        }
        // A node that was there until now has not been away for as long as it is awaited.
        let away = |node: &NodeFacts| {
            let since = node.uid.and_then(|uid| self.unready.get(&uid));
            since.map_or(waited, |since| waited.min(now.saturating_duration_since(*since)))
        };
        let patience = |node: &NodeFacts| match (pressed, node.ready) {
            (true, _) => Some(PRESSED.min(self.limit).saturating_sub(waited)),
            (false, false) => Some(self.limit.saturating_sub(away(node))),
            (false, true) => None,
        };
        let mut look_in = LOOK_AGAIN;
        let mut nodes = BTreeSet::new();
        for Expected { node, .. } in expected.iter().filter(|expected| !says(expected)) {
            let left = patience(node);
            if left != Some(Duration::ZERO) {
                nodes.insert(node.name.clone());
                look_in = look_in.min(left.unwrap_or(LOOK_AGAIN));
            }
        }
        if nodes.is_empty() { Answer::Yes } else { Answer::Awaits { nodes, look_in } }
    }

    fn drained(&mut self, old: &Generation, switched: Answer, now: Instant) -> Answer {
        if switched != Answer::Yes {
            self.quiet = None;
            return switched;
        }
        let since = match self.quiet {
            Some((uid, retiring, since)) if (uid, retiring) == (old.uid, old.role_since) => since,
            _ => now,
        };
        self.quiet = Some((old.uid, old.role_since, since));
        let left = DRAIN.saturating_sub(now.saturating_duration_since(since));
        if left.is_zero() { Answer::Yes } else { Answer::In(left) }
    }

    fn rekey(
        &self,
        expected: &[Expected<'_>],
        ring: Option<&Ring>,
        now: Instant,
    ) -> BTreeMap<Uid, Incarnations> {
        if self.rekeyed.is_some_and(|at| now.saturating_duration_since(at) < REKEY_PAUSE) {
            return BTreeMap::new();
        }
        let generations = || ring.iter().flat_map(|ring| &ring.generations);
        let mut rekey = BTreeMap::new();
        for said in expected.iter().filter_map(|expected| expected.said) {
            // Nobody sends with a retiring generation: its keys need not be fresh.
            let needed: Incarnations = generations()
                .filter(|generation| generation.role != Role::Retiring)
                .filter_map(|generation| {
                    let burnt = *said.burnt.get(&generation.uid)?;
                    let next = burnt.checked_add(1)?;
                    (burnt >= generation.incarnation(&said.node)).then_some((generation.uid, next))
                })
                .collect();
            if !needed.is_empty() {
                rekey.insert(said.node, needed);
            }
        }
        rekey
    }
}

/// What a node has said, and since when its word is missing: somebody has deleted it.
#[derive(Debug)]
struct Heard {
    boot: Uid,
    /// The generations that its kernel goes on receiving with, whatever becomes of its word.
    receives: BTreeSet<Uid>,
    missing: Option<Instant>,
}

/// A node that takes part, and what it says as of now.
struct Expected<'s> {
    node: &'s NodeFacts,
    said: Option<&'s Acknowledgement>,
    /// By the ring, peers do not encrypt to it.
    pending: bool,
}

impl Expected<'_> {
    fn says(&self, what: impl Fn(&Acknowledgement) -> bool) -> bool {
        self.said.is_some_and(what)
    }

    /// Nothing that it has said since it booted is to be had, and peers know.
    const fn is_mute(&self) -> bool {
        self.pending && self.said.is_none()
    }
}

fn names<'e, 's: 'e>(nodes: impl Iterator<Item = &'e Expected<'s>>) -> BTreeSet<String> {
    nodes.map(|expected| expected.node.name.clone()).collect()
}

/// The first thing that a node says speaks against insisting.
fn obstacle(expected: &[Expected<'_>]) -> Option<String> {
    expected.iter().find_map(|expected| {
        let obstacle = expected.said?.obstacles.first()?;
        Some(format!("{}: {obstacle}", expected.node.name).chars().take(OBSTACLE).collect())
    })
}

/// Whether what was said was said by the node as it is now.
fn counts(said: &Acknowledgement, node: &NodeFacts, ring: Option<&Ring>) -> bool {
    node.uid == Some(said.node) && node.boot == Some(said.boot) && installed(said, ring)
}

/// Whether it was said in the installation that the ring was made for.
fn installed(said: &Acknowledgement, ring: Option<&Ring>) -> bool {
    ring.and_then(|ring| ring.installation).is_none_or(|uid| said.installation == Some(uid))
}

#[cfg(test)]
mod tests;
