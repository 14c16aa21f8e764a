//! Who the peers are: a fold over the objects that nodes announce themselves with, careful with what they stop saying.
//!
//! A peer whose object vanishes stays until its Node is known to be gone: `kubectl delete encryptionpeers --all`, a
//! pruned CRD or a restored backup change nothing in a kernel. An address that no entry lists any more keeps its
//! policies for a while.

mod known;

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use secureoverlay_keyring::{
    address::NodeAddress,
    derivation::EndpointKey,
    peer::{EncryptionPeerSpec, PodNetwork},
    uid::Uid,
};

use self::known::{CHANGE_EVERY, Known};
use crate::{
    Time,
    coverage::{PeerNetworks, PodNetworks},
    entry::Entry,
};

/// What vanished may come back.
pub const GRACE: Duration = Duration::from_secs(600);
/// Objects of peers that are taken; the youngest are left out.
pub const MAX_PEERS: usize = 10_000;
/// All agents together ask for the Nodes of peers that vanished so often in a second.
const QUERIES: u32 = 100;

/// What an object says of a node: an EncryptionPeer, or a Node under MKE's manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerObject {
    /// The Node's name.
    pub name: String,
    /// `metadata.uid`.
    pub uid: Uid,
    /// `metadata.creationTimestamp`, in Unix seconds.
    pub created: i64,
    /// `metadata.generation`.
    pub generation: i64,
    /// `metadata.resourceVersion`.
    pub resource_version: String,
    /// What it announces, or what is wrong with it.
    pub content: Result<Content, String>,
}

/// What an object announces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// `EncryptionPeer.spec`.
    Announced(EncryptionPeerSpec),
    /// What a Node shows.
    BootId(Entry),
}

impl Content {
    /// Newest first.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        match self {
            Self::Announced(spec) => spec.senders.iter().map(Entry::from).collect(),
            Self::BootId(entry) => vec![*entry],
        }
    }
}

/// What a GET of a Node said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeLookup {
    /// There is none of this name.
    NotFound,
    /// It has this UID.
    Found(Uid),
    /// No answer, or one that can't be read.
    Failed,
}

/// A peer as it is programmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Everything that it may send with, newest first.
    pub entries: Vec<Entry>,
}

impl Peer {
    /// The addresses of its newest instance, and the key to send to them with.
    pub fn claims(&self) -> impl Iterator<Item = &Entry> {
        let newest = self.entries.first().map(|entry| entry.instance);
        self.entries.iter().filter(move |entry| Some(entry.instance) == newest)
    }
}

/// All peers at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peers {
    /// By the name of the Node.
    pub by_name: BTreeMap<String, Peer>,
    /// Addresses that no entry lists any more, whose policies stay for now.
    pub withdrawn: BTreeSet<NodeAddress>,
}

/// A peer's claim to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim<'p> {
    /// The Node's name.
    pub name: &'p str,
    /// What is sent to the address is derived with this key.
    pub key: EndpointKey,
}

impl Peers {
    /// The claims to each address.
    #[must_use]
    pub fn claims(&self) -> BTreeMap<NodeAddress, Vec<Claim<'_>>> {
        let mut claims: BTreeMap<NodeAddress, Vec<Claim<'_>>> = BTreeMap::new();
        for (name, peer) in &self.by_name {
            for entry in peer.claims() {
                let claim = Claim { name, key: entry.key };
                let to = claims.entry(entry.address).or_default();
                if to.iter().all(|other| other.key != claim.key) {
                    to.push(claim);
                }
            }
        }
        claims
    }

    /// Every entry of every peer; one that two objects list comes once, under the name that comes first.
    #[must_use]
    pub fn entries(&self) -> BTreeMap<Entry, &str> {
        let mut entries = BTreeMap::new();
        for (name, peer) in &self.by_name {
            for entry in &peer.entries {
                entries.entry(*entry).or_insert(name.as_str());
            }
        }
        entries
    }

    /// Every address that may have policies.
    #[must_use]
    pub fn addresses(&self) -> BTreeSet<NodeAddress> {
        let listed = self.by_name.values().flat_map(|peer| peer.entries.iter().map(|entry| entry.address));
        listed.chain(self.withdrawn.iter().copied()).collect()
    }
}

/// The fold.
#[derive(Debug)]
pub struct PeerTable {
    name: String,
    /// Whether peers that vanish are looked up before they leave.
    lookup: bool,
    known: BTreeMap<String, Known>,
    /// Addresses that an earlier process sent to, and that no object lists.
    found: BTreeMap<NodeAddress, Time>,
    networks: Arc<PodNetworks>,
    own: Option<PeerObject>,
    listed: bool,
    left_out: BTreeSet<String>,
    next_query: Time,
    querying: Option<String>,
    /// What [`Self::poll_timeout`] said last, as long as nothing has changed: it is asked in every turn.
    timeout: Cell<Option<Option<Time>>>,
}

