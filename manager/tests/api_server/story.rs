//! The manager's work from beginning to end.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use k8s_openapi::api::apps::v1::DaemonSet;
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use secureoverlay_k8s::names::{DAEMON_SET, NAMESPACE, SECRET};
use secureoverlay_keyring::keyring::{Enforcement, KeyRing, Role};
use serde_json::json;

use crate::{
    cluster::{Cluster, MANAGER, Manifest, until},
    program::Program,
};

/// The ring, once it holds one generation, active, with at least this number.
async fn steady(cluster: &Cluster, id: u64) -> KeyRing {
    until(&format!("generation {id} alone and active"), async || {
        let ring = cluster.ring().await?;
        let [only] = &ring.generations[..] else { return None };
        (only.role == Role::Active && only.id >= id).then(|| ring.clone())
    })
    .await
}

#[tokio::test]
async fn first_key_and_rotation_under_either_manifest() {
    for manifest in Manifest::BOTH {
        let cluster = Cluster::fresh().await;
        cluster.apply(manifest);
        let program = Program::start(&cluster.account_kubeconfig(MANAGER).await, "1s", "300ms").await;
        let first = steady(&cluster, 1).await;
        assert_eq!(first.enforcement, Enforcement::Permissive);
        assert_eq!(
            first.installation.is_some(),
            manifest == Manifest::Ours,
            "the DaemonSet's UID, where it may be read"
        );
        let second = steady(&cluster, first.generations[0].id + 1).await;
        assert!(second.revision >= first.revision + 3, "staged, activated, dropped");
        assert!(program.metric("rotations_total") >= 1);
        assert!(
            program.page("/readyz").starts_with("HTTP/1.1 200") && program.page("/healthz").contains("alive")
        );
        let metrics = program.page("/metrics");
        let (code, log) = program.stop().await;
        assert_eq!(code, Some(0), "{log}");
        assert!(log.contains(&format!("activated generation {}", second.generations[0].id)), "{log}");
        let after = cluster.ring().await.unwrap();
        for generation in first.generations.iter().chain(&second.generations).chain(&after.generations) {
            for key in [&generation.key, &generation.spi_seed] {
                let text = BASE64.encode(key.expose());
                assert!(!log.contains(&text) && !metrics.contains(&text), "a key was given away");
            }
        }
    }
}

#[tokio::test]
async fn killed_at_any_point_it_goes_on() {
    let cluster = Cluster::fresh().await;
    cluster.apply(Manifest::Ours);
    let kubeconfig = cluster.account_kubeconfig(MANAGER).await;
    let mut revision = 0;
    // Each process lives for one write of the ring.
    for _ in 0..8 {
        let program = Program::start(&kubeconfig, "300ms", "200ms").await;
        revision = until("one more write", async || {
            let ring = cluster.ring().await?;
            (ring.revision > revision).then_some(ring.revision)
        })
        .await;
        program.kill();
    }
    let ring = cluster.ring().await.unwrap();
    assert!(ring.revision >= 8, "{ring:?}");
}

#[tokio::test]
async fn a_wiped_ring_comes_back_as_it_was() {
    let cluster = Cluster::fresh().await;
    cluster.apply(Manifest::Mke);
    let program = Program::start(&cluster.account_kubeconfig(MANAGER).await, "12h", "300ms").await;
    let before = steady(&cluster, 1).await;
    // Not before the manager has seen its own write, which it then knows to be the last good ring.
    until("the manager is at rest", async || {
        program.page("/metrics").contains("{phase=\"steady\"} 1").then_some(())
    })
    .await;
    cluster.apply(Manifest::Mke);
    let after = until("the ring is back", async || cluster.ring().await).await;
    assert_eq!(after.generations, before.generations);
    assert_eq!(after.revision, before.revision + 1);
    assert_eq!(program.metric("rings_restored_total"), 1);
}

#[tokio::test]
async fn junk_is_left_alone_until_it_is_repaired() {
    let cluster = Cluster::fresh().await;
    cluster.apply(Manifest::Ours);
    let program = Program::start(&cluster.account_kubeconfig(MANAGER).await, "12h", "300ms").await;
    let good = steady(&cluster, 1).await;
    let noise: Vec<u8> = (0..1_000_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let documents =
        [b"{]: not YAML".to_vec(), noise, good.to_yaml().replace("role: active", "role: both").into()];
    for document in documents {
        cluster.set_document(&document).await;
        let version = cluster.secret_version().await;
        let failed = program.metric("reconcile_errors_total");
        until("it has looked three times", async || {
            (program.metric("reconcile_errors_total") >= failed + 3).then_some(())
        })
        .await;
        assert_eq!(cluster.secret_version().await, version, "it was written over");
        assert_eq!(program.metric("ring_valid"), 0);
        let page = program.page("/readyz");
        assert!(page.starts_with("HTTP/1.1 503") && page.contains("the key ring"), "{page}");
    }
    cluster.set_document(good.to_yaml().as_bytes()).await;
    until("it is ready again", async || program.page("/readyz").starts_with("HTTP/1.1 200").then_some(()))
        .await;
    assert_eq!(cluster.ring().await, Some(good));
    let warnings = program.log().matches("\"WARN\"").count();
    assert!((1..=3).contains(&warnings), "once for each change, not for each look: {warnings}");
}

#[tokio::test]
async fn other_content_of_the_secret_is_kept() {
    let cluster = Cluster::fresh().await;
    cluster.apply(Manifest::Ours);
    let patch = json!({
        "metadata": {"labels": {"team": "network"}, "annotations": {"note": "ours"}},
        "data": {"other": "AAEC"},
    });
    cluster.secrets().patch(SECRET, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    let program = Program::start(&cluster.account_kubeconfig(MANAGER).await, "12h", "300ms").await;
    steady(&cluster, 1).await;
    drop(program);
    let secret = cluster.secrets().get(SECRET).await.unwrap();
    assert_eq!(secret.metadata.labels.unwrap()["team"], "network");
    assert_eq!(secret.metadata.annotations.unwrap()["note"], "ours");
    assert_eq!(secret.data.unwrap()["other"].0, [0, 1, 2]);
    assert_eq!(secret.type_.as_deref(), Some("Opaque"));
}

#[tokio::test]
async fn keys_end_with_the_daemon_set() {
    let cluster = Cluster::fresh().await;
    cluster.apply(Manifest::Ours);
    let program = Program::start(&cluster.account_kubeconfig(MANAGER).await, "12h", "300ms").await;
    let first = steady(&cluster, 1).await;
    let daemon_sets = Api::<DaemonSet>::namespaced(cluster.admin.clone(), NAMESPACE);
    daemon_sets.delete(DAEMON_SET, &DeleteParams::background()).await.unwrap();
    cluster.apply(Manifest::Ours);
    until("a ring for the new DaemonSet", async || {
        cluster
            .ring()
            .await
            .filter(|ring| ring.installation.is_some() && ring.installation != first.installation)
    })
    .await;
    let second = steady(&cluster, 1).await;
    assert!(second.generations[0].uid != first.generations[0].uid);
    drop(program);
}
