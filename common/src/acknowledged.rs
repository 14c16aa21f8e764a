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

/// After the last node has said that it no longer sends with a generation, packets of it may still be under way.
pub const DRAIN: Duration = Duration::from_secs(5);
/// Between two writes that give nodes new incarnations, so that something that keeps deleting SAs can't make the whole
/// cluster change keys all the time.
const REKEY_PAUSE: Duration = Duration::from_secs(5);
/// Somebody who presses on still gives the nodes this long.
const PRESSED: Duration = Duration::from_secs(30);
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
    pub obstacles: BTreeSet<String>,
    /// Peers, by Node UID, that ESP did not reach, or did not come back from; absent until that was tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unreachable: Option<BTreeSet<Uid>>,
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

    fn expected(&self) -> impl Iterator<Item = Expected<'s>> {
        let Self { ring, nodes, said, .. } = *self;
        nodes.iter().filter(|node| !node.excluded).map(move |node| Expected {
            node,
            said: said.get(&node.name).filter(|said| counts(said, node, ring)),
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
    rekeyed: Option<Instant>,
}

impl Acknowledged {
    /// `limit`: how long a rotation waits for a node that its kubelet says nothing good of. One that is Ready is
    /// waited for without end.
    #[must_use]
    pub const fn new(limit: Duration) -> Self {
        Self { limit, since: Since::new(), quiet: None, rekeyed: None }
    }

    /// Notes what is there at `now`, and says what is true.
    pub fn observe(&mut self, sight: Sight<'_>, now: Instant) -> Facts {
        let Sight { ring, nodes, said, .. } = sight;
        self.since.observe(ring, now);
        let expected: Vec<Expected<'_>> = sight.expected().collect();
        let with_role = |role| ring.and_then(|ring| ring.with_role(role));
        let all_receive = with_role(Role::Staged).map_or(Answer::Yes, |staged| {
            self.all(&expected, sight.pressed, staged, now, |said| {
                said.receives.get(&staged.uid) == Some(&staged.incarnations)
            })
        });
        let nobody_sends = match (with_role(Role::Retiring), with_role(Role::Active)) {
            (Some(old), Some(active)) => {
                let switched =
                    self.all(&expected, sight.pressed, old, now, |said| said.sends == Some(active.uid));
                self.drained(old, switched, now)
            }
            _ => Answer::Yes,
        };
        let spent = with_role(Role::Active).and_then(|active| {
            expected.iter().find(|expected| expected.says(|said| said.spent.contains(&active.uid)))
        });
        let newest = said.values().filter(|said| installed(said, ring)).map(|said| said.newest);
        Facts {
            all_receive,
            nobody_sends,
            requested: spent.map(|expected| {
                format!("node {} says that the generation in use has reached its limits", expected.node.name)
            }),
            rekey: self.rekey(&expected, ring, now),
            newest: newest.filter(|id| *id <= LAST_ID).max().unwrap_or(0),
            senders: nodes.iter().filter_map(|node| Some((node.uid?, node.addr?))).collect(),
        }
    }

    /// The incarnations that [`Self::observe`] asked for were written.
    pub fn rekeyed(&mut self, now: Instant) {
        self.rekeyed = Some(now);
    }

    /// Whether every node says so, those aside that are left behind.
    fn all(
        &self,
        expected: &[Expected<'_>],
        pressed: bool,
        generation: &Generation,
        now: Instant,
        says: impl Fn(&Acknowledgement) -> bool,
    ) -> Answer {
        if expected.is_empty() {
            // No cluster is empty: this is a list that went wrong.
            return Answer::In(LOOK_AGAIN);
        }
        let waited = self.since.waited(generation, now);
        let patience = |node: &NodeFacts| match (pressed, node.ready) {
            (true, _) => Some(PRESSED.min(self.limit)),
            (false, false) => Some(self.limit),
            (false, true) => None,
        };
        let mut look_in = LOOK_AGAIN;
        let mut nodes = BTreeSet::new();
        for Expected { node, .. } in expected.iter().filter(|expected| !expected.says(&says)) {
            let left = patience(node).map(|patience| patience.saturating_sub(waited));
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

/// A node that takes part, and what it says as of now.
struct Expected<'s> {
    node: &'s NodeFacts,
    said: Option<&'s Acknowledgement>,
}

impl Expected<'_> {
    fn says(&self, what: impl Fn(&Acknowledgement) -> bool) -> bool {
        self.said.is_some_and(what)
    }
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
mod tests {
    use super::*;
    use crate::{secret::SecretBytes, suite::Suite};

    const LIMIT: Duration = Duration::from_secs(3600);

    fn uid(number: u8) -> Uid {
        Uid::from_random([number; 16])
    }

    fn here() -> Uid {
        uid(90)
    }

    fn generation(id: u64, role: Role) -> Generation {
        let at = "2026-11-20T03:00:00Z".parse().unwrap();
        let suite = Suite::Aes128Gcm8;
        Generation {
            id,
            uid: gen_uid(id),
            role,
            suite,
            key: SecretBytes::copy_from(&[id as u8; 16]),
            spi_seed: SecretBytes::copy_from(&[id as u8; 16]),
            created_at: at,
            role_since: at,
            incarnations: BTreeMap::new(),
        }
    }

    fn gen_uid(id: u64) -> Uid {
        uid(200 + id as u8)
    }

    fn ring(roles: &[Role]) -> Ring {
        let mut ring = Ring::off(1, Some(here()));
        ring.enforcement = Enforcement::Permissive;
        ring.generations = (1..).zip(roles).map(|(id, role)| generation(id, *role)).collect();
        ring
    }

    /// A cluster of three nodes that have all said everything about the ring.
    struct Case {
        ring: Ring,
        nodes: Vec<NodeFacts>,
        said: BTreeMap<String, Acknowledgement>,
        pressed: bool,
        acknowledged: Acknowledged,
        now: Instant,
    }

    impl Case {
        fn new(roles: &[Role]) -> Self {
            let ring = ring(roles);
            let nodes: Vec<NodeFacts> = (1..=3)
                .map(|n| NodeFacts {
                    name: format!("node-{n}"),
                    uid: Some(uid(n)),
                    created: None,
                    addr: Some([192, 0, 2, n].into()),
                    boot: Some(uid(100 + n)),
                    ready: true,
                    excluded: false,
                })
                .collect();
            let say = |node: &NodeFacts| Acknowledgement {
                node: node.uid.unwrap(),
                boot: node.boot.unwrap(),
                installation: Some(here()),
                receives: ring.generations.iter().map(|g| (g.uid, g.incarnations.clone())).collect(),
                sends: ring.active().map(|active| active.uid),
                burnt: BTreeMap::new(),
                spent: BTreeSet::new(),
                newest: ring.newest(),
                enforcement: ring.enforcement,
                obstacles: BTreeSet::new(),
                unreachable: Some(BTreeSet::new()),
            };
            let said = nodes.iter().map(|node| (node.name.clone(), say(node))).collect();
            let acknowledged = Acknowledged::new(LIMIT);
            Self { ring, nodes, said, pressed: false, acknowledged, now: Instant::now() }
        }

        fn observe(&mut self) -> Facts {
            let Self { ring, nodes, said, pressed, acknowledged, now } = self;
            acknowledged.observe(Sight { ring: Some(ring), nodes, said, pressed: *pressed }, *now)
        }

        fn second(&mut self) -> &mut Acknowledgement {
            self.said.get_mut("node-2").unwrap()
        }
    }

    fn awaits(answer: &Answer) -> Vec<&str> {
        match answer {
            Answer::Awaits { nodes, .. } => nodes.iter().map(String::as_str).collect(),
            _ => vec![],
        }
    }

    const STAGED: [Role; 2] = [Role::Active, Role::Staged];
    const RETIRING: [Role; 2] = [Role::Retiring, Role::Active];

    #[test]
    fn a_rotation_waits_for_every_node_by_its_name() {
        let mut case = Case::new(&STAGED);
        assert_eq!(case.observe().all_receive, Answer::Yes);
        case.second().receives.remove(&gen_uid(2));
        assert_eq!(awaits(&case.observe().all_receive), ["node-2"]);
        case.now += 100 * LIMIT;
        assert_eq!(awaits(&case.observe().all_receive), ["node-2"], "a Ready node is waited for without end");
        case.said.remove("node-3");
        assert_eq!(awaits(&case.observe().all_receive), ["node-2", "node-3"]);
    }

    #[test]
    fn what_another_boot_node_or_installation_said_does_not_count() {
        let other = uid(77);
        let wrong: [fn(&mut Acknowledgement, Uid); 4] = [
            |said, other| said.node = other,
            |said, other| said.boot = other,
            |said, other| said.installation = Some(other),
            |said, _| said.installation = None,
        ];
        for change in wrong {
            let mut case = Case::new(&STAGED);
            change(case.second(), other);
            assert_eq!(awaits(&case.observe().all_receive), ["node-2"]);
            let sight =
                Sight { ring: Some(&case.ring), nodes: &case.nodes, said: &case.said, pressed: false };
            assert_eq!(sight.census(), Census { expected: 3, heard: 2 });
        }
        let mut case = Case::new(&STAGED);
        case.nodes[1].boot = None;
        assert_eq!(awaits(&case.observe().all_receive), ["node-2"], "nobody knows which boot it is");
    }

    #[test]
    fn a_generation_is_known_by_its_uid_and_incarnations() {
        let mut case = Case::new(&STAGED);
        case.ring.generations[1].uid = uid(55);
        assert_eq!(awaits(&case.observe().all_receive).len(), 3);
        let mut case = Case::new(&STAGED);
        case.ring.generations[1].incarnations.insert(uid(1), 1);
        assert_eq!(awaits(&case.observe().all_receive).len(), 3, "node-1's pairs have other keys now");
    }

    #[test]
    fn a_node_that_is_not_ready_is_left_behind_in_the_end() {
        let mut case = Case::new(&STAGED);
        case.said.remove("node-2");
        case.nodes[1].ready = false;
        assert_eq!(awaits(&case.observe().all_receive), ["node-2"]);
        case.now += LIMIT - Duration::from_secs(1);
        let look_in = Duration::from_secs(1);
        let nodes = BTreeSet::from(["node-2".to_owned()]);
        assert_eq!(case.observe().all_receive, Answer::Awaits { nodes, look_in });
        case.now += look_in;
        assert_eq!(case.observe().all_receive, Answer::Yes);
        // A manager that has just started knows nothing of the time before.
        case.acknowledged = Acknowledged::new(LIMIT);
        assert_eq!(awaits(&case.observe().all_receive), ["node-2"]);
    }

    #[test]
    fn somebody_may_press_on() {
        let mut case = Case::new(&STAGED);
        case.said.remove("node-2");
        case.pressed = true;
        assert_eq!(awaits(&case.observe().all_receive), ["node-2"]);
        case.now += PRESSED;
        assert_eq!(case.observe().all_receive, Answer::Yes);
    }

    #[test]
    fn excluded_nodes_are_not_waited_for_and_an_empty_list_is_not_believed() {
        let mut case = Case::new(&STAGED);
        case.said.remove("node-2");
        case.nodes[1].excluded = true;
        assert_eq!(case.observe().all_receive, Answer::Yes);
        case.nodes.clear();
        assert_eq!(case.observe().all_receive, Answer::In(LOOK_AGAIN));
    }

    #[test]
    fn an_old_generation_goes_when_nobody_sends_with_it_and_its_packets_have_arrived() {
        let mut case = Case::new(&RETIRING);
        case.second().sends = Some(gen_uid(1));
        assert_eq!(awaits(&case.observe().nobody_sends), ["node-2"]);
        case.second().sends = None;
        assert_eq!(awaits(&case.observe().nobody_sends), ["node-2"], "it may send with several");
        case.second().sends = Some(gen_uid(2));
        assert_eq!(case.observe().nobody_sends, Answer::In(DRAIN));
        case.now += DRAIN / 2;
        assert_eq!(case.observe().nobody_sends, Answer::In(DRAIN / 2));
        case.second().sends = Some(gen_uid(1));
        assert_eq!(awaits(&case.observe().nobody_sends), ["node-2"]);
        case.second().sends = Some(gen_uid(2));
        assert_eq!(case.observe().nobody_sends, Answer::In(DRAIN), "from the start");
        case.now += DRAIN;
        assert_eq!(case.observe().nobody_sends, Answer::Yes);
        case.ring.generations[0].role_since = "2026-11-20T03:00:01Z".parse().unwrap();
        assert_eq!(case.observe().nobody_sends, Answer::In(DRAIN), "it was sent with again in between");
    }

    #[test]
    fn burnt_incarnations_are_replaced_once_and_not_too_often() {
        let mut case = Case::new(&[Role::Retiring, Role::Active, Role::Staged]);
        let burnt = [(gen_uid(1), 0), (gen_uid(2), 0), (gen_uid(3), 6), (uid(3), 1)];
        case.second().burnt = burnt.into();
        let needed = BTreeMap::from([(gen_uid(2), 1), (gen_uid(3), 7)]);
        let node = uid(2);
        assert_eq!(case.observe().rekey, BTreeMap::from([(node, needed)]));
        case.acknowledged.rekeyed(case.now);
        case.ring.generations[1].incarnations.insert(node, 1);
        assert_eq!(case.observe().rekey, BTreeMap::new());
        case.now += REKEY_PAUSE;
        assert_eq!(case.observe().rekey, BTreeMap::from([(node, BTreeMap::from([(gen_uid(3), 7)]))]));
        case.ring.generations[2].incarnations.insert(node, 7);
        assert_eq!(case.observe().rekey, BTreeMap::new());
        case.second().burnt = [(gen_uid(2), u32::MAX)].into();
        assert_eq!(case.observe().rekey, BTreeMap::new(), "there is nothing after it");
    }

    #[test]
    fn limits_and_lost_rings_are_heard_of() {
        let mut case = Case::new(&STAGED);
        let facts = case.observe();
        assert_eq!((facts.requested, facts.newest, facts.senders.len()), (None, 2, 3));
        case.second().spent = [gen_uid(2), uid(9)].into();
        assert_eq!(case.observe().requested, None, "that generation is not in use");
        case.second().spent.insert(gen_uid(1));
        assert!(case.observe().requested.unwrap().contains("node-2"));
        case.second().newest = 9;
        assert_eq!(case.observe().newest, 9);
        case.second().newest = u64::MAX;
        assert_eq!(case.observe().newest, 2);
    }
}
