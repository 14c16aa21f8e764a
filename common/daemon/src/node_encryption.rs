//! The object in which the agent of each node says what that node does: `kubectl get nodeencryptions`.

#![allow(clippy::duplicated_attributes, reason = "one `printcolumn` for each column is how kube wants it")]

use jiff::Timestamp;
use k8s_openapi::{
    apiextensions_apiserver::pkg::apis::apiextensions::v1::{
        CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
    },
    apimachinery::pkg::apis::meta::v1::Condition,
};
use kube::{CustomResource, CustomResourceExt};
use schemars::JsonSchema;
use secureoverlay_common::acknowledgement::Acknowledgement;
use serde::{Deserialize, Serialize};

/// There is nothing to ask of a node here: its agent writes the status, and the manager and people read it.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "secureoverlay.io",
    version = "v1alpha1",
    kind = "NodeEncryption",
    plural = "nodeencryptions",
    singular = "nodeencryption",
    shortname = "ne",
    status = "NodeEncryptionStatus",
    doc = "What one node encrypts, in its agent's words. Named after the Node, and owned by it.",
    printcolumn(name = "Enforcement", type_ = "string", json_path = ".status.enforcement"),
    printcolumn(name = "Sends", type_ = "string", json_path = ".status.sends"),
    printcolumn(name = "Receives", type_ = "string", json_path = ".status.receives"),
    printcolumn(name = "Peers", type_ = "string", json_path = ".status.peers"),
    printcolumn(name = "MTU", type_ = "string", json_path = ".status.mtu"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(name = "Awaited", type_ = "string", json_path = ".status.awaited"),
    printcolumn(name = "Next", type_ = "string", json_path = ".status.nextRotation"),
    printcolumn(name = "Heartbeat", type_ = "date", json_path = ".status.heartbeat"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message", priority = 1)
)]
pub struct NodeEncryptionSpec {}

/// What the agent says, once for the manager and once for people.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeEncryptionStatus {
    /// For the manager; absent until the agent knows its Node and has looked at its kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acknowledgement: Option<Acknowledgement>,
    /// Revision of the ring that was applied last.
    #[serde(default)]
    pub revision: u64,
    /// How far encryption is insisted on: off, permissive or enforcing.
    #[serde(default)]
    pub enforcement: String,
    /// Id of the generation that this node sends with, or "none".
    #[serde(default)]
    pub sends: String,
    /// Ids of the generations that this node receives with from all of its peers: "42,43".
    #[serde(default)]
    pub receives: String,
    /// Peers with all SAs and policies in place, of all peers: "41/42".
    #[serde(default)]
    pub peers: String,
    /// The tunnel's MTU, and the largest one that leaves room for ESP where it is too large: "1440", "1480 > 1452".
    #[serde(default)]
    pub mtu: String,
    /// When the next rotation is due; absent where that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub next_rotation: Option<Timestamp>,
    /// What is wrong, or what is going on.
    #[serde(default)]
    pub message: String,
    /// What the manager waits for, in its words: "receiving generation 43". Only it writes this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 400))]
    pub awaited: Option<String>,
    /// `Ready`, `KeysValid`, `MtuValid`, `PeersProgrammed`, `CoverageComplete`, `EspReachable`.
    #[serde(default)]
    pub conditions: Vec<Condition>,
    /// When the agent last wrote this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub heartbeat: Option<Timestamp>,
}

/// The definition as it ships. Its schema sets no defaults: what an agent did not say is not to be made up by the API
/// server, and that of Kubernetes 1.20 refuses an empty text as one. Its numbers have formats that Kubernetes knows:
/// of others, today's API servers warn at every `kubectl apply`.
#[must_use]
pub fn definition() -> CustomResourceDefinition {
    let mut definition = NodeEncryption::crd();
    for version in &mut definition.spec.versions {
        if let Some(schema) = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut()) {
            to_kubernetes(schema);
        }
    }
    definition
}

fn to_kubernetes(schema: &mut JSONSchemaProps) {
    schema.default = None;
    // The sign is left to `minimum`. A number of 32 bits does not fit into int32, whose range API servers enforce.
    if let Some("uint32" | "uint64") = schema.format.as_deref() {
        schema.format = Some("int64".to_owned());
    }
    schema.properties.iter_mut().flat_map(|properties| properties.values_mut()).for_each(to_kubernetes);
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        to_kubernetes(values);
    }
    match &mut schema.items {
        Some(JSONSchemaPropsOrArray::Schema(item)) => to_kubernetes(item),
        Some(JSONSchemaPropsOrArray::Schemas(items)) => items.iter_mut().for_each(to_kubernetes),
        None => {}
    }
}
