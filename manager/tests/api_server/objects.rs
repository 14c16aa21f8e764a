//! What the API server takes of the operator's objects, and what the manager makes and tells of them.

use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use secureoverlay_k8s::{
    cluster_encryption::ClusterEncryption,
    key_rotation::{KeyRotation, KeyRotationSpec},
    object::Object,
};
use secureoverlay_keyring::condition::ConditionStatus;
use secureoverlay_manager::io::objects;
use secureoverlay_manager_core::operator::{ObjectReference, ObjectWrite};
use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, MANAGER, Manifest, until},
    program::Program,
};

fn settings(name: &str, spec: &Value) -> ClusterEncryption {
    let object = json!({
        "apiVersion": "secureoverlay.io/v1alpha1", "kind": "ClusterEncryption",
        "metadata": {"name": name}, "spec": spec,
    });
    serde_json::from_value(object).unwrap()
}

#[tokio::test]
async fn contradictions_are_refused_and_defaults_filled_in() {
    let cluster = Cluster::fresh().await;
    cluster.apply(Manifest::Ours);
    let all = Api::<ClusterEncryption>::all(cluster.admin.clone());
    let manager = cluster.as_account(MANAGER);
    until("the manager to make it", async || objects::create_encryption(&manager).await.ok()).await;
    let made = serde_json::to_value(all.get("default").await.unwrap().spec).unwrap();
    let expected = json!({
        "enforcement": "Auto", "cipherSuite": "aes128gcm8", "deletionPolicy": "Disable",
        "rotation": {"interval": "12h", "minimumInterval": "5m", "historyLimit": 10},
    });
    assert_eq!(made, expected);
    // Operators apply what they like without a conflict: the manager owns no field of it.
    let own = json!({
        "apiVersion": "secureoverlay.io/v1alpha1", "kind": "ClusterEncryption", "metadata": {"name": "default"},
        "spec": {"enforcement": "Permissive"},
    });
    all.patch("default", &PatchParams::apply("olga"), &Patch::Apply(own)).await.unwrap();

    let edit = async |spec: Value| {
        all.patch("default", &PatchParams::default(), &Patch::Merge(json!({ "spec": spec }))).await
    };
    for rotation in [
        json!({"schedule": "0 3 * * 0"}),
        json!({"interval": null}),
        json!({"timeZone": "UTC"}),
        json!({"interval": "soon"}),
        json!({"interval": "-1h"}),
        json!({"historyLimit": 1001}),
        json!({"historyLimit": -1}),
        json!({"interval": null, "schedule": "x".repeat(300)}),
    ] {
        assert!(edit(json!({ "rotation": rotation })).await.is_err(), "{rotation}");
    }
    for spec in
        [json!({"enforcement": "enforcing"}), json!({"cipherSuite": "none"}), json!({"deletionPolicy": 7})]
    {
        assert!(edit(spec.clone()).await.is_err(), "{spec}");
    }
    let schedule = json!({"interval": null, "schedule": "0 3 * * 0", "timeZone": "Europe/Berlin"});
    edit(json!({ "rotation": schedule })).await.unwrap();
    let other = settings("other", &json!({}));
    assert!(all.create(&PostParams::default(), &other).await.is_err(), "only `default`");
}

