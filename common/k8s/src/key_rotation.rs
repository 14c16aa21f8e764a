//! Replacements of the key, asked for and done: `kubectl get keyrotations`.

#![allow(clippy::duplicated_attributes, reason = "one `printcolumn` for each column is how kube wants it")]

use kube::CustomResource;
use schemars::JsonSchema;
use secureoverlay_keyring::key_rotation::{KeyRotationSpec as Spec, KeyRotationStatus};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::object::{Content, take};

/// How the key is to be replaced.
#[derive(CustomResource, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "secureoverlay.io",
    version = "v1alpha1",
    kind = "KeyRotation",
    plural = "keyrotations",
    singular = "keyrotation",
    shortname = "krot",
    category = "secureoverlay",
    status = "KeyRotationStatus",
    derive = "PartialEq",
    doc = "One replacement of the key. Creating it asks for one; those of the schedule are made by the manager. The oldest finished ones are deleted (historyLimit of the ClusterEncryption). Deleting one that is under way undoes nothing.",
    printcolumn(name = "Key", type_ = "integer", json_path = ".status.generation"),
    printcolumn(name = "Cause", type_ = "string", json_path = ".status.cause"),
    printcolumn(
        name = "Complete",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Complete\")].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Complete\")].reason"
    ),
    printcolumn(name = "Waiting-For", type_ = "string", json_path = ".status.waitingFor.step"),
    printcolumn(name = "Done", type_ = "integer", json_path = ".status.waitingFor.done"),
    printcolumn(name = "Of", type_ = "integer", json_path = ".status.waitingFor.total"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Nodes", type_ = "string", json_path = ".status.waitingFor.nodes", priority = 1)
)]
#[serde(transparent)]
pub struct KeyRotationSpec(pub Spec);

/// What is read of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requested {
    /// What is asked for.
    pub spec: Spec,
    /// What was written of it last; nothing where that can't be read.
    pub status: KeyRotationStatus,
}

impl Content for Requested {
    fn read(mut object: Value) -> Result<Self, String> {
        let mut field = |name: &str| take(&mut object, name);
        let (spec, status) = (field("spec"), field("status"));
        Ok(Self {
            spec: serde_json::from_value(spec).unwrap_or_default(),
            status: serde_json::from_value(status).unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn hostile_object_is_a_plain_request() {
        for object in
            [json!({}), json!({"spec": 5, "status": []}), json!("text"), json!({"status": {"cause": 1}})]
        {
            assert_eq!(Requested::read(object.clone()), Ok(Requested::default()), "{object}");
        }
        let read = Requested::read(json!({"spec": {"skipUnresponsive": true}})).unwrap();
        assert!(read.spec.skip_unresponsive);
    }
}
