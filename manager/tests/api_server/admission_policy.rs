//! Agents write the objects of their own node alone, once admission-policy.yaml is applied.

use k8s_openapi::api::{
    authentication::v1::TokenRequest,
    core::v1::{Node, Pod, ServiceAccount},
};
use kube::{
    Api, Client,
    api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams},
};
use secureoverlay_k8s::names::NAMESPACE;
use secureoverlay_k8s::{encryption_peer::EncryptionPeer, node_encryption::NodeEncryption};
use serde_json::{Value, json};

use crate::cluster::{AGENT, Cluster, Manifest, until};

const POLICY: &str = include_str!("../../../manifests/admission-policy.yaml");
const OWN: &str = "policy-own";
const OTHER: &str = "policy-other";

/// A token as the kubelet gets it for a pod of the agents, or one that no pod has.
async fn token(cluster: &Cluster, pod: Option<&Pod>) -> String {
    let bound =
        pod.map(|pod| json!({"apiVersion": "v1", "kind": "Pod", "name": OWN, "uid": pod.metadata.uid}));
    let spec = json!({"audiences": [], "expirationSeconds": 3600, "boundObjectRef": bound});
    let request: TokenRequest = serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap();
    let accounts = Api::<ServiceAccount>::namespaced(cluster.admin.clone(), NAMESPACE);
    let answer = accounts.create_token_request(AGENT, &PostParams::default(), &request).await.unwrap();
    answer.status.unwrap().token
}

fn peer(name: &str, owner: Option<&str>) -> DynamicObject {
    let senders = json!([{
        "instance": "4b8e0c2d-3a6f-4d31-9c57-e2f0a1b3cb03", "address": "192.0.2.2",
        "publicKey": "qO1Fq8KKFReWp7zSWnOwzTOZBdbgL4+Cx5Rr9nAyZCY="
    }]);
    let uid = "9d0f5a37-62a5-4d5f-8a3d-1c1ad0f2b002";
    let resource = ApiResource::erase::<EncryptionPeer>(&());
    let spec = json!({"spec": {"nodeUid": uid, "podNetworks": [], "senders": senders}});
    let mut object = DynamicObject::new(name, &resource).data(spec);
    let owners = owner.map(|node| json!([{"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid}]));
    object.metadata.owner_references = serde_json::from_value(owners.unwrap_or(Value::Null)).unwrap();
    object
}

struct Objects {
    peers: Api<DynamicObject>,
    encryptions: Api<DynamicObject>,
}

impl Objects {
    fn of(client: &Client) -> Self {
        Self {
            peers: Api::all_with(client.clone(), &ApiResource::erase::<EncryptionPeer>(&())),
            encryptions: Api::all_with(client.clone(), &ApiResource::erase::<NodeEncryption>(&())),
        }
    }

    async fn create(&self, peer: &DynamicObject) -> Result<DynamicObject, String> {
        self.peers.create(&PostParams::default(), peer).await.map_err(refused)
    }

    /// Writes a status, as agents do.
    async fn report(&self, name: &str) -> Result<(), String> {
        let patch = Patch::Merge(json!({"status": {"version": "x"}}));
        self.encryptions.patch_status(name, &PatchParams::default(), &patch).await.map(drop).map_err(refused)
    }
}

/// The message of a refusal by the policy.
fn refused(error: kube::Error) -> String {
    match error {
        kube::Error::Api(status) if status.message.contains("secureoverlay-own-node") => status.message,
        error => panic!("{error}"),
    }
}

#[tokio::test]
async fn agents_write_objects_of_their_own_node_alone() {
    let cluster = Cluster::fresh().await;
    cluster.apply(Manifest::Ours);
    let nodes = Api::<Node>::all(cluster.admin.clone());
    let node: Node = serde_json::from_value(json!({"metadata": {"name": OWN}})).unwrap();
    nodes.create(&PostParams::default(), &node).await.unwrap();
    let pods = Api::<Pod>::namespaced(cluster.admin.clone(), NAMESPACE);
    let spec =
        json!({"nodeName": OWN, "serviceAccountName": AGENT, "containers": [{"name": "a", "image": "x"}]});
    let pod: Pod = serde_json::from_value(json!({"metadata": {"name": OWN}, "spec": spec})).unwrap();
    let pod = pods.create(&PostParams::default(), &pod).await.unwrap();
    let agent = Objects::of(&cluster.as_token(token(&cluster, Some(&pod)).await));
    let nowhere = Objects::of(&cluster.as_token(token(&cluster, None).await));
    let admin = Objects::of(&cluster.admin);
    let encryption = |name| DynamicObject::new(name, &ApiResource::erase::<NodeEncryption>(&()));
    let encryption = |name| encryption(name).data(json!({"spec": {}}));
    until("the definitions are served", async || admin.create(&peer(OTHER, Some(OTHER))).await.ok()).await;
    for name in [OWN, OTHER] {
        until("the definitions are served", async || {
            admin.encryptions.create(&PostParams::default(), &encryption(name)).await.ok()
        })
        .await;
    }
    let before = agent.report(OTHER).await;
    cluster.apply_unwarned(POLICY);
    // Policies reach the API server's admission a moment after they were written.
    until("the policy is in force", async || agent.report(OTHER).await.err()).await;

    let created = agent.create(&peer(OWN, Some(OWN))).await;
    let foreign = agent.create(&peer("policy-third", Some(OWN))).await;
    let owned = Objects::of(&cluster.admin).peers.delete(OWN, &DeleteParams::default()).await;
    let foreign_owner = agent.create(&peer(OWN, Some(OTHER))).await;
    let other = admin.peers.get(OTHER).await.unwrap();
    let replaced = agent.peers.replace(OTHER, &PostParams::default(), &other).await.map_err(refused);
    let (own_report, without_node) = (agent.report(OWN).await, nowhere.report(OWN).await);
    let others = admin.report(OTHER).await;
    // Before anything is checked: other tests need a cluster without nodes.
    pods.delete(OWN, &DeleteParams::default().grace_period(0)).await.unwrap();
    nodes.delete(OWN, &DeleteParams::default()).await.unwrap();
    cluster.kubectl(&["delete", "-f", "-"], POLICY);

    assert_eq!(before, Ok(()), "rights alone do not confine it");
    assert!(created.is_ok() && owned.is_ok() && own_report.is_ok(), "{created:?} {own_report:?}");
    let why = foreign.unwrap_err();
    assert!(why.contains(&format!("this token is of node {OWN}")), "{why}");
    assert!(replaced.unwrap_err().contains("their own node alone"));
    assert!(foreign_owner.unwrap_err().contains("the owner must be the Node"));
    assert!(without_node.unwrap_err().contains("does not name the node"));
    assert_eq!(others, Ok(()), "it is about agents");
}
