//! Who the peers are: the objects that announce nodes, or Nodes in their place.

use std::collections::BTreeMap;

use kube::Client;
use secureoverlay_agent_core::{agent::Event, exclusion::Excluded, peers::PeerObject};
use secureoverlay_k8s::{
    encryption_peer::EncryptionPeer,
    node::{NodeFacts, SlimNode},
    object::Object,
    watch::{Source, Update},
};
use secureoverlay_keyring::peer::EncryptionPeerSpec;
use tokio::sync::mpsc::Sender;

use super::watch;
use crate::{
    io::{
        input::Input,
        requests::{node_object, peer_object},
    },
    telemetry::{heard::Heard, metrics::Metrics},
};

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
