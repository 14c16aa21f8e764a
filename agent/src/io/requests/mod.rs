//! What the API says of nodes and takes of this one, in the terms of the decisions.
//!
//! | module | does |
//! |---|---|
//! | [`announcer`], [`refusal`] | this node's EncryptionPeer; what admission says of a write |
//! | [`nodes`] | a Node |
//! | [`ring`] | the Secret with the key ring, past every cache |

pub mod announcer;
pub mod nodes;
pub mod refusal;
pub mod ring;

#[cfg(test)]
mod testing;

use kube::Client;
use secureoverlay_agent_core::{
    agent::Event,
    announcer::{Announcement, WriteResult},
    entry::Entry,
    peers::{Content, NodeLookup, PeerObject},
    ring_cache::RingInput,
};
use secureoverlay_k8s::{
    node::NodeFacts,
    object::{Meta, Object},
    ring_secret::RingDocument,
};
use secureoverlay_keyring::peer::EncryptionPeerSpec;

use crate::io::requests::{
    announcer::{Announcer, Written},
    nodes::NodeAnswer,
    ring::RingAnswer,
};

/// What a GET of a Node said, and what it shows.
pub async fn look_up_node(client: &Client, name: &str) -> (NodeLookup, Option<NodeFacts>) {
    match nodes::get(client, name).await {
        NodeAnswer::Found(facts) => (facts.uid.map_or(NodeLookup::Failed, NodeLookup::Found), Some(*facts)),
        NodeAnswer::NotFound => (NodeLookup::NotFound, None),
        NodeAnswer::Failed(error) => {
            tracing::debug!(node = name, error, "cannot get the Node");
            (NodeLookup::Failed, None)
        }
    }
}

/// Reads the ring, past every cache. Returns what follows from the answer.
pub async fn read_ring(client: &Client) -> Vec<Event> {
    let shown = match ring::read(client).await {
        RingAnswer::Found(object) => match object.content {
            Ok(RingDocument(Some(document))) => Some(RingInput::Document(document)),
            // The watch tells what is wrong with it.
            Ok(RingDocument(None)) | Err(_) => None,
        },
        RingAnswer::NotFound | RingAnswer::Forbidden => None,
        RingAnswer::Failed(error) => {
            tracing::debug!(error, "cannot read the key ring");
            return vec![Event::RingRead(false)];
        }
    };
    shown.map(Event::Ring).into_iter().chain([Event::RingRead(true)]).collect()
}

/// Writes this node's EncryptionPeer. Returns what follows from the answer.
pub async fn announce(client: &Client, name: &str, announcement: &Announcement) -> Vec<Event> {
    let Announcement { replaces, spec } = announcement;
    let known = replaces.as_ref().map(|version| Meta {
        uid: Some(version.uid),
        resource_version: version.resource_version.clone(),
        ..Meta::default()
    });
    let announcer = Announcer::new(client.clone(), name.to_owned());
    match announcer.write(spec, known.as_ref()).await {
        announcer::WriteResult::Written(Written { uid, generation, resource_version, differs }) => {
            let content = if differs {
                Err("the API server dropped fields of it".to_owned())
            } else {
                Ok(Content::Announced(spec.clone()))
            };
            // The watch brings when it was made.
            let created = i64::MAX;
            let object =
                PeerObject { name: name.to_owned(), uid, created, generation, resource_version, content };
            vec![Event::Announced(WriteResult::Written(object))]
        }
        announcer::WriteResult::Conflict(there) => {
            let there = match there {
                Some(object) => peer_object(object).map(Event::PeerApplied),
                None => Some(Event::PeerDeleted(name.to_owned())),
            };
            there.into_iter().chain([Event::Announced(WriteResult::Conflict)]).collect()
        }
        announcer::WriteResult::NodeNotFound => {
            vec![Event::Announced(WriteResult::Conflict), Event::OwnNode(NodeLookup::NotFound)]
        }
        announcer::WriteResult::NodeChanged { uid } => {
            vec![Event::Announced(WriteResult::Conflict), Event::OwnNode(NodeLookup::Found(uid))]
        }
        announcer::WriteResult::Refused(refusal) => {
            vec![Event::Announced(WriteResult::Refused(refusal.to_string()))]
        }
        announcer::WriteResult::Forbidden(why) => vec![Event::Announced(WriteResult::Refused(why))],
        announcer::WriteResult::Failed(why) => {
            tracing::debug!(error = why, "cannot write this node's EncryptionPeer");
            vec![Event::Announced(WriteResult::Failed(why))]
        }
    }
}

/// An EncryptionPeer as the decisions take it; `None` without a name or UID.
#[must_use]
pub fn peer_object(object: Object<EncryptionPeerSpec>) -> Option<PeerObject> {
    let Object { meta, content } = object;
    with_content(meta, content.map(Content::Announced))
}

/// A Node as the decisions take it under MKE's manifest; `None` without a name or UID.
#[must_use]
pub fn node_object(object: Object<NodeFacts>) -> Option<PeerObject> {
    let Object { meta, content } = object;
    let content = content.and_then(|facts| {
        let address = facts.address().ok_or("no usable IPv4 address")?;
        let boot_id = facts.boot_id.ok_or("no valid boot ID")?;
        Ok(Content::BootId(Entry::of_boot_id(address, *boot_id.uid())))
    });
    with_content(meta, content)
}

fn with_content(meta: Meta, content: Result<Content, String>) -> Option<PeerObject> {
    Some(PeerObject {
        name: Some(meta.name).filter(|name| !name.is_empty())?,
        uid: meta.uid?,
        created: meta.created.map_or(i64::MAX, jiff::Timestamp::as_second),
        generation: meta.generation.unwrap_or(0),
        resource_version: meta.resource_version,
        content,
    })
}
