//! The API server: objects, resourceVersions, a log of changes that watches read, and a store that can go back.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use secureoverlay_agent_core::peers::{Content, NodeLookup, PeerObject};
use secureoverlay_keyring::{
    acknowledgement::Acknowledgement, address::NodeAddress, peer::EncryptionPeerSpec, uid::Uid,
};
use secureoverlay_manager_core::operator::{ObjectWrite, RotationObject};

/// A Node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// `metadata.uid`.
    pub uid: Uid,
    /// Condition `Ready`.
    pub ready: bool,
    /// It has the label that excludes it.
    pub excluded: bool,
    /// Its InternalIP.
    pub address: NodeAddress,
    /// An agent's Pod is Ready on it.
    pub pod_ready: bool,
}

/// A NodeEncryption.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeEncryption {
    /// `metadata.uid`.
    pub uid: Uid,
    /// UID of the Node that owns it.
    pub owner: Uid,
    /// Its status.
    pub ack: Acknowledgement,
}

/// An EncryptionPeer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// `metadata.uid`.
    pub uid: Uid,
    /// When it was made, in Unix seconds.
    pub created: i64,
    /// `metadata.generation`.
    pub generation: i64,
    /// `metadata.resourceVersion`.
    pub version: u64,
    /// UID of the Node that owns it.
    pub owner: Uid,
    /// Its content.
    pub spec: EncryptionPeerSpec,
}

impl Peer {
    /// As agents read it.
    #[must_use]
    pub fn object(&self, name: &str) -> PeerObject {
        PeerObject {
            name: name.to_owned(),
            uid: self.uid,
            created: self.created,
            generation: self.generation,
            resource_version: self.version.to_string(),
            content: Ok(Content::Announced(self.spec.clone())),
        }
    }
}

/// The Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secret {
    /// `metadata.uid`.
    pub uid: Uid,
    /// Its resourceVersion.
    pub version: u64,
    /// `data.keys`.
    pub document: Option<Rc<[u8]>>,
}

/// Everything that is stored.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    /// The key ring.
    pub secret: Option<Secret>,
    /// By name.
    pub nodes: BTreeMap<String, Node>,
    /// By name.
    pub peers: BTreeMap<String, Rc<Peer>>,
    /// By name.
    pub acks: BTreeMap<String, Rc<NodeEncryption>>,
    /// The KeyRotations.
    pub rotations: Vec<RotationObject>,
    /// UID of the agents' DaemonSet.
    pub daemon_set: Option<Uid>,
}

/// A change that watches bring.
#[derive(Clone, Debug)]
pub enum Change {
    /// The Secret's document.
    Secret(Option<Rc<[u8]>>),
    /// An EncryptionPeer came or changed, or went.
    Peer(String, Option<Rc<Peer>>),
}

/// What is logged of changes, and where each began.
#[derive(Debug, Default)]
pub struct Api {
    /// The store (etcd).
    pub store: Objects,
    /// What the caches go on showing after the store went back under a server that was not restarted.
    pub frozen: Option<Objects>,
    /// Changes of the Secret.
    pub secrets: Vec<Change>,
    /// Changes of EncryptionPeers.
    pub peers: Vec<Change>,
    /// The version of the newest change of anything.
    pub version: u64,
    /// Writes of any kind, by any client.
    pub writes: u64,
    /// What was written, by kind.
    pub kinds: BTreeMap<&'static str, u64>,
    /// Former states of the store.
    pub backups: Vec<Objects>,
}

/// Why a write was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is none of this name.
    NotFound,
    /// It has another version, or is there already.
    Conflict,
}

impl Api {
    /// What caches show.
    #[must_use]
    pub fn cache(&self) -> &Objects {
        self.frozen.as_ref().unwrap_or(&self.store)
    }

    /// The next resourceVersion.
    pub fn next(&mut self, kind: &'static str) -> u64 {
        self.version += 1;
        self.writes += 1;
        *self.kinds.entry(kind).or_default() += 1;
        self.version
    }

    fn log(&mut self, change: Change) {
        if self.frozen.is_none() {
            match change {
                Change::Secret(_) => self.secrets.push(change),
                Change::Peer(..) => self.peers.push(change),
            }
        }
    }

    /// Makes a KeyRotation.
    pub fn create_rotation(&mut self, object: RotationObject) -> RotationObject {
        let object = RotationObject { resource_version: self.next("KeyRotation").to_string(), ..object };
        self.store.rotations.push(object.clone());
        object
    }

