//! Who the peers are: a fold over what the Node objects say, careful with what they stop saying.
//!
//! A Node that vanishes, a boot ID that is empty for a moment or an address that two Nodes claim must not cost
//! traffic: the last good fact counts until a better one comes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use secureoverlay_common::{node::NodeFacts, uid::Uid, wire::End};

/// How long a Node that vanished stays programmed, unless another one claims its address.
pub const GRACE: Duration = Duration::from_secs(600);
/// So long the manager has to hear of a node that came or booted, and to write that it can't be encrypted to yet.
pub const NEW: Duration = Duration::from_secs(10);
/// The same when more than half of all Nodes vanish from one list to the next: that is rather a broken answer.
pub const MASS_GRACE: Duration = Duration::from_secs(3600);

/// A node to talk to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Name of its Node object.
    pub name: String,
    /// Its end of the pairs with it.
    pub end: End,
    /// Takes no part in encryption.
    pub excluded: bool,
    /// It came or booted less than [`NEW`] ago.
    pub new: bool,
}

/// All peers, by tunnel address.
pub type Peers = BTreeMap<IpAddr, Peer>;

/// What there is to program, and what is wrong with what the Nodes say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// This node; `None` until its Node object is known to have a UID and an IPv4 address.
    pub local: Option<End>,
    /// This node takes no part in encryption.
    pub excluded: bool,
    /// Every other node.
    pub peers: Peers,
    /// For log, metrics and people.
    pub problems: Vec<Problem>,
    /// When the view changes although no Node does.
    pub wake_at: Option<Instant>,
}

/// Something that a Node object says, or does not say, and that keeps a node from being programmed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Problem {
    /// There is no usable Node object of this node.
    NoLocalNode(String),
    /// A Node without UID, usable address or boot ID, and none known from before.
    Incomplete {
        /// Name of the Node.
        node: String,
        /// What is missing.
        lacks: &'static str,
    },
    /// A Node shows a boot ID that it had before another one: not believed.
    StaleBoot {
        /// Name of the Node.
        node: String,
    },
    /// Two Nodes claim one address.
    AddressTaken {
        /// The address.
        addr: IpAddr,
        /// Name of the Node that has it.
        holder: String,
        /// Name of the Node that does not get it.
        claimant: String,
    },
    /// A list lost more than half of the Nodes.
    MassVanish {
        /// How many vanished.
        vanished: usize,
        /// How many there were.
        known: usize,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoLocalNode(name) => write!(
                f,
                "the Node object {name} of this host is missing, or has no UID or no IPv4 address: check MY_NODE_NAME"
            ),
            Self::Incomplete { node, lacks } => write!(f, "node {node} has no {lacks} yet: it is left out"),
            Self::StaleBoot { node } => {
                write!(f, "node {node} shows a boot ID that it had before: the newer one is kept")
            }
            Self::AddressTaken { addr, holder, claimant } => {
                write!(
                    f,
                    "nodes {holder} and {claimant} both claim {addr}: {holder} keeps it; correct the other Node"
                )
            }
            Self::MassVanish { vanished, known } => write!(
                f,
                "{vanished} of {known} nodes vanished from one list to the next: they are kept for {} minutes",
                MASS_GRACE.as_secs() / 60
            ),
        }
    }
}

/// The Nodes as far as they are known.
#[derive(Debug)]
pub struct Roster {
    name: String,
    boot: Uid,
    entries: BTreeMap<Uid, Entry>,
    /// Nodes without a UID can't be told apart by it; they are only reported.
    nameless: BTreeSet<String>,
    holders: BTreeMap<IpAddr, Uid>,
    mass_vanish: Option<(usize, usize)>,
    /// There was a full list: whoever comes now is new.
    listed: bool,
}

#[derive(Debug)]
struct Entry {
    name: String,
    /// What its Node showed last.
    shown: Option<NodeFacts>,
    created: Option<Timestamp>,
    excluded: bool,
    addr: Option<IpAddr>,
    boot: Option<Uid>,
    former_boots: BTreeSet<Uid>,
    stale_boot: bool,
    gone_after: Option<Instant>,
    new_until: Option<Instant>,
}

impl Roster {
    /// `name`: this node's; `boot`: the boot ID of the running kernel, which counts for this node whatever its Node
    /// object says.
    #[must_use]
    pub const fn new(name: String, boot: Uid) -> Self {
        Self {
            name,
            boot,
            entries: BTreeMap::new(),
            nameless: BTreeSet::new(),
            holders: BTreeMap::new(),
            mass_vanish: None,
            listed: false,
        }
    }

