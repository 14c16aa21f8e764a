//! `kubectl apply` and `kubectl delete` of both manifests.

use k8s_openapi::api::core::v1::Node;
use kube::{
    Resource,
    api::{ListParams, Request},
    client::Body,
};
use secureoverlay_keyring::{keyring::KeyRing, settings::Settings, uid::Uid};

use crate::cluster::{AGENT, Cluster, MANAGER, Manifest, until};

const FLOW_SCHEMA: &str = include_str!("../../../manifests/flowschema.yaml");

#[tokio::test]
async fn both_apply_and_are_idempotent() {
    let cluster = Cluster::fresh().await;
    for manifest in Manifest::BOTH {
        let first = cluster.apply(manifest);
        assert!(first.lines().all(|line| line.ends_with(" created")), "{manifest:?}: {first}");
        let second = cluster.apply(manifest);
        assert!(second.lines().all(|line| line.ends_with(" unchanged")), "{manifest:?}: {second}");
        cluster.delete(manifest);
        let left = cluster.kubectl(
            &[
                "get",
                "secrets,serviceaccounts,daemonsets.apps,deployments.apps,roles,rolebindings,clusterroles,clusterrolebindings,customresourcedefinitions",
                "--namespace=kube-system",
                "--output=name",
            ],
            "",
        );
        let ours: Vec<_> = left.lines().filter(|line| line.contains("secureoverlay")).collect();
        assert!(ours.is_empty(), "{ours:?}");
    }
}

#[tokio::test]
async fn agents_have_a_place_of_their_own_in_the_api_server() {
    let cluster = Cluster::fresh().await;
    cluster.apply(Manifest::Ours);
    cluster.apply_unwarned(FLOW_SCHEMA);
    let uid = |kind| cluster.kubectl(&["get", kind, AGENT, "--output=jsonpath={.metadata.uid}"], "");
    let own = [uid("flowschemas"), uid("prioritylevelconfigurations")];
    // Which schema and level took a request is in the head of its answer.
    let taken = async |account| {
        let list = Request::new(Node::url_path(&(), None)).list(&ListParams::default()).unwrap();
        let answer = cluster.as_account(account).send(list.map(Body::from)).await.unwrap();
        ["flowschema", "prioritylevel"].map(|what| {
            let name = format!("x-kubernetes-pf-{what}-uid");
            answer.headers()[name].to_str().unwrap().to_owned()
        })
    };
    until("the API server to know the schema", async || (taken(AGENT).await == own).then_some(())).await;
    let others = taken(MANAGER).await;
    cluster.kubectl(&["delete", "-f", "-"], FLOW_SCHEMA);
    assert!(others.iter().all(|uid| !own.contains(uid)), "{others:?}");
}

#[tokio::test]
async fn one_applies_over_the_other() {
    let cluster = Cluster::fresh().await;
    for manifest in [Manifest::Mke, Manifest::Ours, Manifest::Mke] {
        cluster.apply(manifest);
    }
}

#[tokio::test]
async fn applying_ours_again_leaves_the_ring_and_mkes_wipes_it() {
    let cluster = Cluster::fresh().await;
    let document = KeyRing::off(7, Uid::from_random([7; 16]), None, Settings::default()).to_yaml();
    cluster.apply(Manifest::Ours);
    cluster.set_document(document.as_bytes()).await;
    let version = cluster.secret_version().await;
    cluster.apply(Manifest::Ours);
    assert_eq!(cluster.secret_version().await, version, "not even touched");
    cluster.delete(Manifest::Ours);

    cluster.apply(Manifest::Mke);
    cluster.set_document(document.as_bytes()).await;
    cluster.apply(Manifest::Mke);
    assert!(cluster.document().await.is_empty(), "which is what the manager is prepared for");
}
