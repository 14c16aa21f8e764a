//! Who may do what: everything that is not in the table is refused.

use std::collections::BTreeSet;

use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::{Node, Secret};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchParams},
};
use secureoverlay_k8s::{
    access,
    encryption_peer::EncryptionPeer,
    names::{NAMESPACE, SECRET},
    node_encryption::{NodeEncryption, NodeEncryptionSpec},
};
use secureoverlay_manager::io::{
    outbox::{self, Notice, Subject},
    snapshot, taint,
};
use secureoverlay_manager_core::{
    notification::EventReason,
    orphans::{Deletion, ObjectKind},
    snapshot::ClusterState,
};
use serde_json::json;

use crate::cluster::{AGENT, Cluster, MANAGER, Manifest, until};

const VERBS: [&str; 8] = ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"];

/// What is asked for: a name for the table, then group, resource, name, namespace.
type Object = (&'static str, &'static str, &'static str, Option<&'static str>, Option<&'static str>);

const HERE: Option<&str> = Some(NAMESPACE);
const ELSEWHERE: Option<&str> = Some("default");

const OURS: &str = "secureoverlay.io";
const ADMISSION: &str = "admissionregistration.k8s.io";

const OBJECTS: [Object; 33] = [
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
    ("Pods elsewhere", "", "pods", None, ELSEWHERE),
    ("all EncryptionPeers", OURS, "encryptionpeers", None, None),
    ("the admission policy", ADMISSION, "validatingadmissionpolicies", Some("secureoverlay-own-node"), None),
    ("another admission policy", ADMISSION, "validatingadmissionpolicies", Some("other"), None),
    ("a NodeEncryption", OURS, "nodeencryptions", Some("a"), None),
    ("all NodeEncryptions", OURS, "nodeencryptions", None, None),
    ("a NodeEncryption's status", OURS, "nodeencryptions/status", Some("a"), None),
    ("the settings", OURS, "clusterencryptions", None, None),
    ("the settings' status", OURS, "clusterencryptions/status", None, None),
    ("rotations", OURS, "keyrotations", None, None),
    ("a rotation's status", OURS, "keyrotations/status", None, None),
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
            (&["get"], "a Node"),
            (&["get"], "all Nodes"),
            (&["get", "list", "watch", "create", "update"], "all EncryptionPeers"),
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
            (READ, "a Node"),
            (READ, "all Nodes"),
            (watch, "Pods"),
            (&["list", "watch", "delete"], "all EncryptionPeers"),
            (&["list", "watch", "delete"], "a NodeEncryption"),
            (&["list", "watch", "delete"], "all NodeEncryptions"),
            (&["get", "list", "watch", "create", "patch"], "the settings"),
            (&["patch"], "the settings' status"),
            (&["get", "list", "watch", "create", "patch", "delete"], "rotations"),
            (&["patch"], "a rotation's status"),
            (&["get"], "the admission policy"),
            (&["create"], "Events"),
            (&["create"], "Events elsewhere"),
        ])
    );
}

#[tokio::test]
async fn operators_write_their_objects_and_read_no_key() {
    let cluster = Cluster::fresh().await;
    cluster.apply(Manifest::Ours);
    let bindings = [("olga", "secureoverlay-operator"), ("vera", "view")];
    for (user, role) in bindings {
        let flags = [format!("--clusterrole={role}"), format!("--user={user}")];
        cluster.kubectl(&["create", "clusterrolebinding", user, &flags[0], &flags[1]], "");
    }
    let write: &[&str] = &["get", "list", "watch", "create", "update", "patch", "delete"];
    let ours = [(write, "the settings"), (write, "rotations")];
    let read = ["all EncryptionPeers", "a NodeEncryption", "all NodeEncryptions"].map(|what| (READ, what));
    let list: &[&str] = &["get", "list"];
    let nodes = [(list, "a Node"), (list, "all Nodes")];
    let expected = lines(&[&ours[..], &read[..], &nodes[..]].concat());
    let operator = cluster.as_user("olga");
    until("the operator to have the role", async || (table(&operator).await == expected).then_some(())).await;
    // `view` is aggregated by a controller, which a bare API server does not have: its rule is in the manifest's test.
    let viewer = cluster.as_user("vera");
    assert!(!access::allowed(&viewer, "get", "", "secrets", Some(SECRET), HERE).await.unwrap());
    for (user, _) in bindings {
        cluster.kubectl(&["delete", "clusterrolebinding", user], "");
    }
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
    let nodes = Api::<Node>::all(agent);
    assert!(nodes.get_opt("a").await.unwrap().is_none());

    let forbidden = |error: kube::Error| matches!(error, kube::Error::Api(status) if status.code == 403);
    assert!(forbidden(nodes.list(&ListParams::default()).await.unwrap_err()));
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
    let acknowledgement = json!({
        "ackId": uid, "nodeUid": uid, "instance": uid, "receivable": [], "provenGenerations": [],
        "sendsNone": true, "allPairsProven": false, "exhaustedGenerations": [], "highestGenerationSeen": 7,
        "enforcement": "off", "enforcementBlockers": [], "unprovenPairs": [], "tunnelMtuTooLarge": false,
        "noPeers": false, "unknownGateways": {"count": 0, "addresses": []},
    });
    let status = json!({"status": {"acknowledgement": acknowledgement}});
    let params = PatchParams::default();
    agent.patch_status("a", &params, &Patch::Merge(status)).await.unwrap();
    agent.get("a").await.unwrap();
    assert!(forbidden(agent.list(&ListParams::default()).await.unwrap_err()));
    assert!(forbidden(agent.delete("a", &DeleteParams::default()).await.unwrap_err()));

    let client = cluster.as_account(MANAGER);
    let manager = Api::<NodeEncryption>::all(client.clone());
    let state = snapshot::list(&client, None, ClusterState::default()).await.unwrap();
    assert_eq!(state.acks["a"].content.as_ref().unwrap().highest_generation_seen, 7);
    Api::<EncryptionPeer>::all(client.clone()).list(&ListParams::default()).await.unwrap();
    assert!(forbidden(manager.create(&PostParams::default(), &object).await.unwrap_err()));
    assert!(forbidden(manager.patch("a", &params, &Patch::Merge(json!({"spec": {}}))).await.unwrap_err()));

    // What people are told arrives.
    let (outbox, notices) = outbox::queue();
    let secret = cluster.secrets().get(SECRET).await.unwrap().metadata.uid;
    let about = Subject::Secret(secret);
    outbox.put(Notice::Event { reason: EventReason::RotationWaiting, note: "for a".to_owned(), about });
    outbox.put(Notice::Delete(Deletion {
        kind: ObjectKind::NodeEncryption,
        name: "a".to_owned(),
        uid: state.acks["a"].uid.unwrap(),
    }));
    drop(outbox);
    outbox::deliver(client, notices).await;
    assert!(agent.get_opt("a").await.unwrap().is_none(), "there is no Node of that name");
    let of_the_secret = format!("--field-selector=involvedObject.name={SECRET}");
    let shown = cluster.kubectl(&["get", "events", "--namespace=kube-system", &of_the_secret], "");
    assert!(shown.contains("RotationWaiting"), "{shown}");
}