#[tokio::test]
async fn statuses_are_conditional_and_leave_nothing_behind() {
    let cluster = Cluster::fresh().await;
    cluster.apply(Manifest::Ours);
    let manager = cluster.as_account(MANAGER);
    let made =
        until("the definition is served", async || objects::create_rotation(&manager, "first-1").await.ok())
            .await;
    let all = Api::<KeyRotation>::all(cluster.admin.clone());
    let status = json!({
        "generation": 7, "cause": "First", "suite": "aes128gcm8", "phaseTimes": {"staged": "2026-11-20T03:00:00Z"},
        "waitingFor": {"step": "receive", "since": "2026-11-20T03:00:00Z", "done": 1, "total": 2, "nodes": ["a"]},
        "conditions": [{
            "type": "Complete", "status": "False", "reason": "Staged", "message": "m",
            "lastTransitionTime": "2026-11-20T03:00:00Z",
        }],
    });
    let write = |version: &str, status: &Value| ObjectWrite::RotationStatus {
        rotation: made.reference.clone(),
        resource_version: version.to_owned(),
        status: Box::new(serde_json::from_value(status.clone()).unwrap()),
    };
    objects::write(&manager, &write(&made.resource_version, &status)).await.unwrap();
    let written = all.get("first-1").await.unwrap();
    assert_eq!(written.status.as_ref().unwrap().waiting_for.as_ref().unwrap().nodes, ["a"]);
    // Over an older version nothing is written; what is absent goes.
    let mut done = status.clone();
    done.as_object_mut().unwrap().remove("waitingFor");
    objects::write(&manager, &write(&made.resource_version, &done)).await.unwrap();
    assert!(all.get("first-1").await.unwrap().status.unwrap().waiting_for.is_some());
    let version = written.metadata.resource_version.unwrap();
    objects::write(&manager, &write(&version, &done)).await.unwrap();
    let after = all.get("first-1").await.unwrap().status.unwrap();
    assert_eq!((after.waiting_for, after.generation), (None, Some(7)));
    let other = ObjectReference {
        uid: secureoverlay_keyring::uid::Uid::from_random([7; 16]),
        ..made.reference.clone()
    };
    objects::write(&manager, &ObjectWrite::DeleteRotation(other)).await.unwrap();
    assert!(all.get_opt("first-1").await.unwrap().is_some(), "another object of that name stays");
    objects::write(&manager, &ObjectWrite::DeleteRotation(made.reference.clone())).await.unwrap();
    assert!(all.get_opt("first-1").await.unwrap().is_none());
}

#[tokio::test]
async fn manager_makes_the_settings_serves_requests_and_keeps_the_last_good_ones() {
    let cluster = Cluster::fresh().await;
    cluster.apply(Manifest::Ours);
    let kubeconfig = cluster.account_kubeconfig(MANAGER).await;
    let flags = ["--settings", "object", "--rotation-mode", "timed", "--propagation-delay", "300ms"];
    let program = Program::with(&kubeconfig, &flags).await;
    let settings = Api::<ClusterEncryption>::all(cluster.admin.clone());
    until("the settings", async || settings.get_opt("default").await.ok().flatten()).await;
    let active = async || cluster.ring().await.and_then(|ring| Some(ring.active()?.id));
    let first = until("the first key", active).await;
    let edit = async |spec: Value| {
        let patch = Patch::Merge(json!({ "spec": spec }));
        settings.patch("default", &PatchParams::default(), &patch).await.unwrap()
    };
    edit(json!({"rotation": {"interval": "1s", "minimumInterval": "1h"}})).await;
    let condition = async |kind: &str| {
        let status = settings.get("default").await.ok()?.status?;
        status.conditions.into_iter().find(|it| it.r#type == kind)
    };
    until("the invalid edit is reported", async || {
        condition("Stalled").await.filter(|it| it.status == ConditionStatus::True)
    })
    .await;
    assert_eq!(active().await, Some(first));
    edit(json!({"rotation": {"interval": "12h", "minimumInterval": "0s"}})).await;
    let rotations = Api::<KeyRotation>::all(cluster.admin.clone());
    let object = KeyRotation::new("mine", KeyRotationSpec::default());
    rotations.create(&PostParams::default(), &object).await.unwrap();
    let waited =
        cluster.kubectl(&["wait", "--for=condition=Complete", "keyrotation/mine", "--timeout=30s"], "");
    assert!(waited.contains("condition met"), "{waited}");
    assert!(active().await > Some(first));
    let events = cluster.kubectl(&["describe", "keyrotation", "mine"], "");
    assert!(events.contains("RotationStarted") && events.contains("RotationCompleted"), "{events}");
    let explained = cluster.kubectl(&["explain", "clusterencryption.spec.rotation"], "");
    assert!(explained.contains("minimumInterval") && explained.contains("The least time"), "{explained}");
    let read = Object::<secureoverlay_k8s::key_rotation::Requested>::read(
        serde_json::to_value(rotations.get("mine").await.unwrap()).unwrap(),
    );
    assert!(read.content.unwrap().status.phase_times.retired.is_some());
    let (code, log) = program.stop().await;
    assert_eq!(code, Some(0), "{log}");
}
