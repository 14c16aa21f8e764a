//! The settings of the cluster: `kubectl get clusterencryption`.

#![allow(clippy::duplicated_attributes, reason = "one `printcolumn` for each column is how kube wants it")]

use kube::CustomResource;
use schemars::JsonSchema;
use secureoverlay_keyring::{
    cluster_encryption::{ClusterEncryptionSpec as Spec, ClusterEncryptionStatus},
    settings::Settings,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::object::{Content, read_field, take};

/// How far pod traffic is encrypted, with which cipher, and when keys are replaced.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "secureoverlay.io",
    version = "v1alpha1",
    kind = "ClusterEncryption",
    plural = "clusterencryptions",
    singular = "clusterencryption",
    shortname = "cenc",
    category = "secureoverlay",
    status = "ClusterEncryptionStatus",
    derive = "PartialEq",
    doc = "The settings of SecureOverlay, and the state of the cluster at a glance. There is one, named default. The manager makes it where there is none and no key ring.",
    printcolumn(name = "Goal", type_ = "string", json_path = ".spec.enforcement"),
    printcolumn(name = "State", type_ = "string", json_path = ".status.enforcement"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(name = "Key", type_ = "integer", json_path = ".status.activeKey.generation"),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.nodes.total"),
    printcolumn(name = "Plaintext", type_ = "integer", json_path = ".status.nodes.plaintext"),
    printcolumn(name = "Next", type_ = "string", json_path = ".status.nextRotationTime"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message",
        priority = 1
    )
)]
#[serde(transparent)]
pub struct ClusterEncryptionSpec(pub Spec);

/// What is read of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The settings, or what is wrong with them.
    pub settings: Result<Settings, String>,
    /// What was written of them last; nothing where that can't be read.
    pub status: ClusterEncryptionStatus,
}

impl Content for Wanted {
    fn read(mut object: Value) -> Result<Self, String> {
        let status = serde_json::from_value(take(&mut object, "status")).unwrap_or_default();
        let spec =
            if object["spec"].is_null() { Ok(Spec::default()) } else { read_field::<Spec>(object, "spec") };
        Ok(Self { settings: spec.and_then(|spec| spec.settings()), status })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn hostile_spec_is_an_error_in_words_and_a_hostile_status_is_none() {
        for object in [json!({}), json!({"status": 5}), json!({"spec": {}, "status": {"nodes": "all"}})] {
            let read = Wanted::read(object.clone()).unwrap();
            assert_eq!(read.settings, Ok(Settings::default()), "{object}");
            assert_eq!(read.status, ClusterEncryptionStatus::default());
        }
        for spec in [json!("text"), json!({"rotation": 7}), json!({"rotation": {"interval": "1s"}})] {
            let error = Wanted::read(json!({ "spec": spec })).unwrap().settings.unwrap_err();
            assert!(error.starts_with("spec"), "{error}");
        }
    }
}