impl PeerTable {
    /// `name`: this node's. With `lookup`, peers that vanish are looked up before they leave.
    #[must_use]
    pub fn new(name: String, lookup: bool) -> Self {
        Self {
            name,
            lookup,
            networks: Arc::default(),
            known: BTreeMap::new(),
            found: BTreeMap::new(),
            own: None,
            listed: false,
            left_out: BTreeSet::new(),
            next_query: Time::ZERO,
            querying: None,
            timeout: Cell::default(),
        }
    }

    /// A full list.
    pub fn handle_list(&mut self, list: Vec<PeerObject>, now: Time) {
        let names: BTreeSet<String> = list.iter().map(|object| object.name.clone()).collect();
        let missing: Vec<String> =
            self.known.keys().chain([&self.name]).filter(|name| !names.contains(*name)).cloned().collect();
        for name in missing {
            self.handle_deleted(&name, now);
        }
        self.left_out.retain(|name| names.contains(name));
        let mut list = list;
        // Of too many, the youngest are left out.
        list.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
        for object in list {
            self.handle_applied(object, now);
        }
        self.listed = true;
    }

    /// An object came or changed. Returns whether that may matter here.
    pub fn handle_applied(&mut self, object: PeerObject, now: Time) -> bool {
        self.timeout.set(None);
        if object.name == self.name {
            let changed = self.own.as_ref() != Some(&object);
            self.own = Some(object);
            return changed;
        }
        if self.known.len() >= MAX_PEERS && !self.known.contains_key(&object.name) {
            return self.left_out.insert(object.name);
        }
        let PeerObject { name, uid, created, content, .. } = object;
        if let Ok(Content::Announced(spec)) = &content {
            self.take_networks(&name, spec);
        }
        let known = self.known.entry(name).or_insert_with(|| Known::new(uid, created, now));
        let back = known.vanished.take().is_some();
        (known.object, known.created) = (uid, created);
        match content {
            Ok(content) => {
                known.node_uid = match &content {
                    Content::Announced(spec) => Some(spec.node_uid),
                    Content::BootId(_) => Some(uid),
                };
                let mended = known.problem.take().is_some();
                known.offer(content.entries(), now) || back || mended
            }
            Err(problem) => known.problem.replace(problem.clone()) != Some(problem) || back,
        }
    }

    fn take_networks(&mut self, name: &str, spec: &EncryptionPeerSpec) {
        let networks: BTreeSet<PodNetwork> = spec.pod_networks.iter().copied().collect();
        let networks = PeerNetworks::from(networks);
        let known = self.networks.get(name);
        if known.map_or(!networks.networks.is_empty(), |known| *known != networks) {
            Arc::make_mut(&mut self.networks).insert(name.to_owned(), networks);
        }
    }

    /// The networks of the peers' pods, as they were announced last.
    #[must_use]
    pub const fn networks(&self) -> &Arc<PodNetworks> {
        &self.networks
    }

    /// An object was deleted. Its peer stays as it was.
    pub fn handle_deleted(&mut self, name: &str, now: Time) {
        self.timeout.set(None);
        self.left_out.remove(name);
        if name == self.name {
            self.own = None;
        } else if let Some(known) = self.known.get_mut(name)
            && known.vanished.is_none()
        {
            known.vanished = Some(now);
            known.due = now + GRACE;
            if let Some(networks) = Arc::make_mut(&mut self.networks).get_mut(name) {
                networks.departed = true;
            }
        }
    }

    /// The kernel sends encrypted to this address. Where no object lists it, one may have been lost while no agent ran:
    /// the policies stay for the grace.
    pub fn handle_pinned(&mut self, address: NodeAddress, now: Time) {
        self.timeout.set(None);
        self.found.insert(address, now);
    }

    /// The Node of a peer that vanished, to be asked for now.
    pub fn poll_query(&mut self, now: Time) -> Option<String> {
        let nothing = self.poll_timeout().is_none_or(|at| at > now);
        if nothing || !self.lookup || self.querying.is_some() || now < self.next_query {
            return None;
        }
        self.timeout.set(None);
        let due = self.known.iter().filter(|(_, known)| known.vanished.is_some() && known.due <= now);
        let name = due.min_by_key(|(_, known)| known.due).map(|(name, _)| name.clone())?;
        let count = u32::try_from(self.known.len()).unwrap_or(u32::MAX);
        self.next_query = now + Duration::from_secs(1) * count / QUERIES;
        self.querying = Some(name.clone());
        Some(name)
    }

