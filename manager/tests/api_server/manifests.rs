//! `kubectl apply` and `kubectl delete` of both manifests.

use secureoverlay_common::ring::Ring;

use crate::cluster::{Cluster, Manifest};

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
async fn one_applies_over_the_other() {
    let cluster = Cluster::fresh().await;
    for manifest in [Manifest::Mke, Manifest::Ours, Manifest::Mke] {
        cluster.apply(manifest);
    }
}

#[tokio::test]
async fn applying_ours_again_leaves_the_ring_and_mkes_wipes_it() {
    let cluster = Cluster::fresh().await;
    let document = Ring::off(7, None).to_yaml();
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