    /// A Node came or changed; says whether that may matter here. Most changes are heartbeats of kubelets, or whether they
    /// are ready.
    pub fn apply(&mut self, facts: NodeFacts, now: Instant) -> bool {
        let facts = NodeFacts { ready: true, ..facts };
        let Some(uid) = facts.uid else {
            return self.nameless.insert(facts.name);
        };
        let known = self.entries.get(&uid).is_some_and(|entry| entry.is_there_as(&facts));
        if !self.nameless.remove(&facts.name) && known {
            return false;
        }
        let shown = facts.clone();
        let NodeFacts { name, created, addr, boot, excluded, .. } = facts;
        // Re-created under the same name: the old one is gone.
        for (other, entry) in &mut self.entries {
            if *other != uid && entry.name == name {
                entry.vanish(now, GRACE);
            }
        }
        let entry = self.entries.entry(uid).or_insert_with(|| Entry::new(name.clone()));
        entry.shown = Some(shown);
        let before = entry.identity();
        entry.name = name;
        entry.created = created;
        entry.excluded = excluded;
        entry.addr = addr.filter(IpAddr::is_ipv4).or(entry.addr);
        entry.gone_after = None;
        entry.see_boot(boot);
        if self.listed && entry.identity().is_some_and(|identity| before != Some(identity)) {
            entry.new_until = Some(now + NEW);
        }
        true
    }

    /// A Node was deleted.
    pub fn delete(&mut self, name: &str, now: Instant) {
        self.nameless.remove(name);
        for entry in self.entries.values_mut().filter(|entry| entry.name == name) {
            entry.vanish(now, GRACE);
        }
    }

    /// A full list of the Nodes.
    pub fn reset(&mut self, list: Vec<NodeFacts>, now: Instant) {
        let listed: BTreeSet<Uid> = list.iter().filter_map(|facts| facts.uid).collect();
        let known = self.entries.values().filter(|entry| entry.gone_after.is_none()).count();
        let missing = |(uid, entry): &(&Uid, &mut Entry)| !listed.contains(uid) && entry.gone_after.is_none();
        let vanished = self.entries.iter_mut().filter(missing).count();
        let mass = vanished * 2 > known;
        self.mass_vanish = mass.then_some((vanished, known));
        let grace = if mass { MASS_GRACE } else { GRACE };
        for (_, entry) in self.entries.iter_mut().filter(missing) {
            entry.vanish(now, grace);
        }
        self.nameless.clear();
        for facts in list {
            self.apply(facts, now);
        }
        self.listed = true;
    }

    /// What there is to program at `now`.
    pub fn view(&mut self, now: Instant) -> View {
        self.entries.retain(|_, entry| entry.gone_after.is_none_or(|end| now < end));
        for entry in self.entries.values_mut() {
            entry.new_until = entry.new_until.filter(|end| now < *end);
        }
        let vanishing = self.entries.values().any(|entry| entry.gone_after.is_some());
        let ends = self.entries.values().flat_map(|entry| [entry.gone_after, entry.new_until]);
        let mut view = View { wake_at: ends.flatten().min(), ..View::default() };
        let lacks_uid =
            self.nameless.iter().map(|node| Problem::Incomplete { node: node.clone(), lacks: "UID" });
        view.problems.extend(lacks_uid);
        if let Some((vanished, known)) = self.mass_vanish.filter(|_| vanishing) {
            view.problems.push(Problem::MassVanish { vanished, known });
        }

        let local =
            self.entries.iter().find(|(_, entry)| entry.name == self.name && entry.gone_after.is_none());
        view.local =
            local.and_then(|(node, entry)| Some(End { addr: entry.addr?, node: *node, boot: self.boot }));
        view.excluded = local.is_some_and(|(_, entry)| entry.excluded);
        if view.local.is_none() {
            view.problems.push(Problem::NoLocalNode(self.name.clone()));
        }

        for (addr, claimants) in self.claims(&mut view.problems) {
            // Claimants come best first.
            let mut claimants = claimants.into_iter();
            let Some(holder) = claimants.next() else { continue };
            self.holders.insert(addr, holder);
            let Some(entry) = self.entries.get(&holder) else { continue };
            for claimant in claimants.filter_map(|uid| self.entries.get(&uid)) {
                if claimant.gone_after.is_none() {
                    view.problems.push(Problem::AddressTaken {
                        addr,
                        holder: entry.name.clone(),
                        claimant: claimant.name.clone(),
                    });
                }
            }
            if let Some(boot) = entry.boot.filter(|_| entry.name != self.name) {
                let end = End { addr, node: holder, boot };
                let (excluded, new) = (entry.excluded, entry.new_until.is_some());
                view.peers.insert(addr, Peer { name: entry.name.clone(), end, excluded, new });
            }
        }
        self.holders.retain(|addr, uid| self.entries.get(uid).is_some_and(|entry| entry.addr == Some(*addr)));
        view
    }

