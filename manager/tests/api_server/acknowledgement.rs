//! A rotation that waits for a node's acknowledgement, as the node's agent would give it.

use std::{
    collections::BTreeSet,
    path::Path,
    process::{Command, Stdio},
};

use k8s_openapi::api::core::v1::Node;
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use secureoverlay_k8s::{
    cluster_encryption::ClusterEncryption,
    encryption_peer::{EncryptionPeer, EncryptionPeerSpec},
    node_encryption::{NodeEncryption, NodeEncryptionSpec},
};
use secureoverlay_keyring::{
    acknowledgement::{Acknowledgement, EnforcementBlocker, UnknownGateways},
    keyring::{KeyRing, Role},
    node_key::PublicKey,
    peer::{EncryptionPeerSpec as Announcement, Sender},
    uid::Uid,
};
use serde_json::json;

use crate::{
    cluster::{AGENT, Cluster, MANAGER, Manifest, until},
    program::Program,
};

const NODE: &str = "node-1";
const BOOT: &str = "0f3c9b1e-8d1f-4c57-9b43-5a9f3f1f2b02";

/// A Node object; no other test may see it.
struct Guest<'c> {
    cluster: &'c Cluster,
    uid: Uid,
}

impl<'c> Guest<'c> {
    async fn join(cluster: &'c Cluster) -> Self {
        let nodes = Api::<Node>::all(cluster.admin.clone());
        let node = serde_json::from_value(json!({"metadata": {"name": NODE}})).unwrap();
        let node = nodes.create(&PostParams::default(), &node).await.unwrap();
        let guest = Self { cluster, uid: node.metadata.uid.unwrap().parse().unwrap() };
        let info = json!({
            "architecture": "", "bootID": BOOT, "containerRuntimeVersion": "", "kernelVersion": "",
            "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "", "operatingSystem": "linux", "osImage": "",
            "systemUUID": "",
        });
        let status = json!({"status": {
            "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}],
            "conditions": [{"type": "Ready", "status": "True"}],
            "nodeInfo": info,
        }});
        nodes.patch_status(NODE, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
        guest
    }

    /// Announces a key.
    async fn announce(&self) {
        let sender = Sender {
            instance: instance().into(),
            address: "192.0.2.1".parse().unwrap(),
            public_key: PublicKey::try_from([9; 32]).unwrap(),
        };
        let spec = Announcement { node_uid: self.uid, senders: vec![sender], pod_networks: BTreeSet::new() };
        let peers = Api::<EncryptionPeer>::all(self.cluster.admin.clone());
        let peer = EncryptionPeer::new(NODE, EncryptionPeerSpec(spec));
        until("the definition is served", async || peers.create(&PostParams::default(), &peer).await.ok())
            .await;
    }

    /// Does all that `ring` wants, and acknowledges it.
    async fn acknowledge(&self, ring: &KeyRing) {
        let active = ring.active().map(|active| active.uid);
        let acknowledgement = Acknowledgement {
            ack_id: ring.ack_id,
            node_uid: self.uid,
            instance: instance().into(),
            receivable: ring.generations.iter().map(|generation| generation.uid).collect(),
            proven_generations: BTreeSet::new(),
            active_generation: active,
            sends_none: active.is_none(),
            all_pairs_proven: true,
            exhausted_generations: BTreeSet::new(),
            highest_generation_seen: ring.active().map_or(0, |active| active.id),
            enforcement: ring.enforcement,
            // So that nothing else is written.
            enforcement_blockers: [EnforcementBlocker { reason: "Test".to_owned(), detail: String::new() }]
                .into(),
            unproven_pairs: Vec::new(),
            tunnel_mtu_too_large: false,
            unknown_gateways: UnknownGateways::default(),
            no_peers: false,
        };
        let agent = Api::<NodeEncryption>::all(self.cluster.as_account(AGENT));
        let patch = Patch::Merge(json!({"status": {"acknowledgement": acknowledgement}}));
        agent.patch_status(NODE, &PatchParams::default(), &patch).await.unwrap();
    }
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        let deleted = Command::new("kubectl").args(["delete", "node", NODE]).status();
        assert!(std::thread::panicking() || deleted.unwrap().success());
    }
}

fn instance() -> Uid {
    Uid::from_random([3; 16])
}

/// The ring, once it holds these.
async fn holds(cluster: &Cluster, expected: &[Role]) -> KeyRing {
    let roles = |ring: &KeyRing| ring.generations.iter().map(|it| it.role).collect::<Vec<_>>() == expected;
    until(&format!("{expected:?}"), async || cluster.ring().await.filter(|ring| roles(ring))).await
}

fn rotate(kubeconfig: &Path) -> std::process::Child {
    Command::new(env!("CARGO_BIN_EXE_ucp-secureoverlay-mgr"))
        .env_clear()
        .env("KUBECONFIG", kubeconfig)
        .args(["rotate", "--wait"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

#[tokio::test]
async fn a_rotation_on_request_waits_for_acknowledgements() {
    use Role::{Active, Retiring, Staged};
    let cluster = Cluster::fresh().await;
    cluster.apply(Manifest::Ours);
    let guest = Guest::join(&cluster).await;
    let agent = Api::<NodeEncryption>::all(cluster.as_account(AGENT));
    let object = NodeEncryption::new(NODE, NodeEncryptionSpec {});
    until("the definition is served", async || agent.create(&PostParams::default(), &object).await.ok())
        .await;

    guest.announce().await;
    let kubeconfig = cluster.account_kubeconfig(MANAGER).await;
    let settings = json!({
        "apiVersion": "secureoverlay.io/v1alpha1", "kind": "ClusterEncryption", "metadata": {"name": "default"},
        "spec": {"rotation": {"interval": "12h", "minimumInterval": "0s"}},
    });
    let settings: ClusterEncryption = serde_json::from_value(settings).unwrap();
    let all = Api::<ClusterEncryption>::all(cluster.admin.clone());
    until("the definition is served", async || all.create(&PostParams::default(), &settings).await.ok())
        .await;
    let flags = ["--rotation-mode", "acknowledged", "--settings", "object"];
    let program = Program::with(&kubeconfig, &flags).await;
    let first = holds(&cluster, &[Staged]).await;
    until("the node is missing", async || (program.metric("missing_nodes") == 1).then_some(())).await;
    assert_eq!(cluster.ring().await, Some(first.clone()), "no node has acknowledged");
    guest.acknowledge(&first).await;
    guest.acknowledge(&holds(&cluster, &[Active]).await).await;

    // With the rights of the manager's pod, no more.
    let command = rotate(&kubeconfig);
    guest.acknowledge(&holds(&cluster, &[Active, Staged]).await).await;
    guest.acknowledge(&holds(&cluster, &[Retiring, Active]).await).await;
    let done = holds(&cluster, &[Active]).await;
    let output = tokio::task::spawn_blocking(|| command.wait_with_output().unwrap()).await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let said = format!("generation {} is in use, and the one before it is gone", done.highest_id());
    assert!(output.status.success() && text.contains(&said), "{text}");
    assert!(done.installation.is_some());
    assert!(program.page("/readyz").starts_with("HTTP/1.1 200"));
    assert_eq!(program.metric("expected_nodes"), 1);
    let events = cluster.kubectl(&["get", "events", "--all-namespaces"], "");
    for reason in ["RotationStarted", "KeyActivated", "RotationCompleted"] {
        assert!(events.contains(reason), "{events}");
    }
    let (code, log) = program.stop().await;
    assert_eq!(code, Some(0), "{log}");
}
