//! What is written beside the ring: Events about the Secret, `status.awaited` of single nodes, and start-up taints that go.
//!
//! `kubectl describe secret` shows no Events; `kubectl -n kube-system get events` does.
//!
//! A rotation never waits for this: notices are queued, and dropped where the queue is full or the API server refuses.

use std::collections::BTreeSet;

use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use secureoverlay_common::names::{NAMESPACE, SECRET};
use secureoverlay_daemon::{client::describe, node_encryption::NodeEncryption};
use secureoverlay_manager_core::notification::EventReason;
use serde_json::json;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::taint;

/// More than one turn ever has to say: a word for every node of a large cluster.
const QUEUE: usize = 10_000;
/// The API server takes 1,024 bytes.
const NOTE: usize = 1000;
const COMPONENT: &str = "ucp-secureoverlay-mgr";

/// One thing to tell. Never holds a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// An Event about the Secret.
    Event {
        /// What happened.
        reason: EventReason,
        /// In a sentence.
        note: String,
        /// UID of the Secret.
        secret: Option<String>,
    },
    /// What is awaited of a node.
    Awaited {
        /// The node's name.
        node: String,
        /// `None` where nothing is.
        what: Option<String>,
    },
    /// A node encrypts: the start-up taint is to go.
    RemoveTaint {
        /// The node's name.
        node: String,
        /// The taint's key.
        key: String,
    },
}

impl Notice {
    /// What fails when it can't be sent, and what to do.
    const fn failure(&self) -> &'static str {
        match self {
            Self::Event { .. } => "cannot write Events; rotations go on",
            Self::Awaited { .. } => "cannot write the status of nodes; rotations go on",
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
            tracing::debug!("too much to tell, an Event or a status is left out");
        }
    }
}

/// Sends what comes, for as long as something can come.
pub async fn deliver(client: Client, mut notices: Receiver<Notice>) {
    let mut failing = BTreeSet::new();
    while let Some(notice) = notices.recv().await {
        let failure = notice.failure();
        let asked_for = matches!(notice, Notice::RemoveTaint { .. });
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
    let result = match notice {
        Notice::Event { reason, note, secret } => {
            let event = event(reason, note, secret);
            let events = Api::<Event>::namespaced(client.clone(), NAMESPACE);
            events.create(&PostParams::default(), &event).await.map(drop)
        }
        Notice::RemoveTaint { node, key } => return taint::remove(client, &node, &key).await,
        Notice::Awaited { node, what } => {
            let patch = Patch::Merge(json!({"status": {"awaited": what}}));
            let encryptions = Api::<NodeEncryption>::all(client.clone());
            let name = &node;
            // Only whether it was taken counts, not whether all of the object can be read.
            let answer = encryptions.patch_status(name, &PatchParams::default(), &patch).await.map(drop);
            match answer {
                Err(kube::Error::SerdeError(_)) => Ok(()),
                answer => answer,
            }
        }
    };
    match result {
        // A node that has never said anything has no object yet.
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        result => result,
    }
}

fn event(reason: EventReason, mut note: String, secret: Option<String>) -> Event {
    if note.len() > NOTE {
        note.truncate((0..=NOTE).rfind(|at| note.is_char_boundary(*at)).unwrap_or(0));
        note.push('…');
    }
    let now = Time(jiff::Timestamp::now());
    Event {
        metadata: ObjectMeta {
            generate_name: Some(format!("{SECRET}.")),
            namespace: Some(NAMESPACE.to_owned()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Secret".to_owned()),
            name: Some(SECRET.to_owned()),
            namespace: Some(NAMESPACE.to_owned()),
            uid: secret,
            ..ObjectReference::default()
        },
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
        let event = event(EventReason::RotationStalled, "ü".repeat(NOTE), Some("a-uid".to_owned()));
        let object = &event.involved_object;
        assert_eq!((object.uid.as_deref(), object.namespace.as_deref()), (Some("a-uid"), Some(NAMESPACE)));
        assert_eq!(event.metadata.namespace.as_deref(), Some(NAMESPACE));
        assert_eq!(event.reason.as_deref(), Some("RotationStalled"));
        assert_eq!(event.type_.as_deref(), Some("Warning"));
        assert!(event.message.unwrap().len() < 1024, "or the API server refuses it");
    }

    #[test]
    fn a_full_queue_is_no_reason_to_wait() {
        let (outbox, mut receiver) = queue();
        for _ in 0..2 * QUEUE {
            outbox.put(Notice::Awaited { node: "a".to_owned(), what: None });
        }
        let mut count = 0;
        while receiver.try_recv().is_ok() {
            count += 1;
        }
        assert_eq!(count, QUEUE);
        drop(receiver);
        outbox.put(Notice::Awaited { node: "a".to_owned(), what: None });
    }
}