    /// Who claims each address, the rightful holder first: this node, then live before vanished, then whoever has it
    /// already, then the oldest.
    fn claims(&self, problems: &mut Vec<Problem>) -> BTreeMap<IpAddr, Vec<Uid>> {
        let mut claims: BTreeMap<IpAddr, Vec<Uid>> = BTreeMap::new();
        // Whoever was made anew speaks for its predecessor as soon as it says where it is.
        let live =
            |entry: &&Entry| entry.gone_after.is_none() && entry.addr.is_some() && entry.boot.is_some();
        let known: BTreeSet<&str> =
            self.entries.values().filter(live).map(|entry| entry.name.as_str()).collect();
        let succeeded = |entry: &Entry| entry.gone_after.is_some() && known.contains(entry.name.as_str());
        for (uid, entry) in self.entries.iter().filter(|(_, entry)| !succeeded(entry)) {
            let node = || entry.name.clone();
            if entry.stale_boot {
                problems.push(Problem::StaleBoot { node: node() });
            }
            let local = entry.name == self.name;
            match (entry.addr, entry.boot) {
                (Some(addr), Some(_)) => claims.entry(addr).or_default().push(*uid),
                (Some(addr), None) if local => claims.entry(addr).or_default().push(*uid),
                (None, _) => {
                    problems.push(Problem::Incomplete { node: node(), lacks: "usable IPv4 address" });
                }
                (_, None) => problems.push(Problem::Incomplete { node: node(), lacks: "valid boot ID" }),
            }
        }
        for (addr, uids) in &mut claims {
            uids.sort_by_key(|uid| {
                let entry = &self.entries[uid];
                (
                    entry.name != self.name,
                    entry.gone_after.is_some(),
                    self.holders.get(addr) != Some(uid),
                    entry.created.unwrap_or(Timestamp::MAX),
                    *uid,
                )
            });
        }
        claims
    }
}

impl Entry {
    const fn new(name: String) -> Self {
        Self {
            name,
            shown: None,
            created: None,
            excluded: false,
            addr: None,
            boot: None,
            former_boots: BTreeSet::new(),
            stale_boot: false,
            gone_after: None,
            new_until: None,
        }
    }

    /// Its Node is there and showed this already.
    fn is_there_as(&self, facts: &NodeFacts) -> bool {
        self.gone_after.is_none() && self.shown.as_ref() == Some(facts)
    }

    /// What its peers' SAs with it depend on; `None` while there are none.
    fn identity(&self) -> Option<(IpAddr, Uid)> {
        self.addr.zip(self.boot).filter(|_| !self.excluded)
    }

    fn vanish(&mut self, now: Instant, grace: Duration) {
        self.gone_after.get_or_insert(now + grace);
    }

