//! What is written beside the ring: Events, the status of the operator's objects, start-up taints that go, objects without
//! a Node that go.
//!
//! `kubectl describe` of a ClusterEncryption, KeyRotation or Node shows its Events. They are in the namespace `default`, as
//! the API server wants it of objects without a namespace; those of the Secret are beside it.
//!
//! A rotation never waits for this: notices are queued, and dropped where the queue is full or the API server refuses.

use std::collections::BTreeSet;

use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference as Reference},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::{Api, Client, api::PostParams};
use secureoverlay_k8s::{
    client::describe,
    names::{GROUP, NAMESPACE, SECRET},
};
use secureoverlay_keyring::{cluster_encryption::NAME, uid::Uid};
use secureoverlay_manager_core::{
    notification::EventReason,
    operator::{ObjectReference, ObjectWrite},
    orphans::Deletion,
};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::io::{objects, orphans, taint};

/// More than one evaluation ever has to say: a taint for every node of a large cluster.
const QUEUE: usize = 10_000;
/// The API server takes 1,024 bytes.
const NOTE: usize = 1000;
const COMPONENT: &str = "ucp-secureoverlay-mgr";

/// One thing to tell. Never holds a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// An Event.
    Event {
        /// What happened.
        reason: EventReason,
        /// In a sentence.
        note: String,
        /// To which object.
        about: Subject,
    },
    /// An object of the operator's is to be written.
    Write(ObjectWrite),
    /// A node encrypts: the start-up taint is to go.
    RemoveTaint {
        /// The node's name.
        node: String,
        /// The taint's key.
        key: String,
    },
    /// An object whose Node is gone is to go, too.
    Delete(Deletion),
}

/// What an Event is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The Secret with the ring, and its UID.
    Secret(Option<String>),
    /// The ClusterEncryption, and its UID.
    ClusterEncryption(Option<Uid>),
    /// A KeyRotation.
    KeyRotation(ObjectReference),
    /// A Node. Its UID is its name in Events, as kubelets have it.
    Node(String),
}

impl Notice {
    /// What fails when it can't be sent, and what to do.
    const fn failure(&self) -> &'static str {
        match self {
            Self::Event { .. } => "cannot write Events; rotations go on",
            Self::Write(_) => "cannot write the status of ClusterEncryption or KeyRotations; rotations go on",
            Self::Delete(_) => "cannot delete objects whose Node is gone; rotations go on",
            Self::RemoveTaint { .. } => {
                "cannot remove the start-up taint, and pods stay off the node: may the manager get and patch Nodes, as \
                 manifests/startup-taint.yaml lets it?"
            }
        }
    }
}

/// Where notices are put.
#[derive(Clone, Debug)]
pub struct Outbox(Sender<Notice>);

/// An outbox, and what is put into it.
#[must_use]
pub fn queue() -> (Outbox, Receiver<Notice>) {
    let (sender, receiver) = channel(QUEUE);
    (Outbox(sender), receiver)
}

impl Outbox {
    /// Never waits.
    pub fn put(&self, notice: Notice) {
        if self.0.try_send(notice).is_err() {
            tracing::debug!("notification queue full; dropping update");
        }
    }
}

/// Sends what comes, for as long as something can come.
pub async fn deliver(client: Client, mut notices: Receiver<Notice>) {
    let mut failing = BTreeSet::new();
    while let Some(notice) = notices.recv().await {
        let failure = notice.failure();
        let asked_for = matches!(notice, Notice::RemoveTaint { .. } | Notice::Write(_));
        match send(&client, notice).await {
            Ok(()) => {
                failing.remove(failure);
            }
            Err(error) => {
                let error = describe(&error);
                if !failing.insert(failure) {
                    tracing::debug!(error, "still: {failure}");
                } else if asked_for {
                    tracing::warn!(error, "{failure}");
                } else {
                    // MKE's manifest does not grant these rights, and all is well there.
                    tracing::info!(error, "{failure}");
                }
            }
        }
    }
}

async fn send(client: &Client, notice: Notice) -> Result<(), kube::Error> {
    match notice {
        Notice::Write(write) => objects::write(client, &write).await,
        Notice::Event { reason, note, about } => {
            let event = event(reason, note, about);
            let namespace = event.metadata.namespace.as_deref().unwrap_or(NAMESPACE);
            let events = Api::<Event>::namespaced(client.clone(), namespace);
            events.create(&PostParams::default(), &event).await.map(drop)
        }
        Notice::RemoveTaint { node, key } => taint::remove(client, &node, &key).await,
        Notice::Delete(deletion) => orphans::delete(client, &deletion).await,
    }
}

