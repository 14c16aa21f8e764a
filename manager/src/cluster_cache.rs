//! What the manager knows of the nodes: an index that two watches keep up to date.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::{StreamExt, future::ready};
use kube::{
    Api, Client,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use secureoverlay_common::node::NodeFacts;
use secureoverlay_daemon::{client::describe_watch, watched_node::WatchedNode};
use secureoverlay_manager_core::snapshot::ClusterState;
use tokio::sync::{Notify, watch};

use crate::{
    encryptions::{Said, WatchedEncryption},
    snapshot::{self, ENCRYPTIONS, NODES, SnapshotError},
};

/// Objects in one answer of a watch's list, which is not urgent.
const WATCH_PAGE: u32 = 100;
/// The index. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ClusterCache(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    index: Mutex<Index>,
    changed: Notify,
    wanted: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Index {
    nodes: Watched<Seen>,
    said: Watched<Said>,
    /// Nodes whose word can't be read, as far as the log knows.
    malformed: BTreeSet<String>,
}

/// What a Node object says.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    facts: NodeFacts,
    /// The keys of its taints.
    taints: BTreeSet<String>,
}

impl Seen {
    fn has_taint(&self, key: Option<&str>) -> bool {
        key.is_some_and(|key| self.taints.contains(key))
    }
}

/// What one watch has brought.
#[derive(Debug)]
struct Watched<T> {
    /// `None` until the first list is complete.
    known: Option<BTreeMap<String, T>>,
    /// A list that is not complete yet.
    coming: BTreeMap<String, T>,
    /// Why the watch fails.
    error: Option<String>,
}

impl<T> Default for Watched<T> {
    fn default() -> Self {
        Self { known: None, coming: BTreeMap::new(), error: None }
    }
}

impl<T: PartialEq> Watched<T> {
    /// Whether that changed anything.
    fn fold(&mut self, event: Event<(String, T)>) -> bool {
        if !matches!(event, Event::Init) {
            self.error = None;
        }
        match event {
            Event::Init => {
                self.coming.clear();
                false
            }
            Event::InitApply((name, value)) => {
                self.coming.insert(name, value);
                false
            }
            Event::InitDone => {
                let list = Some(std::mem::take(&mut self.coming));
                let changed = self.known != list;
                self.known = list;
                changed
            }
            Event::Apply((name, value)) => {
                let Some(known) = &mut self.known else { return false };
                let changed = known.get(&name) != Some(&value);
                known.insert(name, value);
                changed
            }
            Event::Delete((name, _)) => {
                self.known.as_mut().is_some_and(|known| known.remove(&name).is_some())
            }
        }
    }

    fn get(&self, what: &'static str) -> Result<&BTreeMap<String, T>, SnapshotError> {
        self.known.as_ref().ok_or_else(|| SnapshotError::Unknown { what, error: self.error.clone() })
    }
}

