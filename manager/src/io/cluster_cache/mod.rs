//! What the manager knows of the nodes, and what operators ask for: an index that watches keep up to date.

mod watched;

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use kube::Client;
use secureoverlay_k8s::{
    cluster_encryption::Wanted,
    key_rotation::Requested,
    node_encryption::Reported,
    object::Content,
    watch::{self, Source, Update},
};
use secureoverlay_keyring::peer::EncryptionPeerSpec;
use secureoverlay_manager_core::{operator::OperatorObjects, snapshot::ClusterState};
use tokio::sync::{Notify, mpsc::channel, watch as signal};

use self::watched::Watched;
use crate::io::{
    objects,
    snapshot::{
        self, AgentPod, ENCRYPTIONS, NODES, PEERS, PODS, ROTATIONS, SETTINGS, SnapshotError, WatchedNode,
    },
};

/// Updates of a watch that wait to be taken in.
const QUEUE: usize = 64;

/// The index. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ClusterCache(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    index: Mutex<Index>,
    changed: Notify,
    wanted: signal::Sender<bool>,
    /// A list showed that the history of the API server went back.
    went_back: AtomicBool,
}

/// What the watches have brought.
#[derive(Debug, Default)]
pub struct Index {
    nodes: Watched<WatchedNode>,
    peers: Watched<EncryptionPeerSpec>,
    encryptions: Watched<Reported>,
    pods: Watched<AgentPod>,
    settings: Watched<Wanted>,
    rotations: Watched<Requested>,
}

/// A kind of object that the index holds.
trait Indexed: Content + PartialEq {
    const WHAT: &'static str;
    fn of(index: &mut Index) -> &mut Watched<Self>;
}

impl Indexed for WatchedNode {
    const WHAT: &'static str = NODES;
    fn of(index: &mut Index) -> &mut Watched<Self> {
        &mut index.nodes
    }
}

impl Indexed for EncryptionPeerSpec {
    const WHAT: &'static str = PEERS;
    fn of(index: &mut Index) -> &mut Watched<Self> {
        &mut index.peers
    }
}

impl Indexed for Reported {
    const WHAT: &'static str = ENCRYPTIONS;
    fn of(index: &mut Index) -> &mut Watched<Self> {
        &mut index.encryptions
    }
}

impl Indexed for AgentPod {
    const WHAT: &'static str = PODS;
    fn of(index: &mut Index) -> &mut Watched<Self> {
        &mut index.pods
    }
}

impl Indexed for Wanted {
    const WHAT: &'static str = SETTINGS;
    fn of(index: &mut Index) -> &mut Watched<Self> {
        &mut index.settings
    }
}

impl Indexed for Requested {
    const WHAT: &'static str = ROTATIONS;
    fn of(index: &mut Index) -> &mut Watched<Self> {
        &mut index.rotations
    }
}

impl Default for ClusterCache {
    fn default() -> Self {
        Self(Arc::new(Shared {
            index: Mutex::default(),
            changed: Notify::new(),
            wanted: signal::Sender::new(false),
            went_back: AtomicBool::new(false),
        }))
    }
}

impl ClusterCache {
    /// From here on the watches are needed.
    pub fn want(&self) {
        self.0.wanted.send_replace(true);
    }

    /// Returns when something has changed since the last time that it did.
    pub async fn changed(&self) {
        self.0.changed.notified().await;
    }

    /// Whether a list has shown since the last call that the history of the API server went back.
    #[must_use]
    pub fn take_went_back(&self) -> bool {
        self.0.went_back.swap(false, Ordering::Relaxed)
    }

    /// What the watches have brought; `taint` is the key of the start-up taint.
    ///
    /// # Errors
    /// Where one of them has brought nothing yet.
    pub fn snapshot(&self, taint: Option<&str>) -> Result<ClusterState, SnapshotError> {
        let index = self.index();
        let mut state = ClusterState::default();
        for node in index.nodes.get(NODES)? {
            snapshot::add_node(&mut state, node, taint);
        }
        let named = |name: &String| name.clone();
        state.peers = index
            .peers
            .get(PEERS)?
            .map(|peer| (named(&peer.meta.name), snapshot::object(peer.clone(), Some)))
            .collect();
        for encryption in index.encryptions.get(ENCRYPTIONS)? {
            snapshot::add_encryption(&mut state, encryption.clone());
        }
        state.ready_pods = match index.pods.get(PODS) {
            Ok(pods) => pods.filter_map(|pod| pod.content.as_ref().ok()?.0.clone()).collect(),
            // No key decision rests on them. Where they may not be read, each agent is taken to be there.
            Err(_) => state.nodes.iter().map(|node| node.name.clone()).collect(),
        };
        Ok(state)
    }

