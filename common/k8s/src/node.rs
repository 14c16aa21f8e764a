//! The part of a Node that is read: a full one takes more than 10 kB, and there may be 5,000.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use jiff::Timestamp;
use k8s_openapi::{api::core::v1::Node, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::Resource;
use secureoverlay_keyring::{address::NodeAddress, peer::Instance, uid::Uid};
use serde::Deserialize;
use serde_json::Value;

use crate::{
    names::{CALICO_ADDRESS, EXCLUDE_LABEL, EXCLUDED, OS_LABEL},
    object::Content,
};

/// A Node as the client for the API reads it.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = Node)]
pub struct SlimNode {
    /// Name, UID, labels and annotations.
    pub metadata: ObjectMeta,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Spec {
    #[serde(default)]
    taints: Vec<Taint>,
    #[serde(default, rename = "podCIDRs")]
    pod_cidrs: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
struct Taint {
    #[serde(default)]
    key: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    #[serde(default)]
    addresses: Vec<Typed>,
    #[serde(default)]
    conditions: Vec<Typed>,
    #[serde(default)]
    node_info: Info,
}

/// An entry of `addresses` or `conditions`.
#[derive(Clone, Debug, Deserialize)]
struct Typed {
    #[serde(default)]
    r#type: String,
    #[serde(default, alias = "status")]
    address: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Info {
    #[serde(default, rename = "bootID")]
    boot_id: String,
    #[serde(default, rename = "kubeletVersion")]
    kubelet_version: String,
}

/// What a Node object says, checked. What is missing or malformed is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: Option<Uid>,
    /// `metadata.creationTimestamp`.
    pub created: Option<Timestamp>,
    /// The address that Calico's tunnels use; a malformed annotation is `Some(None)`.
    pub calico_address: Option<Option<NodeAddress>>,
    /// The usable addresses of type InternalIP, in their order.
    pub internal_addresses: Vec<NodeAddress>,
    /// `status.nodeInfo.bootID`.
    pub boot_id: Option<Instance>,
    /// `status.nodeInfo.kubeletVersion`.
    pub kubelet_version: String,
    /// The kubelet reports that the node is ready.
    pub ready: bool,
    /// It runs Linux, as far as it says.
    pub linux: bool,
    /// Labelled so by an administrator: takes no part.
    pub excluded: bool,
    /// Keys of its taints.
    pub taints: Vec<String>,
    /// `spec.podCIDRs`: the networks that the cluster gave to its pods, where the CNI plugin uses them.
    pub pod_cidrs: Vec<IpNet>,
}

impl NodeFacts {
    /// The address that a node has as long as its kernel shows no other: Calico's annotation, else the first usable
    /// InternalIP. A malformed annotation is not passed over.
    #[must_use]
    pub fn address(&self) -> Option<NodeAddress> {
        self.calico_address.unwrap_or_else(|| self.internal_addresses.first().copied())
    }
}

impl From<SlimNode> for NodeFacts {
    fn from(node: SlimNode) -> Self {
        let ObjectMeta { name, uid, creation_timestamp, labels, annotations, .. } = node.metadata;
        let get = |map: &Option<BTreeMap<String, String>>, key: &str| map.as_ref()?.get(key).cloned();
        let calico = get(&annotations, CALICO_ADDRESS);
        let internal = node.status.addresses.iter().filter(|entry| entry.r#type == "InternalIP");
        Self {
            name: name.unwrap_or_default(),
            uid: uid.and_then(|uid| uid.parse().ok()),
            created: creation_timestamp.map(|time| time.0),
            calico_address: calico.map(|cidr| usable(cidr.split('/').next().unwrap_or_default())),
            internal_addresses: internal.filter_map(|entry| usable(&entry.address)).collect(),
            boot_id: node.status.node_info.boot_id.parse().ok(),
            kubelet_version: node.status.node_info.kubelet_version,
            ready: node.status.conditions.iter().any(|c| c.r#type == "Ready" && c.address == "True"),
            pod_cidrs: node.spec.pod_cidrs.iter().filter_map(|cidr| cidr.parse().ok()).collect(),
            linux: get(&labels, OS_LABEL).is_none_or(|os| os == "linux"),
            excluded: get(&labels, EXCLUDE_LABEL).as_deref() == Some(EXCLUDED),
            taints: node.spec.taints.into_iter().map(|taint| taint.key).collect(),
        }
    }
}

/// One that a node can be reached at by others: not link-local either.
fn usable(text: &str) -> Option<NodeAddress> {
    let address: NodeAddress = text.parse().ok()?;
    let link_local = match address.ip() {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    (!link_local).then_some(address)
}

impl Content for NodeFacts {
    fn read(object: Value) -> Result<Self, String> {
        let node: SlimNode = serde_json::from_value(object)
            .map_err(|error| error.to_string().chars().take(200).collect::<String>())?;
        Ok(node.into())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn facts(annotations: &Value, addresses: &Value) -> NodeFacts {
        NodeFacts::read(json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {
                "name": "a", "uid": "0f3c9b1e-8d1f-4c57-9b43-5a9f3f1f2b6d",
                "creationTimestamp": "2026-11-20T03:00:00Z",
                "labels": {OS_LABEL: "linux"}, "annotations": annotations,
            },
            "spec": {"podCIDR": "10.244.0.0/24", "taints": [{"key": "a.b/c", "effect": "NoSchedule"}]},
            "status": {
                "addresses": addresses, "images": [{"names": ["x"]}],
                "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
                "nodeInfo": {"bootID": "9d0f5a37-62a5-4d5f-8a3d-1c1ad0f2b001", "kubeletVersion": "v1.37.2"},
            },
        }))
        .unwrap()
    }

    #[test]
    fn calicos_address_comes_first() {
        let internal = json!([
            {"type": "Hostname", "address": "a"},
            {"type": "InternalIP", "address": "169.254.1.1"},
            {"type": "InternalIP", "address": "192.0.2.1"},
        ]);
        let with = facts(&json!({CALICO_ADDRESS: "192.0.2.9/24"}), &internal);
        assert_eq!(with.address(), Some("192.0.2.9".parse().unwrap()));
        assert!(
            with.ready && with.linux && !with.excluded && with.boot_id.is_some() && with.created.is_some()
        );
        assert_eq!((with.taints, with.kubelet_version.as_str()), (vec!["a.b/c".to_owned()], "v1.37.2"));
        assert_eq!(facts(&json!({}), &internal).address(), Some("192.0.2.1".parse().unwrap()));
        assert_eq!(facts(&json!({CALICO_ADDRESS: "nonsense"}), &internal).address(), None);
    }

    #[test]
    fn node_that_says_nothing_has_no_facts() {
        let facts = NodeFacts::read(json!({"metadata": {}})).unwrap();
        assert_eq!(facts, NodeFacts { linux: true, ..NodeFacts::default() });
        assert!(NodeFacts::read(json!({"metadata": {"labels": 5}})).is_err());
    }

    #[test]
    fn labels_of_the_node_restriction_exclude() {
        let labelled = |label: &str, value: &str| {
            NodeFacts::read(json!({"metadata": {"labels": {label: value}}})).unwrap()
        };
        assert!(labelled(EXCLUDE_LABEL, EXCLUDED).excluded && !labelled(EXCLUDE_LABEL, "true").excluded);
        assert!(!labelled(OS_LABEL, "windows").linux);
    }
}
