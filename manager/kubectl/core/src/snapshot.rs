//! What is read of the cluster. What is missing or malformed is `None`, empty, or an error that says so.

use jiff::Timestamp;
use secureoverlay_keyring::{
    cluster_encryption::{ClusterEncryptionSpec, ClusterEncryptionStatus},
    key_rotation::{KeyRotationSpec, KeyRotationStatus},
    node_encryption::NodeEncryptionStatus,
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::text::{clean_object, short};

/// Where everything that has a namespace is.
pub const NAMESPACE: &str = "kube-system";
/// The agents' Pods have this label, and their DaemonSet this name.
pub const AGENT: &str = "ucp-secureoverlay-agent";
/// The manager's Pods have this label, and its Deployment this name.
pub const MANAGER: &str = "ucp-secureoverlay-mgr";
/// Nodes with this label set to [`EXCLUDED`] take no part.
pub const EXCLUDE_LABEL: &str = "node-restriction.kubernetes.io/secureoverlay";
/// The value of [`EXCLUDE_LABEL`].
pub const EXCLUDED: &str = "disabled";
/// Annotation of a Node: why it was excluded. Nothing but this program reads it.
pub const REASON: &str = "secureoverlay.io/exclusion-reason";
/// The label with the node's operating system.
const OS_LABEL: &str = "kubernetes.io/os";

/// What was read, or why it could not be.
pub type Fetched<T> = Result<T, String>;

/// The cluster at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// When it was read.
    pub now: Timestamp,
    /// The ClusterEncryption named default.
    pub encryption: Fetched<Option<Encryption>>,
    /// All KeyRotations.
    pub rotations: Fetched<Vec<Rotation>>,
    /// All NodeEncryptions.
    pub reports: Fetched<Vec<Report>>,
    /// All Nodes.
    pub nodes: Fetched<Vec<Node>>,
    /// The agents' Pods.
    pub agents: Fetched<Vec<Pod>>,
    /// The manager's Pods.
    pub managers: Fetched<Vec<Pod>>,
}

/// What is read of an object.
pub trait Read: Sized {
    /// Reads it.
    fn read(object: Cleaned) -> Self;
}

/// An object without control characters in any text.
#[derive(Clone, Debug)]
pub struct Cleaned(Value);

impl Cleaned {
    /// Cleans an object.
    #[must_use]
    pub fn new(mut object: Value) -> Self {
        clean_object(&mut object);
        Self(object)
    }

    /// The object.
    #[must_use]
    pub fn into_inner(self) -> Value {
        self.0
    }

    fn text(&self, pointer: &str) -> String {
        self.0.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
    }

    fn time(&self, pointer: &str) -> Option<Timestamp> {
        self.0.pointer(pointer)?.as_str()?.parse().ok()
    }

    fn name(&self) -> String {
        self.text("/metadata/name")
    }

    fn created(&self) -> Option<Timestamp> {
        self.time("/metadata/creationTimestamp")
    }

    /// The condition of this type: whether it is True, and since when it is what it is.
    fn condition(&self, kind: &str) -> (bool, Option<Timestamp>) {
        let all = self.0.pointer("/status/conditions").and_then(Value::as_array);
        let found = all.into_iter().flatten().find(|condition| condition["type"] == kind);
        let since = found.and_then(|condition| condition["lastTransitionTime"].as_str()?.parse().ok());
        (found.is_some_and(|condition| condition["status"] == "True"), since)
    }

    /// A part of the object; the default where it is absent.
    fn part<T: DeserializeOwned + Default>(&mut self, field: &str) -> Result<T, String> {
        match self.0.get_mut(field).map_or(Value::Null, Value::take) {
            Value::Null => Ok(T::default()),
            part => serde_json::from_value(part).map_err(|error| short(&format!("{field}: {error}"))),
        }
    }
}

/// What is read of the ClusterEncryption.
#[derive(Clone, Debug)]
pub struct Encryption {
    /// `metadata.generation`.
    pub generation: Option<u64>,
    /// What is wanted.
    pub spec: Result<ClusterEncryptionSpec, String>,
    /// What the manager says has come of it.
    pub status: Result<ClusterEncryptionStatus, String>,
}

impl Read for Encryption {
    fn read(mut object: Cleaned) -> Self {
        Self {
            generation: object.0.pointer("/metadata/generation").and_then(Value::as_u64),
            spec: object.part("spec"),
            status: object.part("status"),
        }
    }
}

impl Encryption {
    /// How far encryption is to go; `None` where that can't be read.
    #[must_use]
    pub fn goal(&self) -> Option<String> {
        self.spec.as_ref().ok().map(|spec| format!("{:?}", spec.enforcement))
    }
}

/// What is read of a KeyRotation.
#[derive(Clone, Debug)]
pub struct Rotation {
    /// Its name.
    pub name: String,
    /// When it was asked for.
    pub created: Option<Timestamp>,
    /// How.
    pub spec: KeyRotationSpec,
    /// How it goes.
    pub status: Result<KeyRotationStatus, String>,
}