fn reference(about: Subject) -> Reference {
    let object = |api_version: &str, kind: &str, name: String, uid: Option<String>| Reference {
        api_version: Some(api_version.to_owned()),
        kind: Some(kind.to_owned()),
        name: Some(name),
        uid,
        ..Reference::default()
    };
    let ours = format!("{GROUP}/v1alpha1");
    match about {
        Subject::Secret(uid) => Reference {
            namespace: Some(NAMESPACE.to_owned()),
            ..object("v1", "Secret", SECRET.to_owned(), uid)
        },
        Subject::ClusterEncryption(uid) => {
            object(&ours, "ClusterEncryption", NAME.to_owned(), uid.map(|uid| uid.to_string()))
        }
        Subject::KeyRotation(ObjectReference { name, uid }) => {
            object(&ours, "KeyRotation", name, Some(uid.to_string()))
        }
        Subject::Node(name) => object("v1", "Node", name.clone(), Some(name)),
    }
}

fn event(reason: EventReason, mut note: String, about: Subject) -> Event {
    if note.len() > NOTE {
        note.truncate((0..=NOTE).rfind(|at| note.is_char_boundary(*at)).unwrap_or(0));
        note.push('…');
    }
    let now = Time(jiff::Timestamp::now());
    let about = reference(about);
    // The API server refuses Events of objects without a namespace elsewhere.
    let namespace = about.namespace.clone().unwrap_or_else(|| "default".to_owned());
    Event {
        metadata: ObjectMeta {
            generate_name: Some(format!("{SECRET}.")),
            namespace: Some(namespace),
            ..ObjectMeta::default()
        },
        involved_object: about,
        type_: Some(if reason.is_warning() { "Warning" } else { "Normal" }.to_owned()),
        reason: Some(format!("{reason:?}")),
        message: Some(note),
        source: Some(EventSource { component: Some(COMPONENT.to_owned()), host: None }),
        count: Some(1),
        first_timestamp: Some(now.clone()),
        last_timestamp: Some(now),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_found_beside_the_secret() {
        let about = Subject::Secret(Some("a-uid".to_owned()));
        let event = event(EventReason::RotationStalled, "ü".repeat(NOTE), about);
        let object = &event.involved_object;
        assert_eq!((object.uid.as_deref(), object.namespace.as_deref()), (Some("a-uid"), Some(NAMESPACE)));
        assert_eq!(event.metadata.namespace.as_deref(), Some(NAMESPACE));
        assert_eq!(event.reason.as_deref(), Some("RotationStalled"));
        assert_eq!(event.type_.as_deref(), Some("Warning"));
        assert!(event.message.unwrap().len() < 1024, "or the API server refuses it");
    }

    #[test]
    fn event_about_what_has_no_namespace_is_in_the_default_one() {
        let uid = Uid::from_random([7; 16]);
        for (about, kind, name) in [
            (Subject::ClusterEncryption(Some(uid)), "ClusterEncryption", "default"),
            (Subject::KeyRotation(ObjectReference { name: "a".to_owned(), uid }), "KeyRotation", "a"),
            (Subject::Node("b".to_owned()), "Node", "b"),
        ] {
            let event = event(EventReason::NodeExcluded, String::new(), about);
            let object = &event.involved_object;
            assert_eq!((object.kind.as_deref(), object.name.as_deref()), (Some(kind), Some(name)));
            assert_eq!((&object.namespace, event.metadata.namespace.as_deref()), (&None, Some("default")));
            assert_eq!(event.type_.as_deref(), Some("Warning"), "it is in the clear");
        }
    }

    #[test]
    fn a_full_queue_is_no_reason_to_wait() {
        let (outbox, mut receiver) = queue();
        for _ in 0..2 * QUEUE {
            outbox.put(Notice::RemoveTaint { node: "a".to_owned(), key: "k".to_owned() });
        }
        let mut count = 0;
        while receiver.try_recv().is_ok() {
            count += 1;
        }
        assert_eq!(count, QUEUE);
        drop(receiver);
        outbox.put(Notice::RemoveTaint { node: "a".to_owned(), key: "k".to_owned() });
    }
}
