//! All requests of this program.

use std::time::Duration;

use anyhow::{Context, anyhow};
use http::Request;
use kube::Client;
use secureoverlay_kubectl_core::{
    paths::Missing,
    snapshot::{Cleaned, Fetched, Read},
};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::timeout;

use crate::forward;

/// For an answer.
const ANSWER: Duration = Duration::from_secs(30);
/// Objects of one answer.
const PAGE: usize = 500;
/// Who is named as the author of fields.
const MANAGER: &str = "fieldManager=kubectl-secureoverlay";
const GROUP: &str = "/apis/secureoverlay.io/v1alpha1";
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

/// What may be asked for. There is no other way to a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// ClusterEncryptions.
    ClusterEncryption,
    /// KeyRotations.
    KeyRotation,
    /// NodeEncryptions.
    NodeEncryption,
    /// EncryptionPeers.
    EncryptionPeer,
    /// Nodes.
    Node,
    /// Pods of kube-system.
    Pod,
    /// DaemonSets of kube-system.
    DaemonSet,
    /// Deployments of kube-system.
    Deployment,
    /// Events of kube-system.
    Event,
    /// Events about objects without a namespace.
    ClusterEvent,
    /// ServiceAccounts of kube-system.
    ServiceAccount,
    /// ClusterRoles.
    ClusterRole,
    /// ClusterRoleBindings.
    ClusterRoleBinding,
}

impl Kind {
    /// All of them.
    #[cfg(test)]
    const ALL: [Self; 13] = [
        Self::ClusterEncryption,
        Self::KeyRotation,
        Self::NodeEncryption,
        Self::EncryptionPeer,
        Self::Node,
        Self::Pod,
        Self::DaemonSet,
        Self::Deployment,
        Self::Event,
        Self::ClusterEvent,
        Self::ServiceAccount,
        Self::ClusterRole,
        Self::ClusterRoleBinding,
    ];

    fn path(self) -> (&'static str, &'static str) {
        match self {
            Self::ClusterEncryption => (GROUP, "clusterencryptions"),
            Self::KeyRotation => (GROUP, "keyrotations"),
            Self::NodeEncryption => (GROUP, "nodeencryptions"),
            Self::EncryptionPeer => (GROUP, "encryptionpeers"),
            Self::Node => ("/api/v1", "nodes"),
            Self::Pod => ("/api/v1/namespaces/kube-system", "pods"),
            Self::DaemonSet => ("/apis/apps/v1/namespaces/kube-system", "daemonsets"),
            Self::Deployment => ("/apis/apps/v1/namespaces/kube-system", "deployments"),
            Self::Event => ("/api/v1/namespaces/kube-system", "events"),
            Self::ClusterEvent => ("/api/v1/namespaces/default", "events"),
            Self::ServiceAccount => ("/api/v1/namespaces/kube-system", "serviceaccounts"),
            Self::ClusterRole => (RBAC, "clusterroles"),
            Self::ClusterRoleBinding => (RBAC, "clusterrolebindings"),
        }
    }

    /// What it is, for people.
    fn name(self) -> String {
        let (prefix, plural) = self.path();
        let namespace = prefix.split_once("/namespaces/").map(|(_, namespace)| format!(" in {namespace}"));
        format!("{plural}{}", namespace.unwrap_or_default())
    }

    fn url(self, name: &str, query: &str) -> anyhow::Result<String> {
        let (prefix, plural) = self.path();
        let plain = |c: char| c.is_ascii_alphanumeric() || ['-', '.'].contains(&c);
        anyhow::ensure!(name.chars().all(plain) && !name.contains(".."), "not a name of an object: {name:?}");
        let name = if name.is_empty() { String::new() } else { format!("/{name}") };
        Ok(format!("{prefix}/{plural}{name}?{query}"))
    }
}

/// The API server.
#[derive(Clone)]
pub struct Api(Client);

impl Api {
    /// By this client.
    pub fn new(client: Client) -> Self {
        Self(client)
    }

