//! Watches of custom resources, with an object among them that the schema takes and nothing else does.

use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api,
    api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams},
};
use secureoverlay_k8s::{
    encryption_peer::EncryptionPeer,
    watch::{Source, Update, follow},
};
use secureoverlay_keyring::peer::EncryptionPeerSpec;
use serde_json::json;
use tokio::{
    sync::mpsc::{Receiver, channel},
    time::timeout,
};

use crate::cluster::{AGENT, Cluster, Manifest, until};

fn peer(name: &str, address: &str) -> DynamicObject {
    let senders = json!([{
        "instance": "4b8e0c2d-3a6f-4d31-9c57-e2f0a1b3cb03", "address": address,
        "publicKey": "qO1Fq8KKFReWp7zSWnOwzTOZBdbgL4+Cx5Rr9nAyZCY="
    }]);
    let spec =
        json!({"nodeUid": "9d0f5a37-62a5-4d5f-8a3d-1c1ad0f2b002", "podNetworks": [], "senders": senders});
    DynamicObject::new(name, &ApiResource::erase::<EncryptionPeer>(&())).data(json!({ "spec": spec }))
}

async fn next(updates: &mut Receiver<Update<EncryptionPeerSpec>>) -> Update<EncryptionPeerSpec> {
    timeout(Duration::from_secs(30), updates.recv()).await.expect("an update").unwrap()
}

#[tokio::test]
async fn hostile_object_hides_no_other() {
    let cluster = Cluster::fresh().await;
    cluster.apply(Manifest::Ours);
    let resource = ApiResource::erase::<EncryptionPeer>(&());
    let peers = Api::<DynamicObject>::all_with(cluster.admin.clone(), &resource);
    let params = PostParams::default();
    until("the definition is served", async || peers.create(&params, &peer("a", "192.0.2.1")).await.ok())
        .await;
    // A loopback address: no node is there.
    peers.create(&params, &peer("b", "127.0.0.1")).await.unwrap();
    let agent = cluster.as_account(AGENT);
    let (sender, mut updates) = channel(8);
    tokio::spawn(follow::<EncryptionPeerSpec>(agent, Source::cluster::<EncryptionPeer>(), sender));
    let Update::List { mut objects, went_back: false } = next(&mut updates).await else { panic!("no list") };
    objects.sort_by(|one, other| one.meta.name.cmp(&other.meta.name));
    let read: Vec<_> = objects.iter().map(|o| (o.meta.name.as_str(), o.content.is_ok())).collect();
    assert_eq!(read, [("a", true), ("b", false)]);
    assert!(objects[1].content.as_ref().unwrap_err().contains("not an address of a node"));

    let label = Patch::Merge(json!({"metadata": {"labels": {"x": "y"}}}));
    peers.patch("b", &PatchParams::default(), &label).await.unwrap();
    peers.delete("a", &DeleteParams::default()).await.unwrap();
    assert!(
        matches!(next(&mut updates).await, Update::Applied(o) if o.meta.name == "b" && o.content.is_err())
    );
    assert!(
        matches!(next(&mut updates).await, Update::Deleted(o) if o.meta.name == "a" && o.content.is_ok())
    );

    // Its definition goes, and every object with it; what follows is told as a failure, and nothing as gone for ever.
    let definitions = Api::<CustomResourceDefinition>::all(cluster.admin.clone());
    definitions.delete("encryptionpeers.secureoverlay.io", &DeleteParams::default()).await.unwrap();
    assert!(matches!(next(&mut updates).await, Update::Deleted(o) if o.meta.name == "b"));
    let missing = async || match next(&mut updates).await {
        Update::Failed(failure) => (failure.code == Some(404)).then_some(()),
        _ => None,
    };
    until("the list to be refused", missing).await;
}
