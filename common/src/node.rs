//! What SecureOverlay reads of a Node object.

use std::{collections::BTreeMap, net::IpAddr};

use jiff::Timestamp;
use serde::Deserialize;

use crate::{
    names::{CALICO_ADDRESS, EXCLUDE_LABEL, OS_LABEL},
    uid::Uid,
};

/// A Node without what we never read: a full one takes more than 10 kB, and there may be 5,000.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct SlimNode {
    /// Name, UID, labels and annotations.
    #[serde(default)]
    pub metadata: SlimMetadata,
    /// Addresses, boot ID and readiness.
    #[serde(default)]
    pub status: SlimStatus,
}

/// The part of `ObjectMeta` that we read.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SlimMetadata {
    /// `metadata.name`.
    pub name: Option<String>,
    /// `metadata.uid`.
    pub uid: Option<String>,
    /// `metadata.creationTimestamp`.
    pub creation_timestamp: Option<Timestamp>,
    /// `metadata.labels`.
    pub labels: Option<BTreeMap<String, String>>,
    /// `metadata.annotations`.
    pub annotations: Option<BTreeMap<String, String>>,
}

/// The part of `NodeStatus` that we read.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SlimStatus {
    /// `status.addresses`.
    #[serde(default)]
    pub addresses: Vec<SlimAddress>,
    /// `status.conditions`.
    #[serde(default)]
    pub conditions: Vec<SlimCondition>,
    /// `status.nodeInfo`.
    #[serde(default)]
    pub node_info: SlimInfo,
}

/// An entry of `status.addresses`.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct SlimAddress {
    /// `InternalIP`, `Hostname`, …
    #[serde(default)]
    pub r#type: String,
    /// The address.
    #[serde(default)]
    pub address: String,
}

/// An entry of `status.conditions`.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct SlimCondition {
    /// `Ready`, …
    #[serde(default)]
    pub r#type: String,
    /// `True`, `False` or `Unknown`.
    #[serde(default)]
    pub status: String,
}

/// `status.nodeInfo`.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct SlimInfo {
    /// Boot ID of the node's kernel, as its kubelet read it.
    #[serde(default, rename = "bootID")]
    pub boot_id: String,
}

/// What a Node object says, checked. What is missing or malformed is `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: Option<Uid>,
    /// `metadata.creationTimestamp`.
    pub created: Option<Timestamp>,
    /// Calico's tunnel address, else the first InternalIP; a malformed annotation is not passed over.
    pub addr: Option<IpAddr>,
    /// Boot ID.
    pub boot: Option<Uid>,
    /// The kubelet says that the node is ready.
    pub ready: bool,
    /// Takes no part: not Linux, or labelled so.
    pub excluded: bool,
}

impl From<&SlimNode> for NodeFacts {
    fn from(node: &SlimNode) -> Self {
        let meta = &node.metadata;
        let label = |name: &str| meta.labels.as_ref().and_then(|labels| labels.get(name)).map(String::as_str);
        let annotation = meta.annotations.as_ref().and_then(|annotations| annotations.get(CALICO_ADDRESS));
        let addr = match annotation {
            Some(cidr) => cidr.split('/').next().and_then(|addr| addr.parse().ok()),
            None => node
                .status
                .addresses
                .iter()
                .find(|entry| entry.r#type == "InternalIP")
                .and_then(|entry| entry.address.parse().ok()),
        };
        Self {
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.as_deref().and_then(|uid| uid.parse().ok()),
            created: meta.creation_timestamp,
            addr: addr.map(|addr: IpAddr| addr.to_canonical()).filter(usable),
            boot: node.status.node_info.boot_id.parse().ok(),
            ready: node.status.conditions.iter().any(|c| c.r#type == "Ready" && c.status == "True"),
            excluded: label(EXCLUDE_LABEL) == Some("true") || label(OS_LABEL).is_some_and(|os| os != "linux"),
        }
    }
}

/// An address that one host can have, so that a broken Node can't make us program a whole network.
fn usable(addr: &IpAddr) -> bool {
    !addr.is_unspecified()
        && !addr.is_loopback()
        && !addr.is_multicast()
        && !matches!(addr, IpAddr::V4(v4) if v4.is_broadcast())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn facts(annotations: &serde_json::Value, addresses: &serde_json::Value) -> NodeFacts {
        let node: SlimNode = serde_json::from_value(json!({
            "metadata": {
                "name": "a", "uid": "0f3c9b1e-8d1f-4c57-9b43-5a9f3f1f2b6d",
                "creationTimestamp": "2026-11-20T03:00:00Z",
                "labels": {"kubernetes.io/os": "linux"}, "annotations": annotations,
            },
            "spec": {"podCIDR": "10.244.0.0/24"},
            "status": {
                "addresses": addresses, "images": [{"names": ["x"]}],
                "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
                "nodeInfo": {"bootID": "9d0f5a37-62a5-4d5f-8a3d-1c1ad0f2b001", "machineID": ""},
            },
        }))
        .unwrap();
        NodeFacts::from(&node)
    }

    #[test]
    fn calicos_address_comes_first() {
        let internal =
            json!([{"type": "Hostname", "address": "a"}, {"type": "InternalIP", "address": "192.0.2.1"}]);
        let with = facts(&json!({CALICO_ADDRESS: "192.0.2.9/24"}), &internal);
        assert_eq!(with.addr, Some([192, 0, 2, 9].into()));
        assert!(
            with.ready
                && !with.excluded
                && with.boot.is_some()
                && with.uid.is_some()
                && with.created.is_some()
        );
        assert_eq!(facts(&json!({}), &internal).addr, Some([192, 0, 2, 1].into()));
        assert_eq!(facts(&json!({CALICO_ADDRESS: "nonsense"}), &internal).addr, None);
        let mapped = facts(&json!({CALICO_ADDRESS: "::ffff:192.0.2.9/120"}), &internal);
        assert_eq!(mapped.addr, with.addr, "one address in two spellings");
    }

    #[test]
    fn a_node_that_says_nothing_has_no_facts() {
        let node: SlimNode = serde_json::from_value(json!({"metadata": {}})).unwrap();
        let facts = NodeFacts::from(&node);
        assert_eq!((facts.uid, facts.addr, facts.boot, facts.ready), (None, None, None, false));
    }

    #[test]
    fn addresses_that_no_host_can_have_are_refused() {
        for addr in [
            "0.0.0.0",
            "127.0.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "192.0.2.0.1",
            "::ffff:127.0.0.1",
            "",
        ] {
            assert_eq!(
                facts(&json!({}), &json!([{"type": "InternalIP", "address": addr}])).addr,
                None,
                "{addr}"
            );
        }
    }
}
