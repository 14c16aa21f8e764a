//! All nodes at one moment, as the API server has them.

use kube::{Api, Client, api::ListParams};
use secureoverlay_common::node::NodeFacts;
use secureoverlay_daemon::{client::describe, watched_node::WatchedNode};
use secureoverlay_manager_core::snapshot::ClusterState;
use serde::de::DeserializeOwned;

use crate::encryptions::{Said, WatchedEncryption};

pub(crate) const NODES: &str = "Nodes";
pub(crate) const ENCRYPTIONS: &str = "NodeEncryptions";
/// Objects in one answer of a fresh list.
const PAGE: u32 = 500;

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
    #[error("listing {what}: {}. Nothing is rotated until they can be listed", describe(.error))]
    List {
        /// The objects.
        what: &'static str,
        /// Why.
        #[source]
        error: kube::Error,
    },
}

/// Lists everything anew, past every cache; `taint` is the key of the start-up taint.
///
/// # Errors
/// Where a list is refused, or breaks off.
pub async fn list(client: &Client, taint: Option<&str>) -> Result<ClusterState, SnapshotError> {
    let nodes = pages(client, NODES, |node: WatchedNode| {
        let tainted = taint.is_some_and(|key| node.taints().contains(key));
        (NodeFacts::from(node), tainted)
    });
    let said = pages(client, ENCRYPTIONS, WatchedEncryption::into_parts);
    let (nodes, said) = tokio::try_join!(nodes, said)?;
    Ok(assemble(nodes, said))
}

/// A snapshot of Nodes, with or without the start-up taint, and of NodeEncryptions.
pub(crate) fn assemble(
    nodes: impl IntoIterator<Item = (NodeFacts, bool)>,
    said: impl IntoIterator<Item = (String, Said)>,
) -> ClusterState {
    let mut snapshot = ClusterState::default();
    for (node, tainted) in nodes {
        if tainted {
            snapshot.tainted.insert(node.name.clone());
        }
        snapshot.nodes.push(node);
    }
    for (name, said) in said {
        if let Some(awaited) = said.awaited {
            snapshot.awaited.insert(name.clone(), awaited);
        }
        if let Some(acknowledgement) = said.acknowledgement {
            snapshot.acknowledgements.insert(name, acknowledgement);
        }
    }
    snapshot
}

/// All objects of a kind, a page at a time. `to` takes from each what is needed: 5,000 whole ones take a lot of room.
pub(crate) async fn pages<K, T>(
    client: &Client,
    what: &'static str,
    to: impl Fn(K) -> T,
) -> Result<Vec<T>, SnapshotError>
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
{
    let api = Api::<K>::all(client.clone());
    // Without a resourceVersion: what the store holds now, not what a cache of the API server does.
    let mut params = ListParams::default().limit(PAGE);
    let mut all = Vec::new();
    loop {
        let page = api.list(&params).await.map_err(|error| SnapshotError::List { what, error })?;
        all.extend(page.items.into_iter().map(&to));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => return Ok(all),
        }
    }
}