    /// What the GET of a peer's Node said.
    pub fn handle_node(&mut self, name: &str, lookup: NodeLookup, now: Time) {
        self.timeout.set(None);
        self.querying.take_if(|querying| querying == name);
        let Some(known) = self.known.get_mut(name).filter(|known| known.vanished.is_some()) else { return };
        let left = match lookup {
            NodeLookup::NotFound => true,
            NodeLookup::Found(uid) => known.node_uid.is_some_and(|ours| ours != uid),
            NodeLookup::Failed => false,
        };
        if left {
            self.known.remove(name);
            Arc::make_mut(&mut self.networks).remove(name);
        } else {
            known.due = now + GRACE;
        }
    }

    /// The peers at `now`.
    pub fn snapshot(&mut self, now: Time) -> Peers {
        self.timeout.set(None);
        if !self.lookup {
            self.known.retain(|_, known| known.vanished.is_none() || known.due > now);
        }
        self.found.retain(|_, since| *since + GRACE > now);
        let mut peers = Peers { withdrawn: self.found.keys().copied().collect(), ..Peers::default() };
        for (name, known) in &mut self.known {
            known.settle(now);
            known.withdrawn.retain(|_, since| *since + GRACE > now);
            peers.withdrawn.extend(known.withdrawn.keys());
            peers.by_name.insert(name.clone(), Peer { entries: known.entries.clone() });
        }
        peers.by_name.retain(|_, peer| !peer.entries.is_empty());
        peers
    }

    /// The peer of this name as [`Self::snapshot`] has it, if it has entries and none were taken from it.
    #[must_use]
    pub fn joined(&self, name: &str) -> Option<Peer> {
        let known = self.known.get(name)?;
        let settled = known.waiting.is_none() && known.withdrawn.is_empty() && !known.entries.is_empty();
        settled.then(|| Peer { entries: known.entries.clone() })
    }

    /// When [`Self::snapshot`] or [`Self::poll_query`] has something new.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        let timeout = self.timeout.get().unwrap_or_else(|| self.timeout_now());
        self.timeout.set(Some(timeout));
        timeout
    }

    fn timeout_now(&self) -> Option<Time> {
        let found = self.found.values().map(|since| *since + GRACE);
        let times = self.known.values().flat_map(|known| {
            let vanished =
                known.vanished.filter(|_| self.querying.is_none()).map(|_| known.due.max(self.next_query));
            let waiting = known.waiting.as_ref().map(|_| known.allowance.1 + CHANGE_EVERY);
            let withdrawn = known.withdrawn.values().map(|since| *since + GRACE).min();
            [vanished, waiting, withdrawn].into_iter().flatten()
        });
        times.chain(found).min()
    }

    /// This node's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether there was a full list.
    #[must_use]
    pub const fn is_listed(&self) -> bool {
        self.listed
    }

    /// This node's own object.
    #[must_use]
    pub const fn own(&self) -> Option<&PeerObject> {
        self.own.as_ref()
    }

    /// How many peers there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Objects that can't be read, by name, and how many are left out.
    #[must_use]
    pub fn problems(&self) -> (BTreeMap<&str, &str>, usize) {
        let unreadable = self.known.iter();
        let unreadable =
            unreadable.filter_map(|(name, known)| Some((name.as_str(), known.problem.as_deref()?)));
        (unreadable.collect(), self.left_out.len())
    }

    /// Objects of other nodes with an entry of which `lists` is true: UID, and when they were made.
    pub fn listing(&self, lists: impl Fn(&Entry) -> bool) -> impl Iterator<Item = (Uid, i64)> {
        let listing = self.known.values().filter(|known| known.vanished.is_none());
        listing
            .filter(move |known| known.entries.iter().any(&lists))
            .map(|known| (known.object, known.created))
    }
}

#[cfg(test)]
mod tests {
    use super::{known::CHANGES, *};
    use crate::testing::{address, peer_object, uid};

    fn names(table: &mut PeerTable, now: u64) -> Vec<String> {
        table.snapshot(Time::from_secs(now)).by_name.into_keys().collect()
    }

    fn table(objects: &[u8]) -> PeerTable {
        let mut table = PeerTable::new("node-1".to_owned(), true);
        table.handle_list(objects.iter().map(|n| peer_object(*n, &[(*n, *n)])).collect(), Time::ZERO);
        table
    }

