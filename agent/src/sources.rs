//! Watches of the API, as events for the decisions.

use std::collections::BTreeMap;

use kube::Client;
use secureoverlay_agent_core::{agent::Event, exclusion::Excluded, peers::PeerObject};
use secureoverlay_k8s::{
    encryption_peer::EncryptionPeer,
    node::{NodeFacts, SlimNode},
    object::{Content, Object},
    watch::{Failure, Source, Update, follow},
};
use secureoverlay_keyring::peer::EncryptionPeerSpec;
use tokio::sync::mpsc::{self, Sender};

use crate::{
    api::{node_object, peer_object},
    heard::Heard,
    inputs::Input,
    metrics::Metrics,
};

const QUEUE: usize = 1024;

/// Tells failures of one watch once, and their end.
struct Told {
    what: &'static str,
    failing: bool,
    metrics: Metrics,
    heard: Heard,
}

impl Told {
    fn failed(&mut self, failure: &Failure) {
        self.metrics.watch_error(self.what);
        if self.failing {
            tracing::debug!(watch = self.what, error = failure.message, "still cannot watch");
        } else {
            tracing::warn!(watch = self.what, error = failure.message, "cannot watch; keeping what is known");
        }
        self.failing = true;
    }

    fn heard(&mut self) {
        self.heard.note();
        if std::mem::take(&mut self.failing) {
            tracing::info!(watch = self.what, "the API answers again");
        }
    }
}

/// Watches the objects that announce nodes.
pub async fn follow_peers(client: Client, events: Sender<Input>, told: (Metrics, Heard)) {
    watch::<EncryptionPeerSpec>(
        client,
        (Source::cluster::<EncryptionPeer>(), "encryptionpeers"),
        told,
        |update| {
            let event = match update {
                Update::List { objects, .. } => {
                    Event::PeerList(objects.into_iter().filter_map(peer_object).collect())
                }
                Update::Applied(object) => Event::PeerApplied(peer_object(object)?),
                Update::Deleted(object) => Event::PeerDeleted(object.meta.name),
                Update::Heard | Update::Failed(_) => return None,
            };
            Some(vec![event])
        },
        events,
    )
    .await;
}

/// Watches Nodes in their place, under MKE's manifest: who they are, and which are excluded.
pub async fn follow_nodes(client: Client, own: String, events: Sender<Input>, told: (Metrics, Heard)) {
    let mut excluded: BTreeMap<String, NodeFacts> = BTreeMap::new();
    let to_events = move |update: Update<NodeFacts>| {
        let note =
            |excluded: &mut BTreeMap<String, NodeFacts>, object: &Object<NodeFacts>| match &object.content {
                Ok(facts) if facts.excluded || !facts.linux => {
                    excluded.insert(object.meta.name.clone(), facts.clone());
                }
                Ok(_) => drop(excluded.remove(&object.meta.name)),
                Err(_) => {}
            };
        let event = match update {
            Update::List { objects, .. } => {
                excluded.clear();
                objects.iter().for_each(|object| note(&mut excluded, object));
                Event::PeerList(objects.into_iter().filter_map(node_object).collect::<Vec<PeerObject>>())
            }
            Update::Applied(object) => {
                note(&mut excluded, &object);
                Event::PeerApplied(node_object(object)?)
            }
            Update::Deleted(object) => Event::PeerDeleted(object.meta.name),
            Update::Heard | Update::Failed(_) => return None,
        };
        let now = Excluded {
            local: excluded.contains_key(&own),
            addresses: excluded.values().filter_map(NodeFacts::address).collect(),
        };
        Some(vec![event, Event::Excluded(now)])
    };
    let source = (Source::cluster::<SlimNode>(), "nodes");
    watch::<NodeFacts>(client, source, told, to_events, events).await;
}

/// Watches `what` there is at a source, and tells it as events.
pub async fn watch<T: Content>(
    client: Client,
    (source, what): (Source, &'static str),
    (metrics, heard): (Metrics, Heard),
    mut to_events: impl FnMut(Update<T>) -> Option<Vec<Event>>,
    events: Sender<Input>,
) {
    let (updates, mut all) = mpsc::channel(QUEUE);
    tokio::spawn(follow::<T>(client, source, updates));
    let mut failures = Told { what, failing: false, metrics, heard };
    while let Some(update) = all.recv().await {
        match &update {
            Update::Failed(failure) => failures.failed(failure),
            _ => failures.heard(),
        }
        let went_back = matches!(update, Update::List { went_back: true, .. });
        let inputs = to_events(update).into_iter().flatten().map(Input::from);
        for input in inputs.chain(went_back.then_some(Input::HistoryWentBack)) {
            if events.send(input).await.is_err() {
                return;
            }
        }
    }
}