    /// All objects of a kind that a label selector takes; each page is read before the next one is asked for.
    pub async fn list<T: Read>(&self, kind: Kind, selector: &str) -> Fetched<Vec<T>> {
        let (mut all, mut token) = (Vec::new(), String::new());
        loop {
            let query =
                format!("limit={PAGE}&labelSelector={}&continue={}", encode(selector), encode(&token));
            let mut page = self.get_url(kind, "list", "", &query).await?;
            let Some(items) = page.get_mut("items").map(Value::take) else {
                return Err(format!("failed to list {}: the answer is no list", kind.name()));
            };
            if let Value::Array(items) = items {
                all.extend(items.into_iter().map(|item| T::read(Cleaned::new(item))));
            }
            match page["metadata"]["continue"].as_str() {
                None | Some("") => return Ok(all),
                Some(next) => next.clone_into(&mut token),
            }
        }
    }

    /// One object; `None` where there is none, or no such kind.
    pub async fn get(&self, kind: Kind, name: &str) -> Fetched<Option<Value>> {
        let url = kind.url(name, "").map_err(|error| error.to_string())?;
        match self.send(Request::get(url).body(Vec::new())).await {
            Ok(object) => Ok(Some(object)),
            Err(Refused::Api { code: 404, .. }) => Ok(None),
            Err(refused) => Err(refused.text("get", kind)),
        }
    }

    async fn get_url(&self, kind: Kind, verb: &str, name: &str, query: &str) -> Fetched<Value> {
        let url = kind.url(name, query).map_err(|error| error.to_string())?;
        self.send(Request::get(url).body(Vec::new())).await.map_err(|refused| refused.text(verb, kind))
    }

    /// Makes an object.
    pub async fn create(&self, kind: Kind, object: &Value) -> anyhow::Result<Value> {
        let request = Request::post(kind.url("", MANAGER)?).header("content-type", "application/json");
        self.write("create", kind, request.body(object.to_string().into_bytes())).await
    }

    /// Changes fields of an object (a JSON merge patch).
    pub async fn patch(&self, kind: Kind, name: &str, patch: &Value) -> anyhow::Result<Value> {
        anyhow::ensure!(!name.is_empty(), "no name");
        let request =
            Request::patch(kind.url(name, MANAGER)?).header("content-type", "application/merge-patch+json");
        self.write("patch", kind, request.body(patch.to_string().into_bytes())).await
    }

    /// Deletes an object. Its being gone already is well.
    pub async fn delete(&self, kind: Kind, name: &str) -> anyhow::Result<()> {
        anyhow::ensure!(!name.is_empty(), "no name");
        let request = Request::delete(kind.url(name, "propagationPolicy=Background")?);
        match self.send(request.body(Vec::new())).await {
            Ok(_) | Err(Refused::Api { code: 404, .. }) => Ok(()),
            Err(refused) => Err(anyhow!(refused.text("delete", kind))),
        }
    }

    /// Asks an agent by its Pod's name and its port.
    pub async fn ask_agent<T: DeserializeOwned>(
        &self,
        agent: (&str, u16),
        path: &str,
        patience: Duration,
    ) -> Result<T, Missing> {
        let plain = |c: char| c.is_ascii_alphanumeric() || ['-', '.', '/'].contains(&c);
        if !path.chars().all(plain) {
            return Err(Missing::Other(format!("not a name of a node: {path:?}")));
        }
        forward::ask(&self.0, agent, path, patience).await
    }

    async fn write(
        &self,
        verb: &str,
        kind: Kind,
        request: http::Result<Request<Vec<u8>>>,
    ) -> anyhow::Result<Value> {
        self.send(request).await.map_err(|refused| anyhow!(refused.text(verb, kind)))
    }

    /// The end of a container's log.
    pub async fn log(&self, pod: &str, previous: bool) -> anyhow::Result<String> {
        self.log_by(pod, &format!("tailLines=5000&limitBytes=2000000&timestamps=true&previous={previous}"))
            .await
    }

    /// A container's log as it is.
    pub async fn plain_log(&self, pod: &str) -> anyhow::Result<String> {
        self.log_by(pod, "limitBytes=2000000").await
    }

