//! Who may do what: everything that is not in the table is refused.

use std::collections::BTreeSet;

use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::{Node, Secret};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchParams},
};
use secureoverlay_common::names::{NAMESPACE, SECRET};
use secureoverlay_daemon::{
    access,
    node_encryption::{NodeEncryption, NodeEncryptionSpec, NodeEncryptionStatus},
};
use secureoverlay_manager::{
    outbox::{self, Notice},
    snapshot, taint,
};
use secureoverlay_manager_core::notification::EventReason;
use serde_json::json;

use crate::cluster::{AGENT, Cluster, MANAGER, Manifest, until};

const VERBS: [&str; 8] = ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"];

/// What is asked for: a name for the table, then group, resource, name, namespace.
type Object = (&'static str, &'static str, &'static str, Option<&'static str>, Option<&'static str>);

const HERE: Option<&str> = Some(NAMESPACE);
const ELSEWHERE: Option<&str> = Some("default");

const OURS: &str = "secureoverlay.io";

const OBJECTS: [Object; 25] = [
    ("the Secret", "", "secrets", Some(SECRET), HERE),
    ("another Secret", "", "secrets", Some("other"), HERE),
    ("all Secrets here", "", "secrets", None, HERE),
    ("its namesake elsewhere", "", "secrets", Some(SECRET), ELSEWHERE),
    ("all Secrets", "", "secrets", None, None),
    ("a Node", "", "nodes", Some("a"), None),
    ("all Nodes", "", "nodes", None, None),
    ("a Node's status", "", "nodes/status", Some("a"), None),
    ("the DaemonSet", "apps", "daemonsets", Some(AGENT), HERE),
    ("Calico's DaemonSet", "apps", "daemonsets", Some("calico-node"), HERE),
    ("another DaemonSet", "apps", "daemonsets", Some("other"), HERE),
    ("all DaemonSets here", "apps", "daemonsets", None, HERE),
    ("the Deployment", "apps", "deployments", Some(MANAGER), HERE),
    ("Pods", "", "pods", None, HERE),
    ("ConfigMaps", "", "configmaps", None, HERE),
    ("Events", "", "events", None, HERE),
    ("Events elsewhere", "", "events", None, ELSEWHERE),
    ("Events of the other kind", "events.k8s.io", "events", None, HERE),
    ("a NodeEncryption", OURS, "nodeencryptions", Some("a"), None),
    ("all NodeEncryptions", OURS, "nodeencryptions", None, None),
    ("a NodeEncryption's status", OURS, "nodeencryptions/status", Some("a"), None),
    ("the definition of NodeEncryption", "apiextensions.k8s.io", "customresourcedefinitions", None, None),
    ("tokens", "", "serviceaccounts/token", Some(MANAGER), HERE),
    ("RoleBindings", "rbac.authorization.k8s.io", "rolebindings", None, HERE),
    ("ClusterRoles", "rbac.authorization.k8s.io", "clusterroles", None, None),
];

async fn table(client: &Client) -> BTreeSet<String> {
    let questions = OBJECTS.iter().flat_map(|object| VERBS.map(|verb| (verb, object)));
    stream::iter(questions)
        .map(async |(verb, (label, group, resource, name, namespace))| {
            let allowed = access::allowed(client, verb, group, resource, *name, *namespace).await?;
            Ok::<_, kube::Error>(allowed.then(|| format!("{verb} {label}")))
        })
        .buffer_unordered(8)
        .try_filter_map(async |line| Ok(line))
        .try_collect()
        .await
        .unwrap()
}

fn lines(rows: &[(&[&str], &str)]) -> BTreeSet<String> {
    rows.iter().flat_map(|(verbs, label)| verbs.iter().map(move |verb| format!("{verb} {label}"))).collect()
}

const STARTUP_TAINT: &str = include_str!("../../../manifests/startup-taint.yaml");

const READ: &[&str] = &["get", "list", "watch"];

#[tokio::test]
async fn ours_grants_the_least() {
    let cluster = Cluster::fresh().await;
    // Over MKE's, whose far wider rights must be gone then.
    cluster.apply(Manifest::Mke);
    cluster.apply(Manifest::Ours);
    // A right to all objects of a kind is one to each of them, and the other way round for what is not named.
    let write: &[&str] = &["get", "create", "patch"];
    assert_eq!(
        table(&cluster.as_account(AGENT)).await,
        lines(&[
            (READ, "the Secret"),
            (READ, "the DaemonSet"),
            (&["get"], "Calico's DaemonSet"),
            (READ, "a Node"),
            (READ, "all Nodes"),
            (write, "a NodeEncryption"),
            (write, "all NodeEncryptions"),
            (&["patch"], "a NodeEncryption's status"),
        ])
    );
    let watch: &[&str] = &["list", "watch"];
    assert_eq!(
        table(&cluster.as_account(MANAGER)).await,
        lines(&[
            (&["get", "update"], "the Secret"),
            (&["get"], "the DaemonSet"),
            (watch, "a Node"),
            (watch, "all Nodes"),
            (watch, "a NodeEncryption"),
            (watch, "all NodeEncryptions"),
            (&["patch"], "a NodeEncryption's status"),
            (&["create"], "Events"),
        ])
    );
}

#[tokio::test]
async fn the_startup_taint_takes_a_right_of_its_own() {
    let cluster = Cluster::fresh().await;
    cluster.apply(Manifest::Ours);
    let manager = cluster.as_account(MANAGER);
    let spec = json!({"taints": [
        {"key": "secureoverlay.io/starting", "effect": "NoSchedule"},
        {"key": "secureoverlay.io/starting", "effect": "NoExecute"},
        {"key": "team", "value": "network", "effect": "NoSchedule"},
    ]});
    let node: Node = serde_json::from_value(json!({"metadata": {"name": "starting"}, "spec": spec})).unwrap();
    let nodes = Api::<Node>::all(cluster.admin.clone());
    nodes.create(&PostParams::default(), &node).await.unwrap();
    let lift = || taint::remove(&manager, "starting", "secureoverlay.io/starting");
    let refused = lift().await;
    cluster.apply_unwarned(STARTUP_TAINT);
    // Rights reach the API server's authorizer a moment after they were written.
    until("the manager to be allowed to", async || lift().await.ok()).await;
    let left = nodes.get("starting").await.unwrap().spec.unwrap().taints.unwrap();
    // Before anything is checked: others need a cluster without nodes.
    nodes.delete("starting", &DeleteParams::default()).await.unwrap();
    cluster.kubectl(&["delete", "-f", "-"], STARTUP_TAINT);
    assert!(matches!(refused, Err(kube::Error::Api(status)) if status.code == 403));
    // The API server has one of its own for nodes that come.
    let others =
        left.iter().map(|taint| taint.key.as_str()).filter(|key| !key.starts_with("node.kubernetes.io/"));
    assert_eq!(others.collect::<Vec<_>>(), ["team"]);
}

#[tokio::test]
async fn mkes_grants_what_it_always_did() {
    let cluster = Cluster::fresh().await;
    cluster.apply(Manifest::Mke);
    assert_eq!(table(&cluster.as_account(AGENT)).await, lines(&[(READ, "a Node"), (READ, "all Nodes")]));
    let write: &[&str] = &["get", "update"];
    assert_eq!(
        table(&cluster.as_account(MANAGER)).await,
        lines(&[
            (write, "the Secret"),
            (write, "another Secret"),
            (write, "all Secrets here"),
            (write, "its namesake elsewhere"),
            (write, "all Secrets"),
        ])
    );
}

#[tokio::test]
async fn the_answers_hold_for_real_requests() {
    let cluster = Cluster::fresh().await;
    cluster.apply(Manifest::Ours);
    let agent = cluster.as_account(AGENT);
    let secrets = Api::<Secret>::namespaced(agent.clone(), NAMESPACE);
    let named = format!("metadata.name={SECRET}");
    secrets.get(SECRET).await.unwrap();
    let list = secrets.list(&ListParams::default().fields(&named)).await.unwrap();
    assert_eq!(list.items.len(), 1, "listing works with the name in the selector, as watching does");
    let version = list.metadata.resource_version.unwrap();
    drop(secrets.watch(&WatchParams::default().fields(&named), &version).await.unwrap());
    Api::<Node>::all(agent).list(&ListParams::default()).await.unwrap();

    let forbidden = |error: kube::Error| matches!(error, kube::Error::Api(status) if status.code == 403);
    assert!(forbidden(secrets.list(&ListParams::default()).await.unwrap_err()));
    assert!(forbidden(secrets.get("other").await.unwrap_err()));
    let mut secret = cluster.secrets().get(SECRET).await.unwrap();
    secret.data = serde_json::from_value(json!({"keys": "AAEC"})).unwrap();
    assert!(forbidden(secrets.replace(SECRET, &PostParams::default(), &secret).await.unwrap_err()));
    let manager = Api::<Secret>::namespaced(cluster.as_account(MANAGER), NAMESPACE);
    assert!(forbidden(manager.list(&ListParams::default().fields(&named)).await.unwrap_err()));
    assert!(forbidden(manager.create(&PostParams::default(), &secret).await.unwrap_err()));
    manager.replace(SECRET, &PostParams::default(), &secret).await.unwrap();
}

#[tokio::test]
async fn an_acknowledgement_is_written_by_agents_and_read_by_the_manager() {
    let cluster = Cluster::fresh().await;
    cluster.apply(Manifest::Ours);
    let forbidden = |error: kube::Error| matches!(error, kube::Error::Api(status) if status.code == 403);
    let agent = Api::<NodeEncryption>::all(cluster.as_account(AGENT));
    let object = NodeEncryption::new("a", NodeEncryptionSpec {});
    until("the definition is served", async || agent.create(&PostParams::default(), &object).await.ok())
        .await;
    let uid = "0f3c9b1e-8d1f-4c57-9b43-5a9f3f1f2b01";
    let word = json!({"status": {"acknowledgement": {"node": uid, "boot": uid, "newest": 7}, "revision": 7}});
    let params = PatchParams::default();
    agent.patch_status("a", &params, &Patch::Merge(word)).await.unwrap();
    agent.get("a").await.unwrap();
    assert!(forbidden(agent.list(&ListParams::default()).await.unwrap_err()));
    assert!(forbidden(agent.delete("a", &DeleteParams::default()).await.unwrap_err()));

    let client = cluster.as_account(MANAGER);
    let manager = Api::<NodeEncryption>::all(client.clone());
    assert_eq!(snapshot::list(&client, None).await.unwrap().acknowledgements["a"].newest, 7);
    assert!(forbidden(manager.create(&PostParams::default(), &object).await.unwrap_err()));
    assert!(forbidden(manager.patch("a", &params, &Patch::Merge(json!({"spec": {}}))).await.unwrap_err()));

    // What people are told arrives.
    let (outbox, notices) = outbox::queue();
    let secret = cluster.secrets().get(SECRET).await.unwrap().metadata.uid;
    outbox.put(Notice::Awaited { node: "a".to_owned(), what: Some("receiving generation 8".to_owned()) });
    outbox.put(Notice::Event { reason: EventReason::RotationWaiting, note: "for a".to_owned(), secret });
    drop(outbox);
    outbox::deliver(client, notices).await;
    let status = manager_view(&cluster).await;
    assert_eq!((status.awaited.as_deref(), status.revision), (Some("receiving generation 8"), 7));
    let of_the_secret = format!("--field-selector=involvedObject.name={SECRET}");
    let shown = cluster.kubectl(&["get", "events", "--namespace=kube-system", &of_the_secret], "");
    assert!(shown.contains("RotationWaiting"), "{shown}");
    let shown = cluster.kubectl(&["get", "nodeencryptions"], "");
    assert!(shown.contains("receiving generation 8"), "{shown}");
}

async fn manager_view(cluster: &Cluster) -> NodeEncryptionStatus {
    Api::<NodeEncryption>::all(cluster.admin.clone()).get("a").await.unwrap().status.unwrap()
}
