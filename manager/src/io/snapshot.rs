//! All nodes at one moment, as the API server has them.

use kube::Client;
use secureoverlay_k8s::{
    client::describe,
    cluster_encryption::ClusterEncryption,
    encryption_peer::EncryptionPeer,
    key_rotation::KeyRotation,
    node::{NodeFacts as Facts, SlimNode},
    node_encryption::{NodeEncryption, Reported},
    object::{Content, Object as Read},
    watch::{Source, list_by_quorum},
};
use secureoverlay_keyring::peer::EncryptionPeerSpec;
use secureoverlay_manager_core::snapshot::ClusterState;
use secureoverlay_rotation::{NodeFacts, Object};
use serde_json::Value;

/// Kinds of objects, as people are told of them.
pub(crate) const NODES: &str = "Nodes";
pub(crate) const PEERS: &str = "EncryptionPeers";
pub(crate) const ENCRYPTIONS: &str = "NodeEncryptions";
pub(crate) const PODS: &str = "Pods";
pub(crate) const SETTINGS: &str = "ClusterEncryptions";
pub(crate) const ROTATIONS: &str = "KeyRotations";

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A watch has not brought its first list yet.
    #[error(
        "{what} are not known yet{}: nothing is rotated. Is the manifest applied, with the manager's right to list and watch them?",
        .error.as_ref().map_or_else(String::new, |error| format!(" ({error})"))
    )]
    Unknown {
        /// The objects.
        what: &'static str,
        /// What the watch says, if it fails.
        error: Option<String>,
    },
    /// A fresh list failed.
    #[error("failed to list {what}: {}. Nothing is rotated until they can be listed", describe(.error))]
    List {
        /// The objects.
        what: &'static str,
        /// Why.
        #[source]
        error: kube::Error,
    },
}

/// A Node as a rotation sees it, and the keys of its taints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchedNode {
    /// What a rotation depends on.
    pub facts: NodeFacts,
    taints: Vec<String>,
}

impl From<Facts> for WatchedNode {
    fn from(node: Facts) -> Self {
        let calico = node.calico_address.flatten();
        Self {
            facts: NodeFacts {
                addresses: node.internal_addresses.into_iter().chain(calico).collect(),
                name: node.name,
                uid: node.uid,
                ready: node.ready,
                excluded: node.excluded,
                linux: node.linux,
            },
            taints: node.taints,
        }
    }
}

impl Content for WatchedNode {
    fn read(object: Value) -> Result<Self, String> {
        Facts::read(object).map(Self::from)
    }
}

/// The name of the Node that a Ready Pod of an agent runs on; `None` for a Pod that is not Ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentPod(pub Option<String>);

impl Content for AgentPod {
    fn read(object: Value) -> Result<Self, String> {
        let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
        let mut ready = conditions.filter(|it| it["type"] == "Ready").map(|it| it["status"] == "True");
        let node = object["spec"]["nodeName"].as_str().filter(|_| ready.next() == Some(true));
        Ok(Self(node.map(str::to_owned)))
    }
}

/// What is watched and listed.
pub(crate) fn nodes() -> Source {
    Source::cluster::<SlimNode>()
}

pub(crate) fn peers() -> Source {
    Source::cluster::<EncryptionPeer>()
}

pub(crate) fn encryptions() -> Source {
    Source::cluster::<NodeEncryption>()
}

pub(crate) fn settings() -> Source {
    Source::cluster::<ClusterEncryption>()
}

pub(crate) fn rotations() -> Source {
    Source::cluster::<KeyRotation>()
}

/// Lists everything anew, past every cache; `cached` is what the watches have brought. Pods are taken from there: no key
/// decision rests on them. `taint` is the key of the start-up taint.
///
/// # Errors
/// Where a list is refused, or breaks off.
pub async fn list(
    client: &Client,
    taint: Option<&str>,
    cached: ClusterState,
) -> Result<ClusterState, SnapshotError> {
    let (nodes, peers, encryptions) = tokio::try_join!(
        fresh::<WatchedNode>(client, NODES, nodes()),
        fresh::<EncryptionPeerSpec>(client, PEERS, peers()),
        fresh::<Reported>(client, ENCRYPTIONS, encryptions()),
    )?;
    let mut state = ClusterState { ready_pods: cached.ready_pods, ..ClusterState::default() };
    for node in nodes {
        // A Node that can't be read is there all the same: leaving it out would be the greater mistake.
        add_node(&mut state, &node, taint);
    }
    state.peers = peers.into_iter().map(|peer| (peer.meta.name.clone(), object(peer, Some))).collect();
    for encryption in encryptions {
        add_encryption(&mut state, encryption);
    }
    Ok(state)
}

async fn fresh<T: Content>(
    client: &Client,
    what: &'static str,
    source: Source,
) -> Result<Vec<Read<T>>, SnapshotError> {
    list_by_quorum(client, &source).await.map_err(|error| SnapshotError::List { what, error })
}

/// Adds a Node to a snapshot.
pub(crate) fn add_node(state: &mut ClusterState, node: &Read<WatchedNode>, taint: Option<&str>) {
    let node = match &node.content {
        Ok(node) => node.clone(),
        Err(_) => WatchedNode::from(Facts {
            name: node.meta.name.clone(),
            uid: node.meta.uid,
            linux: true,
            ..Facts::default()
        }),
    };
    if taint.is_some_and(|key| node.taints.iter().any(|taint| taint == key)) {
        state.tainted.insert(node.facts.name.clone());
    }
    state.nodes.push(node.facts);
}

/// Adds a NodeEncryption to a snapshot.
pub(crate) fn add_encryption(state: &mut ClusterState, read: Read<Reported>) {
    let name = read.meta.name.clone();
    if read.content.as_ref().is_ok_and(|reported| reported.covered) {
        state.covered.insert(name.clone());
    }
    state.acks.insert(name, object(read, |reported| reported.acknowledgement));
}

/// An object as the controller takes it.
pub(crate) fn object<T, C>(read: Read<T>, content: impl FnOnce(T) -> Option<C>) -> Object<C> {
    Object { uid: read.meta.uid, created: read.meta.created, content: read.content.ok().and_then(content) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pod_tells_its_node_while_it_is_ready() {
        let pod = |status: &str| {
            json!({"spec": {"nodeName": "a"}, "status": {"conditions": [
                {"type": "Initialized", "status": "True"}, {"type": "Ready", "status": status},
            ]}})
        };
        let read = |object| AgentPod::read(object).unwrap().0;
        assert_eq!(read(pod("True")).as_deref(), Some("a"));
        for object in [pod("False"), json!({}), json!([]), json!({"spec": {"nodeName": "a"}, "status": 5})] {
            assert_eq!(read(object.clone()), None, "{object}");
        }
    }

    #[test]
    fn node_that_cannot_be_read_is_there_all_the_same() {
        let mut state = ClusterState::default();
        let good = json!({"metadata": {"name": "a"}, "spec": {"taints": [{"key": "t"}]}});
        for node in [good, json!({"metadata": {"name": "b"}, "status": 5})] {
            add_node(&mut state, &Read::read(node), Some("t"));
        }
        let names: Vec<_> = state.nodes.iter().map(|node| (node.name.as_str(), node.ready)).collect();
        assert_eq!((names, state.tainted), (vec![("a", false), ("b", false)], ["a".to_owned()].into()));
    }
}