    /// What operators ask for by objects.
    ///
    /// # Errors
    /// Where one of the watches has brought nothing yet.
    pub fn objects(&self) -> Result<OperatorObjects, SnapshotError> {
        let index = self.index();
        Ok(objects::objects(index.settings.get(SETTINGS)?, index.rotations.get(ROTATIONS)?))
    }

    /// Takes in what the watch of the Nodes yields.
    pub fn nodes(&self, update: Update<WatchedNode>) {
        self.take(update);
    }

    /// Takes in what the watch of the EncryptionPeers yields.
    pub fn peers(&self, update: Update<EncryptionPeerSpec>) {
        self.take(update);
    }

    /// Takes in what the watch of the NodeEncryptions yields.
    pub fn encryptions(&self, update: Update<Reported>) {
        self.take(update);
    }

    /// Takes in what the watch of the agents' Pods yields.
    pub fn pods(&self, update: Update<AgentPod>) {
        self.take(update);
    }

    /// Takes in what the watch of the ClusterEncryptions yields.
    pub fn settings(&self, update: Update<Wanted>) {
        self.take(update);
    }

    /// Takes in what the watch of the KeyRotations yields.
    pub fn rotations(&self, update: Update<Requested>) {
        self.take(update);
    }

    fn take<T: Indexed>(&self, update: Update<T>) {
        let went_back = matches!(update, Update::List { went_back: true, .. });
        if went_back {
            tracing::warn!(watch = T::WHAT, "the API server shows an older state: a backup was restored");
            self.0.went_back.store(true, Ordering::Relaxed);
        }
        let changed = T::of(&mut self.index()).fold(T::WHAT, update);
        if changed || went_back {
            self.0.changed.notify_one();
        }
    }

    /// A panic elsewhere leaves plain data behind, which still tells the truth.
    fn index(&self) -> MutexGuard<'_, Index> {
        self.0.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps the index up to date from when it is wanted. Never ends.
pub async fn follow(client: Client, cluster: &ClusterCache) {
    // The sender lives as long as `cluster`: there is no error to come.
    let _ = cluster.0.wanted.subscribe().wait_for(|wanted| *wanted).await;
    tokio::join!(
        watch_one::<WatchedNode>(client.clone(), snapshot::nodes(), cluster),
        watch_one::<EncryptionPeerSpec>(client.clone(), snapshot::peers(), cluster),
        watch_one::<Reported>(client.clone(), snapshot::encryptions(), cluster),
        watch_one::<AgentPod>(client, Source::agent_pods(), cluster),
    );
}

/// Keeps what operators ask for up to date. Never ends.
pub async fn follow_objects(client: Client, cluster: &ClusterCache) {
    tokio::join!(
        watch_one::<Wanted>(client.clone(), snapshot::settings(), cluster),
        watch_one::<Requested>(client, snapshot::rotations(), cluster),
    );
}

async fn watch_one<T: Indexed>(client: Client, source: Source, cluster: &ClusterCache) {
    let (sender, mut updates) = channel(QUEUE);
    let taking = async {
        while let Some(update) = updates.recv().await {
            cluster.take::<T>(update);
        }
    };
    tokio::join!(watch::follow(client, source, sender), taking);
}

#[cfg(test)]
mod tests {
    use secureoverlay_k8s::{object::Object, watch::Failure};
    use serde_json::{Value, json};

    use super::*;

    const UID: &str = "0f3c9b1e-8d1f-4c57-9b43-5a9f3f1f2b01";

    fn node(name: &str, ready: &str) -> Object<WatchedNode> {
        let condition = json!({"type": "Ready", "status": ready});
        Object::read(json!({"metadata": {"name": name}, "status": {"conditions": [condition]}}))
    }