    async fn log_by(&self, pod: &str, query: &str) -> anyhow::Result<String> {
        let url = Kind::Pod.url(pod, "")?;
        let url = format!("{}/log?{query}", url.trim_end_matches('?'));
        let request = Request::get(url).body(Vec::new()).context("preparing the request")?;
        let answer = timeout(ANSWER, self.0.request_text(request)).await.map_err(|_| Refused::Late);
        answer
            .and_then(|answer| answer.map_err(Refused::from))
            .map_err(|refused| anyhow!(refused.text("get the logs of", Kind::Pod)))
    }

    async fn send(&self, request: http::Result<Request<Vec<u8>>>) -> Result<Value, Refused> {
        let request = request.map_err(|error| Refused::Other(error.to_string()))?;
        match timeout(ANSWER, self.0.request::<Value>(request)).await {
            Ok(answer) => answer.map_err(Refused::from),
            Err(_) => Err(Refused::Late),
        }
    }
}

/// Why a request has no result.
enum Refused {
    Api { code: u16, message: String },
    Late,
    Other(String),
}

impl From<kube::Error> for Refused {
    fn from(error: kube::Error) -> Self {
        if let kube::Error::Api(status) = error {
            return Self::Api { code: status.code, message: status.message.clone() };
        }
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(inner) = cause {
            let inner_text = inner.to_string();
            if !text.contains(&inner_text) {
                text = format!("{text}: {inner_text}");
            }
            cause = inner.source();
        }
        Self::Other(text)
    }
}

impl Refused {
    fn text(&self, verb: &str, kind: Kind) -> String {
        let what = kind.name();
        match self {
            Self::Api { code: 401, .. } => {
                "the API server does not accept your credentials: log in again".to_owned()
            }
            Self::Api { code: 403, message } if message.contains("cannot ") => {
                format!("you may not {verb} {what}")
            }
            Self::Api { code: 404, .. } if kind.path().0 == GROUP && verb != "patch" => {
                format!("this cluster serves no {what}: is SecureOverlay's manifest applied?")
            }
            Self::Api { code, message } => {
                format!("failed to {verb} {what}: the API server answered {code}: {message}")
            }
            Self::Late => format!(
                "failed to {verb} {what}: no answer from the API server within {} s",
                ANSWER.as_secs()
            ),
            Self::Other(text) => format!("failed to {verb} {what}: no answer from the API server: {text}"),
        }
    }
}

/// For the value of a query.
fn encode(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_path_leads_to_a_secret() {
        for kind in Kind::ALL {
            let (prefix, plural) = kind.path();
            assert!(!plural.contains("secret") && prefix.starts_with("/api"), "{kind:?}");
            for name in ["../secrets/x", "a/../../secrets", "x?y", "a%2f", "..", "a#b", "ä"] {
                assert!(kind.url(name, "").is_err(), "{name}");
            }
        }
        assert_eq!(Kind::Pod.url("a.b-1", "q").unwrap(), "/api/v1/namespaces/kube-system/pods/a.b-1?q");
        assert_eq!(encode("k8s-app=a&b/ü"), "k8s-app%3Da%26b%2F%C3%BC");
    }

    #[test]
    fn refusals_say_what_was_not_allowed() {
        let api = |code, message: &str| Refused::Api { code, message: message.to_owned() };
        for (refused, kind, expected) in [
            (
                api(403, "pods is forbidden: User \"olga\" cannot list resource"),
                Kind::Pod,
                "you may not list pods in kube-system",
            ),
            (
                api(403, "denied by webhook"),
                Kind::Node,
                "failed to list nodes: the API server answered 403: denied by webhook",
            ),
            (
                api(404, "not found"),
                Kind::KeyRotation,
                "this cluster serves no keyrotations: is SecureOverlay's manifest applied?",
            ),
            (Refused::Late, Kind::Node, "failed to list nodes: no answer from the API server within 30 s"),
        ] {
            assert_eq!(refused.text("list", kind), expected);
        }
    }
}