impl Default for ClusterCache {
    fn default() -> Self {
        Self(Arc::new(Shared {
            index: Mutex::default(),
            changed: Notify::new(),
            wanted: watch::Sender::new(false),
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

    /// What the watches have brought; `taint` is the key of the start-up taint.
    ///
    /// # Errors
    /// Where one of them has brought nothing yet.
    pub fn snapshot(&self, taint: Option<&str>) -> Result<ClusterState, SnapshotError> {
        let index = self.index();
        let (nodes, said) = (index.nodes.get(NODES)?, index.said.get(ENCRYPTIONS)?);
        Ok(snapshot::assemble(
            nodes.values().map(|node| (node.facts.clone(), node.has_taint(taint))),
            said.iter().map(|(name, said)| (name.clone(), said.clone())),
        ))
    }

    /// Takes in what the watch of the Nodes yields.
    pub fn nodes(&self, item: watcher::Result<Event<WatchedNode>>) {
        let item = item.map(|event| {
            map(event, |node| {
                let taints = node.taints();
                let facts = NodeFacts::from(node);
                (facts.name.clone(), Seen { facts, taints })
            })
        });
        self.take(NODES, item, |index| &mut index.nodes);
    }

    /// Takes in what the watch of the NodeEncryptions yields.
    pub fn encryptions(&self, item: watcher::Result<Event<WatchedEncryption>>) {
        let item = item.map(|event| map(event, WatchedEncryption::into_parts));
        if let Ok(Event::Apply((name, said)) | Event::InitApply((name, said))) = &item {
            self.note_malformed(name, said.malformed);
        }
        self.take(ENCRYPTIONS, item, |index| &mut index.said);
    }

    fn take<T: PartialEq>(
        &self,
        what: &'static str,
        item: watcher::Result<Event<(String, T)>>,
        of: impl FnOnce(&mut Index) -> &mut Watched<T>,
    ) {
        let mut index = self.index();
        let watched = of(&mut index);
        match item {
            Ok(event) => {
                // A new list begins with an event of its own before the API has answered.
                if watched.error.is_some() && !matches!(event, Event::Init) {
                    tracing::info!(watch = what, "the API answers again");
                }
                if watched.fold(event) {
                    self.0.changed.notify_one();
                }
            }
            // The API server no longer knows the version that the watch was at: routine, a new list follows.
            Err(watcher::Error::WatchError(status)) if status.code == 410 => {}
            Err(error) => {
                let error = describe_watch(&error);
                if watched.error.is_none() {
                    tracing::warn!(watch = what, error, "cannot watch; going on with what is known");
                }
                watched.error = Some(error);
            }
        }
    }

    fn note_malformed(&self, name: &str, malformed: bool) {
        let mut index = self.index();
        if !malformed {
            index.malformed.remove(name);
        } else if index.malformed.insert(name.to_owned()) {
            tracing::warn!(
                node = name,
                "its NodeEncryption holds an acknowledgement that can't be read, so it counts as none: has somebody \
                 edited it, or is its agent of another version?"
            );
        }
    }

    /// A panic elsewhere leaves plain data behind, which still tells the truth.
    fn index(&self) -> MutexGuard<'_, Index> {
        self.0.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn map<K, T>(event: Event<K>, to: impl FnOnce(K) -> T) -> Event<T> {
    match event {
        Event::Apply(object) => Event::Apply(to(object)),
        Event::Delete(object) => Event::Delete(to(object)),
        Event::Init => Event::Init,
        Event::InitApply(object) => Event::InitApply(to(object)),
        Event::InitDone => Event::InitDone,
    }
}

/// Keeps the index up to date from when it is wanted. Never ends.
pub async fn follow(client: Client, cluster: ClusterCache) {
    // The sender lives as long as `cluster`: there is no error to come.
    let _ = cluster.0.wanted.subscribe().wait_for(|wanted| *wanted).await;
    let config = watcher::Config::default().page_size(WATCH_PAGE);
    let nodes = watcher(Api::<WatchedNode>::all(client.clone()), config.clone()).default_backoff();
    let encryptions = watcher(Api::<WatchedEncryption>::all(client), config).default_backoff();
    tokio::join!(
        nodes.for_each(|item| {
            cluster.nodes(item);
            ready(())
        }),
        encryptions.for_each(|item| {
            cluster.encryptions(item);
            ready(())
        }),
    );
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(name: &str, ready: &str) -> WatchedNode {
        let condition = json!({"type": "Ready", "status": ready});
        serde_json::from_value(json!({"metadata": {"name": name}, "status": {"conditions": [condition]}}))
            .unwrap()
    }

    fn encryption(name: &str, newest: u64) -> WatchedEncryption {
        let uid = "0f3c9b1e-8d1f-4c57-9b43-5a9f3f1f2b01";
        let acknowledgement = json!({"node": uid, "boot": uid, "newest": newest});
        let status = json!({"acknowledgement": acknowledgement, "heartbeat": null});
        serde_json::from_value(json!({"metadata": {"name": name}, "status": status})).unwrap()
    }

    /// Whether a change was told since the last time.
    fn told(cluster: &ClusterCache) -> bool {
        futures::FutureExt::now_or_never(cluster.changed()).is_some()
    }

    fn fill(cluster: &ClusterCache, nodes: &[WatchedNode]) {
        cluster.nodes(Ok(Event::Init));
        nodes.iter().for_each(|node| cluster.nodes(Ok(Event::InitApply(node.clone()))));
        cluster.nodes(Ok(Event::InitDone));
    }

    #[test]
    fn nothing_is_known_before_both_lists_are_complete() {
        let cluster = ClusterCache::default();
        fill(&cluster, &[node("a", "True")]);
        cluster.encryptions(Ok(Event::Init));
        cluster.encryptions(Ok(Event::InitApply(encryption("a", 1))));
        let error = cluster.snapshot(None).unwrap_err().to_string();
        assert!(error.contains("NodeEncryptions are not known yet") && error.contains("manifest"), "{error}");
        cluster.encryptions(Ok(Event::InitDone));
        let view = cluster.snapshot(None).unwrap();
        assert_eq!((view.nodes.len(), view.acknowledgements["a"].newest), (1, 1));
    }

    #[test]
    fn a_list_replaces_what_was_known_only_when_it_is_complete() {
        let cluster = ClusterCache::default();
        fill(&cluster, &[node("a", "True"), node("b", "True")]);
        cluster.encryptions(Ok(Event::InitDone));
        cluster.nodes(Ok(Event::Init));
        cluster.nodes(Ok(Event::InitApply(node("c", "True"))));
        assert_eq!(cluster.snapshot(None).unwrap().nodes.len(), 2);
        cluster.nodes(Ok(Event::InitDone));
        let names: Vec<String> =
            cluster.snapshot(None).unwrap().nodes.into_iter().map(|node| node.name).collect();
        assert_eq!(names, ["c"]);
        cluster.nodes(Ok(Event::Delete(node("c", "True"))));
        assert!(cluster.snapshot(None).unwrap().nodes.is_empty());
    }

    #[test]
    fn only_what_matters_is_told() {
        let cluster = ClusterCache::default();
        fill(&cluster, &[node("a", "True")]);
        assert!(told(&cluster) && !told(&cluster));
        cluster.nodes(Ok(Event::Apply(node("a", "True"))));
        assert!(!told(&cluster), "a kubelet's sign of life");
        cluster.nodes(Ok(Event::Apply(node("a", "Unknown"))));
        assert!(told(&cluster));
        cluster.encryptions(Ok(Event::InitDone));
        cluster.encryptions(Ok(Event::Apply(encryption("a", 1))));
        assert!(told(&cluster));
        cluster.encryptions(Ok(Event::Apply(encryption("a", 1))));
        assert!(!told(&cluster), "an agent's sign of life");
        cluster.encryptions(Ok(Event::Apply(encryption("a", 2))));
        assert!(told(&cluster));
    }

    #[test]
    fn a_watch_that_fails_says_why_nothing_is_known() {
        let cluster = ClusterCache::default();
        cluster.nodes(Err(watcher::Error::NoResourceVersion));
        let error = cluster.snapshot(None).unwrap_err().to_string();
        assert!(error.contains("Nodes are not known yet (the API server's answer has no"), "{error}");
    }
}