impl Read for Rotation {
    fn read(mut object: Cleaned) -> Self {
        Self {
            name: object.name(),
            created: object.created(),
            spec: object.part("spec").unwrap_or_default(),
            status: object.part("status"),
        }
    }
}

impl Rotation {
    /// Whether it is over. One that can't be read is not known to be.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.status.as_ref().is_ok_and(KeyRotationStatus::is_finished)
    }

    /// Whether a key was made for it that is not in use everywhere yet.
    #[must_use]
    pub fn is_under_way(&self) -> bool {
        !self.is_finished() && self.status.as_ref().is_ok_and(|status| status.generation.is_some())
    }
}

/// What is read of a NodeEncryption.
#[derive(Clone, Debug)]
pub struct Report {
    /// The Node's name.
    pub name: String,
    /// What its agent reports.
    pub status: Result<NodeEncryptionStatus, String>,
}

impl Read for Report {
    fn read(mut object: Cleaned) -> Self {
        Self { name: object.name(), status: object.part("status") }
    }
}

/// What is read of a Node.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// Its kubelet reports that it is ready.
    pub ready: bool,
    /// Since when that is so, or not so.
    pub since: Option<Timestamp>,
    /// Its operating system.
    pub system: String,
    /// It takes no part.
    pub excluded: bool,
    /// Why it was excluded, where that was written down.
    pub reason: String,
}

impl Read for Node {
    fn read(object: Cleaned) -> Self {
        let entry = |map: &str, key: &str| object.0["metadata"][map][key].as_str().unwrap_or_default();
        let (ready, since) = object.condition("Ready");
        Self {
            name: object.name(),
            uid: object.text("/metadata/uid"),
            ready,
            since,
            system: entry("labels", OS_LABEL).to_owned(),
            excluded: entry("labels", EXCLUDE_LABEL) == EXCLUDED,
            reason: entry("annotations", REASON).to_owned(),
        }
    }
}

impl Node {
    /// Agents run on it. A Node that does not say what it runs is taken for one.
    #[must_use]
    pub fn is_linux(&self) -> bool {
        ["", "linux"].contains(&self.system.as_str())
    }
}

/// What is read of a Pod.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// The Node that it runs on.
    pub node: String,
    /// It is Ready.
    pub ready: bool,
    /// Since when that is so, or not so.
    pub since: Option<Timestamp>,
    /// It is being deleted.
    pub ending: bool,
    /// Why a container does not run, such as CrashLoopBackOff.
    pub waiting: String,
    /// How often its containers were started anew.
    pub restarts: u64,
    /// The image of its first container.
    pub image: String,
}

impl Read for Pod {
    fn read(object: Cleaned) -> Self {
        let (ready, since) = object.condition("Ready");
        let containers = object.0.pointer("/status/containerStatuses").and_then(Value::as_array);
        let containers = containers.map_or(&[][..], Vec::as_slice);
        let reasons = containers.iter().filter_map(|container| {
            let state = &container["state"];
            state["waiting"]["reason"].as_str().or_else(|| state["terminated"]["reason"].as_str())
        });
        Self {
            name: object.name(),
            node: object.text("/spec/nodeName"),
            ready,
            since: since.or_else(|| object.created()),
            ending: object.0["metadata"]["deletionTimestamp"].is_string(),
            waiting: reasons.map(str::to_owned).next().unwrap_or_default(),
            restarts: containers.iter().filter_map(|container| container["restartCount"].as_u64()).sum(),
            image: object.text("/spec/containers/0/image"),
        }
    }
}

impl Pod {
    /// That it is not Ready, and why.
    #[must_use]
    pub fn not_ready(&self) -> String {
        match self.state() {
            state if state == "not Ready" => state,
            why => format!("not Ready ({why})"),
        }
    }

    /// What is seen of it, in a word or two.
    #[must_use]
    pub fn state(&self) -> String {
        match self {
            Self { ending: true, .. } => "ending".to_owned(),
            Self { ready: true, .. } => "Ready".to_owned(),
            Self { waiting, .. } if !waiting.is_empty() => waiting.clone(),
            _ => "not Ready".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn hostile_objects_are_read_as_far_as_they_go() {
        for object in
            [json!(null), json!(5), json!("text"), json!([[]]), json!({"metadata": 7, "status": []})]
        {
            let cleaned = || Cleaned::new(object.clone());
            assert!(!Node::read(cleaned()).ready && !Pod::read(cleaned()).ready, "{object}");
            assert_eq!(Report::read(cleaned()).name, "");
            assert!(!Rotation::read(cleaned()).is_under_way());
            let _ = Encryption::read(cleaned());
        }
        let report = Report::read(Cleaned::new(json!({"status": {"state": "Enforcing\u{1b}[2J"}})));
        assert!(!report.status.unwrap_err().contains('\u{1b}'));
    }
}
