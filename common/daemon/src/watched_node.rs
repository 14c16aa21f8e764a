//! Node objects as they come from the API: only what we read of them.

use k8s_openapi::{api::core::v1::Node, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::Resource;
use secureoverlay_common::node::{NodeFacts, SlimMetadata, SlimNode, SlimStatus};
use serde::Deserialize;

/// A Node as the client for the API wants it.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = Node)]
pub struct WatchedNode {
    /// Name, UID, labels and annotations.
    pub metadata: ObjectMeta,
    #[serde(default)]
    status: SlimStatus,
}

impl From<WatchedNode> for NodeFacts {
    fn from(node: WatchedNode) -> Self {
        let ObjectMeta { name, uid, creation_timestamp, labels, annotations, .. } = node.metadata;
        let creation_timestamp = creation_timestamp.map(|time| time.0);
        let metadata = SlimMetadata { name, uid, creation_timestamp, labels, annotations };
        Self::from(&SlimNode { metadata, status: node.status })
    }
}