    /// A manager's write of the operator's objects, if they are as it has read them.
    pub fn write_object(&mut self, write: ObjectWrite) {
        match write {
            ObjectWrite::RotationStatus { rotation, resource_version, status } => {
                let version = self.version + 1;
                let mut all = self.store.rotations.iter_mut();
                let found = all.find(|object| object.reference == rotation);
                if let Some(object) = found.filter(|object| object.resource_version == resource_version) {
                    (object.status, object.resource_version) = (*status, version.to_string());
                    self.next("KeyRotation");
                }
            }
            ObjectWrite::DeleteRotation(rotation) => {
                self.next("KeyRotation");
                self.store.rotations.retain(|object| object.reference != rotation);
            }
            // There is none here: settings are those of the world.
            ObjectWrite::EncryptionStatus { .. } => {}
        }
    }

    /// Replaces the Secret's document; `None` deletes it.
    pub fn put_secret(&mut self, secret: Option<Secret>) {
        let version = self.next("Secret");
        self.log(Change::Secret(secret.as_ref().and_then(|secret| secret.document.clone())));
        self.store.secret = secret.map(|secret| Secret { version, ..secret });
    }

    /// A GET of a Node.
    #[must_use]
    pub fn node(&self, name: &str) -> NodeLookup {
        self.cache().nodes.get(name).map_or(NodeLookup::NotFound, |node| NodeLookup::Found(node.uid))
    }

    /// A list of EncryptionPeers from the cache.
    #[must_use]
    pub fn list_peers(&self) -> Vec<PeerObject> {
        self.cache().peers.iter().map(|(name, peer)| peer.object(name)).collect()
    }

    /// An agent's write of its EncryptionPeer.
    ///
    /// # Errors
    /// The object is another one.
    pub fn write_peer(
        &mut self,
        name: &str,
        replaces: Option<(Uid, u64)>,
        spec: &EncryptionPeerSpec,
        fresh: (Uid, i64),
    ) -> Result<PeerObject, Refusal> {
        let there = self.store.peers.get(name);
        let (uid, created, generation) = match (there, replaces) {
            (None, None) => (fresh.0, fresh.1, 1),
            (None, Some(_)) => return Err(Refusal::NotFound),
            (Some(there), Some((uid, version))) if (there.uid, there.version) == (uid, version) => {
                (uid, there.created, there.generation + i64::from(there.spec != *spec))
            }
            (Some(_), _) => return Err(Refusal::Conflict),
        };
        let version = self.next("EncryptionPeer");
        let peer = Peer { uid, created, generation, version, owner: spec.node_uid, spec: spec.clone() };
        let object = peer.object(name);
        self.put_peer(name, Some(Rc::new(peer)));
        Ok(object)
    }

    /// Stores an EncryptionPeer as it is, or deletes it.
    pub fn put_peer(&mut self, name: &str, peer: Option<Rc<Peer>>) {
        self.log(Change::Peer(name.to_owned(), peer.clone()));
        match peer {
            Some(peer) => drop(self.store.peers.insert(name.to_owned(), peer)),
            None => drop(self.store.peers.remove(name)),
        }
    }

    /// An agent's write of its NodeEncryption, made if it is not there.
    pub fn write_ack(&mut self, name: &str, ack: Acknowledgement, fresh: Uid) {
        self.next("NodeEncryption");
        let uid = self.store.acks.get(name).map_or(fresh, |there| there.uid);
        let owner = ack.node_uid;
        self.store.acks.insert(name.to_owned(), Rc::new(NodeEncryption { uid, owner, ack }));
    }

    /// The garbage collector: objects whose owner is gone.
    pub fn collect(&mut self) -> BTreeSet<String> {
        let alive: BTreeSet<Uid> = self.store.nodes.values().map(|node| node.uid).collect();
        let orphans: Vec<String> = self
            .store
            .peers
            .iter()
            .filter(|(_, peer)| !alive.contains(&peer.owner))
            .map(|(name, _)| name.clone())
            .collect();
        for name in &orphans {
            self.next("EncryptionPeer");
            self.put_peer(name, None);
        }
        let before = self.store.acks.len();
        self.store.acks.retain(|_, object| alive.contains(&object.owner));
        for _ in self.store.acks.len()..before {
            self.next("NodeEncryption");
        }
        orphans.into_iter().collect()
    }

    /// Remembers the store as a backup would.
    pub fn back_up(&mut self) {
        self.backups.push(self.store.clone());
        let over = self.backups.len().saturating_sub(24);
        self.backups.drain(..over);
    }

    /// The store goes back by so many backups. Nodes are what kubelets make them again, so they stay.
    pub fn go_back(&mut self, back: usize) -> bool {
        let Some(at) = self.backups.len().checked_sub(back.max(1)) else { return false };
        let old = self.backups[at].clone();
        self.frozen.get_or_insert_with(|| self.store.clone());
        self.store = Objects { nodes: self.store.nodes.clone(), daemon_set: self.store.daemon_set, ..old };
        self.backups.truncate(at + 1);
        true
    }

    /// The servers are restarted: their caches show the store.
    pub fn restart(&mut self) {
        self.frozen = None;
    }
}
