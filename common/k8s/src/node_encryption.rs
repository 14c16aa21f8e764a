//! What the agent of each node reports: `kubectl get nodeencryptions`.

#![allow(clippy::duplicated_attributes, reason = "one `printcolumn` for each column is how kube wants it")]

use kube::CustomResource;
use schemars::JsonSchema;
use secureoverlay_keyring::acknowledgement::Acknowledgement;
pub use secureoverlay_keyring::{
    condition::{Condition, ConditionStatus, MAX_MESSAGE, stamp},
    node_encryption::{
        Durability, Finding, KernelCounts, MAX_ACCEPTS, MAX_FINDINGS, NodeEncryptionStatus, NodeInfo,
        NodeState, PairCounts, TunnelMtu,
    },
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::object::{Content, read_field, take};

/// Nothing is asked of a node here: its agent writes the status; the manager and operators read it.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "secureoverlay.io",
    version = "v1alpha1",
    kind = "NodeEncryption",
    plural = "nodeencryptions",
    singular = "nodeencryption",
    shortname = "nenc",
    category = "secureoverlay",
    status = "NodeEncryptionStatus",
    derive = "PartialEq",
    doc = "What one node encrypts, as its agent reports it. Named after the Node, and owned by it.",
    printcolumn(name = "State", type_ = "string", json_path = ".status.state"),
    printcolumn(name = "Key", type_ = "integer", json_path = ".status.key"),
    printcolumn(name = "Accepts", type_ = "string", json_path = ".status.accepts"),
    printcolumn(name = "Unproven", type_ = "integer", json_path = ".status.pairs.unproven"),
    printcolumn(name = "MTU", type_ = "integer", json_path = ".status.mtu.tunnel"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.version"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        priority = 1
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message",
        priority = 1
    )
)]
pub struct NodeEncryptionSpec {}

/// What the manager reads of an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Reported {
    /// The acknowledgement; `None` while the agent has not written one.
    pub acknowledgement: Option<Acknowledgement>,
    /// The agent says that all pod traffic of its node is covered (`CoverageComplete`). Not knowing is "no".
    pub covered: bool,
}

impl Content for Reported {
    fn read(mut object: Value) -> Result<Self, String> {
        let status = take(&mut object, "status");
        let mut conditions = status["conditions"].as_array().into_iter().flatten();
        let covered = conditions.any(|it| it["type"] == "CoverageComplete" && it["status"] == "True");
        if status["acknowledgement"].is_null() {
            return Ok(Self { acknowledgement: None, covered });
        }
        let acknowledgement = read_field(status, "acknowledgement").map(Some)?;
        Ok(Self { acknowledgement, covered })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json, to_value};

    use super::*;

    #[test]
    fn status_of_an_older_or_newer_agent_is_read() {
        let status: NodeEncryptionStatus =
            from_value(json!({"state": "Enforcing", "key": 42, "color": "red", "pairs": {"total": 3}}))
                .unwrap();
        assert_eq!((status.state, status.key, status.pairs.total), (NodeState::Enforcing, Some(42), 3));
        let written = to_value(&status).unwrap();
        assert_eq!((&written["acknowledgement"], &written["mtu"]), (&Value::Null, &Value::Null));
        assert_eq!(from_value::<NodeEncryptionStatus>(written).unwrap(), status);
    }

    #[test]
    fn missing_acknowledgement_is_none_and_a_malformed_one_an_error() {
        let none = Ok(Reported { acknowledgement: None, covered: false });
        for object in [json!({}), json!({"status": {"state": "Off", "conditions": 5}}), json!("text")] {
            assert_eq!(Reported::read(object), none);
        }
        let conditions = json!([{"type": "Ready"}, {"type": "CoverageComplete", "status": "True"}]);
        assert!(Reported::read(json!({"status": {"conditions": conditions}})).unwrap().covered);
        for status in [json!({"acknowledgement": {}}), json!({"acknowledgement": 5})] {
            let error = Reported::read(json!({"status": status})).unwrap_err();
            assert!(error.starts_with("acknowledgement: "), "{error}");
        }
    }
}
