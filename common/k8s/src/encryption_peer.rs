//! What a node announces to its peers: `kubectl get encryptionpeers`.

#![allow(clippy::duplicated_attributes, reason = "one `printcolumn` for each column is how kube wants it")]

use kube::CustomResource;
use schemars::JsonSchema;
use secureoverlay_keyring::peer::EncryptionPeerSpec as Announcement;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::object::{Content, read_field};

/// What a node announces.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "secureoverlay.io",
    version = "v1alpha1",
    kind = "EncryptionPeer",
    plural = "encryptionpeers",
    singular = "encryptionpeer",
    shortname = "encpeer",
    category = "secureoverlay",
    doc = "What one node announces to its peers: what they derive SAs from, and the networks of its pods. Named after the Node, owned by it, and written by its agent.",
    printcolumn(name = "Address", type_ = "string", json_path = ".spec.senders[0].address"),
    printcolumn(name = "Instance", type_ = "string", json_path = ".spec.senders[0].instance"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(transparent)]
pub struct EncryptionPeerSpec(pub Announcement);

impl Content for Announcement {
    fn read(object: Value) -> Result<Self, String> {
        read_field(object, "spec")
    }
}