    #[test]
    fn peer_whose_object_vanishes_stays_until_its_node_is_gone() {
        let mut table = table(&[2, 3]);
        table.handle_list(Vec::new(), Time::from_secs(10));
        assert_eq!(names(&mut table, 10), ["node-2", "node-3"]);
        assert_eq!(table.poll_query(Time::from_secs(609)), None);
        assert_eq!(table.poll_query(Time::from_secs(610)).as_deref(), Some("node-2"));
        table.handle_node("node-2", NodeLookup::Failed, Time::from_secs(610));
        assert_eq!(table.poll_query(Time::from_secs(611)).as_deref(), Some("node-3"));
        table.handle_node("node-3", NodeLookup::NotFound, Time::from_secs(611));
        assert_eq!(names(&mut table, 611), ["node-2"]);
        assert_eq!(table.poll_query(Time::from_secs(1300)).as_deref(), Some("node-2"));
        table.handle_node("node-2", NodeLookup::Found(uid(102)), Time::from_secs(1300));
        assert_eq!(names(&mut table, 1300), ["node-2"], "the same Node: its object will come back");
        assert!(table.poll_query(Time::from_secs(2000)).is_some());
        table.handle_node("node-2", NodeLookup::Found(uid(9)), Time::from_secs(2000));
        assert!(names(&mut table, 2000).is_empty(), "another Node, which does not list the entry");
    }

    #[test]
    fn timeout_is_told_anew_after_every_change() {
        let mut table = table(&[2, 3]);
        let at = Time::from_secs;
        let steps: [fn(&mut PeerTable); 6] = [
            |table| table.handle_deleted("node-2", Time::from_secs(10)),
            |table| drop(table.poll_query(Time::from_secs(610))),
            |table| table.handle_node("node-2", NodeLookup::Failed, Time::from_secs(610)),
            |table| {
                table.handle_applied(peer_object(3, &[(3, 4)]), Time::from_secs(700));
            },
            |table| table.handle_pinned(address(9), Time::from_secs(20)),
            |table| drop(table.snapshot(Time::from_secs(5000))),
        ];
        let mut told = vec![table.poll_timeout()];
        for step in steps {
            step(&mut table);
            told.push(table.poll_timeout());
            assert_eq!(table.poll_timeout(), table.timeout_now(), "{told:?}");
        }
        assert_eq!((told[0], told[1]), (None, Some(at(610))));
    }

    #[test]
    fn unreadable_object_leaves_the_last_good_one_in_force() {
        let mut table = table(&[2]);
        let bad = PeerObject { content: Err("no".to_owned()), ..peer_object(2, &[]) };
        assert!(table.handle_applied(bad.clone(), Time::ZERO));
        assert!(!table.handle_applied(bad, Time::ZERO));
        assert_eq!(names(&mut table, 0), ["node-2"]);
        assert_eq!(table.problems().0, [("node-2", "no")].into());
    }

    #[test]
    fn withdrawn_address_keeps_its_policies_for_a_while() {
        let mut table = table(&[2]);
        table.handle_applied(peer_object(2, &[(2, 9)]), Time::from_secs(5));
        let peers = table.snapshot(Time::from_secs(5));
        assert_eq!(peers.withdrawn, [address(2)].into());
        assert_eq!(peers.addresses(), [address(2), address(9)].into());
        assert!(table.snapshot(Time::from_secs(605)).withdrawn.is_empty());
    }

    #[test]
    fn pinned_address_that_no_object_lists_keeps_its_policies_for_a_while() {
        let mut table = table(&[2]);
        table.handle_pinned(address(3), Time::from_secs(5));
        assert_eq!(table.snapshot(Time::from_secs(604)).addresses(), [address(2), address(3)].into());
        assert_eq!(table.poll_timeout(), Some(Time::from_secs(605)));
        assert_eq!(table.snapshot(Time::from_secs(605)).addresses(), [address(2)].into());
    }

    #[test]
    fn peer_that_changes_again_and_again_is_followed_once_a_minute() {
        let mut table = table(&[2]);
        let mut taken = 0;
        for n in 0..200_u8 {
            taken += u32::from(table.handle_applied(peer_object(2, &[(n, 2)]), Time::from_secs(1)));
        }
        assert_eq!(taken, CHANGES - 1, "one was taken when it came");
        let latest = peer_object(2, &[(199, 2)]).content.unwrap().entries();
        assert_ne!(table.snapshot(Time::from_secs(59)).by_name["node-2"].entries, latest);
        assert_eq!(table.snapshot(Time::from_secs(61)).by_name["node-2"].entries, latest);
    }

    #[test]
    fn own_object_is_no_peer() {
        let mut table = table(&[1, 2]);
        assert_eq!(names(&mut table, 0), ["node-2"]);
        assert!(table.own().is_some());
        table.handle_deleted("node-1", Time::ZERO);
        assert!(table.own().is_none());
    }

    #[test]
    fn entry_in_two_objects_is_one() {
        let mut table = table(&[2]);
        let copy = PeerObject { name: "node-3".to_owned(), ..peer_object(2, &[(2, 2)]) };
        table.handle_applied(copy, Time::ZERO);
        let peers = table.snapshot(Time::ZERO);
        assert_eq!(
            (peers.by_name.len(), peers.entries().len(), peers.claims()[&address(2)].len()),
            (2, 1, 1)
        );
    }
}
