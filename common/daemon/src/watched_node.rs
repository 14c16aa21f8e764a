//! Node objects as they come from the API: only what we read of them.

use std::collections::BTreeSet;

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
    spec: SlimSpec,
    #[serde(default)]
    status: SlimStatus,
}

/// The part of `NodeSpec` that we read.
#[derive(Clone, Debug, Default, Deserialize)]
struct SlimSpec {
    taints: Option<Vec<SlimTaint>>,
}

#[derive(Clone, Debug, Deserialize)]
struct SlimTaint {
    #[serde(default)]
    key: String,
}

impl WatchedNode {
    /// The keys of its taints.
    #[must_use]
    pub fn taints(&self) -> BTreeSet<String> {
        self.spec.taints.iter().flatten().map(|taint| taint.key.clone()).collect()
    }
}

impl From<WatchedNode> for NodeFacts {
    fn from(node: WatchedNode) -> Self {
        let ObjectMeta { name, uid, creation_timestamp, labels, annotations, .. } = node.metadata;
        let creation_timestamp = creation_timestamp.map(|time| time.0);
        let metadata = SlimMetadata { name, uid, creation_timestamp, labels, annotations };
        Self::from(&SlimNode { metadata, status: node.status })
    }
}