    /// An empty or malformed boot ID changes nothing; one that was superseded is not believed again.
    fn see_boot(&mut self, boot: Option<Uid>) {
        let Some(boot) = boot else { return };
        self.stale_boot = self.former_boots.contains(&boot);
        if self.stale_boot || self.boot == Some(boot) {
            return;
        }
        if let Some(former) = self.boot.replace(boot) {
            self.former_boots.insert(former);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uid(n: u8) -> Uid {
        Uid::from_random([n; 16])
    }

    /// Node `n`: address 192.0.2.n, boot ID of `boot`.
    fn node(n: u8, boot: u8) -> NodeFacts {
        NodeFacts {
            name: format!("node-{n}"),
            uid: Some(uid(n)),
            created: Some(Timestamp::from_second(i64::from(n)).unwrap()),
            addr: Some([192, 0, 2, n].into()),
            boot: Some(uid(boot)),
            ready: true,
            excluded: false,
        }
    }

    fn roster(nodes: u8, now: Instant) -> Roster {
        let mut roster = Roster::new("node-1".into(), uid(100));
        roster.reset((1..=nodes).map(|n| node(n, 100 + n)).collect(), now);
        roster
    }

    #[test]
    fn a_heartbeat_changes_nothing() {
        let now = Instant::now();
        let mut roster = roster(3, now);
        assert!(!roster.apply(node(2, 102), now));
        assert!(!roster.apply(NodeFacts { ready: false, ..node(2, 102) }, now));
        assert!(roster.apply(NodeFacts { excluded: true, ..node(2, 102) }, now));
        assert!(roster.apply(node(2, 103), now));
        assert!(
            roster.apply(NodeFacts { uid: None, ..node(2, 103) }, now),
            "it can't be told apart any more"
        );
        assert!(roster.apply(node(2, 103), now));
        roster.delete("node-2", now);
        assert!(roster.apply(node(2, 103), now), "it is back");
        assert!(!roster.apply(node(2, 103), now));
    }

    fn boots(view: &View) -> Vec<(u8, Uid)> {
        let last = |addr: &IpAddr| match addr {
            IpAddr::V4(v4) => v4.octets()[3],
            IpAddr::V6(_) => unreachable!("only IPv4 here"),
        };
        view.peers.iter().map(|(addr, peer)| (last(addr), peer.end.boot)).collect()
    }

    #[test]
    fn peers_and_this_node() {
        let now = Instant::now();
        let view = roster(3, now).view(now);
        let local = view.local.unwrap();
        assert_eq!((local.addr, local.node, local.boot), ([192, 0, 2, 1].into(), uid(1), uid(100)));
        assert_eq!(boots(&view), [(2, uid(102)), (3, uid(103))]);
        assert_eq!((view.problems, view.wake_at), (vec![], None));
    }

    #[test]
    fn a_node_that_takes_no_part_knows() {
        let now = Instant::now();
        let mut roster = roster(3, now);
        assert!(!roster.view(now).excluded);
        roster.apply(NodeFacts { excluded: true, ..node(2, 102) }, now);
        assert!(!roster.view(now).excluded);
        roster.apply(NodeFacts { excluded: true, ..node(1, 101) }, now);
        assert!(roster.view(now).excluded);
    }

    #[test]
    fn who_comes_later_is_new_for_a_while() {
        let now = Instant::now();
        let mut roster = roster(3, now);
        let new = |roster: &mut Roster, now| {
            let view = roster.view(now);
            let new = view.peers.values().filter(|peer| peer.new).map(|peer| peer.name.clone());
            (new.collect::<Vec<_>>(), view.wake_at)
        };
        assert_eq!(new(&mut roster, now), (vec![], None), "those of the first list are not");
        roster.apply(node(4, 104), now);
        roster.apply(node(2, 102), now);
        assert_eq!(new(&mut roster, now), (vec!["node-4".into()], Some(now + NEW)));
        let later = now + NEW / 2;
        roster.apply(node(4, 104), later);
        roster.apply(node(3, 53), later);
        assert_eq!(new(&mut roster, later), (vec!["node-3".into(), "node-4".into()], Some(now + NEW)));
        let over = now + NEW;
        assert_eq!(new(&mut roster, over), (vec!["node-3".into()], Some(later + NEW)), "a reboot");
        let end = later + NEW;
        assert_eq!(new(&mut roster, end), (vec![], None));
        roster.apply(NodeFacts { addr: Some([192, 0, 2, 77].into()), ..node(2, 102) }, end);
        assert_eq!(new(&mut roster, end).0, ["node-2"], "another address");
        roster.apply(NodeFacts { excluded: true, ..node(3, 53) }, end + NEW);
        assert_eq!(new(&mut roster, end + NEW), (vec![], None));
        roster.apply(node(3, 53), end + NEW);
        assert_eq!(new(&mut roster, end + NEW).0, ["node-3"], "it takes part again");
        roster.delete("node-4", end + NEW);
        roster.apply(node(4, 104), end + NEW);
        assert_eq!(new(&mut roster, end + NEW).0, ["node-3"], "it was only gone for a moment");
    }

    #[test]
    fn boot_ids_that_are_missing_or_superseded_are_not_used() {
        let now = Instant::now();
        let mut roster = roster(3, now);
        roster.apply(NodeFacts { boot: None, ..node(2, 0) }, now);
        assert_eq!(boots(&roster.view(now))[0], (2, uid(102)), "the last good one is kept");
        roster.apply(node(2, 50), now);
        assert_eq!(boots(&roster.view(now))[0], (2, uid(50)), "a reboot");
        roster.apply(node(2, 102), now);
        let view = roster.view(now);
        assert_eq!(boots(&view)[0], (2, uid(50)), "the former one is not believed");
        assert_eq!(view.problems, [Problem::StaleBoot { node: "node-2".into() }]);
        roster.apply(node(2, 50), now);
        assert_eq!(roster.view(now).problems, []);
        roster.apply(NodeFacts { boot: None, ..node(9, 0) }, now);
        let view = roster.view(now);
        assert_eq!(view.peers.len(), 2, "never derived from nothing");
        assert_eq!(view.problems, [Problem::Incomplete { node: "node-9".into(), lacks: "valid boot ID" }]);
    }

    #[test]
    fn a_vanished_node_stays_for_a_while() {
        let now = Instant::now();
        let mut roster = roster(5, now);
        roster.delete("node-2", now);
        let view = roster.view(now);
        assert_eq!((view.peers.len(), view.wake_at), (4, Some(now + GRACE)));
        assert_eq!(roster.view(now + GRACE).peers.len(), 3);
        roster.reset([1, 4, 5].map(|n| node(n, 100 + n)).into(), now);
        assert_eq!(roster.view(now).peers.len(), 3, "node-3 is in its grace");
        roster.reset([1, 3, 4, 5].map(|n| node(n, 100 + n)).into(), now);
        assert_eq!(roster.view(now + GRACE).peers.len(), 3, "and came back");
    }

    #[test]
    fn a_list_that_loses_most_nodes_is_distrusted() {
        let now = Instant::now();
        let mut roster = roster(5, now);
        roster.reset(vec![node(1, 101)], now);
        let view = roster.view(now + GRACE);
        assert_eq!(view.peers.len(), 4);
        assert_eq!(view.problems, [Problem::MassVanish { vanished: 4, known: 5 }]);
        roster.reset(vec![], now);
        let view = roster.view(now + GRACE);
        assert_eq!(view.peers.len(), 4);
        assert_eq!(roster.view(now + MASS_GRACE).peers.len(), 0);
    }

    #[test]
    fn an_address_has_one_holder() {
        let now = Instant::now();
        let mut roster = roster(3, now);
        // An older Node that claims the address later does not get it.
        let thief = NodeFacts { addr: node(2, 0).addr, ..node(0, 99) };
        roster.view(now);
        roster.apply(thief.clone(), now);
        let view = roster.view(now);
        assert_eq!(boots(&view), [(2, uid(102)), (3, uid(103))]);
        let (holder, claimant) = ("node-2".to_owned(), "node-0".to_owned());
        assert_eq!(view.problems, [Problem::AddressTaken { addr: [192, 0, 2, 2].into(), holder, claimant }]);
        // It does once the holder has vanished, grace or not.
        roster.delete("node-2", now);
        assert_eq!(boots(&roster.view(now)), [(2, uid(99)), (3, uid(103))]);
        // Where nobody had it, the oldest gets it; and nobody gets ours.
        let mut fresh = self::roster(1, now);
        fresh.apply(node(2, 102), now);
        fresh.apply(thief, now);
        fresh.apply(NodeFacts { addr: node(1, 0).addr, ..node(7, 107) }, now);
        let view = fresh.view(now);
        assert_eq!(boots(&view), [(2, uid(99))]);
        assert_eq!(view.local.unwrap().node, uid(1));
        assert_eq!(view.problems.len(), 2);
    }

    #[test]
    fn a_node_created_anew_under_its_name_takes_over() {
        let now = Instant::now();
        let mut roster = roster(3, now);
        roster.view(now);
        roster.apply(NodeFacts { uid: Some(uid(42)), ..node(2, 102) }, now);
        let view = roster.view(now);
        assert_eq!(view.peers[&[192, 0, 2, 2].into()].end.node, uid(42));
        assert_eq!(view.problems, []);
        // For good: its predecessor does not come back when it claims another address.
        roster.apply(NodeFacts { uid: Some(uid(42)), addr: node(3, 0).addr, ..node(2, 102) }, now);
        let view = roster.view(now);
        assert_eq!(boots(&view), [(3, uid(103))]);
        // But one that does not say yet where it is takes nothing from its predecessor.
        let mut roster = self::roster(3, now);
        roster.apply(NodeFacts { uid: Some(uid(42)), boot: None, ..node(2, 102) }, now);
        assert_eq!(roster.view(now).peers[&[192, 0, 2, 2].into()].end.node, uid(2));
    }

    #[test]
    fn without_its_own_node_there_is_nothing_to_program() {
        let now = Instant::now();
        let mut roster = Roster::new("elsewhere".into(), uid(100));
        roster.reset(vec![node(1, 101)], now);
        let view = roster.view(now);
        assert_eq!(view.local, None);
        assert_eq!(view.problems, [Problem::NoLocalNode("elsewhere".into())]);
        // Facts without a UID or with an IPv6 address are reported, not programmed.
        roster.apply(NodeFacts { uid: None, ..node(3, 103) }, now);
        roster.apply(NodeFacts { addr: Some("2001:db8::4".parse().unwrap()), ..node(4, 104) }, now);
        let view = roster.view(now);
        assert_eq!((view.peers.len(), view.problems.len()), (1, 3));
    }
}
