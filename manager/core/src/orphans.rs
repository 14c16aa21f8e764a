//! Objects whose Node is gone for good.
//!
//! Garbage collection removes what a Node owned. What stays, or was made for a node that never existed, is deleted an
//! hour after its Node was seen last.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use secureoverlay_keyring::uid::Uid;

use crate::snapshot::ClusterState;

/// So long after the Node was seen last.
const AFTER: Duration = Duration::from_secs(3600);
/// Between two tries with one object.
const AGAIN: Duration = Duration::from_secs(300);
/// Objects that are deleted in one go.
const BATCH: usize = 20;

/// A kind of object that each node has one of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ObjectKind {
    /// What it announces.
    EncryptionPeer,
    /// What it acknowledges.
    NodeEncryption,
}

/// An object to be deleted, if a GET says that there is no Node of its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deletion {
    /// Which kind of object.
    pub kind: ObjectKind,
    /// Its name, and that of the Node.
    pub name: String,
    /// The object's UID: another one of that name stays.
    pub uid: Uid,
}

/// Remembers since when objects have no Node.
#[derive(Debug, Default)]
pub(crate) struct OrphanTracker(BTreeMap<Deletion, Orphan>);

#[derive(Debug)]
struct Orphan {
    since: Instant,
    tried: Option<Instant>,
}

impl OrphanTracker {
    /// The objects to be deleted at `now`.
    pub(crate) fn due(&mut self, cluster: &ClusterState, now: Instant) -> Vec<Deletion> {
        if cluster.nodes.is_empty() {
            // No cluster is empty: this is a list that went wrong.
            return Vec::new();
        }
        let nodes: BTreeSet<&str> = cluster.nodes.iter().map(|node| node.name.as_str()).collect();
        let peers = cluster.peers.iter().map(|(name, object)| (ObjectKind::EncryptionPeer, name, object.uid));
        let acks = cluster.acks.iter().map(|(name, object)| (ObjectKind::NodeEncryption, name, object.uid));
        let mut before = std::mem::take(&mut self.0);
        for (kind, name, uid) in peers.chain(acks).filter(|(_, name, _)| !nodes.contains(name.as_str())) {
            let Some(uid) = uid else { continue };
            let deletion = Deletion { kind, name: name.clone(), uid };
            let orphan = before.remove(&deletion).unwrap_or(Orphan { since: now, tried: None });
            self.0.insert(deletion, orphan);
        }
        let passed = |since: Instant, span| now.saturating_duration_since(since) >= span;
        let due = self.0.iter_mut().filter(|(_, orphan)| {
            passed(orphan.since, AFTER) && orphan.tried.is_none_or(|tried| passed(tried, AGAIN))
        });
        due.take(BATCH)
            .map(|(deletion, orphan)| {
                orphan.tried = Some(now);
                deletion.clone()
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use secureoverlay_rotation::{NodeFacts, Object};

    use super::*;
    use crate::testing::uid;

    /// A Ready node.
    fn node(name: &str, n: u8) -> NodeFacts {
        NodeFacts {
            name: name.to_owned(),
            uid: Some(uid(n)),
            ready: true,
            excluded: false,
            linux: true,
            addresses: [format!("192.0.2.{n}").parse().unwrap()].into(),
        }
    }

    #[test]
    fn objects_go_an_hour_after_their_node_was_seen_last() {
        let (mut tracker, start) = (OrphanTracker::default(), Instant::now());
        let object = |n| Object { uid: Some(uid(n)), created: None, content: None };
        let mut cluster = ClusterState { nodes: vec![node("a", 1), node("b", 2)], ..ClusterState::default() };
        cluster.peers = [("a".to_owned(), object(11)), ("b".to_owned(), object(12))].into();
        assert_eq!(tracker.due(&cluster, start), []);
        cluster.nodes.truncate(1);
        assert_eq!(tracker.due(&cluster, start), []);
        assert_eq!(tracker.due(&cluster, start + AFTER / 2), []);
        let gone = Deletion { kind: ObjectKind::EncryptionPeer, name: "b".to_owned(), uid: uid(12) };
        assert_eq!(tracker.due(&cluster, start + AFTER), std::slice::from_ref(&gone));
        assert_eq!(tracker.due(&cluster, start + AFTER), [], "it is being deleted");
        assert_eq!(tracker.due(&cluster, start + AFTER + AGAIN), [gone], "that failed");
        cluster.nodes.clear();
        assert_eq!(tracker.due(&cluster, start + 3 * AFTER), [], "an empty list is not believed");
        cluster.nodes = vec![node("a", 1), node("b", 2)];
        assert_eq!(tracker.due(&cluster, start + 3 * AFTER), []);
        cluster.nodes.truncate(1);
        assert_eq!(tracker.due(&cluster, start + 3 * AFTER), [], "it was there in between");
    }
}