    fn encryption(name: &str, version: &str, acknowledgement: &Value) -> Object<Reported> {
        let metadata = json!({"name": name, "resourceVersion": version});
        Object::read(json!({"metadata": metadata, "status": {"acknowledgement": acknowledgement}}))
    }

    fn acknowledgement(highest: u64) -> Value {
        json!({
            "ackId": UID, "nodeUid": UID, "instance": UID, "enforcement": "permissive",
            "highestGenerationSeen": highest,
        })
    }

    fn list<T>(objects: Vec<Object<T>>) -> Update<T> {
        Update::List { objects, went_back: false }
    }

    /// Whether a change was told since the last time.
    fn told(cluster: &ClusterCache) -> bool {
        futures::FutureExt::now_or_never(cluster.changed()).is_some()
    }

    fn full() -> ClusterCache {
        let cluster = ClusterCache::default();
        cluster.nodes(list(vec![node("a", "True"), node("b", "True")]));
        cluster.peers(list(Vec::new()));
        cluster.encryptions(list(vec![encryption("a", "1", &acknowledgement(1))]));
        assert!(told(&cluster));
        cluster
    }

    #[test]
    fn nothing_is_known_before_all_lists_but_that_of_pods_are_there() {
        let cluster = ClusterCache::default();
        cluster.nodes(list(vec![node("a", "True")]));
        cluster.peers(list(Vec::new()));
        let error = cluster.snapshot(None).unwrap_err().to_string();
        assert!(error.contains("NodeEncryptions are not known yet") && error.contains("manifest"), "{error}");
        cluster.encryptions(list(Vec::new()));
        let state = cluster.snapshot(None).unwrap();
        assert_eq!((state.nodes.len(), state.ready_pods), (1, ["a".to_owned()].into()));
        cluster.pods(list(Vec::new()));
        assert!(cluster.snapshot(None).unwrap().ready_pods.is_empty());
    }

    #[test]
    fn hostile_object_harms_no_other() {
        let cluster = full();
        let hostile =
            [json!({"ackId": "me"}), json!([]), json!("yes"), json!({"ackId": {}, "receivable": 3})];
        for acknowledgement in hostile {
            cluster.encryptions(Update::Applied(encryption("b", "2", &acknowledgement)));
            let state = cluster.snapshot(None).unwrap();
            assert_eq!(state.acks["b"].content, None, "{acknowledgement}");
            assert!(state.acks["a"].content.is_some());
        }
        cluster.encryptions(Update::Applied(encryption("b", "3", &Value::Null)));
        assert_eq!(cluster.snapshot(None).unwrap().acks["b"].content, None, "it says nothing yet");
    }

    #[test]
    fn only_what_matters_is_told() {
        let cluster = full();
        cluster.nodes(Update::Applied(node("a", "True")));
        assert!(!told(&cluster), "a kubelet's sign of life");
        cluster.nodes(Update::Applied(node("a", "Unknown")));
        assert!(told(&cluster));
        cluster.encryptions(Update::Applied(encryption("a", "2", &acknowledgement(1))));
        assert!(!told(&cluster), "another part of its status has changed");
        cluster.encryptions(Update::Applied(encryption("a", "3", &acknowledgement(2))));
        assert!(told(&cluster));
        cluster.nodes(Update::Heard);
        cluster.nodes(list(vec![node("a", "Unknown"), node("b", "True")]));
        assert!(!told(&cluster), "the same once more");
        cluster.nodes(Update::Deleted(node("b", "True")));
        assert!(told(&cluster));
        assert_eq!(cluster.snapshot(None).unwrap().nodes.len(), 1);
        assert!(!cluster.take_went_back());
        cluster.nodes(Update::List { objects: vec![node("a", "Unknown")], went_back: true });
        assert!(told(&cluster) && cluster.take_went_back() && !cluster.take_went_back());
    }

    #[test]
    fn watch_that_fails_says_why_nothing_is_known() {
        let cluster = ClusterCache::default();
        let failure = Failure { message: "forbidden".to_owned(), code: Some(403) };
        cluster.nodes(Update::Failed(failure));
        let error = cluster.snapshot(None).unwrap_err().to_string();
        assert!(error.contains("Nodes are not known yet (forbidden)"), "{error}");
    }
}
